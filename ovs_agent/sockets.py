"""The open connections of a job, as the kernel's sockets in the job's network tell them (NETLINK_SOCK_DIAG).

Sockets, and not what the switch remembers: the switch follows no TCP connection that its stateless flows let pass, and
sockets are there on either datapath. Seen are TCP connections that are established or closing, and UDP sockets that are
connected; a UDP socket that sends to whom it likes names no peer, and is not seen.

Invariants: the netlink socket is closed before the answer, because an open one would keep the namespace alive. A job
decides how many sockets there are: they are read up to a bound.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import struct
from dataclasses import dataclass
from typing import Literal

from ovs_agent import netlink, sock_diag
from ovs_agent.netlink import NetworkError

_STATES = sum(1 << state for state in (1, 4, 5, 8, 9, 11))
"""Established, fin-wait 1 and 2, close-wait, last-ack, closing. A connected UDP socket counts as established."""
_ADDRESSES = struct.Struct("!HH16s16s")
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


def _forsaken(body: bytes) -> bool:
    """Closed by the job, and by its peer not yet: a minute long the kernel keeps it, and nothing passes any more."""
    return body[1] == _FIN_WAIT_2 and sock_diag.MESSAGE.unpack_from(body)[-1] == 0


def _here(own: frozenset[str]) -> Seen:
    """Connections of the calling thread's namespace whose local address is one of `own`."""
    found: set[Connection] = set()
    whole = True
    for protocol, number in _PROTOCOLS:
        for family in (socket.AF_INET, socket.AF_INET6):
            told = sock_diag.dump(number, family, _STATES, PATIENCE)
            with contextlib.closing(told):
                for count, body in enumerate(told, 1):
                    if count > MAX_SOCKETS:
                        whole = False
                        break
                    if _forsaken(body):
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
        if e.errno == errno.ENOENT:
            message = "this kernel does not list sockets; load the modules tcp_diag and udp_diag"
            raise NetworkError(message, namespace) from None
        raise NetworkError(f"its sockets cannot be listed: {e.strerror or e}", namespace) from None
    finally:
        os.close(fd)
