"""Three classes over the campus's line to the world, joining and leaving: what each gets, beside what it is due.

Everything is as on a site: the flows are the controller's, compiled from the policy, the queues are `lark-agent
border`'s, the senders are jobs on two worker nodes and a file server (`mininet_tests/topology/traffic.py`).
Measured where the line ends (at isp), on the wire. Expected: first every class's guarantee, then the rest by rank. A
second line without a switch tells what the machine itself could carry in the same seconds; while the machine has not
its cores, a phase goes on. Ends with 1 if a class or the line lacks more than 5 % of what it is due, or the top class
waits more than 5 ms longer while others fill the line.

Run as root: `lark-lab border`, or `python -m mininet_tests.bench.border [--json FILE] [--png FILE] …`.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mininet_tests.bench.border_plot import Phase, Sample, Story, can_png, page, png, svg
from mininet_tests.border_control import ControlLine
from mininet_tests.border_rig import PROBE, entitlement, percentile, stolen
from mininet_tests.site.namespaces import this_python, wait_until
from mininet_tests.site.openvswitch import BUFFER
from mininet_tests.topology import layout
from mininet_tests.topology.lab import DEFAULT_POLICY, Campus
from mininet_tests.topology.traffic import OTHERS, PRODUCTION, TCP, XROOTD, Traffic, far
from ovs_agent import qos
from policies.language import check_together, load_policy, load_site
from policies.queues import PortQueues, queue_plan
from policies.wire import PortQueues as WirePort
from policies.wire import QueueClass as WireClass
from policies.wire import QueueWish, queues_digest

M = 10**6
ALL = 1e12
EVERY = 0.5
SETTLE = 3.0
"""Seconds after a change that are drawn and not judged: TCP takes its time."""
NEED = 0.95
WAIT = 5.0
"""Milliseconds that the top class may wait longer because of others."""
TRIPS, TRIES = 200, 8
TRANSFERS = 4
AGAIN = 4
"""How many times a phase goes on for as long again, while it is short and the machine has not its cores."""
LEAST_SECONDS = SETTLE + 2
PRIORITY = 10
"""Real-time, of senders and receivers; switches have one more."""
TOOLS = {"iperf3": "iperf3", "xrootd": "xrootd-server", "xrdcp": "xrootd-client"}


@dataclass(slots=True)
class Run:
    """The running experiment."""

    traffic: Traffic
    control: ControlLine
    queues: PortQueues
    seconds: float
    say: Callable[[str], None]
    began: float = field(default_factory=time.monotonic)
    samples: list[Sample] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    tries: dict[str, list[float]] = field(default_factory=dict)
    """p99 of each try of a round trip, by what was going on."""

    @property
    def trips(self) -> dict[str, float]:
        """The best of each: a machine without its cores for a moment is no queue."""
        return {what: min(found) for what, found in self.tries.items()}

    @property
    def story(self) -> Story:
        senders = self.traffic.classes.values()
        guarantees = {one.name: float(one.guarantee) for one in self.queues.classes if one.name in senders}
        return Story(self.queues.rate, guarantees, self.samples, self.phases, self.trips, self.tries)

    def phase(self, name: str, wants: Mapping[str, float]) -> None:
        """`wants`: what each sender has to send, in bit/s."""
        asked = {self.traffic.classes[sender]: rate for sender, rate in wants.items()}
        rows = [(one.name, float(one.guarantee), float(one.ceiling)) for one in self.queues.classes]
        due = {c: rate for c, rate in entitlement(self.queues.rate, rows, asked).items() if c in asked}
        begin = time.monotonic() - self.began
        since, until = begin + SETTLE, begin + self.seconds
        for again in range(AGAIN + 1):
            lost = stolen()
            with _at_once():
                settled = self._watch(since, until)
            lost = stolen() - lost
            got = {c: statistics.fmean(s.rates[c] for s in settled) for c in asked}
            machine = statistics.fmean(s.machine for s in settled)
            phase = Phase(name, begin, time.monotonic() - self.began, due, got, machine)
            told = ", ".join(f"{c} {got[c] / M:.1f} of {due[c] / M:.1f}" for c in due)
            told = f"{name}: {told} Mbit/s; {phase.used:.1%} of what is due (a line without a switch: {machine:.1%})"
            starved = machine < 0.985 or lost > 0.02 * (os.cpu_count() or 1) * (until - since)
            if not lacks(phase) or not starved or again == AGAIN:
                break
            self.say(f"{told}; the machine's host took {lost:.1f} s: looking again")
            since, until = until, until + self.seconds - SETTLE
        self.phases.append(phase)
        self.say(told)

    def _watch(self, since: float, until: float) -> list[Sample]:
        """Samples until a moment; those from `since` on."""
        found = []
        while (now := time.monotonic() - self.began) < until:
            mark, (began, before) = self.control.mark(), self.traffic.arrived()
            time.sleep(EVERY)
            (ended, after), machine = self.traffic.arrived(), self.control.share(mark)
            rates = {c: (after[s] - before[s]) * 8 / (ended - began) for s, c in self.traffic.classes.items()}
            sample = Sample((now + time.monotonic() - self.began) / 2, rates, machine)
            self.samples.append(sample)
            if sample.at > since:
                found.append(sample)
        return found

    def round_trip(self, what: str) -> None:
        """p99 from the production job to cern and back, some tries of it."""
        traffic, job = self.traffic, self.traffic.jobs[PRODUCTION]
        words = [*traffic.campus.entry(job), *traffic.chrt(2), this_python(), "-c", PROBE]
        words += [job.spec.ipv4, far(PRODUCTION), str(TRIPS), "0.01"]
        for number in range(TRIES):
            said = traffic.campus.machine(job.node).run(words, timeout=60).need().out
            trip = percentile(sorted(json.loads(said)), 0.99)
            self.tries.setdefault(what, []).append(trip)
            self.say(f"round trip of {traffic.classes[PRODUCTION]}, {what}: p99 {trip:.2f} ms")
            # An idle line that is slow tells of the machine, and what is compared with it would always be well.
            enough = (
                number >= 2 and self.trips["idle"] <= WAIT
                if what == "idle"
                else self.trips[what] <= self.trips["idle"] + WAIT
            )
            if enough:
                break


@contextmanager
def _at_once() -> Iterator[None]:
    """Whoever looks, and what it starts, does not wait for senders either."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY + 3))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def lacks(phase: Phase) -> bool:
    need = NEED * phase.machine
    return phase.least < need or phase.used < need


def faults(story: Story) -> list[str]:
    """What is not as it should be, in words."""
    found = [
        f"{one.name}: less than {NEED:.0%} of the machine's own share ({one.machine:.1%})"
        for one in story.phases
        if lacks(one)
    ]
    idle = story.trips.get("idle", 0.0)
    return found + [
        f"the top class waits {trip - idle:.1f} ms longer ({what}); {WAIT:g} are allowed"
        for what, trip in story.trips.items()
        if trip > idle + WAIT
    ]


def measure(
    seconds: float,
    policy: Path = DEFAULT_POLICY,
    engine: str = "os-ken",
    say: Callable[[str], None] = functools.partial(print, flush=True),
) -> Story:
    """The whole experiment. Raises Unfit, SiteError, PolicyError."""
    with Campus(policy, None, engine, say=say, queues=True, probing=False) as campus:
        say("a file server, a job of production, a job of others")
        queues = _queues(policy, campus)
        traffic = Traffic(campus, PRIORITY)
        traffic.start()
        control = ControlLine(campus.root, _control_plan(queues), queues.classes[0].dscp, hurry=PRIORITY, tcp=TCP)
        try:
            control.start()
            run = Run(traffic, control, queues, seconds, say)
            if traffic.classes[PRODUCTION] == queues.classes[0].name:
                run.round_trip("idle")
            run.began = time.monotonic()
            _story(run)
        finally:
            control.stop()
        return run.story


def _story(run: Run) -> None:
    part = run.queues.rate * 2 // 5
    traffic, name = run.traffic, run.traffic.classes
    others = traffic.send(OTHERS)
    run.phase(f"{name[OTHERS]} alone", {OTHERS: ALL})
    files = traffic.fetch(TRANSFERS)
    run.phase(f"{name[XROOTD]} joins", {XROOTD: ALL, OTHERS: ALL})
    if run.trips:
        at = time.monotonic()
        run.round_trip("line full")
        run.began += time.monotonic() - at  # of these seconds nothing is drawn
    asked = traffic.send(PRODUCTION, udp=part)
    # 1400 bytes of payload are 1442 on the wire.
    wants = {PRODUCTION: part * 1442 / 1400, XROOTD: ALL, OTHERS: ALL}
    run.phase(f"{name[PRODUCTION]} joins with {part / M:g} Mbit/s (payload; headers come on top)", wants)
    asked.stop()
    production = traffic.send(PRODUCTION)
    run.phase(f"{name[PRODUCTION]} wants all", {PRODUCTION: ALL, XROOTD: ALL, OTHERS: ALL})
    for one in files:
        one.stop()
    wait_until("no file is on its way", lambda: not traffic.fetching(), 5)
    run.phase(f"{name[XROOTD]} leaves", {PRODUCTION: ALL, OTHERS: ALL})
    others.stop()
    run.phase(f"{name[OTHERS]} leaves", {PRODUCTION: ALL})
    production.stop()


def _queues(policy: Path, campus: Campus) -> PortQueues:
    rules, site = load_policy(policy), load_site(campus.root / "ctl" / "lark" / "site.yaml")
    check_together(rules, site)
    return queue_plan(rules, site, layout.BRIDGES["border"]).ports["wan0"]


def _control_plan(queues: PortQueues) -> qos.PortPlan:
    classes = [
        WireClass(name=c.name, dscp=c.dscp, rank=c.rank, guarantee=c.guarantee, ceiling=c.ceiling)
        for c in queues.classes
    ]
    ports = {"eth0": WirePort(rate=queues.rate, classes=classes)}
    return qos.plan(QueueWish(digest=queues_digest(ports), ports=ports), {"eth0": 1500}, BUFFER).ports["eth0"]


# --- what is written --------------------------------------------------------------------------------------------------


def missing_tools() -> list[str]:
    """Debian packages to install."""
    return [package for tool, package in TOOLS.items() if shutil.which(tool) is None]


def document(story: Story) -> dict[str, Any]:
    phases = [{**asdict(phase), "used": phase.used, "least": phase.least} for phase in story.phases]
    return {**asdict(story), "phases": phases, "faults": faults(story)}


def write(story: Story, targets: Mapping[str, Path | None]) -> list[Path]:
    """`targets`: files by kind: json, html, svg, png. Those that were written."""
    drawn = svg(story)
    written = []
    for kind, target in targets.items():
        if target is None:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if kind == "png":
            target.write_bytes(png(drawn))
        else:
            made = {"json": json.dumps(document(story), indent=1), "html": page(story, SETTLE), "svg": drawn}[kind]
            target.write_text(made.rstrip() + "\n", encoding="utf-8")
        written.append(target)
    return written


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="of each of six phases (8)")
    for kind in ("json", "html", "svg", "png"):
        parser.add_argument(f"--{kind}", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    if options.seconds < LEAST_SECONDS:
        parser.error(f"--seconds must be at least {LEAST_SECONDS:g}: the first {SETTLE:g} of a phase are not judged")
    if os.geteuid() != 0:
        parser.error("needs root: network namespaces and Open vSwitch")
    missing = missing_tools() + ([] if can_png() or options.png is None else ["librsvg2-bin"])
    if missing:
        parser.error(f"tools are missing: apt-get install {' '.join(missing)}")
    story = measure(options.seconds)
    write(story, {kind: getattr(options, kind) for kind in ("json", "html", "svg", "png")})
    wrong = faults(story)
    for fault in wrong:
        print(fault, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
