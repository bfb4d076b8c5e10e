"""The other controllers on the same store: who lives, who is master of what, and what they write.

    store's feed ──▶ Mastership (who, what) ──▶ Controller.mastered / unmastered ──▶ role requests
         └────────▶ Controller.hear (rows of attempts, nodes, numbers) ──▶ our bridges' flows ──▶ confirmed in the store

Invariants: what others wrote is heard in their order, by one thread; a bridge is programmed only after the store has
taken us as its master; nothing here waits for a switch.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from policies.events import Kind
from ryu_apps.controller import Controller
from ryu_apps.fabric import Fabric
from ryu_apps.reconcile.mastership import Mastership, Proposal
from ryu_apps.store.store import (
    AttemptRow,
    ControllerRow,
    Event,
    Gone,
    MasterRow,
    NodeRow,
    NumberRow,
    Put,
    Snapshot,
    Store,
    StoreConflict,
    StoreError,
)

LOG = logging.getLogger("lark.peers")
BEAT_SECONDS = 0.5
"""Between two signs of life."""
LOOK_SECONDS = 0.1
"""How long news are waited for before the bridges and the others' beats are looked at."""
PAY_SECONDS = 0.005
"""The same while other controllers wait for what our bridges confirm."""
PATIENCE = 3.0
"""Seconds that a write of ours may take; then it is tried again from what is stored by then."""


class Peers:
    """`start()` once everything stored has been read back and before switches are let in; `stop()` at the end."""

    def __init__(
        self,
        name: str,
        controller: Controller,
        store: Store,
        fabric: Fabric,
        bridges: list[str],
        clock: Callable[[], float] = time.monotonic,
        table: Mastership | None = None,
    ) -> None:
        self._name = name
        self._controller = controller
        self._store = store
        self._fabric = fabric
        self._bridges = bridges
        self._clock = clock
        self.table = Mastership(name, bridges) if table is None else table
        self._feed = store.watch()
        self.snapshot: Snapshot = self._feed.snapshot
        """Where the feed begins: what `Controller.start` is to read."""
        self._beats = 0
        self._beats_seen = 0
        self._rounds = 0
        self._news = threading.Condition(threading.Lock())
        self._stopping = False
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """No switch is ours before the store says so."""
        self._know(self.snapshot)
        for bridge in self._bridges:
            self._controller.unmastered(bridge, self.table.generation(bridge), self.table.master(bridge))
        self._controller.follow(self.catch_up)
        for run in (self._beat, self._follow):
            thread = threading.Thread(target=run, name=run.__name__.strip("_"), daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        self._stopping = True
        self._feed.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(5)

    def catch_up(self) -> None:
        """Return when everything that others wrote before the call has been heard. Raises StoreError."""
        if threading.current_thread() in self._threads:
            self._hear_all(0)
            return
        until = self._clock() + PATIENCE
        # What was written before this write of ours comes before its confirmation.
        self._store.write([]).wait(until)
        with self._news:
            wanted = self._rounds + 2
            while self._rounds < wanted and not self._stopping:
                if not self._news.wait(max(0.0, until - self._clock())) and self._clock() >= until:
                    raise StoreError("what other controllers wrote is not known yet; try again")

    # --- threads

    def _beat(self) -> None:
        while not self._stopping:
            try:
                self._store.write([]).wait(self._clock() + PATIENCE)
                self._beats += 1
            except StoreError as problem:
                if not self._stopping:
                    LOG.warning("no sign of life could be written: %s", problem)
            time.sleep(BEAT_SECONDS)

    def _follow(self) -> None:
        while not self._stopping:
            try:
                self.step(PAY_SECONDS if self._controller.owing else LOOK_SECONDS)
            except StoreError as problem:
                if self._stopping:
                    return
                LOG.warning("the store: %s", problem)
                time.sleep(LOOK_SECONDS)
            except Exception:
                LOG.exception("a defect in following the other controllers; it goes on")
                time.sleep(LOOK_SECONDS)

    # --- one round

    def step(self, seconds: float) -> None:
        """Hear what others wrote, waiting so long for the first of it, and do what follows. Raises StoreError."""
        self._hear_all(seconds)
        with self._news:
            self._rounds += 1
            self._news.notify_all()
        now = self._clock()
        for state in self._fabric.bridges():
            self.table.reached(state.bridge, state.connected, now)
            self.table.outranked(state.bridge, state.outranked, now)
        if self._beats != self._beats_seen:
            self._beats_seen = self._beats
            self.table.beat(now)
        for proposal in self.table.due(now):
            self._propose(proposal)
        if self._controller.owing:
            self._controller.pay()

    def _hear_all(self, seconds: float) -> None:
        for event in self._feed.take(seconds):
            try:
                self._hear(event)
            except Exception:
                # One row that cannot be understood must not keep us from the others.
                LOG.exception("what another controller wrote is not understood: %r", event)

    def _hear(self, event: Event) -> None:
        match event:
            case Put(ControllerRow() as row):
                if row.name not in self.table.peers and row.name != self._name:
                    LOG.info("controller %s (%s) uses the store too", row.name, row.place)
                self.table.controller(row, self._clock())
            case Put(MasterRow() as row):
                self._hear_master(row)
            case Put(AttemptRow() | NodeRow() | NumberRow() as row):
                self._controller.hear(row)
            case Gone("Controller", name):
                if name != self._name:
                    LOG.warning("controller %s has ended or was given up", name)
                    self.table.controller_gone(name)
                    self._controller.peer_gone(name)
            case Gone("Attempt", id):
                self._controller.hear_gone(id)

    def _hear_master(self, row: MasterRow) -> None:
        self.table.row(row)
        if row.bridge in self._bridges and row.bridge not in self.table.held:
            self._controller.unmastered(row.bridge, row.generation, row.controller)

    def _propose(self, proposal: Proposal) -> None:
        try:
            self._store.write(proposal.changes).wait(self._clock() + PATIENCE)
        except StoreConflict:
            # Most often the feed says why; but a write of our own that was lost sight of is not in it.
            self._hear_all(0)
            self._know(self._store.load())
            return
        except StoreError as problem:
            LOG.warning("mastership could not be written: %s", problem)
            return
        if proposal.gives_up is not None:
            text = f"controller {proposal.gives_up} is silent: given up; its bridges are taken over"
            self._controller.events.tell(Kind.CONTROLLER_GAVE_UP, text, subject=proposal.gives_up)
        # What the master before us wrote last was stored before our write: it is heard before its bridges are told.
        self._hear_all(0)
        gained, lost = self.table.took_place(proposal, self._clock())
        for bridge, generation in gained.items():
            self._controller.mastered(bridge, generation)
        for bridge in lost:
            text = "it cannot be reached: left to another controller"
            self._controller.events.tell(Kind.CONTROLLER_GAVE_UP, text, bridge=bridge)
            self._controller.unmastered(bridge, self.table.generation(bridge), "")
        if proposal.gives_up is not None:
            self._controller.peer_gone(proposal.gives_up)

    def _know(self, snapshot: Snapshot) -> None:
        now = self._clock()
        for row in snapshot.controllers:
            self.table.controller(row, now)
        for name in self.table.peers - {row.name for row in snapshot.controllers}:
            self.table.controller_gone(name)
            self._controller.peer_gone(name)
        for master in snapshot.masters:
            if master.controller != self._name or master.bridge not in self.table.held:
                self.table.row(master)
                if self._threads and master.bridge in self._bridges:
                    self._controller.unmastered(master.bridge, master.generation, master.controller)
