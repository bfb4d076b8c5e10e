"""Lists of ports as a switch writes them, and what the controller reads: the two were written apart."""

from __future__ import annotations

import pytest

from mininet_tests.fakeswitch import FakeSwitch
from ryu_apps.openflow import decode, encode


def listed(switch: FakeSwitch) -> bytes:
    said: list[bytes] = []
    session = switch.session(said.append)
    session.begin()
    session.receive(bytes.fromhex("0500001000000000 0001000800000020"))
    said.clear()
    session.receive(encode.port_desc_request(7))
    return b"".join(said)


def test_ports_are_read_with_names_and_numbers() -> None:
    switch = FakeSwitch(1, ports={1: "up0", 0xFFFFFFFE: "br0", 1001: "a-name-of-15-oc"})
    part = decode.ports(listed(switch))
    assert (part.xid, part.more) == (7, False)
    assert dict(part.ports) == {"up0": 1, "br0": 0xFFFFFFFE, "a-name-of-15-oc": 1001}
    assert decode.ports(listed(FakeSwitch(1))).ports == ()


@pytest.mark.parametrize("cut", [1, 40, 71])
def test_a_list_that_is_cut_short_is_refused(cut: int) -> None:
    with pytest.raises(decode.DecodeError):
        decode.ports(listed(FakeSwitch(1, ports={1: "up0", 2: "up1"}))[:-cut])
