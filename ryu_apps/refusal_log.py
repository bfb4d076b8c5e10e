"""What was refused to a job, or would have been without audit mode, as lines of the log.

The switches count; the counts are asked for before an attempt's flows go, and nobody waits for the answer: `report`,
called about once a second, takes what has come. Invariants: at most BURST lines at once and one a second after that;
what is beyond is summed up in one line a minute, so that nothing goes unsaid and no job can fill the log. At most
MAX_OPEN answers are waited for; who comes beyond that is counted in the same line.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from policies.model import Attempt, Policy
from ryu_apps.fabric import FabricError, Question
from ryu_apps.openflow.cookies import OBJECT_MASK
from ryu_apps.openflow.counters import refusals, seen
from ryu_apps.openflow.flows import Counted

LOG = logging.getLogger("lark.refusals")
BURST = 60
"""Lines that may come at once; afterwards one a second."""
SUMMARY_EVERY = 60.0
"""Seconds between two lines that sum up what was not told one by one."""
MAX_OPEN = 1000
"""Attempts whose counts are waited for at a time."""
PATIENCE = 10.0
"""Seconds that a switch has to answer."""
LastSeen = Callable[[Attempt, Sequence[Counted]], None]
Refusals = Mapping[str, tuple[int, int]]
"""Packets and bytes by reason (`policies.model.Reason.slug`, or `policy` for those that are counted together)."""


def words(policy: Policy, node: str) -> str:
    """What became of refused packets on a node, in the words of a log line."""
    if policy.audits(node):
        return "audit mode let on, but for what it never opens"
    rules = any(service.audit for service in policy.services.values()) or any(grant.audit for grant in policy.grants)
    return "refused, or let on by a rule in audit mode" if rules or policy.defaults.audited else "refused"


def told_apart(old: Policy, new: Policy, nodes: Iterable[str]) -> list[str]:
    """The nodes on which another policy changes what audit mode lets on: counts before and after differ in kind."""
    if _audited_rules(old) != _audited_rules(new):
        return sorted(nodes)
    return sorted(node for node in nodes if old.audits(node) != new.audits(node))


def _audited_rules(policy: Policy) -> object:
    services = {name for name, service in policy.services.items() if service.audit}
    grants = {(grant.group, grant.service, grant.during, grant.nodes) for grant in policy.grants if grant.audit}
    return services, grants, policy.defaults.audited


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt whose counts are to be told."""

    attempt: Attempt
    job: str | None
    words: str


@dataclass(frozen=True, slots=True)
class _Open:
    """A question put to a switch. `about`: one that ended, or all attempts of a node whose mode changes."""

    node: str
    about: Sequence[Ended]
    from_now: str | None
    """In words, what becomes of refused packets from now on; None: the attempt has ended."""
    question: Question
    until: float


class RefusalLog:
    """Questions that are open, and how much was said lately. One caller of `report`; the others may come meanwhile."""

    def __init__(self, clock: Callable[[], float], last: LastSeen | None = None) -> None:
        """`last`: told what the flows of each attempt that ended have counted."""
        self._clock = clock
        self._last = last
        self._open: list[_Open] = []
        self._before: dict[int, Refusals] = {}
        self._tokens = float(BURST)
        self._filled = self._summed = clock()
        self._untold: Counter[str] = Counter()
        self._untold_attempts = 0
        self._unasked = 0

    @property
    def full(self) -> bool:
        """Whether another answer cannot be waited for."""
        return len(self._open) >= MAX_OPEN

    def ended(self, about: Ended, question: Question) -> None:
        """Its flows are about to go; the switch was asked before."""
        self._open.append(_Open(about.attempt.node, [about], None, question, self._clock() + PATIENCE))

    def uncounted(self, number: int) -> None:
        """The attempt with this number has ended, and nobody could ask for its counts."""
        self._unasked += 1
        self._before.pop(number, None)

    def mode_changes(self, node: str, from_now: str, about: Sequence[Ended], question: Question) -> None:
        """All attempts of a node: what was counted until now was treated otherwise than what will be (`words`)."""
        self._open.append(_Open(node, about, from_now, question, self._clock() + PATIENCE))

    def report(self) -> None:
        """Say what has come; never waits."""
        now = self._clock()
        self._tokens = min(float(BURST), self._tokens + max(0.0, now - self._filled))
        self._filled = now
        opened, self._open = self._open, []
        for one in opened:
            try:
                counted = one.question.result()
            except FabricError:
                self._give_up(one)
                continue
            if counted is not None:
                self._tell(one, counted)
            elif now < one.until:
                self._open.append(one)
            else:
                self._give_up(one)
        if now - self._summed >= SUMMARY_EVERY:
            self._summed = now
            self._sum_up()

    def _give_up(self, one: _Open) -> None:
        if one.from_now is None:
            for about in one.about:
                self.uncounted(about.attempt.number)
        else:
            LOG.warning("node=%s: what was refused until now is not told: its bridge did not answer", one.node)

    def _tell(self, one: _Open, counted: Sequence[Counted]) -> None:
        by_attempt: dict[int, list[Counted]] = {}
        for entry in counted:
            by_attempt.setdefault(entry[2] & OBJECT_MASK, []).append(entry)
        refused: list[tuple[Ended, Refusals]] = []
        for about in one.about:
            number = about.attempt.number
            if one.from_now is None and self._last is not None:
                self._last(about.attempt, by_attempt.get(number, []))
            now = refusals(about.attempt.outcome.sealed, seen(by_attempt.get(number, [])))
            since = _less(now, self._before.pop(number, {}))
            if one.from_now is not None and now:
                self._before[number] = now
            if since:
                refused.append((about, since))
        if not refused:
            return
        if one.from_now is None:
            about, since = refused[0]
            self._say(
                since, 1, "attempt=%s job=%s node=%s ended; %s: %s",
                about.attempt.id, about.job, one.node, about.words, _listed(since),
            )  # fmt: skip
            return
        packets: Counter[str] = Counter()
        octets: Counter[str] = Counter()
        for _, since in refused:
            packets.update({reason: seen for reason, (seen, _) in since.items()})
            octets.update({reason: seen for reason, (_, seen) in since.items()})
        together = {reason: (packets[reason], octets[reason]) for reason in packets}
        jobs = ", ".join(about.job or about.attempt.id for about, _ in refused[:5])
        more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
        self._say(
            together, len(refused), "node=%s the policy changes; until now %s: %s; jobs %s%s; from now on %s",
            one.node, refused[0][0].words, _listed(together), jobs, more, one.from_now,
        )  # fmt: skip

    def _say(self, since: Refusals, attempts: int, text: str, *values: object) -> None:
        if self._tokens >= 1:
            self._tokens -= 1
            LOG.info(text, *values)
            return
        self._untold_attempts += attempts
        self._untold.update({reason: packets for reason, (packets, _) in since.items()})

    def _sum_up(self) -> None:
        if self._untold_attempts:
            listed = ", ".join(f"{reason} {packets} packets" for reason, packets in sorted(self._untold.items()))
            LOG.info("%d more attempts with refusals, not told one by one: %s", self._untold_attempts, listed)
        if self._unasked:
            LOG.info("%d attempts ended without their last counts: a bridge could not be asked in time", self._unasked)
        self._untold_attempts = self._unasked = 0
        self._untold.clear()


def _less(now: Refusals, before: Refusals) -> Refusals:
    """What was counted since. A switch that restarted counts from 0: then all of it is new."""
    found = {}
    for reason, (packets, octets) in now.items():
        had = before.get(reason, (0, 0))
        if packets < had[0]:
            had = (0, 0)
        if packets > had[0]:
            found[reason] = (packets - had[0], octets - had[1])
    return found


def _listed(refusals: Refusals) -> str:
    return ", ".join(
        f"{reason} {packets} packet{'' if packets == 1 else 's'} ({octets} B)"
        for reason, (packets, octets) in sorted(refusals.items())
    )
