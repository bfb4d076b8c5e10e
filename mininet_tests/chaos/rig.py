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
import itertools
import json
import os
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field as member
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from mininet_tests import frames as f
from mininet_tests.chaos.churn import Agent, Churn, Http, Lane
from mininet_tests.chaos.host_lanes import write
from mininet_tests.chaos.inside import Inside
from mininet_tests.chaos.probes import Pair, Prober, head
from mininet_tests.chaos.proxy import Proxy
from mininet_tests.site.lark import compiled, python_command
from mininet_tests.site.namespaces import Daemon, Machine, SiteError, wait_until
from mininet_tests.site.openvswitch import RUN, OpenVSwitch
from mininet_tests.site.users import private_etc
from ovs_agent import plan
from ryu_apps.openflow.cookies import Feature
from ryu_apps.openflow.flows import Cookie, FieldMatch, Flow, Goto, Match, Output, match
from ryu_apps.rest.auth import TokenRole, new_token

GATE, CORE = "lkch-gate", "lkch-core"
OPENFLOW, PROXY, API = 6653, 6654, 8080
OTHER_OPENFLOW, OTHER_API = 6655, 8081
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


HOST_LANE = Flow(0, 1, (), (Goto(1),), Cookie(plan.HOST_LANE_COOKIE))


def _carries(priority: int, match: Match, port: int) -> Flow:
    return Flow(0, priority, match, (Output(port),), Cookie(0))


def _to(network: str, prefix: int) -> Match:
    mask = (1 << 32) - (1 << (32 - prefix))
    there = FieldMatch("nw_dst", int(IPv4Address(network)), None if prefix == 32 else mask)
    return match(FieldMatch("dl_type", f.IPV4), there)


@dataclass(slots=True)
class Seat:
    """One controller: where it listens, and the process of the moment."""

    name: str
    openflow: int
    api: int
    starts: int = 0
    process: Daemon | None = None
    viewer: Http | None = member(default=None, repr=False)

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.running()

    @property
    def log_name(self) -> str:
        return f"lark-controller.{self.name}.{self.starts}"


def size() -> Size:
    return FULL if os.environ.get("LARK_TEST_FULL") else REDUCED


def worker(number: int) -> str:
    return f"lkch-w{number}"


class Rig:
    """Use `running_rig`. Standing jobs: on workers 1 and 2 one that may reach the server and one that may not."""

    def __init__(
        self,
        root: Path,
        engine: str,
        size: Size,
        seed: int,
        *,
        servers: Sequence[str] = (),
        controllers: int = 1,
        probed: bool = True,
    ) -> None:
        """`servers`: of a cluster that is the store; else each controller has one of its own. `probed`: with a prober,
        which takes the far ends of the standing jobs' devices."""
        root.chmod(0o755)
        # xrootd ends if it does not find its own host's name.
        private_etc(root / "etc", [], [(SERVER, "chaos")])
        self.size = size
        self.engine = engine
        self.machine = Machine("chaos", root)
        self.machine.start()
        self.seats = [Seat("ctl1", OPENFLOW, API), Seat("ctl2", OTHER_OPENFLOW, OTHER_API)][:controllers]
        self._servers = servers
        self._probed = probed
        self._inside = Inside(self.machine)
        self.switch = OpenVSwitch(self.machine)
        self.workers = range(1, size.workers + 1)
        self.bridges = [*(worker(number) for number in self.workers), GATE]
        self.lanes = {
            n: [Lane(n, lane) for lane in range(3, 3 + 2 * size.attempts // size.workers)] for n in self.workers
        }
        self.standing = {n: [(Lane(n, 1), PHYSICS), (Lane(n, 2), PLAIN)] if n < 3 else [] for n in self.workers}
        self._write_files()
        viewer = new_token(self.home / "tokens.yaml", TokenRole.VIEWER, None)
        for seat in self.seats:
            seat.viewer = Http([seat.api], viewer)
        tokens = {n: new_token(self.home / "tokens.yaml", TokenRole.AGENT, f"wn{n}") for n in self.workers}
        self.agents = [
            Agent(self.machine, self._apis(n), tokens[n], n, worker(n), self.lanes[n], self.standing[n], seed)
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
        for seat in self.seats:
            self.start_controller(seat)
        self.until_in_line()
        self.heed_backoff()
        self.churn.begin()
        if self._probed:
            self.prober = Prober(self.machine, self.pairs())

    def stop(self) -> None:
        for agent in self.agents:
            agent._stop = True
        self.churn.stop()
        if self.prober is not None:
            self.prober.stop()
        if self.proxy is not None:
            self.proxy.stop()
        for seat in self.seats:
            if seat.alive:
                self.kill_controller(seat)
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

    def _apis(self, node: int) -> list[int]:
        """Where an agent asks, in its order: half of them ask each controller first."""
        found = [seat.api for seat in self.seats]
        return found if node % 2 else found[::-1]

    def start_controller(self, seat: Seat | None = None) -> float:
        """Start the process; gives the moment. `until_in_line` waits for what follows."""
        seat = seat or self.seats[0]
        seat.starts += 1
        argv = ["run", "--config", str(self.home / f"{seat.name}.yaml"), "--engine", self.engine]
        began = time.monotonic()
        seat.process = self.machine.spawn(
            seat.log_name, python_command("ryu_apps.cli", *argv), env=compiled(self.home / "pyc")
        )
        return began

    def kill_controller(self, seat: Seat | None = None) -> None:
        process = (seat or self.seats[0]).process
        assert process is not None
        process.stop(number=signal.SIGKILL)

    def until_ready(self, seat: Seat | None = None) -> float:
        """Until the API of a controller that was started answers; gives the moment."""
        seat = seat or self.seats[0]
        try:
            wait_until("the API answers", lambda: not seat.alive or "lark-controller ready" in self.log(seat), 60, 0.02)
        except SiteError as late:
            raise SiteError(f"{late}; the log of lark-controller {seat.name} ends:\n{self._end(seat)}") from None
        if not seat.alive:
            raise SiteError(f"lark-controller {seat.name} ended:\n{self._end(seat)}")
        return time.monotonic()

    def _end(self, seat: Seat) -> str:
        return "\n".join(self.log(seat).splitlines()[-30:])

    def until_in_line(self, seconds: float = 40) -> float:
        """Until the controllers that run have told of each bridge that it is in line; gives the moment."""

        def all_told() -> bool:
            for seat in self.seats:
                if seat.process is not None and not seat.alive:
                    raise SiteError(f"lark-controller {seat.name} ended:\n{seat.process.tail()}")
            return set(self.bridges) <= {bridge for seat in self.seats for bridge in self.sent_at_start(seat)}

        wait_until(f"all of {len(self.bridges)} bridges in line; {self._log(self.seats[0])}", all_told, seconds, 0.02)
        return time.monotonic()

    def behind_the_api(self, seat: Seat | None = None) -> int:
        """How many bridges were not in line yet when the API of a controller opened."""
        before, opened, _ = self.log(seat).partition("lark-controller ready")
        return len(set(self.bridges) - set(re.findall(r"bridge=(\S+): in line with", before))) if opened else 0

    def sent_at_start(self, seat: Seat | None = None) -> dict[str, int]:
        """Flow-mods that the controller says it sent to each bridge until that was in line for the first time."""
        found: dict[str, int] = {}
        for bridge, sent in re.findall(r"bridge=(\S+): in line with \d+ flows, (\d+) flow-mods", self.log(seat)):
            found.setdefault(bridge, int(sent))
        return found

    def _log(self, seat: Seat) -> Path:
        return self.machine.root / "log" / f"{seat.log_name}.log"

    def log(self, seat: Seat | None = None) -> str:
        """Of the controller that runs, or ran last."""
        path = self._log(seat or self.seats[0])
        return path.read_text(errors="replace") if path.exists() else ""

    def logged(self) -> str:
        paths = self.machine.root.glob("log/lark-controller.*.log")
        return "".join(path.read_text(errors="replace") for path in sorted(paths))

    def ask(self, path: str, seat: Seat | None = None) -> Any:
        """A GET as a viewer, of this controller or of one that runs."""
        seat = seat or next(one for one in self.seats if one.alive)
        viewer = seat.viewer
        assert viewer is not None
        try:
            status, answer = self._inside.call(lambda: viewer.call("GET", path))
        except (OSError, http.client.HTTPException):
            # The connection was kept from a controller that is no more.
            try:
                status, answer = self._inside.call(lambda: viewer.call("GET", path))
            except OSError as problem:
                raise SiteError(
                    f"lark-controller {seat.name}: {problem}; its log ends:\n{self._end(seat)}"
                ) from problem
        if status != 200:
            raise SiteError(f"GET {path}: {status} {answer}")
        return answer

    def known(self) -> set[str]:
        return {one["id"] for one in self.ask("/v1/attempts")["attempts"]}

    def forgotten(self, before: set[str]) -> set[str]:
        """Attempts that were acknowledged before, have not begun to end since, and are not known."""
        # Known first: what ends between the two readings would look forgotten in the other order.
        known = self.known()
        return (before & self.churn.acknowledged()) - known

    def masters(self) -> dict[str, Seat]:
        """Which controller has brought each bridge in line."""
        return {
            one["bridge"]: seat
            for seat in self.seats
            if seat.alive
            for one in self.ask("/v1/bridges", seat)["bridges"]
            if one["converged"]
        }

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

    def dropped(self) -> Counter[str]:
        """Frames that were dropped so far before or in the switch's datapath, by where: the backlog of each device that
        it or the prober reads, and its own counts of drops that no flow asked for. Also how long it ran and waited."""
        found: Counter[str] = Counter()
        lines = self.machine.need("ss", "-0", "-a", "-n", "-m", "-p").splitlines()
        for line, after in itertools.pairwise([*lines, ""]):
            drops = re.search(r"skmem:\([^)]*,d(\d+)\)", f"{line} {after}")
            device = re.search(r"(\S+):(\S+)\s+\*", line)
            if line.startswith("p_") and drops and device:
                reader = re.search(r'\(\("([^"]+)"', line)
                found[f"backlog of {device[2]} ({reader[1] if reader else '?'})"] += int(drops[1])
        shown = self.machine.run(["ovs-appctl", "-T5", "-t", "ovs-vswitchd", "coverage/show"]).out
        for name, total in re.findall(
            r"^(datapath_drop_\w+|upcall_\w+|dumped_\w+\b)\s.*total: (\d+)", shown, re.MULTILINE
        ):
            found[name] += int(total)
        for line in Path("/proc/net/softnet_stat").read_text().splitlines():
            found["backlog of the kernel"] += int(line.split()[1], 16)
        if self.switch.switch is not None and self.switch.switch.running():
            # Its main thread is the one that moves the frames.
            ran, waited, _ = Path(f"/proc/{self.switch.switch.pid}/schedstat").read_text().split()
            found["ms that ovs-vswitchd ran"] += int(ran) // 1_000_000
            found["ms that ovs-vswitchd waited for a CPU"] += int(waited) // 1_000_000
        return found

    @staticmethod
    def unread(dropped: Counter[str]) -> dict[str, int]:
        """Of `dropped`: by the device that they were sent from, frames that Open vSwitch had not read."""
        found = (re.fullmatch(r"backlog of (\S+) \(ovs-vswitchd\)", name) for name in dropped)
        return {f"f-{match[1]}": dropped[match[0]] for match in found if match}

    def settle(self, namespace: str, device: str, mac: str, ipv4: str, peers: Sequence[tuple[str, str]]) -> None:
        """Give the far end of a device to a network namespace, with an address, and neighbours (IPv4, MAC) that it
        knows beforehand: the rig carries no ARP."""
        enter = ["ip", "netns", "exec", namespace]
        self.machine.need("ip", "netns", "add", namespace)
        self.machine.need("ip", "link", "set", device, "netns", namespace)
        self.machine.need(*enter, "ip", "link", "set", "lo", "up")
        self.machine.need(*enter, "ip", "link", "set", device, "address", mac, "mtu", "1500", "arp", "on", "up")
        # The userspace datapath passes on what has no checksum yet; the receiver would drop it.
        self.machine.need(*enter, "ethtool", "-K", device, "tx", "off")
        self.machine.need(*enter, "ip", "address", "add", f"{ipv4}/16", "dev", device)
        for address, neighbour in peers:
            self.machine.need(
                *enter, "ip", "neigh", "replace", address, "lladdr", neighbour, "dev", device, "nud", "permanent"
            )

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
        for seat in self.seats[1:]:
            (self.home / f"state-{seat.name}").mkdir()
        for seat in self.seats:
            store = ""
            if self._servers:
                store = f"store: {{mode: cluster, name: {seat.name}, servers: {json.dumps(list(self._servers))}}}\n"
            (self.home / f"{seat.name}.yaml").write_text(
                "site: site.yaml\npolicy: policy.yaml\ntokens: tokens.yaml\n"
                f"state-dir: state{'' if seat is self.seats[0] else '-' + seat.name}\ndeadline: {DEADLINE}\n"
                f'openflow: {{listen: "127.0.0.1:{seat.openflow}"}}\napi: {{listen: "127.0.0.1:{seat.api}"}}\n{store}'
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
            first = PROXY if bridge == worker(2) else OPENFLOW
            ports = [first, *(seat.openflow for seat in self.seats[1:])]
            words = []
            for port in ports:
                words += [f"--id=@c{port}", "create", "controller", f'target="tcp:127.0.0.1:{port}"']
                words += ["max_backoff=1000", "--"]
            targets = ",".join(f"@c{port}" for port in ports)
            self.switch.vsctl(*words, "set", "bridge", bridge, f"controller={targets}")
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
        flows: dict[str, list[Flow]] = {bridge: [HOST_LANE] for bridge in self.bridges}
        flows[CORE] = [
            _carries(2, _to(SERVER, 32), 999),
            *(_carries(1, _to(f"10.20.{n}.0", 24), n) for n in self.workers),
            _carries(0, (), 1000),
        ]
        write(Path(f"/proc/{self.machine.init_pid}/root{RUN}"), flows)

    def kill_switch(self) -> None:
        self.switch.kill_switch()

    def start_switch(self) -> float:
        """Open vSwitch again, and table 0, as the agents write it; gives the moment of the start."""
        began = time.monotonic()
        self.switch.start_switch(wait=False)
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
def running_rig(
    root: Path,
    engine: str,
    size: Size,
    seed: int,
    *,
    servers: Sequence[str] = (),
    controllers: int = 1,
    probed: bool = True,
) -> Iterator[Rig]:
    rig = Rig(root, engine, size, seed, servers=servers, controllers=controllers, probed=probed)
    try:
        rig.start()
        yield rig
    finally:
        rig.stop()
        shutil.rmtree(root, ignore_errors=True)


def defects(text: str) -> Sequence[str]:
    """Lines of the controller's log that no fault excuses."""
    return re.findall(r"^.*(?:Traceback|Exception|defect).*$", text, re.MULTILINE)
