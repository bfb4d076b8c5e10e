"""What is said of attempts and bridges to whoever asks. Nothing here changes anything."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence

from policies.model import Attempt, Bridge, Role
from policies.wire import (
    AttemptStatus,
    BridgeRealisation,
    BridgeStatus,
    Counters,
    Crossed,
    Dropped,
    JobStats,
    Refusals,
    ShareStats,
    SiteStats,
)
from ryu_apps.borders import Borders, queue_wish
from ryu_apps.fabric import BridgeState, FabricError
from ryu_apps.life.checks import attempt_of
from ryu_apps.life.counting import Counting
from ryu_apps.life.limits import Shared
from ryu_apps.life.present import Present
from ryu_apps.life.records import Records
from ryu_apps.life.telling import Telling
from ryu_apps.openflow import compiler
from ryu_apps.openflow.counters import Slot
from ryu_apps.openflow.meters import Way
from ryu_apps.refusals import Refused, Slug
from ryu_apps.store.store import AttemptRow
from ryu_apps.views import decision_view, sharers

LOG = logging.getLogger("lark.controller")
MOST_SHARES = 100
"""Shares told of: on a large site each user has one on each node."""
PATIENCE = 5.0
"""Seconds that a switch has to tell an attempt's counters."""


class Statuses:
    """Builds the messages that answers consist of."""

    def __init__(
        self, present: Present, telling: Telling, records: Records, borders: Borders, counting: Counting
    ) -> None:
        self._present = present
        self._telling = telling
        self._records = records
        self._borders = borders
        self._counting = counting

    def attempt(self, id: str) -> AttemptStatus:
        """An attempt with its counters. Raises Refused."""
        with self._present.lock:
            row = self._present.rows.get(id)
            attempt = self._present.world.attempts.get(id)
        if row is None or attempt is None:
            raise no_such_attempt(id)
        return self.of(row, self._seen(row, self._states()), self._counters(attempt))

    def attempts(self, job: str | None, node: str | None) -> list[AttemptStatus]:
        """Attempts (without counters) in the order in which they were registered."""
        with self._present.lock:
            rows = sorted(self._present.rows.values(), key=lambda row: row.number)
        states = self._states()
        return [
            self.of(row, self._seen(row, states))
            for row in rows
            if (job is None or row.spec.job == job) and (node is None or row.spec.node == node)
        ]

    def bridges(self) -> list[BridgeStatus]:
        """Every bridge as the fabric sees it."""
        world = self._present.world
        site = world.site
        return [
            BridgeStatus(
                bridge=state.bridge,
                datapath_id=f"{state.datapath_id:016x}",
                roles=sorted(role.value for role in site.bridges[state.bridge].roles),
                connected=state.connected,
                converged=state.converged,
                flows=state.flows,
                foreign_flows=state.foreign,
                bypassed=state.bypassed,
                ports=dict(state.ports),
                missing=(missing := _missing(site.bridges[state.bridge], state)),
                detail="; ".join(filter(None, (state.detail, _lacks(missing)))),
                queues=self._borders.status(state.bridge, queue_wish(world.policy, site, state.bridge))
                if Role.BORDER in site.bridges[state.bridge].roles
                else None,
            )
            for state in self._telling.switches().bridges()
        ]

    def of(
        self, row: AttemptRow, bridges: Mapping[str, BridgeRealisation], counters: Counters | None = None
    ) -> AttemptStatus:
        """The answer about an attempt."""
        return AttemptStatus(
            id=row.id,
            spec=row.spec,
            decision=decision_view(self._present.world.policy, row.spec.node, row.identity, row.decision),
            bridges=dict(bridges),
            counters=counters,
            policy=row.digest,
        )

    def bridges_of(self, row: AttemptRow) -> tuple[str, ...]:
        return compiler.bridges_of(self._present.world, attempt_of(row))

    def _states(self) -> dict[str, BridgeState]:
        return {state.bridge: state for state in self._telling.switches().bridges()}

    def _seen(self, row: AttemptRow, states: Mapping[str, BridgeState]) -> dict[str, BridgeRealisation]:
        waiting, mine = self._records.waiting(row), self._telling.mine
        return {
            bridge: BridgeRealisation.REALISED
            if (states[bridge].converged if bridge in mine else bridge not in waiting)
            else BridgeRealisation.PENDING
            for bridge in self.bridges_of(row)
        }

    def _counters(self, attempt: Attempt) -> Counters | None:
        world = self._present.world
        bridges = world.site.bridges
        borders = [name for name in compiler.bridges_of(world, attempt) if Role.BORDER in bridges[name].roles]
        try:
            found = self._counting.ask(attempt, attempt.bridge, PATIENCE)
        except FabricError as problem:
            LOG.warning("attempt=%s bridge=%s: no counters: %s", attempt.id, attempt.bridge, problem)
            return None
        crossed: dict[str, Crossed] = {}
        for border in borders:
            with contextlib.suppress(FabricError):
                there = self._counting.ask(attempt, border, PATIENCE)
                packets, octets = there.seen[Slot.CROSSED]
                crossed[border] = Crossed(packets=packets, bytes=octets, rate=there.crossing)
        services = [service.name for service in world.policy.services.values() if service.protected]
        counters = compiler.read_counters(attempt, found.seen, services)
        return counters.model_copy(
            update={
                "admitted_rate": found.sending,
                "delivered_rate": found.receiving,
                "dropped": None if found.dropped is None else _dropped(found.dropped.__getitem__),
                "share": None
                if found.share is None or attempt.share is None
                else _share(attempt.bridge, attempt.share.name, found.share),
                "borders": crossed,
            }
        )

    def stats(self) -> SiteStats:
        """What borders' classes and all jobs together have carried."""
        world = self._present.world
        borders, classes = [], []
        for name, bridge in sorted(world.site.bridges.items()):
            if Role.BORDER in bridge.roles:
                about, found = self._borders.stats(bridge, queue_wish(world.policy, world.site, name))
                refused = (self._counting.forbidden.of(name) or {}) if name in self._telling.mine else {}
                told = [Refusals(reason=why, packets=one[0], bytes=one[1]) for why, one in refused.items()]
                borders.append(about.model_copy(update={"refused": told}))
                classes += found
        with self._present.lock:
            attempts = len(self._present.rows)
        totals, limits = self._counting.totals, self._counting.limits
        (sent_packets, sent_bytes), (received_packets, received_bytes) = map(self._counting.carried, Way)
        shares = [_share(*one) for one in limits.shares() if one[0] in self._telling.mine]
        shares.sort(key=lambda one: -one.dropped.sent_packets - one.dropped.received_packets)
        return SiteStats(
            classes=classes,
            borders=borders,
            jobs=JobStats(
                attempts=attempts,
                sent_packets=sent_packets,
                sent_bytes=sent_bytes,
                received_packets=received_packets,
                received_bytes=received_bytes,
                refused=[
                    Refusals(reason=why, packets=packets, bytes=octets)
                    for why, (packets, octets) in sorted(totals.refused.items())
                ],
                rate_dropped=_dropped(lambda way: limits.dropped["rate", way]),
                share_dropped=_dropped(lambda way: limits.dropped["share", way]),
            ),
            shares=sorted(shares[:MOST_SHARES], key=lambda one: (one.bridge, one.name)),
        )


def _dropped(of: Callable[[Way], Sequence[int]]) -> Dropped:
    sent, received = of(Way.OUT), of(Way.IN)
    return Dropped(sent_packets=sent[0], sent_bytes=sent[1], received_packets=received[0], received_bytes=received[1])


def _share(bridge: str, name: str, one: Shared) -> ShareStats:
    sent, received = one.limit.passed(Way.OUT), one.limit.passed(Way.IN)
    rates = {way: pace.rate for way, pace in one.paces.items()}
    return ShareStats(
        bridge=bridge,
        name=sharers(name) or "all jobs",
        sent_packets=sent[0],
        sent_bytes=sent[1],
        received_packets=received[0],
        received_bytes=received[1],
        sent_rate=rates.get(Way.OUT, 0),
        received_rate=rates.get(Way.IN, 0),
        dropped=_dropped(one.limit.dropped),
    )


def no_such_attempt(id: str) -> Refused:
    return Refused(Slug.NO_SUCH_ATTEMPT, f"there is no attempt {id}")


def _missing(bridge: Bridge, state: BridgeState) -> list[str]:
    """Declared ports that a connected bridge does not have: it is closed until they are there, however well it does as
    it is told."""
    return sorted(set(bridge.ports) - set(state.ports)) if state.connected else []


def _lacks(missing: list[str]) -> str:
    return (
        f"it has no port {', '.join(missing)}, which site.yaml declares, and is closed until it has" if missing else ""
    )
