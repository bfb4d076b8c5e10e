"""Rates and shares as the controller has them on a bridge: meters come and go with jobs, and outlive a restart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from policies.language import load_site
from policies.model import Policy
from policies.wire import Phase
from ryu_apps.openflow.meters import MOST_SHARES, MeterRule, Owner, Way, owners
from ryu_apps.store.store import Kind
from tests.unit.controller.rig import POLICY, SITE, Rig, aid, spec

LIMITS = POLICY.replace("attributes:\n", "attributes:\n  LarkMbps: {type: number, min: 1}\n") + (
    "rates: [{rate: LarkMbps, unit: Mbit/s}]\nshares: [{for: physics, per: User, share: 10%}]\n"
)
ALICE = {"LarkGroup": "physics", "User": "alice@site"}
RATE, SHARE = 0x4C000000, 0x4C800000
TENTH = 100_000


def meters_of(number: int, kind: int, rate: int) -> dict[int, int]:
    """The meters of a rate (numbered by the job's zone) or of a share (by its own number)."""
    return {kind | number << 1: rate, kind | number << 1 | 1: rate}


@pytest.fixture
def limited(tmp_path: Path, load: Callable[[str], Policy]) -> Rig:
    path = tmp_path / "site.yaml"
    path.write_text(
        SITE.replace('1::/96"}', '1::/96", link: 1 Gbit/s}').replace('2::/96"}', '2::/96", link: 1 Gbit/s}')
    )
    return Rig(load_site(path), load(LIMITS), load)


def test_a_rated_job_has_two_meters_and_no_flow_more_and_an_unlimited_one_has_none(limited: Rig) -> None:
    state = limited.fabric.state["br1"]
    limited.controller.register(aid(), spec(LarkGroup="x"))
    plain = len(state.flows)
    assert state.meters == {}
    limited.controller.register(aid(3), spec(3, LarkMbps=50))
    assert state.meters == meters_of(1003, RATE, 50_000)
    before_first = len(state.flows)
    limited.controller.register(aid(4), spec(4, LarkMbps=50, **ALICE))
    assert state.meters == (meters_of(1003, RATE, 50_000) | meters_of(1004, RATE, 50_000) | meters_of(1, SHARE, TENTH))
    assert before_first - plain == 6
    limited.check()
    for n in (2, 3, 4):
        limited.controller.delete(aid(n))
        limited.check()
    assert state.meters == {}
    assert limited.fabric.state["br2"].meters == {}


def test_a_job_that_is_registered_again_brings_back_meters_that_its_bridge_has_forgotten(limited: Rig) -> None:
    state = limited.fabric.state["br1"]
    limited.controller.register(aid(), spec(LarkMbps=50, **ALICE))
    before = state.meters
    assert state.desired is not None
    for key in [key for key in state.desired if key in before]:
        del state.desired[key]
    limited.controller.register(aid(), spec(LarkMbps=50, **ALICE))
    limited.check()
    assert state.meters == before
    assert len(before) == 4


def test_a_sealed_job_has_no_meters(limited: Rig) -> None:
    limited.controller.register(aid(), spec(LarkNetwork="none", LarkMbps=50, **ALICE))
    assert limited.fabric.state["br1"].meters == {}
    limited.controller.register(aid(3), spec(3, LarkMbps=50, **ALICE))
    assert len(limited.fabric.state["br1"].meters) == 4


def test_a_share_is_one_for_a_user_s_jobs_of_a_node_and_goes_with_the_last_of_them(limited: Rig) -> None:
    here, there = limited.fabric.state["br1"], limited.fabric.state["br2"]
    for n in (2, 3, 4):
        limited.controller.register(aid(n), spec(n, **ALICE))
        assert here.meters == meters_of(1, SHARE, TENTH)
    limited.controller.register(aid(2, "wn2"), spec(2, "wn2", **ALICE))
    assert there.meters == meters_of(2, SHARE, TENTH), "on another node it is another share"
    limited.controller.register(aid(5), spec(5, **ALICE | {"User": "bob@site"}))
    for n in (3, 2):
        assert here.meters == meters_of(1, SHARE, TENTH) | meters_of(3, SHARE, TENTH)
        limited.check()
        limited.controller.delete(aid(n))
    limited.controller.delete(aid(4))
    limited.check()
    assert here.meters == meters_of(3, SHARE, TENTH)
    limited.controller.register(aid(4), spec(4, **ALICE))
    assert here.meters == meters_of(3, SHARE, TENTH) | meters_of(4, SHARE, TENTH), "a share that comes again is new"


def test_the_end_of_any_of_64_sharers_sends_only_the_removal_of_its_own_flows(limited: Rig) -> None:
    state = limited.fabric.state["br1"]
    limited.controller.register(aid(1), spec(1, **ALICE | {"User": "bob@site"}))
    alone = set(state.flows)
    limited.controller.register(aid(2), spec(2, **ALICE))
    own = len(set(state.flows) - alone)
    for n in range(3, 60):
        limited.controller.register(aid(n), spec(n, **ALICE))
    state.ports |= {f"lj{n}": 100 + n for n in range(60, 66)}
    limited.fabric.connect("br1")
    for n in range(60, 66):
        limited.controller.register(aid(n), spec(n, **ALICE))
    for n in (2, 40, 3):  # the oldest, one in the middle, the oldest again
        sent = state.flow_mods
        limited.controller.delete(aid(n))
        assert state.flow_mods - sent == own == 6
    limited.check()
    assert state.meters == meters_of(1, SHARE, TENTH) | meters_of(2, SHARE, TENTH)


def test_the_number_of_a_share_is_not_given_again_while_a_bridge_may_have_its_meters(limited: Rig) -> None:
    here = limited.fabric.state["br1"]
    limited.controller.register(aid(2), spec(2, **ALICE))
    limited.fabric.disconnect("br1")
    limited.controller.delete(aid(2))
    # Four million shares later.
    limited.store.next[Kind.SHARE] = MOST_SHARES + 1
    limited.restart()
    assert limited.store.attempts[aid(2)].leaving
    limited.controller.register(aid(2, "wn2"), spec(2, "wn2", **ALICE))
    assert limited.fabric.state["br2"].meters == meters_of(2, SHARE, TENTH), "0 is no number and 1 is taken"
    limited.fabric.connect("br1")
    limited.controller.tick()
    assert aid(2) not in limited.store.attempts
    assert here.meters == {}
    # The control: once it is gone, its number may come round again.
    limited.store.next[Kind.SHARE] = MOST_SHARES + 1
    limited.restart()
    limited.controller.register(aid(3), spec(3, **ALICE))
    assert here.meters == meters_of(1, SHARE, TENTH)
    limited.check()


def test_shares_of_a_store_without_numbers_get_them_once(limited: Rig) -> None:
    for n in (2, 3):
        limited.controller.register(aid(n), spec(n, **ALICE))
    before, flows = limited.fabric.state["br1"].meters, limited.fabric.state["br1"].flows
    # As versions before 1.4 of the store's schema are read.
    limited.store.attempts = {id: replace(row, share_number=0) for id, row in limited.store.attempts.items()}
    limited.restart()
    limited.check()
    numbered = limited.fabric.state["br1"].meters
    assert len(numbered) == 2
    assert numbered.keys() != before.keys()
    assert set(limited.fabric.state["br1"].flows) == set(flows)
    assert {row.share_number for row in limited.store.attempts.values()} == {(min(numbered) & ~SHARE) >> 1}
    sent = limited.fabric.flow_mods
    limited.restart()
    assert limited.fabric.state["br1"].meters == numbered
    assert limited.fabric.flow_mods == sent


def test_on_a_switch_without_meters_everything_but_limits_goes_on_and_the_log_says_so(
    limited: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    state = limited.fabric.state["br1"]
    limited.controller.register(aid(), spec(LarkGroup="x"))
    metered = dict(state.actual)
    assert len([one for one in metered.values() if isinstance(one, MeterRule)]) == 16
    limited.fabric.disconnect("br1")
    state.has_meters = False
    limited.fabric.connect("br1")
    limited.check()
    assert "its switch has no meters: jobs with a rate or a share do not start there" in caplog.text
    assert not any(isinstance(one, MeterRule) for one in state.actual.values())
    limited.controller.register(aid(3), spec(3, LarkGroup="x"))
    limited.check()
    limited.restart()
    limited.check()
    assert not any(isinstance(one, MeterRule) for one in state.actual.values())
    # The control: with meters again it is as it was.
    limited.controller.delete(aid(3))
    limited.fabric.disconnect("br1")
    state.has_meters = True
    limited.fabric.connect("br1")
    limited.check()
    assert state.actual == metered


def test_whose_a_meter_is_follows_from_its_number(limited: Rig) -> None:
    limited.controller.register(aid(2), spec(2, LarkMbps=50, **ALICE))
    limited.controller.register(aid(3), spec(3, **ALICE))
    limited.controller.register(aid(2, "wn2"), spec(2, "wn2", LarkMbps=50))
    world = limited.controller.world
    share = world.attempts[aid(2)].share
    assert share is not None
    found = owners(world, "br1")
    assert set(found) == set(limited.fabric.state["br1"].meters)
    assert found == {
        RATE | 1002 << 1: Owner(aid(2), None, Way.OUT),
        RATE | 1002 << 1 | 1: Owner(aid(2), None, Way.IN),
        SHARE | 1 << 1: Owner(None, share.name, Way.OUT),
        SHARE | 1 << 1 | 1: Owner(None, share.name, Way.IN),
    }


def test_another_policy_changes_rates_in_place_and_touches_no_flow(limited: Rig, load: Callable[[str], Policy]) -> None:
    limited.controller.register(aid(), spec(LarkMbps=50, **ALICE))
    limited.controller.register(aid(3), spec(3, **ALICE))
    state = limited.fabric.state["br1"]
    flows, sent = state.flows, state.flow_mods
    limited.controller.reload(load(LIMITS.replace("10%", "20%").replace("rate: LarkMbps", "rate: LarkMbps * 2")))
    limited.check()
    assert state.meters == meters_of(1002, RATE, 100_000) | meters_of(1, SHARE, 2 * TENTH)
    assert state.flows == flows
    assert state.flow_mods - sent == 4, "four meters, and nothing else"
    limited.controller.reload(load(POLICY))
    limited.check()
    assert state.meters == {}


def test_a_phase_later_the_limits_are_the_same_ones(limited: Rig) -> None:
    limited.controller.register(aid(), spec(LarkMbps=50, **ALICE))
    before = limited.fabric.state["br1"].meters
    limited.controller.advance(aid(), Phase.RUN)
    limited.check()
    assert limited.fabric.state["br1"].meters == before != {}
    view = limited.controller.attempt(aid()).decision
    assert (view.rate, view.share) == (50_000_000, "10% of group physics per User (alice@site)")


def test_a_restart_sends_no_meter(limited: Rig) -> None:
    for n in (3, 2):
        limited.controller.register(aid(n), spec(n, LarkMbps=50, **ALICE))
    before, sent = limited.fabric.state["br1"].meters, limited.fabric.flow_mods
    limited.restart()
    limited.check()
    assert limited.fabric.state["br1"].meters == before
    assert limited.fabric.flow_mods == sent
