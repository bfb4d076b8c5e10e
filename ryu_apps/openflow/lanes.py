"""Addresses of jobs: how MAC, IPv4 and IPv6 address of one job follow from each other.

A job's MAC is 02:6c plus its IPv4 address, and its IPv6 address is its node's prefix with the same 32 bits at the end.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from policies.model import Bridge, Network, Node, PortKind, Site, World
from ryu_apps.openflow.same import Same

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


@dataclass(frozen=True, slots=True)
class JobNetworks:
    """What a site's nodes have addresses in, in as few networks as can say it."""

    lanes: tuple[Network, ...]
    """Of both families: what jobs can have."""
    nobody: tuple[Network, ...]
    """Behind nodes' prefixes, the last bits of another node's job are nobody's."""
    derived: tuple[ipaddress.IPv6Network, ...]
    """All of nodes' IPv6, lanes or not."""

    @property
    def ipv4(self) -> tuple[ipaddress.IPv4Network, ...]:
        return tuple(net for net in self.lanes if isinstance(net, ipaddress.IPv4Network))


def job_networks(site: Site) -> JobNetworks:
    """Those of all nodes. It is kept for the last few sites: every bridge asks."""
    return _job_networks(Same(site))


@lru_cache(maxsize=8)
def _job_networks(site: Same) -> JobNetworks:
    assert isinstance(site.value, Site)
    nodes = site.value.nodes.values()
    lanes = joined(net for node in nodes for net in lane_ranges(node))
    nobody = joined(net for node in nodes for net in job_ranges(node) if net not in lane_ranges(node))
    derived = joined(prefix for node in nodes if (prefix := derived_prefix(node)) is not None)
    return JobNetworks(
        tuple(lanes), tuple(nobody), tuple(net for net in derived if isinstance(net, ipaddress.IPv6Network))
    )


def node_of(world: World, bridge: str) -> Node:
    """The node that a worker bridge belongs to. Raises StopIteration if there is none."""
    return next(n for n in world.site.nodes.values() if n.bridge == bridge)


def port_numbers(world: World, spec: Bridge, kind: PortKind) -> list[int]:
    """Numbers of the declared ports of a kind that the switch has at present."""
    present = world.ports.get(spec.name, {})
    return sorted(present[name] for name, k in spec.ports.items() if k is kind and name in present)
