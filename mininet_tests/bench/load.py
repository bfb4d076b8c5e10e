"""Agents by the thousand in one process: registrations, ends and heartbeats at a given pace, and how long each took.

Each node has a connection of its own (or `abreast` many), as its agent has, kept open. Requests are due at fixed
moments whatever became of those before (*open loop*): time that a request waits because the controller is slow counts.
A *closed* loop (`burst`, `serial`) asks for the next as soon as the last is answered.

Invariants: what counts as present was answered with 201 and its end not asked for; nothing is repeated but what is
told to come again (429): any other answer than 201 to a registration and 200 to an end is a failure.

Run: `python -m mininet_tests.bench.load PLAN.json`; prints one JSON object a line, the last one with `present`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import random
import resource
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mininet_tests.chaos.churn import BOOT, OFPORT_BASE, ZONE_BASE, mac_of, percentile
from policies.wire import attempts_digest

JOBS_IN_A_SLICE = 8
ABREAST = 64


class _Wire(asyncio.Protocol):
    """One kept-alive connection; one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self.retry_after = 0
        """Seconds, of the last answer."""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def ask(self, data: bytes) -> asyncio.Future[tuple[int, bytes]]:
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        at = head.lower().find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(rest) >= length and self._answer is not None and not self._answer.done():
            self._buffer = rest[length:]
            at = head.lower().find(b"retry-after:")
            self.retry_after = int(head[at + 12 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            self._answer.set_result((int(head[9:12]), rest[:length]))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("closed"))

    @property
    def closed(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


@dataclass
class Node:
    """One node: its lanes, its attempts, its connection."""

    number: int
    bridge: str
    port_prefix: str
    network: ipaddress.IPv4Network
    token: str
    source: str
    api: tuple[str, int]
    free: deque[int] = field(default_factory=deque)
    present: dict[str, int] = field(default_factory=dict)
    """Id of an attempt and its lane."""
    abreast: int = 1
    """Connections, and requests at a time."""

    def __post_init__(self) -> None:
        self.name = f"wn{self.number}"
        self.turned_away = 0
        self._places = asyncio.Semaphore(self.abreast)
        self._wires: list[_Wire] = []
        """Those that nothing is asked on now."""

    async def call(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        """The answer. Told to come again (429), it holds on, as the agent does: that takes time and is no failure."""
        while True:
            status, answer, after = await self._call_once(method, path, body)
            if status != 429:
                return status, answer
            self.turned_away += 1
            await asyncio.sleep(max(after, 0.2) * random.uniform(1.0, 1.5))

    async def _call_once(self, method: str, path: str, body: object = None) -> tuple[int, bytes, int]:
        async with self._places:
            wire = self._wires.pop() if self._wires else None
            if wire is None or wire.closed:
                _, wire = await asyncio.get_running_loop().create_connection(
                    _Wire, *self.api, local_addr=(self.source, 0)
                )
            data = b"" if body is None else json.dumps(body).encode()
            head = (
                f"{method} {path} HTTP/1.1\r\nHost: lark\r\nAuthorization: Bearer {self.token}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
            )
            status, answer = await wire.ask(head.encode() + data)
            self._wires.append(wire)
            return status, answer, wire.retry_after

    def attempt(self, lane: int, ad: dict[str, object], serial: int) -> dict[str, Any]:
        address, number = self.network.network_address + lane, OFPORT_BASE + lane
        return {
            "node": self.name,
            "port": {"bridge": self.bridge, "name": f"{self.port_prefix}{number}", "ofport": number},
            "mac": mac_of(address),
            "ipv4": str(address),
            "zone": ZONE_BASE + lane,
            "phase": "run",
            "ad": ad,
            "job": f"{serial}.0",
        }

    def close(self) -> None:
        for wire in self._wires:
            wire.close()


@dataclass(frozen=True, slots=True)
class Done:
    """One request: when it was due, and when it was answered."""

    kind: str
    due: float
    ended: float
    status: int
    detail: str = ""

    @property
    def took(self) -> float:
        return self.ended - self.due


GOOD = {"start": 201, "exit": 200, "beat": 200, "node": 200}


class Load:
    """All nodes. Each step returns when all that it asked is answered."""

    def __init__(self, nodes: Sequence[Node], seed: int, beat: float) -> None:
        self.nodes = list(nodes)
        self.done: list[Done] = []
        self.present: list[tuple[Node, str]] = []
        self._random = random.Random(seed)
        self._serial = 0
        self._beat = beat
        self._tasks: set[asyncio.Task[None]] = set()

    def ad(self, serial: int) -> dict[str, object]:
        """Six kinds of job, two of them in slices of a few jobs wherever they run, as of a workflow."""
        slice = f"dag-{serial // (3 * JOBS_IN_A_SLICE)}"
        kinds: tuple[dict[str, object], ...] = (
            {"User": "alice@site", "LarkGroup": "physics"},
            {"User": "bob@site"},
            {"User": "carol@site", "LarkSlice": slice},
            {"User": "alice@site", "LarkGroup": "physics"},
            {"User": "bob@site", "LarkNetwork": "none"},
            {"User": "carol@site", "LarkSlice": slice, "LarkGroup": "physics"},
        )
        return kinds[serial % len(kinds)]

    async def register_nodes(self) -> None:
        """Each node on all its connections: strangers have fewer places than those who have said who they are."""
        gate = asyncio.Semaphore(max(1, ABREAST // max(node.abreast for node in self.nodes)))

        async def one(node: Node) -> None:
            async with gate:
                spec = {"boot_id": BOOT, "bridge": node.bridge, "agent_version": "test"}
                spec["host_addresses"] = [f"192.168.{node.number >> 8}.{node.number & 255}"]  # type: ignore[assignment]
                said = ("node", node, time.monotonic(), "PUT", f"/v1/nodes/{node.name}", spec)
                await asyncio.gather(*(self._ask(*said) for _ in range(node.abreast)))

        await asyncio.gather(*map(one, self.nodes))

    async def start(self, due: float) -> None:
        """One more attempt, on some node with a free lane."""
        node = self._random.choice(self.nodes)
        while not node.free:
            node = self._random.choice(self.nodes)
        self._serial += 1
        lane, serial = node.free.popleft(), self._serial
        id = f"{node.name}~3f2a9c1e~slot1_{lane}~{1000 + lane}~{serial}"
        body = node.attempt(lane, self.ad(serial), serial)
        if await self._ask("start", node, due, "PUT", f"/v1/attempts/{id}", body):
            node.present[id] = lane
            self.present.append((node, id))

    async def exit(self, due: float) -> None:
        """One attempt less, if there is any."""
        if not self.present:
            return
        at = self._random.randrange(len(self.present))
        self.present[at], self.present[-1] = self.present[-1], self.present[at]
        node, id = self.present.pop()
        if await self._ask("exit", node, due, "DELETE", f"/v1/attempts/{id}"):
            node.free.append(node.present.pop(id))

    async def _ask(self, kind: str, node: Node, due: float, method: str, path: str, body: object = None) -> bool:
        try:
            status, answer = await node.call(method, path, body)
        except OSError as error:
            status, answer = 0, str(error).encode()
        good = status == GOOD[kind]
        if kind == "beat" and good and not json.loads(answer)["agree"]:
            # While a request of this node is under way both may be right: asked again at the next beat.
            good = True
        self.done.append(Done(kind, due, time.monotonic(), status, "" if good else answer.decode()[:300]))
        return good

    async def closed(self, count: int, clients: int, pairs: bool = False) -> None:
        """`count` starts (with `pairs`, each ended again at once), asked by so many clients as fast as answers come."""
        left = count

        async def client() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await self.start(time.monotonic())
                if pairs:
                    await self.exit(time.monotonic())

        await asyncio.gather(*(client() for _ in range(clients)))

    async def open(self, rate: float, seconds: float) -> None:
        """`rate` starts and `rate` exits a second, each due at its moment."""
        began = time.monotonic()
        for number in range(int(2 * rate * seconds)):
            due = began + number / (2 * rate)
            early = due - time.monotonic()
            if early > 0.0005:
                await asyncio.sleep(early)
            self._spawn(self.start(due) if number % 2 == 0 else self.exit(due))
        while self._tasks:
            await asyncio.wait(set(self._tasks), timeout=30)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def beats(self) -> None:
        """Every node's heartbeat each `beat` seconds, spread evenly; runs until it is cancelled."""
        began = time.monotonic()
        number = 0
        while True:
            due = began + number * self._beat / len(self.nodes)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            node = self.nodes[number % len(self.nodes)]
            beat = {"boot_id": BOOT, "digest": attempts_digest(node.present)}
            task = asyncio.create_task(self._beat_once(node, due, beat))
            task.add_done_callback(_nothing)
            number += 1

    async def _beat_once(self, node: Node, due: float, beat: dict[str, str]) -> None:
        await self._ask("beat", node, due, "POST", f"/v1/nodes/{node.name}/heartbeat", beat)


def _nothing(task: asyncio.Task[None]) -> None:
    """A heartbeat under way at the end may be cancelled."""


def figures(done: Sequence[Done], kind: str) -> dict[str, float]:
    """Percentiles in milliseconds of the requests of a kind."""
    took = [one.took * 1000 for one in done if one.kind == kind]
    if not took:
        return {"count": 0}
    found = {f"p{share * 100:g}": round(percentile(took, share), 3) for share in (0.5, 0.9, 0.99)}
    return {"count": len(took), **found, "max": round(max(took), 3)}


def _say(name: str, began: float, done: Sequence[Done], **more: object) -> None:
    ended = max((one.ended for one in done if one.kind != "beat"), default=time.monotonic())
    bad = Counter(f"{one.kind} {one.status} {one.detail[:200]}" for one in done if one.status != GOOD[one.kind])
    first = [one for one in done if one.due < began + 10]
    last = [one for one in done if one.due >= ended - 10]
    moves = sum(one.kind in ("start", "exit") for one in done)
    said = {
        "step": name,
        "began": began,
        "ended": ended,
        "rate": round(moves / (ended - began), 1),
        **{kind: figures(done, kind) for kind in GOOD},
        "start_first_10s": figures(first, "start"),
        "start_last_10s": figures(last, "start"),
        "failures": sum(bad.values()),
        "examples": [f"{count} x {text}" for text, count in bad.most_common(5)],
        **more,
    }
    print(json.dumps(said), flush=True)


async def _run(plan: dict[str, Any]) -> None:
    api = (str(plan["api"][0]), int(plan["api"][1]))
    nodes = [
        Node(
            one["number"], one["bridge"], one["port_prefix"], ipaddress.IPv4Network(one["ipv4"]), one["token"],
            one["source"], api, deque(range(1, 1 + one["lanes"])), abreast=plan["abreast"],
        )
        for one in plan["nodes"]
    ]  # fmt: skip
    load = Load(nodes, plan["seed"], plan["beat"])
    beats: asyncio.Task[None] | None = None
    for step in plan["steps"]:
        load.done = []
        turned_away = sum(node.turned_away for node in nodes)
        began = time.monotonic()
        match step["do"]:
            case "nodes":
                await load.register_nodes()
                beats = asyncio.create_task(load.beats())
            case "fill":
                await load.closed(step["to"] - len(load.present), step["clients"])
            case "serial":
                await load.closed(step["count"], 1, pairs=True)
            case "burst":
                await load.closed(step["count"], step["clients"])
            case "open":
                await load.open(step["rate"], step["seconds"])
            case "rest":
                await asyncio.sleep(step["seconds"])
        again = sum(node.turned_away for node in nodes) - turned_away
        _say(step["name"], began, load.done, population=len(load.present), turned_away=again)
        if step["do"] in ("nodes", "fill") and any(one.status != GOOD[one.kind] for one in load.done):
            raise SystemExit(f"{step['name']}: what everything else stands on has failed")
    if beats is not None:
        beats.cancel()
    for node in nodes:
        node.close()
    present = {node.bridge: sorted(OFPORT_BASE + lane for lane in node.present.values()) for node in nodes}
    print(json.dumps({"present": present, "attempts": sum(map(len, present.values()))}), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    path = Path((sys.argv[1:] if argv is None else argv)[0])
    plan = json.loads(path.read_text())
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, plan["abreast"] * len(plan["nodes"]) + 128), hard))
    asyncio.run(_run(plan))
    return 0


if __name__ == "__main__":
    sys.exit(main())
