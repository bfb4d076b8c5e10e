"""The whole policy language on its way through controller, store, API and larkctl."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from policies.language import load_policy
from policies.model import Decision, Outcome, Place, Policy
from policies.wire import AttemptStatus, Counters, Denial, Phase
from ryu_apps import larkctl, refusal_log
from ryu_apps.fabric import FakeQuestion
from ryu_apps.openflow.pipeline import Priority, Table
from ryu_apps.store.store import decision_from_text, decision_to_text
from tests.unit.controller.rig import Clock, Rig, aid, spec

POLICY = """\
mode: enforce
node-modes: [{nodes: [wn2], mode: audit}]
networks: {campus: [10.9.0.0/16, "2001:db8:9::/48"]}
services:
  files: {hosts: [10.20.0.5, "2001:db8:20::5"], ports: [tcp/1094], protected: true}
  licence: {hosts: [10.20.0.7], ports: [tcp/27000-27009], protected: true, mode: audit}
  xrootd: {ports: [tcp/1094-1095]}
attributes:
  LarkNetwork: {type: enum, values: [none, default], default: default}
  LarkSlice: {type: string, max-length: 64}
  RequestNetworkMbps: {type: number, min: 0}
groups:
  physics: 'LarkGroup =?= "physics"'
  chemistry: 'LarkGroup =?= "chemistry"'
  sealed: 'LarkNetwork =?= "none"'
  asks-for-slice: 'LarkSlice =!= undefined'
grants:
  - {for: physics, to: files}
  - {for: chemistry, to: files, mode: audit}
classes: [{name: first, dscp: af41, guarantee: 50%}, {name: data, dscp: af31}, {name: rest, dscp: cs1}]
classify:
  - {for: physics, class: first}
  - {service: xrootd, class: data}
slices: [{for: asks-for-slice, name: LarkSlice, between: exposed}]
expose:
  - {for: asks-for-slice, ports: [tcp/8000-8999], to: slice}
  - {for: physics, ports: [tcp/8080, icmp], to: [campus]}
rates: [{rate: RequestNetworkMbps, unit: Mbit/s}]
scitags: [{for: physics, experiment: cms, activity: production-input}]
seal: [sealed]
defaults: {egress: audit, ingress: deny, between-jobs: deny}
"""


@pytest.fixture
def whole(make_rig: Callable[[], Rig], load: Callable[[str], Policy]) -> Rig:
    rig = make_rig()
    rig.controller.reload(load(POLICY))
    rig.policy = rig.controller.world.policy
    return rig


def in_slice(rig: Rig, n: int, node: str = "wn1", **more: object) -> AttemptStatus:
    ad: dict[str, object] = {"User": "a@x", "LarkGroup": "physics", "LarkSlice": "dag", "RequestNetworkMbps": 100}
    status, _ = rig.controller.register(aid(n, node), spec(n, node, **(ad | more)))
    return status


def test_a_decision_is_shown_with_all_it_gives(whole: Rig) -> None:
    view = in_slice(whole, 2).decision
    assert (view.mode, view.grants, view.audited, view.audited_defaults) == (
        "enforce",
        ["files"],
        ["licence"],
        ["egress"],
    )
    assert view.slice == "exposed-user/3/a@x/dag"
    assert view.rate == 100_000_000
    assert view.scitag is not None
    assert (view.scitag.experiment, view.scitag.activity) == (3, 11)
    assert [(one.ports, one.to) for one in view.exposes] == [
        (["tcp/8000-8999"], ["slice"]),
        (["tcp/8080", "icmp"], ["10.9.0.0/16", "2001:db8:9::/48"]),
    ]
    # The first rule takes all: what stands behind it concerns this job never.
    assert [(one.name, one.dscp, one.service) for one in view.classes] == [("first", 34, None)]
    lines = POLICY.splitlines()
    for one in (*view.exposes, *view.classes):
        file, _, line = one.rule.partition(":")
        assert file == "policy.yaml"
        assert "for:" in lines[int(line) - 1]


def test_a_job_of_no_named_group_gets_the_rest(whole: Rig) -> None:
    status, _ = whole.controller.register(aid(3, "wn2"), spec(3, "wn2", User="b@x", LarkGroup="chemistry"))
    view = status.decision
    assert (view.mode, view.grants, view.audited) == ("audit", [], ["files", "licence"])
    # The gate must know whom it lets on.
    assert set(status.bridges) == {"br2", "gate1"}
    assert [(one.name, one.service) for one in view.classes] == [("data", "xrootd"), ("rest", None)]
    assert (view.exposes, view.rate, view.scitag, view.slice) == ([], None, None, None)


def test_a_sealed_job_is_shown_with_nothing(whole: Rig) -> None:
    view = in_slice(whole, 2, LarkNetwork="none").decision
    assert view.sealed
    assert (view.exposes, view.classes, view.audited, view.audited_defaults) == ([], [], [], [])


def test_the_policy_says_what_is_in_audit_mode(whole: Rig) -> None:
    said = whole.controller.policy()
    assert said.mode == "enforce"
    assert [line.partition(": ")[2] for line in said.audits] == [
        "nodes wn2",
        "service licence",
        "group chemistry to service files",
        "defaults egress",
    ]


def test_everything_survives_store_and_restart(whole: Rig) -> None:
    before = in_slice(whole, 2)
    in_slice(whole, 2, "wn2")
    whole.controller.advance(aid(2), Phase.RUN)
    sent = whole.fabric.flow_mods
    whole.restart()
    assert whole.fabric.flow_mods == sent
    assert whole.controller.attempt(aid(2)).decision == before.decision
    whole.check()


def test_rare_parts_of_a_decision_cost_a_row_nothing_and_old_rows_are_read() -> None:
    plain = Decision(Outcome(False, frozenset({"x"})), ("a",), ((Place("f", 1, 2), "t"),), "site/s")
    text = '{"s":false,"v":["x"],"g":["a"],"t":[["f",1,2,"t"]],"l":"site/s"}'
    assert decision_to_text(plain) == text
    assert decision_from_text(text) == plain
    # before slices
    assert decision_from_text('{"s":true,"v":[],"g":[],"t":[]}') == Decision(Outcome(True, frozenset()), (), ())
    full = Decision(
        Outcome(False, frozenset({"x"}), frozenset({"y", "z"}), frozenset({"a", "b"})), ("a", "b"), (), None, 7, (3, 11)
    )
    assert decision_from_text(decision_to_text(full)) == full


def test_membership_in_a_slice_of_exposed_ports_follows_another_policy(
    whole: Rig, load: Callable[[str], Policy]
) -> None:
    """Which groups a member is of stands in its membership flow, on every bridge of the slice."""
    in_slice(whole, 2)
    in_slice(whole, 2, "wn2")
    whole.check()
    members = {key for key in whole.fabric.state["br2"].flows if key.table == Table.MEMBER and key.match}
    assert len(members) == 2
    whole.controller.reload(load(POLICY.replace("physics: 'LarkGroup =?= \"physics\"'", "physics: 'false'")))
    whole.check()
    assert {key for key in whole.fabric.state["br2"].flows if key.table == Table.MEMBER and key.match} == members
    assert whole.controller.attempt(aid(2)).decision.grants == []


def test_larkctl_tells_what_a_decision_gives(whole: Rig) -> None:
    told = said(in_slice(whole, 2))
    for words in (
        ("let on to", "licence"),
        ("let on as", "egress"),
        ("slice", "exposed-user/3/a@x/dag"),
        ("serves", "tcp/8000-8999 to slice (policy.yaml:"),
        ("serves", "tcp/8080, icmp to 10.9.0.0/16, 2001:db8:9::/48 (policy.yaml:"),
        ("class", "first (DSCP 34) for all else (policy.yaml:"),
        ("rate", "100 Mbit/s in each direction"),
        ("scitag", "experiment 3, activity 11 (IPv6 flow label; fireflies, where the agent has a collector)"),
    ):
        assert any(line.startswith(words[0]) and words[1] in line for line in told), (words, told)
    plain, _ = whole.controller.register(aid(4), spec(4, User="b@x", LarkGroup="none"))
    assert not any(line.startswith(("serves", "rate", "scitag", "slice", "mode")) for line in said(plain))


def said(status: AttemptStatus) -> list[str]:
    text = io.StringIO()
    larkctl._tell(Console(width=200, file=text), status)
    return text.getvalue().splitlines()


def test_larkctl_does_not_say_dropped_where_audit_mode_may_have_let_it_on(whole: Rig) -> None:
    counters = Counters(
        admitted_packets=1, admitted_bytes=60, delivered_packets=0, delivered_bytes=0,
        denied=[Denial(reason="no-grant", packets=2, bytes=120, text="no grant")],
    )  # fmt: skip
    enforced, _ = whole.controller.register(aid(2), spec(2, LarkNetwork="none"))
    audited, _ = whole.controller.register(aid(3, "wn2"), spec(3, "wn2"))
    assert larkctl.sentences(counters, enforced.decision)[1].startswith("Dropped (no-grant): 2 packets")
    assert larkctl.sentences(counters, audited.decision)[1].startswith("Refused, dropped unless audit mode let it on")


# --- what was refused, in the log -------------------------------------------------------------------------------------


def refuse(rig: Rig, n: int, packets: int, node: str = "wn1") -> None:
    """The switch counts refusals for want of a grant."""
    number = rig.controller.world.attempts[aid(n, node)].number
    state = rig.fabric.state[f"br{node[-1]}"]
    for key, flow in state.flows.items():
        if key.table == Table.DENIED and key.priority == Priority.OBJECT and flow.cookie & 0xFFFF_FFFF == number:
            state.counters[key] = (packets, 60 * packets)
            return
    raise AssertionError("the attempt has no counter for refusals")


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "lark.refusals"]


def test_what_was_refused_is_logged_when_an_attempt_ends(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for n in (2, 3):
        rig.controller.register(aid(n), spec(n))
    refuse(rig, 2, 12)
    rig.controller.delete(aid(2))
    rig.controller.delete(aid(3))
    assert refusals(caplog) == []  # the end waits for no counter
    rig.controller.tick()
    assert refusals(caplog) == [f"attempt={aid(2)} job=2.0 node=wn1 ended; refused: no-grant 12 packets (720 B)"]
    rig.controller.tick()
    assert len(refusals(caplog)) == 1


def test_audit_mode_is_named_and_what_was_counted_before_it_ended_is_told_apart(
    whole: Rig, load: Callable[[str], Policy], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for node in ("wn1", "wn2"):
        in_slice(whole, 2, node)
        refuse(whole, 2, 5, node)
    whole.controller.reload(load(POLICY.replace("nodes: [wn2], mode: audit", "nodes: [wn2], mode: enforce")))
    whole.controller.tick()
    assert refusals(caplog) == [
        "node=wn2 the policy changes; until now audit mode let on, but for what it never opens: no-grant 5 packets "
        "(300 B); jobs 2.0; from now on refused, or let on by a rule in audit mode"
    ]
    refuse(whole, 2, 7, "wn2")
    whole.controller.delete(aid(2, "wn2"))
    whole.controller.tick()
    assert refusals(caplog)[1:] == [
        f"attempt={aid(2, 'wn2')} job=2.0 node=wn2 ended; refused, or let on by a rule in audit mode: "
        "no-grant 2 packets (120 B)"
    ]


def test_a_bridge_that_does_not_answer_delays_no_end(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for n in (2, 3):
        rig.controller.register(aid(n), spec(n))
        refuse(rig, n, 1)
    rig.fabric.silence("br1")
    rig.controller.delete(aid(2))
    rig.fabric.disconnect("br1")
    rig.controller.delete(aid(3))
    rig.controller.tick()
    rig.clock.now += refusal_log.SUMMARY_EVERY
    rig.controller.tick()
    assert refusals(caplog) == ["2 attempts ended without their last counts: a bridge could not be asked in time"]


def test_no_job_can_fill_the_log(whole: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """Beyond a burst it is one line a second; the rest is summed up, and nothing of it is lost."""
    caplog.set_level(logging.INFO)
    clock = Clock()
    log = refusal_log.RefusalLog(clock)
    in_slice(whole, 2)
    refuse(whole, 2, 3)
    attempt = whole.controller.world.attempts[aid(2)]
    stats = whole.fabric.ask_counts("br1", 0, 0).found
    about = refusal_log.Ended(attempt, "2.0", "refused")
    ends = 2 * refusal_log.BURST

    def end(times: int) -> None:
        for _ in range(times):
            log.ended(about, FakeQuestion(stats))
        log.report()

    end(ends)
    assert len(refusals(caplog)) == refusal_log.BURST
    clock.now += 1
    end(2)
    assert len(refusals(caplog)) == refusal_log.BURST + 1
    clock.now += refusal_log.SUMMARY_EVERY
    log.report()
    more = ends + 1 - refusal_log.BURST
    assert refusals(caplog)[-1] == (
        f"{more} more attempts with refusals, not told one by one: no-grant {3 * more} packets"
    )
    for _ in range(refusal_log.MAX_OPEN + 1):
        if not log.full:
            log.ended(about, FakeQuestion(None))
    assert log.full
    clock.now += refusal_log.PATIENCE + 1
    log.report()
    assert not log.full


def test_every_file_of_a_policy_is_named_and_counts(make_rig: Callable[[], Rig], tmp_path: Path) -> None:
    rig = make_rig()
    services = POLICY[POLICY.index("services:") : POLICY.index("attributes:")]
    (tmp_path / "policy.yaml").write_text("include: [more/services.yaml]\n" + POLICY.replace(services, ""))
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "services.yaml").write_text(services)
    rig.controller.reload(load_policy(tmp_path / "policy.yaml"))
    said = rig.controller.policy()
    assert sorted(Path(name).name for name in said.files) == ["policy.yaml", "services.yaml"]
    (tmp_path / "more" / "services.yaml").write_text(services.replace("27009", "27010"))
    assert load_policy(tmp_path / "policy.yaml").digest != said.digest
