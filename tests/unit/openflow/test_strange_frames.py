"""Frames that nobody honest sends, from outside to a job and from anybody to a gate: dropped, one kind at a time.

What a job forges is in `mininet_tests/test_forged_frames.py`. Each kind here is an honest frame but for one field.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from policies.model import Verdict, World
from ryu_apps.openflow.compiler import desired_flows
from ryu_apps.openflow.fields import EtherType, Frag, IpProto
from ryu_apps.openflow.simulate import SimulatedSwitch
from tests.worlds import PORTS, demo_policy, world

ROUTER, SERVER4, SERVER6 = 0x020000000001, IPv4Address("10.20.0.5"), IPv6Address("2001:db8:20::5")
ROUTER6 = int(IPv6Address("2001:db8:20::1"))
HERE = world([{"LarkGroup": "physics"}])
JOB = HERE.attempts["job1"]
assert JOB.ipv6 is not None
ICMP6 = {"dl_type": EtherType.IPV6, "nw_proto": IpProto.ICMPV6, "nw_ttl": 255, "nw_frag": 0}
ASKS = {**ICMP6, "ipv6_src": ROUTER6, "ipv6_dst": int(JOB.ipv6), "nd_target": int(JOB.ipv6), "nd_sll": 0}
TOLD = {**ICMP6, "ipv6_src": ROUTER6, "ipv6_dst": int(JOB.ipv6), "nd_target": ROUTER6, "nd_tll": 0}
ARP = {"dl_type": EtherType.ARP, "arp_op": 2, "arp_sha": ROUTER, "arp_tha": 0}
TCP4 = {"dl_type": EtherType.IPV4, "nw_proto": IpProto.TCP, "nw_ttl": 64, "nw_frag": 0, "tcp_flags": 2}
TCP6 = TCP4 | {"dl_type": EtherType.IPV6}
PORT = {"tcp_src": 40000, "tcp_dst": 1094}
TAG = {"vlan_tci": 0x1005}


def outputs(bridge: str, port: int, frame: dict[str, int], source: int = ROUTER, here: World = HERE) -> set[object]:
    switch = SimulatedSwitch(desired_flows(here, bridge).values(), lambda zone: 0)
    return set(switch.send({"in_port": port, "dl_src": source, "dl_dst": JOB.mac, **frame}).outputs)


SOLICITATION, ADVERTISEMENT = {**ASKS, "icmpv6_type": 135}, {**TOLD, "icmpv6_type": 136}
ARP_REPLY = {**ARP, "arp_spa": int(IPv4Address("10.20.0.1")), "arp_tpa": int(JOB.ipv4)}
ANSWER = {**TCP4, "nw_src": int(SERVER4), "nw_dst": int(JOB.ipv4), "tcp_src": 1094, "tcp_dst": 40000, "tcp_flags": 16}


@pytest.mark.parametrize("honest", [SOLICITATION, ADVERTISEMENT, ARP_REPLY, ANSWER])
def test_from_outside_plumbing_and_answers_reach_a_job_and_not_with_a_tag(honest: dict[str, int]) -> None:
    assert outputs("wn1-br", 1, honest) == {JOB.ofport}
    assert outputs("wn1-br", 1, honest | TAG) == set()


@pytest.mark.parametrize("honest", [SOLICITATION, ADVERTISEMENT])
@pytest.mark.parametrize(
    "strange", [{"nw_ttl": 64}, {"nw_frag": Frag.ANY}, {"icmpv6_type": 134}, {"icmpv6_type": 137}], ids=str
)
def test_from_outside_only_plain_neighbour_discovery_reaches_a_job(
    honest: dict[str, int], strange: dict[str, int]
) -> None:
    assert outputs("wn1-br", 1, honest | strange) == set()


@pytest.mark.parametrize("kind", [134, 137])
def test_from_outside_no_router_speaks_to_a_job_even_where_ingress_is_allowed(kind: int) -> None:
    policy = demo_policy()
    open_ = replace(policy, defaults=replace(policy.defaults, ingress=Verdict.ALLOW))
    here = world([{"LarkGroup": "physics"}], open_)
    for number, reached in ((128, {JOB.ofport}), (kind, set[object]())):
        assert outputs("wn1-br", 1, ADVERTISEMENT | {"icmpv6_type": number}, here=here) == reached


WORKERS, SERVERS, UPLINK = (PORTS["gate-br"][name] for name in ("wf0", "sf0", "cf0"))
ASKED4 = {**TCP4, **PORT, "nw_src": int(JOB.ipv4), "nw_dst": int(SERVER4)}
ASKED6 = {**TCP6, **PORT, "ipv6_src": int(JOB.ipv6), "ipv6_dst": int(SERVER6)}


@pytest.mark.parametrize("honest", [ASKED4, ASKED6])
def test_a_gate_knows_a_job_by_port_and_mac_too_and_takes_no_tags(honest: dict[str, int]) -> None:
    assert outputs("gate-br", WORKERS, honest, JOB.mac) == {SERVERS}
    assert outputs("gate-br", WORKERS, honest | TAG, JOB.mac) == set()
    assert outputs("gate-br", WORKERS, honest, ROUTER) == set()
    assert outputs("gate-br", UPLINK, honest, JOB.mac) == set()


@pytest.mark.parametrize("number", [0, IpProto.NO_NEXT_HEADER])
def test_a_gate_takes_no_packet_that_hides_its_transport(number: int) -> None:
    hidden = {name: value for name, value in ASKED6.items() if not name.startswith("tcp_")} | {"nw_proto": number}
    assert outputs("gate-br", WORKERS, hidden, JOB.mac) == set()


@pytest.mark.parametrize("port", [WORKERS, UPLINK])
def test_only_the_servers_side_speaks_as_a_guarded_server(port: int) -> None:
    claims = [
        {**ARP_REPLY, "arp_spa": int(SERVER4)},
        {**ADVERTISEMENT, "nd_target": int(SERVER6)},
        {**ANSWER},
    ]
    for claim in claims:
        assert outputs("gate-br", port, claim) == set()
        assert outputs("gate-br", SERVERS, claim) != set()
    assert outputs("gate-br", port, ARP_REPLY) != set()
    assert outputs("gate-br", port, ADVERTISEMENT) != set()


@pytest.mark.parametrize("kind", [134, 137])
def test_a_worker_node_cannot_become_the_servers_router(kind: int) -> None:
    said = ADVERTISEMENT | {"icmpv6_type": kind}
    assert outputs("gate-br", UPLINK, said) == outputs("gate-br", WORKERS, ADVERTISEMENT) != set()
    assert outputs("gate-br", WORKERS, said) == set()
