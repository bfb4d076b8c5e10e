"""An attempt's counters, read from the statistics of its own flows."""

from __future__ import annotations

from collections.abc import Iterable

from policies.model import Attempt, Reason
from policies.wire import Counters, Denial
from ryu_apps.openflow.flows import FlowStats
from ryu_apps.openflow.pipeline import Priority, Table


def read_counters(attempt: Attempt, stats: Iterable[FlowStats], protected: Iterable[str] = ()) -> Counters:
    """An attempt's counters from the statistics of its own flows on its worker bridge.

    `protected`: the policy's protected services. A drop for want of a grant is counted per attempt, not per service, so
    the text names every service that it can have been.
    """
    ungranted = sorted(set(protected) - attempt.outcome.services)
    which = " protected service" + (f" {' or '.join(ungranted)}" if ungranted else "")
    admitted = delivered = (0, 0)
    denied: list[Denial] = []
    for s in stats:
        seen = (s.packets, s.bytes)
        place = (Table(s.key.table), s.key.priority)
        if place == (Table.SPOOF_GUARD, Priority.OBJECT):
            if not attempt.outcome.sealed:
                admitted = seen
        elif place == (Table.SPOOF_GUARD, Priority.OTHERWISE_OBJECT):
            denied.append(
                _denial(Reason.SPOOFED.slug, seen, "frames that did not carry the job's own MAC and addresses")
            )
        elif place == (Table.DENIED, Priority.OBJECT):
            denied.append(_denial(Reason.NO_GRANT.slug, seen, f"no grant of this job covers{which}"))
        elif place == (Table.DENIED, Priority.OTHERWISE_OBJECT):
            if attempt.outcome.sealed:
                denied.append(_denial(Reason.SEALED.slug, seen, "the job is sealed: it has no network"))
            else:
                text = "other jobs, a node's own addresses or infrastructure, multicast, or the defaults"
                denied.append(_denial("policy", seen, text))
        elif place == (Table.DELIVER, Priority.OBJECT):
            delivered = seen
    return Counters(
        admitted_packets=admitted[0],
        admitted_bytes=admitted[1],
        delivered_packets=delivered[0],
        delivered_bytes=delivered[1],
        denied=sorted(denied, key=lambda d: d.reason),
    )


def _denial(reason: str, seen: tuple[int, int], text: str) -> Denial:
    return Denial(reason=reason, packets=seen[0], bytes=seen[1], text=text)
