"""The life of an attempt on a real node: begin, job, stage-out, end; restarts; faults of controller and switch."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from mininet_tests.agent_rig import LEASE, LIBEXEC, Rig, Starter, lane_number
from mininet_tests.site.namespaces import SiteError, wait_until


@pytest.fixture(scope="module")
def shared() -> Iterator[Rig]:
    rig = Rig.build()
    yield rig
    rig.destroy()


@pytest.fixture
def rig(shared: Rig) -> Iterator[Rig]:
    yield shared
    shared.behave()
    shared.settle()
    assert "Traceback" not in shared.log(), shared.log()


@pytest.fixture
def starter(rig: Rig) -> Iterator[Starter]:
    made = rig.starter()
    yield made
    made.kill()


def test_a_job_gets_a_network_of_its_own_and_everything_goes_with_the_starter(rig: Rig, starter: Starter) -> None:
    said = starter.begin()
    assert said.code == 0
    assert "HookStatusCode" not in said.out, said.text
    spec = rig.attempt_of(starter)
    number = lane_number(spec)
    assert spec["phase"] == "stage-in"
    assert spec["ad"] == {"LarkGroup": "physics"}
    assert spec["job"] == f"{starter.slot.partition('_')[2]}.0"
    assert spec["mac"] == "02:6c:" + ":".join(f"{int(x):02x}" for x in spec["ipv4"].split("."))
    assert spec["port"]["ofport"] == 1000 + number

    job = starter.job("/bin/sh", "-c", "cat /proc/self/net/dev; ip -br addr; id -u; sleep 60")
    wait_until("phase run", lambda: rig.attempt_of(starter)["phase"] == "run", 5)
    inode = rig.machine.need("stat", "-Lc", "%i", f"/run/netns/lark-lkag-{number}").strip()
    wait_until(
        "the job is in its namespace",
        lambda: rig.machine.need("stat", "-Lc", "%i", f"/proc/{job}/ns/net").strip() == inode,
        5,
    )
    starter.ask(do="signal", pid=job, signal=15)
    starter.wait(job)
    rig.in_phase(starter, "stage-out")

    starter.kill()
    began = time.monotonic()
    rig.gone(spec["port"]["name"], number)
    assert time.monotonic() - began < 2.0
    wait_until("deleted", lambda: not rig.attempts(), 5)


def test_what_runs_on_in_the_namespace_is_killed(rig: Rig, starter: Starter) -> None:
    starter.begin()
    job = starter.job("/bin/sh", "-c", "setsid sleep 300 & echo $!; exit 0")
    done = starter.wait(job, timeout=1)  # the left-over keeps the pipe open, so this may not end
    spec = rig.attempt_of(starter)
    assert rig.machine.run(["pgrep", "-f", "sleep 300"]).code == 0, f"positive control: {done}"
    starter.kill()
    rig.gone(spec["port"]["name"], lane_number(spec))
    wait_until("the left-over is dead", lambda: rig.machine.run(["pgrep", "-f", "sleep 300"]).code != 0, 2)


def stray(seconds: int) -> str:
    """A shell line that leaves a process in a network namespace of its own making, in a session of its own."""
    return f"env -i /usr/bin/setsid /usr/bin/unshare -Urn /bin/sleep {seconds} & sleep 0.5; echo left"


def test_what_left_the_namespace_for_one_of_its_own_is_killed(rig: Rig, starter: Starter) -> None:
    other_user = rig.machine.spawn("other", ["setpriv", "--reuid=21002", "unshare", "-Urn", "sleep", "4343"])
    at_home = rig.machine.spawn("home", ["setpriv", "--reuid=21001", "sleep", "4344"])
    starter.begin()
    starter.wait(starter.job("/bin/sh", "-c", stray(4345)), timeout=2)  # it keeps the pipe open
    sibling = rig.starter()
    sibling.begin()
    spec = rig.attempt_of(starter)
    assert rig.machine.run(["pgrep", "-fc", "^/bin/sleep 4345"]).out.strip() == "1", "positive control"
    inside = rig.machine.need("pgrep", "-f", "^/bin/sleep 4345").strip()
    network = rig.machine.need("readlink", f"/proc/{inside}/ns/net")
    assert network not in {rig.machine.need("readlink", f"/proc/{pid}/ns/net") for pid in ("self", str(starter.pid))}
    starter.kill()
    rig.gone(spec["port"]["name"], lane_number(spec))
    time.sleep(0.3)
    assert rig.machine.run(["pgrep", "-f", "^/bin/sleep 4345"]).code == 0, "put off: it might be the other attempt's"
    number = lane_number(rig.attempt_of(sibling))
    sibling.kill()
    rig.gone(f"lj{number}", number)
    wait_until("the stray is dead", lambda: rig.machine.run(["pgrep", "-f", "^/bin/sleep 4345"]).code != 0, 2)
    for innocent in (other_user, at_home):
        assert innocent.entry.poll() is None, "another user's, or in the host's own network"
        innocent.stop()


def test_output_is_transferred_in_stage_out_and_no_second_job_enters_then(rig: Rig, starter: Starter) -> None:
    starter.begin()
    job = starter.job("/bin/sleep", "60")
    wait_until("phase run", lambda: rig.attempt_of(starter)["phase"] == "run", 5)
    assert "net:[" in starter.plugin(True, "/proc/self/ns/net").out
    assert rig.attempt_of(starter)["phase"] == "run", "a plugin while the job runs changes nothing"
    starter.ask(do="signal", pid=job, signal=9)
    starter.wait(job)
    assert "net:[" in starter.plugin(True, "/proc/self/ns/net").out
    assert rig.attempt_of(starter)["phase"] == "stage-out", "before the plugin was let in"
    late = starter.wait(starter.job("/bin/true"))
    assert late is not None
    assert late.code != 0


def test_plugin_and_second_entry_share_the_namespace(rig: Rig, starter: Starter) -> None:
    starter.begin()
    number = lane_number(rig.attempt_of(starter))
    inode = rig.machine.need("stat", "-Lc", "%i", f"/run/netns/lark-lkag-{number}").strip()
    for forked in (False, True):
        seen = starter.plugin(forked, "/proc/self/ns/net")
        assert seen.out.strip() == f"net:[{inode}]", seen.text
        assert rig.attempt_of(starter)["phase"] == "stage-in"
    job = starter.job("/bin/sh", "-c", "readlink /proc/self/ns/net; exec sleep 60")
    wait_until("phase run", lambda: rig.attempt_of(starter)["phase"] == "run", 5)
    second = starter.wait(starter.job("/usr/bin/readlink", "/proc/self/ns/net"))
    starter.ask(do="signal", pid=job, signal=15)
    first = starter.wait(job)
    assert first is not None
    assert second is not None
    assert first.out == second.out == f"net:[{inode}]\n", first.text + second.text
    own = rig.machine.need("readlink", "/proc/self/ns/net").strip()
    assert own != first.out.strip()


def test_a_sealed_job_gets_an_empty_namespace(rig: Rig, starter: Starter) -> None:
    rig.behave(sealed=True)
    starter.begin()
    job = starter.wait(starter.job("/sbin/ip", "-br", "link"))
    assert job is not None
    assert [line.split()[0] for line in job.out.splitlines()] == ["lo"], job.text


def test_an_open_job_has_a_device_beside_lo(rig: Rig, starter: Starter) -> None:
    starter.begin()
    job = starter.wait(starter.job("/sbin/ip", "-br", "link"))
    assert job is not None
    assert [line.split("@")[0].split()[0] for line in job.out.splitlines()] == ["lo", "eth0"], job.text


def test_held_by_policy(rig: Rig, starter: Starter) -> None:
    rig.behave(held="LarkNetwork may not be 5")
    said = starter.begin()
    assert "HookStatusCode = 101" in said.out, said.text
    assert "LarkNetwork may not be 5" in said.out
    refused = starter.wait(starter.job("/bin/true"))
    assert refused is not None
    assert refused.code != 0, "a job that was refused a network must not run"


def test_an_expression_in_a_job_attribute_holds_the_job(rig: Rig) -> None:
    starter = rig.starter(expressions=["LarkGroup"])
    try:
        said = starter.begin()
        assert "HookStatusCode = 101" in said.out
        assert "LarkGroup" in said.out
        assert not rig.attempts()
    finally:
        starter.kill()


def test_an_ad_of_the_job_before_is_not_believed(rig: Rig) -> None:
    old = rig.starter(meta={"JobId": "9.9", "GlobalJobId": "old", "JobStart": int(time.time()) - 3600})
    try:
        pid = old.spawn("lark-hook-prepare", exe=f"{LIBEXEC}/lark-hook-prepare")
        assert old.wait(pid, timeout=1) is None, "the agent waits for the ad of this job"
        assert not rig.attempts()
        rig.slots[f"{old.slot}@lkag"]["meta"]["JobStart"] = int(time.time())
        rig.write_slots()
        said = old.wait(pid)
        assert said is not None
        assert "HookStatusCode" not in said.out
        assert rig.attempt_of(old)["job"] == "9.9"
    finally:
        old.kill()


def test_a_starter_that_ends_while_the_startd_is_asked_leaves_nothing_and_the_controller_hears_of_nothing(
    rig: Rig,
) -> None:
    before = rig.job_ports()
    asked = [len(rig.requests(method, "/attempts/")) for method in ("PUT", "DELETE")]
    late = rig.starter(meta={"JobId": "9.9", "GlobalJobId": "old", "JobStart": int(time.time()) - 3600})
    late.spawn("lark-hook-prepare", exe=f"{LIBEXEC}/lark-hook-prepare")
    wait_until("its lane is written down", lambda: [r["state"] for r in rig.records()] == ["registering"], 5)
    number = rig.records()[0]["lane"]
    assert f"lj{number}" in before
    late.kill()
    rig.gone(f"lj{number}", number, 10)
    wait_until("its record is gone", lambda: not rig.records(), 10)
    assert [len(rig.requests(method, "/attempts/")) for method in ("PUT", "DELETE")] == asked
    following = rig.starter()
    assert "HookStatusCode" not in following.begin().out, "positive control"
    assert len(rig.requests("PUT", "/attempts/")) == asked[0] + 1
    following.kill()


def test_controller_away_holds_the_job_with_102_and_its_return_lets_it_run(rig: Rig) -> None:
    rig.stop_controller()
    starter = rig.starter()
    said = starter.begin()
    assert "HookStatusCode = 102" in said.out, said.text
    assert "127.0.0.1:8080" in said.out
    starter.kill()
    rig.start_controller()
    again = rig.starter()
    said = again.begin()
    assert "HookStatusCode" not in said.out
    again.kill()


def test_a_number_stays_in_quarantine_until_the_controller_confirmed(rig: Rig) -> None:
    starter = rig.starter()
    starter.begin()
    spec = rig.attempt_of(starter)
    rig.behave(DELETE=503)
    starter.kill()
    rig.gone(spec["port"]["name"], lane_number(spec))
    wait_until("its end is written down", lambda: [r["state"] for r in rig.records()] == ["closing"], 10)
    # Every other number is used in turn; this one is not.
    others = []
    for _ in range(14):
        other = rig.starter()
        said = other.begin()
        if "HookStatusCode = 104" in said.out:
            other.kill()
            break
        others.append(lane_number(rig.attempt_of(other)))
        other.kill()
    assert lane_number(spec) not in others
    assert len(others) == 13, "all 14 hosts of the /28 but the one in quarantine"
    rig.behave()
    rig.settle()


def test_a_burst_larger_than_the_pool(rig: Rig) -> None:
    """Twelve at once from a pool of two: each gets a network of its own, and few questions to the startd serve them."""
    starters = [rig.starter() for _ in range(12)]
    pids = [s.spawn("lark-hook-prepare", exe=f"{LIBEXEC}/lark-hook-prepare") for s in starters]
    for starter, pid in zip(starters, pids, strict=True):
        said = starter.wait(pid)
        assert said is not None
        assert "HookStatusCode" not in said.out, said.text
    specs = [rig.attempt_of(starter) for starter in starters]
    assert len({spec["ipv4"] for spec in specs}) == 12
    for starter in starters:
        starter.kill()
    for spec in specs:
        rig.gone(spec["port"]["name"], lane_number(spec), timeout=5)


def test_agent_killed_and_restarted_leaves_running_jobs_alone(rig: Rig) -> None:
    running, ending = rig.starter(), rig.starter()
    for starter in (running, ending):
        starter.begin()
    job = running.job("/bin/sleep", "60")
    wait_until("phase run", lambda: rig.attempt_of(running)["phase"] == "run", 5)
    spec, doomed = rig.attempt_of(running), rig.attempt_of(ending)
    warm_before = rig.namespaces()
    rig.kill_agent()
    ending.kill()
    rig.start_agent()
    assert running.wait(job, timeout=0) is None
    rig.gone(doomed["port"]["name"], lane_number(doomed))
    assert f"lark-lkag-{lane_number(spec)}" in warm_before & rig.namespaces()
    assert spec["port"]["name"] in rig.job_ports()
    # And it goes on as if nothing had happened.
    running.ask(do="signal", pid=job, signal=9)
    running.wait(job)
    running.stage_out()
    rig.in_phase(running, "stage-out")
    running.kill()
    rig.gone(spec["port"]["name"], lane_number(spec))


def only_warm_lanes(rig: Rig) -> bool:
    """Each namespace has its port, and there are as many as are kept ready; one more where a lane came back unused."""
    numbers = {name.removeprefix("lark-lkag-") for name in rig.namespaces()}
    return numbers == {port.removeprefix("lj") for port in rig.job_ports()} and 2 <= len(numbers) <= 3


@pytest.mark.parametrize("milliseconds", [2, 8, 15, 25, 40, 80])
def test_agent_killed_in_the_middle_of_a_beginning_leaks_nothing(rig: Rig, milliseconds: int) -> None:
    """Wherever the kill falls: the hook says hold, or the job runs; and nothing is left when the starter ends."""
    starter = rig.starter()
    pid = starter.spawn("lark-hook-prepare", exe=f"{LIBEXEC}/lark-hook-prepare")
    time.sleep(milliseconds / 1000)
    rig.kill_agent()
    rig.start_agent()
    said = starter.wait(pid)
    assert said is not None
    job = starter.wait(starter.job("/bin/echo", "runs"))
    assert job is not None
    if "runs" in job.out:
        # Never without a policy in force; of the phase the controller may hear later.
        wait_until("phase run", lambda: rig.attempt_of(starter)["phase"] == "run", 10)
    else:
        assert "HookStatusCode" in said.out, said.text + job.text
    starter.kill()
    rig.settle()
    wait_until("only warm lanes are left", lambda: only_warm_lanes(rig), 5)


@pytest.mark.parametrize("milliseconds", [5, 15, 25, 35, 60])
def test_starter_killed_in_the_middle_of_a_beginning_leaks_nothing(rig: Rig, milliseconds: int) -> None:
    rig.behave(sealed=True)  # the longest way: one more namespace is made after the controller's answer
    starter = rig.starter()
    starter.spawn("lark-hook-prepare", exe=f"{LIBEXEC}/lark-hook-prepare")
    time.sleep(milliseconds / 1000)
    starter.kill()
    rig.settle()
    wait_until("only warm lanes are left", lambda: only_warm_lanes(rig), 5)
    rig.wait_for_pool()


def test_stage_out_after_a_restart_still_waits_for_the_job(rig: Rig, starter: Starter) -> None:
    starter.begin()
    job = starter.job("/bin/sleep", "60")
    wait_until("phase run", lambda: rig.attempt_of(starter)["phase"] == "run", 5)
    # The controller knows before the helper does.
    wait_until("the job runs", lambda: rig.machine.need("cat", f"/proc/{job}/comm").strip() == "lark-job-waits", 5)
    rig.kill_agent()
    rig.start_agent()
    starter.stage_out()
    assert "the job is still running" in rig.log()
    assert rig.attempt_of(starter)["phase"] == "run"
    starter.ask(do="signal", pid=job, signal=9)
    starter.wait(job)
    starter.stage_out()
    rig.in_phase(starter, "stage-out")


def test_chirp_reaches_the_starters_own_port_and_no_other(rig: Rig, starter: Starter) -> None:
    starter.begin()
    port = starter.ask(do="chirp")["port"]
    stranger = rig.starter()
    other = stranger.ask(do="chirp")["port"]
    code = (
        "import socket,sys\n"
        "for port in map(int, sys.argv[1:]):\n"
        "    try:\n"
        "        s = socket.create_connection(('127.0.0.1', port), 2); s.sendall(b'hello'); print(s.recv(9).decode())\n"
        "    except OSError as e: print('no', e.errno)\n"
    )
    job = starter.wait(starter.job("/usr/bin/python3", "-c", code, str(port), str(other)))
    assert job is not None
    assert job.out.splitlines() == ["HELLO", "no 111"], job.text
    stranger.kill()


def test_switch_killed_and_restarted(rig: Rig, starter: Starter) -> None:
    starter.begin()
    spec = rig.attempt_of(starter)
    rig.ovs.kill_switch()
    rig.ovs.start_switch()

    def lanes() -> int:
        try:
            return len(rig.ovs.flows("br-lark", "table=0"))
        except SiteError:  # it does not listen yet
            return 0

    wait_until("table 0 is back", lambda: lanes() == 5, 1.5, 0.05)
    wait_until("the port is back", lambda: spec["port"]["name"] in rig.job_ports(), 3)
    number = rig.ovs.vsctl("get", "Interface", spec["port"]["name"], "ofport").strip()
    assert number == str(spec["port"]["ofport"])


def test_what_agent_and_controller_disagree_on_is_mended_with_the_next_heartbeat(rig: Rig, starter: Starter) -> None:
    starter.begin()
    starter.job("/bin/sleep", "60")
    wait_until("phase run", lambda: rig.attempt_of(starter)["phase"] == "run", 5)
    (mine,) = (name for name in rig.attempts() if f"~{starter.slot}~{starter.pid}~" in name)
    rig.stop_controller()
    file = rig.home / "attempts"
    known = json.loads(file.read_text())
    stranger = "lkag~3f2a9c1e~slot1_99~99~99"
    known[stranger] = known.pop(mine)
    file.write_text(json.dumps(known))
    rig.start_controller()
    wait_until("each has what the other has", lambda: set(rig.attempts()) == {mine}, 2 * LEASE / 3 + 5)
    assert rig.requests("DELETE", stranger)
    # While they agree, nobody is named.
    before = len(rig.requests("POST", "heartbeat"))
    wait_until("two more", lambda: len(rig.requests("POST", "heartbeat")) >= before + 2, LEASE + 5)
    beats = [json.loads(r["body"]) for r in rig.requests("POST", "heartbeat")]
    assert any(beat["attempts"] for beat in beats), "the control: named where they differed"
    assert [beat["attempts"] for beat in beats[before + 1 :]] == [None] * (len(beats) - before - 1)


def test_a_second_agent_is_refused_and_sigterm_is_clean(rig: Rig, starter: Starter) -> None:
    starter.begin()
    spec = rig.attempt_of(starter)
    second = rig.lark_agent("run", "--config", str(rig.home / "agent.yaml"))
    assert second.code != 0
    assert "another lark-agent" in second.text
    assert rig.stop_agent() == 0
    assert rig.job_ports() == {spec["port"]["name"]}, "warm lanes go, the job's stays"
    rig.start_agent()
    assert rig.lark_agent("status", "--config", str(rig.home / "agent.yaml")).code == 0


def test_cleanup_removes_everything_the_agent_made() -> None:
    rig = Rig.build()
    try:
        starter = rig.starter()
        starter.begin()
        config = ("--config", str(rig.home / "agent.yaml"))
        assert rig.lark_agent("cleanup", *config).code != 0, "refused while the agent runs"
        rig.kill_agent()
        before = (rig.job_ports(), rig.job_devices(), rig.namespaces())
        assert all(before)
        dry = rig.lark_agent("cleanup", "--dry-run", *config).need().out
        assert (rig.job_ports(), rig.job_devices(), rig.namespaces()) == before
        assert all(name in dry for names in before for name in names)
        rig.lark_agent("cleanup", *config).need()
        assert not rig.job_ports() | rig.job_devices() | rig.namespaces()
        assert "lark" not in rig.machine.need("nft", "list", "tables")
        assert len(rig.ovs.flows("br-lark", "table=0")) == 5, "the host's own lane stays"
        assert "nothing to remove" in rig.lark_agent("cleanup", *config).need().out
    finally:
        rig.destroy()
