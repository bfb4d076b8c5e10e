"""What a controller needs of a durable store, and the rows that controllers keep and share there.

Invariants: `write` is atomic and takes place once or not at all, also when connection or server are lost on the way;
when its `Pending` says so, it is on disk. A write can name what it replaces (`before`), and then changes nothing if
another controller was quicker. A controller that the others have given up (`DropController`) can write no more.
`reserve` never returns a number twice, not even after a crash. Nothing here knows where rows live.
`docs/store.md` explains each column.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from policies.model import Bandwidth, Decision, Outcome, Place, Sharing
from policies.wire import AttemptSpec, NodeSpec


class StoreError(Exception):
    """The store could not do what was asked; the text says what and how to mend it."""


class StoreConflict(StoreError):
    """Nothing was written: a row is not what the write expected, because another controller was quicker."""


class StoreFenced(StoreError):
    """Nothing was written, nor ever will be: other controllers have given this one up and taken over."""


class Kind(enum.StrEnum):
    """What numbers are given to."""

    ATTEMPT = "attempt"
    IDENTITY = "identity"
    SERVICE = "service"
    NODE = "node"
    SLICE = "slice"
    SHARE = "share"


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """An attempt as stored. `leaving`: bridges that may still hold flows of it after its end; empty while it lives.

    `slice_number`, `share_number`: of the decision's slice and share; 0 for none. `awaits`: bridges whose masters are
    asked to say that the row is in force there; `BRIDGE REASON` where the switch refused it; `forget:BRIDGE`: the
    attempt needed the bridge by an earlier policy only; `forget:zone:BRIDGE`: its zone is to be emptied there
    (`ryu_apps.shared`).
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
    awaits: tuple[str, ...] = ()
    share_number: int = 0


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node as its agent described it. `controller`: which one its agent talks to, and which so ends its lease."""

    name: str
    spec: NodeSpec
    controller: str = ""


@dataclass(frozen=True, slots=True)
class NumberRow:
    kind: Kind
    name: str
    number: int


@dataclass(frozen=True, slots=True)
class ControllerRow:
    """A controller that uses the store. It lives while `beat` grows."""

    name: str
    beat: int
    place: str
    api: str
    since: float


@dataclass(frozen=True, slots=True)
class MasterRow:
    """Which controller is master of a bridge. The row stays when nobody is (`controller` empty).

    `generation`: OpenFlow's generation id; each new master's is higher than any before.
    """

    bridge: str
    controller: str
    generation: int


class Unchecked(enum.Enum):
    """Says that a write replaces whatever is there."""

    ANY = "any"


ANY: Final = Unchecked.ANY
Any_ = Literal[Unchecked.ANY]


@dataclass(frozen=True, slots=True)
class PutAttempt:
    """`before`: the row that this one replaces, None for none; else the write fails with StoreConflict."""

    row: AttemptRow
    before: AttemptRow | Any_ | None = ANY


@dataclass(frozen=True, slots=True)
class DropAttempt:
    id: str
    before: AttemptRow | Any_ = ANY


@dataclass(frozen=True, slots=True)
class PutNode:
    row: NodeRow
    before: NodeRow | Any_ | None = ANY


@dataclass(frozen=True, slots=True)
class PutNumber:
    kind: Kind
    name: str
    number: int


@dataclass(frozen=True, slots=True)
class PutMaster:
    row: MasterRow
    before: MasterRow | None


@dataclass(frozen=True, slots=True)
class DropController:
    """Give a controller up, unless its beat has grown meanwhile: from then on it can write nothing."""

    name: str
    beat: int


Change = PutAttempt | DropAttempt | PutNode | PutNumber | PutMaster | DropController
Row = AttemptRow | NodeRow | NumberRow | ControllerRow | MasterRow


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that is stored."""

    attempts: tuple[AttemptRow, ...]
    nodes: tuple[NodeRow, ...]
    numbers: Mapping[tuple[Kind, str], int]
    controllers: tuple[ControllerRow, ...] = ()
    masters: tuple[MasterRow, ...] = ()


@dataclass(frozen=True, slots=True)
class Put:
    """Another controller has written this row; it is on disk."""

    row: Row


@dataclass(frozen=True, slots=True)
class Gone:
    """Another controller has removed the row of this key: an attempt's id, a controller's name."""

    table: Literal["Attempt", "Controller", "Node", "Number", "Mastership"]
    key: str


Event = Put | Gone


class Feed(Protocol):
    """What others change after `snapshot` was taken: each change once, in order; after a lost connection only how
    things are then."""

    snapshot: Snapshot

    def take(self, seconds: float) -> list[Event]:
        """What has come, waiting so long for the first at most. Raises StoreError when the store is closed."""

    def close(self) -> None: ...


class Pending(Protocol):
    """A write on its way."""

    def wait(self, deadline: float) -> None:
        """Return when the write is durable. Raises StoreError if it failed or `time.monotonic()` is past `deadline`.

        A write that was not sent by then is withdrawn and never takes place.
        """


@dataclass(slots=True)
class StoreCounts:
    """What the store has been asked to do by this process. `seconds`: from sending a transaction until it was durable,
    added up."""

    transactions: int = 0
    writes: int = 0
    seconds: float = 0.0


class Store(Protocol):
    counts: StoreCounts

    @property
    def trouble(self) -> str | None:
        """Why the store cannot be reached at present; None while it can."""

    @property
    def fenced(self) -> str | None:
        """Why the other controllers have given this one up; None while they have not."""

    def load(self) -> Snapshot:
        """Everything stored, in no particular order."""

    def reserve(self, kind: Kind, count: int) -> int:
        """Durably reserve `count` numbers; returns the first. Raises StoreError."""

    def write(self, changes: Sequence[Change]) -> Pending:
        """Begin an atomic write. Writes become durable in the order in which they were begun.

        A write of nothing is this controller's heartbeat: like every write it makes its `beat` grow.
        """

    def watch(self) -> Feed:
        """Everything stored, and from there on what others change. Raises StoreError."""

    def close(self) -> None: ...


def decision_to_text(decision: Decision) -> str:
    """A decision in the compact JSON of column `decision`; equal decisions give equal text.

    What most jobs do not have is left out, so that a row stays small.
    """
    outcome, share = decision.outcome, decision.share
    rare: dict[str, object] = {
        "a": sorted(outcome.audited),
        "m": sorted(outcome.groups),
        "r": decision.rate,
        "c": list(decision.scitag or ()),
        "p": [] if share is None else [share.name, share.part.percent, share.part.bits],
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
            share=_sharing(value.get("p")),
        )
    except (ValueError, KeyError, TypeError) as problem:
        raise StoreError(f"a stored decision cannot be read ({problem}); text: {text[:200]}") from problem


def _sharing(stored: Sequence[Any] | None) -> Sharing | None:
    if stored is None:
        return None
    name, percent, bits = stored
    return Sharing(str(name), Bandwidth(percent, bits))


def _scitag(stored: Sequence[int] | None) -> tuple[int, int] | None:
    if stored is None:
        return None
    experiment, activity = stored
    return experiment, activity
