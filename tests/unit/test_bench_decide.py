"""The benchmark of large policies measures what it says it does; how fast it is, it says itself (make bench)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mininet_tests.bench import decide as bench
from policies.language import check_together


def test_a_small_round_has_all_its_rules_jobs_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "made" / "bench.json"
    assert bench.main(["--rules", "300", "--jobs", "60", "--json", str(file)]) == 0
    told = json.loads(file.read_text())
    assert (told["rules"], told["jobs"]) == (300, 60)
    assert told["flows"] > 60 * 6
    assert told["identities"] > 10
    assert told["in_full"] == pytest.approx(told["prepare"] + told["decide"] + told["compile"])
    assert "decided and compiled in full" in capsys.readouterr().out


def test_its_policy_has_as_many_rules_as_it_says_and_goes_with_its_site() -> None:
    policy, site = bench.load(1000, bench.random.Random(1))
    rules = (policy.grants, policy.seals, policy.slices, policy.classify, policy.exposes, policy.rates, policy.scitags)
    assert sum(map(len, rules)) == 1000
    assert all(rules)
    check_together(policy, site)
