"""From parsed documents to a `Policy`: what each section may hold, and what must hold between sections. Pure.

Invariants: the documents are taken in reading order; a name has one place, whichever file it is in; everything that is
wrong is reported, and a fault in one rule does not hide that of another. docs/policy.md is the reference.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field

from policies import classads, expressions, trust, values
from policies.classads import Kind
from policies.decide import MAX_RATE, misfit
from policies.documents import Document, Problem
from policies.model import (
    MAX_BITS,
    Address,
    Attribute,
    AttributeType,
    Bandwidth,
    Classify,
    Defaults,
    Expose,
    Expression,
    Grant,
    Group,
    Mode,
    Network,
    NodeMode,
    Place,
    Policy,
    PortRange,
    Protocol,
    Rate,
    Reason,
    Scitag,
    Seal,
    Service,
    Slice,
    TrafficClass,
    Verdict,
)
from policies.validation import AttributeName, Findings, Name, Schema, Section, Some, Spot, Text, unknown_key_fix
from policies.values import did_you_mean, shown
from policies.wire import Phase

# --- what a file may hold ---------------------------------------------------------------------------------------------

_ModeWord = Literal["enforce", "audit"]


class _ServiceIn(Section):
    hosts: list[object] = Field(default_factory=list)
    ports: Some
    protected: bool = False
    open_to: list[Name] = Field(default_factory=list, alias="open-to")
    mode: _ModeWord = "enforce"


class _AttributeIn(Section):
    type: Literal["string", "number", "boolean", "enum"]
    values: Annotated[list[Text], Field(min_length=1)] | None = None
    default: object = None
    max_length: Annotated[int, Field(ge=1, le=65536)] | None = Field(default=None, alias="max-length")
    min: object = None
    max: object = None
    set_by: Literal["owner", "access-point"] = Field(default="owner", alias="set-by")


class _GrantIn(Section):
    for_: Name = Field(alias="for")
    to: Name
    during: Annotated[list[Literal["stage-in", "run", "stage-out"]], Field(min_length=1)] | None = None
    nodes: Some | None = None
    mode: _ModeWord = "enforce"
    trust_user: bool = Field(default=False, alias="trust-user")


class _NodeModeIn(Section):
    nodes: Some
    mode: _ModeWord


class _ClassIn(Section):
    name: Name
    dscp: object
    guarantee: object = None
    ceiling: object = None


class _ClassifyIn(Section):
    for_: Name | None = Field(default=None, alias="for")
    service: Name | None = None
    class_: Name = Field(alias="class")
    trust_user: bool = Field(default=False, alias="trust-user")


class _SliceIn(Section):
    for_: Name = Field(alias="for")
    name: object
    scope: Literal["user", "site"] = "user"
    between: Literal["open", "exposed"] = "open"
    trust_user: bool = Field(default=False, alias="trust-user")


class _RateIn(Section):
    for_: Name | None = Field(default=None, alias="for")
    rate: object
    unit: object


class _ExposeIn(Section):
    for_: Name = Field(alias="for")
    ports: Some
    to: object
    trust_user: bool = Field(default=False, alias="trust-user")


class _ScitagIn(Section):
    for_: Name = Field(alias="for")
    experiment: object
    activity: object
    trust_user: bool = Field(default=False, alias="trust-user")


_DefaultWord = Literal["allow", "deny", "audit"]


class _DefaultsIn(Section):
    egress: _DefaultWord = "allow"
    ingress: _DefaultWord = "deny"
    between_jobs: _DefaultWord = Field(default="deny", alias="between-jobs")


_T = TypeVar("_T")
_NETWORK: Schema[list[object]] = Schema(Some)
_SERVICE: Schema[_ServiceIn] = Schema(_ServiceIn)
_ATTRIBUTE: Schema[_AttributeIn] = Schema(_AttributeIn)
_GROUP: Schema[object] = Schema(object)
_NODE_MODE: Schema[_NodeModeIn] = Schema(_NodeModeIn)
_GRANT: Schema[_GrantIn] = Schema(_GrantIn)
_CLASS: Schema[_ClassIn] = Schema(_ClassIn)
_CLASSIFY: Schema[_ClassifyIn] = Schema(_ClassifyIn)
_SLICE: Schema[_SliceIn] = Schema(_SliceIn)
_SEAL: Schema[str] = Schema(Name)
_RATE: Schema[_RateIn] = Schema(_RateIn)
_EXPOSE: Schema[_ExposeIn] = Schema(_ExposeIn)
_SCITAG: Schema[_ScitagIn] = Schema(_ScitagIn)
_MODE: Schema[str] = Schema(_ModeWord)
_DEFAULTS: Schema[_DefaultsIn] = Schema(_DefaultsIn)
MAPPINGS: Mapping[str, Schema[Any]] = {
    "networks": _NETWORK,
    "services": _SERVICE,
    "attributes": _ATTRIBUTE,
    "groups": _GROUP,
}
LISTS: Mapping[str, Schema[Any]] = {
    "node-modes": _NODE_MODE,
    "grants": _GRANT,
    "classes": _CLASS,
    "classify": _CLASSIFY,
    "slices": _SLICE,
    "seal": _SEAL,
    "rates": _RATE,
    "expose": _EXPOSE,
    "scitags": _SCITAG,
}
SINGLE: Mapping[str, Schema[Any]] = {"mode": _MODE, "defaults": _DEFAULTS}
"""Sections that one file alone may give."""
SECTIONS = (
    "include", "mode", "node-modes", "networks", "services", "attributes", "groups", "grants", "classes", "classify",
    "slices", "seal", "rates", "expose", "scitags", "defaults",
)  # fmt: skip
MAX_EXPRESSION = 16_384
_NAME_OF = {"networks": "network", "services": "service", "attributes": "attribute", "groups": "group"}
_NAME: Schema[str] = Schema(Name)
_ATTRIBUTE_NAME: Schema[str] = Schema(AttributeName)


@dataclass(frozen=True, slots=True)
class _Entry(Generic[_T]):
    """One service, group, rule …, as it stands in a file, with types checked."""

    spot: Spot
    value: _T
    name: str = ""

    @property
    def place(self) -> Place:
        return self.spot.place


@dataclass(slots=True)
class _Sources:
    """Every entry of every file. `places`: names per section, also of entries that were not accepted."""

    findings: Findings
    entries: dict[str, list[_Entry[Any]]] = field(default_factory=dict)
    places: dict[str, dict[str, Place]] = field(default_factory=lambda: {s: {} for s in MAPPINGS})
    single: dict[str, _Entry[Any]] = field(default_factory=dict)
    given: set[str] = field(default_factory=set)

    def of(self, section: str, _schema: Schema[_T]) -> list[_Entry[_T]]:
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


def _gather(documents: Sequence[Document], findings: Findings) -> _Sources:
    sources = _Sources(findings)
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


def _gather_names(sources: _Sources, section: str, spot: Spot, value: object) -> None:
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
    sources: _Sources, section: str, spot: Spot, value: object, schema: Schema[Any], name: str = ""
) -> None:
    entry = _entry(spot, value, schema, name)
    if entry is not None:
        sources.entries.setdefault(section, []).append(entry)


def _entry(spot: Spot, value: object, schema: Schema[_T], name: str = "") -> _Entry[_T] | None:
    checked = spot.validated(schema, value)
    return None if checked is None else _Entry(spot, checked, name)


# --- expressions ------------------------------------------------------------------------------------------------------

_WANTED: Mapping[Kind, tuple[str, str]] = {
    Kind.BOOLEAN: ("can never be true or false", 'compare something, as in User =?= "alice@site"'),
    Kind.STRING: ("can never be a string", "write string(…) around it, or a constant name in double quotes"),
    Kind.NUMBER: ("can never be a number", "write an attribute or a number, without quotes of its own"),
}


def _expression(spot: Spot, what: str, value: object, wanted: Kind) -> Expression | None:
    """An expression that can give what is wanted; else it is reported, at the character that offends."""
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, str | int | float):
        text = str(value)
    else:
        spot.add(f"{what}: a ClassAd expression is expected, not {shown(value)}", "write it as text in single quotes")
        return None
    if len(text) > MAX_EXPRESSION:
        spot.add(f"{what}: longer than {MAX_EXPRESSION} characters", "split it into several groups")
        return None
    try:
        examined = classads.examine(text)
    except classads.Fault as fault:
        spot.add(f"{what}: {fault.message}", fault.fix, offset=fault.offset)
        return None
    try:
        read = examined.references | expressions.references(text)
    except expressions.BadExpression:
        spot.add(f"{what}: HTCondor does not accept this expression", "try it with `classad_eval`", offset=0)
        return None
    for offset, pattern in examined.patterns:
        if expressions.Scope({}, {}).evaluate(f'regexp({pattern}, "")') is expressions.ERROR:
            spot.add(f"{what}: {pattern} is no regular expression", "mend it (PCRE syntax)", offset=offset)
            return None
    if not examined.kinds & wanted:
        never, fix = _WANTED[wanted]
        spot.add(f"{what}: gives {classads.in_words(examined.kinds)}, so it {never}", fix, offset=0)
        return None
    if not read and expressions.Scope({}, {}).evaluate(text) is expressions.ERROR:
        spot.add(f"{what}: is an ERROR for every job", "check types and arguments", offset=0)
        return None
    return Expression(text, read, spot.place)


# --- sections ---------------------------------------------------------------------------------------------------------


def policy(documents: Sequence[Document], digest: str, files: Iterable[str]) -> Policy:
    """`documents`: in reading order; the last is the one that was asked for. Raises PolicyError."""
    findings = Findings()
    sources = _gather(documents, findings)
    top = Spot(findings, documents[-1], ())
    networks = {e.name: e.spot.convert_all(e.value, values.network) for e in sources.of("networks", _NETWORK)}
    services = {e.name: _service(sources, e, networks) for e in sources.of("services", _SERVICE)}
    _refuse_overlaps(sources, services)
    attributes = {e.name: a for e in sources.of("attributes", _ATTRIBUTE) if (a := _attribute(e)) is not None}
    groups = {e.name: g for e in sources.of("groups", _GROUP) if (g := _group(e)) is not None}
    trusted = _Trust(sources, groups)
    grants = tuple(_grants(sources, services, trusted))
    classes = _classes(sources)
    classify = tuple(_classify(sources, trusted))
    slices = tuple(_slices(sources, trusted))
    seals = tuple(_seals(sources, trusted))
    rates = tuple(_rates(sources, trusted))
    exposes = tuple(_exposes(sources, networks, trusted))
    scitags = tuple(_scitags(sources, trusted))
    node_modes = tuple(
        NodeMode(_node_patterns(e.spot.at("nodes"), e.value.nodes), Mode(e.value.mode), e.place)
        for e in sources.of("node-modes", _NODE_MODE)
    )
    _check_bits(sources)
    findings.finish()
    mode = sources.single.get("mode")
    defaults = sources.single.get("defaults")
    return Policy(
        mode=Mode(mode.value if mode else "enforce"),
        services=MappingProxyType(services),
        attributes=MappingProxyType(attributes),
        groups=MappingProxyType(groups),
        grants=grants,
        seals=seals,
        slices=slices,
        defaults=_defaults(defaults.value, defaults.place) if defaults else _defaults(_DefaultsIn(), top.place),
        digest=digest,
        files=tuple(files),
        mode_place=mode.place if mode else top.place,
        node_modes=node_modes,
        classes=classes,
        classify=classify,
        rates=rates,
        exposes=exposes,
        scitags=scitags,
    )


def faults_of_form(documents: Sequence[Document]) -> list[Problem]:
    """What is wrong in documents whatever the others say: for a load of which a file could not be read."""
    findings = Findings()
    _gather(documents, findings)
    return findings.problems


def _service(sources: _Sources, entry: _Entry[_ServiceIn], networks: Mapping[str, tuple[Network, ...]]) -> Service:
    source, spot = entry.value, entry.spot
    if source.protected and not source.hosts:
        spot.add(f"service `{entry.name}` is protected but names no hosts", "add `hosts: […]`")
    for key, given in (("open-to", bool(source.open_to)), ("mode", source.mode == "audit")):
        if given and not source.protected:
            message = f"service `{entry.name}` has `{key}` but is not protected, so nothing is closed"
            spot.at(key).add(message, f"add `protected: true`, or drop {key}")
    open_to = [
        network
        for position, name in enumerate(source.open_to)
        if sources.defined(spot.at("open-to", position), "networks", name)
        for network in networks.get(name, ())
    ]
    return Service(
        name=entry.name,
        hosts=spot.at("hosts").convert_all(source.hosts, values.host_address),
        ports=spot.at("ports").convert_all(source.ports, values.ports),
        protected=source.protected,
        open_to=tuple(dict.fromkeys(open_to)),
        place=entry.place,
        audit=source.mode == "audit",
    )


def _refuse_overlaps(sources: _Sources, services: Mapping[str, Service]) -> None:
    """A host and port that two protected services claim would have two meanings."""
    holders: dict[Address, list[str]] = {}
    told: set[tuple[str, str]] = set()
    for entry in sources.of("services", _SERVICE):
        service = services[entry.name]
        for host in service.hosts if service.protected else ():
            others = holders.setdefault(host, [])
            for other in others:
                if (other, service.name) in told:
                    continue
                told.add((other, service.name))
                shared = _shared_ports(services[other].ports, service.ports)
                if shared is not None:
                    message = f"`{service.name}` and `{other}` both protect {host} {shared}"
                    entry.spot.add(message, "let one service hold what they share")
            others.append(service.name)


def _shared_ports(one: Sequence[PortRange], other: Sequence[PortRange]) -> PortRange | None:
    """A range of the second that overlaps one of the first."""
    ordered = sorted([(p, 0) for p in one] + [(p, 1) for p in other])
    reach: dict[tuple[Protocol, int], PortRange] = {}
    for ports, side in ordered:
        before = reach.get((ports.protocol, 1 - side))
        if before is not None and before.last >= ports.first:
            return ports if side else before
        own = reach.get((ports.protocol, side))
        if own is None or own.last < ports.last:
            reach[ports.protocol, side] = ports
    return None


_RESERVED = ("true", "false", "undefined", "error", "is", "isnt", "my", "target", "parent", "currenttime")


def _attribute(entry: _Entry[_AttributeIn]) -> Attribute | None:
    source, spot, name = entry.value, entry.spot, entry.name
    kind = AttributeType(source.type)
    before = len(spot.findings.problems)
    if name.lower() in _RESERVED:
        spot.add(f"`{name}` is a word of the ClassAd language", "use another name")
    if kind is AttributeType.ENUM and source.values is None:
        spot.add(f"`{name}`: type enum without `values`", "add `values: [a, b]`")
    if kind is not AttributeType.ENUM and source.values is not None:
        spot.at("values").add(f"`{name}`: values belong to type enum", "write `type: enum`, or drop them")
    if source.max_length is not None and kind is not AttributeType.STRING:
        spot.at("max-length").add(f"`{name}`: max-length belongs to type string", "drop it")
    bounds: dict[str, float] = {}
    for key, bound in (("min", source.min), ("max", source.max)):
        if bound is None:
            continue
        if kind is not AttributeType.NUMBER:
            spot.at(key).add(f"`{name}`: {key} belongs to type number", "drop it")
        elif isinstance(bound, bool) or not isinstance(bound, int | float):
            spot.at(key).add(f"`{name}`: {key} is {shown(bound)}, not a number", "write a number, without quotes")
        else:
            bounds[key] = bound
    low, high = bounds.get("min"), bounds.get("max")
    if low is not None and high is not None and low > high:
        spot.at("min").add(f"`{name}`: min {low:g} is greater than max {high:g}", "swap them")
    if len(spot.findings.problems) > before:
        return None
    attribute = Attribute(
        name=name,
        type=kind,
        place=entry.place,
        values=tuple(source.values or ()),
        max_length=source.max_length,
        min=low,
        max=high,
    )
    default = source.default
    if default is None:
        return attribute
    wrong = misfit(attribute, default)
    if wrong is not None or not isinstance(default, str | float | int | bool):
        spot.at("default").add(f"`{name}`: the default {wrong or 'must be a plain value'}", "give a default that fits")
        return None
    return replace(attribute, default=default)


def _group(entry: _Entry[object]) -> Group | None:
    condition = _expression(entry.spot, f"group `{entry.name}`", entry.value, Kind.BOOLEAN)
    return None if condition is None else Group(entry.name, condition, entry.place)


_NODE_PATTERN = re.compile(r"!?[A-Za-z0-9._*?\[\]-]+")


def _node_pattern(value: object) -> str:
    if not isinstance(value, str) or not _NODE_PATTERN.fullmatch(value):
        fix = 'write a node\'s name, with * and ? for what may differ, and "!…" for an exception'
        raise values.Bad(f"{shown(value)} fits the name of no node", fix)
    return value


def _node_patterns(spot: Spot, items: Iterable[object]) -> tuple[str, ...]:
    return spot.convert_all(items, _node_pattern)


def _grants(sources: _Sources, services: Mapping[str, Service], trusted: _Trust) -> Iterator[Grant]:
    for entry in sources.of("grants", _GRANT):
        source, spot = entry.value, entry.spot
        sources.defined(spot.at("for"), "groups", source.for_)
        known = sources.defined(spot.at("to"), "services", source.to)
        service = services.get(source.to)
        if known and service is not None and not service.protected:
            message = f"service `{source.to}` is not protected: every job reaches it, a grant gives nothing"
            spot.at("to").add(message, f"add `protected: true` to it ({service.place}), or drop the grant")
        trusted.opening(spot, "grant", source.for_, source.trust_user)
        during = frozenset(Phase(p) for p in source.during) if source.during else frozenset(Phase)
        nodes = _node_patterns(spot.at("nodes"), source.nodes or ())
        yield Grant(source.for_, source.to, during, nodes, entry.place, source.mode == "audit")


def _classes(sources: _Sources) -> tuple[TrafficClass, ...]:
    entries = sources.of("classes", _CLASS)
    found: dict[str, TrafficClass] = {}
    shares = 0.0
    for entry in entries:
        source, spot = entry.value, entry.spot
        first = found.get(source.name)
        if first is not None:
            message = f"class `{source.name}` is defined twice (first at {first.place})"
            spot.at("name").add(message, "keep one, or rename it")
        dscp = spot.at("dscp").convert(source.dscp, values.dscp)
        guarantee = _bandwidth(spot.at("guarantee"), source.guarantee)
        ceiling = _bandwidth(spot.at("ceiling"), source.ceiling)
        if guarantee is not None and guarantee.percent is not None:
            shares += guarantee.percent
            if shares > 100:
                message = f"the guarantees up to here are {shares:g}% of the link"
                spot.at("guarantee").add(message, "let them be 100% in sum at most")
        if guarantee is not None and ceiling is not None and _less(ceiling, guarantee):
            message = f"the ceiling {ceiling} is below the guarantee {guarantee}"
            spot.at("ceiling").add(message, "raise the ceiling, or lower the guarantee")
        found.setdefault(source.name, TrafficClass(source.name, dscp or 0, guarantee, ceiling, entry.place))
    if entries and not sources.gave("classify"):
        fix = "add `classify: [{class: …}]` (what no rule names is of the last class)"
        entries[0].spot.add("there are classes, and no `classify` that puts anything into them", fix)
    return tuple(found.values())


def _bandwidth(spot: Spot, value: object) -> Bandwidth | None:
    return None if value is None else spot.convert(value, values.bandwidth)


def _less(one: Bandwidth, other: Bandwidth) -> bool:
    """Whether one is known to be less than the other: a part and an amount cannot be compared before the link is."""
    if one.percent is not None and other.percent is not None:
        return one.percent < other.percent
    return one.bits is not None and other.bits is not None and one.bits < other.bits


def _classify(sources: _Sources, trusted: _Trust) -> Iterator[Classify]:
    classes = {e.value.name for e in sources.of("classes", _CLASS)}
    entries = sources.of("classify", _CLASSIFY)
    if entries and not sources.gave("classes"):
        entries[0].spot.add("`classify` without `classes`", "define `classes:`, or drop `classify:`")
    for entry in entries:
        source, spot = entry.value, entry.spot
        sources.defined(spot.at("for"), "groups", source.for_)
        sources.defined(spot.at("service"), "services", source.service)
        if source.class_ not in classes and classes:
            fix = did_you_mean(source.class_, classes)
            spot.at("class").add(f"class `{source.class_}` is not defined", fix)
        if source.for_ is not None:
            trusted.opening(spot, "class", source.for_, source.trust_user)
        yield Classify(source.for_, source.service, source.class_, entry.place)


def _slices(sources: _Sources, trusted: _Trust) -> Iterator[Slice]:
    for entry in sources.of("slices", _SLICE):
        source, spot = entry.value, entry.spot
        sources.defined(spot.at("for"), "groups", source.for_)
        name = _expression(spot.at("name"), "name of a slice", source.name, Kind.STRING)
        if name is None:
            continue
        site_wide = source.scope == "site"
        trusted.slice(spot, source.for_, name, trusting=source.trust_user, site_wide=site_wide)
        yield Slice(source.for_, name, site_wide, entry.place, source.between == "exposed")


def _seals(sources: _Sources, trusted: _Trust) -> Iterator[Seal]:
    for entry in sources.of("seal", _SEAL):
        if sources.defined(entry.spot, "groups", entry.value):
            trusted.restricting(entry.spot, "restriction", entry.value)
            yield Seal(entry.value, entry.place)


def _rates(sources: _Sources, trusted: _Trust) -> Iterator[Rate]:
    for entry in sources.of("rates", _RATE):
        source, spot = entry.value, entry.spot
        sources.defined(spot.at("for"), "groups", source.for_)
        unit = spot.at("unit").convert(source.unit, values.unit)
        expression = _expression(spot.at("rate"), "rate", source.rate, Kind.NUMBER)
        if expression is None or unit is None:
            continue
        if not expression.references:
            value = expressions.Scope({}, {}).evaluate(expression.text)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value * unit < MAX_RATE:
                message = f"a rate of {expression.text} {source.unit} would hold every job"
                spot.at("rate").add(message, "write a number above 0")
        trusted.restricting(spot, "restriction", source.for_, expression)
        yield Rate(source.for_, expression, unit, entry.place)


def _exposes(sources: _Sources, networks: Mapping[str, tuple[Network, ...]], trusted: _Trust) -> Iterator[Expose]:
    to_networks = 0
    for entry in sources.of("expose", _EXPOSE):
        source, spot = entry.value, entry.spot
        sources.defined(spot.at("for"), "groups", source.for_)
        ports = spot.at("ports").convert_all(source.ports, values.ports)
        to_slice = source.to == "slice"
        opened: list[Network] = []
        if to_slice:
            trusted.restricting(spot, "exposure", source.for_)
        elif source.to in ([], ["slice"]):
            found = "nothing is listed" if source.to == [] else "slice is a word of its own"
            spot.at("to").add(f"`expose.to`: {found}", "write `to: slice`, or `to: [NETWORK]`")
        elif not isinstance(source.to, list):
            named = source.to if isinstance(source.to, str) and source.to in sources.places["networks"] else "NETWORK"
            spot.at("to").add(f"`expose.to`: {shown(source.to)} is not known", f"write `to: slice`, or `to: [{named}]`")
        else:
            to_networks += 1
            for position, name in enumerate(source.to):
                at = spot.at("to", position)
                if not isinstance(name, str):
                    at.add(f"{shown(name)} is not the name of a network", "write a name defined under `networks:`")
                elif sources.defined(at, "networks", name):
                    opened.extend(networks.get(name, ()))
            trusted.opening(spot, "exposure to networks", source.for_, source.trust_user)
            if to_networks == MAX_BITS + 1:
                message = f"more than {MAX_BITS} `expose` rules name networks"
                spot.add(message, "join rules of one group, or networks under one name")
        yield Expose(source.for_, ports, to_slice, tuple(dict.fromkeys(opened)), entry.place)


def _scitags(sources: _Sources, trusted: _Trust) -> Iterator[Scitag]:
    for entry in sources.of("scitags", _SCITAG):
        source, spot = entry.value, entry.spot
        sources.defined(spot.at("for"), "groups", source.for_)
        trusted.opening(spot, "mark", source.for_, source.trust_user)
        experiment = spot.at("experiment").convert(source.experiment, values.experiment)
        if experiment is None:
            continue
        of_experiment = functools.partial(values.activity, of_experiment=experiment)
        activity = spot.at("activity").convert(source.activity, of_experiment)
        if activity is not None:
            yield Scitag(source.for_, experiment, activity, entry.place)


def _defaults(source: _DefaultsIn, place: Place) -> Defaults:
    words = {
        Reason.EGRESS: source.egress,
        Reason.INGRESS: source.ingress,
        Reason.BETWEEN_JOBS: source.between_jobs,
    }
    egress, ingress, between_jobs = (Verdict.ALLOW if w == "allow" else Verdict.DROP for w in words.values())
    audited = frozenset(reason for reason, word in words.items() if word == "audit")
    return Defaults(egress, ingress, between_jobs, place, audited)


def _check_bits(sources: _Sources) -> None:
    """Memberships and services that single packets are told apart by are carried as bits of a register."""
    classify, expose = sources.of("classify", _CLASSIFY), sources.of("expose", _EXPOSE)
    groups: set[str] = set()
    named = [(e.spot, e.value.for_) for e in classify] + [(e.spot, e.value.for_) for e in expose]
    for spot, group in named:
        if group is not None and group not in groups:
            groups.add(group)
            if len(groups) == MAX_BITS + 1:
                message = f"`classify` and `expose` name more than {MAX_BITS} groups"
                spot.at("for").add(message, "join groups with || in one condition")
    services: set[str] = set()
    for rule in classify:
        service = rule.value.service
        if service is not None and service not in services:
            services.add(service)
            if len(services) == MAX_BITS + 1:
                message = f"`classify` names more than {MAX_BITS} services"
                rule.spot.at("service").add(message, "join the services of one class into one")


# --- whom to believe --------------------------------------------------------------------------------------------------


class _Trust:
    """What rules may rest on: docs/policy.md, "Whom to believe". A group in error is not judged again."""

    def __init__(self, sources: _Sources, groups: Mapping[str, Group]) -> None:
        declared = sources.of("attributes", _ATTRIBUTE)
        self._groups = groups
        self._believed = trust.SET_BY_SCHEDD | trust.SET_BY_LARK_ACCESS_POINT
        self._believed |= {e.name.lower() for e in declared if e.value.set_by == "access-point"}
        names = {name.lower() for name in sources.places["attributes"]}
        self._known = self._believed | names | trust.TYPED_BY_HTCONDOR

    def _read(self, group: str | None, also: Expression | None = None) -> dict[str, str]:
        """Job attributes that a rule rests on, and how they are spelt; those of the slot are the node's word."""
        condition = self._groups.get(group) if group is not None else None
        read: dict[str, str] = {}
        for expression in (condition.condition if condition is not None else None, also):
            for name in sorted(expression.references) if expression is not None else ():
                spelt = re.search(rf"\b{re.escape(name)}\b", expression.text, re.IGNORECASE) if expression else None
                if not name.startswith("target."):
                    read[name] = spelt.group() if spelt else name
        return read

    def opening(self, spot: Spot, what: str, group: str, trusting: bool) -> None:
        """A rule that gives its members something: it may not rest on what they say of themselves."""
        doubtful = _all_but(self._read(group), self._believed)
        if doubtful and not trusting:
            spot.add(
                f"this {what} rests on `{doubtful}`, which the job's owner can set to anything",
                "use an attribute that the schedd sets, or one that a JOB_TRANSFORM sets and IMMUTABLE_JOB_ATTRS lists"
                " (declare it with `set-by: access-point`), or say `trust-user: true`",
            )

    def restricting(self, spot: Spot, what: str, group: str | None, also: Expression | None = None) -> None:
        """A rule that its members may bring upon themselves, if only what they say has a known type."""
        loose = _all_but(self._read(group, also), self._known)
        if loose:
            spot.add(
                f"this {what} rests on `{loose}`, not declared here: a typing mistake would lift it",
                "declare it under `attributes:` with its type",
            )

    def slice(self, spot: Spot, group: str, name: Expression, *, trusting: bool, site_wide: bool) -> None:
        read = self._read(group, name)
        doubtful, loose = _all_but(read, self._believed), _all_but(read, self._known)
        if site_wide and not trusting and doubtful:
            spot.add(
                f"this site-wide slice rests on `{doubtful}`, which the job's owner can set",
                "anybody could join it: use an attribute that the schedd or the access point sets, leave out"
                " `scope: site`, or say `trust-user: true`",
            )
        elif loose:
            spot.add(
                f"this slice rests on `{loose}`, not declared here",
                "declare it under `attributes:` with its type",
            )


def _all_but(read: Mapping[str, str], accepted: frozenset[str] | set[str]) -> str:
    """The attributes that are not accepted, as they are spelt."""
    return ", ".join(spelt for name, spelt in sorted(read.items()) if name not in accepted)
