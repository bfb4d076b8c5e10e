"""From a job's description to a decision. Pure: the same policy, node, literals and phase give the same decision.

An ERROR in any condition, or a declared attribute that does not fit, holds the job: `=?=` alone would read
`LarkNetwork = 5` as "not sealed".
"""

from __future__ import annotations

from collections.abc import Mapping

from policies import expressions
from policies.model import (
    EXPOSED_PREFIX,
    Attribute,
    AttributeType,
    Decision,
    Outcome,
    Place,
    Policy,
    Rate,
    Slice,
    node_matches,
)
from policies.wire import Phase

HOLD_SUBCODE = 101
"""HoldReasonSubCode of a job whose description the policy refuses (docs/interfaces.md section 3)."""

MAX_SLICE_NAME = 128
MAX_RATE = 10**15
"""Bits a second beyond which a rate is a mistake."""


class Held(Exception):
    """The job must be held. `reason` is for its owner; `place` is the line of the policy that says so, if one does."""

    def __init__(self, reason: str, place: Place | None = None) -> None:
        self.reason = reason
        self.place = place
        self.subcode = HOLD_SUBCODE
        super().__init__(f"{reason} ({place})" if place else reason)


def decide(policy: Policy, node: str, ad: Mapping[str, object], slot: Mapping[str, object], phase: Phase) -> Decision:
    """What a job may do on a node in a phase.

    `ad`: the job's attributes, literals only; UNDEFINED ones are absent. `slot`: the slot's. `node`: its authenticated
    name. Raises Held.
    """
    described = _described(policy, ad)
    scope = expressions.Scope(described, slot)
    member = {}
    for group in policy.groups.values():
        value = scope.evaluate(group.condition.text)
        if value is expressions.ERROR:
            raise Held(f"the condition of group `{group.name}` is an ERROR for this job", group.place)
        if not isinstance(value, bool) and value is not expressions.UNDEFINED:
            raise Held(f"the condition of group `{group.name}` gives {value!r}, not true or false", group.place)
        member[group.name] = value is True
    trail: list[tuple[Place, str]] = []
    sealed = False
    for seal in policy.seals:
        if member[seal.group]:
            sealed = True
            trail.append((seal.place, f"sealed, as a member of group {seal.group}"))
    groups = tuple(name for name, is_member in member.items() if is_member)
    if sealed:
        return Decision(Outcome(sealed=True, services=frozenset()), groups, tuple(trail))
    services, audited = set(), set()
    for grant in policy.grants:
        if not member[grant.group] or phase not in grant.during or not node_matches(grant.nodes, node):
            continue
        if grant.audit:
            audited.add(grant.service)
            said = "is let on to"
        else:
            services.add(grant.service)
            said = "may reach"
        trail.append((grant.place, f"{said} service {grant.service}, as a member of group {grant.group}"))
    slice_name = None
    rule = next((s for s in policy.slices if member[s.group]), None)
    if rule is not None:
        slice_name = _slice_name(rule, scope)
        trail.append((rule.place, f"in slice {slice_name}, as a member of group {rule.group}"))
    for exposure in policy.exposes:
        if member[exposure.group]:
            ports = ", ".join(str(p) for p in exposure.ports)
            trail.append((exposure.place, f"serves {ports}, as a member of group {exposure.group}"))
    rate = _rate([r for r in policy.rates if r.group is None or member[r.group]], scope, trail)
    scitag = next((tag for tag in policy.scitags if member[tag.group]), None)
    if scitag is not None:
        text = f"marked as experiment {scitag.experiment}, activity {scitag.activity}"
        trail.append((scitag.place, f"{text}, as a member of group {scitag.group}"))
    outcome = Outcome(
        sealed=False,
        services=frozenset(services),
        audited=frozenset(audited - services),
        groups=frozenset(name for name in policy.marking_groups if member[name]),
    )
    marks = None if scitag is None else (scitag.experiment, scitag.activity)
    return Decision(outcome, groups, tuple(trail), slice_name, rate, marks)


def _rate(rules: list[Rate], scope: expressions.Scope, trail: list[tuple[Place, str]]) -> int | None:
    """The lowest of the limits, in bits a second; None: no limit. Raises Held."""
    limits: list[tuple[int, Place]] = []
    for rule in rules:
        value = scope.evaluate(rule.expression.text)
        if value is expressions.UNDEFINED:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value * rule.unit < MAX_RATE:
            said = value.value.upper() if isinstance(value, expressions.State) else repr(value)
            raise Held(f"the rate of this job ({rule.expression.text}) is {said}, not a number above 0", rule.place)
        limits.append((max(1, int(value * rule.unit)), rule.place))
    if not limits:
        return None
    lowest, place = min(limits)
    trail.append((place, f"at most {lowest} bit/s"))
    return lowest


def _slice_name(rule: Slice, scope: expressions.Scope) -> str:
    """The qualified name: two users who choose the same name do not meet. Raises Held."""
    value = scope.evaluate(rule.name.text)
    if not isinstance(value, str):
        said = value.value.upper() if isinstance(value, expressions.State) else repr(value)
        raise Held(f"the name of this job's slice ({rule.name.text}) is {said}, not a string", rule.place)
    if not 1 <= len(value) <= MAX_SLICE_NAME or not value.isprintable():
        raise Held(f"the name of a slice has 1 to {MAX_SLICE_NAME} printable characters", rule.place)
    kind = EXPOSED_PREFIX if rule.exposed_only else ""
    if rule.site_wide:
        return f"{kind}site/{value}"
    user = scope.evaluate("User")
    if not isinstance(user, str):
        raise Held("the job's slice is its user's own, and the job has no User; is it in STARTD_JOB_ATTRS?", rule.place)
    # The length keeps two different pairs of user and name apart, whatever characters they hold.
    return f"{kind}user/{len(user)}/{user}/{value}"


def _described(policy: Policy, ad: Mapping[str, object]) -> dict[str, object]:
    """The ad with declared attributes checked and defaults filled in. Raises Held."""
    by_name: dict[str, str] = {}
    for name in ad:
        other = by_name.setdefault(name.lower(), name)
        if other != name:
            raise Held(f"the job has both `{other}` and `{name}`: attribute names ignore case")
    described = dict(ad)
    for attribute in policy.attributes.values():
        spelt = by_name.get(attribute.name.lower())
        if spelt is None:
            if attribute.default is not None:
                described[attribute.name] = attribute.default
            continue
        wrong = misfit(attribute, ad[spelt])
        if wrong:
            raise Held(f"{attribute.name} {wrong}", attribute.place)
    return described


def misfit(attribute: Attribute, value: object) -> str | None:
    """What is wrong with a value for a declared attribute, in words that follow its name; None if it fits."""
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "…"
    match attribute.type:
        case AttributeType.STRING:
            if not isinstance(value, str):
                return f"must be a string, not {shown}"
            if attribute.max_length is not None and len(value) > attribute.max_length:
                return f"must be at most {attribute.max_length} characters long, not {len(value)}"
        case AttributeType.ENUM:
            if not isinstance(value, str) or value not in attribute.values:
                return f"must be one of {', '.join(repr(v) for v in attribute.values)}, not {shown}"
        case AttributeType.BOOLEAN:
            if not isinstance(value, bool):
                return f"must be true or false, not {shown}"
        case AttributeType.NUMBER:
            if isinstance(value, bool) or not isinstance(value, int | float):
                return f"must be a number, not {shown}"
            if attribute.min is not None and value < attribute.min:
                return f"must be at least {attribute.min:g}, not {shown}"
            if attribute.max is not None and value > attribute.max:
                return f"must be at most {attribute.max:g}, not {shown}"
    return None
