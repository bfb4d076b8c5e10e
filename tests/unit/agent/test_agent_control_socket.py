"""Commands on a daemon's control socket: answers in pieces, refusals, silence, nobody there."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from ovs_agent import control_socket
from ovs_agent.control_socket import ControlError


def ask(tmp_path: Path, pieces: list[bytes], *, hang: bool = False, timeout: float = 5) -> tuple[str, object]:
    """What is understood of an answer, and what was asked."""
    heard: list[object] = []

    async def main() -> str:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.append(json.loads(await reader.read(65536)))
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.01)
            if hang:
                await asyncio.sleep(1)
            writer.close()

        server = await asyncio.start_unix_server(serve, tmp_path / "ctl")
        try:
            return await control_socket.ask(tmp_path / "ctl", "dpctl/flush-conntrack", ["zone=7"], timeout)
        finally:
            server.close()

    return asyncio.run(main()), heard[0]


def test_an_answer_in_pieces_with_braces_inside_is_understood_whole(tmp_path: Path) -> None:
    whole = json.dumps({"id": 0, "result": "a {b}\nc}", "error": None}).encode()
    said, heard = ask(tmp_path, [whole[:16], whole[16:24], whole[24:]])
    assert said == "a {b}\nc}"
    assert heard == {"id": 0, "method": "dpctl/flush-conntrack", "params": ["zone=7"]}


def test_a_refusal_is_an_error_with_the_words_of_the_daemon(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="no such zone"):
        ask(tmp_path, [b'{"id":0,"result":null,"error":"no such zone\\n"}'])


def test_a_daemon_that_is_silent_closes_or_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="did not answer within"):
        ask(tmp_path, [], hang=True, timeout=0.05)
    with pytest.raises(ControlError, match="cannot be asked"):
        ask(tmp_path, [b'{"id":0,"res'])
    with pytest.raises(ControlError, match="cannot be asked"):
        asyncio.run(control_socket.ask(tmp_path / "none", "x", [], 1))
