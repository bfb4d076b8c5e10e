"""Small values as a policy writes them: addresses, networks, ports, code points, bandwidths, units, marks.

Each parser returns the value or raises `Bad` with what is wrong and what to write instead. Sources: RFC 2474, 3246,
4594 and 8622 (code points), scitags.org (experiments and activities).
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from policies.model import Address, Bandwidth, Network, PortRange, Protocol


class Bad(ValueError):
    """A value that is not accepted: what is wrong, and what to write instead."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


def shown(value: object) -> str:
    """A value of the file in a message, never longer than a line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a misspelt one most likely means."""
    by_lower = {n.lower(): n for n in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return by_lower[close[0]] if close else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The remedy for a name that is not defined: the nearest one, and what there is."""
    names = sorted(known)
    if not names:
        return "define it first"
    listed = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    close = nearest(name, names)
    return f"did you mean `{close}`? defined: {listed}" if close else f"defined: {listed}"


def address(text: object) -> Address:
    try:
        if not isinstance(text, str):  # a number is an address to `ipaddress`
            raise ValueError
        found = ipaddress.ip_address(text)
    except ValueError:
        fix = "write a host's address, such as 10.20.0.5 or 2001:db8::5"
        raise Bad(f"{shown(text)} is not an IP address", fix) from None
    if "%" in str(text):
        raise Bad(f"{shown(text)} is an address on one link only", "write the host's routable address, without `%`")
    return found


def host_address(text: object) -> Address:
    """The address of a server: one that a packet can be sent to from another link."""
    found = address(text)
    broadcast = isinstance(found, ipaddress.IPv4Address) and int(found) >> 28 == 0xF
    if found.is_multicast or found.is_unspecified or found.is_loopback or found.is_link_local or broadcast:
        raise Bad(f"{shown(text)} is no address of one host on the network", "write the host's unicast address")
    return found


def network(text: object) -> Network:
    try:
        if not isinstance(text, str):
            raise ValueError
        _, slash, length = text.partition("/")
        if slash and not length.isdecimal():  # `ipaddress` takes masks, also inverted ones: 0.0.0.255 reads as /24
            raise ValueError
        return ipaddress.ip_network(text)
    except ValueError as exc:
        if isinstance(text, str) and "host bits" in str(exc):
            right = ipaddress.ip_network(text, strict=False)
            raise Bad(f"{shown(text)} has bits set beyond its prefix", f"write {right}") from None
        raise Bad(f"{shown(text)} is not a network", "write it as 10.0.0.0/8 or 2001:db8::/32") from None


_PORTS = re.compile(r"(tcp|udp)/([0-9]{1,6})(?:-([0-9]{1,6}))?")
_PORTS_FIX = "write tcp/1094, udp/53, tcp/27000-27009 or icmp"


def ports(text: object) -> PortRange:
    if isinstance(text, int) and not isinstance(text, bool):
        raise Bad(f"port {text} of which protocol?", f"write tcp/{text} or udp/{text}")
    if not isinstance(text, str):
        raise Bad(f"{shown(text)} is not a port or range of ports", _PORTS_FIX)
    if text == "icmp":
        return PortRange(Protocol.ICMP, 0, 0)
    if text.startswith("icmp"):
        raise Bad(f"{shown(text)}: ICMP has no ports", "write icmp (it means ICMP and ICMPv6)")
    found = _PORTS.fullmatch(text)
    if not found:
        raise Bad(f"{shown(text)} is not a port or range of ports", _PORTS_FIX)
    first = int(found.group(2))
    last = int(found.group(3) or first)
    if first > last:
        raise Bad(f"port range {shown(text)} is reversed", f"write {found.group(1)}/{last}-{first}")
    if not 1 <= first <= last <= 65535:
        raise Bad(f"{shown(text)}: ports go from 1 to 65535", f"write {found.group(1)}/1-65535 for all of them")
    return PortRange(Protocol(found.group(1)), first, last)


DSCP_NAMES: Mapping[str, int] = MappingProxyType(
    {
        "df": 0,
        "le": 1,
        **{f"cs{n}": n << 3 for n in range(8)},
        **{f"af{c}{d}": (c << 3) | (d << 1) for c in range(1, 5) for d in range(1, 4)},
        "ef": 46,
    }
)


def dscp(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        if 0 <= value <= 63:
            return value
        raise Bad(f"code point {value} does not fit into six bits", "write a number from 0 to 63")
    fix = "write a number from 0 to 63, df, le, ef, cs0 to cs7 or af11 to af43"
    if not isinstance(value, str) or value.lower() not in DSCP_NAMES:
        raise Bad(f"{shown(value)} is not a code point (DSCP)", fix)
    return DSCP_NAMES[value.lower()]


UNITS: Mapping[str, int] = MappingProxyType({"bit/s": 1, "kbit/s": 1000, "Mbit/s": 10**6, "Gbit/s": 10**9})
"""Bits a second; powers of ten, as networks count."""
_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?) *(%|[A-Za-z]+(?:/[A-Za-z]+)?)")


def unit(text: object) -> int:
    if not isinstance(text, str) or text not in UNITS:
        meant = str(text).lower().replace("bps", "bit/s")
        right = next((u for u in UNITS if meant in (u.lower(), u.lower().removesuffix("/s"))), None)
        fix = f"write {right}" if right else "write bit/s, kbit/s, Mbit/s or Gbit/s"
        raise Bad(f"{shown(text)} is not a unit of bandwidth", fix)
    return UNITS[text]


def bandwidth(value: object) -> Bandwidth:
    found = _AMOUNT.fullmatch(value) if isinstance(value, str) else None
    if not found:
        raise Bad(f"{shown(value)} is not a bandwidth", "write 50% or 10 Mbit/s")
    number = float(found.group(1))
    if found.group(2) == "%":
        if not 0 < number <= 100:
            raise Bad(f"{shown(value)} is no part of a link", "write more than 0% and at most 100%")
        return Bandwidth(percent=number)
    bits = round(number * unit(found.group(2)))
    if not 1 <= bits <= 10**15:
        raise Bad(f"{shown(value)} is no bandwidth of a link", "write 1 bit/s or more, as in 10 Mbit/s")
    return Bandwidth(bits=bits)


def in_words(bits: int) -> str:
    """A number of bits a second, as a policy writes it."""
    for unit, name in ((10**9, "Gbit/s"), (10**6, "Mbit/s"), (10**3, "kbit/s")):
        if bits >= unit:
            return f"{bits / unit:g} {name}"
    return f"{bits} bit/s"


LEAST_LIMIT = 1000
"""bit/s: the unit of a switch's meters."""
SLOWEST_LINK = 64_000
"""Bits a second. Below it the smallest share of a class would be no packet a second."""


def link_rate(value: object) -> int:
    """What a link carries, in bits a second."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise Bad(f"{value:g} of which unit?", f"write {value:g} Mbit/s")
    found = bandwidth(value)
    if found.bits is None:
        raise Bad(f"{shown(value)} is a part, and of what is not said", "write an amount, such as 50 Mbit/s")
    if found.bits < SLOWEST_LINK:
        raise Bad(f"{shown(value)} is no rate of a link", "write 64 kbit/s or more, as in 50 Mbit/s")
    return found.bits


EXPERIMENTS: Mapping[str, int] = MappingProxyType({"atlas": 2, "cms": 3})
ACTIVITIES: Mapping[int, Mapping[str, int]] = MappingProxyType(
    {
        3: MappingProxyType(
            {
                "cache": 3,
                "production-input": 11,
                "production-output": 12,
                "analysis-input": 14,
                "analysis-output": 15,
            }
        )
    }
)
"""Activities by experiment: one number means different things to two experiments."""


def experiment(value: object) -> int:
    return _mark(value, "experiment", EXPERIMENTS, 511)


def activity(value: object, of_experiment: int) -> int:
    return _mark(value, "activity", ACTIVITIES.get(of_experiment, {}), 63)


def _mark(value: object, kind: str, names: Mapping[str, int], most: int) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        if 1 <= value <= most:
            return value
        raise Bad(f"{kind} {value} is not one of scitags.org", f"write a number from 1 to {most}")
    if isinstance(value, str) and value in names:
        return names[value]
    known = f"{', '.join(sorted(names))}, or a number" if names else "a number"
    raise Bad(f"{shown(value)} is not a known {kind}", f"write {known} from 1 to {most}")
