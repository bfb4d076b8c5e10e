"""The border's daemon: what it makes of the state that an earlier one, perhaps of another version, left."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovs_agent.border import Border, State
from ovs_agent.config import BorderConfig
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
