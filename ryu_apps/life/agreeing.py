"""What this controller owes the stored rows, so that all controllers have the same numbers and decisions in the end.

Two controllers that put another policy in force at the same moment give the same outcome, slice or share a number each,
and overwrite one another row by row. Of several numbers the lowest counts. It may be in no stored row any more, so
whoever knows a lower one than a stored row has writes it there:

    a: outcome is 5, writes ──✕ (b was quicker)      b: outcome is 20, writes ──▶ stored: 20
    a hears 20, has 5 ──▶ stored: 5 ──▶ b hears 5, has 20: takes 5, and tells its bridges

Invariants: numbers only go down and a row that lost against another is written again only until the store has taken it
once, so two controllers with two policies do not contend for ever. Alone, nothing here is ever called.
"""

from __future__ import annotations

import logging

from ryu_apps.life.present import Present
from ryu_apps.life.records import Records
from ryu_apps.life.times import STORE_PATIENCE, Times
from ryu_apps.shared import asking_as, emptying, outdated, outdating
from ryu_apps.store.store import AttemptRow, Change, Kind, Pending, PutNumber, StoreConflict, StoreError

LOG = logging.getLogger("lark.controller")
AGAIN_SECONDS = 1.0
"""Between two tries while the store cannot be written."""


class Agreeing:
    """The rows and numbers to be written again; `pay` writes them."""

    def __init__(self, present: Present, records: Records, times: Times) -> None:
        self._present = present
        self._records = records
        self._times = times
        self._higher: set[str] = set()
        """Attempts whose stored rows may have higher numbers than count."""
        self._numbers: set[tuple[Kind, str]] = set()
        """Services and nodes that are stored with a higher number than counts."""
        self._not_before = 0.0

    # --- the caller has the lock --------------------------------------------------------------------------------------

    def look(self, row: AttemptRow, kept: AttemptRow) -> None:
        """A row by the policy in force was heard, and is kept like this."""
        if _numbers(row) != _numbers(kept):
            self._higher.add(row.id)

    def lowered(self) -> None:
        """Rows that are stored may have the number that does not count any more."""
        for id, kept in self._present.rows.items():
            stored = self._records.stored.get(id)
            if stored is not None and not stored.leaving and stored.digest == kept.digest:
                self.look(stored, kept)

    def number(self, kind: Kind, name: str) -> None:
        """A higher number than the one that counts was stored."""
        self._numbers.add((kind, name))

    # --- without the lock ---------------------------------------------------------------------------------------------

    @property
    def owing(self) -> bool:
        return bool(self._higher or self._numbers or self._records.lost) and self._times.clock() >= self._not_before

    def pay(self) -> None:
        """Write what is owed. Never waits for a switch; takes the lock."""
        if not self.owing:
            return
        with self._present.lock:
            numbers, self._numbers = self._numbers, set()
            changes: list[Change] = [
                PutNumber(kind, name, self._present.least_numbers[kind, name]) for kind, name in sorted(numbers)
            ]
            others = self._records.write(changes) if changes else None
            begun = self._rows()
        if begun:
            LOG.info("%d stored attempts are brought in line with the numbers and the policy in force", len(begun))
        deadline = self._times.until(STORE_PATIENCE)
        if others is not None:
            try:
                others.wait(deadline)
            except StoreError:
                self._again(set(), numbers)
        for id, lost, pending in begun:
            try:
                pending.wait(deadline)
            except StoreConflict:
                # Another controller was quicker; what it wrote has been heard and looked at by now.
                if lost:
                    with self._present.lock:
                        self._records.lost.add(id)
            except StoreError:
                self._again({id}, set())
                if lost:
                    with self._present.lock:
                        self._records.lost.add(id)

    def _again(self, ids: set[str], numbers: set[tuple[Kind, str]]) -> None:
        with self._present.lock:
            self._higher |= ids
            self._numbers |= numbers
            self._not_before = self._times.clock() + AGAIN_SECONDS

    def _rows(self) -> list[tuple[str, bool, Pending]]:
        """Begin to write the rows; the caller has the lock."""
        records, digest = self._records, self._present.world.policy.digest
        lost, records.lost = records.lost, set()
        ids, self._higher = lost | self._higher, set()
        begun: list[tuple[str, bool, Pending]] = []
        for id in sorted(ids):
            row, stored = self._present.rows.get(id), records.stored.get(id)
            if row is None or stored is None or stored.leaving or (stored.digest != digest and id not in lost):
                continue
            if stored.digest != digest:
                # Its bridge may let pass what the other controller's policy allows, whatever ours allowed before.
                row = self._present.rows[id] = emptying(row)
            right = asking_as(outdating(row, {*outdated(row), *outdated(stored)}), stored)
            if right != stored:
                begun.append((id, id in lost, records.put_stored(right)))
        return begun


def _numbers(row: AttemptRow) -> tuple[int, int, int]:
    return row.identity, row.slice_number, row.share_number
