"""At which steps of what the agent is killed: the table that `test_agent_killed_at_steps` goes through.

Invariant: every step of `ovs_agent.steps` is in it (`tests/unit/agent/test_agent_steps.py` compares). A step that
happens several times in a scenario is listed with the time at which the agent dies.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Iterator
from dataclasses import dataclass

from ovs_agent.steps import Step


class Scenario(enum.StrEnum):
    FRESH = "the agent starts where nothing is left"
    AGAIN = "the agent starts after a kill: jobs that run, jobs that ended, strangers"
    BEAT = "nothing happens but heartbeats"
    BEGIN = "a job begins"
    SEALED = "a sealed job begins"
    REFUSED = "the policy refuses a job"
    RUN = "the job enters its network"
    STAGE_OUT = "the job exits"
    END = "the starter ends"
    END_UNUSED = "the starter of a job that used nothing ends"
    END_ALONE = "the starter ends while the controller is away"
    ATTACH = "the job brings its network"
    ATTACHED_END = "the starter of a job that brought its network ends"


@dataclass(frozen=True, slots=True)
class Case:
    scenario: Scenario
    step: Step
    nth: int = 1
    orphan: bool = False
    """The starter ends while there is no agent."""

    @property
    def id(self) -> str:
        return f"{self.scenario.name}-{self.step.name}-{self.nth}" + ("-orphan" if self.orphan else "")


S = Step
_DISK = (S.RECORD_BESIDE, S.RECORD_IN_PLACE)
_DEMOLITION = (S.DEMOLISH_KILLED, S.DEMOLISH_DEVICE, S.DEMOLISH_NAMESPACES)
_PHASE = (*_DISK, S.PHASE_NOTED, S.PHASE_TOLD)
_END = (
    *(S.END_UNRELAYED, *_DEMOLITION, S.END_UNPLUGGED),
    *(S.END_TORN, S.END_DELETED, S.END_FLUSHED, S.RECORD_UNLINKED, S.END_STRUCK, S.END_RELEASED, S.END_UNLIMITED),
)
_STEPS: dict[Scenario, tuple[Step | tuple[Step, int], ...]] = {
    Scenario.FRESH: (
        *(S.START_LOCKED, S.START_GUARDED, S.START_LISTENING, S.START_RESTORED, S.START_REMEMBERED, S.START_SWEPT),
        *(S.START_SERVING, S.HOST_PORT_BESIDE),
        *(S.NODE_TOLD, S.NODE_ADOPTED, S.NODE_GRANT_BESIDE, S.NODE_NOTED),
        *(S.LANE_NAMED, S.LANE_NAMESPACE, S.LANE_DEVICE, S.LANE_UP, S.LANE_CONFIGURED, (S.LANE_NAMED, 2)),
        *(S.LANE_LIMITED, S.LANE_PLUGGED, S.LANE_READY),
    ),
    Scenario.AGAIN: (
        *(S.START_LISTENING, S.START_RESTORED, S.START_REMEMBERED, S.START_SWEPT, S.START_SERVING),
        *(S.SWEEP_KILLED, S.SWEEP_DEVICES, S.SWEEP_NAMESPACES, S.SWEEP_PORTS),
        *(S.NODE_TOLD, *_DEMOLITION, S.END_UNPLUGGED, S.END_TORN, S.END_DELETED, S.RECORD_UNLINKED),
    ),
    Scenario.BEAT: (S.NODE_BEAT,),
    Scenario.BEGIN: (
        *(S.BEGIN_HEARD, S.BEGIN_READ, S.BEGIN_LANE, *_DISK, S.BEGIN_NOTED, S.BEGIN_TOLD),
        *((S.RECORD_BESIDE, 2), (S.RECORD_IN_PLACE, 2), S.BEGIN_IN_FORCE, S.BEGIN_LABELLED, S.ANSWERED),
    ),
    Scenario.SEALED: (S.SEAL_NOTED, S.SEAL_MADE, S.BEGIN_IN_FORCE, S.ANSWERED),
    Scenario.REFUSED: (*_DISK, S.BEGIN_FAILED, *_END, S.ANSWERED),
    Scenario.RUN: (*_PHASE, S.JOB_RELAYED, S.JOB_OPENED, S.ANSWERED),
    Scenario.STAGE_OUT: (*_PHASE, S.JOB_COUNTED, S.ANSWERED),
    Scenario.END: (S.END_SEEN, *_END),
    Scenario.END_UNUSED: (
        *(S.END_UNRELAYED, S.END_UNUSED, S.END_TORN, S.END_DELETED, S.END_FLUSHED, S.RECORD_UNLINKED),
        *(S.END_STRUCK, S.END_KEPT),
    ),
    Scenario.END_ALONE: (*(S.END_SEEN, S.END_UNRELAYED, *_DEMOLITION, S.END_UNPLUGGED, S.END_TORN),),
    Scenario.ATTACH: (
        *(*_PHASE, S.ATTACH_NOTED, S.ATTACH_NAMED, S.ATTACH_MOVED, S.ATTACH_CONFIGURED, S.ATTACH_RELAYED, S.ANSWERED),
    ),
    Scenario.ATTACHED_END: (S.END_SEEN, *_DEMOLITION, S.END_UNPLUGGED, S.END_TORN, S.END_DELETED, S.END_STRUCK),
}
LIVES_ON = (Scenario.BEGIN, Scenario.SEALED, Scenario.RUN, Scenario.STAGE_OUT, Scenario.ATTACH)
"""Here the starter may outlive the agent, or not."""
BRINGS_ITS_NETWORK = {Scenario.ATTACH, Scenario.ATTACHED_END}


def _cases() -> Iterator[Case]:
    for scenario, steps in _STEPS.items():
        for step in steps:
            which, nth = step if isinstance(step, tuple) else (step, 1)
            yield Case(scenario, which, nth)
            if scenario in LIVES_ON:
                yield Case(scenario, which, nth, orphan=True)


CASES = tuple(_cases())


def sample(seed: int, count: int) -> tuple[Case, ...]:
    """Some of them, in their order: one of every scenario at least."""
    dice = random.Random(seed)
    chosen = {dice.choice([case for case in CASES if case.scenario is scenario]) for scenario in _STEPS}
    rest = [case for case in CASES if case not in chosen]
    chosen.update(dice.sample(rest, max(0, count - len(chosen))))
    return tuple(case for case in CASES if case in chosen)
