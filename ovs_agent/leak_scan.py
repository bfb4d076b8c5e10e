"""Looks at kernel, switch, ledger and controller, and has `leaks` judge what is there.

Invariants: only reads; nothing of the running agent is asked but `ping`. The ledger is read before and after the rest:
an attempt that either look knows is known, so that one which begins meanwhile is nobody's leak.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

from ovs_agent import command, held, netlink, plan, trust
from ovs_agent.config import AgentConfig
from ovs_agent.conntrack import Conntrack
from ovs_agent.controller_client import ControllerClient
from ovs_agent.errors import AgentError
from ovs_agent.leaks import Owner, Process, Seen, Verdict, judge, persistent
from ovs_agent.ledger import Ledger, Record, boot_id
from ovs_agent.life import PHASE_OF, State
from ovs_agent.ovsdb import Ovsdb

ATTEMPT_COOKIES = "cookie=0x4c07000000000000/0xffff000000000000"
"""Flows of attempts, by what `ryu_apps.openflow.cookies` gives them (a test compares)."""
CONTROLLER, SWITCH = "attempts at the controller", "the switch"
"""What could not be looked at, as the text of that trouble begins."""
SETTLE = 2.0
"""Seconds between two looks: a tear-down on its way is done by then."""


def agent_pid(path: Path) -> int | None:
    """Who listens on the agent's socket, by the kernel; None: nobody."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
        s.settimeout(2)
        try:
            s.connect(str(path))
        except OSError:
            return None
        return int(struct.unpack("3i", s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


def owners(records: Iterable[Record], boot: str) -> list[Owner]:
    """The ledger's attempts, and whether they live."""
    return [
        Owner(
            id=r.id,
            lane=r.lane,
            namespaces=r.namespaces,
            uid=r.uid,
            living=r.state not in (State.CLOSING, State.FAILED) and r.boot_id == boot and _lives(r),
            ready=r.state in PHASE_OF,
        )
        for r in records
    ]


def _lives(record: Record) -> bool:
    try:
        return trust.start_time(record.starter_pid) == record.starter_start and not _zombie(record.starter_pid)
    except trust.Refused:
        return False


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"
    except OSError:
        return True


async def look(config: AgentConfig, db: Ovsdb, controller: ControllerClient | None) -> Verdict:
    """One look. `controller`: None where it need not be asked."""
    boot = boot_id()
    pid = await asyncio.to_thread(agent_pid, config.socket)
    before = await asyncio.to_thread(_records, config)
    seen = await scan(config, db, controller, pid)
    after = await asyncio.to_thread(_records, config)
    known = {r.id: r for r in before} | {r.id: r for r in after}
    ids = {r.id for r in after}
    # Of one that ended meanwhile it is known that it has ended; what is left of it is found by the next look.
    found = [o for o in owners(known.values(), boot) if o.living or o.id in ids]
    return judge(config.node, found, seen, agent_runs=pid is not None)


async def settled(config: AgentConfig, db: Ovsdb, controller: ControllerClient | None) -> Verdict:
    """What is still there after a while, if there was anything."""
    first = await look(config, db, controller)
    if not first.lines():
        return first
    await asyncio.sleep(SETTLE)
    return persistent(first, await look(config, db, controller))


def _records(config: AgentConfig) -> list[Record]:
    return Ledger(config.state_dir).load() if (config.state_dir / "attempts").is_dir() else []


async def scan(config: AgentConfig, db: Ovsdb, controller: ControllerClient | None, agent: int | None) -> Seen:
    """Everything there is on this machine that looks like a job's. Looks at the switch last: it goes last, too."""
    trouble: list[str] = []
    registered: frozenset[str] | None = None
    if controller is not None:
        try:
            registered = frozenset(status.id for status in await controller.attempts())
        except AgentError as e:
            trouble.append(f"{CONTROLLER}: {e}")
    names = netlink.namespaces(plan.namespace_prefix(config.node))
    inodes = {inode: name for name in names if (inode := netlink.namespace_inode(name)) is not None}
    inside: dict[str, list[Process]] = {name: [] for name in inodes.values()}
    home = os.stat("/proc/self/ns/net").st_ino
    others = {i for n in netlink.namespaces("") if n not in inside and (i := netlink.namespace_inode(n)) is not None}
    strays: list[Process] = []
    at_home: list[Process] = []
    for pid, inode in netlink.networks():
        if inode in inodes:
            if pid != agent:
                inside[inodes[inode]].append(_process(pid))
        elif (process := _process(pid)) and _guarded(config, process.uid):
            if inode == home:
                at_home.append(process)
            elif inode not in others:
                strays.append(process)
    forgotten: list[str] = []
    if agent is not None:
        try:
            kept = await asyncio.to_thread(held.namespaces_of, agent)
        except OSError as e:
            trouble.append(f"descriptors of the agent: {e.strerror}")
        else:
            known = {home, *others, *inodes, *_named_now()}
            forgotten = [f"{one}, network {i}" for i, all_of in kept.items() if i not in known for one in all_of]
    ports: dict[str, str] = {}
    numberless: set[str] = set()
    connections: dict[int, int] = {}
    limits: set[int] = set()
    flows: dict[int, int] = {}
    try:
        if await db.bridge(config.bridge.name) is not None:
            for port in await db.ports(config.bridge.name):
                ports[port.name] = str(port.external_ids.get("lark-attempt", ""))
                if port.ofport is None:
                    numberless.add(port.name)
            flows = await _flows(config)
        conntrack = Conntrack(config.bridge.rundir, config.pool.connections)
        lowest, highest = plan.ZONE_BASE + 1, plan.ZONE_BASE + plan.MAX_LANE
        connections = {z: n for z, n in (await conntrack.entries()).items() if lowest <= z <= highest}
        limits = {z for z in await conntrack.limited() if lowest <= z <= highest}
    except AgentError as e:
        trouble.append(f"{SWITCH}: {e}")
    return Seen(
        namespaces={name: tuple(found) for name, found in inside.items()},
        devices=frozenset(netlink.job_devices()),
        ports=ports,
        numberless=frozenset(numberless),
        connections=connections,
        limits=frozenset(limits),
        flows=flows,
        strays=tuple(strays),
        at_home=tuple(at_home),
        held=tuple(forgotten),
        registered=registered,
        trouble=tuple(trouble),
    )


def _named_now() -> set[int]:
    """Networks that have a name by now: one may have been made while we looked."""
    return {inode for name in netlink.namespaces("") if (inode := netlink.namespace_inode(name)) is not None}


async def _flows(config: AgentConfig) -> dict[int, int]:
    """Flows of attempts on the bridge, by the lane that they are about."""
    target = f"unix:{config.bridge.rundir / (config.bridge.name + '.mgmt')}"
    words = ["ovs-ofctl", "-O", "OpenFlow14", "--timeout=10", "--no-stats", "--no-names", "dump-flows", target]
    found: dict[int, int] = {}
    for line in (await command.run([*words, ATTEMPT_COOKIES], timeout=15)).splitlines():
        # Every attempt of this node is recognised by its port; flows without one are about other nodes' jobs.
        for number in {int(n) - plan.OFPORT_BASE for n in re.findall(r"\b(?:in_port=|output:)(\d+)\b", line)}:
            if 1 <= number <= plan.MAX_LANE:
                found[number] = found.get(number, 0) + 1
    return found


def _process(pid: int) -> Process:
    try:
        uid = trust.status(pid).real_uid
        command_line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (trust.Refused, OSError):
        return Process(pid, -1, "it has ended")
    return Process(pid, uid, "".join(c if c.isprintable() else "?" for c in command_line))


def _guarded(config: AgentConfig, uid: int) -> bool:
    return any(low <= uid <= high for low, high in config.guard.uids)
