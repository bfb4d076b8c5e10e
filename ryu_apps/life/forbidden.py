"""Packets that borders themselves refuse: from outside with an address of a job, or such as cannot be marked.

A border drops them before it looks for the job, so they are told of the border and of nobody's job. Invariant: a sum
goes back only with this process; it is made of whole answers, for several flows count for one reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ryu_apps.openflow.border import WHY_FORBIDDEN
from ryu_apps.openflow.flows import Counted
from ryu_apps.sums import Sums

Found = dict[str, list[int]]
"""Packets and bytes by reason, of an answer that may not be whole yet."""


class Forbidden:
    """Whoever calls has the lock of `Counting`."""

    def __init__(self) -> None:
        self._sums: dict[str, Sums] = {}
        self._names = tuple(dict.fromkeys(WHY_FORBIDDEN.values()))

    def add(self, entries: Iterable[Counted], found: Found) -> None:
        """A part of an answer."""
        for table, priority, _, packets, octets in entries:
            why = WHY_FORBIDDEN.get((table, priority))
            if why is not None:
                one = found.setdefault(why, [0, 0])
                one[0] += packets
                one[1] += octets

    def heard(self, bridge: str, found: Found) -> None:
        """A whole answer."""
        sums = self._sums.setdefault(bridge, Sums(len(self._names), 2))
        for at, why in enumerate(self._names):
            sums.hear(at, found.get(why, (0, 0)))

    def restarted(self, bridge: str) -> None:
        if bridge in self._sums:
            self._sums[bridge].restarted()

    def of(self, bridge: str) -> Mapping[str, tuple[int, ...]] | None:
        """Packets and bytes by reason; None: not asked yet."""
        sums = self._sums.get(bridge)
        return None if sums is None else {why: sums.of(at) for at, why in enumerate(self._names)}
