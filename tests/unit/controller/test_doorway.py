"""The places of a listener: who gets in, who must go, and that no history breaks the limits."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ryu_apps.doorway import Admission, Doorway, Limits
from tests.effort import examples

SMALL = Limits(total=8, strangers=4, per_stranger=2, per_address=5)


def test_a_stranger_who_holds_too_many_loses_his_own_oldest() -> None:
    door = Doorway(SMALL)
    assert door.admit("a1", "192.0.2.1", 0) == door.admit("b1", "192.0.2.2", 0) == Admission(True)
    assert door.admit("a2", "192.0.2.1", 1) == Admission(True)
    assert door.turned_away_at is None
    assert door.admit("a3", "192.0.2.1", 2) == Admission(True, "a1")
    assert door.turned_away_at == 2
    assert door.report() == "1 connections refused or closed for want of a place, most from 192.0.2.1 (1)"
    assert door.report() == ""


def test_who_is_known_is_never_sent_away_and_has_room_beside_strangers() -> None:
    door = Doorway(SMALL)
    door.admit("agent", "192.0.2.1", 0)
    door.know("agent")
    for n in range(50):
        assert door.admit(n, "192.0.2.1", 1).gone != "agent"
    assert door.knows("agent")
    # Its next connection gets in beside them, and stays once it has shown who it is.
    assert door.admit("again", "192.0.2.1", 2).admitted
    door.know("again")
    for n in range(50, 100):
        assert door.admit(n, "192.0.2.1", 3).gone not in ("agent", "again")
    assert len(door) == 4


def test_strangers_from_everywhere_lose_to_an_address_that_was_known() -> None:
    door = Doorway(SMALL)
    door.admit("old", "192.0.2.1", 0)
    door.know("old")
    door.left("old")
    for n in range(4):
        assert door.admit(n, f"198.51.100.{n}", 1) == Admission(True)
    assert door.admit("new", "192.0.2.1", 2) == Admission(True, 0)
    # More strangers displace each other, not the one whose address was known.
    for n in range(4, 40):
        assert door.admit(n, f"198.51.100.{n}", 3).gone not in ("new", None)


def test_one_address_cannot_fill_the_house_even_with_a_token() -> None:
    door = Doorway(SMALL)
    for n in range(20):
        if door.admit(n, "192.0.2.1", n).admitted:
            door.know(n)
    assert len(door) == SMALL.per_address
    assert door.turned_away_at == 19
    assert door.admit("other", "192.0.2.2", 20) == Admission(True)


def test_an_ipv6_peer_is_its_64() -> None:
    door = Doorway(SMALL)
    assert [door.admit(n, f"2001:db8::{n}", 0).gone for n in range(3)] == [None, None, 0]
    assert door.admit("else", "2001:db8:0:1::1", 0) == Admission(True)
    door.left(1)
    # An IPv4 peer is the same one on an IPv6 listener.
    addresses = ["::ffff:192.0.2.1", "192.0.2.1", "192.0.2.1"]
    door = Doorway(SMALL)
    assert [door.admit(n, address, 0).gone for n, address in enumerate(addresses)] == [None, None, 0]


@settings(max_examples=examples(200), deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["admit", "know", "left"]), st.integers(0, 40), st.integers(0, 3))))
def test_no_history_breaks_the_limits(history: list[tuple[str, int, int]]) -> None:
    door = Doorway(SMALL)
    inside: dict[int, int] = {}
    known: set[int] = set()
    for what, who, address in history:
        if what == "admit" and who not in inside:
            answer = door.admit(who, f"192.0.2.{address}", 0)
            if answer.gone is not None:
                assert isinstance(answer.gone, int)
                assert answer.gone in inside
                assert answer.gone not in known
                del inside[answer.gone]
            if answer.admitted:
                inside[who] = address
        elif what == "know" and who in inside:
            door.know(who)
            known.add(who)
        elif what == "left":
            door.left(who)
            inside.pop(who, None)
            known.discard(who)
        strangers = [a for w, a in inside.items() if w not in known]
        assert len(door) == len(inside) <= SMALL.total
        assert len(strangers) <= SMALL.strangers
        assert all(strangers.count(a) <= SMALL.per_stranger for a in range(4))
        assert all(list(inside.values()).count(a) <= SMALL.per_address for a in range(4))
