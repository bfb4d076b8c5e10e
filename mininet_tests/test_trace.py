"""Frames of the demo's policy in Open vSwitch's own eyes (`ofproto/trace`): replies, plumbing, and forged frames.

That verdicts on ordinary packets agree is shown in `test_three_judges.py`, that nothing forged leaves a real port in
`test_forged_frames.py`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

import pytest

from mininet_tests.site.dummy import DummySwitch
from policies.model import Mode
from policies.semantics import Packet, Transport
from ryu_apps.openflow import explain
from ryu_apps.openflow.compiler import desired_flows
from ryu_apps.openflow.fields import show
from tests.worlds import PORTS, demo_policy, world

PHYSICS: dict[str, object] = {"LarkGroup": "physics"}
SEALED: dict[str, object] = {"LarkNetwork": "none"}
TABLE_0 = "table=0,priority=0,actions=goto_table:1\n"
ROUTER_MAC = 0x020000000001


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
    return ",".join(f"{name}={text}" for name, text in shown.items())


def test_replies_reach_the_job_they_are_for_and_no_other(switch: DummySwitch) -> None:
    here = world([PHYSICS, {}, SEALED])
    switch.install("wn1-br", desired_flows(here, "wn1-br").values(), TABLE_0)
    seen = {}
    for job in (here.attempts["job1"], here.attempts["job2"]):
        answer = Packet(None, ROUTER_MAC, ipaddress.ip_address("8.8.8.8"), job.ipv4, Transport.UDP, 53, 40000)
        out = switch.trace("wn1-br", frame(answer, 1, job.mac), "trk,est,rpl")
        assert len(out) == 1
        seen[job.id] = out.pop()
    assert seen["job1"] != seen["job2"]


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
    here = world([PHYSICS, {}, SEALED])
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
