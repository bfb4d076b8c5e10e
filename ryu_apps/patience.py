"""Waiting until a deadline, in a process that may stand still.

Where everything happens by turns, a timer that fires late shows that nobody had a turn: the machine was suspended,
other guests had its processors, one turn took seconds. What switches and store have said meanwhile is here, unread, and
the timers come before it. To give up then would blame them for it, and take back hundreds of jobs' starts at once.

Invariant: who waits is never kept longer than the deadline, the standstill at it, and `MOST` together.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

LATE = 0.5
"""Seconds by which a timer may be late without any standstill: turns are long when there is much to do."""
MOST = 5.0
"""Seconds that are waited after a standstill, at most; as long as it went on beyond the deadline, otherwise."""


def wait_for(event: Any, deadline: float, clock: Callable[[], float] = time.monotonic) -> bool:
    """Wait until the event is set, or the deadline (of `clock`) has passed; tells whether it is set."""
    now = clock()
    if event.wait(max(0.0, deadline - now)):
        return True
    late = clock() - max(deadline, now)
    return late > LATE and bool(event.wait(min(late, MOST)))
