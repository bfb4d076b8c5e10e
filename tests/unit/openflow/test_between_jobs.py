"""Between jobs: neighbour discovery reaches whom it asks for, nobody else, and an address is one job's or none's."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest

from policies.model import Attempt, World
from policies.wire import Phase
from ryu_apps.openflow.compiler import desired_flows
from ryu_apps.openflow.fields import EtherType, IpProto
from ryu_apps.openflow.simulate import SimulatedSwitch
from tests.cases import UPLINK, Case, Job, world_of
from tests.drawn import site_text

POLICY = """
attributes: {LarkSlice: {type: string}}
groups: {asks: 'LarkSlice =!= undefined'}
slices: [{for: asks, name: LarkSlice}]
defaults: {egress: deny}
"""
JOBS = {"asker": ("wn1", 1, "one"), "near": ("wn1", 2, "one"), "far": ("wn2", 1, "one"), "stranger": ("wn1", 3, "two")}
NO_JOB = ("2a00::1", "2001:db8:20::5", "2001:db8:20::1", "fe80::5", "2001:db8:20:2::ffff:1")


def worlds() -> World:
    jobs = {}
    for name, (node, lane, slice_) in JOBS.items():
        ad: dict[str, object] = {"Owner": "alice", "User": "alice@site", "LarkSlice": slice_}
        jobs[name] = Job(node, lane, Phase.RUN, ad)
    return world_of(Case(POLICY, site_text(("wn1", "wn2"), (), six=True), jobs=jobs))


def six(job: Attempt) -> IPv6Address:
    assert job.ipv6 is not None
    return job.ipv6


def outputs(world: World, to: IPv6Address, more: dict[str, int]) -> set[object]:
    """By which ports of its bridge a packet of the asker leaves."""
    asker = world.attempts["asker"]
    frame = {
        "in_port": asker.ofport,
        "dl_src": asker.mac,
        "dl_dst": 0x3333FF000001 if to.is_multicast else 0x020000000001,
        "dl_type": EtherType.IPV6,
        "ipv6_src": int(six(asker)),
        "ipv6_dst": int(to),
        "nw_frag": 0,
        **more,
    }
    switch = SimulatedSwitch(desired_flows(world, asker.bridge).values(), lambda zone: 0)
    return set(switch.send(frame).outputs)


def solicitation(target: IPv6Address) -> dict[str, int]:
    known = {"nd_target": int(target), "nd_sll": 0}
    return {"nw_proto": IpProto.ICMPV6, "nw_ttl": 255, "icmpv6_type": 135, **known}


@pytest.mark.parametrize("target", ["near", "far"])
def test_a_solicitation_for_a_member_goes_to_that_member(target: str) -> None:
    world = worlds()
    member = world.attempts[target]
    expected = {member.ofport if member.bridge == "wn1-br" else UPLINK}
    group = IPv6Address(int(IPv6Address("ff02::1:ff00:0")) | int(six(member)) & 0xFFFFFF)
    assert outputs(world, group, solicitation(six(member))) == expected
    assert outputs(world, six(member), solicitation(six(member))) == expected


@pytest.mark.parametrize("target", ["near", "far", "asker"])
@pytest.mark.parametrize("to", [*NO_JOB, "stranger"])
def test_a_solicitation_for_a_member_is_no_way_to_anybody_else(target: str, to: str) -> None:
    world = worlds()
    address = six(world.attempts[to]) if to in world.attempts else IPv6Address(to)
    assert outputs(world, address, solicitation(six(world.attempts[target]))) == set()


def test_a_solicitation_to_a_member_goes_to_that_member_whomever_it_asks_for() -> None:
    world = worlds()
    near, stranger = world.attempts["near"], world.attempts["stranger"]
    assert outputs(world, six(near), solicitation(six(stranger))) == {near.ofport}
    group = IPv6Address("ff02::1:ff14:143")
    assert outputs(world, group, solicitation(six(stranger))) == set()


def test_the_last_bits_of_a_member_behind_the_prefix_of_another_node_are_nobody() -> None:
    world = worlds()
    udp = {"nw_proto": IpProto.UDP, "nw_ttl": 64, "udp_src": 5000, "udp_dst": 6000}
    near, far = world.attempts["near"], world.attempts["far"]
    assert outputs(world, six(near), udp) == {near.ofport}
    assert outputs(world, six(far), udp) == {UPLINK}
    nobody = IPv6Address(int(IPv6Address("2001:db8:20:2::")) | int(near.ipv4))
    assert outputs(world, nobody, udp) == set()
