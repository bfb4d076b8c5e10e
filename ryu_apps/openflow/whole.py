"""The whole truth of a bridge, made when it is looked at: as bytes for its switch, or as flow values for whoever asks.

Invariants: both say the same, `compiler.desired_rules`; the world is a value that nobody changes any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

from policies.model import Attempt, World
from ryu_apps.openflow import compiler
from ryu_apps.openflow.meters import Rule, RuleKey
from ryu_apps.openflow.stencils import Entries, Stencils, entries

BLOCK = 64
"""Attempts whose entries are made at a time."""


class Whole(Mapping[RuleKey, Rule]):
    """What a bridge should have in a world. `base`: what `compiler.base_rules` gives for it."""

    def __init__(self, world: World, bridge: str, base: Iterable[Rule]) -> None:
        self._world = world
        self._bridge = bridge
        self._base = list(base)

    @cached_property
    def _rules(self) -> dict[RuleKey, Rule]:
        return compiler.desired_rules(self._world, self._bridge, self._base)

    def __getitem__(self, key: RuleKey) -> Rule:
        return self._rules[key]

    def __iter__(self) -> Iterator[RuleKey]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)

    def blocks(self) -> Iterator[Entries]:
        """All entries, some hundreds at a time. Raises what the compiler and `encode` raise."""
        world, bridge = self._world, self._bridge
        here = compiler.attempts_on(world, bridge)
        standing = [*compiler.shared_meters(world, bridge), *self._base]
        for outcome in {a.outcome for a in here}:
            standing += compiler.identity_flows(world, bridge, outcome)
        yield entries(standing)
        slices = compiler.slices_on(world, bridge)
        of_jobs: list[tuple[str, list[Attempt]]] = [
            ("own", [a for a in here if a.bridge == bridge]),
            ("other", [a for a in here if a.bridge != bridge]),
        ]
        for kind, attempts in of_jobs:
            roles = world.site.bridges[bridge].roles
            yield from _blocks(
                Stencils(world, (kind, roles), lambda world, one: compiler.attempt_rules(world, bridge, one)), attempts
            )
        members = [a for a in world.attempts.values() if a.slice in slices and compiler.connected(a)]
        yield from _blocks(
            Stencils(world, "member", lambda world, one: [compiler.membership_flow(world, one)]), members
        )


def _blocks(stencils: Stencils, attempts: Sequence[Attempt]) -> Iterator[Entries]:
    for at in range(0, len(attempts), BLOCK):
        found: Entries = {}
        for attempt in attempts[at : at + BLOCK]:
            stencils.put(attempt, found)
        yield found
