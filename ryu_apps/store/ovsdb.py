"""The durable store: an OVSDB database, on one server or on the leader of a Raft cluster of them.

          write()/reserve()/load()                 one loop thread (green under the engine)
    callers ───────────────▶ queue ──▶ batch ──▶ one transaction + "commit durable" ──▶ ovsdb-server
       ▲                                                                                   │
       └────────────── Pending done ◀── reply; updates before it: replica, feeds ◀─────────┘

Every transaction makes the `beat` of this controller's own row one higher, and takes place only if it has the value
that this controller gave it last. So a transaction whose answer was lost is settled by a look at that row, none takes
place twice, and a controller whose row the others have removed can write nothing.

Invariants: only the loop touches the connection; one transaction is in flight at a time, so writes become durable in
the order in which they were begun, and those that wait share the next one. Of each row only its UUID and a fingerprint
are kept here: the server looks up anything but a UUID by scanning the table.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ryu_apps.store.feed import ChangeFeed
from ryu_apps.store.jsonrpc import Connection, Lost, Message, Remote, Tls, parse_remote
from ryu_apps.store.rows import KEY_COLUMNS, Columns, Key, fingerprint, key_of, planned, row_of, snapshot_of
from ryu_apps.store.schema import COLUMNS, DATABASE, is_older
from ryu_apps.store.store import (
    ANY,
    Change,
    ControllerRow,
    Event,
    Feed,
    Gone,
    Kind,
    Pending,
    Put,
    Snapshot,
    StoreConflict,
    StoreCounts,
    StoreError,
    StoreFenced,
    Unchecked,
)
from ryu_apps.store.transactions import (
    Flight,
    Read,
    Write,
    as_fault,
    changed,
    delete,
    disk_full,
    first_fault,
    in_words,
    said_of,
    update,
    uuid_is,
    wait_for,
)

LOG = logging.getLogger("lark.store")
OPEN_SECONDS = 15.0
RESERVE_SECONDS = 10.0
LOAD_SECONDS = 30.0
CLOSE_SECONDS = 2.0
ECHO_SECONDS = 2.0
"""After so long a silence the server is asked for a sign of life."""
SILENCE_SECONDS = 6.0
"""After so long a silence it is given up."""
ANSWER_SECONDS = 60.0
"""A transaction that is not answered by then is settled on a new connection."""
_BACKOFF = (0.1, 0.2, 0.4, 0.8)
_BATCH = 1000
"""Writes of one transaction at most. The loop gets a turn as often as everybody else: with much to do turns are long,
and a transaction that could not take up all that comes in one would be what everybody waits for."""
_TRIES = 5
QUEUE_LIMIT = 20_000
_YIELD = 500
_TELL_SECONDS = 5.0
_STATUS_COLUMNS = ["name", "model", "connected", "leader", "schema", "cid"]


class _Unknown(Lost):
    """The connection is of no use, and whether the transaction in flight took place is not known."""


@dataclass(slots=True)
class _Known:
    uuid: str
    fingerprint: int


class OvsdbStore:
    """Implements `store.Store` on OVSDB remotes such as `unix:/path`; several, separated by commas, are one cluster.

    `name`: this controller's, one of its own for each that shares the store; None only reads. `alone`: whoever else has
    a row there is a remnant. `api`: where others reach this controller.
    """

    def __init__(
        self,
        remotes: str | Sequence[str],
        *,
        name: str | None = "lark-controller",
        alone: bool = False,
        api: str = "",
        tls: Tls | None = None,
    ) -> None:
        texts = remotes.split(",") if isinstance(remotes, str) else list(remotes)
        try:
            self._remotes: list[Remote] = [parse_remote(text) for text in texts]
            self._tls = None if tls is None else tls.context()
        except ValueError as problem:
            raise StoreError(str(problem)) from problem
        except OSError as problem:
            raise StoreError(f"the certificates for the store cannot be used: {problem}") from problem
        self.name = name
        self.counts = StoreCounts()
        self._alone = alone
        self._api = api
        self._place = f"{socket.gethostname()} pid {os.getpid()} {uuid.uuid4().hex[:8]}"
        self._own: str | None = None
        """UUID of our row; None until we have joined."""
        self._beat = 0
        self._fenced: str | None = None
        self._cluster: str | None = None
        self._lock = threading.Lock()
        self._trouble: dict[str, str] = {}
        """What was last wrong with each server; empty while one serves us."""
        self._queue: deque[Write] = deque()
        self._reads: deque[Read] = deque()
        self._flight: Flight | None = None
        self._asked: tuple[str, Read] | None = None
        self._heartbeat: Write | None = None
        self._full_told: float | None = None
        """When the log last said that the disk is full."""
        self._singly = 0
        self._known: dict[Key, _Known] = {}
        self._counters: dict[str, int] = {}
        self._controllers: dict[str, ControllerRow] = {}
        self._first: Mapping[str, Any] | None = None
        """What the first connection found, for the first who reads; gone when anything of it has changed."""
        self._feeds: list[ChangeFeed] = []
        self._connection: Connection | None = None
        self._inbox: deque[Message] = deque()
        self._synced = False
        self._next_id = 0
        self._next_remote = 0
        self._ready = threading.Event()
        self._refused: StoreError | None = None
        self._stopping = False
        self._leaving = False
        self._woken = False
        """The loop is told already that there is something to do."""
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._thread = threading.Thread(target=self._loop, name="store", daemon=True)
        self._thread.start()
        opened = self._ready.wait(OPEN_SECONDS)
        if self._refused is not None or not opened:
            self._stop()
            where = ", ".join(remote.text for remote in self._remotes)
            raise self._refused or StoreError(
                f"no OVSDB database {DATABASE} can be used at {where} ({in_words(self._trouble) or 'no answer'}); "
                "is ovsdb-server running there?"
            )

    # --- callers ----------------------------------------------------------------------------------------------------

    @property
    def fenced(self) -> str | None:
        return self._fenced

    @property
    def trouble(self) -> str | None:
        """Why the store cannot be reached at present; None while it can."""
        return in_words(self._trouble) or None

    @property
    def controllers(self) -> tuple[ControllerRow, ...]:
        """Every controller's row as last seen, this one's own too."""
        return tuple(self._controllers.values())

    def load(self) -> Snapshot:
        return self._read(follow=False).snapshot

    def beat(self) -> None:
        """Let our beat grow, for the others to see that we live; without waiting, and never two at a time."""
        if self._heartbeat is None or self._heartbeat.done:
            write = self._new({}, {})
            self._put(write)
            self._heartbeat = write

    def watch(self) -> Feed:
        return self._read(follow=True)

    def reserve(self, kind: Kind, count: int) -> int:
        deadline = time.monotonic() + RESERVE_SECONDS
        key = ("Counter", kind.value)
        while True:
            known = self._counters.get(kind.value)
            first = 1 if known is None else known
            write = self._new({key: {"kind": kind.value, "next": first + count}}, {})
            write.before[key] = None if known is None else {"next": first}
            self._put(write, first=True)
            try:
                write.wait(deadline)
            except StoreConflict:
                # Another controller was quicker; what it wrote has come before the refusal.
                if time.monotonic() > deadline:
                    raise
                continue
            return first

    def write(self, changes: Sequence[Change]) -> Pending:
        write = self._new({}, {})
        for change in changes:
            key, columns, before = planned(change)
            if key not in write.rows:
                write.before[key] = before
            write.rows[key] = columns
        self._put(write)
        return write

    def close(self) -> None:
        """Say good-bye to the other controllers, if the store can be reached, and end."""
        if self._own is not None and not self._stopping and self._fenced is None and self.name is not None:
            farewell = self._new({("Controller", self.name): None}, {})
            with contextlib.suppress(StoreError):
                self._put(farewell)
                self._leaving = True
                farewell.wait(time.monotonic() + CLOSE_SECONDS)
        self._stop()

    def _stop(self) -> None:
        self._stopping = True
        self._wake()
        if self._thread is not threading.current_thread():
            self._thread.join(10)

    def _new(self, rows: dict[Key, Columns | None], before: dict[Key, Columns | Unchecked | None]) -> Write:
        return Write(rows, before, self._lock, self._trouble)

    def _put(self, write: Write, *, first: bool = False) -> None:
        """`first`: it does not build on any write before it, and others wait for it."""
        if self.name is None:
            raise StoreError("this program only reads the store")
        with self._lock:
            self._refuse_when_ended()
            if len(self._queue) >= QUEUE_LIMIT:
                raise StoreError(f"{len(self._queue)} writes wait for the store already; try again")
            if first:
                self._queue.appendleft(write)
            else:
                self._queue.append(write)
        self._wake()

    def _read(self, *, follow: bool) -> ChangeFeed:
        read = Read(follow)
        with self._lock:
            self._refuse_when_ended(reading=True)
            self._reads.append(read)
        self._wake()
        if not read.done.wait(LOAD_SECONDS):
            raise StoreError(f"the store could not be read in time{f' ({self.trouble})' if self.trouble else ''}")
        if read.error is not None or read.feed is None:
            raise read.error or StoreError("the store could not be read")
        return read.feed

    def _refuse_when_ended(self, *, reading: bool = False) -> None:
        if self._stopping or self._leaving:
            raise StoreError("the store is closed")
        if self._fenced is not None and not reading:
            raise StoreFenced(self._fenced)

    def _forget(self, feed: ChangeFeed) -> None:
        with self._lock, contextlib.suppress(ValueError):
            self._feeds.remove(feed)

    def _wake(self) -> None:
        if self._woken:
            return
        self._woken = True
        try:
            self._wake_in.send(b"x")
        except (BlockingIOError, OSError):
            pass  # a full pipe wakes as well; a closed one has nobody to wake

    # --- the loop ---------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        tries = 0
        try:
            while not self._stopping and self._refused is None:
                remote = self._remotes[self._next_remote % len(self._remotes)]
                began = time.monotonic()
                try:
                    self._serve(remote)
                except Lost as why:
                    self._lost(remote, str(why))
                    self._next_remote += 1
                    # A round of all servers, then a pause that grows; after a good connection it starts anew.
                    tries = 0 if time.monotonic() - began > 5 else tries + 1
                    if tries % len(self._remotes) == 0 and tries:
                        pause = _BACKOFF[min(tries // len(self._remotes), len(_BACKOFF)) - 1]
                        self._sleep(pause)
        except Exception:
            LOG.exception("the store's loop failed; every write fails from now on")
        finally:
            with self._lock:
                self._stopping = True
                writes = [*(self._flight.writes if self._flight else ()), *self._queue]
                self._flight = None
                self._queue.clear()
                reads = [*self._reads, *([self._asked[1]] if self._asked else ())]
                feeds = list(self._feeds)
            for write in writes:
                write.end(StoreError("the store is closed"))
            for read in reads:
                read.error = StoreError("the store is closed")
                read.done.set()
            for feed in feeds:
                feed.end("the store is closed")
            self._ready.set()
            self._wake_in.close()
            self._wake_out.close()

    def _lost(self, remote: Remote, why: str) -> None:
        text = f"{remote.text}: {why}"
        if self._synced:
            LOG.warning("store: connection to %s", text)
        else:
            LOG.debug("store: %s", text)
        self._trouble[remote.text] = why
        self._synced = False
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._inbox.clear()
        if self._asked is not None:
            self._reads.appendleft(self._asked[1])
            self._asked = None

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stopping and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))

    def _serve(self, remote: Remote) -> None:
        """One connection, from its beginning to its end. Raises Lost."""
        self._connection = connection = Connection(remote, self._tls)
        self._check_server(self._call("monitor", ["_Server", "status", {"Database": {"columns": _STATUS_COLUMNS}}]))
        tables = {table: {"columns": list(columns)} for table, columns in COLUMNS.items()}
        self._replace_all(self._call("monitor", [DATABASE, "rows", tables]))
        self._settle_unknown()
        if self._own is None and self.name is not None:
            self._join()
        if self._trouble and self._ready.is_set():
            LOG.info("store: connected to %s", remote.text)
        self._trouble.clear()
        self._synced = True
        self._ready.set()
        asked = 0.0
        while not self._stopping:
            self._send()
            if self._flight is not None and time.monotonic() - self._flight.sent > ANSWER_SECONDS:
                raise Lost(f"it has not answered a transaction for {ANSWER_SECONDS:.0f} s")
            if not self._inbox:
                self._inbox.extend(connection.receive(1.0, self._wake_out))
                self._unwake()
            if not self._inbox:
                asked = self._look_alive(connection, asked)
            while self._inbox:
                self._handle(self._inbox.popleft())

    def _look_alive(self, connection: Connection, asked: float) -> float:
        """Nothing has come: ask a server that is quiet for a sign of life, and give up one that gives none. When this
        process is late itself, the silence is ours. Gives when it was last asked. Raises Lost."""
        now = time.monotonic()
        if now - connection.heard <= ECHO_SECONDS:
            return asked
        if asked < connection.heard:
            connection.send({"method": "echo", "params": [], "id": "echo"})
            return now
        if now - asked > SILENCE_SECONDS - ECHO_SECONDS:
            raise Lost(f"it has been silent for {now - connection.heard:.0f} s")
        return asked

    def _call(self, method: str, params: Sequence[Any]) -> Any:
        """Ask, and wait for the answer. Raises Lost."""
        connection = self._connected()
        id = self._request(method, params)
        while True:
            if self._stopping:
                raise Lost("this program ends")
            if time.monotonic() - connection.heard > SILENCE_SECONDS:
                raise Lost(f"it does not answer {method}")
            if not self._inbox:
                self._inbox.extend(connection.receive(0.5, self._wake_out))
                self._unwake()
            # What comes after the answer stays in the inbox: it is newer than the answer.
            while self._inbox:
                message = self._inbox.popleft()
                if message.get("id") != id or "result" not in message:
                    self._handle(message)
                elif message.get("error"):
                    raise Lost(f"{method} failed: {said_of(message['error'])}")
                else:
                    return message["result"]

    def _unwake(self) -> None:
        """Whoever has something to do from now on says so again; what came before is looked at after this."""
        if not self._woken:
            return
        self._woken = False
        with contextlib.suppress(BlockingIOError):
            while self._wake_out.recv(4096):
                pass

    def _request(self, method: str, params: Sequence[Any]) -> str:
        self._next_id += 1
        id = str(self._next_id)
        self._connected().send({"method": method, "params": list(params), "id": id})
        return id

    def _connected(self) -> Connection:
        if self._connection is None:
            raise Lost("there is no connection")
        return self._connection

    def _handle(self, message: Message) -> None:
        method, id = message.get("method"), message.get("id")
        if method == "echo" and id is not None:
            self._connected().send({"id": id, "result": message.get("params"), "error": None})
        elif method == "update":
            which, tables = message["params"]
            if which == "status":
                self._check_server(tables)
            else:
                self._update(tables)
        elif method == "monitor_canceled":
            raise Lost("its database was removed or converted")
        elif method is None and self._flight is not None and id == self._flight.id:
            self._answered(message)
        elif method is None and self._asked is not None and id == self._asked[0]:
            self._answer_read(message)

    def _check_server(self, tables: Mapping[str, Any]) -> None:
        """Is this a server to work with? Raises Lost, and sets `_refused` when no other would be better."""
        for row in tables.get("Database", {}).values():
            new = row.get("new")
            if new is None or new.get("name") != DATABASE:
                continue
            if new["model"] == "clustered":
                if not isinstance(new["schema"], str):
                    raise Lost("it has not joined its cluster yet")
                if not new["connected"]:
                    raise Lost("it is cut off from its cluster")
                if not new["leader"]:
                    raise Lost("it is not the leader")
                cluster = str(new["cid"])
                if self._cluster not in (None, cluster):
                    raise Lost("it belongs to another cluster")
                self._cluster = cluster
            if not self._ready.is_set():
                try:
                    version = json.loads(new["schema"])["version"]
                    if is_older(version, f"the database at {self._remotes[0].text}"):
                        raise StoreError(
                            f"the store has schema {version}, and this lark-controller needs a newer one: "
                            "run `lark-controller store upgrade`"
                        )
                except StoreError as problem:
                    self._refused = problem
                    raise Lost(str(problem)) from problem
            return
        if not self._synced:
            raise Lost(f"it has no database {DATABASE}")

    # --- the replica and the feeds ----------------------------------------------------------------------------------

    def _replace_all(self, tables: Mapping[str, Any]) -> None:
        """After a connection: everything there is, against what was known before."""
        old, self._known = self._known, {}
        self._counters.clear()
        self._controllers.clear()
        events: list[Event] = []
        count = 0
        for table, found in tables.items():
            for id, row in found.items():
                if table == "Attempt":
                    # What is kept is copied: a few small strings would hold on to all the memory of a large message.
                    row["new"]["id"] = row["new"]["id"].encode().decode()
                key = key_of(table, row["new"])
                before = old.pop(key, None)
                known = _Known(id.encode().decode(), self._fingerprint(table, row["new"]))
                self._learn(key, known, row["new"])
                if before is None or before.fingerprint != known.fingerprint:
                    self._tell(events, key, known, row["new"])
                count += 1
                if count % _YIELD == 0:
                    time.sleep(0)
        for key in old:
            self._tell(events, key, None, {})
        self._first = tables if self._alone and not self._ready.is_set() else None
        self._publish(events)

    def _update(self, tables: Mapping[str, Any]) -> None:
        events: list[Event] = []
        if set(tables) - {"Controller"}:
            self._first = None
        for table, found in tables.items():
            for id, row in found.items():
                new = row.get("new")
                if new is None:
                    key = key_of(table, row["old"])
                    known = self._known.get(key)
                    # In one transaction a row can go and another of its key come.
                    if known is not None and known.uuid == id:
                        self._unlearn(key)
                        self._tell(events, key, None, {})
                else:
                    key = key_of(table, new)
                    known = _Known(id, self._fingerprint(table, new))
                    self._learn(key, known, new)
                    self._tell(events, key, known, new)
        self._publish(events)

    def _fingerprint(self, table: str, columns: Columns) -> int:
        # Where nobody else writes, nobody asks who it was.
        return 0 if self._alone else fingerprint(table, columns)

    def _learn(self, key: Key, known: _Known, columns: Columns) -> None:
        self._known[key] = known
        if key[0] == "Counter":
            self._counters[key[1]] = columns["next"]
        elif key[0] == "Controller":
            row = row_of("Controller", columns)
            if isinstance(row, ControllerRow):
                self._controllers[row.name] = row

    def _unlearn(self, key: Key) -> None:
        del self._known[key]
        if key[0] == "Counter":
            del self._counters[key[1]]
        elif key[0] == "Controller":
            self._controllers.pop(key[1], None)

    def _tell(self, events: list[Event], key: Key, known: _Known | None, columns: Columns) -> None:
        """Note what a feed should say of a row, unless it is our own doing."""
        if not self._feeds or key == ("Controller", self.name) or key[0] == "Counter":
            return
        mine = self._flight.rows if self._flight is not None else {}
        if key in mine and mine[key] == (None if known is None else known.fingerprint):
            return
        if known is None:
            events.append(Gone(key[0], "/".join(key[1:])))  # type: ignore[arg-type]
            return
        try:
            row = row_of(key[0], columns)
        except StoreError as problem:
            LOG.error("%s; it is passed over", problem)
            return
        if row is not None:
            events.append(Put(row))

    def _publish(self, events: Sequence[Event]) -> None:
        with self._lock:
            feeds = list(self._feeds)
        for feed in feeds:
            feed.put(events)

    # --- our own row ------------------------------------------------------------------------------------------------

    def _join(self) -> None:
        """Write our row, in place of one that an earlier run left. Raises Lost; sets `_refused` when that is final."""
        assert self.name is not None
        mine = self._controllers.get(self.name)
        if mine is None or mine.place != self._place:  # else: written, and the answer was lost
            old = [key for key in self._known if key[0] == "Controller" and (self._alone or key[1] == self.name)]
            operations: list[Columns] = [delete(key, self._where(key)) for key in old]
            row = {
                "name": self.name,
                "beat": 0,
                "place": self._place,
                "api": self._api,
                "since": round(time.time(), 3),
            }
            operations.append({"op": "insert", "table": "Controller", "row": row})
            result = self._call("transact", [DATABASE, *operations, {"op": "commit", "durable": True}])
            fault = first_fault(result)
            if fault is not None:
                text = said_of(fault[1])
                if fault[1].get("error") == "I/O error":
                    self._refused = StoreError(disk_full(text))
                raise Lost(text)
        self._own = self._known[("Controller", self.name)].uuid
        self._beat = 0

    def _check_own(self) -> int | None:
        """The beat that the store has of us; None when we have been given up."""
        assert self.name is not None
        known, row = self._known.get(("Controller", self.name)), self._controllers.get(self.name)
        if known is not None and row is not None and known.uuid == self._own:
            return row.beat
        if self._leaving:
            return None
        if row is not None:
            self._fence(
                f"another controller has joined the store under this one's name, {self.name} ({row.place}); "
                "give each controller a name of its own"
            )
        else:
            self._fence(
                f"the other controllers have given {self.name} up, because the store did not hear of it for too long; "
                "start it again"
            )
        return None

    def _fence(self, why: str) -> None:
        LOG.error("store: %s", why)
        with self._lock:
            self._fenced = why
            writes = [*(self._flight.writes if self._flight else ()), *self._queue]
            self._flight = None
            self._queue.clear()
        for write in writes:
            write.end(StoreFenced(why))

    def _settle_unknown(self) -> None:
        """After a connection: did the transaction that was under way take place?"""
        if self._own is None or self._fenced is not None:
            return
        flight = self._flight
        beat = self._check_own()
        if beat is None:
            self._end_flight()
        elif flight is not None and beat == self._beat + 1:
            self._beat = beat
            self._end_flight()
        elif beat != self._beat:
            self._fence(f"something else has written this controller's row, {self.name}, in the store; start it again")
        elif flight is not None:
            self._flight = None
            self._again(flight.writes)

    def _end_flight(self) -> None:
        flight, self._flight = self._flight, None
        for write in flight.writes if flight is not None else ():
            write.end()

    def _again(self, writes: Sequence[Write]) -> None:
        with self._lock:
            for write in writes:
                write.sent = False
            self._queue.extendleft(reversed(writes))

    # --- transactions -----------------------------------------------------------------------------------------------

    def _send(self) -> None:
        if self._flight is None and self._asked is None and self._reads:
            read = self._reads.popleft()
            if self._first is not None and not self._queue:
                # Nobody else writes here, and nothing has changed since: thousands of rows need not be sent again.
                first, self._first = self._first, None
                mine = [{"name": row.name, **_plain(row)} for row in self._controllers.values()]
                rows = {table: [row["new"] for row in found.values()] for table, found in first.items()}
                self._was_read(read, {**rows, "Controller": mine, "Counter": []})
                return
            operations = [
                {"op": "select", "table": table, "where": [], "columns": list(columns)}
                for table, columns in COLUMNS.items()
                if table != "Counter"
            ]
            self._asked = (self._request("transact", [DATABASE, *operations]), read)
        if self._flight is None and self._queue and self._own is not None and self._fenced is None:
            self._send_batch()

    def _send_batch(self) -> None:
        writes: list[Write] = []
        waits: list[tuple[Columns, Write]] = []
        final: dict[Key, tuple[Columns | None, Write]] = {}
        expected: dict[Key, Columns | None] = {}
        conflicts: list[tuple[Write, str]] = []
        beat_only = False
        with self._lock:
            limit = 1 if self._singly else _BATCH
            while self._queue and len(writes) < limit:
                write = self._queue.popleft()
                if write.withdrawn:
                    continue
                wrong = self._mismatch(write, final)
                if wrong is not None:
                    conflicts.append((write, wrong))
                    continue
                write.sent = True
                writes.append(write)
                beat_only = beat_only or not write.rows
                for key, before in write.before.items():
                    if not isinstance(before, Unchecked) and key not in final:
                        expected[key] = before
                        if before is not None:
                            waits.append((wait_for(key, self._where(key), before), write))
                        elif key in self._known:
                            # It is there as far as we know, but may have gone a moment ago.
                            waits.append((wait_for(key, self._where(key), None), write))
                for key, columns in write.rows.items():
                    final[key] = (columns, write)
            self._singly = max(0, self._singly - 1)
        for write, wrong in conflicts:
            write.end(StoreConflict(wrong))
        operations: list[tuple[Columns, Write]] = list(waits)
        for key, (columns, write) in final.items():
            present = expected[key] is not None if key in expected else key in self._known
            if columns is None:
                if present:
                    operations.append((delete(key, self._where(key)), write))
            elif present:
                operations.append((update(key, self._where(key), columns), write))
            else:
                operations.append(({"op": "insert", "table": key[0], "row": columns}, write))
        if not operations and not beat_only:
            for write in writes:
                write.end()
            return
        assert self.name is not None
        assert self._own is not None
        own: Key = ("Controller", self.name)
        first = [wait_for(own, uuid_is(self._own), {"beat": self._beat})]
        if own not in final:  # else this is our farewell
            first.append(update(own, uuid_is(self._own), {"beat": self._beat + 1}))
        body = [*first, *(operation for operation, _ in operations), {"op": "commit", "durable": True}]
        self._flight = Flight(
            id="",
            writes=writes,
            owners=[*(None for _ in first), *(write for _, write in operations), None],
            rows={key: None if row is None else self._fingerprint(key[0], row) for key, (row, _) in final.items()},
            sent=time.monotonic(),
        )
        # From here on its outcome is unknown until it is answered, or settled on another connection.
        self._flight.id = str(self._next_id + 1)
        self._request("transact", [DATABASE, *body])

    def _mismatch(self, write: Write, final: Mapping[Key, tuple[Columns | None, Write]]) -> str | None:
        """Why a write cannot take place after those of its batch. All else only the server knows."""
        for key, before in write.before.items():
            if isinstance(before, Unchecked) or key not in final:
                continue
            present = final[key][0]
            if before is None or present is None:
                fits = before is present
            else:
                fits = all(present[name] == value for name, value in before.items())
            if not fits:
                return changed(key)
        return None

    def _where(self, key: Key) -> list[Any]:
        """Which row this is; by its UUID if we know it, since anything else makes the server scan the table."""
        known = self._known.get(key)
        if known is not None:
            return uuid_is(known.uuid)
        return [[column, "==", value] for column, value in zip(KEY_COLUMNS[key[0]], key[1:], strict=True)]

    def _answered(self, message: Message) -> None:
        flight, self._flight = self._flight, None
        assert flight is not None
        result = message.get("result")
        fault = (
            first_fault(result) if isinstance(result, list) else (len(flight.owners), as_fault(message.get("error")))
        )
        if fault is None:
            self._beat += 1
            if self._full_told is not None and time.monotonic() - self._full_told > _TELL_SECONDS:
                LOG.info("store: its disk takes writes again")
                self._full_told = None
            self._took_place(flight, result)
            return
        index, what = fault
        error = what.get("error")
        owner = flight.owners[index] if index < len(flight.owners) else None
        if error == "timed out" and owner is None:
            # Our own row is not as we left it: we were given up, or a copy of this transaction came first after all.
            self._flight = flight
            if self._check_own() is not None:
                raise Lost("its answer does not fit what it said before; asking anew")
            if self._flight is not None:  # we are leaving anyway
                self._end_flight()
        elif error == "timed out" and owner is not None:
            self._again([write for write in flight.writes if write is not owner])
            owner.end(StoreConflict(changed(*owner.before)))
        elif error in ("cluster error", "not leader"):
            self._flight = flight
            raise _Unknown(said_of(what))
        elif error == "I/O error":
            now = time.monotonic()
            if self._full_told is None or now - self._full_told > _TELL_SECONDS:
                LOG.error("store: %s", disk_full(said_of(what)))
                self._full_told = now
            for write in flight.writes:
                write.end(StoreError(disk_full(said_of(what))))
        elif len(flight.writes) > 1:
            self._singly = len(flight.writes)
            self._again(flight.writes)
        else:
            self._refuse(flight.writes[0], error, what)

    def _took_place(self, flight: Flight, result: Sequence[Any] | None) -> None:
        self.counts.transactions += 1
        self.counts.writes += len(flight.writes)
        self.counts.seconds += time.monotonic() - flight.sent
        missing = []
        for owner, operation in zip(flight.owners, result or (), strict=False):
            # It found nothing: another controller has removed or replaced the row in the same moment.
            if owner is not None and isinstance(operation, dict) and operation.get("count") == 0:
                missing.append(owner)
        again = []
        for write in flight.writes:
            if any(write is one for one in missing) and write.tries < _TRIES:
                write.tries += 1
                again.append(write)
            else:
                write.end()
        self._again(again)

    def _refuse(self, write: Write, error: object, what: Columns) -> None:
        """The database refuses the content of a write."""
        if error == "constraint violation":
            arrived = [key for key in write.rows if key in self._known]
            if any(write.before.get(key, ANY) is None for key in arrived):
                write.end(StoreConflict(changed(*arrived)))
                return
            if arrived and write.tries < _TRIES:
                # Inserted by another controller in the same moment: it is an update now.
                write.tries += 1
                self._again([write])
                return
        LOG.error("the store refused a write of %s: %s", list(write.rows), said_of(what))
        write.end(StoreError(f"the store refused the write: {said_of(what)}"))

    def _answer_read(self, message: Message) -> None:
        assert self._asked is not None
        (_, read), self._asked = self._asked, None
        result = message.get("result")
        fault = first_fault(result) if isinstance(result, list) else (0, as_fault(message.get("error")))
        if fault is not None:
            self._reads.appendleft(read)
            raise Lost(said_of(fault[1]))
        tables = [table for table in COLUMNS if table != "Counter"]
        self._was_read(read, {table: found["rows"] for table, found in zip(tables, result or (), strict=True)})

    def _was_read(self, read: Read, tables: Mapping[str, Sequence[Columns]]) -> None:
        try:
            snapshot = snapshot_of(tables)
        except StoreError as problem:
            read.error = problem
        else:
            read.feed = ChangeFeed(snapshot, self._forget)
            if read.follow:
                # Updates come before the answer that has their content: what comes from now on is newer.
                with self._lock:
                    self._feeds.append(read.feed)
        read.done.set()


def _plain(row: ControllerRow) -> Columns:
    return {"beat": row.beat, "place": row.place, "api": row.api, "since": row.since}
