"""What is there now: the world, the rows of the living attempts, the nodes, and who holds which address and port.

Invariants: the world's attempts are those of `rows`; an outcome, slice or share has a number exactly while an attempt
has it, and no number stands for two of them; a claim belongs to one attempt, living or leaving, at a time. Whoever
changes anything here has `lock`.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeVar

from policies.model import Address, Attempt, Outcome, Policy, Role, ShareKey, Site, World
from policies.wire import DIGEST_MASK, attempt_summand
from ryu_apps.life.checks import Claim, claims, host_addresses, nobodys_host, share_key
from ryu_apps.life.numbers import Numbers
from ryu_apps.openflow.meters import MOST_SHARES
from ryu_apps.store.store import AttemptRow, Kind, NodeRow

LOG = logging.getLogger("lark.controller")
T = TypeVar("T")


@dataclass(slots=True)
class OnNode:
    """The living attempts of a node, and the sum that `wire.attempts_digest` is made of. What has come since anybody
    asked is added when somebody asks: a start, which reads thousands, does not wait for it."""

    ids: set[str] = field(default_factory=set)
    _sum: int = 0
    _come: set[str] = field(default_factory=set)

    def add(self, id: str) -> None:
        if id not in self.ids:
            self.ids.add(id)
            self._come.add(id)

    def remove(self, id: str) -> None:
        if id in self.ids:
            self.ids.remove(id)
            if id in self._come:
                self._come.remove(id)
            else:
                self._sum -= attempt_summand(id)

    @property
    def digest(self) -> str:
        self._sum += sum(map(attempt_summand, self._come))
        self._come.clear()
        return f"{self._sum & DIGEST_MASK:032x}"


def counted(outcomes: Iterable[Outcome]) -> Counter[Outcome]:
    """How often each occurs, of thousands. By identity first: attempts share their outcomes' objects, and hashing one
    costs more than all else here."""
    found: dict[int, list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault(id(outcome), []).append(outcome)
    total: Counter[Outcome] = Counter()
    for same in found.values():
        total[same[0]] += len(same)
    return total


def _stands_for_another(numbers: Mapping[T, int], thing: T | None, number: int) -> T | None:
    """What else has this number; None: nothing."""
    if thing is None or not number or numbers.get(thing) == number:
        return None
    return next((one for one, held in numbers.items() if held == number), None)


def _has(row: AttemptRow, thing: object) -> bool:
    return thing in (row.decision.outcome, row.decision.slice, share_key(row))


class Present:
    """`lock` is notified when ports or another controller's rows have come."""

    def __init__(self, site: Site, policy: Policy, numbers: Numbers) -> None:
        self.lock = threading.Condition(threading.Lock())
        self.numbers = numbers
        self.rows: dict[str, AttemptRow] = {}
        self.nodes: dict[str, NodeRow] = {}
        self.on_node = {name: OnNode() for name in site.nodes}
        self.claims: dict[Claim, str] = {}
        self.members: dict[str, dict[str, Attempt]] = {}
        """The attempts of each slice."""
        self.sharers: dict[ShareKey, dict[str, Attempt]] = {}
        """The attempts of each share."""
        self._leaving_shares: dict[str, int] = {}
        """The numbers of the shares that leaving attempts had."""
        self._on_bridge: dict[str, dict[str, Attempt]] = {}
        self.least_numbers: dict[tuple[Kind, str], int] = {}
        """The lowest number known of each service and node, also of such as the policy in force does not name."""
        self.replace(World(site=site, policy=policy))

    @property
    def world(self) -> World:
        """The world as it is; its attempts and numbers go on changing in it."""
        return self._world

    def copy(self) -> World:
        """The present world, a value: not for what happens with every attempt."""
        with self.lock:
            world = self._world
            return replace(
                world,
                identities=dict(world.identities),
                slice_numbers=dict(world.slice_numbers),
                share_numbers=dict(world.share_numbers),
                attempts=dict(world.attempts),
            )

    # --- the caller has the lock --------------------------------------------------------------------------------------

    def replace(self, world: World) -> None:
        """Put another world in place. What comes and goes with each attempt is changed in it, not copied each time."""
        self._attempts = dict(world.attempts)
        self._identities = dict(world.identities)
        self._slices = dict(world.slice_numbers)
        self._outcomes = counted(attempt.outcome for attempt in self._attempts.values())
        self._share_numbers = dict(world.share_numbers)
        self.members = {}
        self.sharers = {}
        self._on_bridge = {}
        for attempt in self._attempts.values():
            self._on_bridge.setdefault(attempt.bridge, {})[attempt.id] = attempt
            if attempt.slice is not None:
                self.members.setdefault(attempt.slice, {})[attempt.id] = attempt
            if attempt.share_key is not None:
                self.sharers.setdefault(attempt.share_key, {})[attempt.id] = attempt
        self._world = replace(
            world,
            identities=MappingProxyType(self._identities),
            slice_numbers=MappingProxyType(self._slices),
            share_numbers=MappingProxyType(self._share_numbers),
            attempts=MappingProxyType(self._attempts),
        )

    def seen_from(self, bridge: str) -> World:
        """The present world, a value, with no attempts but those that flows of a bridge follow from: looking at all of
        them for each of many bridges would make a restart of a large site slow."""
        world = replace(
            self._world,
            identities=dict(self._identities),
            slice_numbers=dict(self._slices),
            share_numbers=dict(self._share_numbers),
        )
        if world.site.bridges[bridge].roles != {Role.WORKER}:
            return replace(world, attempts=dict(self._attempts))
        here = self._on_bridge.get(bridge, {})
        found = dict(here)
        for name in dict.fromkeys(attempt.slice for attempt in here.values()):
            if name is not None:
                found.update(self.members.get(name, {}))
        return replace(world, attempts=found)

    def set_ports(self, bridge: str, ports: Mapping[str, int]) -> bool:
        """A bridge's declared ports; tells whether they are others than before."""
        if self._world.ports.get(bridge) == ports:
            return False
        self._world = replace(self._world, ports={**self._world.ports, bridge: ports})
        return True

    def set_meterless(self, bridge: str, meterless: bool) -> bool:
        """Whether the bridge's switch has no meters; tells whether that is other than before."""
        bridges = self._world.meterless
        if (bridge in bridges) == meterless:
            return False
        self._world = replace(self._world, meterless=bridges | {bridge} if meterless else bridges - {bridge})
        return True

    def set_host_addresses(self, node: str, addresses: tuple[Address, ...]) -> bool:
        """The addresses of a node's host; tells whether they are others than before."""
        if self._world.host_addresses.get(node, ()) == addresses:
            return False
        self._world = replace(self._world, host_addresses={**self._world.host_addresses, node: addresses})
        return True

    def set_number(self, kind: Kind, name: str, number: int) -> bool:
        """Another controller's number of a service or node. If two gave one each at the same moment, the lower counts;
        tells whether it replaces one that bridges have."""
        world = self._world
        self.least_numbers[kind, name] = number = min(number, self.least_numbers.get((kind, name), number))
        if kind is Kind.SERVICE and world.service_numbers.get(name, number) != number:
            self._world = replace(world, service_numbers={**world.service_numbers, name: number})
            return True
        if kind is Kind.NODE and world.node_numbers.get(name, number) != number:
            self._world = replace(world, node_numbers={**world.node_numbers, name: number})
            return True
        return False

    def swap(self, old: Attempt | None, new: Attempt | None) -> None:
        """Put one attempt in the place of another (or of none). What only `old` used keeps its number until `release`:
        the flows that go carry it."""
        if old is not None:
            del self._attempts[old.id]
            del self._on_bridge[old.bridge][old.id]
            self._outcomes[old.outcome] -= 1
            if old.share_key is not None:
                del self.sharers[old.share_key][old.id]
        if new is not None:
            self._attempts[new.id] = new
            self._on_bridge.setdefault(new.bridge, {})[new.id] = new
            self._outcomes[new.outcome] += 1
            if new.outcome not in self._identities:
                self._identities[new.outcome] = self.numbers.take(Kind.IDENTITY)
            if new.slice is not None and new.slice not in self._slices:
                self._slices[new.slice] = self.numbers.take(Kind.SLICE)
            if new.share_key is not None:
                self.sharers.setdefault(new.share_key, {})[new.id] = new
                if new.share_key not in self._share_numbers:
                    self._share_numbers[new.share_key] = self.fresh_share(self._share_numbers.values())

    def fresh_share(self, used: Iterable[int]) -> int:
        """A number for a share: none of these, nor of what leaves. Meters have room for four million of them, so it may
        come round to one that was given before."""
        taken = {0, *used, *self._leaving_shares.values()}
        while True:
            number = self.numbers.take(Kind.SHARE) & MOST_SHARES
            if number not in taken:
                return number

    def release(self, old: Attempt) -> None:
        """Forget the numbers of what nobody uses any more."""
        if not self._outcomes[old.outcome]:
            del self._outcomes[old.outcome]
            del self._identities[old.outcome]
        if old.slice is not None and old.slice not in self.members:
            del self._slices[old.slice]
        if old.share_key is not None and not self.sharers[old.share_key]:
            del self.sharers[old.share_key], self._share_numbers[old.share_key]

    def believable(self, row: AttemptRow) -> tuple[AttemptRow, dict[str, str]]:
        """Another controller's row; 0 instead of each number that stands for something else here: that job would be
        taken for one of the others. And what is to be said of each."""
        found = {
            "identity": _stands_for_another(self._identities, row.decision.outcome, row.identity),
            "slice_number": _stands_for_another(self._slices, row.decision.slice, row.slice_number),
            "share_number": _stands_for_another(self._share_numbers, share_key(row), row.share_number),
        }
        taken: dict[str, int] = {}
        said: dict[str, str] = {}
        for what, other in found.items():
            if other is not None:
                taken[what] = 0
                holder = next((id for id, one in self.rows.items() if _has(one, other)), "?")
                said[what] = (
                    f"is stored with the {what.replace('_', ' ')} {getattr(row, what)}, which attempt={holder} has for "
                    "what is not the same: it gets another number"
                )
        return (replace(row, **taken) if taken else row), said  # type: ignore[arg-type]

    def lower(self, row: AttemptRow) -> bool:
        """Equal outcomes, slices and shares have equal numbers. If two controllers gave one each at the same moment,
        the lower counts; tells whether it replaces one that bridges have."""
        lower = False
        outcome, name = row.decision.outcome, row.decision.slice
        if 0 < row.identity < self._identities.get(outcome, row.identity + 1):
            lower = outcome in self._identities
            self._identities[outcome] = row.identity
        if name is not None and 0 < row.slice_number < self._slices.get(name, row.slice_number + 1):
            lower = lower or name in self._slices
            self._slices[name] = row.slice_number
        share = share_key(row)
        if share is not None and 0 < row.share_number < self._share_numbers.get(share, row.share_number + 1):
            lower = lower or share in self._share_numbers
            self._share_numbers[share] = row.share_number
        if lower:
            self.rows = {id: self.numbered(one) for id, one in self.rows.items()}
        return lower

    def on_declared(self, bridge: str, ports: Mapping[str, int]) -> list[str]:
        """Attempts that have the number of a declared port of their bridge: none of theirs can."""
        declared = {ports[name] for name in self._world.site.bridges[bridge].ports if name in ports}
        return [id for id, one in self._on_bridge.get(bridge, {}).items() if one.ofport in declared]

    def numbered(self, row: AttemptRow) -> AttemptRow:
        """The row with the numbers that the world has for its identity, slice and share."""
        name, key = row.decision.slice, share_key(row)
        slice_number = self._slices[name] if name is not None else 0
        share = self._share_numbers[key] if key is not None else 0
        identity = self._identities[row.decision.outcome]
        if (row.identity, row.slice_number, row.share_number) == (identity, slice_number, share):
            return row
        return replace(row, identity=identity, slice_number=slice_number, share_number=share)

    def keep(self, row: AttemptRow) -> AttemptRow:
        """The row of a living attempt, with the world's numbers; it holds what it claims."""
        row = self.numbered(row)
        self.rows[row.id] = row
        self.on_node[row.spec.node].add(row.id)
        self.claims.update(dict.fromkeys(claims(row.spec), row.id))
        return row

    def lose(self, id: str) -> AttemptRow:
        """The attempt lives no more; what it claims it still holds."""
        row = self.rows.pop(id)
        self.on_node[row.spec.node].remove(id)
        self.hold_share(row)
        return row

    def hold_share(self, row: AttemptRow) -> None:
        """The attempt leaves: the number of its share is given to no other share before it is gone."""
        if row.share_number:
            self._leaving_shares[row.id] = row.share_number

    def give_free(self, row: AttemptRow) -> None:
        """What an attempt held may be given to another."""
        self._leaving_shares.pop(row.id, None)
        for claim in claims(row.spec):
            if self.claims.get(claim) == row.id:
                del self.claims[claim]

    def believed(self, row: NodeRow) -> tuple[Address, ...]:
        """A stored node's host addresses, without those that site or policy have come to give to somebody else."""
        found = {address: nobodys_host(self._world, address) for address in host_addresses(row.spec)}
        for address, why in found.items():
            if why:
                LOG.error("node=%s: its host address %s is not believed any more: it is %s", row.name, address, why)
        return tuple(address for address, why in found.items() if not why)
