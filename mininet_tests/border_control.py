"""A line beside the border with the same queues and no switch: what the machine that carries it all can do at present.

    sender eth0 (the border's own plan of queues) ─── eth0 receiver

A sender of the top class wants all of it, and nobody else sends. On an idle machine it is full. What it lacks is
lack of processor time (a virtual machine that was not run for 10 ms cannot send in them), and no fault of the queues:
measurements of the border are held against what this line carries in the same seconds.
"""

from __future__ import annotations

import functools
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from mininet_tests.site.namespaces import Daemon, Machine, wait_until, wire
from mininet_tests.site.users import private_etc
from ovs_agent import queues
from ovs_agent.netlink import call_in_namespace
from ovs_agent.qos import PortPlan

SENDER, RECEIVER = "10.8.0.1", "10.8.0.2"


@dataclass(slots=True)
class ControlLine:
    """`share` is of the line's rate. Its two machines have directories below `root`; `stop` ends them."""

    root: Path
    plan: PortPlan
    dscp: int
    udp: str | None = None
    """Send at this rate (iperf3's notation), and not as a TCP."""
    tcp: str = ""
    """Congestion control of the sender; empty: the machine's own."""
    hurry: int = 0
    """Real-time priority of both ends; 0: none."""
    machines: dict[str, Machine] = field(default_factory=dict)
    sender: Daemon | None = None

    def start(self) -> None:
        near, far = (self._machine(name) for name in ("control-near", "control-far"))
        wire(near, "eth0", far, "eth0")
        near.need("ip", "addr", "add", f"{SENDER}/24", "dev", "eth0")
        far.need("ip", "addr", "add", f"{RECEIVER}/24", "dev", "eth0")
        fd = os.open(f"/proc/{near.init_pid}/ns/net", os.O_RDONLY)
        try:
            call_in_namespace(fd, functools.partial(queues.apply, "eth0", self.plan))
            call_in_namespace(fd, functools.partial(queues.split_frames, "eth0"))
        finally:
            os.close(fd)
        hurry = ["chrt", "-f", str(self.hurry)] if self.hurry else []
        far.spawn("server", [*hurry, "iperf3", "-s"])
        wait_until("the control's iperf3 listens", lambda: ":5201" in far.need("ss", "-ltnH"), 5, 0.05)
        words = ["iperf3", "-c", RECEIVER, "-t", "3600", "-S", str(self.dscp << 2)]
        words += ["-u", "-b", self.udp, "-l", "1400"] if self.udp else ["-P", "2"]
        words += ["-C", self.tcp] if self.tcp else []
        self.sender = near.spawn("client", [*hurry, *words])

    def _machine(self, name: str) -> Machine:
        home = self.root / name
        home.mkdir()
        private_etc(home / "etc", [], [])
        machine = Machine(name, home)
        machine.start()
        self.machines[name] = machine
        return machine

    def stop(self) -> None:
        for machine in self.machines.values():
            machine.stop()

    def mark(self) -> tuple[float, int]:
        """A moment, for `share`."""
        text = self.machines["control-far"].need("cat", "/sys/class/net/eth0/statistics/rx_bytes")
        return time.monotonic(), int(text)

    def share(self, since: tuple[float, int]) -> float:
        """How much of the line's rate has arrived since then; 1.0: all."""
        assert self.sender is not None
        assert self.sender.running(), "the control's sender has ended"
        now, octets = self.mark()
        return min(1.0, (octets - since[1]) * 8 / (now - since[0]) / self.plan.rate)
