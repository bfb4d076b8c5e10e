"""A site to break: the real lark-controller, real bridges of one Open vSwitch, agents under load, one bad cable.

    job ends ── worker bridges ── core ── gate ── server
                                   └── world

Bridges are joined by patch ports; jobs, server and world are veths whose far ends the prober writes to and reads.

Invariants: everything lives in one machine of its own and goes with it. The controller's state lies on a small file
system, so that it can be filled. Ports of jobs that only come and go are patch ports without a peer: real ports to
OpenFlow, that cost no device. After a restart of the switch the rig writes table 0 again, as the agent does.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mininet_tests import frames as f
from mininet_tests.chaos.churn import Agent, Churn, Http, Lane
from mininet_tests.chaos.inside import Inside
from mininet_tests.chaos.probes import Pair, Prober, head
from mininet_tests.chaos.proxy import Proxy
from mininet_tests.site.lark import ENVIRONMENT, python_command
from mininet_tests.site.namespaces import Daemon, Machine, SiteError, wait_until
from mininet_tests.site.openvswitch import RUN, OpenVSwitch
from mininet_tests.site.users import private_etc
from mininet_tests.switch_rig import LANE
from ovs_agent import plan
from ryu_apps.openflow.cookies import Feature
from ryu_apps.rest.auth import TokenRole, new_token

GATE, CORE = "lkch-gate", "lkch-core"
OPENFLOW, PROXY, API = 6653, 6654, 8080
SERVER, SERVER_MAC = "10.20.0.5", "02:00:00:00:00:05"
WORLD, WORLD_MAC = "198.51.100.9", "02:00:00:00:00:01"
PHYSICS: dict[str, object] = {"User": "alice@site", "LarkGroup": "physics"}
PLAIN: dict[str, object] = {"User": "bob@site"}
DEADLINE = 3
DISK = 48 * 1024 * 1024
POLICY = """\
mode: enforce
services:
  files: {hosts: [10.20.0.5], ports: [tcp/1094], protected: true}
attributes:
  LarkNetwork: {type: enum, values: [none, default], default: default}
  LarkSlice: {type: string, max-length: 64}
groups:
  physics: 'LarkGroup =?= "physics"'
  sealed: 'LarkNetwork =?= "none"'
  asks-for-slice: 'LarkSlice =!= undefined'
grants:
  - {for: physics, to: files, trust-user: true}
slices:
  - {for: asks-for-slice, name: LarkSlice}
seal: [sealed]
defaults: {egress: allow, ingress: deny, between-jobs: deny}
"""


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything."""

    workers: int
    attempts: int
    changes: float
    """Starts and exits a second."""
    faults: int
    """How often a fault is repeated."""
    window: float
    """Seconds of one window of probes."""
    partition: float
    flapping: float


REDUCED = Size(workers=3, attempts=90, changes=20, faults=3, window=4, partition=20, flapping=5)
FULL = Size(workers=15, attempts=1000, changes=100, faults=20, window=8, partition=60, flapping=30)


def size() -> Size:
    return FULL if os.environ.get("LARK_TEST_FULL") else REDUCED


def worker(number: int) -> str:
    return f"lkch-w{number}"


class Rig:
    """Use `running_rig`. Standing jobs: on workers 1 and 2 one that may reach the server and one that may not."""

    def __init__(self, root: Path, engine: str, size: Size, seed: int) -> None:
        root.chmod(0o755)
        private_etc(root / "etc", [], [])
        self.size = size
        self.engine = engine
        self.machine = Machine("chaos", root)
        self.machine.start()
        self._starts = 0
        self.controller: Daemon | None = None
        self._inside = Inside(self.machine)
        self.switch = OpenVSwitch(self.machine)
        self.workers = range(1, size.workers + 1)
        self.bridges = [*(worker(number) for number in self.workers), GATE]
        self.lanes = {
            n: [Lane(n, lane) for lane in range(3, 3 + 2 * size.attempts // size.workers)] for n in self.workers
        }
        self.standing = {n: [(Lane(n, 1), PHYSICS), (Lane(n, 2), PLAIN)] if n < 3 else [] for n in self.workers}
        self._write_files()
        self._viewer = Http(API, new_token(self.home / "tokens.yaml", TokenRole.VIEWER, None))
        tokens = {n: new_token(self.home / "tokens.yaml", TokenRole.AGENT, f"wn{n}") for n in self.workers}
        self.agents = [
            Agent(self.machine, API, tokens[n], n, worker(n), self.lanes[n], self.standing[n], seed)
            for n in self.workers
        ]
        self.churn = Churn(self.agents)
        self.proxy: Proxy | None = None
        self.prober: Prober | None = None

    def start(self) -> None:
        self.machine.need(
            "sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"
        )
        self.machine.need("mkdir", "-p", str(self.state))
        self.machine.need("mount", "-t", "tmpfs", "-o", f"size={DISK}", "lkch-state", str(self.state))
        self._wire()
        self.switch.start()
        self._bridges()
        self.proxy = Proxy(self.machine, PROXY, ("127.0.0.1", OPENFLOW))
        self.start_controller()
        self.until_in_line()
        self.heed_backoff()
        self.churn.begin()
        self.prober = Prober(self.machine, self.pairs())

    def stop(self) -> None:
        for agent in self.agents:
            agent._stop = True
        self.churn.stop()
        if self.prober is not None:
            self.prober.stop()
        if self.proxy is not None:
            self.proxy.stop()
        if self.controller is not None and self.controller.running():
            self.controller.stop(number=signal.SIGKILL)
        self.switch.stop()
        self._inside.close()
        self.machine.stop()

    # --- the controller

    @property
    def home(self) -> Path:
        return self.machine.root / "lark"

    @property
    def state(self) -> Path:
        return self.home / "state"

    def start_controller(self) -> float:
        """Start the process; gives the moment. `until_in_line` waits for what follows."""
        self._starts += 1
        argv = ["run", "--config", str(self.home / "controller.yaml"), "--engine", self.engine]
        began = time.monotonic()
        self.controller = self.machine.spawn(
            f"lark-controller.{self._starts}", python_command("ryu_apps.cli", *argv), env=ENVIRONMENT
        )
        return began

    def kill_controller(self) -> None:
        assert self.controller is not None
        self.controller.stop(number=signal.SIGKILL)

    def until_in_line(self, seconds: float = 40) -> float:
        """Until the controller that runs has told of each bridge that it is in line; gives the moment."""
        assert self.controller is not None

        def all_told() -> bool:
            assert self.controller is not None
            if not self.controller.running():
                raise SiteError(f"lark-controller ended:\n{self.controller.tail()}")
            return set(self.bridges) <= set(self.sent_at_start())

        wait_until(f"all of {len(self.bridges)} bridges in line; {self._log()}", all_told, seconds, 0.02)
        return time.monotonic()

    def sent_at_start(self) -> dict[str, int]:
        """Flow-mods that the controller says it sent to each bridge until that was in line for the first time."""
        found: dict[str, int] = {}
        for bridge, sent in re.findall(r"bridge=(\S+): in line with \d+ flows, (\d+) flow-mods", self.log()):
            found.setdefault(bridge, int(sent))
        return found

    def _log(self) -> Path:
        return self.machine.root / "log" / f"lark-controller.{self._starts}.log"

    def log(self) -> str:
        """Of the controller that runs."""
        return self._log().read_text(errors="replace")

    def logged(self) -> str:
        paths = self.machine.root.glob("log/lark-controller.*.log")
        return "".join(path.read_text(errors="replace") for path in sorted(paths))

    def ask(self, path: str) -> Any:
        """A GET as a viewer."""
        try:
            status, answer = self._inside.call(lambda: self._viewer.call("GET", path))
        except (OSError, http.client.HTTPException):
            # The connection was kept from a controller that is no more.
            status, answer = self._inside.call(lambda: self._viewer.call("GET", path))
        if status != 200:
            raise SiteError(f"GET {path}: {status} {answer}")
        return answer

    def known(self) -> set[str]:
        return {one["id"] for one in self.ask("/v1/attempts")["attempts"]}

    def bridge(self, name: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = self.ask("/v1/bridges")["bridges"]
        return next(one for one in found if one["bridge"] == name)

    # --- what the switch says

    def flows(self, bridge: str) -> list[str]:
        """The controller's tables as ovs-ofctl shows them, without counters and times, sorted."""
        argv = ["ovs-ofctl", "-OOpenFlow14", "--no-names", "--no-stats", "dump-flows", f"unix:{RUN}/{bridge}.mgmt"]
        return sorted(line.strip() for line in self.machine.need(*argv).splitlines() if "actions=" in line)

    def jobs_on(self, bridge: str) -> set[int]:
        """Numbers of the ports from which flows of an attempt let something in, or refuse it by name."""
        mark = f"cookie=0x4c{Feature.ATTEMPT:02x}"
        own = [line for line in self.flows(bridge) if line.startswith(mark)]
        return {int(port) for line in own for port in re.findall(r"in_port=(\d+)", line)}

    def drift(self) -> list[str]:
        """Where controller, agents and switches do not agree, in words. The agents must rest."""
        said = []
        acknowledged, known = self.churn.acknowledged(), self.known()
        if acknowledged != known:
            said.append(
                f"{len(acknowledged - known)} acknowledged attempts are not known, {len(known - acknowledged)} known "
                f"ones were not acknowledged: {sorted(acknowledged ^ known)[:5]}"
            )
        for agent in self.agents:
            there, should = self.jobs_on(agent.bridge), agent.ports()
            if there != should:
                said.append(
                    f"{agent.bridge}: flows but no job at ports {sorted(there - should)}, jobs but no flows at "
                    f"{sorted(should - there)}"
                )
        return said

    @contextmanager
    def flow_events(self) -> Iterator[Counter[str]]:
        """Additions, changes and removals of flows, counted by each switch itself while the block runs.

        The counter is filled at its end.
        """
        counted: Counter[str] = Counter()
        monitors = {
            bridge: self.machine.spawn(
                f"monitor-{bridge}-{time.monotonic_ns()}",
                ["ovs-ofctl", "-OOpenFlow14", "monitor", f"unix:{RUN}/{bridge}.mgmt", "watch:!initial"],
            )
            for bridge in self.bridges
        }
        time.sleep(0.3)
        try:
            yield counted
            time.sleep(0.3)
            for bridge, monitor in monitors.items():
                if not monitor.running():
                    raise SiteError(f"the flow monitor of {bridge} ended: {monitor.tail()}")
        finally:
            for bridge, monitor in monitors.items():
                if monitor.running():
                    monitor.stop()
                counted[bridge] = len(re.findall(r"event=(?:ADDED|MODIFIED|DELETED|REMOVED)", monitor.log.read_text()))

    # --- building

    def _write_files(self) -> None:
        self.home.mkdir()
        self.state.mkdir()
        nodes = "".join(
            f'  wn{n}: {{bridge: {worker(n)}, ipv4: 10.20.{n}.0/24, ipv6: "2001:db8:20:{n:x}::/96"}}\n'
            for n in self.workers
        )
        bridges = "".join(
            f'  {worker(n)}: {{datapath-id: "{n:016x}", roles: [worker], ports: {{uplink: [up{n}]}}}}\n'
            for n in self.workers
        )
        (self.home / "site.yaml").write_text(
            "site: chaos\n"
            "network: {ipv4: 10.20.0.0/16, gateway-ipv4: 10.20.0.1, "
            'ipv6: "2001:db8:20::/48", gateway-ipv6: "2001:db8:20::1", mtu: 1500}\n'
            f"infrastructure: [192.0.2.0/24]\nnodes:\n{nodes}bridges:\n{bridges}"
            f'  {GATE}: {{datapath-id: "{0x100:016x}", roles: [gate], guards: [files], '
            "ports: {worker-facing: [gwf], server-facing: [gsf]}}\n"
        )
        (self.home / "policy.yaml").write_text(POLICY)
        (self.home / "controller.yaml").write_text(
            f"site: site.yaml\npolicy: policy.yaml\nstate-dir: state\ntokens: tokens.yaml\ndeadline: {DEADLINE}\n"
            f'openflow: {{listen: "127.0.0.1:{OPENFLOW}"}}\napi: {{listen: "127.0.0.1:{API}"}}\n'
        )

    def _wire(self) -> None:
        """The far end of `x` is `f-x`."""
        for device in ["gsf", "world", *(lane.port for jobs in self.standing.values() for lane, _ in jobs)]:
            self.machine.need("ip", "link", "add", device, "type", "veth", "peer", "name", f"f-{device}")
            for end in (device, f"f-{device}"):
                self.machine.need("ip", "link", "set", end, "arp", "off", "up")

    def _bridges(self) -> None:
        for bridge in (*self.bridges, CORE):
            words = ["add-br", bridge, "--", "set", "bridge", bridge, "datapath_type=netdev", "fail_mode=secure"]
            words += ["protocols=OpenFlow10,OpenFlow13,OpenFlow14", "other_config:disable-in-band=true"]
            words.append(f'other_config:dp-desc="{plan.PREPARED}"')
            number = 0x100 if bridge == GATE else 0x200 if bridge == CORE else int(bridge[len("lkch-w") :])
            words.append(f"other_config:datapath-id={number:016x}")
            for name, ofport, peer in self._ports_of(bridge):
                words += ["--", "add-port", bridge, name, "--", "set", "interface", name, f"ofport_request={ofport}"]
                words += ["type=patch", f"options:peer={peer}"] if peer else []
            self.switch.vsctl(*words)
        for bridge in self.bridges:
            # Worker 2 is the one with the bad cable.
            port = PROXY if bridge == worker(2) else OPENFLOW
            self.switch.vsctl(
                "set-controller", bridge, f"tcp:127.0.0.1:{port}", "--", "set", "controller", bridge, "max_backoff=1000"
            )
        # Only now: a bridge that gets its first controller throws its flows away.
        self._table0()

    def heed_backoff(self) -> None:
        """Open vSwitch 3.1 takes up `max_backoff` only when its configuration changes while it is connected; on a node
        the first job's port does that. Until then a switch may wait 8 s before it tries again."""
        for bridge in self.bridges:
            self.switch.vsctl("set", "bridge", bridge, f"external_ids:lkch={time.monotonic_ns()}")

    def _ports_of(self, bridge: str) -> list[tuple[str, int, str]]:
        """Name, number and, for a patch port, the peer."""
        if bridge == CORE:
            return [("world", 1000, ""), ("c-gate", 999, "gwf"), *((f"c-{n}", n, f"up{n}") for n in self.workers)]
        if bridge == GATE:
            return [("gwf", 1, "c-gate"), ("gsf", 2, "")]
        n = int(bridge[len("lkch-w") :])
        jobs = [(lane.port, lane.ofport, "") for lane, _ in self.standing[n]]
        return [
            (f"up{n}", 1, f"c-{n}"),
            *jobs,
            *((lane.port, lane.ofport, f"{lane.port}-no") for lane in self.lanes[n]),
        ]

    def _table0(self) -> None:
        """What is not the controller's: the host lanes, and the core, which only carries."""
        flows = {bridge: [LANE] for bridge in self.bridges}
        flows[CORE] = [f"priority=2,ip,nw_dst={SERVER},actions=output:999", "priority=0,actions=output:1000"]
        flows[CORE] += [f"priority=1,ip,nw_dst=10.20.{n}.0/24,actions=output:{n}" for n in self.workers]
        for bridge, texts in flows.items():
            self.machine.run(
                ["ovs-ofctl", "-OOpenFlow14", "add-flows", f"unix:{RUN}/{bridge}.mgmt", "-"],
                given="\n".join(texts) + "\n",
            ).need()

    def kill_switch(self) -> None:
        self.switch.kill_switch()

    def start_switch(self) -> float:
        """Open vSwitch again, and table 0, as the agents write it; gives the moment of the start."""
        began = time.monotonic()
        self.switch.start_switch()

        def reachable() -> bool:
            show = ["ovs-ofctl", "-OOpenFlow14", "--timeout=1", "dump-tables", f"unix:{RUN}/{CORE}.mgmt"]
            return self.machine.run(show).code == 0

        wait_until("the bridges are there again", reachable, 10, 0.02)
        self._table0()
        return began

    def pairs(self) -> list[Pair]:
        """Who probes whom. All go one way: nothing depends on an answer."""
        (a, _), (b, _) = self.standing[1]
        (c, _), (d, _) = self.standing[2]
        server, world = ("gsf", SERVER_MAC, SERVER), ("world", WORLD_MAC, WORLD)

        def pair(
            name: str, allowed: bool, source: Lane | tuple[str, str, str], target: Lane | tuple[str, str, str]
        ) -> Pair:
            ends = [(one.port, one.mac, str(one.ipv4)) if isinstance(one, Lane) else one for one in (source, target)]
            (from_device, *from_ends), (to_device, *to_ends) = ends
            tcp = target is server
            data = head(
                (from_ends[0], from_ends[1]),
                (to_ends[0], to_ends[1]),
                f.TCP if tcp else f.UDP,
                (40000, 1094 if tcp else 7000),
            )
            return Pair(name, allowed, f"f-{from_device}", f"f-{to_device}", data)

        return [
            pair("granted job 1 to server", True, a, server),
            pair("granted job 2 to server", True, c, server),
            pair("plain job to the world", True, b, world),
            pair("plain job 1 to server", False, b, server),
            pair("plain job 2 to server", False, d, server),
            pair("job to job, one bridge", False, a, b),
            pair("job to job, two bridges", False, a, c),
            pair("world to job", False, world, c),
            pair("world to server", False, world, server),
        ]


@contextmanager
def running_rig(root: Path, engine: str, size: Size, seed: int) -> Iterator[Rig]:
    rig = Rig(root, engine, size, seed)
    try:
        rig.start()
        yield rig
    finally:
        rig.stop()
        shutil.rmtree(root, ignore_errors=True)


def defects(text: str) -> Sequence[str]:
    """Lines of the controller's log that no fault excuses."""
    return re.findall(r"^.*(?:Traceback|Exception|defect).*$", text, re.MULTILINE)
