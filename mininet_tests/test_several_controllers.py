"""Two real controllers on a real cluster of stores, sharing the bridges of a real ovs-vswitchd; each killed in turn."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mininet_tests.older import older_version
from mininet_tests.store_rig import StoreCluster, command
from mininet_tests.switch_rig import ROOT, DummySwitch, wait_until
from mininet_tests.test_controller_life import (
    ATTEMPT,
    GATE,
    POLICY,
    WORKER,
    Daemon,
    ages,
    attempt,
    attempt_id,
    flows_of,
    logs,
    node_spec,
)
from mininet_tests.test_store_cluster import remove
from ryu_apps.store.schema import VERSION

pytestmark = [pytest.mark.system, pytest.mark.engine, pytest.mark.alone]

WORKER2 = "lknb-wn2"
BRIDGES = {WORKER: 0x00006C6B6E620001, WORKER2: 0x00006C6B6E620003, GATE: 0x00006C6B6E620002}
UPLINKS = {WORKER: ["lknb-up"], WORKER2: ["lknb-up2"], GATE: ["lknb-wf", "lknb-sf"]}
JOBS = range(2, 32)
TAKE_OVER_SECONDS = 5.0
FULL = bool(os.environ.get("LARK_TEST_FULL"))
# The hash gives the worker bridge to the one and the gate to the other.
NAMES = ("ctl2", "ctl1")


class Site:
    """A store, two controllers, and three bridges that know both."""

    def __init__(self, cluster: StoreCluster, switch: DummySwitch) -> None:
        self.switch = switch
        engine = os.environ.get("LARK_TEST_ENGINE", "os-ken")
        self.controllers = {name: Daemon(engine) for name in NAMES}
        for name, daemon in self.controllers.items():
            path = daemon.home / "controller.yaml"
            servers = "".join(f'    - "{server}"\n' for server in cluster.servers)
            path.write_text(path.read_text() + f"store:\n  mode: cluster\n  name: {name}\n  servers:\n{servers}")

    def begin(self) -> None:
        for daemon in self.controllers.values():
            daemon.start()
        targets = [f"tcp:127.0.0.1:{daemon.openflow}" for daemon in self.controllers.values()]
        for bridge, dpid in BRIDGES.items():
            self.switch.bridge(bridge, dpid)
            ports = dict(enumerate(UPLINKS[bridge], 1))
            if bridge == WORKER:
                ports |= {10 + n: f"lj{n}" for n in JOBS}
            for number, port in ports.items():
                self.switch.vsctl(
                    "add-port", bridge, port, "--", "set", "interface", port, "type=dummy", f"ofport_request={number}"
                )
            self.switch.vsctl("set-controller", bridge, *targets)
        self.switch.vsctl(*self._backoff())

    def _backoff(self) -> list[str]:
        found = self.switch.vsctl("--bare", "--columns=_uuid", "list", "controller").split()
        return [word for uuid in found for word in ("--", "set", "controller", uuid, "max_backoff=1000")]

    def masters(self) -> dict[str, str]:
        """Who has brought each bridge in line."""
        found: dict[str, str] = {}
        for name, daemon in self.controllers.items():
            if daemon.process is None or daemon.process.poll() is not None:
                continue
            _, answer = daemon.call("GET", "/v1/bridges", token=daemon.viewer)
            for bridge in answer["bridges"]:
                if bridge["converged"]:
                    assert bridge["bridge"] not in found, "two masters of one bridge"
                    found[bridge["bridge"]] = name
        return found

    def until_in_line(self, seconds: float = 15) -> dict[str, str]:
        wait_until("every bridge has a master and is in line", lambda: set(self.masters()) == set(BRIDGES), seconds)
        return self.masters()

    def roles(self, bridge: str) -> list[str]:
        uuids = self.switch.vsctl("get", "bridge", bridge, "controller").strip(" []\n").split(", ")
        return sorted(self.switch.vsctl("get", "controller", uuid, "role").strip().strip('"') for uuid in uuids)

    def ask(self, method: str, path: str, body: object, order: tuple[str, ...], seconds: float = 15) -> tuple[int, Any]:
        """As an agent does: the first controller, then the other, until one gives an answer that is one."""
        until = time.monotonic() + seconds
        while True:
            for name in order:
                daemon = self.controllers[name]
                with contextlib.suppress(OSError, http.client.HTTPException):
                    status, answer = daemon.call(method, path, body)
                    if status not in (429, 503):
                        return status, answer
            assert time.monotonic() < until, f"{method} {path}: no answer in {seconds} s"
            time.sleep(0.05)

    def known(self, name: str) -> set[str]:
        daemon = self.controllers[name]
        _, answer = daemon.call("GET", "/v1/attempts", token=daemon.viewer)
        return {one["id"] for one in answer["attempts"]}

    def everything(self) -> dict[str, list[str]]:
        return {bridge: self.switch.flows(bridge) for bridge in BRIDGES}


@pytest.fixture
def store() -> Iterator[StoreCluster]:
    with StoreCluster() as cluster:
        yield cluster


@pytest.fixture
def site(store: StoreCluster) -> Iterator[Site]:
    switch = DummySwitch()
    try:
        switch.start()
        made = Site(store, switch)
        try:
            made.begin()
            yield made
        finally:
            for daemon in made.controllers.values():
                print(logs(daemon))
                remove(daemon)
    finally:
        switch.stop()


def register(site: Site, n: int, order: tuple[str, ...]) -> int:
    return site.ask("PUT", f"/v1/attempts/{attempt_id(n)}", attempt(n, 10 + n), order)[0]


def test_two_controllers_share_the_bridges_and_each_survives_the_other(site: Site) -> None:
    a, b = NAMES
    masters = site.until_in_line()
    assert (masters[WORKER], masters[GATE]) == (a, b)
    # Open vSwitch shows the roles a few seconds late.
    for bridge in BRIDGES:
        wait_until(f"{bridge} has a master and a slave", lambda b=bridge: site.roles(b) == ["master", "slave"], 12)  # type: ignore[misc]

    # Through either: in force on both bridges, whoever is their master, when it is answered.
    assert site.controllers[a].call("PUT", "/v1/nodes/wn1", node_spec())[0] == 200
    for n in range(2, 8):
        order = (a, b) if n % 2 else (b, a)
        began = time.monotonic()
        assert register(site, n, order) == 201
        print(f"registered through {order[0]} in {1000 * (time.monotonic() - began):.1f} ms")
        count = {bridge: len(flows_of(site.switch, bridge, ATTEMPT)) for bridge in (WORKER, GATE)}
        assert count[WORKER] >= n - 1
        assert count[GATE] >= n - 1

    # One is killed while nothing happens: the other has its bridges in time, and sends them nothing.
    before = site.everything()
    site.controllers[a].stop(signal.SIGKILL)
    began = time.monotonic()
    site.until_in_line()
    took = time.monotonic() - began
    print(f"taken over while nothing changed: {took:.1f} s")
    assert took < TAKE_OVER_SECONDS
    assert site.everything() == before
    line = re.findall(rf"bridge={WORKER}: in line with (\d+) flows, (\d+) flow-mods sent", logs(site.controllers[b]))
    assert [sent for _, sent in line] == ["0"], line
    # The control: it is the master, and programs the bridge.
    assert register(site, 8, (b,)) == 201
    assert len(flows_of(site.switch, WORKER, ATTEMPT)) > count[WORKER]

    # It comes back, and takes nothing away from the other.
    site.controllers[a].start()
    wait_until("the one that was killed knows everything", lambda: site.known(a) == site.known(b), 10)
    assert set(site.until_in_line().values()) == {b}

    # Now the other one is killed, with registrations and ends under way.
    acknowledged: dict[str, bool] = {attempt_id(n): True for n in range(2, 9)}
    answered: list[float] = []
    faults: list[BaseException] = []
    killed = threading.Event()

    def churn(numbers: list[int], order: tuple[str, ...]) -> None:
        try:
            while not killed.is_set() or time.monotonic() < killed_at[0] + 7:
                for n in numbers:
                    id = attempt_id(n)
                    assert register(site, n, order) in (200, 201)
                    answered.append(time.monotonic())
                    acknowledged[id] = True
                    if n % 3:
                        status, _ = site.ask("DELETE", f"/v1/attempts/{id}", None, order)
                        assert status in (200, 404)
                        acknowledged[id] = False
                    time.sleep(0.02)
        except BaseException as fault:  # noqa: BLE001  # told by the test's own thread
            faults.append(fault)

    killed_at = [0.0]
    threads = [
        threading.Thread(target=churn, args=(list(range(9, 20)), (b, a))),
        threading.Thread(target=churn, args=(list(range(20, 31)), (a, b))),
    ]
    for thread in threads:
        thread.start()
    time.sleep(2)
    killed_at[0] = time.monotonic()
    site.controllers[b].stop(signal.SIGKILL)
    killed.set()
    for thread in threads:
        thread.join(60)
    assert not faults, faults
    took = min(when for when in answered if when > killed_at[0] + 0.5) - killed_at[0]
    print(f"killed during churn: registrations again after {took:.1f} s; {len(answered)} registrations answered")
    assert took < TAKE_OVER_SECONDS
    assert len([when for when in answered if when < killed_at[0]]) > 10, "there was churn"

    # Nothing acknowledged is lost, nothing that was ended stays, and a second look at the switches finds nothing.
    site.until_in_line()
    assert site.known(a) == {id for id, alive in acknowledged.items() if alive}
    found = site.everything()
    site.controllers[a].stop(signal.SIGKILL)
    site.controllers[a].start()
    site.until_in_line()
    assert site.everything() == found
    sent = re.findall(r"in line with \d+ flows, (\d+) flow-mods sent", site.controllers[a].log())
    assert sent == ["0"] * len(BRIDGES), "a restart finds everything as it should be"


def test_nobody_is_given_up_when_the_store_loses_its_leader_and_one_that_stood_still_ends(
    site: Site, store: StoreCluster
) -> None:
    a, b = NAMES
    masters = site.until_in_line()
    store.kill(store.leader())
    time.sleep(8)
    assert site.masters() == masters, "both live, and have what they had"
    assert site.controllers[a].call("PUT", "/v1/nodes/wn1", node_spec())[0] == 200
    for n, order in ((2, (a, b)), (3, (b, a))):
        assert register(site, n, order) == 201
    # The control: one that is silent is given up; when it goes on, it ends and changes nothing.
    process = site.controllers[a].process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    found: dict[str, bool] = {}

    def taken_over() -> bool:
        found.update({one: site.controllers[b].bridge(one)["converged"] for one in BRIDGES})
        return all(found.values())

    wait_until("the other has every bridge", taken_over, 10)
    print(f"taken over from one that stood still: {time.monotonic() - began:.1f} s")
    before = site.everything()
    process.send_signal(signal.SIGCONT)
    assert process.wait(15) != 0
    assert "the other controllers have given ctl2 up" in logs(site.controllers[a])
    assert site.everything() == before


def test_another_policy_is_in_force_on_all_when_each_was_told_and_who_was_not_says_so(site: Site) -> None:
    a, b = NAMES
    site.until_in_line()
    assert site.controllers[a].call("PUT", "/v1/nodes/wn1", node_spec())[0] == 200
    assert register(site, 2, (a, b)) == 201
    granted = site.everything()
    assert flows_of(site.switch, GATE, ATTEMPT), "the gate knows the job"
    digests = set()
    said = "decided by another controller with another policy"
    for name in (a, b):
        daemon = site.controllers[name]
        before = daemon.policy()
        policy = POLICY.replace("{for: physics, to: files}", "{for: sealed, to: files, trust-user: true}")
        (daemon.home / "new").write_text(policy)
        asked = command("plan", "--config", str(daemon.home / "controller.yaml"), "--policy", str(daemon.home / "new"))
        assert (asked.returncode, asked.stdout.splitlines()[-2:]) == (
            0, ["- 2.0 on wn1: loses files", "1 job changes, 0 do not"]
        ), asked.stderr  # fmt: skip
        (daemon.home / "policy.yaml").write_text(policy)
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        wait_until("it has the new policy", lambda d=daemon, old=before: d.policy() != old, 10)  # type: ignore[misc]
        digests.add(daemon.policy())
        if name == a:
            assert site.controllers[b].policy() == before
            wait_until("the other says so", lambda: said in site.controllers[b].log(), 10)
            assert said not in site.controllers[a].log()
    assert len(digests) == 1
    wait_until("the gate has forgotten the job", lambda: not flows_of(site.switch, GATE, ATTEMPT), 10)
    after = site.everything()
    assert after != granted
    # Whoever takes over has the same policy: nothing changes.
    site.controllers[b].stop(signal.SIGKILL)
    site.until_in_line()
    assert site.everything() == after


SHARED = "shares: [{for: physics, per: User, share: 10 Mbit/s}]\n"
SLICED = "slices: [{for: physics, name: LarkSlice, trust-user: true}]\n"
SLICES = POLICY.replace("attributes:\n", "attributes:\n  LarkSlice: {type: string, max-length: 64}\n")
ONE_MORE = SLICES.replace("  files: {", "  more: {hosts: [10.20.0.9], ports: [tcp/1], protected: true}\n  files: {")
GIVE_NUMBERS = (
    POLICY + SHARED,
    ONE_MORE.replace("to: files}", "to: files}\n  - {for: physics, to: more}") + SLICED,
    SLICES.replace("egress: allow", "egress: deny") + SHARED + SLICED,
    POLICY,
)
"""Each has outcomes, slices, shares or services that the one before it has not."""


def test_the_same_new_policy_at_the_same_moment_gives_both_the_same_numbers_and_then_it_is_quiet(site: Site) -> None:
    """As when both machines get policy.yaml and SIGHUP from the same hand; each gives numbers before it hears the
    other's. That they are the same is seen where one takes the other's bridges over, and has nothing to send."""
    a, b = NAMES
    site.until_in_line()
    assert site.controllers[a].call("PUT", "/v1/nodes/wn1", node_spec())[0] == 200
    for n in range(2, 14):
        ad = {"LarkGroup": "physics" if n % 4 else "other", "User": f"u{n % 3}@x", "LarkSlice": f"s{n % 5}"}
        body = attempt(n, 10 + n, **ad)
        assert site.ask("PUT", f"/v1/attempts/{attempt_id(n)}", body, (a, b) if n % 2 else (b, a))[0] == 201
    daemons = [site.controllers[name] for name in NAMES]

    def young() -> float:
        """Seconds since the last flow-mod that any bridge has taken."""
        return min(age for bridge in BRIDGES for age in ages(site.switch, bridge).values())

    def rewritten() -> int:
        return sum(daemon.log().count("are brought in line with the numbers") for daemon in daemons)

    def agreed() -> bool:
        found = [
            {one["policy"] for one in d.call("GET", "/v1/attempts", token=d.viewer)[1]["attempts"]} for d in daemons
        ]
        return found[0] == found[1] == {daemons[0].policy()} == {daemons[1].policy()}

    for number in range(20 if FULL else 3):
        before = site.everything()
        old = daemons[0].policy()
        for daemon in daemons:
            (daemon.home / "new").write_text(GIVE_NUMBERS[number % len(GIVE_NUMBERS)])
            (daemon.home / "new").replace(daemon.home / "policy.yaml")
        for daemon in daemons:
            assert daemon.process is not None
            daemon.process.send_signal(signal.SIGHUP)
        wait_until("both have the new one", lambda old=old: old not in {d.policy() for d in daemons} and agreed(), 15)  # type: ignore[misc]
        wait_until("it is quiet", lambda: young() >= 1.0 and set(site.masters()) == set(BRIDGES), 15)
        assert site.everything() != before, "the control: it is another policy to the switches too"

    # What is still owed is paid, and then nothing is sent or written any more.
    quiet, wrote, since = site.everything(), rewritten(), time.monotonic()

    def idle() -> bool:
        nonlocal quiet, wrote, since
        found = site.everything(), rewritten()
        if found != (quiet, wrote):
            (quiet, wrote), since = found, time.monotonic()
        return time.monotonic() - since > 2 and young() > 2

    wait_until("nothing flaps", idle, 20)
    print(f"rows were brought in line {wrote} times")

    # What one knows is what the other has put on its bridges, and what is stored.
    for killed, taker in ((a, b), (b, a)):
        said = len(site.controllers[taker].log())
        site.controllers[killed].stop(signal.SIGKILL)
        assert set(site.until_in_line().values()) == {taker}
        sent = re.findall(r"in line with \d+ flows, (\d+) flow-mods sent", site.controllers[taker].log()[said:])
        assert sent, "the control: it has taken bridges over"
        assert set(sent) == {"0"}
        assert site.everything() == quiet
        if killed == a:
            site.controllers[a].start()
            wait_until("it knows everything", lambda: site.known(a) == site.known(b), 10)


def test_a_store_that_is_lost_leaves_no_bridge_without_a_master(site: Site, store: StoreCluster) -> None:
    """The switches remember a higher generation than the new store gives; at first they refuse it."""
    a, b = NAMES
    site.until_in_line()
    site.controllers[b].stop()
    site.until_in_line()
    site.controllers[a].stop()
    with StoreCluster() as another:
        for daemon in site.controllers.values():
            path = daemon.home / "controller.yaml"
            text = path.read_text()
            for old, new in zip(store.servers, another.servers, strict=True):
                text = text.replace(f'"{old}"', f'"{new}"')
            path.write_text(text)
        site.controllers[a].start()
        assert set(site.until_in_line(30).values()) == {a}
        assert "STALE" in site.controllers[a].log(), "it was refused"
        assert site.controllers[a].call("PUT", "/v1/nodes/wn1", node_spec())[0] == 200
        assert register(site, 2, (a,)) == 201
        site.controllers[a].stop()


def test_a_controller_of_an_older_version_and_one_of_this_share_the_bridges(site: Site) -> None:
    """As during an upgrade: the store first, then one controller after the other; jobs come and go meanwhile."""
    a, b = NAMES
    with older_version() as older:
        schema = json.loads((older / "ryu_apps/store/lark.ovsschema").read_text())["version"]
        for number, (name, other) in enumerate(((a, b), (b, a))):
            config = ("--config", str(site.controllers[name].home / "controller.yaml"))
            for daemon in site.controllers.values():
                daemon.stop()
                daemon.source = older
            if schema != VERSION:
                done = command("store", "downgrade", *config, schema)
                assert done.returncode == 0, done.stderr
            for daemon in site.controllers.values():
                daemon.start()
            site.until_in_line()
            if schema != VERSION:
                done = command("store", "upgrade", *config)
                assert f"from schema {schema} to {VERSION}" in done.stdout, done.stderr
            site.controllers[other].stop()
            assert set(site.until_in_line().values()) == {name}
            site.controllers[other].source = ROOT
            site.controllers[other].start()
            assert site.controllers[name].call("PUT", "/v1/nodes/wn1", node_spec())[0] == 200
            for n in range(2 + 10 * number, 8 + 10 * number):
                assert register(site, n, (name, other) if n % 2 else (other, name)) == 201
            for n in range(2 + 10 * number, 5 + 10 * number):
                order = (other, name) if n % 2 else (name, other)
                assert site.ask("DELETE", f"/v1/attempts/{attempt_id(n)}", None, order)[0] == 200
            wait_until("both know the same", lambda: site.known(a) == site.known(b), 10)
            assert len(site.known(a)) == 3 * (number + 1)
            # This version takes over from the older one, and goes on from there.
            site.controllers[name].stop(signal.SIGKILL)
            assert set(site.until_in_line().values()) == {other}
            assert len(flows_of(site.switch, GATE, ATTEMPT)) > 0
            site.controllers[name].source = ROOT
            site.controllers[name].start()
