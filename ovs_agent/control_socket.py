"""The control socket of an Open vSwitch daemon, as `ovs-appctl` uses it, without a process for each command.

JSON-RPC 1.0 over a unix socket (ovs-appctl(8)); answers have no end mark. A job's end asks several things here, and a
process for each would cost the node more than all the rest of its tear-down.

Invariants: one connection a command, closed in any case; a daemon that does not answer in time is an error.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

from ovs_agent.errors import AgentError

CHUNK = 256 * 1024


class ControlError(AgentError):
    """The daemon is not there, did not answer, or refused the command."""


async def ask(path: Path, verb: str, words: Sequence[str], timeout: float) -> str:
    """What the daemon says to a command. Raises ControlError with its words when it refuses."""
    shown = f"{verb} {' '.join(words)}".strip()[:300]
    try:
        async with asyncio.timeout(timeout):
            return await _ask(path, verb, words)
    except TimeoutError:
        raise ControlError(f"{path} did not answer within {timeout:g} s", shown) from None
    except OSError as e:
        raise ControlError(f"{path} cannot be asked: {e.strerror or e}", shown) from None
    except _RefusedError as e:
        raise ControlError(str(e).strip(), shown) from None


class _RefusedError(Exception):
    pass


async def _ask(path: Path, verb: str, words: Sequence[str]) -> str:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(json.dumps({"id": 0, "method": verb, "params": list(words)}).encode())
        await writer.drain()
        received = b""
        while part := await reader.read(CHUNK):
            received += part
            if not received.rstrip().endswith(b"}"):
                continue
            try:
                answer = json.loads(received)
            except ValueError:
                continue  # a brace inside, and more to come
            if answer.get("error") is not None:
                raise _RefusedError(str(answer["error"]))
            return str(answer.get("result", ""))
        raise ConnectionResetError("the daemon closed the connection")
    finally:
        writer.close()
