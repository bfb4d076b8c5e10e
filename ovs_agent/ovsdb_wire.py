"""One kept connection to an OVSDB server, for what every job start and end asks (RFC 7047, JSON-RPC 1.0).

`ovs-vsctl` reads the whole database for each command, and is a process each time. Here a transaction is one message:
what it needs to know is asked for in it, and nothing is mirrored, so an idle connection costs nothing.

Invariants: answers are matched to questions by number, so a transaction that waits for the switch holds up no other;
when the connection ends everybody who waits is told, and the next question makes a new one. A question is put once: who
gets an error does not know whether it was done, and must ask for something that can be done twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ovs_agent.errors import AgentError

DATABASE = "Open_vSwitch"
CONNECT = 5.0
"""Seconds that a server has to take a connection."""
CHUNK = 256 * 1024

Operation = Mapping[str, Any]


class WireError(AgentError):
    """The server is not there, did not answer in time, or refused a transaction."""


class Wire:
    """`remote`: `unix:PATH` or `tcp:ADDRESS:PORT`."""

    def __init__(self, remote: str, timeout: float) -> None:
        self._remote = remote
        self._timeout = timeout
        self._numbers = itertools.count(1)
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._connecting = asyncio.Lock()

    async def transact(self, operations: Sequence[Operation]) -> list[dict[str, Any]]:
        """One result for each operation, or WireError: then none of them was done, or nobody knows."""
        try:
            async with asyncio.timeout(self._timeout):
                writer = await self._connected()
                number = next(self._numbers)
                future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
                self._waiting[number] = future
                try:
                    request = {"id": number, "method": "transact", "params": [DATABASE, *operations]}
                    writer.write(json.dumps(request).encode())
                    await writer.drain()
                    answer = await future
                finally:
                    self._waiting.pop(number, None)
        except TimeoutError:
            self._hang_up()  # it may be half open: the next question gets a new one
            raise WireError(f"no answer within {self._timeout:g} s", self._remote) from None
        except OSError as e:
            raise WireError(f"database connection failed ({e.strerror or e})", self._remote) from None
        if answer.get("error") is not None:
            raise WireError(f"the database refuses the request: {_words(answer['error'])}", self._remote)
        results = answer["result"]
        for result in results:  # one more than there are operations, where the commit itself has failed
            if isinstance(result, dict) and result.get("error"):
                raise WireError(f"the database refuses the transaction: {_words(result)}", self._remote)
        return list(results)

    def _hang_up(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    async def close(self) -> None:
        self._hang_up()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _connected(self) -> asyncio.StreamWriter:
        async with self._connecting:
            if self._writer is None:
                kind, _, where = self._remote.partition(":")
                async with asyncio.timeout(CONNECT):
                    if kind == "unix":
                        reader, writer = await asyncio.open_unix_connection(where)
                    else:
                        host, _, port = where.rpartition(":")
                        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port or 0))
                self._writer = writer
                self._reading = asyncio.create_task(self._read(reader, writer))
            return self._writer

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hand out answers until the connection ends."""
        decoder = json.JSONDecoder()
        text = ""
        pending = b""
        try:
            while part := await reader.read(CHUNK):
                pending += part
                try:
                    text += pending.decode()
                    pending = b""
                except UnicodeDecodeError:  # a character is cut in two
                    continue
                while text := text.lstrip():
                    try:
                        message, end = decoder.raw_decode(text)
                    except ValueError:
                        break  # more to come
                    text = text[end:]
                    self._take(message, writer)
        except OSError:
            pass
        finally:
            if self._writer is writer:
                self._writer = None
            writer.close()
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(ConnectionResetError("the server closed the connection"))

    def _take(self, message: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if message.get("method") == "echo":  # the server asks whether we are there
            answer = {"id": message.get("id"), "result": message.get("params"), "error": None}
            with contextlib.suppress(OSError):
                writer.write(json.dumps(answer).encode())
            return
        number = message.get("id")
        future = self._waiting.get(number) if isinstance(number, int) else None
        if future is not None and not future.done():
            future.set_result(message)


def _words(error: Any) -> str:
    if isinstance(error, dict):
        return ": ".join(str(error[key]) for key in ("error", "details") if error.get(key))
    return str(error)
