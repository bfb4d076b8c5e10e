"""A judged case as text: policy, site, hosts, jobs' ads and packets; read, printed and replayed.

A case is all that verdicts follow from, in the words of those who write policies: policy and site files as they are,
each job's ad, node and phase, and one line for each packet. The judges work on cases alone, so what they print of a
failure is what `python -m mininet_tests.replay` reads.

A packet's line names where it enters, what it carries, and flags:

    wn1-br lj1: tcp 10.20.1.65 40000 -> 10.20.0.5 1094 mac=02:6c:0a:14:01:41 ack first dscp=10

Flags: `ack`; `first` or `later` (a fragment); `tracked` (the connection table knows it as a reply).
"""

from __future__ import annotations

import functools
import ipaddress
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from ruamel.yaml import YAML

from policies.decide import Held, decide
from policies.language import check_together, load_site, policy_from_text
from policies.model import Address, Attempt, Outcome, Policy, Role, Site, World
from policies.semantics import Fragment, Transport
from policies.wire import Phase
from ryu_apps.openflow.compiler import lane_addresses
from tests.numbers import share_numbers

UPLINK, WORKERS, SERVERS, WAN, OTHER_WAN = 1, 2, 3, 4, 5
"""Port numbers: the uplink (`up0`) of any bridge, a gate's worker-facing (`wf0`) and server-facing (`sf0`) ports, and a
border's WAN ports (`wan0`, `wan1`); a border's port to the site is `up0`."""
NUMBERS = {"up0": UPLINK, "wf0": WORKERS, "sf0": SERVERS, "wan0": WAN, "wan1": OTHER_WAN}
FIRST_JOB_PORT = 10
"""The job of lane n is at port `ljn`, number 10 + n, of its node's bridge; it has the n-th address of the node."""


@dataclass(frozen=True, slots=True)
class Job:
    node: str
    lane: int
    phase: Phase
    ad: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Sent:
    """A packet and the bridge and port by which it enters."""

    bridge: str
    port: str
    transport: Transport
    source: Address
    source_port: int
    destination: Address
    destination_port: int
    mac: int
    ack: bool = False
    fragment: Fragment = Fragment.WHOLE
    tracked: bool = False
    dscp: int = 0

    @property
    def in_port(self) -> int:
        return NUMBERS[self.port] if self.port in NUMBERS else FIRST_JOB_PORT + int(self.port.removeprefix("lj"))


@dataclass(frozen=True, slots=True)
class Case:
    """`hosts`: node -> addresses that its agent says its host has. `jobs`: by name."""

    policy: str
    site: str
    hosts: Mapping[str, tuple[Address, ...]] = field(default_factory=lambda: MappingProxyType({}))
    jobs: Mapping[str, Job] = field(default_factory=lambda: MappingProxyType({}))
    packets: tuple[Sent, ...] = ()


# --- to a world -------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def policy_of(text: str) -> Policy:
    """The policy, by the loader that the controller uses. Raises PolicyError."""
    return policy_from_text(text)


@functools.lru_cache(maxsize=256)
def site_of(text: str) -> Site:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "site.yaml"
        file.write_text(text)
        return load_site(file)


def world_of(case: Case) -> World:
    """The world of a case's policy, site and jobs. A job that the policy holds is not in it: it never starts.

    Raises PolicyError.
    """
    policy, site = policy_of(case.policy), site_of(case.site)
    check_together(policy, site)
    world = World(
        site=site,
        policy=policy,
        ports=_ports(site),
        host_addresses=dict(case.hosts),
        service_numbers={name: n for n, name in enumerate(sorted(policy.services), 1)},
        node_numbers={name: n for n, name in enumerate(sorted(site.nodes), 1)},
    )
    attempts: dict[str, Attempt] = {}
    identities: dict[Outcome, int] = {}
    slices: dict[str, int] = {}
    for number, (name, job) in enumerate(case.jobs.items(), 1):
        try:
            decision = decide(policy, job.node, job.ad, {}, job.phase)
        except Held:
            continue
        node = site.nodes[job.node]
        ipv4 = node.ipv4[job.lane]
        mac, ipv6 = lane_addresses(site, job.node, ipv4)
        identities.setdefault(decision.outcome, len(identities) + 1)
        if decision.slice is not None:
            slices.setdefault(decision.slice, 7 + len(slices))
        attempts[name] = Attempt(
            id=name,
            number=number,
            node=job.node,
            bridge=node.bridge,
            port_name=f"lj{job.lane}",
            ofport=FIRST_JOB_PORT + job.lane,
            mac=mac,
            ipv4=ipv4,
            ipv6=ipv6,
            zone=1000 + number,
            phase=job.phase,
            outcome=decision.outcome,
            slice=decision.slice,
            scitag=decision.scitag,
            rate=decision.rate,
            share=decision.share,
        )
    return replace(
        world,
        identities=identities,
        slice_numbers=slices,
        share_numbers=share_numbers(attempts.values()),
        attempts=attempts,
    )


def _ports(site: Site) -> dict[str, dict[str, int]]:
    return {name: {port: NUMBERS[port] for port in bridge.ports} for name, bridge in site.bridges.items()}


# --- as text ----------------------------------------------------------------------------------------------------------


def mac_text(mac: int) -> str:
    return ":".join(f"{octet:02x}" for octet in mac.to_bytes(6, "big"))


def packet_text(sent: Sent) -> str:
    words = [
        f"{sent.bridge} {sent.port}: {sent.transport} {sent.source} {sent.source_port}",
        f"-> {sent.destination} {sent.destination_port} mac={mac_text(sent.mac)}",
    ]
    words += ["ack"] if sent.ack else []
    words += [] if sent.fragment is Fragment.WHOLE else [sent.fragment.value]
    words += ["tracked"] if sent.tracked else []
    words += [f"dscp={sent.dscp}"] if sent.dscp else []
    return " ".join(words)


_PACKET = re.compile(
    r"(\S+) (\S+): (tcp|udp|icmp|other) (\S+) (\d+) -> (\S+) (\d+) mac=([0-9a-f:]{17})"
    r"((?: (?:ack|first|later|tracked|dscp=\d+))*)"
)


def read_packet(line: str) -> Sent:
    """The packet of one line. Raises ValueError."""
    found = _PACKET.fullmatch(" ".join(line.split()))
    if found is None:
        raise ValueError(
            f"not a packet: {line!r}; write it as\n  BRIDGE PORT: tcp SOURCE PORT -> HOST PORT mac=… [ack]"
        )
    bridge, port, transport, source, source_port, destination, destination_port, mac, rest = found.groups()
    flags = rest.split()
    fragments = [Fragment(f) for f in flags if f in ("first", "later")]
    return Sent(
        bridge=bridge,
        port=port,
        transport=Transport(transport),
        source=ipaddress.ip_address(source),
        source_port=int(source_port),
        destination=ipaddress.ip_address(destination),
        destination_port=int(destination_port),
        mac=int(mac.replace(":", ""), 16),
        ack="ack" in flags,
        fragment=fragments[0] if fragments else Fragment.WHOLE,
        tracked="tracked" in flags,
        dscp=next((int(f.removeprefix("dscp=")) for f in flags if f.startswith("dscp=")), 0),
    )


def packet_words(world: World, sent: Sent) -> str:
    """The packet as one says it."""
    sender = next((a for a in world.attempts.values() if (a.bridge, a.ofport) == (sent.bridge, sent.in_port)), None)
    what = {Transport.OTHER: "a packet of another protocol"}.get(sent.transport, f"{sent.transport.value.upper()}")
    what += {Fragment.FIRST: ", first fragment", Fragment.LATER: ", later fragment"}.get(sent.fragment, "")
    what += " with ACK" if sent.ack else ""
    if sender is not None:
        honest = sent.mac == sender.mac and sent.source in (sender.ipv4, sender.ipv6)
        who = f"{sender.id} sends {what}" + ("" if honest else f", forged ({sent.source}, {mac_text(sent.mac)}),")
    else:
        names = {"up0": "outside", "wf0": "the workers' side", "sf0": "the servers' side"}
        names |= {"wan0": "the WAN", "wan1": "the other WAN"}
        if Role.BORDER in world.site.bridges[sent.bridge].roles:
            names["up0"] = "the site"
        side = names.get(sent.port, sent.port)
        who = f"from {side} of {sent.bridge} comes {what} from {_named(world, sent.source)}"
    ports = f", port {sent.source_port} to {sent.destination_port}" if sent.fragment is not Fragment.LATER else ""
    known = ", a reply by the connection table" if sent.tracked else ""
    return f"{who} to {_named(world, sent.destination)}{ports}{known}"


def _named(world: World, address: Address) -> str:
    for job in world.attempts.values():
        if address in (job.ipv4, job.ipv6):
            return f"{job.id} ({address})"
    services = [s.name for s in world.policy.services.values() if address in s.hosts]
    return f"{address} (host of {', '.join(services)})" if services else str(address)


def case_text(case: Case) -> str:
    """The case as YAML: what `read_case` reads."""
    lines = ["policy: |", *_indented(case.policy), "site: |", *_indented(case.site), "hosts:" if case.hosts else ""]
    lines += [f"  {node}: [{', '.join(_quoted(a) for a in addresses)}]" for node, addresses in case.hosts.items()]
    lines.append("jobs:" if case.jobs else "")
    for name, job in case.jobs.items():
        ad = ", ".join(f"{key}: {_quoted(value)}" for key, value in job.ad.items())
        lines.append(f"  {name}: {{node: {job.node}, lane: {job.lane}, phase: {job.phase}, ad: {{{ad}}}}}")
    lines.append("packets:" if case.packets else "")
    lines += [f"  - '{packet_text(sent)}'" for sent in case.packets]
    return "\n".join(line for line in lines if line) + "\n"


def _indented(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]


def _quoted(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else f'"{value}"'


def read_case(text: str) -> Case:
    """A case from its text. Raises ValueError, PolicyError or KeyError with what is wrong."""
    data = YAML(typ="safe").load(text)
    unknown = set(data) - {"policy", "site", "hosts", "jobs", "packets"}
    if unknown:
        raise ValueError(f"unknown keys: {', '.join(sorted(unknown))}")
    return Case(
        policy=data["policy"],
        site=data["site"],
        hosts={n: tuple(ipaddress.ip_address(a) for a in found) for n, found in (data.get("hosts") or {}).items()},
        jobs={
            name: Job(str(job["node"]), int(job["lane"]), Phase(job["phase"]), dict(job["ad"] or {}))
            for name, job in (data.get("jobs") or {}).items()
        },
        packets=tuple(read_packet(line) for line in data.get("packets") or ()),
    )


# --- smaller ones -----------------------------------------------------------------------------------------------------


def smaller(case: Case) -> Iterator[Case]:
    """Cases with a little less in them: a job, a line of the policy, an attribute, an item of a list."""
    for name in case.jobs:
        yield replace(case, jobs={n: job for n, job in case.jobs.items() if n != name})
    lines = case.policy.splitlines()
    for first, line in enumerate(lines):
        depth = len(line) - len(line.lstrip())
        last = first + 1
        while last < len(lines) and len(lines[last]) - len(lines[last].lstrip()) > depth:
            last += 1
        yield replace(case, policy="\n".join(lines[:first] + lines[last:]) + "\n")
    for name, job in case.jobs.items():
        for key in job.ad:
            ad = {k: value for k, value in job.ad.items() if k != key}
            yield replace(case, jobs={**case.jobs, name: replace(job, ad=ad)})
    for node, addresses in case.hosts.items():
        if addresses:
            yield replace(case, hosts={**case.hosts, node: addresses[1:]})
    for found in re.finditer(r"\[([^\[\]]*)\]", case.policy):
        items = found.group(1).split(", ")
        for n in range(len(items) if len(items) > 1 else 0):
            fewer = ", ".join(items[:n] + items[n + 1 :])
            yield replace(case, policy=f"{case.policy[: found.start()]}[{fewer}]{case.policy[found.end() :]}")
    for found in re.finditer(r", [a-z-]+: ([^\[\]{},]+|\[[^\[\]]*\])", case.policy):
        yield replace(case, policy=case.policy[: found.start()] + case.policy[found.end() :])
    for n, sent in enumerate(case.packets):
        plainer = replace(sent, dscp=0, tracked=False)
        if plainer != sent:
            yield replace(case, packets=(*case.packets[:n], plainer, *case.packets[n + 1 :]))
