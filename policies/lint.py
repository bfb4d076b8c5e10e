"""What is allowed in a policy and probably not meant. Pure; errors proper are the language's business.

A finding never stops a policy from loading: it says where to look, why, and what to write instead. Sources: the
HTCondor manual (ClassAd operators and functions), RFC 7530 and the registered ports of kernel file systems.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

from policies import classads, expressions, shadow, trust
from policies.ads import JobAd
from policies.classads import Kind
from policies.conditions import Conditions
from policies.decide import Held, decide
from policies.language import Problem, attributes_read
from policies.model import AttributeType, Expose, Expression, Place, Policy, Role, Site, Verdict, node_matches
from policies.values import in_words
from policies.wire import Phase

IDENTITIES = (trust.SET_BY_SCHEDD - {"clusterid", "procid", "qdate"}) | trust.SET_BY_LARK_ACCESS_POINT
IDENTITIES |= {"acctgroup", "acctgroupuser"}
KERNEL_MOUNT_PORTS: Mapping[int, str] = {
    111: "rpcbind",
    988: "Lustre",
    2049: "NFS",
    3300: "CephFS",
    6789: "CephFS",
    20048: "NFS mountd",
}
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_LOOSE = re.compile(r"(?<![=!<>?])==(?!=)|(?<![=!])!=(?!=)")
_HARMLESS = re.compile(r"(?:-?[0-9.]+|true|false|undefined)", re.IGNORECASE)
_NAME = re.compile(r"(?:MY\.)?([A-Za-z_]\w*)", re.IGNORECASE)
_NESTED = re.compile(r"\([^()]*[+*}][^()]*\)[+*{]")
_MEMBER = re.compile(r"(?<!identical)(?<!\w)(member|stringListIMember)\s*\(", re.IGNORECASE)
_REGEXP = re.compile(r'\bregexp\s*\(\s*"((?:[^"\\]|\\.)*)"\s*,[^()"]*(?:,\s*"(\w*)")?\s*\)', re.IGNORECASE)
_EXACT = ("=?=", "=!=", "is", "isnt")
_EQUALITY = (*_EXACT, "==", "!=")
_KINDS: Mapping[AttributeType, Kind] = {
    AttributeType.STRING: Kind.STRING,
    AttributeType.ENUM: Kind.STRING,
    AttributeType.NUMBER: Kind.NUMBER,
    AttributeType.BOOLEAN: Kind.BOOLEAN,
}
_SHOWN_VALUES = 3
"""How many of the values that an attribute has in the ads given are told."""


def lint(
    policy: Policy,
    site: Site | None = None,
    *,
    ads: Sequence[JobAd] = (),
    startd_job_attrs: Iterable[str] | None = None,
    immutable_job_attrs: Iterable[str] | None = None,
) -> list[Problem]:
    """Findings, by place. `ads`: real job ads, to find what never holds and which jobs would be held.

    `startd_job_attrs`, `immutable_job_attrs`: the pool's own lists, where they are known.
    """
    found = [
        *_identities(policy),
        *_comparisons(policy),
        *_services(policy, site),
        *_mounts(policy),
        *_grants(policy),
        *_sealed(policy),
        *_slices(policy),
        *_exposures(policy, site),
        *_classes(policy),
        *_node_modes(policy, site),
        *_rates(policy, site),
        *_shares(policy, site),
        *_borders(policy, site),
        *_unused(policy),
    ]
    if ads:
        found += [*_never_true(policy, ads), *_would_be_held(policy, ads)]
    if startd_job_attrs is not None:
        found += _missing_attributes(policy, startd_job_attrs)
    if immutable_job_attrs is not None:
        found += _mutable_grounds(policy, immutable_job_attrs)
    return sorted(set(found))


# --- conditions -------------------------------------------------------------------------------------------------------


def _identities(policy: Policy) -> Iterator[Problem]:
    for group in policy.groups.values():
        text, place = group.condition.text, group.place
        about = ", ".join(sorted(group.condition.references & IDENTITIES))
        if about and _compares_loosely(text):
            message = f"group `{group.name}` compares {about} with == or !=, which ignore case"
            yield Problem(place, message, "write =?= or =!=")
        for name in dict.fromkeys(_MEMBER.findall(_STRING.sub('""', text)) if about else ()):
            message = f"group `{group.name}` asks about {about} with {name}(), which ignores case"
            listed = "stringListMember()" if name.lower() != "member" else "identicalMember()"
            yield Problem(place, message, f"write {listed}")
        for pattern, options in _REGEXP.findall(text):
            if _alternatives(pattern):
                message = f'group `{group.name}`: in regexp("{pattern}") the ^ and $ belong to one alternative each'
                yield Problem(place, message, "put the alternatives in brackets: ^(a|b)$")
            elif not (pattern.startswith("^") and re.search(r"(\$|\$\))$", pattern)):
                message = f'group `{group.name}`: regexp("{pattern}") fits anywhere inside the value'
                yield Problem(place, message, "anchor it with ^ and $")
            if _NESTED.search(re.sub(r"\\.|\[[^\]]*\]", "x", pattern)):
                message = f'group `{group.name}`: regexp("{pattern}") repeats what repeats, which can take for ever'
                yield Problem(place, message, "write it with one repetition: ^a+$ for ^(a+)+$")
            if about and "i" in options.lower():
                message = f'group `{group.name}`: regexp("{pattern}") about {about} ignores case'
                yield Problem(place, message, "leave the option i out")


def _compares_loosely(text: str) -> bool:
    """Whether == or != may compare an identity: not where one side is a number, or both are about something else."""
    bare = _STRING.sub('""', text)
    for found in _LOOSE.finditer(bare):
        left = re.search(r'(""|[\w.]+|\))\s*$', bare[: found.start()])
        right = re.match(r'\s*(""|-?[\w.]+\(?|\()', bare[found.end() :])
        sides = [side.group(1) if side else "(" for side in (left, right)]
        if any(_HARMLESS.fullmatch(side) for side in sides):
            continue
        names = [_NAME.fullmatch(side) for side in sides if side != '""']
        if not all(name is not None and name.group(1).lower() not in IDENTITIES for name in names):
            return True
    return False


def _alternatives(pattern: str) -> bool:
    """Whether a | stands outside of brackets, so that an anchor holds for one side only."""
    depth = 0
    for letter in re.sub(r"\\.|\[[^\]]*\]", "", pattern):
        depth += (letter == "(") - (letter == ")")
        if letter == "|" and depth == 0:
            return True
    return False


def _types(policy: Policy) -> Mapping[str, tuple[AttributeType, tuple[str, ...]]]:
    """Of attributes, in lower case, whose type is certain: what they are, and of an enum its values."""
    known: dict[str, tuple[AttributeType, tuple[str, ...]]] = {
        name: (AttributeType.NUMBER if name in trust.NUMBERS else AttributeType.STRING, ())
        for name in trust.TYPED_BY_HTCONDOR
    }
    return known | {a.name.lower(): (a.type, a.values) for a in policy.attributes.values()}


def _comparisons(policy: Policy) -> Iterator[Problem]:
    """Comparisons with a value that the attribute cannot have: a seal that rests on one seals nobody."""
    types = _types(policy)
    for group in policy.groups.values():
        for found in classads.comparisons(group.condition.text):
            type_, values = types.get(found.name.lower(), (None, ()))
            kind = _KINDS.get(type_) if type_ is not None else None
            if kind is None:
                continue
            about = f"group `{group.name}` compares {found.name}"
            if found.kind is not kind:
                if not {kind, found.kind} <= {Kind.NUMBER, Kind.BOOLEAN} or found.operator in _EXACT:
                    message = f"{about} with {found.value}, but it is always {classads.in_words(kind)}"
                    yield Problem(group.place, message, "compare it with a value of that type")
            elif type_ is AttributeType.ENUM and not _among(found, values):
                message = f"{about} with {found.value}, which none of its values is"
                yield Problem(group.place, message, f"write one of {', '.join(values)}, letter by letter")
            elif found.name.lower() == "user" and found.operator in _EQUALITY and "@" not in found.value:
                message = f"{about} with {found.value}, but a User is always NAME@DOMAIN"
                yield Problem(group.place, message, "write it as in the job's ad (condor_q -af User), or compare Owner")


def _among(found: classads.Comparison, values: tuple[str, ...]) -> bool:
    value = found.value[1:-1]
    if found.operator not in _EQUALITY or "\\" in value:
        return True
    return value in values if found.operator in _EXACT else value.lower() in {v.lower() for v in values}


# --- services and grants ----------------------------------------------------------------------------------------------


def _services(policy: Policy, site: Site | None) -> Iterator[Problem]:
    guarded = {name for b in site.bridges.values() if Role.GATE in b.roles for name in b.guards} if site else set()
    sealed = {seal.group for seal in policy.seals}
    for service in policy.services.values():
        if not service.protected:
            if service.name not in policy.classified_services:
                message = f"service `{service.name}` is not protected, and no rule names it"
                yield Problem(service.place, message, "add `protected: true`, use it under classify, or drop it")
            continue
        grants = [g for g in policy.grants if g.service == service.name]
        if not service.open_to and all(g.group in sealed or g.audit for g in grants):
            message = f"nobody can reach protected service `{service.name}`"
            if any(g.group not in sealed for g in grants):
                message += ": its grants are all in audit mode, and give nothing"
            yield Problem(service.place, message, "add a grant or open-to")
        if site is not None and service.name not in guarded:
            message = f"no gate guards `{service.name}`: it is closed to jobs on worker bridges only"
            yield Problem(service.place, message, "list it under `guards` of a gate, or firewall the server itself")


def _mounts(policy: Policy) -> Iterator[Problem]:
    for service in policy.services.values():
        for ports in service.ports:
            for number, name in KERNEL_MOUNT_PORTS.items():
                if ports.first <= number <= ports.last and ports.last - ports.first < 1000:
                    message = (
                        f"service `{service.name}`: {ports} is {name}; a mount belongs to the node's kernel and goes"
                        " past the job's network, so no job policy governs it"
                    )
                    yield Problem(service.place, message, "use file permissions or an export list for mounts")


def _grants(policy: Policy) -> Iterator[Problem]:
    for rule, other in shadow.redundant(policy.grants, partial(shadow.grant_covers, policy)):
        yield Problem(rule.place, f"this grant gives nothing beyond the one at {other.place}", "drop one of them")


def _sealed(policy: Policy) -> Iterator[Problem]:
    """Rules for a group that is sealed."""
    sealed = {seal.group: seal.place for seal in policy.seals}
    rules: list[tuple[str, str | None, Place]] = [("grant", g.group, g.place) for g in policy.grants]
    rules += [("slice", r.group, r.place) for r in policy.slices]
    rules += [("exposure", r.group, r.place) for r in policy.exposes]
    rules += [("classify rule", r.group, r.place) for r in policy.classify]
    rules += [("rate", r.group, r.place) for r in policy.rates]
    rules += [("share", r.group, r.place) for r in policy.shares]
    rules += [("scitag", r.group, r.place) for r in policy.scitags]
    for what, group, place in rules:
        if group in sealed:
            message = f"group `{group}` is sealed ({sealed[group]}), and a seal beats every {what}: this gives nothing"
            yield Problem(place, message, f"drop the {what} or the seal")


# --- slices and exposures ---------------------------------------------------------------------------------------------


def _slices(policy: Policy) -> Iterator[Problem]:
    rules = policy.slices
    for rule, earlier in shadow.shadowed(rules, lambda a, b: shadow.group_covers(policy, a.group, b.group)):
        message = f"no job comes to this rule: the first that fits decides, and that is the one at {earlier.place}"
        yield Problem(rule.place, message, "drop it, or move it up")
    to_slice = [rule for rule in policy.exposes if rule.to_slice]
    for rule in rules:
        if policy.defaults.between_jobs is Verdict.ALLOW:
            message = f"all jobs may talk to each other ({policy.defaults.place}): a slice gives nothing"
            yield Problem(rule.place, message, "write `between-jobs: deny`, or drop the slice")
        elif rule.exposed_only and not to_slice:
            message = "members of this slice reach only exposed ports, and no rule exposes any to a slice"
            yield Problem(rule.place, message, "add `expose: [{for: …, ports: […], to: slice}]`")


def _exposures(policy: Policy, site: Site | None) -> Iterator[Problem]:
    for rule, other in shadow.redundant(policy.exposes, partial(shadow.expose_covers, policy)):
        yield Problem(rule.place, f"this exposes nothing beyond the rule at {other.place}", "drop one of them")
    for rule in policy.exposes:
        if rule.to_slice:
            yield from _exposed_to_slice(policy, rule)
            continue
        if policy.defaults.ingress is Verdict.ALLOW:
            message = f"every port of every job is open from outside ({policy.defaults.place}): this gives nothing"
            yield Problem(rule.place, message, "write `ingress: deny`, or drop the rule")
        for net in rule.networks:
            for node in site.nodes.values() if site else ():
                ranges = (node.ipv4, node.ipv6) if node.ipv6 else (node.ipv4,)
                if shadow.networks_cover(ranges, (net,)):
                    message = f"{net} holds addresses of jobs (node `{node.name}`), and between jobs only slices count"
                    yield Problem(rule.place, message, "write `to: slice`, or give a network outside")


def _exposed_to_slice(policy: Policy, rule: Expose) -> Iterator[Problem]:
    if policy.defaults.between_jobs is Verdict.ALLOW:
        message = f"all jobs may talk to each other ({policy.defaults.place}): this gives nothing"
        yield Problem(rule.place, message, "write `between-jobs: deny`, or drop the rule")
    elif not policy.slices:
        yield Problem(rule.place, "there is no slice to expose anything to", "add a rule under `slices`")
    elif not any(s.exposed_only for s in policy.slices):
        message = "members of every slice reach all ports of each other: this gives nothing"
        yield Problem(rule.place, message, "say `between: exposed` in the slice's rule, or drop this one")
    else:
        first = next((s for s in policy.slices if shadow.group_covers(policy, s.group, rule.group)), None)
        if first is not None and not first.exposed_only:
            message = (
                f"the slice of these jobs ({first.place}) is open, its members reach all ports: this gives nothing"
            )
            yield Problem(rule.place, message, "say `between: exposed` there, or drop this one")


# --- classes and modes ------------------------------------------------------------------------------------------------


def _classes(policy: Policy) -> Iterator[Problem]:
    for rule, earlier in shadow.shadowed(policy.classify, partial(shadow.classify_covers, policy)):
        message = f"nothing comes to this rule: the first that fits decides, and that is the one at {earlier.place}"
        yield Problem(rule.place, message, "drop it, or move it up")
    for tag, before in shadow.shadowed(policy.scitags, lambda a, b: shadow.group_covers(policy, a.group, b.group)):
        message = f"no job comes to this rule: the first that fits decides, and that is the one at {before.place}"
        yield Problem(tag.place, message, "drop it, or move it up")
    given = {rule.traffic_class for rule in policy.classify}
    for traffic_class in policy.classes[:-1]:
        if traffic_class.name not in given:
            message = f"no rule of classify gives class `{traffic_class.name}`"
            yield Problem(traffic_class.place, message, "add a rule, or drop the class")


def _node_modes(policy: Policy, site: Site | None) -> Iterator[Problem]:
    rules = policy.node_modes
    for rule, earlier in shadow.shadowed(rules, shadow.mode_covers):
        message = f"no node comes to this rule: the first that fits decides, and that is the one at {earlier.place}"
        yield Problem(rule.place, message, "drop it, or move it up")
    if rules and rules[-1].mode is policy.mode:
        message = f"this rule changes nothing: `mode: {policy.mode.value}` holds for all other nodes anyway"
        yield Problem(rules[-1].place, message, "drop it")
    for rule in rules:
        if site is not None and not any(node_matches(rule.nodes, name) for name in site.nodes):
            message = f"`nodes: [{', '.join(rule.nodes)}]` fits no node of the site"
            yield Problem(rule.place, message, f"nodes: {', '.join(sorted(site.nodes))}")


def _rates(policy: Policy, site: Site | None) -> Iterator[Problem]:
    for rule in policy.rates:
        if rule.expression.references:
            continue
        value = expressions.Scope({}, {}).evaluate(rule.expression.text)
        if isinstance(value, int | float) and (above := _above(site, int(value * rule.unit))):
            yield Problem(rule.place, f"a rate of {above}", "write less")


def _above(site: Site | None, amount: int) -> str:
    """In words, where an amount is more than the link carries; empty: nowhere."""
    links = {} if site is None else {name: node.link for name, node in site.nodes.items()}
    above = sorted(name for name, link in links.items() if link is not None and amount > link)
    if not above:
        return ""
    shown = ", ".join(above[:3]) + (f" and {len(above) - 3} others" if len(above) > 3 else "")
    return f"{in_words(amount)} is more than the link of {shown} carries: it limits nothing there"


def _shares(policy: Policy, site: Site | None) -> Iterator[Problem]:
    for rule in policy.shares:
        if rule.part.bits is not None and (above := _above(site, rule.part.bits)):
            yield Problem(rule.place, f"a share of {above}", "write less, or a part of the link such as 50%")
    for rule, earlier in shadow.shadowed(policy.shares, lambda a, b: shadow.group_covers(policy, a.group, b.group)):
        message = f"no job comes to this rule: the first that fits decides, and that is the one at {earlier.place}"
        yield Problem(rule.place, message, "drop it, or move it up")


def _borders(policy: Policy, site: Site | None) -> Iterator[Problem]:
    """Classes without a border, and a border without classes."""
    borders = [] if site is None else [b for b in site.bridges.values() if Role.BORDER in b.roles]
    shaped = [c for c in policy.classes if c.guarantee is not None or c.ceiling is not None]
    if shaped and site is not None and not borders:
        message = "the site has no border: guarantee and ceiling do nothing, classes are marked in packets (DSCP) only"
        fix = "declare a bridge with role border in the site file, or give the routers a rule for each DSCP"
        yield Problem(shaped[0].place, message, fix)
    for border in borders:
        if not policy.classes:
            message = f"border `{border.name}` has nothing to tell apart: the policy has no classes"
            yield Problem(border.place, message, "add `classes:` and `classify:`, or drop the border")
    if not borders or len(policy.classes) < 2:
        return
    last = policy.classes[-1]
    if last.guarantee is None:
        message = (
            f"class `{last.name}` has no guarantee: whatever no rule names gets nothing while others fill the line"
        )
        yield Problem(last.place, message, "give it a little, such as 5%")


def _unused(policy: Policy) -> Iterator[Problem]:
    used: set[str | None] = {rule.group for rule in policy.seals}
    for rules in (
        policy.grants,
        policy.slices,
        policy.classify,
        policy.rates,
        policy.shares,
        policy.exposes,
        policy.scitags,
    ):
        used |= {rule.group for rule in rules}
    for group in policy.groups.values():
        if group.name not in used:
            yield Problem(group.place, f"group `{group.name}` is used by no rule", "use it or drop it")


# --- against the pool -------------------------------------------------------------------------------------------------


def _about_slot(expression: Expression) -> bool:
    return any(name.startswith("target.") for name in expression.references)


def _never_true(policy: Policy, ads: Sequence[JobAd]) -> Iterator[Problem]:
    groups = [g for g in policy.groups.values() if not _about_slot(g.condition)]
    conditions = Conditions([(g.condition.text, g.condition.references) for g in groups])
    held: set[int] = set()
    for job in ads:
        lowered = {name.lower(): value for name, value in _with_defaults(policy, job).items()}
        held.update(conditions.answer(lowered, {}, expressions.Scope(lowered, {})).true)
    for position, group in enumerate(groups):
        if position in held:
            continue
        seen = [_values(ads, name) for name in sorted(group.condition.references)]
        message = f"group `{group.name}` holds for none of the {len(ads)} job ads given"
        yield Problem(group.place, "; ".join([message, *seen]), "check spelling and values")


def _with_defaults(policy: Policy, job: JobAd) -> Mapping[str, object]:
    present = {name.lower() for name in job.ad}
    missing = [a for a in policy.attributes.values() if a.default is not None and a.name.lower() not in present]
    return {**job.ad, **{a.name: a.default for a in missing}}


def _values(ads: Sequence[JobAd], name: str) -> str:
    found = sorted({repr(v) for job in ads for n, v in job.ad.items() if n.lower() == name})
    if not found:
        return f"none of them has {name}"
    more = f" or {len(found) - _SHOWN_VALUES} others" if len(found) > _SHOWN_VALUES else ""
    return f"{name} is {', '.join(found[:_SHOWN_VALUES])}{more} in them"


def _would_be_held(policy: Policy, ads: Sequence[JobAd]) -> Iterator[Problem]:
    # What depends on the slot cannot be told from a job's ad.
    unknown = {g.place for g in policy.groups.values() if _about_slot(g.condition)}
    unknown |= {r.place for r in policy.slices if _about_slot(r.name)}
    unknown |= {r.place for r in policy.rates if _about_slot(r.expression)}
    unknown |= {r.place for r in policy.shares if r.per is not None and _about_slot(r.per)}
    reasons: dict[Place, list[tuple[JobAd, str]]] = {}
    read = attributes_read(policy)
    for job in ads:
        for name in sorted(n for n in job.expressions if n.lower() in read):
            reason = f"{name} is an expression, and the agent takes only plain values"
            reasons.setdefault(_read_at(policy, name.lower()), []).append((job, reason))
        try:
            decide(policy, "", job.ad, {}, Phase.RUN)
        except Held as problem:
            if problem.place not in unknown:
                reasons.setdefault(problem.place or policy.defaults.place, []).append((job, problem.reason))
    for place, found in reasons.items():
        job, reason = found[0]
        message = f"{len(found)} of the {len(ads)} job ads given would be held (job {job.label}: {reason})"
        yield Problem(place, message, "mend the rule, or tell the jobs' owners")


def _read_at(policy: Policy, name: str) -> Place:
    """The first place that reads a job attribute (in lower case)."""
    places = [g.place for g in policy.groups.values() if name in g.condition.references]
    places += [a.place for a in policy.attributes.values() if a.name.lower() == name]
    places += [r.place for r in policy.slices if name in r.name.references or (name == "user" and not r.site_wide)]
    places += [r.place for r in policy.rates if name in r.expression.references]
    places += [r.place for r in policy.shares if r.per is not None and name in r.per.references]
    return min(places, default=policy.defaults.place)


def _missing_attributes(policy: Policy, startd_job_attrs: Iterable[str]) -> Iterator[Problem]:
    listed = {name.lower() for name in startd_job_attrs}
    for name in sorted(attributes_read(policy) - listed):
        message = f"attribute `{name}` is not in STARTD_JOB_ATTRS: no agent will ever send it"
        yield Problem(_read_at(policy, name), message, "add it on the execution points")


def _mutable_grounds(policy: Policy, immutable_job_attrs: Iterable[str]) -> Iterator[Problem]:
    fixed = {name.lower() for name in immutable_job_attrs} | trust.SET_BY_SCHEDD
    rules: list[tuple[str, str | None, frozenset[str], Place, bool]] = [
        *(("grant", r.group, frozenset(), r.place, r.trust_user) for r in policy.grants),
        *(("class", r.group, frozenset(), r.place, r.trust_user) for r in policy.classify),
        *(("exposure", r.group, frozenset(), r.place, r.trust_user) for r in policy.exposes if not r.to_slice),
        *(("scitag", r.group, frozenset(), r.place, r.trust_user) for r in policy.scitags),
        *(("share", None, r.per.references, r.place, r.trust_user) for r in policy.shares if r.per is not None),
        *(("site-wide slice", r.group, r.name.references, r.place, r.trust_user) for r in policy.slices if r.site_wide),
    ]
    for what, group, more, place, trusting in rules:
        if trusting:
            continue
        read = more | (policy.groups[group].condition.references if group is not None else frozenset())
        loose = sorted(n for n in read if not n.startswith("target.") and n not in fixed)
        if loose:
            message = f"this {what} rests on `{', '.join(loose)}`, which condor_qedit can change"
            yield Problem(place, message, "list it in IMMUTABLE_JOB_ATTRS on every access point")
