"""A stored attempt under a policy: the decision at registration, and anew when another policy is in force."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace

from policies import decide as deciding
from policies.model import Decision, Outcome, Policy, World
from policies.wire import AttemptSpec, Phase
from ryu_apps.life.checks import attempt_of
from ryu_apps.openflow import compiler
from ryu_apps.refusals import Refused, Slug
from ryu_apps.shared import outdated, outdating
from ryu_apps.store.store import AttemptRow

LOG = logging.getLogger("lark.controller")
SLICES_KEPT = 4096
_of_slices: dict[Decision, Decision] = {}
"""The jobs of a slice have one decision, with all that is said in it, and not each its own."""


def decide(policy: Policy, spec: AttemptSpec, phase: Phase) -> Decision:
    """Raises Refused when the policy holds the job."""
    try:
        found = deciding.decide(policy, spec.node, spec.ad, spec.slot, phase)
    except deciding.Held as held:
        where = f"{held.place}: " if held.place is not None else ""
        raise Refused(
            Slug.HELD, f"{where}{held.reason}", {"subcode": held.subcode, "reason": f"{where}{held.reason}"}
        ) from held
    if found.slice is None:
        return found
    if len(_of_slices) >= SLICES_KEPT:
        _of_slices.clear()
    return _of_slices.setdefault(found, found)


def decide_anew(row: AttemptRow, policy: Policy) -> AttemptRow:
    """The row under another policy. A job that this policy would hold is sealed: it runs already, so cut it off."""
    try:
        decision = decide(policy, row.spec, row.spec.phase)
    except Refused as held:
        LOG.error(
            "attempt=%s job=%s would be held by the policy in force: sealed. %s", row.id, row.spec.job, held.detail
        )
        text = f"sealed, because this policy would hold the job: {held.detail}"
        decision = Decision(Outcome(sealed=True, services=frozenset()), (), ((policy.mode_place, text),))
    return replace(row, decision=decision, digest=policy.digest)


Holders = Mapping[str, set[str]]
"""Slices, and the bridges that have a job of each and so know all its members."""


def holders(rows: Iterable[AttemptRow]) -> Holders:
    """By the decisions in these rows."""
    found: dict[str, set[str]] = {}
    for row in rows:
        if row.decision.slice is not None and not row.decision.outcome.sealed:
            found.setdefault(row.decision.slice, set()).add(row.spec.port.bridge)
    return found


def outdated_by(then: World, old: AttemptRow, now: World, new: AttemptRow, held: Holders | None = None) -> AttemptRow:
    """The new row, naming the bridges that know the attempt by the old one and that it does not need any more.

    `held`: slices as they were; None: they are those of now.
    """
    knew = {*compiler.bridges_of(then, attempt_of(old)), *outdated(old)}
    left = old.decision.slice
    if held is not None and left is not None and (left != new.decision.slice or new.decision.outcome.sealed):
        knew |= held.get(left, set())
    return outdating(new, knew.difference(compiler.bridges_of(now, attempt_of(new))))
