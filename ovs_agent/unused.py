"""Whether a lane is as it was made: nobody is in its network, nobody can get there, and nothing ever went through it.

Most jobs send nothing of their own (HTCondor moves their files), and a lane that no packet has passed need not be made
anew for the next job of the same user. What a job without privileges can leave in a network namespace, and what says
that it has not:

  a process or thread       two looks at all threads of the node, of which none vanished before it was looked at
  somebody on his way in    all processes that were ever handed the namespace have ended (the caller holds pidfds)
  a socket, also one that   "sockets: used" of /proc/net/sockstat counts every socket of the namespace that is not the
  another process keeps     kernel's own, of any family and in any state, orphans included (Linux 4.16 and later)
  connections in TIME_WAIT  "tw" there
  a lease on a flow label   /proc/net/ip6_flowlabel has its header only
  anything else             needs a packet: routes and metrics learned, neighbours, fragments, connections; the counters
                            of both ends of the pair and of lo are those of when it was made, of what was dropped too

Invariants: what cannot be read, or has moved for whatever reason (a packet for the address that nobody asked for), is
not as it was made. Nothing here changes anything. Functions here block.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from ovs_agent import netlink, trust
from ovs_agent.errors import AgentError

LOOKS = 20
"""Looks at the node's processes (half a millisecond each) until two in a row were complete; after these it is not known
whether anybody is in. On a node that starts a hundred processes a second one in five is not complete."""
SETTLE = 0.05
"""Seconds after which the kernel has freed what was just closed (netlink sockets go with a grace period), and has sent
the reports that it owes of multicast groups joined or left (two of its ticks, unless the machine is very busy: then a
report may leave in the next job's time, which the policy refuses as it would have)."""


@dataclass(frozen=True, slots=True)
class Place:
    """A lane as the kernel knows it."""

    port: str
    namespace: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What /proc/net tells of a lane. Counters as the kernel writes them, one text for each device."""

    inside: tuple[tuple[str, str], ...]
    host: str
    sockets: int
    time_waits: int
    flow_labels: int


@dataclass(frozen=True, slots=True)
class Suspect:
    """A lane that an attempt leaves. `holders`: pidfds of all who were ever handed its namespace."""

    place: Place
    made: Reading
    holders: tuple[int, ...]


def devices(text: str) -> dict[str, str]:
    """The counters of each device, from the text of /proc/net/dev."""
    lines = (line.partition(":") for line in text.splitlines()[2:])
    return {name.strip(): " ".join(counters.split()) for name, _, counters in lines}


def sockets(text: str) -> tuple[int, int]:
    """How many sockets there are, and how many connections in TIME_WAIT, from the text of /proc/net/sockstat."""
    lines = {name: rest.split() for name, _, rest in (line.partition(":") for line in text.splitlines())}
    tcp = lines["TCP"]
    return int(lines["sockets"][1]), int(tcp[tcp.index("tw") + 1])


def moved(made: Reading, now: Reading) -> str:
    """What is not as it was made, in words; the empty text: all is."""
    if [name for name, _ in now.inside] != [name for name, _ in made.inside]:
        return f"it has the devices {', '.join(name for name, _ in now.inside) or 'none'}"
    for (name, before), (_, after) in zip(made.inside, now.inside, strict=True):
        if before != after:
            return f"something went through {name}"
    if made.host != now.host:
        return "something went through the host's end"
    if now.sockets or now.time_waits:
        return f"{now.sockets} sockets and {now.time_waits} closing connections are left"
    return "a flow label is leased" if now.flow_labels else ""


def read(places: Sequence[Place]) -> list[Reading | None]:
    """None: that one cannot be read. The calling thread stays in its network."""
    found: list[Reading | None] = []
    if places:  # a thread of its own moves from one network to the next, and dies
        thread = threading.Thread(target=lambda: found.extend(_read(places)), name="read-lanes", daemon=True)
        thread.start()
        thread.join()
    return found if len(found) == len(places) else [None] * len(places)


def _read(places: Sequence[Place]) -> list[Reading | None]:
    host = devices(_text("dev"))
    found: list[Reading | None] = []
    for place in places:
        try:
            fd = netlink.open_namespace(place.namespace)
            try:
                netlink.enter_namespace(fd)
            finally:
                os.close(fd)
            used, waiting = sockets(_text("sockstat"))
            inside = tuple(sorted(devices(_text("dev")).items()))
            found.append(Reading(inside, host[place.port], used, waiting, _flow_labels()))
        except (AgentError, OSError, KeyError, ValueError, IndexError):
            found.append(None)
    return found


def _text(name: str) -> str:
    """Of the calling thread's network."""
    return Path(f"/proc/thread-self/net/{name}").read_text()


def _flow_labels() -> int:
    try:
        return len(_text("ip6_flowlabel").splitlines()) - 1
    except FileNotFoundError:  # a kernel without IPv6
        return 0


def as_made(suspects: Sequence[Suspect]) -> list[str]:
    """For each lane what is not as it was made, in words; the empty text: nobody is in it, and nobody can come.

    The order matters: nobody is left who could still enter, then nobody is inside, then nothing is left or has moved.
    """
    said = ["somebody who was handed it lives" if any(map(trust.alive, s.holders)) else "" for s in suspects]
    inodes = {i: netlink.namespace_inode(s.place.namespace) for i, s in enumerate(suspects) if not said[i]}
    time.sleep(SETTLE)
    empty, unknown = uninhabited({inode for inode in inodes.values() if inode is not None})
    for i, inode in inodes.items():
        if inode in unknown:
            said[i] = "nobody knows whether a process is in it"
        elif inode not in empty:
            said[i] = "a process is in it" if inode is not None else "it is gone"
    for patience in (SETTLE, 0.0):
        waiting = [i for i, text in enumerate(said) if not text]
        now = read([suspects[i].place for i in waiting])
        late = False
        for i, reading in zip(waiting, now, strict=True):
            text = "it cannot be read" if reading is None else moved(suspects[i].made, reading)
            if patience and reading is not None and reading.sockets:
                late = True  # perhaps closed already
            else:
                said[i] = text
        if not late:
            break
        time.sleep(patience)
    return said


def uninhabited(
    inodes: Set[int], threads: Callable[[], Iterable[int | None]] | None = None
) -> tuple[set[int], set[int]]:
    """Those of these networks that certainly no process or thread is in, and those of which that is not known.

    A chain of processes, each of which forks the next and ends, can be missed by one look: by being gone before it is
    looked at (the look says so, and does not count), or by going from a high pid to a low one behind its back, which
    takes a wrap of the pid counter for each look that it escapes. Hence two in a row.
    """
    left = set(inodes)
    complete = 0
    for _ in range(LOOKS):
        if not left or complete == 2:
            break
        networks = list(threads_networks() if threads is None else threads())
        left.difference_update(networks)
        complete = 0 if None in networks else complete + 1
    return (left, set()) if complete == 2 else (set(), left)


def threads_networks() -> Iterable[int | None]:
    """The network of every thread of the node but init's and our own. None: one was gone when we looked."""
    innocent = {"1", str(os.getpid())}  # init may have more privileges than we, and be closed to us
    for pid in os.listdir("/proc"):
        if not pid.isdecimal() or pid in innocent:
            continue
        try:
            alone = os.stat(f"/proc/{pid}/task").st_nlink == 3  # a directory's two, and one for each thread
            if alone:
                yield os.stat(f"/proc/{pid}/ns/net").st_ino
                continue
        except OSError:  # dead and not reaped, or gone
            pass
        try:
            threads = os.listdir(f"/proc/{pid}/task")
        except OSError:
            yield None
            continue
        for thread in threads:
            yield from _network(f"/proc/{pid}/task/{thread}")


def _network(thread: str) -> Iterable[int | None]:
    try:
        yield os.stat(f"{thread}/ns/net").st_ino
    except OSError:
        try:
            state = Path(f"{thread}/stat").read_bytes().rpartition(b")")[2].split()[0]
        except OSError:
            state = b"gone"
        if state not in (b"Z", b"X"):  # the dead have no network
            yield None
