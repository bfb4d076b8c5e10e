"""Who reaches whom: what the policy means for every pair, what real packets say, and where the two differ.

Expected: the packet is judged at every bridge of its way (`policies.path.judgement_at`), and so
is its answer. Measured comes from probers in all networks at once; their sockets and processes are `lab`'s.

Invariant: arrival and answer are compared apart. A packet that the policy stops must not even arrive; one whose answer
is stopped must arrive and stay without answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from mininet_tests.topology.layout import Geography
from policies.border import Direction, class_at_border, judge_at_border
from policies.model import Address, Policy, Protocol, Role, Verdict, World
from policies.path import answer_to, judgement_at, path
from policies.semantics import Judgement, Packet, Step, Transport, class_of
from policies.values import ports as parse_ports

ALWAYS = ("tcp/8080", "udp/8080", "icmp")
"""Asked of everybody, besides the ports of the policy's services."""


@dataclass(frozen=True, slots=True)
class End:
    """One end of probes. `attempt`: id of the job it is; None: a machine. `node`: the worker node it is, or is on."""

    name: str
    addresses: tuple[Address, ...]
    attempt: str | None = None
    mac: int = 0
    node: str | None = None

    def first(self, version: int) -> Address | None:
        return next((a for a in self.addresses if a.version == version), None)


@dataclass(frozen=True, slots=True)
class Probe:
    """One question. `port`: as in a policy, `tcp/1094` or `icmp`; `own`: source port, or the identifier of an echo."""

    source: End
    target: End
    origin: Address
    address: Address
    port: str
    own: int

    @property
    def protocol(self) -> str:
        return self.port.partition("/")[0]

    @property
    def number(self) -> int:
        return int(self.port.partition("/")[2] or 0)

    def packet(self) -> Packet:
        icmp = self.protocol == "icmp"
        own = 0 if icmp else self.own
        return Packet(
            self.source.attempt,
            self.source.mac,
            self.origin,
            self.address,
            Transport(self.protocol),
            own,
            self.number,
        )

    def key(self) -> tuple[str, str, str, int, int]:
        """As the target's prober notes it."""
        return self.protocol, str(self.origin), str(self.address), self.own, self.number

    def __str__(self) -> str:
        where = self.target.name if len(self.target.addresses) < 2 else f"{self.target.name} ({self.address})"
        return f"{self.source.name} to {where} {self.port}"


@dataclass(frozen=True, slots=True)
class Expected:
    """What the policy means. `line`: what decided, in words."""

    arrives: bool
    answered: bool
    line: str
    dscp: int | None = None
    """Of what a job sends and of what crosses the border, when the policy has classes."""


@dataclass(frozen=True, slots=True)
class Measured:
    arrived: bool
    answered: bool
    dscp: int | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    probe: Probe
    expected: Expected
    measured: Measured

    @property
    def differs(self) -> str:
        """How measured differs from expected; empty if it does not."""
        wrong = []
        if self.measured.arrived != self.expected.arrives:
            wrong.append("arrived" if self.measured.arrived else "did not arrive")
        if self.measured.answered != self.expected.answered:
            wrong.append("was answered" if self.measured.answered else "was not answered")
        if self.expected.dscp is not None and self.measured.dscp not in (None, self.expected.dscp):
            wrong.append(f"arrived with DSCP {self.measured.dscp}, not {self.expected.dscp}")
        return f"{self.probe} {' and '.join(wrong)}; expected: {self.expected.line}" if wrong else ""


@dataclass(frozen=True, slots=True)
class Matrix:
    cells: tuple[Cell, ...]
    seconds: float = 0.0

    @property
    def differences(self) -> list[str]:
        return [text for cell in self.cells if (text := cell.differs)]

    @property
    def reached(self) -> int:
        return sum(cell.measured.answered for cell in self.cells)

    @property
    def refused(self) -> int:
        """Probes that neither arrived nor should have."""
        return sum(not cell.measured.arrived and not cell.expected.arrives for cell in self.cells)

    def answered(self, source: str, target: str, port: str) -> bool:
        """Whether all addresses of a target answered. KeyError if it was not asked."""
        found = [
            c.measured.answered
            for c in self.cells
            if (c.probe.source.name, c.probe.target.name, c.probe.port) == (source, target, port)
        ]
        if not found:
            raise KeyError((source, target, port))
        return all(found)

    def summary(self) -> str:
        told = f"{len(self.cells)} probes in {self.seconds:.1f} s: {self.reached} answered, {self.refused} stopped"
        return f"{told}, {len(self.differences)} other than the policy means"

    def table(self) -> Table:
        """Sources down, targets across; a cell names the ports that answered. Red: not as the policy means."""
        sources = list(dict.fromkeys(cell.probe.source.name for cell in self.cells))
        targets = list(dict.fromkeys(cell.probe.target.name for cell in self.cells))
        table = Table(title=self.summary(), show_lines=True)
        table.add_column("from \\ to")
        for target in targets:
            table.add_column(target)
        for source in sources:
            row = [Text(source)]
            for target in targets:
                cells = [c for c in self.cells if (c.probe.source.name, c.probe.target.name) == (source, target)]
                row.append(_cell_text(cells))
            table.add_row(*row)
        return table


def _cell_text(cells: Sequence[Cell]) -> Text:
    if not cells:
        return Text("")
    words = Text()
    ports = list(dict.fromkeys(cell.probe.port for cell in cells))
    open_everywhere = all(cell.measured.answered for cell in cells)
    if open_everywhere and not any(cell.differs for cell in cells):
        return Text("all", style="green")
    shut = [p for p in ports if not any(c.measured.answered for c in cells if c.probe.port == p)]
    if len(shut) < len(ports) / 2 and not any(c.differs for c in cells) and _whole(cells, ports, shut):
        return Text("all but " + " ".join(shut), style="green")
    for port in ports:
        here = [cell for cell in cells if cell.probe.port == port]
        wrong = any(cell.differs for cell in here)
        answered = [cell for cell in here if cell.measured.answered]
        if not answered and not wrong:
            continue
        some = "" if len(answered) in (0, len(here)) else f" ({len(answered)} of {len(here)})"
        mark = "!" if wrong else ""
        words.append(f"{mark}{port}{some}\n", style="bold red" if wrong else "green")
    words.rstrip()
    return words if words.plain else Text("·", style="dim")


def _whole(cells: Sequence[Cell], ports: Sequence[str], shut: Sequence[str]) -> bool:
    """Whether every port that is not shut answers at all addresses."""
    return all(cell.measured.answered for cell in cells if cell.probe.port in set(ports) - set(shut))


def ports_of(policy: Policy) -> list[str]:
    """What to ask of everybody: the first port of every range that a service names, and a few of no service."""
    found: list[str] = []
    for service in policy.services.values():
        for one in service.ports:
            found.append("icmp" if one.protocol is Protocol.ICMP else f"{one.protocol.value}/{one.first}")
    for rule in policy.exposes:
        found += [f"{one.protocol.value}/{one.first}" for one in rule.ports if one.protocol is not Protocol.ICMP]
    return list(dict.fromkeys([*found, *ALWAYS]))


def pairs(ends: Sequence[End]) -> Iterable[tuple[End, End]]:
    """Everybody with everybody, but for oneself, and a node with its own jobs: of these packets no policy speaks."""
    for source in ends:
        for target in ends:
            own = source.attempt is None and target.attempt is not None and source.node == target.node
            if source is not target and not (own and source.node is not None):
                yield source, target


CLOSED = "no service that the gate guards names this address: it is closed from outside"


def expect(world: World, probe: Probe, known: Geography) -> Expected:
    """What the policy means for a probe, and for its answer."""
    packet = probe.packet()
    there = _judged(world, packet, known)
    line = _deciding(there)
    if any(one.verdict is Verdict.DROP for _, one in there):
        return Expected(False, False, line)
    dscp = _marked(world, packet, known)
    first = there[0][1] if there else Judgement(Verdict.ALLOW, None, None, "", Step.GATE)
    back = _judged(world, answer_to(world, packet, first), known)
    if any(one.verdict is Verdict.DROP for _, one in back):
        return Expected(True, False, f"its answer: {_deciding(back)}", dscp)
    return Expected(True, True, line, dscp)


def _crosses(packet: Packet, known: Geography) -> Direction | None:
    """Which way a packet crosses the border, if it does."""
    came, goes = packet.source in known.beyond, packet.destination in known.beyond
    if came == goes:
        return None
    return Direction.INWARD if came else Direction.OUTWARD


def _marked(world: World, packet: Packet, known: Geography) -> int | None:
    """The code point that a packet arrives with; None: the policy has no classes, or nobody marks it."""
    crosses = _crosses(packet, known)
    if crosses is not None:
        found = class_at_border(world, packet, crosses)
    else:
        found = class_of(world, packet) if packet.sender is not None else None
    return None if found is None else found.dscp


def _judged(world: World, packet: Packet, known: Geography) -> list[tuple[str, Judgement]]:
    """What each bridge of the way does with a packet, in order.

    `policies.path` knows of the machines that services name. Which others stand behind a gate is the lab's knowledge:
    what they send leaves the gate's servers' side, and what is for them from outside is closed (docs/policy.md). So is
    who is beyond the border: offices are not, though they are on no network that the site file names.
    """
    bridges = world.site.bridges.values()
    gate = next(bridge for bridge in bridges if Role.GATE in bridge.roles)
    border = next((bridge for bridge in bridges if Role.BORDER in bridge.roles), None)
    named = {host for name in gate.guards for host in world.policy.services[name].hosts}
    from_servers = packet.source in known.behind
    told = []
    for hop in path(world, packet):
        unnamed = hop.role is Role.GATE and from_servers and packet.source not in named
        if hop.role is not Role.BORDER and not unnamed:
            told.append((hop.bridge, judgement_at(world, hop)))
    if packet.destination in known.behind - named and not from_servers:
        told.append((gate.name, Judgement(Verdict.DROP, None, gate.place, CLOSED, Step.GATE)))
    crosses = _crosses(packet, known)
    if border is not None and crosses is not None:
        at_border = (border.name, judge_at_border(world, packet, crosses))
        told = [at_border, *told] if crosses is Direction.INWARD else [*told, at_border]
    return told


def _deciding(judged: Sequence[tuple[str, Judgement]]) -> str:
    if not judged:
        return "no bridge under control is on the way"
    bridge, first = next((one for one in judged if one[1].verdict is Verdict.DROP), judged[0])
    place = f" ({first.place})" if first.place else ""
    return f"{first.verdict.value} at {bridge}: {first.text}{place}"


def compare(
    world: World,
    known: Geography,
    probes: Sequence[Probe],
    answered: set[int],
    seen: Mapping[str, Mapping[tuple[str, str, str, int, int], int]],
    seconds: float,
) -> Matrix:
    """`answered`: indices into `probes`; `seen`: what each end's prober noted, with the DSCP."""
    cells = []
    for number, probe in enumerate(probes):
        dscp = seen.get(probe.target.name, {}).get(probe.key())
        measured = Measured(dscp is not None, number in answered, dscp)
        cells.append(Cell(probe, expect(world, probe, known), measured))
    return Matrix(tuple(cells), seconds)


def check_port(text: str) -> str:
    """A port as a policy writes it. Raises ValueError."""
    found = parse_ports(text)
    return "icmp" if found.protocol is Protocol.ICMP else f"{found.protocol.value}/{found.first}"
