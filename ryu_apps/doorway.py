"""Who may hold a connection to a listener: a fixed number of places, and nobody can take them from the others.

    accept ──▶ admit ──▶ stranger ──▶ known (it has shown who it is) ──▶ left
                  │          └──▶ sent away, for a newcomer
                  └──▶ refused

Pure: connections are opaque values, addresses are text, time is an argument; whoever uses it closes what it is told to.

Invariants: at most `total` connections in all, `strangers` of them strangers'; at most `per_stranger` strangers and
`per_address` connections from one address (of IPv6: from one /64). Room for a newcomer is made by sending away a
stranger, never one who is known: first of the newcomer's own address, its oldest; else of the address with the most
strangers, addresses that nobody known has ever come from first. So who shows at once who he is gets in, however many
say nothing.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field

WELCOME = "lark.welcome"
"""Key of a request's WSGI environment: to be called once the client has shown who it is."""
REMEMBERED = 8192
"""Addresses that somebody known has come from; the one unheard of for longest is forgotten first."""


@dataclass(frozen=True, slots=True)
class Limits:
    total: int = 2048
    strangers: int = 512
    per_stranger: int = 16
    per_address: int = 256


@dataclass(frozen=True, slots=True)
class Admission:
    """Is the newcomer in, and who must go for it?"""

    admitted: bool
    gone: Hashable | None = None


@dataclass(slots=True)
class _House:
    """The connections of one address, oldest first."""

    strangers: dict[Hashable, None] = field(default_factory=dict)
    known: set[Hashable] = field(default_factory=set)


class Doorway:
    """The places of one listener."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._houses: dict[str, _House] = {}
        self._address: dict[Hashable, str] = {}
        self._strangers = 0
        self._remembered: dict[str, None] = {}
        self._sent_away: Counter[str] = Counter()
        self.turned_away_at: float | None = None
        """When somebody was last refused or sent away for want of a place."""

    def __len__(self) -> int:
        return len(self._address)

    def admit(self, who: Hashable, address: str, now: float) -> Admission:
        """A connection has come."""
        house_name = _house(address)
        house = self._houses.get(house_name, _House())
        full = len(self._address) >= self._limits.total
        gone: Hashable | None = None
        if len(house.strangers) >= self._limits.per_stranger:
            gone = next(iter(house.strangers))
        elif len(house.strangers) + len(house.known) >= self._limits.per_address:
            gone = next(iter(house.strangers), None)
            if gone is None:
                return self._refuse(house_name, now)
        elif full or self._strangers >= self._limits.strangers:
            gone = self._someone()
            if gone is None:
                return self._refuse(house_name, now)
        if gone is not None:
            self._refuse(self._address[gone], now)
            self.left(gone)
        self._houses.setdefault(house_name, house).strangers[who] = None
        self._address[who] = house_name
        self._strangers += 1
        return Admission(True, gone)

    def know(self, who: Hashable) -> None:
        """A connection has shown who it is. One that was sent away already stays away."""
        house_name = self._address.get(who)
        if house_name is None:
            return
        self._remembered.pop(house_name, None)
        self._remembered[house_name] = None
        if len(self._remembered) > REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        house = self._houses[house_name]
        if who in house.strangers:
            del house.strangers[who]
            house.known.add(who)
            self._strangers -= 1

    def knows(self, who: Hashable) -> bool:
        house_name = self._address.get(who)
        return house_name is not None and who in self._houses[house_name].known

    def left(self, who: Hashable) -> None:
        """A connection has ended; once more is nothing."""
        house_name = self._address.pop(who, None)
        if house_name is None:
            return
        house = self._houses[house_name]
        if who in house.strangers:
            del house.strangers[who]
            self._strangers -= 1
        house.known.discard(who)
        if not house.strangers and not house.known:
            del self._houses[house_name]

    def report(self) -> str:
        """Who was sent away or refused since the last report, in words; empty if nobody."""
        if not self._sent_away:
            return ""
        most = ", ".join(f"{name} ({count})" for name, count in self._sent_away.most_common(3))
        text = f"{self._sent_away.total()} connections refused or closed for want of a place, most from {most}"
        self._sent_away.clear()
        return text

    def _someone(self) -> Hashable | None:
        """The stranger who must go: the oldest of the most crowded house, unknown houses first."""
        crowded = [(name, house) for name, house in self._houses.items() if house.strangers]
        if not crowded:
            return None
        _, house = max(crowded, key=lambda one: (one[0] not in self._remembered, len(one[1].strangers)))
        return next(iter(house.strangers))

    def _refuse(self, house_name: str, now: float) -> Admission:
        self.turned_away_at = now
        self._sent_away[house_name] += 1
        return Admission(False)


def _house(address: str) -> str:
    """What counts as one peer: an IPv4 address, or an IPv6 /64, of which one machine may use every address."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((int(ip) >> 64 << 64, 64)))
