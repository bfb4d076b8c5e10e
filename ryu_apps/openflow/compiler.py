"""From a world to the flows of its bridges. Pure; `desired_flows` is the specification, the parts are its increments.

The parts: `guard`, `between`, `services`, `replies`, `marking` and `worker` make the standing flows of a worker bridge,
`gate` those of a gate, `border` those of a border, `parts` those of attempts, identities and memberships, `counters`
reads them again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from policies.model import Attempt, PortKind, Role, World
from ryu_apps.openflow import border, gate, worker
from ryu_apps.openflow.counters import read_counters, seen
from ryu_apps.openflow.flows import Flow, FlowKey
from ryu_apps.openflow.lanes import MAC_PREFIX, lane_addresses, port_numbers
from ryu_apps.openflow.meters import MeterRule, Rule, RuleKey, neighbour_meters, rate_meters, share_meters
from ryu_apps.openflow.parts import attempt_flows, bridges_of, identity_flows, membership_flow

__all__ = [
    "MAC_PREFIX",
    "attempt_flows",
    "attempt_rules",
    "attempts_on",
    "base_flows",
    "base_rules",
    "bridges_of",
    "connected",
    "desired_flows",
    "desired_rules",
    "identity_flows",
    "lane_addresses",
    "membership_flow",
    "read_counters",
    "seen",
    "share_meters",
    "shared_meters",
    "slice_flows",
    "slices_on",
]


def desired_flows(world: World, bridge: str, base: Iterable[Flow] | None = None) -> dict[FlowKey, Flow]:
    """Every flow of ours that a bridge should have: the specification of all incremental paths.

    `base`: what `base_flows` gives for it, if that is known already.
    """
    flows = base_flows(world, bridge) if base is None else list(base)
    here = attempts_on(world, bridge)
    for outcome in {a.outcome for a in here}:
        flows += identity_flows(world, bridge, outcome)
    for attempt in here:
        flows += attempt_flows(world, bridge, attempt)
    slices = slices_on(world, bridge)
    flows += [membership_flow(world, a) for a in world.attempts.values() if a.slice in slices and connected(a)]
    return {f.key: f for f in flows}


def attempts_on(world: World, bridge: str) -> list[Attempt]:
    """The attempts that have this among `bridges_of`; each outcome is asked for once, not each attempt."""
    # By identity: attempts share their outcomes' objects, and hashing one costs more than all else here.
    known: dict[int, bool] = {}
    here = []
    for attempt in world.attempts.values():
        if attempt.bridge != bridge:
            concerned = known.get(id(attempt.outcome))
            if concerned is None:
                concerned = known[id(attempt.outcome)] = bridge in bridges_of(world, attempt)
            if not concerned:
                continue
        here.append(attempt)
    return here


def attempt_rules(world: World, bridge: str, attempt: Attempt) -> list[Rule]:
    """An attempt's own meters and flows on one of its bridges."""
    flows = attempt_flows(world, bridge, attempt)
    return [*rate_meters(attempt), *flows] if bridge == attempt.bridge else [*flows]


def shared_meters(world: World, bridge: str) -> list[MeterRule]:
    """The meters of all shares that jobs of a bridge have."""
    first: dict[str, Attempt] = {}
    for attempt in world.attempts.values():
        if attempt.share is not None and attempt.bridge == bridge:
            first.setdefault(attempt.share.name, attempt)
    return [one for attempt in first.values() for one in share_meters(world, attempt)]


def base_rules(world: World, bridge: str) -> list[Rule]:
    """`base_flows`, after the meters that they name."""
    flows = base_flows(world, bridge)
    metered = Role.WORKER in world.site.bridges[bridge].roles and bridge not in world.meterless
    return [*(neighbour_meters() if flows and metered else ()), *flows]


def desired_rules(world: World, bridge: str, base: Sequence[Rule] | None = None) -> dict[RuleKey, Rule]:
    """Every meter and every flow of ours that a bridge should have. `base`: what `base_rules` gives, if known."""
    base = base_rules(world, bridge) if base is None else base
    rates = [one for a in world.attempts.values() if a.bridge == bridge for one in rate_meters(a)]
    flows = desired_flows(world, bridge, [one for one in base if isinstance(one, Flow)]).values()
    meters = [one for one in base if isinstance(one, MeterRule)]
    rules: list[Rule] = [*meters, *rates, *shared_meters(world, bridge), *flows]
    return {rule.key: rule for rule in rules}


def slices_on(world: World, bridge: str) -> set[str]:
    """The slices that have a job on a worker bridge."""
    return {a.slice for a in world.attempts.values() if a.slice is not None and a.bridge == bridge and connected(a)}


def slice_flows(world: World, name: str) -> list[Flow]:
    """Who is in a slice, as every worker bridge that has one of its jobs must know: one flow per member."""
    members = [a for a in world.attempts.values() if a.slice == name and connected(a)]
    return [membership_flow(world, member) for member in members]


def connected(attempt: Attempt) -> bool:
    """Has it a network at all?"""
    return not attempt.outcome.sealed


def base_flows(world: World, bridge: str) -> list[Flow]:
    """The flows that do not depend on which jobs there are. A bridge without its declared ports gets none: closed."""
    spec = world.site.bridges[bridge]
    if Role.WORKER in spec.roles:
        uplinks = port_numbers(world, spec, PortKind.UPLINK)
        if len(uplinks) != 1:
            return []
        return worker.base_flows(world, spec, uplinks[0])
    if Role.GATE in spec.roles:
        return gate.base_flows(world, spec)
    if Role.BORDER in spec.roles:
        return border.base_flows(world, spec)
    return []
