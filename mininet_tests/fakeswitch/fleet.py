"""Many fake switches in one thread: they connect to a controller, come back when dropped, and can be connected to.

Invariants: one asyncio loop drives all of them, so a switch is only touched on that loop (`FleetThread.call` from
elsewhere). A connection that ends is tried again after `retry` seconds for as long as the fleet runs. Answers of a slow
switch come late, but in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mininet_tests.fakeswitch import wire
from mininet_tests.fakeswitch.switch import FakeSwitch
from mininet_tests.fakeswitch.tables import table_of

T = TypeVar("T")
Address = tuple[str, int]


class _Link(asyncio.Protocol):
    """One connection of one switch."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._session = place.switch.session(self._send)
        self._transport: asyncio.Transport | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._place.links.add(self)
        self._session.begin()

    def data_received(self, data: bytes) -> None:
        self._session.receive(data)
        if self._session.broken:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._session.end()
        self._place.links.discard(self)
        if not self.ended.done():
            self.ended.set_result(None)

    def _send(self, data: bytes) -> None:
        if self._place.delay:
            asyncio.get_running_loop().call_later(self._place.delay, self._write, data)
        else:
            self._write(data)

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


@dataclass(eq=False)
class Place:
    """One switch of a fleet and its connections."""

    switch: FakeSwitch
    source: str | None = None
    """The address it connects from; None: the system chooses."""
    delay: float = 0.0
    """Seconds by which everything it says comes late."""
    links: set[_Link] = field(default_factory=set)
    away: bool = False
    """Does not connect, and drops what there is (`Fleet.drop`)."""


class Fleet:
    """Switches with one controller to connect to, or none. Make it and use it on a running loop."""

    def __init__(
        self,
        switches: Sequence[FakeSwitch],
        controller: Address | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        sources: Sequence[str] = (),
        retry: float = 1.0,
        abreast: int = 64,
    ) -> None:
        """`sources`: addresses to connect from, in turn; `abreast`: how many connect at a time."""
        self.places = [
            Place(switch, sources[n % len(sources)] if sources else None) for n, switch in enumerate(switches)
        ]
        self._controller = controller
        self._tls = tls
        self._retry = retry
        self._gate = asyncio.Semaphore(abreast)
        self._tasks: list[asyncio.Task[None]] = []
        self._servers: list[asyncio.Server] = []

    def place(self, datapath_id: int) -> Place:
        return next(one for one in self.places if one.switch.datapath_id == datapath_id)

    def start(self) -> None:
        """Begin to connect; returns at once."""
        if self._controller is not None:
            self._tasks = [asyncio.create_task(self._keep_connected(place)) for place in self.places]

    async def listen(self, place: Place, host: str = "127.0.0.1", port: int = 0) -> int:
        """Let others connect to a switch, as `ovs-ofctl … tcp:HOST:PORT` does; gives the port."""
        server = await asyncio.get_running_loop().create_server(lambda: _Link(place), host, port)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    def drop(self, place: Place, *, away: bool = False) -> None:
        """End its connections; with `away` it stays away until `come_back`."""
        place.away = away
        for link in list(place.links):
            link.close()

    def come_back(self, place: Place) -> None:
        place.away = False

    @property
    def connected(self) -> int:
        """Switches that are on speaking terms with somebody."""
        return sum(any(session.version for session in place.switch.sessions) for place in self.places)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for server in self._servers:
            server.close()
        for place in self.places:
            self.drop(place)

    async def _keep_connected(self, place: Place) -> None:
        assert self._controller is not None
        loop = asyncio.get_running_loop()
        while True:
            if not place.away:
                with contextlib.suppress(OSError):
                    async with self._gate:
                        _, link = await loop.create_connection(
                            lambda: _Link(place), *self._controller, ssl=self._tls,
                            server_hostname="" if self._tls is not None else None,
                            local_addr=None if place.source is None else (place.source, 0),
                        )  # fmt: skip
                    await link.ended
            await asyncio.sleep(self._retry)

    # --- questions of another process

    async def control(self, path: Path) -> None:
        """Answer questions on a unix socket: a JSON object a line each way (docs/fakeswitch.md)."""
        self._servers.append(await asyncio.start_unix_server(self._serve_questions, path))

    async def _serve_questions(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            try:
                answer = self.ask(json.loads(line))
            except (KeyError, ValueError, TypeError, StopIteration) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            writer.write(json.dumps(answer).encode() + b"\n")
            with contextlib.suppress(ConnectionError):
                await writer.drain()
        writer.close()

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """One question: `{"do": "count"}`, or one about a switch, `{"do": "flows", "dpid": 7}`."""
        if question["do"] == "count":
            return self._count()
        place = self.place(question["dpid"])
        switch = place.switch
        match question["do"]:
            case "flows":
                found = [
                    {
                        "table": table_of(key),
                        "cookie": entry.cookie.hex(),
                        "match": entry.match.hex(),
                        "instructions": entry.instructions.hex(),
                    }
                    for key, entry in switch.tables.entries.items()
                ]
                return {"flows": found}
            case "add-port":
                switch.add_port(question["number"], question["name"])
            case "remove-port":
                switch.remove_port(question["number"])
            case "hold-barriers":
                switch.faults.hold_barriers = True
            case "release":
                switch.release()
            case "silent":
                switch.faults.silent = bool(question["silent"])
            case "delay":
                place.delay = float(question["seconds"])
            case "capacity":
                switch.tables.capacity = question["flows"]
            case "forget":
                switch.forget()
            case "drop":
                self.drop(place, away=bool(question.get("away")))
            case "come-back":
                self.come_back(place)
            case other:
                raise ValueError(f"{other!r}: no such thing to do")
        return {"ok": True}

    def _count(self) -> dict[str, Any]:
        received: Counter[int] = sum((place.switch.received for place in self.places), Counter())
        return {
            "switches": len(self.places),
            "connected": self.connected,
            "flows": sum(len(place.switch.tables.entries) for place in self.places),
            "flow_mods": sum(place.switch.flow_mods for place in self.places),
            "errors": sum(place.switch.errors for place in self.places),
            "bundles": received[wire.BUNDLE_CONTROL] // 2,
            "barriers": received[wire.BARRIER_REQUEST],
            "of": {f"{place.switch.datapath_id:x}": len(place.switch.tables.entries) for place in self.places},
        }


class FleetThread:
    """A fleet on a loop in a thread of its own, for tests that are not asynchronous."""

    def __init__(self, switches: Sequence[FakeSwitch], controller: Address | None = None, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fakeswitch", daemon=True)
        self._thread.start()
        self.fleet = self.call(lambda: Fleet(switches, controller, **options))
        self.call(self.fleet.start)

    def __enter__(self) -> FleetThread:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def call(self, function: Callable[[], T], timeout: float = 10) -> T:
        """Run a function on the loop; its answer."""

        async def on_loop() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(on_loop(), self._loop).result(timeout)

    def listen(self, switch: FakeSwitch, port: int = 0) -> int:
        """A TCP port of 127.0.0.1 where `ovs-ofctl` reaches the switch."""
        place = self.fleet.place(switch.datapath_id)
        return asyncio.run_coroutine_threadsafe(self.fleet.listen(place, port=port), self._loop).result(10)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self.fleet.stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
