"""The northbound API in one process: who may do what, and that no input is answered with a 5xx or changes anything."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import webob
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.wire import MAX_BODY_BYTES, AttemptStatus, Problem
from ryu_apps.admission import FEW
from ryu_apps.refusals import Slug
from ryu_apps.rest.api import ROUTES, Api
from ryu_apps.rest.auth import Principal, TokenRole, Tokens, hash_token
from ryu_apps.rest.problems import KINDS
from tests.unit.controller.rig import BOOT, Rig, aid, node_spec, spec

WHO = {
    "agent1": Principal(TokenRole.AGENT, "wn1"),
    "agent2": Principal(TokenRole.AGENT, "wn2"),
    "viewer": Principal(TokenRole.VIEWER),
    "admin": Principal(TokenRole.ADMIN),
}


class Caller:
    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.api = Api(rig.controller, Tokens({hash_token(name): who for name, who in WHO.items()}))

    def __call__(
        self, method: str, path: str, body: object = None, who: str | None = "agent1", **more: str
    ) -> webob.Response:
        request = webob.Request.blank(path, method=method)
        if who is not None:
            request.headers["Authorization"] = f"Bearer {who}"
        if body is not None:
            request.body = body if isinstance(body, bytes) else json.dumps(body).encode()
            request.content_type = "application/json"
        request.headers.update(more)
        return request.get_response(self.api)


@pytest.fixture
def call(rig: Rig) -> Caller:
    return Caller(rig)


def slug(answer: webob.Response) -> str:
    assert answer.content_type == "application/problem+json"
    problem = Problem.model_validate_json(answer.body)
    assert problem.status == answer.status_code
    assert problem.detail
    return problem.type.removeprefix("urn:lark:problem:")


def put(n: int = 2, **ad: object) -> dict[str, Any]:
    found: dict[str, Any] = spec(n, **ad).model_dump(mode="json")
    return found


def test_the_calls_of_the_contract(call: Caller) -> None:
    node = node_spec().model_dump(mode="json")
    assert call("PUT", "/v1/nodes/wn1", node).json["lease"] == 60
    assert call("PUT", f"/v1/attempts/{aid()}", put()).status_code == 201
    again = call("PUT", f"/v1/attempts/{aid()}", put())
    assert again.status_code == 200
    assert (
        AttemptStatus.model_validate_json(again.body).policy == call("GET", "/v1/policy", who="viewer").json["digest"]
    )
    assert call("PATCH", f"/v1/attempts/{aid()}", {"phase": "run"}).json["spec"]["phase"] == "run"
    assert slug(call("PATCH", f"/v1/attempts/{aid()}", {"phase": "stage-in"})) == "phase"
    assert call("GET", f"/v1/attempts/{aid()}", who="viewer").json["counters"]["admitted_packets"] == 0
    assert [one["id"] for one in call("GET", "/v1/attempts?job=2.0", who="admin").json["attempts"]] == [aid()]
    assert call("GET", "/v1/attempts?job=3.0", who="admin").json == {"attempts": []}
    assert call("POST", "/v1/nodes/wn1/heartbeat", {"boot_id": BOOT, "attempts": [aid()]}).json == {
        "lease": 60,
        "policy": again.json["policy"],
        "agree": True,
        "drop": [],
        "gone": [],
    }
    assert {one["node"] for one in call("GET", "/v1/nodes", who="viewer").json["nodes"]} == {"wn1", "wn2"}
    assert call("GET", "/v1/nodes/wn1").json["attempts"] == 1
    assert len(call("GET", "/v1/bridges", who="viewer").json["bridges"]) == 4
    assert call("GET", "/v1/policy", who="viewer").json["mode"] == "enforce"
    assert call("DELETE", f"/v1/attempts/{aid()}").json["bridges"] == {"br1": "realised", "gate1": "realised"}
    assert slug(call("DELETE", f"/v1/attempts/{aid()}")) == "no-such-attempt"
    for path in ("/healthz", "/readyz", "/v1/openapi.json"):
        assert call("GET", path, who=None).status_code == 200


def test_a_controller_that_is_behind_turns_new_registrations_away_and_nothing_else(call: Caller) -> None:
    assert call("PUT", f"/v1/attempts/{aid()}", put()).status_code == 201
    admission = call.rig.controller.admission
    with contextlib.ExitStack() as busy:
        for _ in range(FEW):
            busy.enter_context(admission.place("wn1"))
        call.rig.clock.now += 1.0  # the beat does not come
        answer = call("PUT", f"/v1/attempts/{aid(3)}", put(3))
        assert (answer.status_code, slug(answer)) == (429, "too-many")
        assert int(answer.headers["Retry-After"]) >= 1
        health = call("GET", "/healthz", who=None).json
        assert (health["ok"], health["registrations"], health["turned-away"]) == (True, FEW, 1)
        assert health["behind-ms"] >= 800
        assert call("PUT", f"/v1/attempts/{aid()}", put()).status_code == 200, "it is here already"
        assert call("PATCH", f"/v1/attempts/{aid()}", {"phase": "run"}).status_code == 200
        beat = {"boot_id": BOOT, "attempts": [aid()]}
        assert call("POST", "/v1/nodes/wn1/heartbeat", beat).json["agree"] is True
        assert call("DELETE", f"/v1/attempts/{aid()}").status_code == 200
    assert call("PUT", f"/v1/attempts/{aid(3)}", put(3)).status_code == 201


@pytest.mark.parametrize("id", [aid(3), None])
def test_registrations_that_wait_for_their_agent_turn_nobody_away(call: Caller, id: str | None) -> None:
    """An agent asks again and again for a port that is not there: for one attempt, or for one each."""
    call.rig.controller.times.deadline = 1.0
    late = put(3)
    late["port"]["name"] = "lj99"
    admission = call.rig.controller.admission
    with ThreadPoolExecutor(2 * FEW) as agents:
        asked = [agents.submit(call, "PUT", f"/v1/attempts/{id or aid(100 + n)}", late) for n in range(2 * FEW)]
        until = time.monotonic() + 10
        while admission.load.registrations < 2 * FEW and time.monotonic() < until:
            time.sleep(0.01)
        assert admission.load.registrations == 2 * FEW
        call.rig.clock.now += 30  # nothing gets done meanwhile
        assert call("PUT", f"/v1/attempts/{aid()}", put()).status_code == 201
        assert {one.result().status_code for one in asked} <= {400, 503}


def test_a_held_job_carries_subcode_and_reason(call: Caller) -> None:
    answer = call("PUT", f"/v1/attempts/{aid()}", put(LarkNetwork=5))
    assert slug(answer) == "held"
    assert answer.status_code == 422
    assert answer.json["subcode"] == 101
    assert "LarkNetwork" in answer.json["reason"]


def test_an_agent_reaches_its_own_node_only(call: Caller) -> None:
    assert call("PUT", f"/v1/attempts/{aid()}", put()).status_code == 201
    before = call.rig.everything()
    node = node_spec().model_dump(mode="json")
    for method, path, body in (
        ("PUT", "/v1/nodes/wn1", node),
        ("GET", "/v1/nodes/wn1", None),
        ("POST", "/v1/nodes/wn1/heartbeat", {"boot_id": BOOT, "attempts": []}),
        ("PUT", f"/v1/attempts/{aid(3)}", put(3)),
        ("PUT", f"/v1/attempts/{aid()}", put()),
        ("PATCH", f"/v1/attempts/{aid()}", {"phase": "run"}),
        ("GET", f"/v1/attempts/{aid()}", None),
        ("GET", "/v1/attempts?node=wn1", None),
        ("DELETE", f"/v1/attempts/{aid()}", None),
    ):
        answer = call(method, path, body, who="agent2")
        assert (method, path, slug(answer)) == (method, path, "forbidden")
        # The control: the node's own agent may.
        if method == "GET":
            assert call(method, path, body).status_code == 200
    assert call("GET", "/v1/attempts", who="agent2").json == {"attempts": []}
    assert [one["node"] for one in call("GET", "/v1/nodes", who="agent2").json["nodes"]] == ["wn2"]
    assert call.rig.everything() == before
    assert call("DELETE", f"/v1/attempts/{aid()}").status_code == 200


@pytest.mark.parametrize("who", ["viewer", "admin", None, "stranger"])
def test_only_agents_change_things(call: Caller, who: str | None) -> None:
    for route in ROUTES:
        path = route.path.replace("{id}", aid()).replace("{node}", "wn1").replace("{bridge}", "br1")
        answer = call(route.method, path, {} if route.request else None, who=who)
        if who in ("viewer", "admin"):
            if route.method == "GET":
                assert answer.status_code in (200, 404)
            else:
                assert slug(answer) == "forbidden"
        else:
            assert slug(answer) == "unauthorised"
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_what_is_not_json_or_not_ours(call: Caller) -> None:
    path = f"/v1/attempts/{aid()}"
    before = call.rig.everything()
    for body, more, wanted in (
        (b"{", {}, "malformed"),
        (b"[]", {}, "malformed"),
        (b"", {"Content-Type": "application/json"}, "malformed"),
        (b'{"a":' * 5000, {}, "malformed"),
        (b"[" * 100_000, {}, "malformed"),
        (b"\xff\xfe", {}, "malformed"),
        (json.dumps(put()).encode(), {"Content-Type": "text/plain"}, "unsupported-media-type"),
        (b" " * (MAX_BODY_BYTES + 1), {}, "too-large"),
        (json.dumps(put() | {"x": 1}).encode(), {}, "malformed"),
        (json.dumps(put() | {"ad": {"A": [["nested"]]}}).encode(), {}, "malformed"),
        (json.dumps(put() | {"zone": "1002"}).encode(), {}, "malformed"),
        (json.dumps(put() | {"zone": True}).encode(), {}, "malformed"),
        (json.dumps(put() | {"ad": {f"A{n}": n for n in range(300)}}).encode(), {}, "malformed"),
        (json.dumps(put() | {"ad": {"bad name": 1}}).encode(), {}, "malformed"),
        (b'{"ad": {"A": NaN}}', {}, "malformed"),
    ):
        assert slug(call("PUT", path, body, **more)) == wanted, body[:60]
    assert slug(call("PUT", "/v1/attempts/a%20b", put())) == "malformed"
    assert slug(call("PUT", "/v1/attempts/%ff", put())) == "malformed"
    assert slug(call("GET", "/v1/attempts?jbo=1")) == "malformed"
    assert slug(call("GET", "/v1/attempts?job=x")) == "malformed"
    assert slug(call("GET", "/v2")) == "not-found"
    assert slug(call("POST", path, put())) == "method-not-allowed"
    assert call.rig.everything() == before
    assert call("PUT", path, put()).status_code == 201


def test_one_line_for_each_request(call: Caller, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lark.api"):
        call("GET", "/v1/attempts/no\nsuch%0aline")
        call("GET", "/healthz", who=None)
    lines = [record.getMessage() for record in caplog.records if record.name == "lark.api"]
    assert len(lines) == 2
    assert "\n" not in lines[0]
    assert lines[0].startswith("GET /v1/attempts/")
    assert "by agent:wn1" in lines[0]
    assert ": 400 in " in lines[0]


def test_the_log_says_why_a_request_was_refused(call: Caller, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lark.api"):
        call("GET", "/v1/nodes", who="viewer")
        call("GET", "/v1/attempts?job=x%0aGET", who="viewer")
    good, bad = [record.getMessage() for record in caplog.records if record.name == "lark.api"]
    assert good.endswith(" ms")
    assert ": 400 in " in bad
    assert "is not CLUSTER.PROC" in bad
    assert "\n" not in bad


def test_the_openapi_document_names_every_call(call: Caller) -> None:
    document = call("GET", "/v1/openapi.json", who=None).json
    assert document["openapi"] == "3.1.0"
    assert {(m.upper(), p) for p, methods in document["paths"].items() for m in methods} == {
        (route.method, route.path) for route in ROUTES
    }
    text = json.dumps(document)
    schemas = document["components"]["schemas"]
    for reference in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert reference in schemas
    assert schemas["AttemptSpec"]["additionalProperties"] is False


def test_every_refusal_has_its_problem() -> None:
    assert set(KINDS) == set(Slug)


# --- any input --------------------------------------------------------------------------------------------------------

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
AD_VALUE = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=40),
    st.lists(st.text(max_size=5) | st.integers(-5, 5), max_size=4),
)
AD = st.dictionaries(
    st.sampled_from(["LarkGroup", "LarkNetwork", "LarkLicence", "Owner", "owner", "MY", "error", "undefined", "Rank"])
    | st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True),
    AD_VALUE,
    max_size=6,
)
FIELD = st.sampled_from(["node", "port", "mac", "ipv4", "ipv6", "zone", "phase", "ad", "slot", "job", "surprise"])


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return draw(st.binary(max_size=60))
    if kind == 1:
        return json.dumps(draw(JSON)).encode()
    body = put() | {"ad": draw(AD)}
    if kind == 2:
        for field in draw(st.lists(FIELD, max_size=3)):
            body[field] = draw(JSON)
    return json.dumps(body).encode()


PATHS = st.one_of(
    st.just(f"/v1/attempts/{aid()}"),
    st.sampled_from(
        [
            "/v1/nodes/wn1",
            "/v1/nodes/wn1/heartbeat",
            "/v1/attempts",
            "/v1/bridges",
            "/v1/stats",
            "/metrics",
            "/v1/attempts/",
            "/v1//",
            "/",
        ]
    ),
    st.text(st.characters(codec="latin-1"), max_size=30).map(lambda text: "/" + text),
    st.text(st.characters(codec="latin-1"), max_size=30).map(lambda text: "/v1/attempts/" + text),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(["PUT", "PATCH", "GET", "DELETE", "POST", "HEAD", "OPTIONS", "BREW"]),
    path=PATHS,
    query=st.sampled_from(["", "job=1.0", "node=wn2", "x", "%", "job=1.0&job=2.0", "\xff"]),
    body=bodies(),
    who=st.sampled_from(["agent1", "agent1", "agent1", "agent2", "viewer", "nobody"]),
)
def test_no_input_is_answered_with_a_5xx(
    make_rig: Callable[[], Rig], method: str, path: str, query: str, body: bytes, who: str
) -> None:
    call = Caller(make_rig())
    before = call.rig.everything()
    request = webob.Request.blank("/", method=method)
    request.environ["PATH_INFO"] = path
    request.environ["QUERY_STRING"] = query
    request.headers["Authorization"] = f"Bearer {who}"
    request.headers["Content-Type"] = "application/json"
    request.body = body
    answer = request.get_response(call.api)
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        if method != "HEAD":
            slug(answer)
        assert call.rig.everything() == before
    else:
        call.rig.check()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ad=AD)
def test_any_ad_is_decided_or_held(make_rig: Callable[[], Rig], ad: dict[str, object]) -> None:
    call = Caller(make_rig())
    body = put() | {"ad": ad}
    answer = call("PUT", f"/v1/attempts/{aid()}", body)
    assert answer.status_code in (201, 422, 400), answer.text
    if answer.status_code == 201:
        call.rig.restart()
        assert Caller(call.rig)("GET", f"/v1/attempts/{aid()}").json["spec"]["ad"] == body["ad"]
