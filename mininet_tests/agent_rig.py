"""A worker node for tests of the agent: real Open vSwitch, real namespaces, the real native helpers and the real agent,
with the stand-ins of `agent_fakes` for HTCondor's daemons and for the controller.

Invariant: everything lives on one simulated machine, which goes with the test process, however that ends.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mininet_tests.site.lark import ENVIRONMENT, REPOSITORY, python_command, restricted
from mininet_tests.site.namespaces import Daemon, Machine, wait_until
from mininet_tests.site.openvswitch import OpenVSwitch

FAKES = "/run/condor/agent_fakes.py"
"""A copy inside the machine: other users read it, and a checkout may lie in a home that only root may enter."""
LIBEXEC = "/run/lark/libexec"
SBIN = "/run/condor/sbin"
STARTD_ADDRESS = "<127.0.0.1:9618?addrs=127.0.0.1-9618&noUDP&sock=startd_7_ab12>"
JOB_UID = 21001
OTHER_UID = 21002
LEASE = 6
GRANT: dict[str, object] = {
    "node": "lkag",
    "ipv4_range": "10.77.1.0/28",
    "ipv4_prefix_length": 16,
    "ipv4_gateway": "10.77.0.1",
    "ipv6_prefix": "fd00:77::/64",
    "ipv6_prefix_length": 64,
    "ipv6_gateway": "fd00:77::fe",
    "mtu": 1500,
    "lease": LEASE,
    "attributes": ["LarkGroup"],
}


@dataclass(slots=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


@dataclass(slots=True)
class Starter:
    """A condor_starter of the rig, real in everything the agent looks at."""

    rig: Rig
    name: str
    pid: int
    slot: str

    def ask(self, **command: Any) -> dict[str, Any]:
        return self.rig.ask_startd(to=self.name, **command)

    def spawn(self, *argv: str, uid: int = JOB_UID, exe: str | None = None) -> int:
        return int(self.ask(do="spawn", argv=list(argv), uid=uid, exe=exe)["pid"])

    def wait(self, pid: int, timeout: float = 20) -> Result | None:
        """None: it still runs."""
        said = self.ask(do="wait", pid=pid, timeout=timeout)
        return None if said.get("running") else Result(said["code"], said["out"], said["err"])

    def run(self, *argv: str, uid: int = JOB_UID, exe: str | None = None) -> Result:
        done = self.wait(self.spawn(*argv, uid=uid, exe=exe))
        assert done is not None, f"{argv} has not ended"
        return done

    def begin(self, uid: int = JOB_UID) -> Result:
        return self.run("lark-hook-prepare", exe=f"{LIBEXEC}/lark-hook-prepare", uid=uid)

    def job(self, *argv: str, uid: int = JOB_UID) -> int:
        return self.spawn("lark-job-wrapper", *argv, exe=f"{LIBEXEC}/lark-job-wrapper", uid=uid)

    def plugin(self, forked: bool, *argv: str) -> Result:
        words = [f"{LIBEXEC}/plugins/probe", *argv]
        if forked:
            said = self.ask(do="forked", argv=words, uid=JOB_UID)
            return Result(said["code"], said["out"], said["err"])
        return self.run(*words)

    def stage_out(self) -> Result:
        """The exit hook of an older configuration; without it, stage-out comes by itself soon after the job's end. It
        prints nothing; what it was told is in the agent's log and the controller's requests."""
        return self.run("lark-hook-exit", exe=f"{LIBEXEC}/lark-hook-exit")

    def kill(self) -> None:
        self.rig.ask_startd(do="kill", name=self.name)


@dataclass(slots=True)
class Rig:
    machine: Machine
    ovs: OpenVSwitch
    startd: subprocess.Popen[str] | None = None
    agent: Daemon | None = None
    controller: Daemon | None = None
    starters: int = 0
    behaviour: dict[str, Any] = field(default_factory=lambda: {"grant": GRANT})
    slots: dict[str, Any] = field(default_factory=dict)
    sent: list[str] = field(default_factory=lambda: ["LarkGroup"])
    """STARTD_JOB_ATTRS."""
    source: Path = REPOSITORY
    """The checkout that the agent runs from."""
    keep_unused: bool = False
    """False: every lane goes with its attempt, which most tests wait for."""

    @classmethod
    def build(cls, **how: Any) -> Rig:
        root = Path(tempfile.mkdtemp(prefix="lkag-"))
        root.chmod(0o755)
        shutil.copytree("/etc", root / "etc", symlinks=True, ignore_dangling_symlinks=True)
        machine = Machine("lkag", root)
        machine.start()
        rig = cls(machine, OpenVSwitch(machine), **how)
        try:
            rig._fill()
        except BaseException:
            rig.destroy()
            raise
        return rig

    @property
    def home(self) -> Path:
        return self.machine.root

    def _fill(self) -> None:
        machine = self.machine
        machine.need("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
        for device in ("up0", "up1"):
            machine.need("ip", "link", "set", device, "up")
            machine.need("ethtool", "-K", device, "tx", "off")
        self.ovs.start()
        machine.need("mkdir", "-p", SBIN, LIBEXEC)
        for name in ("condor_startd", "condor_starter"):
            machine.need("cp", str(Path("/usr/bin/python3").resolve()), f"{SBIN}/{name}")
        machine.need("install", "--mode=644", str(Path(__file__).with_name("agent_fakes.py")), FAKES)
        words = python_command("condor_bridge.native_install", "--libexec", LIBEXEC, "--socket", "/run/lark/agent.sock")
        machine.run(words, env=ENVIRONMENT, timeout=60).need()
        machine.need("mkdir", "-p", f"{LIBEXEC}/plugins")
        machine.need("ln", "-sf", "../lark-job", f"{LIBEXEC}/plugins/probe")
        machine.need("sh", "-c", f"echo /usr/bin/readlink > {LIBEXEC}/plugins/probe.real")
        (self.home / "behaviour").write_text(json.dumps(self.behaviour))
        (self.home / "requests").touch()
        token = self.home / "agent.token"
        token.touch(mode=0o600)
        token.write_text("agent-token-of-the-rig\n")
        (self.home / "agent.yaml").write_text(
            "node: lkag\n"
            'controller: {urls: ["http://127.0.0.1:8080"], token-file: agent.token, wait: 2}\n'
            "state-dir: state\n"
            "bridge: {name: br-lark, uplink: up0, datapath-type: netdev}\n"
            f"condor: {{config: /dev/null, sbin: {SBIN}}}\n"
            f"libexec: {LIBEXEC}\n"
            f"pool: {{warm: 2, connections: 1000{'' if self.keep_unused else ', keep-unused: false'}}}\n"
            'guard: {uids: ["21000-21099"], loopback: [tcp/9618]}\n'
        )
        self.write_slots()
        self.lark_agent("prepare-bridge", "--config", str(self.home / "agent.yaml"), "--datapath-id", "a1").need()
        self.startd = self.new_startd()
        self.start_controller()
        self.start_agent()

    def new_startd(self, exe: str = f"{SBIN}/condor_startd", uid: int = 0) -> subprocess.Popen[str]:
        """`uid`: the real uid; the effective one is 0 in any case, so that it can start a starter as root."""
        argv = self.machine.argv(["setpriv", f"--ruid={uid}", "--euid=0", exe], None, None)
        return subprocess.Popen(
            [*argv, FAKES, "startd"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def destroy(self) -> None:
        if self.startd is not None and self.startd.stdin is not None and self.startd.stdout is not None:
            for stream in (self.startd.stdin, self.startd.stdout):
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self.machine.stop()
        if self.startd is not None:
            self.startd.wait(5)
        shutil.rmtree(self.home, ignore_errors=True)

    # -- the parts ------------------------------------------------------------------------------------------------

    def lark_agent(self, *argv: str) -> Any:
        return self.machine.run(python_command("ovs_agent.cli", *argv), env=ENVIRONMENT)

    def start_agent(self) -> None:
        self.launch_agent()
        assert self.agent is not None
        self.agent.wait_for_line("ready:", 20)
        self.wait_for_pool()

    def launch_agent(self) -> None:
        """Start it, and wait for nothing."""
        argv = [
            *restricted(),
            *python_command("mininet_tests.agent_fakes", "agent", str(self.home / "slots"), "--"),
            "run",
        ]
        log = self.home / "log" / "agent.log"
        if log.exists():
            log.rename(log.with_name(f"agent.{len(list(log.parent.glob('agent*')))}.log"))
        argv += ["--config", str(self.home / "agent.yaml")]
        self.agent = self.machine.spawn("agent", argv, env=ENVIRONMENT | {"PYTHONPATH": str(self.source)})

    def wait_for_pool(self) -> None:
        ping = [f"{LIBEXEC}/lark-ping"]
        wait_until("the pool is warm", lambda: "HasLarkNetwork = true" in self.machine.run(ping).out, 15)

    def kill_agent(self) -> None:
        assert self.agent is not None
        self.agent.send(signal.SIGKILL)
        self.agent.entry.wait(5)

    def stop_agent(self) -> int:
        assert self.agent is not None
        return self.agent.stop()

    def start_controller(self) -> None:
        argv = python_command("mininet_tests.agent_fakes", "controller", str(self.home))
        log = self.home / "log" / "controller.log"
        log.unlink(missing_ok=True)
        self.controller = self.machine.spawn("controller", argv, env=ENVIRONMENT)
        self.controller.wait_for_line("ready", 15)

    def stop_controller(self) -> None:
        assert self.controller is not None
        self.controller.stop(number=signal.SIGKILL)

    def behave(self, **how: Any) -> None:
        self.behaviour = {"grant": GRANT} | how
        new = self.home / "behaviour.new"
        new.write_text(json.dumps(self.behaviour))
        new.rename(self.home / "behaviour")

    def write_slots(self) -> None:
        new = self.home / "slots.new"
        new.write_text(json.dumps({"address": STARTD_ADDRESS, "attributes": self.sent, "slots": self.slots}))
        new.rename(self.home / "slots")

    def ask_startd(self, **command: Any) -> dict[str, Any]:
        assert self.startd is not None
        assert self.startd.stdin is not None
        assert self.startd.stdout is not None
        self.startd.stdin.write(json.dumps(command) + "\n")
        self.startd.stdin.flush()
        line = self.startd.stdout.readline()
        assert line, "the startd of the rig has ended"
        return dict(json.loads(line))

    def starter(
        self,
        *,
        exe: str = f"{SBIN}/condor_starter",
        uid: int = 0,
        ad: dict[str, Any] | None = None,
        parent: str = STARTD_ADDRESS,
        **entry: Any,
    ) -> Starter:
        """A new starter on a slot of its own, whose ad the startd knows."""
        self.starters += 1
        slot = f"slot1_{self.starters}"
        meta = {"JobId": f"{self.starters}.0", "GlobalJobId": f"lkag#{self.starters}.0", "JobStart": int(time.time())}
        self.slots[f"{slot}@lkag"] = {
            "meta": meta,
            "ad": {"LarkGroup": "physics"} if ad is None else ad,
            "expressions": [],
            "slot": {"Name": f"{slot}@lkag"},
        } | entry
        self.write_slots()
        name = f"s{self.starters}"
        said = self.ask_startd(do="starter", name=name, exe=exe, slot=slot, uid=uid, parent=parent)
        return Starter(self, name, said["pid"], slot)

    # -- what is there --------------------------------------------------------------------------------------------

    def requests(self, method: str, text: str = "") -> list[dict[str, Any]]:
        written = (self.home / "requests").read_text()
        # A line without its end is being written.
        found = [json.loads(line) for line in written.splitlines(keepends=True) if line.endswith("\n")]
        return [r for r in found if r["method"] == method and text in r["path"]]

    def attempts(self) -> dict[str, dict[str, Any]]:
        """What the controller knows, by attempt id."""
        file = self.home / "attempts"
        return {k: json.loads(v) for k, v in json.loads(file.read_text()).items()} if file.exists() else {}

    def attempt_of(self, starter: Starter) -> dict[str, Any]:
        found = [spec for name, spec in self.attempts().items() if f"~{starter.slot}~{starter.pid}~" in name]
        assert len(found) == 1, f"{starter.slot} has {len(found)} attempts"
        return found[0]

    def in_phase(self, starter: Starter, phase: str) -> None:
        """Wait until the controller has been told. (Of stage-out it is told soon, unless a plugin comes first.)"""
        wait_until(f"phase {phase}", lambda: self.attempt_of(starter)["phase"] == phase, 10)

    def records(self) -> list[dict[str, Any]]:
        found = []
        for path in (self.home / "state" / "attempts").glob("*.json"):
            try:
                found.append(json.loads(path.read_text()))
            except FileNotFoundError:
                continue
        return found

    def log(self) -> str:
        return (self.home / "log" / "agent.log").read_text()

    def namespaces(self) -> set[str]:
        return {line.split()[0] for line in self.machine.need("ip", "netns", "list").splitlines() if line.strip()}

    def job_devices(self) -> set[str]:
        lines = self.machine.need("ip", "-br", "link").splitlines()
        return {line.split("@")[0] for line in lines if line.startswith("lj")}

    def job_ports(self) -> set[str]:
        return {p for p in self.ovs.ports("br-lark") if p.startswith("lj")}

    def gone(self, port: str, number: int, timeout: float = 2.0) -> None:
        """Wait until nothing of a lane is left on the node."""

        def probe() -> bool:
            left = {f"lark-lkag-{number}", f"lark-lkag-{number}-sealed"} & self.namespaces()
            return port not in self.job_devices() | self.job_ports() and not left

        wait_until(f"{port} is gone", probe, timeout)

    def settle(self) -> None:
        """Wait until no attempt is left, on the node and at the controller."""
        wait_until("no attempt is left", lambda: not self.records() and not self.attempts(), 20)

    def inside(self, number: int, *argv: str) -> Any:
        return self.machine.run(["ip", "netns", "exec", f"lark-lkag-{number}", *argv])


def lane_number(spec: dict[str, Any]) -> int:
    return int(str(spec["port"]["name"]).removeprefix("lj"))


def words(result: Result) -> Sequence[str]:
    return result.text.split()
