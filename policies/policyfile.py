"""From parsed documents to a `Policy`: what each section may hold, and what must hold between sections. Pure.

Invariants: the documents are taken in reading order; a name has one place, whichever file it is in; everything that is
wrong is reported, and a fault in one rule does not hide that of another. docs/policy.md is the reference.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from policies import classads, expressions, values
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
    Share,
    Slice,
    TrafficClass,
    Verdict,
)
from policies.sections import (
    ATTRIBUTE,
    CLASS,
    CLASSIFY,
    EXPOSE,
    GRANT,
    GROUP,
    NETWORK,
    NODE_MODE,
    RATE,
    SCITAG,
    SEAL,
    SERVICE,
    SHARE,
    SLICE,
    AttributeIn,
    DefaultsIn,
    Entry,
    ServiceIn,
    Sources,
    gather,
)
from policies.trust import NUMBERS, TYPED_BY_HTCONDOR, Beliefs
from policies.validation import Findings, Spot
from policies.values import LEAST_LIMIT, did_you_mean, in_words, shown
from policies.wire import Phase

MAX_EXPRESSION = 16_384

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
    sources = gather(documents, findings)
    top = Spot(findings, documents[-1], ())
    networks = {e.name: e.spot.convert_all(e.value, values.network) for e in sources.of("networks", NETWORK)}
    services = {e.name: _service(sources, e, networks) for e in sources.of("services", SERVICE)}
    _refuse_overlaps(sources, services)
    attributes = {e.name: a for e in sources.of("attributes", ATTRIBUTE) if (a := _attribute(e)) is not None}
    groups = {e.name: g for e in sources.of("groups", GROUP) if (g := _group(e)) is not None}
    declared = sources.of("attributes", ATTRIBUTE)
    trusted = Beliefs(groups, [(e.name, e.value.set_by) for e in declared], sources.places["attributes"])
    grants = tuple(_grants(sources, services, trusted))
    classes = _classes(sources)
    classify = tuple(_classify(sources, trusted))
    slices = tuple(_slices(sources, trusted, attributes))
    seals = tuple(_seals(sources, trusted))
    rates = tuple(_rates(sources, trusted, attributes))
    shares = tuple(_shares(sources, trusted, attributes))
    exposes = tuple(_exposes(sources, networks, trusted))
    scitags = tuple(_scitags(sources, trusted))
    node_modes = tuple(
        NodeMode(_node_patterns(e.spot.at("nodes"), e.value.nodes), Mode(e.value.mode), e.place)
        for e in sources.of("node-modes", NODE_MODE)
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
        defaults=_defaults(defaults.value, defaults.place) if defaults else _defaults(DefaultsIn(), top.place),
        digest=digest,
        files=tuple(files),
        mode_place=mode.place if mode else top.place,
        node_modes=node_modes,
        classes=classes,
        classify=classify,
        rates=rates,
        shares=shares,
        exposes=exposes,
        scitags=scitags,
    )


def faults_of_form(documents: Sequence[Document]) -> list[Problem]:
    """What is wrong in documents whatever the others say: for a load of which a file could not be read."""
    findings = Findings()
    gather(documents, findings)
    return findings.problems


def _service(sources: Sources, entry: Entry[ServiceIn], networks: Mapping[str, tuple[Network, ...]]) -> Service:
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


def _refuse_overlaps(sources: Sources, services: Mapping[str, Service]) -> None:
    """A host and port that two protected services claim would have two meanings."""
    holders: dict[Address, list[str]] = {}
    told: set[tuple[str, str]] = set()
    for entry in sources.of("services", SERVICE):
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


def _attribute(entry: Entry[AttributeIn]) -> Attribute | None:
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


def _group(entry: Entry[object]) -> Group | None:
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


def _grants(sources: Sources, services: Mapping[str, Service], trusted: Beliefs) -> Iterator[Grant]:
    for entry in sources.of("grants", GRANT):
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
        yield Grant(source.for_, source.to, during, nodes, entry.place, source.mode == "audit", source.trust_user)


def _classes(sources: Sources) -> tuple[TrafficClass, ...]:
    entries = sources.of("classes", CLASS)
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


def _classify(sources: Sources, trusted: Beliefs) -> Iterator[Classify]:
    classes = {e.value.name for e in sources.of("classes", CLASS)}
    entries = sources.of("classify", CLASSIFY)
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
        yield Classify(source.for_, source.service, source.class_, entry.place, source.trust_user)


def _slices(sources: Sources, trusted: Beliefs, attributes: Mapping[str, Attribute]) -> Iterator[Slice]:
    for entry in sources.of("slices", SLICE):
        source, spot = entry.value, entry.spot
        sources.defined(spot.at("for"), "groups", source.for_)
        name = _expression(spot.at("name"), "name of a slice", source.name, Kind.STRING)
        if name is None:
            continue
        if never := _never(name, attributes, (AttributeType.STRING, AttributeType.ENUM)):
            message = f"{never}, so this slice would hold every job that has it"
            spot.at("name").add(message, f"a slice's name is a text; write string({name.text})")
        site_wide = source.scope == "site"
        trusted.slice(spot, source.for_, name, trusting=source.trust_user, site_wide=site_wide)
        yield Slice(source.for_, name, site_wide, entry.place, source.between == "exposed", source.trust_user)


def _seals(sources: Sources, trusted: Beliefs) -> Iterator[Seal]:
    for entry in sources.of("seal", SEAL):
        if sources.defined(entry.spot, "groups", entry.value):
            trusted.restricting(entry.spot, "restriction", entry.value)
            yield Seal(entry.value, entry.place)


_A_NAME = re.compile(r"\s*(?:MY\.)?([A-Za-z_]\w*)\s*", re.IGNORECASE)


def _never(expression: Expression, attributes: Mapping[str, Attribute], fits: Container[AttributeType]) -> str:
    """What an expression that is one attribute's name gives, if it can never be what is wanted: every job that has the
    attribute would be held, and a running one cut off. Else nothing."""
    alone = _A_NAME.fullmatch(expression.text)
    if alone is None:
        return ""
    name = alone[1].lower()
    types = {one.lower(): declared.type for one, declared in attributes.items()}
    for one in TYPED_BY_HTCONDOR:
        types.setdefault(one, AttributeType.NUMBER if one in NUMBERS else AttributeType.STRING)
    return f"`{alone[1]}` is a {types[name].value}" if name in types and types[name] not in fits else ""


def _rates(sources: Sources, trusted: Beliefs, attributes: Mapping[str, Attribute]) -> Iterator[Rate]:
    for entry in sources.of("rates", RATE):
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
                spot.at("rate").add(message, f"write a number above 0, and less than {in_words(MAX_RATE)}")
            elif value * unit < LEAST_LIMIT:
                message = f"a rate of {expression.text} {source.unit} is less than a switch can limit to"
                spot.at("rate").add(message, f"write {in_words(LEAST_LIMIT)} or more, or another unit")
        if never := _never(expression, attributes, (AttributeType.NUMBER,)):
            spot.at("rate").add(
                f"{never}, so this rate would hold every job that has it", "write an attribute of type number"
            )
        trusted.restricting(spot, "restriction", source.for_, expression)
        yield Rate(source.for_, expression, unit, entry.place)


def _shares(sources: Sources, trusted: Beliefs, attributes: Mapping[str, Attribute]) -> Iterator[Share]:
    for entry in sources.of("shares", SHARE):
        source, spot = entry.value, entry.spot
        sources.defined(spot.at("for"), "groups", source.for_)
        part = spot.at("share").convert(source.share, values.bandwidth)
        per = None
        if source.per is not None:
            per = _expression(spot.at("per"), "attribute that a share goes by", source.per, Kind.STRING)
            if per is None:
                continue
            if never := _never(per, attributes, (AttributeType.STRING, AttributeType.ENUM)):
                message = f"{never}, so this share would hold every job that has it"
                spot.at("per").add(message, f"a share goes by a text; write string({per.text})")
        if part is None:
            continue
        if part.bits is not None and part.bits < LEAST_LIMIT:
            message = f"a share of {source.share} is less than a switch can limit to"
            spot.at("share").add(message, f"write {in_words(LEAST_LIMIT)} or more, or another unit")
        trusted.sharing(spot, source.for_, per, trusting=source.trust_user)
        yield Share(source.for_, per, part, entry.place, source.trust_user)


def _exposes(sources: Sources, networks: Mapping[str, tuple[Network, ...]], trusted: Beliefs) -> Iterator[Expose]:
    to_networks = 0
    for entry in sources.of("expose", EXPOSE):
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
        yield Expose(source.for_, ports, to_slice, tuple(dict.fromkeys(opened)), entry.place, source.trust_user)


def _scitags(sources: Sources, trusted: Beliefs) -> Iterator[Scitag]:
    for entry in sources.of("scitags", SCITAG):
        source, spot = entry.value, entry.spot
        sources.defined(spot.at("for"), "groups", source.for_)
        trusted.opening(spot, "mark", source.for_, source.trust_user)
        experiment = spot.at("experiment").convert(source.experiment, values.experiment)
        if experiment is None:
            continue
        of_experiment = functools.partial(values.activity, of_experiment=experiment)
        activity = spot.at("activity").convert(source.activity, of_experiment)
        if activity is not None:
            yield Scitag(source.for_, experiment, activity, entry.place, source.trust_user)


def _defaults(source: DefaultsIn, place: Place) -> Defaults:
    words = {
        Reason.EGRESS: source.egress,
        Reason.INGRESS: source.ingress,
        Reason.BETWEEN_JOBS: source.between_jobs,
    }
    egress, ingress, between_jobs = (Verdict.ALLOW if w == "allow" else Verdict.DROP for w in words.values())
    audited = frozenset(reason for reason, word in words.items() if word == "audit")
    return Defaults(egress, ingress, between_jobs, place, audited)


def _check_bits(sources: Sources) -> None:
    """Memberships and services that single packets are told apart by are carried as bits of a register."""
    classify, expose = sources.of("classify", CLASSIFY), sources.of("expose", EXPOSE)
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
