"""The daemon on a border, run as an administrator runs it: real controller, real Open vSwitch, the kernel's own queues.

What happens to the traffic in these queues is `test_border_traffic.py`.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mininet_tests.border_rig import BRIDGE, BorderRig, Lane
from mininet_tests.site.lark import API, ENVIRONMENT, Controller, Larkctl, python_command
from mininet_tests.site.namespaces import Daemon, wait_until

LANES = [Lane("production", 1, 34), Lane("xrootd", 2, 26), Lane("osg", 3, 8)]
SITE = f"""\
site: border
network: {{ipv4: 10.9.0.0/24, gateway-ipv4: 10.9.0.254, mtu: 1500}}
infrastructure: [192.0.2.0/24]
nodes: {{}}
bridges:
  {BRIDGE}:
    datapath-id: "00000000000000c1"
    roles: [border]
    ports: {{uplink: [lan0], wan: [{{name: wan0, rate: 50 Mbit/s}}]}}
"""
POLICY = """\
mode: enforce
classes:
  - {name: production, dscp: af41, guarantee: 50%}
  - {name: xrootd, dscp: af31, guarantee: 30%}
  - {name: osg, dscp: cs1, guarantee: 10%, ceiling: 80%}
classify: [{class: osg}]
"""


def _bits(text: str) -> int:
    """As tc writes rates: 50Mbit, 500Kbit."""
    number, unit = re.fullmatch(r"(\d+)([KMG]?)bit", text).groups()  # type: ignore[union-attr]
    return int(number) * {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}[unit]


@dataclass
class Border:
    """The daemon, its controller, and the machine's queues as `tc` tells them."""

    rig: BorderRig
    controller: Controller
    larkctl: Larkctl
    daemon: Daemon | None = None

    @property
    def config(self) -> Path:
        return self.rig.border.root / "lark" / "border.yaml"

    def start(self) -> None:
        argv = python_command("ovs_agent.cli", "border", "--config", str(self.config))
        log = self.rig.border.root / "log" / "border.log"
        log.unlink(missing_ok=True)
        self.daemon = self.rig.border.spawn("border", argv, env=ENVIRONMENT)
        self.daemon.wait_for_line("keeping the queues", 20)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        assert self.daemon is not None
        self.daemon.stop(number=number)
        self.daemon = None

    def policy(self, text: str) -> None:
        (self.controller.home / "policy.yaml").write_text(text)
        assert self.controller.daemon is not None
        self.controller.daemon.send(signal.SIGHUP)

    def qdiscs(self, port: str) -> list[dict[str, Any]]:
        return list(json.loads(self.rig.border.need("tc", "-j", "qdisc", "show", "dev", port) or "[]"))

    def classes(self, port: str = "wan0") -> dict[str, tuple[int, int, int]]:
        """Rate and ceiling (bit/s) and prio of each leaf, by class id."""
        text = self.rig.border.need("tc", "class", "show", "dev", port)
        found = re.findall(r"class htb (\S+) parent \S+ .*?prio (\d+) rate (\S+) ceil (\S+) ", text)
        return {handle: (_bits(rate), _bits(ceil), int(prio)) for handle, prio, rate, ceil in found}

    def sent(self, port: str = "wan0") -> dict[str, tuple[int, int]]:
        """Bytes and packets of each class."""
        text = self.rig.border.need("tc", "-s", "class", "show", "dev", port)
        found = re.findall(r"class htb (\S+) .*\n Sent (\d+) bytes (\d+) pkt", text)
        return {handle: (int(octets), int(packets)) for handle, octets, packets in found}

    def roots(self) -> dict[str, str]:
        return {
            port: " ".join((one["kind"], one["handle"]))
            for port in ("wan0", "lan0")
            for one in self.qdiscs(port)
            if one.get("root")
        }

    def status(self) -> dict[str, Any]:
        found: Any = self.larkctl.json("bridges")
        return dict(found["bridges"][0]["queues"] or {})

    def wait_in_force(self) -> None:
        # A busy machine may lose frames in the switch's receive buffer, which is a fault for 30 s.
        wait_until("the queues are in force", lambda: self.status().get("in_force"), 60, 0.25)

    def faults(self) -> list[str]:
        return list(self.status()["report"]["faults"])

    def wait_fault(self, words: str) -> None:
        def there() -> bool:
            return any(words in fault for fault in self.faults())

        wait_until(f"a fault that says {words!r}", there, 15, 0.25)


@pytest.fixture(scope="module")
def border() -> Iterator[Border]:
    with BorderRig(LANES) as rig:
        machine = rig.border
        machine.need("ip", "addr", "add", "192.0.2.1/32", "dev", "lo")
        controller = Controller(machine, "os-ken")
        controller.write(SITE, POLICY)
        secret, viewer = machine.root / "lark" / "border.token", machine.root / "lark" / "viewer.token"
        for path, token in (
            (secret, controller.token("border", bridge=BRIDGE)),
            (viewer, controller.token("viewer")),
        ):
            path.touch(mode=0o600)
            path.write_text(token)
        controller.start()
        found = Border(rig, controller, Larkctl(machine, viewer))
        found.config.write_text(
            f"bridge: {BRIDGE}\nstate-dir: border-state\n"
            f'controller: {{urls: ["http://{API}"], token-file: border.token, allow-plaintext: true}}\n'
        )
        # The switch's one send buffer is told of as too small for six queues unless it is made larger.
        rig.delays(LANES[0], 5)
        rig.widen(2**24)
        found.start()
        found.wait_in_force()
        yield found
        if found.daemon is not None:
            found.stop()


M = 10**6


def test_each_way_out_has_the_classes_of_the_policy(border: Border) -> None:
    assert border.roots() == {"wan0": "htb 1a2b:", "lan0": "htb 1a2b:"}
    wan, lan = border.classes("wan0"), border.classes("lan0")
    assert wan == {
        "1a2b:122": (25 * M, 50 * M, 0),
        "1a2b:11a": (15 * M, 50 * M, 1),
        "1a2b:108": (5 * M, 40 * M, 2),
        "1a2b:2": (M // 2, M // 2, 0),
    }
    assert lan["1a2b:122"] == (24 * M, 48 * M, 0)
    # A full queue must not be an error to the switch: it would drop what it sends in the same call.
    assert {one["kind"] for one in border.qdiscs("wan0") if not one.get("root")} == {"pfifo_head_drop"}
    features = border.rig.border.need("ethtool", "-k", "wan0")
    assert "tx-tcp-segmentation: off" in features
    assert "generic-segmentation-offload: off" in features


def test_frames_go_to_the_queue_of_their_code_point_in_both_families(border: Border) -> None:
    def packets() -> dict[str, int]:
        return {handle: packets for handle, (_, packets) in border.sent().items()}

    lane = {"1a2b:122": LANES[0], "1a2b:11a": LANES[1], "1a2b:108": LANES[2]}
    for handle, one in lane.items():
        for command in (["ping", "-I", one.inside, one.outside], ["ping", "-6", "-I", one.inside6, one.outside6]):
            before = packets()
            border.rig.inside.need(*command[:1], "-q", "-c5", "-i0.05", *command[1:])
            after = packets()
            grown = {minor: after[minor] - before[minor] for minor in lane}
            assert grown == {minor: 5 if minor == handle else 0 for minor in lane}, command
    before = packets()
    border.rig.inside.need("ip", "neigh", "flush", "all")
    # Hosts of no class: the last one's queue; ARP and neighbour discovery: their own.
    border.rig.inside.need("ip", "addr", "add", "10.9.0.77/16", "dev", "eth0")
    border.rig.inside.need("ping", "-q", "-c5", "-i0.05", "-I", "10.9.0.77", LANES[0].outside)
    border.rig.inside.need("ip", "addr", "del", "10.9.0.77/16", "dev", "eth0")
    after = packets()
    assert after["1a2b:108"] - before["1a2b:108"] == 5
    assert after["1a2b:2"] > before["1a2b:2"]


def test_a_changed_policy_changes_classes_in_place_and_breaks_no_connection(border: Border) -> None:
    sender = border.rig.send(LANES[1], streams=1)
    try:
        wait_until("it sends", lambda: border.rig.arrived()["xrootd"] > M, 10)
        handles = {one["parent"]: one["handle"] for one in border.qdiscs("wan0") if not one.get("root")}
        before = {handle: octets for handle, (octets, _) in border.sent().items()}
        changed = POLICY.replace("30%", "20%").replace(
            "classes:\n", "classes:\n  - {name: urgent, dscp: ef, guarantee: 5%}\n"
        )
        border.policy(changed)
        wait_until("the new class is there", lambda: "1a2b:12e" in border.classes(), 10, 0.1)
        border.wait_in_force()
        assert border.classes()["1a2b:12e"] == (5 * M // 2, 50 * M, 0)
        assert border.classes()["1a2b:11a"] == (10 * M, 50 * M, 2)
        now = {one["parent"]: one["handle"] for one in border.qdiscs("wan0") if not one.get("root")}
        assert now.items() >= handles.items()  # the same queues as before
        after = {handle: octets for handle, (octets, _) in border.sent().items()}
        assert all(after[handle] >= before[handle] for handle in before)  # their counters go on
        border.policy(POLICY)
        wait_until("the class is gone again", lambda: "1a2b:12e" not in border.classes(), 10, 0.1)
        border.wait_in_force()
        arrived = border.rig.arrived()["xrootd"]
        wait_until("it still sends", lambda: border.rig.arrived()["xrootd"] > arrived + M, 10)
        assert border.rig.sending(sender)
    finally:
        border.rig.leave(sender)


def test_what_is_as_wished_is_not_touched_and_what_was_removed_comes_back(border: Border) -> None:
    before = border.qdiscs("wan0")
    wait_until("some reports later", lambda: border.status()["age"] < 1, 10, 0.2)
    assert [one["handle"] for one in border.qdiscs("wan0")] == [one["handle"] for one in before]
    border.rig.border.need("tc", "qdisc", "del", "dev", "wan0", "root")
    assert border.roots()["wan0"] != "htb 1a2b:"
    wait_until("the queues are back", lambda: border.roots()["wan0"] == "htb 1a2b:", 10, 0.1)
    assert set(border.classes()) == {"1a2b:122", "1a2b:11a", "1a2b:108", "1a2b:2"}


def test_queues_that_refuse_the_newest_frame_are_replaced_once(border: Border) -> None:
    border.rig.border.need("tc", "qdisc", "replace", "dev", "wan0", "parent", "1a2b:108", "pfifo", "limit", "50")
    before = {one["parent"]: one["kind"] for one in border.qdiscs("wan0") if not one.get("root")}
    assert before["1a2b:108"] == "pfifo"

    def kinds() -> set[str]:
        return {one["kind"] for one in border.qdiscs("wan0") if not one.get("root")}

    wait_until("it is replaced", lambda: kinds() == {"pfifo_head_drop"}, 10, 0.1)
    border.wait_in_force()


def test_somebody_elses_qdisc_is_left_alone_and_told(border: Border) -> None:
    border.stop()
    border.rig.border.need("tc", "qdisc", "del", "dev", "lan0", "root")
    border.rig.border.need("tc", "qdisc", "add", "dev", "lan0", "root", "handle", "7:", "pfifo", "limit", "500")
    try:
        border.start()
        border.wait_fault("lan0: has a root qdisc pfifo 7: that is not ours")
        assert border.roots() == {"wan0": "htb 1a2b:", "lan0": "pfifo 7:"}
        assert border.status()["in_force"] is False
    finally:
        border.rig.border.need("tc", "qdisc", "del", "dev", "lan0", "root")
    border.wait_in_force()
    assert border.roots()["lan0"] == "htb 1a2b:"


def test_restarts_of_daemon_and_switch_leave_queues_and_connections(border: Border) -> None:
    sender = border.rig.send(LANES[0], streams=1)
    try:
        wait_until("it sends", lambda: border.rig.arrived()["production"] > M, 10)
        handles = [one["handle"] for one in border.qdiscs("wan0")]
        border.stop(signal.SIGKILL)
        assert border.roots()["wan0"] == "htb 1a2b:"
        border.start()
        border.wait_in_force()
        assert [one["handle"] for one in border.qdiscs("wan0")] == handles
        assert border.rig.switch is not None
        border.rig.switch.kill_switch()
        border.rig.switch.start_switch()
        border.rig.write_flows()
        # Of its own accord Open vSwitch removes what it did not make: the ports are marked as not its business.
        assert border.roots() == {"wan0": "htb 1a2b:", "lan0": "htb 1a2b:"}
        assert [one["handle"] for one in border.qdiscs("wan0")] == handles
        arrived = border.rig.arrived()["production"]
        wait_until("it still sends", lambda: border.rig.arrived()["production"] > arrived + M, 20)
        assert border.rig.sending(sender)
    finally:
        border.rig.leave(sender)
    border.rig.widen(2**24)
    border.wait_in_force()


def test_without_a_controller_the_last_wish_is_in_force_from_the_start(border: Border) -> None:
    border.stop()
    border.controller.stop()
    border.rig.border.need("tc", "qdisc", "del", "dev", "wan0", "root")
    border.start()
    assert "1a2b:122" in border.classes()
    border.controller.start()
    border.wait_in_force()


def test_a_missing_port_is_told_and_the_others_go_on(border: Border) -> None:
    assert border.rig.switch is not None
    border.rig.switch.vsctl("del-port", BRIDGE, "wan0")
    try:
        border.wait_fault(f"port wan0 is not plugged into bridge {BRIDGE}")
        assert border.roots()["lan0"] == "htb 1a2b:"
    finally:
        border.rig.switch.vsctl("add-port", BRIDGE, "wan0")
        border.rig.write_flows()
    border.wait_in_force()


def test_a_link_below_the_rate_is_told(border: Border) -> None:
    # A veth says 10 Gbit/s and cannot say otherwise; a tap's speed can be set, as a cable sets that of a real port.
    machine = border.rig.border
    machine.need("ip", "tuntap", "add", "dev", "wan9", "mode", "tap")
    machine.need("ip", "link", "set", "wan9", "up")
    assert border.rig.switch is not None
    border.rig.switch.vsctl("add-port", BRIDGE, "wan9")
    site = border.controller.home / "site.yaml"
    try:
        machine.need("ethtool", "-s", "wan9", "speed", "1000", "duplex", "full")
        border.controller.stop()
        site.write_text(SITE.replace("]}\n", ", {name: wan9, rate: 100 Mbit/s}]}\n"))
        border.controller.start()
        wait_until("three ports are kept", lambda: len(border.status().get("report", {}).get("ports", ())) == 3, 20)
        border.wait_in_force()
        machine.need("ethtool", "-s", "wan9", "speed", "10", "duplex", "full")
        border.wait_fault("port wan9: its link runs at 10 Mbit/s, below the 100 Mbit/s of site.yaml")
        assert border.roots()["wan0"] == "htb 1a2b:"
    finally:
        border.controller.stop()
        site.write_text(SITE)
        border.controller.start()
        border.rig.switch.vsctl("del-port", BRIDGE, "wan9")
    # A port that is wished for no more is given back.
    wait_until("wan9 has no queues", lambda: "1a2b:" not in str(border.qdiscs("wan9")), 20, 0.25)
    machine.need("ip", "link", "del", "wan9")
    border.wait_in_force()


def test_cleaning_up_gives_every_port_back(border: Border) -> None:
    machine = border.rig.border
    command = python_command("ovs_agent.cli", "border-cleanup", "--config", str(border.config))
    refused = machine.run(command, env=ENVIRONMENT)
    assert refused.code != 0
    assert "stop it first" in refused.text
    assert border.roots()["wan0"] == "htb 1a2b:"
    border.stop()
    said = machine.run(command, env=ENVIRONMENT).need().out
    assert "removed the queues of wan0" in said
    assert border.roots() == {"wan0": "noqueue 0:", "lan0": "noqueue 0:"}
    assert border.rig.switch is not None
    assert border.rig.switch.vsctl("--bare", "--columns=type", "list", "QoS").strip() == ""
    assert "generic-segmentation-offload: on" in machine.need("ethtool", "-k", "wan0")
    assert machine.run(command, env=ENVIRONMENT).need().out.strip() == "nothing to remove"
    border.start()
    border.wait_in_force()
