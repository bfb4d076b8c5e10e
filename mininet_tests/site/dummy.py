"""An ovs-vswitchd with the dummy datapath: rules are tried by `ofproto/trace`, no packet moves, no privilege is needed.

Invariants: everything lies in one directory; nothing of the machine's own Open vSwitch is touched.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

from mininet_tests.site.openvswitch import SCHEMA
from ryu_apps.openflow.flows import Flow, Meter
from ryu_apps.openflow.text import flows_text


class DummySwitch(AbstractContextManager["DummySwitch"]):
    """Bridges with numbered dummy ports, filled with flow values, asked by `trace`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._processes: list[subprocess.Popen[bytes]] = []
        self._environment = {**os.environ, **{f"OVS_{n}DIR": str(directory) for n in ("RUN", "LOG", "DB", "SYSCONF")}}

    def __enter__(self) -> DummySwitch:
        self._run("ovsdb-tool", "create", str(self.directory / "conf.db"), SCHEMA)
        socket = self.directory / "db.sock"
        self._spawn("ovsdb-server", str(self.directory / "conf.db"), f"--remote=punix:{socket}")
        self._wait(socket.exists)
        self._spawn("ovs-vswitchd", f"unix:{socket}", "--enable-dummy", "--disable-system", "--disable-system-route")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
            process.wait(10)

    def add_bridge(self, name: str, ports: Mapping[str, int]) -> None:
        argv = ["add-br", name, "--", "set", "bridge", name, "datapath_type=dummy", "fail_mode=secure"]
        argv.append("protocols=OpenFlow10,OpenFlow13,OpenFlow14")
        for port, number in ports.items():
            argv += ["--", "add-port", name, port, "--", "set", "interface", port, "type=dummy"]
            argv.append(f"ofport_request={number}")
        self._run("ovs-vsctl", "--timeout=10", f"--db=unix:{self.directory / 'db.sock'}", *argv)
        # As the controller has it at every connection: first fragments show their ports.
        self._run("ovs-ofctl", "-OOpenFlow14", "set-frags", f"unix:{self.directory / name}.mgmt", "nx-match")

    def install(self, bridge: str, flows: Iterable[Flow], extra: str = "") -> None:
        """Replace the bridge's flows; `extra` is text in ovs-ofctl syntax (the agent's table 0).

        Meters that the flows name are there, with a rate: what they let through is no matter of single packets.
        """
        flows = list(flows)
        file = self.directory / f"{bridge}.flows"
        file.write_text(extra + flows_text(flows, numeric=True))
        socket = f"unix:{self.directory / bridge}.mgmt"
        self._run("ovs-ofctl", "-OOpenFlow14", "del-flows", socket)
        self._run("ovs-ofctl", "-OOpenFlow14", "del-meters", socket)
        for number in sorted({action.number for flow in flows for action in flow.actions if isinstance(action, Meter)}):
            setting = f"meter={number},kbps,bands=type=drop,rate=1000000"
            self._run("ovs-ofctl", "-OOpenFlow14", "add-meter", socket, setting)
        self._run("ovs-ofctl", "-OOpenFlow14", "--bundle", "add-flows", socket, str(file))

    def port_numbers(self) -> dict[str, tuple[str, int]]:
        """Bridge and OpenFlow number of each of the datapath's ports, by the number that `trace` gives."""
        shown = self._run("ovs-appctl", "-T5", "-t", str(self.control()), "dpif/show")
        found: dict[str, tuple[str, int]] = {}
        bridge = ""
        for line in shown.splitlines():
            if head := re.fullmatch(r"  (\S+):", line):
                bridge = head.group(1)
            elif port := re.match(r"    \S+ (\d+)/(\d+): ", line):
                found[port.group(2)] = (bridge, int(port.group(1)))
        return found

    def trace(self, bridge: str, packet: str, *ct_states: str) -> set[str]:
        """The datapath's actions for a packet in ovs-ofctl syntax: numbers of output ports, in the end.

        `ct_states`: what the connection table says at each lookup, for example `trk,est,rpl`.
        """
        options = [word for state in ct_states for word in ("--ct-next", state)]
        out = self._run("ovs-appctl", "-T5", "-t", str(self.control()), "ofproto/trace", bridge, packet, *options)
        last = re.findall(r"^Datapath actions: (.*)$", out, re.MULTILINE)
        return {a for a in last[-1].split(",") if a.isdigit()}

    def control(self) -> Path:
        """The control socket of ovs-vswitchd."""
        return next(self.directory.glob("ovs-vswitchd.*.ctl"))

    def _run(self, *argv: str) -> str:
        done = subprocess.run(argv, env=self._environment, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode:
            raise AssertionError(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def _spawn(self, *argv: str) -> None:
        log = f"--log-file={self.directory / (argv[0] + '.log')}"
        command = [*argv, log, "--pidfile", "-vconsole:off"]
        self._processes.append(subprocess.Popen(command, env=self._environment))
        pidfile = self.directory / f"{argv[0]}.pid"
        self._wait(lambda: pidfile.exists() and any(self.directory.glob(f"{argv[0]}.*.ctl")))

    @staticmethod
    def _wait(condition: object) -> None:
        deadline = time.monotonic() + 10
        while not condition():  # type: ignore[operator]
            if time.monotonic() > deadline:
                raise AssertionError("Open vSwitch did not start within 10 s")
            time.sleep(0.01)
