"""What other controllers on the same store write, and what they are owed: confirmations of the bridges mastered here.

Invariants: a row is heard as it was written, in order; a bridge of ours is confirmed in the store only when its switch
has confirmed. Alone, nothing here is ever called.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping

from ryu_apps.fabric import REALISED, Ticket
from ryu_apps.fabric import Outcome as Settled
from ryu_apps.life.agreeing import Agreeing
from ryu_apps.life.checks import attempt_of, check, claims
from ryu_apps.life.counting import Counting
from ryu_apps.life.deciding import decide_anew, outdated_by
from ryu_apps.life.departures import Departures, gone
from ryu_apps.life.emptying import Emptying
from ryu_apps.life.nodes import Nodes
from ryu_apps.life.present import Present
from ryu_apps.life.records import Records
from ryu_apps.life.refused import LastCounts
from ryu_apps.life.seldom import Seldom
from ryu_apps.life.telling import Telling
from ryu_apps.life.times import STORE_PATIENCE, Times
from ryu_apps.life.turns import Turns
from ryu_apps.refusals import Refused
from ryu_apps.shared import Elsewhere, asked, awaiting, without
from ryu_apps.store.store import AttemptRow, NodeRow, NumberRow, Pending, StoreError

LOG = logging.getLogger("lark.controller")


class Hearing:
    """`collided`: attempts that `tick` is to end, because two controllers gave the same thing to two at once."""

    def __init__(
        self,
        present: Present,
        telling: Telling,
        records: Records,
        departures: Departures,
        nodes: Nodes,
        counts: LastCounts,
        counting: Counting,
        turns: Turns,
        times: Times,
        agreeing: Agreeing,
        emptying: Emptying,
    ) -> None:
        self._emptying = emptying
        self._agreeing = agreeing
        self._present = present
        self._telling = telling
        self._records = records
        self._departures = departures
        self._nodes = nodes
        self._counts = counts
        self._counting = counting
        self._turns = turns
        self._times = times
        self._owed: dict[tuple[str, str], Ticket] = {}
        self._owed_refused: dict[str, set[str]] = {}
        self.collided: set[str] = set()
        self._seldom = Seldom(times)

    # --- rows; the caller has the lock --------------------------------------------------------------------------------

    def row(self, row: AttemptRow | NodeRow | NumberRow) -> None:
        """Another controller has written this row."""
        match row:
            case AttemptRow():
                self._attempt(row)
            case NodeRow():
                self._nodes.hear(row)
            case NumberRow(kind, name, number):
                if self._present.set_number(kind, name, number):
                    self._telling.say(self._telling.mine)
                if number > self._present.least_numbers[kind, name]:
                    self._agreeing.number(kind, name)

    def read_again(self, id: str, row: AttemptRow | None) -> None:
        """The store was found to hold this row of an attempt, or none."""
        if row is None:
            self.gone(id)
        else:
            self._attempt(row)

    def _attempt(self, row: AttemptRow) -> None:
        present, id = self._present, row.id
        if self._records.dropped(row):
            return
        self._records.stored[id] = row
        self._records.settle(row)
        if row.leaving:
            self._leaving(row)
            return
        leaving = self._departures.known.get(id)
        if leaving is not None:
            if not leaving.unstored:
                return  # it is ending here: the next write says so to the others
            del self._departures.known[id]
        try:
            check(present.world, present.nodes, id, row.spec)
        except Refused as refused:
            self._seldom.error(
                "unfit", "attempt=%s, which another controller registered, does not fit: %s", id, refused.detail
            )
            return
        policy = present.world.policy
        heard: AttemptRow | None = row
        if row.digest != policy.digest:
            heard = None
            self._say_that_policies_differ(row.digest)
            row = outdated_by(present.world, row, present.world, decide_anew(row, policy))
        else:
            row, contradictions = present.believable(row)
            for what, text in contradictions.items():
                self._seldom.error(what, "attempt=%s %s", id, text)
            if row is not heard:
                # What we have instead is not written there: the writer may see it the other way round, for ever.
                heard = None
            if present.lower(row):
                # Bridges that have the other number are told.
                self._telling.say(self._telling.mine)
                self._agreeing.lowered()
        self._note_collisions(row)
        old, new = present.world.attempts.get(id), attempt_of(row)
        tickets: Mapping[str, Ticket] = {}
        changed = False
        if old != new:
            told = self._telling.shift(old, new)
            changed = not told.less
            if old is None and new.bridge in self._telling.mine:
                self._counting.begin(new)
            self._telling.follow_up(told.peers)
            tickets = told.concerned
        kept = present.keep(awaiting(row, ()))
        if heard is not None:
            self._agreeing.look(heard, kept)
            self._emptying.heard(kept, changed)
        for bridge, reason in asked(row).items():
            if bridge in self._telling.mine and not reason:
                ticket = tickets.get(bridge)
                self._owed[id, bridge] = self._telling.confirmation(id, bridge) if ticket is None else ticket

    def _say_that_policies_differ(self, other: str) -> None:
        """One row comes for each attempt there is."""
        self._seldom.error(
            f"policies {other}",
            "attempts are decided by another controller with another policy: %s, and %s here; each bridge has that "
            "of its master. Let policy.yaml be the same for all controllers, and send SIGHUP to each",
            other[:12],
            self._present.world.policy.digest[:12],
        )

    def _note_collisions(self, row: AttemptRow) -> None:
        present = self._present
        for claim in claims(row.spec):
            holder = present.rows.get(present.claims.get(claim, row.id))
            if holder is not None and holder.id != row.id:
                loser = max(holder, row, key=lambda one: one.number).id
                LOG.error("attempt=%s and attempt=%s have the same %s: %s ends", row.id, holder.id, claim[1], loser)
                self.collided.add(loser)

    def _leaving(self, row: AttemptRow) -> None:
        departures, id = self._departures, row.id
        if id in self._present.rows:
            self._counts.of_attempt(id)
            departures.leave(id)
        if id not in departures.known:
            departures.add(row, {})
        leaving = departures.known[id]
        leaving.row, leaving.stored, leaving.unstored = row, row.leaving, False
        for bridge, ticket in leaving.tickets.items():
            if isinstance(ticket, Elsewhere) and bridge not in row.leaving:
                ticket.settle(REALISED)
        for bridge in row.leaving:
            if bridge in self._present.world.site.bridges:
                leaving.tickets.setdefault(bridge, self._telling.tell(bridge, [], []))
        self._say_again(id)
        if any(bridge in self._telling.mine for bridge in leaving.tickets):
            departures.to_confirm[id] = self._times.until()

    def gone(self, id: str) -> None:
        """Another controller has removed the row of an attempt."""
        departures = self._departures
        self._records.gone(id)
        if id in self._present.rows:
            departures.leave(id)
        self._say_again(id)
        leaving = departures.known.get(id)
        if leaving is None:
            return
        leaving.unstored = True
        for ticket in leaving.tickets.values():
            if isinstance(ticket, Elsewhere):
                ticket.settle(REALISED)
        if not leaving.waits:
            departures.free(id)

    def _say_again(self, id: str) -> None:
        """What a bridge refused was forgotten as a whole, and others may rely on a part of it."""
        self._owed = {key: ticket for key, ticket in self._owed.items() if key[0] != id}
        self._telling.say(bridge for bridge in self._owed_refused.pop(id, ()) if bridge in self._telling.mine)

    # --- mastership; the caller has the lock --------------------------------------------------------------------------

    def mastered(self, bridge: str, generation: int) -> None:
        """This controller is the bridge's master from now on: it says the whole truth, and answers for the bridge."""
        self._counting.taken_over(bridge)
        ticket = self._telling.master(bridge, generation)
        for id, leaving in self._departures.known.items():
            before = leaving.tickets.get(bridge)
            if before is not None and not gone(before):
                leaving.tickets[bridge] = ticket
                if isinstance(before, Elsewhere):
                    before.follow(ticket)
                self._departures.to_confirm[id] = self._times.until()
        self._emptying.resume({bridge: ticket})
        for id, row in self._records.stored.items():
            if asked(row).get(bridge) == "" and id in self._present.rows:
                self._owed[id, bridge] = ticket

    def unmastered(self, bridge: str, generation: int) -> None:
        """The bridge is another controller's, or nobody's."""
        was = self._telling.slave(bridge, generation)
        for leaving in self._departures.known.values():
            if bridge in leaving.tickets and not gone(leaving.tickets[bridge]) and was:
                leaving.tickets[bridge] = Elsewhere(bridge)
        self._owed = {key: ticket for key, ticket in self._owed.items() if key[1] != bridge}

    # --- what is owed -------------------------------------------------------------------------------------------------

    @property
    def owing(self) -> bool:
        """Do other controllers wait for what bridges of this one confirm?"""
        return bool(self._owed or self._departures.to_confirm) or self._agreeing.owing or self._emptying.owing

    def pay(self) -> None:
        """Write what bridges of this controller have confirmed to others. Never waits for a switch; takes the lock."""
        departures, records = self._departures, self._records
        self._agreeing.pay()
        self._emptying.pay()
        with self._present.lock:
            begun = self._confirmed()
            now = self._times.clock()
            departures.to_confirm = {id: until for id, until in departures.to_confirm.items() if until > now}
            ended = [
                id
                for id in departures.to_confirm
                if id in departures.known and departures.known[id].stored != departures.known[id].waits
            ]
        for new, pending in begun:
            # What did not take place was read again, and is owed again.
            with contextlib.suppress(StoreError):
                pending.wait(self._times.until(STORE_PATIENCE))
                with self._present.lock:
                    records.settle(new)
        with contextlib.ExitStack() as turns:
            departures.write_leaving([id for id in ended if turns.enter_context(self._turns.free(id))])
        with self._present.lock:
            for id in ended:
                leaving = departures.known.get(id)
                if leaving is None or not any(bridge in self._telling.mine for bridge in leaving.stored or ()):
                    departures.to_confirm.pop(id, None)

    def _confirmed(self) -> list[tuple[AttemptRow, Pending]]:
        """Begin to write what bridges have said since; the caller has the lock."""
        settled = {key: result for key, ticket in self._owed.items() if (result := ticket.result()) is not None}
        begun: list[tuple[AttemptRow, Pending]] = []
        for id in dict.fromkeys(id for id, _ in settled):
            row = self._records.stored.get(id)
            results = {bridge: self._owed.pop((id, bridge)) for one, bridge in settled if one == id}
            if row is None or row.leaving:
                continue
            said: dict[str, str | None] = {}
            for bridge in results:
                result = settled[id, bridge]
                said[bridge] = None if result.realised else result.reason or result.outcome.value
                if result.outcome is Settled.REFUSED:
                    self._owed_refused.setdefault(id, set()).add(bridge)
            new = without(row, said)
            if new != row:
                begun.append((new, self._records.put_stored(new)))
        return begun
