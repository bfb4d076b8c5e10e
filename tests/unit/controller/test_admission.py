"""What the controller takes up at a time: who is told to come again, when, and who never is."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import pytest

from ryu_apps.admission import BEAT, BEHIND, FEW, LONGEST, Admission
from ryu_apps.refusals import Refused, Slug


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Site:
    """An admission, its clock, and who is in."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.admission = Admission(self.clock)
        self.inside = contextlib.ExitStack()

    def beats(self, count: int, late: float = 0.0) -> None:
        for _ in range(count):
            self.clock.now += BEAT + late
            self.admission.beat()

    def come(self, count: int, node: str = "wn1") -> None:
        for _ in range(count):
            self.inside.enter_context(self.admission.place(node))


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    with made.inside:
        yield made


def test_one_that_keeps_up_takes_what_comes(site: Site) -> None:
    for _ in range(20):
        site.come(FEW)
        site.beats(1, late=BEHIND / 5)
    assert (site.admission.load.registrations, site.admission.load.turned_away) == (20 * FEW, 0)
    assert site.admission.report() == ""


def test_one_that_is_late_turns_away_what_is_more_than_a_few(site: Site) -> None:
    site.beats(3, late=2 * BEHIND)
    site.come(FEW)
    with pytest.raises(Refused, match="try again") as refused, site.admission.place("wn1"):
        raise AssertionError("it was let in")
    assert refused.value.slug is Slug.TOO_MANY
    assert site.admission.load.registrations == FEW
    site.inside.close()
    assert site.admission.load.registrations == 0
    site.come(FEW)  # the control: no later, but there is room again
    assert "1 registrations were told to try again" in site.admission.report()
    assert site.admission.report() == "", "each is told once"


@pytest.mark.parametrize("done_before", [0, 300])
def test_a_rush_after_a_quiet_time_is_not_told_that_all_goes_slowly(site: Site, done_before: int) -> None:
    site.come(done_before)
    site.inside.close()
    site.beats(1)
    site.beats(600)
    site.come(FEW)
    site.clock.now += BEAT + 2 * BEHIND
    with pytest.raises(Refused) as refused, site.admission.place("wn1"):
        raise AssertionError("it was let in")
    assert refused.value.retry_after is not None
    assert refused.value.retry_after <= (1 if done_before else 3)


def test_one_node_does_not_take_the_places_of_the_others(site: Site) -> None:
    site.come(FEW)
    site.beats(3, late=2 * BEHIND)
    with pytest.raises(Refused):
        site.come(1)
    site.come(FEW // 2, "wn2")
    with pytest.raises(Refused):
        site.come(1, "wn2")  # that is its half
    site.come(FEW // 3, "wn3")
    with pytest.raises(Refused):
        site.come(1)
    for node in range(4, 100):
        with contextlib.suppress(Refused):
            site.come(1, f"wn{node}")
    assert site.admission.load.registrations == 2 * FEW, "there is an end to it"
    site.inside.close()
    assert not site.admission._of


def test_a_turn_that_is_not_over_yet_counts_already(site: Site) -> None:
    site.come(FEW)
    site.clock.now += BEAT + 0.9 * BEHIND
    site.come(1)
    site.clock.now += 0.2 * BEHIND
    with pytest.raises(Refused), site.admission.place("wn1"):
        raise AssertionError("it was let in")


def test_after_a_stop_it_takes_more_again_within_two_seconds(site: Site) -> None:
    site.come(FEW)
    site.beats(1, late=5.0)
    with pytest.raises(Refused), site.admission.place("wn1"):
        raise AssertionError("it was let in")
    site.beats(math.ceil(2 / BEAT))
    site.come(1)


def test_whoever_is_turned_away_is_told_how_long_what_is_there_will_take(site: Site) -> None:
    for _ in range(100):  # 50 a second, ten seconds long
        for _ in range(5):
            with site.admission.place("wn1"):
                pass
        site.beats(1)
    site.come(4 * FEW)
    site.beats(1, late=2 * BEHIND)
    with pytest.raises(Refused) as refused, site.admission.place("wn1"):
        raise AssertionError("it was let in")
    assert 4 * FEW / 50 <= refused.value.retry_after <= 2 * 4 * FEW / 50
    site.beats(50)  # nothing gets done any more
    site.come(8 * FEW)
    site.beats(1, late=2 * BEHIND)
    with pytest.raises(Refused) as refused, site.admission.place("wn1"):
        raise AssertionError("it was let in")
    assert refused.value.retry_after == LONGEST


def test_a_registration_that_fails_leaves_its_place(site: Site) -> None:
    with pytest.raises(RuntimeError), site.admission.place("wn1"):
        raise RuntimeError
    assert site.admission.load.registrations == 0
