"""docs/pipeline.md is true: tables are described in the declaration's words, all flows shown are golden ones, and every
table of the controller's has some.

LARK_REGENERATE_GOLDEN=1 writes headings, numbers, purposes and flows anew and leaves the remarks between them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from ryu_apps.openflow.pipeline import PIPELINE, Table

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "pipeline.md"
SHOWN = 8
"""Flows shown of one table, spread over its list so that every kind of flow is seen."""
SECTION = re.compile(r"^### (\w+) \(table \d+\)\n\n[^.]*\.(.*?)(?=^### |\Z)", re.MULTILINE | re.DOTALL)


def golden(table: Table) -> list[str]:
    """The demo's flows of a table; of one that the demo does not use, those of a policy that does."""
    directory = ROOT / "tests" / "golden"
    demo = [directory / f"demo-{bridge}-enforce.flows" for bridge in ("wn1-br", "gate-br")]
    for files in (demo, *([file] for file in sorted(directory.glob("feature-*.flows")))):
        lines = [line for file in files for line in file.read_text().splitlines()]
        found = [line for line in lines if line.startswith(f"table={table.name},")]
        if found:
            return found
    return []


def heading(table: Table) -> str:
    decides = PIPELINE[table].decides
    return f"### {table.name} (table {int(table)})\n\n{decides[0].upper()}{decides[1:]}."


def remarks() -> dict[str, str]:
    """What people wrote about each table."""
    found = {}
    for name, rest in SECTION.findall(PAGE.read_text()):
        found[name] = re.sub(r"```flows\n.*?```", "", rest, flags=re.DOTALL).strip()
    return found


def sections() -> Iterator[str]:
    written = remarks()
    for table in PIPELINE:
        flows = golden(table)
        step = max(1, -(-len(flows) // SHOWN))
        block = "\n\n```flows\n" + "\n".join(flows[::step]) + "\n```" if flows else ""
        text = written.get(table.name, "")
        yield heading(table) + (f" {text}" if text else "") + block + "\n"


def test_the_page_says_what_is_declared_and_shows_what_is_compiled() -> None:
    text = PAGE.read_text()
    wanted = text[: text.index("### ")] + "\n".join(sections())
    if os.environ.get("LARK_REGENERATE_GOLDEN"):
        PAGE.write_text(wanted)
    assert PAGE.read_text() == wanted
    assert wanted.count("\ntable=") > 50
    assert [table.name for table in PIPELINE if not golden(table)] == ["HOST_LANE"]
