"""How fast a sum grows: bit/s between two readings of late."""

from __future__ import annotations

from dataclasses import dataclass

SHORTEST = 1.0
"""Seconds between two readings that a rate is worth anything of."""


@dataclass(slots=True)
class Pace:
    """Bytes of a sum at a moment, and bit/s until then."""

    at: float
    octets: int
    rate: int = 0

    def hear(self, now: float, octets: int) -> None:
        if now - self.at >= SHORTEST:
            self.rate = max(0, round((octets - self.octets) * 8 / (now - self.at)))
            self.at, self.octets = now, octets
