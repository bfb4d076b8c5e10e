"""When the controller hears of a phase: before the job starts, or where the policy gives it the same in all phases,
soon. After the exit hook's word: stage-out with the first plugin, or soon, or never where the starter ends before."""

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

    async def delete_attempt(self, attempt: str) -> None:
        self.deleted.set()


class Lanes:
    network = None

    def claim_number(self, number: int) -> None: ...

    async def destroy(self, port: str, namespaces: Any) -> list[int]:
        return []

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

    async def ask(self, request: Request) -> module.Reply:
        pidfd = os.pidfd_open(os.getpid())
        try:
            return await self.attempts.handle(request, self._caller, trust.Peer(os.getpid(), 1, 1, pidfd))
        finally:
            os.close(pidfd)

    async def registered(self) -> None:
        """Read the ledger; return when the controller has been told of the attempt and has answered."""
        await self.attempts.restore()
        async with asyncio.timeout(10):
            while not self.controller.puts:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0)

    async def enter_job(self) -> None:
        reply = await self.ask(Request.ENTER_JOB)
        assert reply.fd is not None
        os.close(reply.fd)


@pytest.fixture
def node(tmp_path: Path, starter: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setattr(module, "STAGE_OUT_PAUSE", PAUSE)
    monkeypatch.setattr(module.fallback, "mode_of", lambda _: module.fallback.Mode.CAPABILITY)
    monkeypatch.setattr(counts, "proxy_in", lambda _: None)
    monkeypatch.setattr(netlink, "open_namespace", lambda _: os.open("/dev/null", os.O_RDONLY))
    return Node(tmp_path, starter)


@pytest.fixture
def waiting(node: Node, tmp_path: Path, starter: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> Node:
    """A node whose attempt's job has not begun."""
    monkeypatch.setattr(module, "RUN_PAUSE", PAUSE)
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


def test_the_run_of_a_short_job_costs_no_phase_where_phases_do_not_differ(waiting: Node) -> None:
    async def main() -> None:
        waiting.controller.lasting = True
        await waiting.registered()
        await waiting.enter_job()
        [attempt] = waiting.attempts._all.values()
        assert attempt.job_pidfd is not None
        os.close(attempt.job_pidfd)
        attempt.job_pidfd = module._exited_pidfd()
        assert await waiting.ask(Request.STAGE_OUT) == OK
        plugin = await waiting.ask(Request.ENTER_PLUGIN)
        assert plugin.fd is not None
        os.close(plugin.fd)
        await asyncio.sleep(1.5 * PAUSE)
        assert waiting.controller.phases == [Phase.STAGE_OUT], "no run after stage-out"
        await waiting.attempts.shut_down()

    asyncio.run(main())


def test_the_exit_hook_does_not_wait_and_stage_out_follows_soon(node: Node) -> None:
    async def main() -> None:
        await node.attempts.restore()
        assert await node.ask(Request.STAGE_OUT) == OK
        assert node.controller.phases == []
        with pytest.raises(trust.Refused, match="the job has exited"):
            await node.ask(Request.ENTER_JOB)
        async with asyncio.timeout(10):
            while not node.controller.phases:
                await asyncio.sleep(0.01)
        assert await node.ask(Request.STAGE_OUT) == OK
        await asyncio.sleep(1.5 * PAUSE)
        assert node.controller.phases == [Phase.STAGE_OUT], "once"
        await node.attempts.shut_down()

    asyncio.run(main())


def test_no_plugin_is_let_in_before_stage_out_is_in_force(node: Node) -> None:
    async def main() -> None:
        await node.attempts.restore()
        early = await node.ask(Request.ENTER_PLUGIN)
        assert early.fd is not None
        os.close(early.fd)
        assert node.controller.phases == [], "the exit hook has not said a word"
        assert await node.ask(Request.STAGE_OUT) == OK
        plugin = await node.ask(Request.ENTER_PLUGIN)
        assert node.controller.phases == [Phase.STAGE_OUT]
        assert plugin.fd is not None
        os.close(plugin.fd)
        await asyncio.sleep(1.5 * PAUSE)
        assert node.controller.phases == [Phase.STAGE_OUT]
        await node.attempts.shut_down()

    asyncio.run(main())


def test_a_starter_that_ends_soon_costs_no_phase(
    node: Node, starter: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        await node.attempts.restore()
        assert await node.ask(Request.STAGE_OUT) == OK
        starter.kill()
        async with asyncio.timeout(10):
            await node.controller.deleted.wait()
        await asyncio.sleep(1.5 * PAUSE)
        await node.attempts.shut_down()

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert node.controller.phases == []
    assert caplog.text == ""
