"""From files to validated `Policy` and `Site` values: the only part of `policies` that reads files.

Invariants: a policy is taken whole or refused, with every fault that was found, each by file, line, column, what is
wrong and how to mend it. Every file is regular, read once and bounded in size; what it includes is read before it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from policies import documents, policyfile, sitefile
from policies.documents import MAX_FILE_BYTES, Document, PolicyError, Problem
from policies.model import Place, Policy, Site
from policies.sitefile import check_together

__all__ = [
    "PolicyError",
    "Problem",
    "attributes_read",
    "changed_on_disk",
    "check_together",
    "load_policy",
    "load_site",
    "policy_from_text",
]

MAX_FILES = 64
MAX_INCLUDE_DEPTH = 8


def load_policy(path: Path) -> Policy:
    """Read, validate and return a policy: a file with what it includes, or the `*.yaml` of a directory, sorted.

    Raises PolicyError with every problem found.
    """
    path = Path(path)
    directory = path.is_dir()
    reading = _Reading(path if directory else path.parent)
    if directory:
        for file in _files_of(path):
            reading.read(file, None, ())
    else:
        reading.read(path, None, ())
    if reading.problems:
        raise PolicyError([*reading.problems, *policyfile.faults_of_form(reading.documents)])
    return policyfile.policy(reading.documents, _digest(reading.raw), [str(f) for f in reading.files])


def changed_on_disk(path: Path, policy: Policy) -> str:
    """What of a policy that was read from `path` is another now, in words; empty: nothing. Never raises.

    Looks at bytes alone: whether the files are a policy at all is found out when they are read.
    """
    root = path if path.is_dir() else path.parent
    raw = []
    try:
        if path.is_dir():
            new = {str(file) for file in _files_of(path)} - set(policy.files)
            if new:
                return f"{', '.join(sorted(new))} came since it was read"
        for file in policy.files:
            name = os.path.relpath(file, root)
            raw.append((name, _bytes(Path(file), name, None)))
    except PolicyError as gone:
        return gone.problems[0].message
    return "" if _digest(raw) == policy.digest else "the files have changed since they were read"


def policy_from_text(text: str, file: str = "policy.yaml") -> Policy:
    """The policy that a text means, as `load_policy` would give it. `file`: the name that places carry."""
    raw = text.encode()
    document = documents.parse(file, raw)
    _refuse_empty(document)
    if "include" in document.data:
        place = document.place(("include",))
        raise PolicyError([Problem(place, "a text without a file includes nothing", "load it as a file")])
    return policyfile.policy([document], _digest([(file, raw)]), [file])


def load_site(path: Path) -> Site:
    """Read, validate and return a site file. Raises PolicyError with every problem found."""
    path = Path(path)
    raw = _bytes(path, path.name, None)
    return sitefile.site(documents.parse(path.name, raw), str(path))


def attributes_read(policy: Policy) -> frozenset[str]:
    """Job attributes that the policy reads (lower case): each must be in STARTD_JOB_ATTRS."""
    expressions = [g.condition for g in policy.groups.values()] + [s.name for s in policy.slices]
    expressions += [r.expression for r in policy.rates] + [s.per for s in policy.shares if s.per is not None]
    read = {n for e in expressions for n in e.references if not n.startswith("target.")}
    own = {"user"} if any(not s.site_wide for s in policy.slices) else set()
    return frozenset(read | own | {n.lower() for n in policy.attributes})


def _digest(files: Iterable[tuple[str, bytes]]) -> str:
    """Of one file its SHA-256; of several a SHA-256 over names, lengths and contents, in reading order."""
    several = list(files)
    if len(several) == 1:
        return hashlib.sha256(several[0][1]).hexdigest()
    whole = hashlib.sha256()
    for name, raw in several:
        whole.update(f"{name}\0{len(raw)}\0".encode())
        whole.update(raw)
    return whole.hexdigest()


def _files_of(directory: Path) -> list[Path]:
    """The files of a policy directory. One that is left out by its name would be missed by nobody."""
    start = Place(directory.name, 1, 1)
    try:
        names = sorted(entry.name for entry in directory.iterdir() if not entry.name.startswith("."))
    except OSError as exc:
        message = f"cannot read {directory}: {exc.strerror}"
        raise PolicyError([Problem(start, message, "check path and permissions")]) from exc
    odd = [name for name in names if name.endswith((".yml", ".YAML", ".YML"))]
    if odd:
        fixes = [Problem(Place(name, 1, 1), "files of a policy directory end in .yaml", "rename it") for name in odd]
        raise PolicyError(fixes)
    found = [directory / name for name in names if name.endswith(".yaml")]
    if not found:
        message = f"the directory {directory} has no *.yaml file"
        raise PolicyError([Problem(start, message, "put the policy there, or give the path of a file")])
    return found


def _refuse_empty(document: Document) -> None:
    if not document.data:
        # A file cut short by a full disk must not open the site.
        place = document.place(())
        raise PolicyError([Problem(place, "the file is empty", "write at least `defaults: {…}`, or drop the file")])


def _bytes(path: Path, name: str, asked: Place | None) -> bytes:
    """What a file holds. `asked`: the line that includes it."""
    place = asked or Place(name, 1, 1)
    try:
        # Opened without waiting: a pipe or a device in a file's place must not stop the controller.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise PolicyError([Problem(place, f"{path} is not a file", "give the path of a file")])
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        problem = Problem(place, f"cannot read {path}: {exc.strerror}", "check path and permissions")
        raise PolicyError([problem]) from exc
    except ValueError as exc:  # a name with the character 0
        raise PolicyError([Problem(place, f"{str(path)!r} is no path of a file", "mend the name")]) from exc


@dataclass(slots=True)
class _Reading:
    """One load: files in reading order, each once, however many include it."""

    root: Path
    documents: list[Document] = field(default_factory=list)
    raw: list[tuple[str, bytes]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    _done: set[Path] = field(default_factory=set)

    def read(self, path: Path, asked: Place | None, chain: tuple[Path, ...]) -> None:
        """`asked`: the line that includes it; `chain`: the files on whose behalf it is read."""
        real = Path(os.path.realpath(path))
        if real in chain:
            names = " includes ".join(self._name(p) for p in [*chain[chain.index(real) :], real])
            self._problem(asked, path, f"circular include: {names}", "drop one of these includes")
            return
        if real in self._done:
            return
        self._done.add(real)
        if len(chain) > MAX_INCLUDE_DEPTH:
            self._problem(asked, path, f"includes are nested deeper than {MAX_INCLUDE_DEPTH}", "include it higher up")
            return
        if len(self._done) > MAX_FILES:
            if len(self._done) == MAX_FILES + 1:
                self._problem(asked, path, f"more than {MAX_FILES} files", "join some of them")
            return
        try:
            name = self._name(path)
            raw = _bytes(path, name, asked)
            document = documents.parse(name, raw)
            _refuse_empty(document)
        except PolicyError as exc:
            self.problems.extend(exc.problems)
            return
        self._follow(document, path, (*chain, real))
        self.documents.append(document)
        self.raw.append((name, raw))
        self.files.append(path)

    def _follow(self, document: Document, path: Path, chain: tuple[Path, ...]) -> None:
        wanted = document.data.get("include", [])
        if not isinstance(wanted, list):
            place = document.place(("include",))
            shown = f"[{wanted}]" if isinstance(wanted, str) else "[groups.yaml]"
            self.problems.append(Problem(place, "`include`: a list is expected", f"write {shown}"))
            return
        for position, item in enumerate(wanted):
            place = document.place(("include", position))
            if not isinstance(item, str) or not item:
                self.problems.append(Problem(place, "`include`: the name of a file is expected", "write [groups.yaml]"))
            else:
                self.read(path.parent / item, place, chain)

    def _name(self, path: Path) -> str:
        """How messages name a file: as seen from the policy that was asked for."""
        return os.path.relpath(path, self.root)

    def _problem(self, asked: Place | None, path: Path, message: str, fix: str) -> None:
        self.problems.append(Problem(asked or Place(self._name(path), 1, 1), message, fix))
