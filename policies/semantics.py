"""The executable meaning of a policy: `judge(world, packet)` says what must happen, and which line decided.

It knows nothing of OpenFlow and imports neither compiler nor simulator: everything else is tested against it. The
steps are those of docs/policy.md, "Meaning, in order".
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

from policies.model import (
    NEVER_OPENED_BY_AUDIT,
    Address,
    Attempt,
    Bridge,
    Mode,
    Place,
    PortKind,
    Reason,
    Service,
    Verdict,
    World,
)


class Transport(enum.StrEnum):
    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Packet:
    """An IP packet at a bridge, unfragmented, to a unicast MAC.

    `sender`: id of the attempt whose port it comes in by; None: it comes from outside (the uplink). `mac`: its source
    MAC. `tracked`: it belongs to a connection that the connection table holds, in the reply direction.
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
    INGRESS = "is ingress allowed?"
    GATE = "does a gate let it pass?"


OUTWARD = (Step.SEAL, Step.OWN, Step.UNICAST, Step.BETWEEN_JOBS, Step.SERVICE, Step.NODE, Step.EGRESS)
INWARD = (Step.OWN, Step.SEAL, Step.BETWEEN_JOBS, Step.REPLY, Step.INGRESS)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict in force. `reason` is set whenever the policy says drop, also where audit mode lets the packet on.

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
        return _in_force(world, _from_job(world, world.attempts[packet.sender], packet))
    receiver = next((a for a in world.attempts.values() if packet.destination in (a.ipv4, a.ipv6)), None)
    if receiver is None:
        return Judgement(Verdict.DROP, None, None, "no job has this address", Step.OWN)
    return _in_force(world, _to_job(world, receiver, packet))


def judge_at_gate(world: World, bridge: Bridge, packet: Packet, entered: PortKind) -> Judgement:
    """What a gate must do with a packet that enters by a port of the given kind.

    `packet.sender` is ignored: at a gate a job is known by its MAC and address alone.
    """
    if entered is PortKind.SERVER_FACING:
        service = _service_at(world, bridge, packet.source, packet.transport, packet.source_port)
        if service is None:
            return _allow(Step.GATE, "not an answer of a guarded service")
        if packet.transport is Transport.TCP and not packet.ack:
            return _drop(Step.GATE, Reason.NO_GRANT, "a service answers, it does not call", service.place)
        return _gate_verdict(world, service, packet.destination, _holder(world, bridge, packet.destination, None))
    if any(packet.source in world.policy.services[name].hosts for name in bridge.guards):
        return _drop(Step.OWN, Reason.SPOOFED, "a guarded server's address from a port that faces no servers")
    if _in_job_range(world, packet.source) and entered is not PortKind.WORKER_FACING:
        return _drop(Step.OWN, Reason.SPOOFED, "a job's address from a port that faces no workers")
    service = _service_at(world, bridge, packet.destination, packet.transport, packet.destination_port)
    if service is None:
        return _allow(Step.GATE, "not for a guarded service")
    return _gate_verdict(world, service, packet.source, _holder(world, bridge, packet.source, packet.mac))


def _in_force(world: World, judged: Judgement) -> Judgement:
    if (
        judged.verdict is Verdict.DROP
        and world.policy.mode is Mode.AUDIT
        and judged.reason is not None
        and judged.reason not in NEVER_OPENED_BY_AUDIT
    ):
        text = f"audit: would be dropped: {judged.text}"
        return Judgement(Verdict.ALLOW, judged.reason, judged.place, text, judged.step)
    return judged


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
    if _in_job_range(world, packet.destination):
        place = policy.defaults.place
        if _share_a_slice(world, job, packet.destination):
            return _allow(Step.BETWEEN_JOBS, f"both jobs are in slice {job.slice}")
        if policy.defaults.between_jobs is Verdict.ALLOW:
            return _allow(Step.BETWEEN_JOBS, "jobs may talk to each other", place)
        return _drop(Step.BETWEEN_JOBS, Reason.BETWEEN_JOBS, "jobs may not talk to each other", place)
    service = _protecting(world, packet.destination, packet.transport, packet.destination_port)
    if service is not None:
        if service.name in job.outcome.services:
            return _allow(Step.SERVICE, f"granted service {service.name}", service.place)
        return _drop(
            Step.SERVICE, Reason.NO_GRANT, f"no grant of this job covers service {service.name}", service.place
        )
    if _is_node(world, job, packet.destination):
        return _drop(Step.NODE, Reason.NODE, "a node's own address, or infrastructure")
    if policy.defaults.egress is Verdict.ALLOW:
        return _allow(Step.EGRESS, "egress is allowed", policy.defaults.place)
    if packet.tracked and policy.defaults.ingress is Verdict.ALLOW:
        return _allow(Step.EGRESS, "reply to an allowed connection")
    return _drop(Step.EGRESS, Reason.EGRESS, "egress is denied", policy.defaults.place)


def _to_job(world: World, job: Attempt, packet: Packet) -> Judgement:
    policy = world.policy
    node = world.site.nodes[job.node]
    if packet.source in node.ipv4 or (node.ipv6 is not None and packet.source in _derived(node.ipv6)):
        return Judgement(Verdict.DROP, None, node.place, "from outside, with an address of this node's jobs", Step.OWN)
    if job.outcome.sealed:
        return Judgement(Verdict.DROP, None, None, "the job is sealed", Step.SEAL)
    if _in_job_range(world, packet.source):
        if _share_a_slice(world, job, packet.source):
            return _allow(Step.BETWEEN_JOBS, f"both jobs are in slice {job.slice}")
        if policy.defaults.between_jobs is Verdict.ALLOW:
            return _allow(Step.BETWEEN_JOBS, "jobs may talk to each other", policy.defaults.place)
        return _drop(Step.BETWEEN_JOBS, Reason.BETWEEN_JOBS, "jobs may not talk to each other", policy.defaults.place)
    if packet.transport is Transport.TCP and packet.ack:
        service = _protecting(world, packet.source, packet.transport, packet.source_port)
        if service is not None and service.name in job.outcome.services:
            return _allow(Step.REPLY, f"answer of granted service {service.name}", service.place)
    if packet.tracked:
        return _allow(Step.REPLY, "reply to a connection the job began")
    if policy.defaults.ingress is Verdict.ALLOW:
        return _allow(Step.INGRESS, "ingress is allowed", policy.defaults.place)
    return _drop(Step.INGRESS, Reason.INGRESS, "not a reply, and ingress is denied", policy.defaults.place)


def _gate_verdict(world: World, service: Service, peer: Address, job: Attempt | None) -> Judgement:
    if job is not None and service.name in job.outcome.services:
        return _allow(Step.GATE, f"granted service {service.name}", service.place)
    if not _in_job_range(world, peer) and any(peer in net for net in service.open_to):
        return _allow(Step.GATE, f"service {service.name} is open to this network", service.place)
    refused = _drop(Step.GATE, Reason.NO_GRANT, f"nothing opens service {service.name} to {peer}", service.place)
    return _in_force(world, refused)


def _holder(world: World, gate: Bridge, address: Address, mac: int | None) -> Attempt | None:
    """The job that a gate knows by this address (and MAC): only jobs with a grant for a service it guards."""
    for job in world.attempts.values():
        known_here = not job.outcome.sealed and job.outcome.services.intersection(gate.guards)
        if known_here and address in (job.ipv4, job.ipv6) and mac in (None, job.mac):
            return job
    return None


def _share_a_slice(world: World, job: Attempt, address: Address) -> bool:
    return job.slice is not None and any(
        peer.slice == job.slice and not peer.outcome.sealed and address in (peer.ipv4, peer.ipv6)
        for peer in world.attempts.values()
    )


def _covers(service: Service, host: Address, transport: Transport, port: int) -> bool:
    return host in service.hosts and any(
        p.protocol.value == transport.value and p.first <= port <= p.last for p in service.ports
    )


def _protecting(world: World, host: Address, transport: Transport, port: int) -> Service | None:
    return next((s for s in world.policy.services.values() if s.protected and _covers(s, host, transport, port)), None)


def _service_at(world: World, gate: Bridge, host: Address, transport: Transport, port: int) -> Service | None:
    guarded = (world.policy.services[name] for name in gate.guards)
    return next((s for s in guarded if _covers(s, host, transport, port)), None)


def _derived(prefix: ipaddress.IPv6Network) -> ipaddress.IPv6Network:
    return ipaddress.IPv6Network((int(prefix.network_address), 96))


def _job_ranges(world: World) -> Iterator[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    for node in world.site.nodes.values():
        yield node.ipv4
        if node.ipv6 is not None:
            yield _derived(node.ipv6)


def _in_job_range(world: World, address: Address) -> bool:
    return any(address in net for net in _job_ranges(world))


def _is_node(world: World, job: Attempt, address: Address) -> bool:
    """What a node's agent says of its host closes addresses to that node's jobs only: a rogue one harms itself."""
    if any(address in net for net in world.site.infrastructure):
        return True
    if any(address in net for node in world.site.nodes.values() for net in node.host_networks):
        return True
    return address in world.host_addresses.get(job.node, ())


def _is_dhcp_server(packet: Packet) -> bool:
    if packet.transport is not Transport.UDP:
        return False
    return packet.source_port == (67 if packet.source.version == 4 else 547)


def _unicast(world: World, address: Address) -> bool:
    if address.is_multicast or address.is_loopback or address.is_unspecified or address.is_link_local:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        reserved = int(address) >> 29 == 0b111 or int(address) >> 24 == 0
        return not reserved and address != world.site.network.ipv4.broadcast_address
    return True
