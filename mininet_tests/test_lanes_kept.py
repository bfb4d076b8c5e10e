"""A lane that its job never used goes to the next job of the same user, and to nobody else; whatever a job leaves in it
or sends through it, it goes instead. On real namespaces, with the real agent."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from mininet_tests.agent_rig import JOB_UID, OTHER_UID, Rig, Starter, lane_number
from mininet_tests.site.namespaces import wait_until

KEEPER = "/run/keeper"
KEEP = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1]); os.chmod(sys.argv[1], 0o777); listener.listen()
kept = []
while True:
    connection, _ = listener.accept()
    data, fds, _, _ = socket.recv_fds(connection, 10, 1)
    if data == b"drop":
        for fd in kept:
            os.close(fd)
        kept.clear()
    kept += fds
    connection.sendall(b"ok")
    connection.close()
"""
"""A process outside that keeps what it is passed."""
PASS = """
import socket, sys
made = eval(sys.argv[2])
with socket.socket(socket.AF_UNIX) as s:
    s.connect(sys.argv[1])
    socket.send_fds(s, [b"keep"], [made.fileno()] if made else [])
    assert s.recv(2) == b"ok"
"""
UNTOLD = ("nobody knows", "its port was labelled", "something was still being done for it")
"""Why a lane goes whatever its job did: the machine was slow. Such a job shows nothing."""


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    rig = Rig.build(keep_unused=True)
    try:
        rig.machine.spawn("keeper", ["/usr/bin/python3", "-c", KEEP, KEEPER])
        wait_until("the keeper listens", lambda: rig.machine.run(["test", "-S", KEEPER]).code == 0, 10)
        yield rig
        assert "Traceback" not in rig.log(), rig.log()
    finally:
        rig.destroy()


def end(rig: Rig, starter: Starter) -> str:
    """What becomes of the lane."""
    starter.kill()
    said = re.compile(rf"torn down: attempt=lkag~\w+~{starter.slot}~.* lane=(.*) ms=")
    wait_until("it is torn down", lambda: said.search(rig.log()) is not None, 20)
    wait_until("all is over", lambda: not rig.records(), 20)
    found = said.search(rig.log())
    assert found is not None
    return found[1]


def fate(rig: Rig, *argv: str, uid: int = JOB_UID, untold: tuple[str, ...] = UNTOLD) -> tuple[int, str]:
    """The lane of a job that does this, and what becomes of it."""
    number, said = 0, ""
    for _ in range(6):
        rig.wait_for_pool()
        starter = rig.starter()
        begun = starter.begin(uid=uid)
        assert "HookStatusCode" not in begun.out, begun.text
        number = lane_number(rig.attempt_of(starter))
        done = starter.wait(starter.job(*argv, uid=uid), timeout=20)
        assert done is not None
        assert done.code == 0, done.text
        said = end(rig, starter)
        if not any(text in said for text in untold):
            break
    return number, said


def python(code: str) -> tuple[str, ...]:
    return "/usr/bin/python3", "-c", code


def test_jobs_of_one_user_share_a_lane_that_none_of_them_used(rig: Rig) -> None:
    first, said = fate(rig, "/bin/true")
    assert said == "kept"
    inode = rig.machine.need("stat", "-Lc", "%i", f"/run/netns/lark-lkag-{first}")
    again = fate(rig, "/bin/true")
    assert again == (first, "kept")
    assert rig.machine.need("stat", "-Lc", "%i", f"/run/netns/lark-lkag-{first}") == inode, "the very same"
    other, said = fate(rig, "/bin/true", uid=OTHER_UID)
    assert other != first, "another user's job gets one that nobody had"
    assert said == "kept"
    assert fate(rig, "/bin/true")[0] == first


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("s = socket.socket(type=socket.SOCK_DGRAM); s.sendto(b'x', ('10.77.0.9', 9))", "went through eth0"),
        ("s = socket.socket(type=socket.SOCK_DGRAM); s.sendto(b'x', ('127.0.0.1', 9))", "went through lo"),
        (
            "s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\n"
            "s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP,"
            " socket.inet_pton(socket.AF_INET6, 'ff02::4242') + socket.if_nametoindex('eth0').to_bytes(4, 'little'))",
            "went through eth0",
        ),
        (
            "s = socket.socket(type=socket.SOCK_DGRAM)\n"
            "s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton('239.1.2.3') + bytes(4)"
            " + socket.if_nametoindex('eth0').to_bytes(4, 'little'))",
            "went through eth0",
        ),
    ],
    ids=["a datagram", "loopback", "a group of IPv6", "a group of IPv4"],
)
def test_a_lane_goes_that_something_went_through(rig: Rig, code: str, why: str) -> None:
    assert why in fate(rig, *python(f"import socket\n{code}"))[1]


@pytest.mark.parametrize(
    "made",
    [
        "socket.socket()",
        "socket.socket(socket.AF_INET6)",
        "socket.socket(type=socket.SOCK_DGRAM)",
        "socket.socket(socket.AF_UNIX)",
        "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
    ],
)
def test_a_lane_goes_of_which_another_process_keeps_a_socket(rig: Rig, made: str) -> None:
    try:
        # The kernel's first reports of a new lane may be late.
        late = (*UNTOLD, "went through eth0")
        assert "1 sockets" in fate(rig, *python(PASS), KEEPER, made, untold=late)[1]
    finally:
        rig.machine.need(*python(PASS.replace("keep", "drop")), KEEPER, "None")
    assert fate(rig, *python(PASS), KEEPER, "None")[1] == "kept", "the control: it talked to the same process"


def test_a_lane_goes_in_which_a_process_was_left(rig: Rig) -> None:
    left = "setsid sleep 4747 </dev/null >/dev/null 2>&1 & exit 0"
    number, said = fate(rig, "/bin/sh", "-c", left)
    assert "a process is in it" in said
    rig.gone(f"lj{number}", number, 10)
    wait_until("it is dead", lambda: rig.machine.run(["pgrep", "-f", "^sleep 4747"]).code != 0, 10)


def test_a_sealed_jobs_lane_goes(rig: Rig) -> None:
    rig.behave(sealed=True)
    try:
        assert "another network" in fate(rig, "/bin/true")[1]
    finally:
        rig.behave()


def test_a_lane_does_not_wait_for_a_controller_that_is_away(rig: Rig) -> None:
    number, said = fate(rig, "/bin/true")
    assert said == "kept"
    rig.wait_for_pool()
    starter = rig.starter()
    starter.begin()
    assert lane_number(rig.attempt_of(starter)) == number
    starter.wait(starter.job("/bin/true"))
    rig.behave(DELETE=503)
    try:
        starter.kill()
        rig.gone(f"lj{number}", number, 10)
        assert [record["lane"] for record in rig.records()] == [number], "its number is in quarantine"
    finally:
        rig.behave()
    rig.settle()


def test_lanes_that_wait_are_ready_ones_to_people_and_go_with_the_agent(rig: Rig) -> None:
    number, said = fate(rig, "/bin/true")
    assert said == "kept"
    shown = rig.lark_agent("status", "--config", str(rig.home / "agent.yaml"))
    assert shown.code == 0, shown.text
    assert f"lj{number}" in rig.job_ports()
    assert rig.stop_agent() == 0
    assert not rig.job_ports() | rig.job_devices() | rig.namespaces()
    rig.start_agent()
