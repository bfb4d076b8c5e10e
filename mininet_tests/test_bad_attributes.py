"""On a real pool: what a job's owner writes into his own ad cannot stop another owner's job."""

from __future__ import annotations

from mininet_tests.site.campus import ALICE, BOB, Site
from mininet_tests.site.namespaces import wait_until
from mininet_tests.story import run_job

BAD_BYTES = '"a\udcff\udcfeb"'
"""No UTF-8 (these two are passed on as the bytes ff and fe): Python's HTCondor library raises when it converts it."""


def hold_reason(site: Site, job: str) -> str:
    return site.pool.command("condor_q", job, "-af", "HoldReason").out.strip()


def test_an_attribute_that_is_no_text_holds_its_own_job_only(site: Site) -> None:
    lines = {"hold": "True"}
    bad = run_job(site, BOB, "#!/bin/sh\nsleep 1\n", lines=lines, name="bad-bytes")
    try:
        site.pool.command("condor_qedit", bad.id, "LarkNetwork", BAD_BYTES, user=BOB).need()
        site.pool.command("condor_release", bad.id, user=BOB).need()
        good = run_job(site, ALICE, "#!/bin/sh\nexit 0\n", name="beside")
        good.finish()
        wait_until("the bad job is held", lambda: "LarkNetwork: must be a plain" in hold_reason(site, bad.id), 60)
    finally:
        bad.remove()
