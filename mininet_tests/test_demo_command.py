"""The demo as a command: it says what it would do, and leaves nothing when it is interrupted or killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mininet_tests.demo import LABEL, LIMIT, verdict
from mininet_tests.site.campus import MACHINES, Site, SiteError, sweep
from mininet_tests.site.lark import REPOSITORY
from mininet_tests.site.leaks import processes_in
from mininet_tests.site.namespaces import wait_until
from mininet_tests.story import CHAPTERS

DEMO = [sys.executable, "-P", "-m", "mininet_tests.demo"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}


def sites() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob(f"{LABEL}-*"))


@contextmanager
def started(until: str) -> Iterator[tuple[subprocess.Popen[str], Path, list[str]]]:
    """A demo that has printed a line with `until`: its process, its run directory, its namespaces."""
    before = sites()
    demo = subprocess.Popen(DEMO, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        assert demo.stdout is not None
        for line in demo.stdout:
            if until in line:
                break
        (root,) = sites() - before
        machines = json.loads((root / "site.json").read_text(encoding="utf-8"))["machines"]
        held = [os.readlink(f"/proc/{pid}/ns/net") for pid, _ in machines.values()]
        assert len(held) == len(MACHINES)
        assert processes_in(held)
        yield demo, root, held
    finally:
        if demo.poll() is None:
            demo.kill()
        demo.communicate(timeout=30)


def test_dry_run_tells_every_chapter_and_makes_nothing() -> None:
    before = sites()
    done = subprocess.run([*DEMO, "--dry-run"], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert all(chapter.title in done.stdout for chapter in CHAPTERS)
    assert sites() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("until", ["file server", "1. A job"], ids=["building", "telling"])
def test_interrupted_it_leaves_nothing(number: signal.Signals, until: str) -> None:
    with started(until) as (demo, root, held):
        demo.send_signal(number)
        demo.communicate(timeout=60)
        assert demo.returncode == 130
        assert not root.exists()
        wait_until("the machines' processes end", lambda: not processes_in(held), 10)


@pytest.mark.parametrize("until", ["file server", "1. A job"], ids=["building", "telling"])
def test_interrupted_again_and_again_it_leaves_nothing(until: str) -> None:
    with started(until) as (demo, root, held):
        sent = 0
        while demo.poll() is None and sent < 300:
            demo.send_signal((signal.SIGINT, signal.SIGTERM)[sent % 2])
            sent += 1
            time.sleep(0.05)
        demo.communicate(timeout=60)
        assert sent >= 2
        assert demo.returncode == 130
        assert not root.exists()
        wait_until("the machines' processes end", lambda: not processes_in(held), 10)


def test_slowness_is_said_and_is_no_failure() -> None:
    assert verdict([], LIMIT) == "The story is proven"
    assert verdict([], LIMIT + 1) == "The story is proven, but slower than three minutes"
    assert verdict(["granted: not shown"], LIMIT + 1) == "NOT PROVEN (1 problem)"


def test_a_kept_site_is_used_by_the_lines_it_prints_and_removed_by_the_last() -> None:
    argv = [*DEMO, "--chapter", "granted", "--keep"]
    done = subprocess.run(argv, capture_output=True, text=True, env=ENVIRONMENT, check=True, timeout=120)
    lines = [line.strip() for line in done.stdout.splitlines()]
    root = Path(next(line for line in lines if line.startswith("Files and logs: ")).removeprefix("Files and logs: "))
    try:
        assert "End it with: make demo ARGS=--clean" in lines

        def pasted(heading: str, given: str | None = None) -> str:
            command = lines[next(n for n, line in enumerate(lines) if line.startswith(heading)) + 1]
            return subprocess.run(
                ["/bin/sh", "-c", command], input=given, capture_output=True, text=True, timeout=30, check=True
            ).stdout

        assert "submitted to cluster 2" in pasted("Submit a job as")
        wait_until("the job is under control", lambda: re.search(r"(?m)^2\.0 ", pasted("Ask the controller")), 30, 0.5)
        said = pasted("Be lark-alice", "id -un; condor_q -af ClusterId Owner\n")
        assert said.split() == ["lark-alice", "2", "lark-alice"]
    finally:
        cleaned = subprocess.run([*DEMO, "--clean"], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert f"removed {root}" in cleaned.stdout
    assert not root.exists()


def test_killed_it_leaves_no_process_and_the_next_run_removes_its_files() -> None:
    with started("file server") as (demo, root, held):
        demo.kill()
        demo.communicate(timeout=30)
        wait_until("the machines' processes end", lambda: not processes_in(held), 10)
        assert root.exists()
        assert str(root) in sweep(LABEL)
        assert not root.exists()


def test_what_a_failed_site_kept_is_removed_on_demand_only() -> None:
    site = Site(label=LABEL, policy="mode: nonsense")
    with pytest.raises(SiteError, match=r"policy.yaml:1"):
        site.start()
    assert site.root.exists()
    sweep(LABEL)
    assert site.root.exists()
    # The owner of a kept directory is this very process: removal waits for its end, as for any site in use.
    done = subprocess.run([*DEMO, "--clean"], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert str(site.root) not in done.stdout
    record = site.root / "site.json"
    content = json.loads(record.read_text(encoding="utf-8"))
    record.write_text(json.dumps(content | {"owner": [2**22 - 1, 1]}), encoding="utf-8")
    done = subprocess.run([*DEMO, "--clean"], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert str(site.root) in done.stdout
    assert not site.root.exists()
