"""Zones that remember what is not allowed any more are emptied, however often controllers start or change in between.

    less is allowed ──▶ row with `forget:zone:BRIDGE`, in the write that says so ──▶ bridge confirms ──▶ zone emptied
                                  │ controller dies, or the bridge changes hands                               │
                                  └──▶ read back or mastered: `resume` ──▶ the same once more      mark goes, written
                                                                                                   later, nobody waits
Invariants: the mark goes only after the switch has confirmed that the zone was emptied under the policy that the row
was decided by, and only the bridge's master takes it away. A mark that stays without need costs one more emptying, one
that goes too early lets a connection go on that was withdrawn.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping

from ryu_apps.fabric import Ticket
from ryu_apps.life.present import Present
from ryu_apps.life.records import Records
from ryu_apps.life.telling import Telling
from ryu_apps.life.times import STORE_PATIENCE, Times
from ryu_apps.shared import emptying, to_empty
from ryu_apps.store.store import AttemptRow, Change, Pending, PutAttempt, StoreError

LOG = logging.getLogger("lark.controller")


class Emptying:
    def __init__(self, present: Present, telling: Telling, records: Records, times: Times) -> None:
        self._present = present
        self._telling = telling
        self._records = records
        self._times = times
        self._emptied: set[str] = set()
        """Attempts whose stored rows still have the mark; only among several controllers."""

    # --- the caller has the lock --------------------------------------------------------------------------------------

    def resume(self, tickets: Mapping[str, Ticket]) -> None:
        """The whole truth was said to these bridges by a controller that may not know what they were told before."""
        zones: dict[str, list[int]] = {}
        for row in self._present.rows.values():
            bridge = row.spec.port.bridge
            if bridge in tickets and (to_empty(row) or self._decided_otherwise(row)):
                zones.setdefault(bridge, []).append(row.spec.zone)
        for bridge, found in zones.items():
            self._telling.outlive(bridge, tickets[bridge], found)

    def heard(self, row: AttemptRow, changed: bool) -> None:
        """Another controller with the same policy has written this; it is kept. `changed`: it was otherwise here, and
        its zone was not yet found to be emptied for that."""
        bridge, zone = row.spec.port.bridge, row.spec.zone
        if to_empty(row) and bridge in self._telling.mine and (changed or not self._telling.outlives(bridge, zone)):
            self._telling.outlive(bridge, self._telling.confirmation(row.id, bridge), [zone])

    def by_another_policy(self, row: AttemptRow) -> bool:
        """Whether another controller's policy may be in force on the attempt's bridge: what it allows is not known."""
        return self._decided_otherwise(row) and row.spec.port.bridge not in self._telling.mine

    def tick(self) -> None:
        """Empty what is due, and take the marks away."""
        done = self._telling.forget()
        if not done:
            return
        changes: list[Change] = []
        for id, row in list(self._present.rows.items()):
            if not to_empty(row) or row.spec.zone not in done.get(row.spec.port.bridge, ()):
                continue
            if self._decided_otherwise(row):
                continue  # by the policy that the row tells of it has not been emptied
            self._present.rows[id] = row = emptying(row, False)
            if self._records.shared:
                self._emptied.add(id)
            else:
                changes.append(PutAttempt(row))
        if changes:
            # Nobody waits: if it is not written, the zone is emptied once more by the controller that starts next.
            self._records.write(changes)

    def _decided_otherwise(self, row: AttemptRow) -> bool:
        """Whether the stored row is another controller's, by another policy than the one in force here."""
        stored = self._records.stored.get(row.id)
        return stored is not None and stored.digest != row.digest

    # --- among several controllers; without the lock ------------------------------------------------------------------

    @property
    def owing(self) -> bool:
        return bool(self._emptied)

    def pay(self) -> None:
        """Take the marks of emptied zones from the stored rows."""
        if not self._emptied:
            return
        with self._present.lock:
            ids, self._emptied = self._emptied, set()
            begun: list[Pending] = []
            for id in sorted(ids):
                row, stored = self._present.rows.get(id), self._records.stored.get(id)
                if row is None or stored is None or stored.leaving or stored.digest != row.digest:
                    continue
                if to_empty(stored) and not to_empty(row):
                    begun.append(self._records.put_stored(emptying(stored, False)))
        deadline = self._times.until(STORE_PATIENCE)
        for pending in begun:
            # What another controller wrote meanwhile has the mark still, and is heard like any other.
            with contextlib.suppress(StoreError):
                pending.wait(deadline)
