"""The unix socket: accepts, reads one datagram, finds out who is calling, answers once, closes.

Anyone on the node may connect, so a connection is worth nothing until its first word is there and its caller is
believed: silent ones are dropped after two seconds, and when there are too many of them the oldest of that uid goes
first, so that a job that floods the socket keeps out neither other users nor a helper that speaks at once. Believed
callers, who may wait for the controller, are not counted among these.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from ovs_agent import life, trust
from ovs_agent.attempts import HOLD_NETWORK, Reply, hold, refused
from ovs_agent.bucket import Bucket
from ovs_agent.errors import AgentError
from ovs_agent.life import Request
from ovs_agent.steps import Step, reached

log = logging.getLogger(__name__)
SILENCE = 2.0
MAX_REPLY = 1024
MAX_SILENT_PER_UID = 32
MAX_SILENT = 512
LOG_BURST, LOG_PER_SECOND = 20, 2.0
"""Log lines about one uid: a flood must not fill the disk."""
BACKLOG = 1024
PING = b"LARK1 ping"

Handler = Callable[[Request, trust.Caller, trust.Peer], Awaitable[Reply]]
Readiness = Callable[[trust.Peer], Reply]


def printable(text: str) -> bytes:
    """A reply as it may go out: one line of ASCII, at most 1024 bytes."""
    return "".join(c if " " <= c <= "~" else "?" if c > "~" else " " for c in text).encode()[:MAX_REPLY]


class Server:
    def __init__(self, path: Path, programs: trust.Programs, handler: Handler, readiness: Readiness) -> None:
        self._path = path
        self._programs = programs
        self._handler = handler
        self._readiness = readiness
        self._listener: socket.socket | None = None
        self._silent: dict[int, collections.OrderedDict[socket.socket, asyncio.Task[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._buckets: dict[int, Bucket] = {}
        self._accepting: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Listen. The name appears when the socket is ready. Raises AgentError if an agent is there."""
        self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if self._path.exists():
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
                try:
                    probe.connect(str(self._path))
                except OSError:
                    pass
                else:
                    raise AgentError("another agent serves this socket; stop it first", str(self._path))
        fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            listener.bind(str(fresh))
            os.chmod(fresh, 0o666)
            listener.listen(BACKLOG)
            os.replace(fresh, self._path)
        except OSError as e:
            listener.close()
            raise AgentError(f"cannot listen: {e.strerror}", str(self._path)) from None
        self._listener = listener

    def start(self) -> None:
        self._accepting = asyncio.create_task(self._accept())

    async def close(self) -> None:
        """Stop accepting; whoever still waits gets no answer and sees the connection close."""
        if self._accepting is not None:
            self._accepting.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
            self._path.unlink(missing_ok=True)

    async def _accept(self) -> None:
        assert self._listener is not None
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as e:  # out of descriptors: let some close
                log.error("cannot accept on %s: %s", self._path, e.strerror)
                await asyncio.sleep(0.1)
                continue
            try:
                peer = trust.peer_of(connection)
            except (trust.Refused, OSError):
                connection.close()
                continue
            self._make_room(peer.uid)
            task = asyncio.create_task(self._converse(connection, peer))
            self._silent.setdefault(peer.uid, collections.OrderedDict())[connection] = task
            self._tasks.add(task)
            task.add_done_callback(functools.partial(self._finished, connection, peer))
            await asyncio.sleep(0)  # whoever has spoken is heard before the next is let in

    def _finished(self, connection: socket.socket, peer: trust.Peer, task: asyncio.Task[None]) -> None:
        """Also of a conversation that was cancelled before its first step."""
        self._tasks.discard(task)
        self._spoke(connection, peer.uid)
        connection.close()
        os.close(peer.pidfd)
        if not task.cancelled() and task.exception() is not None:
            log.error("a conversation failed: pid=%d uid=%d", peer.pid, peer.uid, exc_info=task.exception())

    def _make_room(self, uid: int) -> None:
        mine = self._silent.get(uid)
        if mine and len(mine) >= MAX_SILENT_PER_UID:
            self._evict(uid)
        elif sum(map(len, self._silent.values())) >= MAX_SILENT:
            self._evict(max(self._silent, key=lambda u: len(self._silent[u])))

    def _evict(self, uid: int) -> None:
        _, task = self._silent[uid].popitem(last=False)
        task.cancel()
        self._say(uid, "too many silent connections of uid=%d; dropped the oldest", uid)

    def _spoke(self, connection: socket.socket, uid: int) -> None:
        mine = self._silent.get(uid)
        if mine is not None:
            mine.pop(connection, None)
            if not mine:
                del self._silent[uid]

    async def _converse(self, connection: socket.socket, peer: trust.Peer) -> None:
        loop = asyncio.get_running_loop()
        try:
            try:
                async with asyncio.timeout(SILENCE):
                    datagram = await loop.sock_recv(connection, 512)
            except TimeoutError:
                self._say(peer.uid, "silent connection dropped: pid=%d uid=%d", peer.pid, peer.uid)
                return
            finally:
                self._spoke(connection, peer.uid)
            if not datagram:
                return
            reply = await self._answer(datagram, peer)
            try:
                text = printable(reply.text)
                if reply.fd is None:
                    connection.send(text)
                else:
                    socket.send_fds(connection, [text], [reply.fd])
                if datagram != PING:
                    reached(Step.ANSWERED)
            finally:
                if reply.fd is not None:
                    os.close(reply.fd)
        except OSError as e:
            log.debug("pid=%d went away: %s", peer.pid, e)

    async def _answer(self, datagram: bytes, peer: trust.Peer) -> Reply:
        request = life.parse(datagram)
        if request is Request.PING:
            return self._readiness(peer)
        try:
            if request is None:
                raise trust.Refused("this is no request of Lark's protocol")
            caller = trust.identify(peer, request, self._programs)
            try:
                return await self._handler(request, caller, peer)
            finally:
                os.close(caller.starter_pidfd)
        except trust.Refused as e:
            self._say(
                peer.uid,
                "refused: request=%s pid=%d uid=%d exe=%s: %s",
                *(request or repr(datagram[:40]), peer.pid, peer.uid, trust.exe_name(peer.pid), e),
            )
            return refused(str(e))
        except AgentError as e:  # of the node, not of the caller: its disk, its kernel
            self._say(peer.uid, "failed: request=%s pid=%d uid=%d: %s", request, peer.pid, peer.uid, e)
            return hold(HOLD_NETWORK, f"the agent of this node cannot do it: {e}")

    def _say(self, uid: int, text: str, *values: object) -> None:
        now = time.monotonic()
        bucket = self._buckets.setdefault(uid, Bucket(LOG_BURST, LOG_PER_SECOND, now))
        if bucket.take(now):
            if bucket.dropped:
                log.warning("%d log lines about uid=%d were left out", bucket.dropped, uid)
                bucket.dropped = 0
            log.warning(text, *values)
        if len(self._buckets) > 1024:
            with contextlib.suppress(StopIteration):
                self._buckets.pop(next(iter(self._buckets)))
