"""The short way of a request: what may come by it, and that nobody can tell it from the general server's way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryu_apps.plain_http import MOST_HEAD, Ask, Client, Reply, octets, whole

PATCH = (
    b"PATCH /v1/attempts/wn1~3f HTTP/1.1\r\nHost: lark:8080\r\nAuthorization: Bearer secret\r\n"
    b"content-TYPE: application/json\r\nContent-Length: 15\r\nLark-Protocol: 1\r\nAccept: */*\r\nUser-Agent: a b\r\n"
    b"\r\n"
    b'{"phase":"run"}'
)


def client() -> Client:
    return Client("192.0.2.1", None, lambda: None)


def test_what_an_agent_asks_comes_by_the_short_way() -> None:
    ask = whole(PATCH, client())
    assert ask is not None
    assert (ask.method, ask.path, ask.authorization) == ("PATCH", "/v1/attempts/wn1~3f", "Bearer secret")
    assert (ask.kind, ask.length, ask.read(15), ask.pairs()) == ("application/json", 15, b'{"phase":"run"}', [])
    ask = whole(b"DELETE /v1/attempts/a HTTP/1.1\r\nHost: lark\r\n\r\n", client())
    assert ask is not None
    assert (ask.authorization, ask.kind, ask.length, ask.read(9)) == (None, "", None, b"")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"HTTP/1.1", b"HTTP/1.1 "),
        (b"PATCH ", b"patch "),
        (b"PATCH ", b"HEAD "),
        (b"PATCH ", b"CONNECT "),
        (b"PATCH ", b"PATCH  "),
        (b" /v1", b" //v1"),
        (b" /v1", b" http://lark/v1"),
        (b"~3f", b"~3f?job=1.0"),
        (b"~3f", b"%7e3f"),
        (b"~3f", b"~3\xff"),
        (b"\r\n", b"\n"),
        (b"Host: lark:8080", b"Host: lark\r\n :8080"),
        (b"Host: lark:8080", b"Host : lark"),
        (b"Host: lark:8080", b" Host: lark"),
        (b"Host: lark:8080", b"Host: lark\r"),
        (b"Host: lark:8080", b"Host: la\0rk"),
        (b"Host: lark:8080", b"Host: la\nrk"),
        (b"Host: lark:8080", b"Host: l\xe4rk"),
        (b"Host: lark:8080", b"Host"),
        (b"Host: lark:8080", b"Host: a\r\nHost: b"),
        (b"Host: lark:8080", b"Host: " + b"a" * MOST_HEAD),
        (b"Host: lark:8080", b"Connection: close"),
        (b"Host: lark:8080", b"Connection: keep-alive"),
        (b"Host: lark:8080", b"Expect: 100-continue"),
        (b"Host: lark:8080", b"Upgrade: h2c"),
        (b"Host: lark:8080", b"If-None-Match: *"),
        (b"Host: lark:8080", b"Transfer-Encoding: chunked"),
        (b"Host: lark:8080", b"Content-Length: 15"),
        (b"Host: lark:8080", b"Authorization: Bearer other"),
        (b"Host: lark:8080", b"Content-Type: text/plain"),
        (b"Host: lark:8080", b"Content_Length: 3"),
        (b"Length: 15", b"Length: 14"),
        (b"Length: 15", b"Length: 16"),
        (b"Length: 15", b"Length: +15"),
        (b"Length: 15", b"Length: 1_5"),
        (b"Length: 15", b"Length: 15, 15"),
        (b"Length: 15", b"Length: -15"),
        (b"Length: 15", b"Length: "),
        (b"Content-Length: 15\r\n", b""),
        (b'{"phase":"run"}', b'{"phase":"run"}DELETE /v1/attempts/a HTTP/1.1\r\n\r\n'),
        (b'{"phase":"run"}', b'{"phase":'),
        (b"\r\n\r\n", b"\r\n"),
    ],
)
def test_anything_else_is_left_to_the_general_server(before: bytes, after: bytes) -> None:
    changed = PATCH.replace(before, after)
    assert changed != PATCH
    assert whole(changed, client()) is None


_piece = st.sampled_from(
    [b"GET", b"PUT", b" ", b"/v1/nodes", b"/", b" HTTP/1.1", b"\r\n", b"\n", b"\r", b":", b"Host", b"Content-Length",
     b"Transfer-Encoding", b"chunked", b"0", b"3", b"abc", b"\r\n\r\n", b"\t", b"\0", b"Authorization", b"Bearer x"]
)  # fmt: skip


@given(st.lists(_piece | st.binary(max_size=4), max_size=30).map(b"".join))
def test_no_octets_make_it_fail_and_what_it_takes_is_exactly_one_request(data: bytes) -> None:
    ask = whole(data, client())
    if ask is None:
        return
    assert isinstance(ask, Ask)
    head, _, body = data.partition(b"\r\n\r\n")
    assert ask.read(len(data)) == body
    assert b"ransfer" not in head
    assert not body or ask.length == len(body)


def test_an_answer_is_one_piece_of_http() -> None:
    text = octets(Reply(201, (("Content-Type", "application/json"), ("Retry-After", "3")), b"{}"), 0.5).decode()
    assert text == (
        "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nRetry-After: 3\r\n"
        "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Length: 2\r\n\r\n{}"
    )
    assert Reply(401, (("Connection", "close"),), b"").closes
    assert not Reply(401, (), b"").closes
