"""The 64 bits of a flow cookie. This file holds the whole truth about them.

    63      56 55      48 47                                             0
    +---------+----------+-----------------------------------------------+
    |  0x4c   | feature  |                  object id                    |
    +---------+----------+-----------------------------------------------+

The first octet marks a flow as Lark's. The object id is what the feature says: an attempt's number, an identity's
number, a service's number, a constant. There is no generation in it: a restart with unchanged state sends nothing.
Numbers of attempts, identities, services and nodes are never used again, so such a cookie leads to one object for ever;
positions of rules and numbers of shared hosts are those of the policy in force.
"""

from __future__ import annotations

import enum

from ryu_apps.openflow.flows import Cookie

MARK = 0x4C
MARK_SHIFT = 56
FEATURE_SHIFT = 48
OBJECT_MASK = (1 << 48) - 1
FULL_MASK = (1 << 64) - 1
FEATURE_MASK = (1 << 64) - (1 << FEATURE_SHIFT)


class Feature(enum.IntEnum):
    """What kind of object a flow belongs to."""

    HOST_LANE = 0x01  # table 0, written by the agent; the object id is 0
    PIPELINE = 0x02  # flows that every bridge of a role has; object id: a `pipeline.Fixed` number
    REASON = 0x03  # what happens to a denied packet; object id: the reason's number
    NODE = 0x04  # a node's own addresses and its job range; object id: the node's number
    SERVICE = 0x05  # which packets mean a service; object id: the service's number
    IDENTITY = 0x06  # what an identity may reach; object id: the identity's number
    ATTEMPT = 0x07  # an attempt; object id: the attempt's number
    HOSTS = 0x08  # hosts that several protected services share; object id: number of their host class
    EXPOSE = 0x09  # an `expose` rule; object id: its position in today's policy, from 1
    CLASSIFY = 0x0A  # a `classify` rule; object id: its position in today's policy, from 1


def cookie(feature: Feature, object_id: int) -> Cookie:
    """The cookie of an object's flows. Raises ValueError when the id does not fit into 48 bits."""
    if not 0 <= object_id <= OBJECT_MASK:
        raise ValueError(f"object id {object_id} does not fit into 48 bits")
    return Cookie((MARK << MARK_SHIFT) | (feature << FEATURE_SHIFT) | object_id)


def explain(value: int) -> tuple[Feature, int] | None:
    """Feature and object id of a cookie, or None if the flow is not Lark's."""
    if value >> MARK_SHIFT != MARK:
        return None
    try:
        return Feature((value >> FEATURE_SHIFT) & 0xFF), value & OBJECT_MASK
    except ValueError:
        return None
