"""A large policy for many jobs: deciding and compiling in full, and one more job; seconds of CPU on one core.

A policy of 1,000 rules (grants, seals, slices, classes, rates, exposed ports, marks) over some hundred conditions, and
10,000 jobs on 16 worker bridges with two gates: every job is decided, and `desired_flows` of every bridge compiled, as
after a new policy. Then jobs come one by one whose attribute values were never seen before: decision, numbers, and the
flows of every bridge that must know. Nothing is sent anywhere; the aims are those of docs/lint-plan-why.md.

Run: `python -m mininet_tests.bench.decide [--rules 1000] [--jobs 10000] [--json FILE]`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from policies.decide import Decider
from policies.language import load_site, policy_from_text
from policies.model import Attempt, Decision, Policy, Role, Site, World
from policies.plan import Job, plan
from policies.wire import Phase
from ryu_apps.openflow.compiler import (
    attempt_flows,
    bridges_of,
    desired_flows,
    identity_flows,
    lane_addresses,
    membership_flow,
)

NODES = 16
SERVICES = 100
MARKING = 24
"""Groups that classify and expose name (a policy may name 32)."""
KINDS = 16
"""Services that classify names."""
NEW_JOBS = 300


@dataclass(frozen=True, slots=True)
class Result:
    """Seconds of CPU."""

    rules: int
    jobs: int
    identities: int
    slices: int
    flows: int
    load: float
    prepare: float
    decide: float
    compile: float
    plan: float
    new_decide_p50: float
    new_flows_p50: float
    new_p50: float
    new_p99: float

    @property
    def in_full(self) -> float:
        return self.prepare + self.decide + self.compile


def policy_text(rules: int, chance: random.Random) -> str:
    """A policy with so many rules: 60 in 100 are grants."""
    grants, classify, exposes = rules * 60 // 100, min(rules * 15 // 100, MARKING * KINDS), rules * 5 // 100
    slices, rates, scitags = rules * 5 // 100, rules * 8 // 100, rules * 5 // 100
    seals = rules - grants - classify - exposes - slices - rates - scitags
    groups: dict[str, str] = {}
    for n in range(grants):
        groups[f"g{n}"] = (
            f'LarkGroup =?= "group{n}"',
            f'identicalMember(User, {{"user{n}@site", "user{n + 1}@site", "user{n + 2}@site"}})',
            f'x509UserProxyVOName =?= "vo{n % 20}" && regexp("^/vo{n % 20}/role{n}(/|$)", x509UserProxyFirstFQAN)',
            f'AuthTokenIssuer =?= "https://issuer{n % 10}" && AuthTokenSubject =?= "subject{n}"',
            f'Owner =?= "owner{n}" && RequestCpus > {n % 8}',
        )[n % 5]
    for n in range(seals):
        groups[f"s{n}"] = f'LarkNetwork =?= "none" && Owner =?= "owner{n}"'
    groups["asks"] = "LarkSlice =!= undefined"
    services = [
        f"  s{n}: {{hosts: [10.20.{200 + n // 100}.{n % 100 + 1}, 10.20.210.{n // 2 + 1}],"
        f" ports: [tcp/{1000 + n * 10}-{1005 + n * 10}, udp/{20000 + n}], protected: true}}"
        for n in range(SERVICES)
    ]
    marking = [f"g{n * 5}" for n in range(MARKING)]
    phases = ("", ", during: [run]", ", during: [stage-in, run]")
    nodes = ("", "", '; nodes: ["wn*", "!wn1"]')
    lines = ["services:", *services, "attributes:", "  LarkSlice: {type: string, max-length: 64}"]
    lines += ["  LarkNetwork: {type: enum, values: [none, default], default: default}", "  LarkMbps: {type: number}"]
    lines += ["groups:", *(f"  {name}: '{text}'" for name, text in groups.items()), "grants:"]
    for n in range(grants):
        where = nodes[n % 3].replace(";", ",")
        lines.append(f"  - {{for: g{n}, to: s{chance.randrange(SERVICES)}{phases[n % 3]}{where}, trust-user: true}}")
    lines += ["classes: [{name: high, dscp: af41}, {name: middle, dscp: af31}, {name: low, dscp: cs1}]", "classify:"]
    for n in range(classify):
        name = "high" if n % 2 else "middle"
        lines.append(f"  - {{for: {marking[n % MARKING]}, service: s{n // MARKING % KINDS}, class: {name}}}")
    lines += ["slices:", *(f"  - {{for: g{n * 5 + 1}, name: 'LarkSlice ?: User'}}" for n in range(slices - 1))]
    lines += ["  - {for: asks, name: LarkSlice, between: exposed}", "seal:", *(f"  - s{n}" for n in range(seals))]
    lines += [
        "expose:",
        *(f"  - {{for: {marking[n % MARKING]}, ports: [tcp/{8000 + n}], to: slice}}" for n in range(exposes)),
    ]
    lines += ["rates:", *(f"  - {{for: g{n}, rate: 'LarkMbps * {n + 1}', unit: Mbit/s}}" for n in range(rates))]
    lines += [
        "scitags:",
        *(f"  - {{for: g{n}, experiment: cms, activity: {n % 60 + 1}, trust-user: true}}" for n in range(scitags)),
    ]
    return "\n".join(lines) + "\n"


def site_text() -> str:
    nodes = [
        f"  wn{n}: {{bridge: wn{n}-br, ipv4: 10.20.{n * 4}.0/22, ipv6: '2001:db8:20:{n}::/96'}}"
        for n in range(1, NODES + 1)
    ]
    workers = [
        f"  wn{n}-br: {{datapath-id: '{n:x}', roles: [worker], ports: {{uplink: [up0]}}}}" for n in range(1, NODES + 1)
    ]
    ports = "{worker-facing: [wf0], server-facing: [sf0], uplink: [up0]}"
    gates = []
    for gate in range(2):
        guards = ", ".join(f"s{n}" for n in range(SERVICES) if n // 50 == gate)
        gates.append(f"  gate{gate}-br: {{datapath-id: 'f{gate}', roles: [gate], ports: {ports}, guards: [{guards}]}}")
    network = "network: {ipv4: 10.20.0.0/16, ipv6: '2001:db8:20::/48', gateway-ipv4: 10.20.255.1}"
    return "\n".join(["site: bench", network, "nodes:", *nodes, "bridges:", *workers, *gates]) + "\n"


def load(rules: int, chance: random.Random) -> tuple[Policy, Site]:
    policy = policy_from_text(policy_text(rules, chance))
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "site.yaml"
        file.write_text(site_text())
        return policy, load_site(file)


def ad(n: int, chance: random.Random, *, new: bool = False) -> dict[str, object]:
    """A job's attributes; of a new one every value is its own."""
    pick = (lambda most: 10**6 + n) if new else chance.randrange
    vo = chance.randrange(20)
    told: dict[str, object] = {
        "Owner": f"owner{pick(1500)}",
        "User": f"user{pick(1500)}@site",
        "LarkGroup": f"group{pick(700)}",
        "x509UserProxyVOName": f"vo{vo}",
        "x509UserProxyFirstFQAN": f"/vo{vo}/role{pick(700)}/Capability=NULL",
        "RequestCpus": chance.randrange(1, 9),
        "LarkMbps": pick(1000) + 1,
        "ClusterId": 10_000 + n,
        "ProcId": 0,
        "JobUniverse": 5,
    }
    if n % 3 == 0:
        told["LarkSlice"] = f"slice{pick(3000)}"
    if n % 5 == 0:
        told["AuthTokenIssuer"] = f"https://issuer{chance.randrange(10)}"
        told["AuthTokenSubject"] = f"subject{pick(700)}"
    return told


def attempt(world: World, number: int, decision: Decision) -> Attempt:
    """The attempt of a decision; its numbers are given in place."""
    node = world.site.nodes[f"wn{number % NODES + 1}"]
    ipv4 = node.ipv4[number // NODES + 1]
    mac, ipv6 = lane_addresses(world.site, node.name, ipv4)
    identities, slices = world.identities, world.slice_numbers
    assert isinstance(identities, dict)
    assert isinstance(slices, dict)
    identities.setdefault(decision.outcome, len(identities) + 1)
    if decision.slice is not None:
        slices.setdefault(decision.slice, len(slices) + 1)
    lane = number // NODES + 1
    return Attempt(
        id=f"a{number}", number=number + 1, node=node.name, bridge=node.bridge, port_name=f"lj{lane}",
        ofport=1000 + lane, mac=mac, ipv4=ipv4, ipv6=ipv6, zone=1000 + lane, phase=Phase.RUN,
        outcome=decision.outcome, slice=decision.slice, scitag=decision.scitag,
    )  # fmt: skip


def run(rules: int, jobs: int) -> Result:
    chance = random.Random(1)
    began = time.process_time()
    policy, site = load(rules, chance)
    loaded = time.process_time() - began
    ads = [ad(n, chance) for n in range(jobs)]
    world = World(
        site=site,
        policy=policy,
        ports={
            name: {port: at for at, port in enumerate(sorted(bridge.ports), 1)} for name, bridge in site.bridges.items()
        },
        service_numbers={name: n for n, name in enumerate(sorted(policy.services), 1)},
        node_numbers={name: n for n, name in enumerate(sorted(site.nodes), 1)},
        identities={},
        slice_numbers={},
        attempts={},
    )
    began = time.process_time()
    decider = Decider(policy)
    prepared = time.process_time() - began
    began = time.process_time()
    decisions = [decider.decide(f"wn{n % NODES + 1}", told, {}, Phase.RUN) for n, told in enumerate(ads)]
    decided = time.process_time() - began
    attempts = world.attempts
    assert isinstance(attempts, dict)
    for n, decision in enumerate(decisions):
        made = attempt(world, n, decision)
        attempts[made.id] = made
    began = time.process_time()
    flows = sum(len(desired_flows(world, bridge)) for bridge in site.bridges)
    compiled = time.process_time() - began
    deciding, adding = _new_jobs(world, decider, jobs, chance)
    both = sorted(a + b for a, b in zip(deciding, adding, strict=True))
    other = replace(policy, grants=policy.grants[1::2])
    known = [Job(f"a{n}", f"{n}.0", f"wn{n % NODES + 1}", told, {}, Phase.RUN) for n, told in enumerate(ads)]
    began = time.process_time()
    plan(policy, other, known, site).lines()
    planned = time.process_time() - began
    return Result(
        rules=rules,
        jobs=jobs,
        identities=len(world.identities),
        slices=len(world.slice_numbers),
        flows=flows,
        load=loaded,
        prepare=prepared,
        decide=decided,
        compile=compiled,
        plan=planned,
        new_decide_p50=statistics.median(deciding),
        new_flows_p50=statistics.median(adding),
        new_p50=statistics.median(both),
        new_p99=both[len(both) * 99 // 100],
    )


def _new_jobs(world: World, decider: Decider, jobs: int, chance: random.Random) -> tuple[list[float], list[float]]:
    """CPU to decide about each new job, and to make its flows on every bridge that must know."""
    workers = [name for name, bridge in world.site.bridges.items() if Role.WORKER in bridge.roles]
    deciding, adding = [], []
    for n in range(jobs, jobs + NEW_JOBS):
        told = ad(n, chance, new=True)
        if n % 2:
            # Half of them are granted something, by an identity nobody has yet.
            told |= {"LarkGroup": f"group{n % 120 * 5}", "User": f"user{n % 110 * 5 + 1}@site"}
        began = time.process_time()
        decision = decider.decide(f"wn{n % NODES + 1}", told, {}, Phase.RUN)
        deciding.append(time.process_time() - began)
        began = time.process_time()
        fresh = decision.outcome not in world.identities
        made = attempt(world, n, decision)
        world.attempts[made.id] = made  # type: ignore[index]
        for bridge in bridges_of(world, made):
            attempt_flows(world, bridge, made)
            if fresh:
                identity_flows(world, bridge, made.outcome)
        if made.slice is not None:
            for _ in workers:  # at worst every worker bridge has a member
                membership_flow(world, made)
        adding.append(time.process_time() - began)
    return deciding, adding


def table(result: Result) -> str:
    """What was measured, for people."""
    return "\n".join(
        [
            f"{result.rules} rules, {result.jobs} jobs: {result.identities} identities, {result.slices} slices,"
            f" {result.flows} flows on {NODES + 2} bridges; seconds of CPU on one core",
            f"  load and check the policy     {result.load:7.2f} s",
            f"  prepare for deciding          {result.prepare:7.2f} s",
            f"  decide every job              {result.decide:7.2f} s",
            f"  compile every bridge          {result.compile:7.2f} s",
            f"  decided and compiled in full  {result.in_full:7.2f} s   (aim 10)",
            f"  plan another policy           {result.plan:7.2f} s",
            f"  one more job, never seen      {result.new_p50 * 1000:7.2f} ms  (aim 1; p99 {result.new_p99 * 1000:.2f};"
            f" decide {result.new_decide_p50 * 1000:.2f}, flows {result.new_flows_p50 * 1000:.2f})",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A large policy for many jobs.")
    parser.add_argument("--rules", type=int, default=1000, help="at least 300")
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    args = parser.parse_args(argv)
    result = run(args.rules, args.jobs)
    print(table(result))
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**asdict(result), "in_full": result.in_full}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
