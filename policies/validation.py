"""Types of the values in a file, checked by pydantic, and its findings said in words of the file.

Invariants: unknown keys are errors; nothing is converted (`yes` is no boolean, 1094 is no text); every message has a
remedy. A value that does not fit is left out, so that the rest of the file can be judged in the same load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter

from policies.documents import Document, Path, PolicyError, Problem
from policies.model import Place
from policies.values import Bad, nearest, shown
from policies.wire import ATTRIBUTE_PATTERN, NAME_PATTERN

PORT_NAME_PATTERN = r"^[A-Za-z0-9._-]{1,15}$"
DATAPATH_PATTERN = r"^(0x)?[0-9a-fA-F]{1,16}$"
CERTIFICATE_PATTERN = r"^[!-~][ -~]*$"
_PATTERN_WORDS = {
    NAME_PATTERN: ("a valid name", "use letters, digits, `.`, `_` and `-`, 64 at most, a letter or digit at both ends"),
    ATTRIBUTE_PATTERN: ("the name of a ClassAd attribute", "use letters, digits and `_`, not beginning with a digit"),
    PORT_NAME_PATTERN: ("the name of a port", "use letters, digits, `.`, `_` and `-`, 15 at most"),
    CERTIFICATE_PATTERN: ("the name in a certificate", "use printable ASCII characters"),
    DATAPATH_PATTERN: ("a datapath id", "write 16 hexadecimal digits in quotes"),
}

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
AttributeName = Annotated[str, StringConstraints(pattern=ATTRIBUTE_PATTERN)]
PortName = Annotated[str, StringConstraints(pattern=PORT_NAME_PATTERN)]
DatapathId = Annotated[str, StringConstraints(pattern=DATAPATH_PATTERN)]
CertificateName = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=CERTIFICATE_PATTERN)]
"""A name in a certificate of the site's own CA. Lark's own names (urn:lark:) are derived, never declared."""
Text = Annotated[str, StringConstraints(min_length=1, max_length=16384)]
Some = Annotated[list[object], Field(min_length=1)]
"""A list with something in it, whose items a parser of `policies.values` takes."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


_V = TypeVar("_V")


class Schema(Generic[_V]):
    """A type that a value of a file must have: a `Section`, or any other that pydantic knows."""

    def __init__(self, kind: Any) -> None:
        self.type = kind
        self.adapter: TypeAdapter[_V] = TypeAdapter(kind)


@dataclass(slots=True)
class Findings:
    """Everything that is wrong in a load."""

    problems: list[Problem] = field(default_factory=list)

    def finish(self) -> None:
        if self.problems:
            raise PolicyError(self.problems)


@dataclass(frozen=True, slots=True)
class Spot:
    """A value's place in a file, from which its findings are reported."""

    findings: Findings
    document: Document
    path: Path

    def at(self, *steps: str | int) -> Spot:
        return Spot(self.findings, self.document, (*self.path, *steps))

    @property
    def place(self) -> Place:
        return self.document.place(self.path)

    def add(self, message: str, fix: str, *, offset: int | None = None) -> None:
        """`offset`: of a character in the text that stands here."""
        place = self.place if offset is None else self.document.place_in(self.path, offset)
        self.findings.problems.append(Problem(place, message, fix))

    def convert(self, value: object, parse: Callable[[object], _V]) -> _V | None:
        try:
            return parse(value)
        except Bad as exc:
            self.add(exc.message, exc.fix)
            return None

    def convert_all(self, items: Iterable[object], parse: Callable[[object], _V]) -> tuple[_V, ...]:
        """What can be converted, each value once."""
        found = (self.at(n).convert(item, parse) for n, item in enumerate(items))
        return tuple(dict.fromkeys(v for v in found if v is not None))

    def validated(self, schema: Schema[_V], value: object) -> _V | None:
        try:
            return schema.adapter.validate_python(value)
        except pydantic.ValidationError as exc:
            for error in exc.errors(include_url=False):
                self._report(schema.type, error)
            return None

    def _report(self, schema: Any, error: Any) -> None:
        steps = tuple(p for p in error["loc"] if p != "[key]")
        here = self.at(*steps)
        where = dotted(here.path)
        kind, value = error["type"], error["input"]
        if kind == "extra_forbidden":
            known = _known_keys(schema, steps[:-1])
            here.add(f"unknown key `{steps[-1]}`", unknown_key_fix(str(steps[-1]), known))
        elif kind == "missing":
            self.at(*steps[:-1]).add(f"`{where}` is missing", f"add `{steps[-1]}:`")
        elif kind == "string_pattern_mismatch":
            words, fix = _PATTERN_WORDS[error["ctx"]["pattern"]]
            here.add(f"`{where}`: {shown(value)} is not {words}", fix)
        elif kind == "literal_error":
            words = f"{shown(value)} is not known"
            if isinstance(value, dict | list) or value is None:
                words = f"one word is expected, not {shown(value)}"
            here.add(f"`{where}`: {words}", f"write {error['ctx']['expected']}")
        else:
            here.add(*_type_words(where, kind, value, error))


def _type_words(where: str, kind: str, value: object, error: Any) -> tuple[str, str]:
    match kind:
        case "string_type":
            fix = "write text" if isinstance(value, dict) or value is None else "put it in quotes"
            if isinstance(value, list):
                fix = "write one, and a rule for each of them"
            return f"`{where}`: text is expected, not {shown(value)}", fix
        case "bool_type":
            return f"`{where}`: true or false is expected, not {shown(value)}", "write true or false, without quotes"
        case "int_type" | "float_type":
            return f"`{where}`: a number is expected, not {shown(value)}", "write a number, without quotes"
        case "list_type":
            fix = "write it as [a, b]" if isinstance(value, dict) or value is None else f"write [{value}]"
            return f"`{where}`: a list is expected, not {shown(value)}", fix
        case "dict_type" | "model_type" | "model_attributes_type":
            return f"`{where}`: a mapping is expected, not {shown(value)}", "write it as {key: value, …}"
        case "too_short" | "string_too_short":
            return f"`{where}`: nothing is listed", "list at least one"
        case "string_too_long":
            return f"`{where}`: longer than {error['ctx']['max_length']} characters", "shorten it"
        case "greater_than_equal":
            return f"`{where}`: {shown(value)} is too small", f"write {error['ctx']['ge']} or more"
        case "less_than_equal":
            return f"`{where}`: {shown(value)} is too large", f"write {error['ctx']['le']} or less"
    return f"`{where}`: {error['msg']} (got {shown(value)})", "see docs/policy.md"


def dotted(path: Path) -> str:
    """A path in messages: positions are left out, since the place tells them."""
    return ".".join(str(p) for p in path if isinstance(p, str))


def unknown_key_fix(key: str, known: Iterable[str]) -> str:
    names = list(known)
    close = nearest(key, names)
    listed = f"known here: {', '.join(names)}"
    return f"did you mean `{close}`? {listed}" if close else listed


def _known_keys(schema: Any, path: tuple[str | int, ...]) -> list[str]:
    model: Any = schema
    for step in path:
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            break
        for name, info in model.model_fields.items():
            if step in (info.alias, name):
                found = _inner_models(info.annotation)
                model = found[0] if found else None
                break
    return keys_of(model) if isinstance(model, type) and issubclass(model, BaseModel) else []


def keys_of(schema: type[BaseModel]) -> list[str]:
    """The keys of a section, as a file spells them."""
    return [info.alias or name for name, info in schema.model_fields.items()]


def _inner_models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in getattr(annotation, "__args__", ()) for m in _inner_models(argument)]
