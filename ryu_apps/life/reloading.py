"""Another policy in force, also for the attempts there are. Invariant: all or nothing; the old one stays otherwise."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from policies.model import Attempt, Outcome, Policy, World
from ryu_apps.life.checks import attempt_of, share_key
from ryu_apps.life.deciding import decide_anew, holders, outdated_by
from ryu_apps.life.present import Present
from ryu_apps.life.records import Records
from ryu_apps.life.refused import LastCounts
from ryu_apps.life.requests import Confirmation
from ryu_apps.life.telling import Telling
from ryu_apps.life.times import Times
from ryu_apps.openflow import compiler
from ryu_apps.openflow.tracked import outlived
from ryu_apps.shared import emptying, outdated, outdating, to_empty
from ryu_apps.store.store import Change, Kind, PutNumber

LOG = logging.getLogger("lark.controller")
T = TypeVar("T")


def reload(
    policy: Policy,
    present: Present,
    telling: Telling,
    records: Records,
    counts: LastCounts,
    confirmation: Confirmation,
    times: Times,
) -> None:
    """Raises StoreError; then the old policy stays in force."""
    present.numbers.top_up()
    _number_services(policy, present, records, times)
    with present.lock:
        world, was = present.world, dict(present.world.attempts)
        before = world.policy.digest
        counts.until_now(policy)
        rows = {id: decide_anew(row, policy) for id, row in present.rows.items()}
        # Another controller may have this policy already, and have given numbers by it.
        given = [row for row in records.stored.values() if row.digest == policy.digest]
        identities = _numbered(
            (row.decision.outcome for row in rows.values()),
            world.identities,
            ((row.decision.outcome, row.identity) for row in given),
            lambda: present.numbers.take(Kind.IDENTITY),
        )
        slices = _numbered(
            (row.decision.slice for row in rows.values() if row.decision.slice is not None),
            world.slice_numbers,
            ((row.decision.slice, row.slice_number) for row in given if row.decision.slice is not None),
            lambda: present.numbers.take(Kind.SLICE),
        )
        shares = _numbered(
            (share for row in rows.values() if (share := share_key(row)) is not None),
            world.share_numbers,
            ((share, row.share_number) for row in given if row.share_number and (share := share_key(row)) is not None),
            lambda: present.fresh_share(world.share_numbers.values()),
        )
        present.replace(
            replace(
                world,
                policy=policy,
                service_numbers={
                    **world.service_numbers,
                    **{name: present.least_numbers[Kind.SERVICE, name] for name in policy.services},
                },
                identities=identities,
                slice_numbers=slices,
                share_numbers=shares,
                attempts={id: attempt_of(row) for id, row in rows.items()},
            )
        )
        others = [row for row in records.stored.values() if row.digest != before]
        held = holders([*present.rows.values(), *others])
        present.rows = {
            id: present.numbered(outdated_by(world, present.rows[id], present.world, row, held))
            for id, row in rows.items()
        }
        for row in others:
            if row.id in rows and row.decision.slice is not None:
                # By another controller's policy it was in a slice, of which we knew nothing.
                mine = present.rows[row.id]
                knew = held.get(row.decision.slice, set()).difference(
                    compiler.bridges_of(present.world, present.world.attempts[row.id])
                )
                present.rows[row.id] = outdating(mine, knew.union(outdated(mine)))
        tickets = telling.say_everything()
        less = _outlived(world, was, present.world)
        for id in less:
            stored = records.stored.get(id)
            # Another controller that has this policy already has marked what may do less, and has perhaps emptied it.
            if stored is None or stored.digest != policy.digest or stored.spec.port.bridge in telling.mine:
                present.rows[id] = emptying(present.rows[id])
        for row in others:
            if row.id in rows and row.digest != policy.digest:
                # What yet another policy allowed is not known here.
                present.rows[row.id] = emptying(present.rows[row.id])
        zones: dict[str, list[int]] = {}
        for row in present.rows.values():
            if to_empty(row):
                zones.setdefault(row.spec.port.bridge, []).append(row.spec.zone)
        for bridge, found in zones.items():
            telling.outlive(bridge, tickets[bridge], found)
        pending = records.put_all()
        if records.shared:
            tickets = {bridge: ticket for bridge, ticket in tickets.items() if bridge in telling.mine}
    failure = confirmation.wait("(all)", tickets, pending, times.until())
    LOG.info(
        "policy %s replaces %s; %d attempts decided anew, %d of them may do less than before",
        policy.digest[:12], before[:12], len(rows), len(less),
    )  # fmt: skip
    if failure is not None:
        late = failure.answer.detail.removesuffix("; try again")
        LOG.warning("the new policy is not in force everywhere yet: %s; these follow as soon as they can", late)


def _number_services(policy: Policy, present: Present, records: Records, times: Times) -> None:
    """Durable numbers for the services of a policy. Raises StoreError."""
    fresh: list[Change] = []
    present.numbers.of(Kind.SERVICE, policy.services, dict(present.least_numbers), fresh)
    with present.lock:
        # Known before it is stored: another controller's that is stored after it is then seen to be a higher one.
        for change in fresh:
            if isinstance(change, PutNumber):
                present.set_number(change.kind, change.name, change.number)
    if fresh:
        records.store.write(fresh).wait(times.until())


def _outlived(then: World, was: Mapping[str, Attempt], now: World) -> list[str]:
    """The attempts that may do less than before."""
    less: dict[tuple[Outcome, Outcome, str], bool] = {}
    found: list[str] = []
    for id, new in now.attempts.items():
        kind = (was[id].outcome, new.outcome, new.node)
        if kind not in less:
            less[kind] = outlived(then, was[id], now, new)
        if less[kind]:
            found.append(id)
    return found


def _numbered(
    wanted: Iterable[T], ours: Mapping[T, int], given: Iterable[tuple[T, int]], take: Callable[[], int]
) -> dict[T, int]:
    """The number of each of them: of several the lowest counts, as everywhere; without any it gets a new one."""
    known = dict(ours)
    for one, number in given:
        known[one] = min(number, known.get(one, number))
    return {one: known.get(one) or take() for one in dict.fromkeys(wanted)}
