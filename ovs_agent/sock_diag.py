"""The TCP ports that somebody listens on, asked of the kernel by sock_diag(7).

/proc/net/tcp says it too, but walks the table of all connections for it: milliseconds on a host with a large one, twice
for each job. Here only listening sockets are walked.

Invariant: what is told is of the calling thread's network namespace.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY = 4, 20
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
TCP_LISTEN = 10
ANSWER = 256 * 1024
PATIENCE = 5.0
_HEADER, _SOCKET = struct.Struct("=IHHII"), struct.Struct("=BBBB2s2s16s16sIIIIIIII")


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    address: str
    port: int


def listeners() -> list[tuple[Endpoint, int]]:
    """Listening TCP sockets, each with its inode. Raises OSError where the kernel cannot be asked."""
    found: list[tuple[Endpoint, int]] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG) as s:
        s.settimeout(PATIENCE)
        for family in (socket.AF_INET, socket.AF_INET6):
            s.send(request(family))
            more = True
            while more:
                part, more = parse(s.recv(ANSWER))
                found += part
    return found


def request(family: int) -> bytes:
    body = struct.pack("=BBBBI48x", family, socket.IPPROTO_TCP, 0, 0, 1 << TCP_LISTEN)
    return _HEADER.pack(_HEADER.size + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + body


def parse(data: bytes) -> tuple[list[tuple[Endpoint, int]], bool]:
    """The sockets of one answer, and whether more answers follow. Raises OSError when it is an error."""
    found: list[tuple[Endpoint, int]] = []
    for kind, body in _messages(data):
        if kind == NLMSG_DONE:
            return found, False
        if kind == NLMSG_ERROR:
            code = -struct.unpack_from("=i", body)[0]
            raise OSError(code, "the kernel does not tell its sockets")
        if kind == SOCK_DIAG_BY_FAMILY and len(body) >= _SOCKET.size:
            family, state, _, _, port, _, source, _, *_, inode = _SOCKET.unpack_from(body)
            if state == TCP_LISTEN:
                packed = source[:4] if family == socket.AF_INET else source
                endpoint = Endpoint(str(ipaddress.ip_address(packed)), int.from_bytes(port, "big"))
                found.append((endpoint, inode))
    return found, True


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(data):
        size, kind, *_ = _HEADER.unpack_from(data, at)
        yield kind, data[at + _HEADER.size : at + size]
        at += max(_HEADER.size, (size + 3) & ~3)
