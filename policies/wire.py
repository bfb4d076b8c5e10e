"""Messages that agent and controller exchange over the northbound API.

Invariants: every request forbids unknown keys (of an answer, those of a newer controller are passed over); every model
is frozen, and holds nothing that the receiver could mistake for another type (`strict` where JSON allows it). Fields
say their units. `docs/interfaces.md` section 5 lists the calls.

Versions: agents and controllers are upgraded one after the other, so each must understand the other. Both say with each
message, in the header `Lark-Protocol`, how much they know; whoever knows more uses the words of the other. A field that
is added to a request is marked `Since(PROTOCOL)`, has a default, and gives nothing by its absence; it is left out
towards a controller that does not know it. An answer may gain fields freely, and loses none.
"""

from __future__ import annotations

import enum
import hashlib
import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

PROTOCOL = 2
"""What this code can say and understand. One more with each release in which a request gains a field."""
OLDEST_PROTOCOL = 1
"""What everybody understands, and what those speak who say nothing."""
PROTOCOL_HEADER = "Lark-Protocol"
ATTEMPT_ID_PATTERN = r"^[A-Za-z0-9._~@-]{1,200}$"
MOST_PORT = 65279
"""The largest number that Open vSwitch gives a port."""
MOST_ZONE = 65535
NAME_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$"
PORT_NAME_PATTERN = r"^[A-Za-z0-9._-]{1,15}$"
JOB_PATTERN = r"^[0-9]{1,10}\.[0-9]{1,10}$"
ATTRIBUTE_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]{0,127}$"
MAX_BODY_BYTES = 256 * 1024
"""The largest request body the controller reads."""
MAX_STRING = 16 * 1024
MAX_ATTRIBUTES = 256
MAX_LIST = 1024


def _ipv4(text: str) -> str:
    return str(ipaddress.IPv4Address(text))


def _ipv6(text: str) -> str:
    if "%" in text:
        raise ValueError("an IPv6 address with a zone is not allowed here")
    return str(ipaddress.IPv6Address(text))


def _address(text: str) -> str:
    return _ipv6(text) if ":" in text else _ipv4(text)


def _mac(text: str) -> str:
    if not re.fullmatch(r"([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}", text):
        raise ValueError("a MAC address is six colon-separated octets, for example 02:6c:0a:14:01:05")
    if int(text[:2], 16) & 1:
        raise ValueError("a multicast MAC address cannot belong to a job")
    return text.lower()


AttemptId = Annotated[str, StringConstraints(pattern=ATTEMPT_ID_PATTERN)]
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
PortName = Annotated[str, StringConstraints(pattern=PORT_NAME_PATTERN)]
Ipv4 = Annotated[str, AfterValidator(_ipv4)]
Ipv6 = Annotated[str, AfterValidator(_ipv6)]
Address = Annotated[str, AfterValidator(_address)]
Mac = Annotated[str, AfterValidator(_mac)]
AttributeName = Annotated[str, StringConstraints(pattern=ATTRIBUTE_PATTERN)]
Text = Annotated[str, StringConstraints(max_length=MAX_STRING)]
Integer = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
"""ClassAd integers have 64 bits."""
Scalar = bool | Integer | Annotated[float, Field(allow_inf_nan=False)] | Text
AdValue = Scalar | Annotated[list[Scalar], Field(max_length=MAX_LIST)]
"""A literal ClassAd value. UNDEFINED is an attribute that is not there; expressions are refused by the agent."""
Ad = Annotated[dict[AttributeName, AdValue], Field(max_length=MAX_ATTRIBUTES)]


@dataclass(frozen=True, slots=True)
class Since:
    """Marks a field of a request that was added: `Annotated[int, Since(2)] = 0`."""

    protocol: int


def protocol_of(header: str | None) -> int:
    """What the other side knows, by its header."""
    return int(header) if header is not None and re.fullmatch(r"[1-9][0-9]{0,3}", header) else OLDEST_PROTOCOL


def words(message: BaseModel, protocol: int) -> bytes:
    """A request as JSON, in words that a receiver of this protocol understands."""
    return message.model_dump_json(exclude=_too_new(message, protocol)).encode()


def _too_new(message: BaseModel, protocol: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, field in type(message).model_fields.items():
        value = getattr(message, name)
        if any(isinstance(mark, Since) and mark.protocol > protocol for mark in field.metadata):
            found[name] = True
        elif isinstance(value, BaseModel) and (inner := _too_new(value, protocol)):
            found[name] = inner
    return found


class Message(BaseModel):
    # Built at the first use: a program that starts does not wait for messages it never sees.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)


class Answer(Message):
    """What the controller says. Whoever reads it passes over keys that a newer controller has added: agents, which run
    on as they are while the controller is upgraded, would else hold every job."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, defer_build=True)


class Phase(enum.StrEnum):
    """Phase of an attempt; they only advance, in this order."""

    STAGE_IN = "stage-in"
    RUN = "run"
    STAGE_OUT = "stage-out"


# An enum in strict mode would refuse the JSON string in python-mode validation (used by tests and the agent).
PhaseField = Annotated[Phase, Field(strict=False)]


class PortSpec(Message):
    bridge: Name
    name: PortName
    ofport: Annotated[int, Field(ge=1, le=MOST_PORT)]


class AttemptSpec(Message):
    """What the agent says of an attempt. The same content may be PUT again at any time."""

    node: Name
    port: PortSpec
    mac: Mac
    ipv4: Ipv4
    ipv6: Ipv6 | None = None
    zone: Annotated[int, Field(ge=1, le=MOST_ZONE)]
    phase: PhaseField = Phase.STAGE_IN
    ad: Ad
    slot: Ad = Field(default_factory=dict)
    job: Annotated[str, StringConstraints(pattern=JOB_PATTERN)] | None = None
    """HTCondor's cluster.proc: a label for people, never a key."""


class PhaseChange(Message):
    phase: PhaseField


class NodeSpec(Message):
    """What an agent says of its node at start. `host_addresses`: every address of the host itself, on any interface."""

    boot_id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f-]{8,64}$")]
    bridge: Name
    host_addresses: Annotated[list[Address], Field(max_length=256)]
    agent_version: Annotated[str, StringConstraints(max_length=64)]


class NodeGrant(Answer):
    """What the controller gives a node: everything comes from `site.yaml`, so that there is one place of truth."""

    node: Name
    ipv4_range: str
    """CIDR; jobs' addresses are its usable hosts."""
    ipv4_prefix_length: Annotated[int, Field(ge=1, le=32)]
    """Prefix length to configure in the namespace (the on-link network, not the range)."""
    ipv4_gateway: Ipv4 | None = None
    ipv6_prefix: str | None = None
    """CIDR, /64 to /96; a job's address is this prefix with the IPv4 address in its lowest 32 bits."""
    ipv6_prefix_length: Annotated[int, Field(ge=1, le=128)] | None = None
    ipv6_gateway: Ipv6 | None = None
    mtu: Annotated[int, Field(ge=1280, le=65535)] = 1500
    lease: Annotated[int, Field(ge=1, le=86400)]
    """Seconds within which the node must send a heartbeat."""
    attributes: list[AttributeName]
    """Job attributes that the policy reads; while one is missing from STARTD_JOB_ATTRS, no job begins on the node."""


def attempts_digest(ids: Iterable[str]) -> str:
    """What a heartbeat says instead of naming all attempts: equal for equal sets of ids, in any order.

    32 hexadecimal digits: the sum, modulo 2^128, of the first 128 bits of each id's SHA-256. A sum can be kept up to
    date as attempts come and go. It finds what was lost by accident; it is no proof against a forger, who could as well
    name the attempts.
    """
    return f"{sum(attempt_summand(id) for id in ids) & DIGEST_MASK:032x}"


def attempt_summand(id: str) -> int:
    """What one attempt adds to the sum of `attempts_digest`."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:16], "big")


DIGEST_MASK = (1 << 128) - 1


class Heartbeat(Message):
    """A node's sign of life. `digest` is enough while both sides agree; with `attempts` they compare by name."""

    boot_id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f-]{8,64}$")]
    digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")] | None = None
    """`attempts_digest` of the attempts that the agent has told the controller of."""
    attempts: Annotated[list[AttemptId], Field(max_length=100_000)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Heartbeat:
        if self.digest is None and self.attempts is None:
            raise ValueError("a heartbeat carries `digest`, or `attempts`, or both")
        return self


class HeartbeatAnswer(Answer):
    lease: int
    policy: str = ""
    """Digest of the policy in force; empty: of an older controller."""
    agree: bool = True
    """False: the digest was of other attempts than the controller knows; send a heartbeat that names them."""
    drop: list[AttemptId]
    """The agent named these; the controller does not know them: PUT again if they still run, else forget them."""
    gone: list[AttemptId]
    """The controller knows these, the agent did not name them: the agent DELETEs those it does not have."""


class BridgeRealisation(enum.StrEnum):
    REALISED = "realised"
    PENDING = "pending"
    REFUSED = "refused"


class Denial(Answer):
    """Packets of an attempt that were dropped, by reason (names: `policies.model.Reason`)."""

    reason: str
    packets: int
    bytes: int
    text: str
    """The reason in a sentence, for example `no grant of this job covers service fileserver`."""


class Crossed(Answer):
    """What of an attempt's packets has come to a border, in both directions together."""

    packets: int
    bytes: int
    rate: int
    """bit/s of late."""


class Dropped(Answer):
    """What rates or shares have dropped because it was more, by direction as seen from the job."""

    sent_packets: int = 0
    sent_bytes: int = 0
    received_packets: int = 0
    received_bytes: int = 0


class ShareStats(Answer):
    """What the jobs of a node have carried that have one share together, while any of them is there."""

    bridge: Name
    name: str
    """Whose it is, in words."""
    sent_packets: int
    sent_bytes: int
    """What the share let on."""
    received_packets: int
    received_bytes: int
    sent_rate: int
    """bit/s between two readings of late; 0 until there are two."""
    received_rate: int
    dropped: Dropped
    """Of all its jobs together: a meter does not tell whose it was."""


class Counters(Answer):
    """What an attempt's flows have counted since it began. They never go back, also when the switch has restarted."""

    admitted_packets: int
    admitted_bytes: int
    """What it sent as itself, headers of Ethernet included; of a job with a rate, what of it passed that."""
    delivered_packets: int
    delivered_bytes: int
    """What it was sent; of a job with a rate, what of it passed that."""
    dropped: Dropped | None = None
    """By its own rate; None: it has none, and never had. With the above, it is what it tried to send and was sent."""
    share: ShareStats | None = None
    """The share that it is one of; what that dropped of this job's is among the above."""
    denied: list[Denial]
    admitted_rate: int = 0
    """bit/s between two readings of late; 0 until there are two."""
    delivered_rate: int = 0
    borders: dict[str, Crossed] = Field(default_factory=dict)
    """Of borders that look for the job, because it can be of another class than what they do not know."""


class ExposureView(Answer):
    """Ports of a job that others may call."""

    ports: list[str]
    """As the policy writes them: `tcp/8000-8999`, `icmp`."""
    to: list[str]
    """`slice`, or networks as CIDR."""
    rule: str
    """`file:line`."""


class ClassView(Answer):
    """A rule of `classify` that can decide the class of the job's packets."""

    name: str
    dscp: Annotated[int, Field(ge=0, le=63)]
    service: str | None = None
    """Only packets to and from this service; None: all that no rule before decided."""
    rule: str
    """`file:line`."""


class ScitagView(Answer):
    experiment: Annotated[int, Field(ge=0, le=511)]
    activity: Annotated[int, Field(ge=0, le=63)]


class DecisionView(Answer):
    identity: int
    sealed: bool
    groups: list[str]
    grants: list[str]
    """Services reachable in the present phase."""
    slice: str | None = None
    """Qualified name of the slice whose members may talk to each other."""
    trail: list[str]
    """Each rule that mattered, as `file:line: what it gave`."""
    mode: str = "enforce"
    """Of its node: `audit` lets on what is refused, but for what audit never opens."""
    audited: list[str] = Field(default_factory=list)
    """Services without a grant whose refusals are counted and let on, by a rule in audit mode."""
    audited_defaults: list[str] = Field(default_factory=list)
    """Of `egress`, `ingress` and `between-jobs` those whose refusals are counted and let on."""
    rate: int | None = None
    """Bits a second in each direction, of whole Ethernet frames at its port; None: no limit."""
    share: str | None = None
    """What it has together with which jobs of its node, in words; None: no share."""
    scitag: ScitagView | None = None
    """In the flow label of its IPv6 packets, and in fireflies about its connections."""
    exposes: list[ExposureView] = Field(default_factory=list)
    classes: list[ClassView] = Field(default_factory=list)
    """First match wins; empty when the policy has no classes."""
    lasting: bool = False
    """The policy gives the job the same in all of its phases, so that nothing needs to wait for a later one."""


class AttemptStatus(Answer):
    id: AttemptId
    spec: AttemptSpec
    decision: DecisionView
    bridges: dict[str, Annotated[BridgeRealisation, Field(strict=False)]]
    counters: Counters | None = None
    policy: str = ""
    """Digest of the policy that `decision` is by; empty: of an older controller."""


class AttemptList(Answer):
    attempts: list[AttemptStatus]


class NodeStatus(Answer):
    node: Name
    spec: NodeSpec | None
    attempts: int
    lease_left: float | None
    """Seconds until the node's lease ends; None for a node that never registered."""


class NodeList(Answer):
    nodes: list[NodeStatus]


class QueueClass(Answer):
    """A traffic class on one egress port. Classes with an equal DSCP cannot be told apart, so there are none."""

    name: Name
    dscp: Annotated[int, Field(ge=0, le=63)]
    rank: Annotated[int, Field(ge=0, le=63)]
    """0 is the most important: what no class is guaranteed goes to the lowest rank that asks for it."""
    guarantee: Annotated[int, Field(ge=0)]
    """bit/s, also when classes of a lower rank number ask for more."""
    ceiling: Annotated[int, Field(ge=1)]
    """bit/s"""


class PortQueues(Answer):
    rate: Annotated[int, Field(ge=1)]
    """bit/s that leave by this port at most."""
    classes: Annotated[list[QueueClass], Field(min_length=1, max_length=64)]
    """The last one takes what carries no class's DSCP."""


class QueueWish(Answer):
    """The queues of a border, by egress port. `digest` is also the ETag."""

    digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    ports: Annotated[dict[PortName, PortQueues], Field(max_length=64)]


def queues_digest(ports: Mapping[str, PortQueues]) -> str:
    """Equal for equal queues: SHA-256 (hex) of their canonical JSON."""
    plain = {name: port.model_dump(mode="json") for name, port in ports.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


Count = Annotated[int, Field(ge=0, le=2**64 - 1)]


class ClassReport(Message):
    """What a class's queue has carried since it was made. `rate`: bit/s over the last seconds."""

    bytes: Count
    packets: Count
    drops: Count
    backlog: Count
    """Bytes that wait now."""
    rate: Count = 0


class PortReport(Message):
    rate: Count
    """bit/s that the queues now let out."""
    speed: Count | None = None
    """bit/s of the link as the device says; None: it does not say."""
    classes: Annotated[dict[Name, ClassReport], Field(max_length=64)]
    plumbing: ClassReport | None = None
    """ARP and neighbour discovery, which have a small queue of their own."""


class Finding(Message):
    """What an agent has found to be wrong, with its kind of `policies.events`."""

    kind: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z-]{1,40}$")]
    """One that the controller does not know is told as `border-fault`."""
    port: PortName | None = None
    text: Annotated[str, StringConstraints(max_length=500)]


class QueueReport(Message):
    """What a border's agent has made of the wish, every few seconds."""

    digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Of the wish that it follows; None: it has none yet."""
    agent_version: Annotated[str, StringConstraints(max_length=64)] = ""
    faults: Annotated[list[Annotated[str, StringConstraints(max_length=500)]], Field(max_length=64)]
    """What is not as wished, one sentence each; empty: everything is."""
    ports: Annotated[dict[PortName, PortReport], Field(max_length=64)]
    findings: Annotated[list[Finding], Field(max_length=64), Since(2)] = []
    """The same faults, each with its kind; empty: from an agent that does not say kinds, or no faults."""
    repaired: Annotated[dict[PortName, Count], Field(max_length=64), Since(2)] = {}
    """How many parts of each port's queues this agent has put back since it started, because somebody else had removed
    or altered them; without those never touched."""


QUEUES_STALE = 15.0
"""Seconds without a report after which queues do not count as in force: an agent reports every two."""


class QueueStatus(Answer):
    """The last report of a border's agent. `age`: seconds since it came."""

    age: float
    in_force: bool
    """It follows the queues that the present policy asks for, without a fault."""
    followed: bool = False
    """The same, but for what the report's faults say."""
    report: QueueReport


class BridgeStatus(Answer):
    bridge: Name
    datapath_id: str
    roles: list[str]
    connected: bool
    converged: bool
    flows: int
    ports: dict[str, int]
    detail: str = ""
    missing: list[str] = Field(default_factory=list)
    """Declared ports that the connected bridge does not have: it is closed until they are there."""
    foreign_flows: int = 0
    """Flows of others on it, in table 0 and in the controller's tables, as last seen."""
    bypassed: bool = False
    """Some of them are in table 0: what they take goes past the policy."""
    queues: QueueStatus | None = None
    """Of a border: what its agent reported last. None: no border, or nothing reported since this controller started."""


class BridgeList(Answer):
    bridges: list[BridgeStatus]


class ClassStats(Answer):
    """A traffic class on one way out of a border, with what its queue has carried."""

    bridge: Name
    port: PortName
    direction: str
    """`out`: to the WAN; `in`: from there, which is shaped on its way to the site."""
    name: Name
    dscp: Annotated[int, Field(ge=0, le=63)]
    rank: Annotated[int, Field(ge=0, le=63)]
    guarantee: int
    """bit/s"""
    ceiling: int
    """bit/s"""
    bytes: int
    """Headers of Ethernet included. Like all counts here it never goes back, also when the queues are made anew."""
    packets: int
    drops: int
    backlog: int
    """Bytes that wait now."""
    rate: int
    """bit/s over the last seconds."""


class Refusals(Answer):
    """Packets that were refused for one reason; of attempts, let on where audit mode says so."""

    reason: str
    packets: int
    bytes: int


class BorderStats(Answer):
    """How fresh the counts of a border's classes are. `age`: seconds since its agent reported; None: it never did."""

    bridge: Name
    age: float | None
    in_force: bool
    refused: list[Refusals] = Field(default_factory=list)
    """By the border's own flows, of nobody's job; empty: this controller has not asked it yet. `forged`: from the WAN
    with an address of a job; `unmarkable`: IP packets into which no code point can be written."""


class JobStats(Answer):
    """Of all attempts, since this controller has been running. Sent: as themselves; received: delivered to them; both
    after rates and shares."""

    attempts: int
    sent_packets: int
    sent_bytes: int
    received_packets: int
    received_bytes: int
    refused: list[Refusals]
    rate_dropped: Dropped = Dropped()
    """By rates of single jobs."""
    share_dropped: Dropped = Dropped()


class SiteStats(Answer):
    classes: list[ClassStats]
    """Of every border, also of those whose agent has not reported yet: then the counts are 0."""
    borders: list[BorderStats]
    jobs: JobStats
    shares: list[ShareStats] = Field(default_factory=list)
    """The hundred that have dropped most, or fewer."""


class WhyAnswer(Answer):
    """What becomes of a job's packet. `reasons`: slugs, as in `Denial`; empty: nothing refuses it."""

    attempt: AttemptId
    verdict: str
    """`allow` or `drop`."""
    reasons: list[str]
    lines: list[str]
    """Bridge by bridge: the verdict, the line that decided, the flows that carry it out."""


class Event(Answer):
    """Something that has happened (docs/events.md)."""

    number: int
    """Of this controller since it started; one more for each that is told."""
    time: float
    """Seconds since 1970, when it (last) happened."""
    controller: str
    """Whose it is, where there are several."""
    kind: str
    level: str
    """`info`, `warning` or `error`."""
    bridge: str | None = None
    node: str | None = None
    attempt: str | None = None
    job: str | None = None
    """HTCondor's cluster.proc, where the news is of one job: a label for people."""
    port: str | None = None
    text: str
    mend: str
    """What to do; empty: nothing."""
    times: int = 1
    """How often it has happened since it was last told."""


class EventList(Answer):
    """Events in the order in which they were told. `cursor`: for the next question's `since`."""

    controller: str
    events: list[Event]
    cursor: str
    missed: int = 0
    """Told since the question's cursor, and not kept any more."""
    restarted: bool = False
    """The question's cursor is of an earlier life of this controller, or of another one."""


class Deleted(Answer):
    id: AttemptId
    bridges: dict[str, Annotated[BridgeRealisation, Field(strict=False)]]
    """`pending`: that bridge is unreachable; it will lose the flows before it is used again."""


class PolicyStatus(Answer):
    digest: str
    mode: str
    """Of nodes that no rule of `node-modes` names."""
    files: list[str]
    """Every file that was read, in reading order."""
    audits: list[str] = Field(default_factory=list)
    """What is in audit mode, as `file:line: what`; empty when everything is enforced."""
    unconfirmed: list[str] = Field(default_factory=list)
    """Bridges of this controller that have not confirmed all that they were told of it."""
    on_disk: str = ""
    """Why the files do not say what is in force, in a sentence; empty: they do."""


class Problem(BaseModel):
    """RFC 9457 problem details; extension members differ by type."""

    model_config = ConfigDict(extra="allow", frozen=True)
    type: str
    title: str
    status: int
    detail: str
