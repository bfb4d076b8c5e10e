"""The port for switches is open early where that is certain to be right, and nobody else can have it."""

from __future__ import annotations

import socket

import pytest

from ryu_apps.switch_port import open_early, open_port


def free() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def test_a_switch_that_comes_early_waits_for_its_first_word() -> None:
    port = free()
    listener = open_early({"openflow": {"listen": f"127.0.0.1:{port}"}})
    assert listener is not None
    with listener, socket.create_connection(("127.0.0.1", port), timeout=5) as switch:
        switch.sendall(b"hello")
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(5) == b"hello"
            connection.sendall(b"welcome")
            assert switch.recv(7) == b"welcome"


def test_an_ipv6_address_and_a_store_of_ones_own_are_right_too() -> None:
    for text, host in (("[::1]:{}", "::1"), ("127.0.0.1:{}", "127.0.0.1")):
        port = free()
        listener = open_early({"openflow": {"listen": text.format(port)}, "store": {"mode": "embedded"}})
        assert listener is not None
        with listener:
            assert listener.getsockname()[:2] == (host, port)


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"openflow": "127.0.0.1:6653"},
        {"openflow": {"listen": 6653}},
        {"openflow": {"listen": "localhost:6653"}},
        {"openflow": {"listen": "127.0.0.1"}},
        {"openflow": {"listen": "127.0.0.1:http"}},
        {"openflow": {"listen": "127.0.0.1:70000"}},
        {"openflow": {"listen": "127.0.0.1:-1"}},
        {"openflow": {"listen": "127.0.0.1:0"}},
        {"openflow": {"listen": "127.0.0.1:PORT"}, "store": {"mode": "cluster"}},
        {"openflow": {"listen": "127.0.0.1:PORT"}, "store": "?"},
    ],
)
def test_what_may_be_wrong_or_is_shared_with_others_opens_nothing(data: object) -> None:
    if isinstance(data, dict) and "store" in data:
        data["openflow"]["listen"] = f"127.0.0.1:{free()}"
    assert open_early(data) is None


def test_the_port_is_one_process_s() -> None:
    port = free()
    data = {"openflow": {"listen": f"127.0.0.1:{port}"}}
    with open_port("127.0.0.1", port):
        assert open_early(data) is None
        with pytest.raises(OSError, match="in use"):
            open_port("127.0.0.1", port)
    again = open_early(data)
    assert again is not None
    again.close()
