"""Mininet's nodes of the campus, and the topology: what `mn` and `lab.Campus` both build.

Every node has a network, and files under /run, of its own; so each bridge has an Open vSwitch of its own, each worker
node a lark-agent, and the usual paths stay the usual paths. Lark's daemons run by their public commands.

Invariants: nothing is started outside a node; `start` of a node returns when its daemons answer. Nodes of one kind are
started side by side (`batchStartup`), worker nodes last: their agents need controller and wires.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mininet_tests import agent_fakes
from mininet_tests.site.lark import ENVIRONMENT, OPENFLOW, READY, BorderAgent, Controller, python_command
from mininet_tests.site.namespaces import Machine, wait_until
from mininet_tests.site.openvswitch import OpenVSwitch
from mininet_tests.topology import debian, layout
from mininet_tests.topology.jobs import FAKES, LIBEXEC, SBIN, STARTD_ADDRESS
from policies.language import attributes_read, load_policy

debian.provide()

from mininet.cli import CLI  # noqa: E402  # importable only now
from mininet.net import Mininet  # noqa: E402
from mininet.node import Host, Node, Switch  # noqa: E402
from mininet.topo import Topo  # noqa: E402

# It would raise limits of the machine that carries the lab (files, terminals, neighbour tables), and has no need to.
Mininet.inited = True

SOCKET = "/run/lark/agent.sock"
WARM = 4
SERVICE_TIMEOUT = 20


def machine_of(node: Node, root: Path) -> Machine:
    """A Mininet node in the words of the site builder: to run commands and daemons in it."""
    return Machine(node.name, root / node.name, init_pid=node.pid)


def _up(machine: Machine, devices: Sequence[str], lines: Sequence[str]) -> None:
    """Bring a node's devices up, then run `lines`.

    Transmit checksums are completed in software: with a userspace datapath on the way, unfinished ones would be dropped
    while ping still worked. Duplicate address detection would make every IPv6 address wait.
    """
    script = ["set -e", "ip link set lo up"]
    script += [f"echo 0 > /proc/sys/net/ipv6/conf/{which}/accept_dad" for which in ("all", "default")]
    for device in devices:
        script += [f"ethtool -K {device} tx off >/dev/null", f"echo 0 > /proc/sys/net/ipv6/conf/{device}/accept_dad"]
        script += [f"ip link set {device} up"]
    machine.run(["sh", "-c", "\n".join([*script, *lines])]).need()


def _bridge(name: str, devices: Sequence[str]) -> list[str]:
    lines = [f"ip link add {name} type bridge", f"ip link set {name} up"]
    return lines + [f"ip link set {device} master {name}" for device in devices]


def _address(address: str, device: str) -> str:
    return f"ip address add {address} dev {device}" + (" nodad" if ":" in address else "")


class Ours:
    """What all nodes of the campus have: a directory below `root`, and a `/run` of their own."""

    name: str
    params: dict[str, Any]
    privateDirs: list[str]
    pid: int

    @property
    def machine(self) -> Machine:
        root = Path(self.params["root"])
        (root / self.name).mkdir(exist_ok=True)
        return Machine(self.name, root / self.name, init_pid=self.pid)

    def devices(self) -> list[str]:
        return [interface.name for interface in self.intfs.values() if interface.name != "lo"]  # type: ignore[attr-defined]


class Station(Ours, Host):  # type: ignore[misc]
    """A machine with one network card: servers, people's desks, the world."""

    def config(self, **_params: Any) -> dict[str, Any]:
        place = next(one for one in layout.PLACES if one.name == self.name)
        prefixes = self.params["prefixes"]
        lines = [_address(f"{a}/{prefixes[0]}", "eth0") for a in place.ipv4]
        lines += [_address(f"{a}/{prefixes[1]}", "eth0") for a in place.ipv6]
        lines += [f"ip route add default via {place.gateway4}", f"ip -6 route add default via {place.gateway6}"]
        _up(self.machine, self.devices(), lines)
        return {}


class LarkController(Ours, Host):  # type: ignore[misc]
    """The management machine: lark-controller, and the switch of the management network."""

    daemon: Controller | None = None

    def config(self, **_params: Any) -> dict[str, Any]:
        machine = self.machine
        _up(
            machine,
            self.devices(),
            [*_bridge("mgmt", self.devices()), _address(f"{layout.CONTROLLER}/24", "mgmt")],
        )
        self.daemon = Controller(machine, self.params["engine"])
        self.daemon.start()
        return {}

    def terminate(self) -> None:
        if self.daemon is not None and self.daemon.daemon is not None:
            self.daemon.stop()
        Host.terminate(self)


class Batched(Ours, Switch):  # type: ignore[misc]
    """A switch whose kind is started and stopped side by side."""

    def start(self, _controllers: object) -> None:
        """`batchStartup` does it."""

    def bring_up(self) -> None:
        raise NotImplementedError

    def take_down(self) -> None:
        pass

    @classmethod
    def batchStartup(cls, switches: Sequence[Batched]) -> Sequence[Batched]:
        _side_by_side([switch.bring_up for switch in switches])
        return switches

    def stop(self, deleteIntfs: bool = True) -> None:
        self.take_down()
        Switch.stop(self, deleteIntfs)


def _side_by_side(works: Sequence[Callable[[], None]]) -> None:
    with ThreadPoolExecutor(max(1, len(works))) as pool:
        for done in [pool.submit(work) for work in works]:
            done.result()


class Lan(Batched):
    """A plain switch, with a router in it if it has addresses. `bridged`: the devices that are its own wire."""

    def bring_up(self) -> None:
        bridged = self.params["bridged"]
        lines = _bridge("lan", bridged)
        for device, addresses in self.params.get("addresses", {}).items():
            lines += [_address(address, device) for address in addresses]
        routes = self.params.get("routes", {})
        if routes:
            lines += ["echo 1 > /proc/sys/net/ipv4/ip_forward", "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"]
            lines += [f"ip {'-6 ' if ':' in via else ''}route add {to} via {via}" for to, via in routes.items()]
        _up(self.machine, self.devices(), lines)


class Bridge(Batched):
    """A bridge under Lark's control, with an Open vSwitch (userspace datapath) of its own."""

    switch: OpenVSwitch | None = None

    def bring_up(self) -> None:
        machine = self.machine
        address = _address(f"{layout.MANAGEMENT[self.name]}/24", "mg0")
        _up(machine, self.devices(), [address])
        self.switch = OpenVSwitch(machine)
        self.switch.start()
        argv = ["prepare-bridge", "--bridge", layout.BRIDGES[self.name], "--role", self.params["role"]]
        argv += ["--datapath-id", layout.DATAPATHS[self.name], "--datapath-type", "netdev"]
        argv += ["--controller", f"tcp:{OPENFLOW}"]
        for port in self.params["uplinks"]:
            argv += ["--uplink", port]
        machine.run(python_command("ovs_agent.cli", *argv), env=ENVIRONMENT, timeout=60).need()

    def take_down(self) -> None:
        if self.switch is not None:
            self.switch.stop()


class Border(Bridge):
    """The border. `queues`: `lark-agent border` keeps its queues, so that the line has the rate of the site file."""

    keeper: BorderAgent | None = None

    def bring_up(self) -> None:
        Bridge.bring_up(self)
        if self.params["queues"]:
            self.keeper = BorderAgent(self.machine, layout.BRIDGES[self.name])
            self.keeper.start()

    def take_down(self) -> None:
        # Whoever tries it may have ended it, and started another.
        if self.keeper is not None and self.keeper.daemon is not None and self.keeper.daemon.running():
            self.keeper.stop()
        Bridge.take_down(self)


class Worker(Bridge):
    """A worker node: its bridge, its lark-agent, and room for stand-ins of HTCondor's processes (`jobs`)."""

    agent: Any = None

    def bring_up(self) -> None:
        installing = threading.Thread(target=self._install)
        installing.start()
        Bridge.bring_up(self)
        machine, place, bridge = self.machine, layout.HOSTS[self.name], layout.BRIDGES[self.name]
        lines = [f"ip link set {bridge} up", f"ethtool -K {bridge} tx off >/dev/null"]
        lines += [
            _address(f"{place.ipv4[0]}/{layout.SITE4}", bridge),
            _address(f"{place.ipv6[0]}/{layout.SITE6}", bridge),
        ]
        lines += [f"ip route add default via {place.gateway4}", f"ip -6 route add default via {place.gateway6}"]
        machine.run(["sh", "-c", "\n".join(["set -e", *lines])]).need()
        installing.join()
        home = machine.root / "lark"
        (home / "agent.yaml").write_text(
            f"node: {self.name}\n"
            'controller: {urls: ["http://192.0.2.1:8080"], token-file: agent.token, allow-plaintext: true, wait: 8}\n'
            f"socket: {SOCKET}\nstate-dir: state\n"
            f"bridge: {{name: {bridge}, uplink: up0, datapath-type: netdev}}\n"
            f"condor: {{config: /dev/null, sbin: {SBIN}}}\n"
            f"libexec: {LIBEXEC}\n"
            f"pool: {{warm: {WARM}}}\n",
            encoding="utf-8",
        )
        words = python_command("mininet_tests.agent_fakes", "agent", str(home / "slots"), "--", "run")
        self.agent = machine.spawn("lark-agent", [*words, "--config", str(home / "agent.yaml")], env=ENVIRONMENT)
        self.agent.wait_for_line(READY, 30)
        ping = [f"{LIBEXEC}/lark-ping"]
        wait_until(f"{self.name} takes jobs", lambda: "HasLarkNetwork = true" in machine.run(ping).out, SERVICE_TIMEOUT)

    def _install(self) -> None:
        machine = self.machine
        machine.need("mkdir", "-p", SBIN, LIBEXEC)
        python = os.path.realpath("/usr/bin/python3")
        for daemon in ("condor_startd", "condor_starter"):
            machine.need("cp", python, f"{SBIN}/{daemon}")
        machine.need("install", "--mode=644", agent_fakes.__file__, FAKES)
        words = python_command("condor_bridge.native_install", "--libexec", LIBEXEC, "--socket", SOCKET)
        machine.run(words, env=ENVIRONMENT, timeout=60).need()

    def take_down(self) -> None:
        if self.agent is not None and self.agent.running():
            self.agent.stop()
        Bridge.take_down(self)


def prepare_files(root: Path, policy_file: Path, site_file: Path | None, engine: str) -> None:
    """Everything that Lark's daemons read, before any of them starts: policy, site, tokens, slot ads."""
    policy = load_policy(policy_file)
    site = site_file.read_text(encoding="utf-8") if site_file is not None else layout.site_text(policy)
    (root / "ctl").mkdir(exist_ok=True)
    control = Controller(Machine("ctl", root / "ctl"), engine)
    control.write(site, "")
    # The file itself: it may include others, and errors name it.
    (control.home / "policy.yaml").unlink()
    configured = control.home / "controller.yaml"
    named = f"policy: {json.dumps(str(policy_file.absolute()))}"
    configured.write_text(configured.read_text(encoding="utf-8").replace("policy: policy.yaml", named), "utf-8")
    tokens = []
    for role, node in (("viewer", None), *(("agent", name) for name in layout.WORKERS)):
        place = control.home / "viewer.token"
        if node is not None:
            home = root / node / "lark"
            home.mkdir(parents=True, exist_ok=True)
            place = home / "agent.token"
            answers = {"address": STARTD_ADDRESS, "attributes": sorted(attributes_read(policy)), "slots": {}}
            (home / "slots").write_text(json.dumps(answers), encoding="utf-8")
        tokens.append((role, node, place))
    from ryu_apps.rest.auth import TokenRole, new_token  # the controller's own way, without a process for each

    (root / "border").mkdir(exist_ok=True)
    bridge = layout.BRIDGES["border"]
    keeper = BorderAgent(Machine("border", root / "border"), bridge)
    keeper.write(new_token(control.home / "tokens.yaml", TokenRole.BORDER, None, bridge))
    for role, node, place in tokens:
        place.touch(mode=0o600)
        place.write_text(new_token(control.home / "tokens.yaml", TokenRole(role), node) + "\n", encoding="utf-8")


class CampusTopo(Topo):  # type: ignore[misc]
    """Two worker nodes, a machine room, a gate with its servers, a core router with offices, a border and the world."""

    def build(
        self, root: str = "", policy: str = "", site: str = "", engine: str = "os-ken", queues: bool = False, **_: Any
    ) -> None:
        base = Path(root or os.environ["LARK_LAB"])
        policy = policy or os.environ.get("LARK_LAB_POLICY") or str(DEFAULT_POLICY)
        prepare_files(base, Path(policy), Path(site) if site else None, engine)
        common: dict[str, Any] = {"root": str(base), "privateDirs": ["/run"], "inNamespace": True}
        self.addHost("ctl", cls=LarkController, ip=f"{layout.CONTROLLER}/24", engine=engine, **common)
        for place in layout.PLACES:
            prefixes = layout.PREFIXES.get(place.name, (layout.SITE4, layout.SITE6))
            self.addHost(place.name, cls=Station, ip=f"{place.ipv4[0]}/{prefixes[0]}", prefixes=prefixes, **common)
        dpid = {name: {"dpid": number} for name, number in layout.DATAPATHS.items()}
        for number, name in enumerate(("room", "core", "isp"), 1):
            self.addSwitch(name, cls=Lan, dpid=f"f{number}", **common, **LANS[name])
        self.addSwitch("gate", cls=Bridge, role="gate", uplinks=["wf0", "sf0", "sf1", "cf0"], **common, **dpid["gate"])
        uplinks = ["lan0", "wan0"]
        self.addSwitch(
            "border", cls=Border, role="border", uplinks=uplinks, queues=bool(queues), **common, **dpid["border"]
        )
        for name in layout.WORKERS:
            self.addSwitch(name, cls=Worker, role="worker", uplinks=["up0"], **common, **dpid[name])
        for name in (*layout.WORKERS, "gate", "border"):
            self._wire("ctl", f"to-{name}", name, "mg0")
        for name in layout.WORKERS:
            self._wire(name, "up0", "room", name)
        self._wire("room", "gate", "gate", "wf0")
        self._wire("gate", "sf0", "fs", "eth0")
        self._wire("gate", "sf1", "lic", "eth0")
        self._wire("gate", "cf0", "core", "gate")
        self._wire("core", "login", "login", "eth0")
        self._wire("core", "of0", "office", "eth0")
        self._wire("core", "mo0", "monitor", "eth0")
        self._wire("core", "wan0", "border", "lan0")
        self._wire("border", "wan0", "isp", "wan0")
        for name in ("cern", "osg"):
            self._wire("isp", name, name, "eth0")

    def _wire(self, left: str, left_device: str, right: str, right_device: str) -> None:
        self.addLink(left, right, intfName1=left_device, intfName2=right_device)


LANS: dict[str, dict[str, Any]] = {
    "room": {"bridged": [*layout.WORKERS, "gate"]},
    "core": {
        "bridged": ["gate", "login"],
        "addresses": layout.CORE,
        "routes": dict.fromkeys(("default",), layout.CORE_WAY_OUT[0]) | {"::/0": layout.CORE_WAY_OUT[1]},
    },
    "isp": {"bridged": ["cern", "osg"], "addresses": layout.PROVIDER, "routes": layout.PROVIDER_WAYS_IN},
}
DEFAULT_POLICY = Path(__file__).with_name("campus.yaml")


__all__ = ["CLI", "CampusTopo", "Mininet", "machine_of", "prepare_files"]
