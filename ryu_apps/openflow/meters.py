"""Meters: how rates and shares are kept on a worker bridge. Pure.

A meter drops what is more than its rate: nothing waits in a queue and starves other ports. It is a rule of the bridge
like a flow (`MeterRule` has a key, as `Flow` has), and must be there before the first flow that names it.

Invariants: the number of a meter says whose it is (`owners`). Its first octet is Lark's mark; then come one bit for
what it limits, a number, and one bit for the direction. A rate's number is the attempt's conntrack zone, which no other
attempt of that node has, living or leaving; a share's is its own (`World.share_numbers`), stored with the attempts that
have it. So a restart finds every meter as it is, a job that ends takes only its own flows along, and others' meters are
never touched.

    31      24   23    22                       1      0
    +---------+-------+--------------------------+----------+
    |  0x4c   | share |  zone or share's number  | to a job |
    +---------+-------+--------------------------+----------+

Of the numbers without the bit for a share, those with bit 22 are not zones: they are the buckets that all jobs' ARP and
neighbour discovery pass, of whole bridges and in packets a second.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NewType

from policies.model import Attempt, Sharing, World
from ryu_apps.openflow.cookies import MARK
from ryu_apps.openflow.flows import Flow, FlowKey, Meter

MeterKey = NewType("MeterKey", int)

SHARE_BIT = 1 << 23
MOST_SHARES = (1 << 22) - 1
"""The largest number of a share: what fits into a meter's."""
MOST = (1 << 32) - 1
"""A meter's rate and burst are 32 bits of kbit/s and kbit."""
LEAST_BURST = 1024
"""In kbit: two of the largest frames that a segmentation offload makes (64 KB) must fit into a bucket, or none pass."""


BUCKETS = 1 << 4
"""As many as `registers.BUCKET` tells apart."""
_NEIGHBOURS = 1 << 21
"""In a meter's number (not a share's): a bucket, not a zone."""
NEIGHBOUR_RATE = 100
"""Packets a second of a bucket, and as many at once. A kernel asks for a neighbour once a second; a flood of 5,000 a
second is cut to what a link with hundreds of nodes bears."""


class Way(enum.IntEnum):
    """Seen from the job."""

    OUT = 0
    IN = 1


@dataclass(frozen=True, slots=True)
class MeterRule:
    """A meter that a bridge shall have. `rate`: kbit/s, of whole Ethernet frames, or packets a second (`packets`)."""

    number: int
    rate: int
    packets: bool = False

    @property
    def key(self) -> MeterKey:
        return MeterKey(self.number)

    @property
    def unit(self) -> str:
        return "packets/s" if self.packets else "kbit/s"

    @property
    def burst(self) -> int:
        """In kbit: half a second of the rate. With a fifth of a second a single TCP connection stays 5 % below.
        In packets: a second's."""
        if self.packets:
            return self.rate
        return min(MOST, max(LEAST_BURST, self.rate // 2))


Rule = Flow | MeterRule
"""What a bridge can be told to have. A meter must be told not later than the flows that name it."""
RuleKey = FlowKey | MeterKey


def kilobits(bits: int) -> int:
    """A rate as meters have it: never nothing, never more than they can say (4.29 Tbit/s)."""
    return min(MOST, max(1, round(bits / 1000)))


def limits(world: World, attempt: Attempt, way: Way) -> tuple[Meter, ...]:
    """What all of an attempt's frames of a direction pass: its rate, its share, both or nothing; its own comes first,
    so that what it drops is nobody's loss."""
    found = []
    if attempt.rate is not None:
        found.append(Meter(_number(attempt.zone, way)))
    if attempt.share is not None:
        found.append(Meter(SHARE_BIT | _number(_share(world, attempt), way)))
    return tuple(found)


def neighbour_meters() -> list[MeterRule]:
    """The meters of ARP and neighbour discovery, on every worker bridge whose switch has meters."""
    return [
        MeterRule(_number(_NEIGHBOURS | bucket, Way.OUT), NEIGHBOUR_RATE, packets=True) for bucket in range(BUCKETS)
    ]


def bucket_of(meter: MeterRule) -> int:
    """Which of `neighbour_meters` it is."""
    return meter.number >> 1 & (BUCKETS - 1)


def rate_meters(attempt: Attempt) -> list[MeterRule]:
    """The meters of an attempt's rate, on its worker bridge."""
    if attempt.rate is None:
        return []
    return [MeterRule(_number(attempt.zone, way), kilobits(attempt.rate)) for way in Way]


def share_meters(world: World, attempt: Attempt) -> list[MeterRule]:
    """The meters of the share that an attempt has with others, on its worker bridge."""
    if attempt.share is None:
        return []
    share, rate = _share(world, attempt), kilobits(_bits(world, attempt, attempt.share))
    return [MeterRule(SHARE_BIT | _number(share, way), rate) for way in Way]


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a meter is: an attempt's (by id) or a share's (by name); the other is None."""

    attempt: str | None
    share: str | None
    way: Way


def owners(world: World, bridge: str) -> dict[int, Owner]:
    """Whose each meter is that rates and shares have on a worker bridge, by the meter's number."""
    found = {}
    for attempt in world.attempts.values():
        if attempt.bridge != bridge:
            continue
        for way in Way:
            if attempt.rate is not None:
                found[_number(attempt.zone, way)] = Owner(attempt.id, None, way)
            if attempt.share is not None:
                found[SHARE_BIT | _number(_share(world, attempt), way)] = Owner(None, attempt.share.name, way)
    return found


def _share(world: World, attempt: Attempt) -> int:
    assert attempt.share_key is not None
    return world.share_numbers[attempt.share_key]


def _bits(world: World, attempt: Attempt, share: Sharing) -> int:
    if share.part.bits is not None:
        return share.part.bits
    link = world.site.nodes[attempt.node].link
    # A policy with parts of links that the site does not know is not accepted.
    assert link is not None
    return share.part.of(link)


def _number(number: int, way: Way) -> int:
    return MARK << 24 | number << 1 | way
