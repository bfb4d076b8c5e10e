"""Work that costs the same for one as for many is done at once when it comes alone, and together when much of it comes.

Invariants: the first is never put off; nobody is put off for longer than the pace; nothing runs while nobody asks.
"""

from __future__ import annotations

import asyncio


class Pace:
    """At most one turn in so many seconds of the loop's clock."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last = float("-inf")

    def due(self) -> float:
        """Seconds until the next turn may be taken; 0: now."""
        return max(0.0, self._last + self._seconds - asyncio.get_running_loop().time())

    def taken(self) -> None:
        self._last = asyncio.get_running_loop().time()

    async def turn(self, *, full: bool = False) -> None:
        """Return when it is time, and count as taken. `full`: there is as much as can be done at once: it is time."""
        if not full and (due := self.due()):
            await asyncio.sleep(due)
        self.taken()
