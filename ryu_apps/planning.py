"""`lark-controller plan`: what another policy would change for the attempts that are stored. Pure; nothing is written.

    stored rows ──▶ jobs ──▶ policies.plan (both policies) ──▶ lines, or JSON
             └────▶ the site's own rules (checks) ──▶ attempts that a start with this site would tear down

Invariant: an attempt is judged by what its row says of it, its ad and phase, so as the controller would on SIGHUP.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from policies.model import Policy, Site, World
from policies.plan import Change, Job, Plan, plan
from ryu_apps.life.checks import check
from ryu_apps.refusals import Refused
from ryu_apps.store.store import AttemptRow, Snapshot


@dataclass(frozen=True, slots=True)
class Planned:
    """`unfit`: attempts that a start with the new site would tear down, each with the reason; they are in no other
    line. `decided_otherwise`: attempts whose rows are by another policy than the old one."""

    old: Policy
    new: Policy
    plan: Plan
    unfit: tuple[tuple[Job, str], ...]
    decided_otherwise: int

    def lines(self) -> Iterator[str]:
        for job, why in self.unfit:
            yield _printable(f"! {job.label} on {job.node}: would be torn down at the next start: {why}")
        yield from map(_printable, self.plan.lines())

    def as_json(self) -> dict[str, object]:
        return {
            "old": self.old.digest,
            "new": self.new.digest,
            "everybody": list(self.plan.everybody),
            "unfit": [{"attempt": job.id, "job": job.label, "node": job.node, "why": why} for job, why in self.unfit],
            "changes": [_change(change) for change in self.plan.changes],
            "changed": self.plan.changed,
            "untouched": self.plan.untouched,
            "decided_otherwise": self.decided_otherwise,
        }


def planned(stored: Snapshot, old: Policy, new: Policy, site: Site) -> Planned:
    """`site`: that of the next start."""
    world = World(site=site, policy=new)
    nodes = {node.name: node for node in stored.nodes}
    jobs: list[Job] = []
    unfit: list[tuple[Job, str]] = []
    rows = sorted((row for row in stored.attempts if not row.leaving), key=lambda row: row.number)
    for row in rows:
        try:
            check(world, nodes, row.id, row.spec)
        except Refused as refused:
            unfit.append((_job(row), refused.detail))
        else:
            jobs.append(_job(row))
    otherwise = sum(row.digest != old.digest for row in rows)
    return Planned(old, new, plan(old, new, jobs, site), tuple(unfit), otherwise)


def _job(row: AttemptRow) -> Job:
    spec = row.spec
    return Job(row.id, spec.job or row.id, spec.node, spec.ad, spec.slot, spec.phase)


def _change(change: Change) -> dict[str, object]:
    return {
        "attempts": [job.id for job in change.jobs],
        "jobs": [job.label for job in change.jobs],
        "held": change.held,
        "closes": list(change.closes),
        "opens": list(change.opens),
        "otherwise": list(change.otherwise),
    }


def _printable(text: str) -> str:
    """Names of slices are the owners' words: no control characters to a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
