"""A share of a node's link on the campus: the jobs of a user on a node have it together, as real agents and the real
controller set it, and another user's have their own.

A meter is never above its rate, which every window shows; that it is not below is shown by one of several, for a
machine that stands still loses tokens.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from mininet_tests.border_rig import ETHERNET
from mininet_tests.site.namespaces import wait_until
from mininet_tests.topology import layout
from mininet_tests.topology.lab import Campus
from policies.values import link_rate

POLICY = """\
mode: enforce
shares: [{per: User, share: 1%}]
defaults: {egress: allow, ingress: deny, between-jobs: deny}
"""
ALICE, BOB = {"User": "alice@site.example"}, {"User": "bob@site.example"}
FIRST_PORT = 5301
SETTLE, WINDOW, WINDOWS = 2.0, 3.0, 6
pytestmark = pytest.mark.timeout(300)


def test_two_jobs_of_a_user_have_one_part_of_their_node_s_link_together_and_another_user_his_own(
    tmp_path: Path,
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    part = link_rate(layout.NODE_LINK) / 100
    with Campus(policy=policy, say=print, probing=False) as campus:
        office = campus.machine("office")
        jobs = {name: campus.start_job("wn1", ad, name) for name, ad in (("a1", ALICE), ("a2", ALICE), ("b1", BOB))}
        rules = "add table inet seen\nadd chain inet seen c { type filter hook prerouting priority -300; }\n"
        rules += "".join(
            f"add rule inet seen c ip saddr {job.spec.ipv4} udp dport >= 1 counter\n" for job in jobs.values()
        )
        office.run(["nft", "-f", "-"], given=rules).need()
        offered = {"a1": 0.9 * part, "a2": 0.9 * part, "b1": 0.6 * part}
        for port, (name, job) in enumerate(jobs.items(), FIRST_PORT):
            office.spawn(f"server-{name}", ["iperf3", "-s", "-p", str(port)])
            wait_until("iperf3 listens", lambda port=port: f":{port}" in office.need("ss", "-ltnH"), 10, 0.05)  # type: ignore[misc]
            words = ["iperf3", "-c", layout.place("office").ipv4[0], "-p", str(port), "-t", "600", "-u", "-l", "1400"]
            words += ["-B", job.spec.ipv4, "-b", str(int(offered[name]))]
            campus.machine("wn1").spawn(f"iperf3-{name}", [*campus.entry(job), *words])

        def counted() -> dict[str, float]:
            document = json.loads(office.need("nft", "-j", "list", "table", "inet", "seen"))
            found = [item["rule"]["expr"] for item in document["nftables"] if "rule" in item]
            counters = [next(one["counter"] for one in expr if "counter" in one) for expr in found]
            return dict(zip(jobs, (8 * (c["bytes"] + ETHERNET * c["packets"]) for c in counters), strict=True))

        wait_until("all of them send", lambda: min(counted().values()) > 0, 30)
        time.sleep(SETTLE)
        told = ""
        for _ in range(WINDOWS):
            before, began = counted(), time.monotonic()
            time.sleep(WINDOW)
            after, seconds = counted(), time.monotonic() - began
            rates = {name: (after[name] - before[name]) / seconds for name in jobs}
            together, own = rates["a1"] + rates["a2"], rates["b1"]
            told = f"alice's {together / part:.3f} of the part, bob's {own / part:.3f} (he sends 0.6)"
            print(told)
            assert together <= 1.15 * part, told
            if together >= 0.85 * part and own >= 0.5 * part:
                return
        pytest.fail(f"not in {WINDOWS} windows; the last: {told}")
