"""Far more registrations at a time than the controller can do: what it takes up it confirms, the rest is told to come
again and is served later, and nobody's heartbeat or end has to wait for that.

The real controller, store and one real bridge beside simulated switches; every request of the load is an agent's.
"""

from __future__ import annotations

import os

import pytest

from mininet_tests.bench.churn import Size, machine, running_site

FULL = bool(os.environ.get("LARK_TEST_FULL"))
pytestmark = [pytest.mark.system, pytest.mark.alone, pytest.mark.timeout(900 if FULL else 240)]
ENGINE = os.environ.get("LARK_TEST_ENGINE", "os-ken")
SEED = int(os.environ.get("LARK_TEST_SEED", "2015"))
NODES, ABREAST = 61, 16
CLIENTS = NODES * ABREAST
STARTS = 2400 if FULL else 1200


def test_what_is_taken_up_is_confirmed_in_time_and_the_rest_is_told_to_come_again() -> None:
    with running_site(ENGINE, Size(real=2, fake=NODES - 1), SEED) as site:
        site.until_in_line(120)
        *found, last = site.load(
            [
                {"name": "nodes", "do": "nodes"},
                {"name": "alone", "do": "burst", "count": 20, "clients": 1},
                {"name": "flood", "do": "burst", "count": STARTS - 20, "clients": CLIENTS},
                {"name": "ends", "do": "serial", "count": 20},
            ],
            180,
            ABREAST,
        )
        steps = {one["step"]: one for one in found}
        flood = steps["flood"]
        print(
            f"\n{machine()}: {CLIENTS} clients at once: {flood['rate']:.0f} registrations a second, "
            f"{flood['turned_away']} told to come again, p50 {flood['start']['p50']:.0f} ms, "
            f"p99 {flood['start']['p99']:.0f} ms"
        )
        # The control: one that asks for what there is time for is told nothing of the kind.
        assert steps["alone"]["turned_away"] == 0
        assert flood["turned_away"] > 0
        assert [one["examples"] for one in found if one["failures"]] == []
        assert last["attempts"] == STARTS
        assert "not realised" not in site.log()
        assert site.defects() == []
        assert site.wrong_jobs(last["present"]) == []
