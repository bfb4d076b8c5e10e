"""Table 0 of many bridges of one Open vSwitch, written at once and with next to no work: the rig's agents' part.

On a site each node's agent writes that of its own bridge, on cores of its own. So many commands at once would keep the
one switch that all bridges share here, and the controller, from the processor that they are measured on.

Invariant: every flow is confirmed when `write` returns.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mininet_tests.site.namespaces import SiteError
from ryu_apps.openflow import encode
from ryu_apps.openflow.flows import Flow

HELLO = struct.pack("!BBHI", 5, 0, 8, 1)
BARRIER_REPLY = 21
LAST = 0xFFFF
"""The transaction of the barrier."""


def write(run: Path, flows: Mapping[str, Sequence[Flow]], seconds: float = 15) -> None:
    """Write these flows to bridges whose sockets are in the directory `run`, or are going to be. Raises SiteError."""
    deadline = time.monotonic() + seconds
    connections: list[tuple[str, socket.socket]] = []
    try:
        for bridge, wanted in flows.items():
            connection = _reach(run / f"{bridge}.mgmt", deadline)
            connections.append((bridge, connection))
            sent = [encode.add_flow(flow, xid) for xid, flow in enumerate(wanted, 2)]
            connection.sendall(b"".join([HELLO, *sent, encode.barrier(LAST)]))
        for bridge, connection in connections:
            _until_confirmed(bridge, connection)
    finally:
        for _, connection in connections:
            connection.close()


def _reach(path: Path, deadline: float) -> socket.socket:
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(max(0.1, deadline - time.monotonic()))
        try:
            connection.connect(str(path))
            return connection
        except OSError as problem:
            connection.close()
            if time.monotonic() > deadline:
                raise SiteError(f"{path}: {problem}") from problem
        time.sleep(0.01)


def _until_confirmed(bridge: str, connection: socket.socket) -> None:
    with connection.makefile("rb") as said:
        while True:
            header = said.read(8)
            if len(header) < 8:
                raise SiteError(f"{bridge} has ended the connection that was to write its table 0")
            version, kind, length, xid = struct.unpack("!BBHI", header)
            body = said.read(length - 8)
            if kind == 1:
                raise SiteError(
                    f"{bridge} refused its table 0: OpenFlow version {version}, {header.hex()} {body.hex()}"
                )
            if kind == BARRIER_REPLY and xid == LAST:
                return
