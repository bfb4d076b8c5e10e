"""The store keeps its promises: what was confirmed is there after a crash, numbers are never given twice.

Runs against a real `ovsdb-server` (the daemon's own) and, where the promise is the protocol's, the memory fake too.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from policies.model import Decision, Outcome, Place
from policies.wire import AttemptSpec, NodeSpec, Phase, PortSpec
from ryu_apps.store.blocks import NumberBlock
from ryu_apps.store.memory import MemoryStore
from ryu_apps.store.ovsdb import OvsdbStore
from ryu_apps.store.server import EmbeddedServer
from ryu_apps.store.store import (
    AttemptRow,
    DropAttempt,
    Kind,
    NodeRow,
    PutAttempt,
    PutNode,
    PutNumber,
    Store,
    StoreError,
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


def test_every_column_is_documented() -> None:
    schema = json.loads((ROOT / "ryu_apps" / "store" / "lark.ovsschema").read_text())
    page = (ROOT / "docs" / "store.md").read_text()
    sections = dict(part.split("\n", 1) for part in page.split("\n## ")[1:])
    assert set(sections) == set(schema["tables"])
    for table, spec in schema["tables"].items():
        rows = {line.split("`")[1] for line in sections[table].splitlines() if line.startswith("| `")}
        assert rows == set(spec["columns"]), table
