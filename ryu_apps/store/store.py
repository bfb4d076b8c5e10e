"""What the controller needs of a durable store, and the rows it keeps there.

Invariants: `write` is atomic and idempotent (rows are replaced by key); when its `Pending` says so, it is on disk.
`reserve` never returns a number twice, not even after a crash. Nothing here knows where rows live.
`docs/store.md` explains each column.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from policies.model import Decision, Outcome, Place
from policies.wire import AttemptSpec, NodeSpec


class StoreError(Exception):
    """The store could not do what was asked; the text says what and how to mend it."""


class Kind(enum.StrEnum):
    """What numbers are given to."""

    ATTEMPT = "attempt"
    IDENTITY = "identity"
    SERVICE = "service"
    NODE = "node"
    SLICE = "slice"


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """An attempt as stored. `leaving`: bridges that may still hold flows of it after its end; empty while it lives.

    `slice_number`: the number of the decision's slice; 0 for none.
    """

    id: str
    number: int
    identity: int
    spec: AttemptSpec
    decision: Decision
    digest: str
    registered: float
    leaving: tuple[str, ...] = ()
    slice_number: int = 0


@dataclass(frozen=True, slots=True)
class NodeRow:
    name: str
    spec: NodeSpec


@dataclass(frozen=True, slots=True)
class PutAttempt:
    row: AttemptRow


@dataclass(frozen=True, slots=True)
class DropAttempt:
    id: str


@dataclass(frozen=True, slots=True)
class PutNode:
    row: NodeRow


@dataclass(frozen=True, slots=True)
class PutNumber:
    kind: Kind
    name: str
    number: int


Change = PutAttempt | DropAttempt | PutNode | PutNumber


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that is stored."""

    attempts: tuple[AttemptRow, ...]
    nodes: tuple[NodeRow, ...]
    numbers: Mapping[tuple[Kind, str], int]


class Pending(Protocol):
    """A write on its way."""

    def wait(self, deadline: float) -> None:
        """Return when the write is durable. Raises StoreError if it failed or `time.monotonic()` is past `deadline`."""


class Store(Protocol):
    def load(self) -> Snapshot:
        """Everything stored, in no particular order."""

    def reserve(self, kind: Kind, count: int) -> int:
        """Durably reserve `count` numbers; returns the first. Raises StoreError."""

    def write(self, changes: Sequence[Change]) -> Pending:
        """Begin an atomic write. Writes become durable in the order in which they were begun."""

    def close(self) -> None: ...


def decision_to_text(decision: Decision) -> str:
    """A decision in the compact JSON of column `decision`; equal decisions give equal text.

    What most jobs do not have is left out, so that a row stays small.
    """
    outcome = decision.outcome
    rare: dict[str, object] = {
        "a": sorted(outcome.audited),
        "m": sorted(outcome.groups),
        "r": decision.rate,
        "c": list(decision.scitag or ()),
    }
    return json.dumps(
        {
            "s": outcome.sealed,
            "v": sorted(outcome.services),
            "g": list(decision.groups),
            "t": [[place.file, place.line, place.column, text] for place, text in decision.trail],
            "l": decision.slice,
            **{key: value for key, value in rare.items() if value},
        },
        separators=(",", ":"),
    )


def decision_from_text(text: str) -> Decision:
    """The decision of column `decision`, also as it was written before it had all of its keys. Raises StoreError."""
    try:
        value = json.loads(text)
        return Decision(
            outcome=Outcome(
                sealed=bool(value["s"]),
                services=frozenset(value["v"]),
                audited=frozenset(value.get("a", ())),
                groups=frozenset(value.get("m", ())),
            ),
            groups=tuple(value["g"]),
            trail=tuple((Place(file, line, column), what) for file, line, column, what in value["t"]),
            slice=value.get("l"),
            rate=value.get("r"),
            scitag=_scitag(value.get("c")),
        )
    except (ValueError, KeyError, TypeError) as problem:
        raise StoreError(f"a stored decision cannot be read ({problem}); text: {text[:200]}") from problem


def _scitag(stored: Sequence[int] | None) -> tuple[int, int] | None:
    if stored is None:
        return None
    experiment, activity = stored
    return experiment, activity
