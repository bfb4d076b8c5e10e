"""The standing flows of a worker bridge: those that do not depend on which jobs there are."""

from __future__ import annotations

from policies.model import NEVER_OPENED_BY_AUDIT, Bridge, Node, Reason, World
from ryu_apps.openflow import between, guard, marking, replies, services
from ryu_apps.openflow import registers as r
from ryu_apps.openflow.cookies import Feature, cookie
from ryu_apps.openflow.fields import EtherType, ethertype, masked, network
from ryu_apps.openflow.flows import Flow, Goto, Output
from ryu_apps.openflow.hosts import host_classes
from ryu_apps.openflow.lanes import derived_prefix, node_of
from ryu_apps.openflow.phrases import FAMILIES, LINK_MULTICAST6, ND, any_fragment, icmpv6
from ryu_apps.openflow.pipeline import Fixed, Priority, Table, entry


def base_flows(world: World, spec: Bridge, uplink: int) -> list[Flow]:
    node = node_of(world, spec.name)
    return [
        *guard.classify(world, node, uplink),
        *guard.neighbours(spec.name not in world.meterless),
        *guard.plumbing(world),
        *between.flows(world),
        *services.flows(world, node, host_classes(world, spec)),
        *replies.flows(world),
        *_enforce(world, node),
        *_track(world, node),
        *marking.flows(world),
        *_out(node, uplink),
    ]


def _enforce(world: World, node: Node) -> list[Flow]:
    """DENIED and ENFORCE: counted for the reason; dropped, or let on if the node or the rule is in audit mode."""
    policy = world.policy
    flows = [
        entry(Table.DENIED, Priority.OTHERWISE, (), (Goto(Table.ENFORCE),), cookie(Feature.PIPELINE, Fixed.DEFAULTS))
    ]
    by_rule = set(policy.defaults.audited)
    if any(s.audit for s in policy.services.values()) or any(g.audit for g in policy.grants):
        by_rule.add(Reason.NO_GRANT)
    # Forged frames never come here: the guard itself drops and counts them.
    for reason in sorted(set(Reason) - {Reason.SPOOFED}):
        own = cookie(Feature.REASON, reason)
        why = r.REASON.equals(reason)
        flows.append(entry(Table.ENFORCE, Priority.OTHERWISE_OBJECT, (why,), (), own))
        if reason in NEVER_OPENED_BY_AUDIT:
            continue
        open_ = r.CLOSED.equals(0)
        on = (Goto(Table.TRACK),)
        if policy.audits(node.name):
            flows.append(entry(Table.ENFORCE, Priority.OBJECT, (why, open_), on, own))
        elif reason in by_rule:
            audited = r.joined(open_, r.AUDIT.equals(1))
            flows.append(entry(Table.ENFORCE, Priority.OBJECT, (why, audited), on, own))
    return flows


def _track(world: World, node: Node) -> list[Flow]:
    own = cookie(Feature.PIPELINE, Fixed.DELIVERY)
    on = Goto(marking.first_table(world.policy))
    stateless = r.STATELESS.equals(1)
    # Of an IPv6 datagram later fragments do not show that they are TCP: all of it is tracked, or nothing would be.
    pieces = (stateless, r.PEER.equals(0), ethertype(EtherType.IPV6), any_fragment())
    flows = [
        entry(Table.TRACK, Priority.FRAGMENT, (r.ORIGIN.equals(r.Origin.OUTSIDE),), (Goto(Table.DELIVER),), own),
        entry(Table.TRACK, Priority.OBJECT, pieces, (replies.COMMIT, on), own),
        entry(Table.TRACK, Priority.NETWORK, (stateless,), (on,), own),
    ]
    for family in FAMILIES.values():
        flows.append(entry(Table.TRACK, Priority.FAMILY, (ethertype(family),), (replies.COMMIT, on), own))
        if world.policy.audits(node.name) or Reason.INGRESS in world.policy.defaults.audited:
            # A call that audit lets on must find its answers let on, too.
            called = (r.ORIGIN.equals(r.Origin.OUTSIDE), r.REASON.equals(Reason.INGRESS), ethertype(family))
            deliver = (replies.COMMIT, Goto(Table.DELIVER))
            flows.append(entry(Table.TRACK, Priority.FRAGMENT + 1, called, deliver, own))
    return flows


def _out(node: Node, uplink: int) -> list[Flow]:
    own = cookie(Feature.PIPELINE, Fixed.DELIVERY)
    from_job = r.ORIGIN.equals(r.Origin.JOB)
    flows = [entry(Table.OUT, Priority.OTHERWISE, (from_job,), (Output(uplink),), own)]
    # Whatever got here may go to its job: MEMBER has seen to it.
    arp = (ethertype(EtherType.ARP), masked("arp_tpa", int(node.ipv4.network_address), int(node.ipv4.netmask)))
    here = [(arp, "arp_tpa"), (network("nw_dst", "ipv6_dst", node.ipv4), "nw_dst")]
    six = derived_prefix(node)
    if six is not None:
        target = masked("nd_target", int(six.network_address), int(six.netmask))
        # What was sent to the group that its target listens to; one sent to a job goes by the address it was sent to.
        to_group = network("nw_dst", "ipv6_dst", LINK_MULTICAST6)[1:]
        here.append(((*icmpv6(ND.NEIGHBOUR_SOLICITATION), target, *to_group), "nd_target"))
        here.append((network("nw_dst", "ipv6_dst", six), "ipv6_dst"))
    for matches, field in here:
        local = (r.DESTINATION.copy_from(field), Goto(Table.DELIVER))
        priority = Priority.PLUMBING if field == "nd_target" else Priority.NETWORK
        flows.append(entry(Table.OUT, priority, (from_job, *matches), local, own))
    return flows
