"""What `lark-agent doctor` says: one finding is one thing that is wrong, why it matters, and what mends it. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class Severity(enum.StrEnum):
    FAULT = "fault"
    """Jobs cannot run here, or something is open, lost or leaked."""
    WARNING = "warning"
    """Jobs run, but slower, less guarded, or not for long."""


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    """Section and name, for example `switch.fail-mode`: programs may rely on it."""
    severity: Severity
    what: str
    why: str
    mend: str
    """A command, or in words what to do."""


def fault(check: str, what: str, why: str, mend: str) -> Finding:
    return Finding(check, Severity.FAULT, what, why, mend)


def warning(check: str, what: str, why: str, mend: str) -> Finding:
    return Finding(check, Severity.WARNING, what, why, mend)


def exit_status(findings: Sequence[Finding]) -> int:
    """0: nothing is wrong; 1: warnings; 2: at least one fault."""
    if any(f.severity is Severity.FAULT for f in findings):
        return 2
    return 1 if findings else 0


def lines(findings: Sequence[Finding]) -> list[str]:
    """For people: faults first."""
    found: list[str] = []
    for f in sorted(findings, key=lambda f: (f.severity is not Severity.FAULT, f.check)):
        found += [f"{f.severity}: {f.check}: {f.what}", f"    why:  {f.why}", f"    mend: {f.mend}"]
    return found
