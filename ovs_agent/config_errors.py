"""What is wrong with a value in `agent.yaml` or `border.yaml`, in words of that file and with the way out. Pure.

Invariant: no sentence speaks of Python, pydantic or a regular expression.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

EXAMPLES: Mapping[str, str] = {
    "node": "node: wn1",
    "bridge": "bridge: border-br",
    "bridge.name": "bridge: {name: br-lark, uplink: eth1}",
    "controller": 'controller: {urls: ["https://controller.example.org:8080"], token-file: agent.token}',
    "controller.urls": 'urls: ["https://controller.example.org:8080"]',
    "ovsdb": "ovsdb: unix:/run/openvswitch/db.sock",
    "bridge.ovsdb": "ovsdb: unix:/run/openvswitch/db.sock",
}
"""How to write a key; of those that are most often wrong. A bridge in `agent.yaml` is a mapping, see `in_words`."""
_SHAPES = {
    "path_type": "must be a path; write for example {key}: /path/to/it",
    "string_type": "must be text",
    "list_type": "must be a list: write it in [ ]",
    "too_short": "must not be empty",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "model_type": "must be a mapping: write its keys in {{ }} or indented below it",
    "invalid_key": "a key must be text",
    "string_pattern_mismatch": "is not written as it must be",
}


def in_words(problem: ErrorDetails, model: type[BaseModel]) -> str:
    """One sentence, without the place."""
    loc = tuple(problem["loc"])
    name = ".".join(str(part) for part in loc)
    key = str(loc[-1]) if loc else ""
    kind = problem["type"]
    if kind == "extra_forbidden":
        return _unknown(name, key, _keys(model, loc[:-1]))
    example = _example(name, model)
    if kind == "missing":
        return f"'{name}' is missing" + (f"; write for example {example}" if example else "")
    if kind not in _SHAPES:
        said = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        return f"{name}: {said}" if name else said
    shape = _SHAPES[kind].format(key=key)
    return f"{name}: {shape}" + (f"; write for example {example}" if example else "")


def _unknown(name: str, key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, 1)
    meant = f" (did you mean '{near[0]}'?)" if near else ""
    return f"unknown key '{name}'{meant}; remove it or mend its spelling; there are {', '.join(known)}"


def _example(name: str, model: type[BaseModel]) -> str | None:
    # The same word is a mapping in the one file, and a name in the other.
    if name == "bridge" and _keys(model, ("bridge",)):
        name = "bridge.name"
    return EXAMPLES.get(name)


def _keys(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """What a file can say at a place; nothing, where it is no mapping."""
    here: Any = model
    for step in path:
        fields = {field.alias or name: field.annotation for name, field in here.model_fields.items()}
        here = fields.get(str(step))
        here = next((part for part in (here, *get_args(here)) if _is_model(part)), None)
        if here is None:
            return []
    return sorted(field.alias or name for name, field in here.model_fields.items() if not field.exclude)


def _is_model(one: Any) -> bool:
    return isinstance(one, type) and issubclass(one, BaseModel)
