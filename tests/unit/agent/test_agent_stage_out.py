"""When the controller hears of a phase: before the job starts, or where the policy gives it the same in all phases,
soon. After the job's end: stage-out with the first plugin, or soon, or never where the starter ends before."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ovs_agent import attempts as module
from ovs_agent import counts, ledger, netlink, trust
from ovs_agent.attempts import OK, Attempts
from ovs_agent.conntrack import Conntrack
from ovs_agent.drain import Drain
from ovs_agent.ledger import Ledger, Record
from ovs_agent.life import Request, State
from ovs_agent.pool import Outcome
from ovs_agent.standing import Standing
from policies.wire import AttemptSpec, AttemptStatus, Phase, PortSpec

PAUSE = 1.0
SPEC = AttemptSpec(
    node="wn1",
    port=PortSpec(bridge="br", name="lj3-none", ofport=1003),
    mac="02:6c:0a:14:01:43",
    ipv4="10.20.1.67",
    zone=1003,
    phase=Phase.RUN,
    ad={},
)


class Controller:
    url = "http://test"

    def __init__(self) -> None:
        self.phases: list[Phase] = []
        self.puts = 0
        self.lasting = False
        self.policy = "one"
        self.deleted = asyncio.Event()

    def _status(self, attempt: str, phase: Phase) -> AttemptStatus:
        return AttemptStatus.model_validate(
            {
                "id": attempt,
                "spec": SPEC.model_copy(update={"phase": phase}).model_dump(mode="json"),
                "decision": {
                    "identity": 1,
                    "sealed": False,
                    "groups": [],
                    "grants": [],
                    "trail": [],
                    "lasting": self.lasting,
                },
                "bridges": {"br": "realised"},
                "policy": self.policy,
            }
        )

    async def put_attempt(self, attempt: str, spec: AttemptSpec) -> AttemptStatus:
        self.puts += 1
        return self._status(attempt, spec.phase)

    async def patch_phase(self, attempt: str, phase: Phase) -> AttemptStatus:
        self.phases.append(phase)
        return self._status(attempt, phase)

    async def get_attempt(self, attempt: str) -> AttemptStatus:
        return self._status(attempt, Phase.RUN)

    async def delete_attempt(self, attempt: str) -> None:
        self.deleted.set()


class Lanes:
    network = None

    def claim_number(self, number: int) -> None: ...

    async def destroy(self, port: str, namespaces: Any) -> list[int]:
        return []

    async def leave(self, number: int, port: str, namespace: str, holders: Any) -> Outcome:
        return Outcome((), "gone")

    async def unlimit(self, zone: int) -> None: ...

    def release(self, number: int) -> None: ...


@pytest.fixture
def starter() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        yield process
        process.kill()


class Node:
    """An agent's attempts with one whose job has exited (or has not begun), and who asks about it."""

    def __init__(self, home: Path, starter: subprocess.Popen[bytes], state: State = State.RUN) -> None:
        self.controller = Controller()
        boot, start = ledger.boot_id(), trust.start_time(starter.pid)
        self.id = f"wn1~{boot[:8]}~slot1~{starter.pid}~{start}"
        book = Ledger(home / "state")
        book.save(
            Record(
                id=self.id,
                state=state,
                lane=3,
                port="lj3-none",
                namespaces=("lark-none",),
                zone=1003,
                boot_id=boot,
                slot="slot1",
                uid=1,
                starter_pid=starter.pid,
                starter_start=start,
                job_pid=starter.pid if state is State.RUN else None,
                job_start=start + 1 if state is State.RUN else None,
                spec=SPEC if state is State.RUN else SPEC.model_copy(update={"phase": Phase.STAGE_IN}),
            )
        )
        config: Any = SimpleNamespace(
            node="wn1",
            bridge=SimpleNamespace(name="br", rundir=home),
            guard=SimpleNamespace(uids=[]),
            libexec=home,
            controller=SimpleNamespace(wait=5.0),
        )
        parts: list[Any] = [config, boot, book, Lanes(), None, Conntrack(home, 10), None, self.controller]
        self.standing = Standing(heard_until=time.monotonic() + 60)
        self.attempts = Attempts(*parts, self.standing, Drain(home / "none"))
        self._caller = trust.Caller(1, 1, "slot1", starter.pid, start, -1, 1, "")

    async def ask(self, request: Request, pid: int | None = None) -> module.Reply:
        """`pid`: of whom asks, if not this process."""
        peer = os.getpid() if pid is None else pid
        pidfd = os.pidfd_open(peer)
        try:
            return await self.attempts.handle(request, self._caller, trust.Peer(peer, 1, 1, pidfd))
        finally:
            os.close(pidfd)

    async def registered(self) -> None:
        """Read the ledger; return when the controller has been told of the attempt and has answered."""
        await self.attempts.restore()
        async with asyncio.timeout(10):
            while not self.controller.puts:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0)

    async def enter_job(self, pid: int | None = None) -> None:
        reply = await self.ask(Request.ENTER_JOB, pid)
        assert reply.fd is not None
        os.close(reply.fd)

    async def in_stage_out(self) -> None:
        async with asyncio.timeout(10):
            while Phase.STAGE_OUT not in self.controller.phases:
                await asyncio.sleep(0.01)


@pytest.fixture
def wrapper() -> Iterator[subprocess.Popen[bytes]]:
    """What HTCondor takes for the job."""
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        yield process
        process.kill()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How often the starter was told counts."""
    found: list[str] = []

    async def tell(*_: object) -> str:
        found.append("counts")
        return ""

    monkeypatch.setattr(counts, "proxy_in", lambda _: counts.Proxy("127.0.0.1", 1, "cookiecookie"))
    monkeypatch.setattr(counts, "read", lambda _: counts.Counts(0, 0, 0, 0))
    monkeypatch.setattr(counts, "tell", tell)
    return found


@pytest.fixture
def node(tmp_path: Path, starter: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setattr(module, "STAGE_OUT_PAUSE", PAUSE)
    monkeypatch.setattr(module.fallback, "mode_of", lambda _: module.fallback.Mode.CAPABILITY)
    monkeypatch.setattr(counts, "proxy_in", lambda _: None)
    monkeypatch.setattr(module, "RUN_PAUSE", PAUSE)
    monkeypatch.setattr(netlink, "open_namespace", lambda _: os.open("/dev/null", os.O_RDONLY))
    return Node(tmp_path, starter)


@pytest.fixture
def waiting(node: Node, tmp_path: Path, starter: subprocess.Popen[bytes]) -> Node:
    """A node whose attempt's job has not begun."""
    return Node(tmp_path / "waiting", starter, State.STAGE_IN)


def test_a_job_waits_for_the_policy_of_its_run(waiting: Node) -> None:
    async def main() -> None:
        await waiting.registered()
        await waiting.enter_job()
        assert waiting.controller.phases == [Phase.RUN]
        await asyncio.sleep(1.5 * PAUSE)
        assert waiting.controller.phases == [Phase.RUN], "once"
        await waiting.attempts.shut_down()

    asyncio.run(main())


def test_a_job_that_gets_the_same_in_all_phases_waits_for_none_and_the_controller_hears_it_soon(waiting: Node) -> None:
    async def main() -> None:
        waiting.controller.lasting = True
        await waiting.registered()
        await waiting.enter_job()
        assert waiting.controller.phases == []
        async with asyncio.timeout(10):
            while not waiting.controller.phases:
                await asyncio.sleep(0.01)
        await asyncio.sleep(1.5 * PAUSE)
        assert waiting.controller.phases == [Phase.RUN], "once"
        await waiting.attempts.shut_down()

    asyncio.run(main())


def test_a_word_about_all_phases_that_is_old_is_not_believed(waiting: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(module, "LASTING", 0.1)
        waiting.controller.lasting = True
        await waiting.registered()
        await asyncio.sleep(0.2)
        await waiting.enter_job()
        assert waiting.controller.phases == [Phase.RUN], "the policy may be another one by now"
        await waiting.attempts.shut_down()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("change", "begun", "waits"),
    [
        ({}, "one", False),  # the control
        ({"policy": "another"}, "one", True),
        ({"policy": ""}, "one", True),
        ({"heard_until": 0.0}, "one", True),
        ({}, "", True),
    ],
    ids=["nothing has changed", "another policy", "it says no more which", "no sign of life", "an older controller"],
)
def test_a_word_about_all_phases_counts_while_its_policy_is_in_force_and_the_controller_is_there(
    waiting: Node, change: dict[str, Any], begun: str, waits: bool
) -> None:
    async def main() -> None:
        waiting.controller.lasting, waiting.controller.policy = True, begun
        await waiting.registered()
        for name, value in change.items():
            setattr(waiting.standing, name, value)
        await waiting.enter_job()
        assert waiting.controller.phases == ([Phase.RUN] if waits else [])
        await waiting.attempts.shut_down()

    asyncio.run(main())


def test_the_run_of_a_short_job_costs_no_phase_where_phases_do_not_differ(
    waiting: Node, wrapper: subprocess.Popen[bytes]
) -> None:
    async def main() -> None:
        waiting.controller.lasting = True
        await waiting.registered()
        await waiting.enter_job(wrapper.pid)
        wrapper.kill()
        wrapper.wait()
        plugin = await waiting.ask(Request.ENTER_PLUGIN)
        assert plugin.fd is not None
        os.close(plugin.fd)
        await asyncio.sleep(1.5 * PAUSE)
        assert waiting.controller.phases == [Phase.STAGE_OUT], "no run after stage-out"
        await waiting.attempts.shut_down()

    asyncio.run(main())


def test_the_end_of_the_jobs_process_brings_stage_out_soon(waiting: Node, wrapper: subprocess.Popen[bytes]) -> None:
    async def main() -> None:
        await waiting.registered()
        await waiting.enter_job(wrapper.pid)
        await asyncio.sleep(1.5 * PAUSE)
        assert waiting.controller.phases == [Phase.RUN], "control: it runs"
        wrapper.kill()
        wrapper.wait()
        await waiting.in_stage_out()
        with pytest.raises(trust.Refused, match="the job has exited"):
            await waiting.ask(Request.ENTER_JOB)
        await asyncio.sleep(1.5 * PAUSE)
        assert waiting.controller.phases == [Phase.RUN, Phase.STAGE_OUT], "once"
        await waiting.attempts.shut_down()

    asyncio.run(main())


def test_the_end_of_a_job_that_comes_again_does_not(
    waiting: Node, wrapper: subprocess.Popen[bytes], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A self-checkpointing job: the same starter starts it again, and it has its network again."""
    monkeypatch.setattr(counts, "comes_again", lambda _: True)

    async def main() -> None:
        await waiting.registered()
        await waiting.enter_job(wrapper.pid)
        assert await waiting.ask(Request.EXITED, wrapper.pid) == OK
        wrapper.kill()
        wrapper.wait()
        plugin = await waiting.ask(Request.ENTER_PLUGIN)
        assert plugin.fd is not None
        os.close(plugin.fd)
        await asyncio.sleep(1.5 * PAUSE)
        assert waiting.controller.phases == [Phase.RUN]
        await waiting.enter_job()
        [record] = waiting.attempts._ledger.load()
        assert record.job_pid == os.getpid(), "a new agent watches the one that runs"
        assert await waiting.ask(Request.EXITED) == OK
        assert told == ["counts", "counts"]
        await waiting.attempts.shut_down()

    asyncio.run(main())


def test_the_wrappers_word_brings_counts_and_no_phase(
    waiting: Node, wrapper: subprocess.Popen[bytes], told: list[str]
) -> None:
    async def main() -> None:
        await waiting.registered()
        await waiting.enter_job(wrapper.pid)
        assert await waiting.ask(Request.EXITED, wrapper.pid) == OK
        assert await waiting.ask(Request.EXITED, wrapper.pid) == OK
        assert told == ["counts"], "once, however often it is said"
        await asyncio.sleep(1.5 * PAUSE)
        assert waiting.controller.phases == [Phase.RUN]
        with pytest.raises(trust.Refused, match="the job has exited"):
            await waiting.ask(Request.ENTER_JOB)
        await waiting.attempts.shut_down()

    asyncio.run(main())


def test_another_process_cannot_say_that_the_job_has_exited(
    waiting: Node, wrapper: subprocess.Popen[bytes], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        await waiting.registered()
        with pytest.raises(trust.Refused, match="no job has run yet"):
            await waiting.ask(Request.EXITED, wrapper.pid)
        await waiting.enter_job(wrapper.pid)
        with pytest.raises(trust.Refused, match="the process that entered the network as the job only"):
            await waiting.ask(Request.EXITED)
        monkeypatch.setattr(trust, "is_program", lambda *_: True)
        assert await waiting.ask(Request.EXITED) == OK, "the wrapper of an ssh session"
        await waiting.enter_job()
        assert told == [], "of the job that has not exited"
        assert await waiting.ask(Request.EXITED, wrapper.pid) == OK
        assert told == ["counts"], "positive control"
        await waiting.attempts.shut_down()

    asyncio.run(main())


def test_an_older_configurations_exit_hook_has_the_counts_told_again(
    waiting: Node, wrapper: subprocess.Popen[bytes], told: list[str]
) -> None:
    """Its job may be the process that entered, and may have said `exited` before its time."""

    async def main() -> None:
        await waiting.registered()
        await waiting.enter_job(wrapper.pid)
        with pytest.raises(trust.Refused, match="still running"):
            await waiting.ask(Request.STAGE_OUT)
        assert await waiting.ask(Request.EXITED, wrapper.pid) == OK
        wrapper.kill()
        wrapper.wait()
        assert await waiting.ask(Request.STAGE_OUT) == OK
        assert await waiting.ask(Request.STAGE_OUT) == OK
        assert told == ["counts", "counts"]
        await waiting.in_stage_out()
        await waiting.attempts.shut_down()

    asyncio.run(main())


def test_a_job_that_ended_while_no_agent_ran_is_in_stage_out_soon(node: Node) -> None:
    async def main() -> None:
        await node.attempts.restore()
        with pytest.raises(trust.Refused, match="the job has exited"):
            await node.ask(Request.ENTER_JOB)
        await node.in_stage_out()
        await asyncio.sleep(1.5 * PAUSE)
        assert node.controller.phases == [Phase.STAGE_OUT], "once"
        await node.attempts.shut_down()

    asyncio.run(main())


def test_no_plugin_is_let_in_before_stage_out_is_in_force(waiting: Node, wrapper: subprocess.Popen[bytes]) -> None:
    async def main() -> None:
        await waiting.registered()
        await waiting.enter_job(wrapper.pid)
        early = await waiting.ask(Request.ENTER_PLUGIN)
        assert early.fd is not None
        os.close(early.fd)
        assert waiting.controller.phases == [Phase.RUN], "the job runs"
        wrapper.kill()
        wrapper.wait()
        plugin = await waiting.ask(Request.ENTER_PLUGIN)
        assert waiting.controller.phases == [Phase.RUN, Phase.STAGE_OUT]
        assert plugin.fd is not None
        os.close(plugin.fd)
        await asyncio.sleep(1.5 * PAUSE)
        assert waiting.controller.phases == [Phase.RUN, Phase.STAGE_OUT]
        await waiting.attempts.shut_down()

    asyncio.run(main())


def test_a_starter_that_ends_soon_costs_no_phase(
    node: Node, starter: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        await node.attempts.restore()
        starter.kill()
        async with asyncio.timeout(10):
            await node.controller.deleted.wait()
        await asyncio.sleep(1.5 * PAUSE)
        await node.attempts.shut_down()

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert node.controller.phases == []
    assert caplog.text == ""
