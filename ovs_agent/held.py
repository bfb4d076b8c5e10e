"""Network namespaces that a process keeps alive by its descriptors: a listener or a connection that was forgotten in a
job's network keeps the whole of it in the kernel, with nothing in /run/netns or /proc/PID/ns to show for it.

Invariant: the process is only looked at: each socket is duplicated, asked for its namespace, and closed.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os

SYS_PIDFD_GETFD = 438
SIOCGSKNS = 0x894C
_libc = ctypes.CDLL(None, use_errno=True)


def namespaces_of(pid: int) -> dict[int, list[str]]:
    """Inodes of network namespaces, each with the descriptors of the process that keep it. Raises OSError."""
    found: dict[int, list[str]] = {}
    pidfd = os.pidfd_open(pid)
    try:
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):  # closed while we looked
                kind = os.readlink(f"/proc/{pid}/fd/{number}")
                if kind.startswith("net:["):
                    inode: int | None = int(kind[5:-1])
                elif kind.startswith("socket:["):
                    inode = _network_of_socket(pidfd, int(number))
                else:
                    continue
                if inode is not None:
                    found.setdefault(inode, []).append(f"descriptor {number} ({kind}) of process {pid}")
    finally:
        os.close(pidfd)
    return found


def _network_of_socket(pidfd: int, number: int) -> int | None:
    copy = _libc.syscall(SYS_PIDFD_GETFD, pidfd, number, 0)
    if copy < 0:
        return None
    try:
        network = fcntl.ioctl(copy, SIOCGSKNS)
    finally:
        os.close(copy)
    try:
        return os.fstat(network).st_ino
    finally:
        os.close(network)
