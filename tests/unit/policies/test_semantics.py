"""Verdict tables written by hand: what a policy means for single packets, feature by feature and corner by corner.

`semantics` is the oracle that everything else is tested against, so nothing but a person's reading of docs/policy.md
stands behind these tables. A row says who sends what to whom and what must happen: `pass`, `drop REASON`, or
`audit REASON` (counted as refused, and let on). `drop` alone is a refusal that is counted for no job.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace

import pytest

from policies.model import NEVER_OPENED_BY_AUDIT, Attempt, PortKind, Reason, Verdict, World
from policies.semantics import Fragment, Judgement, Packet, Transport, class_of, judge, judge_at_gate
from policies.wire import Phase
from tests.cases import Case, Job, world_of
from tests.drawn import ROUTER_MAC, site_text

GROUPS = """
attributes:
  LarkNetwork: {type: enum, values: [none, default], default: default}
  LarkSlice: {type: string, max-length: 64}
groups:
  physics: 'LarkGroup =?= "physics"'
  bio: 'LarkGroup =?= "bio"'
  asks: 'LarkSlice =!= undefined'
  hermits: 'LarkNetwork =?= "none"'
"""
PHYSICS = {"Owner": "alice", "User": "alice@site", "LarkGroup": "physics"}
BIO = {"Owner": "bob", "User": "bob@site", "LarkGroup": "bio"}
NOBODY = {"Owner": "carol", "User": "carol@site"}


def world(
    policy: str, *ads: dict[str, object], nodes: str = "", guards: tuple[str, ...] = (), **phases: Phase
) -> World:
    """A world of wn1 and wn2; the n-th ad is job n, on wn1 unless the n-th character of `nodes` is 2."""
    jobs = {
        f"job{n}": Job(f"wn{nodes[n - 1 : n] or 1}", n, phases.get(f"job{n}", Phase.RUN), ad)
        for n, ad in enumerate(ads, 1)
    }
    return world_of(Case(policy + GROUPS, site_text(("wn1", "wn2"), guards, six=True), jobs=jobs))


def spoken(word: str) -> tuple[Transport, int]:
    name, _, port = word.partition("/")
    return Transport(name), int(port or 0)


def own(job: Attempt, version: int) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    if version == 4:
        return job.ipv4
    assert job.ipv6 is not None
    return job.ipv6


def address(world: World, name: str, version: int = 4) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return own(world.attempts[name], version) if name in world.attempts else ipaddress.ip_address(name)


FLAGS = {"ack", "tracked", "first", "later", "forged"}


def packet(world: World, line: str) -> Packet:
    """`WHO > WHOM proto/port [from PORT] [ack] [tracked] [first|later] [forged]`; one of the two is a job."""
    who, _, whom, service, *rest = line.split()
    assert not set(rest) - FLAGS - {"from"} - {w for w in rest if w.isdigit()}, line
    near = int(rest[rest.index("from") + 1]) if "from" in rest else 40000
    transport, port = spoken(service)
    version = 6 if ":" in who + whom else 4
    sender = world.attempts.get(who)
    fragment = Fragment.FIRST if "first" in rest else Fragment.LATER if "later" in rest else Fragment.WHOLE
    portless = transport in (Transport.ICMP, Transport.OTHER) or fragment is Fragment.LATER
    return Packet(
        sender=None if sender is None else who,
        mac=ROUTER_MAC if sender is None else sender.mac ^ ("forged" in rest),
        source=address(world, who, version),
        destination=address(world, whom, version),
        transport=Transport.OTHER if fragment is Fragment.LATER and version == 6 else transport,
        source_port=0 if portless else near,
        destination_port=0 if portless else port,
        ack="ack" in rest,
        tracked="tracked" in rest,
        fragment=fragment,
    )


def said(judgement: Judgement) -> str:
    if judgement.reason is None:
        return "pass" if judgement.verdict is Verdict.ALLOW else "drop"
    return f"{'audit' if judgement.verdict is Verdict.ALLOW else 'drop'} {judgement.reason.slug}"


@dataclass(frozen=True)
class Rows:
    """`LINE => VERDICT` for each packet."""

    world: World
    text: str

    def check(self) -> None:
        rows = [line.split("=>") for line in self.text.strip().splitlines() if line.strip()]
        found = [(line.strip(), said(judge(self.world, packet(self.world, line)))) for line, _ in rows]
        assert found == [(line.strip(), verdict.strip()) for line, verdict in rows]


# --- protected services -----------------------------------------------------------------------------------------------

FILES = """
services:
  files: {hosts: [10.20.0.5, "2001:db8:20::5"], ports: [tcp/1094, udp/5000-5009], protected: true}
  echo: {hosts: [10.20.0.6, "2001:db8:20::6"], ports: [icmp], protected: true}
  tapes: {hosts: [10.20.0.5], ports: [tcp/2000], protected: true}
grants:
  - {for: physics, to: files}
  - {for: bio, to: echo, during: [run]}
seal: [hermits]
"""


def test_a_protected_service_is_for_granted_jobs_at_its_very_ports() -> None:
    Rows(
        world(FILES, PHYSICS, NOBODY),
        """
        job1 > 10.20.0.5 tcp/1094 => pass
        job1 > 2001:db8:20::5 tcp/1094 => pass
        job1 > 10.20.0.5 udp/5000 => pass
        job1 > 10.20.0.5 udp/5009 => pass
        job1 > 10.20.0.5 tcp/2000 => drop no-grant
        job2 > 10.20.0.5 tcp/1094 => drop no-grant
        job2 > 2001:db8:20::5 tcp/1094 => drop no-grant
        job2 > 10.20.0.5 udp/5005 => drop no-grant
        job2 > 10.20.0.5 udp/5010 => pass
        job2 > 10.20.0.5 udp/4999 => pass
        job2 > 10.20.0.5 udp/1094 => pass
        job2 > 10.20.0.5 tcp/1095 => pass
        job2 > 10.20.0.6 tcp/1094 => pass
        job2 > 10.20.0.5 icmp => pass
        job2 > 10.20.0.5 other => pass
        """,
    ).check()


def test_icmp_of_a_service_is_its_pings_and_nothing_else() -> None:
    Rows(
        world(FILES, BIO, NOBODY),
        """
        job1 > 10.20.0.6 icmp => pass
        job1 > 2001:db8:20::6 icmp => pass
        job2 > 10.20.0.6 icmp => drop no-grant
        job2 > 2001:db8:20::6 icmp => drop no-grant
        job2 > 10.20.0.6 tcp/80 => pass
        job2 > 10.20.0.6 udp/80 => pass
        job2 > 10.20.0.6 other => pass
        """,
    ).check()


def test_a_grant_ends_with_its_phase() -> None:
    Rows(world(FILES, BIO), "job1 > 10.20.0.6 icmp => pass").check()
    Rows(world(FILES, BIO, job1=Phase.STAGE_OUT), "job1 > 10.20.0.6 icmp => drop no-grant").check()


def test_fragments_to_a_host_with_protected_services() -> None:
    """A later one shows no port: in doubt for all services of its host. A first one decides what the rest may carry."""
    Rows(
        world(FILES, PHYSICS, NOBODY),
        """
        job1 > 10.20.0.5 udp/5000 first => pass
        job1 > 10.20.0.5 udp/5000 later => pass
        job1 > 2001:db8:20::5 udp/5000 later => pass
        job1 > 10.20.0.5 tcp/2000 first => drop no-grant
        job1 > 10.20.0.5 tcp/22 first => drop no-grant
        job1 > 10.20.0.5 icmp first => drop no-grant
        job1 > 10.20.0.5 tcp/22 => pass
        job2 > 10.20.0.5 udp/5000 first => drop no-grant
        job2 > 10.20.0.5 udp/5000 later => drop no-grant
        job2 > 2001:db8:20::5 udp/5000 later => drop no-grant
        job2 > 10.20.0.6 icmp first => drop no-grant
        job2 > 10.20.0.77 udp/5000 first => pass
        job2 > 10.20.0.77 udp/5000 later => pass
        job2 > 2001:db8:20::77 udp/5000 later => pass
        """,
    ).check()


def test_answers_of_granted_tcp_are_known_by_ack_and_everything_else_by_the_connection_table() -> None:
    Rows(
        world(FILES, PHYSICS, NOBODY),
        """
        10.20.0.5 > job1 tcp/40000 from 1094 ack => pass
        10.20.0.5 > job1 tcp/40000 from 1094 => drop ingress
        10.20.0.5 > job1 tcp/40000 from 1095 ack => drop ingress
        10.20.0.5 > job1 tcp/40000 from 2000 ack => drop ingress
        10.20.0.5 > job1 tcp/40000 later => pass
        10.20.0.5 > job1 udp/40000 from 5000 => drop ingress
        10.20.0.5 > job1 udp/40000 from 5000 tracked => pass
        10.20.0.5 > job1 udp/40000 later => drop ingress
        10.20.0.5 > job1 udp/40000 later tracked => pass
        2001:db8:20::5 > job1 tcp/40000 from 1094 ack => pass
        2001:db8:20::5 > job1 tcp/40000 later => drop ingress
        2001:db8:20::5 > job1 tcp/40000 later tracked => pass
        10.20.0.5 > job2 tcp/40000 from 1094 ack => drop ingress
        10.20.0.5 > job2 tcp/40000 later => drop ingress
        8.8.8.8 > job2 tcp/40000 from 443 ack => drop ingress
        8.8.8.8 > job2 tcp/40000 from 443 ack tracked => pass
        """,
    ).check()


# --- what comes first -------------------------------------------------------------------------------------------------


def test_what_no_grant_and_no_audit_opens() -> None:
    policy = "mode: audit\n" + FILES
    sealed = {**PHYSICS, "LarkNetwork": "none"}
    found = world(policy, PHYSICS, sealed, BIO)
    Rows(
        found,
        """
        job1 > 10.20.0.5 tcp/1094 => pass
        job1 > 10.20.0.5 tcp/1094 forged => drop spoofed
        job2 > 10.20.0.5 tcp/1094 => drop sealed
        job2 > 10.20.0.5 tcp/1094 forged => drop sealed
        8.8.8.8 > job2 tcp/40000 from 443 ack tracked => drop
        job1 > 8.8.8.8 udp/68 from 67 => drop spoofed
        job1 > 2001:db8::1 udp/546 from 547 => drop spoofed
        job1 > 8.8.8.8 udp/68 from 547 => pass
        job1 > 224.0.0.5 udp/5353 => drop multicast
        job1 > 10.20.255.255 udp/5353 => drop multicast
        job1 > 255.255.255.255 udp/5353 => drop multicast
        job1 > 0.0.0.1 udp/5353 => drop multicast
        job1 > 169.254.1.1 tcp/80 => drop multicast
        job1 > ff02::5 udp/5353 => drop multicast
        job1 > fe80::5 tcp/80 => drop multicast
        job1 > 192.0.2.1 tcp/6640 => drop node
        job1 > 10.20.2.1 tcp/22 => drop node
        job1 > job3 tcp/22 => audit between-jobs
        job1 > job2 tcp/22 => drop between-jobs
        """,
    ).check()
    assert set(NEVER_OPENED_BY_AUDIT) == {Reason.SPOOFED, Reason.SEALED, Reason.NODE, Reason.MULTICAST}


SIX = "2001:db8:20:1::a14:142"
"""The address of job 2 on wn1."""


@pytest.mark.parametrize(
    ("way", "refused", "control"),
    [
        ("mode: audit", "drop between-jobs", "audit between-jobs"),
        ("node-modes: [{nodes: [wn1], mode: audit}]", "drop between-jobs", "audit between-jobs"),
        ("defaults: {between-jobs: audit}", "drop between-jobs", "audit between-jobs"),
        ("defaults: {between-jobs: allow}", "drop", "pass"),
        ("slices: [{for: asks, name: LarkSlice}]", "drop between-jobs", "pass"),
    ],
)
def test_nothing_reaches_a_sealed_job_of_the_same_bridge_or_of_another(way: str, refused: str, control: str) -> None:
    policy = f"{way}\nseal: [hermits]\n"
    one, sealed = {**PHYSICS, "LarkSlice": "s"}, {**PHYSICS, "LarkSlice": "s", "LarkNetwork": "none"}
    here = world(policy, one, sealed, one)
    Rows(
        here,
        f"""
        job1 > job2 tcp/22 => {refused}
        job1 > job2 tcp/22 later => {refused}
        job1 > {SIX} udp/53 => {refused}
        job1 > job3 tcp/22 => {control}
        """,
    ).check()
    assert judge(here, packet(here, "job1 > job3 tcp/22")).text != "the job at the far end is sealed"
    Rows(world(policy, one, sealed, nodes="12"), "10.20.1.65 > job2 tcp/22 => drop").check()


def test_an_address_of_this_node_s_jobs_from_outside_is_forged() -> None:
    found = world("mode: audit", PHYSICS, BIO)
    Rows(
        found,
        """
        10.20.1.66 > job1 tcp/22 ack tracked => drop
        10.20.1.90 > job1 tcp/22 ack tracked => drop
        2001:db8:20:1::a14:142 > job1 tcp/22 ack tracked => drop
        10.20.1.60 > job1 tcp/22 ack tracked => pass
        """,
    ).check()


CLOSED = """
mode: audit
services:
  vault: {hosts: [192.0.2.10, 10.20.2.1, 10.20.0.9], ports: [tcp/1094], protected: true, mode: audit}
grants: [{for: physics, to: vault}]
"""


def test_a_service_on_a_closed_host_is_for_granted_jobs_and_audit_opens_it_to_nobody() -> None:
    Rows(
        world(CLOSED, PHYSICS, NOBODY),
        """
        job1 > 192.0.2.10 tcp/1094 => pass
        job1 > 192.0.2.10 tcp/1094 later => pass
        job1 > 192.0.2.10 tcp/1095 => drop node
        job1 > 192.0.2.10 tcp/1095 first => drop no-grant
        job2 > 192.0.2.10 tcp/1094 => drop no-grant
        job2 > 192.0.2.10 tcp/1094 later => drop no-grant
        job2 > 10.20.2.1 tcp/1094 => drop no-grant
        job2 > 10.20.0.9 tcp/1094 => audit no-grant
        job2 > 10.20.0.9 tcp/1095 first => audit no-grant
        """,
    ).check()


def test_what_an_agent_says_of_its_host_closes_addresses_to_its_own_jobs_only() -> None:
    found = world(CLOSED, NOBODY, NOBODY, nodes="12")
    told = replace(found, host_addresses={"wn1": (ipaddress.ip_address("10.20.0.9"), ipaddress.ip_address("9.9.9.9"))})
    Rows(
        told,
        """
        job1 > 10.20.0.9 tcp/1094 => drop no-grant
        job1 > 9.9.9.9 tcp/80 => drop node
        job2 > 10.20.0.9 tcp/1094 => audit no-grant
        job2 > 9.9.9.9 tcp/80 => pass
        """,
    ).check()


# --- audit ------------------------------------------------------------------------------------------------------------

AUDITED = """
services:
  open-soon: {hosts: [10.20.0.5], ports: [tcp/1094], protected: true, mode: audit}
  shut: {hosts: [10.20.0.5, 10.20.0.6], ports: [tcp/2000], protected: true}
grants:
  - {for: physics, to: shut, mode: audit}
  - {for: physics, to: shut, during: [stage-in]}
"""


def test_a_service_or_a_grant_in_audit_lets_refusals_on() -> None:
    Rows(
        world(AUDITED, PHYSICS, NOBODY),
        """
        job1 > 10.20.0.5 tcp/1094 => audit no-grant
        job1 > 10.20.0.5 tcp/2000 => audit no-grant
        job2 > 10.20.0.5 tcp/1094 => audit no-grant
        job2 > 10.20.0.5 tcp/2000 => drop no-grant
        job2 > 10.20.0.5 tcp/2000 later => audit no-grant
        job2 > 10.20.0.6 tcp/2000 later => drop no-grant
        job1 > 10.20.0.6 tcp/2000 later => audit no-grant
        job1 > 10.20.0.6 tcp/22 first => drop no-grant
        """,
    ).check()
    granted = world(AUDITED, PHYSICS, job1=Phase.STAGE_IN)
    Rows(granted, "job1 > 10.20.0.5 tcp/2000 => pass").check()


@pytest.mark.parametrize(
    ("defaults", "expected"),
    [
        ("{egress: deny, ingress: deny, between-jobs: deny}", ("drop egress", "drop ingress", "drop between-jobs")),
        ("{egress: audit, ingress: deny, between-jobs: deny}", ("audit egress", "drop ingress", "drop between-jobs")),
        ("{egress: deny, ingress: audit, between-jobs: deny}", ("drop egress", "audit ingress", "drop between-jobs")),
        ("{egress: deny, ingress: deny, between-jobs: audit}", ("drop egress", "drop ingress", "audit between-jobs")),
        ("{egress: allow, ingress: allow, between-jobs: allow}", ("pass", "pass", "pass")),
    ],
)
def test_each_default_is_audited_alone(defaults: str, expected: tuple[str, str, str]) -> None:
    found = world(f"defaults: {defaults}\n", PHYSICS, BIO)
    lines = ("job1 > 8.8.8.8 tcp/443", "8.8.8.8 > job1 tcp/22", "job1 > job2 tcp/22")
    assert tuple(said(judge(found, packet(found, line))) for line in lines) == expected


def test_the_first_mode_that_fits_a_node_decides_for_its_jobs() -> None:
    policy = """
node-modes:
  - {nodes: ["*", "!wn1"], mode: audit}
  - {nodes: ["wn2"], mode: enforce}
defaults: {egress: deny}
"""
    Rows(
        world(policy, PHYSICS, PHYSICS, nodes="12"),
        """
        job1 > 8.8.8.8 tcp/443 => drop egress
        job2 > 8.8.8.8 tcp/443 => audit egress
        job1 > job2 tcp/22 => drop between-jobs
        job2 > job1 tcp/22 => audit between-jobs
        8.8.8.8 > job1 tcp/22 => drop ingress
        8.8.8.8 > job2 tcp/22 => audit ingress
        """,
    ).check()
    Rows(world("mode: audit" + policy, PHYSICS), "job1 > 8.8.8.8 tcp/443 => audit egress").check()
    enforcing = "mode: audit\nnode-modes: [{nodes: [wn1], mode: enforce}]\ndefaults: {egress: deny}\n"
    Rows(world(enforcing, PHYSICS), "job1 > 8.8.8.8 tcp/443 => drop egress").check()


# --- slices -----------------------------------------------------------------------------------------------------------


def sliced(ad: dict[str, object], name: str = "dag") -> dict[str, object]:
    return {**ad, "LarkSlice": name}


EXPOSED = """
slices: [{for: asks, name: LarkSlice, between: exposed}]
expose:
  - {for: physics, ports: [tcp/8000-8009, udp/53], to: slice}
"""


def test_members_of_a_slice_of_exposed_ports_reach_only_those() -> None:
    alice, other = sliced(PHYSICS), sliced({**PHYSICS, "LarkGroup": "bio"})
    found = world(EXPOSED, alice, other, sliced(PHYSICS, "another"), sliced(BIO))
    Rows(
        found,
        """
        job2 > job1 tcp/8000 => pass
        job2 > job1 tcp/8009 ack => pass
        job2 > job1 udp/53 => pass
        job2 > job1 tcp/8010 => drop between-jobs
        job2 > job1 udp/8000 => drop between-jobs
        job2 > job1 icmp => drop between-jobs
        job1 > job2 tcp/8000 => drop between-jobs
        job1 > job2 tcp/40000 from 8000 ack => pass
        job1 > job2 tcp/40000 from 8000 => drop between-jobs
        job1 > job2 udp/40000 from 53 => pass
        job1 > job2 udp/40000 from 54 => drop between-jobs
        job2 > job1 udp/40000 later => pass
        job1 > job2 udp/40000 later => pass
        job3 > job1 tcp/8000 => drop between-jobs
        job4 > job1 tcp/8000 => drop between-jobs
        """,
    ).check()


def test_an_exposed_slice_is_judged_the_same_where_it_arrives() -> None:
    alice, other = sliced(PHYSICS), sliced({**PHYSICS, "LarkGroup": "bio"})
    Rows(
        world(EXPOSED, alice, other, nodes="12"),
        """
        job2 > job1 tcp/8000 => pass
        10.20.2.66 > job1 tcp/8000 => pass
        10.20.2.66 > job1 tcp/8010 => drop between-jobs
        10.20.1.65 > job2 tcp/40000 from 8000 ack => pass
        10.20.1.65 > job2 tcp/40000 from 8000 => drop between-jobs
        10.20.1.65 > job2 tcp/8000 => drop between-jobs
        10.20.1.99 > job2 tcp/8000 => drop between-jobs
        """,
    ).check()


def test_nobody_serves_in_a_slice_where_nobody_is_of_an_exposing_group() -> None:
    bio = {**BIO, "User": "alice@site"}
    Rows(
        world(EXPOSED, sliced(bio), sliced(bio)),
        """
        job1 > job2 tcp/8000 => drop between-jobs
        job1 > job2 udp/53 later => drop between-jobs
        """,
    ).check()


def test_an_open_slice_and_an_exposed_one_of_the_same_name_are_two() -> None:
    policy = """
slices:
  - {for: physics, name: LarkSlice}
  - {for: asks, name: LarkSlice, between: exposed}
expose: [{for: bio, ports: [tcp/8000], to: slice}]
"""
    bio = {**BIO, "User": "alice@site"}
    Rows(
        world(policy, sliced(PHYSICS), sliced(PHYSICS), sliced(bio), sliced(bio)),
        """
        job1 > job2 tcp/22 => pass
        job1 > job3 tcp/8000 => drop between-jobs
        job4 > job3 tcp/8000 => pass
        job4 > job3 tcp/22 => drop between-jobs
        """,
    ).check()


@pytest.mark.parametrize(("between", "expected"), [("allow", "pass"), ("audit", "audit between-jobs")])
def test_what_a_slice_does_not_open_is_left_to_the_default(between: str, expected: str) -> None:
    found = world(EXPOSED + f"defaults: {{between-jobs: {between}}}\n", sliced(PHYSICS), sliced(PHYSICS))
    assert said(judge(found, packet(found, "job1 > job2 tcp/22"))) == expected
    assert said(judge(found, packet(found, "job1 > job2 tcp/8000"))) == "pass"


def test_site_wide_slices_join_users_and_a_sealed_job_has_no_slice() -> None:
    policy = "slices: [{for: physics, name: '\"all\"', scope: site}]\nseal: [hermits]\n"
    other = {**PHYSICS, "User": "bob@site"}
    Rows(
        world(policy, PHYSICS, other, {**other, "LarkNetwork": "none"}, BIO),
        """
        job1 > job2 tcp/22 => pass
        job1 > job3 tcp/22 => drop between-jobs
        job1 > job4 tcp/22 => drop between-jobs
        job4 > job1 tcp/22 => drop between-jobs
        """,
    ).check()


# --- exposed to networks ----------------------------------------------------------------------------------------------

SERVING = """
networks: {campus: [10.9.0.0/16, "2001:db8:9::/48"], desk: [10.9.1.1, "8.8.8.8"]}
expose:
  - {for: physics, ports: [tcp/8080, icmp], to: [campus]}
  - {for: bio, ports: [udp/53], to: [desk]}
"""


def test_a_job_serves_the_networks_that_a_rule_names_and_nobody_else() -> None:
    Rows(
        world(SERVING, PHYSICS, BIO, NOBODY),
        """
        10.9.7.7 > job1 tcp/8080 => pass
        2001:db8:9::7 > job1 tcp/8080 => pass
        10.9.7.7 > job1 icmp => pass
        10.9.7.7 > job1 tcp/8081 => drop ingress
        10.9.7.7 > job1 udp/8080 => drop ingress
        10.9.7.7 > job1 tcp/8080 first => pass
        10.9.7.7 > job1 tcp/8080 later => pass
        2001:db8:9::7 > job1 tcp/8080 later => pass
        8.8.8.8 > job1 tcp/8080 => drop ingress
        8.8.8.8 > job1 tcp/8080 later => drop ingress
        10.9.1.1 > job2 udp/53 => pass
        8.8.8.8 > job2 udp/53 => pass
        10.9.7.7 > job2 udp/53 => drop ingress
        10.9.1.1 > job2 tcp/8080 => drop ingress
        10.9.7.7 > job3 tcp/8080 => drop ingress
        """,
    ).check()


def test_what_is_exposed_to_a_network_is_not_exposed_to_jobs() -> None:
    wide = SERVING.replace("10.9.0.0/16", "10.0.0.0/8")
    Rows(
        world(wide, PHYSICS, NOBODY, nodes="12"),
        """
        10.20.2.66 > job1 tcp/8080 => drop between-jobs
        10.20.3.66 > job1 tcp/8080 => pass
        """,
    ).check()


def test_the_answers_of_an_exposed_port_pass_although_egress_is_denied() -> None:
    policy = SERVING + "defaults: {egress: deny}\n"
    Rows(
        world(policy, PHYSICS, NOBODY),
        """
        job1 > 10.9.7.7 tcp/40000 from 8080 ack tracked => pass
        job1 > 10.9.7.7 tcp/40000 from 8080 ack => drop egress
        job1 > 192.0.2.1 tcp/40000 from 8080 ack tracked => drop node
        job2 > 10.9.7.7 tcp/40000 from 8080 ack tracked => drop egress
        """,
    ).check()
    closed = world("defaults: {egress: deny}\n", PHYSICS)
    Rows(closed, "job1 > 10.9.7.7 tcp/40000 from 8080 ack tracked => drop egress").check()


# --- classes ----------------------------------------------------------------------------------------------------------

CLASSES = """
services:
  xrootd: {ports: [tcp/1094-1095]}
  web: {hosts: [10.9.0.7, "2001:db8:9::7"], ports: [tcp/80, tcp/1094, icmp]}
classes:
  - {name: production, dscp: af41}
  - {name: transfers, dscp: af31}
  - {name: rest, dscp: 0}
  - {name: scraps, dscp: cs1}
classify:
  - {for: physics, service: web, class: production}
  - {service: xrootd, class: transfers}
  - {for: physics, class: rest}
"""


def class_name(found: World, line: str) -> str:
    traffic_class = class_of(found, packet(found, line))
    assert traffic_class is not None
    return traffic_class.name


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("job1 > 10.9.0.7 tcp/80", "production"),
        ("job1 > 2001:db8:9::7 tcp/80", "production"),
        ("job1 > 10.9.0.7 icmp", "production"),
        ("job1 > 10.9.0.7 tcp/1094", "production"),
        ("job2 > 10.9.0.7 tcp/1094", "transfers"),
        ("job2 > 10.9.0.7 tcp/80", "scraps"),
        ("job1 > 8.8.8.8 tcp/1095", "transfers"),
        ("job1 > 8.8.8.8 udp/1095", "rest"),
        ("job1 > 8.8.8.8 icmp", "rest"),
        ("job2 > 8.8.8.8 tcp/443 from 1094", "scraps"),
        ("job1 > 10.9.0.7 tcp/80 first", "production"),
        ("job1 > 10.9.0.7 tcp/80 later", "rest"),
        ("job2 > 8.8.8.8 tcp/1094 later", "scraps"),
        ("8.8.8.8 > job2 tcp/40000 from 1094 ack", "transfers"),
        ("8.8.8.8 > job2 tcp/1094 from 40000", "scraps"),
        ("10.9.0.7 > job1 tcp/40000 from 80 ack", "production"),
        ("job1 > job2 tcp/1094", "transfers"),
        ("job1 > job2 tcp/22", "rest"),
    ],
)
def test_the_first_rule_of_classify_that_fits_decides(line: str, expected: str) -> None:
    assert class_name(world(CLASSES, PHYSICS, BIO), line) == expected


def test_traffic_without_a_job_is_classed_by_either_end() -> None:
    found = world(CLASSES, PHYSICS)
    assert class_name(found, "8.8.8.8 > 10.9.9.9 tcp/1094") == "transfers"
    assert class_name(found, "8.8.8.8 > 10.9.9.9 tcp/40000 from 1094") == "transfers"
    assert class_name(found, "8.8.8.8 > 10.9.9.9 tcp/40000") == "scraps"


def test_a_policy_without_classes_marks_nothing() -> None:
    found = world("mode: enforce\n", PHYSICS)
    assert class_of(found, packet(found, "job1 > 8.8.8.8 tcp/443")) is None


# --- gates ------------------------------------------------------------------------------------------------------------

GUARDED = """
networks: {staff: [10.9.0.0/16], wide: [10.0.0.0/8]}
services:
  files: {hosts: [10.20.0.5, "2001:db8:20::5"], ports: [tcp/1094, udp/5000, icmp], protected: true}
  tapes: {hosts: [10.20.0.5, 10.20.0.6], ports: [tcp/2000], protected: true, open-to: [staff]}
  lenient: {hosts: [10.20.0.8], ports: [tcp/80], protected: true, open-to: [wide], mode: audit}
grants:
  - {for: physics, to: files}
  - {for: bio, to: tapes, mode: audit}
"""
ALL = ("files", "tapes", "lenient")
SIDES = {
    "workers": PortKind.WORKER_FACING,
    "servers": PortKind.SERVER_FACING,
    "campus": PortKind.UPLINK,
}


def gate_rows(found: World, text: str) -> None:
    """`SIDE: LINE => VERDICT`."""
    rows = [line.split("=>") for line in text.strip().splitlines() if line.strip()]
    gate = found.site.bridges["gate-br"]
    got = []
    for left, _ in rows:
        side, line = left.strip().split(": ", 1)
        seen = packet(found, line.strip())
        if line.split()[0] in found.attempts:
            seen = replace(seen, sender=None)
        got.append((left.strip(), said(judge_at_gate(found, gate, seen, SIDES[side]))))
    assert got == [(left.strip(), verdict.strip()) for left, verdict in rows]


def test_a_gate_lets_granted_jobs_and_open_networks_in() -> None:
    gate_rows(
        world(GUARDED, PHYSICS, BIO, NOBODY, guards=ALL),
        """
        workers: job1 > 10.20.0.5 tcp/1094 => pass
        workers: job1 > 2001:db8:20::5 tcp/1094 => pass
        workers: job1 > 10.20.0.5 icmp => pass
        workers: job1 > 10.20.0.5 tcp/1094 forged => drop no-grant
        workers: job1 > 10.20.0.5 tcp/2000 => drop no-grant
        workers: job1 > 10.20.0.5 tcp/2000 later => pass
        workers: job1 > 10.20.0.6 tcp/2000 later => drop no-grant
        workers: job1 > 10.20.0.5 tcp/22 => pass
        workers: job1 > 10.20.0.5 tcp/22 first => drop no-grant
        workers: job2 > 10.20.0.6 tcp/2000 => audit no-grant
        workers: job2 > 10.20.0.5 tcp/1094 => drop no-grant
        workers: job2 > 10.20.0.5 udp/5000 later => audit no-grant
        workers: job3 > 10.20.0.5 tcp/1094 => drop no-grant
        workers: job3 > 10.20.0.8 tcp/80 => audit no-grant
        workers: job3 > 10.20.0.77 tcp/80 => pass
        campus: 10.9.1.1 > 10.20.0.6 tcp/2000 => pass
        campus: 10.9.1.1 > 10.20.0.6 tcp/2000 later => pass
        campus: 10.9.1.1 > 10.20.0.5 tcp/1094 => drop no-grant
        campus: 8.8.8.8 > 10.20.0.6 tcp/2000 => drop no-grant
        campus: 8.8.8.8 > 10.20.0.8 tcp/80 => audit no-grant
        campus: 10.20.1.65 > 10.20.0.6 tcp/2000 => drop spoofed
        campus: 10.20.0.5 > 10.20.0.6 tcp/2000 => drop spoofed
        workers: 10.20.0.5 > 10.20.0.6 tcp/2000 => drop spoofed
        """,
    )


def test_a_gate_lets_servers_answer_where_the_question_may_pass() -> None:
    gate_rows(
        world(GUARDED, PHYSICS, BIO, NOBODY, guards=ALL),
        """
        servers: 10.20.0.5 > job1 tcp/40000 from 1094 ack => pass
        servers: 10.20.0.5 > job1 tcp/40000 from 1094 => drop no-grant
        servers: 10.20.0.5 > job1 udp/40000 from 5000 => pass
        servers: 10.20.0.5 > job1 icmp => pass
        servers: 10.20.0.5 > job3 tcp/40000 from 1094 ack => drop no-grant
        servers: 10.20.0.5 > job3 udp/40000 from 5000 => drop no-grant
        servers: 10.20.0.6 > job2 tcp/40000 from 2000 ack => audit no-grant
        servers: 10.20.0.6 > 10.9.1.1 tcp/40000 from 2000 ack => pass
        servers: 10.20.0.6 > 8.8.8.8 tcp/40000 from 2000 ack => drop no-grant
        servers: 10.20.0.8 > job3 tcp/40000 from 80 ack => audit no-grant
        servers: 10.20.0.5 > job3 tcp/40000 from 22 => pass
        servers: 10.20.0.77 > job3 tcp/40000 from 22 => pass
        """,
    )


def test_a_gate_only_knows_what_it_guards() -> None:
    gate_rows(
        world(GUARDED, PHYSICS, NOBODY, guards=("tapes",)),
        """
        workers: job2 > 10.20.0.5 tcp/1094 => pass
        workers: job2 > 10.20.0.6 tcp/2000 => drop no-grant
        workers: job2 > 10.20.0.5 tcp/1094 first => drop no-grant
        """,
    )


def test_open_to_never_means_jobs() -> None:
    strict = GUARDED.replace(", mode: audit}\ngrants", "}\ngrants")
    gate_rows(
        world(strict, NOBODY, guards=ALL),
        """
        workers: job1 > 10.20.0.8 tcp/80 => drop no-grant
        workers: 10.20.1.99 > 10.20.0.8 tcp/80 => drop no-grant
        campus: 10.20.3.1 > 10.20.0.8 tcp/80 => pass
        """,
    )


def test_at_a_gate_a_job_s_node_sets_the_mode_and_the_site_s_mode_is_for_others() -> None:
    policy = GUARDED + "mode: audit\nnode-modes: [{nodes: [wn1], mode: enforce}]\n"
    gate_rows(
        world(policy, NOBODY, NOBODY, nodes="12", guards=ALL),
        """
        workers: job1 > 10.20.0.6 tcp/2000 => drop no-grant
        workers: 10.20.1.99 > 10.20.0.6 tcp/2000 => drop no-grant
        workers: job2 > 10.20.0.6 tcp/2000 => audit no-grant
        campus: 8.8.8.8 > 10.20.0.6 tcp/2000 => audit no-grant
        campus: 8.8.8.8 > 10.20.0.6 tcp/22 first => audit no-grant
        servers: 10.20.0.6 > job1 tcp/40000 from 2000 ack => drop no-grant
        servers: 10.20.0.6 > job2 tcp/40000 from 2000 ack => audit no-grant
        servers: 10.20.0.6 > 8.8.8.8 tcp/40000 from 2000 ack => audit no-grant
        servers: 10.20.0.6 > 8.8.8.8 tcp/40000 from 2000 => drop no-grant
        """,
    )


# --- the lines that decide --------------------------------------------------------------------------------------------


def test_a_verdict_names_the_line_that_decided() -> None:
    policy = (
        "services:\n"
        "  files: {hosts: [10.20.0.5], ports: [tcp/1094], protected: true}\n"
        "  tapes: {hosts: [10.20.0.5], ports: [tcp/2000], protected: true}\n"
        "networks: {campus: [10.9.0.0/16]}\n"
        "grants: [{for: physics, to: files}]\n"
        "expose:\n"
        "  - {for: physics, ports: [udp/53], to: [campus]}\n"
        "  - {for: physics, ports: [tcp/80], to: [campus]}\n"
        "defaults: {egress: deny}\n"
    )
    found = world(policy, PHYSICS)
    lines = {
        "job1 > 10.20.0.5 tcp/1094": 2,
        "10.20.0.5 > job1 tcp/40000 from 1094 ack": 2,
        "job1 > 10.20.0.5 tcp/2000": 3,
        "10.9.1.1 > job1 tcp/80": 8,
        "10.9.1.1 > job1 udp/53 later": 7,
        "job1 > 8.8.8.8 tcp/443": 9,
        "8.8.8.8 > job1 tcp/443": 9,
    }
    places = {line: judge(found, packet(found, line)).place for line in lines}
    assert {line: place.line if place else None for line, place in places.items()} == lines
