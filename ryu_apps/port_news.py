"""What has become of the ports that site.yaml declares of a bridge, told from how they were before. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from policies.events import Kind
from policies.model import Bridge


def port_news(
    bridge: Bridge, before: Mapping[str, int] | None, now: Mapping[str, int]
) -> Iterator[tuple[Kind, str, str]]:
    """Kind, sentence and port of each change. `before`: None, if nothing was known of the bridge."""
    for name in bridge.ports:
        was = None if before is None else before.get(name)
        number, wan = now.get(name), name in bridge.wan
        if number is None:
            if before is None or was is not None:
                text = f"it has no port {name}, which site.yaml declares, and is closed until it has"
                yield (Kind.WAN_PORT_MISSING if wan else Kind.BRIDGE_CLOSED), text, name
        elif before is not None and was is None:
            text = f"its port {name} is back (number {number})"
            yield (Kind.WAN_PORT_BACK if wan else Kind.BRIDGE_OPENED), text, name
        elif was is not None and was != number:
            yield Kind.PORT_RENUMBERED, f"its port {name} has number {number} now, not {was}; its flows follow", name
