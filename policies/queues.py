"""What the queues of a border's ports are to be: for each way out, which class is promised how much. Pure.

Traffic is shaped where it leaves: by a WAN port at the line's rate, by the port to the site at what is taken in.
Invariants: classes stand in the order of their rank; a guarantee is never promised twice (the guarantees of a port are
its rate in sum at most); no ceiling is below its guarantee or above the rate; no two classes of a plan share a code
point, for the queue of a packet is found by it. `check_together` refuses files of which this would not hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from policies.documents import Problem
from policies.model import Bandwidth, Bridge, Policy, Role, Site
from policies.values import in_words

ONLY_CLASS = "all"
"""The one class of a policy without classes."""


@dataclass(frozen=True, slots=True)
class QueueClass:
    """A class on one port; `guarantee` (0: none) and `ceiling` in bits a second; rank 1 is the most important."""

    name: str
    dscp: int
    guarantee: int
    ceiling: int
    rank: int


@dataclass(frozen=True, slots=True)
class PortQueues:
    """A way out of a border: its rate in bits a second, and its classes in order. The last takes what is unknown."""

    rate: int
    classes: tuple[QueueClass, ...]


@dataclass(frozen=True, slots=True)
class QueuePlan:
    bridge: str
    ports: Mapping[str, PortQueues]
    """By name: every WAN port, and the port to the site."""


def queue_plan(policy: Policy, site: Site, bridge: str) -> QueuePlan:
    """The queues of a border. Raises KeyError for a bridge that the site does not have, ValueError for no border.

    `policy` and `site` have passed `check_together`.
    """
    spec = site.bridges[bridge]
    ports = {name: PortQueues(rate, _classes(policy, rate)) for name, rate, _ in _ways_out(spec)}
    if not ports:
        raise ValueError(f"bridge {bridge} is no border")
    return QueuePlan(bridge, MappingProxyType(ports))


def queue_faults(policy: Policy, site: Site) -> list[Problem]:
    """Classes that the borders of a site cannot be true to, each with its line."""
    borders = [b for b in site.bridges.values() if Role.BORDER in b.roles]
    if not borders:
        return []
    return [*_shared_code_points(policy), *(fault for border in borders for fault in _overpromised(policy, border))]


def _ways_out(spec: Bridge) -> Iterator[tuple[str, int, str]]:
    """Name, rate, and what the rate is in words."""
    if spec.lan is None:
        return
    for name, port in spec.wan.items():
        yield name, port.rate, f"WAN port `{name}` of border `{spec.name}` carries"
    inbound = sum(port.inbound for port in spec.wan.values())
    yield spec.lan, inbound, f"border `{spec.name}` takes in from the WAN"


def _classes(policy: Policy, rate: int) -> tuple[QueueClass, ...]:
    if not policy.classes:
        return (QueueClass(ONLY_CLASS, 0, rate, rate, 1),)
    return tuple(
        QueueClass(
            name=one.name,
            dscp=one.dscp,
            guarantee=_amount(one.guarantee, rate) if one.guarantee is not None else 0,
            ceiling=min(_amount(one.ceiling, rate), rate) if one.ceiling is not None else rate,
            rank=rank,
        )
        for rank, one in enumerate(policy.classes, 1)
    )


def _amount(bandwidth: Bandwidth, rate: int) -> int:
    # Rounded down: three thirds are never more than the whole.
    return bandwidth.bits if bandwidth.bits is not None else int(rate * (bandwidth.percent or 0) / 100)


def _shared_code_points(policy: Policy) -> Iterator[Problem]:
    first: dict[int, str] = {}
    for one in policy.classes:
        other = first.setdefault(one.dscp, one.name)
        if other != one.name:
            message = f"classes `{other}` and `{one.name}` have the same code point: a border tells them apart by it"
            yield Problem(one.place, message, "give each class a `dscp` of its own")


def _overpromised(policy: Policy, border: Bridge) -> Iterator[Problem]:
    """Each class is told of once for a border, at its narrowest way out."""
    told: set[str] = set()
    ways = sorted(_ways_out(border), key=lambda way: way[1])
    for _, rate, what in ways:
        promised = 0
        for one, queue in zip(policy.classes, _classes(policy, rate), strict=False):
            promised += queue.guarantee
            if one.name in told:
                continue
            link = f"{what} {in_words(rate)}"
            if queue.guarantee > rate:
                message = f"class `{one.name}` is promised {in_words(queue.guarantee)}, and {link}"
                yield Problem(one.place, message, "promise less, or write it as a part of the link: 50%")
                told.add(one.name)
            elif queue.guarantee and promised > rate:
                message = f"the guarantees up to here are {in_words(promised)} in sum, and {link}"
                yield Problem(one.place, message, "let them be what the link carries at most")
                told.add(one.name)
            elif queue.ceiling < queue.guarantee:
                ceiling, guarantee = in_words(queue.ceiling), in_words(queue.guarantee)
                message = f"the ceiling of class `{one.name}` is {ceiling}, below its guarantee of {guarantee}: {link}"
                yield Problem(one.place, message, "raise the ceiling, or lower the guarantee")
                told.add(one.name)
