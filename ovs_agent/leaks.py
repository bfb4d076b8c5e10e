"""What belongs to no living attempt, and what a living attempt lacks. Pure: what was seen in, leaks out.

A lane is one of three things: *owned* by an attempt whose starter lives, *spare* (complete, untouched, ready for the
next job), or nobody's; whatever there is of nobody's lane is a leak. An attempt whose starter has ended keeps nothing
but its record until the controller has confirmed its deletion: it *waits*, and that is no leak.

`lark-agent doctor` and the system tests judge by this one module.

Invariants: nothing is taken for spare that could have been a job's: one process inside, one connection in its zone, one
flow, one label of an attempt, one missing part, and it is not. What could not be looked at is `trouble`, never "none".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ovs_agent import plan


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    uid: int
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} of uid {self.uid} ({self.command[:80]})"


@dataclass(frozen=True, slots=True)
class Owner:
    """An attempt in the ledger."""

    id: str
    lane: int
    namespaces: tuple[str, ...]
    uid: int
    living: bool
    """Its starter lives, and it has not ended."""
    ready: bool
    """It has been given its network: from here on all of it must be there."""

    def __str__(self) -> str:
        return f"attempt {self.id}"


@dataclass(frozen=True, slots=True)
class Seen:
    """What the kernel, the switch and the controller have. Lanes by number, everything else by name."""

    namespaces: Mapping[str, tuple[Process, ...]] = field(default_factory=dict)
    """Names of this node's job namespaces, and who is inside."""
    devices: frozenset[str] = frozenset()
    ports: Mapping[str, str] = field(default_factory=dict)
    """Ports of the bridge, and the attempt each is labelled with (empty: none)."""
    numberless: frozenset[str] = frozenset()
    """Ports that have no OpenFlow number: the switch could not open the device."""
    connections: Mapping[int, int] = field(default_factory=dict)
    """Connections that the switch remembers, by conntrack zone."""
    limits: frozenset[int] = frozenset()
    """Zones with a limit of their own."""
    flows: Mapping[int, int] = field(default_factory=dict)
    """Flows of attempts, by lane."""
    strays: tuple[Process, ...] = ()
    """Processes of guarded uids whose network is neither the host's nor one with a name."""
    at_home: tuple[Process, ...] = ()
    """Processes of guarded uids in the host's own network."""
    held: tuple[str, ...] = ()
    """Descriptors of the agent that keep a network namespace alive which has no name any more."""
    registered: frozenset[str] | None = None
    """Attempts of this node that the controller knows; None: it was not asked."""
    trouble: tuple[str, ...] = ()
    """What could not be looked at, and why."""


@dataclass(frozen=True, slots=True, order=True)
class Leak:
    kind: str
    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}: {self.why}"

    @property
    def key(self) -> tuple[str, str]:
        """What it is, without how much of it there is at the moment."""
        return self.kind, re.sub(r"^\d+ ", "", self.what)


@dataclass(frozen=True, slots=True)
class Verdict:
    leaks: tuple[Leak, ...]
    lacking: tuple[Leak, ...]
    waiting: tuple[str, ...]
    """Attempts that have ended and whose deletion the controller has not confirmed."""
    living: tuple[str, ...]
    """Attempts that have their network, and run."""
    spare: tuple[int, ...]
    trouble: tuple[str, ...]

    def lines(self) -> list[str]:
        """Everything that is not as it should be, for people."""
        return [
            *(f"leak: {leak}" for leak in self.leaks),
            *(f"lacking: {leak}" for leak in self.lacking),
            *(f"waiting: {text}" for text in self.waiting),
            *(f"cannot look: {text}" for text in self.trouble),
        ]


def judge(node: str, owners: Iterable[Owner], seen: Seen, *, agent_runs: bool) -> Verdict:
    """`agent_runs`: without an agent nobody will ever use a spare lane, so it is a leak too."""
    all_owners = list(owners)
    living = {owner.lane: owner for owner in all_owners if owner.living and owner.lane}
    ended = {owner.lane: owner for owner in all_owners if not owner.living and owner.lane}
    mine = {name for owner in living.values() for name in owner.namespaces}
    leaks: list[Leak] = []
    spare: list[int] = []
    for number in sorted(_lanes(node, seen) - set(living)):
        parts = _parts(node, number, seen)
        if number not in ended and _is_spare(node, number, seen):
            if agent_runs:
                spare.append(number)
                continue
            why = "ready for a job, but no agent runs"
        elif number in ended:
            why = f"{ended[number]} has ended"
        else:
            why = f"lane {number} belongs to no attempt"
        leaks += [Leak(kind, what, why) for kind, what in parts]
    for name in sorted(set(seen.namespaces) - mine):
        lane = _lane_of(node, name)
        # A lane that somebody has may still have a namespace beside its own; another name of the kind is nobody's.
        if lane is None or lane in living:
            leaks.append(Leak("namespace", name, "no attempt has it"))
            leaks += [Leak("process", str(p), f"in {name}, which no attempt has") for p in seen.namespaces[name]]
    uids = {owner.uid for owner in all_owners if owner.living}
    for p in seen.strays:
        if p.uid not in uids:
            leaks.append(Leak("process", str(p), "in a network of its own making; no attempt of its uid lives"))
    for p in seen.at_home:
        if p.uid not in uids:
            leaks.append(Leak("process", str(p), "in the host's network; no attempt of its uid lives"))
    leaks += [Leak("descriptor", text, "the agent keeps a network alive that has no name") for text in seen.held]
    lacking = [leak for owner in living.values() if owner.ready for leak in _lacking(owner, seen)]
    if seen.registered is not None:
        known = {owner.id for owner in all_owners}
        leaks += [Leak("lease", id_, "only the controller knows it") for id_ in sorted(seen.registered - known)]
        lacking += [
            Leak("lease", str(owner), "the controller does not know it")
            for owner in living.values()
            if owner.ready and owner.id not in seen.registered
        ]
    return Verdict(
        leaks=tuple(leaks),
        lacking=tuple(lacking),
        waiting=tuple(f"{owner}: its deletion is not confirmed" for owner in all_owners if not owner.living),
        living=tuple(owner.id for owner in all_owners if owner.living),
        spare=tuple(spare),
        trouble=seen.trouble,
    )


def persistent(first: Verdict, second: Verdict) -> Verdict:
    """What both looks have: the rest was on its way."""
    leaks, lacking = {leak.key for leak in first.leaks}, {leak.key for leak in first.lacking}
    return Verdict(
        leaks=tuple(leak for leak in second.leaks if leak.key in leaks),
        lacking=tuple(leak for leak in second.lacking if leak.key in lacking),
        waiting=tuple(text for text in second.waiting if text in first.waiting),
        living=second.living,
        spare=second.spare,
        trouble=second.trouble,
    )


def _lane_of(node: str, namespace: str) -> int | None:
    """The lane that a namespace belongs to by its name."""
    digits, _, rest = namespace.removeprefix(plan.namespace_prefix(node)).partition("-")
    return int(digits) if digits.isdecimal() and digits.isascii() and rest in ("", "sealed", "attached") else None


def _lanes(node: str, seen: Seen) -> set[int]:
    """Every lane of which there is anything."""
    found = {_lane_of(node, name) for name in seen.namespaces}
    found |= {plan.lane_number_of_port(name) for name in (*seen.devices, *seen.ports)}
    found |= {zone - plan.ZONE_BASE for zone in (*seen.connections, *seen.limits)}
    return {number for number in (*found, *seen.flows) if number is not None}


def _own_namespaces(node: str, number: int, seen: Seen) -> list[str]:
    return [name for name in sorted(seen.namespaces) if _lane_of(node, name) == number]


def _parts(node: str, number: int, seen: Seen) -> list[tuple[str, str]]:
    """Kind and name of everything there is of a lane."""
    port, zone = f"{plan.PORT_PREFIX}{number}", plan.ZONE_BASE + number
    names = _own_namespaces(node, number, seen)
    found = [("namespace", name) for name in names]
    found += [("process", f"{p} in {name}") for name in names for p in seen.namespaces[name]]
    if port in seen.devices:
        found.append(("device", port))
    if port in seen.ports:
        label = seen.ports[port]
        found.append(("port", f"{port} labelled {label}" if label else port))
    if count := seen.connections.get(zone):
        found.append(("connections", f"{count} in zone {zone}"))
    if zone in seen.limits:
        found.append(("limit", f"of zone {zone}"))
    if count := seen.flows.get(number):
        found.append(("flows", f"{count} of lane {number}"))
    return found


def _is_spare(node: str, number: int, seen: Seen) -> bool:
    port = f"{plan.PORT_PREFIX}{number}"
    names = _own_namespaces(node, number, seen)
    return (
        names == [f"{plan.namespace_prefix(node)}{number}"]
        and not seen.namespaces[names[0]]
        and port in seen.devices
        and seen.ports.get(port) == ""
        and not seen.connections.get(plan.ZONE_BASE + number)
        and not seen.flows.get(number)
    )


def _lacking(owner: Owner, seen: Seen) -> list[Leak]:
    port = f"{plan.PORT_PREFIX}{owner.lane}"
    found = [
        Leak("namespace", name, f"{owner} should have it") for name in owner.namespaces if name not in seen.namespaces
    ]
    if port not in seen.devices:
        found.append(Leak("device", port, f"{owner} should have it"))
    if port not in seen.ports:
        found.append(Leak("port", port, f"{owner} should have it"))
    elif port in seen.numberless:
        found.append(Leak("port", port, f"{owner} has it, but the switch cannot use the device"))
    return found
