"""A small site, a controller on the public fakes, and builders of valid messages."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from policies.model import Policy, Site
from policies.wire import AttemptSpec, NodeSpec, Phase, PortSpec
from ryu_apps.controller import Controller
from ryu_apps.fabric import FakeFabric
from ryu_apps.openflow import compiler
from ryu_apps.openflow.meters import Rule, RuleKey
from ryu_apps.store.memory import MemoryStore

# As an administrator would write it, long lines and all.
# ruff: noqa: E501
SITE = """\
site: test
network: {ipv4: 10.20.0.0/16, gateway-ipv4: 10.20.0.1, ipv6: "2001:db8:20::/48", gateway-ipv6: "2001:db8:20::1", mtu: 1500}
infrastructure: [192.0.2.0/24]
nodes:
  wn1: {bridge: br1, ipv4: 10.20.1.0/24, ipv6: "2001:db8:20:1::/96"}
  wn2: {bridge: br2, ipv4: 10.20.2.0/24, ipv6: "2001:db8:20:2::/96"}
bridges:
  br1: {datapath-id: "00000000000000a1", roles: [worker], ports: {uplink: [up0]}}
  br2: {datapath-id: "00000000000000a2", roles: [worker], ports: {uplink: [up0]}}
  gate1: {datapath-id: "00000000000000b1", roles: [gate], ports: {worker-facing: [wf0], server-facing: [sf0]}, guards: [files]}
  gate2: {datapath-id: "00000000000000b2", roles: [gate], ports: {worker-facing: [wf0], server-facing: [sf0]}, guards: [licence]}
"""
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
  matlab: 'LarkLicence =?= true'
  sealed: 'LarkNetwork =?= "none"'
  asks-for-slice: 'LarkSlice =!= undefined'
grants:
  - {for: physics, to: files, during: [stage-in, run]}
  - {for: matlab, to: licence, during: [run], trust-user: true}
seal: [sealed]
slices: [{for: asks-for-slice, name: LarkSlice}]
defaults: {egress: allow, ingress: deny, between-jobs: deny}
"""
BOOT = "3f2a9c1e-0000-4000-8000-000000000001"


def spec(n: int = 2, node: str = "wn1", *, phase: Phase = Phase.STAGE_IN, **ad: object) -> AttemptSpec:
    """A valid registration of lane `n`."""
    number = node[-1]
    ipv4 = ipaddress.IPv4Address(f"10.20.{number}.{n}")
    return AttemptSpec(
        node=node,
        port=PortSpec(bridge=f"br{number}", name=f"lj{n}", ofport=100 + n),
        mac="02:6c:" + ":".join(f"{octet:02x}" for octet in ipv4.packed),
        ipv4=str(ipv4),
        ipv6=str(ipaddress.IPv6Address(int(ipaddress.IPv6Address(f"2001:db8:20:{number}::")) | int(ipv4))),
        zone=1000 + n,
        phase=phase,
        ad=ad or {"LarkGroup": "physics"},
        job=f"{n}.0",
    )


def aid(n: int = 2, node: str = "wn1") -> str:
    return f"{node}~3f2a9c1e~slot1_{n}~{1000 + n}~88"


def node_spec(node: str = "wn1", *addresses: str, boot: str = BOOT, bridge: str | None = None) -> NodeSpec:
    return NodeSpec(
        boot_id=boot,
        bridge=bridge or f"br{node[-1]}",
        host_addresses=list(addresses or (f"192.168.7.{node[-1]}",)),
        agent_version="0",
    )


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Rig:
    """A controller with everything around it. `restart` plays a crash: only the store and the switches stay."""

    site: Site
    policy: Policy
    load: Callable[[str], Policy]
    store: MemoryStore = field(default_factory=MemoryStore)
    clock: Clock = field(default_factory=Clock)
    deadline: float = 0.2
    make_fabric: type[FakeFabric] = FakeFabric
    count_every: float = 15.0
    state_dir: Path | None = None

    def __post_init__(self) -> None:
        self.fabric = self.make_fabric(
            {bridge.datapath_id: name for name, bridge in self.site.bridges.items()},
            {
                name: {port: number for number, port in enumerate(bridge.ports, 1)}
                | {f"lj{n}": 100 + n for n in range(1, 60)}
                for name, bridge in self.site.bridges.items()
            },
        )
        self.begin()
        for node in self.site.nodes:
            self.controller.register_node(node, node_spec(node, bridge=self.site.nodes[node].bridge))

    def begin(self) -> None:
        self.controller = Controller(
            self.site,
            self.policy,
            self.store,
            deadline=self.deadline,
            lease=60,
            clock=self.clock,
            count_every=self.count_every,
            state_dir=self.state_dir,
        )
        self.fabric.notify(on_ports=self.controller.fabric_ports)
        self.controller.start(self.fabric)
        for name, state in self.fabric.state.items():
            if state.connected:
                self.fabric.connect(name)

    def restart(self, policy: Policy | None = None) -> None:
        self.store.crash()
        if policy is not None:
            self.policy = policy
        for state in self.fabric.state.values():
            # A new process has said nothing yet; the switches keep what they have.
            state.desired = None
            state.waiting = []
            state.settings = {}
        self.begin()

    def specification(self) -> dict[str, dict[RuleKey, Rule]]:
        return {name: compiler.desired_rules(self.controller.world, name) for name in self.site.bridges}

    def desired(self) -> dict[str, dict[RuleKey, Rule] | None]:
        return {name: state.desired for name, state in self.fabric.state.items()}

    def everything(self) -> object:
        """All that bad input must leave as it is."""
        return (
            {name: dict(state.actual) for name, state in self.fabric.state.items()},
            {name: dict(state.desired or {}) for name, state in self.fabric.state.items()},
            self.fabric.flow_mods,
            dict(self.store.attempts),
            dict(self.store.nodes),
            self.store.writes,
            self.controller.world,
        )

    def check(self) -> None:
        """The increments equal the specification, and the store equals the world."""
        assert self.desired() == self.specification()
        world = self.controller.world
        live = {id: row for id, row in self.store.attempts.items() if not row.leaving}
        assert set(live) == set(world.attempts)
        for id, row in live.items():
            attempt = world.attempts[id]
            assert row.decision.outcome == attempt.outcome
            assert row.spec.phase == attempt.phase
            assert row.number == attempt.number
            assert world.identities[attempt.outcome] == row.identity
        assert set(world.identities) == {attempt.outcome for attempt in world.attempts.values()}
