"""A job's running transfer outlives a crash of Open vSwitch: real xrdcp, real xrootd behind the gate, under churn.

The granted job and the server have network namespaces of their own; the job reads a large file, paced so that the
crash falls into the middle. The same command in a job without the grant is refused by the network, beside it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from mininet_tests.chaos.churn import Lane
from mininet_tests.chaos.rig import CORE, SERVER, SERVER_MAC, Rig, defects, running_rig, size, worker
from mininet_tests.site.namespaces import Daemon, wait_until
from mininet_tests.site.xrootd import FILE, XrootdServer

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]
FULL = bool(os.environ.get("LARK_TEST_FULL"))
SLACK = 1 if FULL else 5
TIMES = 5 if FULL else 1
MIB = 1024 * 1024
FILE_SIZE = 240 * MIB
RATE = "16m"
JOB, PLAIN, SERVER_NS = "granted", "plain", "server"
# Jobs of one or two busy nodes: here one Open vSwitch carries them all, on a real site each node has its own.
SIZE = replace(size(), workers=2, attempts=128 if FULL else 60, changes=20)


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    # Not below pytest's own directory, which xrootd's user may not enter.
    root = Path(tempfile.mkdtemp(prefix="lkch-"))
    seed = int(os.environ["LARK_TEST_SEED"])
    engine = os.environ.get("LARK_TEST_ENGINE", "os-ken")
    with running_rig(root, engine, SIZE, seed, probed=False) as rig:
        for namespace, lane in ((JOB, Lane(1, 1)), (PLAIN, Lane(1, 2))):
            rig.settle(namespace, f"f-{lane.port}", lane.mac, str(lane.ipv4), [(SERVER, SERVER_MAC)])
        jobs = [(str(lane.ipv4), lane.mac) for lane in (Lane(1, 1), Lane(1, 2))]
        rig.settle(SERVER_NS, "f-gsf", SERVER_MAC, SERVER, jobs)
        rig.churn.fill(20 * SIZE.workers, SIZE.attempts)
        yield rig


@pytest.fixture
def server(rig: Rig) -> Iterator[XrootdServer]:
    made = XrootdServer(rig.machine, prefix=("ip", "netns", "exec", SERVER_NS), size=FILE_SIZE)
    made.start()
    yield made
    made.stop()


def read(rig: Rig, namespace: str, name: str, *, seconds: int) -> tuple[Daemon, Path]:
    """xrdcp of the large file in the job's network, and the file that it writes."""
    target = rig.machine.root / f"{name}.copy"
    argv = ["ip", "netns", "exec", namespace, "timeout", str(seconds), "xrdcp", "-f", "-s", "--xrate", RATE]
    argv += [f"root://{SERVER}/{FILE}", str(target)]
    # No second try: the connection that it has must last.
    patience = {"XRD_CONNECTIONRETRY": "1", "XRD_CONNECTIONWINDOW": "5", "XRD_STREAMERRORWINDOW": "0"}
    # Little that has arrived and is not written yet.
    patience |= {"XRD_CPPARALLELCHUNKS": "1", "XRD_CPCHUNKSIZE": str(MIB)}
    return rig.machine.spawn(f"xrdcp-{name}", argv, env=patience), target


def got(target: Path) -> int:
    try:
        return target.stat().st_blocks * 512
    except OSError:
        return 0


def connections(rig: Rig) -> list[str]:
    """The job's TCP connections to the server, by their own port."""
    enter = ["ip", "netns", "exec", JOB]
    return sorted(
        line.split()[2] for line in rig.machine.need(*enter, "ss", "-Htn", "state", "established").splitlines()
    )


def test_a_running_transfer_outlives_a_crash_of_the_switch(rig: Rig, server: XrootdServer) -> None:
    resumed: list[float] = []
    equal: list[float] = []
    for turn in range(TIMES):
        rig.churn.run(SIZE.changes, SIZE.attempts)
        plain, nothing = read(rig, PLAIN, f"plain-{turn}", seconds=4)
        job, copy = read(rig, JOB, f"job-{turn}", seconds=90)
        wait_until("a quarter is there", lambda copy=copy: got(copy) > FILE_SIZE / 4, 30, 0.02)  # type: ignore[misc]
        assert plain.entry.wait(30) != 0
        assert got(nothing) == 0, "without the grant nothing comes, while the granted one reads"
        rig.churn.pause()
        before = {bridge: rig.flows(bridge) for bridge in (*rig.bridges, CORE)}
        held = connections(rig)
        assert held
        assert job.running(), "the transfer is under way"

        rig.kill_switch()
        time.sleep(0.5)
        stalled = got(copy)
        assert stalled < FILE_SIZE * 0.9
        time.sleep(0.7)
        assert got(copy) == stalled, "the control: without the switch nothing comes"
        began = rig.start_switch()

        def as_before(before: dict[str, list[str]] = before) -> bool:
            return all(rig.flows(bridge) == flows for bridge, flows in before.items())

        seen = 0.0
        while not seen:
            assert time.monotonic() - began < 60
            if got(copy) > stalled and len(resumed) <= turn:
                resumed.append(time.monotonic() - began)
            if as_before():
                seen = time.monotonic() - began
        equal.append(seen)
        wait_until("the transfer goes on", lambda copy=copy, stalled=stalled: got(copy) > stalled, 30, 0.01)  # type: ignore[misc]
        if len(resumed) <= turn:
            resumed.append(time.monotonic() - began)
        rig.churn.run(SIZE.changes, SIZE.attempts)
        assert connections(rig) == held, "it is the connection of before"
        assert job.entry.wait(90) == 0, job.tail()
        assert sha256(copy.read_bytes()).hexdigest() == server.sha256
        copy.unlink()
    rig.churn.pause()
    flows = {bridge: len(lines) for bridge, lines in before.items() if bridge in (worker(1), *rig.bridges[-1:])}
    print(
        f"{TIMES} crashes of ovs-vswitchd in a transfer of {FILE_SIZE // MIB} MiB, {flows} flows; checksums are right"
    )
    for name, times in (("data again", resumed), ("flows equal on all bridges", equal)):
        print(f"from the start of ovs-vswitchd to {name}: {', '.join(f'{one:.2f}' for one in times)} s")
    assert max(resumed) <= 5 * SLACK
    assert max(equal) <= 2 * SLACK
    assert rig.drift() == []
    assert defects(rig.logged()) == []
