"""Durable numbers of attempts, identities, slices, shares, services and nodes.

A number never comes to mean another thing. (Those of shares are cut to what meters have room for, see `Present`.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ryu_apps.refusals import Refused, Slug
from ryu_apps.store.blocks import NumberBlock
from ryu_apps.store.store import Change, Kind, PutNumber, Store, StoreError

_GIVEN_ON_THE_WAY = (Kind.ATTEMPT, Kind.IDENTITY, Kind.SLICE, Kind.SHARE)
"""Numbers that a registration may need: a block of each is reserved beforehand."""


class Numbers:
    """Hands out numbers of every kind. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._blocks = {kind: NumberBlock(store, kind) for kind in Kind}

    def take(self, kind: Kind) -> int:
        """A fresh number. Raises StoreError."""
        return self._blocks[kind].take()

    def reserve(self) -> None:
        """Reserve ahead what a registration may need. Raises StoreError."""
        for kind in _GIVEN_ON_THE_WAY:
            self._blocks[kind].top_up()

    def top_up(self) -> None:
        """`reserve` for a request. Raises Refused."""
        try:
            self.reserve()
        except StoreError as problem:
            raise Refused(Slug.NOT_REALISED, f"{problem}; try again", {"bridges": []}) from problem

    def of(
        self, kind: Kind, names: Iterable[str], known: Mapping[tuple[Kind, str], int], changes: list[Change]
    ) -> dict[str, int]:
        """Durable numbers for all names; new ones are added to `changes`."""
        found = {}
        for name in names:
            number = known.get((kind, name))
            if number is None:
                number = self.take(kind)
                changes.append(PutNumber(kind, name, number))
            found[name] = number
        return found
