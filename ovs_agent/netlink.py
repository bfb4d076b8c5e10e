"""Namespaces, veth pairs, addresses and offloads. With `rtnl`, which it drives, the only module that talks rtnetlink.

Invariants: whatever needs another namespace runs in a thread of its own that dies afterwards, so that no other code can
ever find itself in the wrong network. The host's end of a pair speaks neither IPv6 nor ARP before it is up. Functions
here block; the agent calls them through `in_thread`.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import ctypes
import errno
import fcntl
import functools
import logging
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ovs_agent import rtnl
from ovs_agent.errors import AgentError
from ovs_agent.plan import INNER_DEVICE, Lane, Network, lane_number_of_port
from ovs_agent.steps import Step, reached

log = logging.getLogger(__name__)
NETNS_DIR = Path("/run/netns")
KILL_ROUNDS, KILL_PAUSE = 20, 0.005
KILL_LATER_PAUSE = 0.5
CLONE_NEWNET = 0x40000000
MS_BIND, MS_REC, MS_SHARED, MNT_DETACH = 4096, 16384, 1 << 20, 2
SIOCETHTOOL = 0x8946
ETHTOOL_GTXCSUM, ETHTOOL_STXCSUM, ETHTOOL_GTSO, ETHTOOL_GGRO, ETHTOOL_SGRO = 0x16, 0x17, 0x1E, 0x2B, 0x2C
IFA_F_NODAD, IFA_F_NOPREFIXROUTE = 0x02, 0x200
DOOMED = 0x6C6A6C6A
"""The group of links that a batch of lanes to be deleted is put into."""
IFF_UP, IFF_LOOPBACK, IFF_NOARP = 0x1, 0x8, 0x80

_libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


class NetworkError(AgentError):
    """The kernel would not do what a lane needs."""


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


async def in_thread(function: Callable[[], T]) -> T:
    """Run a blocking function in a fresh thread that dies with it, and wait. Cancelling the wait does not stop it."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def body() -> None:
        try:
            result = function()
        except BaseException as e:  # noqa: BLE001  handed to whoever waits
            outcome: tuple[T | None, BaseException | None] = (None, e)
        else:
            outcome = (result, None)
        with contextlib.suppress(RuntimeError):  # the loop may be gone at shutdown
            loop.call_soon_threadsafe(settle, *outcome)

    # Not threading.Thread, whose start() stops the caller, here the whole agent, until the new thread has had a turn.
    _thread.start_new_thread(body, ())
    return await future


def enter_namespace(fd: int) -> None:
    """Move the calling thread. Only for threads that die afterwards."""
    _check(_libc.setns(fd, CLONE_NEWNET), "setns")


def call_in_namespace(fd: int, function: Callable[[], T]) -> T:
    """Run `function` inside a namespace, in a thread of its own."""
    box: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            enter_namespace(fd)
            box.append(function())
        except BaseException as e:  # noqa: BLE001  raised in the thread that waits
            errors.append(e)

    thread = threading.Thread(target=body, name="in-namespace", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return box[0]


def _prepare_netns_dir() -> None:
    """As iproute2 does it: a shared mount point, so that names appear in every mount namespace of the host."""
    NETNS_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
    target = os.fsencode(NETNS_DIR)
    if _libc.mount(b"", target, b"none", MS_SHARED | MS_REC, None) != 0:
        _check(_libc.mount(target, target, b"none", MS_BIND | MS_REC, None), f"bind mount {NETNS_DIR}")
        _check(_libc.mount(b"", target, b"none", MS_SHARED | MS_REC, None), f"share {NETNS_DIR}")


def create_namespace(name: str) -> None:
    """A new, empty namespace under a name, with lo up. Fails if the name is taken."""
    _prepare_netns_dir()
    path = NETNS_DIR / name
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    reached(Step.LANE_NAMED)
    errors: list[BaseException] = []

    def body() -> None:
        try:
            _check(_libc.unshare(CLONE_NEWNET), "unshare")
            _write("/proc/sys/net/ipv6/conf/all/accept_ra", "0", missing_ok=True)
            _quiet_ipv6("default")
            _flags_up("lo")
            source = f"/proc/self/task/{threading.get_native_id()}/ns/net".encode()
            _check(_libc.mount(source, os.fsencode(path), b"none", MS_BIND, None), f"bind mount {path}")
        except BaseException as e:  # noqa: BLE001  raised in the thread that waits
            errors.append(e)

    thread = threading.Thread(target=body, name="new-namespace", daemon=True)
    thread.start()
    thread.join()
    if errors:
        with contextlib.suppress(OSError):
            path.unlink()
        raise NetworkError(f"namespace cannot be made: {errors[0]}", name)


def delete_namespace(name: str) -> bool:
    """Take the name away; the kernel frees the namespace when nothing is inside any more. False if it was not there."""
    path = NETNS_DIR / name
    there = path.exists()
    while _libc.umount2(os.fsencode(path), MNT_DETACH) == 0:  # more than once, if somebody mounted over it
        pass
    if ctypes.get_errno() not in (errno.EINVAL, errno.ENOENT):
        raise NetworkError(f"cannot be unmounted: {os.strerror(ctypes.get_errno())}", str(path))
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    return there


def open_namespace(name: str) -> int:
    """A descriptor of a named namespace (close-on-exec). Raises NetworkError if it is gone."""
    try:
        return os.open(NETNS_DIR / name, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        raise NetworkError(f"namespace is not there: {e.strerror}", name) from None


def namespace_inode(name: str) -> int | None:
    try:
        return (NETNS_DIR / name).stat().st_ino
    except FileNotFoundError:
        return None


def namespaces(prefix: str) -> list[str]:
    """Names under /run/netns that begin with `prefix`."""
    try:
        return sorted(entry for entry in os.listdir(NETNS_DIR) if entry.startswith(prefix))
    except FileNotFoundError:
        return []


def kill_inside(name: str) -> list[int]:
    """SIGKILL every process whose network is this namespace: a job must not outlive its attempt. Returns their pids."""
    return kill_in([name]).get(name, [])


def kill_in(names: Iterable[str]) -> dict[str, list[int]]:
    """SIGKILL every process whose network is one of these namespaces. Returns their pids."""
    inodes = {inode: name for name in names if (inode := namespace_inode(name)) is not None}
    if not inodes:
        return {}
    of: dict[int, int] = {}

    def inside() -> Iterator[int]:
        for pid, inode in networks():
            if inode in inodes:
                of[pid] = inode
                yield pid

    killed, left = _kill(inside)
    for inode in {of[pid] for pid in left}:
        name = inodes[inode]
        mine = ",".join(str(pid) for pid in left if of[pid] == inode)
        log.error("namespace %s: processes outlive SIGKILL: %s; going on", name, mine)
        fd = open_namespace(name)  # as long as it is open, no other namespace gets this inode
        threading.Thread(target=_kill_on, args=(name, inode, fd), name="kill-on", daemon=True).start()
    found: dict[str, list[int]] = {}
    for pid in killed:
        found.setdefault(inodes[of[pid]], []).append(pid)
    return found


def kill_strays(uid: int, prefix: str, still: Callable[[], bool]) -> list[int]:
    """SIGKILL the processes of a uid whose network is neither the host's nor one whose name begins with `prefix`.

    So go those that left a job's namespace for one of their own making, which no other mark of the job need follow.
    `still` is asked before each round whether the uid has nothing else to do here. Returns their pids.
    """

    def strays() -> Iterator[int]:
        if not still():
            return
        known = {os.stat("/proc/self/ns/net").st_ino, *(namespace_inode(name) for name in namespaces(prefix))}
        for pid, inode in networks():
            if inode not in known and _has_uid(pid, uid):
                yield pid

    killed, left = _kill(strays)
    if left:
        log.error("processes of uid %d outlive SIGKILL: %s", uid, ",".join(map(str, left)))
    return killed


def _kill(find: Callable[[], Iterable[int]]) -> tuple[list[int], list[int]]:
    """SIGKILL what is found until nothing is. Returns whom it hit, and who was still there at the end."""
    killed: list[int] = []
    found: list[int] = []
    for _ in range(KILL_ROUNDS):  # a process may fork while we look; each round finds the children of the last
        found = [pid for pid in find() if pid != os.getpid()]
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed += [pid for pid in found if pid not in killed]
        if not found:
            break
        time.sleep(KILL_PAUSE)
    return killed, found


def _kill_on(name: str, inode: int, fd: int) -> None:
    """Until nobody is left: who waits for a dead disk dies when the disk is back, who forks all the time in the end."""
    try:
        while _kill(lambda: pids_in(inode))[1]:
            time.sleep(KILL_LATER_PAUSE)
        log.warning("namespace %s: its last processes are dead", name)
    finally:
        os.close(fd)


def pids_in(inode: int) -> Iterator[int]:
    """Living processes whose network is the namespace of this inode."""
    return (pid for pid, network in networks() if network == inode)


def networks() -> Iterator[tuple[int, int]]:
    """Living processes, each with the inode of its network namespace."""
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                inode = os.stat(f"/proc/{entry}/ns/net").st_ino
                if not _is_zombie(entry):
                    yield int(entry), inode
            except OSError:
                continue


def _has_uid(pid: int, uid: int) -> bool:
    """By the real, effective or saved uid. (Not by the owner of /proc/PID, which is root for who is not dumpable.)"""
    try:
        with open(f"/proc/{pid}/status", "rb") as f:
            for line in f:
                if line.startswith(b"Uid:"):
                    return str(uid).encode() in line.split()[1:]
    except OSError:
        pass
    return False


def _is_zombie(pid: str) -> bool:
    with open(f"/proc/{pid}/stat", "rb") as f:
        return f.read().rpartition(b")")[2].split()[0] == b"Z"


def _write(path: str, text: str, missing_ok: bool = False) -> None:
    try:
        with open(path, "w") as f:
            f.write(text)
    except FileNotFoundError:
        if not missing_ok:
            raise


def _ethtool(device: str, request: int, value: int) -> None:
    """One legacy ethtool request on a device of the calling thread's namespace."""
    argument = ctypes.create_string_buffer(struct.pack("II", request, value))
    call = struct.pack("16sP", device.encode(), ctypes.addressof(argument))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, SIOCETHTOOL, call)


def _flags_up(device: str) -> None:
    siocgifflags, siocsifflags, iff_up = 0x8913, 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        answer = fcntl.ioctl(s, siocgifflags, struct.pack("16sH22x", device.encode(), 0))
        flags = struct.unpack("16sH22x", answer)[1]
        fcntl.ioctl(s, siocsifflags, struct.pack("16sH22x", device.encode(), flags | iff_up))


def build_lanes(lanes: Sequence[Lane], net: Network) -> None:
    """Namespaces, veth pairs, addresses, routes and offloads of lanes, complete but for their ports in the switch.

    Step by step for all of them: the switch looks at all of its ports whenever a device has changed, and sees changes
    that come together as one. (So the jobs' ends come up first, which nobody outside sees.)
    The caller has installed the nftables drop before. Raises NetworkError; nothing is left behind then.
    """
    fds: list[int] = []
    try:
        for lane in lanes:
            create_namespace(lane.namespace)
            reached(Step.LANE_NAMESPACE)
            fds.append(open_namespace(lane.namespace))
        pairs = zip(lanes, fds, strict=True)
        rtnl.send([rtnl.veth(lane.port, INNER_DEVICE, lane.mac, fd, net.mtu) for lane, fd in pairs])
        reached(Step.LANE_DEVICE)
        for lane in lanes:
            _write(f"/proc/sys/net/ipv6/conf/{lane.port}/disable_ipv6", "1", missing_ok=True)
            _ethtool(lane.port, ETHTOOL_SGRO, 0)
        for lane, fd in zip(lanes, fds, strict=True):
            call_in_namespace(fd, functools.partial(_configure_inside, lane, net))
            reached(Step.LANE_CONFIGURED)
        # NOARP: the host's stack must not answer for the host on a job's wire.
        rtnl.send([rtnl.flags(socket.if_nametoindex(lane.port), IFF_UP | IFF_NOARP) for lane in lanes])
        reached(Step.LANE_UP)
    except (OSError, NetlinkError, IndexError, NetworkError) as e:
        demolish_all([Ruin(lane.port, (lane.namespace,)) for lane in lanes])
        names = ", ".join(f"{lane.number} ({lane.namespace})" for lane in lanes)
        raise NetworkError(f"cannot be built: {e}", f"lanes {names}") from e
    finally:
        for fd in fds:
            os.close(fd)


def _quiet_ipv6(device: str) -> None:
    """The kernel adds nothing of its own to a device of the calling thread's network (`default`: to those to come)."""
    conf = f"/proc/sys/net/ipv6/conf/{device}"
    for key, value in (("accept_ra", "0"), ("autoconf", "0"), ("accept_redirects", "0"), ("addr_gen_mode", "1")):
        # addr_gen_mode 1: no link-local address. A job speaks with its own addresses only; the switch drops all others.
        _write(f"{conf}/{key}", value, missing_ok=True)
    for version in (1, 2):
        # Reports of multicast groups leave at once, before the lane is in the switch and anybody's. (They would be
        # spread over seconds, cost the switch two packets of each job, and look like the job's.)
        _write(f"{conf}/mldv{version}_unsolicited_report_interval", "1", missing_ok=True)


def _configure_inside(lane: Lane, net: Network) -> None:
    if lane.ipv6 is None:
        _write(f"/proc/sys/net/ipv6/conf/{INNER_DEVICE}/disable_ipv6", "1", missing_ok=True)
    # A userspace datapath passes on packets as they are, so checksums must be complete when they leave the job.
    _ethtool(INNER_DEVICE, ETHTOOL_STXCSUM, 0)
    index = socket.if_nametoindex(INNER_DEVICE)
    asks = [rtnl.address(index, lane.ipv4, net.ipv4_prefix_length)]
    if lane.ipv6 is not None:
        asks.append(rtnl.address(index, lane.ipv6, net.ipv6_prefix_length, IFA_F_NODAD))
    asks.append(rtnl.flags(index, IFF_UP))
    if net.ipv4_gateway is not None:
        asks.append(rtnl.default_route(index, net.ipv4_gateway))
    if lane.ipv6 is not None and net.ipv6_gateway is not None:
        asks.append(rtnl.default_route(index, net.ipv6_gateway))
    rtnl.send(asks)


def devices_up(fd: int) -> list[str]:
    """Devices of a namespace that are up, or that have the name a lane's end would get; loopback does not count."""

    def look() -> list[str]:
        with IPRoute() as ip:
            links = [(str(link.get_attr("IFLA_IFNAME")), int(link["flags"])) for link in ip.get_links()]
        return sorted(n for n, flags in links if n == INNER_DEVICE or (flags & IFF_UP and not flags & IFF_LOOPBACK))

    return call_in_namespace(fd, look)


def adopt_namespace(fd: int, name: str, lane: Lane | None, net: Network) -> None:
    """Give a namespace that a job brought a name, and plug the lane into it (None: it stays empty).

    The name comes first: whatever happens afterwards, tear-down finds the namespace. Raises NetworkError; the lane is
    cut then.
    """
    try:
        _prepare_netns_dir()
        path = NETNS_DIR / name
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
        _check(_libc.mount(f"/proc/self/fd/{fd}".encode(), os.fsencode(path), b"none", MS_BIND, None), "bind mount")
        reached(Step.ATTACH_NAMED)

        def prepare() -> None:
            _write("/proc/sys/net/ipv6/conf/all/accept_ra", "0", missing_ok=True)
            _write("/proc/sys/net/ipv6/conf/default/accept_ra", "0", missing_ok=True)
            _flags_up("lo")

        call_in_namespace(fd, prepare)
        if lane is not None:
            _move_inner_end(lane, fd)
            reached(Step.ATTACH_MOVED)

            def configure(lane: Lane = lane) -> None:
                _quiet_ipv6(INNER_DEVICE)
                _configure_inside(lane, net)

            call_in_namespace(fd, configure)
    except (OSError, NetlinkError, IndexError, NetworkError) as e:
        if lane is not None:
            delete_device(lane.port)
        raise NetworkError(f"cannot be attached: {e}", name) from e


def _move_inner_end(lane: Lane, fd: int) -> None:
    def move() -> None:
        with IPRoute() as ip:
            ip.link("set", index=ip.link_lookup(ifname=INNER_DEVICE)[0], net_ns_fd=fd)

    warm = open_namespace(lane.namespace)
    try:
        call_in_namespace(warm, move)
    finally:
        os.close(warm)


def delete_device(name: str) -> bool:
    """Delete a link of the host. False if it was not there."""
    return bool(delete_devices([name]))


def delete_devices(names: Iterable[str]) -> list[str]:
    """Delete links of the host, all at once. Returns those that were there."""
    there = [name for name in names if _there(name)]
    asks = [rtnl.no_link(name) for name in there]
    if len(there) > 1:
        asks = [*(rtnl.in_group(name, DOOMED) for name in there), rtnl.no_group(DOOMED)]
    try:
        rtnl.send(asks)
    except OSError as e:
        raise NetworkError(f"cannot be deleted: {e}", ",".join(there)) from e
    return there


def _there(device: str) -> bool:
    try:
        socket.if_nametoindex(device)
    except OSError:
        return False
    return True


def left_of(port: str, name: str) -> bool:
    """Whether a lane's device or the name of its namespace is there."""
    return _there(port) or named(name)


def named(name: str) -> bool:
    """Whether a namespace's name is there."""
    return os.path.lexists(NETNS_DIR / name)


def demolish(port: str | None, names: Iterable[str]) -> list[int]:
    """Take a lane's processes, device and namespaces away. Idempotent. Returns the pids killed."""
    return demolish_all([Ruin(port, tuple(names))])[0]


@dataclass(frozen=True, slots=True)
class Ruin:
    """What of one lane is to go. `port` None: only its namespaces."""

    port: str | None
    namespaces: tuple[str, ...]


def demolish_all(ruins: Sequence[Ruin]) -> list[list[int]]:
    """Take lanes away, together: one look at all processes of the node serves all, and one wait of the kernel for its
    readers. Idempotent. Returns the pids killed of each."""
    killed = kill_in([name for ruin in ruins for name in ruin.namespaces])
    reached(Step.DEMOLISH_KILLED)
    delete_devices([ruin.port for ruin in ruins if ruin.port is not None])
    reached(Step.DEMOLISH_DEVICE)
    for ruin in ruins:
        for name in ruin.namespaces:
            delete_namespace(name)
    reached(Step.DEMOLISH_NAMESPACES)
    return [[pid for name in ruin.namespaces for pid in killed.get(name, [])] for ruin in ruins]


def job_devices() -> list[str]:
    """Devices of the host that carry a lane's name. (Not from /sys, which shows the network of whoever mounted it.)"""
    return sorted(name for _, name in socket.if_nameindex() if lane_number_of_port(name) is not None)


def device_mac(name: str) -> str | None:
    """MAC of a device of this network namespace, or None if there is no such device."""
    with IPRoute() as ip:
        index = ip.link_lookup(ifname=name)
        return str(ip.get_links(index[0])[0].get_attr("IFLA_ADDRESS")) if index else None


@dataclass(frozen=True, slots=True)
class DeviceState:
    up: bool
    arp: bool
    addresses: tuple[str, ...]
    """Without link-local ones."""


def device_state(name: str) -> DeviceState | None:
    """A device of the calling thread's network, or None if there is none of this name."""
    with IPRoute() as ip:
        found = ip.link_lookup(ifname=name)
        if not found:
            return None
        flags = int(ip.get_links(found[0])[0]["flags"])
        texts = [m.get_attr("IFA_LOCAL") or m.get_attr("IFA_ADDRESS") for m in ip.get_addr(index=found[0])]
    addresses = tuple(sorted(text for text in texts if text and not text.startswith("fe80:")))
    return DeviceState(bool(flags & IFF_UP), not flags & IFF_NOARP, addresses)


def try_out(name: str) -> str:
    """What of a lane the kernel would not make, in words; empty if it makes everything. Leaves nothing behind."""
    errors: list[BaseException] = []

    def body() -> None:
        try:
            _check(_libc.unshare(CLONE_NEWNET), "a network namespace")
            with IPRoute() as ip:
                ip.link("add", ifname=name, kind="veth", peer={"ifname": INNER_DEVICE})
            _ethtool(INNER_DEVICE, ETHTOOL_STXCSUM, 0)
        except (OSError, NetlinkError) as e:
            errors.append(e)

    thread = threading.Thread(target=body, name="try-out", daemon=True)
    thread.start()
    thread.join()
    return f"the kernel does not make a veth pair in a network namespace: {errors[0]}" if errors else ""


def offload(device: str, request: int) -> bool:
    """Whether an offload of a device of the calling thread's network is on."""
    argument = ctypes.create_string_buffer(struct.pack("II", request, 0))
    call = struct.pack("16sP", device.encode(), ctypes.addressof(argument))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, SIOCETHTOOL, call)
    return bool(struct.unpack("II", argument.raw[:8])[1])


def host_addresses() -> list[str]:
    """Every address of the host itself but loopback, for the controller, which protects them from jobs."""
    found: set[str] = set()
    with IPRoute() as ip:
        for message in ip.get_addr():
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            if text and not text.startswith("127.") and text != "::1":
                found.add(text)
    return sorted(found)
