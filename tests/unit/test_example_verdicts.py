"""The example policies do what their tables of verdicts say, by their meaning and by the compiled flows alike."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from policies.lint import lint
from tests.verdict_tables import EXAMPLES, TABLES, Example, page

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "examples.md"
NAMES = [f"{path.parent.name}/{path.stem}" for path in TABLES]


@pytest.fixture(params=TABLES, ids=NAMES)
def example(request: pytest.FixtureRequest) -> Example:
    return Example(request.param)


def test_packets_fare_as_the_table_says(example: Example) -> None:
    wrong = []
    for row in example.table.packets:
        answer = example.ask(row)
        place = answer.judgement.place
        line = example.text(place) if place is not None else ""
        where = f"{row.job} {row.phase} {row.packet}"
        if answer.verdict != row.verdict:
            wrong.append(f"{where}: {answer.verdict} ({answer.judgement.text}), not {row.verdict}")
        if row.line is not None and row.line not in line:
            wrong.append(f"{where}: decided by {place} {line!r}, not by {row.line!r}")
        found = answer.traffic_class.name if answer.traffic_class is not None else None
        if not row.verdict.startswith("drop") and found != row.class_:
            wrong.append(f"{where}: class {found}, not {row.class_}")
        wrong += [f"{where}: {text}" for text in answer.disagreements]
    assert wrong == []


def test_a_table_shows_both_what_passes_and_what_does_not(example: Example) -> None:
    """A refusal proves little where nothing passes."""
    verdicts = {row.verdict.split()[0] for row in example.table.packets}
    assert "allow" in verdicts
    assert verdicts & {"drop", "audit"}


def test_jobs_are_given_what_the_table_says(example: Example) -> None:
    for name, row in example.table.jobs.items():
        decision = example.decision(row)
        assert (decision.rate, decision.scitag) == (row.rate, row.scitag), name


def test_jobs_are_held_by_the_line_and_with_the_reason_that_the_table_says(example: Example) -> None:
    for name, row in example.table.held.items():
        held = example.held(row)
        assert held is not None, f"{name} is not held"
        assert row.because in held.reason, name
        assert held.place is not None, name
        assert row.line in example.text(held.place), name


def test_check_warns_of_nothing_but_what_the_table_says(example: Example) -> None:
    found = [problem.message for problem in lint(example.policy, example.site)]
    unmet = [text for text in example.table.warnings if not any(text in message for message in found)]
    unsaid = [message for message in found if not any(text in message for text in example.table.warnings)]
    assert (unmet, unsaid) == ([], [])


def test_every_directory_of_an_example_has_a_table_for_each_of_its_policies() -> None:
    directories = sorted(path for path in EXAMPLES.iterdir() if path.is_dir())
    assert len(directories) >= 7
    tabled = {(path.parent / Example(path).table.policy) for path in TABLES}
    for directory in directories:
        files = {path for path in directory.glob("*.yaml") if not path.name.startswith(("site", "verdicts"))}
        included = {directory / "rules.yaml"} & files
        assert files - included == {path for path in tabled if path.parent == directory}


def test_the_page_shows_these_tables() -> None:
    """LARK_REGENERATE_GOLDEN=1 writes them anew; read the difference."""
    text = PAGE.read_text()
    tables = page()
    part = re.compile(r"(<!-- table (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
    assert sorted(name for _, name, _, _ in part.findall(text)) == sorted(tables)
    new = part.sub(lambda found: f"{found[1]}\n{tables[found[2]]}\n{found[4]}", text)
    if os.environ.get("LARK_REGENERATE_GOLDEN"):
        PAGE.write_text(new)
    assert PAGE.read_text() == new
