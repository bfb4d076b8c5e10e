"""On a real pool: the controller is away when jobs start. They wait, are held with a reason and released, not for ever.

That such a job is held with 102 and runs when the controller is back, and that a running one notices nothing, is a
chapter of the story (`test_story`); here is how long it waits, and how often it is released.
"""

from __future__ import annotations

import itertools
import re
import signal
import time
from collections.abc import Iterator

import pytest

from mininet_tests import payload
from mininet_tests.site.campus import ALICE, Site
from mininet_tests.site.namespaces import wait_until
from mininet_tests.site.pool import Job, JobStatus
from mininet_tests.story import FS, LOOP, UNREACHABLE, end, open_, results, run_job, wait_for_file

RELEASES = 2
FIRST_WAIT = 2
pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def away(site: Site) -> Iterator[Site]:
    """The site without its controller, beside a job that runs and goes on to reach its server."""
    running = run_job(site, ALICE, "#!/bin/sh\n./loop.sh\n", {"loop.sh": LOOP}, name="goes-on")
    wait_for_file(running, "live")
    site.allowed_log.append(re.compile(r"controller \S+ cannot be reached"))
    site.controller.stop(signal.SIGKILL)
    try:
        yield site
    finally:
        if site.controller.daemon is None:
            site.controller.start()
    tries = running.said("live").splitlines()
    assert len(tries) > 3
    assert all(line.endswith(" open") for line in tries), tries
    end(running)


def reaching(site: Site) -> Job:
    return run_job(site, ALICE, payload.probing(FS, wait=False), name="waits")


def test_a_job_that_starts_meanwhile_waits_and_runs_without_a_hold_if_the_controller_is_back_in_time(
    away: Site,
) -> None:
    job = reaching(away)
    job.wait(JobStatus.RUNNING, timeout=40)
    time.sleep(1)
    ad = job.ad()
    assert ad["JobStatus"] == JobStatus.RUNNING, "its starter waits; the job itself has not begun"
    assert not job.said("live")
    away.controller.start()
    ad = job.wait(JobStatus.COMPLETED, JobStatus.HELD, JobStatus.REMOVED, timeout=60)
    assert ad["JobStatus"] == JobStatus.COMPLETED, ad.get("HoldReason")
    assert not ad.get("NumHolds")
    assert open_(results(job.said("live")), "fs")


def test_it_is_released_so_often_and_no_more_and_by_hand_when_the_controller_is_back(away: Site) -> None:
    pool = away.pool
    pool.reconfigure(pool.access, "99-releases.config", f"LARK_RELEASES = {RELEASES}\n")
    try:
        job = reaching(away)
        holds: list[float] = []

        def held_again() -> bool:
            ad = job.ad()
            number = int(str(ad.get("NumHolds") or 0))
            if ad["JobStatus"] == JobStatus.HELD and number > len(holds):
                assert ad["HoldReasonSubCode"] == UNREACHABLE
                shown = pool.command("condor_q", "-hold", job.id, user=ALICE).need().out
                assert "cannot be reached" in shown, "condor_q -hold says why"
                holds.append(float(str(ad["EnteredCurrentStatus"])))
            return len(holds) > RELEASES

        wait_until(f"held {RELEASES + 1} times", held_again, 120, 0.5)
        gaps = [later - earlier for earlier, later in itertools.pairwise(holds)]
        for number, gap in enumerate(gaps):
            assert gap > FIRST_WAIT * 2**number, f"released after a wait that doubles: {gaps}"
        time.sleep(FIRST_WAIT * 2**RELEASES + 8)  # HTCondor looks every 3 s here
        ad = job.ad()
        assert (ad["JobStatus"], ad["NumHolds"]) == (JobStatus.HELD, RELEASES + 1), "it waits for a person now"
        away.controller.start()
        pool.command("condor_release", job.id, user=ALICE).need()
        ad = job.wait(JobStatus.COMPLETED, JobStatus.REMOVED, timeout=60)
        assert open_(results(job.said("live")), "fs")
    finally:
        pool.reconfigure(pool.access, "99-releases.config", None)
