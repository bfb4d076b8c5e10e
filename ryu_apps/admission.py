"""How many registrations are under way at a time: whoever cannot be answered in time is told at once to come again,
before any work goes into it. An agent holds on and asks again.

    comes ──▶ the controller's own part (its turn, the decision, the store) ──▶ its bridges confirm ──▶ answered
               └─ its queue: what waits ÷ what gets done a second                  └─ and its queue

A registration is taken up if what is before it will be done well within the time that it has (`SHARE` of it), at the
pace of the last seconds. What waits for bridges only does not count as the controller's own, so a slow or dead switch
turns nobody else away: those who need it wait in a queue of their own, and one that confirms nothing at all is no queue
but a fault, which the deadline tells of. Ends and heartbeats are never turned away: they make room, and keep what is
there.

Invariants: up to `FEW` are always taken up, whatever the pace; twice as many as otherwise for nodes that have less than
their part of them, here as in each bridge's queue: one node that asks for everything does not take the places of the
others. What is refused as wrong is no work that got done: it does not make the controller look faster. Nothing here
waits. Pure but for the clock that it is given.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ryu_apps.refusals import Refused, Slug

BEAT = 0.1
"""Seconds between two calls of `beat`."""
FEW = 16
"""Registrations that are always taken up."""
SHARE = 0.15
"""Part of a request's time after which it should be answered; twice that for those who have less than their part. The
rest is for a pace that falls meanwhile: to a third nobody notices."""
LONGEST = 30
"""Seconds to wait, at most, that anybody is told."""
LATELY = 3.0
"""Seconds of work over which the pace is measured."""
AT_FIRST = 100.0
"""A second: the controller's pace until there is one."""
_BRIDGE_AT_FIRST = 1000.0
_BACKLOG = FEW // 2
"""Only with so many under way does what gets done tell how fast it can be done."""
_LEAST = AT_FIRST / 4
"""A second: the pace does not fall below it while registrations are refused as wrong. They are over soon, and tell
nothing of how fast the others are."""
_AFTER_WORK = frozenset({Slug.NOT_REALISED, Slug.INTERNAL})
"""Refusals that say nothing against what was asked for."""
_FORGETS = 0.8
"""What is left of an earlier lateness after each beat: a tenth after a second."""


@dataclass(frozen=True, slots=True)
class Load:
    """What `/healthz` shows."""

    registrations: int
    """Under way now."""
    behind: float
    """Seconds by which a clock in the controller was last called late."""
    turned_away: int
    """Registrations since the start."""


class Queue:
    """How many are under way somewhere, and how fast they get done when there is enough to do."""

    __slots__ = ("_at", "_busy", "_done", "last", "of", "under_way")

    def __init__(self, now: float, at_first: float) -> None:
        self.under_way = 0
        self.of: Counter[str] = Counter()
        """How many of each node; none with 0."""
        self._at = self.last = now
        self._busy = 1.0
        self._done = at_first

    def begin(self, now: float, node: str) -> None:
        self._roll(now)
        self.under_way += 1
        self.of[node] += 1

    def end(self, now: float, node: str, *, done: bool = True, wrong: bool = False) -> None:
        """`done`: not given up; `wrong`: refused for what it is."""
        self._roll(now)
        if wrong:
            self.last = now
            self._done = max(self._done, _LEAST * self._busy)
        elif done:
            self.last = now
            # What little gets done while little comes says nothing of how fast it can be.
            self._done += self.under_way >= _BACKLOG
        self.under_way -= 1
        self.of[node] -= 1
        if not self.of[node]:
            del self.of[node]

    def longer_than(self, now: float, soon: float, node: str) -> float:
        """Seconds until what is under way will be done, if that is more than another of this node should wait, `soon`
        or, of one that has less than its part, twice that; else 0."""
        seconds = self.seconds(now)
        nodes = len(self.of) + (node not in self.of)
        part = self.of[node] * nodes >= self.under_way
        return seconds if seconds > (soon if part else 2 * soon) else 0.0

    def seconds(self, now: float) -> float:
        """Until what is under way will be done."""
        self._roll(now)
        return self.under_way * self._busy / max(self._done, 1e-6)

    def _roll(self, now: float) -> None:
        passed, self._at = now - self._at, now
        if self.under_way >= _BACKLOG and passed > 0:
            kept = math.exp(-passed / LATELY)
            self._done *= kept
            self._busy = self._busy * kept + LATELY * (1 - kept)


class Admission:
    """`place` around every registration, `at` around its wait for bridges; `beat` about every `BEAT` seconds.

    `deadline`: seconds that a registration has.
    """

    def __init__(self, clock: Callable[[], float], deadline: float = 10.0) -> None:
        self._clock = clock
        self._soon = SHARE * deadline
        self._beat = clock()
        self._behind = 0.0
        self._under_way = 0
        self._own = Queue(self._beat, AT_FIRST)
        self._bridges: dict[str, Queue] = {}
        self._turned_away = 0
        self._told = 0

    def beat(self) -> None:
        now = self._clock()
        self._behind = max(now - self._beat - BEAT, _FORGETS * self._behind)
        self._beat = now
        # A bridge that has nothing to do is forgotten: most have, at most times.
        for name in [
            name for name, queue in self._bridges.items() if not queue.under_way and now - queue.last > LATELY
        ]:
            del self._bridges[name]

    @property
    def load(self) -> Load:
        # A turn that goes on now is not over before its end, and `beat` knows only of those before.
        behind = max(self._behind, self._clock() - self._beat - BEAT)
        return Load(self._under_way, behind, self._turned_away)

    @contextlib.contextmanager
    def place(self, node: str) -> Iterator[Callable[[bool], None]]:
        """A registration of a node is taken up. What it gives is to be called when the controller's own part of it is
        done (True), or as soon as it waits for what its own agent is to do (False): that tells nothing of the pace, and
        is in nobody's way. Raises Refused."""
        now = self._clock()
        own = self._own
        if own.under_way >= FEW and (seconds := own.longer_than(now, self._soon, node)):
            raise self._refused(f"{own.under_way} registrations are before this one", seconds)
        self._under_way += 1
        own.begin(now, node)
        mine = True

        def over(done: bool, wrong: bool = False) -> None:
            nonlocal mine
            if mine:
                mine = False
                own.end(self._clock(), node, done=done, wrong=wrong)

        try:
            yield over
        except Refused as refused:
            over(True, wrong=refused.slug not in _AFTER_WORK)
            raise
        finally:
            self._under_way -= 1
            over(True)

    @contextlib.contextmanager
    def at(self, bridges: Iterable[str], node: str) -> Iterator[None]:
        """A registration of a node that these bridges must confirm. Raises Refused."""
        now = self._clock()
        queues = []
        for name in bridges:
            queue = self._bridges.get(name)
            if queue is None:
                queue = self._bridges[name] = Queue(now, _BRIDGE_AT_FIRST)
            elif (
                queue.under_way >= FEW
                and now - queue.last < LATELY
                and (seconds := queue.longer_than(now, self._soon, node))
            ):
                raise self._refused(f"{queue.under_way} registrations wait for bridge {name}", seconds)
            queues.append(queue)
        for queue in queues:
            queue.begin(now, node)
        done = False
        try:
            yield
            done = True
        finally:
            now = self._clock()
            for queue in queues:
                queue.end(now, node, done=done)

    def report(self) -> str:
        """Who was turned away since the last report, in words; empty if nobody."""
        count, self._told = self._turned_away - self._told, self._turned_away
        if not count:
            return ""
        load = self.load
        return (
            f"{count} registrations were told to try again: {load.registrations} are under way, "
            f"{1000 * load.behind:.0f} ms behind"
        )

    def _refused(self, why: str, seconds: float) -> Refused:
        self._turned_away += 1
        # Back a little before all of that is done, so that there always is something to do.
        after = min(LONGEST, max(1, math.floor(seconds)))
        return Refused(Slug.TOO_MANY, f"{why}, which will take {min(seconds, 999):.1f} s; try again", retry_after=after)
