"""Small worlds for tests of the pure core: the demo's site and policy, and jobs on it."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from policies.decide import decide
from policies.language import load_policy, load_site
from policies.model import Attempt, Mode, Policy, Site, World
from policies.wire import Phase
from ryu_apps.openflow.compiler import lane_addresses
from tests.numbers import share_numbers

EXAMPLES = Path(__file__).resolve().parent.parent / "policies" / "examples"
PORTS = {"wn1-br": {"up0": 1}, "gate-br": {"wf0": 1, "sf0": 2, "cf0": 3}}
FIRST_JOB_PORT = 10


def demo_policy(mode: Mode = Mode.ENFORCE) -> Policy:
    return replace(load_policy(EXAMPLES / "demo.yaml"), mode=mode)


def demo_site() -> Site:
    return load_site(EXAMPLES / "demo-site.yaml")


def world(ads: Sequence[Mapping[str, object]] = (), policy: Policy | None = None, site: Site | None = None) -> World:
    """A world with one running job for each ad, in lanes 1, 2, … of node wn1."""
    policy = policy or demo_policy()
    site = site or demo_site()
    empty = World(
        site=site,
        policy=policy,
        ports=PORTS,
        host_addresses={"wn1": (ipaddress.ip_address("10.20.1.1"), ipaddress.ip_address("2001:db8:20::1:1"))},
        service_numbers={name: n for n, name in enumerate(sorted(policy.services), 1)},
        node_numbers={name: n for n, name in enumerate(sorted(site.nodes), 1)},
    )
    for lane, ad in enumerate(ads, 1):
        empty = with_job(empty, lane, ad)
    return empty


def with_job(before: World, lane: int, ad: Mapping[str, object], phase: Phase = Phase.RUN) -> World:
    node = before.site.nodes["wn1"]
    ipv4 = node.ipv4[lane]
    mac, ipv6 = lane_addresses(before.site, "wn1", ipv4)
    decision = decide(before.policy, "wn1", ad, {}, phase)
    outcome = decision.outcome
    job = Attempt(
        id=f"job{lane}",
        number=lane,
        node="wn1",
        bridge=node.bridge,
        port_name=f"lj{lane}",
        ofport=FIRST_JOB_PORT + lane,
        mac=mac,
        ipv4=ipv4,
        ipv6=ipv6,
        zone=1000 + lane,
        phase=phase,
        outcome=outcome,
        slice=decision.slice,
        scitag=decision.scitag,
        rate=decision.rate,
        share=decision.share,
    )
    identities = dict(before.identities)
    identities.setdefault(outcome, len(identities) + 1)
    slices = dict(before.slice_numbers)
    if decision.slice is not None:
        slices.setdefault(decision.slice, len(slices) + 1)
    attempts = {**before.attempts, job.id: job}
    return replace(
        before,
        identities=identities,
        slice_numbers=slices,
        share_numbers=share_numbers(attempts.values()),
        attempts=attempts,
    )
