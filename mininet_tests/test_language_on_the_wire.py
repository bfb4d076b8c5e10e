"""The policy language on real packets: ports that jobs serve, classes as DSCP, one service in audit mode.

The parts are real: lark-controller with its store, Open vSwitch with the userspace datapath, the agent's table 0, and
jobs in network namespaces. The test speaks to the controller's API as the node's agent does. The flows are the same
bytes under either engine (`test_switch_on_both_engines`), so `make test` runs this on one.
"""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mininet_tests import frames
from mininet_tests.site.lark import ENVIRONMENT, python_command
from mininet_tests.site.namespaces import Daemon, Machine, this_python, wait_until, wire
from mininet_tests.site.openvswitch import RUN, OpenVSwitch
from mininet_tests.site.users import private_etc
from mininet_tests.switch_rig import ENGINES
from ovs_agent import plan
from policies import scitags
from ryu_apps.rest.auth import TokenRole, new_token

BRIDGE = "wn1-br"
GATEWAY, FILES, DATABASE, CAMPUS, ELSEWHERE = "10.20.0.1", "10.20.0.5", "10.20.0.6", "10.9.1.7", "10.8.1.7"
FILES6 = "2001:db8:20::5"
ROUTER_MAC = "02:00:00:00:00:01"
SITE = """\
site: wire
network: {ipv4: 10.20.0.0/16, gateway-ipv4: 10.20.0.1, ipv6: "2001:db8:20::/48", gateway-ipv6: "2001:db8:20::1"}
infrastructure: [192.0.2.0/24]
nodes:
  wn1: {bridge: wn1-br, ipv4: 10.20.1.64/26, ipv6: "2001:db8:20:1::/96"}
bridges:
  wn1-br: {datapath-id: "00000000000000a1", roles: [worker], ports: {uplink: [up0]}}
"""
POLICY = """\
mode: enforce
include: [services.yaml]
networks: {campus: [10.9.1.0/24]}
attributes:
  LarkServes: {type: boolean, default: false}
groups:
  physics: 'LarkGroup =?= "physics"'
  in-a-dag: 'DAGManJobId =!= undefined'
  serves: 'LarkServes =?= true'
grants:
  - {for: physics, to: files}
classes: [{name: physics, dscp: af41}, {name: rest, dscp: cs1}]
classify: [{for: physics, class: physics}, {class: rest}]
scitags: [{for: physics, experiment: cms, activity: analysis-input}]
slices: [{for: in-a-dag, name: 'string(DAGManJobId)', between: exposed}]
expose:
  - {for: serves, ports: [tcp/8000-8999], to: slice}
  - {for: physics, ports: [tcp/8080], to: [campus]}
defaults: {egress: allow, ingress: deny, between-jobs: deny}
"""
SERVICES = """\
services:
  files: {hosts: [10.20.0.5, "2001:db8:20::5"], ports: [tcp/1094], protected: true}
  database: {hosts: [10.20.0.6], ports: [tcp/5432], protected: true, mode: audit}
"""
AF41, CS1 = 34, 8
BOOT = "3f2a9c1e-0000-4000-8000-000000000001"
CONNECT = """
import socket, sys
host, port, source = sys.argv[1], int(sys.argv[2]), sys.argv[3]
try:
    with socket.create_connection((host, port), 1.5, (source, 0) if source else None) as s:
        print(s.recv(100).decode())
except OSError as e:
    print("no:", e)
"""
SERVE = """
import socket, sys, threading
def serve(host, port):
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((host, port)); s.listen(50)
    print("serving", port, flush=True)
    while True:
        c, peer = s.accept(); c.sendall(b"welcome"); c.close()
for word in sys.argv[1:]:
    host, _, port = word.partition(":")
    threading.Thread(target=serve, args=(host, int(port))).start()
"""
SEND = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
socket.socket(family, socket.SOCK_DGRAM).sendto(sys.argv[2].encode(), (sys.argv[1], 9))
"""
STREAM = """
import select, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], int(sys.argv[2])))
print("streaming", flush=True)
peers = set()
while True:
    if select.select([s], [], [], 0.02)[0]:
        peers.add(s.recvfrom(100)[1])
    for peer in peers:
        try:
            s.sendto(b"more", peer)
        except OSError:
            pass
"""
CALL = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 0))
s.settimeout(0.5)
host, port = sys.argv[2], int(sys.argv[3])
got = False
while True:
    if not got:
        s.sendto(b"call", (host, port))
    try:
        got = bool(s.recv(100))
        print("got", flush=True)
    except OSError:
        got = False
"""
ASK = """
import json, sys, urllib.request
method, path, token = sys.argv[1:4]
body = sys.stdin.buffer.read() or None
headers = {"Authorization": "Bearer " + token, "Content-Type": "application/json"}
request = urllib.request.Request("http://127.0.0.1:8080" + path, body, headers, method=method)
try:
    with urllib.request.urlopen(request, timeout=20) as answer:
        print(answer.read().decode())
except urllib.error.HTTPError as error:
    sys.exit(str(error.code) + " " + error.read().decode())
"""


@dataclass
class Job:
    """A job: its lane, and the namespace it runs in."""

    lane: int
    machine: Machine
    ad: Mapping[str, object]

    @property
    def id(self) -> str:
        return f"wn1~3f2a9c1e~slot1_{self.lane}~{1000 + self.lane}~88"

    @property
    def ipv4(self) -> str:
        return f"10.20.1.{64 + self.lane}"

    @property
    def ipv6(self) -> str:
        return f"2001:db8:20:1::a14:1{64 + self.lane:02x}"

    @property
    def mac(self) -> str:
        return f"02:6c:0a:14:01:{64 + self.lane:02x}"

    def reaches(self, host: str, port: int) -> bool:
        return connects(self.machine, host, port)


def connects(machine: Machine, host: str, port: int, source: str = "") -> bool:
    said = machine.run([this_python(), "-c", CONNECT, host, str(port), source]).need().out
    return said.strip() == "welcome"


@dataclass
class Site:
    host: Machine
    outside: Machine
    controller: Daemon
    watcher: Daemon
    agent_token: str
    jobs: dict[str, Job] = field(default_factory=dict)

    def ask(self, method: str, path: str, body: object = None) -> Any:
        given = "" if body is None else json.dumps(body)
        argv = [this_python(), "-c", ASK, method, path, self.agent_token]
        return json.loads(self.host.run(argv, given=given).need().out)

    def log(self) -> str:
        return self.controller.log.read_text(encoding="utf-8")

    def frame(self, marker: str) -> bytes | None:
        """The frame with this text, as it came out of the uplink."""
        for line in self.watcher.log.read_text(encoding="utf-8").splitlines():
            if marker.encode().hex() in line:
                return bytes.fromhex(max(re.findall(r"[0-9a-f]+", line), key=len))
        return None

    def dscp(self, marker: str) -> int | None:
        """The code point of the frame with this text."""
        if (frame := self.frame(marker)) is None:
            return None
        kind = int.from_bytes(frame[12:14], "big")
        traffic = frame[15] if kind == frames.IPV4 else (frame[14] & 0xF) << 4 | frame[15] >> 4
        return traffic >> 2

    def label(self, marker: str) -> int | None:
        """The flow label of the IPv6 frame with this text."""
        frame = self.frame(marker)
        return None if frame is None else int.from_bytes(frame[15:18], "big") & 0xFFFFF


JOBS: dict[str, dict[str, object]] = {
    "physicist": {"User": "alice@x", "LarkGroup": "physics"},
    "database": {"User": "bob@x", "DAGManJobId": 42, "LarkServes": True},
    "step": {"User": "bob@x", "DAGManJobId": 42},
    "other": {"User": "bob@x", "DAGManJobId": 43},
}


@pytest.fixture(scope="module", params=ENGINES)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("wire")
    root.chmod(0o755)
    machines: dict[str, Machine] = {}
    try:
        for name in ("host", "outside", *JOBS):
            home = root / name
            home.mkdir()
            private_etc(home / "etc", [], [])
            machines[name] = Machine(name, home)
            machines[name].start()
        yield from _site(request.param, machines)
    finally:
        for machine in machines.values():
            machine.stop()


def _site(engine: str, machines: dict[str, Machine]) -> Iterator[Site]:
    host, outside = machines["host"], machines["outside"]
    host.need("ip", "link", "set", "lo", "up")
    lark = host.root / "lark"
    lark.mkdir()
    (lark / "site.yaml").write_text(SITE)
    (lark / "policy.yaml").write_text(POLICY)
    (lark / "services.yaml").write_text(SERVICES)
    (lark / "controller.yaml").write_text(
        "site: site.yaml\npolicy: policy.yaml\nstate-dir: state\ntokens: tokens.yaml\n"
        'openflow: {listen: "127.0.0.1:6653"}\napi: {listen: "127.0.0.1:8080"}\n'
    )
    token = new_token(lark / "tokens.yaml", TokenRole.AGENT, "wn1")
    argv = python_command("ryu_apps.cli", "run", "--config", str(lark / "controller.yaml"), "--engine", engine)
    controller = host.spawn("lark-controller", argv, env=ENVIRONMENT)
    wire(host, "up0", outside, "eth0")
    outside.need("ip", "link", "set", "eth0", "address", ROUTER_MAC)
    outside.need("ip", "link", "set", "lo", "up")
    for address in (f"{GATEWAY}/16", f"{FILES}/16", f"{DATABASE}/16", f"{CAMPUS}/32", f"{ELSEWHERE}/32"):
        outside.need("ip", "address", "add", address, "dev", "eth0")
    outside.need("ip", "-6", "address", "add", f"{FILES6}/48", "dev", "eth0", "nodad")
    jobs = {name: Job(lane, machines[name], ad) for lane, (name, ad) in enumerate(JOBS.items(), 1)}
    for job in jobs.values():
        _plug(host, job)
    host.run(["nft", "-f", "-"], given=plan.nft_ruleset([], [])).need()
    switch = OpenVSwitch(host)
    switch.start()
    _bridge(host, switch, jobs)
    controller.wait_for_line("ready:", 30)
    watcher = outside.spawn("watch", [this_python(), str(Path(frames.__file__)), "watch", "eth0"])
    watcher.wait_for_line("watching", 10)
    here = Site(host, outside, controller, watcher, token, jobs)
    for where, listens in (
        (outside, [f"{FILES}:1094", f"{DATABASE}:5432"]),
        *((job.machine, ["0.0.0.0:8080", "0.0.0.0:9090"]) for job in jobs.values()),
    ):
        server = where.spawn("serve", [this_python(), "-c", SERVE, *listens])
        for word in listens:
            server.wait_for_line(f"serving {word.partition(':')[2]}", 10)
    node = {"boot_id": BOOT, "bridge": BRIDGE, "host_addresses": [], "agent_version": "test"}
    here.ask("PUT", "/v1/nodes/wn1", node)
    for job in jobs.values():
        here.ask("PUT", f"/v1/attempts/{job.id}", _spec(job))
    yield here
    assert controller.stop() == 0
    assert "Traceback" not in here.log()
    switch.stop()


def _plug(host: Machine, job: Job) -> None:
    wire(host, f"lj{job.lane}", job.machine, "eth0")
    for argv in (
        ("ip", "link", "set", "lo", "up"),
        ("ip", "link", "set", "eth0", "address", job.mac),
        ("ip", "link", "set", "dev", "eth0", "addrgenmode", "none"),
        ("ip", "-6", "address", "flush", "dev", "eth0"),
        ("ip", "address", "add", f"{job.ipv4}/16", "dev", "eth0"),
        ("ip", "-6", "address", "add", f"{job.ipv6}/48", "dev", "eth0", "nodad"),
        ("ip", "route", "add", "default", "via", GATEWAY),
    ):
        job.machine.need(*argv)


def _bridge(host: Machine, switch: OpenVSwitch, jobs: Mapping[str, Job]) -> None:
    ports = [("up0", 1), *((f"lj{job.lane}", 1000 + job.lane) for job in jobs.values())]
    words = ["add-br", BRIDGE, "--", "set", "bridge", BRIDGE, "datapath_type=netdev", "fail_mode=secure"]
    words += ["protocols=OpenFlow10,OpenFlow13,OpenFlow14", "other_config:disable-in-band=true"]
    words += ["other_config:datapath-id=00000000000000a1"]
    for port, number in ports:
        words += ["--", "add-port", BRIDGE, port, "--", "set", "interface", port, f"ofport_request={number}"]
    switch.vsctl(*words)
    # Before table 0 is written: the first controller that a bridge is given clears its tables.
    switch.vsctl(
        *("set-controller", BRIDGE, "tcp:127.0.0.1:6653"),
        *("--", "set", "controller", BRIDGE, "max_backoff=1000", "connection_mode=out-of-band"),
    )
    found = re.search(r"link/ether (\S+)", host.need("ip", "link", "show", "dev", BRIDGE))
    assert found
    table0 = "".join(f"{flow}\n" for flow in plan.worker_table0(1, found.group(1)))
    host.run(["ovs-ofctl", "-OOpenFlow14", "add-flows", f"unix:{RUN}/{BRIDGE}.mgmt", "-"], given=table0).need()


def _spec(job: Job) -> dict[str, object]:
    return {
        "node": "wn1",
        "port": {"bridge": BRIDGE, "name": f"lj{job.lane}", "ofport": 1000 + job.lane},
        "mac": job.mac,
        "ipv4": job.ipv4,
        "ipv6": job.ipv6,
        "zone": 1000 + job.lane,
        "phase": "run",
        "ad": dict(job.ad),
        "job": f"{job.lane}.0",
    }


def test_a_job_serves_its_slice_at_the_port_it_exposes_and_nobody_else(site: Site) -> None:
    database, step, other = (site.jobs[name] for name in ("database", "step", "other"))
    assert step.reaches(database.ipv4, 8080)
    assert not step.reaches(database.ipv4, 9090)  # it listens there, and does not expose it
    assert not database.reaches(step.ipv4, 8080)  # that one serves nothing
    assert not other.reaches(database.ipv4, 8080)  # of another DAG
    assert step.reaches(database.ipv4, 8080)


def test_a_job_serves_a_named_network_and_no_other(site: Site) -> None:
    physicist, step = site.jobs["physicist"], site.jobs["step"]
    assert connects(site.outside, physicist.ipv4, 8080, CAMPUS)
    assert not connects(site.outside, physicist.ipv4, 9090, CAMPUS)
    assert not connects(site.outside, physicist.ipv4, 8080, ELSEWHERE)
    assert not connects(site.outside, step.ipv4, 8080, CAMPUS)


def test_what_a_job_sends_leaves_the_node_with_the_code_point_of_its_class(site: Site) -> None:
    sent = {}
    for name, wanted in (("physicist", AF41), ("step", CS1)):
        for target in (GATEWAY, FILES6):
            marker = f"from {name} to {target} {time.monotonic_ns()}"
            site.jobs[name].machine.run([this_python(), "-c", SEND, target, marker]).need()
            sent[marker] = wanted
    wait_until("all four datagrams are seen outside", lambda: None not in map(site.dscp, sent), 10)
    assert {marker: site.dscp(marker) for marker in sent} == sent


def test_what_a_job_with_a_scitag_sends_says_so_in_its_flow_label(site: Site) -> None:
    sent = {name: [f"scitag of {name} {n} {time.monotonic_ns()}" for n in range(12)] for name in ("physicist", "step")}
    for name, markers in sent.items():
        for marker in markers:
            site.jobs[name].machine.run([this_python(), "-c", SEND, FILES6, marker]).need()
    wait_until("all are seen outside", lambda: None not in [site.label(m) for ms in sent.values() for m in ms], 10)
    labels = {name: [site.label(marker) or 0 for marker in markers] for name, markers in sent.items()}
    assert {scitags.of_flow_label(label) for label in labels["physicist"]} == {(3, 14)}
    assert len(set(labels["physicist"])) > 1, "the free bits are those of each socket, so that flows spread over paths"
    others = {scitags.of_flow_label(label) for label in labels["step"]}
    assert len(others) > 1, "a job without a scitag keeps the labels of its kernel, which mean nothing"
    assert {site.dscp(marker) for marker in sent["physicist"]} == {AF41}, "beside its class"


def test_a_service_in_audit_mode_is_reached_counted_and_logged(site: Site) -> None:
    physicist, other = site.jobs["physicist"], site.jobs["other"]
    assert physicist.reaches(FILES, 1094)
    assert not other.reaches(FILES, 1094)  # this one is enforced
    refused = _no_grants(site, other)
    assert refused > 0
    assert other.reaches(DATABASE, 5432)
    wait_until("the switch has counted what audit let on", lambda: _no_grants(site, other) > refused, 10, 0.25)
    view = site.ask("GET", f"/v1/attempts/{other.id}")["decision"]
    assert (view["audited"], view["grants"]) == (["database"], [])
    counted = _no_grants(site, other)
    site.ask("DELETE", f"/v1/attempts/{other.id}")
    line = f"attempt={other.id} job=4.0 node=wn1 ended; refused, or let on by a rule in audit mode:"
    wait_until("the log says so", lambda: line in site.log(), 10)
    found = re.search(re.escape(line) + r".*no-grant (\d+) packets", site.log())
    assert found
    assert int(found.group(1)) == counted
    # The end took the way along that was open a moment ago.
    assert not other.reaches(DATABASE, 5432)


def test_the_end_of_a_service_s_audit_closes_it_and_is_logged(site: Site) -> None:
    """An included file is changed, and SIGHUP sent."""
    step = site.jobs["step"]
    assert step.reaches(DATABASE, 5432)
    counted = _no_grants(site, step)
    assert counted > 0
    (site.host.root / "lark" / "services.yaml").write_text(SERVICES.replace(", mode: audit", ""))
    site.controller.send(signal.SIGHUP)
    line = "node=wn1 the policy changes; until now refused, or let on by a rule in audit mode: "
    wait_until("the log says what was let on until now", lambda: line in site.log(), 10)
    found = re.search(re.escape(line) + r".*no-grant (\d+) packets .*; jobs .*; from now on refused", site.log())
    assert found
    assert int(found.group(1)) == counted
    assert not step.reaches(DATABASE, 5432)
    assert site.jobs["physicist"].reaches(FILES, 1094)  # what was granted stays open


UDP_SERVICES = """\
services:
  stream: {hosts: [10.20.0.5], ports: [udp/5353], protected: true}
"""
UDP_POLICY = """\
mode: enforce
include: [services.yaml]
networks: {campus: [10.9.1.0/24], elsewhere: [10.8.1.0/24]}
attributes:
  LarkServes: {type: boolean, default: false}
groups:
  physics: 'LarkGroup =?= "physics"'
  in-a-dag: 'DAGManJobId =!= undefined'
  serves: 'LarkServes =?= true'
grants:
  - {for: physics, to: stream}
  - {for: in-a-dag, to: stream, trust-user: true}
expose:
  - {for: physics, ports: [udp/9000], to: [campus]}
  - {for: serves, ports: [udp/9000], to: [campus, elsewhere], trust-user: true}
defaults: {egress: deny, ingress: deny, between-jobs: deny}
"""
ONE_GRANT = UDP_POLICY.replace("  - {for: in-a-dag, to: stream, trust-user: true}\n", "")
ONE_NETWORK = UDP_POLICY.replace("[campus, elsewhere]", "[campus]")
OPEN = UDP_POLICY.replace("egress: deny", "egress: allow")


def put_in_force(site: Site, policy: str) -> None:
    lark = site.host.root / "lark"
    (lark / "services.yaml").write_text(UDP_SERVICES)
    (lark / "policy.yaml").write_text(policy)
    forgets = "has forgotten the connections of"
    before, forgotten = site.log().count("reloaded: policy"), site.log().count(forgets)
    site.controller.send(signal.SIGHUP)
    wait_until("the policy is in force", lambda: site.log().count("reloaded: policy") == before + 1, 20)
    if " 0 of them may do less" not in site.log().rpartition("attempts decided anew,")[2]:
        wait_until("connections are forgotten", lambda: site.log().count(forgets) > forgotten, 20)


def _heard(daemon: Daemon) -> int:
    return daemon.log.read_text(encoding="utf-8").count("got")


@pytest.mark.parametrize(
    ("before", "after", "ends"),
    [
        pytest.param(UDP_POLICY, ONE_GRANT, "a service, to step", id="grant-withdrawn"),
        pytest.param(UDP_POLICY, ONE_NETWORK, "database, to elsewhere", id="expose-narrowed"),
        pytest.param(OPEN, UDP_POLICY, "the world, to physicist", id="egress-closed"),
    ],
)
def test_what_flows_ends_when_another_policy_forbids_it_and_all_else_goes_on(
    site: Site, before: str, after: str, ends: str
) -> None:
    """As long as it flows only one side sends, so nothing but the policy can end it. Who hears nothing calls again:
    what was forgotten with it, and is allowed, comes back; what is not does not."""
    physicist, step, database = (site.jobs[name] for name in ("physicist", "step", "database"))
    put_in_force(site, before)
    streams = {
        "a service, to physicist": (site.outside, FILES, 5353, physicist.machine, physicist.ipv4),
        "a service, to step": (site.outside, FILES, 5353, step.machine, step.ipv4),
        "physicist, to campus": (physicist.machine, physicist.ipv4, 9000, site.outside, CAMPUS),
        "database, to elsewhere": (database.machine, database.ipv4, 9000, site.outside, ELSEWHERE),
    }
    if before == OPEN:
        streams["the world, to physicist"] = (site.outside, DATABASE, 6000, physicist.machine, physicist.ipv4)
    servers: dict[tuple[str, int], Daemon] = {}
    callers: dict[str, Daemon] = {}
    try:
        for name, (where, host, port, whence, source) in streams.items():
            if (host, port) not in servers:
                servers[host, port] = where.spawn(f"stream{port}", [this_python(), "-c", STREAM, host, str(port)])
                servers[host, port].wait_for_line("streaming", 10)
            callers[name] = whence.spawn(f"call-{source}-{port}", [this_python(), "-c", CALL, source, host, str(port)])
            wait_until(f"it flows: {name}", lambda name=name: _heard(callers[name]) > 20, 10)  # type: ignore[misc]
        put_in_force(site, after)

        def ended() -> bool:
            seen = {name: _heard(one) for name, one in callers.items()}
            others = [name for name in callers if name != ends]
            wait_until("the others go on", lambda: all(_heard(callers[n]) > seen[n] + 50 for n in others), 15)
            return _heard(callers[ends]) == seen[ends]

        wait_until(f"it has ended: {ends}", ended, 15)
    finally:
        for daemon in (*callers.values(), *servers.values()):
            daemon.stop()


def _no_grants(site: Site, job: Job) -> int:
    """Packets refused to a job for want of a grant, once the counters have come to rest."""

    def read() -> int:
        denied = site.ask("GET", f"/v1/attempts/{job.id}")["counters"]["denied"]
        return int(sum(one["packets"] for one in denied if one["reason"] == "no-grant"))

    last, since = read(), time.monotonic()
    while time.monotonic() < since + 1.5:
        time.sleep(0.25)
        now = read()
        if now != last:
            last, since = now, time.monotonic()
    return last
