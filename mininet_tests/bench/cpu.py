"""Processor time of a site's processes, by machine and program, between two moments.

A process that lives over both moments is counted by itself; of those that came and went, whoever waited for them knows
(HTCondor's startd for starters, and they for hooks and jobs). What the kernel does for nobody in particular is in none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from mininet_tests.site.namespaces import Machine

TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """Milliseconds of one process, and of its children that it has waited for."""

    name: str
    own: float
    children: float


def usage(machines: Mapping[str, Machine]) -> dict[int, Usage]:
    """Of every process on these machines now."""
    home = {os.stat(f"/proc/{machine.init_pid}/ns/pid").st_ino: name for name, machine in machines.items()}
    found: dict[int, Usage] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        try:
            where = home.get(os.stat(f"/proc/{entry}/ns/pid").st_ino)
            if where is None:
                continue
            with open(f"/proc/{entry}/stat") as f:
                text = f.read()
            with open(f"/proc/{entry}/cmdline", "rb") as f:
                words = f.read().decode(errors="replace").split("\0")
        except OSError:
            continue
        name = text[text.index("(") + 1 : text.rindex(")")]
        if "-m" in words[:-1]:
            name = words[words.index("-m") + 1]
        ticks = [int(word) * TICK_MS for word in text.rpartition(")")[2].split()[11:15]]
        found[int(entry)] = Usage(f"{where} {name}", ticks[0] + ticks[1], ticks[2] + ticks[3])
    return found


def spent(before: Mapping[int, Usage], after: Mapping[int, Usage]) -> dict[str, float]:
    """Milliseconds between two moments by program; what a program's children took stands beside it."""
    found: dict[str, float] = {}
    for pid, now in after.items():
        then = before.get(pid)
        if then is None or then.name != now.name:
            then = Usage(now.name, 0.0, 0.0)
        found[now.name] = found.get(now.name, 0.0) + now.own - then.own
        ended = f"{now.name}'s children"
        found[ended] = found.get(ended, 0.0) + now.children - then.children
    return found
