"""One member of a store's cluster: an `ovsdb-server` with Lark's schema, made, joined and run.

Invariants: a new cluster comes only from `create`, never by accident from a member whose directory is empty; `serve`
becomes the server itself, so that whoever supervises it supervises the server.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ryu_apps.store.jsonrpc import Remote, Tls, parse_remote
from ryu_apps.store.schema import DATABASE, SCHEMA
from ryu_apps.store.server import find_tool, run_tool
from ryu_apps.store.store import StoreError

FILE = "lark-cluster.db"


def create(directory: Path, raft: str) -> Path:
    """The first member of a new cluster. `raft`: where other members reach this one. Raises StoreError."""
    db = _new_file(directory, raft)
    run_tool([find_tool("ovsdb-tool"), "create-cluster", str(db), str(SCHEMA), raft])
    return db


def join(directory: Path, raft: str, members: Sequence[str]) -> Path:
    """A further member; it joins when it is first served. `members`: raft addresses of others. Raises StoreError."""
    for member in members:
        _check(member)
    db = _new_file(directory, raft)
    run_tool([find_tool("ovsdb-tool"), "join-cluster", str(db), DATABASE, raft, *members])
    return db


def serve(directory: Path, listen: Sequence[str], tls: Tls | None) -> NoReturn:
    """Become the member's server; the log goes to standard error. Raises StoreError."""
    command = serve_command(directory, listen, tls)
    os.execv(command[0], command)


def serve_command(directory: Path, listen: Sequence[str], tls: Tls | None) -> list[str]:
    """Raises StoreError."""
    directory = directory.resolve()
    db = directory / FILE
    if not db.exists():
        raise StoreError(f"there is no {db}; make it with `lark-controller store create` or `store join` first")
    command = [find_tool("ovsdb-server"), str(db), f"--unixctl={directory / 'ctl'}", "--no-chdir"]
    for text in listen:
        remote = _check(text)
        if remote.kind == "unix":
            command.append(f"--remote=punix:{remote.host}")
            continue
        if remote.kind == "ssl" and tls is None:
            raise StoreError("to listen with ssl: needs --private-key, --certificate and --ca")
        host = f"[{remote.host}]" if ":" in remote.host else remote.host
        command.append(f"--remote=p{remote.kind}:{remote.port}:{host}")
    if tls is not None:
        command += [
            f"--private-key={tls.private_key.resolve()}",
            f"--certificate={tls.certificate.resolve()}",
            f"--ca-cert={tls.ca_certificate.resolve()}",
        ]
    return [*command, "-vconsole:info", "-vsyslog:off"]


def _new_file(directory: Path, raft: str) -> Path:
    _check(raft)
    directory = directory.resolve()
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as problem:
        raise StoreError(f"{directory}: {problem.strerror}") from problem
    db = directory / FILE
    if db.exists():
        raise StoreError(f"{db} exists: this member was made already; run it with `lark-controller store serve`")
    return db


def _check(text: str) -> Remote:
    try:
        return parse_remote(text)
    except ValueError as problem:
        raise StoreError(str(problem)) from problem
