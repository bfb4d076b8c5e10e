"""Borders: golden flows, what they cost, which jobs they know, what they let pass whatever is being changed."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.border import Direction, class_at_border, judge_at_border, knows
from policies.language import policy_from_text
from policies.model import Bridge, Outcome, Place, Policy, PortKind, Role, Verdict, WanPort, World
from policies.semantics import Fragment, Packet, Transport, class_of
from ryu_apps.openflow import compiler, explain
from ryu_apps.openflow.cookies import Feature
from ryu_apps.openflow.fields import EtherType, IpProto
from ryu_apps.openflow.flows import Flow, FlowKey
from ryu_apps.openflow.simulate import Result, SimulatedSwitch, Special
from ryu_apps.openflow.text import flows_text
from tests.cases import UPLINK, WAN, world_of
from tests.drawn import ROUTER_MAC, Dice, Table, draw_policy, draw_world
from tests.effort import examples
from tests.judges import Hop, frame
from tests.worlds import demo_site, world

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "feature-border-edge-br.flows"
POLICY = """
services:
  fileserver: {hosts: [10.20.0.5], ports: [tcp/1094], protected: true}
  xrootd: {ports: [tcp/1094-1095]}
  storage: {hosts: [10.20.0.6, "2001:db8:20::6"], ports: [tcp/2880, icmp]}
groups:
  production: 'LarkGroup =?= "production"'
  cms: 'identicalMember(LarkGroup, {"production", "cms"})'
  monitored: 'LarkGroup =?= "cms"'
networks: {desk: [10.9.1.0/24]}
expose: [{for: monitored, ports: [tcp/9100], to: [desk]}]
classes:
  - {name: production, dscp: af41, guarantee: 50%}
  - {name: transfers, dscp: af31, guarantee: 30%}
  - {name: osg, dscp: cs1}
classify:
  - {for: production, class: production}
  - {for: cms, service: storage, class: production}
  - {service: xrootd, class: transfers}
  - {class: osg}
"""
PRODUCTION: dict[str, object] = {"LarkGroup": "production"}
CMS: dict[str, object] = {"LarkGroup": "cms"}
OTHER: dict[str, object] = {}
SEALED: dict[str, object] = {"LarkNetwork": "none"}
OUTSIDE4, OUTSIDE6 = IPv4Address("198.51.100.7"), IPv6Address("2a00::7")
SERVER = IPv4Address("10.20.0.9")


def edge(*wans: str) -> Bridge:
    ports = {"up0": PortKind.UPLINK, **dict.fromkeys(wans, PortKind.WAN)}
    wan = {name: WanPort(50_000_000, 48_000_000) for name in wans}
    return Bridge("edge-br", 0xC1, frozenset({Role.BORDER}), ports, (), Place("site.yaml", 1), wan=wan)


def bordered(
    jobs: Iterable[dict[str, object]] = (PRODUCTION, CMS, OTHER), text: str = POLICY, wans: tuple[str, ...] = ("wan0",)
) -> World:
    site = demo_site()
    site = replace(site, bridges={**site.bridges, "edge-br": edge(*wans)})
    found = world(list(jobs), policy_from_text(text), site)
    numbers = {"up0": UPLINK, **{name: WAN + n for n, name in enumerate(wans)}}
    return replace(found, ports={**found.ports, "edge-br": numbers})


def send(here: World, in_port: int, packet: Packet, dscp: int = 46) -> Result:
    switch = SimulatedSwitch(compiler.desired_flows(here, "edge-br").values(), lambda zone: 0)
    return switch.send(frame(Hop("edge-br", in_port, packet, dscp)))


def packet(
    source: IPv4Address | IPv6Address, source_port: int, destination: IPv4Address | IPv6Address, port: int
) -> Packet:
    return Packet(None, ROUTER_MAC, source, destination, Transport.TCP, source_port, port)


def test_the_flows_of_a_border_are_the_reviewed_ones() -> None:
    """Regenerate with LARK_REGENERATE_GOLDEN=1, then read the difference."""
    text = flows_text(compiler.desired_flows(bordered(), "edge-br").values())
    if os.environ.get("LARK_REGENERATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_every_cookie_of_a_border_leads_to_something_of_today() -> None:
    here = bordered()
    told = {explain.meaning(here, f.cookie) for f in compiler.desired_flows(here, "edge-br").values()}
    assert not [text for text in told if "number" in text or "has ended" in text]
    assert {"attempt job1 on wn1", "class transfers (policy.yaml:19)", "standing rule: border"} <= told


@pytest.mark.parametrize("entered", [UPLINK, WAN], ids=["leaving", "coming in"])
def test_traffic_has_its_class_by_job_by_service_or_the_last(entered: int) -> None:
    """Each in both directions: at the far end of the site's side stands whoever is outside."""
    here = bordered()
    job1, job2, job3 = (here.attempts[f"job{n}"] for n in (1, 2, 3))
    wanted = [
        (job1.ipv4, 40000, OUTSIDE4, 80, "production"),
        (job1.ipv6, 40000, OUTSIDE6, 80, "production"),
        (job1.ipv4, 40000, OUTSIDE4, 1094, "production"),
        (job2.ipv4, 40000, OUTSIDE4, 1094, "transfers"),
        (job2.ipv6, 40000, OUTSIDE6, 1095, "transfers"),
        (job2.ipv4, 40000, OUTSIDE4, 1096, "osg"),
        (job3.ipv4, 40000, OUTSIDE4, 1094, "transfers"),
        (job3.ipv6, 40000, OUTSIDE6, 443, "osg"),
        # A job that speaks from a service's port is not that service.
        (job3.ipv4, 1094, OUTSIDE4, 40000, "osg"),
        # Without a job, a service at either end: the site's server, and one outside.
        (SERVER, 1094, OUTSIDE4, 40000, "transfers"),
        (SERVER, 40000, OUTSIDE4, 1095, "transfers"),
        (SERVER, 2880, OUTSIDE4, 40000, "osg"),
        (SERVER, 22, OUTSIDE4, 40000, "osg"),
    ]
    for at_site, site_port, outside, port, name in wanted:
        assert at_site is not None
        there = packet(at_site, site_port, outside, port)
        if entered == WAN:
            there = packet(outside, port, at_site, site_port)
        found = class_at_border(here, there, Direction.OUTWARD if entered == UPLINK else Direction.INWARD)
        assert found is not None
        assert found.name == name, there
        done = send(here, entered, there)
        assert (done.outputs, done.left["ip_dscp"]) == ({WAN if entered == UPLINK else UPLINK}, found.dscp), there


def test_what_a_job_sends_is_of_one_class_at_its_node_and_at_the_border() -> None:
    here = bordered()
    for job in here.attempts.values():
        for port in (80, 1094, 2880):
            sent = packet(job.ipv4, 1094, OUTSIDE4, port)
            assert class_of(here, replace(sent, sender=job.id)) == class_at_border(here, sent, Direction.OUTWARD)


def test_a_jobs_address_from_outside_is_dropped_and_nothing_else() -> None:
    here = bordered()
    job = here.attempts["job1"]
    assert job.ipv6 is not None
    for source, target in ((job.ipv4, SERVER), (job.ipv6, IPv6Address("2001:db8:20::9")), (job.ipv4, job.ipv4)):
        forged = packet(source, 40000, target, 80)
        assert send(here, WAN, forged).outputs == frozenset()
        assert judge_at_border(here, forged, Direction.INWARD).verdict is Verdict.DROP
        assert send(here, UPLINK, forged).outputs == {WAN}
    (dropped,) = send(here, WAN, packet(job.ipv4, 1, SERVER, 1)).trail
    assert explain.meaning(here, dropped.cookie) == "standing rule: forbidden frames"
    for source in (SERVER, OUTSIDE4, IPv4Address("10.20.1.1")):
        assert send(here, WAN, packet(source, 40000, job.ipv4, 80)).outputs == {UPLINK}


def test_a_jobs_mac_from_outside_is_dropped_and_another_sites_is_not() -> None:
    here = bordered()
    switch = SimulatedSwitch(compiler.desired_flows(here, "edge-br").values(), lambda zone: 0)
    job = here.attempts["job1"]
    others = 0x026C << 32 | int(IPv4Address("10.99.1.65"))
    fields = (
        arp(SERVER) | {"arp_sha": ROUTER_MAC},
        {"dl_type": 0x88CC},
        {"dl_type": EtherType.IPV4, "nw_src": int(OUTSIDE4), "nw_dst": int(SERVER), "nw_proto": 6, "nw_frag": 0}
        | {"tcp_src": 1, "tcp_dst": 2, "ip_dscp": 0},
    )
    for one in fields:
        for mac, passes in ((job.mac, False), (ROUTER_MAC, True), (others, True)):
            assert bool(switch.send({"in_port": WAN, "dl_src": mac, **one}).outputs) is passes, (hex(mac), one)
        assert switch.send({"in_port": UPLINK, "dl_src": job.mac, **one}).outputs == {WAN}
    told = solicitation("ff02::1", kind=136)
    for field, sent in (("arp_sha", arp(SERVER)), ("nd_tll", told)):
        for mac, passes in ((job.mac, False), (ROUTER_MAC, True)):
            assert bool(switch.send({"in_port": WAN, "dl_src": ROUTER_MAC, **sent, field: mac}).outputs) is passes
    for mac, verdict in ((job.mac, Verdict.DROP), (ROUTER_MAC, Verdict.ALLOW), (others, Verdict.ALLOW)):
        sent = replace(packet(OUTSIDE4, 1, SERVER, 2), mac=mac)
        assert judge_at_border(here, sent, Direction.INWARD).verdict is verdict
        assert judge_at_border(here, sent, Direction.OUTWARD).verdict is Verdict.ALLOW


@pytest.mark.parametrize("entered", [UPLINK, WAN], ids=["leaving", "coming in"])
@pytest.mark.parametrize("family", [EtherType.IPV4, EtherType.IPV6], ids=str)
def test_what_no_code_point_can_be_written_into_does_not_pass_with_its_senders(entered: int, family: int) -> None:
    """Open vSwitch shows protocol 0 and no addresses where it cannot read the headers."""
    switch = SimulatedSwitch(compiler.desired_flows(bordered(), "edge-br").values(), lambda zone: 0)
    source, destination = ("nw_src", "nw_dst") if family == EtherType.IPV4 else ("ipv6_src", "ipv6_dst")
    sent = {"in_port": entered, "dl_type": family, source: 0, destination: 0, "nw_frag": 0, "ip_dscp": 34}
    assert switch.send({**sent, "nw_proto": 0}).outputs == frozenset()
    done = switch.send({**sent, "nw_proto": 253})
    assert done.outputs == {WAN if entered == UPLINK else UPLINK}
    assert done.left["ip_dscp"] != 34


def arp(spa: IPv4Address) -> dict[str, int]:
    return {"dl_type": EtherType.ARP, "arp_op": 1, "arp_spa": int(spa), "arp_tpa": int(SERVER)}


def solicitation(destination: str, ttl: int = 255, kind: int = 135, target: str = "2001:db8:20::9") -> dict[str, int]:
    return {
        "dl_type": EtherType.IPV6,
        "ipv6_src": int(IPv6Address("fe80::1")),
        "ipv6_dst": int(IPv6Address(destination)),
        "nw_proto": IpProto.ICMPV6,
        "nw_ttl": ttl,
        "icmpv6_type": kind,
        "nd_target": int(IPv6Address(target)),
        "ip_dscp": 63,
        "nw_frag": 0,
    }


def test_neighbours_find_each_other_before_all_other_traffic_and_never_past_a_router() -> None:
    here = bordered()
    switch = SimulatedSwitch(compiler.desired_flows(here, "edge-br").values(), lambda zone: 0)
    ethernet = {"dl_src": ROUTER_MAC, "dl_dst": ROUTER_MAC}

    def passed(in_port: int, fields: dict[str, int]) -> tuple[frozenset[int | Special], int]:
        done = switch.send({"in_port": in_port, **ethernet, **fields})
        return done.outputs, done.left["ip_dscp"]

    for in_port, other in ((UPLINK, WAN), (WAN, UPLINK)):
        assert passed(in_port, arp(SERVER)) == ({other}, 0)
        assert passed(in_port, {"dl_type": 0x88CC}) == ({other}, 0)
        for link in ("ff02::1:ff00:9", "fe80::9", "2001:db8:20::9"):
            assert passed(in_port, solicitation(link)) == ({other}, 34)
        # To anywhere else, or with a hop behind it, it is traffic like any other.
        assert passed(in_port, solicitation("2a00::7")) == ({other}, 8)
        assert passed(in_port, solicitation("ff02::1", ttl=64)) == ({other}, 8)
    job = here.attempts["job1"]
    assert job.ipv6 is not None
    assert passed(WAN, arp(job.ipv4))[0] == frozenset()
    assert passed(UPLINK, arp(job.ipv4))[0] == {WAN}
    taken = solicitation("ff02::1", kind=136, target=str(job.ipv6))
    assert passed(WAN, taken)[0] == frozenset()
    assert passed(WAN, solicitation("ff02::1", kind=136, target="::"))[0] == frozenset()
    assert passed(WAN, solicitation("ff02::1", kind=136))[0] == {UPLINK}


def test_later_fragments_are_of_their_jobs_class_but_of_no_service() -> None:
    here = bordered()
    for job, dscp in (("job1", 34), ("job2", 8)):
        later = replace(packet(here.attempts[job].ipv4, 0, OUTSIDE4, 0), fragment=Fragment.LATER)
        assert send(here, UPLINK, later).left["ip_dscp"] == dscp
    first = replace(packet(here.attempts["job2"].ipv4, 40000, OUTSIDE4, 1094), fragment=Fragment.FIRST)
    assert send(here, UPLINK, first).left["ip_dscp"] == 26


def test_a_policy_without_classes_passes_everything_on_as_it_was() -> None:
    here = bordered(text="services: {fileserver: {hosts: [10.20.0.5], ports: [tcp/1094], protected: true}}\n")
    done = send(here, UPLINK, packet(SERVER, 1, OUTSIDE4, 2), dscp=46)
    assert (done.outputs, done.left["ip_dscp"]) == ({WAN}, 46)
    forged = send(here, WAN, packet(here.attempts["job1"].ipv4, 1, SERVER, 2))
    assert forged.outputs == frozenset()


def test_with_several_wan_ports_the_bridge_learns_who_is_where() -> None:
    here = bordered(wans=("wan0", "wan1"))
    for in_port in (UPLINK, WAN, WAN + 1):
        assert send(here, in_port, packet(SERVER, 1, OUTSIDE4, 1094)).outputs == {Special.NORMAL}
    forged = packet(here.attempts["job1"].ipv4, 1, SERVER, 2)
    assert send(here, WAN + 1, forged).outputs == frozenset()


@pytest.mark.parametrize("missing", ["up0", "wan0"])
def test_a_border_without_one_of_its_sides_has_no_flows(missing: str) -> None:
    here = bordered()
    left = {name: n for name, n in here.ports["edge-br"].items() if name != missing}
    gone = replace(here, ports={**here.ports, "edge-br": left})
    assert compiler.base_flows(gone, "edge-br") == []
    assert compiler.base_flows(here, "edge-br") != []


# --- which jobs it knows ----------------------------------------------------------------------------------------------


def test_a_job_costs_one_flow_on_a_border_if_its_class_can_differ_and_none_otherwise() -> None:
    before = compiler.desired_flows(bordered([]), "edge-br")
    for jobs, cost in (([OTHER], 0), ([SEALED], 0), ([PRODUCTION], 1), ([CMS], 1), ([PRODUCTION, CMS] * 20, 40)):
        here = bordered(jobs)
        after = compiler.desired_flows(here, "edge-br")
        assert before.items() <= after.items()
        assert len(after) - len(before) == cost
        known = [a for a in here.attempts.values() if "edge-br" in compiler.bridges_of(here, a)]
        assert len(known) == cost
        parts = [f for a in known for f in compiler.attempt_flows(here, "edge-br", a)]
        assert {f.key: f for f in parts} == dict(after.items() - before.items())


KNOWN = [
    ("[{for: g, class: a}, {class: b}]", True),
    ("[{for: g, service: s, class: a}]", True),
    ("[{for: g, class: b}]", False),  # what no rule names is of the last class, too
    ("[{service: s, class: a}, {for: g, service: s, class: b}]", False),
    ("[{class: a}, {for: g, class: b}]", False),
    ("[{for: g, service: s, class: b}, {service: t, class: a}]", True),  # s and t may have ports in common
    ("[{for: g, class: b}, {service: t, class: a}]", True),
    ("[{for: other, class: a}]", False),
    ("[{for: g, service: s, class: a}, {class: a}]", False),
]


@pytest.mark.parametrize(("rules", "known"), KNOWN, ids=[rules for rules, _ in KNOWN])
def test_a_border_knows_a_job_only_if_some_packet_of_its_can_be_of_another_class(rules: str, known: bool) -> None:
    policy = policy_from_text(
        "services: {s: {ports: [tcp/1]}, t: {ports: [tcp/2]}}\n"
        "groups: {g: 'Owner =?= \"a\"', other: 'Owner =?= \"b\"'}\n"
        f"classes: [{{name: a, dscp: 1}}, {{name: b, dscp: 2}}]\nclassify: {rules}\n"
    )
    assert knows(policy, Outcome(False, frozenset(), groups=frozenset({"g"}))) is known
    assert not knows(policy, Outcome(True, frozenset(), groups=frozenset({"g"})))
    assert not knows(policy, Outcome(False, frozenset()))


def many(hosts: int, ports: int) -> Policy:
    served = ", ".join(str(IPv4Address((10 << 24) + (30 << 16) + n)) for n in range(hosts))
    offered = ", ".join(f"tcp/{1 + 2 * n}" for n in range(ports))
    return policy_from_text(
        "services:\n  fileserver: {hosts: [10.20.0.5], ports: [tcp/1094], protected: true}\n"
        f"  files: {{hosts: [{served}], ports: [{offered}]}}\n"
        "classes: [{name: first, dscp: 10}, {name: rest, dscp: 0}]\n"
        "classify: [{service: files, class: first}]\n"
    )


def test_hosts_and_ports_of_classified_services_add_up_and_never_multiply() -> None:
    here = bordered([])

    def cost(hosts: int, ports: int) -> int:
        policy = many(hosts, ports)
        numbers = {name: n for n, name in enumerate(policy.services, 1)}
        return len(compiler.desired_flows(replace(here, policy=policy, service_numbers=numbers), "edge-br"))

    small = cost(1, 1)
    # For a host one flow at either end; for a range of ports one at either end in each family.
    assert cost(1000, 1) - small == 2 * 999
    assert cost(1, 1000) - small == 4 * 999
    assert cost(1000, 1000) - small == 2 * 999 + 4 * 999


# --- changes ----------------------------------------------------------------------------------------------------------


def changes(old: dict[FlowKey, Flow], new: dict[FlowKey, Flow]) -> list[tuple[FlowKey, Flow | None]]:
    changed: list[tuple[FlowKey, Flow | None]] = [(k, f) for k, f in new.items() if old.get(k) != f]
    return changed + [(key, None) for key in old if key not in new]


@settings(max_examples=examples(100), deadline=None)
@given(st.integers(0, 2**64 - 1))
def test_a_change_of_policy_and_jobs_flow_by_flow_in_any_order_stops_nothing(seed: int) -> None:
    dice = Dice(random.Random(seed).randrange)
    case = draw_world(dice)
    while "edge-br" not in case.site:
        case = draw_world(dice)
    before = world_of(case)
    # Another policy, for which the services that the site's gate guards need not exist, and without some of the jobs.
    text, _ = draw_policy(dice, list(before.site.nodes))
    site = case.site.split("guards: [")[0] + "guards: []}" + case.site.split("guards: [")[1].partition("}")[2]
    left = MappingProxyType(dict(list(case.jobs.items())[dice.upto(1) :]))
    after = world_of(replace(case, policy=text, site=site, jobs=left))
    table = Table(before)
    wans = [n for name, n in before.ports["edge-br"].items() if name != "up0"]
    packets = []
    for _ in range(10):
        source, destination = (dice.pick(table.anybody[4]) for _ in range(2))
        sent = packet(source, dice.pick((1094, 40000, 80)), destination, dice.pick((1094, 1095, 80)))
        packets.append((dice.pick((UPLINK, *wans)), sent))
    flows = dict(compiler.desired_flows(before, "edge-br"))
    steps = changes(flows, compiler.desired_flows(after, "edge-br"))
    random.Random(seed).shuffle(steps)
    expected = [_outputs(before, in_port, sent) for in_port, sent in packets]
    for key, flow in [*steps[:1], *steps]:
        switch = SimulatedSwitch(flows.values(), lambda zone: 0)
        found = [switch.send(frame(Hop("edge-br", in_port, sent, 0))).outputs for in_port, sent in packets]
        assert found == expected
        flows.pop(key, None)
        if flow is not None:
            flows[key] = flow
    assert flows == compiler.desired_flows(after, "edge-br")


def _outputs(here: World, in_port: int, sent: Packet) -> frozenset[int | Special]:
    direction = Direction.OUTWARD if in_port == UPLINK else Direction.INWARD
    if judge_at_border(here, sent, direction).verdict is Verdict.DROP:
        return frozenset()
    if len(here.site.bridges["edge-br"].wan) > 1:
        return frozenset({Special.NORMAL})
    return frozenset({WAN if in_port == UPLINK else UPLINK})


def test_a_new_class_changes_flows_of_classes_only() -> None:
    before = bordered()
    more = POLICY.replace("  - {name: osg", "  - {name: bulk, dscp: 3}\n  - {name: osg")
    after = bordered(text=more.replace("- {class: osg}", "- {for: cms, class: bulk}\n  - {class: osg}"))
    changed = changes(compiler.desired_flows(before, "edge-br"), compiler.desired_flows(after, "edge-br"))
    assert changed
    names = {compiler.desired_flows(after, "edge-br").get(key, flow) for key, flow in changed}
    assert {Feature((f.cookie >> 48) & 0xFF) for f in names if f is not None} <= {Feature.CLASSIFY, Feature.PIPELINE}
    tables = {key.table for key, _ in changed}
    assert tables <= {56, 57}
