"""When the switches are told to forget connections: where what allows less is confirmed, and not before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from policies.model import Policy
from policies.wire import Phase
from ryu_apps.refusals import Refused
from ryu_apps.shared import asked, asking_as, awaiting, emptying, outdated, outdating, to_empty, without
from ryu_apps.store.store import PutAttempt
from tests.cases import policy_of
from tests.unit.controller.rig import POLICY, Rig, aid, spec
from tests.unit.controller.test_agreeing import Interrupted, Side, new_pair, settle

UDP = POLICY.replace("ports: [tcp/1094]", "ports: [udp/1094]")
LESS = UDP.replace("for: physics, to: files", "for: matlab, to: files, trust-user: true")


@pytest.fixture
def udp(rig: Rig, load: Callable[[str], Policy]) -> Rig:
    """One job with a grant over UDP, one without."""
    rig.controller.reload(load(UDP))
    rig.controller.register(aid(2), spec(2))
    rig.controller.register(aid(3), spec(3, LarkGroup="other"))
    ticks(rig)
    for state in rig.fabric.state.values():
        state.forgotten.clear()
    return rig


def ticks(rig: Rig) -> None:
    for _ in range(3):
        rig.clock.now += 1
        rig.controller.tick()


def forgotten(rig: Rig) -> dict[str, list[int]]:
    return {name: state.forgotten for name, state in rig.fabric.state.items() if state.forgotten}


def test_a_job_that_loses_its_grant_is_forgotten_once_and_no_other(udp: Rig, load: Callable[[str], Policy]) -> None:
    udp.controller.reload(load(LESS))
    assert forgotten(udp) == {}, "the switch may still decide by what it has in its cache"
    ticks(udp)
    assert forgotten(udp) == {"br1": [1002]}
    udp.controller.reload(load(UDP))
    ticks(udp)
    assert forgotten(udp) == {"br1": [1002]}, "who gets a grant loses nothing"


def test_a_later_phase_without_the_grant_is_forgotten_too(udp: Rig) -> None:
    udp.controller.advance(aid(2), Phase.RUN)
    ticks(udp)
    assert forgotten(udp) == {}, "the grant is for this phase as well"
    udp.controller.advance(aid(2), Phase.STAGE_OUT)
    udp.controller.advance(aid(3), Phase.STAGE_OUT)
    ticks(udp)
    assert forgotten(udp) == {"br1": [1002]}


@pytest.mark.parametrize("how", ["away", "silent"])
def test_a_bridge_that_has_not_confirmed_forgets_when_it_has(udp: Rig, load: Callable[[str], Policy], how: str) -> None:
    if how == "away":
        udp.fabric.disconnect("br1")
    else:
        udp.fabric.silence("br1")
    udp.controller.reload(load(LESS))
    ticks(udp)
    assert forgotten(udp) == {}
    if how == "away":
        udp.fabric.connect("br1")
    else:
        udp.fabric.speak("br1")
    ticks(udp)
    assert forgotten(udp) == {"br1": [1002]}


def test_a_bridge_that_goes_before_it_is_told_is_told_when_it_comes_back(
    udp: Rig, load: Callable[[str], Policy]
) -> None:
    udp.controller.reload(load(LESS))
    udp.controller.tick()
    udp.fabric.disconnect("br1")
    ticks(udp)
    assert forgotten(udp) == {}
    udp.fabric.connect("br1")
    ticks(udp)
    assert forgotten(udp) == {"br1": [1002]}


def test_the_mark_stays_until_the_switch_has_confirmed_that_the_zone_is_empty(
    udp: Rig, load: Callable[[str], Policy]
) -> None:
    udp.controller.reload(load(LESS))
    udp.controller.tick()
    udp.fabric.silence("br1")
    ticks(udp)
    assert forgotten(udp) == {}
    assert to_empty(udp.store.attempts[aid(2)])
    udp.fabric.speak("br1")
    udp.controller.tick()
    assert forgotten(udp) == {"br1": [1002]}
    assert not to_empty(udp.store.attempts[aid(2)]), "control: it goes as soon as that is known"
    ticks(udp)
    assert forgotten(udp) == {"br1": [1002]}


@pytest.mark.parametrize("how", ["connection", "controller", "both", "refused"])
def test_an_emptying_that_nobody_lived_to_confirm_is_done_again(
    udp: Rig, load: Callable[[str], Policy], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    udp.controller.reload(load(LESS))
    udp.controller.tick()
    if how == "refused":
        udp.fabric.refuse("br1", "a slave may not")
    else:
        udp.fabric.silence("br1")
    ticks(udp)
    if how in ("connection", "both"):
        udp.fabric.disconnect("br1")
        ticks(udp)
        udp.fabric.state["br1"].silent = False
    assert to_empty(udp.store.attempts[aid(2)])
    assert forgotten(udp) == {}
    if how in ("controller", "both"):
        udp.restart(load(LESS))
        udp.fabric.state["br1"].forgotten.clear()  # what the dead one had said comes to nothing
    if how == "controller":
        udp.fabric.state["br1"].to_forget.clear()
        udp.fabric.speak("br1")
    elif how == "refused":
        assert "a slave may not" in caplog.text
        udp.fabric.refuse("br1", None)
    else:
        udp.fabric.connect("br1")
    ticks(udp)
    ticks(udp)
    assert forgotten(udp) == {"br1": [1002]}
    assert not to_empty(udp.store.attempts[aid(2)])


def test_what_is_taken_away_while_a_zone_is_being_emptied_empties_it_once_more(
    udp: Rig, load: Callable[[str], Policy]
) -> None:
    udp.controller.reload(load(LESS))
    udp.controller.tick()
    udp.fabric.silence("br1")
    udp.controller.tick()
    udp.controller.reload(load(UDP))
    udp.controller.reload(load(LESS))
    udp.fabric.speak("br1")
    udp.controller.tick()
    assert forgotten(udp) == {"br1": [1002]}
    assert to_empty(udp.store.attempts[aid(2)]), "a connection may have begun after it"
    ticks(udp)
    assert forgotten(udp) == {"br1": [1002, 1002]}
    assert not to_empty(udp.store.attempts[aid(2)])


def test_a_start_with_another_policy_forgets_what_was_let_pass_by_one_that_nobody_knows(
    udp: Rig, load: Callable[[str], Policy]
) -> None:
    udp.restart(load(UDP))
    ticks(udp)
    assert forgotten(udp) == {}, "the same policy"
    udp.restart(load(LESS))
    ticks(udp)
    assert forgotten(udp) == {"br1": [1002, 1003]}


def test_a_crash_between_a_policy_that_allows_less_and_what_follows_of_it_leaves_nothing_unforgotten(
    udp: Rig, load: Callable[[str], Policy]
) -> None:
    udp.controller.reload(load(LESS))
    udp.controller.tick()
    udp.restart(load(LESS))
    assert forgotten(udp) == {}
    ticks(udp)
    assert forgotten(udp) == {"br1": [1002]}, "and nobody who has lost nothing"


def test_a_bridge_that_comes_back_only_after_a_restart_forgets_what_was_withdrawn_before(
    udp: Rig, load: Callable[[str], Policy]
) -> None:
    udp.fabric.disconnect("br1")
    udp.controller.reload(load(LESS))
    ticks(udp)
    for _ in range(2):
        udp.restart(load(LESS))
        ticks(udp)
    assert forgotten(udp) == {}
    udp.fabric.connect("br1")
    ticks(udp)
    assert forgotten(udp) == {"br1": [1002]}


def test_a_crash_after_a_phase_that_ends_a_grant_leaves_nothing_unforgotten(
    udp: Rig, load: Callable[[str], Policy]
) -> None:
    udp.controller.advance(aid(2), Phase.STAGE_OUT)
    udp.controller.advance(aid(3), Phase.STAGE_OUT)
    udp.restart(load(UDP))
    ticks(udp)
    assert forgotten(udp) == {"br1": [1002]}


def test_a_second_start_after_another_policy_still_forgets_what_the_first_did_not_come_to(
    udp: Rig, load: Callable[[str], Policy]
) -> None:
    udp.restart(load(LESS))
    udp.restart(load(LESS))
    ticks(udp)
    assert forgotten(udp) == {"br1": [1002, 1003]}


@pytest.mark.parametrize("how", ["policy", "phase", "start"])
def test_what_was_forgotten_is_not_forgotten_again_by_the_controller_that_starts_next(
    udp: Rig, load: Callable[[str], Policy], how: str
) -> None:
    if how == "policy":
        udp.controller.reload(load(LESS))
    elif how == "phase":
        udp.controller.advance(aid(2), Phase.STAGE_OUT)
    else:
        udp.restart(load(LESS))
    assert to_empty(udp.store.attempts[aid(2)]), "said in the write that allows less"
    ticks(udp)
    once = forgotten(udp)
    assert once
    writes = udp.store.writes
    udp.restart(load(UDP if how == "phase" else LESS))
    ticks(udp)
    assert forgotten(udp) == once
    assert udp.store.writes == writes
    assert not any(to_empty(row) for row in udp.store.attempts.values())


def test_only_what_takes_something_away_costs_a_write_more(udp: Rig) -> None:
    def writes(what: Callable[[], object]) -> int:
        before = udp.store.writes
        what()
        ticks(udp)
        return udp.store.writes - before

    assert writes(lambda: udp.controller.register(aid(4), spec(4))) == 1
    assert writes(lambda: udp.controller.advance(aid(4), Phase.RUN)) == 1
    assert writes(lambda: udp.controller.advance(aid(4), Phase.STAGE_OUT)) == 2, "the control: the mark goes"
    assert writes(lambda: udp.controller.delete(aid(4))) == 1
    for n in (5, 6, 7):
        udp.controller.register(aid(n), spec(n))

    def all_at_once() -> None:
        for n in (5, 6, 7):
            udp.controller.advance(aid(n), Phase.STAGE_OUT)

    assert writes(all_at_once) == 4, "three phases, and one write for all three marks"


# --- several controllers: a is the master of br1, and of gate2; its jobs 4 and 5 have a grant, 6 has none -------------

LICENCE = POLICY.replace("tcp/27000-27009", "udp/27000-27009")
NO_LICENCE = LICENCE.replace("for: matlab, to: licence", "for: physics, to: licence")


@pytest.fixture
def two() -> tuple[Side, Side]:
    a, b = new_pair()
    for side in (a, b):
        side.controller.reload(policy_of(LICENCE))
    for n in (4, 5, 6):
        a.controller.register(aid(n), spec(n, phase=Phase.RUN, LarkLicence=n < 6))
    settle(a, b)
    for side in (a, b):
        for state in side.fabric.state.values():
            state.forgotten.clear()
    return a, b


def on_br1(side: Side) -> list[int]:
    return sorted(side.fabric.state["br1"].forgotten)


def marked(side: Side) -> set[str]:
    return {id for id, row in side.store.attempts.items() if to_empty(row)}


def take_away(two: tuple[Side, Side], how: str) -> None:
    """Both know it in the end; nobody has ticked."""
    a, b = two
    first, then = (a, b) if how.endswith("by its master") else (b, a)
    if how.startswith("policy"):
        first.controller.reload(policy_of(NO_LICENCE))
        then.hear()
        then.controller.reload(policy_of(NO_LICENCE))
    else:
        for n in (4, 5, 6):
            first.controller.advance(aid(n), Phase.STAGE_OUT)
    first.hear()
    then.hear()


WAYS = pytest.mark.parametrize("how", ["policy first by its master", "policy first by another", "phase by its master"])


@WAYS
def test_the_master_of_a_bridge_has_it_forget_once_whoever_took_away(two: tuple[Side, Side], how: str) -> None:
    a, b = two
    take_away(two, how)
    assert marked(a) == {aid(4), aid(5)}, "who loses nothing"
    settle(a, b)
    assert (on_br1(a), on_br1(b)) == ([1004, 1005], [])
    assert marked(a) == set()
    assert not a.controller.owing


@WAYS
@pytest.mark.parametrize("dead", [True, False])
def test_a_master_that_did_not_come_to_it_leaves_it_to_the_next(two: tuple[Side, Side], how: str, dead: bool) -> None:
    a, b = two
    take_away(two, how)
    if not dead:
        a.controller.unmastered("br1", 2, "b")
    b.controller.mastered("br1", 2)
    for _ in range(5):
        for side in (b,) if dead else (a, b):
            side.hear()
            side.controller.pay()
            side.controller.tick()
    assert (on_br1(a), on_br1(b)) == ([], [1004, 1005])
    assert marked(b) == set()
    # The control: what was forgotten is not forgotten again.
    b.controller.unmastered("br1", 3, "")
    b.controller.mastered("br1", 4)
    for _ in range(5):
        b.controller.tick()
    assert on_br1(b) == [1004, 1005]


def test_a_start_with_another_policy_beside_others_forgets_what_that_one_let_pass(two: tuple[Side, Side]) -> None:
    a, b = two
    again = Side(Interrupted("a", a.store), a.fabric.another(), 0.01)  # with the policy before the present one
    for _ in range(5):
        again.controller.pay()
        again.controller.tick()
    assert on_br1(again) == [1002, 1003, 1004, 1005, 1006]
    assert on_br1(b) == []


def test_a_mark_that_another_writes_is_followed_by_the_master_though_it_decides_no_otherwise(
    two: tuple[Side, Side],
) -> None:
    """Another may know of a policy in between that the master has not had, or not heard of."""
    a, b = two
    before = a.store.attempts[aid(4)]
    b.store.write([PutAttempt(emptying(before), before)]).wait(0.0)
    assert marked(a) == {aid(4)}
    for _ in range(2):
        a.controller.hear(emptying(before))
    settle(a, b)
    assert (on_br1(a), on_br1(b)) == ([1004], [])
    assert marked(a) == set()


def test_what_a_row_says_of_its_zone_is_no_bridge_to_anybody(udp: Rig) -> None:
    row = udp.store.attempts[aid(2)]
    said = emptying(replace(row, awaits=("forget:gate1", "gate2", "br2 no room")))
    assert said.awaits == ("br2 no room", "forget:gate1", "forget:zone:br1", "gate2")
    assert to_empty(said)
    assert not to_empty(row)
    assert asked(said) == {"gate2": "", "br2": "no room"}
    assert outdated(said) == ["gate1"]
    for kept in (awaiting(said, ["br1"]), outdating(said, []), without(said, {"gate2": None}), asking_as(said, row)):
        assert to_empty(kept)
    assert emptying(said, False).awaits == ("br2 no room", "forget:gate1", "gate2")
    assert emptying(said) is said
    # Versions before this one take what follows `forget:` for a bridge, and pass over those that the site has not.
    assert "zone:br1" not in udp.site.bridges


NO_SLICES = POLICY.replace("slices: [{for: asks-for-slice, name: LarkSlice}]\n", "")


@pytest.mark.parametrize("restarted", [False, True])
def test_a_slice_mates_bridge_that_has_not_heard_of_its_end_prolongs_the_quarantine(
    rig: Rig, load: Callable[[str], Policy], restarted: bool
) -> None:
    """By the policy in force there is no slice, so nothing of the attempt to forget; that bridge still has its flow."""
    for node in ("wn1", "wn2"):
        rig.controller.register(aid(2, node), spec(2, node, User="u@x", LarkSlice="s"))
    rig.fabric.disconnect("br2")
    if restarted:
        rig.restart(load(NO_SLICES))
    else:
        rig.controller.reload(load(NO_SLICES))
    rig.controller.delete(aid(2))
    rig.controller.tick()
    with pytest.raises(Refused) as refused:
        rig.controller.register(aid(3), spec(2))
    assert refused.value.extra == {"bridges": ["br2"]}
    assert rig.controller.register(aid(4), spec(4))[1], "control: an address that nobody had"
    rig.fabric.connect("br2")
    rig.controller.tick()
    assert rig.controller.register(aid(3), spec(2))[1]
