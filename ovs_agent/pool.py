"""The warm pool: lanes that are built before a job asks for one, and the rule when a number may be used again.

Invariants: a number is ready, in use, or in quarantine, never two of these; a lane that a job had is destroyed, only
its number comes back, after `release`, which is called when the controller has confirmed that nothing of it is left.
Numbers are used in turn, so the one just released is the last to come back. Ready lanes are as many as configured, more
only while jobs come faster than lanes are built (`Demand`); what is too many goes when no job has come for a while.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from ovs_agent import netlink, plan
from ovs_agent.conntrack import Conntrack
from ovs_agent.errors import AgentError
from ovs_agent.ovsdb import Ovsdb
from ovs_agent.pace import Pace
from ovs_agent.plan import Lane, Network
from ovs_agent.steps import Step, reached

log = logging.getLogger(__name__)
BATCH = 16
HURRIED = 8
"""Lanes built at once while a job waits for one."""
RECENT, REMEMBERED, IDLE = 10.0, 60.0, 60.0
"""Seconds: what counts as recent demand; how long a job that found no lane is remembered; without jobs until the pool
shrinks."""
MOST_AHEAD = 64
RUINED_TOGETHER, CHANGED_TOGETHER = 0.5, 0.75
"""Seconds between two demolitions, of which each looks at every process, and between two changes of the switch's ports
of a kind: the switch looks at every port for each change of one."""


class NoLane(AgentError):
    """The node has no free job network, or could not build one in time."""


class Demand:
    """How many lanes should be ready: as many as configured, and once a job had to wait for one, as many as the last
    seconds took. Pure: who asks says what time it is."""

    def __init__(self, warm: int) -> None:
        self._warm = warm
        self._taken: collections.deque[float] = collections.deque(maxlen=MOST_AHEAD)
        self._dry = float("-inf")

    def took(self, now: float) -> None:
        self._taken.append(now)

    def waited(self, now: float) -> None:
        """A job found no lane ready."""
        self._dry = now

    def target(self, now: float, capacity: int) -> int:
        if now - self._dry > REMEMBERED:
            return self._warm
        recent = sum(1 for at in self._taken if now - at <= RECENT)
        # A part of a small range at most: numbers should rest for a while before they come back.
        return max(self._warm, min(recent, capacity // 8))

    def idle(self, now: float) -> bool:
        return not self._taken or now - self._taken[-1] > IDLE


class Pool:
    def __init__(self, db: Ovsdb, conntrack: Conntrack, bridge: str, warm: int) -> None:
        self._db = db
        self._conntrack = conntrack
        self._bridge = bridge
        self._demand = Demand(warm)
        self._warm = warm
        self._net: Network | None = None
        self._ready: collections.deque[Lane] = collections.deque()
        self._busy: set[int] = set()
        self._next = 1
        self._wanted = 0
        self._wake = asyncio.Event()
        self._changed = asyncio.Condition()
        self._trouble = "the controller has not yet said which addresses this node has"
        self._ruins: list[tuple[netlink.Ruin, asyncio.Future[list[int]]]] = []
        self._demolishing: asyncio.Task[None] | None = None
        self._doomed: list[str] = []
        self._unplug_wake = asyncio.Event()
        self._unplug_waiting: list[asyncio.Future[None]] = []
        self._ruining = Pace(RUINED_TOGETHER)
        self._building, self._unplugging, self._unlimiting = (Pace(CHANGED_TOGETHER) for _ in range(3))
        self._unlimited: list[int] = []

    @property
    def network(self) -> Network | None:
        return self._net

    @property
    def ready(self) -> int:
        return len(self._ready)

    @property
    def trouble(self) -> str:
        """Why there is no ready lane, if there is none."""
        return "" if self._ready else self._trouble

    def zones(self) -> list[int]:
        """Conntrack zones of all lanes that exist, are being built or are in quarantine."""
        return [plan.ZONE_BASE + number for number in self._busy]

    def claim_number(self, number: int) -> None:
        """A lane that exists, or is in quarantine, from before the agent started."""
        self._busy.add(number)

    async def set_network(self, net: Network) -> None:
        """The node's range. When it changes, lanes nobody has are rebuilt."""
        if net == self._net:
            return
        log.info("job network of node=%s: %s %s", net.node, net.ipv4_range, net.ipv6_prefix or "(no IPv6)")
        self._net = net
        self._trouble = "the first job networks are being built"
        stale = list(self._ready)
        self._ready.clear()
        for lane in stale:
            await self.destroy(lane.port, [lane.namespace])
            self.release(lane.number)
        self._wake.set()

    async def acquire(self, timeout: float) -> Lane:
        """A lane of one's own. Raises NoLane."""
        if not self._ready:
            self._demand.waited(time.monotonic())
        self._wanted += 1
        self._wake.set()
        try:
            async with self._changed, asyncio.timeout(timeout):
                await self._changed.wait_for(lambda: bool(self._ready))
                self._demand.took(time.monotonic())
                return self._ready.popleft()
        except TimeoutError:
            raise NoLane(self._trouble) from None
        finally:
            self._wanted -= 1
            self._wake.set()

    async def give_back(self, lane: Lane) -> None:
        """A lane that was acquired but that no job has had, and of which the controller was told nothing."""
        async with self._changed:
            self._ready.append(lane)
            self._changed.notify_all()

    def release(self, number: int) -> None:
        """The number may be used again."""
        self._busy.discard(number)
        self._wake.set()

    async def destroy(self, port: str, namespaces: Sequence[str]) -> list[int]:
        """Processes, device, namespaces and port of a lane go. Idempotent. Returns the pids killed."""
        killed = await self._demolish(netlink.Ruin(port, tuple(namespaces)))
        await self.unplug(port)
        return killed

    async def _demolish(self, ruin: netlink.Ruin) -> list[int]:
        """Together with others that go at the same time: they share one look at the node's processes."""
        future: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self._ruins.append((ruin, future))
        if self._demolishing is None or self._demolishing.done():
            self._demolishing = asyncio.create_task(self._demolish_all())
        return await future

    async def _demolish_all(self) -> None:
        while self._ruins:
            await self._ruining.turn(full=len(self._ruins) >= BATCH)
            batch, self._ruins = self._ruins[:BATCH], self._ruins[BATCH:]
            try:
                work = functools.partial(netlink.demolish_all, [ruin for ruin, _ in batch])
                killed = await netlink.in_thread(work)
            except Exception as e:  # noqa: BLE001  handed to whoever waits
                if len(batch) > 1:  # one of them: the others must not wait for it
                    for alone in batch:
                        await self._demolish_one(*alone)
                else:
                    _settle(batch[0][1], e)
            else:
                for (_, future), pids in zip(batch, killed, strict=True):
                    _settle(future, pids)

    async def _demolish_one(self, ruin: netlink.Ruin, future: asyncio.Future[list[int]]) -> None:
        try:
            _settle(future, await netlink.in_thread(functools.partial(netlink.demolish, ruin.port, ruin.namespaces)))
        except Exception as e:  # noqa: BLE001  handed to whoever waits
            _settle(future, e)

    async def unlimit(self, zone: int) -> None:
        """Lift the limit of a zone, unless it is in use again; together with others. What fails is set anew anyway."""
        self._unlimited.append(zone)
        if len(self._unlimited) > 1:
            return  # the first of them sees to all
        await asyncio.sleep(self._unlimiting.due())
        self._unlimiting.taken()
        zones, self._unlimited = self._unlimited, []
        with contextlib.suppress(AgentError):
            await self._conntrack.unlimit(zones, self.zones)

    async def unplug(self, port: str) -> None:
        """Delete a port from the switch, together with others that go at the same time; insists until it is done."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._doomed.append(port)
        self._unplug_waiting.append(future)
        self._unplug_wake.set()
        await future

    async def run(self) -> None:
        """Keeps the pool full and deletes ports, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_full())
            group.create_task(self._keep_unplugging())

    async def close(self) -> None:
        """Take away the lanes nobody has (for a clean end; running jobs keep theirs)."""
        lanes = list(self._ready)
        self._ready.clear()
        await netlink.in_thread(functools.partial(netlink.demolish_all, _ruins(lanes)))
        with contextlib.suppress(AgentError):
            await self._db.delete_ports(self._bridge, [*(lane.port for lane in lanes), *self._doomed])
            await self._conntrack.unlimit([lane.zone for lane in lanes], list)

    async def _keep_unplugging(self) -> None:
        pause = 0.2
        while True:
            await self._unplug_wake.wait()
            await self._unplugging.turn(full=len(self._doomed) >= BATCH)
            self._unplug_wake.clear()
            ports, self._doomed = self._doomed[:BATCH], self._doomed[BATCH:]
            waiting, self._unplug_waiting = self._unplug_waiting[:BATCH], self._unplug_waiting[BATCH:]
            try:
                await self._db.delete_ports(self._bridge, ports)
                reached(Step.END_UNPLUGGED)
            except AgentError as e:
                log.error("ports %s of bridge=%s cannot be deleted yet: %s", ",".join(ports), self._bridge, e)
                self._doomed += ports
                self._unplug_waiting += waiting
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)
            else:
                pause = 0.2
                for future in waiting:
                    if not future.done():
                        future.set_result(None)
            if self._doomed:
                self._unplug_wake.set()

    def _free_numbers(self, net: Network, count: int) -> list[int]:
        size = plan.capacity(net)
        found: list[int] = []
        for _ in range(size):
            if len(found) == count:
                break
            number = (self._next - 1) % size + 1
            self._next = number % size + 1
            if number not in self._busy and not _reserved(net, number):
                found.append(number)
        return found

    async def _keep_full(self) -> None:
        pause = 0.5
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), IDLE if len(self._ready) > self._warm else None)
            self._wake.clear()
            net = self._net
            if net is None:
                continue
            missing = self._demand.target(time.monotonic(), plan.capacity(net)) + self._wanted - len(self._ready)
            if missing <= 0:
                await self._shrink()
                continue
            if self._wanted <= len(self._ready) and (due := self._building.due()):
                with contextlib.suppress(TimeoutError):  # until it is time, or a job waits for one
                    await asyncio.wait_for(self._wake.wait(), due)
                self._wake.set()
                continue
            self._building.taken()
            numbers = self._free_numbers(net, min(missing, HURRIED if self._wanted else BATCH))
            if not numbers:
                self._trouble = f"all {plan.capacity(net)} job networks of {net.ipv4_range} are in use or in quarantine"
                continue
            self._busy.update(numbers)
            try:
                built = await self._build(net, numbers)
            except AgentError as e:
                self._trouble = str(e)
                log.error("job networks cannot be built: node=%s bridge=%s: %s", net.node, self._bridge, e)
                for number in numbers:
                    self.release(number)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 10.0)
                self._wake.set()
                continue
            pause = 0.5
            if net != self._net:  # the range changed while we built
                for lane in built:
                    await self.destroy(lane.port, [lane.namespace])
                    self.release(lane.number)
            else:
                async with self._changed:
                    self._ready.extend(built)
                    self._changed.notify_all()
                reached(Step.LANE_READY)
            self._wake.set()

    async def _shrink(self) -> None:
        """Lanes that a rush has left go when no job has come for a while."""
        if not self._demand.idle(time.monotonic()):
            return
        spare = [self._ready.pop() for _ in range(len(self._ready) - self._warm)]
        if not spare:
            return
        log.info("%d job networks too many go: no job has come for %.0f s", len(spare), IDLE)
        work = [self.destroy(lane.port, [lane.namespace]) for lane in spare]
        for lane, outcome in zip(spare, await asyncio.gather(*work, return_exceptions=True), strict=True):
            if isinstance(outcome, BaseException):  # it is swept when the agent starts; its number stays in use
                log.error("lane %d (%s) cannot be taken away: %s", lane.number, lane.port, outcome)
            else:
                self.release(lane.number)
        with contextlib.suppress(AgentError):
            await self._conntrack.unlimit([lane.zone for lane in spare], self.zones)

    async def _build(self, net: Network, numbers: Sequence[int]) -> list[Lane]:
        lanes = [plan.lane(net, number) for number in numbers]

        def build() -> None:
            for lane in lanes:
                if netlink.left_of(lane.port, lane.namespace):  # a killed agent left it half-made
                    netlink.demolish(lane.port, [lane.namespace])
            netlink.build_lanes(lanes, net)

        try:
            await netlink.in_thread(build)
            await self._conntrack.limit(lambda: [lane.zone for lane in lanes])
            reached(Step.LANE_LIMITED)
            numbered = await self._db.add_lanes(self._bridge, lanes)
            reached(Step.LANE_PLUGGED)
            lame = [lane.port for lane in lanes if lane.port not in numbered]
            if lame:
                raise NoLane(f"Open vSwitch gave no OpenFlow number to {','.join(lame)}; its log says why")
        except AgentError:
            await netlink.in_thread(functools.partial(netlink.demolish_all, _ruins(lanes)))
            with contextlib.suppress(AgentError):
                await self._db.delete_ports(self._bridge, [lane.port for lane in lanes])
            raise
        return [replace(lane, ofport=numbered[lane.port]) for lane in lanes]


def _ruins(lanes: Sequence[Lane]) -> list[netlink.Ruin]:
    return [netlink.Ruin(lane.port, (lane.namespace,)) for lane in lanes]


def _settle(future: asyncio.Future[list[int]], outcome: list[int] | Exception) -> None:
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _reserved(net: Network, number: int) -> bool:
    """The gateway's own address may lie inside the range."""
    return plan.lane(net, number).ipv4 == net.ipv4_gateway
