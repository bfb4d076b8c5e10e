"""The controller's door: all that API, peers and switches call. The rooms behind it are in `ryu_apps.life`.

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

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from policies.events import Kind
from policies.model import Policy, Site, World
from policies.wire import (
    AttemptSpec,
    AttemptStatus,
    BridgeStatus,
    Deleted,
    Heartbeat,
    HeartbeatAnswer,
    NodeGrant,
    NodeSpec,
    NodeStatus,
    Phase,
    PolicyStatus,
    QueueReport,
    QueueStatus,
    QueueWish,
    SiteStats,
    WhyAnswer,
)
from ryu_apps.admission import Admission
from ryu_apps.asked_why import asked_why
from ryu_apps.border_news import BorderNews
from ryu_apps.borders import Borders, queue_wish
from ryu_apps.events import Events
from ryu_apps.fabric import Fabric
from ryu_apps.life.agreeing import Agreeing
from ryu_apps.life.carried import Carried
from ryu_apps.life.counting import Counting
from ryu_apps.life.departures import Departures
from ryu_apps.life.emptying import Emptying
from ryu_apps.life.hearing import Hearing
from ryu_apps.life.nodes import Nodes
from ryu_apps.life.numbers import Numbers
from ryu_apps.life.present import Present
from ryu_apps.life.reading_back import read_back
from ryu_apps.life.records import Records
from ryu_apps.life.refused import LastCounts
from ryu_apps.life.reloading import reload
from ryu_apps.life.requests import Confirmation, Requests
from ryu_apps.life.statuses import Statuses
from ryu_apps.life.telling import Telling
from ryu_apps.life.times import Times
from ryu_apps.life.turns import Turns
from ryu_apps.metrics import Metrics
from ryu_apps.on_disk import OnDisk
from ryu_apps.refusal_log import RefusalLog
from ryu_apps.refusals import Refused
from ryu_apps.store.store import AttemptRow, NodeRow, NumberRow, Snapshot, Store
from ryu_apps.views import policy_status

LOG = logging.getLogger("lark.controller")


def nobody_waits(done: bool) -> None:
    """Of a registration that did not come by `admission.place`."""


class Controller:
    """`start()` once, then any thread may call. `deadline`: seconds to confirm in; `name`: among several;
    `count_every`: seconds in which every bridge is asked for its counters; `state_dir`: where sums of them outlive it.
    """

    def __init__(
        self,
        site: Site,
        policy: Policy,
        store: Store,
        *,
        deadline: float = 10.0,
        lease: int = 60,
        name: str | None = None,
        count_every: float = 15.0,
        state_dir: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        events: Events | None = None,
    ) -> None:
        self.store = store
        self.events = Events(name or "", clock, wall_clock) if events is None else events
        self._store_trouble: str | None = None
        self._border_news = BorderNews(self.events)
        self.metrics = Metrics()
        self.on_disk = OnDisk()
        self._started = threading.Event()
        self.times = Times(deadline, lease, clock, wall_clock)
        self.admission = Admission(clock, deadline)
        self._present = present = Present(site, policy, Numbers(store))
        self._telling = telling = Telling(present, site.bridges if name is None else (), self.events)
        self._records = records = Records(store, present, self.times, name)
        turns = Turns(self.times)
        self.counting = Counting(present, telling, clock, count_every)
        self._refusals = RefusalLog(clock, self.counting.last_seen)
        self._counts = LastCounts(present, telling, self._refusals, self.counting)
        self._departures = Departures(present, telling, records, self._counts, turns, self.times)
        self._borders = Borders(clock, shared=name is not None)
        self._carried = Carried(state_dir and state_dir / "counters.json", self.counting, self._borders, clock)
        self._statuses = Statuses(present, telling, records, self._borders, self.counting)
        self._confirmation = Confirmation(present, records)
        self.node_leases = Nodes(present, telling, records, self._departures, self.times)
        self._emptying = Emptying(present, telling, records, self.times)
        self._requests = Requests(
            present, telling, records, self._departures, self.node_leases, self._counts, self._statuses,
            self._confirmation, turns, self.times, self.counting, self.admission, self._emptying,
        )  # fmt: skip
        self._hearing = Hearing(
            present, telling, records, self._departures, self.node_leases, self._counts, self.counting,
            turns, self.times, Agreeing(present, records, self.times), self._emptying,
        )  # fmt: skip
        records.read_again = self._hearing.read_again

    def start(self, fabric: Fabric, snapshot: Snapshot | None = None) -> None:
        """Read everything back and be ready for the switches. Until then nothing is said to those that have come.

        Among several controllers `snapshot` is where the feed of changes begins. Raises StoreError when the store
        cannot be read.
        """
        if snapshot is None:
            snapshot = self.store.load()
        leaving = read_back(snapshot, self._present, self._records)
        self.node_leases.begin({row.name for row in snapshot.controllers} - {self._records.name})
        with self._present.lock:
            tickets = self._telling.begin(fabric)
            self._emptying.resume(tickets)
            for row in leaving:
                waits = {bridge: tickets[bridge] for bridge in row.leaving if bridge in tickets}
                self._departures.add(row, waits)
        self._started.set()
        # Nobody counts before this returns, and the switches need not wait for it.
        self._carried.load(self._present.world.attempts.values())

    @property
    def world(self) -> World:
        """The present world, a value: a copy, so not for what happens with every attempt."""
        return self._present.copy()

    def fabric_ports(self, bridge: str, ports: Mapping[str, int]) -> None:
        """The fabric's `on_ports`: standing flows follow the numbers of a bridge's declared ports.

        Waits until everything has been read back: what a switch shows is compared only when it is known what it should.
        """
        self._started.wait()
        with self._present.lock:
            for id in self._present.on_declared(bridge, ports):
                LOG.error("attempt=%s has the number of a declared port of bridge %s: torn down", id, bridge)
                self._counts.of_attempt(id)
                self._departures.leave(id)
            self._telling.ports(bridge, ports)
            self._present.lock.notify_all()

    def tick(self, turned_away: float | None = None) -> None:
        """Call about once a second: ends leases that ran out, and finishes what is leaving.

        `turned_away`: when, by the clock, a client was last refused for want of a place. Heartbeats may have been among
        them: no lease ends within one lease of that.
        """
        now = self.times.clock()
        with self._present.lock:
            over, orphans = self.node_leases.look(now, turned_away)
            leaving = list(self._departures.known)
            orphans += sorted(self._hearing.collided)
            self._hearing.collided.clear()
            self._telling.insist()
            self._emptying.tick()
        for name in over:
            self.events.tell(Kind.LEASE_ENDED, "its lease is over; its attempts are torn down", node=name)
        self._departures.end_quietly(orphans)
        self._departures.finish(leaving, now)
        self._refusals.report()
        self.counting.tick()
        self._carried.tick()
        self._look_at_store()
        self.events.tick()

    def _look_at_store(self) -> None:
        trouble, before = self.store.trouble, self._store_trouble
        self._store_trouble = trouble
        if trouble is not None and before is None:
            self.events.tell(Kind.STORE_LOST, f"the store cannot be used: {trouble}")
        elif trouble is None and before is not None:
            self.events.tell(Kind.STORE_BACK, "the store answers again")

    def stop(self) -> None:
        """Before the process ends; the switches stay as they are."""
        self.events.close()
        self._carried.save()

    def with_jobs(self) -> set[str]:
        """Bridges that hold flows of jobs."""
        with self._present.lock:
            return self._telling.with_jobs()

    def problems(self) -> list[str]:
        """Why the controller is not ready to serve; empty when it is."""
        return [] if self._telling.begun else ["the stored state has not been read back yet"]

    # --- attempts -----------------------------------------------------------------------------------------------------

    def register(
        self, id: str, spec: AttemptSpec, stored: Callable[[bool], None] = nobody_waits
    ) -> tuple[AttemptStatus, bool]:
        """Bring an attempt's policy into force. Returns its status and whether it is new. Raises Refused.

        `stored` is called once it waits for nothing but its bridges (True), or for its own agent (False).
        """
        try:
            with self.metrics.registration() as new:
                status, is_new = self._requests.begin(id, spec, stored)
                new.append(is_new)
        except Refused as refused:
            why = refused.slug.value
            # By node and reason: what is refused again and again is told with its count.
            text = f"registration refused ({why}): {refused.detail}"
            self.events.tell(
                Kind.REGISTRATION_REFUSED, text, node=spec.node, attempt=id, job=spec.job or "", subject=why
            )
            raise
        return status, is_new

    def advance(self, id: str, phase: Phase) -> AttemptStatus:
        """Bring the policy of a later phase into force; the same phase again confirms it. Raises Refused."""
        return self._requests.advance(id, phase)

    def delete(self, id: str) -> Deleted:
        """End an attempt; returns when every reachable bridge that its start waited for has confirmed. Raises Refused.

        Again while a bridge is pending: says which; once all have confirmed, there is no such attempt.
        """
        return self._requests.end(id)

    def attempt(self, id: str) -> AttemptStatus:
        """An attempt with its counters. Raises Refused."""
        return self._statuses.attempt(id)

    def attempts(self, *, job: str | None = None, node: str | None = None) -> list[AttemptStatus]:
        """Attempts (without counters) in the order in which they were registered."""
        return self._statuses.attempts(job, node)

    def why(self, id: str, host: str, port: str) -> WhyAnswer:
        """What becomes of an attempt's packet to a host and port, and which line decided. Raises Refused."""
        with self._present.lock:
            row = self._present.rows.get(id)
        return asked_why(self._present.copy(), row, id, host, port)

    def node_of(self, id: str) -> str | None:
        """The node that an attempt, living or leaving, belongs to; None if there is no such attempt."""
        present, departures = self._present, self._departures
        if id not in present.rows and id not in departures.known:
            self._records.catch_up()
        with present.lock:
            row = present.rows.get(id)
            if row is None and id in departures.known:
                row = departures.known[id].row
        return None if row is None else row.spec.node

    # --- nodes, bridges, policy ---------------------------------------------------------------------------------------

    def register_node(self, name: str, spec: NodeSpec) -> NodeGrant:
        """An agent says what its node is; it is told what the node may use. Raises Refused."""
        return self.node_leases.register(name, spec)

    def heartbeat(self, name: str, beat: Heartbeat) -> HeartbeatAnswer:
        """Renew a node's lease and compare what both sides know. Raises Refused."""
        return self.node_leases.heartbeat(name, beat)

    def nodes(self) -> list[NodeStatus]:
        """Every node of the site, registered or not."""
        return self.node_leases.statuses()

    def bridges(self) -> list[BridgeStatus]:
        """Every bridge as the fabric sees it."""
        return self._statuses.bridges()

    def queues(self, bridge: str) -> QueueWish:
        """What a border's agent is to make of its ports. Raises Refused."""
        return queue_wish(self._present.world.policy, self._present.world.site, bridge)

    def report_queues(self, bridge: str, report: QueueReport) -> QueueStatus:
        """A border's agent says how it is. Raises Refused."""
        status = self._borders.hear(bridge, report, self.queues(bridge))
        self._border_news.hear(bridge, report)
        return status

    @property
    def leaving(self) -> int:
        """Ended attempts that some bridge has not confirmed as gone."""
        return len(self._departures.known)

    def stats(self) -> SiteStats:
        """What borders' classes and all jobs together have carried."""
        return self._statuses.stats()

    def policy(self) -> PolicyStatus:
        policy = self._present.world.policy
        with self._present.lock:
            unconfirmed = self._telling.unconfirmed() if self._telling.begun else []
        return policy_status(policy).model_copy(
            update={"unconfirmed": unconfirmed, "on_disk": self.on_disk.said(policy)}
        )

    def reload(self, policy: Policy) -> None:
        """Put another policy in force, also for the attempts there are. Raises StoreError; then the old one stays."""
        reload(
            policy, self._present, self._telling, self._records, self._counts, self._confirmation, self.times
        )  # fmt: skip

    # --- several controllers ------------------------------------------------------------------------------------------

    def follow(self, catch_up: Callable[[], None]) -> None:
        """`catch_up` returns when everything that others wrote before the call is known here. Raises StoreError."""
        self._records.catch_up = catch_up

    def hear(self, row: AttemptRow | NodeRow | NumberRow) -> None:
        """Another controller has written this row."""
        with self._present.lock:
            self._hearing.row(row)
            self._present.lock.notify_all()

    def hear_gone(self, id: str) -> None:
        """Another controller has removed the row of an attempt."""
        with self._present.lock:
            self._hearing.gone(id)
            self._present.lock.notify_all()

    def peer_gone(self, name: str) -> None:
        """A controller has ended or was given up: whose agents talked to it have a full lease to find another one."""
        with self._present.lock:
            self.node_leases.peer_gone(name)

    def mastered(self, bridge: str, generation: int) -> None:
        """This controller is the bridge's master from now on: it says the whole truth, and answers for the bridge."""
        with self._present.lock:
            self._hearing.mastered(bridge, generation)
        text = f"this controller is its master now (generation {generation})"
        self.events.tell(Kind.CONTROLLER_TOOK_OVER, text, bridge=bridge)

    def unmastered(self, bridge: str, generation: int, master: str) -> None:
        """The bridge is another controller's, or nobody's."""
        with self._present.lock:
            self._hearing.unmastered(bridge, generation)
        LOG.info("bridge=%s: its master is %s (generation %d)", bridge, master or "nobody", generation)

    @property
    def owing(self) -> bool:
        """Do other controllers wait for what bridges of this one confirm?"""
        return self._hearing.owing

    def pay(self) -> None:
        """Write what bridges of this controller have confirmed to others. Never waits for a switch."""
        self._hearing.pay()
