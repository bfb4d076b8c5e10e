"""What the commands say to an administrator who mistyped something, and what `check` warns of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from policies.wire import NodeStatus
from ryu_apps.rest.auth import TokenRole, new_token
from tests import commands
from tests.unit.controller.rig import POLICY, SITE
from tests.unit.controller.test_config import GOOD, ROOT, command


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "site.yaml").write_text(SITE)
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "controller.yaml").write_text(GOOD)
    new_token(tmp_path / "tokens.yaml", TokenRole.AGENT, "wn1")
    return tmp_path


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_check_warns_of_what_is_probably_not_meant(home: Path) -> None:
    argv = ("check", "--config", str(home / "controller.yaml"))
    for strict in ((), ("--strict",)):  # the control: nothing to say
        good = command(*argv, *strict)
        assert (good.returncode, good.stderr) == (0, "")
    (home / "site.yaml").write_text(SITE.replace("guards: [licence]", "guards: [files]"))
    warned = command(*argv)
    assert warned.returncode == 0
    assert "good" in warned.stdout
    assert "WARNING lark policy.yaml:4:" in warned.stderr
    assert "no gate guards `licence`" in warned.stderr
    strict = command(*argv, "--strict")
    assert strict.returncode == 1
    assert "no gate guards `licence`" in strict.stderr
    assert "1 warning, and --strict takes none" in strict.stderr


def test_check_compares_the_policy_with_the_pool(home: Path) -> None:
    argv = ("check", "--config", str(home / "controller.yaml"))
    (home / "ads").write_text('ClusterId = 1\nProcId = 0\nLarkGroup = "nobody"\n')
    (home / "ep").write_text("STARTD_JOB_ATTRS = $(STARTD_JOB_ATTRS) User\n")
    (home / "ap").write_text("IMMUTABLE_JOB_ATTRS = Owner\n")
    files = ("--condor-config", str(home / "ep"), "--condor-config", str(home / "ap"))
    warned = command(*argv, "--ads", str(home / "ads"), *files)
    assert warned.returncode == 0
    assert "holds for none of the 1 job ads given; larkgroup is 'nobody' in them" in warned.stderr
    assert "attribute `larkgroup` is not in STARTD_JOB_ATTRS" in warned.stderr
    assert "rests on `larkgroup`, which condor_qedit can change" in warned.stderr
    listed = ("--startd-job-attrs", "LarkGroup LarkNetwork LarkSlice User LarkLicence")
    listed += ("--immutable-job-attrs", "LarkGroup,LarkLicence")
    (home / "ads").write_text('[{"ClusterId": 1, "LarkGroup": "physics", "LarkNetwork": "none"}]')
    good = command(*argv, *files, *listed)
    assert (good.returncode, good.stderr) == (0, "")


@pytest.mark.parametrize(
    ("option", "text", "said"),
    [
        ("--ads", "ID OWNER\n", "line 1 is not `Attribute = value`: 'ID OWNER'"),
        ("--ads", None, "No such file or directory"),
        ("--condor-config", "nothing\n", "no list of job attributes in it"),
    ],
)
def test_check_says_what_is_wrong_with_what_it_is_given(home: Path, option: str, text: str | None, said: str) -> None:
    if text is not None:
        (home / "given").write_text(text)
    refused = command("check", "--config", str(home / "controller.yaml"), option, str(home / "given"))
    assert refused.returncode == 2
    assert said in refused.stderr
    assert "given" in refused.stderr


def test_a_framework_that_is_not_there_is_one_sentence(home: Path) -> None:
    begin = f"sys.argv = ['lark-controller', 'run', '--config', {str(home / 'none.yaml')!r}, '--engine', 'ryu']\n"
    end = "from ryu_apps.cli import main; main()"
    absent = python(f"import sys; sys.modules['ryu'] = None; {begin}{end}")
    assert absent.returncode == 2
    assert absent.stdout == ""
    (line,) = absent.stderr.splitlines()
    assert line.startswith("lark-controller: engine ryu is not installed")
    assert "docs/engines.md" in line
    # The control: with the framework there, the same call comes as far as the missing file.
    there = python(f"import sys; {begin}{end}")
    assert there.returncode == 2
    assert "none.yaml: cannot be read" in there.stderr
    assert "engine" not in there.stderr


def test_a_token_is_not_put_where_no_directory_is(home: Path) -> None:
    done = command("token", "--tokens", str(home / "typo" / "tokens.yaml"), "--role", "viewer")
    assert (done.returncode, done.stdout) == (2, "")
    assert "typo is not a directory; make it, or mend --tokens" in done.stderr
    assert not (home / "typo").exists()
    assert command("token", "--tokens", str(home / "tokens.yaml"), "--role", "viewer").returncode == 0


@pytest.mark.parametrize(
    ("module", "name"),
    [("ryu_apps.cli", "lark-controller"), ("ryu_apps.larkctl", "larkctl"), ("ovs_agent.cli", "lark-agent")],
)
def test_every_command_says_its_version(module: str, name: str) -> None:
    done = python(f"import sys; sys.argv = ['x', '--version']\nfrom {module} import main; main()")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{name} 0")


class Api(BaseHTTPRequestHandler):
    """Knows one node, wn1, and no attempts."""

    def do_GET(self) -> None:
        node = NodeStatus(node="wn1", spec=None, attempts=0, lease_left=0)
        body = {"nodes": [node.model_dump(mode="json")]} if self.path == "/v1/nodes" else {"attempts": []}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def larkctl(home: Path, url: str, *argv: str) -> subprocess.CompletedProcess[str]:
    token = home / "viewer.token"
    token.write_text("lark_x\n")
    return commands.run("ryu_apps.larkctl", "--url", url, "--token-file", str(token), *argv)


def test_attempts_of_a_node_that_does_not_exist(home: Path, url: str) -> None:
    known = larkctl(home, url, "attempts", "--node", "wn1")
    assert (known.returncode, known.stdout) == (0, "no attempts\n")
    unknown = larkctl(home, url, "attempts", "--node", "wn11")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr == "larkctl: site.yaml knows no node wn11; it has wn1\n"


def test_a_url_without_its_scheme(home: Path, url: str) -> None:
    done = larkctl(home, url.removeprefix("http://"), "attempts")
    assert done.returncode == 1
    assert f"write {url}" in done.stderr
    assert larkctl(home, url, "attempts").returncode == 0


def test_check_reads_a_policy_of_several_files(home: Path) -> None:
    """Included or in a directory; a fault is told with the file that has it."""
    argv = ("check", "--strict", "--config", str(home / "controller.yaml"))
    services = POLICY[POLICY.index("services:") : POLICY.index("attributes:")]
    (home / "policy.yaml").write_text("include: [services.yaml]\n" + POLICY.replace(services, ""))
    (home / "services.yaml").write_text(services)
    good = command(*argv)
    assert (good.returncode, good.stderr) == (0, "")
    assert "2 services, 4 groups" in good.stdout
    (home / "services.yaml").write_text(services.replace("tcp/1094", "tcp/99999"))
    bad = command(*argv)
    assert bad.returncode == 2
    assert "services.yaml:2:" in bad.stderr
    (home / "services.yaml").write_text(services)
    (home / "site").mkdir()
    (home / "policy.yaml").rename(home / "site" / "policy.yaml")
    (home / "services.yaml").rename(home / "site" / "services.yaml")
    (home / "site" / "policy.yaml").write_text(POLICY.replace(services, ""))
    (home / "controller.yaml").write_text(GOOD.replace("policy: policy.yaml", "policy: site"))
    of_a_directory = command(*argv)
    assert (of_a_directory.returncode, of_a_directory.stderr) == (0, "")
    assert "2 services, 4 groups" in of_a_directory.stdout


def test_help_of_a_command_needs_no_token_and_the_command_says_how_to_give_one(home: Path) -> None:
    shown = commands.run("ryu_apps.larkctl", "bridges", "--help")
    assert (shown.returncode, "List the bridges" in shown.stdout) == (0, True)
    refused = commands.run("ryu_apps.larkctl", "bridges")
    assert refused.returncode == 2
    assert "--token-file, or LARK_TOKEN_FILE" in refused.stderr
    (home / "odd").write_text("t\u00f6k\u00e9n-of-some-length\n")
    odd = commands.run("ryu_apps.larkctl", "--token-file", str(home / "odd"), "bridges")
    assert odd.stderr == f"larkctl: token file {home / 'odd'} must hold one token and nothing else\n"


@pytest.mark.parametrize("there", [False, True], ids=["first", "further"])
def test_a_token_that_root_makes_leaves_the_file_to_the_controllers_user(tmp_path: Path, there: bool) -> None:
    user = os.getuid() or 4242  # only root gives files away
    path, lock = tmp_path / "t" / "tokens.yaml", tmp_path / "t" / ".tokens.yaml.lock"
    path.parent.mkdir()
    if there:
        new_token(path, TokenRole.VIEWER, None)
        os.chown(path, user, -1)
        lock.unlink()
    else:
        os.chown(path.parent, user, -1)
    new_token(path, TokenRole.ADMIN, None)
    assert [(one.stat().st_uid, one.stat().st_mode & 0o777) for one in (path, lock)] == [(user, 0o600)] * 2
