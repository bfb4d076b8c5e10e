"""The flows that carry a verdict out: for `policies.why`, and for whoever reads a dumped cookie. Pure.

The packet is sent through a simulated bridge made of the very flows that the controller wants there.
"""

from __future__ import annotations

from dataclasses import dataclass

from policies.model import World
from policies.semantics import Fragment, Packet, Transport
from ryu_apps.openflow.compiler import desired_flows
from ryu_apps.openflow.cookies import Feature, explain
from ryu_apps.openflow.fields import CtState, EtherType, Frag, IpProto
from ryu_apps.openflow.flows import Cookie, Flow
from ryu_apps.openflow.hosts import shared_hosts
from ryu_apps.openflow.pipeline import Fixed, Table
from ryu_apps.openflow.simulate import SimulatedSwitch

_TCP_SYN, _TCP_ACK = 0x002, 0x010
_TTL = 64
_ECHO_REQUEST, _ECHO_REQUEST_V6 = 8, 128
_GRE = 47
"""What stands for every other transport protocol."""
_FRAGMENTS = {Fragment.WHOLE: 0, Fragment.FIRST: Frag.ANY, Fragment.LATER: Frag.BOTH}


@dataclass(frozen=True, slots=True)
class Carried:
    """One flow that a packet meets: where, which, and what its cookie means today."""

    bridge: str
    table: Table
    flow: Flow
    meaning: str


def carried_out(world: World, bridge: str, packet: Packet, in_port: int, destination_mac: int) -> list[Carried]:
    """The flows a packet meets on a bridge, in order."""
    state = CtState.TRK | (CtState.EST | CtState.RPL if packet.tracked else CtState.NEW)
    switch = SimulatedSwitch(desired_flows(world, bridge).values(), lambda zone: state)
    trail = switch.send(frame(packet, in_port, destination_mac)).trail
    return [Carried(bridge, Table(f.table), f, meaning(world, f.cookie)) for f in trail]


def meaning(world: World, cookie: Cookie) -> str:
    """What a cookie stands for in this world: object, and the file and line that it comes from, if there is one."""
    found = explain(cookie)
    if found is None:
        return "not one of Lark's flows"
    feature, number = found
    if feature is Feature.ATTEMPT:
        names = [a for a in world.attempts.values() if a.number == number]
        return f"attempt {names[0].id} on {names[0].node}" if names else f"attempt number {number}, which has ended"
    if feature is Feature.IDENTITY:
        outcomes = [o for o, n in world.identities.items() if n == number]
        if not outcomes:
            return f"identity {number}, which nobody has any more"
        jobs = sum(a.outcome == outcomes[0] for a in world.attempts.values())
        return f"identity {number} ({jobs} attempts): may reach {', '.join(sorted(outcomes[0].services)) or 'nothing'}"
    if feature is Feature.SERVICE:
        names_ = [s for s, n in world.service_numbers.items() if n == number and s in world.policy.services]
        return (
            f"service {names_[0]} ({world.policy.services[names_[0]].place})" if names_ else f"service number {number}"
        )
    if feature is Feature.NODE:
        nodes = [n for n, k in world.node_numbers.items() if k == number and n in world.site.nodes]
        if number == 0:
            return "infrastructure"
        return f"node {nodes[0]} ({world.site.nodes[nodes[0]].place})" if nodes else f"node number {number}"
    if feature is Feature.PIPELINE:
        return f"standing rule: {Fixed(number).name.lower().replace('_', ' ')}"
    if feature is Feature.REASON:
        return f"refusals for reason {number}"
    if feature is Feature.HOSTS:
        shared = shared_hosts(world, number)
        places = ", ".join(f"{name} ({world.policy.services[name].place})" for name in shared)
        return f"hosts that services share: {places}" if shared else f"shared hosts {number}"
    if feature is Feature.EXPOSE and 0 < number <= len(world.policy.exposes):
        exposure = world.policy.exposes[number - 1]
        return f"what jobs of group {exposure.group} serve ({exposure.place})"
    if feature is Feature.CLASSIFY and 0 < number <= len(world.policy.classify):
        rule = world.policy.classify[number - 1]
        return f"class {rule.traffic_class} ({rule.place})"
    return feature.name.lower().replace("_", " ")


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
