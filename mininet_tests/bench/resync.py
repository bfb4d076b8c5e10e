"""Many flows onto a real Open vSwitch, and back: Lark against `ovs-ofctl --bundle add-flows`, in one run.

Both get the same flows (those of a worker bridge with thousands of attempts) and begin with an empty table on the same
ovs-vswitchd with the dummy datapath; rounds alternate, and the medians are compared. Lark's side is the whole
application with its framework, over TCP:

* `from attempts`: from the world to the switch's confirmation, compiling and writing the flows included;
* `resync`: from the switch's connecting with empty tables to being in line, as after a restart of the switch;
* `unchanged`: connecting with all flows present: dump and comparison, nothing sent. Seconds of the controller's CPU.

Run: `python -m mininet_tests.bench.resync [--flows 50000] [--rounds 5] [--engine os-ken] [--json FILE]`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mininet_tests.switch_flows import attempt, worker_world
from mininet_tests.switch_rig import LANE, Application, DummySwitch, RigError, wait_until
from ryu_apps.openflow import text
from ryu_apps.openflow.compiler import desired_flows

BRIDGE, DPID = "br-lkbench", 0x4C4B4245
OTHER, OTHER_DPID = "br-lkother", 0x4C4B424F
SETTLE = 1.0
"""Seconds for the switch to tidy up after its table was emptied: it does so in the background."""


@dataclass(frozen=True, slots=True)
class Result:
    """Medians of the rounds; seconds."""

    engine: str
    flows: int
    rounds: int
    ofctl: float
    compiled: float
    compiled_cpu: float
    resync: float
    unchanged: float
    unchanged_cpu: float
    unchanged_flow_mods: int
    foreign_cpu: float
    """CPU for the same flows when `ovs-ofctl` wrote them, in other bytes: each one must be read."""
    hub_stall: float
    """The longest time in which no other greenlet ran, in a round of its own."""
    other_change: float
    """The longest time that a change of another, idle switch took meanwhile."""
    http_answer: float
    """The longest time that a request of the controller's HTTP server took meanwhile."""

    @property
    def compiled_ratio(self) -> float:
        return self.ofctl / self.compiled

    @property
    def resync_ratio(self) -> float:
        return self.ofctl / self.resync


class _Client:
    """Asks the application's HTTP server again and again."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._ended = threading.Event()
        self._slowest = 0.0
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        try:
            while not self._ended.wait(0.02):
                start = time.perf_counter()
                connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
                connection.request("GET", "/")
                if connection.getresponse().read() != b"hello":
                    raise RigError("a wrong answer")
                connection.close()
                self._slowest = max(self._slowest, time.perf_counter() - start)
        except (OSError, http.client.HTTPException, RigError) as error:
            self._failure = error

    def end(self) -> float:
        self._ended.set()
        self._thread.join(60)
        if self._failure is not None or not self._slowest:
            raise RigError(f"HTTP requests failed meanwhile: {self._failure}")
        return self._slowest


class Bench:
    """Two switches and the application on one engine. The other switch shows whether it is disturbed."""

    def __init__(self, engine: str, flows: int) -> None:
        self.count = flows
        self.flows = desired_flows(worker_world(BRIDGE, flows), BRIDGE)
        self.switch, self.other = DummySwitch(), DummySwitch()
        self.app: Application | None = None
        self._engine = engine

    def __enter__(self) -> Bench:
        try:
            self.switch.start()
            self.other.start()
            self.app = Application(self._engine, {DPID: BRIDGE, OTHER_DPID: OTHER})
            for switch, name, dpid in ((self.switch, BRIDGE, DPID), (self.other, OTHER, OTHER_DPID)):
                switch.bridge(name, dpid, self.app.address)
                switch.ofctl("add-flow", name, LANE)
                wait_until("connected", lambda name=name: self.state(name).connected)  # type: ignore[misc]
                self.running.realise("set_desired", name, {})
            # Beforehand, because making it is nothing that Lark does.
            self.app.call("keep", BRIDGE, self.count)
            (self.switch.home / "flows.txt").write_text(text.flows_text(self.flows.values(), numeric=True))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.app is not None:
            self.app.stop()
        self.switch.stop()
        self.other.stop()

    @property
    def running(self) -> Application:
        if self.app is None:
            raise RigError("the bench is not running")
        return self.app

    def state(self, bridge: str) -> Any:
        return self.running.state(bridge)

    def _empty(self) -> None:
        self.switch.ofctl("del-flows", BRIDGE)
        self.switch.ofctl("add-flow", BRIDGE, LANE)
        time.sleep(SETTLE)

    def _held(self) -> int:
        found = re.search(r"flow_count=(\d+)", self.switch.ofctl("dump-aggregate", BRIDGE))
        return int(found[1]) - 1 if found else 0

    def _check_held(self) -> None:
        if self._held() != len(self.flows):
            raise RigError(f"the switch holds {self._held()} flows, not {len(self.flows)}")

    def ofctl(self) -> float:
        """Seconds that `ovs-ofctl` takes; the controller is away."""
        self.away()
        self._empty()
        target, file = f"unix:{self.switch.home}/{BRIDGE}.mgmt", str(self.switch.home / "flows.txt")
        argv = ["ovs-ofctl", "-OOpenFlow14", "--bundle", "add-flows", target, file]
        start = time.perf_counter()
        done = subprocess.run(argv, check=False, timeout=120, capture_output=True, text=True)
        took = time.perf_counter() - start
        if done.returncode:
            raise RigError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr}")
        self._check_held()
        return took

    def connect(self) -> tuple[float, float, int]:
        """Let the switch connect: milliseconds until it was in line as the log tells, CPU, flow-mods."""
        lines = len(self._in_line())
        dumps = self.running.call("counts", BRIDGE).dumps
        cpu = self.running.call("cpu")
        self.switch.connect(BRIDGE, self.running.address)
        # The connection with an idle application costs next to nothing: few looks, not many.
        deadline = time.monotonic() + 60
        while len(self._in_line()) == lines or self.running.call("counts", BRIDGE).dumps == dumps:
            if time.monotonic() > deadline:
                raise RigError(f"not in line within 60 s\n{self.running.log()}")
            time.sleep(0.1)
        cpu = self.running.call("cpu") - cpu
        flow_mods, milliseconds = self._in_line()[-1]
        return milliseconds / 1000, cpu, flow_mods

    def _in_line(self) -> list[tuple[int, float]]:
        line = rf"bridge={BRIDGE}: in line with \d+ flows, (\d+) flow-mods sent, (\d+) ms"
        found = re.findall(line, self.running.log())
        return [(int(count), float(took)) for count, took in found]

    def from_world(self) -> tuple[float, float]:
        """Seconds and CPU from the world to the confirmation of a connected switch."""
        if self.running.realise("set_desired", BRIDGE, {}, seconds=60)[0] != "realised":
            raise RigError("the bridge could not be emptied")
        time.sleep(SETTLE)
        outcome, took, cpu = self.running.call("timed", BRIDGE)
        if outcome != "realised":
            raise RigError(f"the flows are {outcome}")
        self._check_held()
        return took, cpu

    def stalls(self) -> tuple[float, float, float, int]:
        """While flows are read and sent: the longest stall of the hub, the slowest change of another switch, the
        slowest answer to an HTTP request; and the flow-mods sent though all flows were there."""
        self.running.call("begin_probes", OTHER, attempt(1))
        client = _Client(self.running.call("serve_http"))
        self.away()
        flow_mods = self.connect()[2]
        self.from_world()
        self.away()
        self._empty()
        self.connect()
        stalls, others = self.running.call("end_probes")
        return stalls[-1], others[-1], client.end(), flow_mods

    def away(self) -> None:
        self.switch.disconnect(BRIDGE)
        wait_until("away", lambda: not self.running.state(BRIDGE).connected)

    def run(self, rounds: int) -> Result:
        ofctl, foreign, compiled, resync, unchanged = [], [], [], [], []
        self.from_world()  # what happens once (templates, growing tables) is no part of it
        for _ in range(rounds):
            ofctl.append(self.ofctl())
            foreign.append(self.connect())
            compiled.append(self.from_world())
            self.away()
            unchanged.append(self.connect())
            self.away()
            self._empty()
            resync.append(self.connect())
        stall, other, http, flow_mods = self.stalls()
        return Result(
            engine=self.running.engine,
            flows=len(self.flows),
            rounds=rounds,
            ofctl=statistics.median(ofctl),
            compiled=statistics.median(took for took, _ in compiled),
            compiled_cpu=statistics.median(cpu for _, cpu in compiled),
            resync=statistics.median(took for took, _, _ in resync),
            unchanged=statistics.median(took for took, _, _ in unchanged),
            unchanged_cpu=statistics.median(cpu for _, cpu, _ in unchanged),
            unchanged_flow_mods=flow_mods + sum(count for _, _, count in [*unchanged, *foreign]),
            foreign_cpu=statistics.median(cpu for _, cpu, _ in foreign),
            hub_stall=stall,
            other_change=other,
            http_answer=http,
        )


def table(result: Result) -> str:
    """What was measured, for people."""
    rate = result.flows / result.ofctl
    lines = [
        f"{result.flows} flows, {result.engine}, median of {result.rounds} alternating rounds",
        f"  ovs-ofctl --bundle add-flows   {result.ofctl:6.3f} s  {rate:8.0f} flows/s",
        f"  Lark attempts to confirmed     {result.compiled:6.3f} s  {result.flows / result.compiled:8.0f} flows/s"
        f"  {result.compiled_ratio:.2f} of it (aim 1.3), {result.compiled_cpu:.2f} s CPU",
        f"  Lark resync of an empty switch {result.resync:6.3f} s  {result.flows / result.resync:8.0f} flows/s"
        f"  {result.resync_ratio:.2f} of it (aim 1.3)",
        f"  Lark dump and diff, unchanged  {result.unchanged:6.3f} s  {result.unchanged_cpu:.2f} s CPU (aim 1.00); "
        f"written by ovs-ofctl {result.foreign_cpu:.2f} s; {result.unchanged_flow_mods} flow-mods",
        f"  longest stall of the hub {result.hub_stall * 1000:.1f} ms; slowest change of another switch "
        f"{result.other_change * 1000:.1f} ms; slowest HTTP answer {result.http_answer * 1000:.1f} ms",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Lark's resync against ovs-ofctl's.")
    parser.add_argument("--flows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engine", default="os-ken")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    args = parser.parse_args(argv)
    with Bench(args.engine, args.flows) as bench:
        result = bench.run(args.rounds)
    print(table(result))
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(asdict(result), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
