"""The controller's application on the OpenFlow framework: `SwitchApp`, the real `ryu_apps.fabric.Fabric`.

    what switches say ──▶ inbox of the switch ──▶ one writer greenlet ──▶ SwitchMachine ──▶ messages, tickets, callbacks
    set_desired, change ─▲  └─ nothing waits there, and it needs no waiting: at once ──▲

Invariants: of each switch one step at a time is under way, in the order in which they came; its writer does them, or
whoever asks for a short one while nothing else is there (`_Switch.do`). Nothing that others call waits for a switch,
but for `Ticket.wait` and `flow_stats`. Callbacks run in a greenlet of their own, in
order, and may wait. Turned away are: a datapath id that the site does not name; a connection from another address than
the site gives the bridge, or, with TLS, whose certificate is not that bridge's; a second connection of a switch.
Whatever has to be done for many flows is done in slices, between which other greenlets run: a large bridge delays
neither other switches nor requests (`SLICE`).
"""

from __future__ import annotations

import datetime
import ipaddress
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from policies.events import Kind
from policies.model import Address
from ryu_apps import engine
from ryu_apps.events import Events
from ryu_apps.fabric import (
    REALISED,
    BridgeState,
    Counts,
    FabricError,
    MeterCounts,
    OnConnected,
    OnPorts,
    Outcome,
    Tell,
    TellMeters,
    TicketResult,
)
from ryu_apps.openflow import cookies, decode, encode, oxm, stencils
from ryu_apps.openflow.delta import Delta, DeltaKeys
from ryu_apps.openflow.encode import EntryKey, EntryValue
from ryu_apps.openflow.flows import Counted, FlowStats
from ryu_apps.openflow.meters import Rule, RuleKey
from ryu_apps.openflow.whole import Whole
from ryu_apps.patience import wait_for
from ryu_apps.reconcile import switch as machine
from ryu_apps.reconcile.switch import Output, SwitchMachine, TicketId
from ryu_apps.tls import SOON

LOG = logging.getLogger("lark.switch")
Step = Callable[[float], Sequence[Output]]

STATS_XID = 0x8000_0000
FEATURES_XID = STATS_XID - 1
"""Between those of the machine and those of questions."""
"""Transaction ids from here on are questions for counters; those below belong to the machine."""
MONITOR = 1
"""The number of our one flow monitor on each connection."""
SLICE = 512
"""Flows worked on at a time (some 2 ms); between two slices other greenlets run."""
ALIVE = 3.0
"""Seconds in which a connection must answer when another one claims to be the same switch."""
REMEMBERED = 60.0
"""Seconds that a connection which was turned away is shown at its bridge."""


def datapath_text(datapath_id: int) -> str:
    """A datapath id as `ovs-vsctl` shows it."""
    return f"{datapath_id:016x}"


class SwitchTicket:
    """The receipt for one change; settled once."""

    def __init__(self, bridge: str) -> None:
        self._bridge = bridge
        self._event: Any = None
        self._result: TicketResult | None = None

    def settle(self, result: TicketResult) -> None:
        if self._result is None:
            self._result = result
            if self._event is not None:
                self._event.set()

    def wait(self, deadline: float) -> TicketResult:
        if self._result is None and deadline > time.monotonic():
            # Most tickets nobody waits for, and an event costs more than all the rest of them.
            self._event = self._event or engine.Event()
            wait_for(self._event, deadline)
        return self._result or TicketResult(Outcome.TIMED_OUT, f"bridge {self._bridge} has not confirmed in time")

    def result(self) -> TicketResult | None:
        return self._result


class _Question:
    """A request for counters that waits for its answer."""

    def __init__(self, bridge: str, datapath: Any, forget: Callable[[], object]) -> None:
        self.bridge = bridge
        self.datapath = datapath
        self.tell: Tell | None = None
        """Set: it is told the counters as they come, and nothing is kept."""
        self.tell_meters: TellMeters | None = None
        """The same; then it is about meters."""
        self.awaited = 1
        """Answers that have not ended yet."""
        self.found: list[Counted] = []
        self.failure: str | None = None
        self._ended = False
        self._event: Any = None
        self._forget = forget

    def part(self, *, more: bool) -> None:
        """A part of an answer has come."""
        if not more:
            self.awaited -= 1
            if not self.awaited:
                self.end()

    def end(self, failure: str | None = None) -> None:
        self._forget()
        self.failure = failure
        self._ended = True
        if self._event is not None:
            self._event.set()

    def hear(self, message: bytes, one: _Switch) -> bool:
        """A part of the answer; tells whether more is to come. Raises DecodeError."""
        part = decode.counts(message)
        if self.tell is None:
            self.found.extend(part.entries)
        else:
            self.tell(Counts(one.bridge, one.machine.counts.emptied, part.entries))
        return part.more

    def finish(self, timeout: float) -> None:
        if not self._ended:
            self._event = self._event or engine.Event()
            if not self._event.wait(timeout):
                self._forget()
                raise FabricError(f"bridge {self.bridge} did not answer within {timeout:g} s")
        self._check()

    def result(self) -> list[Counted] | None:
        return self.found if self.done() else None

    def done(self) -> bool:
        if self._ended:
            self._check()
        return self._ended

    def _check(self) -> None:
        if self.failure is not None:
            raise FabricError(f"bridge {self.bridge}: {self.failure}")


class _Reading(_Question):
    """One that reads all that the switch says of its flows."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.read: list[FlowStats] = []

    def hear(self, message: bytes, one: _Switch) -> bool:
        part = decode.flow_stats(message)
        self.read.extend(stats for entry in part.entries if (stats := entry.stats) is not None)
        return part.more


class _Emptying(_Question):
    """A command without an answer: the barrier behind it is the answer."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.ticket = SwitchTicket(self.bridge)

    def end(self, failure: str | None = None) -> None:
        super().end(failure)
        self.ticket.settle(REALISED if failure is None else TicketResult(Outcome.REFUSED, failure))


class _Switch:
    """One switch: its machine, its connection while there is one, and its writer."""

    def __init__(self, bridge: str, datapath_id: int, call: Callable[..., None], app: SwitchApp) -> None:
        self.bridge = bridge
        self.datapath_id = datapath_id
        self.machine = SwitchMachine()
        self.meters = True
        """The switch has meters, as far as it has said."""
        self.datapath: Any = None
        self.inbox = engine.Queue()
        self.tickets: dict[TicketId, SwitchTicket] = {}
        self._call = call
        self._app = app
        # Parts of the dump that came before the controller has taken note of the ports: its standing flows follow from
        # their numbers, and the difference to what they were before would be pushed first. None: it has.
        self._held: list[bytes] | None = None
        self.refused: tuple[float, str] | None = None
        """When a connection with this datapath id was last turned away, and a sentence about it."""
        self._in_line = False
        self._since = 0.0
        self._flow_mods = self._meter_mods = 0
        # A step is under way: nobody else drives the machine, though the step may wait.
        self._driven = False
        self._alarm: Any = None
        self._alarm_at = 0.0
        self._soon: list[bytes] = []
        """What is to be sent together with what comes next."""

    # --- from anywhere; never waits

    @property
    def detail(self) -> str:
        """What is under way and what is wrong, in words."""
        parts = [self.machine.detail] if self.machine.detail else []
        # Whose datapath id nobody has may be this one's switch, if that is not here.
        for refused in (self.refused, None if self.machine.connected else self._app.unknown):
            if refused is not None and time.monotonic() - refused[0] < REMEMBERED:
                parts.append(refused[1])
        return "; ".join(parts)

    def ask(self, step: Step, datapath: Any = None) -> None:
        """Let the writer do a step of the machine; with a datapath, only if that is still the connection."""
        self.inbox.put((step, datapath))

    def do(self, step: Step, datapath: Any = None) -> None:
        """The same for a step that does not wait: done here and now, unless something else is under way or waits.

        To wake the writer for each of the few words that a change takes costs more than the words.
        """
        link = self.datapath
        if self._driven or self.inbox.qsize() or (link is not None and not link.idle):
            self.inbox.put((step, datapath))
        else:
            self._drive(step, datapath, at_once=True)

    # --- the writer, and whoever takes its place in `do`

    def run(self) -> None:
        while True:
            self._drive(*self.inbox.get())

    def _drive(self, step: Step, datapath: Any, *, at_once: bool = False) -> None:
        """One step of the machine and what follows from it; `at_once`: without waiting."""
        if datapath is not None and datapath is not self.datapath:
            return
        self._driven = True
        try:
            outputs = step(time.monotonic())
            if at_once and any(isinstance(one, machine.Stage) and len(one.items) > SLICE for one in outputs):
                # Too much for one go. Nobody comes in between: what waits in the inbox comes after it.
                self.ask(lambda now: outputs, datapath)
                return
            self._carry_out(outputs)
            self._report()
        except Exception:  # one broken turn must not end the writer: the connection is given up, and read anew
            LOG.exception("bridge=%s: a fault in the controller; the connection is closed", self.bridge)
            self._close()
        finally:
            self._driven = False
            self._set_alarm()

    def _set_alarm(self) -> None:
        """See that the machine is woken in time. It wants to be woken later after nearly every step: the alarm that is
        set already will do, and finds out then."""
        wake = self.machine.wake
        if wake is None or (self._alarm is not None and self._alarm_at <= wake):
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = wake
        self._alarm = engine.call_later(max(0.0, wake - time.monotonic()), self._rings)

    def _rings(self) -> None:
        self._alarm = None
        self.ask(self._tick)

    def _tick(self, now: float) -> Sequence[Output]:
        wake = self.machine.wake
        return self.machine.tick(now) if wake is not None and wake <= now else ()

    def _carry_out(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            match output:
                case machine.RequestPorts(xid):
                    # First of all on a new connection. Without it fragments are refused: closed, not open.
                    # Meters before ports, whose answer makes the controller say what it wants of the switch.
                    features = encode.meter_features_request(FEATURES_XID)
                    self.send([encode.fragments_show_ports(xid), features, encode.port_desc_request(xid)])
                case machine.RequestDescription(xid):
                    self.send([encode.description_request(xid)])
                case machine.RequestRole(xid, master, generation):
                    # From one that only reads the switch takes no setting: again, now that it may be heard.
                    asked = [encode.role_request(xid, master=master, generation=generation)]
                    self.send([*asked, encode.fragments_show_ports(xid)] if master else asked)
                case machine.Watch(xid):
                    self.send([encode.monitor_request(xid, MONITOR)])
                case machine.RequestDump(xid):
                    # In this order they are answered: what ends the dump is the end of the flows.
                    self.send([encode.meters_request(xid), encode.flow_stats_request(xid)])
                case machine.SetMeters():
                    self._set_meters(output)
                case machine.Stage():
                    self._stage(output)
                case machine.Single(xid, (key, value), barrier):
                    change = encode.take_entry(key, xid) if value is None else encode.put_entry(key, value, xid)
                    self.send([change, encode.barrier(barrier)])
                case machine.Commit(bundle, xid, barrier):
                    self.send([encode.bundle_commit(bundle, xid), encode.barrier(barrier)])
                case machine.Discard(bundle, xid, barrier):
                    self.send([encode.bundle_discard(bundle, xid), encode.barrier(barrier)])
                case machine.Settle(ticket, refused):
                    self._settle(ticket, refused)
                case machine.PortsChanged(ports):
                    self._tell_ports(dict(ports), self.datapath)
                case machine.Notice(text, serious, kind):
                    if kind is not None:
                        self._tell(kind, text)
                    else:
                        LOG.log(logging.WARNING if serious else logging.INFO, "bridge=%s: %s", self.bridge, text)
                case machine.Disconnect(reason):
                    LOG.warning("bridge=%s: connection given up: %s", self.bridge, reason)
                    self._close()

    def _set_meters(self, change: machine.SetMeters) -> None:
        messages = []
        for xid, (key, value, there) in enumerate(change.items, change.first_xid):
            taken = encode.take_meter(key, xid)
            messages.append(taken if value is None else encode.put_meter(key, value, xid, there=there))
        self.send([*messages, encode.barrier(change.barrier)])

    def _stage(self, stage: machine.Stage) -> None:
        messages = [encode.bundle_open(stage.bundle, stage.open_xid)]
        for at in range(0, len(stage.items), SLICE):
            if at:
                self.send(messages)
                messages = []
                engine.sleep(0)
            messages += encode.bundled(stage.bundle, stage.first_xid + at, stage.items[at : at + SLICE])
        if stage.commit_xid is not None:
            messages.append(encode.bundle_commit(stage.bundle, stage.commit_xid))
        self.send([*messages, encode.barrier(stage.barrier)])

    def send(self, messages: Sequence[bytes]) -> None:
        # A connection that was lost meanwhile is found out by its event, which waits in the inbox.
        soon, self._soon = self._soon, []
        if self.datapath is not None:
            self.datapath.send(b"".join([*soon, *messages]))

    def say_soon(self, message: bytes) -> None:
        """Send it with what is sent next, or when everybody else has had their turn: each send of its own costs more
        than what is said. Order is kept."""
        if not self._soon:
            engine.call_later(0, self._say_now)
        self._soon.append(message)

    def _say_now(self) -> None:
        if self._soon:
            self.do(self._send_soon, self.datapath)

    def _send_soon(self, now: float) -> Sequence[Output]:
        if self._soon:
            self.send(())
        return ()

    def _settle(self, ticket_id: TicketId, refused: str | None) -> None:
        ticket = self.tickets.pop(ticket_id)
        if refused is None:
            ticket.settle(REALISED)
        else:
            LOG.warning("bridge=%s: change refused: %s", self.bridge, refused)
            ticket.settle(TicketResult(Outcome.REFUSED, refused))

    def _close(self) -> None:
        if self.datapath is not None:
            engine.hang_up(self.datapath)
            self.gone(self.datapath)

    def dump_part(self, message: bytes, now: float) -> list[Output]:
        """A part of a dump. Reading it is the writer's work, so that no other switch waits for it."""
        if self._held is not None:
            self._held.append(message)
            return []
        try:
            part = decode.meter_entries(message) if decode.is_meters(message) else decode.flow_entries(message)
        except decode.DecodeError as error:
            LOG.warning("bridge=%s: connection given up: %s", self.bridge, error)
            self._close()
            return []
        engine.sleep(0)
        return self.machine.dump_part(part.xid, part.entries, part.more, now)

    def set_desired(self, number: TicketId, flows: Mapping[RuleKey, Rule]) -> list[Output]:
        try:
            if isinstance(flows, Whole):
                wanted: dict[EntryKey, EntryValue] = {}
                for block in flows.blocks():
                    wanted |= block
                    engine.sleep(0)
            else:
                wanted = self._entries(flows.values())
        except ValueError as error:  # an EncodeError, or a number that has no place in a flow
            return [machine.Settle(number, str(error))]
        return self.machine.set_desired(number, wanted, time.monotonic())

    def change(self, number: TicketId, add: Sequence[Rule], remove: Sequence[RuleKey]) -> list[Output]:
        try:
            added = self._entries(add)
            removed = [encode.entry_key(key) for key in remove]
        except encode.EncodeError as error:
            return [machine.Settle(number, str(error))]
        return self.machine.change(number, added, removed, time.monotonic())

    def _entries(self, flows: Iterable[Rule]) -> dict[EntryKey, EntryValue]:
        """Flows as they go to the switch. Raises EncodeError."""
        entries: dict[EntryKey, EntryValue] = {}
        for count, flow in enumerate(flows, 1):
            key, value = stencils.entry(flow)
            entries[key] = value
            if count % SLICE == 0:
                engine.sleep(0)
        return entries

    def _tell_ports(self, ports: dict[str, int], datapath: Any) -> None:
        self._call(lambda: self.ask(self._heard, datapath), "on_ports", self.bridge, ports)

    def _heard(self, now: float) -> list[Output]:
        """The controller knows the ports, and what it made of them is in the machine: go on."""
        held, self._held = self._held or [], None
        return [output for message in held for output in self.dump_part(message, time.monotonic())]

    # --- connection; called by the writer

    def came(self, datapath: Any) -> list[Output]:
        self.datapath = datapath
        self._held = []
        self._soon = []
        self._in_line = False
        self._since = time.monotonic()
        self._flow_mods, self._meter_mods = self.machine.counts.flow_mods, self.machine.counts.meter_mods
        came = f"{datapath.address[0]} port {datapath.address[1]}"
        self._tell(Kind.BRIDGE_CONNECTED, f"dpid={datapath_text(self.datapath_id)}: connected from {came}")
        self._call(None, "on_connected", self.bridge)
        return self.machine.connected_to(self._since)

    def gone(self, datapath: Any) -> list[Output]:
        if self.datapath is not datapath:
            return []
        self._tell(Kind.BRIDGE_LOST, f"disconnected; {self.machine.waiting} changes wait for it")
        self.datapath = None
        self._app.forget(datapath)
        return self.machine.lost()

    def _report(self) -> None:
        if self.machine.converged and not self._in_line:
            self._in_line = True
            meters = self.machine.counts.meter_mods - self._meter_mods
            sent, took = self.machine.counts.flow_mods - self._flow_mods, 1000 * (time.monotonic() - self._since)
            self._tell(
                Kind.BRIDGE_ADOPTED,
                f"in line with {self.machine.flows} flows, {sent} flow-mods sent, {took:.0f} ms after it connected; "
                f"{meters} meter-mods",
            )

    def _tell(self, kind: Kind, text: str) -> None:
        self._app.happenings.tell(kind, text, bridge=self.bridge)


class SwitchApp(engine.App):  # type: ignore[misc]  # the framework ships no types
    """All switches of the site. Make it with `engine.Framework.add(SwitchApp, {datapath id: bridge name}, …)`."""

    OFP_VERSIONS = (engine.ofproto.OFP_VERSION,)

    def __init__(
        self,
        bridges: Mapping[int, str],
        on_ports: OnPorts | None = None,
        on_connected: OnConnected | None = None,
        addresses: Mapping[str, Address] | None = None,
        certificates: Mapping[str, str] | None = None,
        events: Events | None = None,
    ) -> None:
        """`addresses`: where each bridge's connection must come from; a bridge without one may come from anywhere.
        `certificates`: the name that the certificate of each bridge's switch must hold; a bridge without one may not
        come at all. None: the listener has no TLS."""
        super().__init__()
        if len(set(bridges.values())) != len(bridges):
            raise ValueError(f"a bridge name stands for two datapath ids: {sorted(bridges.values())}")
        self._on_ports = on_ports
        self._on_connected = on_connected
        self._addresses = dict(addresses or {})
        self._certificates = None if certificates is None else dict(certificates)
        # Not `events`: so the framework calls its own queue.
        self.happenings = Events() if events is None else events
        self._calls = engine.Queue()
        self._by_dpid = {dpid: _Switch(name, dpid, self._call, self) for dpid, name in bridges.items()}
        self._by_name = {one.bridge: one for one in self._by_dpid.values()}
        self._ticket_ids: Iterator[int] = itertools.count(1)
        self._question_ids: Iterator[int] = itertools.count()
        self._questions: dict[int, _Question] = {}
        self._greenlets: list[Any] = []
        # Connections that are up, by datapath id: what decides about a second one, before any writer runs.
        self._up: dict[int, Any] = {}
        self._doubted: set[Any] = set()
        self.turned_away = 0
        """Connections refused so far."""
        self.unknown: tuple[float, str] | None = None
        """When a switch whose datapath id no bridge has was last turned away, and a sentence about it."""

    def notify(self, on_ports: OnPorts | None = None, on_connected: OnConnected | None = None) -> None:
        """Set the callbacks afterwards, before `Framework.start`, for a controller that needs the fabric first."""
        self._on_ports = on_ports
        self._on_connected = on_connected

    def start(self) -> Any:
        """Called by the framework."""
        super().start()
        engine.hear(self)
        self._greenlets = [engine.spawn(one.run) for one in self._by_dpid.values()]
        self._greenlets.append(engine.spawn(self._run_calls))

    def stop(self) -> None:
        """Called by the framework: close every connection. The switches keep their flows."""
        for greenlet in self._greenlets:
            engine.kill(greenlet)
        for datapath in list(self._up.values()):
            datapath.close()
        for question in list(self._questions.values()):
            question.end("the controller stops")
        super().stop()

    # ------------------------------------------------------------------------------------------- the Fabric protocol

    def set_desired(self, bridge: str, flows: Mapping[RuleKey, Rule]) -> SwitchTicket:
        one, ticket, number = self._ticket(bridge)
        wanted = flows if isinstance(flows, Whole) else dict(flows)
        one.ask(lambda now: one.set_desired(number, wanted))
        return ticket

    def change(self, bridge: str, add: Sequence[Rule], remove: Sequence[RuleKey]) -> SwitchTicket:
        one, ticket, number = self._ticket(bridge)
        if not isinstance(add, Delta) or not isinstance(remove, DeltaKeys):
            added, removed = tuple(add), tuple(remove)
            step = one.ask if len(added) > SLICE else one.do
            step(lambda now: one.change(number, added, removed))
            return ticket
        try:
            come, gone = add.entries(), remove.entries()
        except ValueError as error:  # an EncodeError, or a number that has no place in a flow
            why = str(error)
            one.do(lambda now: [machine.Settle(number, why)])
        else:
            one.do(lambda now: one.machine.change(number, come, gone, now))
        return ticket

    def set_role(self, bridge: str, *, master: bool, generation: int) -> None:
        one = self._by_name[bridge]
        one.ask(lambda now: one.machine.set_role(master=master, generation=generation, now=now))

    def forget_connections(self, bridge: str, zones: Sequence[int]) -> SwitchTicket:
        try:
            xid, question = self._numbered(bridge, kind=_Emptying)
        except FabricError as error:
            ticket = SwitchTicket(bridge)
            ticket.settle(TicketResult(Outcome.REFUSED, str(error)))
            return ticket
        assert isinstance(question, _Emptying)
        # One id for all: the first error ends it, and else the barrier.
        self._put(question, [*(encode.forget_zone(zone, xid) for zone in zones), encode.barrier(xid)], gently=False)
        return question.ticket

    def flow_stats(self, bridge: str, cookie: int, mask: int, timeout: float = 5.0) -> list[FlowStats]:
        question, request = self._question(bridge, cookie, mask, kind=_Reading)
        assert isinstance(question, _Reading)
        question.datapath.send(request)
        question.finish(timeout)
        return question.read

    def ask_counts(self, bridge: str, cookie: int, mask: int) -> _Question:
        question, request = self._question(bridge, cookie, mask)
        one = self._by_name[bridge]

        def say(now: float) -> list[Output]:
            one.say_soon(request)
            return []

        # By way of the writer: a connection that is stuck makes it wait, not the caller, and order is kept.
        one.do(say, question.datapath)
        return question

    def count(self, bridge: str, cookie: int, mask: int, tell: Tell, *, gently: bool = False) -> _Question:
        question, request = self._question(bridge, cookie, mask)
        question.tell = tell
        self._put(question, [request], gently)
        return question

    def count_meters(
        self, bridge: str, numbers: Sequence[int] | None, tell: TellMeters, *, gently: bool = False
    ) -> _Question:
        xid, question = self._numbered(bridge)
        question.tell_meters = tell
        wanted = [encode.ALL_METERS] if numbers is None else numbers
        question.awaited = len(wanted)
        self._put(question, [encode.meter_stats_request(xid, number) for number in wanted], gently)
        return question

    def _put(self, question: _Question, requests: Sequence[bytes], gently: bool) -> None:
        one = self._by_name[question.bridge]

        def send(now: float) -> list[Output]:
            if gently and not one.machine.converged:
                question.end("is being programmed")
            else:
                one.send(requests)
            return []

        one.do(send, question.datapath)

    def _question(
        self, bridge: str, cookie: int, mask: int, at: Any = None, kind: type[_Question] = _Question
    ) -> tuple[_Question, bytes]:
        xid, question = self._numbered(bridge, at, kind)
        return question, encode.flow_stats_request(xid, cookie & mask, mask)

    def _numbered(self, bridge: str, at: Any = None, kind: type[_Question] = _Question) -> tuple[int, _Question]:
        datapath = self._by_name[bridge].datapath if at is None else at
        if datapath is None:
            raise FabricError(f"bridge {bridge} is not connected")
        xid = STATS_XID | (next(self._question_ids) & 0x7FFF_FFFF)
        question = self._questions[xid] = kind(bridge, datapath, lambda: self._questions.pop(xid, None))
        return xid, question

    def bridge(self, bridge: str) -> BridgeState:
        one = self._by_name[bridge]
        return BridgeState(
            bridge=bridge,
            datapath_id=one.datapath_id,
            connected=one.machine.connected,
            converged=one.machine.converged,
            flows=one.machine.flows,
            ports=dict(one.machine.ports) if one.machine.connected else {},
            detail=one.detail,
            outranked=one.machine.outranked,
            meters=one.meters,
            foreign=one.machine.foreign,
            bypassed=one.machine.bypassed,
        )

    def connected(self, bridge: str) -> bool:
        return self._by_name[bridge].machine.connected

    def bridges(self) -> list[BridgeState]:
        return [self.bridge(bridge) for bridge in sorted(self._by_name)]

    def waiting(self) -> tuple[set[str], set[str]]:
        """Bridges that are connected and not in line (yet), and bridges that are not connected."""
        here = {name for name, one in self._by_name.items() if one.datapath is not None}
        return {name for name in here if not self._by_name[name].machine.converged}, self._by_name.keys() - here

    def counts(self, bridge: str) -> machine.Counts:
        """What was sent to a bridge since the controller started."""
        return self._by_name[bridge].machine.counts

    def forget(self, datapath: Any) -> None:
        """A connection is gone: nobody will answer questions put to it."""
        for question in list(self._questions.values()):
            if question.datapath is datapath:
                question.end("disconnected")

    def _ticket(self, bridge: str) -> tuple[_Switch, SwitchTicket, TicketId]:
        one = self._by_name[bridge]
        number = TicketId(next(self._ticket_ids))
        ticket = one.tickets[number] = SwitchTicket(bridge)
        return one, ticket, number

    # ---------------------------------------------------------------------------------------------------- callbacks

    def _call(self, done: Callable[[], None] | None, which: str, *args: Any) -> None:
        """Call back, and then call `done`."""
        self._calls.put((done, which, args))

    def _run_calls(self) -> None:
        while True:
            done, which, args = self._calls.get()
            callback = self._on_ports if which == "on_ports" else self._on_connected
            try:
                if callback is not None:
                    callback(*args)
            except Exception:  # a fault of the controller must not stop the news of other bridges
                LOG.exception("bridge=%s: %s failed", args[0], which)
            if done is not None:
                done()

    # ------------------------------------------------------------------------------------- events of the framework

    @engine.handler(engine.StateChange, [engine.UP, engine.DOWN])
    def _state_change(self, event: Any) -> None:
        datapath = event.datapath
        if event.state == engine.UP:
            self._came(datapath)
        elif self._is_up(datapath):
            del self._up[datapath.id]
            one = self._by_dpid[datapath.id]
            one.ask(lambda now: one.gone(datapath), datapath)

    def _came(self, datapath: Any) -> None:
        dpid = datapath_text(datapath.id)
        one = self._by_dpid.get(datapath.id)
        other = self._up.get(datapath.id)
        wanted = self._addresses.get(one.bridge) if one is not None else None
        if one is None:
            why = "no bridge of site.yaml has this datapath id"
        elif wanted is not None and _peer(datapath.address[0]) != wanted:
            # Before the question whether it is there already: a stranger learns nothing, and disturbs nothing.
            why = f"bridge {one.bridge} connects from {wanted} (its address in site.yaml)"
        elif stranger := self._stranger(one.bridge, datapath):
            why = stranger
        elif other is not None:
            why = f"bridge {one.bridge} is connected already, from {other.address[0]} port {other.address[1]}"
            if other not in self._doubted:
                self._doubted.add(other)
                engine.spawn(self._doubt, one, other)
        else:
            why = ""
        if one is None or why:
            self.turned_away += 1
            came, now = f"{datapath.address[0]} port {datapath.address[1]}", time.monotonic()
            self.happenings.tell(
                Kind.BRIDGE_TURNED_AWAY if other is None else Kind.BRIDGE_DUPLICATE,
                f"dpid={dpid} from {came}: turned away: {why}",
                bridge="" if one is None else one.bridge,
            )
            if one is None:
                text = f"a switch with datapath id {dpid}, which no bridge of site.yaml has, is turned away: {came}"
                self.unknown = (now, text)
            elif other is not None:
                one.refused = (now, f"a second switch with this datapath id is turned away: {came}")
            else:
                one.refused = (now, f"a switch with this datapath id is turned away, {came}: {why}")
            engine.hang_up(datapath)
            return
        self._up[datapath.id] = datapath
        engine.welcome(datapath)
        one.ask(lambda now: one.came(datapath))

    def _stranger(self, bridge: str, datapath: Any) -> str:
        """Why this connection, though its certificate is of our CA, is not this bridge's; empty if it is.

        A datapath id is what the switch says of itself. Without this a worker node's switch, or whoever is root there
        and has its key, could take the place of a gate.
        """
        if self._certificates is None:
            return ""
        wanted, peer = self._certificates.get(bridge), engine.peer_of(datapath)
        if peer is not None and wanted is not None and wanted in peer.names:
            if peer.not_after is not None and peer.not_after - datetime.datetime.now(datetime.UTC) < SOON:
                LOG.warning(
                    "bridge=%s: the certificate of its switch ends on %s: it cannot connect after that; renew it: "
                    "lark-controller pki renew switch-%s",
                    bridge,
                    f"{peer.not_after:%Y-%m-%d %H:%M} UTC",
                    bridge,
                )
            return ""
        return (
            f"its certificate is for {peer or 'nobody'}, and bridge {bridge} needs one for {wanted}; if this is that "
            f"bridge's switch, give it a certificate of its own (lark-controller pki switch {bridge}, ovs-vsctl "
            f"set-ssl) or name the certificate it has in site.yaml (bridges.{bridge}.certificate)"
        )

    def _doubt(self, one: _Switch, first: Any) -> None:
        """A second connection came: is the first alive? A switch that was cut off comes back before its old connection
        is noticed to be dead. One that answers stays; one that does not is closed, and the next try let in."""
        try:
            if self._is_up(first):
                # No flow has this cookie: the answer is short. That very connection is asked: the writer may not have
                # taken it up yet.
                question, request = self._question(one.bridge, cookies.FULL_MASK, cookies.FULL_MASK, first)
                first.send(request)
                question.finish(ALIVE)
        except FabricError as error:
            if self._is_up(first):
                LOG.warning("bridge=%s: connection given up for another one: %s", one.bridge, error)
                first.close()
        finally:
            self._doubted.discard(first)

    def _is_up(self, datapath: Any) -> bool:
        """Is this the one connection of its switch?"""
        return datapath.id is not None and self._up.get(datapath.id) is datapath

    # --------------------------------------------------------------------------------------- what switches say

    def _of(self, datapath: Any) -> _Switch | None:
        """The switch of a connection, if that is its one."""
        return self._by_dpid.get(datapath.id) if self._is_up(datapath) else None

    def heard_barrier(self, datapath: Any, xid: int) -> None:
        one = self._of(datapath)
        if one is None:
            return
        if xid & STATS_XID:
            question = self._questions.get(xid)
            if question is not None and question.datapath is datapath:
                question.end()
            return
        one.do(lambda now: one.machine.barrier(xid, now), datapath)

    def heard_commit(self, datapath: Any, bundle: int) -> None:
        one = self._of(datapath)
        if one is not None:
            one.do(lambda now: one.machine.committed(bundle), datapath)

    def heard_error(self, datapath: Any, xid: int, text: str) -> None:
        one = self._of(datapath)
        if one is None:
            return
        question = self._questions.get(xid)
        if question is not None:
            question.end(text)
            return
        if xid == FEATURES_XID:  # it does not know what a meter is
            one.meters = False
            return
        one.do(lambda now: one.machine.error(xid, text, now), datapath)

    def heard_role(self, datapath: Any, xid: int) -> None:
        one = self._of(datapath)
        if one is not None:
            one.do(lambda now: one.machine.role_reply(xid, now), datapath)

    def heard_description(self, datapath: Any, xid: int, text: bytes) -> None:
        one = self._of(datapath)
        if one is not None:
            said = text.decode("utf-8", "replace").rstrip("\0")
            one.do(lambda now: one.machine.described(xid, said), datapath)

    def heard_ports(self, datapath: Any, message: bytes) -> None:
        one = self._of(datapath)
        if one is None:
            return
        try:
            part = decode.ports(message)
        except decode.DecodeError as error:
            self._unreadable(one, datapath, error)
            return
        ports = {name: number for name, wire in part.ports if (number := _port_number(wire)) is not None}
        one.do(lambda now: one.machine.ports_part(part.xid, ports, part.more, now), datapath)

    def heard_port(self, datapath: Any, name: bytes, number: int, gone: bool) -> None:
        one = self._of(datapath)
        if one is None:
            return
        said, here = _port_name(name), None if gone else _port_number(number)
        LOG.info("bridge=%s: port %s is now %s", one.bridge, said, "gone" if here is None else here)
        one.do(lambda now: one.machine.port_status(said, here), datapath)

    def heard_flows(self, datapath: Any, xid: int, message: bytes) -> None:
        one = self._of(datapath)
        if one is None:
            return
        if not xid & STATS_XID:
            one.ask(lambda now: one.dump_part(message, now), datapath)
            return
        question = self._questions.get(xid)
        if question is None or question.datapath is not datapath or question.tell_meters is not None:
            return
        try:
            more = question.hear(message, one)
        except decode.DecodeError as error:
            self._unreadable(one, datapath, error)
            return
        question.part(more=more)

    def heard_meter_counts(self, datapath: Any, xid: int, message: bytes) -> None:
        one, question = self._of(datapath), self._questions.get(xid)
        if one is None or question is None or question.datapath is not datapath or question.tell_meters is None:
            return
        try:
            part = decode.meter_counts(message)
        except decode.DecodeError as error:
            self._unreadable(one, datapath, error)
            return
        question.tell_meters(
            MeterCounts(one.bridge, one.machine.counts.emptied, one.machine.counts.settings, part.entries)
        )
        question.part(more=part.more)

    def heard_meters(self, datapath: Any, message: bytes) -> None:
        one = self._of(datapath)
        if one is not None:
            one.ask(lambda now: one.dump_part(message, now), datapath)

    def heard_meter_features(self, datapath: Any, message: bytes) -> None:
        one = self._of(datapath)
        if one is None:
            return
        try:
            one.meters = decode.has_meters(message)
        except decode.DecodeError as error:
            self._unreadable(one, datapath, error)

    def heard_changes(self, datapath: Any, message: bytes) -> None:
        one = self._of(datapath)
        if one is None:
            return
        try:
            others = decode.changed_by_others(message)
        except decode.DecodeError as error:
            self._unreadable(one, datapath, error)
            return
        if others:
            one.do(one.machine.others_changed, datapath)

    def _unreadable(self, one: _Switch, datapath: Any, error: decode.DecodeError) -> None:
        LOG.warning("bridge=%s: connection given up: %s", one.bridge, error)
        engine.hang_up(datapath)


def _peer(host: str) -> Address:
    """A peer's address; an IPv4 one that came to an IPv6 listener as itself, a scoped one without its interface."""
    address = ipaddress.ip_address(host.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def _port_name(name: Any) -> str:
    return name.decode("utf-8", "replace").rstrip("\0") if isinstance(name, bytes) else str(name)


def _port_number(number: int) -> int | None:
    try:
        return oxm.port_from_wire(number)
    except ValueError:
        return None
