"""Agents under load: each node registers, starts and exits attempts at a pace of its own, and remembers every answer.

Invariants: a node does one thing at a time, and repeats it until the controller says yes, as the real agent does. What
counts as acknowledged was answered with 200 or 201 and is not being ended. Addresses, ports and zones follow from the
lane, as on a real node, and are used again as soon as the controller has answered that they are free.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mininet_tests.chaos.inside import enter
from mininet_tests.site.namespaces import Machine, SiteError, wait_until
from policies.wire import attempts_digest

BOOT = "3f2a9c1e-0000-4000-8000-000000000001"
OFPORT_BASE = 1000
ZONE_BASE = 1000
HEARTBEAT = 5.0
AGAIN = 0.2
"""Seconds before something refused for the moment is tried again."""


def kinds(node: int) -> tuple[dict[str, object], ...]:
    """Ads of the jobs that come and go on a node. Slices reach over all nodes but the second, which has its own: what
    happens to its bridge concerns nobody else's jobs."""
    slice = "mpi-own" if node == 2 else "mpi"
    return (
        {"User": "alice@site", "LarkGroup": "physics"},
        {"User": "alice@site", "LarkGroup": "physics"},
        {"User": "bob@site"},
        {"User": "bob@site", "LarkNetwork": "none"},
        {"User": "carol@site", "LarkSlice": slice},
        {"User": "carol@site", "LarkSlice": f"{slice}-2", "LarkGroup": "physics"},
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """One request and what came back; status 0: no answer."""

    at: float
    took: float
    node: str
    method: str
    status: int
    detail: str


def mac_of(ipv4: ipaddress.IPv4Address) -> str:
    return "02:6c:" + ":".join(f"{octet:02x}" for octet in ipv4.packed)


@dataclass(frozen=True, slots=True)
class Lane:
    """One job network of a node: everything about it follows from node and number."""

    node: int
    number: int

    @property
    def port(self) -> str:
        return f"lj{self.node}-{self.number}"

    @property
    def ofport(self) -> int:
        return OFPORT_BASE + self.number

    @property
    def ipv4(self) -> ipaddress.IPv4Address:
        return ipaddress.IPv4Address(f"10.20.{self.node}.{self.number}")

    @property
    def mac(self) -> str:
        return mac_of(self.ipv4)

    def attempt(self, bridge: str, ad: dict[str, object], serial: int) -> dict[str, Any]:
        prefix = int(ipaddress.IPv6Address(f"2001:db8:20:{self.node:x}::"))
        return {
            "node": f"wn{self.node}",
            "port": {"bridge": bridge, "name": self.port, "ofport": self.ofport},
            "mac": self.mac,
            "ipv4": str(self.ipv4),
            "ipv6": str(ipaddress.IPv6Address(prefix | int(self.ipv4))),
            "zone": ZONE_BASE + self.number,
            "phase": "run",
            "ad": ad,
            "job": f"{serial}.0",
        }


class Http:
    """One kept connection to the API, made anew when it breaks. Belongs to one thread. `ports`: of each controller."""

    def __init__(self, ports: Sequence[int], token: str) -> None:
        self._ports = list(ports)
        self._token = token
        self._connection: http.client.HTTPConnection | None = None

    def call(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Status and answer. Raises OSError or HTTPException when there is none."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._ports[0], timeout=20)
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        try:
            self._connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = self._connection.getresponse()
            return answer.status, json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError):
            self.close()
            raise

    def turn(self) -> None:
        """Ask the next controller from now on, as an agent does that was not served."""
        if len(self._ports) > 1:
            self.close()
            self._ports.append(self._ports.pop(0))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Agent:
    """A node. `standing`: attempts that run from the beginning to the end; lanes from `first` on come and go."""

    def __init__(
        self,
        machine: Machine,
        ports: Sequence[int],
        token: str,
        number: int,
        bridge: str,
        lanes: Sequence[Lane],
        standing: Sequence[tuple[Lane, dict[str, object]]],
        seed: int,
    ) -> None:
        self.node = f"wn{number}"
        self.bridge = bridge
        self.answers: list[Answer] = []
        self.faults: list[str] = []
        """Answers that an agent must never get."""
        self.disagreements = 0
        """Heartbeats after which controller and agent knew different attempts."""
        self.refused_now = False
        self._lanes = list(lanes)
        self._standing = standing
        self._random = random.Random(f"{seed} {self.node}")
        self._kinds = kinds(number)
        self._serial = 0
        self._lock = threading.Lock()
        self._present: dict[str, tuple[Lane, bool]] = {}
        """Acknowledged attempts: the lane, and whether it only comes and goes."""
        self._ending: str | None = None
        self._quarantine: list[tuple[str, Lane, float]] = []
        """Ended, but a bridge of slice mates had not confirmed it: whose lane it is, and when to ask again."""
        self._said: dict[str, Any] = {}
        self._interval: float | None = None
        self._population = 0
        self._idle = threading.Event()
        self._stop = False
        self._http = Http(ports, token)
        self._thread = threading.Thread(target=self._run, args=(machine,), name=self.node, daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop = True
        self._thread.join(25)

    def pace(self, interval: float | None, population: int) -> None:
        """One start or exit each `interval` seconds around this many attempts; None: finish what is begun, and rest."""
        self._population = population
        self._interval = interval
        self._idle.clear()

    @property
    def resting(self) -> bool:
        if not self._thread.is_alive():
            raise SiteError(f"the thread of {self.node} has died; its traceback is among the warnings")
        return self._idle.is_set()

    def acknowledged(self) -> set[str]:
        with self._lock:
            return {id for id in self._present if id != self._ending}

    def ports(self) -> set[int]:
        """Numbers of the ports of all acknowledged attempts."""
        with self._lock:
            return {lane.ofport for id, (lane, _) in self._present.items() if id != self._ending}

    # --- the thread

    def _run(self, machine: Machine) -> None:
        enter(machine)
        spec = {"boot_id": BOOT, "bridge": self.bridge, "host_addresses": [f"192.168.7.{self.node[2:]}"]}
        self._insist("PUT", f"/v1/nodes/{self.node}", {**spec, "agent_version": "test"}, (200,))
        for lane, ad in self._standing:
            self._begin_attempt(lane, ad, moving=False)
        beat, due = time.monotonic(), time.monotonic()
        while not self._stop:
            if time.monotonic() - beat > HEARTBEAT:
                beat = time.monotonic()
                self._beat()
            if self._quarantine and self._quarantine[0][2] < time.monotonic():
                self._ask_again()
            if self._interval is None:
                self._idle.set()
                time.sleep(0.02)
                due = time.monotonic()
                continue
            early = due - time.monotonic()
            if early > 0:
                time.sleep(min(0.01, early))
                continue
            # What could not be done in time is not made up for: a burst after a fault would be another test.
            due = max(due + self._interval, time.monotonic() - self._interval)
            self._step()
        self._http.close()

    def _step(self) -> None:
        moving = sorted(id for id, (_, moving) in self._present.items() if moving)
        if self._lanes and (len(moving) < self._population or (self._random.random() < 0.5)):
            lane = self._lanes.pop(self._random.randrange(len(self._lanes)))
            self._begin_attempt(lane, self._random.choice(self._kinds), moving=True)
        elif moving:
            id = self._random.choice(moving)
            with self._lock:
                self._ending = id
            if self._insist("DELETE", f"/v1/attempts/{id}", None, (200,)):
                with self._lock:
                    free, _ = self._present.pop(id)
                    self._ending = None
                if "pending" in self._said.get("bridges", {}).values():
                    self._quarantine.append((id, free, time.monotonic() + AGAIN))
                else:
                    self._lanes.append(free)

    def _ask_again(self) -> None:
        """As lark-agent does: a lane is used again when everybody has confirmed that the attempt on it is gone."""
        id, lane, _ = self._quarantine.pop(0)
        try:
            status, answer = self._http.call("DELETE", f"/v1/attempts/{id}", None)
        except (OSError, http.client.HTTPException, ValueError):
            self._http.turn()
            status, answer = 0, {}
        if status == 404 or (status == 200 and "pending" not in answer.get("bridges", {}).values()):
            self._lanes.append(lane)
        else:
            self._quarantine.append((id, lane, time.monotonic() + AGAIN))

    def _begin_attempt(self, lane: Lane, ad: dict[str, object], *, moving: bool) -> None:
        self._serial += 1
        id = f"{self.node}~3f2a9c1e~slot1_{lane.number}~{1000 + lane.number}~{self._serial}"
        if self._insist("PUT", f"/v1/attempts/{id}", lane.attempt(self.bridge, ad, self._serial), (200, 201)):
            with self._lock:
                self._present[id] = (lane, moving)

    def _beat(self) -> None:
        beat: dict[str, object] = {"boot_id": BOOT, "digest": attempts_digest(self._present)}
        try:
            status, answer = self._http.call("POST", f"/v1/nodes/{self.node}/heartbeat", beat)
        except (OSError, http.client.HTTPException, ValueError):
            self._http.turn()
            return
        if status == 200 and not answer["agree"]:
            self.disagreements += 1

    def _insist(self, method: str, path: str, body: object, good: tuple[int, ...]) -> bool:
        """Until it is done; False when this agent is stopped, or was told what an agent must never be told.

        That there is no such attempt is one of these, unless an end may have been done by a try that was not answered.
        """
        tried = False
        while not self._stop:
            began = time.monotonic()
            try:
                status, answer = self._http.call(method, path, body)
                self._said = answer
                detail = "" if status in good else str(answer.get("detail", answer))
            except (OSError, http.client.HTTPException, ValueError) as problem:
                status, detail = 0, str(problem)
            took = time.monotonic() - began
            self.answers.append(Answer(began, took, self.node, method, status, detail))
            self.refused_now = status in (0, 503)
            if status in good or (status == 404 and method == "DELETE" and tried):
                return True
            if status not in (0, 503):
                self.faults.append(f"{method} {path}: {status} {detail}")
                return False
            tried = True
            self._http.turn()
            time.sleep(AGAIN if status else 0.05)
        return False


class Churn:
    """All nodes together."""

    def __init__(self, agents: Sequence[Agent]) -> None:
        self.agents = list(agents)

    def begin(self) -> None:
        for agent in self.agents:
            agent.begin()
        self.pause(60)

    def run(self, changes: float, population: int) -> None:
        """`changes` starts and exits a second, around `population` attempts, over all nodes."""
        for agent in self.agents:
            agent.pace(len(self.agents) / changes, population // len(self.agents))

    def pause(self, seconds: float = 30) -> None:
        """Everything that was begun is answered when this returns."""
        for agent in self.agents:
            agent.pace(None, 0)
        wait_until("all agents rest", lambda: all(agent.resting for agent in self.agents), seconds, 0.02)
        if self.faults():
            raise SiteError(f"agents were told what they must never be told: {self.faults()[:3]}")

    def fill(self, changes: float, population: int, seconds: float = 120) -> None:
        self.run(changes, population)
        each = population // len(self.agents)
        wait_until(
            f"{population} attempts are there",
            lambda: all(len(agent.acknowledged()) >= each for agent in self.agents),
            seconds,
        )

    def acknowledged(self) -> set[str]:
        return {id for agent in self.agents for id in agent.acknowledged()}

    def faults(self) -> list[str]:
        return [fault for agent in self.agents for fault in agent.faults]

    def answers(self, wanted: Callable[[Answer], bool]) -> list[Answer]:
        return [answer for agent in self.agents for answer in list(agent.answers) if wanted(answer)]

    def stop(self) -> None:
        for agent in self.agents:
            agent.stop()


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]
