"""What the compiler promises: golden flows, constant cost of a job, rules per identity, closed by default."""

from __future__ import annotations

import os
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from policies.language import policy_from_text
from policies.model import Attempt, Mode, Outcome, Policy, Reason, World
from policies.wire import Phase
from ryu_apps.openflow import compiler, cookies, explain, registers
from ryu_apps.openflow.cookies import MARK
from ryu_apps.openflow.counters import refusals
from ryu_apps.openflow.fields import masked, port_masks
from ryu_apps.openflow.flows import Cookie, Counted, FieldMatch, Flow, FlowKey, Goto, Meter, Output, match
from ryu_apps.openflow.hosts import SEVERAL, host_classes, shared_hosts
from ryu_apps.openflow.meters import BUCKETS, NEIGHBOUR_RATE, MeterRule, Way, owners
from ryu_apps.openflow.pipeline import PIPELINE, NotInPipeline, Priority, Table, entry
from ryu_apps.openflow.text import flow_text, flows_text
from tests.worlds import demo_policy, demo_site, with_job, world

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
PHYSICS: dict[str, object] = {"LarkGroup": "physics"}
OTHER: dict[str, object] = {}
SEALED: dict[str, object] = {"LarkNetwork": "none"}


@pytest.mark.parametrize("bridge", ["wn1-br", "gate-br"])
@pytest.mark.parametrize("mode", [Mode.ENFORCE, Mode.AUDIT])
def test_the_flows_of_the_demo_are_the_reviewed_ones(bridge: str, mode: Mode) -> None:
    """Regenerate with LARK_REGENERATE_GOLDEN=1, then read the difference."""
    flows = compiler.desired_flows(world([PHYSICS, OTHER, SEALED], demo_policy(mode)), bridge)
    text = flows_text(flows.values())
    file = GOLDEN / f"demo-{bridge}-{mode}.flows"
    if os.environ.get("LARK_REGENERATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()


FEATURES = {
    "staged-services": """
services:
  files: {hosts: [10.20.0.5, 10.20.0.6], ports: [tcp/1094-1095, udp/5000], protected: true}
  names: {hosts: [10.20.0.6, "2001:db8:20::6"], ports: [icmp, tcp/53], protected: true, open-to: [desk]}
networks: {desk: [10.9.1.0/24]}
groups: {physics: 'LarkGroup =?= "physics"'}
grants: [{for: physics, to: files}]
""",
    "audit": """
node-modes: [{nodes: ["wn-canary*"], mode: audit}]
services:
  files: {hosts: [10.20.0.5, 10.20.1.1], ports: [tcp/1094], protected: true, mode: audit}
  names: {hosts: [10.20.0.6], ports: [tcp/53], protected: true}
groups: {physics: 'LarkGroup =?= "physics"'}
grants: [{for: physics, to: names, mode: audit}]
defaults: {egress: audit, ingress: audit, between-jobs: audit}
""",
    "exposed-slices": """
attributes: {LarkSlice: {type: string}}
groups: {asks: 'LarkSlice =!= undefined', physics: 'LarkGroup =?= "physics"'}
slices: [{for: asks, name: LarkSlice, between: exposed}]
expose: [{for: physics, ports: [tcp/8000-8007, icmp], to: slice}]
""",
    "exposed-to-networks": """
networks: {campus: [10.9.0.0/16, "2001:db8:9::/48"], desk: [10.9.1.1]}
groups: {physics: 'LarkGroup =?= "physics"', everybody: 'Owner =!= undefined'}
expose:
  - {for: physics, ports: [tcp/8080], to: [campus]}
  - {for: everybody, ports: [udp/5000-5003], to: [desk]}
defaults: {egress: deny}
""",
    "classes": """
services:
  xrootd: {ports: [tcp/1094-1095]}
  files: {hosts: [10.20.0.5, "2001:db8:20::5"], ports: [tcp/1095-1096, icmp]}
groups: {physics: 'LarkGroup =?= "physics"'}
classes: [{name: first, dscp: af41}, {name: second, dscp: af31}, {name: rest, dscp: cs1}]
classify: [{for: physics, service: files, class: first}, {service: xrootd, class: second}, {class: rest}]
""",
    "scitags": """
groups: {physics: 'LarkGroup =?= "physics"'}
scitags: [{for: physics, experiment: cms, activity: analysis-input}]
""",
    "rates": """
groups: {physics: 'LarkGroup =?= "physics"'}
rates: [{for: physics, rate: 50, unit: Mbit/s}]
shares: [{per: User, share: 300 Mbit/s}]
""",
    "scitags-and-classes": """
groups: {physics: 'LarkGroup =?= "physics"', everybody: 'Owner =!= undefined'}
scitags: [{for: physics, experiment: cms, activity: analysis-input}, {for: everybody, experiment: atlas, activity: 1}]
classes: [{name: first, dscp: af41}, {name: rest, dscp: cs1}]
classify: [{for: physics, class: first}, {class: rest}]
""",
}
"""One small policy for each feature; its flows are in tests/golden/feature-NAME-BRIDGE.flows."""


def feature_world(name: str) -> World:
    policy = policy_from_text(FEATURES[name])
    site = demo_site()
    guards = tuple(sorted(s.name for s in policy.services.values() if s.protected))
    bridges = {**site.bridges, "gate-br": replace(site.bridges["gate-br"], guards=guards)}
    jobs: list[dict[str, object]] = [
        {"LarkGroup": "physics", "LarkSlice": "one", "User": "a@site", "Owner": "a"},
        {"LarkSlice": "one", "User": "a@site", "Owner": "a"},
    ]
    return world(jobs, policy, replace(site, bridges=bridges))


@pytest.mark.parametrize("feature", FEATURES)
def test_the_flows_of_each_feature_are_the_reviewed_ones(feature: str) -> None:
    """Regenerate with LARK_REGENERATE_GOLDEN=1, then read the difference."""
    here = feature_world(feature)
    for bridge in here.site.bridges:
        text = "".join(
            f"meter={one.number:#x}, rate={one.rate} {one.unit}, burst={one.burst} {one.unit[:-2]}\n"
            for one in compiler.desired_rules(here, bridge).values()
            if isinstance(one, MeterRule)
        )
        text += flows_text(compiler.desired_flows(here, bridge).values())
        file = GOLDEN / f"feature-{feature}-{bridge}.flows"
        if os.environ.get("LARK_REGENERATE_GOLDEN"):
            file.write_text(text)
        assert text == file.read_text()


@pytest.mark.parametrize("feature", FEATURES)
def test_every_cookie_leads_to_something_of_today(feature: str) -> None:
    here = feature_world(feature)
    told = {
        explain.meaning(here, f.cookie) for b in here.site.bridges for f in compiler.desired_flows(here, b).values()
    }
    assert not [text for text in told if "number" in text or "has ended" in text or "nobody" in text]
    wanted = {
        "staged-services": "hosts that services share: files (policy.yaml:3), names (policy.yaml:4)",
        "audit": "service files (policy.yaml:4)",
        "exposed-slices": "what jobs of group physics serve (policy.yaml:5)",
        "exposed-to-networks": "what jobs of group everybody serve (policy.yaml:6)",
        "classes": "class second (policy.yaml:7)",
        "rates": "attempt job1 on wn1",
        "scitags": "standing rule: scitags",
        "scitags-and-classes": "standing rule: scitags",
    }
    assert wanted[feature] in told


def many(hosts: int, ports: int, networks: int = 0) -> Policy:
    """One protected service of so many hosts, ranges of ports, and networks that it is open to."""
    served = ", ".join(str(IPv4Address((10 << 24) + (20 << 16) + 0x8000 + n)) for n in range(hosts))
    offered = ", ".join(f"tcp/{1 + 2 * n}" for n in range(ports))
    named = ", ".join(f"10.{100 + n // 250}.{n % 250}.0/24" for n in range(networks or 1))
    open_to = ", open-to: [many]" if networks else ""
    return policy_from_text(
        f"networks: {{many: [{named}]}}\n"
        f"services: {{files: {{hosts: [{served}], ports: [{offered}], protected: true{open_to}}}}}\n"
        "groups: {physics: 'LarkGroup =?= \"physics\"'}\n"
        "grants: [{for: physics, to: files}]\n"
        "classes: [{name: first, dscp: 10}, {name: rest, dscp: 0}]\n"
        "classify: [{service: files, class: first}]\n"
    )


def test_arp_and_neighbour_discovery_pass_sixteen_meters_of_the_bridge_however_many_jobs_there_are() -> None:
    few, many_jobs = world([PHYSICS]), world([PHYSICS, OTHER] * 20)
    bare = replace(few, meterless=frozenset({"wn1-br"}))

    def buckets(here: World, bridge: str = "wn1-br") -> list[MeterRule]:
        return [one for one in compiler.desired_rules(here, bridge).values() if isinstance(one, MeterRule)]

    assert len(buckets(few)) == len(buckets(many_jobs)) == BUCKETS == 16
    assert buckets(few) == buckets(many_jobs)
    assert buckets(few, "gate-br") == []
    assert {one.number >> 24 for one in buckets(few)} == {MARK}
    assert {(one.rate, one.packets) for one in buckets(few)} == {(NEIGHBOUR_RATE, True)}
    flows = [len(compiler.desired_flows(here, "wn1-br")) for here in (few, bare)]
    assert flows[0] - flows[1] == 16
    # Without meters there is no word of one, and everything else is as it is.
    assert buckets(bare) == []
    left = set(compiler.desired_flows(few, "wn1-br").items()) - set(compiler.desired_flows(bare, "wn1-br").items())
    assert {flow.table for _, flow in left} == {Table.NEIGHBOURS}
    assert not any(isinstance(act, Meter) for f in compiler.desired_flows(bare, "wn1-br").values() for act in f.actions)


@pytest.mark.parametrize("feature", FEATURES)
def test_every_flow_names_meters_that_the_bridge_has_and_every_meter_is_named(feature: str) -> None:
    """Also in SHARE_OUT and SHARE_IN: a table that forgets its meter leaves one that nobody names."""
    here = feature_world(feature)
    for bridge in here.site.bridges:
        rules = compiler.desired_rules(here, bridge).values()
        named = [act.number for one in rules if isinstance(one, Flow) for act in one.actions if isinstance(act, Meter)]
        assert set(named) == {one.number for one in rules if isinstance(one, MeterRule)}


def test_every_flow_of_a_table_of_shares_names_the_meter_of_its_direction() -> None:
    here = feature_world("rates")
    owned = owners(here, "wn1-br")
    tables = {Table.SHARE_OUT: Way.OUT, Table.SHARE_IN: Way.IN}
    found = [one for one in compiler.desired_flows(here, "wn1-br").values() if one.table in tables]
    assert {one.table for one in found} == set(tables)
    for flow in found:
        assert isinstance(flow.actions[0], Meter), flow
        owner = owned[flow.actions[0].number]
        assert owner.share is not None
        assert owner.way is tables[Table(flow.table)]


def flows_of(policy: Policy) -> dict[str, int]:
    site = demo_site()
    bridges = {**site.bridges, "gate-br": replace(site.bridges["gate-br"], guards=("files",))}
    here = world([PHYSICS], policy, replace(site, bridges=bridges))
    return {bridge: len(compiler.desired_flows(here, bridge)) for bridge in bridges}


def test_hosts_and_ports_of_a_service_add_up_and_never_multiply() -> None:
    small = flows_of(many(1, 1))
    grown = {(n, m): flows_of(many(n, m)) for n, m in ((1000, 1), (1, 1000), (1000, 1000))}
    costs = {k: {b: v[b] - small[b] for b in small} for k, v in grown.items()}
    # SERVICE, REPLY and KIND for a host, SERVICE_PORT both ways and KIND_PORT in both families for a range of ports.
    assert costs[1000, 1]["wn1-br"] == 3 * 999
    assert costs[1, 1000]["wn1-br"] == 4 * 999
    # Two for a host in GATE_SERVICE and GATE_RETURN, two in GATE_SOURCE; for a range its way in, back, and a call.
    assert costs[1000, 1]["gate-br"] == 4 * 999
    assert costs[1, 1000]["gate-br"] == 3 * 999
    for bridge in small:
        assert costs[1000, 1000][bridge] == costs[1000, 1][bridge] + costs[1, 1000][bridge]


def test_services_that_share_hosts_and_ports_add_up_too() -> None:
    """Twenty services of 100 ports each; each host has two of them, so that no two hosts are alike."""
    pairs = [(one, other) for one in range(20) for other in range(one)]
    hosts = {n: [f"10.{30 + one}.{other}.1" for one, other in pairs if n in (one, other)] for n in range(20)}
    services = "".join(
        f"  s{n}: {{hosts: [{', '.join(hosts[n])}], protected: true,"
        f" ports: [{', '.join(f'tcp/{1000 + 200 * n + 2 * k}' for k in range(100))}]}}\n"
        for n in range(20)
    )
    site = demo_site()
    guards = tuple(f"s{n}" for n in range(20))
    bridges = {**site.bridges, "gate-br": replace(site.bridges["gate-br"], guards=guards)}
    policy = policy_from_text(f"services:\n{services}")
    here = world([], policy, replace(site, bridges=bridges))
    bare = world([], policy_from_text("defaults: {egress: allow}\n"), replace(site, bridges={
        **site.bridges, "gate-br": replace(site.bridges["gate-br"], guards=())
    }))  # fmt: skip
    ports, classes = 20 * 100, len(pairs)
    for bridge, for_host, for_port in (("wn1-br", 2, 2), ("gate-br", 4, 3)):
        cost = len(compiler.desired_flows(here, bridge)) - len(compiler.desired_flows(bare, bridge))
        # Beside them: a pair of a host class and a port class for each service of a host, and GRANT's refusals.
        rest = {"wn1-br": 2 * classes + classes + 20, "gate-br": 4 * classes + classes + 2 * 20}[bridge]
        assert cost == for_host * classes + for_port * ports + rest


def test_hosts_and_networks_that_a_service_is_open_to_add_up_and_never_multiply() -> None:
    one = flows_of(many(1, 1, 1))["gate-br"]
    hosts = flows_of(many(1000, 1, 1))["gate-br"] - one
    networks = flows_of(many(1, 1, 1000))["gate-br"] - one
    assert flows_of(many(1000, 1, 1000))["gate-br"] - one == hosts + networks
    assert (hosts, networks) == (4 * 999, 3 * 999)


def test_the_first_and_the_thousandth_job_of_an_identity_cost_the_same() -> None:
    policy = policy_from_text(FEATURES["staged-services"])
    site = demo_site()
    wide = replace(site.nodes["wn1"], ipv4=IPv4Network("10.20.64.0/18"))
    bridges = {**site.bridges, "gate-br": replace(site.bridges["gate-br"], guards=("files", "names"))}
    here = world([], policy, replace(site, nodes={"wn1": wide}, bridges=bridges))
    sent = []
    known: dict[str, dict[FlowKey, Flow]] = {bridge: {} for bridge in bridges}
    for lane in range(1, 1001):
        here = with_job(here, lane, PHYSICS)
        job = here.attempts[f"job{lane}"]
        cost = {}
        for bridge in compiler.bridges_of(here, job):
            parts = [*compiler.identity_flows(here, bridge, job.outcome), *compiler.attempt_flows(here, bridge, job)]
            new = {f.key: f for f in parts if known[bridge].get(f.key) != f}
            known[bridge] |= new
            cost[bridge] = len(new)
        sent.append(cost)
    # The first brings its identity: the service, and the later fragments of the two classes of hosts that have it.
    assert sent[0] == {"wn1-br": 6 + 3, "gate-br": 2 + 4}
    assert sent[1] == sent[999] == {"wn1-br": 6, "gate-br": 2}


@pytest.mark.parametrize("between", ["open", "exposed"])
@pytest.mark.parametrize("size", [2, 200, 2000])
def test_a_slice_costs_one_flow_for_each_member_and_bridge(size: int, between: str) -> None:
    here = sliced(size, between)
    for bridge in ("wn1-br", "wn2-br"):
        flows = compiler.desired_flows(here, bridge).values()
        members = [f for f in flows if f.table == Table.MEMBER and f.priority == Priority.OBJECT]
        assert len(members) == size
        exposed = [f for f in flows if f.table == Table.EXPOSED]
        assert len(exposed) == len([f for f in compiler.base_flows(here, bridge) if f.table == Table.EXPOSED])
    assert compiler.slices_on(here, "wn3-br") == set()
    others = compiler.desired_flows(here, "wn3-br").values()
    assert [f for f in others if f.table == Table.MEMBER and f.priority == Priority.OBJECT] == []


def sliced(size: int, between: str) -> World:
    """A slice whose members are on two of three nodes."""
    policy = policy_from_text(
        FEATURES["exposed-slices"]
        if between == "exposed"
        else FEATURES["exposed-slices"].replace("between: exposed", "")
    )
    site = demo_site()
    nodes, bridges, ports = {}, {}, {}
    for n in (1, 2, 3):
        name = f"wn{n}"
        range4 = IPv4Network(f"10.20.{64 * n}.0/18")
        nodes[name] = replace(site.nodes["wn1"], name=name, bridge=f"{name}-br", ipv4=range4, ipv6=None)
        bridges[f"{name}-br"] = replace(site.bridges["wn1-br"], name=f"{name}-br")
        ports[f"{name}-br"] = {"up0": 1}
    outcome = Outcome(False, frozenset(), groups=frozenset({"physics"}))
    name = ("exposed-" if between == "exposed" else "") + "user/6/a@site/one"
    attempts = {}
    for n in range(1, size + 1):
        node = nodes[f"wn{1 + n % 2}"]
        ipv4 = node.ipv4[n]
        mac = (compiler.MAC_PREFIX << 32) | int(ipv4)
        attempts[f"job{n}"] = Attempt(
            f"job{n}", n, node.name, node.bridge, f"lj{n}", 10 + n, mac, ipv4, None, n, Phase.RUN, outcome, name
        )
    return World(
        replace(site, nodes=nodes, bridges=bridges),
        policy,
        ports,
        {},
        {},
        {n: k for k, n in enumerate(nodes, 1)},
        {outcome: 1},
        {name: 1},
        attempts,
    )


def test_audit_by_rule_opens_what_it_names_and_only_that() -> None:
    here = feature_world("audit")
    flows = compiler.desired_flows(here, "wn1-br").values()
    opened = [f for f in flows if f.table == Table.ENFORCE and f.actions]
    assert {cookies.explain(f.cookie)[1] for f in opened} == {
        Reason.BETWEEN_JOBS, Reason.NO_GRANT, Reason.EGRESS, Reason.INGRESS,
    }  # fmt: skip
    # Each asks for the rule's word, and that the host is not closed for good.
    asked = [m for f in opened for m in f.match if m.field == "reg8"]
    assert asked == [registers.joined(registers.AUDIT.equals(1), registers.CLOSED.equals(0))] * 4
    closed = [f for f in flows if f.table == Table.SERVICE and registers.CLOSED.load(1) in f.actions]
    assert len(closed) == 1  # 10.20.1.1 is the node's own


def test_without_audit_no_gate_lets_a_refusal_on() -> None:
    def lets(feature: str) -> bool:
        flows = compiler.desired_flows(feature_world(feature), "gate-br").values()
        return any(m.field == "reg8" and m.value & (1 << 19) for f in flows for m in f.match)

    assert not lets("staged-services")
    everywhere = replace(feature_world("staged-services").policy, mode=Mode.AUDIT)
    here = replace(feature_world("staged-services"), policy=everywhere)
    flows = compiler.desired_flows(here, "gate-br").values()
    assert any(m.field == "reg8" and m.value & (1 << 19) for f in flows for m in f.match)


def test_hosts_that_services_share_have_the_same_number_on_every_bridge() -> None:
    here = feature_world("staged-services")
    numbers = [
        {c.number for c in host_classes(here, here.site.bridges[b]).classes if len(c.services) > 1}
        for b in ("wn1-br", "gate-br")
    ]
    assert numbers == [{SEVERAL}, {SEVERAL}]
    assert shared_hosts(here, SEVERAL) == ("files", "names")
    assert shared_hosts(here, SEVERAL + 1) == ()


def test_a_job_costs_six_flows_on_its_bridge_and_two_on_a_gate_whatever_else_there_is() -> None:
    few = world([PHYSICS])
    many = world([PHYSICS] * 40)
    for before in (few, many):
        lane = len(before.attempts) + 1
        after = with_job(before, lane, PHYSICS)
        for bridge, cost in (("wn1-br", 6), ("gate-br", 2)):
            old, new = (compiler.desired_flows(w, bridge) for w in (before, after))
            assert len(new) - len(old) == cost
            assert old.items() <= new.items()


def test_a_sealed_job_costs_two_flows_and_no_gate_knows_it() -> None:
    before = world([PHYSICS])
    after = with_job(before, 2, SEALED)
    sealed = after.attempts["job2"]
    assert compiler.bridges_of(after, sealed) == ("wn1-br",)
    assert len(compiler.attempt_flows(after, "wn1-br", sealed)) == 2


def test_a_job_without_a_grant_is_unknown_at_the_gate() -> None:
    here = world([OTHER])
    assert compiler.bridges_of(here, here.attempts["job1"]) == ("wn1-br",)


def test_the_parts_of_an_attempt_and_its_identity_add_up_to_the_full_recompute() -> None:
    here = world([PHYSICS, OTHER, SEALED])
    for bridge in here.site.bridges:
        parts = compiler.base_flows(here, bridge)
        for job in here.attempts.values():
            if bridge in compiler.bridges_of(here, job):
                parts += compiler.attempt_flows(here, bridge, job) + compiler.identity_flows(here, bridge, job.outcome)
        assert {f.key: f for f in parts} == compiler.desired_flows(here, bridge)


def test_without_its_uplink_a_worker_bridge_is_closed() -> None:
    here = replace(world([]), ports={"wn1-br": {}})
    assert compiler.desired_flows(here, "wn1-br") == {}


def test_every_flow_is_marked_and_leads_back_to_its_object() -> None:
    here = world([PHYSICS, SEALED])
    for bridge in here.site.bridges:
        for flow in compiler.desired_flows(here, bridge).values():
            explained = cookies.explain(flow.cookie)
            assert explained is not None
            assert explained[0] is not cookies.Feature.HOST_LANE
            assert flow.table != Table.HOST_LANE


def test_no_flow_outputs_to_a_job_port_but_the_attempts_own() -> None:
    here = world([PHYSICS, OTHER])
    job_ports = {a.ofport: a.number for a in here.attempts.values()}
    for flow in compiler.desired_flows(here, "wn1-br").values():
        for action in flow.actions:
            if isinstance(action, Output) and action.port in job_ports:
                expected = cookies.cookie(cookies.Feature.ATTEMPT, job_ports[action.port])
                assert flow.cookie == expected


def test_audit_mode_opens_no_forged_frame_no_seal_and_no_node() -> None:
    here = world([], demo_policy(Mode.AUDIT))
    enforce = [f for f in compiler.desired_flows(here, "wn1-br").values() if f.table == Table.ENFORCE]
    opened = {cookies.explain(f.cookie)[1] for f in enforce if f.actions}
    assert opened == {Reason.BETWEEN_JOBS, Reason.NO_GRANT, Reason.EGRESS, Reason.INGRESS}
    strict = compiler.desired_flows(world([]), "wn1-br").values()
    assert not any(f.actions for f in strict if f.table == Table.ENFORCE)


def test_a_flow_outside_the_declaration_cannot_be_built() -> None:
    own = Cookie(0)
    with pytest.raises(NotInPipeline, match="belongs to the agent"):
        entry(Table.HOST_LANE, 1, (), (), own)
    with pytest.raises(NotInPipeline, match="may not go to DELIVER"):
        entry(Table.SPOOF_GUARD, 1, (), (Goto(Table.DELIVER),), own)
    with pytest.raises(NotInPipeline, match="unknown field"):
        entry(Table.OUT, 1, (FieldMatch("colour", 1),), (), own)


def test_every_table_of_a_role_is_declared_and_leads_forward() -> None:
    assert set(PIPELINE) == set(Table)
    assert all(after > table for table, spec in PIPELINE.items() for after in spec.next)


def test_lane_addresses_share_32_bits() -> None:
    site = demo_site()
    address = site.nodes["wn1"].ipv4[1]
    mac, ipv6 = compiler.lane_addresses(site, "wn1", address)
    assert mac & 0xFFFF_FFFF == int(address) == int(ipv6) & 0xFFFF_FFFF
    assert ipv6 in site.nodes["wn1"].ipv6


@pytest.mark.parametrize(("first", "last"), [(1, 65535), (27000, 27009), (5, 5), (1094, 1095), (1, 65534), (0, 65535)])
def test_port_blocks_cover_a_range_exactly(first: int, last: int) -> None:
    blocks = port_masks(first, last)
    covered = [p for p in range(65536) if any(p & mask == value for value, mask in blocks)]
    assert covered == list(range(first, last + 1))
    assert len(blocks) <= 30


def test_equal_matches_are_equal_values_and_bad_ones_are_refused() -> None:
    assert masked("tcp_dst", 5, 0xFFFF) == FieldMatch("tcp_dst", 5)
    with pytest.raises(ValueError, match="repeated"):
        match(FieldMatch("in_port", 1), FieldMatch("in_port", 2))
    with pytest.raises(ValueError, match="outside mask"):
        match(FieldMatch("reg0", 3, 1))


def test_text_is_readable_and_complete() -> None:
    flow = entry(Table.OUT, Priority.OTHERWISE, (FieldMatch("reg8", 0x10000, 0x30000),), (Output(1),), Cookie(5))
    assert flow_text(flow) == "table=OUT, priority=1, cookie=0x5, reg8=0x10000/0x30000, actions=output:1"
    assert flow_text(flow, numeric=True).startswith(f"table={int(Table.OUT)}, ")


def test_counters_name_what_was_refused() -> None:
    here = world([PHYSICS])
    job = here.attempts["job1"]

    def counted(flow: Flow, packets: int) -> Counted:
        return flow.table, flow.priority, int(flow.cookie), packets, packets * 100

    seen = compiler.seen([counted(f, n) for n, f in enumerate(compiler.attempt_flows(here, "wn1-br", job), 1)])
    counters = compiler.read_counters(job, seen)
    assert refusals(False, seen) == {d.reason: (d.packets, d.bytes) for d in counters.denied}
    assert (counters.admitted_packets, counters.delivered_packets) == (1, 6)
    assert {d.reason: d.packets for d in counters.denied} == {"spoofed": 2, "no-grant": 3, "policy": 4}
    assert {d.reason: d.bytes for d in counters.denied}["no-grant"] == 300


def test_numbers_that_do_not_fit_are_refused_and_cookies_explain_themselves() -> None:
    with pytest.raises(ValueError, match="48 bits"):
        cookies.cookie(cookies.Feature.ATTEMPT, 1 << 48)
    assert cookies.explain(0x1234) is None
    value = cookies.cookie(cookies.Feature.IDENTITY, 77)
    assert cookies.explain(value) == (cookies.Feature.IDENTITY, 77)


def test_identities_are_installed_once_for_all_their_jobs() -> None:
    one, forty = world([PHYSICS]), world([PHYSICS] * 40)
    outcome = Outcome(False, frozenset({"fileserver"}))
    for bridge in one.site.bridges:
        assert compiler.identity_flows(one, bridge, outcome) == compiler.identity_flows(forty, bridge, outcome)
