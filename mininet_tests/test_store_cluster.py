"""The store on a Raft cluster of three real servers: killed, stopped, restored, and used by the real controller."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mininet_tests.store_rig import StoreCluster, attempt, command, make_ca, make_certificate
from mininet_tests.switch_rig import ROOT, wait_until
from mininet_tests.test_controller_life import Daemon, node_spec
from policies.wire import Phase
from ryu_apps.store.ovsdb import OvsdbStore
from ryu_apps.store.store import (
    AttemptRow,
    DropAttempt,
    Gone,
    Kind,
    MasterRow,
    Put,
    PutAttempt,
    PutMaster,
    StoreConflict,
    StoreError,
)

pytestmark = pytest.mark.system


@pytest.fixture
def cluster() -> Iterator[StoreCluster]:
    with StoreCluster() as made:
        yield made


def churn(store: OvsdbStore, seconds: float, rate: float) -> tuple[dict[str, AttemptRow | None], set[str], float]:
    """Registrations, phase changes and ends at a steady rate; what was acknowledged of each attempt, those of which
    something is not known, and the longest time without an acknowledgement."""
    state: dict[str, AttemptRow | None] = {}
    unsure: set[str] = set()
    acknowledged: list[float] = [time.monotonic()]
    lock = threading.Lock()
    numbers = itertools.count(1)
    until = time.monotonic() + seconds

    def live() -> None:
        while time.monotonic() < until:
            n = next(numbers)
            row, later = attempt(n, Phase.STAGE_IN), attempt(n)
            steps: list[tuple[PutAttempt | DropAttempt, AttemptRow | None]] = [
                (PutAttempt(row, before=None), row),
                (PutAttempt(later, before=row), later),
            ]
            if n % 2:
                steps.append((DropAttempt(row.id, before=later), None))
            for change, leaves in steps:
                try:
                    store.write([change]).wait(time.monotonic() + 20)
                except StoreConflict:
                    raise AssertionError(f"{row.id}: nobody else writes it, so it took place twice") from None
                except StoreError:
                    with lock:
                        unsure.add(row.id)
                    break
                with lock:
                    state[row.id] = leaves
                    acknowledged.append(time.monotonic())
            time.sleep(1 / rate)

    faults: list[BaseException] = []

    def run() -> None:
        try:
            live()
        except BaseException as fault:  # noqa: BLE001 - told by the test's own thread
            faults.append(fault)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults, faults
    gap = max(later - earlier for earlier, later in itertools.pairwise(sorted(acknowledged)))
    return state, unsure, gap


def stored(store: OvsdbStore) -> dict[str, AttemptRow]:
    return {row.id: row for row in store.load().attempts}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_the_leader_is_lost_under_writes_and_nothing_acknowledged_is(
    cluster: StoreCluster, how: signal.Signals
) -> None:
    store = OvsdbStore(cluster.servers, name="a")
    other = OvsdbStore(cluster.servers, name="b")
    feed = other.watch()
    lost: list[int] = []

    def strike() -> None:
        leader = cluster.leader()
        lost.append(leader)
        cluster.kill(leader, how)

    timer = threading.Timer(2.0, strike)
    timer.start()
    state, unsure, gap = churn(store, 14.0 if how is signal.SIGSTOP else 8.0, rate=20)
    timer.join()
    assert lost
    assert cluster.leader() != lost[0]
    print(f"leader {how.name}: {len(state)} attempts acknowledged, {len(unsure)} unsure, longest gap {gap:.1f} s")
    assert unsure == set(), "every write was answered within 20 s"
    assert stored(store) == {id: row for id, row in state.items() if row is not None}
    # Neither did the other controller's feed miss anything, nor hear anything that is not so.
    heard: dict[str, AttemptRow] = {}
    while events := feed.take(1.0):
        for event in events:
            if isinstance(event, Put) and isinstance(event.row, AttemptRow):
                heard[event.row.id] = event.row
            elif isinstance(event, Gone) and event.table == "Attempt":
                del heard[event.key]
        if all(isinstance(event, Put) and not isinstance(event.row, AttemptRow) for event in events):
            break
    assert heard == stored(store)
    assert gap < (15 if how is signal.SIGSTOP else 8)
    # The control: what was lost is a member like the others when it is back.
    if how is signal.SIGSTOP:
        cluster.kill(lost[0], signal.SIGCONT)
    else:
        cluster.start(lost[0])
    deadline = time.monotonic() + 20
    while cluster.role(lost[0]) != "follower":
        assert time.monotonic() < deadline, cluster.status(lost[0])
        time.sleep(0.2)
    store.close()
    other.close()


def test_without_a_majority_nothing_is_acknowledged_and_with_one_it_goes_on(cluster: StoreCluster) -> None:
    store = OvsdbStore(cluster.servers, name="a")
    store.write([PutAttempt(attempt(1))]).wait(time.monotonic() + 5)
    leader = cluster.leader()
    followers = [n for n in (1, 2, 3) if n != leader]
    for n in followers:
        cluster.kill(n)
    with pytest.raises(StoreError) as refused:
        store.write([PutAttempt(attempt(2))]).wait(time.monotonic() + 6)
    print(f"without a majority: {refused.value}")
    with pytest.raises(StoreError):
        store.reserve(Kind.ATTEMPT, 10)
    cluster.start(followers[0])
    store.write([PutAttempt(attempt(3))]).wait(time.monotonic() + 30)
    assert {1, 3} <= {row.number for row in store.load().attempts}
    first = store.reserve(Kind.ATTEMPT, 10)
    assert store.reserve(Kind.ATTEMPT, 10) == first + 10
    store.close()


def test_masters_are_taken_over_once_while_leaders_die(cluster: StoreCluster) -> None:
    """Two controllers fight for a bridge while the store's leader is killed: each generation has one master."""
    stores = [OvsdbStore(cluster.servers, name=name) for name in ("a", "b")]
    won: list[MasterRow] = []
    until = time.monotonic() + 8

    def compete(store: OvsdbStore) -> None:
        while time.monotonic() < until:
            try:
                masters = store.load().masters
                before = masters[0] if masters else None
                after = MasterRow("br1", str(store.name), before.generation + 1 if before else 1)
                store.write([PutMaster(after, before)]).wait(time.monotonic() + 15)
            except StoreConflict:
                continue
            won.append(after)
            time.sleep(0.02)

    threads = [threading.Thread(target=compete, args=[store]) for store in stores]
    for thread in threads:
        thread.start()
    time.sleep(2)
    cluster.kill(cluster.leader())
    for thread in threads:
        thread.join()
    assert sorted(row.generation for row in won) == list(range(1, len(won) + 1))
    assert stores[0].load().masters == (max(won, key=lambda row: row.generation),)
    assert {row.controller for row in won} == {"a", "b"}
    for store in stores:
        store.close()


def test_tls_lets_in_who_has_a_certificate_of_the_stores_ca(tmp_path: Path) -> None:
    with StoreCluster(tls=True) as cluster:
        assert cluster.tls is not None
        mine = make_certificate(cluster.home, "ca", "controller")
        make_ca(cluster.home, "foreign")
        foreign = make_certificate(cluster.home, "foreign", "stranger")
        # Their certificate is not the store's; and the store's is not theirs.
        for tls in (foreign, type(mine)(foreign.private_key, foreign.certificate, mine.ca_certificate), None):
            with pytest.raises(StoreError, match=r"no OVSDB database|certificate"):
                OvsdbStore(cluster.servers, name="x", tls=tls)
        store = OvsdbStore(cluster.servers, name="a", tls=mine)
        store.write([PutAttempt(attempt(n)) for n in range(1, 1001)]).wait(time.monotonic() + 10)
        store.close()
        # The same in a green process, as the controller is one; a large answer comes in many TLS records.
        program = (
            "from ryu_apps import engine\nimport sys, time\nfrom pathlib import Path\n"
            "from ryu_apps.store.jsonrpc import Tls\nfrom ryu_apps.store.ovsdb import OvsdbStore\n"
            "from mininet_tests.store_rig import attempt\nfrom ryu_apps.store.store import PutAttempt\n"
            "store = OvsdbStore(sys.argv[1], name='g', tls=Tls(*map(Path, sys.argv[2:5])))\n"
            "store.write([PutAttempt(attempt(2000))]).wait(time.monotonic() + 10)\n"
            "print(len(store.load().attempts)); store.close()\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, ",".join(cluster.servers), str(mine.private_key), str(mine.certificate),
             str(mine.ca_certificate)],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.stdout.strip() == "1001", done.stderr


def remove(daemon: Daemon) -> None:
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.process.kill()
        daemon.process.wait(10)
    shutil.rmtree(daemon.home, ignore_errors=True)


def controller_yaml(daemon: Daemon, cluster: StoreCluster) -> None:
    path = daemon.home / "controller.yaml"
    path.write_text(
        path.read_text() + "store:\n  mode: cluster\n  name: ctl1\n  servers:\n"
        + "".join(f'    - "{server}"\n' for server in cluster.servers)
    )  # fmt: skip


@pytest.mark.engine
def test_the_controller_on_a_cluster(cluster: StoreCluster) -> None:
    """It starts, stores, goes on without the leader; a second one knows what it knows, and goes on without it."""
    engine = os.environ.get("LARK_TEST_ENGINE", "os-ken")
    first, second = Daemon(engine), Daemon(engine)
    try:
        for daemon in (first, second):
            controller_yaml(daemon, cluster)
        second_file = second.home / "controller.yaml"
        second_file.write_text(second_file.read_text().replace("name: ctl1", "name: ctl2"))
        first.start()
        node = node_spec()
        assert first.call("PUT", "/v1/nodes/wn1", node)[0] == 200
        second.start()
        assert "ready" in second.ready
        cluster.kill(cluster.leader())
        began = time.monotonic()
        node["agent_version"] = "2"
        while first.call("PUT", "/v1/nodes/wn1", node)[0] != 200:
            assert time.monotonic() - began < 20
        print(f"first answer {time.monotonic() - began:.1f} s after the leader's death")
        _, found = first.call("GET", "/v1/nodes", token=first.viewer)
        assert "'agent_version': '2'" in str(found), found
        first.stop(signal.SIGKILL)

        def heard() -> bool:
            return "'agent_version': '2'" in str(second.call("GET", "/v1/nodes", token=second.viewer)[1])

        wait_until("the other one knows", heard, 10)
    finally:
        for daemon in (first, second):
            remove(daemon)


def test_back_up_restore_and_upgrade_of_a_cluster(tmp_path: Path) -> None:
    from ryu_apps.store import schema

    with StoreCluster() as cluster:
        daemon = Daemon(os.environ.get("LARK_TEST_ENGINE", "os-ken"))
        try:
            controller_yaml(daemon, cluster)
            config = ["--config", str(daemon.home / "controller.yaml")]
            store = OvsdbStore(cluster.servers, name="a")
            store.write([PutAttempt(attempt(1))]).wait(time.monotonic() + 5)
            given = store.reserve(Kind.ATTEMPT, 5)
            file = tmp_path / "backup"
            done = command("store", "backup", *config, str(file))
            assert done.returncode == 0, done.stderr
            store.write([PutAttempt(attempt(2))]).wait(time.monotonic() + 5)
            beating = threading.Event()

            def beat(store: OvsdbStore = store) -> None:
                while not beating.wait(0.5):
                    store.beat()

            heart = threading.Thread(target=beat)
            heart.start()
            done = command("store", "restore", "--force", *config, str(file))
            assert done.returncode == 1
            assert "lives and uses the store; stop it first" in done.stderr
            beating.set()
            heart.join()
            store.close()
            done = command("store", "restore", *config, str(file))
            assert done.returncode == 1
            assert "--force" in done.stderr
            done = command("store", "restore", "--force", *config, str(file))
            assert done.returncode == 0, done.stderr
            assert (tmp_path / "backup.before-restore").exists()
            store = OvsdbStore(cluster.servers, name="a")
            assert [row.number for row in store.load().attempts] == [1]
            assert store.reserve(Kind.ATTEMPT, 5) > given + 5
            assert (
                command("store", "upgrade", *config).stdout.strip()
                == f"the cluster has schema {schema.VERSION} already"
            )
            # A schema that only has more is one under which a running controller goes on, and no new one starts.
            newer = tmp_path / "newer.ovsschema"
            newer.write_text(
                schema.SCHEMA.read_text().replace(f'"version": "{schema.VERSION}"', '"version": "1.1000.0"')
            )
            subprocess.run(
                ["ovsdb-client", "--timeout=10", "convert", ",".join(cluster.servers), str(newer)], check=True
            )
            store.write([PutAttempt(attempt(3))]).wait(time.monotonic() + 15)
            with pytest.raises(StoreError, match="newer than this lark-controller"):
                OvsdbStore(cluster.servers, name="b")
            store.close()
        finally:
            remove(daemon)


def test_an_older_cluster_is_named_and_upgraded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ryu_apps.store import schema

    with StoreCluster() as cluster:
        older = ROOT / "ryu_apps/store/released/lark-1.1.0.ovsschema"
        # ovsdb-client converts in either direction: that is why Lark looks at the version itself.
        subprocess.run(["ovsdb-client", "--timeout=10", "convert", ",".join(cluster.servers), str(older)], check=True)
        with pytest.raises(StoreError, match="lark-controller store upgrade"):
            OvsdbStore(cluster.servers, name="a")
        daemon = Daemon(os.environ.get("LARK_TEST_ENGINE", "os-ken"))
        try:
            controller_yaml(daemon, cluster)
            done = command("store", "upgrade", "--config", str(daemon.home / "controller.yaml"))
            assert done.stdout.strip() == f"converted the cluster from schema 1.1.0 to {schema.VERSION}", done.stderr
        finally:
            remove(daemon)
        store = OvsdbStore(cluster.servers, name="a")
        store.write([PutMaster(MasterRow("br1", "a", 1), None)]).wait(time.monotonic() + 5)
        store.close()


def test_a_cluster_goes_back_to_an_earlier_schema_when_no_controller_lives(tmp_path: Path) -> None:
    from ryu_apps.store import schema

    with StoreCluster() as cluster:
        store = OvsdbStore(cluster.servers, name="a")
        store.write([PutAttempt(attempt(1))]).wait(time.monotonic() + 15)
        store.reserve(Kind.SHARE, 10)
        daemon = Daemon(os.environ.get("LARK_TEST_ENGINE", "os-ken"))
        try:
            controller_yaml(daemon, cluster)
            config = str(daemon.home / "controller.yaml")
            beating, over = threading.Event(), threading.Event()

            def beat() -> None:
                while not over.wait(0.3):
                    store.beat()
                    beating.set()

            alive = threading.Thread(target=beat)
            alive.start()
            assert beating.wait(10)
            refused = command("store", "downgrade", "--config", config, "1.3.0")
            assert refused.returncode == 1
            assert "stop every controller first" in refused.stderr
            over.set()
            alive.join()
            store.write([PutAttempt(attempt(2))]).wait(time.monotonic() + 15)
            store.close()
            done = command("store", "downgrade", "--config", config, "1.3.0")
            assert done.stdout.strip() == f"converted the cluster from schema {schema.VERSION} to 1.3.0", done.stderr
            assert "already" in command("store", "downgrade", "--config", config, "1.3.0").stdout
            done = command("store", "upgrade", "--config", config)
            assert done.stdout.strip() == f"converted the cluster from schema 1.3.0 to {schema.VERSION}", done.stderr
        finally:
            remove(daemon)
        store = OvsdbStore(cluster.servers, name="a")
        assert sorted(row.number for row in store.load().attempts) == [1, 2]
        store.close()
