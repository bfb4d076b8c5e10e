"""The chirp relay under a job that misuses it: few connections, few log lines, nothing idle for ever."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator

import pytest

from ovs_agent import chirp
from ovs_agent.bucket import Bucket
from ovs_agent.chirp import Endpoint, Relays


class Starter:
    """Answers in capitals; counts who is connected."""

    def __init__(self) -> None:
        self.now = 0
        self.ever = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.now += 1
        self.ever += 1
        try:
            while data := await reader.read(65536):
                writer.write(data.upper())
        except OSError:
            pass
        finally:
            self.now -= 1
            writer.close()


@contextlib.asynccontextmanager
async def relayed(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Starter, int, Relays]]:
    """A starter, the port inside the job's network, and the relays between."""
    starter = Starter()
    server = await asyncio.start_server(starter.serve, "127.0.0.1", 0)
    outside = Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])
    inside = socket.create_server(("127.0.0.1", 0))
    inside.setblocking(False)
    port = inside.getsockname()[1]
    monkeypatch.setattr(chirp, "listeners_of", lambda pid: [outside])
    monkeypatch.setattr(chirp, "_listener_inside", lambda namespace, endpoint: inside)
    relays = Relays("wn1~1~slot1~1~1", 1)
    await relays.open("a namespace")
    try:
        yield starter, port, relays
    finally:
        await relays.close()
        assert inside.fileno() == -1, "a listener would keep the namespace alive"
        server.close()


async def talk(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port)


async def until(what: str, probe: object, timeout: float = 5) -> None:
    assert callable(probe)
    try:
        async with asyncio.timeout(timeout):
            while not probe():
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(what)


def test_sixteen_are_served_and_the_next_waits_for_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with relayed(monkeypatch) as (starter, port, _):
            streams = [await talk(port) for _ in range(20)]
            await until("sixteen", lambda: starter.now == 16)
            await asyncio.sleep(0.1)
            assert starter.ever == 16
            streams[-1][1].write(b"hello")
            for _, writer in streams[:19]:
                writer.close()
            async with asyncio.timeout(5):
                assert await streams[-1][0].read(100) == b"HELLO"
            streams[-1][1].close()

    asyncio.run(main())


def test_a_flood_writes_few_log_lines_and_costs_little_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(chirp, "CONNECT_BURST", 1000)
    monkeypatch.setattr(chirp, "LOG_PER_SECOND", 0.0)
    caplog.set_level(logging.INFO)

    async def main() -> tuple[int, int]:
        async with relayed(monkeypatch) as (starter, port, relays):
            held = [await talk(port) for _ in range(16)]
            await until("all places are taken", lambda: starter.now == 16)
            before = len(caplog.records)
            for _ in range(200):  # each takes the place of the one before, and another wants one at once
                held.append(await talk(port))
                held.pop(0)[1].close()
                await asyncio.sleep(0.001)
            await until("some were served", lambda: starter.ever > 100)
            said = len(caplog.records) - before
            for _, writer in held:
                writer.close()
            return said, relays._lines.dropped

    said, dropped = asyncio.run(main())
    assert said == chirp.LOG_BURST
    assert dropped > 50, "positive control: the flood provoked far more lines"


def test_connections_come_at_a_bounded_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> int:
        async with relayed(monkeypatch) as (starter, port, _):

            async def flood() -> None:
                while True:
                    _, writer = await talk(port)
                    writer.close()

            flooding = [asyncio.create_task(flood()) for _ in range(4)]
            await asyncio.sleep(1)
            for task in flooding:
                task.cancel()
            return starter.ever

    served = asyncio.run(main())
    assert 20 <= served <= chirp.CONNECT_BURST + 3 * chirp.CONNECTS_PER_SECOND


def test_nothing_is_lost_at_the_end_of_a_long_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with relayed(monkeypatch) as (_, port, _relays):
            reader, writer = await talk(port)
            writer.write(b"x" * 3_000_000)
            writer.write_eof()
            await asyncio.sleep(0.5)  # the reader is slow: the answer waits in buffers when its sender has gone
            async with asyncio.timeout(10):
                assert await reader.read() == b"X" * 3_000_000
            writer.close()

    asyncio.run(main())


def test_an_idle_connection_is_closed_and_a_busy_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chirp, "IDLE", 0.3)

    async def main() -> None:
        async with relayed(monkeypatch) as (starter, port, _):
            idle, busy = await talk(port), await talk(port)
            for _ in range(8):
                busy[1].write(b"x")
                assert await busy[0].read(10) == b"X"
                await asyncio.sleep(0.1)
            assert starter.now == 1
            with contextlib.suppress(ConnectionResetError):
                assert await idle[0].read(10) == b""
            for _, writer in (idle, busy):
                writer.close()

    asyncio.run(main())


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = Bucket(3, 2.0, now=10.0)
    assert [bucket.take(10.0) for _ in range(5)] == [True, True, True, False, False]
    assert bucket.dropped == 2
    assert [bucket.take(at) for at in (10.4, 10.5, 11.0, 11.1)] == [False, True, True, False]
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False], "never more than its burst"
