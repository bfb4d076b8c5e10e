"""Flow values to bytes and back: the inverse of each other, refused where not, and read alike by the framework.

That Open vSwitch agrees is shown by `mininet_tests/test_switch_on_both_engines.py`.
"""

from __future__ import annotations

import contextlib
import struct
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from os_ken.ofproto import ofproto_v1_4, ofproto_v1_4_parser

from mininet_tests.switch_flows import attempt, every_kind
from ryu_apps.openflow import cookies, decode, encode, fields, oxm
from ryu_apps.openflow.flows import (
    ConnTrack,
    Cookie,
    FieldMatch,
    Flow,
    Goto,
    Match,
    Move,
    Normal,
    Output,
    OutputReg,
    SetField,
    match,
)
from tests.effort import examples

KINDS = list(every_kind().values())


def entry(flow: Flow, *, idle: int = 0, tail: bytes = b"", match_bytes: bytes | None = None) -> bytes:
    body = (encode.match_bytes(flow.match) if match_bytes is None else match_bytes) + (
        encode.instructions(flow.actions) + tail
    )
    return (
        decode.ENTRY.pack(
            decode.ENTRY.size + len(body), flow.table, 1, 2, flow.priority, idle, 0, 0, 0, flow.cookie, 11, 1300
        )
        + body
    )


def reply(*entries: bytes, more: bool = False, xid: int = 7) -> bytes:
    body = struct.pack("!HH4x", encode.MP_FLOW, int(more)) + b"".join(entries)
    return encode.HEADER.pack(encode.VERSION, encode.MULTIPART_REPLY, 8 + len(body), xid) + body


def test_every_kind_of_flow_comes_back_equal() -> None:
    read = decode.flow_stats(reply(*(entry(flow) for flow in KINDS), more=True))
    assert [one.flow for one in read.entries] == KINDS
    assert (read.xid, read.more) == (7, True)
    assert {(one.packets, one.bytes) for one in read.entries} == {(11, 1300)}


def test_counters_are_those_of_the_whole_entries() -> None:
    message = reply(*(entry(flow) for flow in KINDS), more=True)
    whole = decode.flow_stats(message)
    counts = decode.counts(message)
    assert (counts.xid, counts.more) == (whole.xid, whole.more)
    assert counts.entries == [(e.table, e.priority, e.cookie, e.packets, e.bytes) for e in whole.entries]
    assert decode.counts(reply()).entries == []


def test_the_samples_hold_every_field_and_every_action() -> None:
    matched = {m.field for flow in KINDS for m in flow.match}
    assert matched >= set(oxm.MATCHABLE) - {"ct_zone", "ct_mark"}
    assert matched >= {name for name, spec in fields.FIELDS.items() if spec.matchable}
    kinds = {type(action) for flow in KINDS for action in flow.actions}
    assert kinds == {SetField, Move, Output, OutputReg, Normal, ConnTrack, Goto}


def test_widths_agree_with_the_table_of_fields() -> None:
    assert {name: oxm.WRITABLE[name].bits for name in fields.FIELDS} == {
        name: spec.width for name, spec in fields.FIELDS.items()
    }


# --- the framework's own parser as a second judge


def framework_reads(message: bytes) -> Any:
    datapath = SimpleNamespace(ofproto=ofproto_v1_4, ofproto_parser=ofproto_v1_4_parser)
    version, kind, length, xid = encode.HEADER.unpack_from(message)
    return ofproto_v1_4_parser.msg_parser(datapath, version, kind, length, xid, message)


@pytest.mark.parametrize("flow", KINDS, ids=lambda flow: f"{flow.table}-{flow.priority}")
def test_the_framework_reads_a_flow_mod_and_writes_the_same_bytes(flow: Flow) -> None:
    ours = encode.add_flow(flow, 5)
    read = ofproto_v1_4_parser.OFPFlowMod.parser(
        SimpleNamespace(ofproto=ofproto_v1_4, ofproto_parser=ofproto_v1_4_parser),
        5,
        encode.FLOW_MOD,
        len(ours),
        5,
        ours,
    )
    assert (read.table_id, read.priority, read.cookie, read.command) == (flow.table, flow.priority, flow.cookie, 0)
    # A tag whose priority matters is two fields on the wire.
    tags = sum(
        one.field == "vlan_tci" and bool((0xFFFF if one.mask is None else one.mask) & 0xE000) for one in flow.match
    )
    assert len(read.match.items()) == len(flow.match) + tags
    kinds = [type(one).__name__ for part in read.instructions for one in getattr(part, "actions", [part])]
    assert len(kinds) == len(flow.actions)
    assert not any("Unknown" in kind for kind in kinds)
    if any(isinstance(a, SetField) and a.width < oxm.WRITABLE[a.field].bits > 32 for a in flow.actions):
        # The framework can read a masked load of a wide field but not write it (its padding comes out negative).
        with pytest.raises(struct.error):
            read.serialize()
        return
    read.serialize()
    assert bytes(read.buf)[8:] == ours[8:]


def test_the_framework_reads_the_control_messages() -> None:
    opened = framework_reads(encode.bundle_open(9, 1))
    assert (opened.bundle_id, opened.type, opened.flags) == (9, ofproto_v1_4.OFPBCT_OPEN_REQUEST, 3)
    assert framework_reads(encode.bundle_commit(9, 1)).type == ofproto_v1_4.OFPBCT_COMMIT_REQUEST
    assert framework_reads(encode.bundle_discard(9, 1)).type == ofproto_v1_4.OFPBCT_DISCARD_REQUEST
    assert encode.barrier(0x1234)[1] == ofproto_v1_4.OFPT_BARRIER_REQUEST
    theirs = ofproto_v1_4_parser.OFPFlowStatsRequest(
        SimpleNamespace(ofproto=ofproto_v1_4, ofproto_parser=ofproto_v1_4_parser), cookie=0x4C, cookie_mask=0xFF
    )
    theirs.set_xid(3)
    theirs.serialize()
    assert bytes(theirs.buf) == encode.flow_stats_request(3, 0x4C, 0xFF)


def test_a_removal_is_strict_and_can_only_hit_larks_own() -> None:
    flow = attempt(3)
    ours = encode.take_entry(encode.entry_key(flow.key), 5)
    read = ofproto_v1_4_parser.OFPFlowMod.parser(
        SimpleNamespace(ofproto=ofproto_v1_4, ofproto_parser=ofproto_v1_4_parser),
        5,
        encode.FLOW_MOD,
        len(ours),
        5,
        ours,
    )
    assert read.command == ofproto_v1_4.OFPFC_DELETE_STRICT
    assert (read.table_id, read.priority) == (flow.table, flow.priority)
    assert cookies.explain(read.cookie | (cookies.Feature.NODE << 48)) is not None
    assert read.cookie_mask == 0xFF << 56
    assert (read.out_port, read.out_group) == (ofproto_v1_4.OFPP_ANY, ofproto_v1_4.OFPG_ANY)


def test_a_part_of_a_bundle_has_one_transaction_id_within_and_without() -> None:
    inner = encode.add_flow(attempt(1), 77)
    outer = encode.bundle_add(9, inner)
    assert encode.HEADER.unpack_from(outer)[3] == 77
    assert outer[16:] == inner


# --- any value


def values(name: str) -> st.SearchStrategy[FieldMatch]:
    field = oxm.MATCHABLE[name]
    value = st.integers(0, field.full)
    if not field.maskable or name == "vlan_tci":
        return st.builds(FieldMatch, st.just(name), value)
    masked = st.tuples(value, st.integers(1, field.full - 1)).map(lambda vm: FieldMatch(name, vm[0] & vm[1], vm[1]))
    return st.one_of(st.builds(FieldMatch, st.just(name), value), masked)


SOME_FIELDS = sorted(set(oxm.MATCHABLE) - {"vlan_tci"})
MATCHES = st.lists(st.sampled_from(SOME_FIELDS), unique=True, max_size=12).flatmap(
    lambda names: st.tuples(*(values(name) for name in names))
)


@settings(max_examples=examples(300), deadline=None)
@given(MATCHES)
def test_any_match_comes_back_equal(some: tuple[FieldMatch, ...]) -> None:
    wanted = match(*some)
    assert decode.match_value(encode.match_fields(wanted)) == wanted


@st.composite
def bits(draw: st.DrawFn, most: int = 128) -> tuple[str, int, int]:
    name = draw(st.sampled_from(sorted(set(oxm.WRITABLE) - {"vlan_tci"})))
    width = draw(st.integers(1, min(most, oxm.WRITABLE[name].bits)))
    return name, draw(st.integers(0, oxm.WRITABLE[name].bits - width)), width


@settings(max_examples=examples(300), deadline=None)
@given(bits(), bits(64), st.data())
def test_any_action_comes_back_equal(one: tuple[str, int, int], two: tuple[str, int, int], data: st.DataObject) -> None:
    name, low, width = one
    set_field = SetField(name, data.draw(st.integers(0, (1 << width) - 1)), low, width)
    move = Move(name, low, two[0], min(two[1], oxm.WRITABLE[two[0]].bits - 1), 1)
    out = OutputReg(two[0], two[1], two[2])
    actions = (set_field, move, out, Output(data.draw(st.integers(0, 0xFFFF).filter(lambda p: p != 0xFFFA))), Goto(200))
    flow = Flow(3, 1, (), actions, Cookie(0))
    assert decode.flow_stats(reply(entry(flow))).entries[0].flow == flow


def test_a_vlan_is_put_together_from_what_open_vswitch_answers() -> None:
    vid, pcp = struct.pack("!HBBH", 0x8000, 6 << 1, 2, 0x1064), struct.pack("!HBBB", 0x8000, 7 << 1, 1, 3)
    part = struct.pack("!HBBHH", 0x8000, 6 << 1 | 1, 4, 0x1000, 0x1000)
    assert decode.match_value(vid + pcp) == (FieldMatch("vlan_tci", 0x7064),)
    assert decode.match_value(vid) == (FieldMatch("vlan_tci", 0x1064, 0x1FFF),)
    assert decode.match_value(part) == (FieldMatch("vlan_tci", 0x1000, 0x1000),)


def test_reserved_ports_are_found_under_either_number() -> None:
    local = struct.pack("!HBBI", 0x8000, 0, 4, 0xFFFFFFFE)
    assert decode.match_value(local) == (FieldMatch("in_port", 0xFFFE),)
    assert [oxm.port_from_wire(oxm.port_to_wire(port)) for port in (1, 0xFEFF, 0xFF00, 0xFFFE)] == [
        1,
        0xFEFF,
        0xFF00,
        0xFFFE,
    ]
    with pytest.raises(ValueError, match="no 16-bit number"):
        oxm.port_from_wire(0xFFFE)


# --- what cannot come back equal is refused


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ((FieldMatch("reg0", 1, 0xFFFFFFFF),), "match it exactly"),
        ((FieldMatch("reg0", 0, 0),), "leave the field out"),
        ((FieldMatch("reg0", 3, 1),), "outside mask"),
        ((FieldMatch("reg0", 1 << 32),), "does not fit"),
        ((FieldMatch("reg0", -1),), "does not fit"),
        ((FieldMatch("dl_type", 0x800, 0xFF00),), "has no masks"),
        ((FieldMatch("xxreg0", 1),), "cannot be matched on"),
        ((FieldMatch("nonsense", 1),), "cannot be matched on"),
        ((FieldMatch("vlan_tci", 0),), "0/0x1fff"),
        ((FieldMatch("vlan_tci", 0x1000, 0x3000),), "priority bits"),
    ],
)
def test_matches_that_would_not_come_back_equal_are_refused(bad: Match, why: str) -> None:
    with pytest.raises(encode.EncodeError, match=why):
        encode.match_fields(bad)


@pytest.mark.parametrize(
    ("actions", "why"),
    [
        ((Goto(5), Output(1)), "goto must be the last"),
        ((SetField("reg0", 4, 0, 2),), "does not fit"),
        ((SetField("reg0", 0, 31, 2),), "outside its 32 bits"),
        ((SetField("reg0", 0, 0, 0),), "outside"),
        ((SetField("nonsense", 0, 0, 1),), "no such field"),
        ((SetField("vlan_tci", 0, 0, 16),), "cannot be written"),
        ((Move("reg0", 0, "nw_proto", 0, 32),), "outside its 8 bits"),
        ((ConnTrack(commit=True, zone_field="nw_proto", zone_low=0, recirc_table=None),), "outside its 8 bits"),
        ((Output(0x10000),), "16-bit port"),
        ((FieldMatch("reg0", 1),), "not an action"),
    ],
)
def test_actions_that_cannot_be_written_are_refused(actions: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        encode.instructions(actions)


# --- what others wrote


def test_an_entry_that_says_more_than_a_flow_is_reported_and_not_mistaken() -> None:
    flow = attempt(1)
    dec_ttl = struct.pack("!HHHH4x", 4, 16, 24, 8)[:8] + struct.pack("!HH4x", 24, 8)
    metadata = struct.pack("!HH4xQQ", 2, 24, 1, 1)
    foreign_match = encode.match_fields(flow.match) + struct.pack("!HBB", 0x8000, 8 << 1, 1) + b"\x09"  # ip_dscp
    raw = struct.pack("!HH", 1, 4 + len(foreign_match)) + foreign_match
    raw += bytes(-len(raw) % 8)
    plain = Flow(flow.table, flow.priority, flow.match, (), flow.cookie)
    read = decode.flow_stats(
        reply(
            entry(plain, tail=dec_ttl),
            entry(plain, tail=metadata),
            entry(flow, idle=5),
            entry(flow, match_bytes=raw),
            entry(flow),
        )
    ).entries
    assert [one.actions for one in read[:3]] == [None, None, None]
    assert [one.flow for one in read[:4]] == [None] * 4
    assert (read[3].match, read[3].key, read[3].stats, read[3].raw_match) == (None, None, None, raw)
    assert read[2].key == flow.key
    assert read[4].flow == flow, "what comes after it is read all the same"


@pytest.mark.parametrize(
    "cut",
    [
        lambda message: message[:12],
        lambda message: message[:-3],
        lambda message: message + b"\0",
        lambda message: message[:16] + b"\0\x05" + message[18:],
        lambda message: message[:16] + b"\xff\xff" + message[18:],
        lambda message: b"\x04" + message[1:],
    ],
)
def test_a_reply_that_breaks_openflow_is_an_error(cut: Any) -> None:
    whole = reply(entry(attempt(1)), entry(attempt(2)))
    assert len(decode.flow_stats(whole).entries) == len(decode.counts(whole).entries) == 2
    with pytest.raises(decode.DecodeError):
        decode.flow_stats(cut(whole))
    with pytest.raises(decode.DecodeError):
        decode.counts(cut(whole))


@settings(max_examples=examples(1500), deadline=None)
@given(st.data())
def test_bytes_of_a_hostile_switch_are_read_or_refused_never_worse(data: st.DataObject) -> None:
    message = bytearray(reply(*(entry(data.draw(st.sampled_from(KINDS))) for _ in range(2))))
    for _ in range(data.draw(st.integers(1, 6))):
        message[data.draw(st.integers(16, len(message) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = decode.flow_stats(bytes(message))
    except decode.DecodeError:
        return
    finally:
        with contextlib.suppress(decode.DecodeError):
            decode.counts(bytes(message))
    for one in read.entries:
        if one.flow is not None:
            hash(one.flow)


# --- entries: a dump as bytes


def test_a_dump_is_cut_into_the_very_bytes_that_were_sent() -> None:
    part = decode.flow_entries(reply(*(entry(flow) for flow in KINDS), more=True, xid=9))
    assert (part.xid, part.more) == (9, True)
    assert list(part.entries) == [(encode.entry_key(flow), encode.entry_value(flow)) for flow in KINDS]
    assert len({key for key, _ in part.entries}) == len(KINDS)


@pytest.mark.parametrize("flow", KINDS, ids=lambda flow: f"{flow.table}-{flow.priority}")
def test_an_entry_says_its_flow_and_is_its_own_canonical_form(flow: Flow) -> None:
    key, value = encode.entry_key(flow), encode.entry_value(flow)
    assert (encode.key_table(key), encode.key_priority(key), encode.value_cookie(value)) == (
        flow.table,
        flow.priority,
        flow.cookie,
    )
    assert (decode.key_match(key), decode.value_actions(value)) == (flow.match, flow.actions)
    assert decode.canonical(key, value) == (key, value)


def test_other_bytes_for_the_same_flow_become_the_same_entry() -> None:
    flow = Flow(
        5, 9, match(FieldMatch("in_port", 7), FieldMatch("reg0", 1)), (Move("nw_src", 0, "reg4", 0, 32),), Cookie(1)
    )
    nxm = struct.pack("!HBBH", 0, 0, 2, 7) + struct.pack("!HBBI", 1, 0, 4, 1)
    raw = (struct.pack("!HH", 1, 4 + len(nxm)) + nxm).ljust(24, b"\0")
    oxm_move = struct.pack("!HH4x", 4, 32) + struct.pack("!HHIHHHH", 0xFFFF, 24, 0x2320, 6, 32, 0, 0)
    oxm_move += struct.pack("!HBBHBB", 0x8000, 11 << 1, 4, 1, 4 << 1, 4)
    theirs = encode.entry_head(5, 9) + raw, (1).to_bytes(8, "big") + oxm_move
    ours = encode.entry_key(flow), encode.entry_value(flow)
    assert theirs[0] != ours[0]
    assert theirs[1] != ours[1]
    assert decode.canonical(*theirs) == ours


def test_an_entry_with_a_timeout_never_equals_one_of_ours() -> None:
    flow = attempt(1)
    ((key, value),) = decode.flow_entries(reply(entry(flow, idle=5))).entries
    assert key == encode.entry_key(flow)
    assert value != encode.entry_value(flow)
    assert decode.value_actions(value) is None
    assert decode.canonical(key, value) == (key, value)
    drop = Flow(5, 1, (), (), flow.cookie)
    ((_, value),) = decode.flow_entries(reply(entry(drop, idle=5))).entries
    assert value != encode.entry_value(drop)


def test_parts_of_a_bundle_are_the_same_as_one_by_one() -> None:
    items = [(encode.entry_key(flow), encode.entry_value(flow) if n % 3 else None) for n, flow in enumerate(KINDS)]
    single = [
        encode.bundle_add(7, encode.take_entry(key, 40 + n) if value is None else encode.put_entry(key, value, 40 + n))
        for n, (key, value) in enumerate(items)
    ]
    assert b"".join(encode.bundled(7, 40, items)) == b"".join(single)


def test_a_value_that_does_not_fit_names_its_own_action() -> None:
    with pytest.raises(encode.EncodeError, match="reg1: 0x4 does not fit into 2 bits"):
        encode.instructions((SetField("reg0", 4, 0, 3), SetField("reg1", 4, 0, 2)))
    assert encode.instructions((SetField("reg0", 4, 0, 3), SetField("reg1", 3, 0, 2)))


@pytest.mark.parametrize(
    "flow", [Flow(5, 1, (), (), Cookie(1 << 64)), Flow(5, 1 << 16, (), (), Cookie(1)), Flow(256, 1, (), (), Cookie(1))]
)
def test_a_flow_that_no_message_can_hold_is_refused(flow: Flow) -> None:
    with pytest.raises(encode.EncodeError):
        encode.add_flow(flow, 1)


@settings(max_examples=examples(1500), deadline=None)
@given(st.data())
def test_a_hostile_dump_is_cut_or_refused_never_worse(data: st.DataObject) -> None:
    message = bytearray(reply(*(entry(data.draw(st.sampled_from(KINDS))) for _ in range(2))))
    for _ in range(data.draw(st.integers(1, 6))):
        message[data.draw(st.integers(16, len(message) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = decode.flow_entries(bytes(message))
    except decode.DecodeError:
        return
    for key, value in read.entries:
        again = decode.canonical(key, value)
        assert decode.canonical(*again) == again
        encode.bundled(1, 1, [again, (again[0], None)])


def update(event: int, body: bytes = b"") -> bytes:
    return struct.pack("!HH", 4 + len(body), event) + body


def news(*updates: bytes) -> bytes:
    body = struct.pack("!HH4x", encode.MP_FLOW_MONITOR, 0) + b"".join(updates)
    return encode.HEADER.pack(encode.VERSION, encode.MULTIPART_REPLY, 8 + len(body), 0) + body


@pytest.mark.parametrize(
    ("updates", "others"),
    [
        ([], False),
        ([update(4, bytes(4))], False),
        ([update(5, bytes(4))], False),
        ([update(4, bytes(4)), update(2, bytes(28))], True),
        ([update(1, bytes(28))], True),
        ([update(3, bytes(28))], True),
        ([update(5, bytes(4)), update(6, bytes(4))], True),
    ],
)
def test_a_flow_monitor_tells_of_others_changes_only(updates: list[bytes], others: bool) -> None:
    assert decode.changed_by_others(news(*updates)) is others


@pytest.mark.parametrize("bad", [b"\0", b"\0\3\0\4", b"\0\0\0\4", b"\0\x20\0\4" + bytes(4)])
def test_a_broken_answer_of_a_flow_monitor_is_an_error(bad: bytes) -> None:
    with pytest.raises(decode.DecodeError):
        decode.changed_by_others(news(bad))


def test_the_framework_writes_the_same_requests() -> None:
    datapath = SimpleNamespace(ofproto=ofproto_v1_4, ofproto_parser=ofproto_v1_4_parser)
    description = ofproto_v1_4_parser.OFPDescStatsRequest(datapath, 0)
    description.set_xid(3)
    description.serialize()
    assert bytes(description.buf) == encode.description_request(3)
    kinds = ofproto_v1_4.OFPFMF_ADD | ofproto_v1_4.OFPFMF_REMOVED | ofproto_v1_4.OFPFMF_MODIFY
    monitor = ofproto_v1_4_parser.OFPFlowMonitorRequest(
        datapath, 0, 1, ofproto_v1_4.OFPP_ANY, ofproto_v1_4.OFPG_ANY, kinds, ofproto_v1_4.OFPTT_ALL,
        ofproto_v1_4.OFPFMC_ADD, ofproto_v1_4_parser.OFPMatch(),
    )  # fmt: skip
    monitor.set_xid(4)
    monitor.serialize()
    assert bytes(monitor.buf) == encode.monitor_request(4, 1)
    for master, name in ((True, ofproto_v1_4.OFPCR_ROLE_MASTER), (False, ofproto_v1_4.OFPCR_ROLE_SLAVE)):
        role = ofproto_v1_4_parser.OFPRoleRequest(datapath, name, 7)
        role.set_xid(5)
        role.serialize()
        assert bytes(role.buf) == encode.role_request(5, master=master, generation=7)
