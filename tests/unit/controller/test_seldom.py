"""What other controllers write by the thousand does not fill the log."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ryu_apps.life.seldom import Seldom
from ryu_apps.life.times import Times
from tests.unit.controller.rig import aid, spec
from tests.unit.controller.test_agreeing import new_pair, settle


def test_one_line_of_a_kind_in_a_minute_and_the_next_says_how_many_there_were(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [100.0]
    seldom = Seldom(Times(clock=lambda: now[0]))

    def said() -> list[str]:
        found = [one.getMessage() for one in caplog.records]
        caplog.clear()
        return found

    seldom.error("a", "%s 1%%", "first")
    assert said() == ["first 1%"]
    for _ in range(3):
        seldom.error("a", "%s", "more")
    seldom.error("b", "another")
    assert said() == ["another"]
    now[0] += 60
    seldom.error("a", "%s", "last")
    assert said() == ["last (and 3 more like this since it was last said)"]
    now[0] += 60
    seldom.error("a", "%s", "quiet")
    assert said() == ["quiet"]


def test_rows_of_another_controller_that_do_not_fit_are_one_line_and_the_others_are_heard(
    caplog: pytest.LogCaptureFixture,
) -> None:
    a, b = new_pair()
    settle(a, b)
    known = set(b.controller.world.attempts)
    row = a.store.attempts[aid(2)]
    caplog.clear()
    for n in range(13, 18):
        b.controller.hear(replace(row, id=aid(n), number=row.number + n, spec=spec(n).model_copy(update={"zone": 7})))
    b.controller.hear(replace(row, id=aid(18), number=row.number + 18, spec=spec(18)))
    lines = [one for one in caplog.records if "does not fit" in one.getMessage()]
    assert len(lines) == 1
    assert aid(13) in lines[0].getMessage()
    assert b.controller.world.attempts.keys() == known | {aid(18)}


def test_rows_of_another_controller_with_numbers_of_something_else_are_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    a, b = new_pair()
    settle(a, b)
    row = a.store.attempts[aid(2)]
    other = replace(row.decision, outcome=replace(row.decision.outcome, sealed=True))
    caplog.clear()
    for n in range(13, 18):
        b.controller.hear(replace(row, id=aid(n), number=row.number + n, spec=spec(n), decision=other))
    lines = [one for one in caplog.records if "for what is not the same" in one.getMessage()]
    assert len(lines) == 1
    numbers = b.controller.world.identities
    assert numbers[other.outcome] != row.identity, "the control: they have a number of their own"
