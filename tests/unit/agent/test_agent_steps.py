"""Every step at which the agent can die is reached from its code, and every one has a test that kills it there."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

from mininet_tests.kill_cases import CASES, Scenario, sample
from ovs_agent import steps
from ovs_agent.steps import Step

AGENT = Path(steps.__file__).parent
PASSED_ON = {"beside"}
"""Parameters that hold a step which the caller names."""


def named(tree: ast.AST) -> Counter[str]:
    """Every `Step.NAME` in a module."""
    return Counter(
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Step"
    )


def told_badly(tree: ast.AST) -> list[str]:
    """Calls of `reached` with anything but the name of a step."""
    bad = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "reached":
            (what,) = node.args
            if not (isinstance(what, ast.Attribute) or (isinstance(what, ast.Name) and what.id in PASSED_ON)):
                bad.append(ast.unparse(node))
    return bad


def trees() -> dict[str, ast.Module]:
    return {path.name: ast.parse(path.read_text()) for path in AGENT.glob("*.py") if path.name != "steps.py"}


def test_every_step_is_reached_from_one_place_of_the_code() -> None:
    found: Counter[str] = Counter()
    for tree in trees().values():
        found += named(tree)
    assert found == Counter(step.name for step in Step)


def test_steps_are_told_by_name() -> None:
    assert {name: bad for name, tree in trees().items() if (bad := told_badly(tree))} == {}
    assert told_badly(ast.parse("reached(anything)")) == ["reached(anything)"], "the control"


def test_every_step_has_a_test_that_kills_the_agent_there_and_no_test_names_another() -> None:
    assert {case.step for case in CASES} == set(Step)
    assert len(set(CASES)) == len(CASES)


def test_a_sample_has_something_of_every_scenario() -> None:
    for seed in range(20):
        chosen = sample(seed, 20)
        assert len(chosen) == 20
        assert {case.scenario for case in chosen} == set(Scenario)
    assert sample(1, 20) != sample(2, 20)


def test_in_production_nobody_listens() -> None:
    assert steps.told.__name__ == "_nobody"
    for step in Step:
        steps.reached(step)
