"""The control socket of an Open vSwitch daemon, as `ovs-appctl` uses it, without a process for each command.

JSON-RPC 1.0 over a unix socket (ovs-appctl(8)): one command at a time, answers have no end mark.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path

SECONDS = 30.0


class ControlSocket:
    """Raises OSError when the daemon is gone, AssertionError with its words when it refuses a command."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(SECONDS)
        self._socket.connect(str(path))
        self._number = 0

    def close(self) -> None:
        self._socket.close()

    def command(self, name: str, *arguments: str) -> str:
        self._number += 1
        request = {"method": name, "params": list(arguments), "id": self._number}
        self._socket.sendall(json.dumps(request).encode())
        answer = self._answer()
        if answer["id"] != self._number or answer["error"] is not None:
            raise AssertionError(f"{name} {' '.join(arguments)}: {answer['error'] or answer}")
        return str(answer["result"])

    def _answer(self) -> dict[str, object]:
        received = b""
        while True:
            part = self._socket.recv(256 * 1024)
            if not part:
                raise ConnectionError("the daemon closed its control socket")
            received += part
            if part.rstrip().endswith(b"}"):
                try:
                    found: dict[str, object] = json.loads(received)
                except ValueError:
                    continue  # a brace inside, and more to come
                return found
