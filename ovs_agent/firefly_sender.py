"""Looks at the connections of marked jobs again and again, and tells the collectors (UDP, from the host's network).

Invariants: nothing of a job's life waits for this, and no trouble of it ends the agent or holds a job: a collector that
is gone, a full buffer or a namespace that has just ended costs fireflies, and a line in the log when it begins. What is
sent is bounded: `fireflies.MAX_FLOWS` connections of a job, `BURST` datagrams a `PAUSE` to each collector.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from ovs_agent import netlink, sockets
from ovs_agent.config import ScitagsSection
from ovs_agent.errors import AgentError
from ovs_agent.fireflies import Firefly, Lives, Mark, datagram
from ovs_agent.version import version

log = logging.getLogger(__name__)
BURST, PAUSE = 100, 0.1


@dataclass(frozen=True, slots=True)
class Marked:
    """An attempt with a scitag, whose network is there."""

    attempt: str
    namespace: str
    addresses: frozenset[str]
    mark: Mark


class Senders:
    """One UDP socket for each collector. Never blocks."""

    def __init__(self, collectors: Iterable[tuple[str, int]]) -> None:
        self._sockets: list[tuple[socket.socket, tuple[str, int]]] = []
        self._troubles: dict[tuple[str, int], str] = {}
        for address, port in collectors:
            made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
            made.setblocking(False)
            self._sockets.append((made, (address, port)))

    def send(self, data: bytes) -> None:
        for made, collector in self._sockets:
            try:
                made.sendto(data, collector)
            except OSError as e:
                if (trouble := e.strerror or str(e)) != self._troubles.get(collector):
                    log.warning("fireflies do not reach the collector %s port %d: %s", *collector, trouble)
                    self._troubles[collector] = trouble
            else:
                if self._troubles.pop(collector, None):
                    log.info("fireflies are sent to the collector %s port %d again", *collector)

    def close(self) -> None:
        for made, _ in self._sockets:
            made.close()


class FireflySender:
    def __init__(
        self,
        settings: ScitagsSection,
        marked: Callable[[], list[Marked]],
        ask: Callable[[], Awaitable[None]],
    ) -> None:
        """`ask` has the controller say again what it decided: a new policy may have changed a running job's mark."""
        self._settings = settings
        self._marked = marked
        self._ask = ask
        self._lives = Lives(settings.ongoing)
        self._host = re.sub(r"[^\x21-\x7e]", "", socket.gethostname())[:255] or "-"
        self._application = f"lark-agent v{version()}"
        self._told: dict[str, str] = {}
        """What was last logged, by attempt: each is said once."""

    async def run(self) -> None:
        """Until cancelled. With no collector there is nothing to do, ever."""
        if not self._settings.collector:
            await asyncio.Event().wait()
        senders = Senders(self._settings.collector)
        refreshing = asyncio.create_task(self._refresh())
        try:
            while True:
                try:
                    await self._send(senders, await self._look())
                except Exception:  # accounting; the daemon that carries jobs' networks does not end for it
                    log.exception("fireflies: a look at the connections of jobs failed")
                await asyncio.sleep(self._settings.look)
        finally:
            refreshing.cancel()
            senders.close()

    async def _look(self) -> list[Firefly]:
        marked = self._marked()
        said = self._lives.over((one.attempt for one in marked), time.time())
        self._told = {a: text for a, text in self._told.items() if any(a == one.attempt for one in marked)}
        for one in marked:
            try:
                look = functools.partial(sockets.connections, one.namespace, one.addresses)
                seen = await netlink.in_thread(look)
            except AgentError as e:
                self._tell(one.attempt, str(e))  # it may just have ended: the next look knows
                continue
            said += self._lives.look(one.attempt, one.mark, seen, time.time())
            if not seen.whole:
                self._tell(one.attempt, f"it has more than {sockets.MAX_SOCKETS} sockets of a kind; some are not seen")
            elif self._lives.beyond(one.attempt):
                self._tell(one.attempt, "it has more connections than are followed; those beyond have no fireflies")
        return said

    def _tell(self, attempt: str, text: str) -> None:
        if self._told.get(attempt) != text:
            log.warning("fireflies of attempt=%s: %s", attempt, text)
            self._told[attempt] = text

    async def _send(self, senders: Senders, said: list[Firefly]) -> None:
        for count, firefly in enumerate(said, 1):
            senders.send(datagram(firefly, self._host, self._application))
            if count % BURST == 0:
                await asyncio.sleep(PAUSE)

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(self._settings.ongoing)
            try:
                await self._ask()
            except AgentError as e:
                log.info("fireflies: marks are those last known: %s", e)
            except Exception:  # as above
                log.exception("fireflies: the controller's decisions could not be read")
