"""At a start bridges come first: the API opens when they are in line, since what agents ask for waits for them anyway.

Agents that a killed controller left without an answer ask again all at once, and each of them would be served by the
one thread that the bridges need.

Invariants: no bridge is waited for without end, be it away or silent; one that is away and has no job, never.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Set

COMING = 1.5
"""Seconds after the listener has opened in which a switch that is there has come: it tries once a second."""
AT_MOST = 2.5
"""Seconds after the listener has opened in which the API opens, whatever the bridges do."""
LOOK = 0.01

Waiting = Callable[[], tuple[Set[str], Set[str]]]
"""Bridges that are connected and not in line, and bridges that are not connected."""


def bridges_first(
    waiting: Waiting,
    with_jobs: Collection[str],
    listening: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Return when the bridges are in line that have come, or that have jobs and may yet come.

    `listening`: when, by the clock, the listener for switches opened.
    """
    while (since := clock() - listening) < AT_MOST:
        behind, away = waiting()
        if not behind and (since >= COMING or away.isdisjoint(with_jobs)):
            return
        sleep(LOOK)
