"""Counters of attempts: asked for at a gentle pace, summed up over restarts of switches and of the controller."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from policies.language import check_together, load_site, policy_from_text
from policies.wire import Counters, SiteStats
from ryu_apps.life.counting import PORTION
from ryu_apps.openflow.cookies import FULL_MASK, Feature, cookie
from ryu_apps.openflow.counters import PLACES, Slot
from ryu_apps.openflow.flows import FlowKey
from tests.unit.controller.rig import POLICY, SITE, Rig, aid, spec
from tests.unit.controller.test_borders import BORDERS

PLACE = {slot: place for place, slot in PLACES.items()}


def count(rig: Rig, id: str, slot: Slot, packets: int, octets: int, bridge: str | None = None) -> None:
    """The switch has counted so much by now."""
    attempt = rig.controller.world.attempts[id]
    state = rig.fabric.state[bridge or attempt.bridge]
    whose = cookie(Feature.ATTEMPT, attempt.number)
    (key,) = [k for k, flow in state.flows.items() if flow.cookie == whose and (k.table, k.priority) == PLACE[slot]]
    state.counters[key] = (packets, octets)


def counters(rig: Rig, id: str) -> Counters:
    found = rig.controller.attempt(id).counters
    assert found is not None
    return found


def sent(rig: Rig, id: str) -> tuple[int, int]:
    found = counters(rig, id)
    return found.admitted_packets, found.admitted_bytes


def round_of(rig: Rig) -> None:
    """Ticks until all bridges have been asked once more."""
    for _ in range(2 * int(rig.count_every) + 1):
        rig.clock.now += 1
        for node in rig.site.nodes:
            rig.controller.node_leases.renew(node)
        rig.controller.tick()


def refused(rig: Rig) -> dict[str, tuple[int, int]]:
    return {one.reason: (one.packets, one.bytes) for one in stats(rig).jobs.refused}


def stats(rig: Rig) -> SiteStats:
    return rig.controller.stats()


def restart_switch(rig: Rig, bridge: str) -> None:
    rig.fabric.disconnect(bridge, forget=True)
    rig.fabric.connect(bridge)


def test_a_switch_that_restarts_takes_nothing_away(rig: Rig) -> None:
    rig.controller.register(aid(), spec())
    count(rig, aid(), Slot.OWN, 100, 10_000)
    count(rig, aid(), Slot.DELIVERED, 50, 70_000)
    count(rig, aid(), Slot.UNGRANTED, 3, 180)
    assert sent(rig, aid()) == (100, 10_000)
    restart_switch(rig, "br1")
    assert sent(rig, aid()) == (100, 10_000)
    # Also if it has counted more than before by the time it is asked again.
    restart_switch(rig, "br1")
    count(rig, aid(), Slot.OWN, 400, 40_000)
    found = counters(rig, aid())
    assert (found.admitted_packets, found.admitted_bytes) == (500, 50_000)
    assert (found.delivered_packets, found.delivered_bytes) == (50, 70_000)
    assert {one.reason: one.packets for one in found.denied} == {"no-grant": 3, "policy": 0, "spoofed": 0}


def test_a_flow_that_was_installed_anew_takes_nothing_away(rig: Rig) -> None:
    rig.controller.register(aid(), spec())
    count(rig, aid(), Slot.OWN, 100, 10_000)
    assert sent(rig, aid()) == (100, 10_000)
    count(rig, aid(), Slot.OWN, 2, 200)
    assert sent(rig, aid()) == (102, 10_200)


def test_sums_outlive_the_controller(make_rig: Callable[[], Rig], tmp_path: Path) -> None:
    rig = make_rig()
    rig.state_dir = tmp_path
    rig.begin()
    rig.controller.register(aid(), spec())
    count(rig, aid(), Slot.OWN, 100, 10_000)
    assert sent(rig, aid()) == (100, 10_000)
    restart_switch(rig, "br1")
    count(rig, aid(), Slot.OWN, 7, 700)
    assert sent(rig, aid()) == (107, 10_700)
    rig.controller.tick()  # what went back is written down then
    rig.restart()  # without any farewell
    assert sent(rig, aid()) == (107, 10_700)
    count(rig, aid(), Slot.OWN, 9, 900)
    assert sent(rig, aid()) == (109, 10_900)
    # A farewell, and the switch restarts while no controller is there.
    rig.controller.stop()
    rig.fabric.disconnect("br1", forget=True)
    rig.restart()
    rig.fabric.connect("br1")
    count(rig, aid(), Slot.OWN, 1, 100)
    assert sent(rig, aid()) == (110, 11_000)
    # The control: without the file the sums begin anew.
    (tmp_path / "counters.json").unlink()
    rig.restart()
    assert sent(rig, aid()) == (1, 100)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 2}', '{"version": 1}\n["attempt", "br1", 1, [1]]', '{"version": 1}\n[1, 2]\n3']
)
def test_a_file_of_sums_that_is_no_such_file_costs_sums_and_no_start(
    make_rig: Callable[[], Rig], tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    rig = make_rig()
    rig.controller.register(aid(), spec())
    count(rig, aid(), Slot.OWN, 100, 10_000)
    (tmp_path / "counters.json").write_text(text)
    rig.state_dir = tmp_path
    rig.restart()
    assert sent(rig, aid()) == (100, 10_000)
    assert "begin anew" in caplog.text
    rig.controller.stop()
    caplog.clear()
    rig.restart()
    assert sent(rig, aid()) == (100, 10_000)
    assert "begin anew" not in caplog.text


def test_all_jobs_together_are_counted_by_the_rounds_also_those_that_end(rig: Rig) -> None:
    rig.controller.register(aid(2), spec(2))
    rig.controller.register(aid(3, "wn2"), spec(3, "wn2"))
    rig.controller.register(aid(4), spec(4, LarkNetwork="none"))
    count(rig, aid(2), Slot.OWN, 10, 1000)
    count(rig, aid(3, "wn2"), Slot.OWN, 1, 100)
    count(rig, aid(3, "wn2"), Slot.DELIVERED, 4, 400)
    count(rig, aid(2), Slot.UNGRANTED, 5, 300)
    count(rig, aid(2), Slot.SPOOFED, 6, 360)
    count(rig, aid(2), Slot.REFUSED, 7, 420)
    count(rig, aid(4), Slot.REFUSED, 8, 480)
    count(rig, aid(4), Slot.OWN, 8, 480)  # what a sealed job tries is nothing that it has sent
    round_of(rig)
    jobs = stats(rig).jobs
    assert (jobs.attempts, jobs.sent_packets, jobs.sent_bytes) == (3, 11, 1100)
    assert (jobs.received_packets, jobs.received_bytes) == (4, 400)
    assert refused(rig) == {"no-grant": (5, 300), "spoofed": (6, 360), "policy": (7, 420), "sealed": (8, 480)}
    # Nothing is counted twice, by the rounds or by who looks at an attempt.
    sent(rig, aid(2))
    round_of(rig)
    assert stats(rig).jobs == jobs
    # What came between the last round and the end is counted too.
    count(rig, aid(2), Slot.OWN, 15, 1500)
    rig.controller.delete(aid(2))
    rig.controller.tick()
    assert stats(rig).jobs.sent_bytes == 1600
    round_of(rig)
    round_of(rig)
    assert stats(rig).jobs.sent_bytes == 1600


def test_a_controller_that_starts_begins_its_totals_with_0(rig: Rig) -> None:
    rig.controller.register(aid(), spec())
    count(rig, aid(), Slot.OWN, 10, 1000)
    rig.restart()
    round_of(rig)
    assert stats(rig).jobs.sent_bytes == 0
    assert sent(rig, aid()) == (10, 1000)
    count(rig, aid(), Slot.OWN, 12, 1200)
    round_of(rig)
    assert stats(rig).jobs.sent_bytes == 200


def test_a_rate_is_of_late(rig: Rig) -> None:
    rig.controller.register(aid(), spec())
    count(rig, aid(), Slot.OWN, 0, 0)
    assert counters(rig, aid()).admitted_rate == 0
    rig.clock.now += 4
    count(rig, aid(), Slot.OWN, 1000, 1_000_000)
    assert counters(rig, aid()).admitted_rate == 2_000_000
    rig.clock.now += 0.5  # too soon for another one
    assert counters(rig, aid()).admitted_rate == 2_000_000
    rig.clock.now += 4
    assert counters(rig, aid()).admitted_rate == 0


# --- the pace ---------------------------------------------------------------------------------------------------------


def many(rig: Rig, attempts: int) -> None:
    for n in range(2, 2 + attempts):
        rig.controller.register(aid(n), spec(n))


def test_many_attempts_are_asked_for_in_portions_over_the_whole_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ryu_apps.life.counting.PORTION", 4)
    many(rig, 50)
    asked: list[tuple[float, int]] = []
    told: Counter[FlowKey] = Counter()
    real = rig.fabric.count

    def counted(bridge: str, which: int, mask: int, tell: object, *, gently: bool = False) -> object:
        asked.append((rig.clock.now, len(found := rig.fabric._counted(rig.fabric.state[bridge], which, mask))))
        told.update(one.key for one in found)
        assert gently
        return real(bridge, which, mask, tell, gently=gently)  # type: ignore[arg-type]

    monkeypatch.setattr(rig.fabric, "count", counted)
    rig.controller.tick()
    began = rig.clock.now
    while rig.clock.now < began + 14:
        rig.clock.now += 1
        rig.controller.tick()
    # Each attempt once, and never more than one question a second.
    mine = {key for key, flow in rig.fabric.state["br1"].flows.items() if flow.cookie >> 48 == 0x4C07}
    assert set(told) == mine
    assert set(told.values()) == {1}
    assert max(flows for _, flows in asked) <= 6 * 7
    per_second = Counter(at for at, _ in asked)
    assert len(asked) == 8
    assert max(per_second.values()) == 1
    assert rig.controller.counting.cost.flows == len(mine)
    assert rig.controller.counting.cost.questions == 8
    assert PORTION > 4


def test_a_bridge_that_is_being_programmed_is_asked_later(rig: Rig) -> None:
    rig.controller.register(aid(), spec())
    count(rig, aid(), Slot.OWN, 10, 1000)
    state = rig.fabric.state["br1"]
    actual = dict(state.actual)
    state.actual.clear()  # it has not confirmed all that is wanted
    for _ in range(5):
        rig.clock.now += 1
        rig.controller.tick()
    assert (state.asked, stats(rig).jobs.sent_bytes) == ([], 0)
    assert rig.controller.counting.cost.put_off > 0
    state.actual.update(actual)
    for _ in range(3):
        rig.clock.now += 1
        rig.controller.tick()
    assert stats(rig).jobs.sent_bytes == 1000


def test_a_silent_or_absent_switch_holds_up_no_round(rig: Rig) -> None:
    rig.controller.register(aid(2), spec(2))
    rig.controller.register(aid(3, "wn2"), spec(3, "wn2"))
    rig.fabric.silence("br1")
    for packets in (1, 2):
        count(rig, aid(3, "wn2"), Slot.OWN, packets, packets * 100)
        round_of(rig)
        assert stats(rig).jobs.sent_bytes == packets * 100
    assert rig.controller.counting.cost.unanswered > 0
    assert len(rig.fabric.state["br1"].asked) <= 5  # one question at a time
    rig.fabric.disconnect("br1")
    count(rig, aid(3, "wn2"), Slot.OWN, 3, 300)
    round_of(rig)
    assert stats(rig).jobs.sent_bytes == 300


def test_without_rounds_switches_are_asked_by_who_looks(make_rig: Callable[[], Rig]) -> None:
    rig = make_rig()
    rig.count_every = 0
    rig.begin()
    rig.controller.register(aid(), spec())
    count(rig, aid(), Slot.OWN, 10, 1000)
    for _ in range(40):
        rig.clock.now += 1
        rig.controller.tick()
    assert rig.fabric.state["br1"].asked == []
    assert sent(rig, aid()) == (10, 1000)
    assert rig.fabric.state["br1"].asked == [FULL_MASK]


def test_ended_attempts_are_forgotten(rig: Rig) -> None:
    many(rig, 5)
    round_of(rig)
    records = rig.controller.counting._records["br1"]
    assert len(records) == 5
    for n in range(2, 7):
        rig.fabric.silence("br1")  # its last counts never come
        rig.controller.delete(aid(n))
    rig.fabric.speak("br1")
    round_of(rig)
    round_of(rig)
    assert records == {}


def test_a_border_counts_the_jobs_that_it_knows(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(SITE + BORDERS)
    classes = (
        "classes: [{name: production, dscp: af41, guarantee: 50%}, {name: rest, dscp: cs1}]\n"
        "classify: [{for: physics, class: production}]\n"
    )
    site = load_site(tmp_path / "site.yaml")
    policy = policy_from_text(POLICY.replace("physics: 'LarkGroup", "physics: 'Owner") + classes)
    check_together(policy, site)
    rig = Rig(site, policy, policy_from_text)
    rig.controller.register(aid(2), spec(2, Owner="physics"))
    rig.controller.register(aid(3), spec(3, Owner="chemistry"))
    count(rig, aid(2), Slot.CROSSED, 9, 900, "edge")
    found = counters(rig, aid(2)).borders
    assert {name: (one.packets, one.bytes) for name, one in found.items()} == {"edge": (9, 900), "edge2": (0, 0)}
    assert counters(rig, aid(3)).borders == {}
    restart_switch(rig, "edge")
    count(rig, aid(2), Slot.CROSSED, 10, 1000, "edge")
    assert counters(rig, aid(2)).borders["edge"].bytes == 1900
    round_of(rig)
    assert counters(rig, aid(2)).borders["edge"].bytes == 1900
    assert stats(rig).jobs.sent_bytes == 0  # what crosses a border has been counted on its node
