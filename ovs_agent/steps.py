"""The moments at which a dying agent leaves the node in a state of its own: each between two things done outside it.

The agent may be killed at any of them (out of memory, `kill -9`, a crash) and must go on or tidy up when it is started
again. Here they have names, so that tests can end the real process at every single one.

Invariants: `reached` is called right after what the step's text says was done, and before the next thing that anybody
else could notice. In production nobody listens, and it costs a call. Every step is reached from the code, and every one
has a test that kills the agent there (`tests/unit/agent/test_agent_steps.py` compares).
"""

from __future__ import annotations

import enum
from collections.abc import Callable


class Step(enum.StrEnum):
    """What was done last."""

    # The agent starts.
    START_LOCKED = "the state directory is ours"
    START_GUARDED = "nftables rules are in place"
    START_LISTENING = "the socket has its name"
    START_RESTORED = "the ledger was read, tear-downs have begun"
    START_REMEMBERED = "the address range of the last run is in use"
    START_SWEPT = "what belongs to no attempt is gone"
    START_SERVING = "callers are answered"
    SWEEP_KILLED = "a stranger's processes are dead"
    SWEEP_DEVICES = "strangers' devices are gone"
    SWEEP_NAMESPACES = "strangers' namespaces are gone"
    SWEEP_PORTS = "strangers' ports are gone from the switch"

    # The node registers.
    NODE_TOLD = "the controller knows the node"
    NODE_ADOPTED = "the granted range is in use"
    NODE_GRANT_BESIDE = "the grant is on disk under another name"
    NODE_NOTED = "the grant is on disk"
    NODE_BEAT = "a heartbeat was answered"
    HOST_PORT_BESIDE = "the host's addresses are on disk under another name"

    # The ledger.
    RECORD_BESIDE = "a record is on disk under another name"
    RECORD_IN_PLACE = "a record is on disk"
    RECORD_UNLINKED = "a record is unlinked"

    # The pool builds a lane.
    LANE_NAMED = "a namespace has a file for its name"
    LANE_NAMESPACE = "a lane has its namespace"
    LANE_DEVICE = "a lane has its pair of devices"
    LANE_UP = "the host's end is up"
    LANE_CONFIGURED = "the job's end has its addresses"
    LANE_LIMITED = "its connections are limited"
    LANE_PLUGGED = "it is plugged into the switch"
    LANE_READY = "it is in the pool"

    # An attempt begins.
    BEGIN_HEARD = "a believed hook said begin"
    BEGIN_READ = "the job's attributes are known"
    BEGIN_LANE = "a lane was taken from the pool"
    BEGIN_NOTED = "the attempt is in the ledger"
    BEGIN_TOLD = "the controller says that its policy is in force"
    SEAL_NOTED = "the name of a sealed namespace is in the ledger"
    SEAL_MADE = "the sealed namespace is there"
    BEGIN_IN_FORCE = "the ledger says that the job may run"
    BEGIN_LABELLED = "the switch's port names the attempt"
    BEGIN_FAILED = "the attempt is refused"

    # Its phases.
    PHASE_NOTED = "the new phase is in the ledger"
    PHASE_TOLD = "the controller says that the phase is in force"
    JOB_RELAYED = "the starter's ports are relayed into the namespace"
    JOB_OPENED = "the namespace is about to be given"
    JOB_COUNTED = "the starter was told what the job sent and received"
    ATTACH_NOTED = "the name of the job's own namespace is in the ledger"
    ATTACH_NAMED = "the job's own namespace has that name"
    ATTACH_MOVED = "the lane's end is in the job's own namespace"
    ATTACH_CONFIGURED = "it has its addresses there"
    ATTACH_RELAYED = "the starter's ports are relayed into it"
    ANSWERED = "a caller has its answer"

    # Its end.
    END_SEEN = "the starter's pidfd closed"
    END_UNRELAYED = "its relays are closed"
    DEMOLISH_KILLED = "its processes are dead"
    DEMOLISH_DEVICE = "its device is gone"
    DEMOLISH_NAMESPACES = "its namespaces are gone"
    END_UNUSED = "its lane was found as it was made"
    END_UNPLUGGED = "its port is gone from the switch"
    END_FLUSHED = "its connections are forgotten"
    END_TORN = "nothing of it is left on the node"
    END_DELETED = "the controller and every bridge have let go of it"
    END_STRUCK = "its record is gone"
    END_KEPT = "its lane waits for the next job of its user"
    END_RELEASED = "its number may be used again"
    END_UNLIMITED = "the limit of its connections is lifted"


def _nobody(step: Step) -> None:
    """Production: nobody listens."""


told: Callable[[Step], None] = _nobody
"""Whom a step is told. Only a test replaces it, in a process of its own."""


def reached(step: Step) -> None:
    told(step)
