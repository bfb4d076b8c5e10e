"""What was refused to attempts is asked of the switches before its counters go. Whoever calls has the lock.

Among several controllers the one asks that is master of the bridge, whoever ends the attempt.
"""

from __future__ import annotations

import logging

from policies.model import Policy
from ryu_apps.fabric import FabricError
from ryu_apps.life.counting import Counting
from ryu_apps.life.present import Present
from ryu_apps.life.telling import Telling
from ryu_apps.openflow.cookies import FEATURE_MASK, FULL_MASK, Feature, cookie
from ryu_apps.refusal_log import Ended, RefusalLog, told_apart, words
from ryu_apps.store.store import AttemptRow

LOG = logging.getLogger("lark.controller")


class LastCounts:
    """Puts the questions; `log` says the answers when they come."""

    def __init__(self, present: Present, telling: Telling, log: RefusalLog, counting: Counting) -> None:
        self._counting = counting
        self._present = present
        self._telling = telling
        self.log = log

    def of_attempt(self, id: str) -> None:
        """Ask what was refused to an attempt whose flows are about to go; `tick` says it in the log."""
        about = self._to_tell(self._present.rows[id])
        attempt = about.attempt
        if attempt.bridge not in self._telling.mine:
            return  # its master takes the flows away, and asks before
        self._counting.ends(attempt)
        try:
            if self.log.full:
                raise FabricError("too many answers are waited for")
            switches = self._telling.switches()
            question = switches.ask_counts(attempt.bridge, cookie(Feature.ATTEMPT, attempt.number), FULL_MASK)
        except FabricError:
            self.log.uncounted(attempt.number)
        else:
            self.log.ended(about, question)

    def until_now(self, policy: Policy) -> None:
        """Ask what was refused so far on nodes where another policy treats refusals otherwise."""
        self._counting.meters_change()
        world = self._present.world
        rows: dict[str, list[AttemptRow]] = {}
        for row in self._present.rows.values():
            rows.setdefault(row.spec.node, []).append(row)
        for node in told_apart(world.policy, policy, rows):
            bridge = world.site.nodes[node].bridge
            try:
                question = self._telling.switches().ask_counts(bridge, cookie(Feature.ATTEMPT, 0), FEATURE_MASK)
            except FabricError as problem:
                LOG.warning("node=%s: what was refused until now is not told: %s", node, problem)
            else:
                present = [self._to_tell(row) for row in rows[node]]
                self.log.mode_changes(node, words(policy, node), present, question)

    def _to_tell(self, row: AttemptRow) -> Ended:
        world = self._present.world
        return Ended(world.attempts[row.id], row.spec.job, words(world.policy, row.spec.node))
