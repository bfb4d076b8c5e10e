"""An attempt's counters, read from the statistics of its own flows."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence

from policies.model import Attempt, Reason
from policies.wire import Counters, Denial
from ryu_apps.openflow.flows import Counted
from ryu_apps.openflow.pipeline import Priority, Table


class Slot(enum.IntEnum):
    """What one of an attempt's flows counts. All but the last are of its worker bridge."""

    OWN = 0  # what it sent as itself; of a sealed job: what it tried to
    SPOOFED = 1
    UNGRANTED = 2
    REFUSED = 3  # for any other reason; of a sealed job: all it sent
    DELIVERED = 4
    CROSSED = 5  # a border, in both directions


PLACES: Mapping[tuple[int, int], Slot] = {
    (Table.SPOOF_GUARD, Priority.OBJECT): Slot.OWN,
    (Table.SPOOF_GUARD, Priority.OTHERWISE_OBJECT): Slot.SPOOFED,
    (Table.DENIED, Priority.OBJECT): Slot.UNGRANTED,
    (Table.DENIED, Priority.OTHERWISE_OBJECT): Slot.REFUSED,
    (Table.DELIVER, Priority.OBJECT): Slot.DELIVERED,
    (Table.BORDER_JOB, Priority.OBJECT): Slot.CROSSED,
}
"""By table and priority; an attempt's other flows count nothing that is told."""
Seen = Sequence[tuple[int, int]]
"""Packets and bytes, by slot."""


def seen(counted: Iterable[Counted]) -> Seen:
    """What the flows of one attempt on one bridge have counted."""
    found = [(0, 0)] * len(Slot)
    for table, priority, _, packets, octets in counted:
        slot = PLACES.get((table, priority))
        if slot is not None:
            found[slot] = (packets, octets)
    return found


def refusals(sealed: bool, counted: Seen) -> dict[str, tuple[int, int]]:
    """Packets and bytes that were refused to an attempt, by reason, as `read_counters` tells them; of most, nothing."""
    return {
        why: counted[slot]
        for slot in (Slot.SPOOFED, Slot.UNGRANTED, Slot.REFUSED)
        if counted[slot][0] and (why := reason(slot, sealed)) is not None and (slot is Slot.REFUSED or not sealed)
    }


def read_counters(attempt: Attempt, counted: Seen, protected: Iterable[str] = ()) -> Counters:
    """An attempt's counters from what its own flows on its worker bridge have seen.

    `protected`: the policy's protected services. A drop for want of a grant is counted per attempt, not per service, so
    the text names every service that it can have been.
    """
    sealed = attempt.outcome.sealed
    ungranted = sorted(set(protected) - attempt.outcome.services)
    which = " protected service" + (f" {' or '.join(ungranted)}" if ungranted else "")
    admitted = (0, 0) if sealed else counted[Slot.OWN]
    delivered = counted[Slot.DELIVERED]
    other = "other jobs, a node's own addresses or infrastructure, multicast, or the defaults"
    denied = [_denial(Slot.REFUSED, sealed, counted, "the job is sealed: it has no network" if sealed else other)]
    if not sealed:
        forged = "frames that did not carry the job's own MAC and addresses"
        denied.append(_denial(Slot.SPOOFED, sealed, counted, forged))
        denied.append(_denial(Slot.UNGRANTED, sealed, counted, f"no grant of this job covers{which}"))
    return Counters(
        admitted_packets=admitted[0],
        admitted_bytes=admitted[1],
        delivered_packets=delivered[0],
        delivered_bytes=delivered[1],
        denied=sorted(denied, key=lambda d: d.reason),
    )


def reason(slot: Slot, sealed: bool) -> str | None:
    """The name under which what a slot counts is refused; None: it is not."""
    match slot:
        case Slot.SPOOFED:
            return Reason.SPOOFED.slug
        case Slot.UNGRANTED:
            return Reason.NO_GRANT.slug
        case Slot.REFUSED:
            return Reason.SEALED.slug if sealed else "policy"
    return None


def _denial(slot: Slot, sealed: bool, counted: Seen, text: str) -> Denial:
    packets, octets = counted[slot]
    return Denial(reason=reason(slot, sealed) or "", packets=packets, bytes=octets, text=text)
