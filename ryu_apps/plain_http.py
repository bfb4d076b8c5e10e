"""The short way of a request: read in one go when it is here as a whole and as plain as agents write them.

    octets of a kept connection ──▶ whole() ──▶ Ask ──▶ the application ──▶ Reply ──▶ octets(), sent at once
                                      └─ None: anything else at all is the general server's to read or to refuse

Pure. Invariant: `whole` takes a part of what the general server takes, and understands it alike: request line, headers
and body are all here and nothing follows; each header is one of a few that are known, stands there once, and has
visible ASCII as its value. So whatever can be understood in two ways (lengths, codings, folded or strange lines,
requests sent ahead) never comes this way.
"""

from __future__ import annotations

import email.utils
import functools
import http
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from ryu_apps.tls import Peer

MOST: Final = 65536
"""Octets of a request, head and body, that comes this way."""
MOST_HEAD: Final = 8192
_LINE: Final = re.compile(rb"(GET|PUT|POST|PATCH|DELETE) (/(?!/)[A-Za-z0-9._@~/-]*) HTTP/1\.1")
_FIELD: Final = re.compile(rb"([A-Za-z-]+): ?([!-~](?:[ -~]*[!-~])?)")
_LENGTH: Final = re.compile(rb"[0-9]{1,9}")
_MEANT: Final = frozenset({b"authorization", b"content-length", b"content-type"})
_KNOWN: Final = _MEANT | {b"host", b"accept", b"user-agent", b"lark-protocol"}
"""Of the others nothing depends on what they say."""


class Client:
    """Who is at the other end of a connection, for as long as it lasts."""

    __slots__ = ("address", "memory", "peer", "welcome")

    def __init__(self, address: str, peer: Peer | None, welcome: Callable[[], None]) -> None:
        self.address = address
        self.peer = peer
        self.welcome = welcome
        """To be called once the client has shown who it is."""
        self.memory: Any = None
        """The application's own."""


@dataclass(slots=True)
class Ask:
    """One request. `kind`: its Content-Type; `authorization`: that header."""

    client: Client
    method: str
    path: str | None
    """None: it is not UTF-8."""
    authorization: str | None
    kind: str
    length: int | None
    """Of the body; None: it is as long as it is."""
    read: Callable[[int], bytes]
    """So many octets of the body. Raises OSError, ValueError."""
    pairs: Callable[[], list[tuple[str, str]]]
    """The query. Raises UnicodeError, ValueError."""
    etags: str = ""
    """If-None-Match."""


@dataclass(slots=True)
class Reply:
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def closes(self) -> bool:
        return ("Connection", "close") in self.headers


def _nothing() -> list[tuple[str, str]]:
    return []


def whole(data: bytes, client: Client) -> Ask | None:
    """The request that these octets are, or None if they are not exactly one plain one."""
    end = data.find(b"\r\n\r\n", 0, MOST_HEAD)
    if end < 0:
        return None
    first, *lines = data[:end].split(b"\r\n")
    asked = _LINE.fullmatch(first)
    if asked is None:
        return None
    said: dict[bytes, bytes] = {}
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            return None
        name, value = field.groups()
        name = name.lower()
        if name not in _KNOWN or name in said:
            return None
        said[name] = value
    body = data[end + 4 :]
    length = said.get(b"content-length")
    if length is None:
        if body:
            return None
    elif not _LENGTH.fullmatch(length) or int(length) != len(body):
        return None
    authorization = said.get(b"authorization")
    return Ask(
        client,
        asked[1].decode(),
        asked[2].decode(),
        None if authorization is None else authorization.decode(),
        said.get(b"content-type", b"").decode(),
        None if length is None else len(body),
        lambda most: body[:most],
        _nothing,
    )


@functools.lru_cache(maxsize=256)
def _head(status: int, headers: tuple[tuple[str, str], ...]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n{lines}".encode("latin-1")


@functools.lru_cache(maxsize=2)
def _date(second: int) -> str:
    return email.utils.formatdate(second, usegmt=True)


def octets(reply: Reply, now: float) -> bytes:
    """As it is sent. `now`: seconds since 1970."""
    ending = f"Date: {_date(int(now))}\r\nContent-Length: {len(reply.body)}\r\n\r\n".encode()
    return _head(reply.status, reply.headers) + ending + reply.body
