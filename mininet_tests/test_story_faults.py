"""What happens to real jobs when something dies: the job, its starter, the agent, the switch.

Each test begins with a job that works (the positive control) and ends with nothing of it left. They share the site of
the story; the log lines that a death provokes are allowed by name.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable

from mininet_tests import payload
from mininet_tests.site.campus import ALICE, BOB, NODE, WORKER_BRIDGE, Site
from mininet_tests.site.namespaces import wait_until
from mininet_tests.site.pool import Job, JobStatus
from mininet_tests.story import (
    FS,
    LOOP,
    WEB,
    attempt_of,
    cookies_of,
    end,
    evidence_of,
    open_,
    results,
    run_job,
    wait_for_file,
)


def looping(site: Site, user: str = ALICE, target: str = FS, name: str = "loop") -> Job:
    """A running job that connects to the target twice a second and writes down what it saw."""
    job = run_job(site, user, "#!/bin/sh\n./loop.sh\n", {"loop.sh": LOOP.replace(FS, target)}, name=name)
    wait_until("the first connections", lambda: len(seen(job)) >= 2, 45)
    return job


def seen(job: Job) -> list[str]:
    return [line.split()[2] for line in job.said("live").splitlines() if len(line.split()) == 3]


def traces(site: Site, job: Job) -> Callable[[], dict[str, list[str]]]:
    """Everything the node and the switches hold of a running job now; a function that looks again."""
    spec = attempt_of(site, job)["spec"]
    assert isinstance(spec, dict)
    address, port, mac = spec["ipv4"], spec["port"]["name"], spec["mac"]
    cookies = cookies_of(site, address)
    lane = f"lark-{NODE}-{port.removeprefix('lj')}"

    def look() -> dict[str, list[str]]:
        found = evidence_of(site, address, port, mac, lane, cookies)
        return {kind: lines for kind, lines in found.items() if lines}

    assert {"worker flows", "gate flows", "ports", "namespaces", "attempts"} <= set(look())
    return look


def test_a_removed_job_leaves_nothing(site: Site) -> None:
    job = looping(site)
    look = traces(site, job)
    job.remove()
    wait_until("everything of the removed job goes", lambda: not look(), 10)
    assert set(seen(job)) == {"open"}
    assert job.status() == JobStatus.REMOVED


def test_a_killed_starter_leaves_nothing_and_the_job_runs_again(site: Site) -> None:
    job = looping(site)
    look = traces(site, job)
    first = attempt_of(site, job)["id"]
    starter = next(pid for pid, command in site.worker.outer_pids().items() if "condor_starter" in command.split()[0])
    site.worker.need("kill", "-9", inner_pid(starter))
    wait_until("everything of the first attempt goes", lambda: not look(), 10)
    wait_until("a second attempt", lambda: attempt_id(site, job) not in (None, first), 45, 0.5)
    before = len(seen(job))
    wait_until("the job runs again and connects", lambda: len(seen(job)) >= before + 2, 30)
    end(job)
    assert set(seen(job)) == {"open"}


def attempt_id(site: Site, job: Job) -> str | None:
    attempts = site.larkctl.json("attempts")["attempts"]
    assert isinstance(attempts, list)
    return next((attempt["id"] for attempt in attempts if attempt["spec"]["job"] == job.id), None)


def inner_pid(outer: int) -> str:
    """A process's pid as its own machine sees it."""
    with open(f"/proc/{outer}/status", encoding="ascii") as status:
        line = next(line for line in status if line.startswith("NSpid:"))
    return line.split()[-1]


def test_a_killed_agent_disturbs_no_running_job_and_forgets_nothing(site: Site) -> None:
    site.allowed_log.append(re.compile(r"node=wn1 .*(lease|agent)"))
    job = looping(site)
    look = traces(site, job)
    first = attempt_of(site, job)["id"]
    site.agent.stop(signal.SIGKILL)
    before = len(seen(job))
    wait_until("the job goes on without the agent", lambda: len(seen(job)) >= before + 3, 20)
    # A job that starts meanwhile must not run without a network of its own.
    other = run_job(site, BOB, payload.probing(WEB, FS), name="no-agent")
    site.agent.start()
    found = results(wait_for_file(other, timeout=90))
    assert open_(found, "web")
    assert found["fs"] != "open"
    assert attempt_id(site, job) == first
    before = len(seen(job))
    wait_until("the job goes on with the new agent", lambda: len(seen(job)) >= before + 3, 20)
    end(job, other)
    assert set(seen(job)) == {"open"}
    wait_until("everything of the job goes", lambda: not look(), 10)


def test_a_restarted_switch_opens_nothing_and_gives_the_granted_its_network_back(site: Site) -> None:
    site.allowed_log.append(re.compile(r"ovs-vswitchd (ended|is not running)"))
    site.allowed_log.append(re.compile(r"bridge=wn1-br"))
    granted = looping(site)
    denied = looping(site, BOB, f"{FS} {WEB}", name="denied")
    switch = site.switches[NODE]
    switch.kill_switch()
    switch.start_switch()

    def lately(job: Job, name: str) -> list[str]:
        lines = [line.split() for line in job.said("live").splitlines()]
        return [words[2] for words in lines if len(words) == 3 and words[0] == name][-3:]

    wait_until("the granted job connects again", lambda: lately(granted, "fs") == ["open"] * 3, 30)
    wait_until("the other job reaches the open web server again", lambda: lately(denied, "web") == ["open"] * 3, 30)
    every = [line.split() for line in denied.said("live").splitlines()]
    assert "open" not in {words[2] for words in every if len(words) == 3 and words[0] == "fs"}
    assert switch.flows(WORKER_BRIDGE)
    end(granted, denied)


def test_a_burst_of_jobs_each_gets_exactly_its_own(site: Site) -> None:
    jobs = [
        run_job(site, (ALICE, BOB)[number % 2], payload.probing(FS, WEB, wait=False), name="burst")
        for number in range(24)
    ]
    for number, job in enumerate(jobs):
        job.finish(timeout=180)
        found = results(job.said("live"))
        assert open_(found, "web"), (job.id, found)
        assert (found["fs"] == "open") == (number % 2 == 0), (job.id, found)
        ad = job.ad()
        assert (ad.get("NumJobStarts"), ad.get("NumHolds", 0)) == (1, 0), job.id
