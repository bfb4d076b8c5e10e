"""Every example policy on the campus, with real packets: what is measured is what the policy means, for every pair of
jobs and machines, TCP, UDP and ICMP, IPv4 and IPv6, before, during and after jobs.

Each test also names by hand what its policy is for, so that a meaning that is wrong in itself would be noticed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from mininet_tests.topology.jobs import JobHeld
from mininet_tests.topology.lab import Campus
from mininet_tests.topology.matrix import Matrix
from tests.verdict_tables import EXAMPLES, TABLES, read_table

pytestmark = pytest.mark.timeout(300)


def settled(campus: Campus, what: str) -> Matrix:
    """The whole matrix, which must be as the policy means. Something must be reached and something stopped in it."""
    matrix = campus.matrix()
    console = Console(width=200)
    console.print(f"\n{what}")
    console.print(matrix.table())
    assert not matrix.differences, "\n".join(matrix.differences)
    assert matrix.reached > 0, "nothing was reached: the probers themselves are broken"
    return matrix


def test_the_firewalled_file_server_is_reached_by_jobs_of_its_group_in_their_phases_and_by_nobody_else() -> None:
    with Campus(policy=EXAMPLES / "firewalled-file-server" / "policy.yaml", say=print) as campus:
        before = settled(campus, "before any job")
        assert not before.answered("wn1", "fs", "tcp/1094"), "a node itself has no grant"
        assert campus.reach("office", "10.20.0.5", "tcp/1"), "the offices reach every port"
        assert not campus.reach("office", "10.20.0.6", "tcp/1"), "of the address that is named"

        physics = campus.begin_job("wn1", {"LarkGroup": "physics"}, "physics")
        other = campus.begin_job("wn1", {"LarkGroup": "chemistry"}, "other")
        far = campus.begin_job("wn2", {"LarkGroup": "physics"}, "far")
        assert settled(campus, "stage-in").refused > 0
        assert campus.reach(physics, "fileserver", "tcp/1094")
        assert not campus.reach(other, "fileserver", "tcp/1094")

        for job in (physics, other, far):
            campus.run_job(job)
        settled(campus, "run")
        assert campus.reach(physics, "fileserver", "tcp/1094")
        assert campus.reach(far, "fileserver", "icmp")
        assert not campus.reach(physics, "fileserver", "tcp/1"), "other ports of the same machine"
        assert not campus.reach(other, "fileserver", "tcp/1094")
        assert campus.reach(other, "cern", "tcp/1094"), "the same port elsewhere"
        assert not campus.reach("login", "fileserver", "tcp/1094")

        campus.stage_out(physics)
        settled(campus, "one in stage-out")
        assert not campus.reach(physics, "fileserver", "tcp/1094")
        assert campus.reach(far, "fileserver", "tcp/1094")

        address = physics.spec.ipv4
        for job in (physics, other, far):
            campus.end_job(job)
        settled(campus, "after all jobs")
        late = [campus.start_job("wn1", {"LarkGroup": "chemistry"}) for _ in range(2)]
        settled(campus, "jobs of another group in freed lanes")
        assert not any(campus.reach(job, "fileserver", "tcp/1094") for job in late), f"{address} is free of its grant"


def test_the_licence_server_is_reached_by_its_users_and_by_jobs_that_hold_a_token() -> None:
    with Campus(policy=EXAMPLES / "licence-server" / "policy.yaml", say=print) as campus:
        settled(campus, "before any job")
        alice = campus.start_job("wn1", {"User": "alice@site.example"}, "alice")
        capital = campus.start_job("wn1", {"User": "Alice@site.example"}, "capital")
        carol = campus.start_job(
            "wn2", {"User": "carol@site.example", "ConcurrencyLimits": "comsol:2,scratch"}, "carol"
        )
        dave = campus.begin_job("wn2", {"User": "bob@site.example"}, "bob")
        settled(campus, "run")
        assert campus.reach(alice, "matlab-licence", "tcp/27000")
        assert not campus.reach(capital, "matlab-licence", "tcp/27000")
        assert not campus.reach(carol, "matlab-licence", "tcp/27000")
        assert campus.reach(carol, "comsol-licence", "tcp/1718")
        assert not campus.reach(alice, "comsol-licence", "tcp/1718")
        assert not campus.reach(dave, "matlab-licence", "tcp/27000"), "its phase is stage-in still"
        campus.run_job(dave)
        assert campus.reach(dave, "matlab-licence", "tcp/27000")
        assert campus.reach("office", "matlab-licence", "tcp/27000")
        assert not campus.reach("office", "comsol-licence", "tcp/1718")
        with pytest.raises(JobHeld, match="holds-comsol"):
            campus.start_job("wn1", {"User": "dave@site.example", "ConcurrencyLimits": 5})
        for job in (alice, capital, carol, dave):
            campus.end_job(job)
        settled(campus, "after all jobs")


def test_slices_hold_on_one_node_and_across_nodes() -> None:
    with Campus(policy=EXAMPLES / "slices" / "policy.yaml", say=print) as campus:
        alice, bob = {"User": "alice@site.example"}, {"User": "bob@site.example"}
        rank0 = campus.start_job("wn1", alice | {"LarkSlice": "mpi-7"}, "rank0")
        settled(campus, "one member alone")
        rank1 = campus.start_job("wn1", alice | {"LarkSlice": "mpi-7"}, "rank1")
        rank2 = campus.start_job("wn2", alice | {"LarkSlice": "mpi-7"}, "rank2")
        bobs = campus.start_job("wn2", bob | {"LarkSlice": "mpi-7"}, "bobs")
        database = campus.start_job("wn1", alice | {"DAGManJobId": 42, "LarkServes": True}, "database")
        step = campus.start_job("wn2", alice | {"DAGManJobId": 42}, "step")
        settled(campus, "all")
        for port in ("tcp/8080", "udp/8080", "icmp"):
            assert campus.reach(rank0, rank1, port), "on one node"
            assert campus.reach(rank0, rank2, port), "across nodes"
            assert campus.reach(rank2, rank1, port)
            assert not campus.reach(bobs, rank2, port), "on one node, another user's slice of that name"
            assert not campus.reach(rank0, bobs, port)
        assert campus.reach(step, database, "tcp/8000"), "what it serves"
        assert not campus.reach(step, database, "udp/8080")
        assert not campus.reach(database, step, "tcp/8000")
        campus.end_job(rank1)
        settled(campus, "one member has ended")
        assert campus.reach(rank0, rank2, "tcp/8080")


def test_a_sealed_job_reaches_nobody_and_nobody_reaches_it() -> None:
    with Campus(policy=EXAMPLES / "sealed-jobs" / "policy.yaml", say=print) as campus:
        plain = campus.start_job("wn1", {"LarkGroup": "physics"}, "plain")
        sealed = campus.start_job("wn1", {"LarkGroup": "physics", "LarkNetwork": "none"}, "sealed")
        sensitive = campus.begin_job("wn2", {"SensitiveData": True}, "sensitive")
        matrix = settled(campus, "run")
        for cell in matrix.cells:
            if {"sealed", "sensitive"} & {cell.probe.source.name, cell.probe.target.name}:
                assert not cell.measured.arrived, str(cell.probe)
                assert not cell.measured.answered, str(cell.probe)
        assert campus.reach(plain, "archive", "tcp/1094")
        assert not campus.reach(sealed, "archive", "tcp/1094")
        assert not campus.reach(sensitive, "cern", "tcp/8080")
        with pytest.raises(JobHeld, match="must be one of"):
            campus.start_job("wn1", {"LarkNetwork": "nome"})


def test_at_the_border_everything_has_its_class_both_ways_whatever_it_claims() -> None:
    """Probes all claim DSCP 46. The policy is the lab's own."""
    with Campus(say=print) as campus:
        production = campus.start_job("wn1", {"LarkGroup": "cms-production"}, "production")
        other = campus.start_job("wn2", {"LarkGroup": "physics"}, "other")
        matrix = settled(campus, "run")
        seen = {
            (cell.probe.source.name, cell.probe.target.name, cell.probe.port): cell.measured.dscp
            for cell in matrix.cells
            if cell.measured.arrived
        }
        af41, af31, cs1 = 34, 26, 8
        assert seen["production", "cern", "tcp/8080"] == af41
        assert seen["other", "cern", "tcp/8080"] == cs1
        assert seen["other", "cern", "tcp/1094"] == af31
        assert seen["login", "cern", "tcp/1094"] == af31, "a service without a job"
        assert seen["cern", "login", "tcp/1094"] == af31, "inbound"
        assert seen["cern", "login", "udp/8080"] == cs1, "unknown and untrusted"
        assert seen["login", "office", "udp/8080"] == 46, "what does not cross the border is nobody's to mark"
        for job in (production, other):
            campus.end_job(job)
        settled(campus, "after all jobs")


def test_a_jobs_address_from_the_wan_is_stopped_at_the_border() -> None:
    with Campus(say=print) as campus:
        job = campus.start_job("wn1", {"LarkGroup": "physics"}, "job")
        cern = campus.machine("cern")
        cern.need("ip", "address", "add", f"{job.spec.ipv4}/32", "dev", "lo")
        cern.need("ip", "address", "add", "203.0.113.9/32", "dev", "lo")
        for address, arrives in (("203.0.113.9", True), (job.spec.ipv4, False)):
            assert campus.arrives("cern", address, "login", "10.20.0.9", "udp/8080") is arrives, address


@pytest.mark.parametrize("table", TABLES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_example_means_on_real_switches_what_it_means_on_paper(table: Path) -> None:
    """All jobs of the table beside the example run at once, on two nodes in turn."""
    rows = read_table(table)
    with Campus(policy=table.parent / rows.policy, say=print) as campus:
        for number, (name, row) in enumerate(rows.jobs.items()):
            campus.start_job(("wn1", "wn2")[number % 2], row.ad, f"j-{name}")
        matrix = settled(campus, f"{table.parent.name}: {len(rows.jobs)} jobs")
        marked = {cell.expected.dscp for cell in matrix.cells if cell.expected.dscp is not None}
        if marked:
            assert marked <= {cell.measured.dscp for cell in matrix.cells}, "each class is seen at its far end"
        for row in rows.held.values():
            with pytest.raises(JobHeld):
                campus.start_job("wn2", row.ad)
