"""Borders: from which side a packet comes, which job or service it belongs to, its class, its mark, and on it goes.

A border drops what comes from the WAN with an address or a MAC of the site's jobs, and IP packets that no code point
can be written into (`phrases.unmarkable`): they would keep their sender's. Everything else passes to the other side,
with the code point of its class, whatever the sender wrote there; what no rule names is of the last class.
Rules are those of `classify`. A service is looked for at the far end of a job's packet, and at both ends of others; a
job is known by its address alone, in both directions. Traffic that no job and no service tells apart costs nothing.

Every table has a flow for what is left, whatever the policy says, and every packet comes to BORDER_OUT through flows
that all policies share: so a change of policy, flow by flow and in any order, stops nothing.

What finds neighbours on the link is of the most important class: lost among the traffic of the last one, it would take
the link with it. Only messages that no router passes on count, or they would be a way past the queues.
"""

from __future__ import annotations

from policies.border import knows
from policies.model import Attempt, Bridge, PortKind, World
from ryu_apps.openflow import registers as r
from ryu_apps.openflow.cookies import Feature, cookie
from ryu_apps.openflow.fields import EtherType, ethertype, exact, masked, network
from ryu_apps.openflow.flows import Action, FieldMatch, Flow, Goto, Normal, Output
from ryu_apps.openflow.lanes import MAC_PREFIX, job_ranges, joined, lane_ranges, port_numbers
from ryu_apps.openflow.marking import Stage, groups_of, kind_flows, mark_flows
from ryu_apps.openflow.phrases import FAMILIES, LINK_MULTICAST6, ND, icmpv6, neighbour, on_link, unmarkable
from ryu_apps.openflow.pipeline import Fixed, Priority, Table, entry

__all__ = ["FORBIDDEN", "WHY_FORBIDDEN", "attempt_flow", "base_flows", "knows"]

FORBIDDEN = cookie(Feature.PIPELINE, Fixed.FORBIDDEN_FRAMES)
WHY_FORBIDDEN = {
    (int(Table.CLASSIFY), int(Priority.OUTSIDE_FORGED)): "forged",
    (int(Table.CLASSIFY), int(Priority.OUTSIDE_FORGED) + 1): "unmarkable",
}
"""Why flows with that cookie refuse, by table and priority."""

_SITE, _WAN = r.ORIGIN.equals(r.Origin.JOB), r.ORIGIN.equals(r.Origin.OUTSIDE)
_AT_JOB = r.AT_JOB.equals(1)
_TELLS = icmpv6(ND.NEIGHBOUR_ADVERTISEMENT)
_SENDER = Stage(
    side="src",
    by_host=Table.BORDER_SENDER,
    by_port=Table.BORDER_SENDER_PORT,
    hosts=r.SENDER_HOST_KINDS,
    ports=r.SENDER_PORT_KINDS,
    following=Table.BORDER_RECEIVER,
)
_RECEIVER = Stage(
    side="dst",
    by_host=Table.BORDER_RECEIVER,
    by_port=Table.BORDER_RECEIVER_PORT,
    hosts=r.HOST_KINDS,
    ports=r.PORT_KINDS,
    following=Table.BORDER_CLASS,
)


def attempt_flow(world: World, attempt: Attempt) -> Flow:
    """Which job has an address, for both directions and both families: its groups are what rules ask for."""
    known = (
        r.ATTEMPT.load(attempt.number),
        r.GROUPS.load(groups_of(world, attempt.outcome)),
        Goto(Table.BORDER_SENDER),
    )
    here = (r.END.equals(int(attempt.ipv4)), _AT_JOB)
    return entry(Table.BORDER_JOB, Priority.OBJECT, here, known, cookie(Feature.ATTEMPT, attempt.number))


def base_flows(world: World, spec: Bridge) -> list[Flow]:
    """Without a port to the site, or without any to the WAN, a border has nothing to pass on, and no flows."""
    site = [n for kind in PortKind if kind is not PortKind.WAN for n in port_numbers(world, spec, kind)]
    wan = port_numbers(world, spec, PortKind.WAN)
    if not site or not wan:
        return []
    return [
        *_sides(world, site[0], wan),
        *_ends(world),
        *_left_over(),
        *_kinds(world),
        *_rules(world),
        *mark_flows(world.policy, Table.BORDER_MARK, Table.BORDER_OUT),
        *_out(spec, site[0], wan),
    ]


def _sides(world: World, site: int, wan: list[int]) -> list[Flow]:
    """CLASSIFY: from which side; nobody outside has an address of a job, and nobody chooses a class."""
    own = cookie(Feature.PIPELINE, Fixed.BORDER)
    on = Goto(Table.BORDER_END)
    flows = [entry(Table.CLASSIFY, Priority.OBJECT, (exact("in_port", site),), (r.ORIGIN.load(r.Origin.JOB), on), own)]
    claims: list[tuple[FieldMatch, ...]] = []
    for net in joined(net for node in world.site.nodes.values() for net in job_ranges(node)):
        claims.append(network("nw_src", "ipv6_src", net))
        field, what = ("arp_spa", (ethertype(EtherType.ARP),)) if net.version == 4 else ("nd_target", _TELLS)
        claims.append((*what, masked(field, int(net.network_address), int(net.netmask))))
        if net.version == 4:
            # Of this site's jobs only: behind the WAN there may be another site with jobs of its own.
            macs = (MAC_PREFIX << 32 | int(net.network_address), 0xFFFF << 32 | int(net.netmask))
            claims += [
                (masked("dl_src", *macs),),
                (*what, masked("arp_sha", *macs)),
                (*_TELLS, masked("nd_tll", *macs)),
            ]
    # Open vSwitch shows no target where it does not like the options; who is meant by it may like them.
    claims.append((*_TELLS, exact("nd_target", 0)))
    for port in (site, *wan):
        for version in FAMILIES:
            unmarked = (exact("in_port", port), *unmarkable(version))
            flows.append(entry(Table.CLASSIFY, Priority.OUTSIDE_FORGED + 1, unmarked, (), FORBIDDEN))
    for port in wan:
        side = exact("in_port", port)
        flows.append(
            entry(Table.CLASSIFY, Priority.OBJECT, (side,), (r.ORIGIN.load(r.Origin.OUTSIDE), on), own),
        )
        for claim in claims:
            flows.append(entry(Table.CLASSIFY, Priority.OUTSIDE_FORGED, (side, *claim), (), FORBIDDEN))
    return flows


def _ends(world: World) -> list[Flow]:
    """BORDER_END: the address at this end, from the site a packet's source and from the WAN its destination."""
    own = cookie(Feature.PIPELINE, Fixed.BORDER)
    flows = [entry(Table.BORDER_END, Priority.OTHERWISE, (), (Goto(Table.BORDER_OUT),), own)]
    on = Goto(Table.BORDER_JOB)
    flows += [entry(Table.BORDER_END, Priority.FAMILY, (ethertype(f),), (on,), own) for f in FAMILIES.values()]
    nodes = world.site.nodes.values()
    lanes = joined(net for node in nodes for net in lane_ranges(node))
    ranges = joined(net for node in nodes for net in job_ranges(node))
    for net in dict.fromkeys((*lanes, *ranges)):
        for side, end in ((_SITE, "src"), (_WAN, "dst")):
            field = f"nw_{end}" if net.version == 4 else f"ipv6_{end}"
            # Behind a node's prefix the last bits of another node's job are nobody's.
            whose = (r.END.copy_from(field),) if net in lanes else (r.END.load(r.NOBODY),)
            actions: tuple[Action, ...] = (r.AT_JOB.load(1), *whose, on)
            priority = Priority.OBJECT + (1 if net in lanes else 0)
            matches = (side, *network(f"nw_{end}", f"ipv6_{end}", net))
            flows.append(entry(Table.BORDER_END, priority, matches, actions, own))
    # Rank 1; of a policy without classes nothing is marked.
    first = (r.CLASS.load(1), Goto(Table.BORDER_MARK))
    for kind in range(ND.ROUTER_SOLICITATION, ND.REDIRECT + 1):
        for link in (*on_link(world), LINK_MULTICAST6):
            found = (*neighbour(kind), *network("nw_dst", "ipv6_dst", link)[1:])
            flows.append(entry(Table.BORDER_END, Priority.PLUMBING, found, first, own))
    return flows


def _left_over() -> list[Flow]:
    """What every table does that the policy has nothing for."""
    own = cookie(Feature.PIPELINE, Fixed.BORDER)
    # Of a job's packet the end that is the job's own says nothing.
    from_job, to_job = r.joined(_SITE, _AT_JOB), r.joined(_WAN, _AT_JOB)
    return [
        entry(Table.BORDER_JOB, Priority.OTHERWISE, (), (Goto(Table.BORDER_SENDER),), own),
        entry(Table.BORDER_SENDER, Priority.OWN_END, (from_job,), (Goto(Table.BORDER_RECEIVER),), own),
        entry(Table.BORDER_RECEIVER, Priority.OWN_END, (to_job,), (Goto(Table.BORDER_CLASS),), own),
    ]


def _kinds(world: World) -> list[Flow]:
    return [*kind_flows(world, _SENDER), *kind_flows(world, _RECEIVER)]


def _rules(world: World) -> list[Flow]:
    policy = world.policy
    ranks = {one.name: rank for rank, one in enumerate(policy.classes, 1)}
    groups, services = policy.marking_groups, policy.classified_services
    found = []
    for position, rule in enumerate(policy.classify, 1):
        member = (r.GROUPS.bit(groups.index(rule.group)),) if rule.group is not None else ()
        ends: list[tuple[FieldMatch, ...]] = [()]
        if rule.service is not None:
            bit = services.index(rule.service)
            sender = (r.SENDER_HOST_KINDS.bit(bit), r.SENDER_PORT_KINDS.bit(bit))
            ends = [sender, (r.HOST_KINDS.bit(bit), r.PORT_KINDS.bit(bit))]
        load = (r.CLASS.load(ranks[rule.traffic_class]), Goto(Table.BORDER_MARK))
        priority = Priority.RULES + len(policy.classify) - position
        own = cookie(Feature.CLASSIFY, position)
        found += [entry(Table.BORDER_CLASS, priority, (*member, *end), load, own) for end in ends]
    last = (r.CLASS.load(len(policy.classes)), Goto(Table.BORDER_MARK))
    found.append(entry(Table.BORDER_CLASS, Priority.OTHERWISE, (), last, cookie(Feature.PIPELINE, Fixed.CLASSES)))
    return found


def _out(spec: Bridge, site: int, wan: list[int]) -> list[Flow]:
    own = cookie(Feature.PIPELINE, Fixed.BORDER)
    # With one port on each side there is nothing to learn, and with several the bridge learns who is where.
    one = len(spec.wan) == 1
    outward: tuple[Action, ...] = (Output(wan[0]),) if one else (Normal(),)
    inward: tuple[Action, ...] = (Output(site),) if one else (Normal(),)
    return [
        entry(Table.BORDER_OUT, Priority.OBJECT, (_SITE,), outward, own),
        entry(Table.BORDER_OUT, Priority.OBJECT, (_WAN,), inward, own),
    ]
