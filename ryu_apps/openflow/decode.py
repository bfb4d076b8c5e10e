"""OpenFlow 1.4 flow-stats replies to values. Pure; the inverse of `encode` after a switch stored what it wrote.

What a switch shows may have been put there by anyone: bytes that do not say a `Flow` are no error. Such an entry comes
back as `Dumped` with what could be read, so that it can be reported, or taken away by the very bytes of its match.
Only a reply that breaks OpenFlow itself raises DecodeError.

There are three ways to read a reply. `flow_entries` cuts it into entry keys and values (see `encode`) without looking
into them: what equals the bytes that were asked for needs no more. `counts` reads counters and whose they are, for
thousands of flows every few seconds. `flow_stats` reads all of it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ryu_apps.openflow import encode, oxm
from ryu_apps.openflow.encode import EntryKey, EntryValue
from ryu_apps.openflow.flows import (
    Action,
    ConnTrack,
    Cookie,
    Counted,
    FieldMatch,
    Flow,
    FlowKey,
    FlowStats,
    Goto,
    Match,
    Meter,
    MeterCounted,
    Move,
    Normal,
    Output,
    OutputReg,
    SetField,
)

ENTRY = struct.Struct("!HBxIIHHHHH2xQQQ")
"""length, table, seconds, nanoseconds, priority, idle, hard, flags, importance, cookie, packets, bytes"""
COUNT = struct.Struct("!HB9xH10xQQQ")
"""The same, of which only: length, table, priority, cookie, packets, bytes"""
CUT = struct.Struct("!HB9xHI30xHH")
"""Of an entry and the head of its match: length, table, priority, both timeouts as one, kind and length of a match."""
METER = struct.Struct("!IH10xQQ8x")
"""Of what a meter has counted, before its bands: number, length, packets, bytes"""
BAND = struct.Struct("!QQ")
"""Packets and bytes that a band dropped."""
PORT = struct.Struct("!IH10x16s8x")
"""Number, length, name of a port, and how long one is at least."""
EXPIRES = b"\xff\xff\x00\x08\x00\x00\x00\x00"
"""Put before the instructions of an entry that has a timeout. None of ours begins so: it never equals one of ours."""
REPLY_MORE = 1
UPDATE_ADDED, UPDATE_REMOVED, UPDATE_MODIFIED, UPDATE_ABBREVIATED, UPDATE_PAUSED, UPDATE_RESUMED = range(1, 7)


class DecodeError(ValueError):
    """The message is not what OpenFlow says it must be; the connection cannot be trusted any further."""


class _Unknown(Exception):
    """The entry says something that a `Flow` cannot say."""


@dataclass(frozen=True, slots=True)
class Dumped:
    """One entry as a switch shows it. `match` and `actions` are None where they say more than our values can."""

    table: int
    priority: int
    cookie: Cookie
    match: Match | None
    actions: tuple[Action, ...] | None
    raw_match: bytes
    packets: int
    bytes: int

    @property
    def flow(self) -> Flow | None:
        if self.match is None or self.actions is None:
            return None
        return Flow(self.table, self.priority, self.match, self.actions, self.cookie)

    @property
    def key(self) -> FlowKey | None:
        return None if self.match is None else FlowKey(self.table, self.priority, self.match)

    @property
    def stats(self) -> FlowStats | None:
        key = self.key
        return None if key is None else FlowStats(key, self.cookie, self.packets, self.bytes)


@dataclass(frozen=True, slots=True)
class FlowStatsReply:
    xid: int
    more: bool
    entries: tuple[Dumped, ...]


def is_flow_stats(message: bytes) -> bool:
    """Is this whole message a flow-stats reply of OpenFlow 1.4?"""
    return (
        len(message) >= 16
        and message[0] == encode.VERSION
        and message[1] == encode.MULTIPART_REPLY
        and int.from_bytes(message[8:10], "big") == encode.MP_FLOW
    )


@dataclass(frozen=True, slots=True)
class FlowEntries:
    """A part of a dump. `entries`: as the switch says them; `canonical` tells what unfamiliar ones mean."""

    xid: int
    more: bool
    entries: Sequence[tuple[EntryKey, EntryValue]]


def flow_entries(message: bytes) -> FlowEntries:
    """A flow-stats reply, cut up and not read. Raises DecodeError."""
    xid, flags = _reply(message)
    entries: list[tuple[EntryKey, EntryValue]] = []
    heads: dict[tuple[int, int], bytes] = {}
    at, size, total, cut = 16, ENTRY.size, len(message), CUT.unpack_from
    try:
        while at < total:
            length, table, priority, timeouts, kind, match_length = cut(message, at)
            end = at + length
            match_at = at + size
            match_end = match_at + (match_length + 7 & ~7)
            if kind != 1 or match_length < 4 or not match_end <= end <= total:
                raise DecodeError("an entry of a flow-stats reply does not hold together")
            head = heads.get((table, priority))
            if head is None:
                head = heads[table, priority] = encode.entry_head(table, priority)
            cookie = message[at + 24 : at + 32]
            value = cookie + message[match_end:end] if not timeouts else cookie + EXPIRES + message[match_end:end]
            entries.append((head + message[match_at:match_end], value))
            at = end
    except struct.error as error:
        raise DecodeError(f"flow-stats reply is cut short: {error}") from error
    return FlowEntries(xid, bool(flags & REPLY_MORE), entries)


def meter_entries(message: bytes) -> FlowEntries:
    """A reply about meters, as entries; never the last part of a dump: flows follow. Raises DecodeError."""
    message = bytes(message)
    entries: list[tuple[EntryKey, EntryValue]] = []
    at = 16
    while at < len(message):
        try:
            length, flags, number = struct.unpack_from("!H2sI", message, at)
        except struct.error as error:
            raise DecodeError(f"meter-config reply is cut short: {error}") from error
        if length < 8 or at + length > len(message):
            raise DecodeError("a meter of a meter-config reply does not hold together")
        value = encode.meter_value(number, flags + message[at + 8 : at + length])
        entries.append((encode.meter_key(number), value))
        at += length
    return FlowEntries(int(encode.HEADER.unpack_from(message)[3]), True, entries)


def has_meters(message: bytes) -> bool:
    """Does a reply about meters' features say that there are such as ours are: with drop bands, by kbit/s and by
    packets, with bursts? Raises DecodeError."""
    try:
        most, bands, can = struct.unpack_from("!III", message, 16)
    except struct.error as error:
        raise DecodeError(f"meter-features reply is cut short: {error}") from error
    needed = encode.METER_FLAGS & ~encode.METER_STATS | encode.PACKET_METER_FLAGS & ~encode.METER_STATS
    return bool(most and bands & 1 << encode.METER_BAND_DROP and can & needed == needed)


def is_meters(message: bytes) -> bool:
    """Is this whole message a reply about meters' settings?"""
    return len(message) >= 16 and int.from_bytes(message[8:10], "big") == encode.MP_METER_CONFIG


def canonical(key: EntryKey, value: EntryValue) -> tuple[EntryKey, EntryValue]:
    """The entry as `encode` would write it, if a `Flow` can say it. What a Flow cannot say stays as it is."""
    if encode.is_meter(key):
        return key, value
    match = key_match(key)
    if match is not None:
        try:
            key = encode.entry_head(encode.key_table(key), encode.key_priority(key)) + encode.match_bytes(match)
        except encode.EncodeError:
            pass
    actions = value_actions(value)
    if actions is not None:
        try:
            value = value[: encode.COOKIE_LENGTH] + encode.instructions(actions)
        except ValueError:
            pass
    return key, value


def key_match(key: EntryKey) -> Match | None:
    """The match of an entry key, or None if it says more than our values can."""
    raw = encode.key_match(key)
    try:
        return match_value(raw[4 : encode.MATCH_HEADER.unpack_from(raw)[1]])
    except _Unknown:
        return None


def value_actions(value: EntryValue) -> tuple[Action, ...] | None:
    """The actions of an entry value, or None if it says more than our values can."""
    try:
        return tuple(_instructions(encode.value_instructions(value)))
    except (_Unknown, struct.error):
        return None


@dataclass(frozen=True, slots=True)
class Ports:
    """A part of a list of ports: names and numbers as OpenFlow writes them."""

    xid: int
    more: bool
    ports: Sequence[tuple[str, int]]


def ports(message: bytes) -> Ports:
    """A port-description reply. Raises DecodeError."""
    message = bytes(message)
    found = []
    at = 16
    while at < len(message):
        try:
            number, length, name = PORT.unpack_from(message, at)
        except struct.error as error:
            raise DecodeError(f"port-description reply is cut short: {error}") from error
        if length < PORT.size or at + length > len(message):
            raise DecodeError("a port of a port-description reply does not hold together")
        found.append((name.rstrip(b"\0").decode("utf-8", "replace"), number))
        at += length
    return Ports(int(encode.HEADER.unpack_from(message)[3]), _more(message), tuple(found))


def changed_by_others(message: bytes) -> bool:
    """Does this answer of a flow monitor tell of changes made by somebody else? Raises DecodeError."""
    at = 16
    while at < len(message):
        try:
            length, event = struct.unpack_from("!HH", message, at)
        except struct.error as error:
            raise DecodeError(f"flow-monitor reply is cut short: {error}") from error
        if length < 4 or at + length > len(message):
            raise DecodeError("an update of a flow-monitor reply does not hold together")
        # After a pause it is not known what was left out.
        if event in (UPDATE_ADDED, UPDATE_REMOVED, UPDATE_MODIFIED, UPDATE_RESUMED):
            return True
        at += length
    return False


def flow_stats(message: bytes) -> FlowStatsReply:
    """A flow-stats reply. Raises DecodeError."""
    message = bytes(message)
    xid, flags = _reply(message)
    try:
        entries = tuple(_entries(message))
    except (struct.error, IndexError) as error:
        raise DecodeError(f"flow-stats reply is cut short: {error}") from error
    return FlowStatsReply(xid, bool(flags & REPLY_MORE), entries)


@dataclass(frozen=True, slots=True)
class Counts:
    """A part of an answer, of which only counters are read."""

    xid: int
    more: bool
    entries: Sequence[Counted]


def counts(message: bytes) -> Counts:
    """The counters of a flow-stats reply. Raises DecodeError."""
    xid, flags = _reply(message)
    found: list[Counted] = []
    at, total, read = 16, len(message), COUNT.unpack_from
    try:
        while at < total:
            length, table, priority, cookie, packets, octets = read(message, at)
            at += length
            if length < ENTRY.size or at > total:
                raise DecodeError("an entry of a flow-stats reply does not hold together")
            found.append((table, priority, cookie, packets, octets))
    except struct.error as error:
        raise DecodeError(f"flow-stats reply is cut short: {error}") from error
    return Counts(xid, bool(flags & REPLY_MORE), found)


@dataclass(frozen=True, slots=True)
class MeterCounts:
    """A part of an answer about meters' counters."""

    xid: int
    more: bool
    entries: Sequence[MeterCounted]


def meter_counts(message: bytes) -> MeterCounts:
    """The counters of a meter-stats reply. Raises DecodeError."""
    message = bytes(message)
    found: list[MeterCounted] = []
    at, total = 16, len(message)
    try:
        while at < total:
            number, length, packets, octets = METER.unpack_from(message, at)
            end = at + length
            if length < METER.size or end > total or (length - METER.size) % BAND.size:
                raise DecodeError("a meter of a meter-stats reply does not hold together")
            # Ours have one band; of several each packet that is dropped is dropped by one.
            bands = [BAND.unpack_from(message, band) for band in range(at + METER.size, end, BAND.size)]
            found.append((number, packets, octets, sum(one for one, _ in bands), sum(one for _, one in bands)))
            at = end
    except struct.error as error:
        raise DecodeError(f"meter-stats reply is cut short: {error}") from error
    return MeterCounts(int(encode.HEADER.unpack_from(message)[3]), _more(message), found)


def _more(message: bytes) -> bool:
    return bool(int.from_bytes(message[10:12], "big") & REPLY_MORE)


def _reply(message: bytes) -> tuple[int, int]:
    """Transaction id and flags of a flow-stats reply. Raises DecodeError."""
    if not is_flow_stats(message):
        raise DecodeError("not a flow-stats reply")
    _, _, length, xid = encode.HEADER.unpack_from(message)
    if length != len(message):
        raise DecodeError(f"message says it has {length} octets and has {len(message)}")
    return int(xid), int.from_bytes(message[10:12], "big")


def _entries(message: bytes) -> Iterator[Dumped]:
    at = 16
    while at < len(message):
        length, table, _, _, priority, idle, hard, _, _, cookie, packets, octets = ENTRY.unpack_from(message, at)
        end = at + length
        match_at = at + ENTRY.size
        kind, match_length = encode.MATCH_HEADER.unpack_from(message, match_at)
        match_end = match_at + -(-match_length // 8) * 8
        if kind != 1 or match_length < 4 or not match_end <= end <= len(message):
            raise DecodeError("an entry of a flow-stats reply does not hold together")
        match: Match | None
        try:
            match = match_value(message[match_at + 4 : match_at + match_length])
        except _Unknown:
            match = None
        actions: tuple[Action, ...] | None
        try:
            # An entry that would time out is not one of ours, whatever it does meanwhile.
            actions = None if idle or hard else tuple(_instructions(message[match_end:end]))
        except (_Unknown, struct.error):
            actions = None
        yield Dumped(table, priority, Cookie(cookie), match, actions, message[match_at:match_end], packets, octets)
        at = end


def _header(data: bytes, at: int) -> tuple[oxm.Header, bool, int, int]:
    """Header, masked?, octets of value and mask, and where they begin."""
    word = int.from_bytes(data[at : at + 4], "big")
    if len(data) < at + 4:
        raise _Unknown
    class_, number, masked, length = word >> 16, (word >> 9) & 0x7F, bool(word & 0x100), word & 0xFF
    if class_ != oxm.EXPERIMENTER:
        return oxm.Header(class_, number), masked, length, at + 4
    experimenter = int.from_bytes(data[at + 4 : at + 8], "big")
    return oxm.Header(class_, number, experimenter), masked, length - 4, at + 8


def _oxm(data: bytes, at: int) -> tuple[oxm.Header, int, int | None, int]:
    """Header, value, mask and where the next field begins."""
    header, masked, length, at = _header(data, at)
    end = at + length
    if length <= 0 or end > len(data):
        raise _Unknown
    if not masked:
        return header, int.from_bytes(data[at:end], "big"), None, end
    middle = at + length // 2
    return header, int.from_bytes(data[at:middle], "big"), int.from_bytes(data[middle:end], "big"), end


def match_value(data: bytes) -> Match:
    """The OXM fields of a match as a value."""
    found: list[FieldMatch] = []
    vlan_value = vlan_mask = 0
    at = 0
    while at < len(data):
        header, value, mask, at = _oxm(data, at)
        if header == oxm.VLAN_VID:
            vlan_value |= value
            vlan_mask |= 0x1FFF if mask is None else mask
            continue
        if header == oxm.VLAN_PCP:
            vlan_value |= value << 13
            vlan_mask |= 0xE000
            continue
        if header == oxm.IN_PORT_32:
            if mask is not None:
                raise _Unknown
            try:
                found.append(FieldMatch("in_port", oxm.port_from_wire(value)))
            except ValueError as error:
                raise _Unknown from error
            continue
        field = oxm.BY_HEADER.get(header)
        if field is None or field.name not in oxm.MATCHABLE:
            raise _Unknown
        if mask is not None:
            mask &= field.full
            if mask == field.full:
                mask = None
        found.append(FieldMatch(field.name, value & field.full, mask))
    if vlan_mask:
        found.append(FieldMatch("vlan_tci", vlan_value, None if vlan_mask == 0xFFFF else vlan_mask))
    return tuple(sorted(found, key=lambda one: one.field))


def _instructions(data: bytes) -> Iterator[Action]:
    at = 0
    goto: Goto | None = None
    while at < len(data):
        kind, length = struct.unpack_from("!HH", data, at)
        if length < 8 or at + length > len(data) or goto is not None:
            raise _Unknown
        if kind == encode.INSTRUCTION_APPLY:
            yield from _actions(data[at + 8 : at + length])
        elif kind == encode.INSTRUCTION_GOTO:
            goto = Goto(data[at + 4])
        elif kind == encode.INSTRUCTION_METER and at == 0:
            yield Meter(int.from_bytes(data[4:8], "big"))
        else:
            raise _Unknown
        at += length
    if goto is not None:
        yield goto


def _actions(data: bytes) -> Iterator[Action]:
    at = 0
    while at < len(data):
        kind, length = struct.unpack_from("!HH", data, at)
        if length < 8 or at + length > len(data):
            raise _Unknown
        body = data[at + 4 : at + length]
        if kind == encode.ACTION_OUTPUT:
            yield _output(int.from_bytes(body[:4], "big"))
        elif kind == encode.ACTION_SET_FIELD:
            yield _set_field(body)
        elif kind == encode.ACTION_EXPERIMENTER and int.from_bytes(body[:4], "big") == oxm.NICIRA:
            yield _nicira(int.from_bytes(body[4:6], "big"), body[6:])
        else:
            raise _Unknown
        at += length


def _output(port: int) -> Action:
    if port == encode.PORT_NORMAL:
        return Normal()
    try:
        return Output(oxm.port_from_wire(port))
    except ValueError as error:
        raise _Unknown from error


def _writable(header: oxm.Header) -> oxm.WireField:
    field = oxm.BY_HEADER.get(header)
    if field is None:
        raise _Unknown
    return field


def _set_field(data: bytes) -> SetField:
    header, value, mask, _ = _oxm(data, 0)
    field = _writable(header)
    if mask is None or mask == field.full:
        return SetField(field.name, value, 0, field.bits)
    low = (mask & -mask).bit_length() - 1
    width = mask.bit_count()
    if mask == 0 or mask != ((1 << width) - 1) << low:
        raise _Unknown
    return SetField(field.name, (value & mask) >> low, low, width)


def _nicira(subtype: int, body: bytes) -> Action:
    if subtype == encode.NX_REG_LOAD2:
        return _set_field(body)
    if subtype == encode.NX_REG_LOAD:
        bits, head, value = struct.unpack_from("!H4sQ", body)
        field = _writable(_header(head, 0)[0])
        return SetField(field.name, value, bits >> 6, (bits & 0x3F) + 1)
    if subtype == encode.NX_REG_MOVE:
        width, source_low, target_low = struct.unpack_from("!HHH", body)
        source, _, _, at = _header(body, 6)
        target, _, _, _ = _header(body, at)
        return Move(_writable(source).name, source_low, _writable(target).name, target_low, width)
    if subtype == encode.NX_OUTPUT_REG:
        bits, head = struct.unpack_from("!H4s", body)
        return OutputReg(_writable(_header(head, 0)[0]).name, bits >> 6, (bits & 0x3F) + 1)
    if subtype == encode.NX_CT:
        flags, head, bits, table, alg = struct.unpack_from("!H4sHB3xH", body)
        if flags & ~encode.CT_COMMIT or alg or len(body) > 14 or bits & 0x3F != 15 or head == bytes(4):
            raise _Unknown
        zone = _writable(_header(head, 0)[0]).name
        recirculate = None if table == encode.CT_NO_RECIRCULATION else table
        return ConnTrack(bool(flags & encode.CT_COMMIT), zone, bits >> 6, recirculate)
    raise _Unknown
