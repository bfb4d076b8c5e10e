"""`lark-agent drain` on a real node: no new attempts, the running ones to their end, across restarts of the agent."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from mininet_tests.agent_rig import LIBEXEC, Result, Rig
from mininet_tests.site.lark import ENVIRONMENT, python_command
from mininet_tests.site.namespaces import wait_until


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    built = Rig.build()
    yield built
    built.destroy()


def drain(rig: Rig, *argv: str) -> str:
    return str(rig.lark_agent("drain", "--config", str(rig.home / "agent.yaml"), *argv).need().out)


def begin(rig: Rig) -> Result:
    starter = rig.starter()
    said = starter.begin()
    starter.kill()
    return said


def test_a_drained_node_takes_no_new_jobs_and_ends_those_it_has(rig: Rig) -> None:
    config = ("--config", str(rig.home / "agent.yaml"))
    starter = rig.starter()
    assert "HookStatusCode" not in starter.begin().out
    job = starter.job("/bin/sleep", "600")
    wait_until("phase run", lambda: rig.attempt_of(starter)["phase"] == "run", 5)
    assert "HookStatusCode" not in begin(rig).out, "the control: before the order a job begins"

    assert "takes no new jobs" in drain(rig, "--reason", "a new disk")
    for restarted in (False, True):
        ping = rig.machine.run([f"{LIBEXEC}/lark-ping"]).out
        assert "HasLarkNetwork = false" in ping, ping
        said = begin(rig)
        assert "HookStatusCode = 104" in said.out, said.text
        assert "being drained since" in said.out
        assert "a new disk" in said.out
        status = rig.lark_agent("status", *config)
        assert status.code == 1
        assert "being drained since" in status.out
        shown = json.loads(rig.lark_agent("status", "--json", *config).out)
        assert shown["draining"]["reason"] == "a new disk"
        assert starter.wait(job, timeout=0) is None, "the job that ran goes on"
        if not restarted:
            rig.kill_agent()
            rig.launch_agent()
            assert rig.agent is not None
            rig.agent.wait_for_line("ready:", 20)

    argv = python_command("ovs_agent.cli", "drain", *config, "--wait")
    waiting = rig.machine.spawn("drain", argv, env=ENVIRONMENT)
    waiting.wait_for_line("attempts left: 1", 10)
    waiting.wait_for_line(f"job {starter.slot.partition('_')[2]}.0  run", 5)
    # A job may still go through its phases, and plugins may enter its network.
    starter.ask(do="signal", pid=job, signal=9)
    starter.wait(job)
    starter.stage_out()
    rig.in_phase(starter, "stage-out")
    assert starter.plugin(False, "/proc/self/ns/net").out.startswith("net:[")
    assert waiting.running(), "its starter has not ended"
    starter.kill()
    assert waiting.entry.wait(10) == 0
    assert "lkag is empty" in waiting.log.read_text()
    assert not rig.attempts()

    assert "takes jobs again" in drain(rig, "--undo")
    rig.wait_for_pool()
    assert "HookStatusCode" not in begin(rig).out
    rig.settle()
