"""The files that an administrator copies: they load, go together, and every key they show is explained."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from ovs_agent.config import AgentConfig, load
from policies.language import check_together, load_policy, load_site
from policies.lint import lint
from policies.model import PortKind
from ryu_apps.config import load_config

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "policies" / "examples"


def test_policy_and_site_go_together_and_nothing_is_odd_about_them() -> None:
    policy, site = load_policy(EXAMPLES / "demo.yaml"), load_site(EXAMPLES / "demo-site.yaml")
    check_together(policy, site)
    assert lint(policy, site) == []
    assert all(bridge.address is not None for bridge in site.bridges.values())


def test_the_controller_and_the_agent_find_each_other() -> None:
    controller, agent = load_config(EXAMPLES / "controller.yaml"), load(EXAMPLES / "agent.yaml")
    site = load_site(EXAMPLES / "demo-site.yaml")
    host, port = controller.api
    assert agent.controller.urls == [f"https://{host}:{port}"]
    assert site.nodes[agent.node].bridge == agent.bridge.name
    assert agent.bridge.uplink is not None
    assert site.bridges[agent.bridge.name].ports[agent.bridge.uplink] is PortKind.UPLINK


def test_the_lines_that_are_commented_out_load_too(tmp_path: Path) -> None:
    text = (EXAMPLES / "agent.yaml").read_text()
    keys = re.compile(r"^# (guard:|  (?:uids|loopback|pool):)", re.MULTILINE)
    assert len(keys.findall(text)) == 4
    path = tmp_path / "agent.yaml"
    path.write_text(keys.sub(r"\1", text))
    guard = load(path).guard
    assert (guard.uids, guard.loopback, guard.pool) == ([(20000, 29999)], [("tcp", 9618)], [("10.20.0.9", 9618)])
    assert load(EXAMPLES / "agent.yaml").guard.uids == []


NOT_A_DEFAULT = {
    ("node",), ("controller", "urls"), ("controller", "token-file"), ("controller", "ca-file"),
    ("controller", "certificate-file"), ("controller", "private-key-file"), ("bridge", "name"), ("bridge", "uplink"),
    ("bridge", "datapath-type"), ("guard", "uids"), ("guard", "loopback"), ("guard", "pool"),
    ("scitags", "collector"),
}  # fmt: skip
"""Keys of agent.yaml that have no default, or one that cannot be written down."""


def places(document: Mapping[str, object]) -> Iterator[tuple[str, ...]]:
    """The keys of a document, and those of its sections."""
    for key, value in document.items():
        if isinstance(value, Mapping):
            yield from ((key, inner) for inner in value)
        else:
            yield (key,)


def test_the_agents_example_shows_every_key_and_its_default() -> None:
    text = (EXAMPLES / "agent.yaml").read_text()
    whole = re.sub(r"^# ((?:guard|fallback|scitags):|  [a-z-]+:)", r"\1", text, flags=re.MULTILINE)
    whole = re.sub(r"^  # ([a-z-]+:)", r"  \1", whole, flags=re.MULTILINE)
    shown = YAML(typ="safe").load(whole)
    told = set(places(shown))
    defaults = AgentConfig.model_validate(
        {
            "node": "x",
            "controller": {"urls": ["https://c"], "token-file": "t"},
            "bridge": {"name": "b"},
            "file": "f",
        }
    ).model_dump(by_alias=True, mode="json")
    assert told == set(places(defaults))
    for place in told - NOT_A_DEFAULT:
        value, default = shown, defaults
        for step in place:
            value, default = value[step], default[step]
        assert value == default, place


@pytest.mark.parametrize("name", ["controller.yaml", "agent.yaml"])
def test_every_key_says_what_it_is(name: str) -> None:
    """By a comment beside it, by its section, or in the table of docs/operations.md."""
    chapter = (ROOT / "docs/operations.md").read_text().split(f"\n## {name}\n")[1].split("\n## ")[0]
    told = {
        part for key in re.findall(r"^\| `([a-z0-9.-]+)` \|", chapter, flags=re.MULTILINE) for part in key.split(".")
    }
    keys = set(re.findall(r"^(?:# )? *([a-z-]+):(?: |$)", (EXAMPLES / name).read_text(), flags=re.MULTILINE))
    assert len(keys) >= 8
    assert keys - told == set()


@pytest.mark.parametrize(
    ("unit", "command"),
    [
        ("lark-agent", "lark-agent run --config /etc/lark/agent.yaml"),
        ("lark-controller", "lark-controller run --config /etc/lark/controller.yaml"),
        ("lark-border", "lark-agent border --config /etc/lark/border.yaml"),
        # %I would make a directory's separator of the dash in gate-br.
        ("lark-bridge@", "lark-agent keep-bridge --bridge %i"),
    ],
)
def test_a_unit_starts_the_program_from_the_prefix_that_the_installation_replaces(unit: str, command: str) -> None:
    text = (ROOT / "systemd" / f"{unit}.service").read_text()
    (start,) = re.findall(r"^ExecStart=(.*)$", text, flags=re.MULTILINE)
    assert start == f"/opt/lark/bin/{command}"
    assert unit in (ROOT / "Makefile").read_text()
    assert "\nRestart=always\n" in text


def test_the_agents_unit_gives_it_no_mount_namespace_of_its_own() -> None:
    """Names in /run/netns made in a private mount namespace are seen by nobody, HTCondor's included."""
    private = re.compile(
        r"^(Protect\w+|Private\w+|ReadOnlyPaths|ReadWritePaths|InaccessiblePaths|TemporaryFileSystem|Bind\w*Paths|Root\w+"
        r"|DynamicUser|MountFlags|ExecPaths|NoExecPaths|RestrictNamespaces)=",
        re.MULTILINE,
    )
    assert private.findall((ROOT / "systemd/lark-agent.service").read_text()) == []
    assert private.findall((ROOT / "systemd/lark-controller.service").read_text())  # the control: it does find them
