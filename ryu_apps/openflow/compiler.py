"""From a world to the flows of its bridges. Pure; `desired_flows` is the specification, the parts are its increments.

One flow guards all: a job's MAC is 02:6c plus its IPv4 address, and its IPv6 address ends in the same 32 bits. CLASSIFY
copies every address that a frame claims for its sender (IP source, ARP and ND link-layer and protocol addresses) into
three registers; one flow per attempt compares them all with the same 32 bits. So an attempt costs six flows on its
worker bridge and two on a gate, whatever the policy's size and however many other jobs there are:

    SPOOF_GUARD   its own frames go on            SPOOF_GUARD   everything else from its port is dropped, and counted
    DENIED        refusals for lack of a grant    DENIED        its other refusals
    RECEIVER      packets for it                  DELIVER       packets delivered to it

What an identity may reach costs one flow per service on a worker bridge and two on a gate, for all its jobs together.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from policies.model import (
    NEVER_OPENED_BY_AUDIT,
    Attempt,
    Bridge,
    Mode,
    Node,
    Outcome,
    PortKind,
    PortRange,
    Protocol,
    Reason,
    Role,
    Service,
    Site,
    Verdict,
    World,
)
from policies.wire import Counters, Denial
from ryu_apps.openflow import registers as r
from ryu_apps.openflow.cookies import Feature, cookie
from ryu_apps.openflow.fields import (
    TCP_ACK,
    CtState,
    EtherType,
    Frag,
    IpProto,
    ethertype,
    exact,
    masked,
    network,
    port_masks,
)
from ryu_apps.openflow.flows import Action, ConnTrack, FieldMatch, Flow, FlowKey, FlowStats, Goto, Normal, Output
from ryu_apps.openflow.pipeline import Fixed, Priority, Table, entry

MAC_PREFIX = 0x026C
"""First two octets of every job's MAC address: locally administered, unicast. The other four are its IPv4 address."""
_MAC_PREFIX_MATCH = (MAC_PREFIX << 32, 0xFFFF_0000_0000)
_DERIVED_BITS = 32
_NO_HOST = ("224.0.0.0/3", "127.0.0.0/8", "0.0.0.0/8", "169.254.0.0/16", "ff00::/8", "::/127", "fe80::/10")
"""Where no packet of a job may go: groups, loopback, nobody, and link-local addresses (servers listen on theirs)."""


class ND:
    """ICMPv6 types of neighbour discovery (RFC 4861)."""

    ROUTER_SOLICITATION = 133
    ROUTER_ADVERTISEMENT = 134
    NEIGHBOUR_SOLICITATION = 135
    NEIGHBOUR_ADVERTISEMENT = 136
    REDIRECT = 137

    HOP_LIMIT = 255
    """Of every message of neighbour discovery: a lower one came over a router, or was made up."""


LINK_LOCAL6 = ipaddress.IPv6Network("fe80::/10")
LINK_MULTICAST6 = ipaddress.IPv6Network("ff02::/16")
DHCPV4_SERVER_PORT = 67
DHCPV6_SERVER_PORT = 547


def lane_addresses(site: Site, node: str, ipv4: ipaddress.IPv4Address) -> tuple[int, ipaddress.IPv6Address | None]:
    """MAC and IPv6 address that a job with this IPv4 address must have on this node (docs/interfaces.md section 2)."""
    prefix = site.nodes[node].ipv6
    mac = (MAC_PREFIX << 32) | int(ipv4)
    if prefix is None:
        return mac, None
    return mac, ipaddress.IPv6Address(int(prefix.network_address) | int(ipv4))


def bridges_of(world: World, attempt: Attempt) -> tuple[str, ...]:
    """The bridges that must know an attempt before it starts: its worker bridge, gates of services it is granted."""
    gates = [
        b.name
        for b in world.site.bridges.values()
        if Role.GATE in b.roles and not attempt.outcome.sealed and attempt.outcome.services.intersection(b.guards)
    ]
    return (attempt.bridge, *sorted(gates))


def desired_flows(world: World, bridge: str) -> dict[FlowKey, Flow]:
    """Every flow of ours that a bridge should have: the specification of all incremental paths."""
    flows = base_flows(world, bridge)
    here = [a for a in world.attempts.values() if bridge in bridges_of(world, a)]
    for outcome in {a.outcome for a in here}:
        flows += identity_flows(world, bridge, outcome)
    for attempt in here:
        flows += attempt_flows(world, bridge, attempt)
    for name in slices_on(world, bridge):
        flows += slice_flows(world, name)
    return {f.key: f for f in flows}


def slices_on(world: World, bridge: str) -> set[str]:
    """The slices that have a job on a worker bridge."""
    return {a.slice for a in world.attempts.values() if a.slice is not None and a.bridge == bridge and _connected(a)}


def slice_flows(world: World, name: str) -> list[Flow]:
    """Who is in a slice, as every worker bridge that has one of its jobs must know: one flow per member."""
    members = [a for a in world.attempts.values() if a.slice == name and _connected(a)]
    return [membership_flow(world, member) for member in members]


def membership_flow(world: World, member: Attempt) -> Flow:
    """That a job is in its slice: one flow for both directions and both families. KeyError if it is in none."""
    pair = (r.SLICE.equals(world.slice_numbers[member.slice or ""]), r.PEER.equals(int(member.ipv4)))
    own = cookie(Feature.ATTEMPT, member.number)
    return entry(Table.MEMBER, Priority.OBJECT, pair, (r.STATELESS.load(1), Goto(Table.TRACK)), own)


def _connected(attempt: Attempt) -> bool:
    return not attempt.outcome.sealed


def base_flows(world: World, bridge: str) -> list[Flow]:
    """The flows that do not depend on which jobs there are. A bridge without its declared ports gets none: closed."""
    spec = world.site.bridges[bridge]
    if Role.WORKER in spec.roles:
        uplinks = _port_numbers(world, spec, PortKind.UPLINK)
        if len(uplinks) != 1:
            return []
        return _worker_base(world, spec, uplinks[0])
    if Role.GATE in spec.roles:
        return _gate_base(world, spec)
    return []


def identity_flows(world: World, bridge: str, outcome: Outcome) -> list[Flow]:
    """What an identity may reach, as this bridge enforces it."""
    spec = world.site.bridges[bridge]
    if outcome.sealed:
        return []
    number = world.identities[outcome]
    own = cookie(Feature.IDENTITY, number)
    flows = []
    for name in sorted(outcome.services):
        pair = (r.IDENTITY.equals(number), r.SERVICE.equals(world.service_numbers[name]))
        if Role.WORKER in spec.roles:
            flows.append(entry(Table.GRANT, Priority.OBJECT, pair, (Goto(Table.TRACK),), own))
        elif Role.GATE in spec.roles and name in spec.guards:
            flows.append(entry(Table.GATE_GRANT, Priority.OBJECT, pair, (Goto(Table.GATE_SERVERS),), own))
            flows.append(entry(Table.GATE_RETURN_GRANT, Priority.OBJECT, pair, (Goto(Table.GATE_WORKERS),), own))
    return flows


def attempt_flows(world: World, bridge: str, attempt: Attempt) -> list[Flow]:
    """An attempt's own flows on one of `bridges_of(world, attempt)`."""
    own = cookie(Feature.ATTEMPT, attempt.number)
    bits = int(attempt.ipv4)
    if bridge != attempt.bridge:
        identity = r.IDENTITY.load(world.identities[attempt.outcome])
        who = (exact("dl_src", attempt.mac), r.CLAIM_ADDRESS.equals(bits))
        sender = (r.ATTEMPT.load(attempt.number), identity)
        return [
            entry(Table.GATE_IDENTITY, Priority.OBJECT, who, (*sender, Goto(Table.GATE_SERVICE)), own),
            entry(
                Table.GATE_RECEIVER,
                Priority.OBJECT,
                (r.DESTINATION.equals(bits),),
                (*sender, Goto(Table.GATE_RETURN_GRANT)),
                own,
            ),
        ]
    port = exact("in_port", attempt.ofport)
    counted = entry(
        Table.DENIED, Priority.OTHERWISE_OBJECT, (r.ATTEMPT.equals(attempt.number),), (Goto(Table.ENFORCE),), own
    )
    if attempt.outcome.sealed:
        sealed = (r.ATTEMPT.load(attempt.number), *_deny(Reason.SEALED))
        return [entry(Table.SPOOF_GUARD, Priority.OBJECT, (port,), sealed, own), counted]
    known = (
        r.ATTEMPT.load(attempt.number),
        r.IDENTITY.load(world.identities[attempt.outcome]),
        r.ZONE.load(attempt.zone),
        *([r.SLICE.load(world.slice_numbers[attempt.slice])] if attempt.slice is not None else []),
    )
    claims = tuple(c.equals(bits) for c in (r.CLAIM_ADDRESS, r.CLAIM_LINK, r.CLAIM_TARGET))
    receiver = (r.DESTINATION.equals(bits),)
    return [
        entry(
            Table.SPOOF_GUARD,
            Priority.OBJECT,
            (port, exact("dl_src", attempt.mac), *claims),
            (*known, Goto(Table.PLUMBING)),
            own,
        ),
        entry(Table.SPOOF_GUARD, Priority.OTHERWISE_OBJECT, (port,), (), own),
        entry(
            Table.DENIED,
            Priority.OBJECT,
            (r.ATTEMPT.equals(attempt.number), r.REASON.equals(Reason.NO_GRANT)),
            (Goto(Table.ENFORCE),),
            own,
        ),
        counted,
        entry(Table.RECEIVER, Priority.OBJECT, receiver, (*known, Goto(Table.REPLY)), own),
        entry(Table.DELIVER, Priority.OBJECT, receiver, (Output(attempt.ofport),), own),
    ]


def read_counters(attempt: Attempt, stats: Iterable[FlowStats], protected: Iterable[str] = ()) -> Counters:
    """An attempt's counters from the statistics of its own flows on its worker bridge.

    `protected`: the policy's protected services. A drop for want of a grant is counted per attempt, not per service, so
    the text names every service that it can have been.
    """
    ungranted = sorted(set(protected) - attempt.outcome.services)
    which = " protected service" + (f" {' or '.join(ungranted)}" if ungranted else "")
    admitted = delivered = (0, 0)
    denied: list[Denial] = []
    for s in stats:
        seen = (s.packets, s.bytes)
        place = (Table(s.key.table), s.key.priority)
        if place == (Table.SPOOF_GUARD, Priority.OBJECT):
            if not attempt.outcome.sealed:
                admitted = seen
        elif place == (Table.SPOOF_GUARD, Priority.OTHERWISE_OBJECT):
            denied.append(
                _denial(Reason.SPOOFED.slug, seen, "frames that did not carry the job's own MAC and addresses")
            )
        elif place == (Table.DENIED, Priority.OBJECT):
            denied.append(_denial(Reason.NO_GRANT.slug, seen, f"no grant of this job covers{which}"))
        elif place == (Table.DENIED, Priority.OTHERWISE_OBJECT):
            if attempt.outcome.sealed:
                denied.append(_denial(Reason.SEALED.slug, seen, "the job is sealed: it has no network"))
            else:
                text = "other jobs, a node's own addresses or infrastructure, multicast, or the defaults"
                denied.append(_denial("policy", seen, text))
        elif place == (Table.DELIVER, Priority.OBJECT):
            delivered = seen
    return Counters(
        admitted_packets=admitted[0],
        admitted_bytes=admitted[1],
        delivered_packets=delivered[0],
        delivered_bytes=delivered[1],
        denied=sorted(denied, key=lambda d: d.reason),
    )


def _denial(reason: str, seen: tuple[int, int], text: str) -> Denial:
    return Denial(reason=reason, packets=seen[0], bytes=seen[1], text=text)


# --- worker ---------------------------------------------------------------------------------------------------------


def _worker_base(world: World, spec: Bridge, uplink: int) -> list[Flow]:
    node = next(n for n in world.site.nodes.values() if n.bridge == spec.name)
    return [
        *_worker_classify(world, node, uplink),
        *_worker_plumbing(world),
        *_worker_slice(world),
        *_worker_services(world, spec),
        *_worker_node(world, node),
        *_worker_replies(world),
        *_worker_enforce(world),
        *_worker_delivery(world, node, uplink),
    ]


def _worker_classify(world: World, node: Node, uplink: int) -> list[Flow]:
    own = cookie(Feature.PIPELINE, Fixed.CLASSIFY)
    up = exact("in_port", uplink)
    untagged = masked("vlan_tci", 0, 0x1000)
    outside = (r.ORIGIN.load(r.Origin.OUTSIDE),)
    receiver = (Goto(Table.RECEIVER),)
    forged = cookie(Feature.NODE, world.node_numbers[node.name])
    flows = [
        entry(Table.CLASSIFY, Priority.OUTSIDE_FORGED, (up, *network("nw_src", "ipv6_src", net)), (), forged)
        for net in _job_ranges(node)
    ]
    v4 = network("nw_dst", "ipv6_dst", node.ipv4)
    arp = (ethertype(EtherType.ARP), masked("arp_tpa", int(node.ipv4.network_address), int(node.ipv4.netmask)))
    to_v4 = (*outside, r.DESTINATION.copy_from("nw_dst"), *receiver)
    to_arp = (*outside, r.DESTINATION.copy_from("arp_tpa"), *receiver)
    flows.append(entry(Table.CLASSIFY, Priority.OUTSIDE, (up, untagged, *v4), to_v4, own))
    flows.append(entry(Table.CLASSIFY, Priority.OUTSIDE, (up, untagged, *arp), to_arp, own))
    six = _derived_prefix(node)
    if six is not None:
        to_v6 = (*outside, r.DESTINATION.copy_from("ipv6_dst"), *receiver)
        to_target = (*outside, r.DESTINATION.copy_from("nd_target"), *receiver)
        v6 = network("nw_dst", "ipv6_dst", six)
        flows.append(entry(Table.CLASSIFY, Priority.OUTSIDE, (up, untagged, *v6), to_v6, own))
        # A solicitation for a job is multicast; what it asks for is in nd_target.
        target = masked("nd_target", int(six.network_address), int(six.netmask))
        solicitation = (*_icmpv6(ND.NEIGHBOUR_SOLICITATION), target)
        flows.append(entry(Table.CLASSIFY, Priority.OUTSIDE + 1, (up, untagged, *solicitation), to_target, own))
        for kind in (ND.ROUTER_ADVERTISEMENT, ND.REDIRECT):
            flows.append(entry(Table.CLASSIFY, Priority.OUTSIDE + 1, (up, *_icmpv6(kind)), (), own))
    # Whatever else comes from outside is for nobody here; without this it would be taken for a job's.
    flows.append(entry(Table.CLASSIFY, Priority.OUTSIDE - 1, (up,), (), own))
    flows += _worker_claims(world, node)
    return flows


def _worker_claims(world: World, node: Node) -> list[Flow]:
    """Copy what a job's frame claims of its sender into the three claim registers; the guard compares them."""
    own = cookie(Feature.PIPELINE, Fixed.CLAIMS)
    never = cookie(Feature.PIPELINE, Fixed.FORBIDDEN_FRAMES)
    guard = (r.ORIGIN.load(r.Origin.JOB), Goto(Table.SPOOF_GUARD))
    v4, v6, arp = (ethertype(t) for t in (EtherType.IPV4, EtherType.IPV6, EtherType.ARP))

    def claims(address: str, link: str | None = None, target: str | None = None) -> tuple[Action, ...]:
        return (
            r.CLAIM_ADDRESS.copy_from(address),
            r.CLAIM_LINK.copy_from(link or address),
            r.CLAIM_TARGET.copy_from(target or address),
            *guard,
        )

    def forbid(*fields: FieldMatch) -> Flow:
        # With the claim registers still 0 no attempt's own flow can match: counted as spoofed for the port's attempt.
        return entry(Table.CLASSIFY, Priority.REFUSE, fields, guard, never)

    udp = exact("nw_proto", IpProto.UDP)
    flows = [
        forbid(masked("vlan_tci", 0x1000, 0x1000)),
        forbid(v4, udp, exact("udp_src", DHCPV4_SERVER_PORT)),
        forbid(v6, udp, exact("udp_src", DHCPV6_SERVER_PORT)),
        *(forbid(*_icmpv6(kind)) for kind in (ND.ROUTER_ADVERTISEMENT, ND.REDIRECT)),
        # Neighbour discovery is never fragmented (RFC 6980); a fragment would hide what it claims.
        forbid(v6, exact("nw_proto", IpProto.ICMPV6), masked("nw_frag", Frag.ANY, Frag.ANY)),
        entry(Table.CLASSIFY, Priority.FAMILY, (v4,), claims("nw_src"), own),
        entry(
            Table.CLASSIFY,
            Priority.PLUMBING,
            (arp, masked("arp_sha", *_MAC_PREFIX_MATCH)),
            claims("arp_spa", link="arp_sha"),
            own,
        ),
        # Whatever is left (no ethertype of ours, an ARP frame or address of no job): to the guard, which refuses it.
        entry(Table.CLASSIFY, Priority.OTHERWISE, (), guard, never),
    ]
    six = _derived_prefix(node)
    if six is None:
        return flows
    source = masked("ipv6_src", int(six.network_address), int(six.netmask))
    own_target = masked("nd_target", int(six.network_address), int(six.netmask))
    flows.append(entry(Table.CLASSIFY, Priority.FAMILY, (v6, source), claims("ipv6_src"), own))
    # Open vSwitch shows nd_target as zero when it cannot parse the options: such a frame must not look like one
    # without an option, so the target is always asked for.
    for net in _on_link(world):
        asked = masked("nd_target", int(net.network_address), int(net.netmask))
        solicitation = (*_nd(ND.NEIGHBOUR_SOLICITATION), source, asked)
        with_link = (*solicitation, masked("nd_sll", *_MAC_PREFIX_MATCH))
        flows.append(entry(Table.CLASSIFY, Priority.PLUMBING, with_link, claims("ipv6_src", link="nd_sll"), own))
        bare = (*solicitation, exact("nd_sll", 0))
        flows.append(entry(Table.CLASSIFY, Priority.PLUMBING, bare, claims("ipv6_src"), own))
    advertisement = (*_nd(ND.NEIGHBOUR_ADVERTISEMENT), source, own_target)
    with_link = (*advertisement, masked("nd_tll", *_MAC_PREFIX_MATCH))
    linked = claims("ipv6_src", link="nd_tll", target="nd_target")
    flows.append(entry(Table.CLASSIFY, Priority.PLUMBING, with_link, linked, own))
    bare = (*advertisement, exact("nd_tll", 0))
    flows.append(entry(Table.CLASSIFY, Priority.PLUMBING, bare, claims("ipv6_src", target="nd_target"), own))
    # Any other solicitation or advertisement claims something that cannot be the job's.
    for kind in (ND.NEIGHBOUR_SOLICITATION, ND.NEIGHBOUR_ADVERTISEMENT):
        flows.append(entry(Table.CLASSIFY, Priority.FRAGMENT, _icmpv6(kind), guard, never))
    return flows


def _worker_plumbing(world: World) -> list[Flow]:
    own = cookie(Feature.PIPELINE, Fixed.PLUMBING)
    multicast = cookie(Feature.PIPELINE, Fixed.MULTICAST)
    between = cookie(Feature.PIPELINE, Fixed.BETWEEN_JOBS)
    out = (Goto(Table.OUT),)
    arp = ethertype(EtherType.ARP)
    flows = [entry(Table.PLUMBING, Priority.PLUMBING, (arp,), out, own)]
    for kind in (ND.NEIGHBOUR_SOLICITATION, ND.NEIGHBOUR_ADVERTISEMENT):
        # Neighbours are on the link. To anywhere else these messages would be a tunnel past the policy.
        for link in (*_on_link(world), LINK_MULTICAST6):
            neighbour = (*_icmpv6(kind), *network("nw_dst", "ipv6_dst", link)[1:])
            flows.append(entry(Table.PLUMBING, Priority.PLUMBING, neighbour, out, own))
        deny = _deny(Reason.MULTICAST)
        flows.append(entry(Table.PLUMBING, Priority.FRAGMENT, _icmpv6(kind), deny, multicast))
    for node in world.site.nodes.values():
        tpa = masked("arp_tpa", int(node.ipv4.network_address), int(node.ipv4.netmask))
        peer = (r.PEER.copy_from("arp_tpa"), Goto(Table.MEMBER))
        flows.append(entry(Table.PLUMBING, Priority.PLUMBING + 1, (arp, tpa), peer, between))
        six = _derived_prefix(node)
        if six is None:
            continue
        target = masked("nd_target", int(six.network_address), int(six.netmask))
        asked = (r.PEER.copy_from("nd_target"), Goto(Table.MEMBER))
        solicitation = (*_icmpv6(ND.NEIGHBOUR_SOLICITATION), target)
        flows.append(entry(Table.PLUMBING, Priority.PLUMBING + 2, solicitation, asked, between))
        told = (r.PEER.copy_from("ipv6_dst"), Goto(Table.MEMBER))
        for kind in (ND.NEIGHBOUR_SOLICITATION, ND.NEIGHBOUR_ADVERTISEMENT):
            to_job = (*_icmpv6(kind), *network("nw_dst", "ipv6_dst", six)[1:])
            flows.append(entry(Table.PLUMBING, Priority.PLUMBING + 1, to_job, told, between))
    group_bit = masked("dl_dst", 1 << 40, 1 << 40)
    flows.append(entry(Table.PLUMBING, Priority.NETWORK, (group_bit,), _deny(Reason.MULTICAST), multicast))
    v4_broadcast = ipaddress.IPv4Network((int(world.site.network.ipv4.broadcast_address), 32))
    nowhere = [ipaddress.ip_network(n) for n in _NO_HOST]
    for net in (v4_broadcast, *nowhere):
        matches = network("nw_dst", "ipv6_dst", net)
        flows.append(entry(Table.PLUMBING, Priority.NETWORK, matches, _deny(Reason.MULTICAST), multicast))
    for family in (EtherType.IPV4, EtherType.IPV6):
        flows.append(entry(Table.PLUMBING, Priority.FAMILY, (ethertype(family),), (Goto(Table.SLICE),), own))
    return flows


def _worker_slice(world: World) -> list[Flow]:
    own = cookie(Feature.PIPELINE, Fixed.BETWEEN_JOBS)
    flows = []
    for node in world.site.nodes.values():
        for net in _job_ranges(node):
            for table, side in ((Table.SLICE, "dst"), (Table.REPLY, "src")):
                field = f"nw_{side}" if net.version == 4 else f"ipv6_{side}"
                peer = (r.PEER.copy_from(field), Goto(Table.MEMBER))
                # Neighbour discovery between jobs is a matter between jobs, too.
                priority = Priority.NETWORK if table is Table.SLICE else Priority.PLUMBING + 1
                matches = network(f"nw_{side}", f"ipv6_{side}", net)
                flows.append(entry(table, priority, matches, peer, own))
        asking = (ethertype(EtherType.ARP), masked("arp_spa", int(node.ipv4.network_address), int(node.ipv4.netmask)))
        peer = (r.PEER.copy_from("arp_spa"), Goto(Table.MEMBER))
        flows.append(entry(Table.REPLY, Priority.PLUMBING + 1, asking, peer, own))
    flows.append(entry(Table.SLICE, Priority.OTHERWISE, (), (Goto(Table.SERVICE),), own))
    otherwise: tuple[Action, ...] = _deny(Reason.BETWEEN_JOBS)
    if world.policy.defaults.between_jobs is Verdict.ALLOW:
        otherwise = (r.STATELESS.load(1), Goto(Table.TRACK))
    elif world.policy.mode is Mode.AUDIT:
        # What audit lets on needs no entry in the connection table either.
        otherwise = (r.STATELESS.load(1), *_deny(Reason.BETWEEN_JOBS))
    flows.append(entry(Table.MEMBER, Priority.OTHERWISE, (), otherwise, own))
    return flows


def _worker_services(world: World, spec: Bridge) -> list[Flow]:
    flows = []
    for service in _protected(world):
        number = world.service_numbers[service.name]
        own = cookie(Feature.SERVICE, number)
        for host in service.hosts:
            for ports in service.ports:
                known: tuple[Action, ...] = (r.SERVICE.load(number), Goto(Table.GRANT))
                if ports.protocol is Protocol.TCP:
                    known = (r.STATELESS.load(1), *known)
                for matches in _host_ports(host, ports, "dst"):
                    flows.append(entry(Table.SERVICE, Priority.OBJECT, matches, known, own))
            # A later fragment shows no ports. In doubt it is dropped.
            flows.append(entry(Table.SERVICE, Priority.FRAGMENT, _later_fragment(host), _deny(Reason.NO_GRANT), own))
        refused = (r.STATELESS.load(0), *_deny(Reason.NO_GRANT))
        miss = (r.SERVICE.equals(number), r.ORIGIN.equals(r.Origin.JOB))
        flows.append(entry(Table.GRANT, Priority.OTHERWISE_OBJECT, miss, refused, own))
    state = cookie(Feature.PIPELINE, Fixed.STATE)
    not_granted = (r.ORIGIN.equals(r.Origin.OUTSIDE),)
    flows.append(entry(Table.GRANT, Priority.OTHERWISE, not_granted, (Goto(Table.REPLY_TRACK),), state))
    flows.append(entry(Table.SERVICE, Priority.OTHERWISE, (), (Goto(Table.NODE),), state))
    # Two services may share a host; their fragment flows are then one entry on the switch, whichever comes first.
    return list({f.key: f for f in flows}.values())


def _worker_node(world: World, here: Node) -> list[Flow]:
    """What an agent says of its host closes addresses on its own bridge only: a rogue node harms itself, not others."""
    flows: dict[FlowKey, Flow] = {}
    closed = [(n.name, net) for n in world.site.nodes.values() for net in n.host_networks]
    closed += [(here.name, ipaddress.ip_network(a)) for a in world.host_addresses.get(here.name, ())]
    for name, net in closed:
        matches = network("nw_dst", "ipv6_dst", net)
        own = cookie(Feature.NODE, world.node_numbers[name])
        flow = entry(Table.NODE, Priority.OBJECT, matches, _deny(Reason.NODE), own)
        flows.setdefault(flow.key, flow)
    infrastructure = cookie(Feature.NODE, 0)
    for net in world.site.infrastructure:
        matches = network("nw_dst", "ipv6_dst", net)
        flow = entry(Table.NODE, Priority.NETWORK, matches, _deny(Reason.NODE), infrastructure)
        flows.setdefault(flow.key, flow)
    defaults = cookie(Feature.PIPELINE, Fixed.DEFAULTS)
    if world.policy.defaults.egress is Verdict.ALLOW:
        otherwise: tuple[Action, ...] = (Goto(Table.TRACK),)
    elif world.policy.defaults.ingress is Verdict.ALLOW:
        # A job may answer whoever was allowed to call it: only the connection table knows.
        otherwise = (Goto(Table.REPLY_TRACK),)
    else:
        otherwise = _deny(Reason.EGRESS)
    flow = entry(Table.NODE, Priority.OTHERWISE, (), otherwise, defaults)
    flows[flow.key] = flow
    return list(flows.values())


def _worker_replies(world: World) -> list[Flow]:
    own = cookie(Feature.PIPELINE, Fixed.STATE)
    deliver = (Goto(Table.DELIVER),)
    plumbing = [(ethertype(EtherType.ARP),)] + [
        _nd(kind) for kind in (ND.NEIGHBOUR_SOLICITATION, ND.NEIGHBOUR_ADVERTISEMENT)
    ]
    flows = [entry(Table.REPLY, Priority.PLUMBING, matches, deliver, own) for matches in plumbing]
    for service in _protected(world):
        number = world.service_numbers[service.name]
        for host in service.hosts:
            for ports in service.ports:
                if ports.protocol is not Protocol.TCP:
                    continue
                known = (r.SERVICE.load(number), Goto(Table.GRANT))
                for matches in _host_ports(host, ports, "src"):
                    answer = (*matches, masked("tcp_flags", TCP_ACK, TCP_ACK))
                    flows.append(entry(Table.REPLY, Priority.OBJECT, answer, known, cookie(Feature.SERVICE, number)))
    flows.append(entry(Table.REPLY, Priority.OTHERWISE, (), (Goto(Table.REPLY_TRACK),), own))
    lookup = ConnTrack(False, r.ZONE.field, r.ZONE.low, Table.REPLY_STATE)
    for family in (EtherType.IPV4, EtherType.IPV6):
        flows.append(entry(Table.REPLY_TRACK, Priority.FAMILY, (ethertype(family),), (lookup,), own))
    tracked = CtState.TRK
    reply = masked("ct_state", tracked | CtState.EST | CtState.RPL, tracked | CtState.EST | CtState.RPL | CtState.INV)
    related = masked("ct_state", tracked | CtState.REL, tracked | CtState.REL | CtState.INV)
    from_outside = r.ORIGIN.equals(r.Origin.OUTSIDE)
    from_job = r.ORIGIN.equals(r.Origin.JOB)
    for state in (reply, related):
        flows.append(entry(Table.REPLY_STATE, Priority.OBJECT, (from_outside, state), deliver, own))
        flows.append(entry(Table.REPLY_STATE, Priority.OBJECT, (from_job, state), (Goto(Table.OUT),), own))
    defaults = cookie(Feature.PIPELINE, Fixed.DEFAULTS)
    inward: tuple[Action, ...] = _deny(Reason.INGRESS)
    if world.policy.defaults.ingress is Verdict.ALLOW:
        inward = (ConnTrack(True, r.ZONE.field, r.ZONE.low, None), *deliver)
        for family in (EtherType.IPV4, EtherType.IPV6):
            welcome = (from_outside, ethertype(family))
            flows.append(entry(Table.REPLY_STATE, Priority.FAMILY, welcome, inward, defaults))
    else:
        flows.append(entry(Table.REPLY_STATE, Priority.FAMILY, (from_outside,), inward, defaults))
    flows.append(entry(Table.REPLY_STATE, Priority.FAMILY, (from_job,), _deny(Reason.EGRESS), defaults))
    return flows


def _worker_enforce(world: World) -> list[Flow]:
    flows = [
        entry(Table.DENIED, Priority.OTHERWISE, (), (Goto(Table.ENFORCE),), cookie(Feature.PIPELINE, Fixed.DEFAULTS))
    ]
    # Forged frames never come here: the guard itself drops and counts them.
    for reason in sorted(set(Reason) - {Reason.SPOOFED}):
        own = cookie(Feature.REASON, reason)
        opened = world.policy.mode is Mode.AUDIT and reason not in NEVER_OPENED_BY_AUDIT
        after: tuple[Action, ...] = ()
        if opened:
            after = (Goto(Table.TRACK),)
        flows.append(entry(Table.ENFORCE, Priority.OBJECT, (r.REASON.equals(reason),), after, own))
    return flows


def _worker_delivery(world: World, node: Node, uplink: int) -> list[Flow]:
    own = cookie(Feature.PIPELINE, Fixed.DELIVERY)
    from_job = r.ORIGIN.equals(r.Origin.JOB)
    deliver = (Goto(Table.DELIVER),)
    commit = ConnTrack(True, r.ZONE.field, r.ZONE.low, None)
    flows = [
        entry(Table.TRACK, Priority.OBJECT, (r.ORIGIN.equals(r.Origin.OUTSIDE),), deliver, own),
        entry(Table.TRACK, Priority.NETWORK, (r.STATELESS.equals(1),), (Goto(Table.OUT),), own),
        entry(Table.OUT, Priority.OTHERWISE, (from_job,), (Output(uplink),), own),
    ]
    for family in (EtherType.IPV4, EtherType.IPV6):
        flows.append(entry(Table.TRACK, Priority.FAMILY, (ethertype(family),), (commit, Goto(Table.OUT)), own))
    # Whatever got here may go to its job: MEMBER has seen to it.
    arp = (ethertype(EtherType.ARP), masked("arp_tpa", int(node.ipv4.network_address), int(node.ipv4.netmask)))
    here = [(arp, "arp_tpa"), (network("nw_dst", "ipv6_dst", node.ipv4), "nw_dst")]
    six = _derived_prefix(node)
    if six is not None:
        target = masked("nd_target", int(six.network_address), int(six.netmask))
        here.append(((*_icmpv6(ND.NEIGHBOUR_SOLICITATION), target), "nd_target"))
        here.append((network("nw_dst", "ipv6_dst", six), "ipv6_dst"))
    for matches, field in here:
        local = (r.DESTINATION.copy_from(field), *deliver)
        priority = Priority.PLUMBING if field == "nd_target" else Priority.NETWORK
        flows.append(entry(Table.OUT, priority, (from_job, *matches), local, own))
    return flows


# --- gate -----------------------------------------------------------------------------------------------------------


def _gate_base(world: World, spec: Bridge) -> list[Flow]:
    """A gate has servers on one side and everybody else on the other (workers, campus).

    What comes from the other side reaches a server only at an address of a service it guards, whatever MAC it is sent
    to: an address of the same machine that nobody declared stays closed.
    """
    own = cookie(Feature.PIPELINE, Fixed.GATE)
    normal = (Normal(),)
    as_job = r.ORIGIN.load(r.Origin.JOB)
    as_other = r.ORIGIN.load(r.Origin.OUTSIDE)
    workers, uplinks, servers = (
        _port_numbers(world, spec, kind) for kind in (PortKind.WORKER_FACING, PortKind.UPLINK, PortKind.SERVER_FACING)
    )
    guarded = [world.policy.services[name] for name in spec.guards]
    hosts = [ipaddress.ip_network(host) for host in dict.fromkeys(h for s in guarded for h in s.hosts)]
    nodes = list(world.site.nodes.values())
    # A tag within a tag would hide what is inside.
    tagged = masked("vlan_tci", 0x1000, 0x1000)
    flows = [entry(Table.CLASSIFY, Priority.REFUSE, (tagged,), (), cookie(Feature.PIPELINE, Fixed.FORBIDDEN_FRAMES))]
    # CLASSIFY: from which side. From servers, the job they answer is noted here already, so that service × job
    # addresses never multiply out.
    for port in workers:
        actions = (as_job, Goto(Table.GATE_SOURCE))
        flows.append(entry(Table.CLASSIFY, Priority.OBJECT, (exact("in_port", port),), actions, own))
    for port in uplinks:
        actions = (as_other, Goto(Table.GATE_SOURCE))
        flows.append(entry(Table.CLASSIFY, Priority.OBJECT, (exact("in_port", port),), actions, own))
    for port in servers:
        side = exact("in_port", port)
        for node in nodes:
            for net in _job_ranges(node):
                field = "nw_dst" if net.version == 4 else "ipv6_dst"
                to_job = (as_job, r.DESTINATION.copy_from(field), Goto(Table.GATE_RETURN))
                matches = (side, *network("nw_dst", "ipv6_dst", net))
                flows.append(entry(Table.CLASSIFY, Priority.PLUMBING, matches, to_job, own))
        flows.append(entry(Table.CLASSIFY, Priority.OBJECT, (side,), (as_other, Goto(Table.GATE_RETURN)), own))
    # GATE_SOURCE: from everybody but servers.
    flows += _gate_forged(hosts)
    neighbours = [(ethertype(EtherType.ARP),)] + [_nd(kind) for kind in range(ND.ROUTER_SOLICITATION, ND.REDIRECT + 1)]
    for matches in neighbours:
        flows.append(entry(Table.GATE_SOURCE, Priority.PLUMBING, matches, normal, own))
        flows.append(entry(Table.GATE_RETURN, Priority.PLUMBING, matches, normal, own))
    from_workers = r.ORIGIN.equals(r.Origin.JOB)
    for node in nodes:
        for net in _job_ranges(node):
            source = network("nw_src", "ipv6_src", net)
            field = "nw_src" if net.version == 4 else "ipv6_src"
            claim = (r.CLAIM_ADDRESS.copy_from(field), Goto(Table.GATE_IDENTITY))
            flows.append(entry(Table.GATE_SOURCE, Priority.OBJECT, (from_workers, *source), claim, own))
            forged = cookie(Feature.NODE, world.node_numbers[node.name])
            flows.append(entry(Table.GATE_SOURCE, Priority.NETWORK, source, (), forged))
    elsewhere = (as_other, Goto(Table.GATE_SERVICE))
    flows.append(entry(Table.GATE_SOURCE, Priority.OTHERWISE, (), elsewhere, own))
    flows.append(entry(Table.GATE_IDENTITY, Priority.OTHERWISE, (), (Goto(Table.GATE_SERVICE),), own))
    flows.append(entry(Table.GATE_RECEIVER, Priority.OTHERWISE, (), (Goto(Table.GATE_RETURN_GRANT),), own))
    for net in hosts:
        to_host = network("nw_dst", "ipv6_dst", net)
        flows.append(entry(Table.GATE_SERVICE, Priority.NETWORK, to_host, (Goto(Table.GATE_SERVERS),), own))
    past = tuple(Output(port) for port in sorted([*workers, *uplinks]))
    flows.append(entry(Table.GATE_SERVICE, Priority.OTHERWISE, (), past, own))
    flows.append(entry(Table.GATE_RETURN, Priority.OTHERWISE, (), normal, own))
    flows.append(entry(Table.GATE_SERVERS, Priority.OTHERWISE, (), tuple(Output(p) for p in servers), own))
    flows.append(entry(Table.GATE_WORKERS, Priority.OTHERWISE, (), tuple(Output(p) for p in workers), own))
    for service in guarded:
        flows += _gate_service(world, service)
    return list({f.key: f for f in flows}.values())


def _gate_forged(hosts: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> list[Flow]:
    """Nobody but the servers' side may speak as a guarded server, in IP, ARP or neighbour discovery."""
    never = cookie(Feature.PIPELINE, Fixed.FORBIDDEN_FRAMES)
    flows = []
    for net in hosts:
        address = int(net.network_address)
        flows.append(entry(Table.GATE_SOURCE, Priority.REFUSE, network("nw_src", "ipv6_src", net), (), never))
        if net.version == 4:
            claimed: tuple[FieldMatch, ...] = (ethertype(EtherType.ARP), exact("arp_spa", address))
        else:
            claimed = (*_icmpv6(ND.NEIGHBOUR_ADVERTISEMENT), exact("nd_target", address))
        flows.append(entry(Table.GATE_SOURCE, Priority.REFUSE, claimed, (), never))
    return flows


def _gate_service(world: World, service: Service) -> list[Flow]:
    number = world.service_numbers[service.name]
    own = cookie(Feature.SERVICE, number)
    to, back = (r.SERVICE.load(number), Goto(Table.GATE_GRANT)), (r.SERVICE.load(number), Goto(Table.GATE_RECEIVER))
    flows = []
    for host in service.hosts:
        for ports in service.ports:
            for matches in _host_ports(host, ports, "dst"):
                flows.append(entry(Table.GATE_SERVICE, Priority.OBJECT, matches, to, own))
            for matches in _host_ports(host, ports, "src"):
                if ports.protocol is Protocol.TCP:
                    answer = (*matches, masked("tcp_flags", TCP_ACK, TCP_ACK))
                    flows.append(entry(Table.GATE_RETURN, Priority.OBJECT, answer, back, own))
                    flows.append(entry(Table.GATE_RETURN, Priority.NETWORK, matches, (), own))
                else:
                    flows.append(entry(Table.GATE_RETURN, Priority.OBJECT, matches, back, own))
        flows.append(entry(Table.GATE_SERVICE, Priority.FRAGMENT, _later_fragment(host), (), own))
    here = r.SERVICE.equals(number)
    other = r.ORIGIN.equals(r.Origin.OUTSIDE)
    inward = (Goto(Table.GATE_SERVERS),)
    for net in service.open_to:
        asking = (here, other, *network("nw_src", "ipv6_src", net))
        answered = (here, other, *network("nw_dst", "ipv6_dst", net))
        flows.append(entry(Table.GATE_GRANT, Priority.NETWORK, asking, inward, own))
        flows.append(entry(Table.GATE_RETURN_GRANT, Priority.NETWORK, answered, (Normal(),), own))
    if world.policy.mode is Mode.AUDIT:
        to_job = (here, r.ORIGIN.equals(r.Origin.JOB))
        flows.append(entry(Table.GATE_GRANT, Priority.OTHERWISE_OBJECT, (here,), inward, own))
        flows.append(entry(Table.GATE_RETURN_GRANT, Priority.FAMILY, to_job, (Goto(Table.GATE_WORKERS),), own))
        flows.append(entry(Table.GATE_RETURN_GRANT, Priority.OTHERWISE_OBJECT, (here,), (Normal(),), own))
    else:
        for table in (Table.GATE_GRANT, Table.GATE_RETURN_GRANT):
            flows.append(entry(table, Priority.OTHERWISE_OBJECT, (here,), (), own))
    return flows


# --- shared ---------------------------------------------------------------------------------------------------------


def _deny(reason: Reason) -> tuple[Action, ...]:
    return (r.REASON.load(reason), Goto(Table.DENIED))


def _protected(world: World) -> Sequence[Service]:
    return [s for s in world.policy.services.values() if s.protected]


def _port_numbers(world: World, spec: Bridge, kind: PortKind) -> list[int]:
    """Numbers of the declared ports of a kind that the switch has at present."""
    present = world.ports.get(spec.name, {})
    return sorted(present[name] for name, k in spec.ports.items() if k is kind and name in present)


def _derived_prefix(node: Node) -> ipaddress.IPv6Network | None:
    """The /96 that all IPv6 addresses of a node's jobs lie in: prefix, then zeros, then 32 bits of IPv4 address."""
    if node.ipv6 is None:
        return None
    return ipaddress.IPv6Network((int(node.ipv6.network_address), 128 - _DERIVED_BITS))


def _job_ranges(node: Node) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    six = _derived_prefix(node)
    return [node.ipv4] if six is None else [node.ipv4, six]


def _icmpv6(kind: int) -> tuple[FieldMatch, ...]:
    return (ethertype(EtherType.IPV6), exact("nw_proto", IpProto.ICMPV6), exact("icmpv6_type", kind))


def _nd(kind: int) -> tuple[FieldMatch, ...]:
    """A message of neighbour discovery that has not come over a router."""
    return (*_icmpv6(kind), exact("nw_ttl", ND.HOP_LIMIT))


def _on_link(world: World) -> tuple[ipaddress.IPv6Network, ...]:
    """Where a job's IPv6 neighbours are."""
    link = world.site.network.ipv6
    return (LINK_LOCAL6,) if link is None else (link, LINK_LOCAL6)


def _host_ports(
    host: ipaddress.IPv4Address | ipaddress.IPv6Address, ports: PortRange, side: str
) -> list[tuple[FieldMatch, ...]]:
    """Matches of a host and a port range on `side` (`src` or `dst`): one per aligned block of ports."""
    address = network(f"nw_{side}", f"ipv6_{side}", ipaddress.ip_network(host))
    protocol = exact("nw_proto", IpProto.TCP if ports.protocol is Protocol.TCP else IpProto.UDP)
    field = f"{ports.protocol.value}_{side}"
    blocks = port_masks(ports.first, ports.last)
    return [(*address, protocol, *([masked(field, value, mask)] if mask else [])) for value, mask in blocks]


def _later_fragment(host: ipaddress.IPv4Address | ipaddress.IPv6Address) -> tuple[FieldMatch, ...]:
    return (*network("nw_dst", "ipv6_dst", ipaddress.ip_network(host)), exact("nw_frag", Frag.ANY | Frag.LATER))
