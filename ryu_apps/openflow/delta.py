"""What comes to a bridge, or goes from it, when an attempt does: as bytes for its switch, or as flow values for whoever
asks.

Invariants: both say the same. It is looked at before the world in which it was made changes any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import overload

from policies.model import Attempt, World
from ryu_apps.openflow import compiler
from ryu_apps.openflow.encode import EntryKey
from ryu_apps.openflow.meters import Rule, RuleKey
from ryu_apps.openflow.stencils import Entries, Stencils, entries


class Delta(Sequence[Rule]):
    """Rules that are told one by one, and those of attempts, which a stencil writes. `keys`: of what goes."""

    def __init__(self) -> None:
        self._of_attempts: list[Part] = []
        self._one_by_one: list[Rule] = []

    def put(self, more: Part | Iterable[Rule]) -> None:
        if isinstance(more, Part):
            self._of_attempts.append(more)
        else:
            self._one_by_one.extend(more)

    def __bool__(self) -> bool:
        return bool(self._of_attempts or self._one_by_one)

    @cached_property
    def _rules(self) -> list[Rule]:
        return [*(rule for part in self._of_attempts for rule in part.rules()), *self._one_by_one]

    def __len__(self) -> int:
        return len(self._rules)

    @overload
    def __getitem__(self, at: int) -> Rule: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Rule]: ...
    def __getitem__(self, at: int | slice) -> Rule | Sequence[Rule]:
        return self._rules[at]

    def entries(self) -> Entries:
        """As they go to the switch. Raises what the compiler and `encode` raise."""
        found: Entries = {}
        for part in self._of_attempts:
            found.update(part.entries())
        if self._one_by_one:
            found.update(entries(self._one_by_one))
        return found

    @property
    def keys(self) -> DeltaKeys:
        return DeltaKeys(self)


class DeltaKeys(Sequence[RuleKey]):
    """Only the keys of a delta."""

    __slots__ = ("_delta",)

    def __init__(self, delta: Delta) -> None:
        self._delta = delta

    def __len__(self) -> int:
        return len(self._delta)

    @overload
    def __getitem__(self, at: int) -> RuleKey: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[RuleKey]: ...
    def __getitem__(self, at: int | slice) -> RuleKey | Sequence[RuleKey]:
        keys = [rule.key for rule in self._delta]
        return keys[at]

    def entries(self) -> list[EntryKey]:
        return list(self._delta.entries())


class Shapes:
    """The stencils for what attempts have on a bridge, or (`bridge` None) each on its own one; for one world."""

    def __init__(self, world: World, bridge: str | None) -> None:
        self.world = world
        self._bridge = bridge
        self._stencils = Stencils(world, ("delta", bridge), self._make, patient=True)

    def _make(self, world: World, attempt: Attempt) -> Sequence[Rule]:
        return compiler.attempt_rules(world, self._bridge or attempt.bridge, attempt)

    def of(self, attempt: Attempt) -> Part:
        return Part(self, attempt)

    def rules(self, attempt: Attempt) -> Sequence[Rule]:
        return self._make(self.world, attempt)

    def put(self, attempt: Attempt, into: Entries) -> None:
        self._stencils.put(attempt, into)


class Memberships(Shapes):
    """That attempts are in their slices."""

    def __init__(self, world: World) -> None:
        super().__init__(world, None)
        self._stencils = Stencils(world, "delta of members", self._make, patient=True)

    def _make(self, world: World, attempt: Attempt) -> Sequence[Rule]:
        return [compiler.membership_flow(world, attempt)]


class Part:
    """What one attempt has. Bridges that are told the same part have the same bytes of it."""

    __slots__ = ("_attempt", "_entries", "_shapes")

    def __init__(self, shapes: Shapes, attempt: Attempt) -> None:
        self._shapes = shapes
        self._attempt = attempt
        self._entries: Entries | None = None

    def rules(self) -> Sequence[Rule]:
        return self._shapes.rules(self._attempt)

    def entries(self) -> Entries:
        """Not to be changed."""
        if self._entries is None:
            found: Entries = {}
            self._shapes.put(self._attempt, found)
            self._entries = found
        return self._entries
