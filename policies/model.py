"""The values that policies are made of. Pure: frozen dataclasses, no behaviour beyond small derivations.

Addresses are `ipaddress` objects at this level (a policy is read by people); the OpenFlow compiler turns them into
integers. Every rule carries the `Place` it was written at, so that a verdict can name the line that decided.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fnmatch import fnmatchcase

from policies.wire import Phase

Ipv4 = ipaddress.IPv4Address
Ipv6 = ipaddress.IPv6Address
Address = Ipv4 | Ipv6
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where something was written: file, 1-based line, 1-based column."""

    file: str
    line: int
    column: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Mode(enum.StrEnum):
    ENFORCE = "enforce"
    AUDIT = "audit"


class Verdict(enum.StrEnum):
    ALLOW = "allow"
    DROP = "drop"


class Reason(enum.IntEnum):
    """Why a packet of a job was dropped. The number is carried in a register and in cookies: never renumber."""

    SPOOFED = 1  # not the job's own MAC or address; DHCP server, RA, VLAN, another ethertype … sent by a job
    SEALED = 2  # the job asked for, or was given, no network
    BETWEEN_JOBS = 3  # to or from another job
    NO_GRANT = 4  # a protected service without a grant valid in this phase
    NODE = 5  # a node's own address, the controller, OpenFlow, OVSDB
    EGRESS = 6  # `defaults: {egress: deny}`
    INGRESS = 7  # not a reply, and `defaults: {ingress: deny}`
    MULTICAST = 8  # no one host of the network: multicast, broadcast, link-local, plumbing for elsewhere

    @property
    def slug(self) -> str:
        """The name used in the API and in metrics."""
        return self.name.lower().replace("_", "-")


NEVER_OPENED_BY_AUDIT = frozenset({Reason.SPOOFED, Reason.SEALED, Reason.NODE, Reason.MULTICAST})
"""Audit mode counts the other verdicts without enforcing them; these it enforces all the same."""


class Protocol(enum.StrEnum):
    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"
    """ICMP and ICMPv6, neighbour discovery apart (that is plumbing)."""


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """Ports of one protocol, both ends included. ICMP has none: 0 to 0."""

    protocol: Protocol
    first: int
    last: int

    def __str__(self) -> str:
        if self.protocol is Protocol.ICMP:
            return "icmp"
        return f"{self.protocol}/{self.first}" + (f"-{self.last}" if self.last != self.first else "")


@dataclass(frozen=True, slots=True)
class Service:
    """Named hosts and ports. `hosts` empty: the ports on any host (classification only; cannot be protected)."""

    name: str
    hosts: tuple[Address, ...]
    ports: tuple[PortRange, ...]
    protected: bool
    open_to: tuple[Network, ...]
    place: Place
    audit: bool = False
    """What its protection refuses is counted and let on."""


class AttributeType(enum.StrEnum):
    STRING = "string"
    NUMBER = "number"
    BOOLEAN = "boolean"
    ENUM = "enum"


@dataclass(frozen=True, slots=True)
class Attribute:
    """A declared job attribute. A job whose attribute does not fit is held."""

    name: str
    type: AttributeType
    place: Place
    values: tuple[str, ...] = ()
    default: str | float | bool | None = None
    max_length: int | None = None
    min: float | None = None
    max: float | None = None


@dataclass(frozen=True, slots=True)
class Expression:
    """A ClassAd expression: its text as written and the attributes it reads."""

    text: str
    references: frozenset[str]
    place: Place


@dataclass(frozen=True, slots=True)
class Group:
    name: str
    condition: Expression
    place: Place


@dataclass(frozen=True, slots=True)
class Grant:
    group: str
    service: str
    during: frozenset[Phase]
    nodes: tuple[str, ...]
    """Shell patterns of authenticated node names; one with a leading `!` excludes. Empty: every node."""
    place: Place
    audit: bool = False
    """It gives nothing: what its members do as if they had it is counted as refused, and let on."""
    trust_user: bool = False
    """It may rest on what the job's owner says: the file says so."""


@dataclass(frozen=True, slots=True)
class Seal:
    group: str
    place: Place


@dataclass(frozen=True, slots=True)
class Slice:
    """Members of `group` share a slice with all whose `name` is the same; under one user unless `site_wide`."""

    group: str
    name: Expression
    site_wide: bool
    place: Place
    exposed_only: bool = False
    """Members reach each other only at ports that an `expose` rule opens to the slice."""
    trust_user: bool = False


EXPOSED_PREFIX = "exposed-"
"""How the qualified name of a slice begins whose members reach only exposed ports: it is another slice than an open
one of the same name."""


@dataclass(frozen=True, slots=True)
class NodeMode:
    """Mode of the nodes that fit the patterns; the first that fits decides."""

    nodes: tuple[str, ...]
    mode: Mode
    place: Place


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Part of a link (`percent`, 0 to 100) or an amount (`bits` a second): one of them is set."""

    percent: float | None = None
    bits: int | None = None

    def __str__(self) -> str:
        if self.percent is None:
            return f"{self.bits} bit/s"
        # As people write it: 0.00001%, not 1e-05%.
        return f"{Decimal(repr(self.percent)).normalize():f}%"

    def of(self, link: int) -> int:
        """bit/s, on a link that carries so much."""
        if self.bits is not None:
            return self.bits
        assert self.percent is not None
        return int(link * self.percent / 100)


@dataclass(frozen=True, slots=True)
class TrafficClass:
    """A class of traffic. Its rank is its position in `Policy.classes`: the first is the most important."""

    name: str
    dscp: int
    """0 to 63 (RFC 2474)."""
    guarantee: Bandwidth | None
    ceiling: Bandwidth | None
    place: Place


@dataclass(frozen=True, slots=True)
class Classify:
    """Traffic of a job of `group`, with `service` at the far end, is of this class. None: of any; both must hold."""

    group: str | None
    service: str | None
    traffic_class: str
    place: Place
    trust_user: bool = False


@dataclass(frozen=True, slots=True)
class Rate:
    """A limit for a job. `expression` gives a number, in `unit` bits a second; UNDEFINED: no limit by this rule."""

    group: str | None
    expression: Expression
    unit: int
    place: Place


@dataclass(frozen=True, slots=True)
class Share:
    """What the group's jobs on one node have together; with `per`, those for which it gives the same text.

    The first that fits a job counts. A part (%) is one of the node's link.
    """

    group: str | None
    per: Expression | None
    part: Bandwidth
    place: Place
    trust_user: bool = False


@dataclass(frozen=True, slots=True)
class Sharing:
    """That a job has one share, in each direction, with all jobs of its node whose `name` is the same."""

    name: str
    part: Bandwidth


@dataclass(frozen=True, slots=True)
class Expose:
    """Ports of the group's jobs that members of their slice (`to_slice`) or `networks` may reach; one of the two."""

    group: str
    ports: tuple[PortRange, ...]
    to_slice: bool
    networks: tuple[Network, ...]
    place: Place
    trust_user: bool = False


@dataclass(frozen=True, slots=True)
class Scitag:
    """Experiment (9 bits) and activity (6 bits) that packets of the group's jobs are marked with (scitags.org)."""

    group: str
    experiment: int
    activity: int
    place: Place
    trust_user: bool = False


@dataclass(frozen=True, slots=True)
class Defaults:
    egress: Verdict
    ingress: Verdict
    between_jobs: Verdict
    place: Place
    audited: frozenset[Reason] = frozenset()
    """Of EGRESS, INGRESS and BETWEEN_JOBS those that are counted and let on (`audit` in the file, DROP above)."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A validated policy. `digest`: SHA-256 (hex) of its meaning-bearing source text."""

    mode: Mode
    services: Mapping[str, Service]
    attributes: Mapping[str, Attribute]
    groups: Mapping[str, Group]
    grants: tuple[Grant, ...]
    seals: tuple[Seal, ...]
    slices: tuple[Slice, ...]
    defaults: Defaults
    digest: str
    files: tuple[str, ...]
    mode_place: Place
    node_modes: tuple[NodeMode, ...] = ()
    classes: tuple[TrafficClass, ...] = ()
    """Most important first. The last takes what no rule of `classify` names."""
    classify: tuple[Classify, ...] = ()
    rates: tuple[Rate, ...] = ()
    exposes: tuple[Expose, ...] = ()
    scitags: tuple[Scitag, ...] = ()
    shares: tuple[Share, ...] = ()

    def mode_of(self, node: str) -> NodeMode | None:
        """The rule that sets the mode of a node; None: `mode` does."""
        return next((rule for rule in self.node_modes if node_matches(rule.nodes, node)), None)

    def audits(self, node: str) -> bool:
        """Whether refusals are let on for the jobs of a node."""
        rule = self.mode_of(node)
        return (self.mode if rule is None else rule.mode) is Mode.AUDIT

    @property
    def marking_groups(self) -> tuple[str, ...]:
        """Groups on whose membership the treatment of single packets depends (`classify`, `expose`), sorted.

        A job's memberships among them are carried as bits in a register: bit n for the n-th name.
        """
        named = {rule.group for rule in self.classify if rule.group is not None}
        return tuple(sorted(named | {rule.group for rule in self.exposes}))

    @property
    def classified_services(self) -> tuple[str, ...]:
        """Services that `classify` names, sorted: bit n of a packet's register for the n-th name."""
        return tuple(sorted({rule.service for rule in self.classify if rule.service is not None}))


MAX_BITS = 32
"""Most groups named in `classify` and `expose`, and most services named in `classify`: a register has 32 bits."""


def node_matches(patterns: tuple[str, ...], node: str) -> bool:
    """Whether a node's authenticated name fits `nodes:`; a pattern with `!` excludes, whatever else fits."""
    if any(fnmatchcase(node, p[1:]) for p in patterns if p.startswith("!")):
        return False
    positive = [p for p in patterns if not p.startswith("!")]
    return not positive or any(fnmatchcase(node, p) for p in positive)


class Role(enum.StrEnum):
    WORKER = "worker"
    GATE = "gate"
    BORDER = "border"


class PortKind(enum.StrEnum):
    """What is behind a declared port of a bridge."""

    UPLINK = "uplink"
    WORKER_FACING = "worker-facing"
    SERVER_FACING = "server-facing"
    WAN = "wan"


@dataclass(frozen=True, slots=True)
class WanPort:
    """A port of a border to the outside world, in bits a second."""

    rate: int
    """What the line carries: what leaves is shaped to it."""
    inbound: int
    """What is taken in of it: shaped on the way out of the LAN port, a little below the line, so that what waits waits
    here and not on the provider's side."""


@dataclass(frozen=True, slots=True)
class Bridge:
    name: str
    datapath_id: int
    roles: frozenset[Role]
    ports: Mapping[str, PortKind]
    guards: tuple[str, ...]
    """Protected services that stand behind this gate."""
    place: Place
    address: Address | None = None
    """Where its OpenFlow connection comes from; from elsewhere it is refused. None: from anywhere."""
    certificate: str | None = None
    """The name in its switch's certificate. None: the certificate says `urn:lark:bridge:NAME`."""
    wan: Mapping[str, WanPort] = field(default_factory=dict)
    """Of a border: its WAN ports, by name."""

    @property
    def lan(self) -> str | None:
        """Of a border: its one port that is no WAN port. None: it is no border."""
        if Role.BORDER not in self.roles:
            return None
        return next(name for name, kind in self.ports.items() if kind is not PortKind.WAN)


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    bridge: str
    ipv4: ipaddress.IPv4Network
    ipv6: ipaddress.IPv6Network | None
    place: Place
    host_networks: tuple[Network, ...] = ()
    """Addresses of the host itself, as the site declares them: closed to jobs on every node."""
    certificate: str | None = None
    """The name in its agent's certificate. None: the certificate says `urn:lark:node:NAME`."""
    link: int | None = None
    """What its uplink carries, in bits a second, of which shares are parts. None: the site file does not say."""


@dataclass(frozen=True, slots=True)
class JobNetwork:
    """The flat network that jobs' addresses live in."""

    ipv4: ipaddress.IPv4Network
    gateway_ipv4: Ipv4 | None
    ipv6: ipaddress.IPv6Network | None
    gateway_ipv6: Ipv6 | None
    mtu: int


@dataclass(frozen=True, slots=True)
class Site:
    name: str
    network: JobNetwork
    infrastructure: tuple[Network, ...]
    """Networks no job may reach: controller, OpenFlow, OVSDB, management."""
    nodes: Mapping[str, Node]
    bridges: Mapping[str, Bridge]
    files: tuple[str, ...]
    inside: tuple[Network, ...] = ()
    """Other networks of the site, on this side of its border. Who may reach what does not depend on them."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a decision means on the wire. Jobs with equal outcomes share one identity."""

    sealed: bool
    services: frozenset[str]
    """Protected services granted in the present phase."""
    audited: frozenset[str] = frozenset()
    """Protected services, not granted, for which a grant in audit mode lets the job on."""
    groups: frozenset[str] = frozenset()
    """The job's groups among `Policy.marking_groups`."""

    @property
    def known_services(self) -> frozenset[str]:
        """Services about which a gate must know this outcome."""
        return self.services | self.audited


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer of `policies.decide.decide`. `trail`: every rule that mattered, with what it gave.

    `slice`: qualified name of the job's slice, or None. `rate`: bits a second, or None for no limit. `scitag`:
    experiment and activity, or None. They are apart from the outcome, so that jobs that differ in them share one
    identity.
    """

    outcome: Outcome
    groups: tuple[str, ...]
    trail: tuple[tuple[Place, str], ...]
    slice: str | None = None
    rate: int | None = None
    scitag: tuple[int, int] | None = None
    share: Sharing | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """A registered attempt as the compiler needs it. `number` is never used again (48 bits); integers are addresses."""

    id: str
    number: int
    node: str
    bridge: str
    port_name: str
    ofport: int
    mac: int
    ipv4: Ipv4
    ipv6: Ipv6 | None
    zone: int
    phase: Phase
    outcome: Outcome
    slice: str | None = None
    scitag: tuple[int, int] | None = None
    rate: int | None = None
    """Bits a second in each direction, of whole Ethernet frames at its port; None: no limit."""
    share: Sharing | None = None

    @property
    def share_key(self) -> ShareKey | None:
        """Whose share it has a part in; None: it has none."""
        return None if self.share is None else (self.bridge, self.share.name)

    @property
    def exposed_only(self) -> bool:
        """Whether members of its slice reach only exposed ports."""
        return self.slice is not None and self.slice.startswith(EXPOSED_PREFIX)


ShareKey = tuple[str, str]
"""Bridge and name of a share."""


@dataclass(frozen=True, slots=True)
class World:
    """All that flows follow from. `…_numbers` and `identities` give objects their durable numbers.

    `ports`: bridge -> port name -> OpenFlow port number, as the switches say.
    `host_addresses`: node -> every address of the host, as the node's agent says.
    """

    site: Site
    policy: Policy
    ports: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    host_addresses: Mapping[str, tuple[Address, ...]] = field(default_factory=dict)
    service_numbers: Mapping[str, int] = field(default_factory=dict)
    node_numbers: Mapping[str, int] = field(default_factory=dict)
    identities: Mapping[Outcome, int] = field(default_factory=dict)
    slice_numbers: Mapping[str, int] = field(default_factory=dict)
    attempts: Mapping[str, Attempt] = field(default_factory=dict)
    share_numbers: Mapping[ShareKey, int] = field(default_factory=dict)
    meterless: frozenset[str] = frozenset()
    """Bridges whose switches have no meters."""
