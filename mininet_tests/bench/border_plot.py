"""The border's experiment as a picture: the rate of each class over time, what it is entitled to beside it.

SVG of our own (it needs no library), the page around it, and the PNG that `rsvg-convert` makes of it. Invariant: what
is drawn is what was measured; a line of the picture has a point for each sample.
"""

from __future__ import annotations

import html
import shutil
import subprocess
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

M = 10**6
LOOKS = (
    'stroke="#0072b2" stroke-width="3.5" class="class"',
    'stroke="#e69f00" stroke-width="3.5" stroke-dasharray="22 5" class="class"',
    'stroke="#4b0f33" stroke-width="3.5" stroke-dasharray="14 4 4 4" class="class"',
)
"""Of the first, second and third class: blue, orange and a dark wine differ in lightness too, also for who does not see
red or green; and each line has strokes of its own, for a printer without colours."""
COLOURS = ("#0072b2", "#e69f00", "#4b0f33")
DUE = 'stroke-width="2" stroke-dasharray="2 5" class="due"'
CONTROL = 'stroke="#767676" stroke-width="1.5" class="control"'
ORDER_WORDS = "guarantees first, then rank"
CONTROL_WORDS = "what a line without a switch carried"
WIDTH, HEIGHT = 1280, 720
LEFT, RIGHT, TOP, BOTTOM = 84, 36, 176, 70
ZOOM = 2
"""Of the PNG: 2560 pixels wide."""


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
        """Of what the classes are entitled to together, the share that arrived. All of the line, where they want it."""
        return sum(self.got.values()) / sum(self.due.values())

    @property
    def least(self) -> float:
        """Of what it is entitled to, the share that the worst-off class had."""
        return min(self.got[name] / due for name, due in self.due.items())


@dataclass(frozen=True, slots=True)
class Story:
    """All that is told. `rate`: of the line, bit/s; `classes`: in order of rank, with their guarantees in bit/s."""

    rate: float
    classes: Mapping[str, float]
    samples: Sequence[Sample]
    phases: Sequence[Phase]
    trips: Mapping[str, float] = field(default_factory=dict)
    """p99 of the round trip of the top class in milliseconds, by what was going on: the best of the tries."""
    tries: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """All of them, in their order."""


def svg(story: Story) -> str:
    """Measured rates as thick lines, expected ones as dots, what the control line carried as a thin grey line."""
    end = story.phases[-1].end
    top = story.rate * 1.08

    def x(at: float) -> float:
        return round(LEFT + at / end * (WIDTH - LEFT - RIGHT), 1)

    def y(rate: float) -> float:
        return round(HEIGHT - BOTTOM - min(rate, top) / top * (HEIGHT - TOP - BOTTOM), 1)

    def text(at_x: float, at_y: float, words: str, more: str = "") -> str:
        return f'<text x="{at_x}" y="{at_y}" {more}>{html.escape(words)}</text>'

    def line(values: Sequence[tuple[float, float]], style: str) -> str:
        points = " ".join(f"{x(at)},{y(rate)}" for at, rate in values)
        return f'<polyline fill="none" points="{points}" stroke-linejoin="round" {style}/>'

    order = " before ".join(story.classes)
    shares = ", ".join(f"{name} {guarantee / story.rate:.0%}" for name, guarantee in story.classes.items())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="DejaVu Sans, Arial, '
        'sans-serif" font-size="16" fill="#333">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="40" font-size="26" font-weight="bold" fill="#111">{html.escape(order)}'
        f'<tspan dx="14" font-size="16" font-weight="normal" fill="#555">{ORDER_WORDS}</tspan></text>',
        text(
            LEFT, 66, f"A line of {story.rate / M:g} Mbit/s at the site's border. Guaranteed: {shares}.", 'fill="#555"'
        ),
    ]
    for number, phase in enumerate(story.phases):
        left, right = x(phase.begin), x(phase.end)
        if number % 2 == 0:
            size = f'width="{round(right - left, 1)}" height="{HEIGHT - TOP - BOTTOM + 62}"'
            parts.append(f'<rect x="{left}" y="{TOP - 62}" {size} fill="#f4f4f1"/>')
        rows = textwrap.wrap(phase.name, max(8, int((right - left) / 8.6)))
        for number, part in enumerate(rows):
            row = TOP - 10 - 17 * (len(rows) - 1 - number)
            parts.append(text(round((left + right) / 2, 1), row, part, 'text-anchor="middle" font-size="14"'))
    step = _step(story.rate)
    for mbit in range(0, int(story.rate / M) + 1, step):
        level = y(mbit * M)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{level}" y2="{level}" stroke="#ddd"/>')
        parts.append(text(LEFT - 10, level + 5, str(mbit), 'text-anchor="end"'))
    parts.append(text(28, (TOP + HEIGHT - BOTTOM) / 2, "Mbit/s on the wire", _turned(28, (TOP + HEIGHT - BOTTOM) / 2)))
    for second in range(0, int(end) + 1, 10):
        parts.append(text(x(second), y(0) + 24, str(second), 'text-anchor="middle"'))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 16, "seconds", 'text-anchor="middle"'))
    parts.append(line([(s.at, s.machine * story.rate) for s in story.samples], CONTROL))
    # Beside the line itself: it is the only one that is nobody's rate.
    above = y(max(s.machine for s in story.samples) * story.rate) - 7
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(text(middle, above, CONTROL_WORDS, 'text-anchor="middle" font-size="13" fill="#767676"'))
    colours = dict(zip(story.classes, COLOURS, strict=False))
    looks = dict(zip(story.classes, LOOKS, strict=False))
    for name, look in looks.items():
        parts.append(line([(s.at, s.rates[name]) for s in story.samples], look))
    for phase in story.phases:
        for name, rate in phase.due.items():
            parts.append(line([(phase.begin, rate), (phase.end, rate)], f'stroke="{colours[name]}" {DUE}'))
    at = float(LEFT)
    for words, style in (
        *looks.items(),
        ("what each is entitled to", f'stroke="#333" {DUE}'),
        ("a line without a switch", CONTROL),
    ):
        parts.append(f'<line x1="{at}" x2="{at + 56}" y1="92" y2="92" {style}/>')
        parts.append(text(at + 64, 97, words, 'font-size="15"'))
        at += 64 + 8.8 * len(words) + 24
    if story.trips:
        told = "; ".join(
            f"{what} {trip:.1f} ms (tries: {len(story.tries.get(what, ())) or 1})" for what, trip in story.trips.items()
        )
        parts.append(
            text(WIDTH - RIGHT, HEIGHT - 16, f"round trip of {next(iter(story.classes))}, best p99: {told}",
                 'text-anchor="end" font-size="13" fill="#555"')
        )  # fmt: skip
    return "\n".join([*parts, "</svg>"])


def _turned(at_x: float, at_y: float) -> str:
    return f'text-anchor="middle" transform="rotate(-90 {at_x} {at_y})"'


def _step(rate: float) -> int:
    """Mbit/s between two lines of the grid: five to ten of them."""
    return next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000) if rate / M / step <= 10)


def page(story: Story, settle: float) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(phase.name)}</td>"
        + "".join(
            f"<td>{phase.got[name] / M:.1f} of {phase.due[name] / M:.1f}</td>" if name in phase.due else "<td></td>"
            for name in story.classes
        )
        + f"<td>{phase.used:.1%}</td><td>{phase.machine:.1%}</td></tr>\n"
        for phase in story.phases
    )
    heads = "".join(f"<th>{html.escape(name)}, Mbit/s</th>" for name in story.classes)
    return (
        f"<!DOCTYPE html>\n<html lang='en'><meta charset='utf-8'><title>Classes of traffic</title>\n"
        "<style>body{font-family:sans-serif;max-width:1280px;margin:2em auto}td,th{padding:.3em 1em;text-align:right}"
        "td:first-child,th:first-child{text-align:left}</style>\n"
        f"{svg(story)}\n<table><tr><th></th>{heads}<th>of what is due</th><th>without a switch</th></tr>\n"
        f"{rows}</table>\n<p>What has arrived of what each class is due: first its guarantee, then what is left, "
        f"by rank. Measured where the line ends, Ethernet headers included, from {settle:g} s after each change on.</p>"
        "</html>\n"
    )


def can_png() -> bool:
    return shutil.which("rsvg-convert") is not None


def png(drawn: str) -> bytes:
    """Raises CalledProcessError."""
    argv = ["rsvg-convert", "--zoom", str(ZOOM), "--format", "png"]
    return subprocess.run(argv, input=drawn.encode(), capture_output=True, check=True).stdout
