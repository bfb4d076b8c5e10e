"""From YAML files to validated `Policy` and `Site` values: the only part of `policies` that reads files.

A file is validated as a whole; every error names file, line, column, what is wrong and how to mend it, and all errors
found are reported together. Unknown and repeated keys are errors. Nothing is returned unless everything is right.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from policies import expressions, trust, values
from policies.certificates import node_certificate_name
from policies.decide import misfit
from policies.model import (
    MAX_BITS,
    Address,
    Attribute,
    AttributeType,
    Bandwidth,
    Bridge,
    Classify,
    Defaults,
    Expose,
    Expression,
    Grant,
    Group,
    JobNetwork,
    Mode,
    Network,
    Node,
    NodeMode,
    Place,
    Policy,
    PortKind,
    PortRange,
    Protocol,
    Rate,
    Reason,
    Role,
    Scitag,
    Seal,
    Service,
    Site,
    Slice,
    TrafficClass,
    Verdict,
    node_matches,
)
from policies.values import did_you_mean
from policies.wire import ATTRIBUTE_PATTERN, NAME_PATTERN, Phase

MAX_FILE_BYTES = 1024 * 1024
MAX_DEPTH = 16
PROBLEM_LIMIT = 50
"""More problems than this in one load are counted, not listed."""


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
        self.problems = tuple(sorted(problems))
        shown = [str(p) for p in self.problems[:PROBLEM_LIMIT]]
        if len(self.problems) > PROBLEM_LIMIT:
            shown.append(f"and {len(self.problems) - PROBLEM_LIMIT} more")
        super().__init__("\n".join(shown))


# --- reading YAML with places -----------------------------------------------------------------------------------------

_Path = tuple[str | int, ...]


class _Document:
    """A parsed YAML file: plain data and the place of every key and item."""

    def __init__(self, file: str, data: object) -> None:
        self.file = file
        self.data = data
        self._places: dict[_Path, Place] = {}
        self._index((), data, 0)

    def _index(self, path: _Path, value: object, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise PolicyError([Problem(self.place(path), f"nested deeper than {MAX_DEPTH} levels", "flatten it")])
        if isinstance(value, CommentedMap):
            for key, item in value.items():
                line, column = value.lc.key(key)
                self._places[(*path, key)] = Place(self.file, line + 1, column + 1)
                self._index((*path, key), item, depth + 1)
        elif isinstance(value, CommentedSeq):
            for position, item in enumerate(value):
                line, column = value.lc.item(position)
                self._places[(*path, position)] = Place(self.file, line + 1, column + 1)
                self._index((*path, position), item, depth + 1)

    def place(self, path: Iterable[str | int]) -> Place:
        """The place of a path, or of its nearest ancestor that has one."""
        probe = tuple(path)
        while probe:
            if probe in self._places:
                return self._places[probe]
            probe = probe[:-1]
        return Place(self.file, 1, 1)


def _read(path: Path) -> tuple[_Document, bytes]:
    file = path.name
    start = Place(file, 1, 1)
    try:
        raw = path.read_bytes()
    except OSError as exc:
        raise PolicyError(
            [Problem(start, f"cannot read {path}: {exc.strerror}", "check path and permissions")]
        ) from exc
    return _document(file, raw), raw


def _document(file: str, raw: bytes) -> _Document:
    start = Place(file, 1, 1)
    if len(raw) > MAX_FILE_BYTES:
        raise PolicyError([Problem(start, f"larger than {MAX_FILE_BYTES} bytes", "split it or name networks once")])
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        line = raw[: exc.start].count(b"\n") + 1
        raise PolicyError([Problem(Place(file, line), "not UTF-8 text", "save the file as UTF-8")]) from exc
    _refuse_aliases(file, text)
    yaml = YAML(typ="rt")
    yaml.allow_duplicate_keys = False
    try:
        data = yaml.load(text)
    except MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        place = Place(file, mark.line + 1, mark.column + 1) if mark else start
        message = " ".join(str(exc.problem or exc.context or "not YAML").split())
        if "duplicate key" in message:
            found = re.search(r'duplicate key "([^"]*)"', message)
            name = found.group(1) if found else "?"
            raise PolicyError([Problem(place, f"key `{name}` is given twice", "keep one of them")]) from exc
        raise PolicyError([Problem(place, f"not YAML: {message}", "mend the syntax at this place")]) from exc
    except (YAMLError, RecursionError, ValueError) as exc:
        raise PolicyError([Problem(start, f"not YAML: {type(exc).__name__}", "mend the syntax")]) from exc
    if data is None:
        data = CommentedMap()
    if not isinstance(data, CommentedMap):
        raise PolicyError([Problem(start, "a mapping of sections is expected", "start with `services:` or the like")])
    return _Document(file, data)


def _refuse_aliases(file: str, text: str) -> None:
    """Aliases make one line mean another, and a few lines a billion values: the language does without."""
    yaml = YAML(typ="rt")
    try:
        for event in yaml.parse(text):
            anchor = getattr(event, "anchor", None)
            if anchor is not None:
                place = Place(file, event.start_mark.line + 1, event.start_mark.column + 1)
                raise PolicyError(
                    [Problem(place, f"YAML anchors and aliases are not used here (`{anchor}`)", "write it out")]
                )
    except YAMLError:
        return  # the load that follows reports it with its place


# --- schema (edge of the language) ------------------------------------------------------------------------------------


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


_Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
_AttributeName = Annotated[str, StringConstraints(pattern=ATTRIBUTE_PATTERN)]
_PortName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,15}$")]
_Text = Annotated[str, StringConstraints(min_length=1, max_length=16384)]
# A name in a certificate of the site's own CA. Lark's own names (urn:lark:) are derived, never declared.
_CertificateName = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=r"^[!-~][ -~]*$")]


class _ServiceIn(_Section):
    hosts: list[_Text] = Field(default_factory=list)
    ports: list[_Text] = Field(min_length=1)
    protected: bool = False
    open_to: list[_Text] = Field(default_factory=list, alias="open-to")
    mode: Literal["enforce", "audit"] = "enforce"


class _AttributeIn(_Section):
    type: Literal["string", "number", "boolean", "enum"]
    values: list[str] | None = None
    default: str | float | int | bool | None = None
    max_length: Annotated[int, Field(ge=1, le=65536)] | None = Field(default=None, alias="max-length")
    min: float | int | None = None
    max: float | int | None = None
    set_by: Literal["owner", "access-point"] = Field(default="owner", alias="set-by")


class _GrantIn(_Section):
    for_: _Name = Field(alias="for")
    to: _Name
    during: list[Literal["stage-in", "run", "stage-out"]] | None = Field(default=None, min_length=1)
    nodes: list[_Text] = Field(default_factory=list)
    mode: Literal["enforce", "audit"] = "enforce"
    trust_user: bool = Field(default=False, alias="trust-user")


class _SliceIn(_Section):
    for_: _Name = Field(alias="for")
    name: _Text
    scope: Literal["user", "site"] = "user"
    between: Literal["open", "exposed"] = "open"
    trust_user: bool = Field(default=False, alias="trust-user")


class _NodeModeIn(_Section):
    nodes: list[_Text] = Field(min_length=1)
    mode: Literal["enforce", "audit"]


class _ClassIn(_Section):
    name: _Name
    dscp: object
    guarantee: object = None
    ceiling: object = None


class _ClassifyIn(_Section):
    for_: _Name | None = Field(default=None, alias="for")
    service: _Name | None = None
    class_: _Name = Field(alias="class")
    trust_user: bool = Field(default=False, alias="trust-user")


class _RateIn(_Section):
    for_: _Name | None = Field(default=None, alias="for")
    rate: _Text | int | float
    unit: _Text


class _ExposeIn(_Section):
    for_: _Name = Field(alias="for")
    ports: list[_Text] = Field(min_length=1)
    to: Literal["slice"] | Annotated[list[_Name], Field(min_length=1)]
    trust_user: bool = Field(default=False, alias="trust-user")


class _ScitagIn(_Section):
    for_: _Name = Field(alias="for")
    experiment: object
    activity: object
    trust_user: bool = Field(default=False, alias="trust-user")


class _DefaultsIn(_Section):
    egress: Literal["allow", "deny", "audit"] = "allow"
    ingress: Literal["allow", "deny", "audit"] = "deny"
    between_jobs: Literal["allow", "deny", "audit"] = Field(default="deny", alias="between-jobs")


class _PolicyIn(_Section):
    mode: Literal["enforce", "audit"] = "enforce"
    networks: dict[_Name, list[_Text]] = Field(default_factory=dict)
    services: dict[_Name, _ServiceIn] = Field(default_factory=dict)
    attributes: dict[_AttributeName, _AttributeIn] = Field(default_factory=dict)
    groups: dict[_Name, _Text] = Field(default_factory=dict)
    grants: list[_GrantIn] = Field(default_factory=list)
    classes: list[_ClassIn] = Field(default_factory=list)
    classify: list[_ClassifyIn] = Field(default_factory=list)
    slices: list[_SliceIn] = Field(default_factory=list)
    rates: list[_RateIn] = Field(default_factory=list)
    expose: list[_ExposeIn] = Field(default_factory=list)
    scitags: list[_ScitagIn] = Field(default_factory=list)
    node_modes: list[_NodeModeIn] = Field(default_factory=list, alias="node-modes")
    seal: list[_Name] = Field(default_factory=list)
    defaults: _DefaultsIn = Field(default_factory=_DefaultsIn)


class _NetworkIn(_Section):
    ipv4: str
    gateway_ipv4: str | None = Field(default=None, alias="gateway-ipv4")
    ipv6: str | None = None
    gateway_ipv6: str | None = Field(default=None, alias="gateway-ipv6")
    mtu: Annotated[int, Field(ge=1280, le=9216)] = 1500


class _NodeIn(_Section):
    bridge: _Name
    ipv4: str
    ipv6: str | None = None
    host_addresses: list[_Text] = Field(default_factory=list, alias="host-addresses")
    certificate: _CertificateName | None = None


class _BridgeIn(_Section):
    datapath_id: Annotated[str, StringConstraints(pattern=r"^(0x)?[0-9a-fA-F]{1,16}$")] = Field(alias="datapath-id")
    roles: list[Literal["worker", "gate", "border"]] = Field(min_length=1)
    ports: dict[Literal["uplink", "worker-facing", "server-facing", "wan"], list[_PortName]]
    guards: list[_Name] = Field(default_factory=list)
    address: _Text | None = None
    certificate: _CertificateName | None = None


class _SiteIn(_Section):
    site: _Name
    network: _NetworkIn
    infrastructure: list[_Text] = Field(default_factory=list)
    nodes: dict[_Name, _NodeIn]
    bridges: dict[_Name, _BridgeIn]


_TYPE_WORDS = {
    "string_type": ("text is expected", "put it in quotes"),
    "bool_type": ("true or false is expected", ""),
    "int_type": ("a whole number is expected", ""),
    "list_type": ("a list is expected", "write it as [a, b]"),
    "dict_type": ("a mapping is expected", "write it as key: value lines"),
    "model_type": ("a mapping is expected", "write it as {key: value, …}"),
    "missing": ("this key is missing", "add it"),
}


_S = TypeVar("_S", bound=_Section)
_V = TypeVar("_V")
_T = TypeVar("_T")


def _validate(document: _Document, schema: type[_S]) -> _S:
    try:
        return schema.model_validate(document.data)
    except pydantic.ValidationError as exc:
        raise PolicyError(_problem_of(document, schema, e) for e in exc.errors()) from exc


def _problem_of(document: _Document, schema: type[BaseModel], error: Any) -> Problem:
    path = tuple(p for p in error["loc"] if p != "[key]")
    where = ".".join(str(p) for p in path)
    kind = error["type"]
    place = document.place(path)
    if kind == "extra_forbidden":
        known = ", ".join(_known_keys(schema, path[:-1]))
        return Problem(place, f"unknown key `{path[-1]}`", f"known here: {known}")
    if kind == "missing":
        return Problem(document.place(path[:-1]), f"`{where}` is missing", "add it")
    if kind in _TYPE_WORDS:
        words, fix = _TYPE_WORDS[kind]
        return Problem(place, f"`{where}`: {words}, not {_shown(error['input'])}", fix)
    if kind == "literal_error":
        return Problem(place, f"`{where}`: {_shown(error['input'])} is not known", f"one of {error['ctx']['expected']}")
    if kind == "string_pattern_mismatch":
        shown = _shown(error["input"])
        return Problem(
            place, f"`{where}`: {shown} is not a valid name here", f"it must match {error['ctx']['pattern']}"
        )
    return Problem(place, f"`{where}`: {error['msg'][0].lower()}{error['msg'][1:]} (got {_shown(error['input'])})")


def _known_keys(schema: type[BaseModel], path: _Path) -> list[str]:
    model: Any = schema
    for step in path:
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            break
        for name, info in model.model_fields.items():
            if step in (info.alias, name):
                found = _inner_models(info.annotation)
                model = found[0] if found else None
                break
    if isinstance(model, type) and issubclass(model, BaseModel):
        return [info.alias or name for name, info in model.model_fields.items()]
    return []


def _inner_models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in getattr(annotation, "__args__", ()) for m in _inner_models(argument)]


def _shown(value: object) -> str:
    text = repr(value if not isinstance(value, CommentedMap | CommentedSeq) else "a nested value")
    return text if len(text) <= 60 else text[:57] + "…"


# --- small parsers of values ----------------------------------------------------------------------------------------


class _Collector:
    """Gathers problems while values are converted, so that one load reports them all."""

    def __init__(self, document: _Document) -> None:
        self.document = document
        self.problems: list[Problem] = []

    def add(self, path: _Path, message: str, fix: str = "") -> None:
        self.problems.append(Problem(self.document.place(path), message, fix))

    def convert(self, path: _Path, text: _T, parse: Callable[[_T], _V]) -> _V | None:
        try:
            return parse(text)
        except values.Bad as exc:
            self.add(path, exc.message, exc.fix)
            return None

    def finish(self) -> None:
        if self.problems:
            raise PolicyError(self.problems)


# --- policy -----------------------------------------------------------------------------------------------------------


def load_policy(path: Path) -> Policy:
    """Read, validate and return a policy file. Raises PolicyError with every problem found."""
    document, raw = _read(Path(path))
    return _policy(document, raw, str(path))


def policy_from_text(text: str, file: str = "policy.yaml") -> Policy:
    """The policy that a text means, as `load_policy` would give it. `file`: the name that places carry."""
    raw = text.encode()
    return _policy(_document(file, raw), raw, file)


def _policy(document: _Document, raw: bytes, file: str) -> Policy:
    if not document.data:
        # A file cut short by a full disk must not open the site.
        raise PolicyError([Problem(document.place(()), "the policy is empty", "write at least `defaults: {…}`")])
    source = _validate(document, _PolicyIn)
    collect = _Collector(document)
    place = document.place
    networks: dict[str, tuple[Network, ...]] = {}
    for name, texts in source.networks.items():
        parsed = [collect.convert(("networks", name, n), t, values.network) for n, t in enumerate(texts)]
        networks[name] = tuple(p for p in parsed if p is not None)
    services = {name: _service(collect, name, s, networks) for name, s in source.services.items()}
    _refuse_overlaps(collect, services)
    attributes: dict[str, Attribute] = {}
    lowered: set[str] = set()
    for name, declared in source.attributes.items():
        if name.lower() in lowered:
            collect.add(("attributes", name), f"attribute `{name}` is declared twice (names ignore case)", "keep one")
        lowered.add(name.lower())
        attribute = _attribute(collect, name, declared)
        if attribute is not None:
            attributes[name] = attribute
    groups: dict[str, Group] = {}
    for name, text in source.groups.items():
        try:
            groups[name] = Group(
                name, Expression(text, expressions.references(text), place(("groups", name))), place(("groups", name))
            )
        except expressions.BadExpression as exc:
            collect.add(("groups", name), f"group `{name}`: {exc}", "write a ClassAd expression in quotes")
    grants = _grants(collect, source, services, groups)
    believed = trust.SET_BY_SCHEDD | trust.SET_BY_LARK_ACCESS_POINT
    believed |= {n.lower() for n, a in source.attributes.items() if a.set_by == "access-point"}
    slices = _slices(collect, source)
    node_modes = tuple(
        NodeMode(tuple(rule.nodes), Mode(rule.mode), place(("node-modes", n)))
        for n, rule in enumerate(source.node_modes)
    )
    classes = _classes(collect, source)
    classify = _classify(collect, source)
    rates = _rates(collect, source)
    exposes = _exposes(collect, source, networks)
    scitags = _scitags(collect, source)
    _check_bits(collect, source)
    _check_trust(collect, source, groups, slices, believed, lowered)
    seals = []
    for position, name in enumerate(source.seal):
        if name not in source.groups:
            collect.add(("seal", position), f"group `{name}` is not defined", did_you_mean(name, source.groups))
        else:
            seals.append(Seal(name, place(("seal", position))))
    collect.finish()
    return Policy(
        mode=Mode(source.mode),
        services=MappingProxyType(services),
        attributes=MappingProxyType(attributes),
        groups=MappingProxyType(groups),
        grants=tuple(grants),
        seals=tuple(seals),
        slices=tuple(s for s in slices if s is not None),
        defaults=_defaults(source.defaults, place(("defaults",))),
        digest=hashlib.sha256(raw).hexdigest(),
        files=(file,),
        mode_place=place(("mode",)),
        node_modes=node_modes,
        classes=classes,
        classify=classify,
        rates=rates,
        exposes=exposes,
        scitags=scitags,
    )


def _defaults(source: _DefaultsIn, place: Place) -> Defaults:
    words = {
        Reason.EGRESS: source.egress,
        Reason.INGRESS: source.ingress,
        Reason.BETWEEN_JOBS: source.between_jobs,
    }
    egress, ingress, between_jobs = (Verdict.ALLOW if w == "allow" else Verdict.DROP for w in words.values())
    audited = frozenset(reason for reason, word in words.items() if word == "audit")
    return Defaults(egress, ingress, between_jobs, place, audited)


def _classes(collect: _Collector, source: _PolicyIn) -> tuple[TrafficClass, ...]:
    found: dict[str, TrafficClass] = {}
    shares = 0.0
    for position, rule in enumerate(source.classes):
        at: _Path = ("classes", position)
        place = collect.document.place(at)
        dscp = collect.convert((*at, "dscp"), rule.dscp, values.dscp)
        bounds = [
            None if v is None else collect.convert((*at, k), v, values.bandwidth)
            for k, v in (("guarantee", rule.guarantee), ("ceiling", rule.ceiling))
        ]
        guarantee, ceiling = bounds
        if rule.name in found:
            message = f"class `{rule.name}` is defined twice (first at {found[rule.name].place})"
            collect.add((*at, "name"), message, "keep one")
        if guarantee is not None and guarantee.percent is not None:
            shares += guarantee.percent
            if shares > 100:
                message = f"the guarantees up to here are {shares:g}% of the link"
                collect.add((*at, "guarantee"), message, "let them be 100% in sum at most")
        if guarantee is not None and ceiling is not None and _less(ceiling, guarantee):
            message = f"the ceiling {ceiling} is below the guarantee {guarantee}"
            collect.add((*at, "ceiling"), message, "raise the ceiling, or lower the guarantee")
        found.setdefault(rule.name, TrafficClass(rule.name, dscp or 0, guarantee, ceiling, place))
    if source.classes and not source.classify:
        fix = "add `classify: [{class: …}]`; what no rule names is of the last class"
        collect.add(("classes",), "there are classes, and no `classify` that puts anything into them", fix)
    return tuple(found.values())


def _less(one: Bandwidth, other: Bandwidth) -> bool:
    """Whether one is known to be less than the other: a part and an amount cannot be compared before the link is."""
    if one.percent is not None and other.percent is not None:
        return one.percent < other.percent
    return one.bits is not None and other.bits is not None and one.bits < other.bits


def _classify(collect: _Collector, source: _PolicyIn) -> tuple[Classify, ...]:
    classes = {c.name for c in source.classes}
    found = []
    for position, rule in enumerate(source.classify):
        at: _Path = ("classify", position)
        _known_group(collect, (*at, "for"), rule.for_, source)
        if rule.service is not None and rule.service not in source.services:
            fix = did_you_mean(rule.service, source.services)
            collect.add((*at, "service"), f"service `{rule.service}` is not defined", fix)
        if rule.class_ not in classes:
            collect.add((*at, "class"), f"class `{rule.class_}` is not defined", did_you_mean(rule.class_, classes))
        found.append(Classify(rule.for_, rule.service, rule.class_, collect.document.place(at)))
    return tuple(found)


def _known_group(collect: _Collector, path: _Path, name: str | None, source: _PolicyIn) -> None:
    if name is not None and name not in source.groups:
        collect.add(path, f"group `{name}` is not defined", did_you_mean(name, source.groups))


def _rates(collect: _Collector, source: _PolicyIn) -> tuple[Rate, ...]:
    found = []
    for position, rule in enumerate(source.rates):
        at: _Path = ("rates", position)
        _known_group(collect, (*at, "for"), rule.for_, source)
        unit = collect.convert((*at, "unit"), rule.unit, values.unit)
        text = str(rule.rate)
        try:
            expression = Expression(text, expressions.references(text), collect.document.place((*at, "rate")))
        except expressions.BadExpression as exc:
            collect.add((*at, "rate"), f"rate: {exc}", "write a ClassAd expression in quotes")
            continue
        found.append(Rate(rule.for_, expression, unit or 1, collect.document.place(at)))
    return tuple(found)


def _exposes(collect: _Collector, source: _PolicyIn, networks: Mapping[str, tuple[Network, ...]]) -> tuple[Expose, ...]:
    found = []
    to_networks = 0
    for position, rule in enumerate(source.expose):
        at: _Path = ("expose", position)
        _known_group(collect, (*at, "for"), rule.for_, source)
        ports = [collect.convert((*at, "ports", n), t, values.ports) for n, t in enumerate(rule.ports)]
        opened: list[Network] = []
        if rule.to != "slice":
            to_networks += 1
            for n, name in enumerate(rule.to):
                opened.extend(networks.get(name, ()))
                if name not in networks:
                    fix = did_you_mean(name, networks)
                    collect.add((*at, "to", n), f"network `{name}` is not defined", fix)
            if to_networks == MAX_BITS + 1:
                message = f"more than {MAX_BITS} `expose` rules name networks"
                collect.add(at, message, "join rules of one group, or networks under one name")
        found.append(
            Expose(
                rule.for_,
                tuple(p for p in ports if p is not None),
                rule.to == "slice",
                tuple(opened),
                collect.document.place(at),
            )
        )
    return tuple(found)


def _scitags(collect: _Collector, source: _PolicyIn) -> tuple[Scitag, ...]:
    found = []
    for position, rule in enumerate(source.scitags):
        at: _Path = ("scitags", position)
        _known_group(collect, (*at, "for"), rule.for_, source)
        experiment = collect.convert((*at, "experiment"), rule.experiment, values.experiment)
        if experiment is None:
            continue
        activity = collect.convert(
            (*at, "activity"), rule.activity, functools.partial(values.activity, of_experiment=experiment)
        )
        if activity is not None:
            found.append(Scitag(rule.for_, experiment, activity, collect.document.place(at)))
    return tuple(found)


def _check_bits(collect: _Collector, source: _PolicyIn) -> None:
    groups = {r.for_ for r in source.classify if r.for_ is not None} | {r.for_ for r in source.expose}
    section = "classify" if source.classify else "expose"
    if len(groups) > MAX_BITS:
        message = f"`classify` and `expose` name {len(groups)} groups"
        collect.add((section,), message, f"name {MAX_BITS} at most: join groups with || in one condition")
    services = {r.service for r in source.classify if r.service is not None}
    if len(services) > MAX_BITS:
        message = f"`classify` names {len(services)} services"
        collect.add((section,), message, f"name {MAX_BITS} at most: join services of one class")
    if source.classify and not source.classes:
        collect.add(("classify",), "`classify` without `classes`", "define `classes:`, or drop `classify:`")


def _service(
    collect: _Collector, name: str, source: _ServiceIn, networks: Mapping[str, tuple[Network, ...]]
) -> Service:
    at: _Path = ("services", name)
    hosts = [collect.convert((*at, "hosts", n), t, values.address) for n, t in enumerate(source.hosts)]
    ports = [collect.convert((*at, "ports", n), t, values.ports) for n, t in enumerate(source.ports)]
    open_to: list[Network] = []
    for position, network in enumerate(source.open_to):
        if network in networks:
            open_to.extend(networks[network])
        else:
            where = (*at, "open-to", position)
            collect.add(where, f"network `{network}` is not defined", did_you_mean(network, networks))
    if source.protected and not source.hosts:
        collect.add(at, f"service `{name}` is protected but names no hosts", "add `hosts: […]`")
    if source.open_to and not source.protected:
        collect.add(at, f"service `{name}` has open-to but is not protected", "add `protected: true`, or drop open-to")
    if source.mode == "audit" and not source.protected:
        message = f"service `{name}` is in audit mode but is not protected: it refuses nothing"
        collect.add((*at, "mode"), message, "add `protected: true`, or drop mode")
    return Service(
        name=name,
        hosts=tuple(h for h in hosts if h is not None),
        ports=tuple(p for p in ports if p is not None),
        protected=source.protected,
        open_to=tuple(open_to),
        place=collect.document.place(at),
        audit=source.mode == "audit",
    )


def _refuse_overlaps(collect: _Collector, services: Mapping[str, Service]) -> None:
    """A host and port that two protected services claim would have two meanings."""
    claimed: dict[tuple[Address, Protocol], list[tuple[PortRange, str]]] = {}
    for service in services.values():
        if not service.protected:
            continue
        for host in set(service.hosts):
            for ports in service.ports:
                taken = claimed.setdefault((host, ports.protocol), [])
                for other, owner in taken:
                    if ports.first <= other.last and other.first <= ports.last and owner != service.name:
                        collect.add(
                            ("services", service.name),
                            f"`{service.name}` and `{owner}` both protect {host} {ports}",
                            "let one service hold what they share",
                        )
                taken.append((ports, service.name))


def _attribute(collect: _Collector, name: str, source: _AttributeIn) -> Attribute | None:
    at: _Path = ("attributes", name)
    kind = AttributeType(source.type)
    before = len(collect.problems)
    if (kind is AttributeType.ENUM) != (source.values is not None):
        collect.add(at, f"`{name}`: `values` belongs to type enum, and enum needs it", "type: enum, values: [a, b]")
    if source.max_length is not None and kind is not AttributeType.STRING:
        collect.add((*at, "max-length"), f"`{name}`: max-length belongs to type string")
    if (source.min is not None or source.max is not None) and kind is not AttributeType.NUMBER:
        collect.add(at, f"`{name}`: min and max belong to type number")
    if source.min is not None and source.max is not None and source.min > source.max:
        collect.add(at, f"`{name}`: min {source.min:g} is greater than max {source.max:g}", "swap them")
    if len(collect.problems) > before:
        return None
    attribute = Attribute(
        name=name,
        type=kind,
        place=collect.document.place(at),
        values=tuple(source.values or ()),
        default=source.default,
        max_length=source.max_length,
        min=source.min,
        max=source.max,
    )
    if source.default is not None:
        wrong = misfit(attribute, source.default)
        if wrong:
            collect.add((*at, "default"), f"`{name}`: the default {wrong}", "give a default that fits")
    return attribute


def _grants(
    collect: _Collector, source: _PolicyIn, services: Mapping[str, Service], groups: Mapping[str, Group]
) -> list[Grant]:
    grants = []
    for position, grant in enumerate(source.grants):
        at: _Path = ("grants", position)
        if grant.for_ not in source.groups:
            collect.add((*at, "for"), f"group `{grant.for_}` is not defined", did_you_mean(grant.for_, source.groups))
        if grant.to not in services:
            collect.add((*at, "to"), f"service `{grant.to}` is not defined", did_you_mean(grant.to, services))
        elif not services[grant.to].protected:
            message = f"service `{grant.to}` is not protected: every job reaches it, a grant gives nothing"
            collect.add((*at, "to"), message, "add `protected: true` to the service, or drop the grant")
        during = frozenset(Phase(p) for p in grant.during) if grant.during else frozenset(Phase)
        place = collect.document.place(at)
        grants.append(Grant(grant.for_, grant.to, during, tuple(grant.nodes), place, grant.mode == "audit"))
    return grants


def _slices(collect: _Collector, source: _PolicyIn) -> list[Slice | None]:
    """One for each rule, in order; None where something is wrong."""
    found: list[Slice | None] = []
    for position, rule in enumerate(source.slices):
        at: _Path = ("slices", position)
        known = rule.for_ in source.groups
        if not known:
            collect.add((*at, "for"), f"group `{rule.for_}` is not defined", did_you_mean(rule.for_, source.groups))
        place = collect.document.place(at)
        try:
            name = Expression(rule.name, expressions.references(rule.name), collect.document.place((*at, "name")))
        except expressions.BadExpression as exc:
            collect.add((*at, "name"), f"name of a slice: {exc}", "a constant name is written '\"name\"'")
            found.append(None)
            continue
        found.append(Slice(rule.for_, name, rule.scope == "site", place, rule.between == "exposed") if known else None)
    return found


def _check_trust(
    collect: _Collector,
    source: _PolicyIn,
    groups: Mapping[str, Group],
    slices: list[Slice | None],
    believed: frozenset[str],
    declared: set[str],
) -> None:
    known = believed | declared | trust.TYPED_BY_HTCONDOR
    for position, rule in enumerate(slices):
        group = groups.get(rule.group) if rule is not None else None
        if rule is None or group is None:
            continue
        read = {n for n in group.condition.references | rule.name.references if not n.startswith("target.")}
        if rule.site_wide and not source.slices[position].trust_user and read - believed:
            collect.add(
                ("slices", position),
                f"this site-wide slice rests on `{', '.join(sorted(read - believed))}`, which the job's owner can set",
                "anybody could join it: use an attribute that the schedd or the access point sets, leave out"
                " `scope: site`, or say `trust-user: true`",
            )
        elif read - known:
            collect.add(
                ("slices", position),
                f"this slice rests on `{', '.join(sorted(read - known))}`, not declared here",
                "declare it under `attributes:` with its type",
            )
    opening: list[tuple[_Path, str, str | None, bool]] = [
        *((("grants", n), "grant", r.for_, r.trust_user) for n, r in enumerate(source.grants)),
        *((("classify", n), "class", r.for_, r.trust_user) for n, r in enumerate(source.classify)),
        *(
            (("expose", n), "exposure to networks", r.for_, r.trust_user)
            for n, r in enumerate(source.expose)
            if r.to != "slice"
        ),
        *((("scitags", n), "mark", r.for_, r.trust_user) for n, r in enumerate(source.scitags)),
    ]
    for at, what, name, trusting in opening:
        group = groups.get(name) if name is not None else None
        if group is None or trusting:
            continue
        doubtful = sorted(n for n in group.condition.references if not n.startswith("target.") and n not in believed)
        if doubtful:
            collect.add(
                at,
                f"this {what} rests on `{', '.join(doubtful)}`, which the job's owner can set to anything",
                "use an attribute that the schedd sets, or one that a JOB_TRANSFORM sets and IMMUTABLE_JOB_ATTRS lists"
                " (declare it with `set-by: access-point`), or say `trust-user: true`",
            )
    restricting: list[tuple[_Path, str, str | None, frozenset[str]]] = [
        *((("seal", n), "restriction", name, frozenset()) for n, name in enumerate(source.seal)),
        *((("expose", n), "exposure", r.for_, frozenset()) for n, r in enumerate(source.expose) if r.to == "slice"),
    ]
    for position, rate in enumerate(source.rates):
        try:
            read_by_rate = expressions.references(str(rate.rate))
        except expressions.BadExpression:
            continue  # told already
        restricting.append((("rates", position), "restriction", rate.for_, read_by_rate))
    for at, what, name, also in restricting:
        group = groups.get(name) if name is not None else None
        references = also | (group.condition.references if group is not None else frozenset())
        loose = sorted(n for n in references if not n.startswith("target.") and n not in known)
        if loose:
            collect.add(
                at,
                f"this {what} rests on `{', '.join(loose)}`, not declared here: a typing mistake would lift it",
                "declare it under `attributes:` with its type",
            )


def attributes_read(policy: Policy) -> frozenset[str]:
    """Job attributes that the policy reads (lower case): each must be in STARTD_JOB_ATTRS."""
    expressions_ = [g.condition for g in policy.groups.values()] + [s.name for s in policy.slices]
    expressions_ += [r.expression for r in policy.rates]
    read = {n for e in expressions_ for n in e.references if not n.startswith("target.")}
    own = {"user"} if any(not s.site_wide for s in policy.slices) else set()
    return frozenset(read | own | {n.lower() for n in policy.attributes})


# --- site -------------------------------------------------------------------------------------------------------------


def load_site(path: Path) -> Site:
    """Read, validate and return a site file. Raises PolicyError with every problem found."""
    document, _raw = _read(Path(path))
    source = _validate(document, _SiteIn)
    collect = _Collector(document)
    network = _job_network(collect, source.network)
    infrastructure = [
        collect.convert(("infrastructure", n), t, values.network) for n, t in enumerate(source.infrastructure)
    ]
    nodes = {name: _node(collect, name, n, source, network) for name, n in source.nodes.items()}
    _refuse_node_overlaps(collect, {k: v for k, v in nodes.items() if v is not None})
    bridges = {name: _bridge(collect, name, b, source) for name, b in source.bridges.items()}
    by_datapath: dict[int, str] = {}
    for name, bridge in bridges.items():
        other = by_datapath.setdefault(bridge.datapath_id, name)
        if other != name:
            at = ("bridges", name, "datapath-id")
            collect.add(at, f"bridges `{other}` and `{name}` have the same datapath id", "give each its own")
    collect.finish()
    assert network is not None
    return Site(
        name=source.site,
        network=network,
        infrastructure=tuple(n for n in infrastructure if n is not None),
        nodes=MappingProxyType({k: v for k, v in nodes.items() if v is not None}),
        bridges=MappingProxyType(bridges),
        files=(str(path),),
    )


def _family(collect: _Collector, path: _Path, text: str, version: int) -> Any:
    net = collect.convert(path, text, values.network)
    if net is not None and net.version != version:
        collect.add(path, f"{text!r} is not an IPv{version} network")
        return None
    return net


def _gateway(collect: _Collector, path: _Path, text: str | None, net: Any) -> Any:
    if text is None:
        return None
    address = collect.convert(path, text, values.address)
    if address is not None and net is not None and address not in net:
        collect.add(path, f"gateway {address} is not in {net}", "give the router's address on the job network")
        return None
    return address


def _job_network(collect: _Collector, source: _NetworkIn) -> JobNetwork | None:
    ipv4 = _family(collect, ("network", "ipv4"), source.ipv4, 4)
    ipv6 = _family(collect, ("network", "ipv6"), source.ipv6, 6) if source.ipv6 else None
    if source.gateway_ipv6 and not source.ipv6:
        collect.add(("network", "gateway-ipv6"), "a gateway without `ipv6`", "add the network, or drop the gateway")
    gateway4 = _gateway(collect, ("network", "gateway-ipv4"), source.gateway_ipv4, ipv4)
    gateway6 = _gateway(collect, ("network", "gateway-ipv6"), source.gateway_ipv6, ipv6)
    if ipv4 is None:
        return None
    return JobNetwork(ipv4, gateway4, ipv6, gateway6, source.mtu)


def _node(collect: _Collector, name: str, source: _NodeIn, site: _SiteIn, network: JobNetwork | None) -> Node | None:
    at: _Path = ("nodes", name)
    ipv4 = _family(collect, (*at, "ipv4"), source.ipv4, 4)
    ipv6 = _family(collect, (*at, "ipv6"), source.ipv6, 6) if source.ipv6 else None
    if ipv6 is not None and not 64 <= ipv6.prefixlen <= 96:
        collect.add(
            (*at, "ipv6"), f"{ipv6}: a node's IPv6 prefix is /64 to /96", "the last 32 bits are the IPv4 address"
        )
    if ipv6 is not None and int(ipv6.network_address) & 0xFFFF_FFFF:
        collect.add((*at, "ipv6"), f"{ipv6}: the last 32 bits must be zero")
    if network is not None:
        if ipv4 is not None and not ipv4.subnet_of(network.ipv4):
            collect.add(
                (*at, "ipv4"), f"{ipv4} is not in the job network {network.ipv4}", "jobs live on one flat network"
            )
        elif ipv4 is not None and network.gateway_ipv4 is not None and network.gateway_ipv4 in ipv4:
            message = f"the range {ipv4} holds the gateway {network.gateway_ipv4}"
            collect.add((*at, "ipv4"), message, "choose a range of addresses that only jobs use")
        if ipv6 is not None and (network.ipv6 is None or not ipv6.subnet_of(network.ipv6)):
            collect.add((*at, "ipv6"), f"{ipv6} is not in the job network {network.ipv6}")
    if ipv4 is not None and ipv4.num_addresses < 4:
        collect.add((*at, "ipv4"), f"{ipv4} has no room for jobs", "give a node a /30 or larger, and one address a job")
    bridge = site.bridges.get(source.bridge)
    if bridge is None:
        message = f"bridge `{source.bridge}` is not declared"
        collect.add((*at, "bridge"), message, did_you_mean(source.bridge, site.bridges))
    elif "worker" not in bridge.roles:
        collect.add((*at, "bridge"), f"bridge `{source.bridge}` does not have the role worker", "add it to its roles")
    sharing = [n for n, other in site.nodes.items() if other.bridge == source.bridge and n != name]
    if sharing and sharing[0] < name:
        collect.add((*at, "bridge"), f"bridge `{source.bridge}` already belongs to node `{sharing[0]}`")
    hosts = [
        collect.convert((*at, "host-addresses", n), text, values.network)
        for n, text in enumerate(source.host_addresses)
    ]
    if ipv4 is None:
        return None
    declared = tuple(h for h in hosts if h is not None)
    _refuse_own_urn(collect, at, source.certificate)
    ours = node_certificate_name(name, source.certificate)
    twins = [n for n, other in site.nodes.items() if n < name and node_certificate_name(n, other.certificate) == ours]
    if twins:
        message = f"node `{twins[0]}` has this certificate too"
        collect.add((*at, "certificate"), message, "an agent's certificate is for one node: give each its own")
    return Node(name, source.bridge, ipv4, ipv6, collect.document.place(at), declared, source.certificate)


def _refuse_own_urn(collect: _Collector, at: _Path, certificate: str | None) -> None:
    if certificate is not None and certificate.lower().startswith("urn:lark:"):
        fix = "drop `certificate`: it is only for certificates that `lark-controller pki` did not make"
        collect.add((*at, "certificate"), "Lark's own certificates have their names without being told", fix)


def _refuse_node_overlaps(collect: _Collector, nodes: Mapping[str, Node]) -> None:
    ordered = sorted(nodes.values(), key=lambda n: (int(n.ipv4.network_address), n.ipv4.prefixlen))
    for before, after in itertools.pairwise(ordered):
        if before.ipv4.overlaps(after.ipv4):
            at = ("nodes", after.name, "ipv4")
            collect.add(
                at, f"nodes `{before.name}` and `{after.name}` share addresses of {before.ipv4}", "keep them apart"
            )


def _bridge(collect: _Collector, name: str, source: _BridgeIn, site: _SiteIn) -> Bridge:
    at: _Path = ("bridges", name)
    ports: dict[str, PortKind] = {}
    for word, names in source.ports.items():
        for port in names:
            if port in ports:
                collect.add((*at, "ports"), f"port `{port}` is listed twice", "a port has one kind")
            ports[port] = PortKind(word)
    roles = frozenset(Role(r) for r in source.roles)
    if {Role.WORKER, Role.GATE} <= roles:
        message = "one bridge cannot be worker and gate yet"
        collect.add((*at, "roles"), message, "put the gate on a bridge of its own in front of the servers")
    kinds = list(ports.values())
    if Role.WORKER in roles and kinds.count(PortKind.UPLINK) != 1:
        collect.add((*at, "ports"), "a worker bridge has exactly one uplink", "ports: {uplink: [NAME]}")
    if Role.WORKER in roles and not any(n.bridge == name for n in site.nodes.values()):
        collect.add(at, f"no node uses the worker bridge `{name}`", "add its node under `nodes:`")
    if Role.GATE in roles:
        for kind in (PortKind.WORKER_FACING, PortKind.SERVER_FACING):
            if kind not in kinds:
                collect.add((*at, "ports"), f"a gate needs a {kind} port", f"ports: {{{kind}: [NAME], …}}")
    elif source.guards:
        collect.add((*at, "guards"), "only a gate guards services", "add `gate` to its roles, or drop guards")
    address = collect.convert((*at, "address"), source.address, values.address) if source.address else None
    if address is not None and (address.is_unspecified or address.is_multicast or "%" in str(address)):
        fix = "give the management address that its OpenFlow connection comes from"
        collect.add((*at, "address"), f"{address} is nobody's address", fix)
    _refuse_own_urn(collect, at, source.certificate)
    return Bridge(
        name=name,
        datapath_id=int(source.datapath_id, 16),
        roles=roles,
        ports=MappingProxyType(ports),
        guards=tuple(source.guards),
        place=collect.document.place(at),
        address=address,
        certificate=source.certificate,
    )


def check_together(policy: Policy, site: Site) -> None:
    """What can be wrong only between the two files. Raises PolicyError."""
    problems = []
    for bridge in site.bridges.values():
        for name in bridge.guards:
            service = policy.services.get(name)
            if service is None:
                fix = did_you_mean(name, policy.services)
                problems.append(
                    Problem(bridge.place, f"gate `{bridge.name}` guards `{name}`, which no policy defines", fix)
                )
            elif not service.protected:
                fix = f"add `protected: true` to it ({service.place})"
                problems.append(
                    Problem(bridge.place, f"gate `{bridge.name}` guards `{name}`, which is not protected", fix)
                )
    for service in policy.services.values():
        for host in service.hosts:
            for node in site.nodes.values():
                if service.protected and host in node.ipv4:
                    message = f"service `{service.name}`: {host} is in the job addresses of node `{node.name}`"
                    problems.append(Problem(service.place, message, "a service lives on a host, not on a job"))
    for grant in policy.grants:
        if grant.nodes and not any(node_matches(grant.nodes, n) for n in site.nodes):
            message = f"`nodes: [{', '.join(grant.nodes)}]` matches no node of the site"
            problems.append(Problem(grant.place, message, f"nodes: {', '.join(sorted(site.nodes))}"))
    if problems:
        raise PolicyError(problems)
