"""Agent and controller are replaced while jobs run, one after the other and back again: nobody notices.

Where the checkout has no history, the present version takes the older one's place (`mininet_tests.older`): then this
shows that replacing the daemons disturbs nobody, and `tests/unit/policies/test_one_version_apart.py` alone that the
words still fit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mininet_tests.agent_rig import Starter
from mininet_tests.kill_rig import KillRig
from mininet_tests.older import older_version
from mininet_tests.site.lark import ENVIRONMENT, REPOSITORY, python_command
from mininet_tests.site.namespaces import wait_until
from ryu_apps.store.downgrade import versions

pytestmark = pytest.mark.timeout(280)


@pytest.fixture(scope="module")
def older() -> Iterator[Path]:
    """A directory with the older version."""
    with older_version() as root:
        yield root


@pytest.fixture(scope="module")
def rig() -> Iterator[KillRig]:
    built = KillRig.of("capability")
    built.kept = 2  # of two jobs at a time
    yield built
    built.destroy()


def started(rig: KillRig) -> Starter:
    starter = rig.starter()
    said = starter.begin()
    assert "HookStatusCode" not in said.out, said.text
    return starter


def ended(rig: KillRig, starter: Starter, job: int) -> None:
    starter.ask(do="signal", pid=job, signal=9)
    starter.wait(job)
    starter.stage_out()
    rig.in_phase(starter, "stage-out")
    starter.kill()
    rig.settle()


def replace_agent(rig: KillRig, version: Path) -> None:
    assert rig.stop_agent() == 0
    rig.source = version
    rig.start_agent()
    assert "Traceback" not in rig.log()


def replace_controller(rig: KillRig, version: Path) -> None:
    assert rig.controller is not None
    assert rig.controller.stop() == 0
    schema = json.loads((version / "ryu_apps/store/lark.ovsschema").read_text())["version"]
    if schema in versions():
        # As docs/store.md says: the later version converts what the earlier one is to read.
        argv = python_command("ryu_apps.cli", "store", "downgrade", "--config", f"{rig.home}/controller.yaml", schema)
        rig.machine.run(argv, env=ENVIRONMENT | {"PYTHONPATH": str(REPOSITORY)}).need()
    rig.controller_source = version
    rig.start_controller()
    rig.wait_for_pool()


@pytest.mark.parametrize("first", ["agent", "controller"])
def test_each_is_replaced_by_a_newer_one_and_that_by_the_older_one_again(rig: KillRig, older: Path, first: str) -> None:
    replace_controller(rig, older)
    replace_agent(rig, older)
    rig.settle()
    steps = [replace_agent, replace_controller]
    if first == "controller":
        steps.reverse()
    for version in (REPOSITORY, older):
        for replace in steps:
            before = rig.said()
            # One job that begins under the daemons before, and ends under those after.
            across = started(rig)
            job = rig.job(across, "/bin/sleep", "600")
            wait_until("phase run", lambda s=across: rig.attempt_of(s)["phase"] == "run", 10)  # type: ignore[misc]
            spec = rig.attempt_of(across)
            replace(rig, version)
            assert across.wait(job, timeout=0) is None, "the job that ran goes on"
            assert rig.attempt_of(across) == spec, "in its own lane"
            rig.bystander_is_well(before)
            whole_life(rig)
            ended(rig, across, job)
    sent, counted = rig.sent_and_counted()
    assert abs(sent - counted) <= 0.01 * sent + 20, f"{sent} packets sent, {counted} counted"


def whole_life(rig: KillRig) -> None:
    """A job from its beginning to its end, as on any day."""
    starter = started(rig)
    job = rig.job(starter, "/bin/sleep", "600")
    wait_until("phase run", lambda: rig.attempt_of(starter)["phase"] == "run", 10)
    starter.ask(do="signal", pid=job, signal=9)
    starter.wait(job)
    starter.stage_out()
    rig.in_phase(starter, "stage-out")
    lane = int(rig.attempt_of(starter)["port"]["name"].removeprefix("lj"))
    starter.kill()
    wait_until("its number is free", lambda: lane not in [record["lane"] for record in rig.records()], 10)
