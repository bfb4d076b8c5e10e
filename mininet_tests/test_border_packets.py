"""A border with real packets: each leaves with the DSCP of its class, in both directions, whatever its sender wrote.

Real kernels talk through a real Open vSwitch with the userspace datapath: jobs and a server on the site's side,
somebody on the WAN's. What arrives is captured at both ends, and every captured packet is compared with what the policy
means. Then the border's flows are replaced, and the switch is killed, while a connection runs.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
import struct
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from mininet_tests import frames as f
from mininet_tests.node_rig import add_bridge, install, machines, text_mac
from mininet_tests.site.namespaces import Daemon, Machine, this_python, wait_until, wire
from mininet_tests.site.openvswitch import RUN, OpenVSwitch
from policies.border import Direction, class_at_border, judge_at_border
from policies.language import policy_from_text
from policies.model import Address, Bridge, Place, PortKind, Role, Verdict, WanPort, World
from policies.semantics import Fragment, Packet, Transport
from ryu_apps.openflow.compiler import desired_flows
from ryu_apps.openflow.text import flows_text
from tests.worlds import demo_site, world

BRIDGE = "edge-br"
POLICY = """
services:
  fileserver: {hosts: [10.20.0.5], ports: [tcp/1094], protected: true}
  xrootd: {ports: [tcp/1094-1095]}
groups: {production: 'LarkGroup =?= "production"'}
classes: [{name: production, dscp: af41}, {name: transfers, dscp: af31}, {name: rest, dscp: cs1}]
classify: [{for: production, class: production}, {service: xrootd, class: transfers}]
"""
OTHER_POLICY = """
services:
  fileserver: {hosts: [10.20.0.5], ports: [tcp/1094], protected: true}
  web: {ports: [tcp/80]}
groups: {production: 'LarkGroup =?= "production"', others: 'LarkGroup =!= "production"'}
classes: [{name: web, dscp: 10}, {name: more, dscp: 12}, {name: production, dscp: af41}, {name: rest, dscp: cs1}]
classify: [{service: web, class: web}, {for: others, class: more}, {for: production, class: production}]
"""
WAN4, WAN6 = "198.51.100.7", "2001:db8:ffff::7"
SERVER4, SERVER6 = "10.20.0.9", "2001:db8:20::9"
FORGED_TOS = 46 << 2
TABLE_0 = ["table=0,priority=0,actions=goto_table:1"]
LISTEN = textwrap.dedent("""
    import json, selectors, socket, sys
    ready = selectors.DefaultSelector()
    def marked(one):
        six = one.family == socket.AF_INET6
        one.setsockopt(*((socket.IPPROTO_IPV6, socket.IPV6_TCLASS) if six else (socket.IPPROTO_IP, socket.IP_TOS)), TOS)
        return one
    TOS, ends = json.loads(sys.argv[1])
    for address, port in ends:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            one = marked(socket.socket(family, kind))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((address, port))
            if kind == socket.SOCK_STREAM:
                one.listen()
            ready.register(one, selectors.EVENT_READ, "accept" if kind == socket.SOCK_STREAM else "datagram")
    print("listening", flush=True)
    while True:
        for key, _ in ready.select():
            one = key.fileobj
            if key.data == "accept":
                ready.register(marked(one.accept()[0]), selectors.EVENT_READ, "stream")
            elif key.data == "datagram":
                data, peer = one.recvfrom(65535)
                one.sendto(data, peer)
            else:
                data = one.recv(65536)
                if data:
                    one.sendall(data)
                else:
                    ready.unregister(one)
                    one.close()
""")
ASK = textwrap.dedent("""
    import json, socket, sys
    TOS, asked = json.loads(sys.argv[1])
    for kind, source, near, target, port, size in asked:
        six = ":" in source
        stream = kind == "tcp"
        family = socket.AF_INET6 if six else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM) as one:
            option = (socket.IPPROTO_IPV6, socket.IPV6_TCLASS) if six else (socket.IPPROTO_IP, socket.IP_TOS)
            one.setsockopt(*option, TOS)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.settimeout(10)
            one.bind((source, near))
            one.connect((target, port))
            said = bytes(n % 251 for n in range(size))
            one.sendall(said) if stream else one.send(said)
            heard = b""
            while len(heard) < size:
                heard += one.recv(65535)
            assert heard == said
    print("heard", len(asked))
""")
STREAM = textwrap.dedent("""
    # Numbered words, back and forth over one connection; a datagram with each. Says the longest wait and what was lost.
    import json, socket, sys, time
    source, target, port, seconds = json.loads(sys.argv[1])
    one = socket.create_connection((target, port), 10, (source, 0))
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    two = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    two.bind((source, 0))
    two.connect((target, port))
    two.settimeout(0.5)
    print("talking", flush=True)
    longest, sent, lost, end = 0.0, 0, 0, time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        word = sent.to_bytes(8, "big")
        two.send(word)
        one.sendall(word)
        heard = b""
        while len(heard) < 8:
            heard += one.recv(8 - len(heard))
        assert heard == word
        longest = max(longest, time.monotonic() - began)
        try:
            while two.recv(8) != word:
                pass
        except TimeoutError:
            lost += 1
        sent += 1
        time.sleep(0.002)
    print("said", json.dumps({"sent": sent, "lost": lost, "longest": longest}), flush=True)
""")


@dataclass(frozen=True, slots=True)
class Seen:
    """A captured packet, and the DSCP it carried."""

    packet: Packet
    dscp: int


@dataclass
class Edge:
    """The border, one machine on each side, and what arrived there."""

    host: Machine
    site: Machine
    wan: Machine
    switch: OpenVSwitch
    here: World
    watchers: dict[str, Daemon]

    def address(self, job: str, version: int) -> str:
        attempt = self.here.attempts[job]
        return str(attempt.ipv4 if version == 4 else attempt.ipv6)

    def ask(self, machine: Machine, conversations: list[tuple[str, str, int, str, int, int]]) -> None:
        argv = [this_python(), "-c", ASK, json.dumps([FORGED_TOS, conversations])]
        assert machine.run(argv, timeout=60).need().out.strip() == f"heard {len(conversations)}"

    def ping(self, source: str, target: str, size: int) -> None:
        argv = ["ping", "-n", "-c", "1", "-W", "5", "-Q", str(FORGED_TOS), "-M", "dont", "-s", str(size)]
        self.site.need(*argv, "-I", source, target)

    def frames_at(self, end: str) -> list[bytes]:
        lines = self.watchers[end].log.read_text(encoding="utf-8").splitlines()
        return [bytes.fromhex(line) for line in lines if re.fullmatch("(?:[0-9a-f]{2})+", line)]

    def seen_at(self, end: str) -> list[Seen]:
        return [found for frame in self.frames_at(end) if (found := read(frame)) is not None]

    def replace_flows(self, here: World) -> None:
        file = self.host.root / "other.flows"
        file.write_text(f"{TABLE_0[0]}\n" + flows_text(desired_flows(here, BRIDGE).values(), numeric=True))
        self.ofctl("--bundle", "replace-flows", str(file))

    def ofctl(self, *argv: str) -> None:
        words = [a for a in argv if not a.startswith("-")]
        options = [a for a in argv if a.startswith("-")]
        self.host.need("ovs-ofctl", "-OOpenFlow14", *options, words[0], f"unix:{RUN}/{BRIDGE}.mgmt", *words[1:])


def read(frame: bytes) -> Seen | None:
    """An IP packet from its frame; None: no IP, or what only neighbours say to each other."""
    kind, data = struct.unpack("!H", frame[12:14])[0], frame[14:]
    fragment = Fragment.WHOLE
    if kind == f.IPV4:
        dscp, protocol, rest = data[1] >> 2, data[9], data[(data[0] & 15) * 4 :]
        source, target = (str(ipaddress.IPv4Address(data[n : n + 4])) for n in (12, 16))
        pieces = struct.unpack("!H", data[6:8])[0]
        if pieces & 0x3FFF:
            fragment = Fragment.LATER if pieces & 0x1FFF else Fragment.FIRST
    elif kind == f.IPV6:
        dscp, protocol, rest = (struct.unpack("!H", data[:2])[0] >> 6) & 63, data[6], data[40:]
        source, target = (str(ipaddress.IPv6Address(data[n : n + 16])) for n in (8, 24))
        if protocol == f.FRAGMENT:
            fragment = Fragment.LATER if struct.unpack("!H", rest[2:4])[0] & 0xFFF8 else Fragment.FIRST
            protocol, rest = rest[0], rest[8:]
        hop_limit = data[7]
        if protocol == f.ICMPV6 and fragment is Fragment.WHOLE and hop_limit == 255 and 133 <= rest[0] <= 137:
            return None
        if ipaddress.IPv6Address(target).is_multicast:
            return None
    else:
        return None
    names = {f.TCP: Transport.TCP, f.UDP: Transport.UDP, f.ICMP: Transport.ICMP, f.ICMPV6: Transport.ICMP}
    transport = names.get(protocol, Transport.OTHER)
    ports = (0, 0)
    if transport in (Transport.TCP, Transport.UDP) and fragment is not Fragment.LATER:
        ports = struct.unpack("!HH", rest[:4])
    ends: list[Address] = [ipaddress.ip_address(source), ipaddress.ip_address(target)]
    return Seen(Packet(None, 0, ends[0], ends[1], transport, *ports, fragment=fragment), dscp)


def the_world(policy: str = POLICY) -> World:
    ports = {"lan0": PortKind.UPLINK, "wan0": PortKind.WAN}
    wan = {"wan0": WanPort(10**9, 10**9)}
    edge = Bridge(BRIDGE, 0xC1, frozenset({Role.BORDER}), ports, (), Place("site.yaml", 1), wan=wan)
    site = demo_site()
    jobs: list[dict[str, object]] = [{"LarkGroup": "production"}, {"LarkGroup": "other"}]
    here = world(jobs, policy_from_text(policy), replace(site, bridges={**site.bridges, BRIDGE: edge}))
    return replace(here, ports={**here.ports, BRIDGE: {"lan0": 1, "wan0": 2}})


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    here = the_world()
    root = tmp_path_factory.mktemp("border")
    with machines(root, "edge", "site", "wan") as (host, site, wan):
        wire(host, "lan0", site, "eth0")
        wire(host, "wan0", wan, "eth0")
        switch = OpenVSwitch(host)
        switch.start()
        add_bridge(switch, BRIDGE, {"lan0": 1, "wan0": 2})
        install(host, BRIDGE, here, TABLE_0)
        jobs = here.attempts.values()
        give(site, SERVER4, SERVER6, *(str(a.ipv4) for a in jobs), *(str(a.ipv6) for a in jobs))
        give(wan, WAN4, WAN6)
        # One link from end to end: neighbours find each other across the border.
        site.need("ip", "route", "add", f"{WAN4}/32", "dev", "eth0")
        site.need("ip", "-6", "route", "add", f"{WAN6}/128", "dev", "eth0")
        wan.need("ip", "route", "add", "10.20.0.0/16", "dev", "eth0")
        wan.need("ip", "-6", "route", "add", "2001:db8:20::/47", "dev", "eth0")
        watchers = {}
        for name, machine in (("site", site), ("wan", wan)):
            watchers[name] = machine.spawn("watch", [this_python(), str(Path(f.__file__)), "watch", "eth0"])
            watchers[name].wait_for_line("watching", 10)
        for machine, addresses, ports in ((site, (SERVER4, SERVER6), (22, 1094)), (wan, (WAN4, WAN6), (80, 1094))):
            ends = [(address, port) for address in addresses for port in ports]
            listening = machine.spawn("listen", [this_python(), "-c", LISTEN, json.dumps([FORGED_TOS, ends])])
            listening.wait_for_line("listening", 10)
        yield Edge(host, site, wan, switch, here, watchers)
        switch.stop()


def give(machine: Machine, *addresses: str) -> None:
    for address in addresses:
        nodad = ["nodad"] if ":" in address else []
        bits = 128 if ":" in address else 32
        machine.need("ip", "address", "add", f"{address}/{bits}", "dev", "eth0", *nodad)


def test_every_packet_arrives_with_the_code_point_of_its_class_whatever_its_sender_wrote(edge: Edge) -> None:
    conversations = []
    for version, outside in ((4, WAN4), (6, WAN6)):
        for job in ("job1", "job2"):
            mine = edge.address(job, version)
            for kind in ("tcp", "udp"):
                conversations += [(kind, mine, 40000, outside, port, 100) for port in (80, 1094)]
            # From a service's port: the job is not that service.
            conversations.append(("tcp", mine, 1095, outside, 80, 100))
            conversations.append(("udp", mine, 40001, outside, 80, 4000))
            edge.ping(mine, outside, 56)
            edge.ping(mine, outside, 4000)
        server = SERVER4 if version == 4 else SERVER6
        conversations += [("tcp", server, 40000, outside, 1094, 100), ("udp", server, 40000, outside, 80, 100)]
    edge.ask(edge.site, conversations)
    calls = [
        (kind, outside, 50000, server, port, 100)
        for outside, server in ((WAN4, SERVER4), (WAN6, SERVER6))
        for kind, port in (("tcp", 22), ("tcp", 1094), ("udp", 1094))
    ]
    edge.ask(edge.wan, calls)
    met: set[object] = set()
    for end, direction in (("wan", Direction.OUTWARD), ("site", Direction.INWARD)):
        for seen in edge.seen_at(end):
            wanted = class_at_border(edge.here, seen.packet, direction)
            assert wanted is not None
            assert seen.dscp == wanted.dscp, (end, seen.packet, wanted.name)
            packet = seen.packet
            met.add((direction, packet.source.version, packet.transport, packet.fragment))
            met.add((direction, packet.source.version, wanted.name))
            local = packet.source if direction is Direction.OUTWARD else packet.destination
            met.add((direction, str(local), wanted.name))
    for direction in Direction:
        for version in (4, 6):
            for transport in (Transport.TCP, Transport.UDP, Transport.ICMP):
                assert (direction, version, transport, Fragment.WHOLE) in met
            for transport in (Transport.UDP, Transport.ICMP):
                for piece in (Fragment.FIRST, Fragment.LATER):
                    assert (direction, version, transport, piece) in met
            for job, classes in (("job1", {"production"}), ("job2", {"transfers", "rest"})):
                theirs = {c.name for c in edge.here.policy.classes}
                own = {c for c in theirs if (direction, edge.address(job, version), c) in met}
                assert own == classes
            server = SERVER4 if version == 4 else SERVER6
            assert (direction, server, "transfers") in met
            assert (direction, server, "rest") in met


def test_a_jobs_address_from_the_wan_does_not_come_in_and_any_other_does(edge: Edge) -> None:
    def mac_of(machine: Machine) -> str:
        return machine.need("cat", "/sys/class/net/eth0/address").strip()

    ours, theirs = mac_of(edge.wan), mac_of(edge.site)
    job4, job6 = edge.address("job1", 4), edge.address("job2", 6)

    def both(source4: str, source6: str, marker: str) -> list[bytes]:
        data = marker.encode()
        return [
            f.eth(ours, theirs, f.IPV4, f.ip4(source4, SERVER4, f.UDP, f.udp(source4, SERVER4, (9, 9), data + b"4"))),
            f.eth(ours, theirs, f.IPV6, f.ip6(source6, SERVER6, f.UDP, f.udp(source6, SERVER6, (9, 9), data + b"6"))),
            f.eth(ours, f.ALL, f.ARP, f.arp(1, (ours, source4), (f.ALL, SERVER4), data + b"a")),
            f.eth(
                ours, theirs, f.IPV6,
                f.ip6(WAN6, SERVER6, f.ICMPV6,
                      f.icmp6(WAN6, SERVER6, 136, f.advertisement(source6, f.link_option(2, ours)) + data + b"n")),
            ),
        ]  # fmt: skip

    forged, honest = both(job4, job6, "forged:"), both(WAN4, WAN6, "honest:")
    # The same option twice: a kernel takes the first, and Open vSwitch shows no target at all.
    twice = f.advertisement(job6, f.link_option(2, ours) * 2)
    hidden = f.icmp6(WAN6, SERVER6, 136, twice)
    forged.append(f.eth(ours, theirs, f.IPV6, f.ip6(WAN6, SERVER6, f.ICMPV6, hidden)))
    # A job's MAC with anybody's address, and the same of another site's job.
    jobs = text_mac(edge.here.attempts["job1"].mac)
    for mac, frames in ((jobs, forged), ("02:6c:0a:63:01:41", honest)):
        data = b"forged:m" if mac == jobs else b"honest:m"
        frames.append(f.eth(mac, theirs, f.IPV4, f.ip4(WAN4, SERVER4, f.UDP, f.udp(WAN4, SERVER4, (9, 9), data))))
        frames.append(f.eth(ours, f.ALL, f.ARP, f.arp(1, (mac, "198.51.100.8"), (f.ALL, SERVER4), data[:7] + b"s")))
    sender = [this_python(), str(Path(f.__file__)), "send", "eth0"]
    edge.wan.run(sender, given="".join(frame.hex() + "\n" for frame in [*forged, *honest])).need()

    kinds = (b"4", b"6", b"a", b"m", b"s")

    def arrived() -> set[bytes]:
        whole = b"\n".join(edge.frames_at("site"))
        return {word + kind for word in (b"honest:", b"forged:") for kind in kinds if word + kind in whole}

    good = {b"honest:" + kind for kind in kinds}
    wait_until("the honest frames arrive", lambda: arrived() >= good, 15)
    assert arrived() == good
    targets = [read_target(frame) for frame in edge.frames_at("site")]
    assert socket.inet_pton(socket.AF_INET6, WAN6) in targets
    assert socket.inet_pton(socket.AF_INET6, job6) not in targets
    for source in (job4, WAN4):
        packet = Packet(None, 0, ipaddress.ip_address(source), ipaddress.ip_address(SERVER4), Transport.UDP, 9, 9)
        verdict = judge_at_border(edge.here, packet, Direction.INWARD).verdict
        assert verdict is (Verdict.DROP if source == job4 else Verdict.ALLOW)

    def counted() -> int:
        dropped = [line for line in edge.switch.flows(BRIDGE, "table=1") if "actions=drop" in line]
        return sum(int(line.partition("n_packets=")[2].partition(",")[0]) for line in dropped)

    wait_until("the forged frames are counted", lambda: counted() == len(forged), 15)


def test_nobody_keeps_the_code_point_that_he_wrote(edge: Edge) -> None:
    """Not in packets either that Open vSwitch writes none into: of protocol 0, or with headers that it cannot read."""
    tos = 34 << 2  # the most important class

    def four(source: str, target: str, protocol: int, data: bytes, claimed: int = 0) -> bytes:
        packet = bytearray(f.ip4(source, target, protocol, data))
        packet[1] = tos
        packet[2:4] = struct.pack("!H", len(packet) + claimed)
        packet[10:12] = bytes(2)
        packet[10:12] = struct.pack("!H", f.checksum(bytes(packet[:20])))
        return bytes(packet)

    def six(source: str, target: str, header: int, data: bytes) -> bytes:
        packet = f.ip6(source, target, header, data)
        return struct.pack("!I", 6 << 28 | tos << 20) + packet[4:]

    def all_of(here: tuple[str, str], there: tuple[str, str], mark: bytes) -> list[bytes]:
        options = bytes([59, 255, *bytes(6)])  # hop-by-hop options that run past the end
        return [
            f.eth(mine, theirs, f.IPV4, four(here[0], there[0], 0, mark + b"zero" + bytes(40))),
            f.eth(mine, theirs, f.IPV4, four(here[0], there[0], f.UDP, mark + b"short" + bytes(40), claimed=500)),
            f.eth(mine, theirs, f.IPV6, six(here[1], there[1], 0, options + mark + b"options")),
            f.eth(mine, theirs, f.IPV4, four(here[0], there[0], 253, mark + b"honest4" + bytes(40))),
            f.eth(mine, theirs, f.IPV6, six(here[1], there[1], 253, mark + b"honest6" + bytes(40))),
        ]

    sender = [this_python(), str(Path(f.__file__)), "send", "eth0"]
    inside = (edge.address("job2", 4), edge.address("job2", 6))
    for machine, end, other, here, there in (
        (edge.site, "wan", edge.wan, inside, (WAN4, WAN6)),
        (edge.wan, "site", edge.site, (WAN4, WAN6), inside),
    ):
        mine, theirs = (m.need("cat", "/sys/class/net/eth0/address").strip() for m in (machine, other))
        mark = b"marked for " + end.encode()
        machine.run(sender, given="".join(frame.hex() + "\n" for frame in all_of(here, there, mark))).need()

        def arrived(end: str = end, mark: bytes = mark) -> list[bytes]:
            return [frame for frame in edge.frames_at(end) if mark in frame]

        wait_until("the honest ones arrive", lambda: sum(b"honest" in frame for frame in arrived()) == 2, 15)
        assert len(arrived()) == 2, arrived()
        for frame in arrived():
            code = (struct.unpack("!H", frame[14:16])[0] >> 6) & 63 if frame[12] == 0x86 else frame[15] >> 2
            assert code == 8, frame


def read_target(frame: bytes) -> bytes | None:
    """What a neighbour advertisement speaks of."""
    if frame[12:14] == struct.pack("!H", f.IPV6) and frame[20] == f.ICMPV6 and frame[54] == 136:
        return frame[62:78]
    return None


def talk(edge: Edge, seconds: float) -> Daemon:
    wanted = json.dumps([edge.address("job1", 4), WAN4, 80, seconds])
    speaker = edge.site.spawn(f"stream-{seconds}", [this_python(), "-c", STREAM, wanted])
    speaker.wait_for_line("talking", 10)
    return speaker


def outcome(speaker: Daemon, within: float) -> dict[str, float]:
    line = speaker.wait_for_line("said ", within)
    found: dict[str, float] = json.loads(line.removeprefix("said "))
    return found


def test_classes_change_under_running_traffic_without_a_packet_lost(edge: Edge) -> None:
    other = the_world(OTHER_POLICY)
    speaker = talk(edge, 4.0)
    for n in range(10):
        edge.replace_flows(other if n % 2 == 0 else edge.here)
    said = outcome(speaker, 30)
    assert said["sent"] > 100
    assert said["lost"] == 0
    # The control: a border whose flows are taken away and brought again does lose packets.
    speaker = talk(edge, 3.0)
    edge.ofctl("del-flows")
    speaker_is_waiting = 0.5
    edge.site.need("sleep", str(speaker_is_waiting))
    install(edge.host, BRIDGE, edge.here, TABLE_0)
    said = outcome(speaker, 30)
    assert said["lost"] > 0 or said["longest"] > speaker_is_waiting


def test_a_connection_survives_the_death_of_the_switch(edge: Edge) -> None:
    """The border keeps no state of connections: when its flows are back, what ran goes on."""
    speaker = talk(edge, 6.0)
    edge.switch.kill_switch()
    edge.switch.start_switch()
    # The bridge's own socket comes a moment after the switch answers.
    frags = ["ovs-ofctl", "-OOpenFlow14", "set-frags", f"unix:{RUN}/{BRIDGE}.mgmt", "nx-match"]
    wait_until("the bridge is back", lambda: edge.host.run(frags).code == 0, 10)
    install(edge.host, BRIDGE, edge.here, TABLE_0)
    said = outcome(speaker, 40)
    assert said["sent"] > 100
    assert said["longest"] < 5
