"""Sums of counters outlive the controller in a file of its state directory: what switches and queues have forgotten.

Invariants: written only when something went back and when the controller ends, for all else is still where it was
counted; a file that cannot be read or written costs sums, never a start. It is no part of the store: losing it opens
nothing, and of several controllers each keeps its own.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from policies.model import Attempt
from ryu_apps.borders import Borders
from ryu_apps.life.counting import Counting

LOG = logging.getLogger("lark.controller")
VERSION = 1
SLICE = 200
"""Rows written at a time."""
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
        self._writing = threading.Lock()

    def load(self, attempts: Iterable[Attempt]) -> None:
        """Before anything is heard."""
        if self._path is None or not self._path.exists():
            return
        try:
            head, *rows = [json.loads(line) for line in self._path.read_bytes().splitlines() or [b"{}"]]
            if head.get("version") != VERSION:
                raise ValueError(f"it is not of version {VERSION}")
            self._counting.restore(
                (row for kind, *row in rows if kind == "attempt"),
                (row for kind, *row in rows if kind == "limit"),
                attempts,
            )
            self._borders.restore(row for kind, *row in rows if kind == "class")
        except (OSError, ValueError, TypeError, AttributeError) as problem:
            LOG.warning("%s: sums of counters begin anew: %s", self._path, problem)

    def tick(self) -> None:
        """Write what is new, now and then."""
        if (self._counting.changed or self._borders.changed) and self._clock() >= self._not_before:
            self.save()

    def save(self) -> None:
        """Write everything."""
        if self._path is None:
            return
        with self._writing:
            self._save(self._path)

    def _save(self, path: Path) -> None:
        self._not_before = self._clock() + LEAST_PAUSE
        rows = itertools.chain(
            (["class", *row] for row in self._borders.stored()),
            (["limit", *row] for row in self._counting.stored_limits()),
            (["attempt", *row] for row in self._counting.stored()),
        )
        new = path.with_name(f".{path.name}.new")
        try:
            with new.open("w", encoding="ascii") as out:
                json.dump({"version": VERSION}, out)
                for number, row in enumerate(rows, 1):
                    out.write("\n" + json.dumps(row, separators=(",", ":")))
                    if number % SLICE == 0:
                        time.sleep(0)  # of ten thousand attempts: others get their turn
            new.replace(path)
        except OSError as problem:
            LOG.error("%s: sums of counters are not kept: %s", path, problem)
            with contextlib.suppress(OSError):
                os.unlink(new)
