"""Who is calling: decided from what the kernel says of the peer, never from what the peer says.

A caller is believed when
  * its executable *is* one of our installed helpers (same device and inode), and nobody traces it;
  * its parent is the configured condor_starter with real uid 0 (for a plugin: possibly one forked starter in between);
  * the starter's parent is the configured condor_startd with real uid 0;
  * the starter's own command line names a slot.
What waits for the job (`exited`) may run a helper that an upgrade has replaced since: there the attempt knows it, by
the pid and start time with which it entered (`attempts`).
Code of the owner may be a child of a starter too. What it can gain by running a helper itself is bounded by `life`:
`begin` is spent before any code of the owner runs, `enter job` gives a job the namespace it is in already, `exited`
brings counts only, and `stage-out` waits until the job is dead.

Every process is held by a pidfd before anything is read about it, and must still be alive, with the same parent, after
everything was read: a pid that was recycled in between cannot lend its new owner the old one's name.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import select
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ovs_agent.life import Request

SO_PEERPIDFD = 77
"""Linux 6.5 and later; not named by Python 3.11."""
SLOT_PATTERN = re.compile(r"slot[0-9]{1,6}(_[0-9]{1,6})?(@[A-Za-z0-9._-]{1,64})?")
STATUS = re.compile(rb"\nPPid:\t(\d+)\nTracerPid:\t(\d+)\nUid:\t(\d+)\t(\d+)\t")
"""Parent, tracer, real and effective uid: lines of every kernel of this century, in this order."""
STARTER = "condor_starter"
STARTD = "condor_startd"
MAX_CMDLINE = 64 * 1024
MAX_ENVIRON = 1024 * 1024


class Refused(Exception):
    """The caller is not who may ask this. The text goes to the log and to the caller."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a connection. Owns `pidfd`."""

    pid: int
    uid: int
    gid: int
    pidfd: int


@dataclass(frozen=True, slots=True)
class Status:
    """What /proc says of a process."""

    ppid: int
    tracer: int
    real_uid: int
    effective_uid: int


@dataclass(frozen=True, slots=True)
class Caller:
    """A believed caller. Owns `starter_pidfd`."""

    pid: int
    uid: int
    slot: str
    starter_pid: int
    starter_start: int
    starter_pidfd: int
    startd_pid: int
    startd_address: str
    """Where HTCondor says the starter's parent listens, of who begins; empty if it does not say."""


@dataclass(frozen=True, slots=True)
class Programs:
    """Where the believed programs are installed."""

    hook: Path
    job: Path
    starter: Path
    startd: Path

    @classmethod
    def of(cls, libexec: Path, sbin: Path) -> Programs:
        return cls(libexec / "lark-hook", libexec / "lark-job", sbin / STARTER, sbin / STARTD)

    def problems(self) -> list[str]:
        """What an administrator should mend before trusting this node; `run` refuses to start with any of it."""
        found = []
        for path in (self.hook, self.job, self.starter, self.startd):
            try:
                for place in (path.resolve(strict=True), *path.resolve(strict=True).parents):
                    info = place.stat()
                    if info.st_uid != 0 or (info.st_mode & 0o022 and not info.st_mode & 0o1000):
                        found.append(f"{place}: must belong to root and be writable by nobody else")
            except OSError as e:
                found.append(f"{path}: {e.strerror}; is it installed, and are libexec and condor.sbin right?")
        return found


def peer_of(connection: socket.socket) -> Peer:
    """Credentials and a pidfd of the process that connected. Raises Refused if it is gone already."""
    pid, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    uid &= 0xFFFFFFFF
    if pid <= 0:
        raise Refused("the caller is in a PID namespace that the agent cannot see into")
    try:
        return Peer(pid, uid, gid, connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD))
    except OSError:
        pass  # an older kernel, or the caller is gone: the slow way tells which
    try:
        return Peer(pid, uid, gid, os.pidfd_open(pid))
    except OSError as e:
        raise Refused(f"the caller is gone ({e.strerror})") from None


def alive(pidfd: int) -> bool:
    """Whether the process has not exited (a zombie has)."""
    return all_alive([pidfd])


def all_alive(pidfds: Iterable[int]) -> bool:
    poll = select.poll()
    for pidfd in pidfds:
        poll.register(pidfd, select.POLLIN)
    return not poll.poll(0)


def status(pid: int) -> Status:
    try:
        fd = os.open(f"/proc/{pid}/status", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(fd, 4096)
        finally:
            os.close(fd)
    except OSError:
        raise Refused(f"process {pid} is gone") from None
    # The Name: line comes first and cannot hold a newline, so a process cannot forge the lines below it.
    found = STATUS.search(text)
    if found is None:
        raise Refused(f"/proc/{pid}/status is not written as it is known")
    return Status(*map(int, found.groups()))


def start_time(pid: int) -> int:
    """Clock ticks between boot and the start of a process: with its pid, its name for as long as the machine is up."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            return int(f.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        raise Refused(f"process {pid} is gone") from None


def is_program(pid: int, path: Path, *, replaced_ok: bool = False) -> bool:
    """Whether a process runs this very file. `replaced_ok`: or a file that was at this path until an upgrade took its
    place; only for processes of real uid 0, because a path (unlike an inode) can be imitated in a mount namespace."""
    link = f"/proc/{pid}/exe"
    try:
        running = os.stat(link)
        installed = path.stat()
    except OSError:
        return False
    if (running.st_dev, running.st_ino) == (installed.st_dev, installed.st_ino):
        return True
    if replaced_ok:
        with contextlib.suppress(OSError):
            return os.readlink(link) == f"{path.resolve()} (deleted)"
    return False


def exe_name(pid: int) -> str:
    """For the log only."""
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return "?"


def slot_of(pid: int) -> str | None:
    """The slot in a starter's command line (`-a slot1_1`)."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            words = f.read(MAX_CMDLINE).decode(errors="replace").split("\0")
    except OSError:
        return None
    for word, following in itertools.pairwise(words):
        if word == "-a" and SLOT_PATTERN.fullmatch(following):
            return following
    return None


def startd_address_of(pid: int) -> str:
    """The address of the daemon that started a starter, as that daemon wrote it into the starter's environment."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as f:
            variables = f.read(MAX_ENVIRON).split(b"\0")
    except OSError:
        return ""
    for variable in variables:
        name, _, value = variable.partition(b"=")
        if name == b"CONDOR_INHERIT":
            words = value.decode(errors="replace").split()
            return words[1] if len(words) > 1 else ""
    return ""


def identify(peer: Peer, request: Request, programs: Programs) -> Caller:
    """The believed caller, or Refused with what is wrong. The caller closes `starter_pidfd`."""
    entering = (Request.ENTER_JOB, Request.ENTER_PLUGIN, Request.ATTACH_JOB)
    helper = programs.job if request in entering else programs.hook
    if peer.uid == 0:
        raise Refused("a job never runs as root")
    known = request is Request.EXITED
    if not known and not is_program(peer.pid, helper):
        raise Refused(f"'{request}' comes from {helper} only")
    me = status(peer.pid)
    if me.tracer:
        raise Refused(f"the caller is being traced by process {me.tracer}")
    if me.real_uid != peer.uid:
        raise Refused("the caller has changed its uid since it connected")
    starter = me.ppid
    fds: list[int] = []
    try:
        starter_fd = _hold(starter, fds)
        if status(peer.pid).ppid != starter:
            raise Refused("the caller's parent has changed")
        above = _daemon(starter, programs.starter, STARTER, "the caller's parent")
        if request is Request.ENTER_PLUGIN and is_program(above.ppid, programs.starter, replaced_ok=True):
            # File transfer runs in a fork of the starter.
            child, starter = starter, above.ppid
            starter_fd = _hold(starter, fds)
            if status(child).ppid != starter:
                raise Refused("the forked starter's parent has changed")
            above = _daemon(starter, programs.starter, STARTER, "the forked starter's parent")
        startd = above.ppid
        _hold(startd, fds)
        if status(starter).ppid != startd:
            raise Refused("the starter's parent has changed")
        _daemon(startd, programs.startd, STARTD, "the starter's parent")
        slot = slot_of(starter)
        if slot is None:
            raise Refused(f"the starter (process {starter}) has no slot in its command line")
        started = start_time(starter)
        address = startd_address_of(starter) if request is Request.BEGIN else ""
        if status(peer.pid).tracer or not (known or is_program(peer.pid, helper)):
            raise Refused("the caller has changed while it was looked at")
        if not all_alive([peer.pidfd, *fds]):
            raise Refused("the caller or a process above it has ended")
        fds.remove(starter_fd)
        return Caller(peer.pid, peer.uid, slot, starter, started, starter_fd, startd, address)
    finally:
        for fd in fds:
            os.close(fd)


def _hold(pid: int, fds: list[int]) -> int:
    if pid <= 1:
        raise Refused("the caller is an orphan: its parent has ended")
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        raise Refused(f"process {pid} is gone") from None
    fds.append(fd)
    return fd


def _daemon(pid: int, path: Path, name: str, who: str) -> Status:
    found = status(pid)
    if found.real_uid != 0:
        raise Refused(f"{who} (process {pid}) is no {name} of this node: its real uid is {found.real_uid}, not 0")
    if not is_program(pid, path, replaced_ok=True):
        raise Refused(f"{who} (process {pid}, {exe_name(pid)}) is not {path}")
    return found
