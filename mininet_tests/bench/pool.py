"""HTCondor with Lark against the same pool without: jobs per second, and what a job's start costs.

One real pool (23.9.6), twenty slots, claims re-used. Switching between *on* and *off* is what an administrator would
do: Lark's two configuration files are there or not. Batches alternate, so that whatever else the machine does meets
both. A batch's rate is its jobs over the time from the first start to the last end, as the job event log tells it.

What a job costs is the processor time of each program on the site during a batch, over its jobs: access point, gate and
controller share the machine's cores with the node here, so with jobs that do nothing the rate says how much there is to
do altogether.

The parts of a start are read from the agent's log (`begin: … ms=… (startd …, lane …, ledger …, controller …)`): of jobs
that start one by one, and of a burst.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType

from mininet_tests.bench.cpu import spent, usage
from mininet_tests.site.campus import ALICE, Site
from mininet_tests.site.namespaces import wait_until

SLOTS = 20
SETTLE = 1.5
SHOWN = 0.5
"""Milliseconds a job that a program must take to be named."""
SETTINGS = f"""
NUM_CPUS = {SLOTS}
MEMORY = {SLOTS * 128}
NUM_SLOTS = {SLOTS}
NUM_SLOTS_TYPE_1 = {SLOTS}
SLOT_TYPE_1 = 1/{SLOTS}
SLOT_TYPE_1_PARTITIONABLE = False
"""
# Its startd is restarted many times: the master would wait longer before each time, in the end for minutes.
PROMPT = "MASTER_BACKOFF_CONSTANT = 1\nMASTER_BACKOFF_CEILING = 2\n"
FAST = "MAX_JOBS_RUNNING = 1000\nJOB_START_COUNT = 50\nDEFAULT_USERLOG_FORMAT_OPTIONS = ISO_DATE SUB_SECOND\n"
FILES = {"access": "50-lark-access.config", "execute": "50-lark-execute.config"}
BEGIN = re.compile(r" begin: .* job=(\S+) .* ms=(\d+) \((.*)\)$")


@dataclass(frozen=True, slots=True)
class Share:
    """Jobs per second of one kind of job, with Lark and without: medians of the rounds."""

    kind: str
    jobs: int
    rounds: int
    on: float
    off: float
    costs: dict[str, tuple[float, float]]
    """Milliseconds of processor time of each program for a job: with Lark, without."""

    @property
    def ratio(self) -> float:
        return self.on / self.off


@dataclass(frozen=True, slots=True)
class Parts:
    """Milliseconds of each part of a start: (p50, p99)."""

    when: str
    starts: int
    parts: dict[str, tuple[float, float]]


class PoolBench:
    def __init__(self) -> None:
        self._site = Site(label="lark-bench", say=print)
        self._texts: dict[str, str] = {}
        self._batches = 0

    def __enter__(self) -> PoolBench:
        self._site.start()
        try:
            pool = self._site.pool
            self._warm()
            pool.reconfigure(pool.execute, "70-slots.config", SETTINGS + PROMPT)
            pool.reconfigure(pool.access, "70-fast.config", FAST)
            pool.execute.machine.run(["condor_restart", "-startd"], env=pool.environment).need()
            wait_until(f"{SLOTS} slots", lambda: self._slots("HasLarkNetwork =?= true") == SLOTS, 60, 0.5)
            for name, file in FILES.items():
                member = getattr(pool, name)
                self._texts[name] = (member.configuration / "config.d" / file).read_text(encoding="utf-8")
        except BaseException:
            self._site.abandon()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, t: TracebackType | None) -> None:
        self._site.__exit__(kind, error, t)

    def _warm(self) -> None:
        """As the administrator of a node with so many slots would: a network ready for each (docs/operations.md)."""
        agent = self._site.agent
        text = agent.config.read_text(encoding="utf-8")
        agent.stop()
        agent.config.write_text(re.sub(r"warm: \d+", f"warm: {SLOTS}", text), encoding="utf-8")
        agent.start()

    def _slots(self, constraint: str) -> int:
        said = self._site.pool.command("condor_status", "-constraint", constraint, "-af", "Name")
        return len(said.out.split())

    def switch(self, on: bool) -> None:
        """Lark's files there or not; returns when every slot has noticed."""
        pool = self._site.pool
        for name, file in FILES.items():
            member = getattr(pool, name)
            if on or (member.configuration / "config.d" / file).exists():
                pool.reconfigure(member, file, self._texts[name] if on else None)
        pool.execute.machine.run(["condor_restart", "-startd"], env=pool.environment).need()
        there = "HasLarkNetwork =?= true" if on else "HasLarkNetwork =?= undefined"
        wait_until("the startd restarts", lambda: self._slots("true") < SLOTS or self._slots(there) == SLOTS, 30, 0.2)
        wait_until(f"{SLOTS} slots with {there}", lambda: self._slots(there) == SLOTS, 60, 0.5)

    def batch(self, arguments: str, jobs: int) -> float:
        """Submit so many jobs at once; jobs per second from the first start to the last end."""
        self._batches += 1
        lines = {"executable": "/bin/sleep", "arguments": arguments, "transfer_executable": "false"}
        if arguments == "0":
            lines = {"executable": "/bin/true", "transfer_executable": "false"}
        job = self._site.pool.submit(ALICE, lines, name=f"batch-{self._batches}", count=jobs)
        log = job.directory / "log"

        def ended() -> int:
            return len(re.findall(r"^005 \(", log.read_text(), re.MULTILINE)) if log.exists() else 0

        wait_until(f"{jobs} jobs end", lambda: ended() >= jobs, 300, 0.2)
        text = log.read_text()
        starts, ends = _times(text, "001"), _times(text, "005")
        if len(starts) != jobs or "Job was held" in text:
            raise RuntimeError(f"{len(starts)} starts of {jobs} jobs; see {log}:\n{text[-2000:]}")
        return jobs / (max(ends) - min(starts))

    def share(self, kind: str, arguments: str, jobs: int, rounds: int) -> Share:
        found: dict[bool, list[float]] = {True: [], False: []}
        costs: dict[bool, dict[str, float]] = {True: {}, False: {}}
        for number in range(rounds):
            for on in (True, False) if number % 2 == 0 else (False, True):
                self.switch(on)
                self.batch("0", SLOTS)  # claims are made, programs are in the page cache
                time.sleep(SETTLE)
                before = usage(self._site.machines)
                found[on].append(self.batch(arguments, jobs))
                time.sleep(SETTLE)  # what ends behind the jobs belongs to them
                for name, took in spent(before, usage(self._site.machines)).items():
                    costs[on][name] = costs[on].get(name, 0.0) + took / jobs / rounds
                print(f"{kind}: {'on' if on else 'off'} {found[on][-1]:.2f} jobs/s", flush=True)
        names = sorted({*costs[True], *costs[False]}, key=lambda name: -costs[True].get(name, 0.0))
        both = {name: (costs[True].get(name, 0.0), costs[False].get(name, 0.0)) for name in names}
        rates = statistics.median(found[True]), statistics.median(found[False])
        return Share(kind, jobs, rounds, *rates, both)

    def parts(self, when: str, starts: int, at_once: int) -> Parts:
        """Read from the agent's log what each part of so many starts took, `at_once` jobs at a time."""
        self.switch(True)
        daemon = self._site.agent.daemon
        assert daemon is not None
        before = daemon.log.stat().st_size
        for _ in range(starts // at_once):
            self.batch("0", at_once)
        time.sleep(0.5)
        with daemon.log.open(encoding="utf-8") as log:
            log.seek(before)
            lines = [found for line in log if (found := BEGIN.search(line.rstrip()))]
        if len(lines) < starts:
            raise RuntimeError(f"{len(lines)} begins in the agent's log, {starts} jobs")
        if len({found[1] for found in lines}) < len(lines):
            raise RuntimeError("a job was begun with the attributes of another")
        values: dict[str, list[float]] = {"whole": [float(found[2]) for found in lines]}
        for found in lines:
            for part in found[3].split(", "):
                name, _, took = part.partition(" ")
                values.setdefault(name, []).append(float(took))
        return Parts(when, len(lines), {name: _percentiles(took) for name, took in values.items()})


def _times(text: str, event: str) -> list[float]:
    found = re.findall(rf"^{event} \(\d+\.\d+\.\d+\) (\d+-\d+-\d+ \d+:\d+:\d+(?:\.\d+)?)", text, re.MULTILINE)
    return [datetime.fromisoformat(one).timestamp() for one in found]


def _percentiles(values: list[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]


def table(shares: Sequence[Share], parts: Sequence[Parts]) -> str:
    lines = [f"HTCondor on {SLOTS} slots, with Lark against without, medians of alternating batches"]
    for one in shares:
        lines.append(
            f"  {one.kind:<22} on {one.on:6.2f} jobs/s, off {one.off:6.2f} jobs/s: {one.ratio:.2f}"
            f" ({one.rounds} rounds of {one.jobs})"
        )
        total = [sum(cost[place] for cost in one.costs.values()) for place in (0, 1)]
        lines.append(f"    processor time a job, ms: {total[0]:.0f} with, {total[1]:.0f} without; of these")
        for name, (on, off) in one.costs.items():
            if on > SHOWN:
                lines.append(f"      {name:<40} {on:6.1f} {off:6.1f}")
    for found in parts:
        told = ", ".join(f"{name} {p50:.1f}/{p99:.1f}" for name, (p50, p99) in found.parts.items())
        lines.append(f"  a start in the agent, {found.when} ({found.starts}), ms p50/p99: {told}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="HTCondor jobs per second with Lark against without.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=200, help="jobs of /bin/true in a batch")
    parser.add_argument(
        "--only", choices=("true", "sleep", "parts"), help="only /bin/true, 10 s jobs, or starts' parts"
    )
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    args = parser.parse_args(argv)
    with PoolBench() as bench:
        shares, parts = [], []
        if args.only in (None, "true"):
            shares.append(bench.share("/bin/true", "0", args.jobs, args.rounds))
        if args.only in (None, "sleep"):
            shares.append(bench.share("10 s jobs", "10", 3 * SLOTS, max(1, args.rounds - 1)))
        if args.only in (None, "parts"):
            parts = [bench.parts("one by one", 20, 1), bench.parts("in bursts of 60", 120, 60)]
    print(table(shares, parts))
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        found = {"shares": [asdict(one) for one in shares], "parts": [asdict(one) for one in parts]}
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
