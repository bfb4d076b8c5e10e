"""The northbound API: routes, roles, sizes, and one log line for each request; as a WSGI application too.

Invariants: who calls is known before a body is read; a body is read only up to its limit; bad input never gives a 5xx;
an agent reaches its own node only. All meaning is in `ryu_apps.controller`; the contract is docs/interfaces.md, section
5.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import webob
from pydantic import BaseModel, ValidationError

from policies.wire import (
    ATTEMPT_ID_PATTERN,
    MAX_BODY_BYTES,
    NAME_PATTERN,
    PROTOCOL,
    PROTOCOL_HEADER,
    AttemptList,
    AttemptSpec,
    AttemptStatus,
    BridgeList,
    Deleted,
    EventList,
    Heartbeat,
    HeartbeatAnswer,
    NodeGrant,
    NodeList,
    NodeSpec,
    NodeStatus,
    PhaseChange,
    PolicyStatus,
    QueueReport,
    QueueStatus,
    QueueWish,
    SiteStats,
    WhyAnswer,
)
from ryu_apps.controller import Controller, nobody_waits
from ryu_apps.doorway import WELCOME
from ryu_apps.metrics import CONTENT_TYPE
from ryu_apps.plain_http import Ask, Client, Reply
from ryu_apps.refusals import Refused, Slug
from ryu_apps.rest.auth import Principal, TokenRole, Tokens, caller
from ryu_apps.rest.problems import PROBLEM_TYPE, document, status_of
from ryu_apps.store.store import StoreError
from ryu_apps.tls import PEER

LOG = logging.getLogger("lark.api")
_AGENT, _VIEWER, _ADMIN = TokenRole.AGENT, TokenRole.VIEWER, TokenRole.ADMIN
_EVERYONE = frozenset({_AGENT, _VIEWER, _ADMIN})
"""But a border's agent, which has no business with jobs."""
_PEOPLE = frozenset({_VIEWER, _ADMIN})
_BORDER = TokenRole.BORDER
_JOB_PATTERN = r"^[0-9]{1,10}\.[0-9]{1,10}$"
_TOLD = {"put_attempt": 201, "patch_attempt": 200, "delete_attempt": 200, "heartbeat": 200}
"""Answers that `ryu_apps.life` tells of in the log, or that come so often and say so little (heartbeats) that nobody
reads of them: a line of the API's own only where details are asked for (--log-level debug)."""
MAX_HEARTBEAT_BYTES = 4 * 1024 * 1024
"""A heartbeat may name all attempts of a node; every other body is a few kilobytes."""
Body = TypeVar("Body", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Call:
    """One authenticated request on its way to its handler."""

    principal: Principal
    name: str
    query: Mapping[str, str]
    read: Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: BaseModel
    etag: str | None = None
    """Whoever has this already is answered 304."""


@dataclass(frozen=True, slots=True)
class Plain:
    """An answer that is no JSON."""

    body: bytes
    kind: str


@dataclass(frozen=True, slots=True)
class Route:
    """One call of the API. `path` has at most one variable part, `{id}`, `{node}` or `{bridge}`."""

    method: str
    path: str
    roles: frozenset[TokenRole]
    handler: str
    summary: str
    request: type[BaseModel] | None
    responses: Mapping[int, type[BaseModel] | None]
    query: tuple[str, ...] = ()
    kind: str = "application/json"
    """Media type of what comes with 200."""


_BY_AGENTS = frozenset({_AGENT})
ROUTES: tuple[Route, ...] = (
    Route("PUT", "/v1/nodes/{node}", _BY_AGENTS, "put_node", "An agent registers its node", NodeSpec, {200: NodeGrant}),
    Route("GET", "/v1/nodes", _EVERYONE, "get_nodes", "The nodes of the site", None, {200: NodeList}),
    Route("GET", "/v1/nodes/{node}", _EVERYONE, "get_node", "One node", None, {200: NodeStatus}),
    Route(
        "POST", "/v1/nodes/{node}/heartbeat", _BY_AGENTS, "heartbeat", "An agent renews its node's lease",
        Heartbeat, {200: HeartbeatAnswer},
    ),
    Route(
        "PUT", "/v1/attempts/{id}", _BY_AGENTS, "put_attempt", "Bring an attempt's policy into force",
        AttemptSpec, {200: AttemptStatus, 201: AttemptStatus},
    ),
    Route(
        "PATCH", "/v1/attempts/{id}", _BY_AGENTS, "patch_attempt", "Advance an attempt's phase",
        PhaseChange, {200: AttemptStatus},
    ),
    Route(
        "GET", "/v1/attempts/{id}", _EVERYONE, "get_attempt", "One attempt with its counters", None,
        {200: AttemptStatus},
    ),
    Route(
        "GET", "/v1/attempts/{id}/why", _PEOPLE, "get_why", "Which line decides on a job's packet", None,
        {200: WhyAnswer}, ("host", "port"),
    ),
    Route(
        "GET", "/v1/attempts", _EVERYONE, "get_attempts", "Attempts, without counters", None,
        {200: AttemptList}, ("job", "node"),
    ),
    Route("DELETE", "/v1/attempts/{id}", _BY_AGENTS, "delete_attempt", "End an attempt", None, {200: Deleted}),
    Route("GET", "/v1/bridges", _PEOPLE, "get_bridges", "Bridges as the controller sees them", None, {200: BridgeList}),
    Route(
        "GET", "/v1/bridges/{bridge}/queues", _PEOPLE | {_BORDER}, "get_queues",
        "The queues that a border's ports are to have", None, {200: QueueWish, 304: None},
    ),
    Route(
        "PUT", "/v1/bridges/{bridge}/queues/report", frozenset({_BORDER}), "put_report",
        "A border's agent says what its queues are and carry", QueueReport, {200: QueueStatus},
    ),
    Route(
        "GET", "/v1/stats", _PEOPLE, "get_stats", "What borders' classes and all jobs together have carried", None,
        {200: SiteStats},
    ),
    Route(
        "GET", "/metrics", _PEOPLE, "get_metrics", "The same and more, for Prometheus", None, {200: None},
        kind=CONTENT_TYPE,
    ),
    Route(
        "GET", "/v1/events", _PEOPLE, "get_events", "What has happened; waits for news, if asked to", None,
        {200: EventList}, ("since", "wait"),
    ),
    Route("GET", "/v1/policy", _PEOPLE, "get_policy", "The policy in force", None, {200: PolicyStatus}),
)  # fmt: skip


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{\w+\\\}", "([^/]+)", re.escape(path)))


@functools.cache
def _openapi() -> bytes:
    from ryu_apps.rest.openapi import describe  # it reads ROUTES above

    return json.dumps(describe(ROUTES)).encode()


class Api:
    """The WSGI application. `tokens` may be replaced while it serves; `agents`: nodes by the name in a certificate;
    `borders`: bridges of role border by theirs."""

    def __init__(
        self,
        controller: Controller,
        tokens: Tokens,
        agents: Mapping[str, str] | None = None,
        borders: Mapping[str, str] | None = None,
    ) -> None:
        self.tokens = tokens
        self._agents = dict(agents or {})
        self._borders = dict(borders or {})
        self._controller = controller
        # What comes most is looked for first.
        often = sorted(ROUTES, key=lambda route: route.handler not in _TOLD)
        self._routes = [(_pattern(route.path), route) for route in often]
        self._openapi = _openapi()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """As a WSGI application: whatever is not plain enough for `direct`."""
        request = webob.Request(environ)
        try:
            # PATH_INFO is the bytes of the path, spelt in Latin-1 (PEP 3333).
            path: str | None = environ.get("PATH_INFO", "").encode("latin-1").decode("utf-8")
        except (UnicodeError, AttributeError):
            path = None
        read = environ["wsgi.input"].read
        try:
            length = request.content_length
        except ValueError:
            length, read = None, _unreadable
        client = Client(environ.get("REMOTE_ADDR", "?"), environ.get(PEER), environ.get(WELCOME, _nobody_minds))
        reply = self.direct(
            Ask(
                client, request.method, path, request.headers.get("Authorization"),
                request.headers.get("Content-Type") or "", length, read,
                lambda: list(request.GET.items()), request.headers.get("If-None-Match", ""),
            )
        )  # fmt: skip
        # As it is: WebOb would put its own charset beside the version of Prometheus' format.
        response = webob.Response(body=reply.body, status=reply.status, headerlist=list(reply.headers))
        found: Iterable[bytes] = response(environ, start_response)
        return found

    def direct(self, ask: Ask) -> Reply:
        """Answer a request, however it was read."""
        began = time.monotonic()
        who, level, why = None, logging.INFO, ""
        try:
            path = ask.path
            if path is None:
                raise Refused(Slug.MALFORMED, "the path is not UTF-8")
            public = self._public(ask.method, path)
            if public is not None:
                reply = public
            else:
                who = self._caller(ask)
                ask.client.welcome()
                reply, level = self._respond(ask, path, who)
        except Refused as refused:
            reply, why = _problem(refused), refused.detail
        except StoreError as problem:
            LOG.error("%s %s: %s", ask.method, _shown(ask.path), problem)
            why = f"{problem}; try again"
            reply = _problem(Refused(Slug.NOT_REALISED, why, {"bridges": []}))
        except Exception:
            LOG.exception("defect in %s %s", ask.method, _shown(ask.path))
            why = "a defect of the controller; its log says more"
            reply = _problem(Refused(Slug.INTERNAL, why))
        if LOG.isEnabledFor(level):
            LOG.log(
                level, "%s %s by %s from %s: %d in %.1f ms%s", ask.method, _shown(ask.path), who or "nobody",
                ask.client.address, reply.status, (time.monotonic() - began) * 1000,
                f": {_in_a_line(why[:500])}" if why else "",
            )  # fmt: skip
        return reply

    def _caller(self, ask: Ask) -> Principal:
        """Who calls; found out once for each connection and what it shows. Raises Refused."""
        known = ask.client.memory
        if known is not None and known[0] is self.tokens and known[1] == ask.authorization:
            found: Principal = known[2]
            return found
        tokens = self.tokens
        who = caller(tokens, self._agents, ask.authorization, ask.client.peer, self._borders)
        ask.client.memory = (tokens, ask.authorization, who)
        return who

    def _respond(self, ask: Ask, path: str, who: Principal) -> tuple[Reply, int]:
        """The answer, and at which level the log tells of it."""
        route, name = self._find(ask.method, path)
        if who.role not in route.roles:
            allowed = ", ".join(sorted(role.value for role in route.roles))
            raise Refused(Slug.FORBIDDEN, f"{route.method} {route.path} is for {allowed}, not for {who}")
        call = Call(who, name, _query(ask, route), lambda limit: _read(ask, limit))
        answer: Answer | Plain = getattr(self, f"_{route.handler}")(call)
        level = logging.DEBUG if _TOLD.get(route.handler) == getattr(answer, "status", 0) else logging.INFO
        if isinstance(answer, Plain):
            return Reply(200, _headers(answer.kind), answer.body), level
        known = _known(ask, answer)
        if known is not None:
            return known, level
        headers = _JSON if answer.etag is None else (*_JSON, ("ETag", f'"{answer.etag}"'))
        return Reply(answer.status, headers, answer.body.model_dump_json().encode()), level

    def _public(self, method: str, path: str) -> Reply | None:
        if path not in ("/healthz", "/readyz", "/v1/openapi.json"):
            return None
        if method not in ("GET", "HEAD"):
            raise Refused(Slug.METHOD, f"{path} is only read")
        if path == "/v1/openapi.json":
            return Reply(200, _JSON, self._openapi)
        problems = self._controller.problems() if path == "/readyz" else []
        load = self._controller.admission.load
        said = {
            "ok": not problems,
            "problems": problems,
            "registrations": load.registrations,
            "behind-ms": round(1000 * load.behind),
            "turned-away": load.turned_away,
        }
        return Reply(503 if problems else 200, _JSON, json.dumps(said).encode())

    def _find(self, method: str, path: str) -> tuple[Route, str]:
        methods = []
        for pattern, route in self._routes:
            found = pattern.fullmatch(path)
            if not found:
                continue
            methods.append(route.method)
            if route.method == method:
                name = found.group(1) if found.groups() else ""
                if "{id}" in route.path and not re.fullmatch(ATTEMPT_ID_PATTERN, name):
                    raise Refused(
                        Slug.MALFORMED, f"an attempt id has 1 to 200 of A-Z a-z 0-9 . _ @ ~ -, not {name[:60]!r}"
                    )
                if "{node}" in route.path and not re.fullmatch(NAME_PATTERN, name):
                    raise Refused(Slug.NO_SUCH_NODE, f"{name[:60]!r} cannot be a node's name")
                if "{bridge}" in route.path and not re.fullmatch(NAME_PATTERN, name):
                    raise Refused(Slug.NO_SUCH_BRIDGE, f"{name[:60]!r} cannot be a bridge's name")
                return route, name
        if methods:
            raise Refused(Slug.METHOD, f"{path[:200]} understands {', '.join(methods)}, not {method[:20]}")
        raise Refused(Slug.NOT_FOUND, f"{path[:200]} is not part of this API; see /v1/openapi.json")

    # --- handlers ---------------------------------------------------------------------------------------------------

    def _put_node(self, call: Call) -> Answer:
        _own(call.principal, call.name)
        return Answer(200, self._controller.register_node(call.name, _parse(NodeSpec, call.read(MAX_BODY_BYTES))))

    def _get_nodes(self, call: Call) -> Answer:
        mine = call.principal.node
        nodes = [node for node in self._controller.nodes() if mine is None or node.node == mine]
        return Answer(200, NodeList(nodes=nodes))

    def _get_node(self, call: Call) -> Answer:
        _own(call.principal, call.name)
        for node in self._controller.nodes():
            if node.node == call.name:
                return Answer(200, node)
        raise Refused(Slug.NO_SUCH_NODE, f"node {call.name} is not in site.yaml")

    def _heartbeat(self, call: Call) -> Answer:
        _own(call.principal, call.name)
        beat = _parse(Heartbeat, call.read(MAX_HEARTBEAT_BYTES))
        return Answer(200, self._controller.heartbeat(call.name, beat))

    def _put_attempt(self, call: Call) -> Answer:
        body = call.read(MAX_BODY_BYTES)
        # One that is here already is no more work than it was.
        known = self._controller.node_of(call.name) is not None
        place = contextlib.nullcontext(nobody_waits) if known else None
        with place or self._controller.admission.place(call.principal.node or "") as stored:
            spec = _parse(AttemptSpec, body)
            _own(call.principal, spec.node)
            status, new = self._controller.register(call.name, spec, stored)
        return Answer(201 if new else 200, status)

    def _patch_attempt(self, call: Call) -> Answer:
        change = _parse(PhaseChange, call.read(MAX_BODY_BYTES))
        self._own_attempt(call)
        return Answer(200, self._controller.advance(call.name, change.phase))

    def _get_attempt(self, call: Call) -> Answer:
        self._own_attempt(call)
        return Answer(200, self._controller.attempt(call.name))

    def _get_why(self, call: Call) -> Answer:
        self._own_attempt(call)
        host, port = call.query.get("host"), call.query.get("port")
        if host is None or port is None:
            raise Refused(Slug.MALFORMED, "ask with ?host=ADDRESS-OR-SERVICE&port=tcp/NUMBER")
        return Answer(200, self._controller.why(call.name, host, port))

    def _get_attempts(self, call: Call) -> Answer:
        job, node = call.query.get("job"), call.query.get("node")
        if job is not None and not re.fullmatch(_JOB_PATTERN, job):
            raise Refused(Slug.MALFORMED, f"job={job[:40]!r} is not CLUSTER.PROC")
        if call.principal.node is not None:
            _own(call.principal, node or call.principal.node)
            node = call.principal.node
        return Answer(200, AttemptList(attempts=self._controller.attempts(job=job, node=node)))

    def _delete_attempt(self, call: Call) -> Answer:
        self._own_attempt(call)
        return Answer(200, self._controller.delete(call.name))

    def _get_bridges(self, call: Call) -> Answer:
        return Answer(200, BridgeList(bridges=self._controller.bridges()))

    def _get_queues(self, call: Call) -> Answer:
        _own_border(call.principal, call.name)
        wish = self._controller.queues(call.name)
        return Answer(200, wish, wish.digest)

    def _put_report(self, call: Call) -> Answer:
        _own_border(call.principal, call.name)
        report = _parse(QueueReport, call.read(MAX_BODY_BYTES))
        return Answer(200, self._controller.report_queues(call.name, report))

    def _get_stats(self, call: Call) -> Answer:
        return Answer(200, self._controller.stats())

    def _get_metrics(self, call: Call) -> Plain:
        return Plain(self._controller.metrics.text(self._controller), CONTENT_TYPE)

    def _get_events(self, call: Call) -> Answer:
        wait = call.query.get("wait", "0")
        if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3})?", wait):
            raise Refused(Slug.MALFORMED, f"wait={wait[:20]!r} is not a number of seconds")
        return Answer(200, self._controller.events.read(call.query.get("since"), float(wait)))

    def _get_policy(self, call: Call) -> Answer:
        return Answer(200, self._controller.policy())

    def _own_attempt(self, call: Call) -> None:
        node = self._controller.node_of(call.name)
        if node is None:
            raise Refused(Slug.NO_SUCH_ATTEMPT, f"there is no attempt {call.name}")
        _own(call.principal, node)


def _unreadable(most: int) -> bytes:
    raise ValueError("Content-Length is not a number")


def _nobody_minds() -> None:
    """Where connections are not limited."""


def _own(principal: Principal, node: str) -> None:
    if principal.role is TokenRole.AGENT and principal.node != node:
        LOG.warning("agent of node=%s tried to act for node=%s", principal.node, node)
        raise Refused(Slug.FORBIDDEN, f"the agent of {principal.node} may not act for {node}")


def _own_border(principal: Principal, bridge: str) -> None:
    if principal.role is TokenRole.BORDER and principal.bridge != bridge:
        LOG.warning("border of bridge=%s tried to act for bridge=%s", principal.bridge, bridge)
        raise Refused(Slug.FORBIDDEN, f"the agent of border {principal.bridge} may not act for {bridge}")


def _known(ask: Ask, answer: Answer) -> Reply | None:
    """304 for one who has the answer already."""
    if answer.etag is None or f'"{answer.etag}"' not in [tag.strip() for tag in ask.etags[:4096].split(",")]:
        return None
    # Who hears nothing of the protocol takes this controller for the oldest there is.
    return Reply(304, (("ETag", f'"{answer.etag}"'), (PROTOCOL_HEADER, str(PROTOCOL))), b"")


def _query(ask: Ask, route: Route) -> dict[str, str]:
    try:
        pairs = ask.pairs()
    except (UnicodeError, ValueError):
        raise Refused(Slug.MALFORMED, "the query string cannot be read") from None
    query: dict[str, str] = {}
    for name, value in pairs:
        if name not in route.query:
            known = ", ".join(route.query) or "none"
            raise Refused(Slug.MALFORMED, f"unknown query parameter {name[:40]!r}; {route.path} knows {known}")
        if name in query:
            raise Refused(Slug.MALFORMED, f"query parameter {name!r} is given twice")
        query[name] = value
    return query


def _read(ask: Ask, limit: int) -> bytes:
    kind = ask.kind
    if kind != "application/json":
        kind = kind.partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refused(Slug.UNSUPPORTED, f"send Content-Type: application/json, not {kind[:60] or 'nothing'}")
    length = ask.length
    if length is not None and (length < 0 or length > limit):
        raise Refused(Slug.TOO_LARGE, f"a body here has at most {limit} bytes, not {length}")
    try:
        body = ask.read(limit + 1 if length is None else length)
    except (ValueError, OSError) as problem:
        # A client that closes, sends nothing for too long, or whose chunks are not chunks.
        raise Refused(Slug.MALFORMED, f"the body could not be read: {type(problem).__name__}") from None
    if len(body) > limit:
        raise Refused(Slug.TOO_LARGE, f"a body here has at most {limit} bytes")
    return body


def _parse(model: type[Body], body: bytes) -> Body:
    try:
        return model.model_validate_json(body)
    except ValidationError as problem:
        faults = problem.errors(include_url=False, include_context=False, include_input=False)
        said = "; ".join(
            f"{'.'.join(map(str, fault['loc']))[:120] or 'body'}: {fault['msg'].removeprefix('Value error, ')}"
            for fault in faults[:5]
        )
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise Refused(Slug.MALFORMED, f"{said}{more}") from None


def _headers(kind: str) -> tuple[tuple[str, str], ...]:
    return (
        ("Content-Type", kind),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        (PROTOCOL_HEADER, str(PROTOCOL)),
    )


_JSON = _headers("application/json")
_PROBLEM = _headers(PROBLEM_TYPE)


def _problem(refused: Refused) -> Reply:
    status, headers = status_of(refused), _PROBLEM
    if status == 401:
        headers += (("WWW-Authenticate", 'Bearer realm="lark"'),)
    if refused.slug in (Slug.TOO_LARGE, Slug.UNAUTHORISED, Slug.UNSUPPORTED):
        # The rest of the body is not worth reading.
        headers += (("Connection", "close"),)
    if status in (429, 503):
        headers += (("Retry-After", str(refused.retry_after)),)
    return Reply(status, headers, document(refused))


def _shown(path: str | None) -> str:
    return "a path that is not UTF-8" if path is None else _in_a_line(path[:300])


def _in_a_line(text: str) -> str:
    """For the log: what a client wrote must not make lines of its own."""
    return text.encode("unicode_escape").decode()
