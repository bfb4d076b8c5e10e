"""What the API, Prometheus and larkctl are told of classes, jobs and the controller."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from unittest import mock

import pytest
import webob
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from rich.console import Console

from policies.language import check_together, load_policy, load_site, policy_from_text
from policies.wire import ClassReport, ClassStats, PortReport, QueueReport, SiteStats
from ryu_apps import larkctl, reread
from ryu_apps.admission import FEW
from ryu_apps.config import ConfigError
from ryu_apps.files import Files
from ryu_apps.larkctl import Model
from ryu_apps.openflow.border import FORBIDDEN, WHY_FORBIDDEN
from ryu_apps.openflow.counters import Slot
from ryu_apps.rest.api import Api
from ryu_apps.rest.auth import Tokens, hash_token
from tests.unit.controller.rig import POLICY, SITE, Rig, aid, spec
from tests.unit.controller.test_api import Caller, put, slug
from tests.unit.controller.test_borders import BORDERS, CLASSES, REPORT, WHO, wish_of
from tests.unit.controller.test_counting import count, round_of

OPERATIONS = Path(__file__).parents[3] / "docs" / "operations.md"
MBIT = 10**6


@pytest.fixture
def call(tmp_path: Path) -> Caller:
    (tmp_path / "site.yaml").write_text(SITE + BORDERS)
    site, policy = load_site(tmp_path / "site.yaml"), policy_from_text(POLICY + CLASSES)
    check_together(policy, site)
    found = Caller(Rig(site, policy, policy_from_text, state_dir=tmp_path))
    return renewed(found)


def renewed(call: Caller) -> Caller:
    """The API of the controller that is there now."""
    call.api = Api(call.rig.controller, Tokens({hash_token(name): who for name, who in WHO.items()}))
    return call


def carry(call: Caller, octets: int, drops: int = 0, name: str = "production", port: str = "wan0") -> None:
    """The border's agent reports what one class's queue has carried."""
    seen = ClassReport(bytes=octets, packets=octets // 1000, drops=drops, backlog=1500, rate=8 * octets)
    ports = {port: PortReport(rate=50 * MBIT, classes={name: seen})}
    said = QueueReport(digest=wish_of(call).digest, faults=[], ports=ports)
    assert call("PUT", REPORT, said.model_dump(mode="json"), who="edge").status_code == 200


def stats(call: Caller) -> SiteStats:
    return SiteStats.model_validate_json(call("GET", "/v1/stats", who="viewer").body)


def of_class(call: Caller, name: str = "production", port: str = "wan0") -> ClassStats:
    (found,) = [one for one in stats(call).classes if (one.bridge, one.port, one.name) == ("edge", port, name)]
    return found


def samples(call: Caller) -> list[Sample]:
    answer = call("GET", "/metrics", who="viewer")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    return [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]


def value(call: Caller, name: str, **labels: str) -> float:
    (found,) = [one.value for one in samples(call) if one.name == name and labels.items() <= one.labels.items()]
    return found


@pytest.mark.parametrize("path", ["/v1/stats", "/metrics"])
def test_people_may_read_them_and_nobody_else(call: Caller, path: str) -> None:
    assert [call("GET", path, who=who).status_code for who in ("viewer", "admin")] == [200, 200]
    assert [slug(call("GET", path, who=who)) for who in ("agent1", "edge")] == ["forbidden", "forbidden"]
    assert slug(call("GET", path, who=None)) == "unauthorised"
    assert slug(call("PUT", path, {}, who="admin")) == "method-not-allowed"
    assert slug(call("GET", f"{path}?all=1", who="admin")) == "malformed"


def test_each_class_on_each_way_out_with_its_promise_beside(call: Caller) -> None:
    assert [(one.bridge, one.port, one.direction, one.name) for one in stats(call).classes if one.bridge == "edge"] == [
        ("edge", "wan0", "out", "production"),
        ("edge", "wan0", "out", "osg"),
        ("edge", "lan0", "in", "production"),
        ("edge", "lan0", "in", "osg"),
    ]
    assert [(one.bridge, one.age, one.in_force) for one in stats(call).borders] == [
        ("edge", None, False),
        ("edge2", None, False),
    ]
    carry(call, 100_000, drops=3)
    found = of_class(call)
    assert (found.bytes, found.packets, found.drops, found.backlog, found.rate) == (100_000, 100, 3, 1500, 800_000)
    assert (found.guarantee, found.ceiling, found.dscp) == (25 * MBIT, 50 * MBIT, 34)
    call.rig.clock.now += 30
    late = of_class(call)
    # Its agent says nothing any more: what was carried stays, what is now nobody knows.
    assert (late.bytes, late.rate, late.backlog) == (100_000, 0, 0)
    assert stats(call).borders[0].age == 30


def test_what_a_class_has_carried_never_goes_back(call: Caller) -> None:
    carry(call, 100_000, drops=3)
    carry(call, 250_000, drops=4)
    carry(call, 10_000)  # the queues were made anew
    assert (of_class(call).bytes, of_class(call).drops) == (260_000, 4)
    call.rig.controller.tick()
    call.rig.restart()
    renewed(call)
    carry(call, 20_000, drops=1)
    assert (of_class(call).bytes, of_class(call).packets, of_class(call).drops) == (270_000, 270, 5)
    # The class goes and comes back with another policy.
    call.rig.controller.reload(policy_from_text(POLICY))
    assert [one.name for one in stats(call).classes if one.bridge == "edge"] == ["all", "all"]
    call.rig.controller.reload(policy_from_text(POLICY + CLASSES))
    carry(call, 500)
    assert of_class(call).bytes == 270_500


def test_prometheus_hears_of_no_queue_before_its_first_report_to_this_controller(call: Caller) -> None:
    """A controller that was killed has written nothing: 0, and then all that it had before, would count twice."""
    carry(call, 100_000)
    call.rig.restart()
    renewed(call)
    of_edge = {one.name for one in samples(call) if one.labels.get("bridge") == "edge" and "class" in one.labels}
    assert of_edge == {"lark_class_guarantee_bits_per_second", "lark_class_ceiling_bits_per_second"}
    carry(call, 120_000)
    where = {"bridge": "edge", "port": "wan0", "direction": "out", "class": "production"}
    assert value(call, "lark_class_bytes_total", **where) == 120_000


def test_prometheus_is_told_who_was_turned_away(call: Caller) -> None:
    admission = call.rig.controller.admission
    with contextlib.ExitStack() as inside:
        for _ in range(FEW):
            inside.enter_context(admission.place("wn1"))
        call.rig.clock.now += 1
        assert slug(call("PUT", f"/v1/attempts/{aid()}", put())) == "too-many"
        assert value(call, "lark_registrations_turned_away_total") == 1
        assert value(call, "lark_registrations_under_way") == FEW
        assert value(call, "lark_behind_seconds") > 0.8


def test_a_bridge_without_a_declared_port_says_so(call: Caller) -> None:
    def detail() -> str:
        (found,) = [one.detail for one in call.rig.controller.bridges() if one.bridge == "edge"]
        return found

    there = call.rig.fabric.state["edge"].ports
    assert detail() == ""
    call.rig.fabric.set_ports("edge", {name: number for name, number in there.items() if name != "wan0"})
    assert detail() == "it has no port wan0, which site.yaml declares, and is closed until it has"
    assert value(call, "lark_bridge_ports_missing", bridge="edge") == 1
    assert value(call, "lark_bridge_ports_missing", bridge="br1") == 0
    states = dict(
        re.findall(r"^(\w+) .*  (in line|closed|connected|not connected)  ", larkctl_says(call, "bridges"), re.M)
    )
    assert (states["edge"], states["br1"]) == ("closed", "in line")
    call.rig.fabric.disconnect("edge")
    assert "wan0" not in detail()


def test_a_reload_that_failed_is_told(call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGHUP answers nobody: whoever sent it would believe that the new policy holds."""
    assert value(call, "lark_reload_succeeded") == 1

    def refuse(_: Path) -> Files:
        raise ConfigError("policy.yaml:1:1: a fault; mend it")

    files = mock.MagicMock(config=mock.Mock(path=Path("c")))
    monkeypatch.setattr(reread, "read_files", refuse)
    reread.reload(files, call.rig.controller, call.api, mock.Mock())
    assert value(call, "lark_reload_succeeded") == 0
    files.policy, files.tokens = call.rig.controller.world.policy, call.api.tokens
    monkeypatch.setattr(reread, "read_files", lambda _: files)
    reread.reload(files, call.rig.controller, call.api, mock.Mock())
    assert value(call, "lark_reload_succeeded") == 1


def test_larkctl_policy_says_what_the_files_say_and_is_not_in_force(
    call: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warnings() -> list[str]:
        return [line for line in larkctl_says(call, "policy").splitlines() if not line.startswith("policy ")]

    controller, path = call.rig.controller, tmp_path / "policy.yaml"
    path.write_text(POLICY)
    controller.reload(load_policy(path))
    controller.on_disk.policy = path
    assert warnings() == []
    path.write_text(POLICY + "# more\n")
    (line,) = warnings()
    assert line.startswith("NOT what the files say: the files have changed since they were read; send SIGHUP")
    path.unlink()
    (line,) = warnings()
    assert f"cannot read {path}" in line
    path.write_text(POLICY + "# more\n")

    def refuse(_: Path) -> Files:
        raise ConfigError("policy.yaml:1:1: a fault; mend it\nand another")

    monkeypatch.setattr(reread, "read_files", refuse)
    files = mock.MagicMock(config=mock.Mock(path=Path("c")))
    reread.reload(files, controller, call.api, mock.Mock())
    assert warnings() == ["NOT what the files say: the last SIGHUP was refused: policy.yaml:1:1: a fault; mend it"]
    files.config.policy, files.policy, files.tokens = path, load_policy(path), call.api.tokens
    monkeypatch.setattr(reread, "read_files", lambda _: files)
    call.rig.fabric.state["br2"].silent = True
    reread.reload(files, controller, call.api, mock.Mock())
    assert warnings() == ["not confirmed yet by br2; larkctl bridges says why"]
    call.rig.fabric.state["br2"].silent = False
    controller.reload(controller.world.policy)
    assert warnings() == []


class _Stopped(Exception):
    pass


def test_who_watches_sees_the_controller_come_back(call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    found = stats(call)
    said: list[SiteStats | Exception] = [found, larkctl.Failure("no answer"), found, _Stopped()]

    def get(*_: object) -> SiteStats:
        if isinstance(one := said.pop(0), Exception):
            raise one
        return one

    monkeypatch.setattr(larkctl.Client, "get", get)
    monkeypatch.setattr(larkctl.time, "sleep", lambda _: None)
    done = CliRunner().invoke(larkctl.cli, ["stats", "--watch"])
    assert isinstance(done.exception, _Stopped)
    assert done.stdout.count("attempts; since the controller started") == 2
    assert done.stderr == "larkctl: no answer\n"


def test_classes_that_nobody_wished_for_are_not_told(call: Caller) -> None:
    carry(call, 100_000, name="mine")
    carry(call, 100_000, port="eth9")
    assert {one.name for one in stats(call).classes} == {"production", "osg"}
    assert {one.port for one in stats(call).classes} == {"wan0", "lan0"}
    assert {one.bytes for one in stats(call).classes} == {0}
    assert not [one for one in samples(call) if "mine" in one.labels.values() or "eth9" in one.labels.values()]
    carry(call, 100_000)
    assert of_class(call).bytes == 100_000


def test_prometheus_is_told_of_jobs_classes_bridges_nodes_and_the_store(call: Caller) -> None:
    assert call("PUT", f"/v1/attempts/{aid()}", put()).status_code == 201
    assert call("PUT", f"/v1/attempts/{aid()}", put()).status_code == 200
    assert slug(call("PUT", f"/v1/attempts/{aid(3)}", put(3, LarkNetwork=5))) == "held"
    count(call.rig, aid(), Slot.OWN, 10, 1000)
    count(call.rig, aid(), Slot.UNGRANTED, 3, 180)
    round_of(call.rig)
    carry(call, 100_000, drops=3)
    assert value(call, "lark_attempts") == 1
    assert value(call, "lark_job_bytes_total", direction="sent") == 1000
    assert value(call, "lark_refused_packets_total", reason="no-grant") == 3
    assert value(call, "lark_registrations_total", outcome="in-force") == 1
    assert value(call, "lark_registrations_total", outcome="again") == 1
    assert value(call, "lark_registrations_total", outcome="held") == 1
    assert value(call, "lark_registration_seconds_count") == 1
    where = {"bridge": "edge", "port": "wan0", "direction": "out", "class": "production"}
    assert value(call, "lark_class_bytes_total", **where) == 100_000
    assert value(call, "lark_class_drops_total", **where) == 3
    assert value(call, "lark_class_guarantee_bits_per_second", **where) == 25 * MBIT
    assert value(call, "lark_bridge_connected", bridge="br1") == 1
    assert value(call, "lark_bridge_converged", bridge="br1") == 1
    call.rig.fabric.state["br1"].bypassed = True
    assert value(call, "lark_bridge_converged", bridge="br1") == 0, "not in line: something goes past the policy"
    call.rig.fabric.disconnect("br1")
    assert value(call, "lark_bridge_connected", bridge="br1") == 0
    assert value(call, "lark_node_attempts", node="wn1") == 1
    assert 0 < value(call, "lark_node_lease_seconds", node="wn1") <= 60
    assert value(call, "lark_store_reachable") == 1
    call.rig.store.fail = "the disk is full"
    assert value(call, "lark_store_reachable") == 0
    assert value(call, "lark_counting_flows_total") > 0


def test_what_a_border_refuses_is_told_of_it_by_reason_and_outlives_its_switch(call: Caller) -> None:
    state = call.rig.fabric.state["edge"]

    def count_refused(packets: int) -> int:
        """Each flow that refuses at the border has counted so many packets of 100 bytes; how many say forged?"""
        found = [key for key, flow in state.flows.items() if flow.cookie == FORBIDDEN]
        state.counters.update(dict.fromkeys(found, (packets, packets * 100)))
        forged = [key for key in found if WHY_FORBIDDEN[key.table, key.priority] == "forged"]
        assert 1 < len(forged) < len(found)
        return len(forged)

    assert not any(border.refused for border in stats(call).borders)
    forged = count_refused(3)
    round_of(call.rig)
    told = {one.reason: one for one in stats(call).borders[0].refused}
    assert (told["forged"].packets, told["forged"].bytes) == (3 * forged, 300 * forged)
    where = {"bridge": "edge", "reason": "forged"}
    assert value(call, "lark_border_refused_packets_total", **where) == 3 * forged
    assert value(call, "lark_border_refused_packets_total", bridge="edge2", reason="forged") == 0
    call.rig.fabric.disconnect("edge", forget=True)
    call.rig.fabric.connect("edge")
    round_of(call.rig)
    assert value(call, "lark_border_refused_packets_total", **where) == 3 * forged
    count_refused(1)
    round_of(call.rig)
    assert value(call, "lark_border_refused_packets_total", **where) == 4 * forged
    assert value(call, "lark_border_refused_bytes_total", bridge="edge", reason="unmarkable") > 0
    console = Console(width=200)
    with console.capture() as captured:
        console.print(larkctl.stats_table(stats(call)))
    assert f"edge: refused (forged): {4 * forged} packets" in captured.get()
    # Every flow of a border that refuses is told for some reason.
    drops = [flow for flow in state.flows.values() if not flow.actions]
    assert drops
    assert {flow.cookie for flow in drops} == {FORBIDDEN}
    assert {(flow.table, flow.priority) for flow in drops} == set(WHY_FORBIDDEN)


def test_no_job_makes_a_line_of_its_own(call: Caller) -> None:
    def lines() -> set[tuple[str, frozenset[tuple[str, str]]]]:
        return {(one.name, frozenset(one.labels.items())) for one in samples(call)}

    call.rig.controller.register(aid(2), spec(2))
    round_of(call.rig)
    before = lines()
    for n in range(3, 30):
        ad = {"Owner": f"user{n}", "User": f"user{n}@site", "LarkSlice": f"slice{n}"}
        call.rig.controller.register(aid(n), spec(n, **ad))
    round_of(call.rig)
    assert lines() == before
    assert value(call, "lark_attempts") == 28


def test_the_operations_page_names_every_metric(call: Caller) -> None:
    call.rig.controller.register(aid(2), spec(2))
    count(call.rig, aid(), Slot.UNGRANTED, 3, 180)
    round_of(call.rig)
    carry(call, 1000)
    chapter = OPERATIONS.read_text().split("\n## Statistics\n")[1].split("\n## ")[0]
    table, rest = chapter.split("No label has values")
    told = set(re.findall(r"`(lark_[a-z_]+[a-z])`", table))
    names = {re.sub(r"_(bucket|count|sum)$", "", one.name) for one in samples(call) if one.name.startswith("lark_")}
    assert told == names
    # What alerts ask for is there.
    assert {re.sub(r"_bucket$", "", name) for name in re.findall(r"lark_[a-z_]+[a-z]", rest)} <= told
    assert rest.count("alert:") >= 8


def larkctl_says(call: Caller, *words: str) -> str:
    """What `larkctl` prints with the answers of this controller."""

    def get(_: object, path: str, model: type[Model], **query: str) -> Model:
        assert not query
        answer: webob.Response = call("GET", path, who="viewer")
        assert answer.status_code == 200
        return model.model_validate_json(answer.body)

    with mock.patch.object(larkctl.Client, "get", get):
        done = CliRunner().invoke(larkctl.cli, words, catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_larkctl_draws_them(call: Caller) -> None:
    call.rig.controller.register(aid(2), spec(2))
    count(call.rig, aid(), Slot.SPOOFED, 3, 180)
    round_of(call.rig)
    carry(call, 100_000, drops=3)
    console = Console(width=200)
    with console.capture() as captured:
        console.print(larkctl.stats_table(stats(call)))
    text = captured.get()
    lines = [re.split(r"  +", line.rstrip()) for line in text.splitlines()]
    (line,) = [line for line in lines if line[:4] == ["edge", "wan0", "out", "production"]]
    assert line[4:] == ["25 Mbit/s", "800 kbit/s", "50 Mbit/s", "100 packets (100.0 kB)", "3 packets", "1500 B"]
    assert "edge2: no agent has reported its queues" in text
    silent = [line for line in lines if line[0] == "edge2" and line[3] == "production"]
    assert silent, "its classes are listed"
    for line in silent:
        assert [line[5], *line[7:]] == ["-"] * 4, "nobody has told, which is not 0"
    assert "1 attempt; since the controller started jobs have sent 0 packets" in text
    assert "refused (spoofed): 3 packets (180 B)" in text


def test_larkctl_tells_of_borders_and_of_late(call: Caller) -> None:
    answer: webob.Response = call("PUT", f"/v1/attempts/{aid()}", put())
    assert answer.status_code == 201
    count(call.rig, aid(), Slot.OWN, 0, 0)
    call.rig.controller.attempt(aid())
    call.rig.clock.now += 8
    count(call.rig, aid(), Slot.OWN, 1000, MBIT)
    found = call.rig.controller.attempt(aid()).counters
    assert found is not None
    assert larkctl.sentences(found) == [
        "It has sent 1000 packets (1.0 MB) as itself and been sent 0 packets (0 B).",
        "Of late it sends 1 Mbit/s and is sent 0 bit/s.",
        "Nothing of it was dropped.",
    ]
