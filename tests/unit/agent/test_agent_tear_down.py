"""A tear-down that dies, of whatever, is taken up again until nothing is left."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ovs_agent import attempts as module
from ovs_agent import ledger
from ovs_agent.attempts import Attempts
from ovs_agent.conntrack import Conntrack
from ovs_agent.drain import Drain
from ovs_agent.ledger import Ledger, Record
from ovs_agent.life import State
from ovs_agent.standing import Standing


class FakePool:
    """Fails with what nobody expects as often as it is told."""

    network = None

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.destroyed: list[str] = []
        self.released: list[int] = []
        self.claimed: list[int] = []

    def claim_number(self, number: int) -> None:
        self.claimed.append(number)

    async def destroy(self, port: str, namespaces: Any) -> list[int]:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("nobody expected this")
        self.destroyed.append(port)
        return []

    def release(self, number: int) -> None:
        self.released.append(number)

    def zones(self) -> list[int]:
        return []


class FakeController:
    url = "http://test"

    def __init__(self) -> None:
        self.deleted: list[str] = []

    async def delete_attempt(self, attempt: str) -> None:
        self.deleted.append(attempt)


@pytest.mark.parametrize("failures", [0, 1, 3])
def test_a_tear_down_that_dies_is_taken_up_again(
    failures: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WATCH_PAUSE", 0.01)
    book = Ledger(tmp_path / "state")
    record = Record(
        id="wn1~00000000~slot1~1~1",
        state=State.RUN,
        lane=3,
        port="lj3-none",
        namespaces=(),
        zone=1003,
        boot_id="another boot",
        slot="slot1",
        uid=1,
        starter_pid=1,
        starter_start=1,
    )
    book.save(record)
    pool, controller = FakePool(failures), FakeController()
    config: Any = SimpleNamespace(
        node="wn1", bridge=SimpleNamespace(name="br", rundir=tmp_path), guard=SimpleNamespace(uids=[])
    )

    no_switch = Conntrack(tmp_path, 10)

    async def main() -> None:
        agent = Attempts(
            config,
            ledger.boot_id(),
            book,
            pool,
            None,
            no_switch,
            None,
            controller,
            Standing(),
            Drain(tmp_path / "none"),
        )  # type: ignore[arg-type]
        await agent.restore()
        watching = asyncio.create_task(agent.watch())
        async with asyncio.timeout(5):
            while agent.known(record.id):
                await asyncio.sleep(0.01)
        watching.cancel()

    asyncio.run(main())
    assert pool.failures == 0
    assert (pool.claimed, pool.destroyed, pool.released) == ([3], ["lj3-none"], [3])
    assert controller.deleted == [record.id]
    assert book.load() == []
