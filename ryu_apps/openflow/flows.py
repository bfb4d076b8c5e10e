"""Values that describe OpenFlow flows: matches, actions, flows and their keys. Pure; knows no wire format.

A `Flow` is a plain value. Two flows with the same `FlowKey` (table, priority, match) are the same entry on a switch, so
a diff between two sets of flows is a dictionary comparison. The only place that turns these values into OpenFlow
messages is `ryu_apps.openflow.encode`; the canonical text is `ryu_apps.openflow.text`.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import NewType

Cookie = NewType("Cookie", int)


@dataclass(frozen=True, slots=True)
class FieldMatch:
    """One field of a match. `field` is an `ovs-fields(7)` name in the spelling of `Field` members.

    `value` and `mask`: unsigned integers as wide as the field (MAC 48, IPv4 32, IPv6 128 bits); `mask` None is exact.
    """

    field: str
    value: int
    mask: int | None = None

    def __lt__(self, other: FieldMatch) -> bool:
        """By name, value, then mask; an exact match before a masked one."""
        return (self.field, self.value, self.mask or 0) < (other.field, other.value, other.mask or 0)


_BY_NAME = attrgetter("field")
Match = tuple[FieldMatch, ...]
"""Sorted by field name; build it with `match()`."""


def match(*fields: FieldMatch) -> Match:
    """A match from fields in any order. Raises ValueError on a repeated field or on value bits outside the mask."""
    names = [f.field for f in fields]
    if len(set(names)) != len(names):
        raise ValueError(f"field repeated in match: {names}")
    for f in fields:
        if f.mask is not None and f.value & ~f.mask:
            raise ValueError(f"{f.field}: value {f.value:#x} has bits outside mask {f.mask:#x}")
    # No name comes twice: so this is the order of the values themselves, without comparing them one by one.
    return tuple(sorted(fields, key=_BY_NAME))


@dataclass(frozen=True, slots=True)
class SetField:
    """Load a constant into bits `low..low+width-1` of `field` (NXAST_REG_LOAD2 / OFPAT_SET_FIELD with mask)."""

    field: str
    value: int
    low: int
    width: int


@dataclass(frozen=True, slots=True)
class Move:
    """Copy `width` bits of `source` from bit `source_low` to bits of `target` from `target_low` (NXAST_REG_MOVE)."""

    source: str
    source_low: int
    target: str
    target_low: int
    width: int


@dataclass(frozen=True, slots=True)
class Output:
    """Send out of a port (number)."""

    port: int


@dataclass(frozen=True, slots=True)
class OutputReg:
    """Send out of the port whose number is in bits of a field (NXAST_OUTPUT_REG); never back to the ingress port."""

    field: str
    low: int
    width: int


@dataclass(frozen=True, slots=True)
class Normal:
    """OFPP_NORMAL: ordinary learning switch (used on gates only)."""


@dataclass(frozen=True, slots=True)
class ConnTrack:
    """NXAST_CT. `zone_field`: the zone is read from these 16 bits. `recirc_table` None: no recirculation."""

    commit: bool
    zone_field: str
    zone_low: int
    recirc_table: int | None


@dataclass(frozen=True, slots=True)
class Meter:
    """Pass the packet through a meter, which may drop it (OFPIT_METER); always the first of a flow's actions.

    The meter must be on the switch before the flow; deleting it deletes the flow (see `ryu_apps.openflow.meters`).
    """

    number: int


@dataclass(frozen=True, slots=True)
class Goto:
    """OFPIT_GOTO_TABLE; always the last of a flow's actions."""

    table: int


Action = SetField | Move | Output | OutputReg | Normal | ConnTrack | Meter | Goto


@dataclass(frozen=True, slots=True, order=True)
class FlowKey:
    """What identifies an entry on a switch."""

    table: int
    priority: int
    match: Match


@dataclass(frozen=True, slots=True)
class Flow:
    """One flow entry. Empty `actions` means drop."""

    table: int
    priority: int
    match: Match
    actions: tuple[Action, ...]
    cookie: Cookie

    @property
    def key(self) -> FlowKey:
        return FlowKey(self.table, self.priority, self.match)


@dataclass(frozen=True, slots=True)
class FlowStats:
    """Counters of one entry as the switch reports them."""

    key: FlowKey
    cookie: Cookie
    packets: int
    bytes: int


Counted = tuple[int, int, int, int, int]
"""The same without the match: table, priority, cookie, packets, bytes. A plain tuple: there are thousands at a time."""
MeterCounted = tuple[int, int, int, int, int]
"""What a meter has counted: its number, packets and bytes that came to it, packets and bytes that it dropped."""
