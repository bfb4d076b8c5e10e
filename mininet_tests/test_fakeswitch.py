"""The fake switch against a real one: what `ovs-ofctl` sees of both after the same commands, and what the controller's
application on both engines makes of it."""

from __future__ import annotations

import functools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from mininet_tests.fakeswitch import FakeSwitch, FleetThread, wire
from mininet_tests.fakeswitch.__main__ import prepare
from mininet_tests.switch_flows import attempt, every_kind
from mininet_tests.switch_rig import ENGINES, ROOT, Application, DummySwitch, wait_until
from ovs_agent import plan

REAL = "br-lkfs"
VERSIONS = ("OpenFlow13", "OpenFlow14")
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("add-flow", "table=1,priority=5,cookie=0x11,ip,nw_dst=10.0.0.0/8,actions=goto_table:2"),
    ("add-flow", "table=1,priority=5,cookie=0x12,ip,nw_dst=10.1.0.0/16,tcp,tp_dst=80,actions=output:3"),
    ("add-flow", "table=1,priority=6,cookie=0x1200000001,reg3=0x10/0xf0,actions=load:1->NXM_NX_REG5[],resubmit(,2)"),
    ("add-flow", "table=2,priority=1,cookie=0x21,ipv6,ipv6_src=2001:db8::/32,actions=output:3,output:4"),
    ("add-flow", "table=2,priority=1,arp,arp_tpa=10.0.0.1,actions=drop"),
    ("add-flow", "priority=9,dl_vlan=7,actions=strip_vlan,NORMAL"),
    ("add-flow", "priority=9,in_port=4,idle_timeout=600,hard_timeout=900,send_flow_rem,actions=output:1"),
    # The same match, written the other way round: replaced, and not another one.
    ("add-flow", "table=1,priority=5,cookie=0x13,tcp,tp_dst=80,nw_dst=10.1.0.0/16,actions=output:5"),
    ("add-flow", "table=1,priority=5,nw_dst=10.1.2.3/32,ip,actions=output:6"),
    ("mod-flows", "table=1,ip,actions=output:8"),
    ("--strict", "mod-flows", "table=1,priority=5,ip,nw_dst=10.0.0.0/8,actions=output:9"),
    # Strictly, with another priority: hits nothing. A modification never adds.
    ("--strict", "mod-flows", "table=1,priority=4,ip,nw_dst=10.0.0.0/8,actions=output:10"),
    ("mod-flows", "table=3,udp,actions=output:11"),
    ("mod-flows", "cookie=0x21/-1,actions=output:12"),
    ("--strict", "del-flows", "table=1,priority=5,ip,nw_dst=10.1.2.3"),
    ("--strict", "del-flows", "table=1,priority=7,ip,nw_dst=10.0.0.0/8"),
    ("del-flows", "table=1,ip,nw_dst=10.0.0.0/12"),
    ("del-flows", "cookie=0x1200000000/0xffffffff00000000"),
    ("del-flows", "out_port=12"),
    ("add-flow", "table=9,priority=1,meter:4,actions=NORMAL"),
    ("del-flows", "table=9,tcp"),
    ("del-flows", "in_port=4"),
    ("del-flows", "table=1"),
    ("del-flows",),
)  # fmt: skip


def ofctl(target: str, version: str, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ovs-ofctl", "-O", version, "--timeout=10", *argv[:1], *([] if argv[0] != "--strict" else argv[1:2]), target,
         *argv[1 + (argv[0] == "--strict") :]],
        capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip


def seen(target: str, version: str) -> list[str]:
    """The flows, without what the fake has none of (times) and without counters."""
    done = ofctl(target, version, "dump-flows")
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in done.stdout.splitlines() if "actions=" in line]
    return sorted(
        re.sub(r"(duration=\S+|n_packets=\d+|n_bytes=\d+|idle_age=\d+|hard_age=\d+),? ?", "", x) for x in lines
    )


@pytest.fixture(scope="module")
def real() -> Iterator[str]:
    with DummySwitch() as switch:
        switch.bridge(REAL, 0x4C4B4653)
        switch.vsctl("set", "bridge", REAL, "protocols=OpenFlow13,OpenFlow14")
        yield f"unix:{switch.home}/{REAL}.mgmt"


@pytest.fixture
def fake() -> FakeSwitch:
    return FakeSwitch(0x4C4B4653)


@pytest.fixture
def thread(fake: FakeSwitch) -> Iterator[FleetThread]:
    with FleetThread([fake]) as running:
        yield running


@pytest.fixture
def target(fake: FakeSwitch, thread: FleetThread) -> str:
    return f"tcp:127.0.0.1:{thread.listen(fake)}"


@pytest.mark.parametrize("version", VERSIONS)
def test_flows_are_what_a_real_switch_holds_after_the_same_commands(real: str, target: str, version: str) -> None:
    for switch in (real, target):
        ofctl(switch, version, "del-flows")
        ofctl(switch, version, "add-meter", "meter=4,kbps,bands=type=drop,rate=1000")
    counts = []
    for command in COMMANDS:
        codes = [ofctl(switch, version, *command).returncode for switch in (real, target)]
        assert codes[0] == codes[1], f"{command}: {codes}"
        here, there = seen(real, version), seen(target, version)
        assert there == here, f"after {command}"
        counts.append(len(here))
    assert max(counts) >= 7
    assert counts[-1] == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_errors_are_those_of_a_real_switch(real: str, target: str, version: str) -> None:
    good = ("add-flow", "table=1,priority=5,ip,nw_dst=10.0.0.0/8,actions=output:1")
    wrong = (
        ("add-flow", "check_overlap,table=1,priority=5,ip,nw_dst=10.0.0.0/16,actions=output:2"),
        ("add-flow", "table=254,actions=output:2"),
    )
    for switch in (real, target):
        ofctl(switch, version, "del-flows")
        assert ofctl(switch, version, *good).returncode == 0
    for command in wrong:
        said = []
        for switch in (real, target):
            done = ofctl(switch, version, *command)
            said.append(re.findall(r"OFPT_ERROR[^:]*: (\S+)", done.stdout + done.stderr))
        assert said[0], command
        assert said[1] == said[0], command
    assert seen(target, version) == seen(real, version)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_bundle_takes_place_as_a_whole_or_not_at_all(real: str, target: str, version: str, tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text("add table=1,priority=1,in_port=1,actions=output:2\ndelete table=5\nadd table=2,actions=drop\n")
    bad.write_text("add table=3,actions=drop\nadd check_overlap,table=1,priority=1,actions=drop\ndelete table=2\n")
    for switch in (real, target):
        ofctl(switch, version, "del-flows")
        done = ofctl(switch, version, "add-flow", "table=5,actions=drop")
        assert done.returncode == 0, done.stderr
    codes = []
    for file in (good, bad):
        for switch in (real, target):
            argv = ["ovs-ofctl", "-O", version, "--timeout=10", "--bundle", "add-flows", switch, str(file)]
            codes.append(subprocess.run(argv, capture_output=True, check=False, timeout=20).returncode != 0)
        assert seen(target, version) == seen(real, version)
    assert codes == [False, False, True, True]
    assert len(seen(target, version)) == 2


@pytest.mark.parametrize("version", VERSIONS)
def test_ports_tables_totals_and_meters_can_be_read(
    fake: FakeSwitch, thread: FleetThread, target: str, version: str
) -> None:
    for number, name in ((7, "lj1-7"), (8, "up1")):
        thread.call(functools.partial(fake.add_port, number, name))
    shown = ofctl(target, version, "show").stdout
    assert "dpid:000000004c4b4653" in shown
    assert re.search(r"7\(lj1-7\)", shown)
    assert re.search(r"8\(up1\)", shown)
    assert ofctl(target, version, "dump-ports").stdout.count("rx pkts=") == 2
    assert ofctl(target, version, "add-flow", "table=3,in_port=7,actions=drop").returncode == 0
    key = thread.call(lambda: next(iter(fake.tables.entries)))
    thread.call(lambda: fake.tables.count(key, 5, 500))
    assert "packet_count=5 byte_count=500 flow_count=1" in ofctl(target, version, "dump-aggregate").stdout
    assert "n_packets=5, n_bytes=500" in ofctl(target, version, "dump-flows").stdout
    assert re.search(r"table 3:\s+active=1,", ofctl(target, version, "dump-tables").stdout)
    assert ofctl(target, version, "add-meter", "meter=9,kbps,bands=type=drop,rate=77").returncode == 0
    assert "rate=77" in ofctl(target, version, "dump-meters").stdout
    assert "max_meter" in ofctl(target, version, "meter-features").stdout
    assert "frags=nx-match" in _after_set_frags(target, version)


def _after_set_frags(target: str, version: str) -> str:
    assert ofctl(target, version, "set-frags", "nx-match").returncode == 0
    return ofctl(target, version, "get-frags").stdout.replace("nx-match", "frags=nx-match")


def test_a_long_dump_comes_whole(real: str, target: str, tmp_path: Path) -> None:
    file = tmp_path / "flows"
    file.write_text("".join(f"table=1,tcp,nw_src=10.0.{n >> 8}.{n & 255},actions=output:1\n" for n in range(3000)))
    for switch in (real, target):
        ofctl(switch, "OpenFlow14", "del-flows")
        argv = ["ovs-ofctl", "-O", "OpenFlow14", "add-flows", switch, str(file)]
        assert subprocess.run(argv, capture_output=True, check=False, timeout=60).returncode == 0
    assert seen(target, "OpenFlow14") == seen(real, "OpenFlow14")
    assert len(seen(target, "OpenFlow14")) == 3000
    ofctl(real, "OpenFlow14", "del-flows")


def test_a_monitor_hears_of_others_changes_as_from_a_real_switch(real: str, target: str, tmp_path: Path) -> None:
    heard = []
    for name, switch in (("real", real), ("fake", target)):
        ofctl(switch, "OpenFlow14", "del-flows")
        ofctl(switch, "OpenFlow14", "add-flow", "table=4,actions=drop")
        log = tmp_path / name
        with log.open("w") as sink:
            argv = ["ovs-ofctl", "-O", "OpenFlow14", "monitor", switch, "watch:"]
            monitor = subprocess.Popen(argv, stdout=sink, stderr=sink, env={**os.environ, "OVS_RUNDIR": str(tmp_path)})
        try:
            wait_until("the monitor has begun", lambda log=log: "event=INITIAL" in log.read_text())  # type: ignore[misc]
            for command in (
                ("add-flow", "table=1,cookie=0x7,ip,actions=output:1"),
                ("mod-flows", "table=1,ip,actions=output:2"),
                ("del-flows", "table=1"),
            ):
                assert ofctl(switch, "OpenFlow14", *command).returncode == 0
            wait_until("heard of all", lambda log=log: "event=DELETED" in log.read_text())  # type: ignore[misc]
        finally:
            monitor.terminate()
            monitor.wait(10)
        heard.append([line.strip() for line in log.read_text().splitlines() if " event=" in line])
    assert heard[1] == heard[0]
    assert len(heard[0]) == 4


# ----------------------------------------------------------------------------------------- the controller's application


@pytest.fixture(params=ENGINES)
def app(request: pytest.FixtureRequest) -> Iterator[Application]:
    application = Application(request.param, {0x4C4B4653: REAL})
    yield application
    code = application.stop()
    print(application.log())
    assert code == 0
    assert application.faults() == []


@pytest.fixture
def lark(app: Application) -> Iterator[tuple[FakeSwitch, FleetThread]]:
    """A fake as the agent prepares a bridge, connected to the application and in line."""
    switch = FakeSwitch(0x4C4B4653)
    prepare(switch)
    with FleetThread([switch], app.address, retry=0.1) as running:
        wait_until("connected", lambda: app.state(REAL).connected)
        assert app.realise("set_desired", REAL, every_kind())[0] == "realised"
        yield switch, running


def flows_of(running: FleetThread, switch: FakeSwitch) -> int:
    return running.call(lambda: len(switch.tables.entries)) - 1


@pytest.mark.engine
def test_a_switch_that_knows_no_meters_is_known_as_such_and_taken_all_the_same(
    app: Application, lark: tuple[FakeSwitch, FleetThread]
) -> None:
    switch, running = lark
    assert app.state(REAL).meters
    switch.faults.refuse_multiparts = frozenset({wire.MP_METER_FEATURES})
    for dumps, meters in ((2, False), (3, True)):
        running.call(lambda: running.fleet.drop(running.fleet.places[0]))
        app.until_converged(REAL, dumps)
        assert app.state(REAL).meters is meters
        switch.faults.refuse_multiparts = frozenset()


@pytest.mark.engine
def test_the_application_brings_it_in_line_and_sends_nothing_the_second_time(
    app: Application, lark: tuple[FakeSwitch, FleetThread]
) -> None:
    switch, running = lark
    wanted = every_kind()
    assert (flows_of(running, switch), app.state(REAL).detail) == (len(wanted), "")
    assert switch.flow_mods == len(wanted)
    running.call(lambda: running.fleet.drop(running.fleet.places[0]))
    app.until_converged(REAL, 2)
    assert switch.flow_mods == len(wanted)
    assert switch.fragments == 3
    running.call(switch.forget)
    running.call(lambda: prepare(switch))
    running.call(lambda: running.fleet.drop(running.fleet.places[0]))
    app.until_converged(REAL, 3)
    assert flows_of(running, switch) == len(wanted)


@pytest.mark.engine
def test_the_application_hears_of_ports_and_of_flows_changed_by_others(
    app: Application, lark: tuple[FakeSwitch, FleetThread]
) -> None:
    switch, running = lark
    running.call(lambda: switch.add_port(9, "lj1-9"))
    wait_until("it is there", lambda: dict(app.state(REAL).ports).get("lj1-9") == 9)
    running.call(lambda: switch.remove_port(9))
    wait_until("it is gone", lambda: "lj1-9" not in app.state(REAL).ports)
    port = running.listen(switch)
    table = next(iter(every_kind())).table
    assert ofctl(f"tcp:127.0.0.1:{port}", "OpenFlow14", "del-flows", f"table={table}").returncode == 0
    wait_until("repaired", lambda: flows_of(running, switch) == len(every_kind()))
    assert "somebody else changed flows" in app.log()


@pytest.mark.engine
def test_faults_are_what_the_application_takes_them_for(app: Application, lark: tuple[FakeSwitch, FleetThread]) -> None:
    switch, running = lark
    assert app.realise("change", REAL, [attempt(77)], [])[0] == "realised"
    # A barrier that is not answered.
    switch.faults.hold_barriers = True
    ticket = app.call("change", REAL, [attempt(78)], [])
    assert app.call("wait", ticket, 0.5)[0] == "timed-out"
    running.call(switch.release)
    assert app.call("wait", ticket, 5)[0] == "realised"
    # Full tables: refused with the switch's reason, and what was there stays.
    before = flows_of(running, switch)
    switch.tables.capacity = before + 1
    outcome, reason = app.realise("change", REAL, [attempt(79)], [])
    assert (outcome, "TABLE_FULL" in reason) == ("refused", True)
    switch.tables.capacity = None
    assert flows_of(running, switch) == before
    # A commit that is refused: of two entries, for one alone goes without a bundle.
    switch.faults.refuse_commits = (17, 13)
    assert app.realise("change", REAL, [attempt(80), attempt(82)], [])[0] == "refused"
    switch.faults.refuse_commits = None
    # Slow, and right all the same.
    running.fleet.places[0].delay = 0.3
    began = time.monotonic()
    assert app.realise("change", REAL, [attempt(81), attempt(83)], [])[0] == "realised"
    assert time.monotonic() - began >= 0.6
    running.fleet.places[0].delay = 0


@pytest.mark.engine
def test_a_second_switch_with_the_same_datapath_id_is_turned_away(
    app: Application, lark: tuple[FakeSwitch, FleetThread]
) -> None:
    _, _ = lark
    twin = FakeSwitch(0x4C4B4653)
    with FleetThread([twin], app.address, retry=0.2):
        wait_until("it is reported", lambda: "a second switch with this datapath id" in app.state(REAL).detail)
    assert twin.flow_mods == 0
    assert app.state(REAL).converged


@pytest.mark.engine
def test_strangers_who_come_while_much_is_told_do_not_stop_the_application(
    app: Application, lark: tuple[FakeSwitch, FleetThread]
) -> None:
    """To close a connection is an event, too: from inside of one, with the framework's queue of them full, it would
    wait for itself."""
    switch, running = lark
    strangers = [FakeSwitch(0xBAD000 + n) for n in range(24)]

    def tell() -> None:
        for number in range(1, 200):
            switch.add_port(number, f"p{number}")

    with FleetThread(strangers, app.address, retry=0.01):
        for _ in range(60):
            running.call(tell)
        wait_until("many were turned away", lambda: app.call("turned_away") > 200, 60)
    assert app.realise("change", REAL, [attempt(90)], [])[0] == "realised"
    wait_until("all ports are known", lambda: len(app.state(REAL).ports) == 199)


# ---------------------------------------------------------------------------------------------------------- the command


def _until(what: str, probe: Callable[[], bool]) -> None:
    wait_until(what, probe, 20)


def _ask(path: Path, question: str) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(question.encode() + b"\n")
        return client.makefile().readline()


def test_the_command_runs_many_of_them_in_one_process(tmp_path: Path) -> None:
    count = 200
    first = 0x100
    application = Application("os-ken", {first + n: f"b{n}" for n in range(count)})
    control = tmp_path / "control"
    host, port = application.address
    argv: Sequence[str] = (
        f"--controller=tcp:{host}:{port}", f"--count={count}", f"--first-dpid={first}", "--ports=1001-1020",
        "--port-name=lj{n}-{port}", "--port=up{n}=1", "--lark", f"--control={control}",
    )  # fmt: skip
    command = [sys.executable, "-m", "mininet_tests.fakeswitch", *argv]
    fleet = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        _until("all are connected", lambda: all(one.connected for one in application.call("bridges")))
        _until("its ports are known", lambda: len(application.state("b7").ports) == 21)
        ports = application.state("b7").ports
        assert (ports["lj7-1020"], ports["up7"]) == (1020, 1)
        assert '"connected": 200' in _ask(control, '{"do": "count"}')
        assert application.realise("set_desired", "b7", every_kind())[0] == "realised"
        assert f'"107": {len(every_kind()) + 1}' in _ask(control, '{"do": "count"}')
        assert _ask(control, '{"do": "add-port", "dpid": 263, "number": 9, "name": "new"}') == '{"ok": true}\n'
        _until("its port is known", lambda: application.state("b7").ports.get("new") == 9)
        assert "no such thing" in _ask(control, '{"do": "dance", "dpid": 263}')
    finally:
        fleet.send_signal(signal.SIGTERM)
        said, _ = fleet.communicate(timeout=20)
        application.stop()
    assert fleet.returncode == 0
    assert f"ended: {len(every_kind())} flow-mods" in said
    assert plan.PREPARED  # what --lark writes into the description is the agent's own
