"""Random cases for the judges, drawn by hypothesis as an administrator and job owners would write them.

A drawn policy is YAML text that the real loader reads; jobs are ads that the real `decide` decides: so the whole way
from text to flows is judged. Addresses and ports are few, so that random packets meet the interesting ones often; rules
clash, overlap and shadow one another on purpose. Index 0 of every choice is the plainest: hypothesis shrinks to it.
"""

from __future__ import annotations

import functools
import ipaddress
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TypeVar

from hypothesis import strategies as st

from policies.model import Address, Attempt, Expose, PortRange, Protocol, World
from policies.semantics import Fragment, Transport
from policies.wire import Phase
from tests.cases import Case, Job, Sent, world_of

_T = TypeVar("_T")

ROUTER_MAC = 0x020000000001
HOSTS4 = ("10.20.0.5", "10.20.0.6", "10.9.0.7", "192.0.2.10", "10.20.2.1")
"""Servers: beside the jobs, in another network, among the infrastructure, and on the host of a node."""
HOSTS6 = ("2001:db8:20::5", "2001:db8:20::6", "2001:db8:9::7", "2001:db8:20:2::ffff:0:1")
BLOCKS = ("tcp/1094", "udp/1094", "icmp", "tcp/1095-1100", "tcp/80", "udp/5000-5009", "tcp/1090-1096", "tcp/20-25")
EXPOSED = ("tcp/8000-8009", "udp/8000-8003", "icmp", "tcp/1094", "tcp/40000")
NETWORKS = {
    "campus": ("10.9.0.0/16", "2001:db8:9::/48"),
    "wide": ("10.0.0.0/8", "2001:db8::/32"),
    "desk": ("10.9.1.1", "2001:db8:9::1"),
    "world": ("0.0.0.0/0", "::/0"),
    "six": ("2001:db8:9::/64",),
}
GROUPS = {
    "physics": 'LarkGroup =?= "physics"',
    "bio": 'LarkGroup =?= "bio"',
    "science": 'identicalMember(LarkGroup, {"physics", "bio"})',
    "alice": 'User =?= "alice@site"',
    "bob": 'Owner =?= "bob"',
    "everybody": "Owner =!= undefined",
    "asks": "LarkSlice =!= undefined",
    "hermits": 'LarkNetwork =?= "none"',
    "wn1-slots": 'TARGET.Fast =?= true || Owner =?= "carol"',
}
BELIEVED = ("physics", "bio", "science", "alice")
"""Groups with many members: named more often."""
OWNERS_WORD = frozenset({"asks", "hermits"})
"""Groups that rest on what the job's owner says: whatever they are given needs `trust-user`."""
SLICE_NAMES = ("LarkSlice", '"fixed"', 'ifThenElse(isUndefined(LarkGroup), "none", LarkGroup)')
OTHERS4 = (
    *("192.0.2.1", "8.8.8.8", "10.9.1.1", "10.20.1.1", "10.20.2.1", "10.20.1.70", "10.20.2.70", "10.20.0.77"),
    *("10.20.255.255", "224.0.0.5", "169.254.1.1", "10.9.7.7", "255.255.255.255", "0.0.0.1"),
)
OTHERS6 = (
    *("2001:db8:ffff::1", "2001:db8:9::1", "2001:db8:20:1::1", "2001:db8:20:2::1", "2001:db8:20::77", "2a00::1"),
    *("ff02::5", "fe80::5", "2001:db8:20:2::ffff:1", "2001:db8:20:1:1::1", "::1", "2001:db8:20:2::a14:141"),
)


@functools.cache
def _below(n: int) -> st.SearchStrategy[int]:
    return st.integers(0, n - 1)


class Dice:
    """Choices. `below(n)` gives a number from 0 to n - 1."""

    def __init__(self, below: Callable[[int], int]) -> None:
        self._below = below

    def pick(self, options: Sequence[_T]) -> _T:
        return options[self._below(len(options))] if len(options) > 1 else options[0]

    def chance(self, one_in: int) -> bool:
        return self._below(one_in) == one_in - 1

    def upto(self, most: int) -> int:
        return self._below(most + 1)

    def some(self, options: Sequence[_T], least: int, most: int) -> list[_T]:
        """Distinct ones, `least` to `most`, in random order."""
        left = list(options)
        return [left.pop(self.upto(len(left) - 1)) for _ in range(min(least + self.upto(most - least), len(left)))]


# --- policy and site --------------------------------------------------------------------------------------------------


def _port(block: str) -> PortRange:
    if block == "icmp":
        return PortRange(Protocol.ICMP, 0, 0)
    protocol, _, ports = block.partition("/")
    first, _, last = ports.partition("-")
    return PortRange(Protocol(protocol), int(first), int(last or first))


def _clash(a: str, b: str) -> bool:
    one, two = _port(a), _port(b)
    return one.protocol is two.protocol and one.first <= two.last and two.first <= one.last


def _listed(items: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{i}"' if ":" in i or i[0] in "*!&" else i for i in items) + "]"


def _rule(**keys: str | None) -> str:
    return "{" + ", ".join(f"{k.rstrip('_').replace('_', '-')}: {v}" for k, v in keys.items() if v is not None) + "}"


def _trust(group: str | None) -> str | None:
    return "true" if group in OWNERS_WORD else None


def draw_services(dice: Dice) -> tuple[dict[str, str], list[str]]:
    """Services as YAML by name, and the names of the protected ones: no two of those hold the same port of a host."""
    found: dict[str, str] = {}
    protected: list[str] = []
    held: list[tuple[list[str], list[str]]] = []
    for n in range(dice.pick((1, 2, 3, 4, 0))):
        name = f"s{n}"
        hosts = dice.some(HOSTS4, 0, 2) + dice.some(HOSTS6, 0, 2)
        blocks = dice.some(BLOCKS, 1, 3)
        if hosts and not dice.chance(4):
            taken = [b for owned, theirs in held if set(owned) & set(hosts) for b in theirs]
            blocks = [b for b in blocks if not any(_clash(b, t) for t in taken)]
            if not blocks:
                continue
            held.append((hosts, blocks))
            protected.append(name)
            open_to = dice.some(tuple(NETWORKS), 0, 2)
            found[name] = _rule(
                hosts=_listed(hosts),
                ports=_listed(blocks),
                protected="true",
                open_to=_listed(open_to) if open_to else None,
                mode="audit" if dice.chance(5) else None,
            )
        else:
            found[name] = _rule(hosts=_listed(hosts) if hosts else None, ports=_listed(blocks))
    return found, protected


def _section(name: str, rules: Sequence[str]) -> list[str]:
    return [f"{name}:", *(f"  - {rule}" for rule in rules)] if rules else []


def draw_policy(dice: Dice, nodes: Sequence[str]) -> tuple[str, list[str]]:
    """A policy's text, and its protected services. `nodes`: those of the site, for `nodes:`."""
    services, protected = draw_services(dice)
    lines = [f"mode: {dice.pick(('enforce', 'enforce', 'enforce', 'enforce', 'enforce', 'audit'))}"]
    patterns = [["wn1"], ["*"], ["*", "!wn1"]] if len(nodes) > 1 else [["wn1"], ["*"]]
    modes = [
        _rule(nodes=_listed(dice.pick(patterns)), mode=dice.pick(("audit", "enforce")))
        for _ in range(dice.pick((0, 0, 0, 1, 2)))
    ]
    lines += _section("node-modes", modes)
    lines += ["networks:", *(f"  {name}: {_listed(nets)}" for name, nets in NETWORKS.items())]
    lines += ["services:", *(f"  {name}: {text}" for name, text in services.items())] if services else []
    lines += [
        "attributes:",
        "  LarkNetwork: {type: enum, values: [none, default], default: default}",
        "  LarkSlice: {type: string, max-length: 64}",
        "groups:",
        *(f"  {name}: '{condition}'" for name, condition in GROUPS.items()),
    ]
    groups = (*GROUPS, *BELIEVED)
    grants = []
    for _ in range(dice.pick((1, 2, 3, 4, 5, 0)) if protected else 0):
        group, during = dice.pick(groups), dice.some(tuple(Phase), 0, 2)
        grants.append(
            _rule(
                for_=group,
                to=dice.pick(protected),
                during=_listed(during) if during else None,
                nodes=_listed(dice.pick(patterns)) if dice.chance(5) else None,
                mode="audit" if dice.chance(5) else None,
                trust_user=_trust(group),
            )
        )
    lines += _section("grants", grants)
    lines += _draw_classes(dice, tuple(services))
    slices = []
    for _ in range(dice.pick((1, 2, 0))):
        name = dice.pick(SLICE_NAMES)
        group = "asks" if name == "LarkSlice" else dice.pick((*groups, "everybody"))
        site_wide = dice.chance(2)
        slices.append(
            _rule(
                for_=group,
                name=f"'{name}'",
                scope="site" if site_wide else None,
                between="exposed" if dice.chance(2) else None,
                trust_user="true" if site_wide and (group in OWNERS_WORD or name == "LarkSlice") else None,
            )
        )
    lines += _section("slices", slices)
    exposes = []
    for _ in range(dice.pick((0, 1, 2, 3))):
        group, to_slice = dice.pick((*groups, "everybody")), dice.chance(2)
        exposes.append(
            _rule(
                for_=group,
                ports=_listed(dice.some(EXPOSED, 1, 2)),
                to="slice" if to_slice else _listed(dice.some(tuple(NETWORKS), 1, 2)),
                trust_user=None if to_slice else _trust(group),
            )
        )
    lines += _section("expose", exposes)
    if not dice.chance(4):
        lines.append("seal: [hermits]")
    if dice.chance(8):
        limited = dice.pick((None, "alice"))
        lines += _section("rates", [_rule(rate="'100'", unit="Mbit/s", for_=limited)])
        # Whoever has a rate may have a share besides, or instead.
        per = "User" if limited is None else "'substr(User, 0, 1)'"
        lines += _section(
            "shares", [_rule(share="10 Mbit/s", per=per, for_=limited and "bob"), _rule(share="9 Mbit/s")]
        )
    if dice.chance(8):
        lines += _section("scitags", [_rule(for_="alice", experiment="cms", activity="production-input")])
    egress, ingress, between = (
        dice.pick(("allow", "deny", "deny", "audit")),
        dice.pick(("deny", "deny", "deny", "allow", "audit")),
        dice.pick(("deny", "deny", "deny", "deny", "allow", "audit")),
    )
    lines.append("defaults: " + _rule(egress=egress, ingress=ingress, between_jobs=between))
    return "\n".join(lines) + "\n", protected


def _draw_classes(dice: Dice, services: Sequence[str]) -> list[str]:
    number = dice.pick((0, 2, 3))
    if not number:
        return []
    marks = dice.some(("ef", "af41", "0", "cs1", "63"), number, number)
    guarantee = f"{100 // number}%" if dice.chance(3) else None
    classes = [f"  - {_rule(name=f'c{n}', dscp=mark, guarantee=guarantee)}" for n, mark in enumerate(marks)]
    rules = []
    for _ in range(1 + dice.upto(3)):
        group = dice.pick((None, *GROUPS))
        service = dice.pick((*services, None)) if services else None
        rules.append(
            _rule(for_=group, service=service, class_=f"c{dice.upto(number - 1)}", trust_user=_trust(group)),
        )
    return ["classes:", *classes, *_section("classify", rules)]


def site_text(nodes: Sequence[str], guards: Sequence[str], six: bool, wans: int = 0) -> str:
    """wn1 leaves it to its agent to say its addresses; wn2 declares them here. `six`: wn2 has IPv6.

    `wans`: how many WAN ports the border has; 0: there is none.
    """
    lines = [
        "site: judged",
        "network:",
        "  {ipv4: 10.20.0.0/16, gateway-ipv4: 10.20.0.1, ipv6: '2001:db8:20::/48', gateway-ipv6: '2001:db8:20::1'}",
        "infrastructure: [192.0.2.0/24]",
        "nodes:",
        "  wn1: {bridge: wn1-br, ipv4: 10.20.1.64/26, ipv6: '2001:db8:20:1::/96'}",
    ]
    if "wn2" in nodes:
        mine = "ipv6: '2001:db8:20:2::/64', " if six else ""
        hosts = "[10.20.2.1, '2001:db8:20:2::ffff:0:1']"
        lines.append(f"  wn2: {{bridge: wn2-br, ipv4: 10.20.2.64/26, {mine}host-addresses: {hosts}}}")
    lines.append("bridges:")
    for n, node in enumerate(nodes, 1):
        lines.append(f"  {node}-br: {{datapath-id: '{n}', roles: [worker], ports: {{uplink: [up0]}}}}")
    ports = "{uplink: [up0], worker-facing: [wf0], server-facing: [sf0]}"
    lines.append(f"  gate-br: {{datapath-id: '99', roles: [gate], ports: {ports}, guards: {_listed(guards)}}}")
    if wans:
        wan = ", ".join(f"{{name: wan{n}, rate: 100 Mbit/s}}" for n in range(wans))
        lines.append(f"  edge-br: {{datapath-id: '77', roles: [border], ports: {{uplink: [up0], wan: [{wan}]}}}}")
    return "\n".join(lines) + "\n"


# --- jobs -------------------------------------------------------------------------------------------------------------


def draw_ad(dice: Dice) -> dict[str, object]:
    owner = dice.pick(("alice", "bob", "carol"))
    ad: dict[str, object] = {"Owner": owner, "User": f"{owner}@site"}
    group = dice.pick((None, "physics", "physics", "bio", "Physics"))
    if group is not None:
        ad["LarkGroup"] = group
    asked = dice.pick((None, "one", "two", "fixed"))
    if asked is not None:
        ad["LarkSlice"] = asked
    network = dice.pick((*[None] * 14, "none", 5))
    if network is not None:
        ad["LarkNetwork"] = network  # 5 does not fit: such a job is held
    return ad


def draw_world(dice: Dice) -> Case:
    """A case without packets."""
    nodes = ("wn1", "wn2") if dice.chance(2) else ("wn1",)
    policy, protected = draw_policy(dice, nodes)
    guards = [name for name in protected if not dice.chance(4)]
    site = site_text(nodes, guards, not dice.chance(4), dice.pick((1, 1, 1, 2, 0)))
    said = {
        "wn1": tuple(map(ipaddress.ip_address, ("10.20.1.1", *dice.some((*HOSTS4[:2], *HOSTS6[:2]), 0, 1)))),
        "wn2": tuple(map(ipaddress.ip_address, ("10.20.2.1", "2001:db8:20:2::ffff:0:1"))),
    }
    jobs = {
        f"job{lane}": Job(
            dice.pick(nodes), lane, dice.pick((Phase.RUN, Phase.STAGE_IN, Phase.STAGE_OUT)), draw_ad(dice)
        )
        for lane in range(1, 2 + dice.upto(3))
    }
    hosts = {node: said[node] for node in nodes}
    return Case(policy, site, MappingProxyType(hosts), MappingProxyType(jobs))


@st.composite
def cases(draw: st.DrawFn, packets: int, each_choice: bool) -> tuple[Case, World]:
    """A case with so many packets, and its world.

    `each_choice`: hypothesis makes every choice, and varies what it has chosen before. Otherwise it chooses the seed of
    a random generator that makes them: worlds are then all different, and drawn faster.
    """
    if each_choice:
        dice = Dice(lambda n: draw(_below(n)))
    else:
        dice = Dice(random.Random(draw(st.integers(0, 2**64 - 1))).randrange)
    case = draw_world(dice)
    world = world_of(case)
    table = Table(world)
    return replace(case, packets=tuple(draw_packet(dice, table) for _ in range(packets))), world


# --- packets ----------------------------------------------------------------------------------------------------------


class Table:
    """What packets of a world are drawn from, gathered once."""

    def __init__(self, world: World) -> None:
        self.jobs = tuple(world.attempts.values())
        self.bridges = tuple(world.site.bridges)
        self.wans = max((len(bridge.wan) for bridge in world.site.bridges.values()), default=0)
        self.anybody: dict[int, list[Address]] = {4: [], 6: []}
        for text in (*HOSTS4, *HOSTS6, *OTHERS4, *OTHERS6):
            address = ipaddress.ip_address(text)
            self.anybody[address.version].append(address)
        self.offers: dict[int, list[tuple[Address, PortRange]]] = {4: [], 6: []}
        for service in world.policy.services.values():
            for host in service.hosts or map(ipaddress.ip_address, ("8.8.8.8", "2a00::1")):
                self.offers[host.version] += [(host, block) for block in service.ports]
        self.guarded: dict[int, list[tuple[Address, PortRange]]] = {4: [], 6: []}
        self.customers: list[tuple[Attempt, Address, PortRange]] = []
        for name in sorted({name for bridge in world.site.bridges.values() for name in bridge.guards}):
            theirs = [job for job in self.jobs if name in job.outcome.known_services]
            for host in world.policy.services[name].hosts:
                for block in world.policy.services[name].ports:
                    self.guarded[host.version].append((host, block))
                    self.customers += [(job, host, block) for job in theirs if host.version == 4 or job.ipv6]
        self.exposed = [b for rule in world.policy.exposes for b in rule.ports] or [_port(EXPOSED[0])]
        self.between = [(a, b) for a in self.jobs for b in self.jobs if a is not b]
        self.mates = [(a, b) for a, b in self.between if a.slice is not None and a.slice == b.slice]
        self.served = [
            (job, rule) for rule in world.policy.exposes for job in self.jobs if rule.networks and _has(job, rule)
        ]
        for job in self.jobs:
            self.anybody[4].append(job.ipv4)
            if job.ipv6 is not None:
                self.anybody[6].append(job.ipv6)


def _has(job: Attempt, rule: Expose) -> bool:
    return rule.group in job.outcome.groups


def _near(dice: Dice, block: PortRange) -> tuple[Transport, int]:
    """A port of a block or just beside it; sometimes of another protocol."""
    if block.protocol is Protocol.ICMP:
        return (Transport.ICMP, 0) if not dice.chance(8) else (Transport.UDP, 1094)
    port = dice.pick((block.first, block.last, block.first, block.first - 1, block.last + 1))
    other = Transport.UDP if block.protocol is Protocol.TCP else Transport.TCP
    return (Transport(block.protocol.value) if not dice.chance(10) else other), port


def draw_packet(dice: Dice, table: Table) -> Sent:
    """A packet from a job, to a job, over the border, or between others past the gate; mostly honest."""
    kind = dice.upto(5) if table.jobs else 5
    if "edge-br" in table.bridges and dice.chance(6):
        return _over_border(dice, table)
    if kind <= 2:
        return _from_job(dice, table)
    return _to_job(dice, table) if kind <= 3 else _past_gate(dice, table)


def _flags(dice: Dice, sent: Sent) -> Sent:
    """ACK, fragments and marks; what a packet cannot show is not in it."""
    fragment = dice.pick((Fragment.WHOLE,) * 6 + (Fragment.FIRST, Fragment.LATER))
    tracked, dscp = dice.chance(4), dice.pick((0, 0, 46))
    transport = sent.transport
    ack = transport is Transport.TCP and fragment is not Fragment.LATER and dice.upto(1) == 1
    ports = (sent.source_port, sent.destination_port)
    if fragment is Fragment.LATER and sent.source.version == 6:
        transport = Transport.OTHER
    if fragment is Fragment.LATER or transport in (Transport.ICMP, Transport.OTHER):
        ports = (0, 0)
    return replace(
        sent,
        transport=transport,
        source_port=ports[0],
        destination_port=ports[1],
        ack=ack,
        fragment=fragment,
        tracked=tracked,
        dscp=dscp,
    )


def _own(dice: Dice, job: Attempt) -> Address:
    return job.ipv4 if job.ipv6 is None or not dice.chance(3) else job.ipv6


def _from_job(dice: Dice, table: Table) -> Sent:
    if table.between and dice.chance(3):
        job, peer = dice.pick(table.mates if table.mates and not dice.chance(3) else table.between)
        mine = _own(dice, job)
        theirs: Address = peer.ipv4
        if mine.version == 6:
            theirs = peer.ipv6 if peer.ipv6 is not None else table.anybody[6][0]
        transport, port = _near(dice, dice.pick(table.exposed))
        near = 40000
        if dice.chance(3):
            port, near = near, port  # an answer
    else:
        job = dice.pick(table.jobs)
        mine = _own(dice, job)
        theirs, transport, port, near = _far(dice, table.anybody, table.offers, mine.version)
    source, mac = mine, job.mac
    honest = dice.upto(15)
    if honest == 15:
        source = dice.pick(table.anybody[mine.version])
    elif honest == 14:
        mac = dice.pick((mac ^ 1, ROUTER_MAC))
    return _flags(dice, Sent(job.bridge, f"lj{job.ofport - 10}", transport, source, near, theirs, port, mac))


_Anybody = Mapping[int, Sequence[Address]]
_Offers = Mapping[int, Sequence[tuple[Address, PortRange]]]


def _far(dice: Dice, anybody: _Anybody, offers: _Offers, version: int) -> tuple[Address, Transport, int, int]:
    """A far end: mostly a host of a service near one of its ports, sometimes anybody; and the near end's port."""
    near = dice.pick((40000, 40000, 8000, 1094, 67, 547))
    if offers[version] and not dice.chance(3):
        host, block = dice.pick(offers[version])
        transport, port = _near(dice, block)
        if dice.chance(12):
            host = dice.pick(anybody[version])
        return host, transport, port, near
    host = dice.pick(anybody[version])
    transport = dice.pick((Transport.TCP, Transport.UDP, Transport.ICMP, Transport.OTHER))
    return host, transport, dice.pick((80, 22, 1094, 40000, 8001)), near


def _to_job(dice: Dice, table: Table) -> Sent:
    """From outside to a job: an answer of a service, or a call of what it exposes."""
    job = dice.pick(table.jobs)
    mine = _own(dice, job)
    if table.served and dice.chance(3):
        job, rule = dice.pick(table.served)
        mine = _own(dice, job)
        inside = [a for a in table.anybody[mine.version] if any(a in net for net in rule.networks)]
        theirs = dice.pick(inside or table.anybody[mine.version])
        transport, near = _near(dice, dice.pick(rule.ports))
        port = 40000
    elif dice.chance(2):
        theirs, transport, port, near = _far(dice, table.anybody, table.offers, mine.version)
    else:
        theirs = dice.pick(table.anybody[mine.version])
        transport, near = _near(dice, dice.pick(table.exposed))
        port = 40000
    return _flags(dice, Sent(job.bridge, "up0", transport, theirs, port, mine, near, ROUTER_MAC))


def _over_border(dice: Dice, table: Table) -> Sent:
    """Between anybody at this end, mostly a job or a host of a service, and anybody outside."""
    version = 6 if dice.chance(3) else 4
    here: Address = dice.pick(table.anybody[version])
    near = dice.pick((40000, 40000, 8000))
    if table.jobs and not dice.chance(3):
        job = dice.pick(table.jobs)
        here = job.ipv6 if version == 6 and job.ipv6 is not None else job.ipv4
    theirs, transport, port, _ = _far(dice, table.anybody, table.offers, here.version)
    if dice.chance(3) and table.offers[here.version]:
        _, block = dice.pick(table.offers[here.version])
        transport, near = _near(dice, block)  # this end speaks from a port of a service
        port = 40000
    side = dice.pick(("up0", "up0", "wan0", "wan1" if table.wans > 1 else "wan0"))
    if side == "up0":
        return _flags(dice, Sent("edge-br", side, transport, here, near, theirs, port, ROUTER_MAC))
    return _flags(dice, Sent("edge-br", side, transport, theirs, port, here, near, ROUTER_MAC))


def _past_gate(dice: Dice, table: Table) -> Sent:
    side = dice.pick(("wf0", "up0", "sf0"))
    version = 6 if dice.chance(3) else 4
    mac = ROUTER_MAC
    peer = dice.pick(table.anybody[version])
    if table.jobs and dice.chance(2):
        job = dice.pick(table.jobs)
        mac = job.mac if not dice.chance(6) else ROUTER_MAC
        peer = job.ipv6 if version == 6 and job.ipv6 is not None else job.ipv4
    theirs, transport, port, near = _far(dice, table.anybody, table.guarded, peer.version)
    if table.customers and dice.chance(3):
        job, theirs, block = dice.pick(table.customers)
        mac = job.mac if not dice.chance(6) else ROUTER_MAC
        peer = job.ipv6 if theirs.version == 6 and job.ipv6 is not None else job.ipv4
        transport, port = _near(dice, block)
    if side == "sf0":
        return _flags(dice, Sent("gate-br", side, transport, theirs, port, peer, near, ROUTER_MAC))
    return _flags(dice, Sent("gate-br", side, transport, peer, near, theirs, port, mac))
