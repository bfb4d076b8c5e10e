"""From a job's description to a decision. Pure: the same policy, node, literals and phase give the same decision.

An ERROR in any condition, or a declared attribute that does not fit, holds the job: `=?=` alone would read
`LarkNetwork = 5` as "not sealed".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from policies import expressions
from policies.conditions import MAX_KEPT, Conditions
from policies.model import (
    EXPOSED_PREFIX,
    Attribute,
    AttributeType,
    Decision,
    Expose,
    Grant,
    Outcome,
    Place,
    Policy,
    Rate,
    Scitag,
    Seal,
    Share,
    Sharing,
    Slice,
    node_matches,
)
from policies.values import in_words
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
    return _decider(policy).decide(node, ad, slot, phase)


class Decider:
    """One policy, prepared: what follows from it alone is worked out once, and answers are kept (see `conditions`)."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._groups = tuple(policy.groups.values())
        self._conditions = Conditions([(g.condition.text, g.condition.references) for g in self._groups])
        self._seals = _by_group(policy.seals)
        self._grants = _by_group(policy.grants)
        self._slices = _by_group(policy.slices)
        self._exposes = _by_group(policy.exposes)
        self._scitags = _by_group(policy.scitags)
        self._marking = frozenset(policy.marking_groups)
        self._given: dict[tuple[tuple[int, ...], tuple[bool, ...], Phase], _Given] = {}
        self._particular = tuple({one.nodes: one.nodes for one in policy.grants})
        """What grants say of nodes. To nodes that they do not tell apart they give the same, kept once."""
        self._kinds: dict[str, tuple[bool, ...]] = {}

    def decide(self, node: str, ad: Mapping[str, object], slot: Mapping[str, object], phase: Phase) -> Decision:
        """As the function `decide`."""
        policy = self.policy
        described = _described(policy, ad)
        scope = expressions.Scope(described, slot)
        lowered = {name.lower(): value for name, value in described.items()}
        answers = self._conditions.answer(lowered, {n.lower(): v for n, v in slot.items()}, scope)
        if answers.wrong:
            group = self._groups[answers.wrong[0]]
            value = scope.evaluate(group.condition.text)
            if value is expressions.ERROR:
                raise Held(f"the condition of group `{group.name}` is an ERROR for this job", group.place)
            raise Held(f"the condition of group `{group.name}` gives {value!r}, not true or false", group.place)
        kind = self._kinds.get(node)
        if kind is None:
            if len(self._kinds) >= MAX_KEPT:
                self._kinds.clear()
            kind = self._kinds[node] = tuple(node_matches(nodes, node) for nodes in self._particular)
        key = (answers.true, kind, phase)
        given = self._given.get(key)
        if given is None:
            given = self._what_groups_give(answers.true, node, phase)
            if len(self._given) >= MAX_KEPT:
                self._given.clear()
            self._given[key] = given
        if given.always is not None:
            return given.always
        trail = list(given.first)
        slice_name = None
        if given.slice is not None:
            slice_name = _slice_name(given.slice, scope)
            trail.append((given.slice.place, f"in slice {slice_name}, as a member of group {given.slice.group}"))
        trail += given.exposed
        rate = _rate(given.rates, scope, trail)
        share = None
        if given.share is not None:
            share = _sharing(given.share, scope)
            trail.append((given.share.place, _share_text(given.share, share)))
        trail += given.marked
        return Decision(given.outcome, given.groups, tuple(trail), slice_name, rate, given.scitag, share)

    def _what_groups_give(self, members: tuple[int, ...], node: str, phase: Phase) -> _Given:
        """What membership in these groups gives on a node in a phase."""
        policy = self.policy
        groups = tuple(self._groups[n].name for n in members)
        first: list[tuple[Place, str]] = []
        for seal in _of(self._seals, groups):
            first.append((seal.place, f"sealed, as a member of group {seal.group}"))
        if first:
            sealed = Outcome(sealed=True, services=frozenset())
            return _Given(sealed, groups, tuple(first), always=Decision(sealed, groups, tuple(first)))
        services, audited = set(), set()
        for grant in _of(self._grants, groups):
            if phase not in grant.during or not node_matches(grant.nodes, node):
                continue
            if grant.audit:
                audited.add(grant.service)
                said = "is let on to"
            else:
                services.add(grant.service)
                said = "may reach"
            first.append((grant.place, f"{said} service {grant.service}, as a member of group {grant.group}"))
        exposed = []
        for exposure in _of(self._exposes, groups):
            ports = ", ".join(str(p) for p in exposure.ports)
            exposed.append((exposure.place, f"serves {ports}, as a member of group {exposure.group}"))
        scitag = next(iter(_of(self._scitags, groups)), None)
        marked: list[tuple[Place, str]] = []
        if scitag is not None:
            text = f"marked as experiment {scitag.experiment}, activity {scitag.activity}"
            marked.append((scitag.place, f"{text}, as a member of group {scitag.group}"))
        outcome = Outcome(
            sealed=False,
            services=frozenset(services),
            audited=frozenset(audited - services),
            groups=self._marking.intersection(groups),
        )
        slice_ = next(iter(_of(self._slices, groups)), None)
        rates = tuple(r for r in policy.rates if r.group is None or r.group in groups)
        share = next((s for s in policy.shares if s.group is None or s.group in groups), None)
        tag = None if scitag is None else (scitag.experiment, scitag.activity)
        always = None
        if slice_ is None and not rates and share is None:
            always = Decision(outcome, groups, (*first, *exposed, *marked), scitag=tag)
        return _Given(
            outcome,
            groups,
            tuple(first),
            slice=slice_,
            exposed=tuple(exposed),
            rates=rates,
            share=share,
            marked=tuple(marked),
            scitag=tag,
            always=always,
        )


@dataclass(frozen=True, slots=True)
class _Given:
    """What follows from a job's groups, node and phase, whatever its attributes. Kept: jobs with the same share it."""

    outcome: Outcome
    groups: tuple[str, ...]
    first: tuple[tuple[Place, str], ...]
    slice: Slice | None = None
    exposed: tuple[tuple[Place, str], ...] = ()
    rates: tuple[Rate, ...] = ()
    share: Share | None = None
    marked: tuple[tuple[Place, str], ...] = ()
    scitag: tuple[int, int] | None = None
    always: Decision | None = None
    """What is decided for all of them, where nothing depends on a job's own values."""


_Rule = TypeVar("_Rule", Grant, Seal, Slice, Expose, Scitag)


def _by_group(rules: Iterable[_Rule]) -> dict[str, list[tuple[int, _Rule]]]:
    found: dict[str, list[tuple[int, _Rule]]] = {}
    for position, rule in enumerate(rules):
        found.setdefault(rule.group, []).append((position, rule))
    return found


def _of(rules: Mapping[str, list[tuple[int, _Rule]]], groups: Iterable[str]) -> list[_Rule]:
    """The rules of these groups, in the order of the policy."""
    return [rule for _, rule in sorted((r for g in groups for r in rules.get(g, ())), key=lambda found: found[0])]


_DECIDERS: list[Decider] = []
_MAX_DECIDERS = 8


def _decider(policy: Policy) -> Decider:
    """The policy's decider. A few are kept: a policy is decided with ten thousand times, and replaced seldom."""
    for known in _DECIDERS:
        if known.policy is policy:
            return known
    made = Decider(policy)
    _DECIDERS.insert(0, made)
    del _DECIDERS[_MAX_DECIDERS:]
    return made


def _rate(rules: tuple[Rate, ...], scope: expressions.Scope, trail: list[tuple[Place, str]]) -> int | None:
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
    trail.append((place, f"at most {in_words(lowest)}"))
    return lowest


MAX_SHARED_BY = 256


def _sharing(rule: Share, scope: expressions.Scope) -> Sharing:
    """With whom a job has its share. Who has no such attribute shares with the others that have none. Raises Held."""
    by = ""
    if rule.per is not None:
        value = scope.evaluate(rule.per.text)
        if isinstance(value, str) and len(value) <= MAX_SHARED_BY and value.isprintable():
            by = value
        elif value is not expressions.UNDEFINED:
            said = value.value.upper() if isinstance(value, expressions.State) else repr(value)[:60]
            what = f"not a text of at most {MAX_SHARED_BY} printable characters"
            raise Held(f"what this job's share goes by ({rule.per.text}) is {said}, {what}", rule.place)
    # Names of groups hold no slash. Another rule of the same group and `per` would never come to a job.
    return Sharing(f"{rule.group or ''}/{rule.per.text if rule.per else ''}/{by}", rule.part)


def _share_text(rule: Share, share: Sharing) -> str:
    part = share.part
    most = in_words(part.bits) if part.bits is not None else f"{part} of the node's link"
    whose = "all jobs" if rule.group is None else f"the jobs of group {rule.group}"
    per = f" with the same {rule.per.text}" if rule.per is not None else ""
    return f"at most {most} together with {whose}{per} on the node"


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
