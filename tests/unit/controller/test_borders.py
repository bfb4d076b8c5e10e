"""Queues of a border over the API: who may ask and report, what is answered, and what larkctl says of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from policies.language import check_together, load_site, policy_from_text
from policies.wire import (
    PROTOCOL,
    PROTOCOL_HEADER,
    BridgeList,
    ClassReport,
    PortReport,
    QueueReport,
    QueueStatus,
    QueueWish,
    queues_digest,
)
from ryu_apps import larkctl
from ryu_apps.borders import Borders
from ryu_apps.cli import cli
from ryu_apps.config import ConfigError
from ryu_apps.refusals import Refused
from ryu_apps.rest.api import Api
from ryu_apps.rest.auth import Principal, TokenRole, Tokens, caller, hash_token, load_tokens
from ryu_apps.tls import Peer
from tests.unit.controller.rig import POLICY, SITE, Rig
from tests.unit.controller.test_api import Caller, slug

# As an administrator would write it, long lines and all.
# ruff: noqa: E501
BORDERS = """\
  edge: {datapath-id: "00000000000000c1", roles: [border], ports: {uplink: [lan0], wan: [{name: wan0, rate: 50 Mbit/s}]}}
  edge2: {datapath-id: "00000000000000c2", roles: [border], ports: {uplink: [lan0], wan: [{name: wan0, rate: 9 Mbit/s}]}}
"""
CLASSES = """\
classes:
  - {name: production, dscp: af41, guarantee: 50%}
  - {name: osg, dscp: cs1, guarantee: 10%, ceiling: 80%}
classify: [{class: osg}]
"""
WHO = {
    "edge": Principal(TokenRole.BORDER, bridge="edge"),
    "agent1": Principal(TokenRole.AGENT, "wn1"),
    "viewer": Principal(TokenRole.VIEWER),
    "admin": Principal(TokenRole.ADMIN),
}
QUEUES, REPORT = "/v1/bridges/edge/queues", "/v1/bridges/edge/queues/report"


def caller_with_borders(home: Path) -> Caller:
    (home / "site.yaml").write_text(SITE + BORDERS)
    site, policy = load_site(home / "site.yaml"), policy_from_text(POLICY + CLASSES)
    check_together(policy, site)
    found = Caller(Rig(site, policy, policy_from_text))
    found.api = Api(found.rig.controller, Tokens({hash_token(name): who for name, who in WHO.items()}))
    return found


@pytest.fixture
def call(tmp_path: Path) -> Caller:
    return caller_with_borders(tmp_path)


def report(wish: QueueWish, *faults: str) -> dict[str, object]:
    carried = ClassReport(bytes=10**6, packets=700, drops=3, backlog=1500, rate=25 * 10**6)
    ports = {"wan0": PortReport(rate=50 * 10**6, speed=10**9, classes={"production": carried}, plumbing=carried)}
    said = QueueReport(digest=wish.digest, agent_version="1", faults=list(faults), ports=ports)
    found: dict[str, object] = said.model_dump(mode="json")
    return found


def wish_of(call: Callable[..., object]) -> QueueWish:
    return QueueWish.model_validate_json(call("GET", QUEUES, who="edge").body)  # type: ignore[attr-defined]


def test_the_wish_is_what_the_policy_gives_each_way_out(call: Caller) -> None:
    wish = wish_of(call)
    assert wish.digest == queues_digest(wish.ports)
    assert {name: port.rate for name, port in wish.ports.items()} == {"wan0": 50_000_000, "lan0": 48_000_000}
    assert [(c.name, c.dscp, c.guarantee, c.ceiling) for c in wish.ports["wan0"].classes] == [
        ("production", 34, 25_000_000, 50_000_000),
        ("osg", 8, 5_000_000, 40_000_000),
    ]


def test_who_has_the_wish_is_not_sent_it_again_until_it_changes(call: Caller) -> None:
    first = call("GET", QUEUES, who="edge")
    assert first.status_code == 200
    again = call("GET", QUEUES, who="edge", **{"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.body, again.headers["ETag"]) == (304, b"", first.headers["ETag"])
    call.rig.controller.reload(policy_from_text(POLICY + CLASSES.replace("50%", "40%")))
    other = call("GET", QUEUES, who="edge", **{"If-None-Match": first.headers["ETag"]})
    assert other.status_code == 200
    assert other.headers["ETag"] != first.headers["ETag"]
    # What does not concern queues does not change them.
    call.rig.controller.reload(
        policy_from_text(
            POLICY.replace("physics:", "biology:").replace("for: physics", "for: biology")
            + CLASSES.replace("50%", "40%")
        )
    )
    assert call("GET", QUEUES, who="edge", **{"If-None-Match": other.headers["ETag"]}).status_code == 304


@pytest.mark.parametrize(
    ("who", "get", "put"),
    [("edge", 200, 200), ("viewer", 200, 403), ("admin", 200, 403), ("agent1", 403, 403), (None, 401, 401)],
)
def test_only_the_border_itself_reports(call: Caller, who: str | None, get: int, put: int) -> None:
    body = report(wish_of(call))
    assert call("GET", QUEUES, who=who).status_code == get
    assert call("PUT", REPORT, body, who=who).status_code == put


def test_a_border_has_no_business_but_its_own(call: Caller) -> None:
    assert call("GET", QUEUES, who="edge").status_code == 200
    for path in ("/v1/bridges/edge2/queues", "/v1/nodes", "/v1/attempts", "/v1/bridges", "/v1/policy"):
        assert slug(call("GET", path, who="edge")) == "forbidden"
    assert slug(call("PUT", "/v1/bridges/edge2/queues/report", report(wish_of(call)), who="edge")) == "forbidden"


def test_who_has_the_wish_already_still_hears_what_this_controller_knows(call: Caller) -> None:
    """Else the agent would take it for an older one, and leave out of its report what that does not know."""
    first = call("GET", QUEUES, who="edge")
    again = call("GET", QUEUES, who="edge", **{"If-None-Match": first.headers["ETag"]})
    assert (first.status_code, again.status_code) == (200, 304)
    assert first.headers[PROTOCOL_HEADER] == again.headers[PROTOCOL_HEADER] == str(PROTOCOL)


def test_what_is_no_border_has_no_queues(call: Caller) -> None:
    for bridge in ("gate1", "nowhere", "%20"):
        assert slug(call("GET", f"/v1/bridges/{bridge}/queues", who="admin")) == "no-such-bridge"


def test_the_last_report_is_told_with_its_age_and_whether_it_is_in_force(call: Caller) -> None:
    def status() -> QueueStatus | None:
        bridges = BridgeList.model_validate_json(call("GET", "/v1/bridges", who="viewer").body).bridges
        found = {one.bridge: one.queues for one in bridges}
        assert found["gate1"] is None
        return found["edge"]

    assert status() is None
    wish = wish_of(call)
    call("PUT", REPORT, report(wish), who="edge")
    call.rig.clock.now += 3
    told = status()
    assert told is not None
    assert (told.age, told.in_force, told.followed) == (3.0, True, True)
    assert told.report.ports["wan0"].classes["production"].drops == 3
    call.rig.clock.now += 60
    late = status()
    assert late is not None
    assert (late.in_force, late.followed) == (False, False)  # its agent says nothing any more
    call("PUT", REPORT, report(wish, "port wan0 is missing"), who="edge")
    faulty = status()
    assert faulty is not None
    assert (faulty.in_force, faulty.followed) == (False, True)
    call("PUT", REPORT, report(wish), who="edge")
    assert (status() or told).in_force is True
    call.rig.controller.reload(policy_from_text(POLICY + CLASSES.replace("50%", "40%")))
    assert (status() or told).in_force is False  # of another policy


def test_larkctl_shows_faults_and_classes(call: Caller) -> None:
    def shown() -> str:
        bridges = BridgeList.model_validate_json(call("GET", "/v1/bridges", who="viewer").body).bridges
        console = Console(width=200)
        with console.capture() as captured:
            larkctl._tell_queues(console, next(one for one in bridges if one.bridge == "edge"))
        return captured.get()

    assert "no agent has reported its queues" in shown()
    call("PUT", REPORT, report(wish_of(call), "port lan0 of bridge edge is missing"), who="edge")
    text = shown()
    assert "queues made, with faults" in text
    assert "port lan0 of bridge edge is missing" in text
    assert "wan0 (50 Mbit/s)" in text
    assert "25 Mbit/s" in text
    assert "3 packets" in text
    call("PUT", REPORT, report(wish_of(call)), who="edge")
    assert "\nedge: queues in force" in shown()
    assert "25 Mbit/s" in shown()
    call.rig.clock.now += 60
    text = shown()
    assert "NOT in force, reported 60 s ago" in text
    assert "SENT BY THIS QUEUE" in text
    assert "25 Mbit/s" not in text, "a rate of a minute ago is none of now"


def test_a_token_of_a_border_names_its_bridge(tmp_path: Path) -> None:
    path = tmp_path / "tokens.yaml"
    run = CliRunner().invoke
    assert run(cli, ["token", "--tokens", str(path), "--role", "border"]).exit_code == 2
    assert run(cli, ["token", "--tokens", str(path), "--role", "viewer", "--bridge", "edge"]).exit_code == 2
    made = run(cli, ["token", "--tokens", str(path), "--role", "border", "--bridge", "edge"])
    assert made.exit_code == 0
    tokens = load_tokens(path)
    assert tokens.who(f"Bearer {made.output.strip()}") == WHO["edge"]
    assert tokens.bridges == {"edge"}
    path.write_text(path.read_text().replace("bridge: edge", ""))
    with pytest.raises(ConfigError, match="role border needs a bridge"):
        load_tokens(path)


def test_a_border_may_show_the_certificate_of_its_bridge() -> None:
    borders = {"urn:lark:bridge:edge": "edge"}

    def who(*names: str) -> Principal:
        return caller(Tokens({}), {"urn:lark:node:wn1": "wn1"}, None, Peer(frozenset(names)), borders)

    assert who("urn:lark:bridge:edge") == WHO["edge"]
    assert who("urn:lark:node:wn1") == WHO["agent1"]
    for names in (("urn:lark:bridge:edge", "urn:lark:node:wn1"), ("urn:lark:bridge:gate1",)):
        with pytest.raises(Refused):
            who(*names)


@pytest.mark.parametrize("shared", [False, True])
def test_what_classes_carried_adds_up_over_the_controllers_that_the_agent_talks_to(call: Caller, shared: bool) -> None:
    clock = call.rig.clock
    wish, bridge = wish_of(call), call.rig.site.bridges["edge"]
    a, b = (Borders(clock, shared=shared) for _ in "ab")

    def hear(one: Borders, octets: int) -> None:
        clock.now += 2
        carried = ClassReport(bytes=octets, packets=octets, drops=0, backlog=0, rate=0)
        said = QueueReport(
            digest=wish.digest, faults=[], ports={"wan0": PortReport(rate=1, classes={"production": carried})}
        )
        one.hear("edge", said, wish)

    def told(one: Borders) -> int:
        return sum(found.bytes for found in one.stats(bridge, wish)[1])

    for octets in (100, 150):
        hear(a, octets)
    if not shared:
        assert told(a) == 150, "alone it tells all that the queue has sent"
        clock.now += 60
        hear(a, 400)
        assert told(a) == 400
        return
    assert told(a) == 50
    for octets in (160, 180, 200):
        hear(b, octets)
    assert (told(a), told(b)) == (50, 40)
    # Back to the first: what the other has told is not told again. Then the queue is made anew.
    for octets in (210, 250, 30):
        hear(a, octets)
    assert (told(a), told(b)) == (50 + 40 + 30, 40)
