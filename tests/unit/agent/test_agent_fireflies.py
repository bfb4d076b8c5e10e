"""Fireflies: which are sent when, what they say as the lab's receiver understands it, and that they are bounded."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest

from mininet_tests.fireflies import decode
from ovs_agent import fireflies, sockets
from ovs_agent.config import ConfigError, load
from ovs_agent.fireflies import Firefly, Lives, Mark, datagram
from ovs_agent.firefly_sender import Senders
from ovs_agent.netlink import NetworkError
from ovs_agent.sockets import Connection, Seen

CMS = Mark(3, 11)
ONE = Connection("tcp", "10.20.1.66", 40000, "192.0.2.80", 1094)
TWO = Connection("udp", "2001:db8:20:1::2", 40001, "2001:db8::80", 1094)


def seen(*connections: Connection, whole: bool = True) -> Seen:
    return Seen(frozenset(connections), whole)


def states(said: list[Firefly]) -> list[tuple[str, Connection]]:
    return [(one.state, one.connection) for one in said]


def test_a_connection_starts_goes_on_and_ends_once() -> None:
    lives = Lives(60)
    assert states(lives.look("a", CMS, seen(ONE), 1000)) == [("start", ONE)]
    assert lives.look("a", CMS, seen(ONE), 1059) == []
    assert states(lives.look("a", CMS, seen(ONE, TWO), 1060)) == [("ongoing", ONE), ("start", TWO)]
    assert lives.look("a", CMS, seen(ONE, TWO), 1100) == []
    (end,) = lives.look("a", CMS, seen(TWO), 1105)
    assert end == Firefly("end", ONE, CMS, 1000, 1105)
    assert states(lives.over([], 1110)) == [("end", TWO)], "the job is over"
    assert lives.over([], 1111) == []


def test_a_job_whose_mark_goes_ends_and_one_whose_mark_changes_goes_on_under_the_new() -> None:
    lives = Lives(60)
    lives.look("a", CMS, seen(ONE), 1000)
    lives.look("b", CMS, seen(TWO), 1000)
    assert states(lives.over(["b"], 1001)) == [("end", ONE)]
    (said,) = lives.look("b", Mark(2, 1), seen(TWO), 1002)
    assert (said.state, said.mark, said.since) == ("ongoing", Mark(2, 1), 1000)


def test_a_look_that_did_not_see_all_ends_nothing() -> None:
    lives = Lives(60)
    lives.look("a", CMS, seen(ONE), 1000)
    assert lives.look("a", CMS, seen(whole=False), 1005) == []
    assert states(lives.look("a", CMS, seen(), 1010)) == [("end", ONE)], "positive control"


def test_no_more_than_so_many_connections_of_a_job_are_spoken_of() -> None:
    lives = Lives(60)
    many = [Connection("tcp", "10.20.1.66", 1024 + n, "192.0.2.80", 1094) for n in range(fireflies.MAX_FLOWS + 3)]
    assert len(lives.look("a", CMS, seen(*many[:-3]), 1000)) == fireflies.MAX_FLOWS
    assert not lives.beyond("a")
    assert lives.look("a", CMS, seen(*many), 1001) == []
    assert lives.beyond("a")
    assert len(lives.look("b", CMS, seen(*many), 1001)) == fireflies.MAX_FLOWS, "another job has its own bound"
    assert len(lives.over([], 1002)) == 2 * fireflies.MAX_FLOWS


@pytest.mark.parametrize("connection", [ONE, TWO])
@pytest.mark.parametrize("state", ["start", "ongoing", "end"])
def test_a_firefly_is_understood_by_a_receiver_that_accepts_only_what_is_published(
    connection: Connection, state: str
) -> None:
    firefly = Firefly(state, connection, CMS, 1700000000.25, 1700000060.5)  # type: ignore[arg-type]
    data = datagram(firefly, "wn1.example.org", "lark-agent v1")
    host, understood = decode(data)
    assert host == "wn1.example.org"
    assert (understood.context.experiment_id, understood.context.activity_id) == (3, 11)
    assert understood.context.application == "lark-agent v1"
    flow, life = understood.flow_id, understood.flow_lifecycle
    assert (flow.protocol, flow.src_ip, flow.src_port) == (connection.protocol, connection.address, connection.port)
    assert (flow.dst_ip, flow.dst_port) == (connection.peer, connection.peer_port)
    assert flow.afi == ("ipv4" if connection is ONE else "ipv6")
    assert life.state == state
    assert life.start_time.isoformat() == "2023-11-14T22:13:20.250000+00:00"
    assert (life.end_time is not None) == (state == "end")
    assert len(data) < 1024, "one datagram on any link"


def test_the_receiver_refuses_what_is_not_as_published() -> None:
    good = datagram(Firefly("start", ONE, CMS, 1.0, 2.0), "wn1", "lark-agent v1").decode()
    decode(good.encode())
    head, _, body = good.partition(" {")
    for change in (
        {"version": 2},
        {"context": {"experiment-id": 3}},
        {"context": {"experiment-id": "cms", "activity-id": 11}},
        {"flow-lifecycle": {"state": "end", "start-time": "2023-11-14T22:13:20+00:00"}},
        {"flow-lifecycle": {"state": "begin", "start-time": "2023-11-14T22:13:20+00:00"}},
        {"flow-id": json.loads("{" + body)["flow-id"] | {"afi": "ipv6"}},
        {"flow-id": json.loads("{" + body)["flow-id"] | {"src-port": 0}},
        {"flow-id": json.loads("{" + body)["flow-id"] | {"more": 1}},
    ):
        with pytest.raises(ValueError, match=r"."):
            decode(f"{head} {json.dumps(json.loads('{' + body) | change)}".encode())
    for line in ("{" + body, good.replace("firefly-json", "x"), good.replace("<134>", "<14>")):
        with pytest.raises(ValueError, match=r"not a"):
            decode(line.encode())


def _own(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process's network stands for a job's."""
    monkeypatch.setattr(sockets.netlink, "open_namespace", lambda _: os.open("/proc/self/ns/net", os.O_RDONLY))


def test_connected_sockets_are_seen_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    _own(monkeypatch)
    with (
        socket.create_server(("127.91.17.2", 0)) as server,
        socket.create_connection(server.getsockname()[:2], source_address=("127.91.17.3", 0)) as client,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as mapped,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as loose,
    ):
        mapped.bind(("::ffff:127.91.17.3", 0))
        mapped.connect(("::ffff:127.91.17.2", 9))
        loose.bind(("127.91.17.3", 0))
        tcp = Connection("tcp", *client.getsockname(), *server.getsockname())
        udp = Connection("udp", "127.91.17.3", mapped.getsockname()[1], "127.91.17.2", 9)
        look = sockets.connections("job", frozenset({"127.91.17.3"}))
        assert look.whole
        assert look.connections == {tcp, udp}
        assert sockets.connections("job", frozenset({"127.91.17.4"})).connections == frozenset()
        assert sockets.connections("job", frozenset({"127.91.17.2", "127.91.17.3"})).connections == frozenset(), (
            "what a job says to itself never leaves it"
        )
        monkeypatch.setattr(sockets, "MAX_SOCKETS", 0)
        assert not sockets.connections("job", frozenset({"127.91.17.3"})).whole
    assert tcp not in sockets.connections("job", frozenset({"127.91.17.3"})).connections


def test_a_connection_that_only_the_peer_holds_open_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    _own(monkeypatch)
    own = frozenset({"127.91.17.5"})
    with socket.create_server(("127.91.17.6", 0)) as server:
        client = socket.create_connection(server.getsockname()[:2], source_address=("127.91.17.5", 0))
        peer, _ = server.accept()
        with peer, client:
            client.shutdown(socket.SHUT_WR)
            assert len(sockets.connections("job", own).connections) == 1, "half closed: the peer may go on sending"
            client.close()
            until = time.monotonic() + 5  # the peer takes its time to acknowledge, and the kernel keeps this a minute
            while sockets.connections("job", own).connections and time.monotonic() < until:
                time.sleep(0.02)
            assert sockets.connections("job", own).connections == frozenset()


def test_a_network_that_is_gone_is_said_so() -> None:
    with pytest.raises(NetworkError, match="namespace is not there"):
        sockets.connections("no-such-namespace-of-lark", frozenset())


def test_a_collector_that_is_gone_is_said_once_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there, socket.socket(socket.AF_INET6) as gone:
        there.bind(("127.0.0.1", 0))
        there.settimeout(5)
        gone.bind(("::1", 0))
        # An unconnected sender never hears that nobody has a port; a datagram too long for UDP is refused at once.
        senders = Senders([("::1", gone.getsockname()[1]), there.getsockname()])
        with caplog.at_level("INFO"):
            senders.send(b"x" * 70000)
            senders.send(b"x" * 70000)
            assert len(caplog.records) == 2, "one for each collector"
            senders.send(b"hello")
        assert there.recv(100) == b"hello"
        assert "again" in caplog.text
        senders.close()


GOOD = (
    "node: wn1\ncontroller: {urls: ['http://127.0.0.1:8080'], token-file: t}\nbridge: {name: br-lark}\n"
    "scitags: {collector: ['192.0.2.9:10514', '[2001:db8::9]:10514'], look: 2, ongoing: 30}\n"
)


def test_collectors_are_addresses_and_none_by_default(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(GOOD)
    assert load(path).scitags.collector == [("192.0.2.9", 10514), ("2001:db8::9", 10514)]
    path.write_text(GOOD.rpartition("scitags:")[0])
    assert load(path).scitags.collector == []
    for wrong in ("collector.example.org:10514", "192.0.2.9", "192.0.2.9:0"):
        path.write_text(GOOD.replace("192.0.2.9:10514", wrong))
        with pytest.raises(ConfigError, match="is not an address and port"):
            load(path)
