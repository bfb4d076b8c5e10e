"""What agents ask about an attempt: begin, advance to a later phase, end.

    begin ──▶ check ──▶ decide ──▶ ┬──▶ store (durable) ──────┬──▶ both confirmed: answer
                │           │      └──▶ flows ──▶ fabric ─────┘         else: take back, answer 503
                ▼ 4xx       ▼ 422

Invariants: an attempt is answered as realised only when its row is on disk and each of its bridges has confirmed;
requests for the same attempt take turns.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from policies.wire import AttemptSpec, AttemptStatus, BridgeRealisation, Deleted, Phase
from ryu_apps.admission import Admission
from ryu_apps.fabric import Outcome as Settled
from ryu_apps.fabric import Ticket
from ryu_apps.life.checks import attempt_of, check
from ryu_apps.life.counting import Counting
from ryu_apps.life.deciding import decide, decide_anew
from ryu_apps.life.departures import Departures, gone
from ryu_apps.life.emptying import Emptying
from ryu_apps.life.nodes import Nodes
from ryu_apps.life.present import Present
from ryu_apps.life.records import Records
from ryu_apps.life.refused import LastCounts
from ryu_apps.life.statuses import Statuses, no_such_attempt
from ryu_apps.life.telling import Telling
from ryu_apps.life.times import PORT_PATIENCE, STORE_PATIENCE, Times
from ryu_apps.life.turns import Turns
from ryu_apps.openflow import compiler
from ryu_apps.refusals import Refused, Slug
from ryu_apps.shared import Elsewhere, emptying, to_empty
from ryu_apps.store.specs import compact
from ryu_apps.store.store import AttemptRow, Kind, Pending, StoreConflict, StoreError

LOG = logging.getLogger("lark.controller")
_PHASES = list(Phase)
TRIES = 3
"""How often a request writes a row that another controller has written meanwhile, without a word to who asked."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something is not realised. `refused_by`: bridges that forgot the change, on which others may have relied."""

    answer: Refused
    refused_by: Sequence[str]
    overtaken: bool = False
    """Another controller was quicker: the attempt is what the store says, and not to be taken back."""


class Confirmation:
    """Waits until bridges and store have confirmed a change."""

    def __init__(self, present: Present, records: Records) -> None:
        self._present = present
        self._records = records

    def wait(
        self,
        id: str,
        tickets: Mapping[str, Ticket],
        pending: Pending | None,
        deadline: float,
        stored: Callable[[bool], None] | None = None,
    ) -> Failure | None:
        """None: all confirmed. `stored` is called when only bridges are left. The caller does not have the lock."""
        failed: dict[str, str] = {}
        refused_by = []
        problem = []
        overtaken = False
        if pending is not None:
            try:
                pending.wait(deadline)
            except StoreError as error:
                problem = [str(error)]
                overtaken = isinstance(error, StoreConflict)
                # The other masters hear of it from the store: without the row there is nothing to wait for.
                tickets = {bridge: ticket for bridge, ticket in tickets.items() if not isinstance(ticket, Elsewhere)}
        if stored is not None:
            stored(True)
        for bridge, ticket in tickets.items():
            result = ticket.wait(deadline)
            if not result.realised:
                failed[bridge] = f"{result.outcome.value}{f' ({result.reason})' if result.reason else ''}"
                if result.outcome is Settled.REFUSED:
                    refused_by.append(bridge)
        with self._present.lock:
            self._records.answered(id)
        if not failed and not problem:
            return None
        detail = "; ".join([f"bridge {bridge}: {why}" for bridge, why in failed.items()] + problem)
        LOG.error("attempt=%s not realised: %s", id, detail)
        return Failure(
            Refused(Slug.NOT_REALISED, f"{detail}; try again", {"bridges": sorted(failed)}), refused_by, overtaken
        )


class Requests:
    """Each is answered when what it asks for is in force, or refused with nothing of it left."""

    def __init__(
        self,
        present: Present,
        telling: Telling,
        records: Records,
        departures: Departures,
        nodes: Nodes,
        counts: LastCounts,
        statuses: Statuses,
        confirmation: Confirmation,
        turns: Turns,
        times: Times,
        counting: Counting,
        admission: Admission,
        emptying: Emptying,
    ) -> None:
        self._emptying = emptying
        self._admission = admission
        self._present = present
        self._telling = telling
        self._records = records
        self._departures = departures
        self._nodes = nodes
        self._counts = counts
        self._statuses = statuses
        self._confirmation = confirmation
        self._turns = turns
        self._times = times
        self._counting = counting

    def begin(self, id: str, spec: AttemptSpec, stored: Callable[[bool], None]) -> tuple[AttemptStatus, bool]:
        """Bring an attempt's policy into force. Returns its status and whether it is new. Raises Refused."""
        present = self._present

        def aside() -> None:
            """It waits for its agent's earlier requests or port, as long as that likes: not in the others' way."""
            stored(False)

        with self._turns.of(id, aside):
            deadline = self._times.until()
            with present.lock:
                known = present.rows.get(id)
                unheard_of = spec.node in present.world.site.nodes and spec.node not in present.nodes
            if known is not None:
                return self._again(known, spec, deadline), False
            if unheard_of:
                self._records.catch_up()
            with present.lock:
                check(present.world, present.nodes, id, spec)
            # A try that was taken back a moment ago may still be on its way out.
            self._departures.settle([id], deadline)
            self._await_port(spec, aside)
            present.numbers.top_up()
            with present.lock:
                held = self._departures.claimed(id, spec)
            if held:
                self._records.catch_up()
            # Its bridges' queues have it until it is answered.
            with contextlib.ExitStack() as queues:
                with present.lock:
                    check(present.world, present.nodes, id, spec)
                    self._departures.check_claims(id, spec)
                    row = self._decided(id, spec)
                    attempt = attempt_of(row)
                    queues.enter_context(self._admission.at(compiler.bridges_of(present.world, attempt), spec.node))
                    self._counting.begin(attempt)
                    told = self._telling.shift(None, attempt)
                    tickets = told.concerned
                    self._telling.follow_up(told.peers)
                    row = present.keep(row)
                    pending = self._records.put(row, tickets)
                    self._nodes.renew(spec.node)
                failure = self._confirmation.wait(id, tickets, pending, deadline, stored)
                if failure is not None:
                    if not failure.overtaken:
                        self._take_back(id, failure)
                    raise failure.answer
            LOG.info(
                "attempt=%s job=%s node=%s bridge=%s port=%s number=%d identity=%d rules=%s in force on %s",
                id, spec.job, spec.node, spec.port.bridge, spec.port.name, row.number, row.identity,
                ",".join(str(place) for place, _ in row.decision.trail) or "none", ",".join(tickets),
            )  # fmt: skip
            return self._statuses.of(row, dict.fromkeys(tickets, BridgeRealisation.REALISED)), True

    def advance(self, id: str, phase: Phase) -> AttemptStatus:
        """Bring the policy of a later phase into force; the same phase again confirms it. Raises Refused."""
        present = self._present
        with self._turns.of(id):
            deadline = self._times.until()
            present.numbers.top_up()
            if id not in present.rows:
                self._records.catch_up()
            for left in reversed(range(TRIES)):
                with present.lock:
                    row, new, tickets, pending = self._advanced(id, phase)
                failure = self._confirmation.wait(id, tickets, pending, deadline)
                if failure is None or not failure.overtaken or not left:
                    break
            if failure is not None:
                self._back_to(row, new, failure)
                raise failure.answer
            LOG.info("attempt=%s job=%s node=%s phase %s in force", id, new.spec.job, new.spec.node, phase)
            bridges = self._statuses.bridges_of(new)
            return self._statuses.of(new, dict.fromkeys(bridges, BridgeRealisation.REALISED))

    def end(self, id: str) -> Deleted:
        """End an attempt; returns when every reachable bridge that its start waited for has confirmed. Raises Refused.

        Again while a bridge is pending: says which; once all have confirmed, there is no such attempt.
        """
        present, departures = self._present, self._departures
        with self._turns.of(id):
            if id not in present.rows and id not in departures.known:
                self._records.catch_up()
            with present.lock:
                if id in present.rows:
                    self._counts.of_attempt(id)
                    departures.leave(id)
                elif id not in departures.known:
                    raise no_such_attempt(id)
                leaving = departures.known[id]
                tickets = dict(leaving.tickets)
            departures.settle([id], self._times.until())
            answer = {
                bridge: BridgeRealisation.REALISED if gone(ticket) else BridgeRealisation.PENDING
                for bridge, ticket in tickets.items()
            }
            LOG.info(
                "attempt=%s job=%s node=%s ended: %s", id, leaving.row.spec.job, leaving.row.spec.node, _words(answer)
            )
            return Deleted(id=id, bridges=answer)

    # --- steps --------------------------------------------------------------------------------------------------------

    def _decided(self, id: str, spec: AttemptSpec) -> AttemptRow:
        """The row of a new attempt; the caller has the lock. Raises Refused."""
        policy = self._present.world.policy
        try:
            decision = decide(policy, spec, spec.phase)
        except Refused as held:
            LOG.info("attempt=%s job=%s node=%s held: %s", id, spec.job, spec.node, held.detail)
            raise
        return AttemptRow(
            id=id,
            number=self._present.numbers.take(Kind.ATTEMPT),
            identity=0,
            spec=compact(spec),
            decision=decision,
            digest=policy.digest,
            registered=self._times.wall_clock(),
        )

    def _advanced(self, id: str, phase: Phase) -> tuple[AttemptRow, AttemptRow, dict[str, Ticket], Pending | None]:
        """Begin what a phase needs: the row before and after, and who is to confirm. The caller has the lock."""
        row = self._present.rows.get(id)
        if row is None:
            raise no_such_attempt(id)
        if _PHASES.index(phase) < _PHASES.index(row.spec.phase):
            raise Refused(
                Slug.PHASE,
                f"attempt {id} is in phase {row.spec.phase} already; phases only advance, not to {phase}",
            )
        if phase is row.spec.phase:
            tickets = self._telling.repeat(id)
            return row, row, tickets, self._records.ask_again(row, tickets)
        policy = self._present.world.policy
        spec = compact(row.spec.model_copy(update={"phase": phase}))
        new = replace(row, spec=spec, decision=decide(policy, spec, phase), digest=policy.digest)
        new, tickets = self._change(new)
        return row, new, tickets, self._records.put(new, tickets)

    def _change(self, new: AttemptRow) -> tuple[AttemptRow, dict[str, Ticket]]:
        """Put a row in the place of the one there is, and tell the bridges; the caller has the lock."""
        before = self._present.rows[new.id]
        told = self._telling.shift(self._present.world.attempts[new.id], attempt_of(new))
        self._telling.follow_up(told.peers)
        less = told.less or self._emptying.by_another_policy(before)
        return self._present.keep(emptying(new, less or to_empty(before))), told.concerned

    def _again(self, row: AttemptRow, spec: AttemptSpec, deadline: float) -> AttemptStatus:
        """The same PUT once more: confirm it, change nothing. Raises Refused."""
        if spec != row.spec:
            differ = sorted(name for name in AttemptSpec.model_fields if getattr(spec, name) != getattr(row.spec, name))
            raise Refused(
                Slug.CONFLICT, f"attempt {row.id} is registered with other content: {', '.join(differ)} differ"
            )
        for left in reversed(range(TRIES)):
            with self._present.lock:
                if row.id not in self._present.rows:
                    text = f"attempt {row.id} has ended meanwhile; try again"
                    raise Refused(Slug.NOT_REALISED, text, {"bridges": []})
                tickets = self._telling.repeat(row.id)
                pending = self._records.ask_again(row, tickets)
            failure = self._confirmation.wait(row.id, tickets, pending, deadline)
            if failure is None or not failure.overtaken or not left:
                break
        if failure is not None:
            with self._present.lock:
                self._telling.say(failure.refused_by)
            raise failure.answer
        return self._statuses.of(row, dict.fromkeys(tickets, BridgeRealisation.REALISED))

    def _take_back(self, id: str, failure: Failure) -> None:
        """Of a new attempt that is not realised nothing stays."""
        with self._present.lock:
            if id in self._present.rows:
                self._departures.leave(id)
            self._telling.say(failure.refused_by)
        self._departures.settle([id], self._times.until(1))

    def _back_to(self, row: AttemptRow, new: AttemptRow, failure: Failure) -> None:
        """Of a phase that is not realised the one before it stays."""
        write: Pending | None = None
        with self._present.lock:
            if new is not row and not failure.overtaken and row.id in self._present.rows:
                # The policy may have been replaced meanwhile: back to the old phase, not to the old policy.
                policy = self._present.world.policy
                back, _ = self._change(row if row.digest == policy.digest else decide_anew(row, policy))
                write = self._records.put(back, {})
            self._telling.say(failure.refused_by)
        if write is not None and self._records.shared:
            with contextlib.suppress(StoreError):
                write.wait(self._times.until(STORE_PATIENCE))

    def _await_port(self, spec: AttemptSpec, waits: Callable[[], None]) -> None:
        """The port must be on the switch, under this name and number; `waits` is called if it is not yet. Raises
        Refused."""
        bridge, port = spec.port.bridge, spec.port
        until = time.monotonic() + min(PORT_PATIENCE, self._times.deadline)
        while True:
            state = self._telling.state(bridge)
            if not state.connected:
                return  # the change waits for the bridge; whether it is answered, the deadline decides
            if state.ports.get(port.name) == port.ofport:
                return
            left = until - time.monotonic()
            if left <= 0:
                break
            waits()
            # A port plugged a moment ago is told of by a message that may still be under way.
            with self._present.lock:
                self._present.lock.wait(min(left, 0.25))
        number = state.ports.get(port.name)
        found = f"has number {number} there, not {port.ofport}" if number is not None else "is not there"
        raise Refused(Slug.NO_SUCH_PORT, f"port {port.name} of bridge {bridge} {found}")


def _words(answer: Mapping[str, BridgeRealisation]) -> str:
    return ", ".join(f"{bridge} {state.value}" for bridge, state in answer.items())
