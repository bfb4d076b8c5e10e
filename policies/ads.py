"""Job ads and lists of attributes as HTCondor's tools print them, for lint. Pure: from text, never from a file.

Of an ad only literals have a value: an expression in an attribute that the policy reads holds the job, so it is named
instead (the execution points pass attributes on unevaluated).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import classad2

_ATTRIBUTE = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.]*)\s*=(?![=?!])\s*(.*\S)\s*$")
_NOT_AN_AD = re.compile(r"-- |\*\*\*|\s*#")
"""Lines that condor_q and condor_history print between ads."""
_PLAIN_STRING = re.compile(r'"([^"\\]*)"$')
_PLAIN_INTEGER = re.compile(r"-?[0-9]{1,18}$")
_JSON_EXPRESSION = re.compile(r"/Expr\((.*)\)/$", re.DOTALL)
_CONFIG_LINE = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.]*)\s*=(.*)$")
_MACRO = re.compile(r"\$\(([A-Za-z0-9_.]+)(?::[^()]*)?\)")
_LABELS = ("clusterid", "procid")


class BadAds(ValueError):
    """The text is not what condor_q prints. The message says where, and what to give instead."""


@dataclass(frozen=True, slots=True)
class JobAd:
    """A job's literals; `expressions`: attributes that hold something else. `label`: what people call the job."""

    label: str
    ad: Mapping[str, object]
    expressions: frozenset[str] = frozenset()


def read_ads(text: str, wanted: Iterable[str] | None = None) -> list[JobAd]:
    """Ads from the output of `condor_q -long` or `-json` (or condor_history), several outputs one after another too.

    `wanted`: attributes to keep (case ignored); None: all. Raises BadAds.
    """
    names = None if wanted is None else {n.lower() for n in wanted} | set(_LABELS)
    start = text.lstrip("\ufeff \t\r\n")
    if not start:
        raise BadAds("no job ads: the file is empty; give the output of condor_q -long or condor_q -json")
    if start.startswith("<"):
        raise BadAds("this looks like XML; give the output of condor_q -long or condor_q -json")
    ads = _from_json(start, names) if start[0] in "[{" else _from_lines(text, names)
    found = [ad for ad in ads if ad.ad or ad.expressions]
    if not found:
        raise BadAds("no job ads in it; give the output of condor_q -long or condor_q -json")
    return found


def _from_lines(text: str, names: set[str] | None) -> Iterator[JobAd]:
    values: dict[str, object] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            if values:
                yield _job_ad(values)
            values = {}
            continue
        if _NOT_AN_AD.match(line):
            continue
        found = _ATTRIBUTE.match(line)
        if found is None:
            raise BadAds(f"line {number} is not `Attribute = value`: {line.strip()[:60]!r}")
        name, told = found.groups()
        if names is None or name.lower() in names:
            try:
                values[name] = _value(told)
            except classad2.ClassAdException as exc:
                raise BadAds(f"line {number}: {name} is not a ClassAd value: {told[:60]!r}") from exc
    if values:
        yield _job_ad(values)


def _value(told: str) -> object:
    string = _PLAIN_STRING.match(told)
    if string is not None:
        return string.group(1)
    if _PLAIN_INTEGER.match(told):
        return int(told)
    ad = classad2.ClassAd()
    ad["value"] = classad2.ExprTree(told)
    return ad["value"]


def _from_json(text: str, names: set[str] | None) -> Iterator[JobAd]:
    decoder = json.JSONDecoder()
    position = 0
    while position < len(text):
        try:
            told, position = decoder.raw_decode(text, position)
        except ValueError as exc:
            raise BadAds(f"not the JSON that condor_q -json prints: {exc}") from exc
        for ad in told if isinstance(told, list) else [told]:
            if not isinstance(ad, dict):
                raise BadAds("not the JSON that condor_q -json prints: a list of objects is expected")
            yield _job_ad({n: _json_value(v) for n, v in ad.items() if names is None or n.lower() in names})
        while position < len(text) and text[position] in " \t\r\n,":
            position += 1


def _json_value(told: object) -> object:
    if isinstance(told, str):
        expression = _JSON_EXPRESSION.match(told)
        if expression is not None:
            try:
                return _value(expression.group(1).strip())
            except classad2.ClassAdException as exc:
                raise BadAds(f"not a ClassAd expression: {told[:60]!r}") from exc
    if isinstance(told, list):
        return [_json_value(part) for part in told]
    return told


def _job_ad(values: Mapping[str, object]) -> JobAd:
    literals, expressions = {}, set()
    lowered = {name.lower(): value for name, value in values.items()}
    for name, value in values.items():
        if value is None or value is classad2.Value.Undefined:
            continue
        if _is_literal(value):
            literals[name] = value
        else:
            expressions.add(name)
    label = ".".join(str(lowered.get(part, "?")) for part in _LABELS)
    return JobAd(label, literals, frozenset(expressions))


def _is_literal(value: object) -> bool:
    if isinstance(value, classad2.Value):  # an integer to Python
        return False
    if isinstance(value, list):
        return all(_is_literal(part) for part in value)
    return isinstance(value, str | bool | int | float)


def names_in(text: str) -> frozenset[str]:
    """Attribute names from a list as HTCondor writes them: separated by commas or white space."""
    return frozenset(re.findall(r"[A-Za-z_][A-Za-z0-9_]*", text))


def read_config_dump(text: str) -> Mapping[str, frozenset[str]]:
    """The lists of job attributes in the output of `condor_config_val -dump` that lint knows, by the macro's name.

    A list that is not in the output is not in the result; one that refers to other macros is followed.
    """
    macros: dict[str, str] = {}
    for line in text.splitlines():
        found = _CONFIG_LINE.match(line)
        if found is not None:
            macros[found.group(1).upper()] = found.group(2).strip()
    lists = ("STARTD_JOB_ATTRS", "IMMUTABLE_JOB_ATTRS")
    return {name: names_in(_expanded(macros, name, frozenset())) for name in lists if name in macros}


def _expanded(macros: Mapping[str, str], name: str, within: frozenset[str]) -> str:
    if name in within:
        return ""
    inner = within | {name}
    return _MACRO.sub(lambda found: _expanded(macros, found.group(1).upper(), inner), macros.get(name, ""))
