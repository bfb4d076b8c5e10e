"""Three classes over a line of 50 Mbit/s, joining and leaving: what each gets, beside what it is entitled to.

CMS production (guaranteed 50 %) before CMS Xrootd (30 %) before OSG (10 %), through a real Open vSwitch with the
border's own queues. Production and OSG are sent by iperf3 over TCP, Xrootd are files that real `xrdcp`s fetch from a
real xrootd server, one after the other. Measured at the receiver, on the wire; expected: first every class's guarantee,
then the rest by rank. A second line without a switch tells what the machine itself could carry in the same seconds.

Run as root: `python -m mininet_tests.bench.border [--seconds 8] [--json FILE] [--html FILE] [--svg FILE]`. It needs
iperf3, xrootd and xrdcp. Ends with 1 if a class lacks more than 5 % of what it is entitled to.
"""

from __future__ import annotations

import argparse
import functools
import html
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mininet_tests.border_control import ControlLine
from mininet_tests.border_rig import BorderRig, Lane, entitlement
from mininet_tests.site.namespaces import Daemon, wait_until
from mininet_tests.site.xrootd import FILE, PORT, XrootdServer
from ovs_agent import qos, queues
from policies.wire import PortQueues, QueueClass, QueueWish, queues_digest

M = 10**6
RATE = 50 * M
SHARES = {"production": 0.5, "xrootd": 0.3, "osg": 0.1}
PRODUCTION, XROOTD, OSG = (
    Lane(name, number, dscp) for number, (name, dscp) in enumerate(zip(SHARES, (34, 26, 8), strict=True), 1)
)
LABELS = {"production": "CMS production", "xrootd": "CMS Xrootd", "osg": "OSG"}
COLOURS = {"production": "#b2182b", "xrootd": "#2166ac", "osg": "#4d9221"}
ALL = 1e12
PART = 20 * M
"""Of payload; 1400 bytes of payload are 1442 on the wire."""
BUFFER = 2**24
EVERY = 0.5
SETTLE = 3.0
"""Seconds after a change that are drawn and not judged: TCP takes its time."""
NEED = 0.95
TRANSFERS = 4
SCRIPT = (
    f"trap 'kill $copy; exit' TERM; while :; do xrdcp -f -s root://{XROOTD.inside}:{PORT}/{FILE} /dev/null & "
    "copy=$!; wait $copy; done"
)


@dataclass(frozen=True, slots=True)
class Sample:
    """`at`: seconds since the beginning, the middle of the interval. Rates in bit/s; `machine`: share of the line."""

    at: float
    rates: Mapping[str, float]
    machine: float


@dataclass(frozen=True, slots=True)
class Phase:
    """`begin` and `end` in seconds; `due` and `got` in bit/s, of the classes that send; `got`, `machine`: settled."""

    name: str
    begin: float
    end: float
    due: Mapping[str, float]
    got: Mapping[str, float]
    machine: float

    @property
    def used(self) -> float:
        return sum(self.got.values()) / min(RATE, sum(self.due.values()))

    @property
    def least(self) -> float:
        """Of what it is entitled to, the share that the worst-off class had."""
        return min(self.got[name] / due for name, due in self.due.items())


@dataclass(slots=True)
class Run:
    rig: BorderRig
    control: ControlLine
    seconds: float
    began: float = field(default_factory=time.monotonic)
    samples: list[Sample] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)

    def phase(self, name: str, wants: Mapping[str, float]) -> None:
        begin = time.monotonic() - self.began
        settled: list[Sample] = []
        while (now := time.monotonic() - self.began) < begin + self.seconds:
            mark = self.control.mark()
            rates = self.rig.measure(EVERY)
            sample = Sample((now + time.monotonic() - self.began) / 2, rates, self.control.share(mark))
            self.samples.append(sample)
            if sample.at > begin + SETTLE:
                settled.append(sample)
        classes = [(c, RATE * share, float(RATE)) for c, share in SHARES.items()]
        due = {c: rate for c, rate in entitlement(RATE, classes, wants).items() if c in wants}
        got = {c: statistics.fmean(s.rates[c] for s in settled) for c in wants}
        machine = statistics.fmean(s.machine for s in settled)
        self.phases.append(Phase(name, begin, time.monotonic() - self.began, due, got, machine))
        told = ", ".join(f"{LABELS[c]} {got[c] / M:.1f} of {due[c] / M:.1f}" for c in due)
        used = f"{self.phases[-1].used:.1%} of the line used; without a switch: {machine:.1%}"
        print(f"{name:36} {told} Mbit/s; {used}", flush=True)


def _plan(port: str) -> qos.PortPlan:
    classes = [
        QueueClass(name=lane.name, dscp=lane.dscp, rank=rank, guarantee=int(RATE * SHARES[lane.name]), ceiling=RATE)
        for rank, lane in enumerate((PRODUCTION, XROOTD, OSG), 1)
    ]
    ports = {port: PortQueues(rate=RATE, classes=classes)}
    return qos.plan(QueueWish(digest=queues_digest(ports), ports=ports), {port: 1500}, BUFFER).ports[port]


def _xrootd(rig: BorderRig) -> Callable[[], list[Daemon]]:
    """Start the server inside; begins transfers to the outside when called."""
    for directory in (rig.root, rig.inside.root):
        directory.chmod(0o755)  # the server runs as its own user
    for machine in (rig.inside, rig.outside):  # it does not start before it knows its own name's address
        with (machine.root / "etc" / "hosts").open("a", encoding="utf-8") as hosts:
            hosts.write(f"{XROOTD.inside} {rig.inside.name}\n{XROOTD.outside} {rig.outside.name}\n")
    XrootdServer(rig.inside).start()
    rig.outside.need("ip", "route", "add", f"{XROOTD.inside}/32", "dev", "eth0", "src", XROOTD.outside)
    return lambda: [rig.outside.spawn(f"xrdcp-{n}", ["sh", "-c", SCRIPT]) for n in range(TRANSFERS)]


def measure(seconds: float) -> Run:
    with BorderRig([PRODUCTION, XROOTD, OSG], hurry=10) as rig:
        rig.delays(PRODUCTION, 5)
        rig.widen(BUFFER)
        for port in ("wan0", "lan0"):
            rig.at_border(functools.partial(queues.apply, port, _plan(port)))
        transfers = _xrootd(rig)
        control = ControlLine(rig, _plan("eth0"), PRODUCTION.dscp)
        control.start()
        time.sleep(SETTLE)
        run = Run(rig, control, seconds)
        osg = rig.send(OSG)
        run.phase("OSG alone", {"osg": ALL})
        files = transfers()
        run.phase("Xrootd joins", {"xrootd": ALL, "osg": ALL})
        part = rig.send(PRODUCTION, udp=str(PART))
        run.phase("production joins with 20 Mbit/s", {"production": PART * 1442 / 1400, "xrootd": ALL, "osg": ALL})
        rig.leave(part)
        rig.send(PRODUCTION)
        run.phase("production wants all", {"production": ALL, "xrootd": ALL, "osg": ALL})
        for one in files:
            one.stop()
        connections = ["ss", "-tnH", "state", "established", "dport", f":{PORT}"]
        wait_until("no file is on its way", lambda: not rig.outside.need(*connections).strip(), 5)
        run.phase("Xrootd leaves", {"production": ALL, "osg": ALL})
        rig.leave(osg)
        run.phase("OSG leaves", {"production": ALL})
        rig.leave()
        return run


# --- the picture ----------------------------------------------------------------------------------------------------

WIDTH, HEIGHT = 1000, 460
LEFT, RIGHT, TOP, BOTTOM = 62, 20, 56, 44
TOP_RATE = 55 * M


def svg(samples: Sequence[Sample], phases: Sequence[Phase]) -> str:
    """Measured rates as lines, expected ones as dashes, what the control line carried as a thin grey line."""
    end = phases[-1].end

    def x(at: float) -> float:
        return round(LEFT + at / end * (WIDTH - LEFT - RIGHT), 1)

    def y(rate: float) -> float:
        return round(HEIGHT - BOTTOM - min(rate, TOP_RATE) / TOP_RATE * (HEIGHT - TOP - BOTTOM), 1)

    def text(at_x: float, at_y: float, words: str, more: str = "") -> str:
        return f'<text x="{at_x}" y="{at_y}" {more}>{html.escape(words)}</text>'

    def line(values: Sequence[tuple[float, float]], style: str) -> str:
        points = " ".join(f"{x(at)},{y(rate)}" for at, rate in values)
        return f'<polyline fill="none" points="{points}" {style}/>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="13" fill="#333">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for mbit in range(0, 51, 10):
        level = y(mbit * M)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{level}" y2="{level}" stroke="#ddd"/>')
        parts.append(text(LEFT - 8, level + 4, str(mbit), 'text-anchor="end"'))
    parts.append(text(16, HEIGHT / 2, "Mbit/s on the wire", f'transform="rotate(-90 16 {HEIGHT / 2})"'))
    parts.append(text(WIDTH / 2, HEIGHT - 8, "seconds", 'text-anchor="middle"'))
    for number, phase in enumerate(phases):
        if number:
            parts.append(f'<line x1="{x(phase.begin)}" x2="{x(phase.begin)}" y1="{TOP}" y2="{y(0)}" stroke="#999"/>')
        parts.append(text(x(phase.begin) + 4, TOP - 8 - 14 * (number % 2), phase.name, 'font-size="11"'))
        parts.append(text(x(phase.begin), y(0) + 17, f"{phase.begin:.0f}", 'text-anchor="middle"'))
        for name, rate in phase.due.items():
            dashes = f'stroke="{COLOURS[name]}" stroke-width="1.5" stroke-dasharray="6 4"'
            parts.append(line([(phase.begin, rate), (phase.end, rate)], dashes))
    parts.append(line([(s.at, s.machine * RATE) for s in samples], 'stroke="#aaa" stroke-width="1"'))
    for name, colour in COLOURS.items():
        parts.append(line([(s.at, s.rates[name]) for s in samples], f'stroke="{colour}" stroke-width="2.5"'))
    legend = [*((LABELS[name], colour) for name, colour in COLOURS.items()), ("a line without a switch", "#aaa")]
    for number, (words, colour) in enumerate(legend):
        at = LEFT + 160 * number
        parts.append(f'<rect x="{at}" y="8" width="18" height="4" fill="{colour}"/>')
        parts.append(text(at + 24, 14, words))
    parts.append(text(LEFT + 680, 14, "dashed: what each is entitled to"))
    return "\n".join([*parts, "</svg>"])


def page(samples: Sequence[Sample], phases: Sequence[Phase]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(phase.name)}</td>"
        + "".join(
            f"<td>{phase.got[name] / M:.1f} of {phase.due[name] / M:.1f}</td>" if name in phase.due else "<td></td>"
            for name in SHARES
        )
        + f"<td>{phase.used:.1%}</td><td>{phase.machine:.1%}</td></tr>\n"
        for phase in phases
    )
    heads = "".join(f"<th>{LABELS[name]}, Mbit/s</th>" for name in SHARES)
    return (
        "<!DOCTYPE html>\n<html lang='en'><meta charset='utf-8'><title>Three classes over 50 Mbit/s</title>\n"
        "<style>body{font-family:sans-serif;max-width:1000px;margin:2em auto}td,th{padding:.3em 1em;text-align:right}"
        "td:first-child,th:first-child{text-align:left}</style>\n"
        "<h1>CMS production before CMS Xrootd before OSG, over 50 Mbit/s</h1>\n"
        f"{svg(samples, phases)}\n<table><tr><th></th>{heads}<th>of the line used</th><th>without a switch</th></tr>\n"
        f"{rows}</table>\n<p>Guarantees: 50 %, 30 % and 10 % of the line. Measured at the receiver, Ethernet headers "
        f"included, from {SETTLE:g} s after each change on.</p></html>\n"
    )


def document(run: Run) -> dict[str, Any]:
    phases = [{**asdict(phase), "used": phase.used, "least": phase.least} for phase in run.phases]
    return {"rate": RATE, "guarantees": SHARES, "phases": phases, "samples": [asdict(s) for s in run.samples]}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="of each of six phases (8)")
    for kind in ("json", "html", "svg"):
        parser.add_argument(f"--{kind}", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    if options.seconds < SETTLE + 2:
        parser.error(f"--seconds must be at least {SETTLE + 2:g}: the first {SETTLE:g} of each phase are not judged")
    if os.geteuid() != 0:
        parser.error("needs root: network namespaces and Open vSwitch")
    missing = [tool for tool in ("iperf3", "xrootd", "xrdcp") if shutil.which(tool) is None]
    if missing:
        parser.error(f"needs {', '.join(missing)}: apt-get install iperf3 xrootd-server xrootd-client")
    run = measure(options.seconds)
    for target, made in (
        (options.json, json.dumps(document(run), indent=1)),
        (options.html, page(run.samples, run.phases)),
        (options.svg, svg(run.samples, run.phases)),
    ):
        if target is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(made.rstrip() + "\n", encoding="utf-8")
    short = [phase.name for phase in run.phases if min(phase.least, phase.used) < NEED * phase.machine]
    if short:
        print(f"less than {NEED:.0%} of the machine's own share: {', '.join(short)}", file=sys.stderr)
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
