"""From the queues that are wished for a port to HTB classes, filters and queue lengths. Pure.

A port's queues are one HTB qdisc: a root class with the port's rate, below it a leaf for each traffic class
(`rate` = guarantee, `ceil` = ceiling, `prio` = rank) and one for plumbing. HTB serves leaves under their rate first and
gives what is left in order of `prio`: guarantees are kept, the rest goes strictly by rank, and nothing is left unused.

Invariants: a class's number follows from its DSCP alone and a filter's preference from what it matches, so that a
class that stays is never touched by one that comes, goes or changes rank; the guarantees of the leaves together never
exceed the port's rate (HTB would overrun the link); ARP and neighbour discovery never wait behind full queues, and
never get more than a small share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ovs_agent.errors import AgentError
from policies.wire import PortQueues, QueueWish

MAJOR = 0x1A2B0000
"""Our root qdisc is 1a2b: on every port; Open vSwitch calls its own 1:."""
ROOT_MINOR, PLUMBING_MINOR, CLASS_MINOR = 0x1, 0x2, 0x100
ETH_IPV4, ETH_IPV6, ETH_ARP, ETH_ALL = 0x0800, 0x86DD, 0x0806, 0x0003
_PREF_PLUMBING, _PREF_IPV4, _PREF_IPV6, _PREF_REST = 0x10, 0x100, 0x200, 0xF000
_ND_TYPES = (133, 134, 135, 136)
MAX_PRIO = 7
"""HTB has eight priorities: from the eighth class on, what is left is shared in equal parts."""
PLUMBING_SHARE = 0.01
LEAST_SHARE = 0.002
"""Of the port's rate, for a class without a guarantee: HTB has no class with none."""
LEAST_RATE = 16_000
BURST_TIME = 0.002
"""Seconds at full rate that a class may send at once: what a late timer costs is made up for, and no more."""
QUEUE_TIME = 0.025
"""Seconds that a class's queue holds at its ceiling, where the switch's memory allows it."""
LEAST_FRAMES, MOST_FRAMES = 8, 10_000
PLUMBING_FRAMES, LEAST_PLUMBING = 16, 4
FRAME_OVERHEAD = 14
MEMORY_SHARE = 0.75
MAX_SPEED = 400_000_000_000


class BadWish(AgentError):
    """The wished queues cannot be: the port keeps those that it has."""


@dataclass(frozen=True, slots=True)
class HtbClass:
    """One class. Rates in bit/s; `limit` in frames, 0 for the root class, which has no queue."""

    minor: int
    name: str
    rate: int
    ceil: int
    prio: int
    quantum: int
    limit: int

    @property
    def burst(self) -> int:
        return burst(self.rate, self.quantum)

    @property
    def cburst(self) -> int:
        return burst(self.ceil, self.quantum)


@dataclass(frozen=True, slots=True, order=True)
class Filter:
    """A u32 filter. `pref` and `protocol` are its key; everything else follows from them and the class."""

    pref: int
    protocol: int
    minor: int
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PortPlan:
    """All of one port. `leaves` in order of rank, then plumbing."""

    rate: int
    root: HtbClass
    leaves: tuple[HtbClass, ...]
    filters: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Plans:
    """The plans of all ports of a bridge, and what is wrong with them though they can be done."""

    ports: Mapping[str, PortPlan]
    remarks: tuple[str, ...] = ()


def burst(rate: int, quantum: int) -> int:
    """Bytes that a class may send at once."""
    return max(2 * quantum, int(rate * BURST_TIME / 8))


def frame_memory(mtu: int) -> int:
    """Bytes that one full frame takes of the memory of the socket it was sent by, as the kernel counts it."""
    data = 1
    while data < mtu + FRAME_OVERHEAD + 64:
        data *= 2
    return data + 640


def plan(wish: QueueWish, mtus: Mapping[str, int], socket_memory: int | None) -> Plans:
    """Plans for those ports of the wish that `mtus` names (the others are not there).

    `socket_memory`: bytes of the one socket through which the userspace datapath sends for all its ports; None: the
    kernel datapath, which has no such limit. Raises BadWish.
    """
    wanted = {name: _frames(port, mtus[name]) for name, port in wish.ports.items() if name in mtus}
    remarks: list[str] = []
    if socket_memory is not None and wanted:
        memory = frame_memory(max(mtus[name] for name in wanted))
        room = int(socket_memory * MEMORY_SHARE) // memory
        wanted, starved = _share(wanted, room)
        if starved:
            queues = sum(map(len, wanted.values()))
            remarks.append(
                f"the switch sends for all ports through one buffer of {socket_memory} bytes, too small for {queues} "
                "queues: one that is full may starve other ports; set net.core.wmem_default to 16777216 "
                "(sysctl.d) and restart ovs-vswitchd"
            )
    return Plans({name: _port(name, wish.ports[name], mtus[name], wanted[name]) for name in wanted}, tuple(remarks))


def _frames(port: PortQueues, mtu: int) -> list[int]:
    """Frames that each class's queue should hold, plumbing last."""
    size = mtu + FRAME_OVERHEAD
    return [
        min(MOST_FRAMES, max(LEAST_FRAMES, round(min(c.ceiling, port.rate) * QUEUE_TIME / 8 / size)))
        for c in port.classes
    ] + [PLUMBING_FRAMES]


def _share(wanted: Mapping[str, list[int]], room: int) -> tuple[dict[str, list[int]], bool]:
    """Cut queue lengths in proportion so that they fit into `room` frames; whether they are too short then."""
    if sum(map(sum, wanted.values())) <= room:
        return dict(wanted), False
    # Plumbing's queue, the last of each port, is small anyway.
    left = room - LEAST_PLUMBING * len(wanted)
    total = sum(sum(queues[:-1]) for queues in wanted.values())
    cut = {
        name: [max(1, left * frames // total) for frames in queues[:-1]] + [LEAST_PLUMBING]
        for name, queues in wanted.items()
    }
    return cut, any(frames < LEAST_FRAMES for queues in cut.values() for frames in queues[:-1])


def _port(name: str, port: PortQueues, mtu: int, limits: Iterable[int]) -> PortPlan:
    _check(name, port)
    quantum = mtu + FRAME_OVERHEAD
    plumbing = max(LEAST_RATE, int(port.rate * PLUMBING_SHARE))
    least = max(LEAST_RATE, int(port.rate * LEAST_SHARE))
    guarantees = [max(c.guarantee, least) for c in port.classes]
    # Plumbing and the least shares come out of the guarantees where these take up the whole link.
    scale = min(1.0, (port.rate - plumbing) / sum(guarantees))
    frames = list(limits)
    leaves = [
        HtbClass(
            CLASS_MINOR + c.dscp,
            c.name,
            max(1, int(guarantee * scale)),
            min(c.ceiling, port.rate),
            min(rank, MAX_PRIO),
            quantum,
            limit,
        )
        for rank, (c, guarantee, limit) in enumerate(zip(port.classes, guarantees, frames, strict=False))
    ]
    leaves = [_floor(leaf) for leaf in leaves]
    leaves.append(HtbClass(PLUMBING_MINOR, "", plumbing, plumbing, 0, quantum, frames[-1]))
    return PortPlan(
        port.rate,
        HtbClass(ROOT_MINOR, "", port.rate, port.rate, 0, quantum, 0),
        tuple(leaves),
        tuple(_filters(port)),
    )


def _floor(leaf: HtbClass) -> HtbClass:
    """HTB wants a ceiling of at least the rate."""
    if leaf.ceil >= leaf.rate:
        return leaf
    return HtbClass(leaf.minor, leaf.name, leaf.ceil, leaf.ceil, leaf.prio, leaf.quantum, leaf.limit)


def _filters(port: PortQueues) -> Iterable[Filter]:
    yield Filter(_PREF_PLUMBING, ETH_ARP, PLUMBING_MINOR, ("0x0/0x0+0",))
    for number, kind in enumerate(_ND_TYPES):
        # Next header ICMPv6, hop limit 255: it has crossed no router, so it is about this very link.
        keys = ("0x00003aff/0x0000ffff+4", f"{kind << 24:#010x}/0xff000000+40")
        yield Filter(_PREF_PLUMBING + 1 + number, ETH_IPV6, PLUMBING_MINOR, keys)
    for c in port.classes:
        # The DSCP is six bits of the second byte (IPv4), or of the first two bytes after the version (IPv6).
        yield Filter(_PREF_IPV4 + c.dscp, ETH_IPV4, CLASS_MINOR + c.dscp, (f"{c.dscp << 18:#010x}/0x00fc0000+0",))
        yield Filter(_PREF_IPV6 + c.dscp, ETH_IPV6, CLASS_MINOR + c.dscp, (f"{c.dscp << 22:#010x}/0x0fc00000+0",))
    last = port.classes[-1].dscp
    yield Filter(_PREF_REST + last, ETH_ALL, CLASS_MINOR + last, ("0x0/0x0+0",))


def _check(name: str, port: PortQueues) -> None:
    """What the controller has checked before; it costs nothing to believe nobody."""
    where = f"queues of port {name}"
    if port.rate > MAX_SPEED:
        raise BadWish(f"a rate of {port.rate} bit/s is beyond any link", where)
    if port.rate < 8 * LEAST_RATE:
        raise BadWish(f"a rate of {port.rate} bit/s is too little to share; {8 * LEAST_RATE} is the least", where)
    codes = [c.dscp for c in port.classes]
    if len(set(codes)) != len(codes):
        raise BadWish("two classes have the same DSCP, by which their queues are found", where)
    names = [c.name for c in port.classes]
    if len(set(names)) != len(names):
        raise BadWish("two classes have the same name", where)
    if [c.rank for c in port.classes] != sorted(c.rank for c in port.classes):
        raise BadWish("the classes are not in the order of their ranks", where)
    total = sum(c.guarantee for c in port.classes)
    if total > port.rate:
        raise BadWish(f"{total} bit/s are guaranteed of {port.rate}: the link would be promised twice", where)
    for c in port.classes:
        if c.ceiling < c.guarantee:
            raise BadWish(f"class {c.name}: the ceiling is under the guarantee", where)
