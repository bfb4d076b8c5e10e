"""The policy's meaning and Open vSwitch agree on the demo's policy: `judge` against `ofproto/trace`, packet by packet.

A dummy bridge numbers its datapath ports as they come, so the random tests compare whether a packet leaves; that it
leaves by the right port is shown by the tests about replies and plumbing.
"""

from __future__ import annotations

import ipaddress
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from mininet_tests.site.dummy import DummySwitch
from policies.model import Address, Attempt, Defaults, Mode, PortKind, Verdict, World
from policies.semantics import Packet, Transport, judge, judge_at_gate
from ryu_apps.openflow import explain
from ryu_apps.openflow.compiler import desired_flows
from ryu_apps.openflow.fields import show
from tests.worlds import PORTS, demo_policy, world

PHYSICS: dict[str, object] = {"LarkGroup": "physics"}
SEALED: dict[str, object] = {"LarkNetwork": "none"}
TABLE_0 = "table=0,priority=0,actions=goto_table:1\n"
ROUTER_MAC = 0x020000000001


@dataclass(frozen=True)
class Case:
    """A policy variant: what is enforced and what the defaults are."""

    mode: Mode
    egress: Verdict
    ingress: Verdict
    between_jobs: Verdict

    @property
    def name(self) -> str:
        return f"{self.mode}, egress {self.egress}, ingress {self.ingress}, between jobs {self.between_jobs}"


CASES = [
    Case(*c) for c in itertools.product(Mode, (Verdict.ALLOW, Verdict.DROP), (Verdict.DROP, Verdict.ALLOW), Verdict)
]


def build(case: Case) -> World:
    policy = demo_policy(case.mode)
    defaults = Defaults(case.egress, case.ingress, case.between_jobs, policy.defaults.place)
    return world([PHYSICS, {}, SEALED], replace(policy, defaults=defaults))


@pytest.fixture(scope="module")
def switch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DummySwitch]:
    with DummySwitch(tmp_path_factory.mktemp("ovs")) as made:
        jobs = {a.port_name: a.ofport for a in world([PHYSICS, {}, SEALED]).attempts.values()}
        made.add_bridge("wn1-br", {**PORTS["wn1-br"], **jobs})
        made.add_bridge("gate-br", PORTS["gate-br"])
        yield made


def mac(value: int) -> str:
    return ":".join(f"{b:02x}" for b in value.to_bytes(6, "big"))


def frame(packet: Packet, in_port: int, destination_mac: int = ROUTER_MAC) -> str:
    """The packet's frame in ovs-ofctl syntax, from the same fields that the simulated switch is given."""
    named = explain.frame(packet, in_port, destination_mac)
    shown = {name: hex(value) if name == "tcp_flags" else show(name, value, None) for name, value in named.items()}
    return ",".join(f"{name}={text}" for name, text in shown.items()) + ",nw_ttl=64"


def address_of(job: Attempt, family: int) -> Address:
    """The job's address of a family; every job of these worlds has both."""
    if family == 4:
        return job.ipv4
    assert job.ipv6 is not None
    return job.ipv6


def addresses(here: World, family: int) -> list[Address]:
    """Everybody a packet may be from or to: the server, a neighbour of it, the node, management, the world, jobs."""
    four = ["10.20.0.5", "10.20.0.6", "10.20.1.1", "192.0.2.1", "8.8.8.8", "10.20.1.100", "224.0.0.5", "10.20.255.255"]
    six = [
        "2001:db8:20::5",
        "2001:db8:20::6",
        "2001:db8:20:1::1",
        "2001:db8:ffff::1",
        "2001:db8:20:1::1234:1",
        "ff02::5",
    ]
    others = [ipaddress.ip_address(a) for a in (four if family == 4 else six)]
    return others + [address_of(a, family) for a in here.attempts.values()]


def packets(here: World, chance: random.Random, count: int) -> Iterator[Packet]:
    jobs = list(here.attempts.values())
    for _ in range(count):
        family = chance.choice((4, 6))
        transport = chance.choice((Transport.TCP, Transport.TCP, Transport.UDP, Transport.ICMP))
        ports = chance.choice(((40000, 1094), (1094, 40000), (40000, 80), (67, 68), (547, 546), (1093, 1095)))
        ack = chance.random() < 0.5
        tracked = chance.random() < 0.4
        everybody = addresses(here, family)
        sender = chance.choice([*jobs, None])
        if sender is not None:
            own = address_of(sender, family)
            source = own if chance.random() < 0.9 else chance.choice(everybody)
            from_mac = sender.mac if chance.random() < 0.95 else sender.mac ^ 1
            destination = chance.choice(everybody)
            yield Packet(sender.id, from_mac, source, destination, transport, *ports, ack, tracked)
        else:
            receiver = chance.choice(jobs)
            destination = address_of(receiver, family)
            source = chance.choice([a for a in everybody if not a.is_multicast])
            yield Packet(None, ROUTER_MAC, source, destination, transport, *ports, ack, tracked)


def expected_port(here: World, packet: Packet) -> int | None:
    judged = judge(here, packet)
    if judged.verdict is Verdict.DROP:
        return None
    receiver = next((a for a in here.attempts.values() if packet.destination in (a.ipv4, a.ipv6)), None)
    node = here.site.nodes["wn1"]
    assert node.ipv6 is not None
    in_range = packet.destination in node.ipv4 or packet.destination in node.ipv6
    if receiver is None:
        # An address of this node's jobs that no job has: let on, and lost, because nobody is there.
        return None if in_range and packet.sender is not None else PORTS["wn1-br"]["up0"]
    if receiver.id == packet.sender:
        return None  # a switch never sends a frame back by the port it came from
    return None if receiver.outcome.sealed else receiver.ofport


@pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
def test_worker_bridge_does_what_the_policy_means(switch: DummySwitch, case: Case) -> None:
    here = build(case)
    switch.install("wn1-br", desired_flows(here, "wn1-br").values(), TABLE_0)
    chance = random.Random(random.getrandbits(64))
    verdicts = set()
    for packet in packets(here, chance, 60):
        in_port = PORTS["wn1-br"]["up0"] if packet.sender is None else here.attempts[packet.sender].ofport
        group = 0x01005E000005 if packet.destination.is_multicast else ROUTER_MAC
        state = "trk,est,rpl" if packet.tracked else "trk,new"
        out = switch.trace("wn1-br", frame(packet, in_port, group), state)
        wanted = expected_port(here, packet)
        assert bool(out) == (wanted is not None), f"{packet}\n{judge(here, packet)}\n{frame(packet, in_port)}"
        verdicts.add(judge(here, packet).verdict)
    assert verdicts == set(Verdict), "the packets tried only one verdict: the test would prove nothing"


def test_replies_reach_the_job_they_are_for_and_no_other(switch: DummySwitch) -> None:
    here = build(CASES[1])
    switch.install("wn1-br", desired_flows(here, "wn1-br").values(), TABLE_0)
    seen = {}
    for job in (here.attempts["job1"], here.attempts["job2"]):
        answer = Packet(None, ROUTER_MAC, ipaddress.ip_address("8.8.8.8"), job.ipv4, Transport.UDP, 53, 40000)
        out = switch.trace("wn1-br", frame(answer, 1, job.mac), "trk,est,rpl")
        assert len(out) == 1
        seen[job.id] = out.pop()
    assert seen["job1"] != seen["job2"]


@pytest.mark.parametrize("mode", list(Mode))
def test_gate_does_what_the_policy_means(switch: DummySwitch, mode: Mode) -> None:
    here = world([PHYSICS, {}, SEALED], demo_policy(mode))
    gate = here.site.bridges["gate-br"]
    switch.install("gate-br", desired_flows(here, "gate-br").values(), TABLE_0)
    numbers = {kind: PORTS["gate-br"][name] for name, kind in gate.ports.items()}
    chance = random.Random(random.getrandbits(64))
    verdicts = set()
    for _ in range(150):
        family = chance.choice((4, 6))
        everybody = [a for a in addresses(here, family) if not a.is_multicast]
        job = chance.choice(list(here.attempts.values()))
        own = address_of(job, family)
        entered = chance.choice(list(numbers))
        ports = chance.choice(((40000, 1094), (1094, 40000), (40000, 22)))
        if entered is PortKind.SERVER_FACING:
            server = everybody[0]
            packet = Packet(None, ROUTER_MAC, server, chance.choice([own, *everybody]), Transport.TCP, *ports)
        else:
            source = own if chance.random() < 0.7 else chance.choice(everybody)
            from_mac = job.mac if chance.random() < 0.9 else ROUTER_MAC
            packet = Packet(None, from_mac, source, everybody[chance.choice((0, 0, 1))], Transport.TCP, *ports)
        packet = replace(packet, ack=chance.random() < 0.7)
        judged = judge_at_gate(here, gate, packet, entered)
        out = switch.trace("gate-br", frame(packet, numbers[entered]))
        assert bool(out) == (judged.verdict is Verdict.ALLOW), f"{packet} by {entered}\n{judged}"
        verdicts.add(judged.verdict)
    assert verdicts == set(Verdict)


# The parts of frames of a job with MAC {mac}, addresses {v4} and {v6}.
_OUT = "dl_src={mac},dl_dst=02:00:00:00:00:01"
_ALL = "dl_src={mac},dl_dst=ff:ff:ff:ff:ff:ff"
_ROUTER6 = "ipv6_src={v6},ipv6_dst=2001:db8:20::1,nw_ttl=255"
_SOLICITED = "dl_src={mac},dl_dst=33:33:ff:00:00:01,icmp6,ipv6_src={v6},ipv6_dst=ff02::1:ff00:1,nw_ttl=255"
_ANOTHER = "02:6c:0a:14:01:99"
FORGED = [
    ("ARP reply for the gateway", _ALL + ",arp,arp_op=2,arp_spa=10.20.0.1,arp_sha={mac}"),
    ("ARP with another's hardware address", _ALL + ",arp,arp_op=1,arp_spa={v4},arp_sha=" + _ANOTHER),
    ("ARP from another MAC", f"dl_src={_ANOTHER},dl_dst=ff:ff:ff:ff:ff:ff,arp,arp_op=1,arp_spa={{v4}},arp_sha={{mac}}"),
    ("VLAN tag", _OUT + ",dl_vlan=5,ip,nw_src={v4},nw_dst=8.8.8.8,nw_proto=17,nw_ttl=9"),
    ("DHCP offer", _OUT + ",udp,nw_src={v4},nw_dst=8.8.8.8,udp_src=67,udp_dst=68,nw_ttl=9"),
    ("DHCPv6 reply", _OUT + ",udp6,udp_src=547,udp_dst=546," + _ROUTER6),
    (
        "router advertisement",
        "dl_src={mac},dl_dst=33:33:00:00:00:01,icmp6,ipv6_src={v6},ipv6_dst=ff02::1,icmpv6_type=134,nw_ttl=255",
    ),
    ("redirect", _OUT + ",icmp6,icmpv6_type=137," + _ROUTER6),
    (
        "advertisement of another's address",
        _OUT + ",icmp6,icmpv6_type=136,nd_target=2001:db8:20::1,nd_tll={mac}," + _ROUTER6,
    ),
    (
        "advertisement with another's MAC",
        _OUT + f",icmp6,icmpv6_type=136,nd_target={{v6}},nd_tll={_ANOTHER}," + _ROUTER6,
    ),
    ("solicitation with another's MAC", _SOLICITED + f",icmpv6_type=135,nd_target=2001:db8:20::1,nd_sll={_ANOTHER}"),
    ("LLDP", "dl_src={mac},dl_dst=01:80:c2:00:00:0e,dl_type=0x88cc"),
    ("other ethertype", _OUT + ",dl_type=0x8863"),
    ("link-local source", _OUT + ",udp6,ipv6_src=fe80::1,ipv6_dst=2001:db8:20::1,udp_src=5,udp_dst=6,nw_ttl=9"),
    ("broadcast", _ALL + ",udp,nw_src={v4},nw_dst=255.255.255.255,udp_src=5,udp_dst=6,nw_ttl=9"),
]
PLUMBING = [
    ("ARP request", _ALL + ",arp,arp_op=1,arp_spa={v4},arp_sha={mac},arp_tpa=10.20.0.1"),
    ("ARP reply", _OUT + ",arp,arp_op=2,arp_spa={v4},arp_sha={mac},arp_tpa=10.20.0.1"),
    ("solicitation", _SOLICITED + ",icmpv6_type=135,nd_target=2001:db8:20::1,nd_sll={mac}"),
    ("advertisement", _OUT + ",icmp6,icmpv6_type=136,nd_target={v6},nd_tll={mac}," + _ROUTER6),
]


@pytest.mark.parametrize(
    ("template", "passes"),
    [(t, False) for _, t in FORGED] + [(t, True) for _, t in PLUMBING],
    ids=[f"{n} is dropped" for n, _ in FORGED] + [f"{n} passes" for n, _ in PLUMBING],
)
@pytest.mark.parametrize("mode", list(Mode))
def test_forged_frames_never_leave_a_jobs_port_and_plumbing_does(
    switch: DummySwitch, template: str, passes: bool, mode: Mode
) -> None:
    here = world([PHYSICS, {}, SEALED], demo_policy(mode))
    switch.install("wn1-br", desired_flows(here, "wn1-br").values(), TABLE_0)
    job = here.attempts["job1"]
    packet = template.format(mac=mac(job.mac), v4=job.ipv4, v6=job.ipv6)
    assert bool(switch.trace("wn1-br", f"in_port={job.ofport},{packet}", "trk,new")) is passes
    sealed = here.attempts["job3"]
    packet = template.format(mac=mac(sealed.mac), v4=sealed.ipv4, v6=sealed.ipv6)
    assert not switch.trace("wn1-br", f"in_port={sealed.ofport},{packet}", "trk,new")


def test_plumbing_reaches_the_job_it_concerns_and_no_other(switch: DummySwitch) -> None:
    here = build(CASES[1])
    switch.install("wn1-br", desired_flows(here, "wn1-br").values(), TABLE_0)
    one, two = here.attempts["job1"], here.attempts["job2"]
    ask = "in_port=1,dl_src=02:00:00:00:00:01,dl_dst=ff:ff:ff:ff:ff:ff,arp,arp_op=1,arp_spa=10.20.0.1,arp_tpa={}"
    solicit = (
        "in_port=1,dl_src=02:00:00:00:00:01,dl_dst=33:33:ff:14:01:41,icmp6,ipv6_src=2001:db8:20::1,"
        "ipv6_dst=ff02::1:ff14:141,icmpv6_type=135,nw_ttl=255,nd_target={}"
    )
    answers = [switch.trace("wn1-br", ask.format(j.ipv4)) for j in (one, two)]
    answers += [switch.trace("wn1-br", solicit.format(j.ipv6)) for j in (one, two)]
    assert [len(a) for a in answers] == [1, 1, 1, 1]
    assert answers[0] == answers[2] != answers[1] == answers[3]
    assert not switch.trace("wn1-br", ask.format("10.20.0.77"))
    advertisement = (
        "in_port=1,dl_src=02:00:00:00:00:01,dl_dst=33:33:00:00:00:01,icmp6,ipv6_src=fe80::1,ipv6_dst=ff02::1"
    )
    assert not switch.trace("wn1-br", f"{advertisement},icmpv6_type=134,nw_ttl=255")
