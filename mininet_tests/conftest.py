"""One site for all story tests of a session, and its end as a test of its own.

Invariant: the judge's verdict at tear-down (leaks, tracebacks, errors in logs) fails the session like any test.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from mininet_tests.site.campus import Site
from mininet_tests.telling import Telling


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """A running site: `LARK_TEST_ENGINE` (os-ken, ryu) and, as for every site, `LARK_TEST_CONDOR` (23, 25) choose."""
    engine = os.environ.get("LARK_TEST_ENGINE", "os-ken")
    built = Site(engine=engine, label="lark-test", say=lambda text: print(text))
    with built:
        yield built


@pytest.fixture
def telling() -> Telling:
    """Collects the claims of a chapter and prints them, so that a failed test shows the whole story."""

    def hear(claim: object) -> None:
        print(claim)

    return Telling(hear)
