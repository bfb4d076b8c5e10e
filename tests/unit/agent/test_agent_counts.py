"""What a job's ad is told of its network, and by what file of the job's directory, which the job can write."""

from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path

import pytest

from ovs_agent import counts, rtnl
from ovs_agent.counts import Counts, Proxy
from policies.wire import Dropped

COOKIE = "abcdefghijklmnopqrstuvwxyzabcde"
SAID = {"NetworkIncoming": 5, "NetworkOutgoing": 7}


def test_a_device_that_is_there_has_counts_and_one_that_is_not_has_none() -> None:
    found = counts.read("lo")
    assert found is not None
    assert found.incoming == found.outgoing, "what leaves the loopback device comes in there"
    assert counts.read("lj0-none") is None


def test_the_numbers_are_the_kernels_from_the_jobs_side() -> None:
    stats = struct.pack("=HH4Q", 4 + 32, rtnl.IFLA_STATS64, 1, 2, 30, 40)
    name = struct.pack("=HH8s", 4 + 5, rtnl.IFLA_IFNAME, b"lj12\0\0\0\0")
    body = bytes(rtnl.LINK_HEADER) + name + stats
    answer = struct.pack("=IHHII", 16 + len(body), rtnl.RTM_NEWLINK, 0, 1, 0) + body
    assert rtnl.link_counters(answer) == (1, 2, 30, 40)
    assert rtnl.link_counters(struct.pack("=IHHIIi", 20, rtnl.NLMSG_ERROR, 0, 1, 0, -19)) is None


def test_the_first_larks_names_are_kept_and_refused_packets_are_told_only_when_known() -> None:
    found = Counts(incoming=10, outgoing=20, incoming_packets=1, outgoing_packets=2)
    said = counts.attributes(found, None)
    assert said["NetworkIncoming"] == 10
    assert said["NetworkOutgoing"] == 20
    assert "NetworkRefusedPackets" not in said
    assert counts.attributes(found, 3)["NetworkRefusedPackets"] == 3
    dropped = Dropped(sent_packets=1, sent_bytes=100, received_packets=2, received_bytes=200)
    assert not [name for name in counts.attributes(found, 3) if "Dropped" in name]
    said = counts.attributes(found, 3, dropped)
    assert (said["NetworkIncomingDropped"], said["NetworkIncomingDroppedPackets"]) == (200, 2)
    assert (said["NetworkOutgoingDropped"], said["NetworkOutgoingDroppedPackets"]) == (100, 1)
    assert all(name.startswith("Network") for name in said), "CHIRP_DELAYED_UPDATE_PREFIX"


def test_the_starters_file_is_understood_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / counts.PROXY_FILE
    assert counts.proxy_in(str(tmp_path)) is None
    file.write_text(f"127.0.0.1 34567 {COOKIE}\n")
    assert counts.proxy_in(str(tmp_path)) == Proxy("127.0.0.1", 34567, COOKIE)
    for wrong in ("", "127.0.0.1\n", f"127.0.0.1 x {COOKIE}", f"127.0.0.1 1 {COOKIE}\nset_job_attr X 1", "\xff" * 600):
        file.write_text(wrong, encoding="latin-1")
        assert counts.proxy_in(str(tmp_path)) is None, wrong


@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_what_is_no_plain_file_is_not_read_and_stops_nobody(kind: str, tmp_path: Path) -> None:
    file = tmp_path / counts.PROXY_FILE
    if kind == "link":
        (tmp_path / "other").write_text(f"127.0.0.1 34567 {COOKIE}\n")
        file.symlink_to(tmp_path / "other")
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.mkdir()
    assert counts.proxy_in(str(tmp_path)) is None


def test_the_starters_file_lies_in_the_jobs_directory_or_since_25_beside_it(tmp_path: Path) -> None:
    scratch, beside = tmp_path / "scratch", tmp_path / "user"
    scratch.mkdir()
    beside.mkdir()
    assert counts.proxy_in(str(scratch)) is None
    (beside / counts.PROXY_FILE).write_text(f"127.0.0.1 34568 {COOKIE}\n")
    assert counts.proxy_in(str(scratch)) == Proxy("127.0.0.1", 34568, COOKIE)
    (scratch / counts.PROXY_FILE).write_text(f"127.0.0.1 34567 {COOKIE}\n")
    assert counts.proxy_in(str(scratch)) == Proxy("127.0.0.1", 34567, COOKIE)


@pytest.mark.parametrize(
    ("ad", "again"),
    [
        ("", False),
        ('Cmd = "x"\nWantFTOnCheckpoint = true\nZ = 1\n', True),
        ("wantftoncheckpoint=TRUE", True),
        ("WantCheckpointSignal = Mem > 5\n", True),
        ("WantFTOnCheckpoint = false\n", False),
        ('Args = "WantFTOnCheckpoint = true"\n', False),
    ],
)
def test_a_job_that_ends_in_order_to_be_started_again_is_known_by_its_ad(ad: str, again: bool, tmp_path: Path) -> None:
    assert not counts.comes_again(str(tmp_path)), "no ad"
    (tmp_path / counts.AD_FILE).write_text(ad)
    assert counts.comes_again(str(tmp_path)) is again


class Chirp:
    """The chirp port of a starter: this process."""

    def __init__(self, deaf: bool = False) -> None:
        self.heard: list[str] = []
        self.deaf = deaf

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := (await reader.readline()).decode().strip():
            self.heard.append(line)
            if not self.deaf:
                writer.write(b"-1\n" if line.startswith("cookie") and line != f"cookie {COOKIE}" else b"0\n")
        writer.close()


async def tell(chirp: Chirp, starter: int, cookie: str = COOKIE) -> str:
    async with await asyncio.start_server(chirp.serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        return await counts.tell(starter, Proxy("127.0.0.1", port, cookie), SAID)


def test_the_starter_is_told_each_number() -> None:
    chirp = Chirp()
    assert asyncio.run(tell(chirp, os.getpid())) == ""
    assert chirp.heard == [
        f"cookie {COOKIE}",
        "set_job_attr_delayed NetworkIncoming 5",
        "set_job_attr_delayed NetworkOutgoing 7",
    ]


def test_a_port_that_the_starter_does_not_hold_is_not_spoken_to() -> None:
    chirp = Chirp()
    assert "does not listen" in asyncio.run(tell(chirp, 1))
    assert chirp.heard == []


def test_a_wrong_cookie_and_a_starter_that_says_nothing_cost_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "PATIENCE", 0.05)
    assert asyncio.run(tell(Chirp(), os.getpid(), "wrongcookie")) == "the starter answers b'-1' to cookie"
    assert "TimeoutError" in asyncio.run(tell(Chirp(deaf=True), os.getpid()))
