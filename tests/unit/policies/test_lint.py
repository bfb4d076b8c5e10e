"""Lint: every finding with the policy it is found in, word by word (tests/golden/lint.txt)."""

from __future__ import annotations

import ast
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from policies import lint as module
from policies.ads import names_in, read_ads
from policies.language import Problem, policy_from_text
from policies.lint import lint
from policies.model import Bridge, Place, PortKind, Role, WanPort
from policies.shadow import nodes_cover
from tests.worlds import demo_site

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "lint.txt"
HEAD = """Policies and what lint finds in them. Comments at a case's head: `# site` (the demo's site file goes with it),
`# border` (with a border besides), `# link` (nodes with links of 10 Gbit/s), `# ads:` (job ads on the lines with #|),
`# startd-job-attrs:` and `# immutable-job-attrs:` (the pool's lists).
"""


EDGE = Bridge(
    "edge-br", 0xC1, frozenset({Role.BORDER}), {"lan0": PortKind.UPLINK, "wan0": PortKind.WAN}, (),
    Place("site.yaml", 12), wan={"wan0": WanPort(50_000_000, 48_000_000)},
)  # fmt: skip


def cases() -> dict[str, str]:
    told = re.split(r"^### (.*)\n", GOLDEN.read_text(), flags=re.MULTILINE)[1:]
    return dict(zip(told[::2], told[1::2], strict=True))


def found_in(text: str) -> str:
    def said(key: str) -> str | None:
        found = re.search(rf"^# {key}:(.*)$", text, flags=re.MULTILINE)
        return found.group(1) if found else None

    policy = policy_from_text(text)
    site = demo_site() if "# site\n" in text else None
    if "# border\n" in text:
        site = demo_site()
        site = replace(site, bridges={**site.bridges, "edge-br": EDGE})
    if "# link\n" in text:
        site = demo_site()
        site = replace(site, nodes={name: replace(node, link=10**10) for name, node in site.nodes.items()})
    ads = "".join(line.removeprefix("#|").strip() + "\n" for line in text.splitlines() if line.startswith("#|"))
    startd, immutable = said("startd-job-attrs"), said("immutable-job-attrs")
    problems = lint(
        policy,
        site,
        ads=read_ads(ads) if ads else (),
        startd_job_attrs=None if startd is None else names_in(startd),
        immutable_job_attrs=None if immutable is None else names_in(immutable),
    )
    return "".join(f"{p}\n" for p in problems) or "nothing\n"


def policy_of(case: str) -> str:
    return case.split("--- found\n")[0]


if os.environ.get("LARK_REGENERATE_GOLDEN"):
    told = "".join(
        f"### {name}\n{policy_of(case)}--- found\n{found_in(policy_of(case))}" for name, case in cases().items()
    )
    GOLDEN.write_text(HEAD + told)


@pytest.mark.parametrize("name", cases())
def test_what_is_found_is_what_is_written_down(name: str) -> None:
    case = cases()[name]
    assert found_in(policy_of(case)) == case.split("--- found\n")[1]


def test_every_finding_has_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = ast.parse(Path(module.__file__).read_text())
    calls = {
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Problem"
    }
    assert len(calls) >= 30
    reached: set[int] = set()

    def recorded(*args: object) -> Problem:
        reached.add(sys._getframe(1).f_lineno)
        return Problem(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "Problem", recorded)
    for case in cases().values():
        found_in(policy_of(case))
    assert calls - reached == set(), "a finding that no case shows (line numbers of policies/lint.py)"


def test_every_finding_says_how_to_mend_it() -> None:
    found = [line for case in cases().values() for line in case.split("--- found\n")[1].splitlines()]
    assert len(found) >= 50
    assert all(re.match(r"(policy|site)\.yaml:\d+:\d+: .*; \S", line) for line in found if line != "nothing")


@pytest.mark.parametrize(
    ("wide", "narrow", "holds"),
    [
        ((), ("wn1",), True),
        (("*",), ("wn*", "!wn2"), True),
        (("*", "!wn1"), ("wn2", "wn3"), True),
        (("*", "!wn1"), ("wn1",), False),
        (("*", "!wn1"), ("wn*",), False),
        (("wn*",), ("wn1", "!wn2"), True),
        (("wn*",), (), False),
        (("wn1",), ("wn*",), False),
        (("wn*", "!wn2"), ("wn*", "!wn2", "!wn3"), True),
        (("!wn2",), ("!wn2", "!wn3"), False),  # true, and not worth finding out
        (("wn1",), ("!wn2",), False),
    ],
)
def test_patterns_of_nodes_that_cover_others(wide: tuple[str, ...], narrow: tuple[str, ...], holds: bool) -> None:
    assert nodes_cover(wide, narrow) is holds
