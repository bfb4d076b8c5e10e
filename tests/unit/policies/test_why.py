"""Why: every kind of verdict explained over the whole way, with lines and flows (tests/golden/why.txt)."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

from hypothesis import given, settings

from policies.border import Direction, judge_at_border
from policies.decide import decide
from policies.model import PortKind, Role, Verdict, World
from policies.path import path
from policies.remarks import Known
from policies.semantics import Packet, Step, Transport, judge, judge_at_gate
from policies.why import journey, why
from ryu_apps.openflow.compiler import desired_flows
from ryu_apps.openflow.explain import frame, hop_carried_out, meaning, origin, why_lines
from ryu_apps.openflow.fields import CtState
from ryu_apps.openflow.flows import Cookie
from ryu_apps.openflow.pipeline import Table
from ryu_apps.openflow.simulate import SimulatedSwitch
from tests.cases import Case, Job, Sent, packet_text, packet_words, policy_of, read_case, world_of
from tests.drawn import cases
from tests.effort import examples

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
CASE = read_case((GOLDEN / "why.yaml").read_text())
WORLD = world_of(CASE)


def known(case: Case) -> dict[str, Known]:
    policy = policy_of(case.policy)

    def of(job: Job) -> Known:
        return Known(decide(policy, job.node, job.ad, {}, job.phase), job.ad)

    return {name: of(job) for name, job in case.jobs.items() if name in world_of(case).attempts}


def packet_of(world: World, sent: Sent) -> Packet:
    sender = next((a.id for a in world.attempts.values() if (a.bridge, a.ofport) == (sent.bridge, sent.in_port)), None)
    return Packet(
        sender, sent.mac, sent.source, sent.destination, sent.transport, sent.source_port, sent.destination_port,
        sent.ack, sent.tracked, sent.fragment,
    )  # fmt: skip


def explained() -> str:
    jobs = known(CASE)
    told = ["What why.yaml's packets meet, and why.", ""]
    for sent in CASE.packets:
        told += [f"## {packet_words(WORLD, sent)}", f"# {packet_text(sent)}"]
        told += [*why_lines(WORLD, packet_of(WORLD, sent), jobs), ""]
    # Priorities and numbers of standing rules are the pipeline's own affair, and tested with it.
    return re.sub(r" priority \d+ cookie 0x[0-9a-f]{16}:", ":", "\n".join(told))


if os.environ.get("LARK_REGENERATE_GOLDEN"):
    (GOLDEN / "why.txt").write_text(explained())


def test_every_explanation_is_the_one_written_down() -> None:
    assert explained() == (GOLDEN / "why.txt").read_text()


def test_the_golden_explanations_decide_at_every_step_and_in_both_directions() -> None:
    stages = []
    for sent in CASE.packets:
        there, back = journey(WORLD, packet_of(WORLD, sent))
        stages += [*there.stages, *(back.stages if back else ())]
    decided = {stage.explanation.judgement.step for stage in stages}
    assert decided == set(Step)
    assert {stage.hop.entered for stage in stages} == {None, *PortKind}


def test_every_rule_that_is_named_is_a_line_of_the_policy() -> None:
    text = (GOLDEN / "why.txt").read_text()
    policy = CASE.policy.splitlines()
    for name, words in (("grants fileserver to group physics", "{for: physics, to: fileserver"),
                        ("exposes tcp/22 of group matlab", "{for: matlab, ports: [tcp/22]"),
                        ("gives slices to group asks", "{for: asks, name: LarkSlice}")):  # fmt: skip
        lines = {line.strip().split(":")[1] for line in text.splitlines() if f": {name}" in line}
        assert lines
        assert all(words in policy[int(line) - 1] for line in lines), (name, lines)


@settings(max_examples=examples(40), deadline=None)
@given(cases(packets=4, each_choice=False))
def test_on_any_way_every_bridge_judges_and_its_flows_do_what_is_said(drawn: tuple[Case, World]) -> None:
    case, world = drawn
    jobs = known(case)
    for sent in case.packets:
        packet = packet_of(world, sent)
        there, back = journey(world, packet, jobs)
        for way in (there, back):
            if way is None:
                continue
            assert way.lines()
            for stage in way.stages:
                hop, judgement = stage.hop, stage.explanation.judgement
                if hop.role is Role.BORDER:
                    assert hop.entered is not None
                    assert judgement == judge_at_border(world, hop.packet, Direction.of(hop.entered))
                elif hop.role is Role.GATE:
                    assert hop.entered is not None
                    assert judgement == judge_at_gate(world, world.site.bridges[hop.bridge], hop.packet, hop.entered)
                else:
                    assert judgement == judge(world, hop.packet)
                met = hop_carried_out(world, hop, jobs)
                assert met, "a bridge with its ports has flows for every packet"
                assert all(carried.meaning for carried in met)
                in_port = world.attempts[hop.packet.sender].ofport if hop.packet.sender else None
                if in_port is not None:  # with every other job there, it meets the same flows
                    whole = carried_whole(world, hop.bridge, hop.packet, in_port)
                    assert [c.flow for c in met] == whole
        if there.verdict is Verdict.ALLOW and there.stages and there.stages[0].hop.entered is None:
            last = hop_carried_out(world, there.stages[0].hop, jobs)[-1]
            assert last.table in (Table.OUT, Table.DELIVER, Table.SHARE_IN)


def test_cookies_lead_to_rules_lines_and_attempts() -> None:
    jobs = known(CASE)
    by_feature = {"attempt": 0x07, "identity": 0x06, "service": 0x05, "expose": 0x09, "classify": 0x0A, "hosts": 0x08}

    def of(feature: str, number: int) -> tuple[str, list[int], tuple[str, ...]]:
        found = origin(WORLD, Cookie(0x4C << 56 | by_feature[feature] << 48 | number), jobs)
        return found.text, [place.line for place in found.places], found.attempts

    number = WORLD.identities[WORLD.attempts["physics"].outcome]
    assert of("identity", number) == (
        f"identity {number} (1 attempt): may reach fileserver (policy.yaml:19)", [19], ("physics",)
    )  # fmt: skip
    assert of("attempt", 1) == ("attempt physics on wn1", [19, 25], ("physics",))
    assert of("expose", 1) == ("what jobs of group bio serve (policy.yaml:28)", [28], ("bio1", "bio2"))
    assert of("classify", 1) == ("class fast (policy.yaml:23)", [23], ("late", "physics"))
    assert of("expose", 3)[0] == "rule 3 of expose, which the policy no longer has"
    assert of("classify", 0)[0] == "rule 0 of classify, which the policy no longer has"
    assert of("hosts", 0x4000_0000)[1] == [4, 5]
    assert of("identity", 99) == ("identity 99, which nobody has any more", [], ())
    assert meaning(WORLD, Cookie(0x4C03000000000004)) == "refusals for reason no-grant"


def test_the_bridges_of_a_way() -> None:
    def hops(line: int) -> list[tuple[str, Role, PortKind | None]]:
        return [(h.bridge, h.role, h.entered) for h in path(WORLD, packet_of(WORLD, CASE.packets[line]))]

    worker, gate = ("wn1-br", Role.WORKER, None), ("gate-br", Role.GATE, PortKind.WORKER_FACING)
    assert hops(0) == [worker, gate]
    assert hops(10) == [worker, ("wn2-br", Role.WORKER, PortKind.UPLINK)]
    assert hops(12) == [worker], "two jobs of one bridge meet it once"
    border, inward = ("edge-br", Role.BORDER, PortKind.UPLINK), ("edge-br", Role.BORDER, PortKind.WAN)
    assert hops(22) == [worker, border]
    assert hops(21) == [worker], "infrastructure is not outside"
    assert hops(25) == [inward, ("wn1-br", Role.WORKER, PortKind.UPLINK)]
    assert hops(-1) == [inward, ("gate-br", Role.GATE, PortKind.UPLINK)]
    without = {name: bridge for name, bridge in WORLD.site.bridges.items() if name != "edge-br"}
    alone = replace(WORLD, site=replace(WORLD.site, bridges=without))
    assert [h.bridge for h in path(alone, packet_of(WORLD, CASE.packets[22]))] == ["wn1-br"]
    both = replace(WORLD.site, bridges={**WORLD.site.bridges, "other": WORLD.site.bridges["edge-br"]})
    ways = path(replace(WORLD, site=both), packet_of(WORLD, CASE.packets[22]))
    assert [h.bridge for h in ways] == ["wn1-br"], "of two borders nobody knows which it takes"
    server = replace(packet_of(WORLD, CASE.packets[0]), sender=None, source=CASE.packets[0].destination,
                     destination=CASE.packets[0].source)  # fmt: skip
    assert [h.entered for h in path(WORLD, server)] == [PortKind.SERVER_FACING, PortKind.UPLINK]


def test_networks_inside_are_not_over_the_border() -> None:
    def bridges(source: str, destination: str, world: World = WORLD) -> list[str]:
        ends = (ip_address(source), ip_address(destination))
        return [h.bridge for h in path(world, Packet(None, 0, *ends, Transport.TCP, 40000, 22))]

    assert bridges("10.20.1.65", "10.6.0.1") == ["wn1-br"]
    assert bridges("10.6.0.1", "10.20.0.5") == ["gate-br"]
    assert bridges("10.6.0.1", "8.8.8.8") == ["edge-br"]
    without = replace(WORLD, site=replace(WORLD.site, inside=()))
    assert bridges("10.20.1.65", "10.6.0.1", without) == ["wn1-br", "edge-br"]
    assert bridges("10.6.0.1", "10.20.0.5", without) == ["edge-br", "gate-br"]
    far = replace(WORLD.site.nodes["wn1"], host_networks=(ip_network("10.5.0.1"),))
    here = replace(WORLD, site=replace(WORLD.site, nodes={**WORLD.site.nodes, "wn1": far}))
    assert bridges("10.20.1.65", "10.5.0.1", here) == ["wn1-br"], "a node's host is inside wherever its address is"
    assert bridges("10.20.1.65", "10.5.0.1") == ["wn1-br", "edge-br"]


def test_of_a_machine_that_no_service_names_it_is_said_that_a_gate_could_be_before_it() -> None:
    def told(destination: str, world: World = WORLD) -> list[str]:
        packet = Packet("physics", WORLD.attempts["physics"].mac, WORLD.attempts["physics"].ipv4,
                        ip_address(destination), Transport.TCP, 40000, 22)  # fmt: skip
        return [line for line in why_lines(world, packet) if "the files do not say" in line]

    assert len(told("10.20.0.77")) == 1
    assert "whether 10.20.0.77 is behind gate gate-br" in told("10.20.0.77")[0]
    assert len(told("10.6.0.1")) == 1, "a machine of another network of the site could be, too"
    known = ("10.20.0.1", "10.20.0.7", "10.20.1.1", "10.20.1.66", "8.8.8.8", "224.0.0.5")
    assert {host: told(host) for host in known} == {host: [] for host in known}
    beside = Packet(None, 0, ip_address("10.20.0.5"), ip_address("10.20.0.77"), Transport.TCP, 40000, 22)
    assert "the files do not say" not in "".join(why_lines(WORLD, beside)), (
        "two servers behind one gate meet without it"
    )
    ungated = {name: bridge for name, bridge in WORLD.site.bridges.items() if name != "gate-br"}
    assert told("10.20.0.77", replace(WORLD, site=replace(WORLD.site, bridges=ungated))) == []


def test_a_bridge_without_its_port_has_no_flows_and_that_is_said() -> None:
    packet = packet_of(WORLD, CASE.packets[0])
    told = why_lines(replace(WORLD, ports={**WORLD.ports, "gate-br": {}}), packet)
    assert "    no flows: gate-br has no such port at present, and is closed" in told


def test_without_decisions_it_is_still_said_which_rules_there_are() -> None:
    explained = why(WORLD, packet_of(WORLD, CASE.packets[2]))
    assert [str(r) for r in explained.remarks] == [
        "policy.yaml:19: grants fileserver to group physics",
        "policy.yaml:21: grants fileserver to group bio, but in audit mode, which gives nothing",
    ]


def carried_whole(world: World, bridge: str, packet: Packet, in_port: int) -> list[object]:
    state = CtState.TRK | (CtState.EST | CtState.RPL if packet.tracked else CtState.NEW)
    switch = SimulatedSwitch(desired_flows(world, bridge).values(), lambda zone: state)
    mac = 0x01005E000001 if packet.destination.is_multicast else 0x020000000001
    return list(switch.send(frame(packet, in_port, mac)).trail)
