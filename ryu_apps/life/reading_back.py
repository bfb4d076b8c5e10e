"""A controller that starts reads everything back from the store.

Invariants: nothing is decided anew unless the policy is another one; a number never comes to mean anything else: it
stays with the outcome, slice or share that it was given for, and what another policy makes of an attempt has one of its
own. Where the store contradicts itself (two rows with one number for two things, or two jobs on one port), the row that
was registered first counts, and the other gets a number of its own or ends: never one job's grants for another.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from policies.model import Decision, Outcome, ShareKey
from ryu_apps.life.checks import Claim, Fitting, attempt_of, check, claims, share_key
from ryu_apps.life.deciding import Holders, decide_anew, holders, outdated_by
from ryu_apps.life.present import Present
from ryu_apps.life.records import Records
from ryu_apps.refusals import Refused
from ryu_apps.shared import emptying
from ryu_apps.store.store import AttemptRow, Change, Kind, PutAttempt, Snapshot

LOG = logging.getLogger("lark.controller")
T = TypeVar("T")


def read_back(snapshot: Snapshot, present: Present, records: Records) -> list[AttemptRow]:
    """Put what is stored into `present`, and what that changes into the store. Gives those that leave.

    Raises StoreError.
    """
    # Whatever comes meanwhile, nothing but this changes the world before it is read back.
    world, numbers = present.world, present.numbers
    if records.shared:
        records.stored = {row.id: row for row in snapshot.attempts}
    known = dict(snapshot.numbers)
    changes: list[Change] = []
    service_numbers = numbers.of(Kind.SERVICE, world.policy.services, known, changes)
    node_numbers = numbers.of(Kind.NODE, world.site.nodes, known, changes)
    present.least_numbers = {
        **{key: number for key, number in known.items() if key[0] in (Kind.SERVICE, Kind.NODE)},
        **{(Kind.SERVICE, name): number for name, number in service_numbers.items()},
        **{(Kind.NODE, name): number for name, number in node_numbers.items()},
    }
    present.nodes = {row.name: row for row in snapshot.nodes if row.name in world.site.nodes}
    changed: dict[str, AttemptRow] = {}
    living, leaving = _sorted_out(snapshot, present, changed)
    for row in leaving:
        present.hold_share(row)
    identities, slices, shares = _numbers_kept(living)
    outcomes = {id(row.decision.outcome): row.decision.outcome for row, _ in living}
    for outcome in outcomes.values():
        if outcome not in identities:
            identities[outcome] = numbers.take(Kind.IDENTITY)
    for row, _ in living:
        name = row.decision.slice
        if name is not None and name not in slices:
            slices[name] = numbers.take(Kind.SLICE)
    for row, _ in living:
        share = share_key(row)
        if share is not None and share not in shares:
            shares[share] = present.fresh_share(shares.values())
    present.replace(
        replace(
            world,
            host_addresses={name: present.believed(row) for name, row in present.nodes.items()},
            service_numbers=service_numbers,
            node_numbers=node_numbers,
            identities=identities,
            slice_numbers=slices,
            share_numbers=shares,
            attempts={row.id: attempt_of(row) for row, _ in living},
        )
    )
    held: Holders | None = None
    for row, decided in living:
        if decided is not row.decision and decided != row.decision:
            if held is None:  # under the same policy nobody asks
                held = holders(replace(one, decision=before) for one, before in living)
            row = outdated_by(present.world, replace(row, decision=decided), present.world, row, held)
        kept = present.keep(row)
        if kept.id in changed or kept is not row:
            changed[kept.id] = kept
    # One write a row: among several controllers each names what it replaces.
    records.write_at_start([*changes, *map(PutAttempt, changed.values())])
    numbers.reserve()
    LOG.info(
        "read back %d attempts (%d leaving) of %d nodes, %d identities; policy %s",
        len(living), len(leaving), len(present.nodes), len(identities), world.policy.digest[:12],
    )  # fmt: skip
    return leaving


def _sorted_out(
    snapshot: Snapshot, present: Present, changed: dict[str, AttemptRow]
) -> tuple[list[tuple[AttemptRow, Decision]], list[AttemptRow]]:
    """Rows of living attempts, each with the decision that is stored, and of those that leave."""
    world = present.world
    fits = Fitting(world, present.nodes)
    fitting: list[AttemptRow] = []
    leaving: list[AttemptRow] = []

    def torn_down(row: AttemptRow) -> None:
        leaving.append(replace(row, leaving=tuple(world.site.bridges)))
        changed[row.id] = leaving[-1]

    for row in sorted(snapshot.attempts, key=lambda row: row.number):
        if row.leaving:
            leaving.append(row)
            continue
        try:
            if not fits(row.id, row.spec):
                check(world, present.nodes, row.id, row.spec)
        except Refused as refused:
            LOG.error("attempt=%s does not fit site.yaml any more (%s): torn down", row.id, refused.detail)
            torn_down(row)
            continue
        fitting.append(row)
    for row, (where, what, which), holder in _second_holders(fitting):
        LOG.error(
            "attempt=%s is stored with the same %s %s (%s) as attempt=%s, which was before it: torn down",
            row.id, what, which, where, holder,
        )  # fmt: skip
        torn_down(row)
    living: list[tuple[AttemptRow, Decision]] = []
    for row in fitting:
        if row.id in changed:
            continue
        decided = row.decision
        if row.digest != world.policy.digest:
            # What was allowed by a policy that nobody has any more is not known: no connection of then is relied on.
            row = emptying(decide_anew(row, world.policy))
            changed[row.id] = row
        living.append((row, decided))
    return living, leaving


def _second_holders(rows: Sequence[AttemptRow]) -> list[tuple[AttemptRow, Claim, str]]:
    """Those that claim what a row before them has, what that is, and whose it is."""
    ports = [row.spec.port for row in rows]
    # Of thousands of sound rows this is all that is looked at; MAC, IPv6 address and zone follow from the IPv4 address.
    if (
        len({row.number for row in rows})
        == len({row.spec.ipv4 for row in rows})
        == len({(port.bridge, port.name) for port in ports})
        == len({(port.bridge, port.ofport) for port in ports})
        == len(rows)
    ):
        return []
    holders: dict[Claim, str] = {}
    found = []
    for row in rows:
        claimed: tuple[Claim, ...] = (("the controller", "number", row.number), *claims(row.spec))
        taken = next((claim for claim in claimed if claim in holders), None)
        if taken is not None:
            found.append((row, taken, holders[taken]))
        else:
            holders.update(dict.fromkeys(claimed, row.id))
    return found


def _numbers_kept(
    living: Sequence[tuple[AttemptRow, Decision]],
) -> tuple[dict[Outcome, int], dict[str, int], dict[ShareKey, int]]:
    """Numbers of the outcomes, slices and shares that are what they were.

    Two controllers may have given a number each to the same thing at the same moment: the lower counts. A number that
    two things have stays with the first.
    """
    identities: dict[Outcome, int] = {}
    slices: dict[str, int] = {}
    shares: dict[ShareKey, int] = {}
    seen: set[tuple[int, int, int]] = set()
    for row, decided in living:
        # Rows share their outcomes' objects, and hashing one costs more than all else here.
        pair = id(row.decision.outcome), id(decided.outcome), row.identity
        if pair not in seen:
            seen.add(pair)
            if row.decision.outcome == decided.outcome:
                identities[decided.outcome] = min(row.identity, identities.get(decided.outcome, row.identity))
        if decided.slice is not None and row.decision.slice == decided.slice:
            slices[decided.slice] = min(row.slice_number, slices.get(decided.slice, row.slice_number))
        share = share_key(row)
        # Versions before 1.4 of the store had no numbers of shares.
        if share is not None and row.share_number and share == share_key(replace(row, decision=decided)):
            shares[share] = min(row.share_number, shares.get(share, row.share_number))
    rows = [row for row, _ in living]
    _each_its_own("identity", identities, rows, lambda row: (row.decision.outcome, row.identity))
    _each_its_own("slice", slices, rows, lambda row: (row.decision.slice, row.slice_number))
    _each_its_own("share", shares, rows, lambda row: (share_key(row), row.share_number))
    return identities, slices, shares


def _each_its_own(
    what: str, numbers: dict[T, int], rows: Sequence[AttemptRow], said: Callable[[AttemptRow], tuple[T | None, int]]
) -> None:
    """Whoever has a number that stands for another is taken out. `said`: what a row says of this kind."""
    if len(set(numbers.values())) == len(numbers):
        return
    holders: dict[int, T] = {}
    for thing, number in list(numbers.items()):
        holder = holders.setdefault(number, thing)
        if holder != thing:
            del numbers[thing]
            first, second = (next(row.id for row in rows if said(row) == (one, number)) for one in (holder, thing))
            LOG.error(
                "attempt=%s and attempt=%s are stored with one %s number, %d, for what is not the same: the latter's "
                "gets another number",
                first, second, what, number,
            )  # fmt: skip
