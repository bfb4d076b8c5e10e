"""The few rtnetlink requests that make and unmake a lane, written byte by byte and sent together (rtnetlink(7)).

A lane is five to eight such requests. pyroute2, which does everything else here, makes an event loop for each socket
and dumps all links to find one: three quarters of the processor time of a job's network. Pure but for `Socket`.

Invariants: a request says what it is about in words, for its error; all requests of a `send` are carried out by the
kernel in their order, and each is acknowledged or refused before `send` returns; what is refused does not stop the
others, so who sends several can undo all of them.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_NEWADDR, RTM_NEWROUTE = 16, 17, 18, 20, 24
NLMSG_ERROR = 2
NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE = 0x01, 0x04, 0x200, 0x400
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINKINFO, IFLA_STATS64, IFLA_GROUP, IFLA_NET_NS_FD = 1, 3, 4, 18, 23, 27, 28
LINK_HEADER = 16
"""Bytes of a link's answer before its attributes (struct ifinfomsg)."""
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
RTA_OIF, RTA_GATEWAY = 4, 5
RT_TABLE_MAIN, RTPROT_STATIC, RTN_UNICAST, RTNH_F_ONLINK = 254, 4, 1, 4
SOL_NETLINK, NETLINK_CAP_ACK = 270, 10
NLA_F_NESTED = 0x8000
ANSWER = 256 * 1024
PATIENCE = 20.0
"""Seconds the kernel may take: it acts before it answers, and its lock may be held by whoever removes many devices."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `gone_ok`: it is no error that what it is about is not there."""

    words: str
    kind: int
    flags: int
    body: bytes
    gone_ok: bool = False


class Refused(OSError):
    """The kernel would not do one of them; the text says which."""


def _attribute(kind: int, data: bytes) -> bytes:
    size = 4 + len(data)
    return struct.pack("=HH", size, kind) + data + bytes(-size % 4)


def _text(kind: int, text: str) -> bytes:
    return _attribute(kind, text.encode() + b"\0")


def _number(kind: int, number: int) -> bytes:
    return _attribute(kind, struct.pack("=I", number))


def _link(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, change)


def veth(name: str, peer: str, peer_mac: str, peer_namespace: int, mtu: int) -> Ask:
    """A pair: `name` here, `peer` in the namespace of a descriptor."""
    other = _link() + _text(IFLA_IFNAME, peer) + _attribute(IFLA_ADDRESS, bytes.fromhex(peer_mac.replace(":", "")))
    other += _number(IFLA_MTU, mtu) + _number(IFLA_NET_NS_FD, peer_namespace)
    data = _attribute(IFLA_INFO_DATA | NLA_F_NESTED, _attribute(VETH_INFO_PEER | NLA_F_NESTED, other))
    info = _attribute(IFLA_LINKINFO | NLA_F_NESTED, _text(IFLA_INFO_KIND, "veth") + data)
    body = _link() + _text(IFLA_IFNAME, name) + _number(IFLA_MTU, mtu) + info
    return Ask(f"pair of devices {name}", RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def flags(index: int, on: int) -> Ask:
    """Flags of a link set; those not named stay."""
    return Ask(f"flags {on:#x} of link {index}", RTM_NEWLINK, 0, _link(index, on, on))


def address(index: int, ip: Address, prefix_length: int, extra: int = 0) -> Ask:
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    body = struct.pack("=BBBBI", family, prefix_length, 0, 0, index)
    body += (_attribute(IFA_LOCAL, ip.packed) if ip.version == 4 else b"") + _attribute(IFA_ADDRESS, ip.packed)
    if extra:
        body += _number(IFA_FLAGS, extra)
    return Ask(f"address {ip}/{prefix_length}", RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, body)


def default_route(index: int, gateway: Address) -> Ask:
    """By a gateway that need not be in any network of the link."""
    family = socket.AF_INET if gateway.version == 4 else socket.AF_INET6
    body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST, RTNH_F_ONLINK)
    body += _attribute(RTA_GATEWAY, gateway.packed) + _number(RTA_OIF, index)
    return Ask(f"default route by {gateway}", RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, body)


def no_link(name: str) -> Ask:
    return Ask(f"no device {name}", RTM_DELLINK, 0, _link() + _text(IFLA_IFNAME, name), gone_ok=True)


def in_group(name: str, group: int) -> Ask:
    body = _link() + _text(IFLA_IFNAME, name) + _number(IFLA_GROUP, group)
    return Ask(f"group of device {name}", RTM_NEWLINK, 0, body, gone_ok=True)


def no_group(group: int) -> Ask:
    """All links of a group go at once: the kernel waits for its readers once, not once for each."""
    return Ask("no devices of the group", RTM_DELLINK, 0, _link() + _number(IFLA_GROUP, group), gone_ok=True)


def encode(asks: Sequence[Ask], first: int = 1) -> bytes:
    """The messages, numbered from `first`."""
    return b"".join(
        struct.pack("=IHHII", 16 + len(ask.body), ask.kind, ask.flags | NLM_F_REQUEST | NLM_F_ACK, number, 0) + ask.body
        for number, ask in enumerate(asks, first)
    )


def acknowledgements(data: bytes) -> Iterable[tuple[int, int]]:
    """The number and the error (0: none) of each acknowledgement."""
    at = 0
    while at + 16 <= len(data):
        size, kind, _, number, _ = struct.unpack_from("=IHHII", data, at)
        if kind == NLMSG_ERROR:
            yield number, -struct.unpack_from("=i", data, at + 16)[0]
        at += max(16, (size + 3) & ~3)


def send(asks: Sequence[Ask]) -> None:
    """Carry out all of them in the calling thread's namespace. Raises Refused for the first that could not be done."""
    if not asks:
        return
    refused: dict[int, int] = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as s:
        with contextlib.suppress(OSError):
            s.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)  # no need to be told our own request again
        s.bind((0, 0))
        s.settimeout(PATIENCE)
        s.sendto(encode(asks), (0, 0))
        waiting = set(range(1, len(asks) + 1))
        while waiting:
            for number, code in acknowledgements(s.recv(ANSWER)):
                waiting.discard(number)
                if code and not (asks[number - 1].gone_ok and code == errno.ENODEV):
                    refused[number] = code
    if refused:
        number = min(refused)
        raise Refused(refused[number], f"{asks[number - 1].words}: {os.strerror(refused[number])}")


def link_counters(data: bytes) -> tuple[int, int, int, int] | None:
    """Of an answer about a link: packets received and sent, bytes received and sent. None: of any other answer."""
    size, kind = struct.unpack_from("=IH", data)
    if kind != RTM_NEWLINK:
        return None
    at = 16 + LINK_HEADER
    while at + 4 <= min(size, len(data)):
        length, which = struct.unpack_from("=HH", data, at)
        if which == IFLA_STATS64:
            received, sent, received_bytes, sent_bytes = struct.unpack_from("=4Q", data, at + 4)
            return received, sent, received_bytes, sent_bytes
        at += max(4, (length + 3) & ~3)
    return None


def counters(name: str) -> tuple[int, int, int, int] | None:
    """The same of a device of the calling thread's namespace; None: it is not there."""
    body = _link() + _text(IFLA_IFNAME, name)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as s:
        s.bind((0, 0))
        s.settimeout(PATIENCE)
        s.sendto(struct.pack("=IHHII", 16 + len(body), RTM_GETLINK, NLM_F_REQUEST, 1, 0) + body, (0, 0))
        return link_counters(s.recv(ANSWER))
