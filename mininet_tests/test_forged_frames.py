"""Root in a job's network forges everything it can: nothing leaves the job's port, nothing reaches the host, all counted.

The parts are real: Open vSwitch with the userspace datapath, the compiler's flows, the agent's table 0 and packet
filter. Captures stand on the uplink's far end and on the host's own port; honest frames show that they see what passes.
"""

# A frame a line reads as a table.
# ruff: noqa: E501
from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from mininet_tests import frames as f
from mininet_tests.frames import Named
from mininet_tests.node_rig import HOST4, HOST6, ROUTER, ROUTER4, ROUTER6, Node, node_rig, text_mac
from mininet_tests.site.namespaces import this_python, wait_until
from tests.worlds import with_job, world

OTHER = "02:6c:0a:14:01:42"
OTHER4, OTHER6 = "10.20.1.66", "2001:db8:20:1::a14:142"
WORLD4, WORLD6 = "198.51.100.9", "2001:db8:ffff::9"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with node_rig(tmp_path_factory.mktemp("forged"), with_job(world([]), 1, {})) as made:
        yield made


def named(frames: list[tuple[str, object]], first: int) -> list[Named]:
    """Give each frame builder a marker of its own."""
    made = []
    for number, (name, build) in enumerate(frames, first):
        marker = b"LARK" + struct.pack("!I", number)
        made.append(Named(name, build(marker), marker))  # type: ignore[operator]
    return made


def builders(node: Node) -> tuple[list[Named], list[Named]]:
    """Forged frames, and honest ones."""
    me, my4, my6 = text_mac(node.attempt.mac), str(node.attempt.ipv4), str(node.attempt.ipv6)

    def u4(source: str, destination: str, m: bytes, ports: tuple[int, int] = (5000, 6000)) -> bytes:
        return f.ip4(source, destination, f.UDP, f.udp(source, destination, ports, m))

    def u6(source: str, destination: str, m: bytes, ports: tuple[int, int] = (5000, 6000)) -> bytes:
        return f.ip6(source, destination, f.UDP, f.udp(source, destination, ports, m))

    def nd(source: str, destination: str, kind: int, body: bytes, m: bytes) -> bytes:
        # An option of an unknown kind carries the marker; receivers skip it (RFC 4861 section 4.6).
        return f.ip6(
            source, destination, f.ICMPV6, f.icmp6(source, destination, kind, body + b"\xfd\x02" + b"\0" * 6 + m)
        )

    def piece6(next_header: int, more: int, payload: bytes) -> bytes:
        """The first fragment, or with `more` 0 an only one."""
        return f.ip6(my6, ROUTER6, f.FRAGMENT, struct.pack("!BBHI", next_header, 0, more, 9) + payload)

    def ra(m: bytes) -> bytes:
        return f.icmp6(my6, "ff02::1", 134, f.ROUTER_ADVERTISEMENT + b"\xfd\x02" + b"\0" * 6 + m)

    own_sll, other_sll = f.link_option(1, me), f.link_option(1, OTHER)
    own_tll, other_tll = f.link_option(2, me), f.link_option(2, OTHER)
    group6 = "33:33:00:00:00:01"
    forged: list[tuple[str, object]] = [
        ("IPv4 from another MAC", lambda m: f.eth(OTHER, ROUTER, f.IPV4, u4(my4, WORLD4, m))),
        ("IPv6 from another MAC", lambda m: f.eth(OTHER, ROUTER, f.IPV6, u6(my6, WORLD6, m))),
        ("IPv4 from the host's MAC", lambda m: f.eth(node.host_mac, ROUTER, f.IPV4, u4(my4, WORLD4, m))),
        ("IPv4 of another job", lambda m: f.eth(me, ROUTER, f.IPV4, u4(OTHER4, WORLD4, m))),
        ("IPv4 of the gateway", lambda m: f.eth(me, ROUTER, f.IPV4, u4(ROUTER4, WORLD4, m))),
        ("IPv4 of the host", lambda m: f.eth(me, ROUTER, f.IPV4, u4(HOST4, WORLD4, m))),
        ("IPv4 of loopback", lambda m: f.eth(me, ROUTER, f.IPV4, u4("127.0.0.1", WORLD4, m))),
        ("IPv4 of nobody", lambda m: f.eth(me, ROUTER, f.IPV4, u4("0.0.0.0", WORLD4, m))),
        ("IPv4 of protocol 0", lambda m: f.eth(me, ROUTER, f.IPV4, f.ip4(my4, WORLD4, 0, m + bytes(40)))),
        ("IPv4 broadcast as source", lambda m: f.eth(me, ROUTER, f.IPV4, u4("255.255.255.255", WORLD4, m))),
        ("IPv6 of another job", lambda m: f.eth(me, ROUTER, f.IPV6, u6(OTHER6, WORLD6, m))),
        ("IPv6 of the gateway", lambda m: f.eth(me, ROUTER, f.IPV6, u6(ROUTER6, WORLD6, m))),
        ("IPv6 link-local", lambda m: f.eth(me, ROUTER, f.IPV6, u6("fe80::1", WORLD6, m))),
        ("IPv6 of the same last bits elsewhere", lambda m: f.eth(me, ROUTER, f.IPV6, u6("2001:db8:20:9::a14:141", WORLD6, m))),
        ("IPv6 multicast as source", lambda m: f.eth(me, ROUTER, f.IPV6, u6("ff02::1", WORLD6, m))),
        ("IPv6 of nobody", lambda m: f.eth(me, ROUTER, f.IPV6, u6("::", WORLD6, m))),
        ("IPv4-mapped IPv6", lambda m: f.eth(me, ROUTER, f.IPV6, u6("::ffff:10.20.1.65", WORLD6, m))),
        ("ARP reply for the gateway", lambda m: f.eth(me, ROUTER, f.ARP, f.arp(2, (me, ROUTER4), (ROUTER, ROUTER4), m))),
        ("ARP request as the gateway", lambda m: f.eth(me, f.ALL, f.ARP, f.arp(1, (me, ROUTER4), (f.ALL, my4), m))),
        ("gratuitous ARP for another job", lambda m: f.eth(me, f.ALL, f.ARP, f.arp(2, (me, OTHER4), (f.ALL, OTHER4), m))),
        ("ARP with another's hardware address", lambda m: f.eth(me, f.ALL, f.ARP, f.arp(1, (OTHER, my4), (ROUTER, ROUTER4), m))),
        ("ARP from another MAC", lambda m: f.eth(OTHER, f.ALL, f.ARP, f.arp(1, (me, my4), (ROUTER, ROUTER4), m))),
        ("ARP probe", lambda m: f.eth(me, f.ALL, f.ARP, f.arp(1, (me, "0.0.0.0"), (ROUTER, my4), m))),
        ("ARP for another job", lambda m: f.eth(me, f.ALL, f.ARP, f.arp(1, (me, my4), (ROUTER, OTHER4), m))),
        ("RARP", lambda m: f.eth(me, f.ALL, 0x8035, f.arp(3, (me, my4), (me, my4), m))),
        ("solicitation with another's MAC", lambda m: f.eth(me, "33:33:ff:00:00:01", f.IPV6, nd(my6, "ff02::1:ff00:1", 135, f.solicitation(ROUTER6, other_sll), m))),
        ("solicitation from another's address", lambda m: f.eth(me, "33:33:ff:00:00:01", f.IPV6, nd(OTHER6, "ff02::1:ff00:1", 135, f.solicitation(ROUTER6, own_sll), m))),
        ("duplicate address detection", lambda m: f.eth(me, "33:33:ff:14:01:41", f.IPV6, nd("::", "ff02::1:ff14:141", 135, f.solicitation(my6, b""), m))),
        ("solicitation for another job", lambda m: f.eth(me, "33:33:ff:14:01:42", f.IPV6, nd(my6, "ff02::1:ff14:142", 135, f.solicitation(OTHER6, own_sll), m))),
        ("advertisement of the gateway's address", lambda m: f.eth(me, ROUTER, f.IPV6, nd(my6, ROUTER6, 136, f.advertisement(ROUTER6, own_tll), m))),
        ("advertisement with another's MAC", lambda m: f.eth(me, ROUTER, f.IPV6, nd(my6, ROUTER6, 136, f.advertisement(my6, other_tll), m))),
        ("unsolicited advertisement to all", lambda m: f.eth(me, group6, f.IPV6, nd(my6, "ff02::1", 136, f.advertisement(ROUTER6, own_tll), m))),
        ("solicitation with two link-layer options", lambda m: f.eth(me, "33:33:ff:14:01:42", f.IPV6, nd(my6, "ff02::1:ff14:142", 135, f.solicitation(OTHER6, own_sll + other_sll), m))),
        ("advertisement over a router", lambda m: f.eth(me, ROUTER, f.IPV6, f.ip6(my6, ROUTER6, f.ICMPV6, f.icmp6(my6, ROUTER6, 136, f.advertisement(my6, own_tll) + b"\xfd\x02" + b"\0" * 6 + m), hops=64))),
        ("advertisement to elsewhere", lambda m: f.eth(me, ROUTER, f.IPV6, nd(my6, WORLD6, 136, f.advertisement(my6, own_tll), m))),
        ("solicitation to elsewhere", lambda m: f.eth(me, ROUTER, f.IPV6, nd(my6, WORLD6, 135, f.solicitation(ROUTER6, own_sll), m))),
        ("advertisement to another job", lambda m: f.eth(me, OTHER, f.IPV6, nd(my6, OTHER6, 136, f.advertisement(my6, own_tll), m))),
        ("to a server's link-local address", lambda m: f.eth(me, ROUTER, f.IPV6, u6(my6, "fe80::5", m))),
        ("to an IPv4 link-local address", lambda m: f.eth(me, ROUTER, f.IPV4, u4(my4, "169.254.1.1", m))),
        ("router advertisement", lambda m: f.eth(me, group6, f.IPV6, f.ip6(my6, "ff02::1", f.ICMPV6, ra(m)))),
        ("router advertisement to one", lambda m: f.eth(me, ROUTER, f.IPV6, nd(my6, ROUTER6, 134, f.ROUTER_ADVERTISEMENT, m))),
        ("router advertisement behind hop-by-hop options", lambda m: f.eth(me, ROUTER, f.IPV6, f.ip6(my6, ROUTER6, 0, b"\x3a\x00\x01\x04\0\0\0\0" + ra(m)))),
        ("router advertisement behind destination options", lambda m: f.eth(me, ROUTER, f.IPV6, f.ip6(my6, ROUTER6, 60, b"\x3a\x00\x01\x04\0\0\0\0" + ra(m)))),
        ("router advertisement, first fragment", lambda m: f.eth(me, ROUTER, f.IPV6, f.ip6(my6, ROUTER6, f.FRAGMENT, struct.pack("!BBHI", f.ICMPV6, 0, 1, 9) + ra(m)))),
        ("router advertisement, its header in a later fragment", lambda m: f.eth(me, ROUTER, f.IPV6, f.ip6(my6, ROUTER6, f.FRAGMENT, struct.pack("!BBHI", 60, 0, 1, 9) + b"\x3a\x00\x01\x04\0\0\0\0" + m))),
        ("solicitation, first fragment", lambda m: f.eth(me, ROUTER, f.IPV6, piece6(f.ICMPV6, 1, f.icmp6(my6, ROUTER6, 135, f.solicitation(ROUTER6, own_sll) + b"\xfd\x02" + b"\0" * 6 + m)))),
        ("advertisement, first fragment", lambda m: f.eth(me, ROUTER, f.IPV6, piece6(f.ICMPV6, 1, f.icmp6(my6, ROUTER6, 136, f.advertisement(ROUTER6, own_tll) + b"\xfd\x02" + b"\0" * 6 + m)))),
        ("advertisement for another in an atomic fragment", lambda m: f.eth(me, ROUTER, f.IPV6, piece6(f.ICMPV6, 0, f.icmp6(my6, ROUTER6, 136, f.advertisement(ROUTER6, own_tll) + b"\xfd\x02" + b"\0" * 6 + m)))),
        ("redirect, first fragment behind destination options", lambda m: f.eth(me, ROUTER, f.IPV6, f.ip6(my6, ROUTER6, 60, b"\x2c\x00\x01\x04\0\0\0\0" + struct.pack("!BBHI", f.ICMPV6, 0, 1, 9) + f.icmp6(my6, ROUTER6, 137, b"\0" * 36 + m)))),
        ("first fragment of ICMPv6 too short for a type", lambda m: f.eth(me, ROUTER, f.IPV6, f.ip6(my6, ROUTER6, 60, b"\x2c\x01\x01\x0c\0\0\0\0" + m + struct.pack("!BBHI", f.ICMPV6, 0, 1, 9) + b"\x86\0\0\0"))),
        ("first fragment whose options run past its end", lambda m: f.eth(me, ROUTER, f.IPV6, piece6(60, 1, b"\x11\x08\x01\x04\0\0\0\0" + m), )),
        ("options that run past the packet's end", lambda m: f.eth(me, ROUTER, f.IPV6, f.ip6(my6, WORLD6, 0, b"\x11\x20\x01\x04\0\0\0\0" + m))),
        ("no next header", lambda m: f.eth(me, ROUTER, f.IPV6, f.ip6(my6, WORLD6, 59, m))),
        ("group query (MLD), first fragment", lambda m: f.eth(me, ROUTER, f.IPV6, piece6(f.ICMPV6, 1, f.icmp6(my6, ROUTER6, 130, b"\0" * 20 + m)))),
        ("IPv4 first fragment from another MAC", lambda m: f.eth(OTHER, ROUTER, f.IPV4, f.ip4(my4, WORLD4, f.UDP, f.udp(my4, WORLD4, (5000, 6000), m), fragment=0x2000))),
        ("IPv4 later fragment of another job", lambda m: f.eth(me, ROUTER, f.IPV4, f.ip4(OTHER4, WORLD4, f.UDP, m * 2, fragment=3))),
        ("IPv6 later fragment of another job", lambda m: f.eth(me, ROUTER, f.IPV6, f.ip6(OTHER6, WORLD6, f.FRAGMENT, struct.pack("!BBHI", f.UDP, 0, 3 << 3, 9) + m * 2))),
        ("IPv6 later fragment to another job", lambda m: f.eth(me, OTHER, f.IPV6, f.ip6(my6, OTHER6, f.FRAGMENT, struct.pack("!BBHI", f.UDP, 0, 3 << 3, 9) + m * 2))),
        ("IPv4 later fragment to another job", lambda m: f.eth(me, OTHER, f.IPV4, f.ip4(my4, OTHER4, f.UDP, m * 2, fragment=3))),
        ("later fragment to the host", lambda m: f.eth(me, node.host_mac, f.IPV4, f.ip4(my4, HOST4, f.UDP, m * 2, fragment=3))),
        ("DHCP offer, first fragment", lambda m: f.eth(me, ROUTER, f.IPV4, f.ip4(my4, WORLD4, f.UDP, f.udp(my4, WORLD4, (67, 68), m), fragment=0x2000))),
        ("DHCPv6 reply behind hop-by-hop options", lambda m: f.eth(me, ROUTER, f.IPV6, f.ip6(my6, WORLD6, 0, b"\x11\x00\x01\x04\0\0\0\0" + f.udp(my6, WORLD6, (547, 546), m)))),
        ("router solicitation", lambda m: f.eth(me, "33:33:00:00:00:02", f.IPV6, nd(my6, "ff02::2", 133, b"\0" * 4 + own_sll, m))),
        ("redirect", lambda m: f.eth(me, ROUTER, f.IPV6, nd(my6, ROUTER6, 137, b"\0" * 36, m))),
        ("DHCP offer", lambda m: f.eth(me, ROUTER, f.IPV4, u4(my4, WORLD4, m, (67, 68)))),
        ("DHCP discover", lambda m: f.eth(me, f.ALL, f.IPV4, u4("0.0.0.0", "255.255.255.255", m, (68, 67)))),
        ("DHCPv6 reply", lambda m: f.eth(me, ROUTER, f.IPV6, u6(my6, WORLD6, m, (547, 546)))),
        ("VLAN tag", lambda m: f.eth(me, ROUTER, 0x8100, struct.pack("!HH", 5, f.IPV4) + u4(my4, WORLD4, m))),
        ("VLAN priority tag", lambda m: f.eth(me, ROUTER, 0x8100, struct.pack("!HH", 0xE000, f.IPV4) + u4(my4, WORLD4, m))),
        ("QinQ", lambda m: f.eth(me, ROUTER, 0x88A8, struct.pack("!HHHH", 5, 0x8100, 6, f.IPV4) + u4(my4, WORLD4, m))),
        ("MPLS", lambda m: f.eth(me, ROUTER, 0x8847, b"\0\x01\x01\x40" + u4(my4, WORLD4, m))),
        ("LLDP", lambda m: f.eth(me, "01:80:c2:00:00:0e", 0x88CC, b"\x02\x07\x04" + f.mac(me) + b"\0" * 40 + m)),
        ("spanning tree", lambda m: f.mac("01:80:c2:00:00:00") + f.mac(me) + struct.pack("!H", 46) + b"\x42\x42\x03" + b"\0" * 35 + m),
        ("LACP", lambda m: f.eth(me, "01:80:c2:00:00:02", 0x8809, b"\x01\x01" + b"\0" * 40 + m)),
        ("PAUSE", lambda m: f.eth(me, "01:80:c2:00:00:01", 0x8808, b"\0\x01\xff\xff" + b"\0" * 40 + m)),
        ("EAPOL", lambda m: f.eth(me, "01:80:c2:00:00:03", 0x888E, b"\x02\x01" + b"\0" * 40 + m)),
        ("PPPoE discovery", lambda m: f.eth(me, ROUTER, 0x8863, b"\x11\x09" + b"\0" * 40 + m)),
        ("IPv4 multicast", lambda m: f.eth(me, "01:00:5e:00:00:fb", f.IPV4, u4(my4, "224.0.0.251", m, (5353, 5353)))),
        ("IGMP report", lambda m: f.eth(me, "01:00:5e:00:00:fb", f.IPV4, f.ip4(my4, "224.0.0.251", f.IGMP, b"\x16\0\0\0" + b"\xe0\0\0\xfb" + m))),
        ("IPv4 broadcast", lambda m: f.eth(me, f.ALL, f.IPV4, u4(my4, "255.255.255.255", m))),
        ("the network's broadcast address to the router", lambda m: f.eth(me, ROUTER, f.IPV4, u4(my4, "10.20.255.255", m))),
        ("an IPv4 group to the router's MAC", lambda m: f.eth(me, ROUTER, f.IPV4, u4(my4, "224.0.0.251", m))),
        ("IPv6 multicast", lambda m: f.eth(me, "33:33:00:00:00:fb", f.IPV6, u6(my6, "ff02::fb", m, (5353, 5353)))),
        ("MLD report", lambda m: f.eth(me, "33:33:00:00:00:16", f.IPV6, nd(my6, "ff02::16", 143, b"\0" * 4, m))),
        ("to the host's address", lambda m: f.eth(me, ROUTER, f.IPV4, u4(my4, HOST4, m))),
        ("to the host itself", lambda m: f.eth(me, node.host_mac, f.IPV4, u4(my4, HOST4, m))),
        ("to the host itself by IPv6", lambda m: f.eth(me, node.host_mac, f.IPV6, u6(my6, HOST6, m))),
        ("to another job", lambda m: f.eth(me, OTHER, f.IPV4, u4(my4, OTHER4, m))),
        ("to another job by IPv6", lambda m: f.eth(me, OTHER, f.IPV6, u6(my6, OTHER6, m))),
        ("to the management network", lambda m: f.eth(me, ROUTER, f.IPV4, u4(my4, "192.0.2.1", m))),
        ("to the protected service", lambda m: f.eth(me, ROUTER, f.IPV4, f.ip4(my4, "10.20.0.5", f.TCP, f.tcp_syn(my4, "10.20.0.5", (4000, 1094), m)))),
        ("a first fragment to the protected server that shows no port", lambda m: f.eth(me, ROUTER, f.IPV4, f.ip4(my4, "10.20.0.5", f.TCP, m, fragment=0x2000))),
        ("a first fragment to another port of the protected server", lambda m: f.eth(me, ROUTER, f.IPV4, f.ip4(my4, "10.20.0.5", f.UDP, f.udp(my4, "10.20.0.5", (4000, 53), m), fragment=0x2000))),
        ("a first fragment of IPv6 to the protected server", lambda m: f.eth(me, ROUTER, f.IPV6, f.ip6(my6, "2001:db8:20::5", f.FRAGMENT, struct.pack("!BBHI", f.TCP, 0, 1, 9) + f.tcp_syn(my6, "2001:db8:20::5", (4000, 1094), m)))),
        ("a later fragment of IPv6 to the protected server", lambda m: f.eth(me, ROUTER, f.IPV6, f.ip6(my6, "2001:db8:20::5", f.FRAGMENT, struct.pack("!BBHI", f.TCP, 0, 3 << 3, 9) + m * 2))),
        ("a later fragment to the protected server", lambda m: f.eth(me, ROUTER, f.IPV4, f.ip4(my4, "10.20.0.5", f.TCP, m * 2, fragment=3))),
    ]  # fmt: skip
    whole = f.udp(my4, WORLD4, (5000, 6000), b"x" * 2000 + b"LARK" + struct.pack("!I", 9001))
    honest: list[tuple[str, object]] = [
        ("ARP request", lambda m: f.eth(me, f.ALL, f.ARP, f.arp(1, (me, my4), ("00:00:00:00:00:00", ROUTER4), m))),
        ("ARP reply", lambda m: f.eth(me, ROUTER, f.ARP, f.arp(2, (me, my4), (ROUTER, ROUTER4), m))),
        ("solicitation", lambda m: f.eth(me, "33:33:ff:00:00:01", f.IPV6, nd(my6, "ff02::1:ff00:1", 135, f.solicitation(ROUTER6, own_sll), m))),
        ("advertisement", lambda m: f.eth(me, ROUTER, f.IPV6, nd(my6, ROUTER6, 136, f.advertisement(my6, own_tll), m))),
        ("UDP", lambda m: f.eth(me, ROUTER, f.IPV4, u4(my4, WORLD4, m))),
        ("UDP by IPv6", lambda m: f.eth(me, ROUTER, f.IPV6, u6(my6, WORLD6, m))),
        ("TCP", lambda m: f.eth(me, ROUTER, f.IPV4, f.ip4(my4, WORLD4, f.TCP, f.tcp_syn(my4, WORLD4, (4000, 80), m)))),
        ("ping", lambda m: f.eth(me, ROUTER, f.IPV4, f.ip4(my4, WORLD4, f.ICMP, f.icmp4(8, m)))),
        ("ping by IPv6", lambda m: f.eth(me, ROUTER, f.IPV6, f.ip6(my6, WORLD6, f.ICMPV6, f.icmp6(my6, WORLD6, 128, b"\0\1\0\1" + m)))),
        ("first fragment", lambda m: f.eth(me, ROUTER, f.IPV4, f.ip4(my4, WORLD4, f.UDP, whole[:1400], fragment=0x2000, ident=99))),
    ]  # fmt: skip
    last = f.eth(me, ROUTER, f.IPV4, f.ip4(my4, WORLD4, f.UDP, whole[1400:], fragment=1400 // 8, ident=99))
    made = named(honest, 1000)
    made[-1] = Named("first fragment", made[-1].frame, whole[:8])
    return named(forged, 1), [*made, Named("last fragment", last, b"LARK" + struct.pack("!I", 9001))]


def test_nothing_forged_leaves_and_everything_is_counted(node: Node) -> None:
    forged, honest = builders(node)
    assert len({name.name for name in forged}) == len(forged) >= 95
    before = node.settled()
    node.send([named.frame for named in honest])
    node.await_outside(honest)
    assert node.settled() == before
    node.send([named.frame for named in forged])
    # The capture is known to work when a last honest frame, sent after the forged ones, has come through.
    last = named([("last", lambda m: honest[4].frame[:-8] + m)], 5000)[0]
    node.send([last.frame])
    node.await_outside([last])
    for where in ("outside", "host"):
        leaked = [named.name for named in forged if named.marker.hex() in node.seen(where)]
        assert leaked == [], f"seen {where}"
    assert node.settled() - before == len(forged)
    print(f"{len(forged)} kinds of forged frame: 0 seen outside, 0 at the host, {len(forged)} counted")


def test_the_host_capture_sees_what_is_for_the_host(node: Node) -> None:
    marker = b"LARKHOST"
    frame = f.eth(ROUTER, node.host_mac, f.IPV4, f.ip4(WORLD4, HOST4, f.UDP, f.udp(WORLD4, HOST4, (1, 2), marker)))
    script = str(Path(f.__file__))
    node.outside.run([this_python(), script, "send", "eth0"], given=frame.hex() + "\n").need()
    wait_until("the host sees it", lambda: marker.hex() in node.seen("host"), 10)
