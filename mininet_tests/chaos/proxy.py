"""Between one bridge and the controller: passes OpenFlow on, and on request misbehaves as switches and networks do.

Invariant: bytes are never changed nor put in another order within what one side said, except that answers to barriers
are held back while `hold_barriers` is on; they follow, in their order, when it is taken off.
"""

from __future__ import annotations

import selectors
import socket
import struct
import threading
import time
from dataclasses import dataclass, field

from mininet_tests.chaos.inside import enter
from mininet_tests.site.namespaces import Machine

BARRIER_REPLY = 21
HEADER = 8


@dataclass(slots=True, eq=False)
class _Half:
    """One direction of a connection."""

    source: socket.socket
    target: socket.socket
    from_switch: bool
    buffer: bytearray = field(default_factory=bytearray)
    held: list[bytes] = field(default_factory=list)


class Proxy:
    """Listens in the machine on `port`. Its modes may be changed at any time, from any thread."""

    def __init__(self, machine: Machine, port: int, controller: tuple[str, int]) -> None:
        self.connections = 0
        """How many the switch has made so far."""
        self.held = 0
        """How many answers to barriers were held back so far."""
        self._controller = controller
        self._hold = False
        self._cut = False
        self._stop = False
        self._drop_every: float | None = None
        self._halves: list[_Half] = []
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(machine, port), name="proxy", daemon=True)
        self._thread.start()
        if not self._ready.wait(5):
            raise RuntimeError("the proxy did not start")

    def hold_barriers(self, on: bool) -> None:
        self._hold = on

    def cut(self, on: bool) -> None:
        """Nothing passes in either direction, and nobody is told: the cable is out."""
        self._cut = on

    def drop_every(self, seconds: float | None) -> None:
        """Close whatever connection there is, this often."""
        self._drop_every = seconds

    def stop(self) -> None:
        self._stop = True
        self._thread.join(5)

    def _run(self, machine: Machine, port: int) -> None:
        enter(machine)
        with selectors.DefaultSelector() as selector, socket.create_server(("127.0.0.1", port)) as listener:
            selector.register(listener, selectors.EVENT_READ)
            self._ready.set()
            dropped = time.monotonic()
            while not self._stop:
                if self._cut:
                    time.sleep(0.02)
                    continue
                for key, _ in selector.select(0.02):
                    if key.fileobj is listener:
                        self._accept(selector, listener)
                    elif key.data in self._halves:
                        self._relay(selector, key.data)
                for half in list(self._halves):
                    if half.held and not self._hold:
                        self._send(selector, half, b"".join(half.held))
                        half.held.clear()
                if self._drop_every is not None and time.monotonic() - dropped > self._drop_every:
                    dropped = time.monotonic()
                    for half in list(self._halves):
                        self._close(selector, half)
            for half in list(self._halves):
                self._close(selector, half)

    def _accept(self, selector: selectors.BaseSelector, listener: socket.socket) -> None:
        switch, _ = listener.accept()
        try:
            controller = socket.create_connection(self._controller, timeout=2)
        except OSError:
            switch.close()  # as if nobody listened
            return
        self.connections += 1
        for source, target, from_switch in ((switch, controller, True), (controller, switch, False)):
            source.settimeout(5)
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            half = _Half(source, target, from_switch)
            self._halves.append(half)
            selector.register(source, selectors.EVENT_READ, half)

    def _relay(self, selector: selectors.BaseSelector, half: _Half) -> None:
        try:
            data = half.source.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._close(selector, half)
        elif half.from_switch:
            half.buffer += data
            self._send(selector, half, b"".join(self._messages(half)))
        else:
            self._send(selector, half, data)

    def _messages(self, half: _Half) -> list[bytes]:
        passed = []
        while len(half.buffer) >= HEADER:
            _, kind, length = struct.unpack_from("!BBH", half.buffer)
            if len(half.buffer) < length:
                break
            message = bytes(half.buffer[:length])
            del half.buffer[:length]
            if kind == BARRIER_REPLY and (self._hold or half.held):
                self.held += 1
                half.held.append(message)
            else:
                passed.append(message)
        return passed

    def _send(self, selector: selectors.BaseSelector, half: _Half, data: bytes) -> None:
        try:
            half.target.sendall(data)
        except OSError:
            self._close(selector, half)

    def _close(self, selector: selectors.BaseSelector, half: _Half) -> None:
        """Both directions; once."""
        for one in [one for one in self._halves if one.source in (half.source, half.target)]:
            self._halves.remove(one)
            selector.unregister(one.source)
            one.source.close()
