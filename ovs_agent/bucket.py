"""A token bucket: how often something that a job can provoke may cost the node a log line, or work.

Invariant: it only counts; what is left out is the caller's to say, so that a flood leaves a number behind, not a gap.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Bucket:
    """`burst` at once, `per_second` in the long run. `now`: any clock that only goes forward, in seconds."""

    burst: float
    per_second: float
    now: float
    tokens: float = field(init=False)
    dropped: int = 0
    """Refusals since the caller last set this to 0."""

    def __post_init__(self) -> None:
        self.tokens = self.burst

    def take(self, now: float) -> bool:
        self.tokens = min(self.burst, self.tokens + (now - self.now) * self.per_second)
        self.now = now
        if self.tokens < 1:
            self.dropped += 1
            return False
        self.tokens -= 1
        return True
