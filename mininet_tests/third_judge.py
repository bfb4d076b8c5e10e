"""The third judge: Open vSwitch itself says, by `ofproto/trace`, what the compiled flows do with a packet.

It must meet the very flows that the simulated switch met, in order, and send the packet out by the same ports, with the
same mark, remembering the same connections.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from mininet_tests.control_socket import ControlSocket
from mininet_tests.site.dummy import DummySwitch
from ryu_apps.openflow.fields import Frag, show
from ryu_apps.openflow.pipeline import Table
from ryu_apps.openflow.simulate import Special
from tests.cases import FIRST_JOB_PORT, OTHER_WAN, SERVERS, UPLINK, WAN, WORKERS, Case, Sent
from tests.judges import Bench, Hop, Step, disagreement, follow, frame

LANES = 5
TABLE_0 = "table=0,priority=0,actions=goto_table:1\n"
"""The agent's part: what is not the host's goes on."""


@dataclass(frozen=True, slots=True)
class Traced:
    """What `ofproto/trace` tells: ports, the flows met (table and cookie), the mark as it leaves, zones remembered."""

    outputs: frozenset[tuple[str, int]]
    met: tuple[tuple[int, int], ...]
    dscp: int | None
    committed: frozenset[int]

    def __str__(self) -> str:
        where = ", ".join(f"{bridge} {port}" for bridge, port in sorted(self.outputs))
        leaves = f"leaves by port {where}, DSCP {self.dscp}" if where else "goes nowhere"
        met = " ".join(f"{Table(table).name}:{cookie:x}" for table, cookie in self.met)
        return f"{leaves}, remembering {set(self.committed) or 'nothing'}, by {met}"


class ThirdJudge(AbstractContextManager["ThirdJudge"]):
    """One ovs-vswitchd for many worlds; a world's flows are installed on a bridge when a packet first comes to it."""

    def __init__(self, directory: Path) -> None:
        self._switch = DummySwitch(directory)
        self._bench: Bench | None = None
        self._installed: set[str] = set()

    def __enter__(self) -> ThirdJudge:
        self._switch.__enter__()
        for n in (1, 2):
            jobs = {f"n{n}lj{k}": FIRST_JOB_PORT + k for k in range(1, LANES + 1)}
            self._switch.add_bridge(f"wn{n}-br", {f"n{n}up0": UPLINK, **jobs})
        self._switch.add_bridge("gate-br", {"gup0": UPLINK, "wf0": WORKERS, "sf0": SERVERS})
        self._switch.add_bridge("edge-br", {"eup0": UPLINK, "wan0": WAN, "wan1": OTHER_WAN})
        self._numbers = self._switch.port_numbers()
        self._control = ControlSocket(self._switch.control())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._control.close()
        self._switch.__exit__(kind, value, trace)

    def judge(self, case: Case, bench: Bench, sent: Sent, installed: Bench | None = None) -> list[tuple[Step, Traced]]:
        """The packet's way by all three judges; `installed`: other flows for the bridges. Raises Disagreement."""
        way = []
        for step in follow(case, bench, sent):
            traced = self.send(installed or bench, step.hop)
            outputs = {(step.hop.bridge, port) for port in step.finding.outputs if port is not Special.NORMAL}
            # Where the bridge learns by itself, it is the flow that is compared: the ports are its own affair.
            learns = Special.NORMAL in step.finding.outputs
            expected = Traced(
                outputs=traced.outputs if learns and traced.outputs else frozenset(outputs),
                met=tuple((f.table, f.cookie) for f in step.trail),
                dscp=step.finding.dscp,
                committed=step.committed,
            )
            if traced != expected:
                world = bench.world
                raise disagreement(case, world, sent, step.hop, expected, traced, "Open vSwitch", step.trail)
            way.append((step, traced))
        return way

    def send(self, bench: Bench, hop: Hop) -> Traced:
        if bench is not self._bench:
            self._bench, self._installed = bench, set()
        if hop.bridge not in self._installed:
            self._switch.install(hop.bridge, bench.compiled(hop.bridge).values(), TABLE_0)
            self._installed.add(hop.bridge)
        known = "trk,est,rpl" if hop.packet.tracked else "trk,new"
        text = self._control.command("ofproto/trace", hop.bridge, text_of(frame(hop)), "--ct-next", known)
        if "Datapath actions" not in text:
            raise AssertionError(f"ofproto/trace {hop.bridge} {text_of(frame(hop))}: {text}")
        return self._read(text, hop)

    def _read(self, text: str, hop: Hop) -> Traced:
        met = re.findall(r"^ *(\d+)\. .*cookie 0x([0-9a-f]+)$", text, re.MULTILINE)
        actions = ",".join(re.findall(r"^Datapath actions: (.*)$", text, re.MULTILINE))
        outputs = frozenset(self._numbers[a] for a in actions.split(",") if a.isdigit())
        marks = re.findall(r"(?:tos|tclass)=(?:0x)?([0-9a-f]+)/0xfc", actions)
        dscp = int(marks[-1], 16) >> 2 if marks else hop.dscp
        return Traced(
            outputs=outputs,
            met=tuple((int(table), int(cookie, 16)) for table, cookie in met),
            dscp=dscp if outputs else None,
            committed=frozenset(int(zone) for zone in re.findall(r"ct\(commit,zone=(\d+)", actions)),
        )


_OF_WHOLE = frozenset({"tcp_src", "tcp_dst", "tcp_flags", "udp_src", "udp_dst", "icmp_type", "icmpv6_type"})


def text_of(fields: dict[str, int]) -> str:
    """A frame as `ofproto/trace` reads it. Of a later fragment it takes no ports and types; they are 0 all the same."""
    later = fields["nw_frag"] & Frag.LATER
    shown = {
        name: hex(value) if name == "tcp_flags" else show(name, value, None)
        for name, value in fields.items()
        if not (later and name in _OF_WHOLE)
    }
    return ",".join(f"{name}={text}" for name, text in shown.items())
