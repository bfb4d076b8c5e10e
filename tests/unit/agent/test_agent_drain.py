"""The order to drain a node, as a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from ovs_agent import cli, ledger
from ovs_agent.drain import FILE, Drain, Order
from ovs_agent.errors import AgentError
from ovs_agent.ledger import Ledger, Record
from ovs_agent.life import State


def test_an_order_is_there_until_it_is_taken_back(tmp_path: Path) -> None:
    drain = Drain(tmp_path / "state")
    assert drain.order() is None
    assert not drain.take_back()
    drain.give(Order(since="today", reason="new disk"))
    order = Drain(tmp_path / "state").order()
    assert order is not None
    assert order.text() == "this node is being drained since today: new disk"
    assert drain.take_back()
    assert drain.order() is None
    assert not list((tmp_path / "state").glob(".*"))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"since": 5}', '{"since": "x", "until": "y"}', "\xff"])
def test_what_cannot_be_understood_drains(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_bytes(text.encode("latin-1"))
    order = Drain(tmp_path).order()
    assert order is not None
    assert "--undo" in order.text()
    assert Drain(tmp_path).take_back()
    assert Drain(tmp_path).order() is None


def test_a_disk_that_does_not_take_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where a directory should be")
    with pytest.raises(AgentError, match="cannot be written"):
        Drain(tmp_path / "state").give(Order(since="today"))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cli, "_need_root", lambda: None)
    monkeypatch.setattr(cli, "DRAIN_PAUSE", 0.01)
    token = tmp_path / "token"
    token.touch(mode=0o600)
    file = tmp_path / "agent.yaml"
    file.write_text(
        "node: wn1\nstate-dir: state\nsocket: none.sock\nbridge: {name: br}\n"
        'controller: {urls: ["http://127.0.0.1:1"], token-file: token}\n'
    )
    return file


def record(state: State) -> Record:
    return Record(
        id="wn1~00000000~slot1~1~1", state=state, lane=3, port="lj3", namespaces=(), zone=1003, boot_id="x",
        slot="slot1", uid=1, starter_pid=1, starter_start=1,
    )  # fmt: skip


def test_wait_shows_who_is_left_and_ends_when_nobody_is(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    Ledger(state).save(record(State.RUN))
    looks = 0
    real = Ledger.load

    def load(self: ledger.Ledger) -> list[Record]:
        nonlocal looks
        looks += 1
        if looks == 3:
            self.save(record(State.CLOSING))
        if looks == 5:
            self.forget("wn1~00000000~slot1~1~1")
        return real(self)

    monkeypatch.setattr(Ledger, "load", load)
    said = CliRunner().invoke(cli.main, ["drain", "--config", str(config), "--wait", "--reason", "new disk"])
    assert said.exit_code == 0, said.output
    assert said.output.splitlines() == [
        "wn1 takes no new jobs",
        "attempts left: 1 (the agent does not run)",
        "  job ?  run  wn1~00000000~slot1~1~1",
        "attempts left: 1 (the agent does not run)",
        "  job ?  closing  wn1~00000000~slot1~1~1",
        "wn1 is empty",
    ]
    assert looks == 6, "empty is believed when it was seen twice"
    order = Drain(state).order()
    assert order is not None
    assert order.reason == "new disk"


def test_undo_takes_it_back_and_a_second_order_keeps_the_first_ones_time(tmp_path: Path, config: Path) -> None:
    runner, drain = CliRunner(), Drain(tmp_path / "state")
    drain.give(Order(since="yesterday", reason="new disk"))
    assert runner.invoke(cli.main, ["drain", "--config", str(config)]).exit_code == 0
    assert drain.order() == Order(since="yesterday", reason="new disk")
    said = runner.invoke(cli.main, ["drain", "--config", str(config), "--undo"])
    assert (said.exit_code, said.output, drain.order()) == (0, "wn1 takes jobs again\n", None)
    assert "was not drained" in runner.invoke(cli.main, ["drain", "--config", str(config), "--undo"]).output
    assert runner.invoke(cli.main, ["drain", "--config", str(config), "--undo", "--wait"]).exit_code == 2


def test_a_wait_ends_when_the_drain_is_undone_meanwhile(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Ledger(tmp_path / "state").save(record(State.RUN))
    monkeypatch.setattr(cli.time, "sleep", lambda _: Drain(tmp_path / "state").take_back())
    said = CliRunner().invoke(cli.main, ["drain", "--config", str(config), "--wait"])
    assert said.exit_code == 1
    assert "undone" in said.output
