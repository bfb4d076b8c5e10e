"""What is allowed in a policy and probably not meant. Pure; errors proper are the language's business.

A finding never stops a policy from loading: it says where to look, and why. Sources: the HTCondor manual (ClassAd
operators and functions), RFC 7530 and the registered ports of kernel file systems.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from policies import expressions, trust
from policies.language import Problem, attributes_read
from policies.model import Group, Policy, Role, Site

IDENTITIES = trust.SET_BY_SCHEDD | trust.SET_BY_LARK_ACCESS_POINT | {"acctgroup", "acctgroupuser"}
KERNEL_MOUNT_PORTS: Mapping[int, str] = {
    111: "rpcbind",
    988: "Lustre",
    2049: "NFS",
    3300: "CephFS",
    6789: "CephFS",
    20048: "NFS mountd",
}
_LOOSE_COMPARISON = re.compile(r"(?<![=!<>?])==(?!=)|(?<![=!])!=(?!=)")
_MEMBER = re.compile(r"(?<!identical)\bmember\s*\(", re.IGNORECASE)
_REGEXP = re.compile(r'\bregexp\s*\(\s*"((?:[^"\\]|\\.)*)"', re.IGNORECASE)


def lint(
    policy: Policy,
    site: Site | None = None,
    *,
    ads: Sequence[Mapping[str, object]] = (),
    startd_job_attrs: Iterable[str] | None = None,
    immutable_job_attrs: Iterable[str] | None = None,
) -> list[Problem]:
    """Findings, by place. `ads`: real job ads (from `condor_q -long`), to find conditions that never hold.

    `startd_job_attrs`, `immutable_job_attrs`: the pool's own lists, where they are known.
    """
    found = [*_expressions(policy), *_reach(policy, site), *_mounts(policy), *_unused(policy)]
    if ads:
        found += _never_true(policy, ads)
    if startd_job_attrs is not None:
        found += _missing_attributes(policy, startd_job_attrs)
    if immutable_job_attrs is not None:
        found += _mutable_grounds(policy, immutable_job_attrs)
    return sorted(found)


def _expressions(policy: Policy) -> Iterable[Problem]:
    for group in policy.groups.values():
        text, place = group.condition.text, group.place
        about_identity = sorted(group.condition.references & IDENTITIES)
        if about_identity and _LOOSE_COMPARISON.search(text):
            message = f"group `{group.name}` compares {', '.join(about_identity)} with == or !=, which ignore case"
            yield Problem(place, message, "write =?= or =!=")
        if about_identity and _MEMBER.search(text):
            message = f"group `{group.name}` uses member(), which ignores case"
            yield Problem(place, message, "write identicalMember()")
        for pattern in _REGEXP.findall(text):
            if not (pattern.startswith("^") and re.search(r"(\$|\$\))$", pattern)):
                message = f'group `{group.name}`: regexp("{pattern}") fits anywhere inside the value'
                yield Problem(place, message, "anchor it with ^ and $")


def _reach(policy: Policy, site: Site | None) -> Iterable[Problem]:
    guarded = {name for b in site.bridges.values() if Role.GATE in b.roles for name in b.guards} if site else set()
    sealed_groups = {seal.group for seal in policy.seals}
    for service in policy.services.values():
        if not service.protected:
            continue
        grants = [g for g in policy.grants if g.service == service.name]
        if not grants and not service.open_to:
            yield Problem(
                service.place, f"nobody can reach protected service `{service.name}`", "add a grant or open-to"
            )
        if site is not None and service.name not in guarded:
            message = f"no gate guards `{service.name}`: it is closed to jobs on worker bridges only"
            yield Problem(service.place, message, "list it under `guards` of a gate, or firewall the server itself")
    for position, grant in enumerate(policy.grants):
        if grant.group in sealed_groups:
            message = f"group `{grant.group}` is sealed, and a seal beats every grant: this grant gives nothing"
            yield Problem(grant.place, message, "drop the grant or the seal")
        earlier = [
            g
            for g in policy.grants[:position]
            if (g.group, g.service) == (grant.group, grant.service)
            and grant.during <= g.during
            and (not g.nodes or g.nodes == grant.nodes)
        ]
        if earlier:
            message = f"this grant gives nothing beyond the one at {earlier[0].place}"
            yield Problem(grant.place, message, "drop one of them")


def _mounts(policy: Policy) -> Iterable[Problem]:
    for service in policy.services.values():
        for ports in service.ports:
            for number, name in KERNEL_MOUNT_PORTS.items():
                if ports.first <= number <= ports.last and ports.last - ports.first < 1000:
                    message = (
                        f"service `{service.name}`: {ports} is {name}; a mount belongs to the node's kernel and goes"
                        " past the job's network, so no job policy governs it"
                    )
                    yield Problem(service.place, message, "use file permissions or an export list for mounts")


def _unused(policy: Policy) -> Iterable[Problem]:
    used = {g.group for g in policy.grants} | {s.group for s in policy.seals} | {s.group for s in policy.slices}
    for group in policy.groups.values():
        if group.name not in used:
            yield Problem(group.place, f"group `{group.name}` is used by no rule", "use it or drop it")


def _never_true(policy: Policy, ads: Sequence[Mapping[str, object]]) -> Iterable[Problem]:
    def holds(group: Group, ad: Mapping[str, object]) -> bool:
        return expressions.Scope(ad, {}).evaluate(group.condition.text) is True

    for group in policy.groups.values():
        about_slot = any(n.startswith("target.") for n in group.condition.references)
        if not about_slot and not any(holds(group, ad) for ad in ads):
            present = {name.lower() for ad in ads for name in ad}
            absent = sorted(n for n in group.condition.references if n not in present)
            why = f"; none of them has {', '.join(absent)}" if absent else ""
            message = f"group `{group.name}` holds for none of the {len(ads)} job ads given{why}"
            yield Problem(group.place, message, "check spelling and values")


def _missing_attributes(policy: Policy, startd_job_attrs: Iterable[str]) -> Iterable[Problem]:
    listed = {name.lower() for name in startd_job_attrs}
    start = policy.defaults.place
    for name in sorted(attributes_read(policy) - listed):
        places = [g.place for g in policy.groups.values() if name in g.condition.references]
        places += [a.place for a in policy.attributes.values() if a.name.lower() == name]
        message = f"attribute `{name}` is not in STARTD_JOB_ATTRS: no agent will ever send it"
        yield Problem(min(places, default=start), message, "add it on the execution points")


def _mutable_grounds(policy: Policy, immutable_job_attrs: Iterable[str]) -> Iterable[Problem]:
    fixed = {name.lower() for name in immutable_job_attrs} | trust.SET_BY_SCHEDD
    for grant in policy.grants:
        group = policy.groups[grant.group]
        loose = sorted(n for n in group.condition.references if not n.startswith("target.") and n not in fixed)
        if loose:
            message = f"this grant rests on `{', '.join(loose)}`, which condor_qedit can change"
            yield Problem(grant.place, message, "list it in IMMUTABLE_JOB_ATTRS on every access point")
