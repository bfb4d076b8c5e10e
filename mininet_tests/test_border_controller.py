"""A border under the real controller: what a job sends changes its class with the job's life and with the policy.

One connection runs all the time, with a datagram beside each of its words, while a job is registered, the policy is
replaced by one with another class, the controller is killed and comes back, and the job ends. Nothing is lost.
"""

from __future__ import annotations

import json
import signal
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mininet_tests import frames as f
from mininet_tests.edge_site import ask_api, prepare_bridges, site_text
from mininet_tests.node_rig import machines
from mininet_tests.site.lark import Controller
from mininet_tests.site.namespaces import Daemon, Machine, this_python, wait_until, wire
from mininet_tests.site.openvswitch import OpenVSwitch
from mininet_tests.switch_rig import ENGINES
from mininet_tests.test_border_packets import LISTEN, STREAM, WAN4, give, outcome
from tests.unit.controller.rig import aid, node_spec, spec

POLICY = """\
groups: {production: 'LarkGroup =?= "production"'}
classes: [{name: production, dscp: af41, guarantee: 50%}, {name: rest, dscp: cs1, guarantee: 10%}]
classify: [{for: production, class: production}]
"""
MORE = """\
groups: {production: 'LarkGroup =?= "production"', others: 'LarkGroup =?= "others"'}
services: {web: {ports: [tcp/81]}}
classes:
  - {name: urgent, dscp: ef, guarantee: 5%}
  - {name: production, dscp: af42, guarantee: 40%}
  - {name: rest, dscp: cs1, guarantee: 10%}
classify: [{service: web, class: urgent}, {for: others, class: urgent}, {for: production, class: production}]
"""
JOB4, SERVER4, PORT = "10.20.1.2", "10.20.0.9", 80
REST, PRODUCTION, PRODUCTION_NOW = 8, 34, 36


@dataclass
class Bordered:
    edge: Machine
    site: Machine
    wan: Machine
    controller: Controller
    switch: OpenVSwitch
    watcher: Daemon
    token: str

    def call(self, method: str, path: str, body: str = "") -> None:
        ask_api(self.edge, self.token, method, path, body)

    def marks(self, source: str) -> list[int]:
        """The code points of packets from an address, as they arrived outside."""
        found = []
        for line in self.watcher.log.read_text(encoding="utf-8").splitlines():
            frame = bytes.fromhex(line) if line and line[0] in "0123456789abcdef" and len(line) % 2 == 0 else b""
            if frame[12:14] == struct.pack("!H", f.IPV4) and frame[26:30] == bytes(map(int, source.split("."))):
                found.append(frame[15] >> 2)
        return found

    def comes_to(self, dscp: int) -> None:
        wait_until(f"the job's packets carry {dscp}", lambda: set(self.marks(JOB4)[-6:]) == {dscp}, 10)


@pytest.fixture(params=ENGINES)
def bordered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bordered]:
    root = tmp_path_factory.mktemp("bordered")
    with machines(root, "edge", "site", "wan") as (edge, site, wan):
        wire(edge, "lan0", site, "eth0")
        wire(edge, "wan0", wan, "eth0")
        wire(edge, "up0", edge, "up1")
        edge.need("ip", "address", "add", "192.0.2.1/32", "dev", "lo")
        switch = OpenVSwitch(edge)
        switch.start()
        controller = Controller(edge, request.param)
        controller.write(site_text("1 Gbit/s"), POLICY)
        token = controller.token("agent", "wn1")
        controller.start()
        prepare_bridges(edge)
        # The job's port is there, and nothing behind it: its packets come from the site's side of the border.
        wire(edge, "lj2", edge, "nobody")
        switch.vsctl("add-port", "br1", "lj2", "--", "set", "interface", "lj2", "ofport_request=102")
        give(site, SERVER4, JOB4)
        give(wan, WAN4)
        site.need("ip", "route", "add", f"{WAN4}/32", "dev", "eth0")
        wan.need("ip", "route", "add", "10.20.0.0/16", "dev", "eth0")
        watcher = wan.spawn("watch", [this_python(), str(Path(f.__file__)), "watch", "eth0"])
        watcher.wait_for_line("watching", 10)
        wan.spawn("listen", [this_python(), "-c", LISTEN, json.dumps([0, [(WAN4, PORT)]])]).wait_for_line(
            "listening", 10
        )
        wait_until("the border has its flows", lambda: len(switch.flows("edge-br")) > 20, 20)
        yield Bordered(edge, site, wan, controller, switch, watcher, token)
        controller.stop()
        switch.stop()


def test_a_jobs_class_follows_its_life_and_the_policy_without_a_packet_lost(bordered: Bordered) -> None:
    job = f"/v1/attempts/{aid()}"
    talking = bordered.site.spawn("stream", [this_python(), "-c", STREAM, json.dumps([JOB4, WAN4, PORT, 16.0])])
    talking.wait_for_line("talking", 10)
    bordered.comes_to(REST)
    bordered.call("PUT", "/v1/nodes/wn1", node_spec().model_dump_json(exclude_none=True))
    wanted = spec(LarkGroup="production").model_copy(update={"ipv6": None})
    bordered.call("PUT", job, wanted.model_dump_json(exclude_none=True))
    # The answer to the registration is the promise: from now on, not from soon on.
    arrived = len(bordered.marks(JOB4))
    bordered.comes_to(PRODUCTION)
    assert bordered.marks(JOB4)[arrived + 20 :].count(REST) == 0

    policy = bordered.controller.home / "policy.yaml"
    policy.write_text(MORE, encoding="utf-8")
    assert bordered.controller.daemon is not None
    bordered.controller.daemon.send(signal.SIGHUP)
    bordered.comes_to(PRODUCTION_NOW)

    flows = sorted(line.partition("priority=")[2] for line in bordered.switch.flows("edge-br"))
    bordered.controller.stop(signal.SIGKILL)
    bordered.controller.start()
    bordered.comes_to(PRODUCTION_NOW)

    def connected() -> bool:
        return bordered.switch.vsctl("--columns=is_connected", "--bare", "list", "controller").split() == ["true"] * 2

    wait_until("both bridges are back", connected, 10)
    assert sorted(line.partition("priority=")[2] for line in bordered.switch.flows("edge-br")) == flows
    bordered.call("DELETE", job)
    bordered.comes_to(REST)
    said = outcome(talking, 40)
    assert said["lost"] == 0
    assert said["sent"] > 500
    assert said["longest"] < 1
    assert set(bordered.marks(JOB4)) == {REST, PRODUCTION, PRODUCTION_NOW}
