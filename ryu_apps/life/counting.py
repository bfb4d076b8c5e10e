"""What attempts have sent and were sent, and what was refused to them, counted by their flows and summed up here.

The switches are asked at a gentle pace, a portion of the attempts of one bridge at a time:

    tick ──▶ portions that are due ──▶ fabric.count (not while the bridge is programmed) ──▶ heard ──▶ sums, totals

Invariants: a sum never goes back, whether flows were installed anew or the switch has restarted (what it counted since
it was asked last is lost then); sums outlive the controller (`stored`, `restore`). Of a job with a rate it is its
meters that say what passed (`limits`). Totals are of this process: they begin with 0 and grow by what its attempts'
counters grew while it was the master of their bridge, so those of several controllers can be added up. No part of an
answer takes longer than some hundred flows do.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from policies.model import Attempt, Role
from ryu_apps.fabric import Counting as Answer
from ryu_apps.fabric import Counts, FabricError, MeterCounts
from ryu_apps.life.forbidden import Forbidden, Found
from ryu_apps.life.limits import Limited, Limits, Meters, Shared, limited
from ryu_apps.life.pace import Pace
from ryu_apps.life.present import Present
from ryu_apps.life.telling import Telling
from ryu_apps.openflow.border import FORBIDDEN
from ryu_apps.openflow.cookies import FEATURE_MASK, FULL_MASK, OBJECT_MASK, Feature, cookie
from ryu_apps.openflow.counters import PLACES, Seen, Slot, reason
from ryu_apps.openflow.flows import Counted
from ryu_apps.openflow.meters import Way
from ryu_apps.sums import Sums

PORTION = 256
"""Attempts asked for at a time, about: some 1,500 flows, so that no switch tells of all its flows at once."""
PATIENCE = 10.0
"""Seconds that a switch has to answer."""
SPREAD = 0.8
"""Part of a round's time over which its questions are spread; the rest is for answers and for what was put off."""
_ATTEMPTS = cookie(Feature.ATTEMPT, 0)
_WAYS = {Slot.OWN: Way.OUT, Slot.DELIVERED: Way.IN}
"""What a rate limits."""


@dataclass(slots=True)
class _Record:
    """One attempt on one bridge."""

    sums: Sums
    sealed: bool
    paces: dict[Slot, Pace] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sum:
    """An attempt's counters on one bridge: packets and bytes by slot, and bit/s of what it sends and is sent; of a job
    with a rate, of what passed it."""

    seen: Seen
    sending: int
    receiving: int
    crossing: int
    dropped: Mapping[Way, tuple[int, int]] | None = None
    """By its rate; None: it has none, and had none."""
    share: Shared | None = None


@dataclass(slots=True)
class Totals:
    """Of all attempts, since this controller has been counting. `refused`: by reason."""

    sent: list[int] = field(default_factory=lambda: [0, 0])
    """By their flows, so before rates and shares, as `received`."""
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
    meters: int = 0
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
        self._borders: frozenset[str] = frozenset()
        self._refused: dict[str, Found] = {}
        """What borders that are being asked have refused."""
        self._open: dict[str, tuple[_Portion, list[Answer], float]] = {}
        """The last of a portion's answers is the one of its flows."""
        self._begun = self._ticked = -math.inf
        self._swept = True
        self.totals = Totals()
        self.limits = Limits()
        self.forbidden = Forbidden()
        self._carried = {way: [0, 0] for way in Way}
        self.cost = Cost()
        self._changed = False

    @property
    def changed(self) -> bool:
        """Something went back since `stored` was called: what was carried so far is to be kept."""
        return self._changed or self.limits.changed

    # --- attempts come and go -----------------------------------------------------------------------------------------

    def begin(self, attempt: Attempt) -> None:
        """A new attempt, not yet in the world: all that its flows will count is of now."""
        made = _Record(Sums(len(Slot), 2), attempt.outcome.sealed)
        with self._lock:
            self._records.setdefault(attempt.bridge, {})[attempt.number] = made
            self._known.setdefault(attempt.bridge, {})[attempt.number] = attempt.outcome.sealed
            self.limits.begin(attempt, first=attempt.share_key not in self._present.world.share_numbers)

    def ends(self, attempt: Attempt) -> None:
        """Its meters are about to go: ask what they have dropped, and wait for nothing.

        The caller has the world's lock, and asks for the last counts of its flows after this.
        """
        one = limited(self._present.world, attempt)
        if one is None:
            return
        with self._lock:
            meters = self.limits.leave(attempt.bridge, one)
        self._ask_meters(attempt.bridge, one.meters, meters)

    def meters_change(self) -> None:
        """Rates may be altered: ask what meters have counted so far, for they will count from 0."""
        for bridge in sorted(self._telling.mine):
            if self.limits.metered(bridge):
                self._ask_meters(bridge, None, None)

    def last_seen(self, attempt: Attempt, counted: Iterable[Counted]) -> None:
        """What the flows of an attempt had counted when they went."""
        with self._lock:
            record = self._records.get(attempt.bridge, {}).pop(attempt.number, None)
            self.limits.forget(attempt.bridge, attempt.number)
            if record is None:
                return
            for table, priority, _, packets, octets in counted:
                slot = PLACES.get((table, priority))
                if slot is not None and not record.sums.same(slot, packets, octets):
                    self._grow(attempt.bridge, record, slot, (packets, octets))

    def taken_over(self, bridge: str) -> None:
        """The bridge was another controller's until now, which told in its totals what was counted so far."""
        with self._lock:
            for record in self._records.get(bridge, {}).values():
                record.sums.unheard()
            self.limits.taken_over(bridge)

    # --- answers ------------------------------------------------------------------------------------------------------

    def heard(self, counts: Counts) -> None:
        """A part of an answer. Never waits."""
        began = time.thread_time()
        now = self._clock()
        bridge = counts.bridge
        with self._lock:
            self._look_for_restart(bridge, counts.emptied)
            rated = self.limits.numbers(bridge)
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
                    packets, octets = record.sums.of(slot)
                    if number in rated and slot in _WAYS:
                        packets, octets = self.limits.passed(bridge, number, _WAYS[slot], (packets, octets))
                    pace = record.paces.get(slot)
                    if pace is None:
                        record.paces[slot] = Pace(now, octets)
                    else:
                        pace.hear(now, octets)
            self.cost.flows += len(counts.entries)
            self.cost.seconds += time.thread_time() - began

    def _look_for_restart(self, bridge: str, emptied: int) -> None:
        if self._emptied.setdefault(bridge, emptied) == emptied:
            return
        self._emptied[bridge] = emptied
        for record in self._records.get(bridge, {}).values():
            record.sums.restarted()
        self.limits.restarted(bridge)
        self.forbidden.restarted(bridge)
        self._changed = True

    def _heard_meters(self, counts: MeterCounts, meters: Meters | None = None) -> None:
        """`meters`: whose they were, of attempts that have ended."""
        began = time.thread_time()
        with self._lock:
            self._look_for_restart(counts.bridge, counts.emptied)
            mine = counts.bridge in self._telling.mine
            self.limits.heard(
                counts.bridge, counts.entries, self._clock(), meters, settings=counts.settings, total=mine
            )
            self.cost.meters += len(counts.entries)
            self.cost.seconds += time.thread_time() - began

    def _heard_forbidden(self, counts: Counts) -> None:
        with self._lock:
            self._look_for_restart(counts.bridge, counts.emptied)
            self.forbidden.add(counts.entries, self._refused.get(counts.bridge, {}))
            self.cost.flows += len(counts.entries)

    def _grow(self, bridge: str, record: _Record, slot: Slot, now: tuple[int, int]) -> None:
        before = record.sums.resets
        packets, octets = record.sums.hear(slot, now)
        if record.sums.resets != before:
            self._changed = True
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

    def carried(self, way: Way) -> tuple[int, int]:
        """Packets and bytes of all jobs that rates and shares have let on, since this controller has been counting."""
        with self._lock:
            counted = self.totals.sent if way is Way.OUT else self.totals.received
            dropped = [self.limits.dropped[kind, way] for kind in ("rate", "share")]
            # Meters are ahead of flows by half a second.
            told = self._carried[way]
            now = [max(told[at], counted[at] - sum(one[at] for one in dropped)) for at in (0, 1)]
            self._carried[way] = now
            return now[0], now[1]

    # --- who asks -----------------------------------------------------------------------------------------------------

    def ask(self, attempt: Attempt, bridge: str, timeout: float) -> Sum:
        """An attempt's counters on one of its bridges, as they are now. Waits (green). Raises FabricError."""
        with self._present.lock:
            one = limited(self._present.world, attempt) if bridge == attempt.bridge else None
        with self._lock:
            self._known.setdefault(bridge, {})[attempt.number] = attempt.outcome.sealed
            if one is not None:
                self.limits.know(bridge, one, counted=attempt.number in self._records.get(bridge, {}))
        which = cookie(Feature.ATTEMPT, attempt.number)
        # The meters first: what their flows tell then is put beside them.
        meters = None if one is None else self._ask_meters(bridge, one.meters, None)
        flows = self._telling.switches().count(bridge, which, FULL_MASK, self.heard)
        if meters is not None:
            with contextlib.suppress(FabricError):  # no such meter (yet): the flows say what there is
                meters.finish(timeout)
        flows.finish(timeout)
        return self._sum(bridge, attempt.number, one)

    def _ask_meters(self, bridge: str, numbers: Sequence[int] | None, meters: Meters | None) -> Answer | None:
        if numbers is not None and not numbers:
            return None
        try:
            return self._telling.switches().count_meters(
                bridge, numbers, lambda counts: self._heard_meters(counts, meters)
            )
        except FabricError:
            return None

    def _sum(self, bridge: str, number: int, one: Limited | None) -> Sum:
        with self._lock:
            record = self._records.get(bridge, {}).get(number)
            if record is None:
                return Sum([(0, 0)] * len(Slot), 0, 0, 0)
            found = [(packets, octets) for packets, octets in (record.sums.of(slot) for slot in Slot)]
            limit = self.limits.of(bridge, number)
            if limit is not None:
                for slot, way in _WAYS.items():
                    found[slot] = self.limits.passed(bridge, number, way, found[slot])
            rates = {slot: pace.rate for slot, pace in record.paces.items()}
        return Sum(
            found,
            rates.get(Slot.OWN, 0),
            rates.get(Slot.DELIVERED, 0),
            rates.get(Slot.CROSSED, 0),
            None if limit is None else {way: limit.dropped(way) for way in Way},
            self.limits.share(bridge, one.name) if one is not None and one.share else None,
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
            limits: dict[str, list[Limited]] = {bridge: [] for bridge in self._telling.mine}
            everyone = {one.number: one.outcome.sealed for one in world.attempts.values()}
            for one in world.attempts.values():
                wanted.setdefault(one.bridge, {})[one.number] = one.outcome.sealed
                if one.bridge in limits and (limit := limited(world, one)) is not None:
                    limits[one.bridge].append(limit)
            for name, spec in world.site.bridges.items():
                if Role.BORDER in spec.roles:
                    wanted[name] = everyone
        with self._lock:
            self._known = {bridge: dict(attempts) for bridge, attempts in wanted.items()}
            self.limits.plan(limits, lambda bridge, number: number in self._records.get(bridge, {}))
            for bridge, records in self._records.items():
                # The last counts of those that have ended may be still on their way: they go with the next round.
                gone = (records.keys() | self.limits.numbers(bridge)) - wanted.get(bridge, {}).keys()
                for number in gone & self._doomed.get(bridge, set()):
                    records.pop(number, None)
                    self.limits.forget(bridge, number)
                for number, record in records.items():
                    record.sealed = wanted.get(bridge, {}).get(number, record.sealed)
                self._doomed[bridge] = set(gone)
        self._borders = frozenset(
            name
            for name, spec in world.site.bridges.items()
            if Role.BORDER in spec.roles and name in self._telling.mine
        )
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
            answers: list[Answer] = []
            try:
                switches = self._telling.switches()
                if portion.bridge in self._borders:
                    self._refused[portion.bridge] = {}
                    answers.append(
                        switches.count(portion.bridge, FORBIDDEN, FULL_MASK, self._heard_forbidden, gently=True)
                    )
                if self.limits.metered(portion.bridge):
                    # All of them: which are those of a portion's attempts, their numbers do not say.
                    answers.append(switches.count_meters(portion.bridge, None, self._heard_meters, gently=True))
                answers.append(
                    switches.count(portion.bridge, (_ATTEMPTS | portion.ending) & mask, mask, self.heard, gently=True)
                )
            except FabricError:
                continue  # not connected: it is asked in the next round
            self._owed -= 1
            self.cost.questions += 1
            self._open[portion.bridge] = (portion, answers, now + PATIENCE)

    def _look_at_answers(self, now: float) -> None:
        for bridge, (portion, answers, until) in list(self._open.items()):
            try:
                if not answers[-1].done():
                    if now < until:
                        continue
                    self.cost.unanswered += 1
                    for answer in answers:
                        with contextlib.suppress(FabricError):
                            answer.finish(0)  # nobody waits for it any more
                elif bridge in self._refused:
                    with self._lock:
                        self.forbidden.heard(bridge, self._refused[bridge])
            except FabricError:
                if now - self._begun < 2 * self._every:
                    self.cost.put_off += 1
                    self._due.append(portion)
                    self._owed += 1
                else:
                    self.cost.unanswered += 1
            del self._open[bridge]
            self._refused.pop(bridge, None)

    # --- what outlives the process ------------------------------------------------------------------------------------

    def stored(self) -> Iterator[list[Any]]:
        """Rows that `restore` takes; they may be asked for one by one, with whatever happens in between."""
        with self._lock:
            self._changed = False
            found = [(bridge, *one) for bridge, records in self._records.items() for one in records.items()]
        return ([bridge, number, record.sums.stored()] for bridge, number, record in found)

    def stored_limits(self) -> Iterator[list[Any]]:
        """The same of what rates and shares have dropped."""
        with self._lock:
            return self.limits.stored()

    def restore(self, stored: Iterable[Any], limits: Iterable[Any], attempts: Iterable[Attempt]) -> None:
        """Before the first answer. Sums of attempts that are no more are passed over. Raises ValueError, TypeError."""
        sealed = {one.number: one.outcome.sealed for one in attempts}
        found: dict[str, dict[int, _Record]] = {}
        for bridge, number, values in stored:
            if number in sealed:
                sums = Sums.restored(len(Slot), 2, values)
                found.setdefault(bridge, {})[number] = _Record(sums, sealed[number])
        with self._lock:
            self.limits.restore(limits, sealed)
            self._records = found
