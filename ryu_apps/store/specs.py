"""What an agent said of an attempt, as this program stored it, read back faster than a stranger's message.

It was checked when it came (`policies.wire.AttemptSpec`), and the controller compares its addresses with the site's
again. So only its form is looked at here: every key, every type, names and labels that may stand in a line of the log,
addresses that are addresses, numbers that a switch has. Invariant: whatever is not exactly as this program writes it is
left to the full check, which says what is wrong with it.
"""

from __future__ import annotations

import re
import sys
from socket import AF_INET, AF_INET6, inet_pton
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic_core import from_json

from policies.wire import (
    ATTRIBUTE_PATTERN,
    JOB_PATTERN,
    MAX_ATTRIBUTES,
    MAX_LIST,
    MAX_STRING,
    MOST_PORT,
    MOST_ZONE,
    NAME_PATTERN,
    PORT_NAME_PATTERN,
    AttemptSpec,
    Phase,
    PortSpec,
)

_PHASES = {phase.value: phase for phase in Phase}
_NEEDED = frozenset({"node", "port", "mac", "ipv4", "zone", "ad"})
_ALL = frozenset(AttemptSpec.model_fields)
_PORT = tuple(PortSpec.model_fields)
_PORT_FIELDS = set(_PORT)
"""One for all: the models are frozen, and nobody changes it."""
_FIELDS: dict[tuple[str, ...], set[str]] = {}
"""Keys as they stand in texts, if these are keys to be found there, and the set of them."""
_GIVEN: dict[frozenset[str], set[str]] = {}
"""The same of messages."""
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}").fullmatch
_JOB = re.compile(JOB_PATTERN[1:-1]).fullmatch
_LARGEST = 1 << 63
_KEPT = 16384
_NOTHING: dict[str, Any] = {}
"""What most say of their slot. One for all: see above."""


class _Fitting(dict[str, bool]):
    """Does a name fit a pattern? Thousands of rows have the same few, so each is compared with it once."""

    def __init__(self, pattern: str) -> None:
        # Without the anchors: `$` would allow a line's end after it.
        self._fits = re.compile(pattern[1:-1]).fullmatch

    def __missing__(self, name: str) -> bool:
        fits = self._fits(name) is not None
        if fits and len(self) < _KEPT:
            self[name] = True
        return fits


_NAMES, _PORT_NAMES, _ATTRIBUTES = _Fitting(NAME_PATTERN), _Fitting(PORT_NAME_PATTERN), _Fitting(ATTRIBUTE_PATTERN)
ModelT = TypeVar("ModelT", bound=BaseModel)
_set, _intern = object.__setattr__, sys.intern


def spec_from_text(text: str) -> AttemptSpec | None:
    """None: it is not as this program writes it."""
    try:
        value = from_json(text, allow_inf_nan=False, cache_strings="keys")
        keys = tuple(value)
        given = _FIELDS.get(keys)
        if given is None:
            if not _NEEDED <= set(keys) <= _ALL:
                return None
            given = _FIELDS.setdefault(keys, set(keys))
        node, port, ipv4, ipv6, mac, zone, job = (
            value["node"], value["port"], value["ipv4"], value.get("ipv6"), value["mac"], value["zone"],
            value.get("job"),
        )  # fmt: skip
        bridge, name, number = port["bridge"], port["name"], port["ofport"]
        inet_pton(AF_INET, ipv4)
        if ipv6 is not None:
            inet_pton(AF_INET6, ipv6)
        if (
            tuple(port) != _PORT
            or not type(node) is type(bridge) is type(name) is str
            or not type(number) is type(zone) is int
            or not 1 <= number <= MOST_PORT
            or not 1 <= zone <= MOST_ZONE
            or _MAC(mac) is None
            or not (job is None or _JOB(job))
            or not (_NAMES[node] and _NAMES[bridge] and _PORT_NAMES[name])
        ):
            return None
        phase = _PHASES[value.get("phase", Phase.STAGE_IN.value)]
        ad, slot = _literals(value["ad"]), _literals(value.get("slot", _NOTHING))
        if ad is None or slot is None:
            return None
    except (ValueError, TypeError, AttributeError, KeyError, OSError):
        return None
    # Whom thousands of rows name is kept once.
    port = {"bridge": _intern(bridge), "name": _intern(name), "ofport": number}
    return _made(
        AttemptSpec,
        given,
        {
            "node": _intern(node), "port": _made(PortSpec, _PORT_FIELDS, port), "mac": mac, "ipv4": ipv4, "ipv6": ipv6,
            "zone": zone, "phase": phase, "ad": ad, "slot": slot or _NOTHING, "job": job,
        },
    )  # fmt: skip


def compact(spec: AttemptSpec) -> AttemptSpec:
    """The same, as it is kept: what thousands have in common is there once."""
    port, given = spec.port, frozenset(spec.model_fields_set)
    content = dict(spec)
    content["node"] = _intern(spec.node)
    kept = {"bridge": _intern(port.bridge), "name": _intern(port.name), "ofport": port.ofport}
    content["port"] = _made(PortSpec, _PORT_FIELDS, kept)
    content["ad"] = _shared(content["ad"])
    content["slot"] = _shared(content["slot"]) if content["slot"] else _NOTHING
    return _made(AttemptSpec, _GIVEN.setdefault(given, set(given)), content)


def _shared(ad: dict[str, Any]) -> dict[str, Any]:
    """Thousands of jobs have the same attributes, and a few users."""
    return {_intern(name): _intern(one) if type(one) is str else one for name, one in ad.items()}


def _made(model: type[ModelT], given: set[str], content: dict[str, Any]) -> ModelT:
    """A model of fields that have been looked at. As one is unpickled: `model_construct` takes three times as long."""
    made = model.__new__(model)
    _set(made, "__dict__", content)
    _set(made, "__pydantic_fields_set__", given)
    _set(made, "__pydantic_extra__", None)
    _set(made, "__pydantic_private__", None)
    return made


def _literals(ad: Any) -> dict[str, Any] | None:
    """Attributes that are literals; what thousands of jobs have in common is kept once. None: they are not."""
    if type(ad) is not dict or len(ad) > MAX_ATTRIBUTES:
        return None
    for name, one in ad.items():
        if not _ATTRIBUTES[name]:
            return None
        kind = type(one)
        if kind is str:
            if len(one) > MAX_STRING:
                return None
            ad[name] = _intern(one)
        elif kind is list:
            if len(one) > MAX_LIST or not all(map(_scalar, one)):
                return None
        elif not _scalar(one):
            return None
    return ad


def _scalar(one: Any) -> bool:
    kind = type(one)
    if kind is str:
        return len(one) <= MAX_STRING
    return kind is bool or kind is float or (kind is int and -_LARGEST <= one < _LARGEST)
