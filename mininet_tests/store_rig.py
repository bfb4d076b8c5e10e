"""A cluster of the store's servers for tests, made and run by the public commands, each member killed at will.

Invariants: everything lies in a directory of its own; only processes started here are ended.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mininet_tests.switch_rig import ROOT, RigError, wait_until
from policies.model import Decision, Outcome
from policies.wire import AttemptSpec, Phase, PortSpec
from ryu_apps.store.jsonrpc import Tls
from ryu_apps.store.store import AttemptRow


def attempt(n: int, phase: Phase = Phase.RUN) -> AttemptRow:
    """A row such as the controller writes."""
    spec = AttemptSpec(
        node="wn1",
        port=PortSpec(bridge="br1", name=f"lj{n}", ofport=1 + n % 60000),
        mac="02:6c:0a:00:00:01",
        ipv4="10.0.0.1",
        zone=1000,
        phase=phase,
        ad={"Owner": "alice", "ClusterId": n},
    )
    decision = Decision(Outcome(False, frozenset({"files"})), ("g",), ())
    return AttemptRow(f"wn1~boot~slot1~{n}~1", n, 1, spec, decision, "d" * 64, 1.5)


def command(*argv: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """`lark-controller ARGV`."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "ryu_apps.cli", *argv],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class StoreCluster:
    """Members 1 to `size`; `servers` is what goes into `controller.yaml`. `tls`: with a CA made for it."""

    def __init__(self, size: int = 3, *, tls: bool = False, homes: Sequence[Path] | None = None) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="lkst-"))
        self.tls: Tls | None = None
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._homes = dict(enumerate(homes or [self.home / f"m{n}" for n in range(1, size + 1)], 1))
        if tls:
            make_ca(self.home, "ca")
            self.tls = make_certificate(self.home, "ca", "member")
            self._raft = {n: f"ssl:127.0.0.1:{free_port()}" for n in self._homes}
            self._listen = {n: f"ssl:127.0.0.1:{free_port()}" for n in self._homes}
        else:
            self._raft = {n: f"unix:{self.home}/r{n}" for n in self._homes}
            self._listen = {n: f"unix:{self.home}/c{n}" for n in self._homes}

    @property
    def servers(self) -> list[str]:
        return list(self._listen.values())

    def __enter__(self) -> StoreCluster:
        try:
            for n, home in self._homes.items():
                verb = ["create"] if n == 1 else ["join", "--member", self._raft[1]]
                done = command("store", verb[0], "--dir", str(home), "--raft", self._raft[n], *verb[1:])
                if done.returncode:
                    raise RigError(done.stderr)
                self.start(n)
                wait_until(f"member {n} takes part", functools.partial(self._takes_part, n), 15)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for n in list(self._processes):
            self.kill(n)
        shutil.rmtree(self.home, ignore_errors=True)

    def start(self, n: int) -> None:
        files = []
        if self.tls is not None:
            files = ["--private-key", str(self.tls.private_key), "--certificate", str(self.tls.certificate),
                     "--ca", str(self.tls.ca_certificate)]  # fmt: skip
        with (self.home / f"m{n}.log").open("ab") as log:
            self._processes[n] = subprocess.Popen(
                [sys.executable, "-P", "-m", "ryu_apps.cli", "store", "serve", "--dir", str(self._homes[n]),
                 "--listen", self._listen[n], *files],
                env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def kill(self, n: int, number: signal.Signals = signal.SIGKILL) -> None:
        process = self._processes[n]
        process.send_signal(number)
        if number == signal.SIGKILL:
            process.wait(10)
            del self._processes[n]

    def status(self, n: int) -> str:
        done = subprocess.run(
            ["ovs-appctl", "--timeout=3", "-t", str(self._homes[n] / "ctl"), "cluster/status", "Lark"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.stdout if done.returncode == 0 else ""

    def role(self, n: int) -> str | None:
        """`leader`, `follower`, … of a member of a cluster that has a leader."""
        found = dict(line.split(": ", 1) for line in self.status(n).splitlines() if ": " in line)
        if found.get("Status") != "cluster member" or found.get("Leader", "unknown") == "unknown":
            return None
        return found.get("Role")

    def _takes_part(self, n: int) -> bool:
        return self.role(n) is not None

    def leader(self) -> int:
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            for n in self._processes:
                if self.role(n) == "leader":
                    return n
            time.sleep(0.1)
        raise RigError("the cluster has no leader")


def make_ca(home: Path, name: str) -> None:
    _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
             "-subj", f"/CN={name}", "-keyout", str(home / f"{name}.key"),
             "-out", str(home / f"{name}.pem"))  # fmt: skip


def make_certificate(home: Path, ca: str, name: str) -> Tls:
    key, request, certificate = (home / f"{name}.{end}" for end in ("key", "csr", "pem"))
    _openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}",
             "-keyout", str(key), "-out", str(request))  # fmt: skip
    _openssl("x509", "-req", "-in", str(request), "-CA", str(home / f"{ca}.pem"), "-CAkey", str(home / f"{ca}.key"),
             "-CAcreateserial", "-days", "2", "-out", str(certificate))  # fmt: skip
    return Tls(key, certificate, home / f"{ca}.pem")


def _openssl(*argv: str) -> None:
    subprocess.run(["openssl", *argv], check=True, capture_output=True)
