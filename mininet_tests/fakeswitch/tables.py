"""The flow tables of a fake switch: what flow-mods do to them, as OpenFlow and Open vSwitch have it. Pure.

Invariants: an entry is found by table, priority and the meaning of its match; it is kept as the bytes it came in, and
shown as them. Nothing is done by halves: a flow-mod that raises Refusal has changed nothing. No entry expires (there is
no clock here), none is hit by a packet (`count` plays that).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from mininet_tests.fakeswitch import wire
from mininet_tests.fakeswitch.wire import Refusal

Key = bytes
"""Table, priority, canonical match."""
KEY = struct.Struct("!BH")
POOLED = 65_536
_pool: dict[bytes, bytes] = {}


def _pooled(data: bytes) -> bytes:
    """The same bytes, kept once: a thousand switches hold mostly the same flows."""
    if len(_pool) >= POOLED:
        _pool.clear()
    return _pool.setdefault(data, data)


@dataclass(slots=True)
class Entry:
    """One flow. `head`: cookie, both timeouts, flags, importance, as in a flow-mod."""

    cookie: bytes
    settings: bytes
    match: bytes
    instructions: bytes

    @property
    def flags(self) -> int:
        return int.from_bytes(self.settings[4:6], "big")


SETTINGS = struct.Struct("!HHHH")
"""idle, hard, flags, importance"""


@dataclass(frozen=True, slots=True)
class FlowMod:
    """A flow-mod, read."""

    cookie: int
    cookie_mask: int
    table: int
    command: int
    priority: int
    out_port: int
    out_group: int
    settings: bytes
    match: bytes
    instructions: bytes

    @property
    def flags(self) -> int:
        return int.from_bytes(self.settings[4:6], "big")


def read(body: bytes) -> FlowMod:
    """The body of a flow-mod message. Raises Refusal."""
    if len(body) < wire.FLOW_MOD_BODY.size + 8:
        raise Refusal(wire.BAD_REQUEST, wire.BAD_LENGTH)
    cookie, mask, table, command, idle, hard, priority, _, port, group, flags, importance = (
        wire.FLOW_MOD_BODY.unpack_from(body)
    )
    if command > wire.DELETE_STRICT:
        raise Refusal(wire.FLOW_MOD_FAILED, wire.BAD_COMMAND)
    at = wire.FLOW_MOD_BODY.size
    end = wire.match_end(body, at)
    instructions = body[end:]
    for _ in wire.instructions(instructions):
        pass
    return FlowMod(
        cookie, mask, table, command, priority, port, group,
        SETTINGS.pack(idle, hard, flags, importance), body[at:end], instructions,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Changed:
    """What a flow-mod did to one entry. `old` and `new`: None for none."""

    key: Key
    old: Entry | None
    new: Entry | None


def table_of(key: Key) -> int:
    return key[0]


def priority_of(key: Key) -> int:
    return int.from_bytes(key[1:3], "big")


class Tables:
    """All flow tables of a switch. `capacity`: entries in all before the tables are full; None: no limit."""

    def __init__(self, tables: int = 254) -> None:
        self.entries: dict[Key, Entry] = {}
        self.capacity: int | None = None
        self.number = tables
        self._counters: dict[Key, tuple[int, int]] = {}

    def counters(self, key: Key) -> tuple[int, int]:
        """Packets and bytes."""
        return self._counters.get(key, (0, 0))

    def count(self, key: Key, packets: int, octets: int) -> None:
        """Play traffic: the entry was hit so often more."""
        if key not in self.entries:
            raise KeyError(key)
        before = self.counters(key)
        self._counters[key] = (before[0] + packets, before[1] + octets)

    def apply(self, mod: FlowMod) -> list[Changed]:
        """Carry a flow-mod out. Raises Refusal."""
        if mod.command == wire.ADD:
            return [self._add(mod)]
        if mod.table >= self.number and mod.table != wire.ALL_TABLES:
            raise Refusal(wire.FLOW_MOD_FAILED, wire.BAD_TABLE_ID)
        strict = mod.command in (wire.MODIFY_STRICT, wire.DELETE_STRICT)
        hit = list(self._strictly(mod) if strict else self._loosely(mod))
        changed = []
        for key in hit:
            old = self.entries[key]
            if mod.command in (wire.DELETE, wire.DELETE_STRICT):
                del self.entries[key]
                self._counters.pop(key, None)
                changed.append(Changed(key, old, None))
            else:
                new = Entry(old.cookie, old.settings, old.match, _pooled(mod.instructions))
                if mod.flags & wire.RESET_COUNTS:
                    self._counters.pop(key, None)
                self.entries[key] = new
                changed.append(Changed(key, old, new))
        return changed

    def undo(self, changes: list[Changed]) -> None:
        """Take back what `apply` did, the last first."""
        for change in reversed(changes):
            if change.old is None:
                self.entries.pop(change.key, None)
            else:
                self.entries[change.key] = change.old

    def _add(self, mod: FlowMod) -> Changed:
        if mod.table >= self.number:
            # Like Open vSwitch: the last table is its own.
            raise Refusal(
                *(wire.NOT_ALLOWED if mod.table == self.number else (wire.FLOW_MOD_FAILED, wire.BAD_TABLE_ID))
            )
        key = KEY.pack(mod.table, mod.priority) + wire.canonical(mod.match)
        old = self.entries.get(key)
        if mod.flags & wire.CHECK_OVERLAP:
            same = [k for k in self.entries if k[:3] == key[:3] and k != key]
            if any(wire.overlap(mod.match, self.entries[k].match) for k in same):
                raise Refusal(wire.FLOW_MOD_FAILED, wire.OVERLAP)
        if old is None and self.capacity is not None and len(self.entries) >= self.capacity:
            raise Refusal(wire.FLOW_MOD_FAILED, wire.TABLE_FULL)
        cookie = mod.cookie.to_bytes(8, "big")
        new = Entry(_pooled(cookie), _pooled(mod.settings), _pooled(mod.match), _pooled(mod.instructions))
        if mod.flags & wire.RESET_COUNTS:
            self._counters.pop(key, None)
        self.entries[_pooled(key)] = new
        return Changed(key, old, new)

    def _chosen(self, entry: Entry, mod: FlowMod) -> bool:
        if (int.from_bytes(entry.cookie, "big") ^ mod.cookie) & mod.cookie_mask:
            return False
        deletes = mod.command in (wire.DELETE, wire.DELETE_STRICT)
        return not deletes or wire.outputs_to(entry.instructions, mod.out_port, mod.out_group)

    def _strictly(self, mod: FlowMod) -> Iterator[Key]:
        tail = mod.priority.to_bytes(2, "big") + wire.canonical(mod.match)
        tables = range(self.number) if mod.table == wire.ALL_TABLES else (mod.table,)
        for table in tables:
            key = bytes((table,)) + tail
            entry = self.entries.get(key)
            if entry is not None and self._chosen(entry, mod):
                yield key

    def _loosely(self, mod: FlowMod) -> Iterator[Key]:
        for key, entry in self.select(mod.table, mod.match):
            if self._chosen(entry, mod):
                yield key

    def select(self, table: int, match: bytes) -> Iterator[tuple[Key, Entry]]:
        """Entries of a table (or of all) that are at least as narrow as a match."""
        every = not any(wire.fields(match))
        for key, entry in self.entries.items():
            if (table in (wire.ALL_TABLES, key[0])) and (every or wire.covers(match, entry.match)):
                yield key, entry

    def stats(self, body: bytes) -> list[tuple[Key, Entry]]:
        """Entries that a flow or aggregate request asks for. Raises Refusal."""
        if len(body) < wire.STATS_REQUEST.size + 8:
            raise Refusal(wire.BAD_REQUEST, wire.BAD_LENGTH)
        table, port, group, cookie, mask = wire.STATS_REQUEST.unpack_from(body)
        at = wire.STATS_REQUEST.size
        found = self.select(table, body[at : wire.match_end(body, at)])
        return [
            (key, entry)
            for key, entry in found
            if not (int.from_bytes(entry.cookie, "big") ^ cookie) & mask
            and wire.outputs_to(entry.instructions, port, group)
        ]

    def stats_bytes(self, key: Key, entry: Entry) -> bytes:
        """An entry as a flow-stats reply shows it. Its duration is always 0."""
        idle, hard, flags, importance = SETTINGS.unpack(entry.settings)
        tail = entry.match + entry.instructions
        return (
            wire.FLOW_STATS.pack(
                wire.FLOW_STATS.size + len(tail), table_of(key), 0, 0, priority_of(key), idle, hard, flags, importance,
                int.from_bytes(entry.cookie, "big"), *self.counters(key),
            )
            + tail
        )  # fmt: skip
