"""When the API of a starting controller opens."""

from __future__ import annotations

import pytest

from ryu_apps.bridges_first import AT_MOST, COMING, LOOK, bridges_first

LISTENING = 100.0
BEGUN = 0.25
"""Seconds after the listener opened, everything is read back."""


def opens(behind: dict[str, float], away: dict[str, float], with_jobs: set[str]) -> float:
    """Seconds after the listener opened. `away`: bridges and when they come; `behind`: when they are in line."""
    now = [LISTENING + BEGUN]

    def waiting() -> tuple[set[str], set[str]]:
        since = now[0] - LISTENING
        missing = {name for name, comes in away.items() if since < comes}
        return {name for name, ends in behind.items() if since < ends} - missing, missing

    def sleep(seconds: float) -> None:
        now[0] += seconds

    bridges_first(waiting, with_jobs, LISTENING, lambda: now[0], sleep)
    return now[0] - LISTENING


NEVER = 3600.0


@pytest.mark.parametrize(
    ("behind", "away", "with_jobs", "expected"),
    [
        pytest.param({}, {}, {"a"}, BEGUN, id="all in line: at once"),
        pytest.param({"a": 0.6, "b": 0.8}, {}, set(), 0.8, id="those that have come are waited for"),
        pytest.param({"a": 0.6, "b": 1.2}, {"b": 1.0}, {"a", "b"}, 1.2, id="one with jobs that comes at its next try"),
        pytest.param({"a": 0.6, "b": 1.2}, {"b": 1.0}, {"a"}, 0.6, id="one without jobs that is away: not for that"),
        pytest.param({}, {"b": NEVER}, {"b"}, COMING, id="one with jobs that stays away: as long as it may come"),
        pytest.param({"b": 1.9}, {"b": 1.4}, {"b"}, 1.9, id="one that has come late is waited for"),
        pytest.param({"a": NEVER}, {}, {"a"}, AT_MOST, id="one that never answers: not without end"),
        pytest.param({"a": NEVER}, {"b": NEVER}, {"a", "b"}, AT_MOST, id="nor together with one that is away"),
    ],
)
def test_the_api_opens_when_the_bridges_are_in_line_and_waits_for_none_without_end(
    behind: dict[str, float], away: dict[str, float], with_jobs: set[str], expected: float
) -> None:
    assert opens(behind, away, with_jobs) == pytest.approx(expected, abs=1.5 * LOOK)
