"""What the controller tells by itself: what makes an event, who may read it, how one waits, what larkctl writes."""

from __future__ import annotations

import logging
import re
import threading
import time
from pathlib import Path
from unittest import mock

import pytest
from click.testing import CliRunner

from policies.events import ABOUT, Kind
from policies.language import load_site, policy_from_text
from policies.wire import Event, EventList, Finding, PortReport, QueueReport
from ryu_apps import events as module
from ryu_apps import larkctl, reread
from ryu_apps.config import ConfigError
from ryu_apps.event_lines import in_lines
from ryu_apps.events import Events
from ryu_apps.files import Files
from ryu_apps.refusals import Refused
from ryu_apps.rest.api import Api
from ryu_apps.rest.auth import Tokens, hash_token
from tests.unit.controller.rig import POLICY, SITE, Rig, aid
from tests.unit.controller.test_api import Caller, put, slug
from tests.unit.controller.test_borders import BORDERS, CLASSES, REPORT, WHO, caller_with_borders, wish_of

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "events.md").read_text()


@pytest.fixture
def call(tmp_path: Path) -> Caller:
    return caller_with_borders(tmp_path)


def told(call: Caller, since: str | None = None) -> EventList:
    query = "" if since is None else f"?since={since}"
    return EventList.model_validate_json(call("GET", f"/v1/events{query}", who="viewer").body)


def kinds(call: Caller, since: str | None = None) -> list[str]:
    return [one.kind for one in told(call, since).events]


def report(call: Caller, *findings: tuple[str, str | None, str], speed: int | None = None, typed: bool = True) -> None:
    found = [Finding(kind=kind, port=port, text=text) for kind, port, text in findings]
    said = QueueReport(
        digest=wish_of(call).digest,
        faults=[one.text for one in found],
        ports={"wan0": PortReport(rate=10**6, speed=speed, classes={})},
        findings=found if typed else [],
    )
    assert call("PUT", REPORT, said.model_dump(mode="json"), who="edge").status_code == 200


def test_a_port_that_goes_comes_or_gets_another_number_is_told_once(call: Caller) -> None:
    fabric = call.rig.fabric
    there = dict(fabric.state["edge"].ports)
    start = told(call).cursor
    assert kinds(call) == [], "ports that are there when a bridge connects are no news"
    without = {name: number for name, number in there.items() if name != "wan0"}
    fabric.set_ports("edge", without)
    fabric.set_ports("edge", {**without, "someone": 77})
    (gone,) = told(call, start).events
    assert (gone.kind, gone.bridge, gone.port, gone.level) == ("wan-port-missing", "edge", "wan0", "error")
    assert gone.text == "it has no port wan0, which site.yaml declares, and is closed until it has"
    assert "ovs-vsctl add-port" in gone.mend
    fabric.set_ports("edge", there)
    fabric.set_ports("edge", {**there, "lan0": 55})
    fabric.set_ports("edge", {**there, "wan0": 56, "lan0": 55})
    fabric.set_ports("gate1", {name: number for name, number in fabric.state["gate1"].ports.items() if name != "wf0"})
    fabric.set_ports("gate1", {**fabric.state["gate1"].ports, "wf0": 9})
    assert kinds(call, told(call, start).cursor) == []
    later = [(one.kind, one.port) for one in told(call, start).events[1:]]
    assert later == [
        ("wan-port-back", "wan0"),
        ("port-renumbered", "lan0"),
        ("port-renumbered", "wan0"),
        ("bridge-closed", "wf0"),
        ("bridge-opened", "wf0"),
    ]


def test_a_border_without_its_port_from_the_beginning_is_told(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(SITE + BORDERS)
    site, policy = load_site(tmp_path / "site.yaml"), policy_from_text(POLICY + CLASSES)
    rig = Rig(site, policy, policy_from_text)
    rig.fabric.disconnect("edge")
    del rig.fabric.state["edge"].ports["wan0"]
    rig.restart()
    rig.fabric.connect("edge")
    assert [(one.kind, one.port) for one in rig.controller.events.read(None).events] == [("wan-port-missing", "wan0")]


def test_a_lease_a_refusal_and_the_store_are_told(call: Caller, caplog: pytest.LogCaptureFixture) -> None:
    rig = call.rig
    with caplog.at_level(logging.INFO, "lark.events"):
        assert call("PUT", f"/v1/attempts/{aid()}", put()).status_code == 201
        rig.controller.tick()
        assert kinds(call) == []
        assert slug(call("PUT", f"/v1/attempts/{aid(3)}", put(3, LarkNetwork=5))) == "held"
        assert slug(call("PUT", f"/v1/attempts/{aid(3)}", put(3, LarkNetwork=5))) == "held"
        (refused,) = told(call).events
        assert (refused.kind, refused.node, refused.attempt) == ("registration-refused", "wn1", aid(3))
        assert refused.text.startswith("registration refused (held): ")
        rig.store.fail = "the disk is full"
        rig.controller.tick()
        rig.controller.tick()
        rig.store.fail = None
        rig.controller.tick()
        assert kinds(call) == ["registration-refused", "store-lost", "store-back"]
        for _ in range(61):
            rig.clock.now += 1
            rig.controller.tick()
        ended = [one for one in told(call).events if one.kind == "lease-ended"]
        assert {one.node for one in ended} == {"wn1", "wn2"}
        again = [one for one in told(call).events if one.kind == "registration-refused"]
        assert [one.times for one in again] == [1, 1]
    lines = [one.getMessage() for one in caplog.records if one.name == "lark.events"]
    assert len(lines) == sum(one.times for one in told(call).events), "the log holds nothing back"
    for one in told(call).events:
        assert [line for line in lines if line.startswith(f"event={one.kind} node=") or not one.node]
        assert [line for line in lines if line.endswith(f": {one.text}; {one.mend}" if one.mend else f": {one.text}")]
    text = call.rig.controller.metrics.text(call.rig.controller).decode()
    assert 'lark_events_total{kind="registration-refused"} 2.0' in text
    assert 'lark_events_total{kind="bridge-lost"} 0.0' in text


def test_a_reload_is_told_and_so_is_one_that_failed(call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> Files:
        raise ConfigError("policy.yaml:1:1: a fault; mend it\npolicy.yaml:2:1: another")

    files = mock.MagicMock(config=mock.Mock(path=Path("c")))
    monkeypatch.setattr(reread, "read_files", refuse)
    reread.reload(files, call.rig.controller, call.api, mock.Mock())
    files.policy, files.tokens = call.rig.controller.world.policy, call.api.tokens
    monkeypatch.setattr(reread, "read_files", lambda _: files)
    reread.reload(files, call.rig.controller, call.api, mock.Mock())
    refused, loaded = told(call).events
    assert refused.kind == "policy-refused"
    assert refused.text == "not reloaded: policy.yaml:1:1: a fault; mend it (and 1 more, in the log)"
    assert loaded.kind == "policy-loaded"


def test_what_a_borders_agent_finds_is_told_once_and_so_is_its_end(call: Caller) -> None:
    foreign = ("border-qdisc-foreign", "wan0", "wan0: has a root qdisc tbf")
    report(call, foreign, ("something-new", None, "words of a newer agent"), speed=10**9)
    report(call, foreign, ("something-new", None, "words of a newer agent"), speed=10**9)
    assert kinds(call) == ["border-qdisc-foreign", "border-fault"]
    report(call, ("wan-port-down", "wan0", "port wan0 has no link"), speed=10**8)
    seen = [(one.kind, one.port, one.text) for one in told(call).events[2:]]
    assert seen == [
        ("border-mended", "wan0", "nobody else shapes it any more"),
        ("border-mended", None, "no longer: words of a newer agent"),
        ("wan-port-down", "wan0", "port wan0 has no link"),
        ("wan-port-speed-changed", "wan0", "the link of port wan0 runs at 100 Mbit/s now, not at 1 Gbit/s"),
    ]
    report(call)
    assert kinds(call)[6:] == ["wan-port-back"]
    report(call, ("fail-mode-wrong", None, "fail_mode is standalone"))
    report(call)
    assert kinds(call)[7:] == ["fail-mode-wrong", "bridge-mended"]


def test_what_an_agent_has_put_back_is_told_as_it_grows(call: Caller) -> None:
    def repaired(**counts: int) -> list[tuple[str, str | None, str]]:
        said = QueueReport(digest=wish_of(call).digest, faults=[], ports={}, repaired=counts)
        since = told(call).cursor
        assert call("PUT", REPORT, said.model_dump(mode="json"), who="edge").status_code == 200
        return [(one.kind, one.port, one.text.rpartition(": ")[2]) for one in told(call, since).events]

    assert repaired(wan0=7) == [], "what was before this controller is no news"
    assert repaired(wan0=7) == []
    assert repaired(wan0=18) == [("queues-repaired", "wan0", "11 parts of them")]
    assert repaired() == [], "an agent that has started anew"
    assert repaired(wan0=2, lan0=1) == [
        ("queues-repaired", "wan0", "2 parts of them"),
        ("queues-repaired", "lan0", "1 parts of them"),
    ]


def test_a_port_that_is_away_is_told_by_the_bridge_and_not_twice(call: Caller) -> None:
    report(call, ("wan-port-missing", "wan0", "port wan0 is not plugged into bridge edge-br: it has no queues"))
    assert kinds(call) == []
    report(call, ("border-fault", "wan0", "port wan0: its link is slow; mend the link, or site.yaml"))
    report(call)
    assert [one.text for one in told(call).events][1:] == ["no longer: port wan0: its link is slow"]


def test_a_refused_job_is_named_and_its_repeats_are_one_event_all_the_same(call: Caller) -> None:
    for number in (3, 4):
        body = put(number, LarkNetwork=5) | {"job": f"{number}.0"}
        assert slug(call("PUT", f"/v1/attempts/{aid(number)}", body)) == "held"
    (first,) = told(call).events
    assert (first.job, "3.0" in first.text) == ("3.0", False)
    for _ in range(61):
        call.rig.clock.now += 1
        call.rig.controller.tick()
    again = [one for one in told(call).events if one.kind == "registration-refused"]
    assert [(one.job, one.times) for one in again] == [("3.0", 1), ("4.0", 1)]
    assert " job 3.0: registration refused" in next(in_lines(first))


def test_an_agent_that_says_no_kinds_is_told_as_faults(call: Caller) -> None:
    report(call, ("border-qdisc-foreign", "wan0", "a root qdisc tbf"), typed=False)
    report(call, typed=False)
    assert [(one.kind, one.port) for one in told(call).events] == [("border-fault", None), ("border-mended", None)]


@pytest.mark.parametrize(
    ("who", "status"), [("viewer", 200), ("admin", 200), ("agent1", 403), ("edge", 403), (None, 401)]
)
def test_people_read_them_and_agents_do_not(call: Caller, who: str | None, status: int) -> None:
    assert call("GET", "/v1/events", who=who).status_code == status


@pytest.mark.parametrize("query", ["since=x", "since=", "wait=-1", "wait=x", "wait=", "wait=1e3", "kind=x", "wait=nan"])
def test_a_question_that_makes_no_sense_is_refused(call: Caller, query: str) -> None:
    assert slug(call("GET", f"/v1/events?{query}", who="viewer")) == "malformed"
    assert call("GET", f"/v1/events?since={told(call).cursor}&wait=0.01", who="viewer").status_code == 200


def test_who_waits_is_answered_when_something_happens_and_not_before() -> None:
    events = Events("c1")
    events.tell(Kind.STORE_LOST, "before")
    found: list[EventList] = []
    cursor = events.read(None).cursor
    reader = threading.Thread(target=lambda: found.append(events.read(cursor, 30)))
    reader.start()
    deadline = time.monotonic() + 10
    while not events.waiting and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not found
    events.tell(Kind.STORE_BACK, "after")
    reader.join(10)
    assert [one.text for one in found[0].events] == ["after"]
    assert (found[0].controller, found[0].events[0].controller, found[0].missed) == ("c1", "c1", 0)
    assert events.read(found[0].cursor, 0.01).events == []
    # Who has something to read does not wait, nor does anybody once the controller ends.
    assert len(events.read(None, 30).events) == 2
    events.close()
    assert events.read(found[0].cursor, 30).events == []


def test_only_so_many_wait_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READERS", 0)
    events = Events()
    with pytest.raises(Refused) as refused:
        events.read(events.read(None).cursor, 1)
    assert refused.value.slug.value == "too-many"
    assert events.read(None).events == [], "who does not wait is answered"


def test_a_restart_is_told_to_who_followed(call: Caller) -> None:
    call.rig.fabric.set_ports("edge", {})
    cursor = told(call).cursor
    call.rig.restart()
    call.api = Api(call.rig.controller, Tokens({hash_token(name): who for name, who in WHO.items()}))
    found = told(call, cursor)
    assert found.restarted
    assert {one.kind for one in found.events} == {"wan-port-missing", "bridge-closed"}


EVENT = Event(
    number=1, time=1_700_000_000, controller="c1", kind="bridge-lost", level="warning", bridge="edge",
    text="gone \x1b[31m", mend="see", times=3,
)  # fmt: skip
OTHER = EVENT.model_copy(update={"kind": "store-back", "bridge": None, "mend": "", "times": 1, "text": "back"})


def test_larkctl_writes_what_happened_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    found = EventList(controller="c1", events=[EVENT, OTHER], cursor="a.9", missed=4)
    monkeypatch.setattr(larkctl.Client, "get", lambda *_, **__: found)
    lines = CliRunner().invoke(larkctl.cli, ["events"]).stdout.splitlines()
    assert lines[0].startswith("4 events are missing here")
    assert re.fullmatch(
        r"20\d\d-\d\d-\d\d \S+ warning bridge-lost \[c1\] bridge edge: gone \?\[31m \(3 times\)", lines[1]
    )
    assert lines[2] == "    see"
    assert lines[3].endswith("info store-back [c1]: back".replace("info", "warning"))
    said = CliRunner().invoke(larkctl.cli, ["events", "--kind", "store-back", "--json"]).stdout
    assert [one.kind for one in EventList.model_validate_json(said).events] == ["store-back"]
    assert "bridge-lost" in CliRunner().invoke(larkctl.cli, ["events", "--kind", "nothing"]).stderr


class _Stopped(Exception):
    pass


def test_who_follows_sees_the_controller_come_back_and_asks_from_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, str]] = []
    first = EventList(controller="", events=[EVENT], cursor="a.1")
    second = EventList(controller="", events=[OTHER], cursor="b.1", restarted=True)
    answers: list[EventList | Exception] = [first, larkctl.Failure("no answer"), second, _Stopped()]

    def get(client: larkctl.Client, *_: object, **query: str) -> EventList:
        assert client.patience > float(query["wait"]) + 5
        asked.append(query)
        if isinstance(one := answers.pop(0), Exception):
            raise one
        return one

    monkeypatch.setattr(larkctl.Client, "get", get)
    monkeypatch.setattr(larkctl.time, "sleep", lambda _: None)
    done = CliRunner().invoke(larkctl.cli, ["events", "--follow", "--json"])
    assert isinstance(done.exception, _Stopped)
    assert [Event.model_validate_json(line).kind for line in done.stdout.splitlines()] == ["bridge-lost", "store-back"]
    assert done.stderr.startswith("larkctl: no answer\nlarkctl: the controller has restarted")
    assert [one.get("since") for one in asked] == [None, "a.1", "a.1", "b.1"]
    assert [float(one["wait"]) > 0 for one in asked] == [False, True, True, True]


def test_the_page_has_a_row_for_each_kind_with_its_level_and_what_to_do() -> None:
    rows = {
        kind: (level, mend) for kind, level, mend in re.findall(r"^\| `([a-z-]+)` \| (\w+) \|.*\| (.*)\|$", PAGE, re.M)
    }
    assert {kind: level for kind, (level, _) in rows.items()} == {
        kind.value: about.level for kind, about in ABOUT.items()
    }
    assert set(ABOUT) == set(Kind)
    for kind, about in ABOUT.items():
        assert bool(rows[kind.value][1].strip()) == bool(about.mend), kind
        assert bool(about.mend) == (about.level != "info"), f"{kind}: what is wrong has a way out, what is not has none"


def test_every_kind_is_told_somewhere() -> None:
    sources = [path for package in ("ryu_apps", "ovs_agent") for path in (ROOT / package).rglob("*.py")]
    text = "\n".join(path.read_text() for path in sources)
    assert [kind for kind in Kind if f"Kind.{kind.name}" not in text] == []


def test_a_command_that_mends_is_in_a_language_that_our_bridges_speak() -> None:
    """`prepare-bridge` leaves OpenFlow 1.3 and 1.4; ovs-ofctl speaks 1.0 unless it is told otherwise."""
    operations = (ROOT / "docs" / "operations.md").read_text()
    for text in (*(about.mend for about in ABOUT.values()), PAGE, operations):
        for command in re.findall(r"ovs-ofctl\b.{0,40}(?:dump|del|add)-flows|ovs-ofctl\b.{0,20}ct-flush-zone", text):
            assert command.startswith("ovs-ofctl -O OpenFlow14 "), command
