"""Stored descriptions of attempts, read fast: as the full check reads them, and nothing that it would refuse."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from policies.wire import AttemptSpec, Phase
from ryu_apps.controller import Controller
from ryu_apps.store.specs import spec_from_text
from tests.unit.controller.rig import Rig, aid, spec


def stored(one: AttemptSpec) -> dict[str, Any]:
    return one.model_dump(mode="json", exclude_defaults=True)


@pytest.mark.parametrize(
    "one",
    [
        spec(),
        spec(phase=Phase.RUN, LarkGroup="physics", Names=["a", "b"], Number=1.5, Yes=True),
        spec().model_copy(update={"ipv6": None, "job": None}),
        spec().model_copy(update={"slot": {"Cpus": 4}}),
    ],
)
def test_what_was_stored_is_read_as_the_full_check_reads_it(one: AttemptSpec) -> None:
    text = json.dumps(stored(one))
    read = spec_from_text(text)
    assert read == AttemptSpec.model_validate_json(text) == one
    assert read is not None
    assert stored(read) == stored(one)
    assert read.model_copy(update={"phase": Phase.STAGE_OUT}).phase is Phase.STAGE_OUT


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
        {"phase": "later"},
        {"ad": {"A": {"nested": 1}}},
        {"ad": {"A": None}},
        {"ad": [1]},
        {"job": 1.0},
        {"port": {"bridge": "br1", "name": "lj2"}},
        {"port": {"bridge": "br1", "name": "lj2", "ofport": "102"}},
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
