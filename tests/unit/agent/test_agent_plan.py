"""Derivation of a lane from its number, table 0 and the packet rules as text."""

from __future__ import annotations

import ipaddress
import re
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_agent import plan
from ryu_apps.openflow.cookies import Feature, cookie
from ryu_apps.reconcile import switch

NET = plan.network("wn1", "10.20.1.64/26", 16, "10.20.0.1", "2001:db8:20::/64", 64, "2001:db8:20::1", 1500)


def test_the_cookie_of_table_0_is_the_controllers_host_lane() -> None:
    assert cookie(Feature.HOST_LANE, 0) == plan.HOST_LANE_COOKIE
    assert switch.PREPARED == plan.PREPARED


def test_everything_follows_from_the_number() -> None:
    lane = plan.lane(NET, 3)
    assert str(lane.ipv4) == "10.20.1.67"
    assert lane.mac == "02:6c:0a:14:01:43"
    assert str(lane.ipv6) == "2001:db8:20::a14:143"
    assert (lane.port, lane.namespace, lane.zone, lane.ofport) == ("lj3", "lark-wn1-3", 1003, 1003)


@given(st.integers(1, 62))
def test_ipv6_carries_the_ipv4_address_and_the_mac_does_too(number: int) -> None:
    lane = plan.lane(NET, number)
    assert lane.ipv6 is not None
    assert lane.ipv6 in ipaddress.IPv6Network("2001:db8:20::/64")
    assert int(lane.ipv6) & 0xFFFFFFFF == int(lane.ipv4) == int(lane.mac[6:].replace(":", ""), 16)
    assert plan.lane_number_of_port(lane.port) == number


@pytest.mark.parametrize("number", [0, -1, 63])
def test_numbers_outside_the_range_are_errors(number: int) -> None:
    with pytest.raises(ValueError, match="outside range"):
        plan.lane(NET, number)


def test_no_ipv6_without_a_prefix() -> None:
    assert plan.lane(plan.network("n", "10.0.0.0/30", 24, None, None, None, None, 1500), 2).ipv6 is None


@pytest.mark.parametrize(
    ("cidr", "count"), [("10.0.0.0/30", 2), ("10.0.0.0/31", 2), ("10.0.0.4/32", 1), ("10.0.0.0/8", 64000)]
)
def test_capacity(cidr: str, count: int) -> None:
    net = plan.network("n", cidr, 8, None, None, None, None, 1500)
    assert plan.capacity(net) == count
    assert plan.lane(net, count).ipv4 in net.ipv4_range


@pytest.mark.parametrize("prefix", ["2001:db8::/63", "2001:db8::/97"])
def test_an_ipv6_prefix_that_cannot_carry_the_address_is_an_error(prefix: str) -> None:
    with pytest.raises(ValueError, match="between /64 and /96"):
        plan.network("n", "10.0.0.0/24", 24, None, prefix, None, None, 1500)


@pytest.mark.parametrize("name", ["lj", "lj-1", "ljx", "xlj1", "eth0", "lj¹"])
def test_other_devices_are_not_ours(name: str) -> None:
    assert plan.lane_number_of_port(name) is None


def test_table_0_of_a_worker() -> None:
    flows = plan.worker_table0(7, "02:00:00:00:00:01")
    assert flows == [
        "cookie=0x4c01000000000000,table=0,priority=300,in_port=7,dl_dst=02:00:00:00:00:01 actions=LOCAL",
        "cookie=0x4c01000000000000,table=0,priority=200,in_port=7,dl_dst=01:00:00:00:00:00/01:00:00:00:00:00"
        " actions=LOCAL,goto_table:1",
        "cookie=0x4c01000000000000,table=0,priority=100,in_port=7 actions=goto_table:1",
        "cookie=0x4c01000000000000,table=0,priority=100,in_port=LOCAL actions=output:7",
        "cookie=0x4c01000000000000,table=0,priority=0 actions=goto_table:1",
    ]


def test_rules_drop_what_comes_from_job_ports_in_one_transaction() -> None:
    text = plan.nft_ruleset([], [])
    assert text.startswith("table inet lark\ndelete table inet lark\n"), "replaced whole, never empty in between"
    assert 'iifname "lj*" counter name from_jobs drop' in text
    assert "skuid" not in text


def test_the_guard_has_an_exception_for_each_declared_port_and_ends_in_reject() -> None:
    text = plan.nft_ruleset([(20000, 29999), (500, 500)], [("tcp", 9618), ("udp", 53)], [("192.0.2.9", 9618)])
    assert "elements = { 500, 20000-29999 }" in text
    assert 'oifname "lo" tcp dport { 9618 }' in text
    assert 'oifname "lo" udp dport { 53 }' in text
    assert "ip daddr 192.0.2.9 tcp dport 9618" in text
    chain = re.search(r"chain guarded \{(.*?)\n  \}", text, re.S)
    assert chain is not None
    assert chain[1].strip().splitlines()[-1].strip() == "reject with icmpx type admin-prohibited"


@pytest.mark.parametrize("uids", [[], [(20000, 29999)]])
def test_nft_understands_the_rules(uids: list[tuple[int, int]]) -> None:
    text = plan.nft_ruleset(uids, [("tcp", 9618), ("udp", 53)], [("192.0.2.9", 9618), ("2001:db8::9", 9618)])
    for rules in (text, plan.nft_removal()):
        # In a network namespace of its own: --check wants a kernel to ask, not this machine's tables.
        said = subprocess.run(
            ["unshare", "-n", "nft", "--check", "-f", "-"], input=rules, text=True, capture_output=True, check=False
        )
        assert said.returncode == 0, said.stderr


def test_an_address_that_a_router_announced_takes_the_guard_off_no_port() -> None:
    """As `ip` shows what one advertisement from the link does to a port that nobody has configured."""
    announced = (
        '{"family":"inet6","local":"2001:db8:bad::8be4","prefixlen":64,"scope":"global","dynamic":true,'
        '"mngtmpaddr":true,"valid_life_time":4294967295,"preferred_life_time":4294967295},{}'
    )
    given = '{"family":"inet","local":"192.0.2.1","prefixlen":24,"scope":"global","dynamic":true,"label":"lan0"}'
    shown = (
        f'[{{"ifname":"lo","addr_info":[]}},{{"ifname":"wan0","addr_info":[{announced}]}},'
        f'{{"ifname":"lan0","addr_info":[{announced},{given}]}}]'
    )
    assert plan.addressed_devices(shown) == {"lan0"}
    assert plan.addressed_devices("") == frozenset()
