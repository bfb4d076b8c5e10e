"""docs/policy.md tells the truth: its examples load or are refused as it says, and it names every key and function."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from policies import sections, sitefile, trust, values
from policies.classads import FUNCTIONS, REFUSED
from policies.language import MAX_FILES, MAX_INCLUDE_DEPTH, PolicyError, load_policy, load_site, policy_from_text
from policies.validation import keys_of

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "policy.md").read_text()
POLICY_PART, SITE_PART = PAGE.split("\n## The site file\n")
BLOCKS = re.findall(r"^```(yaml[a-z ]*)\n(.*?)^```\n(?:```text\n(.*?)^```$)?", PAGE, flags=re.MULTILINE | re.DOTALL)
GOOD = [text for kind, text, _ in BLOCKS if kind == "yaml" and "datapath-id" not in text]
SITES = [text for kind, text, _ in BLOCKS if kind == "yaml" and "datapath-id" in text]
SEVERAL = [text for kind, text, _ in BLOCKS if kind == "yaml files"]
BAD = [(text, messages) for kind, text, messages in BLOCKS if kind == "yaml refused"]


def first_line(text: str) -> str:
    return text.splitlines()[0]


@pytest.mark.parametrize("text", GOOD, ids=first_line)
def test_an_example_loads(text: str) -> None:
    assert policy_from_text(text)


@pytest.mark.parametrize("text", SITES, ids=first_line)
def test_an_example_of_a_site_loads(text: str, tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(text)
    assert load_site(tmp_path / "site.yaml")


@pytest.mark.parametrize("text", SEVERAL, ids=first_line)
def test_an_example_of_several_files_loads(text: str, tmp_path: Path) -> None:
    parts = [part.split("\n", 1) for part in text.split("---\n")]
    for heading, content in parts:
        file = tmp_path / heading.removeprefix("# ")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    assert len(load_policy(tmp_path / "policy.yaml").files) == len(parts) > 1


@pytest.mark.parametrize(("text", "messages"), BAD, ids=[first_line(text) for text, _ in BAD])
def test_a_refused_example_is_refused_with_the_messages_that_stand_beside_it(text: str, messages: str) -> None:
    with pytest.raises(PolicyError) as refused:
        policy_from_text(text)
    assert str(refused.value) + "\n" == messages


def test_the_reader_of_the_page_finds_its_examples() -> None:
    assert (len(GOOD), len(SITES), len(SEVERAL), len(BAD)) == (7, 1, 1, 2)
    assert len(re.findall(r"^```", PAGE, flags=re.MULTILINE)) == 2 * (len(BLOCKS) + len(BAD))


def sections_used() -> set[str]:
    return {key for text in GOOD + SEVERAL for key in re.findall(r"^([a-z-]+):", text, flags=re.MULTILINE)}


def test_every_section_has_an_example() -> None:
    assert sections_used() == set(sections.SECTIONS)


def keys_in_tables(part: str) -> set[str]:
    rows = re.findall(r"^\| ((?:`[^`|]+`(?:, )?)+) \|", part, flags=re.MULTILINE)
    return {key for row in rows for key in re.findall(r"`([^`]+)`", row)}


def policy_keys() -> set[str]:
    keys = {"include", "mode", "networks.NAME", "groups.NAME", "seal"}
    for section, schema in {**sections.MAPPINGS, **sections.LISTS, **sections.SINGLE}.items():
        if hasattr(schema.type, "model_fields"):
            middle = ".NAME" if section in sections.MAPPINGS else "[]" if section in sections.LISTS else ""
            keys |= {f"{section}{middle}.{key}" for key in keys_of(schema.type)}
    return keys


def test_every_key_of_a_policy_is_in_the_table_and_no_other() -> None:
    table = POLICY_PART.split("\n### Keys\n")[1].split("\n### ")[0]
    assert keys_in_tables(table) == policy_keys()


def test_every_key_of_a_site_is_in_its_table() -> None:
    words = {part for key in keys_in_tables(SITE_PART) for part in key.split(".")}
    assert {"site", "network", "infrastructure", "nodes", "bridges"} <= words
    for schema in (sitefile.NetworkIn, sitefile.NodeIn, sitefile.BridgeIn):
        assert set(keys_of(schema)) - {"gateway-ipv6"} <= words, schema


def test_the_functions_are_those_that_are_accepted() -> None:
    listed = POLICY_PART.split("\nFunctions: ")[1].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == set(FUNCTIONS)
    told = POLICY_PART.split("\nRefused, because")[1].split("\n\n")[0]
    assert {name.lower() for name in re.findall(r"`([a-zA-Z]+)`", told)} - {"my", "target"} <= set(REFUSED)


def test_whom_to_believe_names_the_attributes_that_are_believed() -> None:
    rows = POLICY_PART.split("\n### Whom to believe\n")[1].split("\n\n")[0].strip().splitlines()[2:]
    named = [{n.lower() for n in re.findall(r"`(\w+)`", row.split("|")[1])} for row in rows]
    assert named[0] == trust.SET_BY_SCHEDD
    assert named[1] == trust.SET_BY_LARK_ACCESS_POINT
    assert named[3] == trust.TYPED_BY_HTCONDOR - trust.SET_BY_SCHEDD


def test_the_numbers_are_right() -> None:
    assert f"more than {MAX_FILES} files or a depth of more than {MAX_INCLUDE_DEPTH}" in POLICY_PART
    for name in (*values.UNITS, *values.EXPERIMENTS, *values.ACTIVITIES[3], "df", "le", "ef"):
        assert f"`{name}`" in POLICY_PART
