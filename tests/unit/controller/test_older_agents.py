"""An agent of protocol 1 at today's controller: what it really said once gets the answers that it got then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import webob

from policies.wire import PROTOCOL, PROTOCOL_HEADER
from ryu_apps.rest.api import Api
from ryu_apps.rest.auth import Principal, TokenRole, Tokens, hash_token
from tests.unit.controller.rig import Rig

RECORDED = Path(__file__).parents[2] / "golden" / "wire-protocol-1.jsonl"


def ask(api: Api, one: dict[str, Any]) -> webob.Response:
    request = webob.Request.blank(one["path"], method=one["method"], headers={"Authorization": "Bearer agent1"})
    if one["request"] is not None:
        request.body = json.dumps(one["request"]).encode()
        request.content_type = "application/json"
    return request.get_response(api)


def test_what_an_older_agent_said_gets_the_answers_that_it_got(rig: Rig) -> None:
    api = Api(rig.controller, Tokens({hash_token("agent1"): Principal(TokenRole.AGENT, "wn1")}))
    for one in map(json.loads, RECORDED.read_text().splitlines()):
        answer = ask(api, one)
        assert answer.status_code == one["status"], (one["method"], one["path"], answer.text)
        missing = set(one["answer"]) - set(answer.json)
        assert not missing, (one["path"], missing)
        for settled in ("lease", "agree", "drop", "gone", "bridges", "subcode", "id", "spec", "type"):
            if settled in one["answer"]:
                assert answer.json[settled] == one["answer"][settled], (one["path"], settled)


def test_every_answer_says_what_the_controller_knows(rig: Rig) -> None:
    api = Api(rig.controller, Tokens({hash_token("agent1"): Principal(TokenRole.AGENT, "wn1")}))
    for method, path, status in (
        ("GET", "/healthz", 200),
        ("GET", "/v1/nodes", 200),
        ("GET", "/v1/nothing", 404),
        ("PUT", "/v1/nodes/wn1", 415),
    ):
        answer = ask(api, {"method": method, "path": path, "request": None})
        assert (answer.status_code, answer.headers[PROTOCOL_HEADER]) == (status, str(PROTOCOL))
