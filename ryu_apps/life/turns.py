"""Requests for the same attempt take turns. Invariant: a turn is let go of by whoever has it, whatever happens."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ryu_apps.life.times import STORE_PATIENCE, Times
from ryu_apps.refusals import Refused, Slug


@dataclass(slots=True)
class _Turn:
    lock: threading.Lock = field(default_factory=threading.Lock)
    waiting: int = 0


class Turns:
    """One request at a time for each attempt id. Thread-safe."""

    def __init__(self, times: Times) -> None:
        self._times = times
        self._lock = threading.Lock()
        self._turns: dict[str, _Turn] = {}

    @contextlib.contextmanager
    def of(self, id: str, waits: Callable[[], None] | None = None) -> Iterator[None]:
        """Wait for the turn of an attempt id; `waits` is called if that is another's now. Raises Refused when another
        request takes too long."""
        with self._queued(id) as turn:
            mine = turn.lock.acquire(blocking=False)
            if not mine and waits is not None:
                waits()
            if not mine and not turn.lock.acquire(timeout=self._times.deadline + STORE_PATIENCE):
                raise Refused(
                    Slug.NOT_REALISED, f"another request for attempt {id} is under way; try again", {"bridges": []}
                )
            try:
                yield
            finally:
                turn.lock.release()

    def taken(self, id: str) -> bool:
        """Has somebody the turn, or waits for it?"""
        return id in self._turns

    @contextlib.contextmanager
    def free(self, id: str) -> Iterator[bool]:
        """Take the turn if it is nobody's; yields whether it was."""
        with self._queued(id) as turn:
            mine = turn.lock.acquire(blocking=False)
            try:
                yield mine
            finally:
                if mine:
                    turn.lock.release()

    @contextlib.contextmanager
    def _queued(self, id: str) -> Iterator[_Turn]:
        with self._lock:
            turn = self._turns.setdefault(id, _Turn())
            turn.waiting += 1
        try:
            yield turn
        finally:
            with self._lock:
                turn.waiting -= 1
                if not turn.waiting:
                    self._turns.pop(id, None)
