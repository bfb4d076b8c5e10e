"""condor_chirp from inside a job's network: a relay to the starter's own loopback port.

Invariants: only listening TCP sockets that the job's very starter holds are relayed, and that is checked again for
every connection (the starter may have closed the port, and somebody else taken it). Few connections at a time, and few
a second: further ones wait in the kernel, where they cost the agent nothing. Idle ones are closed, all of them with the
attempt. The listener's socket is made inside the namespace; the connection to the starter is made on the host.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable

from ovs_agent import netlink, sock_diag
from ovs_agent.bucket import Bucket
from ovs_agent.sock_diag import Endpoint

log = logging.getLogger(__name__)
MAX_CONNECTIONS = 16
CONNECT_BURST, CONNECTS_PER_SECOND = 40, 20.0
IDLE = 600.0
"""Seconds without a byte in either direction after which a connection is closed."""
LOG_BURST, LOG_PER_SECOND = 20, 2.0
"""Log lines that one attempt may cause here."""
CHUNK = 64 * 1024
LISTEN = "0A"


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
            link = os.readlink(f"/proc/{pid}/fd/{fd}")
            if link.startswith("socket:["):
                inodes.add(int(link[8:-1]))
    return inodes


def listeners_of(pid: int) -> list[Endpoint]:
    """The loopback TCP ports a process listens on. Its ports on other addresses are no business of a job."""
    try:
        inodes = _socket_inodes(pid)
        try:
            found = sock_diag.listeners(inodes)
        except OSError:  # a kernel without tcp_diag
            found = []
            for name in ("tcp", "tcp6"):
                with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/net/{name}") as f:
                    found += parse_listeners(f.read(), inodes)
    except (FileNotFoundError, ProcessLookupError):
        return []
    return sorted(e for e in found if _relayable(e.address))


def _relayable(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


class Relays:
    """The relays of one attempt."""

    def __init__(self, attempt: str, starter: int) -> None:
        self._attempt = attempt
        self._starter = starter
        self._listeners: dict[Endpoint, asyncio.Task[None]] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._places = asyncio.Semaphore(MAX_CONNECTIONS)
        now = time.monotonic()
        self._connects = Bucket(CONNECT_BURST, CONNECTS_PER_SECOND, now)
        self._lines = Bucket(LOG_BURST, LOG_PER_SECOND, now)

    @property
    def there(self) -> bool:
        """Something of the starter's is relayed."""
        return bool(self._listeners)

    async def open(self, namespace: str) -> list[Endpoint]:
        """Listen inside the namespace on every port of the starter that is not relayed yet."""
        for endpoint in listeners_of(self._starter):  # a fraction of a millisecond: a thread would cost more
            if endpoint in self._listeners:
                continue
            try:
                listener = await netlink.in_thread(functools.partial(_listener_inside, namespace, endpoint))
            except OSError as e:
                self._say("chirp port cannot be relayed: attempt=%s port=%s: %s", endpoint.port, e.strerror)
                continue
            self._listeners[endpoint] = asyncio.create_task(self._accept(endpoint, listener))
            log.info("chirp relay: attempt=%s port=%s:%d", self._attempt, endpoint.address, endpoint.port)
        return sorted(self._listeners)

    async def _accept(self, endpoint: Endpoint, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                while not self._connects.take(time.monotonic()):
                    await asyncio.sleep(1 / CONNECTS_PER_SECOND)
                try:
                    connection, _ = await loop.sock_accept(listener)
                except OSError:  # out of descriptors: let some close
                    await asyncio.sleep(0.1)
                    continue
                try:
                    if self._places.locked():
                        self._say("chirp relay: attempt=%s has %d connections; further ones wait", MAX_CONNECTIONS)
                    await self._places.acquire()
                except asyncio.CancelledError:
                    connection.close()
                    raise
                task = asyncio.create_task(self._relay(endpoint, connection))
                self._connections.add(task)
                task.add_done_callback(functools.partial(self._ended, connection))

    def _ended(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        """Also of a relay that was cancelled before its first step."""
        self._connections.discard(task)
        self._places.release()
        connection.close()
        if not task.cancelled() and task.exception() is not None:
            self._say("chirp relay failed: attempt=%s: %s", repr(task.exception()))

    async def _relay(self, to: Endpoint, connection: socket.socket) -> None:
        if to not in await asyncio.to_thread(listeners_of, self._starter):
            return
        writers: list[asyncio.StreamWriter] = []
        loop = asyncio.get_running_loop()
        try:
            reader, writer = await asyncio.open_connection(sock=connection, limit=CHUNK)
            writers.append(writer)
            async with asyncio.timeout(5):
                up_reader, up_writer = await asyncio.open_connection(to.address, to.port, limit=CHUNK)
            writers.append(up_writer)
            async with asyncio.timeout(IDLE) as idle:

                def alive() -> None:
                    idle.reschedule(loop.time() + IDLE)

                async with asyncio.TaskGroup() as group:
                    group.create_task(_pump(reader, up_writer, alive))
                    group.create_task(_pump(up_reader, writer, alive))
                for each in writers:
                    each.close()
                    await each.wait_closed()
        except* (OSError, TimeoutError):
            pass
        finally:
            for each in writers:
                each.transport.abort()  # what the other side does not take is not kept for it

    def _say(self, text: str, *values: object) -> None:
        """One log line about this attempt, of those it may cause."""
        if self._lines.take(time.monotonic()):
            if self._lines.dropped:
                log.warning("%d log lines about chirp of attempt=%s were left out", self._lines.dropped, self._attempt)
                self._lines.dropped = 0
            log.warning(text, self._attempt, *values)

    async def close(self) -> None:
        ending = [*self._listeners.values(), *self._connections]
        self._listeners.clear()
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, alive: Callable[[], None]) -> None:
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
        alive()
    if writer.can_write_eof():
        with contextlib.suppress(OSError):
            writer.write_eof()


def _listener_inside(namespace: str, endpoint: Endpoint) -> socket.socket:
    """Only for a thread that dies afterwards."""
    fd = netlink.open_namespace(namespace)
    try:
        netlink.enter_namespace(fd)
        return _listen(endpoint)
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
