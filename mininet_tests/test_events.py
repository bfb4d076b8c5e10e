"""What an administrator reads in `larkctl events` when somebody meddles with a border: what it was, and the way out.

Real Open vSwitch, real controller, `lark-agent border`; nobody runs `keep-bridge`, which would put some of it right.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from mininet_tests.border_rig import BRIDGE, Lane
from mininet_tests.border_site import BorderSite, border_site
from mininet_tests.site.lark import ENVIRONMENT, python_command
from mininet_tests.site.namespaces import wait_until
from policies.wire import Event, EventList

POLICY = """\
mode: enforce
classes:
  - {name: production, dscp: af41, guarantee: 50%}
  - {name: osg, dscp: cs1, guarantee: 10%}
classify: [{class: osg}]
"""


class Reader:
    """Who asks again from where they were."""

    def __init__(self, site: BorderSite) -> None:
        self._site = site
        self._cursor: str | None = None
        self.read: list[Event] = []

    def look(self) -> list[Event]:
        """What is new."""
        since = [] if self._cursor is None else ["--since", self._cursor]
        found = EventList.model_validate_json(json.dumps(self._site.larkctl.json("events", *since)))
        assert (found.missed, found.restarted) == (0, False)
        self._cursor = found.cursor
        self.read += found.events
        return found.events

    def waits_for(self, kind: str) -> Event:
        """The next one of a kind; what comes before it is passed over."""
        found: list[Event] = []

        def there() -> bool:
            found.extend(one for one in self.look() if one.kind == kind)
            return bool(found)

        wait_until(f"{kind} is told", there, 40, 0.25)
        return found[0]


@pytest.fixture(scope="module")
def site() -> Iterator[BorderSite]:
    lanes = [Lane("production", 1, 34), Lane("osg", 3, 8)]
    with border_site(lanes, 50_000_000, POLICY, compiled=True) as found:
        yield found


@pytest.fixture
def reader(site: BorderSite) -> Reader:
    site.wait_in_force()
    found = Reader(site)
    found.look()
    return found


def test_flows_deleted_by_hand_are_told_with_how_many_and_which(site: BorderSite, reader: Reader) -> None:
    assert {"policy-loaded", "bridge-connected", "bridge-adopted"} <= {one.kind for one in reader.read}
    assert "flows-repaired" not in {one.kind for one in reader.read}
    socket = f"unix:/run/openvswitch/{BRIDGE}.mgmt"
    flows = site.rig.border.need("ovs-ofctl", "-OOpenFlow14", "dump-flows", socket).splitlines()
    tables = [line.partition("table=")[2].partition(",")[0] for line in flows if "table=" in line]
    table = next(one for one in tables if one != "0")
    site.rig.border.need("ovs-ofctl", "-OOpenFlow14", "del-flows", socket, f"table={table}")
    told = reader.waits_for("flows-repaired")
    assert (told.bridge, told.level) == (BRIDGE, "warning")
    assert f"flows {tables.count(table)} gone, 0 altered, 0 added; for example gone: table={table}," in told.text
    assert "find who changes flows" in told.mend


def test_a_bridge_that_would_not_stay_closed_is_told(site: BorderSite, reader: Reader) -> None:
    assert site.rig.switch is not None
    site.rig.switch.vsctl("set-fail-mode", BRIDGE, "standalone")
    told = reader.waits_for("fail-mode-wrong")
    assert "lacks fail_mode=secure" in told.text
    assert "lark-agent prepare-bridge" in told.mend
    site.rig.switch.vsctl("set-fail-mode", BRIDGE, "secure")
    assert reader.waits_for("bridge-mended").text == "without a controller it would stay closed again"


def test_a_wan_port_that_is_down_or_away_is_told_and_so_is_that_it_is_back(site: BorderSite, reader: Reader) -> None:
    machine, switch = site.rig.border, site.rig.switch
    assert switch is not None
    machine.need("ip", "link", "set", "wan0", "down")
    down = reader.waits_for("wan-port-down")
    assert (down.port, "ip link set" in down.mend) == ("wan0", True)
    machine.need("ip", "link", "set", "wan0", "up")
    assert reader.waits_for("wan-port-back").port == "wan0"
    site.wait_in_force()

    switch.vsctl("del-port", BRIDGE, "wan0")
    missing = reader.waits_for("wan-port-missing")
    assert (missing.bridge, missing.port, missing.level) == (BRIDGE, "wan0", "error")
    assert "closed until it has" in missing.text
    assert "ovs-vsctl add-port" in missing.mend
    switch.vsctl("add-port", BRIDGE, "wan0")
    assert reader.waits_for("wan-port-back").text.startswith("its port wan0 is back")


def test_who_shapes_the_port_instead_of_lark_is_told(site: BorderSite, reader: Reader) -> None:
    machine = site.rig.border
    tbf = ["tbf", "rate", "1gbit", "burst", "1mb", "latency", "50ms"]
    machine.need("tc", "qdisc", "replace", "dev", "wan0", "root", *tbf)
    told = reader.waits_for("border-qdisc-foreign")
    assert (told.port, told.level) == ("wan0", "error")
    assert "tc qdisc del dev PORT root" in told.mend
    machine.need("tc", "qdisc", "del", "dev", "wan0", "root")
    assert reader.waits_for("border-mended").port == "wan0"


def test_queues_deleted_by_hand_are_put_back_and_told(site: BorderSite, reader: Reader) -> None:
    # The port may be just back: its queues come with the agent's next look.
    wait_until("wan0 has its queues", lambda: "htb" in site.rig.border.need("tc", "qdisc", "show", "dev", "wan0"), 60)
    site.wait_in_force()
    site.rig.border.need("tc", "qdisc", "del", "dev", "wan0", "root")
    told = reader.waits_for("queues-repaired")
    assert (told.bridge, told.port, told.level) == (BRIDGE, "wan0", "warning")
    assert "find who runs tc" in told.mend
    site.wait_in_force()
    assert "htb" in site.rig.border.need("tc", "qdisc", "show", "dev", "wan0", "root")


def test_a_flow_past_the_policy_is_an_error_and_the_bridge_is_not_said_to_be_in_line(
    site: BorderSite, reader: Reader
) -> None:
    def line() -> str:
        return next(one for one in site.larkctl.text("bridges").splitlines() if BRIDGE in one)

    assert "in line" in line()
    socket = f"unix:/run/openvswitch/{BRIDGE}.mgmt"
    stranger = "table=0,priority=65535"
    site.rig.border.need("ovs-ofctl", "-OOpenFlow14", "add-flow", socket, f"{stranger},actions=NORMAL")
    told = reader.waits_for("table-bypassed")
    assert (told.bridge, told.level) == (BRIDGE, "error")
    assert "table=0,priority=65535 cookie=0x0 actions=NORMAL" in told.text
    assert "meddled" in line()
    site.rig.border.need("ovs-ofctl", "-OOpenFlow14", "--strict", "del-flows", socket, stranger)
    assert reader.waits_for("bridge-mended").text == "all flows in table 0 are the agent's again"
    wait_until("in line again", lambda: "in line" in line(), 40, 0.5)


def test_people_read_the_same_in_the_log_and_on_the_screen(site: BorderSite, reader: Reader) -> None:
    text = site.larkctl.text("events", "--kind", "policy-loaded")
    assert "info policy-loaded: started with policy " in text
    assert site.controller.daemon is not None
    log = site.controller.daemon.log.read_text(encoding="utf-8")
    for one in reader.read:
        assert f"event={one.kind} " in log or f"event={one.kind}:" in log
        assert one.text in log


def test_a_border_with_a_wrong_name_or_without_a_controller_says_so(site: BorderSite) -> None:
    machine, config = site.rig.border, site.agent.config
    wrong = config.with_name("wrong.yaml")
    text = config.read_text().replace("state-dir: border-state", "state-dir: other-state")
    wrong.write_text(text.replace(f"bridge: {BRIDGE}", "bridge: bordr-br"))
    argv = python_command("ovs_agent.cli", "border", "--config", str(wrong))
    said = machine.run(argv, env=ENVIRONMENT, timeout=30)
    assert said.code == 1
    assert f"bridge bordr-br: no such bridge (there are {BRIDGE}); mend bridge in {wrong}" in said.err
    wrong.write_text(text.replace(":8080", ":8081"))
    alone = machine.spawn("alone", argv, env=ENVIRONMENT)
    try:
        ready = alone.wait_for_line("keeping the queues", 30)
        assert "none are wished for yet: waiting for http://192.0.2.1:8081" in ready
        alone.wait_for_line("mend controller.urls", 30)
    finally:
        alone.stop()
