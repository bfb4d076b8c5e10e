"""A controller that starts with thousands of attempts in its store: 15 worker bridges and a gate of one real vswitchd.

The store is filled by its own code, with rows as registrations leave them: decided by the policy, numbered, in batches.
The first start brings the empty switches in line; what is measured are those after it.

Invariant: everything lies below one directory under /tmp and ends with `stop`.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mininet_tests.site.lark import compiled
from mininet_tests.store_rig import free_port
from mininet_tests.switch_rig import LANE, DummySwitch, RigError
from policies import decide as deciding
from policies.model import Decision, Policy
from policies.wire import AdValue, AttemptSpec, NodeSpec, Phase, PortSpec
from ryu_apps.files import read_files
from ryu_apps.rest.auth import TokenRole, new_token
from ryu_apps.store.opening import OpenStore
from ryu_apps.store.store import AttemptRow, Change, Kind, NodeRow, PutAttempt, PutNode, Store

GATE = "lkrs-gate"
BOOT = "3f2a9c1e-0000-4000-8000-000000000001"
FIRST_PORT = 100
BATCH = 200
POLICY = """\
mode: enforce
services:
  files: {hosts: [10.20.0.5, "2001:db8:20::5"], ports: [tcp/1094], protected: true}
  licence: {hosts: [10.20.0.7], ports: [tcp/27000-27009], protected: true}
attributes:
  LarkNetwork: {type: enum, values: [none, default], default: default}
  LarkSlice: {type: string, max-length: 64}
groups:
  physics: 'LarkGroup =?= "physics"'
  sealed: 'LarkNetwork =?= "none"'
  asks-for-slice: 'LarkSlice =!= undefined'
  sharing: 'ClusterId % 49 < 2'
shares: [{for: sharing, share: 10 Mbit/s}]
grants:
  - {for: physics, to: files, trust-user: true}
slices: [{for: asks-for-slice, name: LarkSlice}]
seal: [sealed]
defaults: {egress: allow, ingress: deny, between-jobs: deny}
"""


def worker(number: int) -> str:
    return f"lkrs-w{number}"


def node_range(number: int) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network((int(ipaddress.IPv4Address("10.20.0.0")) + 1024 * number, 22))


@dataclass(frozen=True, slots=True)
class Started:
    """One start of the controller. Seconds from the process's start."""

    ready: float
    in_line: float
    cpu: float
    """Until all was in line."""
    rss: int
    """Bytes resident when the API answered too."""
    sent: int
    """Flow-mods that the controller says it sent."""
    meters: int
    """And meter-mods."""


class RestartRig:
    """`start` once, then `restart` as often as wanted."""

    def __init__(self, attempts: int, workers: int, engine: str) -> None:
        self.attempts, self.workers, self.engine = attempts, workers, engine
        self.home = Path(tempfile.mkdtemp(prefix="lkrs-"))
        self.switch = DummySwitch()
        self.process: subprocess.Popen[str] | None = None
        self.bridges = [*(worker(number) for number in range(1, workers + 1)), GATE]
        self._starts = 0
        self.openflow, self.api = free_port(), free_port()

    def __enter__(self) -> RestartRig:
        try:
            self._files()
            self.switch.start()
            for dpid, bridge in enumerate(self.bridges, 0x6C6B_7273_0001):
                self._bridge(bridge, dpid)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.switch.stop()
        shutil.rmtree(self.home, ignore_errors=True)

    # --- before

    def _files(self) -> None:
        nodes, bridges = [], []
        for dpid, bridge in enumerate(self.bridges, 0x6C6B_7273_0001):
            number = dpid & 0xFF
            if bridge == GATE:
                bridges.append(
                    f'  {bridge}: {{datapath-id: "{dpid:016x}", roles: [gate], guards: [files, licence], '
                    f"ports: {{worker-facing: [{GATE}-wf], server-facing: [{GATE}-sf]}}}}"
                )
                continue
            bridges.append(
                f'  {bridge}: {{datapath-id: "{dpid:016x}", roles: [worker], ports: {{uplink: [{bridge}-up]}}}}'
            )
            nodes.append(
                f'  wn{number}: {{bridge: {bridge}, ipv4: {node_range(number)}, ipv6: "2001:db8:20:{number:x}::/96"}}'
            )
        (self.home / "site.yaml").write_text(
            'site: test\nnetwork: {ipv4: 10.20.0.0/16, gateway-ipv4: 10.20.0.1, ipv6: "2001:db8:20::/48", '
            'gateway-ipv6: "2001:db8:20::1", mtu: 1500}\ninfrastructure: [192.0.2.0/24]\n'
            + "\n".join(["nodes:", *nodes, "bridges:", *bridges, ""])
        )
        (self.home / "policy.yaml").write_text(POLICY)
        (self.home / "controller.yaml").write_text(
            "site: site.yaml\npolicy: policy.yaml\nstate-dir: state\ntokens: tokens.yaml\n"
            f'openflow: {{listen: "127.0.0.1:{self.openflow}"}}\napi: {{listen: "127.0.0.1:{self.api}"}}\n'
        )
        new_token(self.home / "tokens.yaml", TokenRole.VIEWER, None)

    def _bridge(self, bridge: str, dpid: int) -> None:
        self.switch.bridge(bridge, dpid)
        self.switch.ofctl("add-flow", bridge, LANE)
        ports = {f"{GATE}-wf": 1, f"{GATE}-sf": 2} if bridge == GATE else {f"{bridge}-up": 1}
        argv: list[str] = []
        for name, number in ports.items():
            argv += ["--", "add-port", bridge, name, "--", "set", "interface", name, "type=dummy"]
            argv.append(f"ofport_request={number}")
        self.switch.vsctl(*argv)
        self.switch.connect(bridge, ("127.0.0.1", self.openflow))
        self.switch.vsctl("set", "controller", bridge, "max_backoff=1000")

    def fill(self) -> None:
        """As many attempts as wanted, as registrations would have left them."""
        files = read_files(self.home / "controller.yaml")
        opened = OpenStore(files.config.store)
        try:
            _fill(opened.open(), files.policy, self.attempts, self.workers)
        finally:
            opened.close()

    # --- starts

    def restart(self) -> Started:
        """Start the controller and wait until every bridge is in line. `kill` it before the next one."""
        self._starts += 1
        began = time.monotonic()
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "ryu_apps.cli", "run", "--config", str(self.home / "controller.yaml"),
                 "--engine", self.engine],
                env={**os.environ, **compiled(self.home / "pyc")}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=log, text=True,
            )  # fmt: skip
        in_line, cpu = self._until_in_line(began)
        assert self.process.stdout is not None
        if not self.process.stdout.readline():
            raise RigError(f"lark-controller did not get ready:\n{self.log()}")
        ready = time.monotonic() - began
        sent, meters = (sum(counts) for counts in zip(*self._in_line().values(), strict=True))
        rss = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert rss is not None
        return Started(ready, in_line, cpu, 1024 * int(rss[1]), sent, meters)

    def _until_in_line(self, began: float) -> tuple[float, float]:
        """Seconds from the process's start until every bridge is in line, and of CPU that it has used by then."""
        assert self.process is not None
        while len(self._in_line()) < len(self.bridges):
            if self.process.poll() is not None or time.monotonic() > began + 120:
                raise RigError(f"not all bridges came in line:\n{self.log()}")
            time.sleep(0.01)
        in_line = time.monotonic() - began
        ticks = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return in_line, sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(10)
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    def stop(self) -> None:
        """SIGTERM: the store's server ends too."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(20)
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    @property
    def log_file(self) -> Path:
        return self.home / f"controller.{self._starts}.log"

    def log(self) -> str:
        return self.log_file.read_text()

    def _in_line(self) -> dict[str, tuple[int, int]]:
        """Flow-mods and meter-mods sent, by bridge."""
        found = re.findall(r"bridge=(\S+): in line with \d+ flows, (\d+) flow-mods.*; (\d+) meter-mods", self.log())
        return {bridge: (int(sent), int(meters)) for bridge, sent, meters in found}

    def heed_backoff(self) -> None:
        """Open vSwitch takes up `max_backoff` only when its configuration changes while it is connected."""
        for bridge in self.bridges:
            self.switch.vsctl("set", "bridge", bridge, f"external_ids:lkrs={time.monotonic_ns()}")

    # --- what the switches say

    @contextmanager
    def watched(self) -> Iterator[dict[str, int]]:
        """What the switches' own flow monitors tell meanwhile: changes of flows, by bridge, filled in at the end."""
        told: dict[str, int] = {}
        monitors: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}
        try:
            for bridge in self.bridges:
                file = self.home / f"monitor.{bridge}"
                with file.open("wb") as out:
                    argv = [
                        "ovs-ofctl",
                        "-OOpenFlow14",
                        "monitor",
                        f"unix:{self.switch.home}/{bridge}.mgmt",
                        "watch:!initial",
                    ]
                    monitor = subprocess.Popen(
                        argv,
                        env={**os.environ, "OVS_RUNDIR": str(self.switch.home)},
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=out,
                    )
                    monitors[bridge] = monitor, file
            time.sleep(0.5)
            yield told
            time.sleep(0.5)
            for bridge, (process, file) in monitors.items():
                if process.poll() is not None:
                    raise RigError(f"the flow monitor of {bridge} ended: {file.read_text()[-500:]}")
                told[bridge] = 0
        finally:
            for process, _ in monitors.values():
                process.terminate()
                process.wait(10)
        for bridge, (_, file) in monitors.items():
            told[bridge] = len(re.findall(r"event=(?:ADDED|MODIFIED|DELETED|REMOVED)", file.read_text()))


def _spec(number: int, workers: int) -> AttemptSpec:
    node, lane = 1 + number % workers, 2 + number // workers
    ipv4 = node_range(node).network_address + lane
    ad: dict[str, AdValue] = {"User": f"user{number % 97}@site", "Owner": f"user{number % 97}", "ClusterId": number}
    if number % 2:
        ad["LarkGroup"] = "physics"
    if number % 10 == 3:
        ad["LarkSlice"] = f"dag{number // 100}"
    return AttemptSpec(
        node=f"wn{node}",
        port=PortSpec(bridge=worker(node), name=f"lj{lane}", ofport=FIRST_PORT + lane),
        mac="02:6c:" + ":".join(f"{octet:02x}" for octet in ipv4.packed),
        ipv4=str(ipv4),
        ipv6=str(ipaddress.IPv6Address(int(ipaddress.IPv6Address(f"2001:db8:20:{node:x}::")) | int(ipv4))),
        zone=1000 + lane,
        phase=Phase.RUN,
        ad=ad,
        job=f"{number}.0",
    )


def _fill(store: Store, policy: Policy, attempts: int, workers: int) -> None:
    nodes = [
        NodeSpec(boot_id=BOOT, bridge=worker(n), host_addresses=[f"192.168.7.{n}"], agent_version="0")
        for n in range(1, workers + 1)
    ]
    deadline = time.monotonic() + 120
    store.write([PutNode(NodeRow(f"wn{n}", spec)) for n, spec in enumerate(nodes, 1)]).wait(deadline)
    first = store.reserve(Kind.ATTEMPT, attempts)
    identities: dict[object, int] = {}
    slices: dict[str, int] = {}
    shares: dict[object, int] = {}
    changes: list[Change] = []
    for number in range(attempts):
        spec = _spec(number, workers)
        decision: Decision = deciding.decide(policy, spec.node, spec.ad, spec.slot, spec.phase)
        name = decision.slice
        share = None if decision.share is None else (spec.port.bridge, decision.share.name)
        changes.append(
            PutAttempt(
                AttemptRow(
                    id=f"{spec.node}~3f2a9c1e~slot1_{number}~{1000 + number}~88{number:05d}",
                    number=first + number,
                    identity=identities.get(decision.outcome)
                    or identities.setdefault(decision.outcome, store.reserve(Kind.IDENTITY, 1)),
                    spec=spec,
                    decision=decision,
                    digest=policy.digest,
                    registered=1_700_000_000.0 + number,
                    slice_number=0
                    if name is None
                    else slices.get(name) or slices.setdefault(name, store.reserve(Kind.SLICE, 1)),
                    share_number=0
                    if share is None
                    else shares.get(share) or shares.setdefault(share, store.reserve(Kind.SHARE, 1)),
                )
            )
        )
    pending = [store.write(changes[at : at + BATCH]) for at in range(0, len(changes), BATCH)]
    for one in pending:
        one.wait(deadline)


def report(which: str, started: Started, attempts: int) -> str:
    return (
        f"{which} with {attempts} attempts: ready {started.ready:.2f} s, last bridge in line {started.in_line:.2f} s "
        f"after the process started; {started.cpu:.2f} s CPU, {started.rss / 2**20:.0f} MiB; {started.sent} flow-mods"
    )


def main(argv: Sequence[str]) -> int:
    attempts, workers = int(argv[0]), int(argv[1])
    with RestartRig(attempts, workers, "os-ken") as rig:
        print(report("empty", rig.restart(), 0))
        rig.heed_backoff()
        rig.stop()
        begun = time.monotonic()
        rig.fill()
        print(f"filled in {time.monotonic() - begun:.1f} s")
        print(report("first start", rig.restart(), attempts))
        rig.kill()
        for _ in range(3):
            print(report("restart", rig.restart(), attempts))
            rig.kill()
        rig.stop()
        if len(argv) > 2:
            print(rig.log())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
