"""What administrators ask: why does this packet not pass, what would another policy change, what looks unmeant."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from policies.decide import decide
from policies.language import load_policy
from policies.lint import lint
from policies.model import Mode, Policy, Verdict
from policies.plan import Job, plan
from policies.semantics import Packet, Step, Transport
from policies.why import why
from policies.wire import Phase
from ryu_apps.openflow.explain import carried_out, meaning
from ryu_apps.openflow.flows import Cookie
from ryu_apps.openflow.pipeline import Table
from tests.worlds import PORTS, demo_policy, demo_site, world

SERVER = ipaddress.ip_address("10.20.0.5")
ROUTER_MAC = 0x020000000001
PHYSICS: dict[str, object] = {"LarkGroup": "physics"}
OTHER: dict[str, object] = {"LarkGroup": "chemistry"}


def to_server(job: str, here: object) -> Packet:
    attempt = here.attempts[job]
    return Packet(job, attempt.mac, attempt.ipv4, SERVER, Transport.TCP, 40000, 1094)


def test_why_names_the_grant_and_the_condition_that_is_not_met() -> None:
    here = world([PHYSICS, OTHER])
    decision = decide(here.policy, "wn1", OTHER, {}, Phase.RUN)
    explained = why(here, to_server("job2", here), decision)
    assert explained.lines() == [
        "drop [no-grant]: no grant of this job covers service fileserver (demo.yaml:4)",
        "  is the job sealed? did not decide",
        "  does the frame carry the job's own MAC and addresses? did not decide",
        "  is it for one host? did not decide",
        "  is it between jobs? did not decide",
        "  is it for a protected service? decided",
        "  demo.yaml:16: grants fileserver to group physics, but the job is no member"
        ' (demo.yaml:12: LarkGroup =?= "physics")',
    ]


def test_why_of_an_allowed_packet_and_of_audit_mode() -> None:
    here = world([PHYSICS, OTHER])
    assert why(here, to_server("job1", here)).judgement.verdict is Verdict.ALLOW
    audit = world([PHYSICS, OTHER], demo_policy(Mode.AUDIT))
    explained = why(audit, to_server("job2", audit))
    assert explained.judgement.verdict is Verdict.ALLOW
    assert explained.judgement.step is Step.SERVICE
    assert "mode: audit lets it on" in explained.remarks[0].text


def test_the_flows_that_carry_a_verdict_out_are_named_with_their_objects() -> None:
    here = world([PHYSICS, OTHER])
    met = carried_out(here, "wn1-br", to_server("job2", here), here.attempts["job2"].ofport, ROUTER_MAC)
    assert [c.table for c in met] == [
        Table.CLASSIFY, Table.SPOOF_GUARD, Table.PLUMBING, Table.SLICE, Table.SERVICE, Table.SERVICE_PORT, Table.GRANT,
        Table.DENIED, Table.ENFORCE,
    ]  # fmt: skip
    told = {c.table: c.meaning for c in met}
    assert told[Table.SPOOF_GUARD] == told[Table.DENIED] == "attempt job2 on wn1"
    assert told[Table.GRANT] == "service fileserver (demo.yaml:4)"
    granted = carried_out(here, "gate-br", to_server("job1", here), PORTS["gate-br"]["wf0"], ROUTER_MAC)
    assert granted[-2].meaning == "identity 1 (1 attempts): may reach fileserver"


def test_a_cookie_of_something_that_is_gone_says_so() -> None:
    here = world([])
    assert meaning(here, Cookie(0x4C07000000000063)) == "attempt number 99, which has ended"
    assert meaning(here, Cookie(0x1234)) == "not one of Lark's flows"
    assert meaning(here, Cookie(0x4C04000000000000)) == "infrastructure"


def policy_of(tmp_path: Path, text: str) -> Policy:
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    return load_policy(file)


SERVICES = """
services:
  fs: {hosts: [10.0.0.1], ports: [tcp/1094], protected: true}
  lic: {hosts: [10.0.0.2], ports: [tcp/2], protected: true}
"""
OLD = SERVICES + "groups: {p: 'User =?= \"p\"'}\ngrants: [{for: p, to: fs}]\n"
NEW = (
    SERVICES
    + """groups: {p: 'User =?= "p"', q: 'User =?= "q"', odd: 'ClusterId > 5', sealed: 'JobUniverse =?= 5'}
grants: [{for: p, to: lic}, {for: q, to: fs, during: [run]}]
seal: [sealed]
defaults: {egress: deny}
"""
)


def test_plan_says_who_gains_and_who_loses_what(tmp_path: Path) -> None:
    old, new = policy_of(tmp_path, OLD), policy_of(tmp_path, NEW)
    ads: list[dict[str, object]] = [
        {"User": "p"}, {"User": "q"}, {"User": "r"}, {"ClusterId": "x"}, {"User": "p", "JobUniverse": 5},
    ]  # fmt: skip
    jobs = [Job(f"id{n}", f"{n}.0", "wn1", ad, {}, Phase.RUN) for n, ad in enumerate(ads, 1)]
    assert plan(old, new, jobs).lines() == [
        "~ defaults.egress: allow becomes drop (policy.yaml:8)",
        "- 1.0 on wn1: gains lic (policy.yaml:6), loses fs",
        "+ 2.0 on wn1: gains fs (policy.yaml:6)",
        "! 4.0 on wn1: would be held, and if it runs, sealed: the condition of group `odd` is an ERROR for this job"
        " (policy.yaml:5)",
        "- 5.0 on wn1: becomes sealed, loses fs",
        "4 jobs change, 1 do not",
    ]
    assert plan(old, old, jobs).lines() == ["0 jobs change, 5 do not"]


def test_lint_of_the_demo_is_clean_and_an_unguarded_service_is_named(tmp_path: Path) -> None:
    assert lint(demo_policy(), demo_site()) == []
    found = lint(policy_of(tmp_path, OLD), demo_site())
    assert "no gate guards `fs`: it is closed to jobs on worker bridges only" in str(found[0])
