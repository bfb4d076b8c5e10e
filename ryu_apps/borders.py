"""What borders are to do with their queues, and what their agents said last.

Invariants: the wish follows from the policy and `site.yaml` alone, so every controller of a site gives the same one; a
report is news, not state: it is kept in memory by the controller that it was told to, and forgotten with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from policies.model import Policy, Role, Site
from policies.queues import queue_plan
from policies.wire import PortQueues, QueueClass, QueueReport, QueueStatus, QueueWish, queues_digest
from ryu_apps.refusals import Refused, Slug

STALE = 15.0
"""Seconds without a report after which queues do not count as in force: an agent reports every two."""


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


class Borders:
    """The last report of each border. Any thread may call."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._said: dict[str, _Said] = {}

    def hear(self, bridge: str, report: QueueReport, wish: QueueWish) -> QueueStatus:
        said = _Said(report, self._clock())
        with self._lock:
            self._said[bridge] = said
        return self._status(said, wish)

    def status(self, bridge: str, wish: QueueWish) -> QueueStatus | None:
        """None: its agent has said nothing since this controller started. `wish`: by the present policy."""
        with self._lock:
            said = self._said.get(bridge)
        return None if said is None else self._status(said, wish)

    def _status(self, said: _Said, wish: QueueWish) -> QueueStatus:
        age = max(0.0, self._clock() - said.at)
        followed = age <= STALE and said.report.digest == wish.digest
        in_force = followed and not said.report.faults
        return QueueStatus(age=age, in_force=in_force, followed=followed, report=said.report)
