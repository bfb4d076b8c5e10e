"""YAML text to plain data in which every key, item and character knows its place. Pure: no files.

Invariants: what a reader sees is what is meant (no aliases, anchors, tags, second documents or repeated keys); keys are
text; nesting and size are bounded before anything is built. Scalars are those of YAML 1.2: `yes` and `10:20` are text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError

from policies.model import Place

MAX_FILE_BYTES = 1024 * 1024
MAX_DEPTH = 16
PROBLEM_LIMIT = 50
"""More problems than this in one load are counted, not listed."""

Path = tuple[str | int, ...]
"""Keys and positions that lead from the top of a document to a value."""


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong, where, and how to mend it."""

    place: Place
    message: str
    fix: str = ""

    def __str__(self) -> str:
        mend = f"; {self.fix}" if self.fix else ""
        return f"{self.place.file}:{self.place.line}:{self.place.column}: {self.message}{mend}"


class PolicyError(Exception):
    """A policy or site file that was not accepted. `problems` is sorted by place."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        shown = [str(p) for p in self.problems[:PROBLEM_LIMIT]]
        if len(self.problems) > PROBLEM_LIMIT:
            shown.append(f"and {len(self.problems) - PROBLEM_LIMIT} more")
        super().__init__("\n".join(shown))


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file: plain data (`dict` with text keys, `list`, `str`, numbers, booleans, None), and places."""

    file: str
    data: dict[str, object]
    _places: Mapping[Path, Place]
    _scalars: Mapping[Path, _Scalar]

    def place(self, path: Path) -> Place:
        """Of the key or item at a path, or of its nearest ancestor."""
        while path:
            found = self._places.get(path)
            if found is not None:
                return found
            path = path[:-1]
        return Place(self.file, 1, 1)

    def place_in(self, path: Path, offset: int) -> Place:
        """Of one character of the text at a path, which may be quoted, folded or over several lines."""
        scalar = self._scalars.get(path)
        return self.place(path) if scalar is None else scalar.place(self.file, offset)


@dataclass(frozen=True, slots=True)
class _Scalar:
    """A scalar's value and its source text, with the position at which the source begins."""

    value: str
    source: str
    style: str | None
    line: int
    column: int

    def place(self, file: str, offset: int) -> Place:
        at = self._source_offset(offset)
        before = self.source[:at]
        newlines = before.count("\n")
        column = len(before) - before.rfind("\n") if newlines else self.column + at + 1
        return Place(file, self.line + newlines + 1, column)

    def _source_offset(self, offset: int) -> int:
        """Where in the source the character of the value is: white space may be folded, characters escaped."""
        source, at = self.source, 0
        if self.style in ("'", '"'):
            at = 1
        elif self.style in ("|", ">"):
            at = source.find("\n") + 1
        for position, character in enumerate(self.value[: offset + 1]):
            start = at
            if character.isspace():
                while start < len(source) and source[start].isspace() and source[start] != character:
                    start += 1
                if start < len(source) and source[start] != character and not source[start].isspace():
                    start = at  # an escape, or a fold already passed
            else:
                while start < len(source) and source[start].isspace():
                    start += 1
            if position == offset or start >= len(source):
                return min(start, len(source))
            at = start + self._width(start, character)
        return min(at, len(source))

    def _width(self, at: int, character: str) -> int:
        if self.style == "'" and character == "'":
            return 2
        if self.style == '"' and self.source[at] == "\\":
            return 2 + {"x": 2, "u": 4, "U": 8}.get(self.source[at + 1 : at + 2], 0)
        return 1


def parse(file: str, raw: bytes) -> Document:
    """`file`: the name that places carry. Raises PolicyError."""
    start = Place(file, 1, 1)
    if len(raw) > MAX_FILE_BYTES:
        message = f"larger than {MAX_FILE_BYTES} bytes"
        raise PolicyError([Problem(start, message, "split it and `include` the parts, or name networks once")])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        before = raw[: exc.start]
        column = len(before) - before.rfind(b"\n")
        place = Place(file, before.count(b"\n") + 1, column)
        raise PolicyError([Problem(place, "not UTF-8 text", "save the file as UTF-8")]) from exc
    text = text.replace("\r\n", "\n")
    try:
        return _Builder(file, text).document()
    except MarkedYAMLError as exc:
        raise PolicyError([_syntax_problem(file, exc)]) from exc
    except ReaderError as exc:
        before_bad = text[: exc.position]
        place = Place(file, before_bad.count("\n") + 1, len(before_bad) - before_bad.rfind("\n"))
        message = f"the character {text[exc.position : exc.position + 1]!r} cannot be in a text file"
        raise PolicyError([Problem(place, message, "delete it")]) from exc
    except (YAMLError, ValueError, AssertionError) as exc:
        raise PolicyError([Problem(start, f"not YAML ({type(exc).__name__})", "mend the syntax")]) from exc


_INDENT = "check the indentation, and put text that has quotes inside into single quotes"
_REMEDIES = (
    (r"'\\t'", "a tab cannot stand here", "indent with spaces"),
    (
        "mapping values are not allowed",
        "a `:` too many here, or one missing in the line before",
        "begin `key: value` with a space after each colon, check the indentation, or put the text in quotes",
    ),
    ("could not find expected ':'", "a key without `:`", "write `key: value`, with a space after the colon"),
    ("expected ',' or '\\]'", "this list is not closed", "separate items by commas and end the list with ]"),
    ("expected ',' or '}'", "this mapping is not closed", "separate entries by commas and end the mapping with }"),
    ("unexpected end of stream", "this quote is never closed", "end the text with the same quote"),
    ("unknown escape character", "not an escape of a text in double quotes", "put the text in single quotes"),
    ("expected <block end>", "this does not belong here", _INDENT),
    ("document start", "this does not belong here", _INDENT),
    ("cannot start any token", "this character cannot begin a value", "put the text in quotes"),
    ("sequence entries are not allowed", "a list cannot begin here", "begin it on a line of its own, or write [a, b]"),
    ("block collection", "a list or mapping cannot begin here", "check the indentation"),
)
"""What ruamel.yaml says (pattern), what is wrong in words of the file, and the remedy."""
_AT_CONTEXT = ("expected ',' or", "unexpected end of stream")
"""Faults that are best shown where the list, mapping or quote began."""


def _syntax_problem(file: str, exc: MarkedYAMLError) -> Problem:
    said = " ".join(str(exc.problem or exc.context or "").split())
    mark = exc.problem_mark or exc.context_mark
    if any(text in said for text in _AT_CONTEXT) and exc.context_mark is not None:
        mark = exc.context_mark
    place = Place(file, mark.line + 1, mark.column + 1) if mark is not None else Place(file, 1, 1)
    for pattern, words, fix in _REMEDIES:
        if re.search(pattern, said):
            return Problem(place, f"not YAML: {words}", fix)
    return Problem(place, f"not YAML: {said or 'it cannot be read'}", "mend the syntax at this place")


_INTEGER = re.compile(r"[-+]?[0-9]{1,30}")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]{1,16}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,4})?")
_WORDS: Mapping[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def _plain(text: str) -> object:
    """A scalar without quotes, by the core schema of YAML 1.2."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in "+-.0123456789":
        return text
    if _INTEGER.fullmatch(text):
        return int(text)
    if _HEXADECIMAL.fullmatch(text):
        return int(text, 16)
    if _FLOAT.fullmatch(text):
        number = float(text)
        return number if math.isfinite(number) else text
    return text


class _Builder:
    """Goes through the parser's events once, so that nothing is built that is not allowed."""

    def __init__(self, file: str, text: str) -> None:
        self._file = file
        self._text = text
        self._places: dict[Path, Place] = {}
        self._scalars: dict[Path, _Scalar] = {}
        self._events = iter(YAML(typ="safe", pure=True).parse(text))
        self._problems: list[Problem] = []

    def document(self) -> Document:
        data: object = None
        documents = 0
        for event in self._events:
            match type(event).__name__:
                case "StreamStartEvent" | "StreamEndEvent" | "DocumentEndEvent":
                    continue
                case "DocumentStartEvent":
                    documents += 1
                    if documents > 1:
                        place = self._place(event)
                        message = "a second document begins here"
                        raise PolicyError([Problem(place, message, "drop the `---`, or make two files")])
                case _:
                    data = self._value((), event, 0)
        if data is None:
            data = {}
        if not isinstance(data, dict):
            message = "a mapping of sections is expected"
            self._problems.append(Problem(Place(self._file, 1, 1), message, "start with `services:` or the like"))
        if self._problems:
            raise PolicyError(self._problems)
        assert isinstance(data, dict)
        return Document(self._file, data, self._places, self._scalars)

    def _place(self, event: Any) -> Place:
        return Place(self._file, event.start_mark.line + 1, event.start_mark.column + 1)

    def _value(self, path: Path, event: Any, depth: int) -> object:
        anchor = getattr(event, "anchor", None)
        kind = type(event).__name__
        if anchor is not None or kind == "AliasEvent":
            message = f"YAML anchors and aliases are not used here (`{anchor}`)"
            raise PolicyError([Problem(self._place(event), message, "write it out")])
        if event.tag is not None:
            message = f"YAML tags are not used here (`{event.tag}`)"
            raise PolicyError([Problem(self._place(event), message, "leave it out")])
        if kind == "ScalarEvent":
            return self._scalar(path, event)
        if depth >= MAX_DEPTH:
            message = f"nested deeper than {MAX_DEPTH} levels"
            raise PolicyError([Problem(self._place(event), message, "flatten it")])
        return self._sequence(path, depth) if kind == "SequenceStartEvent" else self._mapping(path, depth)

    def _scalar(self, path: Path, event: Any) -> object:
        start, end = event.start_mark, event.end_mark
        source = self._text[start.index : end.index]
        self._scalars[path] = _Scalar(event.value, source, event.style, start.line, start.column)
        value: str = event.value
        return _plain(value) if event.style is None else value

    def _sequence(self, path: Path, depth: int) -> list[object]:
        items: list[object] = []
        for event in self._events:
            if type(event).__name__ == "SequenceEndEvent":
                break
            at = (*path, len(items))
            self._places[at] = self._place(event)
            items.append(self._value(at, event, depth + 1))
        return items

    def _mapping(self, path: Path, depth: int) -> dict[str, object]:
        found: dict[str, object] = {}
        for event in self._events:
            kind = type(event).__name__
            if kind == "MappingEndEvent":
                break
            place = self._place(event)
            if kind not in ("ScalarEvent", "AliasEvent") or event.anchor is not None:
                if kind != "AliasEvent" and getattr(event, "anchor", None) is None:
                    raise PolicyError([Problem(place, "a key must be text", "write `key: value`")])
                self._value(path, event, depth)  # says what is wrong with it
            key: str = event.value
            value_event = next(self._events)
            at = (*path, key)
            if key in found:
                first = self._places[at]
                message = f"key `{key}` is given twice (first in line {first.line})"
                self._problems.append(Problem(place, message, "keep one of them"))
                self._value((*path, key, "\0again"), value_event, depth + 1)
                continue
            self._places[at] = place
            found[key] = self._value(at, value_event, depth + 1)
        return found
