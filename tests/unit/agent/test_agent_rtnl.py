"""Netlink requests as bytes: what pyroute2 reads in them, how many messages a lane costs, and what is refused."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from pathlib import Path

import pytest
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from ovs_agent import netlink, plan, rtnl
from ovs_agent.netlink import INNER_DEVICE, NetworkError

NET = plan.network("wn1", "10.1.0.0/24", 16, "10.1.255.1", "fd00:1::/64", 64, "fd00:1::fe", 1450)
LANE = plan.lane(NET, 7)


def read(kind: type, ask: rtnl.Ask) -> dict:
    message = kind(rtnl.encode([ask]))
    message.decode()
    return message


def test_a_pair_of_devices_is_read_by_pyroute2_as_it_was_meant() -> None:
    found = read(ifinfmsg, rtnl.veth("lj7", INNER_DEVICE, LANE.mac, 9, 1450))
    assert found["header"]["type"] == rtnl.RTM_NEWLINK
    assert found.get_attr("IFLA_IFNAME") == "lj7"
    assert found.get_attr("IFLA_MTU") == 1450
    info = found.get_attr("IFLA_LINKINFO")
    assert info.get_attr("IFLA_INFO_KIND") == "veth"
    peer = info.get_attr("IFLA_INFO_DATA").get_attr("VETH_INFO_PEER")
    assert [peer.get_attr(f"IFLA_{name}") for name in ("IFNAME", "ADDRESS", "MTU", "NET_NS_FD")] == [
        INNER_DEVICE,
        LANE.mac,
        1450,
        9,
    ]


def test_addresses_routes_and_groups_are_read_by_pyroute2_as_they_were_meant() -> None:
    four = read(ifaddrmsg, rtnl.address(3, LANE.ipv4, 16))
    assert (four["family"], four["prefixlen"], four["index"]) == (socket.AF_INET, 16, 3)
    assert four.get_attr("IFA_LOCAL") == four.get_attr("IFA_ADDRESS") == str(LANE.ipv4)
    assert LANE.ipv6 is not None
    six = read(ifaddrmsg, rtnl.address(3, LANE.ipv6, 64, netlink.IFA_F_NODAD))
    assert (six["family"], six.get_attr("IFA_ADDRESS")) == (socket.AF_INET6, str(LANE.ipv6))
    assert six.get_attr("IFA_FLAGS") == netlink.IFA_F_NODAD
    route = read(rtmsg, rtnl.default_route(3, ipaddress.ip_address("fd00:1::fe")))
    assert (route["dst_len"], route["table"], route["flags"]) == (0, 254, rtnl.RTNH_F_ONLINK)
    assert (route.get_attr("RTA_GATEWAY"), route.get_attr("RTA_OIF")) == ("fd00:1::fe", 3)
    assert read(ifinfmsg, rtnl.in_group("lj7", 5)).get_attr("IFLA_GROUP") == 5


def test_acknowledgements_are_read_one_by_one() -> None:
    good = bytes.fromhex("14000000 0200 0000 01000000 00000000 00000000".replace(" ", ""))
    bad = good[:8] + b"\2\0\0\0" + good[12:16] + (-errno.EEXIST).to_bytes(4, "little", signed=True)
    assert list(rtnl.acknowledgements(good + bad)) == [(1, 0), (2, errno.EEXIST)]


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A network of this test's own, for threads that enter it."""
    if os.geteuid() != 0:
        pytest.fail("this test makes network namespaces: run it as root")
    monkeypatch.setattr(netlink, "NETNS_DIR", tmp_path / "netns")
    netlink.create_namespace("host")
    fd = netlink.open_namespace("host")
    yield fd
    os.close(fd)
    for name in os.listdir(netlink.NETNS_DIR):
        netlink.delete_namespace(name)
    netlink._libc.umount2(os.fsencode(netlink.NETNS_DIR), netlink.MNT_DETACH)


def test_lanes_change_the_host_twice_and_their_end_once_and_nothing_is_left(
    node: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    send = rtnl.send

    def counted(asks: list[rtnl.Ask]) -> None:
        if asks:
            sent.append(len(asks))
        send(asks)

    monkeypatch.setattr(netlink.rtnl, "send", counted)
    lanes = [plan.lane(NET, number) for number in (7, 8, 9)]

    def build() -> list[str]:
        netlink.build_lanes(lanes, NET)
        return [name for _, name in socket.if_nameindex()]

    assert set(netlink.call_in_namespace(node, build)) == {"lo", "lj7", "lj8", "lj9"}
    assert sent == [3, 5, 5, 5, 3], (
        "pairs; what is inside; the host's ends up, and with them the carrier of all at once"
    )
    sent.clear()

    def demolish() -> list[str]:
        netlink.demolish_all([netlink.Ruin(lane.port, (lane.namespace,)) for lane in lanes])
        return [name for _, name in socket.if_nameindex()]

    assert netlink.call_in_namespace(node, demolish) == ["lo"]
    assert sent == [4]
    assert os.listdir(netlink.NETNS_DIR) == ["host"]
    sent.clear()
    assert netlink.call_in_namespace(node, demolish) == ["lo"]
    assert sent == [], "what is not there is not deleted again"


def test_what_the_kernel_refuses_is_said_and_nothing_of_the_lane_is_left(node: int) -> None:
    def work() -> list[str]:
        netlink.build_lanes([LANE], NET)
        with pytest.raises(NetworkError, match=r"pair of devices lj7: File exists"):
            try:
                rtnl.send([rtnl.veth("lj7", INNER_DEVICE, LANE.mac, node, 1500)])
            except rtnl.Refused as e:
                raise NetworkError(str(e)) from e
        rtnl.send([rtnl.no_link("lj9")])  # not there: no error
        with pytest.raises(NetworkError, match="File exists"):
            netlink.build_lanes([LANE], NET)
        netlink.demolish(LANE.port, [LANE.namespace])
        return [name for _, name in socket.if_nameindex()]

    assert netlink.call_in_namespace(node, work) == ["lo"]
    assert os.listdir(netlink.NETNS_DIR) == ["host"]
