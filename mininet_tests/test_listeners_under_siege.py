"""Hundreds of connections that trickle and say nothing of who they are: agents are served and no lease ends.

The real lark-controller on both engines. The besieger comes from the agents' own address, opens anew whatever is
closed, and never stops: what it can reach at all, it uses up.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import pytest

from mininet_tests.switch_rig import ENGINES, wait_until
from mininet_tests.test_controller_life import BOOT, Daemon, node_spec
from ryu_apps.rest.auth import TokenRole

pytestmark = pytest.mark.alone

LEASE = 5
HELD = 600
BEAT = {"boot_id": BOOT, "attempts": []}


@pytest.fixture(params=ENGINES)
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    one = Daemon(request.param)
    config = one.home / "controller.yaml"
    config.write_text(config.read_text() + f"lease: {LEASE}\n")
    with one.running():
        yield one


class Besieger:
    """`HELD` connections to a port, each sending a byte now and then, each opened again when it is closed."""

    def __init__(self, port: int, first: bytes, source: str = "127.0.0.1") -> None:
        self._port, self._first, self._source = port, first, source
        self._stop = threading.Event()
        self._held: list[socket.socket] = []
        self.opened = 0
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Besieger:
        self._thread.start()
        wait_until("the siege has begun", lambda: self.opened >= HELD, 30)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(30)
        for one in self._held:
            one.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._held = [one for one in self._held if self._trickle(one)]
            for _ in range(HELD - len(self._held)):
                with contextlib.suppress(OSError):
                    one = socket.create_connection(("127.0.0.1", self._port), 1, (self._source, 0))
                    one.setblocking(False)
                    one.sendall(self._first)
                    self._held.append(one)
                    self.opened += 1
            self._stop.wait(0.5)

    @staticmethod
    def _trickle(one: socket.socket) -> bool:
        try:
            one.send(b"a")
            one.recv(1)
        except BlockingIOError:
            return True
        except OSError:
            pass
        one.close()
        return False


def open_files(daemon: Daemon) -> int:
    assert daemon.process is not None
    return len(list(Path(f"/proc/{daemon.process.pid}/fd").iterdir()))


def lease_left(daemon: Daemon, node: str) -> float:
    status, found = daemon.call("GET", f"/v1/nodes/{node}", token=daemon.viewer)
    assert status == 200
    return float(found["lease_left"])


def test_the_api_serves_agents_and_ends_no_lease_while_strangers_trickle(daemon: Daemon) -> None:
    other = daemon.token(TokenRole.AGENT, "wn2")
    daemon.stop()
    daemon.start()
    assert daemon.call("PUT", "/v1/nodes/wn1", node_spec())[0] == 200
    assert daemon.call("PUT", "/v1/nodes/wn2", {**node_spec(), "bridge": "lknb-wn2"}, token=other)[0] == 200
    with Besieger(daemon.api, b"GET /healthz HTTP/1.1\r\nX: ") as siege:
        end = time.monotonic() + 2.5 * LEASE
        while time.monotonic() < end:
            begun = time.monotonic()
            assert daemon.call("POST", "/v1/nodes/wn1/heartbeat", BEAT)[0] == 200
            assert time.monotonic() - begun < 2
            time.sleep(1)
        assert siege.opened > 2 * HELD  # it did come back
        # wn2 was silent for two leases: it may have been among those who were turned away.
        assert lease_left(daemon, "wn2") > 0
        assert "its lease is over" not in daemon.log()
        assert open_files(daemon) < 200
    said = daemon.log()
    assert "api: " in said
    assert re.search(r"connections refused or closed for want of a place, most from 127\.0\.0\.1 \(\d+\)", said)
    assert "clients are being turned away: no lease ends within 5 s of that" in said
    assert len(re.findall("for want of a place", said)) < 60  # a line a second, not one for each
    # The control: with the besieger gone, silence ends a lease again; and who is not silent keeps his.
    end = time.monotonic() + 2 * LEASE + 2
    while time.monotonic() < end and "node=wn2: its lease is over" not in daemon.log():
        assert daemon.call("POST", "/v1/nodes/wn1/heartbeat", BEAT)[0] == 200
        time.sleep(0.5)
    assert "node=wn2: its lease is over" in daemon.log()
    assert lease_left(daemon, "wn1") > 0


@pytest.mark.engine
def test_the_switches_listener_keeps_places_for_bridges(daemon: Daemon) -> None:
    with Besieger(daemon.openflow, b"\x05\x00\x00\x10") as siege:
        end = time.monotonic() + 4
        while time.monotonic() < end:
            assert daemon.call("GET", "/v1/nodes", token=daemon.viewer)[0] == 200
            time.sleep(0.5)
        assert siege.opened >= HELD
        assert open_files(daemon) < 200
    assert "openflow: " in daemon.log()
