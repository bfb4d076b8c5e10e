"""Tables of verdicts beside the example policies: what each job may do, said in words, and how it is found out.

A table names a policy, jobs (their ads, on a node) and packets. Each packet is judged on every bridge of its way, and
twice: by the policy's meaning (`policies.semantics`), and by a simulated switch with the compiled flows.
`docs/examples.md` shows the same tables.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from ruamel.yaml import YAML

from policies.border import Direction, class_at_border, judge_at_border
from policies.decide import Held, decide
from policies.language import check_together, load_policy, load_site
from policies.model import (
    Address,
    Attempt,
    Bridge,
    Decision,
    Place,
    PortKind,
    Protocol,
    Role,
    TrafficClass,
    World,
)
from policies.model import Verdict as V
from policies.path import borders_of, outside
from policies.semantics import Judgement, Packet, Transport, class_of, judge, judge_at_gate
from policies.values import ports as parse_ports
from policies.wire import Phase
from ryu_apps.openflow.compiler import desired_flows, lane_addresses
from ryu_apps.openflow.explain import frame
from ryu_apps.openflow.fields import CtState
from ryu_apps.openflow.simulate import SimulatedSwitch, Special
from tests.numbers import share_numbers

EXAMPLES = Path(__file__).resolve().parent.parent / "policies" / "examples"
TABLES = sorted(EXAMPLES.glob("*/verdicts*.yaml"))
ROUTER_MAC = 0x020000000001
FIRST_JOB_PORT = 100
EPHEMERAL = 40000


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class JobRow(_Row):
    node: str
    ad: dict[str, Any]
    slot: dict[str, Any] = Field(default_factory=dict)
    rate: int | None = None
    scitag: tuple[int, int] | None = None


class HeldRow(JobRow):
    line: str
    """A part of the line of the policy that holds it."""
    because: str
    """A part of the reason its owner reads."""


class PacketRow(_Row):
    job: str | None = None
    """None: a packet between two machines, at a gate or over a border."""
    phase: Annotated[Phase, Field(strict=False)] = Phase.RUN
    packet: str
    verdict: str
    """`allow`, `drop`, `drop REASON`, or `audit REASON`: refused, counted and let on."""
    line: str | None = None
    """A part of the line of the policy that decides."""
    class_: str | None = Field(default=None, alias="class")


class Table(_Row):
    policy: str
    site: str = "site.yaml"
    warnings: list[str] = Field(default_factory=list)
    """A part of each finding of lint."""
    jobs: dict[str, JobRow]
    held: dict[str, HeldRow] = Field(default_factory=dict)
    packets: list[PacketRow]


def read_table(path: Path) -> Table:
    return Table.model_validate(YAML(typ="safe").load(path))


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a packet: the judgement that settled it, its class, and what the switches did with it."""

    judgement: Judgement
    traffic_class: TrafficClass | None
    disagreements: tuple[str, ...]

    @property
    def verdict(self) -> str:
        judged = self.judgement
        reason = f" {judged.reason.slug}" if judged.reason else ""
        if judged.verdict is V.DROP:
            return f"drop{reason}"
        return f"audit{reason}" if reason else "allow"


class Example:
    """A table's policy and site, with all its jobs running."""

    def __init__(self, path: Path) -> None:
        self.table = read_table(path)
        self.directory = path.parent
        self.policy = load_policy(self.directory / self.table.policy)
        self.site = load_site(self.directory / self.table.site)
        check_together(self.policy, self.site)

    def decision(self, row: JobRow, phase: Phase = Phase.RUN) -> Decision:
        return decide(self.policy, row.node, row.ad, row.slot, phase)

    def held(self, row: HeldRow) -> Held | None:
        try:
            self.decision(row)
        except Held as held:
            return held
        return None

    def text(self, place: Place) -> str:
        """The line of the policy that a place is on."""
        return (self.directory / place.file).read_text().splitlines()[place.line - 1]

    def world(self, phase: Phase = Phase.RUN) -> World:
        """All jobs of the table, each in a lane of its node."""
        lanes = dict.fromkeys(self.site.nodes, 0)
        attempts: dict[str, Attempt] = {}
        for number, (name, row) in enumerate(self.table.jobs.items(), 1):
            node = self.site.nodes[row.node]
            lanes[row.node] = lane = lanes[row.node] + 1
            ipv4 = node.ipv4[lane]
            mac, ipv6 = lane_addresses(self.site, row.node, ipv4)
            decision = self.decision(row, phase)
            attempts[name] = Attempt(
                name, number, row.node, node.bridge, f"lj{lane}", FIRST_JOB_PORT + lane, mac, ipv4, ipv6, 1000 + lane,
                phase, decision.outcome, decision.slice, decision.scitag, decision.rate, decision.share,
            )  # fmt: skip
        outcomes = dict.fromkeys(a.outcome for a in attempts.values())
        slices = dict.fromkeys(a.slice for a in attempts.values() if a.slice is not None)
        return World(
            site=self.site,
            policy=self.policy,
            ports={b.name: {port: n for n, port in enumerate(b.ports, 1)} for b in self.site.bridges.values()},
            host_addresses={},
            service_numbers={name: n for n, name in enumerate(sorted(self.policy.services), 1)},
            node_numbers={name: n for n, name in enumerate(sorted(self.site.nodes), 1)},
            identities={outcome: n for n, outcome in enumerate(outcomes, 1)},
            slice_numbers={name: n for n, name in enumerate(slices, 1)},
            share_numbers=share_numbers(attempts.values()),
            attempts=attempts,
        )

    def ask(self, row: PacketRow) -> Answer:
        """Send a row's packet on its way. Raises ValueError when the row cannot be read."""
        world = self.world(row.phase)
        packet = _packet(world, row)
        request = _request(world, row)
        if request is not None and _settled(list(_way(world, request))).verdict is V.ALLOW:
            between_jobs = _job_at(world, packet.source) and _job_at(world, packet.destination)
            packet = packet if between_jobs else replace(packet, tracked=True)
        way = list(_way(world, packet))
        disagreements = tuple(text for stop in way if (text := _disagreement(world, stop)))
        found = class_of(world, packet) if row.job else None
        for stop in way:
            if stop.crosses is not None:
                found = class_at_border(world, stop.packet, stop.crosses)
        return Answer(_settled(way), found, disagreements)


@dataclass(frozen=True, slots=True)
class _Stop:
    """A packet at one bridge of its way, and what the policy means there."""

    bridge: Bridge
    packet: Packet
    in_port: int
    judgement: Judgement
    crosses: Direction | None = None
    """At a border: which way."""


def _settled(way: list[_Stop]) -> Judgement:
    """The first refusal settles it; else the first that was let on by audit mode; else the first judgement."""
    judged = [stop.judgement for stop in way]
    dropped = [one for one in judged if one.verdict is V.DROP]
    audited = [one for one in judged if one.reason is not None]
    return (dropped + audited + judged)[0]


def _way(world: World, packet: Packet) -> Iterator[_Stop]:
    """Every bridge that the packet comes to, if those before let it on."""
    sender = world.attempts.get(packet.sender or "")
    receiver = _job_at(world, packet.destination)
    if sender is not None:
        bridge = world.site.bridges[sender.bridge]
        yield _Stop(bridge, packet, sender.ofport, judge(world, packet))
    there, here = outside(world, packet.destination), outside(world, packet.source)
    for border in borders_of(world) if here and not there else ():
        yield _at_border(world, border, packet, Direction.INWARD)
    for gate in world.site.bridges.values():
        hosts = {host for name in gate.guards for host in world.policy.services[name].hosts}
        entered = None
        if packet.source in hosts:
            entered = PortKind.SERVER_FACING
        elif packet.destination in hosts:
            entered = PortKind.UPLINK if sender is None else PortKind.WORKER_FACING
        if Role.GATE in gate.roles and entered is not None:
            judgement = judge_at_gate(world, gate, packet, entered)
            yield _Stop(gate, packet, _port(world, gate, entered), judgement)
    if receiver is not None and (sender is None or receiver.bridge != sender.bridge):
        bridge = world.site.bridges[receiver.bridge]
        arrived = replace(packet, sender=None)
        yield _Stop(bridge, arrived, _port(world, bridge, PortKind.UPLINK), judge(world, arrived))
    for border in borders_of(world) if there and not here else ():
        yield _at_border(world, border, replace(packet, sender=None), Direction.OUTWARD)


def _at_border(world: World, border: Bridge, packet: Packet, way: Direction) -> _Stop:
    entered = PortKind.WAN if way is Direction.INWARD else border.ports[border.lan or ""]
    in_port = _port(world, border, entered)
    return _Stop(border, packet, in_port, judge_at_border(world, packet, way), way)


def _disagreement(world: World, stop: _Stop) -> str:
    """How the simulated switch differs from the policy's meaning; empty if it does not."""
    packet, bridge = stop.packet, stop.bridge
    state = CtState.TRK | (CtState.EST | CtState.RPL if packet.tracked else CtState.NEW)
    switch = SimulatedSwitch(desired_flows(world, bridge.name).values(), lambda zone: state)
    result = switch.send(frame(packet, stop.in_port, ROUTER_MAC))
    wanted: set[int | Special] = set()
    receiver = _job_at(world, packet.destination)
    if stop.judgement.verdict is V.ALLOW:
        if stop.crosses is not None:
            site, wan = world.ports[bridge.name][bridge.lan or ""], _port(world, bridge, PortKind.WAN)
            wanted = {wan if stop.crosses is Direction.OUTWARD else site}
        elif receiver is not None and receiver.bridge == bridge.name:
            wanted = {receiver.ofport}
        elif Role.WORKER in bridge.roles:
            wanted = {_port(world, bridge, PortKind.UPLINK)}
        elif stop.in_port == _port(world, bridge, PortKind.SERVER_FACING):
            wanted = {_port(world, bridge, PortKind.WORKER_FACING)}
        else:
            wanted = {_port(world, bridge, PortKind.SERVER_FACING)}
    if result.outputs != wanted:
        return (
            f"{bridge.name}: the switch sends it to {sorted(map(str, result.outputs))}, not {sorted(map(str, wanted))}"
        )
    marks = packet.sender is not None and Role.WORKER in bridge.roles and wanted
    found = class_of(world, packet) if marks else None
    if stop.crosses is not None:
        found = class_at_border(world, packet, stop.crosses)
    if found is not None and result.left["ip_dscp"] != found.dscp:
        return f"{bridge.name}: the switch marks it {result.left['ip_dscp']}, class {found.name} is {found.dscp}"
    return ""


_GRAMMAR = re.compile(
    r"(?:(?P<way>to|from|answer to|answer from)|(?P<host>[0-9a-f.:]+) to) "
    r"(?:(?P<kind>job6?) )?(?P<far>\S+) (?P<port>\S+)"
)


def _packet(world: World, row: PacketRow) -> Packet:
    """`to ADDRESS tcp/80`: the job calls; `from …`: it is called; `answer from …`, `answer to …`: what comes back.

    ADDRESS may be `job NAME` (`job6 NAME` for IPv6). Without a job: `ADDRESS to ADDRESS tcp/80`.
    """
    found = _GRAMMAR.fullmatch(row.packet)
    if not found or (found["host"] is None) != (row.job is not None):
        raise ValueError(f"not a packet: {row.packet}")
    speaks = parse_ports(found["port"])
    transport = Transport(speaks.protocol.value)
    served = 0 if speaks.protocol is Protocol.ICMP else speaks.first
    calls = 0 if speaks.protocol is Protocol.ICMP else EPHEMERAL
    tcp = transport is Transport.TCP
    far: Address
    if found["kind"]:
        peer = world.attempts[found["far"]]
        far = _own(peer, 6 if found["kind"] == "job6" else 4)
    else:
        far = ipaddress.ip_address(found["far"])
    if row.job is None:
        return Packet(None, ROUTER_MAC, ipaddress.ip_address(found["host"]), far, transport, calls, served)
    job = world.attempts[row.job]
    near = _own(job, far.version)
    other = _job_at(world, far)
    sender, mac = (other.id, other.mac) if other is not None else (None, ROUTER_MAC)
    match found["way"]:
        case "to":
            return Packet(job.id, job.mac, near, far, transport, calls, served)
        case "answer to":
            return Packet(job.id, job.mac, near, far, transport, served, calls, ack=tcp)
        case "from":
            return Packet(sender, mac, far, near, transport, calls, served)
        case _:
            return Packet(sender, mac, far, near, transport, served, calls, ack=tcp)


def _request(world: World, row: PacketRow) -> Packet | None:
    """What an answer answers."""
    if not row.packet.startswith("answer "):
        return None
    opposite = {"from": "to", "to": "from"}
    _, way, rest = row.packet.split(" ", 2)
    return _packet(world, row.model_copy(update={"packet": f"{opposite[way]} {rest}"}))


def _own(job: Attempt, version: int) -> Address:
    if version == 4:
        return job.ipv4
    if job.ipv6 is None:
        raise ValueError(f"job {job.id} has no IPv6 address")
    return job.ipv6


def _job_at(world: World, address: Address) -> Attempt | None:
    return next((a for a in world.attempts.values() if address in (a.ipv4, a.ipv6)), None)


def _port(world: World, bridge: Bridge, kind: PortKind) -> int:
    name = next(name for name, found in bridge.ports.items() if found is kind)
    return world.ports[bridge.name][name]


def page() -> Mapping[str, str]:
    """The tables of `docs/examples.md`, by the name of the example and its policy."""
    return {f"{path.parent.name}/{(e := Example(path)).table.policy}": _markdown(e) for path in TABLES}


def _markdown(example: Example) -> str:
    lines = ["| job | node | says |", "|---|---|---|"]
    lines += [f"| {name} | {row.node} | {_said(row)} |" for name, row in example.table.jobs.items()]
    lines.append("")
    classes = bool(example.policy.classes)
    head = ["job", "packet", "verdict", "decided by", *(["class"] if classes else [])]
    lines += [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in example.table.packets:
        answer = example.ask(row)
        judged = answer.judgement
        who = row.job or "(none)"
        if row.phase is not Phase.RUN:
            who += f", {row.phase}"
        decided = judged.text.removeprefix("audit: would be dropped: ")
        decided += f" (`{judged.place}`)" if judged.place else ""
        cells = [who, f"`{row.packet}`", answer.verdict, decided]
        if classes:
            dropped = judged.verdict is V.DROP
            cells.append("" if answer.traffic_class is None or dropped else answer.traffic_class.name)
        lines.append(f"| {' | '.join(cells)} |")
    if example.table.held:
        lines += ["", "| held job | says | why |", "|---|---|---|"]
        for name, row in example.table.held.items():
            held = example.held(row)
            said = ", ".join(f"`{key} = {_classad(value)}`" for key, value in row.ad.items() if key != "User")
            lines.append(
                f"| {name} | {said} | {held.reason if held else 'not held'} (`{held.place if held else ''}`) |"
            )
    return "\n".join(lines) + "\n"


def _said(row: JobRow) -> str:
    return ", ".join(f"`{key} = {_classad(value)}`" for key, value in row.ad.items())


def _classad(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)
