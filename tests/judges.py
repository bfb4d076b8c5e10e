"""The judges: a policy's meaning, the compiled flows in a simulated switch, and what Open vSwitch says of them.

A packet is followed over every bridge of its path: what the first bridge sends out enters the next (worker → gate →
server, worker → other worker, outside → worker, server → gate → worker). At each of them the judges must agree on the
very ports it leaves by, the reason that a refusal is counted for, and the traffic class it is marked with.

`mininet_tests/test_three_judges.py` adds the third judge; `mininet_tests/replay.py` asks all three about one case.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from hypothesis import HealthCheck, Phase, given, seed, settings

from policies.border import Direction, class_at_border, judge_at_border
from policies.language import PolicyError
from policies.model import Address, Node, PortKind, Reason, Role, Verdict, World
from policies.semantics import Fragment, Judgement, Packet, Transport, class_of, judge, judge_at_gate
from ryu_apps.openflow.compiler import desired_flows
from ryu_apps.openflow.cookies import Feature, explain
from ryu_apps.openflow.fields import CtState, EtherType, Frag, IpProto
from ryu_apps.openflow.flows import Flow, FlowKey
from ryu_apps.openflow.pipeline import Priority, Table
from ryu_apps.openflow.simulate import SimulatedSwitch, Special
from ryu_apps.openflow.text import flow_text
from tests.cases import SERVERS, UPLINK, WAN, WORKERS, Case, Sent, case_text, packet_words, smaller, world_of
from tests.drawn import ROUTER_MAC, cases
from tests.seed import SEED

PACKETS_A_WORLD = 40
BATCH = 2000
"""Pairs in one run of hypothesis: it remembers all that it has tried, so many small runs are lighter than one."""
TALLY: Counter[str] = Counter()
"""How many pairs of world and packet each set of judges has agreed on in this process; told at the end of a run."""

ICMP_ECHO = {4: (8, 0), 6: (128, 129)}  # request and reply
SCTP, IPV6_FRAGMENT = 132, 44
TCP_SYN, TCP_ACK = 0x002, 0x010
Judges = Callable[[Case, World], None]
"""Judges of whole cases. They raise Disagreement."""
Outputs = frozenset[int | Special]
Flows = dict[FlowKey, Flow]


@dataclass(frozen=True, slots=True)
class Hop:
    """A packet as it enters a bridge."""

    bridge: str
    in_port: int
    packet: Packet
    dscp: int


@dataclass(frozen=True, slots=True)
class Finding:
    """What a judge says of a hop. `reason`: what a refusal is counted for, also where audit lets it on.

    `dscp`: of the packet as it leaves; None if it does not.
    """

    outputs: Outputs
    reason: Reason | None
    dscp: int | None

    def __str__(self) -> str:
        where = ", ".join(sorted(str(getattr(port, "name", port)) for port in self.outputs))
        leaves = f"leaves by port {where}, DSCP {self.dscp}" if where else "goes nowhere"
        return leaves + (f", counted as {self.reason.slug}" if self.reason is not None else "")


class Disagreement(AssertionError):
    """Two judges differ. The message is a case: a person can read it, and so can `python -m mininet_tests.replay`."""

    def __init__(self, case: Case, text: str) -> None:
        super().__init__(text)
        self.case = case


# --- the first judge: what the policy means ---------------------------------------------------------------------------


def verdict(world: World, hop: Hop) -> Judgement:
    bridge = world.site.bridges[hop.bridge]
    if Role.BORDER in bridge.roles:
        return judge_at_border(world, hop.packet, direction(hop))
    if Role.GATE in bridge.roles:
        kinds = {UPLINK: PortKind.UPLINK, WORKERS: PortKind.WORKER_FACING, SERVERS: PortKind.SERVER_FACING}
        return judge_at_gate(world, bridge, hop.packet, kinds[hop.in_port])
    return judge(world, hop.packet)


def direction(hop: Hop) -> Direction:
    """Which way a packet crosses a border."""
    return Direction.OUTWARD if hop.in_port == UPLINK else Direction.INWARD


def meant(world: World, hop: Hop) -> Finding:
    """The verdict of `semantics`, and plain geography."""
    judgement = verdict(world, hop)
    if Role.BORDER in world.site.bridges[hop.bridge].roles:
        if judgement.verdict is Verdict.DROP:
            return Finding(frozenset(), None, None)
        found = class_at_border(world, hop.packet, direction(hop))
        return Finding(_border_outputs(world, hop), None, hop.dscp if found is None else found.dscp)
    if Role.GATE in world.site.bridges[hop.bridge].roles:
        outputs = _gate_outputs(world, hop) if judgement.verdict is Verdict.ALLOW else frozenset()
        return Finding(outputs, None, hop.dscp if outputs else None)
    if hop.packet.sender is None and not _is_here(world, hop):
        return Finding(frozenset(), None, None)
    outputs = _worker_outputs(world, hop, judgement)
    dscp = hop.dscp if outputs else None
    if outputs and hop.packet.sender is not None:
        traffic_class = class_of(world, hop.packet)
        dscp = hop.dscp if traffic_class is None else traffic_class.dscp
    return Finding(outputs, judgement.reason, dscp)


def _is_here(world: World, hop: Hop) -> bool:
    """Whether a packet from outside is for a job of this bridge."""
    job = receiver(world, hop.packet.destination)
    return job is not None and world.attempts[job].bridge == hop.bridge


def receiver(world: World, address: Address) -> str | None:
    return next((a.id for a in world.attempts.values() if address in (a.ipv4, a.ipv6)), None)


def _worker_outputs(world: World, hop: Hop, judgement: Judgement) -> Outputs:
    if judgement.verdict is Verdict.DROP:
        return frozenset()
    to = receiver(world, hop.packet.destination)
    if to is not None and world.attempts[to].bridge == hop.bridge:
        job = world.attempts[to]
        return frozenset() if to == hop.packet.sender else frozenset({job.ofport})
    node = next(n for n in world.site.nodes.values() if n.bridge == hop.bridge)
    if holds(node, hop.packet.destination):
        return frozenset()  # an address of this node's jobs that no job has
    return frozenset({UPLINK})


def _border_outputs(world: World, hop: Hop) -> Outputs:
    """The other side; with several WAN ports the bridge learns who is where."""
    if len(world.site.bridges[hop.bridge].wan) > 1:
        return frozenset({Special.NORMAL})
    return frozenset({WAN if hop.in_port == UPLINK else UPLINK})


def _gate_outputs(world: World, hop: Hop) -> Outputs:
    """Never to a server but at an address of a guarded service; answers to jobs go to the workers' side alone."""
    gate = world.site.bridges[hop.bridge]
    packet = hop.packet
    services = [world.policy.services[name] for name in gate.guards]
    if hop.in_port != SERVERS:
        if any(packet.destination in s.hosts for s in services):
            return frozenset({SERVERS})
        return frozenset({UPLINK, WORKERS} - {hop.in_port})
    answers = packet.fragment is not Fragment.LATER and any(
        packet.source in s.hosts
        and any(p.protocol.value == packet.transport.value and p.first <= packet.source_port <= p.last for p in s.ports)
        for s in services
    )
    return frozenset({WORKERS if answers and node_of(world, packet.destination) else Special.NORMAL})


def node_of(world: World, address: Address) -> Node | None:
    """The node whose jobs' addresses this is among."""
    return next((node for node in world.site.nodes.values() if holds(node, address)), None)


def holds(node: Node, address: Address) -> bool:
    derived = None if node.ipv6 is None else ipaddress.IPv6Network((int(node.ipv6.network_address), 96))
    return address in node.ipv4 or (derived is not None and address in derived)


# --- the second judge: the flows, in a simulated switch ---------------------------------------------------------------


@dataclass(slots=True)
class Bench:
    """The bridges of a world in simulation, compiled when they are first asked for."""

    world: World
    compile: Callable[[World, str], Flows] = desired_flows
    flows: dict[str, Flows] = field(default_factory=dict)
    _switches: dict[str, SimulatedSwitch] = field(default_factory=dict)
    _known: int = 0

    def compiled(self, bridge: str) -> Flows:
        if bridge not in self.flows:
            self.flows[bridge] = self.compile(self.world, bridge)
        return self.flows[bridge]

    def send(self, hop: Hop) -> tuple[Finding, tuple[Flow, ...], frozenset[int]]:
        """What the bridge does with the packet, by which flows, and the connections it remembers (their zones)."""
        if hop.bridge not in self._switches:
            flows = self.compiled(hop.bridge).values()
            self._switches[hop.bridge] = SimulatedSwitch(flows, lambda zone: self._known)
        self._known = ct_state(hop.packet)
        result = self._switches[hop.bridge].send(frame(hop))
        dscp = result.left["ip_dscp"] if result.outputs else None
        # Only worker bridges count by reason.
        worker = Role.WORKER in self.world.site.bridges[hop.bridge].roles
        finding = Finding(result.outputs, counted(result.trail) if worker else None, dscp)
        return finding, result.trail, result.committed


def ct_state(packet: Packet) -> int:
    return CtState.TRK | (CtState.EST | CtState.RPL if packet.tracked else CtState.NEW)


def counted(trail: tuple[Flow, ...]) -> Reason | None:
    """The reason that the flows met count for."""
    for flow in trail:
        found = explain(flow.cookie)
        if found is not None and found[0] is Feature.REASON:
            return Reason(found[1])
    last = trail[-1] if trail else None
    if last is not None and (last.table, last.priority) == (Table.SPOOF_GUARD, Priority.OTHERWISE_OBJECT):
        return Reason.SPOOFED
    return None


def frame(hop: Hop) -> dict[str, int]:
    """The packet's frame: field names of `ovs-fields(7)`, as Open vSwitch would parse it.

    Of a later fragment Open vSwitch knows no port, flag or type: it shows them as 0, of IPv6 not even the protocol.
    """
    packet = hop.packet
    version = packet.source.version
    four = version == 4
    later = packet.fragment is Fragment.LATER
    fragment = {Fragment.WHOLE: 0, Fragment.FIRST: Frag.ANY, Fragment.LATER: Frag.ANY | Frag.LATER}[packet.fragment]
    fields = {
        "in_port": hop.in_port,
        "dl_src": packet.mac,
        "dl_dst": 0x01005E000005 if packet.destination.is_multicast else ROUTER_MAC,
        "dl_type": EtherType.IPV4 if four else EtherType.IPV6,
        ("nw_src" if four else "ipv6_src"): int(packet.source),
        ("nw_dst" if four else "ipv6_dst"): int(packet.destination),
        "ip_dscp": hop.dscp,
        "nw_ttl": 64,
        "nw_frag": fragment,
    }
    match packet.transport:
        case Transport.TCP:
            flags = 0 if later else TCP_ACK if packet.ack else TCP_SYN
            ports = {"tcp_src": packet.source_port, "tcp_dst": packet.destination_port, "tcp_flags": flags}
            fields |= {"nw_proto": IpProto.TCP, **ports}
        case Transport.UDP:
            fields |= {"nw_proto": IpProto.UDP, "udp_src": packet.source_port, "udp_dst": packet.destination_port}
        case Transport.ICMP:
            kind = 0 if later else ICMP_ECHO[version][packet.tracked]
            proto, name = (IpProto.ICMP, "icmp_type") if four else (IpProto.ICMPV6, "icmpv6_type")
            fields |= {"nw_proto": proto, name: kind}
        case Transport.OTHER:
            fields["nw_proto"] = IPV6_FRAGMENT if later and not four else SCTP
    return fields


# --- the way of a packet ----------------------------------------------------------------------------------------------


def first_hop(world: World, sent: Sent) -> Hop:
    """Raises ValueError for a port that the bridge does not have."""
    sender = None
    if Role.WORKER in world.site.bridges[sent.bridge].roles and sent.in_port != UPLINK:
        here = [a.id for a in world.attempts.values() if (a.bridge, a.ofport) == (sent.bridge, sent.in_port)]
        if not here:
            raise ValueError(f"no job is at {sent.port} of {sent.bridge}: it is held, or there is none")
        sender = here[0]
    packet = Packet(
        sender=sender,
        mac=sent.mac,
        source=sent.source,
        destination=sent.destination,
        transport=sent.transport,
        source_port=sent.source_port,
        destination_port=sent.destination_port,
        ack=sent.ack,
        tracked=sent.tracked,
        fragment=sent.fragment,
    )
    return Hop(sent.bridge, sent.in_port, packet, sent.dscp)


def next_hop(world: World, hop: Hop, found: Finding) -> Hop | None:
    """Where the packet enters next, on a flat network between the bridges; None: it has left them."""
    assert found.dscp is not None
    packet = replace(hop.packet, sender=None)
    node = node_of(world, packet.destination)
    roles = world.site.bridges[hop.bridge].roles
    if Role.GATE in roles:
        leaves = bool(found.outputs & {WORKERS, UPLINK, Special.NORMAL})
    else:
        leaves = bool(found.outputs & {UPLINK, Special.NORMAL})
    if not leaves:
        return None
    if node is not None:
        return Hop(node.bridge, UPLINK, packet, found.dscp) if node.bridge != hop.bridge else None
    if Role.GATE not in roles:
        for bridge in world.site.bridges.values():
            if any(packet.destination in world.policy.services[name].hosts for name in bridge.guards):
                # Whoever comes over the border comes to a gate by its uplink.
                side = UPLINK if Role.BORDER in roles else WORKERS
                return Hop(bridge.name, side, packet, found.dscp)
    if Role.BORDER in roles or packet.destination in world.site.network.ipv4 or hop.in_port == UPLINK:
        return None
    border = next((b.name for b in world.site.bridges.values() if Role.BORDER in b.roles), None)
    return None if border is None else Hop(border, UPLINK, packet, found.dscp)


@dataclass(frozen=True, slots=True)
class Step:
    """A hop on which the first two judges agree."""

    hop: Hop
    finding: Finding
    trail: tuple[Flow, ...]
    committed: frozenset[int]


def follow(case: Case, bench: Bench, sent: Sent) -> Iterator[Step]:
    """The packet's way, hop by hop. Raises Disagreement."""
    hop: Hop | None = first_hop(bench.world, sent)
    while hop is not None:
        should = meant(bench.world, hop)
        does, trail, committed = bench.send(hop)
        if should != does:
            raise disagreement(case, bench.world, sent, hop, should, does, "the compiled flows", trail)
        if committed and not does.outputs:
            what = "nothing, and remember no connection"
            raise disagreement(case, bench.world, sent, hop, what, f"zones {committed}", "the flows", trail)
        yield Step(hop, does, trail, committed)
        hop = next_hop(bench.world, hop, does) if does.outputs else None


def disagreement(
    case: Case, world: World, sent: Sent, hop: Hop, should: object, does: object, who: str, trail: tuple[Flow, ...]
) -> Disagreement:
    """A failing case, as a file to replay."""
    judgement = verdict(world, hop)
    lines = [
        "the judges disagree.",
        "# Save from here on as case.yaml and ask all three with: python -m mininet_tests.replay case.yaml",
        f"# {packet_words(world, sent)}",
        f"# at {hop.bridge}, port {hop.in_port}:",
        f"#   the policy: {judgement.verdict}, {judgement.text} ({judgement.place})",
        f"#   should: {should}",
        f"#   {who}: {does}",
        *(f"#     {Table(f.table).name}: {flow_text(f)}" for f in trail),
    ]
    alone = replace(case, packets=(sent,))
    return Disagreement(alone, "\n".join([*lines, case_text(alone)]))


def answers_pass(case: Case, bench: Bench, sent: Sent, step: Step) -> None:
    """The answer to a packet that was let through: the connection table holds what it must. Raises Disagreement.

    Where the policy lets an answer pass for being a tracked one alone, the packet it answers must have been tracked.
    """
    world, packet = bench.world, step.hop.packet
    bridge = world.site.bridges[step.hop.bridge]
    plain = packet.fragment is Fragment.WHOLE and not packet.tracked and packet.transport is not Transport.OTHER
    if not step.finding.outputs or not plain or Role.WORKER not in bridge.roles or node_of(world, _far(packet)):
        return
    job = packet.sender or receiver(world, packet.destination)
    assert job is not None
    answer = replace(
        packet,
        sender=job if packet.sender is None else None,
        mac=world.attempts[job].mac if packet.sender is None else ROUTER_MAC,
        source=packet.destination,
        destination=packet.source,
        source_port=packet.destination_port,
        destination_port=packet.source_port,
        ack=packet.transport is Transport.TCP,
        tracked=world.attempts[job].zone in step.committed,
    )
    passes = judge(world, answer).verdict is Verdict.ALLOW
    might = judge(world, replace(answer, tracked=True)).verdict is Verdict.ALLOW
    must = might or (packet.sender is not None and not world.attempts[job].outcome.sealed)
    if must and not passes:
        say = "its answer passes", f"zones {set(step.committed)} are remembered, and the answer is dropped"
        raise disagreement(case, world, sent, step.hop, say[0], say[1], "the compiled flows", step.trail)


def _far(packet: Packet) -> Address:
    return packet.destination if packet.sender is not None else packet.source


# --- runs -------------------------------------------------------------------------------------------------------------


def reduced(found: Disagreement, one: Judges) -> Disagreement:
    """The disagreement of the smallest case that still has one."""
    progress = True
    while progress:
        progress = False
        for case in smaller(found.case):
            try:
                one(case, world_of(case))
            except Disagreement as less:
                found, progress = less, True
                break
            except (PolicyError, KeyError, ValueError):
                continue  # not a case any more: something that is needed has gone
    return found


def batches(pairs: int) -> list[tuple[int, int]]:
    """Runs that judge so many pairs together: number and share of each. At least two, for both ways of `run`."""
    size = min(BATCH, -(-pairs // 2))
    return [(n, min(size, pairs - n * size)) for n in range(-(-pairs // size))]


def run(pairs: int, number: int, one: Judges, packets: int = PACKETS_A_WORLD, *, shrink: bool = True) -> None:
    """Draw cases until `pairs` packets have been judged by `one`; in one run of four hypothesis makes every choice.

    The first case that the judges do not agree on is made as small as it goes and raised.
    """

    @seed(SEED + number)
    @settings(
        max_examples=-(-pairs // packets),
        deadline=None,
        database=None,
        # A case is made smaller as text, line by line: quicker than by drawing it again, and better to read.
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(cases(packets, number % 4 == 0))
    def judged(drawn: tuple[Case, World]) -> None:
        one(*drawn)

    try:
        judged()
    except Disagreement as found:
        if not shrink:
            raise
        small = found
    else:
        return
    raise reduced(small, one)


def two_judges(compile: Callable[[World, str], Flows] = desired_flows, tally: str | None = "two judges") -> Judges:
    """A judgement of whole cases by the first two judges, for `run`."""

    def one(case: Case, world: World) -> None:
        bench = Bench(world, compile)
        for sent in case.packets:
            for step in follow(case, bench, sent):
                answers_pass(case, bench, sent, step)
                if tally is not None:
                    TALLY[f"{tally}: bridges passed"] += 1
            if tally is not None:
                TALLY[f"{tally}: pairs"] += 1

    return one
