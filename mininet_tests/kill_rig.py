"""A node for killing the agent on: the rig of `agent_rig`, the real lark-controller, and a job that must not notice.

The *bystander* is a job that runs all the time and talks over one TCP connection to a server beyond the uplink. After
each kill its connection must still be the same one, and the node must hold what the bystander has, the warm lanes, and
nothing else: `left_over` looks at everything that the agent and the controller make.

Invariants: the agent dies by SIGKILL at a named step (`ovs_agent.steps`), and by nothing else; a step that was not
reached is an error, so no case can pass because nothing happened.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mininet_tests.agent_rig import JOB_UID, LIBEXEC, Rig, Starter, lane_number
from mininet_tests.chaos.churn import Http
from mininet_tests.chaos.inside import Inside
from mininet_tests.site.lark import ENVIRONMENT, REPOSITORY, python_command
from mininet_tests.site.namespaces import SiteError, wait_until
from ovs_agent.steps import Step
from ryu_apps.rest.auth import TokenRole, new_token

API, OPENFLOW = 8080, 6653
SERVER, SERVER_PORT = "10.77.0.5", 7000
WARM = 2
LEASE = 30
SITE = """\
site: kill
network: {ipv4: 10.77.0.0/16, gateway-ipv4: 10.77.0.1, ipv6: "fd00:77::/48", gateway-ipv6: "fd00:77::fe", mtu: 1500}
infrastructure: [192.0.2.0/24]
nodes:
  lkag: {bridge: br-lark, ipv4: 10.77.1.0/28, ipv6: "fd00:77:0:1::/96"}
bridges:
  br-lark: {datapath-id: "00000000000000a1", roles: [worker], ports: {uplink: [up0]}}
"""
POLICY = """\
mode: enforce
attributes:
  LarkNetwork: {type: enum, values: [none, default], default: default}
groups:
  sealed: 'LarkNetwork =?= "none"'
seal: [sealed]
defaults: {egress: allow, ingress: deny, between-jobs: deny}
"""
SERVE = """
import socket, sys, threading
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
def serve(connection):
    with connection:
        while data := connection.recv(1000):
            connection.sendall(data)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""
TALK = """
import json, os, socket, sys, time
place = sys.argv[3]
talk = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
count, longest = 0, 0.0
while True:
    began = time.monotonic()
    talk.sendall(b"%d" % count)
    if talk.recv(1000) != b"%d" % count:
        sys.exit("the connection broke")
    count += 1
    longest = max(longest, time.monotonic() - began)
    with open(place + ".new", "w") as f:
        json.dump({"count": count, "longest": longest, "port": talk.getsockname()[1]}, f)
    os.rename(place + ".new", place)
    time.sleep(0.05)
"""
NO_NEW_PRIVS = ("setpriv", "--no-new-privs", "--")


@dataclass(frozen=True, slots=True)
class Said:
    """What the bystander's connection has carried: round trips, the longest of them in seconds, its own port."""

    count: int
    longest: float
    port: int


@dataclass(slots=True)
class KillRig(Rig):
    """`attach` (`lark-attach`): how jobs get into their networks on this node."""

    sent: list[str] = field(default_factory=lambda: ["LarkGroup", "LarkNetwork"])
    attach: str = "capability"
    controller_source: Path = REPOSITORY
    bystander: Starter | None = None
    bystander_spec: dict[str, Any] = field(default_factory=dict)
    bystander_pid: int = 0
    kept: int = 0
    """Lanes at the most that ended jobs may have left unused for the next of their user."""
    _inside: Inside | None = None
    _viewer: Http | None = None
    _rules: str = ""

    @classmethod
    def of(cls, attach: str) -> KillRig:
        rig = cls.build(keep_unused=True)
        assert isinstance(rig, KillRig)
        try:
            rig._finish(attach)
        except BaseException:
            rig.destroy()
            raise
        return rig

    def _finish(self, attach: str) -> None:
        machine = self.machine
        for line in (
            "ip netns add far",
            "ip link set up1 netns far",
            f"ip -n far addr add {SERVER}/16 dev up1",
            "ip -n far link set up1 up",
            "ip netns exec far ethtool -K up1 tx off",
            "install -d -m 777 /run/bystander",
        ):
            machine.need(*line.split())
        server = ["ip", "netns", "exec", "far", "/usr/bin/python3", "-c", SERVE, SERVER, str(SERVER_PORT)]
        machine.spawn("server", server)
        if attach != self.attach:
            self.attach = attach
            words = python_command("condor_bridge.native_install", "--libexec", LIBEXEC, "--attach", attach)
            machine.run(words, env=ENVIRONMENT, timeout=60).need()
            with (self.home / "agent.yaml").open("a") as f:
                f.write("fallback: {siblings-hidden: true}\n")
            self.stop_agent()
            self.start_agent()
        self._rules = self._nft()
        self.bystander = self.starter()
        said = self.bystander.begin()
        assert "HookStatusCode" not in said.out, said.text
        self.bystander_pid = self.job(
            self.bystander, "/usr/bin/python3", "-c", TALK, SERVER, str(SERVER_PORT), "/run/bystander/said"
        )
        self.bystander_spec = self.attempt_of(self.bystander)
        wait_until("the bystander talks", lambda: self.machine.run(["test", "-e", "/run/bystander/said"]).code == 0, 10)
        bystander = self.bystander
        wait_until("the bystander runs", lambda: self.attempt_of(bystander)["phase"] == "run", 10)
        self.bystander_spec = self.attempt_of(self.bystander)

    def destroy(self) -> None:
        if self._inside is not None:
            self._inside.close()
        Rig.destroy(self)  # (`super` does not find itself in a class with slots)

    # -- the parts ------------------------------------------------------------------------------------------------

    def start_controller(self) -> None:
        home = self.home
        if not (home / "site.yaml").exists():
            with (home / "etc" / "hosts").open("a") as f:
                f.write("127.0.0.1 lkag\n")  # HTCondor's library asks for it, again and again
            (home / "site.yaml").write_text(SITE)
            (home / "policy.yaml").write_text(POLICY)
            (home / "controller.yaml").write_text(
                "site: site.yaml\npolicy: policy.yaml\nstate-dir: controller\ntokens: tokens.yaml\ndeadline: 5\n"
                f'lease: {LEASE}\nopenflow: {{listen: "127.0.0.1:{OPENFLOW}"}}\napi: {{listen: "127.0.0.1:{API}"}}\n'
            )
            (home / "agent.token").write_text(new_token(home / "tokens.yaml", TokenRole.AGENT, "lkag") + "\n")
            self._viewer = Http([API], new_token(home / "tokens.yaml", TokenRole.VIEWER, None))
            self._inside = Inside(self.machine)
            self.ovs.vsctl(
                *("set-controller", "br-lark", f"tcp:127.0.0.1:{OPENFLOW}", "--"),
                *("set", "controller", "br-lark", "max_backoff=1000"),
            )
        log = home / "log" / "controller.log"
        if log.exists():
            log.rename(log.with_name(f"controller.{len(list(log.parent.glob('controller*')))}.log"))
        argv = python_command("ryu_apps.cli", "run", "--config", str(home / "controller.yaml"))
        environment = ENVIRONMENT | {"PYTHONPATH": str(self.controller_source)}
        self.controller = self.machine.spawn("controller", argv, env=environment)
        self.controller.wait_for_line("ready:", 30)
        wait_until("the bridge is in line", self._in_line, 20)

    def _in_line(self) -> bool:
        (bridge,) = self.ask("/v1/bridges")["bridges"]
        return bool(bridge["connected"] and bridge["converged"])

    def ask(self, path: str) -> Any:
        """A GET as a viewer."""
        inside, viewer = self._inside, self._viewer
        assert inside is not None
        assert viewer is not None
        for _ in range(2):  # the connection may be one to a controller that is no more
            try:
                status, answer = inside.call(lambda: viewer.call("GET", path))
            except (OSError, http.client.HTTPException):
                continue
            if status != 200:
                raise SiteError(f"GET {path}: {status} {answer}")
            return answer
        raise SiteError(f"GET {path}: no answer")

    def statuses(self) -> dict[str, dict[str, Any]]:
        return {one["id"]: one for one in self.ask("/v1/attempts")["attempts"]}

    def attempts(self) -> dict[str, dict[str, Any]]:
        return {name: one["spec"] for name, one in self.statuses().items()}

    def job(self, starter: Starter, *argv: str) -> int:
        """A job as HTCondor starts it on this node: under no_new_privs where file capabilities are of no use."""
        if self.attach == "userns":
            return starter.spawn(*NO_NEW_PRIVS, f"{LIBEXEC}/lark-job-wrapper", *argv, uid=JOB_UID)
        return starter.job(*argv)

    # -- the kill -------------------------------------------------------------------------------------------------

    def doom(self, step: Step, nth: int = 1) -> None:
        """The agent dies when it reaches the step for the nth time from now on."""
        new = self.home / "die.new"
        new.write_text(json.dumps({"step": step.name, "nth": nth, "order": time.monotonic_ns()}))
        new.rename(self.home / "die")

    def runs(self) -> bool:
        assert self.agent is not None
        return self.agent.running()

    def wait_for_death(self, timeout: float = 20) -> None:
        agent = self.agent
        assert agent is not None
        wait_until("the agent dies at the step", lambda: not agent.running(), timeout, 0.02)
        code = agent.entry.wait()
        assert code in (-signal.SIGKILL, 128 + signal.SIGKILL), f"exit {code}: {agent.tail()}"
        assert not (self.home / "die").exists(), "it died of something else"

    # -- the judge ------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Wait until only the bystander is left, and the pool is warm."""
        left: list[str] = []

        def nothing() -> bool:
            left[:] = self.left_over()
            return not left

        self.wait_for_pool()
        try:
            wait_until("only the bystander is left", nothing, 25, 0.2)
        except SiteError:
            raise AssertionError("left over: " + "; ".join(left)) from None

    def left_over(self) -> list[str]:
        """What is there and should not be, or should be there and is not, in words."""
        said: list[str] = []
        mine = self.bystander_spec["port"]["name"] if self.bystander_spec else None

        def differ(what: str, found: set[str], wanted: set[str]) -> None:
            said.extend(f"{what} {name}" for name in sorted(found - wanted))
            said.extend(f"lost {what} {name}" for name in sorted(wanted - found))

        ports = self.job_ports()
        numbers = {port.removeprefix("lj") for port in ports}
        names = {f"lark-lkag-{number}" for number in numbers}
        if mine and self.attach != "capability":
            names.add(f"lark-lkag-{mine.removeprefix('lj')}-attached")
        if mine and mine not in ports:
            said.append(f"lost the bystander's port {mine}")
        if not 0 <= len(ports) - WARM - (mine is not None) <= self.kept:
            said.append(f"{len(ports)} ports: {sorted(ports)}")
        differ("device", self.job_devices(), ports)
        files = set(self.machine.need("ls", "-A", "/run/netns").split()) - {"far"}
        differ("name under /run/netns", files, names)
        mounted = {
            line.split()[1] for line in self.machine.need("cat", "/proc/mounts").splitlines() if " nsfs " in line
        }
        differ("name without a namespace", files - {Path(m).name for m in mounted if "/netns/" in m}, set())
        differ("record", {r["port"] for r in self.records()}, {mine} if mine else set())
        hidden = [*(self.home / "state").glob(".*.new"), *(self.home / "state/attempts").glob(".*.new")]
        differ("file", {path.name for path in hidden}, set())
        differ("attempt", {spec["port"]["name"] for spec in self.attempts().values()}, {mine} if mine else set())
        flows = {port for flow in self.ovs.flows("br-lark") for port in re.findall(r"0x4c07.*in_port=(\d+)", flow)}
        differ("flows of port", flows, {str(self.bystander_spec["port"]["ofport"])} if mine else set())
        if self.source == REPOSITORY:  # older agents left limits behind
            differ("conntrack limit of zone", self._limited(), {str(1000 + int(number)) for number in numbers})
        differ("network of a process", self._networks(), {mine} if mine else set())
        if self._rules and self._nft() != self._rules:
            said.append("other nftables rules")
        return said

    def _limited(self) -> set[str]:
        return set(
            re.findall(r"zone=(\d+)", self.machine.need("ovs-appctl", "dpctl/ct-get-limits", "netdev@ovs-netdev"))
        )

    def _nft(self) -> str:
        text = self.machine.need("nft", "-s", "list", "ruleset")
        return re.sub(r"packets \d+ bytes \d+", "", text)

    def _networks(self) -> set[str]:
        """Networks of lanes that processes of job users are in, by the bystander's port or by inode."""
        known = {
            os.stat(f"/proc/{self.machine.init_pid}/ns/net").st_ino,
            int(self.machine.need("stat", "-Lc", "%i", "/run/netns/far")),
        }
        mine = 0
        if self.bystander_spec:
            number = lane_number(self.bystander_spec)
            name = f"lark-lkag-{number}" + ("" if self.attach == "capability" else "-attached")
            mine = int(self.machine.need("stat", "-Lc", "%i", f"/run/netns/{name}"))
        found = set()
        for pid in self.machine.outer_pids():
            try:
                inode = os.stat(f"/proc/{pid}/ns/net").st_ino
            except OSError:
                continue  # it ended while we looked
            if inode not in known:
                found.add(self.bystander_spec["port"]["name"] if inode == mine else f"{inode} (pid {pid})")
        return found

    def said(self) -> Said:
        return Said(**json.loads(self.machine.need("cat", "/run/bystander/said")))

    def bystander_is_well(self, before: Said) -> Said:
        """The same job, the same attempt, the same connection, which goes on."""
        assert self.bystander is not None
        now = self.said()
        wait_until("the bystander's connection goes on", lambda: self.said().count > now.count + 2, 10)
        after = self.said()
        assert after.port == before.port
        assert self.bystander.wait(self.bystander_pid, timeout=0) is None, "the bystander has ended"
        assert self.attempt_of(self.bystander) == self.bystander_spec
        return after

    def sent_and_counted(self) -> tuple[int, int]:
        """TCP segments that the bystander sent, as its own kernel counts them; packets that the controller counted."""
        assert self.bystander is not None
        number = lane_number(self.bystander_spec)
        name = f"lark-lkag-{number}" + ("" if self.attach == "capability" else "-attached")
        text = self.machine.need("ip", "netns", "exec", name, "cat", "/proc/net/dev")
        sent = int(next(line for line in text.splitlines() if "eth0:" in line).split(":")[1].split()[9])
        (mine,) = (name for name in self.attempts() if f"~{self.bystander.slot}~{self.bystander.pid}~" in name)
        return sent, int(self.ask(f"/v1/attempts/{mine}")["counters"]["admitted_packets"])

    # -- strangers ------------------------------------------------------------------------------------------------

    def add_strangers(self) -> None:
        """What belongs to no attempt: a namespace with a process in it, a device, a port."""
        machine = self.machine
        machine.need("ip", "netns", "add", "lark-lkag-13")
        machine.spawn("stranger", ["ip", "netns", "exec", "lark-lkag-13", "sleep", "3131"])
        machine.need("ip", "link", "add", "lj13", "type", "veth", "peer", "name", "eth0", "netns", "lark-lkag-13")
        self.ovs.vsctl("add-port", "br-lark", "lj13")
        machine.need("touch", "/run/netns/lark-lkag-14")
        machine.need("touch", str(self.home / "state/attempts/.half.json.1.new"))
