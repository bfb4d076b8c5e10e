"""The configuration files: what stands in them, and what cannot get into them."""

from __future__ import annotations

import re
import time
from pathlib import Path

import classad2
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from condor_bridge import render


def settings(text: str) -> dict[str, str]:
    """Names and values, comments left out, in the order of the file (the last of a name wins, as in HTCondor)."""
    return dict(re.findall(r"^([A-Za-z_0-9]+) *= *(.*)$", text, re.MULTILINE))


def test_execute_names_the_installed_helper() -> None:
    found = settings(render.execute("/opt/lark", ["/usr/libexec/condor/curl_plugin", "/x/data_plugin"]))
    assert found["USER_JOB_WRAPPER"] == "/opt/lark/lark-job-wrapper"
    assert found["LARK_HOOK_PREPARE_JOB_BEFORE_TRANSFER"] == "/opt/lark/lark-hook-prepare"
    assert found["STARTD_CRON_LARK_EXECUTABLE"] == "/opt/lark/lark-ping"
    assert found["FILETRANSFER_PLUGINS"] == "/opt/lark/plugins/curl_plugin, /opt/lark/plugins/data_plugin"
    # The form that a job cannot override.
    assert found["STARTER_JOB_HOOK_KEYWORD"] == "LARK"
    assert "MACHINE_RESOURCE_NetworkMbps" not in found


def test_no_plugin_is_left_unwrapped_by_default() -> None:
    found = settings(render.execute())
    # Not an empty list: condor_starter 23.9.6 crashes on one, and such a slot matches no job.
    assert "FILETRANSFER_PLUGINS" not in found
    assert found["ENABLE_URL_TRANSFERS"] == "False"
    assert "ENABLE_URL_TRANSFERS" not in settings(render.execute(plugins=["/x/curl_plugin"]))


def test_lists_are_added_to_not_replaced() -> None:
    text = render.execute() + render.access()
    for name in (
        "STARTD_JOB_ATTRS",
        "STARTD_CRON_JOBLIST",
        "START",
        "JOB_TRANSFORM_NAMES",
        "SUBMIT_REQUIREMENT_NAMES",
        "IMMUTABLE_JOB_ATTRS",
        "SCHEDD_CLASSAD_USER_MAP_NAMES",
        "SYSTEM_PERIODIC_RELEASE_NAMES",
        "SYSTEM_PERIODIC_HOLD_NAMES",
    ):
        assert f"$({name})" in settings(text)[name], name


def test_every_name_in_a_list_is_defined() -> None:
    text = render.access()
    for names, prefix in (
        ("JOB_TRANSFORM_NAMES", "JOB_TRANSFORM_"),
        ("SUBMIT_REQUIREMENT_NAMES", "SUBMIT_REQUIREMENT_"),
    ):
        for name in settings(text)[names].split()[1:]:
            assert re.search(rf"^{prefix}{name}\b *@?=", text, re.MULTILINE), name


def test_what_the_owner_could_set_is_immutable() -> None:
    immutable = settings(render.access())["IMMUTABLE_JOB_ATTRS"].split()
    assert {"LarkGroup", "PreCmd", "PostCmd", "TransferPlugins"} <= set(immutable)


def test_attributes_are_added_once() -> None:
    names = settings(render.execute(attributes=["Department", "Owner", "Department"]))["STARTD_JOB_ATTRS"].split()
    assert names.count("Department") == names.count("Owner") == 1
    assert {"User", "LarkGroup", "ClusterId", "ProcId"} <= set(names)


def test_an_attribute_of_the_sites_own_is_no_misspelling() -> None:
    """Every Lark… attribute that an example declares can be said, if both files are rendered for it."""
    examples = Path(render.__file__).parents[1] / "policies" / "examples"
    own = set(re.findall(r"^ +(Lark\w+): +\{type:", "".join(p.read_text() for p in examples.rglob("*.yaml")), re.M))
    assert "LarkServes" in own
    plain, text = render.access(), render.access(attributes=[*sorted(own), "Department", "LarkServes"])

    def refused(rendered: str, name: str) -> bool:
        pattern = re.search(r"COPY /(.*)/i LarkUnknown", rendered)
        assert pattern is not None
        return re.match(pattern.group(1), name, re.IGNORECASE) is not None

    assert refused(plain, "LarkServes")
    assert "My.LarkNetwork and My.LarkSlice;" in plain
    assert "My.LarkNetwork, My.LarkServes and My.LarkSlice;" in text
    assert not any(refused(text, name) for name in (*own, *map(str.upper, own)))
    assert all(refused(text, name) for name in ("LarkServe", "LarkServess", "LarkNetwrok", "LarkDepartment"))
    names = settings(render.execute(attributes=sorted(own)))["STARTD_JOB_ATTRS"].split()
    assert own <= set(names)


def test_network_resource() -> None:
    assert settings(render.execute(network_mbps=1000))["MACHINE_RESOURCE_NetworkMbps"] == "1000"


@given(st.text())
def test_a_value_never_becomes_a_second_line_or_a_macro(text: str) -> None:
    plain = re.fullmatch(r"/[A-Za-z0-9._/+:@-]*", text) is not None
    try:
        rendered = render.access(text)
    except render.RenderError:
        assert not plain
        return
    assert plain
    assert rendered.count("\n") == render.access().count("\n")


@pytest.mark.parametrize("name", ["A B", "A=1", "", "9a", "A\nB", "$(X)"])
def test_bad_attribute_names_are_refused(name: str) -> None:
    with pytest.raises(render.RenderError, match="not the name of a job attribute"):
        render.execute(attributes=[name])
    with pytest.raises(render.RenderError, match="not the name of a job attribute"):
        render.access(attributes=[name])
    assert render.execute(attributes=["Good_Name9"])


def test_a_template_and_its_values_fit() -> None:
    assert render.fill("a @NAME@ @=end @end", {"NAME": "b"}) == "a b @=end @end\n"
    with pytest.raises(render.RenderError, match="OTHER"):
        render.fill("@OTHER@", {"NAME": "b"})
    with pytest.raises(render.RenderError, match="no place for NAME"):
        render.fill("x", {"NAME": "b"})


def test_commands() -> None:
    run = CliRunner()
    assert run.invoke(render.main, ["execute", "--libexec", "/a"]).output == render.execute("/a")
    assert run.invoke(render.main, ["access", "--map", "/m"]).output == render.access("/m")
    said = run.invoke(render.main, ["access", "--attribute", "LarkServes"]).output
    assert said == render.access(attributes=["LarkServes"])
    bad = run.invoke(render.main, ["execute", "--libexec", "relative"])
    assert bad.exit_code == 1
    assert "absolute path" in bad.output


def test_releases_are_spaced_and_end() -> None:
    found = settings(render.access(release_wait=7, releases=3))
    assert (found["LARK_RELEASE_WAIT"], found["LARK_RELEASES"]) == ("7", "3")
    condition = classad2.ExprTree(
        found["SYSTEM_PERIODIC_RELEASE_LARK"]
        .replace("$(LARK_PASSING)", found["LARK_PASSING"])
        .replace("$(LARK_RELEASES)", "3")
        .replace("$(LARK_RELEASE_WAIT)", "7")
    )

    def released(holds: int, seconds: int, subcode: int = 102) -> object:
        held = {"HoldReasonCode": 19, "HoldReasonSubCode": subcode, "NumHolds": holds, "HoldReason": "x"}
        ad = classad2.ClassAd(held | {"EnteredCurrentStatus": int(time.time()) - seconds})
        return condition.eval(ad)

    assert [released(1, 3), released(1, 9)] == [False, True]
    assert [released(3, 25), released(3, 31)] == [False, True]
    assert released(4, 100_000) is False, "it waits for a person"
    assert released(1, 9, subcode=101) is False, "the policy refused it"
