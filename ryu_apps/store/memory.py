"""A store that keeps nothing: the documented fake for tests of the controller and of whoever builds on it.

`MemoryStore` keeps rows in dictionaries. Tests can make it fail (`fail`), hold writes back (`hold`/`release`), count
(`writes`), and hand the same object to a second controller to play a restart: held writes are then lost, as in a crash.
`another(name)` is the same store as a second controller sees it at the same time: feeds, conflicts and fencing are as
with the real one (a test holds the two to the same promises).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from ryu_apps.store.feed import ChangeFeed
from ryu_apps.store.store import (
    ANY,
    AttemptRow,
    Change,
    ControllerRow,
    DropAttempt,
    DropController,
    Event,
    Feed,
    Gone,
    Kind,
    MasterRow,
    NodeRow,
    NumberRow,
    Pending,
    Put,
    PutAttempt,
    PutMaster,
    PutNode,
    PutNumber,
    Snapshot,
    StoreConflict,
    StoreCounts,
    StoreError,
    StoreFenced,
)


class _MemoryPending:
    def __init__(self) -> None:
        self.done = threading.Event()
        self.error: StoreError | None = None

    def wait(self, deadline: float) -> None:
        if not self.done.wait(max(0.0, deadline - time.monotonic())):
            raise StoreError("the store did not confirm in time")
        if self.error is not None:
            raise self.error


class MemoryStore:
    """Implements `store.Store`. `fail`: text of the error that every following write gets, or None."""

    def __init__(self, name: str = "lark-controller", shared: MemoryStore | None = None) -> None:
        self.name = name
        self.attempts: dict[str, AttemptRow] = {} if shared is None else shared.attempts
        self.nodes: dict[str, NodeRow] = {} if shared is None else shared.nodes
        self.numbers: dict[tuple[Kind, str], int] = {} if shared is None else shared.numbers
        self.next: dict[Kind, int] = {} if shared is None else shared.next
        self.controllers: dict[str, ControllerRow] = {} if shared is None else shared.controllers
        self.masters: dict[str, MasterRow] = {} if shared is None else shared.masters
        self._all_feeds: list[tuple[MemoryStore, ChangeFeed]] = [] if shared is None else shared._all_feeds
        self._lock: threading.RLock = threading.RLock() if shared is None else shared._lock
        self.fail: str | None = None
        self.counts = StoreCounts()
        self.writes = 0
        self.reservations = 0
        self._held: list[tuple[Sequence[Change], _MemoryPending]] | None = None
        self._place = f"memory {id(self)}"
        with self._lock:
            self.controllers[name] = ControllerRow(name, 0, self._place, "", 0.0)
            self._tell([Put(self.controllers[name])])

    def another(self, name: str) -> MemoryStore:
        """The same rows, as the controller of this name sees them."""
        return MemoryStore(name, self)

    @property
    def trouble(self) -> str | None:
        return self.fail

    @property
    def fenced(self) -> str | None:
        own = self.controllers.get(self.name)
        if own is None:
            return f"the other controllers have given {self.name} up"
        return None if own.place == self._place else f"another controller has joined as {self.name}"

    def hold(self) -> None:
        """From now on writes are accepted but neither applied nor confirmed."""
        self._held = []

    def release(self) -> None:
        """Apply and confirm what was held."""
        held, self._held = self._held or [], None
        for changes, pending in held:
            self._try(changes, pending)

    def crash(self) -> None:
        """Forget what was held, as a crash before the write would."""
        self._held = None

    def load(self) -> Snapshot:
        with self._lock:
            return Snapshot(
                tuple(self.attempts.values()),
                tuple(self.nodes.values()),
                dict(self.numbers),
                tuple(self.controllers.values()),
                tuple(self.masters.values()),
            )

    def watch(self) -> Feed:
        with self._lock:
            feed = ChangeFeed(self.load(), self._forget)
            self._all_feeds.append((self, feed))
            return feed

    def reserve(self, kind: Kind, count: int) -> int:
        if self.fail is not None:
            raise StoreError(self.fail)
        if self.fenced is not None:
            raise StoreFenced(self.fenced)
        with self._lock:
            first = self.next.get(kind, 1)
            self.next[kind] = first + count
            self.reservations += 1
            return first

    def write(self, changes: Sequence[Change]) -> Pending:
        pending = _MemoryPending()
        if self.fail is not None:
            pending.error = StoreError(self.fail)
            pending.done.set()
        elif self._held is not None:
            self._held.append((changes, pending))
        else:
            self._try(changes, pending)
        return pending

    def close(self) -> None:
        pass

    def _forget(self, feed: ChangeFeed) -> None:
        with self._lock:
            self._all_feeds[:] = [entry for entry in self._all_feeds if entry[1] is not feed]

    def _tell(self, events: Sequence[Event]) -> None:
        for store, feed in self._all_feeds:
            if store is not self:
                feed.put(events)

    def _try(self, changes: Sequence[Change], pending: _MemoryPending) -> None:
        with self._lock:
            fenced = self.fenced
            if fenced is not None:
                pending.error = StoreFenced(fenced)
            elif not all(self._fits(change) for change in changes):
                pending.error = StoreConflict("another controller has changed it meanwhile; read it again")
            else:
                self._apply(changes)
        pending.done.set()

    def _fits(self, change: Change) -> bool:
        match change:
            case PutAttempt(row, before):
                return before is ANY or self.attempts.get(row.id) == before
            case DropAttempt(id, before):
                return before is ANY or self.attempts.get(id) == before
            case PutNode(node, before):
                return before is ANY or self.nodes.get(node.name) == before
            case PutMaster(master, before):
                return self.masters.get(master.bridge) == before
            case DropController(name, beat):
                return name in self.controllers and self.controllers[name].beat == beat
        return True

    def _apply(self, changes: Sequence[Change]) -> None:
        self.writes += 1
        events: list[Event] = []
        own = self.controllers[self.name] = replace(
            self.controllers[self.name], beat=self.controllers[self.name].beat + 1
        )
        events.append(Put(own))
        for change in changes:
            match change:
                case PutAttempt(row):
                    self.attempts[row.id] = row
                    events.append(Put(row))
                case DropAttempt(id):
                    if self.attempts.pop(id, None) is not None:
                        events.append(Gone("Attempt", id))
                case PutNode(row):
                    self.nodes[row.name] = row
                    events.append(Put(row))
                case PutNumber(kind, name, number):
                    self.numbers[kind, name] = number
                    events.append(Put(NumberRow(kind, name, number)))
                case PutMaster(master):
                    self.masters[master.bridge] = master
                    events.append(Put(master))
                case DropController(name):
                    del self.controllers[name]
                    events.append(Gone("Controller", name))
        self._tell(events)
