"""The agent's side of the northbound API: what to say, how long to insist, and what an answer means for a job.

Invariants: proxies and other settings of the environment are ignored; an answer that is not what the contract says
counts as no answer; the token is never logged. TLS, and what its failures mean, is `ovs_agent.controller_tls`. Nothing
is said that the controller at the other end may not understand: until one has said what it knows, it is taken for the
oldest there is (`policies.wire`, "Versions").
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from ovs_agent import http1
from ovs_agent.controller_tls import tls_words
from ovs_agent.errors import AgentError
from policies.wire import (
    OLDEST_PROTOCOL,
    PROTOCOL,
    PROTOCOL_HEADER,
    AttemptList,
    AttemptSpec,
    AttemptStatus,
    Deleted,
    Heartbeat,
    HeartbeatAnswer,
    NodeGrant,
    NodeSpec,
    Phase,
    PhaseChange,
    Problem,
    QueueReport,
    QueueStatus,
    QueueWish,
    protocol_of,
    words,
)

log = logging.getLogger(__name__)
M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")
CONNECT_TIMEOUT = 3.0
READ_TIMEOUT = 16.0
"""Seconds for one answer: a controller answers within its deadline (10 s) and 5 s."""
KEPT = 45.0
"""Seconds that a quiet connection is kept, so that no job pays for a handshake: longer than the pause between
two heartbeats, shorter than the controller keeps it."""
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 2.0
MAX_ANSWER = 4 * 1024 * 1024


LONGEST_WAIT = 30.0
"""Seconds of a controller's Retry-After that are believed."""


class Unavailable(AgentError):
    """No answer, or one that says `try again`; `after`: not before so many seconds."""

    def __init__(self, text: str, after: float = 0.0) -> None:
        super().__init__(text)
        self.after = after


class Held(AgentError):
    """The policy refuses the job's description (422 `held`)."""

    def __init__(self, subcode: int, reason: str) -> None:
        super().__init__(reason)
        self.subcode = subcode


class Rejected(AgentError):
    """The controller refuses what this agent says, and will again."""

    def __init__(self, status: int, slug: str, detail: str) -> None:
        super().__init__(f"{detail} ({status} {slug})")
        self.status = status
        self.slug = slug


def retry_after(said: str | None) -> float:
    """Seconds; 0 where a controller says nothing that can be understood. (It could also say a date: ours does not.)"""
    return min(float(said), LONGEST_WAIT) if said is not None and said.isascii() and said.isdecimal() else 0.0


def meaning(status: int, body: bytes, after: float = 0.0) -> Unavailable | Held | Rejected:
    """What a problem document means."""
    try:
        problem = Problem.model_validate_json(body)
        slug, detail, extra = problem.type.rpartition(":")[2], problem.detail, problem.model_extra or {}
    except ValidationError:
        slug, detail, extra = "", "", {}
    detail = detail or f"HTTP status {status}"
    if status == 422 and slug == "held":
        subcode = extra.get("subcode")
        return Held(subcode if isinstance(subcode, int) else 101, str(extra.get("reason") or detail))
    if status >= 500 or status in (408, 429):
        # A 503 is about a bridge, the store or a start, and may be over at once: we ask at our own pace.
        return Unavailable(f"controller says: {detail}", after if status == 429 else 0.0)
    return Rejected(status, slug or "unknown", detail)


class ControllerClient:
    """Speaks to whichever of the configured controllers answers; stays with it while it does."""

    def __init__(
        self, node: str, urls: Sequence[str], token: str | None, context: ssl.SSLContext | None = None
    ) -> None:
        """`token`: None where the context's certificate says who this is."""
        self._node = node
        self._urls = list(urls)
        self._at = 0
        self._known = dict.fromkeys(self._urls, OLDEST_PROTOCOL)
        """What each controller said that it knows."""
        self._headers = {PROTOCOL_HEADER: str(PROTOCOL), "Accept": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._http = http1.Client(context, connect=CONNECT_TIMEOUT, answer=READ_TIMEOUT, kept=KEPT, most=MAX_ANSWER)

    @property
    def url(self) -> str:
        return self._urls[self._at]

    async def close(self) -> None:
        await self._http.close()

    async def put_node(self, spec: NodeSpec) -> NodeGrant:
        return await self._call("PUT", f"/v1/nodes/{quote(self._node)}", NodeGrant, spec)

    async def heartbeat(self, beat: Heartbeat) -> HeartbeatAnswer:
        # Behind hundreds of jobs that wait for a bridge, the node's lease would end.
        path = f"/v1/nodes/{quote(self._node)}/heartbeat"
        return await self._call("POST", path, HeartbeatAnswer, beat, at_once=True)

    async def put_attempt(self, attempt: str, spec: AttemptSpec) -> AttemptStatus:
        return await self._call("PUT", f"/v1/attempts/{quote(attempt)}", AttemptStatus, spec)

    async def get_attempt(self, attempt: str) -> AttemptStatus:
        return await self._call("GET", f"/v1/attempts/{quote(attempt)}", AttemptStatus, None)

    async def attempts(self) -> list[AttemptStatus]:
        """Those of this node."""
        return (await self._call("GET", f"/v1/attempts?node={quote(self._node)}", AttemptList, None)).attempts

    async def patch_phase(self, attempt: str, phase: Phase) -> AttemptStatus:
        try:
            return await self._call("PATCH", f"/v1/attempts/{quote(attempt)}", AttemptStatus, PhaseChange(phase=phase))
        except Rejected as e:
            if e.slug != "phase":
                raise
            # Perhaps an earlier request of ours arrived and its answer did not.
            now = await self.get_attempt(attempt)
            if now.spec.phase is not phase:
                raise
            return now

    async def delete_attempt(self, attempt: str) -> Deleted | None:
        """None: the controller does not know it (any more)."""
        try:
            return await self._call("DELETE", f"/v1/attempts/{quote(attempt)}", Deleted, None)
        except Rejected as e:
            if e.status == 404:
                return None
            raise

    async def queues(self, bridge: str, known: str | None) -> QueueWish | None:
        """The queues of a border; None: still those whose digest is `known`."""
        path = f"/v1/bridges/{quote(bridge)}/queues"
        response = await self._ask("GET", path, None, {} if known is None else {"If-None-Match": f'"{known}"'})
        return None if response.status == 304 else self._understand("GET", path, QueueWish, response)

    async def report_queues(self, bridge: str, report: QueueReport) -> QueueStatus:
        return await self._call("PUT", f"/v1/bridges/{quote(bridge)}/queues/report", QueueStatus, report)

    async def _ask_one(
        self, method: str, url: str, path: str, body: BaseModel | None, headers: Mapping[str, str], at_once: bool
    ) -> http1.Answer:
        """One answer, whatever it says. A controller that was replaced by an older one is asked again in its words."""
        while True:
            spoken = min(PROTOCOL, self._known[url])
            said = {**self._headers, **headers}
            if body is not None:
                said["Content-Type"] = "application/json"
            content = words(body, spoken) if body is not None else None
            response = await self._http.request(method, url + path, said, content, at_once=at_once)
            self._known[url] = protocol_of(response.headers.get(PROTOCOL_HEADER.lower()))
            if response.status != 400 or self._known[url] >= spoken:
                return response
            log.warning("controller %s knows protocol %d only; speaking that", url, self._known[url])

    async def _call(
        self, method: str, path: str, answer: type[M], body: BaseModel | None, *, at_once: bool = False
    ) -> M:
        return self._understand(method, path, answer, await self._ask(method, path, body, {}, at_once=at_once))

    async def _ask(
        self, method: str, path: str, body: BaseModel | None, headers: dict[str, str], *, at_once: bool = False
    ) -> http1.Answer:
        """The answer of whichever controller can be reached, whatever it is."""
        trouble: Unavailable | None = None
        for _ in self._urls:
            url = self.url
            try:
                response = await self._ask_one(method, url, path, body, headers, at_once)
            except (ssl.SSLError, OSError) as e:
                why = tls_words(e) or str(e) or type(e).__name__
                trouble = Unavailable(f"controller {url} cannot be reached: {why}")
                self._at = (self._at + 1) % len(self._urls)
                continue
            return response
        assert trouble is not None
        raise trouble

    def _understand(self, method: str, path: str, answer: type[M], response: http1.Answer) -> M:
        if response.status in (200, 201):
            try:
                return answer.model_validate_json(response.content)
            except ValidationError as e:
                first = str(e).splitlines()[0]
                raise Unavailable(f"controller {self.url} answered {method} {path} with nonsense: {first}") from None
        raise meaning(response.status, response.content, retry_after(response.headers.get("retry-after")))


class GivenUp(AgentError):
    """The one who asked does not need the answer any more."""


async def insist(call: Callable[[], Awaitable[T]], seconds: float, given_up: Callable[[], bool]) -> T:
    """Call again while the controller is unavailable, for so many seconds; the last Unavailable is raised then.

    `given_up` is asked between calls. A call on its way is never broken off: the controller may be acting on it, and
    what comes after (a DELETE) must not overtake it.
    """
    deadline = time.monotonic() + seconds
    pause = FIRST_PAUSE
    while True:
        if given_up():
            raise GivenUp("the attempt has ended")
        try:
            return await call()
        except Unavailable as e:
            # Agents that were turned away together do not come back together.
            wait = max(pause, e.after * random.uniform(1.0, 1.5))
            left = deadline - time.monotonic()
            if pause >= left:
                raise
            # Who is told to come when it is too late comes a last time before: how long it takes is a guess.
            wait = min(wait, left - pause)
        until = time.monotonic() + wait
        while (left := until - time.monotonic()) > 0 and not given_up():
            await asyncio.sleep(min(left, LONGEST_PAUSE))
        pause = min(pause * 2, LONGEST_PAUSE)
