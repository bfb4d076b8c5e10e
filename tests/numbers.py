"""Numbers of things in worlds that no controller has numbered."""

from __future__ import annotations

from collections.abc import Iterable

from policies.model import Attempt, ShareKey


def share_numbers(attempts: Iterable[Attempt]) -> dict[ShareKey, int]:
    """`World.share_numbers` of these attempts."""
    keys = dict.fromkeys(one.share_key for one in attempts)
    return {key: number for number, key in enumerate((key for key in keys if key is not None), 1)}
