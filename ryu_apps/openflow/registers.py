"""What the bits of the packet registers mean. This file holds the whole truth about them.

Registers live for one trip of a packet through the tables (and across a conntrack recirculation). OVS carries
`reg0`..`reg15`, 32 bits each. Nothing else in the code may name a register.
"""

from __future__ import annotations

from dataclasses import dataclass

from ryu_apps.openflow.flows import FieldMatch, Move, SetField


@dataclass(frozen=True, slots=True)
class Register:
    """A named run of bits, `low..low+width-1`, of one OVS register."""

    field: str
    low: int
    width: int

    def load(self, value: int) -> SetField:
        """The action that stores a constant. Raises ValueError if it does not fit."""
        if not 0 <= value < 1 << self.width:
            raise ValueError(f"{value} does not fit into {self.width} bits of {self.field}")
        return SetField(self.field, value, self.low, self.width)

    def equals(self, value: int) -> FieldMatch:
        """The match on a constant. Raises ValueError if it does not fit."""
        if not 0 <= value < 1 << self.width:
            raise ValueError(f"{value} does not fit into {self.width} bits of {self.field}")
        if self.width == 32:
            return FieldMatch(self.field, value)
        return FieldMatch(self.field, value << self.low, ((1 << self.width) - 1) << self.low)

    def bit(self, number: int) -> FieldMatch:
        """The match on one bit (of the register's own bits) that is set. Raises ValueError if there is no such bit."""
        if not 0 <= number < self.width:
            raise ValueError(f"{self.field} has no bit {number} here")
        return FieldMatch(self.field, 1 << (self.low + number), 1 << (self.low + number))

    def copy_from(self, source: str, source_low: int = 0) -> Move:
        """The action that copies `width` bits of a packet field, from bit `source_low`, into this register."""
        return Move(source, source_low, self.field, self.low, self.width)


ATTEMPT = Register("reg0", 0, 32)  # the attempt the packet is counted for: its sender, or inbound its receiver
BUCKET = Register("reg0", 0, 4)  # with which others an attempt's ARP and neighbour discovery are metered
IDENTITY = Register("reg1", 0, 32)  # the identity whose rules apply
SLICE = Register("reg2", 0, 32)  # the slice of the attempt it is counted for; 0: none
SERVICE = Register("reg3", 0, 32)  # the protected service at the far end; 0: none
LATER = Register("reg3", 31, 1)  # 1: a later fragment, and the other bits are those of HOSTS
# The three claims a frame makes about its sender, each reduced to 32 bits (see `guard`, "one flow guards all"):
CLAIM_ADDRESS = Register("reg4", 0, 32)  # from nw_src, ipv6_src or arp_spa
CLAIM_LINK = Register("reg5", 0, 32)  # from arp_sha, nd_sll or nd_tll; where a frame claims none, its address again
CLAIM_TARGET = Register("reg6", 0, 32)  # from nd_target of an advertisement; where there is none, its address again
# Once the guard has compared the claims their registers are used again; whoever reads these has loaded them before:
HOST_KINDS = Register("reg4", 0, 32)  # bit n: the far host is one of the n-th of `Policy.classified_services`
PORT_KINDS = Register("reg5", 0, 32)  # bit n: its port is one of that service
SOURCES = Register("reg6", 0, 32)  # bit n: the sender is in a network of the n-th `expose` rule that names networks
DESTINATION = Register("reg7", 0, 32)  # 32 bits of the address a frame is for: nw_dst, ipv6_dst, arp_tpa, nd_target
ZONE = Register("reg8", 0, 16)  # conntrack zone of the attempt
ORIGIN = Register("reg8", 16, 2)  # where the packet came from: an `Origin`; at a border the site is JOB
STATELESS = Register("reg8", 18, 1)  # 1: needs no connection tracking (TCP of a granted service)
AUDIT = Register("reg8", 19, 1)  # 1: if it is refused, it is counted and let on
CALLS = Register("reg8", 21, 1)  # at a gate, 1: TCP without ACK from a service's port, so no answer
CLOSED = Register("reg8", 20, 1)  # 1: the far host is a node's own or infrastructure: audit lets nothing on
FINDS = Register("reg8", 23, 1)  # 1: ARP or neighbour discovery of a job
REASON = Register("reg9", 0, 8)  # a `policies.model.Reason`, set before the denied table
CLASS = Register("reg10", 0, 16)  # the traffic class: 1 for the most important; 0: none
TAG_EXPERIMENT = Register("reg10", 16, 9)  # the experiment of the sender's scitag, as a flow label has its bits
TAG_ACTIVITY = Register("reg10", 25, 6)  # and its activity
TAGGED = Register("reg10", 31, 1)  # 1: the sender has a scitag
PEER = Register("reg11", 0, 32)  # 32 bits of the address of the job at the far end, between jobs
HOSTS = Register("reg12", 0, 32)  # the host class of the far host (see `hosts`); 0: none
PORTS = Register("reg15", 0, 32)  # the port class of the far port (see `hosts`)
GROUPS = Register("reg13", 0, 32)  # bit n: the attempt is in the n-th of `Policy.marking_groups`
PEER_GROUPS = Register("reg14", 0, 32)  # the same of the job at the far end, in a slice of exposed ports
# A border has registers of its own; no packet passes a border and another role:
END = Register("reg7", 0, 32)  # 32 bits of the address at this end (from the site its source), if it is among jobs'
AT_JOB = Register("reg8", 22, 1)  # 1: the address at this end is among jobs'
SENDER_HOST_KINDS = Register("reg12", 0, 32)  # as HOST_KINDS, of the sender; HOST_KINDS are those of the receiver
SENDER_PORT_KINDS = Register("reg15", 0, 32)  # as PORT_KINDS, of the sender

NOBODY = 0xFFFF_FFFF
"""In PEER: an address among jobs' that no job can have."""


def joined(*matches: FieldMatch) -> FieldMatch:
    """One match for several parts of the same register. Raises ValueError for different registers."""
    if len({m.field for m in matches}) != 1:
        raise ValueError("parts of different registers are matched one by one")
    value = mask = 0
    for m in matches:
        value |= m.value
        mask |= m.mask or 0
    return FieldMatch(matches[0].field, value, mask)


class Origin:
    """Values of `ORIGIN`."""

    JOB = 1
    OUTSIDE = 2
