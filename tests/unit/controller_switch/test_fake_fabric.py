"""The public fake keeps the promises that the tests above it rely on."""

from __future__ import annotations

import time

import pytest

from mininet_tests.switch_flows import attempt
from ryu_apps.fabric import Fabric, FabricError, FakeFabric, Outcome
from ryu_apps.openflow.cookies import FULL_MASK

A, B, C = attempt(1), attempt(2), attempt(3)


@pytest.fixture
def fabric() -> FakeFabric:
    return FakeFabric({1: "br1", 2: "br2"}, {"br1": {"lj1": 17}})


def test_it_is_a_fabric_and_counts_what_the_real_one_would_send(fabric: FakeFabric) -> None:
    real: Fabric = fabric
    assert real.set_desired("br1", {A.key: A, B.key: B}).wait(time.monotonic() + 1).realised
    assert real.change("br1", [B, C], [A.key]).wait(time.monotonic() + 1).realised
    assert fabric.flow_mods == 4
    assert fabric.state["br1"].actual == {B.key: B, C.key: C}
    assert [(one.bridge, one.converged, one.flows) for one in real.bridges()] == [("br1", True, 2), ("br2", False, 0)]
    assert real.bridges()[0].ports == {"lj1": 17}


def test_a_key_in_both_lists_is_replaced(fabric: FakeFabric) -> None:
    fabric.set_desired("br1", {A.key: A})
    fabric.change("br1", [A], [A.key])
    assert fabric.state["br1"].actual == {A.key: A}


def test_a_change_before_the_truth_is_refused(fabric: FakeFabric) -> None:
    assert fabric.change("br1", [A], []).wait(0).outcome is Outcome.REFUSED
    fabric.set_desired("br1", {})
    assert fabric.change("br1", [A], []).wait(0).outcome is Outcome.REALISED


def test_silence_and_absence_leave_tickets_open_until_it_speaks(fabric: FakeFabric) -> None:
    fabric.set_desired("br1", {A.key: A})
    fabric.silence("br1")
    silent = fabric.change("br1", [B], [])
    assert (silent.wait(0).outcome, silent.result()) == (Outcome.TIMED_OUT, None)
    with pytest.raises(FabricError, match="no answer"):
        fabric.flow_stats("br1", 0, 0)
    fabric.speak("br1")
    assert silent.wait(0).realised
    heard: list[object] = []
    fabric.notify(lambda bridge, ports: heard.append((bridge, dict(ports))), heard.append)
    fabric.disconnect("br1", forget=True)
    away = fabric.change("br1", [C], [])
    assert away.result() is None
    with pytest.raises(FabricError, match="not connected"):
        fabric.flow_stats("br1", 0, 0)
    before = fabric.flow_mods
    fabric.connect("br1")
    assert away.wait(0).realised
    assert fabric.flow_mods - before == 3
    assert heard == ["br1", ("br1", {"lj1": 17})]


def test_a_refusal_changes_nothing(fabric: FakeFabric) -> None:
    fabric.set_desired("br1", {A.key: A})
    fabric.refuse("br1", "table full")
    refused = fabric.change("br1", [B], [A.key]).wait(0)
    assert (refused.outcome, refused.reason) == (Outcome.REFUSED, "table full")
    assert fabric.state["br1"].desired == fabric.state["br1"].actual == {A.key: A}
    fabric.refuse("br1", None)
    assert fabric.change("br1", [B], [A.key]).wait(0).realised


def test_counters_are_found_by_cookie(fabric: FakeFabric) -> None:
    fabric.set_desired("br1", {A.key: A, B.key: B})
    fabric.state["br1"].counters[A.key] = (3, 300)
    (one,) = fabric.flow_stats("br1", A.cookie, FULL_MASK)
    assert (one.key, one.cookie, one.packets, one.bytes) == (A.key, A.cookie, 3, 300)
    assert len(fabric.flow_stats("br1", 0, 0)) == 2


def test_who_becomes_a_bridges_master_makes_a_slave_of_who_was_it(fabric: FakeFabric) -> None:
    other = fabric.another()
    fabric.set_role("br1", master=True, generation=1)
    assert fabric.set_desired("br1", {A.key: A}).wait(0).realised
    fabric.silence("br1")
    waits = fabric.change("br1", [B], [])
    other.set_role("br1", master=True, generation=2)
    assert other.set_desired("br1", {C.key: C}).wait(0).realised
    fabric.speak("br1")
    for ticket in (waits, fabric.change("br1", [], [C.key]), fabric.set_desired("br1", {})):
        assert ticket.wait(0).outcome is Outcome.REFUSED
    assert fabric.state["br1"].actual == {C.key: C}
    fabric.set_role("br1", master=True, generation=3)
    assert fabric.set_desired("br1", {}).wait(0).realised, "control: it is the master again"
    assert other.change("br1", [C], []).wait(0).outcome is Outcome.REFUSED


def test_an_unknown_bridge_is_a_key_error(fabric: FakeFabric) -> None:
    with pytest.raises(KeyError):
        fabric.set_desired("nowhere", {})
