"""The agent's daemon: puts the parts together, starts them in the order that is safe, and ends them on SIGTERM.

    nft rules ──▶ table 0 ──▶ ledger: what goes on, what is torn down ──▶ strangers removed ──▶ pool ──▶ socket
                                                                            ▲
              controller: PUT node (again and again) ── address range ──────┘      heartbeats from then on

Invariants: no port before the nftables drop; no stranger removed before the ledger was read; the socket answers last.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

from ovs_agent import bridge, cleanup, fallback, ledger, netlink, nft, plan, trust
from ovs_agent.attempts import OK, Attempts, Reply, hold
from ovs_agent.bridge_keeper import BridgeKeeper
from ovs_agent.config import AgentConfig, ConfigError, read_token
from ovs_agent.conntrack import Conntrack
from ovs_agent.controller_client import ControllerClient, Rejected
from ovs_agent.controller_tls import ControllerTls
from ovs_agent.drain import Drain
from ovs_agent.errors import AgentError
from ovs_agent.firefly_sender import FireflySender
from ovs_agent.host_port import HostPortKeeper
from ovs_agent.ledger import Ledger
from ovs_agent.ovsdb import Ovsdb
from ovs_agent.pool import Pool
from ovs_agent.server import Server
from ovs_agent.standing import Standing
from ovs_agent.startd import Startd
from ovs_agent.steps import Step, reached
from ovs_agent.version import version
from policies.wire import Heartbeat, NodeGrant, NodeSpec, attempts_digest

log = logging.getLogger(__name__)
RETRY_FIRST, RETRY_LONGEST = 0.5, 5.0


class Agent:
    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._boot_id = ledger.boot_id()
        self._ledger = Ledger(config.state_dir)
        self._db = Ovsdb(config.bridge.ovsdb, config.bridge.rundir)
        self._conntrack = Conntrack(config.bridge.rundir, config.pool.connections)
        self._pool = Pool(self._db, self._conntrack, config.bridge.name, config.pool)
        self._startd = Startd(config.condor.config, config.condor.query_timeout)
        self._tls = ControllerTls(config.controller)
        token = None if config.controller.token_file is None else read_token(config.controller.token_file)
        self._controller = ControllerClient(config.node, config.controller.urls, token, self._tls.context)
        self._standing = Standing()
        self._drain = Drain(config.state_dir)
        self._attempts = Attempts(
            config,
            self._boot_id,
            self._ledger,
            self._pool,
            self._db,
            self._conntrack,
            self._startd,
            self._controller,
            self._standing,
            self._drain,
        )
        self._fireflies = FireflySender(config.scitags, self._attempts.marked, self._attempts.ask_decisions)
        self._watch = bridge.SwitchWatch(self._db, config.bridge.rundir, config.bridge.name, config.bridge.uplink)
        self._keeper = BridgeKeeper(
            self._db, config.bridge.rundir, config.bridge.name, config.bridge.uplink, self._watch
        )
        self._host_port = HostPortKeeper(
            config.bridge.name,
            self._boot_id,
            config.state_dir / "host-port.json",
            lambda: self._watch.alive,
        )
        self._programs = trust.Programs.of(config.libexec, config.condor.sbin)
        self._server = Server(config.socket, self._programs, self._attempts.handle, self._readiness)
        self._lease = 60
        self._addresses: list[str] = []
        self._grant: NodeGrant | None = None
        self._registered = False
        self._lock = -1

    def _readiness(self, peer: trust.Peer) -> Reply:
        if self._in_a_job(peer.pid):
            return hold(
                104, "a startd that runs as a job (a pilot) has no agent: its jobs share the network of that job"
            )
        if order := self._drain.order():
            return hold(104, order.text())
        if not self._watch.alive:
            return hold(104, "Open vSwitch does not run on this node")
        if unfit := self._unfit():
            return hold(104, unfit)
        if trouble := self._standing.trouble(self._pool.trouble):
            return hold(104, trouble)
        return OK

    def _in_a_job(self, pid: int) -> bool:
        """Whether a process is in the network of one of this node's jobs."""
        try:
            there = os.stat(f"/proc/{pid}/ns/net").st_ino
        except OSError:  # it has ended: nobody hears the answer
            return True
        return there in {
            netlink.namespace_inode(name) for name in netlink.namespaces(plan.namespace_prefix(self._config.node))
        }

    def _unfit(self) -> str:
        """Why the way that the administrator chose for jobs into their networks cannot be used here."""
        try:
            mode = fallback.mode_of(self._config.libexec)
        except trust.Refused as e:
            return str(e)
        return fallback.trouble(mode, self._config.fallback.siblings_hidden)

    async def run(self, ready: Callable[[str], None]) -> None:
        """Serve until SIGTERM or SIGINT."""
        config = self._config
        problems = self._programs.problems()
        if problems:
            raise AgentError("cannot tell who is calling:\n  " + "\n  ".join(problems))
        self._take_lock()
        reached(Step.START_LOCKED)
        await self._read_condor()
        self._ledger.tidy()
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: keep(self._reload()))
        tasks: set[asyncio.Task[None]] = set()

        def keep(work: Coroutine[Any, Any, None]) -> None:
            task = asyncio.create_task(work)
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        if unfit := self._unfit():
            log.error("no job can have a network on node=%s: %s", config.node, unfit)
        await nft.install(config.guard)
        reached(Step.START_GUARDED)
        if not config.guard.uids:
            log.warning(
                "guard.uids is empty: code of job owners outside job networks reaches whatever the host reaches"
            )
        await self._check_bridge()
        self._server.open()  # helpers that connect now wait in its queue
        reached(Step.START_LISTENING)
        try:
            await self._attempts.restore()
            reached(Step.START_RESTORED)
            grant = self._ledger.load_grant()
            if grant is not None and grant.node == config.node:
                await self._adopt(grant)
                reached(Step.START_REMEMBERED)
            await self._remove_strangers()
            reached(Step.START_SWEPT)
            work = [
                asyncio.create_task(self._pool.run()),
                asyncio.create_task(self._watch.run(self._switch_is_there)),
                asyncio.create_task(self._keeper.run()),
                asyncio.create_task(self._host_port.run()),
                asyncio.create_task(self._attempts.watch()),
                asyncio.create_task(self._fireflies.run()),
                asyncio.create_task(self._keep_registered()),
            ]
            self._server.start()
            reached(Step.START_SERVING)
            ready(
                f"lark-agent ready: node={config.node} bridge={config.bridge.name} socket={config.socket} "
                f"controller={self._controller.url}"
            )
            stopping = asyncio.create_task(stop.wait())
            done, _ = await asyncio.wait([stopping, *work], return_when=asyncio.FIRST_COMPLETED)
            log.info("stopping: node=%s", config.node)
            await self._server.close()
            for task in [*work, stopping, *tasks]:
                task.cancel()
            await asyncio.gather(*work, stopping, *tasks, return_exceptions=True)
            await self._attempts.shut_down()
            await self._pool.close()
            for task in done - {stopping}:
                task.result()  # a part that should run for ever has ended: say why, and exit non-zero
        finally:
            await self._startd.close()
            await self._controller.close()
            await self._db.close()

    def _take_lock(self) -> None:
        path = self._config.state_dir / "lock"
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise AgentError("another lark-agent uses this state directory; stop it first", str(path)) from None

    async def _check_bridge(self) -> None:
        """The bridge must be there and closed. (It may be that vswitchd is not up yet: the watch sees to table 0.)"""
        name = self._config.bridge.name
        row = await self._db.bridge(name)
        mend = f"run: lark-agent prepare-bridge --config {self._config.file}"
        if row is None:
            wanted = "--datapath-id ID --controller ssl:ADDRESS:6653, as site.yaml and controller.yaml have them"
            raise AgentError(f"there is no such bridge; {mend} {wanted}", f"bridge {name}")
        if row["fail_mode"] != "secure":
            raise AgentError(
                f"fail_mode is not secure: it would be open without a controller; {mend}", f"bridge {name}"
            )
        if (row["other_config"] or {}).get("disable-in-band") != "true":
            raise AgentError(f"in-band control adds hidden flows; {mend}", f"bridge {name}")
        self._conntrack.datapath_type = row["datapath_type"] or "system"

    async def _switch_is_there(self) -> None:
        """The switch was seen first, or came back: a userspace one has forgotten host addresses and all limits."""
        await self._host_port.restore()
        try:
            await self._conntrack.limit(self._pool.zones)
        except AgentError as e:
            log.error("node=%s: %s", self._config.node, e)

    async def _remove_strangers(self) -> None:
        stock, trouble = await cleanup.take_stock(self._config, self._db)
        if trouble:
            raise AgentError(trouble)
        ports, namespaces = self._attempts.names_in_use()
        strangers = [
            *sorted({*stock.ports, *stock.devices} - ports),
            *sorted(set(stock.namespaces) - namespaces),
        ]
        if strangers:
            log.warning("removing what belongs to no attempt: %s", ", ".join(strangers))
            await cleanup.remove(self._config, self._db, stock, ports, namespaces, with_nft=False)
        try:  # before the pool builds anything: a lane must not lose its limit
            lanes = range(plan.ZONE_BASE + 1, plan.ZONE_BASE + plan.MAX_LANE + 1)
            await self._conntrack.unlimit((await self._conntrack.limited()).intersection(lanes), self._pool.zones)
        except AgentError as e:
            log.warning("node=%s: limits of lanes that are no more are left: %s", self._config.node, e)

    async def _adopt(self, grant: NodeGrant) -> None:
        if grant.node != self._config.node:
            raise AgentError(f"the controller granted node {grant.node}, not {self._config.node}")
        try:
            net = plan.network(
                node=grant.node,
                ipv4_range=grant.ipv4_range,
                ipv4_prefix_length=grant.ipv4_prefix_length,
                ipv4_gateway=grant.ipv4_gateway,
                ipv6_prefix=grant.ipv6_prefix,
                ipv6_prefix_length=grant.ipv6_prefix_length,
                ipv6_gateway=grant.ipv6_gateway,
                mtu=grant.mtu,
            )
        except ValueError as e:
            raise AgentError(f"the controller's grant is not usable: {e}") from None
        self._lease = grant.lease
        before = self._standing.missing()
        self._standing.wanted = tuple(grant.attributes)  # before there is a network that a job could be given
        if self._standing.missing() != before:
            self._tell_standing()
        await self._pool.set_network(net)
        self._grant = grant

    async def _keep_registered(self) -> None:
        """PUT the node, then a heartbeat, in turn: the answer to a PUT says what a new policy reads of jobs."""
        pause = RETRY_FIRST
        said = ""
        while True:
            try:
                await self._register_node()
                if said:
                    log.info("controller %s is back", self._controller.url)
                said, pause = "", RETRY_FIRST
                self._standing.registration, self._standing.refused = "", False
                self._heard()
                await self._beat()
            except AgentError as e:
                if str(e) != said:
                    log.error("node=%s is not registered: %s", self._config.node, e)
                said = str(e)
                self._standing.heard_until, self._standing.policy = 0.0, ""
                self._standing.registration, self._standing.refused = said, isinstance(e, Rejected)
                await asyncio.sleep(pause)
                pause = min(pause * 2, RETRY_LONGEST)

    async def _register_node(self) -> None:
        addresses = await netlink.in_thread(netlink.host_addresses)
        if self._addresses and addresses != self._addresses:
            log.info("addresses of node=%s changed", self._config.node)
        self._addresses = addresses
        grant = await self._controller.put_node(
            NodeSpec(
                boot_id=self._boot_id,
                bridge=self._config.bridge.name,
                host_addresses=self._addresses[:256],
                agent_version=version(),
            )
        )
        reached(Step.NODE_TOLD)
        if grant != self._grant or not self._registered:
            await self._adopt(grant)
            reached(Step.NODE_ADOPTED)
            await asyncio.to_thread(self._ledger.save_grant, grant)
            reached(Step.NODE_NOTED)
            log.info("registered: node=%s controller=%s lease=%d s", grant.node, self._controller.url, grant.lease)
            self._registered = True

    async def _read_condor(self, *, again: bool = False) -> None:
        """Learn STARTD_JOB_ATTRS. Raises AgentError; then nothing is known of it, and no job begins."""
        path = self._config.condor.config
        try:
            if path is not None:  # HTCondor's library takes a file that is not there for an empty one
                with path.open("rb"):
                    pass
            self._standing.attributes_are(await self._startd.attributes(again=again))
        except OSError as e:
            self._standing.attributes_unknown(f"condor.config {path}: {e.strerror}")
        except AgentError as e:
            self._standing.attributes_unknown(f"condor.config {path or '(not set)'}: {e}")
        else:
            return
        raise AgentError(f"{self._standing.blind()}; name HTCondor's main configuration file in condor.config")

    async def _reload(self) -> None:
        """SIGHUP."""
        try:
            self._tls.renew()
        except ConfigError as e:
            log.error("node=%s keeps the certificate that it has: %s", self._config.node, e)
        await self._read_condor_again()

    async def _read_condor_again(self) -> None:
        try:
            await self._read_condor(again=True)
        except AgentError as e:
            log.error("no job begins on node=%s: %s", self._config.node, e)
            return
        log.info(
            "HTCondor's configuration was read again: STARTD_JOB_ATTRS has %d names", len(self._standing.sent or ())
        )
        self._tell_standing()

    def _tell_standing(self) -> None:
        if blind := self._standing.blind():
            log.error("no job begins on node=%s: %s", self._config.node, blind)
        else:
            log.info("node=%s sends all job attributes that the policy reads", self._config.node)

    def _heard(self) -> None:
        """The controller has answered: it will again before another interval is over."""
        self._standing.heard_until = time.monotonic() + 2 * max(1.0, self._lease / 3)

    async def _beat(self) -> None:
        """One heartbeat, when it is due."""
        await asyncio.sleep(max(1.0, self._lease / 3))
        try:
            ids = self._attempts.ids()
            beat = Heartbeat(boot_id=self._boot_id, digest=attempts_digest(ids))
            answer = await self._controller.heartbeat(beat)
            if not answer.agree:
                beat = Heartbeat(boot_id=self._boot_id, attempts=self._attempts.ids())
                answer = await self._controller.heartbeat(beat)
        except Rejected as e:
            self._registered = False
            if e.status == 404:
                log.warning("controller has forgotten node=%s; registering again", self._config.node)
                return
            raise
        reached(Step.NODE_BEAT)
        self._lease = max(1, answer.lease)
        self._standing.policy = answer.policy
        self._heard()
        for attempt in answer.drop:
            self._attempts.told_to_drop(attempt)
        for attempt in answer.gone:
            self._attempts.told_of_stranger(attempt)


def configure_logging(level: str) -> None:
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for noisy in ("httpx", "httpcore", "pyroute2", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
