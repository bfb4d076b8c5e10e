"""The queue between the store, which sees what others change, and the one who follows it.

Invariants: nothing is lost and nothing comes twice; whoever puts something in never waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from ryu_apps.store.store import Event, Snapshot, StoreError


class ChangeFeed:
    """Implements `store.Feed`."""

    def __init__(self, snapshot: Snapshot, forget: Callable[[ChangeFeed], None]) -> None:
        self.snapshot = snapshot
        self._forget = forget
        self._events: list[Event] = []
        self._closed = ""
        self._news = threading.Condition(threading.Lock())

    def take(self, seconds: float) -> list[Event]:
        until = time.monotonic() + seconds
        with self._news:
            while not self._events:
                if self._closed:
                    raise StoreError(self._closed)
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._news.wait(left)
            found, self._events = self._events, []
            return found

    def close(self) -> None:
        self._forget(self)
        self.end("the feed is closed")

    # --- the store's side

    def put(self, events: Sequence[Event]) -> None:
        if events:
            with self._news:
                self._events.extend(events)
                self._news.notify_all()

    def end(self, why: str) -> None:
        with self._news:
            self._closed = why
            self._news.notify_all()
