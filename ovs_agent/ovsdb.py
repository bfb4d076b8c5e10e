"""The ports and bridges of Open vSwitch: what is asked for every job over one kept connection (`ovsdb_wire`), the rest
through `ovs-vsctl` (one transaction a call, always with a deadline).

Both wait until the switch has acted, so a port that was added has its OpenFlow number when the call returns, and both
cost nothing while idle. Adding is done in batches ahead of time and deleting in the background, because both become
slower as a bridge grows; labels that are written at the same time are one transaction.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovs_agent import command
from ovs_agent.errors import AgentError
from ovs_agent.ovsdb_wire import Operation, Wire, WireError
from ovs_agent.pace import Pace
from ovs_agent.plan import Lane, lane_number_of_port

log = logging.getLogger(__name__)
LABELLED_TOGETHER = 1.0
"""Seconds between two writes of labels."""
_SHIELD = "lark-border-port"
"""In external_ids of the QoS rows that are ours: whose they are."""


class SwitchError(AgentError):
    """Open vSwitch is not there, or would not do it."""


@dataclass(frozen=True, slots=True)
class Port:
    name: str
    ofport: int | None
    external_ids: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Controller:
    """One OpenFlow controller of a bridge, as the switch shows it: a few seconds late."""

    uuid: str
    target: str
    connected: bool
    max_backoff: int | None


def _decode(value: Any) -> Any:
    """A value of OVSDB's JSON: sets of at most one become the value or None, maps become dictionaries."""
    if isinstance(value, list) and len(value) == 2:
        if value[0] == "set":
            items = [_decode(v) for v in value[1]]
            return items[0] if len(items) == 1 else (items or None)
        if value[0] == "map":
            return {k: _decode(v) for k, v in value[1]}
        if value[0] == "uuid":
            return value[1]
    return value


def _hint(text: str) -> str:
    """Who is not there, where that is what a failure of ovs-vsctl means."""
    if "database connection failed" in text:
        return "; is ovsdb-server running, and is bridge.ovsdb (--ovsdb) its address?"
    if any(said in text for said in ("Alarm clock", "did not come back", "no answer within", "timed out")):
        return "; it waited in vain: is ovs-vswitchd running?"
    return ""


def _find(table: str, name: str, *columns: str) -> Operation:
    return {"op": "select", "table": table, "where": [["name", "==", name]], "columns": list(columns)}


def _in_bridge(bridge: str, what: str, ports: Sequence[Sequence[str]]) -> Operation:
    """Ports into or out of a bridge; a port that is in none is deleted by the database."""
    changes = [["ports", what, ["set", [list(port) for port in ports]]]]
    return {"op": "mutate", "table": "Bridge", "where": [["name", "==", bridge]], "mutations": changes}


class Ovsdb:
    """One OVSDB server."""

    def __init__(self, remote: str, rundir: Path, timeout: int = 10) -> None:
        self._base = ["ovs-vsctl", f"--timeout={timeout}", f"--db={remote}"]
        self._env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin", "OVS_RUNDIR": str(rundir)}
        self._timeout = timeout + 5
        self._acted = timeout
        self._wire = Wire(remote, self._timeout)
        self._labels: dict[str, tuple[str, asyncio.Future[None]]] = {}
        self._labelling: asyncio.Task[None] | None = None
        self._label_pace = Pace(LABELLED_TOGETHER)

    async def close(self) -> None:
        await self._wire.close()

    async def _transact(self, operations: Sequence[Operation]) -> list[dict[str, Any]]:
        try:
            return await self._wire.transact(operations)
        except WireError as e:
            raise SwitchError(e.text + _hint(e.text), e.where) from e

    async def _commit(self, operations: Sequence[Operation], then: Sequence[Operation]) -> list[dict[str, Any]]:
        """Do it, wait until the switch has acted, and ask: the results of `then`."""
        counted: list[Operation] = [
            {"op": "mutate", "table": "Open_vSwitch", "where": [], "mutations": [["next_cfg", "+=", 1]]},
            {"op": "select", "table": "Open_vSwitch", "where": [], "columns": ["next_cfg"]},
        ]
        number = (await self._transact([*operations, *counted]))[len(operations) + 1]["rows"][0]["next_cfg"]
        acted: Operation = {
            "op": "wait",
            "table": "Open_vSwitch",
            "where": [["cur_cfg", "<", number]],
            "columns": ["cur_cfg"],
            "until": "==",
            "rows": [],
            "timeout": self._acted * 1000,
        }
        return (await self._transact([acted, *then]))[1:]

    async def vsctl(self, words: Sequence[str]) -> str:
        try:
            return await command.run([*self._base, *words], timeout=self._timeout, env=self._env)
        except command.CommandError as e:
            raise SwitchError(e.text + _hint(e.text), e.where) from e

    async def table(self, table: str, columns: Iterable[str]) -> list[dict[str, Any]]:
        text = await self.vsctl(["--format=json", f"--columns={','.join(columns)}", "list", table])
        document = json.loads(text)
        return [dict(zip(document["headings"], map(_decode, row), strict=True)) for row in document["data"]]

    async def bridge(self, name: str) -> dict[str, Any] | None:
        columns = ["name", "fail_mode", "datapath_type", "datapath_id", "other_config", "protocols", "controller"]
        for row in await self.table("Bridge", columns):
            if row["name"] == name:
                return row
        return None

    async def controllers(self, bridge: str) -> list[Controller]:
        mine = set((await self.vsctl(["get", "Bridge", bridge, "controller"])).strip().strip("[]").split(", "))
        rows = await self.table("Controller", ["_uuid", "target", "is_connected", "max_backoff"])
        return [
            Controller(row["_uuid"], row["target"], row["is_connected"] is True, row["max_backoff"])
            for row in rows
            if row["_uuid"] in mine
        ]

    async def add_lanes(self, bridge: str, lanes: Sequence[Lane]) -> dict[str, int]:
        """Plug lanes into the bridge in one transaction. Returns the OpenFlow number of each port that has one."""
        if not lanes:
            return {}
        found = await self._transact(
            [
                {"op": "select", "table": "Bridge", "where": [["name", "==", bridge]], "columns": ["ports"]},
                *(_find("Port", lane.port, "_uuid") for lane in lanes),
            ]
        )
        if not found[0]["rows"]:
            raise SwitchError("there is no such bridge", f"bridge {bridge}")
        work: list[Operation] = []
        for lane, had in zip(lanes, found[1:], strict=True):
            ids = {"lark-node": lane.node, "lark-lane": str(lane.number)}
            row = {"ofport_request": lane.ofport, "external_ids": ["map", [list(pair) for pair in ids.items()]]}
            if had["rows"]:  # a killed agent plugged it
                work.append({"op": "update", "table": "Interface", "where": [["name", "==", lane.port]], "row": row})
                port = had["rows"][0]["_uuid"]
            else:
                new, port = f"i{lane.number}", ["named-uuid", f"p{lane.number}"]
                work += [
                    {"op": "insert", "table": "Interface", "uuid-name": new, "row": {"name": lane.port, **row}},
                    {
                        "op": "insert",
                        "table": "Port",
                        "uuid-name": port[1],
                        "row": {"name": lane.port, "interfaces": ["named-uuid", new]},
                    },
                ]
            work.append(_in_bridge(bridge, "insert", [port]))
        rows = await self._commit(work, [_find("Interface", lane.port, "name", "ofport") for lane in lanes])
        numbers = [(row["name"], _decode(row["ofport"])) for result in rows for row in result["rows"]]
        return {name: number for name, number in numbers if isinstance(number, int) and number > 0}

    async def ports(self, bridge: str) -> list[Port]:
        """The interfaces of a bridge that carry a lane's name."""
        on_bridge = set((await self.vsctl(["list-ports", bridge])).split())
        rows = await self.table("Interface", ["name", "ofport", "external_ids"])
        return [
            Port(row["name"], row["ofport"] if isinstance(row["ofport"], int) and row["ofport"] > 0 else None, ids)
            for row in rows
            if row["name"] in on_bridge and lane_number_of_port(row["name"]) is not None
            for ids in [row["external_ids"] or {}]
        ]

    async def plugged(self, bridge: str) -> frozenset[str]:
        """The names of all ports of a bridge."""
        return frozenset((await self.vsctl(["list-ports", bridge])).split())

    async def shield(self, port: str) -> None:
        """Have Open vSwitch leave a port's qdisc alone: when it starts it removes any root qdisc that it does not know.

        Raises SwitchError where the port has a QoS of Open vSwitch's own.
        """
        ours, kinds = await self._shields(port)
        uuid = next((row["qos"] for row in await self.table("Port", ["name", "qos"]) if row["name"] == port), None)
        kind = kinds.get(uuid) if uuid else None
        if kind == "linux-noop":
            return
        if kind is not None:
            raise SwitchError(
                f"Open vSwitch shapes this port itself (qos {kind}); for the queues of the border: "
                f"ovs-vsctl clear port {port} qos",
                port,
            )
        # A row of an earlier port of this name is still there: rows of QoS go only when they are told to.
        made = ["--id=@q", "create", "QoS", "type=linux-noop", f"external_ids:{_SHIELD}={port}", "--"]
        words = ["--no-wait", "--", *([] if ours else made), "set", "Port", port, f"qos={ours[0] if ours else '@q'}"]
        await self.vsctl(words)

    async def unshield(self, port: str) -> None:
        """Undo `shield`; what somebody else wrote there stays."""
        ours, _ = await self._shields(port)
        if not ours:
            return
        words = ["--no-wait"]
        for row in await self.table("Port", ["name", "qos"]):
            if row["qos"] in ours:
                words += ["--", "clear", "Port", row["name"], "qos"]
        for uuid in ours:
            words += ["--", "destroy", "QoS", uuid]
        await self.vsctl(words)

    async def _shields(self, port: str) -> tuple[list[str], dict[str, str]]:
        """Rows of QoS that `shield` made for a port, and the type of every row."""
        rows = await self.table("QoS", ["_uuid", "type", "external_ids"])
        ours = [row["_uuid"] for row in rows if (row["external_ids"] or {}).get(_SHIELD) == port]
        return ours, {row["_uuid"]: row["type"] for row in rows}

    async def label(self, port: str, attempt: str) -> None:
        """Write which attempt has the port: for people and tools that read the database."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._labels[port] = (attempt, future)
        if self._labelling is None or self._labelling.done():
            self._labelling = asyncio.create_task(self._write_labels())
        await future

    async def _write_labels(self) -> None:
        """All that wait, together; then those that came meanwhile."""
        while self._labels:
            await self._label_pace.turn()
            batch, self._labels = self._labels, {}
            work: list[Operation] = []
            for port, (attempt, _) in batch.items():
                changes = [
                    ["external_ids", "delete", ["set", ["lark-attempt"]]],
                    ["external_ids", "insert", ["map", [["lark-attempt", attempt]]]],
                ]
                where = [["name", "==", port]]
                work.append({"op": "mutate", "table": "Interface", "where": where, "mutations": changes})
            error: AgentError | None = None
            try:
                await self._transact(work)
            except AgentError as e:
                error = e
            for _, future in batch.values():
                if future.done():
                    continue
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(error)

    async def delete_ports(self, bridge: str, names: Sequence[str]) -> None:
        """Unplug; ports that are not there are no error."""
        if not names:
            return
        found = await self._transact([_find("Port", name, "_uuid") for name in names])
        ports = [row["_uuid"] for result in found for row in result["rows"]]
        if ports:
            await self._commit([_in_bridge(bridge, "delete", ports)], [])

    async def interface(self, name: str) -> tuple[int | None, str | None]:
        """OpenFlow number and MAC of an interface."""
        for row in await self.table("Interface", ["name", "ofport", "mac_in_use"]):
            if row["name"] == name:
                number = row["ofport"]
                return (number if isinstance(number, int) and number > 0 else None), row["mac_in_use"]
        return None, None
