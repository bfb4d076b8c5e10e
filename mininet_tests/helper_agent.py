"""An agent that says what a test wants it to say: for tests of the native helper and of HTCondor's configuration.

It speaks the protocol of docs/interfaces.md section 3 and nothing more: it looks at nobody's process and builds no
network. Needs root, because the helper believes only root.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import os
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path

CLONE_NEWNET = 0x40000000


@dataclass
class FakeAgent:
    """Answers on a socket like the agent, and remembers what was asked. A context manager."""

    path: Path
    reply: bytes | None = b"ok"
    """To every request that `replies` does not name. None: never answers. Empty: closes without an answer."""
    pass_fds: list[int] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    replies: dict[str, bytes | None] = field(default_factory=dict)
    """Replies by request, for example `LARK1 begin`; may be changed at any time."""
    euid: int = 0
    """Who listens, as the other end sees it."""

    def __enter__(self) -> FakeAgent:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(self.path))
        self.path.chmod(0o666)
        # SO_PEERCRED shows who called listen(): so this thread alone pretends to be another user.
        if self.euid:
            os.seteuid(self.euid)
        try:
            self._listener.listen(8)
        finally:
            os.seteuid(0)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def _serve(self) -> None:
        silent: list[socket.socket] = []
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            request = connection.recv(300)
            if request:
                self.requests.append(request.decode())
            reply = self.replies.get(request.decode(), self.reply)
            if reply is None:
                silent.append(connection)
                continue
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", self.pass_fds))] if self.pass_fds else []
            with contextlib.suppress(OSError):
                if reply:
                    connection.sendmsg([reply], rights)
            connection.close()

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        self.path.unlink(missing_ok=True)


def new_namespace() -> int:
    """A descriptor of a fresh network namespace, made by a child that ends at once."""
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None).unshare(CLONE_NEWNET)
        os.write(ready[1], b"x")
        os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    namespace = os.open(f"/proc/{child}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    os.write(done[1], b"x")
    os.waitpid(child, 0)
    for end in (*ready, *done):
        os.close(end)
    return namespace


def identity_of(namespace: int) -> str:
    return f"net:[{os.fstat(namespace).st_ino}]"
