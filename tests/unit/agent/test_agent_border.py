"""The border's daemon: what it makes of the state that an earlier one, perhaps of another version, left."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ovs_agent import qos, queues
from ovs_agent.border import Border, State
from ovs_agent.config import BorderConfig
from ovs_agent.errors import AgentError
from policies.wire import PortQueues, QueueClass, QueueWish

MBIT = 1_000_000
DIGEST = "d1" * 32


def border(tmp_path: Path, guarantee: int) -> Border:
    only = QueueClass(name="osg", dscp=8, rank=1, guarantee=guarantee, ceiling=50 * MBIT)
    wish = QueueWish(digest=DIGEST, ports={"wan0": PortQueues(rate=50 * MBIT, classes=[only])})
    (tmp_path / "border.json").write_text(State(wish=wish, owned={"wan0": {}}).model_dump_json())
    made = Border(
        BorderConfig.model_validate(
            {
                "bridge": "edge-br",
                "controller": {"urls": ["https://192.0.2.1:8443"], "token-file": "t"},
                "state-dir": str(tmp_path),
                "file": str(tmp_path / "border.yaml"),
            }
        )
    )
    made._load()
    return made


def test_a_kept_wish_is_followed_without_the_controller(tmp_path: Path) -> None:
    kept = border(tmp_path, 50 * MBIT)
    assert kept._state.wish is not None
    assert kept._seen == DIGEST


def test_a_kept_wish_that_this_version_refuses_is_asked_for_anew_and_its_ports_stay_ours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = border(tmp_path, 60 * MBIT)
    assert kept._state == State(wish=None, owned={"wan0": {}})
    assert kept._seen is None
    assert "waiting for the controller" in caplog.text


class _Switch:
    """A database of one bridge; None: it does not answer."""

    def __init__(self, name: str | None, fail_mode: str = "secure") -> None:
        self._name = name
        self._row = {"fail_mode": fail_mode, "datapath_type": "system", "other_config": {"disable-in-band": "true"}}

    async def bridge(self, name: str) -> dict[str, Any] | None:
        if self._name is None:
            raise AgentError("no answer")
        return self._row if name == self._name else None

    async def vsctl(self, words: list[str]) -> str:
        assert words == ["list-br"]
        return f"{self._name}\n"


def test_a_wrong_name_of_the_bridge_ends_it_with_the_names_there_are(tmp_path: Path) -> None:
    made = border(tmp_path, 50 * MBIT)
    made._db = _Switch("bordr-br")  # type: ignore[assignment]
    with pytest.raises(AgentError) as refused:
        asyncio.run(made._find_bridge())
    said = f"no such bridge (there are bordr-br); mend bridge in {tmp_path / 'border.yaml'}, or run lark-agent prepare"
    assert said in str(refused.value)
    for good in ("edge-br", None):  # the controls: the right one, and a switch that may come yet
        made._db = _Switch(good)  # type: ignore[assignment]
        asyncio.run(made._find_bridge())


def test_a_bridge_that_would_not_stay_closed_is_found(tmp_path: Path) -> None:
    made = border(tmp_path, 50 * MBIT)
    made._db = _Switch("edge-br", "standalone")  # type: ignore[assignment]
    (found,) = asyncio.run(made._look_at_bridge())
    assert (found.kind, "lacks fail_mode=secure" in found.text) == ("fail-mode-wrong", True)
    made._db = _Switch("edge-br")  # type: ignore[assignment]
    assert asyncio.run(made._look_at_bridge()) == []


def test_what_somebody_took_of_its_queues_is_counted_and_what_is_new_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[list[str]] = []

    class Database:
        async def shield(self, name: str) -> None:
            pass

    monkeypatch.setattr(queues, "apply", lambda port, plan: done.pop(0))
    monkeypatch.setattr(queues, "split_frames", lambda port: {})
    monkeypatch.setattr(queues, "no_link", lambda port: "")
    monkeypatch.setattr(queues, "speed", lambda port: None)
    monkeypatch.setattr(queues, "traffic", lambda port: {})
    made = border(tmp_path, 50 * MBIT)
    made._db = Database()  # type: ignore[assignment]
    wish = made._state.wish
    assert wish is not None

    def settle(mtu: int, *changes: str) -> dict[str, int]:
        done.append(list(changes))
        plan = qos.plan(wish, {"wan0": mtu}, None).ports["wan0"]
        asyncio.run(made._settle_port("wan0", plan, []))
        return dict(made._repaired)

    assert settle(1500, queues.MADE, "class osg") == {}, "made for the first time"
    assert settle(1500) == {}
    assert settle(9000, "class osg") == {}, "another plan"
    assert settle(9000, queues.MADE, "class osg") == {"wan0": 2}
    assert settle(9000, "class osg") == {"wan0": 3}


def test_without_a_controller_it_says_what_holds_and_what_to_mend(tmp_path: Path) -> None:
    made = border(tmp_path, 50 * MBIT)
    assert made._without_controller() == "the queues stay as they were wished last"
    made._state = State()
    assert f"mend controller.urls, its token or certificate, or bridge in {tmp_path}" in made._without_controller()
