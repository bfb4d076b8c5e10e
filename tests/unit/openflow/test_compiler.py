"""What the compiler promises: golden flows, constant cost of a job, rules per identity, closed by default."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from policies.model import Mode, Outcome, Reason
from ryu_apps.openflow import compiler, cookies
from ryu_apps.openflow.fields import masked, port_masks
from ryu_apps.openflow.flows import Cookie, FieldMatch, Flow, FlowKey, FlowStats, Goto, Output, match
from ryu_apps.openflow.pipeline import PIPELINE, NotInPipeline, Priority, Table, entry
from ryu_apps.openflow.text import flow_text, flows_text
from tests.worlds import demo_policy, demo_site, with_job, world

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
PHYSICS: dict[str, object] = {"LarkGroup": "physics"}
OTHER: dict[str, object] = {}
SEALED: dict[str, object] = {"LarkNetwork": "none"}


@pytest.mark.parametrize("bridge", ["wn1-br", "gate-br"])
@pytest.mark.parametrize("mode", [Mode.ENFORCE, Mode.AUDIT])
def test_the_flows_of_the_demo_are_the_reviewed_ones(bridge: str, mode: Mode) -> None:
    """Regenerate with LARK_REGENERATE_GOLDEN=1, then read the difference."""
    flows = compiler.desired_flows(world([PHYSICS, OTHER, SEALED], demo_policy(mode)), bridge)
    text = flows_text(flows.values())
    file = GOLDEN / f"demo-{bridge}-{mode}.flows"
    if os.environ.get("LARK_REGENERATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()


def test_a_job_costs_six_flows_on_its_bridge_and_two_on_a_gate_whatever_else_there_is() -> None:
    few = world([PHYSICS])
    many = world([PHYSICS] * 40)
    for before in (few, many):
        lane = len(before.attempts) + 1
        after = with_job(before, lane, PHYSICS)
        for bridge, cost in (("wn1-br", 6), ("gate-br", 2)):
            old, new = (compiler.desired_flows(w, bridge) for w in (before, after))
            assert len(new) - len(old) == cost
            assert old.items() <= new.items()


def test_a_sealed_job_costs_two_flows_and_no_gate_knows_it() -> None:
    before = world([PHYSICS])
    after = with_job(before, 2, SEALED)
    sealed = after.attempts["job2"]
    assert compiler.bridges_of(after, sealed) == ("wn1-br",)
    assert len(compiler.attempt_flows(after, "wn1-br", sealed)) == 2


def test_a_job_without_a_grant_is_unknown_at_the_gate() -> None:
    here = world([OTHER])
    assert compiler.bridges_of(here, here.attempts["job1"]) == ("wn1-br",)


def test_the_parts_of_an_attempt_and_its_identity_add_up_to_the_full_recompute() -> None:
    here = world([PHYSICS, OTHER, SEALED])
    for bridge in here.site.bridges:
        parts = compiler.base_flows(here, bridge)
        for job in here.attempts.values():
            if bridge in compiler.bridges_of(here, job):
                parts += compiler.attempt_flows(here, bridge, job) + compiler.identity_flows(here, bridge, job.outcome)
        assert {f.key: f for f in parts} == compiler.desired_flows(here, bridge)


def test_without_its_uplink_a_worker_bridge_is_closed() -> None:
    here = replace(world([]), ports={"wn1-br": {}})
    assert compiler.desired_flows(here, "wn1-br") == {}


def test_every_flow_is_marked_and_leads_back_to_its_object() -> None:
    here = world([PHYSICS, SEALED])
    for bridge in here.site.bridges:
        for flow in compiler.desired_flows(here, bridge).values():
            explained = cookies.explain(flow.cookie)
            assert explained is not None
            assert explained[0] is not cookies.Feature.HOST_LANE
            assert flow.table != Table.HOST_LANE


def test_no_flow_outputs_to_a_job_port_but_the_attempts_own() -> None:
    here = world([PHYSICS, OTHER])
    job_ports = {a.ofport: a.number for a in here.attempts.values()}
    for flow in compiler.desired_flows(here, "wn1-br").values():
        for action in flow.actions:
            if isinstance(action, Output) and action.port in job_ports:
                expected = cookies.cookie(cookies.Feature.ATTEMPT, job_ports[action.port])
                assert flow.cookie == expected


def test_audit_mode_opens_no_forged_frame_no_seal_and_no_node() -> None:
    here = world([], demo_policy(Mode.AUDIT))
    enforce = [f for f in compiler.desired_flows(here, "wn1-br").values() if f.table == Table.ENFORCE]
    opened = {cookies.explain(f.cookie)[1] for f in enforce if f.actions}
    assert opened == {Reason.BETWEEN_JOBS, Reason.NO_GRANT, Reason.EGRESS, Reason.INGRESS}
    strict = compiler.desired_flows(world([]), "wn1-br").values()
    assert not any(f.actions for f in strict if f.table == Table.ENFORCE)


def test_a_flow_outside_the_declaration_cannot_be_built() -> None:
    own = Cookie(0)
    with pytest.raises(NotInPipeline, match="belongs to the agent"):
        entry(Table.HOST_LANE, 1, (), (), own)
    with pytest.raises(NotInPipeline, match="may not go to DELIVER"):
        entry(Table.SPOOF_GUARD, 1, (), (Goto(Table.DELIVER),), own)
    with pytest.raises(NotInPipeline, match="unknown field"):
        entry(Table.OUT, 1, (FieldMatch("colour", 1),), (), own)


def test_every_table_of_a_role_is_declared_and_leads_forward() -> None:
    assert set(PIPELINE) == set(Table)
    assert all(after > table for table, spec in PIPELINE.items() for after in spec.next)


def test_lane_addresses_share_32_bits() -> None:
    site = demo_site()
    address = site.nodes["wn1"].ipv4[1]
    mac, ipv6 = compiler.lane_addresses(site, "wn1", address)
    assert mac & 0xFFFF_FFFF == int(address) == int(ipv6) & 0xFFFF_FFFF
    assert ipv6 in site.nodes["wn1"].ipv6


@pytest.mark.parametrize(("first", "last"), [(1, 65535), (27000, 27009), (5, 5), (1094, 1095), (1, 65534), (0, 65535)])
def test_port_blocks_cover_a_range_exactly(first: int, last: int) -> None:
    blocks = port_masks(first, last)
    covered = [p for p in range(65536) if any(p & mask == value for value, mask in blocks)]
    assert covered == list(range(first, last + 1))
    assert len(blocks) <= 30


def test_equal_matches_are_equal_values_and_bad_ones_are_refused() -> None:
    assert masked("tcp_dst", 5, 0xFFFF) == FieldMatch("tcp_dst", 5)
    with pytest.raises(ValueError, match="repeated"):
        match(FieldMatch("in_port", 1), FieldMatch("in_port", 2))
    with pytest.raises(ValueError, match="outside mask"):
        match(FieldMatch("reg0", 3, 1))


def test_text_is_readable_and_complete() -> None:
    flow = entry(Table.OUT, Priority.OTHERWISE, (FieldMatch("reg8", 0x10000, 0x30000),), (Output(1),), Cookie(5))
    assert flow_text(flow) == "table=OUT, priority=1, cookie=0x5, reg8=0x10000/0x30000, actions=output:1"
    assert flow_text(flow, numeric=True).startswith(f"table={int(Table.OUT)}, ")


def test_counters_name_what_was_refused() -> None:
    here = world([PHYSICS])
    job = here.attempts["job1"]

    def seen(flow: Flow, packets: int) -> FlowStats:
        return FlowStats(FlowKey(flow.table, flow.priority, flow.match), flow.cookie, packets, packets * 100)

    stats = [seen(f, n) for n, f in enumerate(compiler.attempt_flows(here, "wn1-br", job), 1)]
    counters = compiler.read_counters(job, stats)
    assert (counters.admitted_packets, counters.delivered_packets) == (1, 6)
    assert {d.reason: d.packets for d in counters.denied} == {"spoofed": 2, "no-grant": 3, "policy": 4}
    assert {d.reason: d.bytes for d in counters.denied}["no-grant"] == 300


def test_numbers_that_do_not_fit_are_refused_and_cookies_explain_themselves() -> None:
    with pytest.raises(ValueError, match="48 bits"):
        cookies.cookie(cookies.Feature.ATTEMPT, 1 << 48)
    assert cookies.explain(0x1234) is None
    value = cookies.cookie(cookies.Feature.IDENTITY, 77)
    assert cookies.explain(value) == (cookies.Feature.IDENTITY, 77)


def test_identities_are_installed_once_for_all_their_jobs() -> None:
    one, forty = world([PHYSICS]), world([PHYSICS] * 40)
    outcome = Outcome(False, frozenset({"fileserver"}))
    for bridge in one.site.bridges:
        assert compiler.identity_flows(one, bridge, outcome) == compiler.identity_flows(forty, bridge, outcome)
