"""A site of many nodes: what every bridge must know of the others is said in networks, not node by node."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from policies.model import Network, Node, World
from ryu_apps.openflow import compiler
from ryu_apps.openflow.lanes import joined
from tests.worlds import demo_site, world


def site_of(networks: Iterable[ipaddress.IPv4Network]) -> World:
    """The demo's world with more nodes, whose IPv6 prefixes are neighbours, too."""
    site = demo_site()
    here = site.nodes["wn1"]
    six = int(ipaddress.IPv6Address("2001:db8:21::"))
    nodes: dict[str, Node] = {"wn1": here}
    for n, net in enumerate(networks):
        nodes[f"far{n}"] = replace(
            here, name=f"far{n}", bridge=f"far{n}-br", ipv4=net, ipv6=ipaddress.IPv6Network((six + (n << 32), 96))
        )
    before = world(site=replace(site, nodes=nodes))
    return replace(before, node_numbers={name: n for n, name in enumerate(nodes, 1)})


def flows_on_wn1(before: World) -> int:
    return len(compiler.base_flows(before, "wn1-br"))


def test_nodes_with_neighbouring_ranges_cost_a_bridge_nothing_and_scattered_ones_a_constant_each() -> None:
    neighbours = list(ipaddress.IPv4Network("10.24.0.0/16").subnets(new_prefix=26))
    few, many = flows_on_wn1(site_of(neighbours[:256])), flows_on_wn1(site_of(neighbours[:1024]))
    # What is left is IPv6: lanes of different nodes lie apart, because a prefix is followed by the IPv4 address.
    assert many - few == 2 * (1024 - 256)
    scattered = list(ipaddress.IPv4Network("10.24.0.0/16").subnets(new_prefix=26))[::2]
    assert flows_on_wn1(site_of(scattered[:256])) - flows_on_wn1(site_of(scattered[:128])) == 6 * 128


NETWORKS = st.lists(
    st.builds(
        lambda last, length: ipaddress.IPv4Network(((0x0A000000 | last) >> (32 - length) << (32 - length), length)),
        st.integers(0, 255),
        st.integers(26, 32),
    ),
    max_size=12,
)


@given(NETWORKS)
def test_joined_networks_hold_the_same_addresses(networks: list[ipaddress.IPv4Network]) -> None:
    def addresses(these: Iterable[Network]) -> set[object]:
        return {address for net in these for address in net}

    found = joined(networks)
    assert addresses(found) == addresses(networks)
    assert len(found) <= len(set(networks))
