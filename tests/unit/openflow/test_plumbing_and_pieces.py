"""ARP between jobs, and pieces of datagrams that show less than they claim; each beside an honest frame that passes."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from policies.model import Attempt, World
from policies.wire import Phase
from ryu_apps.openflow.compiler import desired_flows
from ryu_apps.openflow.fields import CtState, EtherType, Frag, IpProto
from ryu_apps.openflow.pipeline import Table
from ryu_apps.openflow.simulate import Result, SimulatedSwitch
from tests.cases import UPLINK, Case, Job, world_of
from tests.drawn import site_text

POLICY = """
attributes: {LarkSlice: {type: string}}
services: {pings: {ports: [icmp, udp/53]}}
groups: {asks: 'LarkSlice =!= undefined'}
slices: [{for: asks, name: LarkSlice}]
classes: [{name: first, dscp: 46}, {name: rest, dscp: 8}]
classify: [{service: pings, class: first}]
defaults: {egress: allow}
"""
JOBS = {"asker": ("wn1", 1, "one"), "mate": ("wn1", 2, "one"), "far": ("wn2", 1, "one"), "stranger": ("wn1", 3, "two"),
        "strange": ("wn2", 2, "two")}  # fmt: skip
ROUTER, WORLD4 = 0x020000000001, int(IPv4Address("198.51.100.7"))


def made() -> World:
    jobs = {}
    for name, (node, lane, slice_) in JOBS.items():
        ad: dict[str, object] = {"Owner": "alice", "User": "alice@site", "LarkSlice": slice_}
        jobs[name] = Job(node, lane, Phase.RUN, ad)
    return world_of(Case(POLICY, site_text(("wn1", "wn2"), (), six=True), jobs=jobs))


HERE = made()
ASKER = HERE.attempts["asker"]


def sent(port: int, source: int, frame: dict[str, int]) -> Result:
    new = CtState.TRK | CtState.NEW
    switch = SimulatedSwitch(desired_flows(HERE, ASKER.bridge).values(), lambda zone: new)
    return switch.send({"in_port": port, "dl_src": source, "dl_dst": ROUTER, **frame})


def arp(sender: Attempt, target: Attempt) -> dict[str, int]:
    return {
        "dl_type": EtherType.ARP, "arp_op": 1, "arp_spa": int(sender.ipv4), "arp_sha": sender.mac,
        "arp_tpa": int(target.ipv4), "arp_tha": 0,
    }  # fmt: skip


@pytest.mark.parametrize(("asked", "stranger", "port"), [("mate", "stranger", None), ("far", "strange", UPLINK)])
def test_a_job_asks_with_arp_for_members_of_its_slice_only(asked: str, stranger: str, port: int | None) -> None:
    mate = HERE.attempts[asked]
    expected = mate.ofport if port is None else port
    assert sent(ASKER.ofport, ASKER.mac, arp(ASKER, mate)).outputs == {expected}
    assert sent(ASKER.ofport, ASKER.mac, arp(ASKER, HERE.attempts[stranger])).outputs == set()


def test_a_job_is_asked_with_arp_by_members_of_its_slice_only() -> None:
    far, strange = HERE.attempts["far"], HERE.attempts["strange"]
    assert sent(UPLINK, far.mac, arp(far, ASKER)).outputs == {ASKER.ofport}
    assert sent(UPLINK, strange.mac, arp(strange, ASKER)).outputs == set()


UDP = {
    4: {"dl_type": EtherType.IPV4, "nw_proto": IpProto.UDP, "nw_ttl": 64, "nw_src": int(ASKER.ipv4), "nw_dst": WORLD4},
    6: {"dl_type": EtherType.IPV6, "nw_proto": IpProto.UDP, "nw_ttl": 64, "ipv6_src": int(ASKER.ipv6 or 0),
        "ipv6_dst": 0x2A00_0000_0000_0000_0000_0000_0000_0001},
}  # fmt: skip


@pytest.mark.parametrize("version", [4, 6])
def test_a_first_fragment_of_udp_that_shows_no_port_is_refused_as_forged(version: int) -> None:
    shown = {**UDP[version], "nw_frag": Frag.ANY, "udp_src": 40000, "udp_dst": 9000}
    assert sent(ASKER.ofport, ASKER.mac, shown).outputs == {UPLINK}
    hidden = sent(ASKER.ofport, ASKER.mac, shown | {"udp_src": 0, "udp_dst": 0})
    assert hidden.outputs == set()
    assert hidden.trail[-1].table == Table.SPOOF_GUARD


@pytest.mark.parametrize("version", [4, 6])
def test_a_later_fragment_is_of_no_service_when_it_is_classed(version: int) -> None:
    number = IpProto.ICMP if version == 4 else 44  # of IPv6 Open vSwitch shows the fragment header
    kind = {"icmp_type": 8} if version == 4 else {"icmpv6_type": 128}
    whole = {**UDP[version], "nw_proto": IpProto.ICMP if version == 4 else IpProto.ICMPV6, "nw_frag": 0, **kind}
    assert sent(ASKER.ofport, ASKER.mac, whole).left["ip_dscp"] == 46
    later = {**UDP[version], "nw_proto": number, "nw_frag": Frag.BOTH}
    assert sent(ASKER.ofport, ASKER.mac, later).left["ip_dscp"] == 8
