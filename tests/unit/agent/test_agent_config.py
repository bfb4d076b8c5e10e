"""agent.yaml and border.yaml: errors name file, line and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovs_agent.config import ConfigError, load, load_border, read_token

GOOD = """\
node: wn1
controller: {urls: ["http://127.0.0.1:8080/"], token-file: agent.token}
bridge:
  name: br-lark
  uplink: up0
guard: {uids: ["20000-29999", 500], loopback: [tcp/9618]}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "agent.yaml"
    path.write_text(text)
    return path


def test_good(tmp_path: Path) -> None:
    config = load(write(tmp_path, GOOD + "state-dir: state\n"))
    assert config.controller.urls == ["http://127.0.0.1:8080"]
    assert config.controller.token_file == tmp_path / "agent.token"
    assert config.state_dir == tmp_path / "state"
    assert str(config.libexec) == "/usr/libexec/lark"
    assert config.guard.uids == [(20000, 29999), (500, 500)]


@pytest.mark.parametrize(
    ("change", "line", "text"),
    [
        (("node: wn1", "node: wn1\nnodes: x"), 2, "unknown key 'nodes'"),
        (("  uplink: up0", "  uplnk: up0"), 5, "unknown key 'bridge.uplnk'"),
        (("node: wn1\n", ""), 1, "'node' is missing"),
        (("http://127.0.0.1:8080/", "http://192.0.2.1:8080"), 2, "allow-plaintext: true"),
        (("http://127.0.0.1:8080/", "ftp://x"), 2, "is not a controller's URL"),
        (('"20000-29999"', '"0-29999"'), 6, "uid 0 cannot be guarded"),
        (('"20000-29999"', '"300-200"'), 6, "ascending"),
        (("tcp/9618", "9618"), 6, "write for example tcp/9618"),
        (("node: wn1", "node: -x"), 1, "a node name is"),
        (("node: wn1", "node: wn1\nnode: wn2"), 2, "not valid YAML"),
        (("node: wn1", "node: [wn1"), 2, "not valid YAML"),
        (("node: wn1", "file: /x\nnode: wn1"), 1, "unknown key 'file'"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, change: tuple[str, str], line: int, text: str) -> None:
    path = write(tmp_path, GOOD)
    load(path)  # positive control
    assert change[0] in GOOD
    path.write_text(GOOD.replace(*change))
    with pytest.raises(ConfigError) as error:
        load(path)
    assert f"{path}:{line}: " in str(error.value)
    assert text in str(error.value)


BORDER = """\
bridge: border-br
controller:
  urls: ["https://controller.example.org:8080"]
  token-file: border.token
"""
URLS = 'urls: ["https://controller.example.org:8080"]'


def test_a_good_border_file(tmp_path: Path) -> None:
    path = tmp_path / "border.yaml"
    path.write_text(BORDER + "state-dir: state\novsdb: tcp:127.0.0.1:6640\n")
    found = load_border(path)
    assert (found.bridge, found.state_dir) == ("border-br", tmp_path / "state")
    assert found.controller.token_file == tmp_path / "border.token"


@pytest.mark.parametrize(
    ("change", "line", "text"),
    [
        ((BORDER, ""), 1, "a mapping that begins with `bridge:` (docs/operations.md has an example)"),
        (("bridge: border-br\n", ""), 1, "'bridge' is missing; write for example bridge: border-br"),
        (("bridge: border-br", "brigde: border-br"), 1, "unknown key 'brigde' (did you mean 'bridge'?)"),
        (("bridge: border-br", "bridge: bor der"), 1, "'bor der' is no bridge's name"),
        (("bridge: border-br", "bridge: {name: x}"), 1, "bridge: must be text; write for example bridge: border-br"),
        (("bridge: border-br", "bridge: a\nbridge: b"), 2, "not valid YAML: found duplicate key"),
        (("bridge: border-br", "bridge: [a"), 2, "mend this line, or the one before it"),
        (("token-file", "tokenfile"), 4, "(did you mean 'token-file'?)"),
        (("  token-file: border.token\n", ""), 2, "give token-file, or certificate-file and private-key-file"),
        ((URLS, "urls: https://x"), 3, f"must be a list: write it in [ ]; write for example {URLS}"),
        ((URLS, "urls: []"), 3, "must not be empty"),
        (("https:", "http:"), 2, "use https or say allow-plaintext: true"),
        (("token-file:", "wait: 0\n  token-file:"), 4, "controller.wait: must be greater than 0"),
        (("token-file:", "allow-plaintext: 2\n  token-file:"), 4, "must be true or false"),
        (
            ("bridge: border-br", "bridge: a\novsdb: /run/x"),
            2,
            "write for example ovsdb: unix:/run/openvswitch/db.sock",
        ),
        (("bridge: border-br", "bridge: a\nstate-dir: 5"), 2, "state-dir: must be a path; write for example"),
    ],
)
def test_errors_in_a_border_file_name_file_line_and_the_way_out(
    tmp_path: Path, change: tuple[str, str], line: int, text: str
) -> None:
    path = tmp_path / "border.yaml"
    path.write_text(BORDER)
    load_border(path)  # positive control
    assert change[0] in BORDER
    path.write_text(BORDER.replace(*change))
    with pytest.raises(ConfigError) as error:
        load_border(path)
    assert f"{path}:{line}: " in str(error.value)
    assert text in str(error.value)
    assert not [word for word in ("pathlib", "Input", "pattern", "dictionary", "Section") if word in str(error.value)]


def test_plaintext_to_another_machine_when_said(tmp_path: Path) -> None:
    text = GOOD.replace("http://127.0.0.1:8080/", "http://192.0.2.1:8080").replace(
        "agent.token}", "t, allow-plaintext: true}"
    )
    assert load(write(tmp_path, text)).controller.urls == ["http://192.0.2.1:8080"]


def test_a_missing_file_says_how_to_mend(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path / "none.yaml")


def test_token_must_be_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("a" * 40 + "\n")
    path.chmod(0o600)
    assert read_token(path) == "a" * 40
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_token(path)
    path.chmod(0o600)
    path.write_text("two words and more than sixteen\n")
    with pytest.raises(ConfigError, match="one line"):
        read_token(path)
