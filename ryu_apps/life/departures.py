"""Attempts that have ended: their flows go, and what they held stays in quarantine until every bridge has confirmed.

    leave ──▶ flows away ──▶ tickets ──▶ all confirmed: row away, address free
                                └──────▶ else: the row says which bridges are waited for

An end is answered when the bridges that had to know before the start have confirmed. Bridges that only slice mates are
on are hardly waited for: one that is silent must not hold up the ends of other nodes' jobs.

Invariant: address, MAC, port and zone of an ended attempt are given to nobody while a bridge may still know them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from policies.wire import AttemptSpec
from ryu_apps.fabric import Outcome as Settled
from ryu_apps.fabric import Ticket
from ryu_apps.life.checks import claims
from ryu_apps.life.present import Present
from ryu_apps.life.records import Records
from ryu_apps.life.refused import LastCounts
from ryu_apps.life.telling import Telling
from ryu_apps.life.times import PEER_PATIENCE, STORE_PATIENCE, Times
from ryu_apps.life.turns import Turns
from ryu_apps.refusals import Refused, Slug
from ryu_apps.shared import Elsewhere, outdated
from ryu_apps.store.store import AttemptRow, Change, DropAttempt, Pending, PutAttempt, StoreConflict, StoreError

LOG = logging.getLogger("lark.controller")


@dataclass(slots=True)
class Departure:
    """An attempt that has ended and that some bridge has not yet confirmed as gone."""

    row: AttemptRow
    tickets: dict[str, Ticket]
    peers: frozenset[str] = frozenset()
    """The bridges among them that only slice mates are on."""
    stored: tuple[str, ...] | None = None
    """What the stored row says it waits for; None: the row still says that the attempt lives."""
    unstored: bool = False
    """There is no row (any more)."""

    @property
    def waits(self) -> tuple[str, ...]:
        """The bridges that have not confirmed."""
        return tuple(sorted(bridge for bridge, ticket in self.tickets.items() if not gone(ticket)))


def gone(ticket: Ticket) -> bool:
    """Has the bridge confirmed?"""
    result = ticket.result()
    return result is not None and result.realised


class Departures:
    """`known`: what is leaving, by attempt id."""

    def __init__(
        self,
        present: Present,
        telling: Telling,
        records: Records,
        counts: LastCounts,
        turns: Turns,
        times: Times,
    ) -> None:
        self._present = present
        self._telling = telling
        self._records = records
        self._counts = counts
        self._turns = turns
        self._times = times
        self.known: dict[str, Departure] = {}
        self._late: dict[str, Ticket] = {}
        """The ticket with which a slice mates' bridge was last waited for in vain."""
        self.to_confirm: dict[str, float] = {}
        """Those that bridges of this controller owe to others, and until when that is looked at often."""

    # --- the caller has the lock --------------------------------------------------------------------------------------

    def check_claims(self, id: str, spec: AttemptSpec) -> None:
        """What a new attempt claims must be nobody's. Raises Refused."""
        for claim in (None, *claims(spec)):
            holder = id if claim is None else self._present.claims.get(claim)
            if holder is None or (claim is None and id not in self.known):
                continue
            where, what, which = claim or ("the controller", "the id", id)
            leaving = self.known.get(holder)
            if leaving is None:
                raise Refused(Slug.CONFLICT, f"{what} {which} on {where} is used by attempt {holder}")
            # That ends by itself: to be tried again, not to be mended.
            waits = list(leaving.waits)
            raise Refused(
                Slug.NOT_REALISED,
                f"{what} {which} on {where} was used by attempt {holder} and stays in quarantine until "
                f"{', '.join(waits) or 'the store'} has confirmed that it is gone; try again",
                {"bridges": waits},
            )

    def claimed(self, id: str, spec: AttemptSpec) -> bool:
        """Would `check_claims` refuse?"""
        held = self._present.claims
        return id in self.known or any(held.get(claim) is not None for claim in claims(spec))

    def leave(self, id: str) -> None:
        """Take an attempt out of the world; its claims stay until every bridge has confirmed."""
        row = self._present.lose(id)
        told = self._telling.shift(self._present.world.attempts[id], None)
        # Its peers' bridges would let its address pass: that is not given to another before they know.
        tickets = {**told.peers, **told.concerned}
        for bridge in {*outdated(row), *self._mates_by_others(row)}:
            if bridge not in tickets and bridge in self._present.world.site.bridges:
                tickets[bridge] = self._telling.tell(bridge, [], [])
        self.known[id] = Departure(row, tickets, frozenset(told.peers))

    def _mates_by_others(self, row: AttemptRow) -> set[str]:
        """Bridges of slice mates that only another controller, which decides by another policy, knows of."""
        stored = self._records.stored.get(row.id)
        if stored is None or stored.digest == self._present.world.policy.digest or stored.decision.slice is None:
            return set()
        name, digest = stored.decision.slice, stored.digest
        return {
            one.spec.port.bridge
            for one in self._records.stored.values()
            if one.decision.slice == name and one.digest == digest and not one.decision.outcome.sealed
        }

    def add(self, row: AttemptRow, tickets: dict[str, Ticket]) -> None:
        """One that ended before this controller heard of it. Claims of living attempts are theirs."""
        self.known[row.id] = Departure(row, tickets, stored=row.leaving)
        self._present.hold_share(row)
        for claim in claims(row.spec):
            self._present.claims.setdefault(claim, row.id)

    def free(self, id: str) -> None:
        """Nothing has flows of it any more: what it held may be given to another."""
        self._present.give_free(self.known.pop(id).row)
        self.to_confirm.pop(id, None)

    # --- waiting; the caller does not have the lock -------------------------------------------------------------------

    def end_quietly(self, ids: Iterable[str]) -> None:
        """End attempts without waiting; `tick` finishes them. One that a request is about is left to the next tick."""
        with contextlib.ExitStack() as turns:
            mine = [id for id in ids if turns.enter_context(self._turns.free(id))]
            ended = []
            for id in mine:
                with self._present.lock:
                    if id not in self._present.rows:
                        continue
                    row = self._present.rows[id]
                    self._counts.of_attempt(id)
                    self.leave(id)
                ended.append(id)
                LOG.warning("attempt=%s job=%s node=%s torn down without its agent", id, row.spec.job, row.spec.node)
            self.settle(ended, self._times.clock())

    def finish(self, ids: Sequence[str], now: float) -> None:
        """Finish without waiting what can be finished; one that a request is about is that one's affair."""
        # Under load there are hundreds of the latter.
        left = [id for id in ids if not self._turns.taken(id)]
        with contextlib.ExitStack() as turns:
            self.settle([id for id in left if turns.enter_context(self._turns.free(id))], now)

    def settle(self, ids: Sequence[str], deadline: float) -> None:
        """Finish leaving attempts as far as their bridges have confirmed, with one durable write for all of them.

        Unreachable bridges are not waited for. The caller has the turn of each attempt.
        """
        if self._records.shared:
            self._settle_together(ids, deadline)
            return
        with self._present.lock:
            found = {id: self.known[id] for id in ids if id in self.known}
        news: dict[str, tuple[str, ...]] = {}
        for id, leaving in found.items():
            self._wait(id, leaving, list(leaving.tickets), deadline)
            waits = leaving.waits
            if waits != leaving.stored:
                news[id] = waits
        if not news:
            return
        changes: list[Change] = [
            PutAttempt(replace(found[id].row, leaving=waits)) if waits else DropAttempt(id)
            for id, waits in news.items()
        ]
        try:
            self._records.store.write(changes).wait(max(deadline, self._times.until(STORE_PATIENCE)))
        except StoreError as problem:
            LOG.error("attempt=%s has ended, but its row is still stored: %s", ",".join(news), problem)
            return
        for id, waits in news.items():
            found[id].stored = waits
            if waits:
                LOG.warning(
                    "attempt=%s has ended; its address is in quarantine until confirmed by %s", id, ", ".join(waits)
                )
                continue
            with self._present.lock:
                self.free(id)

    def _settle_together(self, ids: Sequence[str], deadline: float) -> None:
        """`settle` among several: each master takes its bridges from the stored row, the last one removes it."""
        with self._present.lock:
            found = {id: self.known[id] for id in ids if id in self.known}
            new = [id for id, one in found.items() if one.stored is None and _some_elsewhere(one)]
        self.write_leaving(new)
        for elsewhere in (False, True):
            for id, leaving in found.items():
                here = [b for b, ticket in leaving.tickets.items() if isinstance(ticket, Elsewhere) is elsewhere]
                self._wait(id, leaving, here, deadline)
            self.write_leaving(list(found))

    def _wait(self, id: str, leaving: Departure, bridges: Sequence[str], deadline: float) -> None:
        """Wait for bridges that can be reached. One that refuses is told everything anew."""
        for bridge in bridges:
            ticket = leaving.tickets[bridge]
            result = ticket.result()
            if result is None and self._telling.connected(bridge):
                result = ticket.wait(self._patience(bridge, deadline) if bridge in leaving.peers else deadline)
            if bridge in leaving.peers and ticket.result() is None:
                self._late.setdefault(bridge, ticket)
            refused = result is not None and result.outcome is Settled.REFUSED
            if result is not None and refused and not isinstance(ticket, Elsewhere):
                LOG.error("attempt=%s bridge=%s refused to let it go (%s); saying all anew", id, bridge, result.reason)
                with self._present.lock:
                    leaving.tickets.update(self._telling.say([bridge]))

    def _patience(self, bridge: str, deadline: float) -> float:
        """Until when the bridge of slice mates is waited for: not at all while it owes an answer from before."""
        now = self._times.clock()
        late = self._late.get(bridge)
        if late is not None:
            if late.result() is None:
                return min(deadline, now)
            del self._late[bridge]
        return min(deadline, now + PEER_PATIENCE)

    def write_leaving(self, ids: Sequence[str]) -> None:
        """Bring the stored rows of leaving attempts in line with what has been confirmed; free what is gone."""
        records = self._records
        for _ in range(4):
            begun: list[tuple[str, tuple[str, ...], Pending]] = []
            with self._present.lock:
                for id in ids:
                    leaving = self.known.get(id)
                    if leaving is None:
                        continue
                    waits = leaving.waits
                    stored = records.stored.get(id)
                    if stored is None:
                        leaving.unstored = True
                    if leaving.unstored:
                        if not waits:
                            self.free(id)
                    elif stored is not None and waits != leaving.stored:
                        pending: Pending
                        if waits:
                            pending = records.put_stored(replace(stored, leaving=waits, awaits=()))
                        else:
                            pending = records.drop_stored(id)
                        begun.append((id, waits, pending))
            again = []
            deadline = self._times.until(STORE_PATIENCE)
            for id, waits, pending in begun:
                try:
                    pending.wait(deadline)
                except StoreConflict:
                    again.append(id)
                except StoreError as problem:
                    LOG.error("attempt=%s has ended, but its row is still stored: %s", id, problem)
                else:
                    with self._present.lock:
                        leaving = self.known.get(id)
                        if leaving is not None:
                            leaving.stored = waits
                            if not waits:
                                self.free(id)
            if not again:
                return
            ids = again


def _some_elsewhere(leaving: Departure) -> bool:
    return any(isinstance(ticket, Elsewhere) and not gone(ticket) for ticket in leaving.tickets.values())
