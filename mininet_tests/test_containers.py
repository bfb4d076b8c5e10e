"""On a real pool: a container job is inside its attempt's network; a Docker job is refused with a reason.

Unprivileged Apptainer is started by HTCondor's starter through Lark's wrapper, so the container has the attempt's
network and nothing of it is Apptainer's. The image here has no test of its own: HTCondor, told to run that before the
job (and without the wrapper), would refuse the image.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import classad2
import pytest

from mininet_tests.site import apptainer
from mininet_tests.site.campus import ALICE, BOB, CAMPUS, CONDOR, FILE_SERVER, HTTP_PORT, Site
from mininet_tests.site.pool import Job
from mininet_tests.story import run_job

CONTAINER = {
    "universe": "container",
    "container_image": str(apptainer.IMAGE),
    "transfer_container": "false",
    "transfer_executable": "true",
}
SLOTS = (("false", "true"), ("true", "true"), ("false", "false"))
LOOK = f"""#!/bin/sh
readlink /proc/self/ns/net
cat /proc/self/status
for port in {FILE_SERVER}:1094 {CAMPUS}:{HTTP_PORT}; do
    nc -w 3 ${{port%:*}} ${{port#*:}} </dev/null >/dev/null 2>&1 && echo $port open || echo $port closed
done
cat /etc/passwd
"""


@pytest.fixture(scope="module", params=["23", "25"] if os.environ.get("LARK_TEST_FULL") else [CONDOR])
def boxes(request: pytest.FixtureRequest) -> Iterator[Site]:
    with Site(condor=request.param, label="lark-test-boxes") as site:
        pool = site.pool
        # The site's jobs run below /tmp, which Apptainer makes anew inside.
        settings = f"SINGULARITY = {apptainer.PROGRAM}\nSINGULARITY_TARGET_DIR = /srv\n"
        pool.reconfigure(pool.execute, "60-apptainer.config", settings)
        pool.execute.machine.run(["condor_restart", "-startd"], env=pool.environment).need()
        pool.wait_for_slot("HasSingularity =?= true && HasLarkNetwork =?= true", 60)
        yield site


def looked(site: Site, user: str, lines: dict[str, str]) -> tuple[Job, list[str]]:
    job = run_job(site, user, LOOK, lines=lines, name="box")
    return job, job.finish(timeout=90).splitlines()


def test_a_container_is_inside_its_attempts_network(boxes: Site) -> None:
    _, plain = looked(boxes, ALICE, {})
    job, granted = looked(boxes, ALICE, CONTAINER)
    assert not any(line.startswith("root:") and "/bin/sh" in line for line in plain), (
        "control: the machine's own passwd"
    )
    assert "root:x:0:0:root:/root:/bin/sh" in granted, "it ran in the image"
    assert granted[0] != boxes.node_network()
    assert "CapEff:\t0000000000000000" in granted
    assert f"{FILE_SERVER}:1094 open" in granted
    assert f"{CAMPUS}:{HTTP_PORT} open" in granted
    _, refused = looked(boxes, BOB, CONTAINER)
    assert f"{FILE_SERVER}:1094 closed" in refused
    assert f"{CAMPUS}:{HTTP_PORT} open" in refused
    assert "HasLarkNetwork" in str(job.ad()["Requirements"])


def test_a_docker_job_is_refused_with_the_way_out(boxes: Site) -> None:
    lines = {"executable": "/bin/true", "universe": "docker", "docker_image": "debian"}
    said, _ = boxes.pool.try_submit(ALICE, lines, {}, "docker")
    assert said.code != 0
    assert "Lark: Docker jobs get no network of their own here; submit with universe = container" in said.text


def test_a_slot_accepts_no_container_that_docker_would_start(boxes: Site) -> None:
    """The startd's own expression, by what its slot ad says of Docker and Singularity."""
    text = boxes.worker.run(["condor_config_val", "LARK_RUNS_INSIDE"], env=boxes.pool.environment).need().out.strip()
    inside = classad2.ExprTree(text)
    job = classad2.ClassAd("[JobUniverse = 5; WantContainer = true]")
    slots = [f"[HasDocker = {docker}; HasSingularity = {singularity}]" for docker, singularity in SLOTS]
    assert [inside.eval(classad2.ClassAd(slot), job) for slot in slots] == [True, False, False]
