"""condor_chirp from inside a job's network: a relay to the starter's own loopback port.

Invariants: only listening TCP sockets that the job's very starter holds are relayed, and that is checked again for
every connection (the starter may have closed the port, and somebody else taken it). Few connections at a time, closed
with the attempt. The listener's socket is made inside the namespace; the connection to the starter is made on the host.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import logging
import os
import re
import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from ovs_agent import netlink

log = logging.getLogger(__name__)
MAX_CONNECTIONS = 16
CHUNK = 64 * 1024
LISTEN = "0A"


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    address: str
    port: int


def _address(text: str) -> str:
    """An address as /proc/net/tcp writes it: 32-bit words in the machine's own byte order."""
    words = [bytes.fromhex(text[i : i + 8]) for i in range(0, len(text), 8)]
    if sys.byteorder == "little":
        words = [word[::-1] for word in words]
    return str(ipaddress.ip_address(b"".join(words)))


def parse_listeners(table: str, inodes: Iterable[int]) -> list[Endpoint]:
    """Listening sockets of /proc/PID/net/tcp or tcp6 whose inode is one of `inodes`."""
    wanted = set(inodes)
    found = []
    for line in table.splitlines()[1:]:
        words = line.split()
        if len(words) > 9 and words[3] == LISTEN and int(words[9]) in wanted:
            address, _, port = words[1].partition(":")
            found.append(Endpoint(_address(address), int(port, 16)))
    return sorted(found)


def _socket_inodes(pid: int) -> set[int]:
    inodes = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{fd}"))
            if found:
                inodes.add(int(found[1]))
    return inodes


def listeners_of(pid: int) -> list[Endpoint]:
    """The loopback TCP ports a process listens on. Its ports on other addresses are no business of a job."""
    try:
        inodes = _socket_inodes(pid)
        found: list[Endpoint] = []
        for name in ("tcp", "tcp6"):
            with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/net/{name}") as f:
                found += parse_listeners(f.read(), inodes)
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [e for e in found if _relayable(e.address)]


def _relayable(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


class Relays:
    """The relays of one attempt."""

    def __init__(self, attempt: str, starter: int) -> None:
        self._attempt = attempt
        self._starter = starter
        self._servers: dict[Endpoint, asyncio.Server] = {}
        self._connections: set[asyncio.Task[None]] = set()

    async def open(self, namespace: str) -> list[Endpoint]:
        """Listen inside the namespace on every port of the starter that is not relayed yet."""
        wanted = await asyncio.to_thread(listeners_of, self._starter)
        for endpoint in wanted:
            if endpoint in self._servers:
                continue
            try:
                listener = await netlink.in_thread(functools.partial(_listener_inside, namespace, endpoint))
            except OSError as e:
                log.warning(
                    "chirp port cannot be relayed: attempt=%s port=%s: %s", self._attempt, endpoint.port, e.strerror
                )
                continue

            async def serve(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, endpoint: Endpoint = endpoint
            ) -> None:
                task = asyncio.current_task()
                assert task is not None
                self._connections.add(task)
                try:
                    await self._relay(endpoint, reader, writer)
                finally:
                    self._connections.discard(task)

            self._servers[endpoint] = await asyncio.start_server(serve, sock=listener, limit=CHUNK)
            log.info("chirp relay: attempt=%s port=%s:%d", self._attempt, endpoint.address, endpoint.port)
        return sorted(self._servers)

    async def _relay(self, to: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if len(self._connections) > MAX_CONNECTIONS:
                log.warning("chirp relay: attempt=%s has %d connections already", self._attempt, MAX_CONNECTIONS)
                return
            if to not in await asyncio.to_thread(listeners_of, self._starter):
                return
            async with asyncio.timeout(5):
                up_reader, up_writer = await asyncio.open_connection(to.address, to.port, limit=CHUNK)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(_pump(reader, up_writer))
                    group.create_task(_pump(up_reader, writer))
            finally:
                up_writer.close()
        except* (OSError, TimeoutError):
            pass
        finally:
            writer.close()

    async def close(self) -> None:
        for server in self._servers.values():
            server.close()
        self._servers.clear()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        with contextlib.suppress(OSError):
            writer.write_eof()


def _listener_inside(namespace: str, endpoint: Endpoint) -> socket.socket:
    fd = netlink.open_namespace(namespace)
    try:
        return netlink.call_in_namespace(fd, lambda: _listen(endpoint))
    finally:
        os.close(fd)


def _listen(endpoint: Endpoint) -> socket.socket:
    address = ipaddress.ip_address(endpoint.address)
    listener = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        if address.version == 6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((endpoint.address, endpoint.port))
        listener.listen(8)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
