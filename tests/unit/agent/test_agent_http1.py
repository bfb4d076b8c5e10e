"""The agent's requests over kept connections: what is used again, what counts as no answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest

from ovs_agent.http1 import Answer, Client, HttpError, split

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nLark-Thing: 7\r\n\r\n{}"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Answers each request with what `says` gives; None: hangs up."""

    def __init__(self, says: Callable[[bytes], bytes | None]) -> None:
        self.says = says
        self.connections = 0
        self.asked: list[bytes] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                for line in request.split(b"\r\n"):
                    if line.lower().startswith(b"content-length:"):
                        request += await reader.readexactly(int(line.partition(b":")[2]))
                self.asked.append(request)
                answer = self.says(request)
                if answer is None:
                    break
                writer.write(answer)
                if b"Connection: close" in answer:
                    break
        writer.close()


def ask(
    server: Server, talk: Callable[[Client, str], Awaitable[None]], *, answer: float = 5.0, most: int = 1000
) -> None:
    async def main() -> None:
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        client = Client(None, connect=1, answer=answer, kept=5, most=most)
        try:
            await talk(client, f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
        finally:
            await client.close()
            listening.close()

    asyncio.run(main())


def test_a_request_and_its_answer_and_the_connection_is_used_again() -> None:
    server = Server(lambda _: OK)

    async def talk(client: Client, url: str) -> None:
        for _ in range(3):
            found = await client.request("PUT", url + "/v1/x?a=b", {"Authorization": "Bearer s"}, b"body")
            assert found == Answer(200, {"content-length": "2", "lark-thing": "7"}, b"{}")

    ask(server, talk)
    assert server.connections == 1
    assert server.asked[0].startswith(b"PUT /v1/x?a=b HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"Authorization: Bearer s" in server.asked[0]
    assert server.asked[0].endswith(b"Content-Length: 4\r\n\r\nbody")


def test_requests_at_the_same_time_have_connections_of_their_own() -> None:
    server = Server(lambda request: OK.replace(b"{}", request.split()[1][-2:]))

    async def talk(client: Client, url: str) -> None:
        found = await asyncio.gather(*(client.request("GET", f"{url}/{n}", {}) for n in range(10, 30)))
        assert [answer.content for answer in found] == [str(n).encode() for n in range(10, 30)]

    ask(server, talk)
    assert 1 < server.connections <= 20


def test_what_nobody_asked_for_is_not_taken_for_the_next_answer() -> None:
    server = Server(lambda _: OK)

    async def talk(client: Client, url: str) -> None:
        await client.request("GET", url, {})
        server.writers[0].write(OK.replace(b"{}", b"!!"))
        await asyncio.sleep(0.05)
        assert (await client.request("GET", url, {})).content == b"{}"

    ask(server, talk)
    assert server.connections == 2


def test_what_comes_behind_an_answer_is_not_taken_for_the_next_one() -> None:
    server = Server(lambda _: OK + OK.replace(b"{}", b"!!") if len(server.asked) == 1 else OK)

    async def talk(client: Client, url: str) -> None:
        for _ in range(3):
            assert (await client.request("GET", url, {})).content == b"{}"

    ask(server, talk)
    assert server.connections == 2


def test_where_one_connection_is_cut_off_the_other_quiet_ones_are_not_tried_one_after_the_other() -> None:
    server = Server(lambda _: b"" if 8 < len(server.asked) <= 16 else OK)

    async def talk(client: Client, url: str) -> None:
        await asyncio.gather(*(client.request("GET", url, {}) for _ in range(8)))
        before = server.connections
        assert before > 2
        with pytest.raises(HttpError, match="no answer within"):
            await client.request("GET", url, {})
        server.says = lambda _: OK
        assert (await client.request("GET", url, {})).content == b"{}"
        assert server.connections == before + 1

    ask(server, talk, answer=0.5)


@pytest.mark.parametrize("end", [b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", None])
def test_after_the_server_hung_up_there_is_a_new_connection(end: bytes | None) -> None:
    server = Server(lambda _: end if end and len(server.asked) == 1 else OK)

    async def talk(client: Client, url: str) -> None:
        assert (await client.request("GET", url, {})).content == b"{}"
        if end is None:
            server.writers[0].close()
            await asyncio.sleep(0.05)
        assert (await client.request("GET", url, {})).content == b"{}"

    ask(server, talk)
    assert server.connections == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
def test_every_way_to_end_an_answer_is_understood(answer: bytes) -> None:
    async def talk(client: Client, url: str) -> None:
        for _ in range(2):
            assert (await client.request("GET", url, {})).content == b"{}"

    ask(Server(lambda _: answer), talk)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, "hung up"),
        (b"220 mail.example.org ESMTP\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 20\r\n\r\n{}", "hung up"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + bytes(2000), "larger"),
        (b"", "no answer within"),
    ],
)
def test_no_answer_is_an_error_and_the_next_request_is_not_harmed(answer: bytes | None, why: str) -> None:
    server = Server(lambda _: answer if len(server.asked) == 1 else OK)

    async def talk(client: Client, url: str) -> None:
        with pytest.raises(HttpError, match=why):
            await client.request("GET", url, {})
        assert (await client.request("GET", url, {})).content == b"{}"

    ask(server, talk, answer=0.5)
    assert server.connections == 2


def test_nobody_listens() -> None:
    with pytest.raises(OSError, match="refused|Connect call failed"):
        asyncio.run(Client(None, connect=1, answer=1, kept=1, most=1).request("GET", "http://127.0.0.1:1", {}))


def test_urls() -> None:
    origin, target = split("https://[2001:db8::1]:8443/v1/x?y=z")
    assert (origin.tls, origin.host, origin.port, origin.named) == (True, "2001:db8::1", 8443, "[2001:db8::1]:8443")
    assert target == "/v1/x?y=z"
    assert split("http://ctl")[0].named == "ctl"
    with pytest.raises(HttpError, match="not an http"):
        split("ftp://ctl")
