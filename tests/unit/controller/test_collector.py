"""What was looked at once is not looked at again, and garbage goes all the same."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from ryu_apps.collector import EVERY, Collector


class Knot:
    """A cycle of one."""

    def __init__(self) -> None:
        self.self = self


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    made.start(0.0)
    yield made
    made.stop()


def test_what_has_survived_one_look_is_set_aside(collector: Collector) -> None:
    kept = [Knot() for _ in range(1000)]
    gc.collect()
    assert not any(isinstance(one, Knot) for one in gc.get_objects())
    assert gc.get_freeze_count() > len(kept)


def test_a_young_cycle_is_collected_as_ever(collector: Collector) -> None:
    seen = weakref.ref(Knot())
    assert seen() is not None
    gc.collect()
    assert seen() is None


def test_a_cycle_that_was_set_aside_goes_at_the_next_complete_look(collector: Collector) -> None:
    knot = Knot()
    seen = weakref.ref(knot)
    gc.collect()
    del knot
    gc.collect()
    assert seen() is not None
    collector.tick(EVERY - 1)
    assert seen() is not None
    collector.tick(EVERY)
    assert seen() is None


def test_after_its_end_everything_is_as_before() -> None:
    made = Collector()
    before = list(gc.callbacks)
    made.start(0.0)
    made.stop()
    assert (gc.callbacks, gc.get_freeze_count()) == (before, 0)
