"""What is said of attempts and bridges to whoever asks. Nothing here changes anything."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from policies.model import Attempt, Role
from policies.wire import AttemptStatus, BridgeRealisation, BridgeStatus, Counters
from ryu_apps.borders import Borders, queue_wish
from ryu_apps.fabric import BridgeState, FabricError
from ryu_apps.life.checks import attempt_of
from ryu_apps.life.present import Present
from ryu_apps.life.records import Records
from ryu_apps.life.telling import Telling
from ryu_apps.openflow import compiler
from ryu_apps.openflow.cookies import FULL_MASK, Feature, cookie
from ryu_apps.refusals import Refused, Slug
from ryu_apps.store.store import AttemptRow
from ryu_apps.views import decision_view

LOG = logging.getLogger("lark.controller")


class Statuses:
    """Builds the messages that answers consist of."""

    def __init__(self, present: Present, telling: Telling, records: Records, borders: Borders) -> None:
        self._present = present
        self._telling = telling
        self._records = records
        self._borders = borders

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
                ports=dict(state.ports),
                detail=state.detail,
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
        switches = self._telling.switches()
        try:
            stats = switches.flow_stats(attempt.bridge, cookie(Feature.ATTEMPT, attempt.number), FULL_MASK)
        except FabricError as problem:
            LOG.warning("attempt=%s bridge=%s: no counters: %s", attempt.id, attempt.bridge, problem)
            return None
        services = self._present.world.policy.services.values()
        return compiler.read_counters(attempt, stats, [service.name for service in services if service.protected])


def no_such_attempt(id: str) -> Refused:
    return Refused(Slug.NO_SUCH_ATTEMPT, f"there is no attempt {id}")
