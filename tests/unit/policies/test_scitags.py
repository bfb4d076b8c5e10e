"""The encoding of scitags against what is published: the layout of draft-cc-v6ops-wlcg-flow-label-marking, and the
value that CMS's own software reads back for `scitag.flow=206` (experiment 3, activity 14)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import scitags
from policies.values import ACTIVITIES, EXPERIMENTS

PUBLISHED = [
    # experiment, activity, scitag.flow, label with no free bit set
    (3, 14, 206, 196664),
    (3, 11, 203, 0b00_110000000_0_001011_00),
    (2, 1, 129, 0b00_010000000_0_000001_00),
    (16, 14, 1038, 0b00_000010000_0_001110_00),
    (511, 63, 32767, 0b00_111111111_0_111111_00),
]


@pytest.mark.parametrize(("experiment", "activity", "value", "label"), PUBLISHED)
def test_labels_and_values_are_as_published(experiment: int, activity: int, value: int, label: int) -> None:
    assert scitags.protocol_value(experiment, activity) == value
    assert scitags.flow_label(experiment, activity) == label
    assert scitags.of_flow_label(label) == scitags.of_protocol_value(value) == (experiment, activity)


def test_five_bits_are_free_and_they_change_nothing_that_is_read() -> None:
    assert scitags.FREE_BITS.bit_count() == 5
    assert scitags.flow_label(3, 14, 0xFFFFF) == 196664 | 0b11_000000000_1_000000_11


@given(st.integers(0, 511), st.integers(0, 63), st.integers(0, 2**40))
def test_what_was_made_is_read_back_whatever_the_free_bits(experiment: int, activity: int, free: int) -> None:
    label = scitags.flow_label(experiment, activity, free)
    assert 0 <= label < 1 << 20
    assert scitags.of_flow_label(label) == (experiment, activity)


def test_the_two_numbers_are_not_taken_for_each_other() -> None:
    for experiment in EXPERIMENTS.values():
        for activity in ACTIVITIES.get(experiment, {}).values():
            value = scitags.protocol_value(experiment, activity)
            assert scitags.of_flow_label(value) != (experiment, activity)


@pytest.mark.parametrize("wrong", [(512, 1), (1, 64), (-1, 1), (1, -1)])
def test_what_does_not_fit_is_refused(wrong: tuple[int, int]) -> None:
    for make in (scitags.flow_label, scitags.protocol_value):
        with pytest.raises(ValueError, match="no scitag"):
            make(*wrong)
    with pytest.raises(ValueError, match="flow label"):
        scitags.of_flow_label(1 << 20)
    with pytest.raises(ValueError, match=r"scitag\.flow"):
        scitags.of_protocol_value(1 << 15)
