"""What the agent reads from /proc and from Open vSwitch, and what it writes to strangers."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import subprocess
from pathlib import Path

import pytest

from ovs_agent import bridge, chirp, ovsdb, plan, trust
from ovs_agent.chirp import Endpoint
from ovs_agent.server import printable


def table(*rows: tuple[str, int, str, int]) -> str:
    """Rows as /proc/net/tcp has them on this machine: address in words of its own byte order, port, state, inode."""
    lines = ["  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"]
    for at, (address, port, state, inode) in enumerate(rows):
        packed = ipaddress.ip_address(address).packed
        words = "".join(f"{word:08X}" for word in struct.unpack(f"={len(packed) // 4}I", packed))
        rest = "00000000:00000000 00:00000000 00000000     0        0"
        lines.append(f"   {at}: {words}:{port:04X} {'0' * len(words)}:0000 {state} {rest} {inode} 1 0 100 0 0 10 0")
    return "\n".join(lines) + "\n"


def test_listening_sockets_of_a_process() -> None:
    four = table(
        ("127.0.0.1", 44447, "0A", 111),
        ("0.0.0.0", 9618, "0A", 112),
        ("127.0.0.1", 8080, "01", 111),
        ("127.0.0.1", 8081, "0A", 999),
    )
    assert chirp.parse_listeners(four, {111, 112}) == [Endpoint("0.0.0.0", 9618), Endpoint("127.0.0.1", 44447)]
    six = table(("::1", 8080, "0A", 113), ("2001:db8::7", 8081, "0A", 113))
    assert chirp.parse_listeners(six, {113}) == [Endpoint("2001:db8::7", 8081), Endpoint("::1", 8080)]


def test_listeners_of_this_very_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as loop, socket.create_server(("0.0.0.0", 0)) as wide:
        found = chirp.listeners_of(os.getpid())
        assert Endpoint("127.0.0.1", loop.getsockname()[1]) in found
        assert all(e.port != wide.getsockname()[1] for e in found), "only loopback"


@pytest.mark.parametrize(
    ("argv", "slot"),
    [
        (["condor_starter", "-f", "-local-name", "slot_type_1", "-a", "slot1_1", "wn1"], "slot1_1"),
        (["condor_starter", "-a", "slot2", "x"], "slot2"),
        (["condor_starter", "-a", "slot1_1;rm", "x"], None),
        (["condor_starter", "-a"], None),
        (["condor_starter", "slot1_1"], None),
    ],
)
def test_the_slot_of_a_command_line(argv: list[str], slot: str | None) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(["/bin/sh", "-c", "echo; read x", *argv], **pipes) as process:
        assert process.stdout is not None
        process.stdout.readline()  # the kernel has set the command line when the program runs
        assert trust.slot_of(process.pid) == slot
        assert process.stdin is not None
        process.stdin.close()


def test_program_by_inode_not_by_name(tmp_path: Path) -> None:
    copy = tmp_path / "sleep"
    copy.write_bytes(Path("/bin/sleep").read_bytes())
    copy.chmod(0o755)
    with subprocess.Popen([str(copy), "30"]) as process:
        try:
            assert trust.is_program(process.pid, copy)
            assert not trust.is_program(process.pid, Path("/bin/sleep"))
            copy.unlink()
            copy.write_bytes(Path("/bin/sleep").read_bytes())
            assert not trust.is_program(process.pid, copy)
            assert trust.is_program(process.pid, copy, replaced_ok=True), "an upgrade while it runs"
            assert not trust.is_program(process.pid, Path("/bin/sleep"), replaced_ok=True)
        finally:
            process.kill()


def test_programs_that_others_could_exchange_are_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for name in ("lark-hook", "lark-job", "condor_starter", "condor_startd"):
        (tmp_path / name).write_text("x")
    programs = trust.Programs.of(tmp_path, tmp_path)
    if os.geteuid() == 0:
        assert programs.problems() == []
    (tmp_path / "lark-hook").chmod(0o777)
    (tmp_path / "condor_startd").unlink()
    text = "\n".join(programs.problems())
    assert "lark-hook: must belong to root" in text
    assert "condor_startd: No such file" in text


def test_start_times_tell_processes_apart() -> None:
    assert trust.start_time(os.getpid()) == trust.start_time(os.getpid()) > trust.start_time(1)
    with pytest.raises(trust.Refused):
        trust.start_time(2**22 + 1)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (["set", []], None),
        (["set", [3]], 3),
        (["set", ["a", "b"]], ["a", "b"]),
        (["map", [["k", "v"]]], {"k": "v"}),
        (["uuid", "u"], "u"),
        ("x", "x"),
    ],
)
def test_ovsdb_values(value: object, plain: object) -> None:
    assert ovsdb._decode(value) == plain


def test_a_dumped_flow_equals_the_planned_one() -> None:
    dumped = [
        "cookie=0x4c01000000000000, priority=300,in_port=1,dl_dst=ca:12:ad:9f:45:9e actions=LOCAL",
        "cookie=0x4c01000000000000, priority=200,in_port=1,dl_dst=01:00:00:00:00:00/01:00:00:00:00:00 "
        "actions=LOCAL,goto_table:1",
        "cookie=0x4c01000000000000, priority=100,in_port=1 actions=goto_table:1",
        "cookie=0x4c01000000000000, priority=100,in_port=LOCAL actions=output:1",
        "cookie=0x4c01000000000000, priority=0 actions=goto_table:1",
    ]
    planned = plan.worker_table0(1, "ca:12:ad:9f:45:9e")
    assert [bridge._shape(d) for d in dumped] == [bridge._shape(p) for p in planned]
    assert bridge._shape(dumped[0]) != bridge._shape(dumped[0].replace("in_port=1", "in_port=2"))


def test_replies_are_one_line_of_ascii() -> None:
    assert printable("hold 101 a\nb\t\u00e9") == b"hold 101 a b ?"
    text = printable("refused " + "x" * 3000 + "\n")
    assert len(text) == 1024
    assert all(32 <= byte < 127 for byte in printable("a\nb\x7f\u00e9\u2028\0"))
