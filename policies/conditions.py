"""All conditions of a policy for one job at once: the answers of one by one, in a fraction of the time.

Three things make it quick, and none changes an answer. A condition that begins with `Name =?= "text" && …`, or
`identicalMember(Name, {"text", …}) && …`, is false for a job whose Name is another string, whatever follows, so it is
found by the text. The others that read the same attributes are evaluated in one call of HTCondor's library. And their
answers are kept by the values of those attributes. Conditions that could read more than they show (`eval`, a whole ad)
or could answer otherwise the next time are evaluated for every job anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from policies import expressions
from policies.expressions import Scope

_STRING = r'"[^"\\]*"'
_ANY_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_EQUALS = re.compile(rf"(?:MY\.)?([A-Za-z_]\w*)\s*(?:=\?=|\bis\b)\s*({_STRING})", re.IGNORECASE)
_LISTED = re.compile(
    rf"identicalMember\s*\(\s*(?:MY\.)?([A-Za-z_]\w*)\s*,\s*\{{\s*({_STRING}(?:\s*,\s*{_STRING})*)\s*\}}\s*\)",
    re.IGNORECASE,
)
_CALL = re.compile(r"([A-Za-z_]\w*)\s*\(")
_OPERATORS = re.compile(r"=\?=|=!=|==|!=|<=|>=|<|>|\bis\b|\bisnt\b", re.IGNORECASE)
_ARITHMETIC = re.compile(r"[|^&?:+*/%~-]|<<|>>")
_BOOLEAN_CALLS = frozenset(
    {"regexp", "member", "identicalmember", "isundefined", "iserror", "isstring", "isinteger", "isreal", "isboolean"}
)
_PLAIN_CALLS = _BOOLEAN_CALLS | frozenset(
    {
        *("string", "int", "real", "bool", "strcat", "substr", "tolower", "toupper", "size", "strcmp", "stricmp"),
        *("ifthenelse", "stringlistmember", "stringlistimember", "stringlistsize", "stringlistregexpmember", "split"),
        *("floor", "ceiling", "round", "min", "max", "sum", "avg", "pow", "join", "splitusername", "regexps"),
        *("regexpmember", "islist", "isclassad", "isabstime", "isreltime", "quantize", "versioncmp", "abs"),
    }
)
"""Functions whose answer follows from their arguments alone."""
_WORDS = frozenset({"true", "false", "undefined", "error", "is", "isnt"})
_WHOLE_ADS = frozenset({"my", "target", "other", "self", "parent", "root", "toplevel", "super"})
_SLOT = ("target", "other")
MAX_KEPT = 50_000
"""Answers kept by a set of conditions that read the same attributes; beyond that they are worked out anew."""
_MAX_PROBES = 256
_WORTH_A_PROBE = 3

Key = tuple[object, ...]
Condition = tuple[str, frozenset[str]]
"""Its text and the attributes it reads."""


@dataclass(frozen=True, slots=True)
class Answers:
    """For which conditions the answer is true, and which cannot be answered, by position and in order."""

    true: tuple[int, ...]
    wrong: tuple[int, ...]


def key_of(value: object) -> object:
    """What tells two literals apart as ClassAd values, hashable (`1`, `1.0` and `true` are three). None: unknown."""
    if value is None:
        return "absent"
    if isinstance(value, str | bool):
        return (type(value), value)
    if isinstance(value, int | float):
        return (type(value), repr(value))
    if isinstance(value, list | tuple):
        inner = tuple(key_of(v) for v in value)
        return None if None in inner else (list, inner)
    return None


@dataclass(slots=True)
class _Conditions:
    """Conditions that read the same attributes."""

    my: tuple[str, ...]
    slot: tuple[str, ...]
    by_text: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    """Attribute -> string -> positions of conditions that can only be true for this string."""
    rest: list[int] = field(default_factory=list)
    probes: dict[tuple[int, ...], str] = field(default_factory=dict)
    """One expression for several of them, by position."""
    kept: dict[Key, Answers] = field(default_factory=dict)


class Conditions:
    """The conditions of a policy, by position."""

    def __init__(self, conditions: Sequence[Condition]) -> None:
        self._texts = [text for text, _ in conditions]
        sets: dict[tuple[tuple[str, ...], tuple[str, ...]] | None, _Conditions] = {}
        for position, (text, references) in enumerate(conditions):
            read = attributes(text, references)
            found = sets.setdefault(read, _Conditions(*(read or ((), ()))))
            first = _only_for(text) if read is not None else None
            if first is None:
                found.rest.append(position)
                continue
            name, strings = first
            for string in strings:
                found.by_text.setdefault(name, {}).setdefault(string, []).append(position)
        self._opaque = sets.pop(None, None)
        self._sets = list(sets.values())
        self._exact = frozenset(n for n, text in enumerate(self._texts) if _nothing_more(text))

    def answer(self, ad: Mapping[str, object], slot: Mapping[str, object], scope: Scope) -> Answers:
        """Which conditions hold. `ad`, `slot`: literals by name in lower case; `scope`: the same for the library."""
        true: list[int] = []
        wrong: list[int] = []
        for conditions in self._sets:
            values = [ad.get(name) for name in conditions.my]
            keys = [key_of(v) for v in values] + [key_of(slot.get(name)) for name in conditions.slot]
            key = tuple(keys)
            known = None not in keys
            found = conditions.kept.get(key) if known else None
            if found is None:
                found = self._work_out(conditions, dict(zip(conditions.my, values, strict=True)), scope)
                if known:
                    if len(conditions.kept) >= MAX_KEPT:
                        conditions.kept.clear()
                    conditions.kept[key] = found
            true += found.true
            wrong += found.wrong
        if self._opaque is not None:
            found = self._work_out(self._opaque, {}, scope)
            true += found.true
            wrong += found.wrong
        return Answers(tuple(sorted(true)), tuple(sorted(wrong)))

    def _work_out(self, conditions: _Conditions, values: Mapping[str, object], scope: Scope) -> Answers:
        true: list[int] = []
        ask = list(conditions.rest)
        for name, by_text in conditions.by_text.items():
            value = values[name]
            if isinstance(value, str) and "\0" not in value:
                for position in by_text.get(value, ()):
                    (true if position in self._exact else ask).append(position)
            elif not (value is None or isinstance(value, bool | int | float)):
                # A list; or a string with a NUL, where the library may stop reading.
                ask.extend(dict.fromkeys(n for positions in by_text.values() for n in positions))
        asked = tuple(ask)
        letters = self._ask_together(conditions, asked, scope) or self._ask_each(asked, scope)
        true += [n for n, letter in zip(asked, letters, strict=True) if letter == "t"]
        wrong = [n for n, letter in zip(asked, letters, strict=True) if letter == "e"]
        return Answers(tuple(sorted(true)), tuple(sorted(wrong)))

    def _ask_together(self, conditions: _Conditions, asked: tuple[int, ...], scope: Scope) -> str | None:
        """One letter for each; None: the library says ERROR, or to ask for each is as quick."""
        if len(asked) < _WORTH_A_PROBE:
            return None
        probe = conditions.probes.get(asked)
        if probe is None:
            if len(conditions.probes) >= _MAX_PROBES:
                conditions.probes.clear()
            probe = conditions.probes[asked] = _probe(self._texts[n] for n in asked)
        letters = scope.evaluate(probe)
        return letters if isinstance(letters, str) and len(letters) == len(asked) else None

    def _ask_each(self, asked: tuple[int, ...], scope: Scope) -> str:
        letters = []
        for position in asked:
            value = scope.evaluate(self._texts[position])
            no = value is False or value is expressions.UNDEFINED
            letters.append("t" if value is True else "f" if no else "e")
        return "".join(letters)


def attributes(text: str, references: frozenset[str]) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Attributes of the job and of the slot that an expression can read. None: it cannot be told, or may change."""
    bare = _ANY_STRING.sub('""', text)
    calls = {name.lower() for name in _CALL.findall(bare)} - _WORDS
    if not calls <= _PLAIN_CALLS or "'" in bare or "[" in bare or "/*" in text:
        return None
    my, slot = set(), set()
    for reference in references:
        scope, _, rest = reference.partition(".")
        if scope in _WHOLE_ADS and not (scope in _SLOT and rest):
            return None
        if scope in _SLOT:
            slot.add(rest.partition(".")[0])
        else:
            my.add(scope)
    return tuple(sorted(my)), tuple(sorted(slot))


def _split(text: str) -> tuple[list[str], bool] | None:
    """The operands of `&&` outside of brackets, and whether there is a weaker operator. None: brackets do not match."""
    parts, depth, start, weaker, position = [], 0, 0, False, 0
    while position < len(text):
        letter = text[position]
        if letter == '"':
            found = _ANY_STRING.match(text, position)
            if found is None:
                return None
            position = found.end()
            continue
        if letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif depth == 0 and text.startswith("&&", position):
            parts.append(text[start:position])
            position += 2
            start = position
            continue
        elif depth == 0 and text.startswith(("=?=", "=!="), position):
            position += 3
            continue
        elif depth == 0 and (text.startswith("||", position) or letter == "?"):
            weaker = True
        position += 1
    return ([*parts, text[start:]], weaker) if depth == 0 else None


def _first_operand(text: str) -> tuple[str, tuple[str, ...], int] | None:
    """Name, strings and number of operands, if the first operand of `&&` compares a name with strings."""
    found = _split(text)
    if found is None or found[1]:
        return None
    first = found[0][0].strip()
    equals = _EQUALS.fullmatch(first)
    if equals is not None:
        name, strings = equals.group(1), (equals.group(2)[1:-1],)
    else:
        listed = _LISTED.fullmatch(first)
        if listed is None:
            return None
        name, strings = listed.group(1), tuple(s[1:-1] for s in re.findall(_STRING, listed.group(2)))
    if name.lower() in _WORDS | _WHOLE_ADS:
        return None
    return name.lower(), strings, len(found[0])


def _only_for(text: str) -> tuple[str, tuple[str, ...]] | None:
    """The attribute and the strings for which alone a condition can be other than false, if it shows them."""
    found = _first_operand(text)
    return None if found is None else (found[0], tuple(dict.fromkeys(found[1])))


def _nothing_more(text: str) -> bool:
    """Whether the comparison with strings is all of the condition."""
    found = _first_operand(text)
    return found is not None and found[2] == 1


def _always_boolean(text: str) -> bool:
    """Whether the value can only be true, false, UNDEFINED or ERROR."""
    found = _split(text)
    if found is None or "/*" in text:
        return False
    operands, weaker = found
    bare = _ANY_STRING.sub('""', text)
    if weaker or len(operands) > 1:
        # The value of && and || is a boolean whatever their operands are; that of ?: is not.
        return "?" not in bare.replace("=?=", "")
    outside = _outside_brackets(bare)
    if _ARITHMETIC.search(_OPERATORS.sub("", outside)):
        return False
    if _OPERATORS.search(outside):
        return True
    call = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*\(\s*\)\s*", outside)
    return call is not None and call.group(1).lower() in _BOOLEAN_CALLS


def _outside_brackets(bare: str) -> str:
    told, depth = [], 0
    for letter in bare:
        depth -= letter in ")]}"
        if depth == 0:
            told.append(letter)
        depth += letter in "([{"
    return "".join(told)


def _probe(texts: Iterable[str]) -> str:
    """An expression that gives one letter a condition: t(rue), f(alse or UNDEFINED), e(rror or something else)."""
    parts: list[str] = []
    for text in texts:
        if _always_boolean(text):
            # ERROR makes the whole an ERROR: all are then evaluated one by one.
            parts.append(f'((({text}) ? "t" : "f") ?: "f")')
        else:
            parts.append(f'((({text}) =?= true) ? "t" : (({text}) =?= false || ({text}) =?= undefined) ? "f" : "e")')
    return f"strcat({', '.join(parts)})"
