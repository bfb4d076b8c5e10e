"""The one module that imports os_ken or ryu, and eventlet.

Which engine is used is said once, before this module is imported, by LARK_ENGINE (`os-ken`, the default, or `ryu`);
`docs/engines.md` tells what differs. Everything else of the controller uses the names exported here and cannot tell.

**Importing this module makes the whole process green** (eventlet's monkey patch): asyncio, HTCondor's and pyroute2's
network calls do not belong into such a process, and a test imports it in a process of its own.

Invariants: one concurrency model under both engines, eventlet's hub; one OpenFlow listener, on the address that was
asked for; nothing of the framework listens anywhere else.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import logging
import os
import re
import resource
import signal
import socket
import struct
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, Final, Protocol, TypeVar

from ryu_apps.doorway import WELCOME, Doorway, Limits

ENGINES: Final = ("os-ken", "ryu")
NAME: Final = os.environ.get("LARK_ENGINE", "") or "os-ken"
"""The engine in use."""


class EngineError(Exception):
    """The engine cannot be used or cannot listen. The text says how to mend it."""


if NAME not in ENGINES:
    raise EngineError(f"LARK_ENGINE={NAME!r}: there is no such engine; use one of {', '.join(ENGINES)}")

# os-ken would otherwise use native threads, where its events never time out and kill does nothing.
os.environ["OSKEN_HUB_TYPE"] = "eventlet"
os.environ["RYU_HUB_TYPE"] = "eventlet"
# No name is ever looked up here (configuration has addresses): a resolver would only make every start slower.
os.environ["EVENTLET_NO_GREENDNS"] = "yes"

with warnings.catch_warnings():
    # We know: one concurrency model under both engines is worth it (docs/engines.md). Nothing else is silenced.
    warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")
    import eventlet

eventlet.monkey_patch()

import eventlet.event  # noqa: E402
import eventlet.greenio  # noqa: E402
import eventlet.greenpool  # noqa: E402
import eventlet.hubs  # noqa: E402
import eventlet.queue  # noqa: E402
import eventlet.timeout  # noqa: E402
import eventlet.wsgi  # noqa: E402

from ryu_apps import plain_http  # noqa: E402
from ryu_apps.secure_socket import HandshakeError, SecureSocket, take  # noqa: E402
from ryu_apps.switch_port import open_port  # noqa: E402
from ryu_apps.tls import PEER, Peer, TlsDoor, explained  # noqa: E402

if NAME == "ryu" and not hasattr(eventlet.wsgi, "ALREADY_HANDLED"):
    # Ryu 4.34 (2020) imports this name, which eventlet dropped in 0.30.3. Only its own WSGI code uses it; we do not.
    eventlet.wsgi.ALREADY_HANDLED = object()


def _load() -> tuple[str, str]:
    package, base = {"os-ken": ("os_ken", "OSKenApp"), "ryu": ("ryu", "RyuApp")}[NAME]
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise EngineError(
            f"engine {NAME} is not installed ({error}); docs/engines.md says how to install it"
        ) from error
    return package, base


_PACKAGE, _BASE = _load()


def _module(name: str) -> Any:
    return importlib.import_module(f"{_PACKAGE}.{name}")


with warnings.catch_warnings():
    # Ryu's own use of distutils and cgi: it is not maintained any more.
    warnings.filterwarnings("ignore", message=r".*(distutils|cgi).*", category=DeprecationWarning)
    _cfg = _module("cfg")
    _app_manager = _module("base.app_manager")
    _controller = _module("controller.controller")
    _handler = _module("controller.handler")
    _ofp_event = _module("controller.ofp_event")
    _ofp_handler = _module("controller.ofp_handler")
    _hub = _module("lib.hub")
    _ofproto_parser = _module("ofproto.ofproto_parser")
    ofproto: Any = _module("ofproto.ofproto_v1_4")
    parser: Any = _module("ofproto.ofproto_v1_4_parser")

VERSION: Final[str] = str(importlib.import_module("importlib.metadata").version(NAME))
LOG = logging.getLogger("lark.engine")

if _hub.HUB_TYPE != "eventlet":
    raise EngineError(f"{NAME} was imported before ryu_apps.engine and does not use eventlet's hub")

# ---------------------------------------------------------------------------------------------- applications, events

App: Any = getattr(_app_manager, _BASE)
"""Base class of applications: RyuApp or OSKenApp."""

MethodT = TypeVar("MethodT", bound=Callable[..., None])


def handler(event: Any, states: Any) -> Callable[[MethodT], MethodT]:
    """Decorator of an application's methods: `@handler(EVENT, STATES)`."""
    decorate: Callable[[MethodT], MethodT] = _handler.set_ev_cls(event, states)
    return decorate


UP: Final = _handler.MAIN_DISPATCHER
DOWN: Final = _handler.DEAD_DISPATCHER
_CONFIG: Final = _handler.CONFIG_DISPATCHER

StateChange: Any = _ofp_event.EventOFPStateChange
"""A switch is UP (handshake done) or DOWN; `event.datapath`, `event.state`."""


class Hearer(Protocol):
    """Who is told what switches say once they are UP: at once, in the order in which they said it. Never waits."""

    def heard_barrier(self, datapath: Any, xid: int) -> None: ...

    def heard_commit(self, datapath: Any, bundle: int) -> None: ...

    def heard_flows(self, datapath: Any, xid: int, message: bytes) -> None:
        """`message`: for `ryu_apps.openflow.decode`, as below."""

    def heard_meters(self, datapath: Any, message: bytes) -> None: ...

    def heard_meter_counts(self, datapath: Any, xid: int, message: bytes) -> None: ...

    def heard_meter_features(self, datapath: Any, message: bytes) -> None: ...

    def heard_changes(self, datapath: Any, message: bytes) -> None: ...

    def heard_ports(self, datapath: Any, message: bytes) -> None: ...

    def heard_port(self, datapath: Any, name: bytes, number: int, gone: bool) -> None: ...

    def heard_description(self, datapath: Any, xid: int, text: bytes) -> None: ...

    def heard_role(self, datapath: Any, xid: int) -> None: ...

    def heard_error(self, datapath: Any, xid: int, text: str) -> None: ...


_hearer: Hearer | None = None


def hear(hearer: Hearer) -> None:
    """This one is told from now on."""
    global _hearer
    _hearer = hearer


def error_name(message: Any) -> str:
    """An OpenFlow error message in words, for example `OFPET_FLOW_MOD_FAILED(5) OFPFMFC_BAD_TABLE_ID(2)`."""
    if message.type == ofproto.OFPET_EXPERIMENTER:
        return f"experimenter {getattr(message, 'experimenter', 0):#x} error {getattr(message, 'exp_type', 0)}"
    kind = ofproto.ofp_error_type_to_str(message.type)
    return f"{kind} {ofproto.ofp_error_code_to_str(message.type, message.code)}"


def _part(message: bytes) -> int:
    """Which kind of multipart reply it is."""
    return int.from_bytes(message[8:10], "big")


class _Outbox(_hub.Queue):  # type: ignore[misc,name-defined]  # the framework ships no types
    """What waits to be sent on a connection; `idle` when nothing waits and nothing is being sent."""

    idle = False

    def put(self, item: Any, *args: Any, **kwargs: Any) -> None:
        self.idle = False
        super().put(item, *args, **kwargs)

    def get(self, *args: Any, **kwargs: Any) -> Any:
        self.idle = self.empty()
        item = super().get(*args, **kwargs)
        self.idle = False
        return item


class _Link(_controller.Datapath):  # type: ignore[misc,name-defined]
    """A switch's connection. The framework's own, which does the handshake, with a short way for everything after it.

    The framework makes an object of each message and takes it through three greenlets and two queues, whose limits
    hold up all switches together; and it wakes another greenlet for every message sent. What a switch says once it is
    UP goes to the `Hearer` here, mostly as bytes, and what is to be sent goes out at once where the socket takes it.
    """

    def __init__(self, connection: Any, address: Any) -> None:
        super().__init__(connection, address)
        self.send_q: Any = _Outbox(OUTBOX)
        self._plain = connection.fd if isinstance(connection, eventlet.greenio.GreenSocket) else None
        self._listener: Any = None
        self._reading = False
        self._reader: Any = None
        self._unbroken = 0
        self._emptied = False
        """What was last read was all that the socket had."""
        self._heard = 0.0

    # --- sending

    def send(self, buf: bytes, close_socket: bool = False) -> bool:
        """Waits only while sixteen earlier messages have not been taken by the socket."""
        outbox = self.send_q
        if outbox is not None and outbox.idle and self._plain is not None and not close_socket:
            try:
                sent = self._plain.send(buf)
            except OSError:
                sent = 0  # no room; or an end, which the loops find
            if sent == len(buf):
                return True
            buf = buf[sent:]
        taken: bool = super().send(buf, close_socket)
        return taken

    @property
    def idle(self) -> bool:
        """Nothing waits to be sent: a message can be sent without waiting."""
        return self.send_q is not None and self.send_q.idle

    def _echo_request_loop(self) -> None:
        """Ask for a sign of life a switch that has given none for a while: of most a site hears all the time."""
        while self.max_unreplied_echo_requests:
            quiet = time.monotonic() - self._heard
            if quiet < self.echo_request_interval:
                self.unreplied_echo_requests.clear()
                sleep(self.echo_request_interval - quiet)
                continue
            if not self.send_q or len(self.unreplied_echo_requests) > self.max_unreplied_echo_requests:
                self.close()
                return
            request = self.ofproto_parser.OFPEchoRequest(self)
            self.unreplied_echo_requests.append(self.set_xid(request))
            self.send_msg(request)
            sleep(self.echo_request_interval)

    def close(self) -> None:
        super().close()
        # The switch is to end the connection now. One that does not is cut off.
        eventlet.hubs.get_hub().schedule_call_global(FAREWELL_SECONDS, shut, self.socket)

    # --- receiving

    @_controller._deactivate  # type: ignore[untyped-decorator]
    def _recv_loop(self) -> None:
        rest = b""
        self._reader = eventlet.getcurrent()
        try:
            while self.state != DOWN:
                chunk = self._receive()
                if not chunk:
                    break
                rest = self._cut(rest + chunk if rest else chunk)
        except OSError:
            pass  # the connection's end
        finally:
            self._unlisten()

    def _cut(self, data: bytes) -> bytes:
        """Take up the messages that are complete; gives what is left."""
        at, total = 0, len(data)
        while total - at >= 8:
            version, kind, length, xid = _HEADER.unpack_from(data, at)
            if length < 8:
                self._parse(version, kind, xid, data[at : at + 8])  # what is no OpenFlow at all is told in its words
                raise ValueError(f"a message says that it has {length} octets")
            if total - at < length:
                break
            self._take(version, kind, xid, data[at : at + length])
            at += length
        return data[at:]

    def _receive(self) -> bytes:
        """What has come, waiting for it. A listener that stays registered spares two system calls, a timer and half of
        the work for each message that a switch sends."""
        plain = self._plain
        if plain is None:
            while self.state != DOWN:
                with contextlib.suppress(TimeoutError):
                    received: bytes = self.socket.recv(_CHUNK)
                    self._heard = time.monotonic()
                    return received
            return b""
        self._unbroken += 1
        if self._unbroken > _UNBROKEN:
            # One that always has something to say must not keep the others from being heard.
            self._unbroken = 0
            sleep(0)
        while True:
            if not self._emptied or self._listener is None:
                try:
                    data: bytes = plain.recv(_CHUNK)
                except BlockingIOError:
                    pass
                else:
                    self._emptied = len(data) < _CHUNK
                    self._heard = time.monotonic()
                    return data
            self._emptied = False
            self._unbroken = 0
            if self._listener is None:
                hub = eventlet.hubs.get_hub()
                self._listener = hub.add(hub.READ, plain.fileno(), self._readable, self._broken, None)
            self._reading = True
            try:
                eventlet.hubs.get_hub().switch()
            finally:
                self._reading = False

    def _readable(self, _: int) -> None:
        """Called by the hub. While the reader is busy elsewhere it must neither be woken nor the hub be told again."""
        if self._reading:
            self._reader.switch()
        else:
            self._unlisten()

    def _broken(self, error: Exception) -> None:
        self._listener = None
        if self._reading:
            self._reader.throw(error)

    def _unlisten(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(KeyError):  # the hub has found the descriptor to be of no use, and dropped it
                eventlet.hubs.get_hub().remove(listener)

    def _take(self, version: int, kind: int, xid: int, message: bytes) -> None:
        hearer = _hearer
        if self.state == _CONFIG and version == ofproto.OFP_VERSION and kind == ofproto.OFPT_FEATURES_REPLY:
            # The framework would ask for the list of ports before it says that the switch is UP. We ask for that
            # ourselves, together with all else: one answer less to wait for, of each switch.
            self.id = self._parse(version, kind, xid, message).datapath_id
            self.set_state(UP)
        elif self.state != UP and kind == ofproto.OFPT_MULTIPART_REPLY:
            pass  # nobody has asked
        elif self.state != UP or version != ofproto.OFP_VERSION or hearer is None:
            self._by_framework(version, kind, xid, message)
        elif kind == ofproto.OFPT_BARRIER_REPLY:
            hearer.heard_barrier(self, xid)
        elif kind == ofproto.OFPT_BUNDLE_CONTROL:
            bundle, what = _BUNDLE.unpack_from(message, 8)
            if what == ofproto.OFPBCT_COMMIT_REPLY:
                hearer.heard_commit(self, bundle)
        elif kind == ofproto.OFPT_ECHO_REPLY:
            self.acknowledge_echo_reply(xid)
        elif kind == ofproto.OFPT_MULTIPART_REPLY and (part := _part(message)) in _UNREAD:
            if part == ofproto.OFPMP_FLOW:
                hearer.heard_flows(self, xid, message)
            elif part == ofproto.OFPMP_METER_CONFIG:
                hearer.heard_meters(self, message)
            elif part == ofproto.OFPMP_METER:
                hearer.heard_meter_counts(self, xid, message)
            elif part == ofproto.OFPMP_METER_FEATURES:
                hearer.heard_meter_features(self, message)
            elif part == ofproto.OFPMP_FLOW_MONITOR:
                hearer.heard_changes(self, message)
            else:
                hearer.heard_ports(self, message)
        elif kind in _RARE:
            self._rare(hearer, kind, self._parse(version, kind, xid, message))
        else:
            self._by_framework(version, kind, xid, message)

    def _rare(self, hearer: Hearer, kind: int, said: Any) -> None:
        if kind == ofproto.OFPT_ERROR:
            hearer.heard_error(self, said.xid, error_name(said))
        elif kind == ofproto.OFPT_PORT_STATUS:
            hearer.heard_port(self, said.desc.name, said.desc.port_no, said.reason == ofproto.OFPPR_DELETE)
        elif kind == ofproto.OFPT_ROLE_REPLY:
            hearer.heard_role(self, said.xid)
        elif isinstance(said, parser.OFPDescStatsReply):
            hearer.heard_description(self, said.xid, said.body.dp_desc)

    def _parse(self, version: int, kind: int, xid: int, message: bytes) -> Any:
        return _ofproto_parser.msg(self, version, kind, len(message), xid, message)

    def _by_framework(self, version: int, kind: int, xid: int, message: bytes) -> None:
        """The handshake, echoes, and what nobody here asks for."""
        said, brick = self._parse(version, kind, xid, message), self.ofp_brick
        if not said or brick is None:
            return
        event = _ofp_event.ofp_msg_to_ev(said)
        state = self.state
        brick.send_event_to_observers(event, state)
        for handle in list(brick.get_handlers(event, state)):
            handle(event)


_HEADER: Final = struct.Struct("!BBHI")
_BUNDLE: Final = struct.Struct("!IH")
_CHUNK: Final = 65536
OUTBOX: Final = 16
"""Messages that may wait to be sent on one connection."""
_UNBROKEN: Final = 8
"""Chunks that are read from one switch without a look at anybody else."""
FAREWELL_SECONDS: Final = 5.0
"""What a connection that we have ended has to go by itself."""
_UNREAD: Final = frozenset(
    {
        ofproto.OFPMP_FLOW,
        ofproto.OFPMP_METER,
        ofproto.OFPMP_METER_CONFIG,
        ofproto.OFPMP_METER_FEATURES,
        ofproto.OFPMP_FLOW_MONITOR,
        ofproto.OFPMP_PORT_DESC,
    }
)
_RARE: Final = frozenset(
    {ofproto.OFPT_ERROR, ofproto.OFPT_PORT_STATUS, ofproto.OFPT_ROLE_REPLY, ofproto.OFPT_MULTIPART_REPLY}
)


API_LIMITS: Final = Limits(total=2048, strangers=512, per_stranger=16, per_address=256)
SWITCH_LIMITS: Final = Limits(total=1024, strangers=256, per_stranger=32, per_address=256)
DESCRIPTORS: Final = API_LIMITS.total + SWITCH_LIMITS.total + 256
"""Open files of the process: both listeners full, and what is left to the store, the log and what just comes."""
HANDSHAKE_SECONDS: Final = 10.0
"""After that a connection to the switches' listener that is still nobody's is closed."""


def places(wanted: Limits) -> Limits:
    """The limits, scaled down to the open files this process may have: a listener that has none left for the next
    connection ends, and the controller with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < DESCRIPTORS:
        soft = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= DESCRIPTORS:
        return wanted
    LOG.warning("the hard limit of open files is %d: raise it to %d for all connections to fit", hard, DESCRIPTORS)
    total = max(8, wanted.total * soft // DESCRIPTORS)
    return Limits(
        total,
        min(wanted.strangers, total // 2),
        min(wanted.per_stranger, total // 8),
        min(wanted.per_address, total // 4),
    )


def shut(connection: Any) -> None:
    """End a connection from outside: whoever reads from it or writes to it finds it closed, and cleans up."""
    eventlet.greenio.shutdown_safe(connection)


_switches: Doorway | None = None


def switch_doorway() -> Doorway:
    """The places of the switches' listener."""
    global _switches
    if _switches is None:
        _switches = Doorway(places(SWITCH_LIMITS))
    return _switches


def welcome(datapath: Any) -> None:
    """This connection is a bridge's: it is not closed to make room for strangers."""
    switch_doorway().know(datapath.socket)


def hang_up(datapath: Any) -> None:
    """Close a connection from inside of an event's handler. The framework tells its applications of the end through the
    very queue that the handler is taken from: when that is full, a handler that closes waits for itself, for ever."""
    spawn(datapath.close)


_switch_tls: TlsDoor | None = None


def peer_of(datapath: Any) -> Peer | None:
    """Who showed a certificate on this connection; None where the listener has no TLS."""
    peer: Peer | None = getattr(datapath.socket, "peer", None)
    return peer


def _serve_connection(connection: Any, address: Any) -> None:
    """What the framework's own function does, but strangers on the port cost one line of the log and no traceback,
    and cannot take all places by saying nothing. With TLS, its handshake comes first and OpenFlow's after it, both
    within the one time limit and in a greenlet of their own: the framework's own TLS would do the first in its accept
    loop's name, without a limit."""
    door = _switch_tls
    if door is not None:
        connection = SecureSocket(connection, door.context)
    doorway = switch_doorway()
    answer = doorway.admit(connection, str(address[0]), time.monotonic())
    if answer.gone is not None:
        shut(answer.gone)
    if not answer.admitted:
        shut(connection)
        connection.close()
        return

    def cut() -> None:
        if not doorway.knows(connection):
            shut(connection)

    timer = eventlet.hubs.get_hub().schedule_call_global(HANDSHAKE_SECONDS, cut)
    try:
        if door is not None and not _handshake(door, connection, address, "openflow", switches=True):
            connection.close()
            return
        with contextlib.closing(_Link(connection, address)) as datapath:
            datapath.serve()
    except Exception as error:  # noqa: BLE001  # whatever a peer sends ends its own connection, and nothing else
        LOG.warning("connection from %s port %s closed: %s: %s", *address[:2], type(error).__name__, error)
    finally:
        timer.cancel()
        doorway.left(connection)


_controller.datapath_connection_factory = _serve_connection


def _handshake(door: TlsDoor, connection: SecureSocket, address: Any, listener: str, *, switches: bool) -> bool:
    """Is there TLS now? Why not is logged, for each peer and reason once a minute."""
    words: bytes | None
    try:
        connection.handshake()
        return True
    except HandshakeError as error:
        words = _USE_HTTPS if not switches and "HTTP_REQUEST" in str(error) else b""
        why = explained(str(error), switches=switches)
    except OSError as error:
        words, why = None, f"the TLS handshake was not done in time or broke off: {error.strerror or error}"
    line = door.grumbles.line(str(address[0]), why, time.monotonic())
    if line is not None:
        LOG.warning("%s: connection %s", listener, line)
    if words is not None:
        connection.refuse(words)
    return False


_USE_HTTPS: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    b"This port speaks TLS only: write https:// in the URL.\n"
)

# ------------------------------------------------------------------------------------------------------ green things

Event: Any = _hub.Event
"""`set()`, `is_set()`, `wait(timeout)` → is it set."""
Queue: Any = eventlet.queue.LightQueue
QueueEmpty: Any = eventlet.queue.Empty
Timeout: Any = eventlet.timeout.Timeout
"""`with Timeout(seconds): …` raises itself when the time is over."""
sleep: Any = eventlet.sleep


def spawn(function: Callable[..., Any], *args: Any) -> Any:
    """Run a function in a greenlet; an exception that escapes it is logged."""
    return _hub.spawn(function, *args)


def call_later(seconds: float, function: Callable[[], None]) -> Any:
    """Call a function that never waits, once. What is returned has `cancel()`."""
    return eventlet.hubs.get_hub().schedule_call_global(seconds, function)


def kill(greenlet: Any) -> None:
    """End a greenlet and wait for its end."""
    _hub.kill(greenlet)
    _hub.joinall([greenlet])


# --------------------------------------------------------------------------------------------------------- framework

Address = tuple[str, int]
AppT = TypeVar("AppT")


def _listener(address: Address) -> socket.socket:
    """Raises EngineError."""
    try:
        return open_port(*address)
    except OSError as error:
        raise EngineError(f"cannot listen for switches on {address[0]} port {address[1]}: {error.strerror}") from error


class _Server:
    """In the place of the framework's server, which would open a port of its own, with SO_REUSEPORT: two controllers
    would silently share the switches of one port."""

    listener: Any = None

    def __init__(self, address: Address, handle: Callable[[Any, Any], None]) -> None:
        self._handle = handle

    def serve_forever(self) -> None:
        while True:
            connection, address = self.listener.accept()
            spawn(self._handle, connection, address)


_controller.StreamServer = _Server


class Framework:
    """The framework's application manager with its OpenFlow listener and our applications. One per process."""

    def __init__(
        self,
        openflow_listen: Address,
        *,
        tls: TlsDoor | None = None,
        listener: socket.socket | None = None,
        echo_interval: float = 5.0,
        echo_lost: int = 2,
    ) -> None:
        """`tls`: switches must show a certificate of its CA. None: OpenFlow in the clear. `listener`: on this very
        address, open already."""
        self._wanted = openflow_listen
        self._tls = tls
        self._listener = listener
        self._echo = (echo_interval, echo_lost)
        self._manager: Any = _app_manager.AppManager.get_instance()
        self._apps: list[Any] = []
        self._services: list[Any] = []
        self.address: Address = openflow_listen
        """Where switches connect; with port 0 the real one is known after `start`."""

    def add(self, app: Callable[..., AppT], *args: Any, **kwargs: Any) -> AppT:
        """Make an application; it runs from `start` on. Returns the application."""
        if not self._apps:
            self._apps.append(self._manager.instantiate(_ofp_handler.OFPHandler))
        made: AppT = self._manager.instantiate(app, *args, **kwargs)
        self._apps.append(made)
        return made

    def start(self) -> None:
        """Listen for switches. Raises EngineError."""
        global _switch_tls
        _switch_tls = self._tls
        if self._listener is None:
            self._listener = _listener(self._wanted)
        green = isinstance(self._listener, eventlet.greenio.GreenSocket)
        _Server.listener = self._listener if green else eventlet.greenio.GreenSocket(self._listener)
        self.address = self._listener.getsockname()[:2]
        configuration = _cfg.CONF
        configuration(args=[], project="lark", default_config_files=[], default_config_dirs=[])
        configuration.set_override("ofp_listen_host", self.address[0])
        # With a port of its own given, the framework opens neither 6653 nor the old 6633 beside it.
        configuration.set_override("ofp_tcp_listen_port", self.address[1])
        # By default a switch whose machine has died is never noticed.
        configuration.set_override("echo_request_interval", self._echo[0])
        configuration.set_override("maximum_unreplied_echo_requests", self._echo[1])
        for app in self._apps:
            service = app.start()
            if service is not None:
                app.set_main_thread(service)
                self._services.append(service)
        sleep(0)
        sleep(0)
        if any(service.dead for service in self._services):
            raise EngineError(f"the listener for switches on {self.address[0]} port {self.address[1]} ended at once")
        LOG.info(
            "%s %s: listening for switches on %s port %d, %s",
            NAME,
            VERSION,
            *self.address,
            "without TLS" if self._tls is None else "with TLS",
        )

    @property
    def alive(self) -> bool:
        """Is the listener for switches still there?"""
        return bool(self._services) and not any(service.dead for service in self._services)

    def stop(self) -> None:
        """End the applications and the listener."""
        self._manager.close()
        self._apps.clear()
        self._services.clear()
        if self._listener is not None:
            self._listener.close()


@contextlib.contextmanager
def _signals(numbers: Sequence[int]) -> Iterator[Any]:
    """An event that is set by any of these signals, at once and not at the hub's next timer."""
    event = Event()
    read, write = os.pipe()
    for end in (read, write):
        os.set_blocking(end, False)

    def watch() -> None:
        # A signal does not wake the hub from its poll; the byte that the interpreter writes here does.
        # It is the signal's number: one that Python handles for somebody else is no reason to stop.
        while True:
            eventlet.hubs.trampoline(read, read=True)
            if came := set(os.read(read, 64)) & set(numbers):
                LOG.info("signal %s", ", ".join(signal.Signals(number).name for number in sorted(came)))
                event.set()
                return

    def note(number: int, frame: FrameType | None) -> None:
        """Called wherever the interpreter is, also where a greenlet ends: no place to do anything, nor to log."""

    # In this order: a signal that is noted before there is where to write it would be lost.
    before_fd = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    before = {number: signal.signal(number, note) for number in numbers}
    watcher = spawn(watch)
    try:
        yield event
    finally:
        signal.set_wakeup_fd(before_fd)
        for number, old in before.items():
            signal.signal(number, old)
        kill(watcher)
        os.close(read)
        os.close(write)


def wait_for_signal(framework: Framework | None = None) -> None:
    """Wait for SIGTERM or SIGINT. Raises EngineError if the framework's listener ends meanwhile."""
    with _signals((signal.SIGTERM, signal.SIGINT)) as event:
        while not event.wait(1.0):
            if framework is not None and not framework.alive:
                raise EngineError("the listener for switches has ended; see the log above")


def run(apps: Sequence[tuple[type[Any], Mapping[str, Any]]], openflow_listen: Address) -> None:
    """Run applications until SIGTERM or SIGINT, and end them cleanly. Raises EngineError."""
    framework = Framework(openflow_listen)
    for app, kwargs in apps:
        framework.add(app, **kwargs)
    framework.start()
    try:
        wait_for_signal(framework)
    finally:
        framework.stop()


# -------------------------------------------------------------------------------------------------------------- WSGI


MOST_HEADERS: Final = 100
"""Of one request, as in the standard library."""
_LENGTH: Final = re.compile("[0-9]{1,15}")
_FIELD_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class _Lines:
    """A request's header lines, and the last of them."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self.last = b""

    def readline(self, size: int = -1) -> bytes:
        self.last = self._source.readline(size)
        return self.last


class _Ear:
    """Waits until a connection can be read. The hub is told of it once and not at every wait, which spares two system
    calls and a timer for each request."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._listener: Any = None
        self._reader: Any = None

    def wait(self) -> None:
        """Raises OSError when the descriptor is of no use any more."""
        hub = eventlet.hubs.get_hub()
        if self._listener is None:
            self._listener = hub.add(hub.READ, self._descriptor, self._readable, self._broken, None)
        self._reader = eventlet.getcurrent()
        try:
            hub.switch()
        finally:
            self._reader = None

    def close(self) -> None:
        """Nobody else can wait for the descriptor before this."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(KeyError):  # the hub has found the descriptor to be of no use, and dropped it
                eventlet.hubs.get_hub().remove(listener)

    def _readable(self, _: int) -> None:
        # While a request is being answered its reader must neither be woken nor the hub be told again and again.
        if self._reader is None:
            self.close()
        else:
            self._reader.switch()

    def _broken(self, error: Exception) -> None:
        self._listener = None
        if self._reader is not None:
            self._reader.throw(error)


class _Source(io.RawIOBase):
    """What a client sends, for the general server: first what has been read of it already."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.ahead = b""
        self.dry = False
        """Only what has been read already."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if not self.ahead:
            if self.dry:
                return None
            self.ahead = self._connection.recv(len(buffer))
        size = min(len(buffer), len(self.ahead))
        buffer[:size] = self.ahead[:size]
        self.ahead = self.ahead[size:]
        return size


class _Protocol(eventlet.wsgi.HttpProtocol):  # type: ignore[misc]  # eventlet ships no types
    """HTTP on one connection: what is plain and here as a whole by the short way (`ryu_apps.plain_http`), all else by
    eventlet's.

    There is one deadline for a whole request, headers and body: a time limit for each read lets a client that sends a
    byte now and then hold its place for ever.
    """

    ours: WsgiServer
    rfile: Any
    raw_requestline: bytes
    headers: Any
    _deadline: Any
    _input: Any

    def setup(self) -> None:
        connection = self.connection = self.request
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(self.server.socket_timeout)
        self._source = _Source(connection)
        self.rfile = io.BufferedReader(self._source)
        self.wfile = connection.makefile("wb", self.wbufsize)
        self._ear = _Ear(connection.fileno())
        self._secure = isinstance(connection, SecureSocket)
        welcome = functools.partial(self.ours.doorway.know, connection)
        self._client = plain_http.Client(str(self.client_address[0]), getattr(connection, "peer", None), welcome)
        self._quiet: float | None = time.monotonic()
        self._watch = eventlet.hubs.get_hub().schedule_call_global(self.ours.deadline, self._look)

    def finish(self) -> None:
        self._watch.cancel()
        self._ear.close()
        super().finish()

    def handle(self) -> None:
        direct = self.ours.direct
        self.close_connection = False
        while not self.close_connection:
            try:
                data = self._await()
            except OSError:  # gone, or what is no TLS
                return
            if not data:
                return
            self.conn_state[2] = eventlet.wsgi.STATE_REQUEST
            ask = None
            # What has been sent ahead of its turn is the general server's affair.
            if direct is not None and not self._source.dry:
                ask = plain_http.whole(data, self._client)
            if ask is None or direct is None:
                self._ear.close()  # eventlet waits for the connection in its own way
                self._source.ahead, self._source.dry = b"" if self._source.dry else data, False
                self.handle_one_request()
            else:
                reply = direct(ask)
                self.close_connection = reply.closes
                try:
                    self.connection.sendall(plain_http.octets(reply, time.time()))
                except OSError:
                    return
            if self.conn_state[2] == eventlet.wsgi.STATE_CLOSE:
                return
            self.conn_state[2] = eventlet.wsgi.STATE_IDLE

    def _await(self) -> bytes:
        """The beginning of a request, mostly all of it; empty at the end. Raises OSError."""
        self._source.dry = True
        left: bytes = self.rfile.peek(1)
        if left:
            return left
        self._source.dry = False
        self._quiet = time.monotonic()
        data: bytes | None = None
        if self._secure and self.connection.holds:
            sleep(0)  # who sends many at once is not to keep the others from their turn
            data = self.connection.take(plain_http.MOST)
        while data is None:
            self._ear.wait()
            data = self.connection.take(plain_http.MOST) if self._secure else take(self.connection, plain_http.MOST)
        self._quiet = None
        return data

    def _read_request_line(self) -> Any:
        self._input = None
        self._deadline = eventlet.hubs.get_hub().schedule_call_global(self.ours.deadline, self._cut)
        return super()._read_request_line()

    def _look(self) -> None:
        """Called by a timer: a connection that has been quiet for too long is ended."""
        limit = self.server.keepalive if self.ours.doorway.knows(self.conn_state[1]) else self.ours.deadline
        left = limit if self._quiet is None else self._quiet + limit - time.monotonic()
        if left <= 0:
            shut(self.connection)
        else:
            self._watch = eventlet.hubs.get_hub().schedule_call_global(left, self._look)

    def handle_one_request(self) -> None:
        self._deadline = None
        try:
            super().handle_one_request()
        except OSError:  # the client broke off in its headers, reset, or sent what is no TLS: its end, and no defect
            self.close_connection = True
        finally:
            if self._deadline is not None:
                self._deadline.cancel()

    def parse_request(self) -> bool:
        if not self._parse():
            return False
        if self._ambiguous():
            self.send_error(400, "Who asks, or where the request ends, can be understood in two ways")
            self.close_connection = True
            return False
        return True

    def _ambiguous(self) -> bool:
        """Could a proxy find the request's end, or who sends it, somewhere else? Of two headers the first would count
        here, and a length could be written as Python writes numbers."""
        headers = self.headers
        lengths = headers.get_all("Content-Length", ())
        codings = headers.get_all("Transfer-Encoding", ())
        return (
            bool(headers.defects)
            or len(lengths) + len(codings) > 1
            or any(_LENGTH.fullmatch(one) is None for one in lengths)
            or any(one.lower() != "chunked" for one in codings)
            or len(headers.get_all("Authorization", ())) > 1
        )

    def _parse(self) -> bool:
        words = self.raw_requestline.split()
        if len(words) != 3 or words[2] != b"HTTP/1.1" or not words[1].startswith(b"/") or words[1].startswith(b"//"):
            return self._parse_by_library()
        # The library reads headers as those of a mail: a tenth of all that an end of a job costs here.
        self.requestline = self.raw_requestline.decode("latin-1").rstrip("\r\n")
        self.command, self.path = words[0].decode("latin-1"), words[1].decode("latin-1")
        self.request_version, self.close_connection = "HTTP/1.1", False
        self.headers = self.MessageClass()
        for _ in range(MOST_HEADERS):
            line = self.rfile.readline()
            if line in (b"\r\n", b"\n"):
                break
            if not line.endswith(b"\n"):
                self.close_connection = True  # the connection's end: half a request is none
                return False
            name, colon, value = line.partition(b":")
            if not colon or not _FIELD_NAME.fullmatch(name) or b"\r" in value[:-2] or b"\0" in value:
                self.send_error(400, "A header line is not NAME: VALUE")
                return False
            self.headers[name.decode("ascii")] = value.strip().decode("latin-1")
        else:
            self.send_error(431, "Too many headers")
            return False
        self.close_connection = self.headers.get("Connection", "").lower() == "close"
        return True

    def _parse_by_library(self) -> bool:
        """What is not as usual: HTTP/1.0, and what may be no HTTP at all."""
        lines = _Lines(self.rfile)
        self.rfile = lines
        if not super().parse_request():
            return False
        if lines.last not in (b"\r\n", b"\n"):
            # The standard library takes a connection's end for the end of the headers: half a request is none.
            self.close_connection = True
            return False
        return True

    def get_environ(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().get_environ()
        self._input = environ["eventlet.input"]
        environ[WELCOME] = self._client.welcome
        if self.ours.tls is not None:
            environ["wsgi.url_scheme"] = "https"
            environ[PEER] = self.conn_state[1].peer
        return environ

    def log_message(self, text: str, *values: Any) -> None:
        """What a client wrote wrongly is its own affair: it is told, and not everybody who reads our log."""
        LOG.debug("api: %s", text % values)

    def _cut(self) -> None:
        """The time is over: unless the request is here as a whole, and only its answer takes long, it is ended."""
        source = self._input
        if source is not None and (
            source.chunk_length == 0 if source.chunked_input else source.position >= (source.content_length or 0)
        ):
            return
        self.ours.cut += 1
        shut(self.connection)


class _Pool:
    """What `eventlet.wsgi` starts connections in: the doorway decides which. It never makes the listener wait."""

    def __init__(self, doorway: Doorway, tls: TlsDoor | None, deadline: float) -> None:
        self._doorway = doorway
        self._tls = tls
        self._deadline = deadline
        self._pool = eventlet.greenpool.GreenPool(1 << 20)  # the doorway limits, not this
        self.waitall = self._pool.waitall

    def spawn(self, process: Callable[..., Any], connection: Any) -> Any:
        if self._tls is not None:
            # In place of the plain socket, for eventlet as well: it closes what stands here.
            connection[1] = SecureSocket(connection[1], self._tls.context)
        address, client, _ = connection
        # While newcomers wait, accept never yields: those who are in must be served too.
        sleep(0)
        answer = self._doorway.admit(client, str(address[0]), time.monotonic())
        if answer.gone is not None:
            shut(answer.gone)
        if not answer.admitted:
            return self._pool.spawn(shut, client)
        return self._pool.spawn(self._serve, process, connection)

    def _serve(self, process: Callable[..., Any], connection: Any) -> None:
        try:
            if self._tls is None or self._handshake(self._tls, connection[1], connection[0]):
                process(connection)
        finally:
            self._doorway.left(connection[1])

    def _handshake(self, tls: TlsDoor, client: SecureSocket, address: Any) -> bool:
        timer = eventlet.hubs.get_hub().schedule_call_global(self._deadline, shut, client)
        try:
            return _handshake(tls, client, address, "api", switches=False)
        finally:
            timer.cancel()

    @property
    def running(self) -> list[Any]:
        return list(self._pool.coroutines_running)


class WsgiServer:
    """A WSGI application served in greenlets. `address` is the bound one."""

    def __init__(
        self,
        listener: Any,
        app: Callable[..., Any],
        options: Mapping[str, Any],
        limits: Limits,
        deadline: float,
        tls: TlsDoor | None = None,
        direct: Callable[[plain_http.Ask], plain_http.Reply] | None = None,
    ) -> None:
        self.direct = direct
        self.address: Address = (str(listener.getsockname()[0]), int(listener.getsockname()[1]))
        self.doorway = Doorway(limits)
        self.deadline = deadline
        self.cut = 0
        """Requests that were not complete in time."""
        self.tls = tls
        self._pool = _Pool(self.doorway, tls, deadline)
        self._thread = spawn(self._serve, listener, app, dict(options))

    def _serve(self, listener: Any, app: Callable[..., Any], options: dict[str, Any]) -> None:
        protocol = type("Protocol", (_Protocol,), {"ours": self})
        eventlet.wsgi.server(listener, app, custom_pool=self._pool, protocol=protocol, **options)

    @property
    def alive(self) -> bool:
        return not self._thread.dead

    @property
    def turned_away_at(self) -> float | None:
        """When (`time.monotonic()`) a client was last refused or sent away for want of a place."""
        return self.doorway.turned_away_at

    def stop(self, grace: float = 5.0) -> None:
        """Accept nothing more, close idle connections, give requests under way `grace` seconds, then end them."""
        if self._thread.dead:
            return
        # The exception that kill raises in the accept loop is what starts eventlet's orderly end, and that waits for
        # every request: so it runs in its own greenlet and is not waited for longer than the grace.
        spawn(_hub.kill, self._thread)
        with Timeout(grace, False):
            while not self._thread.dead:
                sleep(0.01)
        for request in self._pool.running:
            request.kill()
        with Timeout(1.0, False):
            while not self._thread.dead:
                sleep(0.01)


def serve_wsgi(
    app: Callable[..., Any],
    host: str,
    port: int,
    *,
    log: logging.Logger | None = None,
    idle_timeout: float = 60.0,
    socket_timeout: float = 30.0,
    deadline: float = 10.0,
    limits: Limits | None = None,
    url_limit: int = 8192,
    tls: TlsDoor | None = None,
    direct: Callable[[plain_http.Ask], plain_http.Reply] | None = None,
) -> WsgiServer:
    """Serve a WSGI application; port 0 takes a free one (`.address`). Raises EngineError.

    `direct`: the same application without WSGI, for plain requests that are here as a whole; never raises.

    `deadline`: seconds for a request to come in, headers and body together, from its first byte (of a client that has
    not shown who it is, also: to that first byte); `idle_timeout`: how long a kept-alive connection of one who has
    (the application calls `environ[WELCOME]()`) may be quiet; `socket_timeout`: how long one read or write may take;
    `limits`: who may hold how many connections; `tls`: HTTPS, where a client may show a certificate of its CA
    (`environ[PEER]`), with a handshake within `deadline` too. No tracebacks go to clients.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(256)
    except OSError as error:
        listener.close()
        raise EngineError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    options = {
        "log": log or logging.getLogger("lark.http"),
        "log_output": log is not None,
        "keepalive": idle_timeout,
        "socket_timeout": socket_timeout,
        "url_length_limit": url_limit,
        "debug": False,
        "log_x_forwarded_for": False,
    }
    return WsgiServer(listener, app, options, places(limits or API_LIMITS), deadline, tls, direct)
