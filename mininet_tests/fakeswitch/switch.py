"""A switch that speaks OpenFlow 1.3 and 1.4 and forwards nothing. No input or output: `Session.receive` takes bytes.

            bytes ──▶ Session ──▶ FakeSwitch (ports, tables, meters, roles, faults) ──▶ replies to that session,
                                                                                        news to the others

Invariants: messages are answered in the order in which they come, so what was sent before a barrier is done when it is
answered. A bundle takes place as a whole or not at all. What the switch cannot do it answers with OpenFlow's own error,
never with silence, unless a fault says so.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mininet_tests.fakeswitch import wire
from mininet_tests.fakeswitch.tables import SETTINGS, Changed, Entry, FlowMod, Key, Tables, priority_of, read, table_of
from mininet_tests.fakeswitch.wire import Refusal

PART = 60_000
"""Octets of entries in one part of a long reply."""
STATES_CHANGED_BY = frozenset((
    wire.PACKET_OUT, wire.FLOW_MOD, wire.GROUP_MOD, wire.PORT_MOD, wire.TABLE_MOD, wire.METER_MOD, wire.SET_CONFIG,
    wire.BUNDLE_CONTROL, wire.BUNDLE_ADD,
))  # fmt: skip
"""What a slave may not send."""
EQUAL, MASTER, SLAVE = 1, 2, 3
INITIAL, WATCH_ADD, WATCH_REMOVED, WATCH_MODIFY, WITH_INSTRUCTIONS, OWN = 1, 2, 4, 8, 16, 64
"""Open vSwitch reads the last, which the specification calls `only own`, as `own ones in full, too`."""
EVENT_INITIAL, EVENT_ADDED, EVENT_REMOVED, EVENT_MODIFIED, EVENT_ABBREVIATED = range(5)


@dataclass(slots=True)
class Faults:
    """What a switch does wrong; set and unset at any moment."""

    silent: bool = False
    """It hears everything, does it, and says nothing."""
    hold_barriers: bool = False
    """Barriers are not answered; when this ends, those that wait are (`FakeSwitch.release`)."""
    refuse_flows: tuple[int, int] | None = None
    """Every flow-mod is refused with this error type and code."""
    refuse_commits: tuple[int, int] | None = None
    """Every bundle is refused when it is committed, with this error."""
    refuse_multiparts: frozenset[int] = frozenset()
    """These kinds of multipart request are not understood."""


@dataclass(frozen=True, slots=True)
class _Monitor:
    id: int
    flags: int
    table: int
    match: bytes
    port: int
    group: int


@dataclass(slots=True)
class Session:
    """One connection of a switch. `send` puts bytes on the wire."""

    switch: FakeSwitch
    send: Callable[[bytes], None]
    version: int = 0
    """0: not agreed upon yet."""
    role: int = EQUAL
    bundles: dict[int, list[tuple[int, FlowMod]]] = field(default_factory=dict)
    monitors: dict[int, _Monitor] = field(default_factory=dict)
    held: list[bytes] = field(default_factory=list)
    """Answers to barriers, kept back by a fault."""
    broken: str = ""
    """Why the connection must be closed; empty while it is good."""
    _buffer: bytearray = field(default_factory=bytearray)

    def begin(self) -> None:
        """Say hello: both sides do, unasked."""
        versions = sum(1 << one for one in self.switch.versions)
        element = struct.pack("!HHI", 1, 8, versions)
        self.send(wire.message(max(self.switch.versions), wire.HELLO, 0, element))
        self.switch.sessions.append(self)

    def end(self) -> None:
        """The connection is gone; what was in its bundles is forgotten."""
        if self in self.switch.sessions:
            self.switch.sessions.remove(self)

    def receive(self, data: bytes) -> None:
        """Take what came in; answer what is complete."""
        self._buffer += data
        at = 0
        out: list[bytes] = []
        while not self.broken and len(self._buffer) - at >= 8:
            version, kind, length, xid = wire.HEADER.unpack_from(self._buffer, at)
            if length < 8:
                self.broken = "a message shorter than its header"
            elif len(self._buffer) - at < length:
                break
            else:
                out += self._take(version, kind, xid, bytes(self._buffer[at : at + length]))
                at += length
        del self._buffer[:at]
        if out and not self.switch.faults.silent:
            self.send(b"".join(out))

    def _take(self, version: int, kind: int, xid: int, raw: bytes) -> Iterable[bytes]:
        self.switch.received[kind] += 1
        if kind == wire.HELLO:
            return self._hello(version, raw)
        if not self.version:
            self.broken = "no hello"
            return ()
        try:
            if version != self.version:
                raise Refusal(wire.BAD_REQUEST, wire.BAD_VERSION)
            return self.switch.answer(self, kind, xid, raw)
        except Refusal as refusal:
            return [self.error(xid, refusal, raw)]
        except struct.error:
            return [self.error(xid, Refusal(wire.BAD_REQUEST, wire.BAD_LENGTH), raw)]

    def _hello(self, version: int, raw: bytes) -> Sequence[bytes]:
        theirs = {one for one in self.switch.versions if one <= version}
        at = 8
        while at + 8 <= len(raw):
            kind, length = struct.unpack_from("!HH", raw, at)
            if kind == 1:
                bitmap = int.from_bytes(raw[at + 4 : at + 8], "big")
                theirs = {one for one in self.switch.versions if bitmap >> one & 1}
            at += max(8, length + 7 & ~7)
        if not theirs:
            self.broken = "no version in common"
            return [wire.message(max(self.switch.versions), wire.ERROR, 0, struct.pack("!HH", 0, 0))]
        self.version = max(theirs)
        return ()

    def error(self, xid: int, refusal: Refusal, raw: bytes) -> bytes:
        self.switch.errors += 1
        return self.reply(wire.ERROR, xid, wire.error_body(self.version, refusal.kind, refusal.code) + raw[:64])

    def reply(self, kind: int, xid: int, body: bytes = b"") -> bytes:
        return wire.message(self.version, kind, xid, body)


@dataclass
class FakeSwitch:
    """One switch; several sessions may be open with it. `faults` may be changed at any moment."""

    datapath_id: int
    description: str = ""
    """What stands in `dp_desc` (Open vSwitch: `other_config:dp-desc`)."""
    versions: tuple[int, ...] = (wire.V13, wire.V14)
    ports: dict[int, str] = field(default_factory=dict)
    tables: Tables = field(default_factory=Tables)
    faults: Faults = field(default_factory=Faults)
    sessions: list[Session] = field(default_factory=list)
    received: Counter[int] = field(default_factory=Counter)
    """Messages that came in, by type."""
    flow_mods: int = 0
    """Flow-mods that took place, those in bundles too."""
    errors: int = 0
    """Errors that were answered."""
    fragments: int = 0
    """The last set-config's flags; 3 is Open vSwitch's nx-match."""
    generation: int | None = None

    def __post_init__(self) -> None:
        self._meters: dict[int, tuple[int, bytes]] = {}
        self._miss_length = 128

    # --- what a test does to it

    def session(self, send: Callable[[bytes], None]) -> Session:
        """A connection. Call `begin`, then `receive` with what comes in, and `end`."""
        return Session(self, send)

    def add_port(self, number: int, name: str) -> None:
        """A port appears, or one has another name."""
        reason = 2 if number in self.ports else 0
        self.ports[number] = name
        self._tell_port(reason, number, name)

    def remove_port(self, number: int) -> None:
        self._tell_port(1, number, self.ports.pop(number))

    def release(self) -> None:
        """Answer the barriers that were held, and those to come."""
        self.faults.hold_barriers = False
        for session in self.sessions:
            held, session.held = session.held, []
            if held:
                session.send(b"".join(held))

    def forget(self) -> None:
        """Lose everything a switch loses when it restarts: flows, meters, roles' generation, settings."""
        self.tables.entries.clear()
        self._meters.clear()
        self.generation = None
        self.fragments = 0

    # --- one message

    def answer(self, session: Session, kind: int, xid: int, raw: bytes) -> Iterable[bytes]:
        """What the switch answers. Raises Refusal."""
        if session.role == SLAVE and kind in STATES_CHANGED_BY:
            raise Refusal(wire.BAD_REQUEST, wire.IS_SLAVE)
        body = raw[8:]
        match kind:
            case wire.FLOW_MOD:
                return self._flow_mod(session, read(body), xid)
            case wire.BUNDLE_ADD if session.version == wire.V14:
                return self._bundle_add(session, xid, body)
            case wire.BUNDLE_CONTROL if session.version == wire.V14:
                control = self._bundle_control(session, xid, body)
                return [*control[1], session.reply(wire.BUNDLE_CONTROL, xid, control[0])]
            case wire.EXPERIMENTER:
                return self._experimenter(session, xid, body)
            case wire.BARRIER_REQUEST:
                done = session.reply(wire.BARRIER_REPLY, xid)
                if not self.faults.hold_barriers:
                    return [done]
                session.held.append(done)
                return []
            case wire.ECHO_REQUEST:
                return [session.reply(wire.ECHO_REPLY, xid, body)]
            case wire.FEATURES_REQUEST:
                about = struct.pack("!QIBB2xII", self.datapath_id, 0, self.tables.number, 0, 0x4F, 0)
                return [session.reply(wire.FEATURES_REPLY, xid, about)]
            case wire.GET_CONFIG_REQUEST:
                return [
                    session.reply(wire.GET_CONFIG_REPLY, xid, struct.pack("!HH", self.fragments, self._miss_length))
                ]
            case wire.SET_CONFIG:
                self.fragments, self._miss_length = struct.unpack_from("!HH", body)
                return []
            case wire.MULTIPART_REQUEST:
                return self._multipart(session, xid, body)
            case wire.ROLE_REQUEST:
                return [session.reply(wire.ROLE_REPLY, xid, self._role(session, body))]
            case wire.METER_MOD:
                return self._meter_mod(session, body, xid)
            case wire.ECHO_REPLY | wire.SET_ASYNC | wire.PACKET_OUT | wire.ERROR:
                return []
        raise Refusal(wire.BAD_REQUEST, wire.BAD_TYPE)

    def _role(self, session: Session, body: bytes) -> bytes:
        role, generation = struct.unpack_from("!I4xQ", body)
        if role in (MASTER, SLAVE):
            if self.generation is not None and (generation - self.generation) & (1 << 63):
                raise Refusal(wire.ROLE_REQUEST_FAILED, 0)
            self.generation = generation
        elif role > SLAVE:
            raise Refusal(wire.ROLE_REQUEST_FAILED, 2)
        if role == MASTER:
            for other in self.sessions:
                if other.role == MASTER:
                    other.role = SLAVE
        session.role = role or session.role
        unknown = (1 << 64) - 1
        return struct.pack("!I4xQ", session.role, unknown if self.generation is None else self.generation)

    # --- flows

    def _flow_mod(self, session: Session, mod: FlowMod, xid: int) -> list[bytes]:
        if self.faults.refuse_flows is not None:
            raise Refusal(*self.faults.refuse_flows)
        changed = self.tables.apply(mod)
        self.flow_mods += 1
        return self._news(session, xid, changed)

    def _news(self, session: Session, xid: int, changed: list[Changed]) -> list[bytes]:
        """Tell who asked to be told; gives what goes to the session that made the change."""
        own: list[bytes] = []
        for other in self.sessions:
            out = []
            if other.role != SLAVE:
                out += [
                    self._removed(other, change) for change in changed
                    if change.new is None and change.old is not None and change.old.flags & wire.SEND_FLOW_REMOVED
                ]  # fmt: skip
            for monitor in other.monitors.values():
                updates = _updates(monitor, changed, xid if other is session else None)
                if updates:
                    out.append(_flow_updates(other, updates))
            if other is session:
                own = out
            elif out and not self.faults.silent:
                other.send(b"".join(out))
        return own

    def _removed(self, session: Session, change: Changed) -> bytes:
        old = change.old
        assert old is not None
        idle, hard, _, _ = SETTINGS.unpack(old.settings)
        head = struct.pack(
            "!8sHBBIIHHQQ", old.cookie, priority_of(change.key), 2, table_of(change.key), 0, 0, idle, hard,
            *self.tables.counters(change.key),
        )  # fmt: skip
        return session.reply(wire.FLOW_REMOVED, 0, head + old.match)

    # --- bundles

    def _bundle_add(self, session: Session, xid: int, body: bytes) -> list[bytes]:
        bundle, _, _ = struct.unpack_from("!I2xHB", body)
        inner = body[8:]
        version, kind, length, inner_xid = wire.HEADER.unpack_from(inner)
        if inner_xid != xid:
            raise Refusal(wire.BUNDLE_FAILED, wire.BUNDLE_BAD_XID)
        if version != session.version or length > len(inner):
            raise Refusal(wire.BAD_REQUEST, wire.BAD_LENGTH)
        if kind != wire.FLOW_MOD:
            raise Refusal(wire.BUNDLE_FAILED, wire.BUNDLE_UNSUPPORTED)
        mod = read(inner[8:length])
        # Like Open vSwitch: an addition to a bundle that was not opened opens it.
        session.bundles.setdefault(bundle, []).append((xid, mod))
        return []

    def _bundle_control(self, session: Session, xid: int, body: bytes) -> tuple[bytes, list[bytes]]:
        """The answer, and news that go before it."""
        bundle, kind, flags = wire.BUNDLE.unpack_from(body)
        said: list[bytes] = []
        match kind:
            case wire.OPEN:
                if bundle in session.bundles:
                    del session.bundles[bundle]
                    raise Refusal(wire.BUNDLE_FAILED, wire.BUNDLE_EXISTS)
                session.bundles[bundle] = []
            case wire.CLOSE:
                if bundle not in session.bundles:
                    raise Refusal(wire.BUNDLE_FAILED, wire.BUNDLE_BAD_ID)
            case wire.COMMIT | wire.DISCARD:
                if bundle not in session.bundles:
                    raise Refusal(wire.BUNDLE_FAILED, wire.BUNDLE_BAD_ID)
                parts = session.bundles.pop(bundle)
                if kind == wire.COMMIT:
                    said = self._commit(session, xid, parts)
            case _:
                raise Refusal(wire.BUNDLE_FAILED, wire.BUNDLE_BAD_TYPE)
        return wire.BUNDLE.pack(bundle, kind + 1, flags), said

    def _commit(self, session: Session, xid: int, parts: list[tuple[int, FlowMod]]) -> list[bytes]:
        if self.faults.refuse_commits is not None:
            raise Refusal(*self.faults.refuse_commits)
        done: list[Changed] = []
        for part_xid, mod in parts:
            try:
                if self.faults.refuse_flows is not None:
                    raise Refusal(*self.faults.refuse_flows)
                done += self.tables.apply(mod)
            except Refusal as refusal:
                self.tables.undo(done)
                if not self.faults.silent:
                    session.send(session.error(part_xid, refusal, b""))
                raise Refusal(wire.BUNDLE_FAILED, wire.BUNDLE_MSG_FAILED) from refusal
        self.flow_mods += len(parts)
        return self._news(session, xid, done)

    def _experimenter(self, session: Session, xid: int, body: bytes) -> list[bytes]:
        experimenter, kind = struct.unpack_from("!II", body)
        if (experimenter, kind) == (wire.NICIRA, wire.CT_FLUSH_ZONE):
            if session.role == SLAVE:
                raise Refusal(wire.BAD_REQUEST, wire.IS_SLAVE)
            return []  # it forwards nothing, and remembers no connection
        if experimenter != wire.ONF or session.version != wire.V13:
            raise Refusal(wire.BAD_REQUEST, wire.BAD_EXPERIMENTER)
        if kind == wire.ONF_BUNDLE_ADD:
            return self._bundle_add(session, xid, body[8:])
        if kind == wire.ONF_BUNDLE_CONTROL:
            answer, said = self._bundle_control(session, xid, body[8:])
            return [*said, session.reply(wire.EXPERIMENTER, xid, body[:8] + answer)]
        raise Refusal(wire.BAD_REQUEST, wire.BAD_EXPERIMENTER)

    # --- meters

    def _meter_mod(self, session: Session, body: bytes, xid: int) -> list[bytes]:
        command, flags, meter = struct.unpack_from("!HHI", body)
        if command == 0:
            if meter in self._meters:
                raise Refusal(wire.METER_MOD_FAILED, 1)
            self._meters[meter] = (flags, body[8:])
        elif command == 1:
            if meter not in self._meters:
                raise Refusal(wire.METER_MOD_FAILED, 3)
            self._meters[meter] = (flags, body[8:])
        elif command == 2:
            gone = list(self._meters) if meter == wire.ANY else [meter]
            for one in gone:
                self._meters.pop(one, None)
            # Deleting a meter deletes the flows that use it.
            users = [key for key, one in self.tables.entries.items() if wire.meter_of(one.instructions) in gone]
            return self._news(session, xid, [Changed(key, self.tables.entries.pop(key), None) for key in users])
        else:
            raise Refusal(wire.METER_MOD_FAILED, 4)
        return []

    def _meters_asked(self, body: bytes) -> Mapping[int, tuple[int, bytes]]:
        (wanted,) = struct.unpack_from("!I", body)
        if wanted == wire.ANY:
            return self._meters
        return {wanted: self._meters[wanted]} if wanted in self._meters else {}

    # --- multiparts

    def _multipart(self, session: Session, xid: int, body: bytes) -> list[bytes]:
        kind, _ = struct.unpack_from("!HH", body)
        if kind in self.faults.refuse_multiparts:
            raise Refusal(wire.BAD_REQUEST, wire.BAD_MULTIPART)
        rest = body[8:]
        match kind:
            case wire.MP_DESC:
                texts = (("Lark", 256), ("fake switch", 256), ("fake", 256), ("None", 32), (self.description, 256))
                parts = [b"".join(text.encode()[: size - 1].ljust(size, b"\0") for text, size in texts)]
            case wire.MP_FLOW:
                parts = [self.tables.stats_bytes(key, entry) for key, entry in self.tables.stats(rest)]
            case wire.MP_AGGREGATE:
                found = [self.tables.counters(key) for key, _ in self.tables.stats(rest)]
                totals = (sum(packets for packets, _ in found), sum(octets for _, octets in found))
                parts = [struct.pack("!QQI4x", *totals, len(found))]
            case wire.MP_TABLE:
                held = Counter(map(table_of, self.tables.entries))
                parts = [struct.pack("!B3xIQQ", table, held[table], 0, 0) for table in range(self.tables.number)]
            case wire.MP_PORT:
                (wanted,) = struct.unpack_from("!I", rest)
                numbers = [number for number in sorted(self.ports) if wanted in (number, wire.ANY)]
                parts = [_port_stats(session.version, number) for number in numbers]
            case wire.MP_PORT_DESC:
                parts = [wire.port_desc(session.version, number, name) for number, name in sorted(self.ports.items())]
            case wire.MP_QUEUE | wire.MP_GROUP | wire.MP_GROUP_DESC:
                parts = []
            case wire.MP_TABLE_FEATURES:
                # `ovs-ofctl` asks for the tables' names: one without, and with the properties that must be there.
                must = b"".join(struct.pack("!HH4x", kind, 4) for kind in range(0, 16, 2))
                parts = [struct.pack("!HB5x32sQQII", 64 + len(must), 0, b"", 0, 0, 0, 1_000_000) + must]
            case wire.MP_METER:
                parts = [_meter_stats(meter, bands) for meter, (_, bands) in self._meters_asked(rest).items()]
            case wire.MP_METER_CONFIG:
                parts = [
                    struct.pack("!HHI", 8 + len(bands), flags, meter) + bands
                    for meter, (flags, bands) in self._meters_asked(rest).items()
                ]
            case wire.MP_METER_FEATURES:
                parts = [struct.pack("!IIIBB2x", 65_536, 1 << 1, 0xF, 1, 0)]
            case wire.MP_FLOW_MONITOR if session.version == wire.V14:
                parts = self._monitor(session, rest)
            case _:
                raise Refusal(wire.BAD_REQUEST, wire.BAD_MULTIPART)
        return list(_parts(session, kind, xid, parts))

    def _monitor(self, session: Session, body: bytes) -> list[bytes]:
        id, port, group, flags, table, command = struct.unpack_from("!IIIHBB", body)
        if command == 2:
            session.monitors.pop(id, None)
            return []
        match = body[16 : wire.match_end(body, 16)]
        monitor = session.monitors[id] = _Monitor(id, flags, table, match, port, group)
        if not flags & INITIAL:
            return []
        found = [(key, entry) for key, entry in self.tables.select(table, match) if _watched(monitor, entry)]
        return [_full(monitor, EVENT_INITIAL, key, entry) for key, entry in found]

    def _tell_port(self, reason: int, number: int, name: str) -> None:
        for session in self.sessions:
            if session.version and not self.faults.silent:
                news = struct.pack("!B7x", reason) + wire.port_desc(session.version, number, name)
                session.send(session.reply(wire.PORT_STATUS, 0, news))


def _parts(session: Session, kind: int, xid: int, parts: Sequence[bytes]) -> Iterable[bytes]:
    """A multipart reply, in as many messages as it needs."""
    at = 0
    while True:
        size, first = 0, at
        while at < len(parts) and (at == first or size + len(parts[at]) <= PART):
            size += len(parts[at])
            at += 1
        more = at < len(parts)
        head = struct.pack("!HH4x", kind, wire.MORE if more else 0)
        yield session.reply(wire.MULTIPART_REPLY, xid, head + b"".join(parts[first:at]))
        if not more:
            return


def _port_stats(version: int, number: int) -> bytes:
    if version == wire.V13:
        return struct.pack("!I4x12QII", number, *(12 * [0]), 0, 0)
    return struct.pack("!H2xIII8Q", 120, number, 0, 0, *(8 * [0])) + struct.pack("!HH4x4Q", 0, 40, *(4 * [0]))


def _meter_stats(meter: int, bands: bytes) -> bytes:
    number = 0
    at = 0
    while at + 4 <= len(bands):
        at += max(8, int.from_bytes(bands[at + 2 : at + 4], "big"))
        number += 1
    return struct.pack("!IH6xIQQII", meter, 40 + 16 * number, 0, 0, 0, 0, 0) + bytes(16 * number)


def _watched(monitor: _Monitor, entry: Entry) -> bool:
    return wire.outputs_to(entry.instructions, monitor.port, monitor.group)


def _updates(monitor: _Monitor, changed: list[Changed], own_xid: int | None) -> list[bytes]:
    """What a monitor tells of changes. Its session's own ones are told in short."""
    out: list[bytes] = []
    for change in changed:
        entry = change.new or change.old
        assert entry is not None
        event, wanted = (
            (EVENT_ADDED, WATCH_ADD) if change.old is None
            else (EVENT_REMOVED, WATCH_REMOVED) if change.new is None
            else (EVENT_MODIFIED, WATCH_MODIFY)
        )  # fmt: skip
        if not monitor.flags & wanted or monitor.table not in (wire.ALL_TABLES, table_of(change.key)):
            continue
        if not wire.covers(monitor.match, entry.match) or not _watched(monitor, entry):
            continue
        if own_xid is None or monitor.flags & OWN:
            out.append(_full(monitor, event, change.key, entry))
        elif not out:
            out.append(struct.pack("!HHI", 8, EVENT_ABBREVIATED, own_xid))
    return out


def _full(monitor: _Monitor, event: int, key: Key, entry: Entry) -> bytes:
    idle, hard, _, _ = SETTINGS.unpack(entry.settings)
    tail = entry.match + (entry.instructions if monitor.flags & WITH_INSTRUCTIONS else b"")
    reason = 2 if event == EVENT_REMOVED else 0
    return (
        struct.pack(
            "!HHBBHHH4x8s", 24 + len(tail), event, table_of(key), reason, idle, hard, priority_of(key), entry.cookie
        )
        + tail
    )


def _flow_updates(session: Session, updates: Sequence[bytes]) -> bytes:
    return b"".join(_parts(session, wire.MP_FLOW_MONITOR, 0, updates))
