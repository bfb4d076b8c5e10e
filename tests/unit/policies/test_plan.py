"""Plans: what another policy would change, for everybody and for each job, in words that can be read."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from policies.decide import Held, decide
from policies.language import policy_from_text
from policies.model import Decision, Policy
from policies.plan import EXAMPLES, Job, plan
from policies.wire import Phase
from tests.effort import examples
from tests.worlds import demo_site

SERVICES = """
services:
  fs: {hosts: [10.0.0.1], ports: [tcp/1094], protected: true}
  lic: {hosts: [10.0.0.2], ports: [tcp/2], protected: true}
  web: {ports: [tcp/443]}
networks: {campus: [10.0.0.0/8, 10.1.0.0/16], lab: [10.9.0.0/16]}
attributes: {LarkSlice: {type: string}, Mbps: {type: number}}
"""
GROUPS = """groups:
  p: 'User =?= "p"'
  q: 'User =?= "q"'
  odd: 'ClusterId > 5'
  sealed: 'JobUniverse =?= 5'
  asks: 'LarkSlice =!= undefined'
"""
CLASSES = "classes: [{name: one, dscp: af41}, {name: two, dscp: 0}]\n"


@functools.cache
def policy(*parts: str, groups: str = GROUPS) -> Policy:
    return policy_from_text(SERVICES + groups + "\n".join(parts) + "\n")


def jobs(*ads: Mapping[str, object]) -> list[Job]:
    return [Job(f"id{n}", f"{n}.0", f"wn{n % 3 + 1}", ad, {}, Phase.RUN) for n, ad in enumerate(ads, 1)]


def test_plan_says_who_gains_and_who_loses_what() -> None:
    old = policy("grants: [{for: p, to: fs}]", groups="groups: {p: 'User =?= \"p\"'}\n")
    new = policy("grants: [{for: p, to: lic}, {for: q, to: fs, during: [run]}]", "seal: [sealed]")
    there = jobs(
        {"User": "p"}, {"User": "q"}, {"User": "r"}, {"ClusterId": "x"}, {"User": "p", "JobUniverse": 5},
    )  # fmt: skip
    assert plan(old, new, there).lines() == [
        "! 4.0 on wn2: would be held, and if running, sealed: the condition of group `odd` is an ERROR for this job"
        " (policy.yaml:11)",
        "- 1.0 on wn2: loses fs, gains lic (policy.yaml:14)",
        "- 5.0 on wn3: becomes sealed (policy.yaml:15), loses fs",
        "+ 2.0 on wn3: gains fs (policy.yaml:14)",
        "4 jobs change, 1 do not",
    ]
    assert plan(old, old, there).lines() == ["0 jobs change, 5 do not"]
    back = plan(new, old, there).lines()
    assert "+ 5.0 on wn3: is no longer sealed, gains fs (policy.yaml:9)" in back
    assert "+ 4.0 on wn2: is no longer sealed" in back, "what is held is sealed if it runs"


def test_a_grant_that_is_not_needed_before_or_after_is_no_gain_and_no_loss() -> None:
    """Who had a grant for a service that is now closed to nobody loses nothing."""
    groups = "groups: {p: 'User =?= \"p\"'}\n"
    closed = "services: {fs: {hosts: [10.0.0.1], ports: [tcp/1], protected: true}}\n" + groups
    closed += "grants: [{for: p, to: fs}]\n"
    other = "services: {all: {hosts: [10.0.0.1], ports: [tcp/1-9], protected: true}}\n" + groups
    there = jobs({"User": "p"})

    def told(before: str, after: str) -> list[str]:
        return [
            line for line in plan(policy_from_text(before), policy_from_text(after), there).lines() if "1.0" in line
        ]

    assert told(closed, groups) == ["~ 1.0 on wn2: reaches fs without a grant"]
    assert told(groups, closed) == ["~ 1.0 on wn2: reaches fs by a grant, and did without (policy.yaml:3)"]
    denied = groups + "defaults: {egress: deny}\n"
    assert told(closed, denied) == ["- 1.0 on wn2: loses fs"]
    assert told(denied, closed) == ["+ 1.0 on wn2: gains fs (policy.yaml:3)"]
    assert told(closed, other) == ["- 1.0 on wn2: loses fs"]
    assert told(closed, groups + "seal: [p]\n") == ["- 1.0 on wn2: becomes sealed (policy.yaml:2), loses fs"]


def test_five_thousand_jobs_with_the_same_change_are_one_line() -> None:
    old = policy("grants: [{for: p, to: fs}]", "slices: [{for: p, name: 'string(ClusterId)', scope: site}]")
    new = policy("grants: [{for: p, to: lic}]", "rates: [{rate: Mbps, unit: Mbit/s}]")
    there = jobs(*({"User": "p", "ClusterId": n // 2, "Mbps": n % 7 + 1} for n in range(1, 5001)))
    found = plan(old, new, there)
    assert found.lines() == [
        "- 5000 jobs (such as 1.0 on wn2, 2.0 on wn3, 3.0 on wn1): loses fs, leaves 2501 slices"
        " (site/0, site/1, …), gains lic (policy.yaml:14), rate: no limit becomes 1 Mbit/s to 7 Mbit/s",
        "5000 jobs change, 0 do not",
    ]
    assert len(found.changes[0].jobs) == 5000
    assert EXAMPLES == 3


def test_grants_in_audit_mode_and_modes_of_nodes() -> None:
    old = policy("grants: [{for: p, to: fs}, {for: q, to: lic, mode: audit}]")
    new = policy("grants: [{for: p, to: fs, mode: audit}]", "node-modes: [{nodes: [wn3], mode: audit}]")
    there = jobs({"User": "p"}, {"User": "q"}, {"User": "r"})
    assert plan(old, new, there).lines() == [
        "~ node wn3: mode becomes audit (policy.yaml:15)",
        "- 1.0 on wn2: loses fs, and is let on to it in audit mode",
        "- 2.0 on wn3: is no longer let on to lic, is in audit mode: refusals are let on (policy.yaml:15)",
        "2 jobs change, 1 do not",
    ]
    assert "+ 2.0 on wn3: is let on to lic in audit mode" not in plan(new, old, there).lines()
    assert (
        "- 2.0 on wn3: is no longer in audit mode: refusals are enforced (policy.yaml:1),"
        " is let on to lic in audit mode" in plan(new, old, there).lines()
    )
    audit = policy("mode: audit", "node-modes: [{nodes: [wn1, wn9], mode: enforce}]")
    assert plan(policy(), audit, there, demo_site()).lines()[:2] == [
        "~ mode: enforce becomes audit (policy.yaml:14)",
        "~ node wn1: mode stays enforce",
    ]


def test_slices_and_exposures() -> None:
    old = policy("slices: [{for: asks, name: LarkSlice}]", "expose: [{for: asks, ports: [tcp/80], to: slice}]")
    new = policy(
        "slices: [{for: asks, name: LarkSlice, between: exposed}]",
        "expose: [{for: asks, ports: [tcp/80, udp/1-9], to: slice}, {for: q, ports: [tcp/22], to: [campus]}]",
    )
    there = jobs({"User": "p", "LarkSlice": "a"}, {"User": "p", "LarkSlice": "a"}, {"User": "q"})
    assert plan(old, new, there).lines() == [
        "- 2 jobs (such as 1.0 on wn2, 2.0 on wn3): leaves slice user/1/p/a with 1 other, serves tcp/80 to its slice"
        " (policy.yaml:15), serves udp/1-9 to its slice (policy.yaml:15), joins slice exposed-user/1/p/a of exposed"
        " ports only with 1 other (policy.yaml:14)",
        "+ 3.0 on wn1: serves tcp/22 to 10.0.0.0/8 (policy.yaml:15), serves tcp/22 to 10.1.0.0/16 (policy.yaml:15)",
        "3 jobs change, 0 do not",
    ]
    assert (
        "- 3.0 on wn1: serves tcp/22 to 10.0.0.0/8 no more, serves tcp/22 to 10.1.0.0/16 no more"
        in plan(new, old, there).lines()
    )


def test_classes_and_marks_of_jobs() -> None:
    old = policy(CLASSES, "classify: [{for: p, class: one}]")
    new = policy(
        "classes: [{name: two, dscp: 0}, {name: one, dscp: af31, guarantee: 50%, ceiling: 2 Gbit/s}]",
        "classify: [{service: web, class: two}]",
        "scitags: [{for: q, experiment: cms, activity: cache}]",
    )
    there = jobs({"User": "p"}, {"User": "q"})
    assert plan(old, new, there).lines() == [
        "~ class two is new: dscp 0"
        if False
        else "~ class one: dscp 34 becomes dscp 26 guarantee 50% ceiling 2 Gbit/s (policy.yaml:14)",
        "~ order of classes: two, one (policy.yaml:14)",
        "~ 1.0 on wn2: traffic with web: class one becomes two (policy.yaml:15)",
        "~ 2.0 on wn3: other traffic: class two becomes one (policy.yaml:14), scitag none becomes 3/3",
        "2 jobs change, 0 do not",
    ]
    assert "~ class one is gone" in plan(new, policy("classes: [{name: three, dscp: 1}, {name: two, dscp: 0}]",
        "classify: [{for: p, class: three}]"), there).lines()  # fmt: skip


def test_shares_of_all_users_are_told_in_one_line() -> None:
    old, new = policy("shares: [{for: p, share: 5 Mbit/s}]"), policy("shares: [{per: User, share: 30%}]")
    assert plan(old, new, jobs({"User": "p"}, {"User": "q"}, {"User": "r"})).lines() == [
        "~ 2 jobs (such as 2.0 on wn3, 3.0 on wn1): share: none becomes 30% per User",
        "~ 1.0 on wn2: share: 5 Mbit/s of group p becomes 30% per User",
        "3 jobs change, 0 do not",
    ]


def test_what_changes_for_everybody() -> None:
    old = policy("defaults: {egress: allow}")
    text = (
        SERVICES.replace("hosts: [10.0.0.1]", "hosts: [10.0.0.3, 10.0.0.4, 10.0.0.5]")
        .replace("hosts: [10.0.0.2], ports: [tcp/2], protected: true", "hosts: [10.0.0.2], ports: [tcp/2]")
        .replace("  web: {ports: [tcp/443]}", "  web: {hosts: [10.0.0.9], ports: [tcp/443], protected: true}")
    )
    new = policy_from_text(text + GROUPS + "defaults: {egress: audit, ingress: allow, between-jobs: deny}\n")
    assert plan(old, new, []).lines() == [
        "~ defaults.egress: allow becomes audit (policy.yaml:14)",
        "~ defaults.ingress: deny becomes allow (policy.yaml:14)",
        "~ service fs: hosts +10.0.0.3 +10.0.0.4 +10.0.0.5 and 1 more (policy.yaml:3)",
        "~ service lic is protected no more (policy.yaml:4)",
        "~ service web is protected now: closed to jobs without a grant (policy.yaml:5)",
        "0 jobs change, 0 do not",
    ]
    opened = policy_from_text(
        SERVICES.replace("ports: [tcp/1094], protected: true", "ports: [tcp/1094], protected: true, open-to: [campus],"
        " mode: audit") + GROUPS
    )  # fmt: skip
    assert plan(policy(), opened, []).lines()[0] == (
        "~ service fs: open-to +10.0.0.0/8 +10.1.0.0/16, its refusals are let on (mode: audit) (policy.yaml:3)"
    )


PARTS = (
    "grants: [{for: p, to: fs}]",
    "grants: [{for: p, to: fs, mode: audit}, {for: q, to: fs, during: [run]}]",
    "grants: [{for: q, to: lic, nodes: [wn1]}]",
    "seal: [sealed]",
    "seal: [q]",
    "slices: [{for: asks, name: LarkSlice}]",
    "slices: [{for: asks, name: LarkSlice, between: exposed}]",
    "slices: [{for: p, name: User}, {for: asks, name: LarkSlice}]",
    "expose: [{for: p, ports: [tcp/80], to: slice}]",
    "expose: [{for: asks, ports: [tcp/80], to: [campus], trust-user: true}]",
    "rates: [{rate: Mbps, unit: Mbit/s}]",
    "rates: [{rate: Mbps, unit: kbit/s, for: p}]",
    "scitags: [{for: q, experiment: cms, activity: cache}]",
    CLASSES + "classify: [{for: p, class: one}]",
    CLASSES + "classify: [{service: web, class: one}]",
    "node-modes: [{nodes: [wn2], mode: audit}]",
    "mode: audit",
)
parts = st.lists(st.sampled_from(PARTS), unique_by=lambda part: part.split(":")[0], max_size=6).map(tuple)
ads = st.fixed_dictionaries(
    {},
    optional={
        "User": st.sampled_from("pqr"),
        "LarkSlice": st.sampled_from(("a", "b")),
        "Mbps": st.sampled_from((1, 2)),
        "ClusterId": st.sampled_from((1, "x")),
        "JobUniverse": st.just(5),
    },
)


def meaning(found: Policy, job: Job) -> object:
    """All that a decision and the policy's modes mean for one job, places and rules apart."""
    try:
        decision = decide(found, job.node, job.ad, job.slot, job.phase)
    except Held:
        return "held"
    if decision.outcome.sealed:
        return "sealed"
    return (
        decision.outcome.services, decision.outcome.audited, decision.slice, decision.rate, decision.scitag,
        found.audits(job.node), exposed(found, decision), [of_class(found, decision, s) for s in (None, "web")],
    )  # fmt: skip


def exposed(found: Policy, decision: Decision) -> set[tuple[object, ...]]:
    rules = [r for r in found.exposes if r.group in decision.outcome.groups]
    open_ = decision.slice is None or not decision.slice.startswith("exposed-")
    return {(r.to_slice, r.ports, r.networks) for r in rules if not (r.to_slice and open_)}


def of_class(found: Policy, decision: Decision, service: str | None) -> str | None:
    fits = [
        r for r in found.classify
        if r.group in (None, *decision.outcome.groups) and r.service in (None, service)
    ]  # fmt: skip
    return fits[0].traffic_class if fits else found.classes[-1].name if found.classes else None


@settings(max_examples=examples(100), deadline=None)
@given(parts, parts, st.lists(ads, min_size=1, max_size=6))
def test_a_job_changes_exactly_if_a_policy_means_something_else_for_it(
    old_parts: tuple[str, ...], new_parts: tuple[str, ...], there: list[Mapping[str, object]]
) -> None:
    old, new = policy(*old_parts), policy(*new_parts)
    found = plan(old, new, jobs(*there))
    touched = {job.id for change in found.changes for job in change.jobs}
    for job in jobs(*there):
        before, after = meaning(old, job), meaning(new, job)
        # One that would be held is sealed already if it runs: to be sealed changes nothing for it.
        changes = before != after and (before, after) != ("held", "sealed")
        assert (job.id in touched) is changes, (before, after)
    assert sum(len(change.jobs) for change in found.changes) == found.changed == len(touched)
