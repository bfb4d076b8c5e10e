"""What the sections of a policy file may hold, and the entries of several files put together. Pure.

Invariants: a name is defined once, whichever file it is in; lists are joined in reading order; an entry that does not
fit is reported and left out, but its name counts as defined, so that one mistake is not told twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field

from policies.documents import Document
from policies.model import Place
from policies.validation import AttributeName, Findings, Name, Schema, Section, Some, Spot, Text, unknown_key_fix
from policies.values import did_you_mean, shown

_ModeWord = Literal["enforce", "audit"]


class ServiceIn(Section):
    hosts: list[object] = Field(default_factory=list)
    ports: Some
    protected: bool = False
    open_to: list[Name] = Field(default_factory=list, alias="open-to")
    mode: _ModeWord = "enforce"


class AttributeIn(Section):
    type: Literal["string", "number", "boolean", "enum"]
    values: Annotated[list[Text], Field(min_length=1)] | None = None
    default: object = None
    max_length: Annotated[int, Field(ge=1, le=65536)] | None = Field(default=None, alias="max-length")
    min: object = None
    max: object = None
    set_by: Literal["owner", "access-point"] = Field(default="owner", alias="set-by")


class GrantIn(Section):
    for_: Name = Field(alias="for")
    to: Name
    during: Annotated[list[Literal["stage-in", "run", "stage-out"]], Field(min_length=1)] | None = None
    nodes: Some | None = None
    mode: _ModeWord = "enforce"
    trust_user: bool = Field(default=False, alias="trust-user")


class NodeModeIn(Section):
    nodes: Some
    mode: _ModeWord


class ClassIn(Section):
    name: Name
    dscp: object
    guarantee: object = None
    ceiling: object = None


class ClassifyIn(Section):
    for_: Name | None = Field(default=None, alias="for")
    service: Name | None = None
    class_: Name = Field(alias="class")
    trust_user: bool = Field(default=False, alias="trust-user")


class SliceIn(Section):
    for_: Name = Field(alias="for")
    name: object
    scope: Literal["user", "site"] = "user"
    between: Literal["open", "exposed"] = "open"
    trust_user: bool = Field(default=False, alias="trust-user")


class RateIn(Section):
    for_: Name | None = Field(default=None, alias="for")
    rate: object
    unit: object


class ShareIn(Section):
    for_: Name | None = Field(default=None, alias="for")
    per: object = None
    share: object
    trust_user: bool = Field(default=False, alias="trust-user")


class ExposeIn(Section):
    for_: Name = Field(alias="for")
    ports: Some
    to: object
    trust_user: bool = Field(default=False, alias="trust-user")


class ScitagIn(Section):
    for_: Name = Field(alias="for")
    experiment: object
    activity: object
    trust_user: bool = Field(default=False, alias="trust-user")


_DefaultWord = Literal["allow", "deny", "audit"]


class DefaultsIn(Section):
    egress: _DefaultWord = "allow"
    ingress: _DefaultWord = "deny"
    between_jobs: _DefaultWord = Field(default="deny", alias="between-jobs")


_T = TypeVar("_T")
NETWORK: Schema[list[object]] = Schema(Some)
SERVICE: Schema[ServiceIn] = Schema(ServiceIn)
ATTRIBUTE: Schema[AttributeIn] = Schema(AttributeIn)
GROUP: Schema[object] = Schema(object)
NODE_MODE: Schema[NodeModeIn] = Schema(NodeModeIn)
GRANT: Schema[GrantIn] = Schema(GrantIn)
CLASS: Schema[ClassIn] = Schema(ClassIn)
CLASSIFY: Schema[ClassifyIn] = Schema(ClassifyIn)
SLICE: Schema[SliceIn] = Schema(SliceIn)
SEAL: Schema[str] = Schema(Name)
RATE: Schema[RateIn] = Schema(RateIn)
SHARE: Schema[ShareIn] = Schema(ShareIn)
EXPOSE: Schema[ExposeIn] = Schema(ExposeIn)
SCITAG: Schema[ScitagIn] = Schema(ScitagIn)
_MODE: Schema[str] = Schema(_ModeWord)
_DEFAULTS: Schema[DefaultsIn] = Schema(DefaultsIn)
MAPPINGS: Mapping[str, Schema[Any]] = {
    "networks": NETWORK,
    "services": SERVICE,
    "attributes": ATTRIBUTE,
    "groups": GROUP,
}
LISTS: Mapping[str, Schema[Any]] = {
    "node-modes": NODE_MODE,
    "grants": GRANT,
    "classes": CLASS,
    "classify": CLASSIFY,
    "slices": SLICE,
    "seal": SEAL,
    "rates": RATE,
    "shares": SHARE,
    "expose": EXPOSE,
    "scitags": SCITAG,
}
SINGLE: Mapping[str, Schema[Any]] = {"mode": _MODE, "defaults": _DEFAULTS}
"""Sections that one file alone may give."""
SECTIONS = (
    "include", "mode", "node-modes", "networks", "services", "attributes", "groups", "grants", "classes", "classify",
    "slices", "seal", "rates", "shares", "expose", "scitags", "defaults",
)  # fmt: skip
_NAME_OF = {"networks": "network", "services": "service", "attributes": "attribute", "groups": "group"}
_NAME: Schema[str] = Schema(Name)
_ATTRIBUTE_NAME: Schema[str] = Schema(AttributeName)


@dataclass(frozen=True, slots=True)
class Entry(Generic[_T]):
    """One service, group, rule …, as it stands in a file, with types checked."""

    spot: Spot
    value: _T
    name: str = ""

    @property
    def place(self) -> Place:
        return self.spot.place


@dataclass(slots=True)
class Sources:
    """Every entry of every file. `places`: names per section, also of entries that were not accepted."""

    findings: Findings
    entries: dict[str, list[Entry[Any]]] = field(default_factory=dict)
    places: dict[str, dict[str, Place]] = field(default_factory=lambda: {s: {} for s in MAPPINGS})
    single: dict[str, Entry[Any]] = field(default_factory=dict)
    given: set[str] = field(default_factory=set)

    def of(self, section: str, _schema: Schema[_T]) -> list[Entry[_T]]:
        """The entries of a section, whose type the schema tells."""
        return self.entries.get(section, [])

    def gave(self, section: str) -> bool:
        """Whether any file has entries in a section, accepted or not."""
        return section in self.given

    def defined(self, spot: Spot, section: str, name: str | None) -> bool:
        """Whether a name is defined anywhere; if not, that is reported."""
        if name is None or name in self.places[section]:
            return True
        spot.add(f"{_NAME_OF[section]} `{name}` is not defined", did_you_mean(name, self.places[section]))
        return False


def gather(documents: Sequence[Document], findings: Findings) -> Sources:
    """Every entry of the documents, in reading order; what does not fit is reported and left out."""
    sources = Sources(findings)
    for document in documents:
        top = Spot(findings, document, ())
        for key, value in document.data.items():
            spot = top.at(key)
            if key == "include":
                continue  # policies.language has followed it
            if key in MAPPINGS:
                _gather_names(sources, key, spot, value)
            elif key in LISTS:
                if not isinstance(value, list):
                    fix = "write it as a list: one `- …` line for each, or [ … ]"
                    spot.add(f"`{key}`: a list is expected, not {shown(value)}", fix)
                    continue
                if value:
                    sources.given.add(key)
                for position, item in enumerate(value):
                    _gather_entry(sources, key, spot.at(position), item, LISTS[key])
            elif key in SINGLE:
                first = sources.single.get(key)
                if first is not None:
                    message = f"`{key}` is given in two files (first at {first.place})"
                    spot.add(message, "keep one of them")
                    continue
                entry = _entry(spot, value, SINGLE[key])
                if entry is not None:
                    sources.single[key] = entry
            else:
                spot.add(f"unknown key `{key}`", unknown_key_fix(key, SECTIONS))
    return sources


def _gather_names(sources: Sources, section: str, spot: Spot, value: object) -> None:
    if not isinstance(value, dict):
        message = f"`{section}`: a mapping is expected, not {shown(value)}"
        spot.add(message, "write one `name: …` line for each")
        return
    seen = sources.places[section]
    for name, item in value.items():
        here = spot.at(name)
        valid = here.validated(_ATTRIBUTE_NAME if section == "attributes" else _NAME, name)
        twin = next((n for n in seen if n.lower() == name.lower()), None) if section == "attributes" else None
        first = seen.get(twin or name)
        if first is not None:
            what = f"{_NAME_OF[section]} `{name}`"
            also = ", whatever the case of its letters" if twin not in (None, name) else ""
            here.add(f"{what} is defined twice{also} (first at {first})", "keep one, or rename it")
            continue
        seen[name] = here.place
        if valid is not None:
            _gather_entry(sources, section, here, item, MAPPINGS[section], name)


def _gather_entry(
    sources: Sources, section: str, spot: Spot, value: object, schema: Schema[Any], name: str = ""
) -> None:
    entry = _entry(spot, value, schema, name)
    if entry is not None:
        sources.entries.setdefault(section, []).append(entry)


def _entry(spot: Spot, value: object, schema: Schema[_T], name: str = "") -> Entry[_T] | None:
    checked = spot.validated(schema, value)
    return None if checked is None else Entry(spot, checked, name)
