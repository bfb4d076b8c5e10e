"""Agent and controller one version apart: what was understood once is understood for ever.

`golden/wire-protocol-1.json` holds the messages of protocol 1 (fields, types, what is required), and
`golden/wire-protocol-1.jsonl` what an agent and a controller of that protocol really said to each other. They are never
regenerated: another protocol gets files of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from policies import wire
from policies.wire import Message, Since, protocol_of, words

GOLDEN = Path(__file__).parents[2] / "golden"
FIRST: dict[str, Any] = json.loads((GOLDEN / "wire-protocol-1.json").read_text())
NOTES = ("description", "title")
REQUESTS = ("NodeSpec", "Heartbeat", "AttemptSpec", "PhaseChange")


def bare(schema: Any) -> Any:
    """A schema without what is only for people."""
    if isinstance(schema, dict):
        return {k: bare(v) for k, v in sorted(schema.items()) if not (k in NOTES and isinstance(v, str))}
    return [bare(one) for one in schema] if isinstance(schema, list) else schema


def shape(model: type[BaseModel]) -> dict[str, Any]:
    """Fields and types of a message and of what it is made of."""
    full = model.model_json_schema()
    parts = {model.__name__: full, **full.pop("$defs", {})}
    return {name: bare(part) for name, part in sorted(parts.items())}


def since(model: type[BaseModel]) -> dict[str, int]:
    return {
        name: mark.protocol
        for name, field in model.model_fields.items()
        for mark in field.metadata
        if isinstance(mark, Since)
    }


def model_of(name: str) -> type[BaseModel]:
    found = getattr(wire, name)
    assert issubclass(found, BaseModel)
    return found


def requests() -> set[type[BaseModel]]:
    """All that an agent may send, with what it is made of."""
    parts = {getattr(wire, part) for name in REQUESTS for part in shape(model_of(name))}
    return {part for part in parts if issubclass(part, BaseModel)}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_in_the_words_of_protocol_1_has_the_fields_of_protocol_1(name: str) -> None:
    now = shape(model_of(name))
    for part, schema in FIRST["requests"][name].items():
        if "properties" in schema:
            newer = {field for field, protocol in since(model_of(part)).items() if protocol > 1}
            kept = {field: kind for field, kind in now[part]["properties"].items() if field not in newer}
            assert kept == schema["properties"], f"{part}: mark new fields Since(PROTOCOL), keep old ones"
            assert now[part].get("required", []) == schema.get("required", []), part
        else:
            assert now[part] == schema


def test_added_fields_have_defaults_and_a_protocol_that_exists() -> None:
    for model in requests():
        for name, protocol in since(model).items():
            assert not model.model_fields[name].is_required(), f"{model.__name__}.{name}: older agents do not send it"
            assert 1 < protocol <= wire.PROTOCOL, f"{model.__name__}.{name}"


@pytest.mark.parametrize("name", sorted(FIRST["answers"]))
def test_an_answer_still_has_what_an_agent_of_protocol_1_needs(name: str) -> None:
    now = shape(model_of(name))
    for part, schema in FIRST["answers"][name].items():
        assert part in now, f"{part} is gone"
        for field, kind in schema.get("properties", {}).items():
            assert now[part]["properties"].get(field) == kind, f"{part}.{field}"
        assert set(schema.get("required", [])) <= set(now[part].get("required", [])), part
        if "enum" in schema:
            assert now[part]["enum"] == schema["enum"], "an agent of protocol 1 does not know other words"


def recorded() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (GOLDEN / "wire-protocol-1.jsonl").read_text().splitlines()]


def test_what_an_agent_of_protocol_1_said_is_understood() -> None:
    said = [one for one in recorded() if one["request"] is not None]
    kinds = {one["message"] for one in said}
    assert kinds == set(REQUESTS)
    for one in said:
        model = model_of(one["message"])
        message = model.model_validate_json(json.dumps(one["request"]))
        assert json.loads(words(message, 1)) == one["request"], "and said again as it was said"


def test_what_a_controller_of_protocol_1_answered_is_understood() -> None:
    kinds = set()
    for one in recorded():
        model_of(one["answer_message"]).model_validate_json(json.dumps(one["answer"]))
        kinds.add(one["answer_message"])
    assert kinds == set(FIRST["answers"])


class Part(Message):
    old: int = 1
    new: Annotated[int, Since(3)] = 0


class Whole(Message):
    name: str
    part: Part = Part()
    added: Annotated[int, Since(2), Field(ge=0)] = 0


def test_words_leave_out_what_the_other_side_does_not_know() -> None:
    whole = Whole(name="x", part=Part(old=2, new=4), added=5)
    assert json.loads(words(whole, 1)) == {"name": "x", "part": {"old": 2}}
    assert json.loads(words(whole, 2)) == {"name": "x", "part": {"old": 2}, "added": 5}
    assert json.loads(words(whole, 3)) == {"name": "x", "part": {"old": 2, "new": 4}, "added": 5}
    assert Whole.model_validate_json(words(whole, 1)) == Whole(name="x", part=Part(old=2))


@pytest.mark.parametrize(
    ("header", "known"),
    [(None, 1), ("", 1), ("1", 1), ("2", 2), ("17", 17), ("0", 1), ("-3", 1), ("2.0", 1), ("٢", 1), ("99999", 1)],
)
def test_the_header_says_what_the_other_side_knows(header: str | None, known: int) -> None:
    assert protocol_of(header) == known
