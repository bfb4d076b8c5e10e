"""The store is a cluster of three; its leader is killed, or one of two controllers, while jobs start and end.

Windows with and without a kill alternate, as in `test_chaos`. What was acknowledged before a kill is known after it.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from mininet_tests.chaos.churn import Answer
from mininet_tests.chaos.probes import Window
from mininet_tests.chaos.rig import GATE, Rig, Seat, defects, running_rig
from mininet_tests.chaos.test_chaos import FEW, SIZE, SLACK, begin, churn, end, told, undisturbed
from mininet_tests.site.namespaces import wait_until
from mininet_tests.store_rig import StoreCluster

pytestmark = [
    pytest.mark.system,
    pytest.mark.alone,
    pytest.mark.timeout(3600 if os.environ.get("LARK_TEST_FULL") else 240),
]
KILLS = max(3, FEW)
"""So that one interrupted window is not the median."""
WINDOW = max(SIZE.window, 6)
"""A new leader takes about 3 s, a controller that died is given up after 3 s: both are to be over in a window."""


@dataclass(frozen=True, slots=True)
class Clustered:
    rig: Rig
    store: StoreCluster


def built(tmp_path_factory: pytest.TempPathFactory, controllers: int) -> Iterator[Clustered]:
    seed = int(os.environ["LARK_TEST_SEED"])
    engine = os.environ.get("LARK_TEST_ENGINE", "os-ken")
    with StoreCluster() as store:
        root = tmp_path_factory.mktemp("cluster")
        with running_rig(root, engine, SIZE, seed, servers=store.servers, controllers=controllers) as rig:
            rig.churn.fill(20 * SIZE.workers, SIZE.attempts)
            rig.churn.pause()
            yield Clustered(rig, store)
            rig.churn.pause()
            assert rig.churn.faults() == []
            assert rig.drift() == []
            assert defects(rig.logged()) == []


@pytest.fixture(scope="module", params=[1, 2], ids=["one-controller", "two-controllers"])
def clustered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clustered]:
    yield from built(tmp_path_factory, request.param)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clustered]:
    yield from built(tmp_path_factory, 2)


def written(rig: Rig, since: float) -> list[Answer]:
    """Starts and ends that were asked for since then, and done."""
    return rig.churn.answers(lambda one: one.at > since and one.status in (200, 201))


def test_writes_go_on_when_the_stores_leader_is_killed(clustered: Clustered) -> None:
    rig, store = clustered.rig, clustered.store
    control: list[Window] = []
    killed: list[Window] = []
    pauses: list[float] = []
    for _ in range(KILLS):
        churn(rig)
        before = begin(rig)
        time.sleep(WINDOW)
        control.append(end(rig, before))
        before = begin(rig)
        time.sleep(random.uniform(0, 1))
        leader = store.leader()
        acknowledged = rig.churn.acknowledged()
        store.kill(leader)
        kill = time.monotonic()
        wait_until("something is written again", lambda kill=kill: written(rig, kill), 30, 0.02)  # type: ignore[misc]
        assert store.leader() != leader
        time.sleep(max(0.0, WINDOW - (time.monotonic() - kill)))
        killed.append(end(rig, before))
        done = sorted(one.at + one.took for one in written(rig, kill))
        pauses.append(max(b - a for a, b in zip([kill, *done], done, strict=False)))
        assert len(done) > SIZE.changes, "the churn goes on"
        rig.churn.pause()
        assert rig.forgotten(acknowledged) == set(), "acknowledged, not ended, not known"
        assert rig.drift() == []
        store.start(leader)
        wait_until("the member takes part again", lambda leader=leader: store.role(leader) is not None, 60)  # type: ignore[misc]
    told(f"{len(rig.seats)} controllers, {KILLS} leaders killed: nothing was written for", pauses)
    undisturbed(control, killed)
    assert max(pauses) <= 5 * SLACK


def test_the_bridges_of_a_killed_controller_take_registrations_again(two: Clustered) -> None:
    rig = two.rig
    control: list[Window] = []
    killed: list[Window] = []
    back: list[float] = []
    for _ in range(KILLS):
        churn(rig)
        before = begin(rig)
        time.sleep(WINDOW)
        control.append(end(rig, before))
        masters = wait_masters(rig)
        # The one with the more bridges, and so each in turn: what comes back gets none before one is free.
        victim = max(rig.seats, key=lambda seat: sum(one is seat for one in masters.values()))
        orphans = {bridge for bridge, seat in masters.items() if seat is victim}
        before = begin(rig)
        time.sleep(random.uniform(0, 1))
        acknowledged = rig.churn.acknowledged()
        rig.kill_controller(victim)
        kill = time.monotonic()
        nodes = [agent.node for agent in rig.agents if agent.bridge in orphans or GATE in orphans]
        assert nodes
        until_served(rig, nodes, kill)
        first = {
            node: min(one.at + one.took for one in started(rig, kill) if one.node == node) - kill for node in nodes
        }
        back.append(max(first.values()))
        survivor = next(seat for seat in rig.seats if seat is not victim)
        assert rig.forgotten(acknowledged) == set(), "acknowledged, not ended, not known"
        time.sleep(max(0.0, WINDOW - (time.monotonic() - kill)))
        killed.append(end(rig, before))
        assert all(seat is survivor for seat in wait_masters(rig).values())
        rig.churn.pause()
        assert rig.drift() == []
        rig.start_controller(victim)
        rig.until_ready(victim)
    told(f"{KILLS} controllers killed: from the kill to a registration on each of their bridges", back)
    undisturbed(control, killed)
    assert max(back) <= 5 * SLACK


def started(rig: Rig, since: float) -> list[Answer]:
    return [one for one in written(rig, since) if one.method == "PUT"]


def until_served(rig: Rig, nodes: list[str], since: float) -> None:
    def all_served() -> bool:
        return set(nodes) <= {one.node for one in started(rig, since)}

    wait_until("every node is served again", all_served, 40, 0.02)


def wait_masters(rig: Rig) -> dict[str, Seat]:
    wait_until("each bridge has a master", lambda: set(rig.masters()) == set(rig.bridges), 30)
    return rig.masters()
