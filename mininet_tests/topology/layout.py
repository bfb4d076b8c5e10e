"""The campus on paper: machines, addresses, wires' names, and the site file that goes with a policy. Pure.

Invariant: addresses stand here and nowhere else; `site_text` and the machines are made from the same constants.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from policies.model import Address, Policy

ADDRESSES = ipaddress.ip_address
CONTROLLER = "192.0.2.1"
MANAGEMENT = {
    "ctl": CONTROLLER,
    "wn1": "192.0.2.11",
    "wn2": "192.0.2.12",
    "gate": "192.0.2.21",
    "border": "192.0.2.31",
}
WORKERS = ("wn1", "wn2")
DATAPATHS = {
    "wn1": "00000000000000a1",
    "wn2": "00000000000000a2",
    "gate": "00000000000000b1",
    "border": "00000000000000c1",
}
BRIDGES = {name: f"{name}-br" for name in DATAPATHS}


@dataclass(frozen=True, slots=True)
class Place:
    """A machine that packets come from and go to. The first address of each family is the one it speaks from."""

    name: str
    ipv4: tuple[str, ...]
    ipv6: tuple[str, ...]
    gateway4: str
    gateway6: str
    behind_gate: bool = False
    beyond_border: bool = False

    @property
    def addresses(self) -> tuple[Address, ...]:
        return tuple(ADDRESSES(text) for text in (*self.ipv4, *self.ipv6))


SITE4, SITE6 = 16, 48
NODE_LINK = "1 Gbit/s"
"""What the site file says of each node's uplink: shares are parts of it. The cable itself is as fast as the machine."""
WAN_RATE = "50 Mbit/s"
"""What the site file says of the line; it is so slow where the border's queues are kept (`Campus(queues=True)`)."""
_SITE = ("10.20.0.1", "2001:db8:20::1")
_OPEN4 = tuple(f"10.20.0.{number}" for number in (9, 2, 3, 4))
_OPEN6 = tuple(f"2001:db8:20::{number}" for number in (9, 2, 3, 4))
_MONITORING = ("10.9.3.1", "2001:db8:9:3::1")
_OFFICES = ("10.9.1.254", "2001:db8:9:1::fe")
_WORLD = ("198.51.100.1", "2001:db8:100::1")
PLACES = (
    Place("fs", ("10.20.0.5", "10.20.0.6"), ("2001:db8:20::5", "2001:db8:20::6"), *_SITE, behind_gate=True),
    Place("lic", ("10.20.0.7", "10.20.0.8"), ("2001:db8:20::7", "2001:db8:20::8"), *_SITE, behind_gate=True),
    Place("login", _OPEN4, _OPEN6, *_SITE),
    Place("office", ("10.9.1.1",), ("2001:db8:9:1::1",), *_OFFICES),
    Place("monitor", ("10.9.3.7",), ("2001:db8:9:3::7",), *_MONITORING),
    Place("cern", ("198.51.100.10",), ("2001:db8:100::10",), *_WORLD, beyond_border=True),
    Place("osg", ("198.51.100.20",), ("2001:db8:100::20",), *_WORLD, beyond_border=True),
)
"""File server, licence servers, a machine without a gate, two desks, and two machines of the wide world."""
PREFIXES = {"office": (24, 64), "monitor": (24, 64), "cern": (24, 48), "osg": (24, 48)}
"""Prefix lengths of those that are not on a network of the usual lengths."""
HOSTS = {
    "wn1": Place("wn1", ("10.20.1.1",), ("2001:db8:20::1:1",), *_SITE),
    "wn2": Place("wn2", ("10.20.2.1",), ("2001:db8:20::2:1",), *_SITE),
}
"""The worker nodes themselves: their own addresses, closed to jobs, and none of them among the jobs' addresses."""
CORE = {
    "lan": ("10.20.0.1/16", "2001:db8:20::1/48"),
    "of0": ("10.9.1.254/24", "2001:db8:9:1::fe/64"),
    "mo0": ("10.9.3.1/24", "2001:db8:9:3::1/64"),
    "wan0": ("100.64.0.1/30", "2001:db8:64::1/64"),
}
"""Addresses of the campus router, by device: the site's network, the offices, the way out."""
PROVIDER = {"lan": ("198.51.100.1/24", "2001:db8:100::1/48"), "wan0": ("100.64.0.2/30", "2001:db8:64::2/64")}
CORE_WAY_OUT = ("100.64.0.2", "2001:db8:64::2")
PROVIDER_WAYS_IN = {
    "10.20.0.0/16": "100.64.0.1",
    "10.9.0.0/16": "100.64.0.1",
    "2001:db8:20::/48": "2001:db8:64::1",
    "2001:db8:9::/48": "2001:db8:64::1",
}


def place(name: str) -> Place:
    return next(one for one in PLACES if one.name == name)


@dataclass(frozen=True, slots=True)
class Geography:
    """What a site file does not say, and the wires know: addresses behind the gate, and those beyond the border."""

    behind: frozenset[Address]
    beyond: frozenset[Address]


def geography() -> Geography:
    return Geography(
        frozenset(address for place in PLACES if place.behind_gate for address in place.addresses),
        frozenset(address for place in PLACES if place.beyond_border for address in place.addresses),
    )


def guarded(policy: Policy) -> list[str]:
    """Protected services of a policy that stand behind the gate here, with all their hosts."""
    behind = geography().behind
    return sorted(
        service.name
        for service in policy.services.values()
        if service.protected and service.hosts and behind.issuperset(service.hosts)
    )


def site_text(policy: Policy) -> str:
    """The campus as `site.yaml`; what stands behind its gate follows from the policy."""
    nodes = "\n".join(
        f"  {name}: {{bridge: {BRIDGES[name]}, ipv4: 10.20.{number}.64/26, "
        f'ipv6: "2001:db8:20:{number}:1::/96", '
        f'host-addresses: ["{HOSTS[name].ipv4[0]}", "{HOSTS[name].ipv6[0]}"], link: {NODE_LINK}}}'
        for number, name in enumerate(WORKERS, 1)
    )
    workers = "\n".join(
        f'  {BRIDGES[name]}: {{datapath-id: "{DATAPATHS[name]}", address: {MANAGEMENT[name]}, roles: [worker], '
        "ports: {uplink: [up0]}}"
        for name in WORKERS
    )
    return f"""\
site: campus
network:
  ipv4: 10.20.0.0/{SITE4}
  gateway-ipv4: {_SITE[0]}
  ipv6: "2001:db8:20::/{SITE6}"
  gateway-ipv6: "{_SITE[1]}"
  mtu: 1500
infrastructure: [192.0.2.0/24]
nodes:
{nodes}
bridges:
{workers}
  gate-br:
    datapath-id: "{DATAPATHS["gate"]}"
    address: {MANAGEMENT["gate"]}
    roles: [gate]
    ports: {{worker-facing: [wf0], server-facing: [sf0, sf1], uplink: [cf0]}}
    guards: [{", ".join(guarded(policy))}]
  border-br:
    datapath-id: "{DATAPATHS["border"]}"
    address: {MANAGEMENT["border"]}
    roles: [border]
    ports: {{uplink: [lan0], wan: [{{name: wan0, rate: {WAN_RATE}}}]}}
"""
