"""Which line decides on a job's packet, as the API answers and `larkctl why` writes it."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from policies.wire import AttemptList, AttemptStatus, WhyAnswer
from ryu_apps import larkctl
from ryu_apps.openflow.counters import Slot
from tests.unit.controller.rig import Rig, aid
from tests.unit.controller.test_api import Caller, put, slug
from tests.unit.controller.test_counting import count

JOB = f"/v1/attempts/{aid()}/why"


@pytest.fixture
def call(rig: Rig) -> Caller:
    found = Caller(rig)
    assert found("PUT", f"/v1/attempts/{aid()}", put()).status_code == 201
    return found


def ask(call: Caller, host: str, port: str) -> WhyAnswer:
    return WhyAnswer.model_validate_json(call("GET", f"{JOB}?host={host}&port={port}", who="viewer").body)


def test_the_line_that_decided_is_told_with_the_flows_that_carry_it_out(call: Caller) -> None:
    granted, refused = ask(call, "files", "tcp/1094"), ask(call, "10.20.0.7", "tcp/27000")
    assert (granted.verdict, granted.reasons) == ("allow", [])
    assert (refused.verdict, refused.reasons) == ("drop", ["no-grant"])
    text = "\n".join(refused.lines)
    assert "drop [no-grant]: no grant of this job covers service licence (policy.yaml:4)" in text
    assert "flow DENIED" in text
    assert "dropped at br1" in refused.lines[0]
    # Both families, a service of one, and what has no port.
    assert "2001:db8:20::5" in ask(call, "2001:db8:20::5", "tcp/1094").lines[0]
    assert ask(call, "licence", "icmp").lines[0].startswith("icmp ")


@pytest.mark.parametrize(
    "query",
    ["", "host=files", "port=tcp/1", "host=nobody&port=tcp/1", "host=files&port=1094", "host=files&port=tcp/0",
     "host=files&port=tcp/65536", "host=files&port=sctp/1", "host=files&port=icmp/1", "host=&port=icmp"],
)  # fmt: skip
def test_a_question_that_makes_no_sense_is_refused(call: Caller, query: str) -> None:
    assert slug(call("GET", f"{JOB}?{query}", who="viewer")) == "malformed"


def test_people_ask_and_agents_do_not_and_of_what_is_not_there_nothing_is_told(call: Caller) -> None:
    query = "host=files&port=icmp"
    assert call("GET", f"{JOB}?{query}", who="admin").status_code == 200
    assert slug(call("GET", f"{JOB}?{query}", who="agent1")) == "forbidden"
    assert slug(call("GET", f"/v1/attempts/{aid(9)}/why?{query}", who="admin")) == "no-such-attempt"


def test_larkctl_tells_it_by_the_job_with_what_was_counted(call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    count(call.rig, aid(), Slot.UNGRANTED, 3, 180)

    def get(client: larkctl.Client, path: str, model: type[object], **query: str) -> object:
        asked = "&".join(f"{name}={value}" for name, value in query.items())
        answer = call("GET", f"{path}?{asked}", who="viewer")
        assert model in (WhyAnswer, AttemptList, AttemptStatus)
        return model.model_validate_json(answer.body)  # type: ignore[attr-defined]

    monkeypatch.setattr(larkctl.Client, "get", get)
    said = CliRunner().invoke(larkctl.cli, ["why", "2.0", "licence", "tcp", "27000"]).stdout
    assert "no grant of this job covers service licence (policy.yaml:4)" in said
    assert said.splitlines()[-1] == "so far refused to this job for no-grant: 3 packets (180 B)"
    assert "so far" not in CliRunner().invoke(larkctl.cli, ["why", "2.0", "files", "tcp", "1094"]).stdout
    for wrong in (["icmp", "7"], ["tcp"], ["tcp", "0"], ["sctp", "1"]):
        assert CliRunner().invoke(larkctl.cli, ["why", "2.0", "files", *wrong]).exit_code == 2
