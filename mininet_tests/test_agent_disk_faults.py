"""A disk that fails while jobs come and go: whatever call to the ledger fails, a job never keeps anything for it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from mininet_tests.agent_rig import Rig, lane_number
from mininet_tests.site.namespaces import wait_until

FOR_A_WHILE = 10_000


@pytest.fixture(scope="module")
def shared() -> Iterator[Rig]:
    rig = Rig.build()
    yield rig
    rig.destroy()


@pytest.fixture
def rig(shared: Rig) -> Iterator[Rig]:
    yield shared
    (shared.home / "faults").unlink(missing_ok=True)
    shared.behave()
    shared.settle()
    wait_until("only warm lanes are left", lambda: len(shared.namespaces()) == len(shared.job_ports()) == 2, 5)
    assert "Traceback" not in shared.log(), shared.log()


def fail(rig: Rig, call: str, skip: int, times: int) -> None:
    new = rig.home / "faults.test"
    new.write_text(json.dumps({call: [skip, times]}))
    new.rename(rig.home / "faults")


def failed(rig: Rig, call: str, times: int) -> bool:
    skip, left = json.loads((rig.home / "faults").read_text())[call]
    return bool(skip == 0 and left < times)


@pytest.mark.parametrize("times", [1, FOR_A_WHILE])
@pytest.mark.parametrize(
    ("call", "skip"),
    # save: 0 registering, 1 sealed, 2 stage-in, 3 run. (An end that is not over within a second is written, too.)
    [("save", 0), ("save", 1), ("save", 2), ("save", 3), ("forget", 0)],
)
def test_a_failing_disk_keeps_nothing_of_a_job(rig: Rig, call: str, skip: int, times: int) -> None:
    rig.behave(sealed=True)  # one write more
    before = len(rig.requests("DELETE"))
    starter = rig.starter()
    fail(rig, call, skip, times)
    said = starter.begin()
    lane = None
    if call == "save" and skip < 3:
        assert "HookStatusCode = 104" in said.out, said.text
    else:
        assert "HookStatusCode" not in said.out, said.text
        spec = rig.attempt_of(starter)
        lane = lane_number(spec)
        job = starter.job("/bin/sh", "-c", "setsid sleep 4242 & sleep 4242")
        if skip == 3:
            ended = starter.wait(job)
            assert ended is not None
            assert ended.code != 0, "a job whose phase is not written down must not run"
            assert rig.attempt_of(starter)["phase"] == "stage-in"
        else:
            wait_until("the job runs", lambda: rig.machine.run(["pgrep", "-fc", "^sleep 4242"]).out.strip() == "2", 5)
    starter.kill()
    began = time.monotonic()
    if lane is not None:
        rig.gone(f"lj{lane}", lane)
        left = 2.0 - (time.monotonic() - began)
        wait_until("no process is left", lambda: rig.machine.run(["pgrep", "-f", "^sleep 4242"]).code != 0, left)
    if call == "save" and skip == 0:
        wait_until("its record is gone", lambda: not rig.records(), 2)
        assert len(rig.requests("DELETE")) == before, "what was never registered needs no deletion"
    else:
        wait_until("the controller is told", lambda: len(rig.requests("DELETE")) > before and not rig.attempts(), 2)
    wait_until("the fault has struck", lambda: failed(rig, call, times), 5)


def test_a_number_whose_record_cannot_be_removed_is_not_used_again(rig: Rig) -> None:
    starter = rig.starter()
    fail(rig, "forget", 0, FOR_A_WHILE)
    starter.begin()
    number = lane_number(rig.attempt_of(starter))
    starter.kill()
    rig.gone(f"lj{number}", number)
    used = []
    for _ in range(14):
        other = rig.starter()
        held = "HookStatusCode = 104" in other.begin().out
        if not held:
            used.append(lane_number(rig.attempt_of(other)))
        other.kill()
        if held:
            break
    assert number not in used
    assert len(used) == 13, "every other number of the /28"
    (rig.home / "faults").unlink()
    rig.settle()
    rig.wait_for_pool()


def test_a_kill_while_the_disk_fails_forgets_nothing(rig: Rig) -> None:
    """The record still says `run` when the agent dies; its starter is dead, so the next agent takes it down."""
    starter = rig.starter()
    starter.begin()
    number = lane_number(rig.attempt_of(starter))
    rig.behave(DELETE=503)
    fail(rig, "save", 0, FOR_A_WHILE)
    starter.kill()
    rig.gone(f"lj{number}", number)
    assert [r["state"] for r in rig.records()] == ["stage-in"]
    rig.kill_agent()
    (rig.home / "faults").unlink()
    rig.behave()
    rig.start_agent()
    rig.settle()
