"""What comes alone is done at once; what comes in a rush is done together."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ovs_agent import netlink, pool
from ovs_agent.config import PoolSection
from ovs_agent.pace import Pace
from ovs_agent.pool import BATCH, Pool

SECONDS = 0.5


def test_the_first_does_not_wait_the_next_does_and_what_is_full_does_not() -> None:
    async def main() -> list[float]:
        pace, loop, took = Pace(SECONDS), asyncio.get_running_loop(), []
        for full in (False, False, True):
            began = loop.time()
            await pace.turn(full=full)
            took.append(loop.time() - began)
        await asyncio.sleep(SECONDS)
        assert pace.due() == 0.0
        return took

    first, second, third = asyncio.run(main())
    assert first < SECONDS / 2
    assert second >= SECONDS * 0.9
    assert third < SECONDS / 2


class Switch:
    """Counts what it is asked."""

    def __init__(self) -> None:
        self.deleted: list[list[str]] = []
        self.unlimited: list[list[int]] = []

    async def delete_ports(self, bridge: str, names: list[str]) -> None:
        self.deleted.append(list(names))

    async def unlimit(self, zones: list[int], in_use: Any) -> None:
        self.unlimited.append(sorted(set(zones) - set(in_use())))


def test_lanes_that_end_in_a_rush_are_taken_down_together_and_the_first_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ruined: list[int] = []

    def demolish_all(ruins: list[netlink.Ruin]) -> list[list[int]]:
        ruined.append(len(ruins))
        return [[] for _ in ruins]

    monkeypatch.setattr(netlink, "demolish_all", demolish_all)
    monkeypatch.setattr(pool, "RUINED_TOGETHER", SECONDS)
    monkeypatch.setattr(pool, "CHANGED_TOGETHER", SECONDS)
    switch: Any = Switch()

    async def main() -> float:
        lanes = Pool(switch, switch, "br", PoolSection(warm=4))
        running = asyncio.create_task(lanes.run())
        loop = asyncio.get_running_loop()
        began = loop.time()
        await lanes.destroy("lj0", ["ns0"])
        alone = loop.time() - began  # nothing had been done before: it waited for nobody

        async def end(number: int) -> None:
            await lanes.destroy(f"lj{number}", [f"ns{number}"])
            await lanes.unlimit(1000 + number)

        await asyncio.gather(*(end(number) for number in range(1, 9)))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return alone

    assert asyncio.run(main()) < 2 * SECONDS
    assert ruined == [1, 8]
    assert [sorted(names) for names in switch.deleted] == [["lj0"], [f"lj{number}" for number in range(1, 9)]]
    assert sorted(zone for zones in switch.unlimited for zone in zones) == list(range(1001, 1009))
    assert len(switch.unlimited) <= 2


def test_more_than_one_batch_does_not_wait_between_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "demolish_all", lambda ruins: [[] for _ in ruins])
    monkeypatch.setattr(pool, "RUINED_TOGETHER", 5.0)
    monkeypatch.setattr(pool, "CHANGED_TOGETHER", 5.0)
    switch: Any = Switch()

    async def main() -> None:
        lanes = Pool(switch, switch, "br", PoolSection(warm=4))
        running = asyncio.create_task(lanes.run())
        async with asyncio.timeout(4):
            await asyncio.gather(*(lanes.destroy(f"lj{n}", [f"ns{n}"]) for n in range(BATCH * 3)))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())
    assert [len(names) for names in switch.deleted] == [BATCH] * 3
