"""What an answer of the controller means, and how long the agent insists."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import httpx
import pytest
from pydantic import ValidationError

from ovs_agent import controller_client, http1
from ovs_agent.controller_client import (
    FIRST_PAUSE,
    ControllerClient,
    GivenUp,
    Held,
    Rejected,
    Unavailable,
    insist,
    meaning,
)
from policies.wire import PROTOCOL_HEADER, AttemptSpec, Heartbeat, HeartbeatAnswer, NodeGrant, Phase, PortSpec, Since

SPEC = AttemptSpec(
    node="wn1",
    port=PortSpec(bridge="br-lark", name="lj1", ofport=1001),
    mac="02:6c:0a:14:01:41",
    ipv4="10.20.1.65",
    zone=1001,
    ad={},
)


def status_body(phase: str = "stage-in") -> dict[str, object]:
    decision = {"identity": 1, "sealed": False, "groups": [], "grants": [], "trail": []}
    spec = json.loads(SPEC.model_dump_json()) | {"phase": phase}
    return {"id": "a", "spec": spec, "decision": decision, "bridges": {"br-lark": "realised"}}


def problem(slug: str, status: int, **more: object) -> bytes:
    body = {"type": f"urn:lark:problem:{slug}", "title": "t", "status": status, "detail": f"why {slug}"}
    return json.dumps(body | more).encode()


class Served:
    """Answers requests by a function, in place of a connection."""

    def __init__(self, handler: Callable[[httpx.Request], httpx.Response]) -> None:
        self._handler = handler

    async def request(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | None = None, *, at_once: bool = False
    ) -> http1.Answer:
        try:
            said = self._handler(httpx.Request(method, url, headers=dict(headers), content=content))
        except httpx.ConnectError as e:
            raise ConnectionRefusedError(str(e)) from e
        return http1.Answer(said.status_code, dict(said.headers), said.content)

    async def close(self) -> None: ...


def client(
    handler: Callable[[httpx.Request], httpx.Response], urls: tuple[str, ...] = ("http://a",)
) -> ControllerClient:
    made = ControllerClient("wn1", urls, "secret-token", None)
    made._http = Served(handler)  # type: ignore[assignment]
    return made


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (503, problem("not-realised", 503), Unavailable),
        (503, b"", Unavailable),
        (500, b"<html>", Unavailable),
        (429, problem("too-many", 429), Unavailable),
        (422, problem("held", 422, subcode=101, reason="line 3"), Held),
        (422, b"{}", Rejected),
        (400, problem("bad-address", 400), Rejected),
        (401, problem("unauthorised", 401), Rejected),
        (409, problem("conflict", 409), Rejected),
        (404, b"not json", Rejected),
    ],
)
def test_meaning(status: int, body: bytes, kind: type) -> None:
    assert type(meaning(status, body)) is kind


def test_held_carries_the_reason() -> None:
    found = meaning(422, problem("held", 422, subcode=101, reason="policy.yaml:3: LarkNetwork"))
    assert isinstance(found, Held)
    assert (found.subcode, found.text) == (101, "policy.yaml:3: LarkNetwork")


def test_a_good_answer_and_the_token() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.headers["Authorization"] == "Bearer secret-token"
        assert request.url.path == "/v1/attempts/wn1~0~slot1_1~5~6"
        assert AttemptSpec.model_validate_json(request.content) == SPEC
        return httpx.Response(201, json=status_body())

    asyncio.run(client(handler).put_attempt("wn1~0~slot1_1~5~6", SPEC))


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"id": "a"}', b"\xff"])
def test_nonsense_counts_as_no_answer(body: bytes) -> None:
    with pytest.raises(Unavailable, match="nonsense"):
        asyncio.run(client(lambda _: httpx.Response(200, content=body)).put_attempt("a", SPEC))


def test_the_next_controller_is_asked_when_one_is_away() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.host == "a":
            raise httpx.ConnectError("refused")
        return httpx.Response(200, json=status_body())

    made = client(handler, ("http://a", "http://b"))
    asyncio.run(made.put_attempt("a", SPEC))
    assert made.url == "http://b", "and it stays with the one that answers"


def test_unreachable_names_the_controller() -> None:
    def handler(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(Unavailable, match="http://b cannot be reached"):
        asyncio.run(client(handler, ("http://a", "http://b")).put_attempt("a", SPEC))


def test_delete_of_the_unknown_is_done() -> None:
    assert (
        asyncio.run(client(lambda _: httpx.Response(404, content=problem("no-such-attempt", 404))).delete_attempt("a"))
        is None
    )


@pytest.mark.parametrize(("there", "fine"), [("run", True), ("stage-out", False)])
def test_a_phase_that_arrived_although_its_answer_did_not(there: str, fine: bool) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "PATCH":
            return httpx.Response(409, content=problem("phase", 409))
        return httpx.Response(200, json=status_body(there))

    call = client(handler).patch_phase("a", Phase.RUN)
    if fine:
        assert asyncio.run(call).spec.phase is Phase.RUN
    else:
        with pytest.raises(Rejected):
            asyncio.run(call)


def test_insist() -> None:
    calls = 0

    async def third_time() -> str:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise Unavailable("not yet")
        return "done"

    assert asyncio.run(insist(third_time, 5, lambda: False)) == "done"
    assert calls == 3


@pytest.mark.parametrize(("status", "said", "least"), [(429, "1", 1.0), (429, "soon", 0.0), (503, "1", 0.0)])
def test_whoever_is_turned_away_for_a_while_stays_away_for_it_and_holds_on(
    status: int, said: str, least: float
) -> None:
    asked: list[float] = []

    def server(request: httpx.Request) -> httpx.Response:
        asked.append(time.monotonic())
        if len(asked) == 1:
            problem = {"type": "urn:lark:problem:x", "title": "t", "status": status, "detail": "try again"}
            return httpx.Response(status, json=problem, headers={"Retry-After": said})
        return httpx.Response(200, json=HeartbeatAnswer(lease=60, agree=True, drop=[], gone=[]).model_dump(mode="json"))

    made = client(server)
    beat = Heartbeat(boot_id="3f2a9c1e-0000-4000-8000-000000000000", attempts=[])
    answer = asyncio.run(insist(lambda: made.heartbeat(beat), 60, lambda: False))
    assert answer.agree
    assert len(asked) == 2
    assert asked[1] - asked[0] >= max(least, FIRST_PAUSE * 0.9)
    assert least or asked[1] - asked[0] < 1.0, "the control: at its own pace"


def test_whoever_was_told_to_wait_long_notices_that_the_job_has_ended() -> None:
    ended = time.monotonic() + 0.5

    async def full() -> None:
        raise Unavailable("full", 30.0)

    with pytest.raises(GivenUp):
        asyncio.run(insist(full, 60, lambda: time.monotonic() > ended))
    assert time.monotonic() - ended < 10


def test_whoever_is_told_to_come_when_it_is_too_late_comes_a_last_time_before() -> None:
    began = time.monotonic()
    asked: list[float] = []

    async def full() -> str:
        asked.append(time.monotonic() - began)
        if len(asked) == 1:
            raise Unavailable("full", 30.0)
        return "in force"

    assert asyncio.run(insist(full, 1.5, lambda: False)) == "in force"
    assert 1.0 < asked[1] < 1.5


def test_insisting_ends() -> None:
    async def never() -> None:
        raise Unavailable("controller http://a cannot be reached")

    async def refused() -> None:
        raise Rejected(400, "malformed", "no")

    with pytest.raises(Unavailable, match="cannot be reached"):
        asyncio.run(insist(never, 0.5, lambda: False))
    with pytest.raises(GivenUp):
        asyncio.run(insist(never, 60, lambda: True))
    with pytest.raises(Rejected):
        asyncio.run(insist(refused, 60, lambda: False))


def test_an_answer_of_a_newer_controller_is_understood_and_a_request_with_unknown_keys_is_not() -> None:
    grant = {
        "node": "wn1", "ipv4_range": "10.20.1.64/26", "ipv4_prefix_length": 16, "lease": 60, "attributes": [],
        "what_a_later_version_says": {"more": 1},
    }  # fmt: skip
    assert NodeGrant.model_validate_json(json.dumps(grant)).lease == 60
    assert HeartbeatAnswer.model_validate_json('{"lease": 9, "drop": [], "gone": [], "new": 1}').agree
    with pytest.raises(ValidationError, match="new"):
        Heartbeat.model_validate_json('{"boot_id": "3f2a9c1e-00", "attempts": [], "new": 1}')


class NewerSpec(AttemptSpec):
    """What an agent of protocol 3 might say."""

    added: Annotated[int, Since(3)] = 0


class Controllers:
    """Controllers by host: each knows a protocol, says so unless it is the oldest, refuses what it does not know."""

    def __init__(self, **known: int) -> None:
        self.known = known
        self.heard: list[tuple[str, bool]] = []
        self.away: set[str] = set()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        if host in self.away:
            raise httpx.ConnectError("away")
        assert request.headers[PROTOCOL_HEADER] == "3"
        newer = "added" in json.loads(request.content)
        self.heard.append((host, newer))
        known = self.known[host]
        headers: Mapping[str, str] = {PROTOCOL_HEADER: str(known)} if known > 1 else {}
        if newer and known < 3:
            return httpx.Response(400, content=problem("malformed", 400), headers=headers)
        return httpx.Response(200, json=status_body(), headers=headers)


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> Callable[[Controllers], ControllerClient]:
    monkeypatch.setattr(controller_client, "PROTOCOL", 3)
    return lambda controllers: client(controllers, tuple(f"http://{host}" for host in controllers.known))


NEWER = NewerSpec.model_validate(SPEC.model_dump() | {"added": 7})


def test_an_older_controller_hears_words_that_it_knows(newer: Callable[[Controllers], ControllerClient]) -> None:
    for known in (1, 2):
        controllers = Controllers(a=known)
        speaker = newer(controllers)
        for _ in range(3):
            asyncio.run(speaker.put_attempt("x", NEWER))
        assert controllers.heard == [("a", False)] * 3


def test_one_that_knows_as_much_hears_everything_once_it_said_so(
    newer: Callable[[Controllers], ControllerClient],
) -> None:
    for known in (3, 4):
        controllers = Controllers(a=known)
        speaker = newer(controllers)
        for _ in range(2):
            asyncio.run(speaker.put_attempt("x", NEWER))
        assert controllers.heard == [("a", False), ("a", True)]


def test_upgrade_and_return_of_a_controller_are_noticed(newer: Callable[[Controllers], ControllerClient]) -> None:
    controllers = Controllers(a=1)
    speaker = newer(controllers)
    asyncio.run(speaker.put_attempt("x", NEWER))
    controllers.known["a"] = 3
    asyncio.run(speaker.put_attempt("x", NEWER))
    asyncio.run(speaker.put_attempt("x", NEWER))
    assert controllers.heard == [("a", False), ("a", False), ("a", True)]
    controllers.known["a"] = 1  # back to the version before: refused once, said again in its words
    asyncio.run(speaker.put_attempt("x", NEWER))
    assert controllers.heard[3:] == [("a", True), ("a", False)]


def test_each_controller_is_spoken_to_in_its_own_words(newer: Callable[[Controllers], ControllerClient]) -> None:
    controllers = Controllers(a=3, b=1)
    speaker = newer(controllers)
    for away in ("b", "b", "a", "a", "b"):
        controllers.away = {away}
        asyncio.run(speaker.put_attempt("x", NEWER))
    assert controllers.heard == [("a", False), ("a", True), ("b", False), ("b", False), ("a", True)]


def test_a_400_that_is_about_something_else_is_not_asked_again(
    newer: Callable[[Controllers], ControllerClient],
) -> None:
    asked = []

    def refuse(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(400, content=problem("bad-address", 400), headers={PROTOCOL_HEADER: "3"})

    speaker = client(refuse)
    for _ in range(2):
        with pytest.raises(Rejected):
            asyncio.run(speaker.put_attempt("x", NEWER))
    assert len(asked) == 2


@pytest.mark.parametrize(("kept", "connections"), [(0.05, 2), (controller_client.KEPT, 1)])
def test_a_quiet_connection_is_kept_as_long_as_we_say(
    kept: float, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller_client, "KEPT", kept)
    made = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal made
        made += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        asked = ControllerClient("wn1", [f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"], "secret-token")
        try:
            for _ in range(2):
                assert await asked.delete_attempt("a") is None
                await asyncio.sleep(0.2)
        finally:
            await asked.close()
            server.close()

    asyncio.run(main())
    assert made == connections


def test_a_heartbeat_does_not_wait_behind_the_jobs_of_a_bridge_that_does_not_answer() -> None:
    answer = json.dumps({"lease": 60, "drop": [], "gone": []}).encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while b"/heartbeat" in await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))
            await reader.read()
        writer.close()

    async def main() -> HeartbeatAnswer:
        listening = await asyncio.start_server(serve, "127.0.0.1", 0)
        talk = ControllerClient("wn1", [f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"], "t", None)
        jobs = [asyncio.create_task(talk.get_attempt(f"a{n}")) for n in range(http1.CONNECTIONS + 10)]
        try:
            await asyncio.sleep(0.2)
            async with asyncio.timeout(3):
                return await talk.heartbeat(Heartbeat(boot_id="3f2a9c1e-0000-4000-8000-000000000001", attempts=[]))
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
            await talk.close()
            listening.close()

    assert asyncio.run(main()).lease == 60


def test_we_let_go_of_a_quiet_connection_before_the_controller_does_and_after_the_next_heartbeat() -> None:
    engine = (Path(__file__).parents[3] / "ryu_apps" / "engine.py").read_text()
    theirs = re.search(r"idle_timeout: float = ([0-9.]+)", engine)
    assert theirs is not None
    lease = 60  # the default: heartbeats come three times in it
    assert lease / 3 < controller_client.KEPT < float(theirs[1])
