"""Attempts: from the hook's first word to the last confirmed deletion. `life` says what is allowed; this does it.

Order of what is done, and why a kill at any point leaves nothing open and nothing forgotten:

  begin     ledger(registering), the startd → PUT → ledger(stage-in) → "ok"
                                                                       a record before others know of the attempt
  phases    ledger(new phase) → PATCH → "ok"                           after a restart the controller is told again
            (where the policy gives the job the same in all phases: ledger(new phase) → "ok" → PATCH soon)
  exited    counts into the job's ad → "ok"                            the job's wrapper has waited for it, and ends now
  exit      the wrapper's pidfd closes                                 stage-out follows: with the first plugin, or soon
  end       processes, device, namespace, port go → DELETE until confirmed → conntrack zone → record goes
            → the lane's number may be used again (where that takes long, or the starter lives: ledger(closing) beside)
            (a lane that is as it was made stays, if the controller confirms soon, for the next job of the uid)

Invariants: nothing is answered "ok" before the controller said the policy is in force. The end of an attempt is the end
of its starter, seen by pidfd, whatever hooks did or did not run. One attempt never waits for another's tear-down, and
no tear-down for the disk: any record of an attempt whose starter is dead makes the next agent take it down. A tear-down
that fails is taken up again until it is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from ovs_agent import counts, fallback, life, netlink, plan, trust, unused
from ovs_agent.chirp import Relays
from ovs_agent.config import AgentConfig
from ovs_agent.conntrack import Conntrack
from ovs_agent.controller_client import READ_TIMEOUT, ControllerClient, GivenUp, Held, Rejected, Unavailable, insist
from ovs_agent.drain import Drain
from ovs_agent.errors import AgentError
from ovs_agent.fireflies import Mark
from ovs_agent.firefly_sender import Marked
from ovs_agent.ledger import Ledger, Record
from ovs_agent.life import Request, State
from ovs_agent.ovsdb import Ovsdb
from ovs_agent.plan import Lane
from ovs_agent.pool import NoLane, Outcome, Pool
from ovs_agent.standing import Standing
from ovs_agent.startd import NotLiteral, SlotAd, Startd, StartdError
from ovs_agent.steps import Step, reached
from policies.wire import (
    OLDEST_PROTOCOL,
    AttemptSpec,
    AttemptStatus,
    BridgeRealisation,
    Dropped,
    Phase,
    PortSpec,
    words,
)

log = logging.getLogger(__name__)
HOLD_POLICY, HOLD_CONTROLLER, HOLD_AGENT, HOLD_NETWORK = 101, 102, 103, 104
STARTD_PATIENCE = 8.0
REFUSED_PATIENCE = 2.0
"""Seconds that the controller may take to say how many packets of a job were refused."""
EXIT_WAIT = 20.0
"""Seconds that the begin of stage-out may hold up a plugin, or the starter's next request."""
LANE_WAIT = 10.0
LEDGER_PAUSE, LEDGER_PAUSE_LONGEST = 0.5, 5.0
NOTED_LATER = 1.0
"""Seconds that an end may take before it is written down."""
WATCH_PAUSE = 0.5
"""Seconds until a tear-down that died is taken up again."""
HELPER_PATIENCE = 75.0
"""Seconds the native helper waits for an answer; ours, with a reason, must come before."""
LAST_CALL = READ_TIMEOUT
"""Seconds that a call to the controller which was begun in time may still take."""
DELETE_PAUSE, DELETE_PAUSE_LONGEST = 0.5, 15.0
STAGE_OUT_PAUSE = 1.0
"""Seconds from the job's end until the controller hears of stage-out, unless a plugin brings it about before.
Most starters have nothing to transfer by then and end at once: they cost no phase."""
RUN_PAUSE = 1.0
"""Seconds until the controller hears that a job runs, where that changes nothing. Who ends before costs no phase."""
LASTING = 15.0
"""Seconds for which "the same in all phases" is believed: the policy may have been replaced since."""
KEEP_PATIENCE = 1.0
"""Seconds that the controller may take to confirm a deletion before the lane goes that could have been kept."""
LABEL_PAUSE = 3.0
"""Seconds until a port is labelled with its attempt: for people, and the switch looks at all its ports each time. Most
jobs that only try something have ended by then."""


class Unfit(AgentError):
    """This node takes no jobs now."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer on the socket. Owns `fd`."""

    text: str
    fd: int | None = None


OK = Reply("ok")


def hold(subcode: int, text: str) -> Reply:
    return Reply(f"hold {subcode} {text}")


def refused(text: str) -> Reply:
    return Reply(f"refused {text}")


@dataclass(slots=True)
class Attempt:
    """An attempt while the agent knows it. `record` is what the ledger holds, or will hold."""

    record: Record
    starter_pidfd: int
    relays: Relays
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    job_pidfd: int | None = None
    """Of the process that HTCondor takes for the job: the wrapper, which waits for it."""
    comes_again: bool = False
    """Its job ends in order to be started again, by the same starter (self-checkpointing): its end says nothing."""
    proxy: counts.Proxy | None = None
    """Where the starter takes the job's counts. In no file of ours: a new agent looks again."""
    exited: bool = False
    """Its job's wrapper has said that the job has exited. The phase waits for the wrapper's own end."""
    counted: asyncio.Task[None] | None = None
    """The starter is told the job's counts, or has been."""
    hooked: bool = False
    """An exit hook (of an older configuration) has had them told."""
    label: str = "?"
    told: bool = False
    """The controller may know this attempt: it must be DELETEd."""
    beginning: asyncio.Task[Reply] | None = None
    over: bool = False
    """Its job's process has ended: stage-out is due."""
    ending: bool = False
    """Its starter has ended."""
    failed: bool = False
    """It never came to run: what it had goes now, and it is remembered until its starter ends."""
    torn: bool = False
    """Nothing of it is left anywhere, and its number may be used again."""
    work: asyncio.Task[None] | None = None
    """Its tear-down."""
    mark: Mark | None = None
    """Of its connections, as the controller last answered. Not in the ledger: a new agent asks again."""
    before: counts.Counts | None = None
    """What had gone through its lane before it was the attempt's: the kernel's own. None: not known."""
    labelled: bool = False
    """The switch's port names it, or may."""
    holders: list[int] = field(default_factory=list)
    """Pidfds of those who were handed its namespace."""
    lasting_until: float = 0.0
    """Until then (monotonic clock) the controller's word counts that no phase gives the job anything else, unless it
    has said since that another policy is in force, or says nothing at all."""
    policy: str = ""
    """Digest of the policy that it was decided by."""
    parts: dict[str, float] = field(default_factory=dict)
    """How long each part of its beginning took, in seconds: for the log."""

    @property
    def id(self) -> str:
        return self.record.id

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.parts[name] = self.parts.get(name, 0.0) + time.monotonic() - began


class Attempts:
    def __init__(
        self,
        config: AgentConfig,
        boot_id: str,
        ledger: Ledger,
        pool: Pool,
        db: Ovsdb,
        conntrack: Conntrack,
        startd: Startd,
        controller: ControllerClient,
        standing: Standing,
        drain: Drain,
    ) -> None:
        self._config = config
        self._boot_id = boot_id
        self._ledger = ledger
        self._pool = pool
        self._db = db
        self._conntrack = conntrack
        self._startd = startd
        self._controller = controller
        self._standing = standing
        self._drain = drain
        self._all: dict[str, Attempt] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._unguarded: set[int] = set()
        self._telling: set[str] = set()

    # -- asking about attempts ------------------------------------------------------------------------------------

    def ids(self) -> list[str]:
        """Attempts the controller should know, for the heartbeat."""
        return [a.id for a in self._all.values() if a.told]

    def known(self, attempt: str) -> bool:
        return attempt in self._all

    def names_in_use(self) -> tuple[set[str], set[str]]:
        """Ports and namespaces that belong to attempts."""
        ports = {a.record.port for a in self._all.values() if a.record.lane}
        return ports, {name for a in self._all.values() for name in a.record.namespaces}

    def marked(self) -> list[Marked]:
        """Attempts whose connections fireflies speak of."""
        found = []
        for a in self._all.values():
            spec = a.record.spec
            if a.mark is None or spec is None or a.ending or a.record.sealed or a.record.state not in life.PHASE_OF:
                continue
            addresses = frozenset(address for address in (spec.ipv4, spec.ipv6) if address is not None)
            found.append(Marked(a.id, a.record.namespaces[-1], addresses, a.mark))
        return found

    def decided(self, status: AttemptStatus) -> None:
        """What the controller answered of an attempt."""
        if (attempt := self._all.get(status.id)) is not None:
            tag = status.decision.scitag
            attempt.mark = None if tag is None else Mark(tag.experiment, tag.activity)
            attempt.lasting_until = time.monotonic() + LASTING if status.decision.lasting else 0.0
            attempt.policy = status.policy
            self._standing.policy = status.policy

    async def ask_decisions(self) -> None:
        """Learn what the controller decides by now of the attempts of this node. Raises AgentError."""
        if self.ids():
            for status in await self._controller.attempts():
                self.decided(status)

    # -- requests -------------------------------------------------------------------------------------------------

    def _id(self, slot: str, pid: int, start: int) -> str:
        return f"{self._config.node}~{self._boot_id[:8]}~{slot}~{pid}~{start}"

    async def handle(self, request: Request, caller: trust.Caller, peer: trust.Peer) -> Reply:
        """Answer a believed caller. Raises trust.Refused."""
        attempt_id = self._id(caller.slot, caller.starter_pid, caller.starter_start)
        attempt = self._all.get(attempt_id)
        if attempt is not None and attempt.record.uid != peer.uid:
            raise trust.Refused(f"attempt {attempt_id} belongs to uid {attempt.record.uid}")
        mode = fallback.mode_of(self._config.libexec)
        if request is Request.BEGIN:
            step = life.step(attempt.record.state if attempt else None, request, job_exited=False)
            if step.refuse:
                raise trust.Refused(step.refuse)
            if order := self._drain.order():
                # Matched before the startd's ad said so. Not sent back into the queue: the access point would start it
                # here again at once, on the claim that it still has. A held job is released later, and goes elsewhere.
                return hold(HOLD_NETWORK, order.text())
            if unfit := fallback.trouble(mode, self._config.fallback.siblings_hidden):
                return hold(HOLD_NETWORK, unfit)
            return await self._begin(attempt_id, caller)
        if mode is not fallback.Mode.CAPABILITY and request in (Request.ENTER_JOB, Request.ENTER_PLUGIN):
            raise trust.Refused(f"nothing enters a job's network on this node (lark-attach says {mode})")
        if mode is fallback.Mode.CAPABILITY and request is Request.ATTACH_JOB:
            raise trust.Refused("this node does not attach jobs' own networks (lark-attach says capability)")
        if attempt is None or attempt.record.state is State.REGISTERING:
            state = attempt.record.state if attempt else None
            raise trust.Refused(life.step(state, request, job_exited=False).refuse or "no such attempt")
        if request is Request.EXITED:
            return await self._exited(attempt, peer)
        async with attempt.lock:
            exited = attempt.job_pidfd is not None and not trust.alive(attempt.job_pidfd)
            if exited:
                self._job_over(attempt)
            left = attempt.over or (attempt.exited and not attempt.comes_again)
            step = life.step(State.STAGE_OUT if left else attempt.record.state, request, exited)
            if step.refuse:
                raise trust.Refused(step.refuse)
            if request is Request.ENTER_JOB and attempt.comes_again and exited:
                self._hold_job(attempt, peer)
                await self._save(attempt)
            if request is Request.ATTACH_JOB:
                return await self._attach(attempt, caller, peer, mode)
            if step.advance is Phase.RUN:
                self._hold_job(attempt, peer)
                if self._lasts(attempt):
                    trouble = await self._note(attempt, Phase.RUN)
                    self._spawn(self._tell_run_later(attempt))
                else:
                    trouble = await self._advance(attempt, Phase.RUN)
                if trouble is not None:
                    return trouble
            if request is Request.ENTER_PLUGIN:
                await self._stage_out(attempt)
            if request is Request.STAGE_OUT:
                # An older configuration's hook. Told again: what was told before may have been the job's own doing.
                if exited and not attempt.hooked:
                    attempt.hooked, attempt.comes_again = True, False
                    self._job_over(attempt)
                    self._count(attempt, peer)
                if attempt.counted is not None:  # what the starter hears before it goes on is in the job's ad
                    await asyncio.wait([attempt.counted])
                return OK
            return await self._namespace(attempt, request, peer)

    def _lasts(self, attempt: Attempt) -> bool:
        """Does the job get nothing else in its run than it has, by all that the controller has said until now?"""
        now = time.monotonic()
        return now < attempt.lasting_until and self._standing.still(attempt.policy, now)

    def _hold_job(self, attempt: Attempt, peer: trust.Peer) -> None:
        """The caller will be the job to HTCondor: its end brings stage-out."""
        self._let_go_of_job(attempt)
        attempt.job_pidfd = os.dup(peer.pidfd)
        self._watch_job(attempt)
        # Nothing of the owner's has run yet: these files are the starter's.
        attempt.proxy = counts.proxy_in(f"/proc/{peer.pid}/cwd")
        attempt.comes_again = counts.comes_again(f"/proc/{peer.pid}/cwd")
        attempt.exited, attempt.counted = False, None
        attempt.record = attempt.record.model_copy(
            update={"job_pid": peer.pid, "job_start": trust.start_time(peer.pid)}
        )

    def _let_go_of_job(self, attempt: Attempt) -> None:
        if attempt.job_pidfd is not None:
            asyncio.get_running_loop().remove_reader(attempt.job_pidfd)
            os.close(attempt.job_pidfd)
            attempt.job_pidfd = None

    def _watch_job(self, attempt: Attempt) -> None:
        assert attempt.job_pidfd is not None
        asyncio.get_running_loop().add_reader(attempt.job_pidfd, self._job_over, attempt)

    def _job_over(self, attempt: Attempt) -> None:
        """The process that HTCondor takes for the job has ended."""
        assert attempt.job_pidfd is not None
        asyncio.get_running_loop().remove_reader(attempt.job_pidfd)
        if attempt.record.state is State.RUN and not attempt.over and not attempt.comes_again:
            attempt.over = True
            self._spawn(self._stage_out_later(attempt))

    async def _exited(self, attempt: Attempt, peer: trust.Peer) -> Reply:
        """The wrapper has seen its job end, and waits with its own end until the starter has heard the counts. Brings
        nothing but counts. An ssh session's wrapper says the same of the session, which changes nothing."""
        step = life.step(attempt.record.state, Request.EXITED, job_exited=False)
        if step.refuse:
            raise trust.Refused(step.refuse)
        record = attempt.record
        if peer.pid != record.job_pid or trust.start_time(peer.pid) != record.job_start:
            if not trust.is_program(peer.pid, self._config.libexec / "lark-job"):
                raise trust.Refused("'exited' comes from the process that entered the network as the job only")
            return OK
        attempt.exited = True
        if attempt.counted is None:
            self._count(attempt, peer)
        assert attempt.counted is not None
        await asyncio.wait([attempt.counted])
        return OK

    async def _attach(self, attempt: Attempt, caller: trust.Caller, peer: trust.Peer, mode: fallback.Mode) -> Reply:
        """Plug the attempt's lane into the network namespace that the job brought: looked at before the phase changes,
        plugged when the policy of the run is in force, and looked at again before the job may start."""
        if unfit := fallback.trouble(mode, self._config.fallback.siblings_hidden):
            return hold(HOLD_NETWORK, unfit)
        helper = self._config.libexec / "lark-job"
        look = functools.partial(fallback.hold_namespace, peer, caller, mode, helper)
        fd = await netlink.in_thread(look)
        try:
            self._hold_job(attempt, peer)
            trouble = await self._advance(attempt, Phase.RUN)
            if trouble is not None:
                return trouble
            record, net = attempt.record, self._pool.network
            lane = plan.lane(net, record.lane) if net is not None else None
            if net is None or lane is None or record.spec is None or str(lane.ipv4) != record.spec.ipv4:
                return hold(HOLD_NETWORK, f"the job networks of {self._config.node} have changed since the job began")
            name = plan.attached_namespace(lane.namespace)
            attempt.record = record.model_copy(update={"namespaces": (*record.namespaces, name)})
            await self._save(attempt)  # a name in the ledger first: after a kill it is known what to take apart
            reached(Step.ATTACH_NOTED)
            if attempt.ending:
                raise trust.Refused("this attempt has ended")
            plugged = None if record.sealed else lane
            try:
                await netlink.in_thread(functools.partial(netlink.adopt_namespace, fd, name, plugged, net))
                reached(Step.ATTACH_CONFIGURED)
                await attempt.relays.open(name)
                reached(Step.ATTACH_RELAYED)
                fallback.check_again(peer, fd, helper)
            except netlink.NetworkError as e:
                log.error("attempt=%s job=%s cannot be attached: %s", attempt.id, attempt.label, e)
                return hold(HOLD_NETWORK, f"no job network on {self._config.node}: {e}")
            except trust.Refused:
                await netlink.in_thread(functools.partial(netlink.delete_device, lane.port))
                raise
            finally:
                if attempt.ending:  # its end may not have seen what was made meanwhile
                    await attempt.relays.close()
                    await netlink.in_thread(functools.partial(netlink.demolish, lane.port, [name]))
            if attempt.ending:
                raise trust.Refused("this attempt has ended")
            log.info(
                "attached: attempt=%s job=%s pid=%d mode=%s namespace=%s",
                attempt.id,
                attempt.label,
                peer.pid,
                mode,
                name,
            )
            return OK
        finally:
            os.close(fd)

    async def _namespace(self, attempt: Attempt, request: Request, peer: trust.Peer) -> Reply:
        if request is Request.ENTER_JOB and not attempt.ending:
            if not attempt.relays.there:  # a starter opens its one port before it asks for its job's network
                await attempt.relays.open(attempt.record.namespaces[-1])
            reached(Step.JOB_RELAYED)
        if attempt.ending:
            raise trust.Refused("this attempt has ended")
        try:
            fd = netlink.open_namespace(attempt.record.namespaces[-1])
        except netlink.NetworkError as e:
            log.error("attempt=%s job=%s has lost its namespace: %s", attempt.id, attempt.label, e)
            return hold(HOLD_NETWORK, f"the job network of attempt {attempt.id} is damaged; see the agent's log")
        reached(Step.JOB_OPENED)
        _close_dead(attempt.holders)
        attempt.holders.append(os.dup(peer.pidfd))
        return Reply("ok", fd)

    # -- begin ----------------------------------------------------------------------------------------------------

    async def _begin(self, attempt_id: str, caller: trust.Caller) -> Reply:
        record = Record(
            id=attempt_id,
            state=State.REGISTERING,
            lane=0,
            port="",
            namespaces=(),
            zone=0,
            boot_id=self._boot_id,
            slot=caller.slot,
            uid=caller.uid,
            starter_pid=caller.starter_pid,
            starter_start=caller.starter_start,
        )
        attempt = Attempt(record, os.dup(caller.starter_pidfd), Relays(attempt_id, caller.starter_pid))
        self._all[attempt_id] = attempt
        self._watch_starter(attempt)
        self._warn_unguarded(caller.uid)
        reached(Step.BEGIN_HEARD)
        attempt.beginning = asyncio.create_task(self._register(attempt, caller.startd_address))
        # The registration goes on if the hook is killed; only the end of the starter stops it.
        return await asyncio.shield(attempt.beginning)

    async def _register(self, attempt: Attempt, startd: str) -> Reply:
        began = time.monotonic()
        async with attempt.lock:
            try:
                reply = await self._try_register(attempt, startd)
            except GivenUp:
                return refused("the starter ended while its attempt began")
            except Held as e:
                reply = hold(e.subcode if 100 <= e.subcode <= 199 else HOLD_POLICY, e.text)
            except NotLiteral as e:
                reply = hold(HOLD_POLICY, e.text)
            except Unavailable as e:
                reply = hold(HOLD_CONTROLLER, f"{e.text}; no network policy could be put in force for this job")
            except Rejected as e:
                reply = hold(HOLD_NETWORK, f"the controller at {self._controller.url} refuses this node's request: {e}")
            except StartdError as e:
                reply = hold(HOLD_AGENT, e.text)
            except Unfit as e:
                reply = hold(HOLD_NETWORK, e.text)
            except (NoLane, AgentError) as e:
                reply = hold(HOLD_NETWORK, f"no job network on {self._config.node}: {e}")
            except Exception as e:
                log.exception("attempt=%s could not begin", attempt.id)
                reply = hold(HOLD_AGENT, f"internal error of the agent: {type(e).__name__}")
            if reply is OK:
                spent = (time.monotonic() - began) * 1000
                log.info(
                    "begin: attempt=%s job=%s uid=%d node=%s bridge=%s port=%s ipv4=%s sealed=%s ms=%.0f (%s)",
                    *(attempt.id, attempt.label, attempt.record.uid, self._config.node, self._config.bridge.name),
                    *(
                        attempt.record.port,
                        attempt.record.spec and attempt.record.spec.ipv4,
                        attempt.record.sealed,
                        spent,
                        ", ".join(f"{part} {took * 1000:.1f}" for part, took in attempt.parts.items()),
                    ),
                )
                return reply
            log.warning("not begun: attempt=%s job=%s: %s", attempt.id, attempt.label, reply.text)
            await self._fail(attempt)
            return reply

    async def _try_register(self, attempt: Attempt, startd: str) -> Reply:
        began = time.monotonic()
        reading = asyncio.create_task(self._read(attempt, startd))
        try:
            # What costs time whatever the job is: while the startd answers.
            lane = await self._reserve(attempt) if self._pool.network is not None else None
            found = await reading
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        wait = HELPER_PATIENCE - LAST_CALL - (time.monotonic() - began)
        wait = min(self._config.controller.wait, wait if lane is not None else wait - LANE_WAIT)
        if lane is None:
            wait_until = time.monotonic() + wait
            while self._pool.network is None:
                if attempt.ending or time.monotonic() > wait_until:
                    last = self._standing.registration
                    raise Unavailable(
                        f"controller {self._controller.url} has not said which addresses this node has"
                        + (f"; last error of the registration: {last}" if last else "")
                    )
                await asyncio.sleep(0.2)
            wait = max(1.0, wait_until - time.monotonic())
            lane = await self._reserve(attempt)
        if attempt.ending:
            raise GivenUp("the starter has ended")
        if order := self._drain.order():  # given meanwhile
            raise Unfit(order.text())
        try:
            spec = self._spec(lane, found.ad, found.slot, found.job)
        except ValidationError as e:
            problem = e.errors()[0]
            where = ".".join(str(p) for p in problem["loc"][:2])
            raise NotLiteral(
                f"the job's description cannot be sent to the controller: {where}: {problem['msg']}"
            ) from None
        attempt.record = attempt.record.model_copy(update={"spec": spec})
        attempt.told = True
        with attempt.part("controller"):
            status = await insist(lambda: self._controller.put_attempt(attempt.id, spec), wait, lambda: attempt.ending)
        reached(Step.BEGIN_TOLD)
        self._check(attempt, status)
        if attempt.ending:
            raise GivenUp("the starter has ended")
        if status.decision.sealed:
            await self._seal(attempt)
        self._set_state(attempt, State.STAGE_IN)
        with attempt.part("ledger"):
            await self._save(attempt)
        reached(Step.BEGIN_IN_FORCE)
        self._spawn(self._relay_ahead(attempt))
        self._spawn(self._label(attempt))
        return OK

    async def _read(self, attempt: Attempt, startd: str) -> SlotAd:
        """What the startd says of the job."""
        with attempt.part("startd"):
            found = await self._startd.job_on(
                attempt.record.slot, attempt.record.starter_start, startd, STARTD_PATIENCE, lambda: not attempt.ending
            )
        attempt.label = found.job or "?"
        reached(Step.BEGIN_READ)
        return found

    async def _reserve(self, attempt: Attempt) -> Lane:
        """A lane, and the record that it is this attempt's. Who fails from now on has it taken down."""
        if blind := self._standing.blind():
            raise Unfit(blind)
        with attempt.part("lane"):
            lane = await self._pool.acquire(LANE_WAIT, attempt.record.uid)
        reached(Step.BEGIN_LANE)
        order = self._drain.order()  # no record comes after it: who drains waits for the last
        if attempt.ending or order:
            await self._pool.give_back(lane)
            raise Unfit(order.text()) if order else GivenUp("the starter has ended")
        attempt.record = attempt.record.model_copy(
            update={"lane": lane.number, "port": lane.port, "namespaces": (lane.namespace,), "zone": lane.zone}
        )
        with attempt.part("ledger"):
            await self._save_first(attempt)
        reached(Step.BEGIN_NOTED)
        return lane

    def _spec(self, lane: Lane, ad: Any, slot: Any, job: str | None) -> AttemptSpec:
        return AttemptSpec(
            node=self._config.node,
            port=PortSpec(bridge=self._config.bridge.name, name=lane.port, ofport=lane.ofport),
            mac=lane.mac,
            ipv4=str(lane.ipv4),
            ipv6=str(lane.ipv6) if lane.ipv6 is not None else None,
            zone=lane.zone,
            phase=Phase.STAGE_IN,
            ad=ad,
            slot=slot,
            job=job,
        )

    def _check(self, attempt: Attempt, status: AttemptStatus) -> None:
        """The answer must be about this attempt, and say that every bridge concerned has it."""
        if status.id != attempt.id:
            raise Unavailable(f"controller answered about another attempt ({status.id})")
        self.decided(status)
        lacking = [b for b, r in status.bridges.items() if r is not BridgeRealisation.REALISED]
        if lacking:
            raise Unavailable(f"controller could not confirm the policy on {', '.join(sorted(lacking))}")

    async def _seal(self, attempt: Attempt) -> None:
        """An empty namespace for a job that gets no network; its lane stays, registered and unused."""
        name = plan.sealed_namespace(attempt.record.namespaces[0])
        names = (attempt.record.namespaces[0], name)
        attempt.record = attempt.record.model_copy(update={"sealed": True, "namespaces": names})
        await self._save(attempt)
        reached(Step.SEAL_NOTED)
        await netlink.in_thread(functools.partial(netlink.delete_namespace, name))
        await netlink.in_thread(functools.partial(netlink.create_namespace, name))
        reached(Step.SEAL_MADE)

    async def _relay_ahead(self, attempt: Attempt) -> None:
        """The starter's ports are mostly there when its job begins: the job need not wait for their relays later."""
        if fallback.mode_of(self._config.libexec) is fallback.Mode.CAPABILITY:  # else its namespace is yet to come
            async with attempt.lock:
                if attempt.record.state is State.STAGE_IN and not attempt.ending:
                    await attempt.relays.open(attempt.record.namespaces[-1])

    async def _label(self, attempt: Attempt) -> None:
        await asyncio.sleep(LABEL_PAUSE)
        if attempt.ending:
            return
        attempt.labelled = True
        with contextlib.suppress(AgentError):
            await self._db.label(attempt.record.port, attempt.id)
            reached(Step.BEGIN_LABELLED)

    async def _fail(self, attempt: Attempt) -> None:
        """The job will be held. Give everything back now; remember the attempt until its starter ends."""
        self._set_state(attempt, State.FAILED)
        attempt.failed = True
        reached(Step.BEGIN_FAILED)
        if attempt.record.lane and not attempt.ending:
            self._see_to(attempt)

    def _guarded(self, uid: int) -> bool:
        return any(low <= uid <= high for low, high in self._config.guard.uids)

    def _alone(self, ended: Attempt) -> bool:
        """Whether an attempt was the last of its uid, and the uid is one that does nothing on this node but jobs."""
        others = (a for a in list(self._all.values()) if a.record.uid == ended.record.uid and not a.ending)
        return ended.ending and self._guarded(ended.record.uid) and not any(others)

    def _warn_unguarded(self, uid: int) -> None:
        if uid in self._unguarded or self._guarded(uid):
            return
        self._unguarded.add(uid)
        log.warning("job uid %d is not among guard.uids: its code outside job networks is not stopped", uid)

    # -- phases ---------------------------------------------------------------------------------------------------

    async def _advance(self, attempt: Attempt, phase: Phase) -> Reply | None:
        """None when the phase is in force everywhere; else what to reply."""
        before = attempt.record
        trouble = await self._note(attempt, phase)
        return trouble or await self._put_in_force(attempt, phase, before)

    async def _note(self, attempt: Attempt, phase: Phase) -> Reply | None:
        """Write a new phase down; what to reply if that cannot be, and it is as it was."""
        before = attempt.record
        assert before.spec is not None
        spec = before.spec.model_copy(update={"phase": phase})
        attempt.record = before.model_copy(update={"state": life.STATE_OF[phase], "spec": spec})
        try:
            await self._save(attempt)
            reached(Step.PHASE_NOTED)
        except AgentError as e:
            log.error("phase %s cannot be written down: attempt=%s job=%s: %s", phase, attempt.id, attempt.label, e)
            if phase is not Phase.STAGE_OUT:  # the job is over then: this phase must come into force all the same
                attempt.record = before
                return hold(HOLD_NETWORK, f"the agent of {self._config.node} cannot write its records: {e}")
        return None

    async def _put_in_force(self, attempt: Attempt, phase: Phase, before: Record | None) -> Reply | None:
        """Tell the controller of a phase that is written down. None when it is in force everywhere; else what to reply:
        it is undone then. `before` None: the job is in that phase already, and nothing waits for us."""
        wait = min(self._config.controller.wait, HELPER_PATIENCE - LAST_CALL)
        if before is None or phase is Phase.STAGE_OUT:
            wait = min(wait, EXIT_WAIT - LAST_CALL)
        try:
            status = await insist(lambda: self._tell_phase(attempt, phase), wait, lambda: attempt.ending)
            reached(Step.PHASE_TOLD)
            self._check(attempt, status)
        except GivenUp as e:
            return refused(str(e))
        except AgentError as e:
            if before is None or phase is Phase.STAGE_OUT:
                self.told_to_drop(attempt.id)  # the job is there, or over: this phase must come into force, if late
            elif not attempt.ending:
                attempt.record = before
                with contextlib.suppress(AgentError):  # a later phase on disk: the next agent tells the controller
                    await self._save(attempt)
            log.error("phase %s not in force: attempt=%s job=%s: %s", phase, attempt.id, attempt.label, e)
            if isinstance(e, Held):
                return hold(HOLD_POLICY, e.text)
            subcode = HOLD_CONTROLLER if isinstance(e, Unavailable) else HOLD_NETWORK
            return hold(subcode, f"phase {phase} could not be put in force: {e}")
        log.info("phase: attempt=%s job=%s phase=%s", attempt.id, attempt.label, phase)
        return None

    async def _tell_run_later(self, attempt: Attempt) -> None:
        """The controller hears that the job runs. It does so under the policy in force already, which is the same."""
        await asyncio.sleep(RUN_PAUSE)
        async with attempt.lock:
            if attempt.record.state is State.RUN and not attempt.over and not attempt.ending:
                await self._put_in_force(attempt, Phase.RUN, None)

    async def _tell_phase(self, attempt: Attempt, phase: Phase) -> AttemptStatus:
        try:
            return await self._controller.patch_phase(attempt.id, phase)
        except Rejected as e:
            if e.status != 404 or attempt.record.spec is None or attempt.ending:
                raise
            log.warning("controller had forgotten attempt=%s; registering it again", attempt.id)
            return await self._controller.put_attempt(attempt.id, attempt.record.spec)

    async def _stage_out_later(self, attempt: Attempt) -> None:
        await asyncio.sleep(STAGE_OUT_PAUSE)
        async with attempt.lock:
            await self._stage_out(attempt)

    async def _stage_out(self, attempt: Attempt) -> None:
        """The phase, if it is time for it. A job's result is not lost for it: what fails here is told later."""
        if attempt.over and attempt.record.state is State.RUN and not attempt.ending:
            await self._advance(attempt, Phase.STAGE_OUT)

    # -- counts ---------------------------------------------------------------------------------------------------

    def _count(self, attempt: Attempt, peer: trust.Peer) -> None:
        attempt.proxy = attempt.proxy or counts.proxy_in(f"/proc/{peer.pid}/cwd")
        attempt.counted = self._spawn(self._tell_counts(attempt))

    async def _tell_counts(self, attempt: Attempt) -> None:
        """The job's ad says from now on what went through its network. What fails here costs the job nothing."""
        port, proxy = attempt.record.port, attempt.proxy
        found = await netlink.in_thread(lambda: counts.read(port))
        why = "the job's directory names no chirp port of the starter (ENABLE_CHIRP_DELAYED, WantDelayedUpdates)"
        if found is None:
            why = f"{port} is gone"
        elif proxy is not None:
            own = counts.since(found, attempt.before)
            # Nothing of who sent and received nothing was refused or dropped: it costs the controller no question.
            silent = not own.outgoing_packets and not own.incoming_packets
            refused, dropped = (0, None) if silent else await self._refused(attempt)
            said = counts.attributes(own, refused, dropped)
            why = await counts.tell(attempt.record.starter_pid, proxy, said)
        reached(Step.JOB_COUNTED)
        if why:
            log.info("counts are not in the job's ad: attempt=%s job=%s: %s", attempt.id, attempt.label, why)

    async def _log_counts(self, attempt: Attempt, port: str) -> None:
        """The record of what an attempt sent and received in all its phases: of each that had a job, once."""
        if attempt.record.job_pid is None:
            return
        if (found := await netlink.in_thread(lambda: counts.read(port))) is not None:
            own = counts.since(found, attempt.before)
            log.info(
                "counted: attempt=%s job=%s uid=%d incoming=%d B/%d packets outgoing=%d B/%d packets",
                *(attempt.id, attempt.label, attempt.record.uid),
                *(own.incoming, own.incoming_packets, own.outgoing, own.outgoing_packets),
            )

    async def _refused(self, attempt: Attempt) -> tuple[int | None, Dropped | None]:
        """Packets of the attempt that the policy has refused, and what its rate has dropped; None: not to be had."""
        try:
            async with asyncio.timeout(REFUSED_PATIENCE):
                status = await self._controller.get_attempt(attempt.id)
        except (AgentError, TimeoutError):
            return None, None
        if status.counters is None:
            return None, None
        return sum(denial.packets for denial in status.counters.denied), status.counters.dropped

    # -- the end --------------------------------------------------------------------------------------------------

    def _watch_starter(self, attempt: Attempt) -> None:
        asyncio.get_running_loop().add_reader(attempt.starter_pidfd, self._starter_ended, attempt)

    def _starter_ended(self, attempt: Attempt) -> None:
        asyncio.get_running_loop().remove_reader(attempt.starter_pidfd)
        attempt.ending = True
        reached(Step.END_SEEN)
        self._see_to(attempt)

    def _see_to(self, attempt: Attempt) -> None:
        """Have it taken down, unless somebody is at it."""
        if attempt.work is None or attempt.work.done():
            attempt.work = self._spawn(self._end(attempt))

    async def watch(self) -> None:
        """Takes up every tear-down that died, whatever killed it. Until cancelled."""
        while True:
            await asyncio.sleep(WATCH_PAUSE)
            for attempt in list(self._all.values()):
                over = attempt.ending or (attempt.failed and attempt.record.lane and not attempt.torn)
                if over and (attempt.work is None or attempt.work.done()):
                    log.error("tear-down taken up again: attempt=%s job=%s", attempt.id, attempt.label)
                    self._see_to(attempt)

    async def _end(self, attempt: Attempt) -> None:
        if attempt.beginning is not None and not attempt.record.lane:
            await asyncio.wait([attempt.beginning])  # it has nothing yet, and sees that it should stop
        if attempt.record.lane and not attempt.torn:
            if attempt.ending:
                self._set_state(attempt, State.CLOSING)
            await self._tear_down(attempt, attempt.record)
        if attempt.ending:
            self._forget(attempt)

    def _forget(self, attempt: Attempt) -> None:
        if self._all.pop(attempt.id, None) is None:
            return
        self._let_go_of_job(attempt)
        for fd in (attempt.starter_pidfd, *attempt.holders):
            os.close(fd)
        attempt.holders.clear()

    async def _tear_down(self, attempt: Attempt, record: Record) -> None:
        """Everything goes at once; the number comes back when the controller has confirmed."""
        began = time.monotonic()
        over = asyncio.Event()
        # A record whose starter is dead says so by that; for people it says so too, unless all is over in a moment.
        patience = NOTED_LATER if attempt.ending else 0.0
        closing = record.model_copy(update={"state": State.CLOSING})
        remembering = asyncio.create_task(self._remember(attempt, closing, over, patience))
        try:
            kept = await self._take_down(attempt, record, began)
            reached(Step.END_TORN)
            if attempt.told:
                kept = await self._delete_or_destroy(attempt, record, kept)
            reached(Step.END_DELETED)
            # Only now do no flows of it remember connections any more. (Without its port they carried nothing before.)
            # Through a lane that is kept nothing ever went.
            if not kept:
                await self._forget_connections(attempt, record.zone)
            reached(Step.END_FLUSHED)
        finally:
            over.set()
            await asyncio.wait([remembering])  # a record written after it was struck out would stay for ever
        attempt.told = False
        await self._strike(attempt)
        reached(Step.END_STRUCK)
        attempt.torn = True
        if kept:
            if await self._pool.keep(record.lane, record.uid):
                reached(Step.END_KEPT)
                return
            await self._destroy(attempt, record)
        self._pool.release(record.lane)
        reached(Step.END_RELEASED)
        await self._pool.unlimit(record.zone)
        reached(Step.END_UNLIMITED)

    async def _remember(self, attempt: Attempt, record: Record, over: asyncio.Event, patience: float) -> None:
        """Write down that an attempt ends, as soon as the disk lets us. Nothing waits for it but the striking out."""
        if patience:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), patience)
        pause = LEDGER_PAUSE
        while not over.is_set():
            try:
                await netlink.in_thread(functools.partial(self._ledger.save, record))
                return
            except (AgentError, OSError) as e:
                log.error("its end is not written down yet: attempt=%s job=%s: %s", attempt.id, attempt.label, e)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), pause)
            pause = min(pause * 2, LEDGER_PAUSE_LONGEST)

    async def _strike(self, attempt: Attempt) -> None:
        """Take the record away; insists, because the number is in use as long as a record names it."""
        pause = LEDGER_PAUSE
        while True:
            try:
                await netlink.in_thread(functools.partial(self._ledger.forget, attempt.id))
                return
            except (AgentError, OSError) as e:
                log.error(
                    "record not removed yet, its number stays in use: attempt=%s job=%s: %s",
                    attempt.id,
                    attempt.label,
                    e,
                )
            await asyncio.sleep(pause)
            pause = min(pause * 2, LEDGER_PAUSE_LONGEST)

    async def _take_down(self, attempt: Attempt, record: Record, began: float) -> bool:
        """What the attempt has on this node goes; insists. Says whether its lane is kept, as it was made."""
        await attempt.relays.close()
        reached(Step.END_UNRELAYED)
        await self._log_counts(attempt, record.port)
        outcome = await self._leave(attempt, record)
        killed = list(outcome.killed)
        if self._alone(attempt):
            prefix = plan.namespace_prefix(self._config.node)
            killed += await netlink.in_thread(
                lambda: netlink.kill_strays(record.uid, prefix, lambda: self._alone(attempt))
            )
        log.info(
            "torn down: attempt=%s job=%s node=%s bridge=%s port=%s killed=%s lane=%s ms=%.0f",
            *(attempt.id, attempt.label, self._config.node, self._config.bridge.name, record.port),
            *(
                ",".join(map(str, killed)) or "none",
                "kept" if outcome.kept else f"gone ({outcome.why})",
                (time.monotonic() - began) * 1000,
            ),
        )
        if outcome.kept:
            return True
        async with attempt.lock:
            # What was on its way to the controller, or to the disk, has arrived: the deletion cannot be overtaken. And
            # what was still being made (a sealed namespace, a relay) when the starter ended goes now.
            await attempt.relays.close()
            names = [name for name in attempt.record.namespaces if netlink.named(name)]
            if names:
                await netlink.in_thread(functools.partial(netlink.demolish, None, names))
        return False

    async def _leave(self, attempt: Attempt, record: Record) -> Outcome:
        """Destroy the lane, unless nobody can ever tell that the attempt had it. In doubt it goes; insists."""
        if not (why := _doubt(attempt, record)):
            async with attempt.lock:  # who asks from now on sees that it is over
                await attempt.relays.close()
                (name,) = record.namespaces
                try:
                    return await self._pool.leave(record.lane, record.port, name, attempt.holders)
                except (AgentError, OSError) as e:
                    why = str(e)
        return Outcome(tuple(await self._destroy(attempt, record)), why)

    async def _destroy(self, attempt: Attempt, record: Record) -> list[int]:
        while True:
            try:
                return await self._pool.destroy(record.port, record.namespaces)
            except (AgentError, OSError) as e:
                log.error("not yet torn down: attempt=%s job=%s: %s", attempt.id, attempt.label, e)
                await asyncio.sleep(1)

    async def _delete_or_destroy(self, attempt: Attempt, record: Record, kept: bool) -> bool:
        """Insist on the deletion. A lane that is kept does not wait for it long: then it goes. Says if it is there."""
        deletion = asyncio.create_task(self._delete(attempt.id))
        try:
            if kept and not (await asyncio.wait([deletion], timeout=KEEP_PATIENCE))[0]:
                await self._destroy(attempt, record)
                kept = False
            await deletion
        finally:
            deletion.cancel()
        return kept

    async def _forget_connections(self, attempt: Attempt, zone: int) -> None:
        try:
            await self._conntrack.flush(zone)
        except AgentError as e:
            log.error("connections of zone %d not flushed: attempt=%s: %s", zone, attempt.id, e)

    async def _delete(self, attempt_id: str) -> None:
        """Insist until the controller and every bridge it can reach have let go of the attempt."""
        pause = DELETE_PAUSE
        said = False
        while True:
            try:
                gone = await self._controller.delete_attempt(attempt_id)
            except AgentError as e:
                trouble = str(e)
            else:
                pending = [b for b, r in gone.bridges.items() if r is BridgeRealisation.PENDING] if gone else []
                if not pending:
                    log.info("deleted: attempt=%s", attempt_id)
                    return
                trouble = f"waiting for {', '.join(sorted(pending))}"
            if not said:
                log.warning("attempt=%s not deleted yet, its address stays in quarantine: %s", attempt_id, trouble)
            said = True
            await asyncio.sleep(pause)
            pause = min(pause * 2, DELETE_PAUSE_LONGEST)

    # -- restart, heartbeat, shutdown -----------------------------------------------------------------------------

    async def restore(self) -> None:
        """Go on with what the ledger knows. Call before the pool builds anything."""
        for record in await asyncio.to_thread(self._ledger.load):
            if record.lane:
                self._pool.claim_number(record.lane)
            fd = self._reopen(record.boot_id, record.starter_pid, record.starter_start)
            attempt = Attempt(
                record,
                fd if fd is not None else os.pidfd_open(os.getpid()),
                Relays(record.id, record.starter_pid),
                label=(record.spec.job if record.spec else None) or "?",
                told=True,
            )
            self._all[record.id] = attempt
            if fd is None:
                attempt.ending = True
                self._see_to(attempt)
            elif record.state in (State.REGISTERING, State.CLOSING, State.FAILED):
                # Its hook has lost the connection and holds the job.
                self._watch_starter(attempt)
                self._set_state(attempt, State.FAILED)
                attempt.failed = True
                if record.lane:
                    self._see_to(attempt)
            else:
                if record.job_pid is not None and record.job_start is not None:
                    job = self._reopen(record.boot_id, record.job_pid, record.job_start)
                    # A job that is gone: any pidfd of an exited process says so.
                    attempt.job_pidfd = job if job is not None else _exited_pidfd()
                    attempt.comes_again = counts.comes_again(f"/proc/{record.job_pid}/cwd")
                    self._watch_job(attempt)
                self._watch_starter(attempt)
                self._spawn(self._go_on(attempt))
            log.info("from the ledger: attempt=%s job=%s state=%s", attempt.id, attempt.label, attempt.record.state)

    def _reopen(self, boot_id: str, pid: int, start: int) -> int | None:
        if boot_id != self._boot_id:
            return None
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            return None
        try:
            if trust.start_time(pid) == start and trust.alive(fd):
                return fd
        except trust.Refused:
            pass
        os.close(fd)
        return None

    async def _go_on(self, attempt: Attempt) -> None:
        """A running attempt after a restart of the agent: its relays again, and the controller told again."""
        async with attempt.lock:
            there = netlink.namespace_inode(attempt.record.namespaces[-1]) is not None
            if attempt.record.state is not State.STAGE_IN and not attempt.ending and there:
                await attempt.relays.open(attempt.record.namespaces[-1])
        await self.tell_again(attempt.id)

    async def tell_again(self, attempt_id: str) -> None:
        """PUT an attempt the controller may have forgotten. Idempotent; insists while the attempt lives."""
        if attempt_id in self._telling:
            return
        self._telling.add(attempt_id)
        try:
            await self._tell_again(attempt_id)
        finally:
            self._telling.discard(attempt_id)

    async def _tell_again(self, attempt_id: str) -> None:
        while (attempt := self._all.get(attempt_id)) is not None and attempt.record.state in life.PHASE_OF:
            async with attempt.lock:
                spec = attempt.record.spec
                if spec is None or attempt.ending or attempt.record.state not in life.PHASE_OF:
                    return
                try:
                    await self._put_or_catch_up(attempt, spec)
                    return
                except Unavailable as e:
                    log.warning("attempt=%s job=%s not registered again yet: %s", attempt.id, attempt.label, e)
                except AgentError as e:
                    log.error("controller refuses running attempt=%s job=%s: %s", attempt.id, attempt.label, e)
                    return
            await asyncio.sleep(2)

    async def _put_or_catch_up(self, attempt: Attempt, spec: AttemptSpec) -> None:
        try:
            self.decided(await self._controller.put_attempt(attempt.id, spec))
        except Rejected as e:
            if e.status != 409:
                raise
            # Killed between writing the new phase down and telling the controller.
            now = await self._controller.get_attempt(attempt.id)
            self.decided(now)
            # What only one of us understands may differ: it was registered with an older controller, or from one.
            theirs = now.spec.model_copy(update={"phase": spec.phase})
            if words(theirs, OLDEST_PROTOCOL) != words(spec, OLDEST_PROTOCOL):
                raise
            if now.spec.phase is not spec.phase:
                await self._controller.patch_phase(attempt.id, spec.phase)

    def told_to_drop(self, attempt_id: str) -> None:
        """The controller does not know an attempt of ours."""
        self._spawn(self.tell_again(attempt_id))

    def told_of_stranger(self, attempt_id: str) -> None:
        """The controller knows an attempt of this node that we do not have."""
        if attempt_id not in self._all and attempt_id.startswith(f"{self._config.node}~"):
            log.warning("controller still had attempt=%s; deleting it", attempt_id)
            self._spawn(self._delete_once(attempt_id))

    async def _delete_once(self, attempt_id: str) -> None:
        with contextlib.suppress(AgentError):  # the next heartbeat says it again
            await self._controller.delete_attempt(attempt_id)

    async def shut_down(self) -> None:
        """Stop working; running jobs keep their networks, the ledger keeps the rest."""
        loop = asyncio.get_running_loop()
        for attempt in self._all.values():
            loop.remove_reader(attempt.starter_pidfd)
            if attempt.job_pidfd is not None:
                loop.remove_reader(attempt.job_pidfd)
            await attempt.relays.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- small things ---------------------------------------------------------------------------------------------

    def _set_state(self, attempt: Attempt, state: State) -> None:
        attempt.record = attempt.record.model_copy(update={"state": state})

    async def _save(self, attempt: Attempt) -> None:
        if not attempt.ending:
            await netlink.in_thread(functools.partial(self._ledger.save, attempt.record))

    async def _save_first(self, attempt: Attempt) -> None:
        """And see what has gone through the lane before it was anybody's, while a thread is at hand."""
        record = attempt.record
        unseen = self._pool.unseen(record.lane)

        def note() -> tuple[counts.Counts | None, unused.Reading | None]:
            self._ledger.save(record)
            so_far = counts.read(record.port)
            return so_far, unused.read([unseen])[0] if unseen is not None else None

        if not attempt.ending:
            attempt.before, reading = await netlink.in_thread(note)
            if reading is not None:
                self._pool.seen(record.lane, reading)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the agent failed", exc_info=task.exception())


def _doubt(attempt: Attempt, record: Record) -> str:
    """Why the lane of an attempt is not kept, whatever the kernel says of it."""
    if not attempt.ending or attempt.failed:
        return "the attempt failed"
    if record.sealed or len(record.namespaces) != 1:
        return "its job had another network"
    if attempt.labelled:
        return "its port was labelled"
    # Whoever holds the lock may be making something in there, and perhaps waits for the controller.
    return "something was still being done for it" if attempt.lock.locked() else ""


def _close_dead(pidfds: list[int]) -> None:
    for fd in [fd for fd in pidfds if not trust.alive(fd)]:
        pidfds.remove(fd)
        os.close(fd)


def _exited_pidfd() -> int:
    """A pidfd of a process that has exited."""
    pid = os.posix_spawn("/bin/true", ["true"], {})
    fd = os.pidfd_open(pid)
    os.waitpid(pid, 0)
    return fd
