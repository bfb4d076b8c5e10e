"""Every way in which HTCondor ends a job, on one real pool: after each, nothing of it is left within 2 seconds.

What "nothing" is, is said by the leak checker of `lark-agent doctor` (`ovs_agent.leaks`): namespaces, processes,
devices, ports, connections, limits, flows, descriptors of the agent, records, and what the controller knows. The time
runs from the end of the starter. Each test has its positive control: the checker sees the attempt while it lives.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mininet_tests import payload
from mininet_tests.site.campus import (
    ALICE,
    BOB,
    CACHE,
    CAMPUS,
    CONDOR,
    FILE_SERVER,
    HOST_ADDRESS,
    HOST_ADDRESS_6,
    HTTP_PORT,
    NODE,
    POLICY,
    WORKER_BRIDGE,
    Site,
)
from mininet_tests.site.lark import ENVIRONMENT, python_command
from mininet_tests.site.namespaces import SiteError, wait_until
from mininet_tests.site.pool import Job, JobStatus
from mininet_tests.site.xrootd import PORT as FILE_PORT
from mininet_tests.story import FS, WEB, attempt_of, open_, results, run_job, wait_for_file

FULL = bool(os.environ.get("LARK_TEST_FULL"))
WITHIN = 2.0
SLACK = 5.0
"""CI machines are shared; the seconds measured are printed."""
VERSIONS = ["23", "25"] if FULL else [CONDOR]
SLOTS = 20
WARM = 6
"""`pool.warm` of the site's agents."""
SSHD = CACHE / "sshd" / "sshd"
DEDICATED = "DedicatedScheduler@ap.demo.lark"
EXECUTE = f"""\
NUM_CPUS = {SLOTS}
MEMORY = 8192
CLAIM_WORKLIFETIME = 1200
DedicatedScheduler = "{DEDICATED}"
STARTD_ATTRS = $(STARTD_ATTRS) DedicatedScheduler
SSH_TO_JOB_SSHD = {SSHD}
KILLING_TIMEOUT = 5
MachineMaxVacateTime = 3
MASTER_BACKOFF_CONSTANT = 1
MASTER_BACKOFF_CEILING = 2
"""
ACCESS = """\
JOB_MAX_VACATE_TIME = 3
DAGMAN_USER_LOG_SCAN_INTERVAL = 1
DAGMAN_MAX_SUBMITS_PER_INTERVAL = 100
DAGMAN_USE_DIRECT_SUBMIT = False
ALTERNATE_JOB_SPOOL =
MAX_JOBS_RUNNING = 500
UNUSED_CLAIM_TIMEOUT = 1
"""
SLICES = """\
slices:
  - {for: in-a-dag, name: 'string(DAGManJobId)'}
  - {for: in-parallel, name: 'string(ClusterId)'}
"""
GROUPS = """\
groups:
  in-a-dag: 'DAGManJobId =!= undefined'
  in-parallel: 'JobUniverse =?= 11'
  slow: 'LarkSlice =?= "slow"'
"""
RATES = "rates: [{for: slow, rate: 1, unit: Mbit/s}]\n"
NAMED = "#!/bin/sh\nreadlink /proc/self/ns/net > @HERE@/new.NAME\nmv @HERE@/new.NAME @HERE@/NAME\n"
"""Tells the job's network in a file that is complete or absent."""
STAY = f"#!/bin/sh\n./probe.py {FS} {WEB} > @HERE@/live 2>&1\n"
STAY += "readlink /proc/self/ns/net > @HERE@/network\n" + payload.WAIT


def policy() -> str:
    """The demo's, with slices for DAGs and parallel jobs, and a rate for those that ask for it."""
    text = POLICY.read_text(encoding="utf-8")
    assert "groups:\n" in text
    assert "slices:\n" in text
    return text.replace("groups:\n", GROUPS).replace("slices:\n", SLICES) + RATES


@dataclass
class Ends:
    """A site, and somebody on its worker node who looks for leaks."""

    site: Site
    watcher: subprocess.Popen[str]

    def ask(self, **command: Any) -> dict[str, Any]:
        assert self.watcher.stdin is not None
        assert self.watcher.stdout is not None
        self.watcher.stdin.write(json.dumps(command) + "\n")
        self.watcher.stdin.flush()
        line = self.watcher.stdout.readline()
        assert line, "the watcher has ended"
        return dict(json.loads(line))

    def attempts(self) -> list[str]:
        return list(self.ask(do="look")["living"])

    def running(self, job: Job) -> str:
        """The id of a running job's attempt, which the checker has seen."""
        attempt = str(attempt_of(self.site, job)["id"])
        assert attempt in self.attempts(), "positive control"
        return attempt

    @contextmanager
    def ending(self, *attempts: str, timeout: float = 90) -> Iterator[None]:
        """Within the block something ends these attempts; after it, what is left is judged."""
        assert attempts
        self.ask(do="watch", attempts=list(attempts))
        yield
        said = self.ask(do="ended", timeout=timeout)
        assert "error" not in said, said
        print(f"nothing left of {len(attempts)} attempts {said['seconds']:.2f} s after the last starter's end")
        assert said["clean"], said
        assert said["seconds"] <= WITHIN * SLACK, said

    def quiet(self, timeout: float = 20) -> None:
        """Wait until nothing lives and nothing is left, and the pool has its spare lanes again: at least as many as
        configured. A burst has the agent keep more ready, until no job has come for a minute; they are nobody's."""
        seen: dict[str, Any] = {}

        def probe() -> bool:
            seen.update(self.ask(do="look"))
            return not seen["left"] and not seen["living"] and len(seen["spare"]) >= WARM

        try:
            wait_until("nothing is left", probe, timeout, 0.1)
        except SiteError:
            raise AssertionError(seen) from None

    def starter_of(self, attempt: str) -> int:
        """Its pid on the worker node."""
        return int(attempt.split("~")[3])

    def kill(self, *pids: int) -> None:
        self.site.worker.need("kill", "-9", *map(str, pids))

    def start_watcher(self) -> None:
        argv = self.site.worker.argv(
            python_command("mininet_tests.leak_watch", str(self.site.agent.config)), None, ENVIRONMENT
        )
        self.watcher = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def stop_watcher(self) -> None:
        for stream in (self.watcher.stdin, self.watcher.stdout):
            if stream is not None:
                stream.close()
        self.watcher.wait(10)


@pytest.fixture(scope="module", params=VERSIONS)
def made(request: pytest.FixtureRequest) -> Iterator[Ends]:
    assert SSHD.exists(), "make install-deps puts it there"
    built = Site(
        engine=os.environ.get("LARK_TEST_ENGINE", "os-ken"),
        condor=request.param,
        label="lark-test-ends",
        policy=policy(),
        access_more=ACCESS,
        execute_more=EXECUTE,
        say=print,
    )
    with built:
        ends = Ends(built, None)  # type: ignore[arg-type]
        ends.start_watcher()
        try:
            yield ends
        finally:
            ends.stop_watcher()


@pytest.fixture
def ends(made: Ends) -> Iterator[Ends]:
    made.quiet(60)
    yield made
    try:
        made.quiet(60)
    except AssertionError:
        # What a failed test left behind must not fail those after it.
        made.site.pool.command("condor_rm", "-all")
        raise


def staying(ends: Ends, user: str = ALICE, name: str = "stay", **lines: str) -> Job:
    """A running job that has its network."""
    job = run_job(ends.site, user, STAY, lines=lines, name=name)
    found = results(wait_for_file(job))
    assert open_(found, "web"), found
    return job


def inner(ends: Ends, pattern: str) -> list[int]:
    """Pids, as the worker node sees them, of processes whose command line matches."""
    said = ends.site.worker.run(["pgrep", "-f", pattern]).out
    return [int(pid) for pid in said.split()]


def wrapper_process(ends: Ends, attempt: str) -> int:
    """What HTCondor takes for the job: it waits for it."""
    return int(ends.site.worker.need("pgrep", "-P", str(ends.starter_of(attempt)), "-x", "lark-job-waits"))


def job_process(ends: Ends, attempt: str) -> int:
    """The job's own process."""
    return int(ends.site.worker.need("pgrep", "-P", str(wrapper_process(ends, attempt))))


# --- how a job can end ------------------------------------------------------------------------------------------------


def test_after_a_normal_exit_nothing_is_left(ends: Ends) -> None:
    job = staying(ends)
    with ends.ending(ends.running(job)):
        job.let_go()
    job.finish()


@pytest.mark.parametrize("tool", ["condor_rm", "condor_hold", "condor_vacate_job"])
def test_after_a_command_that_ends_the_job_nothing_is_left(ends: Ends, tool: str) -> None:
    job = staying(ends, name=tool)
    with ends.ending(ends.running(job)):
        ends.site.pool.command(tool, job.id, user=ALICE).need()
    if tool == "condor_hold":
        job.wait(JobStatus.HELD)
    if tool == "condor_vacate_job":
        wait_until("it runs again", lambda: job.ad().get("NumJobStarts") == 2, 60, 0.5)
        job.let_go()
        job.finish()
    else:
        job.remove()


@pytest.mark.parametrize("victim", [job_process, wrapper_process], ids=["itself", "its wrapper"])
def test_after_kill_9_of_the_job_nothing_is_left(ends: Ends, victim: Callable[[Ends, str], int]) -> None:
    job = staying(ends)
    attempt = ends.running(job)
    with ends.ending(attempt):
        ends.kill(victim(ends, attempt))
    ad = job.wait(JobStatus.COMPLETED)
    assert (ad.get("ExitBySignal"), ad.get("ExitSignal")) == (True, 9)


def test_a_job_that_catches_the_signal_of_its_removal_hears_it(ends: Ends) -> None:
    """HTCondor sends it to the process that it has started, which is the wrapper."""
    script = "#!/bin/sh\ntrap 'echo heard > @HERE@/heard; exit 1' USR2\n: > @HERE@/live\nwhile :; do sleep 0.1; done\n"
    job = run_job(ends.site, ALICE, script, lines={"kill_sig": "SIGUSR2"}, name="heard")
    wait_until("it runs", lambda: (job.directory / "live").exists(), 60, 0.2)
    with ends.ending(ends.running(job)):
        ends.site.pool.command("condor_rm", job.id, user=ALICE).need()
    assert job.said("heard") == "heard\n"
    job.remove()


def test_a_job_that_ends_for_its_checkpoint_has_its_network_when_it_is_started_again(ends: Ends) -> None:
    """One starter, two runs of the job: the first one's end is not the attempt's."""
    script = (
        f"#!/bin/sh\nexec >> @HERE@/live\nreadlink /proc/self/ns/net\n./probe.py {FS}\n"
        "[ -e step ] && exit 0\n: > step\nexit 85\n"
    )
    lines = {"checkpoint_exit_code": "85", "transfer_checkpoint_files": "step", "transfer_output_files": "step"}
    job = run_job(ends.site, ALICE, script, lines=lines, name="again")
    job.wait(JobStatus.COMPLETED)
    first, *more = job.said("live").splitlines()
    assert first.startswith("net:[")
    assert first != ends.site.node_network()
    assert more.count(first) == 1, "the same network in both runs"
    assert job.said("live").count(" open") == 2, job.said("live")
    assert job.ad().get("NumJobStarts") == 1, "control: it was one starter's"


def test_after_kill_9_of_the_starter_nothing_is_left(ends: Ends) -> None:
    job = staying(ends)
    attempt = ends.running(job)
    with ends.ending(attempt):
        ends.kill(ends.starter_of(attempt))
    wait_until("it runs again", lambda: job.ad().get("NumJobStarts") == 2, 60, 0.5)
    job.let_go()
    job.finish()


def test_after_kill_9_of_the_startd_nothing_is_left(ends: Ends) -> None:
    job = staying(ends, job_lease_duration="20")
    attempt = ends.running(job)
    (startd,) = inner(ends, "^condor_startd")
    with ends.ending(attempt, timeout=120):
        ends.kill(startd)
        job.let_go()
    job.wait(JobStatus.COMPLETED, timeout=120)
    ends.site.pool.wait_for_slot("HasLarkNetwork =?= true", 60)


def test_after_kill_9_of_the_master_nothing_is_left(ends: Ends) -> None:
    job = staying(ends, job_lease_duration="20")
    attempt = ends.running(job)
    member = ends.site.pool.execute
    assert member.master is not None
    with ends.ending(attempt, timeout=120):
        member.master.stop(number=signal.SIGKILL)
        # What systemd does with what a service leaves behind.
        left = [*inner(ends, "^condor_(startd|shared_port|procd)"), ends.starter_of(attempt)]
        ends.kill(*left)
    member.master = member.machine.spawn("condor_master", ["condor_master", "-f"], env=ends.site.pool.environment)
    job.let_go()
    job.wait(JobStatus.COMPLETED, timeout=120)


# --- what went through its network -----------------------------------------------------------------------------------


COUNTS = ("NetworkIncoming", "NetworkIncomingPackets", "NetworkOutgoing", "NetworkOutgoingPackets")
TALK = f"#!/bin/sh\n./talk.py {CAMPUS} {HTTP_PORT} {FILE_SERVER} > @HERE@/live 2>&1\n"


def talking(ends: Ends, name: str) -> tuple[Job, str]:
    """A job that has said what its own device counted, and its attempt."""
    job = run_job(ends.site, BOB, TALK + payload.WAIT, {"talk.py": payload.TALK}, name=name)
    wait_for_file(job)
    return job, ends.running(job)


def counted(job: Job) -> list[int]:
    said = [int(word) for word in job.said("live").split()]
    assert len(said) == 4, job.said("live")
    assert said[0] > 3000 * 1400, "positive control: the job has received"
    assert said[2] > 3000 * 1400
    return said


def agrees(ad: dict[str, Any], job: Job) -> None:
    own, told = counted(job), [ad.get(name) for name in COUNTS]
    assert None not in told, {name: ad.get(name) for name in (*COUNTS, "JobStatus")}
    print(f"{job.id}: its device {own}, its ad {told}, refused {ad.get('NetworkRefusedPackets')}")
    for mine, theirs in zip(own, told, strict=True):
        assert isinstance(theirs, int)
        assert abs(theirs - mine) <= mine / 1000, (own, told)
    refused = ad.get("NetworkRefusedPackets")
    assert isinstance(refused, int)
    assert 7 <= refused <= 14, refused


@pytest.mark.parametrize("end", ["exit", "condor_rm", "condor_hold"])
def test_the_jobs_ad_says_at_the_end_what_went_through_its_network(ends: Ends, end: str) -> None:
    """Within a thousandth of what its own device says: in history, after condor_rm too, and in the queue when held."""
    job, attempt = talking(ends, f"counts-{end}")
    with ends.ending(attempt):
        if end == "exit":
            job.let_go()
        else:
            ends.site.pool.command(end, job.id, user=BOB).need()
    wanted = {"exit": JobStatus.COMPLETED, "condor_rm": JobStatus.REMOVED, "condor_hold": JobStatus.HELD}[end]
    job.wait(wanted)
    # The shadow tells the schedd when it ends, which may be after the starter's end.
    with suppress(SiteError):
        wait_until("the ad has the counts", lambda: "NetworkIncoming" in job.ad(), 15, 0.5)
    ad = job.ad()
    job.remove()
    agrees(ad, job)


def test_the_jobs_ad_says_what_its_rate_dropped(ends: Ends) -> None:
    script = f"#!/bin/sh\n./flood.py {CAMPUS} {HTTP_PORT} > @HERE@/live 2>&1\n" + payload.WAIT
    job = run_job(ends.site, BOB, script, {"flood.py": payload.FLOOD}, {"My.LarkSlice": '"slow"'}, name="counts-rate")
    wait_for_file(job)
    attempt = ends.running(job)
    with ends.ending(attempt):
        job.let_go()
    job.wait(JobStatus.COMPLETED)
    with suppress(SiteError):
        wait_until("the ad has the counts", lambda: "NetworkIncoming" in job.ad(), 15, 0.5)
    told: dict[str, Any] = job.ad()
    job.remove()
    received, sent = map(int, job.said("live").split())
    assert sent >= 1000, "positive control"
    # While the kernel looks for the neighbour, it may drop some of what waits for it.
    assert told["NetworkOutgoingPackets"] >= sent - 20
    # 128 KiB and what 1 Mbit/s lets on while it sends: some two hundred of thousand.
    assert 500 <= told["NetworkOutgoingDroppedPackets"] < sent
    assert told["NetworkOutgoingDropped"] >= 1442 * 500
    # No more can have come back than what passed; beside the echo there is some looking for neighbours.
    assert 0 < received <= told["NetworkOutgoingPackets"] - told["NetworkOutgoingDroppedPackets"] + 20


def test_where_the_starter_is_killed_the_agents_log_alone_has_the_counts(ends: Ends) -> None:
    """And what the ad says, a job could have said: the log has the truth."""
    job, attempt = talking(ends, "counts-killed")
    with ends.ending(attempt):
        ends.kill(ends.starter_of(attempt))
    assert "NetworkIncoming" not in job.ad()
    daemon = ends.site.agent.daemon
    assert daemon is not None
    found = re.search(
        rf"counted: attempt={re.escape(attempt)} job={re.escape(job.id)} uid=\d+ incoming=(\d+) B/(\d+) packets "
        r"outgoing=(\d+) B/(\d+) packets",
        daemon.log.read_text(),
    )
    assert found
    for mine, theirs in zip(counted(job), map(int, found.groups()), strict=True):
        assert abs(theirs - mine) <= mine / 1000, found[0]
    job.remove()


DAEMON = r'''#!/usr/bin/python3
"""Leaves a process behind: another session, another parent, an environment without a trace of HTCondor's."""
import os, subprocess, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.execve("/bin/sleep", ["left-over", "4400"], {})
    os._exit(0)
os.wait()
time.sleep(0.3)
'''


def test_a_job_that_daemonises_leaves_no_process(ends: Ends) -> None:
    script = STAY + "./daemon.py\n: > @HERE@/left\nwhile [ ! -e @HERE@/leave ]; do sleep 0.1; done\n"
    job = run_job(ends.site, ALICE, script, {"daemon.py": DAEMON}, name="daemon")
    wait_for_file(job)
    job.let_go()
    wait_for_file(job, "left")
    attempt = ends.running(job)
    (left,) = inner(ends, "^left-over 4400")
    own = ends.site.worker.need("readlink", f"/proc/{left}/ns/net").strip()
    assert own == job.said("network").strip(), "positive control: it lives, in the job's network"
    with ends.ending(attempt):
        (job.directory / "leave").touch()
    assert not inner(ends, "^left-over 4400")
    job.finish()


def test_a_connection_kept_open_beyond_the_jobs_exit_is_gone(ends: Ends) -> None:
    script = f"#!/bin/sh\n./long.py {FILE_SERVER} {FILE_PORT} {CAMPUS} {HTTP_PORT} > @HERE@/live 2>&1\n" + payload.WAIT
    job = run_job(ends.site, ALICE, script, {"long.py": payload.LONG_CONNECTION}, name="long")
    live = wait_for_file(job)
    port = re.search(r"web server from port (\d+)", live)
    assert port, live
    campus = ends.site.machines["campus"]

    def connected() -> str:
        return campus.need("ss", "-Htn", "state", "established", f"( dport = :{port[1]} )").strip()

    assert connected(), "positive control: the web server has the connection"
    with ends.ending(ends.running(job)):
        job.let_go()
    job.finish()
    assert not inner(ends, r"long\.py"), "the process that held it is dead"


# --- who may come along ---------------------------------------------------------------------------------------------


def test_ssh_to_job_lands_in_the_jobs_network(ends: Ends) -> None:
    job = staying(ends)
    attempt = ends.running(job)
    said = ends.site.pool.command(
        *("condor_ssh_to_job", "-auto-retry", job.id),
        f"readlink /proc/self/ns/net; ./probe.py {FS}",
        user=ALICE,
        timeout=60,
    )
    network = job.said("network").strip()
    assert network.startswith("net:[")
    assert network != ends.site.node_network()
    assert network in said.out, said.text
    assert results(said.out).get("fs") == "open", said.text
    with ends.ending(attempt):
        job.let_go()
    job.finish()
    assert not inner(ends, "sshd")


def test_tail_shows_what_the_job_writes(ends: Ends) -> None:
    script = "#!/bin/sh\necho a word from inside\n" + STAY.partition("\n")[2]
    job = run_job(ends.site, ALICE, script, name="tail")
    wait_for_file(job)
    said = ends.site.pool.command("condor_tail", "-maxbytes", "4096", job.id, user=ALICE)
    assert "a word from inside" in said.out, said.text
    with ends.ending(ends.running(job)):
        job.let_go()
    job.finish()


def test_chirp_reaches_the_jobs_own_ad(ends: Ends) -> None:
    chirp = ends.site.prefix / "usr" / "libexec" / "condor" / "condor_chirp"
    script = f"#!/bin/sh\n{chirp} set_job_attr_delayed ChirpWord '\"from-inside\"' > @HERE@/chirp 2>&1\n"
    script += f"{chirp} get_job_attr Owner >> @HERE@/chirp 2>&1\n" + STAY.partition("\n")[2]
    job = run_job(ends.site, ALICE, script, lines={"My.WantIOProxy": "true"}, name="chirp")
    wait_for_file(job)
    assert f'"{ALICE}"' in job.said("chirp"), job.said("chirp")
    with ends.ending(ends.running(job)):
        job.let_go()
    job.finish()
    assert job.ad().get("ChirpWord") == "from-inside"


# --- many -----------------------------------------------------------------------------------------------------------


def slices_of(ends: Ends) -> dict[str, str | None]:
    """The slice of each of the attempts that the controller knows, by job."""
    found = ends.site.larkctl.json("attempts")["attempts"]
    assert isinstance(found, list)
    return {a["spec"]["job"]: a["decision"]["slice"] for a in found}


def queue_is_empty(ends: Ends) -> bool:
    said = ends.site.pool.command("condor_q", "-allusers", "-af", "ClusterId", "JobStatus", "HoldReason")
    assert " 5 " not in said.out, said.out
    return said.code == 0 and not said.out.strip()


def submit_many(ends: Ends, user: str, text: str, script: str, name: str, tool: str = "condor_submit") -> Path:
    """A submit file (or what `tool` takes) written by the test itself, and submitted as the user."""
    outside = ends.site.root / "home" / user / name
    outside.mkdir()
    inside = Path("/home") / user / name
    for file, content in {"submit": text, "job.sh": script, "probe.py": payload.PROBE}.items():
        (outside / file).write_text(content.replace("@HERE@", str(inside)), encoding="utf-8")
        (outside / file).chmod(0o755)
    account = ends.site.owners[user]
    for path in (outside, *outside.iterdir()):
        os.chown(path, account.uid, account.uid)
    return outside


MANY = """\
executable = job.sh
arguments = $(Process)
transfer_input_files = probe.py
should_transfer_files = YES
log = log
request_cpus = 1
request_memory = 64
request_disk = 16384
"""


@pytest.mark.timeout(900)
def test_the_jobs_of_a_dag_share_a_slice_and_leave_nothing(ends: Ends) -> None:
    nodes = 100 if FULL else 10
    script = f"#!/bin/sh\n./probe.py {WEB} > @HERE@/live.$1\nsleep 2\n"
    place = submit_many(ends, ALICE, MANY.replace("$(Process)", "$(node)") + "queue\n", script, "dag")
    lines = [f'JOB n{i} submit\nVARS n{i} node="{i}"\n' for i in range(nodes)]
    (place / "dag").write_text("".join(lines), encoding="utf-8")
    command = ends.site.pool.command
    command("condor_submit_dag", "-maxidle", "100", "dag", user=ALICE, cwd=f"/home/{ALICE}/dag").need()
    seen: dict[str, str | None] = {}

    def done() -> bool:
        seen.update(slices_of(ends))
        return queue_is_empty(ends)

    wait_until("the DAG ends", done, 600, 0.3)
    results_ = sorted(place.glob("live.*"))
    assert len(results_) == nodes
    assert all(open_(results(path.read_text()), "web") for path in results_)
    assert len(seen) >= min(nodes, 5), "positive control: jobs were seen running"
    assert len(set(seen.values())) == 1, seen
    assert None not in seen.values(), seen


@pytest.mark.timeout(900)
def test_a_burst_leaves_nothing(ends: Ends) -> None:
    """Twenty slots start at once, again and again."""
    jobs = 200 if FULL else 40
    script = f"#!/bin/sh\nexec ./probe.py {WEB} {FS} > @HERE@/live.$1\n"
    place = submit_many(ends, BOB, MANY + f"queue {jobs}\n", script, "burst")
    ends.site.pool.command("condor_submit", "submit", user=BOB, cwd=f"/home/{BOB}/burst").need()
    most = 0
    left: dict[str, Any] = {}

    def done() -> bool:
        nonlocal most
        left.update(ends.ask(do="look"))
        most = max(most, len(left["living"]))
        return len(list(place.glob("live.*"))) == jobs and queue_is_empty(ends)

    began = time.monotonic()
    wait_until("the burst ends", done, 600, 0.2)
    print(f"{jobs} jobs in {time.monotonic() - began:.0f} s, at most {most} attempts seen at a time")
    assert most >= 5, "positive control: the checker saw them run"
    for path in place.glob("live.*"):
        found = results(path.read_text())
        assert open_(found, "web"), found
        assert found["fs"] != "open", found
    ends.quiet(WITHIN * SLACK)


def test_twenty_jobs_run_side_by_side_each_in_its_own_network(ends: Ends) -> None:
    script = NAMED.replace("NAME", "net.$1") + "while [ ! -e @HERE@/go ]; do sleep 0.2; done\n"
    place = submit_many(ends, ALICE, MANY + f"queue {SLOTS}\n", script, "twenty")
    ends.site.pool.command("condor_submit", "submit", user=ALICE, cwd=f"/home/{ALICE}/twenty").need()
    wait_until("all run", lambda: len(list(place.glob("net.*"))) == SLOTS, 120, 0.3)
    assert len({path.read_text() for path in place.glob("net.*")}) == SLOTS
    attempts = ends.attempts()
    assert len(attempts) == SLOTS
    with ends.ending(*attempts):
        (place / "go").touch()
    wait_until("they end", lambda: queue_is_empty(ends), 60, 0.3)


# --- one claim, several jobs ----------------------------------------------------------------------------------------


def test_nothing_of_the_job_before_remains_on_a_claim_that_is_used_again(ends: Ends) -> None:
    """Each job takes the whole machine, so they come one after the other; what each sees is its own policy's."""
    whole = {"request_cpus": str(SLOTS), "request_memory": "4096"}
    script = STAY.replace(payload.WAIT, "ip -br addr > @HERE@/addresses; exit 0\n")
    jobs: list[tuple[str, Job]] = []
    for kind, user, more in (
        ("granted", ALICE, {}),
        ("sealed", ALICE, {"My.LarkNetwork": '"none"'}),
        ("granted", ALICE, {}),
        ("plain", BOB, {}),
        ("sealed", BOB, {"My.LarkNetwork": '"none"'}),
        ("granted", ALICE, {}),
    ):
        jobs.append((kind, run_job(ends.site, user, script, lines=whole | more, name=f"claim-{kind}")))
    networks: list[str] = []
    hosts: list[tuple[str, str]] = []
    for kind, job in jobs:
        ad = job.wait(JobStatus.COMPLETED, timeout=120)
        found = results(job.said("live"))
        opened = {name for name, how in found.items() if how == "open"}
        assert opened == {"granted": {"fs", "web"}, "plain": {"web"}, "sealed": set()}[kind], (kind, job.id, found)
        assert ("eth0" in job.said("addresses")) == (kind != "sealed")
        networks.append(job.said("addresses"))
        hosts.append((job.user, str(ad.get("LastPublicClaimId") or ad.get("PublicClaimId"))))
        assert ad.get("NumJobStarts") == 1
    claims = [claim for user, claim in hosts if user == ALICE]
    assert len(set(claims)) < len(claims), f"positive control: a claim was used again: {hosts}"
    lines = [line for text in networks for line in text.splitlines() if line.startswith("eth0")]
    assert len(set(lines)) == len(lines), "no address was used twice"


ENTER = r'''#!/usr/bin/python3
"""enter.py PATH...: try to move into each of these network namespaces; as we are, and as root of a user namespace."""
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
for path in sys.argv[1:]:
    for way in ("plain", "userns"):
        if os.fork() == 0:
            said = ""
            try:
                fd = os.open(path, os.O_RDONLY)
                if way == "userns" and libc.unshare(0x10000000):
                    raise OSError(ctypes.get_errno(), "unshare")
                if libc.setns(fd, 0x40000000):
                    raise OSError(ctypes.get_errno(), "setns")
                said = "entered"
            except OSError as e:
                said = f"refused {e}"
            print(way, said, os.readlink("/proc/self/ns/net"), flush=True)
            os._exit(0)
        os.wait()
'''


def test_a_sibling_of_the_same_user_cannot_enter_another_jobs_network(ends: Ends) -> None:
    """Both are the same uid, so that it may open the other's /proc/PID/ns/net: entering it is another matter."""
    victim = staying(ends, name="victim")
    attempt = ends.running(victim)
    pid = job_process(ends, attempt)
    spec = attempt_of(ends.site, victim)["spec"]
    assert isinstance(spec, dict)
    name = f"/run/netns/lark-{NODE}-{spec['port']['name'].removeprefix('lj')}"
    script = f"#!/bin/sh\n./enter.py /proc/{pid}/ns/net {name} > @HERE@/live 2>&1\n" + payload.WAIT
    thief = run_job(ends.site, ALICE, script, {"enter.py": ENTER}, name="thief")
    said = wait_for_file(thief).splitlines()
    assert len(said) == 4, said
    theirs = victim.said("network").strip()
    assert not [line for line in said if "entered" in line or theirs in line], said
    copy = ends.site.worker.root / "enter.py"
    copy.write_text(ENTER, encoding="utf-8")
    as_root = ends.site.worker.need("python3", str(copy), f"/proc/{pid}/ns/net", name)
    assert as_root.count(f"plain entered {theirs}") == 2, "positive control: root can"
    with ends.ending(attempt, ends.running(thief)):
        victim.let_go()
        thief.let_go()
    victim.finish()
    thief.finish()


# --- several nodes of one job ---------------------------------------------------------------------------------------


def test_the_nodes_of_a_parallel_job_share_a_slice(ends: Ends) -> None:
    # After the tests that want every slot: the dedicated scheduler keeps its claims for minutes.
    text = MANY.replace("arguments = $(Process)", "arguments = $(Node)")
    text = "universe = parallel\nmachine_count = 3\n" + text + "queue\n"
    script = NAMED.replace("NAME", "node.$1") + "while [ ! -e @HERE@/go ]; do sleep 0.1; done\n"
    place = submit_many(ends, ALICE, text, script, "parallel")
    ends.site.pool.command("condor_submit", "submit", user=ALICE, cwd=f"/home/{ALICE}/parallel").need()
    try:
        wait_until("three nodes run", lambda: len(list(place.glob("node.*"))) == 3, 120, 0.3)
    except SiteError as error:
        raise AssertionError(ends.site.pool.command("condor_q", "-better-analyze").text[-3000:]) from error
    found = ends.site.larkctl.json("attempts")["attempts"]
    assert isinstance(found, list)
    assert len(found) == 3
    assert len({a["decision"]["slice"] for a in found}) == 1
    assert all(a["decision"]["slice"] for a in found)
    assert len({path.read_text() for path in place.glob("node.*")}) == 3, "each has a network of its own"
    with ends.ending(*ends.attempts()):
        (place / "go").touch()
    wait_until("it ends", lambda: queue_is_empty(ends), 60, 0.3)


# --- the machine ----------------------------------------------------------------------------------------------------


def test_after_a_reboot_nothing_of_before_is_left(ends: Ends) -> None:
    """Everything that lives in the kernel's memory goes and the boot id is another; files stay, and so does OVSDB."""
    site, worker = ends.site, ends.site.worker
    site.allowed_log += [
        re.compile(r"ovs-vswitchd|bridge=wn1-br|could not open network device lj|node=wn1"),
        re.compile(r"lj\d+"),
    ]
    job = staying(ends, job_lease_duration="20")
    attempt = ends.running(job)
    before = attempt_of(site, job)["spec"]
    assert isinstance(before, dict)
    master = site.pool.execute.master
    assert master is not None
    ends.stop_watcher()
    site.agent.stop(signal.SIGKILL)
    master.stop(number=signal.SIGKILL)
    for pid in inner(ends, r"^condor_|job\.sh|probe\.py"):
        worker.run(["kill", "-9", str(pid)])  # some die with others
    site.switches[NODE].kill_switch()
    worker.need("nft", "flush", "ruleset")
    for line in worker.need("ip", "netns", "list").splitlines():
        worker.need("ip", "netns", "del", line.split()[0])
    for line in worker.need("ip", "-o", "link", "show").splitlines():
        if found := re.match(r"\d+: (lj\d+)", line):
            worker.run(["ip", "link", "del", found[1]])
    worker.need("rm", "-rf", "/run/lark/agent.sock")
    fresh = worker.root / "boot_id"
    fresh.write_text("12345678-0000-4000-8000-123456789abc\n", encoding="ascii")
    worker.need("mount", "--bind", str(fresh), "/proc/sys/kernel/random/boot_id")
    site.switches[NODE].start_switch()
    for address in (f"{HOST_ADDRESS}/16", f"{HOST_ADDRESS_6}/48"):
        worker.run(["ip", "address", "add", address, "dev", WORKER_BRIDGE])
    worker.need("ip", "link", "set", WORKER_BRIDGE, "up")
    site.agent.start()
    ends.start_watcher()
    ends.quiet(WITHIN * SLACK)
    site.pool.execute.master = worker.spawn("condor_master", ["condor_master", "-f"], env=site.pool.environment)
    site.pool.wait_for_slot("HasLarkNetwork =?= true", 60)
    (job.directory / "done").unlink()
    wait_for_file(job, timeout=120)
    again = ends.running(job)
    assert again != attempt
    assert again.split("~")[1] == "12345678"
    with ends.ending(again):
        job.let_go()
    job.finish()


def test_the_checker_sees_what_somebody_leaves_behind(ends: Ends) -> None:
    """The control of all others: each kind of leak, made by hand, is named."""
    worker, switch = ends.site.worker, ends.site.switches[NODE]
    worker.need("ip", "netns", "add", f"lark-{NODE}-60-sealed")
    worker.need("ip", "link", "add", "lj61", "type", "veth", "peer", "name", "far61")
    switch.vsctl("add-port", WORKER_BRIDGE, "lj61", "--", "set", "Interface", "lj61", "external_ids:lark-attempt=old")
    sleeper = worker.spawn("inside", ["ip", "netns", "exec", f"lark-{NODE}-60-sealed", "sleep", "4401"])
    owner = ends.site.owners[BOB].uid
    home = worker.spawn("at-home", ["setpriv", f"--reuid={owner}", "--clear-groups", "sleep", "4402"])
    stray = worker.spawn("stray", ["setpriv", f"--reuid={owner}", "--clear-groups", "unshare", "-Urn", "sleep", "4403"])
    try:
        wait_until("all of them sleep", lambda: len(inner(ends, "^sleep 440[123]")) == 3, 5)
        said = "\n".join(ends.ask(do="look")["left"])
        for part in (
            f"namespace: lark-{NODE}-60-sealed",
            "sleep 4401",
            "device: lj61",
            "port: lj61 labelled old",
            "sleep 4402",
            "sleep 4403",
        ):
            assert part in said, said
        doctor = ends.site.agent.command("doctor", "--config", str(ends.site.agent.config), "--only", "leaks")
        assert doctor.code == 2, doctor.text
        assert "fault: leaks.device: lj61" in doctor.out
    finally:
        for daemon in (sleeper, home, stray):
            daemon.stop(number=signal.SIGKILL)
        switch.vsctl("del-port", WORKER_BRIDGE, "lj61")
        worker.need("ip", "link", "del", "lj61")
        worker.need("ip", "netns", "del", f"lark-{NODE}-60-sealed")
    ends.quiet(5)
    doctor = ends.site.agent.command("doctor", "--config", str(ends.site.agent.config), "--only", "leaks")
    assert doctor.code == 0, doctor.text
