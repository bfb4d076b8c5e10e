"""The protected file server: Debian's real xrootd, exporting one directory with a file of known content.

Invariant: the file's content is made from a seed, so its SHA-256 is known before any transfer.
"""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import dataclass
from pathlib import Path

from mininet_tests.site.namespaces import Daemon, Machine, wait_until

PORT = 1094
FILE = "/data/events.root"
SIZE = 8 * 1024 * 1024


@dataclass(slots=True)
class XrootdServer:
    machine: Machine
    prefix: tuple[str, ...] = ()
    """Put before its command and what looks for its port: enters a network namespace of the machine, for example."""
    size: int = SIZE
    sha256: str = ""
    daemon: Daemon | None = None

    def start(self, seed: int = 20120601) -> None:
        home = self.machine.root / "xrootd"
        export = home / "export"
        (export / "data").mkdir(parents=True, exist_ok=True)
        # In parts: Python makes no number of more than 256 MiB.
        made = random.Random(seed)
        content = b"".join(made.randbytes(min(SIZE, self.size - at)) for at in range(0, self.size, SIZE))
        (export / FILE.lstrip("/")).write_bytes(content)
        self.sha256 = hashlib.sha256(content).hexdigest()
        config = home / "xrootd.cfg"
        config.write_text(
            f"all.export /data\noss.localroot {export}\nxrd.port {PORT}\n"
            f"all.adminpath {home}/admin\nall.pidpath {home}/admin\nxrd.network norpipa nodnr\n",
            encoding="utf-8",
        )
        _give_to(home, "xrootd")
        argv = [*self.prefix, "xrootd", "-c", str(config), "-l", str(home / "xrootd.log"), "-n", "demo", "-R", "xrootd"]
        # Beside the pid file it keeps a second file; without this option that one would lie in /tmp.
        argv += ["-s", str(home / "xrootd.pid")]
        self.daemon = self.machine.spawn("xrootd", argv)
        wait_until("xrootd listens", lambda: f":{PORT}" in self.machine.need(*self.prefix, "ss", "-Hltn"), 15)

    def stop(self) -> None:
        if self.daemon is not None:
            self.daemon.stop()
            self.daemon = None


def _give_to(path: Path, user: str) -> None:
    import pwd

    entry = pwd.getpwnam(user)
    for directory, _, files in os.walk(path):
        os.chown(directory, entry.pw_uid, entry.pw_gid)
        for file in files:
            os.chown(Path(directory) / file, entry.pw_uid, entry.pw_gid)
