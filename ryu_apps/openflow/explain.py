"""The flows that carry a verdict out: for `policies.why`, and for whoever reads a dumped cookie. Pure.

The packet is sent through a simulated bridge made of the very flows that the controller wants there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from policies.model import Place, Reason, World
from policies.path import Hop
from policies.remarks import Jobs
from policies.semantics import Fragment, Packet, Transport
from policies.why import Journey, journey
from ryu_apps.openflow.compiler import desired_flows
from ryu_apps.openflow.cookies import Feature, explain
from ryu_apps.openflow.fields import CtState, EtherType, Frag, IpProto
from ryu_apps.openflow.flows import Cookie, Flow
from ryu_apps.openflow.hosts import shared_hosts
from ryu_apps.openflow.lanes import port_numbers
from ryu_apps.openflow.pipeline import Fixed, Table
from ryu_apps.openflow.simulate import SimulatedSwitch

_TCP_SYN, _TCP_ACK = 0x002, 0x010
_TTL = 64
_ECHO_REQUEST, _ECHO_REQUEST_V6 = 8, 128
_SOME_MAC, _GROUP_MAC = 0x020000000001, 0x01005E000001
_GRE = 47
"""What stands for every other transport protocol."""
_FRAGMENTS = {Fragment.WHOLE: 0, Fragment.FIRST: Frag.ANY, Fragment.LATER: Frag.BOTH}


@dataclass(frozen=True, slots=True)
class Carried:
    """One flow that a packet meets: where, which, and what its cookie means today."""

    bridge: str
    table: Table
    flow: Flow
    origin: Origin

    @property
    def meaning(self) -> str:
        return self.origin.text

    def line(self) -> str:
        return f"{self.table.name} priority {self.flow.priority} cookie {self.flow.cookie:#018x}: {self.meaning}"


@dataclass(frozen=True, slots=True)
class Origin:
    """What a cookie leads back to: in words, the lines of today's policy or site file, and the attempts concerned."""

    text: str
    places: tuple[Place, ...] = ()
    attempts: tuple[str, ...] = ()


def carried_out(
    world: World, bridge: str, packet: Packet, in_port: int, destination_mac: int, jobs: Jobs | None = None
) -> list[Carried]:
    """The flows a packet meets on a bridge, in order."""
    state = CtState.TRK | (CtState.EST | CtState.RPL if packet.tracked else CtState.NEW)
    switch = SimulatedSwitch(desired_flows(_concerned(world, packet, in_port), bridge).values(), lambda zone: state)
    trail = switch.send(frame(packet, in_port, destination_mac)).trail
    return [Carried(bridge, Table(f.table), f, origin(world, f.cookie, jobs)) for f in trail]


def _concerned(world: World, packet: Packet, in_port: int) -> World:
    """The world with only those jobs whose flows the packet can meet: a job's flows match its port or its address.

    So an explanation costs the same whether ten jobs run or ten thousand.
    """
    bits = {int(address) & 0xFFFF_FFFF for address in (packet.source, packet.destination)}
    few = {a.id: a for a in world.attempts.values() if a.ofport == in_port or int(a.ipv4) in bits}
    return replace(world, attempts=few)


def hop_carried_out(world: World, hop: Hop, jobs: Jobs | None = None) -> list[Carried]:
    """The flows a packet meets on one bridge of its way. None: the bridge has no such port now, and so no flows."""
    packet = hop.packet
    if hop.entered is None:
        in_port = world.attempts[packet.sender or ""].ofport
    else:
        ports = port_numbers(world, world.site.bridges[hop.bridge], hop.entered)
        if not ports:
            return []
        in_port = ports[0]
    group = _GROUP_MAC if packet.destination.is_multicast else _SOME_MAC
    return carried_out(world, hop.bridge, packet, in_port, group, jobs)


def journey_lines(world: World, journey: Journey, jobs: Jobs | None = None) -> list[str]:
    """A journey as text, with the flows that carry each verdict out."""
    told = journey.heading()
    for stage in journey.stages:
        told.append(f"  {stage.title()}")
        told += [f"    {line}" for line in stage.explanation.lines()]
        carried = hop_carried_out(world, stage.hop, jobs)
        told += [f"    flow {flow.line()}" for flow in carried]
        if not carried:
            told.append(f"    no flows: {stage.hop.bridge} has no such port at present, and is closed")
    return told


def why_lines(world: World, packet: Packet, jobs: Jobs | None = None) -> list[str]:
    """Why a packet passes or not, as text: its way and that of its answer, with judgements, lines and flows."""
    there, back = journey(world, packet, jobs)
    told = journey_lines(world, there, jobs)
    return told if back is None else [*told, "the answer:", *journey_lines(world, back, jobs)]


def meaning(world: World, cookie: Cookie) -> str:
    """What a cookie stands for in this world: object, and the file and line that it comes from, if there is one."""
    return origin(world, cookie).text


def origin(world: World, cookie: Cookie, jobs: Jobs | None = None) -> Origin:
    """What a cookie leads back to. `jobs`: what is known of attempts; with it, the very grants of an identity."""
    found = explain(cookie)
    if found is None:
        return Origin("not one of Lark's flows")
    feature, number = found
    policy = world.policy
    match feature:
        case Feature.ATTEMPT:
            attempt = next((a for a in world.attempts.values() if a.number == number), None)
            if attempt is None:
                return Origin(f"attempt number {number}, which has ended")
            known = (jobs or {}).get(attempt.id)
            places = () if known is None or known.decision is None else tuple(p for p, _ in known.decision.trail)
            return Origin(f"attempt {attempt.id} on {attempt.node}", places, (attempt.id,))
        case Feature.IDENTITY:
            return _identity(world, number, jobs or {})
        case Feature.SERVICE:
            names = [s for s, n in world.service_numbers.items() if n == number and s in policy.services]
            if not names:
                return Origin(f"service number {number}")
            place = policy.services[names[0]].place
            return Origin(f"service {names[0]} ({place})", (place,))
        case Feature.HOSTS:
            shared = shared_hosts(world, number)
            places = tuple(policy.services[name].place for name in shared)
            told = ", ".join(f"{name} ({policy.services[name].place})" for name in shared)
            return Origin(f"hosts that services share: {told}" if shared else f"shared hosts {number}", places)
        case Feature.NODE:
            if number == 0:
                return Origin("infrastructure")
            nodes = [n for n, k in world.node_numbers.items() if k == number and n in world.site.nodes]
            if not nodes:
                return Origin(f"node number {number}")
            place = world.site.nodes[nodes[0]].place
            return Origin(f"node {nodes[0]} ({place})", (place,))
        case Feature.EXPOSE:
            if not 0 < number <= len(policy.exposes):
                return Origin(f"rule {number} of expose, which the policy no longer has")
            exposure = policy.exposes[number - 1]
            members = tuple(sorted(a.id for a in world.attempts.values() if exposure.group in a.outcome.groups))
            text = f"what jobs of group {exposure.group} serve ({exposure.place})"
            return Origin(text, (exposure.place,), members)
        case Feature.CLASSIFY:
            if not 0 < number <= len(policy.classify):
                return Origin(f"rule {number} of classify, which the policy no longer has")
            rule = policy.classify[number - 1]
            of_group = [a.id for a in world.attempts.values() if rule.group in a.outcome.groups]
            return Origin(f"class {rule.traffic_class} ({rule.place})", (rule.place,), tuple(sorted(of_group)))
        case Feature.PIPELINE:
            return _standing(world, Fixed(number))
        case Feature.REASON:
            return Origin(f"refusals for reason {Reason(number).slug}")
        case Feature.HOST_LANE:
            return Origin("the host's own traffic (the agent's table)")


def _standing(world: World, which: Fixed) -> Origin:
    """A rule that every bridge of its role has; some of them say what the policy's defaults are."""
    name = which.name.lower().replace("_", " ")
    if which in (Fixed.DEFAULTS, Fixed.BETWEEN_JOBS):
        place = world.policy.defaults.place
        return Origin(f"standing rule: {name} ({place})", (place,))
    return Origin(f"standing rule: {name}")


def _identity(world: World, number: int, jobs: Jobs) -> Origin:
    """An identity: whose it is, what it may reach, and the grants that gave it that."""
    outcome = next((o for o, n in world.identities.items() if n == number), None)
    if outcome is None:
        return Origin(f"identity {number}, which nobody has any more")
    attempts = tuple(sorted(a.id for a in world.attempts.values() if a.outcome == outcome))
    decisions = [jobs[a].decision for a in attempts if a in jobs]
    trails = {place for d in decisions if d is not None for place, _ in d.trail}
    given = []
    places: list[Place] = []
    for name in sorted(outcome.services):
        # Without decisions, or where rules have moved since: whatever grants the service today.
        grants = [g.place for g in world.policy.grants if g.service == name and not g.audit]
        grants = [p for p in grants if p in trails] or grants
        places += grants
        given.append(f"{name} ({', '.join(str(p) for p in grants)})" if grants else name)
    many = f"{len(attempts)} attempt{'' if len(attempts) == 1 else 's'}"
    return Origin(f"identity {number} ({many}): may reach {', '.join(given) or 'nothing'}", tuple(places), attempts)


def frame(packet: Packet, in_port: int, destination_mac: int) -> dict[str, int]:
    """The fields of a packet's frame, as `SimulatedSwitch.send` takes them."""
    four = packet.source.version == 4
    fields = {
        "in_port": in_port,
        "dl_src": packet.mac,
        "dl_dst": destination_mac,
        "dl_type": EtherType.IPV4 if four else EtherType.IPV6,
        ("nw_src" if four else "ipv6_src"): int(packet.source),
        ("nw_dst" if four else "ipv6_dst"): int(packet.destination),
        "nw_ttl": _TTL,
        "nw_frag": _FRAGMENTS[packet.fragment],
    }
    if packet.fragment is Fragment.LATER:
        return fields | {"nw_proto": _protocol(packet.transport, four) if four else IpProto.FRAGMENT}
    match packet.transport:
        case Transport.TCP:
            fields |= {"nw_proto": IpProto.TCP, "tcp_src": packet.source_port, "tcp_dst": packet.destination_port}
            fields["tcp_flags"] = _TCP_ACK if packet.ack else _TCP_SYN
        case Transport.UDP:
            fields |= {"nw_proto": IpProto.UDP, "udp_src": packet.source_port, "udp_dst": packet.destination_port}
        case Transport.ICMP if four:
            fields |= {"nw_proto": IpProto.ICMP, "icmp_type": _ECHO_REQUEST}
        case Transport.ICMP:
            fields |= {"nw_proto": IpProto.ICMPV6, "icmpv6_type": _ECHO_REQUEST_V6}
        case Transport.OTHER:
            fields |= {"nw_proto": _GRE}
    return fields


def _protocol(transport: Transport, four: bool) -> int:
    known = {Transport.TCP: IpProto.TCP, Transport.UDP: IpProto.UDP}
    return known.get(transport, (IpProto.ICMP if four else IpProto.ICMPV6) if transport is Transport.ICMP else _GRE)
