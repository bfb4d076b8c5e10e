"""Addresses of jobs: how MAC, IPv4 and IPv6 address of one job follow from each other.

A job's MAC is 02:6c plus its IPv4 address, and its IPv6 address is its node's prefix with the same 32 bits at the end.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from policies.model import Bridge, Network, Node, PortKind, Site, World

MAC_PREFIX = 0x026C
"""First two octets of every job's MAC address: locally administered, unicast. The other four are its IPv4 address."""
MAC_PREFIX_MATCH = (MAC_PREFIX << 32, 0xFFFF_0000_0000)
_DERIVED_BITS = 32


def lane_addresses(site: Site, node: str, ipv4: ipaddress.IPv4Address) -> tuple[int, ipaddress.IPv6Address | None]:
    """MAC and IPv6 address that a job with this IPv4 address must have on this node (docs/interfaces.md section 2)."""
    prefix = site.nodes[node].ipv6
    mac = (MAC_PREFIX << 32) | int(ipv4)
    if prefix is None:
        return mac, None
    return mac, ipaddress.IPv6Address(int(prefix.network_address) | int(ipv4))


def derived_prefix(node: Node) -> ipaddress.IPv6Network | None:
    """The /96 that all IPv6 addresses of a node's jobs lie in: prefix, then zeros, then 32 bits of IPv4 address."""
    if node.ipv6 is None:
        return None
    return ipaddress.IPv6Network((int(node.ipv6.network_address), 128 - _DERIVED_BITS))


def job_ranges(node: Node) -> list[Network]:
    """The networks that only a node's jobs have addresses in, one for each family."""
    six = derived_prefix(node)
    return [node.ipv4] if six is None else [node.ipv4, six]


def lane_ranges(node: Node) -> list[Network]:
    """The addresses that lanes of a node can have, one network for each family: the last 32 bits are in its range."""
    six = derived_prefix(node)
    if six is None:
        return [node.ipv4]
    own = ipaddress.IPv6Network(
        (int(six.network_address) | int(node.ipv4.network_address), six.prefixlen + node.ipv4.prefixlen)
    )
    return [node.ipv4, own]


def joined(networks: Iterable[Network]) -> list[Network]:
    """The same addresses in as few networks as can say them: nodes have neighbouring ranges, and a flow for each node
    would make every bridge hold as many as the site has nodes."""
    found = list(networks)
    four = ipaddress.collapse_addresses(net for net in found if isinstance(net, ipaddress.IPv4Network))
    six = ipaddress.collapse_addresses(net for net in found if isinstance(net, ipaddress.IPv6Network))
    return [*four, *six]


def node_of(world: World, bridge: str) -> Node:
    """The node that a worker bridge belongs to. Raises StopIteration if there is none."""
    return next(n for n in world.site.nodes.values() if n.bridge == bridge)


def port_numbers(world: World, spec: Bridge, kind: PortKind) -> list[int]:
    """Numbers of the declared ports of a kind that the switch has at present."""
    present = world.ports.get(spec.name, {})
    return sorted(present[name] for name, k in spec.ports.items() if k is kind and name in present)
