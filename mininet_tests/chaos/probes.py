"""A thousand numbered probes a second between pairs that may talk, and a thousand between pairs that may not.

Every probe is a frame of its own with the pair, the window and its number in it, so each one that is lost or that came
through is known by name. Run as a program this module is the process that sends and counts (its pace must not depend
on what a test does meanwhile); `Prober` is the test's end of it.

Invariants: a probe of a denied pair counts as delivered wherever it is seen; one of an allowed pair only at its target.
A window's probes are counted only after they had time to arrive. What cannot be sent at once is sent as soon as
possible, never left out, so a pause of this process does not hide an interruption.
"""

from __future__ import annotations

import array
import itertools
import json
import select
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mininet_tests import frames as f
from mininet_tests.site.lark import ENVIRONMENT, python_command
from mininet_tests.site.namespaces import Machine, SiteError

MARK = struct.Struct("!8sHHI")
MAGIC = b"LARKPRB1"
PERIOD = 0.001
ARRIVAL = 0.5
"""Seconds that the last probes of a window have to arrive."""
PACKET_IGNORE_OUTGOING = 23
"""Of linux/if_packet.h; Python's socket module lacks it."""
SO_RCVBUFFORCE = 33
"""Of asm/socket.h: past the machine's limit, which holds half a second of probes."""
BUFFER = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Pair:
    """One direction between two devices. `head`: the frame before the probe's own mark, in hexadecimal."""

    name: str
    allowed: bool
    source: str
    target: str
    head: str


@dataclass(frozen=True, slots=True)
class Outage:
    """A run of consecutive probes of a pair that were lost: how many, and when by the monotonic clock."""

    probes: int = 0
    began: float = 0.0
    ended: float = 0.0

    @property
    def seconds(self) -> float:
        return self.ended - self.began


@dataclass(frozen=True, slots=True)
class Counted:
    """What became of one pair's probes in one window. `outages`: each run of lost ones, the longest first."""

    pair: str
    allowed: bool
    source: str
    """The device that the probes are sent from."""
    sent: int
    delivered: int
    outages: tuple[Outage, ...]

    @property
    def outage(self) -> Outage:
        return self.outages[0] if self.outages else Outage()

    @property
    def lost(self) -> int:
        return self.sent - self.delivered


@dataclass(frozen=True, slots=True)
class Window:
    """`unread`: of each device, frames that the kernel dropped because Open vSwitch did not read them."""

    pairs: tuple[Counted, ...]
    unread: Mapping[str, int] = field(default_factory=dict)

    def _sum(self, what: str, allowed: bool) -> int:
        return sum(getattr(one, what) for one in self.pairs if one.allowed is allowed)

    @property
    def allowed_sent(self) -> int:
        return self._sum("sent", True)

    @property
    def allowed_lost(self) -> int:
        return self._sum("lost", True)

    @property
    def allowed_unexplained(self) -> int:
        """Allowed ones that are lost, and were not dropped before the switch had read them: what no pause of its
        process explains."""
        lost: Counter[str] = Counter()
        for one in self.pairs:
            if one.allowed:
                lost[one.source] += one.lost
        return sum(max(0, count - self.unread.get(source, 0)) for source, count in lost.items())

    @property
    def denied_sent(self) -> int:
        return self._sum("sent", False)

    @property
    def denied_delivered(self) -> int:
        return self._sum("delivered", False)

    @property
    def lost_share(self) -> float:
        return self.allowed_lost / max(1, self.allowed_sent)

    @property
    def unexplained_share(self) -> float:
        return self.allowed_unexplained / max(1, self.allowed_sent)

    def gaps(self) -> str:
        """Which allowed pairs lost how many probes in one go, and when by the monotonic clock."""
        return "; ".join(
            f"{one.pair} {one.lost} of {one.sent}: "
            + ", ".join(f"{gap.probes} from {gap.began:.2f} to {gap.ended:.2f}" for gap in one.outages[:5])
            for one in self.pairs
            if one.allowed and one.lost
        )

    def pair(self, name: str) -> Counted:
        return next(one for one in self.pairs if one.pair == name)

    def outage(self) -> Outage:
        """The longest of all allowed pairs."""
        return max((one.outage for one in self.pairs if one.allowed), key=lambda one: one.seconds)

    def __str__(self) -> str:
        return (
            f"allowed: {self.allowed_lost} of {self.allowed_sent} lost, {self.allowed_unexplained} of them unexplained "
            f"(longest gap {1000 * self.outage().seconds:.0f} ms); "
            f"denied: {self.denied_delivered} of {self.denied_sent} delivered"
        )


class Prober:
    """Starts the process in a machine and asks it. One window at a time."""

    def __init__(self, machine: Machine, pairs: Sequence[Pair]) -> None:
        self._windows = 0
        self._pairs = list(pairs)
        self._log = (machine.root / "log" / "prober.log").open("w")
        self._process = subprocess.Popen(
            machine.argv(python_command("mininet_tests.chaos.probes"), None, ENVIRONMENT),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        self._ask([[one.name, one.allowed, one.source, one.target, one.head] for one in pairs])

    def begin(self) -> int:
        """Begin a window; gives its number."""
        self._windows += 1
        self._ask(["window", self._windows])
        return self._windows

    def end(self) -> Window:
        """End the window and count it."""
        number = self._windows
        self._ask(["window", 0])
        time.sleep(ARRIVAL)
        found = self._ask(["report", number])
        return Window(
            tuple(
                Counted(pair.name, pair.allowed, pair.source, sent, got, tuple(itertools.starmap(Outage, outages)))
                for pair, (sent, got, outages) in zip(self._pairs, found, strict=True)
            )
        )

    def stop(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait(10)
        self._log.close()

    def _ask(self, what: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(what) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise SiteError(f"the prober is gone; its log: {self._log.name}")
        return json.loads(answer)


def head(source: tuple[str, str], target: tuple[str, str], protocol: int, ports: tuple[int, int]) -> str:
    """Ethernet, IPv4 and UDP or TCP headers of a probe; source and target are MAC and IPv4 address.

    Checksums of the upper layer are left out (0: none, for UDP): nobody ends these packets.
    """
    if protocol == f.UDP:
        upper = struct.pack("!HHHH", *ports, 8 + MARK.size, 0)
    else:
        upper = struct.pack("!HHIIBBHHH", *ports, 1, 0, 5 << 4, 0x02, 65535, 0, 0)
    whole = f.ip4(source[1], target[1], protocol, upper + bytes(MARK.size))
    return f.eth(source[0], target[0], f.IPV4, whole[: -MARK.size]).hex()


# ------------------------------------------------------------------------------------------------- the process itself


@dataclass(slots=True)
class _Tally:
    times: array.array[float] = field(default_factory=lambda: array.array("d"))
    got: bytearray = field(default_factory=bytearray)


@dataclass(slots=True)
class _Flow:
    name: str
    allowed: bool
    target: str
    data: bytearray
    socket: socket.socket
    number: int
    windows: dict[int, _Tally] = field(default_factory=dict)

    def send(self, window: int) -> None:
        tally = self.windows.setdefault(window, _Tally())
        MARK.pack_into(self.data, len(self.data) - MARK.size, MAGIC, self.number, window, len(tally.got))
        tally.times.append(time.monotonic())
        tally.got.append(0)
        try:
            self.socket.send(self.data)
        except OSError:
            return  # counted as sent, and so as lost

    def report(self, window: int) -> list[object]:
        tally = self.windows.get(window, _Tally())
        runs: list[tuple[int, float, float]] = []
        run = 0
        for at, got in enumerate([*tally.got, 1]):
            if not got:
                run += 1
                continue
            if run:
                end = tally.times[at] if at < len(tally.times) else tally.times[at - 1] + PERIOD
                runs.append((run, tally.times[at - run], end))
            run = 0
        runs.sort(reverse=True)
        return [len(tally.got), sum(tally.got), runs if self.allowed else runs[:1]]


class _Process:
    def __init__(self, pairs: Sequence[Sequence[Any]]) -> None:
        self._poll = select.epoll()
        self._listeners: dict[int, tuple[str, socket.socket]] = {}
        senders: dict[str, socket.socket] = {}
        for device in sorted({device for pair in pairs for device in pair[2:4]}):
            senders[device] = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            senders[device].bind((device, 0))
            senders[device].setblocking(False)
            listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            listener.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
            listener.setsockopt(263, PACKET_IGNORE_OUTGOING, 1)  # SOL_PACKET
            listener.bind((device, 3))  # ETH_P_ALL
            listener.setblocking(False)
            self._listeners[listener.fileno()] = (device, listener)
            self._poll.register(listener, select.EPOLLIN)
        self._flows = [
            _Flow(name, allowed, target, bytearray(bytes.fromhex(start) + bytes(MARK.size)), senders[source], number)
            for number, (name, allowed, source, target, start) in enumerate(pairs)
        ]
        self._turns = [[one for one in self._flows if one.allowed is allowed] for allowed in (True, False)]
        self._window = 0

    def run(self) -> None:
        self._poll.register(sys.stdin, select.EPOLLIN)
        tick, due = 0, time.monotonic()
        while True:
            for descriptor, _ in self._poll.poll(max(0.0005, due - time.monotonic())):
                if descriptor == sys.stdin.fileno():
                    line = sys.stdin.readline()
                    if not line:
                        return
                    print(json.dumps(self._answer(json.loads(line))), flush=True)
                else:
                    self._receive(*self._listeners[descriptor])
            now = time.monotonic()
            while due <= now:
                for flows in self._turns:
                    flows[tick % len(flows)].send(self._window)
                tick += 1
                due += PERIOD

    def _answer(self, words: list[Any]) -> object:
        if words[0] == "window":
            self._window = words[1]
            return None
        return [flow.report(words[1]) for flow in self._flows]

    def _receive(self, device: str, listener: socket.socket) -> None:
        for _ in range(256):
            try:
                data = listener.recv(2048)
            except BlockingIOError:
                return
            at = data.find(MAGIC)
            if at < 0 or len(data) < at + MARK.size:
                continue
            _, number, window, sequence = MARK.unpack_from(data, at)
            flow = self._flows[number]
            if not flow.allowed or device == flow.target:
                flow.windows[window].got[sequence] = 1


def main() -> None:
    # One line is answered before the next is sent, so nothing is read ahead that epoll would not tell of.
    pairs = json.loads(sys.stdin.readline())
    process = _Process(pairs)
    print("null", flush=True)
    process.run()


if __name__ == "__main__":
    main()
