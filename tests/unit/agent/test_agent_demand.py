"""The warm pool follows demand, bounded, and is as configured again when the rush is over."""

from __future__ import annotations

from ovs_agent.pool import IDLE, MOST_AHEAD, RECENT, REMEMBERED, Demand


def test_jobs_that_always_find_a_lane_ready_make_the_pool_no_larger() -> None:
    demand = Demand(8)
    for second in range(100):
        demand.took(float(second) / 10)
    assert demand.target(10.0, 4000) == 8


def test_after_a_job_had_to_wait_the_pool_holds_what_the_last_seconds_took() -> None:
    demand = Demand(8)
    demand.waited(100.0)
    for number in range(30):
        demand.took(100.0 + number / 10)
    assert demand.target(103.0, 4000) == 30
    assert demand.target(103.0, 120) == 15, "a part of a small range at most"
    assert demand.target(103.0, 4) == 8, "but always what is configured"
    assert demand.target(103.0 + RECENT, 4000) == 8
    assert not demand.idle(103.0 + IDLE - 1)
    assert demand.idle(103.0 + IDLE + 1)


def test_a_flood_of_jobs_does_not_make_the_pool_grow_without_end_and_a_rush_is_forgotten() -> None:
    demand = Demand(8)
    demand.waited(0.0)
    for number in range(10_000):
        demand.took(number / 10_000)
    assert demand.target(1.0, 60_000) == MOST_AHEAD
    for number in range(50):
        demand.took(REMEMBERED + number / 100)
    assert demand.target(REMEMBERED + 0.5, 60_000) == 8


def test_lanes_that_waited_for_their_users_make_the_pool_no_larger_and_as_many_may_wait() -> None:
    demand = Demand(8)
    demand.waited(0.0)
    for number in range(30):
        demand.took(number / 10, new=number < 10)
    assert demand.target(3.0, 4000) == 10
    assert demand.waiting(3.0, 4000) == 30
    assert demand.waiting(3.0 + RECENT, 4000) == 8, "as many as are kept ready, when jobs come slowly"
    assert not demand.idle(2.9 + IDLE - 1)
