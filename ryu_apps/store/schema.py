"""The database's schema and its versions.

Invariants: a version that was released is never changed in place: another schema has another version. Minor versions
only add tables and columns, so a controller that runs goes on while the schema under it becomes newer; one that starts
takes no schema but its own.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ryu_apps.store.store import StoreError

with warnings.catch_warnings():
    # The library looks for eventlet, which says that it is deprecated (docs/engines.md: why we have it).
    warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")
    from ovs.db.schema import DbSchema

SCHEMA: Final = Path(__file__).with_name("lark.ovsschema")
DATABASE: Final = "Lark"
_SCHEMA: Final = DbSchema.from_json(json.loads(SCHEMA.read_text(encoding="utf-8")))
VERSION: Final[str] = _SCHEMA.version
COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {name: tuple(table.columns) for name, table in _SCHEMA.tables.items()}


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
