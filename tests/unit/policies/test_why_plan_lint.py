"""What administrators ask: why does this packet not pass, what would another policy change, what looks unmeant."""

from __future__ import annotations

import ipaddress

from policies.decide import decide
from policies.lint import lint
from policies.model import Mode, Verdict
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
        Table.CLASSIFY, Table.SPOOF_GUARD, Table.NEIGHBOURS, Table.PLUMBING, Table.SLICE, Table.SERVICE,
        Table.SERVICE_PORT, Table.SERVICE_PAIR, Table.GRANT,
        Table.DENIED, Table.ENFORCE,
    ]  # fmt: skip
    told = {c.table: c.meaning for c in met}
    assert told[Table.SPOOF_GUARD] == told[Table.DENIED] == "attempt job2 on wn1"
    assert told[Table.GRANT] == "service fileserver (demo.yaml:4)"
    granted = carried_out(here, "gate-br", to_server("job1", here), PORTS["gate-br"]["wf0"], ROUTER_MAC)
    assert granted[-2].meaning == "identity 1 (1 attempt): may reach fileserver (demo.yaml:16)"


def test_a_cookie_of_something_that_is_gone_says_so() -> None:
    here = world([])
    assert meaning(here, Cookie(0x4C07000000000063)) == "attempt number 99, which has ended"
    assert meaning(here, Cookie(0x1234)) == "not one of Lark's flows"
    assert meaning(here, Cookie(0x4C04000000000000)) == "infrastructure"


def test_lint_of_the_demo_is_clean() -> None:
    assert lint(demo_policy(), demo_site()) == []
