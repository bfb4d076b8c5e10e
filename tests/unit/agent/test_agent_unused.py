"""A lane is kept only if it is as it was made, and nobody is in it or on his way there; each reason alone is enough."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from ovs_agent import counts, netlink, plan, unused
from ovs_agent import pool as pool_module
from ovs_agent.config import PoolSection
from ovs_agent.counts import Counts
from ovs_agent.pool import IDLE, NoLane, Outcome, Pool
from ovs_agent.unused import Place, Reading, Suspect

STILL = "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0"
REPORTS = "180 2 0 0 0 0 0 0 0 0 0 0 0 0 0 0"
"""What the kernel itself has sent before a job came."""
MADE = Reading((("eth0", REPORTS), ("lo", STILL)), REPORTS, 0, 0, 0)
NET = plan.network("wn1", "10.20.1.0/28", 16, None, None, None, None, 1500)
OWNER, OTHER = 21001, 21002


def test_a_lane_is_as_it_was_made_when_nothing_differs() -> None:
    assert unused.moved(MADE, replace(MADE)) == ""


@pytest.mark.parametrize(
    ("now", "why"),
    [
        (replace(MADE, inside=(("eth0", REPORTS.replace("180 2", "270 3")), ("lo", STILL))), "went through eth0"),
        (replace(MADE, inside=(("eth0", REPORTS[:-1] + "1"), ("lo", STILL))), "went through eth0"),
        (replace(MADE, inside=(("eth0", REPORTS), ("lo", "84 1" + STILL[3:]))), "went through lo"),
        (replace(MADE, inside=(("eth0", REPORTS), ("lo", STILL), ("tun0", STILL))), "eth0, lo, tun0"),
        (replace(MADE, inside=(("lo", STILL),)), "devices lo"),
        (replace(MADE, host=REPORTS.replace("180 2", "180 3")), "host's end"),
        (replace(MADE, sockets=1), "1 sockets"),
        (replace(MADE, time_waits=1), "1 closing connections"),
        (replace(MADE, flow_labels=1), "flow label"),
    ],
)
def test_anything_that_differs_says_that_it_was_used(now: Reading, why: str) -> None:
    assert why in unused.moved(MADE, now)


def test_what_the_kernel_writes_is_understood() -> None:
    dev = (
        "Inter-|   Receive                                                |  Transmit\n"
        " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls "
        "carrier compressed\n"
        "    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0 "
        "      0          0\n"
        "lj12345678:18446744073709551615 2    0    0    0     0          0         0        0       0    0    0    0 "
        "    0       0          0\n"
    )
    assert unused.devices(dev) == {"lo": STILL, "lj12345678": "18446744073709551615 2" + STILL[3:]}
    sockstat = "sockets: used 3\nTCP: inuse 1 orphan 7 tw 2 alloc 9 mem 0\nUDP: inuse 0 mem 0\nRAW: inuse 0\n"
    assert unused.sockets(sockstat) == (3, 2)


# -- who is inside ----------------------------------------------------------------------------------------------------


def looks(*each: list[int | None]) -> Callable[[], list[int | None]]:
    """What one look after the other finds; the last goes on for ever."""
    left = list(each)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def test_a_network_is_empty_after_two_complete_looks_in_a_row() -> None:
    assert unused.uninhabited({7, 8}, looks([1, 2])) == ({7, 8}, set())
    assert unused.uninhabited({7, 8}, looks([1], [1, 7], [1])) == ({8}, set()), "seen by the second look only"
    assert unused.uninhabited({7}, looks([None], [1], [1])) == ({7}, set()), "the first was not complete"
    assert unused.uninhabited({7}, looks([1, None], [1], [None], [7])) == (set(), set()), "seen at last"


def test_where_no_look_is_complete_nobody_knows() -> None:
    assert unused.uninhabited({7}, looks([1, None])) == (set(), {7})
    alternating: list[list[int | None]] = [[1], [1, None]] * unused.LOOKS
    assert unused.uninhabited({7}, looks(*alternating)) == (set(), {7})


def test_a_thread_is_seen_that_stayed_behind_when_its_process_went_to_another_network() -> None:
    code = (
        "import ctypes, sys, threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "assert ctypes.CDLL(None).unshare(0x40000000) == 0\n"
        "print('away', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        ["unshare", "-n", "/usr/bin/python3", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "away\n"
        leader = os.stat(f"/proc/{process.pid}/ns/net").st_ino
        networks = {
            os.stat(f"/proc/{process.pid}/task/{t}/ns/net").st_ino for t in os.listdir(f"/proc/{process.pid}/task")
        }
        (behind,) = networks - {leader}
        assert {leader, behind} <= set(unused.threads_networks())
        assert behind not in {inode for _, inode in netlink.networks()}, "the control: not where its process is"
        process.kill()


# -- a real namespace -------------------------------------------------------------------------------------------------


@pytest.fixture
def place() -> Iterator[Place]:
    """A namespace of its own; loopback of the host stands for the host's end."""
    name = f"lark-unused-{os.getpid()}-0"
    netlink.create_namespace(name)
    try:
        yield Place("lo", name)
    finally:
        netlink.delete_namespace(name)


def test_a_lane_is_not_kept_while_somebody_lives_who_was_handed_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unused, "moved", lambda made, now: "")
    monkeypatch.setattr(unused, "uninhabited", lambda inodes: (set(inodes), set()))
    with subprocess.Popen(["/bin/sleep", "60"]) as helper:
        pidfd = os.pidfd_open(helper.pid)
        try:
            assert "handed" in unused.as_made([Suspect(place, MADE, (pidfd,))])[0]
            helper.kill()
            helper.wait()
            assert unused.as_made([Suspect(place, MADE, (pidfd,))]) == [""]
        finally:
            os.close(pidfd)


def test_a_lane_that_cannot_be_read_is_not_kept(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unused, "moved", lambda made, now: "")
    monkeypatch.setattr(unused, "uninhabited", lambda inodes: (set(inodes), set()))
    strange = [Suspect(replace(place, port="lj0-none"), MADE, ()), Suspect(place, MADE, ())]
    assert unused.as_made(strange) == ["it cannot be read", ""]
    gone = Suspect(replace(place, namespace="lark-none"), MADE, ())
    assert unused.as_made([gone]) == ["it is gone"]


# -- the pool ---------------------------------------------------------------------------------------------------------


class Switch:
    """Open vSwitch, which does everything it is asked."""

    def __init__(self) -> None:
        self.deleted: list[str] = []

    async def add_lanes(self, bridge: str, lanes: Any) -> dict[str, int]:
        return {lane.port: lane.ofport for lane in lanes}

    async def delete_ports(self, bridge: str, names: list[str]) -> None:
        self.deleted += names

    async def limit(self, zones: Any) -> None: ...

    async def unlimit(self, zones: Any, in_use: Any) -> None: ...


class Node:
    """A pool whose kernel is asked nothing: `used` are the ports of lanes that are not as they were made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **section: Any) -> None:
        self.used: set[str] = set()
        self.switch: Any = Switch()
        monkeypatch.setattr(netlink, "build_lanes", lambda lanes, net: None)
        monkeypatch.setattr(netlink, "demolish_all", lambda ruins: [[] for _ in ruins])
        monkeypatch.setattr(
            unused, "as_made", lambda suspects: ["used" if s.place.port in self.used else "" for s in suspects]
        )
        for name in ("RUINED_TOGETHER", "CHANGED_TOGETHER"):
            monkeypatch.setattr(pool_module, name, 0.01)
        self.pool = Pool(self.switch, self.switch, "br", PoolSection(warm=2, **section))

    @contextlib.asynccontextmanager
    async def running(self) -> Any:
        await self.pool.set_network(NET)
        task = asyncio.create_task(self.pool.run())
        try:
            async with asyncio.timeout(10):
                while self.pool.ready < 2:
                    await asyncio.sleep(0.01)
                yield self.pool
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def job(self, uid: int) -> tuple[int, Outcome]:
        """A job that takes a lane and ends at once: its lane, and what became of that."""
        lane = await self.pool.acquire(5, uid)
        if self.pool.unseen(lane.number) is not None:
            self.pool.seen(lane.number, MADE)
        outcome = await self.pool.leave(lane.number, lane.port, lane.namespace, [])
        if not outcome.kept:
            self.pool.release(lane.number)
        elif not await self.pool.keep(lane.number, uid):
            await self.pool.destroy(lane.port, [lane.namespace])
            self.pool.release(lane.number)
        return lane.number, outcome


def test_jobs_of_one_user_share_a_lane_and_another_users_job_gets_one_that_nobody_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = Node(monkeypatch)

    async def main() -> None:
        async with node.running():
            assert [(await node.job(OWNER))[0] for _ in range(3)] == [1, 1, 1]
            assert [(await node.job(OTHER))[0] for _ in range(2)] == [2, 2]
            assert (await node.job(OWNER))[0] == 1
            assert node.switch.deleted == []

    asyncio.run(main())


def test_a_lane_that_was_used_goes_and_the_next_job_gets_another(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(monkeypatch)

    async def main() -> None:
        async with node.running():
            assert (await node.job(OWNER)) == (1, Outcome())
            node.used.add("lj1")
            assert (await node.job(OWNER)) == (1, Outcome((), "used"))
            assert node.switch.deleted == ["lj1"]
            assert (await node.job(OWNER))[0] == 2

    asyncio.run(main())


def test_a_lane_that_was_not_quiet_when_it_was_first_given_is_used_once(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(monkeypatch)

    async def main() -> None:
        async with node.running() as lanes:
            lane = await lanes.acquire(5, OWNER)
            assert lanes.unseen(lane.number) == Place(lane.port, lane.namespace)
            lanes.seen(lane.number, replace(MADE, sockets=1))
            outcome = await lanes.leave(lane.number, lane.port, lane.namespace, [])
            assert not outcome.kept
            assert node.switch.deleted == [lane.port]

    asyncio.run(main())


def test_where_it_is_switched_off_every_lane_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(monkeypatch, **{"keep-unused": False})

    async def main() -> None:
        async with node.running():
            number, outcome = await node.job(OWNER)
            assert not outcome.kept
            assert node.switch.deleted == [f"lj{number}"]

    asyncio.run(main())


def test_lanes_that_nobody_takes_go_and_their_numbers_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(monkeypatch)

    async def main() -> None:
        async with node.running() as lanes:
            await node.job(OWNER)
            assert 1001 in lanes.zones()
            (one,) = lanes._used
            lanes._used[0] = replace(one, since=one.since - IDLE)
            lanes._wake.set()
            while 1001 in lanes.zones():
                await asyncio.sleep(0.01)
            assert node.switch.deleted == ["lj1"]

    asyncio.run(main())


def test_a_number_that_the_pool_needs_is_taken_from_a_lane_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(monkeypatch)

    async def main() -> None:
        async with node.running() as lanes:
            await node.job(OWNER)
            for _ in range(plan.capacity(NET)):  # one of them has to have the number that waits for its owner
                await lanes.acquire(5, OTHER)
            assert node.switch.deleted == ["lj1"]
            with pytest.raises(NoLane):
                await lanes.acquire(0.1, OTHER)

    asyncio.run(main())


def test_no_more_lanes_wait_than_jobs_have_lately_come(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(monkeypatch)

    async def main() -> None:
        async with node.running() as lanes:
            held = [await lanes.acquire(5, OWNER) for _ in range(5)]
            for lane in held:
                lanes.seen(lane.number, MADE)
                assert (await lanes.leave(lane.number, lane.port, lane.namespace, [])).kept
                assert await lanes.keep(lane.number, OWNER)
            while len(node.switch.deleted) < 3:  # of a range of 14, `warm` may wait
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            assert sorted(node.switch.deleted) == ["lj1", "lj2", "lj3"], "those that had waited longest"

    asyncio.run(main())


def test_when_the_range_changes_no_lane_of_the_old_one_is_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(monkeypatch)

    async def main() -> None:
        async with node.running() as lanes:
            await node.job(OWNER)
            running = await lanes.acquire(5, OTHER)
            lanes.seen(running.number, MADE)
            outcome = await lanes.leave(running.number, running.port, running.namespace, [])
            assert outcome.kept
            await lanes.set_network(replace(NET, ipv4_range=plan.ipaddress.IPv4Network("10.20.2.0/28")))
            assert "lj1" in node.switch.deleted
            assert not await lanes.keep(running.number, OTHER)
            assert str((await lanes.acquire(5, OWNER)).ipv4).startswith("10.20.2.")

    asyncio.run(main())


def test_at_a_clean_end_the_lanes_that_wait_go_too(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(monkeypatch)

    async def main() -> None:
        async with node.running() as lanes:
            await node.job(OWNER)
            await lanes.close()
            assert "lj1" in node.switch.deleted

    asyncio.run(main())


# -- counts -----------------------------------------------------------------------------------------------------------


def test_what_went_before_is_not_the_jobs() -> None:
    before, now = Counts(0, 180, 0, 2), Counts(1000, 1180, 3, 6)
    assert counts.since(now, before) == Counts(1000, 1000, 3, 4)
    assert counts.since(now, None) == now
