"""The warm pool: lanes that are built before a job asks for one, and the rule when a number may be used again.

Invariants: a number is ready, in use, or in quarantine, never two of these; a lane that a job had is destroyed, only
its number comes back, after `release`, which is called when the controller has confirmed that nothing of it is left.
Numbers are used in turn, so the one just released is the last to come back. Ready lanes are as many as configured, more
only while jobs come faster than lanes are built (`Demand`); what is too many goes when no job has come for a while.

One kind of lane is not destroyed: one that is as it was made (`unused` says how that is known) waits for the next job
of the same uid, after the same confirmation (`keep`). Never for another's, who would trust that nobody else ever had a
hand in it. The lane that waits longest is given first. Those waiting are no more than jobs have lately come; they go
when nobody took them for a while, when their numbers are needed, and whenever a ready lane would.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import itertools
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ovs_agent import netlink, plan, unused
from ovs_agent.config import PoolSection
from ovs_agent.conntrack import Conntrack
from ovs_agent.errors import AgentError
from ovs_agent.ovsdb import Ovsdb
from ovs_agent.pace import Pace
from ovs_agent.plan import Lane, Network
from ovs_agent.steps import Step, reached
from ovs_agent.unused import Place, Reading, Suspect

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


@dataclass(frozen=True, slots=True)
class Waiting:
    """A lane that a job of `uid` left as it was made, since `since` (monotonic clock)."""

    lane: Lane
    uid: int
    since: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a lane that somebody had: who was killed in it, and why it is not kept (None: it is still there,
    as it was made)."""

    killed: tuple[int, ...] = ()
    why: str | None = None

    @property
    def kept(self) -> bool:
        return self.why is None


@dataclass(frozen=True, slots=True)
class _End:
    """A lane that waits for being looked at or destroyed. `suspect`: unless it is as it was made."""

    ruin: netlink.Ruin
    suspect: Suspect | None
    outcome: asyncio.Future[Outcome]


class Demand:
    """How many lanes should be ready: as many as configured, and once a job had to wait for one, as many as the last
    seconds took. Pure: who asks says what time it is."""

    def __init__(self, warm: int) -> None:
        self._warm = warm
        self._taken: collections.deque[float] = collections.deque(maxlen=MOST_AHEAD)
        self._new: collections.deque[float] = collections.deque(maxlen=MOST_AHEAD)
        self._dry = float("-inf")

    def took(self, now: float, *, new: bool = True) -> None:
        """`new`: a ready lane, not one that had waited for its user."""
        self._taken.append(now)
        if new:
            self._new.append(now)

    def waited(self, now: float) -> None:
        """A job found no lane ready."""
        self._dry = now

    def target(self, now: float, capacity: int) -> int:
        if now - self._dry > REMEMBERED:
            return self._warm
        return self._part(self._new, now, capacity)

    def waiting(self, now: float, capacity: int) -> int:
        """How many used lanes may wait for their users."""
        return self._part(self._taken, now, capacity)

    def _part(self, taken: Iterable[float], now: float, capacity: int) -> int:
        recent = sum(1 for at in taken if now - at <= RECENT)
        # A part of a small range at most: numbers should rest for a while before they come back.
        return max(self._warm, min(recent, capacity // 8))

    def idle(self, now: float) -> bool:
        return not self._taken or now - self._taken[-1] > IDLE


class Pool:
    def __init__(self, db: Ovsdb, conntrack: Conntrack, bridge: str, config: PoolSection) -> None:
        self._db = db
        self._conntrack = conntrack
        self._bridge = bridge
        self._demand = Demand(config.warm)
        self._warm = config.warm
        self._net: Network | None = None
        self._ready: collections.deque[Lane] = collections.deque()
        self._keep_unused = config.keep_unused
        self._built: dict[int, Lane] = {}
        """Lanes of the range of today that were built since we started."""
        self._made: dict[int, Reading] = {}
        """What the kernel said of them when they were first given to a job."""
        self._used: collections.deque[Waiting] = collections.deque()
        self._user: dict[int, int] = {}
        """The uid whose jobs have had a lane."""
        self._going: dict[asyncio.Task[None], list[Lane]] = {}
        """Used lanes that are being destroyed."""
        self._busy: set[int] = set()
        self._next = 1
        self._wanted = 0
        self._wake = asyncio.Event()
        self._changed = asyncio.Condition()
        self._trouble = "the controller has not yet said which addresses this node has"
        self._ends: list[_End] = []
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
        stale = [*self._ready, *(one.lane for one in self._used)]
        self._ready.clear()
        self._used.clear()
        self._built.clear()
        self._made.clear()
        for lane in stale:
            await self.destroy(lane.port, [lane.namespace])
            self.release(lane.number)
        self._wake.set()

    async def acquire(self, timeout: float, uid: int) -> Lane:
        """A lane of one's own, for a job of a uid. Raises NoLane."""
        if lane := self._take_used(uid):
            return lane
        if not self._ready:
            self._demand.waited(time.monotonic())
        self._wanted += 1
        self._wake.set()
        try:
            async with self._changed, asyncio.timeout(timeout):
                await self._changed.wait_for(lambda: self._ready or uid in {one.uid for one in self._used})
                if lane := self._take_used(uid):
                    return lane
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
            if lane.number in self._user:
                self._used.append(Waiting(lane, self._user[lane.number], time.monotonic()))
            else:
                self._ready.append(lane)
            self._changed.notify_all()

    def _take_used(self, uid: int) -> Lane | None:
        """The lane that has waited longest for a job of this uid."""
        for one in self._used:
            if one.uid == uid:
                self._used.remove(one)
                self._demand.took(time.monotonic(), new=False)
                return one.lane
        return None

    async def keep(self, number: int, uid: int) -> bool:
        """A lane that `leave` has kept waits for the next job of the same uid, where `release` would be called.

        False: the range has changed meanwhile, and it must be destroyed.
        """
        async with self._changed:
            if number not in self._built:
                return False
            self._user[number] = uid
            self._used.append(Waiting(self._built[number], uid, time.monotonic()))
            self._changed.notify_all()
        self._wake.set()
        return True

    def unseen(self, number: int) -> Place | None:
        """The lane that was acquired, if it is to be seen as it was made (`seen`) before anything else happens to it.

        Not when it is built: the kernel's own reports of multicast groups may still be on their way then.
        """
        lane = self._built.get(number)
        seen = number in self._made or not self._keep_unused
        return None if lane is None or seen else Place(lane.port, lane.namespace)

    def seen(self, number: int, reading: Reading) -> None:
        """What is not quiet yet is used once."""
        if number in self._built and not unused.moved(reading, reading):
            self._made[number] = reading

    def release(self, number: int) -> None:
        """The number may be used again."""
        self._busy.discard(number)
        self._built.pop(number, None)
        self._made.pop(number, None)
        self._user.pop(number, None)
        self._wake.set()

    async def destroy(self, port: str, namespaces: Sequence[str]) -> list[int]:
        """Processes, device, namespaces and port of a lane go. Idempotent. Returns the pids killed."""
        outcome = await self._demolish(netlink.Ruin(port, tuple(namespaces)), None)
        await self.unplug(port)
        return list(outcome.killed)

    async def leave(self, number: int, port: str, namespace: str, holders: Sequence[int]) -> Outcome:
        """An attempt leaves its lane: as `destroy`, but if it is as it was made, nothing is done to it.

        `holders`: pidfds of all who were ever handed the namespace. The caller has closed what is its own in there, and
        sees that nobody is handed it any more.
        """
        if not self._keep_unused or number not in self._made:
            why = "nobody knows how it was made" if self._keep_unused else "pool.keep-unused is false"
            return Outcome(tuple(await self.destroy(port, [namespace])), why)
        suspect = Suspect(Place(port, namespace), self._made[number], tuple(holders))
        outcome = await self._demolish(netlink.Ruin(port, (namespace,)), suspect)
        if not outcome.kept:
            await self.unplug(port)
        return outcome

    async def _demolish(self, ruin: netlink.Ruin, suspect: Suspect | None) -> Outcome:
        """Together with others that go at the same time: they share the looks at the node's processes."""
        end = _End(ruin, suspect, asyncio.get_running_loop().create_future())
        self._ends.append(end)
        if self._demolishing is None or self._demolishing.done():
            self._demolishing = asyncio.create_task(self._demolish_all())
        return await end.outcome

    async def _demolish_all(self) -> None:
        while self._ends:
            await self._ruining.turn(full=len(self._ends) >= BATCH)
            batch, self._ends = self._ends[:BATCH], self._ends[BATCH:]
            try:
                outcomes = await netlink.in_thread(functools.partial(_end_all, batch))
            except Exception as e:  # noqa: BLE001  handed to whoever waits
                if len(batch) > 1:  # one of them: the others must not wait for it
                    for alone in batch:
                        await self._demolish_one(alone)
                else:
                    _settle(batch[0].outcome, e)
            else:
                for end, outcome in zip(batch, outcomes, strict=True):
                    _settle(end.outcome, outcome)

    async def _demolish_one(self, end: _End) -> None:
        try:
            (outcome,) = await netlink.in_thread(functools.partial(_end_all, [end]))
            _settle(end.outcome, outcome)
        except Exception as e:  # noqa: BLE001  handed to whoever waits
            _settle(end.outcome, e)

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
        lanes = [*self._ready, *(one.lane for one in self._used), *itertools.chain(*self._going.values())]
        self._ready.clear()
        self._used.clear()
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
            surplus = self._used or len(self._ready) > self._warm
            # (`wait_for` of Python 3.11 forgets that it was cancelled when it is woken at the same moment.)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE if surplus else None):
                    await self._wake.wait()
            self._wake.clear()
            net = self._net
            if net is None:
                continue
            self._trim(net)
            missing = self._demand.target(time.monotonic(), plan.capacity(net)) + self._wanted - len(self._ready)
            if missing <= 0:
                await self._shrink()
                continue
            if self._wanted <= len(self._ready) and (due := self._building.due()):
                with contextlib.suppress(TimeoutError):  # until it is time, or a job waits for one
                    async with asyncio.timeout(due):
                        await self._wake.wait()
                self._wake.set()
                continue
            self._building.taken()
            numbers = self._free_numbers(net, min(missing, HURRIED if self._wanted else BATCH))
            if not numbers:
                self._trouble = f"all {plan.capacity(net)} job networks of {net.ipv4_range} are in use or in quarantine"
                self._let_go([self._used.popleft() for _ in range(min(missing, len(self._used)))])
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
                    self._built.update((lane.number, lane) for lane in built)
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
        await self._take_away(spare)

    def _trim(self, net: Network) -> None:
        """Used lanes that nobody took for a while go, and those that are too many."""
        now = time.monotonic()
        gone: list[Waiting] = []
        while self._used and (
            len(self._used) > self._demand.waiting(now, plan.capacity(net)) or now - self._used[0].since >= IDLE
        ):
            gone.append(self._used.popleft())
        self._let_go(gone)

    def _let_go(self, used: Sequence[Waiting]) -> None:
        """Destroy used lanes, while others are built."""
        if used:
            lanes = [one.lane for one in used]
            task = asyncio.create_task(self._take_away(lanes))
            self._going[task] = lanes
            task.add_done_callback(self._going.pop)

    async def _take_away(self, lanes: Sequence[Lane]) -> None:
        """Lanes that nobody has."""
        work = [self.destroy(lane.port, [lane.namespace]) for lane in lanes]
        for lane, outcome in zip(lanes, await asyncio.gather(*work, return_exceptions=True), strict=True):
            if isinstance(outcome, BaseException):  # it is swept when the agent starts; its number stays in use
                log.error("lane %d (%s) cannot be taken away: %s", lane.number, lane.port, outcome)
            else:
                self.release(lane.number)
        with contextlib.suppress(AgentError):
            await self._conntrack.unlimit([lane.zone for lane in lanes], self.zones)

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


def _end_all(ends: Sequence[_End]) -> list[Outcome]:
    """Those that are as they were made stay; the others go."""
    suspects = [end.suspect for end in ends if end.suspect is not None]
    asked = iter(unused.as_made(suspects) if suspects else [])
    why = [("" if end.suspect is None else next(asked) or None) for end in ends]
    if None in why:
        reached(Step.END_UNUSED)
    doomed = [end.ruin for end, text in zip(ends, why, strict=True) if text is not None]
    killed = iter(netlink.demolish_all(doomed) if doomed else [])
    return [Outcome() if text is None else Outcome(tuple(next(killed)), text) for text in why]


def _ruins(lanes: Sequence[Lane]) -> list[netlink.Ruin]:
    return [netlink.Ruin(lane.port, (lane.namespace,)) for lane in lanes]


def _settle(future: asyncio.Future[Outcome], outcome: Outcome | Exception) -> None:
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _reserved(net: Network, number: int) -> bool:
    """The gateway's own address may lie inside the range."""
    return plan.lane(net, number).ipv4 == net.ipv4_gateway
