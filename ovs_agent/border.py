"""The daemon on a border: it keeps the queues of the bridge's ports as the controller wishes them, and says how it is.

    controller: GET queues (every 2 s, 304 while nothing changed) ──▶ wish, kept on disk ──▶ plan ──▶ kernel
                PUT report  ◀── faults and counters of each class ◀────────────────── every 2 s ──────┘

Invariants: what was wished last is in force from the start and for as long as no controller answers; a wish that cannot
be is refused as a whole, and the one before stays; a fault at one port keeps none of the others waiting. Only ports of
the bridge are touched. A port is written down before it is changed, so whatever ends this process, the next one (or
`border-cleanup`) knows what to give back. When the daemon ends, the queues stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ovs_agent import packet_sockets, qos, queues
from ovs_agent.bridge import wrong_settings
from ovs_agent.config import BorderConfig, read_token
from ovs_agent.controller_client import ControllerClient
from ovs_agent.controller_tls import ControllerTls
from ovs_agent.errors import AgentError
from ovs_agent.netlink import in_thread
from ovs_agent.ovsdb import Ovsdb
from ovs_agent.packet_sockets import PacketSockets
from ovs_agent.queues import Traffic
from ovs_agent.version import version
from policies.events import Kind
from policies.wire import ClassReport, Finding, PortReport, QueueReport, QueueWish

log = logging.getLogger(__name__)
PERIOD = 2.0
MAX_FAULTS, MAX_FAULT = 64, 500
LOSS_SHOWN = 30.0
"""Seconds for which lost frames stay a fault: long enough to be seen by who looks."""


class State(BaseModel):
    """What outlives the process. `owned`: ports whose queues are ours, with the offloads that we switched off."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    wish: QueueWish | None = None
    owned: dict[str, dict[str, int]] = {}


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    traffic: Mapping[int, Traffic]


class Border:
    """`run` serves; `clean_up` takes everything away. One process at a time uses a state directory."""

    def __init__(self, config: BorderConfig) -> None:
        self._config = config
        self._db = Ovsdb(config.ovsdb, config.rundir, timeout=5)
        self._state = State()
        self._samples: dict[str, _Sample] = {}
        self._shielded: set[str] = set()
        self._made: dict[str, qos.PortPlan] = {}
        """What this process has made of each port that is there: what lacks of it later was somebody else's doing."""
        self._repaired: dict[str, int] = {}
        self._refused = ""
        """Why the newest wish is not followed; empty: it is."""
        self._seen: str | None = None
        """Digest of the newest wish, followed or not."""
        self._report: QueueReport | None = None
        self._told: frozenset[str] = frozenset()
        self._unanswered = ""
        self._changed = asyncio.Event()
        self._sockets: PacketSockets | None = None
        """Of a userspace switch; None: the kernel's datapath has none."""
        self._losses: dict[str, float] = {}
        """What was said of lost frames, and when."""
        self._lock = -1

    async def run(self, ready: Callable[[str], None]) -> None:
        """Until SIGTERM or SIGINT."""
        config = self._config
        self._take_lock()
        self._load()
        tls = ControllerTls(config.controller)
        token = None if config.controller.token_file is None else read_token(config.controller.token_file)
        client = ControllerClient(config.bridge, config.controller.urls, token, tls.context)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, functools.partial(_renew, tls))
        await self._find_bridge()
        await self._settle()
        # Who starts it with a controller that is not there must not take silence for success.
        none = f"; none are wished for yet: waiting for {', '.join(config.controller.urls)}"
        ready(f"lark-agent border: keeping the queues of bridge {config.bridge}{'' if self._state.wish else none}")
        work = [asyncio.create_task(self._keep()), asyncio.create_task(self._follow(client))]
        ended = asyncio.create_task(stop.wait())
        try:
            done, _ = await asyncio.wait([*work, ended], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {ended}:
                task.result()  # a defect ends the daemon with its traceback; the queues stay
        finally:
            for task in (*work, ended):
                task.cancel()
            await asyncio.gather(*work, ended, return_exceptions=True)
            await client.close()
        log.info("ending; the queues stay as they are")

    async def clean_up(self) -> list[str]:
        """Give every port back. Returns what was done, in words."""
        self._take_lock()
        self._load()
        try:
            ports = await self._db.plugged(self._config.bridge)
        except AgentError:
            ports = frozenset()
        done = []
        for port in sorted(ports | self._state.owned.keys()):
            if await in_thread(functools.partial(queues.clear, port)):
                done.append(f"removed the queues of {port}")
            if self._state.owned.get(port):
                await in_thread(functools.partial(queues.restore_frames, port, self._state.owned[port]))
                done.append(f"switched {', '.join(self._state.owned[port])} of {port} on again")
            with contextlib.suppress(AgentError):
                await self._db.unshield(port)
        self._path.unlink(missing_ok=True)
        return done

    # --- the controller ---------------------------------------------------------------------------------------------

    async def _follow(self, client: ControllerClient) -> None:
        while True:
            try:
                wish = await client.queues(self._config.bridge, self._seen)
                if wish is not None:
                    self._take(wish)
                if self._report is not None:
                    await client.report_queues(self._config.bridge, self._report)
                if self._unanswered:
                    log.info("the controller answers again")
                self._unanswered = ""
            except AgentError as e:
                if not self._unanswered:
                    log.warning("%s; %s", e, self._without_controller())
                self._unanswered = str(e)
            await asyncio.sleep(PERIOD)

    def _without_controller(self) -> str:
        if self._state.wish is not None:
            return "the queues stay as they were wished last"
        return (
            "no queues are wished for yet, so all classes wait in one: mend controller.urls, its token or certificate, "
            f"or bridge in {self._config.file}, or start lark-controller there"
        )

    def _take(self, wish: QueueWish) -> None:
        """Follow a new wish from now on, or say why not."""
        self._seen = wish.digest
        try:
            qos.plan(wish, dict.fromkeys(wish.ports, 1500), None)
        except qos.BadWish as e:
            self._refused = f"the queues that the controller wishes cannot be, and those before stay: {e}"
            log.error("%s", self._refused)
            return
        self._refused = ""
        if self._state.wish is None or wish.digest != self._state.wish.digest:
            log.info("new queues are wished for: %s", ", ".join(wish.ports))
        self._save(State(wish=wish, owned=self._state.owned))
        self._changed.set()

    # --- the kernel -------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        while True:
            self._changed.clear()
            await self._settle()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), PERIOD)

    async def _settle(self) -> None:
        """Make the ports what is wished, give back those that are not, and look at what they carry."""
        wish = self._state.wish
        faults = [_fault(self._refused)] if self._refused else []
        ports: dict[str, PortReport] = {}
        if wish is not None:
            there, trouble = await self._there(wish)
            faults += trouble
            before = self._sockets
            faults += await self._look_at_bridge()
            memory = None if self._sockets is None else self._sockets.sending
            plans = qos.plan(wish, there, memory)
            faults += map(_fault, plans.remarks)
            faults += map(_fault, self._lost(before, there))
            for name in self._made.keys() - plans.ports.keys():
                del self._made[name]  # a port that comes back comes without queues, and nobody took them
            for name, plan in plans.ports.items():
                try:
                    ports[name] = await self._settle_port(name, plan, faults)
                except queues.ForeignQdisc as e:
                    self._made.pop(name, None)  # who took them is told of already
                    faults.append(_fault(str(e), Kind.BORDER_QDISC_FOREIGN, name))
                except AgentError as e:
                    faults.append(_fault(str(e), port=name))
            await self._give_back(faults)
        self._report = QueueReport(
            digest=None if wish is None else wish.digest,
            agent_version=version(),
            faults=[fault.text for fault in faults[:MAX_FAULTS]],
            ports=ports,
            findings=faults[:MAX_FAULTS],
            repaired=dict(self._repaired),
        )
        self._tell(faults)

    async def _there(self, wish: QueueWish) -> tuple[dict[str, int], list[Finding]]:
        """MTU of each wished port that is there, and what is wrong with the others."""
        faults: list[Finding] = []
        bridge = self._config.bridge
        try:
            plugged = await self._db.plugged(bridge)
        except AgentError as e:
            # A switch that is down does not make the queues wrong: those that were made stay in our care.
            faults.append(_fault(f"the ports of bridge {bridge} cannot be looked at: {e}"))
            plugged = frozenset(self._state.owned)
        found: dict[str, int] = {}
        for name in wish.ports:
            try:
                mtu = await in_thread(functools.partial(queues.mtu, name))
            except queues.PortMissing:
                text = f"port {name} of bridge {bridge} is missing: there is no such device"
                faults.append(_fault(text, Kind.WAN_PORT_MISSING, name))
                continue
            except AgentError as e:
                faults.append(_fault(str(e), port=name))
                continue
            if name in plugged:
                found[name] = mtu
            else:
                text = f"port {name} is not plugged into bridge {bridge}: it has no queues"
                faults.append(_fault(text, Kind.WAN_PORT_MISSING, name))
        return found, faults

    async def _settle_port(self, name: str, plan: qos.PortPlan, faults: list[Finding]) -> PortReport:
        if name not in self._state.owned:
            self._save(State(wish=self._state.wish, owned={**self._state.owned, name: {}}))
        if name not in self._shielded:
            try:
                await self._db.shield(name)
                self._shielded.add(name)
            except AgentError as e:
                faults.append(_fault(f"a restart of ovs-vswitchd would remove the queues of {name}: {e}", port=name))
        done = await in_thread(functools.partial(queues.apply, name, plan))
        if done and self._made.get(name) == plan:
            self._repaired[name] = self._repaired.get(name, 0) + len(done)
            log.warning("port=%s somebody else removed or altered its queues; put back:", name)
        self._made[name] = plan
        for line in done:
            log.info("port=%s %s", name, line)
            if line == queues.MADE:
                self._shielded.discard(name)  # perhaps somebody took the shield away: look again
        if plan.rate < queues.UNSHAPED:
            try:
                was_on = await in_thread(functools.partial(queues.split_frames, name))
            except AgentError as e:
                text = f"{e}: one frame in the queue can be 64 KB, and the classes wait for it"
                faults.append(_fault(text, port=name))
            else:
                if was_on:
                    log.info("port=%s switched off %s", name, ", ".join(was_on))
                    mine = {**self._state.owned[name], **was_on}
                    self._save(State(wish=self._state.wish, owned={**self._state.owned, name: mine}))
        if why := await in_thread(functools.partial(queues.no_link, name)):
            faults.append(_fault(f"port {name}: {why}", Kind.WAN_PORT_DOWN, name))
        speed = await in_thread(functools.partial(queues.speed, name))
        if speed is not None and speed < plan.rate:
            text = (
                f"port {name}: its link runs at {speed / 1e6:g} Mbit/s, below the {plan.rate / 1e6:g} Mbit/s of "
                "site.yaml, so frames wait in the device and not in their classes; mend the link, or site.yaml"
            )
            faults.append(_fault(text, port=name))
        seen = await in_thread(functools.partial(queues.traffic, name))
        before = self._samples.get(name)
        now = _Sample(time.monotonic(), seen)
        self._samples[name] = now
        return PortReport(
            rate=plan.rate,
            speed=speed,
            classes={leaf.name: _class_report(leaf.minor, now, before) for leaf in plan.leaves if leaf.name},
            plumbing=_class_report(qos.PLUMBING_MINOR, now, before),
        )

    async def _give_back(self, faults: list[Finding]) -> None:
        assert self._state.wish is not None
        for name in self._state.owned.keys() - self._state.wish.ports.keys():
            try:
                if await in_thread(functools.partial(queues.clear, name)):
                    log.info("port=%s has no queues any more", name)
                await in_thread(functools.partial(queues.restore_frames, name, self._state.owned[name]))
                await self._db.unshield(name)
            except AgentError as e:
                faults.append(_fault(str(e), port=name))
                continue
            self._samples.pop(name, None)
            self._shielded.discard(name)
            left = {port: was for port, was in self._state.owned.items() if port != name}
            self._save(State(wish=self._state.wish, owned=left))

    async def _find_bridge(self) -> None:
        """A name that the switch's database does not have is a mistake; a database that does not answer may come yet.
        Raises AgentError."""
        bridge = self._config.bridge
        try:
            if await self._db.bridge(bridge) is not None:
                return
            names = (await self._db.vsctl(["list-br"])).split()
        except AgentError as e:
            log.warning("bridge %s cannot be looked at yet: %s", bridge, e)
            return
        there = f"there are {', '.join(names)}" if names else "there is none at all"
        raise AgentError(
            f"no such bridge ({there}); mend bridge in {self._config.file}, or run lark-agent prepare-bridge",
            f"bridge {bridge}",
        )

    async def _look_at_bridge(self) -> list[Finding]:
        """Its sockets, and whether it is still closed by itself."""
        try:
            row = await self._db.bridge(self._config.bridge)
        except AgentError:  # a database that is down has been told; what was known holds on
            return []
        userspace = row is not None and row["datapath_type"] == "netdev"
        self._sockets = await packet_sockets.look(self._config.rundir) if userspace else None
        # The mark that tells a controller of these settings opens nothing by being away.
        wrong = [] if row is None else [words for words in wrong_settings(row) if "dp-desc" not in words]
        if not wrong:
            return []
        text = f"bridge {self._config.bridge} lacks {', '.join(wrong)}: without a controller it would not stay closed"
        return [_fault(text, Kind.FAIL_MODE_WRONG)]

    def _lost(self, before: PacketSockets | None, ports: Iterable[str]) -> list[str]:
        """Frames that the switch has lost of late on these ports, before they came to any queue."""
        now, moment = self._sockets, time.monotonic()
        if now is not None and before is not None:
            mine = frozenset(ports)
            fresh = PacketSockets(None, {port: one for port, one in now.receiving.items() if port in mine})
            self._losses |= dict.fromkeys(packet_sockets.losses(fresh, before), moment)
        self._losses = {said: at for said, at in self._losses.items() if moment - at < LOSS_SHOWN}
        return list(self._losses)

    def _tell(self, faults: Iterable[Finding]) -> None:
        """Log what is new among the faults, and what has gone."""
        texts = dict.fromkeys(fault.text for fault in faults)
        for fault in texts:
            if fault not in self._told:
                log.error("%s", fault)
        for fault in sorted(self._told - texts.keys()):
            log.info("mended: %s", fault)
        self._told = frozenset(texts)

    # --- what outlives the process ----------------------------------------------------------------------------------

    @property
    def _path(self) -> Path:
        return self._config.state_dir / "border.json"

    def _take_lock(self) -> None:
        directory = self._config.state_dir
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AgentError(
                "another lark-agent border uses this state directory; stop it first", str(directory)
            ) from None
        except OSError as e:
            raise AgentError(f"cannot be used: {e.strerror}", str(directory)) from None

    def _load(self) -> None:
        try:
            self._state = State.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, ValidationError) as e:
            # The controller says it again; what is on the ports is recognised by its handle.
            log.error("%s cannot be read (%s): waiting for the controller", self._path, str(e).splitlines()[0])
        wish = self._state.wish
        if wish is None:
            return
        try:
            qos.plan(wish, dict.fromkeys(wish.ports, 1500), None)
        except qos.BadWish as e:  # another version took it: its ports stay as they are until there is a better one
            log.error("the queues that were wished last cannot be (%s): waiting for the controller", e)
            self._state = State(wish=None, owned=self._state.owned)
        else:
            self._seen = wish.digest

    def _save(self, state: State) -> None:
        if state == self._state:
            return
        self._state = state
        new = self._path.with_suffix(".new")
        try:
            with new.open("w", encoding="utf-8") as out:
                out.write(state.model_dump_json())
                out.flush()
                os.fsync(out.fileno())
            new.replace(self._path)
        except OSError as e:
            log.error("%s cannot be written (%s): after a restart the queues wait for the controller", new, e.strerror)


def _fault(text: str, kind: Kind = Kind.BORDER_FAULT, port: str | None = None) -> Finding:
    return Finding(kind=kind.value, port=port, text=text[:MAX_FAULT])


def _renew(tls: ControllerTls) -> None:
    try:
        tls.renew()
        log.info("client certificate read again")
    except AgentError as e:
        log.error("%s; the one before stays", e)


def _class_report(minor: int, now: _Sample, before: _Sample | None) -> ClassReport:
    seen = now.traffic.get(minor, Traffic(0, 0, 0, 0))
    rate = 0
    if before is not None and minor in before.traffic and now.at > before.at:
        rate = max(0, int((seen.bytes - before.traffic[minor].bytes) * 8 / (now.at - before.at)))
    return ClassReport(bytes=seen.bytes, packets=seen.packets, drops=seen.drops, backlog=seen.backlog, rate=rate)
