"""Decisions are the same as those of the plain way: every condition of every rule, one by one, for every job anew."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import conditions, expressions
from policies.conditions import Conditions
from policies.decide import Decider, Held, decide
from policies.model import (
    Decision,
    Defaults,
    Expose,
    Expression,
    Grant,
    Group,
    Mode,
    Outcome,
    Place,
    Policy,
    PortRange,
    Protocol,
    Rate,
    Scitag,
    Seal,
    Slice,
    Verdict,
    node_matches,
)
from policies.wire import Phase
from tests.effort import examples

HERE = Place("policy", 1)
NAMES = ("A", "B", "my.A", "TARGET.A", "User")
STRINGS = ("x", "X", "y", "x y", "", 'q"', "true")


def quoted(text: str) -> str:
    return '"' + text.replace('"', '\\"') + '"'


names = st.sampled_from(NAMES)
strings = st.sampled_from(STRINGS).map(quoted)
lists = st.lists(st.one_of(strings, strings, names), min_size=1, max_size=3).map(lambda s: "{" + ", ".join(s) + "}")
atoms = st.one_of(names, strings, st.sampled_from(("true", "false", "undefined", "error", "1", "0", "2.5")))
compare = st.sampled_from(("=?=", "is", "=!=", "isnt", "==", "!=", "<", ">="))
leading = st.one_of(
    st.builds("{} =?= {}".format, names, strings),
    st.builds("identicalMember({}, {})".format, names, lists),
    st.builds("  identicalMember( {},{} )".format, names, lists),
)
bare = st.one_of(
    leading,
    st.builds("{} {} {}".format, atoms, compare, atoms),
    st.builds("regexp({}, {})".format, st.sampled_from(('"^x$"', '"["', '"x"')), atoms),
    st.builds("member({}, {})".format, atoms, lists),
    st.builds("strcat({}, {})".format, atoms, atoms),
    st.builds("eval({})".format, st.sampled_from(('"A"', '"B =?= true"', "A"))),
    st.builds("isUndefined({})".format, atoms),
    st.builds("size({})".format, atoms),
    atoms,
)
texts = st.recursive(
    bare,
    lambda inner: st.one_of(
        st.builds("{} && {}".format, st.one_of(leading, inner), inner),
        st.builds("{} || {}".format, inner, inner),
        st.builds("({})".format, inner),
        st.builds("!({})".format, inner),
        st.builds("({}) ? ({}) : ({})".format, inner, inner, inner),
        st.builds("{} ?: {}".format, inner, inner),
        st.builds("{} | {}".format, leading, inner),
        st.builds("{} + {}".format, inner, inner),
        st.builds("{} && {} ? {} : {}".format, leading, inner, inner, inner),
        st.builds("{} /* && \" */".format, inner),
    ),
    max_leaves=5,
)  # fmt: skip
values = st.one_of(
    st.sampled_from(STRINGS),
    st.sampled_from((True, False, 0, 1, 1.0, -0.0, 0.0, 2.5, "x\0", ["x"], [1, "x"], [[True]])),
)
ads = st.dictionaries(st.sampled_from(("A", "b", "User", "Other")), values)
slots = st.dictionaries(st.sampled_from(("A", "a", "B")), values, max_size=1)


def usable(text: str) -> bool:
    try:
        expressions.references(text)
    except expressions.BadExpression:
        return False
    return True


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    told = draw(st.lists(texts.filter(usable), min_size=1, max_size=6))
    groups = {
        f"g{n}": Group(f"g{n}", Expression(t, expressions.references(t), HERE), Place("policy", n))
        for n, t in enumerate(told)
    }
    names = st.sampled_from(sorted(groups))
    phases = st.frozensets(st.sampled_from(Phase), min_size=1)
    patterns = st.sampled_from(((), ("wn1",), ("wn*", "!wn1")))
    grants = [
        Grant(draw(names), draw(st.sampled_from(("s", "t"))), draw(phases), draw(patterns), Place("grant", n), audit)
        for n, audit in enumerate(draw(st.lists(st.booleans(), max_size=5)))
    ]
    plain = Expression("A", frozenset({"a"}), HERE)
    ports = (PortRange(Protocol.TCP, 1, 2),)
    return Policy(
        mode=Mode.ENFORCE,
        services={},
        attributes={},
        groups=groups,
        grants=tuple(grants),
        seals=tuple(Seal(g, Place("seal", n)) for n, g in enumerate(draw(st.lists(names, max_size=1)))),
        slices=tuple(
            Slice(draw(names), plain, True, Place("slice", n), e)
            for n, e in enumerate(draw(st.lists(st.booleans(), max_size=2)))
        ),
        defaults=Defaults(Verdict.ALLOW, Verdict.DROP, Verdict.DROP, HERE),
        digest="",
        files=(),
        mode_place=HERE,
        rates=tuple(
            Rate(g, plain, 1000, Place("rate", n))
            for n, g in enumerate(draw(st.lists(st.one_of(st.none(), names), max_size=2)))
        ),
        exposes=tuple(
            Expose(g, ports, True, (), Place("expose", n)) for n, g in enumerate(draw(st.lists(names, max_size=2)))
        ),
        scitags=tuple(Scitag(g, 3, n, Place("tag", n)) for n, g in enumerate(draw(st.lists(names, max_size=2)))),
    )


def plainly(policy: Policy, node: str, ad: Mapping[str, object], slot: Mapping[str, object], phase: Phase) -> Decision:
    """What docs/policy.md says, in the plainest way."""
    scope = expressions.Scope(ad, slot)
    member = {}
    for group in policy.groups.values():
        value = scope.evaluate(group.condition.text)
        if value is expressions.ERROR:
            raise Held(f"the condition of group `{group.name}` is an ERROR for this job", group.place)
        if not isinstance(value, bool) and value is not expressions.UNDEFINED:
            raise Held(f"the condition of group `{group.name}` gives {value!r}, not true or false", group.place)
        member[group.name] = value is True
    groups = tuple(name for name, is_member in member.items() if is_member)
    trail = [(s.place, f"sealed, as a member of group {s.group}") for s in policy.seals if member[s.group]]
    if trail:
        return Decision(Outcome(sealed=True, services=frozenset()), groups, tuple(trail))
    valid = [g for g in policy.grants if member[g.group] and phase in g.during and node_matches(g.nodes, node)]
    for grant in valid:
        said = "is let on to" if grant.audit else "may reach"
        trail.append((grant.place, f"{said} service {grant.service}, as a member of group {grant.group}"))
    services = frozenset(g.service for g in valid if not g.audit)
    name = None
    for rule in policy.slices:
        if member[rule.group]:
            name = scope.evaluate("A")
            if not isinstance(name, str):
                said = name.value.upper() if isinstance(name, expressions.State) else repr(name)
                raise Held(f"the name of this job's slice (A) is {said}, not a string", rule.place)
            if not name or not name.isprintable():
                raise Held("the name of a slice has 1 to 128 printable characters", rule.place)
            name = ("exposed-" if rule.exposed_only else "") + f"site/{name}"
            trail.append((rule.place, f"in slice {name}, as a member of group {rule.group}"))
            break
    for exposure in policy.exposes:
        if member[exposure.group]:
            trail.append((exposure.place, f"serves tcp/1-2, as a member of group {exposure.group}"))
    limits = []
    for limit in policy.rates:
        value = scope.evaluate("A")
        if (limit.group is None or member[limit.group]) and value is not expressions.UNDEFINED:
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                said = value.value.upper() if isinstance(value, expressions.State) else repr(value)
                raise Held(f"the rate of this job (A) is {said}, not a number above 0", limit.place)
            limits.append((int(value * 1000), limit.place))
    if limits:
        trail.append((min(limits)[1], f"at most {min(limits)[0]} bit/s"))
    tag = next((t for t in policy.scitags if member[t.group]), None)
    if tag is not None:
        marked = f"marked as experiment 3, activity {tag.activity}"
        trail.append((tag.place, f"{marked}, as a member of group {tag.group}"))
    outcome = Outcome(
        sealed=False,
        services=services,
        audited=frozenset(g.service for g in valid if g.audit) - services,
        groups=frozenset(e.group for e in policy.exposes if member[e.group]),
    )
    marks = None if tag is None else (3, tag.activity)
    return Decision(outcome, groups, tuple(trail), name, min(limits)[0] if limits else None, marks)


Case = tuple[str, Mapping[str, object], Mapping[str, object], Phase]


def told(way: object, policy: Policy, case: Case) -> object:
    try:
        return way(policy, *case)  # type: ignore[operator]
    except Held as held:
        return held.reason, held.place


@settings(max_examples=examples(150), deadline=None)
@given(policies(), st.lists(st.tuples(st.sampled_from(("wn1", "wn2")), ads, slots, st.sampled_from(Phase)), max_size=8))
def test_every_decision_is_that_of_the_plain_way(policy: Policy, cases: list[Case]) -> None:
    def quickly(policy: Policy, *case: object) -> Decision:
        return decider.decide(*case)  # type: ignore[arg-type]

    decider = Decider(policy)
    for case in cases + cases:  # the second time from what was kept
        assert told(quickly, policy, case) == told(plainly, policy, case)


def answers(texts: list[str], ad: Mapping[str, object]) -> conditions.Answers:
    made = Conditions([(t, expressions.references(t)) for t in texts])
    return made.answer({n.lower(): v for n, v in ad.items()}, {}, expressions.Scope(ad, {}))


def test_ten_thousand_keys_of_one_attribute_are_told_apart_by_type_and_sign() -> None:
    alike = [1, 1.0, True, "1", [1], [1.0], -0.0, 0.0, 0, False, "", [], [[]]]
    assert len({conditions.key_of(v) for v in alike}) == len(alike)
    assert conditions.key_of({"a": 1}) is None


def test_a_condition_that_can_read_more_than_it_shows_is_asked_for_every_job() -> None:
    policy_texts = ['eval("A") =?= "x"', 'A =?= "x"', "size(MY) > 2"]
    assert answers(policy_texts, {"A": "x"}).true == (0, 1)
    made = Conditions([(t, expressions.references(t)) for t in policy_texts])
    for ad, true in (({"a": "x"}, (0, 1)), ({"a": "y"}, ()), ({"a": "y", "b": 1, "c": 2}, (2,))):
        assert made.answer(ad, {}, expressions.Scope(ad, {})).true == true


def test_conditions_on_strings_are_found_without_asking_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f'LarkGroup =?= "g{n}"' for n in range(50)] + [f'identicalMember(User, {{"u{n}"}})' for n in range(50)]
    asked: list[str] = []
    plain = expressions.Scope.evaluate
    monkeypatch.setattr(expressions.Scope, "evaluate", lambda self, text: asked.append(text) or plain(self, text))
    assert answers(texts, {"LarkGroup": "g7", "User": "u9"}).true == (7, 59)
    assert asked == []
    assert answers([*texts, "A > 3", 'regexp("^x", B)'], {"LarkGroup": "g7", "A": 4, "B": "x"}).true == (7, 100, 101)
    assert len(asked) == 2, "one call for each set of attributes"


def test_the_function_decides_as_the_decider_and_follows_the_policy_it_is_given() -> None:
    def policy(text: str) -> Policy:
        group = Group("g", Expression(text, expressions.references(text), HERE), HERE)
        grant = Grant("g", "s", frozenset(Phase), (), HERE)
        defaults = Defaults(Verdict.ALLOW, Verdict.DROP, Verdict.DROP, HERE)
        return Policy(Mode.ENFORCE, {}, {}, {"g": group}, (grant,), (), (), defaults, "", (), HERE)

    for n in range(20):
        text = f'A =?= "v{n}"'
        assert decide(policy(text), "wn1", {"A": f"v{n}"}, {}, Phase.RUN).outcome.services == {"s"}
        assert not decide(policy(text), "wn1", {"A": "v"}, {}, Phase.RUN).outcome.services


def test_nodes_that_no_grant_tells_apart_have_one_decision_and_others_their_own() -> None:
    text = 'A =?= "v"'
    group = Group("g", Expression(text, expressions.references(text), HERE), HERE)
    everywhere = Grant("g", "s", frozenset(Phase), (), HERE)
    somewhere = Grant("g", "t", frozenset(Phase), ("wn*", "!wn-lab*"), HERE)
    defaults = Defaults(Verdict.ALLOW, Verdict.DROP, Verdict.DROP, HERE)
    decider = Decider(
        Policy(Mode.ENFORCE, {}, {}, {"g": group}, (everywhere, somewhere), (), (), defaults, "", (), HERE)
    )
    one, two, lab, other = (decider.decide(node, {"A": "v"}, {}, Phase.RUN) for node in ("wn1", "wn2", "wn-lab1", "x1"))
    assert one is two, "kept once, not for each of a thousand nodes"
    assert one.outcome.services == {"s", "t"}
    assert lab is other
    assert lab.outcome.services == {"s"}
