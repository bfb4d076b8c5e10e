"""The switch machine against a pretend switch that obeys OpenFlow: what is sent, counted; what is promised, checked."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mininet_tests.switch_flows import attempt, impossible
from policies.events import ABOUT, Kind, Level
from ryu_apps.openflow import decode, encode
from ryu_apps.openflow.cookies import Feature, cookie
from ryu_apps.openflow.encode import EntryKey, EntryValue
from ryu_apps.openflow.flows import Cookie, FieldMatch, Flow, FlowKey, Goto, Meter, Normal, match
from ryu_apps.openflow.meters import Rule
from ryu_apps.reconcile.switch import (
    FAMILIAR_MOST,
    PREPARED,
    Commit,
    Discard,
    Disconnect,
    Item,
    Notice,
    Output,
    PortsChanged,
    RequestDescription,
    RequestDump,
    RequestPorts,
    RequestRole,
    SetMeters,
    Settle,
    Single,
    Stage,
    State,
    SwitchMachine,
    TicketId,
    Watch,
)
from tests.effort import examples


def put(flow: Flow) -> Item:
    return encode.entry_key(flow), encode.entry_value(flow)


def take(flow: Flow) -> Item:
    return encode.entry_key(flow), None


def meter_of(key: EntryKey, value: EntryValue | None) -> int | None:
    """The meter that a flow names."""
    if value is None or encode.is_meter(key):
        return None
    actions = decode.value_actions(value)
    return next((action.number for action in actions or () if isinstance(action, Meter)), None)


def entries(flows: Iterable[Rule]) -> dict[EntryKey, EntryValue]:
    return {encode.entry_key(flow): encode.entry_value(flow) for flow in flows}


def read(key: EntryKey, value: EntryValue) -> Flow:
    matches, actions = decode.key_match(key), decode.value_actions(value)
    assert matches is not None
    assert actions is not None
    cookie = Cookie(encode.value_cookie(value))
    return Flow(encode.key_table(key), encode.key_priority(key), matches, actions, cookie)


@dataclass
class PretendSwitch:
    """Keeps flows, bundles and the promises of OpenFlow. Its answers wait in `answers` until they are delivered."""

    flows: dict[EntryKey, EntryValue] = field(default_factory=dict)
    description: str = PREPARED
    can_watch: bool = True
    generation: int = 0
    role: str = "equal"
    bad: Callable[[Item], bool] = lambda item: False
    bad_commit: bool = False
    bundles: dict[int, tuple[Item, ...]] = field(default_factory=dict)
    answers: list[tuple[object, ...]] = field(default_factory=list)
    applied: list[Item] = field(default_factory=list)

    def take(self, output: Output) -> None:
        match output:
            case RequestPorts(xid):
                self.answers.append(("ports_part", xid, {"p1": 1}, False))
            case RequestDump(xid):
                dumped = list(self.flows.items())
                self.answers.append(("dump_part", xid, dumped[:2], True))
                self.answers.append(("dump_part", xid, dumped[2:], False))
            case RequestDescription(xid):
                self.answers.append(("described", xid, self.description))
            case RequestRole(xid, master, generation):
                if generation < self.generation:
                    self.answers.append(("error", xid, "STALE"))
                else:
                    self.generation = generation
                    self.role = "master" if master else "slave"
                    self.answers.append(("role_reply", xid))
            case Watch(xid):
                if not self.can_watch:
                    self.answers.append(("error", xid, "BAD_MULTIPART"))
            case Stage(bundle, _, first, items, barrier, commit):
                assert self.role != "slave", "a switch takes nothing from a slave"
                assert not any(encode.is_meter(key) for key, _ in items), "a meter cannot be part of a bundle"
                bad = [self.bad(item) or self.wants_meter(item) for item in items]
                self.bundles[bundle] = tuple(item for item, worse in zip(items, bad, strict=True) if not worse)
                self.answers += [("error", first + n, "BAD") for n, worse in enumerate(bad) if worse]
                if commit is not None:
                    self.commit(bundle, commit)
                self.answers.append(("barrier", barrier))
            case SetMeters(first, items, barrier):
                for n, (key, value, there) in enumerate(items):
                    if value is not None and (self.bad((key, value)) or there != (key in self.flows)):
                        self.answers.append(("error", first + n, "METER_MOD_FAILED"))
                    elif value is not None:
                        self.flows[key] = value
                    else:
                        self.flows.pop(key, None)
                        for user in [k for k, v in self.flows.items() if meter_of(k, v) == encode.key_meter(key)]:
                            del self.flows[user]  # deleting a meter deletes the flows that use it
                self.answers.append(("barrier", barrier))
            case Single(xid, item, barrier):
                assert self.role != "slave", "a switch takes nothing from a slave"
                if self.bad(item) or self.bad_commit:
                    self.answers.append(("error", xid, "BAD"))
                else:
                    self.apply([item])
                self.answers.append(("barrier", barrier))
            case Commit(bundle, xid, barrier):
                self.commit(bundle, xid)
                self.answers.append(("barrier", barrier))
            case Discard(bundle, _, barrier):
                del self.bundles[bundle]
                self.answers.append(("barrier", barrier))
            case _:
                raise AssertionError(output)

    def commit(self, bundle: int, xid: int) -> None:
        """What it could read of the bundle, whatever it could not: as Open vSwitch does."""
        items = self.bundles.pop(bundle)
        if self.bad_commit:
            self.answers.append(("error", xid, "MSG_FAILED"))
        else:
            self.apply(items)
            self.answers.append(("committed", bundle))

    def wants_meter(self, item: Item) -> bool:
        """It names a meter that is not there."""
        meter = None if item[1] is None else meter_of(*item)
        return meter is not None and encode.meter_key(meter) not in self.flows

    def apply(self, items: Iterable[Item]) -> None:
        for key, value in items:
            self.applied.append((key, value))
            if value is None:
                self.flows.pop(key, None)
            else:
                self.flows[key] = value


class Rig:
    """A machine, its pretend switch, and what the world above has heard."""

    def __init__(self, *flows: Rule, lane_patience: float = 0.0) -> None:
        # Most tests are not about table 0, and leave it empty.
        self.machine = SwitchMachine(lane_patience=lane_patience)
        self.switch = PretendSwitch(entries(flows))
        self.now = 100.0
        self.settled: dict[int, str | None] = {}
        self.notices: list[Notice] = []
        self.disconnects: list[str] = []
        self.ports: list[dict[str, int]] = []
        self.tickets = 0
        self.on_the_wire = 0

    def carry(self, outputs: Iterable[Output]) -> None:
        for output in outputs:
            match output:
                case Settle(ticket, refused):
                    assert ticket not in self.settled, "a ticket is settled once"
                    self.settled[ticket] = refused
                case Notice():
                    self.notices.append(output)
                case Disconnect(reason):
                    self.disconnects.append(reason)
                case PortsChanged(ports):
                    self.ports.append(dict(ports))
                case _:
                    self.on_the_wire += 1
                    self.switch.take(output)

    def deliver(self, most: int = 10_000) -> None:
        while self.switch.answers and most:
            most -= 1
            name, *args = self.switch.answers.pop(0)
            method = getattr(self.machine, str(name))
            timed = str(name) not in ("committed", "described")
            self.carry(method(*args, self.now) if timed else method(*args))

    def connect(self) -> None:
        self.switch.answers.clear()
        self.carry(self.machine.connected_to(self.now))

    def lose(self) -> None:
        self.switch.answers.clear()
        self.switch.bundles.clear()
        self.carry(self.machine.lost())

    def ticket(self) -> TicketId:
        self.tickets += 1
        return TicketId(self.tickets)

    def desire(self, *flows: Rule) -> TicketId:
        ticket = self.ticket()
        self.carry(self.machine.set_desired(ticket, entries(flows), self.now))
        return ticket

    def change(self, add: Iterable[Rule] = (), remove: Iterable[Rule] = ()) -> TicketId:
        ticket = self.ticket()
        self.carry(self.machine.change(ticket, entries(add), list(entries(remove)), self.now))
        return ticket

    @property
    def held(self) -> set[Flow]:
        return {read(*entry) for entry in self.switch.flows.items()}

    @property
    def flow_mods(self) -> int:
        return self.machine.counts.flow_mods


@pytest.fixture
def rig() -> Rig:
    return Rig()


A, B, C, D = (attempt(n) for n in range(1, 5))
WORSE = impossible()


def is_worse(item: Item) -> bool:
    return item == put(WORSE)


def in_line(*flows: Flow) -> Rig:
    rig = Rig()
    rig.connect()
    rig.desire(*flows)
    rig.deliver()
    assert rig.machine.converged
    return rig


def test_connect_reads_then_sends_only_the_difference() -> None:
    rig = Rig(A, B)
    ticket = rig.desire(A, C)
    assert rig.settled == {}
    rig.connect()
    assert rig.flow_mods == 0, "nothing is sent before the switch was read"
    rig.deliver()
    assert rig.held == {A, C}
    assert rig.switch.applied == [put(C), take(B)], "additions first, what is stale last"
    assert rig.settled == {ticket: None}
    assert rig.ports == [{"p1": 1}]


def test_unchanged_state_sends_nothing() -> None:
    rig = in_line(A, B)
    sent = rig.flow_mods
    for _ in range(3):
        rig.lose()
        rig.connect()
        rig.deliver()
        again = rig.desire(A, B)
        rig.deliver()
        assert rig.settled[again] is None
    assert rig.machine.converged
    assert rig.flow_mods == sent == 2
    assert (rig.machine.counts.dumps, rig.machine.counts.bundles) == (4, 1)


def test_a_delta_sends_its_own_flows_and_looks_at_no_other() -> None:
    rig = in_line(*(attempt(n) for n in range(10, 60)))
    before = rig.flow_mods
    rig.change([A, B])
    rig.deliver()
    assert rig.flow_mods - before == 2
    rig.change([], [A, B])
    rig.deliver()
    assert rig.flow_mods - before == 4
    assert len(rig.held) == 50


def test_a_change_is_not_settled_before_the_last_barrier() -> None:
    rig = in_line()
    ticket = rig.change([A])
    while rig.switch.answers:
        assert ticket not in rig.settled
        rig.deliver(1)
    assert rig.settled[ticket] is None


def test_nothing_is_committed_before_the_switch_took_every_part() -> None:
    rig = in_line()
    rig.switch.bad = is_worse
    ticket = rig.change([A, WORSE])
    rig.deliver()
    assert rig.machine.counts.commits == 0
    assert rig.settled[ticket] == (
        "BAD: add table=5,priority=300,in_port=0x1 cookie=0x4c07000000000385 "
        "actions=goto_table:4"  # the entry, not the bundle
    )
    assert rig.held == set()
    assert rig.machine.converged
    control = rig.change([A])
    rig.deliver()
    assert rig.settled[control] is None
    assert rig.held == {A}


def test_what_looks_like_what_the_switch_has_taken_goes_with_its_commit_at_once() -> None:
    rig = in_line()
    rig.change([A, B])
    assert rig.machine.state is State.STAGING, "the first of its kind: the switch is asked before"
    rig.deliver()
    before = rig.on_the_wire
    ticket = rig.change([C, D])
    assert rig.machine.state is State.COMMITTING
    rig.deliver()
    assert (rig.on_the_wire - before, rig.settled[ticket], rig.held) == (1, None, {A, B, C, D})
    rig.lose()
    rig.connect()
    rig.deliver()
    rig.change([], [C, D])
    rig.change([attempt(5), attempt(6)], [])
    assert rig.machine.state is State.STAGING, "another connection may be another switch"


def test_what_many_jobs_change_together_goes_at_once_and_a_resync_does_not() -> None:
    for count, state in ((FAMILIAR_MOST, State.COMMITTING), (FAMILIAR_MOST + 1, State.STAGING)):
        rig = in_line()
        rig.change([A, B])
        rig.deliver()
        ticket = rig.change([attempt(n) for n in range(10, 10 + count)])
        assert rig.machine.state is state
        rig.deliver()
        assert rig.settled[ticket] is None
        assert len(rig.held) == count + 2


def test_a_commit_at_once_that_fails_changes_nothing() -> None:
    rig = in_line(A)
    rig.change([B, C])
    rig.deliver()
    rig.switch.bad_commit = True
    ticket = rig.change([D, attempt(5)])
    assert rig.machine.state is State.COMMITTING
    rig.deliver()
    assert rig.settled[ticket] == "MSG_FAILED: committing a bundle"
    assert (rig.held, rig.machine.counts.dumps) == ({A, B, C}, 1)


def test_a_part_that_is_refused_behind_its_commit_is_found_and_everything_put_back() -> None:
    rig = in_line(A, B)
    rig.change([C], [A, B])
    rig.deliver()
    rig.change([A, B], [C])
    rig.deliver()
    rig.switch.bad = lambda item: item == put(D)
    good, bad = rig.change([C], [B]), rig.change([D, attempt(5)], [A])
    control = rig.change([attempt(6)])
    rig.deliver()
    assert rig.settled[good] is None
    assert (rig.settled[bad] or "").startswith("BAD: add table=")
    assert rig.settled[control] is None
    assert rig.held == {A, C, attempt(6)}, "nothing of the one that was refused, the others as a whole"
    assert rig.machine.converged
    assert any("took the rest" in notice.text for notice in rig.notices)
    rig.change([B, attempt(7)])
    assert rig.machine.state is State.STAGING, "from now on the switch is asked before"
    rig.deliver()
    assert rig.held == {A, B, C, attempt(6), attempt(7)}


def test_a_commit_that_fails_changes_nothing() -> None:
    rig = in_line(A)
    rig.switch.bad_commit = True
    ticket = rig.change([B], [A])
    rig.deliver()
    assert rig.settled[ticket] == "MSG_FAILED: committing a bundle"
    assert rig.held == {A}
    rig.switch.bad_commit = False
    control = rig.change([B], [A])
    rig.deliver()
    assert rig.settled[control] is None
    assert rig.held == {B}


def test_one_entry_goes_without_a_bundle_and_is_taken_or_refused_as_a_whole() -> None:
    rig = in_line(A)
    before = rig.machine.counts.bundles
    rig.switch.bad = is_worse
    refused = rig.change([WORSE])
    assert refused not in rig.settled
    rig.deliver()
    assert str(rig.settled[refused]).startswith(
        "BAD: add table=5,priority=300,in_port=0x1 cookie=0x4c07000000000385 actions="
    )
    assert (rig.held, rig.machine.converged) == ({A}, True)
    for added, removed, held in ([B], [], {A, B}), ([], [A], {B}):
        taken = rig.change(added, removed)
        assert taken not in rig.settled, "the barrier has not been answered"
        rig.deliver()
        assert (rig.settled[taken], rig.held) == (None, held)
    assert rig.machine.counts.bundles == before
    rig.change([A, C])
    rig.deliver()
    assert (rig.machine.counts.bundles, rig.held) == (before + 1, {A, B, C}), "the positive control: two go in a bundle"


def test_changes_that_wait_go_out_together() -> None:
    rig = in_line()
    bundles = rig.machine.counts.bundles
    tickets = [rig.change([attempt(n)]) for n in range(1, 101)]
    rig.deliver()
    assert [rig.settled[ticket] for ticket in tickets] == [None] * 100
    assert rig.machine.counts.bundles - bundles == 1, "the first goes alone, the rest together"


def test_a_bad_change_does_not_fail_its_neighbours() -> None:
    rig = in_line()
    rig.switch.bad = is_worse
    first = rig.change([A])
    good, bad, other = rig.change([B]), rig.change([WORSE]), rig.change([C], [A])
    rig.deliver()
    assert rig.settled[bad] is not None
    assert [rig.settled[ticket] for ticket in (first, good, other)] == [None, None, None]
    assert rig.held == {B, C}
    assert rig.machine.converged
    # Once the culprit is found, changes share bundles again.
    bundles = rig.machine.counts.bundles
    for n in range(20, 40):
        rig.change([attempt(n)])
    rig.deliver()
    assert rig.machine.counts.bundles - bundles == 1, "the first goes alone, the rest together"


def test_a_good_change_is_not_refused_for_the_sake_of_what_the_switch_held_before() -> None:
    rig = in_line(A)
    rig.lose()
    rig.switch.flows.clear()
    rig.switch.bad = lambda item: item == put(A)
    ticket = rig.change([B])
    rig.connect()
    rig.deliver()
    assert rig.machine.state is State.RESTING
    assert ticket not in rig.settled
    rig.switch.bad = lambda item: False
    rig.now += 60
    rig.carry(rig.machine.tick(rig.now))
    rig.deliver()
    assert rig.settled[ticket] is None
    assert rig.held == {A, B}


def test_what_is_taken_back_before_it_was_sent_is_not_sent() -> None:
    rig = in_line()
    under_way = rig.change([A])
    wanted, regretted = rig.change([B]), rig.change([], [B])
    rig.deliver()
    assert [rig.settled[ticket] for ticket in (under_way, wanted, regretted)] == [None, None, None]
    assert rig.flow_mods == 1


def test_a_change_while_away_waits_and_its_ticket_stays_open() -> None:
    rig = in_line(A)
    rig.lose()
    ticket = rig.change([B])
    assert ticket not in rig.settled
    assert not rig.machine.converged
    rig.connect()
    rig.deliver()
    assert rig.settled[ticket] is None
    assert rig.held == {A, B}


def test_lost_before_or_after_the_commit_ends_in_the_same_state() -> None:
    for answers in range(6):
        rig = in_line(A)
        ticket = rig.change([B], [A])
        rig.deliver(answers)
        settled_before = ticket in rig.settled
        rig.lose()
        rig.connect()
        rig.deliver()
        assert rig.settled[ticket] is None
        assert rig.held == {B}
        assert settled_before == (answers >= 3)


def test_a_switch_that_lost_everything_gets_everything_in_one_bundle() -> None:
    rig = in_line(A, B, C)
    rig.lose()
    rig.switch.flows.clear()
    before = rig.machine.counts.bundles
    rig.connect()
    rig.deliver()
    assert rig.held == {A, B, C}
    assert rig.machine.counts.bundles - before == 1
    assert rig.machine.counts.emptied == 1
    # The control: one that still has some, or all, has not lost its counters.
    for gone in (A, None):
        rig.lose()
        if gone is not None:
            del rig.switch.flows[encode.entry_key(gone)]
        rig.connect()
        rig.deliver()
        assert (rig.held, rig.machine.counts.emptied) == ({A, B, C}, 1)


def test_a_bad_change_that_waited_for_a_switch_does_not_keep_its_flows_away() -> None:
    rig = in_line(A, B)
    rig.lose()
    rig.switch.flows.clear()
    rig.switch.bad = is_worse
    bad, good = rig.change([WORSE]), rig.change([C])
    rig.connect()
    rig.deliver()
    assert rig.settled[bad] is not None
    assert rig.settled[good] is None
    assert rig.held == {A, B, C}


def test_a_bad_whole_truth_leaves_the_one_before() -> None:
    rig = in_line(A)
    rig.switch.bad = is_worse
    bad = rig.desire(B, WORSE)
    rig.deliver()
    assert rig.settled[bad] is not None
    assert rig.held == {A}
    assert rig.machine.desired == entries([A])


def test_a_bad_first_truth_touches_nothing_and_fails_the_changes_to_it() -> None:
    rig = Rig(A)
    rig.switch.bad = is_worse
    bad = rig.desire(B, WORSE)
    to_it = rig.change([C])
    rig.connect()
    rig.deliver()
    assert rig.settled[bad] is not None
    assert "whole truth it changes was refused" in str(rig.settled[to_it])
    assert rig.held == {A}
    control = rig.desire(B)
    rig.deliver()
    assert rig.settled[control] is None
    assert rig.held == {B}


def test_before_the_truth_is_said_nothing_is_touched() -> None:
    rig = Rig(A)
    rig.connect()
    rig.deliver()
    refused = rig.change([B])
    assert "set_desired" in str(rig.settled[refused])
    assert (rig.held, rig.flow_mods, rig.machine.converged) == ({A}, 0, False)
    rig.desire()
    rig.deliver()
    assert rig.held == set(), "the positive control"


def test_table_0_and_foreign_flows_are_left_alone() -> None:
    lane = Flow(0, 5, A.match, (Goto(1),), cookie(Feature.HOST_LANE, 0))
    foreign = Flow(5, 7, A.match, (Normal(),), Cookie(0x77))
    newer = Flow(5, 8, A.match, (Normal(),), Cookie(0x4CFF_0000_0000_0001))
    rig = Rig(lane, foreign, newer, A)
    rig.desire()
    rig.connect()
    rig.deliver()
    assert rig.held == {lane, foreign}, "a feature of a newer version is Lark's: it goes"
    assert [notice.serious for notice in rig.notices] == [True]
    assert "1 flows in the controller's tables are not Lark's" in rig.notices[0].text
    assert "cookie=0x77" in rig.notices[0].text


def test_a_foreign_flow_in_the_way_is_replaced_and_named() -> None:
    foreign = Flow(A.table, A.priority, A.match, (Normal(),), Cookie(0x77))
    rig = Rig(foreign)
    rig.desire(A)
    rig.connect()
    rig.deliver()
    assert rig.held == {A}
    assert any("replacing 1 foreign" in notice.text for notice in rig.notices)


@pytest.mark.parametrize(
    ("flow", "why"),
    [
        (Flow(0, 1, A.match, (), A.cookie), "table 0 belongs to the agent"),
        (Flow(5, 1, A.match, (), Cookie(0x77)), "without Lark's mark"),
    ],
)
def test_what_may_not_be_wanted_is_refused_at_once(flow: Flow, why: str) -> None:
    rig = in_line(A)
    wire = rig.on_the_wire
    for ticket in (rig.change([flow]), rig.desire(flow)):
        assert why in str(rig.settled[ticket])
    assert rig.on_the_wire == wire
    assert rig.machine.desired == entries([A])


def test_entries_that_cannot_be_read_are_taken_away_by_their_bytes() -> None:
    rig = Rig()
    odd = encode.entry_head(5, 9) + b"\0\1\0\x09\x80\0\x10\1\x09".ljust(16, b"\0")
    mark = encode.entry_value(A)[:8]
    assert decode.key_match(odd) is None
    rig.switch.flows = {odd: mark, put(A)[0]: mark + decode.EXPIRES, put(B)[0]: mark + b"odd"}
    rig.desire(A)
    rig.connect()
    rig.deliver()
    assert set(rig.switch.applied) == {put(A), take(B), (odd, None)}
    assert rig.switch.applied[0] == put(A)
    assert rig.held == {A}


def test_a_switch_that_writes_the_same_flows_in_other_bytes_is_sent_nothing() -> None:
    flow = Flow(5, 9, match(FieldMatch("in_port", 7)), A.actions, A.cookie)
    as_nxm = encode.entry_head(5, 9) + b"\0\1\0\x0a" + b"\0\0\0\2\0\7" + bytes(6)
    assert as_nxm != encode.entry_key(flow)
    rig = Rig()
    rig.switch.flows = {as_nxm: encode.entry_value(flow)}
    rig.desire(flow)
    rig.connect()
    rig.deliver()
    assert (rig.machine.converged, rig.flow_mods) == (True, 0)
    rig.desire()
    rig.deliver()
    assert rig.switch.applied == [take(flow)], "the positive control"


@pytest.mark.parametrize(("added", "during"), [((B,), "sending a change"), ((B, C), "sending a bundle")])
def test_a_switch_that_falls_silent_is_given_up_and_read_again(added: tuple[Flow, ...], during: str) -> None:
    rig = in_line(A)
    ticket = rig.change(added)
    rig.switch.answers.clear()
    wake = rig.machine.wake
    assert wake is not None
    rig.now = wake - 0.01
    rig.carry(rig.machine.tick(rig.now))
    assert rig.disconnects == []
    rig.now = wake
    rig.carry(rig.machine.tick(rig.now))
    assert rig.disconnects == [f"no answer while {during}"]
    rig.lose()
    rig.connect()
    rig.deliver()
    assert rig.settled[ticket] is None


def test_a_dump_that_never_ends_is_given_up() -> None:
    rig = Rig(A)
    rig.desire(A)
    rig.connect()
    rig.deliver(3)  # the ports, the description and the first part
    assert rig.machine.state is State.DUMPING
    rig.now += 60
    rig.carry(rig.machine.tick(rig.now))
    assert rig.disconnects == ["no answer while reading the flows of the switch"]


def test_what_a_switch_held_before_and_refuses_now_is_tried_again_with_growing_pauses() -> None:
    rig = in_line(A)
    rig.lose()
    rig.switch.flows.clear()
    rig.switch.bad = lambda item: True
    rig.connect()
    rig.deliver()
    pauses = []
    for _ in range(3):
        assert rig.machine.state is State.RESTING
        assert "refuses what it held before" in rig.machine.detail
        wake = rig.machine.wake
        assert wake is not None
        pauses.append(wake - rig.now)
        rig.now = wake
        rig.carry(rig.machine.tick(rig.now))
        rig.deliver()
    assert pauses == [1.0, 2.0, 4.0]
    rig.switch.bad = lambda item: False
    assert rig.machine.wake is not None
    rig.now = rig.machine.wake
    rig.carry(rig.machine.tick(rig.now))
    rig.deliver()
    assert rig.held == {A}
    assert rig.machine.converged
    rig.switch.bad = lambda item: True
    rig.lose()
    rig.switch.flows.clear()
    rig.connect()
    rig.deliver()
    assert rig.machine.wake == rig.now + 1.0, "the pauses begin anew"


def test_answers_to_nothing_do_nothing() -> None:
    rig = in_line(A)
    wire = rig.on_the_wire
    assert rig.machine.barrier(12345, rig.now) == []
    assert rig.machine.committed(99) == []
    assert rig.machine.dump_part(1, [], False, rig.now) == []
    assert [type(one) for one in rig.machine.error(0x7000_0000, "odd", rig.now)] == [Notice]
    assert rig.machine.tick(rig.now + 1) == []
    assert (rig.on_the_wire, rig.machine.converged) == (wire, True)


def test_an_error_to_the_dump_gives_the_connection_up() -> None:
    rig = Rig()
    outputs = rig.machine.connected_to(rig.now)
    dump = next(one for one in outputs if isinstance(one, RequestDump))
    assert rig.machine.error(dump.xid, "EPERM", rig.now) == [Disconnect("the switch refused to be read: EPERM")]


def test_ports_come_go_and_change_their_number(rig: Rig) -> None:
    rig.connect()
    rig.deliver()
    rig.carry(rig.machine.port_status("lj1", 17))
    rig.carry(rig.machine.port_status("lj1", 18))
    rig.carry(rig.machine.port_status("lj2", 18))
    rig.carry(rig.machine.port_status("p1", None))
    assert rig.ports == [
        {"p1": 1},
        {"p1": 1, "lj1": 17},
        {"p1": 1, "lj1": 18},
        {"p1": 1, "lj2": 18},
        {"lj2": 18},
    ]
    rig.lose()
    assert rig.machine.port_status("late", 3) == []


def test_a_port_that_comes_between_two_parts_of_the_answer_is_kept() -> None:
    machine = SwitchMachine()
    ports = next(one for one in machine.connected_to(0.0) if isinstance(one, RequestPorts))
    assert machine.ports_part(ports.xid, {"a": 1}, True, 0.0) == []
    assert machine.port_status("b", 2) == []
    assert machine.ports_part(ports.xid, {"c": 3}, False, 0.0) == [PortsChanged({"a": 1, "b": 2, "c": 3})]


# --- checks of a running switch


def tick(rig: Rig) -> None:
    """Let the time come for which the machine asked."""
    assert rig.machine.wake is not None
    rig.now = max(rig.now, rig.machine.wake)
    rig.carry(rig.machine.tick(rig.now))


def altered(flow: Flow) -> Flow:
    return Flow(flow.table, flow.priority, flow.match, (Normal(),), flow.cookie)


def test_what_others_change_is_found_soon_after_they_were_seen_put_right_and_said() -> None:
    rig = in_line(A, B, C)
    sent = rig.flow_mods
    del rig.switch.flows[encode.entry_key(A)]
    rig.switch.flows |= entries([altered(B), D])
    began = rig.now
    rig.carry(rig.machine.others_changed(rig.now))
    tick(rig)
    assert rig.now - began < 1
    rig.deliver()
    assert rig.held == {A, B, C}
    assert rig.flow_mods - sent == 3
    assert rig.switch.applied[-1] == take(D)
    assert [notice.text for notice in rig.notices if "somebody else" in notice.text and notice.serious] == [
        "somebody else changed flows of Lark's, which are put right: flows 1 gone, 1 altered, 1 added; "
        "for example altered: table=5,priority=200,in_port=0x2 cookie=0x4c07000000000002 "
        "actions=load:0x2->reg0[0..31],goto_table:6"
    ]
    assert (rig.machine.counts.repaired, rig.machine.counts.checks, rig.machine.counts.dumps) == (3, 1, 1)
    assert rig.machine.converged


def test_a_check_that_finds_nothing_sends_nothing_and_says_nothing() -> None:
    rig = in_line(A, B)
    sent, said = rig.flow_mods, len(rig.notices)
    for _ in range(3):
        tick(rig)
        rig.deliver()
    assert rig.machine.counts.checks == 3
    assert (rig.flow_mods, len(rig.notices), rig.machine.converged) == (sent, said, True)


@pytest.mark.parametrize(("can_watch", "pause"), [(True, 60.0), (False, 5.0)])
def test_how_often_a_switch_is_checked_depends_on_what_it_can_tell(can_watch: bool, pause: float) -> None:
    rig = Rig()
    rig.switch.can_watch = can_watch
    rig.desire(A)
    rig.connect()
    rig.deliver()
    assert rig.machine.wake == rig.now + pause
    assert any("cannot tell of changes" in notice.text for notice in rig.notices) is not can_watch
    del rig.switch.flows[encode.entry_key(A)]
    tick(rig)
    rig.deliver()
    assert rig.held == {A}


def test_checks_take_at_most_their_share_of_the_time() -> None:
    rig = in_line(A)
    rig.carry(rig.machine.others_changed(rig.now))
    tick(rig)
    rig.now += 0.5  # the switch takes its time to answer
    rig.deliver()
    rig.carry(rig.machine.others_changed(rig.now))
    assert rig.machine.wake == rig.now + 20 * 0.5


def test_changes_go_on_during_a_check_which_leaves_their_flows_alone() -> None:
    """The switch answers with what it held before the change was committed."""
    rig = in_line(A, B)
    tick(rig)
    shown = [answer for answer in rig.switch.answers if answer[0] == "dump_part"]
    rig.switch.answers.clear()
    ticket = rig.change([C], [A])
    rig.deliver()
    assert rig.settled[ticket] is None
    sent = rig.flow_mods
    rig.switch.answers = list(shown)
    rig.deliver()
    assert (rig.held, rig.flow_mods, rig.machine.counts.repaired) == ({B, C}, sent, 0)
    # The positive control: the same picture without a change in between is put right.
    tick(rig)
    rig.switch.answers = [(name, rig.machine._check.xid, *rest) for name, _, *rest in shown]  # type: ignore[union-attr]
    rig.deliver()
    assert (rig.machine.counts.repaired, rig.flow_mods - sent) == (2, 2)


@pytest.mark.parametrize(("added", "state"), [((B,), State.CHANGING), ((B, C), State.STAGING)])
def test_a_change_under_way_when_a_check_begins_is_left_alone_too(added: tuple[Flow, ...], state: State) -> None:
    rig = in_line(A)
    ticket = rig.change(added)
    assert rig.machine.state is state
    rig.machine._check_at = rig.now
    rig.carry(rig.machine.tick(rig.now))
    assert rig.machine.counts.checks == 1
    rig.deliver()
    assert rig.settled[ticket] is None
    assert (rig.held, rig.flow_mods, rig.machine.counts.repaired) == ({A, *added}, 1 + len(added), 0)


def test_a_check_without_an_answer_gives_the_connection_up() -> None:
    rig = in_line(A)
    tick(rig)
    rig.switch.answers.clear()
    tick(rig)
    assert rig.disconnects == ["no answer while checking its flows"]


def test_a_repair_that_is_refused_is_tried_again() -> None:
    rig = in_line(A)
    rig.switch.flows.clear()
    rig.switch.bad = lambda item: True
    rig.carry(rig.machine.others_changed(rig.now))
    tick(rig)
    rig.deliver()
    assert rig.machine.state is State.RESTING
    rig.switch.bad = lambda item: False
    tick(rig)
    rig.deliver()
    assert (rig.held, rig.machine.converged) == ({A}, True)


def test_what_others_do_before_the_truth_is_said_is_seen() -> None:
    rig = Rig(A)
    rig.connect()
    rig.deliver()
    rig.switch.flows.clear()
    rig.carry(rig.machine.others_changed(rig.now))
    tick(rig)
    rig.deliver()
    rig.desire(A)
    rig.deliver()
    assert rig.held == {A}


def test_what_others_do_while_the_switch_is_read_is_looked_at_afterwards() -> None:
    rig = Rig(A)
    rig.desire(A)
    rig.connect()
    rig.carry(rig.machine.others_changed(rig.now))
    rig.switch.flows.clear()  # after its flows were read
    rig.deliver()
    assert rig.machine.converged
    assert rig.machine.wake is not None
    assert rig.machine.wake - rig.now < 1
    tick(rig)
    rig.deliver()
    assert rig.held == {A}


# --- what is wrong with the bridge itself


LANE = Flow(0, 1, (), (Goto(1),), cookie(Feature.HOST_LANE, 0))
STRANGER = Flow(0, 7, A.match, (Normal(),), Cookie(7))


def test_a_bridge_as_it_must_be_has_no_faults() -> None:
    rig = Rig(LANE)
    rig.connect()
    rig.desire(A)
    rig.deliver()
    assert (list(rig.machine.faults), rig.machine.detail, rig.notices) == ([], "", [])


@pytest.mark.parametrize(
    ("flows", "description", "wrong"),
    [
        ([], PREPARED, "table 0 holds no flow of the agent's"),
        ([LANE, STRANGER], PREPARED, "1 flows in table 0 are not the agent's"),
        ([LANE, Flow(9, 7, A.match, (Normal(),), Cookie(7))], PREPARED, "1 flows in the controller's tables are not"),
        ([LANE], "", "was not prepared for Lark"),
        ([LANE], "my bridge", "was not prepared for Lark"),
    ],
)
def test_what_is_wrong_is_said_once_shown_while_it_lasts_and_stops_nothing(
    flows: list[Flow], description: str, wrong: str
) -> None:
    rig = Rig(*flows)
    rig.switch.description = description
    rig.connect()
    ticket = rig.desire(A)
    rig.deliver()
    for _ in range(3):
        tick(rig)
        rig.deliver()
    assert (rig.settled[ticket], rig.machine.converged) == (None, True)
    assert wrong in rig.machine.detail
    assert [wrong in notice.text for notice in rig.notices if notice.serious] == [True]
    assert rig.held == {*flows, A}
    rig.switch.flows = entries([LANE, A])
    rig.switch.description = PREPARED
    rig.lose()
    rig.connect()
    rig.deliver()
    assert rig.machine.detail == ""
    mended = rig.notices[-1]
    assert mended.kind is Kind.BRIDGE_MENDED
    assert "prepare-bridge" not in mended.text, "what was to be done about it is not said again"


def test_a_flow_that_goes_past_the_policy_is_an_error_that_names_what_it_does_and_is_counted() -> None:
    rig = Rig(LANE)
    rig.connect()
    rig.desire(A)
    rig.deliver()
    assert (rig.machine.bypassed, rig.machine.foreign) == (False, 0)
    rig.switch.flows |= entries([Flow(9, 7, A.match, (), Cookie(7))])
    rig.carry(rig.machine.others_changed(rig.now))
    tick(rig)
    rig.deliver()
    assert (rig.machine.bypassed, rig.machine.foreign) == (False, 1)
    (elsewhere,) = [one for one in rig.notices if one.kind is not None]
    assert ABOUT[elsewhere.kind].level is Level.WARNING
    assert elsewhere.text.endswith("cookie=0x7 actions=drop")
    rig.switch.flows |= entries([STRANGER])
    rig.carry(rig.machine.others_changed(rig.now))
    tick(rig)
    rig.deliver()
    assert (rig.machine.bypassed, rig.machine.foreign) == (True, 2)
    past = rig.notices[-1]
    assert past.kind is not None
    assert ABOUT[past.kind].level is Level.ERROR
    assert past.text.endswith("for example table=0,priority=7,in_port=0x1 cookie=0x7 actions=NORMAL")
    assert rig.held == {LANE, A, STRANGER, Flow(9, 7, A.match, (), Cookie(7))}, "it stays as it is"
    rig.carry(rig.machine.set_role(master=False, generation=1, now=rig.now))
    assert (rig.machine.bypassed, rig.machine.foreign) == (False, 0), "who does not read it cannot know"


def test_a_bridge_that_is_being_set_up_may_lack_table_0_for_a_moment() -> None:
    def lane_told(rig: Rig) -> list[Kind | None]:
        return [one.kind for one in rig.notices if "table 0" in one.text]

    quick, slow = Rig(lane_patience=5), Rig(lane_patience=5)
    for rig in (quick, slow):
        rig.connect()
        rig.desire(A)
        rig.deliver()
        assert "table 0 holds no flow" in rig.machine.detail, "it is shown at once"
        assert lane_told(rig) == []
    quick.switch.flows |= entries([LANE])
    quick.now += 0.7
    quick.carry(quick.machine.others_changed(quick.now))
    for rig in (quick, slow):
        tick(rig)
        rig.deliver()
    assert (lane_told(quick), quick.machine.detail) == ([], "")
    assert lane_told(slow) == [Kind.TABLE_EMPTY]
    assert slow.now == 105.0
    for rig in (quick, slow):
        rig.switch.flows.pop(encode.entry_key(LANE), None)
        rig.carry(rig.machine.others_changed(rig.now))
        tick(rig)
        rig.deliver()
        assert lane_told(rig) == [Kind.TABLE_EMPTY], "told once; at once of a bridge that had it"


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["add", "remove", "replace", "bad", "deliver", "lose", "connect", "restart", "vandal", "later"]
        ),
        st.integers(1, 8),
        st.integers(0, 3),
    ),
    max_size=60,
)


@settings(max_examples=examples(400), deadline=None)
@given(STEPS, st.integers(0, 2**32))
def test_whatever_happens_the_switch_ends_with_the_truth(steps: list[tuple[str, int, int]], seed: int) -> None:
    """Random wishes, losses, restarts, vandals and bad flows: in the end the switch holds exactly what was realised."""
    chance = random.Random(seed)
    foreign = Flow(7, 7, A.match, (Normal(),), Cookie(0x77))
    rig = Rig(foreign)
    rig.switch.bad = lambda item: item[1] is not None and encode.key_priority(item[0]) == 300
    rig.desire()
    connected = False
    wishes: list[tuple[TicketId, Callable[[dict[FlowKey, Flow]], dict[FlowKey, Flow]]]] = []

    def variant(number: int, which: int) -> Flow:
        flow = attempt(number)
        return Flow(flow.table, flow.priority, flow.match, (Goto(6 + which),), flow.cookie)

    for step, number, which in steps:
        flow = variant(number, which)
        if step == "add":
            wishes.append((rig.change([flow]), lambda held, flow=flow: {**held, flow.key: flow}))  # type: ignore[misc]
        elif step == "remove":
            wishes.append(
                (rig.change([], [flow]), lambda held, flow=flow: {k: f for k, f in held.items() if k != flow.key})  # type: ignore[misc]
            )
        elif step == "replace":
            many = {one.key: one for one in (variant(n, which) for n in range(1, number))}
            wishes.append((rig.desire(*many.values()), lambda held, many=many: dict(many)))  # type: ignore[misc]
        elif step == "bad":
            wishes.append((rig.change([impossible(number)], [flow]), lambda held: held))
        elif step == "deliver":
            rig.deliver(chance.randrange(8))
        elif step == "lose" and connected:
            rig.lose()
            connected = False
        elif step == "connect" and not connected:
            rig.connect()
            connected = True
        elif step == "restart" and connected:
            rig.lose()
            connected = False
            rig.switch.flows = entries([foreign])
        elif step == "vandal":
            rig.switch.flows.pop(encode.entry_key(flow), None)
            rig.switch.flows |= entries([variant(8, 3)])
            if connected:
                rig.carry(rig.machine.others_changed(rig.now))
        elif step == "later":
            rig.now += number
            rig.carry(rig.machine.tick(rig.now))
    if not connected:
        rig.connect()
    rig.deliver()
    if rig.machine.wake is not None:
        tick(rig)  # the last vandal may have come after the last look
        rig.deliver()
    held: dict[FlowKey, Flow] = {}
    for ticket, effect in wishes:
        refused = rig.settled[ticket]
        if refused is None:
            held = effect(held)
        else:
            assert refused.startswith("BAD: add table=5,priority=300")
    assert rig.held == {*held.values(), foreign}
    assert rig.machine.converged
    assert rig.switch.answers == []
    assert rig.switch.bundles == {}
    sent = rig.flow_mods
    rig.lose()
    rig.connect()
    rig.deliver()
    assert rig.flow_mods == sent


# --- several controllers ---------------------------------------------------------------------------------------------


def role(rig: Rig, master: bool, generation: int) -> None:
    rig.carry(rig.machine.set_role(master=master, generation=generation, now=rig.now))
    rig.deliver()


def test_one_that_only_reads_asks_for_ports_and_refuses_changes_but_never_reads_flows_or_sends_any() -> None:
    rig = Rig(A)
    role(rig, False, 3)
    rig.connect()
    rig.deliver()
    assert rig.switch.role == "slave"
    assert rig.ports == [{"p1": 1}]
    ticket = rig.desire(B)
    rig.deliver()
    assert rig.settled[ticket] == "another controller is its master"
    assert (rig.machine.counts.dumps, rig.flow_mods, rig.machine.wake) == (0, 0, None)
    assert not rig.machine.converged
    assert rig.held == {A}


def test_whoever_becomes_master_reads_the_flows_only_then_and_sends_none_where_nothing_changed() -> None:
    rig = Rig(A)
    role(rig, False, 3)
    rig.connect()
    rig.deliver()
    rig.switch.flows.update(entries([B]))  # by the master of that time
    role(rig, True, 4)
    rig.desire(A, B)
    rig.deliver()
    assert rig.machine.converged
    assert (rig.switch.role, rig.switch.generation, rig.flow_mods, rig.held) == ("master", 4, 0, {A, B})
    # The control: it is the master, and programs.
    rig.change([C], [A])
    rig.deliver()
    assert rig.held == {B, C}


def test_nothing_is_sent_before_the_switch_has_taken_the_new_master() -> None:
    rig = Rig(A)
    role(rig, False, 3)
    rig.connect()
    rig.deliver()
    rig.carry(rig.machine.set_role(master=True, generation=4, now=rig.now))
    ticket = rig.desire(B)
    assert (rig.machine.counts.dumps, rig.flow_mods) == (0, 0)
    rig.deliver()
    assert rig.settled[ticket] is None
    assert rig.held == {B}


def test_a_switch_that_knows_a_newer_master_is_left_to_it() -> None:
    rig = Rig(A)
    rig.connect()
    rig.switch.generation = 9
    role(rig, True, 4)
    rig.desire(B)
    rig.deliver()
    assert "STALE" in rig.machine.detail
    assert rig.machine.outranked
    assert (rig.flow_mods, rig.held) == (0, {A})
    role(rig, True, 10)
    rig.deliver()
    assert not rig.machine.outranked
    assert rig.held == {B}


def test_a_master_no_more_refuses_what_waits_and_forgets_what_was_wanted() -> None:
    rig = Rig(A)
    role(rig, True, 1)
    rig.connect()
    rig.desire(A)
    rig.deliver()
    ticket = rig.change([B])
    role(rig, False, 2)
    rig.deliver()
    assert rig.settled[ticket] == "another controller is its master"
    assert rig.machine.desired is None
    assert rig.switch.role == "slave"


def test_a_master_asks_again_at_each_connection() -> None:
    rig = Rig(A)
    role(rig, True, 5)
    rig.connect()
    rig.desire(A)
    rig.deliver()
    rig.lose()
    rig.switch.role = "equal"
    rig.connect()
    rig.deliver()
    assert (rig.switch.role, rig.machine.converged) == ("master", True)


def test_a_switch_that_does_not_answer_who_is_master_is_given_up() -> None:
    rig = Rig(A)
    rig.carry(rig.machine.set_role(master=True, generation=1, now=rig.now))
    rig.connect()
    rig.now += 11
    rig.carry(rig.machine.tick(rig.now))
    assert rig.disconnects == ["no answer while asking the switch to be its master"]
