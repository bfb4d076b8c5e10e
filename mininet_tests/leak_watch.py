"""Looks for leaks from inside of a simulated machine, quickly and often: `python -m mininet_tests.leak_watch CONFIG`.

One command of JSON a line, one answer a line. It judges by `ovs_agent.leaks`, as `lark-agent doctor` does, but without
its pause: the tests measure how soon after the end of a starter nothing is left.

  {"do": "look"}                        what is there now
  {"do": "watch", "attempts": [...]}    hold the starters of these attempts
  {"do": "ended", "timeout": 60}        wait until all of these have ended, then until nothing of anybody is left but
                                        `living`; the seconds in between, and what is left
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import sys
import time
from pathlib import Path
from typing import Any

from ovs_agent import config, doctor, leak_scan
from ovs_agent.leaks import Verdict
from ovs_agent.ovsdb import Ovsdb

PAUSE = 0.05


class Watch:
    def __init__(self, path: Path) -> None:
        self._config = config.load(path)
        self._db = Ovsdb(self._config.bridge.ovsdb, self._config.bridge.rundir)
        self._controller = doctor.client(self._config)
        self._held: dict[str, int] = {}

    async def look(self) -> Verdict:
        return await leak_scan.look(self._config, self._db, self._controller)

    def watch(self, attempts: list[str]) -> None:
        for fd in self._held.values():
            os.close(fd)
        self._held = {attempt: os.pidfd_open(int(attempt.split("~")[3])) for attempt in attempts}

    async def ended(self, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        for attempt, fd in self._held.items():
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return {"error": f"the starter of {attempt} has not ended within {timeout:g} s"}
        began = time.monotonic()
        while True:
            at = time.monotonic() - began
            verdict = await self.look()
            gone = not set(self._held) & set(verdict.living)
            if (gone and not verdict.lines()) or at > timeout:
                return {"seconds": at, "clean": gone and not verdict.lines(), **said(verdict)}
            await asyncio.sleep(PAUSE)


def said(verdict: Verdict) -> dict[str, Any]:
    return {"left": verdict.lines(), "living": list(verdict.living), "spare": list(verdict.spare)}


async def main(path: Path) -> None:
    watch = Watch(path)
    while line := await asyncio.to_thread(sys.stdin.readline):
        command = json.loads(line)
        answer: dict[str, Any] = {}
        match command["do"]:
            case "look":
                answer = said(await watch.look())
            case "watch":
                watch.watch(command["attempts"])
            case "ended":
                answer = await watch.ended(command["timeout"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
