"""`GET /v1/attempts/{id}/why`: what becomes of a job's packet to a host and port, and which line decided. Pure.

Invariant: only asked questions are answered: a host is an address, or a service of the policy in force; names are not
looked up here, for that would wait.
"""

from __future__ import annotations

import ipaddress
import re

from policies.model import Address, Attempt, World
from policies.remarks import Known
from policies.semantics import Packet, Transport
from policies.why import journey
from policies.wire import WhyAnswer
from ryu_apps.openflow.explain import why_lines
from ryu_apps.refusals import Refused, Slug
from ryu_apps.store.store import AttemptRow

SOURCE_PORT = 40000
"""Of the packet that is judged: any that no rule means."""
_PORT = re.compile(r"(tcp|udp)/([0-9]{1,5})|icmp")


def asked_why(world: World, row: AttemptRow | None, id: str, host: str, port: str) -> WhyAnswer:
    """Raises Refused."""
    attempt = world.attempts.get(id)
    if attempt is None or row is None:
        raise Refused(Slug.NO_SUCH_ATTEMPT, f"there is no attempt {id}")
    transport, number = _port(port)
    source, target = _ends(world, attempt, host)
    packet = Packet(
        attempt.id, attempt.mac, source, target, transport, SOURCE_PORT if number else 0, number
    )  # fmt: skip
    jobs = {id: Known(row.decision, row.spec.ad)}
    there, _ = journey(world, packet, jobs)
    reasons = [one.explanation.judgement.reason for one in there.stages]
    return WhyAnswer(
        attempt=id,
        verdict=there.verdict.value,
        reasons=list(dict.fromkeys(reason.slug for reason in reasons if reason is not None)),
        lines=why_lines(world, packet, jobs),
    )


def _port(text: str) -> tuple[Transport, int]:
    found = _PORT.fullmatch(text)
    if found is None or (found[2] is not None and not 1 <= int(found[2]) <= 65535):
        raise Refused(Slug.MALFORMED, f"port={text[:40]!r} is none of tcp/NUMBER, udp/NUMBER and icmp")
    return (Transport(found[1]), int(found[2])) if found[1] else (Transport.ICMP, 0)


def _ends(world: World, attempt: Attempt, host: str) -> tuple[Address, Address]:
    """Source and destination. Of a service the first host that the job has a family in common with."""
    service = world.policy.services.get(host)
    if service is not None:
        targets = service.hosts
        if not targets:
            raise Refused(Slug.MALFORMED, f"service {host} is ports on any host: name a host by its address")
    else:
        try:
            targets = (ipaddress.ip_address(host),)
        except ValueError:
            raise Refused(
                Slug.MALFORMED, f"host={host[:60]!r} is neither an address nor a service of the policy in force"
            ) from None
    for target in targets:
        source = attempt.ipv4 if target.version == 4 else attempt.ipv6
        if source is not None:
            return source, target
    raise Refused(Slug.MALFORMED, f"the job has no IPv{targets[0].version} address, and {host} no other")
