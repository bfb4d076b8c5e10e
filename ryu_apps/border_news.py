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
_MENDED = {Kind.WAN_PORT_DOWN: Kind.WAN_PORT_BACK, Kind.FAIL_MODE_WRONG: Kind.BRIDGE_MENDED}


@dataclass(slots=True)
class _Border:
    found: Mapping[tuple[Kind, str, str], None] = field(default_factory=dict)
    """Kind, port, sentence."""
    speeds: Mapping[str, int] = field(default_factory=dict)


class BorderNews:
    """One for all borders; reports of one border come one after the other."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._borders: dict[str, _Border] = {}

    def hear(self, bridge: str, report: QueueReport) -> None:
        before = self._borders.get(bridge, _Border())
        now = _Border(_found(report), {port: one.speed for port, one in report.ports.items() if one.speed is not None})
        self._borders[bridge] = now
        still = {(kind, port) for kind, port, _ in now.found}
        for kind, port, text in before.found:
            if (kind, port, text) not in now.found and (kind is Kind.BORDER_FAULT or (kind, port) not in still):
                self._events.tell(_MENDED.get(kind, Kind.BORDER_MENDED), f"no longer: {text}", bridge=bridge, port=port)
        for kind, port, text in now.found:
            if (kind, port, text) not in before.found:
                self._events.tell(kind, text, bridge=bridge, port=port)
        for port, speed in now.speeds.items():
            was = before.speeds.get(port, speed)
            if was != speed:
                text = f"the link of port {port} runs at {in_words(speed)} now, not at {in_words(was)}"
                self._events.tell(Kind.WAN_PORT_SPEED_CHANGED, text, bridge=bridge, port=port)


def _found(report: QueueReport) -> dict[tuple[Kind, str, str], None]:
    if not report.findings:
        return dict.fromkeys((Kind.BORDER_FAULT, "", text) for text in report.faults)
    return dict.fromkeys((_kind(one.kind), one.port or "", one.text) for one in report.findings)


def _kind(word: str) -> Kind:
    return next((kind for kind in _FINDINGS if kind.value == word), Kind.BORDER_FAULT)
