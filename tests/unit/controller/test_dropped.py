"""What rates and shares have dropped: told of jobs, of shares and of all, and never less than before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from policies.wire import Counters, Dropped, ShareStats
from ryu_apps import larkctl
from ryu_apps.openflow.counters import Slot
from ryu_apps.openflow.meters import Way, rate_meters, share_meters
from tests.unit.controller.rig import POLICY, Rig, aid, spec
from tests.unit.controller.test_counting import count, counters, round_of, stats

LIMITED = (
    POLICY.replace("groups:", "  Mbps: {type: number, min: 1}\ngroups:\n  together: 'User =!= undefined'", 1)
    + "rates: [{rate: Mbps, unit: Mbit/s}]\n"
    + "shares: [{for: together, per: User, share: 16 Mbit/s}]\n"
)
FASTER = LIMITED.replace("unit: Mbit/s", "unit: Gbit/s")


@pytest.fixture
def rig(make_rig: Callable[[], Rig], tmp_path: Path) -> Rig:
    made = make_rig()
    made.state_dir = tmp_path / "state"
    made.state_dir.mkdir()
    made.restart(made.load(LIMITED))
    return made


def meter(rig: Rig, id: str, way: Way, came: tuple[int, int], dropped: tuple[int, int], *, share: bool = False) -> None:
    """The switch's meter of an attempt's rate, or share, has counted so much by now."""
    world = rig.controller.world
    attempt = world.attempts[id]
    rule = (share_meters(world, attempt) if share else rate_meters(attempt))[way]
    state = rig.fabric.state[attempt.bridge]
    assert rule.number in state.meters
    state.metered[rule.number] = (*came, *dropped)


def begin(rig: Rig, n: int = 2, **ad: object) -> str:
    rig.controller.register(aid(n), spec(n, **ad))
    return aid(n)


def send(rig: Rig, id: str, packets: int, dropped: int, *, counted: int | None = None) -> None:
    """A job with a rate has tried to send so much, of which its flows have `counted` (Open vSwitch lags) so much."""
    counted = packets if counted is None else counted
    count(rig, id, Slot.OWN, counted, counted * 100)
    meter(rig, id, Way.OUT, (packets, packets * 100), (dropped, dropped * 100))


def passed(found: Counters) -> tuple[int, int, int]:
    assert found.dropped is not None
    assert (found.admitted_bytes, found.dropped.sent_bytes) == (
        found.admitted_packets * 100,
        found.dropped.sent_packets * 100,
    )
    return found.admitted_packets, found.dropped.sent_packets, found.dropped.received_packets


def test_what_a_rate_drops_is_told_and_is_none_of_what_passed(rig: Rig) -> None:
    job = begin(rig, Mbps=5)
    send(rig, job, 100, 40)
    count(rig, job, Slot.DELIVERED, 70, 7000)
    meter(rig, job, Way.IN, (70, 7000), (20, 2000))
    found = counters(rig, job)
    assert passed(found) == (60, 40, 20)
    assert (found.delivered_packets, found.delivered_bytes) == (50, 5000)
    assert found.share is None
    # The control: without a rate all that the flows count has passed, and nobody asks for meters.
    free = begin(rig, 3)
    count(rig, free, Slot.OWN, 100, 10_000)
    asked = len(rig.fabric.state["br1"].asked_meters)
    found = counters(rig, free)
    assert (found.admitted_packets, found.dropped) == (100, None)
    assert len(rig.fabric.state["br1"].asked_meters) == asked


def test_flows_that_lag_behind_the_meter_make_nothing_go_back(rig: Rig) -> None:
    job = begin(rig, Mbps=5)
    send(rig, job, 100, 40, counted=0)
    assert passed(counters(rig, job)) == (60, 40, 0)
    send(rig, job, 110, 60, counted=30)  # as no meter says it
    assert passed(counters(rig, job)) == (60, 60, 0)
    send(rig, job, 200, 60)
    assert passed(counters(rig, job)) == (140, 60, 0)


def test_all_jobs_together_are_told_after_what_was_dropped_also_of_those_that_end(rig: Rig) -> None:
    job = begin(rig, Mbps=5)
    send(rig, job, 100, 40)
    round_of(rig)
    jobs = stats(rig).jobs
    assert (jobs.sent_packets, jobs.rate_dropped) == (60, Dropped(sent_packets=40, sent_bytes=4000))
    send(rig, job, 150, 70)
    rig.controller.delete(job)
    rig.clock.now += 1
    rig.controller.tick()
    jobs = stats(rig).jobs
    assert (jobs.sent_packets, jobs.rate_dropped.sent_packets) == (80, 70)
    # Its number, address and meters come to another job, whose counts are its own.
    again = begin(rig, Mbps=5)
    send(rig, again, 10, 5)
    assert passed(counters(rig, again)) == (5, 5, 0)
    round_of(rig)
    assert stats(rig).jobs.rate_dropped.sent_packets == 75


def test_a_switch_that_restarts_and_a_rate_that_is_altered_take_nothing_away(rig: Rig) -> None:
    job = begin(rig, Mbps=5)
    send(rig, job, 100, 40)
    assert passed(counters(rig, job)) == (60, 40, 0)
    rig.fabric.disconnect("br1", forget=True)
    rig.fabric.connect("br1")
    assert passed(counters(rig, job)) == (60, 40, 0)
    send(rig, job, 1000, 400)
    assert passed(counters(rig, job)) == (660, 440, 0)
    # What the meter has counted until then is asked for before it is set, and counts from 0 after it.
    send(rig, job, 1500, 500)
    rig.controller.reload(rig.load(FASTER))
    send(rig, job, 1600, 10)
    meter(rig, job, Way.OUT, (100, 10_000), (10, 1000))
    assert passed(counters(rig, job)) == (660 + 400 + 90, 540 + 10, 0)


def test_an_altered_meter_that_shows_more_than_before_at_once_takes_nothing_away(rig: Rig) -> None:
    job = begin(rig, User="a@site", Mbps=5)
    send(rig, job, 100, 10)
    meter(rig, job, Way.OUT, (90, 9000), (0, 0), share=True)
    round_of(rig)
    assert (passed(counters(rig, job)), share(rig).sent_packets) == ((90, 10, 0), 90)
    rig.controller.reload(rig.load(FASTER.replace("16 Mbit/s", "8 Mbit/s")))
    # In the seconds until the next question, both count more than they ever had.
    count(rig, job, Slot.OWN, 1100, 110_000)
    meter(rig, job, Way.OUT, (1000, 100_000), (200, 20_000))
    meter(rig, job, Way.OUT, (800, 80_000), (700, 70_000), share=True)
    round_of(rig)
    assert passed(counters(rig, job)) == (90 + 800, 10 + 200, 0)
    assert (share(rig).sent_packets, share(rig).dropped.sent_packets) == (90 + 100, 700)
    jobs = stats(rig).jobs
    assert (jobs.sent_packets, jobs.rate_dropped.sent_packets) == (190, 210)
    # The control: another policy that alters no rate begins nothing anew.
    rig.controller.reload(rig.load(FASTER.replace("16 Mbit/s", "8 Mbit/s") + "# the same\n"))
    round_of(rig)
    assert passed(counters(rig, job)) == (890, 210, 0)


def test_a_job_that_comes_to_have_a_rate_keeps_what_it_had_sent_before_and_loses_it_again(rig: Rig) -> None:
    plain = rig.load(LIMITED.replace("rates: [{rate: Mbps, unit: Mbit/s}]\n", ""))
    rig.controller.reload(plain)
    job = begin(rig, Mbps=5)
    count(rig, job, Slot.OWN, 1000, 100_000)
    assert counters(rig, job).admitted_packets == 1000
    rig.controller.reload(rig.load(LIMITED))
    assert passed(counters(rig, job)) == (1000, 0, 0)
    count(rig, job, Slot.OWN, 1100, 110_000)
    meter(rig, job, Way.OUT, (100, 10_000), (30, 3000))
    assert passed(counters(rig, job)) == (1070, 30, 0)
    # Nobody but the file knows what came before the meter.
    rig.clock.now += 10
    rig.controller.tick()
    rig.restart()
    assert passed(counters(rig, job)) == (1070, 30, 0)
    rig.controller.reload(plain)
    round_of(rig)
    count(rig, job, Slot.OWN, 1200, 120_000)
    assert passed(counters(rig, job)) == (1170, 30, 0)


@pytest.mark.parametrize("with_file", [True, False], ids=["farewell", "killed"])
def test_what_was_dropped_outlives_the_controller(rig: Rig, with_file: bool) -> None:
    job = begin(rig, User="a@site", Mbps=5)
    send(rig, job, 100, 40)
    meter(rig, job, Way.OUT, (60, 6000), (10, 1000), share=True)
    round_of(rig)
    assert passed(counters(rig, job)) == (60, 40, 0)
    if with_file:
        rig.controller.stop()
        rig.fabric.disconnect("br1", forget=True)  # the switch restarts meanwhile
    rig.restart()
    rig.fabric.connect("br1")
    assert passed(counters(rig, job)) == (60, 40, 0)
    round_of(rig)
    assert share(rig).dropped.sent_packets == 10
    # Totals are of this process.
    assert stats(rig).jobs.rate_dropped == Dropped()
    if with_file:
        send(rig, job, 8, 1)
        assert passed(counters(rig, job)) == (67, 41, 0)


@pytest.mark.parametrize("row", ['["limit","br1",1,[],[],[]]', '["limit","br1",1,[1],[null,null],[]]', '["limit"]'])
def test_a_row_of_the_file_that_is_no_limit_costs_sums_and_no_start(rig: Rig, row: str) -> None:
    job = begin(rig, Mbps=5)
    send(rig, job, 100, 40)
    assert rig.state_dir is not None
    (rig.state_dir / "counters.json").write_text('{"version":1}\n' + row)
    rig.restart()
    assert passed(counters(rig, job)) == (60, 40, 0)


def share(rig: Rig) -> ShareStats:
    (found,) = stats(rig).shares
    return found


def test_what_a_share_drops_is_told_of_the_share_and_of_no_job(rig: Rig) -> None:
    one, other = begin(rig, 2, User="a@site", Mbps=5), begin(rig, 3, User="a@site")
    # Two limits in a row: what the first drops does not come to the second.
    send(rig, one, 100, 40)
    count(rig, other, Slot.OWN, 200, 20_000)
    meter(rig, one, Way.OUT, (260, 26_000), (70, 7000), share=True)
    meter(rig, one, Way.IN, (9, 900), (2, 200), share=True)
    round_of(rig)
    found = share(rig)
    assert (found.bridge, found.name) == ("br1", "of group together per User (a@site)")
    assert (found.sent_packets, found.sent_bytes, found.received_packets) == (190, 19_000, 7)
    assert found.dropped == Dropped(sent_packets=70, sent_bytes=7000, received_packets=2, received_bytes=200)
    assert passed(counters(rig, one)) == (60, 40, 0)
    of_other = counters(rig, other)
    assert (of_other.admitted_packets, of_other.dropped, of_other.share) == (200, None, found)
    jobs = stats(rig).jobs
    assert (jobs.sent_packets, jobs.rate_dropped.sent_packets, jobs.share_dropped.sent_packets) == (190, 40, 70)
    rig.clock.now += 8
    meter(rig, one, Way.OUT, (260 + 10_000, 26_000 + 1_000_000), (70, 7000), share=True)
    of_late = counters(rig, one).share
    assert of_late is not None
    assert of_late.sent_rate == 1_000_000
    # When the first of them ends the share goes on, and so do its sums.
    rig.controller.delete(one)
    round_of(rig)
    assert share(rig).dropped.sent_packets == 70
    rig.controller.delete(other)
    for _ in range(2):
        round_of(rig)
    assert not stats(rig).shares
    assert stats(rig).jobs.share_dropped.sent_packets == 70


def test_an_end_asks_for_the_job_s_own_meters_and_a_bridge_without_any_is_asked_for_none(rig: Rig) -> None:
    state = rig.fabric.state["br1"]
    job, free = begin(rig, Mbps=5), begin(rig, 3)
    own = [one.number for one in rate_meters(rig.controller.world.attempts[job])]
    rig.controller.delete(free)
    assert not state.asked_meters
    rig.controller.delete(job)
    assert [list(one or ()) for one in state.asked_meters] == [own]
    round_of(rig)
    assert len(state.asked_meters) == 1


def test_a_switch_that_has_no_such_meter_still_tells_what_the_flows_count(rig: Rig) -> None:
    job = begin(rig, Mbps=5)
    count(rig, job, Slot.OWN, 10, 1000)
    state = rig.fabric.state["br1"]
    for rule in rate_meters(rig.controller.world.attempts[job]):
        del state.actual[rule.key]
    count(rig, job, Slot.UNGRANTED, 3, 180)
    found = counters(rig, job)
    assert {one.reason: one.packets for one in found.denied}["no-grant"] == 3


def test_larkctl_tells_them(rig: Rig) -> None:
    job = begin(rig, User="a@site", Mbps=5)
    send(rig, job, 100, 40)
    meter(rig, job, Way.OUT, (60, 6000), (10, 1000), share=True)
    round_of(rig)
    said = larkctl.sentences(counters(rig, job))
    assert said[:3] == [
        "It has sent 60 packets (6.0 kB) as itself and been sent 0 packets (0 B).",
        "Its rate has dropped 40 packets (4.0 kB) on the way out and 0 packets (0 B) on the way in besides.",
        "Its share has let on 50 packets (5.0 kB) of what all jobs of that share sent, and 0 packets (0 B) of what "
        "they were sent; it has dropped 10 packets (1.0 kB) on the way out and 0 packets (0 B) on the way in, of which "
        "job is not known.",
    ]
    assert said[-1] == "Nothing of it was refused."
    console = Console(width=220)
    with console.capture() as captured:
        console.print(larkctl.stats_table(stats(rig)))
    text = captured.get()
    assert (
        "dropped by rates of single jobs: 40 packets (4.0 kB) on the way out and 0 packets (0 B) on the way in" in text
    )
    assert "dropped by shares: 10 packets (1.0 kB)" in text
    assert "of group together per User (a@site)" in text
