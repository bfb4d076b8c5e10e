"""The packet sockets of a userspace Open vSwitch: what they can hold, and what was lost because they were full.

It sends for all its ports through one socket that is bound to no device, and receives from each port through one of its
own. Frames that come while it is busy with other things wait in the latter; beyond its size they are lost, whatever
their class, before any queue has seen them. Sizes are those of the moment at which a socket was made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ovs_agent import command
from ovs_agent.errors import AgentError

SYSCTLS = Path("/proc/sys/net/core")
_SENDING = re.compile(r"\s\[0\]:\*\s.*\btb([0-9]+),")
"""Protocol 0, no device; `tb`: the most that may wait in it."""
_RECEIVING = re.compile(r"\s\*:(\S+)\s.*\brb([0-9]+),.*\bd([0-9]+)\)")
"""All protocols, one device; `rb`: the most that may wait in it, `d`: frames lost since it was made."""


@dataclass(frozen=True, slots=True)
class Receiving:
    size: int
    lost: int


@dataclass(frozen=True, slots=True)
class PacketSockets:
    """`sending`: bytes; None until the switch has sent its first frame. `receiving`: by port."""

    sending: int | None = None
    receiving: Mapping[str, Receiving] = field(default_factory=dict)


def parse(text: str, pid: int) -> PacketSockets:
    """From `ss --packet --memory --processes --no-header --oneline`."""
    mine = [line for line in text.splitlines() if f'("ovs-vswitchd",pid={pid},' in line]
    sending = [int(found[1]) for line in mine if (found := _SENDING.search(line))]
    receiving = [found for line in mine if (found := _RECEIVING.search(line))]
    return PacketSockets(
        sending[0] if sending else None,
        {found[1]: Receiving(int(found[2]), int(found[3])) for found in receiving},
    )


async def look(rundir: Path) -> PacketSockets:
    """Of the switch whose pid file is in `rundir`; before it has sent, or when it is down: what it will get."""
    found = PacketSockets()
    try:
        pid = int((rundir / "ovs-vswitchd.pid").read_text())
        text = await command.run(["ss", "--packet", "--memory", "--processes", "--no-header", "--oneline"], timeout=5)
        found = parse(text, pid)
    except (OSError, ValueError, AgentError):
        pass
    if found.sending is not None:
        return found
    return PacketSockets(int((SYSCTLS / "wmem_default").read_text()), found.receiving)


def losses(now: PacketSockets, before: PacketSockets) -> list[str]:
    """What has been lost in between, in words for the administrator."""
    said = []
    for port, one in sorted(now.receiving.items()):
        was = before.receiving.get(port)
        # Fewer than before: the switch was restarted, and this is another socket.
        if was is not None and one.lost > was.lost:
            # Without the number: the same fault, as long as it lasts.
            said.append(
                f"port {port}: the switch loses frames of any class, for it is busy and its receive buffer of "
                f"{one.size} bytes full; set net.core.rmem_default to 16777216 (sysctl.d) and restart ovs-vswitchd; "
                "if it is so already, the machine is too slow for this traffic"
            )
    return said
