"""How many registrations the controller takes up at a time: what it cannot carry it says at once, not after a time-out.

    PUT attempt ──▶ place ──▶ taken up
                      └──▶ 429 `too-many`, Retry-After: the agent holds on and asks again

The controller does everything in one thread, by turns. When more comes than it can do, its turns grow, and with them
the time until anything is answered: so how late a clock in it is called is its measured service time. A slow or dead
switch does not make it late, and turns nobody away. Ends and heartbeats are never turned away: they make room, and keep
what is there.

Invariants: up to `FEW` registrations are always under way at a time, whatever the clock says, and as many again for
nodes that have less than their part of them: one node that asks for everything, or whose jobs all wait for a dead gate,
does not take the places of the others. Nothing here waits. Pure but for the clock that it is given.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ryu_apps.refusals import Refused, Slug

BEAT = 0.1
"""Seconds between two calls of `beat`."""
BEHIND = 0.25
"""Seconds by which `beat` comes late when the controller has more than it can do."""
FEW = 64
"""Registrations that do not make it late."""
LONGEST = 30
"""Seconds to wait, at most, that anybody is told."""
LATELY = 3.0
"""Seconds over which is counted how many registrations get done."""
_FORGETS = 0.8
"""What is left of an earlier lateness after each beat: a tenth after a second."""


@dataclass(frozen=True, slots=True)
class Load:
    """What `/healthz` shows."""

    registrations: int
    """Under way now."""
    behind: float
    """Seconds."""
    turned_away: int
    """Registrations since the start."""


class Admission:
    """`beat` about every `BEAT` seconds; `place` around every registration."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._beat = clock()
        self._behind = 0.0
        self._under_way = 0
        self._of: Counter[str] = Counter()
        """The same by node; none with 0."""
        self._done = 0
        self._rate = FEW / LATELY
        self._turned_away = 0
        self._told = 0

    def beat(self) -> None:
        now = self._clock()
        took = max(BEAT, now - self._beat)
        self._behind = max(took - BEAT, _FORGETS * self._behind)
        # What little it does while little comes says nothing of how fast it can be.
        if self._under_way >= FEW:
            self._rate += (self._done / took - self._rate) * min(1.0, took / LATELY)
        else:
            self._rate = max(self._rate, self._done / took)
        self._beat, self._done = now, 0

    @property
    def load(self) -> Load:
        # A turn that goes on now is not over before its end, and `beat` knows only of those before.
        behind = max(self._behind, self._clock() - self._beat - BEAT)
        return Load(self._under_way, behind, self._turned_away)

    @contextlib.contextmanager
    def place(self, node: str) -> Iterator[None]:
        """A registration of a node is taken up. Raises Refused."""
        nodes = len(self._of) + (node not in self._of)
        if self._under_way >= (FEW if self._of[node] * nodes >= FEW else 2 * FEW):
            behind = self.load.behind
            if behind > BEHIND:
                self._turned_away += 1
                raise Refused(
                    Slug.TOO_MANY,
                    f"{self._under_way} registrations are under way and the controller is {1000 * behind:.0f} ms "
                    "behind; try again",
                    retry_after=self._until_done(),
                )
        self._under_way += 1
        self._of[node] += 1
        try:
            yield
        finally:
            self._under_way -= 1
            self._of[node] -= 1
            if not self._of[node]:
                del self._of[node]
            self._done += 1

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

    def _until_done(self) -> int:
        """Seconds until what is under way is done, as fast as it has gone when there was much to do."""
        return min(LONGEST, math.ceil(self._under_way / max(self._rate, 1.0)))
