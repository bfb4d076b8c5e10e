"""A gate's bridge stays as `lark-agent prepare-bridge` made it, by the real command on a real Open vSwitch.

Invariant: each thing that is put right was seen wrong before, and each time limit has a control without the keeper.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mininet_tests.site.lark import ENVIRONMENT, python_command
from mininet_tests.site.namespaces import Daemon, Machine, Output, wait_until
from mininet_tests.site.openvswitch import OpenVSwitch
from mininet_tests.site.users import private_etc
from ryu_apps.rest.auth import TokenRole, new_token

pytestmark = pytest.mark.system
GATE = "lkbk-gate"
TARGET = "tcp:127.0.0.1:6653"
LOOKS = 12
"""Seconds in which the keeper has looked, on a slow machine too."""
AWAY = 20
"""Seconds: the switch has tried again after 1, 2, 4 and 8 s then, unless it was told not to wait so long."""
CONFINED = ["setpriv", "--no-new-privs", "--bounding-set=-all,+dac_override,+net_admin", "--inh-caps=-all"]
"""As the unit lark-bridge@.service has it."""
PREPARE = ["--role", "gate", "--bridge", GATE, "--datapath-type", "netdev", "--datapath-id", "b1"]
SITE = f"""\
site: kept
network: {{ipv4: 10.20.0.0/16, gateway-ipv4: 10.20.0.1}}
nodes: {{wn1: {{bridge: lkbk-wn, ipv4: 10.20.1.0/24}}}}
bridges:
  lkbk-wn: {{datapath-id: "00000000000000a1", roles: [worker], ports: {{uplink: [up0]}}}}
  {GATE}:
    datapath-id: "00000000000000b1"
    roles: [gate]
    guards: [files]
    ports: {{worker-facing: [gx0], server-facing: [gx2]}}
"""
POLICY = "services: {files: {hosts: [10.20.0.5], ports: [tcp/1094], protected: true}}\n"


class Gate:
    """The gate's machine, with a controller on it that can be killed."""

    def __init__(self, root: Path) -> None:
        root.chmod(0o755)
        private_etc(root / "etc", [], [])
        self.machine = Machine("lkbk", root)
        self.machine.start()
        self.ovs = OpenVSwitch(self.machine)
        self.controller: Daemon | None = None
        self.keeper: Daemon | None = None
        home = root / "lark"
        home.mkdir()
        (home / "site.yaml").write_text(SITE)
        (home / "policy.yaml").write_text(POLICY)
        new_token(home / "tokens.yaml", TokenRole.VIEWER, None)
        self._config = home / "controller.yaml"
        self._config.write_text(
            "site: site.yaml\npolicy: policy.yaml\nstate-dir: state\ntokens: tokens.yaml\n"
            'openflow: {listen: "127.0.0.1:6653"}\napi: {listen: "127.0.0.1:8080"}\n'
        )

    def start(self) -> None:
        self.machine.need("ip", "link", "set", "lo", "up")
        self.machine.need("ip", "link", "add", "gx0", "type", "veth", "peer", "name", "gx1")
        self.ovs.start()

    def stop(self) -> None:
        self.ovs.stop()
        self.machine.stop()

    def lark_agent(self, *argv: str) -> Output:
        return self.machine.run(python_command("ovs_agent.cli", *argv), env=ENVIRONMENT)

    def prepare(self, *argv: str) -> Output:
        return self.lark_agent("prepare-bridge", *PREPARE, "--uplink", "gx0", "--controller", TARGET, *argv)

    def keep(self) -> None:
        argv = [*CONFINED, *python_command("ovs_agent.cli", "keep-bridge", "--bridge", GATE)]
        self.keeper = self.machine.spawn(f"keeper.{time.monotonic_ns()}", argv, env=ENVIRONMENT)
        self.keeper.wait_for_line("lark-agent keeps bridge", 15)

    def start_controller(self) -> None:
        """Returns when it listens."""
        argv = python_command("ryu_apps.cli", "run", "--config", str(self._config))
        self.controller = self.machine.spawn(f"controller.{time.monotonic_ns()}", argv, env=ENVIRONMENT)
        self.controller.wait_for_line("lark-controller ready", 30)

    def kill_controller(self) -> None:
        assert self.controller is not None
        self.controller.stop(number=signal.SIGKILL)

    def in_line(self) -> None:
        assert self.controller is not None
        self.controller.wait_for_line(f"bridge={GATE}: in line with", 15)

    def nudged(self) -> str:
        return self.ovs.vsctl("--if-exists", "get", "Bridge", GATE, "external_ids:lark-connected").strip()

    def until_back(self) -> float:
        """Kill the controller for so long that the switch waits as long as it will; seconds it then takes to return."""
        self.kill_controller()
        time.sleep(AWAY)
        self.start_controller()
        began = time.monotonic()
        self.in_line()
        return time.monotonic() - began


@pytest.fixture
def gate() -> Iterator[Gate]:
    root = Path(tempfile.mkdtemp(prefix="lkbk-"))
    made = Gate(root)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(root, ignore_errors=True)


def test_the_check_says_what_is_not_right_and_changes_nothing(gate: Gate) -> None:
    missing = gate.prepare("--check")
    assert (missing.code, f"would have created bridge {GATE}" in missing.out) == (1, True)
    assert gate.ovs.vsctl("list-br").split() == []
    absent = gate.prepare("--uplink", "gx9")
    assert (absent.code, "gx9: no such device" in absent.err) == (1, True)
    assert gate.ovs.vsctl("list-br").split() == []
    gate.prepare().need()
    good = gate.prepare("--check")
    assert (good.code, good.out.strip()) == (0, f"{GATE}: as it should be")
    gate.ovs.vsctl("set", "Bridge", GATE, "fail_mode=standalone", "other_config:disable-in-band=false")
    gate.machine.need("ovs-ofctl", "-OOpenFlow14", "del-flows", f"unix:/run/openvswitch/{GATE}.mgmt", "table=0")
    bad = gate.prepare("--check")
    assert bad.code == 1
    assert "would have set fail_mode=secure other_config:disable-in-band=true" in bad.out
    assert "would have put 1 flows into table 0" in bad.out
    assert gate.ovs.vsctl("get", "Bridge", GATE, "fail_mode").strip() == "standalone"
    gate.prepare().need()
    assert gate.prepare("--check").code == 0


def test_two_controllers_are_both_looked_for_every_second(gate: Gate) -> None:
    second = ["--controller", "tcp:127.0.0.1:6654"]
    gate.prepare(*second).need()
    assert gate.ovs.vsctl("--bare", "--columns=max_backoff", "list", "Controller").split() == ["1000", "1000"]
    assert gate.prepare(*second).out.strip() == f"{GATE}: nothing to do"
    assert "set controller" in gate.prepare().out
    assert gate.ovs.vsctl("get-controller", GATE).split() == [TARGET]
    gate.ovs.vsctl("clear", "Controller", GATE, "max_backoff")
    assert "set max_backoff=1000" in gate.prepare().out
    assert gate.ovs.vsctl("get", "Controller", GATE, "max_backoff").strip() == "1000"


def test_what_somebody_else_changes_on_a_gate_is_put_right_and_told(gate: Gate) -> None:
    gate.prepare().need()
    gate.ovs.vsctl("set", "Bridge", GATE, "fail_mode=standalone")
    time.sleep(LOOKS)
    assert gate.ovs.vsctl("get", "Bridge", GATE, "fail_mode").strip() == "standalone", "control: nobody else does it"

    gate.keep()
    assert gate.keeper is not None
    gate.keeper.wait_for_line("put right: fail_mode=secure", LOOKS)
    assert gate.ovs.vsctl("get", "Bridge", GATE, "fail_mode").strip() == "secure"
    gate.ovs.vsctl("remove", "Bridge", GATE, "other_config", "disable-in-band", "--", "remove", "Bridge", GATE,
                   "other_config", "dp-desc")  # fmt: skip
    gate.keeper.wait_for_line("put right: other_config:disable-in-band=true other_config:dp-desc", LOOKS)
    gate.machine.need("ovs-ofctl", "-OOpenFlow14", "del-flows", f"unix:/run/openvswitch/{GATE}.mgmt", "table=0")
    gate.keeper.wait_for_line("put right with 1 flows", LOOKS)
    assert gate.prepare("--check").out.strip() == f"{GATE}: as it should be"

    # A switch that comes back has no flows at all.
    gate.ovs.kill_switch()
    gate.ovs.start_switch()
    show = ["ovs-ofctl", "-OOpenFlow14", "dump-flows", f"unix:/run/openvswitch/{GATE}.mgmt", "table=0"]
    wait_until("table 0 is there", lambda: "goto_table:1" in gate.machine.run(show).out, 5)
    before = gate.keeper.log.read_text().count("put right")
    time.sleep(LOOKS)
    assert gate.keeper.log.read_text().count("put right") == before, "what is right is left alone"
    assert gate.keeper.stop() == 0


def test_a_gate_returns_to_its_controller_at_once_also_after_a_restart_of_the_switch(gate: Gate) -> None:
    gate.start_controller()
    gate.prepare().need()
    gate.in_line()
    alone = gate.until_back()

    gate.keep()
    wait_until("the keeper saw the connection", gate.nudged, LOOKS)
    time.sleep(LOOKS)
    kept = gate.until_back()

    before = gate.nudged()
    gate.ovs.kill_switch()
    gate.ovs.start_switch()
    wait_until("the keeper saw the new connection", lambda: gate.nudged() not in ("", before), 2 * LOOKS)
    time.sleep(LOOKS)
    again = gate.until_back()
    print(f"{AWAY} s without controller, then in line after {alone:.2f} s without the keeper, {kept:.2f} s with it, "
          f"{again:.2f} s after a restart of the switch")  # fmt: skip
    assert alone > 2, "the control: it waits longer each time"
    assert kept < 1.6
    assert again < 1.6


def test_nobody_reaches_the_gates_own_machine_through_its_ports(gate: Gate) -> None:
    """The bridge has no flows at all: what gets an answer is answered by the kernel, past the switch."""
    inside = gate.machine
    inside.need("ip", "netns", "add", "outside")
    inside.need("ip", "link", "set", "gx1", "netns", "outside")
    inside.need("ip", "link", "add", "own", "type", "bridge")
    for words in ("addr add 192.0.2.21/32 dev own", "addr add 2001:db8:ff::21/128 dev own", "link set own up"):
        inside.need("ip", *words.split())
    inside.need("ip", "link", "set", "gx0", "up")
    inside.need("ip", "route", "add", "192.0.2.99/32", "dev", "gx0")
    for words in ("addr add 192.0.2.99/24 dev gx1", "link set gx1 up"):
        inside.need("ip", "-n", "outside", *words.split())
    gate.prepare().need()

    def reached() -> bool:
        inside.run(["ip", "-n", "outside", "neigh", "flush", "all"])
        said = inside.run(["ip", "netns", "exec", "outside", "ping", "-c1", "-W2", "192.0.2.21"])
        return said.code == 0

    assert reached(), "control: without the keeper the kernel answers"
    gate.keep()
    wait_until("the ports are guarded", lambda: "gx0" in inside.run(["nft", "list", "ruleset"]).out, LOOKS)
    assert not reached()
    inside.need("nft", "delete", "table", "arp", f"lark-{GATE}")
    inside.need("nft", "delete", "table", "inet", f"lark-{GATE}")
    wait_until("they are guarded again", lambda: "gx0" in inside.run(["nft", "list", "ruleset"]).out, LOOKS)
    assert not reached()
    inside.need("ip", "address", "add", "198.51.100.1/24", "dev", "gx0")
    assert gate.keeper is not None
    gate.keeper.wait_for_line("the host itself has an address on ports gx0", LOOKS)
    assert reached(), "an address on the port is the administrator's, and is said"


def test_a_bridge_of_the_kernels_datapath_needs_its_module_and_nothing_half_made_stays(gate: Gate) -> None:
    """Tests run where the kernel has none; where it has one, the bridge is made."""
    said = gate.lark_agent("prepare-bridge", "--role", "gate", "--bridge", GATE, "--datapath-type", "system")
    if Path("/sys/module/openvswitch").exists():
        assert said.code == 0, said.text
    else:
        assert said.code == 1, said.text
        assert "`modprobe openvswitch`, or `--datapath-type netdev`" in said.text
        assert gate.ovs.vsctl("list-br").split() == []


def test_a_name_that_no_bridge_has_is_told_at_once(gate: Gate) -> None:
    """A service manager shows what is wrong; and the keeper of a bridge that is there goes on."""
    gate.prepare().need()
    wrong = gate.lark_agent("keep-bridge", "--bridge", "gate-brr")
    assert wrong.code != 0
    assert f"bridge gate-brr: no such bridge (there are {GATE}); mend --bridge" in wrong.text, wrong.text
    gate.keep()


def test_what_only_the_administrator_can_say_of_a_bridge_is_asked_for(gate: Gate) -> None:
    bare = ["--role", "gate", "--bridge", "lkbk-two", "--datapath-type", "netdev"]
    said = gate.lark_agent("prepare-bridge", *bare).need()
    own = gate.ovs.vsctl("get", "Bridge", "lkbk-two", "datapath_id").strip().strip('"')
    assert "lkbk-two: it has no datapath id of its own (--datapath-id" in said.err, said.text
    assert f"now {own}, and the controller turns away" in said.err, said.text
    assert (
        "lkbk-two: it has no controller (--controller ssl:ADDRESS:6653): no policy reaches it, and nothing" in said.err
    )
    full = gate.lark_agent("prepare-bridge", *bare, "--datapath-id", "b2", "--controller", TARGET).need()
    assert not full.err, full.err
    again = gate.lark_agent("prepare-bridge", *bare).need()
    assert not again.err, "it has them by now"


def test_what_is_there_is_not_asked_for_again_and_no_port_is_taken_from_another_bridge(gate: Gate) -> None:
    gate.prepare().need()
    # The datapath's type of a bridge that is there: as it is.
    again = gate.lark_agent("prepare-bridge", "--check", "--role", "gate", "--bridge", GATE, "--uplink", "gx0")
    assert (again.code, again.out) == (0, f"{GATE}: as it should be\n")
    other = gate.lark_agent(
        "prepare-bridge", "--check", "--role", "gate", "--bridge", GATE, "--datapath-type", "system"
    )
    assert other.code == 1
    assert "exists with datapath_type=netdev, not system" in other.err
    new = ["--role", "gate", "--bridge", "lkbk-two", "--datapath-type", "netdev", "--uplink"]
    taken = gate.lark_agent("prepare-bridge", *new, "gx0")
    assert taken.code == 1
    assert taken.err.startswith(f"Error: gx0: is a port of bridge {GATE}; name another device with --uplink")
    twice = gate.lark_agent("prepare-bridge", *new, "gx1", "--uplink", "gx1")
    assert twice.code == 0, twice.err
    long = gate.lark_agent("prepare-bridge", "--role", "gate", "--bridge", "sixteen-letters-")
    assert long.code == 2
    assert "15 letters" in long.err
    assert gate.ovs.vsctl("list-br").split() == [GATE, "lkbk-two"]
