"""OpenFlow 1.3 and 1.4 as the fake switch speaks them: numbers, layouts, and matches as bytes. Pure.

Written from the specification and Open vSwitch's headers, on purpose without `ryu_apps.openflow.encode`: what is tested
with the fake must not be read by its own writer.

Invariant: two matches that mean the same have the same `canonical` bytes: fields sorted, masks of all ones left out,
masks of all zeros gone, bits outside a mask cleared.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

V13, V14 = 0x04, 0x05
HEADER = struct.Struct("!BBHI")

HELLO, ERROR, ECHO_REQUEST, ECHO_REPLY, EXPERIMENTER = 0, 1, 2, 3, 4
FEATURES_REQUEST, FEATURES_REPLY, GET_CONFIG_REQUEST, GET_CONFIG_REPLY, SET_CONFIG = 5, 6, 7, 8, 9
PACKET_IN, FLOW_REMOVED, PORT_STATUS, PACKET_OUT, FLOW_MOD, GROUP_MOD, PORT_MOD, TABLE_MOD = range(10, 18)
MULTIPART_REQUEST, MULTIPART_REPLY, BARRIER_REQUEST, BARRIER_REPLY = 18, 19, 20, 21
ROLE_REQUEST, ROLE_REPLY, GET_ASYNC, GET_ASYNC_REPLY, SET_ASYNC, METER_MOD = 24, 25, 26, 27, 28, 29
BUNDLE_CONTROL, BUNDLE_ADD = 33, 34
ONF, ONF_BUNDLE_CONTROL, ONF_BUNDLE_ADD = 0x4F4E4600, 2300, 2301
NICIRA, CT_FLUSH_ZONE = 0x2320, 29
"""OpenFlow 1.3 has bundles as an extension of the Open Networking Foundation."""

MP_DESC, MP_FLOW, MP_AGGREGATE, MP_TABLE, MP_PORT, MP_QUEUE, MP_GROUP, MP_GROUP_DESC = range(8)
MP_METER, MP_METER_CONFIG, MP_METER_FEATURES, MP_TABLE_FEATURES, MP_PORT_DESC, MP_FLOW_MONITOR = 9, 10, 11, 12, 13, 16
MORE = 1

ADD, MODIFY, MODIFY_STRICT, DELETE, DELETE_STRICT = range(5)
SEND_FLOW_REMOVED, CHECK_OVERLAP, RESET_COUNTS = 1, 2, 4
ALL_TABLES = 0xFF
ANY = 0xFFFFFFFF
INSTRUCTION_GOTO, INSTRUCTION_WRITE, INSTRUCTION_APPLY, INSTRUCTION_METER = 1, 3, 4, 6
ACTION_OUTPUT, ACTION_GROUP = 0, 22

FLOW_MOD_BODY = struct.Struct("!QQBBHHHIIIHH")
"""cookie, mask, table, command, idle, hard, priority, buffer, out port, out group, flags, importance"""
FLOW_STATS = struct.Struct("!HBxIIHHHHH2xQQQ")
"""length, table, seconds, nanoseconds, priority, idle, hard, flags, importance, cookie, packets, bytes"""
STATS_REQUEST = struct.Struct("!B3xII4xQQ")
BUNDLE = struct.Struct("!IHH")

BAD_REQUEST, BAD_ACTION, BAD_INSTRUCTION, BAD_MATCH, FLOW_MOD_FAILED = 1, 2, 3, 4, 5
ROLE_REQUEST_FAILED, METER_MOD_FAILED, BUNDLE_FAILED = 11, 12, 17
BAD_VERSION, BAD_TYPE, BAD_MULTIPART, BAD_EXPERIMENTER, BAD_LENGTH, IS_SLAVE = 0, 1, 2, 3, 6, 10
NOT_ALLOWED = (BAD_REQUEST, 5)
TABLE_FULL, BAD_TABLE_ID, OVERLAP, BAD_COMMAND = 1, 2, 3, 6
BUNDLE_BAD_ID, BUNDLE_EXISTS, BUNDLE_BAD_TYPE, BUNDLE_BAD_XID, BUNDLE_UNSUPPORTED, BUNDLE_MSG_FAILED = (
    2,
    3,
    6,
    9,
    10,
    13,
)
OPEN, OPEN_REPLY, CLOSE, CLOSE_REPLY, COMMIT, COMMIT_REPLY, DISCARD, DISCARD_REPLY = range(8)


def error_body(version: int, kind: int, code: int) -> bytes:
    """Type and code as an error says them: OpenFlow 1.3 has bundles, and their errors, as an extension only."""
    if version == V13 and kind == BUNDLE_FAILED:
        return struct.pack("!HHI", 0xFFFF, ONF_BUNDLE_CONTROL + code, ONF)
    return struct.pack("!HH", kind, code)


class Refusal(Exception):
    """The switch answers a message with this error."""

    def __init__(self, kind: int, code: int) -> None:
        super().__init__(f"OpenFlow error type {kind} code {code}")
        self.kind = kind
        self.code = code


def message(version: int, kind: int, xid: int, body: bytes = b"") -> bytes:
    return HEADER.pack(version, kind, HEADER.size + len(body), xid) + body


@dataclass(frozen=True, slots=True)
class Field:
    """One OXM field: its header without the mask bit and length, value, mask (None: all bits)."""

    head: bytes
    value: int
    mask: int | None
    octets: int


def fields(match: bytes) -> Iterator[Field]:
    """The fields between head and padding of an ofp_match. Raises Refusal."""
    kind, length = struct.unpack_from("!HH", match)
    if kind != 1 or not 4 <= length <= len(match):
        raise Refusal(BAD_MATCH, 0 if kind != 1 else 1)
    at = 4
    while at < length:
        if at + 4 > length:
            raise Refusal(BAD_MATCH, 1)
        class_, field, size = struct.unpack_from("!HBB", match, at)
        masked, end = field & 1, at + 4 + size
        start = at + 8 if class_ == 0xFFFF else at + 4
        octets = (end - start) // (2 if masked else 1)
        if end > length or octets < 1 or (masked and (end - start) % 2):
            raise Refusal(BAD_MATCH, 1)
        head = struct.pack("!HB", class_, field & 0xFE) + match[at + 4 : start]
        value = int.from_bytes(match[start : start + octets], "big")
        mask = int.from_bytes(match[start + octets : end], "big") if masked else None
        if mask == (1 << 8 * octets) - 1:
            mask = None
        if mask is not None:
            value &= mask
        if mask != 0:
            yield Field(head, value, mask, octets)
        at = end


def canonical(match: bytes) -> bytes:
    """What two equal matches have in common. Raises Refusal."""
    parts = []
    for one in fields(match):
        mask = b"" if one.mask is None else one.mask.to_bytes(one.octets, "big")
        parts.append(one.head + bytes((one.octets, len(mask))) + one.value.to_bytes(one.octets, "big") + mask)
    return b"".join(sorted(parts))


def covers(wide: bytes, narrow: bytes) -> bool:
    """Does every packet that `narrow` matches match `wide` too? (What a non-strict deletion by `wide` hits.)"""
    known = {one.head: one for one in fields(narrow)}
    for one in fields(wide):
        other = known.get(one.head)
        full = (1 << 8 * one.octets) - 1
        if other is None:
            return False
        mask, theirs = full if one.mask is None else one.mask, full if other.mask is None else other.mask
        if mask & ~theirs or other.value & mask != one.value:
            return False
    return True


def overlap(one: bytes, other: bytes) -> bool:
    """Can a packet match both?"""
    known = {field.head: field for field in fields(other)}
    for mine in fields(one):
        theirs = known.get(mine.head)
        if theirs is None:
            continue
        full = (1 << 8 * mine.octets) - 1
        both = (full if mine.mask is None else mine.mask) & (full if theirs.mask is None else theirs.mask)
        if (mine.value ^ theirs.value) & both:
            return False
    return True


def match_end(data: bytes, at: int) -> int:
    """Where the padded match that begins at `at` ends. Raises Refusal."""
    if at + 4 > len(data):
        raise Refusal(BAD_MATCH, 1)
    length = int.from_bytes(data[at + 2 : at + 4], "big")
    end = at + (length + 7 & ~7)
    if length < 4 or end > len(data):
        raise Refusal(BAD_MATCH, 1)
    return end


def instructions(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and body of each. Raises Refusal."""
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            raise Refusal(BAD_INSTRUCTION, 7)
        kind, length = struct.unpack_from("!HH", data, at)
        if length < 8 or length % 8 or at + length > len(data):
            raise Refusal(BAD_INSTRUCTION, 7)
        if kind not in (1, 2, 3, 4, 5, 6, 0xFFFF):
            raise Refusal(BAD_INSTRUCTION, 0)
        yield kind, data[at + 4 : at + length]
        at += length


def outputs_to(data: bytes, port: int, group: int) -> bool:
    """Do instructions send to this port and to this group (ANY: no question)?"""
    if port == ANY and group == ANY:
        return True
    found_port, found_group = port == ANY, group == ANY
    for kind, body in instructions(data):
        if kind not in (INSTRUCTION_WRITE, INSTRUCTION_APPLY):
            continue
        at = 4
        while at + 8 <= len(body):
            action, length = struct.unpack_from("!HH", body, at)
            target = int.from_bytes(body[at + 4 : at + 8], "big")
            found_port = found_port or (action == ACTION_OUTPUT and target == port)
            found_group = found_group or (action == ACTION_GROUP and target == group)
            at += max(8, length)
    return found_port and found_group


def meter_of(data: bytes) -> int | None:
    """The meter that instructions use."""
    return next(
        (int.from_bytes(body[:4], "big") for kind, body in instructions(data) if kind == INSTRUCTION_METER), None
    )


def port_desc(version: int, number: int, name: str) -> bytes:
    """An ofp_port: up, with a link of 10 Gbit/s."""
    mac = bytes((2, 0xFA)) + number.to_bytes(4, "big")
    text = name.encode()[:15].ljust(16, b"\0")
    speeds = struct.pack("!6I", 0, 0, 0, 0, 10_000_000, 0)
    if version == V13:
        return struct.pack("!I4x6s2x16sII", number, mac, text, 0, 4) + speeds
    return struct.pack("!IH2x6s2x16sIIHH4x", number, 72, mac, text, 0, 4, 0, 32) + speeds
