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

    def copy_from(self, source: str, source_low: int = 0) -> Move:
        """The action that copies `width` bits of a packet field, from bit `source_low`, into this register."""
        return Move(source, source_low, self.field, self.low, self.width)


ATTEMPT = Register("reg0", 0, 32)  # the attempt the packet is counted for: its sender, or inbound its receiver
IDENTITY = Register("reg1", 0, 32)  # the identity whose rules apply
SLICE = Register("reg2", 0, 32)  # the slice of the attempt it is counted for; 0: none
SERVICE = Register("reg3", 0, 32)  # the protected service at the far end; 0: none
# The three claims a frame makes about its sender, each reduced to 32 bits (see `compiler`, "one flow guards all"):
CLAIM_ADDRESS = Register("reg4", 0, 32)  # from nw_src, ipv6_src or arp_spa
CLAIM_LINK = Register("reg5", 0, 32)  # from arp_sha, nd_sll or nd_tll; where a frame claims none, its address again
CLAIM_TARGET = Register("reg6", 0, 32)  # from nd_target of an advertisement; where there is none, its address again
DESTINATION = Register("reg7", 0, 32)  # 32 bits of the address a frame is for: nw_dst, ipv6_dst, arp_tpa, nd_target
ZONE = Register("reg8", 0, 16)  # conntrack zone of the attempt
ORIGIN = Register("reg8", 16, 2)  # where the packet came from: an `Origin`
STATELESS = Register("reg8", 18, 1)  # 1: needs no connection tracking (TCP of a granted service)
REASON = Register("reg9", 0, 8)  # a `policies.model.Reason`, set before the denied table
PEER = Register("reg11", 0, 32)  # 32 bits of the address of the job at the far end, between jobs
CLASS = Register("reg10", 0, 16)  # room for traffic classes


class Origin:
    """Values of `ORIGIN`."""

    JOB = 1
    OUTSIDE = 2
