"""Lines of the log that one cause may bring by the thousand: the first is said, then one a minute with their number.

Invariant: of each kind at most one line in SECONDS; what is kept back is counted in the next one.
"""

from __future__ import annotations

import logging

from ryu_apps.life.times import Times

SECONDS = 60.0
LOG = logging.getLogger("lark.controller")


class Seldom:
    """The kinds are few, and not of others' making."""

    def __init__(self, times: Times) -> None:
        self._times = times
        self._said: dict[str, float] = {}
        self._kept_back: dict[str, int] = {}

    def error(self, kind: str, text: str, *values: object) -> None:
        """As `Logger.error`."""
        now = self._times.clock()
        said = self._said.get(kind)
        if said is not None and now - said < SECONDS:
            self._kept_back[kind] = self._kept_back.get(kind, 0) + 1
            return
        more = self._kept_back.pop(kind, 0)
        self._said[kind] = now
        if more:
            LOG.error(text + " (and %d more like this since it was last said)", *values, more)
        else:
            LOG.error(text, *values)
