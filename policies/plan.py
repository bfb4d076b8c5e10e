"""What another policy would change: which jobs gain or lose reach to what. Pure, and sends nothing anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from policies.decide import Held, decide
from policies.model import Outcome, Place, Policy, node_matches
from policies.wire import Phase


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the store keeps it: enough to decide anew. `label`: what people call it (123.0)."""

    id: str
    label: str
    node: str
    ad: Mapping[str, object]
    slot: Mapping[str, object]
    phase: Phase


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of one job. `held`: why the new policy would hold it (a running job is then sealed)."""

    job: Job
    gains: tuple[tuple[str, Place | None], ...]
    loses: tuple[str, ...]
    sealed: bool | None
    held: str | None

    def line(self) -> str:
        if self.held is not None:
            return f"! {self.job.label} on {self.job.node}: would be held, and if it runs, sealed: {self.held}"
        parts = []
        if self.sealed is not None:
            parts.append("becomes sealed" if self.sealed else "is no longer sealed")
        parts += [f"gains {name}" + (f" ({place})" if place else "") for name, place in self.gains]
        parts += [f"loses {name}" for name in self.loses]
        mark = "-" if self.loses or self.sealed else "+"
        return f"{mark} {self.job.label} on {self.job.node}: {', '.join(parts)}"


@dataclass(frozen=True, slots=True)
class Plan:
    """The difference between two policies: rules for everybody, and each job that is touched."""

    everybody: tuple[str, ...]
    changes: tuple[Change, ...]
    untouched: int

    def lines(self) -> list[str]:
        told = [f"~ {text}" for text in self.everybody] + [change.line() for change in self.changes]
        return [*told, f"{len(self.changes)} jobs change, {self.untouched} do not"]


def plan(old: Policy, new: Policy, jobs: Sequence[Job]) -> Plan:
    """What `new` in place of `old` would change for these jobs."""
    changes = []
    for job in jobs:
        change = _change(old, new, job)
        if change is not None:
            changes.append(change)
    return Plan(tuple(_for_everybody(old, new)), tuple(changes), len(jobs) - len(changes))


def _change(old: Policy, new: Policy, job: Job) -> Change | None:
    try:
        before = decide(old, job.node, job.ad, job.slot, job.phase).outcome
    except Held:
        # It was let in by a policy that is gone already; it is sealed since.
        before = Outcome(sealed=True, services=frozenset())
    try:
        decision = decide(new, job.node, job.ad, job.slot, job.phase)
    except Held as held:
        return Change(job, (), tuple(sorted(before.services)), None, str(held))
    after = decision.outcome
    if after == before:
        return None
    given = {
        g.service: g.place
        for g in reversed(new.grants)
        if g.group in decision.groups and job.phase in g.during and node_matches(g.nodes, job.node)
    }
    gains = tuple((name, given.get(name)) for name in sorted(after.services - before.services))
    loses = tuple(sorted(before.services - after.services))
    return Change(job, gains, loses, after.sealed if after.sealed != before.sealed else None, None)


def _for_everybody(old: Policy, new: Policy) -> list[str]:
    told = []
    if old.mode is not new.mode:
        told.append(f"mode: {old.mode.value} becomes {new.mode.value} ({new.mode_place})")
    for name in ("egress", "ingress", "between_jobs"):
        before, after = getattr(old.defaults, name), getattr(new.defaults, name)
        if before is not after:
            key = name.replace("_", "-")
            told.append(f"defaults.{key}: {before.value} becomes {after.value} ({new.defaults.place})")
    for name in sorted({*old.services, *new.services}):
        was, will = old.services.get(name), new.services.get(name)
        closed_before, closed_after = bool(was and was.protected), bool(will and will.protected)
        if closed_before != closed_after:
            said = "is protected now: closed to jobs without a grant" if closed_after else "is protected no more"
            told.append(f"service {name} {said}" + (f" ({will.place})" if will else ""))
        elif (
            was
            and will
            and closed_after
            and (was.hosts, was.ports, was.open_to) != (will.hosts, will.ports, will.open_to)
        ):
            told.append(f"service {name} has other hosts, ports or open-to ({will.place})")
    return told
