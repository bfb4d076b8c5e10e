"""The switch side of the controller against a real Open vSwitch, on both engines: what the rest is built on."""

from __future__ import annotations

import re
import signal
import socket
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mininet_tests.switch_flows import attempt, every_kind, impossible
from mininet_tests.switch_rig import ENGINES, LANE, Application, DummySwitch, RigError, connected, wait_until
from ryu_apps.openflow import cookies, decode, encode
from ryu_apps.openflow.flows import FieldMatch, Flow, FlowKey, Goto, Output, match

BRIDGE, DPID = "br-lksw", 0x4C4B5357
pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def switch() -> Iterator[DummySwitch]:
    with DummySwitch() as rig:
        yield rig


@pytest.fixture(params=ENGINES)
def app(request: pytest.FixtureRequest, switch: DummySwitch) -> Iterator[Application]:
    pardoned = ("set the switch to use", "event=table-bypassed")
    with connected(request.param, switch, BRIDGE, DPID, *pardoned) as application:
        assert application.engine.split()[0] == request.param
        yield application


def reconnect(switch: DummySwitch, app: Application) -> None:
    dumps = app.call("counts", BRIDGE).dumps
    switch.reconnect(BRIDGE, app.address)
    app.until_converged(BRIDGE, dumps + 1)


def flow_mods(app: Application) -> int:
    count: int = app.call("counts", BRIDGE).flow_mods
    return count


def test_every_kind_of_flow_comes_back_equal_and_is_not_sent_again(switch: DummySwitch, app: Application) -> None:
    switch.ofctl("add-flow", BRIDGE, LANE)
    wanted = every_kind()
    assert app.realise("set_desired", BRIDGE, wanted) == ("realised", "")
    assert flow_mods(app) == len(wanted)
    assert len(switch.flows(BRIDGE)) == len(wanted) + 1

    reconnect(switch, app)  # reads every flow back and compares values
    assert flow_mods(app) == len(wanted)
    state = app.state(BRIDGE)
    assert (state.converged, state.flows, state.detail) == (True, len(wanted), "")

    stats = [one for one in app.call("flow_stats", BRIDGE, 0, 0) if one.key.table]
    assert {one.key: one.cookie for one in stats} == {key: flow.cookie for key, flow in wanted.items()}


def test_first_fragments_show_their_ports_after_every_connection(switch: DummySwitch, app: Application) -> None:
    assert app.realise("set_desired", BRIDGE, {attempt(1).key: attempt(1)})[0] == "realised"
    assert switch.ofctl("get-frags", BRIDGE).strip() == "nx-match"
    switch.ofctl("set-frags", BRIDGE, "normal")
    assert switch.ofctl("get-frags", BRIDGE).strip() == "normal"
    reconnect(switch, app)
    assert switch.ofctl("get-frags", BRIDGE).strip() == "nx-match"


def test_removing_everything_leaves_nothing(switch: DummySwitch, app: Application) -> None:
    wanted = every_kind()
    assert app.realise("set_desired", BRIDGE, wanted)[0] == "realised"
    assert len(switch.flows(BRIDGE)) == len(wanted)
    assert app.realise("change", BRIDGE, [], list(wanted))[0] == "realised"
    assert switch.flows(BRIDGE) == []


def test_what_was_changed_by_hand_is_mended_at_reconnect(switch: DummySwitch, app: Application) -> None:
    flows = [attempt(n) for n in range(1, 5)]
    assert app.realise("set_desired", BRIDGE, {flow.key: flow for flow in flows})[0] == "realised"
    good = switch.flows(BRIDGE)
    dumps = app.call("counts", BRIDGE).dumps
    switch.disconnect(BRIDGE)
    wait_until("it is away", lambda: not app.state(BRIDGE).connected)
    stray = "table=6,cookie=0x4c07000000000063,priority=9,in_port=9,actions=NORMAL"
    weird = "table=6,cookie=0x4c07000000000064,priority=9,ip,ip_dscp=9,actions=NORMAL"
    unread = "table=6,cookie=0x4c07000000000065,priority=9,ip,ip_ecn=1,actions=dec_ttl,NORMAL"
    expiring = (
        "table=5,cookie=0x4c07000000000003,idle_timeout=900,priority=200,in_port=3,actions=load:3->reg0,goto_table:6"
    )
    switch.ofctl("del-flows", BRIDGE, "--strict", "table=5,priority=200,in_port=1")
    switch.ofctl("mod-flows", BRIDGE, "table=5,in_port=2,actions=NORMAL")
    for line in (stray, weird, unread, expiring):
        switch.ofctl("add-flow", BRIDGE, line)
    assert switch.flows(BRIDGE) != good
    before = flow_mods(app)
    switch.connect(BRIDGE, app.address)
    app.until_converged(BRIDGE, dumps + 1)
    assert switch.flows(BRIDGE) == good
    assert flow_mods(app) - before == 6  # one put back, one changed back, one without its timeout, three taken away


def test_table_0_and_foreign_flows_are_not_touched(switch: DummySwitch, app: Application) -> None:
    switch.ofctl("add-flow", BRIDGE, "table=0,cookie=0x4c01000000000000,priority=5,actions=goto_table:1")
    switch.ofctl("add-flow", BRIDGE, "table=0,cookie=0x77,priority=6,in_port=1,actions=NORMAL")
    switch.ofctl("add-flow", BRIDGE, "table=5,cookie=0x77,priority=7,in_port=1,actions=drop")
    theirs = switch.flows(BRIDGE)
    assert app.realise("set_desired", BRIDGE, {attempt(1).key: attempt(1)})[0] == "realised"
    reconnect(switch, app)
    assert app.realise("set_desired", BRIDGE, {})[0] == "realised"
    assert switch.flows(BRIDGE) == theirs
    assert "1 flows in the controller's tables are not Lark's" in app.log()


def test_a_change_with_a_flow_the_switch_refuses_changes_nothing(switch: DummySwitch, app: Application) -> None:
    assert app.realise("set_desired", BRIDGE, {attempt(1).key: attempt(1)})[0] == "realised"
    before = switch.flows(BRIDGE)
    outcome, reason = app.realise("change", BRIDGE, [attempt(2), impossible(), attempt(3)], [attempt(1).key])
    assert outcome == "refused"
    assert "OFPBIC_BAD_TABLE_ID" in reason
    assert "table=5,priority=300,in_port=0x1" in reason
    assert switch.flows(BRIDGE) == before
    # The positive control: without the bad flow the same change goes through.
    assert app.realise("change", BRIDGE, [attempt(2), attempt(3)], [attempt(1).key])[0] == "realised"
    assert len(switch.flows(BRIDGE)) == 2


def test_a_part_that_only_looks_like_what_the_switch_has_taken_is_found_and_everything_put_back(
    switch: DummySwitch, app: Application
) -> None:
    assert app.realise("set_desired", BRIDGE, {attempt(1).key: attempt(1)})[0] == "realised"
    assert app.realise("change", BRIDGE, [attempt(2), attempt(3)], [attempt(1).key])[0] == "realised"
    before, dumps = switch.flows(BRIDGE), app.call("counts", BRIDGE).dumps
    backwards = replace(attempt(4), actions=(attempt(4).actions[0], Goto(4)))
    outcome, reason = app.realise("change", BRIDGE, [backwards, attempt(5)], [attempt(2).key])
    assert outcome == "refused"
    assert "OFPBIC_BAD_TABLE_ID" in reason
    assert app.call("counts", BRIDGE).dumps - dumps == 1, "it went with its commit, and what came of it was looked at"
    assert switch.flows(BRIDGE) == before
    assert app.realise("change", BRIDGE, [attempt(4), attempt(5)], [attempt(2).key])[0] == "realised"
    assert len(switch.flows(BRIDGE)) == 3


def test_a_flow_that_cannot_be_written_is_refused_like_one_the_switch_refuses(
    switch: DummySwitch, app: Application
) -> None:
    assert app.realise("set_desired", BRIDGE, {})[0] == "realised"
    masked = Flow(5, 1, (FieldMatch("in_port", 1, 1),), (), attempt(1).cookie)
    outcome, reason = app.realise("change", BRIDGE, [attempt(2), masked], [])
    assert (outcome, switch.flows(BRIDGE)) == ("refused", [])
    assert "in_port: has no masks" in reason


def test_a_bad_whole_truth_keeps_the_one_before(switch: DummySwitch, app: Application) -> None:
    good = {attempt(n).key: attempt(n) for n in (1, 2)}
    assert app.realise("set_desired", BRIDGE, good)[0] == "realised"
    before = switch.flows(BRIDGE)
    assert app.realise("set_desired", BRIDGE, {impossible().key: impossible()})[0] == "refused"
    assert switch.flows(BRIDGE) == before
    assert app.state(BRIDGE).converged


def test_of_changes_that_go_out_together_only_the_bad_one_fails(switch: DummySwitch, app: Application) -> None:
    assert app.realise("set_desired", BRIDGE, {})[0] == "realised"
    several: list[tuple[list[Flow], list[FlowKey]]] = [
        ([impossible(n)] if n == 7 else [attempt(n)], []) for n in range(1, 21)
    ]
    tickets = app.call("changes", BRIDGE, several)
    outcomes = [app.call("wait", ticket, 10.0)[0] for ticket in tickets]
    assert [n for n, outcome in enumerate(outcomes, 1) if outcome == "refused"] == [7]
    assert outcomes.count("realised") == 19
    assert len(switch.flows(BRIDGE)) == 19


def test_many_changes_share_a_bundle(switch: DummySwitch, app: Application) -> None:
    assert app.realise("set_desired", BRIDGE, {})[0] == "realised"
    before = app.call("counts", BRIDGE).bundles
    tickets = app.call("changes", BRIDGE, [([attempt(n)], []) for n in range(1, 101)])
    assert {app.call("wait", ticket, 10.0)[0] for ticket in tickets} == {"realised"}
    assert app.call("counts", BRIDGE).bundles - before == 1  # the first needs none, all that came meanwhile go together


def test_a_switch_that_restarts_gets_its_flows_again(switch: DummySwitch, app: Application) -> None:
    wanted = every_kind()
    assert app.realise("set_desired", BRIDGE, wanted)[0] == "realised"
    good = switch.flows(BRIDGE)
    switch.kill_switch()
    wait_until("the connection is seen to be gone", lambda: not app.state(BRIDGE).connected)
    # A change while it is away stays wanted; its ticket stays open.
    ticket = app.call("change", BRIDGE, [attempt(99)], [])
    assert app.call("wait", ticket, 0.05)[0] == "timed-out"
    with pytest.raises(RigError, match="not connected"):
        app.call("flow_stats", BRIDGE, 0, 0)
    start = time.monotonic()
    switch.start_switch()
    assert app.call("wait", ticket, 15.0) == ("realised", "")
    print(f"same flows {time.monotonic() - start:.2f} s after ovs-vswitchd was started again")
    assert len(switch.flows(BRIDGE)) == len(good) + 1
    assert set(good) < set(switch.flows(BRIDGE))


def test_emptied_zones_are_confirmed_and_who_is_gone_before_has_confirmed_nothing(
    switch: DummySwitch, app: Application
) -> None:
    switch.vsctl("add-port", BRIDGE, "p1", "--", "set", "interface", "p1", "type=dummy", "ofport_request=1")
    for zone in (7, 8, 9):
        lane = f"table=0,cookie=0x4c01000000000000,priority=7,udp,tp_dst={zone},actions=ct(commit,zone={zone})"
        switch.ofctl("add-flow", BRIDGE, lane)

    def remembered() -> list[str]:
        return sorted(set(re.findall(r"zone=(\d+)", switch.appctl("dpctl/dump-conntrack"))))

    def connections() -> None:
        for zone in (7, 8, 9):
            switch.appctl(
                "netdev-dummy/receive", "p1",
                "in_port(1),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x0800),"
                f"ipv4(src=10.0.0.1,dst=10.0.0.2,proto=17,tos=0,ttl=64,frag=no),udp(src=4000,dst={zone})",
            )  # fmt: skip
        wait_until("they are remembered", lambda: remembered() == ["7", "8", "9"])

    connections()
    assert app.realise("forget_connections", BRIDGE, [7, 9]) == ("realised", "")
    assert remembered() == ["8"]

    # It is told, and gone before it has taken it up.
    connections()
    switch.pause_switch()
    told = app.call("forget_connections", BRIDGE, [7, 9])
    assert app.call("wait", told, 0.2)[0] == "timed-out"
    switch.kill_switch()
    assert app.call("wait", told, 10) == ("refused", "disconnected")
    assert app.realise("forget_connections", BRIDGE, [7])[0] == "refused"
    switch.start_switch()
    wait_until("it is back", lambda: app.state(BRIDGE).connected)
    assert app.realise("forget_connections", BRIDGE, [7]) == ("realised", "")


def test_nothing_is_touched_before_the_truth_is_said(switch: DummySwitch, app: Application) -> None:
    switch.ofctl("add-flow", BRIDGE, "table=5,cookie=0x4c07000000000001,priority=5,in_port=1,actions=drop")
    before = switch.flows(BRIDGE)
    reconnect_dumps = app.call("counts", BRIDGE).dumps
    switch.reconnect(BRIDGE, app.address)
    wait_until("read again", lambda: app.call("counts", BRIDGE).dumps > reconnect_dumps)
    time.sleep(0.2)
    assert switch.flows(BRIDGE) == before
    assert flow_mods(app) == 0
    outcome, reason = app.realise("change", BRIDGE, [attempt(1)], [])
    assert (outcome, "set_desired" in reason) == ("refused", True)
    # The positive control: once it is said, the same flow goes.
    assert app.realise("set_desired", BRIDGE, {})[0] == "realised"
    assert switch.flows(BRIDGE) == []


def test_ports_are_known_by_name(switch: DummySwitch, app: Application) -> None:
    def ports() -> dict[str, int]:
        return dict(app.state(BRIDGE).ports)

    wait_until("the bridge's own port", lambda: ports() == {BRIDGE: 65534})
    assert app.call("events")[0] == ("connected", BRIDGE)
    switch.vsctl("add-port", BRIDGE, "lj1", "--", "set", "interface", "lj1", "type=dummy", "ofport_request=17")
    wait_until("a port that came", lambda: ports().get("lj1") == 17)
    reconnect_to = app.call("counts", BRIDGE).dumps
    assert app.realise("set_desired", BRIDGE, {})[0] == "realised"
    switch.reconnect(BRIDGE, app.address)
    app.until_converged(BRIDGE, reconnect_to + 1)
    wait_until("a port that was there", lambda: ports() == {BRIDGE: 65534, "lj1": 17})
    switch.vsctl("del-port", BRIDGE, "lj1")
    wait_until("a port that went", lambda: ports() == {BRIDGE: 65534})
    heard = [event[2] for event in app.call("events") if event[0] == "ports"]
    assert {BRIDGE: 65534, "lj1": 17} in heard
    assert heard[-1] == {BRIDGE: 65534}


def test_counters_are_read_by_cookie_and_survive_a_replacement(switch: DummySwitch, app: Application) -> None:
    switch.ofctl("add-flow", BRIDGE, "table=0,cookie=0x4c01000000000000,actions=goto_table:5")
    switch.vsctl("add-port", BRIDGE, "p1", "--", "set", "interface", "p1", "type=dummy", "ofport_request=1")
    one, two = attempt(1), attempt(2)
    assert app.realise("set_desired", BRIDGE, {one.key: one, two.key: two})[0] == "realised"
    packet = "in_port(1),eth(src=02:6c:0a:14:01:05,dst=02:6c:0a:14:01:06),eth_type(0x1234)"
    for _ in range(3):
        switch.appctl("netdev-dummy/receive", "p1", packet)

    def packets(flow: Flow) -> int:
        (stats,) = app.call("flow_stats", BRIDGE, flow.cookie, cookies.FULL_MASK)
        assert stats.key == flow.key
        counted: int = stats.packets
        return counted

    wait_until("three packets counted", lambda: packets(one) == 3)
    assert packets(two) == 0
    changed = Flow(one.table, one.priority, one.match, (Output(2),), one.cookie)
    assert app.realise("change", BRIDGE, [changed], [])[0] == "realised"
    assert any("output:2" in line for line in switch.flows(BRIDGE))
    assert packets(one) == 3
    assert app.call("flow_stats", BRIDGE, 0x4C07_0000_0000_0005, cookies.FULL_MASK) == []


def test_an_unknown_and_a_second_switch_are_turned_away(switch: DummySwitch, app: Application) -> None:
    assert app.realise("set_desired", BRIDGE, {attempt(1).key: attempt(1)})[0] == "realised"
    try:
        switch.bridge("lksw-other", 0x999, app.address)
        wait_until("the unknown one is turned away", lambda: app.call("turned_away") >= 1)
        switch.vsctl("set", "bridge", "lksw-other", f"other-config:datapath-id={DPID:016x}")
        wait_until("the second one is turned away", lambda: "is connected already" in app.log())
        assert "dpid=0000000000000999" in app.log()
        assert "a second switch with this datapath id is turned away" in app.state(BRIDGE).detail
        assert "999" not in app.state(BRIDGE).detail, "a bridge that is connected is not looked for"
        assert switch.flows("lksw-other") == []
    finally:
        switch.vsctl("del-br", "lksw-other")
    # The one that was there first is undisturbed.
    assert app.realise("change", BRIDGE, [attempt(2)], [])[0] == "realised"
    assert app.call("counts", BRIDGE).dumps == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_a_bridge_that_is_not_there_shows_which_stranger_was_turned_away(engine: str, switch: DummySwitch) -> None:
    """Most often it is that very bridge, whose datapath id is another than in site.yaml."""
    app = Application(engine, {DPID: BRIDGE})
    try:
        assert app.state(BRIDGE).detail == ""
        switch.bridge(BRIDGE, 0x998, app.address)
        said = "a switch with datapath id 0000000000000998, which no bridge of site.yaml has, is turned away: 127.0.0.1"
        wait_until("it is shown", lambda: said in app.state(BRIDGE).detail)
        switch.vsctl("set", "bridge", BRIDGE, f"other-config:datapath-id={DPID:016x}")
        wait_until("it connects", lambda: app.state(BRIDGE).connected)
        assert "turned away" not in app.state(BRIDGE).detail
    finally:
        switch.vsctl("--if-exists", "del-br", BRIDGE)
        assert app.stop() == 0
    assert app.faults() == []


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("address", "welcome"), [("127.0.0.2", False), ("127.0.0.1", True)])
def test_a_bridge_is_taken_only_from_its_own_address(
    engine: str, address: str, welcome: bool, switch: DummySwitch
) -> None:
    """The switch connects from 127.0.0.1. That must be the bridge's address, whatever its datapath id."""
    app = Application(engine, {DPID: BRIDGE}, addresses={BRIDGE: address})
    try:
        switch.bridge(BRIDGE, DPID, app.address)
        if welcome:
            wait_until("the right one is let in", lambda: app.state(BRIDGE).connected)
            assert app.realise("set_desired", BRIDGE, {attempt(1).key: attempt(1)})[0] == "realised"
            assert len(switch.flows(BRIDGE)) == 1
        else:
            app.call("set_desired", BRIDGE, {attempt(1).key: attempt(1)})
            wait_until("it is turned away, each time it comes", lambda: app.call("turned_away") >= 2)
            assert not app.state(BRIDGE).connected
            assert app.call("events") == []
            assert switch.flows(BRIDGE) == []
        said = f"bridge {BRIDGE} connects from {address} (its address in site.yaml)"
        assert (f"turned away: {said}" in app.log()) is not welcome
        assert ("a switch with this datapath id is turned away, 127.0.0.1" in app.state(BRIDGE).detail) is not welcome
        assert (said in app.state(BRIDGE).detail) is not welcome
    finally:
        switch.vsctl("--if-exists", "del-br", BRIDGE)
        assert app.stop() == 0
    assert app.faults() == []


def test_a_restarted_switch_gets_no_flow_of_old_port_numbers(switch: DummySwitch, app: Application) -> None:
    """The port has another number after the restart. What followed from the old one must not be pushed meanwhile."""
    switch.vsctl("add-port", BRIDGE, "p1", "--", "set", "interface", "p1", "type=dummy", "ofport_request=3")
    app.call("follow_p1")
    dumps = app.call("counts", BRIDGE).dumps
    switch.reconnect(BRIDGE, app.address)
    wait_until("the flow of port 3 is there", lambda: any("output:3" in line for line in switch.flows(BRIDGE)))
    assert flow_mods(app) == 1
    switch.kill_switch()
    switch.vsctl("--no-wait", "set", "interface", "p1", "ofport_request=7")
    switch.start_switch()
    app.until_converged(BRIDGE, dumps + 2)
    wait_until("the flow of port 7 is there", lambda: any("output:7" in line for line in switch.flows(BRIDGE)))
    assert len(switch.flows(BRIDGE)) == 1
    assert flow_mods(app) == 2  # and not the old one first, and its removal


def test_nonsense_on_the_listener_disturbs_nobody(switch: DummySwitch, app: Application) -> None:
    assert app.realise("set_desired", BRIDGE, {})[0] == "realised"
    with socket.create_connection(app.address) as silent:
        for nonsense in (b"", b"GET / HTTP/1.1\r\n\r\n", bytes(4096)):
            with socket.create_connection(app.address) as rude:
                rude.sendall(nonsense)
        assert app.realise("change", BRIDGE, [attempt(2)], [])[0] == "realised"
        assert silent.fileno() >= 0
    assert app.call("counts", BRIDGE).dumps == 1
    wait_until("it is told", lambda: "OFPUnknownVersion" in app.log())
    assert "Traceback" not in app.log()


def test_a_switch_that_speaks_only_an_older_openflow_is_not_used(switch: DummySwitch, app: Application) -> None:
    switch.vsctl("set", "bridge", BRIDGE, "protocols=OpenFlow13")
    wait_until("the old connection is gone", lambda: not app.state(BRIDGE).connected)
    wait_until("it is refused", lambda: "If possible, set the switch to use" in app.log())
    assert not app.state(BRIDGE).connected
    switch.vsctl("set", "bridge", BRIDGE, "protocols=OpenFlow14")
    wait_until("the positive control", lambda: app.state(BRIDGE).connected)


def test_the_port_of_another_is_an_error_and_the_old_one_serves_on(app: Application) -> None:
    engine = app.engine.split()[0]
    with pytest.raises(RigError, match="cannot listen for switches on"):
        Application(engine, {1: "other"}, app.address)


def test_latency_of_a_change(app: Application) -> None:
    """No assertion on time beyond a generous one: benchmarks measure, this prints."""
    assert app.realise("set_desired", BRIDGE, every_kind())[0] == "realised"
    took = sorted(app.call("latency", BRIDGE, [attempt(n) for n in range(1, 101)]))
    p50, p99 = statistics.median(took) * 1000, took[int(len(took) * 0.99)] * 1000
    print(f"{app.engine}: a change confirmed by the switch: p50 {p50:.2f} ms, p99 {p99:.2f} ms")
    assert p50 < 50


def test_sigint_ends_it_too(app: Application) -> None:
    app.process.send_signal(signal.SIGINT)
    assert app.process.wait(10) == 0


def test_open_vswitch_commits_the_rest_of_a_bundle_with_a_bad_part(switch: DummySwitch) -> None:
    """Why the machine waits for a barrier before it commits: Open vSwitch alone would not keep all-or-nothing."""
    switch.bridge("lksw-fact", 0x998)
    try:
        bad = Flow(5, 1, match(), (Goto(4),), attempt(1).cookie)
        with socket.socket(socket.AF_UNIX) as wire:
            wire.connect(str(switch.home / "lksw-fact.mgmt"))
            wire.settimeout(5)
            wire.sendall(encode.HEADER.pack(encode.VERSION, 0, 8, 0))
            wire.sendall(
                encode.bundle_open(1, 1)
                + encode.bundle_add(1, encode.add_flow(bad, 2))
                + encode.bundle_add(1, encode.add_flow(attempt(1), 3))
                + encode.bundle_commit(1, 4)
                + encode.barrier(5)
            )
            answer = b""
            while b"\x05\x15\x00\x08\x00\x00\x00\x05" not in answer:
                answer += wire.recv(4096)
        assert len(switch.flows("lksw-fact")) == 1
    finally:
        switch.vsctl("del-br", "lksw-fact")


def test_the_reader_agrees_with_ovs_ofctl_on_a_dump(switch: DummySwitch) -> None:
    """A flow written by `ovs-ofctl` is read as the value we would have written."""
    switch.bridge("lksw-read", 0x998)
    try:
        line = "table=5,priority=200,cookie=0x4c07000000000007,in_port=7,actions=load:7->NXM_NX_REG0[],resubmit(,6)"
        switch.ofctl("add-flow", "lksw-read", line.replace("resubmit(,6)", "goto_table:6"))
        switch.ofctl("add-flow", "lksw-read", line.replace("table=5", "table=6"))
        with socket.socket(socket.AF_UNIX) as wire:
            wire.connect(str(switch.home / "lksw-read.mgmt"))
            wire.settimeout(5)
            wire.sendall(encode.HEADER.pack(encode.VERSION, 0, 8, 0) + encode.flow_stats_request(9))
            answer = b""
            while True:
                answer += wire.recv(4096)
                first = int.from_bytes(answer[2:4], "big")
                if len(answer) > first and len(answer) >= first + int.from_bytes(answer[first + 2 : first + 4], "big"):
                    break
        ours, theirs = sorted(decode.flow_stats(answer[first:]).entries, key=lambda one: one.table)
        assert ours.flow == attempt(7)
        assert theirs.key is not None
        assert theirs.flow is None  # resubmit is more than a Flow can say
    finally:
        switch.vsctl("del-br", "lksw-read")
