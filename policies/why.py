"""Why a packet of a job passes or not: the verdict, each step taken, and the lines of the policy that matter.

`why` explains one bridge, `journey` all bridges of the way, there and back. Pure; the flows that carry a verdict out
are added by `ryu_apps.openflow.explain`, which may know of flows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from policies.border import Direction, classified_at_border
from policies.model import Decision, Place, PortKind, Role, TrafficClass, Verdict, World
from policies.path import Hop, answer_to, gates_of, judgement_at, maybe_behind, path
from policies.remarks import Jobs, Known, Remark, remarks
from policies.semantics import (
    INWARD,
    OUTWARD,
    Fragment,
    Judgement,
    Packet,
    Step,
    Transport,
    classified,
)

__all__ = ["Explanation", "Journey", "Known", "Remark", "Stage", "journey", "why"]

AT_GATE = (Step.OWN, Step.GATE)
AT_BORDER = (Step.OWN, Step.BORDER)


@dataclass(frozen=True, slots=True)
class Explanation:
    """`passed`: questions that did not decide, in order; `judgement.step` decided. `remarks`: rules that nearly did.

    `traffic_class`: of a packet that its job's bridge or a border lets on, with the line that decided; None: there
    are no classes.
    """

    judgement: Judgement
    passed: tuple[Step, ...]
    remarks: tuple[Remark, ...]
    traffic_class: tuple[TrafficClass, Place] | None = None

    def lines(self) -> list[str]:
        """The explanation as text, one fact a line."""
        judged = self.judgement
        where = f" ({judged.place})" if judged.place else ""
        reason = f" [{judged.reason.slug}]" if judged.reason else ""
        told = [f"{judged.verdict.value}{reason}: {judged.text}{where}"]
        told += [f"  {step.value} did not decide" for step in self.passed]
        told.append(f"  {judged.step.value} decided")
        if self.traffic_class is not None:
            found, place = self.traffic_class
            told.append(f"  class {found.name}, marked with DSCP {found.dscp} ({place})")
        return told + [f"  {remark}" for remark in self.remarks]


@dataclass(frozen=True, slots=True)
class Stage:
    """A bridge of the way, and what happens there. `reached`: no bridge before it drops the packet."""

    hop: Hop
    explanation: Explanation
    reached: bool

    def title(self) -> str:
        """Where this is, and where the packet comes from."""
        sides = {
            None: "from its job",
            PortKind.UPLINK: "from the uplink",
            PortKind.WORKER_FACING: "from the workers",
            PortKind.SERVER_FACING: "from the servers",
            PortKind.WAN: "from the WAN",
        }
        side = sides[self.hop.entered]
        if self.hop.role is Role.BORDER:
            side = f"if it {'comes in' if self.hop.entered is PortKind.WAN else 'leaves the site'} there"
        told = f"{self.hop.role.value} bridge {self.hop.bridge}, {side}"
        return told if self.reached else f"{told} (not reached; if it were)"


@dataclass(frozen=True, slots=True)
class Journey:
    """All of a packet's way, as far as the files tell it.

    `maybe_closed_by`: gates that its receiver could be behind; if it is, the gate drops it.
    """

    packet: Packet
    stages: tuple[Stage, ...]
    maybe_closed_by: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """What becomes of it in the end."""
        dropped = any(s.explanation.judgement.verdict is Verdict.DROP for s in self.stages)
        return Verdict.DROP if dropped else Verdict.ALLOW

    def lines(self) -> list[str]:
        """The journey as text: what it is, the verdict, and each bridge with its explanation indented."""
        told = self.heading()
        for stage in self.stages:
            told.append(f"  {stage.title()}")
            told += [f"    {line}" for line in stage.explanation.lines()]
        return told

    def heading(self) -> list[str]:
        """What it is and the verdict, and what is not known."""
        told = [f"{described(self.packet)}: {self._summary()}"]
        if self.maybe_closed_by and self.verdict is Verdict.ALLOW:
            whom, gates = self.packet.destination, " or ".join(self.maybe_closed_by)
            told.append(
                f"  the files do not say whether {whom} is behind gate {gates}: no service names it. If it is, this is "
                "dropped there: a gate lets nobody outside reach machines that no service names"
            )
        return told

    def _summary(self) -> str:
        if not self.stages:
            return f"passes no bridge {'that is known to be on its way' if self.maybe_closed_by else 'under control'}"
        for stage in self.stages:
            if stage.explanation.judgement.verdict is Verdict.DROP:
                return f"dropped at {stage.hop.bridge}"
        return f"passes {', '.join(s.hop.bridge for s in self.stages)}"


def why(
    world: World, packet: Packet, decision: Decision | None = None, ad: Mapping[str, object] | None = None
) -> Explanation:
    """Explain what its worker bridge does with a packet from or to a job. Raises KeyError for an unknown sender.

    `decision`, `ad`: the job's, if at hand; with them the explanation says why each rule did not help.
    """
    entered = None if packet.sender is not None else PortKind.UPLINK
    job = packet.sender
    if job is None:
        job = next((a.id for a in world.attempts.values() if packet.destination in (a.ipv4, a.ipv6)), "")
    return _explain(world, Hop("", Role.WORKER, entered, packet), {job: Known(decision, ad)})


def journey(world: World, packet: Packet, jobs: Jobs | None = None) -> tuple[Journey, Journey | None]:
    """The way of a packet and the way of its answer; None: nothing comes through, or nothing to answer to.

    `jobs`: what is known of the jobs concerned. Raises KeyError for an unknown sender.
    """
    there = _journey(world, packet, jobs or {})
    if there.verdict is Verdict.DROP or not there.stages or packet.fragment is Fragment.LATER:
        return there, None
    first = there.stages[0]
    return there, _journey(world, answer_to(world, first.hop.packet, first.explanation.judgement), jobs or {})


def _journey(world: World, packet: Packet, jobs: Jobs) -> Journey:
    stages: list[Stage] = []
    reached = True
    for hop in path(world, packet):
        explained = _explain(world, hop, jobs)
        stages.append(Stage(hop, explained, reached))
        reached = reached and explained.judgement.verdict is Verdict.ALLOW
    # Two servers behind one gate meet without it.
    beside = gates_of(world, packet.source)
    gates = tuple(gate.name for gate in maybe_behind(world, packet.destination) if gate not in beside)
    return Journey(packet, tuple(stages), gates)


def _explain(world: World, hop: Hop, jobs: Jobs) -> Explanation:
    judgement = judgement_at(world, hop)
    order: tuple[Step, ...] = AT_GATE if hop.role is Role.GATE else AT_BORDER if hop.role is Role.BORDER else INWARD
    if hop.role is Role.WORKER and hop.packet.sender is not None:
        order = OUTWARD
    passed = order[: order.index(judgement.step)] if judgement.step in order else ()
    marked = None
    if judgement.verdict is Verdict.ALLOW:
        if hop.entered is None:
            marked = classified(world, hop.packet)
        elif hop.role is Role.BORDER:
            marked = classified_at_border(world, hop.packet, Direction.of(hop.entered))
    return Explanation(judgement, passed, tuple(remarks(world, hop, judgement, jobs)), marked)


def described(packet: Packet) -> str:
    """A packet in words: both ends, and what tells it from others."""
    ports = packet.transport in (Transport.TCP, Transport.UDP) and packet.fragment is not Fragment.LATER
    ends = []
    for address, port in ((packet.source, packet.source_port), (packet.destination, packet.destination_port)):
        shown = f"[{address}]" if ports and address.version == 6 else str(address)
        ends.append(f"{shown}:{port}" if ports else shown)
    told = f"{packet.transport.value} {ends[0]} > {ends[1]}"
    marks = ["ack"] if packet.ack else []
    marks += ["of a tracked connection"] if packet.tracked else []
    marks += [f"{packet.fragment.value} fragment"] if packet.fragment is not Fragment.WHOLE else []
    return f"{told} ({', '.join(marks)})" if marks else told
