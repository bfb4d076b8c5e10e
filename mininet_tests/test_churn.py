"""Real bridges and many simulated switches under one controller, attempts coming and going all the time.

`make test` runs it small, `LARK_TEST_FULL=1` at the stated size; the figures are printed. What must hold at any size:
no request fails, every switch ends with the flows of exactly the jobs that are there, and a controller that computes
all of it afresh finds nothing to change. Times are asserted with room for a machine that does other things meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from mininet_tests.bench import churn
from mininet_tests.bench.churn import Result, Site, running_site

FULL = bool(os.environ.get("LARK_TEST_FULL"))
pytestmark = [pytest.mark.system, pytest.mark.alone, pytest.mark.timeout(1200 if FULL else 240)]
ENGINE = os.environ.get("LARK_TEST_ENGINE", "os-ken")
SEED = int(os.environ.get("LARK_TEST_SEED", "2015"))


@pytest.fixture(scope="module")
def result() -> Result:
    found = churn.run(ENGINE, churn.size(), SEED)
    print(churn.table(found))
    return found


def test_no_request_fails_and_every_switch_ends_with_the_flows_of_the_jobs_there_are(result: Result) -> None:
    assert result.failures == 0
    assert result.wrong == []
    assert result.defects == []
    moves = result.steps["churn"]
    wanted = result.size.rate * result.size.seconds
    assert (moves["start"]["count"], moves["exit"]["count"]) == (wanted, wanted)
    assert moves["population"] == result.size.attempts


def test_a_controller_that_computes_everything_afresh_changes_nothing(result: Result) -> None:
    assert result.restart_flow_mods == 0


def test_the_pace_is_kept_and_nothing_grows(result: Result) -> None:
    moves = result.steps["churn"]
    # What is late at the end adds to the time that the step took.
    assert moves["rate"] >= 0.9 * 2 * result.size.rate
    first, last = moves["start_first_10s"]["p50"], moves["start_last_10s"]["p50"]
    assert last <= 5 * first + 20
    assert result.memory_last_10s <= 1.1 * result.memory_first_10s


def test_registration_does_not_depend_on_how_many_attempts_there_are(result: Result) -> None:
    assert result.present_ratio <= (1.2 if FULL else 3)


@pytest.fixture(scope="module")
def small() -> Iterator[Site]:
    """What the judges look at, with something wrong in it."""
    with running_site(ENGINE, churn.Size(real=2, fake=2, attempts=8), SEED) as site:
        site.until_in_line(60)
        yield site


def test_the_judges_see_a_job_too_many_and_a_flow_too_few(small: Site) -> None:
    """The control: each of the judgements above can fail."""
    *_, last = small.load([{"name": "nodes", "do": "nodes"}, {"name": "fill", "do": "fill", "to": 8, "clients": 2}], 60)
    present = last["present"]
    assert small.wrong_jobs(present) == []
    bridge = next(name for name, ports in present.items() if ports)
    less = {**present, bridge: present[bridge][1:]}
    more = {**present, bridge: [*present[bridge], churn.FIRST_JOB_PORT + churn.LANES - 1]}
    assert f"{bridge}: flows of ports [{present[bridge][0]}] too many" in small.wrong_jobs(less)[0]
    assert "missing" in small.wrong_jobs(more)[0]
    assert small.controller is not None
    small.controller.stop()
    fake = next(n for n in small.numbers if not small.real(n))
    assert next(small.ask_fakes({"do": "forget", "dpid": fake})) == {"ok": True}
    small.start_controller()
    _, flow_mods = small.until_in_line(60)
    assert flow_mods > 10
