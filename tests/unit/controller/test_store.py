"""The store keeps its promises: what was confirmed is there after a crash, numbers are never given twice.

Runs against a real `ovsdb-server` (the daemon's own) and, where the promise is the protocol's, the memory fake too.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.model import Bandwidth, Decision, Outcome, Place, Sharing
from policies.wire import AttemptSpec, NodeSpec, Phase, PortSpec
from ryu_apps.store import backup, downgrade
from ryu_apps.store.blocks import BLOCK, LAST, LOW_WATER, NumberBlock
from ryu_apps.store.jsonrpc import Framer, Lost, parse_remote
from ryu_apps.store.memory import MemoryStore
from ryu_apps.store.opening import OpenStore, StoreSettings
from ryu_apps.store.ovsdb import OvsdbStore
from ryu_apps.store.rows import Shared, attempt_of_columns, fingerprint, planned
from ryu_apps.store.schema import SCHEMA, VERSION, is_older
from ryu_apps.store.server import EmbeddedServer, _is_ours, find_tool, prepare_file, run_tool
from ryu_apps.store.store import (
    AttemptRow,
    DropAttempt,
    DropController,
    Event,
    Feed,
    Gone,
    Kind,
    MasterRow,
    NodeRow,
    Put,
    PutAttempt,
    PutMaster,
    PutNode,
    PutNumber,
    Store,
    StoreConflict,
    StoreError,
    StoreFenced,
    decision_from_text,
    decision_to_text,
)

ROOT = Path(__file__).resolve().parents[3]


def row(n: int, **changes: object) -> AttemptRow:
    values: dict[str, object] = {
        "id": f"wn1~boot~slot1_{n}~{n}~1",
        "number": n,
        "identity": 7,
        "spec": AttemptSpec(
            node="wn1",
            port=PortSpec(bridge="br1", name=f"lj{n}", ofport=n),
            mac="02:6c:0a:00:00:01",
            ipv4="10.0.0.1",
            zone=1000 + n,
            phase=Phase.RUN,
            ad={"Owner": 'a"b\\c', "Nul": "x\x00y", "Odd": "ü☃😀\n", "N": 5, "F": 1.5, "L": ["a", True, 3]},
        ),
        "decision": Decision(Outcome(False, frozenset({"b", "a"})), ("g",), ((Place("p.yaml", 3, 5), "grants a"),)),
        "digest": "d" * 64,
        "registered": 1234.5,
        "leaving": (),
    }
    values.update(changes)
    return AttemptRow(**values)  # type: ignore[arg-type]


def soon() -> float:
    return time.monotonic() + 10


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(tmp_path / "state")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def ovsdb(server: EmbeddedServer) -> Iterator[OvsdbStore]:
    store = OvsdbStore(server.remote)
    yield store
    store.close()


@pytest.fixture(params=["ovsdb", "memory"])
def store(request: pytest.FixtureRequest) -> Store:
    if request.param == "memory":
        return MemoryStore()
    found: OvsdbStore = request.getfixturevalue("ovsdb")
    return found


def test_rows_come_back_equal(store: Store) -> None:
    gone = row(2, leaving=("gate1", "gate2"))
    one_left = row(4, leaving=("gate1",))
    node = NodeRow(
        "wn1", NodeSpec(boot_id="12345678", bridge="br1", host_addresses=["10.9.9.9", "::1"], agent_version="1")
    )
    store.write([PutAttempt(row(1)), PutAttempt(gone), PutAttempt(one_left), PutNode(node)]).wait(soon())
    store.write([PutNumber(Kind.SERVICE, "fileserver", 3)]).wait(soon())
    snapshot = store.load()
    assert sorted(snapshot.attempts, key=lambda r: r.number) == [row(1), gone, one_left]
    assert snapshot.nodes == (node,)
    assert dict(snapshot.numbers) == {(Kind.SERVICE, "fileserver"): 3}


@pytest.mark.parametrize("wrong", [{"number": 1 << 48}, {"identity": -1}, {"slice": 1 << 32}, {"share": 1 << 22}])
def test_a_row_with_a_number_that_no_flow_has_room_for_is_refused_by_name(wrong: dict[str, int]) -> None:
    _, columns, _ = planned(PutAttempt(row(1)))
    assert columns is not None
    assert attempt_of_columns(columns, Shared()) == row(1)
    with pytest.raises(StoreError, match=rf"stored attempt {row(1).id} cannot be read: its {next(iter(wrong))} "):
        attempt_of_columns({**columns, **wrong}, Shared())


def test_put_replaces_and_drop_is_idempotent(store: Store) -> None:
    store.write([PutAttempt(row(1))]).wait(soon())
    store.write([PutAttempt(row(1, identity=9))]).wait(soon())
    assert [r.identity for r in store.load().attempts] == [9]
    for _ in range(2):
        store.write([DropAttempt(row(1).id)]).wait(soon())
        assert store.load().attempts == ()


def test_the_last_write_of_a_burst_wins(store: Store) -> None:
    pending = []
    for n in range(1, 60):
        pending.append(store.write([PutAttempt(row(n))]))
        pending.append(store.write([DropAttempt(row(n).id)] if n % 2 else [PutAttempt(row(n, identity=n))]))
    for one in pending:
        one.wait(soon())
    assert sorted((r.number, r.identity) for r in store.load().attempts) == [(n, n) for n in range(2, 60, 2)]


def test_reserved_numbers_are_never_given_twice(store: Store) -> None:
    seen: list[int] = []
    blocks = [NumberBlock(store, Kind.ATTEMPT, block=5) for _ in range(3)]
    threads = [threading.Thread(target=lambda b=b: seen.extend(b.take() for _ in range(17))) for b in blocks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == len(set(seen)) == 51
    assert min(seen) >= 1
    # Another kind counts for itself.
    assert NumberBlock(store, Kind.SERVICE).take() == 1


class SlowReserve(MemoryStore):
    """Reserves when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.let = threading.Event(), threading.Event()

    def reserve(self, kind: Kind, count: int) -> int:
        self.asked.set()
        assert self.let.wait(30)
        return super().reserve(kind, count)


def test_while_one_reserves_numbers_the_others_use_what_is_left_and_wait_only_for_the_last() -> None:
    slow = SlowReserve()
    block = NumberBlock(slow, Kind.ATTEMPT)
    slow.let.set()
    taken = []
    while block._left != LOW_WATER - 1:
        block.top_up()
        taken.append(block.take())
    slow.asked.clear()
    slow.let.clear()
    first = threading.Thread(target=block.top_up, daemon=True)
    first.start()
    assert slow.asked.wait(30)
    while block._left >= LAST:
        block.top_up()  # would hang, if it waited
        taken.append(block.take())
    # The control: one of the last waits.
    late = threading.Thread(target=block.top_up, daemon=True)
    late.start()
    late.join(0.2)
    assert late.is_alive()
    slow.let.set()
    for thread in (first, late):
        thread.join(30)
        assert not thread.is_alive()
    taken += [block.take() for _ in range(BLOCK)]
    assert len(set(taken)) == len(taken)


def test_all_that_waits_for_a_slow_server_goes_at_once_and_a_reservation_before_it(
    server: EmbeddedServer, ovsdb: OvsdbStore
) -> None:
    assert server.pid is not None
    ovsdb.reserve(Kind.ATTEMPT, 10)
    before = ovsdb.counts.transactions
    os.kill(server.pid, signal.SIGSTOP)
    try:
        pending = [ovsdb.write([PutAttempt(row(1))])]
        deadline = time.monotonic() + 30
        while ovsdb._queue and time.monotonic() < deadline:
            time.sleep(0.01)  # it is under way
        pending += [ovsdb.write([PutAttempt(row(n))]) for n in range(2, 900)]
        thread = threading.Thread(target=ovsdb.reserve, args=(Kind.ATTEMPT, 10), daemon=True)
        thread.start()
        while len(ovsdb._queue) < 899 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert list(ovsdb._queue[0].rows) == [("Counter", Kind.ATTEMPT.value)]
    finally:
        os.kill(server.pid, signal.SIGCONT)
    for one in pending:
        one.wait(soon())
    thread.join(30)
    assert not thread.is_alive()
    assert ovsdb.counts.transactions - before == 2
    assert len(ovsdb.load().attempts) == 899


def test_confirmed_writes_survive_kill_9_of_the_server(server: EmbeddedServer, ovsdb: OvsdbStore) -> None:
    ovsdb.write([PutAttempt(row(1))]).wait(soon())
    first = ovsdb.reserve(Kind.ATTEMPT, 1000)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    late = ovsdb.write([PutAttempt(row(2))])
    time.sleep(0.1)
    server.ensure()
    late.wait(time.monotonic() + 20)
    assert sorted(r.number for r in ovsdb.load().attempts) == [1, 2]
    assert ovsdb.reserve(Kind.ATTEMPT, 1000) == first + 1000


def test_a_write_that_the_database_refuses_fails_alone(ovsdb: OvsdbStore) -> None:
    ovsdb.write([PutAttempt(row(1))]).wait(soon())
    # The second has a number that is taken: the schema's unique index refuses it.
    twin = row(1, id="other")
    good, bad, good_too = (ovsdb.write([PutAttempt(r)]) for r in (row(2), twin, row(3)))
    good.wait(soon())
    good_too.wait(soon())
    with pytest.raises(StoreError, match="refused"):
        bad.wait(soon())
    assert sorted(r.number for r in ovsdb.load().attempts) == [1, 2, 3]


def test_an_unanswered_write_is_an_error_in_time(server: EmbeddedServer, ovsdb: OvsdbStore) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(StoreError, match="in time"):
            ovsdb.write([PutAttempt(row(1))]).wait(time.monotonic() + 0.3)
        assert time.monotonic() - began < 2
    finally:
        os.kill(server.pid, signal.SIGCONT)
    # The control: the same write is confirmed once the server runs again.
    ovsdb.write([PutAttempt(row(1))]).wait(soon())


def test_a_state_directory_serves_one_controller(server: EmbeddedServer, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="another lark-controller"):
        EmbeddedServer(tmp_path / "state").start()
    server.stop()
    second = EmbeddedServer(tmp_path / "state")
    second.start()
    second.stop()


def test_stale_socket_and_half_made_file_do_no_harm(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "lark.sock").touch()
    (state / "lark.new").write_text("half")
    server = EmbeddedServer(state)
    server.start()
    store = OvsdbStore(server.remote)
    assert store.load().attempts == ()
    store.close()
    server.stop()
    assert not (state / "lark.sock").exists()


def test_a_broken_database_file_is_named(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "lark.db").write_text("not a database")
    with pytest.raises(StoreError, match=r"lark\.db"):
        EmbeddedServer(state).start()


def test_the_server_dies_with_its_parent(tmp_path: Path) -> None:
    """A controller killed with SIGKILL leaves no server behind."""
    program = (
        "import sys, time; from pathlib import Path; from ryu_apps.store.server import EmbeddedServer\n"
        "server = EmbeddedServer(Path(sys.argv[1])); server.start(); print(server.pid, flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "state")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    pid = int(child.stdout.readline())
    os.kill(pid, 0)
    child.kill()
    child.wait(10)
    child.stdout.close()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            break
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if stat == "Z":  # nobody of ours is left to reap it
            break
        time.sleep(0.02)
    else:
        pytest.fail(f"ovsdb-server {pid} outlived its controller")
    # And the next controller starts at once on the same directory.
    server = EmbeddedServer(tmp_path / "state")
    server.start()
    server.stop()


def test_decisions_have_one_text() -> None:
    decision = Decision(Outcome(True, frozenset({"x", "y"})), ("a", "b"), ((Place("f", 1, 2), "t"),))
    assert decision_from_text(decision_to_text(decision)) == decision
    with pytest.raises(StoreError):
        decision_from_text('{"s": 1}')


# --- several controllers on one store -------------------------------------------------------------------------------

Pair = tuple[Store, Store]


@pytest.fixture(params=["ovsdb", "memory"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """The same store as two controllers, a and b, see it."""
    if request.param == "memory":
        memory = MemoryStore("a")
        yield memory, memory.another("b")
        return
    server: EmbeddedServer = request.getfixturevalue("server")
    a, b = OvsdbStore(server.remote, name="a"), OvsdbStore(server.remote, name="b")
    yield a, b
    a.close()
    b.close()


def seen(feed: Feed, until: Callable[[list[Event]], bool]) -> list[Event]:
    """What a feed says of anything but controllers' beats, until that is enough."""
    found: list[Event] = []
    deadline = soon()
    while not until(found):
        assert time.monotonic() < deadline, found
        found += [
            event
            for event in feed.take(0.2)
            if not (isinstance(event, Put) and not isinstance(event.row, AttemptRow | NodeRow | MasterRow))
        ]
    return found


def test_a_feed_says_each_change_of_others_once_and_none_of_ones_own(pair: Pair) -> None:
    a, b = pair
    a.write([PutAttempt(row(1))]).wait(soon())
    feed = b.watch()
    assert feed.snapshot.attempts == (row(1),)
    b.write([PutAttempt(row(9))]).wait(soon())
    b.write([DropAttempt(row(9).id)]).wait(soon())
    for change in (
        PutAttempt(row(2)),
        PutAttempt(row(2, identity=8)),
        PutAttempt(row(3, leaving=("g1", "g2"))),
        PutAttempt(row(3, leaving=("g2",))),
        DropAttempt(row(3).id),
        DropAttempt(row(1).id),
        PutMaster(MasterRow("br1", "a", 1), None),
    ):
        a.write([change]).wait(soon())
    assert seen(feed, lambda found: len(found) >= 7) == [
        Put(row(2)),
        Put(row(2, identity=8)),
        Put(row(3, leaving=("g1", "g2"))),
        Put(row(3, leaving=("g2",))),
        Gone("Attempt", row(3).id),
        Gone("Attempt", row(1).id),
        Put(MasterRow("br1", "a", 1)),
    ]
    feed.close()
    with pytest.raises(StoreError, match="closed"):
        feed.take(0)


def test_of_two_who_replace_the_same_row_one_succeeds(pair: Pair) -> None:
    a, b = pair
    one = row(1)
    a.write([PutAttempt(one, before=None)]).wait(soon())
    with pytest.raises(StoreConflict):
        b.write([PutAttempt(row(2, id=one.id), before=None)]).wait(soon())
    with pytest.raises(StoreConflict):
        b.write([PutAttempt(row(1, identity=9), before=row(1, identity=8))]).wait(soon())
    with pytest.raises(StoreConflict):
        b.write([DropAttempt(one.id, before=row(1, identity=8))]).wait(soon())
    assert b.load().attempts == (one,)
    # The controls: the same three with what is there.
    b.write([PutAttempt(row(1, identity=9), before=one)]).wait(soon())
    a.write([DropAttempt(one.id, before=row(1, identity=9))]).wait(soon())
    b.write([PutAttempt(row(2, id=one.id), before=None)]).wait(soon())
    assert a.load().attempts == (row(2, id=one.id),)


def test_a_conflict_changes_nothing_of_its_write_and_all_of_the_others(pair: Pair) -> None:
    a, b = pair
    a.write([PutAttempt(row(1))]).wait(soon())
    wrong = [PutAttempt(row(2)), PutAttempt(row(1, identity=5), before=row(1, identity=4)), PutAttempt(row(3))]
    writes = [b.write([PutAttempt(row(4))]), b.write(wrong), b.write([PutAttempt(row(5))])]
    writes[0].wait(soon())
    writes[2].wait(soon())
    with pytest.raises(StoreConflict):
        writes[1].wait(soon())
    assert sorted(found.number for found in a.load().attempts) == [1, 4, 5]


def test_a_bridge_has_one_master_and_its_generation_only_grows(pair: Pair) -> None:
    a, b = pair
    first = MasterRow("br1", "a", 1)
    a.write([PutMaster(first, None)]).wait(soon())
    with pytest.raises(StoreConflict):
        b.write([PutMaster(MasterRow("br1", "b", 1), None)]).wait(soon())
    b.write([PutMaster(MasterRow("br1", "b", 2), first)]).wait(soon())
    with pytest.raises(StoreConflict):
        a.write([PutMaster(MasterRow("br1", "a", 2), first)]).wait(soon())
    assert a.load().masters == (MasterRow("br1", "b", 2),)


def test_of_many_who_want_a_bridge_exactly_one_gets_each_generation(server: EmbeddedServer) -> None:
    stores = [OvsdbStore(server.remote, name=f"c{n}") for n in range(4)]
    won: list[MasterRow] = []

    def compete(store: OvsdbStore) -> None:
        for _ in range(15):
            masters = store.load().masters
            before = masters[0] if masters else None
            after = MasterRow("br1", str(store.name), before.generation + 1 if before else 1)
            try:
                store.write([PutMaster(after, before)]).wait(soon())
            except StoreConflict:
                continue
            won.append(after)

    threads = [threading.Thread(target=compete, args=[store]) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stores[0].load().masters[0].generation == len(won) >= 15
    assert sorted(one.generation for one in won) == list(range(1, len(won) + 1))
    for store in stores:
        store.close()


def test_a_controller_that_was_given_up_writes_nothing_more(pair: Pair) -> None:
    a, b = pair
    a.write([PutAttempt(row(1))]).wait(soon())

    def beat() -> int:
        return next(found.beat for found in b.load().controllers if found.name == "a")

    seen_beat = beat()
    a.write([]).wait(soon())
    assert beat() > seen_beat, "a write of nothing is a heartbeat"
    # It has given a sign of life since: it is not to be given up.
    with pytest.raises(StoreConflict):
        b.write([DropController("a", seen_beat)]).wait(soon())
    a.write([PutAttempt(row(2))]).wait(soon())
    assert a.fenced is None
    take_over = [DropController("a", beat()), PutMaster(MasterRow("br1", "b", 1), None)]
    b.write(take_over).wait(soon())
    for change in (PutAttempt(row(3)), DropAttempt(row(1).id)):
        with pytest.raises(StoreFenced):
            a.write([change]).wait(soon())
    with pytest.raises(StoreFenced):
        a.reserve(Kind.ATTEMPT, 1)
    assert a.fenced is not None
    assert sorted(found.number for found in b.load().attempts) == [1, 2]
    b.write([PutAttempt(row(3))]).wait(soon())
    assert b.fenced is None


def test_a_second_controller_of_the_same_name_fences_the_first(server: EmbeddedServer) -> None:
    first = OvsdbStore(server.remote, name="a")
    second = OvsdbStore(server.remote, name="a")
    with pytest.raises(StoreFenced, match="name of its own"):
        first.write([PutAttempt(row(1))]).wait(soon())
    second.write([PutAttempt(row(1))]).wait(soon())
    first.close()
    second.write([PutAttempt(row(2))]).wait(soon())  # and the first one's good-bye does not take the second's row
    second.close()


def test_who_ends_in_order_says_good_bye_and_who_only_reads_is_not_seen(server: EmbeddedServer) -> None:
    a, reader = OvsdbStore(server.remote, name="a"), OvsdbStore(server.remote, name=None)
    assert [found.name for found in reader.load().controllers] == ["a"]
    with pytest.raises(StoreError, match="only reads"):
        reader.write([PutAttempt(row(1))])
    a.close()
    assert reader.load().controllers == ()
    reader.close()


def test_a_feed_that_lost_its_connection_says_how_things_are_now(server: EmbeddedServer, tmp_path: Path) -> None:
    a = OvsdbStore(server.remote, name="a")
    with Relay(server.remote, tmp_path / "relay") as relay:
        b = OvsdbStore(relay.remote, name="b")
        a.write([PutAttempt(row(n)) for n in (1, 2, 3)]).wait(soon())
        feed = b.watch()
        assert len(feed.snapshot.attempts) == 3
        relay.down()
        a.write([PutAttempt(row(1, identity=8)), DropAttempt(row(2).id), PutAttempt(row(4))]).wait(soon())
        a.write([PutAttempt(row(5))]).wait(soon())
        a.write([DropAttempt(row(5).id)]).wait(soon())
        relay.up()
        found = seen(feed, lambda found: len(found) >= 3)
        gone = [event for event in found if isinstance(event, Gone)]
        put = {
            event.row.id: event.row for event in found if isinstance(event, Put) and isinstance(event.row, AttemptRow)
        }
        # Nothing of row 3, which did not change, nor of row 5, which came and went.
        assert gone == [Gone("Attempt", row(2).id)]
        assert put == {one.id: one for one in (row(1, identity=8), row(4))}
        assert len(found) == 3
        b.close()
    a.close()


# --- writes whose answer is lost ------------------------------------------------------------------------------------


class Relay:
    """Between store and server, on a socket of its own; can lose answers, or requests, and be down."""

    def __init__(self, remote: str, path: Path) -> None:
        self._server = remote.removeprefix("unix:")
        self._path = path
        self.remote = f"unix:{path}"
        self.lose = ""
        self.lost = 0
        self._listener: socket.socket | None = None
        self._open: list[socket.socket] = []

    def __enter__(self) -> Relay:
        self.up()
        return self

    def __exit__(self, *exc: object) -> None:
        self.down()

    def up(self) -> None:
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._listener.listen()
        threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def down(self) -> None:
        self._path.unlink(missing_ok=True)
        assert self._listener is not None
        for one in (self._listener, *self._open):
            with_shutdown(one)
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._server)
            self._open += [client, server]
            for source, sink, what in ((client, server, "request"), (server, client, "answer")):
                threading.Thread(target=self._pump, args=[source, sink, what], daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, what: str) -> None:
        try:
            while data := source.recv(1 << 20):
                if self.lose == what and (b'"transact"' in data or b'"result":[{' in data):
                    self.lose = ""
                    self.lost += 1
                    break
                sink.sendall(data)
        except OSError:
            pass
        with_shutdown(source)
        with_shutdown(sink)


def with_shutdown(one: socket.socket) -> None:
    try:
        one.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    one.close()


@pytest.mark.parametrize("lose", ["request", "answer"])
def test_a_write_whose_answer_is_lost_takes_place_once(server: EmbeddedServer, tmp_path: Path, lose: str) -> None:
    with Relay(server.remote, tmp_path / "relay") as relay:
        store = OvsdbStore(relay.remote, name="a")
        other = OvsdbStore(server.remote, name="b")

        def beat() -> int:
            return next(found.beat for found in other.load().controllers if found.name == "a")

        before, numbers = beat(), []
        for n in range(1, 4):
            relay.lose = lose
            # `before=None`: taking place twice would be a conflict with itself.
            store.write([PutAttempt(row(n), before=None)]).wait(soon())
            relay.lose = lose
            numbers.append(store.reserve(Kind.ATTEMPT, 10))
        assert relay.lost == 6
        assert sorted(found.number for found in other.load().attempts) == [1, 2, 3]
        assert numbers == [1, 11, 21]
        assert beat() == before + 6
        store.close()
        other.close()


def test_a_late_write_does_not_undo_what_another_has_done(server: EmbeddedServer, tmp_path: Path) -> None:
    """A controller without a connection is given up; what it still meant to write is never written."""
    with Relay(server.remote, tmp_path / "relay") as relay:
        slow = OvsdbStore(relay.remote, name="slow")
        other = OvsdbStore(server.remote, name="other")
        slow.write([PutAttempt(row(1))]).wait(soon())
        relay.down()
        late = slow.write([DropAttempt(row(1).id)])
        beat = next(found.beat for found in other.load().controllers if found.name == "slow")
        other.write([DropController("slow", beat), PutAttempt(row(1, identity=3))]).wait(soon())
        relay.up()
        with pytest.raises(StoreFenced):
            late.wait(soon())
        assert other.load().attempts == (row(1, identity=3),)
        slow.close()
        other.close()


def test_a_write_that_nobody_waits_for_any_more_is_withdrawn(server: EmbeddedServer, tmp_path: Path) -> None:
    with Relay(server.remote, tmp_path / "relay") as relay:
        store = OvsdbStore(relay.remote, name="a")
        store.write([PutAttempt(row(1))]).wait(soon())
        relay.down()
        with pytest.raises(StoreError, match="withdrawn"):
            deadline = time.monotonic() + 0.5
            while True:  # the first may still count as sent
                store.write([PutAttempt(row(2))]).wait(deadline)
        kept = store.write([PutAttempt(row(3))])
        relay.up()
        kept.wait(soon())
        assert 2 not in [found.number for found in store.load().attempts]
        assert store.trouble is None
        store.close()


# --- what a server says ---------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.integers() | st.text() | st.text('"\\{}[]\nx'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@pytest.mark.parametrize("long", [1, 4096])
@given(messages=st.lists(st.dictionaries(st.text(), JSON), max_size=5), cuts=st.lists(st.integers(0, 400)))
def test_messages_come_whole_however_the_stream_is_cut(
    long: int, messages: list[dict[str, object]], cuts: list[int]
) -> None:
    stream = b"".join(json.dumps(message, ensure_ascii=False).encode() for message in messages)
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    framer, found = Framer(long), []
    for begin, end in itertools.pairwise(places):
        found += framer.feed(stream[begin:end])
    assert found == messages


def test_nonsense_ends_the_connection() -> None:
    with pytest.raises(Lost):
        Framer().feed(b"{nonsense}")


def test_remotes() -> None:
    assert (parse_remote("ssl:[2001:db8::1]:6643").host, parse_remote("tcp:127.0.0.1:1").loopback) == (
        "2001:db8::1",
        True,
    )
    for bad in ("", "unix:", "tcp:host:1", "ssl:192.0.2.1", "ssl:192.0.2.1:0", "ptcp:1:192.0.2.1", "udp:192.0.2.1:1"):
        with pytest.raises(ValueError, match=r".+"):
            parse_remote(bad)


def test_one_member_of_a_set_has_one_fingerprint_in_either_form() -> None:
    base = {
        "id": "x",
        "number": 1,
        "identity": 1,
        "slice": 0,
        "share": 0,
        "spec": "",
        "decision": "",
        "digest": "",
        "registered": 1,
        "awaits": ["set", []],
    }
    assert fingerprint("Attempt", {**base, "leaving": "g"}) == fingerprint(
        "Attempt", {**base, "leaving": ["set", ["g"]]}
    )
    assert fingerprint("Attempt", {**base, "leaving": "g"}) != fingerprint("Attempt", {**base, "leaving": ["set", []]})


# --- older and newer databases, back-ups ----------------------------------------------------------------------------

SCHEMAS = downgrade.RELEASED
OLD = SCHEMAS / "lark-1.1.0.ovsschema"


def make_database(path: Path, schema: Path, *operations: dict[str, object]) -> None:
    path.parent.mkdir(exist_ok=True)
    subprocess.run(["ovsdb-tool", "create", str(path), str(schema)], check=True)
    said = subprocess.run(
        ["ovsdb-tool", "transact", str(path), json.dumps(["Lark", *operations])],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "error" not in said, said


def settings(tmp_path: Path) -> StoreSettings:
    return StoreSettings(state_dir=tmp_path / "state", servers=(), name="ctl", api="", tls=None)


def test_an_older_database_is_converted_and_kept(tmp_path: Path) -> None:
    db = tmp_path / "state" / "lark.db"
    make_database(
        db, OLD, {"op": "insert", "table": "Number", "row": {"kind": "service", "name": "fileserver", "number": 3}}
    )
    opened = OpenStore(settings(tmp_path))
    store = opened.open()
    assert dict(store.load().numbers) == {(Kind.SERVICE, "fileserver"): 3}
    store.write([PutMaster(MasterRow("br1", "ctl", 1), None)]).wait(soon())  # a table that is new
    opened.close()
    said = [
        subprocess.run(
            ["ovsdb-tool", "db-version", str(path)], check=True, capture_output=True, text=True
        ).stdout.strip()
        for path in (db, db.with_name("lark.db.schema-1.1.0"))
    ]
    assert said == [VERSION, "1.1.0"]


def test_attempts_of_a_store_that_numbered_no_shares_are_read_and_can_be_written(tmp_path: Path) -> None:
    db = tmp_path / "state" / "lark.db"
    then = row(3, decision=Decision(Outcome(False, frozenset()), (), (), share=Sharing("alice", Bandwidth(percent=10))))
    columns = planned(PutAttempt(then))[1]
    assert columns is not None
    del columns["share"]
    make_database(db, SCHEMAS / "lark-1.3.0.ovsschema", {"op": "insert", "table": "Attempt", "row": columns})
    opened = OpenStore(settings(tmp_path))
    store = opened.open()
    assert store.load().attempts == (then,)
    now = replace(then, share_number=store.reserve(Kind.SHARE, 1))
    store.write([PutAttempt(now, then)]).wait(soon())
    assert store.load().attempts == (now,) != (then,)
    opened.close()


def test_an_earlier_version_can_be_installed_again(tmp_path: Path) -> None:
    config = settings(tmp_path)
    with pytest.raises(StoreError, match="no state directory"):
        downgrade.downgrade(config, "1.3.0")
    opened = OpenStore(config)
    store = opened.open()
    sharing = Decision(Outcome(False, frozenset()), (), (), share=Sharing("alice", Bandwidth(percent=10)))
    now = row(1, decision=sharing, share_number=store.reserve(Kind.SHARE, 1))
    store.write([PutAttempt(now), PutMaster(MasterRow("br1", "ctl", 1), None)]).wait(soon())
    number = store.reserve(Kind.ATTEMPT, 1000)
    with pytest.raises(StoreError, match="stop it first"):
        downgrade.downgrade(config, "1.3.0")
    opened.close()
    with pytest.raises(StoreError, match=r"no earlier schema 1\.9\.0, but 1\.3\.0, 1\.2\.0"):
        downgrade.downgrade(config, "1.9.0")
    db = tmp_path / "state" / "lark.db"
    said = downgrade.downgrade(config, "1.3.0")
    assert "to 1.3.0" in said
    assert f"lark.db.schema-{VERSION}" in said
    tool = ["ovsdb-tool", "needs-conversion", str(db), str(SCHEMAS / "lark-1.3.0.ovsschema")]
    assert subprocess.run(tool, check=True, capture_output=True, text=True).stdout.strip() == "no"
    assert "already" in downgrade.downgrade(config, "1.3.0")
    # And forward again: all is there but what the earlier version has no room for.
    store = opened.open()
    assert store.load().attempts == (replace(now, share_number=0),)
    assert store.load().masters[0].bridge == "br1"
    assert store.reserve(Kind.ATTEMPT, 1) > number
    opened.close()


def test_every_earlier_schema_can_be_gone_back_to(tmp_path: Path) -> None:
    assert downgrade.versions()[0] == max(downgrade.versions(), key=lambda found: [int(n) for n in found.split(".")])
    for version in downgrade.versions():
        config = settings(tmp_path / version)
        (tmp_path / version).mkdir()
        opened = OpenStore(config)
        store = opened.open()
        for kind in Kind:
            store.reserve(kind, 10)
        store.write([PutAttempt(row(1))]).wait(soon())
        opened.close()
        assert f"to {version}" in downgrade.downgrade(config, version)
        assert opened.open().load().attempts == (row(1),)
        opened.close()


def newer_schema(tmp_path: Path) -> Path:
    content = json.loads(SCHEMA.read_text())
    content["version"] = "1.1000.0"
    content["tables"]["Node"]["columns"]["later"] = {"type": "string"}
    path = tmp_path / "newer.ovsschema"
    path.write_text(json.dumps(content))
    return path


def test_a_newer_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    db = tmp_path / "state" / "lark.db"
    make_database(
        db, newer_schema(tmp_path), {"op": "insert", "table": "Node", "row": {"name": "n", "spec": "", "later": "yes"}}
    )
    before = db.read_bytes()
    with pytest.raises(StoreError, match=r"schema 1\.1000\.0, which is newer than this lark-controller's"):
        OpenStore(settings(tmp_path)).open()
    assert db.read_bytes() == before
    assert is_older("1.1.0", "x")
    assert not is_older(VERSION, "x")


def test_released_schemas_are_never_changed_in_place() -> None:
    """Whoever changes the schema gives it another version, and keeps the one before here."""
    kept = {json.loads(path.read_text())["version"]: path for path in SCHEMAS.glob("*.ovsschema")}
    assert VERSION not in kept or json.loads(kept[VERSION].read_text()) == json.loads(SCHEMA.read_text())
    assert all(is_older(version, "x") for version in kept if version != VERSION)


def test_back_up_and_restore(tmp_path: Path) -> None:
    config = settings(tmp_path)
    opened = OpenStore(config)
    store = opened.open()
    store.write([PutAttempt(row(1)), PutMaster(MasterRow("br1", "ctl", 1), None)]).wait(soon())
    number = store.reserve(Kind.ATTEMPT, 1000)
    file = tmp_path / "backup"
    assert "running" in backup.backup(config, file, force=False)
    store.write([PutAttempt(row(2))]).wait(soon())
    given_later = store.reserve(Kind.ATTEMPT, 1000)
    with pytest.raises(StoreError, match="--force"):
        backup.backup(config, file, force=False)
    with pytest.raises(StoreError, match="stop it first"):
        backup.restore(config, file, force=True)
    opened.close()
    assert "running" not in backup.backup(config, tmp_path / "cold", force=False)
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(StoreError, match="--force"):
        backup.restore(config, file, force=False)
    backup.restore(config, file, force=True)
    store = opened.open()
    assert store.load().attempts == (row(1),)
    assert store.reserve(Kind.ATTEMPT, 1) > given_later > number, "a number given after the back-up is not given again"
    assert store.load().masters[0].generation > 1
    opened.close()
    # What a restore replaced is still there.
    backup.restore(config, tmp_path / "state" / "lark.db.before-restore", force=True)
    store = opened.open()
    assert sorted(found.number for found in store.load().attempts) == [1, 2]
    opened.close()


def test_only_a_back_up_of_ours_is_restored(tmp_path: Path) -> None:
    config = settings(tmp_path)
    opened = OpenStore(config)
    opened.open().write([PutAttempt(row(1))]).wait(soon())
    opened.close()
    for name, content, said in (
        ("text", b"not a database", "text"),
        ("empty", b"", "empty"),
        ("newer", None, "newer than"),
        ("other", None, "not Lark's"),
    ):
        file = tmp_path / name
        if name == "newer":
            make_database(file, newer_schema(tmp_path))
        elif name == "other":
            schema = tmp_path / "other.ovsschema"
            schema.write_text('{"name": "Other", "version": "1.0.0", "tables": {}}')
            subprocess.run(["ovsdb-tool", "create", str(file), str(schema)], check=True)
        else:
            file.write_bytes(content or b"")
        with pytest.raises(StoreError, match=said):
            backup.restore(config, file, force=True)
    assert [found.number for found in opened.open().load().attempts] == [1]
    opened.close()
    # The control: an older one is converted on the way.
    make_database(tmp_path / "older", OLD)
    backup.restore(config, tmp_path / "older", force=True)
    assert opened.open().load().attempts == ()
    opened.close()


def test_every_column_is_documented() -> None:
    schema = json.loads((ROOT / "ryu_apps" / "store" / "lark.ovsschema").read_text())
    page = (ROOT / "docs" / "store.md").read_text()
    sections = dict(part.split("\n", 1) for part in page.split("\n## ")[1:])
    assert set(sections) == set(schema["tables"])
    for table, spec in schema["tables"].items():
        rows = {line.split("`")[1] for line in sections[table].splitlines() if line.startswith("| `")}
        assert rows == set(spec["columns"]), table


def test_a_database_of_this_schema_is_known_by_its_first_words(tmp_path: Path) -> None:
    db, other = tmp_path / "lark.db", tmp_path / "other.db"
    prepare_file(db)
    assert _is_ours(db)
    older = json.loads(SCHEMA.read_bytes())
    older["tables"]["Attempt"]["columns"].pop("digest")
    (tmp_path / "older").write_text(json.dumps(older))
    run_tool([find_tool("ovsdb-tool"), "create", str(other), str(tmp_path / "older")])
    assert not _is_ours(other)
    for spoilt in (b"", b"OVSDB CLUSTER 5 x\n{}", b"OVSDB JSON x y\n", db.read_bytes()[:300]):
        other.write_bytes(spoilt)
        assert not _is_ours(other)
