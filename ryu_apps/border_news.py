"""What borders' agents report, as events: what is new among their findings, what has gone, links that changed speed.

Invariant: what goes on is told once; a report that says the same as the one before tells nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from policies.events import Kind
from policies.values import in_words
from policies.wire import QueueReport
from ryu_apps.events import Events

_FINDINGS = frozenset({Kind.WAN_PORT_DOWN, Kind.BORDER_QDISC_FOREIGN, Kind.FAIL_MODE_WRONG})
"""What an agent may find; all else is a `border-fault`."""
_TOLD_ALREADY = Kind.WAN_PORT_MISSING
"""The bridge itself tells of its ports, and as soon."""
_MENDED = {
    Kind.WAN_PORT_DOWN: (Kind.WAN_PORT_BACK, "it has its link again"),
    Kind.FAIL_MODE_WRONG: (Kind.BRIDGE_MENDED, "without a controller it would stay closed again"),
    Kind.BORDER_QDISC_FOREIGN: (Kind.BORDER_MENDED, "nobody else shapes it any more"),
}


@dataclass(slots=True)
class _Border:
    found: Mapping[tuple[Kind, str, str], None] = field(default_factory=dict)
    """Kind, port, sentence."""
    speeds: Mapping[str, int] = field(default_factory=dict)
    repaired: Mapping[str, int] | None = None
    """None: it has reported nothing to this controller before."""


class BorderNews:
    """One for all borders; reports of one border come one after the other."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._borders: dict[str, _Border] = {}

    def hear(self, bridge: str, report: QueueReport) -> None:
        before = self._borders.get(bridge, _Border())
        speeds = {port: one.speed for port, one in report.ports.items() if one.speed is not None}
        now = _Border(_found(report), speeds, report.repaired)
        self._borders[bridge] = now
        still = {(kind, port) for kind, port, _ in now.found}
        for kind, port, text in before.found:
            if (kind, port, text) not in now.found and (kind is Kind.BORDER_FAULT or (kind, port) not in still):
                # Without what was to be done about it.
                mended, words = _MENDED.get(kind, (Kind.BORDER_MENDED, f"no longer: {text.partition('; ')[0]}"))
                self._events.tell(mended, words, bridge=bridge, port=port)
        for kind, port, text in now.found:
            if (kind, port, text) not in before.found:
                self._events.tell(kind, text, bridge=bridge, port=port)
        known = report.repaired if before.repaired is None else before.repaired
        for port, count in report.repaired.items():
            was = known.get(port, 0)
            fresh = count - was if count >= was else count  # less: an agent that has started anew
            if fresh:
                text = f"somebody else removed or altered its queues, which are put back: {fresh} parts of them"
                self._events.tell(Kind.QUEUES_REPAIRED, text, bridge=bridge, port=port)
        for port, speed in now.speeds.items():
            was = before.speeds.get(port, speed)
            if was != speed:
                text = f"the link of port {port} runs at {in_words(speed)} now, not at {in_words(was)}"
                self._events.tell(Kind.WAN_PORT_SPEED_CHANGED, text, bridge=bridge, port=port)


def _found(report: QueueReport) -> dict[tuple[Kind, str, str], None]:
    if not report.findings:
        return dict.fromkeys((Kind.BORDER_FAULT, "", text) for text in report.faults)
    findings = [one for one in report.findings if one.kind != _TOLD_ALREADY.value]
    return dict.fromkeys((_kind(one.kind), one.port or "", one.text) for one in findings)


def _kind(word: str) -> Kind:
    return next((kind for kind in _FINDINGS if kind.value == word), Kind.BORDER_FAULT)
