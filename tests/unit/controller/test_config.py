"""controller.yaml, the tokens file and the commands: faults are named with their line, and nothing starts on them."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ryu_apps.config import ConfigError, load_config, parse_listen
from ryu_apps.rest.auth import Principal, TokenRole, load_tokens, new_token
from ryu_apps.store.jsonrpc import Tls
from tests import commands
from tests.unit.controller.rig import POLICY, SITE

ROOT = Path(__file__).resolve().parents[3]
GOOD = """\
site: site.yaml
policy: policy.yaml
state-dir: state
openflow: {listen: "127.0.0.1:6653"}
api: {listen: "127.0.0.1:8080"}
tokens: tokens.yaml
deadline: 5
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "site.yaml").write_text(SITE)
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "controller.yaml").write_text(GOOD)
    new_token(tmp_path / "tokens.yaml", TokenRole.AGENT, "wn1")
    return tmp_path


def command(*argv: str) -> subprocess.CompletedProcess[str]:
    if argv[0] != "run":
        return commands.run("ryu_apps.cli", *argv)
    # It loads the engine, which changes the whole interpreter: one of its own.
    return subprocess.run(
        [sys.executable, "-P", "-m", "ryu_apps.cli", *argv],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_paths_are_relative_to_the_file(home: Path) -> None:
    config = load_config(home / "controller.yaml")
    assert config.site == home / "site.yaml"
    assert config.state_dir == home / "state"
    assert (config.api, config.openflow, config.deadline, config.lease) == (
        ("127.0.0.1", 8080),
        ("127.0.0.1", 6653),
        5,
        60,
    )
    assert not config.plaintext_warning


def test_a_bridge_that_may_come_from_anywhere_is_warned_of(home: Path) -> None:
    def check() -> str:
        done = command("check", "--config", str(home / "controller.yaml"))
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert "has no `address`" not in check()  # the switches are on this machine
    (home / "controller.yaml").write_text(GOOD.replace("127.0.0.1:6653", "192.0.2.1:6653"))
    said = check()
    assert said.count("has no `address`") == 4
    assert re.search(r"site.yaml:8: bridge br1 has no `address`: whoever reaches 192.0.2.1 port 6653 first", said)
    (home / "site.yaml").write_text(SITE.replace('"00000000000000a1"', '"00000000000000a1", address: 192.0.2.11'))
    said = check()
    assert said.count("has no `address`") == 3
    assert "br1" not in said


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("deadline: 5", "deadlin: 5", r"controller.yaml:7: `deadlin` is not a key"),
        ("deadline: 5", "deadline: soon", r"controller.yaml:7: `deadline`"),
        ("deadline: 5", "deadline: 0", r"controller.yaml:7: `deadline`"),
        ("deadline: 5", "deadline: 5\ndeadline: 6", r"controller.yaml:8: .*duplicate"),
        ("site: site.yaml\n", "", r"`site` must be given"),
        ("127.0.0.1:8080", "localhost:8080", r"controller.yaml:5: .*not an IP address"),
        ("127.0.0.1:8080", "127.0.0.1", r"controller.yaml:5: .*ADDRESS:PORT"),
        ("127.0.0.1:8080", "0.0.0.0:8080", r"controller.yaml:5: .*allow-plaintext"),
        ("127.0.0.1:8080", "[2001:db8::1]:8080", r"controller.yaml:5: .*allow-plaintext"),
        ('"127.0.0.1:8080"}', '"127.0.0.1:8080", allow-plaintxt: true}', r"controller.yaml:5: `api.allow-plaintxt`"),
        ("tokens: tokens.yaml", "tokens: [", r"controller.yaml:\d+: "),
        ("deadline: 5", "engine: pox", r"controller.yaml:7: `engine`"),
        ("deadline: 5", "store: {mode: raft}", r"controller.yaml:7: `store.mode`"),
        ("deadline: 5", "store: {mode: cluster}", r"controller.yaml:7: `store`: .*needs `servers`"),
        ("deadline: 5", 'store: {servers: ["ssl:192.0.2.1:6643"]}', r"controller.yaml:7: `store`: .*`mode: cluster`"),
        (
            "deadline: 5",
            'store: {mode: cluster, servers: ["ssl:192.0.2.1:6643"]}',
            r"controller.yaml:7: `store`: .*`tls`",
        ),
        ("deadline: 5", 'store: {mode: cluster, servers: ["ssl:db.example.org:1"]}', r"yaml:7: .*not an IP address"),
        ("deadline: 5", 'store: {mode: cluster, servers: ["192.0.2.1:6643"]}', r"yaml:7: .*not an OVSDB server"),
        ("deadline: 5", 'store: {mode: cluster, servers: ["tcp:192.0.2.1:6643"]}', r"yaml:7: .*allow-plaintext"),
        ("deadline: 5", 'store: {mode: cluster, servers: ["tcp:[::1]:1", "tcp:[::1]:1"]}', r"yaml:7: .*twice"),
    ],
)
def test_faults_name_file_and_line(home: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    (home / "controller.yaml").write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_config(home / "controller.yaml")
    assert re.search(said, str(caught.value)), str(caught.value)


def test_the_store_is_embedded_unless_a_cluster_is_named(home: Path) -> None:
    path = home / "controller.yaml"
    assert load_config(path).store.embedded
    for text, servers, tls in (
        ('["tcp:127.0.0.1:6643", "unix:/run/x"]', ("tcp:127.0.0.1:6643", "unix:/run/x"), None),
        ('["tcp:192.0.2.1:6643"], allow-plaintext: true', ("tcp:192.0.2.1:6643",), None),
        (
            '["ssl:192.0.2.1:6643"], tls: {certificate: c.pem, private-key: /k.pem, ca: ca.pem}',
            ("ssl:192.0.2.1:6643",),
            Tls(Path("/k.pem"), home / "c.pem", home / "ca.pem"),
        ),
    ):
        path.write_text(f"{GOOD}store: {{mode: cluster, name: ctl1, servers: {text}}}\n")
        found = load_config(path).store
        assert (found.embedded, found.servers, found.tls, found.name) == (False, servers, tls, "ctl1")


def test_plaintext_is_a_decision(home: Path) -> None:
    (home / "controller.yaml").write_text(
        GOOD.replace('8080"', '8080", allow-plaintext: true').replace("127.0.0.1:80", "192.0.2.1:80")
    )
    assert load_config(home / "controller.yaml").plaintext_warning


def test_listen_addresses() -> None:
    assert parse_listen("[::1]:80") == ("::1", 80)
    for bad in ("", ":80", "1.2.3.4:", "1.2.3.4:70000", "1.2.3.4:-1", "::1"):
        with pytest.raises(ValueError, match=r".+"):
            parse_listen(bad)


def test_tokens_are_kept_hashed_and_private(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "tokens.yaml"
    agent = new_token(path, TokenRole.AGENT, "wn1")
    viewer = new_token(path, TokenRole.VIEWER, None)
    text = path.read_text()
    assert agent not in text
    assert viewer not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    tokens = load_tokens(path)
    assert tokens.who(f"Bearer {agent}") == Principal(TokenRole.AGENT, "wn1")
    assert tokens.who(f"bearer {viewer}") == Principal(TokenRole.VIEWER)
    for wrong in (
        None,
        "",
        "Bearer",
        "Bearer ",
        agent,
        f"Basic {agent}",
        f"Bearer {agent}x",
        f"Bearer {agent[:-1]}",
        "Bearer \udcff",
    ):
        assert tokens.who(wrong) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tokens: [{sha256: abc, role: viewer}]", r"tokens.yaml:1: .*sha256"),
        ("tokens:\n  - {sha256: " + "a" * 64 + ", role: agent}", r"tokens.yaml:2: .*needs a node"),
        ("tokens:\n  - {sha256: " + "a" * 64 + ", role: admin, node: wn1}", r"tokens.yaml:2: .*node"),
        ("tokens:\n  - {sha256: " + "a" * 64 + ", role: king}", r"tokens.yaml:2: .*role"),
        (
            f"tokens:\n  - {{sha256: {'a' * 64}, role: admin}}\n  - {{sha256: {'a' * 64}, role: admin}}",
            r"tokens.yaml:3: .*twice",
        ),
        ("tokens: []\nextra: 1", r"tokens.yaml:2: `extra`"),
    ],
)
def test_faults_in_the_tokens_file(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "tokens.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_tokens(path)
    assert re.search(said, str(caught.value)), str(caught.value)
    with pytest.raises(ConfigError):
        new_token(path, TokenRole.VIEWER, None)
    assert path.read_text() == text


def test_check_and_its_exit_codes(home: Path) -> None:
    good = command("check", "--config", str(home / "controller.yaml"))
    assert (good.returncode, good.stderr) == (0, "")
    assert "good" in good.stdout
    (home / "policy.yaml").write_text(POLICY + "surprise: 1\n")
    (home / "site.yaml").write_text(SITE + "surprise: 1\n")
    for verb in ("check", "run"):
        bad = command(verb, "--config", str(home / "controller.yaml"))
        assert bad.returncode == 2
        # Every file's faults at once.
        assert re.search(r"policy.yaml:\d+:\d+: .*surprise", bad.stderr)
        assert re.search(r"site.yaml:\d+:\d+: .*surprise", bad.stderr)
        assert "Traceback" not in bad.stderr
    assert not (home / "state").exists()


def test_the_token_command(home: Path) -> None:
    done = command("token", "--tokens", str(home / "tokens.yaml"), "--role", "agent", "--node", "wn2")
    assert done.returncode == 0
    assert load_tokens(home / "tokens.yaml").who(f"Bearer {done.stdout.strip()}") == Principal(TokenRole.AGENT, "wn2")
    for wrong in (["--role", "agent"], ["--role", "viewer", "--node", "wn1"], ["--role", "agent", "--node", "a/b"]):
        assert command("token", "--tokens", str(home / "tokens.yaml"), *wrong).returncode == 2
