"""Sums of counters that begin anew now and then never go back, and lose nothing that was heard."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryu_apps.sums import MOST, Sums

STEPS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 50), st.integers(0, 5000), st.booleans()), max_size=40)


@given(steps=STEPS, keep=st.integers(0, 40))
def test_sums_are_all_that_was_counted_whatever_restarts_and_whoever_is_restored(
    steps: list[tuple[int, int, int, bool]], keep: int
) -> None:
    sums = Sums(3, 2)
    shown = dict.fromkeys(range(3), (0, 0))
    true = dict.fromkeys(range(3), (0, 0))
    for number, (source, packets, octets, restart) in enumerate(steps):
        if number == keep:
            sums = Sums.restored(3, 2, sums.stored())
        if restart:
            shown = dict.fromkeys(shown, (0, 0))
            sums.restarted()
        shown[source] = (shown[source][0] + packets, shown[source][1] + octets)
        true[source] = (true[source][0] + packets, true[source][1] + octets)
        grown = sums.hear(source, shown[source])
        if number < keep:
            assert grown == (packets, octets)
        assert {one: sums.of(one) for one in true} == true


def test_what_goes_back_without_a_word_is_added_up() -> None:
    sums = Sums(1, 2)
    for shown in ((5, 500), (7, 700), (1, 90), (3, 95)):
        sums.hear(0, shown)
    assert sums.of(0) == (10, 795)
    assert sums.resets == 1
    # Also where only one of them went back: both belong to one flow.
    sums.hear(0, (4, 60))
    assert sums.of(0) == (7 + 3 + 4, 700 + 95 + 60)


def test_of_what_was_there_before_nothing_is_growth() -> None:
    sums = Sums(2, 2, from_zero=False)
    assert sums.hear(0, (10, 1000)) == (0, 0)
    assert sums.hear(0, (11, 1100)) == (1, 100)
    assert sums.of(0) == (11, 1100)
    assert Sums(2, 2).hear(0, (10, 1000)) == (10, 1000)


def test_no_counter_is_too_large() -> None:
    sums = Sums(1, 3)
    for shown in ((MOST, MOST, MOST), (0, 0, 0), (MOST, MOST, MOST), (1, 1, 1)):
        sums.hear(0, shown)
    assert sums.of(0) >= (MOST, MOST, MOST)


@pytest.mark.parametrize("values", [[], [1] * 11, [-1] + [0] * 11, [MOST + 1] + [0] * 11, ["1"] * 12, [True] * 12])
def test_nonsense_is_not_restored(values: list[int]) -> None:
    assert Sums.restored(3, 2, [1] * 12).of(0) == (2, 2)
    with pytest.raises(ValueError, match="counters are needed"):
        Sums.restored(3, 2, values)
