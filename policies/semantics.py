"""The executable meaning of a policy: `judge(world, packet)` says what must happen, and which line decided.

It knows nothing of OpenFlow and imports neither compiler nor simulator: everything else is tested against it. The
steps are those of docs/policy.md, "Meaning, in order".
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from policies.model import (
    NEVER_OPENED_BY_AUDIT,
    Address,
    Attempt,
    Bridge,
    Expose,
    Mode,
    Place,
    PortKind,
    PortRange,
    Protocol,
    Reason,
    Service,
    TrafficClass,
    Verdict,
    World,
)


class Transport(enum.StrEnum):
    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"
    OTHER = "other"


class Fragment(enum.StrEnum):
    """What of a datagram a packet is: all of it, its first fragment (with the ports), or a later one (without)."""

    WHOLE = "whole"
    FIRST = "first"
    LATER = "later"


@dataclass(frozen=True, slots=True)
class Packet:
    """An IP packet at a bridge, to a unicast MAC; not neighbour discovery.

    `sender`: id of the attempt whose port it comes in by; None: it comes from outside (the uplink). `mac`: its source
    MAC. `tracked`: it belongs to a connection that the connection table holds, in the reply direction. A later fragment
    has no ports and no flags; of an IPv6 one not even the transport is known (OTHER).
    """

    sender: str | None
    mac: int
    source: Address
    destination: Address
    transport: Transport
    source_port: int = 0
    destination_port: int = 0
    ack: bool = False
    tracked: bool = False
    fragment: Fragment = Fragment.WHOLE


class Step(enum.Enum):
    """The steps of docs/policy.md, "Meaning, in order". The value is what is asked."""

    OWN = "does the frame carry the job's own MAC and addresses?"
    SEAL = "is the job sealed?"
    UNICAST = "is it for one host?"
    BETWEEN_JOBS = "is it between jobs?"
    SERVICE = "is it for a protected service?"
    NODE = "is it for a node's own address, or infrastructure?"
    EGRESS = "is egress allowed?"
    REPLY = "is it a reply to allowed traffic?"
    EXPOSED = "does the job serve this to the sender's network?"
    INGRESS = "is ingress allowed?"
    GATE = "does a gate let it pass?"
    BORDER = "does a border let it pass?"


OUTWARD = (Step.SEAL, Step.OWN, Step.UNICAST, Step.BETWEEN_JOBS, Step.SERVICE, Step.NODE, Step.EGRESS)
INWARD = (Step.OWN, Step.SEAL, Step.BETWEEN_JOBS, Step.REPLY, Step.EXPOSED, Step.INGRESS)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict in force. `reason`: what a refusal is counted for, also where audit mode lets the packet on.

    `step`: which question decided; all before it (in `OUTWARD` or `INWARD`) were answered and did not decide.
    """

    verdict: Verdict
    reason: Reason | None
    place: Place | None
    text: str
    step: Step


def judge(world: World, packet: Packet) -> Judgement:
    """What a worker bridge must do with a packet from or to one of its jobs. Raises KeyError for an unknown sender."""
    if packet.sender is not None:
        return _from_job(world, world.attempts[packet.sender], packet)
    receiver = next((a for a in world.attempts.values() if packet.destination in (a.ipv4, a.ipv6)), None)
    if receiver is None:
        return Judgement(Verdict.DROP, None, None, "no job has this address", Step.OWN)
    return _to_job(world, receiver, packet)


def judge_at_gate(world: World, bridge: Bridge, packet: Packet, entered: PortKind) -> Judgement:
    """What a gate must do with a packet that enters by a port of the given kind.

    `packet.sender` is ignored: at a gate a job is known by its MAC and address alone.
    """
    guarded = [world.policy.services[name] for name in bridge.guards]
    if entered is PortKind.SERVER_FACING:
        found = _services_for(guarded, packet.source, packet.transport, packet.source_port, packet.fragment)
        if not found or packet.fragment is Fragment.LATER:
            return _allow(Step.GATE, "not an answer of a guarded service")
        if packet.transport is Transport.TCP and not packet.ack:
            return _drop(Step.GATE, Reason.NO_GRANT, "a service answers, it does not call", found[0].place)
        peer = packet.destination
        return _gate_verdict(world, found, peer, _holder(world, bridge, peer, None))
    if any(packet.source in world.policy.services[name].hosts for name in bridge.guards):
        return _drop(Step.OWN, Reason.SPOOFED, "a guarded server's address from a port that faces no servers")
    if in_job_range(world, packet.source) and entered is not PortKind.WORKER_FACING:
        return _drop(Step.OWN, Reason.SPOOFED, "a job's address from a port that faces no workers")
    found = _services_for(guarded, packet.destination, packet.transport, packet.destination_port, packet.fragment)
    if found is None:
        return _allow(Step.GATE, "not for a guarded service")
    if not found:
        return _refuse_at_gate(world, packet.source, "a fragment that shows no port of a guarded service")
    return _gate_verdict(world, found, packet.source, _holder(world, bridge, packet.source, packet.mac))


def class_of(world: World, packet: Packet) -> TrafficClass | None:
    """The class of a packet that a job sends or gets, or that no job has part in. None: the policy has no classes.

    A rule that names a service looks at the far end of a packet of a job, and at both ends of one without a job.
    """
    found = classified(world, packet)
    return None if found is None else found[0]


def classified(world: World, packet: Packet) -> tuple[TrafficClass, Place] | None:
    """As `class_of`, with the line that decided: the rule's, or that of the last class if no rule fits."""
    policy = world.policy
    if not policy.classes:
        return None
    job = world.attempts[packet.sender] if packet.sender is not None else _at(world, packet.destination)
    far = (packet.destination, packet.destination_port)
    if job is None:
        ends = [far, (packet.source, packet.source_port)]
    elif packet.sender is not None:
        ends = [far]
    else:
        ends = [(packet.source, packet.source_port)]
    for rule in policy.classify:
        if rule.group is not None and (job is None or rule.group not in job.outcome.groups):
            continue
        if rule.service is not None:
            service = policy.services[rule.service]
            speaks = any(speaks_for(service, host, packet.transport, port) for host, port in ends)
            if packet.fragment is Fragment.LATER or not speaks:
                continue
        return next(c for c in policy.classes if c.name == rule.traffic_class), rule.place
    return policy.classes[-1], policy.classes[-1].place


def _refuse(
    world: World,
    job: Attempt,
    step: Step,
    reason: Reason,
    text: str,
    place: Place | None = None,
    *,
    audited: bool = False,
    never: bool = False,
) -> Judgement:
    """A refusal as in force: let on where the node or the rule (`audited`) is in audit mode, unless `never`."""
    if reason in NEVER_OPENED_BY_AUDIT or never or not (audited or world.policy.audits(job.node)):
        return _drop(step, reason, text, place)
    return Judgement(Verdict.ALLOW, reason, place, f"audit: would be dropped: {text}", step)


def _allow(step: Step, text: str, place: Place | None = None) -> Judgement:
    return Judgement(Verdict.ALLOW, None, place, text, step)


def _drop(step: Step, reason: Reason, text: str, place: Place | None = None) -> Judgement:
    return Judgement(Verdict.DROP, reason, place, text, step)


def _from_job(world: World, job: Attempt, packet: Packet) -> Judgement:
    policy = world.policy
    if job.outcome.sealed:
        return _drop(Step.SEAL, Reason.SEALED, "the job is sealed")
    if packet.mac != job.mac or packet.source not in (job.ipv4, job.ipv6):
        return _drop(Step.OWN, Reason.SPOOFED, "not the job's own MAC and address")
    if _is_dhcp_server(packet):
        return _drop(Step.OWN, Reason.SPOOFED, "a job is no DHCP server")
    if not _unicast(world, packet.destination):
        return _drop(Step.UNICAST, Reason.MULTICAST, "multicast, broadcast or no address of a host")
    if in_job_range(world, packet.destination):
        return _between_jobs(world, job, packet, packet.destination)
    protected = [s for s in policy.services.values() if s.protected]
    host = packet.destination
    found = _services_for(protected, host, packet.transport, packet.destination_port, packet.fragment)
    if found is not None:
        closed = _is_node(world, job, host)
        if not found:
            text = "a fragment that shows no port of a protected service of this host"
            return _refuse(world, job, Step.SERVICE, Reason.NO_GRANT, text, never=closed)
        granted = next((s for s in found if s.name in job.outcome.services), None)
        if granted is not None:
            return _allow(Step.SERVICE, f"granted service {granted.name}", granted.place)
        audited = any(s.audit or s.name in job.outcome.audited for s in found)
        text = f"no grant of this job covers service {' or '.join(s.name for s in found)}"
        place = found[0].place
        return _refuse(world, job, Step.SERVICE, Reason.NO_GRANT, text, place, audited=audited, never=closed)
    if _is_node(world, job, host):
        return _drop(Step.NODE, Reason.NODE, "a node's own address, or infrastructure")
    if policy.defaults.egress is Verdict.ALLOW:
        return _allow(Step.EGRESS, "egress is allowed", policy.defaults.place)
    called = policy.defaults.ingress is Verdict.ALLOW or Reason.INGRESS in policy.defaults.audited
    welcome = called or any(rule.networks and rule.group in job.outcome.groups for rule in policy.exposes)
    if packet.tracked and welcome:
        return _allow(Step.EGRESS, "reply to an allowed connection")
    audited = Reason.EGRESS in policy.defaults.audited
    return _refuse(world, job, Step.EGRESS, Reason.EGRESS, "egress is denied", policy.defaults.place, audited=audited)


def _to_job(world: World, job: Attempt, packet: Packet) -> Judgement:
    policy = world.policy
    node = world.site.nodes[job.node]
    if packet.source in node.ipv4 or (node.ipv6 is not None and packet.source in _derived(node.ipv6)):
        return Judgement(Verdict.DROP, None, node.place, "from outside, with an address of this node's jobs", Step.OWN)
    if job.outcome.sealed:
        return Judgement(Verdict.DROP, None, None, "the job is sealed", Step.SEAL)
    if in_job_range(world, packet.source):
        return _between_jobs(world, job, packet, packet.source)
    if packet.transport is Transport.TCP and (packet.ack or packet.fragment is Fragment.LATER):
        protected = [s for s in policy.services.values() if s.protected]
        found = _services_for(protected, packet.source, packet.transport, packet.source_port, packet.fragment)
        granted = next((s for s in found or () if s.name in job.outcome.services), None)
        if granted is not None:
            return _allow(Step.REPLY, f"answer of granted service {granted.name}", granted.place)
    if packet.tracked:
        return _allow(Step.REPLY, "reply to a connection the job began")
    for rule in policy.exposes:
        if rule.group in job.outcome.groups and any(packet.source in net for net in rule.networks):
            port = packet.destination_port
            if packet.fragment is Fragment.LATER or _in_ports(rule.ports, packet.transport, port):
                return _allow(Step.EXPOSED, "the job serves this to the sender's network", rule.place)
    if policy.defaults.ingress is Verdict.ALLOW:
        return _allow(Step.INGRESS, "ingress is allowed", policy.defaults.place)
    audited = Reason.INGRESS in policy.defaults.audited
    text = "not a reply, and ingress is denied"
    return _refuse(world, job, Step.INGRESS, Reason.INGRESS, text, policy.defaults.place, audited=audited)


def _between_jobs(world: World, job: Attempt, packet: Packet, far: Address) -> Judgement:
    """`job`: the one whose bridge judges; `far`: the address at the other end, in the range of a node's jobs."""
    found = _by_slice_or_default(world, job, packet, far)
    peer = _at(world, far)
    if found.verdict is Verdict.ALLOW and peer is not None and peer.outcome.sealed and peer.bridge == job.bridge:
        # Neither audit mode nor a default opens a seal. Of a job on another bridge that bridge sees to it.
        return Judgement(Verdict.DROP, found.reason, found.place, "the job at the far end is sealed", found.step)
    return found


def _by_slice_or_default(world: World, job: Attempt, packet: Packet, far: Address) -> Judgement:
    defaults = world.policy.defaults
    step = Step.BETWEEN_JOBS
    text = "jobs may not talk to each other"
    peer = _peer_in_slice(world, job, far)
    if peer is not None and not job.exposed_only:
        return _allow(step, f"both jobs are in slice {job.slice}")
    if peer is not None:
        sender, receiver = (job, peer) if packet.sender is not None else (peer, job)
        rule = _exposed_between(world, sender, receiver, packet)
        if rule is not None:
            return _allow(step, f"both jobs are in slice {job.slice}, and one of them serves this to it", rule.place)
        text = "members of this slice reach only what they expose to each other"
    if defaults.between_jobs is Verdict.ALLOW:
        return _allow(step, "jobs may talk to each other", defaults.place)
    audited = Reason.BETWEEN_JOBS in defaults.audited
    return _refuse(world, job, step, Reason.BETWEEN_JOBS, text, defaults.place, audited=audited)


def _exposed_between(world: World, sender: Attempt, receiver: Attempt, packet: Packet) -> Expose | None:
    """The rule that lets a packet pass within a slice of exposed ports: what its receiver serves, or an answer.

    Answers are known by their ports alone (of TCP, with ACK): both jobs are of one slice, and nothing is tracked.
    """
    answer = packet.ack or packet.transport is not Transport.TCP
    for rule in world.policy.exposes:
        if not rule.to_slice:
            continue
        asked, answers = (rule.group in job.outcome.groups for job in (receiver, sender))
        if packet.fragment is Fragment.LATER:
            if asked or answers:
                return rule
            continue
        if asked and _in_ports(rule.ports, packet.transport, packet.destination_port):
            return rule
        if answers and answer and _in_ports(rule.ports, packet.transport, packet.source_port):
            return rule
    return None


def _gate_verdict(world: World, services: Sequence[Service], peer: Address, job: Attempt | None) -> Judgement:
    """`services`: the one a packet is for; of a later fragment all that its host has here."""
    for service in services:
        if job is not None and service.name in job.outcome.services:
            return _allow(Step.GATE, f"granted service {service.name}", service.place)
    if _node_of(world, peer) is None:
        for service in services:
            if any(peer in net for net in service.open_to):
                return _allow(Step.GATE, f"service {service.name} is open to this network", service.place)
    text = f"nothing opens service {' or '.join(s.name for s in services)} to {peer}"
    audited = any(s.audit or (job is not None and s.name in job.outcome.audited) for s in services)
    return _refuse_at_gate(world, peer, text, services[0].place, audited=audited)


def _refuse_at_gate(
    world: World, peer: Address, text: str, place: Place | None = None, *, audited: bool = False
) -> Judgement:
    """The mode that counts for a job is its node's; for anybody else it is the site's."""
    owner = _node_of(world, peer)
    if audited or (world.policy.mode is Mode.AUDIT if owner is None else world.policy.audits(owner)):
        return Judgement(Verdict.ALLOW, Reason.NO_GRANT, place, f"audit: would be dropped: {text}", Step.GATE)
    return _drop(Step.GATE, Reason.NO_GRANT, text, place)


def _holder(world: World, gate: Bridge, address: Address, mac: int | None) -> Attempt | None:
    """The job that a gate knows by this address (and MAC): only jobs with a grant for a service it guards."""
    for job in world.attempts.values():
        known_here = not job.outcome.sealed and job.outcome.known_services.intersection(gate.guards)
        if known_here and address in (job.ipv4, job.ipv6) and mac in (None, job.mac):
            return job
    return None


def _at(world: World, address: Address) -> Attempt | None:
    return next((a for a in world.attempts.values() if address in (a.ipv4, a.ipv6)), None)


def _peer_in_slice(world: World, job: Attempt, address: Address) -> Attempt | None:
    peer = _at(world, address)
    together = job.slice is not None and peer is not None and peer.slice == job.slice and not peer.outcome.sealed
    return peer if together else None


def _services_for(
    services: Sequence[Service], host: Address, transport: Transport, port: int, fragment: Fragment
) -> list[Service] | None:
    """Which of the services a packet with this far end is for.

    None: none of them. Empty: it is a first fragment for a host that has one, but for none of their ports; its later
    fragments could carry what it does not show. A later fragment is for all services of its host.
    """
    here = [s for s in services if host in s.hosts]
    if fragment is Fragment.LATER:
        return here or None
    found = [s for s in here if _has_port(s, transport, port)]
    if found or (fragment is Fragment.FIRST and here):
        return found
    return None


def speaks_for(service: Service, host: Address, transport: Transport, port: int) -> bool:
    """Whether this end of a packet is of a service."""
    return (not service.hosts or host in service.hosts) and _has_port(service, transport, port)


def _has_port(service: Service, transport: Transport, port: int) -> bool:
    return _in_ports(service.ports, transport, port)


def _in_ports(ports: Sequence[PortRange], transport: Transport, port: int) -> bool:
    return any(
        p.protocol.value == transport.value and (p.protocol is Protocol.ICMP or p.first <= port <= p.last)
        for p in ports
    )


def _derived(prefix: ipaddress.IPv6Network) -> ipaddress.IPv6Network:
    return ipaddress.IPv6Network((int(prefix.network_address), 96))


def in_job_range(world: World, address: Address) -> bool:
    """Whether only jobs have such an address."""
    return _node_of(world, address) is not None


def _node_of(world: World, address: Address) -> str | None:
    """The node whose jobs' addresses this is among."""
    for node in world.site.nodes.values():
        if address in node.ipv4 or (node.ipv6 is not None and address in _derived(node.ipv6)):
            return node.name
    return None


def _is_node(world: World, job: Attempt, address: Address) -> bool:
    """What a node's agent says of its host closes addresses to that node's jobs only: a rogue one harms itself."""
    if any(address in net for net in world.site.infrastructure):
        return True
    if any(address in net for node in world.site.nodes.values() for net in node.host_networks):
        return True
    return address in world.host_addresses.get(job.node, ())


def _is_dhcp_server(packet: Packet) -> bool:
    if packet.transport is not Transport.UDP or packet.fragment is Fragment.LATER:
        return False
    return packet.source_port == (67 if packet.source.version == 4 else 547)


def _unicast(world: World, address: Address) -> bool:
    if address.is_multicast or address.is_loopback or address.is_unspecified or address.is_link_local:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        reserved = int(address) >> 29 == 0b111 or int(address) >> 24 == 0
        return not reserved and address != world.site.network.ipv4.broadcast_address
    return True
