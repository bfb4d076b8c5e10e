"""The ports of several services, cut into ranges that do not overlap, each with the services that have it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from policies.model import PortRange, Protocol, Service


def spans(services: Sequence[Service]) -> list[tuple[PortRange, tuple[int, ...]]]:
    """Ranges and the positions of their services, in order; a range ends where any service's begins or ends.

    Of a protocol at most twice as many as the services have ranges of it, whatever overlaps.
    """
    found = []
    for protocol in Protocol:
        changes: dict[int, list[tuple[int, int]]] = {}
        for position, service in enumerate(services):
            for ports in service.ports:
                if ports.protocol is protocol:
                    changes.setdefault(ports.first, []).append((position, 1))
                    changes.setdefault(ports.last + 1, []).append((position, -1))
        held: Counter[int] = Counter()
        for edge, following in pairwise(sorted(changes)):
            for position, change in changes[edge]:
                held[position] += change
            having = tuple(sorted(position for position, count in held.items() if count))
            if having:
                found.append((PortRange(protocol, edge, following - 1), having))
    return found
