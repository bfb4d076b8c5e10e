"""Lines of the policy that an administrator would look at next: rules that gave something, or nearly did. Pure.

What is known of a job decides how much can be said: with its decision, whether it is in a group; with its ad, the
values that a condition reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from policies.lint import KERNEL_MOUNT_PORTS
from policies.model import (
    EXPOSED_PREFIX,
    Attempt,
    Decision,
    Expose,
    Grant,
    Group,
    Mode,
    Place,
    Policy,
    PortKind,
    PortRange,
    Protocol,
    Reason,
    Role,
    Service,
    Verdict,
    World,
    node_matches,
)
from policies.path import Hop, attempt_at, node_at
from policies.semantics import Fragment, Judgement, Packet, Step, Transport

SHARED_PORT = 9618
"""Where HTCondor's daemons listen."""


@dataclass(frozen=True, slots=True)
class Remark:
    """A line of the policy that matters here, and what it does or lacks. `place` None: no line says so."""

    place: Place | None
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}" if self.place is not None else self.text


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a job besides its attempt."""

    decision: Decision | None = None
    ad: Mapping[str, object] | None = None


Jobs = Mapping[str, Known]
"""By the attempt's id; jobs may be missing."""


def remarks(world: World, hop: Hop, judgement: Judgement, jobs: Jobs) -> list[Remark]:
    """What matters for a judgement at a bridge."""
    packet, policy = hop.packet, world.policy
    if hop.role is Role.BORDER:
        return []
    job = world.attempts[packet.sender] if packet.sender is not None else attempt_at(world, packet.destination)
    if hop.role is Role.GATE:
        job = attempt_at(world, packet.destination if hop.entered is PortKind.SERVER_FACING else packet.source)
    found: list[Remark] = []
    if judgement.reason is not None and judgement.verdict is Verdict.ALLOW:
        found += _let_on(world, hop, judgement, job)
    if job is None:
        return found + _about_open_to(world, hop, judgement)
    known = jobs.get(job.id, Known())
    if judgement.step in (Step.SERVICE, Step.GATE) or (judgement.step is Step.REPLY and packet.sender is None):
        found += _about_grants(world, hop, job, known, refused=judgement.reason is not None)
    elif judgement.step is Step.BETWEEN_JOBS:
        found += _about_slices(world, job, packet, jobs)
    elif judgement.step in (Step.INGRESS, Step.EXPOSED):
        found += _about_exposures(policy, job, packet, known)
    elif judgement.step is Step.NODE:
        found += _about_node(world, job, packet)
    elif judgement.step is Step.SEAL:
        found += _about_seal(policy, known)
    return found + _about_mounts(policy, packet)


def _let_on(world: World, hop: Hop, judgement: Judgement, job: Attempt | None) -> list[Remark]:
    """What in audit mode lets a refused packet on."""
    policy = world.policy
    node = job.node if job is not None else None
    found = []
    if policy.mode is Mode.AUDIT if node is None else policy.audits(node):
        rule = policy.mode_of(node) if node is not None else None
        place = policy.mode_place if rule is None else rule.place
        found.append(Remark(place, "mode: audit lets it on; enforce would not"))
    if judgement.reason is Reason.NO_GRANT:
        for service in _services_at(world, hop):
            if service.audit and _serves(service, hop):
                found.append(Remark(service.place, f"mode: audit of service {service.name} lets it on"))
            for grant in policy.grants:
                audited = job is not None and service.name in job.outcome.audited
                if grant.audit and grant.service == service.name and audited and _valid(grant, job):
                    found.append(Remark(grant.place, f"mode: audit of this grant of {service.name} lets it on"))
    elif judgement.reason in policy.defaults.audited:
        found.append(Remark(policy.defaults.place, "`audit` in defaults lets it on; deny would not"))
    return found


def _valid(grant: Grant, job: Attempt | None) -> bool:
    return job is not None and job.phase in grant.during and node_matches(grant.nodes, job.node)


def _services_at(world: World, hop: Hop) -> list[Service]:
    """The protected services of the packet's far end: of the server's."""
    packet = hop.packet
    to_job = node_at(world, packet.destination) is not None
    host = packet.source if to_job or hop.entered is PortKind.SERVER_FACING else packet.destination
    return [s for s in world.policy.services.values() if s.protected and host in s.hosts]


def _serves(service: Service, hop: Hop) -> bool:
    """Whether the service's ports have the packet's; a later fragment shows none, and is for all."""
    packet = hop.packet
    answered = hop.entered is PortKind.SERVER_FACING or (hop.role is Role.WORKER and packet.sender is None)
    port = packet.source_port if answered else packet.destination_port
    return packet.fragment is not Fragment.WHOLE or _in_ports(service.ports, packet.transport, port)


def _in_ports(ports: Iterable[PortRange], transport: Transport, port: int) -> bool:
    same = [p for p in ports if p.protocol.value == transport.value]
    return any(p.protocol is Protocol.ICMP or p.first <= port <= p.last for p in same)


# --- grants -----------------------------------------------------------------------------------------------------------


def _about_grants(world: World, hop: Hop, job: Attempt, known: Known, *, refused: bool) -> list[Remark]:
    """The grants that let the job on to the services at the far end; if refused, every grant and what it lacks."""
    policy = world.policy
    wanted = [s for s in _services_at(world, hop) if _serves(s, hop)]
    found = []
    for grant in policy.grants:
        if grant.service not in {s.name for s in wanted}:
            continue
        lacks = _not_member(policy, grant.group, known)
        if job.phase not in grant.during:
            during = ", ".join(phase.value for phase in sorted(grant.during))
            lacks.append(f"it holds during {during}, and this is {job.phase.value}")
        if not node_matches(grant.nodes, job.node):
            lacks.append(f"it holds on nodes {', '.join(grant.nodes)}, and this is {job.node}")
        if grant.audit and not lacks:
            lacks.append("in audit mode, which gives nothing")
        text = f"grants {grant.service} to group {grant.group}"
        if refused or not lacks:
            found.append(Remark(grant.place, f"{text}, but {'; '.join(lacks)}" if lacks else text))
    for service in wanted if refused else ():
        if all(grant.service != service.name for grant in policy.grants):
            found.append(Remark(service.place, f"no rule grants {service.name} to anybody"))
        at_gate = hop.role is Role.GATE and hop.entered is not PortKind.SERVER_FACING
        if at_gate and service.name in job.outcome.services and hop.packet.mac != job.mac:
            found.append(Remark(service.place, "the gate knows this job by its MAC, and the frame has another"))
    return found


def _not_member(policy: Policy, name: str, known: Known, who: str = "the job") -> list[str]:
    """That a job is not in a group, if that is known, with the values that the condition reads."""
    if known.decision is None or name in known.decision.groups:
        return []
    group = policy.groups[name]
    told = f"{group.place}: {group.condition.text}"
    if known.ad is not None:
        lowered = {n.lower(): (n, value) for n, value in known.ad.items()}
        read = sorted(n for n in group.condition.references if not n.startswith("target."))
        values = [
            f"{lowered[n][0]} is {json.dumps(lowered[n][1])}" if n in lowered else f"it has no {_spelt(n, group)}"
            for n in read
        ]
        told += f"; {', '.join(values)}" if values else ""
    return [f"{who} is no member ({told})"]


def _spelt(name: str, group: Group) -> str:
    """An attribute's name as the condition writes it."""
    found = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", group.condition.text, re.IGNORECASE)
    return found.group() if found else name


def _about_open_to(world: World, hop: Hop, judgement: Judgement) -> list[Remark]:
    """For somebody who is no job, at a gate: the networks that a service is open to."""
    if judgement.reason is not Reason.NO_GRANT:
        return []
    found = []
    for service in _services_at(world, hop):
        nets = ", ".join(str(net) for net in service.open_to)
        text = f"service {service.name} is open to {nets}" if nets else f"service {service.name} has no open-to"
        found.append(Remark(service.place, f"{text}; this is no job's address"))
    return found


# --- between jobs -----------------------------------------------------------------------------------------------------


def _about_slices(world: World, job: Attempt, packet: Packet, jobs: Jobs) -> list[Remark]:
    sender = job if packet.sender is not None else attempt_at(world, packet.source)
    receiver = attempt_at(world, packet.destination)
    policy = world.policy
    found = []
    for role, one in (("sender", sender), ("receiver", receiver)):
        if one is None:
            found.append(Remark(None, f"the {role}'s address is one of a node's jobs, and no job has it"))
        elif one.slice is None:
            found.append(Remark(None, f"the {role} ({one.id}) is in no slice"))
            found += _slice_rules(policy, one, jobs.get(one.id, Known()))
        else:
            place = _slice_place(jobs.get(one.id, Known()))
            found.append(Remark(place, f"the {role} ({one.id}) is in slice {one.slice}"))
    if sender is None or receiver is None or sender.slice is None or receiver.slice is None:
        return found
    if sender.slice == receiver.slice:
        if sender.exposed_only:
            found += _slice_exposures(policy, sender, receiver, packet, jobs)
        return found
    a, b = sender.slice, receiver.slice
    if a.removeprefix(EXPOSED_PREFIX) == b.removeprefix(EXPOSED_PREFIX):
        found.append(Remark(None, "these are two slices: one is open, the other of exposed ports only"))
    elif a.rpartition("/")[2] == b.rpartition("/")[2] and "user/" in a and "user/" in b:
        text = "the names are the same, but a slice is its user's own unless it says `scope: site`"
        found.append(Remark(_slice_place(jobs.get(sender.id, Known())), text))
    return found


def _slice_place(known: Known) -> Place | None:
    if known.decision is not None:
        places = [place for place, text in known.decision.trail if text.startswith("in slice ")]
        if places:
            return places[0]
    return None


def _slice_rules(policy: Policy, job: Attempt, known: Known) -> list[Remark]:
    """Why no rule gave the job a slice, where that is known."""
    found = []
    for rule in policy.slices:
        lacks = _not_member(policy, rule.group, known, job.id)
        if lacks:
            found.append(Remark(rule.place, f"gives slices to group {rule.group}, but {lacks[0]}"))
    return found


def _slice_exposures(policy: Policy, sender: Attempt, receiver: Attempt, packet: Packet, jobs: Jobs) -> list[Remark]:
    found = []
    for rule in policy.exposes:
        if not rule.to_slice:
            continue
        lacks = _not_exposed(policy, rule, receiver, packet, jobs.get(receiver.id, Known()))
        ports = _ports(rule)
        said = f"exposes {ports} of group {rule.group} to its slice"
        if rule.group in sender.outcome.groups and _in_ports(rule.ports, packet.transport, packet.source_port):
            said += ", and this comes from such a port"
            lacks = [] if packet.ack or packet.transport is not Transport.TCP else ["an answer has ACK set"]
        found.append(Remark(rule.place, f"{said}, but {'; '.join(lacks)}" if lacks else said))
    if not found:
        found.append(Remark(None, "no rule exposes ports to a slice"))
    return found


# --- from outside -----------------------------------------------------------------------------------------------------


def _about_exposures(policy: Policy, job: Attempt, packet: Packet, known: Known) -> list[Remark]:
    found = []
    for rule in policy.exposes:
        if rule.to_slice:
            continue
        lacks = _not_exposed(policy, rule, job, packet, known)
        if not any(packet.source in net for net in rule.networks):
            lacks.append(f"{packet.source} is in none of them")
        said = f"exposes {_ports(rule)} of group {rule.group} to {', '.join(str(net) for net in rule.networks)}"
        found.append(Remark(rule.place, f"{said}, but {'; '.join(lacks)}" if lacks else said))
    return found


def _not_exposed(policy: Policy, rule: Expose, job: Attempt, packet: Packet, known: Known) -> list[str]:
    """What an `expose` rule lacks for a packet to the job."""
    lacks = []
    if rule.group not in job.outcome.groups:
        lacks += _not_member(policy, rule.group, known, job.id) or [f"{job.id} is no member"]
    if packet.fragment is not Fragment.LATER and not _in_ports(rule.ports, packet.transport, packet.destination_port):
        port = packet.transport.value
        if packet.transport in (Transport.TCP, Transport.UDP):
            port += f"/{packet.destination_port}"
        lacks.append(f"this is for {port}")
    return lacks


def _ports(rule: Expose) -> str:
    return ", ".join(str(p) for p in rule.ports)


# --- the rest ---------------------------------------------------------------------------------------------------------


def _about_node(world: World, job: Attempt, packet: Packet) -> list[Remark]:
    """What makes an address one that no job reaches."""
    host = packet.destination
    found = []
    for net in world.site.infrastructure:
        if host in net:
            found.append(Remark(None, f"{net} is `infrastructure` in the site file"))
    for node in world.site.nodes.values():
        for net in node.host_networks:
            if host in net:
                found.append(Remark(node.place, f"{net} is in `host-addresses` of node {node.name}"))
    if host in world.host_addresses.get(job.node, ()):
        found.append(Remark(world.site.nodes[job.node].place, f"the agent of {job.node} says that its host has {host}"))
    return found


def _about_seal(policy: Policy, known: Known) -> list[Remark]:
    groups = known.decision.groups if known.decision is not None else ()
    return [
        Remark(seal.place, f"seals group {seal.group} ({policy.groups[seal.group].condition.text})")
        for seal in policy.seals
        if seal.group in groups
    ]


def _about_mounts(policy: Policy, packet: Packet) -> list[Remark]:
    """What a job's network has no part in, whatever this verdict is."""
    if packet.transport not in (Transport.TCP, Transport.UDP):
        return []
    name = KERNEL_MOUNT_PORTS.get(packet.destination_port)
    if name is not None:
        text = f"port {packet.destination_port} is {name}: a mount of the node's kernel goes past the job's network"
        return [Remark(None, text)]
    if packet.destination_port == SHARED_PORT and packet.sender is not None:
        text = "HTCondor's own file transfer (shadow and starter) stays on the host, and goes past the job's network"
        return [Remark(None, text)]
    return []
