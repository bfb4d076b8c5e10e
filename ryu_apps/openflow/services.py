"""Worker bridges, protected services and the node: SERVICE, REPLY (hosts), SERVICE_PORT, SERVICE_PAIR, GRANT, NODE.

A host loads its class, a port loads its class, both classes load a service (a later fragment its host class), identity
and service decide: N + M flows.
"""

from __future__ import annotations

import ipaddress

from policies.model import Network, Node, Policy, Protocol, Reason, Service, Verdict, World
from ryu_apps.openflow import registers as r
from ryu_apps.openflow.cookies import Feature, cookie
from ryu_apps.openflow.fields import network
from ryu_apps.openflow.flows import Action, Flow, FlowKey, Goto
from ryu_apps.openflow.hosts import HostClass, HostClasses, PortClass
from ryu_apps.openflow.phrases import FAMILIES, answers, deny, first_fragment, host, later_fragment, port_blocks
from ryu_apps.openflow.phrases import protocol as of_protocol
from ryu_apps.openflow.pipeline import Fixed, Priority, Table, entry

LATER_SERVICE: tuple[Action, ...] = (r.SERVICE.copy_from(r.HOSTS.field), r.LATER.load(1))
"""The SERVICE register of a later fragment: its host class, marked as such."""


_BY_PORT = (Table.SERVICE_PORT, Table.SERVICE_PAIR)


def flows(world: World, node: Node, classes: HostClasses) -> list[Flow]:
    found = [*_standing(), *_node(world, node)]
    closed = _closed_on(world, node)
    for one in classes.classes:
        found += _hosts(one, closed)
        found += _ungranted(world, one)
    for ports in classes.ports:
        found += _ports(ports)
    return found + [_pair(world, *pair) for pair in classes.pairs]


def _hosts(one: HostClass, closed: list[tuple[str, Network]]) -> list[Flow]:
    found = []
    known: tuple[Action, ...] = (r.HOSTS.load(one.number), Goto(Table.SERVICE_PORT))
    for address in one.hosts:
        shut = any(address in net for _, net in closed)
        to_host = (r.CLOSED.load(1), *known) if shut else known
        found.append(entry(Table.SERVICE, Priority.OBJECT, host(address, "dst"), to_host, one.cookie))
        found.append(entry(Table.REPLY, Priority.OBJECT, host(address, "src"), known, one.cookie))
    return found


def _ports(one: PortClass) -> list[Flow]:
    found = []
    asks, answers_ = r.ORIGIN.equals(r.Origin.JOB), r.ORIGIN.equals(r.Origin.OUTSIDE)
    known: tuple[Action, ...] = (r.PORTS.load(one.number), Goto(Table.SERVICE_PAIR))
    for version in one.versions:
        for ports in one.ports:
            stateless = ports.protocol is Protocol.TCP
            asked = (r.STATELESS.load(1), *known) if stateless else known
            for block in port_blocks(ports, "dst", version):
                found.append(entry(Table.SERVICE_PORT, Priority.OBJECT, (asks, *block), asked, one.cookie))
            # Answers of anything but TCP are looked up in the connection table.
            for block in answers(ports, version) if stateless else ():
                found.append(entry(Table.SERVICE_PORT, Priority.OBJECT, (answers_, *block), known, one.cookie))
    return found


def _pair(world: World, hosts: HostClass, ports: PortClass, service: Service) -> Flow:
    number = world.service_numbers[service.name]
    both = (r.HOSTS.equals(hosts.number), r.PORTS.equals(ports.number))
    known = (r.SERVICE.load(number), Goto(Table.GRANT))
    return entry(Table.SERVICE_PAIR, Priority.OBJECT, both, known, cookie(Feature.SERVICE, number))


def _ungranted(world: World, one: HostClass) -> list[Flow]:
    """GRANT: what no identity's own flow lets on."""
    asks = r.ORIGIN.equals(r.Origin.JOB)
    # Of what audit lets on the answers are known by the connection table only.
    tracked = r.STATELESS.load(0)
    found = []
    for service in one.services:
        number = world.service_numbers[service.name]
        refused = (tracked, *deny(Reason.NO_GRANT, audited=service.audit))
        miss = (r.SERVICE.equals(number), asks)
        found.append(entry(Table.GRANT, Priority.OTHERWISE_OBJECT, miss, refused, cookie(Feature.SERVICE, number)))
    refused = (tracked, *deny(Reason.NO_GRANT, audited=any(s.audit for s in one.services)))
    miss = (r.SERVICE.equals(one.later), asks)
    found.append(entry(Table.GRANT, Priority.OTHERWISE_OBJECT, miss, refused, one.cookie))
    return found


def _standing() -> list[Flow]:
    """What does not depend on the services there are: fragments, and what is for none of them."""
    state = cookie(Feature.PIPELINE, Fixed.STATE)
    pieces = cookie(Feature.PIPELINE, Fixed.FRAGMENTS)
    asks, answers_ = r.ORIGIN.equals(r.Origin.JOB), r.ORIGIN.equals(r.Origin.OUTSIDE)
    grant = Goto(Table.GRANT)
    tracked = r.STATELESS.load(0)
    untracked = (*of_protocol(Protocol.TCP, 4), later_fragment(4)[1])
    found = [
        # As little tracked as the first fragment: the connection table must see all of a datagram, or nothing.
        entry(
            Table.SERVICE_PORT,
            Priority.FRAGMENT + 1,
            (asks, *untracked),
            (*LATER_SERVICE, r.STATELESS.load(1), grant),
            pieces,
        ),
        entry(Table.SERVICE_PORT, Priority.FRAGMENT, (answers_, *untracked), (*LATER_SERVICE, grant), pieces),
        entry(Table.SERVICE_PORT, Priority.OTHERWISE, (asks,), (Goto(Table.NODE),), state),
        entry(Table.SERVICE_PORT, Priority.OTHERWISE, (answers_,), (Goto(Table.REPLY_TRACK),), state),
        # The port is another service's: of this host's it is none.
        entry(Table.SERVICE_PAIR, Priority.OTHERWISE, (asks,), (tracked, Goto(Table.NODE)), state),
        entry(Table.SERVICE_PAIR, Priority.OTHERWISE, (answers_,), (Goto(Table.REPLY_TRACK),), state),
        entry(Table.SERVICE, Priority.OTHERWISE, (), (Goto(Table.NODE),), state),
        entry(Table.GRANT, Priority.OTHERWISE, (answers_,), (Goto(Table.REPLY_TRACK),), state),
    ]
    for version in FAMILIES:
        later = (asks, *later_fragment(version))
        found.append(entry(Table.SERVICE_PORT, Priority.FRAGMENT, later, (*LATER_SERVICE, grant), pieces))
        # It shows no port of a service here; what follows it could carry one.
        first = (asks, *first_fragment(version))
        refused = (tracked, *deny(Reason.NO_GRANT))
        found += [entry(table, Priority.NETWORK, first, refused, pieces) for table in _BY_PORT]
    return found


def _closed_on(world: World, here: Node) -> list[tuple[str, Network]]:
    """What an agent says of its host closes addresses on its own bridge only: a rogue node harms itself, not others.

    Pairs of the node's name, "" for infrastructure, and the network.
    """
    closed = [(n.name, net) for n in world.site.nodes.values() for net in n.host_networks]
    closed += [(here.name, ipaddress.ip_network(a)) for a in world.host_addresses.get(here.name, ())]
    return closed + [("", net) for net in world.site.infrastructure]


def _anybody_calls(policy: Policy) -> bool:
    """Whether anybody outside may call any job, if only because that is audited: then a job may answer."""
    return policy.defaults.ingress is Verdict.ALLOW or Reason.INGRESS in policy.defaults.audited


def _node(world: World, here: Node) -> list[Flow]:
    found: dict[FlowKey, Flow] = {}
    for name, net in _closed_on(world, here):
        own = cookie(Feature.NODE, world.node_numbers[name] if name else 0)
        priority = Priority.OBJECT if name else Priority.NETWORK
        flow = entry(Table.NODE, priority, network("nw_dst", "ipv6_dst", net), deny(Reason.NODE), own)
        found.setdefault(flow.key, flow)
    own = cookie(Feature.PIPELINE, Fixed.DEFAULTS)
    defaults = world.policy.defaults
    if defaults.egress is Verdict.ALLOW:
        otherwise: tuple[Action, ...] = (Goto(Table.TRACK),)
    elif _anybody_calls(world.policy):
        # A job may answer whoever was allowed to call it: only the connection table knows.
        otherwise = (Goto(Table.REPLY_TRACK),)
    else:
        otherwise = deny(Reason.EGRESS, audited=Reason.EGRESS in defaults.audited)
        # So may one that serves networks, as long as it does.
        groups = world.policy.marking_groups
        for name in sorted({rule.group for rule in world.policy.exposes if rule.networks}):
            serves = (r.GROUPS.bit(groups.index(name)),)
            answer = entry(Table.NODE, Priority.OTHERWISE_OBJECT, serves, (Goto(Table.REPLY_TRACK),), own)
            found.setdefault(answer.key, answer)
    flow = entry(Table.NODE, Priority.OTHERWISE, (), otherwise, own)
    return [*found.values(), flow]
