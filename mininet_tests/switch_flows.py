"""Flows of every kind that the controller can say, and many of them, for tests of the road to a switch and back."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from policies import decide as deciding
from policies.language import load_site, policy_from_text
from policies.model import Attempt, World
from policies.wire import Phase
from ryu_apps.openflow.compiler import lane_addresses
from ryu_apps.openflow.cookies import Feature, cookie
from ryu_apps.openflow.flows import (
    Action,
    ConnTrack,
    FieldMatch,
    Flow,
    FlowKey,
    Goto,
    Move,
    Normal,
    Output,
    OutputReg,
    SetField,
    match,
)

IPV4, IPV6, ARP = FieldMatch("dl_type", 0x0800), FieldMatch("dl_type", 0x86DD), FieldMatch("dl_type", 0x0806)
TCP, UDP = FieldMatch("nw_proto", 6), FieldMatch("nw_proto", 17)
ICMP, ICMPV6 = FieldMatch("nw_proto", 1), FieldMatch("nw_proto", 58)
NS, NA = FieldMatch("icmpv6_type", 135), FieldMatch("icmpv6_type", 136)
MAC, MAC_MASK = 0x026C0A140105, 0xFFFF00000000
ADDRESS, NET24 = 0x0A140105, 0xFFFFFF00
ADDRESS6, NET64 = 0x20010DB8002000000000000000000005, ((1 << 64) - 1) << 64


def matches() -> Iterator[tuple[FieldMatch, ...]]:
    """Every field, exact and masked where it may be, with what it needs."""
    yield ()
    yield (FieldMatch("in_port", 7),)
    yield (FieldMatch("in_port", 0xFFFE),)
    yield (FieldMatch("metadata", 0x1122334455667788),)
    yield (FieldMatch("metadata", 0x1100, 0xFF00),)
    for n in range(16):
        yield (FieldMatch(f"reg{n}", 0xDEAD0000 + n),)
        yield (FieldMatch(f"reg{n}", n << 8, 0xFF00),)
    yield tuple(FieldMatch(f"reg{n}", n, 0xFF) for n in range(16))
    yield (FieldMatch("dl_dst", MAC),)
    yield (FieldMatch("dl_dst", 0x010000000000, 0x010000000000),)
    yield (FieldMatch("dl_src", MAC),)
    yield (FieldMatch("dl_src", MAC & MAC_MASK, MAC_MASK),)
    for kind in (IPV4, IPV6, ARP, FieldMatch("dl_type", 0x88CC)):
        yield (kind,)
    yield (FieldMatch("vlan_tci", 0, 0x1FFF),)
    yield (FieldMatch("vlan_tci", 0x1000, 0x1000),)
    yield (FieldMatch("vlan_tci", 0x1064, 0x1FFF),)
    yield (FieldMatch("vlan_tci", 0x7064),)
    yield (FieldMatch("ct_state", 0x22, 0x23), IPV4)
    yield (FieldMatch("ct_state", 0x20, 0x20), IPV6)
    yield (IPV4, FieldMatch("nw_frag", 0))
    yield (IPV4, FieldMatch("nw_frag", 1, 1))
    yield (IPV6, FieldMatch("nw_frag", 3))
    yield (IPV6, FieldMatch("nw_frag", 2, 2))
    yield (IPV4, FieldMatch("nw_ttl", 64))
    yield (IPV6, FieldMatch("nw_ttl", 255))
    for name in ("nw_src", "nw_dst"):
        yield (IPV4, FieldMatch(name, ADDRESS))
        yield (IPV4, FieldMatch(name, ADDRESS & NET24, NET24))
        yield (IPV4, FieldMatch(name, 0x5, 0xFF))
    for name in ("ipv6_src", "ipv6_dst"):
        yield (IPV6, FieldMatch(name, ADDRESS6))
        yield (IPV6, FieldMatch(name, ADDRESS6 & NET64, NET64))
        yield (IPV6, FieldMatch(name, ADDRESS, 0xFFFFFFFF))
    for family in (IPV4, IPV6):
        yield (family, TCP)
        yield (family, UDP)
        for name, protocol in (("tcp_src", TCP), ("tcp_dst", TCP), ("udp_src", UDP), ("udp_dst", UDP)):
            yield (family, protocol, FieldMatch(name, 1094))
            yield (family, protocol, FieldMatch(name, 27000, 0xFFF8))
        yield (family, TCP, FieldMatch("tcp_flags", 0x010, 0x010))
        yield (family, TCP, FieldMatch("tcp_flags", 0x002, 0x012))
        yield (family, TCP, FieldMatch("tcp_flags", 0x010))
    yield (IPV4, ICMP, FieldMatch("icmp_type", 8))
    yield (IPV4, ICMP, FieldMatch("icmp_type", 3), FieldMatch("icmp_code", 4))
    yield (IPV6, ICMPV6, FieldMatch("icmpv6_type", 128))
    yield (IPV6, ICMPV6, FieldMatch("icmpv6_type", 1), FieldMatch("icmpv6_code", 4))
    yield (ARP, FieldMatch("arp_op", 1))
    for name in ("arp_spa", "arp_tpa"):
        yield (ARP, FieldMatch(name, ADDRESS))
        yield (ARP, FieldMatch(name, ADDRESS & NET24, NET24))
    for name in ("arp_sha", "arp_tha"):
        yield (ARP, FieldMatch(name, MAC))
        yield (ARP, FieldMatch(name, MAC & MAC_MASK, MAC_MASK))
    yield (IPV6, ICMPV6, NS, FieldMatch("nd_target", ADDRESS6))
    yield (IPV6, ICMPV6, NA, FieldMatch("nd_target", ADDRESS, 0xFFFFFFFF))
    yield (IPV6, ICMPV6, NS, FieldMatch("nd_sll", MAC))
    yield (IPV6, ICMPV6, NS, FieldMatch("nd_sll", MAC & MAC_MASK, MAC_MASK))
    yield (IPV6, ICMPV6, NA, FieldMatch("nd_tll", MAC))
    yield (IPV6, ICMPV6, NA, FieldMatch("nd_tll", 0, 0xFFFFFFFFFFFF ^ 1))


def actions() -> Iterator[tuple[tuple[FieldMatch, ...], tuple[Action, ...]]]:
    """Every action, with a match that it needs."""
    tcp4 = (IPV4, TCP)
    yield (), ()
    yield (), (Goto(9),)
    yield (), (Normal(),)
    yield (), (Output(1),)
    yield (), (Output(0xFFFE),)
    yield (), (Output(0xFFF8),)
    yield (), (OutputReg("reg5", 0, 16),)
    yield (), (OutputReg("reg11", 16, 16),)
    for n in range(16):
        yield (), (SetField(f"reg{n}", 0xFFFFFFFF, 0, 32), Goto(9))
        yield (), (SetField(f"reg{n}", n & 7, 4, 3), Goto(9))
    yield (), (SetField("reg2", 1, 31, 1), SetField("reg2", 0, 0, 1), SetField("reg3", 0x1234, 16, 16), Goto(9))
    yield (), (SetField("metadata", 0xAB, 0, 64), SetField("metadata", 0xAB, 8, 8), Goto(9))
    yield (
        (),
        (SetField("xxreg1", 1 << 127, 0, 128), SetField("xxreg1", 5, 64, 64), SetField("xreg2", 9, 0, 64), Goto(9)),
    )
    yield (), (SetField("dl_dst", MAC, 0, 48), SetField("dl_src", MAC & 0xFFFF, 0, 16), Normal())
    yield tcp4, (SetField("nw_dst", ADDRESS, 0, 32), SetField("tcp_dst", 80, 0, 16), Normal())
    yield (IPV4,), (SetField("ip_dscp", 34, 0, 6), Goto(9))
    yield (IPV6,), (SetField("ip_dscp", 0, 0, 6), Goto(9))
    yield (IPV6,), (Move("reg10", 16, "ipv6_label", 9, 9), Move("reg10", 25, "ipv6_label", 2, 6), Goto(9))
    yield (IPV6,), (SetField("ip_dscp", 8, 0, 6), Move("reg10", 25, "ipv6_label", 2, 6), Goto(9))
    yield (), (Move("in_port", 0, "reg6", 0, 16), Goto(9))
    yield (), (Move("reg0", 3, "reg12", 9, 17), Goto(9))
    yield (), (Move("dl_src", 0, "reg5", 0, 32), Move("dl_dst", 0, "xxreg3", 0, 48), Goto(9))
    yield (IPV4,), (Move("nw_src", 0, "reg4", 0, 32), Goto(9))
    yield (IPV6,), (Move("ipv6_src", 0, "reg4", 0, 32), Move("ipv6_dst", 0, "xxreg2", 0, 128), Goto(9))
    yield (ARP,), (Move("arp_spa", 0, "reg4", 0, 32), Move("arp_sha", 0, "reg5", 0, 32), Goto(9))
    yield (ARP,), (Move("arp_tpa", 0, "reg7", 0, 32), Goto(9))
    yield (IPV6, ICMPV6, NA), (Move("nd_target", 0, "reg6", 0, 32), Move("nd_tll", 0, "reg5", 0, 32), Goto(9))
    yield (IPV6, ICMPV6, NS), (Move("nd_sll", 0, "reg5", 0, 32), Goto(9))
    yield tcp4, (Move("tcp_flags", 0, "reg5", 0, 12), Goto(9))
    yield (IPV4,), (ConnTrack(commit=False, zone_field="reg8", zone_low=0, recirc_table=9),)
    yield (IPV6,), (ConnTrack(commit=True, zone_field="reg8", zone_low=16, recirc_table=None), Goto(9))
    yield tcp4, (ConnTrack(commit=True, zone_field="reg8", zone_low=0, recirc_table=None), OutputReg("reg9", 0, 16))


def every_kind() -> dict[FlowKey, Flow]:
    """About 170 flows: each match and each action at least once, priorities from 1 to 65535."""
    flows: list[Flow] = []
    for number, fields in enumerate(matches(), 1):
        flows.append(Flow(2, number, match(*fields), (Goto(9),), cookie(Feature.SERVICE, number)))
    for number, (fields, acts) in enumerate(actions(), 1):
        flows.append(Flow(3, number, match(*fields), acts, cookie(Feature.ATTEMPT, (1 << 48) - number)))
    flows.append(Flow(253, 65535, (), (), cookie(Feature.PIPELINE, 1)))
    return {flow.key: flow for flow in flows}


def attempt(number: int, table: int = 5) -> Flow:
    """A small flow of one attempt."""
    fields = match(FieldMatch("in_port", number))
    return Flow(table, 200, fields, (SetField("reg0", number, 0, 32), Goto(table + 1)), cookie(Feature.ATTEMPT, number))


def impossible(number: int = 1) -> Flow:
    """A flow that can be written and that Open vSwitch refuses: it goes backwards."""
    return Flow(5, 300, match(FieldMatch("in_port", number)), (Goto(4),), cookie(Feature.ATTEMPT, 900 + number))


SITE = """\
site: bench
network: {ipv4: 10.0.0.0/8, gateway-ipv4: 10.255.0.1}
nodes:
  wn1: {bridge: BRIDGE, ipv4: 10.64.0.0/12}
bridges:
  BRIDGE: {datapath-id: "1", roles: [worker], ports: {uplink: [up0]}}
"""
POLICY = """\
services: {files: {hosts: [192.0.2.5], ports: [tcp/1094], protected: true}}
attributes: {LarkSlice: {type: string}}
groups: {physics: 'LarkGroup =?= "physics"', asks: 'LarkSlice =!= undefined'}
grants: [{for: physics, to: files, trust-user: true}]
slices: [{for: asks, name: LarkSlice}]
"""


def worker_world(bridge: str, count: int) -> World:
    """A worker bridge with so many flows, or a few more: every second attempt is granted a service, every tenth is in a
    slice of some ten."""
    policy = policy_from_text(POLICY)
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "site.yaml"
        file.write_text(SITE.replace("BRIDGE", bridge))
        site = load_site(file)
    ads: list[dict[str, object]] = [{"LarkGroup": "physics"}, {}]
    outcomes = [deciding.decide(policy, "wn1", ad, {}, Phase.RUN).outcome for ad in ads]
    attempts = {}
    for number in range(1, count // 6 + 1):
        ipv4 = site.nodes["wn1"].ipv4[number]
        mac, ipv6 = lane_addresses(site, "wn1", ipv4)
        attempts[f"a{number}"] = Attempt(
            id=f"a{number}", number=number, node="wn1", bridge=bridge, port_name=f"lj{number}", ofport=100 + number,
            mac=mac, ipv4=ipv4, ipv6=ipv6, zone=1000 + number, phase=Phase.RUN, outcome=outcomes[number % 2],
            slice=None if number % 10 else f"slice{number // 100}",
        )  # fmt: skip
    return World(
        site=site,
        policy=policy,
        ports={bridge: {"up0": 1}},
        service_numbers={"files": 1},
        node_numbers={"wn1": 1},
        identities={outcome: n for n, outcome in enumerate(outcomes, 1)},
        slice_numbers={f"slice{n}": n + 1 for n in range(1 + count // 600)},
        attempts=attempts,
        # What these flows are compared with is ovs-ofctl's, which sets no meters beside them.
        meterless=frozenset({bridge}),
    )
