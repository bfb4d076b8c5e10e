"""The whole site: machines, wires, switches, servers, pool, controller and agent, in the order of their dependence.

```
   ctl 192.0.2.1 (lark-controller)
    | management network 192.0.2.0/24
    +------------------------+
    | mg0                    | mg0
   wn1 ---------------------gate--------------- fs      10.20.0.5  xrootd, protected
   wn1-br     up0      wf0  gate-br  sf0          2001:db8:20::5
   10.20.1.1                 | cf0
   startd, lark-agent        +----------------- campus  10.20.0.1  gateway, open HTTP server
   jobs: 10.20.1.64/26                            2001:db8:20::1
                                                  |
                                                 ap     10.20.0.9  collector, schedd, the users
```

Invariants: nothing of the site has a name outside its own namespaces but the run directory; `stop` is a judge: it lists
every leak it finds (attempts, flows, ports, namespaces, processes, nftables tables, accounts, links) and every
traceback or error in the daemons' logs, and a site with problems keeps its run directory for the post-mortem.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from mininet_tests.site.lark import ENVIRONMENT, OPENFLOW, REPOSITORY, Agent, Controller, Larkctl, python_command
from mininet_tests.site.leaks import Snapshot, differences, processes_in
from mininet_tests.site.namespaces import Daemon, Machine, SiteError, wait_until, wire
from mininet_tests.site.openvswitch import OpenVSwitch
from mininet_tests.site.pool import PORT as CONDOR_PORT
from mininet_tests.site.pool import UID_DOMAIN, JobStatus, Member, Pool
from mininet_tests.site.users import JOB_UIDS, SYSTEM_UIDS, Account, choose_uids, private_etc
from mininet_tests.site.xrootd import XrootdServer

CACHE = Path(os.environ.get("LARK_CACHE", "/var/cache/htlark"))
CONDOR = os.environ.get("LARK_TEST_CONDOR", "23")
MACHINES = ("ctl", "wn1", "gate", "fs", "campus", "ap")
ALICE, BOB = "lark-alice", "lark-bob"
NODE = "wn1"
T = TypeVar("T")
WORKER_BRIDGE, GATE_BRIDGE = "wn1-br", "gate-br"
WORKER_DATAPATH, GATE_DATAPATH = "00000000000000a1", "00000000000000b1"
CONTROLLER_ADDRESS = "192.0.2.1"
HOST_ADDRESS, HOST_ADDRESS_6 = "10.20.1.1", "2001:db8:20::1:1"
FILE_SERVER, FILE_SERVER_6 = "10.20.0.5", "2001:db8:20::5"
CAMPUS, CAMPUS_6 = "10.20.0.1", "2001:db8:20::1"
ACCESS_POINT = "10.20.0.9"
HTTP_PORT = 8000
HOST_LISTENER_PORT = 9999
WEB_GREETING = "hello from the open campus web server"
LIBEXEC = Path("/run/lark-site/libexec")
POLICY = REPOSITORY / "policies" / "examples" / "demo.yaml"
SITE = REPOSITORY / "policies" / "examples" / "demo-site.yaml"
GROUP_MAP = "/etc/lark-groups.map"
NOTED_CHANGES = 3
ECHO = """
import socket, sys
server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
server.bind(("::", int(sys.argv[1])))
while True:
    server.sendto(*server.recvfrom(2048))
"""
"""Sends every UDP datagram back, over IPv4 and IPv6."""
FASTER = "PERIODIC_EXPR_INTERVAL = 3\n"
"""The story does not wait a minute for HTCondor to look at held jobs; nothing else of Lark's files is changed."""
# Lark marks its flows in the cookie: 0x4c, feature, object. 06 is an identity, 07 an attempt.
OF_A_JOB = re.compile(r"cookie=0x4c0[67][0-9a-f]{12}\b")
BAD_LOG = re.compile(r"Traceback \(most recent call last\)|\b(ERROR|CRITICAL)\b|\|(ERR|EMER)\|")
# The switch notices that the device of an ended job is gone before the port is removed from its database.
HARMLESS = re.compile(
    r"dpif_netdev\|ERR\|(error receiving data from lj\d+: (Network is down|No such device)|Dropped \d+ log messages)"
)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing the judge looked at."""

    what: str
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Site:
    """Use as a context manager, or `start` and `stop`. `engine`: the controller's framework."""

    engine: str = "os-ken"
    condor: str = CONDOR
    label: str = "lark-demo"
    policy: str | None = None
    """Text of another policy than the demo's."""
    topology: str | None = None
    """Text of another `site.yaml` than the demo's: for example with a gate that guards other services."""
    guard: bool = True
    """Whether the agent keeps the owners' processes out of the node's network (a test proves that it matters)."""
    access_more: str = ""
    """Further HTCondor configuration of the access point."""
    execute_more: str = ""
    """The same of the execution point."""
    say: Callable[[str], None] = lambda text: None
    root: Path = Path()
    machines: dict[str, Machine] = field(default_factory=dict)
    switches: dict[str, OpenVSwitch] = field(default_factory=dict)
    owners: dict[str, Account] = field(default_factory=dict)
    before: Snapshot | None = None
    namespaces: frozenset[str] = frozenset()
    helpers: list[Daemon] = field(default_factory=list)
    _files: XrootdServer | None = None
    _pool: Pool | None = None
    _controller: Controller | None = None
    _agent: Agent | None = None
    _larkctl: Larkctl | None = None
    allowed_log: list[re.Pattern[str]] = field(default_factory=list)
    """Lines that a test provoked on purpose (it says so by appending here)."""

    # -- parts -----------------------------------------------------------------------------------------------------

    @property
    def files(self) -> XrootdServer:
        return _there(self._files, "file server")

    @property
    def pool(self) -> Pool:
        return _there(self._pool, "pool")

    @property
    def controller(self) -> Controller:
        return _there(self._controller, "controller")

    @property
    def agent(self) -> Agent:
        return _there(self._agent, "agent")

    @property
    def larkctl(self) -> Larkctl:
        return _there(self._larkctl, "larkctl")

    @property
    def worker(self) -> Machine:
        return self.machines["wn1"]

    @property
    def prefix(self) -> Path:
        return CACHE / f"condor-{self.condor}"

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Build everything; returns when a job could be submitted and would run. On failure nothing stays."""
        check_machine(self.prefix)
        sweep(self.label)
        self.before = Snapshot.take()
        try:
            self._make_machines()
            self._make_network()
            self._make_servers()
            self._start_controller()
            self._start_agent()
            self._start_pool()
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            self.say("interrupted" if interrupted else "building the site failed")
            self.abandon(keep_logs=not interrupted)
            raise

    def __enter__(self) -> Site:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.abandon(keep_logs=not isinstance(error, KeyboardInterrupt))
            return
        problems = [problem for check in self.stop() for problem in check.problems]
        if problems:
            raise SiteError("the site did not end cleanly:\n" + "\n".join(problems))

    def _make_machines(self) -> None:
        self.say("machines: " + ", ".join(MACHINES))
        self.root = Path(tempfile.mkdtemp(prefix=f"{self.label}-"))
        self.root.chmod(0o755)
        uids = choose_uids([ALICE, BOB], JOB_UIDS) | choose_uids(["condor"], SYSTEM_UIDS)
        self.owners = {name: Account(name, uids[name], Path("/home") / name) for name in (ALICE, BOB)}
        daemon = Account("condor", uids["condor"], Path("/nonexistent"), "/usr/sbin/nologin")
        for name in MACHINES:
            home = self.root / name
            home.mkdir()
            known = (("wn1", HOST_ADDRESS), ("ap", ACCESS_POINT), ("fs", FILE_SERVER), ("campus", CAMPUS))
            hosts = [(address, f"{host}.{UID_DOMAIN} {host}") for host, address in known]
            private_etc(home / "etc", [*self.owners.values(), daemon], hosts)
            machine = Machine(name, home, home=self.root / "home")
            machine.start()
            self.machines[name] = machine
            self._record()
        for account in self.owners.values():
            home = self.root / "home" / account.name
            home.mkdir(mode=0o755)
            os.chown(home, account.uid, account.uid)
        access = Member(self.machines["ap"], ACCESS_POINT, "COLLECTOR, NEGOTIATOR, SCHEDD")
        execute = Member(self.worker, HOST_ADDRESS, "STARTD")
        self._pool = Pool(access, execute, self.root / "home", self.prefix, self.owners, daemon)
        self.namespaces = frozenset(
            os.readlink(f"/proc/{machine.init_pid}/ns/{kind}")
            for machine in self.machines.values()
            for kind in ("net", "pid", "mnt")
        )

    def _record(self, *, kept: bool = False) -> None:
        """Who owns this site, for `sweep`: written before anything else can go wrong. `kept`: wanted after our end."""
        record = {
            "owner": [os.getpid(), _start_time(os.getpid())],
            "machines": {name: [m.init_pid, _start_time(m.init_pid)] for name, m in self.machines.items()},
            "kept": kept,
        }
        (self.root / "site.json").write_text(json.dumps(record), encoding="utf-8")

    def _make_network(self) -> None:
        self.say("wires, management network, two Open vSwitch instances")
        ctl, gate = self.machines["ctl"], self.machines["gate"]
        ctl.need("ip", "link", "add", "mgmt", "type", "bridge")
        ctl.need("ip", "address", "add", f"{CONTROLLER_ADDRESS}/24", "dev", "mgmt")
        ctl.need("ip", "link", "set", "mgmt", "up")
        for name, address in ((NODE, "192.0.2.11"), ("gate", "192.0.2.21")):
            wire(self.machines[name], "mg0", ctl, f"to-{name}")
            ctl.need("ip", "link", "set", f"to-{name}", "master", "mgmt")
            self.machines[name].need("ip", "address", "add", f"{address}/24", "dev", "mg0")
        wire(self.worker, "up0", gate, "wf0")
        wire(self.machines["fs"], "eth0", gate, "sf0")
        campus = self.machines["campus"]
        wire(campus, "cf", gate, "cf0")
        wire(campus, "ap", self.machines["ap"], "eth0")
        # The campus LAN is one Ethernet: the gateway's own port is the Linux bridge.
        campus.need("ip", "link", "add", "eth0", "type", "bridge")
        campus.need("ip", "link", "set", "eth0", "up")
        campus.need("ip", "link", "set", "cf", "master", "eth0")
        campus.need("ip", "link", "set", "ap", "master", "eth0")
        self.machines["ap"].need("ip", "address", "add", f"{ACCESS_POINT}/16", "dev", "eth0")
        for name in (NODE, "gate"):
            self.switches[name] = OpenVSwitch(self.machines[name])
            self.switches[name].start()
        for name, four, six in (("fs", FILE_SERVER, FILE_SERVER_6), ("campus", CAMPUS, CAMPUS_6)):
            self.machines[name].need("ip", "address", "add", f"{four}/16", "dev", "eth0")
            self.machines[name].need("ip", "address", "add", f"{six}/48", "dev", "eth0")

    def _make_servers(self) -> None:
        self.say("file server (xrootd) and open web server")
        self._files = XrootdServer(self.machines["fs"])
        self._files.start()
        campus = self.machines["campus"]
        web = campus.root / "www"
        web.mkdir()
        (web / "index.html").write_text(WEB_GREETING + "\n", encoding="utf-8")
        for machine, port in ((campus, HTTP_PORT), (self.worker, HOST_LISTENER_PORT)):
            argv = ["/usr/bin/python3", "-m", "http.server", str(port), "--bind", "::", "--directory", str(web)]
            self.helpers.append(machine.spawn("web-server", argv))
            self.helpers.append(machine.spawn("udp-echo", ["/usr/bin/python3", "-c", ECHO, str(port)]))
        for machine, port in ((campus, HTTP_PORT), (self.worker, HOST_LISTENER_PORT)):
            wait_until(f"port {port} of {machine.name} listens", lambda m=machine, p=port: _listens(m, p), 10)  # type: ignore[misc]

    def _start_controller(self) -> None:
        self.say(f"lark-controller on {self.engine}")
        controller = Controller(self.machines["ctl"], self.engine)
        self._controller = controller
        controller.write(
            self.topology or SITE.read_text(encoding="utf-8"), self.policy or POLICY.read_text(encoding="utf-8")
        )
        viewer = controller.home / "viewer.token"
        viewer.touch(mode=0o600)
        viewer.write_text(controller.token("viewer") + "\n", encoding="utf-8")
        self._larkctl = Larkctl(controller.machine, viewer)
        self._agent = Agent(
            self.worker,
            NODE,
            WORKER_BRIDGE,
            "up0",
            LIBEXEC,
            self.prefix / "usr" / "sbin",
            JOB_UIDS if self.guard else None,
            (f"{ACCESS_POINT}:{CONDOR_PORT}",),
        )
        self._agent.write(controller.token("agent", NODE))
        controller.start()

    def _start_agent(self) -> None:
        self.say("bridges, native helper, lark-agent")
        self._prepare_bridge(NODE, WORKER_BRIDGE, "worker", WORKER_DATAPATH, ["up0"])
        self._prepare_bridge("gate", GATE_BRIDGE, "gate", GATE_DATAPATH, ["wf0", "sf0", "cf0"])
        for address in (f"{HOST_ADDRESS}/16", f"{HOST_ADDRESS_6}/48"):
            self.worker.need("ip", "address", "add", address, "dev", WORKER_BRIDGE)
        self.worker.need("ip", "link", "set", WORKER_BRIDGE, "up")
        plugin = ("--plugin", str(self.prefix / "usr/libexec/condor/curl_plugin"))
        self._run_ours(self.worker, "condor_bridge.native_install", "--libexec", str(LIBEXEC), *plugin)
        # The agent reads HTCondor's configuration when it starts.
        self._configure_pool()
        self.agent.start()

    def _configure_pool(self) -> None:
        groups = self.machines["ap"].root / "etc" / "lark-groups.map"
        groups.write_text(f"* {ALICE}@{UID_DOMAIN} physics\n", encoding="utf-8")
        plugin = ("--plugin", str(self.prefix / "usr/libexec/condor/curl_plugin"))
        render = "condor_bridge.render"
        execute = self._run_ours(self.worker, render, "execute", "--libexec", str(LIBEXEC), "--ping", "5", *plugin)
        access = self._run_ours(self.worker, render, "access", "--map", GROUP_MAP, "--release-wait", "2")
        self.pool.configure(
            {"50-lark-access.config": access, "90-demo.config": FASTER + self.access_more},
            {"50-lark-execute.config": execute, "90-more.config": self.execute_more},
        )

    def _prepare_bridge(self, machine: str, bridge: str, role: str, datapath: str, ports: list[str]) -> None:
        argv = ["prepare-bridge", "--bridge", bridge, "--role", role, "--datapath-id", datapath]
        argv += ["--datapath-type", "netdev", "--controller", f"tcp:{OPENFLOW}"]
        for port in ports:
            argv += ["--uplink", port]
        self._run_ours(self.machines[machine], "ovs_agent.cli", *argv)

    def _run_ours(self, machine: Machine, module: str, *argv: str) -> str:
        return machine.run(python_command(module, *argv), env=ENVIRONMENT, timeout=60).need().out

    def _start_pool(self) -> None:
        self.say(f"HTCondor pool from {self.prefix}")
        self.pool.start(wait_for_slot="HasLarkNetwork =?= true")

    def node_network(self) -> str:
        """The name of the worker node's own network namespace, as a process in it reads it."""
        return self.worker.need("readlink", "/proc/self/ns/net").strip()

    def keep(self) -> None:
        """Leave the site up after this process ends."""
        for machine in self.machines.values():
            machine.keep()
        self._record(kept=True)

    # -- end -------------------------------------------------------------------------------------------------------

    def abandon(self, *, keep_logs: bool = True) -> None:
        """End everything at once, without judging: the site failed already, or the user interrupted."""
        for machine in self.machines.values():
            machine.stop()
        if self.root == Path() or not self.root.exists():
            return
        if keep_logs:
            self._record(kept=True)
            self.say(f"logs of the site are kept in {self.root}")
        else:
            shutil.rmtree(self.root)

    def stop(self) -> list[Check]:
        """End everything in order and judge. Problems keep the run directory."""
        checks: list[Check] = []
        try:
            checks += self._stop_work()
            checks += self._stop_daemons()
            checks.append(self._read_logs())
        except SiteError as error:
            checks.append(Check("orderly end", (str(error),)))
        finally:
            ended = time.clock_gettime(time.CLOCK_BOOTTIME)
            for machine in self.machines.values():
                machine.stop()
        checks += self._compare_machine(ended)
        if any(check.problems for check in checks):
            self._record(kept=True)
            checks.append(Check("run directory", (), (f"kept for the post-mortem: {self.root}",)))
        else:
            shutil.rmtree(self.root)
            checks.append(Check(f"run directory {self.root}", (), ("removed",)))
        return checks

    def leftovers(self) -> list[str]:
        """What is still there of any job: flows, ports, namespaces, links, attempts."""
        found = [f"attempt {a}" for a in self.larkctl.json("attempts")["attempts"]]  # type: ignore[attr-defined]
        for name, bridge in ((NODE, WORKER_BRIDGE), ("gate", GATE_BRIDGE)):
            found += [f"{bridge}: {flow}" for flow in self.switches[name].flows(bridge) if OF_A_JOB.search(flow)]
        return found

    def _stop_work(self) -> list[Check]:
        self.pool.command("condor_rm", "-all")
        wait_until("the queue is empty", self._queue_is_empty, 40, 0.5)
        left: list[str] = []

        def nothing() -> bool:
            left[:] = self.leftovers()
            return not left

        try:
            wait_until("flows and attempts of ended jobs go", nothing, 15, 0.25)
        except SiteError:
            pass  # the list says it better
        return [Check("no attempt, and no flow of one, is left on controller, worker bridge and gate", tuple(left))]

    def _queue_is_empty(self) -> bool:
        said = self.pool.command("condor_q", "-allusers", "-af", "ClusterId", "JobStatus")
        return said.code == 0 and not said.out.strip()

    def _stop_daemons(self) -> list[Check]:
        checks = []
        self.pool.stop()
        agent, controller = self.agent, self.controller
        code = agent.stop()
        checks.append(Check("lark-agent ends on SIGTERM", () if code == 0 else (f"exit code {code}",)))
        cleaned = agent.command("cleanup", "--config", str(agent.config))
        problems = [] if cleaned.code == 0 else [f"exit code {cleaned.code}: {cleaned.text[-500:]}"]
        problems += [f"namespace {lane}" for lane in agent.lanes()]
        links = self.worker.need("ip", "-o", "link", "show").splitlines()
        problems += [f"link {line.split(':')[1].strip()}" for line in links if re.match(r"\d+: lj\d", line)]
        problems += [f"port {port}" for port in self.switches[NODE].ports(WORKER_BRIDGE) if port.startswith("lj")]
        problems += [f"nftables {line}" for line in self.worker.need("nft", "list", "tables").splitlines()]
        checks.append(Check("wn1: no namespace, link, port or nftables table is left", tuple(problems)))
        code = controller.stop()
        checks.append(Check("lark-controller ends on SIGTERM", () if code == 0 else (f"exit code {code}",)))
        for helper in self.helpers:
            helper.stop()
        self.files.stop()
        for switch in self.switches.values():
            switch.stop()
        # condor_shared_port and friends may need a moment after their master has gone.
        left: dict[int, str] = {}

        def alone() -> bool:
            left.clear()
            for machine in self.machines.values():
                left.update(machine.outer_pids())
            return not left

        try:
            wait_until("every process ends", alone, 10)
        except SiteError:
            pass
        checks.append(Check("no process is left in any machine", tuple(f"{p}: {c}" for p, c in left.items())))
        return checks

    def _read_logs(self) -> Check:
        problems = []
        for machine in self.machines.values():
            for log in [*(machine.root / "log").glob("lark-*.log"), *(machine.root / "ovs").glob("*.log")]:
                for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
                    if BAD_LOG.search(line) and not any(known.search(line) for known in (HARMLESS, *self.allowed_log)):
                        problems.append(f"{machine.name}/{log.name}: {line[:300]}")
        return Check("no traceback and no error in the logs of controller, agent and switches", tuple(problems))

    def _compare_machine(self, ended: float) -> list[Check]:
        if self.before is None:
            return []
        left = {}
        deadline = time.monotonic() + 5
        while (left := processes_in(self.namespaces, ended)) and time.monotonic() < deadline:
            time.sleep(0.1)
        checks = [Check("no process is left in a namespace of the site", tuple(f"{p}: {c}" for p, c in left.items()))]
        now = Snapshot.take()
        found = differences(self.before, now)
        changed = [str(difference) for difference in found if not difference.leak]
        checks.append(
            Check(
                "links, addresses, routes, nftables, mounts, accounts, namespaces, sysctls as before",
                tuple(str(difference) for difference in found if difference.leak),
                (
                    "before: " + self.before.counts(),
                    "after:  " + now.counts(),
                    *([f"changed meanwhile, not by this site: {len(changed)}"] if changed else []),
                    *changed[:NOTED_CHANGES],
                    *(["…"] if len(changed) > NOTED_CHANGES else []),
                ),
            )
        )
        return checks


def check_machine(prefix: Path) -> None:
    """Fail early and plainly when this machine cannot carry a site."""
    if os.geteuid() != 0:
        raise SiteError("the site needs root (namespaces, Open vSwitch, HTCondor's users): run this as root")
    tools = {
        "unshare": "util-linux",
        "nsenter": "util-linux",
        "ip": "iproute2",
        "nft": "nftables",
        "ethtool": "ethtool",
        "ovs-vswitchd": "openvswitch-switch",
        "ovsdb-server": "openvswitch-switch",
        "xrootd": "xrootd-server",
        "xrdcp": "xrootd-client",
    }
    missing = sorted({package for tool, package in tools.items() if shutil.which(tool) is None})
    if missing:
        raise SiteError(f"Debian packages are missing: {' '.join(missing)}; `make install-deps` installs them")
    if not (prefix / "usr" / "sbin" / "condor_master").exists():
        raise SiteError(f"no HTCondor in {prefix}; `make install-deps` puts it there")


def sweep(label: str, *, kept: bool = False) -> list[str]:
    """Remove what a killed run left: its machines and its run directory.

    If `kept`, also sites that --keep left up, and what was kept of failed ones for the post-mortem.
    """
    removed = []
    for record in Path(tempfile.gettempdir()).glob(f"{label}-*/site.json"):
        try:
            content = json.loads(record.read_text(encoding="utf-8"))
            owner_pid, owner_start = content["owner"]
        except (OSError, ValueError, KeyError):
            continue
        if _start_time(owner_pid) == owner_start or (content["kept"] and not kept):
            continue
        for pid, start in content["machines"].values():
            if start is not None and _start_time(pid) == start:
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(record.parent, ignore_errors=True)
        removed.append(str(record.parent))
    return removed


def _start_time(pid: int) -> int | None:
    """Start time of a process in clock ticks: with the pid it names one process for ever."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    except OSError:
        return None


def _listens(machine: Machine, port: int) -> bool:
    """Both by TCP and by UDP."""
    return all(re.search(rf":{port}\b", machine.need("ss", "-Hln", kind)) for kind in ("-t", "-u"))


def _there(part: T | None, name: str) -> T:
    if part is None:
        raise SiteError(f"the site has no {name} yet")
    return part


__all__ = ["Check", "JobStatus", "Site", "SiteError", "check_machine", "sweep"]
