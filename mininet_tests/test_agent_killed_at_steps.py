"""kill -9 of the agent between every two things it does; then it starts again. Nothing is leaked, nobody disturbed.

`kill_cases` has the table. `make test` goes through a sample (the seed is printed; one of each scenario at least),
`make test-full` through all. The controller is the real one; what must not notice is a job with an open connection.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator

import pytest

from mininet_tests.agent_rig import LIBEXEC, Result, Starter, lane_number
from mininet_tests.kill_cases import BRINGS_ITS_NETWORK, CASES, Case, Scenario, sample
from mininet_tests.kill_rig import KillRig
from mininet_tests.site.namespaces import wait_until
from ovs_agent.steps import Step

FULL = bool(os.environ.get("LARK_TEST_FULL"))
SAMPLE = 22
CHOSEN = CASES if FULL else sample(int(os.environ.get("LARK_TEST_SEED", "2015")), SAMPLE)
LONGEST = 8.0
"""Seconds that one round trip of the bystander may take on a machine that is busy with other things."""
SEALED = {"LarkNetwork": "none"}
MISSPELT = {"LarkNetwork": "nome"}
IN_DOUBT = {Step.RECORD_IN_PLACE, Step.BEGIN_IN_FORCE, Step.BEGIN_LABELLED}
"""All is in force and written down, and the hook has perhaps no answer: HTCondor holds the job then. Were it to run all
the same, it would run under its policy."""
LEAVE_A_PROCESS = ("/bin/sh", "-c", "setsid sleep 4141 & exec sleep 4142")

pytestmark = pytest.mark.timeout(240)


def _rig(attach: str) -> Iterator[KillRig]:
    rig = KillRig.of(attach)
    try:
        yield rig
        sent, counted = rig.sent_and_counted()
        assert 0.99 * sent <= counted + 20, f"{sent} packets sent, {counted} counted: some are not accounted"
        assert counted <= sent + 20, f"{sent} packets sent, {counted} counted"
    finally:
        rig.destroy()


@pytest.fixture(scope="module")
def capable() -> Iterator[KillRig]:
    yield from _rig("capability")


@pytest.fixture(scope="module")
def attaching() -> Iterator[KillRig]:
    yield from _rig("userns")


@pytest.fixture
def rig(request: pytest.FixtureRequest, case: Case) -> KillRig:
    name = "attaching" if case.scenario in BRINGS_ITS_NETWORK else "capable"
    found = request.getfixturevalue(name)
    assert isinstance(found, KillRig)
    return found


def begun(rig: KillRig, ad: dict[str, str] | None = None) -> Starter:
    starter = rig.starter(ad=ad or {})
    said = starter.begin()
    assert "HookStatusCode" not in said.out, said.text
    rig.wait_for_pool()
    wait_until("the pool is full again", lambda: len(rig.job_ports()) == 4, 10)
    return starter


def running(rig: KillRig) -> tuple[Starter, int]:
    """A job that has left a process behind."""
    starter = begun(rig)
    job = rig.job(starter, *LEAVE_A_PROCESS)
    wait_until("phase run", lambda: rig.attempt_of(starter)["phase"] == "run", 5)
    wait_until("it runs", lambda: rig.machine.run(["pgrep", "-f", "^sleep 4142"]).code == 0, 5)
    return starter, job


class Victim:
    """The attempt during which the agent is killed."""

    def __init__(self, rig: KillRig, case: Case) -> None:
        self.rig = rig
        self.case = case
        self.starter: Starter | None = None
        self.dead = False
        self.pid: int | None = None

    def suffer(self) -> None:
        """Go through the scenario until the agent dies at the step."""
        scenes: dict[Scenario, Callable[[], None]] = {
            Scenario.FRESH: self.fresh,
            Scenario.AGAIN: self.again,
            Scenario.BEAT: self.doom,
            Scenario.BEGIN: lambda: self.begin({}),
            Scenario.SEALED: lambda: self.begin(SEALED),
            Scenario.REFUSED: lambda: self.begin(MISSPELT),
            Scenario.RUN: self.enter,
            Scenario.ATTACH: self.enter,
            Scenario.STAGE_OUT: self.stage_out,
            Scenario.END: self.end,
            Scenario.ATTACHED_END: self.end,
            Scenario.END_UNUSED: self.end_unused,
            Scenario.END_ALONE: self.end_alone,
        }
        scenes[self.case.scenario]()
        self.rig.wait_for_death()

    def doom(self) -> None:
        self.rig.doom(self.case.step, self.case.nth)

    def fresh(self) -> None:
        assert self.rig.stop_agent() == 0
        self.doom()
        self.rig.launch_agent()

    def again(self) -> None:
        self.starter, _ = running(self.rig)
        self.rig.kill_agent()
        self.kill_starter()
        self.rig.add_strangers()
        self.doom()
        self.rig.launch_agent()

    def begin(self, ad: dict[str, str]) -> None:
        self.starter = self.rig.starter(ad=ad)
        self.doom()
        self.pid = self.starter.spawn("lark-hook-prepare", exe=f"{LIBEXEC}/lark-hook-prepare")

    def enter(self) -> None:
        self.starter = begun(self.rig)
        self.doom()
        self.pid = self.rig.job(self.starter, "/bin/readlink", "/proc/self/ns/net")

    def stage_out(self) -> None:
        self.starter, job = running(self.rig)
        self.doom()
        self.starter.ask(do="signal", pid=job, signal=15)

    def end(self) -> None:
        self.starter, _ = running(self.rig)
        self.doom()
        self.kill_starter()

    def end_unused(self) -> None:
        """A lane is kept of a job that is over soon, if nothing else was just being done: of one of the first."""
        rig = self.rig
        for _ in range(5):
            self.starter, self.dead = rig.starter(), False
            said = self.starter.begin()
            assert "HookStatusCode" not in said.out, said.text
            self.starter.wait(rig.job(self.starter, "/bin/true"))
            self.doom()
            self.kill_starter()
            wait_until("its end", lambda: not rig.runs() or len(rig.records()) == 1, 20)
            if not re.search(rf"torn down: attempt=lkag~\w+~{self.starter.slot}~.* lane=gone", rig.log()):
                break

    def end_alone(self) -> None:
        self.starter, _ = running(self.rig)
        self.number = lane_number(self.rig.attempt_of(self.starter))
        self.rig.stop_controller()
        self.end_after_controller()

    def end_after_controller(self) -> None:
        self.doom()
        self.kill_starter()

    def kill_starter(self) -> None:
        assert self.starter is not None
        self.starter.kill()
        self.dead = True

    # -- after the agent is back ----------------------------------------------------------------------------------

    def recover(self) -> None:
        """Whatever the victim does now, it has a policy in force, or does not run."""
        if self.case.scenario is Scenario.END_ALONE:
            self.in_quarantine()
        if self.starter is None or self.dead:
            return
        said = self.starter.wait(self.pid, timeout=20) if self.pid is not None else None
        assert self.pid is None or said is not None, "the helper waits for ever"
        if self.case.scenario in (Scenario.BEGIN, Scenario.SEALED, Scenario.REFUSED):
            assert said is not None
            self.run_or_not(said)
        elif self.case.scenario in (Scenario.RUN, Scenario.ATTACH):
            assert said is not None
            self.inside_or_not(said)
        elif self.case.scenario is Scenario.STAGE_OUT:
            starter = self.starter
            wait_until("stage-out is in force", lambda: self.rig.attempt_of(starter)["phase"] == "stage-out", 10)
        self.kill_starter()

    def inside_or_not(self, said: Result) -> None:
        """Where the job's helper ran on, it was in its network; where not, it failed."""
        ours = self.rig.machine.need("readlink", "/proc/self/ns/net").strip()
        assert ours not in said.out
        assert ("net:[" in said.out) == (said.code == 0), said.text

    def run_or_not(self, said: Result) -> None:
        assert self.starter is not None
        pid = self.rig.job(self.starter, "/bin/readlink", "/proc/self/ns/net")
        job = self.starter.wait(pid)
        assert job is not None
        self.inside_or_not(job)
        if job.code == 0:
            assert "HookStatusCode" not in said.out or self.case.step in IN_DOUBT
            assert self.case.scenario is not Scenario.REFUSED, "a job that the policy refuses must not run"
            starter = self.starter  # never without a policy in force; of the phase the controller may hear later
            wait_until("its phase is told", lambda: self.rig.attempt_of(starter)["phase"] != "stage-in", 10)
        else:
            assert "HookStatusCode" in said.out, said.text + job.text

    def in_quarantine(self) -> None:
        """The controller has not let go of the attempt: its number is nobody's."""
        rig = self.rig
        rig.gone(f"lj{self.number}", self.number, 10)
        rig.wait_for_pool()
        wait_until("the pool is full again", lambda: len(rig.job_ports()) == 3, 10)
        assert f"lj{self.number}" not in rig.job_ports()
        assert self.number in {r["lane"] for r in rig.records()}
        rig.start_controller()


@pytest.mark.parametrize("case", CHOSEN, ids=lambda case: case.id)
def test_the_agent_dies_and_comes_back(rig: KillRig, case: Case) -> None:
    rig.settle()
    before = rig.said()
    victim = Victim(rig, case)
    try:
        victim.suffer()
        if case.orphan:
            victim.kill_starter()
        rig.start_agent()
        victim.recover()
        rig.settle()
        after = rig.bystander_is_well(before)
        assert after.longest < LONGEST, f"the bystander waited {after.longest:.1f} s for an answer"
        assert "Traceback" not in rig.log(), rig.log()
    finally:
        (rig.home / "die").unlink(missing_ok=True)
        assert rig.agent is not None
        if not rig.agent.running():
            rig.start_agent()
        assert rig.controller is not None
        if not rig.controller.running():
            rig.start_controller()
        if victim.starter is not None and not victim.dead:
            victim.kill_starter()
