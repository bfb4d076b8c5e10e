"""What borders are to do with their queues, what their agents said last, and what each class has carried.

Invariants: the wish follows from the policy and `site.yaml` alone, so every controller of a site gives the same one; a
report is news, not state: it is kept in memory by the controller that it was told to, and forgotten with it. What a
class has carried never goes back, also when its queue is made anew; it is counted for the classes of the wish alone,
whatever else an agent reports. Among several controllers each tells what a class has carried while the border's agent
talked to it, and nothing twice: their sum is the site's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from policies.model import Bridge, Policy, Role, Site
from policies.queues import queue_plan
from policies.wire import (
    QUEUES_STALE,
    BorderStats,
    ClassStats,
    PortQueues,
    QueueClass,
    QueueReport,
    QueueStatus,
    QueueWish,
    queues_digest,
)
from ryu_apps.refusals import Refused, Slug
from ryu_apps.sums import Sums

ELSEWHERE = 6.0
"""Seconds without a report after which an agent may have reported to another controller meanwhile."""


def queue_wish(policy: Policy, site: Site, bridge: str) -> QueueWish:
    """Raises Refused for what is no border."""
    spec = site.bridges.get(bridge)
    if spec is None:
        raise Refused(Slug.NO_SUCH_BRIDGE, f"bridge {bridge} is not in site.yaml")
    if Role.BORDER not in spec.roles:
        raise Refused(Slug.NO_SUCH_BRIDGE, f"bridge {bridge} has no role border in site.yaml, so it has no queues")
    ports = {
        name: PortQueues(
            rate=port.rate,
            classes=[
                QueueClass(name=one.name, dscp=one.dscp, rank=one.rank, guarantee=one.guarantee, ceiling=one.ceiling)
                for one in port.classes
            ],
        )
        for name, port in queue_plan(policy, site, bridge).ports.items()
    }
    return QueueWish(digest=queues_digest(ports), ports=ports)


@dataclass(frozen=True, slots=True)
class _Said:
    report: QueueReport
    at: float


_Where = tuple[str, str, str]
"""Bridge, port, class."""


def _places(wish: QueueWish) -> list[tuple[str, str]]:
    return [(port, one.name) for port, queues in wish.ports.items() for one in queues.classes]


class Borders:
    """The last report of each border. Any thread may call."""

    def __init__(self, clock: Callable[[], float], *, shared: bool = False) -> None:
        """`shared`: an agent may have talked to another controller before."""
        self._clock = clock
        self._shared = shared
        self._told: dict[_Where, list[int]] = {}
        """If shared: bytes, packets and drops that were reported here as they grew."""
        self._lock = threading.Lock()
        self._said: dict[str, _Said] = {}
        self._sums: dict[_Where, Sums] = {}
        self.changed = False
        """A queue was made anew since `stored` was called."""

    def hear(self, bridge: str, report: QueueReport, wish: QueueWish) -> QueueStatus:
        said = _Said(report, self._clock())
        with self._lock:
            before = self._said.get(bridge)
            strange = self._shared and (before is None or said.at - before.at > ELSEWHERE)
            self._said[bridge] = said
            for port, name in _places(wish):
                seen = report.ports[port].classes.get(name) if port in report.ports else None
                if seen is not None:
                    sums = self._sums.setdefault((bridge, port, name), Sums(1, 3))
                    if strange:
                        sums.unheard()
                    resets = sums.resets
                    grown = sums.hear(0, (seen.bytes, seen.packets, seen.drops))
                    self.changed = self.changed or sums.resets != resets
                    told = self._told.get((bridge, port, name), [0, 0, 0])
                    self._told[bridge, port, name] = [a + b for a, b in zip(told, grown, strict=True)]
        return self._status(said, wish)

    def status(self, bridge: str, wish: QueueWish) -> QueueStatus | None:
        """None: its agent has said nothing since this controller started. `wish`: by the present policy."""
        with self._lock:
            said = self._said.get(bridge)
        return None if said is None else self._status(said, wish)

    def stats(self, bridge: Bridge, wish: QueueWish) -> tuple[BorderStats, list[ClassStats]]:
        """How fresh the counts are, and those of each class on each way out."""
        with self._lock:
            said = self._said.get(bridge.name)
            sums = {
                where: self._told.get((bridge.name, *where), (0, 0, 0))
                if self._shared
                else self._sums[bridge.name, *where].of(0)
                for where in _places(wish)
                if (bridge.name, *where) in self._sums
            }
        status = None if said is None else self._status(said, wish)
        fresh = status is not None and status.age <= QUEUES_STALE
        found = []
        for port, queues in wish.ports.items():
            here = said.report.ports.get(port) if said is not None and fresh else None
            for one in queues.classes:
                octets, packets, drops = sums.get((port, one.name), (0, 0, 0))
                now = here.classes.get(one.name) if here is not None else None
                found.append(
                    ClassStats(
                        bridge=bridge.name,
                        port=port,
                        direction="out" if port in bridge.wan else "in",
                        name=one.name,
                        dscp=one.dscp,
                        rank=one.rank,
                        guarantee=one.guarantee,
                        ceiling=one.ceiling,
                        bytes=octets,
                        packets=packets,
                        drops=drops,
                        backlog=now.backlog if now is not None else 0,
                        rate=now.rate if now is not None else 0,
                    )
                )
        about = BorderStats(
            bridge=bridge.name,
            age=None if status is None else round(status.age, 1),
            in_force=status is not None and status.in_force,
        )
        return about, found

    def stored(self) -> list[list[Any]]:
        """Rows that `restore` takes."""
        with self._lock:
            self.changed = False
            return [[*where, sums.stored()] for where, sums in self._sums.items()]

    def restore(self, stored: Iterable[Any]) -> None:
        """Before the first report. Raises ValueError, TypeError."""
        found = {
            (str(bridge), str(port), str(name)): Sums.restored(1, 3, values) for bridge, port, name, values in stored
        }
        with self._lock:
            self._sums = found

    def _status(self, said: _Said, wish: QueueWish) -> QueueStatus:
        age = max(0.0, self._clock() - said.at)
        followed = age <= QUEUES_STALE and said.report.digest == wish.digest
        in_force = followed and not said.report.faults
        return QueueStatus(age=age, in_force=in_force, followed=followed, report=said.report)
