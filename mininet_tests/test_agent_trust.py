"""Imitations and attacks on the agent's trust. Beside every refusal stands what is accepted, on the same starter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mininet_tests.agent_rig import JOB_UID, LIBEXEC, OTHER_UID, SBIN, Rig, Starter
from mininet_tests.site.namespaces import wait_until

TALK = """
import socket, sys
for word in sys.argv[1:]:
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.settimeout(5)
    s.connect("/run/lark/agent.sock")
    s.send(eval(word) if word.startswith("b") else word.encode())
    print(s.recv(1100).decode() or "closed")
"""
PYTHON = "/usr/bin/python3"


@pytest.fixture(scope="module")
def shared() -> Iterator[Rig]:
    rig = Rig.build()
    yield rig
    rig.destroy()


@pytest.fixture
def rig(shared: Rig) -> Iterator[Rig]:
    yield shared
    shared.behave()
    shared.settle()
    assert "Traceback" not in shared.log(), shared.log()


@pytest.fixture
def starter(rig: Rig) -> Iterator[Starter]:
    made = rig.starter()
    yield made
    made.kill()


def accepted(starter: Starter) -> None:
    """The positive control: the very same steps with the real thing."""
    said = starter.begin()
    assert said.code == 0
    assert "HookStatusCode" not in said.out, said.text


def test_a_program_of_the_users_own_is_not_the_hook(rig: Rig, starter: Starter) -> None:
    said = starter.run(PYTHON, "-c", TALK, "LARK1 begin")
    assert said.out.startswith("refused 'begin' comes from"), said.text
    assert not rig.attempts()
    accepted(starter)


def test_a_copy_of_the_hook_is_not_the_hook(rig: Rig, starter: Starter) -> None:
    # The copy has the installed helper's socket beside it, so it would work if it were believed.
    rig.machine.need("mkdir", "-p", "/run/copy")
    rig.machine.need("cp", f"{LIBEXEC}/lark-hook", f"{LIBEXEC}/lark-socket", "/run/copy/")
    rig.machine.need("cp", "-a", f"{LIBEXEC}/lark-job", "/run/copy/")
    rig.machine.need("ln", "-sf", "lark-hook", "/run/copy/lark-hook-prepare")
    said = starter.run("/run/copy/lark-hook-prepare")
    assert "HookStatusCode = 105" in said.out, said.text
    assert not rig.attempts()
    accepted(starter)


def test_a_users_own_condor_starter_has_no_real_uid_0(rig: Rig) -> None:
    own = rig.starter(uid=JOB_UID)
    said = own.run("lark-hook-prepare", exe=f"{LIBEXEC}/lark-hook-prepare")
    assert "HookStatusCode = 105" in said.out, said.text
    assert "its real uid is 21001" in said.out
    assert not rig.attempts()
    own.kill()
    real = rig.starter()
    accepted(real)
    real.kill()


def test_another_program_as_root_is_not_the_starter(rig: Rig) -> None:
    own = rig.starter(exe=PYTHON)
    said = own.begin()
    assert "HookStatusCode = 105" in said.out
    assert f"is not {SBIN}/condor_starter" in said.out, said.text
    own.kill()
    real = rig.starter()
    accepted(real)
    real.kill()


def test_a_starter_that_is_no_child_of_the_startd(rig: Rig) -> None:
    real = rig.startd
    for exe, uid, why in ((PYTHON, 0, f"is not {SBIN}/condor_startd"), (f"{SBIN}/condor_startd", JOB_UID, "real uid")):
        rig.startd = rig.new_startd(exe=exe, uid=uid)
        orphan = rig.starter()
        said = orphan.begin()
        assert "HookStatusCode = 105" in said.out
        assert why in said.out, said.text
        orphan.kill()
        rig.startd.stdin.close()  # type: ignore[union-attr]
        rig.startd.stdout.close()  # type: ignore[union-attr]
        rig.startd.wait(5)
        rig.startd = real
    good = rig.starter()
    accepted(good)
    good.kill()


def test_a_starter_without_a_slot(rig: Rig) -> None:
    starter = rig.starter()
    nameless = rig.ask_startd(do="starter", name="nameless", exe=f"{SBIN}/condor_starter", arguments=["-x"])
    said = Starter(rig, "nameless", nameless["pid"], "?").begin()
    assert "has no slot in its command line" in said.out
    rig.ask_startd(do="kill", name="nameless")
    accepted(starter)
    starter.kill()


def test_a_starter_of_another_pool_on_the_same_node(rig: Rig) -> None:
    """The same programs with another configuration: its slot1_1 is not the slot1_1 whose ad we would get."""
    foreign = rig.starter(parent="<127.0.0.1:9700?addrs=127.0.0.1-9700&noUDP&sock=startd_9_ffff>")
    said = foreign.begin()
    assert "HookStatusCode = 103" in said.out, said.text
    assert "sock=startd_9_ffff" in said.out
    assert not rig.attempts()
    foreign.kill()
    own = rig.starter()
    accepted(own)
    own.kill()


def test_begin_is_heard_once(rig: Rig, starter: Starter) -> None:
    accepted(starter)
    again = starter.begin()
    assert "HookStatusCode = 105" in again.out
    assert "begin is heard once" in again.out
    assert len(rig.attempts()) == 1


def test_a_job_gains_nothing_by_running_the_helpers(rig: Rig, starter: Starter) -> None:
    """A child of the starter that runs a helper has the right parent and executable; a job's process is none."""
    accepted(starter)
    job = starter.job("/bin/sleep", "60")
    wait_until("phase run", lambda: rig.attempt_of(starter)["phase"] == "run", 5)
    starter.run("lark-hook-exit", exe=f"{LIBEXEC}/lark-hook-exit")
    assert rig.attempt_of(starter)["phase"] == "run", "nobody ends a job's run phase while it runs"
    assert "the job is still running" in rig.log()
    assert "begin is heard once" in starter.begin().text
    # A process of the job has the wrong parent, whatever it runs.
    for program in ("lark-hook-exit", "lark-hook-prepare", "lark-job-wrapper /bin/echo got-in"):
        own = starter.wait(starter.job("/bin/sh", "-c", f"exec {LIBEXEC}/{program}"))
        assert own is not None
        assert "got-in" not in own.out
        assert "is no condor_starter" in own.text or "is not" in own.text, own.text
    assert len(rig.attempts()) == 1
    assert starter.wait(job, timeout=0) is None, "control: it ran all the while"


def test_a_job_cannot_say_that_it_has_exited(rig: Rig, starter: Starter) -> None:
    """Neither a process of the job, nor a child of the starter that is not the job's wrapper."""
    accepted(starter)
    job = starter.job(PYTHON, "-c", TALK + "import time; sys.stdout.flush(); time.sleep(60)", "LARK1 exited")
    wait_until("it was refused", lambda: "request=exited" in rig.log(), 5)
    assert "is no condor_starter" in rig.log() or "is not /" in rig.log()
    stranger = starter.run(PYTHON, "-c", TALK, "LARK1 exited")
    assert "refused 'exited' comes from the process that entered the network as the job only" in stranger.out
    second = starter.wait(starter.job("/bin/echo", "got-in"))
    assert second is not None
    assert second.out == "got-in\n", "an ssh session, before and after: whose end is not the job's"
    third = starter.wait(starter.job("/bin/echo", "got-in"))
    assert third is not None
    assert third.out == "got-in\n", third.text
    assert rig.log().count("refused: request=exited") == 2, "the sessions' wrappers said it, too, and were not refused"
    starter.ask(do="signal", pid=job, signal=15)
    ended = starter.wait(job)
    assert ended is not None
    assert ended.code == -15
    assert "is no condor_starter" in ended.out or "is not /" in ended.out, ended.text
    late = starter.wait(starter.job("/bin/echo", "got-in"))
    assert late is not None
    assert "the job has exited" in late.err, late.text


def test_a_jobs_wrapper_cannot_be_traced_by_the_job(rig: Rig, starter: Starter) -> None:
    accepted(starter)
    code = (
        "import ctypes,os,subprocess\n"
        "libc=ctypes.CDLL(None,use_errno=True)\n"
        "own=subprocess.Popen(['/bin/sleep','60'])\n"
        "for pid in (own.pid, os.getppid()):\n"
        "    print(libc.ptrace(16, pid, 0, 0), ctypes.get_errno(), flush=True)\n"
        "    if pid == own.pid: os.kill(pid, 9)\n"  # (Popen.kill takes a child that stops for one that has ended)
    )
    done = starter.wait(starter.job(PYTHON, "-c", code))
    assert done is not None
    own, wrapper = done.out.splitlines()
    assert own == "0 0", "positive control: it may trace its own child"
    assert wrapper == "-1 1", done.text


def test_stage_out_only_after_the_job_has_exited(rig: Rig, starter: Starter) -> None:
    accepted(starter)
    starter.stage_out()
    assert rig.attempt_of(starter)["phase"] == "stage-in", "no job has run"
    job = starter.job("/bin/sleep", "60")
    wait_until("phase run", lambda: rig.attempt_of(starter)["phase"] == "run", 5)
    starter.stage_out()
    assert rig.attempt_of(starter)["phase"] == "run", "the job still runs"
    starter.ask(do="signal", pid=job, signal=9)
    starter.wait(job)
    rig.in_phase(starter, "stage-out")
    starter.stage_out()
    late = starter.wait(starter.job("/bin/echo", "late"))
    assert late is not None
    assert "late" not in late.out, "phases only advance"


def test_another_users_process_cannot_enter(rig: Rig, starter: Starter) -> None:
    accepted(starter)
    pid = starter.job("/bin/echo", "got-in", uid=OTHER_UID)
    other = starter.wait(pid)
    assert other is not None
    assert "got-in" not in other.out
    assert "belongs to uid 21001" in other.err, other.text
    own = starter.wait(starter.job("/bin/echo", "got-in"))
    assert own is not None
    assert own.out == "got-in\n", own.text


def test_entering_is_for_attempts_that_began(rig: Rig, starter: Starter) -> None:
    early = starter.wait(starter.job("/bin/echo", "got-in"))
    assert early is not None
    assert "got-in" not in early.out
    assert "has not begun" in early.err
    accepted(starter)
    own = starter.wait(starter.job("/bin/echo", "got-in"))
    assert own is not None
    assert own.out == "got-in\n"


def test_the_hook_may_not_enter_and_the_wrapper_may_not_begin(rig: Rig, starter: Starter) -> None:
    """Each helper has its own requests; a user who can make one of them speak for the other gains nothing."""
    accepted(starter)
    rig.machine.need("mkdir", "-p", "/run/names")
    rig.machine.need("ln", "-sf", f"{LIBEXEC}/lark-hook", "/run/names/lark-job-wrapper")
    rig.machine.need("ln", "-sf", f"{LIBEXEC}/lark-job", "/run/names/lark-hook-exit")
    entered = starter.run("/run/names/lark-job-wrapper", "/bin/echo", "got-in")
    assert "got-in" not in entered.out, entered.text
    assert rig.attempt_of(starter)["phase"] == "stage-in"
    starter.run("/run/names/lark-hook-exit")
    assert "'stage-out' comes from" in rig.log()
    own = starter.wait(starter.job("/bin/echo", "got-in"))
    assert own is not None
    assert own.out == "got-in\n"


def test_a_traced_hook_is_refused(rig: Rig, starter: Starter) -> None:
    """PTRACE_TRACEME: the starter becomes the tracer of its child, so parent and executable stay right."""
    code = (
        "import ctypes,os,sys\n"
        "if len(sys.argv) > 1: ctypes.CDLL(None).ptrace(0, 0, 0, 0)\n"
        f"os.execv('{LIBEXEC}/lark-hook-prepare', ['lark-hook-prepare'])\n"
    )
    pid = starter.spawn(PYTHON, "-c", code, "traced")
    starter.ask(do="trace", pid=pid)
    said = starter.wait(pid)
    assert said is not None
    assert "being traced" in said.out, said.text
    assert not rig.attempts()
    untraced = starter.run(PYTHON, "-c", code)
    assert "HookStatusCode" not in untraced.out, untraced.text
    assert len(rig.attempts()) == 1


def test_garbage_is_refused_and_harms_nobody(rig: Rig, starter: Starter) -> None:
    words = ["hello", "LARK1", "LARK1 dance", "LARK2 begin", "b'LARK1 begin' + b'x' * 400", "b'\\xff' * 200"]
    words += ["LARK1 enter job; stage-out", "b'LARK1 \\x00\\n'"]
    said = rig.machine.run([PYTHON, "-c", TALK, *words])
    lines = said.out.splitlines()
    assert len(lines) == len(words), said.text
    assert all(line.startswith("refused ") for line in lines), lines
    ping = rig.machine.run([PYTHON, "-c", TALK, "LARK1 ping"])
    assert ping.out.strip() == "ok"
    accepted(starter)


def test_silent_connections_starve_nobody(rig: Rig, starter: Starter) -> None:
    code = (
        "import socket,time\n"
        "held=[]\n"
        "for i in range(200):\n"
        "    s=socket.socket(1, socket.SOCK_SEQPACKET); s.connect('/run/lark/agent.sock'); held.append(s)\n"
        "print('held', flush=True)\n"
        "time.sleep(5)\n"
        "closed=0\n"
        "for s in held:\n"
        "    s.setblocking(False)\n"
        "    try: closed += s.recv(1) == b''\n"
        "    except BlockingIOError: pass\n"
        "print('closed', closed)\n"
    )
    flood = starter.spawn(PYTHON, "-c", code)
    same = rig.starter()
    accepted(same)  # the same uid as the flood's
    same.kill()
    done = starter.wait(flood)
    assert done is not None
    assert "closed 200" in done.out, done.text
    agent = rig.agent
    assert agent is not None
    fds = rig.machine.need("sh", "-c", "ls /proc/$(pgrep -f 'agent_fakes agent')/fd | wc -l")
    assert int(fds) < 60, f"{fds} descriptors: the agent leaks"
    accepted(starter)


def test_descriptors_sent_along_are_not_kept(rig: Rig, starter: Starter) -> None:
    code = (
        "import socket,os\n"
        "for i in range(50):\n"
        "    s=socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect('/run/lark/agent.sock')\n"
        "    socket.send_fds(s, [b'LARK1 ping'], [0,1,2]); s.recv(10)\n"
    )
    count = ["sh", "-c", "ls /proc/$(pgrep -f 'agent_fakes agent')/fd | wc -l"]
    before = int(rig.machine.need(*count))
    rig.machine.run([PYTHON, "-c", code]).need()
    assert int(rig.machine.need(*count)) <= before + 3
    accepted(starter)


def test_every_refusal_is_logged_with_pid_uid_exe_and_reason(rig: Rig, starter: Starter) -> None:
    pid = starter.spawn(PYTHON, "-c", TALK, "LARK1 begin")
    starter.wait(pid)
    wanted = f"refused: request=begin pid={pid} uid={JOB_UID} exe="
    line = next(line for line in rig.log().splitlines() if wanted in line)
    assert "python3" in line or "?" in line
    assert "comes from" in line
    accepted(starter)
