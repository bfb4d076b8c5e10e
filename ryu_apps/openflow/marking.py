"""Classes of traffic and scitags: on worker bridges KIND, KIND_PORT, CLASS, MARK, for what a job sends; borders stage
classes likewise.

The far host loads one bit for each classified service that has it, the far port one for each service that has it; a
packet is for the n-th service where bit n is set in both. So hosts and ports never multiply, however services overlap.

A job's scitag is loaded with what else is known of it, and written into the flow label of its IPv6 packets in MARK: one
flow for each class, however many scitags there are. The five bits that say nothing stay as the job's own kernel chose
them, so that its connections still spread over paths.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from policies import scitags
from policies.model import Address, Attempt, Outcome, Policy, Service, World
from ryu_apps.openflow import registers as r
from ryu_apps.openflow.cookies import Feature, cookie
from ryu_apps.openflow.fields import EtherType, ethertype
from ryu_apps.openflow.flows import FieldMatch, Flow, Goto, Move, SetField
from ryu_apps.openflow.phrases import FAMILIES, host, later_fragment, port_blocks
from ryu_apps.openflow.pipeline import Fixed, Priority, Table, entry
from ryu_apps.openflow.spans import spans


def first_table(policy: Policy) -> Table:
    """Where a packet of a job goes when all is decided."""
    if not policy.classes:
        return Table.MARK if policy.scitags else Table.OUT
    return Table.KIND if policy.classified_services else Table.CLASS


@dataclass(frozen=True, slots=True)
class Stage:
    """Where the services of one end of a packet (`side`: `src` or `dst`) are looked up, and what comes after."""

    side: str
    by_host: Table
    by_port: Table
    hosts: r.Register
    ports: r.Register
    following: Table


_FAR_END = Stage("dst", Table.KIND, Table.KIND_PORT, r.HOST_KINDS, r.PORT_KINDS, Table.CLASS)


def flows(world: World) -> list[Flow]:
    policy = world.policy
    if not policy.classes:
        return _label_flows(policy)
    kinds = kind_flows(world, _FAR_END) if policy.classified_services else []
    return [*kinds, *_rules(policy), *mark_flows(policy, Table.MARK, Table.OUT), *_label_flows(policy)]


def tag_of(attempt: Attempt) -> tuple[SetField, ...]:
    """What loads an attempt's scitag."""
    if attempt.scitag is None:
        return ()
    experiment, activity = attempt.scitag
    return (r.TAG_EXPERIMENT.load(scitags.in_label(experiment)), r.TAG_ACTIVITY.load(activity), r.TAGGED.load(1))


def _label_flows(policy: Policy) -> list[Flow]:
    """The flow label of what a job with a scitag sends, beside the code point of its class."""
    if not policy.scitags:
        return []
    own = cookie(Feature.PIPELINE, Fixed.SCITAGS)
    out = Goto(Table.OUT)
    label = tuple(
        Move(part.field, part.low, "ipv6_label", at, part.width)
        for part, at in ((r.TAG_EXPERIMENT, scitags.EXPERIMENT_AT), (r.TAG_ACTIVITY, scitags.ACTIVITY_AT))
    )
    six, tagged = ethertype(EtherType.IPV6), r.TAGGED.equals(1)
    if not policy.classes:
        return [
            entry(Table.MARK, Priority.LABELLED, (six, tagged), (*label, out), own),
            entry(Table.MARK, Priority.OTHERWISE, (), (out,), own),
        ]
    return [
        entry(
            Table.MARK,
            Priority.LABELLED,
            (six, r.joined(r.CLASS.equals(rank), tagged)),
            (SetField("ip_dscp", one.dscp, 0, 6), *label, out),
            own,
        )
        for rank, one in enumerate(policy.classes, 1)
    ]


def kind_flows(world: World, stage: Stage) -> list[Flow]:
    """Of which classified services one end of a packet is: bits of its host, and bits of its port."""
    services = [world.policy.services[name] for name in world.policy.classified_services]
    return [*_hosts(world, services, stage), *_ports(services, stage)]


def groups_of(world: World, outcome: Outcome) -> int:
    """A job's memberships among `Policy.marking_groups`, as bits."""
    if not outcome.groups:
        return 0
    return _bits(bit for bit, name in enumerate(world.policy.marking_groups) if name in outcome.groups)


def _bits(of: Iterable[int]) -> int:
    return sum(1 << bit for bit in of)


def _hosts(world: World, services: list[Service], stage: Stage) -> list[Flow]:
    own = cookie(Feature.PIPELINE, Fixed.CLASSES)
    anywhere = [bit for bit, service in enumerate(services) if not service.hosts]
    of_host: dict[Address, list[int]] = {}
    for bit, service in enumerate(services):
        for address in dict.fromkeys(service.hosts):
            of_host.setdefault(address, []).append(bit)
    found = []
    on = Goto(stage.by_port)
    for address, bits in of_host.items():
        named = cookie(Feature.SERVICE, world.service_numbers[services[bits[0]].name])
        load = (stage.hosts.load(_bits([*bits, *anywhere])), on)
        whose = named if len(bits) == 1 else own
        found.append(entry(stage.by_host, Priority.OBJECT, host(address, stage.side), load, whose))
    otherwise = (stage.hosts.load(_bits(anywhere)), on)
    found.append(entry(stage.by_host, Priority.OTHERWISE, (), otherwise, own))
    return found


def _ports(services: list[Service], stage: Stage) -> list[Flow]:
    own = cookie(Feature.PIPELINE, Fixed.CLASSES)
    on = Goto(stage.following)
    none = (stage.ports.load(0), on)
    found = [entry(stage.by_port, Priority.OTHERWISE, (), none, own)]
    for version in FAMILIES:
        found.append(entry(stage.by_port, Priority.FRAGMENT, later_fragment(version), none, own))
        for ports, bits in spans(services):
            load = (stage.ports.load(_bits(bits)), on)
            for block in port_blocks(ports, stage.side, version):
                found.append(entry(stage.by_port, Priority.OBJECT, block, load, own))
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


def mark_flows(policy: Policy, table: Table, following: Table) -> list[Flow]:
    """Each class's code point, whatever the sender wrote there."""
    own = cookie(Feature.PIPELINE, Fixed.CLASSES)
    out = Goto(following)
    # What is not IP has no DSCP: ARP between jobs, whatever passes a border.
    found = [entry(table, Priority.OTHERWISE, (), (out,), own)]
    for rank, one in enumerate(policy.classes, 1):
        for family in FAMILIES.values():
            mark = (SetField("ip_dscp", one.dscp, 0, 6), out)
            found.append(entry(table, Priority.OBJECT, (r.CLASS.equals(rank), ethertype(family)), mark, own))
    return found
