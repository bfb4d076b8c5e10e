"""The host's own addresses on the bridge's device, remembered: a userspace datapath takes them with it when it dies.

With `datapath_type=netdev` the bridge's device is a tap of ovs-vswitchd: killed and restarted, the switch makes a new
one, bare. Whoever configured the host's address there (ifupdown, networkd, an administrator) does not notice. So the
agent notes addresses and routes while all is well, and puts them onto a device that has been made anew since.

Invariants: nothing is touched while the device is the one that was noted (on a kernel datapath it always is), nor after
a reboot. Nothing is noted while the switch is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ovs_agent import netlink
from ovs_agent.steps import Step, reached

log = logging.getLogger(__name__)
RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE = 0x1, 0x10, 0x40
RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE = 0x100, 0x400
RTPROT_KERNEL, RTPROT_RA, RT_TABLE_LOCAL, RTN_UNICAST, SCOPE_LINK = 2, 9, 255, 1, 253
LINK_MESSAGES, ADDRESS_MESSAGES = (16, 17), (20, 21)
"""RTM_NEWLINK, RTM_DELLINK; RTM_NEWADDR, RTM_DELADDR: their index is at the same place."""
FOREVER = 0xFFFFFFFF
QUIET = 0.5
"""Seconds without change before the addresses are noted."""


@dataclass(frozen=True, slots=True)
class HostPort:
    """Addresses and routes of a device. `index` tells a device from its successor of the same name."""

    boot_id: str
    index: int
    mtu: int
    up: bool
    addresses: list[dict[str, Any]]
    routes: list[dict[str, Any]]


def concerns(events: bytes, device: str, index: int) -> bool:
    """Whether one of these messages may be about a device: each job's lane is a handful of links that are not.

    A message that cannot be read, or of a kind that does not name its device at once, may be.
    """
    at = 0
    while at + 16 <= len(events):
        size, kind = struct.unpack_from("=IH", events, at)
        if size < 24 or at + size > len(events):
            return True
        if kind not in (*LINK_MESSAGES, *ADDRESS_MESSAGES) or struct.unpack_from("=I", events, at + 20)[0] == index:
            return True
        if kind in LINK_MESSAGES and device.encode() + b"\0" in events[at + 32 : at + size]:
            return True
        at += (size + 3) & ~3
    return at == 0


def look(device: str, boot_id: str) -> HostPort | None:
    """What a device has now; None if there is none of that name. Blocks."""
    with IPRoute() as ip:
        found = ip.link_lookup(ifname=device)
        if not found:
            return None
        link = ip.get_links(found[0])[0]
        addresses = []
        for message in ip.get_addr(index=found[0]):
            life = message.get_attr("IFA_CACHEINFO") or {}
            if message["scope"] == SCOPE_LINK:
                continue  # the kernel makes these itself
            addresses.append(
                {
                    "family": int(message["family"]),
                    "address": message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"),
                    "prefixlen": int(message["prefixlen"]),
                    "preferred": int(life.get("ifa_preferred", FOREVER)),
                    "valid": int(life.get("ifa_valid", FOREVER)),
                }
            )
        routes = []
        for family in (socket.AF_INET, socket.AF_INET6):
            for message in ip.get_routes(family=family, oif=found[0]):
                if message.get_attr("RTA_OIF") != found[0] or message["proto"] in (RTPROT_KERNEL, RTPROT_RA):
                    continue
                table = message.get_attr("RTA_TABLE") or message["table"]
                if table == RT_TABLE_LOCAL or message["type"] != RTN_UNICAST:
                    continue
                route = {
                    "family": int(family),
                    "dst": f"{message.get_attr('RTA_DST')}/{message['dst_len']}" if message["dst_len"] else "default",
                    "gateway": message.get_attr("RTA_GATEWAY"),
                    "priority": message.get_attr("RTA_PRIORITY"),
                    "prefsrc": message.get_attr("RTA_PREFSRC"),
                    "table": int(table),
                    "proto": int(message["proto"]),
                    "scope": int(message["scope"]),
                }
                routes.append({k: v for k, v in route.items() if v is not None})
        # Routes with a gateway need those without: they come last.
        routes.sort(key=lambda r: "gateway" in r)
        return HostPort(boot_id, found[0], int(link.get_attr("IFLA_MTU")), bool(link["flags"] & 1), addresses, routes)


def put_back(device: str, was: HostPort) -> list[str]:
    """Give a bare device what its predecessor had. Returns in words what could not be. Blocks."""
    trouble: list[str] = []
    with IPRoute() as ip:
        found = ip.link_lookup(ifname=device)
        if not found:
            return [f"{device} is not there"]
        index = found[0]
        ip.link("set", index=index, mtu=was.mtu)
        if was.up:
            ip.link("set", index=index, state="up")
        for a in was.addresses:
            words: dict[str, Any] = {"index": index, "address": a["address"], "prefixlen": a["prefixlen"]}
            if a["family"] == socket.AF_INET6:
                words["flags"] = netlink.IFA_F_NODAD  # it was ours a moment ago
            if a["valid"] != FOREVER:
                words |= {"preferred": a["preferred"], "valid": a["valid"]}
            _try(trouble, f"address {a['address']}", lambda words=words: ip.addr("add", **words))  # type: ignore[misc]
        for r in was.routes:
            _try(trouble, f"route {r['dst']}", lambda r=r: ip.route("add", oif=index, **r))  # type: ignore[misc]
    return trouble


def _try(trouble: list[str], what: str, do: Callable[[], Any]) -> None:
    try:
        do()
    except NetlinkError as e:
        if e.code != errno.EEXIST:
            trouble.append(f"{what}: {e}")


class HostPortKeeper:
    """Notes on change (from rtnetlink, no polling) and puts back on demand."""

    def __init__(self, device: str, boot_id: str, file: Path, switch_alive: Callable[[], bool]) -> None:
        self._device = device
        self._boot_id = boot_id
        self._file = file
        self._switch_alive = switch_alive
        self._noted = self._read()

    def _read(self) -> HostPort | None:
        try:
            noted = HostPort(**json.loads(self._file.read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return noted if noted.boot_id == self._boot_id else None

    async def run(self) -> None:
        """Note now and after every change, until cancelled."""
        loop = asyncio.get_running_loop()
        groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as events:
            events.bind((0, groups))
            events.setblocking(False)
            while True:
                if self._switch_alive():
                    await self._note()
                with contextlib.suppress(OSError):  # ENOBUFS: we were too slow, and look anyway
                    while not concerns(await loop.sock_recv(events, 65536), self._device, self._index()):
                        pass
                await asyncio.sleep(QUIET)
                with contextlib.suppress(BlockingIOError, OSError):
                    while events.recv(65536):
                        pass

    def _index(self) -> int:
        """0: there is no such device."""
        try:
            return socket.if_nametoindex(self._device)
        except OSError:
            return 0

    async def _note(self) -> None:
        now = await netlink.in_thread(lambda: look(self._device, self._boot_id))
        if now is None or now == self._noted or not self._switch_alive():
            return
        if self._noted is not None and now.index != self._noted.index:
            return  # a new device: `restore` comes first
        self._save(now)

    def _save(self, now: HostPort) -> None:
        self._noted = now
        new = self._file.with_name(f".{self._file.name}.new")
        new.write_text(json.dumps(asdict(now)))
        reached(Step.HOST_PORT_BESIDE)
        os.replace(new, self._file)

    async def restore(self) -> None:
        """Called when the switch is (back) there: a device made anew gets what the old one had."""
        was = self._noted
        now = await netlink.in_thread(lambda: look(self._device, self._boot_id))
        if now is None:
            return
        if was is not None and now.index != was.index:
            trouble = await netlink.in_thread(lambda: put_back(self._device, was))
            log.warning(
                "device %s was made anew by the switch; put back %d addresses and %d routes%s",
                *(self._device, len(was.addresses), len(was.routes)),
                "; not: " + "; ".join(trouble) if trouble else "",
            )
            now = await netlink.in_thread(lambda: look(self._device, self._boot_id))
        if now is not None:
            self._save(now)
