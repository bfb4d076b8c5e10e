"""The values that policies are made of. Pure: frozen dataclasses, no behaviour beyond small derivations.

Addresses are `ipaddress` objects at this level (a policy is read by people); the OpenFlow compiler turns them into
integers. Every rule carries the `Place` it was written at, so that a verdict can name the line that decided.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field

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


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """Ports of one protocol, both ends included."""

    protocol: Protocol
    first: int
    last: int

    def __str__(self) -> str:
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


@dataclass(frozen=True, slots=True)
class Defaults:
    egress: Verdict
    ingress: Verdict
    between_jobs: Verdict
    place: Place


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


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    bridge: str
    ipv4: ipaddress.IPv4Network
    ipv6: ipaddress.IPv6Network | None
    place: Place
    host_networks: tuple[Network, ...] = ()
    """Addresses of the host itself, as the site declares them: closed to jobs on every node."""


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


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a decision means on the wire. Jobs with equal outcomes share one identity."""

    sealed: bool
    services: frozenset[str]
    """Protected services granted in the present phase."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer of `policies.decide.decide`. `trail`: every rule that mattered, with what it gave.

    `slice`: qualified name of the job's slice, or None. It is apart from the outcome, so that jobs of different slices
    share one identity.
    """

    outcome: Outcome
    groups: tuple[str, ...]
    trail: tuple[tuple[Place, str], ...]
    slice: str | None = None


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
