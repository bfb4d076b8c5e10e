"""Lark's own daemons on the site: lark-controller on the management machine, lark-agent on the worker node.

Invariant: both run through their public commands with configuration files, exactly as an administrator would run them;
nothing is imported from them.
"""

from __future__ import annotations

import json
import re
import shlex
import signal
from dataclasses import dataclass, field
from pathlib import Path

from mininet_tests.site.namespaces import Daemon, Machine, Output, SiteError, this_python, wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
API = "192.0.2.1:8080"
OPENFLOW = "192.0.2.1:6653"
READY = "ready:"


def python_command(module: str, *argv: str) -> list[str]:
    """A command of ours. `-P`: the current directory is not searched for modules."""
    return [this_python(), "-P", "-m", module, *argv]


UNIT = REPOSITORY / "systemd" / "lark-agent.service"


def restricted() -> list[str]:
    """What the agent's systemd unit takes away from it: prefixed to its command, so that tests of it try the unit."""
    text = UNIT.read_text(encoding="utf-8")
    (kept,) = re.findall(r"^CapabilityBoundingSet=(.+)$", text, re.MULTILINE)
    words = ["setpriv", "--inh-caps=-all"]
    words.append("--bounding-set=-all," + ",".join(f"+{name.lower().removeprefix('cap_')}" for name in kept.split()))
    return [*words, *(["--no-new-privs"] if "\nNoNewPrivileges=yes\n" in text else []), "--"]


ENVIRONMENT = {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def compiled(directory: Path) -> dict[str, str]:
    """The environment of a program whose start is measured: its modules are compiled once, as those of an installed
    one are, and kept in a directory of its own."""
    return ENVIRONMENT | {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(directory)}


@dataclass(slots=True)
class Controller:
    """lark-controller. `site` and `policy` are texts of the two files an administrator writes."""

    machine: Machine
    engine: str
    daemon: Daemon | None = None
    ready_line: str = ""

    @property
    def home(self) -> Path:
        return self.machine.root / "lark"

    def write(self, site: str, policy: str) -> None:
        self.home.mkdir(exist_ok=True)
        (self.home / "site.yaml").write_text(site, encoding="utf-8")
        (self.home / "policy.yaml").write_text(policy, encoding="utf-8")
        (self.home / "controller.yaml").write_text(
            "site: site.yaml\npolicy: policy.yaml\nstate-dir: state\n"
            f'openflow: {{listen: "{OPENFLOW}"}}\n'
            f'api: {{listen: "{API}", allow-plaintext: true}}\n'
            "tokens: tokens.yaml\ndeadline: 10\n",
            encoding="utf-8",
        )

    def token(self, role: str, node: str | None = None, bridge: str | None = None) -> str:
        """A new token, made by the controller's own command."""
        argv = ["token", "--tokens", str(self.home / "tokens.yaml"), "--role", role]
        argv += ["--node", node] if node else []
        argv += ["--bridge", bridge] if bridge else []
        said = self.command(*argv).need().out.strip()
        return said.splitlines()[-1].strip()

    def command(self, *argv: str, timeout: float = 30) -> Output:
        return self.machine.run(python_command("ryu_apps.cli", *argv), env=ENVIRONMENT, timeout=timeout)

    def start(self) -> None:
        """Start and wait until it serves. Its log is kept over restarts."""
        argv = ["run", "--config", str(self.home / "controller.yaml"), "--engine", self.engine]
        log = self.machine.root / "log" / "lark-controller.log"
        if log.exists():
            # A restart must not be taken for ready by the line of the run before.
            log.rename(log.with_name(f"lark-controller.{len(list(log.parent.glob('lark-controller.*')))}.log"))
        self.daemon = self.machine.spawn("lark-controller", python_command("ryu_apps.cli", *argv), env=ENVIRONMENT)
        self.ready_line = self.daemon.wait_for_line(READY, 30)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.daemon is None:
            raise SiteError("lark-controller is not running")
        code = self.daemon.stop(number=number)
        self.daemon = None
        return code


@dataclass(slots=True)
class Larkctl:
    """larkctl with a token of its own, run where an administrator would run it."""

    machine: Machine
    token_file: Path

    def argv(self, *argv: str) -> list[str]:
        return python_command("ryu_apps.larkctl", "--url", f"http://{API}", "--token-file", str(self.token_file), *argv)

    def text(self, *argv: str) -> str:
        return self.machine.run(self.argv(*argv), env=ENVIRONMENT).need().out.strip()

    def json(self, *argv: str) -> dict[str, object]:
        return dict(json.loads(self.machine.run([*self.argv(*argv), "--json"], env=ENVIRONMENT).need().out))


@dataclass(slots=True)
class Agent:
    """lark-agent on a worker node."""

    machine: Machine
    node: str
    bridge: str
    uplink: str
    libexec: Path
    condor_sbin: Path
    guarded: range | None
    """Uids of job owners that the guard keeps out of the node's network; None: no guard."""
    pool: tuple[str, ...]
    """Daemons that the guard lets the owners' uids reach: the access point's shared port."""
    wait: int = 8
    daemon: Daemon | None = None
    ready_line: str = ""
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.machine.root / "lark"

    @property
    def config(self) -> Path:
        return self.home / "agent.yaml"

    def write(self, token: str) -> None:
        self.home.mkdir(exist_ok=True)
        secret = self.home / "agent.token"
        secret.touch(mode=0o600)
        secret.write_text(token + "\n", encoding="utf-8")
        guard = ""
        if self.guarded is not None:
            daemons = ", ".join(f'"{daemon}"' for daemon in self.pool)
            guard = f'guard: {{uids: ["{self.guarded[0]}-{self.guarded[-1]}"], pool: [{daemons}]}}\n'
        self.config.write_text(
            f"node: {self.node}\n"
            f'controller: {{urls: ["http://{API}"], token-file: agent.token, allow-plaintext: true, '
            f"wait: {self.wait}}}\n"
            "socket: /run/lark/agent.sock\nstate-dir: state\n"
            f"bridge: {{name: {self.bridge}, uplink: {self.uplink}, "
            'ovsdb: "unix:/run/openvswitch/db.sock", rundir: /run/openvswitch}\n'
            f"condor: {{config: /etc/condor/condor_config, sbin: {self.condor_sbin}}}\n"
            f"libexec: {self.libexec}\n"
            "pool: {warm: 6}\n" + guard,
            encoding="utf-8",
        )

    def command(self, *argv: str, timeout: float = 30) -> Output:
        return self.machine.run(python_command("ovs_agent.cli", *argv), env=ENVIRONMENT, timeout=timeout)

    def start(self) -> None:
        argv = ["run", "--config", str(self.config)]
        words = [*restricted(), *python_command("ovs_agent.cli", *argv)]
        self.daemon = self.machine.spawn("lark-agent", words, env=ENVIRONMENT)
        self.ready_line = self.daemon.wait_for_line(READY, 30)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.daemon is None:
            raise SiteError("lark-agent is not running")
        code = self.daemon.stop(number=number)
        self.daemon = None
        return code

    def lanes(self) -> list[str]:
        """Network namespaces of jobs on this node, as `ip netns` names them."""
        names = [line.split()[0] for line in self.machine.need("ip", "netns", "list").splitlines() if line.strip()]
        return [name for name in names if re.match(rf"lark-{re.escape(self.node)}-\d+$", name)]

    def wait_for_no_attempt(self, larkctl: Larkctl, timeout: float = 15) -> None:
        """Wait until the controller knows no attempt any more."""
        wait_until("no attempt is left", lambda: not larkctl.json("attempts")["attempts"], timeout, 0.25)


def shell(argv: list[str]) -> str:
    """A command line as a person would type it, our interpreter and module as the command they are."""
    text = shlex.join(argv)
    return text.replace(f"{this_python()} -P -m ryu_apps.larkctl", "larkctl")


@dataclass(slots=True)
class BorderAgent:
    """`lark-agent border`, which keeps a border's queues."""

    machine: Machine
    bridge: str
    daemon: Daemon | None = None

    @property
    def config(self) -> Path:
        return self.machine.root / "lark" / "border.yaml"

    def write(self, token: str) -> None:
        self.config.parent.mkdir(exist_ok=True)
        secret = self.config.with_name("border.token")
        secret.touch(mode=0o600)
        secret.write_text(token + "\n", encoding="utf-8")
        self.config.write_text(
            f"bridge: {self.bridge}\nstate-dir: border-state\n"
            f'controller: {{urls: ["http://{API}"], token-file: border.token, allow-plaintext: true}}\n',
            encoding="utf-8",
        )

    def start(self) -> None:
        """Start, and wait until it keeps the queues that were wished last."""
        argv = python_command("ovs_agent.cli", "border", "--config", str(self.config))
        (self.machine.root / "log" / "border.log").unlink(missing_ok=True)
        self.daemon = self.machine.spawn("border", argv, env=ENVIRONMENT)
        self.daemon.wait_for_line("keeping the queues", 30)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.daemon is None:
            raise SiteError("lark-agent border is not running")
        self.daemon.stop(number=number)
        self.daemon = None
