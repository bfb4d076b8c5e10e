"""One connection to an OVSDB server: JSON-RPC messages over a unix, TCP or TLS stream.

Own code, because the `ovs` package as pip installs it parses 2 MB of JSON a second and keeps 8 KB for each stored row;
pydantic's parser is a hundred times as fast. What is here is the transport only (RFC 7047 section 4). A start reads all
rows as one message of megabytes: to find its end costs less than to parse it.

Invariants: used by one (green) thread; nothing blocks for longer than SEND_SECONDS; a message is handed on whole or not
at all; whatever goes wrong with the stream is `Lost`.
"""

from __future__ import annotations

import ipaddress
import json
import re
import select
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import from_json

CONNECT_SECONDS = 2.0
SEND_SECONDS = 5.0
_CHUNK = 256 * 1024
# Up to the next brace that stands in no string; no match while that is not here yet.
_TO_BRACE = re.compile(rb'(?:[^"{}]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+[{}]', re.DOTALL)
_OPEN = ord("{")
# The rest of a string that has begun.
_TO_QUOTE = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_NO_BRACES = bytes(set(range(256)) - set(b'{}"'))
Message = dict[str, Any]


class Lost(Exception):
    """The connection is of no use (any more); the text says why."""


@dataclass(frozen=True, slots=True)
class Tls:
    """Files for `ssl:` remotes. Whoever has a certificate of this CA is believed to be a store server."""

    private_key: Path
    certificate: Path
    ca_certificate: Path

    def context(self) -> ssl.SSLContext:
        """Raises OSError (ssl.SSLError is one) when the files cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # Servers are known by the CA, which signs for the store alone; Open vSwitch's own tools put no address into
        # certificates.
        context.check_hostname = False
        context.load_verify_locations(self.ca_certificate)
        context.load_cert_chain(self.certificate, self.private_key)
        return context


@dataclass(frozen=True, slots=True)
class Remote:
    """Where a server is: `unix:PATH`, `tcp:ADDRESS:PORT` or `ssl:ADDRESS:PORT`."""

    text: str
    kind: str
    host: str
    port: int

    @property
    def loopback(self) -> bool:
        return self.kind == "unix" or ipaddress.ip_address(self.host).is_loopback


def parse_remote(text: str) -> Remote:
    """Raises ValueError that says what is wrong."""
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest:
        return Remote(text, kind, rest, 0)
    if kind not in ("tcp", "ssl"):
        raise ValueError(f"{text!r} is not an OVSDB server; write ssl:ADDRESS:PORT, tcp:ADDRESS:PORT or unix:PATH")
    host, colon, port = rest.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError(f"{text!r} has no port; write for example {kind}:192.0.2.1:6643 or {kind}:[2001:db8::1]:6643")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        # A name could lead anywhere tomorrow, and to look it up could take for ever.
        raise ValueError(f"{host!r} is not an IP address; write the server's address, not its name") from None
    return Remote(text, kind, host, int(port))


class Framer:
    """Cuts a stream of bytes into JSON objects. `long`: from so many octets on it is worth to ask first whether a
    message can end there at all."""

    def __init__(self, long: int = 4096) -> None:
        self._long = long
        self._bytes = bytearray()
        self._at = 0
        self._depth = 0
        self._in_string = False

    def feed(self, chunk: bytes) -> list[Message]:
        """The messages that are complete now. Raises Lost when the stream is not JSON."""
        self._bytes += chunk
        messages = []
        begin = 0
        for end in self._ends():
            try:
                message = from_json(bytes(self._bytes[begin:end]), cache_strings="keys")
            except ValueError as problem:
                raise Lost(f"what it says is not JSON: {problem}") from problem
            messages.append(message)
            begin = end
        if begin:
            del self._bytes[:begin]
            self._at -= begin
        return messages

    def _ends(self) -> list[int]:
        """Where messages end in what has not been looked at yet."""
        cuts: list[int] = []
        if self._passed_over():
            return cuts
        if self._in_string:
            quote = _TO_QUOTE.match(self._bytes, self._at)
            if quote is None:
                return cuts
            self._at, self._in_string = quote.end(), False
        asked = False
        while (found := _TO_BRACE.match(self._bytes, self._at)) is not None:
            self._at = found.end()
            self._depth += 1 if self._bytes[self._at - 1] == _OPEN else -1
            if self._depth == 0:
                cuts.append(self._at)
            elif not asked:
                # The beginning of a message: once, since all that is left is looked at.
                asked = True
                if self._passed_over():
                    break
        return cuts

    def _passed_over(self) -> bool:
        """Pass over everything that is left if no message can end in it; else nothing is changed."""
        if self._depth == 0 or len(self._bytes) - self._at < self._long:
            return False
        # What follows a last backslash is not here yet.
        rest = bytes(self._bytes[self._at :]).rstrip(b"\\")
        marks = rest.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NO_BRACES)
        parts = (b'"' + marks if self._in_string else marks).split(b'"')
        braces = b"".join(parts[::2])
        while (fewer := braces.replace(b"{}", b"")) != braces:
            braces = fewer
        closed = braces.count(b"}")
        if closed >= self._depth:
            return False
        self._depth += len(braces) - 2 * closed
        self._in_string = len(parts) % 2 == 0
        self._at += len(rest)
        return True


class Connection:
    """A stream to one server."""

    def __init__(self, remote: Remote, tls: ssl.SSLContext | None) -> None:
        """Connects. Raises Lost."""
        self._framer = Framer()
        self.heard = time.monotonic()
        """When something was last received."""
        unix = remote.kind == "unix"
        family = socket.AF_UNIX if unix else socket.AF_INET6 if ":" in remote.host else socket.AF_INET
        plain = socket.socket(family, socket.SOCK_STREAM)
        self._socket = plain
        try:
            plain.settimeout(CONNECT_SECONDS)
            plain.connect(remote.host if unix else (remote.host, remote.port))
            if not unix:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if remote.kind == "ssl":
                if tls is None:
                    raise Lost("no certificates are configured")
                self._socket = tls.wrap_socket(plain)
        except OSError as problem:
            plain.close()
            raise Lost(str(problem)) from problem
        except Lost:
            plain.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: Message) -> None:
        try:
            self._socket.settimeout(SEND_SECONDS)
            self._socket.sendall(json.dumps(message, separators=(",", ":")).encode())
        except OSError as problem:
            raise Lost(str(problem)) from problem

    def receive(self, seconds: float, wake: socket.socket) -> list[Message]:
        """What has come, waiting so long for it at most, or until `wake` can be read. Raises Lost."""
        try:
            pending = isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()
            if not pending:
                readable, _, _ = select.select([self._socket, wake], [], [], max(0.0, seconds))
                if self._socket not in readable:
                    return []
            # Readable, so this returns at once; a TLS record that is not complete yet is waited for, not for long.
            self._socket.settimeout(SEND_SECONDS)
            chunk = self._socket.recv(_CHUNK)
        except OSError as problem:
            raise Lost(str(problem)) from problem
        if not chunk:
            raise Lost("it closed the connection")
        self.heard = time.monotonic()
        return self._framer.feed(chunk)

    def close(self) -> None:
        self._socket.close()
