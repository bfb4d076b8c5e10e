"""The pipeline: every table, what it decides, what it may match and write, where a packet may go from it.

Declaration order is table order. A flow that this declaration does not allow cannot be built: `entry()` is the only
way the compiler makes flows, and it checks each one. `docs/pipeline.md` shows real dumps of every table.

Worker role:   HOST_LANE (agent) → CLASSIFY → SPOOF_GUARD → NEIGHBOURS → PLUMBING → SLICE → SERVICE → SERVICE_PORT
               → SERVICE_PAIR → GRANT → TRACK
               for no protected service: SERVICE, … or SERVICE_PAIR → NODE → TRACK (or REPLY_TRACK: an answer?)
               between jobs:            SLICE, PLUMBING or REPLY → MEMBER → (EXPOSED) → TRACK
               from outside:            CLASSIFY → RECEIVER → REPLY → SERVICE_PORT → SERVICE_PAIR → GRANT → TRACK
                                        → DELIVER
                                        or … → REPLY_TRACK → REPLY_STATE → (EXPOSE_SOURCE → EXPOSE_PORT) → DELIVER
               anything refused:        … → DENIED (counted for the attempt) → ENFORCE (dropped; in audit mode let on)
               what a job sends:        TRACK → (KIND → KIND_PORT → CLASS → MARK) → OUT → uplink or DELIVER
                                        (MARK alone where there are scitags and no classes)
               what a job has of rate and share: on its own flows in SPOOF_GUARD and DELIVER, and if it has both, in
                                        SPOOF_GUARD → SHARE_OUT → NEIGHBOURS and DELIVER → SHARE_IN
Gate role:     CLASSIFY → GATE_SOURCE → GATE_IDENTITY → GATE_SERVICE → GATE_SERVICE_PORT
               → GATE_SERVICE_PAIR → GATE_GRANT → GATE_SERVERS
               from servers: CLASSIFY → GATE_RETURN → GATE_RETURN_PORT → GATE_RETURN_PAIR → GATE_RECEIVER
               → GATE_RETURN_GRANT → GATE_WORKERS
Border role:   CLASSIFY → BORDER_END → BORDER_JOB → BORDER_SENDER → BORDER_SENDER_PORT → BORDER_RECEIVER
               → BORDER_RECEIVER_PORT → BORDER_CLASS → BORDER_MARK → BORDER_OUT; of a job's packet only its far end is
               looked at. Each of these tables always has a flow for what is left: no change of policy stops traffic.

Hosts and ports of services are staged: the host loads a register, the port loads another, and a third table compares
the two. So services of N hosts and M ports cost N + M flows, also where they share hosts or ports, and one flow for
each pair of a set of hosts and a set of ports that belong to one service.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Mapping
from dataclasses import dataclass

from ryu_apps.openflow import fields
from ryu_apps.openflow.flows import (
    Action,
    ConnTrack,
    Cookie,
    FieldMatch,
    Flow,
    Goto,
    Meter,
    Move,
    Output,
    OutputReg,
    SetField,
    match,
)


class Table(enum.IntEnum):
    HOST_LANE = 0
    CLASSIFY = 1
    SPOOF_GUARD = 2
    SHARE_OUT = 3
    NEIGHBOURS = 4
    PLUMBING = 5
    SLICE = 6
    SERVICE = 7
    RECEIVER = 8
    REPLY = 9
    SERVICE_PORT = 10
    SERVICE_PAIR = 11
    NODE = 12
    MEMBER = 13
    EXPOSED = 14
    GRANT = 15
    REPLY_TRACK = 16
    REPLY_STATE = 17
    EXPOSE_SOURCE = 18
    EXPOSE_PORT = 19
    DENIED = 20
    ENFORCE = 21
    TRACK = 22
    KIND = 23
    KIND_PORT = 24
    CLASS = 25
    MARK = 26
    OUT = 27
    DELIVER = 28
    SHARE_IN = 29
    GATE_SOURCE = 30
    GATE_IDENTITY = 31
    GATE_SERVICE = 32
    GATE_SERVICE_PORT = 33
    GATE_SERVICE_PAIR = 34
    GATE_GRANT = 35
    GATE_RETURN = 36
    GATE_RETURN_PORT = 37
    GATE_RETURN_PAIR = 38
    GATE_RECEIVER = 39
    GATE_RETURN_GRANT = 40
    GATE_SERVERS = 41
    GATE_WORKERS = 42
    BORDER_END = 50
    BORDER_JOB = 51
    BORDER_SENDER = 52
    BORDER_SENDER_PORT = 53
    BORDER_RECEIVER = 54
    BORDER_RECEIVER_PORT = 55
    BORDER_CLASS = 56
    BORDER_MARK = 57
    BORDER_OUT = 58


class Priority:
    """Priorities by meaning; higher decides first. A literal number anywhere else is a defect."""

    RULES = 1000  # rules of which the first that fits decides: plus the number of rules after it
    PREFIX = 500  # networks of which the smallest decides: plus the length of its prefix
    OUTSIDE_FORGED = 460  # frames from outside that carry an address of a job on this bridge
    OUTSIDE = 450  # frames from outside
    OWN_END = 420  # at a border: the end of a packet that is a job's own
    REFUSE = 400  # frames that no job may send, whatever else holds
    PLUMBING = 300  # ARP and neighbour discovery
    FRAGMENT = 250  # fragments that carry no ports, and what claims too much
    LABELLED = 220  # what has a scitag besides its class
    OBJECT = 200  # one attempt, service, identity or node
    NETWORK = 150  # a network
    FAMILY = 100  # all of IPv4, all of IPv6, all of one origin
    OTHERWISE_OBJECT = 50  # what is left of one attempt or service
    OTHERWISE = 1  # what is left (priority 0 is OVS's own table miss)


class Fixed(enum.IntEnum):
    """Object ids of `cookies.Feature.PIPELINE`: which standing rule a flow belongs to. Never renumber."""

    CLASSIFY = 1
    CLAIMS = 2
    FORBIDDEN_FRAMES = 3
    PLUMBING = 4
    MULTICAST = 5
    BETWEEN_JOBS = 6
    STATE = 7
    DELIVERY = 8
    DEFAULTS = 9
    GATE = 10
    FRAGMENTS = 11
    CLASSES = 12
    AUDITED_AT_GATE = 13
    SHARED_PORTS = 14
    BORDER = 15
    SCITAGS = 16
    NEIGHBOURS = 17


@dataclass(frozen=True, slots=True)
class TableSpec:
    decides: str
    next: frozenset[Table]
    miss: str
    """What happens to a packet that no flow matches (in words: OpenFlow's own miss is always drop)."""


_T = Table
PIPELINE: Mapping[Table, TableSpec] = {
    _T.HOST_LANE: TableSpec(
        "the host's own traffic; the agent's table, never touched", frozenset({_T.CLASSIFY}), "drop"
    ),
    _T.CLASSIFY: TableSpec(
        "from a job or from outside, and which addresses the frame claims",
        frozenset({_T.SPOOF_GUARD, _T.RECEIVER, _T.GATE_SOURCE, _T.GATE_RETURN, _T.BORDER_END}),
        "drop",
    ),
    _T.SPOOF_GUARD: TableSpec(
        "the frame is from the job whose port it came in by; its rate",
        frozenset({_T.SHARE_OUT, _T.NEIGHBOURS, _T.DENIED}),
        "drop",
    ),
    _T.SHARE_OUT: TableSpec(
        "the share of a job that has a rate of its own besides", frozenset({_T.NEIGHBOURS}), "drop"
    ),
    _T.NEIGHBOURS: TableSpec("how much ARP and ND jobs may send", frozenset({_T.PLUMBING}), "drop"),
    _T.PLUMBING: TableSpec(
        "ARP and ND of a job; no multicast", frozenset({_T.SLICE, _T.MEMBER, _T.DENIED, _T.OUT}), "drop"
    ),
    _T.SLICE: TableSpec("whether a packet of a job is for a job", frozenset({_T.SERVICE, _T.MEMBER}), "drop"),
    _T.SERVICE: TableSpec(
        "whether a job's packet is for a host of protected services", frozenset({_T.SERVICE_PORT, _T.NODE}), "drop"
    ),
    _T.RECEIVER: TableSpec("which job a packet from outside is for", frozenset({_T.REPLY}), "drop"),
    _T.REPLY: TableSpec(
        "whether a packet to a job is from a job, plumbing, or from a host of protected services",
        frozenset({_T.MEMBER, _T.SERVICE_PORT, _T.REPLY_TRACK, _T.DELIVER}),
        "drop",
    ),
    _T.SERVICE_PORT: TableSpec(
        "of which protected services the port is; fragments that show none",
        frozenset({_T.SERVICE_PAIR, _T.GRANT, _T.NODE, _T.DENIED, _T.REPLY_TRACK}),
        "drop",
    ),
    _T.SERVICE_PAIR: TableSpec(
        "which protected service has both that host and that port",
        frozenset({_T.GRANT, _T.NODE, _T.DENIED, _T.REPLY_TRACK}),
        "drop",
    ),
    _T.NODE: TableSpec(
        "a node's own addresses and infrastructure; then the default for egress",
        frozenset({_T.DENIED, _T.TRACK, _T.REPLY_TRACK}),
        "drop",
    ),
    _T.MEMBER: TableSpec(
        "the job at the far end is in the same slice, or jobs may talk",
        frozenset({_T.EXPOSED, _T.TRACK, _T.DENIED}),
        "drop",
    ),
    _T.EXPOSED: TableSpec(
        "within a slice of exposed ports: a port that the receiver exposes, or an answer from one",
        frozenset({_T.TRACK, _T.DENIED}),
        "drop",
    ),
    _T.GRANT: TableSpec(
        "the identity has a grant for the service", frozenset({_T.TRACK, _T.DENIED, _T.REPLY_TRACK}), "drop"
    ),
    _T.REPLY_TRACK: TableSpec("look the connection up", frozenset({_T.REPLY_STATE}), "drop"),
    _T.REPLY_STATE: TableSpec(
        "reply to an allowed connection; then the default for ingress",
        frozenset({_T.DELIVER, _T.EXPOSE_SOURCE, _T.DENIED, _T.KIND, _T.CLASS, _T.MARK, _T.OUT}),
        "drop",
    ),
    _T.EXPOSE_SOURCE: TableSpec(
        "in which networks that jobs serve the sender is", frozenset({_T.EXPOSE_PORT, _T.DELIVER, _T.DENIED}), "drop"
    ),
    _T.EXPOSE_PORT: TableSpec("the job serves this port to one of them", frozenset({_T.DELIVER, _T.DENIED}), "drop"),
    _T.DENIED: TableSpec("count a refusal for its attempt", frozenset({_T.ENFORCE}), "drop"),
    _T.ENFORCE: TableSpec("drop; what is audited let on", frozenset({_T.TRACK}), "drop"),
    _T.TRACK: TableSpec(
        "remember the connection, unless it needs none",
        frozenset({_T.KIND, _T.CLASS, _T.MARK, _T.OUT, _T.DELIVER}),
        "drop",
    ),
    _T.KIND: TableSpec("of which classified services the far host is", frozenset({_T.KIND_PORT}), "drop"),
    _T.KIND_PORT: TableSpec("of which classified services the far port is", frozenset({_T.CLASS}), "drop"),
    _T.CLASS: TableSpec("the first rule of `classify` that fits", frozenset({_T.MARK}), "drop"),
    _T.MARK: TableSpec("write the class's DSCP and the job's scitag", frozenset({_T.OUT}), "drop"),
    _T.OUT: TableSpec("to the uplink, or to a job on this node", frozenset({_T.DELIVER}), "drop"),
    _T.DELIVER: TableSpec("to the port of the job; its rate", frozenset({_T.SHARE_IN}), "drop"),
    _T.SHARE_IN: TableSpec("the share of a job that has a rate of its own besides", frozenset(), "drop"),
    _T.GATE_SOURCE: TableSpec(
        "job addresses come only from worker-facing ports", frozenset({_T.GATE_IDENTITY, _T.GATE_SERVICE}), "drop"
    ),
    _T.GATE_IDENTITY: TableSpec("which job sends", frozenset({_T.GATE_SERVICE}), "drop"),
    _T.GATE_SERVICE: TableSpec(
        "whether a packet is for a host of guarded services", frozenset({_T.GATE_SERVICE_PORT}), "drop"
    ),
    _T.GATE_SERVICE_PORT: TableSpec(
        "of which guarded services the port is; fragments that show none",
        frozenset({_T.GATE_SERVICE_PAIR, _T.GATE_GRANT, _T.GATE_SERVERS}),
        "drop",
    ),
    _T.GATE_SERVICE_PAIR: TableSpec(
        "which guarded service has both that host and that port",
        frozenset({_T.GATE_GRANT, _T.GATE_SERVERS}),
        "drop",
    ),
    _T.GATE_GRANT: TableSpec("granted identities and open networks pass", frozenset({_T.GATE_SERVERS}), "drop"),
    _T.GATE_RETURN: TableSpec(
        "whether a packet is from a host of guarded services", frozenset({_T.GATE_RETURN_PORT}), "drop"
    ),
    _T.GATE_RETURN_PORT: TableSpec(
        "of which guarded services the port is that a server speaks from", frozenset({_T.GATE_RETURN_PAIR}), "drop"
    ),
    _T.GATE_RETURN_PAIR: TableSpec("which guarded service a server answers for", frozenset({_T.GATE_RECEIVER}), "drop"),
    _T.GATE_RECEIVER: TableSpec("which job it answers", frozenset({_T.GATE_RETURN_GRANT}), "drop"),
    _T.GATE_RETURN_GRANT: TableSpec("answers pass where requests do", frozenset({_T.GATE_WORKERS}), "drop"),
    _T.GATE_SERVERS: TableSpec("to the servers", frozenset(), "drop"),
    _T.GATE_WORKERS: TableSpec("to the workers", frozenset(), "drop"),
    _T.BORDER_END: TableSpec(
        "whether the end at the site is a job's address; what is not IP, and what finds neighbours, needs no class",
        frozenset({_T.BORDER_JOB, _T.BORDER_MARK, _T.BORDER_OUT}),
        "drop",
    ),
    _T.BORDER_JOB: TableSpec(
        "which job it is, if that can matter", frozenset({_T.BORDER_SENDER, _T.BORDER_RECEIVER}), "drop"
    ),
    _T.BORDER_SENDER: TableSpec(
        "of which classified services the sender is", frozenset({_T.BORDER_SENDER_PORT, _T.BORDER_RECEIVER}), "drop"
    ),
    _T.BORDER_SENDER_PORT: TableSpec(
        "of which classified services the port is that it speaks from", frozenset({_T.BORDER_RECEIVER}), "drop"
    ),
    _T.BORDER_RECEIVER: TableSpec(
        "of which classified services the receiver is", frozenset({_T.BORDER_RECEIVER_PORT, _T.BORDER_CLASS}), "drop"
    ),
    _T.BORDER_RECEIVER_PORT: TableSpec(
        "of which classified services the port is that it is spoken to", frozenset({_T.BORDER_CLASS}), "drop"
    ),
    _T.BORDER_CLASS: TableSpec("the first rule of `classify` that fits", frozenset({_T.BORDER_MARK}), "drop"),
    _T.BORDER_MARK: TableSpec("write the class's DSCP, whatever stood there", frozenset({_T.BORDER_OUT}), "drop"),
    _T.BORDER_OUT: TableSpec("to the other side", frozenset(), "drop"),
}


class NotInPipeline(ValueError):
    """A flow that the declaration above does not allow: a defect in the compiler, never bad input."""


def entry(
    table: Table, priority: int, matches: tuple[FieldMatch, ...], actions: tuple[Action, ...], cookie: Cookie
) -> Flow:
    """A flow, checked against the declaration. Raises NotInPipeline."""
    # What is checked does not depend on the values of matches, constants and ports: thousands of flows have one shape.
    _check(
        table,
        tuple([m.field for m in matches]),
        tuple(
            [
                (action.field, action.low, action.width)
                if type(action) is SetField
                else type(action)
                if type(action) in (Output, Meter)
                else action
                for action in actions
            ]
        ),
    )
    return Flow(int(table), priority, match(*matches), actions, cookie)


@functools.lru_cache(maxsize=4096)
def _check(table: Table, matched: tuple[str, ...], actions: tuple[object, ...]) -> None:
    """`actions`: a SetField as its field, lowest bit and width, Output and Meter as classes. Raises NotInPipeline."""
    spec = PIPELINE[table]
    if table is Table.HOST_LANE:
        raise NotInPipeline("table 0 belongs to the agent")
    for name in matched:
        if name not in fields.FIELDS or not fields.FIELDS[name].matchable:
            raise NotInPipeline(f"unknown field {name}")
    if Meter in actions[1:]:
        raise NotInPipeline("a meter must be first")
    for position, action in enumerate(actions):
        match action:
            case Goto(to):
                if position != len(actions) - 1:
                    raise NotInPipeline(f"{table.name}: goto must be last")
                if Table(to) not in spec.next:
                    raise NotInPipeline(f"{table.name} may not go to {Table(to).name}")
                if to <= int(table):
                    raise NotInPipeline(f"{table.name}: goto must lead forward")
            case ConnTrack(recirc_table=to):
                if to is not None and Table(to) not in spec.next:
                    raise NotInPipeline(f"{table.name} may not recirculate to {Table(to).name}")
            case (str(name), int(low), int(width)) | OutputReg(name, low, width):
                if low + width > fields.FIELDS[name].width:
                    raise NotInPipeline(f"{name} is too narrow for bits {low}+{width}")
                if not isinstance(action, OutputReg) and not fields.FIELDS[name].writable:
                    raise NotInPipeline(f"{name} cannot be written")
            case Move(source, source_low, target, target_low, width):
                if source_low + width > fields.FIELDS[source].width:
                    raise NotInPipeline(f"{source} is too narrow")
                if target_low + width > fields.FIELDS[target].width or not fields.FIELDS[target].writable:
                    raise NotInPipeline(f"{target} cannot take {width} bits at {target_low}")
