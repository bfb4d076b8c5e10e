"""What controllers say in an attempt's row to one another, and to those that come after them.

    A: registers, writes the row with `awaits: [gate]`      B, master of the gate: programs it, takes `gate` away
       ……………… the ticket is open ………………………… ▶ settled

`forget:BRIDGE` in the same column: by an earlier policy the attempt needed that bridge, and by the one in force it does
not. A bridge that was away has not heard of that: the attempt's end waits for it too.

`forget:zone:BRIDGE`: what the attempt may do has become less, and its bridge may still remember connections that were
let through before: its zone is to be emptied by whoever is, or becomes, the bridge's master. A version that does not
know these words takes the rest for a bridge that no site has (a name has no colon), and leaves it where it is.

Invariants: a bridge is in `awaits` until its master has said, in the store, that the row is in force there, or why not;
a ticket of another's bridge is settled by nothing else, as long as the bridge is another's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

from ryu_apps.fabric import Outcome, Ticket, TicketResult
from ryu_apps.store.store import AttemptRow

REASON_LENGTH = 300
"""Characters of a refusal that go into the row."""
FORGET = "forget:"
ZONE = "forget:zone:"


class Elsewhere:
    """Implements `fabric.Ticket` for a bridge that another controller is master of."""

    def __init__(self, bridge: str) -> None:
        self._bridge = bridge
        self._settled = threading.Event()
        self._result: TicketResult | None = None
        self._instead: Ticket | None = None

    def settle(self, result: TicketResult) -> None:
        if self._result is None:
            self._result = result
            self._settled.set()

    def follow(self, ticket: Ticket) -> None:
        """The bridge is this controller's own now: whoever waits goes on waiting for what it says itself."""
        self._instead = ticket
        self._settled.set()

    def wait(self, deadline: float) -> TicketResult:
        self._settled.wait(max(0.0, deadline - time.monotonic()))
        if self._result is None and self._instead is not None:
            return self._instead.wait(deadline)
        return self._result or TicketResult(
            Outcome.TIMED_OUT, f"the controller that is master of bridge {self._bridge} has not confirmed in time"
        )

    def result(self) -> TicketResult | None:
        if self._result is None and self._instead is not None:
            return self._instead.result()
        return self._result


def asked(row: AttemptRow) -> dict[str, str]:
    """The bridges that a row awaits, each with the reason for which it was refused there; empty: not known yet."""
    # Most rows await nothing, and are looked at by the thousand.
    words = [one for one in row.awaits if not one.startswith(FORGET)] if row.awaits else ()
    return {bridge: reason for bridge, _, reason in (one.partition(" ") for one in words)}


def outdated(row: AttemptRow) -> list[str]:
    """The bridges that may know an attempt by an earlier policy only."""
    return [one.removeprefix(FORGET) for one in row.awaits if one.startswith(FORGET) and not one.startswith(ZONE)]


def awaiting(row: AttemptRow, asked: Iterable[str]) -> AttemptRow:
    """The row asking these bridges, and no others."""
    return replace(row, awaits=tuple(sorted((*asked, *(one for one in row.awaits if one.startswith(FORGET))))))


def asking_as(row: AttemptRow, other: AttemptRow | None) -> AttemptRow:
    """The row asking what another one asks, with what has been said to that."""
    words = () if other is None else (one for one in other.awaits if not one.startswith(FORGET))
    return awaiting(row, words)


def outdating(row: AttemptRow, bridges: Iterable[str]) -> AttemptRow:
    """The row saying that these bridges, and no others, may know it by an earlier policy only."""
    others = [one for one in row.awaits if one.startswith(ZONE) or not one.startswith(FORGET)]
    return replace(row, awaits=tuple(sorted((*others, *(FORGET + bridge for bridge in bridges)))))


def to_empty(row: AttemptRow) -> bool:
    """Whether the attempt's zone may remember what is not allowed any more."""
    return bool(row.awaits) and any(one.startswith(ZONE) for one in row.awaits)


def emptying(row: AttemptRow, due: bool = True) -> AttemptRow:
    """The row saying that the attempt's zone is to be emptied, or that it need not be."""
    if to_empty(row) is due:
        return row
    words = {one for one in row.awaits if not one.startswith(ZONE)}
    return replace(row, awaits=tuple(sorted(words | {ZONE + row.spec.port.bridge} if due else words)))


def without(row: AttemptRow, said: Mapping[str, str | None]) -> AttemptRow:
    """The row after some bridges have said: it is in force (None), or why it is not."""
    waiting = asked(row)
    for bridge, reason in said.items():
        if bridge not in waiting:
            continue
        if reason is None:
            del waiting[bridge]
        else:
            waiting[bridge] = reason[:REASON_LENGTH]
    return awaiting(row, (f"{bridge} {reason}".strip() for bridge, reason in waiting.items()))
