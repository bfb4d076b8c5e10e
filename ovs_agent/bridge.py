"""Bridges: their creation (`prepare-bridge`), the host lane in table 0, and watching over both while the agent runs.

Invariants: a bridge is secure (no flow, no traffic) and without in-band control from its creating transaction on,
because either would open it before the first flow is there. Only flows with the host lane's own cookie in table 0 are
ever touched. Table 0 is written over the bridge's management socket, so it never waits for a controller.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import re
import select
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovs_agent import command, netlink, plan
from ovs_agent.errors import AgentError
from ovs_agent.ovsdb import Ovsdb, SwitchError

log = logging.getLogger(__name__)
KERNEL_DATAPATH = Path("/sys/module/openvswitch")
MAX_BACKOFF_MS = 1000


@dataclass(frozen=True, slots=True)
class BridgeWish:
    """What `prepare-bridge` is to bring about."""

    name: str
    role: str
    datapath_type: str
    """Empty: as it is, and `system` for a new bridge."""
    datapath_id: str | None
    uplinks: tuple[str, ...]
    controllers: tuple[str, ...]
    mac: str | None


def wrong_settings(row: Mapping[str, Any]) -> list[str]:
    """What keeps a bridge closed and is not there, as the words that set it. `row` is what `Ovsdb.bridge` gives."""
    other = row["other_config"] or {}
    mend: list[str] = []
    if row["fail_mode"] != "secure":
        mend.append("fail_mode=secure")
    if other.get("disable-in-band") != "true":
        mend.append("other_config:disable-in-band=true")
    # OpenFlow tells a controller neither setting; this line, which it does tell, says that they were made.
    if other.get("dp-desc") != plan.PREPARED:
        mend.append(f'other_config:dp-desc="{plan.PREPARED}"')
    return mend


async def prepare(db: Ovsdb, rundir: Path, wish: BridgeWish, *, dry: bool = False) -> list[str]:
    """Create the bridge or mend it. Idempotent; returns what was changed (`dry`: what would be), in words."""
    done: list[str] = []

    async def change(words: Sequence[str], said: str) -> None:
        if not dry:
            await db.vsctl(words)
        done.append(said)

    there = await db.bridge(wish.name)
    mac = wish.mac
    # Open vSwitch takes a port without a device, and says so only in its own database.
    macs = [await netlink.in_thread(functools.partial(netlink.device_mac, device)) for device in wish.uplinks]
    for device, found in zip(wish.uplinks, macs, strict=True):
        if found is None:
            raise AgentError("no such device; name one that exists with --uplink", device)
    if mac is None and macs:
        mac = macs[0]
    for device in wish.uplinks:
        owner = await _owner(db, device)
        if owner not in (None, wish.name):
            raise AgentError(
                f"is a port of bridge {owner}; name another device with --uplink, or take it from there first "
                f"(ovs-vsctl del-port {owner} {device})",
                device,
            )
    if there is None:
        kind = wish.datapath_type or "system"
        if kind == "system" and not KERNEL_DATAPATH.exists():
            raise AgentError(
                "the kernel has no module openvswitch, which `--datapath-type system` needs; "
                "`modprobe openvswitch`, or `--datapath-type netdev` for the datapath in userspace",
                f"bridge {wish.name}",
            )
        words = ["add-br", wish.name, "--", "set", "Bridge", wish.name, f"datapath_type={kind}"]
        words += _mend({"fail_mode": None, "other_config": None, "protocols": None}, wish, mac)
        for device in wish.uplinks:
            words += ["--", "add-port", wish.name, device]
        await change(words, f"created bridge {wish.name} ({kind}, fail_mode=secure)")
    else:
        if wish.datapath_type and (there["datapath_type"] or "system") != wish.datapath_type:
            raise AgentError(
                f"exists with datapath_type={there['datapath_type'] or 'system'}, not {wish.datapath_type}; "
                "delete it first (ovs-vsctl del-br) or name the type it has",
                f"bridge {wish.name}",
            )
        if mend := _mend(there, wish, mac):
            await change(["set", "Bridge", wish.name, *mend], f"set {' '.join(mend)}")
        ports = set((await db.vsctl(["list-ports", wish.name])).split())
        for device in wish.uplinks:
            if device not in ports:
                await change(["--may-exist", "add-port", wish.name, device], f"added port {device}")
    if there is None and dry:
        return done
    if wish.controllers:
        now = sorted(one.target for one in await db.controllers(wish.name))
        if now != sorted(wish.controllers):
            await change(_set_controllers(wish), f"set controller {' '.join(wish.controllers)}")
    done += await hasten(db, wish.name, dry=dry)
    uplink = wish.uplinks[0] if wish.role == "worker" and wish.uplinks else None
    changed = await assert_table0(db, rundir, wish.name, uplink, dry=dry)
    if changed:
        done.append(f"put {changed} flows into table 0")
    return done


async def _owner(db: Ovsdb, port: str) -> str | None:
    """The bridge that a port belongs to."""
    for name in (await db.vsctl(["list-br"])).split():
        if port in (await db.vsctl(["list-ports", name])).split():
            return name
    return None


async def lacking(db: Ovsdb, wish: BridgeWish) -> list[str]:
    """What nobody has said of a bridge and only its administrator can say, in words."""
    row = await db.bridge(wish.name)
    other = (row["other_config"] or {}) if row else {}
    found = []
    if not wish.datapath_id and not other.get("datapath-id"):
        own = f", now {row['datapath_id']}" if row and row["datapath_id"] else ""
        found.append(
            f"it has no datapath id of its own (--datapath-id, 16 hexadecimal digits as in site.yaml): Open vSwitch "
            f"makes one of a MAC{own}, and the controller turns away a bridge whose id site.yaml does not have"
        )
    if not wish.controllers and not (row and await db.controllers(wish.name)):
        passes = "nothing but the host's own traffic passes" if wish.role == "worker" else "nothing passes"
        found.append(f"it has no controller (--controller ssl:ADDRESS:6653): no policy reaches it, and {passes}")
    return found


def _mend(there: Mapping[str, Any], wish: BridgeWish, mac: str | None) -> list[str]:
    """Words for `set Bridge` that make of what is there what is wished."""
    other = there["other_config"] or {}
    mend = wrong_settings(there)
    if wish.datapath_id and other.get("datapath-id") != wish.datapath_id:
        mend.append(f"other_config:datapath-id={wish.datapath_id}")
    # Without this the bridge's MAC is the lowest of its ports' and changes under the host as job ports come and go.
    if mac and other.get("hwaddr") != mac:
        mend.append(f'other_config:hwaddr="{mac}"')
    protocols = there["protocols"]
    if set(protocols if isinstance(protocols, list) else [protocols]) != {"OpenFlow13", "OpenFlow14"}:
        mend.append("protocols=OpenFlow13,OpenFlow14")
    return mend


def _set_controllers(wish: BridgeWish) -> list[str]:
    """One transaction: what the bridge connects to, and how soon it tries again. (`set-controller` cannot say the
    second for more than one.)"""
    words: list[str] = []
    for number, target in enumerate(wish.controllers):
        words += [f"--id=@c{number}", "create", "Controller", f'target="{target}"', f"max_backoff={MAX_BACKOFF_MS}"]
        words.append("--")
    names = ",".join(f"@c{number}" for number in range(len(wish.controllers)))
    return [*words, "set", "Bridge", wish.name, f"controller={names}"]


async def hasten(db: Ovsdb, bridge: str, *, dry: bool = False) -> list[str]:
    """Give controllers that have no `max_backoff` one. (Open vSwitch would wait up to 8 s between two tries.)"""
    slow = [one for one in await db.controllers(bridge) if one.max_backoff is None]
    for one in [] if dry else slow:
        await db.vsctl(["set", "Controller", one.uuid, f"max_backoff={MAX_BACKOFF_MS}"])
    return [f"set max_backoff={MAX_BACKOFF_MS} of controller {one.target}" for one in slow]


def _target(rundir: Path, bridge: str) -> str:
    return f"unix:{rundir / (bridge + '.mgmt')}"


async def _ofctl(words: Sequence[str], stdin: str | None = None) -> str:
    try:
        return await command.run(["ovs-ofctl", "-O", "OpenFlow14", "--timeout=5", *words], stdin=stdin, timeout=8)
    except command.CommandError as e:
        raise SwitchError(e.text, e.where) from e


async def dump_table0(rundir: Path, bridge: str) -> list[str]:
    """The host lane's flows as the switch has them."""
    text = await _ofctl(["--no-stats", "--no-names", "dump-flows", _target(rundir, bridge), "table=0"])
    return [line.strip() for line in text.splitlines() if "actions=" in line]


async def wanted_table0(db: Ovsdb, bridge: str, uplink: str | None) -> list[str]:
    if uplink is None:
        return plan.gate_table0()
    number, _ = await db.interface(uplink)
    _, mac = await db.interface(bridge)
    if number is None or not mac:
        raise SwitchError(f"uplink {uplink} or the bridge's own port is not ready", f"bridge {bridge}")
    return plan.worker_table0(number, mac)


async def assert_table0(db: Ovsdb, rundir: Path, bridge: str, uplink: str | None, *, dry: bool = False) -> int:
    """Make table 0 what it should be; 0 flows are sent when it is already. Returns how many were (`dry`: would be)
    sent."""
    wanted = await wanted_table0(db, bridge, uplink)
    have = await dump_table0(rundir, bridge)
    if same_lane(have, wanted):
        return 0
    if dry:
        return len(wanted)
    # One bundle: the old lane goes and the new one comes in one step.
    text = f"delete {_MARK}/-1,table=0\n" + "".join(f"add {flow}\n" for flow in wanted)
    await _ofctl(["--bundle", "add-flows", _target(rundir, bridge), "-"], stdin=text)
    return len(wanted)


_MARK = f"cookie={plan.HOST_LANE_COOKIE:#x}"


def is_lane(flow: str) -> bool:
    """Whether a dumped flow of table 0 is the agent's."""
    return _MARK in flow


def same_lane(have: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether table 0 holds the host's lane, the whole of it, and no other flow with its mark."""
    ours = [flow for flow in have if is_lane(flow)]
    return len(ours) == len(wanted) and {_shape(f) for f in ours} == {_shape(f) for f in wanted}


def _shape(flow: str) -> tuple[str, ...]:
    """Words of a flow in an order of their own, so that a planned flow and a dumped one compare equal."""
    head, _, actions = flow.strip().partition("actions=")
    words = [w for w in re.split(r"[ ,]+", head.lower()) if w and w != "table=0"]
    return (*sorted(words), actions.strip().lower())


class SwitchWatch:
    """Re-asserts table 0 when ovs-vswitchd comes (back), by its pid file and a pidfd: no polling while it lives."""

    def __init__(self, db: Ovsdb, rundir: Path, bridge: str, uplink: str | None) -> None:
        self._db = db
        self._rundir = rundir
        self._bridge = bridge
        self._uplink = uplink
        self.alive = False

    def pid(self) -> int | None:
        try:
            return int((self._rundir / "ovs-vswitchd.pid").read_text())
        except (OSError, ValueError):
            return None

    async def run(self, on_return: Callable[[], Awaitable[None]]) -> None:
        """Until cancelled. `on_return`: when the switch is first seen, and whenever it came back, after table 0."""
        first = True
        while True:
            pid = self.pid()
            fd = -1
            if pid is not None:
                with contextlib.suppress(OSError):
                    fd = os.pidfd_open(pid)
            if fd < 0:
                if self.alive or first:
                    log.error("ovs-vswitchd is not running: bridge=%s carries nothing", self._bridge)
                self.alive = first = False
                await asyncio.sleep(0.1)
                continue
            try:
                if await self._assert_until_done(fd):
                    if not first:
                        log.warning("ovs-vswitchd came back: pid=%d bridge=%s table 0 is in place", pid, self._bridge)
                    first = False
                    await on_return()
                    self.alive = True
                    await _readable(fd)
                    log.error("ovs-vswitchd ended: pid=%d bridge=%s", pid, self._bridge)
                    self.alive = False
            finally:
                os.close(fd)

    async def _assert_until_done(self, pidfd: int) -> bool:
        said = False
        while not select.select([pidfd], [], [], 0)[0]:
            try:
                await assert_table0(self._db, self._rundir, self._bridge, self._uplink)
                return True
            except AgentError as e:
                if not said:
                    log.warning("table 0 of bridge=%s cannot be written yet: %s", self._bridge, e)
                said = True
                await asyncio.sleep(0.1)
        return False


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
