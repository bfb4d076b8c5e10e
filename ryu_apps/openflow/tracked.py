"""What the connection table of a switch lets pass, and another policy would not: answers to what was allowed once.

A connection that was let through is remembered in the job's zone, and its answers pass without being judged again. So
when less is allowed than before, the one side of an old connection would go on: a server would send to a job that has
lost its grant, a job would answer a network that it serves no more. The zones of such jobs are emptied.

Pure. Where it is in doubt a zone is emptied: then a connection that is still allowed is set up again by the next packet
of the side that may begin it.
"""

from __future__ import annotations

from collections.abc import Iterator

from policies.model import Address, Attempt, Network, PortRange, Protocol, Reason, Verdict, World


def outlived(then: World, old: Attempt, now: World, new: Attempt) -> bool:
    """Whether a connection may be remembered of what was `old` that is not allowed to what is `new`."""
    if old.outcome.sealed or new.outcome.sealed:
        return not old.outcome.sealed
    if _anywhere(then, old) and not _anywhere(now, new):
        return True
    refused = set(_refused(then, old))
    never = {(host, ports) for host, ports in _granted(then, old) if ports.protocol is Protocol.TCP}
    if any(one not in refused and one not in never for one in _refused(now, new)):
        return True
    if _anywhere(now, new):
        return False  # whoever called, the job may say what it likes; and the caller is judged by each packet
    return (_anybody(then, old) and not _anybody(now, new)) or not _served(then, old) <= _served(now, new)


def _anywhere(world: World, job: Attempt) -> bool:
    """Whether the job may call whom no rule names."""
    defaults = world.policy.defaults
    audited = Reason.EGRESS in defaults.audited or world.policy.audits(job.node)
    return defaults.egress is Verdict.ALLOW or audited


def _anybody(world: World, job: Attempt) -> bool:
    """Whether the job may be called by whom no rule names."""
    defaults = world.policy.defaults
    audited = Reason.INGRESS in defaults.audited or world.policy.audits(job.node)
    return defaults.ingress is Verdict.ALLOW or audited


def _granted(world: World, job: Attempt) -> Iterator[tuple[Address, PortRange]]:
    """Of protected services what is granted: over TCP it needs no memory."""
    for name in job.outcome.services:
        service = world.policy.services[name]
        yield from ((host, ports) for host in service.hosts for ports in service.ports)


def _refused(world: World, job: Attempt) -> Iterator[tuple[Address, PortRange]]:
    """Of protected services what the job does not reach, nor is let on to by audit."""
    if world.policy.audits(job.node):
        return
    for service in world.policy.services.values():
        if service.protected and not service.audit and service.name not in job.outcome.known_services:
            yield from ((host, ports) for host in service.hosts for ports in service.ports)


def _served(world: World, job: Attempt) -> set[tuple[Network, PortRange]]:
    """The ports that the job serves to networks."""
    return {
        (net, ports)
        for rule in world.policy.exposes
        if rule.group in job.outcome.groups
        for net in rule.networks
        for ports in rule.ports
    }
