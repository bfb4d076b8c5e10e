"""Whose connections are forgotten when another policy is in force: of jobs that may do less, and of no others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policies.language import policy_from_text
from policies.model import Attempt, Outcome, World
from policies.wire import AttemptSpec
from ryu_apps.life.checks import attempt_of
from ryu_apps.life.deciding import decide
from ryu_apps.openflow.tracked import outlived
from ryu_apps.store.store import AttemptRow
from tests.unit.controller.rig import POLICY as SMALL
from tests.unit.controller.rig import aid, spec

POLICY = SMALL.replace(
    "grants:\n",
    "  serves: 'LarkServes =?= true'\ngrants:\n  - {for: physics, to: clock, trust-user: true}\n",
).replace(
    "attributes:\n",
    "  clock: {hosts: [10.20.0.9], ports: [udp/123], protected: true}\n"
    "  web: {hosts: [10.20.0.8], ports: [tcp/80]}\n"
    "networks: {campus: [10.9.0.0/16], staff: [10.9.1.0/24]}\n"
    "attributes:\n  LarkServes: {type: boolean, default: false}\n",
)
SERVES = "expose: [{for: serves, ports: [tcp/8080], to: [campus, staff], trust-user: true}]\n"
WITHDRAWN = "{for: matlab, to: files, trust-user: true, "
CLASS = (
    "classes: [{name: a, dscp: af41}, {name: b, dscp: cs1}]\nclassify: [{for: matlab, class: a, trust-user: true}]\n"
)
CLOSED = POLICY.replace("egress: allow", "egress: deny")


def job(text: str, **ad: object) -> tuple[World, Attempt]:
    policy = policy_from_text(text)
    found: AttemptSpec = spec(2, **(ad or {"LarkGroup": "physics", "LarkServes": True}))
    decision = decide(policy, found, found.phase)
    row = AttemptRow(aid(), 1, 1, found, decision, policy.digest, 0.0)
    return World(site=None, policy=policy), attempt_of(row)  # type: ignore[arg-type]


def outlives(before: str, after: str) -> bool:
    return outlived(*job(before), *job(after))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(POLICY, POLICY.replace("  - {for: physics, to: clock, trust-user: true}\n", ""), id="udp-grant"),
        pytest.param(POLICY, CLOSED, id="egress"),
        pytest.param(POLICY.replace("egress: allow", "egress: audit"), CLOSED, id="audited-egress"),
        pytest.param(POLICY.replace("mode: enforce", "mode: audit"), CLOSED, id="mode"),
        pytest.param(POLICY, POLICY.replace("ports: [tcp/80]", "ports: [tcp/80], protected: true"), id="protected"),
        pytest.param(CLOSED + SERVES, CLOSED + SERVES.replace("campus, ", ""), id="networks"),
        pytest.param(CLOSED + SERVES, CLOSED + SERVES.replace("8080", "8081"), id="ports"),
        pytest.param(CLOSED.replace("ingress: deny", "ingress: allow") + SERVES, CLOSED + SERVES, id="ingress"),
        pytest.param(POLICY, POLICY.replace("seal: [sealed]", "seal: [sealed, physics]"), id="seal"),
    ],
)
def test_who_may_do_less_is_not_answered_any_more_and_who_may_do_more_keeps_all(before: str, after: str) -> None:
    assert outlives(before, after)
    assert not outlives(after, before) or "8081" in after, "the other way round nothing is taken away"
    assert not outlives(after, after)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # Answers over TCP are known by their ports and judged one by one.
        pytest.param(POLICY, POLICY.replace("{for: physics, to: files, ", WITHDRAWN), id="tcp-grant"),
        # Where a job may call anybody, whom it serves is judged by what the caller sends.
        pytest.param(POLICY + SERVES, POLICY, id="expose-where-egress-is-open"),
        pytest.param(POLICY + CLASS, POLICY + CLASS.replace("matlab", "sealed"), id="class"),
    ],
)
def test_a_change_that_takes_nothing_remembered_away_disturbs_no_connection(before: str, after: str) -> None:
    assert before != after
    assert not outlives(before, after)


def test_a_later_phase_that_ends_a_grant_ends_what_it_remembers() -> None:
    world, old = job(POLICY)
    less = replace(old, outcome=replace(old.outcome, services=old.outcome.services - {"clock"}))
    assert outlived(world, old, world, less)
    assert not outlived(world, less, world, old)
    sealed = replace(old, outcome=Outcome(sealed=True, services=frozenset()))
    assert not outlived(world, sealed, world, old), "it had no network"
