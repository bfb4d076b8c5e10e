"""HTTP/1.1 over kept connections, for what every job start and end says to the controller.

h11 knows the protocol; what is here moves its bytes. A general client costs five times the processor time for a request
(1.7 ms against 0.3), and a job is three requests.

Invariants: one request on a connection at a time; a connection is used again only if its last answer was read to the
end, nothing came behind it, and both sides meant to keep it; when one of a server's connections fails, the quiet ones
are not used again either, for what has cut one off has mostly cut off all; an answer is bounded in size and in time. A
request is sent once: who gets an error does not know whether it was carried out. Proxies and other settings of the
environment are ignored.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import h11

CONNECTIONS = 64
"""At a time, besides those for what cannot wait; further requests wait for one."""


class HttpError(OSError):
    """No answer, or none that is HTTP."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`headers`: names in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True, slots=True)
class Origin:
    """Where requests go: a server, not a path on it."""

    tls: bool
    host: str
    port: int

    @property
    def named(self) -> str:
        """As the Host header says it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


def split(url: str) -> tuple[Origin, str]:
    """The server of a URL and what to ask it for."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise HttpError(f"{url}: not an http or https URL")
    tls = parts.scheme == "https"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Origin(tls, parts.hostname, parts.port or (443 if tls else 80)), target


class _Connection(asyncio.Protocol):
    """One connection, and the one request that is on its way."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._state = h11.Connection(h11.CLIENT)
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._head: h11.Response | None = None
        self._body = bytearray()
        self.used = 0.0
        """When its last answer had come."""

    async def exchange(
        self, method: str, target: str, headers: Iterable[tuple[str, str]], content: bytes | None
    ) -> Answer:
        assert self._transport is not None
        self._head, self._body = None, bytearray()
        request = self._state.send(h11.Request(method=method, target=target, headers=list(headers))) or b""
        if content:
            request += self._state.send(h11.Data(data=content)) or b""
        request += self._state.send(h11.EndOfMessage()) or b""
        self._answer = asyncio.get_running_loop().create_future()
        try:
            self._transport.write(request)
            return await self._answer
        finally:
            self._answer = None

    def again(self) -> bool:
        """Whether it can take another request; it is made ready for it."""
        if not self.open or self._state.our_state is not h11.DONE or self._state.their_state is not h11.DONE:
            return False
        if self._state.trailing_data[0]:  # nobody asked: it must not be taken for the next answer
            return False
        self._state.start_next_cycle()
        return True

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():  # nobody asked: it must not be taken for the next answer
            self.abort()
            return
        try:
            self._state.receive_data(data)
            self._read()
        except h11.RemoteProtocolError as e:
            self._fail(HttpError(f"what it answers is not HTTP: {e}"))

    def eof_received(self) -> None:
        with contextlib.suppress(h11.RemoteProtocolError):
            self._state.receive_data(b"")
            if self._answer is not None and not self._answer.done():
                self._read()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._fail(error or HttpError("it hung up without an answer"))

    def _read(self) -> None:
        while True:
            event = self._state.next_event()
            if isinstance(event, h11.Response):
                self._head = event
            elif isinstance(event, h11.Data):
                self._body += event.data
                if len(self._body) > self._most:
                    self._fail(HttpError(f"its answer is larger than {self._most} bytes"))
                    return
            elif isinstance(event, h11.EndOfMessage):
                assert self._head is not None
                told = {name.decode("latin-1"): value.decode("latin-1") for name, value in self._head.headers}
                if self._answer is not None and not self._answer.done():
                    self._answer.set_result(Answer(self._head.status_code, told, bytes(self._body)))
                return
            elif not isinstance(event, h11.InformationalResponse):  # there is no more yet, or ever
                return

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        self.abort()


class Client:
    """`kept`: seconds that a quiet connection is used again after. `context`: for https."""

    def __init__(
        self, context: ssl.SSLContext | None, *, connect: float, answer: float, kept: float, most: int
    ) -> None:
        self._context = context
        self._connect_timeout, self._answer_timeout, self._kept, self._most = connect, answer, kept, most
        self._idle: dict[Origin, list[_Connection]] = {}
        self._places = asyncio.Semaphore(CONNECTIONS)

    async def request(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | None = None, *, at_once: bool = False
    ) -> Answer:
        """`at_once`: it waits for no other's place. Raises HttpError, or what TLS and the system say (OSError)."""
        origin, target = split(url)
        lines = [("Host", origin.named), *headers.items()]
        if content is not None:
            lines.append(("Content-Length", str(len(content))))
        async with contextlib.nullcontext() if at_once else self._places:
            connection = self._take(origin) or await self._connect(origin)
            try:
                async with asyncio.timeout(self._answer_timeout):
                    answer = await connection.exchange(method, target, lines, content)
            except TimeoutError:
                connection.abort()
                self._forget(origin)
                raise HttpError(f"no answer within {self._answer_timeout:g} s") from None
            except OSError:
                connection.abort()
                self._forget(origin)
                raise
            except BaseException:
                connection.abort()
                raise
        if connection.again():
            connection.used = asyncio.get_running_loop().time()
            self._idle.setdefault(origin, []).append(connection)
        else:
            connection.close()
        return answer

    async def close(self) -> None:
        for origin in list(self._idle):
            self._forget(origin)

    def _forget(self, origin: Origin) -> None:
        """Its quiet connections are not used again."""
        for connection in self._idle.pop(origin, []):
            connection.close()

    def _take(self, origin: Origin) -> _Connection | None:
        """The connection that was used last, if there is one that can be used again."""
        now = asyncio.get_running_loop().time()
        idle = self._idle.get(origin, [])
        while idle:
            connection = idle.pop()
            if connection.open and now - connection.used < self._kept:
                return connection
            connection.close()
        return None

    async def _connect(self, origin: Origin) -> _Connection:
        context = (self._context or ssl.create_default_context()) if origin.tls else None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self._most), origin.host, origin.port, ssl=context
                )
        except TimeoutError:
            raise HttpError(f"no connection within {self._connect_timeout:g} s") from None
        return connection
