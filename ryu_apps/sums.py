"""Counters that never go back, made of counters that do: a switch that restarts and a queue that is made anew count
from 0.

Pure. A `Sum` belongs to one source: some counters that begin anew together (packets and bytes of a flow).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

MOST = 2**64 - 1


class Sums:
    """Several sources side by side, each with the same number of counters; compact, for there are thousands."""

    __slots__ = ("_before", "_last", "_seen", "_width", "resets")

    def __init__(self, sources: int, width: int, *, from_zero: bool = True) -> None:
        """`from_zero`: what a source has counted when it is first heard is growth; else it has been told before."""
        self._width = width
        self._last = array("Q", bytes(8 * sources * width))
        self._before: array[int] | None = None
        self.resets = 0
        """How often something went back."""
        self._seen = (1 << sources) - 1 if from_zero else 0

    def hear(self, source: int, now: Sequence[int]) -> tuple[int, ...]:
        """What a source shows now; returns by how much it has grown since it was heard last."""
        at, width = source * self._width, self._width
        last = self._last[at : at + width]
        anew = False
        for old, new in zip(last, now, strict=True):
            if new < old:
                anew = True
        if anew:
            self._keep(at, at + width)
            last = array("Q", bytes(8 * width))
        self._last[at : at + width] = array("Q", now)
        if not self._seen >> source & 1:
            self._seen |= 1 << source
            return (0,) * width
        return tuple(new - old for old, new in zip(last, now, strict=True))

    def same(self, source: int, packets: int, octets: int) -> bool:
        """Of two counters: does a source show what it showed when it was heard last? Most do, and this is quick."""
        at = 2 * source
        return self._last[at] == packets and self._last[at + 1] == octets and self._seen >> source & 1 == 1

    def restarted(self, source: int | None = None) -> None:
        """All sources, or this one, count from 0 again, whatever they show next."""
        if source is None:
            self._keep(0, len(self._last))
        else:
            self._keep(source * self._width, (source + 1) * self._width)

    def unheard(self) -> None:
        """Others may have told what the sources have counted since they were heard here: that is no growth."""
        self._seen = 0

    def of(self, source: int) -> tuple[int, ...]:
        """The sums of a source."""
        span = range(source * self._width, (source + 1) * self._width)
        if self._before is None:
            return tuple(self._last[at] for at in span)
        return tuple(self._last[at] + self._before[at] for at in span)

    def stored(self) -> list[int]:
        """What `restored` makes the same again of."""
        return [*(self._before or array("Q", bytes(8 * len(self._last)))), *self._last]

    @classmethod
    def restored(cls, sources: int, width: int, values: Sequence[int]) -> Sums:
        """As it was when it was stored. What its sources have counted since is no growth that this process has seen.

        Raises ValueError for what `stored` has not made.
        """
        made = cls(sources, width, from_zero=False)
        count = sources * width
        if len(values) != 2 * count or not all(type(one) is int and 0 <= one <= MOST for one in values):
            raise ValueError(f"{2 * count} counters are needed")
        if any(values[:count]):
            made._before = array("Q", values[:count])
        made._last = array("Q", values[count:])
        return made

    def _keep(self, begin: int, end: int) -> None:
        if not any(self._last[begin:end]):
            return
        self.resets += 1
        if self._before is None:
            self._before = array("Q", bytes(8 * len(self._last)))
        for at in range(begin, end):
            self._before[at] = min(MOST, self._before[at] + self._last[at])
            self._last[at] = 0
