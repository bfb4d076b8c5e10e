"""Fireflies, pure: which connections of marked jobs have begun, go on and have ended, and what is said of each.

    seen for the first time ──▶ start ──▶ ongoing, every so many seconds ──▶ end: not seen any more, or the job is over

A firefly is a line of syslog (RFC 5424) with a JSON document (scitags.org, schema version 1). `src` is the job's end of
the connection, whoever opened it.

Invariants: no clock, no socket. Every start is followed by one end, unless the agent itself ends before. Of one job at
most `MAX_FLOWS` connections are followed; those beyond are not spoken of. Times are those at which it was seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from ovs_agent.sockets import Connection, Seen

MAX_FLOWS = 256
_LOCAL0_INFORMATIONAL = 16 << 3 | 6


@dataclass(frozen=True, slots=True)
class Mark:
    experiment: int
    activity: int


@dataclass(frozen=True, slots=True)
class Firefly:
    state: Literal["start", "ongoing", "end"]
    connection: Connection
    mark: Mark
    since: float
    """Seconds since 1970, as `now`."""
    now: float


@dataclass(slots=True)
class _Flow:
    since: float
    said: float
    mark: Mark


@dataclass(slots=True)
class Lives:
    """The connections that are followed, by job."""

    ongoing: float
    """Seconds between two words about one connection."""
    _flows: dict[str, dict[Connection, _Flow]] = field(default_factory=dict)
    _beyond: set[str] = field(default_factory=set)

    def look(self, job: str, mark: Mark, seen: Seen, now: float) -> list[Firefly]:
        """What to say after a look at a marked job. A look that saw not all ends nothing."""
        flows = self._flows.setdefault(job, {})
        said = []
        self._beyond.discard(job)
        if seen.whole:
            for connection in sorted(flows.keys() - seen.connections):
                said.append(_end(connection, flows.pop(connection), now))
        for connection in sorted(seen.connections):
            flow = flows.get(connection)
            if flow is None:
                if len(flows) >= MAX_FLOWS:
                    self._beyond.add(job)
                    continue
                flows[connection] = _Flow(now, now, mark)
                said.append(Firefly("start", connection, mark, now, now))
            elif now - flow.said >= self.ongoing or flow.mark != mark:
                flow.said, flow.mark = now, mark
                said.append(Firefly("ongoing", connection, mark, flow.since, now))
        return said

    def over(self, marked: Iterable[str], now: float) -> list[Firefly]:
        """Ends all connections of jobs that are not `marked` (any more)."""
        said = []
        for job in self._flows.keys() - set(marked):
            self._beyond.discard(job)
            flows = self._flows.pop(job)
            said += [_end(connection, flows[connection], now) for connection in sorted(flows)]
        return said

    def beyond(self, job: str) -> bool:
        """Whether the last look at a job saw connections that are not followed."""
        return job in self._beyond


def _end(connection: Connection, flow: _Flow, now: float) -> Firefly:
    return Firefly("end", connection, flow.mark, flow.since, now)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def document(firefly: Firefly, application: str) -> dict[str, object]:
    connection, now = firefly.connection, _time(firefly.now)
    life = {"state": firefly.state, "current-time": now, "start-time": _time(firefly.since)}
    if firefly.state == "end":
        life["end-time"] = now
    return {
        "version": 1,
        "flow-lifecycle": life,
        "flow-id": {
            "afi": "ipv6" if ":" in connection.address else "ipv4",
            "src-ip": connection.address,
            "dst-ip": connection.peer,
            "protocol": connection.protocol,
            "src-port": connection.port,
            "dst-port": connection.peer_port,
        },
        "context": {
            "experiment-id": firefly.mark.experiment,
            "activity-id": firefly.mark.activity,
            "application": application,
        },
    }


def datagram(firefly: Firefly, host: str, application: str) -> bytes:
    """The line of syslog that carries it. `host`: this machine's name."""
    body = json.dumps(document(firefly, application), separators=(",", ":"))
    return f"<{_LOCAL0_INFORMATIONAL}>1 {_time(firefly.now)} {host} lark-agent - firefly-json - {body}".encode()
