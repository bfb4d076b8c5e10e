"""The store's disk fills up, on a small file system of its own: refused with a reason, until there is room again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mininet_tests.store_rig import StoreCluster, attempt
from mininet_tests.switch_rig import DummySwitch, wait_until
from mininet_tests.test_controller_life import (
    ATTEMPT,
    WORKER,
    Daemon,
    attempt_id,
    flows_of,
    node_spec,
)
from mininet_tests.test_controller_life import attempt as registration
from ryu_apps.store.opening import OpenStore, StoreSettings
from ryu_apps.store.ovsdb import OvsdbStore
from ryu_apps.store.store import Kind, PutAttempt, StoreError

pytestmark = pytest.mark.system
SIZE = 2 * 1024 * 1024


class SmallDisk:
    """A tmpfs of 2 MB."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "lkst-small", str(path)], check=True)

    def fill(self) -> None:
        with (self.path / "fill").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                pass

    def free(self) -> None:
        (self.path / "fill").unlink()

    def remove(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)


@pytest.fixture
def disk() -> Iterator[SmallDisk]:
    home = Path(tempfile.mkdtemp(prefix="lkst-"))
    small = SmallDisk(home / "disk")
    try:
        yield small
    finally:
        small.remove()
        shutil.rmtree(home, ignore_errors=True)


def soon() -> float:
    return time.monotonic() + 15


def test_a_full_disk_is_named_and_nothing_acknowledged_is_lost(disk: SmallDisk) -> None:
    opened = OpenStore(StoreSettings(state_dir=disk.path / "state", servers=(), name="a", api="", tls=None))
    store = opened.open()
    acknowledged, refused = [], []

    def write(n: int) -> None:
        try:
            store.write([PutAttempt(attempt(n))]).wait(soon())
            acknowledged.append(n)
        except StoreError as problem:
            refused.append(str(problem))

    write(1)
    assert acknowledged == [1]
    disk.fill()
    for n in range(2, 40):  # the last page of the file has room for a few
        write(n)
    assert len(refused) > 20
    assert all("disk" in text and "No space left on device" in text and "make room" in text for text in refused)
    given = []
    with pytest.raises(StoreError, match="make room"):
        while True:  # it is smaller, so some may still fit
            given.append(store.reserve(Kind.ATTEMPT, 10))
    # A burst, which shares transactions: each is refused, and at once.
    began = time.monotonic()
    burst = [store.write([PutAttempt(attempt(n))]) for n in range(100, 300)]
    for pending in burst:
        with pytest.raises(StoreError, match="make room"):
            pending.wait(soon())
    assert time.monotonic() - began < 5
    # The server dies in the middle of it, and comes back to a file with half a record at its end.
    server = opened._server
    assert server is not None
    assert server.pid is not None
    pid = server.pid
    os.kill(pid, signal.SIGKILL)

    def is_back() -> bool:
        opened.look_after()
        return store.trouble is None and server.pid not in (None, pid)

    wait_until("the server is there again", is_back, 15)
    assert sorted(row.number for row in store.load().attempts) == acknowledged
    disk.free()
    assert store.reserve(Kind.ATTEMPT, 10) == 1 + 10 * len(given)
    before = len(refused)
    for n in range(40, 60):
        write(n)
    assert len(refused) == before
    assert sorted(row.number for row in store.load().attempts) == acknowledged
    opened.close()
    store = opened.open()
    assert sorted(row.number for row in store.load().attempts) == acknowledged
    opened.close()


def test_a_full_disk_refuses_new_jobs_leaves_the_running_alone_and_ends_by_itself(disk: SmallDisk) -> None:
    daemon, switch = Daemon(os.environ.get("LARK_TEST_ENGINE", "os-ken")), DummySwitch()
    try:
        config = daemon.home / "controller.yaml"
        config.write_text(config.read_text().replace("state-dir: state", f"state-dir: {disk.path}/state"))
        switch.start()
        daemon.start()
        switch.bridge(WORKER, 0x00006C6B6E620001, ("127.0.0.1", daemon.openflow))
        for port, number in (("lknb-up", 1), ("lj2", 12), ("lj3", 13)):
            switch.vsctl(
                "add-port", WORKER, port, "--", "set", "interface", port, "type=dummy", f"ofport_request={number}"
            )
        wait_until("the bridge is in line", lambda: bool(daemon.bridge(WORKER)["converged"]), 15)
        assert daemon.call("PUT", "/v1/nodes/wn1", node_spec())[0] == 200
        # Not granted anything, so its worker bridge is all that it needs.
        plain = {"Owner": "alice"}
        assert daemon.call("PUT", f"/v1/attempts/{attempt_id(2)}", registration(2, 12, **plain))[0] == 201
        old = flows_of(switch, WORKER, ATTEMPT)
        disk.fill()

        def refused() -> bool:
            status, answer = daemon.call("PUT", f"/v1/attempts/{attempt_id(3)}", registration(3, 13, **plain))
            if status == 201:
                daemon.call("DELETE", f"/v1/attempts/{attempt_id(3)}")
                return False
            assert status == 503, answer
            assert "make room" in answer["detail"], answer
            assert answer["type"].endswith("not-realised")
            return True

        wait_until("a registration is refused", refused, 20)
        assert flows_of(switch, WORKER, ATTEMPT) == old, "the refused one has nothing, the running one all it had"
        # It ends while the disk is full: its network goes at once, its row when there is room.
        daemon.call("DELETE", f"/v1/attempts/{attempt_id(2)}")
        wait_until("its flows are gone", lambda: not flows_of(switch, WORKER, ATTEMPT))
        assert refused()
        assert daemon.process is not None
        assert daemon.process.poll() is None
        disk.free()
        began = time.monotonic()
        wait_until(
            "registrations are taken again, on the same address too",
            lambda: (
                daemon.call("PUT", f"/v1/attempts/{attempt_id(3)}", registration(3, 13, **plain))[0] in (200, 201)
                and daemon.call("PUT", "/v1/attempts/wn1~3f2a9c1e~slot1_2~9~9", registration(2, 12, **plain))[0]
                in (200, 201)
            ),
            30,
        )
        print(f"registrations again {time.monotonic() - began:.1f} s after there was room")
        daemon.stop(signal.SIGKILL)
        daemon.start()
        _, found = daemon.call("GET", "/v1/attempts", token=daemon.viewer)
        assert {one["id"] for one in found["attempts"]} == {attempt_id(3), "wn1~3f2a9c1e~slot1_2~9~9"}
        assert daemon.stop() == 0
    finally:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.process.kill()
            daemon.process.wait(10)
        switch.stop()
        shutil.rmtree(daemon.home, ignore_errors=True)


def test_a_cluster_goes_on_without_the_member_whose_disk_is_full(disk: SmallDisk) -> None:
    others = [Path(tempfile.mkdtemp(prefix="lkst-m")) for _ in range(2)]
    with StoreCluster(homes=[disk.path / "m1", *others]) as cluster:
        try:
            store = OvsdbStore(cluster.servers, name="a")
            store.write([PutAttempt(attempt(1))]).wait(soon())
            assert cluster.leader() == 1
            disk.fill()
            for n in range(2, 100):
                store.write([PutAttempt(attempt(n))]).wait(soon())
            assert cluster.leader() != 1
            assert sorted(row.number for row in store.load().attempts) == list(range(1, 100))
            # It comes back when there is room and it is restarted.
            disk.free()
            cluster.kill(1)
            cluster.start(1)
            wait_until("the member is back", lambda: cluster.role(1) == "follower", 20)
            store.close()
        finally:
            for other in others:
                shutil.rmtree(other, ignore_errors=True)
