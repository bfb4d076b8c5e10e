"""What speaks against giving jobs networks: attributes that are not sent, a controller that refuses the node."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from ovs_agent import cli
from ovs_agent.controller_client import Unavailable
from ovs_agent.main import Agent
from ovs_agent.ovsdb import Ovsdb, SwitchError
from ovs_agent.server import MAX_REPLY, printable
from ovs_agent.standing import Standing
from policies.wire import Heartbeat, HeartbeatAnswer


def test_nothing_is_well_before_it_was_looked_at() -> None:
    standing = Standing()
    assert "cannot be read" in standing.trouble("")
    standing.attributes_are([])
    assert standing.trouble("") == ""


def test_attributes_that_are_not_sent_are_named_and_letter_case_does_not_matter() -> None:
    standing = Standing(wanted=("larknetwork", "LarkSlice", "user"))
    standing.attributes_are(["LarkNetwork", "User"])
    assert standing.missing() == ["LarkSlice"]
    assert "lacks: LarkSlice;" in standing.blind()
    assert standing.trouble("") == standing.trouble("no lane") == standing.blind()
    standing.attributes_are(["LarkNetwork", "User", "LARKSLICE"])
    assert standing.blind() == standing.trouble("") == ""


def test_a_list_that_became_unreadable_is_not_believed_any_more() -> None:
    standing = Standing()
    standing.attributes_are(["LarkGroup"])
    standing.attributes_unknown("condor.config /x: No such file or directory")
    assert "condor.config /x" in standing.trouble("")


def test_many_names_still_leave_room_for_how_to_mend_it() -> None:
    standing = Standing(wanted=tuple(f"Attribute{n:04d}" for n in range(200)))
    standing.attributes_are([])
    reply = printable(f"hold 104 {standing.blind()}").decode()
    assert len(reply) < MAX_REPLY
    assert reply.endswith("(SIGHUP)")


def test_why_the_registration_failed() -> None:
    standing = Standing()
    standing.attributes_are([])
    standing.registration = "controller http://c cannot be reached: refused"
    assert standing.trouble("") == "", "running networks are ready, and the controller may be back any moment"
    assert standing.trouble("no addresses").endswith(standing.registration)
    standing.registration, standing.refused = "this token is for node wn2 (403 forbidden)", True
    assert "403 forbidden" in standing.trouble("")
    assert "403 forbidden" in standing.trouble("no addresses")


@pytest.mark.parametrize("text", ["tcp:192.0.2.1:6653", "ssl:192.0.2.1:1", "tcp:[2001:db8::1]:6653"])
def test_controllers_that_the_switch_can_connect_to(text: str) -> None:
    assert cli._is_controller(text)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "192.0.2.1",
            "tcp:192.0.2.1",
            "192.0.2.1:6653",
            "udp:192.0.2.1:6653",
            "tcp:192.0.2.1:0",
            "tcp:192.0.2.1:65536",
        ),
        *(
            "tcp:192.0.2:6653",
            "tcp:2001:db8::1:6653",
            "tcp:[192.0.2.1]:6653",
            "tcp:name:6653",
            "tcp:192.0.2.1:6653 ",
            "",
        ),
    ],
)
def test_another_controller_is_refused_before_the_bridge_is_touched(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_need_root", lambda: None)
    calls: list[tuple[str, ...]] = []

    async def prepare(_db: object, _rundir: Path, wish: cli.BridgeWish, *, dry: bool) -> list[str]:
        assert not dry
        calls.append(wish.controllers)
        return []

    async def lacking(_db: object, _wish: cli.BridgeWish) -> list[str]:
        return []

    monkeypatch.setattr(cli.bridge, "prepare", prepare)
    monkeypatch.setattr(cli.bridge, "lacking", lacking)
    words = ["prepare-bridge", "--role", "gate", "--bridge", "br-x", "--controller"]
    said = CliRunner().invoke(cli.main, [*words, text])
    assert said.exit_code == 2
    assert "(tcp|ssl):ADDRESS:PORT" in said.output
    assert calls == []
    assert CliRunner().invoke(cli.main, [*words, "tcp:192.0.2.1:6653"]).exit_code == 0, "positive control"
    assert calls == [("tcp:192.0.2.1:6653",)]


def test_only_a_failed_connection_asks_for_the_database_server(tmp_path: Path) -> None:
    db = Ovsdb(f"unix:{tmp_path}/none.sock", tmp_path, timeout=2)
    with pytest.raises(SwitchError, match=r"database connection failed.*is ovsdb-server running"):
        asyncio.run(db.vsctl(["show"]))
    with pytest.raises(SwitchError, match="unknown command") as other:
        asyncio.run(db.vsctl(["no-such-command"]))
    assert "running" not in str(other.value)


class _Answers:
    """A controller that answers heartbeats, until it does not."""

    url = "http://test"

    def __init__(self) -> None:
        self.policy: str | None = "one"

    async def heartbeat(self, beat: Heartbeat) -> HeartbeatAnswer:
        if self.policy is None:
            raise Unavailable("it is away")
        return HeartbeatAnswer(lease=3, policy=self.policy, drop=[], gone=[])


def test_what_was_decided_counts_while_heartbeats_are_answered_and_name_the_same_policy() -> None:
    async def main() -> None:
        agent = Agent.__new__(Agent)
        parts: dict[str, Any] = {
            "_lease": 3,
            "_boot_id": "3f2a9c1e-0000-4000-8000-000000000001",
            "_standing": Standing(),
            "_controller": _Answers(),
            "_attempts": SimpleNamespace(ids=list),
            "_config": SimpleNamespace(node="wn1"),
        }
        for name, part in parts.items():
            setattr(agent, name, part)

        async def register() -> None:
            """It is registered all the time."""

        agent._register_node = register  # type: ignore[method-assign]
        standing, controller = parts["_standing"], parts["_controller"]
        running = asyncio.create_task(agent._keep_registered())

        async def until(so: Callable[[], bool]) -> None:
            async with asyncio.timeout(20):
                while not so():
                    await asyncio.sleep(0.02)

        await until(lambda: standing.still("one", time.monotonic()))
        assert not standing.still("another", time.monotonic())
        assert not standing.still("one", time.monotonic() + 2.1), "two intervals without an answer"
        controller.policy = "another"
        await until(lambda: standing.still("another", time.monotonic()))
        assert not standing.still("one", time.monotonic())
        controller.policy = None
        await until(lambda: standing.policy == "")
        assert not standing.still("another", time.monotonic())
        running.cancel()

    asyncio.run(main())
