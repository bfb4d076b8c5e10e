"""One instance of Open vSwitch on a simulated machine: ovsdb-server and ovs-vswitchd, with the userspace datapath.

Invariants: databases and logs lie in the machine's own directory, sockets in the machine's own /run; the kernel's
openvswitch module is neither loaded nor used (`--disable-system`), so nothing of the carrying machine changes. The exit
of the daemons is waited for: a command that asks them to end returns before they have ended.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

from mininet_tests.site.namespaces import Daemon, Machine, SiteError, this_python, wait_until

RUN = "/run/openvswitch"
SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
TIMEOUT = "--timeout=10"
BUFFER = 2**24
"""Bytes for each socket of a switch, as docs/operations.md advises them for a border."""


def widen(machine: Machine) -> None:
    """Give the switch's sockets buffers as `net.core.wmem_default` and `rmem_default` would have, had they been set
    before. Those settings are one for all of the carrying machine, and not ours to change.

    The switch has no socket for sending before it has sent its first packet.
    """
    machine.need(this_python(), "-I", "-c", _WIDEN, f"{RUN}/ovs-vswitchd.pid", str(BUFFER))


def hurry(machine: Machine, priority: int) -> None:
    """Real-time priority for the switch: what is measured is its queues, not how busy the carrying machine is."""
    pid = machine.need("cat", f"{RUN}/ovs-vswitchd.pid").strip()
    machine.need("chrt", "-a", "-f", "-p", str(priority), pid)


@dataclass(slots=True)
class OpenVSwitch:
    """Start with `start`; bridges are made by whoever owns them (on worker nodes and gates: `lark-agent`)."""

    machine: Machine
    database: Daemon | None = None
    switch: Daemon | None = None

    def start(self) -> None:
        """Both daemons, ready to answer."""
        home = self.machine.root / "ovs"
        home.mkdir(exist_ok=True)
        if not (home / "conf.db").exists():
            self.machine.need("ovsdb-tool", "create", str(home / "conf.db"), SCHEMA)
        self.machine.need("mkdir", "-p", RUN)
        self.database = self.machine.spawn(
            "ovsdb-server",
            [
                "ovsdb-server",
                str(home / "conf.db"),
                f"--remote=punix:{RUN}/db.sock",
                f"--pidfile={RUN}/ovsdb-server.pid",
                f"--log-file={home / 'ovsdb-server.log'}",
                "-vconsole:off",
            ],
        )
        wait_until(
            f"ovsdb-server answers on {self.machine.name}",
            lambda: self.machine.run(["ovs-vsctl", "--timeout=2", "--no-wait", "init"]).code == 0,
            10,
        )
        self.start_switch()

    def start_switch(self, *, wait: bool = True) -> None:
        """ovs-vswitchd alone (again): also after `kill_switch`. `wait`: until it answers."""
        home = self.machine.root / "ovs"
        self.switch = self.machine.spawn(
            "ovs-vswitchd",
            [
                "ovs-vswitchd",
                f"unix:{RUN}/db.sock",
                "--disable-system",
                "--disable-system-route",
                f"--pidfile={RUN}/ovs-vswitchd.pid",
                f"--log-file={home / 'ovs-vswitchd.log'}",
                "-vconsole:off",
            ],
        )
        if not wait:
            return
        wait_until(
            f"ovs-vswitchd answers on {self.machine.name}",
            lambda: self.machine.run(["ovs-appctl", "-T2", "-t", "ovs-vswitchd", "version"]).code == 0,
            10,
        )

    def kill_switch(self) -> None:
        """ovs-vswitchd dies without warning."""
        if self.switch is None:
            raise SiteError("ovs-vswitchd is not running")
        self.switch.stop(number=signal.SIGKILL)

    def stop(self) -> None:
        for daemon in (self.switch, self.database):
            if daemon is not None:
                daemon.stop()
        self.switch = self.database = None

    def vsctl(self, *argv: str) -> str:
        return self.machine.need("ovs-vsctl", TIMEOUT, *argv)

    def ports(self, bridge: str) -> list[str]:
        return self.vsctl("list-ports", bridge).split()

    def flows(self, bridge: str, *match: str) -> list[str]:
        """The bridge's flows as ovs-ofctl prints them."""
        argv = ["ovs-ofctl", "-OOpenFlow14", "--no-names", "dump-flows", f"unix:{RUN}/{bridge}.mgmt", *match]
        return [line.strip() for line in self.machine.need(*argv).splitlines() if "cookie=" in line]

    def version(self) -> str:
        return self.machine.need("ovs-vswitchd", "--version").splitlines()[0].rpartition(" ")[2]


_WIDEN = """
import ctypes, os, socket, sys
pid = int(open(sys.argv[1]).read())
inodes = {line.split()[-1] for line in open("/proc/net/packet").read().splitlines()[1:]}
pidfd = os.pidfd_open(pid)
for fd in os.listdir(f"/proc/{pid}/fd"):
    if os.readlink(f"/proc/{pid}/fd/{fd}")[8:-1] in inodes:
        got = ctypes.CDLL(None, use_errno=True).syscall(438, pidfd, int(fd), 0)  # pidfd_getfd
        if got < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
        with socket.socket(fileno=got) as mine:
            for so_bufforce in (32, 33):  # sending, receiving
                mine.setsockopt(socket.SOL_SOCKET, so_bufforce, int(sys.argv[2]) // 2)
"""
