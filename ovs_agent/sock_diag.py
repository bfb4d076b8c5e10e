"""Sockets, asked of the kernel by sock_diag(7): who listens (TCP), and the framing for other questions.

/proc/net/tcp says it too, but walks the table of all connections for it: milliseconds on a host with a large one, twice
for each job. Here only sockets in the states asked for are walked.

Invariants: what is told is of the calling thread's network namespace; answers are read as bytes, never as objects of a
library, because a job decides how many sockets there are.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
from collections.abc import Container, Generator
from dataclasses import dataclass

NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY = 4, 20
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
TCP_LISTEN = 10
ANSWER = 256 * 1024
PATIENCE = 5.0
MESSAGE = struct.Struct("=BBBB2s2s16s16sIIIIIIII")
"""struct inet_diag_msg: family, state, timer, retransmits, ports and addresses of both ends (big-endian), …, inode."""
_HEADER = struct.Struct("=IHHII")


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    address: str
    port: int


def listeners(inodes: Container[int]) -> list[Endpoint]:
    """Listening TCP sockets, of those with these inodes. Raises OSError where the kernel cannot be asked."""
    found: list[Endpoint] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        for body in dump(socket.IPPROTO_TCP, family, 1 << TCP_LISTEN, PATIENCE):
            _, _, _, _, port, _, source, _, *_, inode = MESSAGE.unpack_from(body)
            if inode in inodes:
                address = ipaddress.ip_address(source[:4] if family == socket.AF_INET else source)
                found.append(Endpoint(str(address), int.from_bytes(port, "big")))
    return found


def dump(protocol: int, family: int, states: int, patience: float) -> Generator[bytes, None, None]:
    """What the kernel has of sockets in these states (a bit each), as MESSAGE and what may follow it.

    `patience`: seconds for each part of the answer. Raises OSError. The netlink socket closes with the iterator.
    """
    with contextlib.closing(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)) as asked:
        asked.settimeout(patience)
        body = struct.pack("=BBBBI48x", family, protocol, 0, 0, states)
        kind, flags = SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP
        asked.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)
        more = True
        while more:
            part, more = parse(asked.recv(ANSWER))
            yield from part


def parse(data: bytes) -> tuple[list[bytes], bool]:
    """The sockets of one part of an answer, and whether more parts follow. Raises OSError when it is an error."""
    found: list[bytes] = []
    at = 0
    while at + _HEADER.size <= len(data):
        size, kind, *_ = _HEADER.unpack_from(data, at)
        body = data[at + _HEADER.size : at + size]
        if kind == NLMSG_DONE:
            return found, False
        if kind == NLMSG_ERROR:
            code = -struct.unpack_from("=i", body)[0]
            raise OSError(code, f"the kernel does not tell its sockets: {os.strerror(code)}")
        if kind == SOCK_DIAG_BY_FAMILY and len(body) >= MESSAGE.size:
            found.append(body)
        at += max(_HEADER.size, (size + 3) & ~3)
    return found, True
