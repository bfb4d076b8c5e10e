"""The flows and meters of many attempts straight to bytes, as `encode` would write what `parts` makes of them. Pure.

The flows of two attempts with the same outcome differ in a few numbers only, and each of these stands somewhere in the
bytes as it is. So a *stencil* is found out by asking the compiler: what it writes when all these numbers are 0, and
where bits appear when one of them is 1. What an attempt's flows are is then a sum of products of large integers:

    bytes = flows of nobody + number × (where the number stands) + port × (where the port stands) + …

Invariants: `parts` stays the only place that knows an attempt's flows, `encode` the only one that knows how they are
written. A stencil whose sum is not what they say of the largest numbers, or of the attempt at hand, is not used: then
each flow is compiled and written by itself. (A test asserts that stencils are used, and equal, in random worlds.)
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

from policies.model import Attempt, World
from ryu_apps.openflow import encode
from ryu_apps.openflow.encode import EntryKey, EntryValue
from ryu_apps.openflow.meters import MOST_SHARES, MeterRule, Rule

Entries = dict[EntryKey, EntryValue]
Make = Callable[[World, Attempt], Sequence[Rule]]
"""What the compiler makes of an attempt."""
_Numbers = tuple[int, int, int, int, int, int, int]
"""Number, port, MAC address, IPv4 address, zone, numbers of its slice and its share (0: none)."""

_MOST: _Numbers = (0xFFFF_FFFF, 0xFEFF, 0xFFFF_FFFF_FFFF, 0xFFFF_FFFF, 0xFFFF, 0xFFFF_FFFF, MOST_SHARES)
"""The largest of each that stands in the bytes as it is; ports above this one are written otherwise."""
_NUMBERS = frozenset({"number", "ofport", "mac", "ipv4", "zone", "slice", "share"})
_NO_MATTER = frozenset({"id", "node", "bridge", "port_name", "ipv6", "phase"})
"""What no flow of an attempt says (of its slice and its share, only the number)."""
_others: Callable[[Attempt], Hashable] = attrgetter(
    *(one.name for one in dataclasses.fields(Attempt) if one.name not in _NUMBERS | _NO_MATTER | {"outcome"})
)
"""All else that an attempt has: attempts that differ in it have stencils of their own."""
KEPT = 512
"""Stencils kept; a policy has a few dozen."""


@dataclass(frozen=True, slots=True)
class _Stencil:
    nobody: int
    factors: _Numbers
    length: int
    places: tuple[tuple[int, int, int], ...]
    """Of each entry: where its key begins and ends, and which of the values is its own."""
    values: tuple[tuple[int, int], ...]
    """Where different values begin and end: entries with equal ones share them."""

    def put(self, numbers: _Numbers, into: Entries) -> None:
        """The entries of an attempt."""
        n, p, m, a, z, s, h = numbers
        fn, fp, fm, fa, fz, fs, fh = self.factors
        total = self.nobody + n * fn + p * fp + m * fm + a * fa + z * fz + s * fs + h * fh
        data = total.to_bytes(self.length, "big")
        values = [data[begin:end] for begin, end in self.values]
        for begin, end, which in self.places:
            into[data[begin:end]] = values[which]

    def alone(self, numbers: _Numbers) -> Entries:
        found: Entries = {}
        self.put(numbers, found)
        return found


_stencils: dict[Hashable, _Stencil] = {}


class Stencils:
    """The stencils for one kind of flows in one world. `kind`: tells kinds apart whose stencils are kept; `patient`:
    the first of its kind has its flows compiled, and only the second is worth a stencil."""

    def __init__(self, world: World, kind: Hashable, make: Make, *, patient: bool = False) -> None:
        self._world = world
        self._kind = kind
        self._make = make
        self._patient = patient
        self._here: dict[Hashable, _Stencil | None] = {}
        self._seen: set[Hashable] = set()
        self.alone = 0
        """Attempts whose flows were compiled one by one."""

    def put(self, attempt: Attempt, into: Entries) -> None:
        """The entries of an attempt's flows. Raises what the compiler and `encode` raise."""
        outcome = attempt.outcome
        shape = (
            outcome, self._world.identities.get(outcome), attempt.slice is None, attempt.exposed_only,
            attempt.share is None, _others(attempt),
        )  # fmt: skip
        if shape not in self._here:
            if len(self._here) + len(self._seen) >= KEPT:
                self._here.clear()
                self._seen.clear()
            if self._patient and shape not in self._seen:
                self._seen.add(shape)
            else:
                self._seen.discard(shape)
                self._here[shape] = self._found(attempt)
        stencil = self._here.get(shape)
        if stencil is not None:
            numbers = _numbers_of(self._world, attempt)
            if _fit(*numbers):
                stencil.put(numbers, into)
                return
        self.alone += 1
        into.update(entries(self._make(self._world, attempt)))

    def _found(self, attempt: Attempt) -> _Stencil | None:
        """The stencil of such attempts: one from before if it still holds, a new one, or None: there is none."""
        world, make = self._world, self._make
        key = (
            self._kind, world.policy.digest, attempt.outcome, world.identities.get(attempt.outcome),
            attempt.slice is None, attempt.exposed_only, attempt.share is None, _others(attempt),
        )  # fmt: skip
        numbers = _numbers_of(world, attempt)
        if not _fit(*numbers):
            return None
        meant = entries(make(world, attempt))
        known = _stencils.get(key)
        if known is not None and known.alone(numbers) == meant:
            return known
        made = _cut(make, world, attempt)
        if made is None or made.alone(numbers) != meant:
            return None
        if len(_stencils) >= KEPT:
            _stencils.clear()
        _stencils[key] = made
        return made


def entries(flows: Iterable[Rule]) -> Entries:
    """Flows as they go to the switch. Raises EncodeError."""
    return dict(map(entry, flows))


def entry(flow: Rule) -> tuple[EntryKey, EntryValue]:
    """A flow as it goes to the switch. Raises EncodeError."""
    try:
        return encode.entry_key(flow), encode.entry_value(flow)
    except encode.EncodeError as error:
        if isinstance(flow, MeterRule):
            raise
        raise encode.EncodeError(
            f"cannot be written: {error}: table={flow.table},priority={flow.priority} cookie={flow.cookie:#x}"
        ) from error


def _fit(number: int, port: int, mac: int, ipv4: int, zone: int, slice_number: int, share_number: int) -> bool:
    n, p, m, a, z, s, h = _MOST
    return (
        0 <= number <= n
        and 0 <= port <= p
        and 0 <= mac <= m
        and 0 <= ipv4 <= a
        and 0 <= zone <= z
        and 0 <= slice_number <= s
        and 0 <= share_number <= h
    )


def _numbers_of(world: World, attempt: Attempt) -> _Numbers:
    name = attempt.slice
    number = 0 if name is None else world.slice_numbers[name]
    share = 0 if attempt.share_key is None else world.share_numbers[attempt.share_key]
    return attempt.number, attempt.ofport, attempt.mac, int(attempt.ipv4), attempt.zone, number, share


def _with(world: World, attempt: Attempt, numbers: _Numbers) -> tuple[World, Attempt]:
    """Such an attempt with other numbers, and a world in which its slice and its share have these."""
    number, port, mac, ipv4, zone, slice_number, share_number = numbers
    made = replace(attempt, number=number, ofport=port, mac=mac, ipv4=ipaddress.IPv4Address(ipv4), zone=zone)
    if made.slice is not None:
        world = replace(world, slice_numbers={made.slice: slice_number})
    if made.share_key is not None:
        world = replace(world, share_numbers={made.share_key: share_number})
    return world, made


def _cut(make: Make, world: World, attempt: Attempt) -> _Stencil | None:
    """The stencil of attempts such as this one; None: their flows are no sum of their numbers."""

    def written(numbers: _Numbers) -> list[tuple[EntryKey, EntryValue]]:
        return [entry(flow) for flow in make(*_with(world, attempt, numbers))]

    def number(found: list[tuple[EntryKey, EntryValue]]) -> int:
        return int.from_bytes(b"".join(part for one in found for part in one), "big")

    nobody, most = written((0, 0, 0, 0, 0, 0, 0)), written(_MOST)
    ones = [
        written((1, 0, 0, 0, 0, 0, 0)),
        written((0, 1, 0, 0, 0, 0, 0)),
        written((0, 0, 1, 0, 0, 0, 0)),
        written((0, 0, 0, 1, 0, 0, 0)),
        written((0, 0, 0, 0, 1, 0, 0)),
        written((0, 0, 0, 0, 0, 1, 0)),
        written((0, 0, 0, 0, 0, 0, 1)),
    ]
    sizes = [(len(key), len(value)) for key, value in nobody]
    if any([(len(key), len(value)) for key, value in one] != sizes for one in (*ones, most)):
        return None
    first = number(nobody)
    n, p, m, a, z, s, h = (number(one) - first for one in ones)
    if sum(factor * most_ for factor, most_ in zip((n, p, m, a, z, s, h), _MOST, strict=True)) + first != number(most):
        return None
    # Entries whose values are the same for whatever numbers share one.
    at = 0
    places: list[tuple[int, int, int]] = []
    values: dict[Hashable, tuple[int, int, int]] = {}
    for index, (key, value) in enumerate(nobody):
        middle, end = at + len(key), at + len(key) + len(value)
        same = tuple(found[index][1] for found in (nobody, *ones))
        which = values.setdefault(same, (len(values), middle, end))[0]
        places.append((at, middle, which))
        at = end
    return _Stencil(
        first, (n, p, m, a, z, s, h), at, tuple(places), tuple((begin, end) for _, begin, end in values.values())
    )
