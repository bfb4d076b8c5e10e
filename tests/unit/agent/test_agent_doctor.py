"""What the doctor concludes. That it sees real faults on a real node is `mininet_tests/test_doctor.py`."""

from __future__ import annotations

import asyncio
import datetime
import re
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from condor_bridge import render
from ovs_agent import doctor, doctor_condor, doctor_controller, doctor_switch, findings, plan
from ovs_agent.config import load
from ovs_agent.findings import Severity, fault, warning

LIBEXEC, SBIN = Path("/usr/libexec/lark"), Path("/usr/sbin")
NOW = datetime.datetime(2026, 11, 22, tzinfo=datetime.UTC)


def values(text: str) -> dict[str, str]:
    """A rendered file as `condor_config_val -dump -expand` would show it, together with HTCondor's own defaults."""
    found = {"START": "TRUE", "STARTD_JOB_ATTRS": "", "STARTD_CRON_JOBLIST": "", "SBIN": str(SBIN)}
    found |= {"ENABLE_KERNEL_TUNING": "false", "ENABLE_URL_TRANSFERS": "true", "FILETRANSFER_PLUGINS": ""}
    for line in text.splitlines():
        name, equals, value = line.partition(" = ")
        if equals and re.fullmatch(r"[A-Za-z_0-9]+", name):
            found[name.upper()] = re.sub(r"\$\((\w+)\)", lambda m: found.get(m[1].upper(), ""), value)
    return found


def checks(text: str, version: tuple[int, int] = (23, 9), wanted: tuple[str, ...] = ("LarkGroup", "User")) -> list[str]:
    return [f.check for f in doctor_condor.knobs(values(text), LIBEXEC, SBIN, version, wanted)]


RENDERED = render.execute(plugins=["/usr/libexec/condor/curl_plugin"])


@pytest.mark.parametrize("text", [RENDERED, render.execute()], ids=["a plugin", "no plugin"])
def test_what_we_render_is_what_the_doctor_wants(text: str) -> None:
    assert checks(text) == []


@pytest.mark.parametrize(
    "name",
    [
        "STARTER_JOB_HOOK_KEYWORD",
        "LARK_HOOK_PREPARE_JOB_BEFORE_TRANSFER",
        "LARK_HOOK_PREPARE_JOB_BEFORE_TRANSFER_TIMEOUT",
        "USER_JOB_WRAPPER",
        "FILETRANSFER_PLUGINS",
        "LARK_RUNS_INSIDE",
        "START",
        "STARTD_JOB_ATTRS",
        "STARTD_CRON_JOBLIST",
        "STARTD_CRON_LARK_EXECUTABLE",
    ],
)
def test_each_line_of_the_rendered_file_that_is_missing_is_noticed(name: str) -> None:
    without = re.sub(rf"^{name} = .*\n", "", RENDERED, flags=re.MULTILINE)
    assert without != RENDERED
    assert checks(without)


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ("DISABLE_SETUID = True\n", "condor.DISABLE_SETUID"),
        ("ENABLE_KERNEL_TUNING = True\n", "condor.ENABLE_KERNEL_TUNING"),
        ("FILETRANSFER_PLUGINS = /usr/libexec/condor/curl_plugin\n", "condor.FILETRANSFER_PLUGINS"),
        ("USER_JOB_WRAPPER = /usr/local/bin/wrapper\n", "condor.USER_JOB_WRAPPER"),
        ("SBIN = /opt/condor/sbin\n", "condor.SBIN"),
    ],
)
def test_a_line_that_undoes_what_we_render_is_noticed(more: str, wanted: str) -> None:
    assert checks(RENDERED + more) == [wanted]


def test_an_attribute_that_the_policy_reads_and_the_startd_does_not_send() -> None:
    (found,) = doctor_condor.knobs(values(RENDERED), LIBEXEC, SBIN, (23, 9), ("LarkGroup", "SiteGroup"))
    assert "SiteGroup" in found.what
    assert "--attribute SiteGroup" in found.mend


@pytest.mark.parametrize(("version", "serious"), [((23, 9), False), ((25, 14), True)])
def test_an_exit_hook_of_an_older_configuration_is_noticed(version: tuple[int, int], serious: bool) -> None:
    assert checks(RENDERED, version=version) == []
    older = RENDERED + f"LARK_HOOK_JOB_EXIT = {LIBEXEC}/lark-hook-exit\n"
    (found,) = doctor_condor.knobs(values(older), LIBEXEC, SBIN, version, ("LarkGroup",))
    assert found.check == "condor.LARK_HOOK_JOB_EXIT"
    assert found.severity == ("fault" if serious else "warning")


PREPARED = {
    "fail_mode": "secure",
    "other_config": {"disable-in-band": "true", "dp-desc": plan.PREPARED},
    "protocols": ["OpenFlow13", "OpenFlow14"],
}


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, []),
        ({"fail_mode": None}, ["switch.fail-mode"]),
        ({"other_config": {"dp-desc": plan.PREPARED}}, ["switch.in-band"]),
        ({"other_config": {"disable-in-band": "true"}}, ["switch.prepared"]),
        ({"protocols": None}, ["switch.protocols"]),
        ({"protocols": "OpenFlow13"}, ["switch.protocols"]),
    ],
)
def test_settings_of_a_bridge(change: dict[str, object], wanted: list[str]) -> None:
    assert [f.check for f in doctor_switch.settings("br0", PREPARED | change, "mend")] == wanted


def controller(**change: object) -> dict[str, object]:
    return {"target": "tcp:192.0.2.1:6653", "is_connected": True, "max_backoff": 1000, "status": {}} | change


@pytest.mark.parametrize(
    ("controllers", "wanted"),
    [
        ([controller()], []),
        ([], ["switch.controller"]),
        ([controller(is_connected=False)], ["switch.controller"]),
        ([controller(is_connected=False), controller()], []),
        ([controller(max_backoff=None)], ["switch.backoff"]),
    ],
)
def test_the_bridges_controllers(controllers: list[dict[str, object]], wanted: list[str]) -> None:
    assert [f.check for f in doctor_switch.controlled("br0", controllers, alive=True)] == wanted


def test_table_0() -> None:
    wanted = plan.worker_table0(1, "02:00:00:00:00:01")
    assert doctor_switch.lane("br0", Path("/run"), wanted, wanted) == []
    assert [f.check for f in doctor_switch.lane("br0", Path("/run"), wanted[1:], wanted)] == ["switch.table0"]
    more = [*wanted, "table=0,priority=9 actions=NORMAL"]
    assert [f.check for f in doctor_switch.lane("br0", Path("/run"), more, wanted)] == ["switch.foreign-flows"]


def test_version_and_send_buffer() -> None:
    assert doctor_switch.version("3.1.0") == doctor_switch.version("4.0.1") == []
    assert [f.severity for f in doctor_switch.version("2.17.9")] == [Severity.WARNING]
    assert doctor_switch.version(None)
    assert doctor_switch.buffers(16777216, 16777216) == doctor_switch.buffers(None, None) == []
    assert [f.check for f in doctor_switch.buffers(212992, 16777216)] == ["switch.wmem"]
    assert [f.check for f in doctor_switch.buffers(16777216, 212992)] == ["switch.rmem"]


@pytest.mark.parametrize(
    ("more", "yama", "apart"),
    [
        ({}, None, False),
        ({}, 0, False),
        ({}, 1, True),
        ({"USE_PID_NAMESPACES": "true"}, None, True),
        ({"SLOT1_1_USER": "slot1"}, 0, False),
        ({"SLOT1_1_USER": "slot1", "STARTER_ALLOW_RUNAS_OWNER": "False"}, 0, True),
        ({"STARTER_ALLOW_RUNAS_OWNER": "False"}, 0, False),
    ],
)
def test_what_keeps_jobs_of_one_user_apart(more: dict[str, str], yama: int | None, apart: bool) -> None:
    found = doctor_condor.siblings(values(RENDERED) | more, yama)
    assert [f.check for f in found] == ([] if apart else ["condor.siblings"])
    assert all(("sysctl" in f.mend) == (yama is not None) for f in found), "Yama is no way out where there is none"


def test_one_cause_is_told_once() -> None:
    switch = fault("switch.database", "no such socket", "why", "mend")
    controller = fault("controller.reach", "refused", "why", "mend")
    blind = [
        doctor.unseen("leaks", "the switch: no such socket"),
        doctor.unseen("leaks", "attempts at the controller: refused"),
    ]
    other = doctor.unseen("leaks", "descriptors of the agent: Permission denied")
    assert doctor.told_once([switch, controller, *blind, other]) == [switch, controller, other]
    assert doctor.told_once([switch, *blind]) == [switch, blind[1]], "what nobody else tells stays"
    assert doctor.told_once(blind) == blind


def certificate(begins: datetime.datetime, ends: datetime.datetime) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "wn1")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(begins).not_valid_after(ends)
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    ("begins", "ends", "wanted"),
    [(-9, 300, None), (-9, 20, Severity.WARNING), (-9, -1, Severity.FAULT), (1, 300, Severity.FAULT)],
)
def test_when_a_certificate_ends(begins: int, ends: int, wanted: Severity | None) -> None:
    day = datetime.timedelta(days=1)
    pem = certificate(NOW + begins * day, NOW + ends * day)
    found = doctor_controller.expiry("certificate", Path("agent.crt"), pem, NOW, "wn1")
    assert [f.severity for f in found] == ([wanted] if wanted else [])


def test_what_is_no_certificate_is_said() -> None:
    assert doctor_controller.expiry("ca", Path("ca.crt"), b"nonsense", NOW, "wn1")[0].severity is Severity.FAULT


@pytest.mark.parametrize(
    ("date", "wanted"),
    [
        ("Sun, 22 Nov 2026 00:00:03 GMT", None),
        ("Sun, 22 Nov 2026 00:00:30 GMT", Severity.WARNING),
        ("Sat, 21 Nov 2026 23:50:00 GMT", Severity.FAULT),
        ("", None),
    ],
)
def test_clocks_that_are_apart(date: str, wanted: Severity | None) -> None:
    found = doctor_controller.clock("https://c", date, NOW)
    assert [f.severity for f in found] == ([wanted] if wanted else [])


def test_the_exit_status_is_that_of_the_worst_finding() -> None:
    a, b = warning("x.w", "w", "y", "z"), fault("x.f", "f", "y", "z")
    assert [findings.exit_status(f) for f in ([], [a], [a, b])] == [0, 1, 2]
    assert [line for line in findings.lines([a, b]) if not line.startswith(" ")] == ["fault: x.f: f", "warning: x.w: w"]


def test_without_a_certificate_of_its_own_a_node_needs_only_the_cas(tmp_path: Path) -> None:
    section = 'controller: {urls: ["https://192.0.2.1:8443"], ca-file: ca.crt, token-file: t}'
    (tmp_path / "agent.yaml").write_text(f"node: wn1\n{section}\nbridge: {{name: wn1-br}}\n")
    said = asyncio.run(doctor_controller.identity(load(tmp_path / "agent.yaml")))
    (found,) = [one for one in said if one.check == "identity.certificate"]
    assert found.mend == f"copy ca.crt of the controller's CA (lark-controller pki) to {tmp_path / 'ca.crt'}"
