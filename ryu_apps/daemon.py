"""The running controller: everything started in order, looked after, and ended in the reverse order.

    files ─▶ switches let in ─▶ store ─▶ everything read back ─▶ API ─▶ "ready" ─▶ … SIGTERM
    files ─▶ store for several ─▶ everything read back, the others followed ─▶ switches let in ─▶ API ─▶ …

Invariants: nothing is said to a switch before the store is read; switches are let in before the API answers; SIGTERM
and SIGINT leave all flows where they are; a reload takes all or nothing.
"""

from __future__ import annotations

# First of all: this makes the process green, and what is imported earlier may have locks that are not.
from ryu_apps import engine  # isort: skip

import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import TYPE_CHECKING

from policies.certificates import bridge_certificate_name, node_certificate_name
from policies.events import Kind
from policies.model import Role
from ryu_apps.admission import BEAT
from ryu_apps.bridges_first import bridges_first
from ryu_apps.collector import Collector
from ryu_apps.events import Events
from ryu_apps.files import Files
from ryu_apps.reread import Doors, reload
from ryu_apps.store.opening import OpenStore
from ryu_apps.store.store import StoreError

if TYPE_CHECKING:
    from ryu_apps.controller import Controller

LOG = logging.getLogger("lark")


def serve(files: Files, listener: socket.socket | None = None) -> None:
    """Everything, from the store up, until a signal. Raises EngineError or StoreError. `listener`: of the switches'
    port, if that is open already.

    The collector of garbage may be off until all is read (`cli.run`); from then on it runs.
    """
    config, site = files.config, files.site
    with contextlib.ExitStack() as last:
        signals = last.enter_context(Signals())
        opened = OpenStore(config.store)
        last.callback(opened.close)
        opened.begin()
        # Here and not above: a server of our own reads its file meanwhile, on another core.
        from ryu_apps.app import SwitchApp

        doors = Doors(files)
        framework = engine.Framework(config.openflow, tls=doors.openflow, listener=listener)
        several = None if config.store.embedded else config.store.name
        events = Events(several or "")
        ready = threading.Event()

        def on_ports(bridge: str, ports: Mapping[str, int]) -> None:
            ready.wait()
            controller.fabric_ports(bridge, ports)

        switches = framework.add(
            SwitchApp,
            {bridge.datapath_id: name for name, bridge in site.bridges.items()},
            on_ports=on_ports,
            addresses={name: bridge.address for name, bridge in site.bridges.items() if bridge.address is not None},
            certificates=None
            if doors.openflow is None
            else {name: bridge_certificate_name(name, bridge.certificate) for name, bridge in site.bridges.items()},
            events=events,
        )
        if config.store.embedded:
            # While everything is read back they connect and show what they have; nothing is said to them before. First
            # of all, because a switch that finds nobody tries again only a second or more later.
            last.callback(framework.stop)
            framework.start()
        listening = time.monotonic()
        from ryu_apps.controller import Controller
        from ryu_apps.peers import Peers

        store = opened.open()
        controller = Controller(
            site,
            files.policy,
            store,
            deadline=config.deadline,
            lease=config.lease,
            name=several,
            count_every=config.count_every,
            state_dir=config.state_dir,
            events=events,
        )
        controller.on_disk.policy = config.policy
        if several is None:
            controller.start(switches)
        else:
            peers = Peers(several, controller, store, switches, list(site.bridges))
            controller.start(switches, peers.snapshot)
            peers.start()
            last.callback(peers.stop)
            last.callback(framework.stop)
            framework.start()
        ready.set()
        last.callback(controller.stop)
        policy = files.policy
        events.tell(Kind.POLICY_LOADED, f"started with policy {policy.digest[:12]} (mode {policy.mode.value})")
        if several is None:
            bridges_first(switches.waiting, controller.with_jobs(), listening)
        # Only now: what agents ask for waits for the bridges anyway.
        from ryu_apps.rest.api import Api

        collector = Collector()
        collector.start(time.monotonic())
        last.callback(collector.stop)
        agents = {node_certificate_name(name, node.certificate): name for name, node in site.nodes.items()}
        borders = {
            bridge_certificate_name(name, bridge.certificate): name
            for name, bridge in site.bridges.items()
            if Role.BORDER in bridge.roles
        }
        api = Api(controller, files.tokens, agents, borders)
        wsgi = engine.serve_wsgi(api, *config.api, tls=doors.api, direct=api.direct)
        last.callback(wsgi.stop)
        if config.plaintext_warning:
            LOG.warning(
                "the API listens on %s without TLS: tokens can be read on the way; keep it on a management network",
                _address(wsgi.address),
            )
        ticker = Ticker(lambda: _housekeeping(controller, opened.look_after, wsgi, collector))
        last.callback(ticker.stop)
        beats = Ticker(controller.admission.beat, BEAT)
        last.callback(beats.stop)
        print(
            f"lark-controller ready: engine={engine.NAME} {engine.VERSION} api={_address(wsgi.address)} "
            f"openflow={_address(framework.address)}",
            flush=True,
        )
        while True:
            number = signals.wait(1.0)
            if number in (signal.SIGTERM, signal.SIGINT):
                LOG.info("%s: ending; the switches keep their flows", signal.Signals(number).name)
                return
            if number == signal.SIGHUP:
                reload(files, controller, api, doors)
            if store.fenced is not None:
                # Another may serve by now: what this one goes on to say would be wrong.
                raise StoreError(store.fenced)
            if not framework.alive:
                raise engine.EngineError("the listener for switches has ended; see the log above")
            if not wsgi.alive:
                raise engine.EngineError("the API's listener has ended; see the log above")


def _housekeeping(
    controller: Controller, ensure_server: Callable[[], None], wsgi: engine.WsgiServer, collector: Collector
) -> None:
    ensure_server()
    collector.tick(time.monotonic())
    controller.tick(wsgi.turned_away_at)
    if text := controller.admission.report():
        controller.events.tell(Kind.CAPACITY, text, subject="registrations")
    for where, text in _crowd(wsgi):
        controller.events.tell(Kind.CAPACITY, f"{where}: {text}", subject=where)


def _crowd(wsgi: engine.WsgiServer) -> Iterator[tuple[str, str]]:
    """One line a second at most, however many come."""
    if text := engine.switch_doorway().report():
        yield "openflow", text
    said = [wsgi.doorway.report()]
    if wsgi.cut:
        said.append(f"{wsgi.cut} requests cut, not complete after {wsgi.deadline:g} s")
        wsgi.cut = 0
    for text in filter(None, said):
        yield "api", text


class Ticker:
    """Calls a function about every `seconds`, from its own (green) thread."""

    def __init__(self, function: Callable[[], None], seconds: float = 1.0) -> None:
        self._function = function
        self._seconds = seconds
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="ticker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True

    def _run(self) -> None:
        while not self._stopping:
            time.sleep(self._seconds)
            try:
                if not self._stopping:
                    self._function()
            except Exception:
                LOG.exception("housekeeping failed; it is tried again")


class Signals:
    """SIGTERM, SIGINT and SIGHUP as numbers to wait for, without a poll that a signal could miss."""

    NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def __enter__(self) -> Signals:
        # The interpreter writes each signal's number here; a (green) read wakes at once.
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        # In this order: a signal that is noted before there is where to write it would be lost.
        signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, _note) for number in self.NUMBERS}
        return self

    def __exit__(self, *exc: object) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._read.close()
        self._write.close()

    def wait(self, seconds: float) -> int | None:
        """The number of the next of these signals, or None when the time is over."""
        self._read.settimeout(seconds)
        try:
            found = self._read.recv(1)
        except TimeoutError:
            return None
        return found[0] if found and found[0] in self.NUMBERS else None


def _note(number: int, frame: FrameType | None) -> None:
    """A handler must be there for the interpreter to write the number."""


def _address(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
