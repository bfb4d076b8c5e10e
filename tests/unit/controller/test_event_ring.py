"""The ring of events: bounded, fair, in order, and nothing lost unsaid."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.events import ABOUT, Kind
from ryu_apps.event_ring import BURST, MAX_TEXT, REFILL, REPEAT, BadCursor, EventRing, News, Told

LOST, CONNECTED = Kind.BRIDGE_LOST, Kind.BRIDGE_CONNECTED
KINDS = st.sampled_from([LOST, CONNECTED, Kind.FLOWS_REPAIRED, Kind.LEASE_ENDED, Kind.CAPACITY])
STEPS = st.lists(
    st.tuples(KINDS, st.integers(0, 4), st.sampled_from("xyz"), st.floats(0, 30)), min_size=1, max_size=120
)


def happen(ring: EventRing, steps: list[tuple[Kind, int, str, float]]) -> tuple[list[Told], list[News], float]:
    """What was told in the end, and what had happened."""
    told, happened, now = [], [], 0.0
    for kind, place, text, pause in steps:
        now += pause
        told += ring.tick(now)
        news = News(kind, text, bridge=f"br{place}")
        happened.append(news)
        told += ring.tell(news, now, now)
    for _ in range(200):
        now += REFILL
        told += ring.tick(now)
    return told, happened, now


@given(STEPS)
@settings(deadline=None)
def test_everything_is_told_in_the_end_once_or_in_a_sum_and_the_last_of_each_kind_as_it_was(
    steps: list[tuple[Kind, int, str, float]],
) -> None:
    ring = EventRing("a")
    told, happened, now = happen(ring, steps)
    assert ring.tick(now + 1000) == []
    for kind in Kind:
        for place in {news.place for news in happened}:
            here = [news for news in happened if (news.kind, news.place) == (kind, place)]
            said = [one for one in told if (one.news.kind, one.news.place) == (kind, place)]
            assert sum(one.times for one in said) == len(here)
            if here:
                assert said[-1].news == here[-1]
    for place in {news.place for news in happened}:
        for topic in {about.topic for about in ABOUT.values()}:
            story = [news for news in happened if news.place == place and ABOUT[news.kind].topic == topic]
            read = [one.news for one in told if one.news.place == place and ABOUT[one.news.kind].topic == topic]
            if story:
                assert read[-1] == story[-1], "the last that is read is how it is"
    assert [one.number for one in told] == list(range(1, len(told) + 1))
    assert sum(ring.happened.values()) == len(happened)


@given(STEPS, st.integers(1, 20), st.data())
@settings(deadline=None)
def test_a_reader_gets_every_event_or_is_told_how_many_it_missed(
    steps: list[tuple[Kind, int, str, float]], capacity: int, data: st.DataObject
) -> None:
    ring = EventRing("a", capacity)
    cursor, got, missed, told, now = ring.cursor, 0, 0, 0, 0.0
    for kind, place, text, pause in steps:
        now += pause
        told += len(ring.tick(now)) + len(ring.tell(News(kind, text, bridge=f"br{place}"), now, now))
        assert len(ring.since(None).told) <= capacity
        if data.draw(st.booleans()):
            page = ring.since(cursor)
            cursor, got, missed = page.cursor, got + len(page.told), missed + page.missed
            assert not page.restarted
            assert [one.number for one in page.told] == sorted(one.number for one in page.told)
    page = ring.since(cursor)
    assert got + len(page.told) + missed + page.missed == told
    assert ring.since(page.cursor).told == []


def test_a_bridge_that_flaps_pushes_out_its_own_events_only() -> None:
    ring = EventRing("a", 20)
    quiet = [News(LOST, "away", bridge=f"quiet{number}") for number in range(8)]
    for news in quiet:
        ring.tell(news, 0.0, 0.0)
    said = []
    for second in range(4000):
        for kind in (LOST, CONNECTED):
            said += ring.tell(News(kind, f"{second}", bridge="flapping"), float(second), float(second))
    kept = [one.news for one in ring.since(None).told]
    assert [news for news in kept if news.bridge != "flapping"] == quiet
    assert len(kept) == 20
    rounds = 4000 / REFILL + BURST
    assert rounds - 2 <= len(said) <= 2 * rounds
    # The control: at one place the oldest goes, and the newest stays.
    assert kept[-1].bridge == "flapping"
    assert int(kept[-1].text) > 3980


def test_one_thing_in_the_same_words_is_told_once_a_minute_and_other_words_at_once() -> None:
    ring = EventRing("a")
    news = News(Kind.REGISTRATION_REFUSED, "no such port", node="wn1", subject="no-such-port")
    assert [one.times for one in ring.tell(news, 0, 0)] == [1]
    assert ring.tell(news, 1, 1) == []
    assert ring.tell(news, 2, 2) == []
    other = News(Kind.REGISTRATION_REFUSED, "not realised", node="wn1", subject="not-realised")
    assert [one.news.text for one in ring.tell(other, 3, 3)] == ["not realised"]
    assert ring.tick(REPEAT - 1) == []
    (told,) = ring.tick(REPEAT)
    assert (told.news, told.times, told.at) == (news, 2, 2)


def test_what_is_held_back_keeps_its_order_and_says_how_often() -> None:
    ring = EventRing("a")
    for number in range(BURST):
        assert len(ring.tell(News((LOST, CONNECTED)[number % 2], f"{number}", bridge="b"), 0, 0)) == 1
    for number, kind in enumerate((LOST, CONNECTED, LOST)):
        assert ring.tell(News(kind, f"late {number}", bridge="b"), 1, number) == []
    assert len(ring.tell(News(LOST, "away", bridge="other"), 1, 0)) == 1, "another bridge is not held back"
    told = ring.tick(REFILL)
    assert [(one.news.kind, one.news.text, one.times) for one in told] == [
        (CONNECTED, "late 1", 1),
        (LOST, "late 2", 2),
    ]


def test_a_cursor_of_another_life_is_known_as_such_and_nonsense_is_refused() -> None:
    ring, other = EventRing("aa"), EventRing("bb")
    ring.tell(News(LOST, "away", bridge="b"), 0, 0)
    page = ring.since(other.cursor)
    assert (len(page.told), page.restarted, page.missed) == (1, True, 0)
    assert ring.since(page.cursor).told == []
    for nonsense in ("", "x", "aa", "aa.2", "aa.-1", "aa.1.1", "AA.1", "aa.1\n", "aa.9999999999999999", "\u0661.1"):
        with pytest.raises(BadCursor):
            ring.since(nonsense)


def test_the_buckets_are_bounded_and_what_they_hold_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ryu_apps.event_ring.MOST_BUCKETS", 3)
    ring = EventRing("a")
    ring.tell(News(LOST, "away", bridge="b0"), 0, 0)
    ring.tell(News(LOST, "away", bridge="b0"), 0, 0)
    said = [one for number in range(1, 9) for one in ring.tell(News(LOST, "away", bridge=f"b{number}"), 1, 1)]
    assert [one.news.bridge for one in said] == ["b1", "b2", "b0", "b3", "b4", "b5", "b6", "b7", "b8"]


def test_a_text_without_end_is_cut() -> None:
    (told,) = EventRing("a").tell(News(LOST, "x" * 5000, bridge="b", subject="s"), 0, 0)
    assert (len(told.news.text), told.news.subject) == (MAX_TEXT, "s")
