"""Numbers that are never used again, taken from blocks reserved durably beforehand.

Invariant: a number is handed out only when its whole block is already reserved on disk, so that the write of the row
that uses it and the programming of the switches may run side by side. As long as there are some, nobody but the one who
reserves more waits for the store: else every few seconds all who come would stop for it together.
"""

from __future__ import annotations

import threading

from ryu_apps.store.store import Kind, Store

BLOCK = 1000
LOW_WATER = 500
"""With fewer left, the next who comes reserves more."""
LAST = 200
"""With fewer left, everybody waits for that."""


class NumberBlock:
    """Hands out numbers of one kind. Thread-safe."""

    def __init__(self, store: Store, kind: Kind, block: int = BLOCK) -> None:
        self._store = store
        self._kind = kind
        self._block = block
        self._ready: list[range] = []
        self._left = 0
        self._lock = threading.Lock()
        self._refill = threading.Lock()

    def top_up(self) -> None:
        """Reserve ahead when few are left. May block on the store; call it where blocking is harmless."""
        if self._left >= min(LOW_WATER, self._block):
            return
        if not self._refill.acquire(blocking=self._left < min(LAST, self._block)):
            return  # somebody else does already, and there are enough till then
        try:
            if self._left < min(LOW_WATER, self._block):
                first = self._store.reserve(self._kind, self._block)
                with self._lock:
                    self._ready.append(range(first, first + self._block))
                    self._left += self._block
        finally:
            self._refill.release()

    def take(self) -> int:
        """A fresh number. Blocks on the store only if nobody topped up. Raises StoreError."""
        while True:
            with self._lock:
                if self._ready:
                    block = self._ready[0]
                    number = block[0]
                    self._left -= 1
                    if len(block) > 1:
                        self._ready[0] = block[1:]
                    else:
                        self._ready.pop(0)
                    return number
            self.top_up()
