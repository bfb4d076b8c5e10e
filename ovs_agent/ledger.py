"""The agent's durable memory: one file per attempt, written before the thing it describes is done.

Invariants: a lane's number is in use exactly as long as a file names it, so a number whose deletion the controller has
not confirmed cannot be given to another job, whatever happens to the agent in between. A file is complete or absent
(written beside, renamed). A new file and its name are on disk before `save` returns. That it was replaced or removed
need not be: only a machine that stops forgets that, and then every attempt of before is over, and is deleted at the
controller once more, for which what was written first is enough: it stays under another name (`.first`), because a
file system may keep the new name of a file and lose what is in it. (The next new name brings such changes to disk with
it, so no number has two files.) A record that cannot be read blocks the start: guessing here could give a running job's
address away.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ovs_agent.errors import AgentError
from ovs_agent.life import State
from ovs_agent.steps import Step, reached
from policies.wire import ATTEMPT_ID_PATTERN, AttemptSpec, NodeGrant


class LedgerError(AgentError):
    """The state directory is unusable."""


class Record(BaseModel):
    """What must be known of an attempt to go on with it, or to end it, after a restart."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str
    state: State
    lane: int
    port: str
    namespaces: tuple[str, ...]
    zone: int
    boot_id: str
    slot: str
    uid: int
    starter_pid: int
    starter_start: int
    job_pid: int | None = None
    job_start: int | None = None
    sealed: bool = False
    spec: AttemptSpec | None = None


class Ledger:
    """`attempts/<id>.json` and `grant.json` under the state directory. Calls block: a new record for the disk."""

    def __init__(self, state_dir: Path) -> None:
        self._dir = state_dir / "attempts"
        self._grant = state_dir / "grant.json"
        self._named: set[Path] = set()
        """Files whose name is on disk for certain."""
        try:
            self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.chmod(state_dir, 0o700)
        except OSError as e:
            raise LedgerError(f"cannot be made: {e.strerror}", str(self._dir)) from None

    def tidy(self) -> None:
        """Remove what a killed writer left. Only for the agent itself: `status` may look while the agent writes."""
        alone = [path for path in self._dir.glob("*.first") if not path.with_suffix(".json").exists()]
        for left in [*self._dir.glob(".*.new"), *self._grant.parent.glob(".*.new"), *alone]:
            left.unlink(missing_ok=True)

    def save(self, record: Record) -> None:
        if not re.fullmatch(ATTEMPT_ID_PATTERN, record.id) or record.id.startswith("."):
            raise LedgerError(f"{record.id!r} is no attempt id")
        # No defaults: an agent that is put back to the version before knows no fields that were added since.
        text = record.model_dump_json(exclude_defaults=True)
        path = self._dir / f"{record.id}.json"
        try:
            if not (new := path not in self._named):
                with contextlib.suppress(FileExistsError, FileNotFoundError):
                    os.link(path, path.with_suffix(".first"))
            self._write(path, text.encode(), Step.RECORD_BESIDE, durable=new)
            self._named.add(path)
        except OSError as e:
            raise LedgerError(f"cannot be written: {e.strerror}", str(path)) from None
        reached(Step.RECORD_IN_PLACE)

    def forget(self, attempt: str) -> None:
        path = self._dir / f"{attempt}.json"
        try:
            self._named.discard(path)
            path.unlink(missing_ok=True)
            reached(Step.RECORD_UNLINKED)
            path.with_suffix(".first").unlink(missing_ok=True)
        except OSError as e:
            raise LedgerError(f"cannot be removed: {e.strerror}", str(path)) from None

    def load(self) -> list[Record]:
        found = []
        for path in sorted(self._dir.glob("*.json")):
            try:
                record = _read(path)
            except FileNotFoundError:
                continue  # forgotten while we looked
            except (OSError, ValueError, ValidationError) as e:
                if (first := _of_an_earlier_boot(path.with_suffix(".first"))) is not None:
                    found.append(first)
                    continue
                raise LedgerError(
                    f"cannot be understood ({str(e).splitlines()[0]}). If no job of this node is running, run "
                    "lark-agent cleanup and remove the file",
                    str(path),
                ) from None
            if path.name != f"{record.id}.json":
                raise LedgerError(f"holds attempt {record.id}; it was renamed or copied by hand", str(path))
            found.append(record)
        return found

    def save_grant(self, grant: NodeGrant) -> None:
        try:
            self._write(self._grant, grant.model_dump_json().encode(), Step.NODE_GRANT_BESIDE, durable=True)
        except OSError as e:
            raise LedgerError(f"cannot be written: {e.strerror}", str(self._grant)) from None

    def load_grant(self) -> NodeGrant | None:
        try:
            return NodeGrant.model_validate_json(self._grant.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return None  # only a memory of what the controller will say again

    def _write(self, path: Path, data: bytes, beside: Step, *, durable: bool) -> None:
        new = path.with_name(f".{path.name}.{threading.get_native_id()}.new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            left = memoryview(data)
            while left:  # a disk that fills up takes a part without an error
                left = left[os.write(fd, left) :]
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        reached(beside)
        os.replace(new, path)
        if durable:
            self._sync(path.parent)

    @staticmethod
    def _sync(directory: Path) -> None:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _read(path: Path) -> Record:
    return Record.model_validate(json.loads(path.read_bytes()))


def _of_an_earlier_boot(path: Path) -> Record | None:
    """What a replaced record was at first, if the machine has stopped since: nothing else loses what is in one."""
    try:
        record = _read(path)
    except (OSError, ValueError, ValidationError):
        return None
    return record if path.stem == record.id and record.boot_id != boot_id() else None


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def dump(record: Record) -> dict[str, Any]:
    """For `lark-agent status --json`."""
    return record.model_dump(mode="json", exclude={"spec": {"ad", "slot"}})
