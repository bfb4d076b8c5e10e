"""When the switches are told to forget connections: where what allows less is confirmed, and not before."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from policies.model import Policy
from policies.wire import Phase
from ryu_apps.refusals import Refused
from tests.unit.controller.rig import POLICY, Rig, aid, spec

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


def test_a_start_with_another_policy_forgets_what_was_let_pass_by_one_that_nobody_knows(
    udp: Rig, load: Callable[[str], Policy]
) -> None:
    udp.restart(load(UDP))
    ticks(udp)
    assert forgotten(udp) == {}, "the same policy"
    udp.restart(load(LESS))
    ticks(udp)
    assert forgotten(udp) == {"br1": [1002, 1003]}


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
