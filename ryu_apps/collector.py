"""Python's collector of reference cycles, kept from looking at everything again and again.

By itself it looks at every object there is whenever their number has grown by a quarter. With a thousand bridges that
is over a million objects and 0.4 s or more in which nobody is answered, again and again under load. Here, what was
there at the start or has survived one full look is set aside (`gc.freeze`) and not looked at until `EVERY` seconds
later.

Invariant: nothing is kept for ever: what became garbage while it was set aside goes at the next complete look. (What is
in no cycle goes at once, as always.)
"""

from __future__ import annotations

import gc

EVERY = 3600.0
"""Seconds between two looks at everything."""


class Collector:
    """`start` once; call `tick` now and then."""

    def __init__(self) -> None:
        self._complete_at: float | None = None

    def start(self, now: float) -> None:
        """From now on garbage is looked for, also if it was not before; not in what there is already."""
        self._complete_at = now + EVERY
        gc.callbacks.append(self._looked)
        gc.freeze()
        gc.enable()

    def tick(self, now: float) -> None:
        if self._complete_at is not None and now >= self._complete_at:
            self._complete_at = now + EVERY
            gc.unfreeze()
            gc.collect()

    def stop(self) -> None:
        if self._complete_at is not None:
            self._complete_at = None
            gc.callbacks.remove(self._looked)
            gc.unfreeze()

    @staticmethod
    def _looked(phase: str, info: dict[str, int]) -> None:
        if phase == "stop" and info["generation"] == 2:
            gc.freeze()
