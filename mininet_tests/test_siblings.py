"""On a real pool: a job uses the network of another job of the same user, by a socket taken out of its process.

And what stops that.

Whoever may trace a process may take its descriptors (pidfd_getfd(2)), and the kernel lets processes of one uid trace
each other, unless Yama (`kernel.yama.ptrace_scope`) or a namespace of process ids is in the way. The thief here is
sealed: what it reaches, it reaches by the other's network.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mininet_tests import payload
from mininet_tests.site.campus import ALICE, FILE_SERVER, Site
from mininet_tests.site.namespaces import wait_until
from mininet_tests.site.xrootd import PORT as FILE_PORT
from mininet_tests.story import run_job, wait_for_file

YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
VICTIM = """#!/usr/bin/python3
import os, socket, time
s = socket.socket()
print(s.fileno(), flush=True)
while not os.path.exists("@HERE@/go"):
    time.sleep(0.1)
"""
THIEF = r'''#!/usr/bin/python3
"""thief.py PID FD HOST PORT: connect with a socket of our own, and with one taken out of another process; and open
that one's memory, to change what it does."""
import ctypes, os, socket, sys
PIDFD_OPEN, PIDFD_GETFD = 434, 438
pid, fd, host, port = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
libc = ctypes.CDLL(None, use_errno=True)

def call(number, *words):
    found = libc.syscall(number, *words)
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return found

def attempt(name, make):
    try:
        with make() as s:
            s.settimeout(3)
            s.connect((host, port))
        print(name, "open", flush=True)
    except OSError as error:
        print(name, type(error).__name__, flush=True)

attempt("own", socket.socket)
try:
    open(f"/proc/{pid}/mem", "r+b").close()
    print("memory open", flush=True)
except OSError as error:
    print("memory", type(error).__name__, flush=True)
attempt("taken", lambda: socket.socket(fileno=call(PIDFD_GETFD, call(PIDFD_OPEN, pid, 0), fd, 0)))
'''


@pytest.fixture(scope="module")
def pair() -> Iterator[Site]:
    with Site(label="lark-test-siblings") as site:
        yield site


def doctor(site: Site) -> str:
    return site.agent.command("doctor", "--only", "condor", "--config", str(site.agent.config)).out


def steal(site: Site) -> dict[str, str]:
    """What a sealed job reaches, by its own socket and by that of a granted job of the same user."""
    victim = run_job(site, ALICE, "#!/bin/sh\n./victim.py > @HERE@/live\n", {"victim.py": VICTIM}, name="victim")
    wait_until("the victim has a socket", lambda: victim.said("live").endswith("\n"), 60)
    pid = site.worker.need("pgrep", "-nf", "python3 .*victim.py").strip()
    script = f"#!/bin/sh\n./thief.py {pid} {victim.said('live').strip()} {FILE_SERVER} {FILE_PORT} > @HERE@/live 2>&1\n"
    lines = {"My.LarkNetwork": '"none"'}
    thief = run_job(site, ALICE, script + payload.WAIT, {"thief.py": THIEF}, lines, name="thief")
    found = dict(line.split() for line in wait_for_file(thief).splitlines())
    for job in (thief, victim):
        job.let_go()
        job.finish()
    return found


def test_jobs_of_one_user_use_each_others_networks_where_nothing_keeps_them_apart(pair: Site) -> None:
    yama = YAMA.exists() and int(YAMA.read_text()) >= 1
    wanted = "PermissionError" if yama else "open"
    assert steal(pair) == {"own": "OSError", "memory": wanted, "taken": wanted}
    assert ("condor.siblings" in doctor(pair)) is not yama


def test_with_namespaces_of_process_ids_a_job_does_not_find_another(pair: Site) -> None:
    pool = pair.pool
    pool.reconfigure(pool.execute, "70-pids.config", "USE_PID_NAMESPACES = True\n")
    assert steal(pair) == {"own": "OSError", "memory": "FileNotFoundError", "taken": "ProcessLookupError"}
    assert "condor.siblings" not in doctor(pair)
