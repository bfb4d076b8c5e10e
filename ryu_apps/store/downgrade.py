"""The store in the form of an earlier version's schema, so that this version can be installed again.

Invariants: nothing is converted under a controller that lives; the embedded database as it was stays beside it; what
the earlier schema has no room for goes as a whole, and all else stays (minor versions of the schema only add tables,
columns and words, and a controller reads a row without them).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ryu_apps.store.backup import clients_tool, if_stopped, unused
from ryu_apps.store.opening import StoreSettings, living_controllers
from ryu_apps.store.schema import DATABASE, SCHEMA, is_older
from ryu_apps.store.server import find_tool, run_tool
from ryu_apps.store.store import StoreError

RELEASED = SCHEMA.with_name("released")


def versions() -> list[str]:
    """Of the earlier schemas, the latest first."""
    found = [path.stem.removeprefix("lark-") for path in RELEASED.glob("lark-*.ovsschema")]
    return sorted(found, key=lambda version: [int(part) for part in version.split(".")], reverse=True)


def downgrade(settings: StoreSettings, version: str) -> str:
    """Convert what is stored to the schema of an earlier version. Returns what to tell. Raises StoreError."""
    schema = RELEASED / f"lark-{version}.ovsschema"
    if version not in versions():
        raise StoreError(f"this lark-controller knows no earlier schema {version}, but {', '.join(versions())}")
    return _file(settings, version, schema) if settings.embedded else _cluster(settings, version, schema)


def _file(settings: StoreSettings, version: str, schema: Path) -> str:
    lock = if_stopped(settings.state_dir)
    if lock is None:
        raise StoreError(f"lark-controller runs on {settings.state_dir}; stop it first")
    try:
        db, tool = settings.state_dir / "lark.db", find_tool("ovsdb-tool")
        if not db.exists():
            raise StoreError(f"there is no {db}; is `state-dir` right?")
        found = run_tool([tool, "db-version", str(db)])
        if not _is_later(found, version, str(db)):
            return f"{db} has schema {found} already"
        kept = unused(db.with_name(f"{db.name}.schema-{found}"))
        shutil.copy2(db, kept)
        _check(run_tool([tool, "transact", str(db), _without_room(schema)]), str(db))
        # The tool reads every change that was ever made by the earlier schema, those that are undone too.
        run_tool([tool, "compact", str(db)])
        run_tool([tool, "convert", str(db), str(schema)])
        owner = settings.state_dir.stat()
        for path in (db, kept):
            os.chown(path, owner.st_uid, owner.st_gid)  # root converts; the controller is another user
        return f"{db}: converted from schema {found} to {version}; as it was before: {kept}"
    finally:
        os.close(lock)


def _cluster(settings: StoreSettings, version: str, schema: Path) -> str:
    found = clients_tool(settings, "get-schema-version").strip()
    if not _is_later(found, version, "the cluster"):
        return f"the cluster has schema {found} already"
    living = living_controllers(settings)
    if living:
        raise StoreError(f"{' and '.join(living)} lives and needs schema {found}; stop every controller first")
    _check(clients_tool(settings, "transact", argument=_without_room(schema)), "the cluster")
    clients_tool(settings, "convert", argument=str(schema))
    return f"converted the cluster from schema {found} to {version}"


def _is_later(found: str, version: str, where: str) -> bool:
    is_older(found, where)  # a newer one than ours is refused: we do not know what it says
    return [int(part) for part in found.split(".")] > [int(part) for part in version.split(".")]


def _without_room(schema: Path) -> str:
    """A transaction that removes the rows of which the earlier schema does not allow a word."""
    return json.dumps([DATABASE, *_removals(json.loads(SCHEMA.read_bytes()), json.loads(schema.read_bytes()))])


def _removals(ours: Mapping[str, Any], earlier: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for table, described in earlier["tables"].items():
        for column, kind in described["columns"].items():
            words = _words(kind)
            if words is not None and words != _words(ours["tables"][table]["columns"][column]):
                where = [[column, "!=", word] for word in sorted(words)]
                yield {"op": "delete", "table": table, "where": where}


def _words(column: Mapping[str, Any]) -> frozenset[str] | None:
    """The words that a column of one word allows; None: it allows any, or is of another kind."""
    kind = column["type"]
    key = kind.get("key") if isinstance(kind, dict) else None
    if not isinstance(key, dict) or "enum" not in key:
        return None
    enum = key["enum"]
    return frozenset(enum[1] if isinstance(enum, list) else [enum])


def _check(said: str, where: str) -> None:
    faults = [answer for answer in json.loads(said) if isinstance(answer, dict) and answer.get("error")]
    if faults:
        raise StoreError(f"{where} cannot be converted: {faults[0]}")
