"""Simulated machines: namespaces with an init of their own, and the wires between them.

Invariants: a machine holds every process started in it; `Machine.stop` (or the death of this process, however it comes)
ends them all and frees links, mounts and network namespaces, because nothing of a machine has a name outside it: no
file in the host's /run/netns, no link in the host's network namespace, no mount in the host's mount namespace.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

INIT = Path(__file__).with_name("init.py")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
WORD_FOR_INIT = b"keep\n"
T = TypeVar("T")


class SiteError(Exception):
    """The site could not be built or used; the text says what was tried, what came out, and what to look at."""


@dataclass(frozen=True, slots=True)
class Output:
    """What a command said."""

    argv: tuple[str, ...]
    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return (self.out + self.err).strip()

    def need(self) -> Output:
        """Self, or SiteError if the command failed."""
        if self.code != 0:
            raise SiteError(f"{shlex.join(self.argv)}: exit {self.code}: {self.text[-2000:]}")
        return self


def wait_until(what: str, probe: Callable[[], T | None], timeout: float, every: float = 0.1) -> T:
    """The first true value of `probe`; SiteError naming `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise SiteError(f"not within {timeout:g} s: {what}")
        time.sleep(every)


@dataclass(slots=True)
class Daemon:
    """A process started in a machine. `pid` is its pid as the carrying machine sees it."""

    name: str
    machine: Machine
    entry: subprocess.Popen[bytes]
    """nsenter: the parent of the daemon; it ends with the daemon's exit status."""
    log: Path

    @property
    def pid(self) -> int:
        """Pid of the daemon itself, seen from here."""
        children = Path(f"/proc/{self.entry.pid}/task/{self.entry.pid}/children").read_text(encoding="ascii").split()
        if not children:
            raise SiteError(f"{self.name} on {self.machine.name} is not running; its log: {self.log}")
        return int(children[0])

    def running(self) -> bool:
        return self.entry.poll() is None

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def stop(self, timeout: float = 15, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end and wait. Returns its exit code; raises when it does not end (and kills it)."""
        if self.running():
            self.send(number)
        try:
            return self.entry.wait(timeout)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            self.entry.wait(5)
            raise SiteError(f"{self.name} did not end within {timeout:g} s of {number.name}: {self.log}") from None

    def wait_for_line(self, text: str, timeout: float) -> str:
        """Wait until its log holds a line with `text`; SiteError with the log's end if it dies or stays silent."""

        def probe() -> str | None:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
            found = next((line for line in lines if text in line), None)
            if found is None and not self.running():
                raise SiteError(f"{self.name} ended before it said {text!r}; the end of {self.log}:\n{self.tail()}")
            return found

        try:
            return wait_until(f"{self.name}: {text!r} in {self.log}", probe, timeout)
        except SiteError as error:
            raise SiteError(f"{error}\n{self.tail()}") from None

    def tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


@dataclass(slots=True)
class Machine:
    """One simulated machine. Use `start`, then `run`, `spawn` and `wire`; `stop` ends everything in it."""

    name: str
    root: Path
    """Directory of this machine's files (logs, databases); its /etc is `root/etc`."""
    home: Path | None = None
    """What becomes /home; machines may share it. `root/home` by default."""
    process: subprocess.Popen[bytes] | None = None
    init_pid: int = 0
    kept: bool = False
    environment: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        """Make the namespaces. `root/etc` must exist."""
        argv = ["unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--"]
        argv += ["/usr/bin/python3", "-I", str(INIT), "--hostname", self.name, "--etc", str(self.root / "etc")]
        home = self.home or self.root / "home"
        home.mkdir(exist_ok=True)
        argv += ["--home", str(home)]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        assert self.process.stdout is not None
        if self.process.stdout.readline().strip() != b"ready":
            assert self.process.stderr is not None
            said = self.process.stderr.read().decode(errors="replace").strip()
            raise SiteError(f"machine {self.name} did not start (root and unshare(1) are needed): {said}")
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(encoding="ascii")
        self.init_pid = int(children.split()[0])

    def entry(self) -> list[str]:
        """The command prefix that enters this machine."""
        return ["nsenter", "-t", str(self.init_pid), "-m", "-u", "-i", "-n", "-p", "--"]

    def argv(
        self, argv: Sequence[str], user: str | None, env: Mapping[str, str] | None, cwd: Path | str = "/"
    ) -> list[str]:
        """`argv` inside the machine: clean environment, no inherited working directory, optionally as a user."""
        home = f"/home/{user}" if user else "/root"
        variables = {"PATH": SYSTEM_PATH, "LANG": "C.UTF-8", "HOME": home, "USER": user or "root"}
        variables |= self.environment | dict(env or {})
        full = [*self.entry(), "env", "-i", *(f"{key}={value}" for key, value in variables.items()), "env", "-C"]
        full.append(str(cwd))
        if user is not None:
            full += ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--"]
        return [*full, *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | str = "/",
        timeout: float = 30,
        given: str | None = None,
    ) -> Output:
        """Run a command to its end. Does not raise on failure: `.need()` does."""
        try:
            done = subprocess.run(
                self.argv(argv, user, env, cwd),
                input=given,
                stdin=subprocess.DEVNULL if given is None else None,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise SiteError(f"{self.name}: {shlex.join(argv)}: not finished after {timeout:g} s") from None
        return Output(tuple(argv), done.returncode, done.stdout, done.stderr)

    def need(self, *argv: str, timeout: float = 30) -> str:
        """Run a command that must succeed; its standard output."""
        return self.run(argv, timeout=timeout).need().out

    def spawn(
        self,
        name: str,
        argv: Sequence[str],
        *,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | str = "/",
    ) -> Daemon:
        """Start a daemon that stays in the foreground; its output goes to `root/log/<name>.log`."""
        log = self.root / "log" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as sink:
            entry = subprocess.Popen(
                self.argv(argv, user, env, cwd),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        daemon = Daemon(name, self, entry, log)
        wait_until(f"{name} starts on {self.name}", lambda: bool(_children(entry.pid)) or not daemon.running(), 5, 0.01)
        return daemon

    def outer_pids(self) -> dict[int, str]:
        """Every process of this machine but its init: pid (seen from here) and command line."""
        inside = os.readlink(f"/proc/{self.init_pid}/ns/pid")
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == self.init_pid:
                continue
            try:
                if os.readlink(entry / "ns/pid") == inside:
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    state = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
                    if state != "Z":
                        found[int(entry.name)] = command
            except OSError:
                continue  # it ended while we looked
        return found

    def keep(self) -> None:
        """Let the machine live on after this process."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.write(WORD_FOR_INIT)
            self.process.stdin.flush()
            self.kept = True

    def stop(self) -> None:
        """End every process of the machine and free its namespaces. Idempotent."""
        if self.process is None:
            return
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        try:
            # A kept machine no longer listens to its owner.
            self.process.wait(0 if self.kept else 5)
        except subprocess.TimeoutExpired:
            os.kill(self.init_pid, signal.SIGKILL)
            self.process.wait(5)
        self.process = None


def _children(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:
        return []


def wire(left: Machine, left_port: str, right: Machine, right_port: str) -> None:
    """A cable (veth pair) between two machines. The ends never appear in the carrying machine's network namespace.

    Transmit checksum offload is switched off on both ends: with the userspace datapath between them, packets with
    unfinished checksums would be dropped by the receiver while ping still worked.
    """
    argv = ["ip", "link", "add", left_port, "netns", str(left.init_pid), "type", "veth"]
    argv += ["peer", "name", right_port, "netns", str(right.init_pid)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SiteError(f"{shlex.join(argv)}: {done.stderr.strip()}")
    for machine, port in ((left, left_port), (right, right_port)):
        machine.need("ip", "link", "set", port, "up")
        machine.need("ethtool", "-K", port, "tx", "off")


def this_python() -> str:
    """The interpreter that runs us: the daemons under test use the same installation."""
    return sys.executable
