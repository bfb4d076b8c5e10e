"""The bridges that a packet meets on its way, in order, and what it looks like at each. Pure geography.

A worker bridge stands before its node's jobs, a gate before the servers of the services it guards, a border before the
rest of the world; what is between is the site's own network. A packet between two jobs of one bridge meets that bridge
once. Outside is every address that is not on the job network, not `inside` by the site file, not a node's host, not
infrastructure and not a host of a gate's services. Nothing says that a machine which no service names is behind a gate:
`maybe_behind` tells where it could be.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace

from policies.border import Direction, judge_at_border
from policies.model import Address, Attempt, Bridge, Network, Node, PortKind, Role, World
from policies.semantics import Fragment, Judgement, Packet, Step, Transport, judge, judge_at_gate


@dataclass(frozen=True, slots=True)
class Hop:
    """A bridge on the way. `entered`: the kind of port it comes in by; None: a job's own. `packet`: as it is there."""

    bridge: str
    role: Role
    entered: PortKind | None
    packet: Packet


def path(world: World, packet: Packet) -> tuple[Hop, ...]:
    """The hops of a packet. Without a `sender` it is taken for what its source address says, a job or a host.

    Raises KeyError for an unknown sender.
    """
    job = world.attempts[packet.sender] if packet.sender is not None else attempt_at(world, packet.source)
    hops: list[Hop] = []
    if job is not None:
        own = packet if packet.sender is not None else replace(packet, sender=job.id, mac=job.mac)
        hops.append(Hop(job.bridge, Role.WORKER, None, own))
    elif packet.sender is None:
        if outside(world, packet.source) and not outside(world, packet.destination):
            hops += [Hop(b.name, Role.BORDER, PortKind.WAN, packet) for b in borders_of(world)]
        hops += [Hop(g.name, Role.GATE, PortKind.SERVER_FACING, packet) for g in gates_of(world, packet.source)]
    there = replace(packet, sender=None, mac=job.mac if job is not None else packet.mac)
    node = node_at(world, packet.destination)
    if node is not None:
        if all(hop.bridge != node.bridge for hop in hops):
            hops.append(Hop(node.bridge, Role.WORKER, PortKind.UPLINK, there))
        return tuple(hops)
    side = PortKind.UPLINK if job is None else PortKind.WORKER_FACING
    passed = {hop.bridge for hop in hops}
    gates = [gate for gate in gates_of(world, packet.destination) if gate.name not in passed]
    hops += [Hop(gate.name, Role.GATE, side, there) for gate in gates]
    if outside(world, packet.destination) and (job is not None or not outside(world, packet.source)):
        hops += [Hop(b.name, Role.BORDER, b.ports[b.lan or ""], there) for b in borders_of(world)]
    return tuple(hops)


def judgement_at(world: World, hop: Hop) -> Judgement:
    """What the bridge of a hop must do. Raises KeyError for an unknown sender."""
    if hop.role is Role.WORKER or hop.entered is None:
        return judge(world, hop.packet)
    if hop.role is Role.BORDER:
        return judge_at_border(world, hop.packet, Direction.of(hop.entered))
    return judge_at_gate(world, world.site.bridges[hop.bridge], hop.packet, hop.entered)


def answer_to(world: World, packet: Packet, judgement: Judgement) -> Packet:
    """What the far end would send back to a packet that was judged so at the first bridge of its way."""
    far = attempt_at(world, packet.destination)
    near = attempt_at(world, packet.source)
    granted = judgement.step is Step.SERVICE and judgement.reason is None
    # Between jobs, and of a granted service over TCP, nothing is tracked; what audit lets on is.
    stateless = judgement.step is Step.BETWEEN_JOBS or (granted and packet.transport is Transport.TCP)
    return Packet(
        sender=None if far is None else far.id,
        mac=0 if far is None else far.mac,
        source=packet.destination,
        destination=packet.source,
        transport=packet.transport,
        source_port=packet.destination_port,
        destination_port=packet.source_port,
        ack=packet.transport is Transport.TCP,
        tracked=not stateless and (far is not None or near is not None),
        fragment=Fragment.WHOLE,
    )


def attempt_at(world: World, address: Address) -> Attempt | None:
    """The attempt that has an address."""
    return next((a for a in world.attempts.values() if address in (a.ipv4, a.ipv6)), None)


def node_at(world: World, address: Address) -> Node | None:
    """The node whose jobs' addresses an address is among."""
    for node in world.site.nodes.values():
        six = None if node.ipv6 is None else ipaddress.IPv6Network((int(node.ipv6.network_address), 96))
        if address in node.ipv4 or (six is not None and address in six):
            return node
    return None


def gates_of(world: World, address: Address) -> list[Bridge]:
    """The gates in front of a host, by name."""
    services = world.policy.services
    found = [
        bridge
        for bridge in world.site.bridges.values()
        if Role.GATE in bridge.roles and any(address in services[n].hosts for n in bridge.guards if n in services)
    ]
    return sorted(found, key=lambda bridge: bridge.name)


def borders_of(world: World) -> list[Bridge]:
    """The border, if there is one; of several nobody knows which a packet takes."""
    found = [bridge for bridge in world.site.bridges.values() if Role.BORDER in bridge.roles]
    return found if len(found) == 1 else []


def outside(world: World, address: Address) -> bool:
    """Whether an address is taken for one beyond the border."""
    inside = [*_on_site(world), *world.site.infrastructure, *_hosts(world)]
    one_host = not (address.is_multicast or address.is_link_local or address.is_loopback or address.is_unspecified)
    return one_host and not any(address in net for net in inside) and not gates_of(world, address)


def maybe_behind(world: World, address: Address) -> list[Bridge]:
    """The gates that a machine of the site could be behind for all that the files say, by name.

    None for jobs, worker nodes, routers, what services name (`gates_of` knows those) and what is outside.
    """
    network = world.site.network
    known = address in (network.gateway_ipv4, network.gateway_ipv6) or node_at(world, address) is not None
    known = known or any(address in net for net in _hosts(world))
    if known or gates_of(world, address) or not any(address in net for net in _on_site(world)):
        return []
    gates = [bridge for bridge in world.site.bridges.values() if Role.GATE in bridge.roles]
    return sorted(gates, key=lambda bridge: bridge.name)


def _on_site(world: World) -> list[Network]:
    network = world.site.network
    return [network.ipv4, *([network.ipv6] if network.ipv6 else []), *world.site.inside]


def _hosts(world: World) -> list[Network]:
    return [net for node in world.site.nodes.values() for net in node.host_networks]
