"""`shares`: which of them a job has, with whom, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from policies.decide import Held, decide
from policies.language import PolicyError, load_site, policy_from_text
from policies.lint import lint
from policies.model import Bandwidth, Sharing
from policies.sitefile import check_together
from policies.wire import Phase

POLICY = """
groups: {guests: 'regexp("@guests$", User)', sealed: 'Owner =?= "s"'}
seal: [sealed]
shares:
  - {for: guests, share: 200 Mbit/s}
  - {per: User, share: 30%}
"""
SITE = """\
site: one
network: {ipv4: 10.20.0.0/16}
nodes: {wn1: {bridge: br1, ipv4: 10.20.1.0/24LINK}}
bridges: {br1: {datapath-id: "a1", roles: [worker], ports: {uplink: [up0]}}}
"""


def share(text: str, **ad: object) -> Sharing | None:
    return decide(policy_from_text(text), "wn1", ad, {}, Phase.RUN).share


def test_the_first_share_that_fits_counts_and_jobs_for_which_it_goes_by_the_same_text_have_it_together() -> None:
    one, other = share(POLICY, User="a@guests"), share(POLICY, User="b@guests")
    assert one == other == Sharing("guests//", Bandwidth(bits=200_000_000))
    alice, again, bob = (share(POLICY, User=user) for user in ("alice@site", "alice@site", "bob@site"))
    assert alice == again == Sharing("/User/alice@site", Bandwidth(percent=30))
    assert bob != alice
    assert share(POLICY, User="Alice@site") != alice, "names differ in the case of their letters, too"


def test_a_job_without_what_it_goes_by_shares_with_the_others_that_have_none() -> None:
    assert share(POLICY) == Sharing("/User/", Bandwidth(percent=30)) != share(POLICY, User="alice@site")


def test_a_sealed_job_has_no_share() -> None:
    assert share(POLICY, Owner="s", User="a@guests") is None
    assert share(POLICY, Owner="t", User="a@guests") is not None


@pytest.mark.parametrize("user", [5, True, "a\nb", "x" * 257])
def test_what_is_no_text_to_go_by_holds_the_job_with_the_line(user: object) -> None:
    by_user = "shares: [{per: User, share: 30%}]"
    assert share(by_user, User="x" * 256) is not None
    with pytest.raises(Held) as held:
        share(by_user, User=user)
    assert "what this job's share goes by (User) is" in held.value.reason
    assert held.value.place is not None
    assert held.value.place.line == 1


def test_the_trail_says_what_is_shared_with_whom_and_which_line_says_so() -> None:
    policy = policy_from_text(POLICY)
    told = [str(place) + ": " + text for place, text in decide(policy, "wn1", {"User": "a@s"}, {}, Phase.RUN).trail]
    assert told == [
        "policy.yaml:6: at most 30% of the node's link together with all jobs with the same User on the node"
    ]
    guest = decide(policy, "wn1", {"User": "a@guests"}, {}, Phase.RUN).trail
    assert guest[-1][1] == "at most 200 Mbit/s together with the jobs of group guests on the node"


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ("{per: User}", "`shares.share` is missing"),
        ("{per: User, share: 5}", "5 is not a bandwidth"),
        ("{per: User, share: 0%}", "0%' is no part of a link"),
        ("{for: nobody, share: 5 Mbit/s}", "group `nobody` is not defined"),
        ("{per: 5, share: 5 Mbit/s}", "policy.yaml:1"),
        ("{per: AcctGroup, share: 5 Mbit/s}", "this share goes by `AcctGroup`, which the job's owner can set"),
        ("{per: User, share: 5 Mbit/s, colour: red}", "unknown key `colour`"),
    ],
)
def test_what_is_wrong_with_a_share_is_told_with_its_line(rule: str, problem: str) -> None:
    assert policy_from_text("shares: [{per: User, share: 5 Mbit/s}]").shares
    with pytest.raises(PolicyError) as refused:
        policy_from_text(f"shares: [{rule}]")
    assert problem in str(refused.value)
    assert str(refused.value).startswith("policy.yaml:1:")


def test_who_trusts_users_may_go_by_what_they_say() -> None:
    assert policy_from_text("shares: [{per: AcctGroup, share: 5 Mbit/s, trust-user: true}]").shares[0].trust_user


@pytest.mark.parametrize(("link", "good"), [("", False), (", link: 10 Gbit/s", True)])
def test_a_part_of_a_link_needs_a_site_that_says_what_the_link_carries(tmp_path: Path, link: str, good: bool) -> None:
    (tmp_path / "site.yaml").write_text(SITE.replace("LINK", link))
    site, policy = load_site(tmp_path / "site.yaml"), policy_from_text(POLICY)
    if good:
        assert site.nodes["wn1"].link == 10_000_000_000
        check_together(policy, site)
        return
    check_together(policy_from_text(POLICY.replace("30%", "30 Mbit/s")), site)
    with pytest.raises(PolicyError, match=r"policy.yaml:6:5: a share of 30% is part of a node's link.*that of wn1"):
        check_together(policy, site)


@pytest.mark.parametrize("name", ["ClusterId", "MY.ClusterId", "Projects", "Sealed"])
def test_a_share_that_goes_by_what_is_never_a_text_is_refused(name: str) -> None:
    """It would hold every job, and a reload would cut off all that run."""
    declared = (
        "attributes: {Projects: {type: number, set-by: access-point}, Sealed: {type: boolean, set-by: access-point}}"
    )
    with pytest.raises(PolicyError, match=f"so this share would hold every job that has it; .*write string.{name}."):
        policy_from_text(f"{declared}\nshares: [{{per: {name}, share: 10 Mbit/s}}]")
    policy_from_text(f"{declared}\nshares: [{{per: string({name}), share: 10 Mbit/s}}]")


@pytest.mark.parametrize("name", ["DAGManJobId", "MY.ClusterId", "Sealed"])
def test_a_slice_that_is_named_by_what_is_never_a_text_is_refused(name: str) -> None:
    declared = "attributes: {Sealed: {type: boolean}, Team: {type: string}}\ngroups: {g: 'Team =!= undefined'}"
    with pytest.raises(PolicyError, match=f"so this slice would hold every job that has it; .*write string.{name}."):
        policy_from_text(f"{declared}\nslices: [{{for: g, name: {name}}}]")
    assert policy_from_text(f"{declared}\nslices: [{{for: g, name: string({name})}}, {{for: g, name: Team}}]").slices


@pytest.mark.parametrize(("rate", "told"), [("20", True), ("10", False), ("Gbps", False)])
def test_lint_tells_of_a_rate_above_the_link_of_a_node(tmp_path: Path, rate: str, told: bool) -> None:
    (tmp_path / "site.yaml").write_text(SITE.replace("LINK", ", link: 10 Gbit/s"))
    policy = policy_from_text(f"attributes: {{Gbps: {{type: number}}}}\nrates: [{{rate: {rate}, unit: Gbit/s}}]")
    found = [one for one in lint(policy, load_site(tmp_path / "site.yaml")) if "limits nothing" in one.message]
    assert [one.message for one in found] == (
        ["a rate of 20 Gbit/s is more than the link of wn1 carries: it limits nothing there"] if told else []
    )


@pytest.mark.parametrize(("part", "link"), [("0.00001%", "1 Gbit/s"), ("1%", "64 kbit/s")])
def test_a_part_that_is_less_than_a_switch_can_limit_to_is_refused_as_an_amount_is(
    tmp_path: Path, part: str, link: str
) -> None:
    def check(link: str) -> None:
        (tmp_path / "site.yaml").write_text(SITE.replace("LINK", f", link: {link}"))
        check_together(policy_from_text(f"shares: [{{per: User, share: {part}}}]"), load_site(tmp_path / "site.yaml"))

    check("100 Gbit/s")
    with pytest.raises(PolicyError) as refused:
        check(link)
    assert f"a share of {part} of the link of wn1 ({link}) is " in str(refused.value)
    assert "less than a switch can limit to; write 1 kbit/s or more" in str(refused.value)
    with pytest.raises(PolicyError, match="less than a switch can limit to; write 1 kbit/s or more"):
        policy_from_text("shares: [{per: User, share: 1 bit/s}]")


@pytest.mark.parametrize(("share", "told"), [("20 Gbit/s", True), ("10 Gbit/s", False), ("90%", False)])
def test_lint_tells_of_a_share_above_the_link_of_a_node(tmp_path: Path, share: str, told: bool) -> None:
    (tmp_path / "site.yaml").write_text(SITE.replace("LINK", ", link: 10 Gbit/s"))
    policy = policy_from_text(f"shares: [{{per: User, share: {share}}}]")
    found = [one for one in lint(policy, load_site(tmp_path / "site.yaml")) if "limits nothing" in one.message]
    assert [one.message for one in found] == (
        ["a share of 20 Gbit/s is more than the link of wn1 carries: it limits nothing there"] if told else []
    )


@pytest.mark.parametrize("name", ["Mbps", "User"])
def test_a_rate_that_is_never_a_number_is_refused(name: str) -> None:
    with pytest.raises(PolicyError, match=f"`{name}` is a string, so this rate would hold every job that has it"):
        policy_from_text(f"attributes: {{Mbps: {{type: string}}}}\nrates: [{{rate: {name}, unit: Mbit/s}}]")
    policy_from_text("rates: [{rate: RequestCpus, unit: Mbit/s}]")


@pytest.mark.parametrize("text", ["rates: [{rate: 50, unit: bit/s}]", "shares: [{share: 999 bit/s}]"])
def test_a_limit_below_what_a_switch_can_keep_is_a_mistake_of_units(text: str) -> None:
    with pytest.raises(PolicyError, match="less than a switch can limit to; write 1 kbit/s or more, or another unit"):
        policy_from_text(text)
