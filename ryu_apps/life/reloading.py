"""Another policy in force, also for the attempts there are. Invariant: all or nothing; the old one stays otherwise."""

from __future__ import annotations

import logging
from dataclasses import replace

from policies.model import Policy
from ryu_apps.life.checks import attempt_of
from ryu_apps.life.deciding import decide_anew
from ryu_apps.life.present import Present
from ryu_apps.life.records import Records
from ryu_apps.life.refused import LastCounts
from ryu_apps.life.requests import Confirmation
from ryu_apps.life.telling import Telling
from ryu_apps.life.times import Times
from ryu_apps.store.store import Change, Kind

LOG = logging.getLogger("lark.controller")


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
    numbers = {(Kind.SERVICE, name): number for name, number in present.world.service_numbers.items()}
    fresh: list[Change] = []
    present.numbers.top_up()
    service_numbers = present.numbers.of(Kind.SERVICE, policy.services, numbers, fresh)
    if fresh:
        records.store.write(fresh).wait(times.until())
    with present.lock:
        world = present.world
        before = world.policy.digest
        counts.until_now(policy)
        rows = {id: decide_anew(row, policy) for id, row in present.rows.items()}
        identities = {
            outcome: world.identities.get(outcome) or present.numbers.take(Kind.IDENTITY)
            for outcome in dict.fromkeys(row.decision.outcome for row in rows.values())
        }
        slices = {
            name: world.slice_numbers.get(name) or present.numbers.take(Kind.SLICE)
            for name in dict.fromkeys(row.decision.slice for row in rows.values())
            if name is not None
        }
        present.replace(
            replace(
                world,
                policy=policy,
                service_numbers={**world.service_numbers, **service_numbers},
                identities=identities,
                slice_numbers=slices,
                attempts={id: attempt_of(row) for id, row in rows.items()},
            )
        )
        present.rows = {id: present.numbered(row) for id, row in rows.items()}
        tickets = telling.say_everything(world)
        pending = records.put_all()
        if records.shared:
            tickets = {bridge: ticket for bridge, ticket in tickets.items() if bridge in telling.mine}
    failure = confirmation.wait("(all)", tickets, pending, times.until())
    LOG.info("policy %s replaces %s; %d attempts decided anew", policy.digest[:12], before[:12], len(rows))
    if failure is not None:
        late = failure.answer.detail.removesuffix("; try again")
        LOG.warning("the new policy is not in force everywhere yet: %s; these follow as soon as they can", late)
