"""A large site under churn: real bridges and simulated switches, the real controller, starts and exits all the time.

    load (agents) ── HTTP ──▶ lark-controller ── OpenFlow ──▶ real worker bridges and one gate of one ovs-vswitchd
                                  └─ embedded store          └▶ fake switches (mininet_tests.fakeswitch)

Everything runs in a machine (namespaces) of its own. Each switch has a node; a third of the jobs are granted a service
behind the gate, a third is in slices of a few jobs on several nodes. Heartbeats go on meanwhile. What is measured:
registration and end as the agents see them, CPU and memory of every process, and whether the end differs from the
beginning. At the end two judges look: every switch must hold flows of exactly the jobs that are present; and a
controller that is started anew, and computes everything afresh, must find nothing to change on any switch.

Run as root: `python -m mininet_tests.bench.churn [--real 16] [--fake 1000] [--attempts 20000] [--json FILE]`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mininet_tests.chaos.rig import POLICY
from mininet_tests.fakeswitch import wire
from mininet_tests.site.lark import ENVIRONMENT, python_command
from mininet_tests.site.namespaces import Daemon, Machine, SiteError, wait_until
from mininet_tests.site.openvswitch import RUN, OpenVSwitch
from mininet_tests.site.users import private_etc
from mininet_tests.switch_rig import LANE
from ovs_agent import plan
from ryu_apps.openflow.cookies import Feature
from ryu_apps.rest.auth import TOKEN_PREFIX, TokenRole, hash_token

OPENFLOW, API = 6653, 8080
GATE = "lkcb-gate"
GATE_DPID = 0xFFFF
LANES = 40
"""Job networks of a node; twice the mean, so that chance never exhausts one."""
FIRST_JOB_PORT = 1001
UPLINK = 1
CONTROL = "/run/fakes.sock"
PROCESSES = {
    "controller": "ryu_apps.cli",
    "store": "lark.db",
    "switch": "ovs-vswitchd",
    "fakes": "fakeswitch",
    "load": "bench.load",
}
"""What to look for in the command line of each process that is watched."""
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything. `real` counts the gate."""

    real: int = 16
    fake: int = 1000
    attempts: int = 20_000
    rate: float = 200
    seconds: float = 60
    serial: int = 200
    burst: int = 1000
    few: int = 100
    some: int = 1000
    many: int = 10_000

    @property
    def nodes(self) -> int:
        return self.real - 1 + self.fake


FULL = Size()
REDUCED = Size(real=4, fake=60, attempts=600, rate=30, seconds=10, serial=20, burst=100, few=20, some=100, many=300)


def size() -> Size:
    return FULL if os.environ.get("LARK_TEST_FULL") else REDUCED


@dataclass(slots=True)
class Sample:
    """Of one process at one moment: seconds of CPU since its start, octets of memory."""

    at: float
    cpu: float
    memory: int


@dataclass(slots=True)
class Watch:
    """Looks at the processes of a machine once a second."""

    machine: Machine
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def begin(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        pids: dict[str, int] = {}
        while not self._ended.wait(1.0):
            if len(pids) < len(PROCESSES):
                pids = self._find()
            for name, pid in pids.items():
                found = _look(pid)
                if found is not None:
                    self.samples.setdefault(name, []).append(found)

    def _find(self) -> dict[str, int]:
        found = {}
        for pid, command in self.machine.outer_pids().items():
            for name, mark in PROCESSES.items():
                if mark in command and not command.startswith(("nsenter", "unshare", "env")):
                    found[name] = pid
        return found

    def end(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(10)

    def between(self, name: str, began: float, ended: float) -> list[Sample]:
        return [one for one in self.samples.get(name, []) if began <= one.at <= ended]

    def cpu(self, name: str, began: float, ended: float) -> float:
        """Cores that a process used."""
        found = self.between(name, began, ended)
        if len(found) < 2:
            return 0.0
        return round((found[-1].cpu - found[0].cpu) / (found[-1].at - found[0].at), 3)

    def memory(self, name: str, began: float, ended: float) -> int:
        """Mean octets."""
        found = self.between(name, began, ended)
        return sum(one.memory for one in found) // len(found) if found else 0


def _look(pid: int) -> Sample | None:
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return None
    return Sample(time.monotonic(), (int(words[11]) + int(words[12])) / TICK, pages * os.sysconf("SC_PAGE_SIZE"))


class Site:
    """Use `running_site`."""

    def __init__(self, root: Path, engine: str, size: Size, seed: int) -> None:
        root.chmod(0o755)
        private_etc(root / "etc", [], [])
        self.size = size
        self.seed = seed
        self.machine = Machine("churn", root)
        self.switch = OpenVSwitch(self.machine)
        self.watch = Watch(self.machine)
        self.controller: Daemon | None = None
        self._engine = engine
        self._starts = 0
        self._fakes: Daemon | None = None
        self._tokens = {n: f"{TOKEN_PREFIX}{seed}-{n}" for n in self.numbers}

    @property
    def numbers(self) -> range:
        """Of nodes and worker bridges: the real ones first."""
        return range(1, self.size.nodes + 1)

    def real(self, n: int) -> bool:
        return n < self.size.real

    def bridge(self, n: int) -> str:
        return f"lkcb-{n}"

    @property
    def home(self) -> Path:
        return self.machine.root / "lark"

    def start(self) -> None:
        self.machine.start()
        self.machine.need("ip", "link", "set", "lo", "up")
        self._write_files()
        self.switch.start()
        self._bridges()
        self.start_controller()
        last = FIRST_JOB_PORT + LANES - 1
        self._fakes = self.machine.spawn(
            "fakes",
            python_command(
                "mininet_tests.fakeswitch", f"--controller=tcp:127.0.0.1:{OPENFLOW}", f"--count={self.size.fake}",
                f"--first-dpid={self.size.real}", f"--ports={FIRST_JOB_PORT}-{last}", "--port-name=lj{dpid}-{port}",
                f"--port=up={UPLINK}", "--lark", f"--control={CONTROL}",
                *(f"--source=127.0.1.{n}" for n in range(1, 251)),
            ),
            env=ENVIRONMENT,
        )  # fmt: skip
        self._connect()
        self.watch.begin()

    def stop(self) -> None:
        self.watch.end()
        for daemon in (self._fakes, self.controller):
            if daemon is not None and daemon.running():
                daemon.stop(number=signal.SIGKILL)
        self.switch.stop()
        self.machine.stop()

    # --- building

    def _write_files(self) -> None:
        self.home.mkdir()
        nodes = "".join(f"  wn{n}: {{bridge: {self.bridge(n)}, ipv4: {_network(n)}}}\n" for n in self.numbers)
        bridges = "".join(
            f'  {self.bridge(n)}: {{datapath-id: "{n:016x}", roles: [worker], '
            f"ports: {{uplink: [{self._uplink(n)}]}}}}\n"
            for n in self.numbers
        )
        (self.home / "site.yaml").write_text(
            "site: churn\nnetwork: {ipv4: 10.64.0.0/12, gateway-ipv4: 10.79.255.254, mtu: 1500}\n"
            f"infrastructure: [192.0.2.0/24]\nnodes:\n{nodes}bridges:\n{bridges}"
            f'  {GATE}: {{datapath-id: "{GATE_DPID:016x}", roles: [gate], guards: [files], '
            "ports: {worker-facing: [gwf], server-facing: [gsf]}}\n"
        )
        (self.home / "policy.yaml").write_text(POLICY)
        (self.home / "controller.yaml").write_text(
            "site: site.yaml\npolicy: policy.yaml\nstate-dir: state\ntokens: tokens.yaml\n"
            f'openflow: {{listen: "127.0.0.1:{OPENFLOW}"}}\napi: {{listen: "127.0.0.1:{API}"}}\n'
        )
        entries = "".join(
            f"- {{sha256: {hash_token(token)}, role: {TokenRole.AGENT.value}, node: wn{n}}}\n"
            for n, token in self._tokens.items()
        )
        (self.home / "tokens.yaml").write_text(f"tokens:\n{entries}")

    def _uplink(self, n: int) -> str:
        return f"up{n}" if self.real(n) else "up"

    def _bridges(self) -> None:
        """As the agent prepares them, but that ports of jobs are patch ports without a peer: real to OpenFlow."""
        real = {self.bridge(n): n for n in self.numbers if self.real(n)}
        for bridge, number in {**real, GATE: GATE_DPID}.items():
            words = ["add-br", bridge, "--", "set", "bridge", bridge, "datapath_type=netdev", "fail_mode=secure"]
            words += ["protocols=OpenFlow13,OpenFlow14", "other_config:disable-in-band=true"]
            words += [f'other_config:dp-desc="{plan.PREPARED}"', f"other_config:datapath-id={number:016x}"]
            ports = {"gwf": 1, "gsf": 2}
            if bridge != GATE:
                ports = {self._uplink(number): UPLINK}
                ports |= {f"lj{number}-{p}": p for p in range(FIRST_JOB_PORT, FIRST_JOB_PORT + LANES)}
            for port, ofport in ports.items():
                words += ["--", "add-port", bridge, port, "--", "set", "interface", port, f"ofport_request={ofport}"]
                words += ["type=patch", f"options:peer={port}-no"]
            self.switch.vsctl(*words)

    def _connect(self) -> None:
        target = f"tcp:127.0.0.1:{OPENFLOW}"
        for bridge in self.real_bridges:
            self.switch.vsctl("set-controller", bridge, target, "--", "set", "controller", bridge, "max_backoff=1000")
            self.machine.need("ovs-ofctl", "-OOpenFlow14", "add-flow", f"unix:{RUN}/{bridge}.mgmt", LANE)

    @property
    def real_bridges(self) -> list[str]:
        return [*(self.bridge(n) for n in self.numbers if self.real(n)), GATE]

    # --- the controller

    def start_controller(self) -> float:
        """Start it; gives the moment."""
        self._starts += 1
        began = time.monotonic()
        argv = ["run", "--config", str(self.home / "controller.yaml"), "--engine", self._engine]
        self.controller = self.machine.spawn(
            f"lark-controller.{self._starts}", python_command("ryu_apps.cli", *argv), env=ENVIRONMENT
        )
        return began

    def log(self) -> str:
        return (self.machine.root / "log" / f"lark-controller.{self._starts}.log").read_text(errors="replace")

    def until_in_line(self, seconds: float) -> tuple[float, int]:
        """Until the controller has told of every bridge that it is in line: the moment, and flow-mods sent for it."""
        assert self.controller is not None
        found: dict[str, int] = {}

        def all_told() -> bool:
            assert self.controller is not None
            if not self.controller.running():
                raise SiteError(f"lark-controller ended:\n{self.controller.tail()}")
            lines = re.findall(r"bridge=(\S+): in line with \d+ flows, (\d+) flow-mods", self.log())
            found.update((bridge, int(sent)) for bridge, sent in lines)
            return len(found) == self.size.nodes + 1

        wait_until(f"all {self.size.nodes + 1} bridges in line", all_told, seconds, 0.25)
        return time.monotonic(), sum(found.values())

    def defects(self) -> list[str]:
        """Lines that may not be in the log, of any start."""
        logs = sorted((self.machine.root / "log").glob("lark-controller.*.log"))
        text = "".join(path.read_text(errors="replace") for path in logs)
        return re.findall(r"^.*(?:Traceback|Exception|defect| ERROR ).*$", text, re.MULTILINE)

    # --- load

    def nodes(self) -> list[dict[str, object]]:
        return [
            {
                "number": n,
                "bridge": self.bridge(n),
                "port_prefix": f"lj{n}-",
                "ipv4": _network(n),
                "token": self._tokens[n],
                "source": f"127.0.2.{1 + n % 100}",
                "lanes": LANES,
            }
            for n in self.numbers
        ]

    def load(self, steps: Sequence[dict[str, object]], timeout: float, abreast: int = 1) -> list[dict[str, Any]]:
        """Run the steps, with so many requests of each node at a time; what each found, and who is present at last."""
        file = self.machine.root / "plan.json"
        plan = {"api": ["127.0.0.1", API], "seed": self.seed, "beat": 20, "abreast": abreast, "nodes": self.nodes()}
        file.write_text(json.dumps({**plan, "steps": list(steps)}))
        load = self.machine.spawn("load", python_command("mininet_tests.bench.load", str(file)), env=ENVIRONMENT)
        deadline = time.monotonic() + timeout
        while load.running():
            if time.monotonic() > deadline:
                load.stop(number=signal.SIGKILL)
                raise SiteError(f"the load did not end within {timeout:g} s: {load.tail()}\n{self._tail()}")
            if self.controller is not None and not self.controller.running():
                raise SiteError(f"lark-controller ended:\n{self._tail()}")
            time.sleep(0.25)
        if load.entry.returncode:
            raise SiteError(f"the load failed:\n{load.tail()}")
        return [json.loads(line) for line in load.log.read_text().splitlines()]

    def _tail(self) -> str:
        return "" if self.controller is None else self.controller.tail()

    # --- judges

    def ask_fakes(self, *questions: dict[str, object]) -> Iterator[dict[str, Any]]:
        """Questions to the fakes' control socket, which lies in the machine's own /run."""
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"/proc/{self.machine.init_pid}/root{CONTROL}")
            lines = client.makefile()
            for question in questions:
                client.sendall(json.dumps(question).encode() + b"\n")
                yield json.loads(lines.readline())

    def wrong_jobs(self, present: dict[str, list[int]]) -> list[str]:
        """Worker bridges whose flows are not those of exactly these ports' jobs, in words."""
        found: dict[str, set[int]] = {}
        mark = f"4c{Feature.ATTEMPT:02x}"
        fakes = [n for n in self.numbers if not self.real(n)]
        answers = self.ask_fakes(*({"do": "flows", "dpid": n} for n in fakes))
        for n, answer in zip(fakes, answers, strict=True):
            own = [bytes.fromhex(one["match"]) for one in answer["flows"] if one["cookie"].startswith(mark)]
            found[self.bridge(n)] = {port for match in own if (port := _in_port(match)) is not None}
        for bridge in self.real_bridges:
            if bridge == GATE:
                continue
            argv = ["ovs-ofctl", "-OOpenFlow14", "--no-names", "--no-stats", "dump-flows", f"unix:{RUN}/{bridge}.mgmt"]
            lines = [line.strip() for line in self.machine.need(*argv).splitlines()]
            lines = [line for line in lines if line.startswith(f"cookie=0x{mark}")]
            found[bridge] = {int(port) for line in lines for port in re.findall(r"in_port=(\d+)", line)}
        said = []
        for bridge, ports in present.items():
            more, less = sorted(found[bridge] - set(ports)), sorted(set(ports) - found[bridge])
            if more or less:
                said.append(f"{bridge}: flows of ports {more} too many, of {less} missing")
        return said


def _network(n: int) -> str:
    return f"10.{64 + (n >> 10)}.{(n >> 2) & 255}.{64 * (n & 3)}/26"


def _in_port(match: bytes) -> int | None:
    return next((one.value for one in wire.fields(match) if one.head == b"\x80\x00\x00"), None)


@contextmanager
def running_site(engine: str, size: Size, seed: int) -> Iterator[Site]:
    root = Path(tempfile.mkdtemp(prefix="lkcb-"))
    site = Site(root, engine, size, seed)
    try:
        site.start()
        yield site
    finally:
        site.stop()
        shutil.rmtree(root, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Result:
    """Milliseconds, octets, cores."""

    machine: str
    engine: str
    size: Size
    seed: int
    connected_after: float
    """Seconds until the first controller had every switch in line."""
    restarted_after: float
    """Seconds from the start of another process to the last switch in line, all attempts present."""
    restart_flow_mods: int
    steps: dict[str, dict[str, Any]]
    cpu: dict[str, float]
    """Cores used during the churn, by process."""
    memory_empty: int
    """Of the controller before the first attempt."""
    memory_full: int
    memory_per_attempt: float
    memory_first_10s: int
    memory_last_10s: int
    failures: int
    wrong: list[str]
    defects: list[str]

    @property
    def present_ratio(self) -> float:
        return round(float(self.steps["many"]["start"]["p50"] / self.steps["few"]["start"]["p50"]), 3)


def run(engine: str, size: Size, seed: int) -> Result:
    """Build the site, load it, judge it."""
    began = time.monotonic()
    with running_site(engine, size, seed) as site:
        at, _ = site.until_in_line(240)
        steps: list[dict[str, object]] = [
            {"name": "nodes", "do": "nodes"},
            {"name": "empty", "do": "rest", "seconds": 3},
            {"name": "fill-few", "do": "fill", "to": size.few, "clients": 4},
            {"name": "few", "do": "serial", "count": size.serial},
            {"name": "fill-some", "do": "fill", "to": size.some, "clients": 16},
            {"name": "burst", "do": "burst", "count": size.burst, "clients": 8},
            {"name": "fill-many", "do": "fill", "to": size.many, "clients": 32},
            {"name": "many", "do": "serial", "count": size.serial},
            {"name": "fill", "do": "fill", "to": size.attempts, "clients": 32},
            {"name": "full", "do": "rest", "seconds": 3},
            {"name": "churn", "do": "open", "rate": size.rate, "seconds": size.seconds},
        ]
        *found, last = site.load(steps, 600)
        told = {one["step"]: one for one in found}
        wrong = site.wrong_jobs(last["present"])
        assert site.controller is not None
        site.controller.stop()
        again = site.start_controller()
        in_line, flow_mods = site.until_in_line(120)
        watch, churn = site.watch, told["churn"]
        empty = watch.memory("controller", told["empty"]["began"] + 1, told["empty"]["began"] + 4)
        full = watch.memory("controller", told["full"]["began"] + 1, told["full"]["began"] + 4)
        return Result(
            machine=machine(),
            engine=engine,
            size=size,
            seed=seed,
            connected_after=round(at - began, 2),
            restarted_after=round(in_line - again, 2),
            restart_flow_mods=flow_mods,
            steps=told,
            cpu={name: watch.cpu(name, churn["began"], churn["ended"]) for name in PROCESSES},
            memory_empty=empty,
            memory_full=full,
            memory_per_attempt=round((full - empty) / told["full"]["population"], 1),
            memory_first_10s=watch.memory("controller", churn["began"], churn["began"] + 10),
            memory_last_10s=watch.memory("controller", churn["ended"] - 10, churn["ended"]),
            failures=sum(one["failures"] for one in found),
            wrong=wrong,
            defects=site.defects(),
        )


def machine() -> str:
    """What it was measured on, in a line."""
    text = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    name = model[1] if model else platform.machine()
    return f"{os.cpu_count()} cores ({name}), Linux {platform.release()}, Python {platform.python_version()}"


def table(result: Result) -> str:
    """For people."""
    churn, size = result.steps["churn"], result.size
    mega = {name: octets / 1e6 for name, octets in asdict(result).items() if name.startswith("memory_")}
    one_by_one = {name: _line(result.steps[name]["start"]) for name in ("few", "many")}
    lines = [
        f"{size.real} real bridges, {size.fake} simulated switches, {churn['population']} attempts, {result.engine}; "
        f"{result.machine}",
        f"  all switches in line {result.connected_after:.1f} s after the start",
        f"  {size.nodes} nodes register: {_line(result.steps['nodes']['node'])}",
        f"  churn, {size.rate:g} starts and {size.rate:g} exits a second asked for, {churn['rate']:.0f} a second done; "
        f"{result.failures} failures, {churn['turned_away']} told to come again",
        f"    registration             {_line(churn['start'])}",
        f"    its first 10 s           {_line(churn['start_first_10s'])}",
        f"    its last 10 s            {_line(churn['start_last_10s'])}",
        f"    end                      {_line(churn['exit'])}",
        f"    heartbeat                {_line(churn['beat'])}",
        f"    cores used: {', '.join(f'{name} {share:.2f}' for name, share in result.cpu.items())}",
        f"    controller's memory: {mega['memory_first_10s']:.1f} MB in its first 10 s, {mega['memory_last_10s']:.1f} "
        "in its last",
        f"  controller's memory: {mega['memory_empty']:.0f} MB empty, {mega['memory_full']:.0f} MB full, "
        f"{result.memory_per_attempt / 1000:.2f} KB an attempt (aim 6)",
        f"  burst of 8 clients, {size.some} present: {result.steps['burst']['rate']:.0f} a second (aim 500); "
        f"{_line(result.steps['burst']['start'])}",
        f"  one at a time, {size.few} present: {one_by_one['few']}",
        f"  one at a time, {size.many} present: {one_by_one['many']}; {result.present_ratio:.2f} of it (aim 1.2)",
        f"  restart, at rest: {result.restarted_after:.1f} s to the last switch in line, {result.restart_flow_mods} "
        "flow-mods",
    ]
    lines += [f"  WRONG: {text}" for text in result.wrong[:5]] + [f"  LOG: {text[:300]}" for text in result.defects[:5]]
    lines += [f"  FAILED in {one['step']}: {text}" for one in result.steps.values() for text in one["examples"]]
    return "\n".join(lines)


def _line(found: dict[str, float]) -> str:
    if not found.get("count"):
        return "none"
    shares = ", ".join(f"{name} {found[name]:.1f}" for name in ("p50", "p90", "p99", "max"))
    return f"{shares} ms ({found['count']:.0f})"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A large site under churn.")
    for name, default in asdict(FULL).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--engine", default="os-ken")
    parser.add_argument("--seed", type=int, default=2015)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    args = parser.parse_args(argv)
    result = run(args.engine, Size(**{name: getattr(args, name) for name in asdict(FULL)}), args.seed)
    print(table(result))
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(asdict(result), indent=2) + "\n")
    return 1 if result.failures or result.wrong or result.restart_flow_mods else 0


if __name__ == "__main__":
    sys.exit(main())
