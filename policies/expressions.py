"""ClassAd expressions of a policy: parse once, evaluate against a job's literals with HTCondor's own library.

Results are Python values or one of the two states `UNDEFINED` and `ERROR`; nothing raises during evaluation.
"""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Mapping

import classad2

# HTCondor adds functions of its own to the ClassAd language (splitUserName, stringListMember, …) and changes some rules
# when its library first reads an ad. Expressions parsed before that keep those functions as unknown ones for ever.
classad2.parseOne("Start = true")


class State(enum.Enum):
    UNDEFINED = "undefined"
    ERROR = "error"


UNDEFINED = State.UNDEFINED
ERROR = State.ERROR
Result = bool | int | float | str | list[object] | State


_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_WHOLE_AD = re.compile(r"\b(MY|TARGET)\b(?!\s*\.)", re.IGNORECASE)


class BadExpression(ValueError):
    """The text is not a ClassAd expression, or not one that a policy may use."""


@functools.lru_cache(maxsize=16_384)
def _parse(text: str) -> classad2.ExprTree:
    return classad2.ExprTree(text)


def references(text: str) -> frozenset[str]:
    """Attributes that an expression reads, in lower case; those of the slot as `target.name`. Raises BadExpression."""
    if not text.strip():
        raise BadExpression("an empty expression")
    try:
        tree = _parse(text)
    except classad2.ClassAdException as exc:
        raise BadExpression(f"not a ClassAd expression: {text!r}") from exc
    # With an empty ad every reference is external, whatever its scope.
    names = (n.lower() for n in classad2.ClassAd().externalRefs(tree))
    # It leaves out a whole ad (`size(MY)`, `MY["Name"]`), which can be any attribute.
    whole = {name.lower() for name in _WHOLE_AD.findall(_STRING.sub('""', text))}
    return frozenset(whole) | frozenset(n.removeprefix("my.") for n in names if n)


class Scope:
    """A job's literals (MY) and a slot's (TARGET). Attribute names ignore case, as in HTCondor."""

    def __init__(self, ad: Mapping[str, object], slot: Mapping[str, object]) -> None:
        self._ad = ad
        self._slot = slot

    @functools.cached_property
    def _ads(self) -> tuple[classad2.ClassAd, classad2.ClassAd]:
        # Made when the first expression is evaluated: many decisions need none.
        # The library looks in the slot for what a job does not have: what only the slot has is made UNDEFINED here.
        there = {name.lower() for name in self._ad}
        absent = {name: classad2.Value.Undefined for name in self._slot if name.lower() not in there}
        return classad2.ClassAd({**self._ad, **absent}), classad2.ClassAd(dict(self._slot))

    def evaluate(self, text: str) -> Result:
        value = _parse(text).eval(*self._ads)
        if isinstance(value, classad2.Value):
            return ERROR if value == classad2.Value.Error else UNDEFINED
        if isinstance(value, bool | int | float | str | list):
            return value
        return ERROR
