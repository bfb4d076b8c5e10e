"""Rows as OVSDB columns, and back.

Invariants: what is read equals what was written; two texts of equal content have equal fingerprints, whatever form the
server gives them. Key columns say which row a write means.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from pydantic import ValidationError

from policies.model import Decision, Outcome
from policies.wire import AttemptSpec, NodeSpec
from ryu_apps.openflow.cookies import OBJECT_MASK
from ryu_apps.openflow.meters import MOST_SHARES
from ryu_apps.store.schema import COLUMNS
from ryu_apps.store.specs import spec_from_text
from ryu_apps.store.store import (
    ANY,
    AttemptRow,
    Change,
    ControllerRow,
    DropAttempt,
    DropController,
    Kind,
    MasterRow,
    NodeRow,
    NumberRow,
    PutAttempt,
    PutMaster,
    PutNode,
    PutNumber,
    Row,
    Snapshot,
    StoreError,
    Unchecked,
    decision_from_text,
    decision_to_text,
)

Key = tuple[str, ...]
"""Table and the values of its key columns."""
Columns = dict[str, Any]
KEY_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "Attempt": ("id",),
    "Node": ("name",),
    "Number": ("kind", "name"),
    "Counter": ("kind",),
    "Controller": ("name",),
    "Mastership": ("bridge",),
}
_SETS: Final = frozenset({("Attempt", "leaving"), ("Attempt", "awaits")})
_EMPTY: Final = ["set", []]
_MOST: Final = (("number", OBJECT_MASK), ("identity", OBJECT_MASK), ("slice", (1 << 32) - 1), ("share", MOST_SHARES))
"""Of the numbers in an attempt's row, how large each may be: they become cookies, registers and meters."""
_ORDER: Final = {table: tuple(columns) for table, columns in COLUMNS.items()}


def key_of(table: str, columns: Mapping[str, Any]) -> Key:
    return (table, *(columns[name] for name in KEY_COLUMNS[table]))


def fingerprint(table: str, columns: Mapping[str, Any]) -> int:
    """Equal for equal rows, in whatever form they came."""
    return hash(
        tuple(
            tuple(sorted(members(columns[name]))) if (table, name) in _SETS else columns[name] for name in _ORDER[table]
        )
    )


def members(value: Any) -> Sequence[str]:
    """The members of a set, which the protocol writes bare when there is one."""
    return value[1] if isinstance(value, list) else (value,)


def planned(change: Change) -> tuple[Key, Columns | None, Columns | Unchecked | None]:
    """Which row a change means, what it becomes (None: gone), and what it must be before."""
    match change:
        case PutAttempt(row, before):
            was = before if before is ANY or before is None else _attempt_columns(before)
            return ("Attempt", row.id), _attempt_columns(row), was
        case DropAttempt(id, before):
            return ("Attempt", id), None, before if before is ANY else _attempt_columns(before)
        case PutNode(row, before):
            had = before if before is ANY or before is None else _node_columns(before)
            return ("Node", row.name), _node_columns(row), had
        case PutNumber(kind, name, number):
            return ("Number", kind.value, name), {"kind": kind.value, "name": name, "number": number}, ANY
        case PutMaster(master, previous):
            old = None if previous is None else _master_columns(previous)
            return ("Mastership", master.bridge), _master_columns(master), old
        case DropController(name, beat):
            return ("Controller", name), None, {"beat": beat}


def _attempt_columns(row: AttemptRow) -> Columns:
    return {
        "id": row.id,
        "number": row.number,
        "identity": row.identity,
        "slice": row.slice_number,
        "share": row.share_number,
        "spec": json.dumps(row.spec.model_dump(mode="json", exclude_defaults=True), separators=(",", ":")),
        "decision": decision_to_text(row.decision),
        "digest": row.digest,
        # The server writes numbers with fifteen digits.
        "registered": round(row.registered, 3),
        "leaving": ["set", sorted(row.leaving)],
        "awaits": ["set", sorted(row.awaits)],
    }


def _node_columns(row: NodeRow) -> Columns:
    return {"name": row.name, "spec": row.spec.model_dump_json(exclude_defaults=True), "controller": row.controller}


def _master_columns(row: MasterRow) -> Columns:
    return {"bridge": row.bridge, "controller": row.controller, "generation": row.generation}


class Shared:
    """What many rows have in common is read once and kept once: thousands of jobs share a few decisions."""

    def __init__(self) -> None:
        self._decisions: dict[str, Decision] = {}
        self._outcomes: dict[Outcome, Outcome] = {}

    def decision(self, text: str) -> Decision:
        """Raises StoreError."""
        found = self._decisions.get(text)
        if found is None:
            read = decision_from_text(text)
            found = replace(read, outcome=self._outcomes.setdefault(read.outcome, read.outcome))
            self._decisions[text] = found
        return found


def attempt_of_columns(columns: Mapping[str, Any], shared: Shared) -> AttemptRow:
    """Raises StoreError."""
    try:
        leaving, awaits = columns["leaving"], columns["awaits"]
        for name, most in _MOST:
            if not 0 <= columns[name] <= most:
                raise StoreError(f"its {name} {columns[name]} is no number that flows have room for")
        return AttemptRow(
            columns["id"],
            columns["number"],
            columns["identity"],
            spec_from_text(columns["spec"]) or AttemptSpec.model_validate_json(columns["spec"]),
            shared.decision(columns["decision"]),
            sys.intern(columns["digest"]),
            float(columns["registered"]),
            () if leaving == _EMPTY else tuple(sorted(members(leaving))),
            columns["slice"],
            () if awaits == _EMPTY else tuple(sorted(members(awaits))),
            columns["share"],
        )
    except (ValidationError, StoreError, ValueError) as problem:
        raise StoreError(f"stored attempt {columns['id']} cannot be read: {problem}") from problem


def row_of(table: str, columns: Mapping[str, Any]) -> Row | None:
    """The row of these columns; None for what is the store's own affair. Raises StoreError."""
    try:
        match table:
            case "Attempt":
                return attempt_of_columns(columns, Shared())
            case "Node":
                return NodeRow(columns["name"], NodeSpec.model_validate_json(columns["spec"]), columns["controller"])
            case "Number":
                return NumberRow(Kind(columns["kind"]), columns["name"], columns["number"])
            case "Controller":
                return ControllerRow(
                    columns["name"], columns["beat"], columns["place"], columns["api"], float(columns["since"])
                )
            case "Mastership":
                return MasterRow(columns["bridge"], columns["controller"], columns["generation"])
    except (ValidationError, ValueError) as problem:
        name = "/".join(map(str, key_of(table, columns)[1:]))
        raise StoreError(f"stored {table.lower()} {name} cannot be read: {problem}") from problem
    return None


def snapshot_of(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> Snapshot:
    """Raises StoreError that names the first row that cannot be read."""
    shared = Shared()
    rows = [row_of(table, columns) for table, found in tables.items() if table != "Attempt" for columns in found]
    return Snapshot(
        attempts=tuple([attempt_of_columns(columns, shared) for columns in tables.get("Attempt", ())]),
        nodes=tuple(row for row in rows if isinstance(row, NodeRow)),
        numbers={(row.kind, row.name): row.number for row in rows if isinstance(row, NumberRow)},
        controllers=tuple(row for row in rows if isinstance(row, ControllerRow)),
        masters=tuple(row for row in rows if isinstance(row, MasterRow)),
    )
