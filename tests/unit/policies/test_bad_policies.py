"""Every kind of mistake in a policy gives the message that stands in the golden file, with place, fault and remedy.

tests/golden/bad_policies.txt holds each case: `=== what`, its files (`--- name`), and `>>>` the messages.
After a change of messages: `LARK_REGENERATE_GOLDEN=1`, and read the difference.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.language import PolicyError, load_policy, policy_from_text
from tests.effort import examples
from tests.unit.policies.test_language import WHOLE

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "bad_policies.txt"
INTRODUCTION = """# Policies that are refused, and the messages that say why (tests/unit/policies/test_bad_policies.py).
# A file marked (escaped) holds Python escapes; other marks are made by the test.

"""
MESSAGE = re.compile(r"^[^:;]+:[1-9][0-9]*:[1-9][0-9]*: [^;]+; [^;]+$")
"""file:line:column: what is wrong; what to write instead."""


@dataclass(slots=True)
class Case:
    title: str
    files: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)


def read_cases() -> list[Case]:
    cases: list[Case] = []
    name = ""
    for line in GOLDEN.read_text().split("\n=== ", 1)[1].splitlines():
        if not cases or line.startswith("=== "):
            cases.append(Case(line.removeprefix("=== ")))
        elif line.startswith("--- ") and line != "---":
            name = line.removeprefix("--- ")
            cases[-1].files[name] = ""
        elif line.startswith(">>> "):
            cases[-1].messages.append(line.removeprefix(">>> "))
        else:
            cases[-1].files[name] += line + "\n"
    return cases


def written(cases: list[Case]) -> str:
    text = INTRODUCTION
    for case in cases:
        text += f"=== {case.title}\n"
        for name, content in case.files.items():
            text += f"--- {name}\n{content}"
        text += "".join(f">>> {message}\n" for message in case.messages)
    return text


def numbered(head: str, line: str, tail: str = "") -> str:
    return head + "".join(line.replace("N", str(n)) for n in range(33)) + tail


def too_many_groups() -> str:
    rules = numbered("classify:\n", "  - {for: gN, class: a}\n")
    return numbered("classes: [{name: a, dscp: 0}]\ngroups:\n", "  gN: 'User =?= \"N\"'\n") + rules


def too_many_services() -> str:
    rules = numbered("classify:\n", "  - {service: sN, class: a}\n")
    return numbered("classes: [{name: a, dscp: 0}]\nservices:\n", "  sN: {ports: [icmp]}\n") + rules


def too_many_exposures() -> str:
    head = "networks: {n: [10.0.0.0/8]}\ngroups: {g: 'User =?= \"a\"'}\nexpose:\n"
    return numbered(head, "  - {for: g, ports: [tcp/1], to: [n]}\n")


def chain(folder: Path) -> str:
    for n in range(12):
        (folder / f"{n}.yaml").write_text(f"include: [{n + 1}.yaml]\nnetworks: {{n{n}: [10.0.0.0/8]}}\n")
    return "include: [0.yaml]\nmode: enforce\n"


def many_files(folder: Path) -> str:
    for n in range(66):
        (folder / f"{n}.yaml").write_text(f"networks: {{n{n}: [10.0.0.0/8]}}\n")
    return f"include: [{', '.join(f'{n}.yaml' for n in range(66))}]\n"


MADE: Mapping[str, Callable[[Path], str]] = {
    "10 MB": lambda _folder: "#" * (10 * 1024 * 1024),
    "33 groups": lambda _folder: too_many_groups(),
    "33 services": lambda _folder: too_many_services(),
    "33 exposures": lambda _folder: too_many_exposures(),
    "chain": chain,
    "65 files": many_files,
}


def laid_out(case: Case, folder: Path) -> Path:
    for heading, content in case.files.items():
        name, _, mark = heading.partition(" (")
        mark = mark.removesuffix(")")
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if mark == "escaped":
            file.write_bytes(content.rstrip("\n").encode("latin-1").decode("unicode_escape").encode("latin-1"))
        else:
            file.write_text(MADE[mark](folder) if mark else content)
    return folder / "policy.yaml"


def refused(case: Case, folder: Path) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        load_policy(laid_out(case, folder))
    return [str(problem).replace(str(folder), "FOLDER") for problem in caught.value.problems]


CASES = read_cases()


@pytest.mark.parametrize("case", CASES, ids=[case.title for case in CASES])
def test_a_mistake_is_refused_with_the_message_of_the_golden_file(case: Case, tmp_path: Path) -> None:
    found = refused(case, tmp_path)
    if os.environ.get("LARK_REGENERATE_GOLDEN"):
        case.messages = found
        GOLDEN.write_text(written(CASES))
    assert found == case.messages


@pytest.mark.parametrize("case", CASES, ids=[case.title for case in CASES])
def test_every_message_has_place_fault_and_remedy(case: Case) -> None:
    assert case.messages
    assert [message for message in case.messages if not MESSAGE.match(message)] == []


def test_there_are_enough_cases_and_each_has_its_own_title() -> None:
    assert len({case.title for case in CASES}) == len(CASES) >= 60
    assert sum(len(case.messages) for case in CASES) >= 150


def test_the_reader_of_messages_can_fail() -> None:
    assert MESSAGE.match("policy.yaml:1:2: this is wrong; write that")
    for broken in ("policy.yaml:1: no column; write that", "policy.yaml:1:2: no remedy", "policy.yaml:0:0: a; b"):
        assert not MESSAGE.match(broken)


@pytest.mark.parametrize(
    "made", [too_many_groups, too_many_services, too_many_exposures], ids=["groups", "services", "exposures"]
)
def test_one_fewer_fits_the_register(made: Callable[[], str]) -> None:
    """The control of the three cases above: 32 are accepted."""
    text = re.sub(r".*\b[gs]?32\b.*\n", "", made())
    if made is too_many_exposures:
        text = text.rsplit("  - ", 1)[0]
    assert policy_from_text(text)


def test_includes_up_to_the_limits_are_accepted(tmp_path: Path) -> None:
    main = tmp_path / "policy.yaml"
    main.write_text(chain(tmp_path))
    (tmp_path / "7.yaml").write_text("networks: {n7: [10.0.0.0/8]}\n")
    assert len(load_policy(main).files) == 9
    main.write_text(re.sub(r", 63.yaml.*]", "]", many_files(tmp_path)))
    assert len(load_policy(main).files) == 64


WORDS = re.findall(r"\s+|[\w.-]+|.", WHOLE)
STRAY = [*"[]{}:,#&*!%|>?'\"~\t\0é\\", "- ", "\n", "  ", "---\n", "[]", "{}", "()", "null", "true", "7", "-1", "1e9"]
STRAY += [".inf", "9" * 40, "0x10", "a: b", "::", "%eth0", "x" * 300, "&&", "=?="]
positions = st.integers(0, len(WORDS) - 1)
changes = st.tuples(positions, st.sampled_from(["put", "add", "drop"]), st.sampled_from(STRAY + WORDS))


@settings(max_examples=examples(150), deadline=None)
@given(st.lists(changes, min_size=1, max_size=3))
def test_whatever_is_mistyped_is_loaded_or_refused_with_place_fault_and_remedy(
    mistakes: list[tuple[int, str, str]],
) -> None:
    words = list(WORDS)
    for position, change, word in mistakes:
        at = position % len(words)
        words[at : at + (change != "add")] = [] if change == "drop" else [word]
    try:
        policy_from_text("".join(words))
    except PolicyError as refused:
        assert [str(p) for p in refused.problems if not MESSAGE.match(str(p))] == []
