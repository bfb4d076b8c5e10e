"""Which controller is master of which bridge, as a state table without input or output. Pure: `now` is passed in.

           free and reached, ours to take         the row is ours and on disk
    FREE ──────────────────────────────▶ proposed ──────────────────────────▶ HELD ──▶ (role request, generation)
     ▲                                       │ another was quicker              │ unreached, and others live
     └───────────────────────────────────────┘◀──────────── given back ─────────┘ or the row became another's

What holds:

* The row in the store decides, never what a controller believes: a change is proposed together with the row that it
  replaces, and counts only when the store says so.
* Each new master has a higher generation than any before, also when it is the same controller in another run: a switch
  that knows the newer one refuses the older.
* A switch that refuses the generation knows a newer master. If the store, after `grace`, still says that we are it (the
  store is younger than the switch's memory: it was lost, and made anew), we claim the bridge again, with a generation
  further and further ahead, and longer and longer pauses: of two stores with the same bridges neither must win fast.
* A controller is given up when its beat has not grown for `patience` seconds *and* our own grew several times in them.
  While the store stands still nobody's beat grows, and so nobody is given up; when it goes on, everyone begins anew.
* Giving up and taking over are one write, valid for the beat that was seen last: either the other one has written
  nothing since, and can write nothing any more, or nothing happens.
* A free bridge goes to the controller that comes first for it (a hash of both names: everyone computes the same), and
  after `grace` to any that reaches it. Bridges that have a living master stay: nothing moves because somebody came.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ryu_apps.store.store import ControllerRow, DropController, MasterRow, PutMaster

OWN_BEATS = 3
"""How many of our own beats must have been durable while another's did not grow."""
LEAP = 1000
"""Each refusal makes the next claim's generation this many times further ahead."""
HIGHEST = 2**62
LEFT_ALONE = 120.0
"""Seconds after a refusal in which another one belongs to the same quarrel."""
STALL = 2.0
"""Seconds between two of our own beats beyond which the store, or this process, stood still."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """One write: all of it or nothing. `gives_up`: the controller that it declares dead."""

    changes: tuple[PutMaster | DropController, ...]
    gives_up: str | None = None


@dataclass(slots=True)
class _Peer:
    beat: int
    place: str
    grew: float
    own_beats: int = 0


@dataclass(slots=True)
class _Refused:
    """A switch that refuses us: since when, when last, how long we wait now, and how far ahead we go then."""

    since: float
    last: float
    pause: float
    leap: int = 1
    still: bool = True


class Mastership:
    """The table of one controller, `me`."""

    def __init__(
        self, me: str, bridges: Iterable[str], *, patience: float = 3.0, grace: float = 1.0, unreached: float = 2.0
    ) -> None:
        self._me = me
        self._patience = patience
        self._grace = grace
        self._unreached = unreached
        self._rows: dict[str, MasterRow | None] = dict.fromkeys(bridges)
        self._peers: dict[str, _Peer] = {}
        self._reached: dict[str, bool] = dict.fromkeys(bridges, False)
        self._reached_since: dict[str, float] = {}
        self._free_since: dict[str, float] = {}
        self._held: dict[str, int] = {}
        self._refused: dict[str, _Refused] = {}
        self._last_beat: float | None = None

    # --- what it knows

    @property
    def held(self) -> dict[str, int]:
        """Bridges that this controller is master of, with the generation."""
        return dict(self._held)

    @property
    def peers(self) -> frozenset[str]:
        """The other controllers that have not been given up."""
        return frozenset(self._peers)

    def generation(self, bridge: str) -> int:
        """The last that was given for a bridge; 0 before the first."""
        row = self._rows[bridge]
        return 0 if row is None else row.generation

    def master(self, bridge: str) -> str:
        """The master's name as stored; empty: none."""
        row = self._rows[bridge]
        return "" if row is None else row.controller

    # --- what happens

    def controller(self, row: ControllerRow, now: float) -> None:
        """A row of a controller was written. Our own says nothing."""
        if row.name == self._me:
            return
        known = self._peers.get(row.name)
        if known is None or row.beat != known.beat or row.place != known.place:
            self._peers[row.name] = _Peer(row.beat, row.place, now)

    def controller_gone(self, name: str) -> None:
        self._peers.pop(name, None)

    def row(self, row: MasterRow) -> bool:
        """A row of a bridge as another wrote it. True: we were its master, and are not any more."""
        if row.bridge not in self._rows:
            return False  # of a site that this controller does not know (yet, or any more)
        if row.generation < self.generation(row.bridge):
            return False  # from before what is known already
        self._rows[row.bridge] = row
        self._free_since.pop(row.bridge, None)
        lost = row.bridge in self._held and (row.controller, row.generation) != (self._me, self._held[row.bridge])
        if lost:
            del self._held[row.bridge]
        return lost

    def reached(self, bridge: str, connected: bool, now: float) -> None:
        """Is the bridge connected to this controller?"""
        if self._reached[bridge] != connected or bridge not in self._reached_since:
            self._reached[bridge] = connected
            self._reached_since[bridge] = now

    def outranked(self, bridge: str, refused: bool, now: float) -> None:
        """Does the switch refuse us as its master because of our generation?"""
        known = self._refused.get(bridge)
        if known is None:
            if refused:
                self._refused[bridge] = _Refused(now, now, self._grace)
            return
        if refused and not known.still:
            known.since = now
        known.still = refused
        if refused:
            known.last = now
        elif now - known.last > LEFT_ALONE:
            del self._refused[bridge]

    def beat(self, now: float) -> None:
        """Our own beat is on disk."""
        stalled = self._last_beat is not None and now - self._last_beat > STALL
        self._last_beat = now
        for peer in self._peers.values():
            if stalled:
                peer.grew, peer.own_beats = now, 0
            else:
                peer.own_beats += 1

    def took_place(self, proposal: Proposal, now: float) -> tuple[dict[str, int], list[str]]:
        """The store has taken it. Returns what we are master of from now on, with generations, and what no more."""
        if proposal.gives_up is not None:
            self._peers.pop(proposal.gives_up, None)
        gained: dict[str, int] = {}
        lost = []
        for change in proposal.changes:
            if isinstance(change, DropController):
                continue
            row = change.row
            self._rows[row.bridge] = row
            self._free_since.pop(row.bridge, None)
            if row.controller == self._me:
                refused = self._refused.get(row.bridge)
                if refused is not None and row.bridge in self._held:
                    refused.since, refused.pause, refused.leap = now, min(60.0, 4 * refused.pause), refused.leap * LEAP
                self._held[row.bridge] = gained[row.bridge] = row.generation
            elif self._held.pop(row.bridge, None) is not None:
                lost.append(row.bridge)
        return gained, lost

    # --- what to do

    def due(self, now: float) -> list[Proposal]:
        """What to write now. A proposal that was not taken is made again, from the rows as they are then."""
        dead = {
            name
            for name, peer in self._peers.items()
            if now - peer.grew >= self._patience and peer.own_beats >= OWN_BEATS
        }
        living = sorted({self._me, *self._peers} - dead)
        taken: dict[str, list[PutMaster]] = {}
        back: list[PutMaster] = []
        for bridge, row in self._rows.items():
            owner = "" if row is None else row.controller
            if bridge in self._held:
                gone = not self._reached[bridge] and now - self._reached_since.get(bridge, now) >= self._unreached
                if gone and len(living) > 1:
                    back.append(PutMaster(MasterRow(bridge, "", self._held[bridge]), row))
                elif (higher := self._higher(bridge, now)) is not None:
                    taken.setdefault("", []).append(PutMaster(MasterRow(bridge, self._me, higher), row))
                continue
            if owner in self._peers and owner not in dead:
                self._free_since.pop(bridge, None)
                continue
            free = self._free_since.setdefault(bridge, now)
            if not self._reached[bridge]:
                continue
            # A switch connects to one controller a little before the other.
            since = max(free, self._reached_since[bridge])
            if owner == self._me or _first(living, bridge) == self._me or now - since >= self._grace:
                claim = PutMaster(MasterRow(bridge, self._me, self.generation(bridge) + 1), row)
                taken.setdefault(owner if owner in dead else "", []).append(claim)
        proposals = [
            Proposal((DropController(name, self._peers[name].beat), *taken.get(name, ())), name)
            for name in sorted(dead)
        ]
        proposals += [Proposal((change,)) for change in (*taken.get("", ()), *back)]
        return proposals

    def _higher(self, bridge: str, now: float) -> int | None:
        """The generation to claim a bridge with that refuses ours; None: not (yet)."""
        known = self._refused.get(bridge)
        if known is None or not known.still or now - known.since < known.pause:
            return None
        return min(self._held[bridge] + known.leap, HIGHEST)


def _first(living: Sequence[str], bridge: str) -> str:
    return max(living, key=lambda name: hashlib.sha256(f"{name}\0{bridge}".encode()).digest())
