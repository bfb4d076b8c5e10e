"""The durable store: an OVSDB database, through the `ovs` library's IDL.

          write()/reserve()                       one loop thread (green under the engine)
    callers ───────────────▶ queue ──▶ batch ──▶ one transaction + "commit durable" ──▶ ovsdb-server
       ▲                                                                                   │
       └────────────── Pending done ◀── reply; the replica already shows the change ◀──────┘

Invariants: only the loop touches the IDL, under the lock; one transaction is in flight at a time, so writes become
durable in the order in which they were begun, and those that wait share the next transaction. Operations are made from
the replica when a batch is sent, so sending a batch again after a lost connection is harmless. Rows are addressed by
UUID: the server looks up anything else by scanning the table.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ovs.db.idl
import ovs.poller
from pydantic import ValidationError

from policies.wire import AttemptSpec, NodeSpec
from ryu_apps.store.server import SCHEMA
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
    decision_from_text,
    decision_to_text,
)

LOG = logging.getLogger("lark.store")
_OPEN_SECONDS = 15.0
_RESERVE_SECONDS = 10.0
_RETRY_MS = 50
_BATCH = 100
Transaction = ovs.db.idl.Transaction
Key = tuple[str, ...]
"""Table and the values of its key columns."""
KEY_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "Attempt": ("id",),
    "Node": ("name",),
    "Number": ("kind", "name"),
    "Counter": ("kind",),
}


class _Replica(ovs.db.idl.Idl):  # type: ignore[misc]
    """The IDL with an index from our keys to row UUIDs."""

    def __init__(self, remote: str, schema: Any) -> None:
        self.uuids: dict[Key, uuid.UUID] = {}
        super().__init__(remote, schema)

    def notify(self, event: str, row: Any, updates: Any = None) -> None:
        table = row._table.name
        key = (table, *(str(getattr(row, column)) for column in KEY_COLUMNS[table]))
        if event == ovs.db.idl.ROW_DELETE:
            if self.uuids.get(key) == row.uuid:
                del self.uuids[key]
        else:
            self.uuids[key] = row.uuid

    def find(self, key: Key) -> Any | None:
        found = self.uuids.get(key)
        return None if found is None else self.tables[key[0]].rows.get(found)


@dataclass(slots=True)
class _Write:
    """One caller's write: final rows by key (None: gone), or a guarded reservation that must be alone."""

    rows: dict[Key, dict[str, Any] | None]
    expect_next: int | None = None
    guarded: bool = False
    done: threading.Event = field(default_factory=threading.Event)
    error: str | None = None
    again: bool = False

    def wait(self, deadline: float) -> None:
        if not self.done.wait(max(0.0, deadline - time.monotonic())):
            raise StoreError("the store did not confirm in time")
        if self.error is not None:
            raise StoreError(self.error)


class OvsdbStore:
    """Implements `store.Store` on an OVSDB remote such as `unix:/path` (several, comma-separated: a cluster)."""

    def __init__(self, remote: str) -> None:
        helper = ovs.db.idl.SchemaHelper(location=str(SCHEMA))
        helper.register_all()
        self._idl = _Replica(remote, helper)
        self._lock = threading.Lock()
        self._queue: deque[_Write] = deque()
        self._batch: list[_Write] = []
        self._txn: Any | None = None
        self._singly = 0
        self._retry_at = 0.0
        self._ready = threading.Event()
        self._stopping = False
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._thread = threading.Thread(target=self._loop, name="store", daemon=True)
        self._thread.start()
        if not self._ready.wait(_OPEN_SECONDS):
            self.close()
            raise StoreError(f"no OVSDB database Lark answers at {remote}; is ovsdb-server running there?")

    def load(self) -> Snapshot:
        with self._lock:
            tables = self._idl.tables
            return Snapshot(
                attempts=tuple(_attempt(row) for row in tables["Attempt"].rows.values()),
                nodes=tuple(_node(row) for row in tables["Node"].rows.values()),
                numbers={(Kind(row.kind), row.name): row.number for row in tables["Number"].rows.values()},
            )

    def reserve(self, kind: Kind, count: int) -> int:
        deadline = time.monotonic() + _RESERVE_SECONDS
        while True:
            with self._lock:
                row = self._idl.find(("Counter", kind))
                first = 1 if row is None else row.next
            write = _Write(
                {("Counter", kind.value): {"kind": kind.value, "next": first + count}},
                expect_next=None if row is None else first,
                guarded=True,
            )
            self._put(write)
            write.wait(deadline)
            if not write.again:
                return int(first)

    def write(self, changes: Sequence[Change]) -> Pending:
        write = _Write(dict(_row_of(change) for change in changes))
        self._put(write)
        return write

    def close(self) -> None:
        self._stopping = True
        self._wake()
        if self._thread is not threading.current_thread():
            self._thread.join(5)

    def _put(self, write: _Write) -> None:
        if self._stopping:
            raise StoreError("the store is closed")
        self._queue.append(write)
        self._wake()

    def _wake(self) -> None:
        try:
            self._wake_in.send(b"x")
        except (BlockingIOError, OSError):
            pass  # a full pipe wakes as well; a closed one has nobody to wake

    def _loop(self) -> None:
        try:
            while not self._stopping:
                if self._step():
                    continue
                poller = ovs.poller.Poller()
                with self._lock:
                    self._idl.wait(poller)
                if self._retry_at:
                    poller.timer_wait(_RETRY_MS)
                poller.fd_wait(self._wake_out.fileno(), ovs.poller.POLLIN)
                if poller.timeout == 0:
                    # Under a green hub the library turns "do not block" into 100 ms.
                    time.sleep(0)
                    continue
                poller.block()
                try:
                    while self._wake_out.recv(4096):
                        pass
                except BlockingIOError:
                    pass
        except Exception:
            LOG.exception("the store's loop failed; every write fails from now on")
            self._stopping = True
        finally:
            with self._lock:
                self._idl.close()
            for write in [*self._batch, *self._queue]:
                write.error = "the store is closed"
                write.done.set()
            self._wake_in.close()
            self._wake_out.close()

    def _step(self) -> bool:
        """One round without blocking. True if something happened, so that there may be more to do at once."""
        with self._lock:
            seqno = self._idl.change_seqno
            self._idl.run()
            if not self._ready.is_set() and self._idl.state == ovs.db.idl.Idl.IDL_S_MONITORING:
                self._ready.set()
            happened = bool(self._idl.change_seqno != seqno)
            if self._txn is not None:
                status = self._txn.commit()
                if status == Transaction.INCOMPLETE:
                    return happened
                self._finished(status, self._txn.get_error())
                happened = True
            if self._queue and self._ready.is_set() and time.monotonic() >= self._retry_at:
                self._retry_at = 0.0
                self._send()
                happened = True
            return happened

    def _send(self) -> None:
        batch = [self._queue.popleft()]
        limit = 1 if self._singly else _BATCH
        while not batch[0].guarded and self._queue and not self._queue[0].guarded and len(batch) < limit:
            batch.append(self._queue.popleft())
        self._singly = max(0, self._singly - 1)
        self._batch = batch
        txn = Transaction(self._idl)
        if batch[0].guarded:
            txn.add_op(_guard(batch[0]))
        rows: dict[Key, dict[str, Any] | None] = {}
        for write in batch:
            rows.update(write.rows)
        for operation in self._operations(rows):
            txn.add_op(operation)
        txn.add_op({"op": "commit", "durable": True})
        self._txn = txn
        txn.commit()

    def _operations(self, rows: Mapping[Key, dict[str, Any] | None]) -> Iterable[dict[str, Any]]:
        for key, row in rows.items():
            present = self._idl.find(key)
            where = [["_uuid", "==", ["uuid", str(present.uuid)]]] if present is not None else []
            if row is None:
                if where:
                    yield {"op": "delete", "table": key[0], "where": where}
            elif where:
                yield {"op": "update", "table": key[0], "where": where, "row": row}
            else:
                yield {"op": "insert", "table": key[0], "row": row}

    def _finished(self, status: str, error: str | None) -> None:
        batch, self._batch, self._txn = self._batch, [], None
        if status in (Transaction.SUCCESS, Transaction.UNCHANGED):
            for write in batch:
                write.done.set()
        elif status == Transaction.TRY_AGAIN and batch[0].guarded:
            # Another controller was quicker, or the connection broke: its caller reads again.
            batch[0].again = True
            batch[0].done.set()
        elif status == Transaction.TRY_AGAIN:
            self._queue.extendleft(reversed(batch))
            self._retry_at = time.monotonic() + _RETRY_MS / 1000
        elif len(batch) > 1:
            # One bad write must not fail the others.
            self._queue.extendleft(reversed(batch))
            self._singly = len(batch)
        else:
            LOG.error("the store refused a write of %s: %s", list(batch[0].rows), error)
            batch[0].error = f"the store refused the write: {error}"
            batch[0].done.set()


def _guard(write: _Write) -> dict[str, Any]:
    """Fails the transaction unless the counter still has the value that was read."""
    ((_, kind),) = write.rows
    return {
        "op": "wait",
        "timeout": 0,
        "table": "Counter",
        "where": [["kind", "==", kind]],
        "columns": ["next"],
        "until": "==",
        "rows": [] if write.expect_next is None else [{"next": write.expect_next}],
    }


def _row_of(change: Change) -> tuple[Key, dict[str, Any] | None]:
    match change:
        case PutAttempt(row):
            return ("Attempt", row.id), {
                "id": row.id,
                "number": row.number,
                "identity": row.identity,
                "slice": row.slice_number,
                "spec": json.dumps(row.spec.model_dump(mode="json", exclude_defaults=True), separators=(",", ":")),
                "decision": decision_to_text(row.decision),
                "digest": row.digest,
                "registered": row.registered,
                "leaving": ["set", list(row.leaving)],
            }
        case DropAttempt(id):
            return ("Attempt", id), None
        case PutNode(row):
            return ("Node", row.name), {"name": row.name, "spec": row.spec.model_dump_json()}
        case PutNumber(kind, name, number):
            return ("Number", kind.value, name), {"kind": kind.value, "name": name, "number": number}


def _attempt(row: Any) -> AttemptRow:
    try:
        return AttemptRow(
            id=row.id,
            number=row.number,
            identity=row.identity,
            slice_number=row.slice,
            spec=AttemptSpec.model_validate_json(row.spec),
            decision=decision_from_text(row.decision),
            digest=row.digest,
            registered=row.registered,
            leaving=tuple(sorted(row.leaving)),
        )
    except (ValidationError, StoreError) as problem:
        raise StoreError(f"stored attempt {row.id} cannot be read: {problem}") from problem


def _node(row: Any) -> NodeRow:
    try:
        return NodeRow(row.name, NodeSpec.model_validate_json(row.spec))
    except ValidationError as problem:
        raise StoreError(f"stored node {row.name} cannot be read: {problem}") from problem
