"""Where the helper's file capability cannot be used: the job's own namespace is looked at, held, and plugged.

The administrator's word in the root-owned LIBEXEC/lark-attach chooses, for the whole node:

  capability   the helper enters the attempt's namespace (this module is not used)
  userns       the helper made a user namespace and a network namespace in it, and waits for the lane
  starter      HTCondor's starter (25 and later, NO_JOB_NETWORKING) made the network namespace; the helper waits in it

Invariants: a namespace is held by a descriptor before anything is asked of it, and every question is put to that
descriptor. It is neither the host's nor the starter's, has no name on this machine (all attempts' have), belongs to
whom the mode says, holds nobody but the helper, and has no device that is up. Whoever owns a user namespace may enter
it with every capability, so `userns` is for nodes whose administrator declared that processes of the same uid cannot
see each other; policy lies on the host's end of the lane in any case.
"""

from __future__ import annotations

import ctypes
import enum
import fcntl
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from ovs_agent import netlink, trust

NS_GET_USERNS, NS_GET_PARENT, NS_GET_NSTYPE, NS_GET_OWNER_UID = 0xB701, 0xB702, 0xB703, 0xB704


class Mode(enum.StrEnum):
    CAPABILITY = "capability"
    USERNS = "userns"
    STARTER = "starter"


def mode_of(libexec: Path) -> Mode:
    """The administrator's word; `capability` if there is none. Raises Refused if it cannot be believed."""
    path = libexec / "lark-attach"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return Mode.CAPABILITY
    except OSError as e:
        raise trust.Refused(f"{path} cannot be read: {e.strerror}") from None
    try:
        info = os.fstat(fd)
        word = os.read(fd, 64).decode(errors="replace").strip()
    finally:
        os.close(fd)
    if not stat.S_ISREG(info.st_mode) or info.st_uid != 0 or info.st_mode & 0o022:
        raise trust.Refused(f"{path} must be a file of root, writable by nobody else")
    try:
        return Mode(word)
    except ValueError:
        raise trust.Refused(f"{path} says {word!r}, which is none of: {', '.join(Mode)}") from None


def trouble(mode: Mode, siblings_hidden: bool) -> str:
    """Why jobs cannot be attached on this node; empty if they can."""
    if mode is Mode.USERNS and not siblings_hidden:
        return (
            "lark-attach says userns, but agent.yaml does not say fallback.siblings-hidden: true; it may only where "
            "each slot has a user of its own, or where PID namespaces hide jobs of the same user from each other"
        )
    return ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the kernel says of a caller and of the namespace it is in. Numbers are inodes of namespaces."""

    network: int
    owner: int
    """The user namespace that owns the network namespace."""
    owner_uid: int
    """Whose that user namespace is."""
    owner_parent: int
    """The user namespace around it; 0 for the machine's own."""
    user: int
    """The user namespace the caller is in."""
    inside: tuple[int, ...]
    """Every process in the network namespace."""
    devices_up: tuple[str, ...]


def judge(
    facts: Facts, *, mode: Mode, pid: int, uid: int, here: frozenset[int], named: dict[int, str], agent_user: int
) -> None:
    """Raise Refused unless this namespace may become the attempt's. Pure. `here`: networks of host and starter;
    `named`: namespaces that have a name on this machine; `agent_user`: the agent's own user namespace."""
    if facts.network in here:
        raise trust.Refused(
            "the caller is in the host's own network"
            + ("; is NO_JOB_NETWORKING = True set, and WantJobNetworking false?" if mode is Mode.STARTER else "")
        )
    if facts.network in named:
        raise trust.Refused(f"the caller is in {named[facts.network]}, which is not its own to bring")
    if mode is Mode.STARTER:
        if facts.owner != agent_user or facts.user != agent_user:
            raise trust.Refused(
                "the caller's network belongs to a user namespace, so HTCondor's starter did not make it"
            )
    elif mode is Mode.USERNS:
        if facts.owner == agent_user or facts.owner != facts.user:
            raise trust.Refused("the caller's network does not belong to the user namespace that the caller is in")
        if facts.owner_uid != uid or facts.owner_parent != agent_user:
            raise trust.Refused("the caller's user namespace is not one that its own uid made on this machine")
    else:
        raise trust.Refused("this node does not attach jobs' own networks (lark-attach)")
    others = [p for p in facts.inside if p != pid]
    if others or pid not in facts.inside:
        raise trust.Refused(f"the caller is not alone in its network: {', '.join(map(str, others)) or 'nor in it'}")
    if facts.devices_up:
        raise trust.Refused(f"the caller's network is not empty: {', '.join(facts.devices_up)}")


def hold_namespace(peer: trust.Peer, caller: trust.Caller, mode: Mode, helper: Path) -> int:
    """A descriptor of the caller's network namespace, when it may become its attempt's. Blocks (netlink, /proc)."""
    fd = _open(peer, "net")
    try:
        judge(
            _facts(peer, fd),
            mode=mode,
            pid=peer.pid,
            uid=peer.uid,
            here=frozenset({_inode("/proc/self/ns/net"), _inode(f"/proc/{caller.starter_pid}/ns/net")}),
            named={inode: name for name in netlink.namespaces("") if (inode := netlink.namespace_inode(name))},
            agent_user=_inode("/proc/self/ns/user"),
        )
        check_again(peer, fd, helper)
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_again(peer: trust.Peer, fd: int, helper: Path) -> None:
    """The same process still is our helper, untraced, in the namespace we hold. Raises Refused."""
    if trust.status(peer.pid).tracer or not trust.is_program(peer.pid, helper):
        raise trust.Refused("the caller has changed while it was looked at")
    if _inode(f"/proc/{peer.pid}/ns/net") != os.fstat(fd).st_ino or not trust.alive(peer.pidfd):
        raise trust.Refused("the caller has ended, or left its network, while it was looked at")


def _open(peer: trust.Peer, kind: str) -> int:
    try:
        fd = os.open(f"/proc/{peer.pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        raise trust.Refused(f"process {peer.pid} is gone") from None
    if not trust.alive(peer.pidfd):  # else the pid may be another's by now
        os.close(fd)
        raise trust.Refused(f"process {peer.pid} is gone")
    return fd


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        raise trust.Refused(f"{path} is gone") from None


def _facts(peer: trust.Peer, fd: int) -> Facts:
    user = _open(peer, "user")
    owner = -1
    try:
        owner = fcntl.ioctl(fd, NS_GET_USERNS)
        uid = ctypes.create_string_buffer(struct.pack("I", 0))
        fcntl.ioctl(owner, NS_GET_OWNER_UID, uid)
        return Facts(
            network=os.fstat(fd).st_ino,
            owner=os.fstat(owner).st_ino,
            owner_uid=struct.unpack("I", uid.raw[:4])[0],
            owner_parent=_parent(owner),
            user=os.fstat(user).st_ino,
            inside=tuple(netlink.pids_in(os.fstat(fd).st_ino)),
            devices_up=tuple(netlink.devices_up(fd)),
        )
    except OSError as e:
        raise trust.Refused(f"the caller's namespaces cannot be looked at: {e.strerror}") from None
    finally:
        for held in (user, owner):
            if held >= 0:
                os.close(held)


def _parent(user: int) -> int:
    try:
        parent = fcntl.ioctl(user, NS_GET_PARENT)
    except PermissionError:
        return 0  # the machine's own user namespace, or one we are in ourselves
    try:
        return os.fstat(parent).st_ino
    finally:
        os.close(parent)
