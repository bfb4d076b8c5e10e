"""From a parsed document to a `Site`: bridges, nodes and addresses, and how the two files go together. Pure.

Invariants: every address range has one owner; a node's jobs live on one flat network; every fault is reported at once.
docs/policy.md, "The site file", is the reference.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field

from policies import values
from policies.certificates import node_certificate_name
from policies.documents import Document, PolicyError, Problem
from policies.model import (
    Address,
    Bridge,
    JobNetwork,
    Network,
    Node,
    Policy,
    PortKind,
    Role,
    Site,
    WanPort,
    node_matches,
)
from policies.queues import queue_faults
from policies.validation import CertificateName, DatapathId, Findings, Name, PortName, Schema, Section, Spot, Text
from policies.values import LEAST_LIMIT, did_you_mean, in_words


class NetworkIn(Section):
    ipv4: Text
    gateway_ipv4: Text | None = Field(default=None, alias="gateway-ipv4")
    ipv6: Text | None = None
    gateway_ipv6: Text | None = Field(default=None, alias="gateway-ipv6")
    mtu: Annotated[int, Field(ge=1280, le=9216)] = 1500


class NodeIn(Section):
    bridge: Name
    ipv4: Text
    ipv6: Text | None = None
    host_addresses: list[object] = Field(default_factory=list, alias="host-addresses")
    link: object = None
    certificate: CertificateName | None = None


class BridgeIn(Section):
    datapath_id: DatapathId = Field(alias="datapath-id")
    roles: Annotated[list[Literal["worker", "gate", "border"]], Field(min_length=1)]
    ports: dict[Literal["uplink", "worker-facing", "server-facing", "wan"], list[object]]
    guards: list[Name] = Field(default_factory=list)
    address: Text | None = None
    certificate: CertificateName | None = None


class WanIn(Section):
    name: PortName
    rate: object
    inbound: object = None


class _SiteIn(Section):
    site: Name
    network: NetworkIn
    infrastructure: list[object] = Field(default_factory=list)
    inside: list[object] = Field(default_factory=list)
    nodes: dict[Name, NodeIn]
    bridges: dict[Name, BridgeIn]


_SITE: Schema[_SiteIn] = Schema(_SiteIn)
_PORT: Schema[str] = Schema(PortName)
_WAN: Schema[WanIn] = Schema(WanIn)
INBOUND_SHARE = 0.96
"""How much of a WAN port's rate is taken in, where the file does not say: the queue must be ours."""


def site(document: Document, file: str) -> Site:
    """Raises PolicyError with every problem found."""
    findings = Findings()
    top = Spot(findings, document, ())
    source = top.validated(_SITE, document.data)
    findings.finish()
    assert source is not None
    network = _job_network(top.at("network"), source.network)
    infrastructure = top.at("infrastructure").convert_all(source.infrastructure, values.network)
    inside = top.at("inside").convert_all(source.inside, values.network)
    nodes = {name: _node(top.at("nodes", name), name, n, source, network) for name, n in source.nodes.items()}
    known = {name: node for name, node in nodes.items() if node is not None}
    _refuse_node_overlaps(top, known)
    _refuse_hosts_among_jobs(top, known, source)
    bridges = {name: _bridge(top.at("bridges", name), name, b, source) for name, b in source.bridges.items()}
    by_datapath: dict[int, str] = {}
    for name, bridge in bridges.items():
        other = by_datapath.setdefault(bridge.datapath_id, name)
        if other != name:
            message = f"bridges `{other}` and `{name}` have the same datapath id"
            top.at("bridges", name, "datapath-id").add(message, "give each its own")
    findings.finish()
    assert network is not None
    return Site(
        name=source.site,
        network=network,
        infrastructure=infrastructure,
        nodes=MappingProxyType(known),
        bridges=MappingProxyType(bridges),
        files=(file,),
        inside=inside,
    )


def _ipv4(spot: Spot, text: str) -> ipaddress.IPv4Network | None:
    found = spot.convert(text, values.network)
    if isinstance(found, ipaddress.IPv6Network):
        spot.add(f"{text!r} is not an IPv4 network", "write it as 10.20.0.0/16")
        return None
    return found


def _ipv6(spot: Spot, text: str | None) -> ipaddress.IPv6Network | None:
    found = None if text is None else spot.convert(text, values.network)
    if isinstance(found, ipaddress.IPv4Network):
        spot.add(f"{text!r} is not an IPv6 network", "write it as 2001:db8:20::/48")
        return None
    return found


def _gateway(spot: Spot, text: str | None, net: Network | None) -> Address | None:
    address = None if text is None else spot.convert(text, values.address)
    if address is not None and net is not None and address not in net:
        spot.add(f"gateway {address} is not in {net}", "give the router's address on the job network")
        return None
    return address


def _job_network(spot: Spot, source: NetworkIn) -> JobNetwork | None:
    ipv4 = _ipv4(spot.at("ipv4"), source.ipv4)
    ipv6 = _ipv6(spot.at("ipv6"), source.ipv6)
    if source.gateway_ipv6 and not source.ipv6:
        spot.at("gateway-ipv6").add("a gateway without `ipv6`", "add the network, or drop the gateway")
    gateway4 = _gateway(spot.at("gateway-ipv4"), source.gateway_ipv4, ipv4)
    gateway6 = _gateway(spot.at("gateway-ipv6"), source.gateway_ipv6, ipv6)
    if ipv4 is None or isinstance(gateway4, ipaddress.IPv6Address) or isinstance(gateway6, ipaddress.IPv4Address):
        return None
    return JobNetwork(ipv4, gateway4, ipv6, gateway6, source.mtu)


def _node(spot: Spot, name: str, source: NodeIn, site: _SiteIn, network: JobNetwork | None) -> Node | None:
    at4, at6, at_bridge = spot.at("ipv4"), spot.at("ipv6"), spot.at("bridge")
    ipv4 = _ipv4(at4, source.ipv4)
    ipv6 = _ipv6(at6, source.ipv6)
    if ipv6 is not None and not 64 <= ipv6.prefixlen <= 96:
        at6.add(f"{ipv6}: a node's IPv6 prefix is /64 to /96", "the last 32 bits are the IPv4 address")
    if ipv6 is not None and int(ipv6.network_address) & 0xFFFF_FFFF:
        at6.add(f"{ipv6}: the last 32 bits must be zero", "leave them to the IPv4 address")
    if network is not None:
        if ipv4 is not None and not ipv4.subnet_of(network.ipv4):
            at4.add(f"{ipv4} is not in the job network {network.ipv4}", "jobs live on one flat network")
        elif ipv4 is not None and network.gateway_ipv4 is not None and network.gateway_ipv4 in ipv4:
            message = f"the range {ipv4} holds the gateway {network.gateway_ipv4}"
            at4.add(message, "choose a range of addresses that only jobs use")
        if ipv6 is not None and network.ipv6 is None:
            at6.add("the job network has no IPv6", "add `network.ipv6`, or drop this")
        elif ipv6 is not None and network.ipv6 is not None and not ipv6.subnet_of(network.ipv6):
            at6.add(f"{ipv6} is not in the job network {network.ipv6}", "jobs live on one flat network")
    if ipv4 is not None and ipv4.num_addresses < 4:
        at4.add(f"{ipv4} has no room for jobs", "give a node a /30 or larger, and one address a job")
    bridge = site.bridges.get(source.bridge)
    if bridge is None:
        at_bridge.add(f"bridge `{source.bridge}` is not declared", did_you_mean(source.bridge, site.bridges))
    elif "worker" not in bridge.roles:
        at_bridge.add(f"bridge `{source.bridge}` does not have the role worker", "add it to its roles")
    sharing = [n for n, other in site.nodes.items() if other.bridge == source.bridge and n != name]
    if sharing and sharing[0] < name:
        message = f"bridge `{source.bridge}` already belongs to node `{sharing[0]}`"
        at_bridge.add(message, "give each node a bridge of its own")
    hosts = spot.at("host-addresses").convert_all(source.host_addresses, values.network)
    at_certificate = spot.at("certificate")
    _refuse_own_urn(at_certificate, source.certificate)
    ours = node_certificate_name(name, source.certificate)
    twins = [n for n, other in site.nodes.items() if n < name and node_certificate_name(n, other.certificate) == ours]
    if twins:
        message = f"node `{twins[0]}` has this certificate too"
        at_certificate.add(message, "an agent's certificate is for one node: give each its own")
    link = None if source.link is None else spot.at("link").convert(source.link, values.link_rate)
    if ipv4 is None:
        return None
    return Node(name, source.bridge, ipv4, ipv6, spot.place, hosts, source.certificate, link)


def _refuse_own_urn(spot: Spot, certificate: str | None) -> None:
    if certificate is not None and certificate.lower().startswith("urn:lark:"):
        fix = "drop `certificate`: it is only for certificates that `lark-controller pki` did not make"
        spot.add("Lark's own certificates have their names without being told", fix)


def _refuse_node_overlaps(top: Spot, nodes: Mapping[str, Node]) -> None:
    ordered = sorted(nodes.values(), key=lambda n: (int(n.ipv4.network_address), n.ipv4.prefixlen))
    for before, after in itertools.pairwise(ordered):
        if before.ipv4.overlaps(after.ipv4):
            message = f"nodes `{before.name}` and `{after.name}` share addresses of {before.ipv4}"
            top.at("nodes", after.name, "ipv4").add(message, "keep them apart")


def _refuse_hosts_among_jobs(top: Spot, nodes: Mapping[str, Node], source: _SiteIn) -> None:
    """A host there would be taken for a job: not closed to jobs, but open to whom jobs are open, and in audit mode."""
    ranges: list[tuple[str, Network]] = [(node.name, node.ipv4) for node in nodes.values()]
    for node in nodes.values():
        if node.ipv6 is not None:
            ranges.append((node.name, ipaddress.IPv6Network((int(node.ipv6.network_address), 96))))

    def refuse(spot: Spot, what: str, item: object, move: str, *, larger: bool = False) -> None:
        """`larger`: whether it may be a network that holds the jobs' addresses among others."""
        try:
            host = values.network(item)
        except values.Bad:
            return  # told already
        found = next(((n, r) for n, r in ranges if _overlap(host, r)), None)
        if found is not None and not (larger and host.prefixlen < found[1].prefixlen):
            message = f"{what} {item} is among the addresses of the jobs of node `{found[0]}`, {found[1]}"
            spot.add(message, f"only jobs may have those: {move}, or that node's `ipv4` or `ipv6`")

    for name in nodes:
        at = top.at("nodes", name, "host-addresses")
        for position, item in enumerate(source.nodes[name].host_addresses):
            refuse(at.at(position), "host address", item, "move the host's address")
    for position, item in enumerate(source.infrastructure):
        refuse(top.at("infrastructure").at(position), "infrastructure", item, "take it out", larger=True)
    for name, bridge in source.bridges.items():
        if bridge.address:
            refuse(top.at("bridges", name, "address"), "address", bridge.address, "move the bridge's address")


def _overlap(one: Network, other: Network) -> bool:
    if isinstance(one, ipaddress.IPv4Network):
        return isinstance(other, ipaddress.IPv4Network) and one.overlaps(other)
    return isinstance(other, ipaddress.IPv6Network) and one.overlaps(other)


def _bridge(spot: Spot, name: str, source: BridgeIn, site: _SiteIn) -> Bridge:
    ports: dict[str, PortKind] = {}
    at_ports = spot.at("ports")
    roles = frozenset(Role(r) for r in source.roles)
    wan: dict[str, WanPort] = {}
    for word, items in source.ports.items():
        for position, item in enumerate(items):
            port = _port(at_ports.at(word, position), PortKind(word), item, roles, wan)
            if port is None:
                continue
            if port in ports:
                at_ports.add(f"port `{port}` is listed twice", "a port has one kind")
            ports[port] = PortKind(word)
    if {Role.WORKER, Role.GATE} <= roles:
        fix = "put the gate on a bridge of its own in front of the servers"
        spot.at("roles").add("one bridge cannot be worker and gate yet", fix)
    kinds = list(ports.values())
    if Role.WORKER in roles and kinds.count(PortKind.UPLINK) != 1:
        at_ports.add("a worker bridge has exactly one uplink", "ports: {uplink: [NAME]}")
    if Role.WORKER in roles and not any(n.bridge == name for n in site.nodes.values()):
        spot.add(f"no node uses the worker bridge `{name}`", "add its node under `nodes:`")
    if Role.GATE in roles:
        for kind in (PortKind.WORKER_FACING, PortKind.SERVER_FACING):
            if kind not in kinds:
                at_ports.add(f"a gate needs a {kind} port", f"ports: {{{kind}: [NAME], …}}")
    if Role.BORDER in roles:
        _check_border(spot, roles, source)
    if source.guards and Role.GATE not in roles:
        spot.at("guards").add("only a gate guards services", "add `gate` to its roles, or drop guards")
    at_address = spot.at("address")
    address = at_address.convert(source.address, values.address) if source.address else None
    if address is not None and (address.is_unspecified or address.is_multicast):
        fix = "give the management address that its OpenFlow connection comes from"
        at_address.add(f"{address} is nobody's address", fix)
    _refuse_own_urn(spot.at("certificate"), source.certificate)
    return Bridge(
        name=name,
        datapath_id=int(source.datapath_id, 16),
        roles=roles,
        ports=MappingProxyType(ports),
        guards=tuple(source.guards),
        place=spot.place,
        address=address,
        certificate=source.certificate,
        wan=MappingProxyType(wan),
    )


_WAN_FIX = "write {name: wan0, rate: 50 Mbit/s}, with the rate of the line"


def _port(spot: Spot, kind: PortKind, item: object, roles: frozenset[Role], wan: dict[str, WanPort]) -> str | None:
    """The name of a port; what else is said of it goes into `wan`."""
    if not isinstance(item, dict):
        name = spot.validated(_PORT, item)
        if kind is PortKind.WAN and Role.BORDER in roles:
            spot.add(f"WAN port {values.shown(item)} of a border has no rate", _WAN_FIX)
        return name
    if kind is not PortKind.WAN:
        spot.add(f"a {kind} port is only a name", "write the name; a rate is for the WAN ports of a border")
        return None
    found = spot.validated(_WAN, item)
    if found is None:
        return None
    if Role.BORDER not in roles:
        spot.add(
            "only a border shapes what leaves by its WAN ports", "add `border` to its roles, or write the name only"
        )
    rate = spot.at("rate").convert(found.rate, values.link_rate)
    inbound = None
    if found.inbound is not None:
        inbound = spot.at("inbound").convert(found.inbound, values.link_rate)
    if rate is not None and inbound is not None and inbound > rate:
        fix = "write less than the rate, or leave it out: 96% of the rate"
        spot.at("inbound").add("more is taken in than the line carries: what waits would wait on the far side", fix)
    if rate is not None:
        wan[found.name] = WanPort(rate, inbound if inbound is not None else round(rate * INBOUND_SHARE))
    return found.name


def _check_border(spot: Spot, roles: frozenset[Role], source: BridgeIn) -> None:
    if roles != {Role.BORDER}:
        others = " and ".join(sorted(roles - {Role.BORDER}))
        spot.at("roles").add(f"one bridge cannot be border and {others} yet", "give the border a bridge of its own")
    at_ports = spot.at("ports")
    if not source.ports.get("wan"):
        at_ports.add("a border needs a WAN port", "ports: {wan: [{name: wan0, rate: 50 Mbit/s}], …}")
    lan = [item for word, items in source.ports.items() if word != "wan" for item in items]
    if not lan:
        at_ports.add("a border needs a port to the site", "ports: {uplink: [lan0], …}")
    elif len(lan) > 1:
        # What comes in is shaped on its way out of this port: two of them would take in twice what the line carries,
        # and what passes between them would wait in queues that are not meant for it.
        fix = "put a switch behind one port; a port to servers belongs to a gate"
        at_ports.add("a border has one port to the site, and here there are more", fix)


def check_together(policy: Policy, site: Site) -> None:
    """What can be wrong only between the two files. Raises PolicyError."""
    problems = []
    for bridge in site.bridges.values():
        for name in bridge.guards:
            service = policy.services.get(name)
            if service is None:
                fix = did_you_mean(name, policy.services)
                problems.append(
                    Problem(bridge.place, f"gate `{bridge.name}` guards `{name}`, which no policy defines", fix)
                )
            elif not service.protected:
                fix = f"add `protected: true` to it ({service.place})"
                problems.append(
                    Problem(bridge.place, f"gate `{bridge.name}` guards `{name}`, which is not protected", fix)
                )
    for service in policy.services.values():
        for host in service.hosts:
            for node in site.nodes.values():
                if service.protected and host in node.ipv4:
                    message = f"service `{service.name}`: {host} is in the job addresses of node `{node.name}`"
                    problems.append(Problem(service.place, message, "a service lives on a host, not on a job"))
    for grant in policy.grants:
        if grant.nodes and not any(node_matches(grant.nodes, n) for n in site.nodes):
            message = f"`nodes: [{', '.join(grant.nodes)}]` matches no node of the site"
            problems.append(Problem(grant.place, message, f"nodes: {', '.join(sorted(site.nodes))}"))
    problems += queue_faults(policy, site)
    problems += _parts_of_nothing(policy, site)
    problems += _parts_too_small(policy, site)
    if problems:
        raise PolicyError(problems)


def _parts_too_small(policy: Policy, site: Site) -> Iterator[Problem]:
    for rule in policy.shares:
        small = sorted(
            name
            for name, node in site.nodes.items()
            if rule.part.percent is not None and node.link is not None and rule.part.of(node.link) < LEAST_LIMIT
        )
        if small:
            link = site.nodes[small[0]].link
            assert link is not None
            message = (
                f"a share of {rule.part} of the link of {small[0]} ({in_words(link)}) is "
                f"{in_words(rule.part.of(link))}, less than a switch can limit to"
            )
            yield Problem(rule.place, message, f"write {in_words(LEAST_LIMIT)} or more, or a larger part")


def _parts_of_nothing(policy: Policy, site: Site) -> Iterator[Problem]:
    unsaid = sorted(name for name, node in site.nodes.items() if node.link is None)
    rule = next((one for one in policy.shares if one.part.percent is not None), None)
    if rule is None or not unsaid:
        return
    shown = ", ".join(unsaid[:3]) + (f" and {len(unsaid) - 3} others" if len(unsaid) > 3 else "")
    message = f"a share of {rule.part} is part of a node's link, and the site file does not say what that of {shown} is"
    yield Problem(rule.place, message, "add `link: 10 Gbit/s` to the node in the site file, or write an amount")
