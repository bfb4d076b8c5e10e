"""Ethernet frames made by hand: what root in a job's namespace could forge, and what an honest job sends.

Every frame ends in a marker of its own, so that a capture knows it again whatever its headers say. Run as a script it
sends frames (`send DEVICE`, hex lines on stdin) or prints what arrives (`watch DEVICE`, hex lines on stdout).
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from dataclasses import dataclass

IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD
ICMP, IGMP, TCP, UDP, FRAGMENT, ICMPV6 = 1, 2, 6, 17, 44, 58
ALL = "ff:ff:ff:ff:ff:ff"


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def eth(source: str, destination: str, ethertype: int, payload: bytes) -> bytes:
    return mac(destination) + mac(source) + struct.pack("!H", ethertype) + payload


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip4(source: str, destination: str, protocol: int, payload: bytes, *, fragment: int = 0, ident: int = 7) -> bytes:
    """`fragment`: the flags and offset field, in units of 8 octets with flags on top."""
    ends = socket.inet_aton(source) + socket.inet_aton(destination)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), ident, fragment, 64, protocol, 0) + ends
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def ip6(source: str, destination: str, next_header: int, payload: bytes, hops: int = 255) -> bytes:
    ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
    return struct.pack("!IHBB", 6 << 28, len(payload), next_header, hops) + ends + payload


def _pseudo(source: str, destination: str, protocol: int, length: int) -> bytes:
    a, b = ipaddress.ip_address(source).packed, ipaddress.ip_address(destination).packed
    if len(a) == 4:
        return a + b + struct.pack("!BBH", 0, protocol, length)
    return a + b + struct.pack("!I3xB", length, protocol)


def udp(source: str, destination: str, ports: tuple[int, int], data: bytes) -> bytes:
    """A datagram with its checksum over the addresses given."""
    length = 8 + len(data)
    head = struct.pack("!HHHH", *ports, length, 0)
    summed = checksum(_pseudo(source, destination, UDP, length) + head + data) or 0xFFFF
    return head[:6] + struct.pack("!H", summed) + data


def tcp_syn(source: str, destination: str, ports: tuple[int, int], data: bytes) -> bytes:
    head = struct.pack("!HHIIBBHHH", *ports, 1, 0, 5 << 4, 0x02, 65535, 0, 0)
    summed = checksum(_pseudo(source, destination, TCP, len(head) + len(data)) + head + data)
    return head[:16] + struct.pack("!H", summed) + head[18:] + data


def icmp4(kind: int, data: bytes) -> bytes:
    head = struct.pack("!BBHHH", kind, 0, 0, 1, 1)
    return head[:2] + struct.pack("!H", checksum(head + data)) + head[4:] + data


def icmp6(source: str, destination: str, kind: int, body: bytes, code: int = 0) -> bytes:
    head = struct.pack("!BBH", kind, code, 0)
    summed = checksum(_pseudo(source, destination, ICMPV6, len(head) + len(body)) + head + body)
    return head[:2] + struct.pack("!H", summed) + body


def arp(operation: int, sender: tuple[str, str], target: tuple[str, str], marker: bytes) -> bytes:
    """`sender`, `target`: MAC and IPv4 address. The marker lies in the padding."""
    body = struct.pack("!HHBBH", 1, IPV4, 6, 4, operation)
    for hardware, protocol in (sender, target):
        body += mac(hardware) + socket.inet_aton(protocol)
    return body + b"\0" * 8 + marker


def link_option(kind: int, hardware: str) -> bytes:
    """Source (1) or target (2) link-layer address option of neighbour discovery."""
    return struct.pack("!BB", kind, 1) + mac(hardware)


def solicitation(target: str, options: bytes) -> bytes:
    return b"\0" * 4 + socket.inet_pton(socket.AF_INET6, target) + options


def advertisement(target: str, options: bytes) -> bytes:
    return struct.pack("!I", 0x60000000) + socket.inet_pton(socket.AF_INET6, target) + options


ROUTER_ADVERTISEMENT = struct.pack("!BBHII", 64, 0, 1800, 0, 0)
SOCKET_MARK = 8
"""Octets of a marker."""


@dataclass(frozen=True, slots=True)
class Named:
    """A frame, what it is called, and the marker it carries."""

    name: str
    frame: bytes
    marker: bytes


def main(argv: list[str]) -> None:
    verb, device = argv
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as raw:
        raw.bind((device, 0))
        if verb == "send":
            for line in sys.stdin:
                raw.send(bytes.fromhex(line))
            return
        print("watching", flush=True)
        while True:
            data, (_, _, kind, *_) = raw.recvfrom(65535)
            if kind != socket.PACKET_OUTGOING:
                print(data.hex(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
