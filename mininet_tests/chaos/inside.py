"""Work of this process in a machine's network: a thread may have a namespace of its own, and its sockets keep it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mininet_tests.site.namespaces import Machine

CLONE_NEWNET = 0x40000000
T = TypeVar("T")


def enter(machine: Machine) -> None:
    """From now on the calling thread opens its sockets in the machine. Never call it in the main thread."""
    descriptor = os.open(f"/proc/{machine.init_pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(descriptor, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(descriptor)


class Inside:
    """One thread in the machine; `call` runs a function there and gives its result."""

    def __init__(self, machine: Machine) -> None:
        self._pool = ThreadPoolExecutor(1, "inside", initializer=enter, initargs=(machine,))

    def call(self, work: Callable[[], T]) -> T:
        return self._pool.submit(work).result()

    def close(self) -> None:
        self._pool.shutdown()
