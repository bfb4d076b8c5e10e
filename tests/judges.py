"""Random worlds and packets for the judges: the policy's meaning, the simulated switch, and Open vSwitch.

A world here has one or two worker nodes, a gate, up to four services and up to five jobs; addresses are few, so that
random packets meet the interesting ones often. Everything is drawn by hypothesis: a failing case is shrunk and printed.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from types import MappingProxyType

from hypothesis import strategies as st

from policies.model import (
    Address,
    Attempt,
    Bridge,
    Defaults,
    JobNetwork,
    Mode,
    Network,
    Node,
    Outcome,
    Place,
    Policy,
    PortKind,
    PortRange,
    Protocol,
    Role,
    Service,
    Site,
    Verdict,
    World,
)
from policies.semantics import Packet, Transport, judge, judge_at_gate
from policies.wire import Phase
from ryu_apps.openflow.compiler import lane_addresses
from ryu_apps.openflow.simulate import Special

HERE = Place("world", 1)
ROUTER_MAC = 0x020000000001
UPLINK, WORKERS, SERVERS = 1, 2, 3
"""Port numbers: the uplink of either bridge, and a gate's worker-facing and server-facing ports."""
FIRST_JOB_PORT = 10
SERVERS4 = [ipaddress.ip_address(a) for a in ("10.20.0.5", "10.20.0.6", "10.9.0.7")]
SERVERS6 = [ipaddress.ip_address(a) for a in ("2001:db8:20::5", "2001:db8:20::6", "2001:db8:9::7")]
OTHERS = [
    ipaddress.ip_address(a)
    for a in (
        *("10.20.1.1", "10.20.2.1", "192.0.2.1", "8.8.8.8", "10.9.1.1", "10.20.255.255", "224.0.0.5", "169.254.1.1"),
        *("10.20.1.70", "10.20.0.77", "2001:db8:20:1::1", "2001:db8:20:2::1", "2001:db8:ffff::1", "ff02::5", "fe80::5"),
        *("2001:db8:9::1", "2001:db8:20::77", "2001:db8:20:2::ffff:1"),
    )
]
PORTS = (22, 80, 1093, 1094, 1095, 1100, 40000)


def site(nodes: int) -> Site:
    made = {}
    bridges = {}
    for n in range(1, nodes + 1):
        name = f"wn{n}"
        # The second node declares its own addresses in the site file; of the first only its agent tells.
        hosts = () if n == 1 else (ipaddress.ip_network(f"10.20.{n}.1"), ipaddress.ip_network(f"2001:db8:20:{n}::1"))
        range4 = ipaddress.IPv4Network(f"10.20.{n}.64/26")
        made[name] = Node(name, f"{name}-br", range4, ipaddress.IPv6Network(f"2001:db8:20:{n}::/96"), HERE, hosts)
        ports = MappingProxyType({"up0": PortKind.UPLINK})
        bridges[f"{name}-br"] = Bridge(f"{name}-br", n, frozenset({Role.WORKER}), ports, (), HERE)
    network = JobNetwork(
        ipaddress.IPv4Network("10.20.0.0/16"),
        ipaddress.IPv4Address("10.20.0.1"),
        ipaddress.IPv6Network("2001:db8:20::/48"),
        ipaddress.IPv6Address("2001:db8:20::1"),
        1500,
    )
    return Site("judged", network, (ipaddress.ip_network("192.0.2.0/24"),), made, bridges, ())


def _with_gate(before: Site, guards: tuple[str, ...]) -> Site:
    ports = {"up0": PortKind.UPLINK, "wf0": PortKind.WORKER_FACING, "sf0": PortKind.SERVER_FACING}
    gate = Bridge("gate-br", 99, frozenset({Role.GATE}), MappingProxyType(ports), guards, HERE)
    return Site(
        before.name, before.network, before.infrastructure, before.nodes, {**before.bridges, "gate-br": gate}, ()
    )


@st.composite
def services(draw: st.DrawFn) -> dict[str, Service]:
    """Protected services share hosts, but no port of a host; unprotected ones may overlap anything."""
    found = {}
    blocks = draw(st.permutations([(1094, 1094), (1095, 1100), (80, 80), (20, 25)]))
    for n in range(draw(st.sampled_from((3, 1, 2, 4, 0)))):
        four = draw(st.lists(st.sampled_from(SERVERS4), max_size=2, unique=True))
        six = draw(st.lists(st.sampled_from(SERVERS6), max_size=2, unique=True))
        hosts: tuple[Address, ...] = (*four, *six) or (SERVERS4[0],)
        protocol = draw(st.sampled_from((Protocol.TCP, Protocol.UDP)))
        nets: list[Network] = [ipaddress.ip_network(t) for t in ("10.9.0.0/16", "2001:db8:9::/48", "10.0.0.0/8")]
        protected = draw(st.sampled_from((True, True, True, False)))
        open_to = tuple(draw(st.lists(st.sampled_from(nets), max_size=2, unique=True))) if protected else ()
        name = f"service{n}"
        found[name] = Service(name, hosts, (PortRange(protocol, *blocks[n]),), protected, open_to, HERE)
    return found


@st.composite
def worlds(draw: st.DrawFn) -> World:
    offered = draw(services())
    protected = sorted(n for n, s in offered.items() if s.protected)
    verdict = st.sampled_from((Verdict.DROP, Verdict.DROP, Verdict.ALLOW))
    defaults = Defaults(draw(verdict), draw(verdict), draw(verdict), HERE)
    policy = Policy(
        draw(st.sampled_from((Mode.ENFORCE, Mode.ENFORCE, Mode.ENFORCE, Mode.AUDIT))),
        offered,
        {},
        {},
        (),
        (),
        (),
        defaults,
        "",
        (),
        HERE,
    )
    guards = tuple(n for n in protected if draw(st.sampled_from((True, True, True, False))))
    here = _with_gate(site(draw(st.integers(1, 2))), guards)
    attempts: dict[str, Attempt] = {}
    identities: dict[Outcome, int] = {}
    for n in range(1, draw(st.integers(1, 5)) + 1):
        node = here.nodes[draw(st.sampled_from(sorted(here.nodes)))]
        ipv4 = node.ipv4[n]
        mac, ipv6 = lane_addresses(here, node.name, ipv4)
        sealed = draw(st.sampled_from((False, False, False, False, True)))
        granted = frozenset() if sealed else frozenset(n for n in protected if draw(st.booleans()))
        outcome = Outcome(sealed, granted)
        identities.setdefault(outcome, len(identities) + 1)
        attempts[f"job{n}"] = Attempt(
            f"job{n}", n, node.name, node.bridge, f"lj{n}", FIRST_JOB_PORT + n, mac, ipv4, ipv6, 1000 + n,
            Phase.RUN, outcome, None if sealed else draw(st.sampled_from((None, "site/a", "site/a", "site/b"))),
        )  # fmt: skip
    ports = {name: {"up0": UPLINK} for name in here.bridges}
    ports["gate-br"] = {"up0": UPLINK, "wf0": WORKERS, "sf0": SERVERS}
    return World(
        here,
        policy,
        ports,
        {
            n: (ipaddress.ip_address(f"10.20.{n[2:]}.1"), ipaddress.ip_address(f"2001:db8:20:{n[2:]}::1"))
            for n in here.nodes
        },
        {name: n for n, name in enumerate(sorted(offered), 1)},
        {name: n for n, name in enumerate(sorted(here.nodes), 1)},
        identities,
        {"site/a": 7, "site/b": 8},
        attempts,
    )


def own(job: Attempt, version: int) -> Address:
    if version == 4:
        return job.ipv4
    assert job.ipv6 is not None
    return job.ipv6


def everybody(world: World, version: int) -> list[Address]:
    known: list[Address] = [*SERVERS4, *SERVERS6, *OTHERS]
    return [a for a in known if a.version == version] + [own(j, version) for j in world.attempts.values()]


@dataclass(frozen=True)
class _Far:
    """The far end of a packet: an address, what it speaks, and the ports at both ends."""

    address: Address
    transport: Transport
    port: int
    near_port: int
    ack: bool


@st.composite
def _far_ends(draw: st.DrawFn, world: World, version: int, multicast: bool) -> _Far:
    """Mostly a service's host, at or just beside one of its ports; sometimes anybody, speaking anything."""
    ack = draw(st.booleans())
    near = draw(st.sampled_from((40000, 40000, 40000, 67, 547, 1094)))
    offered = [(s, h) for s in world.policy.services.values() for h in s.hosts if h.version == version]
    if offered and draw(st.sampled_from((True, True, True, False))):
        service, host = draw(st.sampled_from(offered))
        block = service.ports[0]
        port = draw(st.sampled_from((block.first, block.last, block.first, block.first - 1, block.last + 1)))
        transport = Transport(block.protocol.value)
        return _Far(host, transport, port, near, ack and transport is Transport.TCP)
    address = draw(st.sampled_from([a for a in everybody(world, version) if multicast or not a.is_multicast]))
    transport = draw(st.sampled_from((Transport.TCP, Transport.UDP, Transport.ICMP)))
    if transport is Transport.ICMP:
        return _Far(address, transport, 0, 0, False)
    return _Far(address, transport, draw(st.sampled_from(PORTS)), near, ack and transport is Transport.TCP)


@st.composite
def packets(draw: st.DrawFn, world: World) -> Packet:
    """A packet at a worker bridge: mostly from a job and honest, sometimes forged, sometimes from outside to a job."""
    version = draw(st.sampled_from((4, 6)))
    tracked = draw(st.sampled_from((False, False, False, True)))
    job = world.attempts[draw(st.sampled_from(sorted(world.attempts)))]
    mine = own(job, version)
    if draw(st.booleans()):
        far = draw(_far_ends(world, version, True))
        honest = draw(st.sampled_from(range(10)))
        source = draw(st.sampled_from(everybody(world, version))) if honest == 0 else mine
        mac = job.mac ^ 1 if honest == 1 else job.mac
        return Packet(job.id, mac, source, far.address, far.transport, far.near_port, far.port, far.ack, tracked)
    far = draw(_far_ends(world, version, False))
    return Packet(None, ROUTER_MAC, far.address, mine, far.transport, far.port, far.near_port, far.ack, tracked)


@st.composite
def gate_packets(draw: st.DrawFn, world: World) -> tuple[PortKind, Packet]:
    """A packet at the gate, and by which kind of port it enters."""
    version = draw(st.sampled_from((4, 6)))
    entered = draw(st.sampled_from([PortKind.UPLINK, PortKind.WORKER_FACING, PortKind.SERVER_FACING]))
    job = world.attempts[draw(st.sampled_from(sorted(world.attempts)))]
    mac = draw(st.sampled_from((job.mac, job.mac, job.mac, ROUTER_MAC)))
    there = [a for a in everybody(world, version) if not a.is_multicast]
    peer = own(job, version) if draw(st.booleans()) else draw(st.sampled_from(there))
    far = draw(_far_ends(world, version, False))
    if entered is PortKind.SERVER_FACING:
        packet = Packet(None, ROUTER_MAC, far.address, peer, far.transport, far.port, far.near_port, far.ack)
    else:
        packet = Packet(None, mac, peer, far.address, far.transport, far.near_port, far.port, far.ack)
    return entered, packet


def destination_mac(packet: Packet) -> int:
    """The router's MAC, or a multicast group's for a multicast address."""
    return 0x01005E000005 if packet.destination.is_multicast else ROUTER_MAC


def bridge_of(world: World, packet: Packet) -> str:
    """The worker bridge that a packet of `packets` is at."""
    if packet.sender is not None:
        return world.attempts[packet.sender].bridge
    return next(j.bridge for j in world.attempts.values() if packet.destination in (j.ipv4, j.ipv6))


def expected_ports(world: World, packet: Packet) -> set[int]:
    """The ports that the packet must leave a worker bridge by, from the verdict and plain geography."""
    if judge(world, packet).verdict is Verdict.DROP:
        return set()
    bridge = bridge_of(world, packet)
    node = next(n for n in world.site.nodes.values() if n.bridge == bridge)
    receiver = next((j for j in world.attempts.values() if packet.destination in (j.ipv4, j.ipv6)), None)
    if receiver is not None and receiver.bridge == bridge:
        return set() if receiver.outcome.sealed or receiver.id == packet.sender else {receiver.ofport}
    assert node.ipv6 is not None
    if packet.destination in node.ipv4 or packet.destination in node.ipv6:
        return set()  # an address of this node's jobs that no job has
    return {UPLINK}


def expected_at_gate(world: World, packet: Packet, entered: PortKind) -> set[int | Special]:
    """The ports that the packet must leave the gate by: never to a server but at an address of a guarded service."""
    gate = world.site.bridges["gate-br"]
    if judge_at_gate(world, gate, packet, entered).verdict is Verdict.DROP:
        return set()
    guarded = {host for name in gate.guards for host in world.policy.services[name].hosts}
    if entered is not PortKind.SERVER_FACING:
        past = {UPLINK, WORKERS} - {UPLINK if entered is PortKind.UPLINK else WORKERS}
        return {SERVERS} if packet.destination in guarded else set(past)
    services = [world.policy.services[name] for name in gate.guards]
    answers = any(
        packet.source in s.hosts
        and any(p.protocol.value == packet.transport.value and p.first <= packet.source_port <= p.last for p in s.ports)
        for s in services
    )
    return {WORKERS} if answers and in_job_range(world, packet.destination) else {Special.NORMAL}


def in_job_range(world: World, address: Address) -> bool:
    return any(
        address in node.ipv4 or (node.ipv6 is not None and address in ipaddress.IPv6Network((int(node.ipv6[0]), 96)))
        for node in world.site.nodes.values()
    )
