"""Two judges agree on random worlds and packets: the policy's meaning and the compiled flows in a simulated switch.

`mininet_tests/test_three_judges.py` adds the third, Open vSwitch itself. How many pairs of world and packet are judged
is LARK_JUDGED_PAIRS (a few in `make check`, 10,000 in `make test`, 200,000 in `make test-full`).
"""

from __future__ import annotations

import os

import pytest

from policies.model import Reason, World
from policies.semantics import Fragment, Transport
from ryu_apps.openflow.pipeline import Table
from tests.cases import UPLINK, Case, case_text, packet_text, packet_words, read_case, read_packet, world_of
from tests.judges import TALLY, Bench, Disagreement, batches, first_hop, follow, run, two_judges
from tests.mutants import MUTANTS, Compile

PAIRS = int(os.environ.get("LARK_JUDGED_PAIRS") or (200_000 if os.environ.get("LARK_TEST_FULL") else 2_000))
ENOUGH = 8_000
"""A broken compiler that goes unnoticed for so many pairs would pass `make test`."""


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("number", "pairs"), batches(PAIRS))
def test_compiled_flows_do_what_the_policy_means(number: int, pairs: int) -> None:
    before = TALLY["two judges: pairs"]
    run(pairs, number, two_judges())
    assert TALLY["two judges: pairs"] - before >= pairs


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_the_judges_notice_a_compiler_that_is_wrong_in_one_way(mutant: Compile) -> None:
    with pytest.raises(Disagreement):
        run(ENOUGH, 1, two_judges(mutant, tally=None), shrink=False)


def test_random_worlds_and_packets_are_of_all_kinds() -> None:
    """What is never drawn is never judged."""
    met: set[object] = set()

    def one(case: Case, world: World) -> None:
        bench = Bench(world)
        for sent in case.packets:
            steps = list(follow(case, bench, sent))
            met.add(tuple(s.hop.bridge[:2] for s in steps))
            for s in steps:
                passed = "passed" if s.finding.outputs else "dropped"
                met.update({s.finding.reason, (s.finding.reason, passed), s.hop.packet.fragment})
                met.add((s.hop.packet.transport, s.hop.packet.source.version, passed))
                met.update({f"table {f.table}" for f in s.trail})
                if s.finding.dscp not in (None, s.hop.dscp):
                    met.add("marked")
                    if s.hop.bridge == "edge-br":
                        met.add(("marked", "leaving" if s.hop.in_port == UPLINK else "coming in"))
                if s.committed:
                    met.add("remembered")

    run(2_000, 1, one)
    wanted = {*Reason, *Fragment, "marked", "remembered"}
    wanted |= {(t, v, w) for t in Transport for v in (4, 6) for w in ("passed", "dropped")}
    audited = {Reason.BETWEEN_JOBS, Reason.NO_GRANT, Reason.EGRESS, Reason.INGRESS}
    wanted |= {(reason, "passed") for reason in audited}
    wanted |= {("wn", "ga"), ("wn", "wn"), ("ga", "wn"), ("wn",), ("ga",)}
    wanted |= {("wn", "ed"), ("ga", "ed"), ("ed", "wn"), ("ed", "ga"), ("ed",)}
    wanted |= {("marked", "leaving"), ("marked", "coming in")}
    wanted |= {f"table {number}" for number in Table if number.name.startswith("BORDER")}
    assert wanted - met == set()


CASE = """\
policy: |
  services:
    files: {hosts: [10.20.0.5], ports: [tcp/1094], protected: true}
  groups: {physics: 'LarkGroup =?= "physics"'}
  grants: [{for: physics, to: files}]
site: |
  site: judged
  network: {ipv4: 10.20.0.0/16}
  nodes:
    wn1: {bridge: wn1-br, ipv4: 10.20.1.64/26}
  bridges:
    wn1-br: {datapath-id: '1', roles: [worker], ports: {uplink: [up0]}}
    gate-br: {datapath-id: '9', roles: [gate], ports: {worker-facing: [wf0], server-facing: [sf0]}, guards: [files]}
hosts:
  wn1: ["10.20.1.1"]
jobs:
  job1: {node: wn1, lane: 1, phase: run, ad: {Owner: "alice", LarkGroup: "physics"}}
  job2: {node: wn1, lane: 2, phase: run, ad: {Owner: "bob"}}
packets:
  - 'wn1-br lj1: tcp 10.20.1.65 40000 -> 10.20.0.5 1094 mac=02:6c:0a:14:01:41 ack dscp=46'
  - 'wn1-br lj2: tcp 10.20.1.66 0 -> 10.20.0.5 0 mac=02:6c:0a:14:01:42 later'
  - 'wn1-br up0: udp 8.8.8.8 53 -> 10.20.1.66 40000 mac=02:00:00:00:00:01 first tracked'
"""


def test_a_case_is_text_that_reads_back_the_same() -> None:
    case = read_case(CASE)
    assert case_text(case) == CASE
    assert [read_packet(packet_text(sent)) for sent in case.packets] == list(case.packets)


def test_a_packet_is_told_in_words() -> None:
    case = read_case(CASE)
    assert [packet_words(world_of(case), sent) for sent in case.packets] == [
        "job1 sends TCP with ACK to 10.20.0.5 (host of files), port 40000 to 1094",
        "job2 sends TCP, later fragment to 10.20.0.5 (host of files)",
        "from outside of wn1-br comes UDP, first fragment from 8.8.8.8 to job2 (10.20.1.66), port 53 to 40000, "
        "a reply by the connection table",
    ]


def test_a_packet_is_followed_over_all_bridges_of_its_path() -> None:
    case = read_case(CASE)
    bench = Bench(world_of(case))
    ways = [[(s.hop.bridge, sorted(map(str, s.finding.outputs))) for s in follow(case, bench, p)] for p in case.packets]
    assert ways == [[("wn1-br", ["1"]), ("gate-br", ["3"])], [("wn1-br", [])], [("wn1-br", ["12"])]]


def test_a_disagreement_is_told_as_a_case_to_replay() -> None:
    case = read_case(CASE)
    broken = Bench(world_of(case), MUTANTS["replies pass without a look at the connection table"])
    wrong = read_packet("wn1-br up0: udp 8.8.8.8 53 -> 10.20.1.66 40000 mac=02:00:00:00:00:01")
    with pytest.raises(Disagreement) as found:
        list(follow(case, broken, wrong))
    lines = str(found.value).splitlines()
    again = read_case("\n".join(line for line in lines[1:]))
    assert (again.policy, again.site, again.packets) == (case.policy, case.site, (wrong,))
    assert any("not a reply, and ingress is denied" in line for line in lines)
    with pytest.raises(ValueError, match="no job is at lj7 of wn1-br"):
        first_hop(world_of(case), read_packet("wn1-br lj7: udp 8.8.8.8 1 -> 8.8.8.9 1 mac=02:00:00:00:00:01"))


@pytest.mark.parametrize(
    "line", ["wn1-br lj1: tcp 10.0.0.1 1 -> 10.0.0.2", "x y: tcp a 1 -> b 2 mac=02:00:00:00:00:01"]
)
def test_a_line_that_is_no_packet_is_refused(line: str) -> None:
    with pytest.raises(ValueError):
        read_packet(line)
