"""How far property tests look: a little in `make check`, further in `make test`, furthest in `make test-full`.

A count of examples in a test is that of `make test`. A failure found at any effort prints how to see it again.
"""

from __future__ import annotations

import os

FULL = bool(os.environ.get("LARK_TEST_FULL"))
MORE = FULL or bool(os.environ.get("LARK_TEST_MORE"))


def examples(count: int) -> int:
    """How many examples to look at, where `make test` looks at `count`."""
    if FULL:
        return 10 * count
    return count if MORE else max(20, count // 5)
