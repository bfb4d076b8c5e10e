"""What an agent said of an attempt, as this program stored it, read back faster than a stranger's message.

It was checked when it came (`policies.wire.AttemptSpec`), and the controller compares its addresses with the site's
again. So only its form is looked at here: every key, every type, addresses that are addresses. Invariant: whatever is
not exactly as this program writes it is left to the full check, which says what is wrong with it.
"""

from __future__ import annotations

import json
import re
import sys
from socket import AF_INET, AF_INET6, inet_pton
from typing import Any, TypeVar

from pydantic import BaseModel

from policies.wire import AttemptSpec, Phase, PortSpec

_PHASES = {phase.value: phase for phase in Phase}
_NEEDED = frozenset({"node", "port", "mac", "ipv4", "zone", "ad"})
_ALL = frozenset(AttemptSpec.model_fields)
_PORT = frozenset(PortSpec.model_fields)
_PORT_FIELDS = set(_PORT)
"""One for all: the models are frozen, and nobody changes it."""
_FIELDS: dict[frozenset[str], set[str]] = {}
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_SCALARS = frozenset({str, int, float, bool})
_NOTHING: dict[str, Any] = {}
"""What most say of their slot. One for all: see above."""
_DECODE = json.JSONDecoder().raw_decode
ModelT = TypeVar("ModelT", bound=BaseModel)


def spec_from_text(text: str) -> AttemptSpec | None:
    """None: it is not as this program writes it."""
    try:
        value, end = _DECODE(text)
        if end != len(text) or not _fits(value):
            return None
    except (ValueError, TypeError, AttributeError, KeyError, OSError):
        return None
    port = value["port"]
    keys = frozenset(value)
    # Whom thousands of rows name is kept once.
    return _made(
        AttemptSpec,
        _FIELDS.setdefault(keys, set(keys)),
        {
            "node": sys.intern(value["node"]),
            "port": _made(
                PortSpec,
                _PORT_FIELDS,
                {"bridge": sys.intern(port["bridge"]), "name": sys.intern(port["name"]), "ofport": port["ofport"]},
            ),
            "mac": value["mac"],
            "ipv4": value["ipv4"],
            "ipv6": value.get("ipv6"),
            "zone": value["zone"],
            "phase": _PHASES[value.get("phase", Phase.STAGE_IN.value)],
            "ad": _shared(value["ad"]),
            "slot": _shared(value["slot"]) if value.get("slot") else _NOTHING,
            "job": value.get("job"),
        },
    )


def _shared(ad: dict[str, Any]) -> dict[str, Any]:
    """Thousands of jobs have the same attributes, and a few users."""
    intern = sys.intern
    return {intern(name): intern(one) if type(one) is str else one for name, one in ad.items()}


def _made(model: type[ModelT], given: set[str], content: dict[str, Any]) -> ModelT:
    """A model of fields that have been looked at. As one is unpickled: `model_construct` takes three times as long."""
    made = model.__new__(model)
    made.__setstate__(
        {
            "__dict__": content,
            "__pydantic_fields_set__": given,
            "__pydantic_extra__": None,
            "__pydantic_private__": None,
        }
    )
    return made


def _fits(value: Any) -> bool:
    port, ipv6, job = value["port"], value.get("ipv6"), value.get("job")
    inet_pton(AF_INET, value["ipv4"])
    if ipv6 is not None:
        inet_pton(AF_INET6, ipv6)
    return (
        _NEEDED <= value.keys() <= _ALL
        and port.keys() == _PORT
        and type(port["bridge"]) is type(port["name"]) is type(value["node"]) is str
        and type(port["ofport"]) is type(value["zone"]) is int
        and _MAC.fullmatch(value["mac"]) is not None
        and value.get("phase", Phase.STAGE_IN.value) in _PHASES
        and (job is None or type(job) is str)
        and _literals(value["ad"])
        and _literals(value.get("slot", {}))
    )


def _literals(ad: Any) -> bool:
    return type(ad) is dict and all(
        type(one) in _SCALARS or (type(one) is list and all(type(part) in _SCALARS for part in one))
        for one in ad.values()
    )
