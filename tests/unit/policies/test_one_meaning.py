"""What an expression means depends neither on what else the process has imported nor on the machine's HTCondor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from policies import expressions

ROOT = Path(__file__).resolve().parents[3]
ASKED: list[tuple[str, dict[str, object], dict[str, object]]] = [
    ("B", {"A": 1}, {"B": 2}),  # HTCondor's library looks in the slot for what the job does not have, or does not
    ("A", {"A": 1}, {"A": 2}),
    ("MY.B", {"A": 1}, {"B": 2}),
    ("TARGET.A", {"A": 1}, {}),
    ("TARGET.B", {}, {"B": 2}),
    ("isUndefined(B)", {}, {"B": 2}),
    ('splitUserName("a@b")', {}, {}),  # HTCondor's own functions
    ('stringListMember("a", "a,b")', {}, {}),
    ('"x" == "X"', {}, {}),
    ('"x" + 1', {}, {}),
    ("true + 1", {}, {}),
    ('strcat("a", undefined)', {}, {}),
    ("1 || 0", {}, {}),
]
ALONE = """
import json, sys
if sys.argv[2]:
    import htcondor2
from policies import expressions
if sys.argv[3]:
    import htcondor2
asked = json.loads(sys.argv[1])
print(json.dumps([repr(expressions.Scope(ad, slot).evaluate(text)) for text, ad, slot in asked]))
"""


def meanings(config: Path, *, before: bool, after: bool) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", ALONE, json.dumps(ASKED), "x" * before, "x" * after],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "CONDOR_CONFIG": str(config)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    meant: list[str] = json.loads(done.stdout)
    return meant


def test_what_is_imported_and_how_htcondor_is_configured_changes_no_meaning(tmp_path: Path) -> None:
    here = [repr(expressions.Scope(ad, slot).evaluate(text)) for text, ad, slot in ASKED]
    assert here[:2] == [repr(expressions.UNDEFINED), "1"]
    assert here[6:8] == ["['a', 'b']", "True"]
    strict, lax = tmp_path / "strict", tmp_path / "lax"
    strict.write_text("STRICT_CLASSAD_EVALUATION = True\n")
    lax.write_text("STRICT_CLASSAD_EVALUATION = False\n")
    for config, before, after in (
        (strict, False, False),
        (strict, True, False),
        (lax, True, False),
        (lax, False, True),
    ):
        assert meanings(config, before=before, after=after) == here
