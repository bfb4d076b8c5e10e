"""The kernel's queues of a port, made equal to a plan, read and removed. Blocks; the daemon calls it through a thread.

Invariants: only a root qdisc with our own handle, or one that the kernel made by itself (handle 0), is ever changed or
replaced; whatever an administrator or another program has put there stays, and is told as a fault. What is as planned
is not touched; what differs is changed in place, so no packet is lost and no connection breaks: what is new comes
first, a class goes last, and only when its queue has run empty.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.tcmsg import plugins, sched_pfifo
from pyroute2.netlink.rtnl.tcmsg.common import calc_xmittime

from ovs_agent.errors import AgentError
from ovs_agent.qos import CLASS_MINOR, MAJOR, PLUMBING_MINOR, Filter, HtbClass, PortPlan

TC_ROOT = 0xFFFFFFFF
UNSHAPED = 2 * 10**9
"""From this rate on a frame of 64 KB is too short to matter, and splitting it too dear."""
MADE = "queues made"
LEAF = "pfifo_head_drop"
"""A full queue lets its oldest frame go and takes the new one, and its sender hears of no error. With `pfifo` the new
frame is refused, and a userspace Open vSwitch, which hands over up to 32 frames in one call, throws away all that come
after the refused one: a flood in the lowest class would cost the highest its frames, before they are in their queue."""
plugins.setdefault(LEAF, sched_pfifo)  # its one option is that of pfifo
_IFF_UP, _IFF_LOWER_UP = 0x1, 0x10000
_SIOCETHTOOL, _ETHTOOL_GSET = 0x8946, 0x01
_OFFLOADS = {"tso": (0x1E, 0x1F), "gso": (0x23, 0x24), "gro": (0x2B, 0x2C)}
"""How to get and to set each: the kernel would put up to 64 KB into the queue as one frame, 10 ms at 50 Mbit/s."""
_LRO, _GFLAGS, _SFLAGS = 1 << 15, 0x25, 0x26


_FORMER_LEAF = "pfifo"
"""Replaced where it is found: what waits in it at that moment is lost, once."""


class PortMissing(AgentError):
    """There is no such device."""


class ForeignQdisc(AgentError):
    """Somebody else shapes this port."""


class QueueError(AgentError):
    """The kernel would not do it."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a class has carried since it was made, and what waits in it now (bytes)."""

    bytes: int
    packets: int
    drops: int
    backlog: int


@dataclass(frozen=True, slots=True)
class _Leaf:
    handle: int
    kind: str
    limit: int | None


@dataclass(frozen=True, slots=True)
class _Now:
    """What the kernel has on a device. `root`: None, where it is a qdisc that the kernel made by itself."""

    index: int
    root: tuple[str, int] | None
    classes: Mapping[int, Mapping[str, Any]]
    traffic: Mapping[int, Traffic]
    leaves: Mapping[int, _Leaf]
    filters: Mapping[tuple[int, int], tuple[int, int]]
    """(pref, protocol) -> (class minor, number of filters)."""

    @property
    def ours(self) -> bool:
        return self.root == ("htb", MAJOR)


def apply(port: str, plan: PortPlan) -> list[str]:
    """Bring the plan about; what was changed, in words (nothing: it was so already).

    Raises PortMissing, ForeignQdisc, QueueError.
    """
    with _kernel(port) as ip:
        now = _look(ip, port)
        if now.root is not None and not now.ours:
            kind, handle = now.root
            raise ForeignQdisc(
                f"has a root qdisc {kind} {handle >> 16:x}: that is not ours, and stays; for the queues of the border: "
                f"tc qdisc del dev {port} root",
                port,
            )
        done: list[str] = []
        if not now.ours:
            # Unclassified frames fall to plumbing, which comes last: until then they go out without any queue.
            ip.tc("add", "htb", now.index, MAJOR, parent=TC_ROOT, default=PLUMBING_MINOR)
            done.append(MADE)
        for one in (plan.root, *plan.leaves[:-1]):
            done += _put_class(ip, now, one, plan.root)
        done += _put_filters(ip, now, plan.filters)
        done += _put_class(ip, now, plan.leaves[-1], plan.root)
        done += _drop_filters(ip, now, plan.filters)
        done += _drop_classes(ip, now, plan)
        return done


def clear(port: str) -> bool:
    """Give the port back as the kernel would have it. False: there was nothing of ours."""
    try:
        with _kernel(port) as ip:
            index = _index(ip, port)
            if _root(ip, index) != ("htb", MAJOR):
                return False
            ip.tc("del", index=index, handle=MAJOR, parent=TC_ROOT)
            return True
    except PortMissing:
        return False


def traffic(port: str) -> dict[int, Traffic]:
    """By class minor; empty where the port has no queues of ours. Raises PortMissing, QueueError."""
    with _kernel(port) as ip:
        now = _look(ip, port)
        return dict(now.traffic) if now.ours else {}


def mtu(port: str) -> int:
    """Raises PortMissing, QueueError."""
    with _kernel(port) as ip:
        return int(ip.get_links(_index(ip, port))[0].get_attr("IFLA_MTU"))


def no_link(port: str) -> str:
    """Why nothing can leave by this port, in words; empty: its link is up. Raises PortMissing, QueueError."""
    with _kernel(port) as ip:
        flags = ip.get_links(_index(ip, port))[0]["flags"]
    if not flags & _IFF_UP:
        return f"it is set down; ip link set {port} up"
    return "" if flags & _IFF_LOWER_UP else "it has no link: see the cable, and the other end"


def speed(port: str) -> int | None:
    """bit/s of the link as the driver says; None: it does not say."""
    # cmd, supported, advertising, speed, six single bytes, maxtxpkt, maxrxpkt, speed_hi, two bytes, lp_advertising
    argument = ctypes.create_string_buffer(struct.pack("IIIH6BIIH2BI8x", _ETHTOOL_GSET, *[0] * 15))
    try:
        _ethtool(port, argument)
    except OSError:
        return None
    words = struct.unpack("IIIH6BIIH2BI8x", argument.raw[:44])
    megabits = words[3] | words[12] << 16
    return None if megabits in (0, 0xFFFF, 0xFFFFFFFF) else megabits * 1_000_000


def split_frames(port: str) -> dict[str, int]:
    """Switch off what lets one frame in the queue be 64 KB; what was switched off here, by name.

    A device that cannot be asked has no such thing. Raises PortMissing, QueueError.
    """
    before: dict[str, int] = {}
    for name, was in offloads(port).items():
        if was:
            _set_offload(port, name, 0)
            before[name] = was
    return before


def restore_frames(port: str, names: Mapping[str, int]) -> None:
    """Undo `split_frames`; a device that is gone, or cannot, is left."""
    for name in names:
        with contextlib.suppress(AgentError):
            _set_offload(port, name, 1)


def offloads(port: str) -> dict[str, int]:
    """Which of tso, gso, gro and lro are on (1) or off (0), as far as the device can be asked."""
    found: dict[str, int] = {}
    for name, (get, _) in _OFFLOADS.items():
        with contextlib.suppress(OSError):
            found[name] = int(_value(port, get, 0) != 0)
    with contextlib.suppress(OSError):
        found["lro"] = int(_value(port, _GFLAGS, 0) & _LRO != 0)
    return found


def _set_offload(port: str, name: str, on: int) -> None:
    try:
        if name == "lro":
            flags = _value(port, _GFLAGS, 0)
            _value(port, _SFLAGS, flags | _LRO if on else flags & ~_LRO)
        else:
            _value(port, _OFFLOADS[name][1], on)
    except OSError as e:
        if e.errno == errno.ENODEV:
            raise PortMissing("no such device", port) from None
        raise QueueError(f"{name} cannot be switched {'on' if on else 'off'}: {e.strerror}", port) from None


def _value(port: str, command: int, value: int) -> int:
    argument = ctypes.create_string_buffer(struct.pack("II", command, value))
    _ethtool(port, argument)
    return int(struct.unpack("II", argument.raw[:8])[1])


def _ethtool(port: str, argument: ctypes.Array[ctypes.c_char]) -> None:
    """One legacy ethtool request on a device of the calling thread's namespace; the answer is in `argument`."""
    call = struct.pack("16sP", port.encode(), ctypes.addressof(argument))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, _SIOCETHTOOL, call)


@contextlib.contextmanager
def _kernel(port: str) -> Iterator[IPRoute]:
    try:
        with IPRoute() as ip:
            yield ip
    except NetlinkError as e:
        if e.code == errno.ENODEV:
            raise PortMissing("no such device", port) from None
        if e.code == errno.ENOENT and "pecified qdisc kind" in str(e):
            raise QueueError(f"this kernel has no such qdisc; load sch_htb and cls_u32: {e}", port) from None
        raise QueueError(f"the kernel refuses: {e}", port) from None
    except OSError as e:
        raise QueueError(f"netlink: {e}", port) from None


def _index(ip: IPRoute, port: str) -> int:
    found = ip.link_lookup(ifname=port)
    if not found:
        raise PortMissing("no such device", port)
    return int(found[0])


def _root(ip: IPRoute, index: int) -> tuple[str, int] | None:
    """Kind and handle of the root qdisc; None for one that the kernel made by itself."""
    for message in ip.get_qdiscs(index):
        if message["parent"] == TC_ROOT and message["handle"] != 0:
            return str(message.get_attr("TCA_KIND")), int(message["handle"])
    return None


def _look(ip: IPRoute, port: str) -> _Now:
    index = _index(ip, port)
    root = _root(ip, index)
    if root != ("htb", MAJOR):
        return _Now(index, root, {}, {}, {}, {})
    classes: dict[int, Mapping[str, Any]] = {}
    seen: dict[int, Traffic] = {}
    for message in ip.get_classes(index):
        if message["handle"] & 0xFFFF0000 != MAJOR:
            continue
        minor = message["handle"] & 0xFFFF
        options = message.get_attr("TCA_OPTIONS")
        parameters = dict(options.get_attr("TCA_HTB_PARMS"))
        parameters["rate"] = options.get_attr("TCA_HTB_RATE64") or parameters["rate"]
        parameters["ceil"] = options.get_attr("TCA_HTB_CEIL64") or parameters["ceil"]
        classes[minor] = parameters
        stats = message.get_attr("TCA_STATS2")
        basic, queue = stats.get_attr("TCA_STATS_BASIC"), stats.get_attr("TCA_STATS_QUEUE")
        seen[minor] = Traffic(basic["bytes"], basic["packets"], queue["drops"], queue["backlog"])
    leaves: dict[int, _Leaf] = {}
    for message in ip.get_qdiscs(index):
        if message["parent"] & 0xFFFF0000 == MAJOR and message["handle"] != 0:
            kind = str(message.get_attr("TCA_KIND"))
            limit = message.get_attr("TCA_OPTIONS")["limit"] if kind in (LEAF, _FORMER_LEAF) else None
            leaves[message["parent"] & 0xFFFF] = _Leaf(int(message["handle"]), kind, limit)
    filters: dict[tuple[int, int], tuple[int, int]] = {}
    for message in ip.get_filters(index=index, parent=MAJOR):
        options = message.get_attr("TCA_OPTIONS")
        key = (message["info"] >> 16, socket.ntohs(message["info"] & 0xFFFF))
        target = None if options is None else options.get_attr("TCA_U32_CLASSID")
        minor, count = filters.get(key, (0, 0))
        filters[key] = (minor, count) if target is None else (target & 0xFFFF, count + 1)
    return _Now(index, root, classes, seen, leaves, filters)


def _put_class(ip: IPRoute, now: _Now, wanted: HtbClass, root: HtbClass) -> list[str]:
    parent = MAJOR if wanted is root else MAJOR | root.minor
    rate, ceil = wanted.rate // 8, wanted.ceil // 8
    parameters = {
        "rate": rate,
        "ceil": ceil,
        "buffer": calc_xmittime(rate, wanted.burst),
        "cbuffer": calc_xmittime(ceil, wanted.cburst),
        "prio": wanted.prio,
        "quantum": wanted.quantum,
    }
    has = now.classes.get(wanted.minor)
    # An inner class has neither rank nor quantum: the kernel keeps those of its leaves only.
    keys = [key for key in parameters if wanted is not root or key not in ("prio", "quantum")]
    said: list[str] = []
    if has is None or any(has[key] != parameters[key] for key in keys):
        ip.tc(
            "add-class" if has is None else "change-class",
            "htb",
            now.index,
            MAJOR | wanted.minor,
            parent=parent,
            rate=rate,
            ceil=ceil,
            burst=wanted.burst,
            cburst=wanted.cburst,
            prio=wanted.prio,
            quantum=wanted.quantum,
        )
        said.append(f"{_word(wanted)} {'made' if has is None else 'changed'}")
    if wanted is root:
        return said
    leaf = now.leaves.get(wanted.minor)
    if leaf is None:
        ip.tc("add", LEAF, now.index, 0, parent=MAJOR | wanted.minor, limit=wanted.limit)
    elif leaf.kind == _FORMER_LEAF:
        ip.tc("replace", LEAF, now.index, 0, parent=MAJOR | wanted.minor, limit=wanted.limit)
        said.append(f"{_word(wanted)} drops its oldest frames now, and no longer the newest")
    elif leaf.kind == LEAF and leaf.limit != wanted.limit:
        ip.tc("change", LEAF, now.index, leaf.handle, parent=MAJOR | wanted.minor, limit=wanted.limit)
        said.append(f"{_word(wanted)} holds {wanted.limit} frames")
    return said


def _word(one: HtbClass) -> str:
    if one.minor == PLUMBING_MINOR:
        return "plumbing"
    return f"class {one.name}" if one.minor >= CLASS_MINOR else "port rate"


def _put_filters(ip: IPRoute, now: _Now, wanted: tuple[Filter, ...]) -> list[str]:
    said = 0
    for one in wanted:
        if now.filters.get((one.pref, one.protocol)) == (one.minor, 1):
            continue
        if (one.pref, one.protocol) in now.filters:
            _delete_filter(ip, now.index, one.pref, one.protocol)
        ip.tc(
            "add-filter",
            "u32",
            now.index,
            parent=MAJOR,
            prio=one.pref,
            protocol=one.protocol,
            target=MAJOR | one.minor,
            keys=list(one.keys),
        )
        said += 1
    return [f"{said} filters made"] if said and now.ours else []


def _drop_filters(ip: IPRoute, now: _Now, wanted: tuple[Filter, ...]) -> list[str]:
    stale = sorted(now.filters.keys() - {(one.pref, one.protocol) for one in wanted})
    for pref, protocol in stale:
        _delete_filter(ip, now.index, pref, protocol)
    return [f"{len(stale)} filters removed"] if stale else []


def _delete_filter(ip: IPRoute, index: int, pref: int, protocol: int) -> None:
    ip.tc("del-filter", index=index, parent=MAJOR, info=pref << 16 | socket.htons(protocol))


def _drop_classes(ip: IPRoute, now: _Now, plan: PortPlan) -> list[str]:
    said = []
    for minor in sorted(now.classes.keys() - {plan.root.minor} - {leaf.minor for leaf in plan.leaves}):
        # Its filters are gone, so it runs empty; what waits now is let out first.
        fresh = {m["handle"] & 0xFFFF: m for m in ip.get_classes(now.index) if m["handle"] & 0xFFFF0000 == MAJOR}
        if minor in fresh and fresh[minor].get_attr("TCA_STATS2").get_attr("TCA_STATS_QUEUE")["qlen"] == 0:
            ip.tc("del-class", index=now.index, handle=MAJOR | minor, parent=MAJOR | plan.root.minor)
            said.append(f"class {minor:x} removed")
    return said
