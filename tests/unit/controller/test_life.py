"""The life of an attempt on the public fakes: what is in force, what is stored, what is taken back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.model import Policy
from policies.wire import AttemptSpec, BridgeRealisation, Heartbeat, Phase, attempts_digest
from ryu_apps.fabric import FakeFabric, FakeTicket, TicketResult
from ryu_apps.life.times import PEER_PATIENCE
from ryu_apps.openflow.cookies import Feature, explain
from ryu_apps.openflow.flows import Flow, FlowKey
from ryu_apps.openflow.pipeline import Table
from ryu_apps.refusals import Refused, Slug
from tests.effort import examples
from tests.unit.controller.rig import BOOT, POLICY, Clock, Rig, aid, node_spec, spec

WORKER_FLOWS = 6
GATE_FLOWS = 2


def owned(rig: Rig, bridge: str, feature: Feature) -> int:
    actual = rig.fabric.state[bridge].flows
    return sum(1 for flow in actual.values() if (explain(flow.cookie) or (None,))[0] is feature)


def refusal(call: Callable[[], Any]) -> Refused:
    with pytest.raises(Refused) as caught:
        call()
    return caught.value


def test_a_registration_is_in_force_and_stored_when_it_is_answered(rig: Rig) -> None:
    status, new = rig.controller.register(aid(), spec())
    assert new
    assert status.decision.grants == ["files"]
    assert status.decision.groups == ["physics"]
    assert any("policy.yaml:" in line for line in status.decision.trail)
    assert status.bridges == {"br1": BridgeRealisation.REALISED, "gate1": BridgeRealisation.REALISED}
    assert owned(rig, "br1", Feature.ATTEMPT) == WORKER_FLOWS
    assert owned(rig, "gate1", Feature.ATTEMPT) == GATE_FLOWS
    assert owned(rig, "gate2", Feature.ATTEMPT) == 0
    assert rig.store.attempts[aid()].identity == status.decision.identity
    rig.check()


def test_the_same_put_again_is_200_and_sends_nothing(rig: Rig) -> None:
    first, _ = rig.controller.register(aid(), spec())
    before = rig.everything()
    again, new = rig.controller.register(aid(), spec())
    assert (again, new) == (first, False)
    assert rig.everything() == before


def test_flow_mods_do_not_grow_with_the_number_of_jobs(rig: Rig) -> None:
    costs = []
    for n in range(2, 52):
        before = rig.fabric.flow_mods
        rig.controller.register(aid(n), spec(n))
        costs.append(rig.fabric.flow_mods - before)
    # The first brings its identity: two flows on the worker (the service, fragments of its hosts), three on the gate.
    assert costs[0] == WORKER_FLOWS + GATE_FLOWS + 5
    assert set(costs[1:]) == {WORKER_FLOWS + GATE_FLOWS}
    rig.check()


def test_the_identity_goes_with_its_last_user(rig: Rig) -> None:
    empty = rig.everything()
    rig.controller.register(aid(2), spec(2))
    rig.controller.register(aid(3), spec(3))
    rig.controller.delete(aid(2))
    assert owned(rig, "gate1", Feature.IDENTITY) == 3
    deleted = rig.controller.delete(aid(3))
    assert deleted.bridges == {"br1": BridgeRealisation.REALISED, "gate1": BridgeRealisation.REALISED}
    assert owned(rig, "gate1", Feature.IDENTITY) == owned(rig, "br1", Feature.IDENTITY) == 0
    assert rig.everything()[0] == empty[0]  # type: ignore[index]
    assert rig.store.attempts == {}
    rig.check()


def test_phases_gain_and_lose_bridges(rig: Rig) -> None:
    ad: dict[str, object] = {"LarkGroup": "physics", "LarkLicence": True}
    rig.controller.register(aid(), spec(**ad))
    status = rig.controller.advance(aid(), Phase.RUN)
    assert set(status.bridges) == {"br1", "gate1", "gate2"}
    assert owned(rig, "gate2", Feature.ATTEMPT) == GATE_FLOWS
    rig.check()
    # The same phase again confirms and changes nothing.
    before = rig.everything()
    assert rig.controller.advance(aid(), Phase.RUN).bridges == status.bridges
    assert rig.everything() == before
    assert set(rig.controller.advance(aid(), Phase.STAGE_OUT).bridges) == {"br1"}
    assert owned(rig, "gate1", Feature.ATTEMPT) == owned(rig, "gate2", Feature.ATTEMPT) == 0
    rig.check()
    before = rig.everything()
    assert refusal(lambda: rig.controller.advance(aid(), Phase.RUN)).slug is Slug.PHASE
    assert rig.everything() == before


def test_a_sealed_job_gets_no_gate(rig: Rig) -> None:
    status, _ = rig.controller.register(aid(), spec(LarkGroup="physics", LarkNetwork="none"))
    assert status.decision.sealed
    assert set(status.bridges) == {"br1"}
    rig.check()


BAD: dict[str, tuple[Slug, Callable[[], tuple[str, Any]]]] = {
    "unknown node": (Slug.NO_SUCH_NODE, lambda: (aid(2, "wn9"), spec().model_copy(update={"node": "wn9"}))),
    "id of another node": (Slug.MALFORMED, lambda: (aid(2, "wn2"), spec())),
    "unknown bridge": (
        Slug.UNKNOWN_BRIDGE,
        lambda: (aid(), spec().model_copy(update={"port": spec().port.model_copy(update={"bridge": "br9"})})),
    ),
    "another node's bridge": (
        Slug.UNKNOWN_BRIDGE,
        lambda: (aid(), spec().model_copy(update={"port": spec().port.model_copy(update={"bridge": "br2"})})),
    ),
    "port not there": (
        Slug.NO_SUCH_PORT,
        lambda: (aid(), spec().model_copy(update={"port": spec().port.model_copy(update={"name": "lj99"})})),
    ),
    "port with another number": (
        Slug.NO_SUCH_PORT,
        lambda: (aid(), spec().model_copy(update={"port": spec().port.model_copy(update={"ofport": 999})})),
    ),
    "the uplink as a job's port": (
        Slug.NO_SUCH_PORT,
        lambda: (
            aid(),
            spec().model_copy(update={"port": spec().port.model_copy(update={"name": "up0", "ofport": 1})}),
        ),
    ),
    "address out of range": (Slug.BAD_ADDRESS, lambda: (aid(), spec().model_copy(update={"ipv4": "10.20.2.2"}))),
    "network address": (Slug.BAD_ADDRESS, lambda: (aid(), spec().model_copy(update={"ipv4": "10.20.1.0"}))),
    "MAC not derived": (Slug.BAD_ADDRESS, lambda: (aid(), spec().model_copy(update={"mac": "02:6c:0a:14:01:03"}))),
    "IPv6 not derived": (Slug.BAD_ADDRESS, lambda: (aid(), spec().model_copy(update={"ipv6": "2001:db8::1"}))),
    "IPv6 missing": (Slug.BAD_ADDRESS, lambda: (aid(), spec().model_copy(update={"ipv6": None}))),
    "zone not derived": (Slug.BAD_ADDRESS, lambda: (aid(), spec().model_copy(update={"zone": 77}))),
    "attribute with a bad value": (Slug.HELD, lambda: (aid(), spec(LarkNetwork=5))),
    "attribute with another bad value": (Slug.HELD, lambda: (aid(), spec(LarkNetwork="nome"))),
    "attribute twice": (Slug.HELD, lambda: (aid(), spec(Owner="a", owner="b"))),
    "address in use": (Slug.CONFLICT, lambda: (aid(2), spec(50))),
    "other content": (Slug.CONFLICT, lambda: (aid(50), spec(50, LarkGroup="chemistry"))),
    "other lane": (Slug.CONFLICT, lambda: (aid(50), spec(2))),
    "other phase": (Slug.CONFLICT, lambda: (aid(50), spec(50, phase=Phase.RUN))),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_registrations_change_nothing(rig: Rig, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ryu_apps.life.requests.PORT_PATIENCE", 0.05)
    rig.controller.register(aid(50), spec(50))
    slug, make = BAD[case]
    id, bad = make()
    before = rig.everything()
    refused = refusal(lambda: rig.controller.register(id, bad))
    assert refused.slug is slug, refused.detail
    assert len(refused.detail) > 15
    assert rig.everything() == before
    if slug is Slug.HELD:
        assert refused.extra["subcode"] == 101
        assert refused.extra["reason"]
    # The control: the same lane, well-formed, is accepted.
    assert rig.controller.register(aid(2), spec(2))[1]
    rig.check()


def test_a_held_job_is_told_the_line(rig: Rig) -> None:
    refused = refusal(lambda: rig.controller.register(aid(), spec(LarkNetwork=5)))
    line = POLICY.splitlines().index(next(row for row in POLICY.splitlines() if "LarkNetwork: " in row)) + 1
    assert f"policy.yaml:{line}" in str(refused.extra["reason"])


def test_delete_of_what_was_never_seen(rig: Rig) -> None:
    before = rig.everything()
    for call in (
        lambda: rig.controller.delete(aid()),
        lambda: rig.controller.advance(aid(), Phase.RUN),
        lambda: rig.controller.attempt(aid()),
    ):
        assert refusal(call).slug is Slug.NO_SUCH_ATTEMPT
    assert rig.everything() == before


def test_a_node_that_has_not_registered_gets_no_attempts(make_rig: Callable[[], Rig]) -> None:
    rig = make_rig()
    rig.store.nodes.pop("wn2")
    rig.restart()
    refused = refusal(lambda: rig.controller.register(aid(2, "wn2"), spec(2, "wn2")))
    assert refused.slug is Slug.NO_SUCH_NODE
    rig.controller.register_node("wn2", node_spec("wn2"))
    assert rig.controller.register(aid(2, "wn2"), spec(2, "wn2"))[1]


# --- bridges that do not confirm --------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["silent", "away", "refuses"])
@pytest.mark.parametrize("bridge", ["br1", "gate1"])
def test_what_is_not_confirmed_is_taken_back(rig: Rig, trouble: str, bridge: str) -> None:
    flows = {name: dict(state.actual) for name, state in rig.fabric.state.items()}
    if trouble == "silent":
        rig.fabric.silence(bridge)
    elif trouble == "away":
        rig.fabric.disconnect(bridge)
    else:
        rig.fabric.refuse(bridge, "table full")
    refused = refusal(lambda: rig.controller.register(aid(), spec()))
    assert refused.slug is Slug.NOT_REALISED
    assert refused.extra == {"bridges": [bridge]}
    assert bridge in refused.detail
    assert refusal(lambda: rig.controller.attempt(aid())).slug is Slug.NO_SUCH_ATTEMPT
    assert rig.desired() == rig.specification()
    # It may be on its way: its address stays in quarantine, under another id too, until the bridge has spoken.
    if trouble != "refuses":
        for id in (aid(3), aid()):
            again = refusal(lambda id=id: rig.controller.register(id, spec(2)))  # type: ignore[misc]
            assert (again.slug, again.extra) == (Slug.NOT_REALISED, {"bridges": [bridge]})
            assert "quarantine" in again.detail
    rig.fabric.refuse(bridge, None)
    if trouble == "away":
        rig.fabric.connect(bridge)
    rig.fabric.speak(bridge)
    rig.controller.tick()
    assert {name: state.actual for name, state in rig.fabric.state.items()} == flows
    assert rig.store.attempts == {}
    assert rig.controller.register(aid(3), spec(2))[1]
    rig.check()


def test_a_failed_phase_change_keeps_the_phase(rig: Rig) -> None:
    rig.controller.register(aid(), spec(LarkGroup="physics", LarkLicence=True))
    before = rig.controller.attempt(aid())
    rig.fabric.silence("gate2")
    assert refusal(lambda: rig.controller.advance(aid(), Phase.RUN)).slug is Slug.NOT_REALISED
    assert rig.controller.attempt(aid()).spec.phase is Phase.STAGE_IN
    rig.fabric.speak("gate2")
    rig.check()
    assert rig.controller.attempt(aid()).decision.trail == before.decision.trail
    assert rig.controller.advance(aid(), Phase.RUN).decision.grants == ["files", "licence"]
    rig.check()


def test_an_unreachable_gate_prolongs_the_quarantine_over_a_restart(rig: Rig) -> None:
    rig.controller.register(aid(), spec())
    rig.fabric.disconnect("gate1")
    deleted = rig.controller.delete(aid())
    assert deleted.bridges == {"br1": BridgeRealisation.REALISED, "gate1": BridgeRealisation.PENDING}
    # Asked again, it says the same until the gate has confirmed.
    assert rig.controller.delete(aid()) == deleted
    assert refusal(lambda: rig.controller.attempt(aid())).slug is Slug.NO_SUCH_ATTEMPT
    assert rig.store.attempts[aid()].leaving == ("gate1",)
    rig.restart()
    for id in (aid(3), aid()):
        refused = refusal(lambda id=id: rig.controller.register(id, spec(2)))  # type: ignore[misc]
        assert (refused.slug, refused.extra) == (Slug.NOT_REALISED, {"bridges": ["gate1"]})
    assert rig.controller.delete(aid()).bridges == {"gate1": BridgeRealisation.PENDING}
    rig.fabric.connect("gate1")
    assert rig.controller.delete(aid()).bridges == {"gate1": BridgeRealisation.REALISED}
    assert refusal(lambda: rig.controller.delete(aid())).slug is Slug.NO_SUCH_ATTEMPT
    assert owned(rig, "gate1", Feature.ATTEMPT) == 0
    assert rig.controller.register(aid(3), spec(2))[1]
    rig.check()


def test_a_gate_that_refuses_to_forget_prolongs_the_quarantine(rig: Rig) -> None:
    rig.controller.register(aid(), spec())
    rig.fabric.refuse("gate1", "a full table")
    assert rig.controller.delete(aid()).bridges["gate1"] is not BridgeRealisation.REALISED
    rig.controller.tick()
    assert refusal(lambda: rig.controller.register(aid(3), spec(2))).extra == {"bridges": ["gate1"]}
    rig.fabric.refuse("gate1", None)
    rig.controller.tick()
    assert rig.controller.register(aid(3), spec(2))[1]
    rig.check()


@pytest.mark.parametrize("restarts", [0, 1, 2, 3])
@pytest.mark.parametrize("reloaded", [False, True])
def test_a_gate_that_has_not_heard_of_the_policy_prolongs_the_quarantine(
    rig: Rig, load: Callable[[str], Policy], reloaded: bool, restarts: int
) -> None:
    """By the policy in force it has nothing of the attempt to forget; by that which it knows, it has."""
    rig.controller.register(aid(), spec())
    rig.fabric.disconnect("gate1")
    if reloaded or not restarts:
        rig.controller.reload(load(OTHER_POLICY))
    for _ in range(restarts):
        rig.restart(load(OTHER_POLICY))
        if restarts == 3:
            rig.controller.advance(aid(), Phase.RUN)
    rig.controller.delete(aid())
    rig.controller.tick()
    assert owned(rig, "gate1", Feature.ATTEMPT) > 0
    assert refusal(lambda: rig.controller.register(aid(3), spec(2))).extra == {"bridges": ["gate1"]}
    rig.fabric.connect("gate1")
    rig.controller.tick()
    assert rig.controller.register(aid(3), spec(2))[1]
    rig.check()


def test_a_store_that_fails_takes_everything_back(rig: Rig) -> None:
    flows = {name: dict(state.actual) for name, state in rig.fabric.state.items()}
    rig.store.fail = "disk full"
    refused = refusal(lambda: rig.controller.register(aid(), spec()))
    assert refused.slug is Slug.NOT_REALISED
    assert "disk full" in refused.detail
    assert {name: state.actual for name, state in rig.fabric.state.items()} == flows
    rig.store.fail = None
    rig.controller.tick()
    assert rig.controller.register(aid(), spec())[1]
    rig.check()


# --- restarts ---------------------------------------------------------------------------------------------------------


def test_a_restart_reads_everything_back_and_sends_nothing(rig: Rig) -> None:
    for n in range(2, 12):
        rig.controller.register(aid(n), spec(n, LarkGroup="physics" if n % 2 else "x", LarkLicence=n % 3 == 0))
    rig.controller.register(aid(2, "wn2"), spec(2, "wn2", LarkNetwork="none"))
    rig.controller.advance(aid(3), Phase.RUN)
    before = rig.controller.attempts()
    sent = rig.fabric.flow_mods
    writes = rig.store.writes
    rig.restart()
    assert rig.fabric.flow_mods == sent
    assert rig.store.writes == writes
    assert rig.controller.attempts() == before
    assert rig.controller.with_jobs() == {"br1", "br2", "gate1", "gate2"}
    rig.check()
    # Numbers go on where none was given yet.
    rig.controller.register(aid(12), spec(12))
    numbers = [row.number for row in rig.store.attempts.values()]
    assert len(set(numbers)) == len(numbers)


def test_a_crash_between_programming_and_storing(rig: Rig) -> None:
    flows = {name: dict(state.actual) for name, state in rig.fabric.state.items()}
    rig.store.hold()
    assert refusal(lambda: rig.controller.register(aid(), spec())).slug is Slug.NOT_REALISED
    rig.restart()
    assert {name: state.actual for name, state in rig.fabric.state.items()} == flows
    assert rig.controller.register(aid(), spec())[1]
    rig.check()


def test_a_crash_between_storing_and_programming(rig: Rig) -> None:
    rig.controller.register(aid(), spec())
    for state in rig.fabric.state.values():
        state.actual = {
            key: f for key, f in state.flows.items() if (explain(f.cookie) or (0,))[0] is not Feature.ATTEMPT
        }
    rig.restart()
    status, new = rig.controller.register(aid(), spec())
    assert not new
    assert set(status.bridges) == {"br1", "gate1"}
    assert owned(rig, "br1", Feature.ATTEMPT) == WORKER_FLOWS
    rig.check()


def test_nothing_is_said_to_a_bridge_before_its_ports_are_known(rig: Rig) -> None:
    rig.controller.register(aid(), spec())
    rig.fabric.disconnect("br1")
    rig.restart()
    assert rig.controller.with_jobs() == {"br1", "gate1"}
    assert rig.fabric.state["br1"].desired is None
    assert refusal(lambda: rig.controller.register(aid(3), spec(3))).slug is Slug.NOT_REALISED
    sent = rig.fabric.flow_mods
    rig.fabric.connect("br1")
    assert rig.fabric.flow_mods == sent
    rig.controller.tick()
    rig.check()


def test_a_put_again_waits_for_a_bridge_that_has_not_come_since_the_start(rig: Rig) -> None:
    """It comes within a second. A refusal would have every agent ask again and again meanwhile."""
    rig.controller.register(aid(), spec())
    rig.fabric.disconnect("br1")
    rig.clock.now, rig.deadline = time.monotonic(), 30
    rig.restart()
    with ThreadPoolExecutor() as pool:
        again = pool.submit(rig.controller.register, aid(), spec())
        with pytest.raises(TimeoutError):
            again.result(0.1)
        rig.fabric.connect("br1")
        status, new = again.result(30)
    assert (set(status.bridges), new) == ({"br1", "gate1"}, False)
    rig.check()


# --- policy -----------------------------------------------------------------------------------------------------------

OTHER_POLICY = POLICY.replace(
    "{for: physics, to: files, during: [stage-in, run]}", "{for: physics, to: licence}"
).replace("values: [none, default]", "values: [none, default, lab]")
STRICTER = POLICY.replace("LarkNetwork: {", "LarkColour: {type: enum, values: [red], default: red}\n  LarkNetwork: {")


@pytest.mark.parametrize("how", ["reload", "restart"])
def test_flows_follow_another_policy(rig: Rig, how: str, load: Callable[[str], Policy]) -> None:
    rig.controller.register(aid(2), spec(2))
    rig.controller.register(aid(3), spec(3, LarkColour="blue"))
    policy = load(OTHER_POLICY)
    if how == "reload":
        rig.controller.reload(policy)
    else:
        rig.restart(policy)
    assert rig.controller.attempt(aid(2)).decision.grants == ["licence"]
    assert owned(rig, "gate1", Feature.ATTEMPT) == 0
    assert owned(rig, "gate2", Feature.ATTEMPT) == GATE_FLOWS
    rig.check()


@pytest.mark.parametrize("how", ["reload", "restart"])
def test_numbers_of_identities_and_slices_never_mean_anything_else(
    rig: Rig, how: str, load: Callable[[str], Policy]
) -> None:
    """Over ends, an unreachable bridge, other policies and restarts: one number is one outcome, slice, or attempt."""
    other_slices = POLICY.replace("name: LarkSlice", "name: 'strcat(\"x\", LarkSlice)'")
    other_grants = POLICY.replace("""physics: 'LarkGroup =?= "physics"'""", """physics: 'LarkGroup =!= "physics"'""")
    assert POLICY not in (other_slices, other_grants)
    meant: dict[tuple[str, int], object] = {}
    numbers: dict[str, set[int]] = {"attempt": set(), "identity": set(), "slice": set()}

    def look() -> None:
        for row in rig.store.attempts.values():
            for kind, number, what in (
                ("attempt", row.number, row.id),
                ("identity", row.identity, row.decision.outcome),
                ("slice", row.slice_number, row.decision.slice),
            ):
                if number:
                    assert meant.setdefault((kind, number), what) == what
                    numbers[kind].add(number)

    def change(text: str) -> None:
        policy = load(text)
        if how == "reload":
            rig.controller.reload(policy)
            rig.policy = policy
        else:
            rig.restart(policy)
        look()

    for turn in range(3):
        for n, group in ((2, "physics"), (3, "biology"), (4, "chemistry")):
            rig.controller.register(aid(10 * turn + n), spec(n, LarkGroup=group, LarkSlice=group, User="a@site"))
            look()
        rig.fabric.disconnect("gate1")
        change(other_slices)
        change(other_grants)
        for n in (2, 3, 4):
            rig.controller.delete(aid(10 * turn + n))
        look()
        rig.restart()
        look()
        rig.fabric.connect("gate1")
        rig.controller.tick()
        change(POLICY)
        assert rig.store.attempts == {}
    assert len(numbers["attempt"]) == 9
    assert len(numbers["identity"]) >= 6
    assert len(numbers["slice"]) >= 12


def test_a_policy_that_a_bridge_has_not_confirmed_asks_nobody_to_try_again(
    rig: Rig, load: Callable[[str], Policy], caplog: Any
) -> None:
    """The bridge follows when it is back: there is nothing that an administrator could repeat."""
    rig.fabric.disconnect("gate1")
    rig.controller.reload(load(OTHER_POLICY))
    (said,) = [line for line in caplog.messages if "not in force everywhere yet" in line]
    assert "gate1" in said
    assert said.endswith("; these follow as soon as they can")
    assert "try again" not in said


@pytest.mark.parametrize("how", ["reload", "restart"])
def test_a_job_that_another_policy_would_hold_is_sealed(rig: Rig, how: str, load: Callable[[str], Policy]) -> None:
    rig.controller.register(aid(2), spec(2, LarkGroup="physics"))
    rig.controller.register(aid(3), spec(3, LarkGroup="physics", LarkColour="blue"))
    policy = load(STRICTER)
    if how == "reload":
        rig.controller.reload(policy)
    else:
        rig.restart(policy)
    assert not rig.controller.attempt(aid(2)).decision.sealed
    held = rig.controller.attempt(aid(3)).decision
    assert held.sealed
    assert "LarkColour" in held.trail[0]
    rig.check()


# --- nodes and leases -------------------------------------------------------------------------------------------------


def test_host_addresses_become_standing_flows(rig: Rig) -> None:
    before = rig.fabric.flow_mods
    rig.controller.register_node("wn1", node_spec("wn1"))
    assert rig.fabric.flow_mods == before
    rig.controller.register_node("wn1", node_spec("wn1", "192.168.9.9", "2001:db8:99::9"))
    assert rig.fabric.flow_mods > before
    assert rig.desired() == rig.specification()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("224.0.0.5", "no address that others can reach"),
        ("ff02::1", "no address that others can reach"),
        ("127.0.0.1", "no address that others can reach"),
        ("::1", "no address that others can reach"),
        ("0.0.0.0", "no address that others can reach"),
        ("::", "no address that others can reach"),
        ("::ffff:a14:5", "an IPv4 address written as IPv6"),
        ("10.20.0.1", "the gateway of the job network"),
        ("2001:db8:20::1", "the gateway of the job network"),
        ("10.20.0.5", "a host of the protected service files"),
        ("2001:db8:20::5", "a host of the protected service files"),
        ("10.20.2.9", "in the range of the jobs of node wn2"),
        ("10.20.1.9", "in the range of the jobs of node wn1"),
        ("2001:db8:20:2::a14:209", "in the range of the jobs of node wn2"),
        ("2001:db8:20:2::1", "in the range of the jobs of node wn2"),
    ],
)
def test_an_address_that_is_no_hosts_is_refused_as_a_hosts(rig: Rig, address: str, said: str) -> None:
    before = rig.everything()
    with pytest.raises(Refused, match=f"says that {address} is an address of its host, but that is {said}") as refused:
        rig.controller.register_node("wn1", node_spec("wn1", "192.168.7.1", address))
    assert refused.value.slug is Slug.BAD_ADDRESS
    assert rig.everything() == before
    # The control, beside it in the node's own IPv6 prefix, too: that is not where jobs are.
    rig.controller.register_node("wn1", node_spec("wn1", "192.168.7.2", "2001:db8:20:1:1::1", "fe80::1"))
    assert rig.everything() != before


def test_a_stored_host_address_that_became_a_service_is_not_believed(rig: Rig) -> None:
    rig.controller.register_node("wn1", node_spec("wn1", "192.168.7.1", "10.20.0.99"))
    assert len(rig.controller.world.host_addresses["wn1"]) == 2
    rig.restart(rig.load(POLICY.replace("hosts: [10.20.0.7]", "hosts: [10.20.0.7, 10.20.0.99]")))
    assert [str(a) for a in rig.controller.world.host_addresses["wn1"]] == ["192.168.7.1"]
    rig.check()


def test_the_numbers_of_declared_ports_are_followed(rig: Rig) -> None:
    rig.controller.register(aid(), spec())
    ports = rig.fabric.state["br1"].ports
    before = rig.fabric.flow_mods
    rig.fabric.set_ports("br1", {**ports, "lj77": 177})
    assert rig.fabric.flow_mods == before
    rig.fabric.set_ports("br1", {**ports, "up0": 55})
    assert rig.fabric.flow_mods > before
    rig.check()


def test_refused_standing_flows_are_sent_again(rig: Rig) -> None:
    ports = rig.fabric.state["br1"].ports
    rig.fabric.refuse("br1", "not now")
    rig.fabric.set_ports("br1", {**ports, "up0": 55})
    rig.controller.tick()
    assert rig.desired() != rig.specification()
    rig.fabric.refuse("br1", None)
    rig.controller.tick()
    rig.check()


def named(*ids: str) -> Heartbeat:
    return Heartbeat(boot_id=BOOT, attempts=list(ids))


def beat(rig: Rig, seconds: float, *nodes: str) -> None:
    """Time passes as it does: a tick each second; these nodes send heartbeats."""
    until = rig.clock.now + seconds
    while rig.clock.now < until:
        rig.clock.now += 1
        for node in nodes:
            rig.controller.heartbeat(node, named())
        rig.controller.tick()


def test_a_lease_that_ends_takes_the_attempts_with_it(rig: Rig) -> None:
    rig.controller.register(aid(2), spec(2))
    rig.controller.register(aid(2, "wn2"), spec(2, "wn2"))
    beat(rig, 59, "wn2")
    assert len(rig.controller.attempts()) == 2
    beat(rig, 1, "wn2")
    assert [status.id for status in rig.controller.attempts()] == [aid(2, "wn2")]
    assert owned(rig, "br1", Feature.ATTEMPT) == 0
    rig.controller.tick()
    rig.check()
    answer = rig.controller.heartbeat("wn1", named(aid(2)))
    assert answer.drop == [aid(2)]
    lease = {node.node: node.lease_left for node in rig.controller.nodes()}
    assert lease == {"wn1": 60.0, "wn2": 60.0}


def test_a_starting_controller_grants_every_known_node_a_full_lease(rig: Rig) -> None:
    rig.controller.register(aid(2), spec(2))
    rig.clock.now += 1000
    rig.restart()
    beat(rig, 59)
    assert len(rig.controller.attempts()) == 1
    beat(rig, 2)
    assert rig.controller.attempts() == []


def test_no_lease_ends_within_one_lease_of_clients_being_turned_away(rig: Rig, caplog: Any) -> None:
    rig.controller.register(aid(2), spec(2))
    start = rig.clock.now
    while rig.clock.now < start + 200:  # more than three leases of 60 s
        rig.clock.now += 1
        rig.controller.tick(turned_away=rig.clock.now - 0.5)
        rig.check()
    assert set(rig.controller.world.attempts) == {aid(2)}
    assert sum("clients are being turned away" in line for line in caplog.messages) == 1
    # The control: one lease after the last of it, silence is the end again.
    last = rig.clock.now - 0.5
    while rig.clock.now < last + 59:
        rig.clock.now += 1
        rig.controller.tick(turned_away=last)
    assert set(rig.controller.world.attempts) == {aid(2)}
    rig.clock.now += 2
    rig.controller.tick(turned_away=last)
    assert not rig.controller.world.attempts


def test_a_controller_that_stood_still_ends_no_lease(rig: Rig) -> None:
    rig.controller.register(aid(2), spec(2))
    beat(rig, 30)
    rig.clock.now += 500
    rig.controller.tick()
    assert len(rig.controller.attempts()) == 1
    beat(rig, 31)
    assert rig.controller.attempts() == []


def test_heartbeats_say_who_knows_what(rig: Rig) -> None:
    rig.controller.register(aid(2), spec(2))
    answer = rig.controller.heartbeat("wn1", named(aid(9)))
    assert (answer.drop, answer.gone) == ([aid(9)], [aid(2)])
    assert refusal(lambda: rig.controller.heartbeat("wn9", named())).slug is Slug.NO_SUCH_NODE
    other_boot = Heartbeat(boot_id="0" * 8, attempts=[])
    assert refusal(lambda: rig.controller.heartbeat("wn1", other_boot)).slug is Slug.CONFLICT


def test_heartbeats_and_answers_about_attempts_name_the_policy_in_force(
    rig: Rig, load: Callable[[str], Policy]
) -> None:
    def named_policies() -> set[str]:
        answers = (
            rig.controller.heartbeat("wn1", named(aid(2))),
            rig.controller.heartbeat("wn1", named()),
            rig.controller.heartbeat("wn1", Heartbeat(boot_id=BOOT, digest=attempts_digest([aid(2)]))),
            rig.controller.heartbeat("wn1", Heartbeat(boot_id=BOOT, digest=attempts_digest([]))),
            rig.controller.register(aid(2), spec(2))[0],
            *rig.controller.attempts(),
        )
        return {answer.policy for answer in answers}

    rig.controller.register(aid(2), spec(2))
    assert named_policies() == {rig.policy.digest}
    other = load(POLICY.replace("during: [stage-in, run]", "during: [run]"))
    assert other.digest != rig.policy.digest
    rig.controller.reload(other)
    assert named_policies() == {other.digest}


def test_a_digest_is_enough_while_both_sides_agree_also_after_a_restart(rig: Rig) -> None:
    def agree(*ids: str) -> bool:
        return rig.controller.heartbeat("wn1", Heartbeat(boot_id=BOOT, digest=attempts_digest(ids))).agree

    assert agree()
    for n in (2, 3, 4):
        rig.controller.register(aid(n), spec(n))
    rig.controller.register(aid(2, "wn2"), spec(2, "wn2"))
    rig.controller.advance(aid(3), Phase.RUN)
    rig.controller.delete(aid(2))
    assert agree(aid(4), aid(3))
    assert not agree(aid(4))
    assert not agree(aid(4), aid(3), aid(2))
    rig.restart()
    assert agree(aid(3), aid(4))


def test_a_heartbeat_with_a_digest_renews_the_lease_also_when_it_differs(rig: Rig) -> None:
    rig.controller.register(aid(2), spec(2))
    for _ in range(200):
        rig.clock.now += 1
        rig.controller.heartbeat("wn1", Heartbeat(boot_id=BOOT, digest="0" * 32))
        rig.controller.tick()
    assert set(rig.controller.world.attempts) == {aid(2)}


def test_a_reboot_ends_the_node_s_attempts(rig: Rig) -> None:
    rig.controller.register(aid(2), spec(2))
    rig.controller.register(aid(2, "wn2"), spec(2, "wn2"))
    rig.controller.register_node("wn1", node_spec("wn1", boot="00000000-new"[:8]))
    assert [status.id for status in rig.controller.attempts()] == [aid(2, "wn2")]
    rig.check()


# --- the increments always equal the specification --------------------------------------------------------------------

LANES = st.integers(2, 6)
NODES = st.sampled_from(["wn1", "wn2"])
ADS = st.sampled_from(
    [
        {"LarkGroup": "physics"},
        {"LarkGroup": "physics", "LarkLicence": True},
        {"LarkLicence": True},
        {"LarkNetwork": "none"},
        {"LarkNetwork": "oops"},
        {"Owner": "x"},
        {"User": "a@x", "LarkSlice": "one"},
        {"User": "a@x", "LarkSlice": "one", "LarkGroup": "physics"},
        {"User": "b@x", "LarkSlice": "one"},
        {"User": "a@x", "LarkSlice": "two", "LarkNetwork": "none"},
    ]
)
STEPS = st.one_of(
    st.tuples(st.just("register"), LANES, NODES, ADS),
    st.tuples(st.just("advance"), LANES, NODES, st.sampled_from(list(Phase))),
    st.tuples(st.just("delete"), LANES, NODES),
    st.tuples(st.just("restart")),
    st.tuples(st.just("reload"), st.sampled_from([POLICY, OTHER_POLICY, STRICTER])),
    st.tuples(st.just("silence"), st.sampled_from(["br1", "br2", "gate1", "gate2"])),
    st.tuples(st.just("away"), st.sampled_from(["br1", "br2", "gate1", "gate2"])),
    st.tuples(st.just("refuse"), st.sampled_from(["br1", "gate1"])),
    st.tuples(st.just("well")),
    st.tuples(st.just("port"), st.sampled_from(["br1", "gate1"]), st.integers(1, 9)),
    st.tuples(st.just("host"), NODES, st.integers(1, 9)),
    st.tuples(st.just("time"), st.integers(1, 40)),
    st.tuples(st.just("tick")),
)


def step(rig: Rig, load: Callable[[str], Policy], what: tuple[Any, ...]) -> None:
    match what:
        case ("register", n, node, ad):
            rig.controller.register(aid(n, node), spec(n, node, **ad))
        case ("advance", n, node, phase):
            rig.controller.advance(aid(n, node), phase)
        case ("delete", n, node):
            rig.controller.delete(aid(n, node))
        case ("restart",):
            rig.restart()
        case ("reload", text):
            rig.policy = load(text)
            rig.controller.reload(rig.policy)
        case ("silence", bridge):
            rig.fabric.silence(bridge)
        case ("away", bridge):
            rig.fabric.disconnect(bridge)
        case ("refuse", bridge):
            rig.fabric.refuse(bridge, "no")
        case ("well",):
            well(rig)
        case ("port", bridge, number):
            ports = rig.fabric.state[bridge].ports
            rig.fabric.set_ports(bridge, {**ports, ("up0" if bridge == "br1" else "wf0"): number})
        case ("host", node, number):
            rig.controller.register_node(node, node_spec(node, f"192.168.77.{number}"))
        case ("time", seconds):
            beat(rig, seconds, "wn2")
        case ("tick",):
            rig.controller.tick()


def well(rig: Rig) -> None:
    for name, state in rig.fabric.state.items():
        rig.fabric.refuse(name, None)
        rig.fabric.speak(name)
        if not state.connected:
            rig.fabric.connect(name)


def member_flows(rig: Rig, bridge: str) -> int:
    return sum(key.table == Table.MEMBER and bool(key.match) for key in rig.fabric.state[bridge].flows)


def in_slice(n: int, node: str, user: str = "a@x") -> tuple[str, AttemptSpec]:
    return aid(n, node), spec(n, node, User=user, LarkSlice="dag")


def test_a_slice_costs_one_flow_a_member_on_each_bridge_that_holds_it(rig: Rig) -> None:
    rig.controller.register(*in_slice(2, "wn1"))
    rig.controller.register(*in_slice(3, "wn1"))
    assert (member_flows(rig, "br1"), member_flows(rig, "br2")) == (2, 0)
    sent = rig.fabric.flow_mods
    rig.controller.register(*in_slice(2, "wn2"))
    # its own six, three members on its own bridge, and itself on the bridge of its peers
    assert rig.fabric.flow_mods - sent == 6 + 3 + 1
    assert (member_flows(rig, "br1"), member_flows(rig, "br2")) == (3, 3)
    rig.check()
    rig.controller.delete(aid(2, "wn2"))
    assert (member_flows(rig, "br1"), member_flows(rig, "br2")) == (2, 0)
    rig.controller.delete(aid(2, "wn1"))
    rig.controller.delete(aid(3, "wn1"))
    assert rig.controller.world.slice_numbers == {}
    rig.check()


def test_the_same_name_of_another_user_is_another_slice(rig: Rig) -> None:
    rig.controller.register(*in_slice(2, "wn1"))
    rig.controller.register(*in_slice(3, "wn1", "b@x"))
    numbers = rig.controller.world.slice_numbers
    assert sorted(numbers) == ["user/3/a@x/dag", "user/3/b@x/dag"]
    assert len(set(numbers.values())) == 2


def test_a_bridge_of_slice_peers_is_not_waited_for_but_prolongs_the_quarantine(rig: Rig) -> None:
    rig.controller.register(*in_slice(2, "wn1"))
    rig.fabric.silence("br1")
    status, _ = rig.controller.register(*in_slice(2, "wn2"))
    assert set(status.bridges) == {"br2"}
    rig.controller.delete(aid(2, "wn2"))
    with pytest.raises(Refused, match="stays in quarantine until br1"):
        rig.controller.register(aid(3, "wn2"), spec(2, "wn2"))
    rig.fabric.speak("br1")
    rig.controller.tick()
    rig.controller.register(aid(3, "wn2"), spec(2, "wn2"))
    rig.check()


class Waited(FakeFabric):
    """Notes how long open tickets are waited for, by bridge."""

    clock = Clock()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.waits: list[tuple[str, float]] = []

    def change(self, bridge: str, add: Sequence[Flow], remove: Sequence[FlowKey]) -> FakeTicket:
        ticket = super().change(bridge, add, remove)
        if ticket.result() is None:
            settled = ticket.wait

            def wait(deadline: float) -> TicketResult:
                if ticket.result() is None:
                    self.waits.append((bridge, round(deadline - self.clock(), 3)))
                return settled(deadline)

            ticket.wait = wait  # type: ignore[method-assign]
        return ticket


def test_a_silent_bridge_does_not_delay_the_ends_of_slice_mates_elsewhere(
    make_rig: Callable[[], Rig],
) -> None:
    plain = make_rig()
    rig = Rig(plain.site, plain.policy, plain.load, make_fabric=Waited, deadline=10.0)
    fabric = rig.fabric
    assert isinstance(fabric, Waited)
    for n in (2, 3):
        rig.controller.register(*in_slice(n, "wn1"))
        rig.controller.register(*in_slice(n, "wn2"))
    rig.fabric.silence("br1")
    deleted = rig.controller.delete(aid(2, "wn2"))
    assert deleted.bridges == {"br2": BridgeRealisation.REALISED, "br1": BridgeRealisation.PENDING}
    assert fabric.waits == [("br1", PEER_PATIENCE)]
    assert rig.controller.delete(aid(3, "wn2")).bridges["br1"] is BridgeRealisation.PENDING
    assert fabric.waits[1:] == [("br1", 0.0)], "it owes an answer already"
    assert rig.store.attempts[aid(3, "wn2")].leaving == ("br1",)
    # The control: a job's own bridge is waited for until the deadline.
    rig.controller.delete(aid(2, "wn1"))
    assert fabric.waits[2:] == [("br1", 10.0)]
    rig.fabric.speak("br1")
    rig.controller.tick()
    assert set(rig.store.attempts) == {aid(3, "wn1")}
    rig.check()


def test_slice_numbers_survive_a_restart_and_are_never_given_again(rig: Rig) -> None:
    rig.controller.register(*in_slice(2, "wn1"))
    rig.controller.register(*in_slice(2, "wn2"))
    numbers = dict(rig.controller.world.slice_numbers)
    rig.controller.delete(aid(2, "wn1"))
    sent = rig.fabric.flow_mods
    rig.restart()
    assert rig.fabric.flow_mods == sent
    assert rig.controller.world.slice_numbers == numbers
    rig.controller.delete(aid(2, "wn2"))
    rig.controller.register(*in_slice(3, "wn1"))
    assert not set(rig.controller.world.slice_numbers.values()) & set(numbers.values())


def test_a_slice_of_a_job_without_a_user_holds_it(rig: Rig) -> None:
    with pytest.raises(Refused, match="the job's slice is its user's own, and the job has no User"):
        rig.controller.register(aid(2), spec(2, LarkSlice="dag"))


@settings(
    max_examples=examples(60),
    deadline=None,
    # too_slow measures real time: on a machine under load it fails whatever the code does.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(STEPS, max_size=30))
def test_after_any_history_the_increments_equal_the_specification(
    make_rig: Callable[[], Rig], load: Callable[[str], Policy], steps: list[tuple[Any, ...]]
) -> None:
    rig = make_rig()
    rig.deadline = 0.005
    rig.controller.times.deadline = 0.005
    for what in steps:
        try:
            step(rig, load, what)
        except Refused:
            pass  # a history has requests that are refused, too
    well(rig)
    rig.controller.tick()
    rig.controller.tick()
    rig.check()
    # And the switches have exactly that.
    assert {name: state.actual for name, state in rig.fabric.state.items()} == rig.specification()
    before = rig.fabric.flow_mods
    rig.restart()
    assert rig.fabric.flow_mods == before


# --- many at once -----------------------------------------------------------------------------------------------------


def together(*calls: Callable[[], Any]) -> list[Any]:
    """Run calls in threads of their own; results or what they raised, in order."""
    results: list[Any] = [None] * len(calls)
    barrier = threading.Barrier(len(calls))

    def one(position: int, call: Callable[[], Any]) -> None:
        barrier.wait()
        try:
            results[position] = call()
        except Refused as refused:
            results[position] = refused

    threads = [threading.Thread(target=one, args=item) for item in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_many_registrations_and_ends_at_once(rig: Rig) -> None:
    found = together(
        *(lambda n=n: rig.controller.register(aid(n), spec(n, LarkLicence=n % 2 == 0)) for n in range(2, 42))
    )
    assert [new for _, new in found] == [True] * 40
    rig.check()
    together(
        *(lambda n=n: rig.controller.delete(aid(n)) for n in range(2, 22)),
        *(lambda n=n: rig.controller.advance(aid(n), Phase.RUN) for n in range(22, 42)),
    )
    rig.check()
    assert len(rig.controller.attempts()) == 20


def test_the_same_id_at_once_is_registered_once(rig: Rig) -> None:
    found = together(*[lambda: rig.controller.register(aid(), spec())] * 8)
    assert sorted(new for _, new in found) == [False] * 7 + [True]
    assert len({status.model_dump_json() for status, _ in found}) == 1
    rig.check()


def test_one_address_at_once_goes_to_one(rig: Rig) -> None:
    found = together(*(lambda n=n: rig.controller.register(aid(n), spec(2)) for n in range(2, 10)))
    refused = [one for one in found if isinstance(one, Refused)]
    assert [one.slug for one in refused] == [Slug.CONFLICT] * 7
    rig.check()


def test_a_lost_node_costs_two_durable_writes_however_many_attempts_it_had(rig: Rig) -> None:
    for n in range(2, 42):
        rig.controller.register(aid(n), spec(n))
    before = rig.store.writes
    beat(rig, 62, "wn2")
    assert rig.controller.attempts() == []
    assert rig.store.attempts == {}
    assert rig.store.writes - before <= 2
    rig.check()


def test_a_decision_says_whether_another_phase_would_give_the_job_anything_else(rig: Rig) -> None:
    granted, _ = rig.controller.register(aid(2), spec(2))
    plain, _ = rig.controller.register(aid(3), spec(3, LarkGroup="other"))
    sealed, _ = rig.controller.register(aid(4), spec(4, LarkNetwork="none"))
    assert [s.decision.lasting for s in (granted, plain, sealed)] == [False, True, True]
    for phase in (Phase.RUN, Phase.STAGE_OUT):
        assert rig.controller.advance(aid(3), phase).decision == plain.decision
        assert rig.controller.advance(aid(4), phase).decision == sealed.decision
        changed = rig.controller.advance(aid(2), phase).decision
        assert changed.lasting is False
    assert changed.grants != granted.decision.grants, "positive control"


def test_a_grant_of_some_phases_counts_only_on_its_nodes(rig: Rig, load: Callable[[str], Policy]) -> None:
    policy = load(POLICY.replace("during: [stage-in, run]}", "during: [stage-in, run], nodes: [wn2]}"))
    rig.controller.reload(policy)
    here, _ = rig.controller.register(aid(2), spec(2))
    there, _ = rig.controller.register(aid(2, "wn2"), spec(2, "wn2"))
    assert [here.decision.lasting, there.decision.lasting] == [True, False]
