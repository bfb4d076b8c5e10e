"""What attempts have sent and were sent, and what was refused to them, counted by their flows and summed up here.

The switches are asked at a gentle pace, a portion of the attempts of one bridge at a time:

    tick ──▶ portions that are due ──▶ fabric.count (not while the bridge is programmed) ──▶ heard ──▶ sums, totals

Invariants: a sum never goes back, whether flows were installed anew or the switch has restarted (what it counted since
it was asked last is lost then); sums outlive the controller (`stored`, `restore`). Totals are of this process: they
begin with 0 and grow by what its attempts' counters grew while it was the master of their bridge, so those of several
controllers can be added up. No part of an answer takes longer than some hundred flows do.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from policies.model import Attempt, Role
from ryu_apps.fabric import Counting as Answer
from ryu_apps.fabric import Counts, FabricError
from ryu_apps.life.present import Present
from ryu_apps.life.telling import Telling
from ryu_apps.openflow.cookies import FEATURE_MASK, FULL_MASK, OBJECT_MASK, Feature, cookie
from ryu_apps.openflow.counters import PLACES, Seen, Slot, reason
from ryu_apps.openflow.flows import FlowStats
from ryu_apps.sums import Sums

PORTION = 256
"""Attempts asked for at a time, about: some 1,500 flows, so that no switch tells of all its flows at once."""
PATIENCE = 10.0
"""Seconds that a switch has to answer."""
SPREAD = 0.8
"""Part of a round's time over which its questions are spread; the rest is for answers and for what was put off."""
SHORTEST = 1.0
"""Seconds between two readings that a rate is worth anything of."""
_ATTEMPTS = cookie(Feature.ATTEMPT, 0)


@dataclass(slots=True)
class _Pace:
    """Bytes of a sum at a moment, and bit/s until then."""

    at: float
    octets: int
    rate: int = 0

    def hear(self, now: float, octets: int) -> None:
        if now - self.at >= SHORTEST:
            self.rate = max(0, round((octets - self.octets) * 8 / (now - self.at)))
            self.at, self.octets = now, octets


@dataclass(slots=True)
class _Record:
    """One attempt on one bridge."""

    sums: Sums
    sealed: bool
    paces: dict[Slot, _Pace] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sum:
    """An attempt's counters on one bridge: packets and bytes by slot, and bit/s of what it sends and is sent."""

    seen: Seen
    sending: int
    receiving: int
    crossing: int


@dataclass(slots=True)
class Totals:
    """Of all attempts, since this controller has been counting. `refused`: by reason."""

    sent: list[int] = field(default_factory=lambda: [0, 0])
    received: list[int] = field(default_factory=lambda: [0, 0])
    refused: dict[str, list[int]] = field(default_factory=dict)


@dataclass(slots=True)
class Cost:
    """What counting has cost so far. `sweep`: seconds that the last round over all bridges took."""

    questions: int = 0
    put_off: int = 0
    """Questions that came while the bridge was being programmed, and were asked again later."""
    unanswered: int = 0
    flows: int = 0
    seconds: float = 0.0
    """CPU time of this process for reading the answers."""
    sweep: float = 0.0


@dataclass(frozen=True, slots=True)
class _Portion:
    """The attempts on a bridge of which the number ends with these bits."""

    bridge: str
    ending: int
    mask: int


class Counting:
    """`every`: seconds for a round over all bridges; 0: they are asked by nobody but who looks at an attempt."""

    def __init__(self, present: Present, telling: Telling, clock: Callable[[], float], every: float) -> None:
        self._present = present
        self._telling = telling
        self._clock = clock
        self._every = every
        self._lock = threading.Lock()
        self._records: dict[str, dict[int, _Record]] = {}
        self._known: dict[str, dict[int, bool]] = {}
        """Attempts that a bridge may tell of, and whether they are sealed."""
        self._doomed: dict[str, set[int]] = {}
        self._emptied: dict[str, int] = {}
        self._due: deque[_Portion] = deque()
        self._per_second = 0.0
        self._owed = 0.0
        self._open: dict[str, tuple[_Portion, Answer, float]] = {}
        self._begun = self._ticked = -math.inf
        self._swept = True
        self.totals = Totals()
        self.cost = Cost()
        self.changed = False
        """Something went back since `stored` was called: what was carried so far is to be kept."""

    # --- attempts come and go -----------------------------------------------------------------------------------------

    def begin(self, attempt: Attempt) -> None:
        """A new attempt: all that its flows will count is of now."""
        made = _Record(Sums(len(Slot), 2), attempt.outcome.sealed)
        with self._lock:
            self._records.setdefault(attempt.bridge, {})[attempt.number] = made
            self._known.setdefault(attempt.bridge, {})[attempt.number] = attempt.outcome.sealed

    def last_seen(self, attempt: Attempt, stats: Iterable[FlowStats]) -> None:
        """What the flows of an attempt had counted when they went."""
        with self._lock:
            record = self._records.get(attempt.bridge, {}).pop(attempt.number, None)
            if record is None:
                return
            for one in stats:
                slot = PLACES.get((one.key.table, one.key.priority))
                if slot is not None:
                    self._grow(attempt.bridge, record, slot, (one.packets, one.bytes))

    def taken_over(self, bridge: str) -> None:
        """The bridge was another controller's until now, which told in its totals what was counted so far."""
        with self._lock:
            for record in self._records.get(bridge, {}).values():
                record.sums.unheard()

    # --- answers ------------------------------------------------------------------------------------------------------

    def heard(self, counts: Counts) -> None:
        """A part of an answer. Never waits."""
        began = time.thread_time()
        now = self._clock()
        bridge = counts.bridge
        with self._lock:
            if self._emptied.setdefault(bridge, counts.emptied) != counts.emptied:
                self._emptied[bridge] = counts.emptied
                for known_one in self._records.get(bridge, {}).values():
                    known_one.sums.restarted()
                self.changed = True
            records = self._records.setdefault(bridge, {})
            known = self._known.get(bridge, {})
            for table, priority, whose, packets, octets in counts.entries:
                slot = PLACES.get((table, priority))
                if slot is None:
                    continue
                number = whose & OBJECT_MASK
                record = records.get(number)
                if record is None:
                    if number not in known:
                        continue
                    record = records[number] = _Record(Sums(len(Slot), 2, from_zero=False), known[number])
                if not record.sums.same(slot, packets, octets):
                    self._grow(bridge, record, slot, (packets, octets))
                if slot is Slot.OWN or slot >= Slot.DELIVERED:
                    total = record.sums.of(slot)[1]
                    pace = record.paces.get(slot)
                    if pace is None:
                        record.paces[slot] = _Pace(now, total)
                    else:
                        pace.hear(now, total)
            self.cost.flows += len(counts.entries)
            self.cost.seconds += time.thread_time() - began

    def _grow(self, bridge: str, record: _Record, slot: Slot, now: tuple[int, int]) -> None:
        before = record.sums.resets
        packets, octets = record.sums.hear(slot, now)
        if record.sums.resets != before:
            self.changed = True
        if not (packets or octets) or bridge not in self._telling.mine:
            return
        why = reason(slot, record.sealed)
        if why is not None:
            total = self.totals.refused.setdefault(why, [0, 0])
        elif slot is Slot.DELIVERED:
            total = self.totals.received
        elif slot is Slot.OWN and not record.sealed:
            total = self.totals.sent
        else:
            return
        total[0] += packets
        total[1] += octets

    # --- who asks -----------------------------------------------------------------------------------------------------

    def ask(self, attempt: Attempt, bridge: str, timeout: float) -> Sum:
        """An attempt's counters on one of its bridges, as they are now. Waits (green). Raises FabricError."""
        with self._lock:
            self._known.setdefault(bridge, {})[attempt.number] = attempt.outcome.sealed
        which = cookie(Feature.ATTEMPT, attempt.number)
        self._telling.switches().count(bridge, which, FULL_MASK, self.heard).finish(timeout)
        return self._sum(bridge, attempt.number)

    def _sum(self, bridge: str, number: int) -> Sum:
        with self._lock:
            record = self._records.get(bridge, {}).get(number)
            if record is None:
                return Sum([(0, 0)] * len(Slot), 0, 0, 0)
            found = [record.sums.of(slot) for slot in Slot]
            rates = {slot: pace.rate for slot, pace in record.paces.items()}
        return Sum(
            [(packets, octets) for packets, octets in found],
            rates.get(Slot.OWN, 0),
            rates.get(Slot.DELIVERED, 0),
            rates.get(Slot.CROSSED, 0),
        )

    # --- the rounds ---------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Ask what is due. Never waits for a switch."""
        if not self._every or not self._telling.begun:
            return
        now = self._clock()
        self._look_at_answers(now)
        if not self._due and not self._open:
            if not self._swept:
                self._swept = True
                self.cost.sweep = now - self._begun
            if now - self._begun < self._every:
                return
            self._plan(now)
        self._owed = min(len(self._due), self._owed + self._per_second * min(self._every, now - self._ticked))
        self._ticked = now
        self._ask_due(now)

    def _plan(self, now: float) -> None:
        """A new round: which attempts each bridge may tell of, in portions."""
        present = self._present
        with present.lock:
            world = present.world
            wanted: dict[str, dict[int, bool]] = {}
            everyone = {one.number: one.outcome.sealed for one in world.attempts.values()}
            for one in world.attempts.values():
                wanted.setdefault(one.bridge, {})[one.number] = one.outcome.sealed
            for name, spec in world.site.bridges.items():
                if Role.BORDER in spec.roles and everyone:
                    wanted[name] = everyone
        with self._lock:
            self._known = {bridge: dict(attempts) for bridge, attempts in wanted.items()}
            for bridge, records in self._records.items():
                # The last counts of those that have ended may be still on their way: they go with the next round.
                gone = records.keys() - wanted.get(bridge, {}).keys()
                for number in gone & self._doomed.get(bridge, set()):
                    del records[number]
                for number, record in records.items():
                    record.sealed = wanted.get(bridge, {}).get(number, record.sealed)
                self._doomed[bridge] = set(gone)
        mine = sorted(wanted.keys() & self._telling.mine)
        for bridge in mine:
            # One at a tick: of a bridge with very many attempts the portions are larger.
            wished = max(1.0, min(len(wanted[bridge]) / PORTION, SPREAD * self._every / 2))
            parts = 1 << math.ceil(math.log2(wished))
            self._due.extend(_Portion(bridge, part, parts - 1) for part in range(parts))
        self._begun = self._ticked = now
        self._swept = False
        self._per_second = len(self._due) / (SPREAD * self._every)
        self._owed = 1.0

    def _ask_due(self, now: float) -> None:
        for _ in range(len(self._due)):
            if self._owed < 1:
                return
            portion = self._due.popleft()
            if portion.bridge in self._open:
                self._due.append(portion)
                continue
            mask = FEATURE_MASK | portion.mask
            try:
                answer = self._telling.switches().count(
                    portion.bridge, (_ATTEMPTS | portion.ending) & mask, mask, self.heard, gently=True
                )
            except FabricError:
                continue  # not connected: it is asked in the next round
            self._owed -= 1
            self.cost.questions += 1
            self._open[portion.bridge] = (portion, answer, now + PATIENCE)

    def _look_at_answers(self, now: float) -> None:
        for bridge, (portion, answer, until) in list(self._open.items()):
            try:
                if not answer.done():
                    if now < until:
                        continue
                    self.cost.unanswered += 1
                    with contextlib.suppress(FabricError):
                        answer.finish(0)  # nobody waits for it any more
            except FabricError:
                if now - self._begun < 2 * self._every:
                    self.cost.put_off += 1
                    self._due.append(portion)
                    self._owed += 1
                else:
                    self.cost.unanswered += 1
            del self._open[bridge]

    # --- what outlives the process ------------------------------------------------------------------------------------

    def stored(self) -> Iterator[list[Any]]:
        """Rows that `restore` takes; they may be asked for one by one, with whatever happens in between."""
        with self._lock:
            self.changed = False
            found = [(bridge, *one) for bridge, records in self._records.items() for one in records.items()]
        return ([bridge, number, record.sums.stored()] for bridge, number, record in found)

    def restore(self, stored: Iterable[Any], attempts: Iterable[Attempt]) -> None:
        """Before the first answer. Sums of attempts that are no more are passed over. Raises ValueError, TypeError."""
        sealed = {one.number: one.outcome.sealed for one in attempts}
        found: dict[str, dict[int, _Record]] = {}
        for bridge, number, values in stored:
            if number in sealed:
                sums = Sums.restored(len(Slot), 2, values)
                found.setdefault(bridge, {})[number] = _Record(sums, sealed[number])
        with self._lock:
            self._records = found
