"""The ports and bridges of Open vSwitch, through `ovs-vsctl` (one transaction a call, always with a deadline).

`ovs-vsctl` and not a client of our own: it waits until the switch has acted, so a port that was added has its OpenFlow
number when the call returns; and it costs nothing while idle. Adding is done in batches ahead of time and deleting in
the background, because both become slower as a bridge grows.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovs_agent import command
from ovs_agent.errors import AgentError
from ovs_agent.plan import Lane, lane_number_of_port

log = logging.getLogger(__name__)
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
    if "Alarm clock" in text or "did not come back" in text:
        return "; it waited in vain: is ovs-vswitchd running?"
    return ""


class Ovsdb:
    """One OVSDB server."""

    def __init__(self, remote: str, rundir: Path, timeout: int = 10) -> None:
        self._base = ["ovs-vsctl", f"--timeout={timeout}", f"--db={remote}"]
        self._env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin", "OVS_RUNDIR": str(rundir)}
        self._timeout = timeout + 5

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
        words: list[str] = []
        for lane in lanes:
            words += ["--", "--may-exist", "add-port", bridge, lane.port]
            words += ["--", "set", "Interface", lane.port, f"ofport_request={lane.ofport}"]
            words += [f"external_ids:lark-node={lane.node}", f"external_ids:lark-lane={lane.number}"]
        await self.vsctl(words[1:])
        wanted = {lane.port for lane in lanes}
        return {p.name: p.ofport for p in await self.ports(bridge) if p.name in wanted and p.ofport is not None}

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
        await self.vsctl(["--if-exists", "set", "Interface", port, f'external_ids:lark-attempt="{attempt}"'])

    async def delete_ports(self, bridge: str, names: Sequence[str]) -> None:
        """Unplug; ports that are not there are no error."""
        if names:
            words: list[str] = []
            for name in names:
                words += ["--", "--if-exists", "del-port", bridge, name]
            await self.vsctl(words[1:])

    async def interface(self, name: str) -> tuple[int | None, str | None]:
        """OpenFlow number and MAC of an interface."""
        for row in await self.table("Interface", ["name", "ofport", "mac_in_use"]):
            if row["name"] == name:
                number = row["ofport"]
                return (number if isinstance(number, int) and number > 0 else None), row["mac_in_use"]
        return None, None
