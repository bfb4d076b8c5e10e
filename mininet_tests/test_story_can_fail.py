"""The story is worth something only if it fails on a site that does not keep its word.

Here the policy takes everybody for a physicist: the chapter that proves the firewall must say so.
"""

from __future__ import annotations

import re

from mininet_tests.site.campus import POLICY, Site
from mininet_tests.story import CHAPTERS
from mininet_tests.telling import Telling


def test_a_grant_for_everybody_is_noticed() -> None:
    text = POLICY.read_text(encoding="utf-8")
    opened = re.sub(r"physics: '[^']*'", "physics: 'Owner =!= undefined'", text)
    assert opened != text
    with Site(label="lark-test-open", policy=opened) as site:
        told = {chapter.slug: chapter.problems(site, Telling()) for chapter in CHAPTERS if chapter.slug == "ungranted"}
    assert any("it cannot connect to the file server" in problem for problem in told["ungranted"])
    assert not any("reaches the open web server" in problem for problem in told["ungranted"])
