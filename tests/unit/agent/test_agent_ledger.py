"""The ledger: complete or absent, and never guessed."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from ovs_agent import ledger as module
from ovs_agent.ledger import Ledger, LedgerError, Record
from ovs_agent.life import State
from policies.wire import AttemptSpec, NodeGrant, Phase, PortSpec

SPEC = AttemptSpec(
    node="wn1",
    port=PortSpec(bridge="br-lark", name="lj1", ofport=1001),
    mac="02:6c:0a:14:01:41",
    ipv4="10.20.1.65",
    zone=1001,
    phase=Phase.RUN,
    ad={"Owner": "alice", "N": 3, "L": [1, "x", 2.5, True]},
)


def record(name: str = "wn1~0~slot1_1~5~6", **changes: object) -> Record:
    values = {
        "id": name,
        "state": State.RUN,
        "lane": 1,
        "port": "lj1",
        "namespaces": ("lark-wn1-1",),
        "zone": 1001,
        "boot_id": "b",
        "slot": "slot1_1",
        "uid": 21000,
        "starter_pid": 5,
        "starter_start": 6,
        "spec": SPEC,
    }
    return Record.model_validate(values | changes)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    Ledger(tmp_path).save(record())
    assert Ledger(tmp_path).load() == [record()]


def test_the_last_word_counts_and_forgetting_is_idempotent(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.save(record())
    ledger.save(record(state=State.CLOSING))
    assert [r.state for r in ledger.load()] == [State.CLOSING]
    ledger.forget(record().id)
    ledger.forget(record().id)
    assert ledger.load() == []


def test_what_a_killed_writer_left_is_ignored_and_removed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.save(record())
    left = tmp_path / "attempts" / ".x.json.77.new"
    left.write_text('{"id": ')
    assert Ledger(tmp_path).load() == [record()]
    assert left.exists(), "whoever only looks must not disturb a writer"
    ledger.tidy()
    assert not left.exists()
    assert ledger.load() == [record()]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": "x"}', "null"])
def test_a_damaged_record_blocks_the_start(tmp_path: Path, text: str) -> None:
    ledger = Ledger(tmp_path)
    ledger.save(record())
    (tmp_path / "attempts" / "wn1~0~slot1_2~5~6.json").write_text(text)
    with pytest.raises(LedgerError, match="cannot be understood"):
        ledger.load()


def test_unknown_keys_are_errors(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.save(record())
    path = tmp_path / "attempts" / f"{record().id}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colour": "red"}))
    with pytest.raises(LedgerError):
        ledger.load()


@pytest.mark.parametrize("name", ["../x", ".hidden", "a/b", ""])
def test_an_id_is_no_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(LedgerError):
        Ledger(tmp_path).save(record(name))


def test_the_directory_is_closed_to_others(tmp_path: Path) -> None:
    Ledger(tmp_path / "state")
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0


def test_grant(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.load_grant() is None
    grant = NodeGrant(node="wn1", ipv4_range="10.0.0.0/24", ipv4_prefix_length=16, lease=60, attributes=["User"])
    ledger.save_grant(grant)
    assert ledger.load_grant() == grant


def test_a_field_that_was_added_later_is_not_written_unless_it_says_something(tmp_path: Path) -> None:
    """An agent that is put back to the version before can read what the newer one wrote."""

    class Newer(Record):
        added: int = 0

    ledger = Ledger(tmp_path)
    now = record(boot_id=module.boot_id())
    fields = now.model_dump()
    ledger.save(Newer(**fields))
    assert ledger.load() == [now]
    ledger.save(Newer(**fields, added=1))
    with pytest.raises(LedgerError, match="cannot be understood"):
        ledger.load()


def test_a_whole_attempt_waits_for_the_disk_when_it_begins_and_not_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = Ledger(tmp_path)
    synced: list[bool] = []
    fsync = os.fsync

    def counted(fd: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(fd).st_mode))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", counted)
    for state in (State.REGISTERING, State.STAGE_IN, State.RUN, State.STAGE_OUT, State.CLOSING):
        book.save(record(state=state))
    assert synced == [False, True], "the record, and the directory for its name"
    book.forget(record().id)
    assert len(synced) == 2
    book.save(record(state=State.REGISTERING))
    assert synced[2:] == [False, True], "the name is new again"
    synced.clear()
    Ledger(tmp_path).save(record(state=State.RUN))
    assert synced == [False, True], "another agent knows nothing for certain"


@pytest.mark.parametrize("lost", ["", "\0" * 100])
def test_a_machine_that_stops_may_lose_what_replaced_a_record_and_the_number_stays_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    book = Ledger(tmp_path)
    first = record(state=State.REGISTERING)
    for state in (State.REGISTERING, State.STAGE_IN, State.RUN):
        book.save(record(state=state))
    monkeypatch.setattr(module, "boot_id", lambda: "another boot")
    assert [r.state for r in Ledger(tmp_path).load()] == [State.RUN], "nothing was lost"
    (tmp_path / "attempts" / f"{first.id}.json").write_text(lost)
    assert Ledger(tmp_path).load() == [first]
    monkeypatch.setattr(module, "boot_id", lambda: first.boot_id)
    with pytest.raises(LedgerError, match="cannot be understood"):
        Ledger(tmp_path).load()  # the machine runs since: something else has damaged it


def test_the_first_of_a_record_goes_with_it_and_counts_for_nothing_without(tmp_path: Path) -> None:
    book = Ledger(tmp_path)
    for state in (State.REGISTERING, State.STAGE_IN):
        book.save(record(state=state))
        book.save(record("wn1~0~slot1_2~7~8", state=state, lane=2))
    assert len(list((tmp_path / "attempts").glob("*.first"))) == 2
    book.forget(record().id)
    left = tmp_path / "attempts" / "wn1~0~slot1_2~7~8.json"
    assert sorted((tmp_path / "attempts").iterdir()) == [left.with_suffix(".first"), left]
    left.unlink()  # as an agent that is killed in the middle of forgetting leaves it
    assert Ledger(tmp_path).load() == []
    book.tidy()
    assert not list((tmp_path / "attempts").iterdir())


def test_a_name_that_could_not_be_synced_is_synced_with_the_next_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = Ledger(tmp_path)
    sync = Ledger._sync
    synced: list[Path] = []

    def full(directory: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Ledger, "_sync", staticmethod(full))
    with pytest.raises(LedgerError, match="No space left"):
        book.save(record(state=State.REGISTERING))
    monkeypatch.setattr(Ledger, "_sync", staticmethod(lambda directory: (synced.append(directory), sync(directory))))
    book.save(record(state=State.CLOSING))
    assert synced == [tmp_path / "attempts"]
