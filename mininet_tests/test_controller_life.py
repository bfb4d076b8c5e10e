"""The real lark-controller against a real Open vSwitch, spoken to as an agent would: killed, restarted, asked again.

Everything goes through the public commands and HTTP; `DummySwitch` is a real ovs-vswitchd on the dummy datapath.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mininet_tests.switch_rig import ENGINES, ROOT, DummySwitch, RigError, wait_until
from ryu_apps.rest.auth import TokenRole, new_token

pytestmark = pytest.mark.engine

SITE = """\
site: test
network: {ipv4: 10.20.0.0/16, gateway-ipv4: 10.20.0.1, ipv6: "2001:db8:20::/48", gateway-ipv6: "2001:db8:20::1", mtu: 1500}
infrastructure: [192.0.2.0/24]
nodes:
  wn1: {bridge: lknb-wn, ipv4: 10.20.1.0/24, ipv6: "2001:db8:20:1::/96"}
  wn2: {bridge: lknb-wn2, ipv4: 10.20.2.0/24, ipv6: "2001:db8:20:2::/96"}
bridges:
  lknb-wn: {datapath-id: "00006c6b6e620001", roles: [worker], ports: {uplink: [lknb-up]}}
  lknb-wn2: {datapath-id: "00006c6b6e620003", roles: [worker], ports: {uplink: [lknb-up2]}}
  lknb-gate:
    datapath-id: "00006c6b6e620002"
    roles: [gate]
    ports: {worker-facing: [lknb-wf], server-facing: [lknb-sf]}
    guards: [files]
"""  # noqa: E501 - as an administrator would write it
POLICY = """\
mode: enforce
services:
  files: {hosts: [10.20.0.5], ports: [tcp/1094], protected: true}
attributes:
  LarkNetwork: {type: enum, values: [none, default], default: default}
groups:
  physics: 'LarkGroup =?= "physics"'
  sealed: 'LarkNetwork =?= "none"'
grants:
  - {for: physics, to: files}
seal: [sealed]
defaults: {egress: allow, ingress: deny, between-jobs: deny}
"""
WORKER, GATE = "lknb-wn", "lknb-gate"
BOOT = "3f2a9c1e-0000-4000-8000-000000000001"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Daemon:
    """lark-controller, run from its files as an administrator would."""

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.home = Path(tempfile.mkdtemp(prefix="lknb-"))
        self.openflow, self.api = free_port(), free_port()
        (self.home / "site.yaml").write_text(SITE)
        (self.home / "policy.yaml").write_text(POLICY)
        (self.home / "controller.yaml").write_text(
            "site: site.yaml\npolicy: policy.yaml\nstate-dir: state\ntokens: tokens.yaml\ndeadline: 3\n"
            f'openflow: {{listen: "127.0.0.1:{self.openflow}"}}\napi: {{listen: "127.0.0.1:{self.api}"}}\n'
        )
        self.agent = self.token(TokenRole.AGENT, "wn1")
        self.viewer = self.token(TokenRole.VIEWER)
        self.process: subprocess.Popen[str] | None = None
        self.source = ROOT
        """Where the program is run from."""
        self.logs = 0
        self.ready = ""

    def command(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", *argv], env=self._env, capture_output=True, text=True, timeout=60, check=False
        )

    @property
    def _env(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self.source)}

    def token(self, role: TokenRole, node: str | None = None) -> str:
        return new_token(self.home / "tokens.yaml", role, node)

    def start(self) -> None:
        self.logs += 1
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "ryu_apps.cli", "run", "--config", str(self.home / "controller.yaml"),
                 "--engine", self.engine],
                env=self._env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline().strip()
        if not self.ready:
            raise RigError(f"lark-controller did not get ready:\n{self.log()}")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run it; at the end it must stop in order and have logged no defect. Its directory goes in any case."""
        try:
            self.start()
            yield
            assert self.stop() == 0
            print(self.log())
            assert not re.search(r"Traceback|Exception", self.log())
        finally:
            self.destroy()

    def destroy(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        shutil.rmtree(self.home, ignore_errors=True)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    @property
    def log_file(self) -> Path:
        return self.home / f"controller.{self.logs}.log"

    def log(self) -> str:
        return self.log_file.read_text()

    def call(self, method: str, path: str, body: object = None, token: str | None = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.api, timeout=20)
        headers = {"Authorization": f"Bearer {token or self.agent}", "Content-Type": "application/json"}
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def policy(self) -> str:
        """The digest of the policy in force."""
        _, found = self.call("GET", "/v1/policy", token=self.viewer)
        return str(found["digest"])

    def bridge(self, name: str) -> dict[str, Any]:
        _, found = self.call("GET", "/v1/bridges", token=self.viewer)
        return next(one for one in found["bridges"] if one["bridge"] == name)


def node_spec() -> dict[str, Any]:
    return {"boot_id": BOOT, "bridge": WORKER, "host_addresses": ["192.168.7.1"], "agent_version": "test"}


def attempt_id(n: int) -> str:
    return f"wn1~3f2a9c1e~slot1_{n}~{1000 + n}~88"


def attempt(n: int, port: int, **ad: object) -> dict[str, Any]:
    ipv4 = ipaddress.IPv4Address(f"10.20.1.{n}")
    return {
        "node": "wn1",
        "port": {"bridge": WORKER, "name": f"lj{n}", "ofport": port},
        "mac": "02:6c:" + ":".join(f"{octet:02x}" for octet in ipv4.packed),
        "ipv4": str(ipv4),
        "ipv6": str(ipaddress.IPv6Address(int(ipaddress.IPv6Address("2001:db8:20:1::")) | int(ipv4))),
        "zone": 1000 + n,
        "phase": "stage-in",
        "ad": ad or {"LarkGroup": "physics", "Owner": "alice"},
        "job": f"{n}.0",
    }


def flows_of(switch: DummySwitch, bridge: str, feature: int) -> list[str]:
    return [line for line in switch.flows(bridge) if f"cookie=0x4c{feature:02x}" in line]


ATTEMPT, IDENTITY = 0x07, 0x06


@pytest.fixture(scope="module")
def switch() -> Iterator[DummySwitch]:
    with DummySwitch() as rig:
        yield rig


@pytest.fixture(params=ENGINES)
def daemon(request: pytest.FixtureRequest, switch: DummySwitch) -> Iterator[Daemon]:
    """A running controller with both bridges connected; its logs must be clean, and its children gone, at the end."""
    one = Daemon(request.param)
    try:
        one.start()
        target = ("127.0.0.1", one.openflow)
        switch.bridge(WORKER, 0x00006C6B6E620001, target)
        switch.bridge(GATE, 0x00006C6B6E620002, target)
        for bridge, port, number in (
            (WORKER, "lknb-up", 1),
            (WORKER, "lj2", 12),
            (WORKER, "lj3", 13),
            (GATE, "lknb-wf", 1),
            (GATE, "lknb-sf", 2),
        ):
            switch.vsctl(
                "add-port", bridge, port, "--", "set", "interface", port, "type=dummy", f"ofport_request={number}"
            )
        until_in_line(one)
        yield one
        code = one.stop()
        faults = re.findall(r"^.*(?:Traceback|Exception| ERROR lark\.controller.*defect).*$", logs(one), re.MULTILINE)
        print(logs(one))
        assert code == 0
        assert faults == []
        assert children_of(one.home) == []
    finally:
        for bridge in (WORKER, GATE):
            switch.vsctl("--if-exists", "del-br", bridge)
        one.destroy()


def until_in_line(daemon: Daemon) -> None:
    def probe() -> bool:
        return all(
            daemon.bridge(name)["converged"] and len(daemon.bridge(name)["ports"]) > 1 for name in (WORKER, GATE)
        )

    wait_until("both bridges in line", probe, 15)


def logs(daemon: Daemon) -> str:
    return "".join(path.read_text() for path in sorted(daemon.home.glob("controller.*.log")))


def children_of(home: Path) -> list[str]:
    """Processes that still have this directory on their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if f"{home}/state" in line:
            found.append(line)
    return found


def ages(switch: DummySwitch, bridge: str) -> dict[str, float]:
    """Seconds since each flow was last put on the switch: a flow-mod for it would start it anew."""
    found = {}
    for line in switch.ofctl("dump-flows", bridge).splitlines():
        age = re.search(r"duration=([0-9.]+)s", line)
        if age:
            found[re.sub(r"(duration|n_packets|n_bytes|idle_age|hard_age)=[^ ]* ", "", line)] = float(age.group(1))
    return found


def test_an_attempt_lives_through_a_killed_controller(daemon: Daemon, switch: DummySwitch) -> None:
    assert daemon.ready.startswith(f"lark-controller ready: engine={daemon.engine} ")
    status, grant = daemon.call("PUT", "/v1/nodes/wn1", node_spec())
    assert status == 200
    assert grant["ipv4_range"] == "10.20.1.0/24"
    status, answer = daemon.call("PUT", f"/v1/attempts/{attempt_id(2)}", attempt(2, 12))
    assert status == 201, answer
    # In force when it is answered, not a moment later.
    assert len(flows_of(switch, WORKER, ATTEMPT)) == 6
    assert len(flows_of(switch, GATE, ATTEMPT)) == 2
    # To the service, to later fragments for its host, and back.
    assert len(flows_of(switch, GATE, IDENTITY)) == 3
    assert answer["bridges"] == {WORKER: "realised", GATE: "realised"}
    before = {bridge: switch.flows(bridge) for bridge in (WORKER, GATE)}

    time.sleep(1.1)
    killed = time.monotonic()
    assert daemon.stop(signal.SIGKILL) == -signal.SIGKILL
    assert {bridge: switch.flows(bridge) for bridge in (WORKER, GATE)} == before
    daemon.start()
    until_in_line(daemon)
    print(f"{daemon.engine}: from kill -9 to all in line: {time.monotonic() - killed:.2f} s")
    status, again = daemon.call("GET", f"/v1/attempts/{attempt_id(2)}")
    assert status == 200
    assert again["decision"] == answer["decision"]
    assert again["spec"] == answer["spec"]
    assert {bridge: switch.flows(bridge) for bridge in (WORKER, GATE)} == before
    # No flow-mod at all, as the controller counts and as the switch's own clocks show.
    sent = re.findall(r"in line with \d+ flows, (\d+) flow-mods", daemon.log())
    assert sent
    assert set(sent) == {"0"}
    since = time.monotonic() - killed
    for bridge in (WORKER, GATE):
        assert min(ages(switch, bridge).values()) > since

    assert daemon.call("PUT", f"/v1/attempts/{attempt_id(2)}", attempt(2, 12))[0] == 200
    status, moved = daemon.call("PATCH", f"/v1/attempts/{attempt_id(2)}", {"phase": "run"})
    assert (status, moved["spec"]["phase"]) == (200, "run")
    status, gone = daemon.call("DELETE", f"/v1/attempts/{attempt_id(2)}")
    assert (status, gone["bridges"]) == (200, {WORKER: "realised", GATE: "realised"})
    for bridge in (WORKER, GATE):
        assert flows_of(switch, bridge, ATTEMPT) == flows_of(switch, bridge, IDENTITY) == []
    assert daemon.call("DELETE", f"/v1/attempts/{attempt_id(2)}")[0] == 404


def test_bad_requests_change_nothing_and_do_not_disturb(daemon: Daemon, switch: DummySwitch) -> None:
    assert daemon.call("PUT", "/v1/nodes/wn1", node_spec())[0] == 200
    good = attempt(2, 12)
    path = f"/v1/attempts/{attempt_id(2)}"
    assert daemon.call("PUT", f"/v1/attempts/{attempt_id(3)}", attempt(3, 13))[0] == 201
    before = {bridge: switch.flows(bridge) for bridge in (WORKER, GATE)}
    listed = daemon.call("GET", "/v1/attempts")[1]
    no_port = {**good, "port": {**good["port"], "name": "lj77"}}
    for body, status, slug in (
        (b"{not json", 400, "malformed"),
        ({**good, "surprise": 1}, 400, "malformed"),
        ({**good, "ad": {"A": {"nested": 1}}}, 400, "malformed"),
        ({**good, "port": {**good["port"], "bridge": "nowhere"}}, 400, "unknown-bridge"),
        (no_port, 400, "no-such-port"),
        ({**good, "mac": "02:00:00:00:00:01"}, 400, "bad-address"),
        ({**good, "node": "wn2"}, 403, "forbidden"),
        ({**good, "ad": {"LarkNetwork": 5}}, 422, "held"),
        (b" " * 300_000, 413, "too-large"),
        (attempt(3, 13), 409, "conflict"),
    ):
        answered, problem = daemon.call("PUT", path, body)
        assert (answered, problem.get("type")) == (status, f"urn:lark:problem:{slug}"), problem
    assert daemon.call("PUT", f"/v1/attempts/{attempt_id(3)}", attempt(3, 13, Owner="bob"))[0] == 409
    assert daemon.call("DELETE", path)[0] == 404
    assert daemon.call("GET", "/v1/attempts", token="nobody")[0] == 401
    assert daemon.call("DELETE", f"/v1/attempts/{attempt_id(3)}", token=daemon.viewer)[0] == 403
    assert {bridge: switch.flows(bridge) for bridge in (WORKER, GATE)} == before
    assert daemon.call("GET", "/v1/attempts")[1] == listed
    # The control: the same caller with a good request is served.
    assert daemon.call("PUT", path, good)[0] == 201


def test_a_switch_that_is_away_at_first_and_larkctl(daemon: Daemon, switch: DummySwitch) -> None:
    assert daemon.call("PUT", "/v1/nodes/wn1", node_spec())[0] == 200
    switch.kill_switch()
    status, problem = daemon.call("PUT", f"/v1/attempts/{attempt_id(2)}", attempt(2, 12))
    assert (status, problem["type"]) == (503, "urn:lark:problem:not-realised")
    assert set(problem["bridges"]) == {WORKER, GATE}
    switch.start_switch()
    until_in_line(daemon)
    wait_until(
        "the quarantine ends", lambda: daemon.call("PUT", f"/v1/attempts/{attempt_id(3)}", attempt(2, 12))[0] == 201
    )
    token = daemon.home / "viewer.token"
    token.write_text(daemon.viewer + "\n")
    ctl = ("ryu_apps.larkctl", "--url", f"http://127.0.0.1:{daemon.api}", "--token-file", str(token))
    for argv, words in (
        (("attempts",), ["2.0", "wn1", "files", "all confirmed"]),
        (("attempt", "2.0"), ["physics", "may reach service files", "policy.yaml:", "Nothing of it was dropped"]),
        (("nodes",), ["wn1", "192.168.7.1", "wn2", "never registered"]),
        (("bridges",), [WORKER, "in line", "lknb-wn2", "not connected"]),
        (("policy",), ["enforce", "policy.yaml"]),
    ):
        done = daemon.command(*ctl, *argv)
        assert done.returncode == 0, done.stderr
        for word in words:
            assert word in done.stdout, done.stdout
        as_json = daemon.command(*ctl, *argv, "--json")
        assert json.loads(as_json.stdout)
    missing = daemon.command(*ctl, "attempt", "99.0")
    assert missing.returncode == 1
    assert "99.0" in missing.stderr


def test_sighup_takes_a_good_policy_and_leaves_a_bad_one(daemon: Daemon, switch: DummySwitch) -> None:
    assert daemon.call("PUT", "/v1/nodes/wn1", node_spec())[0] == 200
    assert daemon.call("PUT", f"/v1/attempts/{attempt_id(2)}", attempt(2, 12))[0] == 201
    digest = daemon.call("GET", "/v1/policy", token=daemon.viewer)[1]["digest"]
    assert daemon.process is not None
    (daemon.home / "policy.yaml").write_text(POLICY + "surprise: true\n")
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(
        "the fault is logged", lambda: f"not reloaded: policy.yaml:{len(POLICY.splitlines()) + 1}:" in daemon.log()
    )
    assert daemon.call("GET", "/v1/policy", token=daemon.viewer)[1]["digest"] == digest
    assert len(flows_of(switch, GATE, ATTEMPT)) == 2
    (daemon.home / "policy.yaml").write_text(POLICY.replace('"physics"', '"chemistry"'))
    daemon.process.send_signal(signal.SIGHUP)
    wait_until("the new policy is in force", lambda: not flows_of(switch, GATE, ATTEMPT))
    assert daemon.call("GET", f"/v1/attempts/{attempt_id(2)}")[1]["decision"]["grants"] == []
    wait_until("it is logged, with its mode", lambda: "(mode enforce), " in daemon.log())
    wait_until("it is logged, with its mode", lambda: "(mode enforce)" in daemon.log())
    wait_until("both in line again", lambda: all(daemon.bridge(name)["converged"] for name in (WORKER, GATE)))


def test_killed_in_the_middle_of_registrations(daemon: Daemon, switch: DummySwitch) -> None:
    """Every registration that was answered is known afterwards; what was not answered leaves nothing half-done."""
    assert daemon.call("PUT", "/v1/nodes/wn1", node_spec())[0] == 200
    lanes = range(20, 60)
    add = [word for n in lanes for word in ("--", "add-port", WORKER, f"lj{n}", "--", "set", "interface", f"lj{n}",
                                            "type=dummy", f"ofport_request={100 + n}")]  # fmt: skip
    switch.vsctl(*add)
    acknowledged: list[int] = []

    def client(mine: range) -> None:
        for n in mine:
            try:
                if daemon.call("PUT", f"/v1/attempts/{attempt_id(n)}", attempt(n, 100 + n))[0] == 201:
                    acknowledged.append(n)
            except (OSError, http.client.HTTPException):
                return

    clients = [threading.Thread(target=client, args=(lanes[start::4],)) for start in range(4)]
    for one in clients:
        one.start()
    wait_until("some are registered", lambda: len(acknowledged) >= 8)
    daemon.stop(signal.SIGKILL)
    for one in clients:
        one.join()
    assert len(acknowledged) < len(lanes), "the kill came too late to show anything"
    daemon.start()
    until_in_line(daemon)
    known = {one["id"] for one in daemon.call("GET", "/v1/attempts")[1]["attempts"]}
    assert {attempt_id(n) for n in acknowledged} <= known
    assert len(flows_of(switch, WORKER, ATTEMPT)) == 6 * len(known)
    assert len(flows_of(switch, GATE, ATTEMPT)) == 2 * len(known)
    # The agent comes again with all of them, and ends them.
    for n in lanes:
        assert daemon.call("PUT", f"/v1/attempts/{attempt_id(n)}", attempt(n, 100 + n))[0] in (200, 201)
    for n in lanes:
        assert daemon.call("DELETE", f"/v1/attempts/{attempt_id(n)}")[0] == 200
    assert flows_of(switch, WORKER, ATTEMPT) == flows_of(switch, GATE, ATTEMPT) == []


def test_a_killed_database_server_comes_back(daemon: Daemon, switch: DummySwitch) -> None:
    assert daemon.call("PUT", "/v1/nodes/wn1", node_spec())[0] == 200
    assert daemon.call("PUT", f"/v1/attempts/{attempt_id(2)}", attempt(2, 12))[0] == 201
    found = re.findall(r"ovsdb-server pid (\d+) serves", daemon.log())
    os.kill(int(found[-1]), signal.SIGKILL)
    # The write waits for the server that is started again, and is not lost.
    assert daemon.call("PUT", f"/v1/attempts/{attempt_id(3)}", attempt(3, 13))[0] in (201, 503)
    wait_until(
        "registrations are stored again",
        lambda: (
            daemon.call("PUT", f"/v1/attempts/{attempt_id(3)}", attempt(3, 13))[0] == 200
            or daemon.call("PUT", f"/v1/attempts/{attempt_id(3)}", attempt(3, 13))[0] == 201
        ),
        15,
    )
    daemon.stop(signal.SIGKILL)
    daemon.start()
    assert len(daemon.call("GET", "/v1/attempts")[1]["attempts"]) == 2


def test_a_second_controller_is_told_why_it_may_not(daemon: Daemon) -> None:
    argv = ("ryu_apps.cli", "run", "--engine", daemon.engine, "--config")
    same = daemon.command(*argv, str(daemon.home / "controller.yaml"))
    assert same.returncode == 1
    assert "another lark-controller uses state directory" in same.stderr
    other = daemon.home / "other.yaml"
    text = (daemon.home / "controller.yaml").read_text()
    other.write_text(text.replace("state-dir: state", "state-dir: state2"))
    port = daemon.command(*argv, str(other))
    assert port.returncode == 1
    assert f"port {daemon.openflow}" in port.stderr
    for done in (same, port):
        assert "Traceback" not in done.stderr
    # The first is undisturbed.
    assert daemon.call("GET", "/v1/attempts")[0] == 200


def test_slow_and_rude_clients_hold_nobody_up(daemon: Daemon) -> None:
    """Half a request on many connections, rubbish, and a body that never comes: the others are served meanwhile."""
    assert daemon.call("PUT", "/v1/nodes/wn1", node_spec())[0] == 200
    head = f"PUT /v1/attempts/{attempt_id(2)} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {daemon.agent}\r\n"
    rude = [
        b"PUT /v1/att",
        head.encode() + b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{",
        head.encode() + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET " + b"/" * 20_000 + b" HTTP/1.1\r\n\r\n",
        head.encode() + b"Content-Length: -5\r\n\r\n",
        head.encode() + b"Content-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n{}",
    ]
    connections = []
    try:
        for _ in range(10):
            for words in rude:
                connections.append(socket.create_connection(("127.0.0.1", daemon.api), timeout=5))
                connections[-1].sendall(words)
        began = time.monotonic()
        assert daemon.call("PUT", f"/v1/attempts/{attempt_id(2)}", attempt(2, 12))[0] == 201
        assert time.monotonic() - began < 2
    finally:
        for one in connections:
            one.close()
    assert daemon.call("DELETE", f"/v1/attempts/{attempt_id(2)}")[0] == 200
    assert " 500 in " not in daemon.log()


def _answers(connection: socket.socket, count: int) -> list[tuple[bytes, bytes]]:
    """Head (without what differs with the moment) and body of so many answers."""
    stream, found = connection.makefile("rb"), []
    for _ in range(count):
        lines = []
        while (line := stream.readline()).strip():
            lines.append(line)
        length = next(int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length:"))
        # eventlet writes header names in its own way; it says that it closes, and does not.
        kept = sorted(line.lower() for line in lines[1:] if not line.startswith((b"Date:", b"Connection:")))
        found.append((b"".join([*lines[:1], *kept]), stream.read(length)))
    return found


def test_a_request_is_answered_alike_however_it_is_cut(daemon: Daemon) -> None:
    """In one piece it goes the short way, in two the general server's; sent ahead of its turn, it has its turn."""
    assert daemon.call("PUT", "/v1/nodes/wn1", node_spec())[0] == 200
    assert daemon.call("PUT", f"/v1/attempts/{attempt_id(2)}", attempt(2, 12))[0] == 201
    for method, path, token, body in (
        ("PUT", f"/v1/attempts/{attempt_id(2)}", daemon.agent, json.dumps(attempt(2, 12))),
        ("PUT", f"/v1/attempts/{attempt_id(2)}", daemon.agent, json.dumps(attempt(3, 13))),
        ("PATCH", f"/v1/attempts/{attempt_id(2)}", daemon.agent, '{"phase": "walk"}'),
        ("POST", "/v1/nodes/wn1/heartbeat", daemon.agent, json.dumps({"boot_id": BOOT, "attempts": []})),
        ("POST", "/v1/nodes/wn1/heartbeat", daemon.agent, "{"),
        ("POST", "/v1/nodes/wn1/heartbeat", "lark_nobodys", "{}"),
        ("POST", "/v1/nodes/wn2/heartbeat", daemon.agent, "{}"),
        ("GET", "/v1/policy", daemon.viewer, ""),
        ("GET", "/v1/nowhere", daemon.viewer, ""),
        ("DELETE", f"/v1/attempts/{attempt_id(9)}", daemon.agent, ""),
    ):
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: lark\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        said = head.encode() + body.encode()
        with socket.create_connection(("127.0.0.1", daemon.api), timeout=10) as one:
            one.sendall(said)
            whole = _answers(one, 1)
        with socket.create_connection(("127.0.0.1", daemon.api), timeout=10) as two:
            two.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            two.sendall(said[:30])
            # Nothing tells when the first piece was read by itself; a header that the short way leaves to the other
            # makes sure of the way where the two pieces came as one.
            two.sendall(said[30:].replace(b"Host: lark", b"Host: lark\r\nX-Cut: 1", 1))
            cut = _answers(two, 1)
        assert cut == whole, (method, path)
        if b" 401 " not in whole[0][0]:  # after that the connection ends
            with socket.create_connection(("127.0.0.1", daemon.api), timeout=10) as many:
                many.sendall(3 * said)
                assert _answers(many, 3) == 3 * whole, (method, path)
                many.sendall(said)
                assert _answers(many, 1) == whole
