"""On a real pool: each phase of a job has a policy of its own, for file-transfer plugins as for the job itself.

One web server behind the gate listens on three ports, a protected service each, granted in one phase each. HTCondor's
own plugin (curl_plugin, wrapped) fetches input by URL and puts output by URL; the job tries all three while it runs.
Every refusal stands beside a phase in which the same port answers the same owner.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from mininet_tests.site.campus import ALICE, CONDOR, FILE_SERVER, SITE, Site
from mininet_tests.site.namespaces import SiteError, wait_until
from mininet_tests.site.pool import Job, JobStatus
from mininet_tests.story import denials, probes, results, run_job, wait_for_file, wait_for_log

IN, RUN, OUT = 8081, 8082, 8083
POLICY = f"""
services:
  incoming: {{hosts: [{FILE_SERVER}], ports: [tcp/{IN}], protected: true}}
  running:  {{hosts: [{FILE_SERVER}], ports: [tcp/{RUN}], protected: true}}
  outgoing: {{hosts: [{FILE_SERVER}], ports: [tcp/{OUT}], protected: true}}
groups:
  physics: 'LarkGroup =?= "physics"'
grants:
  - {{for: physics, to: incoming, during: [stage-in]}}
  - {{for: physics, to: running, during: [run]}}
  - {{for: physics, to: outgoing, during: [stage-out]}}
defaults: {{egress: allow, ingress: deny, between-jobs: deny}}
"""
SERVER = f"""
import http.server, os, sys, threading

class Files(http.server.SimpleHTTPRequestHandler):
    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with open(os.path.basename(self.path), "wb") as file:
            file.write(body)
        self.send_response(201)
        self.send_header("Content-Length", "0")
        self.end_headers()

servers = [http.server.ThreadingHTTPServer(("0.0.0.0", port), Files) for port in ({IN}, {RUN}, {OUT})]
for server in servers:
    threading.Thread(target=server.serve_forever).start()
"""
TARGETS = [f"{name}={FILE_SERVER}:{port}" for name, port in (("incoming", IN), ("running", RUN), ("outgoing", OUT))]
TRY = f"""#!/bin/sh
./probe.py {" ".join(TARGETS)} > @HERE@/live 2>&1
cat input >> @HERE@/live
echo made > result
: > @HERE@/done
"""


@pytest.fixture(scope="module", params=["23", "25"] if os.environ.get("LARK_TEST_FULL") else [CONDOR])
def staged(request: pytest.FixtureRequest) -> Iterator[Site]:
    guarded = SITE.read_text(encoding="utf-8").replace("guards: [fileserver]", "guards: [incoming, running, outgoing]")
    with Site(condor=request.param, label="lark-test-phases", policy=POLICY, topology=guarded) as site:
        files = site.machines["fs"]
        web = files.root / "staged"
        web.mkdir()
        (web / "input").write_text("input of the job\n", encoding="utf-8")
        site.helpers.append(files.spawn("staging-server", ["/usr/bin/python3", "-c", SERVER], cwd=str(web)))
        wait_until("the server listens", lambda: f":{OUT} " in files.need("ss", "-Hltn"), 10)
        yield site


def url(port: int, name: str) -> str:
    return f"http://{FILE_SERVER}:{port}/{name}"


def submit(site: Site, name: str, lines: dict[str, str], user: str = ALICE) -> Job:
    return run_job(site, user, TRY, lines=lines, name=name)


def held_because(job: Job) -> str:
    return str(job.wait(JobStatus.HELD, timeout=90)["HoldReason"])


def test_input_job_and_output_each_reach_what_is_granted_in_their_phase_and_nothing_else(staged: Site) -> None:
    job = submit(
        staged,
        "three-phases",
        {
            "transfer_input_files": f"probe.py, {url(IN, 'input')}",
            "transfer_output_files": "result",
            "transfer_output_remaps": f'"result = {url(OUT, "result")}"',
        },
    )
    wait_for_file(job)
    job.finish(timeout=90)
    said = job.said("live")
    assert "input of the job" in said, "the plugin fetched it in stage-in"
    found = results("\n".join(probes(said)))
    assert found.pop("running") == "open", said
    assert set(found) == {"incoming", "outgoing"}, said
    assert "open" not in found.values(), said
    assert (staged.machines["fs"].root / "staged" / "result").read_text() == "made\n", "put in stage-out"


def refused(site: Site, job: Job) -> int:
    """Packets for which the job had no grant, so far."""
    try:
        return sum(int(str(d["packets"])) for d in denials(site, job) if "no grant" in str(d["text"]))
    except SiteError:  # it has not begun
        return 0


@pytest.mark.timeout(900)
def test_input_is_not_fetched_nor_output_put_where_only_another_phase_may_go(staged: Site) -> None:
    # All at once: curl_plugin tries each for half a minute before it gives up. That of 25.14.1
    # goes on for longer than six minutes; there it is seen to be refused while it does.
    early = {port: {"transfer_input_files": f"probe.py, {url(port, 'input')}"} for port in (RUN, OUT)}
    late = {
        port: {
            "transfer_input_files": f"probe.py, {url(IN, 'input')}",
            "transfer_output_files": "result",
            "transfer_output_remaps": f'"result = {url(port, f"late-{port}")}"',
        }
        for port in (IN, RUN)
    }
    too_early = {port: submit(staged, f"too-early-{port}", lines) for port, lines in early.items()}
    too_late = {port: submit(staged, f"too-late-{port}", lines) for port, lines in late.items()}
    if staged.condor != "23":
        for job in too_early.values():
            wait_until(f"job {job.id} is refused", lambda job=job: refused(staged, job) > 0, 120, 0.5)  # type: ignore[misc]
        assert not any(job.said("live") for job in too_early.values()), "none ran"
        for job in too_late.values():
            assert "input of the job" in wait_for_file(job, timeout=90), "it ran"
            # It has tried the other phases' ports itself; what comes now is its output.
            before = refused(staged, job)
            wait_until("output is refused", lambda job=job, n=before: refused(staged, job) > n, 120, 0.5)  # type: ignore[misc]
        assert not list((staged.machines["fs"].root / "staged").glob("late-*"))
        for job in (*too_early.values(), *too_late.values()):
            job.remove()
        # They would wait for their plugins.
        pids = staged.worker.need("pgrep", "-f", "^condor_starter|curl_plugin -infile").split()
        staged.worker.run(["kill", "-9", *pids])  # some die with others
        return
    for port, job in too_early.items():
        reason = held_because(job)
        assert "input" in reason, reason
        assert url(port, "input") in reason, reason
        assert not job.said("live"), "it never ran"
    for port, job in too_late.items():
        reason = held_because(job)
        assert "input of the job" in job.said("live"), "it ran"
        assert "output" in reason.lower(), reason
        assert str(port) in reason, reason
        assert not (staged.machines["fs"].root / "staged" / f"late-{port}").exists()
    # The starter of a job whose output failed waits for its shadow when the job is held already.
    staged.worker.run(["kill", "-9", *staged.worker.need("pgrep", "-x", "condor_starter").split()])
    for job in (*too_early.values(), *too_late.values()):
        wait_for_log(staged, f" job={job.id} ", "refused: no-grant")
        job.remove()
