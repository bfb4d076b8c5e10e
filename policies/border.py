"""Borders: what a packet's class is there, in both directions, and for which jobs a border must know them. Pure.

The executable meaning of a border, beside `semantics`, which has those of worker bridges and gates. Knows nothing of
OpenFlow.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterator

from policies.model import Address, Attempt, Outcome, Place, Policy, PortKind, Reason, TrafficClass, Verdict, World
from policies.semantics import Fragment, Judgement, Packet, Step, in_job_range, speaks_for

_JOB_MAC = 0x026C
"""The first two octets of a job's MAC; the others are its IPv4 address (docs/interfaces.md section 2)."""


class Direction(enum.StrEnum):
    """Which way a packet crosses a border."""

    OUTWARD = "outward"
    INWARD = "inward"

    @classmethod
    def of(cls, entered: PortKind) -> Direction:
        """Of what comes in by a port of this kind."""
        return cls.INWARD if entered is PortKind.WAN else cls.OUTWARD


def judge_at_border(world: World, packet: Packet, direction: Direction) -> Judgement:
    """What a border must do with a packet: everything passes but a job's address or MAC from outside.

    `packet.sender` is ignored: at a border a job is known by its address alone.
    """
    prefix, last = divmod(packet.mac, 1 << 32)
    job_mac = prefix == _JOB_MAC and in_job_range(world, ipaddress.IPv4Address(last))
    if direction is Direction.INWARD and (job_mac or in_job_range(world, packet.source)):
        text = f"from the WAN, with {'a MAC' if job_mac else 'an address'} of the site's jobs"
        return Judgement(Verdict.DROP, Reason.SPOOFED, None, text, Step.OWN)
    return Judgement(Verdict.ALLOW, None, None, "a border refuses nothing else", Step.BORDER)


def class_at_border(world: World, packet: Packet, direction: Direction) -> TrafficClass | None:
    """The class of a packet that crosses a border; None: the policy has no classes."""
    found = classified_at_border(world, packet, direction)
    return None if found is None else found[0]


def classified_at_border(world: World, packet: Packet, direction: Direction) -> tuple[TrafficClass, Place] | None:
    """As `class_at_border`, with the line that decided: the rule's, or that of the last class if no rule fits.

    What has an address among jobs' at the site's end is a job's, and a service is looked for at its far end only, also
    if no job has the address now; of all other packets at both ends.
    """
    policy = world.policy
    if not policy.classes:
        return None
    here = packet.source if direction is Direction.OUTWARD else packet.destination
    job = _at(world, here)
    groups = job.outcome.groups if job is not None and not job.outcome.sealed else frozenset()
    source, destination = (packet.source, packet.source_port), (packet.destination, packet.destination_port)
    ends = [source, destination]
    if in_job_range(world, here):
        ends = [destination] if direction is Direction.OUTWARD else [source]
    for rule in policy.classify:
        if rule.group is not None and rule.group not in groups:
            continue
        if rule.service is not None:
            service = policy.services[rule.service]
            spoken = any(speaks_for(service, host, packet.transport, port) for host, port in ends)
            if packet.fragment is Fragment.LATER or not spoken:
                continue
        return next(c for c in policy.classes if c.name == rule.traffic_class), rule.place
    return policy.classes[-1], policy.classes[-1].place


def knows(policy: Policy, outcome: Outcome) -> bool:
    """Whether a border must know the jobs of this outcome: some packet of theirs can be of another class than the same
    packet of a job that it does not know.

    Says yes in doubt: rules of services that have nothing in common are not compared by their ports.
    """
    if not policy.classes or outcome.sealed or not outcome.groups:
        return False
    return list(_applying(policy, outcome.groups)) != list(_applying(policy, frozenset()))


def _applying(policy: Policy, groups: frozenset[str]) -> Iterator[tuple[str | None, str]]:
    """Service and class of the rules that can decide for members of these groups, and of no others, in order."""
    left = policy.classes[-1].name
    found: dict[str, str] = {}
    for rule in policy.classify:
        if rule.group is not None and rule.group not in groups:
            continue
        if rule.service is None:
            left = rule.traffic_class
            break
        found.setdefault(rule.service, rule.traffic_class)
    rules = list(found.items())
    # What a rule says that the end of the list says as well, it need not say.
    while rules and rules[-1][1] == left:
        rules.pop()
    yield from rules
    yield None, left


def _at(world: World, address: Address) -> Attempt | None:
    return next((a for a in world.attempts.values() if address in (a.ipv4, a.ipv6)), None)
