"""Processes that outlive SIGKILL do not hold up a tear-down: they are named, and killed when they can be."""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovs_agent import netlink


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["/bin/sleep", "60"])
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("in_vain", [0, 5])
def test_who_outlives_the_rounds_is_killed_later(
    in_vain: int,
    sleeper: subprocess.Popen[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """`in_vain`: how many signals have no effect, as with a process that waits for a dead disk."""
    kill, calls = os.kill, 0

    def stubborn(pid: int, number: int) -> None:
        nonlocal calls
        calls += 1
        if calls > in_vain:
            kill(pid, number)
            sleeper.wait(5)

    (tmp_path / "lark-n-1").touch()
    monkeypatch.setattr(netlink, "NETNS_DIR", tmp_path)
    monkeypatch.setattr(netlink, "KILL_ROUNDS", 2)
    monkeypatch.setattr(netlink, "KILL_LATER_PAUSE", 0.01)
    inode = (tmp_path / "lark-n-1").stat().st_ino
    monkeypatch.setattr(netlink, "networks", lambda: [(sleeper.pid, inode)] if sleeper.poll() is None else [])
    monkeypatch.setattr(netlink.os, "kill", stubborn)
    assert netlink.kill_inside("lark-n-1") == [sleeper.pid]
    deadline = time.monotonic() + 5
    while sleeper.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sleeper.returncode == -9
    while in_vain and "are dead" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.01)
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert [str(sleeper.pid) in line for line in said] == ([True, False] if in_vain else [])


def test_who_is_of_a_uid(sleeper: subprocess.Popen[bytes]) -> None:
    assert netlink._has_uid(sleeper.pid, os.getuid())
    assert not netlink._has_uid(sleeper.pid, 4_000_000)
