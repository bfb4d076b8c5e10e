"""A controller that restarts with thousands of attempts: how soon the last bridge is in line, and that nothing is sent.

What was sent is what the switches' own flow monitors tell. Alone, with all numbers:
`LARK_TEST_FULL=1 pytest -s mininet_tests/test_restart.py`.
"""

from __future__ import annotations

import pytest

from mininet_tests.restart_rig import RestartRig, report
from mininet_tests.switch_rig import ENGINES
from tests.effort import FULL

pytestmark = [pytest.mark.engine, pytest.mark.alone]
ATTEMPTS, WORKERS = (10_000, 15) if FULL else (1_500, 15)
SECONDS = 15.0
"""From the process's start to the last bridge in line, at most: five times the 3 s that are aimed at. A machine under
load must not fail this."""
BYTES_AN_ATTEMPT = (6 if FULL else 10) * 1024
"""At most. With few attempts, what the process has anyway counts for more."""


@pytest.mark.parametrize("engine", ENGINES)
def test_a_restart_brings_every_bridge_in_line_in_seconds_and_sends_nothing(engine: str) -> None:
    with RestartRig(ATTEMPTS, WORKERS, engine) as rig:
        empty = rig.restart()
        rig.heed_backoff()
        rig.stop()
        rig.fill()
        with rig.watched() as told:
            first = rig.restart()
        print(report(f"{engine}: first start", first, ATTEMPTS))
        # The control: the monitors tell of what is sent, bridge by bridge.
        assert sum(told.values()) == first.sent >= 6 * ATTEMPTS
        assert all(told.values())
        # Two for the share of each worker bridge, from the first start with jobs; sixteen for neighbours were there.
        assert (empty.meters, first.meters) == (16 * WORKERS, 2 * WORKERS)
        before = {bridge: rig.switch.flows(bridge) for bridge in rig.bridges}
        for turn in ("a restart", "a second restart"):
            rig.kill()
            with rig.watched() as told:
                again = rig.restart()
            print(report(f"{engine}: {turn}", again, ATTEMPTS))
            assert set(told) == set(rig.bridges)
            assert set(told.values()) == {0}
            assert (again.sent, again.meters) == (0, 0)
            assert again.in_line <= SECONDS
        assert {bridge: rig.switch.flows(bridge) for bridge in rig.bridges} == before
        each = (again.rss - empty.rss) / ATTEMPTS
        print(f"{engine}: {each / 1024:.1f} KiB of the controller's memory an attempt")
        assert each <= BYTES_AN_ATTEMPT
        rig.stop()
