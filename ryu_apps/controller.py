"""The life of an attempt: register, decide, store, program, answer; and the end of it.

    PUT ──▶ check ──▶ decide ──▶ ┬──▶ store (durable) ──────┬──▶ both confirmed: answer
             │           │       └──▶ flows ──▶ fabric ─────┘         else: take back, answer 503
             ▼ 4xx       ▼ 422
    DELETE, lease over, boot id changed ──▶ flows away ──▶ every bridge confirmed: row away
                                                           else: "leaving": its address is given to nobody yet

Invariants:
* What the fabric was told of a bridge always equals `compiler.desired_flows` of `world`: the increments are an
  optimisation.
* An attempt is answered as realised only when its row is on disk and each of its bridges has confirmed.
* Address, MAC, port and zone belong to one attempt, living or leaving, at a time.
* Where several controllers share a store (`name` is given), this one programs only the bridges that it is master of
  (`mastered`). For the others its tickets stand for what their masters say in the store (`ryu_apps.shared`).
* The lock is never held while waiting for a switch or for a row; requests for the same attempt id take turns.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from policies import decide as deciding
from policies.language import attributes_read
from policies.model import Address, Attempt, Decision, Node, Outcome, Policy, Site, World
from policies.wire import (
    DIGEST_MASK,
    AttemptSpec,
    AttemptStatus,
    BridgeRealisation,
    BridgeStatus,
    Counters,
    Deleted,
    Heartbeat,
    HeartbeatAnswer,
    NodeGrant,
    NodeSpec,
    NodeStatus,
    Phase,
    PolicyStatus,
    attempt_summand,
)
from ryu_apps.fabric import REALISED, BridgeState, Fabric, FabricError, Ticket, TicketResult
from ryu_apps.fabric import Outcome as Settled
from ryu_apps.openflow import compiler
from ryu_apps.openflow.cookies import FEATURE_MASK, FULL_MASK, Feature, cookie
from ryu_apps.openflow.flows import Flow, FlowKey
from ryu_apps.refusal_log import Ended, RefusalLog, told_apart, words
from ryu_apps.refusals import Refused, Slug
from ryu_apps.shared import Elsewhere, asked, without
from ryu_apps.store.blocks import NumberBlock
from ryu_apps.store.store import (
    AttemptRow,
    Change,
    DropAttempt,
    Kind,
    NodeRow,
    NumberRow,
    Pending,
    PutAttempt,
    PutNode,
    PutNumber,
    Snapshot,
    Store,
    StoreConflict,
    StoreError,
)
from ryu_apps.views import decision_view, policy_status

LOG = logging.getLogger("lark.controller")
ZONE_BASE = 1000
"""The conntrack zone of lane n is ZONE_BASE + n (docs/interfaces.md section 2)."""
PORT_PATIENCE = 2.0
"""Seconds that a port which the agent has just plugged may take to show up at the controller."""
STORE_PATIENCE = 2.0
"""Seconds that the row of an ended attempt may take to go; then `tick` tries again."""
STANDSTILL = 5.0
"""Seconds between two calls of `tick` beyond which the process has not run in between."""
_PHASES = list(Phase)
_GIVEN_ON_THE_WAY = (Kind.ATTEMPT, Kind.IDENTITY, Kind.SLICE)
"""Numbers that a registration may need: a block of each is reserved beforehand."""
Claim = tuple[str, str, object]
"""Something that one attempt at a time may hold: where, what, which."""


@dataclass(slots=True)
class _Leaving:
    """An attempt that has ended and that some bridge has not yet confirmed as gone."""

    row: AttemptRow
    tickets: dict[str, Ticket]
    stored: tuple[str, ...] | None = None
    """What the stored row says it waits for; None: the row still says that the attempt lives."""
    unstored: bool = False
    """There is no row (any more)."""


@dataclass(frozen=True, slots=True)
class _Told:
    """Tickets of a change: of the bridges that must confirm it, and of those that only follow (slice peers')."""

    concerned: dict[str, Ticket]
    peers: dict[str, Ticket]


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why something is not realised. `refused_by`: bridges that forgot the change, on which others may have relied."""

    answer: Refused
    refused_by: Sequence[str]
    overtaken: bool = False
    """Another controller was quicker: the attempt is what the store says, and not to be taken back."""


@dataclass(frozen=True, slots=True)
class _FailedWrite:
    problem: str

    def wait(self, deadline: float) -> None:
        raise StoreError(self.problem)


class _Later:
    """Stands for the tickets of a bridge whose ports are not known yet since this controller started.

    Its standing flows follow from its port numbers: said without them, they would be torn out of a switch that has
    them all. So nothing is said until the ports are known, and then everything at once.
    """

    def __init__(self, bridge: str) -> None:
        self._bridge = bridge
        self._known = threading.Event()
        self._ticket: Ticket | None = None

    def settle_by(self, ticket: Ticket) -> None:
        self._ticket = ticket
        self._known.set()

    def wait(self, deadline: float) -> TicketResult:
        self._known.wait(max(0.0, deadline - time.monotonic()))
        if self._ticket is None:
            return TicketResult(Settled.TIMED_OUT, f"bridge {self._bridge} has not connected yet")
        return self._ticket.wait(deadline)

    def result(self) -> TicketResult | None:
        return None if self._ticket is None else self._ticket.result()


@dataclass(slots=True)
class _OnNode:
    """The living attempts of a node, and the sum that `wire.attempts_digest` is made of."""

    ids: set[str] = field(default_factory=set)
    sum: int = 0

    def add(self, id: str) -> None:
        if id not in self.ids:
            self.ids.add(id)
            self.sum += attempt_summand(id)

    def remove(self, id: str) -> None:
        if id in self.ids:
            self.ids.remove(id)
            self.sum -= attempt_summand(id)

    @property
    def digest(self) -> str:
        return f"{self.sum & DIGEST_MASK:032x}"


@dataclass(slots=True)
class _Turn:
    lock: threading.Lock = field(default_factory=threading.Lock)
    waiting: int = 0


class Controller:
    """All state of the controller. `start()` once, then any thread may call. `deadline`: seconds to confirm in."""

    def __init__(
        self,
        site: Site,
        policy: Policy,
        store: Store,
        *,
        deadline: float = 10.0,
        lease: int = 60,
        name: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._deadline = deadline
        self._lease = lease
        self._name = name
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = threading.Condition(threading.Lock())
        self._fabric: Fabric | None = None
        self._replace(World(site=site, policy=policy))
        self._rows: dict[str, AttemptRow] = {}
        self._leaving: dict[str, _Leaving] = {}
        self._on_node = {name: _OnNode() for name in site.nodes}
        self._claims: dict[Claim, str] = {}
        self._uses: dict[str, Counter[Outcome]] = {bridge: Counter() for bridge in site.bridges}
        self._members: dict[str, dict[str, Attempt]] = {}
        self._base: dict[str, dict[FlowKey, Flow]] = {bridge: {} for bridge in site.bridges}
        self._standing: dict[str, list[Ticket]] = {}
        self._unheard = {bridge: _Later(bridge) for bridge in site.bridges}
        self._nodes: dict[str, NodeRow] = {}
        self._leases: dict[str, float] = {}
        self._last_tick = 0.0
        self._leases_held = False
        self._turns: dict[str, _Turn] = {}
        self._refusals = RefusalLog(clock)
        self._numbers = {kind: NumberBlock(store, kind) for kind in Kind}
        # What only a controller among several has: the bridges it is master of, what the store holds of each attempt,
        # tickets that other masters settle and that it owes them, and the nodes whose agents talk to another one.
        self._mine: set[str] = set(site.bridges) if name is None else set()
        self._stored: dict[str, AttemptRow] = {}
        self._awaited: dict[str, dict[str, Elsewhere]] = {}
        self._owed: dict[tuple[str, str], Ticket] = {}
        self._owed_refused: dict[str, set[str]] = {}
        self._to_confirm: dict[str, float] = {}
        self._collided: set[str] = set()
        self._theirs: dict[str, str] = {}
        self.catch_up: Callable[[], None] = _nothing_to_catch_up
        """Returns when everything that others wrote before the call is known here."""

    # --- start ------------------------------------------------------------------------------------------------------

    def start(self, fabric: Fabric, snapshot: Snapshot | None = None) -> None:
        """Read everything back and be ready for the switches; only then may they be let in.

        Among several controllers `snapshot` is where the feed of changes begins. Raises StoreError when the store
        cannot be read.
        """
        if snapshot is None:
            snapshot = self._store.load()
        if self._name is not None:
            self._stored = {row.id: row for row in snapshot.attempts}
        numbers = dict(snapshot.numbers)
        world = self._world
        changes: list[Change] = []
        service_numbers = self._number(Kind.SERVICE, world.policy.services, numbers, changes)
        node_numbers = self._number(Kind.NODE, world.site.nodes, numbers, changes)
        self._nodes = {row.name: row for row in snapshot.nodes if row.name in world.site.nodes}
        attempts: dict[str, Attempt] = {}
        identities: dict[Outcome, int] = {}
        slices: dict[str, int] = {}
        leaving: list[AttemptRow] = []
        living: list[tuple[AttemptRow, Decision]] = []
        for row in sorted(snapshot.attempts, key=lambda row: row.number):
            if row.leaving:
                leaving.append(row)
                continue
            try:
                self._check(row.id, row.spec, self._nodes)
            except Refused as refused:
                LOG.error("attempt=%s does not fit site.yaml any more (%s): torn down", row.id, refused.detail)
                leaving.append(replace(row, leaving=tuple(world.site.bridges)))
                changes.append(PutAttempt(leaving[-1]))
                continue
            decided = row.decision
            if row.digest != world.policy.digest:
                row = self._decide_anew(row, world.policy)
                changes.append(PutAttempt(row))
            living.append((row, decided))
        # A number never means anything else: it stays with the outcome or slice that it was given for, and what another
        # policy makes of an attempt has a number of its own.
        for row, decided in living:
            # (Two controllers may have given a number each to the same thing at the same moment: the lower counts.)
            if row.decision.outcome == decided.outcome:
                identities[decided.outcome] = min(row.identity, identities.get(decided.outcome, row.identity))
            if decided.slice is not None and row.decision.slice == decided.slice:
                slices[decided.slice] = min(row.slice_number, slices.get(decided.slice, row.slice_number))
        for row, _ in living:
            outcome, name = row.decision.outcome, row.decision.slice
            if outcome not in identities:
                identities[outcome] = self._numbers[Kind.IDENTITY].take()
            if name is not None and name not in slices:
                slices[name] = self._numbers[Kind.SLICE].take()
            slice_number = slices[name] if name is not None else 0
            if (identities[outcome], slice_number) != (row.identity, row.slice_number):
                row = replace(row, identity=identities[outcome], slice_number=slice_number)
                changes.append(PutAttempt(row))
            self._rows[row.id] = row
            self._on_node[row.spec.node].add(row.id)
            attempts[row.id] = _attempt(row)
            self._claims.update(dict.fromkeys(_claims(row.spec), row.id))
        world = replace(
            world,
            host_addresses={name: self._believed(row) for name, row in self._nodes.items()},
            service_numbers=service_numbers,
            node_numbers=node_numbers,
            identities=identities,
            slice_numbers=slices,
            attempts=attempts,
        )
        self._replace(world)
        self._write_at_start(changes)
        for kind in _GIVEN_ON_THE_WAY:
            self._numbers[kind].top_up()
        now = self._last_tick = self._clock()
        others = {row.name for row in snapshot.controllers} - {self._name}
        if self._name is not None:
            self._theirs = {name: row.controller for name, row in self._nodes.items() if row.controller in others}
        self._leases = {name: now + self._lease for name in self._nodes if name not in self._theirs}
        with self._lock:
            self._fabric = fabric
            tickets = self._say_everything()
            for row in leaving:
                waits = {bridge: tickets[bridge] for bridge in row.leaving if bridge in tickets}
                self._leaving[row.id] = _Leaving(row, waits, row.leaving)
                self._claims.update(dict.fromkeys(_claims(row.spec), row.id))
        LOG.info(
            "read back %d attempts (%d leaving) of %d nodes, %d identities; policy %s",
            len(self._rows), len(leaving), len(self._nodes), len(identities), world.policy.digest[:12],
        )  # fmt: skip

    @property
    def world(self) -> World:
        """The present world, a value: a copy, so not for what happens with every attempt."""
        with self._lock:
            world = self._world
            return replace(
                world,
                identities=dict(world.identities),
                slice_numbers=dict(world.slice_numbers),
                attempts=dict(world.attempts),
            )

    def _replace(self, world: World) -> None:
        """Put another world in place. What comes and goes with each attempt is changed in it, not copied each time."""
        self._attempts = dict(world.attempts)
        self._identities = dict(world.identities)
        self._slices = dict(world.slice_numbers)
        self._outcomes = Counter(attempt.outcome for attempt in self._attempts.values())
        self._world = replace(
            world,
            identities=MappingProxyType(self._identities),
            slice_numbers=MappingProxyType(self._slices),
            attempts=MappingProxyType(self._attempts),
        )

    def fabric_ports(self, bridge: str, ports: Mapping[str, int]) -> None:
        """The fabric's `on_ports`: standing flows follow the numbers of a bridge's declared ports."""
        with self._lock:
            # Ports of jobs come and go; only the declared ones mean something to the standing flows.
            declared = {name: ports[name] for name in self._world.site.bridges[bridge].ports if name in ports}
            if self._world.ports.get(bridge) != declared:
                self._world = replace(self._world, ports={**self._world.ports, bridge: declared})
                self._follow_base([bridge])
                missing = sorted(set(self._world.site.bridges[bridge].ports) - set(declared))
                if missing:
                    LOG.error(
                        "bridge=%s has no port %s, which site.yaml declares: jobs there stay cut off",
                        bridge,
                        ", ".join(missing),
                    )
            unheard = self._unheard.pop(bridge, None)
            if unheard is not None:
                unheard.settle_by(self._say([bridge])[bridge])
            self._lock.notify_all()

    # --- attempts ---------------------------------------------------------------------------------------------------

    def register(self, id: str, spec: AttemptSpec) -> tuple[AttemptStatus, bool]:
        """Bring an attempt's policy into force. Returns its status and whether it is new. Raises Refused."""
        with self._turn(id):
            deadline = self._clock() + self._deadline
            with self._lock:
                known = self._rows.get(id)
                unheard_of = spec.node in self._world.site.nodes and spec.node not in self._nodes
            if known is None and unheard_of:
                self.catch_up()
            with self._lock:
                if known is None:
                    self._check(id, spec, self._nodes)
            if known is not None:
                return self._again(known, spec, deadline), False
            # A try that was taken back a moment ago may still be on its way out.
            self._settle([id], deadline)
            self._await_port(spec)
            self._top_up()
            with self._lock:
                held = any(self._claims.get(claim) is not None for claim in _claims(spec)) or id in self._leaving
            if held:
                self.catch_up()
            with self._lock:
                self._check(id, spec, self._nodes)
                self._check_claims(id, spec)
                policy = self._world.policy
                try:
                    decision = _decide(policy, spec, spec.phase)
                except Refused as held:
                    LOG.info("attempt=%s job=%s node=%s held: %s", id, spec.job, spec.node, held.detail)
                    raise
                row = AttemptRow(
                    id=id,
                    number=self._numbers[Kind.ATTEMPT].take(),
                    identity=0,
                    spec=spec,
                    decision=decision,
                    digest=policy.digest,
                    registered=self._wall_clock(),
                )
                told = self._shift(None, _attempt(row))
                tickets = told.concerned
                self._follow_up(told.peers)
                row = self._keep(self._numbered(row))
                pending = self._put(row, tickets)
                self._leases[spec.node] = self._clock() + self._lease
            failure = self._confirm(id, tickets, pending, deadline)
            if failure is not None and failure.overtaken:
                raise failure.answer
            if failure is not None:
                with self._lock:
                    if id in self._rows:
                        self._leave(id)
                    self._say(failure.refused_by)
                self._settle([id], self._clock() + 1)
                raise failure.answer
            LOG.info(
                "attempt=%s job=%s node=%s bridge=%s port=%s number=%d identity=%d rules=%s in force on %s",
                id, spec.job, spec.node, spec.port.bridge, spec.port.name, row.number, row.identity,
                ",".join(str(place) for place, _ in decision.trail) or "none", ",".join(tickets),
            )  # fmt: skip
            return self._status(row, dict.fromkeys(tickets, BridgeRealisation.REALISED)), True

    def advance(self, id: str, phase: Phase) -> AttemptStatus:
        """Bring the policy of a later phase into force; the same phase again confirms it. Raises Refused."""
        with self._turn(id):
            deadline = self._clock() + self._deadline
            self._top_up()
            if id not in self._rows:
                self.catch_up()
            with self._lock:
                row = self._rows.get(id)
                if row is None:
                    raise _no_such_attempt(id)
                if _PHASES.index(phase) < _PHASES.index(row.spec.phase):
                    raise Refused(
                        Slug.PHASE,
                        f"attempt {id} is in phase {row.spec.phase} already; phases only advance, not to {phase}",
                    )
                if phase is not row.spec.phase:
                    policy = self._world.policy
                    spec = row.spec.model_copy(update={"phase": phase})
                    new = replace(row, spec=spec, decision=_decide(policy, spec, phase), digest=policy.digest)
                    told = self._shift(self._world.attempts[id], _attempt(new))
                    tickets = told.concerned
                    self._follow_up(told.peers)
                    new = self._keep(self._numbered(new))
                    pending: Pending | None = self._put(new, tickets)
                else:
                    new, tickets = row, self._repeat(id)
                    pending = self._ask_again(row, tickets)
            failure = self._confirm(id, tickets, pending, deadline)
            if failure is not None:
                back_write: Pending | None = None
                with self._lock:
                    if new is not row and not failure.overtaken and id in self._rows:
                        # The policy may have been replaced meanwhile: back to the old phase, not to the old policy.
                        back = (
                            row
                            if row.digest == self._world.policy.digest
                            else self._decide_anew(row, self._world.policy)
                        )
                        self._follow_up(self._shift(self._world.attempts[id], _attempt(back)).peers)
                        back = self._keep(self._numbered(back))
                        back_write = self._put(back, {})
                    self._say(failure.refused_by)
                if back_write is not None and self._name is not None:
                    with contextlib.suppress(StoreError):
                        back_write.wait(self._clock() + STORE_PATIENCE)
                raise failure.answer
            LOG.info("attempt=%s job=%s node=%s phase %s in force", id, new.spec.job, new.spec.node, phase)
            return self._status(new, dict.fromkeys(self._bridges_of(new), BridgeRealisation.REALISED))

    def delete(self, id: str) -> Deleted:
        """End an attempt; returns when every reachable bridge has confirmed. Raises Refused.

        Again while a bridge is pending: says which; once all have confirmed, there is no such attempt.
        """
        with self._turn(id):
            if id not in self._rows and id not in self._leaving:
                self.catch_up()
            with self._lock:
                if id in self._rows:
                    self._count_last(id)
                    self._leave(id)
                elif id not in self._leaving:
                    raise _no_such_attempt(id)
                leaving = self._leaving[id]
                tickets = dict(leaving.tickets)
            self._settle([id], self._clock() + self._deadline)
            answer = {
                bridge: BridgeRealisation.REALISED if _gone(ticket) else BridgeRealisation.PENDING
                for bridge, ticket in tickets.items()
            }
            LOG.info(
                "attempt=%s job=%s node=%s ended: %s", id, leaving.row.spec.job, leaving.row.spec.node, _words(answer)
            )
            return Deleted(id=id, bridges=answer)

    def attempt(self, id: str) -> AttemptStatus:
        """An attempt with its counters. Raises Refused."""
        with self._lock:
            row = self._rows.get(id)
            attempt = self._world.attempts.get(id)
        if row is None or attempt is None:
            raise _no_such_attempt(id)
        return self._status(row, self._seen(row), self._counters(attempt))

    def attempts(self, *, job: str | None = None, node: str | None = None) -> list[AttemptStatus]:
        """Attempts (without counters) in the order in which they were registered."""
        with self._lock:
            rows = sorted(self._rows.values(), key=lambda row: row.number)
        states = {state.bridge: state for state in self._switches().bridges()}
        return [
            self._status(row, self._seen(row, states))
            for row in rows
            if (job is None or row.spec.job == job) and (node is None or row.spec.node == node)
        ]

    def node_of(self, id: str) -> str | None:
        """The node that an attempt, living or leaving, belongs to; None if there is no such attempt."""
        if id not in self._rows and id not in self._leaving:
            self.catch_up()
        with self._lock:
            row = self._rows.get(id)
            if row is None and id in self._leaving:
                row = self._leaving[id].row
        return None if row is None else row.spec.node

    # --- nodes ------------------------------------------------------------------------------------------------------

    def register_node(self, name: str, spec: NodeSpec) -> NodeGrant:
        """An agent says what its node is; it is told what the node may use. Raises Refused."""
        with self._lock:
            site = self._world.site
            node = site.nodes.get(name)
            if node is None:
                raise Refused(Slug.NO_SUCH_NODE, f"node {name} is not in site.yaml; declare it under nodes")
            if spec.bridge != node.bridge:
                raise Refused(
                    Slug.UNKNOWN_BRIDGE,
                    f"node {name} has bridge {node.bridge} in site.yaml, the agent says {spec.bridge}",
                )
            for address in _host_addresses(spec):
                why = _nobodys_host(self._world, address)
                if why:
                    raise Refused(
                        Slug.BAD_ADDRESS,
                        f"node {name} says that {address} is an address of its host, but that is {why}: take it off "
                        "the host, or mend site.yaml or the policy",
                    )
            old = self._nodes.get(name)
            row = NodeRow(name, spec, self._name or "")
        if old != row:
            try:
                self._store.write([PutNode(row)]).wait(self._clock() + self._deadline)
            except StoreError as problem:
                raise Refused(Slug.NOT_REALISED, f"node {name}: {problem}; try again", {"bridges": []}) from problem
        with self._lock:
            self._nodes[name] = row
            self._theirs.pop(name, None)
            self._leases[name] = self._clock() + self._lease
            addresses = _host_addresses(spec)
            if self._world.host_addresses.get(name, ()) != addresses:
                self._world = replace(self._world, host_addresses={**self._world.host_addresses, name: addresses})
                # Not waited for: on each bridge these flows go before those of any job registered from now on.
                self._follow_base(site.bridges)
        if old is not None and old.spec.boot_id != spec.boot_id:
            with self._lock:
                lost = sorted(self._on_node[name].ids)
            LOG.warning("node=%s has rebooted (boot id %s): %d attempts are over", name, spec.boot_id, len(lost))
            self._end_quietly(lost)
        elif old != row:
            LOG.info("node=%s registered: bridge=%s, %d host addresses", name, spec.bridge, len(addresses))
        network = site.network
        return NodeGrant(
            node=name,
            ipv4_range=str(node.ipv4),
            ipv4_prefix_length=network.ipv4.prefixlen,
            ipv4_gateway=_text(network.gateway_ipv4),
            ipv6_prefix=_text(node.ipv6),
            ipv6_prefix_length=network.ipv6.prefixlen if network.ipv6 is not None and node.ipv6 is not None else None,
            ipv6_gateway=_text(network.gateway_ipv6) if node.ipv6 is not None else None,
            mtu=network.mtu,
            lease=self._lease,
            attributes=sorted(attributes_read(self._world.policy)),
        )

    def heartbeat(self, name: str, beat: Heartbeat) -> HeartbeatAnswer:
        """Renew a node's lease and compare what both sides know. Raises Refused."""
        if name not in self._nodes:
            self.catch_up()
        self._serve_node(name)
        with self._lock:
            digest = self._on_node[name].digest if name in self._on_node else ""
        if beat.attempts is not None or beat.digest != digest:
            # An agent must not be told to drop what another controller registered a moment ago.
            self.catch_up()
        with self._lock:
            node = self._nodes.get(name)
            if node is None:
                raise Refused(Slug.NO_SUCH_NODE, f"node {name} has not registered; PUT /v1/nodes/{name} first")
            if node.spec.boot_id != beat.boot_id:
                raise Refused(
                    Slug.CONFLICT,
                    f"node {name} registered with boot id {node.spec.boot_id}; PUT /v1/nodes/{name} again",
                )
            self._leases[name] = self._clock() + self._lease
            agreed = beat.attempts is None and beat.digest == self._on_node[name].digest
            mine = set() if agreed else set(self._on_node[name].ids)
        if agreed:
            return HeartbeatAnswer(lease=self._lease, drop=[], gone=[])
        if beat.attempts is None:
            LOG.info("node=%s knows other attempts than the controller: it is asked which", name)
            return HeartbeatAnswer(lease=self._lease, agree=False, drop=[], gone=[])
        theirs = set(beat.attempts)
        return HeartbeatAnswer(lease=self._lease, drop=sorted(theirs - mine), gone=sorted(mine - theirs))

    def nodes(self) -> list[NodeStatus]:
        """Every node of the site, registered or not."""
        with self._lock:
            now = self._clock()
            found = []
            for name in sorted(self._world.site.nodes):
                row = self._nodes.get(name)
                # Of a node whose agent talks to another controller, that one knows.
                left = (
                    None
                    if row is None or name in self._theirs
                    else max(0.0, round(self._leases.get(name, now) - now, 1))
                )
                found.append(
                    NodeStatus(
                        node=name,
                        spec=row.spec if row else None,
                        attempts=len(self._on_node[name].ids),
                        lease_left=left,
                    )
                )
            return found

    def tick(self, turned_away: float | None = None) -> None:
        """Call about once a second: ends leases that ran out, and finishes what is leaving.

        `turned_away`: when, by the clock, a client was last refused for want of a place. Heartbeats may have been among
        them: no lease ends within one lease of that.
        """
        now = self._clock()
        with self._lock:
            # If this process stood still (a suspended machine), the heartbeats of that time are still unread.
            stood_still = now - self._last_tick
            self._last_tick = now
            if stood_still > STANDSTILL:
                LOG.warning("the controller stood still for %.0f s: leases are prolonged by that", stood_still)
                self._leases = {name: end + stood_still for name, end in self._leases.items()}
            if turned_away is not None:
                self._hold_leases(turned_away + self._lease, now)
            over = [name for name, end in self._leases.items() if end <= now]
            for name in over:
                del self._leases[name]
            ended = set(self._nodes) - set(self._leases) - set(self._theirs)
            orphans = [id for name in ended for id in sorted(self._on_node[name].ids)]
            leaving = list(self._leaving)
            orphans += sorted(self._collided)
            self._collided.clear()
            self._insist()
        for name in over:
            LOG.warning("node=%s: its lease is over; its attempts are torn down", name)
        self._end_quietly(orphans)
        with contextlib.ExitStack() as turns:
            self._settle([id for id in leaving if turns.enter_context(self._turn(id, wait=False))], now)
        self._refusals.report()

    def _hold_leases(self, until: float, now: float) -> None:
        """Whoever is silent when clients are turned away may not be dead; the caller holds the lock."""
        if now < until and not self._leases_held:
            LOG.warning("clients are being turned away: no lease ends within %d s of that", self._lease)
        self._leases_held = now < until
        self._leases = {name: max(end, until) for name, end in self._leases.items()}

    # --- bridges and policy -----------------------------------------------------------------------------------------

    def bridges(self) -> list[BridgeStatus]:
        """Every bridge as the fabric sees it."""
        site = self._world.site
        return [
            BridgeStatus(
                bridge=state.bridge,
                datapath_id=f"{state.datapath_id:016x}",
                roles=sorted(role.value for role in site.bridges[state.bridge].roles),
                connected=state.connected,
                converged=state.converged,
                flows=state.flows,
                ports=dict(state.ports),
                detail=state.detail,
            )
            for state in self._switches().bridges()
        ]

    def policy(self) -> PolicyStatus:
        return policy_status(self._world.policy)

    def reload(self, policy: Policy) -> None:
        """Put another policy in force, also for the attempts there are. Raises StoreError; then the old one stays."""
        numbers = {(Kind.SERVICE, name): number for name, number in self._world.service_numbers.items()}
        fresh: list[Change] = []
        self._top_up()
        service_numbers = self._number(Kind.SERVICE, policy.services, numbers, fresh)
        if fresh:
            self._store.write(fresh).wait(self._clock() + self._deadline)
        with self._lock:
            before = self._world.policy.digest
            self._count_until_now(policy)
            rows = {id: self._decide_anew(row, policy) for id, row in self._rows.items()}
            identities = {
                outcome: self._world.identities.get(outcome) or self._numbers[Kind.IDENTITY].take()
                for outcome in dict.fromkeys(row.decision.outcome for row in rows.values())
            }
            slices = {
                name: self._world.slice_numbers.get(name) or self._numbers[Kind.SLICE].take()
                for name in dict.fromkeys(row.decision.slice for row in rows.values())
                if name is not None
            }
            self._rows = {
                id: replace(
                    row,
                    identity=identities[row.decision.outcome],
                    slice_number=slices[row.decision.slice] if row.decision.slice is not None else 0,
                )
                for id, row in rows.items()
            }
            self._replace(
                replace(
                    self._world,
                    policy=policy,
                    service_numbers={**self._world.service_numbers, **service_numbers},
                    identities=identities,
                    slice_numbers=slices,
                    attempts={id: _attempt(row) for id, row in self._rows.items()},
                )
            )
            tickets = self._say_everything()
            pending = self._put_all()
            if self._name is not None:
                tickets = {bridge: ticket for bridge, ticket in tickets.items() if bridge in self._mine}
        failure = self._confirm("(all)", tickets, pending, self._clock() + self._deadline)
        LOG.info("policy %s replaces %s; %d attempts decided anew", policy.digest[:12], before[:12], len(rows))
        if failure is not None:
            late = failure.answer.detail.removesuffix("; try again")
            LOG.warning("the new policy is not in force everywhere yet: %s; these follow as soon as they can", late)

    def problems(self) -> list[str]:
        """Why the controller is not ready to serve; empty when it is."""
        return [] if self._fabric is not None else ["the stored state has not been read back yet"]

    def _believed(self, row: NodeRow) -> tuple[Address, ...]:
        """A stored node's host addresses, without those that site or policy have come to give to somebody else."""
        found = {address: _nobodys_host(self._world, address) for address in _host_addresses(row.spec)}
        for address, why in found.items():
            if why:
                LOG.error("node=%s: its host address %s is not believed any more: it is %s", row.name, address, why)
        return tuple(address for address, why in found.items() if not why)

    # --- checks -----------------------------------------------------------------------------------------------------

    def _check(self, id: str, spec: AttemptSpec, nodes: Mapping[str, NodeRow]) -> None:
        """Everything about a registration that the site alone decides. Raises Refused."""
        site = self._world.site
        node = site.nodes.get(spec.node)
        if node is None:
            raise Refused(Slug.NO_SUCH_NODE, f"node {spec.node} is not in site.yaml; declare it under nodes")
        if not id.startswith(f"{spec.node}~"):
            raise Refused(Slug.MALFORMED, f"attempt id {id} does not begin with its node, {spec.node}~")
        if spec.port.bridge != node.bridge:
            known = "is another node's" if spec.port.bridge in site.bridges else "is not in site.yaml"
            raise Refused(
                Slug.UNKNOWN_BRIDGE, f"bridge {spec.port.bridge} {known}; node {spec.node} has bridge {node.bridge}"
            )
        if spec.node not in nodes:
            # Without the host's own addresses its jobs could reach them.
            raise Refused(Slug.NO_SUCH_NODE, f"node {spec.node} has not registered; PUT /v1/nodes/{spec.node} first")
        if spec.port.name in site.bridges[node.bridge].ports or spec.port.name == node.bridge:
            raise Refused(Slug.NO_SUCH_PORT, f"port {spec.port.name} of bridge {node.bridge} is not a job's port")
        ipv4 = ipaddress.IPv4Address(spec.ipv4)
        edge = node.ipv4.prefixlen < 31 and ipv4 in (node.ipv4.network_address, node.ipv4.broadcast_address)
        if ipv4 not in node.ipv4 or edge:
            raise Refused(Slug.BAD_ADDRESS, f"{ipv4} is not a usable host address of {spec.node}'s range {node.ipv4}")
        if ipv4 == site.network.gateway_ipv4:
            raise Refused(Slug.BAD_ADDRESS, f"{ipv4} is the gateway of the job network")
        mac, ipv6 = compiler.lane_addresses(site, spec.node, ipv4)
        if _mac(spec.mac) != mac:
            raise Refused(Slug.BAD_ADDRESS, f"the MAC address of {ipv4} must be {_mac_text(mac)}, not {spec.mac}")
        if (ipv6 is None) != (spec.ipv6 is None) or (
            spec.ipv6 is not None and ipaddress.IPv6Address(spec.ipv6) != ipv6
        ):
            raise Refused(
                Slug.BAD_ADDRESS, f"the IPv6 address of {ipv4} must be {ipv6 or 'absent'}, not {spec.ipv6 or 'absent'}"
            )
        lane = int(ipv4) - int(node.ipv4.network_address) + (1 if node.ipv4.prefixlen >= 31 else 0)
        if spec.zone != ZONE_BASE + lane:
            raise Refused(Slug.BAD_ADDRESS, f"the conntrack zone of {ipv4} must be {ZONE_BASE + lane}, not {spec.zone}")

    def _check_claims(self, id: str, spec: AttemptSpec) -> None:
        for claim in (None, *_claims(spec)):
            holder = id if claim is None else self._claims.get(claim)
            if holder is None or (claim is None and id not in self._leaving):
                continue
            where, what, which = claim or ("the controller", "the id", id)
            leaving = self._leaving.get(holder)
            if leaving is None:
                raise Refused(Slug.CONFLICT, f"{what} {which} on {where} is used by attempt {holder}")
            # That ends by itself: to be tried again, not to be mended.
            waits = sorted(bridge for bridge, ticket in leaving.tickets.items() if not _gone(ticket))
            raise Refused(
                Slug.NOT_REALISED,
                f"{what} {which} on {where} was used by attempt {holder} and stays in quarantine until "
                f"{', '.join(waits) or 'the store'} has confirmed that it is gone; try again",
                {"bridges": waits},
            )

    def _await_port(self, spec: AttemptSpec) -> None:
        """The port must be on the switch, under this name and number. Raises Refused."""
        bridge, port = spec.port.bridge, spec.port
        until = time.monotonic() + min(PORT_PATIENCE, self._deadline)
        while True:
            state = self._state(bridge)
            if not state.connected:
                return  # the change waits for the bridge; whether it is answered, the deadline decides
            if state.ports.get(port.name) == port.ofport:
                return
            left = until - time.monotonic()
            if left <= 0:
                break
            # A port plugged a moment ago is told of by a message that may still be under way.
            with self._lock:
                self._lock.wait(min(left, 0.25))
        number = state.ports.get(port.name)
        found = f"has number {number} there, not {port.ofport}" if number is not None else "is not there"
        raise Refused(Slug.NO_SUCH_PORT, f"port {port.name} of bridge {bridge} {found}")

    def _again(self, row: AttemptRow, spec: AttemptSpec, deadline: float) -> AttemptStatus:
        """The same PUT once more: confirm it, change nothing. Raises Refused."""
        if spec != row.spec:
            differ = sorted(name for name in AttemptSpec.model_fields if getattr(spec, name) != getattr(row.spec, name))
            raise Refused(
                Slug.CONFLICT, f"attempt {row.id} is registered with other content: {', '.join(differ)} differ"
            )
        with self._lock:
            tickets = self._repeat(row.id)
            pending = self._ask_again(row, tickets)
        failure = self._confirm(row.id, tickets, pending, deadline)
        if failure is not None:
            with self._lock:
                self._say(failure.refused_by)
            raise failure.answer
        return self._status(row, dict.fromkeys(tickets, BridgeRealisation.REALISED))

    # --- steps; the caller holds the lock ---------------------------------------------------------------------------

    def _shift(self, old: Attempt | None, new: Attempt | None) -> _Told:
        """Replace one attempt by another (or none) in the world, and tell the bridges the difference."""
        world = self._world
        if old is not None:
            del self._attempts[old.id]
            self._outcomes[old.outcome] -= 1
        if new is not None:
            self._attempts[new.id] = new
            self._outcomes[new.outcome] += 1
            if new.outcome not in self._identities:
                self._identities[new.outcome] = self._numbers[Kind.IDENTITY].take()
            if new.slice is not None and new.slice not in self._slices:
                self._slices[new.slice] = self._numbers[Kind.SLICE].take()
        memberships = self._shift_membership(old, new)
        here_before = compiler.bridges_of(world, old) if old is not None else ()
        here_after = compiler.bridges_of(world, new) if new is not None else ()
        tickets: dict[str, Ticket] = {}
        for bridge in dict.fromkeys((*here_before, *here_after)):
            gone, come = memberships.pop(bridge, ([], []))
            uses = self._uses[bridge]
            outcomes = {a.outcome for a in (old, new) if a is not None}
            had = {outcome: uses[outcome] for outcome in outcomes}
            if old is not None and bridge in here_before:
                gone += compiler.attempt_flows(world, bridge, old)
                uses[old.outcome] -= 1
            if new is not None and bridge in here_after:
                come += compiler.attempt_flows(world, bridge, new)
                uses[new.outcome] += 1
            for outcome in outcomes:
                if had[outcome] and not uses[outcome]:
                    gone += compiler.identity_flows(world, bridge, outcome)
                elif uses[outcome] and not had[outcome]:
                    come += compiler.identity_flows(world, bridge, outcome)
                if not uses[outcome]:
                    del uses[outcome]
            tickets[bridge] = self._tell(bridge, gone, come)
        peers = {bridge: self._tell(bridge, gone, come) for bridge, (gone, come) in memberships.items()}
        # Only now: the flows that go carry the numbers of what is not used any more.
        if old is not None and not self._outcomes[old.outcome]:
            del self._outcomes[old.outcome]
            del self._identities[old.outcome]
        if old is not None and old.slice is not None and old.slice not in self._members:
            del self._slices[old.slice]
        return _Told(tickets, peers)

    def _shift_membership(self, old: Attempt | None, new: Attempt | None) -> dict[str, tuple[list[Flow], list[Flow]]]:
        """What goes and comes on each bridge because a slice loses or gains a member.

        A bridge knows all members of the slices that have a job on it, and no others.
        """
        changes: dict[str, tuple[list[Flow], list[Flow]]] = {}
        for name in dict.fromkeys(a.slice for a in (old, new) if a is not None):
            if name is None:
                continue
            were = self._members.get(name, {})
            will = dict(were)
            if old is not None:
                will.pop(old.id, None)
            if new is not None and new.slice == name:
                will[new.id] = new
            held = {a.bridge for a in were.values() if not a.outcome.sealed}
            holds = {a.bridge for a in will.values() if not a.outcome.sealed}
            for bridge in sorted(held | holds):
                gone, come = changes.setdefault(bridge, ([], []))
                if bridge in held:
                    losing = were.values() if bridge not in holds else [a for a in (old,) if a is not None]
                    gone += [
                        compiler.membership_flow(self._world, a)
                        for a in losing
                        if a.slice == name and not a.outcome.sealed
                    ]
                if bridge in holds:
                    gaining = will.values() if bridge not in held else [a for a in (new,) if a is not None]
                    come += [
                        compiler.membership_flow(self._world, a)
                        for a in gaining
                        if a.slice == name and not a.outcome.sealed
                    ]
            if will:
                self._members[name] = will
            else:
                self._members.pop(name, None)
        return changes

    def _follow_up(self, peers: Mapping[str, Ticket]) -> None:
        """Bridges of slice peers: nobody waits for them (they are closed until they know), but a refusal is noticed."""
        for bridge, ticket in peers.items():
            if bridge not in self._mine:
                continue
            self._standing.setdefault(bridge, []).append(ticket)

    def _numbered(self, row: AttemptRow) -> AttemptRow:
        """The row with the numbers that the world has for its identity and slice."""
        name = row.decision.slice
        number = self._world.slice_numbers[name] if name is not None else 0
        return replace(row, identity=self._world.identities[row.decision.outcome], slice_number=number)

    def _tell(self, bridge: str, gone: Sequence[Flow], come: Sequence[Flow]) -> Ticket:
        if bridge not in self._mine:
            return Elsewhere(bridge)
        unheard = self._unheard.get(bridge)
        if unheard is not None:
            return unheard
        was = {flow.key: flow for flow in gone}
        will = {flow.key: flow for flow in come}
        add = [flow for key, flow in will.items() if was.get(key) != flow]
        remove = [key for key in was if key not in will]
        return self._switches().change(bridge, add, remove)

    def _follow_base(self, bridges: Sequence[str] | Mapping[str, object]) -> None:
        """Bring the standing flows of bridges in line with the world."""
        if self._fabric is None:
            return
        for bridge in bridges:
            if bridge in self._unheard or bridge not in self._mine:
                continue
            old = self._base[bridge]
            new = {flow.key: flow for flow in compiler.base_flows(self._world, bridge)}
            if new != old:
                self._base[bridge] = new
                self._standing.setdefault(bridge, []).append(self._tell(bridge, list(old.values()), list(new.values())))

    def _say(self, bridges: Iterable[str]) -> dict[str, Ticket]:
        """Say the whole truth of bridges anew, from the world alone."""
        world = self._world
        tickets: dict[str, Ticket] = {}
        for bridge in bridges:
            unheard = self._unheard.get(bridge)
            if bridge not in self._mine:
                tickets[bridge] = Elsewhere(bridge)
                continue
            if unheard is not None:
                tickets[bridge] = unheard
                continue
            self._base[bridge] = {flow.key: flow for flow in compiler.base_flows(world, bridge)}
            tickets[bridge] = self._switches().set_desired(bridge, compiler.desired_flows(world, bridge))
            self._standing[bridge] = [tickets[bridge]]
        return tickets

    def _insist(self) -> None:
        """Nobody waits for standing flows; what a switch refused of them is said again, as a whole."""
        for bridge, tickets in list(self._standing.items()):
            results = [(ticket, ticket.result()) for ticket in tickets]
            refused = [result for _, result in results if result is not None and result.outcome is Settled.REFUSED]
            if refused:
                LOG.error("bridge=%s refused its standing flows (%s); they are sent again", bridge, refused[0].reason)
                self._say([bridge])
            else:
                self._standing[bridge] = [ticket for ticket, result in results if result is None]

    def _say_everything(self) -> dict[str, Ticket]:
        """After the world was replaced as a whole: count afresh who uses what, and say all of it."""
        world = self._world
        self._uses = {bridge: Counter() for bridge in world.site.bridges}
        self._members = {}
        for attempt in world.attempts.values():
            for bridge in compiler.bridges_of(world, attempt):
                self._uses[bridge][attempt.outcome] += 1
            if attempt.slice is not None:
                self._members.setdefault(attempt.slice, {})[attempt.id] = attempt
        return self._say(world.site.bridges)

    def _repeat(self, id: str) -> dict[str, Ticket]:
        """Ask the bridges of an attempt to confirm what is in force already; sends nothing where it is."""
        world = self._world
        attempt = world.attempts[id]
        return {
            bridge: self._switches().change(bridge, compiler.attempt_flows(world, bridge, attempt), [])
            if bridge in self._mine
            else Elsewhere(bridge)
            for bridge in compiler.bridges_of(world, attempt)
        }

    def _keep(self, row: AttemptRow) -> AttemptRow:
        self._rows[row.id] = row
        self._on_node[row.spec.node].add(row.id)
        self._claims.update(dict.fromkeys(_claims(row.spec), row.id))
        return row

    def _leave(self, id: str) -> None:
        """Take an attempt out of the world; its claims stay until every bridge has confirmed."""
        row = self._rows.pop(id)
        self._on_node[row.spec.node].remove(id)
        told = self._shift(self._world.attempts[id], None)
        # Its peers' bridges would let its address pass: that is not given to another before they know.
        self._leaving[id] = _Leaving(row, {**told.peers, **told.concerned})

    def _count_last(self, id: str) -> None:
        """Ask what was refused to an attempt whose flows are about to go; `tick` says it in the log."""
        about = self._to_tell(self._rows[id])
        attempt = about.attempt
        try:
            if self._refusals.full:
                raise FabricError("too many answers are waited for")
            asked = self._switches().ask_flow_stats(attempt.bridge, cookie(Feature.ATTEMPT, attempt.number), FULL_MASK)
        except FabricError:
            self._refusals.uncounted(attempt.number)
        else:
            self._refusals.ended(about, asked)

    def _count_until_now(self, policy: Policy) -> None:
        """Ask what was refused so far on nodes where another policy treats refusals otherwise."""
        world = self._world
        rows: dict[str, list[AttemptRow]] = {}
        for row in self._rows.values():
            rows.setdefault(row.spec.node, []).append(row)
        for node in told_apart(world.policy, policy, rows):
            bridge = world.site.nodes[node].bridge
            try:
                asked = self._switches().ask_flow_stats(bridge, cookie(Feature.ATTEMPT, 0), FEATURE_MASK)
            except FabricError as problem:
                LOG.warning("node=%s: what was refused until now is not told: %s", node, problem)
            else:
                present = [self._to_tell(row) for row in rows[node]]
                self._refusals.mode_changes(node, words(policy, node), present, asked)

    def _to_tell(self, row: AttemptRow) -> Ended:
        policy = self._world.policy
        protected = tuple(service.name for service in policy.services.values() if service.protected)
        return Ended(self._world.attempts[row.id], row.spec.job, protected, words(policy, row.spec.node))

    def _switches(self) -> Fabric:
        if self._fabric is None:
            raise Refused(Slug.STARTING, "the controller is starting; try again")
        return self._fabric

    # --- waiting; the caller does not hold the lock -----------------------------------------------------------------

    def _confirm(
        self, id: str, tickets: Mapping[str, Ticket], pending: Pending | None, deadline: float
    ) -> _Failure | None:
        """Wait for bridges and store. None: all confirmed."""
        failed: dict[str, str] = {}
        refused_by = []
        problem = []
        overtaken = False
        if pending is not None and self._name is not None:
            # The other masters hear of it from the store: without the row there is nothing to wait for.
            try:
                pending.wait(deadline)
            except StoreError as error:
                problem = [str(error)]
                overtaken = isinstance(error, StoreConflict)
                tickets = {bridge: ticket for bridge, ticket in tickets.items() if not isinstance(ticket, Elsewhere)}
            pending = None
        for bridge, ticket in tickets.items():
            result = ticket.wait(deadline)
            if not result.realised:
                failed[bridge] = f"{result.outcome.value}{f' ({result.reason})' if result.reason else ''}"
                if result.outcome is Settled.REFUSED:
                    refused_by.append(bridge)
        with self._lock:
            self._awaited.pop(id, None)
        if pending is not None:
            try:
                pending.wait(deadline)
            except StoreError as error:
                problem = [str(error)]
        if not failed and not problem:
            return None
        detail = "; ".join([f"bridge {bridge}: {why}" for bridge, why in failed.items()] + problem)
        LOG.error("attempt=%s not realised: %s", id, detail)
        return _Failure(
            Refused(Slug.NOT_REALISED, f"{detail}; try again", {"bridges": sorted(failed)}), refused_by, overtaken
        )

    def _settle(self, ids: Sequence[str], deadline: float) -> None:
        """Finish leaving attempts as far as their bridges have confirmed, with one durable write for all of them.

        Unreachable bridges are not waited for. The caller has the turn of each attempt.
        """
        if self._name is not None:
            self._settle_together(ids, deadline)
            return
        with self._lock:
            found = {id: self._leaving[id] for id in ids if id in self._leaving}
        news: dict[str, tuple[str, ...]] = {}
        for id, leaving in found.items():
            for bridge, ticket in list(leaving.tickets.items()):
                result = ticket.wait(deadline) if self._state(bridge).connected else ticket.result()
                if result is not None and result.outcome is Settled.REFUSED:
                    LOG.error(
                        "attempt=%s bridge=%s refused to let it go (%s); saying all anew", id, bridge, result.reason
                    )
                    with self._lock:
                        leaving.tickets.update(self._say([bridge]))
            waits = tuple(sorted(bridge for bridge, ticket in leaving.tickets.items() if not _gone(ticket)))
            if waits != leaving.stored:
                news[id] = waits
        if not news:
            return
        changes: list[Change] = [
            PutAttempt(replace(found[id].row, leaving=waits)) if waits else DropAttempt(id)
            for id, waits in news.items()
        ]
        try:
            self._store.write(changes).wait(max(deadline, self._clock() + STORE_PATIENCE))
        except StoreError as problem:
            LOG.error("attempt=%s has ended, but its row is still stored: %s", ",".join(news), problem)
            return
        for id, waits in news.items():
            found[id].stored = waits
            if waits:
                LOG.warning(
                    "attempt=%s has ended; its address is in quarantine until confirmed by %s", id, ", ".join(waits)
                )
                continue
            with self._lock:
                del self._leaving[id]
                for claim in _claims(found[id].row.spec):
                    if self._claims.get(claim) == id:
                        del self._claims[claim]

    def _end_quietly(self, ids: Iterable[str]) -> None:
        """End attempts without waiting; `tick` finishes them. One that a request is about is left to the next tick."""
        with contextlib.ExitStack() as turns:
            mine = [id for id in ids if turns.enter_context(self._turn(id, wait=False))]
            ended = []
            for id in mine:
                with self._lock:
                    if id not in self._rows:
                        continue
                    row = self._rows[id]
                    self._count_last(id)
                    self._leave(id)
                ended.append(id)
                LOG.warning("attempt=%s job=%s node=%s torn down without its agent", id, row.spec.job, row.spec.node)
            self._settle(ended, self._clock())

    @contextlib.contextmanager
    def _turn(self, id: str, *, wait: bool = True) -> Iterator[bool]:
        """One request at a time for an attempt id. Yields False if it is another's turn and `wait` is False."""
        with self._lock:
            turn = self._turns.setdefault(id, _Turn())
            turn.waiting += 1
        mine = False
        try:
            mine = (
                turn.lock.acquire(timeout=self._deadline + STORE_PATIENCE)
                if wait
                else turn.lock.acquire(blocking=False)
            )
            if wait and not mine:
                raise Refused(
                    Slug.NOT_REALISED, f"another request for attempt {id} is under way; try again", {"bridges": []}
                )
            yield mine
        finally:
            if mine:
                turn.lock.release()
            with self._lock:
                turn.waiting -= 1
                if not turn.waiting:
                    self._turns.pop(id, None)

    # --- several controllers: writing -------------------------------------------------------------------------------

    def _put(self, row: AttemptRow, tickets: Mapping[str, Ticket]) -> Pending:
        """Begin to write a row, and ask the masters of other bridges to confirm it. The caller has the lock."""
        if self._name is None:
            return self._write([PutAttempt(row)])
        elsewhere = {bridge: ticket for bridge, ticket in tickets.items() if isinstance(ticket, Elsewhere)}
        if elsewhere:
            self._awaited[row.id] = elsewhere
        return self._put_stored(replace(row, leaving=(), awaits=tuple(sorted(elsewhere))))

    def _ask_again(self, row: AttemptRow, tickets: Mapping[str, Ticket]) -> Pending | None:
        """Ask the masters of other bridges to confirm once more what is in force. The caller has the lock."""
        if self._name is None or not any(isinstance(ticket, Elsewhere) for ticket in tickets.values()):
            return None
        return self._put(self._stored.get(row.id, row), tickets)

    def _put_all(self) -> Pending:
        """Every row, after another policy came into force. The caller has the lock."""
        if self._name is None:
            return self._write([PutAttempt(row) for row in self._rows.values()])
        return _AllOf([self._put_stored(replace(row, awaits=())) for row in self._rows.values()])

    def _put_stored(self, row: AttemptRow) -> Pending:
        before = self._stored.get(row.id)
        self._stored[row.id] = row
        return _Conditional(self, row.id, before, row, self._write([PutAttempt(row, before)]))

    def _drop_stored(self, id: str) -> Pending:
        before = self._stored.pop(id)
        return _Conditional(self, id, before, None, self._write([DropAttempt(id, before)]))

    def undone(self, id: str, before: AttemptRow | None, after: AttemptRow | None, error: StoreError) -> None:
        """A write of a row did not take place, or is not known to have: what does the store hold?"""
        if not isinstance(error, StoreConflict):
            with self._lock:
                if self._stored.get(id) is after:
                    if before is None:
                        self._stored.pop(id, None)
                    else:
                        self._stored[id] = before
            return
        # In their order: what is heard twice, or late, would undo what came after it.
        with contextlib.suppress(StoreError):
            self.catch_up()
        with self._lock:
            if self._stored.get(id) is not after:
                return
        # Nobody else has written it: it was a write of our own whose answer was lost.
        found = {row.id: row for row in self._store.load().attempts}.get(id)
        with self._lock:
            if found is None:
                self._hear_gone(id)
            else:
                self._hear_attempt(found)

    def _write_at_start(self, changes: Sequence[Change]) -> None:
        deadline = self._clock() + self._deadline
        if self._name is None:
            if changes:
                self._store.write(changes).wait(deadline)
            return
        begun: list[tuple[AttemptRow, Pending]] = []
        others: list[Change] = []
        for change in changes:
            if isinstance(change, PutAttempt):
                before = self._stored.get(change.row.id)
                if change.row != before:
                    begun.append((change.row, self._store.write([PutAttempt(change.row, before)])))
            else:
                others.append(change)
        if others:
            self._store.write(others).wait(deadline)
        for row, pending in begun:
            # If another controller was quicker, the feed says what it wrote.
            with contextlib.suppress(StoreConflict):
                pending.wait(deadline)
                self._stored[row.id] = row

    def _settle_together(self, ids: Sequence[str], deadline: float) -> None:
        """`_settle` among several: each master takes its bridges from the stored row, the last one removes it."""
        with self._lock:
            found = {id: self._leaving[id] for id in ids if id in self._leaving}
            new = [id for id, one in found.items() if one.stored is None and _some_elsewhere(one)]
        self._write_leaving(new)
        for elsewhere in (False, True):
            for id, leaving in found.items():
                for bridge, ticket in list(leaving.tickets.items()):
                    if isinstance(ticket, Elsewhere) is not elsewhere:
                        continue
                    result = ticket.wait(deadline) if self._state(bridge).connected else ticket.result()
                    if result is not None and result.outcome is Settled.REFUSED and not elsewhere:
                        LOG.error(
                            "attempt=%s bridge=%s refused to let it go (%s); saying all anew", id, bridge, result.reason
                        )
                        with self._lock:
                            leaving.tickets.update(self._say([bridge]))
            self._write_leaving(list(found))

    def _write_leaving(self, ids: Sequence[str]) -> None:
        """Bring the stored rows of leaving attempts in line with what has been confirmed; free what is gone."""
        for _ in range(4):
            begun: list[tuple[str, tuple[str, ...], Pending]] = []
            with self._lock:
                for id in ids:
                    leaving = self._leaving.get(id)
                    if leaving is None:
                        continue
                    waits = tuple(sorted(b for b, ticket in leaving.tickets.items() if not _gone(ticket)))
                    stored = self._stored.get(id)
                    if stored is None:
                        leaving.unstored = True
                    if leaving.unstored:
                        if not waits:
                            self._free(id)
                    elif stored is not None and waits != leaving.stored:
                        if waits:
                            pending = self._put_stored(replace(stored, leaving=waits, awaits=()))
                        else:
                            pending = self._drop_stored(id)
                        begun.append((id, waits, pending))
            again = []
            deadline = self._clock() + STORE_PATIENCE
            for id, waits, pending in begun:
                try:
                    pending.wait(deadline)
                except StoreConflict:
                    again.append(id)
                except StoreError as problem:
                    LOG.error("attempt=%s has ended, but its row is still stored: %s", id, problem)
                else:
                    with self._lock:
                        leaving = self._leaving.get(id)
                        if leaving is not None:
                            leaving.stored = waits
                            if not waits:
                                self._free(id)
            if not again:
                return
            ids = again

    def _free(self, id: str) -> None:
        """Nothing has flows of it any more: what it held may be given to another. The caller has the lock."""
        for claim in _claims(self._leaving.pop(id).row.spec):
            if self._claims.get(claim) == id:
                del self._claims[claim]
        self._to_confirm.pop(id, None)

    def _serve_node(self, name: str) -> None:
        """An agent talks to this controller now: say so to the one that would end its lease otherwise."""
        node = self._nodes.get(name)
        if self._name is None or node is None or node.controller == self._name:
            return
        mine = replace(node, controller=self._name)
        try:
            self._store.write([PutNode(mine, node)]).wait(self._clock() + STORE_PATIENCE)
        except StoreError as problem:
            # It beats again; until then the other one does not end the lease before it is over.
            LOG.warning("node=%s: not noted that its agent talks to this controller: %s", name, problem)
            return
        with self._lock:
            self._nodes[name] = mine
            self._theirs.pop(name, None)
            self._leases[name] = self._clock() + self._lease
        LOG.info("node=%s: its agent talks to this controller now, not to %s", name, node.controller or "none")

    # --- several controllers: hearing; the caller of `_hear…` has the lock --------------------------------------------

    def hear(self, row: AttemptRow | NodeRow | NumberRow) -> None:
        """Another controller has written this row."""
        with self._lock:
            match row:
                case AttemptRow():
                    self._hear_attempt(row)
                case NodeRow():
                    self._hear_node(row)
                case NumberRow():
                    self._hear_number(row)
            self._lock.notify_all()

    def hear_gone(self, id: str) -> None:
        """Another controller has removed the row of an attempt."""
        with self._lock:
            self._hear_gone(id)
            self._lock.notify_all()

    def peer_gone(self, name: str) -> None:
        """A controller has ended or was given up: whose agents talked to it have a full lease to find another one."""
        with self._lock:
            orphaned = [node for node, controller in self._theirs.items() if controller == name]
            for node in orphaned:
                del self._theirs[node]
                self._leases[node] = self._clock() + self._lease

    def mastered(self, bridge: str, generation: int) -> None:
        """This controller is the bridge's master from now on: it says the whole truth, and answers for the bridge."""
        with self._lock:
            self._mine.add(bridge)
            self._switches().set_role(bridge, master=True, generation=generation)
            ticket = self._say([bridge])[bridge]
            for id, leaving in self._leaving.items():
                if bridge in leaving.tickets and not _gone(leaving.tickets[bridge]):
                    leaving.tickets[bridge] = ticket
                    self._to_confirm[id] = self._clock() + self._deadline
            for id, row in self._stored.items():
                if asked(row).get(bridge) == "" and id in self._rows:
                    self._owed[id, bridge] = ticket
        LOG.info("bridge=%s: this controller is its master now (generation %d)", bridge, generation)

    def unmastered(self, bridge: str, generation: int, master: str) -> None:
        """The bridge is another controller's, or nobody's."""
        with self._lock:
            was = bridge in self._mine
            self._mine.discard(bridge)
            self._switches().set_role(bridge, master=False, generation=generation)
            self._standing.pop(bridge, None)
            for leaving in self._leaving.values():
                if bridge in leaving.tickets and not _gone(leaving.tickets[bridge]) and was:
                    leaving.tickets[bridge] = Elsewhere(bridge)
            self._owed = {key: ticket for key, ticket in self._owed.items() if key[1] != bridge}
        LOG.info("bridge=%s: its master is %s (generation %d)", bridge, master or "nobody", generation)

    @property
    def owing(self) -> bool:
        """Do other controllers wait for what bridges of this one confirm?"""
        return bool(self._owed or self._to_confirm)

    def pay(self) -> None:
        """Write what bridges of this controller have confirmed to others. Never waits for a switch."""
        with self._lock:
            settled = {key: result for key, ticket in self._owed.items() if (result := ticket.result()) is not None}
            begun: list[tuple[AttemptRow, Pending]] = []
            for id in dict.fromkeys(id for id, _ in settled):
                row = self._stored.get(id)
                results = {bridge: self._owed.pop((id, bridge)) for one, bridge in settled if one == id}
                if row is None or row.leaving:
                    continue
                said: dict[str, str | None] = {}
                for bridge in results:
                    result = settled[id, bridge]
                    said[bridge] = None if result.realised else result.reason or result.outcome.value
                    if result.outcome is Settled.REFUSED:
                        self._owed_refused.setdefault(id, set()).add(bridge)
                new = without(row, said)
                if new != row:
                    begun.append((new, self._put_stored(new)))
            now = self._clock()
            self._to_confirm = {id: until for id, until in self._to_confirm.items() if until > now}
            ended = [
                id
                for id in self._to_confirm
                if id in self._leaving
                and self._leaving[id].stored
                != tuple(sorted(b for b, ticket in self._leaving[id].tickets.items() if not _gone(ticket)))
            ]
        for new, pending in begun:
            # What did not take place was read again, and is owed again.
            with contextlib.suppress(StoreError):
                pending.wait(self._clock() + STORE_PATIENCE)
                with self._lock:
                    self._settle_awaited(new)
        with contextlib.ExitStack() as turns:
            self._write_leaving([id for id in ended if turns.enter_context(self._turn(id, wait=False))])
        with self._lock:
            for id in ended:
                leaving = self._leaving.get(id)
                if leaving is None or not any(bridge in self._mine for bridge in leaving.stored or ()):
                    self._to_confirm.pop(id, None)

    def _settle_awaited(self, row: AttemptRow) -> None:
        waiting = asked(row)
        for bridge, ticket in self._awaited.get(row.id, {}).items():
            if row.leaving:
                ticket.settle(TicketResult(Settled.REFUSED, "the attempt has ended meanwhile"))
            elif bridge not in waiting:
                ticket.settle(REALISED)
            elif waiting[bridge]:
                ticket.settle(TicketResult(Settled.REFUSED, waiting[bridge]))

    def _hear_attempt(self, row: AttemptRow) -> None:
        id = row.id
        self._stored[id] = row
        self._settle_awaited(row)
        if row.leaving:
            self._hear_leaving(row)
            return
        leaving = self._leaving.get(id)
        if leaving is not None:
            if not leaving.unstored:
                return  # it is ending here: the next write says so to the others
            del self._leaving[id]
        try:
            self._check(id, row.spec, self._nodes)
        except Refused as refused:
            LOG.error("attempt=%s, which another controller registered, does not fit: %s", id, refused.detail)
            return
        policy = self._world.policy
        if row.digest == policy.digest:
            self._take_numbers(row)
        else:
            LOG.warning("attempt=%s was decided by another controller with another policy: decided anew here", id)
            row = self._decide_anew(row, policy)
        for claim in _claims(row.spec):
            holder = self._rows.get(self._claims.get(claim, id))
            if holder is not None and holder.id != id:
                loser = max(holder, row, key=lambda one: one.number).id
                LOG.error("attempt=%s and attempt=%s have the same %s: %s ends", id, holder.id, claim[1], loser)
                self._collided.add(loser)
        old, new = self._world.attempts.get(id), _attempt(row)
        tickets: Mapping[str, Ticket] = {}
        if old != new:
            told = self._shift(old, new)
            self._follow_up(told.peers)
            tickets = told.concerned
        self._keep(self._numbered(replace(row, awaits=())))
        for bridge, reason in asked(row).items():
            if bridge in self._mine and not reason:
                ticket = tickets.get(bridge)
                self._owed[id, bridge] = self._confirmation(id, bridge) if ticket is None else ticket

    def _confirmation(self, id: str, bridge: str) -> Ticket:
        return self._tell(bridge, [], compiler.attempt_flows(self._world, bridge, self._world.attempts[id]))

    def _take_numbers(self, row: AttemptRow) -> None:
        """Equal outcomes and slices have equal numbers. If two controllers gave one each at the same moment, the lower
        counts: bridges that have the other one are told."""
        lower = False
        outcome, name = row.decision.outcome, row.decision.slice
        if row.identity < self._identities.get(outcome, row.identity + 1):
            lower = outcome in self._identities
            self._identities[outcome] = row.identity
        if name is not None and row.slice_number < self._slices.get(name, row.slice_number + 1):
            lower = lower or name in self._slices
            self._slices[name] = row.slice_number
        if lower:
            self._rows = {id: self._numbered(one) for id, one in self._rows.items()}
            self._say(self._mine)

    def _hear_leaving(self, row: AttemptRow) -> None:
        id = row.id
        if id in self._rows:
            self._leave(id)
        leaving = self._leaving.get(id)
        if leaving is None:
            leaving = self._leaving[id] = _Leaving(row, {})
            for claim in _claims(row.spec):
                self._claims.setdefault(claim, id)
        leaving.row, leaving.stored, leaving.unstored = row, row.leaving, False
        for bridge, ticket in leaving.tickets.items():
            if isinstance(ticket, Elsewhere) and bridge not in row.leaving:
                ticket.settle(REALISED)
        for bridge in row.leaving:
            if bridge in self._world.site.bridges:
                leaving.tickets.setdefault(bridge, self._tell(bridge, [], []))
        self._say_again(id)
        if any(bridge in self._mine for bridge in leaving.tickets):
            self._to_confirm[id] = self._clock() + self._deadline

    def _say_again(self, id: str) -> None:
        """What a bridge refused was forgotten as a whole, and others may rely on a part of it."""
        self._owed = {key: ticket for key, ticket in self._owed.items() if key[0] != id}
        self._say(bridge for bridge in self._owed_refused.pop(id, ()) if bridge in self._mine)

    def _hear_gone(self, id: str) -> None:
        self._stored.pop(id, None)
        for awaited in self._awaited.get(id, {}).values():
            awaited.settle(TicketResult(Settled.REFUSED, "the attempt has ended meanwhile"))
        if id in self._rows:
            self._leave(id)
        self._say_again(id)
        leaving = self._leaving.get(id)
        if leaving is None:
            return
        leaving.unstored = True
        for ticket in leaving.tickets.values():
            if isinstance(ticket, Elsewhere):
                ticket.settle(REALISED)
        if all(_gone(ticket) for ticket in leaving.tickets.values()):
            self._free(id)

    def _hear_node(self, row: NodeRow) -> None:
        if row.name not in self._world.site.nodes:
            return
        self._nodes[row.name] = row
        if row.controller not in ("", self._name):
            self._theirs[row.name] = row.controller
            self._leases.pop(row.name, None)
        addresses = self._believed(row)
        if self._world.host_addresses.get(row.name, ()) != addresses:
            self._world = replace(self._world, host_addresses={**self._world.host_addresses, row.name: addresses})
            self._follow_base(self._world.site.bridges)

    def _hear_number(self, row: NumberRow) -> None:
        world = self._world
        if row.kind is Kind.SERVICE and world.service_numbers.get(row.name, row.number) != row.number:
            self._world = replace(world, service_numbers={**world.service_numbers, row.name: row.number})
        elif row.kind is Kind.NODE and world.node_numbers.get(row.name, row.number) != row.number:
            self._world = replace(world, node_numbers={**world.node_numbers, row.name: row.number})
        else:
            return
        self._say(self._mine)

    # --- small helpers ----------------------------------------------------------------------------------------------

    def _top_up(self) -> None:
        try:
            for kind in _GIVEN_ON_THE_WAY:
                self._numbers[kind].top_up()
        except StoreError as problem:
            raise Refused(Slug.NOT_REALISED, f"{problem}; try again", {"bridges": []}) from problem

    def _number(
        self,
        kind: Kind,
        names: Mapping[str, object],
        known: Mapping[tuple[Kind, str], int],
        changes: list[Change],
    ) -> dict[str, int]:
        """Durable numbers for all names; new ones are added to `changes`."""
        found = {}
        for name in names:
            number = known.get((kind, name))
            if number is None:
                number = self._numbers[kind].take()
                changes.append(PutNumber(kind, name, number))
            found[name] = number
        return found

    def _decide_anew(self, row: AttemptRow, policy: Policy) -> AttemptRow:
        """The row under another policy. A job that this policy would hold is sealed: it runs already, so cut it off."""
        try:
            decision = _decide(policy, row.spec, row.spec.phase)
        except Refused as held:
            LOG.error(
                "attempt=%s job=%s would be held by the policy in force: sealed. %s", row.id, row.spec.job, held.detail
            )
            place = policy.mode_place
            text = f"sealed, because this policy would hold the job: {held.detail}"
            decision = Decision(Outcome(sealed=True, services=frozenset()), (), ((place, text),))
        return replace(row, decision=decision, digest=policy.digest)

    def _write(self, changes: Sequence[Change]) -> Pending:
        """Begin a write; a store that is closed shows when it is waited for."""
        try:
            return self._store.write(changes)
        except StoreError as problem:
            return _FailedWrite(str(problem))

    def _state(self, bridge: str) -> BridgeState:
        return self._switches().bridge(bridge)

    def _bridges_of(self, row: AttemptRow) -> tuple[str, ...]:
        return compiler.bridges_of(self._world, _attempt(row))

    def _seen(self, row: AttemptRow, states: Mapping[str, BridgeState] | None = None) -> dict[str, BridgeRealisation]:
        if states is None:
            states = {state.bridge: state for state in self._switches().bridges()}
        waiting = set() if self._name is None else set(asked(self._stored.get(row.id, row)))
        return {
            bridge: BridgeRealisation.REALISED
            if (states[bridge].converged if bridge in self._mine else bridge not in waiting)
            else BridgeRealisation.PENDING
            for bridge in self._bridges_of(row)
        }

    def _counters(self, attempt: Attempt) -> Counters | None:
        try:
            stats = self._switches().flow_stats(attempt.bridge, cookie(Feature.ATTEMPT, attempt.number), FULL_MASK)
        except FabricError as problem:
            LOG.warning("attempt=%s bridge=%s: no counters: %s", attempt.id, attempt.bridge, problem)
            return None
        services = self._world.policy.services.values()
        return compiler.read_counters(attempt, stats, [service.name for service in services if service.protected])

    def _status(
        self, row: AttemptRow, bridges: Mapping[str, BridgeRealisation], counters: Counters | None = None
    ) -> AttemptStatus:
        return AttemptStatus(
            id=row.id,
            spec=row.spec,
            decision=decision_view(self._world.policy, row.spec.node, row.identity, row.decision),
            bridges=dict(bridges),
            counters=counters,
        )


def _decide(policy: Policy, spec: AttemptSpec, phase: Phase) -> Decision:
    try:
        return deciding.decide(policy, spec.node, spec.ad, spec.slot, phase)
    except deciding.Held as held:
        where = f"{held.place}: " if held.place is not None else ""
        raise Refused(
            Slug.HELD, f"{where}{held.reason}", {"subcode": held.subcode, "reason": f"{where}{held.reason}"}
        ) from held


def _attempt(row: AttemptRow) -> Attempt:
    spec = row.spec
    return Attempt(
        id=row.id,
        number=row.number,
        node=spec.node,
        bridge=spec.port.bridge,
        port_name=spec.port.name,
        ofport=spec.port.ofport,
        mac=_mac(spec.mac),
        ipv4=ipaddress.IPv4Address(spec.ipv4),
        ipv6=ipaddress.IPv6Address(spec.ipv6) if spec.ipv6 is not None else None,
        zone=spec.zone,
        phase=spec.phase,
        outcome=row.decision.outcome,
        slice=row.decision.slice,
    )


def _claims(spec: AttemptSpec) -> tuple[Claim, ...]:
    bridge = f"bridge {spec.port.bridge}"
    # MAC, IPv6 address and zone follow from the IPv4 address, which is checked.
    return (
        ("the job network", "address", spec.ipv4),
        (bridge, "port", spec.port.name),
        (bridge, "port number", spec.port.ofport),
        (f"node {spec.node}", "zone", spec.zone),
    )


def _host_addresses(spec: NodeSpec) -> tuple[Address, ...]:
    return tuple(
        sorted({ipaddress.ip_address(text) for text in spec.host_addresses}, key=lambda a: (a.version, int(a)))
    )


def _nobodys_host(world: World, address: Address) -> str:
    """Why no host of a node can have this address; empty if it can. Jobs are cut off from a host's addresses, so a
    false one would cut them off from what they need."""
    site = world.site
    if address.is_unspecified or address.is_loopback or address.is_multicast or str(address) == "255.255.255.255":
        return "no address that others can reach"
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return "an IPv4 address written as IPv6"
    if address in (site.network.gateway_ipv4, site.network.gateway_ipv6):
        return "the gateway of the job network"
    for service in world.policy.services.values():
        if service.protected and address in service.hosts:
            return f"a host of the protected service {service.name}"
    for node in site.nodes.values():
        if _of_jobs(node, address):
            return f"in the range of the jobs of node {node.name}"
    return ""


def _of_jobs(node: Node, address: Address) -> bool:
    if isinstance(address, ipaddress.IPv4Address):
        return address in node.ipv4
    if node.ipv6 is None or address not in node.ipv6:
        return False
    # A job's address is the prefix and, in the last 32 bits, its IPv4 address; the rest of the prefix is free.
    low = int(address) & 0xFFFF_FFFF
    return ipaddress.IPv4Address(low) in node.ipv4 and int(address) == int(node.ipv6.network_address) | low


@dataclass(frozen=True, slots=True)
class _Conditional:
    """A write of one row among several controllers. If it fails, the controller looks at what the store holds."""

    controller: Controller
    id: str
    before: AttemptRow | None
    after: AttemptRow | None
    pending: Pending

    def wait(self, deadline: float) -> None:
        try:
            self.pending.wait(deadline)
        except StoreError as error:
            self.controller.undone(self.id, self.before, self.after, error)
            raise


@dataclass(frozen=True, slots=True)
class _AllOf:
    """Writes of many rows; one that another controller was quicker with is that one's affair."""

    writes: Sequence[Pending]

    def wait(self, deadline: float) -> None:
        for pending in self.writes:
            with contextlib.suppress(StoreConflict):
                pending.wait(deadline)


def _some_elsewhere(leaving: _Leaving) -> bool:
    return any(isinstance(ticket, Elsewhere) and not _gone(ticket) for ticket in leaving.tickets.values())


def _nothing_to_catch_up() -> None:
    """Where there is one controller, nobody else writes."""


def _gone(ticket: Ticket) -> bool:
    result = ticket.result()
    return result is not None and result.realised


def _no_such_attempt(id: str) -> Refused:
    return Refused(Slug.NO_SUCH_ATTEMPT, f"there is no attempt {id}")


def _mac(text: str) -> int:
    return int(text.replace(":", ""), 16)


def _mac_text(value: int) -> str:
    return ":".join(f"{octet:02x}" for octet in value.to_bytes(6, "big"))


def _text(value: object | None) -> str | None:
    return None if value is None else str(value)


def _words(answer: Mapping[str, BridgeRealisation]) -> str:
    return ", ".join(f"{bridge} {state.value}" for bridge, state in answer.items())
