"""The life of an attempt as a table: in which state which request is answered how. Pure: no clock, no socket.

    begin            enter job             job's pidfd closes           starter's pidfd closes
  ─────────▶ REGISTERING ──▶ STAGE_IN ──────────▶ RUN ──────────────▶ STAGE_OUT ──────────────▶ CLOSING ──▶ (gone)
                  │ refused by policy, controller unreachable, …                                   ▲
                  └──────────────▶ FAILED ─────────────────────────────────────────────────────────┘

Invariants: phases only advance; `begin` is heard once; nothing is given in REGISTERING, FAILED and CLOSING.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from policies.wire import Phase


class State(enum.StrEnum):
    REGISTERING = "registering"
    STAGE_IN = "stage-in"
    RUN = "run"
    STAGE_OUT = "stage-out"
    FAILED = "failed"
    CLOSING = "closing"


class Request(enum.StrEnum):
    BEGIN = "begin"
    ENTER_JOB = "enter job"
    ATTACH_JOB = "attach job"
    ENTER_PLUGIN = "enter plugin"
    EXITED = "exited"
    STAGE_OUT = "stage-out"
    PING = "ping"


@dataclass(frozen=True, slots=True)
class Step:
    """What to do: refuse (with a text), or advance to a phase first (None: stay), then answer."""

    refuse: str | None = None
    advance: Phase | None = None


PHASE_OF = {State.STAGE_IN: Phase.STAGE_IN, State.RUN: Phase.RUN, State.STAGE_OUT: Phase.STAGE_OUT}
STATE_OF = {phase: state for state, phase in PHASE_OF.items()}


def step(state: State | None, request: Request, job_exited: bool) -> Step:
    """The answer to a trusted caller's request. `state` None: this attempt was never begun."""
    if request is Request.BEGIN:
        return Step() if state is None else Step("this attempt has begun already; begin is heard once")
    if state is None:
        return Step("this attempt has not begun: is the prepare hook configured on this node?")
    if state is State.REGISTERING:
        return Step("this attempt's network is not ready yet")
    if state is State.FAILED and request is Request.STAGE_OUT:
        return Step()  # HTCondor runs the exit hook of a job that was held, too: there is nothing to do
    if state is State.FAILED:
        return Step("this attempt was refused a network when it began")
    if state is State.CLOSING:
        return Step("this attempt has ended")
    match request:
        case Request.ENTER_PLUGIN:
            return Step()
        case Request.ENTER_JOB if state is State.STAGE_IN:
            return Step(advance=Phase.RUN)
        case Request.ENTER_JOB if state is State.RUN:
            return Step()
        case Request.ATTACH_JOB if state is State.STAGE_IN:
            return Step(advance=Phase.RUN)
        case Request.ATTACH_JOB if state is State.RUN:
            return Step(
                "this attempt's job has its network already; on nodes where the helper's file capability is not used "
                "(lark-attach) nothing else can enter it, neither condor_ssh_to_job nor a second process"
            )
        case Request.ENTER_JOB | Request.ATTACH_JOB:
            return Step("the job has exited; phases only advance")
        case Request.EXITED | Request.STAGE_OUT if state is State.STAGE_OUT:
            return Step()
        case Request.EXITED if state is State.RUN:
            return Step()  # the wrapper's own end, not its word, brings stage-out
        case Request.EXITED | Request.STAGE_OUT if state is State.STAGE_IN:
            # Only owner code that runs before the job (PreCmd) could gain by this, or a hook of a job that never
            # started, which loses nothing.
            return Step("no job has run yet")
        case Request.STAGE_OUT if job_exited:
            return Step()  # its end, which brings stage-out, was seen without this
        case Request.STAGE_OUT:
            return Step("the job is still running")
    return Step(f"{request} is no request about an attempt")


def parse(datagram: bytes) -> Request | None:
    """A request from its datagram (at most 256 bytes of ASCII), or None for garbage. `ping` is answered to anyone."""
    if len(datagram) > 256 or not datagram.startswith(b"LARK1 "):
        return None
    try:
        return Request(datagram[6:].rstrip(b"\n\0").decode("ascii"))
    except (UnicodeDecodeError, ValueError):
        return None
