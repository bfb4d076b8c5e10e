"""The daemon on a border, run as an administrator runs it: real controller, real Open vSwitch, the kernel's own queues.

What happens to the traffic in these queues is `test_border_traffic.py`.
"""

from __future__ import annotations

import functools
import json
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mininet_tests.border_rig import BRIDGE, Lane
from mininet_tests.border_site import BorderSite, border_site, site_text
from mininet_tests.site.lark import ENVIRONMENT, python_command
from mininet_tests.site.namespaces import wait_until
from mininet_tests.site.openvswitch import widen

LANES = [Lane("production", 1, 34), Lane("xrootd", 2, 26), Lane("osg", 3, 8)]
RATE = 50_000_000
SITE = site_text(RATE)
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
class Border(BorderSite):
    """With the machine's queues as `tc` tells them."""

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

    def faults(self) -> list[str]:
        return list(self.status()["report"]["faults"])

    def wait_fault(self, words: str) -> None:
        def there() -> bool:
            return any(words in fault for fault in self.faults())

        wait_until(f"a fault that says {words!r}", there, 60, 0.25)


@pytest.fixture(scope="module")
def built() -> Iterator[Border]:
    with border_site(LANES, RATE, POLICY) as site:
        yield Border(site.rig, site.controller, site.larkctl, site.agent)


@pytest.fixture
def border(built: Border) -> Iterator[Border]:
    """Whatever became of the test before: by the policy again, and its daemons run."""
    policy = built.controller.home / "policy.yaml"
    yield built
    if policy.read_text(encoding="utf-8") != POLICY:
        built.policy(POLICY)
    for daemon in (built.controller, built.agent):
        if daemon.daemon is None or not daemon.daemon.running():
            daemon.start()


M = 10**6
HOLD = """
import fcntl, struct, sys, time
tap = open("/dev/net/tun", "r+b", buffering=0)
fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", sys.argv[1].encode(), 0x1002))  # TUNSETIFF: IFF_TAP | IFF_NO_PI
print("held", flush=True)
time.sleep(600)
"""


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


def _says(log: Path, since: int, *words: str) -> bool:
    lines = log.read_text(encoding="utf-8")[since:].splitlines()
    return any(all(word in line for word in words) for line in lines)


def test_policies_that_cannot_be_are_refused_with_their_line_and_what_runs_stays(border: Border) -> None:
    before = border.classes("wan0"), border.classes("lan0")
    log = border.rig.border.root / "log" / "lark-controller.log"
    for change, line, said in (
        (("30%", "45%"), 5, "the guarantees up to here are 105% of the link"),
        (("10%, ceiling: 80%", "10%, ceiling: 5%"), 5, "the ceiling 5% is below the guarantee 10%"),
        (("dscp: af31", "dscp: af51"), 4, "'af51' is not a code point"),
    ):
        assert change[0] in POLICY
        old = len(log.read_text(encoding="utf-8"))
        border.policy(POLICY.replace(*change))
        told = functools.partial(_says, log, old, f"policy.yaml:{line}:", said)
        wait_until(f"the controller's log says {said!r}, with the line", told, 60)
    wait_until("some reports later", lambda: border.status()["age"] < 1, 60, 0.2)
    assert (border.classes("wan0"), border.classes("lan0")) == before
    assert border.status()["followed"]
    # The control: a policy that can be is followed, and so is what was before.
    border.policy(POLICY.replace("30%", "31%"))
    wait_until("another guarantee", lambda: border.classes()["1a2b:11a"][0] == 31 * M // 2, 60, 0.1)
    border.policy(POLICY)
    wait_until("the former one", lambda: border.classes("wan0") == before[0], 60, 0.1)
    border.wait_in_force()


def test_what_is_as_wished_is_not_touched_and_what_was_removed_comes_back(border: Border) -> None:
    before = border.qdiscs("wan0")
    wait_until("some reports later", lambda: border.status()["age"] < 1, 60, 0.2)
    assert [one["handle"] for one in border.qdiscs("wan0")] == [one["handle"] for one in before]
    border.rig.border.need("tc", "qdisc", "del", "dev", "wan0", "root")
    assert border.roots()["wan0"] != "htb 1a2b:"
    wait_until("the queues are back", lambda: border.roots()["wan0"] == "htb 1a2b:", 50, 0.1)
    # The root comes first: what has no class yet waits in none.
    every = {"1a2b:122", "1a2b:11a", "1a2b:108", "1a2b:2"}
    wait_until("their classes, too", lambda: set(border.classes()) == every, 50, 0.1)


def test_queues_that_refuse_the_newest_frame_are_replaced_once(border: Border) -> None:
    border.rig.border.need("tc", "qdisc", "replace", "dev", "wan0", "parent", "1a2b:108", "pfifo", "limit", "50")
    before = {one["parent"]: one["kind"] for one in border.qdiscs("wan0") if not one.get("root")}
    assert before["1a2b:108"] == "pfifo"

    def kinds() -> set[str]:
        return {one["kind"] for one in border.qdiscs("wan0") if not one.get("root")}

    wait_until("it is replaced", lambda: kinds() == {"pfifo_head_drop"}, 10, 0.1)
    border.wait_in_force()


def test_somebody_elses_qdisc_is_left_alone_and_told(border: Border) -> None:
    border.agent.stop()
    border.rig.border.need("tc", "qdisc", "del", "dev", "lan0", "root")
    border.rig.border.need("tc", "qdisc", "add", "dev", "lan0", "root", "handle", "7:", "pfifo", "limit", "500")
    try:
        border.agent.start()
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
        border.agent.stop(signal.SIGKILL)
        assert border.roots()["wan0"] == "htb 1a2b:"
        border.agent.start()
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
    widen(border.rig.border)
    border.wait_in_force()


def test_without_a_controller_the_last_wish_is_in_force_from_the_start(border: Border) -> None:
    border.agent.stop()
    border.controller.stop()
    border.rig.border.need("tc", "qdisc", "del", "dev", "wan0", "root")
    border.agent.start()
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
    # It has a link as long as somebody holds its other end.
    holder = machine.spawn("cable", [sys.executable, "-c", HOLD, "wan9"], env=ENVIRONMENT)
    holder.wait_for_line("held", 30)
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
        assert border.classes("wan9")["1a2b:122"] == (
            50 * M,
            100 * M,
            0,
        )  # as wished, and not as the link happens to be
        machine.need("ethtool", "-s", "wan9", "speed", "1000", "duplex", "full")
        assert border.agent.daemon is not None
        border.agent.daemon.wait_for_line("mended: port wan9: its link runs at 10 Mbit/s", 60)
    finally:
        border.controller.stop()
        site.write_text(SITE)
        border.controller.start()
        border.rig.switch.vsctl("del-port", BRIDGE, "wan9")
    # A port that is wished for no more is given back.
    wait_until("wan9 has no queues", lambda: "1a2b:" not in str(border.qdiscs("wan9")), 60, 0.25)
    holder.stop()
    machine.need("ip", "link", "del", "wan9")
    border.wait_in_force()


def test_cleaning_up_gives_every_port_back(border: Border) -> None:
    machine = border.rig.border
    command = python_command("ovs_agent.cli", "border-cleanup", "--config", str(border.agent.config))
    refused = machine.run(command, env=ENVIRONMENT)
    assert refused.code != 0
    assert "stop it first" in refused.text
    assert border.roots()["wan0"] == "htb 1a2b:"
    border.agent.stop()
    said = machine.run(command, env=ENVIRONMENT).need().out
    assert "removed the queues of wan0" in said
    assert border.roots() == {"wan0": "noqueue 0:", "lan0": "noqueue 0:"}
    assert border.rig.switch is not None
    assert border.rig.switch.vsctl("--bare", "--columns=type", "list", "QoS").strip() == ""
    assert "generic-segmentation-offload: on" in machine.need("ethtool", "-k", "wan0")
    assert machine.run(command, env=ENVIRONMENT).need().out.strip() == "nothing to remove"
    border.agent.start()
    border.wait_in_force()
