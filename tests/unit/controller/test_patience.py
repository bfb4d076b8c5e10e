"""Waiting until a deadline: as long as it says, and longer only where the process itself stood still at it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import pytest

from ryu_apps.patience import LATE, MOST, wait_for


@dataclass
class Answer:
    """An event that is set after so many seconds of waiting, in a process whose first timer fires late by `stall`."""

    after: float
    stall: float
    now: float = 100.0
    waited: list[float] = field(default_factory=list)

    def wait(self, seconds: float) -> bool:
        self.waited.append(seconds)
        stall, self.stall = self.stall, 0.0
        if not stall and self.after <= seconds:
            self.now += self.after
            return True
        self.after -= seconds  # what was said during a standstill is read only after it, and after the timers
        self.now += seconds + stall
        return False


def test_an_answer_within_the_time_is_waited_for_and_a_late_one_is_not() -> None:
    early, late = Answer(after=9.9, stall=0), Answer(after=10.1, stall=0)
    assert wait_for(early, 110, lambda: early.now)
    assert not wait_for(late, 110, lambda: late.now)
    assert (early.now, late.now) == (pytest.approx(109.9), 110)
    assert early.waited == late.waited == [10]


@pytest.mark.parametrize("stall", [LATE + 0.1, 3.0, 60.0])
def test_what_came_while_the_process_stood_still_is_read_before_anybody_gives_up(stall: float) -> None:
    answer = Answer(after=10.2, stall=stall)
    assert wait_for(answer, 110, lambda: answer.now)
    assert answer.now == pytest.approx(110 + stall + 0.2)


def test_after_a_standstill_nobody_waits_for_ever() -> None:
    answer = Answer(after=1000, stall=60)
    assert not wait_for(answer, 110, lambda: answer.now)
    assert answer.waited == [10, MOST]
    assert answer.now == 170 + MOST


def test_a_deadline_that_has_passed_before_is_no_standstill() -> None:
    answer = Answer(after=1, stall=0)
    assert not wait_for(answer, 40, lambda: answer.now)
    assert answer.waited == [0]


def test_a_real_event() -> None:
    event = threading.Event()
    assert not wait_for(event, 0)
    event.set()
    assert wait_for(event, 0)
