"""Where the controller's parts say what happens: to the log, to `/metrics`, and to who reads `GET /v1/events`.

    switches, leases, store, policy, borders' agents ──▶ Events.tell ──▶ ring ──▶ log line, readers that wait

Invariants: whatever happens is a line of the log at once, and an event says the same in the same words; the ring may
hold events back, the log does not. `tell` never waits, and may be called from anywhere. At most READERS wait at a time.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping

from policies.events import ABOUT, Kind, Level
from policies.wire import Event, EventList
from ryu_apps.event_ring import BadCursor, EventRing, News, Told
from ryu_apps.refusals import Refused, Slug

LOG = logging.getLogger("lark.events")
READERS = 32
LONGEST_WAIT = 30.0
"""Seconds that a reader may wait for news in one request."""
_LEVELS = {Level.INFO: logging.INFO, Level.WARNING: logging.WARNING, Level.ERROR: logging.ERROR}


class Events:
    """One for a controller. `name`: of the controller, where there are several."""

    def __init__(
        self,
        name: str = "",
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        life: str | None = None,
    ) -> None:
        self.name = name
        self._clock = clock
        self._wall_clock = wall_clock
        self._ring = EventRing(secrets.token_hex(6) if life is None else life)
        self._news = threading.Condition(threading.Lock())
        self.waiting = 0
        """Readers that wait for news."""
        self._closed = False

    def tell(
        self, kind: Kind, text: str, *, bridge: str = "", node: str = "", attempt: str = "", job: str = "",
        port: str = "", subject: str = "",
    ) -> None:  # fmt: skip
        """Something has happened. Never waits."""
        news = News(kind, text, bridge, node, attempt, job, port, subject)
        with self._news:
            told = self._ring.tell(news, self._clock(), self._wall_clock())
            if told:
                self._news.notify_all()
        _log(news)

    def tick(self) -> None:
        """Call about once a second: tells what was held back and is due."""
        with self._news:
            if self._ring.tick(self._clock()):
                self._news.notify_all()

    @property
    def happened(self) -> Mapping[Kind, int]:
        """How often since the start, told or held back."""
        return self._ring.happened

    def read(self, cursor: str | None, wait: float = 0.0) -> EventList:
        """What was told since; where there is nothing, wait so many seconds for it. Raises Refused."""
        until = time.monotonic() + min(wait, LONGEST_WAIT)
        with self._news:
            try:
                page = self._ring.since(cursor)
                if wait > 0 and not page.told and not page.missed and not page.restarted:
                    if self.waiting >= READERS:
                        raise Refused(Slug.TOO_MANY, f"{READERS} readers wait for events; try again", retry_after=5)
                    self.waiting += 1
                    try:
                        while not page.told and not self._closed and (left := until - time.monotonic()) > 0:
                            self._news.wait(left)
                            page = self._ring.since(cursor)
                    finally:
                        self.waiting -= 1
            except BadCursor as problem:
                raise Refused(Slug.MALFORMED, f"since: {problem}") from None
        return EventList(
            controller=self.name,
            events=[self._event(one) for one in page.told],
            cursor=page.cursor,
            missed=page.missed,
            restarted=page.restarted,
        )

    def close(self) -> None:
        """The controller ends: nobody waits any more."""
        with self._news:
            self._closed = True
            self._news.notify_all()

    def _event(self, told: Told) -> Event:
        news = told.news
        about = ABOUT[news.kind]
        return Event(
            number=told.number,
            time=round(told.at, 3),
            controller=self.name,
            kind=news.kind.value,
            level=about.level.value,
            bridge=news.bridge or None,
            node=news.node or None,
            attempt=news.attempt or None,
            job=news.job or None,
            port=news.port or None,
            text=news.text,
            mend=about.mend,
            times=told.times,
        )


def _log(news: News) -> None:
    about = ABOUT[news.kind]
    where = {"bridge": news.bridge, "node": news.node, "attempt": news.attempt, "job": news.job, "port": news.port}
    words = "".join(f" {name}={value}" for name, value in where.items() if value)
    mend = f"; {about.mend}" if about.mend else ""
    LOG.log(_LEVELS[about.level], "event=%s%s: %s%s", news.kind.value, words, news.text, mend)
