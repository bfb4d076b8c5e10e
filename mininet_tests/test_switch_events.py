"""What happens to a running bridge from outside, on a real Open vSwitch and both engines: flows changed by hand, ports
that get other numbers, a second switch with the same datapath id, a full table, a bridge that is not as it must be."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest

from mininet_tests.switch_flows import attempt, every_kind
from mininet_tests.switch_rig import ENGINES, LANE, Application, DummySwitch, connected, wait_until
from ryu_apps.openflow.flows import Flow, FlowKey

BRIDGE, DPID = "br-lkev", 0x4C4B4556
pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def switch() -> Iterator[DummySwitch]:
    with DummySwitch() as rig:
        yield rig


@pytest.fixture(params=ENGINES)
def app(request: pytest.FixtureRequest, switch: DummySwitch) -> Iterator[Application]:
    """The bridge is well prepared."""
    with connected(request.param, switch, BRIDGE, DPID, "event=table-bypassed") as application:
        # Not before: a bridge that gets its first controller throws its flows away.
        switch.ofctl("add-flow", BRIDGE, LANE)
        wait_until("well prepared", lambda: "table 0" not in application.state(BRIDGE).detail)
        yield application


def ours(switch: DummySwitch) -> list[str]:
    """The flows in the controller's tables."""
    return [line for line in switch.flows(BRIDGE) if "table=" in line]


def truth(*numbers: int) -> dict[FlowKey, Flow]:
    return {flow.key: flow for flow in map(attempt, numbers)}


def flow_mods_by_the_switch(switch: DummySwitch) -> int:
    """How many flow-mods the switch itself counted, of all connections to the bridge that are over.

    It writes a line for each connection that has sent any; `ovs-ofctl` speaks to the management socket, shown as
    `BRIDGE<->unix`.
    """
    lines = re.findall(rf"{BRIDGE}<->tcp:\S+: (\d+) flow_mods", switch.log())
    return sum(map(int, lines))


def test_a_flow_changed_by_hand_is_repaired_within_seconds_and_reported(switch: DummySwitch, app: Application) -> None:
    assert app.realise("set_desired", BRIDGE, truth(1, 2, 3, 4))[0] == "realised"
    good = ours(switch)
    dumps = app.call("counts", BRIDGE).dumps
    assert app.state(BRIDGE).detail == ""
    vandals = {
        "1 gone, 0 altered, 0 added": ("del-flows", "--strict", "table=5,priority=200,in_port=1"),
        "0 gone, 1 altered, 0 added": ("mod-flows", "table=5,in_port=2,actions=NORMAL"),
        "0 gone, 0 altered, 1 added": ("add-flow", "table=6,cookie=0x4c07000000000063,priority=9,actions=NORMAL"),
    }
    for report, (command, *words) in vandals.items():
        start = time.monotonic()
        switch.ofctl(command, BRIDGE, *words)
        wait_until("repaired", lambda: ours(switch) == good and app.state(BRIDGE).converged)
        took = time.monotonic() - start
        print(f"{app.engine}: {report}: repaired after {took:.3f} s")
        assert took < 5
        wait_until("reported", lambda report=report: report in app.log())  # type: ignore[misc]
    assert app.call("counts", BRIDGE).repaired == 3
    assert app.call("counts", BRIDGE).dumps == dumps  # and without a new connection
    # The controller's own changes are not mistaken for somebody else's.
    checks = app.call("counts", BRIDGE).checks
    assert app.realise("change", BRIDGE, [attempt(9)], [attempt(1).key])[0] == "realised"
    time.sleep(0.5)
    assert app.call("counts", BRIDGE).checks == checks


def test_changes_go_on_while_somebody_deletes_flows_and_both_end_well(switch: DummySwitch, app: Application) -> None:
    assert app.realise("set_desired", BRIDGE, truth(*range(1, 200)))[0] == "realised"
    for number in range(200, 240):
        switch.ofctl("del-flows", BRIDGE, f"table=5,in_port={number - 199}")
        assert app.realise("change", BRIDGE, [attempt(number)], [attempt(number - 100).key])[0] == "realised"
    wanted = {*range(1, 100), *range(140, 240)}
    wait_until("as it should be", lambda: len(ours(switch)) == len(wanted) and app.state(BRIDGE).converged)
    ports = {int(found) for found in re.findall(r"in_port=(\d+)", "\n".join(ours(switch)))}
    assert ports == wanted


def test_unchanged_state_sends_nothing_by_the_switchs_own_count(switch: DummySwitch, app: Application) -> None:
    wanted = every_kind()
    assert app.realise("set_desired", BRIDGE, wanted)[0] == "realised"
    before = flow_mods_by_the_switch(switch)
    counted = []
    for round_ in range(3):
        dumps = app.call("counts", BRIDGE).dumps
        switch.reconnect(BRIDGE, app.address)
        app.until_converged(BRIDGE, dumps + 1)
        if round_ == 0:
            # The positive control: the connection that sent them is over, and the switch has counted them all.
            wait_until("the switch says what it was sent", lambda: flow_mods_by_the_switch(switch) > before)
        counted.append(flow_mods_by_the_switch(switch) - before)
    assert counted == [len(wanted)] * 3
    assert app.call("counts", BRIDGE).flow_mods == len(wanted)


def test_a_port_that_gets_another_number_is_told_at_once(switch: DummySwitch, app: Application) -> None:
    switch.vsctl("add-port", BRIDGE, "p1", "--", "set", "interface", "p1", "type=dummy", "ofport_request=3")
    wait_until("the port is known", lambda: dict(app.state(BRIDGE).ports).get("p1") == 3)
    switch.vsctl("set", "interface", "p1", "ofport_request=11")
    wait_until("its new number is known", lambda: dict(app.state(BRIDGE).ports).get("p1") == 11)
    assert 3 not in dict(app.state(BRIDGE).ports).values()
    assert app.call("events")[-1][2]["p1"] == 11


def test_a_second_switch_with_the_same_datapath_id_is_refused_and_reported(
    switch: DummySwitch, app: Application
) -> None:
    assert app.realise("set_desired", BRIDGE, truth(1))[0] == "realised"
    assert app.state(BRIDGE).detail == ""
    dumps = app.call("counts", BRIDGE).dumps
    try:
        switch.bridge("lkev-twin", DPID, app.address)
        wait_until("it is reported", lambda: "a second switch with this datapath id" in app.state(BRIDGE).detail)
        assert "is connected already" in app.log()
        assert switch.flows("lkev-twin") == []
    finally:
        switch.vsctl("del-br", "lkev-twin")
    state = app.state(BRIDGE)
    assert (state.connected, state.converged) == (True, True)
    assert app.realise("change", BRIDGE, [attempt(2)], [])[0] == "realised"
    assert app.call("counts", BRIDGE).dumps == dumps


def test_a_switch_that_comes_back_while_its_old_connection_hangs_is_let_in(
    switch: DummySwitch, app: Application
) -> None:
    """The same datapath id from elsewhere, and the first connection is open but dead. The positive control is the test
    before this one: an old connection that answers is kept."""
    assert app.realise("set_desired", BRIDGE, truth(1, 2))[0] == "realised"
    dumps = app.call("counts", BRIDGE).dumps
    cut_off, again = DummySwitch(), DummySwitch()
    try:
        cut_off.start()
        switch.disconnect(BRIDGE)
        wait_until("away", lambda: not app.state(BRIDGE).connected)
        cut_off.bridge("lkev-old", DPID, app.address)
        app.until_converged(BRIDGE, dumps + 1)
        cut_off.pause_switch()
        start = time.monotonic()
        again.start()
        again.bridge("lkev-new", DPID, app.address)
        app.until_converged(BRIDGE, dumps + 2)
        took = time.monotonic() - start
        print(f"{app.engine}: the new connection was in line {took:.1f} s after the switch began to start")
        assert len(again.flows("lkev-new")) == 2
        assert "connection given up for another one" in app.log()
    finally:
        cut_off.stop()
        again.stop()


def test_a_full_table_fails_the_change_with_the_reason_and_keeps_what_was(
    switch: DummySwitch, app: Application
) -> None:
    assert app.realise("set_desired", BRIDGE, truth(1, 2, 3))[0] == "realised"
    good = switch.flows(BRIDGE)
    limit = ("--", "--id=@t", "create", "Flow_Table", "flow_limit=5", "overflow_policy=refuse")
    switch.vsctl(*limit, "--", "set", "bridge", BRIDGE, "flow_tables:5=@t")
    outcome, reason = app.realise("change", BRIDGE, [attempt(n) for n in range(11, 21)], [attempt(1).key])
    assert outcome == "refused"
    assert "OFPFMFC_TABLE_FULL" in reason
    assert switch.flows(BRIDGE) == good
    assert app.state(BRIDGE).converged
    # Of two that go out together only the one that does not fit fails.
    tickets = app.call("changes", BRIDGE, [([attempt(n) for n in range(11, 21)], []), ([attempt(4)], [])])
    assert [app.call("wait", ticket, 10.0)[0] for ticket in tickets] == ["refused", "realised"]
    assert len(ours(switch)) == 4
    switch.vsctl("remove", "bridge", BRIDGE, "flow_tables", "5")
    assert app.realise("change", BRIDGE, [attempt(n) for n in range(11, 21)], [attempt(1).key])[0] == "realised"
    assert len(ours(switch)) == 13


def test_a_bridge_that_is_not_as_it_must_be_says_so_and_serves_all_the_same(
    switch: DummySwitch, app: Application
) -> None:
    def detail() -> str:
        return str(app.state(BRIDGE).detail)

    assert app.realise("set_desired", BRIDGE, truth(1))[0] == "realised"
    assert detail() == ""
    switch.ofctl("add-flow", BRIDGE, "table=0,cookie=0x77,priority=9,in_port=1,actions=NORMAL")
    wait_until("a stranger in table 0", lambda: "1 flows in table 0 are not the agent's" in detail())
    switch.ofctl("del-flows", BRIDGE, "table=0")
    wait_until(
        "nothing in table 0", lambda: detail() == "table 0 holds no flow of the agent's: nothing leads to the policy"
    )
    switch.ofctl("add-flow", BRIDGE, "table=9,cookie=0x77,priority=9,actions=NORMAL")
    wait_until("a stranger elsewhere", lambda: "1 flows in the controller's tables are not Lark's" in detail())
    assert app.realise("change", BRIDGE, [attempt(2)], [])[0] == "realised"
    assert any("cookie=0x77" in line for line in switch.flows(BRIDGE))
    switch.ofctl("del-flows", BRIDGE, "cookie=0x77/-1")
    switch.ofctl("add-flow", BRIDGE, LANE)
    wait_until("all well", lambda: detail() == "")
    assert app.log().count("bridge-mended bridge=" + BRIDGE + ": table 0 holds the agent's flows") == 1

    switch.vsctl("remove", "bridge", BRIDGE, "other-config", "dp-desc")
    dumps = app.call("counts", BRIDGE).dumps
    switch.reconnect(BRIDGE, app.address)
    app.until_converged(BRIDGE, dumps + 1)
    wait_until("not prepared", lambda: "it was not prepared for Lark" in detail())
    assert "lark-agent prepare-bridge" in app.log()
    assert app.realise("change", BRIDGE, [attempt(3)], [])[0] == "realised"
