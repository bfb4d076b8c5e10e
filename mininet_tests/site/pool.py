"""A real HTCondor pool on two simulated machines, from a private prefix: an access point and an execution point.

The access point has collector, negotiator and schedd, and the users log in there; the execution point has the startd,
and nobody logs in there (Lark's guard on the uids of job owners would stop their shadows and tools too). Works with the
prefixes of 23.x and 25.x. Jobs are submitted with `condor_submit` as ordinary users, read with `condor_q -json` and
`condor_history -json`.

Invariants: the master never tunes the carrying machine's kernel (`ENABLE_KERNEL_TUNING`), never touches its cgroups
(`BASE_CGROUP`), and everything it writes lies in the machines' own directories.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from mininet_tests.site.namespaces import Daemon, Machine, Output, SiteError, wait_until
from mininet_tests.site.users import Account

UID_DOMAIN = "demo.lark"
CONFIG = Path("/etc/condor/condor_config")
PORT = 9618
PASSWORD = Path("/etc/condor/pool-password")


class JobStatus(IntEnum):
    IDLE = 1
    RUNNING = 2
    REMOVED = 3
    COMPLETED = 4
    HELD = 5
    TRANSFERRING = 6
    SUSPENDED = 7


AdValue = str | int | float | bool | list[object] | dict[str, object] | None


@dataclass(frozen=True, slots=True)
class Job:
    """A submitted job: its id as condor_q shows it, and the owner's directory it was submitted from."""

    pool: Pool
    id: str
    user: str
    directory: Path
    """On the carrying machine."""

    def output(self) -> str:
        return self._read("out")

    def errors(self) -> str:
        return self._read("err")

    def said(self, name: str) -> str:
        """What the job wrote into a file of its submit directory while it runs (it shares the file system)."""
        return self._read(name)

    def let_go(self) -> None:
        """Make the file `go`, for which a waiting job looks."""
        (self.directory / "go").touch()

    def _read(self, name: str) -> str:
        path = self.directory / name
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def ad(self) -> dict[str, AdValue]:
        """The job's ad, from the queue or, when it has left it, from history; empty if neither has it."""
        return self.pool.ad(self.id)

    def status(self) -> JobStatus | None:
        value = self.ad().get("JobStatus")
        return JobStatus(value) if isinstance(value, int) else None

    def wait(self, *wanted: JobStatus, timeout: float = 60) -> dict[str, AdValue]:
        """Wait until the job is in one of these states; its ad then. SiteError tells the state and hold reason."""
        seen: dict[str, AdValue] = {}

        def probe() -> bool:
            seen.clear()
            seen.update(self.ad())
            return seen.get("JobStatus") in wanted

        try:
            wait_until(f"job {self.id} of {self.user}: {'/'.join(w.name for w in wanted)}", probe, timeout, 0.25)
        except SiteError as error:
            state = {key: seen.get(key) for key in ("JobStatus", "HoldReason", "NumJobStarts", "LastRejMatchReason")}
            raise SiteError(
                f"{error}; it is {state}; output {self.output()[-500:]!r} {self.errors()[-500:]!r}"
            ) from None
        return dict(seen)

    def finish(self, timeout: float = 60) -> str:
        """Wait until the job completed; its standard output."""
        ad = self.wait(JobStatus.COMPLETED, JobStatus.HELD, JobStatus.REMOVED, timeout=timeout)
        if ad["JobStatus"] != JobStatus.COMPLETED:
            raise SiteError(f"job {self.id} did not complete: {ad.get('HoldReason') or ad.get('RemoveReason')}")
        return self.output()

    def remove(self) -> None:
        self.pool.command("condor_rm", self.id, user=self.user)


@dataclass(slots=True)
class Member:
    """One machine of the pool."""

    machine: Machine
    address: str
    daemons: str
    master: Daemon | None = None

    @property
    def local(self) -> Path:
        return self.machine.root / "condor"

    @property
    def configuration(self) -> Path:
        return self.machine.root / "etc" / "condor"


@dataclass(slots=True)
class Pool:
    """Start with `start`, then `submit`; `stop` waits until every daemon has ended."""

    access: Member
    execute: Member
    homes: Path
    """What the access point has as /home."""
    prefix: Path
    owners: Mapping[str, Account]
    daemon: Account
    environment: dict[str, str] = field(default_factory=dict)
    submitted: int = 0

    @property
    def members(self) -> tuple[Member, Member]:
        return self.access, self.execute

    def configure(self, access: Mapping[str, str], execute: Mapping[str, str]) -> None:
        """Write all configuration; `access`, `execute`: names and texts of further files, such as Lark's templates."""
        self.environment = {
            "PATH": f"{self.prefix}/usr/bin:{self.prefix}/usr/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
            "CONDOR_CONFIG": str(CONFIG),
        }
        for member, files in ((self.access, access), (self.execute, execute)):
            self._prepare(member)
            for name, text in files.items():
                (member.configuration / "config.d" / name).write_text(text, encoding="utf-8")

    def start(self, wait_for_slot: str = "true") -> None:
        """Start the daemons of a configured pool.

        Returns when the collector has a slot that fulfils the expression `wait_for_slot` and the schedd answers.
        """
        for member in self.members:
            member.master = member.machine.spawn("condor_master", ["condor_master", "-f"], env=self.environment)
        try:
            wait_until("the schedd answers", lambda: self.command("condor_q", "-totals").code == 0, 30, 0.5)
            self.wait_for_slot(wait_for_slot, 60)
        except SiteError as error:
            ends = "\n".join(
                _log_end(m, name) for m in self.members for name in ("MasterLog", "StartLog", "CollectorLog")
            )
            raise SiteError(f"{error}\n{ends}") from None

    def _prepare(self, member: Member) -> None:
        for name in ("", "log", "spool", "execute", "lock", "run", "cred"):
            path = member.local / name
            path.mkdir(parents=True, exist_ok=True)
            os.chown(path, self.daemon.uid, self.daemon.uid)
            path.chmod(0o755)
        (member.configuration / "config.d").mkdir(parents=True, exist_ok=True)
        (member.configuration / "condor_config").write_text(self._base(member), encoding="utf-8")
        # The daemons know each other by a pool password; the users are known to the schedd by the file system.
        said = member.machine.run(
            ["condor_store_cred", "-f", str(PASSWORD), "-p", "only-of-this-site"], env=self.environment
        )
        said.need()

    def wait_for_slot(self, constraint: str, timeout: float) -> None:
        """Wait until the collector has a slot with this property."""

        def probe() -> bool:
            said = self.command("condor_status", "-constraint", constraint, "-af", "Name")
            return said.code == 0 and bool(said.out.strip())

        wait_until(f"a slot with {constraint}", probe, timeout, 0.5)

    def stop(self) -> None:
        """SIGQUIT (fast shutdown) to the master; wait for it: it waits for its children."""
        for member in reversed(self.members):
            if member.master is not None:
                member.master.stop(timeout=40, number=signal.SIGQUIT)
                member.master = None

    def command(self, *argv: str, user: str | None = None, cwd: Path | str = "/", timeout: float = 30) -> Output:
        """Run one of HTCondor's commands on the access point."""
        return self.access.machine.run(argv, user=user, env=self.environment, cwd=cwd, timeout=timeout)

    def reconfigure(self, member: Member, name: str, text: str | None) -> None:
        """Write (or, with None, remove) a further configuration file of a member and let its daemons read it."""
        path = member.configuration / "config.d" / name
        if text is None:
            path.unlink()
        else:
            path.write_text(text, encoding="utf-8")
        member.machine.run(["condor_reconfig"], env=self.environment).need()

    def submit(
        self,
        user: str,
        lines: Mapping[str, str],
        files: Mapping[str, str] | None = None,
        name: str = "job",
        count: int = 1,
    ) -> Job:
        """Write a submit file (and further files) into a directory of the user's; `condor_submit` it as the user.

        `@HERE@` in the files stands for that directory: jobs use it to talk to the story while they run. Of several
        jobs (`count`) it is the first that is returned.
        """
        said, directory = self.try_submit(user, lines, files, name, count)
        first = re.match(r"(\d+\.\d+)", said.need().out)
        if first is None:
            raise SiteError(f"condor_submit said {said.text!r}")
        return Job(self, first.group(1), user, directory)

    def try_submit(
        self,
        user: str,
        lines: Mapping[str, str],
        files: Mapping[str, str] | None = None,
        name: str = "job",
        count: int = 1,
    ) -> tuple[Output, Path]:
        """The same, when a refusal is expected: what condor_submit said, and the directory."""
        account = self.owners[user]
        self.submitted += 1
        folder = f"{self.submitted:02d}-{name}"
        outside = self.homes / user / folder
        outside.mkdir(parents=True)
        inside = account.home / folder
        # `My.` names reach condor_submit untouched: this is exactly what an owner writes.
        defaults = {
            "universe": "vanilla",
            "output": "out",
            "error": "err",
            "log": "log",
            "should_transfer_files": "YES",
            "when_to_transfer_output": "ON_EXIT",
            "request_cpus": "1",
            "request_memory": "64",
            "request_disk": "16384",
        }
        text = "\n".join(f"{key} = {value}" for key, value in (defaults | dict(lines)).items()) + f"\nqueue {count}\n"
        for file, content in {"submit": text, **(files or {})}.items():
            path = outside / file
            path.write_text(content.replace("@HERE@", str(inside)), encoding="utf-8")
            path.chmod(0o755)
        for path in (outside, *outside.iterdir()):
            os.chown(path, account.uid, account.uid)
        return self.command("condor_submit", "-terse", "submit", user=user, cwd=inside), outside

    def ad(self, job: str) -> dict[str, AdValue]:
        for tool in (["condor_q", "-json", job], ["condor_history", "-json", "-limit", "1", job]):
            said = self.command(*tool)
            if said.code == 0 and said.out.strip():
                ads = json.loads(said.out)
                if ads:
                    return dict(ads[0])
        return {}

    def version(self) -> str:
        said = self.command("condor_version").out
        found = re.search(r"CondorVersion: (\S+)", said)
        return found.group(1) if found else "unknown"

    def logs(self) -> list[Path]:
        return sorted(log for member in self.members for log in (member.local / "log").glob("*Log*"))

    def _base(self, member: Member) -> str:
        usr = self.prefix / "usr"
        return f"""\
RELEASE_DIR = {usr}
LOCAL_DIR = {member.local}
LOCAL_CONFIG_DIR = /etc/condor/config.d
REQUIRE_LOCAL_CONFIG_FILE = False
BIN = {usr}/bin
SBIN = {usr}/sbin
LIB = {usr}/lib/condor
LIBEXEC = {usr}/libexec/condor
SHARE = {usr}/share/condor
LOG = $(LOCAL_DIR)/log
RUN = $(LOCAL_DIR)/run
LOCK = $(LOCAL_DIR)/lock
SPOOL = $(LOCAL_DIR)/spool
EXECUTE = $(LOCAL_DIR)/execute
CRED_STORE_DIR = $(LOCAL_DIR)/cred
CONDOR_IDS = {self.daemon.uid}.{self.daemon.uid}
CONDOR_HOST = {self.access.address}
NETWORK_INTERFACE = {member.address}
COLLECTOR_HOST = {self.access.address}:{PORT}
USE_SHARED_PORT = True
SHARED_PORT_PORT = {PORT}
DAEMON_LIST = MASTER, {member.daemons}
UID_DOMAIN = {UID_DOMAIN}
FILESYSTEM_DOMAIN = {member.machine.name}.{UID_DOMAIN}
TRUST_UID_DOMAIN = True
SEC_DEFAULT_AUTHENTICATION = PREFERRED
SEC_DEFAULT_AUTHENTICATION_METHODS = FS, PASSWORD
SEC_PASSWORD_FILE = {PASSWORD}
ALLOW_READ = *
ALLOW_WRITE = *
ALLOW_DAEMON = condor_pool@*, condor@*, root@*
ALLOW_ADMINISTRATOR = condor@*, root@*
ALLOW_NEGOTIATOR = condor_pool@*, condor@*, root@*
# The carrying machine's kernel and cgroups are not ours to change.
ENABLE_KERNEL_TUNING = False
BASE_CGROUP =
CGROUP_MEMORY_LIMIT_POLICY = none
PREEN =
# The startd would try Java, which leaves a directory in /tmp.
JAVA =
# One large machine, however small the one that carries it: several jobs of the story run side by side.
NUM_CPUS = 8
MEMORY = 4096
NUM_SLOTS = 1
NUM_SLOTS_TYPE_1 = 1
SLOT_TYPE_1 = 100%
SLOT_TYPE_1_PARTITIONABLE = True
START = True
SUSPEND = False
PREEMPT = False
KILL = False
NEGOTIATOR_INTERVAL = 2
NEGOTIATOR_CYCLE_DELAY = 1
NEGOTIATOR_MIN_INTERVAL = 1
SCHEDD_INTERVAL = 2
SCHEDD_MIN_INTERVAL = 1
UPDATE_INTERVAL = 5
SHADOW_QUEUE_UPDATE_INTERVAL = 5
STARTER_UPDATE_INTERVAL = 5
JOB_START_DELAY = 0
BENCHMARKS_PERIOD = 0
RunBenchmarks = False
STARTER_ALLOW_RUNAS_OWNER = True
MAX_DEFAULT_LOG = 20 Mb
"""


def _log_end(member: Member, name: str) -> str:
    path = member.local / "log" / name
    return f"{path}:\n" + "\n".join(path.read_text(errors="replace").splitlines()[-12:]) if path.exists() else ""
