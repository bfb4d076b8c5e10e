"""Keeps a bridge as `prepare-bridge` made it: closed, its table 0 in place, quick to find its controller again.

The agent does it for its worker bridge, `lark-agent keep-bridge` for a gate or a border. Nobody else can: OpenFlow
shows a controller neither fail_mode nor in-band control, and table 0 is not the controller's.

On a gate or a border it also keeps the host's own kernel off the bridge's ports, where the datapath is in userspace.
(On a worker the agent sees to the ports of jobs; the uplink is the host's own way out.)

Invariants: only what `prepare-bridge` wrote is ever put right, each time with a line in the log; nothing is made anew.
Open vSwitch (3.1) takes up `max_backoff` only when its configuration changes while that controller is connected, and
forgets it when ovs-vswitchd ends; so for each of its lives and each controller one harmless column is written then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from ovs_agent import nft
from ovs_agent.bridge import SwitchWatch, assert_table0, hasten, wrong_settings
from ovs_agent.errors import AgentError
from ovs_agent.ovsdb import Ovsdb

log = logging.getLogger(__name__)
LOOK_SECONDS = 5.0
NUDGES = 2
"""The switch shows a connection up to five seconds late, so one that ended meanwhile may still be shown."""


class BridgeKeeper:
    """Looks every few seconds. `watch` knows whether ovs-vswitchd lives, and sees to table 0 when it comes back."""

    def __init__(
        self, db: Ovsdb, rundir: Path, bridge: str, uplink: str | None, watch: SwitchWatch, *, guard: bool = False
    ) -> None:
        """`guard`: whether the ports are nobody's but the bridge's."""
        self._db = db
        self._guard = guard
        self._guarded: frozenset[str] | None = None
        self._spared: frozenset[str] = frozenset()
        self._rundir = rundir
        self._bridge = bridge
        self._uplink = uplink
        self._watch = watch
        self._nudges: Counter[tuple[int, str]] = Counter()
        self._said = ""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.look()
                self._said = ""
            except AgentError as e:
                if str(e) != self._said:
                    log.error("bridge=%s cannot be looked after: %s", self._bridge, e)
                self._said = str(e)
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Once. Raises AgentError if the bridge or the switch is not there."""
        row = await self._db.bridge(self._bridge)
        if row is None:
            raise AgentError("there is no such bridge; run lark-agent prepare-bridge", f"bridge {self._bridge}")
        if wrong := wrong_settings(row):
            await self._db.vsctl(["set", "Bridge", self._bridge, *wrong])
            log.error("somebody else changed bridge=%s; put right: %s", self._bridge, " ".join(wrong))
        if self._watch.alive:
            await self._see_to_the_switch()
        # Last: a kernel without nftables must not cost the gate its table 0.
        if self._guard and row["datapath_type"] == "netdev":
            await self._guard_ports()

    async def _see_to_the_switch(self) -> None:
        if sent := await assert_table0(self._db, self._rundir, self._bridge, self._uplink):
            log.error("somebody else changed table 0 of bridge=%s; put right with %d flows", self._bridge, sent)
        for said in await hasten(self._db, self._bridge):
            log.info("bridge=%s: %s", self._bridge, said)
        await self._nudge()

    async def _guard_ports(self) -> None:
        """A device with an address is the host's too: cutting that off could lock the administrator out."""
        plugged = await self._db.plugged(self._bridge)
        spared = plugged & await nft.addressed()
        if spared != self._spared:
            self._spared = spared
            if spared:
                log.error(
                    "the host itself has an address on ports %s of bridge=%s: whoever is there reaches the host past "
                    "the bridge; move the address to the bridge's own port, or to another device",
                    ",".join(sorted(spared)),
                    self._bridge,
                )
        ports = plugged - spared
        if ports != self._guarded or not await nft.ports_guarded(self._bridge):
            await nft.guard_ports(self._bridge, ports)
            self._guarded = ports
            log.info("the host's kernel is kept off ports %s of bridge=%s", ",".join(sorted(ports)), self._bridge)

    async def _nudge(self) -> None:
        pid = self._watch.pid()
        if pid is None:
            return
        due = [
            (pid, one.uuid)
            for one in await self._db.controllers(self._bridge)
            if one.connected and self._nudges[pid, one.uuid] < NUDGES
        ]
        if not due:
            return
        self._nudges.update(due)
        # Each life of the switch and each controller has its own value, so that each write is a change.
        value = f"{pid}-{sum(self._nudges.values())}"
        await self._db.vsctl(["set", "Bridge", self._bridge, f"external_ids:lark-connected={value}"])


async def keep(db: Ovsdb, rundir: Path, bridge: str, ready: Callable[[], Awaitable[None]]) -> None:
    """What `lark-agent keep-bridge` does, until SIGTERM or SIGINT. `ready`: called when the switch was first seen."""
    watch = SwitchWatch(db, rundir, bridge, None)
    keeper = BridgeKeeper(db, rundir, bridge, None, watch, guard=True)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if not await _find(db, bridge, stop):
        return
    tasks = [asyncio.create_task(work) for work in (watch.run(ready), keeper.run(), stop.wait())]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()  # a part that should run for ever has ended: say why, and exit non-zero


async def _find(db: Ovsdb, bridge: str, stop: asyncio.Event) -> bool:
    """Whether the bridge is there. Waits for a database that does not answer (yet), and for nothing else: a name that
    the database does not have is a mistake. Raises AgentError for that."""
    said = ""
    while not stop.is_set():
        try:
            if await db.bridge(bridge) is not None:
                return True
            names = (await db.vsctl(["list-br"])).split()
        except AgentError as e:
            if str(e) != said:
                log.error("bridge=%s: waiting for the switch's database: %s", bridge, e)
            said = str(e)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 1)
            continue
        there = f"there are {', '.join(names)}" if names else "there is none at all"
        raise AgentError(
            f"no such bridge ({there}); mend --bridge, or run lark-agent prepare-bridge", f"bridge {bridge}"
        )
    return False
