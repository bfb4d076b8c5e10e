"""What rates and shares have dropped: counters of meters, summed up.

A job's flows count before its meter, so they say what it tried. The meter itself counts what came to it and what it
dropped, at once and exactly; flows only twice a second. So of a job with a rate it is the meter that says what passed:

    passed = what its flows had counted before it had the meter + what came to the meter - what that dropped

A share is one meter for several jobs: what it drops is told of the share, and divided among nobody.

Invariants: a sum never goes back, though a meter counts from 0 when its rate is altered or its switch restarts. What
is told as passed never goes back either. Whoever calls has the lock of `Counting`, and nothing here waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from policies.model import Attempt, World
from ryu_apps.life.pace import Pace
from ryu_apps.openflow.flows import MeterCounted
from ryu_apps.openflow.meters import Way, rate_meters, share_meters
from ryu_apps.sums import MOST, Sums

Amount = tuple[int, int]
"""Packets and bytes."""
_NONE: Amount = (0, 0)


class Limit:
    """A rate of one job, or a share of several: both directions."""

    __slots__ = ("before", "heard", "meters", "set", "sums", "told", "unsure")

    def __init__(self, sums: Sums, *, unsure: bool) -> None:
        """`unsure`: the job's flows have counted before it had this limit, and it is not known how much."""
        self.sums = sums
        self.meters: tuple[int, ...] = ()
        """Its meters' numbers by direction, while it has any."""
        self.before: dict[Way, Amount] = {}
        self.unsure = set(Way) if unsure else set[Way]()
        self.heard: set[Way] = set()
        """Of the unsure ones those whose meter was heard, so that the flows now say what was before it."""
        self.told: dict[Way, Amount] = {}
        self.set = dict.fromkeys(Way, 0)
        """How often its meters had been set when they were heard last: each time they count from 0."""

    def dropped(self, way: Way) -> Amount:
        _, _, packets, octets = self.sums.of(way)
        return packets, octets

    def came(self, way: Way) -> Amount:
        packets, octets, _, _ = self.sums.of(way)
        return packets, octets

    def passed(self, way: Way, counted: Amount = _NONE) -> Amount:
        """`counted`: what the job's flows before the meter have counted; of a share, nothing."""
        dropped = self.dropped(way)
        if self.meters and way not in self.unsure:
            came, before = self.came(way), self.before.get(way, _NONE)
            counted = came[0] + before[0], came[1] + before[1]
        told = self.told.get(way, _NONE)
        now = max(told[0], counted[0] - dropped[0]), max(told[1], counted[1] - dropped[1])
        self.told[way] = now
        return now


@dataclass(slots=True)
class Shared:
    """A share of jobs of one bridge."""

    limit: Limit
    paces: dict[Way, Pace] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Limited:
    """Which meters an attempt's frames pass on its bridge, by direction; empty: it has no such limit."""

    number: int
    rate: tuple[int, ...]
    share: tuple[int, ...]
    name: str
    """Of the share."""

    @property
    def meters(self) -> tuple[int, ...]:
        return self.rate + self.share


def limited(world: World, attempt: Attempt) -> Limited | None:
    """None: it has neither rate nor share. The caller has the world's lock."""
    share = attempt.share
    if attempt.rate is None and share is None:
        return None
    # One that has ended has left its share, maybe as the last.
    shares = attempt.share_key in world.share_numbers
    return Limited(
        attempt.number,
        tuple(one.number for one in rate_meters(attempt)),
        tuple(one.number for one in share_meters(world, attempt)) if shares else (),
        share.name if share is not None else "",
    )


Meters = dict[int, tuple[Limit, Way, Shared | None]]
"""Whose a meter is."""


class Limits:
    def __init__(self) -> None:
        self._rates: dict[str, dict[int, Limit]] = {}
        self._shares: dict[str, dict[str, Shared]] = {}
        self._meters: dict[str, Meters] = {}
        self._planned: set[str] = set()
        """Bridges that were looked after when the last round began: what is new there has begun since."""
        self.dropped: dict[tuple[str, Way], list[int]] = {
            (kind, way): [0, 0] for kind in ("rate", "share") for way in Way
        }
        """Packets and bytes, of all jobs since this process has been counting."""
        self.changed = False
        """Something went back, or came to be known that nobody else knows, since `stored` was called."""

    # --- attempts come and go -----------------------------------------------------------------------------------------

    def begin(self, attempt: Attempt, *, first: bool) -> None:
        """A new attempt: all that its own meters will count is of now, and its share's, if it is the `first` of it."""
        share = attempt.share
        if share is not None and first:
            limit = Limit(Sums(len(Way), 4), unsure=False)
            self._shares.setdefault(attempt.bridge, {})[share.name] = Shared(limit)
        if attempt.rate is not None:
            limit = Limit(Sums(len(Way), 4), unsure=False)
            self._rates.setdefault(attempt.bridge, {})[attempt.number] = limit
            self._name(attempt.bridge, limit, tuple(one.number for one in rate_meters(attempt)))

    def know(self, bridge: str, one: Limited, *, counted: bool) -> Meters:
        """An attempt that the bridge's meters may tell of; returns which these are. `counted`: its flows were heard."""
        rates = self._rates.setdefault(bridge, {})
        found: Meters = {}
        limit = rates.get(one.number)
        if one.rate:
            if limit is None:
                # Without its flows nothing is known of it: all that both have counted belongs together.
                limit = rates[one.number] = Limit(Sums(len(Way), 4, from_zero=counted), unsure=counted)
            elif not limit.meters:
                # Again, after it had none for a while.
                limit.sums.restarted()
                limit.unsure = set(Way)
            found |= self._name(bridge, limit, one.rate)
        elif limit is not None:
            limit.meters = ()
        if one.share:
            shares = self._shares.setdefault(bridge, {})
            shared = shares.get(one.name)
            if shared is None:
                sums = Sums(len(Way), 4, from_zero=bridge in self._planned)
                shared = shares[one.name] = Shared(Limit(sums, unsure=False))
            found |= self._name(bridge, shared.limit, one.share, shared)
        return found

    def _name(self, bridge: str, limit: Limit, meters: tuple[int, ...], shared: Shared | None = None) -> Meters:
        if limit.meters and limit.meters != meters:
            # Other meters: they count from 0.
            limit.sums.restarted()
            self.changed = True
        limit.meters = meters
        found: Meters = {number: (limit, way, shared) for way, number in zip(Way, meters, strict=True)}
        self._meters.setdefault(bridge, {}).update(found)
        return found

    def leave(self, bridge: str, one: Limited) -> Meters:
        """It ends, and its meters may soon be others'; returns whose they were. A share's come back with `know`."""
        meters = self._meters.get(bridge, {})
        return {number: found for number in one.meters if (found := meters.pop(number, None)) is not None}

    def forget(self, bridge: str, number: int) -> None:
        self._rates.get(bridge, {}).pop(number, None)

    def numbers(self, bridge: str) -> Set[int]:
        """Attempts on a bridge that have, or had, a rate."""
        return self._rates.get(bridge, {}).keys()

    def plan(self, wanted: Mapping[str, Sequence[Limited]], counted: Callable[[str, int], bool]) -> None:
        """All that there is now on the bridges that are looked after. `counted`: were an attempt's flows heard?"""
        for bridge, here in wanted.items():
            self._meters[bridge] = {}
            for one in here:
                self.know(bridge, one, counted=counted(bridge, one.number))
            with_rate = {one.number for one in here if one.rate}
            for number, limit in self._rates.get(bridge, {}).items():
                if number not in with_rate:
                    limit.meters = ()
            names = {one.name for one in here if one.share}
            shares = self._shares.get(bridge, {})
            for name in shares.keys() - names:
                del shares[name]
            if not here:
                del self._meters[bridge]
        self._planned = set(wanted)

    def metered(self, bridge: str) -> bool:
        """Has anything on this bridge a limit?"""
        return bool(self._meters.get(bridge))

    # --- what meters say ----------------------------------------------------------------------------------------------

    def restarted(self, bridge: str) -> None:
        """The switch counts from 0."""
        for limit in self._rates.get(bridge, {}).values():
            limit.sums.restarted()
        for shared in self._shares.get(bridge, {}).values():
            shared.limit.sums.restarted()

    def taken_over(self, bridge: str) -> None:
        """Another controller has told what was dropped until now."""
        for limit in self._rates.get(bridge, {}).values():
            limit.sums.unheard()
        for shared in self._shares.get(bridge, {}).values():
            shared.limit.sums.unheard()

    def heard(
        self,
        bridge: str,
        entries: Iterable[MeterCounted],
        now: float,
        meters: Meters | None = None,
        *,
        settings: Mapping[int, int],
        total: bool,
    ) -> None:
        """`meters`: whose they are, if that is not as it is for the bridge at present. `settings`: how often each was
        set. `total`: they are this controller's to add up."""
        if meters is None:
            meters = self._meters.get(bridge, {})
        for number, *counters in entries:
            found = meters.get(number)
            if found is None:
                continue
            limit, way, shared = found
            if way in limit.unsure:
                limit.heard.add(way)
            resets = limit.sums.resets
            if (times := settings.get(number, 0)) != limit.set[way]:
                # It may show more than before already.
                limit.set[way] = times
                limit.sums.restarted(way)
            _, _, packets, octets = limit.sums.hear(way, counters)
            self.changed = self.changed or limit.sums.resets != resets
            if total:
                together = self.dropped["rate" if shared is None else "share", way]
                together[0] += packets
                together[1] += octets
            if shared is not None:
                passed = limit.passed(way)[1]
                if way in shared.paces:
                    shared.paces[way].hear(now, passed)
                else:
                    shared.paces[way] = Pace(now, passed)

    # --- what is told -------------------------------------------------------------------------------------------------

    def of(self, bridge: str, number: int) -> Limit | None:
        """The rate of an attempt."""
        return self._rates.get(bridge, {}).get(number)

    def passed(self, bridge: str, number: int, way: Way, counted: Amount) -> Amount:
        """What of an attempt's frames its rate has let on. `counted`: by its flows, before the rate."""
        rates = self._rates.get(bridge)
        limit = rates.get(number) if rates else None
        if limit is None:
            return counted
        if way in limit.heard:
            came = limit.came(way)
            limit.before[way] = max(0, counted[0] - came[0]), max(0, counted[1] - came[1])
            limit.unsure.discard(way)
            limit.heard.discard(way)
            self.changed = True
        return limit.passed(way, counted)

    def share(self, bridge: str, name: str) -> Shared | None:
        return self._shares.get(bridge, {}).get(name)

    def shares(self) -> list[tuple[str, str, Shared]]:
        """Those that jobs have now, by bridge and name."""
        return [(bridge, name, one) for bridge, named in self._shares.items() for name, one in named.items()]

    # --- what outlives the process ------------------------------------------------------------------------------------

    def stored(self) -> Iterator[list[Any]]:
        """Rows that `restore` takes, as they are now."""
        self.changed = False
        found: list[tuple[str, str | int, Limit]] = [
            (bridge, number, limit) for bridge, limits in self._rates.items() for number, limit in limits.items()
        ]
        found += [(bridge, name, one.limit) for bridge, name, one in self.shares()]
        return ([bridge, whose, *_row(limit)] for bridge, whose, limit in found)

    def restore(self, stored: Iterable[Any], numbers: Iterable[int]) -> None:
        """Before the first answer; of attempts that are no more, nothing. Raises ValueError, TypeError."""
        here = set(numbers)
        rates: dict[str, dict[int, Limit]] = {}
        shares: dict[str, dict[str, Shared]] = {}
        for bridge, whose, meters, before, values in stored:
            limit = Limit(Sums.restored(len(Way), 4, values), unsure=False)
            if len(before) != len(Way) or len(meters) not in (0, len(Way)):
                raise ValueError("a limit has a meter for each direction, and an amount from before it")
            for way, amount in zip(Way, before, strict=True):
                if amount is None:
                    limit.unsure.add(way)
                else:
                    packets, octets = amount
                    limit.before[way] = _counter(packets), _counter(octets)
            limit.meters = tuple(_counter(one) for one in meters)
            if isinstance(whose, str):
                shares.setdefault(bridge, {})[whose] = Shared(limit)
            elif whose in here:
                rates.setdefault(bridge, {})[whose] = limit
        self._rates, self._shares = rates, shares


def _row(limit: Limit) -> list[Any]:
    before = [None if way in limit.unsure else limit.before.get(way, _NONE) for way in Way]
    return [list(limit.meters), before, limit.sums.stored()]


def _counter(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MOST:
        raise ValueError(f"{value!r} is no counter")
    return value
