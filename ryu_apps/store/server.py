"""The controller's own `ovsdb-server`: one child process on one file in the state directory.

Invariants: the child never outlives the controller (the kernel kills it with its parent); one state directory serves
one controller at a time (a file lock); a half-written database file is never left under the final name; what an earlier
controller left behind (socket, dying child) does not keep the next one from starting.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ryu_apps.store.schema import SCHEMA, VERSION, is_older
from ryu_apps.store.store import StoreError

LOG = logging.getLogger("lark.store")
_SBIN = "/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin:/usr/local/bin"
_START_SECONDS = 15.0
_RETRY_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def find_tool(name: str) -> str:
    """The path of an Open vSwitch tool. Raises StoreError."""
    found = shutil.which(name) or shutil.which(name, path=_SBIN)
    if found is None:
        raise StoreError(f"{name} is not installed; install Open vSwitch (Debian: openvswitch-switch)")
    return found


def _die_with_parent(parent: int) -> None:
    # Runs in the child between fork and exec. SIGKILL is safe: what was acknowledged is on disk.
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def run_tool(command: Sequence[str]) -> str:
    """What a tool prints. Raises StoreError with what it says."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    text = done.stdout.decode(errors="replace").strip()
    if done.returncode:
        raise StoreError(f"{' '.join(command)} failed: {text}")
    return text


def lock_state_dir(directory: Path) -> int:
    """Take a state directory for this process; closing the descriptor gives it free. Raises StoreError."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as problem:
        raise StoreError(f"state directory {directory}: {problem.strerror}; make it writable") from problem
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        os.close(lock)
        raise StoreError(
            f"another lark-controller uses state directory {directory}; stop it, or give this one its own state-dir"
        ) from problem
    return lock


def prepare_file(db: Path) -> None:
    """Create the database file, or convert it from an older schema. Raises StoreError."""
    tool = find_tool("ovsdb-tool")
    if not db.exists():
        new = db.with_suffix(".new")
        new.unlink(missing_ok=True)
        run_tool([tool, "create", str(new), str(SCHEMA)])
        new.rename(db)
        LOG.info("created database %s", db)
        return
    if _is_ours(db):
        return
    _check_name(tool, db)
    version = run_tool([tool, "db-version", str(db)])
    if is_older(version, str(db)):
        kept = db.with_name(f"{db.name}.schema-{version}")
        shutil.copy2(db, kept)
        run_tool([tool, "convert", str(db), str(SCHEMA)])
        LOG.info("converted database %s from schema %s to %s; as it was before: %s", db, version, VERSION, kept)
    elif run_tool([tool, "needs-conversion", str(db), str(SCHEMA)]) == "yes":
        raise StoreError(
            f"{db} says that it has schema {version}, as this lark-controller, but its tables differ: no released "
            "version has made it; restore a back-up (lark-controller store restore)"
        )


def _is_ours(db: Path) -> bool:
    """The file begins with the very schema of this program: there is nothing to ask the tool for, three times. Where
    this is false, the tool has the word; whether the file is whole, the server finds out."""
    try:
        with db.open("rb") as file:
            magic, kind, length, _ = file.readline(200).split()
            if (magic, kind) != (b"OVSDB", b"JSON"):
                return False
            found = json.loads(file.read(int(length)))
        return bool(_plain(found) == _plain(json.loads(SCHEMA.read_bytes())))
    except (OSError, ValueError):
        return False


def _plain(schema: Any) -> Any:
    """A schema in one form: sets in order, and without what goes without saying."""
    if isinstance(schema, dict):
        return {key: _plain(value) for key, value in schema.items() if (key, value) != ("isRoot", True)}
    if isinstance(schema, list) and schema[:1] == ["set"]:
        return ["set", sorted(schema[1])]
    return schema


def _check_name(tool: str, db: Path) -> None:
    name = run_tool([tool, "db-name", str(db)])
    if name != "Lark":
        raise StoreError(f"{db} holds the database {name}, not Lark's; is this the right file?")


class EmbeddedServer:
    """Start with `start()`, or with `begin()` and `wait()`; look after it with `ensure()`, stop with `stop()`.
    `remote` is what clients connect to."""

    def __init__(self, state_dir: Path) -> None:
        # ovsdb-server takes relative paths to be relative to its own run directory.
        state_dir = state_dir.resolve()
        self._dir = state_dir
        self._db = state_dir / "lark.db"
        self._socket = state_dir / "lark.sock"
        self._log = state_dir / "ovsdb-server.log"
        self._child: subprocess.Popen[bytes] | None = None
        self._said = 0
        """How long the log was when the server was last started."""
        self._lock: int | None = None

    @property
    def remote(self) -> str:
        return f"unix:{self._socket}"

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    def start(self) -> None:
        """Create the database if there is none, start the server, and return when it accepts connections."""
        self.begin()
        self.wait()

    def begin(self) -> None:
        """The same, but for the waiting, which `wait` does."""
        self._lock = lock_state_dir(self._dir)
        prepare_file(self._db)
        self._spawn()

    def ensure(self) -> None:
        """Start the server again if it ended by itself. Call now and then."""
        if self._child is not None and self._child.poll() is not None:
            LOG.error("ovsdb-server (pid %d) ended with %s; starting it again", self._child.pid, self._child.returncode)
            self._spawn()
            self.wait()

    def stop(self) -> None:
        """Stop the server and give the state directory free. May be called twice."""
        child, self._child = self._child, None
        if child is not None and child.poll() is None:
            child.terminate()
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait(5)
        self._socket.unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _spawn(self) -> None:
        server = find_tool("ovsdb-server")
        self._socket.unlink(missing_ok=True)
        parent = os.getpid()
        with self._log.open("ab") as log:
            self._said = log.tell()
            self._child = subprocess.Popen(
                [
                    server,
                    str(self._db),
                    f"--remote=punix:{self._socket}",
                    f"--unixctl={self._dir / 'ovsdb-server.ctl'}",
                    f"--log-file={self._log}",
                    "--no-chdir",
                    "-vconsole:off",
                    "-vsyslog:off",
                    "-vfile:info",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Its own session: an interrupt typed at a terminal reaches the controller, which stops it in order.
                start_new_session=True,
                preexec_fn=functools.partial(_die_with_parent, parent),
            )

    def wait(self) -> None:
        """Return when the server accepts connections. Raises StoreError."""
        began = time.monotonic()
        while True:
            child = self._child
            assert child is not None
            if child.poll() is None:
                if self._accepts():
                    LOG.info("ovsdb-server pid %d serves %s", child.pid, self._db)
                    return
                if time.monotonic() > began + _START_SECONDS:
                    raise StoreError(f"ovsdb-server did not open {self._socket} in time; see {self._log}")
                time.sleep(0.02)
                continue
            # A killed controller's server may still hold the file's lock for a moment: try again.
            if time.monotonic() > began + _RETRY_SECONDS:
                with self._log.open("rb") as log:
                    log.seek(self._said)
                    tail = log.read()[-600:].decode(errors="replace").strip()
                raise StoreError(f"ovsdb-server on {self._db} ended with {child.returncode}: {tail}")
            time.sleep(0.1)
            self._spawn()

    def _accepts(self) -> bool:
        probe = socket.socket(socket.AF_UNIX)
        try:
            probe.connect(str(self._socket))
        except OSError:
            return False
        finally:
            probe.close()
        return True
