"""The job's attributes, from the slot ad of the local startd: the one source that the job's owner cannot write to.

Invariants: one question at a time; its answer serves everybody whose starter was there before the question was put,
and nobody else. (The startd is one thread: it takes down the new job of a slot and starts the starter in one go, and
answers no question in between. So what it answers a question that was put after a starter began is about that starter's
job, or a later one.) An answer is about the job that the caller's starter runs: the slot is claimed, has a job, and the
job's start is not older than the starter.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovs_agent.errors import AgentError

log = logging.getLogger(__name__)
QUERY: tuple[str, ...] = (sys.executable, "-m", "ovs_agent.startd_query")
SPARED, SPARED_LONGEST = 2.0, 0.5
"""For how many times as long as its last answer took the startd is left alone after it, and for how many seconds at the
most: it works out all of its slots anew for each question (5 to 8 ms of CPU with 20 slots), and has jobs to start."""
TICK = 1 / os.sysconf("SC_CLK_TCK")
"""Seconds by which a process may be younger than its start time says, which is cut to clock ticks."""
KEPT = 1.0
"""Seconds that an answer is kept for whoever comes."""
CLOCK_SLACK = 3.0
"""Seconds by which JobStart (whole seconds of the wall clock) may seem older than the starter."""


class StartdError(AgentError):
    """The startd did not answer, or not about this job."""


class NotLiteral(StartdError):
    """An attribute that the policy may read holds an expression: the job must be held."""


@dataclass(frozen=True, slots=True)
class SlotAd:
    """What the startd says about the job on a slot."""

    job: str | None
    global_id: str
    ad: Mapping[str, Any]
    slot: Mapping[str, Any]


def pick(slots: Mapping[str, Any], slot: str) -> Mapping[str, Any] | None:
    """The entry of a slot by the name in the starter's command line (`slot1_1`, or already `slot1_1@host`)."""
    found = [entry for name, entry in slots.items() if name == slot or name.partition("@")[0] == slot]
    return found[0] if len(found) == 1 else None


def daemon_of(address: str) -> str:
    """What tells one daemon from another in an HTCondor address: its name behind a shared port, else host and port."""
    found = re.search(r"[?&]sock=([^&>]+)", address) or re.match(r"<?([^?>]+)", address)
    return found[1] if found else ""


def judge(entry: Mapping[str, Any] | None, slot: str, starter_started: float) -> SlotAd | str:
    """The ad, or in words why it is not (yet) about this starter's job. Raises NotLiteral."""
    if entry is None:
        return f"the startd has no slot named {slot}"
    meta = entry["meta"]
    if "GlobalJobId" not in meta and "JobId" not in meta:
        return f"{slot} has no job yet"
    begun = meta.get("JobStart")
    if isinstance(begun, int | float) and begun < starter_started - CLOCK_SLACK:
        return f"{slot} still shows the job before"
    if entry["expressions"]:
        names = ", ".join(sorted(entry["expressions"]))
        raise NotLiteral(
            f"{names}: must be a plain value of at most 16 KB (UTF-8 string, number, true, false, or a list of these)"
        )
    job = meta.get("JobId")
    return SlotAd(
        job=job if isinstance(job, str) else None,
        global_id=str(meta.get("GlobalJobId", "")),
        ad=dict(entry["ad"]),
        slot=dict(entry["slot"]),
    )


def started_at(start_ticks: int) -> float:
    """Wall-clock time of a process start, from its clock ticks since boot."""
    since_boot = start_ticks * TICK
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot


def _since_boot() -> float:
    """Seconds, by the clock of processes' start times."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Startd:
    """Asks through a child process that is started when first needed, and again when it failed."""

    def __init__(self, config: Path | None, timeout: float) -> None:
        self._timeout = timeout
        self._env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        if config is not None:
            self._env["CONDOR_CONFIG"] = str(config)
        self._process: asyncio.subprocess.Process | None = None
        self._running = False
        self._waiting: list[tuple[float, asyncio.Future[Mapping[str, Any]]]] = []
        self._last: tuple[float, Mapping[str, Any]] | None = None
        """An answer, and when it was asked for."""
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self.questions = 0
        self._spare_until = float("-inf")

    async def attributes(self, *, again: bool = False) -> list[str]:
        """STARTD_JOB_ATTRS of the configuration. `again`: read the configuration anew."""
        reply = await self._ask({"do": "reconfigure" if again else "attributes"})
        return list(reply["attributes"])

    async def slots(self, since: float | None = None) -> Mapping[str, Any]:
        """The startd's `address` and all its `slots`, by an answer to a question that is put after `since` (seconds
        since boot; without it: after this call)."""
        if since is None:
            since = _since_boot()
        if self._last is not None and self._last[0] > since:
            return self._last[1]
        future: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting.append((since, future))
        if not self._running:
            self._running = True
            task = asyncio.create_task(self._serve())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await future

    async def _serve(self) -> None:
        try:
            while self._waiting:
                if (spare := self._spare_until - asyncio.get_running_loop().time()) > 0:
                    await asyncio.sleep(spare)
                while (ahead := min(since for since, _ in self._waiting) - _since_boot()) >= 0:
                    await asyncio.sleep(ahead + 0.001)
                began, asked = asyncio.get_running_loop().time(), _since_boot()
                reply: Mapping[str, Any] | StartdError
                try:
                    self.questions += 1
                    reply = await self._ask({"do": "slots"})
                except StartdError as e:
                    reply = e
                else:
                    self._keep(asked, reply)
                ended = asyncio.get_running_loop().time()
                self._spare_until = ended + min(SPARED * (ended - began), SPARED_LONGEST)
                served = [future for since, future in self._waiting if since < asked]
                self._waiting = [(since, future) for since, future in self._waiting if since >= asked]
                for future in served:
                    if future.done():
                        continue
                    if isinstance(reply, StartdError):
                        future.set_exception(reply)
                    else:
                        future.set_result(reply)
        finally:
            self._running = False

    def _keep(self, asked: float, reply: Mapping[str, Any]) -> None:
        self._last = asked, reply
        asyncio.get_running_loop().call_later(KEPT, self._drop, reply)

    def _drop(self, reply: Mapping[str, Any]) -> None:
        if self._last is not None and self._last[1] is reply:
            self._last = None

    async def job_on(
        self, slot: str, starter_start: int, parent: str, patience: float, still_wanted: Callable[[], bool]
    ) -> SlotAd:
        """The ad of a starter's job. `starter_start`: in clock ticks; `parent`: the address of the starter's startd.

        On a node with several pools a starter of one must not get the attributes of another's slot of the same name.
        """
        begun = started_at(starter_start)
        # The starter is there already, so no question that is put from now on is too early, whatever the clocks say.
        since: float | None = min(starter_start * TICK + 2 * TICK, _since_boot())
        deadline = time.monotonic() + patience
        pause = 0.02
        while True:
            try:
                reply = await self.slots(since)
                if not parent or daemon_of(parent) != daemon_of(reply["address"]):
                    raise StartdError(
                        f"the starter's startd is {parent or 'unknown'}, but condor.config of the agent leads to "
                        f"{reply['address']}"
                    )
                found = judge(pick(reply["slots"], slot), slot, begun)
            except NotLiteral:
                raise
            except StartdError as e:
                found = e.text
            if isinstance(found, SlotAd):
                return found
            if time.monotonic() > deadline or not still_wanted():
                raise StartdError(f"no attributes of the job: {found}")
            since = None  # what is there already was no good
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)

    async def _ask(self, question: Mapping[str, Any]) -> Mapping[str, Any]:
        async with self._lock:
            try:
                process = self._process
                if process is None or process.returncode is not None:
                    process = self._process = await asyncio.create_subprocess_exec(
                        *QUERY,
                        stdin=asyncio.subprocess.PIPE,
                        stdout=asyncio.subprocess.PIPE,
                        env=self._env,
                        limit=64 * 1024 * 1024,
                    )
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(json.dumps(question).encode() + b"\n")
                await process.stdin.drain()
                line = await asyncio.wait_for(process.stdout.readline(), self._timeout)
                reply = json.loads(line) if line else {"error": "the query process ended"}
            except TimeoutError:
                await self.close()
                raise StartdError(f"the startd did not answer within {self._timeout:g} s") from None
            except asyncio.CancelledError:
                await self.close()  # its answer would be taken for the next question's
                raise
            except (OSError, ValueError) as e:
                await self.close()
                raise StartdError(f"the startd cannot be asked: {e}") from None
        if "error" in reply:
            raise StartdError(f"the startd cannot be asked: {reply['error']}")
        return dict(reply)

    async def close(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
