"""What a lane is made of, and the texts that protect it. Pure: numbers and addresses in, values and texts out.

A *lane* is one job network: number `n` of its node's address range. Everything else about it (IPv4, IPv6, MAC, port,
namespace, conntrack zone, OpenFlow port) follows from `n`, so the controller can check a registration by
derivation, and nothing has to be remembered to take a lane apart.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

HOST_LANE_COOKIE = 0x4C01_0000_0000_0000
"""Cookie of the flows of table 0: what `ryu_apps.openflow.cookies` gives for HOST_LANE (a test compares)."""
PREPARED = "Lark: fail_mode=secure, disable-in-band=true"
"""The description of a prepared bridge: what the controller looks for (a test compares)."""
FIRST_CONTROLLER_TABLE = 1
PORT_PREFIX = "lj"
INNER_DEVICE = "eth0"
ZONE_BASE = 1000
OFPORT_BASE = 1000
"""Lanes ask for OpenFlow ports 1001 and up: numbers survive a restart of the switch, and never become another's."""
MAX_LANE = 64_000
NFT_TABLE = "lark"


@dataclass(frozen=True, slots=True)
class Network:
    """The job network of a node, as the controller granted it."""

    node: str
    ipv4_range: ipaddress.IPv4Network
    ipv4_prefix_length: int
    ipv4_gateway: ipaddress.IPv4Address | None
    ipv6_prefix: ipaddress.IPv6Network | None
    ipv6_prefix_length: int
    ipv6_gateway: ipaddress.IPv6Address | None
    mtu: int


@dataclass(frozen=True, slots=True)
class Lane:
    """One job network. Addresses are without prefix length."""

    number: int
    node: str
    ipv4: ipaddress.IPv4Address
    ipv6: ipaddress.IPv6Address | None
    mac: str
    port: str
    namespace: str
    zone: int
    ofport: int


def network(
    node: str,
    ipv4_range: str,
    ipv4_prefix_length: int,
    ipv4_gateway: str | None,
    ipv6_prefix: str | None,
    ipv6_prefix_length: int | None,
    ipv6_gateway: str | None,
    mtu: int,
) -> Network:
    """A Network from the texts of a grant. Raises ValueError saying what does not fit."""
    four = ipaddress.IPv4Network(ipv4_range)
    six = ipaddress.IPv6Network(ipv6_prefix) if ipv6_prefix is not None else None
    if six is not None and not 64 <= six.prefixlen <= 96:
        raise ValueError(f"IPv6 prefix {six} must be between /64 and /96")
    return Network(
        node,
        four,
        ipv4_prefix_length,
        ipaddress.IPv4Address(ipv4_gateway) if ipv4_gateway else None,
        six,
        ipv6_prefix_length or (six.prefixlen if six else 64),
        ipaddress.IPv6Address(ipv6_gateway) if ipv6_gateway else None,
        mtu,
    )


def capacity(net: Network) -> int:
    """How many lanes the range has room for."""
    size = net.ipv4_range.num_addresses
    usable = size if net.ipv4_range.prefixlen >= 31 else size - 2
    return min(usable, MAX_LANE)


def lane(net: Network, number: int) -> Lane:
    """Lane `number` (from 1). Raises ValueError outside the range."""
    if not 1 <= number <= capacity(net):
        raise ValueError(f"lane {number} is outside range {net.ipv4_range} (1 to {capacity(net)})")
    first = 0 if net.ipv4_range.prefixlen >= 31 else 1
    four = net.ipv4_range[number - 1 + first]
    six = None
    if net.ipv6_prefix is not None:
        six = ipaddress.IPv6Address(int(net.ipv6_prefix.network_address) | int(four))
    return Lane(
        number=number,
        node=net.node,
        ipv4=four,
        ipv6=six,
        mac="02:6c:" + ":".join(f"{byte:02x}" for byte in four.packed),
        port=f"{PORT_PREFIX}{number}",
        namespace=f"{namespace_prefix(net.node)}{number}",
        zone=ZONE_BASE + number,
        ofport=OFPORT_BASE + number,
    )


def namespace_prefix(node: str) -> str:
    """What the names of this node's namespaces begin with."""
    return f"lark-{node}-"


def sealed_namespace(lane_namespace: str) -> str:
    """The empty namespace that a sealed job gets in place of its lane's."""
    return f"{lane_namespace}-sealed"


def attached_namespace(lane_namespace: str) -> str:
    """The name of the namespace that a job brought itself, plugged into its lane (`ovs_agent.fallback`)."""
    return f"{lane_namespace}-attached"


def lane_number_of_port(port: str) -> int | None:
    """The lane a device name belongs to, or None if it is not one of ours."""
    digits = port.removeprefix(PORT_PREFIX)
    return int(digits) if port.startswith(PORT_PREFIX) and digits.isdecimal() and digits.isascii() else None


def worker_table0(uplink: int, host_mac: str) -> list[str]:
    """Flows of the host lane: the host's own traffic depends on nobody; the rest is the controller's."""
    c = f"cookie={HOST_LANE_COOKIE:#x},table=0"
    on = f"goto_table:{FIRST_CONTROLLER_TABLE}"
    return [
        f"{c},priority=300,in_port={uplink},dl_dst={host_mac} actions=LOCAL",
        f"{c},priority=200,in_port={uplink},dl_dst=01:00:00:00:00:00/01:00:00:00:00:00 actions=LOCAL,{on}",
        f"{c},priority=100,in_port={uplink} actions={on}",
        f"{c},priority=100,in_port=LOCAL actions=output:{uplink}",
        f"{c},priority=0 actions={on}",
    ]


def gate_table0() -> list[str]:
    """On a gate (and on a worker without an uplink) everything belongs to the controller's tables."""
    return [f"cookie={HOST_LANE_COOKIE:#x},table=0,priority=0 actions=goto_table:{FIRST_CONTROLLER_TABLE}"]


def _interval(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}-{high}"


def nft_ruleset(
    uids: Sequence[tuple[int, int]], loopback: Iterable[tuple[str, int]], pool: Iterable[tuple[str, int]] = ()
) -> str:
    """The whole ruleset, replaced in one transaction (so there is never an open moment). Idempotent.

    Job ports: the kernel gets a copy of every frame that a userspace datapath receives, so whatever arrives at `lj*` is
    dropped here; Open vSwitch has taken its copy before.

    Guard: code of a job's owner that runs in the host's network (PreCmd, unwrapped plugins, left-over processes) has
    the job user's uid. It may open connections to declared loopback ports only. Other loopback ports are closed too:
    any of them could be a proxy that leads out. Packets that answer a connection which somebody else opened over
    loopback pass: TCP that is not a bare SYN cannot open anything. No connection tracking is used: loading it would
    change the behaviour of all of the host's traffic.

    `pool`: addresses and TCP ports of the pool's own daemons. HTCondor's starter opens the connection for output
    transfer with the owner's uid, so to the kernel it looks like the owner's own.
    """
    ports: dict[str, list[str]] = {"tcp": [], "udp": []}
    for protocol, number in sorted(set(loopback)):
        ports[protocol].append(str(number))
    lines = [
        f"table inet {NFT_TABLE}",
        f"delete table inet {NFT_TABLE}",
        f"table arp {NFT_TABLE}",
        f"delete table arp {NFT_TABLE}",
        f"table inet {NFT_TABLE} {{",
        "  counter from_jobs { }",
        "  counter guard_allowed { }",
        "  counter guard_rejected { }",
        "  chain job_ports {",
        "    type filter hook prerouting priority raw - 50; policy accept;",
        f'    iifname "{PORT_PREFIX}*" counter name from_jobs drop',
        "  }",
        "  chain to_job_ports {",
        "    type filter hook postrouting priority raw - 50; policy accept;",
        f'    oifname "{PORT_PREFIX}*" drop',
        "  }",
    ]
    if uids:
        lines += [
            "  set job_uids {",
            "    type uid; flags interval;",
            f"    elements = {{ {', '.join(_interval(*pair) for pair in sorted(set(uids)))} }}",
            "  }",
            "  chain guard {",
            "    type filter hook output priority filter - 10; policy accept;",
            "    meta skuid @job_uids jump guarded",
            "  }",
            "  chain guarded {",
        ]
        for protocol in ("tcp", "udp"):
            if ports[protocol]:
                wanted = ", ".join(ports[protocol])
                lines.append(f'    oifname "lo" {protocol} dport {{ {wanted} }} counter name guard_allowed accept')
        for address, number in sorted(set(pool)):
            family = "ip6" if ":" in address else "ip"
            lines.append(f"    {family} daddr {address} tcp dport {number} counter name guard_allowed accept")
        lines += [
            '    oifname "lo" tcp flags & (syn | ack | rst | fin) != syn counter name guard_allowed accept',
            "    counter name guard_rejected",
            "    reject with icmpx type admin-prohibited",
            "  }",
        ]
    lines += [
        "}",
        f"table arp {NFT_TABLE} {{",
        "  chain job_ports {",
        "    type filter hook input priority filter; policy accept;",
        f'    iifname "{PORT_PREFIX}*" drop',
        "  }",
        "}",
    ]
    return "\n".join(lines) + "\n"


def nft_port_guard_table(bridge: str) -> str:
    """The name of the nftables tables that keep the host's kernel off the ports of a gate or a border."""
    return f"{NFT_TABLE}-{re.sub('[^A-Za-z0-9_.-]', '_', bridge)}"


def nft_port_guard(bridge: str, ports: Iterable[str]) -> str:
    """Rules that drop what arrives at these devices for the host's kernel, replaced in one transaction. Idempotent.

    With a userspace datapath the kernel gets a copy of every frame after Open vSwitch has taken its own. It would
    answer ARP there for any address of the host and serve it, whatever the bridge's flows say.
    """
    table = nft_port_guard_table(bridge)
    devices = ", ".join(f'"{port}"' for port in sorted(set(ports)))
    lines = []
    for family in ("inet", "arp"):
        lines += [f"table {family} {table}", f"delete table {family} {table}"]
    if devices:
        lines += [
            f"table inet {table} {{",
            "  counter dropped { }",
            "  chain ports {",
            "    type filter hook prerouting priority raw - 50; policy accept;",
            f"    iifname {{ {devices} }} counter name dropped drop",
            "  }",
            "}",
            f"table arp {table} {{",
            "  chain ports {",
            "    type filter hook input priority filter; policy accept;",
            f"    iifname {{ {devices} }} drop",
            "  }",
            "}",
        ]
    return "\n".join(lines) + "\n"


def addressed_devices(shown: str) -> frozenset[str]:
    """Devices with an address, by what `ip -j address show scope global` says.

    One that came with a router's advertisement does not count: whoever is on the link could send that, and so take the
    guard off the port that he is at.
    """
    devices = json.loads(shown or "[]")
    return frozenset(
        device["ifname"]
        for device in devices
        if any(
            one.get("local")
            and not (one.get("mngtmpaddr") or one.get("temporary") or one.get("protocol") == "kernel_ra")
            for one in device.get("addr_info", ())
        )
    )


def nft_removal() -> str:
    """Take away everything `nft_ruleset` made; not an error when nothing is there."""
    return "".join(f"table {family} {NFT_TABLE}\ndelete table {family} {NFT_TABLE}\n" for family in ("inet", "arp"))
