"""Listening sockets asked of the kernel: the same as /proc says, and errors are errors."""

from __future__ import annotations

import errno
import os
import socket
import struct

import pytest

from ovs_agent import chirp, sock_diag
from ovs_agent.sock_diag import Endpoint


def test_listeners_of_both_families_are_found_by_their_inodes_and_connections_are_not() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as four,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
    ):
        with socket.create_connection(four.getsockname()) as connection, four.accept()[0]:
            here = {
                os.fstat(four.fileno()).st_ino: [Endpoint("127.0.0.1", four.getsockname()[1])],
                os.fstat(six.fileno()).st_ino: [Endpoint("::1", six.getsockname()[1])],
                os.fstat(connection.fileno()).st_ino: [],
            }
            for inode, endpoints in here.items():
                assert sock_diag.listeners({inode}) == endpoints
            assert sorted(sock_diag.listeners(here)) == sorted(e for found in here.values() for e in found)


def test_without_sock_diag_the_same_is_read_from_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(inodes: object) -> None:
        raise OSError(errno.ENOENT, "no tcp_diag")

    with (
        socket.create_server(("127.0.0.1", 0)) as four,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
    ):
        asked = chirp.listeners_of(os.getpid())
        monkeypatch.setattr(sock_diag, "listeners", missing)
        read = chirp.listeners_of(os.getpid())
        assert asked == read
        assert {e.port for e in read} >= {four.getsockname()[1], six.getsockname()[1]}


def test_an_error_of_the_kernel_is_raised_and_an_answer_says_whether_more_follows() -> None:
    error = struct.pack("=IHHIIi", 20, sock_diag.NLMSG_ERROR, 0, 1, 0, -errno.ENOENT)
    with pytest.raises(OSError, match="does not tell"):
        sock_diag.parse(error)
    done = struct.pack("=IHHIIi", 20, sock_diag.NLMSG_DONE, 0, 1, 0, 0)
    assert sock_diag.parse(done) == ([], False)
    assert sock_diag.parse(b"") == ([], True)
