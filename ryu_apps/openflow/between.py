"""Worker bridges, between jobs: SLICE, MEMBER and EXPOSED, in both directions.

Who is in a slice is one flow per member (`parts.membership_flow`). In a slice of exposed ports that flow also says the
far job's groups, and EXPOSED has standing flows for each `expose` rule, none for a job. Nothing is tracked here: both
ends are jobs, and what answers is known by its ports (of TCP, with ACK).
"""

from __future__ import annotations

from policies.model import Expose, Reason, Verdict, World
from ryu_apps.openflow import registers as r
from ryu_apps.openflow.cookies import Feature, cookie
from ryu_apps.openflow.fields import EtherType, ethertype, masked, network
from ryu_apps.openflow.flows import Action, Flow, FlowKey, Goto
from ryu_apps.openflow.lanes import job_networks
from ryu_apps.openflow.phrases import FAMILIES, ND, answers, deny, later_fragment, neighbour, port_blocks
from ryu_apps.openflow.pipeline import Fixed, Priority, Table, entry

_LET: tuple[Action, ...] = (r.STATELESS.load(1), Goto(Table.TRACK))


def flows(world: World) -> list[Flow]:
    return [*_recognised(world), *_members(world), *_exposed(world)]


def _recognised(world: World) -> list[Flow]:
    """SLICE and REPLY: the packet is for, or from, an address that only jobs have."""
    own = cookie(Feature.PIPELINE, Fixed.BETWEEN_JOBS)
    found = []
    jobs = job_networks(world.site)
    for net, named in [
        *((net, None) for net in jobs.lanes),
        *((net, r.PEER.load(r.NOBODY)) for net in jobs.nobody),
    ]:
        for table, side in ((Table.SLICE, "dst"), (Table.REPLY, "src")):
            field = f"nw_{side}" if net.version == 4 else f"ipv6_{side}"
            peer = (named or r.PEER.copy_from(field), Goto(Table.MEMBER))
            # Neighbour discovery between jobs is a matter between jobs, too.
            priority = Priority.NETWORK if table is Table.SLICE else Priority.PLUMBING + 1
            priority += 1 if named is None else 0
            found.append(entry(table, priority, network(f"nw_{side}", f"ipv6_{side}", net), peer, own))
    for four in jobs.ipv4:
        asking = (ethertype(EtherType.ARP), masked("arp_spa", int(four.network_address), int(four.netmask)))
        peer = (r.PEER.copy_from("arp_spa"), Goto(Table.MEMBER))
        found.append(entry(Table.REPLY, Priority.PLUMBING + 1, asking, peer, own))
    found.append(entry(Table.SLICE, Priority.OTHERWISE, (), (Goto(Table.SERVICE),), own))
    return found


def _members(world: World) -> list[Flow]:
    """What becomes of jobs that are in no slice together, or of a port that is not exposed within theirs."""
    own = cookie(Feature.PIPELINE, Fixed.BETWEEN_JOBS)
    defaults = world.policy.defaults
    otherwise = _LET
    if defaults.between_jobs is not Verdict.ALLOW:
        # What audit lets on needs no entry in the connection table either.
        refused = deny(Reason.BETWEEN_JOBS, audited=Reason.BETWEEN_JOBS in defaults.audited)
        otherwise = (r.STATELESS.load(1), *refused)
    tables = [Table.MEMBER] + ([Table.EXPOSED] if _slice_rules(world) or _has_exposed_slices(world) else [])
    return [entry(table, Priority.OTHERWISE, (), otherwise, own) for table in tables]


def _has_exposed_slices(world: World) -> bool:
    return any(rule.exposed_only for rule in world.policy.slices)


def _slice_rules(world: World) -> list[tuple[int, Expose]]:
    """The rules that expose ports to a slice, with their positions in the policy."""
    return [(n, rule) for n, rule in enumerate(world.policy.exposes, 1) if rule.to_slice]


def _exposed(world: World) -> list[Flow]:
    rules = _slice_rules(world)
    if not rules and not _has_exposed_slices(world):
        return []
    own = cookie(Feature.PIPELINE, Fixed.BETWEEN_JOBS)
    # Without ARP and neighbour discovery no member would find another.
    found = [entry(Table.EXPOSED, Priority.PLUMBING, (ethertype(EtherType.ARP),), _LET, own)]
    for kind in (ND.NEIGHBOUR_SOLICITATION, ND.NEIGHBOUR_ADVERTISEMENT):
        found.append(entry(Table.EXPOSED, Priority.PLUMBING, neighbour(kind), _LET, own))
    by_key: dict[FlowKey, Flow] = {}
    groups = world.policy.marking_groups
    for position, rule in rules:
        bit = groups.index(rule.group)
        mine, theirs = r.GROUPS.bit(bit), r.PEER_GROUPS.bit(bit)
        sends, gets = r.ORIGIN.equals(r.Origin.JOB), r.ORIGIN.equals(r.Origin.OUTSIDE)
        matches = []
        for version in FAMILIES:
            for ports in rule.ports:
                # The receiver serves: of a packet that a job here sends, the far job.
                asked = port_blocks(ports, "dst", version)
                matches += [(side, whose, *block) for side, whose in ((sends, theirs), (gets, mine)) for block in asked]
                answered = answers(ports, version)
                matches += [(side, whose, *b) for side, whose in ((sends, mine), (gets, theirs)) for b in answered]
            matches += [(whose, *later_fragment(version)) for whose in (mine, theirs)]
        # A packet that several rules let through is counted for the first.
        priority = Priority.RULES + len(world.policy.exposes) - position
        for what in matches:
            flow = entry(Table.EXPOSED, priority, what, _LET, cookie(Feature.EXPOSE, position))
            by_key.setdefault(flow.key, flow)
    return [*found, *by_key.values()]
