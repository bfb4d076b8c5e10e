"""The standing flows of a gate.

A gate has servers on one side and everybody else on the other (workers, campus). What comes from the other side reaches
a server only at an address of a service it guards, whatever MAC it is sent to: an address of the same machine that
nobody declared stays closed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from policies.model import Bridge, Mode, Network, PortKind, Protocol, Service, World
from ryu_apps.openflow import registers as r
from ryu_apps.openflow.cookies import Feature, cookie
from ryu_apps.openflow.fields import EtherType, ethertype, exact, masked, network
from ryu_apps.openflow.flows import Action, FieldMatch, Flow, Goto, Normal, Output
from ryu_apps.openflow.hosts import HostClass, PortClass, host_classes
from ryu_apps.openflow.lanes import job_ranges, port_numbers
from ryu_apps.openflow.phrases import (
    FAMILIES,
    ND,
    Matches,
    answers,
    first_fragment,
    host,
    icmpv6,
    later_fragment,
    neighbour,
    port_blocks,
    unreadable,
)
from ryu_apps.openflow.pipeline import Fixed, Priority, Table, entry
from ryu_apps.openflow.services import LATER_SERVICE

_NORMAL = (Normal(),)
_SERVERS = (Goto(Table.GATE_SERVERS),)
_WORKERS = (Goto(Table.GATE_WORKERS),)
_JOB, _OTHER = r.ORIGIN.equals(r.Origin.JOB), r.ORIGIN.equals(r.Origin.OUTSIDE)


def base_flows(world: World, spec: Bridge) -> list[Flow]:
    classes = host_classes(world, spec)
    hosts = [address for one in classes.classes for address in one.hosts]
    flows = [*_sides(world, spec), *_sources(world, hosts), *_standing(world, spec)]
    for one in classes.classes:
        flows += _hosts(one)
        flows += _grants(world, one)
    for ports in classes.ports:
        flows += _ports(ports)
    return flows + [flow for pair in classes.pairs for flow in _pair(world, *pair)]


def _audits(world: World) -> bool:
    """Whether the site or any node is in audit mode: only then are there flows that let refusals on."""
    return world.policy.mode is Mode.AUDIT or any(world.policy.audits(name) for name in world.site.nodes)


def _audit(audits: bool) -> tuple[Action, ...]:
    return (r.AUDIT.load(1),) if audits else ()


def _sides(world: World, spec: Bridge) -> list[Flow]:
    """CLASSIFY: from which side. From servers, the job they answer is noted here already, so that service × job
    addresses never multiply out. The mode that counts for a job is its node's, for anybody else the site's."""
    own = cookie(Feature.PIPELINE, Fixed.GATE)
    never = cookie(Feature.PIPELINE, Fixed.FORBIDDEN_FRAMES)
    as_job, as_other = r.ORIGIN.load(r.Origin.JOB), r.ORIGIN.load(r.Origin.OUTSIDE)
    # A tag within a tag would hide what is inside.
    hidden = [(masked("vlan_tci", 0x1000, 0x1000),), *unreadable()]
    flows = [entry(Table.CLASSIFY, Priority.REFUSE, matches, (), never) for matches in hidden]
    for kind, origin in ((PortKind.WORKER_FACING, as_job), (PortKind.UPLINK, as_other)):
        for port in port_numbers(world, spec, kind):
            actions = (origin, Goto(Table.GATE_SOURCE))
            flows.append(entry(Table.CLASSIFY, Priority.OBJECT, (exact("in_port", port),), actions, own))
    site_mode = _audit(world.policy.mode is Mode.AUDIT)
    for port in port_numbers(world, spec, PortKind.SERVER_FACING):
        side = exact("in_port", port)
        for node in world.site.nodes.values():
            mode = _audit(world.policy.audits(node.name))
            for net in job_ranges(node):
                field = "nw_dst" if net.version == 4 else "ipv6_dst"
                to_job = (as_job, *mode, r.DESTINATION.copy_from(field), Goto(Table.GATE_RETURN))
                matches = (side, *network("nw_dst", "ipv6_dst", net))
                flows.append(entry(Table.CLASSIFY, Priority.PLUMBING, matches, to_job, own))
        to_other = (as_other, *site_mode, Goto(Table.GATE_RETURN))
        flows.append(entry(Table.CLASSIFY, Priority.OBJECT, (side,), to_other, own))
    return flows


def _sources(world: World, hosts: Iterable[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> list[Flow]:
    """GATE_SOURCE: from everybody but servers."""
    own = cookie(Feature.PIPELINE, Fixed.GATE)
    never = cookie(Feature.PIPELINE, Fixed.FORBIDDEN_FRAMES)
    flows = []
    for address in hosts:
        # Nobody but the servers' side may speak as a guarded server, in IP, ARP or neighbour discovery.
        if address.version == 4:
            claimed: tuple[FieldMatch, ...] = (ethertype(EtherType.ARP), exact("arp_spa", int(address)))
        else:
            claimed = (*icmpv6(ND.NEIGHBOUR_ADVERTISEMENT), exact("nd_target", int(address)))
        for matches in (host(address, "src"), claimed):
            flows.append(entry(Table.GATE_SOURCE, Priority.REFUSE, matches, (), never))
    for node in world.site.nodes.values():
        mode = _audit(world.policy.audits(node.name))
        forged = cookie(Feature.NODE, world.node_numbers[node.name])
        for net in job_ranges(node):
            source = network("nw_src", "ipv6_src", net)
            field = "nw_src" if net.version == 4 else "ipv6_src"
            claim = (*mode, r.CLAIM_ADDRESS.copy_from(field), Goto(Table.GATE_IDENTITY))
            flows.append(entry(Table.GATE_SOURCE, Priority.OBJECT, (_JOB, *source), claim, own))
            flows.append(entry(Table.GATE_SOURCE, Priority.NETWORK, source, (), forged))
    site_mode = _audit(world.policy.mode is Mode.AUDIT)
    elsewhere = (*site_mode, r.ORIGIN.load(r.Origin.OUTSIDE), Goto(Table.GATE_SERVICE))
    flows.append(entry(Table.GATE_SOURCE, Priority.OTHERWISE, (), elsewhere, own))
    return flows


def _standing(world: World, spec: Bridge) -> list[Flow]:
    """What does not depend on the services there are: plumbing, fragments, audit, and the ways out."""
    own = cookie(Feature.PIPELINE, Fixed.GATE)
    pieces = cookie(Feature.PIPELINE, Fixed.FRAGMENTS)
    audited = cookie(Feature.PIPELINE, Fixed.AUDITED_AT_GATE)
    workers, uplinks, servers = (
        port_numbers(world, spec, kind) for kind in (PortKind.WORKER_FACING, PortKind.UPLINK, PortKind.SERVER_FACING)
    )
    flows = []
    plumbing: list[Matches] = [(ethertype(EtherType.ARP),)]
    plumbing += [neighbour(kind) for kind in range(ND.ROUTER_SOLICITATION, ND.REDIRECT + 1)]
    never = cookie(Feature.PIPELINE, Fixed.FORBIDDEN_FRAMES)
    for kind in (ND.ROUTER_ADVERTISEMENT, ND.REDIRECT):
        # No worker node is a router: it would become the servers'.
        flows.append(entry(Table.GATE_SOURCE, Priority.REFUSE, (_JOB, *icmpv6(kind)), (), never))
    for matches in plumbing:
        flows.append(entry(Table.GATE_SOURCE, Priority.PLUMBING, matches, _NORMAL, own))
        flows.append(entry(Table.GATE_RETURN, Priority.PLUMBING, matches, _NORMAL, own))
    for version in FAMILIES:
        later, first = later_fragment(version), first_fragment(version)
        pinned = (*LATER_SERVICE, Goto(Table.GATE_GRANT))
        flows.append(entry(Table.GATE_SERVICE_PORT, Priority.FRAGMENT, later, pinned, pieces))
        # A first fragment that shows no port of a service here: what follows it could carry one.
        for table in (Table.GATE_SERVICE_PORT, Table.GATE_SERVICE_PAIR):
            flows.append(entry(table, Priority.FAMILY, first, (), pieces))
            if _audits(world):
                let_on = (r.AUDIT.equals(1), *first)
                flows.append(entry(table, Priority.NETWORK, let_on, _SERVERS, audited))
        flows.append(entry(Table.GATE_RETURN_PORT, Priority.FRAGMENT, later, _NORMAL, pieces))
    if _audits(world):
        let_on_back = r.joined(_JOB, r.AUDIT.equals(1))
        flows.append(entry(Table.GATE_GRANT, Priority.FAMILY, (r.AUDIT.equals(1),), _SERVERS, audited))
        flows.append(entry(Table.GATE_RETURN_GRANT, Priority.FAMILY + 1, (let_on_back,), _WORKERS, audited))
        flows.append(entry(Table.GATE_RETURN_GRANT, Priority.FAMILY, (r.AUDIT.equals(1),), _NORMAL, audited))
    # A service answers over TCP; it does not call.
    flows.append(entry(Table.GATE_RETURN_GRANT, Priority.REFUSE, (r.CALLS.equals(1),), (), own))
    past = tuple(Output(port) for port in sorted([*workers, *uplinks]))
    otherwise: list[tuple[Table, tuple[Action, ...]]] = [
        (Table.GATE_IDENTITY, (Goto(Table.GATE_SERVICE),)),
        (Table.GATE_SERVICE, past),
        # Other ports of a server are not this gate's matter.
        (Table.GATE_SERVICE_PORT, _SERVERS),
        (Table.GATE_SERVICE_PAIR, _SERVERS),
        (Table.GATE_RETURN, _NORMAL),
        (Table.GATE_RETURN_PORT, _NORMAL),
        (Table.GATE_RETURN_PAIR, _NORMAL),
        (Table.GATE_RECEIVER, (Goto(Table.GATE_RETURN_GRANT),)),
        (Table.GATE_SERVERS, tuple(Output(p) for p in servers)),
        (Table.GATE_WORKERS, tuple(Output(p) for p in workers)),
    ]
    return [*flows, *(entry(table, Priority.OTHERWISE, (), actions, own) for table, actions in otherwise)]


def _hosts(one: HostClass) -> list[Flow]:
    known = r.HOSTS.load(one.number)
    flows = []
    for address in one.hosts:
        to, back = (known, Goto(Table.GATE_SERVICE_PORT)), (known, Goto(Table.GATE_RETURN_PORT))
        flows.append(entry(Table.GATE_SERVICE, Priority.OBJECT, host(address, "dst"), to, one.cookie))
        flows.append(entry(Table.GATE_RETURN, Priority.OBJECT, host(address, "src"), back, one.cookie))
    return flows


def _ports(one: PortClass) -> list[Flow]:
    known = r.PORTS.load(one.number)
    to, back = (known, Goto(Table.GATE_SERVICE_PAIR)), (known, Goto(Table.GATE_RETURN_PAIR))
    calls = (r.CALLS.load(1), *back)
    flows = []
    for version in one.versions:
        for ports in one.ports:
            for block in port_blocks(ports, "dst", version):
                flows.append(entry(Table.GATE_SERVICE_PORT, Priority.OBJECT, block, to, one.cookie))
            for block in answers(ports, version):
                flows.append(entry(Table.GATE_RETURN_PORT, Priority.OBJECT, block, back, one.cookie))
            for block in port_blocks(ports, "src", version) if ports.protocol is Protocol.TCP else ():
                flows.append(entry(Table.GATE_RETURN_PORT, Priority.NETWORK, block, calls, one.cookie))
    return flows


def _pair(world: World, hosts: HostClass, ports: PortClass, service: Service) -> list[Flow]:
    number = world.service_numbers[service.name]
    own = cookie(Feature.SERVICE, number)
    both = (r.HOSTS.equals(hosts.number), r.PORTS.equals(ports.number))
    to, back = ((r.SERVICE.load(number), Goto(table)) for table in (Table.GATE_GRANT, Table.GATE_RECEIVER))
    return [
        entry(Table.GATE_SERVICE_PAIR, Priority.OBJECT, both, to, own),
        entry(Table.GATE_RETURN_PAIR, Priority.OBJECT, both, back, own),
    ]


def _grants(world: World, one: HostClass) -> list[Flow]:
    """GATE_GRANT and GATE_RETURN_GRANT: what is open to networks, and what no identity's own flow lets on."""
    flows = []
    for service in one.services:
        number = world.service_numbers[service.name]
        own = cookie(Feature.SERVICE, number)
        here = r.SERVICE.equals(number)
        for net in dict.fromkeys(service.open_to):
            asking, answered = (network(f"nw_{s}", f"ipv6_{s}", net) for s in ("src", "dst"))
            flows.append(entry(Table.GATE_GRANT, Priority.NETWORK, (here, _OTHER, *asking), _SERVERS, own))
            flows.append(entry(Table.GATE_RETURN_GRANT, Priority.NETWORK, (here, _OTHER, *answered), _NORMAL, own))
        let_on = service.audit
        flows.append(entry(Table.GATE_GRANT, Priority.OTHERWISE_OBJECT, (here,), _SERVERS if let_on else (), own))
        refused: tuple[Action, ...] = _NORMAL if let_on else ()
        flows.append(entry(Table.GATE_RETURN_GRANT, Priority.OTHERWISE_OBJECT, (here,), refused, own))
        if let_on:
            to_job = (here, _JOB)
            flows.append(entry(Table.GATE_RETURN_GRANT, Priority.OTHERWISE_OBJECT + 1, to_job, _WORKERS, own))
    here = r.SERVICE.equals(one.later)
    for net in _open_to(one):
        asking = network("nw_src", "ipv6_src", net)
        flows.append(entry(Table.GATE_GRANT, Priority.NETWORK, (here, _OTHER, *asking), _SERVERS, one.cookie))
    refused = _SERVERS if any(s.audit for s in one.services) else ()
    flows.append(entry(Table.GATE_GRANT, Priority.OTHERWISE_OBJECT, (here,), refused, one.cookie))
    return flows


def _open_to(one: HostClass) -> list[Network]:
    return list(dict.fromkeys(net for service in one.services for net in service.open_to))
