"""Worker bridges, what comes from outside: REPLY (plumbing), REPLY_TRACK, REPLY_STATE, EXPOSE_SOURCE, EXPOSE_PORT.

Answers of granted services over TCP pass by their ports and ACK (in `services`); every other answer must belong to a
connection that the table holds. Then come the ports that jobs serve to networks: the sender's network loads the rules
that name it, and one standing flow per rule and block of ports compares them with the job's groups.
"""

from __future__ import annotations

from policies.model import Expose, Network, Reason, Verdict, World
from ryu_apps.openflow import marking
from ryu_apps.openflow import registers as r
from ryu_apps.openflow.cookies import Feature, cookie
from ryu_apps.openflow.fields import CtState, EtherType, ethertype, masked, network
from ryu_apps.openflow.flows import Action, ConnTrack, Flow, FlowKey, Goto
from ryu_apps.openflow.phrases import FAMILIES, ND, deny, later_fragment, neighbour, port_blocks
from ryu_apps.openflow.pipeline import Fixed, Priority, Table, entry

COMMIT = ConnTrack(True, r.ZONE.field, r.ZONE.low, None)
_TO_JOB = (r.ORIGIN.equals(r.Origin.OUTSIDE),)
_FROM_JOB = (r.ORIGIN.equals(r.Origin.JOB),)


def flows(world: World) -> list[Flow]:
    own = cookie(Feature.PIPELINE, Fixed.STATE)
    deliver = (Goto(Table.DELIVER),)
    plumbing = [(ethertype(EtherType.ARP),)] + [
        neighbour(kind) for kind in (ND.NEIGHBOUR_SOLICITATION, ND.NEIGHBOUR_ADVERTISEMENT)
    ]
    found = [entry(Table.REPLY, Priority.PLUMBING, matches, deliver, own) for matches in plumbing]
    found.append(entry(Table.REPLY, Priority.OTHERWISE, (), (Goto(Table.REPLY_TRACK),), own))
    lookup = ConnTrack(False, r.ZONE.field, r.ZONE.low, Table.REPLY_STATE)
    for family in FAMILIES.values():
        found.append(entry(Table.REPLY_TRACK, Priority.FAMILY, (ethertype(family),), (lookup,), own))
    tracked = CtState.TRK
    reply = masked("ct_state", tracked | CtState.EST | CtState.RPL, tracked | CtState.EST | CtState.RPL | CtState.INV)
    related = masked("ct_state", tracked | CtState.REL, tracked | CtState.REL | CtState.INV)
    on = (Goto(marking.first_table(world.policy)),)
    for state in (reply, related):
        found.append(entry(Table.REPLY_STATE, Priority.OBJECT, (*_TO_JOB, state), deliver, own))
        found.append(entry(Table.REPLY_STATE, Priority.OBJECT, (*_FROM_JOB, state), on, own))
    defaults = cookie(Feature.PIPELINE, Fixed.DEFAULTS)
    egress = deny(Reason.EGRESS, audited=Reason.EGRESS in world.policy.defaults.audited)
    found.append(entry(Table.REPLY_STATE, Priority.FAMILY, _FROM_JOB, egress, defaults))
    exposures = _network_rules(world)
    if not exposures:
        return [*found, *_ingress(world, Table.REPLY_STATE)]
    found.append(entry(Table.REPLY_STATE, Priority.FAMILY, _TO_JOB, (Goto(Table.EXPOSE_SOURCE),), own))
    return [*found, *_sources(exposures), *_ports(world, exposures), *_ingress(world, Table.EXPOSE_SOURCE),
            *_ingress(world, Table.EXPOSE_PORT)]  # fmt: skip


def _ingress(world: World, table: Table) -> list[Flow]:
    """What is neither an answer nor exposed."""
    own = cookie(Feature.PIPELINE, Fixed.DEFAULTS)
    defaults = world.policy.defaults
    if defaults.ingress is not Verdict.ALLOW:
        refused = deny(Reason.INGRESS, audited=Reason.INGRESS in defaults.audited)
        return [entry(table, Priority.FAMILY, _TO_JOB, refused, own)]
    welcome: tuple[Action, ...] = (COMMIT, Goto(Table.DELIVER))
    return [entry(table, Priority.FAMILY, (*_TO_JOB, ethertype(f)), welcome, own) for f in FAMILIES.values()]


def _network_rules(world: World) -> list[tuple[int, Expose]]:
    """The rules that expose ports to networks, with their positions in the policy; a rule's bit is its place here."""
    return [(n, rule) for n, rule in enumerate(world.policy.exposes, 1) if rule.networks]


def _sources(rules: list[tuple[int, Expose]]) -> list[Flow]:
    """The smallest network that a sender is in says which rules name a network that holds it."""
    networks = dict.fromkeys(net for _, rule in rules for net in rule.networks)
    found = []
    for net in networks:
        bits = [bit for bit, (_, rule) in enumerate(rules) if any(_holds(wider, net) for wider in rule.networks)]
        position = next(position for position, rule in rules if net in rule.networks)
        loaded = (r.SOURCES.load(sum(1 << bit for bit in bits)), Goto(Table.EXPOSE_PORT))
        matches = network("nw_src", "ipv6_src", net)
        own = cookie(Feature.EXPOSE, position)
        found.append(entry(Table.EXPOSE_SOURCE, Priority.PREFIX + net.prefixlen, matches, loaded, own))
    return found


def _holds(wider: Network, net: Network) -> bool:
    return (
        wider.version == net.version
        and wider.prefixlen <= net.prefixlen
        and int(net.network_address) & int(wider.netmask) == int(wider.network_address)
    )


def _ports(world: World, rules: list[tuple[int, Expose]]) -> list[Flow]:
    groups = world.policy.marking_groups
    serve: tuple[Action, ...] = (COMMIT, Goto(Table.DELIVER))
    found: dict[FlowKey, Flow] = {}
    for bit, (position, rule) in enumerate(rules):
        theirs = (r.SOURCES.bit(bit), r.GROUPS.bit(groups.index(rule.group)))
        for version in sorted({net.version for net in rule.networks}):
            matches = [block for ports in rule.ports for block in port_blocks(ports, "dst", version)]
            # A packet that several rules let through is counted for the first.
            priority = Priority.RULES + len(world.policy.exposes) - position
            for block in [*matches, later_fragment(version)]:
                flow = entry(Table.EXPOSE_PORT, priority, (*theirs, *block), serve, cookie(Feature.EXPOSE, position))
                found.setdefault(flow.key, flow)
    return list(found.values())
