"""Meters on a real Open vSwitch, on both engines: before their flows, after them, in place, never somebody else's."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from mininet_tests.switch_flows import attempt
from mininet_tests.switch_rig import ENGINES, LANE, Application, DummySwitch, connected, wait_until
from ryu_apps.openflow.flows import Flow, Meter
from ryu_apps.openflow.meters import MeterRule, Rule, RuleKey

BRIDGE, DPID = "br-lkmt", 0x4C4B4D54
OURS = 0x4C000000
FOREIGN = "meter=7,kbps,burst,bands=type=drop,rate=5000,burst_size=700"
pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def switch() -> Iterator[DummySwitch]:
    with DummySwitch() as rig:
        yield rig


@pytest.fixture(params=ENGINES)
def app(request: pytest.FixtureRequest, switch: DummySwitch) -> Iterator[Application]:
    """Beside a meter of somebody else's, which is not touched."""
    with connected(request.param, switch, BRIDGE, DPID, "set the switch to use") as application:
        # Not before: a bridge that gets its first controller throws its flows away.
        switch.ofctl("add-flow", BRIDGE, LANE)
        switch.ofctl("add-meter", BRIDGE, FOREIGN)
        yield application
        assert meters(switch).get(7) == 5000


def meters(switch: DummySwitch) -> dict[int, int]:
    """Numbers and rates (kbit/s), as ovs-ofctl shows them."""
    text = switch.ofctl("dump-meters", BRIDGE)
    return {int(n): int(rate) for n, rate in re.findall(r"meter=(\d+) kbps.*?rate=(\d+)", text, re.DOTALL)}


def rated(number: int, rate: int) -> list[Rule]:
    """A flow that names a meter, and the meter."""
    flow = attempt(number)
    return [MeterRule(OURS + number, rate), replace(flow, actions=(Meter(OURS + number), *flow.actions))]


def whole(*rules: Sequence[Rule]) -> dict[RuleKey, Rule]:
    return {rule.key: rule for some in rules for rule in some}


def sent(app: Application) -> tuple[int, int]:
    counts = app.call("counts", BRIDGE)
    return counts.flow_mods, counts.meter_mods


def test_meters_come_before_their_flows_go_after_them_and_are_not_sent_again(
    switch: DummySwitch, app: Application
) -> None:
    assert app.realise("set_desired", BRIDGE, whole(rated(1, 10_000))) == ("realised", "")
    assert app.realise("change", BRIDGE, rated(2, 50_000), []) == ("realised", "")
    assert meters(switch) == {7: 5000, OURS + 1: 10_000, OURS + 2: 50_000}
    shown = [line for line in switch.flows(BRIDGE) if f"meter:{OURS + 2}" in line]
    assert len(shown) == 1, switch.flows(BRIDGE)
    assert sent(app) == (2, 2)
    dumps = app.call("counts", BRIDGE).dumps
    switch.reconnect(BRIDGE, app.address)
    app.until_converged(BRIDGE, dumps + 1)
    assert sent(app) == (2, 2), "what is there already is not sent again"
    assert app.realise("change", BRIDGE, [], [rule.key for rule in rated(1, 10_000)]) == ("realised", "")
    wait_until("its meter is gone", lambda: meters(switch) == {7: 5000, OURS + 2: 50_000})
    assert len([line for line in switch.flows(BRIDGE) if "meter:" in line]) == 1


def test_another_rate_is_set_in_place_and_flows_are_not_touched(switch: DummySwitch, app: Application) -> None:
    assert app.realise("set_desired", BRIDGE, whole(rated(1, 10_000)))[0] == "realised"
    before, flows = sent(app), switch.flows(BRIDGE)
    assert app.realise("set_desired", BRIDGE, whole(rated(1, 20_000))) == ("realised", "")
    assert meters(switch)[OURS + 1] == 20_000
    assert sent(app) == (before[0], before[1] + 1)
    assert switch.flows(BRIDGE) == flows


def test_another_controller_finds_meters_and_sends_nothing(switch: DummySwitch, app: Application) -> None:
    wanted = whole(rated(1, 10_000), rated(2, 300))
    assert app.realise("set_desired", BRIDGE, wanted)[0] == "realised"
    second = Application(app.engine.split()[0], {DPID: BRIDGE})
    try:
        switch.connect(BRIDGE, second.address)
        assert second.realise("set_desired", BRIDGE, wanted) == ("realised", "")
        second.until_converged(BRIDGE)
        assert sent(second) == (0, 0)
    finally:
        assert second.stop() == 0


def test_a_meter_that_somebody_deletes_or_alters_comes_back_with_its_flows(
    switch: DummySwitch, app: Application
) -> None:
    assert app.realise("set_desired", BRIDGE, whole(rated(1, 10_000), rated(2, 50_000)))[0] == "realised"
    flows = switch.flows(BRIDGE)
    switch.ofctl("mod-meter", BRIDGE, f"meter={OURS + 2},kbps,burst,bands=type=drop,rate=99,burst_size=99")
    switch.ofctl("del-meter", BRIDGE, f"meter={OURS + 1}")
    good = {7: 5000, OURS + 1: 10_000, OURS + 2: 50_000}
    wait_until("all as it was", lambda: meters(switch) == good and switch.flows(BRIDGE) == flows, 60)
    assert "somebody else changed" in app.log()
    assert app.call("counts", BRIDGE).repaired >= 3, "a meter, its flow that went with it, and a meter's rate"


def test_a_meter_the_switch_has_no_room_for_refuses_what_needs_it_and_nothing_else(
    switch: DummySwitch, app: Application
) -> None:
    assert app.realise("set_desired", BRIDGE, whole(rated(1, 10_000)))[0] == "realised"
    good, flows = meters(switch), switch.flows(BRIDGE)
    # The dummy datapath has room for very many: a number that no meter can have is refused the same way.
    flow = attempt(3)
    bad = [MeterRule(0x4CFFFFFF, 5), replace(flow, actions=(Meter(0x4CFFFFFF), *flow.actions)), no_meter()]
    outcome, reason = app.realise("change", BRIDGE, bad, [])
    assert outcome == "refused"
    assert "OFPET" in reason
    wait_until("no meter of it is left", lambda: meters(switch) == good)
    assert switch.flows(BRIDGE) == flows
    assert app.realise("change", BRIDGE, rated(2, 50_000), [])[0] == "realised"


def no_meter() -> Flow:
    """A flow whose meter nobody sets."""
    flow = attempt(4)
    return replace(flow, actions=(Meter(OURS + 0xABCDEF), *flow.actions))


def test_unmetered_changes_wait_for_no_meter(switch: DummySwitch, app: Application) -> None:
    assert app.realise("set_desired", BRIDGE, whole([attempt(1)]))[0] == "realised"
    began = time.monotonic()
    assert app.realise("change", BRIDGE, [attempt(2)], [])[0] == "realised"
    assert time.monotonic() - began < 5
    assert sent(app) == (2, 0)
    assert meters(switch) == {7: 5000}
