"""Worker bridges, classes of traffic: KIND, KIND_PORT, CLASS, MARK, for what a job sends.

The far host loads one bit for each classified service that has it, the far port one for each service that has it; a
packet is for the n-th service where bit n is set in both. So hosts and ports never multiply, however services overlap.
"""

from __future__ import annotations

from collections.abc import Iterable

from policies.model import Address, Policy, Service, World
from ryu_apps.openflow import registers as r
from ryu_apps.openflow.cookies import Feature, cookie
from ryu_apps.openflow.fields import ethertype
from ryu_apps.openflow.flows import FieldMatch, Flow, Goto, SetField
from ryu_apps.openflow.phrases import FAMILIES, host, later_fragment, port_blocks
from ryu_apps.openflow.pipeline import Fixed, Priority, Table, entry
from ryu_apps.openflow.spans import spans


def first_table(policy: Policy) -> Table:
    """Where a packet of a job goes when all is decided."""
    if not policy.classes:
        return Table.OUT
    return Table.KIND if policy.classified_services else Table.CLASS


def flows(world: World) -> list[Flow]:
    policy = world.policy
    if not policy.classes:
        return []
    services = [policy.services[name] for name in policy.classified_services]
    kinds = [*_hosts(world, services), *_ports(services)] if services else []
    return [*kinds, *_rules(policy), *_marks(policy)]


def _bits(of: Iterable[int]) -> int:
    return sum(1 << bit for bit in of)


def _hosts(world: World, services: list[Service]) -> list[Flow]:
    own = cookie(Feature.PIPELINE, Fixed.CLASSES)
    anywhere = [bit for bit, service in enumerate(services) if not service.hosts]
    of_host: dict[Address, list[int]] = {}
    for bit, service in enumerate(services):
        for address in dict.fromkeys(service.hosts):
            of_host.setdefault(address, []).append(bit)
    found = []
    for address, bits in of_host.items():
        named = cookie(Feature.SERVICE, world.service_numbers[services[bits[0]].name])
        load = (r.HOST_KINDS.load(_bits([*bits, *anywhere])), Goto(Table.KIND_PORT))
        found.append(entry(Table.KIND, Priority.OBJECT, host(address, "dst"), load, named if len(bits) == 1 else own))
    otherwise = (r.HOST_KINDS.load(_bits(anywhere)), Goto(Table.KIND_PORT))
    found.append(entry(Table.KIND, Priority.OTHERWISE, (), otherwise, own))
    return found


def _ports(services: list[Service]) -> list[Flow]:
    own = cookie(Feature.PIPELINE, Fixed.CLASSES)
    none = (r.PORT_KINDS.load(0), Goto(Table.CLASS))
    found = [entry(Table.KIND_PORT, Priority.OTHERWISE, (), none, own)]
    for version in FAMILIES:
        found.append(entry(Table.KIND_PORT, Priority.FRAGMENT, later_fragment(version), none, own))
        for ports, bits in spans(services):
            load = (r.PORT_KINDS.load(_bits(bits)), Goto(Table.CLASS))
            for block in port_blocks(ports, "dst", version):
                found.append(entry(Table.KIND_PORT, Priority.OBJECT, block, load, own))
    return found


def _rules(policy: Policy) -> list[Flow]:
    ranks = {one.name: rank for rank, one in enumerate(policy.classes, 1)}
    groups, services = policy.marking_groups, policy.classified_services
    found = []
    for position, rule in enumerate(policy.classify, 1):
        matches: list[FieldMatch] = []
        if rule.group is not None:
            matches.append(r.GROUPS.bit(groups.index(rule.group)))
        if rule.service is not None:
            bit = services.index(rule.service)
            matches += [r.HOST_KINDS.bit(bit), r.PORT_KINDS.bit(bit)]
        load = (r.CLASS.load(ranks[rule.traffic_class]), Goto(Table.MARK))
        priority = Priority.RULES + len(policy.classify) - position
        found.append(entry(Table.CLASS, priority, tuple(matches), load, cookie(Feature.CLASSIFY, position)))
    last = (r.CLASS.load(len(policy.classes)), Goto(Table.MARK))
    found.append(entry(Table.CLASS, Priority.OTHERWISE, (), last, cookie(Feature.PIPELINE, Fixed.CLASSES)))
    return found


def _marks(policy: Policy) -> list[Flow]:
    own = cookie(Feature.PIPELINE, Fixed.CLASSES)
    out = Goto(Table.OUT)
    # ARP between jobs comes this way, too, and has no DSCP.
    found = [entry(Table.MARK, Priority.OTHERWISE, (), (out,), own)]
    for rank, one in enumerate(policy.classes, 1):
        for family in FAMILIES.values():
            mark = (SetField("ip_dscp", one.dscp, 0, 6), out)
            found.append(entry(Table.MARK, Priority.OBJECT, (r.CLASS.equals(rank), ethertype(family)), mark, own))
    return found
