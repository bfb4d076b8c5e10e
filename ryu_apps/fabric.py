"""What the controller needs of the switches: the `Fabric` protocol, its values, and `FakeFabric` for tests.

`ryu_apps.app.SwitchApp` is the real one. This module imports no framework, so that everything above the switches can be
tested in an ordinary process. Deadlines are values of `time.monotonic()`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ryu_apps.openflow import encode
from ryu_apps.openflow.delta import Delta, DeltaKeys
from ryu_apps.openflow.flows import Cookie, Counted, Flow, FlowKey, FlowStats, MeterCounted
from ryu_apps.openflow.meters import MeterRule, Rule, RuleKey
from ryu_apps.openflow.stencils import entries

OnPorts = Callable[[str, Mapping[str, int]], None]
"""Called with a bridge and all its ports, name to number, whenever they change and once after each connect."""
OnConnected = Callable[[str], None]
"""Called with a bridge when its switch has connected, before its flows are brought in line."""


class FabricError(Exception):
    """A switch could not be asked: not connected, or no answer in time. The text names the bridge."""


class Outcome(enum.Enum):
    """What became of a change."""

    REALISED = "realised"  # every bridge entry confirmed by a barrier
    REFUSED = "refused"  # the switch refused it; nothing of it is in force and it is forgotten
    TIMED_OUT = "timed-out"  # not yet known; it stays wanted until it is taken back


@dataclass(frozen=True, slots=True)
class TicketResult:
    outcome: Outcome
    reason: str = ""

    @property
    def realised(self) -> bool:
        return self.outcome is Outcome.REALISED


REALISED = TicketResult(Outcome.REALISED)
_AWAY = TicketResult(Outcome.REFUSED, "not connected")
_NOT_MASTER = TicketResult(Outcome.REFUSED, "another controller is its master")


class Ticket(Protocol):
    """The receipt for one change to one bridge."""

    def wait(self, deadline: float) -> TicketResult:
        """Wait (green) until the change is settled or `deadline` (`time.monotonic()`) has passed."""

    def result(self) -> TicketResult | None:
        """The result if it is settled; never waits."""


@dataclass(frozen=True, slots=True)
class BridgeState:
    """One bridge as the fabric sees it now."""

    bridge: str
    datapath_id: int
    connected: bool
    converged: bool
    """Everything wanted is confirmed by the switch and nothing is under way."""
    flows: int
    """Lark's entries on the switch, as far as known; 0 while it is not connected."""
    ports: Mapping[str, int] = field(default_factory=dict)
    detail: str = ""
    """What is wrong or under way, in a sentence; empty when all is well."""
    outranked: bool = False
    """The switch refuses this controller as its master: it knows one of a higher generation."""
    meters: bool = True
    """The switch has meters, as far as known."""
    foreign: int = 0
    """Flows of others, in table 0 and in the controller's tables, as last seen."""
    bypassed: bool = False
    """Some of them are in table 0: what they take goes past the policy."""


@dataclass(frozen=True, slots=True)
class Counts:
    """A part of what a switch has counted. Parts come in the order in which it counted."""

    bridge: str
    emptied: int
    """How often this switch was found to have lost all flows, and its counters with them."""
    entries: Sequence[Counted]


@dataclass(frozen=True, slots=True)
class MeterCounts:
    """The same of meters."""

    bridge: str
    emptied: int
    settings: Mapping[int, int]
    """How often a meter was set before it was asked: an altered one counts from 0, as a new one does."""
    entries: Sequence[MeterCounted]


Tell = Callable[[Counts], None]
TellMeters = Callable[[MeterCounts], None]


class Counting(Protocol):
    """Counters that come in parts, told one by one."""

    def done(self) -> bool:
        """Has the last part come? Never waits. Raises FabricError when no more will come."""

    def finish(self, timeout: float) -> None:
        """Wait (green) for the last part. Raises FabricError."""


class Question(Protocol):
    """Counters that a switch was asked for."""

    def result(self) -> Sequence[Counted] | None:
        """The answer if it has come; never waits. Raises FabricError when none will come."""


class Fabric(Protocol):
    """All bridges under control. An unknown bridge name is a KeyError everywhere: the caller checks names first."""

    def set_desired(self, bridge: str, flows: Mapping[RuleKey, Rule]) -> Ticket:
        """Say the whole truth for a bridge. Before it is said for the first time nothing on the bridge is touched."""

    def change(self, bridge: str, add: Sequence[Rule], remove: Sequence[RuleKey]) -> Ticket:
        """Change that truth, all or nothing. Removals are taken first, so a key in both is replaced."""

    def set_role(self, bridge: str, *, master: bool, generation: int) -> None:
        """Be the bridge's master, or leave it to another controller: then every change to it is refused, also those
        that wait, and what was said of it is forgotten. Never called where there is one controller."""

    def forget_connections(self, bridge: str, zones: Sequence[int]) -> Ticket:
        """Empty these zones of the switch's connection table. Realised: it has. Refused: it did not, or is not here, or
        went before it confirmed, so that nobody knows."""

    def flow_stats(self, bridge: str, cookie: int, mask: int, timeout: float = 5.0) -> list[FlowStats]:
        """Counters of the entries whose cookie equals `cookie` under `mask`. Raises FabricError."""

    def bridge(self, bridge: str) -> BridgeState:
        """One bridge."""

    def connected(self, bridge: str) -> bool:
        """Is its switch connected?"""

    def ask_counts(self, bridge: str, cookie: int, mask: int) -> Question:
        """Ask, and never wait: the switch counts before it takes up what is changed after this call.

        Raises FabricError when the bridge is not connected.
        """

    def count(self, bridge: str, cookie: int, mask: int, tell: Tell, *, gently: bool = False) -> Counting:
        """Ask for counters alone, thousands of them; `tell` is called with each part as it comes, and must not wait.

        `gently`: not while the bridge is being programmed; then FabricError comes with the answer. Raises FabricError
        when the bridge is not connected.
        """

    def count_meters(
        self, bridge: str, numbers: Sequence[int] | None, tell: TellMeters, *, gently: bool = False
    ) -> Counting:
        """The same for the counters of these meters, or of all; FabricError comes where one of them is not there."""

    def bridges(self) -> list[BridgeState]:
        """Every bridge of the site, in the order of their names."""


class FakeTicket:
    """A ticket that never waits: an open one says at once that the time is over."""

    def __init__(self) -> None:
        self._result: TicketResult | None = None

    def settle(self, result: TicketResult) -> None:
        if self._result is None:
            self._result = result

    def wait(self, deadline: float) -> TicketResult:
        return self._result or TicketResult(Outcome.TIMED_OUT, "the fake bridge says nothing")

    def result(self) -> TicketResult | None:
        return self._result


@dataclass(frozen=True, slots=True)
class FakeQuestion:
    """A question that is answered at once, or (None) not yet."""

    found: list[Counted] | None

    def result(self) -> list[Counted] | None:
        return self.found


@dataclass(frozen=True, slots=True)
class FakeCounting:
    """Counters that were told at once, or (why) will not be."""

    failure: str | None = None
    silent: bool = False

    def done(self) -> bool:
        if self.failure is not None:
            raise FabricError(self.failure)
        return not self.silent

    def finish(self, timeout: float) -> None:
        if not self.done():
            raise FabricError(f"no answer within {timeout:g} s")


@dataclass
class FakeBridge:
    """A bridge of `FakeFabric`. Tests read and set these directly."""

    datapath_id: int
    ports: dict[str, int]
    connected: bool = True
    silent: bool = False
    """Connected, but confirms nothing: tickets stay open."""
    refuse: str | None = None
    """When set: the reason for which the next changes are refused."""
    desired: dict[RuleKey, Rule] | None = None
    """The whole truth, as last said; None before it was said."""
    actual: dict[RuleKey, Rule] = field(default_factory=dict)
    """What would be on the switch."""
    flow_mods: int = 0
    """How many flow-mods and meter-mods were sent to the switch so far."""
    counters: dict[FlowKey, tuple[int, int]] = field(default_factory=dict)
    """Packets and bytes that `flow_stats` shall report; (0, 0) where nothing is said."""
    metered: dict[int, tuple[int, int, int, int]] = field(default_factory=dict)
    """The same for meters: packets and bytes that came, and that were dropped."""
    settings: dict[int, int] = field(default_factory=dict)
    """How often each meter was set."""
    waiting: list[FakeTicket] = field(default_factory=list)
    standby: bool = False
    """Another controller is the bridge's master."""
    emptied: int = 0
    forgotten: list[int] = field(default_factory=list)
    """Zones that the switch has emptied."""
    to_forget: list[tuple[FakeTicket, Sequence[int]]] = field(default_factory=list)
    """Zones that it was told to empty while it was silent."""
    asked: list[int] = field(default_factory=list)
    """Masks of the cookies that counters were asked for by."""
    asked_meters: list[Sequence[int] | None] = field(default_factory=list)
    """Which meters counters were asked for of."""
    generations: list[int] = field(default_factory=lambda: [0])
    """The highest generation that the switch has seen; shared like `actual`."""
    bypassed: bool = False
    """Somebody else has written a flow into table 0."""
    generation: int = 0
    """That of this controller's role."""
    has_meters: bool = True
    outranked: bool = False
    """A master of a lower generation asked to be its master, and was refused."""

    @property
    def ours(self) -> bool:
        """Would the switch take a change? Who becomes its master makes a slave of who was it, though that was not told
        and may think otherwise."""
        return not self.standby and self.generation >= self.generations[0]

    @property
    def flows(self) -> dict[FlowKey, Flow]:
        """Of what would be on the switch the flows."""
        return {flow.key: flow for flow in self.actual.values() if isinstance(flow, Flow)}

    @property
    def meters(self) -> dict[int, int]:
        """And the meters that have a rate in kbit/s, with that."""
        return {one.number: one.rate for one in self.actual.values() if isinstance(one, MeterRule) and not one.packets}


class FakeFabric:
    """A fabric without switches, with the promises of the real one, for tests of what stands above it.

    A connected bridge confirms at once and counts the flow-mods that the real one would send. `disconnect`, `silence`
    and `refuse` make it misbehave; `connect` and `speak` bring it in line and settle what was open.
    """

    def __init__(
        self,
        bridges: Mapping[int, str],
        ports: Mapping[str, Mapping[str, int]] | None = None,
        on_ports: OnPorts | None = None,
        on_connected: OnConnected | None = None,
    ) -> None:
        ports = ports or {}
        self.state = {name: FakeBridge(dpid, dict(ports.get(name, {}))) for dpid, name in bridges.items()}
        self._on_ports = on_ports
        self._on_connected = on_connected

    def another(self) -> FakeFabric:
        """The same switches, as a second controller reaches them: their flows, counters and roles are shared."""
        made = FakeFabric({}, None)
        made.state = {
            name: FakeBridge(
                one.datapath_id,
                dict(one.ports),
                actual=one.actual,
                counters=one.counters,
                generations=one.generations,
            )
            for name, one in self.state.items()
        }
        return made

    def notify(self, on_ports: OnPorts | None = None, on_connected: OnConnected | None = None) -> None:
        """Set the callbacks afterwards, for a controller that needs the fabric first."""
        self._on_ports = on_ports
        self._on_connected = on_connected

    # --- the Fabric protocol

    def set_desired(self, bridge: str, flows: Mapping[RuleKey, Rule]) -> FakeTicket:
        return self._want(self.state[bridge], dict(flows))

    def change(self, bridge: str, add: Sequence[Rule], remove: Sequence[RuleKey]) -> FakeTicket:
        state = self.state[bridge]
        if state.desired is None and state.ours:
            ticket = FakeTicket()
            ticket.settle(TicketResult(Outcome.REFUSED, f"{bridge}: a change before set_desired"))
            return ticket
        if isinstance(add, Delta) and isinstance(remove, DeltaKeys):
            # The real one looks only at the bytes.
            assert add.entries() == entries(add), "bytes and values of what comes say the same"
            assert sorted(remove.entries()) == sorted({encode.entry_key(key) for key in remove}), "and of what goes"
        gone = set(remove)
        wanted = {key: flow for key, flow in (state.desired or {}).items() if key not in gone}
        wanted.update((flow.key, flow) for flow in add)
        return self._want(state, wanted)

    def set_role(self, bridge: str, *, master: bool, generation: int) -> None:
        state = self.state[bridge]
        state.outranked = master and generation < state.generations[0]
        state.standby = not master or state.outranked
        if not state.standby:
            state.generations[0] = state.generation = generation
            return
        state.desired = None
        self._refuse_waiting(state)

    def forget_connections(self, bridge: str, zones: Sequence[int]) -> FakeTicket:
        state, ticket = self.state[bridge], FakeTicket()
        if not state.ours:
            ticket.settle(_NOT_MASTER)
        elif state.refuse is not None:
            ticket.settle(TicketResult(Outcome.REFUSED, state.refuse))
        elif not state.connected:
            ticket.settle(_AWAY)
        else:
            state.to_forget.append((ticket, tuple(zones)))
            self._forget(state)
        return ticket

    def flow_stats(self, bridge: str, cookie: int, mask: int, timeout: float = 5.0) -> list[FlowStats]:
        state = self._reached(bridge)
        if state.silent:
            raise FabricError(f"{bridge}: no answer within {timeout} s")
        return self._counted(state, cookie, mask)

    def ask_counts(self, bridge: str, cookie: int, mask: int) -> FakeQuestion:
        state = self._reached(bridge)
        return FakeQuestion(None if state.silent else self._entries(state, cookie, mask))

    def count(self, bridge: str, cookie: int, mask: int, tell: Tell, *, gently: bool = False) -> FakeCounting:
        state = self._reached(bridge)
        busy = self._busy(bridge, gently=gently)
        if busy is not None:
            return busy
        state.asked.append(mask)
        if state.silent:
            return FakeCounting(silent=True)
        entries = self._entries(state, cookie, mask)
        for at in range(0, len(entries), 3):  # in several parts, as a switch with many flows does
            tell(Counts(bridge, state.emptied, entries[at : at + 3]))
        return FakeCounting()

    def count_meters(
        self, bridge: str, numbers: Sequence[int] | None, tell: TellMeters, *, gently: bool = False
    ) -> FakeCounting:
        state = self._reached(bridge)
        busy = self._busy(bridge, gently=gently)
        if busy is not None:
            return busy
        state.asked_meters.append(numbers)
        if state.silent:
            return FakeCounting(silent=True)
        for number in state.meters if numbers is None else numbers:
            if number not in state.meters:
                return FakeCounting(f"{bridge}: unknown meter")
            tell(
                MeterCounts(bridge, state.emptied, state.settings, [(number, *state.metered.get(number, (0, 0, 0, 0)))])
            )
        return FakeCounting()

    def _reached(self, bridge: str) -> FakeBridge:
        if not self.state[bridge].connected:
            raise FabricError(f"{bridge}: not connected")
        return self.state[bridge]

    def _busy(self, bridge: str, *, gently: bool) -> FakeCounting | None:
        if gently and not self.bridge(bridge).converged:
            return FakeCounting(f"{bridge}: is being programmed")
        return None

    def _entries(self, state: FakeBridge, cookie: int, mask: int) -> list[Counted]:
        counted = self._counted(state, cookie, mask)
        return [(one.key.table, one.key.priority, int(one.cookie), one.packets, one.bytes) for one in counted]

    def _counted(self, state: FakeBridge, cookie: int, mask: int) -> list[FlowStats]:
        flows = sorted((flow for flow in state.actual.values() if isinstance(flow, Flow)), key=lambda flow: flow.key)
        return [
            FlowStats(flow.key, Cookie(flow.cookie), *state.counters.get(flow.key, (0, 0)))
            for flow in flows
            if flow.cookie & mask == cookie & mask
        ]

    def bridge(self, bridge: str) -> BridgeState:
        fake = self.state[bridge]
        return BridgeState(
            bridge=bridge,
            datapath_id=fake.datapath_id,
            connected=fake.connected,
            converged=fake.connected and fake.desired is not None and fake.actual == fake.desired,
            flows=len(fake.actual) if fake.connected else 0,
            ports=dict(fake.ports),
            detail="" if fake.connected else "not connected",
            outranked=fake.outranked,
            meters=fake.has_meters,
            foreign=int(fake.bypassed),
            bypassed=fake.bypassed,
        )

    def connected(self, bridge: str) -> bool:
        return self.state[bridge].connected

    def bridges(self) -> list[BridgeState]:
        return [self.bridge(bridge) for bridge in sorted(self.state)]

    # --- what a test does to it

    def connect(self, bridge: str) -> None:
        """The switch connects (again): callbacks first, then it is brought in line."""
        state = self.state[bridge]
        state.connected = True
        if self._on_connected is not None:
            self._on_connected(bridge)
        if self._on_ports is not None:
            self._on_ports(bridge, dict(state.ports))
        self._push(state)

    def disconnect(self, bridge: str, *, forget: bool = False) -> None:
        """The switch goes away; with `forget` it loses its flows meanwhile, as a restart of Open vSwitch does."""
        state = self.state[bridge]
        state.connected = False
        unheard, state.to_forget = state.to_forget, []
        for ticket, _ in unheard:
            ticket.settle(_AWAY)
        if forget:
            state.emptied += bool(state.actual)
            state.actual.clear()
            state.counters.clear()
            state.metered.clear()

    def silence(self, bridge: str) -> None:
        """From now on the switch confirms nothing."""
        self.state[bridge].silent = True

    def speak(self, bridge: str) -> None:
        """The switch answers again and settles what was open."""
        state = self.state[bridge]
        state.silent = False
        self._forget(state)
        self._push(state)

    def refuse(self, bridge: str, reason: str | None) -> None:
        """From now on every change that needs a message is refused with this reason; None ends that."""
        self.state[bridge].refuse = reason

    def set_ports(self, bridge: str, ports: Mapping[str, int]) -> None:
        """The ports of the switch are now these."""
        self.state[bridge].ports = dict(ports)
        if self._on_ports is not None and self.state[bridge].connected:
            self._on_ports(bridge, dict(ports))

    @property
    def flow_mods(self) -> int:
        """Flow-mods sent to all bridges so far."""
        return sum(state.flow_mods for state in self.state.values())

    def _want(self, state: FakeBridge, wanted: dict[RuleKey, Rule]) -> FakeTicket:
        ticket = FakeTicket()
        if not state.ours:
            ticket.settle(_NOT_MASTER)
            return ticket
        if state.refuse is not None and state.connected and not state.silent and wanted != state.actual:
            ticket.settle(TicketResult(Outcome.REFUSED, state.refuse))
            return ticket
        state.desired = wanted
        state.waiting.append(ticket)
        self._push(state)
        return ticket

    def _forget(self, state: FakeBridge) -> None:
        if not state.silent:
            heard, state.to_forget = state.to_forget, []
            for ticket, zones in heard:
                state.forgotten += zones
                ticket.settle(REALISED)

    def _refuse_waiting(self, state: FakeBridge) -> None:
        waiting, state.waiting = state.waiting, []
        for ticket in waiting:
            ticket.settle(_NOT_MASTER)

    def _push(self, state: FakeBridge) -> None:
        if not state.connected or state.silent or state.desired is None:
            return
        if not state.ours:
            self._refuse_waiting(state)
            return
        state.flow_mods += sum(1 for key, flow in state.desired.items() if state.actual.get(key) != flow)
        state.flow_mods += sum(1 for key in state.actual if key not in state.desired)
        for key, one in state.desired.items():
            if isinstance(one, MeterRule) and state.actual.get(key) != one:
                state.settings[one.number] = state.settings.get(one.number, 0) + 1
        wanted = dict(state.desired)
        state.actual.clear()
        state.actual.update(wanted)
        waiting, state.waiting = state.waiting, []
        for ticket in waiting:
            ticket.settle(REALISED)
