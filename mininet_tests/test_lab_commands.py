"""The lab's commands as people type them: `lark-lab`, and Mininet's `mn` with the campus; and what is left of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest

from mininet_tests.bench.border import write
from mininet_tests.bench.border_plot import HEIGHT, WIDTH, ZOOM, Phase, Sample, Story
from mininet_tests.site.campus import sweep
from mininet_tests.site.lark import ENVIRONMENT, REPOSITORY, python_command
from mininet_tests.site.leaks import Snapshot, differences
from mininet_tests.site.namespaces import wait_until
from mininet_tests.test_lab_example import POLICY
from mininet_tests.topology import layout
from mininet_tests.topology.lab import LABEL
from policies.language import check_together, load_policy, load_site
from policies.model import Site
from tests.effort import FULL

pytestmark = pytest.mark.timeout(240)
JOBS = """
jobs:
  granted: {node: wn1, ad: {LarkGroup: biology}}
  plain: {node: wn2}
"""


def lab(*words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ, COLUMNS="200", **ENVIRONMENT)
    argv = python_command("mininet_tests.topology.cli", *words)
    return subprocess.run(argv, input=given, env=environment, capture_output=True, text=True, timeout=200, check=False)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)
    return file


def leaked(before: Snapshot) -> list[str]:
    """What the machine has more than before. Directories are looked for by owner: other tests make some, too."""
    found = [str(one) for one in differences(before, Snapshot.take()) if one.leak]
    return [one for one in found if not one.startswith("file in /tmp")]


def directories(owner: int) -> list[str]:
    """Directories of campuses that a process made."""
    found = []
    for record in Path(tempfile.gettempdir()).glob(f"{LABEL}-*/site.json"):
        with contextlib.suppress(OSError):
            if json.loads(record.read_text())["owner"][0] == owner:
                found.append(str(record.parent))
    return found


def directories_of_mn() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("lark-mn-*"))


def test_reach_shows_a_matrix_as_the_policy_means_and_leaves_the_machine_as_it_was(
    policy: Path, tmp_path: Path
) -> None:
    jobs = tmp_path / "jobs.yaml"
    jobs.write_text(JOBS)
    before = Snapshot.take()
    said = lab("reach", "--policy", str(policy), "--jobs", str(jobs), "--port", "tcp/1094", "--port", "icmp")
    assert said.returncode == 0, said.stdout + said.stderr
    assert ", 0 other than the policy means" in said.stdout
    assert leaked(before) == []


def size_of(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def test_the_picture_of_the_border_is_a_png_too(tmp_path: Path) -> None:
    phase = Phase("osg alone", 0, 2, {"osg": 5e7}, {"osg": 5e7}, 1.0)
    story = Story(5e7, {"osg": 5e6}, [Sample(0.5, {"osg": 5e7}, 1.0), Sample(1.5, {"osg": 5e7}, 1.0)], [phase])
    write(story, {"png": tmp_path / "border.png"})
    assert size_of((tmp_path / "border.png").read_bytes()) == (WIDTH * ZOOM, HEIGHT * ZOOM)


def test_the_border_command_says_what_it_does_and_what_is_wrong_before_it_builds_anything(tmp_path: Path) -> None:
    said = lab("border", "--help")
    assert said.returncode == 0
    assert "border.png" in said.stdout
    short = lab("border", "--seconds", "1", "--out", str(tmp_path / "out"))
    assert short.returncode == 2
    assert "at least 5" in short.stderr
    assert not (tmp_path / "out").exists()


if FULL:

    def test_the_border_command_draws_what_three_classes_get(tmp_path: Path) -> None:
        said = lab("border", "--seconds", "6", "--out", str(tmp_path))
        assert said.returncode == 0, said.stdout + said.stderr
        assert said.stdout.split() == [str(tmp_path / f"border.{kind}") for kind in ("png", "svg", "html", "json")]
        assert size_of((tmp_path / "border.png").read_bytes()) == (WIDTH * ZOOM, HEIGHT * ZOOM)
        told = json.loads((tmp_path / "border.json").read_text())
        assert len(told["phases"]) == 6
        assert told["faults"] == []


def test_a_switch_that_does_other_than_the_policy_says_is_found_out(policy: Path, tmp_path: Path) -> None:
    """The control of the matrix: a controller that means something else than the policy that is compared with."""
    site = tmp_path / "site.yaml"
    text = lab("site", "--policy", str(policy)).stdout
    check_together(load_policy(policy), _loaded(site, text))
    other = tmp_path / "other.yaml"
    other.write_text(POLICY.replace("biology, to", "chemists, to").replace("groups: {", "groups: {chemists: 'false', "))
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from policies.language import load_policy\n"
        'job = campus.start_job("wn1", {"LarkGroup": "biology"}, "granted")\n'
        'assert campus.reach(job, "archive", "tcp/1094")\n'
        f"campus._policy = load_policy(Path({str(other)!r}))\n"
        'differences = campus.ask(job, "archive", "tcp/1094").differences\n'
        "assert len(differences) == 1, differences\n"
        "print('told:', differences[0])\n"
    )
    said = lab("campus", "--policy", str(policy), "--site", str(site), str(script))
    assert said.returncode == 0, said.stdout + said.stderr
    assert "told: granted to fs (10.20.0.5) tcp/1094 arrived and was answered; expected: drop" in said.stdout


def test_the_prompt_starts_and_ends_jobs_and_survives_mistakes(policy: Path) -> None:
    typed = (
        "job a wn1 LarkGroup=biology\njobs\nreach a archive tcp/1094\nreach a nobody tcp/1\njob b wn9\nend a\nexit\n"
    )
    said = lab("campus", "--policy", str(policy), given=typed)
    assert said.returncode == 0, said.stderr
    assert "10.20.0.5: answers (allow at wn1-br: granted service archive" in said.stdout
    assert "'nobody' is no address, machine, job or service" in said.stdout
    assert "no worker node 'wn9'; there are wn1, wn2" in said.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_campus_that_is_interrupted_or_killed(number: signal.Signals, policy: Path) -> None:
    before = Snapshot.take()
    argv = python_command("mininet_tests.topology.cli", "campus", "--policy", str(policy))
    environment = dict(os.environ, **ENVIRONMENT)
    lines: list[str] = []
    with subprocess.Popen(
        argv, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            lines.append(line)
            if "lark-lab>" in line or "osg" in line:
                break
        assert any("osg" in line for line in lines), "it came up"
        assert len(directories(running.pid)) == 1
        running.send_signal(number)
        running.wait(30)

    wait_until("nothing is left on the machine", lambda: not leaked(before), 15)
    if number is signal.SIGKILL:
        # Its directory is all that is left, and the next campus removes that.
        assert len(directories(running.pid)) == 1
        sweep(LABEL)
    assert directories(running.pid) == []


def test_mininets_own_command_brings_the_campus_up_and_has_its_jobs(policy: Path) -> None:
    before, there = Snapshot.take(), directories_of_mn()
    typed = (
        "job a wn1 LarkGroup=biology\nreach a archive tcp/1094\nmatrix tcp/1094\ncern ping -c1 -W2 10.20.0.9\nexit\n"
    )
    custom = REPOSITORY / "mininet_tests" / "topology" / "campus.py"
    environment = dict(os.environ, LARK_PYTHON=python_command("x")[0], COLUMNS="200")
    environment.pop("PYTHONPATH", None)
    said = subprocess.run(
        ["mn", "--custom", str(custom), "--topo", f"campus,policy={policy}"],
        input=typed, env=environment, capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    told = said.stdout + said.stderr
    assert said.returncode == 0, told
    assert "10.20.0.5: answers (allow at wn1-br" in told
    assert ", 0 other than the policy means" in told
    assert "1 received" in told
    assert leaked(before) == []
    assert directories_of_mn() == there


def test_a_file_of_jobs_with_a_mistake_is_one_sentence(policy: Path, tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.yaml"
    jobs.write_text("jobs: {a: {node: wn1, add: {}}}\n")
    said = lab("reach", "--policy", str(policy), "--jobs", str(jobs))
    assert said.returncode == 1
    assert "jobs.a.add: Extra inputs are not permitted" in said.stderr


def _loaded(file: Path, text: str) -> Site:
    file.write_text(text)
    found = load_site(file)
    assert set(found.nodes) == set(layout.WORKERS)
    return found
