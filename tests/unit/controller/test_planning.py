"""`lark-controller plan`: what another policy would do to the attempts that are stored, and nothing is written."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from policies.model import Policy
from ryu_apps.config import load_config
from ryu_apps.planning import planned
from ryu_apps.store.opening import OpenStore
from ryu_apps.store.store import PutAttempt, PutNode
from tests.cases import site_of
from tests.unit.controller.rig import POLICY, SITE, Rig, aid, spec
from tests.unit.controller.test_config import command, home  # noqa: F401  # a fixture

OTHER = POLICY.replace("for: physics, to: files", "for: matlab, to: files, trust-user: true")


@pytest.fixture
def jobs(rig: Rig) -> Rig:
    """2 and 3 have a grant for `files`, 4 has none."""
    rig.controller.register(aid(2), spec(2))
    rig.controller.register(aid(3), spec(3))
    rig.controller.register(aid(4), spec(4, LarkGroup="other"))
    return rig


def test_a_plan_tells_who_loses_what_and_who_would_be_torn_down(jobs: Rig, load: Callable[[str], Policy]) -> None:
    stored = jobs.store.load()
    old, new = load(POLICY), load(OTHER)
    lines = list(planned(stored, old, new, jobs.site).lines())
    assert lines == [
        "- 2 jobs (such as 2.0 on wn1, 3.0 on wn1): loses files",
        "2 jobs change, 1 do not",
    ]
    assert list(planned(stored, old, old, jobs.site).lines()) == ["0 jobs change, 3 do not"]
    assert planned(stored, old, new, jobs.site).decided_otherwise == 0
    assert planned(stored, new, old, jobs.site).decided_otherwise == 3

    # One that has ended is no job; of one that the site has no place for any more nothing else is told.
    gone = replace(stored.attempts[0], leaving=("br1",))
    smaller = site_of(SITE.replace("10.20.1.0/24", "10.20.1.0/30"))
    found = planned(replace(stored, attempts=(gone, *stored.attempts[1:])), old, new, smaller)
    assert list(found.lines()) == [
        "! 3.0 on wn1: would be torn down at the next start: 10.20.1.3 is not a usable host address of wn1's range "
        "10.20.1.0/30",
        "! 4.0 on wn1: would be torn down at the next start: 10.20.1.4 is not a usable host address of wn1's range "
        "10.20.1.0/30",
        "0 jobs change, 0 do not",
    ]


def test_a_plan_names_whom_the_policy_would_hold_and_shows_no_control_characters(
    jobs: Rig, load: Callable[[str], Policy]
) -> None:
    odd = load(POLICY.replace("""LarkGroup =?= "physics\"""", "ClusterId > 5"))
    jobs.controller.register(aid(7), spec(7, ClusterId="x"))
    text = "\n".join(planned(jobs.store.load(), load(POLICY), odd, jobs.site).lines())
    assert "would be held, and if running, sealed" in text
    row = jobs.store.load().attempts[0]
    named = replace(row, spec=row.spec.model_copy(update={"job": "2.0\x1b[2J"}))
    told = planned(replace(jobs.store.load(), attempts=(named,)), load(POLICY), load(OTHER), jobs.site)
    assert "\x1b" not in "\n".join(told.lines())
    assert "2.0?[2J" in "\n".join(told.lines())


def test_the_command_reads_the_running_store_and_writes_nothing(jobs: Rig, home: Path) -> None:  # noqa: F811
    argv = ("plan", "--config", str(home / "controller.yaml"), "--policy")
    (home / "new.yaml").write_text(OTHER)
    (home / "bad.yaml").write_text(OTHER.replace("to: files,", "to: nothing,"))
    stopped = command(*argv, str(home / "new.yaml"))
    assert (stopped.returncode, stopped.stdout) == (1, "")
    assert "does lark-controller run here?" in stopped.stderr

    opened = OpenStore(load_config(home / "controller.yaml").store)
    store = opened.open()
    try:
        rows = jobs.store.load()
        store.write([*map(PutAttempt, rows.attempts), *map(PutNode, rows.nodes)]).wait(time.monotonic() + 10)
        before = store.load()
        done = command(*argv, str(home / "new.yaml"))
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[-2:] == [
            "- 2 jobs (such as 2.0 on wn1, 3.0 on wn1): loses files",
            "2 jobs change, 1 do not",
        ]
        told = json.loads(command(*argv, str(home / "new.yaml"), "--json").stdout)
        assert (told["changed"], told["untouched"]) == (2, 1)
        assert [sorted(one["attempts"]) for one in told["changes"]] == [[aid(2), aid(3)]]
        assert told["changes"][0]["closes"] == ["loses files"]

        (home / "site2.yaml").write_text(SITE.replace("10.20.1.0/24", "10.20.1.0/30"))
        narrow = command(*argv, str(home / "new.yaml"), "--site", str(home / "site2.yaml"))
        assert narrow.stdout.count("would be torn down at the next start") == 2
        bad = command(*argv, str(home / "bad.yaml"))
        assert (bad.returncode, bad.stdout) == (2, "")
        assert "bad.yaml:" in bad.stderr

        # policy.yaml was edited where it is: what is in force cannot be told from it.
        (home / "policy.yaml").write_text(OTHER)
        edited = command(*argv, str(home / "new.yaml"))
        assert edited.returncode == 0
        assert "3 attempts were decided by another policy" in edited.stderr
        assert store.load() == before
    finally:
        opened.close()
