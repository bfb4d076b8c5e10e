"""Matches and actions that several tables share: a host, a block of ports, a fragment, a refusal."""

from __future__ import annotations

import ipaddress

from policies.model import Address, PortRange, Protocol, Reason, World
from ryu_apps.openflow import registers as r
from ryu_apps.openflow.fields import (
    TCP_ACK,
    EtherType,
    Frag,
    IpProto,
    ethertype,
    exact,
    masked,
    network,
    port_masks,
)
from ryu_apps.openflow.flows import Action, FieldMatch, Goto
from ryu_apps.openflow.pipeline import Table

FAMILIES = {4: EtherType.IPV4, 6: EtherType.IPV6}
LINK_LOCAL6 = ipaddress.IPv6Network("fe80::/10")
LINK_MULTICAST6 = ipaddress.IPv6Network("ff02::/16")

Matches = tuple[FieldMatch, ...]


class ND:
    """ICMPv6 types of neighbour discovery (RFC 4861)."""

    ROUTER_SOLICITATION = 133
    ROUTER_ADVERTISEMENT = 134
    NEIGHBOUR_SOLICITATION = 135
    NEIGHBOUR_ADVERTISEMENT = 136
    REDIRECT = 137

    HOP_LIMIT = 255
    """Of every message of neighbour discovery: a lower one came over a router, or was made up."""


def icmpv6(kind: int) -> Matches:
    return (ethertype(EtherType.IPV6), exact("nw_proto", IpProto.ICMPV6), exact("icmpv6_type", kind))


def neighbour(kind: int) -> Matches:
    """A message of neighbour discovery that has not come over a router."""
    return (*icmpv6(kind), exact("nw_ttl", ND.HOP_LIMIT))


def on_link(world: World) -> tuple[ipaddress.IPv6Network, ...]:
    """Where a job's IPv6 neighbours are."""
    link = world.site.network.ipv6
    return (LINK_LOCAL6,) if link is None else (link, LINK_LOCAL6)


def host(address: Address, side: str) -> Matches:
    """A packet whose `side` (`src` or `dst`) is this host."""
    return network(f"nw_{side}", f"ipv6_{side}", ipaddress.ip_network(address))


def protocol(what: Protocol, version: int) -> Matches:
    """Family and transport protocol."""
    numbers = {Protocol.TCP: IpProto.TCP, Protocol.UDP: IpProto.UDP}
    number = numbers.get(what, IpProto.ICMP if version == 4 else IpProto.ICMPV6)
    return (ethertype(FAMILIES[version]), exact("nw_proto", number))


def port_blocks(ports: PortRange, side: str, version: int) -> list[Matches]:
    """Matches of a port range on `side`: one per aligned block of ports; of ICMP, which has none, one.

    They may fit later fragments, which show no ports, as well: a table that has these decides about fragments before.
    """
    head = protocol(ports.protocol, version)
    if ports.protocol is Protocol.ICMP:
        return [head]
    field = f"{ports.protocol.value}_{side}"
    blocks = port_masks(ports.first, ports.last)
    return [(*head, masked(field, value, mask)) if mask else head for value, mask in blocks]


def answers(ports: PortRange, version: int) -> list[Matches]:
    """Matches of what comes from these ports and may answer: of TCP, with ACK."""
    blocks = port_blocks(ports, "src", version)
    if ports.protocol is not Protocol.TCP:
        return blocks
    return [(*block, masked("tcp_flags", TCP_ACK, TCP_ACK)) for block in blocks]


def later_fragment(version: int) -> Matches:
    """A fragment that shows no ports."""
    return (ethertype(FAMILIES[version]), exact("nw_frag", Frag.BOTH))


def first_fragment(version: int) -> Matches:
    return (ethertype(FAMILIES[version]), exact("nw_frag", Frag.ANY))


def any_fragment() -> FieldMatch:
    return masked("nw_frag", Frag.ANY, Frag.ANY)


def unreadable() -> tuple[Matches, ...]:
    """IPv6 packets whose chain of headers ends before a transport: what Open vSwitch shows of them is a guess.

    It reads through the extension headers it knows; where they run past the end of the packet, the userspace datapath
    says protocol 0 and no fragment, the kernel's says 59. A first fragment made so would hide its ports, and that it
    is a fragment at all.
    """
    numbers = (0, IpProto.NO_NEXT_HEADER)
    return tuple((ethertype(EtherType.IPV6), exact("nw_proto", number)) for number in numbers)


def unmarkable(version: int) -> Matches:
    """IP packets that no DSCP can be written into: Open vSwitch does nothing where it shows protocol 0.

    It shows it of headers that it cannot read, and of what really says so, which nobody honest sends in IPv4 and which
    in IPv6 only says that a transport follows.
    """
    return (ethertype(FAMILIES[version]), exact("nw_proto", 0))


def deny(reason: Reason, *, audited: bool = False) -> tuple[Action, ...]:
    """Refuse; `audited`: count it and let it on, unless something closes it for good."""
    bit = (r.AUDIT.load(1),) if audited else ()
    return (r.REASON.load(reason), *bit, Goto(Table.DENIED))
