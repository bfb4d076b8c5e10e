"""The leak checker: what belongs to no living attempt is named, whatever kind it is, and nothing else is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_agent import leak_scan
from ovs_agent.leaks import Owner, Process, Seen, Verdict, judge, persistent
from ryu_apps.openflow import cookies

NODE = "wn1"
SLEEPER = Process(4711, 21001, "sleep 99")
LIVING = Owner("wn1~b~slot1_1~7~8", 1, ("lark-wn1-1",), 21001, living=True, ready=True)
ENDED = replace(LIVING, living=False, ready=False)


def lane(number: int, label: str = "", inside: tuple[Process, ...] = ()) -> Seen:
    """Everything of one lane."""
    return Seen(
        namespaces={f"lark-wn1-{number}": inside},
        devices=frozenset({f"lj{number}"}),
        ports={f"lj{number}": label},
        limits=frozenset({1000 + number}),
    )


FULL = replace(lane(1, LIVING.id, (SLEEPER,)), connections={1001: 3}, flows={1: 4}, registered=frozenset({LIVING.id}))


def leaks(seen: Seen, *owners: Owner, agent_runs: bool = True) -> list[tuple[str, str]]:
    return [(leak.kind, leak.what) for leak in judge(NODE, owners, seen, agent_runs=agent_runs).leaks]


def test_what_a_living_attempt_has_is_no_leak() -> None:
    assert judge(NODE, [LIVING], FULL, agent_runs=True).lines() == []


def test_all_of_it_is_a_leak_when_nobody_has_it() -> None:
    wanted = ["namespace", "process", "device", "port", "connections", "limit", "flows"]
    unregistered = replace(FULL, registered=frozenset())
    assert [kind for kind, _ in leaks(unregistered)] == wanted
    assert [kind for kind, _ in leaks(unregistered, ENDED)] == wanted
    assert leaks(replace(FULL, registered=frozenset({"wn1~b~x"})), LIVING) == [("lease", "wn1~b~x")]


def test_an_untouched_complete_lane_is_spare_while_an_agent_runs() -> None:
    assert judge(NODE, [], lane(2), agent_runs=True).spare == (2,)
    assert leaks(lane(2)) == []
    assert {kind for kind, _ in leaks(lane(2), agent_runs=False)} == {"namespace", "device", "port", "limit"}


@pytest.mark.parametrize(
    "touched",
    [
        lane(2, "wn1~b~old"),
        lane(2, inside=(SLEEPER,)),
        replace(lane(2), connections={1002: 1}),
        replace(lane(2), flows={2: 1}),
        replace(lane(2), devices=frozenset()),
        replace(lane(2), ports={}),
        replace(lane(2), namespaces={}),
        replace(lane(2), namespaces={"lark-wn1-2": (), "lark-wn1-2-sealed": ()}),
    ],
    ids=["label", "process", "connection", "flow", "no device", "no port", "no namespace", "sealed"],
)
def test_a_lane_that_was_touched_or_is_not_whole_is_not_spare(touched: Seen) -> None:
    verdict = judge(NODE, [], touched, agent_runs=True)
    assert verdict.spare == ()
    assert verdict.leaks


def test_only_a_limit_or_a_connection_that_is_left_is_a_leak_too() -> None:
    assert leaks(Seen(limits=frozenset({1009}))) == [("limit", "of zone 1009")]
    assert leaks(Seen(connections={1009: 2})) == [("connections", "2 in zone 1009")]


def test_a_namespace_beside_an_attempts_own_is_a_leak() -> None:
    more = replace(FULL, namespaces=FULL.namespaces | {"lark-wn1-1-sealed": (), "lark-wn1-odd": (SLEEPER,)})
    found = leaks(more, LIVING)
    assert [what for kind, what in found if kind == "namespace"] == ["lark-wn1-1-sealed", "lark-wn1-odd"]
    assert [kind for kind, _ in found].count("process") == 1


def test_processes_of_a_guarded_uid_are_leaks_only_while_no_attempt_of_it_lives() -> None:
    seen = replace(FULL, strays=(replace(SLEEPER, pid=1),), at_home=(replace(SLEEPER, pid=2),))
    assert leaks(seen, LIVING) == []
    other = replace(seen, strays=(Process(1, 21002, "x"),), at_home=(Process(2, 21002, "y"),))
    assert [kind for kind, _ in leaks(other, LIVING)] == ["process", "process"]


def test_what_a_living_attempt_lacks_is_named() -> None:
    nothing = judge(NODE, [LIVING], Seen(registered=frozenset()), agent_runs=True)
    assert [leak.kind for leak in nothing.lacking] == ["namespace", "device", "port", "lease"]
    beginning = replace(LIVING, ready=False)
    assert judge(NODE, [beginning], Seen(registered=frozenset()), agent_runs=True).lacking == ()
    numberless = judge(NODE, [LIVING], replace(FULL, numberless=frozenset({"lj1"})), agent_runs=True)
    assert [leak.what for leak in numberless.lacking] == ["lj1"]


def test_an_ended_attempt_waits_for_its_confirmation() -> None:
    verdict = judge(NODE, [ENDED], Seen(registered=frozenset({ENDED.id})), agent_runs=True)
    assert not verdict.leaks
    assert len(verdict.waiting) == 1


def test_what_was_not_looked_at_is_said() -> None:
    assert judge(NODE, [], Seen(trouble=("the switch: x",)), agent_runs=True).lines() == ["cannot look: the switch: x"]
    assert judge(NODE, [], Seen(held=("descriptor 9",)), agent_runs=True).leaks[0].kind == "descriptor"


def test_only_what_stays_is_reported() -> None:
    def look(*seen: Seen) -> Verdict:
        return judge(NODE, [], seen[0], agent_runs=True)

    first, second = look(Seen(connections={1009: 5, 1010: 1})), look(Seen(connections={1009: 2}))
    assert [leak.what for leak in persistent(first, second).leaks] == ["2 in zone 1009"], "fewer, but still there"
    assert persistent(look(Seen()), second).leaks == ()


@given(
    st.sets(st.integers(1, 9)), st.sets(st.integers(1, 9)), st.sets(st.integers(1, 9)), st.sets(st.integers(1, 9)),
    st.sets(st.integers(1, 9)),
)  # fmt: skip
def test_every_part_of_every_lane_is_owned_spare_or_a_leak(
    names: set[int], devices: set[int], ports: set[int], owned: set[int], busy: set[int]
) -> None:
    """No part can hide: nothing is left out, and nothing is named twice."""
    seen = Seen(
        namespaces={f"lark-wn1-{n}": () for n in names},
        devices=frozenset(f"lj{n}" for n in devices),
        ports={f"lj{n}": "" for n in ports},
        connections=dict.fromkeys((1000 + n for n in busy), 1),
    )
    owners = [replace(LIVING, id=str(n), lane=n, namespaces=(f"lark-wn1-{n}",)) for n in owned]
    verdict = judge(NODE, owners, seen, agent_runs=True)
    told = [(leak.kind, leak.what) for leak in verdict.leaks]
    assert len(told) == len(set(told))
    for number in range(1, 10):
        parts = {("namespace", f"lark-wn1-{number}")} if number in names else set()
        parts |= {("device", f"lj{number}")} if number in devices else set()
        parts |= {("port", f"lj{number}")} if number in ports else set()
        parts |= {("connections", f"1 in zone {1000 + number}")} if number in busy else set()
        whole = number in names & devices & ports and number not in busy
        assert (number in verdict.spare) == (whole and number not in owned)
        if number in owned or whole:
            assert not parts & set(told)
        else:
            assert parts <= set(told)


def test_the_flows_looked_for_are_those_that_the_controller_marks() -> None:
    value, mask = (int(word, 16) for word in leak_scan.ATTEMPT_COOKIES.removeprefix("cookie=").split("/"))
    assert value == int(cookies.cookie(cookies.Feature.ATTEMPT, 0))
    assert int(cookies.cookie(cookies.Feature.ATTEMPT, 12345)) & mask == value
    assert int(cookies.cookie(cookies.Feature.IDENTITY, 12345)) & mask != value
