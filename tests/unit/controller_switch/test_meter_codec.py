"""Meters to bytes and back: what a switch shows of one that was set is what was wanted."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryu_apps.openflow import decode, encode
from ryu_apps.openflow.meters import LEAST_BURST, MOST, MeterRule, kilobits

rules = st.builds(MeterRule, st.integers(0x4C000000, 0x4CFFFFFF), st.integers(1, MOST), st.booleans())


def shown(*messages: bytes) -> bytes:
    """A switch's answer about the meters that these messages set."""
    parts = []
    for message in messages:
        command, flags, number = struct.unpack_from("!HHI", message, 8)
        assert command in (encode.METER_ADD, encode.METER_MODIFY)
        bands = message[16:]
        parts.append(struct.pack("!HHI", 8 + len(bands), flags, number) + bands)
    body = struct.pack("!HH4x", encode.MP_METER_CONFIG, 0) + b"".join(parts)
    return encode.HEADER.pack(encode.VERSION, encode.MULTIPART_REPLY, 8 + len(body), 7) + body


@given(st.lists(rules, max_size=5))
def test_what_was_set_comes_back_equal(wanted: list[MeterRule]) -> None:
    entries = [(encode.entry_key(one), encode.entry_value(one)) for one in wanted]
    reply = shown(*(encode.put_meter(*one, xid=1, there=bool(n % 2)) for n, one in enumerate(entries)))
    assert decode.is_meters(reply)
    read = decode.meter_entries(reply)
    assert list(read.entries) == entries
    assert (read.xid, read.more) == (7, True)


def test_a_meter_has_its_rate_a_burst_of_half_a_second_and_one_band_that_drops() -> None:
    rule = MeterRule(0x4C0007D2, 50_000)
    message = encode.put_meter(encode.entry_key(rule), encode.entry_value(rule), 9, there=False)
    head = (encode.VERSION, encode.METER_MOD, 32, 9)
    drop = (encode.METER_BAND_DROP, 16, 50_000, 25_000)
    assert message == struct.pack("!BBHIHHIHHII4x", *head, encode.METER_ADD, encode.METER_FLAGS, 0x4C0007D2, *drop)
    taken = encode.take_meter(encode.entry_key(rule), 9)
    assert taken == struct.pack("!BBHIHHI", encode.VERSION, encode.METER_MOD, 16, 9, encode.METER_DELETE, 0, 0x4C0007D2)


@pytest.mark.parametrize(
    ("bits", "rate", "burst"),
    [(1, 1, LEAST_BURST), (10**6, 1000, LEAST_BURST), (10**8, 10**5, 50_000), (10**15 - 1, MOST, MOST // 2)],
)
def test_every_rate_that_a_policy_can_give_is_one_that_a_meter_can_have(bits: int, rate: int, burst: int) -> None:
    rule = MeterRule(0x4C000000, kilobits(bits))
    assert (rule.rate, rule.burst) == (rate, burst)
    assert encode.entry_value(rule)


def test_a_meter_of_packets_says_so_and_has_a_burst_of_a_second() -> None:
    rule = MeterRule(0x4C400000, 100, packets=True)
    value = encode.entry_value(rule)
    assert value[1:] == struct.pack("!HHHII4x", 0xE, encode.METER_BAND_DROP, 16, 100, 100)
    assert encode.meter_text(value) == "rate=100 packets/s"
    assert encode.meter_text(encode.entry_value(MeterRule(0x4C400000, 100))) == "rate=100 kbit/s"


def features(most: int, bands: int, can: int) -> bytes:
    body = struct.pack("!HH4xIIIBB2x", encode.MP_METER_FEATURES, 0, most, bands, can, 1, 0)
    return encode.HEADER.pack(encode.VERSION, encode.MULTIPART_REPLY, 8 + len(body), 7) + body


def test_a_switch_has_meters_if_it_has_room_and_they_can_do_what_ours_do() -> None:
    assert decode.has_meters(features(65536, 0x2, 0xF))
    assert decode.has_meters(features(1, 0x6, 0x7))
    for lacking in ((0, 0x2, 0xF), (65536, 0x4, 0xF), (65536, 0x2, 0x5), (65536, 0x2, 0x6), (65536, 0x2, 0x3)):
        assert not decode.has_meters(features(*lacking))
    with pytest.raises(decode.DecodeError):
        decode.has_meters(features(65536, 0x2, 0xF)[:-6])


def test_a_rate_that_does_not_fit_is_refused() -> None:
    assert encode.entry_value(MeterRule(0x4C000000, MOST))
    with pytest.raises(encode.EncodeError):
        encode.entry_value(MeterRule(0x4C000000, MOST + 1))


@pytest.mark.parametrize("cut", [1, 7, 12])
def test_an_answer_that_does_not_hold_together_is_refused(cut: int) -> None:
    rule = MeterRule(0x4C000000, 5)
    reply = shown(encode.put_meter(encode.entry_key(rule), encode.entry_value(rule), 1, there=False))
    assert len(decode.meter_entries(reply).entries) == 1
    with pytest.raises(decode.DecodeError):
        decode.meter_entries(reply[:-cut])


def counted(*meters: tuple[int, int, int, list[tuple[int, int]]]) -> bytes:
    """A switch's answer about what meters have counted, the last part of it: number, packets, bytes, bands."""
    body = struct.pack("!HH4x", encode.MP_METER, 0)
    for number, packets, octets, bands in meters:
        body += struct.pack("!IH6xIQQII", number, 40 + 16 * len(bands), 1, packets, octets, 3, 5)
        body += b"".join(struct.pack("!QQ", *band) for band in bands)
    return encode.HEADER.pack(encode.VERSION, encode.MULTIPART_REPLY, 8 + len(body), 7) + body


def test_what_meters_have_counted_is_read_whatever_bands_they_have() -> None:
    reply = counted((0x4C0007D2, 100, 9000, [(40, 3600)]), (7, 5, 500, []), (8, 9, 900, [(1, 100), (2, 200)]))
    read = decode.meter_counts(reply)
    assert (read.xid, read.more) == (7, False)
    assert read.entries == [(0x4C0007D2, 100, 9000, 40, 3600), (7, 5, 500, 0, 0), (8, 9, 900, 3, 300)]
    more = reply[:10] + decode.REPLY_MORE.to_bytes(2, "big") + reply[12:]
    assert decode.meter_counts(more).more


def test_one_meter_or_all_are_asked_for() -> None:
    asked = [encode.meter_stats_request(9, 0x4C0007D2), encode.meter_stats_request(9)]
    numbers = [0x4C0007D2, encode.ALL_METERS]
    head = (encode.VERSION, encode.MULTIPART_REQUEST, 24, 9, encode.MP_METER, 0)
    assert asked == [struct.pack("!BBHIHH4xI4x", *head, number) for number in numbers]


@pytest.mark.parametrize("cut", [1, 15, 17, 30])
def test_counters_that_do_not_hold_together_are_refused(cut: int) -> None:
    reply = counted((7, 5, 500, [(1, 100)]))
    assert decode.meter_counts(reply).entries
    with pytest.raises(decode.DecodeError):
        decode.meter_counts(reply[:-cut])


def test_a_meter_that_says_it_is_shorter_than_a_meter_is_refused() -> None:
    reply = counted((7, 5, 500, []))
    with pytest.raises(decode.DecodeError):
        decode.meter_counts(reply[:20] + (0).to_bytes(2, "big") + reply[22:])
