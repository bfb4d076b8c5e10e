"""What the system tests of the switch side stand on: a real Open vSwitch of its own, and the application in a process.

`DummySwitch` runs ovsdb-server and ovs-vswitchd with the dummy datapath: everything of OpenFlow is real, no packet
leaves, nothing of the machine is touched but a directory under /tmp. `Application` runs `ryu_apps.app.SwitchApp` on
one engine in a process of its own (the engine makes a process green) and passes calls to it over a socket.

Run as a program, this module is that process.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import pickle
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ovs_agent import plan

LANE = "table=0,cookie=0x4c01000000000000,priority=1,actions=goto_table:1"
"""A host lane as short as a gate's: the least that table 0 must hold."""
ROOT = Path(__file__).resolve().parent.parent
SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
ENGINES = [one for one in ("os-ken", "ryu") if os.environ.get("LARK_TEST_ENGINE", one) == one]
"""What to test on: the engine of this run, or both when none was named."""


class RigError(Exception):
    """The rig could not be built or did not answer; the text says what was tried."""


def wait_until(what: str, probe: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not probe():
        if time.monotonic() > deadline:
            raise RigError(f"not within {seconds:g} s: {what}")
        time.sleep(0.02)


class DummySwitch:
    """A real Open vSwitch with the dummy datapath, in a directory of its own."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="lksw-"))
        self._processes: list[subprocess.Popen[bytes]] = []
        self._switch: subprocess.Popen[bytes] | None = None
        self._env = dict(os.environ, OVS_RUNDIR=str(self.home), OVS_LOGDIR=str(self.home), OVS_DBDIR=str(self.home))

    def __enter__(self) -> DummySwitch:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> DummySwitch:
        self._run("ovsdb-tool", "create", str(self.home / "conf.db"), SCHEMA)
        database = self._spawn("ovsdb-server", str(self.home / "conf.db"), f"--remote=punix:{self.home}/db.sock")
        self._processes.append(database)
        wait_until("ovsdb-server listens", (self.home / "db.sock").exists)
        self.start_switch()
        return self

    def start_switch(self) -> None:
        """ovs-vswitchd alone: at first, and again after `kill_switch`."""
        for old in self.home.glob("ovs-vswitchd.*.ctl"):
            old.unlink()
        self._switch = self._spawn(
            "ovs-vswitchd", f"unix:{self.home}/db.sock", "--enable-dummy", "--disable-system", "-vjsonrpc:off"
        )
        wait_until("ovs-vswitchd answers", lambda: self._code("ovs-vsctl", "--timeout=5", self._db, "init") == 0)

    def pause_switch(self) -> None:
        """ovs-vswitchd hears and says nothing any more; its connections stay open, as of a machine that is cut off."""
        if self._switch is not None:
            self._switch.send_signal(signal.SIGSTOP)

    def kill_switch(self) -> None:
        if self._switch is not None:
            self._switch.kill()
            self._switch.wait(10)
            self._switch = None

    def bridge(self, name: str, dpid: int, controller: tuple[str, int] | None = None) -> None:
        """A bridge as `lark-agent prepare-bridge` would have it, but for table 0, and with its controller, if any."""
        self.vsctl(
            "--", "add-br", name,
            "--", "set", "bridge", name, "datapath_type=dummy", "fail_mode=secure",
            f"other-config:datapath-id={dpid:016x}", "other-config:disable-in-band=true", "protocols=OpenFlow14",
            f'other-config:dp-desc="{plan.PREPARED}"',
        )  # fmt: skip
        if controller is not None:
            self.connect(name, controller)

    def reconnect(self, name: str, controller: tuple[str, int]) -> None:
        """Drop the bridge's connection and let it connect anew, or to a new address.

        By way of another address, not of none: a bridge that has lost its last controller throws its flows away.
        """
        self.disconnect(name)
        self.connect(name, controller)

    def disconnect(self, name: str) -> None:
        """Send the bridge to an address where nobody is."""
        self.connect(name, ("127.0.0.1", 1))

    def connect(self, name: str, controller: tuple[str, int]) -> None:
        target = f"tcp:{controller[0]}:{controller[1]}"
        self.vsctl("set-controller", name, target, "--", "set", "controller", name, "max_backoff=1000")

    @property
    def _db(self) -> str:
        return f"--db=unix:{self.home}/db.sock"

    def vsctl(self, *argv: str) -> str:
        return self._run("ovs-vsctl", "--timeout=10", self._db, *argv)

    def ofctl(self, command: str, bridge: str, *argv: str) -> str:
        return self._run("ovs-ofctl", "-OOpenFlow14", command, f"unix:{self.home}/{bridge}.mgmt", *argv)

    def appctl(self, *argv: str) -> str:
        return self._run("ovs-appctl", "--timeout=10", "-t", str(self._control()), *argv)

    def _control(self) -> Path:
        if self._switch is None:
            raise RigError("ovs-vswitchd does not run")
        return self.home / f"ovs-vswitchd.{self._switch.pid}.ctl"

    def flows(self, bridge: str) -> list[str]:
        """The flows as ovs-ofctl shows them, without counters and times, sorted."""
        lines = [line.strip() for line in self.ofctl("dump-flows", bridge, "--no-stats").splitlines()]
        return sorted(line for line in lines if "actions=" in line)

    def log(self) -> str:
        return "".join(path.read_text() for path in sorted(self.home.glob("*.err")))

    def stop(self) -> None:
        self.kill_switch()
        for process in self._processes:
            process.terminate()
            process.wait(10)
        shutil.rmtree(self.home, ignore_errors=True)

    def _spawn(self, *argv: str) -> subprocess.Popen[bytes]:
        with (self.home / f"{argv[0]}.err").open("ab") as log:
            return subprocess.Popen(argv, env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _code(self, *argv: str) -> int:
        return subprocess.run(argv, env=self._env, capture_output=True, check=False, timeout=30).returncode

    def _run(self, *argv: str) -> str:
        done = subprocess.run(argv, env=self._env, capture_output=True, check=False, timeout=30, text=True)
        if done.returncode:
            raise RigError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()}")
        return done.stdout


class Application:
    """`SwitchApp` in a process of its own, on one engine. Calls go through `call`."""

    def __init__(
        self,
        engine: str,
        bridges: Mapping[int, str],
        listen: tuple[str, int] = ("127.0.0.1", 0),
        addresses: Mapping[str, str] | None = None,
    ) -> None:
        ours, theirs = socket.socketpair()
        self.log_file = tempfile.NamedTemporaryFile(prefix="lksw-", suffix=".log", mode="w+")  # noqa: SIM115
        environment = dict(os.environ, LARK_ENGINE=engine, PYTHONPATH=str(ROOT))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mininet_tests.switch_rig", str(theirs.fileno())],
            env=environment, cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
            stdout=self.log_file, stderr=self.log_file,
        )  # fmt: skip
        theirs.close()
        ours.settimeout(60)
        self._socket = ours
        self.engine, self.address = self.call("begin", dict(bridges), listen, dict(addresses or {}))

    def call(self, name: str, *args: Any) -> Any:
        _put(self._socket, (name, args))
        try:
            good, value = _get(self._socket)
        except (EOFError, OSError) as error:
            raise RigError(f"the application is gone: {error}\n{self.log()}") from error
        if not good:
            raise RigError(f"{name}: {value}")
        return value

    def realise(self, name: str, *args: Any, seconds: float = 10.0) -> tuple[str, str]:
        """`set_desired` or `change`, and its result as (outcome, reason)."""
        result: tuple[str, str] = self.call("wait", self.call(name, *args), seconds)
        return result

    def state(self, bridge: str) -> Any:
        return next(one for one in self.call("bridges") if one.bridge == bridge)

    def until_converged(self, bridge: str, dumps: int = 1) -> None:
        """Wait until the bridge has been read `dumps` times in all and is in line."""
        wait_until(
            f"{bridge} in line", lambda: self.state(bridge).converged and self.call("counts", bridge).dumps >= dumps
        )

    def log(self) -> str:
        return Path(self.log_file.name).read_text()

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(20)
        self._socket.close()
        return self.process.returncode

    def faults(self) -> list[str]:
        """Lines of the log that must not be there."""
        return [line for line in self.log().splitlines() if re.search(r"Traceback| ERROR |Exception|Warning:", line)]


@contextlib.contextmanager
def connected(engine: str, switch: DummySwitch, bridge: str, dpid: int, *pardoned: str) -> Iterator[Application]:
    """The application with one fresh bridge connected, which goes again; it must end orderly and with a clean log, but
    for faults that have one of `pardoned` in them."""
    application = Application(engine, {dpid: bridge})
    try:
        switch.bridge(bridge, dpid, application.address)
        wait_until("connected", lambda: application.state(bridge).connected)
        yield application
    finally:
        switch.vsctl("--if-exists", "del-br", bridge)
        code = application.stop()
        log = application.log()
    print(log)
    assert code == 0
    assert log.rstrip().endswith("stopped")
    assert [line for line in application.faults() if not any(one in line for one in pardoned)] == []


def _put(to: Any, value: Any) -> None:
    data = pickle.dumps(value)
    to.sendall(struct.pack("!I", len(data)) + data)


def _get(source: Any) -> Any:
    (length,) = struct.unpack("!I", _exactly(source, 4))
    return pickle.loads(_exactly(source, length))


def _exactly(source: Any, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = source.recv(length - len(data))
        if not part:
            raise EOFError("closed")
        data += part
    return data


def _to_port(number: int) -> Any:
    """A standing flow that follows from a port's number."""
    from ryu_apps.openflow.flows import Cookie, FieldMatch, Flow, Output, match

    return Flow(5, 100 + number, match(FieldMatch("in_port", number)), (Output(number),), Cookie(0x4C01_0000_0000_0001))


def _serve(descriptor: int) -> None:
    # First of all: it makes the process green, and what is imported earlier cannot be made so without complaints.
    from ryu_apps import engine  # isort: skip

    import logging

    from mininet_tests.switch_flows import worker_world
    from ryu_apps.app import SwitchApp
    from ryu_apps.openflow.compiler import base_rules
    from ryu_apps.openflow.whole import Whole

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    channel = socket.socket(fileno=descriptor)
    events: list[tuple[Any, ...]] = []
    _, (bridges, listen, addresses) = _get(channel)
    framework = engine.Framework(listen)
    follow: list[Callable[[int], Any]] = []

    def on_ports(bridge: str, ports: Mapping[str, int]) -> None:
        events.append(("ports", bridge, ports))
        if follow and "p1" in ports:
            time.sleep(0.5)  # the dump of the flows is here before that is over
            flow = _to_port(ports["p1"])
            app.set_desired(bridge, {flow.key: flow})

    app = framework.add(
        SwitchApp,
        bridges,
        on_ports=on_ports,
        on_connected=lambda bridge: events.append(("connected", bridge)),
        addresses={bridge: ipaddress.ip_address(text) for bridge, text in addresses.items()},
    )
    framework.start()
    _put(channel, (True, (f"{engine.NAME} {engine.VERSION}", framework.address)))
    tickets: list[Any] = []

    def ticket(which: str, *args: Any) -> int:
        tickets.append(getattr(app, which)(*args))
        return len(tickets) - 1

    def wait(number: int, seconds: float) -> tuple[str, str]:
        result = tickets[number].wait(time.monotonic() + seconds)
        return result.outcome.value, result.reason

    def latency(bridge: str, flows: list[Any]) -> list[float]:
        took = []
        for flow in flows:
            for add, remove in (([flow], []), ([], [flow.key])):
                start = time.perf_counter()
                if not app.change(bridge, add, remove).wait(time.monotonic() + 5).realised:
                    raise RuntimeError("not realised")
                took.append(time.perf_counter() - start)
        return took

    kept: list[Any] = []

    def timed(bridge: str) -> tuple[str, float, float]:
        """Want what follows from the kept world: outcome, seconds until the switch confirmed it, seconds of CPU."""
        world = kept[-1]
        cpu, start = time.process_time(), time.perf_counter()
        whole = Whole(world, bridge, base_rules(world, bridge))
        outcome = app.set_desired(bridge, whole).wait(time.monotonic() + 60).outcome.value
        return outcome, time.perf_counter() - start, time.process_time() - cpu

    stalls: list[float] = []
    slow: list[float] = []
    probing: list[bool] = []

    def probe_hub() -> None:
        while probing:
            start = time.perf_counter()
            engine.sleep(0.001)
            stalls.append(time.perf_counter() - start - 0.001)

    def probe_switch(bridge: str, flow: Any) -> None:
        while probing:
            slow.extend(latency(bridge, [flow]))
            engine.sleep(0.005)

    def begin_probes(bridge: str, flow: Any) -> None:
        """Watch how long the hub stalls, and how long changes of another switch take."""
        stalls.clear()
        slow.clear()
        probing.append(True)
        engine.spawn(probe_hub)
        engine.spawn(probe_switch, bridge, flow)

    def end_probes() -> tuple[list[float], list[float]]:
        probing.clear()
        engine.sleep(0.1)
        return sorted(stalls), sorted(slow)

    def site(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello"]

    calls: dict[str, Callable[..., Any]] = {
        "keep": lambda bridge, count: kept.append(worker_world(bridge, count)),
        "timed": timed,
        "begin_probes": begin_probes,
        "end_probes": end_probes,
        "cpu": time.process_time,
        "serve_http": lambda: engine.serve_wsgi(site, "127.0.0.1", 0).address[1],
        "set_desired": lambda *args: ticket("set_desired", *args),
        "change": lambda *args: ticket("change", *args),
        "forget_connections": lambda *args: ticket("forget_connections", *args),
        "changes": lambda bridge, several: [ticket("change", bridge, *one) for one in several],
        "wait": wait,
        "latency": latency,
        "flow_stats": app.flow_stats,
        "bridges": app.bridges,
        "counts": app.counts,
        "events": lambda: list(events),
        "follow_p1": lambda: follow.append(_to_port),
        "turned_away": lambda: app.turned_away,
    }

    def serve() -> None:
        while True:
            try:
                name, args = _get(channel)
            except EOFError:
                return
            try:
                _put(channel, (True, calls[name](*args)))
            except Exception as error:  # noqa: BLE001  # whatever it is, the test shall see it
                _put(channel, (False, f"{type(error).__name__}: {error}"))

    engine.spawn(serve)
    engine.wait_for_signal(framework)
    framework.stop()
    print("stopped", file=sys.stderr)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
