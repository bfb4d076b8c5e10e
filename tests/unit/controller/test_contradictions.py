"""A store whose rows contradict each other: no job gets another's grants or port, and the log names both rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from policies.language import load_site
from policies.model import Policy
from policies.wire import Phase
from ryu_apps.store.store import AttemptRow
from tests.unit.controller.rig import POLICY, SITE, Rig, aid, spec
from tests.unit.controller.test_several import Pair, until

SHARED = POLICY + "shares: [{for: physics, per: User, share: 10 Mbit/s}]\n"
PHYSICS = {"LarkGroup": "physics", "User": "u@x", "LarkSlice": "s"}
OTHER = {"LarkGroup": "physics", "User": "v@x", "LarkSlice": "t", "LarkLicence": True}


@pytest.fixture
def two(rig: Rig, load: Callable[[str], Policy]) -> Rig:
    """Two jobs that have nothing in common."""
    rig.policy = load(SHARED)
    rig.controller.reload(rig.policy)
    rig.controller.register(aid(2), spec(2, phase=Phase.RUN, **PHYSICS))
    rig.controller.register(aid(3), spec(3, phase=Phase.RUN, **OTHER))
    return rig


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]


def numbers(rig: Rig) -> list[tuple[int, int, int]]:
    rows = rig.store.attempts
    return [(rows[id].identity, rows[id].slice_number, rows[id].share_number) for id in (aid(2), aid(3))]


def test_the_control_rows_that_agree_with_each_other_are_read_back_as_they_are(
    two: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    two.controller.register(aid(4), spec(4, phase=Phase.RUN, **PHYSICS))  # shares all with the first
    rows, sent = dict(two.store.attempts), two.fabric.flow_mods
    two.restart()
    assert two.store.attempts == rows
    assert two.fabric.flow_mods == sent
    assert errors(caplog) == []
    two.check()


@pytest.mark.parametrize(("name", "place"), [("identity", 0), ("slice_number", 1), ("share_number", 2)])
def test_a_number_that_is_stored_for_two_things_stays_with_the_first(
    two: Rig, caplog: pytest.LogCaptureFixture, name: str, place: int
) -> None:
    first, second = numbers(two)
    assert not set(first) & set(second)
    two.store.attempts[aid(3)] = replace(two.store.attempts[aid(3)], **{name: first[place]})
    two.restart()
    now = numbers(two)
    assert now[0] == first
    assert now[1][place] not in (first[place], 0)
    assert [one for n, one in enumerate(now[1]) if n != place] == [one for n, one in enumerate(second) if n != place]
    two.check()
    (said,) = errors(caplog)
    assert aid(2) in said
    assert aid(3) in said


Corrupt = Callable[[AttemptRow, AttemptRow], AttemptRow]


def ported(**other: Any) -> Corrupt:
    def changed(row: AttemptRow, first: AttemptRow) -> AttemptRow:
        port = row.spec.port.model_copy(update={name: getattr(first.spec.port, name) for name in other})
        return replace(row, spec=row.spec.model_copy(update={"port": port}))

    return changed


def same_lane(row: AttemptRow, first: AttemptRow) -> AttemptRow:
    lane = {name: getattr(first.spec, name) for name in ("ipv4", "ipv6", "mac", "zone")}
    return replace(row, spec=row.spec.model_copy(update=lane))


@pytest.mark.parametrize(
    "corrupt",
    [ported(ofport=1), ported(name=1), same_lane, lambda row, first: replace(row, number=first.number)],
    ids=["port number", "port name", "address, MAC and zone", "attempt number"],
)
def test_of_two_that_claim_the_same_the_second_is_torn_down(
    two: Rig, caplog: pytest.LogCaptureFixture, corrupt: Corrupt
) -> None:
    rows = two.store.attempts
    rows[aid(3)] = corrupt(rows[aid(3)], rows[aid(2)])
    two.restart()
    assert set(two.controller.world.attempts) == {aid(2)}
    (said,) = errors(caplog)
    assert aid(2) in said
    assert aid(3) in said
    two.controller.tick()
    assert set(two.store.attempts) == {aid(2)}
    two.check()
    # What the first holds is still its own, and what nobody holds is free.
    assert all(two.controller._present.claims[claim] == aid(2) for claim in two.controller._present.claims)
    two.controller.register(aid(3), spec(3, phase=Phase.RUN, **OTHER))
    two.check()


def test_an_attempt_with_the_number_of_a_declared_port_ends_when_its_bridge_says_so(
    two: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    row = two.store.attempts[aid(3)]
    uplink = row.spec.port.model_copy(update={"ofport": two.fabric.state["br1"].ports["up0"]})
    two.store.attempts[aid(3)] = replace(row, spec=row.spec.model_copy(update={"port": uplink}))
    two.restart()
    assert set(two.controller.world.attempts) == {aid(2)}
    assert any(aid(3) in said and "declared port" in said for said in errors(caplog))
    two.controller.tick()
    assert set(two.store.attempts) == {aid(2)}
    two.check()


def test_another_controllers_row_with_a_number_of_something_else_is_given_its_own(
    tmp_path: Any, load: Callable[[str], Policy], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "site.yaml").write_text(SITE)
    pair = Pair(load_site(tmp_path / "site.yaml"), load(SHARED))
    try:
        pair.a.controller.register(aid(2), spec(2, phase=Phase.RUN, **PHYSICS))
        pair.a.controller.register(aid(3), spec(3, phase=Phase.RUN, **OTHER))
        pair.check()
        first, row = pair.a.store.attempts[aid(2)], pair.a.store.attempts[aid(3)]
        before = pair.b.controller.world
        mixed = replace(row, identity=first.identity, slice_number=first.slice_number, share_number=first.share_number)
        pair.b.controller.hear(mixed)
        after = pair.b.controller.world
        assert after.identities == before.identities
        assert after.slice_numbers == before.slice_numbers
        assert after.share_numbers == before.share_numbers
        assert sum(aid(2) in said and aid(3) in said for said in errors(caplog)) == 3
        # One that is new here, too; the control beside it: a number that is nobody's is believed.
        for n, number in ((4, first.identity), (5, 7777)):
            outcome = replace(row.decision.outcome, services=frozenset({f"s{n}"}))
            decision = replace(row.decision, outcome=outcome)
            new = replace(row, id=aid(n), number=9990 + n, spec=spec(n, phase=Phase.RUN), decision=decision)
            pair.b.controller.hear(replace(new, identity=number))
            given = pair.b.controller.world.identities
            assert (given[outcome] == number) is (number == 7777)
            assert len(set(given.values())) == len(given)
        assert not any(aid(4) in said or aid(5) in said for said in errors(caplog)), "one line of a kind in a minute"
        until(lambda: not pair.b.controller.owing)
    finally:
        for one in pair.both:
            one.peers.stop()
