"""The kept connection to the database: what batches of lanes, labels and deletions cost, and what may go wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from ovs_agent import plan
from ovs_agent.ovsdb import Ovsdb, SwitchError

NET = plan.network("wn1", "10.1.0.0/24", 16, None, None, None, None, 1500)
LANES = [plan.lane(NET, number) for number in range(1, 17)]


class Server:
    """Answers as ovsdb-server does, from a table of ports; counts what it is asked and how often it was called."""

    def __init__(self) -> None:
        self.ports: set[str] = {"lj3"}
        self.asked: list[list[dict[str, Any]]] = []
        self.connections = 0
        self.refuse = ""
        self.drop = False
        self.deaf = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.write(b'{"id":"echo","method":"echo","params":[]}')
        decoder, text = json.JSONDecoder(), ""
        while part := await reader.read(65536):
            text += part.decode()
            while text:
                try:
                    message, end = decoder.raw_decode(text)
                except ValueError:
                    break
                text = text[end:]
                if message["id"] == "echo":
                    assert message["result"] == []
                    continue
                if self.drop:
                    self.drop = False
                    writer.close()
                    return
                if self.deaf:
                    continue
                operations = message["params"][1:]
                self.asked.append(operations)
                await asyncio.sleep(0.002)
                results = [self.answer(o) for o in operations]
                if self.refuse:
                    results.append({"error": "constraint violation", "details": self.refuse})
                whole = json.dumps({"id": message["id"], "result": results, "error": None}, ensure_ascii=False).encode()
                writer.write(whole[:25])
                await asyncio.sleep(0.001)
                writer.write(whole[25:])
        writer.close()

    def answer(self, o: dict[str, Any]) -> dict[str, Any]:
        if o["op"] == "select":
            if o["table"] == "Open_vSwitch":
                return {"rows": [{"next_cfg": 8}]}
            if o["table"] == "Bridge":
                return {"rows": [{"ports": ["set", []]}] if o["where"][0][2] == "br" else []}
            name = o["where"][0][2]
            row = {"_uuid": ["uuid", f"uuid-of-{name}"]} if o["table"] == "Port" else {"name": name, "ofport": 1001}
            return {"rows": [row] if name in self.ports else []}
        if o["op"] == "insert" and o["table"] == "Port":
            self.ports.add(o["row"]["name"])
        return {"count": 1, "note": "é"}


def run(tmp_path: Path, work: Callable[[Ovsdb, Server], Coroutine[Any, Any, None]]) -> Server:
    server = Server()

    async def main() -> None:
        listener = await asyncio.start_unix_server(server.serve, tmp_path / "db.sock")
        db = Ovsdb(f"unix:{tmp_path}/db.sock", tmp_path, timeout=2)
        try:
            await work(db, server)
        finally:
            await db.close()
            listener.close()

    asyncio.run(main())
    return server


def test_sixteen_lanes_are_plugged_in_three_messages_on_one_connection(tmp_path: Path) -> None:
    async def work(db: Ovsdb, server: Server) -> None:
        assert set(await db.add_lanes("br", LANES)) == {lane.port for lane in LANES}

    server = run(tmp_path, work)
    assert len(server.asked) == 3
    assert server.connections == 1
    made = [o["row"]["name"] for o in server.asked[1] if o["op"] == "insert" and o["table"] == "Port"]
    assert "lj3" not in made  # it was plugged already: it is changed, not made twice
    assert len(made) == 15
    assert [o["where"][0][2] for o in server.asked[1] if o["op"] == "update"] == ["lj3"]
    wait = server.asked[2][0]
    assert (wait["op"], wait["where"], wait["until"]) == ("wait", [["cur_cfg", "<", 8]], "==")


def test_a_port_that_got_no_number_and_a_bridge_that_is_not_there_are_told(tmp_path: Path) -> None:
    async def work(db: Ovsdb, server: Server) -> None:
        with pytest.raises(SwitchError, match="no such bridge"):
            await db.add_lanes("other", LANES)
        server.refuse = "two ports named lj1"
        with pytest.raises(SwitchError, match="two ports named lj1"):
            await db.add_lanes("br", LANES)
        server.refuse = ""
        assert await db.add_lanes("br", LANES)

    run(tmp_path, work)


def test_labels_that_are_written_at_the_same_time_are_at_most_two_transactions(tmp_path: Path) -> None:
    async def work(db: Ovsdb, server: Server) -> None:
        await asyncio.gather(*(db.label(lane.port, f"attempt-{lane.number}") for lane in LANES))

    server = run(tmp_path, work)
    assert len(server.asked) <= 2
    assert sum(map(len, server.asked)) == len(LANES)


def test_ports_that_are_not_there_are_deleted_without_a_change(tmp_path: Path) -> None:
    async def work(db: Ovsdb, server: Server) -> None:
        await db.delete_ports("br", ["lj90", "lj91"])
        assert len(server.asked) == 1
        await db.delete_ports("br", ["lj3", "lj91"])
        assert server.asked[2][0]["mutations"] == [["ports", "delete", ["set", [["uuid", "uuid-of-lj3"]]]]]

    run(tmp_path, work)


def test_a_connection_that_ended_is_an_error_once_and_made_anew_then(tmp_path: Path) -> None:
    async def work(db: Ovsdb, server: Server) -> None:
        server.drop = True
        with pytest.raises(SwitchError, match="is ovsdb-server running"):
            await db.label("lj3", "a")
        await db.label("lj3", "a")
        assert server.connections == 2

    run(tmp_path, work)


def test_a_connection_on_which_nothing_is_answered_is_given_up(tmp_path: Path) -> None:
    async def work(db: Ovsdb, server: Server) -> None:
        await db.label("lj3", "a")
        server.deaf = True
        with pytest.raises(SwitchError, match="no answer within"):
            await db.label("lj3", "b")
        server.deaf = False
        await db.label("lj3", "b")
        assert server.connections == 2

    run(tmp_path, work)


def test_a_server_that_is_not_there_is_told_with_the_way_to_mend_it(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(SwitchError, match="is ovsdb-server running"):
            await Ovsdb(f"unix:{tmp_path}/none.sock", tmp_path, timeout=2).delete_ports("br", ["lj1"])

    asyncio.run(main())
