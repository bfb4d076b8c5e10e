"""A worker node for tests of packets: real Open vSwitch with the userspace datapath, the compiler's flows, the agent's
table 0 and packet filter, and one job. Captures stand on the uplink's far end and on the host's own port.

Invariant: everything lives in machines of its own, which go with the test.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mininet_tests import frames as f
from mininet_tests.frames import Named
from mininet_tests.site.namespaces import Daemon, Machine, SiteError, this_python, wait_until, wire
from mininet_tests.site.openvswitch import RUN, OpenVSwitch
from mininet_tests.site.users import private_etc
from ovs_agent import plan
from policies.model import Attempt, World
from ryu_apps.openflow.compiler import desired_flows, desired_rules
from ryu_apps.openflow.cookies import Feature, cookie
from ryu_apps.openflow.meters import MeterRule
from ryu_apps.openflow.pipeline import Table
from ryu_apps.openflow.text import flows_text

BRIDGE = "wn1-br"
ROUTER, ROUTER4, ROUTER6 = "02:00:00:00:00:01", "10.20.0.1", "2001:db8:20::1"
HOST4, HOST6 = "10.20.1.1", "2001:db8:20::1:1"


def text_mac(value: int) -> str:
    return ":".join(f"{octet:02x}" for octet in value.to_bytes(6, "big"))


@dataclass
class Node:
    """A worker node with one job, and the outside."""

    host: Machine
    job: Machine
    outside: Machine
    switch: OpenVSwitch
    here: World
    watchers: dict[str, Daemon]
    host_mac: str

    @property
    def attempt(self) -> Attempt:
        return self.here.attempts["job1"]

    def send(self, frames: list[bytes]) -> None:
        script = str(Path(f.__file__))
        self.job.run(
            [this_python(), script, "send", "eth0"], given="".join(frame.hex() + "\n" for frame in frames)
        ).need()

    def seen(self, where: str) -> str:
        return self.watchers[where].log.read_text(encoding="utf-8")

    def await_outside(self, frames: list[Named]) -> None:
        """Wait until all are seen outside; names those that are not."""

        def missing() -> list[str]:
            return [named.name for named in frames if named.marker.hex() not in self.seen("outside")]

        try:
            wait_until("all frames are seen outside", lambda: not missing(), 30)
        except SiteError as error:
            raise SiteError(f"{error}; missing: {', '.join(missing())}") from None

    def refused(self) -> int:
        """Packets that the attempt's own flows have counted as refused."""
        own = f"cookie={cookie(Feature.ATTEMPT, self.attempt.number):#x}/-1"
        lines = self.switch.flows(BRIDGE, own)
        counted = [line for line in lines if "actions=drop" in line or f"table={Table.DENIED}," in line]
        return sum(int(line.partition("n_packets=")[2].partition(",")[0]) for line in counted)

    def settled(self) -> int:
        """`refused`, once Open vSwitch has brought its counters up to date (about twice a second) and they rest."""
        deadline = time.monotonic() + 30
        last, since = self.refused(), time.monotonic()
        while time.monotonic() < since + 2.5:
            time.sleep(0.25)
            now = self.refused()
            if now != last:
                last, since = now, time.monotonic()
            if time.monotonic() > deadline:
                raise SiteError("the counters of refused frames do not come to rest within 30 s")
        return last


@contextmanager
def machines(root: Path, *names: str) -> Iterator[list[Machine]]:
    """Machines with an empty /etc each, stopped at the end."""
    root.chmod(0o755)
    made: list[Machine] = []
    try:
        for name in names:
            home = root / name
            home.mkdir()
            private_etc(home / "etc", [], [])
            machine = Machine(name, home)
            machine.start()
            made.append(machine)
        yield made
    finally:
        for machine in made:
            machine.stop()


def add_bridge(switch: OpenVSwitch, name: str, ports: Mapping[str, int]) -> None:
    """A bridge as the agent makes it: closed, without hidden flows."""
    words = ["add-br", name, "--", "set", "bridge", name, "datapath_type=netdev", "fail_mode=secure"]
    words += ["protocols=OpenFlow10,OpenFlow13,OpenFlow14", "other_config:disable-in-band=true"]
    for port, number in ports.items():
        words += ["--", "add-port", name, port, "--", "set", "interface", port, f"ofport_request={number}"]
    switch.vsctl(*words)
    # As the controller has it at every connection.
    switch.machine.need("ovs-ofctl", "-OOpenFlow14", "set-frags", f"unix:{RUN}/{name}.mgmt", "nx-match")


def install(host: Machine, bridge: str, here: World, table0: list[str]) -> None:
    text = "".join(f"{flow}\n" for flow in table0) + flows_text(desired_flows(here, bridge).values(), numeric=True)
    for one in desired_rules(here, bridge).values():
        if isinstance(one, MeterRule):
            unit = "pktps" if one.packets else "kbps"
            setting = f"meter={one.number},{unit},burst,bands=type=drop,rate={one.rate},burst_size={one.burst}"
            host.need("ovs-ofctl", "-OOpenFlow14", "add-meter", f"unix:{RUN}/{bridge}.mgmt", setting)
    file = host.root / f"{bridge}.flows"
    file.write_text(text, encoding="utf-8")
    host.need("ovs-ofctl", "-OOpenFlow14", "add-flows", f"unix:{RUN}/{bridge}.mgmt", str(file))


def prepare_job(job: Machine, attempt: Attempt) -> None:
    job.need("ip", "link", "set", "eth0", "address", text_mac(attempt.mac))
    # The agent gives a job no link-local address either: its kernel would send reports and solicitations of its own.
    job.need("ip", "link", "set", "dev", "eth0", "addrgenmode", "none")
    job.need("ip", "-6", "address", "flush", "dev", "eth0")


def prepare_host(host: Machine, here: World) -> str:
    """The node's own address on its bridge, and its flows; gives the host's MAC."""
    host.need("ip", "address", "add", f"{HOST4}/16", "dev", BRIDGE)
    host.need("ip", "-6", "address", "add", f"{HOST6}/48", "dev", BRIDGE, "nodad")
    host.need("ip", "link", "set", BRIDGE, "up")
    host_mac = _mac_of(host, BRIDGE)
    install(host, BRIDGE, here, plan.worker_table0(1, host_mac))
    return host_mac


@contextmanager
def node_rig(root: Path, here: World) -> Iterator[Node]:
    """A node whose `job1` has a machine of its own, and a machine on the uplink's far end."""
    with machines(root, "host", "job", "outside") as (host, job, outside):
        attempt = here.attempts["job1"]
        wire(host, "lj11", job, "eth0")
        wire(host, "up0", outside, "eth0")
        prepare_job(job, attempt)
        outside.need("ip", "link", "set", "eth0", "address", ROUTER)
        host.run(["nft", "-f", "-"], given=plan.nft_ruleset([], [])).need()
        switch = OpenVSwitch(host)
        switch.start()
        add_bridge(switch, BRIDGE, {"up0": 1, "lj11": attempt.ofport})
        host_mac = prepare_host(host, here)
        watchers = {}
        for name, machine, device in (("outside", outside, "eth0"), ("host", host, BRIDGE)):
            watchers[name] = machine.spawn("watch", [this_python(), str(Path(f.__file__)), "watch", device])
            watchers[name].wait_for_line("watching", 10)
        yield Node(host, job, outside, switch, here, watchers, host_mac)
        switch.stop()


def _mac_of(machine: Machine, device: str) -> str:
    found = re.search(r"link/ether (\S+)", machine.need("ip", "link", "show", "dev", device))
    assert found
    return found.group(1)
