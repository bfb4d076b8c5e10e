"""A store that keeps nothing: the documented fake for tests of the controller and of whoever builds on it.

`MemoryStore` keeps rows in dictionaries. Tests can make it fail (`fail`), hold writes back (`hold`/`release`), count
(`writes`), and hand the same object to a second controller to play a restart: held writes are then lost, as in a crash.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from ryu_apps.store.store import (
    AttemptRow,
    Change,
    DropAttempt,
    Kind,
    NodeRow,
    Pending,
    PutAttempt,
    PutNode,
    PutNumber,
    Snapshot,
    StoreError,
)


class _MemoryPending:
    def __init__(self) -> None:
        self.done = threading.Event()
        self.error: str | None = None

    def wait(self, deadline: float) -> None:
        if not self.done.wait(max(0.0, deadline - time.monotonic())):
            raise StoreError("the store did not confirm in time")
        if self.error is not None:
            raise StoreError(self.error)


class MemoryStore:
    """Implements `store.Store`. `fail`: text of the error that every following write gets, or None."""

    def __init__(self) -> None:
        self.attempts: dict[str, AttemptRow] = {}
        self.nodes: dict[str, NodeRow] = {}
        self.numbers: dict[tuple[Kind, str], int] = {}
        self.next: dict[Kind, int] = {}
        self.fail: str | None = None
        self.writes = 0
        self.reservations = 0
        self._held: list[tuple[Sequence[Change], _MemoryPending]] | None = None

    def hold(self) -> None:
        """From now on writes are accepted but neither applied nor confirmed."""
        self._held = []

    def release(self) -> None:
        """Apply and confirm what was held."""
        held, self._held = self._held or [], None
        for changes, pending in held:
            self._apply(changes)
            pending.done.set()

    def crash(self) -> None:
        """Forget what was held, as a crash before the write would."""
        self._held = None

    def load(self) -> Snapshot:
        return Snapshot(tuple(self.attempts.values()), tuple(self.nodes.values()), dict(self.numbers))

    def reserve(self, kind: Kind, count: int) -> int:
        if self.fail is not None:
            raise StoreError(self.fail)
        first = self.next.get(kind, 1)
        self.next[kind] = first + count
        self.reservations += 1
        return first

    def write(self, changes: Sequence[Change]) -> Pending:
        pending = _MemoryPending()
        if self.fail is not None:
            pending.error = self.fail
            pending.done.set()
        elif self._held is not None:
            self._held.append((changes, pending))
        else:
            self._apply(changes)
            pending.done.set()
        return pending

    def close(self) -> None:
        pass

    def _apply(self, changes: Sequence[Change]) -> None:
        self.writes += 1
        for change in changes:
            match change:
                case PutAttempt(row):
                    self.attempts[row.id] = row
                case DropAttempt(id):
                    self.attempts.pop(id, None)
                case PutNode(row):
                    self.nodes[row.name] = row
                case PutNumber(kind, name, number):
                    self.numbers[kind, name] = number
