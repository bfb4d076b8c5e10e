"""What HTCondor takes for the job: the wrapper that waits for it. Against a fake agent, with processes and signals.

Whatever a job does with exit codes, signals, its group and its descriptors, HTCondor must see through the wrapper what
it saw when it was the job's own parent. Each test has the job beside it, or is its own control.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mininet_tests.helper_agent import FakeAgent
from mininet_tests.site.namespaces import wait_until
from mininet_tests.test_native_helper import NOBODY, Place, installed, place

__all__ = ["installed", "place"]

CATCHABLE = [s for s in signal.Signals if s not in (signal.SIGKILL, signal.SIGSTOP)]
DEADLY = [
    s
    for s in CATCHABLE
    if s not in (signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH)
    and s not in (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
]
EXITED = "LARK1 exited"


@pytest.fixture
def agent(place: Place) -> Iterator[FakeAgent]:
    with FakeAgent(place.socket, pass_fds=[place.namespace]) as agent:
        yield agent


def launch(
    place: Place, *argv: str, session: bool = True, before: Callable[[], None] | None = None, **more: object
) -> subprocess.Popen[str]:
    """The wrapper as the starter starts it: leader of a session of its own."""
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        [str(place.libexec / "lark-job-wrapper"), *argv],
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more},
        text=True,
        user=NOBODY.pw_uid,
        group=NOBODY.pw_gid,
        extra_groups=[],
        cwd=place.scratch,
        env={"PATH": os.environ["PATH"], "_CONDOR_WRAPPER_ERROR_FILE": str(place.error_file)},
        start_new_session=session,
        preexec_fn=before,
        restore_signals=False,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    print(err)
    return process.returncode, out


def child_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    wait_until("the wrapper has its job", lambda: bool(children.read_text().split()), 10, 0.01)
    return int(children.read_text().split()[0])


def started(process: subprocess.Popen[str]) -> int:
    """The pid of a job that has said `ready`."""
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return child_of(process.pid)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("code", [0, 1, 2, 37, 125, 126, 127, 128, 137, 255])
def test_the_exit_code_is_the_jobs(place: Place, agent: FakeAgent, code: int) -> None:
    assert ended(launch(place, "/bin/sh", "-c", f"exit {code}")) == (code, "")
    assert agent.requests == ["LARK1 enter job", EXITED]


@pytest.mark.parametrize("number", [*DEADLY, signal.SIGKILL], ids=lambda s: s.name)
def test_a_job_that_dies_of_a_signal_makes_the_wrapper_die_of_it(
    place: Place, agent: FakeAgent, number: signal.Signals
) -> None:
    code = f"import os; os.kill(os.getpid(), {int(number)})"
    reset = f"import signal; signal.signal({int(number)}, signal.SIG_DFL); " if number != signal.SIGKILL else ""
    assert ended(launch(place, "/usr/bin/python3", "-c", reset + code))[0] == -number
    assert agent.requests == ["LARK1 enter job", EXITED]


def test_only_the_job_leaves_a_core(place: Place, agent: FakeAgent) -> None:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    script = "ulimit -c unlimited; kill -SEGV $$"
    assert ended(launch(place, "/bin/sh", "-c", script))[0] == -signal.SIGSEGV
    cores = list(place.scratch.glob("core*"))
    assert len(cores) <= 1
    if pattern == "core":  # elsewhere cores go elsewhere; the status above is all that is to be seen
        assert len(cores) == 1


@pytest.mark.parametrize("number", [s for s in CATCHABLE if s is not signal.SIGCHLD], ids=lambda s: s.name)
def test_signals_for_the_wrapper_reach_the_job(place: Place, agent: FakeAgent, number: signal.Signals) -> None:
    code = (
        "import os, signal, sys, time\n"
        f"signal.signal({int(number)}, lambda n, _: (os.write(1, b'got %d\\n' % n), os._exit(3)))\n"
        "print('ready', flush=True)\n"
        "time.sleep(20)\n"
    )
    process = launch(place, "/usr/bin/python3", "-c", code)
    started(process)
    process.send_signal(number)
    assert ended(process) == (3, f"got {int(number)}\n")


def test_a_signal_that_comes_before_the_job_is_there_is_not_lost(place: Place, agent: FakeAgent) -> None:
    """However early: from the start of the wrapper on it either kills the wrapper, or reaches the job."""
    for pause in (0.0, 0.001, 0.002, 0.003, 0.005, 0.008):
        process = launch(place, "/bin/sleep", "20")
        time.sleep(pause)
        process.terminate()
        assert ended(process)[0] == -signal.SIGTERM


def test_the_job_has_the_mask_and_dispositions_that_it_was_given(place: Place, agent: FakeAgent) -> None:
    show = ["/bin/grep", "-E", "^(Sig(Blk|Ign|Cgt)|ShdPnd)", "/proc/self/status"]

    def strange() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGUSR1, signal.SIGWINCH})
        for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        for number in (signal.SIGXFSZ, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)

    def plain() -> None:
        for number in CATCHABLE:
            signal.signal(number, signal.SIG_DFL)

    for before in (strange, plain):
        code, wrapped = ended(launch(place, *show, before=before))
        bare = subprocess.run(show, stdout=subprocess.PIPE, text=True, preexec_fn=before, restore_signals=False)
        assert (code, wrapped) == (0, bare.stdout)
        assert ("0000000008000200" in wrapped) is (before is strange), "control: SIGUSR1 and SIGWINCH"


def test_the_job_leads_its_session_and_its_kill_0_does_not_reach_the_wrapper(place: Place, agent: FakeAgent) -> None:
    script = "trap 'echo heard' TERM; kill -TERM 0; sleep 0.3; exit 7"
    assert ended(launch(place, "/bin/sh", "-c", script)) == (7, "heard\n"), "once, and nobody else"
    assert agent.requests == ["LARK1 enter job", EXITED]


def test_the_job_is_of_the_same_rank_as_the_wrapper(place: Place, agent: FakeAgent) -> None:
    rank = "import os; print(os.getsid(0) == os.getpid(), os.getpgrp() == os.getpid())"
    assert ended(launch(place, "/usr/bin/python3", "-c", rank)) == (0, "True True\n")
    assert ended(launch(place, "/usr/bin/python3", "-c", rank, session=False)) == (0, "False False\n")

    def leads_a_group() -> None:
        os.setpgid(0, 0)

    group = launch(place, "/usr/bin/python3", "-c", rank, session=False, before=leads_a_group)
    assert ended(group) == (0, "False True\n")


def test_a_wrapper_killed_outright_takes_its_job_along(place: Place, agent: FakeAgent) -> None:
    process = launch(place, "/bin/sh", "-c", "echo ready; exec sleep 60")
    job = started(process)
    assert not gone(job)
    process.kill()
    wait_until("the job has died with it", lambda: gone(job), 10, 0.02)
    ended(process)


def test_what_a_job_leaves_behind_is_not_the_wrappers(place: Place, agent: FakeAgent) -> None:
    """An orphan of the job goes to whom it always went, and is not waited for."""
    process = launch(place, "/bin/sh", "-c", "sleep 60 >&- 2>&- & echo $!; exec >&-")
    code, out = ended(process)
    assert code == 0
    orphan = int(out)
    assert not gone(orphan)
    os.kill(orphan, signal.SIGKILL)


def test_the_wrapper_holds_nothing_of_the_jobs_and_no_power(place: Place, agent: FakeAgent) -> None:
    """A reader sees the end of the job's output while the job still runs; a writer sees that nobody reads."""
    reading, writing = os.pipe()
    process = launch(place, "/bin/sh", "-c", "echo ready; exec sleep 60 >&- 2>&- <&-", stdin=reading)
    os.close(reading)
    try:
        assert process.stdout is not None
        job = started(process)
        ready, _, _ = select.select([process.stdout], [], [], 10)
        assert ready
        assert process.stdout.read() == ""
        assert not gone(job)
        wait_until("it has closed everything", lambda: not os.listdir(f"/proc/{process.pid}/fd"), 5, 0.01)
        with pytest.raises(BrokenPipeError):
            os.write(writing, b"x")
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
            if "\t" in line
        )
        assert all(int(status[name], 16) == 0 for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"))
        assert status["Name"] == "lark-job-waits"
        assert os.readlink(f"/proc/{process.pid}/ns/net") == os.readlink(f"/proc/{job}/ns/net")
        assert os.stat(f"/proc/{process.pid}/status").st_uid == 0, "not dumpable: its owner cannot trace it"
        assert os.stat(f"/proc/{job}/status").st_uid == NOBODY.pw_uid, "positive control"
        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        pss = int(re.findall(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)[0])
        print(f"waiting: Pss {pss} kB, {status['VmRSS'].strip()} resident")
        assert pss < 500
    finally:
        os.close(writing)
        os.killpg(child_of(process.pid), signal.SIGKILL)
        ended(process)


def test_stdin_is_the_jobs(place: Place, agent: FakeAgent) -> None:
    process = launch(place, "/bin/cat", stdin=subprocess.PIPE)
    out, _ = process.communicate("words\n", timeout=20)
    assert (process.returncode, out) == (0, "words\n")


def test_what_the_job_used_is_counted_as_the_wrappers(place: Place, agent: FakeAgent) -> None:
    process = launch(place, "/usr/bin/python3", "-c", "import time\nwhile time.process_time() < 0.5: pass")
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0
    assert used.ru_utime + used.ru_stime >= 0.5
    process.returncode = 0


@pytest.mark.parametrize(
    "reply", [b"refused no", b"banana", b"", None], ids=["refused", "nonsense", "closes", "silent"]
)
def test_no_answer_changes_how_the_job_ends_or_holds_it_up_for_long(place: Place, reply: bytes | None) -> None:
    with FakeAgent(place.socket, pass_fds=[place.namespace], replies={EXITED: reply}) as agent:
        began = time.monotonic()
        assert ended(launch(place, "/bin/sh", "-c", "echo done; exit 5")) == (5, "done\n")
        assert time.monotonic() - began < 8
        assert agent.requests == ["LARK1 enter job", EXITED]


def test_without_an_agent_the_job_ends_as_it_did(place: Place) -> None:
    with FakeAgent(place.socket, pass_fds=[place.namespace]):
        process = launch(place, "/bin/sh", "-c", "echo ready; read x; exit 6", stdin=subprocess.PIPE)
        started(process)
    assert process.stdin is not None
    process.stdin.write("on\n")
    process.stdin.flush()
    assert ended(process)[0] == 6


def test_as_process_1_of_a_pid_namespace_it_forwards_reaps_and_says_128_and_the_signal(
    place: Place, agent: FakeAgent
) -> None:
    inner = f"exec setpriv --reuid {NOBODY.pw_uid} --regid {NOBODY.pw_gid} --clear-groups "
    inner += f"{place.libexec}/lark-job-wrapper"

    def run(script: str) -> subprocess.Popen[str]:
        words = ["unshare", "--pid", "--fork", "--mount-proc", "/bin/sh", "-c", f'{inner} /bin/sh -c "$0"', script]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=place.scratch)

    assert ended(run("exit 9"))[0] == 9
    assert ended(run("kill -KILL $$"))[0] == 128 + signal.SIGKILL
    orphans = run("(sleep 0.1 &); sleep 0.6; cat /proc/*/stat | grep -c ' Z '; exit 3")
    code, out = ended(orphans)
    assert (code, out) == (3, "0\n"), "an orphan was left a zombie"
    waiting = run("trap 'exit 4' USR1; echo ready; while :; do sleep 0.05; done")
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == "ready\n"
    os.kill(child_of(waiting.pid), signal.SIGUSR1)
    assert ended(waiting)[0] == 4
