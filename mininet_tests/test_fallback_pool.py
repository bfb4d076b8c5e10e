"""The whole site with jobs that bring their own network namespace: a real pool, controller, gate and file server.

`userns` on an execution point with DISABLE_SETUID (23.x and 25.x), `starter` with HTCondor 25's NO_JOB_NETWORKING.
`LARK_TEST_CONDOR` says which pool is tried.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from mininet_tests.site.campus import ALICE, BOB, CAMPUS, FILE_SERVER, HOST_ADDRESS, HTTP_PORT, NODE, Site
from mininet_tests.site.namespaces import Machine
from mininet_tests.site.pool import Job, JobStatus

VERSION = os.environ.get("LARK_TEST_CONDOR", "23")
WAYS = ["userns"] if VERSION == "23" else ["userns", "starter"]
CONFIGURATION = {"userns": "DISABLE_SETUID = True\n", "starter": "NO_JOB_NETWORKING = True\n"}
TRANSFORM = """\
JOB_TRANSFORM_NAMES = $(JOB_TRANSFORM_NAMES) LarkStarter
JOB_TRANSFORM_LarkStarter @=end
   SET WantJobNetworking false
@end
IMMUTABLE_JOB_ATTRS = $(IMMUTABLE_JOB_ATTRS) WantJobNetworking
"""
"""What docs/htcondor.md asks of every access point for `starter`."""
CONNECT = """
import os, socket, sys
print(os.readlink("/proc/self/ns/net"))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff")))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("NoNewPrivs")))
print(os.getuid())
for host, port in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        with socket.create_connection((host, int(port)), 3) as s: print("reached from", s.getsockname()[0])
    except OSError as e: print("no")
"""
SLOW = 90


@dataclass(slots=True)
class FallbackSite(Site):
    """The demo's site, installed with `--attach` and without wrapped plugins."""

    attach: str = "userns"

    def _start_agent(self) -> None:
        with self.agent.config.open("a", encoding="utf-8") as file:
            file.write("fallback: {siblings-hidden: true}\n" if self.attach == "userns" else "")
        Site._start_agent(self)

    def _configure_pool(self) -> None:
        Site._configure_pool(self)
        extra = self.pool.execute.configuration / "config.d" / "99-fallback.config"
        extra.write_text(CONFIGURATION[self.attach], encoding="utf-8")
        if self.attach == "starter":
            transform = self.pool.access.configuration / "config.d" / "99-starter.config"
            transform.write_text(TRANSFORM, encoding="utf-8")

    def _run_ours(self, machine: Machine, module: str, *argv: str) -> str:
        words = list(argv)
        if "--plugin" in words:
            at = words.index("--plugin")
            del words[at : at + 2]
        if module == "condor_bridge.native_install":
            words += ["--attach", self.attach]
        return Site._run_ours(self, machine, module, *words)


@pytest.fixture(scope="module", params=WAYS)
def built(request: pytest.FixtureRequest) -> Iterator[FallbackSite]:
    site = FallbackSite(condor=VERSION, label="lkfb-site", say=print, attach=str(request.param))
    with site:
        print(f"HTCondor {site.pool.version()}, attached by {site.attach}")
        yield site


def submit(site: FallbackSite, user: str, **more: str) -> Job:
    targets = f"{FILE_SERVER} 1094 {CAMPUS} {HTTP_PORT} {HOST_ADDRESS} 9999"
    lines = {
        "executable": "/usr/bin/python3",
        "transfer_executable": "false",
        "transfer_input_files": "connect.py",
        "arguments": f"connect.py {targets}",
    }
    return site.pool.submit(user, lines | more, {"connect.py": CONNECT})


def test_policy_holds_for_jobs_that_bring_their_own_network(built: FallbackSite) -> None:
    jobs = {user: submit(built, user) for user in (ALICE, BOB)}
    said = {user: job.finish(SLOW).split("\n") for user, job in jobs.items()}
    for user, lines in said.items():
        network, powers, no_new_privs, uid, file_server, campus, host, *_ = lines
        assert network != built.node_network()
        assert int(powers, 16) == 0
        assert no_new_privs == str(int(built.attach == "userns")), "what makes file capabilities useless"
        assert int(uid) == built.owners[user].uid
        assert campus.startswith("reached from 10.20.1."), f"positive control: {lines}"
        assert host == "no", "the node's own addresses"
        assert file_server == ("no" if user == BOB else campus), lines
    assert said[ALICE][0] != said[BOB][0]


def test_a_sealed_job_reaches_nothing(built: FallbackSite) -> None:
    sealed = submit(built, ALICE, **{"My.LarkNetwork": '"none"'}).finish(SLOW).split("\n")
    assert sealed[4:7] == ["no", "no", "no"]
    assert sealed[0] != built.node_network()


def test_the_job_that_ended_leaves_nothing(built: FallbackSite) -> None:
    job = submit(built, ALICE)
    job.finish(SLOW)
    built.agent.wait_for_no_attempt(built.larkctl)
    names = built.worker.need("ip", "netns", "list")
    assert "-attached" not in names
    assert not [flow for flow in built.leftovers() if NODE in flow]


def test_the_owner_cannot_choose_the_hosts_network(built: FallbackSite) -> None:
    """On 25.x `WantJobNetworking` would; the access point overrides it. Elsewhere it means nothing."""
    job = submit(built, BOB, **{"My.WantJobNetworking": "true"})
    lines = job.finish(SLOW).split("\n")
    assert lines[0] != built.node_network()
    assert lines[4] == "no"
    assert lines[5].startswith("reached from 10.20.1.")


def test_files_by_url_are_not_offered(built: FallbackSite) -> None:
    """Such a job waits for another node, and is not held here; one without URLs runs meanwhile."""
    url = submit(built, ALICE, transfer_input_files=f"connect.py, http://{CAMPUS}:{HTTP_PORT}/index.html")
    assert "reached" in submit(built, ALICE).finish(SLOW)
    assert url.status() is JobStatus.IDLE
    assert url.ad().get("NumJobStarts", 0) == 0
    url.remove()
