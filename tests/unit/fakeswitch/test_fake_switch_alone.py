"""The fake switch without a connection: what no `ovs-ofctl` can send, and what its users rely on. What a real switch
does in the same place is compared in mininet_tests/test_fakeswitch.py."""

from __future__ import annotations

import struct

import pytest

from mininet_tests.fakeswitch import FakeSwitch, Session, wire
from mininet_tests.fakeswitch.__main__ import prepare
from ryu_apps.openflow import decode, encode
from ryu_apps.openflow.flows import Cookie, FieldMatch, Flow, Goto, Output, match


def flow(number: int) -> Flow:
    """One of many that differ."""
    matches = match(FieldMatch("in_port", number), FieldMatch("nw_src", number << 8, 0xFFFFFF00))
    return Flow(3, 200, matches, (Output(number), Goto(4)), Cookie(0x4C02_0000_0000_0000 + number))


class Wire:
    """A session and what it said, as (type, xid, body)."""

    def __init__(self, switch: FakeSwitch, version: int = wire.V14) -> None:
        self.said: list[tuple[int, int, bytes]] = []
        self.version = version
        self.session: Session = switch.session(self._hear)
        self.session.begin()
        self.send(wire.HELLO, 0, struct.pack("!HHI", 1, 8, 1 << version))
        self.said.clear()

    def _hear(self, data: bytes) -> None:
        while data:
            _, kind, length, xid = wire.HEADER.unpack_from(data)
            self.said.append((kind, xid, data[8:length]))
            data = data[length:]

    def send(self, kind: int, xid: int, body: bytes = b"") -> None:
        self.session.receive(wire.message(self.version, kind, xid, body))

    def raw(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """What is said to these bytes."""
        before = len(self.said)
        self.session.receive(data)
        return self.said[before:]

    def errors(self) -> list[tuple[int, tuple[int, int]]]:
        return [(xid, struct.unpack_from("!HH", body)) for kind, xid, body in self.said if kind == wire.ERROR]


@pytest.fixture
def switch() -> FakeSwitch:
    return FakeSwitch(0x77)


def add(number: int, xid: int = 5) -> bytes:
    return encode.add_flow(flow(number), xid)


def bundle(*messages: bytes, number: int = 1) -> bytes:
    parts = [encode.bundle_add(number, message) for message in messages]
    return b"".join([encode.bundle_open(number, 1), *parts, encode.bundle_commit(number, 2), encode.barrier(3)])


def test_messages_are_taken_in_whatever_pieces_they_come(switch: FakeSwitch) -> None:
    here = Wire(switch)
    data = add(1) + add(2) + encode.barrier(9)
    for at in range(len(data)):
        here.raw(data[at : at + 1])
    assert here.said == [(wire.BARRIER_REPLY, 9, b"")]
    assert len(switch.tables.entries) == 2


def test_a_dump_gives_back_the_bytes_that_were_written(switch: FakeSwitch) -> None:
    here = Wire(switch)
    here.raw(add(1) + add(2))
    (kind, xid, body), *rest = here.raw(encode.flow_stats_request(8))
    assert (kind, xid, rest) == (wire.MULTIPART_REPLY, 8, [])
    read = decode.flow_entries(wire.message(wire.V14, kind, xid, body))
    wanted = {encode.entry_key(flow(n)): encode.entry_value(flow(n)) for n in (1, 2)}
    assert (dict(read.entries), read.more) == (wanted, False)


def test_a_bundle_that_fails_leaves_everything_as_it_was(switch: FakeSwitch) -> None:
    here = Wire(switch)
    assert [kind for kind, _, _ in here.raw(bundle(add(1), add(2)))] == [
        wire.BUNDLE_CONTROL, wire.BUNDLE_CONTROL, wire.BARRIER_REPLY,
    ]  # fmt: skip
    assert (len(switch.tables.entries), switch.flow_mods) == (2, 2)
    before = dict(switch.tables.entries)
    switch.tables.capacity = 3
    gone = encode.take_entry(encode.entry_key(flow(1)), 11)
    here.raw(bundle(gone, add(3, 12), add(4, 13), add(5, 14)))
    assert here.errors() == [(14, (wire.FLOW_MOD_FAILED, wire.TABLE_FULL)), (2, (17, 13))]
    assert (switch.tables.entries, switch.flow_mods) == (before, 2)
    # With room it is the same bundle that goes through.
    switch.tables.capacity = None
    here.raw(bundle(gone, add(3, 12), add(4, 13), add(5, 14)))
    assert len(switch.tables.entries) == 4


def test_a_part_that_cannot_be_read_is_refused_and_the_rest_is_committed(switch: FakeSwitch) -> None:
    """As Open vSwitch does: whoever wants all or nothing looks before the commit."""
    here = Wire(switch)
    bad = bytearray(add(1, 21))
    bad[8 + 40 : 8 + 44] = struct.pack("!HH", 7, 4)
    here.raw(bundle(bytes(bad), add(2, 22)))
    assert [xid for xid, _ in here.errors()] == [21]
    assert len(switch.tables.entries) == 1


def test_only_the_master_writes_and_an_old_generation_is_refused(switch: FakeSwitch) -> None:
    first, second = Wire(switch), Wire(switch)
    first.raw(encode.role_request(1, master=True, generation=7))
    second.raw(encode.role_request(1, master=True, generation=8))
    first.raw(add(1, 31))
    second.raw(add(2, 32))
    assert first.errors() == [(31, (wire.BAD_REQUEST, wire.IS_SLAVE))]
    assert second.errors() == []
    first.raw(encode.role_request(41, master=True, generation=7))
    assert first.errors()[-1] == (41, (wire.ROLE_REQUEST_FAILED, 0))
    assert len(switch.tables.entries) == 1


def test_a_monitor_tells_of_others_in_full_and_of_its_own_in_short(switch: FakeSwitch) -> None:
    here, other = Wire(switch), Wire(switch)
    here.raw(encode.monitor_request(4, 1))
    here.said.clear()
    here.raw(add(1))
    assert [_others(one) for one in here.said] == [False]
    here.said.clear()
    other.raw(add(2))
    assert [_others(one) for one in here.said] == [True]


def _others(said: tuple[int, int, bytes]) -> bool:
    kind, xid, body = said
    return decode.changed_by_others(wire.message(wire.V14, kind, xid, body))


def test_held_barriers_are_answered_in_the_end_and_a_silent_switch_says_nothing(switch: FakeSwitch) -> None:
    here = Wire(switch)
    switch.faults.hold_barriers = True
    assert here.raw(add(1) + encode.barrier(6)) == []
    switch.release()
    assert here.said == [(wire.BARRIER_REPLY, 6, b"")]
    switch.faults.silent = True
    assert here.raw(add(2) + encode.barrier(7)) == []
    assert len(switch.tables.entries) == 2


def test_refusals_on_demand_change_nothing(switch: FakeSwitch) -> None:
    here = Wire(switch)
    switch.faults.refuse_flows = (5, 0)
    here.raw(add(1, 51))
    assert here.errors() == [(51, (5, 0))]
    switch.faults.refuse_flows = None
    switch.faults.refuse_commits = (17, 0)
    here.raw(bundle(add(1)))
    assert here.errors()[-1] == (2, (17, 0))
    assert switch.tables.entries == {}
    switch.faults.refuse_multiparts = frozenset({wire.MP_FLOW_MONITOR})
    here.raw(encode.monitor_request(52, 1))
    assert here.errors()[-1] == (52, (wire.BAD_REQUEST, wire.BAD_MULTIPART))


def test_ports_that_come_and_go_are_told(switch: FakeSwitch) -> None:
    here = Wire(switch)
    switch.add_port(3, "lj1-3")
    switch.remove_port(3)
    assert [(kind, body[0]) for kind, _, body in here.said] == [(wire.PORT_STATUS, 0), (wire.PORT_STATUS, 1)]


def test_what_breaks_the_protocol_ends_the_connection_and_what_is_unknown_is_an_error(switch: FakeSwitch) -> None:
    here = Wire(switch)
    here.send(99, 61)
    here.session.receive(wire.message(wire.V13, wire.ECHO_REQUEST, 62))
    here.send(wire.FLOW_MOD, 63, b"short")
    assert [code for _, code in here.errors()] == [(1, 1), (1, 0), (1, 6)]
    assert here.session.broken == ""
    here.session.receive(bytes((5, 0, 0, 4, 0, 0, 0, 0)))
    assert here.session.broken
    stranger = switch.session(lambda data: None)
    stranger.begin()
    stranger.receive(wire.message(1, wire.HELLO, 0))
    assert "version" in stranger.broken


def test_a_switch_prepared_for_lark_has_its_lane_and_says_so(switch: FakeSwitch) -> None:
    prepare(switch)
    (entry,) = switch.tables.entries.values()
    assert entry.cookie.hex() == "4c01000000000000"
    here = Wire(switch)
    (_, _, body), *_ = here.raw(encode.description_request(5))
    assert b"fail_mode=secure" in body


def test_equal_matches_are_one_flow_however_they_are_written() -> None:
    def written(*parts: bytes) -> bytes:
        data = b"".join(parts)
        return (struct.pack("!HH", 1, 4 + len(data)) + data).ljust(-(-(4 + len(data)) // 8) * 8, b"\0")

    ip = bytes.fromhex("80000a02 0800")
    net = bytes.fromhex("80001908 0a000000 ff000000")
    host = bytes.fromhex("80001908 0a000001 ffffffff")
    exact = bytes.fromhex("80001804 0a000001")
    loose = bytes.fromhex("80001908 0a0000ff ff000000")
    nothing = bytes.fromhex("80001908 0a000000 00000000")
    assert wire.canonical(written(ip, net)) == wire.canonical(written(net, ip)) == wire.canonical(written(ip, loose))
    assert wire.canonical(written(ip, host)) == wire.canonical(written(ip, exact)) != wire.canonical(written(ip, net))
    assert wire.canonical(written(ip, nothing)) == wire.canonical(written(ip))
    assert wire.covers(written(ip, net), written(ip, exact))
    assert not wire.covers(written(ip, exact), written(ip, net))
    assert wire.covers(written(), written(ip))
    assert not wire.covers(written(ip), written())
    assert wire.overlap(written(ip, net), written(ip, exact))
    assert not wire.overlap(written(ip, exact), written(ip, bytes.fromhex("80001804 0b000001")))


def test_to_empty_a_zone_is_understood_but_not_from_a_slave(switch: FakeSwitch) -> None:
    here = Wire(switch)
    here.raw(encode.forget_zone(7, 5))
    assert [kind for kind, _, _ in here.raw(encode.barrier(6))] == [wire.BARRIER_REPLY]
    assert here.errors() == []
    here.raw(encode.role_request(7, master=False, generation=1))
    here.raw(encode.forget_zone(7, 8))
    assert here.errors() == [(8, (wire.BAD_REQUEST, wire.IS_SLAVE))]
