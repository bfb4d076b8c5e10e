"""What each bridge is told: the whole truth when it is new, deltas from then on; slice peers and standing flows follow.

    shift(old, new) ──▶ flows that go, flows that come, on each bridge ──▶ Fabric.change ──▶ tickets

Invariants: what a bridge was told always equals `compiler.desired_flows` of the present world: the increments are an
optimisation. Nothing is said to a bridge before its ports are known, nor to one that another controller is master of.
Whoever calls has the lock of `Present`, but for `switches` and `state`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from policies.events import Kind
from policies.model import Attempt, Outcome, Role, ShareKey
from ryu_apps.events import Events
from ryu_apps.fabric import BridgeState, Fabric, Ticket, TicketResult
from ryu_apps.fabric import Outcome as Settled
from ryu_apps.life.present import Present
from ryu_apps.openflow import compiler
from ryu_apps.openflow.delta import Delta, Memberships, Part, Shapes
from ryu_apps.openflow.meters import MeterRule, Rule, RuleKey
from ryu_apps.openflow.tracked import outlived
from ryu_apps.openflow.whole import Whole
from ryu_apps.port_news import port_news
from ryu_apps.refusals import Refused, Slug
from ryu_apps.shared import Elsewhere

LOG = logging.getLogger("lark.controller")


@dataclass(frozen=True, slots=True)
class Told:
    """Tickets of a change: of the bridges that must confirm it, and of those that only follow (slice peers').

    `less`: the attempt may do less than before, so that its zone is to be emptied.
    """

    concerned: dict[str, Ticket]
    peers: dict[str, Ticket]
    less: bool = False


@dataclass(frozen=True, slots=True)
class _Outlived:
    """Zones that may remember what is not allowed any more. `ticket`: of what allows less; of the emptying itself when
    that was `told`; None in between."""

    zones: frozenset[int]
    ticket: Ticket | None
    told: bool = False


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


class Telling:
    """`mine`: the bridges that this controller is master of; all of them where it is alone."""

    def __init__(self, present: Present, mine: Iterable[str], events: Events) -> None:
        self._present = present
        self._events = events
        self._fabric: Fabric | None = None
        self.mine = set(mine)
        bridges = present.world.site.bridges
        self._uses: dict[str, Counter[Outcome]] = {bridge: Counter() for bridge in bridges}
        self._base: dict[str, dict[RuleKey, Rule]] = {bridge: {} for bridge in bridges}
        self._standing: dict[str, list[Ticket]] = {}
        self._outlived: dict[str, list[_Outlived]] = {}
        self._shapes: dict[str | None, Shapes] = {}
        self._mates: Memberships | None = None
        self._unheard = {bridge: _Later(bridge) for bridge in bridges}

    # --- the switches -------------------------------------------------------------------------------------------------

    @property
    def begun(self) -> bool:
        return self._fabric is not None

    def begin(self, fabric: Fabric) -> dict[str, Ticket]:
        """Here are the switches; say everything."""
        self._fabric = fabric
        return self.say_everything()

    def switches(self) -> Fabric:
        """Raises Refused before `begin`."""
        if self._fabric is None:
            raise Refused(Slug.STARTING, "the controller is starting; try again")
        return self._fabric

    def state(self, bridge: str) -> BridgeState:
        return self.switches().bridge(bridge)

    def connected(self, bridge: str) -> bool:
        return self.switches().connected(bridge)

    def with_jobs(self) -> set[str]:
        """Bridges that hold flows of jobs."""
        return {bridge for bridge, uses in self._uses.items() if uses}

    def ports(self, bridge: str, ports: Mapping[str, int]) -> None:
        """Standing flows follow the numbers of a bridge's declared ports."""
        # Ports of jobs come and go; only the declared ones mean something to the standing flows.
        site = self._present.world.site
        declared = {name: ports[name] for name in site.bridges[bridge].ports if name in ports}
        meterless = self._fabric is not None and not self._fabric.bridge(bridge).meters
        other_meters = self._present.set_meterless(bridge, meterless)
        if other_meters and meterless and Role.WORKER in site.bridges[bridge].roles:
            text = (
                "its switch has no meters: jobs with a rate or a share do not start there, and a job's ARP and "
                "neighbour discovery are without limit"
            )
            self._events.tell(Kind.BRIDGE_METERLESS, text, bridge=bridge)
        before = self._present.world.ports.get(bridge)
        if self._present.set_ports(bridge, declared) or other_meters:
            self.follow_base([bridge])
            for kind, text, port in port_news(site.bridges[bridge], before, declared):
                self._events.tell(kind, text, bridge=bridge, port=port)
        unheard = self._unheard.pop(bridge, None)
        if unheard is not None:
            unheard.settle_by(self.say([bridge])[bridge])

    def master(self, bridge: str, generation: int) -> Ticket:
        """This controller is the bridge's master from now on: say the whole truth."""
        self.mine.add(bridge)
        self.switches().set_role(bridge, master=True, generation=generation)
        return self.say([bridge])[bridge]

    def slave(self, bridge: str, generation: int) -> bool:
        """Leave the bridge to its master; tells whether this controller was that."""
        was = bridge in self.mine
        self.mine.discard(bridge)
        self.switches().set_role(bridge, master=False, generation=generation)
        self._standing.pop(bridge, None)
        self._outlived.pop(bridge, None)
        return was

    # --- deltas -------------------------------------------------------------------------------------------------------

    def shift(self, old: Attempt | None, new: Attempt | None) -> Told:
        """Replace one attempt by another (or none) in the world, and tell the bridges the difference."""
        world = self._present.world
        here_before = compiler.bridges_of(world, old) if old is not None else ()
        before = {} if old is None else {bridge: self._own(bridge, old) for bridge in here_before}
        meters_before = self._share_meters(old, new)
        self._present.swap(old, new)
        memberships = self._shift_membership(old, new)
        here_after = compiler.bridges_of(world, new) if new is not None else ()
        tickets: dict[str, Ticket] = {}
        worker = next(one.bridge for one in (new, old) if one is not None)
        for bridge in dict.fromkeys((*here_before, *here_after)):
            gone, come = memberships.pop(bridge, (Delta(), Delta()))
            uses = self._uses[bridge]
            outcomes = {a.outcome for a in (old, new) if a is not None}
            had = {outcome: uses[outcome] for outcome in outcomes}
            if old is not None and bridge in here_before:
                gone.put(before[bridge])
                uses[old.outcome] -= 1
            if new is not None and bridge in here_after:
                come.put(self._own(bridge, new))
                uses[new.outcome] += 1
            if bridge == worker:
                gone.put(meters_before)
                come.put(self._share_meters(old, new))
            for outcome in outcomes:
                if had[outcome] and not uses[outcome]:
                    gone.put(compiler.identity_flows(world, bridge, outcome))
                elif uses[outcome] and not had[outcome]:
                    come.put(compiler.identity_flows(world, bridge, outcome))
                if not uses[outcome]:
                    del uses[outcome]
            tickets[bridge] = self.tell(bridge, gone, come)
        peers = {bridge: self.tell(bridge, gone, come) for bridge, (gone, come) in memberships.items()}
        less = False
        if old is not None and new is not None and old.outcome != new.outcome and outlived(world, old, world, new):
            less = True  # by a later phase, or a row of another controller
            self.outlive(worker, tickets[worker], [new.zone])
        if old is not None:
            self._present.release(old)
        return Told(tickets, peers, less)

    def _share_meters(self, *attempts: Attempt | None) -> list[MeterRule]:
        """The meters that the shares of these have, if anybody has them now."""
        found: dict[ShareKey, list[MeterRule]] = {}
        for one in attempts:
            key = None if one is None else one.share_key
            sharers = None if key is None else self._present.sharers.get(key)
            if key is not None and sharers:
                found[key] = compiler.share_meters(self._present.world, next(iter(sharers.values())))
        return [meter for meters in found.values() for meter in meters]

    def _own(self, bridge: str, attempt: Attempt) -> Part | list[Rule]:
        """What an attempt has on a bridge; of a share, which others may come to lead, as it is now."""
        world = self._present.world
        if attempt.share is not None:
            return compiler.attempt_rules(world, bridge, attempt)
        where = None if bridge == attempt.bridge else bridge
        shapes = self._shapes.get(where)
        if shapes is None or shapes.world is not world:
            shapes = self._shapes[where] = Shapes(world, where)
        return shapes.of(attempt)

    def _membership(self, attempt: Attempt) -> Part:
        """That an attempt is in its slice."""
        world = self._present.world
        if self._mates is None or self._mates.world is not world:
            self._mates = Memberships(world)
        return self._mates.of(attempt)

    def _shift_membership(self, old: Attempt | None, new: Attempt | None) -> dict[str, tuple[Delta, Delta]]:
        """What goes and comes on each bridge because a slice loses or gains a member.

        A bridge knows all members of the slices that have a job on it, and no others.
        """
        members = self._present.members
        changes: dict[str, tuple[Delta, Delta]] = {}
        parts: dict[int, Part] = {}

        def told(attempts: Iterable[Attempt], into: Delta) -> None:
            for one in attempts:
                if one.slice == name and not one.outcome.sealed:
                    part = parts.get(id(one))
                    if part is None:
                        part = parts[id(one)] = self._membership(one)
                    into.put(part)

        for name in dict.fromkeys(a.slice for a in (old, new) if a is not None):
            if name is None:
                continue
            were = members.get(name, {})
            will = dict(were)
            if old is not None:
                will.pop(old.id, None)
            if new is not None and new.slice == name:
                will[new.id] = new
            held = {a.bridge for a in were.values() if not a.outcome.sealed}
            holds = {a.bridge for a in will.values() if not a.outcome.sealed}
            for bridge in sorted(held | holds):
                gone, come = changes.setdefault(bridge, (Delta(), Delta()))
                if bridge in held:
                    told(were.values() if bridge not in holds else [a for a in (old,) if a is not None], gone)
                if bridge in holds:
                    told(will.values() if bridge not in held else [a for a in (new,) if a is not None], come)
            if will:
                members[name] = will
            else:
                members.pop(name, None)
        return changes

    def follow_up(self, peers: Mapping[str, Ticket]) -> None:
        """Bridges of slice peers: nobody waits for them (they are closed until they know), but a refusal is noticed."""
        for bridge, ticket in peers.items():
            if bridge in self.mine:
                self._standing.setdefault(bridge, []).append(ticket)

    def tell(self, bridge: str, gone: Sequence[Rule], come: Sequence[Rule]) -> Ticket:
        """The difference between what goes and what comes."""
        if bridge not in self.mine:
            return Elsewhere(bridge)
        unheard = self._unheard.get(bridge)
        if unheard is not None:
            return unheard
        if not gone or not come:
            # A job begins or ends: there is nothing to compare, and to compare flows costs more than to write them.
            removed = gone.keys if isinstance(gone, Delta) else [flow.key for flow in gone]
            return self.switches().change(bridge, come, removed)
        was = {flow.key: flow for flow in gone}
        will = {flow.key: flow for flow in come}
        add = [flow for key, flow in will.items() if was.get(key) != flow]
        remove = [key for key in was if key not in will]
        return self.switches().change(bridge, add, remove)

    def repeat(self, id: str) -> dict[str, Ticket]:
        """Ask the bridges of an attempt to confirm what is in force already; sends nothing where it is."""
        world = self._present.world
        attempt = world.attempts[id]
        return {
            bridge: self.tell(bridge, [], self._rules(bridge, attempt))
            for bridge in compiler.bridges_of(world, attempt)
        }

    def confirmation(self, id: str, bridge: str) -> Ticket:
        """The same for one bridge, which may not be heard of yet."""
        world = self._present.world
        return self.tell(bridge, [], self._rules(bridge, world.attempts[id]))

    def _rules(self, bridge: str, attempt: Attempt) -> list[Rule]:
        """What a bridge needs for an attempt."""
        world = self._present.world
        shared = compiler.share_meters(world, attempt) if bridge == attempt.bridge else []
        return [*shared, *compiler.attempt_rules(world, bridge, attempt)]

    def follow_base(self, bridges: Iterable[str]) -> None:
        """Bring the standing flows of bridges in line with the world."""
        if self._fabric is None:
            return
        for bridge in bridges:
            if bridge in self._unheard or bridge not in self.mine:
                continue
            old = self._base[bridge]
            new = {rule.key: rule for rule in compiler.base_rules(self._present.world, bridge)}
            if new != old:
                self._base[bridge] = new
                self._standing.setdefault(bridge, []).append(self.tell(bridge, list(old.values()), list(new.values())))

    # --- the whole truth ----------------------------------------------------------------------------------------------

    def say(self, bridges: Iterable[str]) -> dict[str, Ticket]:
        """Say the whole truth of bridges anew, from the world alone."""
        world = self._present.world
        tickets: dict[str, Ticket] = {}
        for bridge in bridges:
            unheard = self._unheard.get(bridge)
            if bridge not in self.mine:
                tickets[bridge] = Elsewhere(bridge)
                continue
            if unheard is not None:
                tickets[bridge] = unheard
                continue
            base = self._base[bridge] = {rule.key: rule for rule in compiler.base_rules(world, bridge)}
            whole = Whole(self._present.seen_from(bridge), bridge, base.values())
            tickets[bridge] = self.switches().set_desired(bridge, whole)
            self._standing[bridge] = [tickets[bridge]]
        return tickets

    def say_everything(self) -> dict[str, Ticket]:
        """After the world was replaced as a whole: count afresh which bridge uses what, and say all of it."""
        world = self._present.world
        self._uses = {bridge: Counter() for bridge in world.site.bridges}
        # Attempts share their outcomes' objects: each is asked for once on each bridge, not each attempt.
        alike: dict[tuple[str, int], list[Attempt]] = {}
        for attempt in world.attempts.values():
            alike.setdefault((attempt.bridge, id(attempt.outcome)), []).append(attempt)
        for same in alike.values():
            for bridge in compiler.bridges_of(world, same[0]):
                self._uses[bridge][same[0].outcome] += len(same)
        return self.say(world.site.bridges)

    # --- connections that were allowed ------------------------------------------------------------------------------

    def outlive(self, bridge: str, ticket: Ticket, zones: Iterable[int]) -> None:
        """What these zones remember may not be allowed any more by what the ticket stands for.

        A bridge of another's is left to its master, who finds the mark in the row (`life.emptying`).
        """
        found = frozenset(zones)
        if found and bridge in self.mine:
            self._outlived.setdefault(bridge, []).append(_Outlived(found, ticket))

    def outlives(self, bridge: str, zone: int) -> bool:
        """Whether a zone is still to be emptied here."""
        return any(zone in one.zones for one in self._outlived.get(bridge, ()))

    def forget(self) -> dict[str, set[int]]:
        """Have connections forgotten where the flows are in force that allow less; before, they would come again.
        Gives the zones, by bridge, that were confirmed to be empty since the last call.

        Call about once a second: what a switch has confirmed reaches its cache of decisions up to half a second later,
        so connections go with the call after. What a switch refuses to forget, or does not live to confirm, it is told
        again as soon as it is there and in line.
        """
        done: dict[str, set[int]] = {}
        for bridge in list(self._outlived):
            left: list[_Outlived] = []
            due: set[int] = set()
            emptied: set[int] = set()
            for one in self._outlived.pop(bridge):
                result = None if one.ticket is None else one.ticket.result()
                if one.ticket is None:
                    due |= one.zones
                elif result is None:
                    left.append(one)
                elif result.realised and one.told:
                    emptied |= one.zones
                elif result.realised:
                    left.append(_Outlived(one.zones, None))
                elif one.told:
                    LOG.warning(
                        "bridge=%s has not confirmed that it forgets the connections of %d jobs that may do less now "
                        "(%s): it is told again",
                        bridge, len(one.zones), result.reason,
                    )  # fmt: skip
                    left.append(_Outlived(one.zones, self.tell(bridge, [], [])))
                else:
                    left.append(_Outlived(one.zones, self.say([bridge])[bridge]))
            if due:
                ticket = self.switches().forget_connections(bridge, sorted(due))
                left.append(_Outlived(frozenset(due), ticket, told=True))
            if emptied:
                LOG.info(
                    "bridge=%s has forgotten the connections of %d jobs that may do less now", bridge, len(emptied)
                )
                done[bridge] = emptied.difference(*(one.zones for one in left))
            if left:
                self._outlived[bridge] = left
        return done

    def unconfirmed(self) -> list[str]:
        """Bridges of this controller that have not confirmed their standing flows, or are not heard of yet."""
        open_ones = {bridge for bridge, tickets in self._standing.items() if any(t.result() is None for t in tickets)}
        return sorted(self.mine & (open_ones | set(self._unheard)))

    def insist(self) -> None:
        """Nobody waits for standing flows; what a switch refused of them is said again, as a whole."""
        for bridge, tickets in list(self._standing.items()):
            results = [(ticket, ticket.result()) for ticket in tickets]
            refused = [result for _, result in results if result is not None and result.outcome is Settled.REFUSED]
            if refused:
                LOG.error("bridge=%s refused its standing flows (%s); they are sent again", bridge, refused[0].reason)
                self.say([bridge])
            elif left := [ticket for ticket, result in results if result is None]:
                self._standing[bridge] = left
            else:
                del self._standing[bridge]
