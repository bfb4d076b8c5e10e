"""The database's schema and its versions.

Invariants: a version that was released is never changed in place: another schema has another version. Minor versions
only add tables and columns, so a controller that runs goes on while the schema under it becomes newer; one that starts
takes no schema but its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ryu_apps.store.store import StoreError

SCHEMA: Final = Path(__file__).with_name("lark.ovsschema")
DATABASE: Final = "Lark"
_CONTENT: Final[Mapping[str, Any]] = json.loads(SCHEMA.read_text(encoding="utf-8"))
VERSION: Final[str] = _CONTENT["version"]
COLUMNS: Final[Mapping[str, Mapping[str, Any]]] = {table: spec["columns"] for table, spec in _CONTENT["tables"].items()}


def _parts(version: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in version.split("."))
    except ValueError:
        raise StoreError(f"{version!r} is no version of a database schema; is this a database of Lark's?") from None


def is_older(version: str, where: str) -> bool:
    """Whether a database needs to be converted. Raises StoreError when it is newer than this program."""
    found, ours = _parts(version), _parts(VERSION)
    if found > ours:
        raise StoreError(
            f"{where} has schema {version}, which is newer than this lark-controller's {VERSION}: it was written by a "
            "newer version, whose data this one would lose; install that version again, or restore a back-up made by "
            "this one (lark-controller store restore)"
        )
    return found < ours
