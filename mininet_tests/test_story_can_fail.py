"""The story is worth something only if it fails on a site that does not keep its word.

Here one site breaks four promises, each that of one chapter: everybody counts as a physicist, no job is sealed, jobs
may talk to each other, and no guard stands in the node's network. Each chapter must say so at the claim concerned,
while its positive controls go on holding: a site that is merely broken would not pass for an open one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from mininet_tests.site.campus import POLICY, Site
from mininet_tests.story import CHAPTERS
from mininet_tests.telling import Claim, Telling

OPENINGS = (
    (r"physics: '[^']*'", "physics: 'Owner =!= undefined'"),
    (r"(?m)^seal: .*\n", ""),
    (r"between-jobs: deny", "between-jobs: allow"),
)
BROKEN = {
    "ungranted": "it cannot connect to the file server",
    "sealed": 'the same job with My.LarkNetwork = "none"',
    "apart": "though both belong to",
    "outside": "the guard stops processes of",
}
"""Chapter -> the claim that must not be shown."""


class HeardEnoughError(Exception):
    """The claim concerned was made."""


@pytest.fixture(scope="module")
def open_site() -> Iterator[Site]:
    text = POLICY.read_text(encoding="utf-8")
    for pattern, instead in OPENINGS:
        text, changed = re.subn(pattern, instead, text)
        assert changed == 1, pattern
    with Site(label="lark-test-open", policy=text, guard=False) as site:
        yield site


@pytest.mark.parametrize("slug", BROKEN)
def test_a_broken_promise_is_noticed(open_site: Site, slug: str) -> None:
    chapter = next(chapter for chapter in CHAPTERS if chapter.slug == slug)
    claims: list[Claim] = []

    def hear(claim: Claim) -> None:
        claims.append(claim)
        if BROKEN[slug] in claim.text:
            raise HeardEnoughError  # what follows in the chapter would only cost time

    assert any("HeardEnoughError" in problem for problem in chapter.problems(open_site, Telling(hear))), claims
    *before, concerned = claims
    assert not concerned.true, concerned
    controls = [claim for claim in before if claim.control]
    assert controls
    assert all(claim.true for claim in controls), controls
