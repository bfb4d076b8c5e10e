"""What runs over the border goes on, whatever is changed: classes, guarantees, the border's daemon, the controller.

On the campus, with a narrow line, so that a test beside this one does not notice it: a job of production and another
send, a file is fetched by a real xrdcp. After each change the receivers have the very connections that they had before,
and each of them moves.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from mininet_tests.site.lark import BorderAgent, Controller
from mininet_tests.site.namespaces import Daemon, wait_until
from mininet_tests.topology import layout
from mininet_tests.topology.lab import DEFAULT_POLICY, Campus
from mininet_tests.topology.traffic import OTHERS, PRODUCTION, SENDERS, Traffic
from policies.language import load_policy

pytestmark = pytest.mark.timeout(400)
POLICY = DEFAULT_POLICY.read_text(encoding="utf-8")
CHANGED = POLICY.replace("classes:\n", "classes:\n  - {name: urgent, dscp: ef, guarantee: 5%}\n", 1).replace(
    "30%", "20%"
)
LINE = "10 Mbit/s"
MOVES = 100_000
"""Bytes of each sender after a change: more than any queue on the way holds of a class (30 kB)."""


class Live:
    """Senders on the campus, and what they were before."""

    def __init__(self, campus: Campus) -> None:
        self.campus = campus
        self.traffic = Traffic(campus, file_size=64 << 20)
        self.traffic.start()
        self.senders: list[Daemon] = [self.traffic.send(PRODUCTION), self.traffic.send(OTHERS), *self.traffic.fetch(1)]
        wait_until("the file is on its way", self.traffic.fetching, 20)
        self.all_move("at first")
        self.before = self.traffic.connections()

    def all_move(self, when: str) -> None:
        start = self.traffic.arrived()[1]

        def moved() -> bool:
            now = self.traffic.arrived()[1]
            return all(now[sender] > start[sender] + MOVES for sender in SENDERS)

        wait_until(f"every sender moves, {when}", moved, 60, 0.25)

    def go_on(self, when: str) -> None:
        self.all_move(when)
        assert all(sender.running() for sender in self.senders), when
        assert self.traffic.connections() >= self.before, when

    def classes(self) -> dict[str, str]:
        """Guarantee of each class on the line, as tc writes it."""
        text = self.campus.machine("border").need("tc", "class", "show", "dev", "wan0")
        return dict(re.findall(r"class htb 1a2b:(1[0-9a-f]{2}) parent \S+ .*?rate (\S+) ", text))

    def comes_to(self, classes: dict[str, str]) -> None:
        wait_until(f"the line has the classes {classes}", lambda: self.classes() == classes, 60, 0.25)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    site = tmp_path / "site.yaml"
    text = layout.site_text(load_policy(DEFAULT_POLICY))
    assert layout.WAN_RATE in text
    site.write_text(text.replace(layout.WAN_RATE, LINE), encoding="utf-8")
    with Campus(POLICY, site, say=print, queues=True, probing=False) as campus:
        yield Live(campus)


def test_no_connection_is_dropped_by_a_change_of_classes_or_a_restart_of_daemon_or_controller(live: Live) -> None:
    campus = live.campus
    as_at_first = {"122": "5Mbit", "11a": "3Mbit", "108": "1Mbit"}
    assert live.classes() == as_at_first

    campus.new_policy(CHANGED)
    live.comes_to({"12e": "500Kbit", "122": "5Mbit", "11a": "2Mbit", "108": "1Mbit"})
    live.go_on("with another class, and another guarantee")

    campus.signal("ovs_agent.cli border", signal.SIGKILL)
    live.go_on("without the daemon on the border")
    keeper = BorderAgent(campus.machine("border"), layout.BRIDGES["border"])
    keeper.start()
    live.go_on("with the daemon back")

    campus.signal("ryu_apps.cli run", signal.SIGKILL)
    live.go_on("without a controller")
    controller = Controller(campus.machine("ctl"), campus.engine)
    controller.start()
    wait_until("all bridges are in line", campus.converged, 60, 0.25)
    live.go_on("with the controller back")

    campus.new_policy(POLICY)
    live.comes_to(as_at_first)
    live.go_on("with the class gone, and the guarantee as before")
    wait_until("the queues are in force", campus.queues_in_force, 60, 0.25)

    # The control: connections that end are noticed.
    live.senders[0].stop()
    wait_until("a sender that has ended is missed", lambda: not live.traffic.connections() >= live.before, 30)
