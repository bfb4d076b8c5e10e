"""What the site alone decides about a registration, and what an attempt claims for itself. Pure.

Invariant: MAC, IPv6 address and zone follow from the IPv4 address (docs/interfaces.md section 2).
"""

from __future__ import annotations

import functools
import ipaddress
import socket
from collections.abc import Mapping

from policies.model import Address, Attempt, Node, ShareKey, Site, World
from policies.wire import AttemptSpec, NodeSpec
from ryu_apps.openflow import compiler
from ryu_apps.refusals import Refused, Slug
from ryu_apps.store.store import AttemptRow, NodeRow

ZONE_BASE = 1000
"""The conntrack zone of lane n is ZONE_BASE + n (docs/interfaces.md section 2)."""
Claim = tuple[str, str, object]
"""Something that one attempt at a time may hold: where, what, which."""


def check(world: World, nodes: Mapping[str, NodeRow], id: str, spec: AttemptSpec) -> None:
    """Everything about a registration that the site alone decides. `nodes`: those registered. Raises Refused."""
    site = world.site
    node = site.nodes.get(spec.node)
    if node is None:
        raise Refused(Slug.NO_SUCH_NODE, f"node {spec.node} is not in site.yaml; declare it under nodes")
    if not id.startswith(f"{spec.node}~"):
        raise Refused(Slug.MALFORMED, f"attempt id {id} does not begin with its node, {spec.node}~")
    if spec.port.bridge != node.bridge:
        known = "is another node's" if spec.port.bridge in site.bridges else "is not in site.yaml"
        raise Refused(
            Slug.UNKNOWN_BRIDGE, f"bridge {spec.port.bridge} {known}; node {spec.node} has bridge {node.bridge}"
        )
    if spec.node not in nodes:
        # Without the host's own addresses its jobs could reach them.
        raise Refused(Slug.NO_SUCH_NODE, f"node {spec.node} has not registered; PUT /v1/nodes/{spec.node} first")
    if spec.port.name in site.bridges[node.bridge].ports or spec.port.name == node.bridge:
        raise Refused(Slug.NO_SUCH_PORT, f"port {spec.port.name} of bridge {node.bridge} is not a job's port")
    ipv4 = _ipv4(spec.ipv4)
    edge = node.ipv4.prefixlen < 31 and ipv4 in (node.ipv4.network_address, node.ipv4.broadcast_address)
    if ipv4 not in node.ipv4 or edge:
        raise Refused(Slug.BAD_ADDRESS, f"{ipv4} is not a usable host address of {spec.node}'s range {node.ipv4}")
    if ipv4 == site.network.gateway_ipv4:
        raise Refused(Slug.BAD_ADDRESS, f"{ipv4} is the gateway of the job network")
    mac, ipv6 = compiler.lane_addresses(site, spec.node, ipv4)
    if _mac(spec.mac) != mac:
        raise Refused(Slug.BAD_ADDRESS, f"the MAC address of {ipv4} must be {_mac_text(mac)}, not {spec.mac}")
    if (ipv6 is None) != (spec.ipv6 is None) or (spec.ipv6 is not None and _ipv6(spec.ipv6) != ipv6):
        raise Refused(
            Slug.BAD_ADDRESS, f"the IPv6 address of {ipv4} must be {ipv6 or 'absent'}, not {spec.ipv6 or 'absent'}"
        )
    lane = int(ipv4) - int(node.ipv4.network_address) + (1 if node.ipv4.prefixlen >= 31 else 0)
    if spec.zone != ZONE_BASE + lane:
        raise Refused(Slug.BAD_ADDRESS, f"the conntrack zone of {ipv4} must be {ZONE_BASE + lane}, not {spec.zone}")


class Fitting:
    """`check` for thousands of stored rows: true only where `check` does not refuse, in a fourth of the time. Where it
    is false, `check` has the word."""

    def __init__(self, world: World, nodes: Mapping[str, NodeRow]) -> None:
        site = world.site
        self._nodes = {name: _lane_rules(site, site.nodes[name]) for name in nodes if name in site.nodes}

    def __call__(self, id: str, spec: AttemptSpec) -> bool:
        known = self._nodes.get(spec.node)
        if known is None:
            return False
        bridge, own, taken, lowest, highest, gateway, zone, prefix = known
        port, text = spec.port, spec.ipv6
        try:
            ipv4 = int.from_bytes(socket.inet_pton(socket.AF_INET, spec.ipv4), "big")
            ipv6 = None if text is None else int.from_bytes(socket.inet_pton(socket.AF_INET6, text), "big")
        except OSError:
            return False
        return (
            lowest <= ipv4 <= highest
            and ipv4 != gateway
            and port.bridge == bridge
            and port.name not in taken
            and spec.zone == zone + ipv4
            and ipv6 == (None if prefix is None else prefix | ipv4)
            and _mac(spec.mac) == compiler.MAC_PREFIX << 32 | ipv4
            and id.startswith(own)
        )


def _lane_rules(site: Site, node: Node) -> tuple[str, str, frozenset[str], int, int, int | None, int, int | None]:
    """What `Fitting` compares with: bridge, how ids begin, names that no job's port has, lowest and highest IPv4
    address, the gateway's, the zone less the IPv4 address, and the IPv6 address less the IPv4 address."""
    network, gateway = node.ipv4, site.network.gateway_ipv4
    edge = 0 if network.prefixlen >= 31 else 1
    first = int(network.network_address)
    return (
        node.bridge,
        f"{node.name}~",
        frozenset(site.bridges[node.bridge].ports) | {node.bridge},
        first + edge,
        int(network.broadcast_address) - edge,
        None if gateway is None else int(gateway),
        ZONE_BASE - first + 1 - edge,
        None if node.ipv6 is None else int(node.ipv6.network_address),
    )


def claims(spec: AttemptSpec) -> tuple[Claim, ...]:
    """What no other attempt may hold while this one lives or leaves."""
    bridge, node = _words(spec.port.bridge, spec.node)
    # MAC, IPv6 address and zone follow from the IPv4 address, which is checked.
    return (
        ("the job network", "address", spec.ipv4),
        (bridge, "port", spec.port.name),
        (bridge, "port number", spec.port.ofport),
        (node, "zone", spec.zone),
    )


@functools.lru_cache(8192)
def _words(bridge: str, node: str) -> tuple[str, str]:
    # Kept, as every attempt of a bridge has the same words.
    return f"bridge {bridge}", f"node {node}"


def share_key(row: AttemptRow) -> ShareKey | None:
    """The share that a row's attempt has a part in."""
    share = row.decision.share
    return None if share is None else (row.spec.port.bridge, share.name)


def attempt_of(row: AttemptRow) -> Attempt:
    """What the compiler needs of a row."""
    spec = row.spec
    return Attempt(
        id=row.id,
        number=row.number,
        node=spec.node,
        bridge=spec.port.bridge,
        port_name=spec.port.name,
        ofport=spec.port.ofport,
        mac=_mac(spec.mac),
        ipv4=_ipv4(spec.ipv4),
        ipv6=_ipv6(spec.ipv6) if spec.ipv6 is not None else None,
        zone=spec.zone,
        phase=spec.phase,
        outcome=row.decision.outcome,
        slice=row.decision.slice,
        scitag=row.decision.scitag,
        rate=row.decision.rate,
        share=row.decision.share,
    )


def host_addresses(spec: NodeSpec) -> tuple[Address, ...]:
    """The addresses that a node's agent says its host has, in order."""
    return tuple(
        sorted({ipaddress.ip_address(text) for text in spec.host_addresses}, key=lambda a: (a.version, int(a)))
    )


def nobodys_host(world: World, address: Address) -> str:
    """Why no host of a node can have this address; empty if it can. Jobs are cut off from a host's addresses, so a
    false one would cut them off from what they need."""
    site = world.site
    if address.is_unspecified or address.is_loopback or address.is_multicast or str(address) == "255.255.255.255":
        return "no address that others can reach"
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return "an IPv4 address written as IPv6"
    if address in (site.network.gateway_ipv4, site.network.gateway_ipv6):
        return "the gateway of the job network"
    for service in world.policy.services.values():
        if service.protected and address in service.hosts:
            return f"a host of the protected service {service.name}"
    for node in site.nodes.values():
        if _of_jobs(node, address):
            return f"in the range of the jobs of node {node.name}"
    return ""


def _of_jobs(node: Node, address: Address) -> bool:
    if isinstance(address, ipaddress.IPv4Address):
        return address in node.ipv4
    if node.ipv6 is None or address not in node.ipv6:
        return False
    # A job's address is the prefix and, in the last 32 bits, its IPv4 address: as in the site file, those are the jobs'
    # whatever the last bits, and the rest of the prefix is free.
    return int(address) >> 32 == int(node.ipv6.network_address) >> 32


def _ipv4(text: str) -> ipaddress.IPv4Address:
    # A start reads thousands: several times faster than to have `ipaddress` read the text.
    return ipaddress.IPv4Address(int.from_bytes(socket.inet_pton(socket.AF_INET, text), "big"))


def _ipv6(text: str) -> ipaddress.IPv6Address:
    return ipaddress.IPv6Address(int.from_bytes(socket.inet_pton(socket.AF_INET6, text), "big"))


def _mac(text: str) -> int:
    return int(text.replace(":", ""), 16)


def _mac_text(value: int) -> str:
    return ":".join(f"{octet:02x}" for octet in value.to_bytes(6, "big"))
