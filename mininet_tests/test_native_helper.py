"""The native helper against a fake agent: real namespaces, real capabilities, an ordinary user.

Needs root, a C compiler and setcap. Each refusal stands beside the same call with an honest agent (`test_enters…`), so
that a helper that never runs anything cannot pass. The helper is installed by the project's own installer; only the
time-outs are compiled shorter.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from condor_bridge import native_install
from mininet_tests.helper_agent import FakeAgent, identity_of, new_namespace

SHORT = {
    "LARK_ANSWER_MS": "1500",
    "LARK_EXIT_MS": "1500",
    "LARK_EXITED_MS": "1500",
    "LARK_GONE_MS": "300",
    "LARK_PING_MS": "1000",
    "LARK_CONNECT_MS": "700",
}
NOBODY = pwd.getpwnam("nobody")
CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
PR_SET_NO_NEW_PRIVS = 38
SHOW = "readlink /proc/self/ns/net; grep ^Cap /proc/self/status; echo args: $0 $1; echo env: $MARK"
libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Place:
    """An installed helper and what it needs."""

    libexec: Path
    socket: Path
    scratch: Path
    namespace: int
    """Descriptor of a network namespace that is not ours."""

    @property
    def error_file(self) -> Path:
        return self.scratch / ".job_wrapper_failure"

    def run(
        self,
        program: str,
        *arguments: str,
        stdin: str = "",
        before: Callable[[], None] | None = None,
        user: int = NOBODY.pw_uid,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.libexec / program), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=20,
            user=user,
            group=NOBODY.pw_gid,
            extra_groups=[],
            cwd=self.scratch,
            env={
                "PATH": os.environ["PATH"],
                "_CONDOR_WRAPPER_ERROR_FILE": str(self.error_file),
                "MARK": "kept",
                **(env or {}),
            },
            preexec_fn=before,
        )

    def run_job(self, **more: object) -> subprocess.CompletedProcess[str]:
        return self.run("lark-job-wrapper", "/bin/sh", "-c", SHOW, "zero", "a b", **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def installed() -> Iterator[Path]:
    """The helper in a directory of root, with a wrapped plugin that shows where it runs."""
    assert os.geteuid() == 0, "these tests need root: the helper gets a file capability"
    top = Path(tempfile.mkdtemp(prefix="lark-native-test-", dir="/var/tmp"))
    top.chmod(0o755)
    real = top / "show_plugin"
    real.write_text(f"#!/bin/sh\necho plugin $0 $1; {SHOW}\n")
    real.chmod(0o755)
    native_install.install(top / "libexec", str(top / "agent.sock"), [real], defines=SHORT)
    yield top
    shutil.rmtree(top)


@pytest.fixture
def place(installed: Path) -> Iterator[Place]:
    scratch = installed / "scratch"
    scratch.mkdir(mode=0o700)
    os.chown(scratch, NOBODY.pw_uid, NOBODY.pw_gid)
    namespace = new_namespace()
    yield Place(installed / "libexec", installed / "agent.sock", scratch, namespace)
    os.close(namespace)
    shutil.rmtree(scratch)


def assert_not_run(done: subprocess.CompletedProcess[str], place: Place, said: str) -> None:
    assert done.returncode != 0
    assert "net:[" not in done.stdout, "the job ran"
    assert said in done.stderr
    assert said in place.error_file.read_text()
    # The starter looks for the file as another user, in the job's group.
    assert place.scratch.stat().st_mode & 0o011 == 0o011
    assert stat.S_IMODE(place.error_file.stat().st_mode) == 0o644


def test_enters_the_namespace_without_power(place: Place) -> None:
    with FakeAgent(place.socket, pass_fds=[place.namespace]) as agent:
        done = place.run_job()
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == identity_of(place.namespace)
    assert lines[0] != os.readlink("/proc/self/ns/net")
    capabilities = dict(line.split(":\t") for line in lines if line.startswith("Cap"))
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(capabilities[name], 16) == 0
    # The bounding set stays: set-uid programs of the job keep working.
    assert capabilities["CapBnd"] == _own("CapBnd")
    assert "args: zero a b" in lines
    assert "env: kept" in lines
    assert agent.requests == ["LARK1 enter job", "LARK1 exited"]
    assert not place.error_file.exists()


def _own(name: str) -> str:
    return next(
        line.split(":\t")[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)
    )


def test_no_descriptor_is_left_to_the_job(place: Place) -> None:
    with FakeAgent(place.socket, pass_fds=[place.namespace]):
        done = place.run("lark-job-wrapper", "/bin/sh", "-c", "ls /proc/$$/fd")
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= {"0", "1", "2"}


def test_works_with_closed_standard_descriptors(place: Place) -> None:
    def close_all() -> None:
        os.close(0)
        os.close(2)

    with FakeAgent(place.socket, pass_fds=[place.namespace]):
        done = place.run_job(before=close_all)
    assert done.stdout.splitlines()[0] == identity_of(place.namespace)


def test_exit_status_of_the_job_is_kept(place: Place) -> None:
    with FakeAgent(place.socket, pass_fds=[place.namespace]):
        assert place.run("lark-job-wrapper", "/bin/sh", "-c", "exit 42").returncode == 42


def test_command_that_is_not_there(place: Place) -> None:
    with FakeAgent(place.socket, pass_fds=[place.namespace]):
        done = place.run("lark-job-wrapper", "/nonexistent/command")
    assert_not_run(done, place, "cannot execute /nonexistent/command")


def test_agent_that_is_not_root(place: Place) -> None:
    with FakeAgent(place.socket, pass_fds=[place.namespace], euid=NOBODY.pw_uid) as agent:
        done = place.run_job()
    assert_not_run(done, place, "not root")
    assert agent.requests == [], "nothing is said to a stranger"


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (b"banana", "nonsense"),
        (b"ok ", "nonsense"),
        (b"OK", "nonsense"),
        (b"hold 102", "nonsense"),
        (b"hold -5 x", "nonsense"),
        (b"hold 99999999999999999999 x", "nonsense"),
        (b"ok\n", "not plain text"),
        (b"\xff\xfe", "not plain text"),
        (b"ok\0", "not plain text"),
        (b"", "without an answer"),
        (b"x" * 1025, "too long"),
        (b"hold 102 no bridge confirmed", "lark hold 102: no bridge confirmed"),
        (b"refused not a starter", "lark hold 105: refused by the agent: not a starter"),
    ],
)
def test_answers_that_are_not_ok(place: Place, reply: bytes, said: str) -> None:
    # A namespace comes along, so that only the words decide.
    with FakeAgent(place.socket, reply=reply, pass_fds=[place.namespace]) as agent:
        done = place.run_job()
    assert_not_run(done, place, said)
    assert agent.requests == ["LARK1 enter job"]


def test_ok_without_a_namespace(place: Place) -> None:
    with FakeAgent(place.socket):
        assert_not_run(place.run_job(), place, "passed no network namespace")


@pytest.mark.parametrize("kind", ["/dev/null", "/etc", "/proc/self/ns/mnt", "/proc/self/ns/user"])
def test_descriptor_of_another_kind(place: Place, kind: str) -> None:
    descriptor = os.open(kind, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with FakeAgent(place.socket, pass_fds=[descriptor]):
            assert_not_run(place.run_job(), place, "not a network namespace")
    finally:
        os.close(descriptor)


def test_the_host_network_itself(place: Place) -> None:
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with FakeAgent(place.socket, pass_fds=[own]):
            assert_not_run(place.run_job(), place, "the network that HTCondor itself is in")
    finally:
        os.close(own)


def test_two_descriptors(place: Place) -> None:
    with FakeAgent(place.socket, pass_fds=[place.namespace, place.namespace]):
        assert_not_run(place.run_job(), place, "passes too much")


def test_agent_that_never_answers(place: Place) -> None:
    began = time.monotonic()
    with FakeAgent(place.socket, reply=None):
        done = place.run_job()
    assert_not_run(done, place, "has not answered within")
    assert time.monotonic() - began < 8


def test_no_agent(place: Place) -> None:
    assert_not_run(place.run_job(), place, "is lark-agent running on this node?")


def test_agent_that_comes_back_is_waited_for(place: Place) -> None:
    with contextlib.ExitStack() as stack:
        timer = threading.Timer(0.3, lambda: stack.enter_context(FakeAgent(place.socket, pass_fds=[place.namespace])))
        timer.start()
        done = place.run_job()
        timer.join()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == identity_of(place.namespace)


def test_root_is_refused(place: Place) -> None:
    with FakeAgent(place.socket, pass_fds=[place.namespace]) as agent:
        done = place.run_job(user=0)
    assert done.returncode != 0
    assert "will not run a job as root" in done.stderr
    assert "net:[" not in done.stdout
    assert agent.requests == []


def no_new_privileges() -> None:
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0


def user_namespace() -> None:
    assert libc.unshare(CLONE_NEWUSER) == 0


def test_no_new_privileges_is_named(place: Place) -> None:
    # preexec_fn runs after the change of user: no capability is kept that would hide the effect.
    with FakeAgent(place.socket, pass_fds=[place.namespace]) as agent:
        done = place.run_job(before=no_new_privileges)
        assert_not_run(done, place, "no_new_privs")
        hook = place.run("lark-hook-prepare", before=no_new_privileges)
    assert agent.requests == [], "the attempt does not begin"
    assert "HookStatusCode = 103" in hook.stdout
    assert "no_new_privs" in hook.stdout


def test_user_namespace_is_named(place: Place) -> None:
    with FakeAgent(place.socket, pass_fds=[place.namespace]) as agent:
        done = place.run_job(before=user_namespace)
    assert done.returncode != 0
    assert "net:[" not in done.stdout
    assert "user namespace" in done.stderr
    assert agent.requests == []


def test_missing_capability_is_named(place: Place) -> None:
    # A copy has no capability. It stands where a real one might after a careless upgrade.
    copy = place.libexec.parent / "copied"
    copy.mkdir(mode=0o755)
    for name, called in (("lark-job", "lark-job-wrapper"), ("lark-hook", "lark-hook-prepare")):
        shutil.copyfile(place.libexec / name, copy / name)
        (copy / name).chmod(0o755)
        (copy / called).symlink_to(name)
    shutil.copyfile(place.libexec / "lark-socket", copy / "lark-socket")
    try:
        with FakeAgent(place.socket, pass_fds=[place.namespace]) as agent:
            other = Place(copy, place.socket, place.scratch, place.namespace)
            done = other.run_job()
            hook = other.run("lark-hook-prepare")
            assert agent.requests == [], "the attempt does not begin"
            assert place.run("lark-hook-prepare").stdout == "", "positive control: where it has the capability it does"
            assert agent.requests == ["LARK1 begin"]
        assert_not_run(done, place, "lacks the file capability")
        assert "HookStatusCode = 103" in hook.stdout
        assert "lacks the file capability" in hook.stdout
    finally:
        shutil.rmtree(copy)


def test_socket_file_of_a_stranger_is_not_believed(place: Place) -> None:
    """What a user can arrange by a hard link of the helper into his own directory, if the kernel lets him."""
    own = place.scratch / "mine"
    own.mkdir()
    os.link(place.libexec / "lark-job", own / "lark-job")
    (own / "lark-job-wrapper").symlink_to("lark-job")
    (own / "lark-socket").write_text(f"{place.socket}\n")
    for path in (own, *own.iterdir()):
        if not path.samefile(place.libexec / "lark-job"):
            os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid, follow_symlinks=False)
    with FakeAgent(place.socket, pass_fds=[place.namespace]) as agent:
        done = Place(own, place.socket, place.scratch, place.namespace).run_job()
    assert_not_run(done, place, "must belong to root")
    assert agent.requests == []


def test_environment_of_the_job_is_kept_and_does_not_touch_the_helper(place: Place) -> None:
    """The C library takes these out of a program with a capability; a job without them would break."""
    given = {
        "LD_LIBRARY_PATH": str(place.scratch),
        "LD_PRELOAD": "/nonexistent/lark-test.so",
        "LD_AUDIT": "",
        "TMPDIR": "/tmp/x",
        "GLIBC_TUNABLES": "glibc.malloc.check=0",
        "TZDIR": "/y",
        "LARK_SOCKET": "/nowhere",
        "EMPTY": "",
        "LINES": "one\ntwo",
    }
    with FakeAgent(place.socket, pass_fds=[place.namespace]):
        done = place.run("lark-job-wrapper", "/usr/bin/env", "-0", env=given)
    assert done.returncode == 0, done.stderr
    seen = dict(entry.split("=", 1) for entry in done.stdout.split("\0") if entry)
    assert seen == {
        "PATH": os.environ["PATH"],
        "_CONDOR_WRAPPER_ERROR_FILE": str(place.error_file),
        "MARK": "kept",
        **given,
    }
    # The job's loader complains of the missing library once; the helper's own must not have tried it.
    assert done.stderr.count("lark-test.so") == 1


def test_empty_environment(place: Place) -> None:
    with FakeAgent(place.socket, pass_fds=[place.namespace]):
        bare = subprocess.run(
            ["/usr/bin/env", "-i", str(place.libexec / "lark-job-wrapper"), "/usr/bin/env"],
            user=NOBODY.pw_uid,
            group=NOBODY.pw_gid,
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=20,
        )
    assert (bare.returncode, bare.stdout) == (0, ""), bare.stderr


def test_a_job_cannot_enter_again(place: Place) -> None:
    """Inside its network already, the namespace passed is the one it is in."""
    with FakeAgent(place.socket, pass_fds=[place.namespace]):
        done = place.run("lark-job-wrapper", str(place.libexec / "lark-job-wrapper"), "/bin/sh", "-c", SHOW)
    assert_not_run(done, place, "the network that HTCondor itself is in")


def test_error_file_is_not_followed_as_a_link(place: Place) -> None:
    target = place.scratch / "precious"
    target.write_text("untouched")
    place.error_file.symlink_to(target)
    done = place.run_job()
    assert done.returncode != 0
    assert target.read_text() == "untouched"


def test_hook_prepare_says_hold_so_that_htcondor_reads_it(place: Place) -> None:
    ad = 'Owner = "alice"\nEnvironment = "SECRET=hunter2"\n' * 1000
    with FakeAgent(place.socket) as agent:
        good = place.run("lark-hook-prepare", stdin=ad)
    assert (good.returncode, good.stdout) == (0, "")
    assert agent.requests == ["LARK1 begin"]
    with FakeAgent(place.socket, reply=b'hold 101 LarkNetwork = "\\x" is not one of "none"'):
        bad = place.run("lark-hook-prepare", stdin=ad)
    assert bad.returncode == 0
    assert bad.stdout == (
        "HookStatusCode = 101\nHookStatusMessage = \"lark: LarkNetwork = '/x' is not one of 'none'\"\n"
    )
    assert "hunter2" not in bad.stdout + bad.stderr


@pytest.mark.parametrize(
    ("reply", "code"), [(b"refused no", 105), (b"banana", 103), (b"", 103), (None, 103), (b"hold 104 full", 104)]
)
def test_hook_prepare_codes(place: Place, reply: bytes | None, code: int) -> None:
    with FakeAgent(place.socket, reply=reply):
        done = place.run("lark-hook-prepare")
    assert done.stdout.startswith(f"HookStatusCode = {code}\n")


def test_hook_prepare_without_agent_or_with_a_stranger(place: Place) -> None:
    assert place.run("lark-hook-prepare").stdout.startswith("HookStatusCode = 103\n")
    with FakeAgent(place.socket, euid=NOBODY.pw_uid):
        assert place.run("lark-hook-prepare").stdout.startswith("HookStatusCode = 103\n")


def test_hook_closes_a_descriptor_it_did_not_ask_for(place: Place) -> None:
    with FakeAgent(place.socket, pass_fds=[place.namespace]):
        assert place.run("lark-hook-prepare").stdout == ""


def test_hook_exit_never_fails_the_job(place: Place) -> None:
    with FakeAgent(place.socket) as agent:
        assert place.run("lark-hook-exit", "exit", stdin="Owner = 1\n").returncode == 0
    assert agent.requests == ["LARK1 stage-out"]
    gone = place.run("lark-hook-exit", "exit")
    assert gone.returncode == 0
    assert "is lark-agent running" in gone.stderr


def test_ping_prints_an_ad(place: Place) -> None:
    with FakeAgent(place.socket) as agent:
        assert "HasLarkNetwork = true\n" in place.run("lark-ping").stdout
    assert agent.requests == ["LARK1 ping"]
    gone = place.run("lark-ping")
    assert gone.returncode == 0
    assert "HasLarkNetwork = false\n" in gone.stdout
    assert 'LarkNetworkReason = "the agent does not answer' in gone.stdout


def test_plugin_runs_in_the_namespace(place: Place) -> None:
    with FakeAgent(place.socket, pass_fds=[place.namespace]) as agent:
        done = place.run("plugins/show_plugin", "-infile")
    assert done.returncode == 0, done.stderr
    assert f"plugin {place.libexec.parent}/show_plugin -infile" in done.stdout
    assert identity_of(place.namespace) in done.stdout
    assert "CapEff:\t0000000000000000" in done.stdout
    assert agent.requests == ["LARK1 enter plugin"]


def test_plugin_is_asked_for_its_abilities_outside(place: Place) -> None:
    with FakeAgent(place.socket, pass_fds=[place.namespace]) as agent:
        done = place.run("plugins/show_plugin", "-classad")
    assert done.returncode == 0, done.stderr
    assert os.readlink("/proc/self/ns/net") in done.stdout
    assert "CapEff:\t0000000000000000" in done.stdout
    assert agent.requests == []


def test_plugin_failure_is_told_in_the_outfile(place: Place) -> None:
    out = place.scratch / "plugin.out"
    with FakeAgent(place.socket, reply=b'hold 102 the controller "was" gone'):
        done = place.run("plugins/show_plugin", "-infile", "x", "-outfile", str(out))
    assert done.returncode != 0
    assert "plugin" not in done.stdout
    assert out.read_text() == (
        '[ TransferSuccess = false; TransferUrl = ""; TransferError = "lark hold 102: the controller \'was\' gone" ]\n'
    )


def test_plugin_path_does_not_come_from_a_stranger(place: Place) -> None:
    line = place.libexec / "plugins" / "show_plugin.real"
    os.chown(line, NOBODY.pw_uid, NOBODY.pw_gid)
    try:
        with FakeAgent(place.socket, pass_fds=[place.namespace]):
            done = place.run("plugins/show_plugin", "-classad")
        assert done.returncode != 0
        assert "must be a file of root" in done.stderr
    finally:
        os.chown(line, 0, 0)


def test_installing_again_changes_nothing(place: Place) -> None:
    def picture() -> dict[str, tuple[int, int]]:
        return {p.name: (p.lstat().st_ino, p.lstat().st_mtime_ns) for p in place.libexec.iterdir() if "job" in p.name}

    before = picture()
    native_install.install(place.libexec, str(place.socket), [place.libexec.parent / "show_plugin"], defines=SHORT)
    assert picture() == before


def test_install_refuses_unsafe_places(installed: Path) -> None:
    open_to_all = installed / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    strange = installed / "strange"
    strange.mkdir()
    os.chown(strange, NOBODY.pw_uid, NOBODY.pw_gid)
    private = installed / "private"
    private.mkdir(mode=0o700)
    for place, said in ((open_to_all, "writable by everybody"), (strange, "belongs to uid"), (private, "closed to")):
        with pytest.raises(native_install.InstallError, match=said):
            native_install.install(place / "lark")
        assert not (place / "lark").exists()


def test_install_refuses_a_nosuid_mount(installed: Path) -> None:
    """In a mount namespace of its own, so that no mount of this machine changes."""
    point = installed / "nosuid"
    point.mkdir()
    program = (
        "import ctypes, sys, pathlib\n"
        "from condor_bridge import native_install as n\n"
        f"assert ctypes.CDLL(None).unshare({CLONE_NEWNS}) == 0\n"
        "import subprocess\n"
        "subprocess.run(['mount', '--make-rprivate', '/'], check=True)\n"
        "subprocess.run(['mount', '-t', 'tmpfs', '-o', 'mode=755,' + sys.argv[2], 'none', sys.argv[1]], check=True)\n"
        "n.install(pathlib.Path(sys.argv[1]) / 'lark')\n"
    )

    def run(option: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, str(point), option]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()})

    refused = run("nosuid")
    assert refused.returncode != 0
    assert "mounted nosuid" in refused.stderr
    accepted = run("suid")
    assert accepted.returncode == 0, accepted.stderr
