"""`Campus`: the campus in Mininet, from Python.

    with Campus(policy="policy.yaml") as campus:
        job = campus.start_job(node="wn1", ad={"LarkGroup": "physics"})
        assert campus.reach(job, "fileserver", "tcp/1094")

The network, its machines and daemons live in one set of namespaces, held by a process of their own (`serve`); this
object starts jobs there, asks probers, and computes what the policy means for the world as the controller tells it.

Invariants: nothing is left when `__exit__` has run or this process has died, but the directory of logs after a failure.
`matrix` is never silent about a difference; `reach` never guesses: an answer that some addresses give and others do not
is an error.
"""

from __future__ import annotations

import ipaddress
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from ruamel.yaml import YAML

from mininet_tests.chaos.inside import Inside
from mininet_tests.site.campus import sweep
from mininet_tests.site.lark import API, ENVIRONMENT, Larkctl, python_command
from mininet_tests.site.namespaces import Machine, SiteError, wait_until
from mininet_tests.site.openvswitch import widen
from mininet_tests.site.users import private_etc
from mininet_tests.topology import layout
from mininet_tests.topology.jobs import Execution, Job, JobHeld
from mininet_tests.topology.matrix import End, Matrix, Probe, check_port, compare, expect, pairs, ports_of
from policies.decide import decide
from policies.language import attributes_read, check_together, load_policy, load_site
from policies.model import Address, Attempt, Outcome, Policy, Site, World
from policies.wire import AttemptList, AttemptStatus, NodeList, Phase

LABEL = "lark-lab"
PROBER = Path(__file__).with_name("prober.py")
DEFAULT_POLICY = Path(__file__).with_name("campus.yaml")
USER = "alice@site.example"
FIRST_OWN, LAST_OWN = 33000, 60999
"""Source ports of probes: none is used twice within the time that a switch remembers a connection."""
SECONDS = 2.0
PATIENCE = 8.0
"""Seconds for a probe that was expected to be answered and was not: a busy machine is no verdict."""


@dataclass(slots=True)
class _Asker:
    """A prober's process."""

    name: str
    process: subprocess.Popen[str]
    own: int = FIRST_OWN
    buffer: str = ""

    def tell(self, **command: Any) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise SiteError(f"the prober of {self.name} has ended") from None

    def hear(self, timeout: float = 60) -> dict[str, Any]:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            raise SiteError(f"the prober of {self.name} does not answer")
        line = self.process.stdout.readline()
        if not line:
            raise SiteError(f"the prober of {self.name} has ended")
        return dict(json.loads(line))

    def next_own(self) -> int:
        self.own = self.own + 1 if self.own < LAST_OWN else FIRST_OWN
        return self.own

    def stop(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)


@dataclass(slots=True)
class Campus:
    """Use as a context manager. `policy`: a file, or text with a line end in it; `site`: another site file than the
    one that follows from the policy; `engine`: the controller's framework; `queues`: the line to the world has its rate
    and classes; `probing`: False where real senders are let loose (nothing listens then, and `reach` has no answer)."""

    policy: Path | str | None = None
    site: Path | None = None
    engine: str = field(default_factory=lambda: os.environ.get("LARK_TEST_ENGINE", "os-ken"))
    say: Callable[[str], None] = lambda text: None
    queues: bool = False
    probing: bool = True
    root: Path = Path()
    jobs: dict[str, Job] = field(default_factory=dict)
    _lab: Machine | None = None
    _server: subprocess.Popen[str] | None = None
    _machines: dict[str, Machine] = field(default_factory=dict)
    _executions: dict[str, Execution] = field(default_factory=dict)
    _askers: dict[str, _Asker] = field(default_factory=dict)
    _control: Inside | None = None
    _policy: Policy | None = None
    _site: Site | None = None

    # -- life -----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Campus:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        keep = error is not None and not isinstance(error, KeyboardInterrupt | SystemExit)
        self.stop(keep_logs=keep)

    def start(self) -> None:
        """Build everything; returns when jobs can be started."""
        if os.geteuid() != 0:
            raise SiteError("the lab needs root (namespaces, Open vSwitch): run this as root")
        sweep(LABEL)
        self.root = Path(tempfile.mkdtemp(prefix=f"{LABEL}-"))
        try:
            self._start()
        except BaseException as error:
            self.stop(keep_logs=not isinstance(error, KeyboardInterrupt | SystemExit))
            raise

    def _start(self) -> None:
        self.root.chmod(0o755)
        policy = self._policy_file()
        self._policy = load_policy(policy)
        if self.site is not None:
            check_carried(load_site(self.site))
        private_etc(self.root / "etc", [], [])
        self._lab = Machine("lab", self.root)
        self._lab.start()
        self._record()
        self.say("machines, wires, switches, lark-controller, lark-agents")
        words = ["--root", str(self.root), "--policy", str(policy), "--engine", self.engine]
        words += ["--site", str(self.site.absolute())] if self.site is not None else []
        words += ["--queues"] if self.queues else []
        argv = self._lab.argv(python_command("mininet_tests.topology.serve", *words), None, ENVIRONMENT)
        with (self.root / "mininet.log").open("w") as log:
            self._server = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        said = json.loads(line) if line else {"failed": f"see {self.root / 'mininet.log'}"}
        if "failed" in said:
            raise SiteError(f"the campus could not be built: {said['failed']}; its log: {self.root / 'mininet.log'}")
        shells = {command.rpartition("mininet:")[2]: pid for pid, command in self._lab.outer_pids().items()}
        self._attach({name: pid for name, pid in shells.items() if name and (self.root / name).is_dir()})
        if self.queues:
            self.say("queues of the line to the world")
            # Whoever has sent something has the socket that `widen` is about.
            self.machine("login").need("ping", "-q", "-c3", "-i0.1", layout.place("cern").ipv4[0])
            for name in layout.BRIDGES:
                widen(self.machine(name))
            wait_until("the queues are in force", self.queues_in_force, 60, 0.25)

    def _attach(self, pids: Mapping[str, int]) -> None:
        assert self._policy is not None
        self._machines = {name: Machine(name, self.root / name, init_pid=pid) for name, pid in pids.items()}
        self._control = Inside(self.machine("ctl"))
        self._site = load_site(self.root / "ctl" / "lark" / "site.yaml")
        check_together(self._policy, self._site)
        for name in layout.WORKERS:
            attributes = attributes_read(self._policy)
            slots = self.root / name / "lark" / "slots"
            self._executions[name] = Execution(self.machine(name), slots, attributes)
        wait_until("all bridges are in line", self.converged, 30, 0.1)
        if not self.probing:
            return
        self.say("probers in all machines")
        for place in (*layout.PLACES, *layout.HOSTS.values()):
            device = layout.BRIDGES[place.name] if place.name in layout.HOSTS else "eth0"
            argv = self.machine(place.name).argv(["/usr/bin/python3", "-I", str(PROBER)], None, None)
            self._ask_from(place.name, argv, device, [str(a) for a in place.addresses])
        self._hear_all(self._askers.values())

    @classmethod
    def attach(cls, root: Path, pids: Mapping[str, int]) -> Campus:
        """A campus that somebody else built in this process's namespaces and will end. `pids`: by machine."""
        configured = YAML(typ="safe").load((root / "ctl" / "lark" / "controller.yaml").read_text(encoding="utf-8"))
        found = cls(policy=configured["policy"], root=root)
        found._policy = load_policy(Path(configured["policy"]))
        found._attach(pids)
        return found

    def detach(self) -> None:
        """End what `attach` and later calls began, and leave the rest."""
        for asker in self._askers.values():
            asker.stop()
        self._askers.clear()
        for execution in self._executions.values():
            execution.stop()
        self._executions.clear()
        if self._control is not None:
            self._control.close()
            self._control = None

    def _policy_file(self) -> Path:
        if isinstance(self.policy, str) and "\n" in self.policy:
            file = self.root / "policy.yaml"
            file.write_text(self.policy, encoding="utf-8")
            return file
        return Path(self.policy or DEFAULT_POLICY).absolute()

    def _record(self) -> None:
        """For `sweep`: whose directory this is. The processes need no record, they end with this one."""
        start = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
        record = {"owner": [os.getpid(), int(start)], "machines": {}, "kept": False}
        (self.root / "site.json").write_text(json.dumps(record), encoding="utf-8")

    def stop(self, *, keep_logs: bool = False) -> None:
        """End everything; idempotent."""
        self.detach()
        # No word to Mininet: with the namespaces everything in them goes at once.
        if self._lab is not None:
            self._lab.stop()
            self._lab = None
        if self._server is not None:
            for stream in (self._server.stdin, self._server.stdout):
                if stream is not None:
                    stream.close()
            self._server.wait(10)
            self._server = None
        self._machines.clear()
        self.jobs.clear()
        if keep_logs:
            self.say(f"logs are kept in {self.root}")
        elif self.root != Path():
            shutil.rmtree(self.root, ignore_errors=True)

    # -- parts ----------------------------------------------------------------------------------------------------

    def machine(self, name: str) -> Machine:
        """A machine of the campus: `campus.machine("wn1").need("ovs-vsctl", "show")`. Raises SiteError."""
        found = self._machines.get(name)
        if found is None:
            raise SiteError(f"the campus has no machine {name!r}; it has {', '.join(sorted(self._machines))}")
        return found

    @property
    def machines(self) -> list[str]:
        return sorted(self._machines)

    def get(self, path: str) -> bytes:
        """What the controller's API answers."""
        token = (self.root / "ctl" / "lark" / "viewer.token").read_text(encoding="utf-8").strip()
        headers = {"Authorization": f"Bearer {token}"}
        assert self._control is not None
        answer = self._control.call(
            lambda: httpx.get(f"http://{API}{path}", headers=headers, timeout=15, trust_env=False)
        )
        if answer.status_code != 200:
            raise SiteError(f"the controller answers {answer.status_code} to {path}: {answer.text[:500]}")
        return answer.content

    def larkctl(self, *words: str) -> str:
        """What `larkctl` says of this campus."""
        return Larkctl(self.machine("ctl"), self.root / "ctl" / "lark" / "viewer.token").text(*words)

    def new_policy(self, text: str) -> None:
        """The policy's file gets another text, and the controller is told. Only where the policy was given as text:
        somebody's file is not ours to write. Raises PolicyError, SiteError."""
        file = self.root / "policy.yaml"
        if not file.exists():
            raise SiteError("this campus runs with a policy file; change that, or give the policy as text")
        file.write_text(text, encoding="utf-8")
        self._policy = load_policy(file)
        self.signal("ryu_apps.cli run", signal.SIGHUP)

    def signal(self, command: str, number: signal.Signals) -> None:
        """Send a signal to the one process whose command line holds these words: `ovs_agent.cli border`, say."""
        assert self._lab is not None
        # What entered the machine to start it (nsenter) has the words, too.
        lines = self._lab.outer_pids()
        found = [pid for pid, line in lines.items() if command in line and not line.startswith("nsenter ")]
        if len(found) != 1:
            raise SiteError(f"{len(found)} processes of the campus are {command!r}")
        os.kill(found[0], number)

    def attempts(self) -> list[AttemptStatus]:
        return AttemptList.model_validate_json(self.get("/v1/attempts")).attempts

    def world(self) -> World:
        """The world as the controller tells it, with decisions made here anew: two ways to the same flows."""
        assert self._policy is not None
        assert self._site is not None
        attempts: dict[str, Attempt] = {}
        for number, one in enumerate(self.attempts(), 1):
            spec = one.spec
            decision = decide(self._policy, spec.node, dict(spec.ad), dict(spec.slot), spec.phase)
            attempts[one.id] = Attempt(
                one.id, number, spec.node, spec.port.bridge, spec.port.name, spec.port.ofport,
                int(spec.mac.replace(":", ""), 16), ipaddress.IPv4Address(spec.ipv4),
                None if spec.ipv6 is None else ipaddress.IPv6Address(spec.ipv6),
                spec.zone, spec.phase, decision.outcome, decision.slice,
            )  # fmt: skip
        hosts = {
            one.node: tuple(ipaddress.ip_address(a) for a in one.spec.host_addresses)
            for one in NodeList.model_validate_json(self.get("/v1/nodes")).nodes
            if one.spec is not None
        }
        identities: dict[Outcome, int] = {a.outcome: 0 for a in attempts.values()}
        return World(
            site=self._site,
            policy=self._policy,
            host_addresses=hosts,
            identities={outcome: number for number, outcome in enumerate(identities, 1)},
            attempts=attempts,
        )

    def converged(self) -> bool:
        """Whether every bridge is as the policy that the controller has now asks for."""
        bridges = json.loads(self.get("/v1/bridges"))["bridges"]
        return all(bridge["converged"] for bridge in bridges)

    def queues_in_force(self) -> bool:
        """Whether the border's agent keeps what the policy that the controller has now asks for, without a fault."""
        bridges = json.loads(self.get("/v1/bridges"))["bridges"]
        return all((one["queues"] or {}).get("in_force", False) for one in bridges if "border" in one["roles"])

    # -- jobs -----------------------------------------------------------------------------------------------------

    def begin_job(self, node: str = "wn1", ad: Mapping[str, Any] | None = None, name: str | None = None) -> Job:
        """A job that has its network and is in phase stage-in. `ad`: what HTCondor would say of it. Raises JobHeld."""
        if node not in self._executions:
            raise SiteError(f"no worker node {node!r}; there are {', '.join(self._executions)}")
        name = name or f"job{1 + sum(e.count for e in self._executions.values())}"
        if name in self._machines or (name in self.jobs and not self.jobs[name].ended):
            raise SiteError(f"the name {name} is taken")
        job = self._executions[node].start(name, {"User": USER} | dict(ad or {}))
        try:
            job.begin()
        except JobHeld:
            job.end()
            raise
        self._refresh(job)
        self.jobs[name] = job
        if not self.probing:
            return job
        spec = job.spec
        argv = self.machine(node).argv([*self.entry(job), "/usr/bin/python3", "-I", str(PROBER)], None, None)
        addresses = [spec.ipv4, *([spec.ipv6] if spec.ipv6 else [])]
        sealed_job = job.status is not None and job.status.decision.sealed
        self._ask_from(name, argv, "eth0", [] if sealed_job else addresses)
        self._askers[name].hear()
        return job

    def entry(self, job: Job) -> list[str]:
        """Put before a command, run on the job's node: it runs in the job's network then."""
        plain = f"/run/netns/lark-{job.node}-{job.spec.port.name.removeprefix('lj')}"
        script = f'ns={plain}; [ -e {plain}-sealed ] && ns={plain}-sealed; exec nsenter --net="$ns" "$@"'
        return ["sh", "-c", script, "sh"]

    def start_job(self, node: str = "wn1", ad: Mapping[str, Any] | None = None, name: str | None = None) -> Job:
        """A job that runs. Raises JobHeld when Lark refuses it."""
        job = self.begin_job(node, ad, name)
        self.run_job(job)
        return job

    def run_job(self, job: Job) -> None:
        """Its input is there; its own process starts."""
        job.run()
        self._refresh(job)
        if not self.probing:
            return
        where = self.machine(job.node).need("readlink", f"/proc/{job.process}/ns/net").strip()
        prober = os.readlink(f"/proc/{self._inner(self._askers[job.name])}/ns/net")
        if where != prober:
            raise SiteError(f"{job.name} runs in {where}, its prober in {prober}: the agent gave it another network")

    def stage_out(self, job: Job) -> None:
        """Its process has ended; its output would go home now. Returns when that phase is in force."""
        job.stage_out()

        def told() -> bool:
            found = [one.spec.phase for one in self.attempts() if one.spec.port == job.spec.port]
            return found == [Phase.STAGE_OUT]

        wait_until(f"{job.name} is in stage-out", told, 20, 0.05)
        self._refresh(job)

    def end_job(self, job: Job) -> None:
        """Its starter ends; returns when the controller has confirmed that nothing of it is left."""
        spec = job.spec
        asker = self._askers.pop(job.name, None)
        job.end()
        wait_until(f"{job.name} is gone", lambda: all(a.spec.port != spec.port for a in self.attempts()), 20, 0.05)
        if asker is not None:
            asker.stop()
        del self.jobs[job.name]

    def _refresh(self, job: Job) -> None:
        slot = f"~{job.slot}~{job.pid}~"
        found = [one for one in self.attempts() if one.spec.node == job.node and slot in one.id]
        if len(found) != 1:
            raise SiteError(f"the controller has {len(found)} attempts of {job.name}")
        job.status = found[0]

    # -- probing ---------------------------------------------------------------------------------------------------

    def _ask_from(self, name: str, argv: Sequence[str], device: str, addresses: Sequence[str]) -> None:
        process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, start_new_session=True
        )
        asker = self._askers[name] = _Asker(name, process)
        assert self._policy is not None
        asker.tell(do="serve", device=device, addresses=list(addresses), ports=ports_of(self._policy))

    def _inner(self, asker: _Asker) -> int:
        """Pid, as seen from here, of a prober: the innermost child of what entered its machine."""
        pid = asker.process.pid
        while True:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
            if not children:
                return pid
            pid = int(children[0])

    def _hear_all(self, askers: Iterable[_Asker]) -> dict[str, dict[str, Any]]:
        return {asker.name: asker.hear() for asker in askers}

    def ends(self) -> list[End]:
        """Everybody who can be asked and can ask: jobs, servers, desks, the world, the worker nodes themselves."""
        found = []
        for job in self.jobs.values():
            assert job.status is not None
            spec = job.spec
            addresses: list[Address] = [ipaddress.ip_address(spec.ipv4)]
            addresses += [ipaddress.ip_address(spec.ipv6)] if spec.ipv6 else []
            mac = int(spec.mac.replace(":", ""), 16)
            found.append(End(job.name, tuple(addresses), job.status.id, mac, job.node))
        found += [End(place.name, place.addresses) for place in layout.PLACES]
        return found + [End(place.name, place.addresses, node=place.name) for place in layout.HOSTS.values()]

    def matrix(self, ports: Sequence[str] | None = None, seconds: float = SECONDS) -> Matrix:
        """Everybody asks everybody, over IPv4 and IPv6. `ports`: as in a policy; by default `matrix.ports_of`."""
        assert self._policy is not None
        asked = [check_port(port) for port in ports] if ports is not None else ports_of(self._policy)
        everybody = self.ends()
        return self._measure([(a, b, b.addresses, port) for a, b in pairs(everybody) for port in asked], seconds)

    def reach(self, source: Job | str, target: Job | str, port: str) -> bool:
        """Whether real packets from `source` get an answer at a port of `target`: a job, a machine, a service of the
        policy or an address. All addresses of the target are asked. Raises SiteError when they disagree, or when what
        was measured is not what the policy means."""
        matrix = self.ask(source, target, port)
        if matrix.differences:
            raise SiteError("measured is not what the policy means:\n" + "\n".join(matrix.differences))
        answered = {cell.measured.answered for cell in matrix.cells}
        if len(answered) != 1:
            raise SiteError(f"{target} answers at some of its addresses only; ask for one of them")
        return answered.pop()

    def ask(self, source: Job | str, target: Job | str, port: str, seconds: float = SECONDS) -> Matrix:
        """As `reach`, with everything that was measured and expected."""
        everybody = {end.name: end for end in self.ends()}
        name = source.name if isinstance(source, Job) else source
        if name not in everybody:
            raise SiteError(f"nobody here is called {name!r}; there are {', '.join(everybody)}")
        goals = self._goals(target.name if isinstance(target, Job) else target, everybody)
        number = check_port(port)
        return self._measure([(everybody[name], end, addresses, number) for end, addresses in goals], seconds)

    def arrives(self, source: str, origin: str, target: str, address: str, port: str, seconds: float = SECONDS) -> bool:
        """Whether packets that a machine or job sends from an address, be it its own or not, arrive at another one's.
        No word about what they should do."""
        asker, own = self._askers[source], self._askers[source].next_own()
        protocol, _, number = check_port(port).partition("/")
        asker.tell(do="probe", probes=[[0, protocol, origin, address, int(number or 0), own]], seconds=seconds)
        asker.hear(seconds + 60)
        self._askers[target].tell(do="seen")
        keys = {tuple(key[:5]) for key in self._askers[target].hear()["seen"]}
        return (protocol, origin, address, own, int(number or 0)) in keys

    def _goals(self, target: str, everybody: Mapping[str, End]) -> list[tuple[End, tuple[Address, ...]]]:
        assert self._policy is not None
        if target in everybody:
            return [(everybody[target], everybody[target].addresses)]
        service = self._policy.services.get(target)
        if service is not None:
            wanted = service.hosts
        else:
            try:
                wanted = (ipaddress.ip_address(target),)
            except ValueError:
                known = ", ".join([*everybody, *self._policy.services])
                raise SiteError(f"{target!r} is no address, machine, job or service; there are {known}") from None
        found = []
        for end in everybody.values():
            here = tuple(address for address in wanted if address in end.addresses)
            if here:
                found.append((end, here))
        if sum(len(here) for _, here in found) != len(wanted) or not wanted:
            raise SiteError(f"{target}: not every address of it is a machine of the campus")
        return found

    def _measure(self, wanted: Sequence[tuple[End, End, tuple[Address, ...], str]], seconds: float) -> Matrix:
        probes = []
        for source, target, addresses, port in wanted:
            for address in addresses:
                origin = source.first(address.version)
                if origin is not None:
                    own = self._askers[source.name].next_own()
                    probes.append(Probe(source, target, origin, address, port, own))
        if not probes:
            raise SiteError("there is nothing to ask: no addresses of one family on both sides")
        began = time.monotonic()
        world = self.world()
        known = layout.geography()
        for asker in self._askers.values():
            asker.tell(do="seen")  # what came before is of no interest
        self._hear_all(self._askers.values())
        answered = self._probe(probes, range(len(probes)), seconds)
        late = [n for n, probe in enumerate(probes) if n not in answered and expect(world, probe, known).answered]
        if late:
            # The same question again, in other packets, with more patience: what is not answered now, is not.
            for number in late:
                asker = self._askers[probes[number].source.name]
                probes[number] = replace(probes[number], own=asker.next_own())
            answered |= self._probe(probes, late, PATIENCE)
        seen: dict[str, dict[tuple[str, str, str, int, int], int]] = {}
        for asker in self._askers.values():
            asker.tell(do="seen")
        for name, told in self._hear_all(self._askers.values()).items():
            seen[name] = {(k[0], k[1], k[2], k[3], k[4]): k[5] for k in told["seen"]}
        return compare(world, known, probes, answered, seen, time.monotonic() - began)

    def _probe(self, probes: Sequence[Probe], which: Iterable[int], seconds: float) -> set[int]:
        by_source: dict[str, list[list[Any]]] = {}
        for number in which:
            one = probes[number]
            words = [number, one.protocol, str(one.origin), str(one.address), one.number, one.own]
            by_source.setdefault(one.source.name, []).append(words)
        for name, asked in by_source.items():
            self._askers[name].tell(do="probe", probes=asked, seconds=seconds)
        return {n for name in by_source for n in self._askers[name].hear(seconds + 60)["answered"]}


def check_carried(site: Site) -> None:
    """Raises SiteError when a site file is not of this campus."""
    numbers = {layout.BRIDGES[name]: int(number, 16) for name, number in layout.DATAPATHS.items()}
    wrong = [f"node {name}" for name in site.nodes if name not in layout.WORKERS]
    wrong += [f"bridge {b.name}" for b in site.bridges.values() if numbers.get(b.name) != b.datapath_id]
    if wrong:
        raise SiteError(
            f"this site is not the campus ({', '.join(wrong)}): start from what `lark-lab site --policy FILE` prints, "
            "and change only what the policy needs"
        )
