"""What is told of a ClassAd expression without a job is what HTCondor's library does with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from policies import classads, expressions
from policies.classads import FUNCTIONS, REFUSED, Fault, Kind, examine

ROOT = Path(__file__).resolve().parents[3]
ACCEPTED = {
    'User =?= "a" || Owner == "b" && !(RequestCpus > 1)': Kind.BOOLEAN,
    "a is undefined": Kind.BOOLEAN,
    "a isnt error": Kind.BOOLEAN,
    "a =!= b": Kind.BOOLEAN,
    "true": Kind.BOOLEAN,
    "undefined": Kind.NOTHING,
    "1 + 2 * 3": Kind.NUMBER,
    "-1.5e3": Kind.NUMBER,
    ".5": Kind.NUMBER,
    "x / 2": Kind.NUMBER | Kind.TIME,
    "a | b": Kind.NUMBER | Kind.BOOLEAN,
    '"text"': Kind.STRING,
    '"a\\"b\\101" "neighbour"': Kind.STRING,
    '"\\\\0"': Kind.STRING,
    '-"text"': Kind.NOTHING,
    '{1, "b", {true}}': Kind.LIST,
    "{}": Kind.LIST,
    "{1, 2}[0]": Kind.ANY,
    "MY.a": Kind.ANY,
    "a ? 1 : false": Kind.NUMBER | Kind.BOOLEAN,
    "a ?: 1": Kind.ANY,
    'ifThenElse(a, 1, "b")': Kind.NUMBER | Kind.STRING,
    "strcat /* comment */ (a, 1)": Kind.STRING,
    "\ta\r\n&& b": Kind.BOOLEAN,
    "1 < 2 == true": Kind.BOOLEAN,
    "~a": Kind.NUMBER | Kind.BOOLEAN | Kind.TIME,
}


@pytest.mark.parametrize(("text", "kinds"), ACCEPTED.items(), ids=list(ACCEPTED))
def test_an_expression_gives_what_is_told_and_reads_what_the_library_sees(text: str, kinds: Kind) -> None:
    examined = examine(text)
    assert examined.kinds == kinds
    assert examined.references == expressions.references(text)


BROKEN = [
    "User =?=", "= 1", "a = 1", "(a", "a)", "{1,}", "{1", "a b", "a && && b", '"open', "'open", "not a", "a and b",
    "1K", "1.", "1..2", "09", "a ? b", "a ? b :", "a <> b", "a => b", "@a", "$a", "a;b", "a,b", "é", "a\x0bb", "a\xa0b",
    "()", "+", "1 +", "a // b", "f(,)", "is", "1e", '"\\0"', "017", "0x1F", "/* open", "a.1", "", " ",
]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN)
def test_what_the_library_refuses_is_refused_here_at_a_character_of_the_text(text: str) -> None:
    with pytest.raises(expressions.BadExpression):
        expressions.references(text)
    with pytest.raises(Fault) as fault:
        examine(text)
    assert 0 <= fault.value.offset <= len(text)
    assert fault.value.fix


STRICTER = ["a.b", "MY", 'MY["x"]', "TARGET", "[a = 1]", "'a b'", "CurrentTime", "MY.CurrentTime", "parent"]


@pytest.mark.parametrize("text", STRICTER)
def test_what_hides_attributes_or_reads_like_something_else_is_refused_though_the_library_takes_it(text: str) -> None:
    assert expressions.references(text) is not None
    with pytest.raises(Fault):
        examine(text)


ARGUMENTS = {
    "absTime": '"2020-01-01T00:00:00Z"',
    "bool": '"true"',
    "getDays": "relTime(5)",
    "unparse": "attribute",
    "allCompare": '"<", {1}, 2',
    "anyCompare": '"<", {1}, 2',
    "argsToList": '"a b"',
    "envV1ToV2": '"A=1"',
    "formatTime": "0",
    "identicalMember": "1, {1}",
    "ifThenElse": "true, 1, 2",
    "interval": "60",
    "join": '",", {"a"}',
    "listToArgs": '{"a"}',
    "member": "1, {1}",
    "mergeEnvironment": '"A=1"',
    "pow": "2, 2",
    "quantize": "1, 8",
    "regexp": '"a", "a"',
    "regexpMember": '"a", {"a"}',
    "regexps": '"a", "a", "b"',
    "relTime": '"1"',
    "replace": '"a", "a", "b"',
    "replaceAll": '"a", "a", "b"',
    "size": "{1}",
    "split": '"a b"',
    "splitSlotName": '"slot1@b"',
    "splitUserName": '"a@b"',
    "strcmp": '"a", "b"',
    "stricmp": '"a", "b"',
    "stringListIMember": '"a", "A"',
    "stringListISubsetMatch": '"a", "a"',
    "stringListMember": '"a", "a"',
    "stringListSubsetMatch": '"a", "a"',
    "stringListsIntersect": '"a", "a"',
    "stringList_regexpMember": '"a", "a"',
    "substr": '"abc", 1',
    "version_in_range": '"1", "0", "2"',
    **dict.fromkeys(("sum", "avg", "min", "max"), "{1}"),
    **dict.fromkeys(("int", "real", "floor", "ceil", "ceiling", "round"), "1"),
    **dict.fromkeys((n for n in FUNCTIONS if n.startswith("get") and n != "getDays"), "absTime(0)"),
    **dict.fromkeys((n for n in FUNCTIONS if n.startswith("version") and n[7:8] in "cEGL"), '"1", "0"'),
    **{n: '"1,2"' for n in FUNCTIONS if n.startswith("stringList") and n[10:] in ("Avg", "Max", "Min", "Size", "Sum")},
}


def kind_of(value: object) -> Kind:
    match value:
        case bool():
            return Kind.BOOLEAN
        case int() | float():
            return Kind.NUMBER
        case str():
            return Kind.STRING
        case list():
            return Kind.LIST
    return Kind.TIME  # gives no value that a rule can use: `Scope` says ERROR


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_every_function_exists_and_gives_what_is_told(name: str) -> None:
    arguments = ARGUMENTS.get(name, '"a"')
    text = f"{name}({arguments})"
    value = expressions.Scope({}, {}).evaluate(text)
    assert value is not expressions.UNDEFINED
    assert kind_of(value) & examine(text).kinds, f"{text} gives {value!r}"
    assert expressions.Scope({}, {}).evaluate(f"no{text}") is expressions.ERROR


def test_functions_of_htcondors_own_are_there_from_the_first_expression_on() -> None:
    """In a process of its own: whatever ran before in this one may have loaded them."""
    code = "from policies import expressions as e; print(e.Scope({}, {}).evaluate('splitUserName(\"a@b\")'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "['a', 'b']\n"


def test_the_names_of_functions_ignore_case() -> None:
    assert examine('STRCAT("a")').kinds is Kind.STRING


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_refused_function_says_why(name: str) -> None:
    with pytest.raises(Fault, match=rf"^{name}\(\) "):
        examine(f"{name}(1)")


def test_a_string_that_looks_like_a_function_is_a_string() -> None:
    assert examine('User =?= "random(2)"').references == {"user"}


def test_nesting_is_bounded_before_the_library_sees_it() -> None:
    depth = classads.MAX_NESTING
    assert examine("(" * depth + "a" + ")" * depth).references == {"a"}
    for text in ("(" * 10_000, "!" * 10_000, "{" * 10_000, "a ? " * 10_000, "a[" * 10_000, "size(" * 10_000):
        with pytest.raises(Fault, match="nested deeper than 32 levels"):
            examine(text)


def test_written_out_regular_expressions_are_found_with_their_place() -> None:
    assert examine('regexp("^a$", User) && size(regexps("(", b, ""))').patterns == ((7, '"^a$"'), (36, '"("'))


def test_what_a_job_does_not_have_is_not_looked_for_in_its_slot() -> None:
    """The library does so by itself; the slot's word would then pass for the schedd's."""
    slot = {"LarkGroup": "physics", "Machine": "wn1"}
    for ad, group in (({}, expressions.UNDEFINED), ({"larkgroup": "staff"}, "staff")):
        scope = expressions.Scope(ad, slot)
        assert scope.evaluate("LarkGroup") == group
        assert scope.evaluate("MY.LarkGroup") == group
        assert scope.evaluate("TARGET.LarkGroup") == "physics"
    assert expressions.Scope({"LarkGroup": "a"}, {}).evaluate("TARGET.LarkGroup") is expressions.UNDEFINED
