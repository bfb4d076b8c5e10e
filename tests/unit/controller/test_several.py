"""Two controllers on one store, each with its own view of the same switches: who programs, who answers, what survives.

`MemoryStore.another` and `FakeFabric.another` are the fakes' second sides; everything between them is the real thing,
with its threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from policies.language import load_site
from policies.model import Policy, Site
from policies.wire import BridgeRealisation, Heartbeat, Phase
from ryu_apps.controller import Controller
from ryu_apps.fabric import FakeFabric
from ryu_apps.openflow import compiler
from ryu_apps.openflow.cookies import Feature, cookie
from ryu_apps.openflow.counters import PLACES, Slot
from ryu_apps.peers import Peers
from ryu_apps.reconcile.mastership import Mastership
from ryu_apps.refusals import Refused, Slug
from ryu_apps.shared import asked, without
from ryu_apps.store.memory import MemoryStore
from ryu_apps.store.store import MasterRow
from tests.unit.controller.rig import BOOT, POLICY, SITE, aid, node_spec, spec


class One:
    """A controller among several. `die`: as by kill -9, it writes and hears nothing any more, and reaches no switch.
    `lose_the_store`: it reaches its switches still."""

    def __init__(self, pair: Pair, name: str, store: MemoryStore, fabric: FakeFabric) -> None:
        self.name, self.store, self.fabric = name, store, fabric
        self.controller = Controller(pair.site, pair.policy, store, deadline=3.0, lease=60, name=name)
        fabric.notify(on_ports=self.controller.fabric_ports)
        bridges = list(pair.site.bridges)
        self.peers = Peers(name, self.controller, store, fabric, bridges, table=Mastership(name, bridges, grace=0.3))
        self.controller.start(fabric, self.peers.snapshot)
        self.peers.start()

    def connect(self) -> None:
        for name in self.fabric.state:
            self.fabric.connect(name)

    @property
    def mine(self) -> set[str]:
        return set(self.peers.table.held)

    def die(self) -> None:
        for name in self.fabric.state:
            self.fabric.disconnect(name)
        self.lose_the_store()

    def lose_the_store(self) -> None:
        self.store.fail = "dead"
        self.peers.stop()


class Pair:
    """Controller a is master of br1 and gate2, b of br2 and gate1, whatever the hash would say."""

    OF: ClassVar = {"a": {"br1", "gate2"}, "b": {"br2", "gate1"}}

    def __init__(self, site: Site, policy: Policy) -> None:
        self.site, self.policy = site, policy
        store = MemoryStore("a")
        fabric = FakeFabric(
            {bridge.datapath_id: name for name, bridge in site.bridges.items()},
            {
                name: {port: number for number, port in enumerate(bridge.ports, 1)}
                | {f"lj{n}": 100 + n for n in range(1, 60)}
                for name, bridge in site.bridges.items()
            },
        )
        for state in fabric.state.values():
            state.connected = False
        self.a = One(self, "a", store, fabric)
        self.b = One(self, "b", store.another("b"), fabric.another())
        self.both = (self.a, self.b)
        for one in self.both:
            for name, state in one.fabric.state.items():
                state.connected = name in self.OF[one.name]
                if state.connected:
                    one.fabric.connect(name)
        until(lambda: all(one.mine == self.OF[one.name] for one in self.both))
        for one in self.both:
            one.connect()
        self.a.controller.register_node("wn1", node_spec("wn1"))
        self.b.controller.register_node("wn2", node_spec("wn2"))

    def master(self, bridge: str) -> One:
        return next(one for one in self.both if bridge in one.mine)

    def flows(self) -> dict[str, object]:
        return {name: dict(state.actual) for name, state in self.a.fabric.state.items()}

    def check(self) -> None:
        """Both know the same, the switches hold what follows from it, and so does the store."""
        until(lambda: self.a.controller.world.attempts == self.b.controller.world.attempts)
        until(lambda: self.a.controller.world.identities == self.b.controller.world.identities)
        for one in self.both:
            until(lambda one=one: not one.controller.owing)  # type: ignore[misc]
        world = self.a.controller.world
        assert world.slice_numbers == self.b.controller.world.slice_numbers
        assert world.share_numbers == self.b.controller.world.share_numbers
        assert self.flows() == {name: compiler.desired_rules(world, name) for name in self.site.bridges}
        assert {id for id, row in self.a.store.attempts.items() if not row.leaving} == set(world.attempts)


def until(so: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


@pytest.fixture
def pair(tmp_path: Path, load: Callable[[str], Policy]) -> Iterator[Pair]:
    path = tmp_path / "site.yaml"
    path.write_text(SITE)
    made = Pair(load_site(path), load(POLICY))
    yield made
    for one in made.both:
        one.peers.stop()


def refused(call: Callable[[], object]) -> Refused:
    with pytest.raises(Refused) as caught:
        call()
    return caught.value


@pytest.mark.parametrize("through", ["a", "b"])
def test_a_registration_through_either_is_in_force_on_every_bridge_when_it_is_answered(
    pair: Pair, through: str
) -> None:
    one = getattr(pair, through)
    status, new = one.controller.register(aid(), spec())
    assert new
    assert status.bridges == dict.fromkeys(("br1", "gate1"), BridgeRealisation.REALISED)
    number = one.controller.world.attempts[aid()].number
    for bridge in ("br1", "gate1"):
        found = [flow for flow in pair.a.fabric.state[bridge].flows.values() if flow.cookie & 0xFFFF_FFFF == number]
        assert found, f"{bridge}: nothing of the attempt at the moment of the answer"
    pair.check()


def test_only_the_master_programs_a_bridge(pair: Pair) -> None:
    before = {one.name: {name: state.flow_mods for name, state in one.fabric.state.items()} for one in pair.both}
    pair.a.controller.register(aid(), spec())
    for one in pair.both:
        sent = {name for name, state in one.fabric.state.items() if state.flow_mods != before[one.name][name]}
        assert sent == {"br1", "gate1"} & one.mine


def test_phases_advance_and_attempts_end_through_the_other_controller(pair: Pair) -> None:
    pair.a.controller.register(aid(), spec())
    assert pair.b.controller.advance(aid(), Phase.STAGE_OUT).bridges == {"br1": BridgeRealisation.REALISED}
    pair.check()
    pair.a.controller.register(aid(3), spec(3))
    deleted = pair.b.controller.delete(aid(3))
    assert deleted.bridges == dict.fromkeys(("br1", "gate1"), BridgeRealisation.REALISED)
    pair.check()
    # Its address is free again, through whichever controller.
    pair.a.controller.register(aid(4), spec(3))
    pair.a.controller.delete(aid(4))
    pair.b.controller.register(aid(5), spec(3))
    pair.check()


def test_what_one_has_just_registered_the_other_knows_when_it_is_asked(pair: Pair) -> None:
    for n in range(2, 20):
        one, other = (pair.a, pair.b) if n % 2 else (pair.b, pair.a)
        one.controller.register(aid(n), spec(n))
        beat = Heartbeat(boot_id=BOOT, digest="0" * 32, attempts=[aid(k) for k in range(2, n + 1)])
        answer = other.controller.heartbeat("wn1", beat)
        assert (answer.drop, answer.gone) == ([], [])
    pair.check()


def test_the_same_registration_again_at_the_other_is_confirmed_by_the_masters(pair: Pair) -> None:
    pair.a.controller.register(aid(), spec())
    status, new = pair.b.controller.register(aid(), spec())
    assert not new
    assert status.bridges == dict.fromkeys(("br1", "gate1"), BridgeRealisation.REALISED)
    pair.a.fabric.silence("br1")
    # The control: where the master's switch says nothing, the other controller does not answer for it.
    assert refused(lambda: pair.b.controller.register(aid(9), spec(9))).slug is Slug.NOT_REALISED


def test_a_refusal_on_a_bridge_mastered_elsewhere_fails_the_registration_with_its_reason(pair: Pair) -> None:
    pair.b.fabric.refuse("gate1", "the table is full")
    found = refused(lambda: pair.a.controller.register(aid(), spec()))
    assert found.slug is Slug.NOT_REALISED
    assert "gate1" in found.detail
    assert "the table is full" in found.detail
    pair.b.fabric.refuse("gate1", None)
    until(lambda: aid() not in pair.a.store.attempts)
    pair.check()
    pair.a.controller.register(aid(), spec())
    pair.check()


def test_equal_outcomes_have_equal_numbers_at_both_whoever_registers(pair: Pair) -> None:
    for n in range(2, 12):
        one, node = (pair.a, "wn1") if n % 2 else (pair.b, "wn2")
        one.controller.register(aid(n, node), spec(n, node, LarkGroup="physics", User="u@x", LarkSlice=f"s{n // 3}"))
    pair.check()
    # Where both gave a number at the same moment, the lower counts.
    rows = pair.a.store.attempts.values()
    world = pair.a.controller.world
    assert list(world.identities.values()) == [min(row.identity for row in rows)]
    assert len(world.slice_numbers) == 4
    for name, number in world.slice_numbers.items():
        assert number == min(row.slice_number for row in rows if row.decision.slice == name)


def test_a_share_that_two_controllers_numbered_at_once_has_the_lower_number_at_both(
    pair: Pair, load: Callable[[str], Policy]
) -> None:
    policy = load(POLICY + "shares: [{for: physics, per: User, share: 10 Mbit/s}]\n")
    for one in pair.both:
        one.controller.reload(policy)
    physics = {"LarkGroup": "physics", "User": "u@x"}
    both = [
        threading.Thread(target=one.controller.register, args=(aid(n), spec(n, **physics)))
        for n, one in enumerate((pair.a, pair.b, pair.a, pair.b), 2)
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    pair.check()
    world, rows = pair.a.controller.world, pair.a.store.attempts.values()
    assert len(world.attempts) == 4
    assert list(world.share_numbers.values()) == [min(row.share_number for row in rows)]
    assert len(pair.a.fabric.state["br1"].meters) == 2


def test_a_killed_controllers_bridges_are_taken_over_without_a_flow_mod_and_nothing_is_lost(pair: Pair) -> None:
    for n in range(2, 8):
        one, node = (pair.a, "wn1") if n % 2 else (pair.b, "wn2")
        one.controller.register(aid(n, node), spec(n, node))
    pair.check()
    flows, known = pair.flows(), dict(pair.b.controller.world.attempts)
    sent = pair.b.fabric.flow_mods
    pair.a.die()
    began = time.monotonic()
    until(lambda: pair.b.mine == set(pair.site.bridges), 6)
    took = time.monotonic() - began
    assert took < 5, took
    assert "a" not in pair.b.store.controllers
    assert pair.b.fabric.flow_mods == sent, "unchanged state sends nothing"
    assert pair.flows() == flows
    assert pair.b.controller.world.attempts == known
    # It serves everyone: an agent of the dead one's too.
    pair.b.controller.register(aid(20), spec(20))
    pair.b.controller.delete(aid(3))
    assert pair.flows() == {name: compiler.desired_rules(pair.b.controller.world, name) for name in pair.site.bridges}


def test_a_registration_that_its_controller_did_not_live_to_answer_is_finished_by_the_other(pair: Pair) -> None:
    pair.b.fabric.silence("gate1")
    found = []

    def ask() -> None:
        found.append(refused(lambda: pair.a.controller.register(aid(), spec())))

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: aid() in pair.a.store.attempts)
    pair.a.die()
    until(lambda: pair.b.mine == set(pair.site.bridges), 6)
    pair.b.fabric.speak("gate1")
    pair.b.controller.tick()
    status, new = pair.b.controller.register(aid(), spec())
    assert not new, "its row was on disk"
    assert set(status.bridges.values()) == {BridgeRealisation.REALISED}
    asking.join()
    world = pair.b.controller.world
    assert pair.flows() == {name: compiler.desired_rules(world, name) for name in pair.site.bridges}


def test_one_that_has_lost_the_store_and_was_given_up_takes_nothing_off_the_switches_that_it_still_reaches(
    pair: Pair,
) -> None:
    """It does not know better, and the switches do."""
    for n in (2, 3):
        pair.a.controller.register(aid(n), spec(n))
    pair.check()
    both = pair.flows()
    pair.a.controller.delete(aid(2))
    pair.check()
    flows = pair.flows()
    assert flows["br1"] != both["br1"], "the control: as its master it does"
    pair.a.lose_the_store()
    until(lambda: pair.b.mine == set(pair.site.bridges), 6)
    pair.a.controller.delete(aid(3))
    assert pair.flows() == flows
    assert pair.b.controller.world.attempts.keys() == {aid(3)}


def test_an_end_that_waits_for_a_dead_controllers_bridge_is_answered_as_soon_as_that_is_taken_over(pair: Pair) -> None:
    pair.a.controller.register(aid(), spec())
    pair.b.die()
    time.sleep(1.5)
    began = time.monotonic()
    answer = pair.a.controller.delete(aid())
    assert answer.bridges == dict.fromkeys(("br1", "gate1"), BridgeRealisation.REALISED)
    assert time.monotonic() - began < 3.0, "the deadline of a request"
    assert pair.a.store.attempts == {}


def test_switches_that_remember_more_than_a_store_that_was_lost_are_taken_all_the_same(pair: Pair) -> None:
    """Their generations are those of another store; until somebody is above them, nobody is anybody's master."""
    for name, state in pair.a.fabric.state.items():
        state.generations[0] = 2500 if name in pair.OF["a"] else 1
    pair.b.die()
    until(lambda: pair.a.mine == set(pair.site.bridges), 6)
    for name in pair.site.bridges:
        pair.a.controller.mastered(name, pair.a.peers.table.generation(name))
    assert pair.a.fabric.bridge("br1").outranked
    assert not pair.a.fabric.bridge("br2").outranked
    until(lambda: not any(state.outranked for state in pair.a.fabric.bridges()), 20)
    assert pair.a.controller.register(aid(), spec())[1]
    assert pair.flows() == {name: compiler.desired_rules(pair.a.controller.world, name) for name in pair.site.bridges}


def test_a_bridge_that_only_the_other_reaches_is_left_to_it(pair: Pair) -> None:
    pair.a.controller.register(aid(), spec())
    sent = pair.b.fabric.flow_mods
    pair.a.fabric.disconnect("br1")
    until(lambda: "br1" in pair.b.mine)
    assert pair.b.fabric.flow_mods == sent
    pair.a.controller.register(aid(3), spec(3))
    pair.check()


def test_a_lease_is_ended_by_the_controller_that_the_agent_talks_to_and_by_no_other(pair: Pair) -> None:
    def lease(one: One) -> float | None:
        return next(node.lease_left for node in one.controller.nodes() if node.node == "wn1")

    pair.a.controller.register(aid(), spec())
    until(lambda: pair.b.controller.node_leases.elsewhere.get("wn1") == "a")
    pair.b.controller.node_leases.leases.clear()
    pair.b.controller.tick()
    assert aid() in pair.b.controller.world.attempts, "the agent beats at the other one"
    digest = "0" * 32
    pair.b.controller.heartbeat("wn1", Heartbeat(boot_id=BOOT, digest=digest))
    until(lambda: pair.a.controller.node_leases.elsewhere.get("wn1") == "b")
    assert lease(pair.b)
    # The control: at the one it talks to now, the end of the lease ends the attempt, everywhere.
    pair.b.controller.node_leases.leases["wn1"] = 0.0
    pair.b.controller.tick()
    until(lambda: aid() not in pair.a.store.attempts)
    pair.check()


def test_the_nodes_of_a_dead_controller_have_a_full_lease_to_find_the_other(pair: Pair) -> None:
    pair.a.controller.register(aid(), spec())
    until(lambda: pair.b.controller.node_leases.elsewhere.get("wn1") == "a")
    pair.a.die()
    until(lambda: "wn1" in pair.b.controller.node_leases.leases, 6)
    left = next(node.lease_left for node in pair.b.controller.nodes() if node.node == "wn1")
    assert left is not None
    assert left > 55
    pair.b.controller.tick()
    assert aid() in pair.b.controller.world.attempts


def test_a_controller_that_was_given_up_changes_nothing_any_more(pair: Pair) -> None:
    pair.a.controller.register(aid(), spec())
    with pair.b.store._lock:
        del pair.b.store.controllers["a"]
    assert refused(lambda: pair.a.controller.register(aid(3), spec(3))).slug is Slug.NOT_REALISED
    assert aid(3) not in pair.b.store.attempts


def test_what_a_row_awaits_is_said_bridge_by_bridge(pair: Pair) -> None:
    pair.a.controller.register(aid(), spec())
    row = pair.a.store.attempts[aid()]
    row = type(row)(**{name: getattr(row, name) for name in row.__slots__} | {"awaits": ("br1", "gate1")})
    assert asked(row) == {"br1": "", "gate1": ""}
    half = without(row, {"gate1": "no room", "elsewhere": None})
    assert asked(half) == {"br1": "", "gate1": "no room"}
    assert asked(without(half, {"br1": None})) == {"gate1": "no room"}
    assert MasterRow("br1", "a", 1).generation == 1


def test_a_write_that_another_was_quicker_with_leaves_what_the_other_wrote(pair: Pair) -> None:
    """Both change the same attempt at the same moment: one is told to try again, and then it holds."""
    for n in range(2, 12):
        pair.a.controller.register(aid(n), spec(n))
        go = threading.Barrier(2)
        lost: list[Slug] = []

        def change(one: One, phase: Phase, n: int = n, go: threading.Barrier = go, lost: list[Slug] = lost) -> None:
            go.wait()
            try:
                one.controller.advance(aid(n), phase)
            except Refused as refusal:
                lost.append(refusal.slug)

        threads = [
            threading.Thread(target=change, args=given)
            for given in ((pair.a, Phase.RUN), (pair.b, Phase.STAGE_OUT))
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(lost) <= {Slug.NOT_REALISED, Slug.PHASE}
        pair.a.controller.advance(aid(n), Phase.STAGE_OUT)
        pair.check()
        assert pair.b.controller.world.attempts[aid(n)].phase is Phase.STAGE_OUT


def test_churn_through_both_at_once_leaves_both_the_store_and_the_switches_in_agreement(pair: Pair) -> None:
    """Outcomes and slices that both give a number to at the same moment, ends and phases in between."""
    faults: list[BaseException] = []

    def churn(one: One, node: str) -> None:
        try:
            for n in range(2, 26):
                group = "physics" if n % 3 else "none"
                one.controller.register(aid(n, node), spec(n, node, LarkGroup=group, User="u@x", LarkSlice=f"s{n % 4}"))
                if n % 2:
                    one.controller.advance(aid(n, node), Phase.RUN)
                if n % 5 == 0:
                    one.controller.delete(aid(n, node))
        except BaseException as fault:  # noqa: BLE001  # told by the test's own thread
            faults.append(fault)

    threads = [
        threading.Thread(target=churn, args=given)
        for given in ((pair.a, "wn1"), (pair.b, "wn2"))
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults, faults
    pair.check()
    assert len(pair.a.controller.world.attempts) == 38
    # And either of them takes all over as it is.
    sent, flows = pair.b.fabric.flow_mods, pair.flows()
    pair.a.die()
    until(lambda: pair.b.mine == set(pair.site.bridges), 6)
    assert (pair.b.fabric.flow_mods, pair.flows()) == (sent, flows)


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_another_policy_on_one_and_then_on_the_other_is_in_force_everywhere_in_the_end(
    pair: Pair, load: Callable[[str], Policy], order: str
) -> None:
    for n in range(2, 8):
        one, node = (pair.a, "wn1") if n % 2 else (pair.b, "wn2")
        one.controller.register(aid(n, node), spec(n, node, LarkGroup="physics", LarkLicence=True, User="u@x"))
    pair.check()
    assert all(a.outcome.services == {"files"} for a in pair.a.controller.world.attempts.values())
    other = load(POLICY.replace("during: [stage-in, run]", "during: [run]"))
    for name in order:
        getattr(pair, name).controller.reload(other)
        # Between the two a registration at either must not end in disagreement.
        n = 20 + order.index(name)
        getattr(pair, name).controller.register(aid(n, "wn1"), spec(n, "wn1", LarkGroup="physics"))
        for one in pair.both:
            # The second one is to have heard all that the first made of it.
            one.peers.catch_up()
    pair.check()
    world = pair.a.controller.world
    assert len(world.attempts) == 8
    assert {a.outcome.services for a in world.attempts.values()} == {frozenset()}
    assert {row.digest for row in pair.a.store.attempts.values()} == {other.digest}


@pytest.mark.parametrize("order", ["ab", "ba"])
@pytest.mark.parametrize("through", ["a", "b"])
def test_a_gate_that_has_not_heard_of_the_policy_prolongs_the_quarantine_at_either(
    pair: Pair, load: Callable[[str], Policy], order: str, through: str
) -> None:
    one = getattr(pair, through)
    pair.a.controller.register(aid(), spec())
    pair.check()
    for each in pair.both:
        each.fabric.disconnect("gate1")
    other = load(POLICY.replace("during: [stage-in, run]", "during: [run]"))
    for name in order:
        getattr(pair, name).controller.reload(other)
    one.controller.delete(aid())
    assert refused(lambda: one.controller.register(aid(3), spec())).extra == {"bridges": ["gate1"]}
    assert one.controller.register(aid(4), spec(4))[1], "control: an address that nobody had"
    for each in pair.both:
        each.connect()
    until(lambda: aid() not in pair.a.store.attempts)
    until(lambda: one.controller.register(aid(3), spec())[1])
    pair.check()


def carried(pair: Pair, id: str, packets: int) -> None:
    """The switch has counted so many packets of 100 bytes that the job has sent."""
    (number,) = {one.controller.world.attempts[id].number for one in pair.both}
    state = pair.a.fabric.state["br1"]
    (key,) = [
        key
        for key, flow in state.flows.items()
        if flow.cookie == cookie(Feature.ATTEMPT, number) and PLACES.get((key.table, key.priority)) is Slot.OWN
    ]
    state.counters[key] = (packets, 100 * packets)


def told(pair: Pair) -> int:
    """Packets that jobs have sent, as a sum over the controllers."""
    return sum(one.controller.stats().jobs.sent_packets for one in pair.both)


def test_totals_add_up_over_controllers_whoever_is_asked_registers_or_takes_a_bridge_over(pair: Pair) -> None:
    pair.b.controller.register(aid(2), spec(2))
    pair.a.controller.register(aid(3), spec(3))
    pair.check()

    def look(*ones: One) -> None:
        for one in ones:
            for n in (2, 3):
                assert one.controller.attempt(aid(n)).counters is not None

    carried(pair, aid(2), 10)
    carried(pair, aid(3), 5)
    look(*pair.both)
    look(*pair.both)
    assert told(pair) == 15
    assert pair.a.controller.stats().jobs.sent_packets == 15, "it is the master"
    pair.a.die()
    until(lambda: pair.b.mine == set(pair.site.bridges), 6)
    look(pair.b)
    assert told(pair) == 15
    carried(pair, aid(2), 12)
    carried(pair, aid(3), 8)
    look(pair.b)
    assert told(pair) == 15 + 2 + 3
    found = pair.b.controller.attempt(aid(2)).counters
    assert found is not None
    assert found.admitted_packets == 12, "of the attempt itself nothing is missing"


def test_last_counts_are_told_once_by_the_bridges_master_whoever_ends_the_attempt(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for n, one in ((2, pair.a), (3, pair.b)):
        pair.a.controller.register(aid(n), spec(n))
        pair.check()
        carried(pair, aid(n), 10)
        number = pair.a.controller.world.attempts[aid(n)].number
        state = pair.a.fabric.state["br1"]
        (key,) = [
            key
            for key, flow in state.flows.items()
            if flow.cookie == cookie(Feature.ATTEMPT, number) and PLACES.get((key.table, key.priority)) is Slot.SPOOFED
        ]
        state.counters[key] = (4, 400)
        one.controller.delete(aid(n))
        pair.check()
        for each in pair.both:
            each.controller.tick()
        assert caplog.text.count(f"attempt={aid(n)} job={n}.0 node=wn1 ended; refused") == 1
    assert told(pair) == 20
    assert pair.a.controller.stats().jobs.sent_packets == 20


def test_an_attempt_first_heard_of_when_it_already_leaves_keeps_its_address_until_it_is_gone(pair: Pair) -> None:
    pair.a.controller.register(aid(), spec())
    until(lambda: aid() in pair.b.controller.world.attempts)
    stored = pair.a.store.attempts[aid()]
    pair.b.controller.hear(replace(stored, id=aid(9), spec=spec(9), number=99, leaving=("br1",)))
    assert refused(lambda: pair.b.controller.register(aid(10), spec(9))).slug is Slug.NOT_REALISED
    assert pair.b.controller.register(aid(11), spec(11))[1], "control: an address that nobody has"


def test_policies_put_in_force_on_both_at_once_and_in_short_order_leave_the_last_one_everywhere(
    pair: Pair, load: Callable[[str], Policy]
) -> None:
    """Two administrators' SIGHUPs, several within a moment: what one wrote of an older policy never wins."""
    for n in range(2, 8):
        one, node = (pair.a, "wn1") if n % 2 else (pair.b, "wn2")
        one.controller.register(aid(n, node), spec(n, node, LarkGroup="physics", User="u@x"))
    pair.check()
    old, new = load(POLICY), load(POLICY.replace("during: [stage-in, run]", "during: [run]"))
    for last in (new, old, new):
        policies = (old, new, old, new) if last is new else (new, old, new, old)

        def reloads(one: One, policies: tuple[Policy, ...] = policies) -> None:
            for policy in policies:
                one.controller.reload(policy)

        threads = [threading.Thread(target=reloads, args=(one,)) for one in pair.both]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for one in pair.both:
            one.peers.catch_up()
        pair.check()
        until(lambda last=last: {row.digest for row in pair.a.store.attempts.values()} == {last.digest})  # type: ignore[misc]
        granted = frozenset() if last is new else frozenset({"files"})
        assert {a.outcome.services for a in pair.a.controller.world.attempts.values()} == {granted}
