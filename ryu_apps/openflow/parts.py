"""What one attempt, one identity and one membership of a slice add to a bridge.

Whatever the policy's size and however many other jobs there are, an attempt costs six flows on its worker bridge, two
on a gate, and one on a border (`border`) or none:

    SPOOF_GUARD   its own frames go on            SPOOF_GUARD   everything else from its port is dropped, and counted
    DENIED        refusals for lack of a grant    DENIED        its other refusals
    RECEIVER      packets for it                  DELIVER       packets delivered to it

A rate or a share is kept by a meter that the first and the last of these name, and costs no flow; both together cost
two flows more (SHARE_OUT, SHARE_IN).

What an identity may reach costs on a worker bridge one flow per service and one per class of hosts that has such a
service (for later fragments), for all its jobs together; a membership one flow on each bridge that has the slice.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from policies.model import Attempt, Bridge, Outcome, Reason, Role, Site, World
from ryu_apps.openflow import border, meters
from ryu_apps.openflow import registers as r
from ryu_apps.openflow.cookies import Feature, cookie
from ryu_apps.openflow.fields import exact
from ryu_apps.openflow.flows import Action, Flow, Goto, Output
from ryu_apps.openflow.hosts import host_classes
from ryu_apps.openflow.marking import groups_of, tag_of
from ryu_apps.openflow.phrases import deny
from ryu_apps.openflow.pipeline import Fixed, Priority, Table, entry
from ryu_apps.openflow.same import Same


def bridges_of(world: World, attempt: Attempt) -> tuple[str, ...]:
    """The bridges that must know an attempt before it starts: its worker bridge, gates of services it is granted, and
    borders if its traffic can be of another class than that of a job they do not know.

    A grant in audit mode counts: the gate must know whom to let on.
    """
    outcome = attempt.outcome
    if outcome.sealed:
        return (attempt.bridge,)
    others = [
        b.name
        for b in _beyond_workers(Same(world.site))
        if (Role.GATE in b.roles and outcome.known_services.intersection(b.guards))
        or (Role.BORDER in b.roles and border.knows(world.policy, outcome))
    ]
    return (attempt.bridge, *sorted(others))


@lru_cache(maxsize=8)
def _beyond_workers(site: Same) -> tuple[Bridge, ...]:
    """Gates and borders: a few among a thousand bridges, and every job asks."""
    assert isinstance(site.value, Site)
    return tuple(b for b in site.value.bridges.values() if b.roles & {Role.GATE, Role.BORDER})


def membership_flow(world: World, member: Attempt) -> Flow:
    """That a job is in its slice: one flow for both directions and both families. KeyError if it is in none."""
    pair = (r.SLICE.equals(world.slice_numbers[member.slice or ""]), r.PEER.equals(int(member.ipv4)))
    own = cookie(Feature.ATTEMPT, member.number)
    together: tuple[Action, ...] = (r.STATELESS.load(1), Goto(Table.TRACK))
    if member.exposed_only:
        together = (r.PEER_GROUPS.load(groups_of(world, member.outcome)), Goto(Table.EXPOSED))
    return entry(Table.MEMBER, Priority.OBJECT, pair, together, own)


def identity_flows(world: World, bridge: str, outcome: Outcome) -> list[Flow]:
    """What an identity may reach, as this bridge enforces it."""
    spec = world.site.bridges[bridge]
    if outcome.sealed or Role.BORDER in spec.roles:
        return []
    number = world.identities[outcome]
    own = cookie(Feature.IDENTITY, number)
    flows = []
    for service, granted, later in _known(world, spec, outcome):
        pair = (r.IDENTITY.equals(number), r.SERVICE.equals(service))
        if Role.WORKER in spec.roles:
            if granted:
                flows.append(entry(Table.GRANT, Priority.OBJECT, pair, (Goto(Table.TRACK),), own))
            else:
                asking = (*pair, r.ORIGIN.equals(r.Origin.JOB))
                refused = (r.STATELESS.load(0), *deny(Reason.NO_GRANT, audited=True))
                flows.append(entry(Table.GRANT, Priority.OBJECT, asking, refused, own))
            continue
        # What a gate lets on in audit mode is counted apart from what the identity has by right.
        marked = own if granted else cookie(Feature.PIPELINE, Fixed.AUDITED_AT_GATE)
        flows.append(entry(Table.GATE_GRANT, Priority.OBJECT, pair, (Goto(Table.GATE_SERVERS),), marked))
        if not later:
            back = (Goto(Table.GATE_WORKERS),)
            flows.append(entry(Table.GATE_RETURN_GRANT, Priority.OBJECT, pair, back, marked))
    return flows


def _known(world: World, spec: Bridge, outcome: Outcome) -> Iterator[tuple[int, bool, bool]]:
    """What an identity may reach at a bridge, by the SERVICE register: the number, whether it is granted (else its
    refusals are audited), and whether it stands for the later fragments of a host class."""
    if not outcome.known_services:
        return
    classes = host_classes(world, spec)
    here = sorted(name for name in outcome.known_services if name in classes.of_service)
    for name in here:
        yield world.service_numbers[name], name in outcome.services, False
    met = {one.number: one for name in here for one in classes.of_service[name]}
    for _, one in sorted(met.items()):
        yield one.later, bool(one.names & outcome.services), True


def attempt_flows(world: World, bridge: str, attempt: Attempt) -> list[Flow]:
    """An attempt's own flows on one of `bridges_of(world, attempt)`."""
    if bridge != attempt.bridge:
        at_border = Role.BORDER in world.site.bridges[bridge].roles
        return [border.attempt_flow(world, attempt)] if at_border else _at_gate(world, attempt)
    own = cookie(Feature.ATTEMPT, attempt.number)
    bits = int(attempt.ipv4)
    port = exact("in_port", attempt.ofport)
    counted = entry(
        Table.DENIED, Priority.OTHERWISE_OBJECT, (r.ATTEMPT.equals(attempt.number),), (Goto(Table.ENFORCE),), own
    )
    if attempt.outcome.sealed:
        sealed = (r.ATTEMPT.load(attempt.number), *deny(Reason.SEALED))
        return [entry(Table.SPOOF_GUARD, Priority.OBJECT, (port,), sealed, own), counted]
    groups = groups_of(world, attempt.outcome)
    known = (
        r.ATTEMPT.load(attempt.number),
        r.IDENTITY.load(world.identities[attempt.outcome]),
        r.ZONE.load(attempt.zone),
        *([r.SLICE.load(world.slice_numbers[attempt.slice])] if attempt.slice is not None else []),
        *([r.GROUPS.load(groups)] if groups else []),
        *tag_of(attempt),
    )
    claims = tuple(c.equals(bits) for c in (r.CLAIM_ADDRESS, r.CLAIM_LINK, r.CLAIM_TARGET))
    receiver = (r.DESTINATION.equals(bits),)
    out, into = (meters.limits(world, attempt, way) for way in meters.Way)
    deliver = Output(attempt.ofport)
    on: Action = Goto(Table.NEIGHBOURS)
    last: Action = deliver
    second: list[Flow] = []
    if len(out) > 1:
        # A flow names one meter. The first is on the flow that every job has, the other on one of its own.
        sent = (r.ATTEMPT.equals(attempt.number),)
        second.append(entry(Table.SHARE_OUT, Priority.OBJECT, sent, (out[1], on), own))
        second.append(entry(Table.SHARE_IN, Priority.OBJECT, receiver, (into[1], deliver), own))
        on, last = Goto(Table.SHARE_OUT), Goto(Table.SHARE_IN)
    return [
        *second,
        entry(
            Table.SPOOF_GUARD,
            Priority.OBJECT,
            (port, exact("dl_src", attempt.mac), *claims),
            (*out[:1], *known, on),
            own,
        ),
        entry(Table.SPOOF_GUARD, Priority.OTHERWISE_OBJECT, (port,), (), own),
        entry(
            Table.DENIED,
            Priority.OBJECT,
            (r.ATTEMPT.equals(attempt.number), r.REASON.equals(Reason.NO_GRANT)),
            (Goto(Table.ENFORCE),),
            own,
        ),
        counted,
        entry(Table.RECEIVER, Priority.OBJECT, receiver, (*known, Goto(Table.REPLY)), own),
        entry(Table.DELIVER, Priority.OBJECT, receiver, (*into[:1], last), own),
    ]


def _at_gate(world: World, attempt: Attempt) -> list[Flow]:
    own = cookie(Feature.ATTEMPT, attempt.number)
    bits = int(attempt.ipv4)
    who = (exact("dl_src", attempt.mac), r.CLAIM_ADDRESS.equals(bits))
    known = (r.ATTEMPT.load(attempt.number), r.IDENTITY.load(world.identities[attempt.outcome]))
    receiver = (r.DESTINATION.equals(bits),)
    return [
        entry(Table.GATE_IDENTITY, Priority.OBJECT, who, (*known, Goto(Table.GATE_SERVICE)), own),
        entry(Table.GATE_RECEIVER, Priority.OBJECT, receiver, (*known, Goto(Table.GATE_RETURN_GRANT)), own),
    ]
