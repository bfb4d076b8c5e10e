"""docs/pipeline.md is true: every table is described in the declaration's words, every flow shown is a golden one."""

from __future__ import annotations

import re
from pathlib import Path

from ryu_apps.openflow.pipeline import PIPELINE

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "pipeline.md").read_text()


def test_every_table_has_its_heading_number_and_purpose() -> None:
    for table, spec in PIPELINE.items():
        assert f"### {table.name} (table {int(table)})\n\n{spec.decides[0].upper()}{spec.decides[1:]}." in PAGE


def test_every_flow_on_the_page_is_one_that_the_compiler_makes() -> None:
    golden = {line for f in (ROOT / "tests" / "golden").glob("*.flows") for line in f.read_text().splitlines()}
    shown = [line for block in re.findall(r"```flows\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    assert len(shown) > 25
    assert [line for line in shown if line not in golden] == []
