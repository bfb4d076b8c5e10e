"""Events as `larkctl events` writes them: a line of what happened, and below it what to do."""

from __future__ import annotations

import time
from collections.abc import Iterator

from policies.wire import Event, EventList


def in_lines(event: Event) -> Iterator[str]:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.time))
    where = {"bridge": event.bridge, "node": event.node, "attempt": event.attempt, "job": event.job, "port": event.port}
    words = "".join(f" {name} {value}" for name, value in where.items() if value)
    whose = f" [{event.controller}]" if event.controller else ""
    often = f" ({event.times} times)" if event.times > 1 else ""
    yield f"{at} {event.level} {event.kind}{whose}{words}: {event.text}{often}"
    if event.mend:
        yield f"    {event.mend}"


def gap(found: EventList) -> Iterator[str]:
    """What is not there to be told."""
    if found.restarted:
        yield "the controller has restarted since, or this is another one: what was told before it is in its log only"
    if found.missed:
        yield f"{found.missed} events are missing here: there were more since than are kept; they are in the log"
