"""The doctor's look at Open vSwitch: daemons, version, the bridge, table 0, the connection to the controller.

What is judged here is what `prepare-bridge` makes and what the running agent keeps: the functions that judge are pure.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ovs_agent import bridge, command, netlink, plan
from ovs_agent.config import AgentConfig
from ovs_agent.errors import AgentError
from ovs_agent.findings import Finding, fault, warning
from ovs_agent.ovsdb import Ovsdb

TRIED = (3, 1)
"""The oldest version that Lark was tried with."""
BUFFER = 16 * 1024 * 1024
"""Bytes of the sockets by which a userspace switch sends and receives, so that few frames in them harm nobody else."""


async def examine(config: AgentConfig, db: Ovsdb) -> list[Finding]:
    """Everything about the switch."""
    start = "systemctl start openvswitch-switch (EL9: openvswitch)"
    try:
        row = await db.bridge(config.bridge.name)
    except AgentError as e:
        why = "without its database no port can be plugged: no job starts"
        return [fault("switch.database", str(e), why, f"{start}; if it runs, bridge.ovsdb in {config.file} is wrong")]
    found: list[Finding] = []
    alive = _alive(config.bridge.rundir)
    if not alive:
        what = f"no ovs-vswitchd runs (by {config.bridge.rundir}/ovs-vswitchd.pid)"
        found.append(fault("switch.daemon", what, "bridges carry nothing", f"{start}; or mend bridge.rundir"))
    else:
        found += version(await _version(config.bridge.rundir))
    prepare = f"lark-agent prepare-bridge --config {config.file}"
    if row is None:
        what = f"there is no bridge {config.bridge.name}"
        make = f"{prepare} --datapath-id ID --controller ssl:ADDRESS:6653 (as in site.yaml)"
        return [*found, fault("switch.bridge", what, "jobs have nothing to be plugged into", make)]
    found += settings(config.bridge.name, row, prepare)
    controllers = await db.table("Controller", ["_uuid", "target", "is_connected", "max_backoff", "status"])
    wanted = row["controller"] if isinstance(row["controller"], list) else [row["controller"]]
    found += controlled(config.bridge.name, [c for c in controllers if c["_uuid"] in wanted], alive)
    if alive:
        found += await _table0(config, db)
    found += await _uplink(config, db)
    if (row["datapath_type"] or "system") == "netdev":
        sysctls = Path("/proc/sys/net/core")
        found += buffers(_number(sysctls / "wmem_default"), _number(sysctls / "rmem_default"))
    elif not Path("/sys/module/openvswitch").exists():
        what = "the bridge is of the kernel's datapath, and the kernel has no module openvswitch"
        found.append(fault("switch.datapath", what, "it carries nothing", "modprobe openvswitch"))
    return found


def version(text: str | None) -> list[Finding]:
    numbers = re.match(r"(\d+)\.(\d+)", text or "")
    if numbers and (int(numbers[1]), int(numbers[2])) >= TRIED:
        return []
    what = f"Open vSwitch is {text or 'of an unknown version'}"
    return [warning("switch.version", what, "Lark was never tried with one older than 3.1", "upgrade Open vSwitch")]


def settings(name: str, row: Mapping[str, Any], prepare: str) -> list[Finding]:
    """What `prepare-bridge` sets."""
    found = []
    other = row["other_config"] or {}
    if row["fail_mode"] != "secure":
        why = "without a controller it forwards everything between all ports"
        found.append(fault("switch.fail-mode", f"bridge {name}: fail_mode={row['fail_mode'] or 'unset'}", why, prepare))
    if other.get("disable-in-band") != "true":
        what, why = f"bridge {name}: in-band control is on", "hidden flows let jobs speak to the controller's address"
        found.append(fault("switch.in-band", what, why, prepare))
    if other.get("dp-desc") != plan.PREPARED:
        what = f"bridge {name} does not say that it was prepared (other_config:dp-desc)"
        found.append(warning("switch.prepared", what, "the controller cannot see that it is closed", prepare))
    protocols = row["protocols"] if isinstance(row["protocols"], list) else [row["protocols"]]
    if "OpenFlow14" not in protocols:
        what = f"bridge {name} speaks {', '.join(map(str, protocols)) if protocols[0] else 'its default protocols'}"
        found.append(fault("switch.protocols", what, "Lark needs OpenFlow 1.4 (bundles)", prepare))
    return found


def controlled(name: str, controllers: Sequence[Mapping[str, Any]], alive: bool) -> list[Finding]:
    """Whether the bridge's controllers are there."""
    if not controllers:
        why = "no policy reaches it: no job starts"
        mend = f"ovs-vsctl set-controller {name} ssl:ADDRESS:6653 (docs/operations.md)"
        return [fault("switch.controller", f"bridge {name} has no controller", why, mend)]
    found = []
    if alive and not any(c["is_connected"] is True for c in controllers):
        texts = [f"{c['target']} ({(c['status'] or {}).get('last_error', 'no answer yet')})" for c in controllers]
        why = "no change of policy reaches it: no job starts"
        mend = "is lark-controller running there? Its log says who is refused, and why; ovs-vsctl list controller"
        found.append(fault("switch.controller", f"bridge {name} is connected to none of {', '.join(texts)}", why, mend))
    slow = [c for c in controllers if not isinstance(c["max_backoff"], int) or c["max_backoff"] > bridge.MAX_BACKOFF_MS]
    if slow:
        what = f"bridge {name} may wait 8 s before it tries {', '.join(str(c['target']) for c in slow)} again"
        mend = f"ovs-vsctl set controller {name} max_backoff={bridge.MAX_BACKOFF_MS}"
        found.append(warning("switch.backoff", what, "jobs wait after a restart of the controller", mend))
    return found


def buffers(send: int | None, receive: int | None) -> list[Finding]:
    """net.core.wmem_default and rmem_default; None where they cannot be seen."""
    found = []
    for name, value, why in (
        ("wmem", send, "vswitchd sends for all ports through one socket: about 90 frames waiting stop every port"),
        ("rmem", receive, "what comes in waits in its port's socket: about 90 frames, and what comes beyond is lost"),
    ):
        if value is not None and value < BUFFER:
            what = f"net.core.{name}_default is {value}, less than {BUFFER}"
            line = f"echo net.core.{name}_default={BUFFER} >> /etc/sysctl.d/60-lark.conf"
            found.append(warning(f"switch.{name}", what, why, f"{line}; sysctl --system; restart Open vSwitch"))
    return found


async def _table0(config: AgentConfig, db: Ovsdb) -> list[Finding]:
    name = config.bridge.name
    try:
        have = await bridge.dump_table0(config.bridge.rundir, name)
        wanted = await bridge.wanted_table0(db, name, config.bridge.uplink)
    except AgentError as e:
        why = "the host itself may have no network"
        return [fault("switch.table0", f"table 0 of {name} cannot be compared: {e}", why, "start lark-agent")]
    return lane(name, config.bridge.rundir, have, wanted)


def lane(name: str, rundir: Path, have: Sequence[str], wanted: Sequence[str]) -> list[Finding]:
    """Table 0 as it is and as it should be."""
    found = []
    if not bridge.same_lane(have, wanted):
        what = f"table 0 of {name} does not hold the host's lane as it should"
        why = "the host, or its jobs, may be cut off"
        found.append(fault("switch.table0", what, why, "start (or restart) lark-agent: it writes table 0"))
    foreign = [flow for flow in have if not bridge.is_lane(flow)]
    if foreign:
        what = f"table 0 of {name} has {len(foreign)} flows that are not Lark's, for example {foreign[0][:160]}"
        why = "what such a flow takes never comes to the policy"
        mend = f"find out who writes them; ovs-ofctl -O OpenFlow14 del-flows unix:{rundir}/{name}.mgmt 'table=0,…'"
        found.append(fault("switch.foreign-flows", what, why, mend))
    return found


async def _uplink(config: AgentConfig, db: Ovsdb) -> list[Finding]:
    uplink, name = config.bridge.uplink, config.bridge.name
    if uplink is None:
        return []
    prepare = f"lark-agent prepare-bridge --config {config.file}"
    found = []
    if uplink not in (await db.vsctl(["list-ports", name])).split():
        what = f"uplink {uplink} is not a port of {name}"
        found.append(fault("switch.uplink", what, "nothing leads out of this node", prepare))
    state = await netlink.in_thread(functools.partial(netlink.device_state, uplink))
    if state is None:
        what = f"there is no device {uplink} (bridge.uplink)"
        return [*found, fault("switch.uplink", what, "nothing leads out of this node", f"mend {config.file}")]
    if not state.up:
        what = f"uplink {uplink} is down"
        found.append(fault("switch.uplink", what, "nothing leads out of this node", f"ip link set {uplink} up"))
    if state.addresses:
        what = f"uplink {uplink} has {', '.join(state.addresses)}"
        why = "an address on a port of a bridge is dead: the host cannot be reached by it"
        mend = f'move it to {name} (docs/operations.md, "Moving the uplink\'s address")'
        found.append(warning("switch.uplink-address", what, why, mend))
    return found


async def _version(rundir: Path) -> str:
    pid = (rundir / "ovs-vswitchd.pid").read_text().strip()
    text = await command.run(["ovs-appctl", "--timeout=5", "-t", str(rundir / f"ovs-vswitchd.{pid}.ctl"), "version"])
    return text.partition("\n")[0].rpartition(" ")[2]


def _alive(rundir: Path) -> bool:
    try:
        os.kill(int((rundir / "ovs-vswitchd.pid").read_text()), 0)
    except (OSError, ValueError):
        return False
    return True


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
