"""A site's border on three simulated machines, with real senders: the traffic that queues are measured with.

    inside (hosts of the site) eth0 ─── lan0 border (Open vSwitch, userspace datapath) wan0 ─── eth0 outside

Every class has one address on either side; what is measured is what arrives, counted by the receiver's firewall and
not by the queues themselves. Rates are on the wire: IP bytes and 14 bytes of Ethernet for each packet.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from mininet_tests.site.lark import ENVIRONMENT, OPENFLOW, python_command
from mininet_tests.site.namespaces import Daemon, Machine, this_python, wait_until, wire
from mininet_tests.site.openvswitch import OpenVSwitch, hurry
from mininet_tests.site.users import private_etc
from ovs_agent.netlink import call_in_namespace

T = TypeVar("T")
BRIDGE = "border-br"
ETHERNET = 14
ECHO_PORT = 7007


@dataclass(frozen=True, slots=True)
class Lane:
    """The senders of one class: an address inside, one outside, and the DSCP that their packets get."""

    name: str
    number: int
    dscp: int

    @property
    def inside(self) -> str:
        return f"10.9.0.{self.number}"

    @property
    def outside(self) -> str:
        return f"10.9.1.{self.number}"

    @property
    def inside6(self) -> str:
        return f"2001:db8:9::{self.number}"

    @property
    def outside6(self) -> str:
        return f"2001:db8:9:1::{self.number}"


@dataclass(slots=True)
class BorderRig:
    """Use as a context manager: three machines, wired, with a bridge that marks by address and passes all on."""

    lanes: Sequence[Lane]
    root: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="lark-border-")))
    machines: dict[str, Machine] = field(default_factory=dict)
    switch: OpenVSwitch | None = None
    busy: dict[str, list[Daemon]] = field(default_factory=dict)
    hurry: int = 0
    """Real-time priority of switch, senders and probes: what is measured is the queues, and not how busy the machine
    that carries the site is with other things. 0: none."""
    flows: bool = True
    """Write hand-made flows; False: whoever controls the bridge does."""

    def __enter__(self) -> BorderRig:
        try:
            self._build()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        for machine in self.machines.values():
            machine.stop()
        shutil.rmtree(self.root, ignore_errors=True)

    def _build(self) -> None:
        for name in ("inside", "border", "outside"):
            home = self.root / name
            home.mkdir()
            private_etc(home / "etc", [], [])
            machine = Machine(name, home)
            machine.start()
            self.machines[name] = machine
        wire(self.inside, "eth0", self.border, "lan0")
        wire(self.border, "wan0", self.outside, "eth0")
        for machine, v4, v6 in (
            (self.inside, [lane.inside for lane in self.lanes], [lane.inside6 for lane in self.lanes]),
            (self.outside, [lane.outside for lane in self.lanes], [lane.outside6 for lane in self.lanes]),
        ):
            for address in v4:
                machine.need("ip", "addr", "add", f"{address}/16", "dev", "eth0")
            for address in v6:
                machine.need("ip", "addr", "add", f"{address}/48", "dev", "eth0", "nodad")
            rules = "".join(
                f"add rule inet t i ip saddr {a} ip daddr {b} counter\n"
                f"add rule inet t i ip6 saddr {c} ip6 daddr {d} counter\n"
                for a, b, c, d in self._pairs(machine is self.outside)
            )
            hook = "add table inet t\nadd chain inet t i { type filter hook prerouting priority -300; }\n"
            machine.run(["nft", "-f", "-"], given=hook + rules).need()
            machine.spawn("echo", [*self._chrt(2), this_python(), "-c", ECHO])
        for port in ("lan0", "wan0"):
            self.border.need("sysctl", "-q", "-w", f"net.ipv6.conf.{port}.disable_ipv6=1")
        self.switch = OpenVSwitch(self.border)
        self.switch.start()
        self.switch.vsctl(
            "add-br", BRIDGE, "--", "set", "Bridge", BRIDGE, "datapath_type=netdev", "fail_mode=secure",
            "protocols=OpenFlow13,OpenFlow14", "other_config:disable-in-band=true",
        )  # fmt: skip
        self.switch.vsctl("add-port", BRIDGE, "lan0", "--", "add-port", BRIDGE, "wan0")
        if self.hurry:
            hurry(self.border, self.hurry + 1)
        if self.flows:
            self.write_flows()

    def _chrt(self, more: int = 0) -> list[str]:
        return ["chrt", "-f", str(self.hurry + more)] if self.hurry else []

    def hand_over(self) -> None:
        """The bridge becomes the controller's, which listens on this machine, as an administrator would do it."""
        argv = ["prepare-bridge", "--bridge", BRIDGE, "--role", "border", "--datapath-id", "c1"]
        argv += ["--datapath-type", "netdev", "--controller", f"tcp:{OPENFLOW}", "--uplink", "lan0", "--uplink", "wan0"]
        self.border.run(python_command("ovs_agent.cli", *argv), env=ENVIRONMENT, timeout=60).need()

    def write_flows(self) -> None:
        """DSCP by address, whatever the sender wrote; the rest is marked 0 and passes."""
        lines = ["delete"]
        for here, there, mine, theirs in (
            ("lan0", "wan0", "nw_src", "ipv6_src"),
            ("wan0", "lan0", "nw_dst", "ipv6_dst"),
        ):
            for lane in self.lanes:
                mark = f"actions=set_field:{lane.dscp}->ip_dscp,output:{there}"
                lines.append(f"priority=10,in_port={here},ip,{mine}={lane.inside},{mark}")
                lines.append(f"priority=10,in_port={here},ipv6,{theirs}={lane.inside6},{mark}")
            lines.append(f"priority=1,in_port={here},actions=output:{there}")
        self.border.run(
            [
                "ovs-ofctl",
                "-OOpenFlow14",
                "--names",
                "--bundle",
                "add-flows",
                f"unix:/run/openvswitch/{BRIDGE}.mgmt",
                "-",
            ],
            given="".join(line + "\n" for line in lines[1:]),
        ).need()

    def _pairs(self, at_outside: bool) -> list[tuple[str, str, str, str]]:
        pairs = [(lane.inside, lane.outside, lane.inside6, lane.outside6) for lane in self.lanes]
        return pairs if at_outside else [(b, a, d, c) for a, b, c, d in pairs]

    @property
    def inside(self) -> Machine:
        return self.machines["inside"]

    @property
    def border(self) -> Machine:
        return self.machines["border"]

    @property
    def outside(self) -> Machine:
        return self.machines["outside"]

    def at_border(self, function: Callable[[], T]) -> T:
        """Call it in the border's network."""
        fd = os.open(f"/proc/{self.border.init_pid}/ns/net", os.O_RDONLY)
        try:
            return call_in_namespace(fd, function)
        finally:
            os.close(fd)

    # --- senders ----------------------------------------------------------------------------------------------------

    def send(
        self, lane: Lane, *, udp: str | None = None, inbound: bool = False, streams: int = 2, v6: bool = False
    ) -> str:
        """Begin to send until `leave`; the sender's name. `udp`: at this rate (iperf3's notation), else TCP."""
        name = f"{lane.name}-{'in' if inbound else 'out'}-{len(self.busy)}-{time.monotonic_ns() % 10**6}"
        sender, receiver = (self.outside, self.inside) if inbound else (self.inside, self.outside)
        near, far = (lane.inside6, lane.outside6) if v6 else (lane.inside, lane.outside)
        source, target = (far, near) if inbound else (near, far)
        port = str(5200 + len(self.busy) + 40 * inbound)
        server = receiver.spawn(f"server-{name}", [*self._chrt(), "iperf3", "-s", "-B", target, "-p", port])
        wait_until(f"iperf3 of {name} listens", lambda: f":{port}" in receiver.need("ss", "-ltnH"), 5, 0.05)
        words = [
            *self._chrt(),
            "iperf3",
            "-c",
            target,
            "-B",
            source,
            "-p",
            port,
            "-t",
            "600",
            "-P",
            str(1 if udp else streams),
        ]
        words += ["-u", "-b", udp, "-l", "1400"] if udp else []
        self.busy[name] = [sender.spawn(f"client-{name}", words), server]
        return name

    def leave(self, *names: str) -> None:
        for name in names or tuple(self.busy):
            for daemon in self.busy.pop(name):
                if daemon.running():
                    daemon.stop()

    def sending(self, name: str) -> bool:
        """Whether a sender still sends: iperf3 ends when its connection breaks."""
        return all(daemon.running() for daemon in self.busy[name])

    # --- what arrives -----------------------------------------------------------------------------------------------

    def arrived(self, inbound: bool = False) -> dict[str, int]:
        """Bytes on the wire that have arrived, by class."""
        machine = self.inside if inbound else self.outside
        document = json.loads(machine.need("nft", "-j", "list", "table", "inet", "t"))
        counts: dict[str, int] = {lane.name: 0 for lane in self.lanes}
        rules = [item["rule"] for item in document["nftables"] if "rule" in item]
        # Two rules for each class, in the order of the classes.
        for position, rule in enumerate(rules):
            counter = next(part["counter"] for part in rule["expr"] if "counter" in part)
            counts[self.lanes[position // 2].name] += counter["bytes"] + ETHERNET * counter["packets"]
        return counts

    def measure(self, seconds: float, inbound: bool = False) -> dict[str, float]:
        """bit/s that arrive, by class."""
        before, began = self.arrived(inbound), time.monotonic()
        time.sleep(seconds)
        after, took = self.arrived(inbound), time.monotonic() - began
        return {name: (after[name] - before[name]) * 8 / took for name in after}

    def delays(self, lane: Lane, count: int = 400, every: float = 0.01, inbound: bool = False) -> list[float]:
        """Milliseconds from one side to the other and back, sorted; lost ones count as infinite."""
        source, target = (lane.outside, lane.inside) if inbound else (lane.inside, lane.outside)
        machine = self.outside if inbound else self.inside
        words = [*self._chrt(2), this_python(), "-c", PROBE, source, target, str(count), str(every)]
        return sorted(json.loads(machine.run(words, timeout=30 + 3 * count * every).need().out))


def percentile(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(len(values) * share))]


def stolen() -> float:
    """Seconds of processor time that the host of this virtual machine has given to others, since it started."""
    words = Path("/proc/stat").read_text(encoding="ascii").split(maxsplit=9)
    return int(words[8]) / os.sysconf("SC_CLK_TCK")


def entitlement(
    rate: float, classes: Sequence[tuple[str, float, float]], wants: Mapping[str, float]
) -> dict[str, float]:
    """What each class is entitled to: (name, guarantee, ceiling) in order of rank, and what each has to send.

    First everyone's guarantee, then the rest by rank: each as much as it wants, up to its ceiling.
    """
    got = {name: min(wants.get(name, 0.0), guarantee) for name, guarantee, _ in classes}
    left = rate - sum(got.values())
    for name, _, ceiling in classes:
        more = max(0.0, min(left, min(wants.get(name, 0.0), ceiling) - got[name]))
        got[name] += more
        left -= more
    return got


ECHO = f"""
import socket
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
s.bind(("::", {ECHO_PORT}))
# Answer from the address that was asked.
s.setsockopt(socket.IPPROTO_IP, 8, 1)
import struct
while True:
    data, extra, _, peer = s.recvmsg(2048, 256)
    anc = [(socket.IPPROTO_IP, 8, struct.pack("I4s4s", 0, x[2][4:8], b"\\0" * 4)) for x in extra if x[1] == 8]
    try:
        s.sendmsg([data], anc, 0, peer)
    except OSError:
        pass
"""

PROBE = f"""
import json, select, socket, struct, sys, time
source, target, count, every = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((source, 0)); s.connect((target, {ECHO_PORT})); s.setblocking(False)
took, due, sent = {{}}, time.monotonic(), 0
end = due + count * every + 1
while time.monotonic() < end:
    now = time.monotonic()
    if sent < count and now >= due:
        s.send(struct.pack("!Id", sent, now) + b"x" * 80); sent += 1; due += every; continue
    wait = min(due if sent < count else end, end) - now
    if select.select([s], [], [], max(0, wait))[0]:
        number, at = struct.unpack("!Id", s.recv(2048)[:12])
        took[number] = (time.monotonic() - at) * 1000
        if len(took) == count: break
print(json.dumps([took.get(n, 1e9) for n in range(count)]))
"""
