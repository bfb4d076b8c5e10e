"""Sums of counters outlive the controller in a file of its state directory: what switches and queues have forgotten.

Invariants: written only when something went back and when the controller ends, for all else is still where it was
counted; a file that cannot be read or written costs sums, never a start. It is no part of the store: losing it opens
nothing, and of several controllers each keeps its own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from policies.model import Attempt
from ryu_apps.borders import Borders
from ryu_apps.life.counting import Counting

LOG = logging.getLogger("lark.controller")
VERSION = 1
LEAST_PAUSE = 5.0
"""Seconds between two writes."""


class Carried:
    """`path` None: nothing is kept."""

    def __init__(self, path: Path | None, counting: Counting, borders: Borders, clock: Callable[[], float]) -> None:
        self._path = path
        self._counting = counting
        self._borders = borders
        self._clock = clock
        self._not_before = clock()

    def load(self, attempts: Iterable[Attempt]) -> None:
        """Before anything is heard."""
        if self._path is None or not self._path.exists():
            return
        try:
            found = json.loads(self._path.read_bytes())
            if found["version"] != VERSION:
                raise ValueError(f"version {found['version']} is not {VERSION}")
            self._counting.restore(found["attempts"], attempts)
            self._borders.restore(found["classes"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
            LOG.warning("%s: sums of counters begin anew: %s", self._path, problem)

    def tick(self) -> None:
        """Write what is new, now and then."""
        if (self._counting.changed or self._borders.changed) and self._clock() >= self._not_before:
            self.save()

    def save(self) -> None:
        """Write everything."""
        if self._path is None:
            return
        self._not_before = self._clock() + LEAST_PAUSE
        said = {"version": VERSION, "attempts": self._counting.stored(), "classes": self._borders.stored()}
        new = self._path.with_name(f".{self._path.name}.new")
        try:
            new.write_bytes(json.dumps(said, separators=(",", ":")).encode())
            new.replace(self._path)
        except OSError as problem:
            LOG.error("%s: sums of counters are not kept: %s", self._path, problem)
            with contextlib.suppress(OSError):
                os.unlink(new)
