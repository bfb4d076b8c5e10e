"""What the store holds of each attempt, and writes to it.

Alone, a write replaces what is there. Among several controllers each write names the row that it replaces, and the row
asks the masters of other bridges to confirm (`ryu_apps.shared`): two controllers never undo each other's writes.

Invariant: `stored` is what the store holds, or will when the writes begun so far have taken place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ryu_apps.fabric import REALISED, Ticket, TicketResult
from ryu_apps.fabric import Outcome as Settled
from ryu_apps.life.present import Present
from ryu_apps.life.times import Times
from ryu_apps.shared import Elsewhere, asked, asking_as, awaiting
from ryu_apps.store.store import (
    AttemptRow,
    Change,
    DropAttempt,
    Pending,
    PutAttempt,
    Store,
    StoreConflict,
    StoreError,
)

DROPPED_KEPT = 10_000
"""More than end in the seconds that what others wrote may take to be heard."""
_ENDED = TicketResult(Settled.REFUSED, "the attempt has ended meanwhile")


@dataclass(frozen=True, slots=True)
class _FailedWrite:
    problem: str

    def wait(self, deadline: float) -> None:
        raise StoreError(self.problem)


class Records:
    """`name`: of this controller among several; None: it is alone, and `stored` and `awaited` stay empty."""

    def __init__(self, store: Store, present: Present, times: Times, name: str | None) -> None:
        self.store = store
        self._present = present
        self._times = times
        self.name = name
        self.stored: dict[str, AttemptRow] = {}
        self._awaited: dict[str, dict[str, Elsewhere]] = {}
        self._dropped: dict[str, int] = {}
        """Attempts whose rows we have removed of late, and their numbers."""
        self.lost: set[str] = set()
        """Attempts whose rows by the policy in force did not get into the store: others were quicker, or it failed."""
        self.catch_up: Callable[[], None] = _nothing_to_catch_up
        """Returns when everything that others wrote before the call is known here. Raises StoreError."""
        self.read_again: Callable[[str, AttemptRow | None], None] = _nobody_to_tell
        """Told, with the lock, what the store was found to hold of an attempt after a write that got lost."""

    @property
    def shared(self) -> bool:
        return self.name is not None

    def write(self, changes: Sequence[Change]) -> Pending:
        """Begin a write; a store that is closed shows when it is waited for."""
        try:
            return self.store.write(changes)
        except StoreError as problem:
            return _FailedWrite(str(problem))

    # --- rows of living attempts; the caller has the lock -------------------------------------------------------------

    def put(self, row: AttemptRow, tickets: Mapping[str, Ticket]) -> Pending:
        """Begin to write a row, and ask the masters of other bridges to confirm it."""
        if not self.shared:
            return self.write([PutAttempt(row)])
        elsewhere = {bridge: ticket for bridge, ticket in tickets.items() if isinstance(ticket, Elsewhere)}
        if elsewhere:
            self._awaited[row.id] = elsewhere
        return self.put_stored(awaiting(replace(row, leaving=()), elsewhere))

    def ask_again(self, row: AttemptRow, tickets: Mapping[str, Ticket]) -> Pending | None:
        """Ask the masters of other bridges to confirm once more what is in force."""
        if not self.shared or not any(isinstance(ticket, Elsewhere) for ticket in tickets.values()):
            return None
        return self.put(self.stored.get(row.id, row), tickets)

    def put_all(self) -> Pending:
        """Every living attempt's row, after another policy came into force.

        What a request has asked other masters stays asked: else it would be answered before they confirm, or never.
        """
        rows = self._present.rows.values()
        if not self.shared:
            return self.write([PutAttempt(row) for row in rows])
        asking = [asking_as(row, self.stored.get(row.id)) for row in rows]
        return _AllOf(self, [self.put_stored(row) for row in asking if row != self.stored.get(row.id)])

    def put_stored(self, row: AttemptRow) -> Conditional:
        """Begin to replace the row that is stored."""
        before = self.stored.get(row.id)
        self.stored[row.id] = row
        return Conditional(self, row.id, before, row, self.write([PutAttempt(row, before)]))

    def drop_stored(self, id: str) -> Pending:
        """Begin to remove the row that is stored."""
        before = self.stored.pop(id)
        self._dropped[id] = before.number
        if len(self._dropped) > DROPPED_KEPT:
            del self._dropped[next(iter(self._dropped))]
        return Conditional(self, id, before, None, self.write([DropAttempt(id, before)]))

    def dropped(self, row: AttemptRow) -> bool:
        """Is this heard only after we have removed it? Two policies to and fro leave a row as it was, so a removal can
        take place before what others wrote until then was heard; that must not bring the attempt back to life."""
        return row.id not in self.stored and self._dropped.get(row.id) == row.number

    # --- what other masters are asked ---------------------------------------------------------------------------------

    def waiting(self, row: AttemptRow) -> set[str]:
        """The bridges mastered elsewhere that have not confirmed an attempt."""
        return set(asked(self.stored.get(row.id, row))) if self.shared else set()

    def answered(self, id: str) -> None:
        """The request is over: nobody waits for other masters any more. The caller has the lock."""
        self._awaited.pop(id, None)

    def settle(self, row: AttemptRow) -> None:
        """A row says what other masters have confirmed. The caller has the lock."""
        waiting = asked(row)
        for bridge, ticket in self._awaited.get(row.id, {}).items():
            if row.leaving:
                ticket.settle(_ENDED)
            elif bridge not in waiting:
                ticket.settle(REALISED)
            elif waiting[bridge]:
                ticket.settle(TicketResult(Settled.REFUSED, waiting[bridge]))

    def gone(self, id: str) -> None:
        """Another controller has removed the row. The caller has the lock."""
        self.stored.pop(id, None)
        for awaited in self._awaited.get(id, {}).values():
            awaited.settle(_ENDED)

    # --- without the lock ---------------------------------------------------------------------------------------------

    def not_stored(self, ids: Iterable[str]) -> None:
        """Another policy's rows of these attempts did not get into the store."""
        with self._present.lock:
            self.lost.update(ids)

    def undone(self, failed: Sequence[tuple[Conditional, StoreError]]) -> None:
        """Writes of rows did not take place, or are not known to have: what does the store hold?

        The others are heard once for all of them: two controllers that read the same new policy at the same moment
        lose some thousand such races, and each hearing takes a good tenth of a second.
        """
        conflicts: list[Conditional] = []
        with self._present.lock:
            for one, error in failed:
                if one.after is None:
                    self._dropped.pop(one.id, None)
                if isinstance(error, StoreConflict):
                    conflicts.append(one)
                elif self.stored.get(one.id) is one.after:
                    if one.before is None:
                        self.stored.pop(one.id, None)
                    else:
                        self.stored[one.id] = one.before
        if not conflicts:
            return
        # In their order: what is heard twice, or late, would undo what came after it.
        with contextlib.suppress(StoreError):
            self.catch_up()
        with self._present.lock:
            ours = [one.id for one in conflicts if self.stored.get(one.id) is one.after]
        if not ours:
            return
        # Nobody else has written them: they were writes of our own whose answers were lost.
        found = {row.id: row for row in self.store.load().attempts}
        with self._present.lock:
            for id in ours:
                self.read_again(id, found.get(id))

    def write_at_start(self, changes: Sequence[Change]) -> None:
        """What reading everything back has changed. Raises StoreError."""
        deadline = self._times.until()
        if not self.shared:
            if changes:
                self.store.write(changes).wait(deadline)
            return
        begun: list[tuple[AttemptRow, Pending]] = []
        others: list[Change] = []
        for change in changes:
            if isinstance(change, PutAttempt):
                before = self.stored.get(change.row.id)
                if change.row != before:
                    begun.append((change.row, self.store.write([PutAttempt(change.row, before)])))
            else:
                others.append(change)
        if others:
            self.store.write(others).wait(deadline)
        for row, pending in begun:
            # If another controller was quicker, the feed says what it wrote.
            with contextlib.suppress(StoreConflict):
                pending.wait(deadline)
                self.stored[row.id] = row


@dataclass(frozen=True, slots=True)
class Conditional:
    """A write of one row among several controllers. If it fails, we look at what the store holds."""

    records: Records
    id: str
    before: AttemptRow | None
    after: AttemptRow | None
    pending: Pending

    def wait(self, deadline: float) -> None:
        try:
            self.pending.wait(deadline)
        except StoreError as error:
            self.records.undone([(self, error)])
            raise


@dataclass(frozen=True, slots=True)
class _AllOf:
    """Writes of many rows; those that do not take place are in `lost` afterwards."""

    records: Records
    writes: Sequence[Conditional]

    def wait(self, deadline: float) -> None:
        failed: list[tuple[Conditional, StoreError]] = []
        for one in self.writes:
            try:
                one.pending.wait(deadline)
            except StoreError as error:
                failed.append((one, error))
        if not failed:
            return
        self.records.undone(failed)
        self.records.not_stored(one.id for one, _ in failed)
        problems = [error for _, error in failed if not isinstance(error, StoreConflict)]
        if problems:
            raise problems[-1]


def _nothing_to_catch_up() -> None:
    """Where there is one controller, nobody else writes."""


def _nobody_to_tell(id: str, row: AttemptRow | None) -> None:
    """Where there is one controller, no write is conditional."""
