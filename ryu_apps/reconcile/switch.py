"""The conversation with one switch, as a state machine without input or output. Pure: `now` is passed in.

            connected              dump ends                  differs            all accepted
    AWAY ──────────────▶ DUMPING ────────────▶ (difference) ─────────▶ STAGING ──────────────▶ COMMITTING
     ▲                      ▲                       │                     │ refused                │ confirmed
     │ lost (any state)     │ RESTING: retry        │ same                ▼                        ▼
     └──────                └────────────           └──▶ STEADY ◀──── DISCARDING               STEADY

What holds:

* Two questions are kept apart. `base` is what is wanted and was accepted; `queue` holds the requests that are not
  settled yet, in their order. Requests leave the queue only when the switch confirmed them with a barrier, or refused.
* Before a base was ever said, nothing on the switch is touched.
* Everything that waits goes out together, as one atomic bundle: additions first, removals last. It is committed only
  after a barrier has shown that the switch took every part of it (Open vSwitch would commit the rest of a bundle
  without the part it could not read). A refused bundle changes nothing.
* If a bundle of several requests is refused, each is tried alone, so that a bad one does not fail its neighbours.
* What is on the switch already is not sent again: unchanged state sends no flow-mod.
* Table 0 and entries whose cookie does not carry Lark's mark are never touched. (An entry in the way, with the very
  key of one of ours, is replaced, and named in a notice: the tables above 0 are the controller's.)
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NewType

from ryu_apps.openflow import cookies
from ryu_apps.openflow.decode import Dumped
from ryu_apps.openflow.flows import Flow, FlowKey, Match

TicketId = NewType("TicketId", int)

HOST_LANE_TABLE = 0
XID_LIMIT = 0x7FFF_FFFF
"""Transaction ids of the machine stay below this; the rest belongs to whoever else talks on the connection."""


class State(enum.Enum):
    AWAY = "not connected"
    DUMPING = "reading the flows of the switch"
    STEADY = "in line"
    STAGING = "sending a bundle"
    COMMITTING = "committing a bundle"
    DISCARDING = "taking back a refused bundle"
    RESTING = "waiting before the next attempt"


# ------------------------------------------------------------------------------------------------- parts of a bundle


@dataclass(frozen=True, slots=True)
class Put:
    """Add the flow, or replace what has its key."""

    flow: Flow


@dataclass(frozen=True, slots=True)
class Take:
    """Remove exactly this entry."""

    key: FlowKey


@dataclass(frozen=True, slots=True)
class TakeRaw:
    """Remove an entry of Lark's whose match we cannot read, by the bytes the switch showed."""

    table: int
    priority: int
    match: bytes


Item = Put | Take | TakeRaw


# ----------------------------------------------------------------------------------------------------------- outputs


@dataclass(frozen=True, slots=True)
class RequestPorts:
    xid: int


@dataclass(frozen=True, slots=True)
class RequestDump:
    xid: int


@dataclass(frozen=True, slots=True)
class Stage:
    """Open the bundle, put every item into it under its own transaction id, then a barrier. Do not commit."""

    bundle: int
    open_xid: int
    first_xid: int
    items: tuple[Item, ...]
    barrier: int


@dataclass(frozen=True, slots=True)
class Commit:
    bundle: int
    xid: int
    barrier: int


@dataclass(frozen=True, slots=True)
class Discard:
    bundle: int
    xid: int
    barrier: int


@dataclass(frozen=True, slots=True)
class Settle:
    """A request is settled: realised, or refused with a reason."""

    ticket: TicketId
    refused: str | None


@dataclass(frozen=True, slots=True)
class PortsChanged:
    ports: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Notice:
    """Something an administrator should know."""

    text: str
    serious: bool = False


@dataclass(frozen=True, slots=True)
class Disconnect:
    """The conversation has broken down: close the connection; the switch comes back and is read anew."""

    reason: str


Output = RequestPorts | RequestDump | Stage | Commit | Discard | Settle | PortsChanged | Notice | Disconnect


# ---------------------------------------------------------------------------------------------------------- requests


@dataclass(frozen=True, slots=True)
class _Replace:
    ticket: TicketId
    flows: Mapping[FlowKey, Flow]


@dataclass(frozen=True, slots=True)
class _Delta:
    ticket: TicketId
    add: tuple[Flow, ...]
    remove: tuple[FlowKey, ...]


_Request = _Replace | _Delta


@dataclass(slots=True)
class _Flight:
    """A bundle under way and what it would make true."""

    bundle: int
    requests: int
    """How many requests from the front of the queue it carries."""
    catches_up: bool
    """It also carries what was missing or stale when the switch was read."""
    whole: dict[FlowKey, Flow] | None
    """The new base, or None if only `overlay` changes it."""
    overlay: dict[FlowKey, Flow | None]
    items: tuple[Item, ...] = ()
    first_xid: int = 0
    control_xids: dict[int, str] = field(default_factory=dict)
    barrier: int = 0
    item_error: str | None = None
    control_error: str | None = None
    committed: bool = False

    @property
    def refusal(self) -> str | None:
        """Why the switch refused it; what names one change tells more than what names the bundle."""
        return self.item_error or self.control_error


@dataclass(slots=True)
class Counts:
    """What was sent so far, for tests and metrics."""

    dumps: int = 0
    bundles: int = 0
    flow_mods: int = 0
    commits: int = 0
    refused: int = 0


def is_larks(cookie: int) -> bool:
    """Does the cookie carry Lark's mark? An entry of a feature this version does not know is Lark's all the same."""
    return cookie >> cookies.MARK_SHIFT == cookies.MARK


def describe(item: Item) -> str:
    """An item in one line for a message."""
    match item:
        case Put(flow):
            return f"add {_describe_key(flow.table, flow.priority, flow.match)} cookie={flow.cookie:#x}"
        case Take(key):
            return f"remove {_describe_key(key.table, key.priority, key.match)}"
        case TakeRaw(table, priority, raw):
            return f"remove table={table} priority={priority} match={raw.hex()}"


def _describe_key(table: int, priority: int, matches: Match) -> str:
    parts = [f"{m.field}={m.value:#x}" + ("" if m.mask is None else f"/{m.mask:#x}") for m in matches]
    return ",".join([f"table={table}", f"priority={priority}", *parts])


class SwitchMachine:
    """One switch. Every input returns the outputs it causes, in the order in which to carry them out."""

    def __init__(self, *, patience: float = 10.0, retry: float = 1.0, retry_most: float = 30.0) -> None:
        """`patience`: seconds without any progress before the connection is given up; `retry`: pause before a state
        that the switch refused is tried again, doubled each time up to `retry_most`."""
        self.state = State.AWAY
        self.counts = Counts()
        self.detail = ""
        self._patience = patience
        self._retry = retry
        self._retry_most = retry_most
        self._pause = retry
        self._base: dict[FlowKey, Flow] | None = None
        self._queue: list[_Request] = []
        self._alone = 0
        # What the switch showed, as long as it may differ from base; None once the two are known to be the same.
        self._actual: dict[FlowKey, Flow | None] | None = None
        self._unreadable: list[TakeRaw] = []
        self._foreign: dict[FlowKey, int] = {}
        self._foreign_count = 0
        self._flight: _Flight | None = None
        self._dump_xid = 0
        self._ports_xid = 0
        self._ports: dict[str, int] = {}
        self._ports_parts: dict[str, int] = {}
        self._ports_known = False
        self._xid = 0
        self._bundle = 0
        self._wake: float | None = None

    # ------------------------------------------------------------------------------------------------ what it knows

    @property
    def connected(self) -> bool:
        return self.state is not State.AWAY

    @property
    def converged(self) -> bool:
        """Everything wanted is confirmed, and nothing is under way."""
        return self.state is State.STEADY and self._base is not None and self._actual is None and not self._queue

    @property
    def ports(self) -> Mapping[str, int]:
        return self._ports

    @property
    def flows(self) -> int:
        """Lark's entries on the switch, as far as known."""
        if self._actual is not None:
            return len(self._actual) + len(self._unreadable)
        return len(self._base or {}) if self.connected else 0

    @property
    def desired(self) -> Mapping[FlowKey, Flow] | None:
        """What is wanted and was accepted; None before it was ever said."""
        return self._base

    @property
    def waiting(self) -> int:
        """Requests that are not settled."""
        return len(self._queue)

    @property
    def wake(self) -> float | None:
        """When `tick` must be called at the latest; None: no need."""
        return self._wake

    # ----------------------------------------------------------------------------------------------- inputs: wishes

    def set_desired(self, ticket: TicketId, flows: Mapping[FlowKey, Flow], now: float) -> list[Output]:
        """The whole truth is this."""
        bad = _inadmissible(flows.values())
        if bad is not None:
            return [Settle(ticket, bad)]
        # An earlier whole truth and what waits behind it are still owed an answer, so they stay in the queue.
        self._queue.append(_Replace(ticket, dict(flows)))
        return self._advance(now)

    def change(self, ticket: TicketId, add: Sequence[Flow], remove: Sequence[FlowKey], now: float) -> list[Output]:
        """Change the truth: removals first, so that a key in both is replaced."""
        bad = _inadmissible(add)
        if bad is None and any(key.table == HOST_LANE_TABLE for key in remove):
            bad = "table 0 belongs to the agent"
        if bad is None and self._base is None and not any(isinstance(one, _Replace) for one in self._queue):
            bad = "a change before the whole truth of this bridge was said (set_desired)"
        if bad is not None:
            return [Settle(ticket, bad)]
        self._queue.append(_Delta(ticket, tuple(add), tuple(remove)))
        return self._advance(now)

    # ------------------------------------------------------------------------------------- inputs: from the switch

    def connected_to(self, now: float) -> list[Output]:
        """The switch is there: read its ports and its flows."""
        self._reset()
        self._ports = {}
        self._ports_xid = self._next_xid()
        return [RequestPorts(self._ports_xid), *self._dump(now)]

    def lost(self) -> list[Output]:
        """The connection is gone. What was under way is undecided; the next dump decides it."""
        self._reset()
        return []

    def ports_part(self, xid: int, ports: Mapping[str, int], more: bool, now: float) -> list[Output]:
        if xid != self._ports_xid or self._ports_known or self.state is State.AWAY:
            return []
        self._ports_parts.update(ports)
        if more:
            return []
        self._ports_known = True
        self._ports = dict(self._ports_parts)
        return [PortsChanged(dict(self._ports))]

    def port_status(self, name: str, number: int | None) -> list[Output]:
        """A port has this number now (None: it is gone)."""
        if self.state is State.AWAY:
            return []
        for known in (self._ports, self._ports_parts):
            for other in [n for n, taken in known.items() if n == name or taken == number]:
                del known[other]
            if number is not None:
                known[name] = number
        return [PortsChanged(dict(self._ports))] if self._ports_known else []

    def dump_part(self, xid: int, entries: Iterable[Dumped], more: bool, now: float) -> list[Output]:
        """A part of the answer to RequestDump; the last one has `more` false."""
        if self.state is not State.DUMPING or xid != self._dump_xid or self._actual is None:
            return []
        self._wake = now + self._patience
        for entry in entries:
            if entry.table == HOST_LANE_TABLE:
                continue
            key = entry.key
            if not is_larks(entry.cookie):
                self._foreign_count += 1
                if key is not None:
                    self._foreign[key] = entry.cookie
            elif key is None:
                self._unreadable.append(TakeRaw(entry.table, entry.priority, entry.raw_match))
            else:
                self._actual[key] = entry.flow
        if more:
            return []
        self.state = State.STEADY
        self._wake = None
        out: list[Output] = []
        if self._foreign_count:
            example = next(iter(self._foreign.items()), None)
            text = f"{self._foreign_count} flows in the controller's tables are not Lark's and stay as they are"
            if example is not None:
                key, cookie = example
                text += f", for example {_describe_key(key.table, key.priority, key.match)} cookie={cookie:#x}"
            out.append(Notice(text, serious=True))
        return out + self._advance(now)

    def barrier(self, xid: int, now: float) -> list[Output]:
        """A barrier was answered."""
        flight = self._flight
        if flight is None or xid != flight.barrier:
            return []
        if self.state is State.STAGING:
            return self._staged(flight, now)
        if self.state is State.COMMITTING:
            if flight.committed and flight.refusal is None:
                return self._realised(flight, now)
            return self._refused(flight, now)
        if self.state is State.DISCARDING:
            return self._refused(flight, now)
        return []

    def committed(self, bundle: int) -> list[Output]:
        """The switch says that it committed the bundle (the barrier behind it is what counts)."""
        if self._flight is not None and self._flight.bundle == bundle and self.state is State.COMMITTING:
            self._flight.committed = True
        return []

    def error(self, xid: int, text: str, now: float) -> list[Output]:
        """The switch answered a message with an error."""
        if self.state is State.AWAY:
            return []
        if xid in (self._dump_xid, self._ports_xid):
            return [Disconnect(f"the switch refused to be read: {text}")]
        flight = self._flight
        if flight is not None:
            at = xid - flight.first_xid
            if 0 <= at < len(flight.items):
                if flight.item_error is None:
                    flight.item_error = f"{text}: {describe(flight.items[at])}"
                return []
            if xid in flight.control_xids:
                if flight.control_error is None:
                    flight.control_error = f"{text}: {flight.control_xids[xid]}"
                return []
        return [Notice(f"error for a message that is not known (any more), transaction {xid:#x}: {text}")]

    def tick(self, now: float) -> list[Output]:
        """Time has passed."""
        if self._wake is None or now < self._wake:
            return []
        if self.state is State.RESTING:
            return self._dump(now)
        self._wake = None
        return [Disconnect(f"no answer while {self.state.value}")]

    # ------------------------------------------------------------------------------------------------------- inside

    def _reset(self) -> None:
        self.state = State.AWAY
        self.detail = "not connected"
        self._flight = None
        self._actual = None
        self._unreadable = []
        self._foreign = {}
        self._foreign_count = 0
        self._alone = 0
        self._pause = self._retry
        self._wake = None
        self._ports_known = False
        self._ports_parts = {}

    def _next_xid(self, count: int = 1) -> int:
        """The first of `count` transaction ids in a row."""
        if self._xid + count >= XID_LIMIT:
            self._xid = 0
        first = self._xid + 1
        self._xid += count
        return first

    def _dump(self, now: float) -> list[Output]:
        self.state = State.DUMPING
        self.detail = State.DUMPING.value
        self._actual = {}
        self._unreadable = []
        self._foreign = {}
        self._foreign_count = 0
        self._dump_xid = self._next_xid()
        self._wake = now + self._patience
        self.counts.dumps += 1
        return [RequestDump(self._dump_xid)]

    def _advance(self, now: float) -> list[Output]:
        """If nothing is under way: send what is missing."""
        out: list[Output] = []
        while self.state is State.STEADY:
            catches_up = self._actual is not None
            if self._base is None and not self._queue:
                self.detail = "nothing was said yet about what this bridge shall hold"
                return out
            if not catches_up and not self._queue:
                self.detail = ""
                return out
            if not self._alone:
                requests = len(self._queue)
            elif catches_up and self._base is not None:
                requests = 0
            else:
                requests = 1
            flight = self._plan(requests)
            if not flight.items:
                out += self._adopt(flight)
                continue
            out += self._send(flight, now)
        return out

    def _plan(self, requests: int) -> _Flight:
        whole: dict[FlowKey, Flow] | None = None
        overlay: dict[FlowKey, Flow | None] = {}
        for request in self._queue[:requests]:
            if isinstance(request, _Replace):
                whole, overlay = dict(request.flows), {}
                continue
            for key in request.remove:
                overlay[key] = None
            for flow in request.add:
                overlay[flow.key] = flow
        catches_up = self._actual is not None
        puts: list[Item] = []
        takes: list[Item] = []
        if whole is None and not catches_up:
            # The common case, a job comes or goes: nothing but its own flows is looked at.
            base = self._base or {}
            for key, wanted in overlay.items():
                present = base.get(key)
                if wanted is None:
                    if present is not None:
                        takes.append(Take(key))
                elif wanted != present:
                    puts.append(Put(wanted))
        else:
            target = dict(self._base or {}) if whole is None else whole
            for key, wanted in overlay.items():
                if wanted is None:
                    target.pop(key, None)
                else:
                    target[key] = wanted
            actual: Mapping[FlowKey, Flow | None] = (self._base or {}) if self._actual is None else self._actual
            puts.extend(Put(wanted) for key, wanted in target.items() if actual.get(key) != wanted)
            takes.extend(Take(key) for key in actual if key not in target)
            takes.extend(self._unreadable)
            whole, overlay = target, {}
        return _Flight(self._bundle, requests, catches_up, whole, overlay, (*puts, *takes))

    def _send(self, flight: _Flight, now: float) -> list[Output]:
        self._bundle = (self._bundle + 1) & 0xFFFF_FFFF
        flight.bundle = self._bundle
        open_xid = self._next_xid()
        flight.first_xid = self._next_xid(len(flight.items))
        flight.barrier = self._next_xid()
        flight.control_xids = {open_xid: "opening a bundle"}
        self._flight = flight
        self.state = State.STAGING
        self.detail = f"sending {len(flight.items)} changes"
        self._wait(flight, now)
        self.counts.bundles += 1
        self.counts.flow_mods += len(flight.items)
        out: list[Output] = []
        replaced = [i for i in flight.items if isinstance(i, Put) and i.flow.key in self._foreign]
        if replaced:
            out.append(
                Notice(f"replacing {len(replaced)} foreign flows in the way: {describe(replaced[0])}", serious=True)
            )
        out.append(Stage(flight.bundle, open_xid, flight.first_xid, flight.items, flight.barrier))
        return out

    def _wait(self, flight: _Flight, now: float) -> None:
        # A switch takes well over 5,000 changes a second; a large bundle is given that much more time.
        self._wake = now + self._patience + len(flight.items) / 5000

    def _staged(self, flight: _Flight, now: float) -> list[Output]:
        xid = self._next_xid()
        flight.barrier = self._next_xid()
        self._wait(flight, now)
        if flight.refusal is not None:
            self.state = State.DISCARDING
            flight.control_xids[xid] = "taking back a bundle"
            return [Discard(flight.bundle, xid, flight.barrier)]
        self.state = State.COMMITTING
        flight.control_xids[xid] = "committing a bundle"
        self.counts.commits += 1
        return [Commit(flight.bundle, xid, flight.barrier)]

    def _realised(self, flight: _Flight, now: float) -> list[Output]:
        self._flight = None
        self._wake = None
        self.state = State.STEADY
        return self._adopt(flight) + self._advance(now)

    def _adopt(self, flight: _Flight) -> list[Output]:
        """What the flight says is true now."""
        if flight.whole is not None and (flight.requests or self._base is not None):
            self._base = flight.whole
        elif self._base is not None:
            for key, wanted in flight.overlay.items():
                if wanted is None:
                    self._base.pop(key, None)
                else:
                    self._base[key] = wanted
        if flight.catches_up:
            self._actual = None
            self._unreadable = []
            self._foreign = {}
        settled, self._queue = self._queue[: flight.requests], self._queue[flight.requests :]
        self._alone = max(0, self._alone - flight.requests)
        return [Settle(request.ticket, None) for request in settled]

    def _refused(self, flight: _Flight, now: float) -> list[Output]:
        self._flight = None
        self._wake = None
        self.state = State.STEADY
        self.counts.refused += 1
        reason = flight.refusal or "the switch did not confirm the bundle"
        if flight.requests + int(flight.catches_up and self._base is not None) > 1:
            # Not known whose fault it was. Each part is tried alone; the parts that were good go in after all.
            self._alone = max(flight.requests, 1)
            return self._advance(now)
        if flight.requests:
            refused = self._queue.pop(0)
            self._alone = max(0, self._alone - 1)
            out: list[Output] = [Settle(refused.ticket, reason)]
            while self._base is None and self._queue and isinstance(self._queue[0], _Delta):
                # A change to a truth that was refused, when there is no older one, changes nothing we know of.
                out.append(Settle(self._queue.pop(0).ticket, f"the whole truth it changes was refused: {reason}"))
                self._alone = max(0, self._alone - 1)
            return out + self._advance(now)
        self.state = State.RESTING
        self.detail = f"the switch refuses what it held before: {reason}"
        self._wake = now + self._pause
        self._pause = min(2 * self._pause, self._retry_most)
        return [Notice(self.detail, serious=True)]


def _inadmissible(flows: Iterable[Flow]) -> str | None:
    """Why these flows cannot be wanted of the controller's tables, or None."""
    for flow in flows:
        if flow.table == HOST_LANE_TABLE:
            return f"table 0 belongs to the agent: {describe(Put(flow))}"
        if not is_larks(flow.cookie):
            return f"a cookie without Lark's mark: {describe(Put(flow))}"
    return None


def summary(outputs: Iterable[Output]) -> Counter[str]:
    """How many outputs of each kind; for tests and logs."""
    return Counter(type(one).__name__ for one in outputs)
