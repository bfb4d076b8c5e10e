"""Worker bridges, first tables: from whom a frame is, what it claims of its sender, and plumbing (ARP, ND).

One flow guards all: a job's MAC, IPv4 and IPv6 address share 32 bits (see `lanes`). CLASSIFY copies every address that
a frame claims for its sender (IP source, ARP and ND link-layer and protocol addresses) into three registers; one flow
per attempt compares them all with the same 32 bits.
"""

from __future__ import annotations

import ipaddress

from policies.model import Node, Reason, World
from ryu_apps.openflow import registers as r
from ryu_apps.openflow.cookies import Feature, cookie
from ryu_apps.openflow.fields import EtherType, Frag, IpProto, ethertype, exact, masked, network
from ryu_apps.openflow.flows import Action, FieldMatch, Flow, Goto, Meter
from ryu_apps.openflow.lanes import MAC_PREFIX_MATCH, derived_prefix, job_networks, job_ranges
from ryu_apps.openflow.meters import bucket_of, neighbour_meters
from ryu_apps.openflow.phrases import (
    LINK_MULTICAST6,
    ND,
    any_fragment,
    deny,
    icmpv6,
    neighbour,
    on_link,
    unmarkable,
    unreadable,
)
from ryu_apps.openflow.pipeline import Fixed, Priority, Table, entry

DHCPV4_SERVER_PORT = 67
DHCPV6_SERVER_PORT = 547
_ECHO_V6 = (128, 129)
_NO_HOST = ("224.0.0.0/3", "127.0.0.0/8", "0.0.0.0/8", "169.254.0.0/16", "ff00::/8", "::/127", "fe80::/10")
"""Where no packet of a job may go: groups, loopback, nobody, and link-local addresses (servers listen on theirs)."""


def classify(world: World, node: Node, uplink: int) -> list[Flow]:
    """CLASSIFY: frames from outside by the address they are for, frames of jobs with what they claim."""
    own = cookie(Feature.PIPELINE, Fixed.CLASSIFY)
    up = exact("in_port", uplink)
    untagged = masked("vlan_tci", 0, 0x1000)
    outside = (r.ORIGIN.load(r.Origin.OUTSIDE),)
    receiver = (Goto(Table.RECEIVER),)
    forged = cookie(Feature.NODE, world.node_numbers[node.name])
    flows = [
        entry(Table.CLASSIFY, Priority.OUTSIDE_FORGED, (up, *network("nw_src", "ipv6_src", net)), (), forged)
        for net in job_ranges(node)
    ]
    v4 = network("nw_dst", "ipv6_dst", node.ipv4)
    arp = (ethertype(EtherType.ARP), masked("arp_tpa", int(node.ipv4.network_address), int(node.ipv4.netmask)))
    to_v4 = (*outside, r.DESTINATION.copy_from("nw_dst"), *receiver)
    to_arp = (*outside, r.DESTINATION.copy_from("arp_tpa"), *receiver)
    flows.append(entry(Table.CLASSIFY, Priority.OUTSIDE, (up, untagged, *v4), to_v4, own))
    flows.append(entry(Table.CLASSIFY, Priority.OUTSIDE, (up, untagged, *arp), to_arp, own))
    six = derived_prefix(node)
    if six is not None:
        to_v6 = (*outside, r.DESTINATION.copy_from("ipv6_dst"), *receiver)
        to_target = (*outside, r.DESTINATION.copy_from("nd_target"), *receiver)
        v6 = network("nw_dst", "ipv6_dst", six)
        flows.append(entry(Table.CLASSIFY, Priority.OUTSIDE, (up, untagged, *v6), to_v6, own))
        # A solicitation for a job is multicast; what it asks for is in nd_target.
        target = masked("nd_target", int(six.network_address), int(six.netmask))
        solicitation = (*icmpv6(ND.NEIGHBOUR_SOLICITATION), target)
        flows.append(entry(Table.CLASSIFY, Priority.OUTSIDE + 1, (up, untagged, *solicitation), to_target, own))
        for kind in (ND.ROUTER_ADVERTISEMENT, ND.REDIRECT):
            flows.append(entry(Table.CLASSIFY, Priority.OUTSIDE + 1, (up, *icmpv6(kind)), (), own))
        for kind in (ND.NEIGHBOUR_SOLICITATION, ND.NEIGHBOUR_ADVERTISEMENT):
            # Neighbour discovery is never fragmented (RFC 6980).
            hidden = (up, *icmpv6(kind), any_fragment())
            flows.append(entry(Table.CLASSIFY, Priority.OUTSIDE + 2, hidden, (), own))
    # Whatever else comes from outside is for nobody here; without this it would be taken for a job's.
    flows.append(entry(Table.CLASSIFY, Priority.OUTSIDE - 1, (up,), (), own))
    return [*flows, *_claims(world, node)]


def _claims(world: World, node: Node) -> list[Flow]:
    """Copy what a job's frame claims of its sender into the three claim registers; the guard compares them."""
    own = cookie(Feature.PIPELINE, Fixed.CLAIMS)
    never = cookie(Feature.PIPELINE, Fixed.FORBIDDEN_FRAMES)
    guard = (r.ORIGIN.load(r.Origin.JOB), Goto(Table.SPOOF_GUARD))
    v4, v6, arp = (ethertype(t) for t in (EtherType.IPV4, EtherType.IPV6, EtherType.ARP))

    def claims(
        address: str, link: str | None = None, target: str | None = None, finds: bool = True
    ) -> tuple[Action, ...]:
        return (
            *((r.FINDS.load(1),) if finds else ()),
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
        *(forbid(*icmpv6(kind)) for kind in (ND.ROUTER_ADVERTISEMENT, ND.REDIRECT)),
        # A fragment would hide what neighbour discovery claims: of ICMPv6 only pings may be fragmented.
        forbid(v6, exact("nw_proto", IpProto.ICMPV6), any_fragment()),
        *(forbid(*what) for what in unreadable()),
        forbid(*unmarkable(4)),
        # A first fragment too short to show its ports (or a switch that hides them: `encode.fragments_show_ports`).
        forbid(v4, udp, exact("nw_frag", Frag.ANY), exact("udp_src", 0)),
        forbid(v6, udp, exact("nw_frag", Frag.ANY), exact("udp_src", 0)),
        entry(Table.CLASSIFY, Priority.FAMILY, (v4,), claims("nw_src", finds=False), own),
        entry(
            Table.CLASSIFY,
            Priority.PLUMBING,
            (arp, masked("arp_sha", *MAC_PREFIX_MATCH)),
            claims("arp_spa", link="arp_sha"),
            own,
        ),
        # Whatever is left (no ethertype of ours, an ARP frame or address of no job): to the guard, which refuses it.
        entry(Table.CLASSIFY, Priority.OTHERWISE, (), guard, never),
    ]
    six = derived_prefix(node)
    if six is None:
        return flows
    source = masked("ipv6_src", int(six.network_address), int(six.netmask))
    own_target = masked("nd_target", int(six.network_address), int(six.netmask))
    flows.append(entry(Table.CLASSIFY, Priority.FAMILY, (v6, source), claims("ipv6_src", finds=False), own))
    untagged = masked("vlan_tci", 0, 0x1000)
    for kind in _ECHO_V6:
        ping = (*icmpv6(kind), any_fragment(), untagged, source)
        flows.append(entry(Table.CLASSIFY, Priority.REFUSE + 1, ping, claims("ipv6_src", finds=False), own))
    # Open vSwitch shows nd_target as zero when it cannot parse the options: such a frame must not look like one
    # without an option, so the target is always asked for.
    for net in on_link(world):
        asked = masked("nd_target", int(net.network_address), int(net.netmask))
        solicitation = (*neighbour(ND.NEIGHBOUR_SOLICITATION), source, asked)
        with_link = (*solicitation, masked("nd_sll", *MAC_PREFIX_MATCH))
        flows.append(entry(Table.CLASSIFY, Priority.PLUMBING, with_link, claims("ipv6_src", link="nd_sll"), own))
        bare = (*solicitation, exact("nd_sll", 0))
        flows.append(entry(Table.CLASSIFY, Priority.PLUMBING, bare, claims("ipv6_src"), own))
    advertisement = (*neighbour(ND.NEIGHBOUR_ADVERTISEMENT), source, own_target)
    with_link = (*advertisement, masked("nd_tll", *MAC_PREFIX_MATCH))
    linked = claims("ipv6_src", link="nd_tll", target="nd_target")
    flows.append(entry(Table.CLASSIFY, Priority.PLUMBING, with_link, linked, own))
    bare = (*advertisement, exact("nd_tll", 0))
    flows.append(entry(Table.CLASSIFY, Priority.PLUMBING, bare, claims("ipv6_src", target="nd_target"), own))
    # Any other solicitation or advertisement claims something that cannot be the job's.
    for kind in (ND.NEIGHBOUR_SOLICITATION, ND.NEIGHBOUR_ADVERTISEMENT):
        flows.append(entry(Table.CLASSIFY, Priority.FRAGMENT, icmpv6(kind), guard, never))
    return flows


def neighbours(metered: bool) -> list[Flow]:
    """NEIGHBOURS: the ARP and neighbour discovery of all jobs whose numbers end alike pass one meter."""
    own = cookie(Feature.PIPELINE, Fixed.NEIGHBOURS)
    on = Goto(Table.PLUMBING)
    flows = [entry(Table.NEIGHBOURS, Priority.OTHERWISE, (), (on,), own)]
    if metered:
        for one in neighbour_meters():
            which = (r.BUCKET.equals(bucket_of(one)), r.FINDS.equals(1))
            flows.append(entry(Table.NEIGHBOURS, Priority.OBJECT, which, (Meter(one.number), on), own))
    return flows


def plumbing(world: World) -> list[Flow]:
    """PLUMBING: ARP and neighbour discovery to the link, or between jobs; nothing to many or to no host."""
    own = cookie(Feature.PIPELINE, Fixed.PLUMBING)
    multicast = cookie(Feature.PIPELINE, Fixed.MULTICAST)
    between = cookie(Feature.PIPELINE, Fixed.BETWEEN_JOBS)
    out = (Goto(Table.OUT),)
    arp = ethertype(EtherType.ARP)
    flows = [entry(Table.PLUMBING, Priority.PLUMBING, (arp,), out, own)]
    for kind in (ND.NEIGHBOUR_SOLICITATION, ND.NEIGHBOUR_ADVERTISEMENT):
        # Neighbours are on the link. To anywhere else these messages would be a tunnel past the policy.
        for link in (*on_link(world), LINK_MULTICAST6):
            to_link = (*icmpv6(kind), *network("nw_dst", "ipv6_dst", link)[1:])
            flows.append(entry(Table.PLUMBING, Priority.PLUMBING, to_link, out, own))
        flows.append(entry(Table.PLUMBING, Priority.FRAGMENT, icmpv6(kind), deny(Reason.MULTICAST), multicast))
    jobs = job_networks(world.site)
    for four in jobs.ipv4:
        tpa = masked("arp_tpa", int(four.network_address), int(four.netmask))
        peer = (r.PEER.copy_from("arp_tpa"), Goto(Table.MEMBER))
        flows.append(entry(Table.PLUMBING, Priority.PLUMBING + 1, (arp, tpa), peer, between))
    for six in jobs.derived:
        target = masked("nd_target", int(six.network_address), int(six.netmask))
        # Who looks for a job asks the link's group, and MEMBER judges by the target. Sent to any other host it would be
        # judged by the target and go to that host.
        asked = (r.PEER.copy_from("nd_target"), Goto(Table.MEMBER))
        solicitation = (*icmpv6(ND.NEIGHBOUR_SOLICITATION), target)
        to_group = network("nw_dst", "ipv6_dst", LINK_MULTICAST6)[1:]
        flows.append(entry(Table.PLUMBING, Priority.PLUMBING + 2, (*solicitation, *to_group), asked, between))
        elsewhere = deny(Reason.MULTICAST)
        flows.append(entry(Table.PLUMBING, Priority.PLUMBING + 1, solicitation, elsewhere, multicast))
        told = (r.PEER.copy_from("ipv6_dst"), Goto(Table.MEMBER))
        for kind in (ND.NEIGHBOUR_SOLICITATION, ND.NEIGHBOUR_ADVERTISEMENT):
            to_job = (*icmpv6(kind), *network("nw_dst", "ipv6_dst", six)[1:])
            flows.append(entry(Table.PLUMBING, Priority.PLUMBING + 2, to_job, told, between))
    group_bit = masked("dl_dst", 1 << 40, 1 << 40)
    flows.append(entry(Table.PLUMBING, Priority.NETWORK, (group_bit,), deny(Reason.MULTICAST), multicast))
    v4_broadcast = ipaddress.IPv4Network((int(world.site.network.ipv4.broadcast_address), 32))
    nowhere = [ipaddress.ip_network(n) for n in _NO_HOST]
    for net in (v4_broadcast, *nowhere):
        matches = network("nw_dst", "ipv6_dst", net)
        flows.append(entry(Table.PLUMBING, Priority.NETWORK, matches, deny(Reason.MULTICAST), multicast))
    for family in (EtherType.IPV4, EtherType.IPV6):
        flows.append(entry(Table.PLUMBING, Priority.FAMILY, (ethertype(family),), (Goto(Table.SLICE),), own))
    return flows
