"""Flow values to OpenFlow 1.4 messages, as bytes. Pure.

Bytes and not the framework's message objects, because both engines then send exactly the same, building objects is
the slowest part of programming a switch, and one of them (`NXActionRegLoad2`) cannot write a part of a field wider than
32 bits and grows a class-wide list each time it is written. A test has the framework's own parser read these bytes.

Invariant: what is written here comes back equal from `decode` after a switch stored it. A value for which that would
not hold (a mask of all ones, a match on a joined register) raises EncodeError instead of being sent, because it
would be sent again at every connect for ever.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from ryu_apps.openflow import cookies, oxm
from ryu_apps.openflow.flows import (
    Action,
    ConnTrack,
    Flow,
    FlowKey,
    Goto,
    Match,
    Move,
    Normal,
    Output,
    OutputReg,
    SetField,
)

VERSION = 0x05
HEADER = struct.Struct("!BBHI")

MULTIPART_REQUEST, MULTIPART_REPLY, BARRIER_REQUEST, FLOW_MOD, BUNDLE_CONTROL, BUNDLE_ADD = 18, 19, 20, 14, 33, 34
MP_FLOW, MP_PORT_DESC = 1, 13
ADD, DELETE_STRICT = 0, 4
ANY = 0xFFFFFFFF
ALL_TABLES = 0xFF
PORT_NORMAL = 0xFFFFFFFA
INSTRUCTION_GOTO, INSTRUCTION_APPLY = 1, 4
ACTION_OUTPUT, ACTION_SET_FIELD, ACTION_EXPERIMENTER = 0, 25, 0xFFFF
NX_REG_MOVE, NX_REG_LOAD, NX_OUTPUT_REG, NX_REG_LOAD2, NX_CT = 6, 7, 15, 33, 35
CT_COMMIT = 1
CT_NO_RECIRCULATION = 0xFF
BUNDLE_OPEN, BUNDLE_COMMIT, BUNDLE_DISCARD = 0, 4, 6
BUNDLE_FLAGS = 0x3
"""Atomic and ordered: all or nothing, and in the order it was put in."""

FLOW_MOD_BODY = struct.Struct("!QQBBHHHIIIHH")
MATCH_HEADER = struct.Struct("!HH")


class EncodeError(ValueError):
    """A flow value that cannot be written so that it would come back equal: a defect in whoever built it."""


def _pad8(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def _header_bytes(header: oxm.Header, length: int, masked: bool) -> bytes:
    payload = length * (2 if masked else 1) + (4 if header.experimenter is not None else 0)
    word = (header.class_ << 16) | (header.number << 9) | (int(masked) << 8) | payload
    tail = b"" if header.experimenter is None else struct.pack("!I", header.experimenter)
    return struct.pack("!I", word) + tail


def _field_bytes(field: oxm.WireField, value: int, mask: int | None) -> bytes:
    head = _header_bytes(field.headers[0], field.length, mask is not None)
    body = value.to_bytes(field.length, "big")
    return head + body + (b"" if mask is None else mask.to_bytes(field.length, "big"))


def _bits(name: str, low: int, width: int) -> oxm.WireField:
    field = oxm.WRITABLE.get(name)
    if field is None:
        raise EncodeError(f"{name}: no such field in an action; add it to ryu_apps/openflow/oxm.py")
    if low < 0 or width < 1 or low + width > field.bits:
        raise EncodeError(f"{name}[{low}..{low + width - 1}] is outside its {field.bits} bits")
    return field


def match_fields(match: Match) -> bytes:
    """The OXM fields of a match, prerequisites first, without header and padding. Raises EncodeError."""
    try:
        ordered = sorted(match, key=lambda one: oxm.RANK[one.field])
    except KeyError as error:
        raise EncodeError(f"{error.args[0]}: cannot be matched on; see ryu_apps/openflow/oxm.py") from None
    out = []
    for one in ordered:
        field = oxm.MATCHABLE[one.field]
        if not 0 <= one.value <= field.full:
            raise EncodeError(f"{one.field}: {one.value:#x} does not fit into {field.bits} bits")
        if one.mask is not None:
            if not field.maskable:
                raise EncodeError(f"{one.field}: has no masks")
            if not 0 < one.mask < field.full:
                raise EncodeError(f"{one.field}: mask {one.mask:#x}: leave the field out, or match it exactly")
            if one.value & ~one.mask:
                raise EncodeError(f"{one.field}: value {one.value:#x} has bits outside mask {one.mask:#x}")
        if one.field == "vlan_tci":
            _check_vlan(one.value, one.mask)
        out.append(_field_bytes(field, one.value, one.mask))
    return b"".join(out)


def _check_vlan(value: int, mask: int | None) -> None:
    # A dump has no vlan_tci but VLAN_VID (12 bits and the "there is a tag" bit) and VLAN_PCP (3 bits, only with a VID).
    wanted = 0xFFFF if mask is None else mask
    if value & 0x1FFF == 0 and wanted & 0xE000:
        raise EncodeError("vlan_tci: write `no tag` as 0/0x1fff; a priority cannot be matched without a tag")
    if wanted & 0xE000 not in (0, 0xE000):
        raise EncodeError("vlan_tci: the priority bits are matched together or not at all")


def match_bytes(match: Match) -> bytes:
    """A whole ofp_match, padded."""
    fields = match_fields(match)
    return _pad8(MATCH_HEADER.pack(1, 4 + len(fields)) + fields)


def _nicira(subtype: int, body: bytes) -> bytes:
    size = -(-(10 + len(body)) // 8) * 8
    return (struct.pack("!HHIH", ACTION_EXPERIMENTER, size, oxm.NICIRA, subtype) + body).ljust(size, b"\0")


def _action(action: Action) -> bytes:
    match action:
        case SetField(name, value, low, width):
            field = _bits(name, low, width)
            if not 0 <= value < 1 << width:
                raise EncodeError(f"{name}: {value:#x} does not fit into {width} bits")
            if name == "vlan_tci":
                raise EncodeError("vlan_tci: cannot be written here; no policy needs it yet")
            if width == field.bits:
                data = _field_bytes(field, value, None)
                size = -(-(4 + len(data)) // 8) * 8
                return (struct.pack("!HH", ACTION_SET_FIELD, size) + data).ljust(size, b"\0")
            mask = ((1 << width) - 1) << low
            return _nicira(NX_REG_LOAD2, _field_bytes(field, value << low, mask))
        case Move(source, source_low, target, target_low, width):
            from_ = _bits(source, source_low, width)
            to = _bits(target, target_low, width)
            ends = b"".join(_header_bytes(f.headers[0], f.length, False) for f in (from_, to))
            return _nicira(NX_REG_MOVE, struct.pack("!HHH", width, source_low, target_low) + ends)
        case Output(port):
            return struct.pack("!HHIH6x", ACTION_OUTPUT, 16, oxm.port_to_wire(port), 0)
        case Normal():
            return struct.pack("!HHIH6x", ACTION_OUTPUT, 16, PORT_NORMAL, 0)
        case OutputReg(name, low, width):
            field = _bits(name, low, width)
            if field.headers[0].experimenter is not None:
                raise EncodeError(f"{name}: cannot hold an output port")
            head = _header_bytes(field.headers[0], field.length, False)
            return _nicira(NX_OUTPUT_REG, struct.pack("!H4sH6x", (low << 6) | (width - 1), head, 0))
        case ConnTrack(commit, zone_field, zone_low, recirculate):
            field = _bits(zone_field, zone_low, 16)
            head = _header_bytes(field.headers[0], field.length, False)
            return _nicira(
                NX_CT,
                struct.pack(
                    "!H4sHB3xH",
                    CT_COMMIT if commit else 0,
                    head,
                    (zone_low << 6) | 15,
                    CT_NO_RECIRCULATION if recirculate is None else recirculate,
                    0,
                ),
            )
        case _:
            raise EncodeError(f"{action!r}: not an action that can stand here")


def instructions(actions: Iterable[Action]) -> bytes:
    """The instructions of a flow: apply-actions, then goto. No actions: no instructions, which means drop."""
    applied: list[bytes] = []
    goto = b""
    for action in actions:
        if goto:
            raise EncodeError("goto must be the last action")
        if isinstance(action, Goto):
            goto = struct.pack("!HHB3x", INSTRUCTION_GOTO, 8, action.table)
        else:
            applied.append(_action(action))
    body = b"".join(applied)
    return (struct.pack("!HH4x", INSTRUCTION_APPLY, 8 + len(body)) + body if applied else b"") + goto


def _message(kind: int, xid: int, body: bytes) -> bytes:
    return HEADER.pack(VERSION, kind, HEADER.size + len(body), xid) + body


def add_flow(flow: Flow, xid: int) -> bytes:
    """Add an entry, or put its actions and cookie in the place of what has the same key; counters go on counting."""
    head = FLOW_MOD_BODY.pack(flow.cookie, 0, flow.table, ADD, 0, 0, flow.priority, ANY, ANY, ANY, 0, 0)
    return _message(FLOW_MOD, xid, head + match_bytes(flow.match) + instructions(flow.actions))


def _delete(table: int, priority: int, match: bytes, xid: int) -> bytes:
    # With the cookie's mark and its mask the switch itself refuses to delete what is not Lark's.
    mark = cookies.MARK << cookies.MARK_SHIFT
    mask = 0xFF << cookies.MARK_SHIFT
    return _message(
        FLOW_MOD, xid, FLOW_MOD_BODY.pack(mark, mask, table, DELETE_STRICT, 0, 0, priority, ANY, ANY, ANY, 0, 0) + match
    )


def delete_flow(key: FlowKey, xid: int) -> bytes:
    """Delete exactly one entry of Lark's; no error if there is none."""
    return _delete(key.table, key.priority, match_bytes(key.match), xid)


def delete_raw(table: int, priority: int, match: bytes, xid: int) -> bytes:
    """Delete an entry whose match `decode` could not read, by the very bytes the switch showed (a whole ofp_match)."""
    return _delete(table, priority, match, xid)


def bundle_open(bundle: int, xid: int) -> bytes:
    return _message(BUNDLE_CONTROL, xid, struct.pack("!IHH", bundle, BUNDLE_OPEN, BUNDLE_FLAGS))


def bundle_commit(bundle: int, xid: int) -> bytes:
    return _message(BUNDLE_CONTROL, xid, struct.pack("!IHH", bundle, BUNDLE_COMMIT, BUNDLE_FLAGS))


def bundle_discard(bundle: int, xid: int) -> bytes:
    return _message(BUNDLE_CONTROL, xid, struct.pack("!IHH", bundle, BUNDLE_DISCARD, BUNDLE_FLAGS))


def bundle_add(bundle: int, message: bytes) -> bytes:
    """Put a message into a bundle; the outer transaction id must be the inner one."""
    xid: int = HEADER.unpack_from(message)[3]
    return _message(BUNDLE_ADD, xid, struct.pack("!I2xH", bundle, BUNDLE_FLAGS) + message)


def barrier(xid: int) -> bytes:
    return _message(BARRIER_REQUEST, xid, b"")


def port_desc_request(xid: int) -> bytes:
    return _message(MULTIPART_REQUEST, xid, struct.pack("!HH4x", MP_PORT_DESC, 0))


def flow_stats_request(xid: int, cookie: int = 0, mask: int = 0, table: int = ALL_TABLES) -> bytes:
    """Ask for every entry of a table (default: of all) whose cookie equals `cookie` under `mask`."""
    body = struct.pack("!B3xII4xQQ", table, ANY, ANY, cookie, mask)
    return _message(MULTIPART_REQUEST, xid, struct.pack("!HH4x", MP_FLOW, 0) + body + match_bytes(()))
