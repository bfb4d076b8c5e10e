"""The packet fields that flows may use: width, how a value is written in `ovs-ofctl` syntax, what it needs to match.

Source: ovs-fields(7). A field that is not in this table cannot be matched on or written.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ryu_apps.openflow.flows import FieldMatch


class Kind(enum.Enum):
    """How a value is written."""

    DECIMAL = enum.auto()
    HEX = enum.auto()
    MAC = enum.auto()
    IPV4 = enum.auto()
    IPV6 = enum.auto()
    FLAGS = enum.auto()


class EtherType:
    IPV4 = 0x0800
    ARP = 0x0806
    IPV6 = 0x86DD


class IpProto:
    ICMP = 1
    TCP = 6
    UDP = 17
    FRAGMENT = 44  # IPv6: all that a later fragment shows
    ICMPV6 = 58
    NO_NEXT_HEADER = 59


class CtState:
    """Bits of `ct_state` (ovs-fields(7))."""

    NEW = 0x01
    EST = 0x02
    REL = 0x04
    RPL = 0x08
    INV = 0x10
    TRK = 0x20


CT_NAMES = {
    CtState.NEW: "new",
    CtState.EST: "est",
    CtState.REL: "rel",
    CtState.RPL: "rpl",
    CtState.INV: "inv",
    CtState.TRK: "trk",
}
TCP_ACK = 0x010
TCP_NAMES = {0x001: "fin", 0x002: "syn", 0x004: "rst", 0x008: "psh", 0x010: "ack", 0x020: "urg"}


class Frag:
    """Bits of `nw_frag`: ANY is set on every fragment, LATER on all but the first."""

    ANY = 0x01
    LATER = 0x02
    BOTH = 0x03


@dataclass(frozen=True, slots=True)
class FieldSpec:
    width: int
    kind: Kind
    writable: bool = True
    matchable: bool = True


FIELDS: Mapping[str, FieldSpec] = {
    "in_port": FieldSpec(16, Kind.DECIMAL),
    "dl_src": FieldSpec(48, Kind.MAC),
    "dl_dst": FieldSpec(48, Kind.MAC),
    "dl_type": FieldSpec(16, Kind.HEX, writable=False),
    "vlan_tci": FieldSpec(16, Kind.HEX),
    "nw_src": FieldSpec(32, Kind.IPV4),
    "nw_dst": FieldSpec(32, Kind.IPV4),
    "ipv6_src": FieldSpec(128, Kind.IPV6),
    "ipv6_dst": FieldSpec(128, Kind.IPV6),
    "nw_proto": FieldSpec(8, Kind.DECIMAL, writable=False),
    "nw_ttl": FieldSpec(8, Kind.DECIMAL),
    "ip_dscp": FieldSpec(6, Kind.DECIMAL, matchable=False),
    "ipv6_label": FieldSpec(20, Kind.HEX, matchable=False),
    "nw_frag": FieldSpec(2, Kind.HEX, writable=False),
    "tcp_src": FieldSpec(16, Kind.DECIMAL),
    "tcp_dst": FieldSpec(16, Kind.DECIMAL),
    "tcp_flags": FieldSpec(12, Kind.FLAGS, writable=False),
    "udp_src": FieldSpec(16, Kind.DECIMAL),
    "udp_dst": FieldSpec(16, Kind.DECIMAL),
    "icmp_type": FieldSpec(8, Kind.DECIMAL),
    "icmpv6_type": FieldSpec(8, Kind.DECIMAL),
    "arp_op": FieldSpec(16, Kind.DECIMAL),
    "arp_spa": FieldSpec(32, Kind.IPV4),
    "arp_tpa": FieldSpec(32, Kind.IPV4),
    "arp_sha": FieldSpec(48, Kind.MAC),
    "arp_tha": FieldSpec(48, Kind.MAC),
    "nd_target": FieldSpec(128, Kind.IPV6),
    "nd_sll": FieldSpec(48, Kind.MAC),
    "nd_tll": FieldSpec(48, Kind.MAC),
    "ct_state": FieldSpec(32, Kind.FLAGS, writable=False),
    **{f"reg{n}": FieldSpec(32, Kind.HEX) for n in range(16)},
}


def full_mask(field: str) -> int:
    return (1 << FIELDS[field].width) - 1


def exact(field: str, value: int) -> FieldMatch:
    """An exact match. Raises ValueError if the value is wider than the field, KeyError for an unknown field."""
    if not 0 <= value <= full_mask(field):
        raise ValueError(f"{value:#x} does not fit into {field}")
    return FieldMatch(field, value)


def masked(field: str, value: int, mask: int) -> FieldMatch:
    """A masked match; an all-ones mask gives the exact one, so that equal meanings are equal values."""
    if mask == full_mask(field):
        return exact(field, value)
    return FieldMatch(field, value & mask, mask)


def ethertype(value: int) -> FieldMatch:
    return exact("dl_type", value)


def network(field4: str, field6: str, net: ipaddress.IPv4Network | ipaddress.IPv6Network) -> tuple[FieldMatch, ...]:
    """Ethertype and address match for a network, on the field of its family; /0 matches the family only."""
    is_v4 = isinstance(net, ipaddress.IPv4Network)
    family = ethertype(EtherType.IPV4 if is_v4 else EtherType.IPV6)
    if net.prefixlen == 0:
        return (family,)
    return (family, masked(field4 if is_v4 else field6, int(net.network_address), int(net.netmask)))


def port_masks(first: int, last: int) -> list[tuple[int, int]]:
    """The fewest (value, mask) pairs of 16 bits that cover `first..last` exactly; at most 30."""
    if not 0 <= first <= last <= 0xFFFF:
        raise ValueError(f"bad port range {first}-{last}")
    pairs = []
    while first <= last:
        size = (first & -first) or 0x10000
        while first + size - 1 > last:
            size //= 2
        pairs.append((first, 0xFFFF & ~(size - 1)))
        first += size
    return pairs


def _flags(value: int, mask: int, names: Mapping[int, str]) -> str:
    return "".join(("+" if value & bit else "-") + name for bit, name in names.items() if mask & bit)


_WRITERS: Mapping[Kind, Callable[[int], str]] = {
    Kind.MAC: lambda v: ":".join(f"{b:02x}" for b in v.to_bytes(6, "big")),
    Kind.IPV4: lambda v: str(ipaddress.IPv4Address(v)),
    Kind.IPV6: lambda v: str(ipaddress.IPv6Address(v)),
    Kind.HEX: hex,
    Kind.DECIMAL: str,
}


def show(field: str, value: int, mask: int | None) -> str:
    """A value as `ovs-ofctl` writes and reads it."""
    kind = FIELDS[field].kind
    if field == "nw_frag":
        any_, later = Frag.ANY, Frag.LATER
        shown = {
            (0, 3): "no",
            (any_, any_): "yes",
            (any_, 3): "first",
            (any_ | later, 3): "later",
            (0, later): "not_later",
        }
        return shown[(value, 3 if mask is None else mask)]
    if kind is Kind.FLAGS:
        names = CT_NAMES if field == "ct_state" else TCP_NAMES
        return _flags(value, full_mask(field) if mask is None else mask, names)
    one = _WRITERS[kind]
    if mask is None:
        return one(value)
    if kind in (Kind.IPV4, Kind.IPV6):
        width = FIELDS[field].width
        inverted = ~mask & ((1 << width) - 1)
        if inverted & (inverted + 1) == 0:
            return f"{one(value)}/{mask.bit_count()}"
    return f"{one(value)}/{hex(mask) if kind is Kind.DECIMAL else one(mask)}"
