"""Meters in the switch machine: before the flows that name them, after them, in place; nothing of what was refused."""

from __future__ import annotations

from dataclasses import replace

from mininet_tests.switch_flows import attempt, impossible
from ryu_apps.openflow import encode
from ryu_apps.openflow.flows import Flow, Meter
from ryu_apps.openflow.meters import MeterRule, Rule
from ryu_apps.reconcile.switch import RequestDump, State
from tests.unit.controller_switch.test_machine import Rig, entries

OURS = 0x4C000000
FOREIGN = {encode.meter_key(7): encode.meter_value(7, b"\0\5" + bytes(16))}


def named(number: int) -> Flow:
    flow = attempt(number)
    return replace(flow, actions=(Meter(OURS + number), *flow.actions))


def meter(number: int, rate: int = 1000) -> MeterRule:
    return MeterRule(OURS + number, rate)


def in_line(*rules: Rule) -> Rig:
    rig = Rig()
    rig.switch.flows.update(FOREIGN)
    rig.connect()
    rig.desire(*rules)
    rig.deliver()
    assert rig.machine.converged
    return rig


def holds(rig: Rig, *rules: Rule) -> bool:
    return rig.switch.flows == FOREIGN | entries(rules)


def test_a_flow_comes_after_its_meter_and_goes_before_it() -> None:
    rig = in_line(meter(1), named(1))
    assert holds(rig, meter(1), named(1))
    came = rig.change([meter(2), named(2)])
    assert rig.machine.state is State.METERING, "the switch would refuse the flow"
    rig.deliver()
    assert rig.settled[came] is None
    assert holds(rig, meter(1), named(1), meter(2), named(2))
    went = rig.change([], [meter(1), named(1)])
    rig.deliver()
    assert rig.settled[went] is None
    assert holds(rig, meter(2), named(2))
    assert (rig.machine.counts.flow_mods, rig.machine.counts.meter_mods) == (3, 3)


def test_unchanged_meters_are_not_sent_again_and_a_stranger_s_is_let_be() -> None:
    rig = in_line(meter(1), named(1))
    rig.lose()
    rig.connect()
    again = rig.desire(meter(1), named(1))
    rig.deliver()
    assert rig.settled[again] is None
    assert (rig.machine.counts.flow_mods, rig.machine.counts.meter_mods) == (1, 1)
    assert not any("not Lark's" in notice.text for notice in rig.notices)
    empty = rig.desire()
    rig.deliver()
    assert rig.settled[empty] is None
    assert holds(rig)


def test_another_rate_is_set_in_place_without_a_bundle() -> None:
    rig = in_line(meter(1), named(1))
    bundles = rig.machine.counts.bundles
    ticket = rig.desire(meter(1, 2000), named(1))
    assert ticket not in rig.settled, "it is in force when the switch has confirmed it"
    rig.deliver()
    assert rig.settled[ticket] is None
    assert holds(rig, meter(1, 2000), named(1))
    assert rig.machine.counts.bundles == bundles


def test_how_often_a_meter_was_set_is_known_once_that_is_confirmed() -> None:
    """An altered meter counts from 0: what was asked before is answered before the confirmation, and is of before."""
    rig = in_line(meter(1), named(1))
    settings = rig.machine.counts.settings
    assert settings == {OURS + 1: 1}
    rig.desire(meter(1, 2000), named(1))
    assert rig.machine.state is State.METERING
    assert settings == {OURS + 1: 1}
    rig.deliver()
    assert settings == {OURS + 1: 2}
    rig.desire(meter(1, 2000), named(1), attempt(2))
    rig.deliver()
    assert settings == {OURS + 1: 2}
    rig.desire(attempt(2))
    rig.deliver()
    assert settings == {}


def test_of_a_refused_change_no_meter_stays_and_an_altered_one_is_put_back() -> None:
    rig = in_line(meter(1), named(1))
    bad = rig.change([meter(1, 9), meter(2), named(2), impossible()])
    rig.switch.bad = lambda item: item[0] == encode.entry_key(impossible())
    rig.deliver()
    assert rig.settled[bad] is not None
    assert holds(rig, meter(1), named(1))
    good = rig.change([meter(2), named(2)])
    rig.deliver()
    assert rig.settled[good] is None
    assert holds(rig, meter(1), named(1), meter(2), named(2))


def test_a_full_table_of_meters_refuses_what_needs_one_and_says_which_and_nothing_else() -> None:
    rig = in_line()
    rig.switch.bad = lambda item: item[0] == meter_key(2)
    full = rig.change([meter(2, 64), named(2)])
    other = rig.change([meter(3), named(3), attempt(4)])
    rig.deliver()
    assert rig.settled[full] == "METER_MOD_FAILED: add meter=0x4c000002 rate=64 kbit/s"
    assert rig.settled[other] is None
    assert holds(rig, meter(3), named(3), attempt(4))


def meter_key(number: int) -> bytes:
    return encode.meter_key(OURS + number)


def test_stale_meters_of_before_go_after_the_flows_that_named_them() -> None:
    rig = Rig(meter(1), named(1), meter(9))
    rig.connect()
    rig.desire(attempt(1))
    rig.deliver()
    assert rig.machine.converged
    assert rig.switch.flows == entries([attempt(1)]), "deleted first, the meter would have taken the flow along"


def test_a_check_puts_a_deleted_meter_and_its_flows_back() -> None:
    rig = in_line(meter(1), named(1), meter(2), named(2))
    del rig.switch.flows[meter_key(1)], rig.switch.flows[encode.entry_key(named(1))]
    rig.switch.flows[meter_key(2)] = encode.entry_value(meter(2, 5))
    rig.now = rig.machine.wake or rig.now
    asked = rig.machine.tick(rig.now)
    assert [type(one) for one in asked] == [RequestDump]
    rig.carry(asked)
    rig.deliver()
    assert holds(rig, meter(1), named(1), meter(2), named(2))
    assert rig.machine.converged
    (said,) = [notice.text for notice in rig.notices if "somebody else changed" in notice.text]
    assert "changed meters and flows of Lark's" in said
    assert "meters 1 gone, 1 altered, 0 added; flows 1 gone, 0 altered, 0 added; for example altered: meter=" in said
