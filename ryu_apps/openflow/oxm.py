"""Where each packet field lives on the wire: OXM and NXM headers. Pure; the one table that encode and decode share.

A field is sent under the header, and in the place, in which Open vSwitch answers an OpenFlow 1.4 dump: its first header
in matches and set-field, its NXM one within Nicira's actions. What was sent then comes back as the same bytes, and
unchanged flows are told from changed ones without being read. A field is understood under any of its headers, so a
switch that answers otherwise costs time and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NXM_0 = 0x0000
NXM_1 = 0x0001
OPENFLOW_BASIC = 0x8000
EXPERIMENTER = 0xFFFF
ONF = 0x4F4E4600
NICIRA = 0x00002320


@dataclass(frozen=True, slots=True)
class Header:
    """What names a field on the wire: class, number in it, and for the experimenter class whose it is."""

    class_: int
    number: int
    experimenter: int | None = None


@dataclass(frozen=True, slots=True)
class WireField:
    """`bits` is the field's width; on the wire it fills `length` octets, big-endian, right-aligned: as few as hold it,
    unless `octets` says more."""

    name: str
    bits: int
    headers: tuple[Header, ...]
    maskable: bool = True
    octets: int = 0

    @property
    def nicira(self) -> Header:
        """Its header within Nicira's actions."""
        return next((one for one in self.headers if one.class_ in (NXM_0, NXM_1)), self.headers[0])

    @property
    def length(self) -> int:
        return self.octets or (self.bits + 7) // 8

    @property
    def full(self) -> int:
        return (1 << self.bits) - 1


def _basic(number: int) -> Header:
    return Header(OPENFLOW_BASIC, number)


def _nxm0(number: int) -> Header:
    return Header(NXM_0, number)


def _nxm1(number: int) -> Header:
    return Header(NXM_1, number)


_FIELDS = (
    # NXM carries a 16-bit port, as `fields` has it; a match of OpenFlow 1.1 and later 32 bits (see `port_to_wire`).
    WireField("in_port", 16, (_nxm0(0),), maskable=False),
    WireField("dl_src", 48, (_basic(4), _nxm0(2))),
    WireField("dl_dst", 48, (_basic(3), _nxm0(1))),
    WireField("dl_type", 16, (_basic(5), _nxm0(3)), maskable=False),
    # In a match: OXM VLAN_VID and VLAN_PCP (see `encode`).
    WireField("vlan_tci", 16, (_nxm0(4),)),
    WireField("nw_src", 32, (_basic(11), _nxm0(7))),
    WireField("nw_dst", 32, (_basic(12), _nxm0(8))),
    WireField("ipv6_src", 128, (_basic(26), _nxm1(19))),
    WireField("ipv6_dst", 128, (_basic(27), _nxm1(20))),
    WireField("nw_frag", 2, (_nxm1(26),)),
    WireField("nw_ttl", 8, (_nxm1(29),), maskable=False),
    WireField("nw_proto", 8, (_basic(10), _nxm0(6)), maskable=False),
    WireField("arp_op", 16, (_basic(21), _nxm0(15)), maskable=False),
    WireField("arp_spa", 32, (_basic(22), _nxm0(16))),
    WireField("arp_tpa", 32, (_basic(23), _nxm0(17))),
    WireField("arp_sha", 48, (_basic(24), _nxm1(17))),
    WireField("arp_tha", 48, (_basic(25), _nxm1(18))),
    WireField("tcp_src", 16, (_basic(13), _nxm0(9))),
    WireField("tcp_dst", 16, (_basic(14), _nxm0(10))),
    WireField("tcp_flags", 12, (Header(EXPERIMENTER, 42, ONF), _nxm1(34), _basic(42))),
    WireField("udp_src", 16, (_basic(15), _nxm0(11))),
    WireField("udp_dst", 16, (_basic(16), _nxm0(12))),
    WireField("icmp_type", 8, (_basic(19), _nxm0(13)), maskable=False),
    WireField("icmp_code", 8, (_basic(20), _nxm0(14)), maskable=False),
    WireField("icmpv6_type", 8, (_basic(29), _nxm1(21)), maskable=False),
    WireField("icmpv6_code", 8, (_basic(30), _nxm1(22)), maskable=False),
    WireField("nd_target", 128, (_basic(31), _nxm1(23))),
    WireField("nd_sll", 48, (_basic(32), _nxm1(24))),
    WireField("nd_tll", 48, (_basic(33), _nxm1(25))),
    *(WireField(f"reg{n}", 32, (_nxm1(n),)) for n in range(16)),
    WireField("ct_state", 32, (_nxm1(105),)),
    WireField("ct_zone", 16, (_nxm1(106),)),
    WireField("ct_mark", 32, (_nxm1(107),)),
    WireField("metadata", 64, (_basic(2),)),
)
# Registers joined to wider ones: actions may use them. A match may not: a switch answers with the 32-bit parts, and the
# flow that was dumped would never equal the flow that was asked for.
_ACTION_ONLY = (
    WireField("ip_dscp", 6, (_basic(8),), maskable=False),
    WireField("ipv6_label", 20, (_basic(28), _nxm1(27)), octets=4),
    *(WireField(f"xxreg{n}", 128, (_nxm1(111 + n),)) for n in range(4)),
    *(WireField(f"xreg{n}", 64, (Header(0x8001, n),)) for n in range(8)),
)

MATCHABLE: Mapping[str, WireField] = {field.name: field for field in _FIELDS}
RANK: Mapping[str, int] = {field.name: rank for rank, field in enumerate(_FIELDS)}
WRITABLE: Mapping[str, WireField] = {field.name: field for field in (*_FIELDS, *_ACTION_ONLY)}
BY_HEADER: Mapping[Header, WireField] = {header: field for field in WRITABLE.values() for header in field.headers}

IN_PORT_32 = _basic(0)
"""OXM_OF_IN_PORT, 32 bits: what OpenFlow 1.4 says in a match instead of NXM_OF_IN_PORT."""
VLAN_VID = _basic(6)
VLAN_PCP = _basic(7)

_RESERVED_16 = 0xFF00
_RESERVED_OFFSET = 0xFFFF0000


def port_to_wire(port: int) -> int:
    """A 16-bit port number as OpenFlow 1.1 and later write it: reserved ports move to the end of 32 bits."""
    if not 0 <= port <= 0xFFFF:
        raise ValueError(f"port {port} is not a 16-bit port number")
    return port + _RESERVED_OFFSET if port >= _RESERVED_16 else port


def port_from_wire(port: int) -> int:
    """The inverse of `port_to_wire`. Raises ValueError for a number Open vSwitch cannot have."""
    if port >= _RESERVED_OFFSET + _RESERVED_16:
        return port - _RESERVED_OFFSET
    if port >= _RESERVED_16:
        raise ValueError(f"port {port:#x} has no 16-bit number")
    return port
