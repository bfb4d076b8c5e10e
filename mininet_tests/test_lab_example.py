"""The example of docs/lab.md: a test of a policy that somebody else would write."""

from mininet_tests.topology.lab import Campus

POLICY = """
mode: enforce
services: {archive: {hosts: [10.20.0.5], ports: [tcp/1094], protected: true}}
groups: {biology: 'LarkGroup =?= "biology"'}
grants: [{for: biology, to: archive}]
"""


def test_only_biologists_reach_the_archive() -> None:
    with Campus(policy=POLICY) as campus:
        biologist = campus.start_job("wn1", {"LarkGroup": "biology"})
        chemist = campus.start_job("wn2", {"LarkGroup": "chemistry"})
        assert campus.reach(biologist, "archive", "tcp/1094")
        assert not campus.reach(chemist, "archive", "tcp/1094")
        assert not campus.matrix().differences
