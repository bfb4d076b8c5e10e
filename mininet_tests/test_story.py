"""The story of the demo as system tests: each chapter on the session's site, held to its claims.

A chapter passes when every claim of it was shown with evidence and at least one positive control among them worked.
"""

from __future__ import annotations

import pytest

from mininet_tests.site.campus import Site
from mininet_tests.story import CHAPTERS, Chapter
from mininet_tests.telling import Telling


@pytest.mark.engine
@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.slug)
def test_chapter(site: Site, telling: Telling, chapter: Chapter) -> None:
    assert chapter.problems(site, telling) == []
