"""What the seam to the framework promises its users. It makes a process green, so each test runs in one of its own."""

from __future__ import annotations

import subprocess
import sys

HANG_UP = """
from ryu_apps import engine

class Datapath:
    def close(self):
        events.put("down")

events = engine.Queue(1)
events.put("whatever came before")
with engine.Timeout(5):
    engine.hang_up(Datapath())
    print("the handler goes on")
    print(events.get())
    print(events.get())
"""


def green(program: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_handler_that_hangs_up_does_not_wait_for_itself_when_its_queue_is_full() -> None:
    assert green(HANG_UP) == ["the handler goes on", "whatever came before", "down"]
