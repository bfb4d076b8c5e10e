"""The open connections of a job, as the kernel's sockets in the job's network tell them (NETLINK_SOCK_DIAG).

Sockets, and not what the switch remembers: the switch follows no TCP connection that its stateless flows let pass, and
sockets are there on either datapath. Seen are TCP connections that are established or closing, and UDP sockets that are
connected; a UDP socket that sends to whom it likes names no peer, and is not seen.

Invariants: the netlink socket is closed before the answer, because an open one would keep the namespace alive. A job
decides how many sockets there are, so that answers are read as bytes, up to a bound, and never as objects of a library.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ovs_agent import netlink
from ovs_agent.netlink import NetworkError

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
_STATES = sum(1 << state for state in (1, 4, 5, 8, 9, 11))
"""Established, fin-wait 1 and 2, close-wait, last-ack, closing. A connected UDP socket counts as established."""
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBBI48x")
_ADDRESSES = struct.Struct("!HH16s16s")
_MESSAGE, _INODE_AT = 72, 68
_FIN_WAIT_2 = 5
MAX_SOCKETS = 4096
"""Read of one kind (TCP or UDP, IPv4 or IPv6) at one look."""
PATIENCE = 2.0
_PROTOCOLS: tuple[tuple[Literal["tcp", "udp"], int], ...] = (("tcp", socket.IPPROTO_TCP), ("udp", socket.IPPROTO_UDP))


@dataclass(frozen=True, slots=True, order=True)
class Connection:
    """Seen from the job: its own end first."""

    protocol: Literal["tcp", "udp"]
    address: str
    port: int
    peer: str
    peer_port: int


@dataclass(frozen=True, slots=True)
class Seen:
    connections: frozenset[Connection]
    whole: bool
    """False: there are more sockets than are read."""


def _address(family: int, packed: bytes) -> str:
    if family == socket.AF_INET:
        return str(ipaddress.IPv4Address(packed[:4]))
    address = ipaddress.IPv6Address(packed)
    return str(address.ipv4_mapped or address)  # an IPv6 socket that speaks IPv4


def _messages(asked: socket.socket) -> Iterator[bytes]:
    """Bodies of the answers to a dump, until its end."""
    while True:
        data = asked.recv(1 << 16)
        at = 0
        while at + _HEADER.size <= len(data):
            length, kind, *_ = _HEADER.unpack_from(data, at)
            body = data[at + _HEADER.size : at + length]
            if kind == NLMSG_DONE:
                return
            if kind == NLMSG_ERROR:
                code = -struct.unpack_from("=i", body)[0]
                if code == errno.ENOENT:
                    raise NetworkError("this kernel does not list sockets; load the modules tcp_diag and udp_diag")
                raise NetworkError(f"sockets cannot be listed: {os.strerror(code)}")
            yield body
            at += max(_HEADER.size, length + 3 & ~3)


def _forsaken(body: bytes) -> bool:
    """Closed by the job, and by its peer not yet: a minute long the kernel keeps it, and nothing passes any more."""
    return body[1] == _FIN_WAIT_2 and body[_INODE_AT:_MESSAGE] == bytes(4)


def _here(own: frozenset[str]) -> Seen:
    """Connections of the calling thread's namespace whose local address is one of `own`."""
    found: set[Connection] = set()
    whole = True
    for protocol, number in _PROTOCOLS:
        for family in (socket.AF_INET, socket.AF_INET6):
            with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_SOCK_DIAG) as asked:
                asked.settimeout(PATIENCE)
                request = _REQUEST.pack(family, number, 0, 0, _STATES)
                size = _HEADER.size + len(request)
                asked.send(_HEADER.pack(size, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + request)
                for count, body in enumerate(_messages(asked), 1):
                    if count > MAX_SOCKETS:
                        whole = False
                        break
                    if len(body) < _MESSAGE or _forsaken(body):
                        continue
                    port, peer_port, address, peer = _ADDRESSES.unpack_from(body, 4)
                    here, there = _address(family, address), _address(family, peer)
                    if here in own and there not in own and port and peer_port:
                        found.add(Connection(protocol, here, port, there, peer_port))
    return Seen(frozenset(found), whole)


def connections(namespace: str, own: frozenset[str]) -> Seen:
    """What a named namespace has open from the addresses `own`. Blocks. Raises NetworkError."""
    fd = netlink.open_namespace(namespace)
    try:
        return netlink.call_in_namespace(fd, lambda: _here(own))
    except OSError as e:
        raise NetworkError(f"its sockets cannot be listed: {e.strerror or e}", namespace) from None
    finally:
        os.close(fd)
