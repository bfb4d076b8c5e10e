"""What a job sent and received, and how its own ad comes to say so: numbers for people and accounting, at its exit.

Counted at the host's end of the attempt's pair of devices, so to the byte what the job's own device counts, and out of
the job's reach. The starter takes attributes of the job's ad on its chirp port from whoever knows the cookie, which
lies in the job's directory. Hence the invariants: the agent connects only to a port that this very starter holds; of
the file, which the job can write, only the cookie's letters are used; and what the ad says the job could have said as
well, so the agent's log is the record (docs/htcondor.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass

from ovs_agent import rtnl
from ovs_agent.chirp import listeners_of
from policies.wire import Dropped

PROXY_FILE = ".chirp.config"
AD_FILE = ".job.ad"
MAX_AD = 1024 * 1024
COMES_AGAIN = re.compile(
    rb"^(WantFTOnCheckpoint|WantCheckpointSignal)\s*=(?!\s*false\s*$)", re.IGNORECASE | re.MULTILINE
)
"""What makes a starter start a job again that has exited: the submit commands checkpoint_exit_code and its like."""
PATIENCE = 3.0
"""Seconds that the starter may take; a job's end waits for it, and the job's wrapper for 6 s in all."""
PROXY = re.compile(r"(\S{1,64}) (\d{1,5}) ([A-Za-z0-9]{8,128})\s*")


@dataclass(frozen=True, slots=True)
class Counts:
    """Of a job's device, seen from the job."""

    incoming: int
    """Bytes, with Ethernet's headers, as the kernel counts them."""
    outgoing: int
    incoming_packets: int
    outgoing_packets: int


@dataclass(frozen=True, slots=True)
class Proxy:
    """Where the starter listens for chirp, as a file of the job's directory says: to be checked."""

    address: str
    port: int
    cookie: str


def read(port: str) -> Counts | None:
    """None: the device is gone, or the kernel does not say. What comes out of the host's end, the job has sent."""
    try:
        found = rtnl.counters(port)
    except OSError:
        return None
    if found is None:
        return None
    from_job_packets, to_job_packets, from_job, to_job = found
    return Counts(to_job, from_job, to_job_packets, from_job_packets)


def since(now: Counts, before: Counts | None) -> Counts:
    """What came after. `before` None: all (after a restart of the agent, with what the kernel sent of its own)."""
    if before is None:
        return now
    return Counts(
        now.incoming - before.incoming,
        now.outgoing - before.outgoing,
        now.incoming_packets - before.incoming_packets,
        now.outgoing_packets - before.outgoing_packets,
    )


def attributes(counts: Counts, refused: int | None, dropped: Dropped | None = None) -> dict[str, int]:
    """What the job's ad will say. The first two names are those of the first Lark (2012). `dropped`: by its rate."""
    said = {
        "NetworkIncoming": counts.incoming,
        "NetworkOutgoing": counts.outgoing,
        "NetworkIncomingPackets": counts.incoming_packets,
        "NetworkOutgoingPackets": counts.outgoing_packets,
    }
    if refused is not None:
        said["NetworkRefusedPackets"] = refused
    if dropped is not None:
        said |= {
            "NetworkIncomingDropped": dropped.received_bytes,
            "NetworkOutgoingDropped": dropped.sent_bytes,
            "NetworkIncomingDroppedPackets": dropped.received_packets,
            "NetworkOutgoingDroppedPackets": dropped.sent_packets,
        }
    return said


def proxy_in(directory: str) -> Proxy | None:
    """From the job's directory, such as `/proc/PID/cwd`, or beside it. None: there is none that a starter writes."""
    for place in (directory, f"{directory}/../user"):  # since HTCondor 25
        if found := PROXY.fullmatch(_start_of(f"{place}/{PROXY_FILE}", 512).decode("ascii", "replace")):
            return Proxy(found[1], int(found[2]), found[3])
    return None


def comes_again(directory: str) -> bool:
    """Whether the job in a directory ends in order to be started again there, by what its ad says in it."""
    return COMES_AGAIN.search(_start_of(f"{directory}/{AD_FILE}", MAX_AD)) is not None


def _start_of(path: str, size: int) -> bytes:
    """Of an ordinary file; nothing if it is not there, or is something else."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                return os.read(fd, size)
        finally:
            os.close(fd)
    return b""


async def tell(starter: int, proxy: Proxy, said: Mapping[str, int]) -> str:
    """Have the starter put numbers into the job's ad. The empty text, or why not."""
    if (proxy.address, proxy.port) not in {(e.address, e.port) for e in listeners_of(starter)}:
        return f"the starter does not listen on {proxy.address}:{proxy.port}, which the job's {PROXY_FILE} names"
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(proxy.address, proxy.port, limit=1024)
            try:
                lines = [f"cookie {proxy.cookie}", *(f"set_job_attr_delayed {k} {v}" for k, v in said.items())]
                writer.write("".join(f"{line}\n" for line in lines).encode())  # in one go: it reads one at a time
                for line in lines:
                    answer = (await reader.readline()).strip()
                    if answer != b"0":
                        return f"the starter answers {answer[:20]!r} to {line.partition(' ')[0]}"
            finally:
                writer.transport.abort()
    except (OSError, ValueError, TimeoutError) as e:
        return f"the starter's chirp port: {type(e).__name__} {e}".rstrip()
    return ""
