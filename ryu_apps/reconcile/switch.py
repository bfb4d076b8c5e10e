"""The conversation with one switch, as a state machine without input or output. Pure: `now` is passed in.

            connected           dump ends              differs             taken         all accepted
    AWAY ──────────────▶ DUMPING ────────▶ (difference) ───────▶ (METERING) ─────▶ STAGING ───────────▶ COMMITTING
     ▲                      ▲                   │                    │ refused        │ refused             │ confirmed
     │ lost (any state)     │ RESTING: retry    │ same               ▼                ▼                     ▼
     └──────                └────────────       └──▶ STEADY ◀────────────────── DISCARDING               STEADY
                            one entry: STEADY ──▶ CHANGING ──▶ STEADY (confirmed, or refused)

Flows are entry keys and entry values here (`ryu_apps.openflow.encode`): bytes, as they go to the switch and come back.
Beside the states runs the *check*: now and then, and soon after the switch says that somebody else changed a flow, its
flows are read and what differs is put right. Changes go on meanwhile.

What holds:

* Two questions are kept apart. `base` is what is wanted and was accepted; `queue` holds the requests that are not
  settled yet, in their order. Requests leave the queue only when the switch confirmed them with a barrier, or refused.
* Before a base was ever said, nothing on the switch is touched.
* Everything that waits goes out together, as one atomic bundle: additions first, removals last. It is committed only
  after a barrier has shown that the switch took every part of it (Open vSwitch would commit the rest of a bundle
  without the part it could not read). A refused bundle changes nothing. A single entry is atomic by itself: it goes
  without a bundle, with a barrier behind it.
* What looks like what this switch has taken before on this connection goes as a bundle with its commit behind it at
  once. Should the switch refuse a part of it all the same, and commit the rest, it is read anew, and put back to what
  was accepted before; from then on it is asked first.
* If a bundle of several requests is refused, each is tried alone, so that a bad one does not fail its neighbours.
* What is on the switch already is not sent again: unchanged state sends no flow-mod.
* Table 0 and entries whose cookie does not carry Lark's mark are never touched. (An entry in the way, with the very
  key of one of ours, is replaced, and named in a notice: the tables above 0 are the controller's.)
* A check never undoes a change that was under way while it read: entries touched meanwhile are left to the next one.
* Where several controllers share the bridges (`set_role`), only the master reads flows and sends changes, and only
  after the switch has said that it is: whatever another one did before is seen. Who is not refuses every change.
* What is wrong with the bridge itself (`faults`) stops nothing; it is said once, and shown as long as it lasts.

* Meters are entries like flows (`encode.is_meter`), but cannot be parts of a bundle: new and altered ones go before it,
  with a barrier; stale ones after it is confirmed, because deleting a meter deletes the flows that use it. If the
  bundle is refused after all, its meters are put back to what they were. A meter whose number does not begin with
  Lark's mark is never touched.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NewType

from policies.events import Kind
from ryu_apps.openflow import cookies, decode, encode
from ryu_apps.openflow.encode import EntryKey, EntryValue
from ryu_apps.openflow.text import action_text

TicketId = NewType("TicketId", int)

HOST_LANE_TABLE = 0
XID_LIMIT = 0x7FFF_FFFF
"""Transaction ids of the machine stay below this; the rest belongs to whoever else talks on the connection."""
PREPARED = "Lark: fail_mode=secure, disable-in-band=true"
"""What `lark-agent prepare-bridge` writes into a bridge's `other_config:dp-desc`. OpenFlow tells neither setting."""
FAULTS = {
    "foreign": Kind.TABLE_FOREIGN,
    "strangers": Kind.TABLE_BYPASSED,
    "lane": Kind.TABLE_EMPTY,
    "prepared": Kind.FAIL_MODE_WRONG,
}
"""What is wrong with a bridge itself, and the event that it is."""
MENDED = {
    "foreign": "all flows in the controller's tables are Lark's again",
    "strangers": "all flows in table 0 are the agent's again",
    "lane": "table 0 holds the agent's flows",
    "prepared": "it is prepared for Lark",
}
FAMILIAR_MOST = 512
"""Parts of a bundle that can be sent with its commit: those of the jobs that come and go together under load (a gate is
told of them all, and every round more is a round in which more come), and not a resync's."""
KINDS = 1024
CHECK_SHARE = 20
"""A check is followed by a pause of this many times its duration: at most 5 % of the time goes into checks."""


class State(enum.Enum):
    AWAY = "not connected"
    DUMPING = "reading the flows of the switch"
    STEADY = "in line"
    METERING = "setting meters"
    STAGING = "sending a bundle"
    COMMITTING = "committing a bundle"
    CHANGING = "sending a change"
    DISCARDING = "taking back a refused bundle"
    RESTING = "waiting before the next attempt"
    STANDBY = "another controller is its master"
    CLAIMING = "asking the switch to be its master"


Item = tuple[EntryKey, EntryValue | None]
"""A part of a bundle: add the entry, or replace what has its key; with None: remove exactly this entry."""


# ----------------------------------------------------------------------------------------------------------- outputs


@dataclass(frozen=True, slots=True)
class RequestPorts:
    xid: int


@dataclass(frozen=True, slots=True)
class RequestDump:
    xid: int


@dataclass(frozen=True, slots=True)
class RequestDescription:
    xid: int


@dataclass(frozen=True, slots=True)
class RequestRole:
    """Ask to be the switch's master, or to be one that only reads."""

    xid: int
    master: bool
    generation: int


@dataclass(frozen=True, slots=True)
class Watch:
    """Ask the switch to tell when somebody else changes a flow."""

    xid: int


MeterItem = tuple[EntryKey, EntryValue | None, bool]
"""A meter, its setting (None: delete it), and whether it is there already."""


@dataclass(frozen=True, slots=True)
class SetMeters:
    """Send every item under its own transaction id, then a barrier."""

    first_xid: int
    items: tuple[MeterItem, ...]
    barrier: int


@dataclass(frozen=True, slots=True)
class Stage:
    """Open the bundle, put every item into it under its own transaction id, then a barrier. Do not commit it, unless
    there is a transaction id to do that under, before the barrier."""

    bundle: int
    open_xid: int
    first_xid: int
    items: tuple[Item, ...]
    barrier: int
    commit_xid: int | None = None


@dataclass(frozen=True, slots=True)
class Single:
    """Send this one item and a barrier, without a bundle: it is taken or refused as a whole."""

    xid: int
    item: Item
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
    """Something an administrator should know; with a kind it is an event."""

    text: str
    serious: bool = False
    kind: Kind | None = None


@dataclass(frozen=True, slots=True)
class Disconnect:
    """The conversation has broken down: close the connection; the switch comes back and is read anew."""

    reason: str


Output = (
    RequestPorts
    | RequestDump
    | RequestDescription
    | RequestRole
    | Watch
    | SetMeters
    | Stage
    | Single
    | Commit
    | Discard
    | Settle
    | PortsChanged
    | Notice
    | Disconnect
)


# ---------------------------------------------------------------------------------------------------------- requests


@dataclass(frozen=True, slots=True)
class _Replace:
    ticket: TicketId
    entries: Mapping[EntryKey, EntryValue]


@dataclass(frozen=True, slots=True)
class _Delta:
    ticket: TicketId
    add: Mapping[EntryKey, EntryValue]
    remove: tuple[EntryKey, ...]


_Request = _Replace | _Delta


@dataclass(slots=True)
class _Flight:
    """A bundle, or a single change, under way and what it would make true."""

    bundle: int
    requests: int
    """How many requests from the front of the queue it carries."""
    catches_up: bool
    """It also carries what was missing or stale when the switch was read."""
    whole: dict[EntryKey, EntryValue] | None
    """The new base, or None if only `overlay` changes it."""
    overlay: dict[EntryKey, EntryValue | None]
    items: tuple[Item, ...] = ()
    """Flows: parts of the bundle."""
    meters: tuple[tuple[EntryKey, EntryValue, EntryValue | None], ...] = ()
    """New and altered meters, what they shall be and what they were; set before the bundle."""
    stale: tuple[EntryKey, ...] = ()
    """Meters that go when the bundle is confirmed."""
    first_xid: int = 0
    control_xids: dict[int, str] = field(default_factory=dict)
    barrier: int = 0
    item_error: str | None = None
    control_error: str | None = None
    committed: bool = False
    looks: int = 0
    """What its items look like (`_looks`)."""
    at_once: bool = False
    """Its commit was sent with it."""

    @property
    def keys(self) -> list[EntryKey]:
        """Everything that it changes."""
        return [*(key for key, _ in self.items), *(key for key, _, _ in self.meters), *self.stale]

    @property
    def refusal(self) -> str | None:
        """Why the switch refused it; what names one change tells more than what names the bundle."""
        return self.item_error or self.control_error


@dataclass(slots=True)
class _Seen:
    """What a reading of the switch has shown beside Lark's own entries in the controller's tables."""

    foreign: dict[EntryKey, EntryValue] = field(default_factory=dict)
    lane: int = 0
    """Lark's entries in table 0."""
    strangers: list[Item] = field(default_factory=list)
    """Others' entries in table 0."""


@dataclass(slots=True)
class _Dump:
    """A reading of the flows at the beginning, so far. What was expected is kept once, not a second time as shown."""

    expected: Mapping[EntryKey, EntryValue]
    """What the switch will most probably show: only a hint, to tell familiar bytes from those to look into."""
    missing: set[EntryKey]
    other: dict[EntryKey, EntryValue] = field(default_factory=dict)

    def shown(self) -> Mapping[EntryKey, EntryValue]:
        if not self.missing and not self.other:
            return self.expected
        return {key: value for key, value in self.expected.items() if key not in self.missing} | self.other


@dataclass(slots=True)
class _Check:
    """A reading of the flows while the conversation goes on."""

    xid: int
    began: float
    wake: float
    touched: set[EntryKey]
    """Keys of changes that were under way at any moment of it."""
    missing: set[EntryKey]
    """Of what it should show, what it has not shown yet."""
    differs: dict[EntryKey, EntryValue | None] = field(default_factory=dict)
    """What the switch shows where it does not show what it should; None: nothing."""
    seen: _Seen = field(default_factory=_Seen)


@dataclass(slots=True)
class Counts:
    """What was sent so far, for tests and metrics."""

    dumps: int = 0
    checks: int = 0
    repaired: int = 0
    """Entries found changed by somebody else on a running switch."""
    emptied: int = 0
    """How often the switch came back without any of the entries that it had: it has restarted, and counts from 0."""
    bundles: int = 0
    flow_mods: int = 0
    meter_mods: int = 0
    settings: dict[int, int] = field(default_factory=dict)
    """How often each meter that there is was made or altered, as confirmed: what it has counted is of since then."""
    commits: int = 0
    refused: int = 0


def is_larks(value: EntryValue) -> bool:
    """Does the cookie carry Lark's mark? An entry of a feature this version does not know is Lark's all the same."""
    return value[0] == cookies.MARK


def describe(key: EntryKey, value: EntryValue | None) -> str:
    """An entry with its cookie and what it does, or only its key, in one line for a message."""
    if encode.is_meter(key):
        return f"meter={encode.key_meter(key):#x}" + ("" if value is None else f" {encode.meter_text(value)}")
    matches = decode.key_match(key)
    parts = [f"table={encode.key_table(key)}", f"priority={encode.key_priority(key)}"]
    if matches is None:
        parts.append(f"match={encode.key_match(key).hex()}")
    else:
        parts += [f"{m.field}={m.value:#x}" + ("" if m.mask is None else f"/{m.mask:#x}") for m in matches]
    if value is None:
        return ",".join(parts)
    return ",".join(parts) + f" cookie={encode.value_cookie(value):#x} actions={_does(value)}"


def _does(value: EntryValue) -> str:
    actions = decode.value_actions(value)
    if actions is None:
        return f"instructions {encode.value_instructions(value)[:40].hex()}, which Lark never writes"
    return ",".join(action_text(one, numeric=True) for one in actions) or "drop"


def _item(key: EntryKey, value: EntryValue | None) -> str:
    return f"{'remove' if value is None else 'add'} {describe(key, value)}"


class SwitchMachine:
    """One switch. Every input returns the outputs it causes, in the order in which to carry them out."""

    def __init__(
        self,
        *,
        patience: float = 10.0,
        retry: float = 1.0,
        retry_most: float = 30.0,
        check_watched: float = 60.0,
        check_blind: float = 5.0,
        check_soon: float = 0.05,
        lane_patience: float = 5.0,
    ) -> None:
        """`patience`: seconds without any progress before the connection is given up; `retry`: pause before a state
        that the switch refused is tried again, doubled each time up to `retry_most`; `check_…`: seconds between checks
        of a switch that tells of others' changes, of one that cannot, and from such a change to the check;
        `lane_patience`: seconds for which a bridge whose table 0 was never there may lack it before that is told."""
        self.state = State.AWAY
        self.counts = Counts()
        self.activity = ""
        self._patience = patience
        self._retry = retry
        self._retry_most = retry_most
        self._check_watched = check_watched
        self._check_blind = check_blind
        self._check_soon = check_soon
        self._lane_patience = lane_patience
        self._pause = retry
        self._base: dict[EntryKey, EntryValue] | None = None
        self._queue: list[_Request] = []
        self._alone = 0
        # What the switch showed, as long as it may differ from base; None once the two are known to be the same.
        self._actual: Mapping[EntryKey, EntryValue] | None = None
        self._reading: _Dump | None = None
        self._seen = _Seen()
        self._flight: _Flight | None = None
        self._check: _Check | None = None
        # What a check found to differ, until it is put right.
        self._drift: dict[EntryKey, EntryValue | None] = {}
        self._check_at: float | None = None
        self._check_not_before = 0.0
        self._suspicious = False
        self._watched = True
        self._faults: dict[str, str] = {}
        self._foreign = 0
        # Whether table 0 ever held the agent's flows, and since when it is known not to; that fault is not told yet.
        self._lane_seen = False
        self._lane_since: float | None = None
        self._dump_xid = 0
        self._ports_xid = 0
        self._description_xid = 0
        self._watch_xid = 0
        self._role_xid = 0
        # Whether we are the switch's master, and the generation; None: there is no other controller.
        self._role: tuple[bool, int] | None = None
        self.outranked = False
        """The switch knows a newer master than this controller, and has refused it."""
        self._ports: dict[str, int] = {}
        self._ports_parts: dict[str, int] = {}
        self._ports_known = False
        self._taken = 0
        """What items that the switch has taken looked like."""
        self._trusted = True
        """The switch has not refused yet what looked like what it had taken."""
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
        return (
            self.state is State.STEADY
            and self._base is not None
            and self._actual is None
            and not self._queue
            and not self._drift
        )

    @property
    def detail(self) -> str:
        """What is under way and what is wrong, in a sentence each; empty when all is well."""
        return "; ".join([*([self.activity] if self.activity else []), *self._faults.values()])

    @property
    def faults(self) -> Collection[str]:
        """What is wrong with the bridge itself, as it was last seen."""
        return self._faults.values()

    @property
    def foreign(self) -> int:
        """Flows of others, in table 0 and in the controller's tables, as last seen."""
        return self._foreign

    @property
    def bypassed(self) -> bool:
        """Somebody else's flows are in table 0: what they take goes past the policy."""
        return "strangers" in self._faults

    @property
    def ports(self) -> Mapping[str, int]:
        return self._ports

    @property
    def flows(self) -> int:
        """Lark's entries on the switch, as far as known."""
        if self._actual is not None:
            return len(self._actual)
        return len(self._base or {}) if self.connected else 0

    @property
    def desired(self) -> Mapping[EntryKey, EntryValue] | None:
        """What is wanted and was accepted; None before it was ever said."""
        return self._base

    @property
    def waiting(self) -> int:
        """Requests that are not settled."""
        return len(self._queue)

    @property
    def wake(self) -> float | None:
        """When `tick` must be called at the latest; None: no need."""
        one, other = self._wake, self._check_at if self._check is None else self._check.wake
        if one is None or other is None:
            return other if one is None else one
        return min(one, other)

    # ----------------------------------------------------------------------------------------------- inputs: wishes

    def set_desired(self, ticket: TicketId, entries: Mapping[EntryKey, EntryValue], now: float) -> list[Output]:
        """The whole truth is this. The mapping is kept, not copied: it must not change any more."""
        bad = self._not_ours or _inadmissible(entries)
        if bad is not None:
            return [Settle(ticket, bad)]
        # An earlier whole truth and what waits behind it are still owed an answer, so they stay in the queue.
        self._queue.append(_Replace(ticket, entries))
        return self._advance(now)

    def change(
        self, ticket: TicketId, add: Mapping[EntryKey, EntryValue], remove: Sequence[EntryKey], now: float
    ) -> list[Output]:
        """Change the truth: removals first, so that a key in both is replaced."""
        bad = self._not_ours or _inadmissible(add)
        if bad is None and any(encode.key_table(key) == HOST_LANE_TABLE for key in remove):
            bad = "table 0 belongs to the agent"
        if bad is None and self._base is None and not any(isinstance(one, _Replace) for one in self._queue):
            bad = "a change before the whole truth of this bridge was said (set_desired)"
        if bad is not None:
            return [Settle(ticket, bad)]
        self._queue.append(_Delta(ticket, add, tuple(remove)))
        return self._advance(now)

    def set_role(self, *, master: bool, generation: int, now: float) -> list[Output]:
        """Be the switch's master from now on, or leave it to another controller."""
        self._role = (master, generation)
        out: list[Output] = []
        if not master:
            out += [Settle(request.ticket, State.STANDBY.value) for request in self._queue]
            self._queue = []
            self._base = None
            # Whoever reads its flows from now on says what is wrong with them.
            for name in ("foreign", "strangers", "lane"):
                self._faults.pop(name, None)
            self._foreign = 0
            self._lane_since = None
        if self.state is State.AWAY:
            return out
        self._forget()
        return out + self._ask_role(now)

    @property
    def _not_ours(self) -> str | None:
        return State.STANDBY.value if self._role is not None and not self._role[0] else None

    def _ask_role(self, now: float) -> list[Output]:
        assert self._role is not None
        master, generation = self._role
        self.state = State.CLAIMING if master else State.STANDBY
        self.activity = self.state.value
        self._wake = now + self._patience if master else None
        self._role_xid = self._next_xid()
        self.outranked = False
        return [RequestRole(self._role_xid, master, generation)]

    # ------------------------------------------------------------------------------------- inputs: from the switch

    def connected_to(self, now: float) -> list[Output]:
        """The switch is there: read what it is, its ports and its flows."""
        self._reset()
        self._ports = {}
        self._ports_xid = self._next_xid()
        self._description_xid = self._next_xid()
        first: list[Output] = [RequestPorts(self._ports_xid), RequestDescription(self._description_xid)]
        return first + (self._begin(now) if self._role is None else self._ask_role(now))

    def role_reply(self, xid: int, now: float) -> list[Output]:
        """The switch has taken the role that was asked for."""
        return self._begin(now) if self.state is State.CLAIMING and xid == self._role_xid else []

    def _begin(self, now: float) -> list[Output]:
        # Before the flows are read: what changes after that is told.
        self._watch_xid = self._next_xid()
        return [Watch(self._watch_xid), *self._dump(now)]

    def lost(self) -> list[Output]:
        """The connection is gone. What was under way is undecided; the next dump decides it."""
        self._reset()
        return []

    def described(self, xid: int, description: str) -> list[Output]:
        """The answer to RequestDescription."""
        if self.state is State.AWAY or xid != self._description_xid:
            return []
        wrong = (
            None
            if description == PREPARED
            else "it was not prepared for Lark: whether it has fail_mode=secure and disable-in-band=true is not known "
            "(run `lark-agent prepare-bridge` on its host)"
        )
        return self._fault("prepared", wrong)

    def others_changed(self, now: float) -> list[Output]:
        """The switch says that somebody else changed a flow: look soon."""
        if self.state is State.AWAY:
            return []
        if self._check is not None or self._check_at is None:
            self._suspicious = True
        else:
            self._check_at = min(self._check_at, max(now + self._check_soon, self._check_not_before))
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

    def dump_part(
        self, xid: int, entries: Iterable[tuple[EntryKey, EntryValue]], more: bool, now: float
    ) -> list[Output]:
        """A part of the answer to RequestDump, as `decode.flow_entries` cut it; the last one has `more` false."""
        if self._check is not None and xid == self._check.xid:
            return self._check_part(self._check, entries, more, now)
        if self.state is not State.DUMPING or xid != self._dump_xid:
            return []
        self._wake = now + self._patience
        if self._reading is None:
            expected = self._expected()
            self._reading = _Dump(expected, set(expected))
        expected, missing, other = self._reading.expected, self._reading.missing, self._reading.other
        for key, value in entries:
            if expected.get(key) != value:
                if not _ours(key, value, self._seen):
                    continue
                key, value = decode.canonical(key, value)
                if expected.get(key) != value:
                    missing.discard(key)
                    other[key] = value
                    continue
            missing.discard(key)
        if more:
            return []
        self._actual, self._reading = self._reading.shown(), None
        self.state = State.STEADY
        self._wake = None
        if self._base and not self._actual:
            self.counts.emptied += 1
        self._next_check(now, 0.0)
        return self._judge(self._seen, now) + self._advance(now)

    def barrier(self, xid: int, now: float) -> list[Output]:
        """A barrier was answered."""
        flight = self._flight
        if flight is None or xid != flight.barrier:
            return []
        if self.state is State.METERING:
            return self._metered(flight, now)
        if self.state is State.STAGING:
            return self._staged(flight, now)
        if self.state in (State.COMMITTING, State.CHANGING):
            if flight.committed and flight.refusal is None:
                return self._realised(flight, now)
            if flight.committed and flight.at_once:
                return self._half_taken(flight, now)
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
        if xid in (self._dump_xid, self._ports_xid) or (self._check is not None and xid == self._check.xid):
            return [Disconnect(f"the switch refused to be read: {text}")]
        if xid == self._description_xid:
            return self.described(xid, "")
        if xid == self._role_xid:
            if self.state is not State.CLAIMING:
                return [Notice(f"does not take this controller as one that only reads: {text}")]
            self.state = State.STANDBY
            self._wake = None
            self.outranked = True
            self.activity = f"the switch does not take this controller as its master: {text}"
            return [Notice(self.activity, serious=True)]
        if xid == self._watch_xid:
            self._watched = False
            if self._check_at is not None:
                self._check_at = min(self._check_at, now + self._check_blind)
            return [
                Notice(f"cannot tell of changes that others make ({text}): its flows are read every {self._every:g} s")
            ]
        flight = self._flight
        if flight is not None:
            at = xid - flight.first_xid
            parts = (
                flight.items if self.state is not State.METERING else [(key, value) for key, value, _ in flight.meters]
            )
            if 0 <= at < len(parts):
                if flight.item_error is None:
                    flight.item_error = f"{text}: {_item(*parts[at])}"
                return []
            if xid in flight.control_xids:
                if flight.control_error is None:
                    flight.control_error = f"{text}: {flight.control_xids[xid]}"
                return []
        return [Notice(f"error for a message that is not known (any more), transaction {xid:#x}: {text}")]

    def tick(self, now: float) -> list[Output]:
        """Time has passed."""
        if self._wake is not None and now >= self._wake:
            if self.state is State.RESTING:
                return self._dump(now)
            self._wake = None
            return [Disconnect(f"no answer while {self.state.value}")]
        if self._check is not None:
            if now >= self._check.wake:
                self._check = None
                return [Disconnect("no answer while checking its flows")]
        elif self._check_at is not None and now >= self._check_at:
            return self._begin_check(now)
        return []

    # ---------------------------------------------------------------------------------------------------- the check

    @property
    def _every(self) -> float:
        return self._check_watched if self._watched else self._check_blind

    def _next_check(self, now: float, took: float) -> None:
        self._check_not_before = now + CHECK_SHARE * took
        self._check_at = max(now + (self._check_soon if self._suspicious else self._every), self._check_not_before)
        self._suspicious = False

    def _begin_check(self, now: float) -> list[Output]:
        if self._actual is not None:
            if self.state is State.STEADY:
                # Nothing was wanted of it yet: what it showed when it connected may not be true any more.
                return self._dump(now)
            self._suspicious = True
            self._next_check(now, 0.0)
            return []
        touched = set() if self._flight is None else set(self._flight.keys)
        self._check = _Check(self._next_xid(), now, now + self._patience, touched, set(self._base or ()))
        self._check_at = None
        self.counts.checks += 1
        return [RequestDump(self._check.xid)]

    def _check_part(
        self, check: _Check, entries: Iterable[tuple[EntryKey, EntryValue]], more: bool, now: float
    ) -> list[Output]:
        check.wake = now + self._patience
        base = self._base or {}
        for key, value in entries:
            if base.get(key) != value:
                if not _ours(key, value, check.seen):
                    continue
                key, value = decode.canonical(key, value)
                if base.get(key) != value:
                    check.differs[key] = value
                    continue
            check.missing.discard(key)
        if more:
            return []
        self._check = None
        self._next_check(now, now - check.began)
        check.differs.update((key, None) for key in check.missing if key in base and key not in check.differs)
        for key in check.touched:
            check.differs.pop(key, None)
        out = self._judge(check.seen, now)
        if not check.differs:
            return out
        self._drift |= check.differs
        self.counts.repaired += len(check.differs)
        return [*out, Notice(self._damage(check.differs), True, Kind.FLOWS_REPAIRED), *self._advance(now)]

    def _damage(self, differs: Mapping[EntryKey, EntryValue | None]) -> str:
        base = self._base or {}

        def how(key: EntryKey) -> str:
            return "gone" if differs[key] is None else "added" if key not in base else "altered"

        counts = {"meters": Counter[str](), "flows": Counter[str]()}
        for key in differs:
            counts["meters" if encode.is_meter(key) else "flows"][how(key)] += 1
        hit = {name: count for name, count in counts.items() if count}
        told = "; ".join(
            f"{name} {count['gone']} gone, {count['altered']} altered, {count['added']} added"
            for name, count in hit.items()
        )
        # With the meters go the flows that use them: the meter is what was deleted.
        key = next((key for key in differs if encode.is_meter(key)), next(iter(differs)))
        return (
            f"somebody else changed {' and '.join(hit)} of Lark's, which are put right: {told}; "
            f"for example {how(key)}: {describe(key, base.get(key, differs[key]))}"
        )

    def _judge(self, seen: _Seen, now: float) -> list[Output]:
        """What a complete reading says about the bridge itself."""
        foreign = strangers = lane = None
        if seen.foreign:
            example = describe(*next(iter(seen.foreign.items())))
            count = len(seen.foreign)
            foreign = (
                f"{count} flows in the controller's tables are not Lark's and stay as they are, for example {example}"
            )
        if seen.strangers:
            example = describe(*seen.strangers[0])
            strangers = (
                f"{len(seen.strangers)} flows in table 0 are not the agent's: what they take never comes to the "
                f"policy, for example {example}"
            )
        if not seen.lane:
            lane = "table 0 holds no flow of the agent's: nothing leads to the policy"
        self._foreign = len(seen.foreign) + len(seen.strangers)
        return self._fault("foreign", foreign) + self._fault("strangers", strangers) + self._lane(lane, now)

    def _lane(self, wrong: str | None, now: float) -> list[Output]:
        """A bridge that is only being set up has no table 0 for a moment: shown at once, told if it stays so."""
        if wrong is None:
            waited, self._lane_since, self._lane_seen = self._lane_since is not None, None, True
            if waited:
                self._faults.pop("lane", None)
            return self._fault("lane", None)
        if self._lane_seen or ("lane" in self._faults and self._lane_since is None):
            return self._fault("lane", wrong)
        if self._lane_since is None:
            self._lane_since = now
        due = self._lane_since + self._lane_patience
        self._faults["lane"] = wrong
        if now < due:
            self._check_at = due if self._check_at is None else min(self._check_at, due)
            return []
        self._lane_since = None
        return [Notice(wrong, True, FAULTS["lane"])]

    def _fault(self, name: str, text: str | None) -> list[Output]:
        before = self._faults.get(name)
        if text == before:
            return []
        if text is None:
            del self._faults[name]
            return [Notice(MENDED[name], kind=Kind.BRIDGE_MENDED)]
        self._faults[name] = text
        return [Notice(text, True, FAULTS[name])]

    # ------------------------------------------------------------------------------------------------------- inside

    def _reset(self) -> None:
        self._forget()
        self.state = State.AWAY
        self.activity = "not connected"
        self._ports_known = False
        self._ports_parts = {}

    def _forget(self) -> None:
        """What was under way or known of the flows is void."""
        self._flight = None
        self._actual = None
        self._reading = None
        self._seen = _Seen()
        self._check = None
        self._check_at = None
        self._check_not_before = 0.0
        self._suspicious = False
        self._watched = True
        self._drift = {}
        self._alone = 0
        self._taken = 0
        self._trusted = True
        self._pause = self._retry
        self._wake = None

    def _expected(self) -> Mapping[EntryKey, EntryValue]:
        waiting = (request.entries for request in reversed(self._queue) if isinstance(request, _Replace))
        return next(waiting, self._base or {})

    def _next_xid(self, count: int = 1) -> int:
        """The first of `count` transaction ids in a row."""
        if self._xid + count >= XID_LIMIT:
            self._xid = 0
        first = self._xid + 1
        self._xid += count
        return first

    def _dump(self, now: float) -> list[Output]:
        self.state = State.DUMPING
        self.activity = State.DUMPING.value
        self._actual = {}
        self._reading = None
        self._seen = _Seen()
        self._check = None
        self._check_at = None
        self._drift = {}
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
                self.activity = "nothing was said yet about what this bridge shall hold"
                return out
            if not catches_up and not self._queue and not self._drift:
                self.activity = ""
                return out
            if self._drift:
                requests = 0
            elif not self._alone:
                requests = len(self._queue)
            elif catches_up and self._base is not None:
                requests = 0
            else:
                requests = 1
            flight = self._plan(requests)
            if not flight.keys:
                out += self._adopt(flight)
                continue
            out += self._send(flight, now)
        return out

    def _plan(self, requests: int) -> _Flight:
        whole: dict[EntryKey, EntryValue] | None = None
        overlay: dict[EntryKey, EntryValue | None] = {}
        for request in self._queue[:requests]:
            if isinstance(request, _Replace):
                whole, overlay = dict(request.entries), {}
                continue
            overlay.update(dict.fromkeys(request.remove))
            overlay.update(request.add)
        catches_up = self._actual is not None
        base = self._base or {}
        puts: list[Item]
        takes: list[Item]
        if self._drift:
            wanted = [(key, base.get(key)) for key in self._drift]
            puts = [item for item in wanted if item[1] is not None]
            takes = [item for item in wanted if item[1] is None]
        elif whole is None and not catches_up:
            # The common case, a job comes or goes: nothing but its own flows is looked at.
            puts = [item for item in overlay.items() if item[1] is not None and item[1] != base.get(item[0])]
            takes = [(key, None) for key, value in overlay.items() if value is None and key in base]
        else:
            target = dict(base) if whole is None else whole
            for key, value in overlay.items():
                if value is None:
                    target.pop(key, None)
                else:
                    target[key] = value
            actual = base if self._actual is None else self._actual
            puts = [item for item in target.items() if actual.get(item[0]) != item[1]]
            takes = [(key, None) for key in actual if key not in target]
            whole, overlay = target, {}
        flight = _Flight(self._bundle, requests, catches_up, whole, overlay, (*puts, *takes))
        if any(encode.is_meter(key) for key, _ in flight.items):
            was = self._drift if self._drift else base if self._actual is None else self._actual
            flight.items = tuple(item for item in flight.items if not encode.is_meter(item[0]))
            flight.meters = tuple(
                (key, value, was.get(key)) for key, value in puts if value is not None and encode.is_meter(key)
            )
            flight.stale = tuple(key for key, _ in takes if encode.is_meter(key))
        return flight

    def _send(self, flight: _Flight, now: float) -> list[Output]:
        self._flight = flight
        if self._check is not None:
            self._check.touched.update(flight.keys)
        if not flight.meters:
            return self._stage(flight, now)
        flight.first_xid = self._next_xid(len(flight.meters))
        flight.barrier = self._next_xid()
        self.state = State.METERING
        self.activity = f"setting {len(flight.meters)} meters"
        self._wait(flight, now)
        self.counts.meter_mods += len(flight.meters)
        items = tuple((key, value, was is not None) for key, value, was in flight.meters)
        return [SetMeters(flight.first_xid, items, flight.barrier)]

    def _metered(self, flight: _Flight, now: float) -> list[Output]:
        self._have_set((key, value) for key, value, _ in flight.meters)
        return self._refused(flight, now) if flight.refusal is not None else self._stage(flight, now)

    def _stage(self, flight: _Flight, now: float) -> list[Output]:
        if not flight.items:
            return self._realised(flight, now)
        alone = len(flight.items) == 1 and not flight.meters and not flight.stale
        if not alone:
            self._bundle = (self._bundle + 1) & 0xFFFF_FFFF
            flight.bundle = self._bundle
            self.counts.bundles += 1
        open_xid = 0 if alone else self._next_xid()
        flight.first_xid = self._next_xid(len(flight.items))
        flight.barrier = self._next_xid()
        flight.control_xids = {} if alone else {open_xid: "opening a bundle"}
        flight.committed = alone
        self.state = State.CHANGING if alone else State.STAGING
        commit_xid: int | None = None
        if not alone and not self._drift and len(flight.items) <= FAMILIAR_MOST:
            flight.looks = _looks(flight.items)
            if flight.looks and self._trusted and not self._alone and not flight.looks & ~self._taken:
                flight.at_once = True
                commit_xid = self._next_xid()
                flight.control_xids[commit_xid] = "committing a bundle"
                self.state = State.COMMITTING
                self.counts.commits += 1
        self.activity = f"sending {len(flight.items)} changes"
        self._wait(flight, now)
        self.counts.flow_mods += len(flight.items)
        out: list[Output] = []
        replaced = [item for item in flight.items if item[0] in self._seen.foreign] if self._seen.foreign else []
        if replaced:
            out.append(
                Notice(
                    f"replacing {len(replaced)} foreign flows in the way: {_item(*replaced[0])}",
                    True,
                    Kind.FLOWS_REPAIRED,
                )
            )
        if alone:
            out.append(Single(flight.first_xid, flight.items[0], flight.barrier))
        else:
            out.append(Stage(flight.bundle, open_xid, flight.first_xid, flight.items, flight.barrier, commit_xid))
        return out

    def _wait(self, flight: _Flight, now: float) -> None:
        # A switch takes well over 5,000 changes a second; a large bundle is given that much more time.
        self._wake = now + self._patience + (len(flight.items) + len(flight.meters)) / 5000

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
        self._taken |= flight.looks
        # No flow uses them any more; whatever takes their numbers comes after them on the same connection.
        return self._set_meters([(key, None, True) for key in flight.stale]) + self._adopt(flight) + self._advance(now)

    def _set_meters(self, items: Sequence[MeterItem]) -> list[Output]:
        """Changes of meters that nobody waits for."""
        if not items:
            return []
        self.counts.meter_mods += len(items)
        self._have_set((key, value) for key, value, _ in items)
        return [SetMeters(self._next_xid(len(items)), tuple(items), self._next_xid())]

    def _have_set(self, meters: Iterable[tuple[EntryKey, EntryValue | None]]) -> None:
        settings = self.counts.settings
        for key, value in meters:
            number = encode.key_meter(key)
            if value is None:
                settings.pop(number, None)
            else:
                settings[number] = settings.get(number, 0) + 1

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
        for key in flight.keys if self._drift else ():
            self._drift.pop(key, None)
        if flight.catches_up:
            self._actual = None
        self._seen.foreign = {}
        settled, self._queue = self._queue[: flight.requests], self._queue[flight.requests :]
        self._alone = max(0, self._alone - flight.requests)
        return [Settle(request.ticket, None) for request in settled]

    def _refused(self, flight: _Flight, now: float) -> list[Output]:
        self._flight = None
        self._wake = None
        self.state = State.STEADY
        self.counts.refused += 1
        reason = flight.refusal or "the switch did not confirm the bundle"
        return self._set_meters([(key, was, True) for key, _, was in flight.meters]) + self._go_on(flight, reason, now)

    def _half_taken(self, flight: _Flight, now: float) -> list[Output]:
        """It has refused a part, and committed the rest: what it holds now only it knows."""
        self._flight = None
        self.counts.refused += 1
        self._trusted = False
        self._alone = max(flight.requests, 1)
        text = f"refused a part of a change, and took the rest; its flows are read anew: {flight.refusal}"
        return [Notice(text, serious=True), *self._dump(now)]

    def _go_on(self, flight: _Flight, reason: str, now: float) -> list[Output]:
        """After a refusal."""
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
        self._check = None
        self._check_at = None
        self.activity = f"the switch refuses what it held before: {reason}"
        self._wake = now + self._pause
        self._pause = min(2 * self._pause, self._retry_most)
        return [Notice(self.activity, True, Kind.FLOWS_REFUSED)]


def _ours(key: EntryKey, value: EntryValue, seen: _Seen) -> bool:
    """Is this entry one of Lark's in the controller's tables? What is not is noted down."""
    if encode.is_meter(key):
        return is_larks(value)
    if encode.key_table(key) == HOST_LANE_TABLE:
        if is_larks(value):
            seen.lane += 1
        else:
            seen.strangers.append((key, value))
        return False
    if not is_larks(value):
        seen.foreign[decode.canonical(key, value)[0]] = value
        return False
    return True


def _looks(items: Iterable[Item]) -> int:
    """A bit for each kind of item: tables, priorities and lengths tell which fields and actions there are. 0: there
    are too many kinds to tell."""
    found = 0
    for key, value in items:
        kind = (key[:8], len(key), -1 if value is None else len(value))
        bit = _kinds.get(kind)
        if bit is None:
            if len(_kinds) >= KINDS:
                return 0
            bit = _kinds[kind] = 1 << len(_kinds)
        found |= bit
    return found


_kinds: dict[tuple[bytes, int, int], int] = {}
"""The pipeline makes a few dozen of them."""


def _inadmissible(entries: Mapping[EntryKey, EntryValue]) -> str | None:
    """Why these entries cannot be wanted of the controller's tables, or None."""
    for key, value in entries.items():
        if key[0] == HOST_LANE_TABLE:
            return f"table 0 belongs to the agent: {_item(key, value)}"
        if value[0] != cookies.MARK:
            return f"a cookie without Lark's mark: {_item(key, value)}"
    return None


def summary(outputs: Iterable[Output]) -> Counter[str]:
    """How many outputs of each kind; for tests and logs."""
    return Counter(type(one).__name__ for one in outputs)
