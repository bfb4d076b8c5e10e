"""The bytes that stencils make are those of the compiler's flows, one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given

from policies.model import Attempt, Bandwidth, Sharing, World
from ryu_apps.openflow import compiler, stencils
from ryu_apps.openflow.encode import EncodeError
from ryu_apps.openflow.flows import Flow, Output
from ryu_apps.openflow.meters import Rule
from ryu_apps.openflow.stencils import Entries, Stencils, entries
from ryu_apps.openflow.whole import Whole
from tests.cases import Case
from tests.drawn import cases
from tests.worlds import world

PHYSICS, ALICE = {"LarkGroup": "physics"}, {"User": "alice@site"}
ADS = (PHYSICS, PHYSICS, {}, {"LarkNetwork": "none"}, {**ALICE, "LarkSlice": "a"}, {**ALICE, "LarkSlice": "b"})


def blocks(here: World, bridge: str) -> Entries:
    found: Entries = {}
    for block in Whole(here, bridge, compiler.base_rules(here, bridge)).blocks():
        assert not found.keys() & block.keys()
        found |= block
    return found


@given(cases(packets=0, each_choice=False))
def test_the_whole_truth_as_bytes_is_what_the_compiler_says_of_every_bridge_of_random_worlds(
    drawn: tuple[Case, World],
) -> None:
    _, here = drawn
    for bridge in here.site.bridges:
        meant = compiler.desired_rules(here, bridge)
        assert blocks(here, bridge) == entries(meant.values())
        assert Whole(here, bridge, compiler.base_rules(here, bridge)) == meant
        made = Stencils(here, "test", lambda world, one, bridge=bridge: compiler.attempt_rules(world, bridge, one))
        into: Entries = {}
        for attempt in compiler.attempts_on(here, bridge):
            made.put(attempt, into)
        assert made.alone == 0


def one_by_one(here: World, make: Callable[[World, Attempt], list[Rule]]) -> tuple[Entries, int]:
    """What stencils make of all attempts, compared with what it should be, and how many were compiled one by one."""
    made, into, meant = Stencils(here, make.__name__, make), {}, {}  # type: ignore[var-annotated]
    for attempt in here.attempts.values():
        made.put(attempt, into)
        meant |= entries(make(here, attempt))
    assert into == meant
    return into, made.alone


def own(here: World, attempt: Attempt) -> list[Rule]:
    return compiler.attempt_rules(here, attempt.bridge, attempt)


def with_first(here: World, **changed: object) -> World:
    first = next(iter(here.attempts.values()))
    return replace(here, attempts={**here.attempts, first.id: replace(first, **changed)})  # type: ignore[arg-type]


def test_attempts_of_one_kind_share_a_stencil() -> None:
    assert one_by_one(world(ADS), own)[1] == 0


@pytest.mark.parametrize("port", [0xFF00, 0xFFF0])
def test_a_port_that_is_written_otherwise_is_written_by_itself(port: int) -> None:
    here = world(ADS)
    assert one_by_one(here, own)[1] == 0
    # Whether it is the first of its kind, of which the stencil would be made, or another one.
    assert one_by_one(with_first(here, ofport=port), own)[1] == 2
    turned = replace(here, attempts=dict(reversed(with_first(here, ofport=port).attempts.items())))
    assert one_by_one(turned, own)[1] == 1


def test_flows_that_are_no_sum_are_compiled_one_by_one() -> None:
    def odd(here: World, attempt: Attempt) -> list[Rule]:
        flows = own(here, attempt)
        return flows if attempt.number % 2 else [*flows[:-1], replace(flows[-1], actions=(Output(7), Output(8)))]

    def squared(here: World, attempt: Attempt) -> list[Rule]:
        return own(here, replace(attempt, zone=attempt.zone * attempt.zone & 0xFFFF))

    here = world(ADS)
    assert one_by_one(here, own)[1] == 0
    assert one_by_one(here, odd)[1] == len(here.attempts)
    # A sealed attempt's flows do not say its zone.
    assert one_by_one(here, squared)[1] == len(here.attempts) - 1


def test_a_stencil_of_another_world_is_made_anew_where_it_does_not_hold() -> None:
    """The same kind, policy and outcome, but the flows say something else there."""

    def more(here: World, attempt: Attempt) -> list[Rule]:
        flows = own(here, attempt)
        return [*flows[:-1], replace(flows[-1], actions=(Output(here.ports[attempt.bridge]["p"]),))]

    here = world(ADS)
    for uplink in (3, 4, 3):
        there = replace(here, ports={"wn1-br": {"p": uplink}})
        assert one_by_one(there, more)[1] == 0


def test_what_differs_between_attempts_in_another_way_has_stencils_of_its_own() -> None:
    here = world([PHYSICS] * 3)
    for scitag in ((1, 2), (3, 4)):
        assert one_by_one(with_first(here, scitag=scitag), own)[1] == 0


@pytest.mark.parametrize("turned", [False, True])
def test_of_two_attempts_that_differ_only_in_having_a_share_each_has_its_own_meters(turned: bool) -> None:
    here = world([PHYSICS] * 2)
    first = next(iter(here.attempts.values()))
    share = Sharing("alice@site", Bandwidth(bits=1_000_000))
    here = replace(with_first(here, share=share), share_numbers={(first.bridge, share.name): 0x1234})
    if turned:
        here = replace(here, attempts=dict(reversed(here.attempts.items())))
    assert one_by_one(here, own)[1] == 0


def test_a_number_without_a_place_is_refused_and_not_cut_off() -> None:
    here = world(ADS)
    assert blocks(here, "wn1-br")
    for wrong in ({"number": 1 << 32}, {"ofport": 1 << 16}, {"zone": 1 << 16}, {"mac": 1 << 48}):
        with pytest.raises(ValueError, match="fit|port"):
            blocks(with_first(here, **wrong), "wn1-br")
    with pytest.raises(EncodeError):
        entries([Flow(1, 1 << 16, (), (), compiler.desired_flows(here, "wn1-br").popitem()[1].cookie)])


def test_no_more_stencils_are_kept_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stencils, "KEPT", 3)
    before = world([PHYSICS])
    for activity in range(5):
        assert one_by_one(with_first(before, scitag=(1, activity)), own)[1] == 0
        assert 1 <= len(stencils._stencils) <= 3
