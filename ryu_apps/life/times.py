"""The clocks of a controller and how long it waits for what. Deadlines are values of `clock`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

PORT_PATIENCE = 2.0
"""Seconds that a port which the agent has just plugged may take to show up at the controller."""
STORE_PATIENCE = 2.0
"""Seconds that the row of an ended attempt may take to go; then `tick` tries again."""
PEER_PATIENCE = 0.1
"""Seconds that the end of an attempt waits for bridges which only its slice mates are on; then quarantine goes on."""
STANDSTILL = 5.0
"""Seconds between two calls of `tick` beyond which the process has not run in between."""


@dataclass(slots=True)
class Times:
    """`deadline`: seconds that bridges and store have to confirm a request; `lease`: seconds of a node's lease."""

    deadline: float = 10.0
    lease: int = 60
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time

    def until(self, seconds: float | None = None) -> float:
        """So many seconds from now; without a number, the deadline of a request that comes now."""
        return self.clock() + (self.deadline if seconds is None else seconds)
