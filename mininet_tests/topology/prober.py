"""One prober in each network: it serves, it asks everybody at once, and it notes whatever arrives. Run as a script.

Standard library only, one thread, commands and answers as lines of JSON:

    {"do": "serve", "device": "eth0", "addresses": [...], "ports": ["tcp/80", "udp/53"]}  ->  {"listening": n}
    {"do": "probe", "probes": [[id, "tcp", source, target, target port, source port], …], "seconds": 2}
                                                        ->  {"answered": [ids], "seconds": how long it took}
    {"do": "seen"}                     ->  {"seen": [[protocol, source, target, source port, target port, dscp], …]}

An answer is a TCP handshake, a UDP echo, an ICMP echo reply. "Seen" comes from a packet socket: what a listener's
kernel received, whether or not it or its answer was of any use. Invariant: UDP and ICMP are sent three times, TCP as
the kernel does it, so that one lost packet on a busy machine is no verdict.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import select
import socket
import struct
import sys
import time
from typing import Any

PACKET_OUTGOING = 4
AGAIN = (0.0, 0.5, 1.2)
"""Seconds after the start at which UDP and ICMP probes are sent."""
PAYLOAD = b"lark-lab-probe"
PROTOCOLS = {6: "tcp", 17: "udp", 1: "icmp", 58: "icmp"}
ECHO = {4: (8, 0), 6: (128, 129)}
"""ICMP types of echo request and reply."""
NO_LINGER = struct.pack("ii", 1, 0)
MAX_SEEN = 200_000
CLAIMED = 46 << 2
"""Every probe claims to be expedited (DSCP 46): what arrives with another code point was marked on its way."""


class Prober:
    def __init__(self) -> None:
        self.poll = select.epoll()
        self.handlers: dict[int, Any] = {}
        self.kept: dict[int, socket.socket] = {}
        self.seen: dict[tuple[str, str, str, int, int], int] = {}
        self.answered: set[int] = set()
        self.unanswered: set[int] = set()

    # -- serving -------------------------------------------------------------------------------------------------

    def keep(self, one: socket.socket, handler: Any, events: int = select.EPOLLIN) -> None:
        one.setblocking(False)
        self.kept[one.fileno()] = one
        self.handlers[one.fileno()] = handler
        self.poll.register(one, events)

    def drop(self, one: socket.socket) -> None:
        number = one.fileno()
        if self.kept.pop(number, None) is not None:
            self.poll.unregister(number)
            del self.handlers[number]
        one.close()

    def serve(self, device: str, addresses: list[str], ports: list[str]) -> dict[str, Any]:
        if os.path.exists(f"/sys/class/net/{device}") or device in [name for _, name in socket.if_nameindex()]:
            packets = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
            packets.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            packets.bind((device, 3))
            self.keep(packets, self.note)
        count = 0
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            for port in ports:
                protocol, _, number = port.partition("/")
                if protocol == "icmp":
                    continue
                kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
                one = socket.socket(family, kind)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.bind((address, int(number)))
                if kind == socket.SOCK_STREAM:
                    one.listen(512)
                    self.keep(one, self.welcome)
                else:
                    self.keep(one, self.echo)
                count += 1
        return {"listening": count}

    def welcome(self, listener: socket.socket, _events: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.close()

    def echo(self, one: socket.socket, _events: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, sender = one.recvfrom(2048)
                with contextlib.suppress(OSError):
                    one.sendto(data, sender)

    # -- noting ---------------------------------------------------------------------------------------------------

    def note(self, packets: socket.socket, _events: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, where = packets.recvfrom(2048)
                if where[2] != PACKET_OUTGOING and len(self.seen) < MAX_SEEN:
                    self.note_one(data)

    def note_one(self, data: bytes) -> None:
        version = data[0] >> 4 if data else 0
        if version == 4 and len(data) >= 20:
            protocol, upper = data[9], data[(data[0] & 15) * 4 :]
            source, target = data[12:16], data[16:20]
            dscp = data[1] >> 2
        elif version == 6 and len(data) >= 40:
            protocol, upper = data[6], data[40:]
            source, target = data[8:24], data[24:40]
            dscp = (int.from_bytes(data[:2], "big") >> 6) & 63
        else:
            return
        name = PROTOCOLS.get(protocol)
        if name is None or len(upper) < 8:
            return
        if name == "icmp":
            if upper[0] not in ECHO[version]:
                return
            number = int.from_bytes(upper[4:6], "big")
            ports = (number, 0) if upper[0] == ECHO[version][0] else (0, number)
        else:
            ports = struct.unpack("!HH", upper[:4])
        self.seen.setdefault((name, str(ipaddress.ip_address(source)), str(ipaddress.ip_address(target)), *ports), dscp)

    # -- asking ----------------------------------------------------------------------------------------------------

    def probe(self, probes: list[list[Any]], seconds: float) -> dict[str, Any]:
        began = time.monotonic()
        self.answered, self.unanswered = set(), {probe[0] for probe in probes}
        made: list[socket.socket] = []
        again: list[Any] = []
        icmp = self.icmp_sockets(probes, made)
        for number, protocol, source, target, port, own in probes:
            family = socket.AF_INET6 if ":" in target else socket.AF_INET
            if protocol == "icmp":
                kind = ECHO[6 if family == socket.AF_INET6 else 4][0]
                again.append((icmp.get(source), echo_request(kind, own), (target, 0)))
                continue
            one = socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
            made.append(one)
            one.setblocking(False)
            try:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                claim(one)
                one.bind((source, own))
                if protocol == "tcp":
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
                    one.connect_ex((target, port))
                    self.keep(one, self.connected(number), select.EPOLLOUT)
                else:
                    one.connect((target, port))
                    self.keep(one, self.heard(number))
                    again.append((one, PAYLOAD, None))
            except OSError:
                continue  # no route, no such address: not reached
        due = [began + wait for wait in AGAIN if wait < seconds]
        while self.unanswered and time.monotonic() < began + seconds:
            if due and time.monotonic() >= due[0]:
                due.pop(0)
                for one, data, where in again:
                    with contextlib.suppress(OSError, AttributeError):
                        one.send(data) if where is None else one.sendto(data, where)
            limit = min(due[0] if due else began + seconds, began + seconds)
            self.turn(max(0.0, limit - time.monotonic()))
        for one in made:
            self.drop(one)
        return {"answered": sorted(self.answered), "seconds": round(time.monotonic() - began, 3)}

    def icmp_sockets(self, probes: list[list[Any]], made: list[socket.socket]) -> dict[str, socket.socket]:
        """A raw socket for each of our addresses that is to ping, so that the source is the one that was asked for."""
        found: dict[str, socket.socket] = {}
        waiting = {(p[3], p[5]): p[0] for p in probes if p[1] == "icmp"}
        for source in {p[2] for p in probes if p[1] == "icmp"}:
            six = ":" in source
            family, protocol = (socket.AF_INET6, 58) if six else (socket.AF_INET, socket.IPPROTO_ICMP)
            one = socket.socket(family, socket.SOCK_RAW, protocol)
            made.append(one)
            claim(one)
            try:
                one.bind((source, 0))
            except OSError:
                continue
            self.keep(one, self.ponged(six, waiting))
            found[source] = one
        return found

    def answer(self, number: int) -> None:
        self.unanswered.discard(number)
        self.answered.add(number)

    def connected(self, number: int) -> Any:
        def handle(one: socket.socket, _events: int) -> None:
            if one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                self.answer(number)
            self.drop(one)

        return handle

    def heard(self, number: int) -> Any:
        def handle(one: socket.socket, _events: int) -> None:
            try:
                if one.recv(2048) == PAYLOAD:
                    self.answer(number)
            except OSError:
                pass  # an ICMP error: somebody says no; not an answer

        return handle

    def ponged(self, six: bool, waiting: dict[tuple[str, int], int]) -> Any:
        def handle(one: socket.socket, _events: int) -> None:
            with contextlib.suppress(OSError):
                while True:
                    data, sender = one.recvfrom(2048)
                    upper = data if six else data[(data[0] & 15) * 4 :]
                    if len(upper) < 8 or upper[0] != ECHO[6 if six else 4][1]:
                        continue
                    number = waiting.get((sender[0].partition("%")[0], int.from_bytes(upper[4:6], "big")))
                    if number is not None:
                        self.answer(number)

        return handle

    # -- the loop --------------------------------------------------------------------------------------------------

    def turn(self, seconds: float) -> None:
        for number, events in self.poll.poll(seconds):
            one = self.kept.get(number)
            if one is not None:
                self.handlers[number](one, events)

    def run(self) -> None:
        self.handlers[0] = None
        self.poll.register(0, select.EPOLLIN)
        pending = b""
        while True:
            for number, events in self.poll.poll():
                if number:
                    one = self.kept.get(number)
                    if one is not None:
                        self.handlers[number](one, events)
                    continue
                read = os.read(0, 1 << 20)
                if not read:
                    return
                pending += read
                while b"\n" in pending:
                    line, _, pending = pending.partition(b"\n")
                    self.poll.unregister(0)  # while it asks, only its own sockets count
                    reply = self.obey(json.loads(line))
                    self.poll.register(0, select.EPOLLIN)
                    sys.stdout.write(json.dumps(reply) + "\n")
                    sys.stdout.flush()

    def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        what = command["do"]
        if what == "serve":
            return self.serve(command["device"], command["addresses"], command["ports"])
        if what == "probe":
            return self.probe(command["probes"], command["seconds"])
        if what == "seen":
            self.turn(0)
            told = [[*key, dscp] for key, dscp in self.seen.items()]
            self.seen = {}
            return {"seen": told}
        raise ValueError(f"unknown command {what!r}")


def claim(one: socket.socket) -> None:
    if one.family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, CLAIMED)
    else:
        one.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, CLAIMED)


def echo_request(kind: int, identifier: int) -> bytes:
    """The kernel fills in ICMPv6's checksum; ICMP's is ours."""
    head = struct.pack("!BBHHH", kind, 0, 0, identifier, 1)
    if kind == ECHO[6][0]:
        return head + PAYLOAD
    words = struct.unpack(f"!{len(head + PAYLOAD) // 2}H", head + PAYLOAD)
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!BBHHH", kind, 0, ~total & 0xFFFF, identifier, 1) + PAYLOAD


if __name__ == "__main__":
    Prober().run()
