"""Flow values to OpenFlow 1.4 messages, as bytes. Pure.

Bytes and not the framework's message objects, because both engines then send exactly the same, building objects is
the slowest part of programming a switch, and one of them (`NXActionRegLoad2`) cannot write a part of a field wider than
32 bits and grows a class-wide list each time it is written. A test has the framework's own parser read these bytes.

Two strings of bytes say a flow: its *entry key* (table, priority, match) and its *entry value* (cookie, instructions).

    flow-mod    | header | cookie | mask | table … match | instructions |
    entry key                            |<------------->|
    entry value          |<---->|                        |<------------>|

A switch's dump is read into the same two (`decode.flow_entries`), so that telling what differs is comparing bytes. What
many flows have in common (which fields, which actions) is worked out once: a *template* is one big number with holes
into which the values of a flow are shifted.

Invariant: what is written here comes back equal from `decode` after a switch stored it. A value for which that would
not hold (a mask of all ones, a match on a joined register) raises EncodeError instead of being sent, because it
would be sent again at every connect for ever.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ryu_apps.openflow import cookies, oxm
from ryu_apps.openflow.flows import (
    Action,
    ConnTrack,
    Flow,
    FlowKey,
    Goto,
    Match,
    Meter,
    Move,
    Normal,
    Output,
    OutputReg,
    SetField,
)
from ryu_apps.openflow.meters import MeterKey, MeterRule

VERSION = 0x05
HEADER = struct.Struct("!BBHI")

MULTIPART_REQUEST, MULTIPART_REPLY, BARRIER_REQUEST, FLOW_MOD, BUNDLE_CONTROL, BUNDLE_ADD = 18, 19, 20, 14, 33, 34
MP_DESC, MP_FLOW, MP_METER, MP_METER_CONFIG, MP_METER_FEATURES, MP_PORT_DESC, MP_FLOW_MONITOR = 0, 1, 9, 10, 11, 13, 16
SET_CONFIG, FRAGMENTS_NX_MATCH = 9, 3
ROLE_REQUEST, ROLE_MASTER, ROLE_SLAVE = 24, 2, 3
ADD, DELETE_STRICT = 0, 4
METER_MOD, METER_ADD, METER_MODIFY, METER_DELETE = 29, 0, 1, 2
METER_FLAGS, PACKET_METER_FLAGS, METER_STATS = 0xD, 0xE, 0x8
"""Rates in kbit/s, a burst of our own, and counted."""
METER_BAND_DROP = 1
ALL_METERS = 0xFFFFFFFF
METER_TABLE = 0xFE
"""Stands where an entry key has its table: this is no flow's key but a meter's. No flow can be in such a table."""
MONITOR_ADD, MONITOR_REMOVED, MONITOR_MODIFY = 2, 4, 8
ANY = 0xFFFFFFFF
ALL_TABLES = 0xFF
PORT_NORMAL = 0xFFFFFFFA
INSTRUCTION_GOTO, INSTRUCTION_APPLY, INSTRUCTION_METER = 1, 4, 6
ACTION_OUTPUT, ACTION_SET_FIELD, ACTION_EXPERIMENTER = 0, 25, 0xFFFF
NX_REG_MOVE, NX_REG_LOAD, NX_OUTPUT_REG, NX_REG_LOAD2, NX_CT = 6, 7, 15, 33, 35
NX_MESSAGE, NXT_CT_FLUSH_ZONE = 4, 29
CT_COMMIT = 1
CT_NO_RECIRCULATION = 0xFF
BUNDLE_OPEN, BUNDLE_COMMIT, BUNDLE_DISCARD = 0, 4, 6
BUNDLE_FLAGS = 0x3
"""Atomic and ordered: all or nothing, and in the order it was put in."""

ENTRY_HEAD = struct.Struct("!BBHHHIIIHH")
"""The part of a flow-mod between cookie mask and match: table, command, idle, hard, priority, buffer, out port, out
group, flags, importance. An entry key begins with it, as an addition has it."""
COOKIE_LENGTH = 8
NO_MASK = bytes(8)
OUR_COOKIES = struct.pack("!QQ", cookies.MARK << cookies.MARK_SHIFT, 0xFF << cookies.MARK_SHIFT)
"""Cookie and mask of a deletion: with them the switch itself refuses to delete what is not Lark's."""
BUNDLED = struct.Struct("!BBHII2xHBBHI")
"""The header of a bundle-add, bundle and flags, and the header of the message within."""
TEMPLATES = 4096
"""Templates kept of a kind; a policy has a few hundred."""
MATCH_HEADER = struct.Struct("!HH")


class EncodeError(ValueError):
    """A flow value that cannot be written so that it would come back equal: a defect in whoever built it."""


def _header_bytes(header: oxm.Header, length: int, masked: bool) -> bytes:
    payload = length * (2 if masked else 1) + (4 if header.experimenter is not None else 0)
    word = (header.class_ << 16) | (header.number << 9) | (int(masked) << 8) | payload
    tail = b"" if header.experimenter is None else struct.pack("!I", header.experimenter)
    return struct.pack("!I", word) + tail


def _bits(name: str, low: int, width: int) -> oxm.WireField:
    field = oxm.WRITABLE.get(name)
    if field is None:
        raise EncodeError(f"{name}: no such field in an action; add it to ryu_apps/openflow/oxm.py")
    if low < 0 or width < 1 or low + width > field.bits:
        raise EncodeError(f"{name}[{low}..{low + width - 1}] is outside its {field.bits} bits")
    return field


# ------------------------------------------------------------------------------------------------------------ templates

_Fill = Callable[[int], int]


_Hole = tuple[int, int, _Fill | None]
"""Where a value goes: how far it is shifted, the bits it may not have, what to do with it before."""


@dataclass(frozen=True, slots=True)
class _Template:
    """`number`: the constant bits. The holes are in the order in which a flow says the values."""

    number: int
    length: int
    holes: tuple[_Hole, ...]


class _Builder:
    """Puts a template together; positions are octets from the left until its length is known."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._holes: list[tuple[int, int, int, _Fill | None]] = []

    def add(self, data: bytes) -> None:
        self.data += data

    def hole(self, octets: int, low: int, outside: int, fill: _Fill | None = None) -> None:
        """Room for a value that is shifted left by `low` within the next `octets`."""
        self.data += bytes(octets)
        self._holes.append((len(self.data), low, outside, fill))

    def done(self) -> _Template:
        self.data += bytes(-len(self.data) % 8)
        length = len(self.data)
        holes = tuple((8 * (length - end) + low, outside, fill) for end, low, outside, fill in self._holes)
        return _Template(int.from_bytes(self.data, "big"), length, holes)


_Shape = tuple[tuple[str, int | None], ...]
_matches: dict[_Shape, _Template] = {}
_actions: dict[tuple[object, ...], _Template] = {}


def _match_template(shape: _Shape) -> _Template:
    """The template of all matches on these fields with these masks."""
    for name, mask in shape:
        field = oxm.MATCHABLE.get(name)
        if field is None:
            raise EncodeError(f"{name}: cannot be matched on; see ryu_apps/openflow/oxm.py")
        if mask is not None:
            if not field.maskable:
                raise EncodeError(f"{name}: has no masks")
            if not 0 < mask < field.full:
                raise EncodeError(f"{name}: mask {mask:#x}: leave the field out, or match it exactly")
    order = sorted(range(len(shape)), key=lambda n: oxm.RANK[shape[n][0]])
    built = _Builder()
    built.add(bytes(MATCH_HEADER.size))
    for name, mask in (shape[n] for n in order):
        if name == "in_port":
            built.add(_header_bytes(oxm.IN_PORT_32, 4, False))
            built.hole(4, 0, ~0xFFFF, oxm.port_to_wire)
        elif name == "vlan_tci":
            _vlan(built, 0xFFFF if mask is None else mask)
        else:
            field = oxm.MATCHABLE[name]
            built.add(_header_bytes(field.headers[0], field.length, mask is not None))
            built.hole(field.length, 0, ~(field.full if mask is None else mask))
            if mask is not None:
                built.add(mask.to_bytes(field.length, "big"))
    MATCH_HEADER.pack_into(built.data, 0, 1, len(built.data))
    made = built.done()
    return _Template(made.number, made.length, tuple(made.holes[order.index(n)] for n in range(len(shape))))


def _vlan(built: _Builder, wanted: int) -> None:
    """OXM has no field for a whole tag: VLAN_VID (12 bits and the "there is a tag" bit) and VLAN_PCP behind it."""
    if wanted & 0xE000 not in (0, 0xE000):
        raise EncodeError("vlan_tci: the priority bits are matched together or not at all")
    vid_mask = wanted & 0x1FFF
    partly = vid_mask != 0x1FFF
    built.add(_header_bytes(oxm.VLAN_VID, 2, partly))

    def vid(tci: int) -> int:
        if tci & 0x1FFF == 0 and wanted & 0xE000:
            raise EncodeError("vlan_tci: write `no tag` as 0/0x1fff; a priority cannot be matched without a tag")
        # What of the tag goes into VLAN_PCP is put there by the same hole: it lies one field further right.
        return tci & 0x1FFF if not wanted & 0xE000 else (tci & 0x1FFF) << pcp_bits | tci >> 13

    pcp_bits = 0
    if wanted & 0xE000:
        tail = (vid_mask.to_bytes(2, "big") if partly else b"") + _header_bytes(oxm.VLAN_PCP, 1, False)
        pcp_bits = 8 * (len(tail) + 1)
        built.add(bytes(2) + tail)
        built.hole(1, 0, ~wanted, vid)
    else:
        built.hole(2, 0, ~wanted, vid)
        if partly:
            built.add(vid_mask.to_bytes(2, "big"))


def match_bytes(match: Match) -> bytes:
    """A whole ofp_match, padded. Raises EncodeError."""
    shape = tuple([(one.field, one.mask) for one in match])
    found = _matches.get(shape)
    if found is None:
        if len(_matches) >= TEMPLATES:
            _matches.clear()
        found = _matches[shape] = _match_template(shape)
    number = found.number
    for one, (shift, outside, fill) in zip(match, found.holes, strict=True):
        value = one.value
        if value & outside:
            where = f"its {oxm.MATCHABLE[one.field].bits} bits" if one.mask is None else f"mask {one.mask:#x}"
            raise EncodeError(f"{one.field}: {value:#x} does not fit: it has bits outside {where}")
        number |= (value if fill is None else fill(value)) << shift
    return number.to_bytes(found.length, "big")


def match_fields(match: Match) -> bytes:
    """The OXM fields of a match, in the switch's order, without header and padding. Raises EncodeError."""
    whole = match_bytes(match)
    return whole[MATCH_HEADER.size : MATCH_HEADER.unpack_from(whole)[1]]


def _nicira(subtype: int, body: bytes) -> bytes:
    size = -(-(10 + len(body)) // 8) * 8
    return (struct.pack("!HHIH", ACTION_EXPERIMENTER, size, oxm.NICIRA, subtype) + body).ljust(size, b"\0")


def _put_action(built: _Builder, action: Action) -> None:
    """One action, with holes for the constant of a SetField and the port of an Output."""
    match action:
        case SetField(name, _, low, width):
            field = _bits(name, low, width)
            if name == "vlan_tci":
                raise EncodeError("vlan_tci: cannot be written here; no policy needs it yet")
            outside = ~((1 << width) - 1)
            if width == field.bits:
                head = _header_bytes(field.headers[0], field.length, False)
                size = -(-(4 + len(head) + field.length) // 8) * 8
                built.add(struct.pack("!HH", ACTION_SET_FIELD, size) + head)
                built.hole(field.length, 0, outside)
                built.add(bytes(size - 4 - len(head) - field.length))
                return
            head = _header_bytes(field.nicira, field.length, True)
            used = 10 + len(head) + 2 * field.length
            size = -(-used // 8) * 8
            built.add(struct.pack("!HHIH", ACTION_EXPERIMENTER, size, oxm.NICIRA, NX_REG_LOAD2) + head)
            built.hole(field.length, low, outside)
            built.add((((1 << width) - 1) << low).to_bytes(field.length, "big") + bytes(size - used))
        case Output(_):
            built.add(struct.pack("!HH", ACTION_OUTPUT, 16))
            built.hole(4, 0, ~0xFFFF, oxm.port_to_wire)
            built.add(bytes(8))
        case _:
            built.add(_action(action))


def _action(action: Action) -> bytes:
    match action:
        case Move(source, source_low, target, target_low, width):
            from_ = _bits(source, source_low, width)
            to = _bits(target, target_low, width)
            ends = b"".join(_header_bytes(f.nicira, f.length, False) for f in (from_, to))
            return _nicira(NX_REG_MOVE, struct.pack("!HHH", width, source_low, target_low) + ends)
        case Normal():
            return struct.pack("!HHIH6x", ACTION_OUTPUT, 16, PORT_NORMAL, 0)
        case OutputReg(name, low, width):
            field = _bits(name, low, width)
            if field.nicira.experimenter is not None:
                raise EncodeError(f"{name}: cannot hold an output port")
            head = _header_bytes(field.nicira, field.length, False)
            return _nicira(NX_OUTPUT_REG, struct.pack("!H4sH6x", (low << 6) | (width - 1), head, 0))
        case ConnTrack(commit, zone_field, zone_low, recirculate):
            field = _bits(zone_field, zone_low, 16)
            head = _header_bytes(field.nicira, field.length, False)
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


def _instructions_template(actions: Sequence[Action]) -> _Template:
    built = _Builder()
    if actions and isinstance(actions[0], Meter):
        built.add(struct.pack("!HH", INSTRUCTION_METER, 8))
        built.hole(4, 0, ~0xFFFFFFFF)
        actions = actions[1:]
    apply = [action for action in actions if not isinstance(action, Goto)]
    if len(apply) < len(actions) and (len(apply) < len(actions) - 1 or not isinstance(actions[-1], Goto)):
        raise EncodeError("goto must be the last action")
    if apply:
        begin = len(built.data)
        built.add(bytes(8))
        for action in apply:
            _put_action(built, action)
        struct.pack_into("!HH", built.data, begin, INSTRUCTION_APPLY, len(built.data) - begin)
    if len(apply) < len(actions):
        last = actions[-1]
        assert isinstance(last, Goto)
        built.add(struct.pack("!HHB3x", INSTRUCTION_GOTO, 8, last.table))
    return built.done()


def instructions(actions: Sequence[Action]) -> bytes:
    """The instructions of a flow: meter, apply-actions, goto. No actions: no instructions, which means drop."""
    shape: list[object] = []
    values: list[int] = []
    for action in actions:
        # An exact type and no isinstance: this is the inside of the hottest loop.
        if type(action) is SetField:
            shape.append((action.field, action.low, action.width))
            values.append(action.value)
        elif type(action) is Output:
            shape.append(Output)
            values.append(action.port)
        elif type(action) is Meter:
            shape.append(Meter)
            values.append(action.number)
        else:
            shape.append(action.table if type(action) is Goto else action)
    found = _actions.get(tuple(shape))
    if found is None:
        if len(_actions) >= TEMPLATES:
            _actions.clear()
        found = _actions[tuple(shape)] = _instructions_template(tuple(actions))
    number = found.number
    for value, (shift, outside, fill) in zip(values, found.holes, strict=True):
        if value & outside:
            place = next(n for n, hole in enumerate(found.holes) if values[n] & hole[1])
            culprit = [action for action in actions if isinstance(action, SetField | Output | Meter)][place]
            if isinstance(culprit, Meter):
                raise EncodeError(f"meter {culprit.number:#x} does not fit into 32 bits")
            if isinstance(culprit, Output):
                raise EncodeError(f"port {culprit.port} is not a 16-bit port number")
            raise EncodeError(f"{culprit.field}: {culprit.value:#x} does not fit into {culprit.width} bits")
        number |= (value if fill is None else fill(value)) << shift
    return number.to_bytes(found.length, "big")


# ------------------------------------------------------------------------------------------------------------- entries

EntryKey = bytes
EntryValue = bytes


def entry_head(table: int, priority: int) -> bytes:
    """How the key of any entry of this table and priority begins; the match follows."""
    return ENTRY_HEAD.pack(table, ADD, 0, 0, priority, ANY, ANY, ANY, 0, 0)


def entry_key(key: FlowKey | Flow | MeterKey | MeterRule) -> EntryKey:
    """What identifies an entry on a switch, as bytes. Raises EncodeError."""
    if isinstance(key, MeterRule | int):
        return meter_key(key if isinstance(key, int) else key.number)
    try:
        return entry_head(key.table, key.priority) + match_bytes(key.match)
    except struct.error as error:
        raise EncodeError(f"table {key.table}, priority {key.priority}: {error}") from error


def entry_value(flow: Flow | MeterRule) -> EntryValue:
    """What the switch is to do with it: cookie and instructions. Raises EncodeError."""
    if isinstance(flow, MeterRule):
        try:
            band = struct.pack("!HHII4x", METER_BAND_DROP, 16, flow.rate, flow.burst)
        except struct.error as error:
            raise EncodeError(f"meter {flow.number:#x}, rate {flow.rate}: {error}") from error
        flags = PACKET_METER_FLAGS if flow.packets else METER_FLAGS
        return meter_value(flow.number, flags.to_bytes(2, "big") + band)
    try:
        return flow.cookie.to_bytes(COOKIE_LENGTH, "big") + instructions(flow.actions)
    except (struct.error, OverflowError) as error:
        raise EncodeError(f"cookie {flow.cookie:#x}, {flow.actions}: {error}") from error


def meter_key(number: int) -> EntryKey:
    """A meter's own entry key."""
    return bytes((METER_TABLE,)) + number.to_bytes(4, "big")


def meter_value(number: int, setting: bytes) -> EntryValue:
    """A meter's entry value: like a cookie it begins with the octet that says whose it is. `setting`: flags, bands."""
    return bytes((number >> 24,)) + setting


def meter_text(value: EntryValue) -> str:
    """A meter's setting as ours are, for a message."""
    if len(value) < 11:
        return "without a rate"
    unit = "packets/s" if int.from_bytes(value[1:3], "big") == PACKET_METER_FLAGS else "kbit/s"
    return f"rate={int.from_bytes(value[7:11], 'big')} {unit}"


def is_meter(key: EntryKey) -> bool:
    return key[0] == METER_TABLE


def key_meter(key: EntryKey) -> int:
    return int.from_bytes(key[1:], "big")


def key_table(key: EntryKey) -> int:
    return key[0]


def key_priority(key: EntryKey) -> int:
    return int.from_bytes(key[6:8], "big")


def key_match(key: EntryKey) -> bytes:
    """The ofp_match, padded."""
    return key[ENTRY_HEAD.size :]


def value_cookie(value: EntryValue) -> int:
    return int.from_bytes(value[:COOKIE_LENGTH], "big")


def value_instructions(value: EntryValue) -> bytes:
    return value[COOKIE_LENGTH:]


def _message(kind: int, xid: int, body: bytes) -> bytes:
    return HEADER.pack(VERSION, kind, HEADER.size + len(body), xid) + body


def put_entry(key: EntryKey, value: EntryValue, xid: int) -> bytes:
    """Add an entry, or put its actions and cookie in the place of what has the same key; counters go on counting."""
    return _message(FLOW_MOD, xid, b"".join((value[:COOKIE_LENGTH], NO_MASK, key, value[COOKIE_LENGTH:])))


def take_entry(key: EntryKey, xid: int) -> bytes:
    """Delete exactly one entry of Lark's; no error if there is none."""
    return _message(FLOW_MOD, xid, b"".join((OUR_COOKIES, key[:1], bytes((DELETE_STRICT,)), key[2:])))


def put_meter(key: EntryKey, value: EntryValue, xid: int, *, there: bool) -> bytes:
    """Make a meter, or (`there`) give it another rate in place: flows that use it stay."""
    command = (METER_MODIFY if there else METER_ADD).to_bytes(2, "big")
    return _message(METER_MOD, xid, b"".join((command, value[1:3], key[1:], value[3:])))


def take_meter(key: EntryKey, xid: int) -> bytes:
    """Delete a meter, and with it the flows that still use it; no error if there is none."""
    return _message(METER_MOD, xid, struct.pack("!HH", METER_DELETE, 0) + key[1:])


def meter_features_request(xid: int) -> bytes:
    """Ask what meters the switch has room for."""
    return _message(MULTIPART_REQUEST, xid, struct.pack("!HH4x", MP_METER_FEATURES, 0))


def meters_request(xid: int) -> bytes:
    """Ask for every meter's setting."""
    return _message(MULTIPART_REQUEST, xid, struct.pack("!HH4xI4x", MP_METER_CONFIG, 0, ALL_METERS))


def meter_stats_request(xid: int, number: int = ALL_METERS) -> bytes:
    """Ask what a meter has counted, or every one."""
    return _message(MULTIPART_REQUEST, xid, struct.pack("!HH4xI4x", MP_METER, 0, number))


def add_flow(flow: Flow, xid: int) -> bytes:
    """`put_entry` of a flow."""
    return put_entry(entry_key(flow), entry_value(flow), xid)


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


def bundled(bundle: int, first_xid: int, items: Iterable[tuple[EntryKey, EntryValue | None]]) -> list[bytes]:
    """Additions (a key and its value) and removals (a key and None) as parts of a bundle, transaction ids in a row."""
    out: list[bytes] = []
    xid = first_xid
    pack, size, inner = BUNDLED.pack, BUNDLED.size, HEADER.size
    strict = bytes((DELETE_STRICT,))
    for key, value in items:
        if value is None:
            length = size + len(OUR_COOKIES) + len(key)
            parts: tuple[bytes, ...] = (OUR_COOKIES, key[:1], strict, key[2:])
        else:
            length = size + len(NO_MASK) + len(key) + len(value)
            parts = (value[:COOKIE_LENGTH], NO_MASK, key, value[COOKIE_LENGTH:])
        head = pack(
            VERSION, BUNDLE_ADD, length, xid, bundle, BUNDLE_FLAGS, VERSION, FLOW_MOD, length - size + inner, xid
        )
        out.append(head)
        out += parts
        xid += 1
    return out


def barrier(xid: int) -> bytes:
    return _message(BARRIER_REQUEST, xid, b"")


def forget_zone(zone: int, xid: int) -> bytes:
    """Forget the connections of a zone: NXT_CT_FLUSH_ZONE, which Open vSwitch knows since 2.6."""
    return _message(NX_MESSAGE, xid, struct.pack("!II6xH", oxm.NICIRA, NXT_CT_FLUSH_ZONE, zone))


def port_desc_request(xid: int) -> bytes:
    return _message(MULTIPART_REQUEST, xid, struct.pack("!HH4x", MP_PORT_DESC, 0))


def flow_stats_request(xid: int, cookie: int = 0, mask: int = 0, table: int = ALL_TABLES) -> bytes:
    """Ask for every entry of a table (default: of all) whose cookie equals `cookie` under `mask`."""
    body = struct.pack("!B3xII4xQQ", table, ANY, ANY, cookie, mask)
    return _message(MULTIPART_REQUEST, xid, struct.pack("!HH4x", MP_FLOW, 0) + body + match_bytes(()))


def fragments_show_ports(xid: int) -> bytes:
    """Have flows see the ports of first fragments (nx-match, ovs-fields(7)); by default they are 0 as in later ones.

    The switch forgets it when it restarts, and an OpenFlow framework may set the default while it connects.
    """
    return _message(SET_CONFIG, xid, struct.pack("!HH", FRAGMENTS_NX_MATCH, 0))


def role_request(xid: int, *, master: bool, generation: int) -> bytes:
    """Ask to be the switch's one master, which makes every other one its slave; or to be a slave, that changes nothing.

    The switch refuses a generation below the highest that it has seen since it started.
    """
    return _message(ROLE_REQUEST, xid, struct.pack("!I4xQ", ROLE_MASTER if master else ROLE_SLAVE, generation))


def description_request(xid: int) -> bytes:
    return _message(MULTIPART_REQUEST, xid, struct.pack("!HH4x", MP_DESC, 0))


def monitor_request(xid: int, monitor: int) -> bytes:
    """Ask to be told when anyone changes a flow; of the asker's own changes only that there were some."""
    flags = MONITOR_ADD | MONITOR_REMOVED | MONITOR_MODIFY
    body = struct.pack("!IIIHBB", monitor, ANY, ANY, flags, ALL_TABLES, 0) + match_bytes(())
    return _message(MULTIPART_REQUEST, xid, struct.pack("!HH4x", MP_FLOW_MONITOR, 0) + body)
