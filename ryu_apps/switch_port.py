"""The port for switches, open before all else is loaded.

A switch that finds nobody tries again a second later. One that finds the port open waits there for its first word, for
a second, and gets it as soon as there is somebody to say it.

Invariants: one process has the port, another that wants it is told so; whoever opens it early says nothing on it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Mapping
from typing import Any

BACKLOG = 1024
"""Switches that wait to be let in: all of a large site may come at once."""


def open_port(host: str, port: int) -> socket.socket:
    """Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as otherwise:
        found = otherwise.enter_context(socket.socket(family, socket.SOCK_STREAM))
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(BACKLOG)
        otherwise.pop_all()
    return found


def open_early(data: object) -> socket.socket | None:
    """By what controller.yaml seems to say, read and not checked yet. None: later, when all is known, and with a reason
    if it fails. Where several share a store the port stays shut until it is known what they have."""
    match data:
        case {"openflow": {"listen": str(listen)}, **others} if not _shared(others):
            host, _, port = listen.rpartition(":")
            with contextlib.suppress(ValueError, OSError, OverflowError):
                address = str(ipaddress.ip_address(host.strip("[]")))
                if int(port):
                    return open_port(address, int(port))
    return None


def _shared(others: Mapping[Any, object]) -> bool:
    store = others.get("store")
    return store is not None and not (isinstance(store, dict) and store.get("mode") == "embedded")
