"""A decision follows from policy, node, literals and phase; what cannot be decided holds the job."""

from __future__ import annotations

from pathlib import Path

import pytest

from policies.decide import Held, decide
from policies.language import load_policy, policy_from_text
from policies.model import Policy
from policies.wire import Phase

POLICY = """
services:
  fs: {hosts: [10.0.0.1], ports: [tcp/1], protected: true}
  lic: {hosts: [10.0.0.2], ports: [tcp/2], protected: true}
attributes:
  LarkNetwork: {type: enum, values: [none, default], default: default}
  LarkSlice: {type: string, max-length: 8}
  RequestNetworkMbps: {type: number, min: 0}
groups:
  physics: 'LarkGroup =?= "physics"'
  alice: 'User =?= "alice@site"'
  fast-slot: 'TARGET.HasFast =?= true'
  sealed: 'LarkNetwork =?= "none"'
  odd: 'ClusterId > 5'
  in-a-dag: 'DAGManJobId =!= undefined'
  asks: 'LarkSlice =!= undefined'
  cms: 'x509UserProxyVOName =?= "cms"'
grants:
  - {for: physics, to: fs, during: [stage-in, run]}
  - {for: alice, to: lic, nodes: ["wn*", "!wn-lab*"]}
  - {for: fast-slot, to: lic}
seal: [sealed]
slices:
  - {for: cms, name: '"cms"', scope: site}
  - {for: in-a-dag, name: 'strcat("dag-", DAGManJobId)'}
  - {for: asks, name: LarkSlice}
"""


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)
    return load_policy(file)


def services(policy: Policy, ad: dict[str, object], phase: Phase = Phase.RUN, node: str = "wn1") -> set[str]:
    return set(decide(policy, node, ad, {}, phase).outcome.services)


def test_grants_add_up_and_undefined_is_not_a_member(policy: Policy) -> None:
    assert services(policy, {}) == set()
    assert services(policy, {"LarkGroup": "physics"}) == {"fs"}
    assert services(policy, {"LarkGroup": "physics", "User": "alice@site"}) == {"fs", "lic"}


def test_identity_comparison_respects_case_of_values_and_ignores_it_in_names(policy: Policy) -> None:
    assert services(policy, {"larkgroup": "physics"}) == {"fs"}
    assert services(policy, {"LarkGroup": "Physics"}) == set()


def test_a_grant_is_worth_something_only_in_its_phases(policy: Policy) -> None:
    ad = {"LarkGroup": "physics"}
    assert services(policy, ad, Phase.STAGE_IN) == {"fs"}
    assert services(policy, ad, Phase.STAGE_OUT) == set()


def test_a_grant_is_worth_something_only_on_its_nodes(policy: Policy) -> None:
    ad = {"User": "alice@site"}
    assert services(policy, ad, node="wn7") == {"lic"}
    assert services(policy, ad, node="wn-lab2") == set()
    assert services(policy, ad, node="other") == set()


def test_target_is_the_slot(policy: Policy) -> None:
    decision = decide(policy, "wn1", {}, {"HasFast": True}, Phase.RUN)
    assert decision.outcome.services == {"lic"}
    assert services(policy, {"HasFast": True}) == set()


def test_a_seal_beats_every_grant(policy: Policy) -> None:
    decision = decide(policy, "wn1", {"LarkGroup": "physics", "LarkNetwork": "none"}, {}, Phase.RUN)
    assert decision.outcome.sealed
    assert not decision.outcome.services


def test_equal_outcomes_are_equal_values(policy: Policy) -> None:
    one = decide(policy, "wn1", {"LarkGroup": "physics"}, {}, Phase.RUN)
    other = decide(policy, "wn2", {"LarkGroup": "physics", "LarkSlice": "x", "User": "u"}, {}, Phase.STAGE_IN)
    assert one.outcome == other.outcome
    assert hash(one.outcome) == hash(other.outcome)


def slice_of(policy: Policy, **ad: object) -> str | None:
    return decide(policy, "wn1", {"User": "a@x", **ad}, {}, Phase.RUN).slice


def test_the_first_slice_rule_wins_and_names_are_the_users_own_unless_site_wide(policy: Policy) -> None:
    assert slice_of(policy) is None
    assert slice_of(policy, LarkSlice="s") == "user/3/a@x/s"
    assert slice_of(policy, LarkSlice="s", DAGManJobId=5) == "user/3/a@x/dag-5"
    assert slice_of(policy, LarkSlice="s", x509UserProxyVOName="cms") == "site/cms"
    assert slice_of(policy, LarkSlice="s", LarkNetwork="none") is None


@pytest.mark.parametrize(("scope", "name"), [("user", "exposed-user/3/a@x/s"), ("site", "exposed-site/s")])
def test_a_slice_of_exposed_ports_is_another_than_an_open_one_of_its_name(scope: str, name: str) -> None:
    rule = f"{{for: everybody, name: '\"s\"', scope: {scope}, between: exposed}}"
    text = f"groups: {{everybody: 'User =!= undefined'}}\nslices: [{rule}]\n"
    assert slice_of(policy_from_text(text)) == name
    assert slice_of(policy_from_text(text.replace(", between: exposed", ""))) == name.removeprefix("exposed-")


def test_the_lowest_rate_wins_and_undefined_is_none() -> None:
    rates = ["{rate: '100', unit: Mbit/s}", "{rate: 'Asked', unit: kbit/s}", "{rate: '50', unit: Mbit/s}"]
    asked = "attributes: {Asked: {type: number}}\n"
    limited = policy_from_text(f"{asked}rates: [{', '.join(rates)}]\n")
    assert decide(limited, "wn1", {}, {}, Phase.RUN).rate == 50_000_000
    assert decide(limited, "wn1", {"Asked": 7}, {}, Phase.RUN).rate == 7_000


def test_no_user_and_name_can_pose_as_another_pair(policy: Policy) -> None:
    assert slice_of(policy, User="a", LarkSlice="b/c") != slice_of(policy, User="a/b", LarkSlice="c")
    assert slice_of(policy, LarkSlice="../cms") != "site/cms"


def test_jobs_of_different_slices_share_an_identity(policy: Policy) -> None:
    one, other = (decide(policy, "wn1", {"User": "a", "LarkSlice": s}, {}, Phase.RUN) for s in ("x", "y"))
    assert one.outcome == other.outcome
    assert one.slice != other.slice


def test_the_trail_names_the_line_that_gave(policy: Policy) -> None:
    decision = decide(policy, "wn1", {"LarkGroup": "physics"}, {}, Phase.RUN)
    assert [f"{place}: {text}" for place, text in decision.trail] == [
        "policy.yaml:19: may reach service fs, as a member of group physics"
    ]


HELD = [
    ({"LarkNetwork": 5}, "LarkNetwork must be one of 'none', 'default', not 5 (policy.yaml:6)"),
    ({"LarkNetwork": "None"}, "LarkNetwork must be one of 'none', 'default', not 'None' (policy.yaml:6)"),
    ({"larknetwork": True}, "LarkNetwork must be one of 'none', 'default', not True (policy.yaml:6)"),
    ({"LarkSlice": "x" * 9}, "LarkSlice must be at most 8 characters long, not 9 (policy.yaml:7)"),
    ({"RequestNetworkMbps": -1}, "RequestNetworkMbps must be at least 0, not -1 (policy.yaml:8)"),
    ({"RequestNetworkMbps": True}, "RequestNetworkMbps must be a number, not True (policy.yaml:8)"),
    ({"ClusterId": "x"}, "the condition of group `odd` is an ERROR for this job (policy.yaml:14)"),
    ({"LarkSlice": "\n"}, "the name of a slice has 1 to 128 printable characters (policy.yaml:26)"),
    (
        {"LarkSlice": "x"},
        "the job's slice is its user's own, and the job has no User; is it in STARTD_JOB_ATTRS? (policy.yaml:26)",
    ),
    (
        {"DAGManJobId": "error", "User": 5},
        "the job's slice is its user's own, and the job has no User; is it in STARTD_JOB_ATTRS? (policy.yaml:25)",
    ),
    ({"A": 1, "a": 2}, "the job has both `A` and `a`: attribute names ignore case"),
]


@pytest.mark.parametrize(("ad", "reason"), HELD, ids=[r[:50] for _, r in HELD])
def test_what_cannot_be_decided_holds_the_job_and_names_the_line(
    policy: Policy, ad: dict[str, object], reason: str
) -> None:
    with pytest.raises(Held) as held:
        decide(policy, "wn1", ad, {}, Phase.RUN)
    assert str(held.value) == reason
    assert held.value.subcode == 101


def test_a_string_value_is_never_evaluated(policy: Policy) -> None:
    assert services(policy, {"LarkGroup": 'physics" || true || "'}) == set()
    assert services(policy, {"LarkGroup": 'strcat("phy","sics")'}) == set()
