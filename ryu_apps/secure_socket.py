"""The server's end of one TLS connection, with the few methods of a socket that OpenFlow and HTTP use.

It stands on an ordinary socket (a green one in the controller) and on the standard library's TLS in memory. The TLS
sockets of the library and of eventlet do not fit: a `shutdown` makes them read ciphertext as if it were plain, the
frameworks' read loop takes a broken record for a time limit and spins, and a handshake has no time limit of its own.

Invariants: nothing is read from or written to the peer's side of the application before the handshake is done and the
peer's certificate is checked; one greenlet reads and any number write; every failure is an OSError that is not an
SSLError; `shutdown` never waits, so that a timer may call it.
"""

from __future__ import annotations

import contextlib
import errno
import io
import socket
import ssl
import threading
from typing import Any

from ryu_apps.tls import Peer, peer_of

CHUNK = 65536


class HandshakeError(ConnectionError):
    """There is no TLS connection. The text is the library's."""


class SecureSocket:
    """Make it with an accepted socket, call `handshake`, then use it like a socket."""

    def __init__(self, plain: Any, context: ssl.SSLContext) -> None:
        self._plain = plain
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._writing = threading.Lock()
        self._ready = False
        self._sent_end = False
        self.peer: Peer | None = None
        """Who it is, after the handshake; None if the peer showed no certificate."""

    def handshake(self) -> None:
        """Raises HandshakeError, TimeoutError. The time limit of the whole is the caller's: `shutdown` ends it."""
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush()
                if not self._fill():
                    raise HandshakeError("it ended early: the peer left, was too slow, or had to make room") from None
            except (ssl.SSLError, ValueError) as error:
                with contextlib.suppress(OSError):
                    self._flush()  # the alert tells the peer why
                raise HandshakeError(_text(error)) from error
        self.peer = peer_of(self._tls.getpeercert())
        self._flush()
        self._ready = True

    def recv(self, size: int) -> bytes:
        while size:
            data = self._read(size)
            if data is not None:
                return data
            self._flush()
            if not self._fill():
                self._incoming.write_eof()
        return b""

    def _read(self, size: int) -> bytes | None:
        """Of what has come; None if that is no whole record of the application's, empty at the end."""
        try:
            data: bytes = self._tls.read(size)
        except ssl.SSLWantReadError:  # a part of a record, or one of the protocol's own
            return None
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return b""
        except ssl.SSLError as error:
            raise _broken(error) from error
        if self._outgoing.pending:
            self._flush()
        return data

    @property
    def holds(self) -> bool:
        """Something may be here that the descriptor tells nothing of any more."""
        return bool(self._incoming.pending or self._tls.pending())

    def take(self, size: int) -> bytes | None:
        """What is here already, without waiting for the peer; None if nothing is, empty at the end."""
        more = not self.holds
        while True:
            if more:
                chunk = take(self._plain, CHUNK)
                if chunk is None:
                    return None
                if chunk:
                    self._incoming.write(chunk)
                else:
                    self._incoming.write_eof()
            data = self._read(size)
            if data is not None:
                return data
            if self._outgoing.pending:
                self._flush()
            more = True

    def sendall(self, data: Any, flags: int = 0) -> None:
        view = memoryview(data).cast("B")
        while view:
            try:
                done = self._tls.write(view[:CHUNK])
            except ssl.SSLError as error:
                raise _broken(error) from error
            view = view[done:]
            self._flush()

    def send(self, data: Any, flags: int = 0) -> int:
        self.sendall(data)
        return len(data)

    def shutdown(self, how: int) -> None:
        """As of a socket: no reading, no writing, or neither. Never waits."""
        if how != socket.SHUT_RD and self._ready and not self._sent_end and not self._writing.locked():
            self._sent_end = True
            with contextlib.suppress(ssl.SSLError, OSError):
                self._tls.unwrap()
            with contextlib.suppress(OSError):
                # A farewell; if there is no room for it at once, the end of the connection says the same.
                getattr(self._plain, "fd", self._plain).send(self._outgoing.read(), socket.MSG_DONTWAIT)
        self._plain.shutdown(how)

    def close(self) -> None:
        self._plain.close()

    def refuse(self, words: bytes = b"") -> None:
        """End a connection whose handshake failed, so that the peer hears why: by TLS's alert, which has been sent, or
        by `words` in the clear. Waits for a few seconds at most.

        What the peer has sent meanwhile must be read: a connection closed over unread bytes is reset, and a reset
        overtakes the alert.
        """
        with contextlib.suppress(OSError):
            if words:
                getattr(self._plain, "fd", self._plain).send(words, socket.MSG_DONTWAIT)
            self._plain.shutdown(socket.SHUT_WR)
            self._plain.settimeout(1.0)
            for _ in range(4):
                if not self._plain.recv(CHUNK):
                    break

    def settimeout(self, seconds: float | None) -> None:
        self._plain.settimeout(seconds)

    def gettimeout(self) -> float | None:
        limit: float | None = self._plain.gettimeout()
        return limit

    def setsockopt(self, *args: Any) -> None:
        self._plain.setsockopt(*args)

    def getsockname(self) -> Any:
        return self._plain.getsockname()

    def getpeername(self) -> Any:
        return self._plain.getpeername()

    def fileno(self) -> int:
        number: int = self._plain.fileno()
        return number

    def makefile(self, mode: str, buffering: int = -1) -> Any:
        """A binary file for reading or for writing."""
        raw = _Raw(self, mode)
        if buffering == 0:
            return raw
        size = io.DEFAULT_BUFFER_SIZE if buffering < 0 else buffering
        return io.BufferedReader(raw, size) if "r" in mode else io.BufferedWriter(raw, size)

    def _fill(self) -> bool:
        data = self._plain.recv(CHUNK)
        if data:
            self._incoming.write(data)
        return bool(data)

    def _flush(self) -> None:
        # Several greenlets may come here: what was encrypted first must leave first.
        while self._outgoing.pending:
            with self._writing:
                self._plain.sendall(self._outgoing.read())


def take(plain: Any, size: int) -> bytes | None:
    """What a socket has received already; None if nothing, empty at its end. A green one is asked past its waiting."""
    try:
        data: bytes = getattr(plain, "fd", plain).recv(size, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    return data


class _Raw(io.RawIOBase):
    """A connection as an unbuffered file. Closing it leaves the connection open, as with sockets."""

    def __init__(self, connection: SecureSocket, mode: str) -> None:
        self._connection = connection
        self._reads = "r" in mode

    def readable(self) -> bool:
        return self._reads

    def writable(self) -> bool:
        return not self._reads

    def readinto(self, buffer: Any) -> int:
        data = self._connection.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def write(self, data: Any) -> int:
        self._connection.sendall(data)
        return len(data)


def _broken(error: ssl.SSLError) -> ConnectionResetError:
    """As a reset connection, number and all: that is what frameworks know to take for a peer's fault."""
    return ConnectionResetError(errno.ECONNRESET, f"broken TLS: {_text(error)}")


def _text(error: Exception) -> str:
    """The library's words without the place in its source."""
    return str(error).partition(" (_ssl.c")[0]
