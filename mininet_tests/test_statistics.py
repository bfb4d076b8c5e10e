"""Counters of a job and of a border's classes beside those of the interfaces, with real packets, over restarts.

    job eth0 ── lj2 br1 up0 ── lan0 edge-br wan0 ── eth0 outside          (both bridges in one real Open vSwitch)

The job sends to the outside and is sent back as much. At rest the job's counters are those of its interface, and the
sums of the classes those of the border's interfaces: before and after the controller and the switch were killed.
"""

from __future__ import annotations

import functools
import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from mininet_tests.edge_site import ask_api, prepare_bridges, site_text
from mininet_tests.node_rig import machines
from mininet_tests.site.lark import API, ENVIRONMENT, Controller, Larkctl, python_command
from mininet_tests.site.namespaces import Daemon, Machine, this_python, wait_until, wire
from mininet_tests.site.openvswitch import OpenVSwitch
from tests.unit.controller.rig import aid, node_spec, spec

POLICY = """\
services: {vault: {hosts: [203.0.113.9], ports: [udp/7000], protected: true}}
groups: {production: 'LarkGroup =?= "production"'}
classes:
  - {name: production, dscp: af41, guarantee: 50%}
  - {name: rest, dscp: cs1, guarantee: 10%}
classify: [{for: production, class: production}]
"""
JOB, OUTSIDE, VAULT, PORT = "10.20.1.2", "198.51.100.7", "203.0.113.9", 7001
MACS = {"job": "02:6c:0a:14:01:02", "outside": "02:00:00:00:00:07"}
MEGABYTE = 10**6
SERVE = f"""
import socket, threading
def one(s):
    want = int.from_bytes(s.recv(8), "big")
    left = want
    while left:
        left -= len(s.recv(min(left, 65536)))
    s.sendall(bytes(want)); s.close()
listener = socket.create_server(("{OUTSIDE}", {PORT}))
print("listening", flush=True)
while True:
    threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()
"""
TALK = f"""
import socket, sys
want = left = int(sys.argv[1])
s = socket.create_connection(("{OUTSIDE}", {PORT}), timeout=60)
s.sendall(want.to_bytes(8, "big") + bytes(want))
while left:
    got = len(s.recv(min(left, 65536)))
    assert got
    left -= got
"""
KNOCK = f"""
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(int(sys.argv[1])):
    s.sendto(bytes(100), ("{VAULT}", 7000))
"""
FORGE = f"""
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("eth0", 0))
ends = socket.inet_aton("{JOB}") + socket.inet_aton("{VAULT}")
frame = bytes.fromhex("{MACS["job"]}{MACS["outside"]}".replace(":", "")) + bytes.fromhex("0800")
frame += bytes.fromhex("45000014000000004011") + bytes(2) + ends
for _ in range(int(sys.argv[1])):
    s.send(frame.ljust(60, bytes(1)))
"""
SCRAPE = f"""
import sys, urllib.request
ask = urllib.request.Request("http://{API}/metrics", headers={{"Authorization": "Bearer " + sys.argv[1]}})
print(urllib.request.urlopen(ask, timeout=30).read().decode())
"""


@dataclass
class Counted:
    edge: Machine
    job: Machine
    outside: Machine
    controller: Controller
    switch: OpenVSwitch
    larkctl: Larkctl
    token: str
    border: Daemon
    said: list[dict[str, Any]] = field(default_factory=list)
    """All that was ever told of the classes and the job, to see that nothing goes back."""

    def put(self, path: str, body: str) -> None:
        ask_api(self.edge, self.token, "PUT", path, body)

    def talk(self, octets: int) -> None:
        self.job.run([this_python(), "-c", TALK, str(octets)], timeout=120).need()

    def interface(self, machine: Machine, name: str) -> dict[str, int]:
        """What the kernel has counted: bytes that left by it and came in."""
        (found,) = json.loads(machine.need("ip", "-j", "-s", "link", "show", "dev", name))
        return {side: found["stats64"][side]["bytes"] for side in ("rx", "tx")}

    def job_counters(self) -> dict[str, Any]:
        def told() -> dict[str, Any] | None:
            found: Any = self.larkctl.json("attempt", aid())["counters"]
            return None if found is None else dict(found)

        return wait_until("the switch tells the job's counters", told, 60, 0.5)

    def classes(self) -> dict[tuple[str, str], dict[str, Any]]:
        found: Any = self.larkctl.json("stats")["classes"]
        return {(one["port"], one["name"]): one for one in found}

    def look(self) -> dict[str, Any]:
        """What is told now; nothing of it is less than what was told before."""
        job, classes = self.job_counters(), self.classes()
        now = {
            "sent": job["admitted_bytes"],
            "received": job["delivered_bytes"],
            "refused": {one["reason"]: one["packets"] for one in job["denied"]},
            "crossed": job["borders"]["edge-br"]["bytes"],
            "classes": {f"{port} {name}": one["bytes"] for (port, name), one in classes.items()},
        }
        if self.said:
            before = self.said[-1]
            for key in ("sent", "received", "crossed"):
                assert now[key] >= before[key], (key, before, now)
            for key in ("refused", "classes"):
                for one, value in before[key].items():
                    assert now[key][one] >= value, (one, before, now)
        self.said.append(now)
        return now

    def in_line(self) -> dict[str, bool]:
        found: Any = self.larkctl.json("bridges")["bridges"]
        return {one["bridge"]: one["converged"] for one in found}

    def wait_for_report(self) -> None:
        """The border's agent has told this controller what its queues have carried."""

        def told() -> bool:
            found: Any = self.larkctl.json("stats")["borders"]
            return found[0]["age"] is not None

        wait_until("the border has reported", told, 60, 0.25)

    def metric(self, name: str, *labels: str) -> float:
        """A line of /metrics; None of it yet: 0."""
        argv = [this_python(), "-c", SCRAPE, (self.controller.home / "viewer.token").read_text()]
        lines = [line for line in self.edge.run(argv).need().out.splitlines() if line.startswith(name + "{")]
        return sum(float(line.rpartition(" ")[2]) for line in lines if all(f'"{label}"' in line for label in labels))

    def agree(self) -> None:
        """At rest the counters agree with the interfaces, to a thousandth."""

        def differences() -> list[str]:
            told = self.look()
            mine = self.interface(self.job, "eth0")
            wan, lan = self.interface(self.edge, "wan0"), self.interface(self.edge, "lan0")
            sums = {port: sum(v for k, v in told["classes"].items() if k.startswith(port)) for port in ("wan0", "lan0")}
            pairs = {
                "job sent": (told["sent"], mine["tx"]),
                "job received": (told["received"], mine["rx"]),
                "classes out": (sums["wan0"], wan["tx"]),
                "classes in": (sums["lan0"], lan["tx"]),
                "production out": (told["classes"]["wan0 production"], wan["tx"]),
                # What comes to the border from either side; queues drop some of it after that.
                "crossed": (told["crossed"], lan["rx"] + wan["rx"]),
            }
            return [f"{what}: {a} and {b}" for what, (a, b) in pairs.items() if abs(a - b) > b / 1000]

        # Open vSwitch counts twice a second, the border's agent reports every two.
        last: list[str] = []

        def agreed() -> bool:
            last[:] = differences()
            return not last

        try:
            wait_until("counters and interfaces agree", agreed, 30, 0.5)
        except Exception as error:
            raise AssertionError(f"they do not agree: {last}") from error


@pytest.fixture
def counted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Counted]:
    root = tmp_path_factory.mktemp("counted")
    with machines(root, "edge", "job", "outside") as (edge, job, outside):
        wire(edge, "lj2", job, "eth0")
        wire(edge, "wan0", outside, "eth0")
        wire(edge, "up0", edge, "lan0")
        edge.need("ip", "address", "add", "192.0.2.1/32", "dev", "lo")
        for name, machine in (("job", job), ("outside", outside)):
            machine.need("sysctl", "-q", "-w", "net.ipv6.conf.eth0.disable_ipv6=1")
            machine.need("ip", "link", "set", "eth0", "address", MACS[name])
        for port in ("lj2", "wan0", "up0", "lan0"):
            edge.need("sysctl", "-q", "-w", f"net.ipv6.conf.{port}.disable_ipv6=1")
            edge.need("ip", "link", "set", port, "arp", "off")
        # Nobody looks for neighbours: every frame is one of the job's packets or an answer to one.
        for machine, mine, far, mac in (
            (job, JOB, (OUTSIDE, VAULT), MACS["outside"]),
            (outside, OUTSIDE, (JOB,), MACS["job"]),
        ):
            machine.need("ip", "address", "add", f"{mine}/32", "dev", "eth0")
            for address in far:
                machine.need("ip", "neigh", "replace", address, "lladdr", mac, "dev", "eth0", "nud", "permanent")
                machine.need("ip", "route", "add", f"{address}/32", "dev", "eth0", "src", mine)
        switch = OpenVSwitch(edge)
        switch.start()
        controller = Controller(edge, "os-ken")
        controller.write(site_text("80 Mbit/s"), POLICY)
        config = controller.home / "controller.yaml"
        config.write_text(config.read_text() + "count-every: 2\n")
        token = controller.token("agent", "wn1")
        for name, secret in (
            ("border", controller.token("border", bridge="edge-br")),
            ("viewer", controller.token("viewer")),
        ):
            path = controller.home / f"{name}.token"
            path.touch(mode=0o600)
            path.write_text(secret)
        controller.start()
        prepare_bridges(edge)
        switch.vsctl("add-port", "br1", "lj2", "--", "set", "interface", "lj2", "ofport_request=102")
        (controller.home / "border.yaml").write_text(
            "bridge: edge-br\nstate-dir: border-state\n"
            f'controller: {{urls: ["http://{API}"], token-file: border.token, allow-plaintext: true}}\n'
        )
        border = edge.spawn(
            "border", python_command("ovs_agent.cli", "border", "--config", str(controller.home / "border.yaml")),
            env=ENVIRONMENT,
        )  # fmt: skip
        border.wait_for_line("keeping the queues", 30)
        listener = outside.spawn("listen", [this_python(), "-c", SERVE])
        listener.wait_for_line("listening", 10)
        larkctl = Larkctl(edge, controller.home / "viewer.token")
        found = Counted(edge, job, outside, controller, switch, larkctl, token, border)
        found.wait_for_report()
        yield found
        border.stop()
        if controller.daemon is not None:
            controller.stop()
        switch.stop()


def test_counters_agree_with_interfaces_and_never_go_back(counted: Counted) -> None:
    counted.put("/v1/nodes/wn1", node_spec().model_dump_json(exclude_none=True))
    wanted = spec(LarkGroup="production").model_copy(update={"ipv6": None})
    counted.put(f"/v1/attempts/{aid()}", wanted.model_dump_json(exclude_none=True))
    counted.talk(6 * MEGABYTE)
    counted.agree()
    first = counted.said[-1]
    assert first["sent"] > 6 * MEGABYTE < first["received"]
    assert first["refused"]["no-grant"] == 0
    # What is refused leaves the job's interface too, and is none of what it has sent to anybody.
    before = counted.interface(counted.job, "eth0")["tx"]
    counted.job.need(this_python(), "-c", KNOCK, "20")
    knocked = counted.interface(counted.job, "eth0")["tx"] - before
    assert knocked == 20 * (14 + 20 + 8 + 100)
    wait_until("refusals are counted", lambda: counted.look()["refused"]["no-grant"] == 20, 30, 0.5)

    # What comes from the WAN as a job's is the border's to tell.
    counted.outside.need(this_python(), "-c", FORGE, "20")
    wait_until(
        "forged frames are counted",
        lambda: counted.metric("lark_border_refused_packets_total", "edge-br", "forged") == 20,
        30,
        0.5,
    )

    counted.controller.stop(signal.SIGKILL)
    counted.controller.start()
    counted.wait_for_report()
    counted.talk(3 * MEGABYTE)
    counted.agree()

    counted.switch.kill_switch()
    counted.switch.start_switch()
    prepare_bridges(counted.edge)
    for bridge in ("br1", "edge-br"):
        flows = functools.partial(counted.switch.flows, bridge)
        wait_until(f"{bridge} has its flows", lambda flows=flows: len(flows()) > 20, 60, 0.25)  # type: ignore[misc]
    wait_until("both bridges are in line", lambda: all(counted.in_line().values()), 60, 0.25)
    counted.look()
    counted.talk(2 * MEGABYTE)
    # What was counted before the switch died is still there: it was asked for while nothing was sent.
    counted.agree()
    assert counted.said[-1]["refused"]["no-grant"] == 20

    # And both at once: what a switch has forgotten is remembered by nobody but the file.
    counted.controller.stop(signal.SIGKILL)
    counted.controller.start()
    counted.wait_for_report()
    counted.agree()
    counted.talk(MEGABYTE)
    counted.agree()
    assert counted.said[-1]["refused"]["no-grant"] == 20
    assert counted.said[-1]["sent"] > 12 * MEGABYTE

    wait_until(
        "all jobs together are counted", lambda: counted.metric("lark_job_bytes_total", "sent") > MEGABYTE, 30, 0.5
    )
    assert (
        counted.metric("lark_class_bytes_total", "wan0", "production")
        == counted.classes()["wan0", "production"]["bytes"]
    )
    assert "lan0  in   production" in counted.larkctl.text("stats")
