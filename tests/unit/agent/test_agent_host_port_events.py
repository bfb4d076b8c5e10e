"""Which of the kernel's messages may be about the host's own port: a job's lane is a handful that are not."""

from __future__ import annotations

import struct

from ovs_agent import rtnl
from ovs_agent.host_port import concerns


def message(kind: int, index: int, name: str = "") -> bytes:
    body = struct.pack("=BxHiII", 0, 0, index, 0, 0) if kind in (16, 17) else struct.pack("=BBBBI", 2, 16, 0, 0, index)
    if name:
        body += rtnl._text(rtnl.IFLA_IFNAME, name)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def test_links_and_addresses_of_others_do_not_concern_the_device_and_its_own_do() -> None:
    others = message(16, 7, "lj7") + message(17, 7, "lj7") + message(20, 7)
    assert not concerns(others, "br-lark", 3)
    assert concerns(others + message(20, 3), "br-lark", 3)
    assert concerns(others + message(21, 3), "br-lark", 3)
    assert concerns(message(16, 3, "br-lark"), "br-lark", 3)


def test_a_device_that_was_made_anew_is_known_by_its_name() -> None:
    assert concerns(message(16, 9, "br-lark"), "br-lark", 3)
    assert not concerns(message(16, 9, "br-lark2"), "br-lark", 3)


def test_routes_and_what_cannot_be_read_may_concern_it() -> None:
    assert concerns(message(24, 0), "br-lark", 3)
    assert concerns(b"", "br-lark", 3)
    assert concerns(message(16, 7, "lj7")[:30], "br-lark", 3)
