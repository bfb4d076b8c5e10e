"""The events of a controller, as many as fit, and where each reader stands. Pure: time is an argument.

    tell ──▶ bucket of (topic, place, subject) ──▶ told: a number, the next one
                 └──▶ held back, the last of each kind, with how many there were ──▶ told by `tick`

Invariants:

* Of one bucket at most BURST are told at once, and a round of them each REFILL seconds after that. What is held back
  is told in the end, the last of each kind, in the order in which they last happened, with how many it stands for:
  so the last that is read of a bridge that flapped is how it is.
* The same thing in the same words is told once in REPEAT seconds.
* When the ring is full, the place (bridge, node, …) that has most in it loses its oldest: who makes much noise pushes
  out its own, and never the last of a place that is quieter.
* A cursor says how many were missed since: told after it, and not in the ring any more. One of an earlier life of the
  controller is known as such, and begins anew.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from policies.events import ABOUT, Kind

CAPACITY = 1000
BURST = 10
REFILL = 10.0
REPEAT = 60.0
MOST_BUCKETS = 4096
"""What is beyond loses the one unheard of for longest, and what it holds back is told."""
MAX_TEXT = 1000
_CURSOR = re.compile(r"([0-9a-f]{1,32})\.([0-9]{1,15})")


class BadCursor(ValueError):
    """No cursor of any controller."""


@dataclass(frozen=True, slots=True)
class News:
    """Something that has happened. `subject`: tells stories of one topic at one place apart; else the port does."""

    kind: Kind
    text: str
    bridge: str = ""
    node: str = ""
    attempt: str = ""
    job: str = ""
    port: str = ""
    subject: str = ""

    @property
    def place(self) -> str:
        return f"bridge {self.bridge}" if self.bridge else f"node {self.node}" if self.node else ""


@dataclass(frozen=True, slots=True)
class Told:
    """One that readers get. `at`: by the wall clock, when it (last) happened; `times`: how often since it was told."""

    number: int
    at: float
    news: News
    times: int


@dataclass(frozen=True, slots=True)
class Page:
    """`missed`: told since the cursor and gone; `restarted`: the cursor is of another life, and nothing known of it."""

    told: Sequence[Told]
    cursor: str
    missed: int
    restarted: bool


@dataclass(slots=True)
class _Held:
    news: News
    at: float
    due: float
    times: int


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled: float
    held: dict[Kind, _Held] = field(default_factory=dict)
    """In the order in which they last happened."""
    last: tuple[Kind, str] | None = None
    """What was told last, and in which words."""
    last_at: float = 0.0


class EventRing:
    """`life`: hexadecimal digits, others for each life of the controller."""

    def __init__(self, life: str, capacity: int = CAPACITY) -> None:
        self._life = life
        self._capacity = capacity
        self._number = 0
        self._told: dict[int, Told] = {}
        self._places: dict[str, deque[int]] = {}
        self._buckets: dict[tuple[str, str, str], _Bucket] = {}
        self._waiting: set[tuple[str, str, str]] = set()
        """Buckets that hold something back."""
        self.happened: Counter[Kind] = Counter()
        """All of them, told or held back."""

    @property
    def cursor(self) -> str:
        return f"{self._life}.{self._number}"

    def tell(self, news: News, now: float, wall: float) -> list[Told]:
        """Something has happened. What is told at once."""
        if len(news.text) > MAX_TEXT:
            news = replace(news, text=news.text[: MAX_TEXT - 1] + "…")
        self.happened[news.kind] += 1
        key = (ABOUT[news.kind].topic, news.place, news.subject or news.port)
        told: list[Told] = []
        bucket = self._buckets.pop(key, None)
        if bucket is None:
            if len(self._buckets) >= MOST_BUCKETS:
                oldest = next(iter(self._buckets))
                told += self._flush(oldest, self._buckets[oldest], now)
                del self._buckets[oldest]
            bucket = _Bucket(BURST, now)
        self._buckets[key] = bucket
        again = bucket.last == (news.kind, news.text) and now < bucket.last_at + REPEAT
        before = bucket.held.pop(news.kind, None)
        times = 1 + (before.times if before is not None else 0)
        # Words that have changed meanwhile are not held back for being the same.
        due = bucket.last_at + REPEAT if again and not bucket.held else now
        bucket.held[news.kind] = _Held(news, wall, due, times)
        self._waiting.add(key)
        return told + self._look(key, bucket, now)

    def tick(self, now: float) -> list[Told]:
        """What was held back and is due. Call it about once a second."""
        return [one for key in sorted(self._waiting) for one in self._look(key, self._buckets[key], now)]

    def since(self, cursor: str | None) -> Page:
        """What was told after a cursor; None: all there is. Raises BadCursor."""
        if cursor is None:
            return Page(list(self._told.values()), self.cursor, 0, False)
        found = _CURSOR.fullmatch(cursor)
        if found is None:
            raise BadCursor(f"{cursor[:60]!r} is no cursor; take `cursor` of the answer before")
        number = int(found[2])
        if found[1] != self._life:
            return Page(list(self._told.values()), self.cursor, 0, True)
        if number > self._number:
            raise BadCursor(f"{cursor[:60]!r} is a cursor of the future; take `cursor` of the answer before")
        newer = list(itertools.takewhile(lambda one: one.number > number, reversed(self._told.values())))
        newer.reverse()
        return Page(newer, self.cursor, self._number - number - len(newer), False)

    def _look(self, key: tuple[str, str, str], bucket: _Bucket, now: float) -> list[Told]:
        bucket.tokens = min(float(BURST), bucket.tokens + max(0.0, now - bucket.filled) / REFILL)
        bucket.filled = now
        if bucket.tokens < 1 or min(one.due for one in bucket.held.values()) > now:
            return []
        bucket.tokens -= 1
        return self._flush(key, bucket, now)

    def _flush(self, key: tuple[str, str, str], bucket: _Bucket, now: float) -> list[Told]:
        self._waiting.discard(key)
        told = []
        for one in bucket.held.values():
            self._number += 1
            told.append(Told(self._number, one.at, one.news, one.times))
            bucket.last, bucket.last_at = (one.news.kind, one.news.text), now
        bucket.held = {}
        for item in told:
            self._told[item.number] = item
            self._places.setdefault(item.news.place, deque()).append(item.number)
            if len(self._told) > self._capacity:
                self._push_out()
        return told

    def _push_out(self) -> None:
        place = max(self._places, key=lambda one: (len(self._places[one]), -self._places[one][0]))
        numbers = self._places[place]
        del self._told[numbers.popleft()]
        if not numbers:
            del self._places[place]
