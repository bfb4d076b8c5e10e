"""What the switch remembers of a lane's connections: forgotten at the end, and bounded while the lane lives.

All jobs of a node share one table of connections in the switch. Without a limit for each zone, one job that sends a
packet to many ports fills it, and no other job can open a connection.

Invariants: only zones of lanes are touched. A lane that exists never loses its limit: who lifts one says what is in
use, and that is asked when no other limit is on its way. The limit of one zone never counts against another: the
*default* limit of Open vSwitch is one counter for all zones that have none of their own, so it is never set.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from ovs_agent import control_socket
from ovs_agent.errors import AgentError

log = logging.getLogger(__name__)


class Conntrack:
    """The zones of one switch. `connections`: how many a zone may have; 0: as many as the table holds."""

    def __init__(self, rundir: Path, connections: int) -> None:
        self._rundir = rundir
        self._connections = connections
        self.datapath_type = "system"
        self._turn = asyncio.Lock()

    async def flush(self, zone: int) -> None:
        """Forget the connections of a lane, so that the next job with its zone cannot inherit them."""
        await self._ask("flush-conntrack", [f"zone={zone}"])

    async def limit(self, zones: Callable[[], Iterable[int]]) -> None:
        """Bound the connections of each of these zones. Idempotent. Raises AgentError."""
        try:
            async with self._turn:
                words = [f"zone={zone},limit={self._connections}" for zone in sorted(set(zones()))]
                if words and self._connections:
                    await self._ask("ct-set-limits", words)
        except AgentError as e:
            raise AgentError(
                f"the connections of job networks cannot be limited ({e}); if this switch has no such limits, "
                "say pool: {connections: 0}"
            ) from e

    async def unlimit(self, zones: Iterable[int], in_use: Callable[[], Iterable[int]]) -> None:
        """Take the limits away again, but of zones in use."""
        async with self._turn:
            numbers = ",".join(map(str, sorted(set(zones).difference(in_use()))))
            if numbers and self._connections:
                await self._ask("ct-del-limits", [f"zone={numbers}"])

    async def entries(self) -> dict[int, int]:
        """How many connections each zone has. Reads the whole table: for people who ask, not for each job."""
        found: dict[int, int] = {}
        for line in (await self._ask("dump-conntrack", [])).splitlines():
            if at := re.search(r"\bzone=(\d+)", line):
                found[int(at[1])] = found.get(int(at[1]), 0) + 1
        return found

    async def limited(self) -> set[int]:
        """Zones that have a limit of their own."""
        if not self._connections:
            return set()
        return {int(zone) for zone in re.findall(r"zone=(\d+)", await self._ask("ct-get-limits", []))}

    async def _ask(self, verb: str, words: list[str]) -> str:
        try:
            pid = (self._rundir / "ovs-vswitchd.pid").read_text().strip()
        except OSError:
            return ""  # no switch, no connections: a userspace datapath forgets them when it ends
        path = self._rundir / f"ovs-vswitchd.{pid}.ctl"
        try:
            # Open vSwitch 3.1 does not understand a zone after the name of a datapath (when it flushes), so the name is
            # left out where it can be.
            return await control_socket.ask(path, f"dpctl/{verb}", words, timeout=8)
        except control_socket.ControlError:
            datapath = "netdev@ovs-netdev" if self.datapath_type == "netdev" else "system@ovs-system"
            return await control_socket.ask(path, f"dpctl/{verb}", [datapath, *words], timeout=8)
