"""Back-up, restore and upgrade of the store, embedded or in a cluster.

Invariants: a file under its final name is whole; what a restore replaces is kept beside it; a restored store never
gives a number again that was given after the back-up; nothing is restored under a controller that lives.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ryu_apps.store.opening import StoreSettings, living_controllers
from ryu_apps.store.ovsdb import OvsdbStore
from ryu_apps.store.schema import DATABASE, SCHEMA, VERSION, is_older
from ryu_apps.store.server import find_tool, lock_state_dir, prepare_file, run_tool
from ryu_apps.store.store import StoreError

# More than were given since any back-up that somebody may still want. A slice's number has 32 bits, a share's 22 (its
# counter comes round: ryu_apps/life/present.py), the others 48.
LEAPS = {"attempt": 10**9, "identity": 10**9, "slice": 10**7, "service": 10**6, "node": 10**6, "share": 10**6}
_CLIENT_SECONDS = 60


def backup(settings: StoreSettings, target: Path, *, force: bool) -> str:
    """Write everything stored to a file, whether the controller runs or not. Returns what to tell."""
    if target.exists() and not force:
        raise StoreError(f"{target} exists; give another name, or --force")
    with _beside(target) as new:
        if not settings.embedded:
            how = "from the cluster"
            clients_tool(settings, "backup", output=new)
        else:
            lock = if_stopped(settings.state_dir)
            if lock is None:
                how = "from the running controller"
                clients_tool(settings, "backup", output=new)
            else:
                try:
                    db = settings.state_dir / "lark.db"
                    if not db.exists():
                        raise StoreError(f"there is no {db}; is `state-dir` right?")
                    how = f"from {db}"
                    new.unlink()  # the tool makes its target itself
                    run_tool([find_tool("ovsdb-tool"), "compact", str(db), str(new)])
                finally:
                    os.close(lock)
        version = _version(new)
        _finish(new, target)
    return f"{target}: {target.stat().st_size} bytes {how}, schema {version}"


def restore(settings: StoreSettings, source: Path, *, force: bool) -> str:
    """Put a back-up in place of what is stored. Returns what to tell. Raises StoreError."""
    if not source.is_file():
        raise StoreError(f"there is no file {source}")
    with tempfile.TemporaryDirectory(prefix="lark-restore-") as scratch:
        ready = Path(scratch) / "lark.db"
        shutil.copyfile(source, ready)
        _prepare(source, ready)
        if settings.embedded:
            return _restore_file(settings, source, ready, force=force)
        return _restore_cluster(settings, source, ready, force=force)


def upgrade(settings: StoreSettings) -> str:
    """Convert a cluster to the schema of this program. Returns what to tell. Raises StoreError."""
    if settings.embedded:
        return "the embedded store is converted when lark-controller starts; nothing to do"
    version = clients_tool(settings, "get-schema-version").strip()
    if not is_older(version, "the cluster"):
        return f"the cluster has schema {version} already"
    clients_tool(settings, "convert", argument=str(SCHEMA))
    return f"converted the cluster from schema {version} to {VERSION}"


def _restore_file(settings: StoreSettings, source: Path, ready: Path, *, force: bool) -> str:
    db = settings.state_dir / "lark.db"
    lock = if_stopped(settings.state_dir)
    if lock is None:
        raise StoreError(f"lark-controller runs on {settings.state_dir}; stop it first")
    try:
        kept = ""
        if db.exists():
            if not force:
                raise StoreError(f"{db} exists and would be replaced; say --force (it is kept beside it)")
            old = unused(db.with_name(f"{db.name}.before-restore"))
            shutil.copy2(db, old)
            kept = f"; what was stored before: {old}"
        with _beside(db) as new:
            shutil.copyfile(ready, new)
            _finish(new, db)
            owner = settings.state_dir.stat()
            os.chown(db, owner.st_uid, owner.st_gid)  # root restores; the controller is another user
        return f"{db}: restored from {source}{kept}"
    finally:
        os.close(lock)


def _restore_cluster(settings: StoreSettings, source: Path, ready: Path, *, force: bool) -> str:
    living = living_controllers(settings)
    if living:
        raise StoreError(f"{' and '.join(living)} lives and uses the store; stop it first")
    reader = OvsdbStore(settings.servers, name=None, tls=settings.tls)
    try:
        now = reader.load()
    finally:
        reader.close()
    kept = ""
    if now.attempts or now.nodes:
        if not force:
            raise StoreError(
                f"the store has {len(now.attempts)} attempts and {len(now.nodes)} nodes, which would be replaced; "
                "say --force (they are kept in a file beside the back-up)"
            )
        old = unused(source.with_name(f"{source.name}.before-restore"))
        backup(settings, old, force=False)
        kept = f"; what was stored before: {old}"
    with ready.open("rb") as content:
        clients_tool(settings, "restore", content=content.fileno())
    return f"the cluster was restored from {source}{kept}"


def _prepare(source: Path, ready: Path) -> None:
    """Make a copy of a back-up what the store shall be: this program's schema, no controllers, numbers far ahead."""
    tool = find_tool("ovsdb-tool")
    try:
        if subprocess.run([tool, "db-is-clustered", str(ready)], capture_output=True, check=False).returncode == 0:
            raise StoreError(
                f"{source} is the file of a cluster's member, not a back-up made with `lark-controller store backup`"
            )
        prepare_file(ready)
    except StoreError as problem:
        raise StoreError(str(problem).replace(str(ready), str(source))) from problem
    for kept in ready.parent.glob(f"{ready.name}.schema-*"):
        kept.unlink()
    operations: list[object] = [
        {
            "op": "mutate",
            "table": "Counter",
            "where": [["kind", "==", kind]],
            "mutations": [["next", "+=", leap]],
        }
        for kind, leap in LEAPS.items()
    ]
    operations.append({"op": "delete", "table": "Controller", "where": []})
    # A generation that a switch has seen later than this back-up would make it refuse its next master.
    operations.append({"op": "mutate", "table": "Mastership", "where": [], "mutations": [["generation", "+=", 10**9]]})
    said = json.loads(run_tool([tool, "transact", str(ready), json.dumps([DATABASE, *operations])]))
    faults = [answer for answer in said if isinstance(answer, dict) and answer.get("error")]
    if faults:
        raise StoreError(f"{source} cannot be restored: {faults[0]}")


def clients_tool(
    settings: StoreSettings, verb: str, *, argument: str = "", output: Path | None = None, content: int | None = None
) -> str:
    """Run ovsdb-client on the store. Raises StoreError with what it says."""
    command = [find_tool("ovsdb-client"), f"--timeout={_CLIENT_SECONDS}"]
    if settings.tls is not None:
        command += [
            f"--private-key={settings.tls.private_key}",
            f"--certificate={settings.tls.certificate}",
            f"--ca-cert={settings.tls.ca_certificate}",
        ]
    servers: Sequence[str] = settings.servers or [f"unix:{settings.state_dir.resolve() / 'lark.sock'}"]
    command += [verb, ",".join(servers), *([] if argument else [DATABASE]), *([argument] if argument else [])]
    with contextlib.ExitStack() as files:
        out = files.enter_context(output.open("wb")) if output is not None else subprocess.PIPE
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL if content is None else content, stdout=out, stderr=subprocess.PIPE
        )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise StoreError(f"ovsdb-client {verb} failed: {said[-1] if said else f'exit code {done.returncode}'}")
    return (done.stdout or b"").decode(errors="replace")


def _version(db: Path) -> str:
    return run_tool([find_tool("ovsdb-tool"), "db-version", str(db)])


def if_stopped(state_dir: Path) -> int | None:
    """The lock of the state directory, or None while a controller has it. Raises StoreError."""
    if not state_dir.is_dir():
        raise StoreError(f"there is no state directory {state_dir}; is `state-dir` right?")
    deadline = time.monotonic() + 1.0
    while True:
        try:
            return lock_state_dir(state_dir)
        except StoreError as problem:
            if "another lark-controller" not in str(problem):
                raise
            if time.monotonic() > deadline:
                return None
            time.sleep(0.1)


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A private file in the target's directory, gone at the end unless it became the target."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as problem:
        raise StoreError(f"{target.parent}: {problem.strerror}") from problem
    os.close(descriptor)
    try:
        yield Path(name)
    except OSError as problem:
        raise StoreError(f"{target}: {problem.strerror}") from problem
    finally:
        Path(name).unlink(missing_ok=True)
        Path(target.parent, f".{Path(name).name}.~lock~").unlink(missing_ok=True)


def _finish(new: Path, target: Path) -> None:
    os.chmod(new, 0o600)
    for path in (new, target.parent):
        if path is not new:
            new.rename(target)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def unused(path: Path) -> Path:
    number = 1
    found = path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found
