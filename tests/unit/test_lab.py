"""The lab on paper: its site goes with every example policy, and the example in its page is the test that runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from mininet_tests.topology import layout
from policies.documents import parse
from policies.language import check_together, load_policy, load_site
from policies.model import Role
from policies.sitefile import site
from tests.verdict_tables import EXAMPLES, TABLES, read_table

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("table", TABLES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_campus_is_a_site_for_every_example_policy(table: Path) -> None:
    policy = load_policy(table.parent / read_table(table).policy)
    found = site(parse("site.yaml", layout.site_text(policy).encode()), "site.yaml")
    check_together(policy, found)
    assert set(found.nodes) == set(layout.WORKERS)


def test_the_gate_guards_what_stands_behind_it_and_nothing_else() -> None:
    policy = load_policy(EXAMPLES / "licence-server" / "policy.yaml")
    assert layout.guarded(policy) == ["comsol-licence", "matlab-licence"]
    teaching = load_policy(EXAMPLES / "teaching-cluster" / "policy.yaml")
    assert layout.guarded(teaching) == []


def test_no_machine_has_an_address_of_jobs(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(layout.site_text(load_policy(ROOT / "mininet_tests/topology/campus.yaml")))
    found = load_site(file)
    places = [*layout.PLACES, *layout.HOSTS.values()]
    for node in found.nodes.values():
        assert node.ipv6 is not None
        assert not [a for place in places for a in place.addresses if a in node.ipv4 or a in node.ipv6]
    assert [b.name for b in found.bridges.values() if Role.GATE in b.roles] == ["gate-br"]


def test_the_test_in_the_page_is_the_one_that_runs() -> None:
    page = (ROOT / "docs/lab.md").read_text()
    source = (ROOT / "mininet_tests/test_lab_example.py").read_text().partition('"""\n\n')[2]
    assert source in page
