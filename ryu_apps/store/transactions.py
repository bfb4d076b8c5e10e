"""What is under way to the database and back: callers' writes and reads, and the operations of a transaction.

Invariants: pure but for the events that callers wait for; operations are RFC 7047's, as values.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ryu_apps.patience import wait_for as wait_for_event
from ryu_apps.store.feed import ChangeFeed
from ryu_apps.store.rows import KEY_COLUMNS, Columns, Key
from ryu_apps.store.store import StoreError, Unchecked


@dataclass(slots=True)
class Write:
    """One caller's write: final rows by key (None: gone), and what they must be before."""

    rows: dict[Key, Columns | None]
    before: dict[Key, Columns | Unchecked | None]
    lock: threading.Lock
    trouble: dict[str, str]
    done: bool = False
    error: StoreError | None = None
    sent: bool = False
    withdrawn: bool = False
    tries: int = 0
    _event: threading.Event | None = None

    def wait(self, deadline: float) -> None:
        if not self.done and not self._wait(deadline):
            with self.lock:
                if not self.done:
                    said = in_words(self.trouble)
                    why = f" ({said})" if said else ""
                    if not self.sent:
                        self.withdrawn = True
                        raise StoreError(f"the store cannot be written to{why}; the write was withdrawn")
                    raise StoreError(f"the store did not confirm in time{why}")
        if self.error is not None:
            raise self.error

    def _wait(self, deadline: float) -> bool:
        # Most writes are done before anybody waits, and an event costs more than all the rest of one.
        with self.lock:
            event = self._event = self._event or threading.Event()
        # In this order, as `end` has the other: one of the two sees what the other one did.
        return self.done or wait_for_event(event, deadline)

    def end(self, error: StoreError | None = None) -> None:
        self.error = error
        self.done = True
        if self._event is not None:
            self._event.set()


@dataclass(slots=True)
class Read:
    """A caller who waits for everything stored, and may want to follow what comes then."""

    follow: bool
    done: threading.Event = field(default_factory=threading.Event)
    feed: ChangeFeed | None = None
    error: StoreError | None = None


@dataclass(slots=True)
class Flight:
    """A transaction under way. `owners`: whose each operation is. `rows`: what it leaves behind, by fingerprint."""

    id: str
    writes: list[Write]
    owners: list[Write | None]
    rows: dict[Key, int | None]
    sent: float


def in_words(trouble: Mapping[str, str]) -> str:
    return "; ".join(f"{where}: {what}" for where, what in list(trouble.items()))


def uuid_is(uuid: str) -> list[Any]:
    return [["_uuid", "==", ["uuid", uuid]]]


def wait_for(key: Key, where: list[Any], columns: Columns | None) -> Columns:
    """Fails the transaction at once unless the row is there and has these values; with None, unless it is gone."""
    return {
        "op": "wait",
        "timeout": 0,
        "table": key[0],
        "where": where,
        "columns": list(KEY_COLUMNS[key[0]] if columns is None else columns),
        "until": "==",
        "rows": [] if columns is None else [columns],
    }


def update(key: Key, where: list[Any], columns: Columns) -> Columns:
    return {"op": "update", "table": key[0], "where": where, "row": columns}


def delete(key: Key, where: list[Any]) -> Columns:
    return {"op": "delete", "table": key[0], "where": where}


def first_fault(result: Any) -> tuple[int, Columns] | None:
    """The first operation that failed, and how."""
    for index, operation in enumerate(result):
        if isinstance(operation, dict) and operation.get("error") is not None:
            return index, operation
    return None


def as_fault(error: Any) -> Columns:
    return error if isinstance(error, dict) else {"error": str(error)}


def said_of(what: Any) -> str:
    if not isinstance(what, dict):
        return str(what)
    return ": ".join(str(what[name]) for name in ("error", "details", "io-error") if what.get(name))


def changed(*keys: Key) -> str:
    names = ", ".join(f"{key[0].lower()} {'/'.join(key[1:])}" for key in keys)
    return f"another controller has changed {names} meanwhile; read it again"


def disk_full(text: str) -> str:
    return (
        f"the store's disk takes nothing more ({text}): make room on the file system that has its database; "
        "writing goes on by itself then"
    )
