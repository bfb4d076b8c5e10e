"""Fireflies of a real agent, about real connections of jobs, at a real receiver; and none where none are due."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from mininet_tests.agent_rig import Rig, Starter, lane_number
from mininet_tests.site.lark import ENVIRONMENT, python_command
from mininet_tests.site.namespaces import wait_until
from mininet_tests.test_agent_packets import HOST, SERVER, SERVER6, open_table_1

PYTHON = "/usr/bin/python3"
PORT = 1094
COLLECTORS = ("127.0.0.1:10514", "[::1]:10514")
SERVE = f"""
import socket, threading
def serve(host):
    with socket.create_server((host, {PORT}), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as s:
        held = []
        while True:
            held.append(s.accept()[0]); held[-1].sendall(b"hello")
for host in ("{SERVER}", "{SERVER6}"):
    threading.Thread(target=serve, args=(host,)).start()
"""
TRANSFER = f"""
import socket, sys, time
with (
    socket.create_connection(("{SERVER}", {PORT}), 5) as a,
    socket.create_connection(("{SERVER6}", {PORT}), 5) as b,
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as c,
):
    c.connect(("{SERVER}", {PORT}))
    assert a.recv(5) == b.recv(5) == b"hello"
    print(a.getsockname()[1], b.getsockname()[1], c.getsockname()[1], flush=True)
    time.sleep(float(sys.argv[1]))
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    made = Rig.build()
    machine = made.machine
    for line in (
        "ip netns add far",
        "ip link set up1 netns far",
        f"ip -n far addr add {SERVER}/16 dev up1",
        f"ip -n far addr add {SERVER6}/64 dev up1 nodad",
        "ip -n far link set up1 up",
        "ip netns exec far ethtool -K up1 tx off",
        "ip link set br-lark up",
        f"ip addr add {HOST}/16 dev br-lark",
    ):
        machine.need(*line.split())
    machine.spawn("far", ["ip", "netns", "exec", "far", PYTHON, "-c", SERVE])
    listen = [word for place in COLLECTORS for word in ("--listen", place)]
    receiver = machine.spawn("collector", python_command("mininet_tests.fireflies", *listen), env=ENVIRONMENT)
    receiver.wait_for_line(COLLECTORS[1], 15)
    yield made
    made.destroy()


def heard(rig: Rig) -> list[dict[str, Any]]:
    """What the receiver was told so far."""
    lines = (rig.home / "log" / "collector.log").read_text().splitlines()
    return [said for line in lines if "listening" not in (said := json.loads(line))]


def about(rig: Rig, ipv4: str, ipv6: str) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Fireflies about a job that came over IPv4, by protocol and family."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for said in heard(rig):
        flow = said["firefly"]["flow-id"]
        if said["from"] == "127.0.0.1" and flow["src-ip"] in (ipv4, ipv6):
            found.setdefault((flow["protocol"], flow["afi"]), []).append(said["firefly"])
    return found


def states(fireflies: list[dict[str, Any]]) -> list[str]:
    return [one["flow-lifecycle"]["state"] for one in fireflies]


def transfer(rig: Rig, mark: list[int] | None, connected: float, after: float) -> tuple[Starter, int, dict[str, Any]]:
    """A job that holds three connections for so long and goes on without them for so long."""
    starter = rig.starter()
    marked(rig, starter, mark)
    assert "HookStatusCode" not in starter.begin().out
    spec = rig.attempt_of(starter)
    open_table_1(rig, spec)
    return starter, starter.job(PYTHON, "-c", TRANSFER, str(connected), str(after)), spec


def marked(rig: Rig, starter: Starter, mark: list[int] | None) -> None:
    """What the policy gives that job from now on."""
    scitags = dict(rig.behaviour.get("scitags", {}))
    rig.behave(
        scitags=scitags | {starter.slot: mark} if mark else {k: v for k, v in scitags.items() if k != starter.slot}
    )


def three(rig: Rig, spec: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Fireflies about the three connections of a job."""
    found = about(rig, spec["ipv4"], spec["ipv6"])
    return [found.get(key, []) for key in (("tcp", "ipv4"), ("tcp", "ipv6"), ("udp", "ipv4"))]


def all_are(rig: Rig, spec: dict[str, Any], state: str) -> bool:
    return all(states(fireflies)[-1:] == [state] for fireflies in three(rig, spec))


def connected(rig: Rig, spec: dict[str, Any]) -> bool:
    return f"{SERVER6}]:{PORT}" in rig.inside(lane_number(spec), "ss", "-tnH", "state", "established").out


def test_without_a_collector_nothing_is_said(rig: Rig) -> None:
    """The agent of the rig has no `scitags:` yet."""
    starter, job, _ = transfer(rig, [3, 11], 2, 0)
    done = starter.wait(job)
    assert done is not None
    assert done.code == 0, done.text
    starter.kill()
    rig.settle()
    assert heard(rig) == []

    file = rig.home / "agent.yaml"
    file.write_text(file.read_text() + f"scitags: {{collector: {json.dumps(COLLECTORS)}, look: 0.5, ongoing: 2}}\n")
    assert rig.stop_agent() == 0
    rig.start_agent()


def test_a_marked_jobs_connections_start_go_on_and_end(rig: Rig) -> None:
    starter, job, spec = transfer(rig, [3, 11], 4, 3)
    wait_until("all three have ended", lambda: all_are(rig, spec, "end"), 15)
    assert starter.wait(job, 0) is None, "the ends were said while the job ran on"
    done = starter.wait(job)
    assert done is not None
    assert done.code == 0, done.text
    ports = [int(word) for word in done.out.split()]
    for fireflies, port, peer in zip(three(rig, spec), ports, (SERVER, SERVER6, SERVER), strict=True):
        assert states(fireflies)[0] == "start"
        assert states(fireflies)[-1] == "end"
        assert set(states(fireflies)[1:-1]) == {"ongoing"}, "it lasted longer than `ongoing`"
        for one in fireflies:
            assert (one["context"]["experiment-id"], one["context"]["activity-id"]) == (3, 11)
            flow = one["flow-id"]
            assert (flow["src-port"], flow["dst-ip"], flow["dst-port"]) == (port, peer, PORT)
        assert len({one["flow-lifecycle"]["start-time"] for one in fireflies}) == 1
    assert not [said for said in heard(rig) if "refused" in said]
    over = [said["from"] for said in heard(rig)]
    assert over.count("::1") == over.count("127.0.0.1"), "both collectors hear the same"
    starter.kill()
    rig.settle()


def test_a_job_that_is_killed_ends_its_flows_and_an_unmarked_one_is_not_spoken_of(rig: Rig) -> None:
    unmarked, _, spec_of_unmarked = transfer(rig, None, 60, 0)
    one, _, spec = transfer(rig, [2, 1], 60, 0)
    wait_until("both are connected", lambda: connected(rig, spec) and connected(rig, spec_of_unmarked), 10)
    wait_until("its flows are known", lambda: all_are(rig, spec, "ongoing"), 10)
    assert {said["context"]["experiment-id"] for said in three(rig, spec)[0]} == {2}
    one.kill()
    wait_until("its flows have ended", lambda: all_are(rig, spec, "end"), 10)
    assert connected(rig, spec_of_unmarked)
    assert three(rig, spec_of_unmarked) == [[], [], []]
    unmarked.kill()
    rig.settle()


def test_a_new_policy_and_a_new_agent_find_the_job_that_runs(rig: Rig) -> None:
    starter, _, spec = transfer(rig, None, 60, 0)
    known = [len(fireflies) for fireflies in three(rig, spec)]  # an address may have been another job's
    wait_until("it is connected", lambda: connected(rig, spec), 10)
    marked(rig, starter, [3, 12])
    wait_until("it is marked", lambda: all_are(rig, spec, "ongoing"), 15)
    assert {said["context"]["activity-id"] for said in three(rig, spec)[1][known[1] :]} == {12}
    rig.kill_agent()
    before = len(heard(rig))
    rig.start_agent()
    wait_until("the next agent has found it", lambda: len(heard(rig)) > before and all_are(rig, spec, "ongoing"), 15)
    again = [said["firefly"]["flow-lifecycle"]["state"] for said in heard(rig)[before:]]
    assert again.count("start") == 6, "three, to two collectors: what the killed agent knew is gone with it"
    marked(rig, starter, None)
    wait_until("the mark is gone", lambda: all_are(rig, spec, "end"), 10)
    assert connected(rig, spec)
    starter.kill()
    rig.settle()
    assert "Traceback" not in rig.log()
