"""Stored descriptions of attempts, read fast: as the full check reads them, and nothing that it would refuse."""

from __future__ import annotations

import ipaddress
import json
import subprocess
import sys
import threading
from dataclasses import replace
from typing import Any

import pytest

from policies.wire import AttemptSpec, Phase
from ryu_apps.controller import Controller
from ryu_apps.life.checks import Fitting, check
from ryu_apps.refusals import Refused
from ryu_apps.store.specs import compact, spec_from_text
from ryu_apps.store.store import NodeRow
from tests.unit.controller.rig import Rig, aid, node_spec, spec


def stored(one: AttemptSpec) -> dict[str, Any]:
    return one.model_dump(mode="json", exclude_defaults=True)


@pytest.mark.parametrize(
    "one",
    [
        spec(),
        spec(phase=Phase.RUN, LarkGroup="physics", Names=["a", "b"], Number=1.5, Yes=True),
        spec().model_copy(update={"ipv6": None, "job": None}),
        spec().model_copy(update={"slot": {"Cpus": 4}}),
        spec(Long="y" * 16 * 1024, Least=-(1 << 63), List=["a"] * 1024, **{f"A{n}": n for n in range(253)}),
    ],
)
def test_what_was_stored_is_read_as_the_full_check_reads_it(one: AttemptSpec) -> None:
    text = json.dumps(stored(one))
    read = spec_from_text(text)
    assert read == AttemptSpec.model_validate_json(text) == one
    assert read is not None
    assert stored(read) == stored(one)
    assert read.model_copy(update={"phase": Phase.STAGE_OUT}).phase is Phase.STAGE_OUT
    kept = compact(one)
    assert (kept, stored(kept), kept.model_fields_set) == (one, stored(one), one.model_fields_set)
    assert compact(kept.model_copy(update={"phase": Phase.STAGE_OUT})).phase is Phase.STAGE_OUT
    assert kept == one, "what they share is not changed by that"


@pytest.mark.parametrize(
    "change",
    [
        {"surprise": 1},
        {"node": 7},
        {"mac": "02:6C:0A:14:01:02"},
        {"mac": "nonsense"},
        {"ipv4": "10.20.1.299"},
        {"ipv4": 5},
        {"ipv6": "::g"},
        {"zone": "1002"},
        {"zone": True},
        {"zone": 0},
        {"zone": 65536},
        {"phase": "later"},
        {"ad": {"A": {"nested": 1}}},
        {"ad": {"A": None}},
        {"ad": [1]},
        {"job": 1.0},
        {"job": ""},
        {"job": "1.0\n"},
        {"job": "1.0\nattempt=forged"},
        {"node": "wn1\n"},
        {"node": ""},
        {"ad": {"": 1}},
        {"ad": {"a b": 1}},
        {"ad": {"LarkGroup\n": 1}},
        {"ad": {"A": "y" * (16 * 1024 + 1)}},
        {"ad": {"A": 1 << 63}},
        {"ad": {"A": [[1]]}},
        {"ad": {"A": [1] * 1025}},
        {"ad": {f"A{n}": 1 for n in range(257)}},
        {"slot": {"a\nb": 1}},
        {"port": {"bridge": "br1", "name": "lj2\n", "ofport": 102}},
        {"port": {"bridge": "br 1", "name": "lj2", "ofport": 102}},
        {"port": {"bridge": "br1", "name": "lj2"}},
        {"port": {"bridge": "br1", "name": "lj2", "ofport": "102"}},
        {"port": {"bridge": "br1", "name": "lj2", "ofport": 0}},
        {"port": {"bridge": "br1", "name": "lj2", "ofport": 0xFFFFFFFD}},
        {"port": None},
    ],
)
def test_what_this_program_would_not_write_is_left_to_the_full_check(change: dict[str, Any]) -> None:
    good = stored(spec())
    assert spec_from_text(json.dumps(good)) is not None
    assert spec_from_text(json.dumps({**good, **change})) is None


@pytest.mark.parametrize("text", ["", "[]", "null", "7", '"text"', "{}", '{"node": "wn1"}'])
def test_other_json_is_left_to_the_full_check(text: str) -> None:
    assert spec_from_text(text) is None


CHANGES: list[dict[str, object]] = [
    {},
    {"node": "wn2"},
    {"node": "wn9"},
    {"ipv4": "10.20.1.3"},
    {"ipv4": "10.20.1.0"},
    {"ipv4": "10.20.1.255"},
    {"ipv4": "10.20.1.1"},
    {"ipv4": "10.20.2.2"},
    {"ipv4": "nonsense"},
    {"ipv6": None},
    {"ipv6": "2001:db8:20:1::a14:103"},
    {"ipv6": "2001:db8:20:1:0:0:a14:102"},
    {"mac": "02:6c:0a:14:01:03"},
    {"mac": "02:6d:0a:14:01:02"},
    {"zone": 1003},
    {"zone": 1001},
]
PORTS = [{"bridge": "br2"}, {"bridge": "br9"}, {"name": "br1"}, {"ofport": 9}]


def changed_specs() -> list[AttemptSpec]:
    good = spec()
    moved = [good.model_copy(update={"port": good.port.model_copy(update=one)}) for one in PORTS]
    return [good.model_copy(update=one) for one in CHANGES] + moved


@pytest.mark.parametrize("one", changed_specs(), ids=range(len(CHANGES) + len(PORTS)))
@pytest.mark.parametrize("id", [aid(), aid(node="wn2")])
def test_a_stored_attempt_is_found_to_fit_the_site_exactly_where_it_would_be_registered(
    rig: Rig, one: AttemptSpec, id: str
) -> None:
    world, nodes = rig.controller.world, {name: NodeRow(name, node_spec(name)) for name in rig.site.nodes}
    try:
        check(world, nodes, id, one)
    except (Refused, OSError):
        allowed = False
    else:
        allowed = True
    assert Fitting(world, nodes)(id, one) is allowed
    assert not Fitting(world, {})(id, one), "its node has not registered"


def test_declared_ports_gateway_and_nodes_without_ipv6_are_compared_too(rig: Rig) -> None:
    world, nodes = rig.controller.world, {name: NodeRow(name, node_spec(name)) for name in rig.site.nodes}
    good, bare = spec(), spec().model_copy(update={"ipv6": None})

    def fits(one: AttemptSpec, **site: Any) -> bool:
        return Fitting(replace(world, site=replace(world.site, **site)), nodes)(aid(), one)

    assert fits(good)
    assert not fits(bare)
    node, bridge = world.site.nodes["wn1"], world.site.bridges["br1"]
    six = {"nodes": {**world.site.nodes, "wn1": replace(node, ipv6=None)}}
    assert fits(bare, **six)
    assert not fits(good, **six)
    gateway = replace(world.site.network, gateway_ipv4=ipaddress.IPv4Address(good.ipv4))
    assert not fits(good, network=gateway)
    declared = {good.port.name: next(iter(bridge.ports.values()))}
    assert not fits(good, bridges={**world.site.bridges, "br1": replace(bridge, ports=declared)})


def test_what_only_the_api_needs_is_not_loaded_before_the_bridges_are_in_line() -> None:
    before = "ryu_apps.cli, ryu_apps.engine, ryu_apps.files, ryu_apps.daemon, ryu_apps.app, ryu_apps.controller"
    program = (
        f"import sys, {before}, ryu_apps.peers\n"
        "late = {'ryu_apps.rest.api', 'ryu_apps.rest.openapi', 'webob', 'ryu_apps.pki_cli', 'ryu_apps.larkctl'}\n"
        "print(sorted(late & set(sys.modules)))\n"
        "import ryu_apps.rest.api\n"
        "print(sorted(late & set(sys.modules)))\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    early, after = said.stdout.splitlines()
    assert early == "[]"
    assert "ryu_apps.rest.api" in after
    assert "webob" in after


def test_a_switch_that_comes_while_everything_is_read_back_is_told_nothing_before(rig: Rig) -> None:
    rig.controller.register(aid(), spec())
    rig.fabric.notify()
    for state in rig.fabric.state.values():
        state.desired = None
    sent = rig.fabric.flow_mods
    controller = Controller(rig.site, rig.policy, rig.store, deadline=0.2, clock=rig.clock)
    early = [
        threading.Thread(target=controller.fabric_ports, args=(name, state.ports), daemon=True)
        for name, state in rig.fabric.state.items()
    ]
    for one in early:
        one.start()
        one.join(0.05)
        assert one.is_alive()
    assert all(state.desired is None for state in rig.fabric.state.values())
    controller.start(rig.fabric)
    for one in early:
        one.join(5)
        assert not one.is_alive()
    assert rig.fabric.flow_mods == sent
    rig.controller = controller
    rig.check()
