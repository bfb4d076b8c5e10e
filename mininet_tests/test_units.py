"""The systemd units, by systemd's own tools, which need no booted systemd: what they say is understood, and how much
each takes away from its daemon (`systemd-analyze security`, 0 to 10, less is better) does not become less.

That the daemons can live with what is taken away, systemd-analyze cannot say: docs/operations.md, "As services".
"""

from __future__ import annotations

import re
import shlex
import subprocess
import time
from pathlib import Path

import pytest

from mininet_tests.site.lark import REPOSITORY

EXPOSURE = {"lark-agent": 7.3, "lark-bridge@": 4.0, "lark-border": 4.9, "lark-controller": 3.1}
"""By systemd 252. The agent's: a mount namespace of its own, which most of the rest would need, cannot be."""


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, timeout=120, check=False)


def placed(name: str, place: Path, change: tuple[str, str] = ("", "")) -> Path:
    """A unit as somebody would install it, with a program that is there."""
    text = (REPOSITORY / "systemd" / f"{name}.service").read_text()
    assert change[0] in text
    instance = place / f"{name.replace('@', '@gate')}.service"
    instance.write_text(re.sub(r"/opt/lark/bin/[a-z-]+", "/bin/true", text).replace(*change))
    return instance


def test_there_is_a_figure_for_every_unit() -> None:
    assert {path.stem for path in (REPOSITORY / "systemd").glob("*.service")} == set(EXPOSURE)


@pytest.mark.parametrize("name", EXPOSURE)
def test_systemd_understands_every_line(name: str, tmp_path: Path) -> None:
    said = analyze("verify", "--man=no", str(placed(name, tmp_path)))
    assert (said.returncode, said.stdout + said.stderr) == (0, "")
    wrong = analyze("verify", "--man=no", str(placed(name, tmp_path, ("NoNewPrivileges=", "NoNewPrivilege="))))
    assert "'NoNewPrivilege'" in wrong.stderr, "the control"


@pytest.mark.parametrize("name", EXPOSURE)
def test_no_daemon_may_do_more_than_it_may_now(name: str, tmp_path: Path) -> None:
    most = f"--threshold={EXPOSURE[name] * 10:.0f}"
    said = analyze("security", "--offline=yes", "--no-pager", most, str(placed(name, tmp_path)))
    assert said.returncode == 0, said.stdout[-300:]
    more = placed(name, tmp_path, ("NoNewPrivileges=yes", "NoNewPrivileges=no"))
    assert analyze("security", "--offline=yes", "--no-pager", most, str(more)).returncode != 0, "the control"


@pytest.mark.parametrize("name", EXPOSURE)
def test_a_unit_that_waits_for_open_vswitch_does_so_under_both_distributions_names(name: str) -> None:
    text = (REPOSITORY / "systemd" / f"{name}.service").read_text()
    after = [word for line in re.findall(r"^After=(.*)$", text, re.MULTILINE) for word in line.split()]
    assert {"openvswitch-switch.service", "openvswitch.service"} <= set(after)


@pytest.mark.parametrize("name", EXPOSURE)
def test_who_was_killed_is_started_at_once_and_who_ends_by_itself_not_again_and_again_in_a_second(name: str) -> None:
    text = (REPOSITORY / "systemd" / f"{name}.service").read_text()
    assert {"Restart=always", "RestartSec=200ms", "StartLimitIntervalSec=0"} <= set(text.splitlines())
    (line,) = re.findall(r"^ExecStopPost=-(.*)$", text, re.MULTILINE)

    def takes(result: str) -> float:
        """As systemd runs it: two dollars are one, and it tells how the daemon has ended."""
        begun = time.monotonic()
        done = subprocess.run(
            shlex.split(line.replace("$$", "$")), env={"SERVICE_RESULT": result}, timeout=60, check=False
        )
        assert done.returncode == 0
        return time.monotonic() - begun

    assert min(takes(result) for result in ("signal", "core-dump", "oom-kill", "success") for _ in range(2)) < 1
    assert takes("exit-code") > 1.9
