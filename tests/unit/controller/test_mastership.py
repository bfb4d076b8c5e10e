"""The state table of mastership: who takes what, when, and what never happens."""

from __future__ import annotations

import itertools
import random

from ryu_apps.reconcile.mastership import Mastership, Proposal
from ryu_apps.store.store import ControllerRow, DropController, MasterRow, PutMaster

BRIDGES = [f"br{n}" for n in range(8)]


def alive(name: str, beat: int = 0) -> ControllerRow:
    return ControllerRow(name, beat, f"host {name}", "", 0.0)


def table(me: str = "a", *, connected: bool = True) -> Mastership:
    made = Mastership(me, BRIDGES)
    for bridge in BRIDGES:
        made.reached(bridge, connected, 0.0)
    return made


def take(one: Mastership, now: float) -> list[Proposal]:
    found = one.due(now)
    for proposal in found:
        one.took_place(proposal, now)
    return found


def beats(one: Mastership, start: float, seconds: float) -> float:
    now = start
    while now < start + seconds:
        now += 0.5
        one.beat(now)
    return now


def test_the_only_controller_takes_every_bridge_that_it_reaches_and_no_other() -> None:
    one = table()
    one.reached("br3", False, 0.0)
    take(one, 0.0)
    assert set(one.held) == set(BRIDGES) - {"br3"}
    one.reached("br3", True, 5.0)
    take(one, 5.0)
    assert one.held["br3"] == 1
    assert one.due(100.0) == [], "what is held is not written again"


def test_free_bridges_are_shared_without_two_wanting_the_same() -> None:
    both = {name: table(name) for name in "ab"}
    for (name, one), other in itertools.product(both.items(), "ab"):
        if name != other:
            one.controller(alive(other), 0.0)
    wanted = {name: [p.changes[0].row.bridge for p in one.due(0.0)] for name, one in both.items()}  # type: ignore[union-attr]
    assert not set(wanted["a"]) & set(wanted["b"])
    assert set(wanted["a"]) | set(wanted["b"]) == set(BRIDGES)
    assert wanted["a"]
    assert wanted["b"]


def test_what_the_first_in_line_does_not_take_another_takes_after_the_grace() -> None:
    one = table()
    one.controller(alive("b"), 0.0)
    mine = take(one, 0.0)
    assert len(mine) < len(BRIDGES)
    one.controller(alive("b", 1), 0.9)
    assert one.due(0.9) == []
    take(one, 1.0)
    assert set(one.held) == set(BRIDGES)


def test_the_grace_begins_when_the_bridge_connects() -> None:
    one = table(connected=False)
    one.controller(alive("b"), 0.0)
    assert one.due(0.0) == []
    for bridge in BRIDGES:
        one.reached(bridge, True, 20.0)
    one.controller(alive("b", 1), 20.0)
    assert 0 < len(take(one, 20.0)) < len(BRIDGES)
    take(one, 21.0)
    assert set(one.held) == set(BRIDGES)


def test_a_living_masters_bridges_stay_when_another_comes() -> None:
    one = table()
    for bridge in BRIDGES:
        one.row(MasterRow(bridge, "b", 4))
    one.controller(alive("b"), 0.0)
    now = 0.0
    for beat in range(1, 40):
        now += 0.5
        one.beat(now)
        one.controller(alive("b", beat), now)
        assert one.due(now) == []


def test_a_silent_master_is_given_up_together_with_the_taking_of_its_bridges() -> None:
    one = table()
    for bridge in BRIDGES:
        one.row(MasterRow(bridge, "b", 4))
    one.controller(alive("b", 17), 0.0)
    now = beats(one, 0.0, 2.5)
    assert one.due(now) == [], "not yet"
    now = beats(one, now, 0.5)
    (proposal,) = one.due(now)
    assert proposal.gives_up == "b"
    assert proposal.changes[0] == DropController("b", 17)
    assert proposal.changes[1:] == tuple(
        PutMaster(MasterRow(bridge, "a", 5), MasterRow(bridge, "b", 4)) for bridge in BRIDGES
    )
    gained, lost = one.took_place(proposal, now)
    assert gained == dict.fromkeys(BRIDGES, 5)
    assert lost == []
    assert one.peers == frozenset()


def test_a_silent_controller_without_bridges_is_given_up_too() -> None:
    one = table()
    take(one, 0.0)
    one.controller(alive("b"), 0.0)
    assert one.due(beats(one, 0.0, 4.0)) == [Proposal((DropController("b", 0),), "b")]


def test_nobody_is_given_up_because_the_store_stood_still() -> None:
    one = table()
    for bridge in BRIDGES:
        one.row(MasterRow(bridge, "b", 1))
    one.controller(alive("b", 1), 0.0)
    one.beat(0.5)
    assert one.due(30.0) == [], "our own beat did not grow either"
    one.beat(30.0)
    now = beats(one, 30.0, 2.5)
    assert one.due(now) == [], "the other has as long as ever to come back"
    # The control: it did not come back.
    assert one.due(beats(one, now, 0.5)) != []


def test_bridges_of_one_that_ended_in_order_are_taken_at_once() -> None:
    one = table()
    one.controller(alive("b"), 0.0)
    for bridge in BRIDGES:
        one.row(MasterRow(bridge, "b", 1))
    assert one.due(1.0) == []
    one.controller_gone("b")
    assert len(one.due(1.0)) == len(BRIDGES)


def test_an_earlier_run_of_the_same_name_is_followed_by_a_higher_generation() -> None:
    one = table()
    one.row(MasterRow("br0", "a", 9))
    take(one, 0.0)
    assert one.held["br0"] == 10


def test_a_switch_that_refuses_the_generation_is_claimed_again_further_ahead_and_later_and_later() -> None:
    one = table()
    take(one, 0.0)
    claims = []
    for tenth in range(10, 1000):
        now = tenth / 10
        one.outranked("br0", one.held["br0"] < 5_000_000, now)
        for proposal in take(one, now):
            (change,) = proposal.changes
            assert isinstance(change, PutMaster)
            assert change.before == MasterRow("br0", "a", claims[-1][1] if claims else 1)
            claims.append((now, change.row.generation))
    assert [generation for _, generation in claims] == [2, 1002, 1_001_002, 1_001_001_002]
    assert [round(now) for now, _ in claims] == [2, 6, 22, 82]
    assert one.held["br1"] == 1, "the others are let alone"


def test_a_switch_that_no_longer_refuses_is_not_claimed_again() -> None:
    one = table()
    take(one, 0.0)
    one.outranked("br0", True, 1.0)
    one.outranked("br0", False, 1.5)
    assert one.due(50.0) == []
    one.outranked("br0", True, 60.0)
    assert one.due(60.5) == []
    assert len(one.due(61.0)) == 1


def test_a_bridge_out_of_reach_is_given_back_only_while_somebody_else_could_take_it() -> None:
    one = table()
    take(one, 0.0)
    one.reached("br0", False, 10.0)
    assert one.due(20.0) == []
    one.controller(alive("b"), 20.0)
    (proposal,) = one.due(20.0)
    assert proposal.changes == (PutMaster(MasterRow("br0", "", 1), MasterRow("br0", "a", 1)),)
    assert one.took_place(proposal, 20.0) == ({}, ["br0"])
    assert one.due(30.0) == []
    # The generation goes on from there.
    one.reached("br0", True, 30.0)
    assert take(one, 32.0)[0].changes == (PutMaster(MasterRow("br0", "a", 2), MasterRow("br0", "", 1)),)


def test_a_row_that_became_anothers_ends_our_mastership() -> None:
    one = table()
    take(one, 0.0)
    assert one.row(MasterRow("br1", "b", 2))
    assert "br1" not in one.held
    assert not one.row(MasterRow("br2", "b", 0)), "from before our own"
    assert "br2" in one.held
    assert not one.row(MasterRow("elsewhere", "b", 1)), "a bridge of another site file is nobody's affair here"


def test_drawn_lives_of_three_controllers_never_show_two_masters_of_one_generation() -> None:
    """A store in miniature; controllers that die, come back, reach bridges or not, in any order."""
    for seed in range(60):
        draw = random.Random(seed)
        rows: dict[str, MasterRow] = {}
        members: dict[str, int] = {}
        live: dict[str, Mastership] = {}
        masters: dict[tuple[str, int], str] = {}
        frozen: set[str] = set()
        for step in range(400):
            now = step * 0.25
            name = draw.choice("abc")
            if name not in live and name not in members:
                members[name] = 0
                live[name] = table(name, connected=False)
                for other, beat in members.items():
                    live[name].controller(alive(other, beat), now)
                for row in rows.values():
                    live[name].row(row)
            if draw.random() < 0.02:
                frozen.symmetric_difference_update({name})
            for who, one in list(live.items()):
                if who in frozen:
                    continue
                if who not in members:  # fenced: it ends
                    del live[who]
                    continue
                one.reached(draw.choice(BRIDGES), draw.random() < 0.9, now)
                members[who] += 1
                one.beat(now)
                for other, watcher in live.items():
                    if other != who:
                        watcher.controller(alive(who, members[who]), now)
                for proposal in one.due(now):
                    if not all(_fits(change, rows, members) for change in proposal.changes):
                        continue
                    for change in proposal.changes:
                        if isinstance(change, DropController):
                            del members[change.name]
                        else:
                            rows[change.row.bridge] = change.row
                            if change.row.controller:
                                key = change.row.bridge, change.row.generation
                                assert key not in masters, f"seed {seed}: {key} had {masters[key]}"
                                masters[key] = change.row.controller
                    one.took_place(proposal, now)
                    for other, watcher in live.items():
                        if other == who:
                            continue
                        for change in proposal.changes:
                            if isinstance(change, DropController):
                                watcher.controller_gone(change.name)
                            else:
                                watcher.row(change.row)
        assert len(masters) > len(BRIDGES), "the control: mastership did move"


def _fits(change: PutMaster | DropController, rows: dict[str, MasterRow], members: dict[str, int]) -> bool:
    if isinstance(change, DropController):
        return members.get(change.name) == change.beat
    return rows.get(change.row.bridge) == change.before
