"""Increments equal the specification in any history: random policies, jobs, phases, hosts and ports, in any order.

Policies and ads are those that the judges draw (`tests.drawn`). Every step is taken twice: the second time nothing may
be sent. After every step what the controller wants of the bridges, and what they have, is `compiler.desired_flows` of
its world.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from policies.language import PolicyError, check_together
from policies.model import Attempt, World
from policies.wire import AttemptSpec, PortSpec
from policies.wire import Phase as JobPhase
from ryu_apps.fabric import FakeFabric, FakeTicket
from ryu_apps.openflow import compiler
from ryu_apps.openflow.flows import Flow, FlowKey
from ryu_apps.refusals import Refused
from tests.cases import policy_of, site_of
from tests.drawn import Dice, draw_ad, draw_policy, site_text
from tests.seed import SEED
from tests.unit.controller.rig import Rig, aid, node_spec

HISTORIES = 300 if os.environ.get("LARK_TEST_FULL") else 8
STEPS = 12
NODES = ("wn1", "wn2")
BRIDGES = ("wn1-br", "wn2-br", "gate-br")
PHASES = tuple(JobPhase)
HOSTS = ("192.168.7.1", "10.9.1.1", "10.20.0.77", "2001:db8:9::1", "10.20.0.6")


@dataclass(frozen=True, repr=False)
class Step:
    """Something that happens, and how one says it."""

    words: str
    take: Callable[[Rig], object]

    def __repr__(self) -> str:
        return self.words


class TwiceFabric(FakeFabric):
    """A fabric that is told every change twice, as a controller that lost an answer would: the second is nothing."""

    def change(self, bridge: str, add: Sequence[Flow], remove: Sequence[FlowKey]) -> FakeTicket:
        ticket = super().change(bridge, add, remove)
        wanted, sent = self.state[bridge].desired, self.flow_mods
        again = super().change(bridge, add, remove)
        assert (self.state[bridge].desired, self.flow_mods) == (wanted, sent), "a change told twice changed something"
        return again if ticket.result() is None else ticket


@dataclass(frozen=True)
class Drawn:
    """A site, the policies that fit it, and steps; steps in one tuple are independent of one another."""

    site: str
    policies: tuple[str, ...]
    steps: tuple[tuple[Step, ...], ...]
    orders: tuple[tuple[int, ...], ...]


def spec_of(rig: Rig, node: str, lane: int, ad: dict[str, object], phase: JobPhase) -> AttemptSpec:
    where = rig.site.nodes[node]
    ipv4 = where.ipv4[lane]
    mac, ipv6 = compiler.lane_addresses(rig.site, node, ipv4)
    return AttemptSpec(
        node=node,
        port=PortSpec(bridge=where.bridge, name=f"lj{lane}", ofport=100 + lane),
        mac=":".join(f"{octet:02x}" for octet in mac.to_bytes(6, "big")),
        ipv4=str(ipv4),
        ipv6=None if ipv6 is None else str(ipv6),
        zone=1000 + lane,
        phase=phase,
        ad=ad,
        job=f"{lane}.0",
    )


def start(node: str, lane: int, ad: dict[str, object], phase: JobPhase) -> Step:
    return Step(
        f"job {lane} of {node} starts in {phase}: {ad}",
        lambda rig: rig.controller.register(aid(lane, node), spec_of(rig, node, lane, ad, phase)),
    )


def advance(node: str, lane: int, phase: JobPhase) -> Step:
    return Step(f"job {lane} of {node} is in {phase}", lambda rig: rig.controller.advance(aid(lane, node), phase))


def end(node: str, lane: int) -> Step:
    return Step(f"job {lane} of {node} ends", lambda rig: rig.controller.delete(aid(lane, node)))


def follow(text: str) -> Step:
    def step(rig: Rig) -> None:
        rig.policy = policy_of(text)
        rig.controller.reload(rig.policy)

    return Step(f"another policy:\n{text}", step)


def host(node: str, addresses: Sequence[str]) -> Step:
    spec = node_spec(node, *addresses, bridge=f"{node}-br")
    return Step(f"{node} has {', '.join(addresses)}", lambda rig: rig.controller.register_node(node, spec))


def port(bridge: str, name: str, number: int | None) -> Step:
    def step(rig: Rig) -> None:
        ports = {**rig.fabric.state[bridge].ports, name: number}
        rig.fabric.set_ports(bridge, {n: k for n, k in ports.items() if k is not None})

    return Step(f"{bridge} has port {name} as {number}", step)


def away(bridge: str, forget: bool) -> Step:
    def step(rig: Rig) -> None:
        rig.fabric.disconnect(bridge, forget=forget)
        rig.fabric.connect(bridge)

    return Step(f"{bridge} is away for a moment and forgets {'everything' if forget else 'nothing'}", step)


def draw_step(dice: Dice, kind: int, place: int, policies: Sequence[str]) -> Step:
    """`place` says whom it is about: steps of different places or kinds of things are independent."""
    node, lane = NODES[place % 2], 1 + place // 2
    if kind <= 3:
        return start(node, lane, draw_ad(dice), dice.pick(PHASES))
    if kind <= 5:
        return advance(node, lane, dice.pick(PHASES))
    if kind == 6:
        return end(node, lane)
    if kind == 7:
        return host(node, dice.some(HOSTS, 1, 3))
    if kind == 8:
        bridge = BRIDGES[place % 3]
        name = dice.pick(("up0", "wf0", "sf0")) if bridge == "gate-br" else "up0"
        return port(bridge, name, dice.pick((1, 2, 3, 7, None)))
    if kind == 9:
        return away(BRIDGES[place % 3], dice.chance(2))
    return follow(dice.pick(policies))


@st.composite
def histories(draw: st.DrawFn) -> Drawn:
    dice = Dice(lambda n: draw(st.integers(0, n - 1)))
    drawn = [draw_policy(dice, NODES) for _ in range(3)]
    guards = sorted(set.intersection(*(set(protected) for _, protected in drawn)))
    site = site_text(NODES, guards, six=not dice.chance(3))
    policies = tuple(text for text, _ in drawn if fits(text, site))
    groups, orders = [], []
    for _ in range(STEPS // 3):
        # One about each of different jobs, nodes or bridges: whichever comes first, the end is the same.
        places = dice.some(range(6), 3, 3)
        kinds = [dice.pick((0, 1, 2, 3, 4, 5, 6)) for _ in places]
        single = dice.pick((None, 7, 8, 9, 10))
        if single is not None:
            kinds[0] = single
        groups.append(tuple(draw_step(dice, kind, place, policies) for kind, place in zip(kinds, places, strict=True)))
        orders.append(tuple(dice.some(range(3), 3, 3)))
    return Drawn(site, policies, tuple(groups), tuple(orders))


def fits(policy: str, site: str) -> bool:
    try:
        check_together(policy_of(policy), site_of(site))
    except PolicyError:
        return False
    return True


def take(rig: Rig, step: Step) -> None:
    """The step, its repetition, and what must hold after both."""
    attempt(rig, step)
    specified = rig.specification()
    assert rig.desired() == specified, f"the increments are not the specification after: {step}"
    assert {name: state.actual for name, state in rig.fabric.state.items()} == specified
    sent, world = rig.fabric.flow_mods, rig.controller.world
    attempt(rig, step)
    assert rig.controller.world == world, f"taken twice, this changed something: {step}"
    if "forgets everything" not in step.words:
        assert rig.fabric.flow_mods == sent, f"taken twice, this sent something: {step}"


def attempt(rig: Rig, step: Step) -> None:
    """A history has requests that are refused, too."""
    with contextlib.suppress(Refused):
        step.take(rig)


def renumbered(world: World, like: World) -> World:
    """The same world with the numbers that things have in the other: only they may depend on the order."""
    attempts: dict[str, Attempt] = {}
    for id, attempt in world.attempts.items():
        attempts[id] = replace(attempt, number=like.attempts[id].number)
    identities = {outcome: like.identities[outcome] for outcome in world.identities}
    slices = {name: like.slice_numbers[name] for name in world.slice_numbers}
    services = {name: like.service_numbers[name] for name in world.service_numbers}
    return replace(
        world,
        attempts=attempts,
        identities=identities,
        slice_numbers=slices,
        service_numbers=services,
        share_numbers={share: like.share_numbers[share] for share in world.share_numbers},
    )


def new_rig(drawn: Drawn, make_fabric: type[FakeFabric]) -> Rig:
    first = policy_of(drawn.policies[0])
    return Rig(site_of(drawn.site), first, policy_of, deadline=0.005, make_fabric=make_fabric)


thorough = settings(
    max_examples=HISTORIES,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)


@pytest.mark.timeout(1200)
@seed(SEED)
@thorough
@given(histories())
def test_in_any_history_and_any_order_the_increments_equal_the_specification(drawn: Drawn) -> None:
    try:
        live(drawn)
    except AssertionError:
        live(reduced(drawn))
        raise


def live(drawn: Drawn, make_fabric: type[FakeFabric] = TwiceFabric) -> None:
    here, there = new_rig(drawn, make_fabric), new_rig(drawn, make_fabric)
    for group, order in zip(drawn.steps, drawn.orders, strict=True):
        for step in group:
            take(here, step)
        for n in order:
            take(there, group[n])
        other = renumbered(there.controller.world, here.controller.world)
        for bridge in BRIDGES:
            assert compiler.desired_rules(other, bridge) == here.fabric.state[bridge].actual
    here.check()
    sent = here.fabric.flow_mods
    here.restart()
    assert here.fabric.flow_mods == sent


def reduced(drawn: Drawn) -> Drawn:
    """The history without every step that it fails without, too; it is printed."""
    nothing = Step("nothing happens", lambda rig: None)
    for place in [(g, s) for g, group in enumerate(drawn.steps) for s in range(len(group))]:
        fewer = tuple(
            tuple(nothing if (g, s) == place else step for s, step in enumerate(group))
            for g, group in enumerate(drawn.steps)
        )
        try:
            live(replace(drawn, steps=fewer))
        except AssertionError:
            drawn = replace(drawn, steps=fewer)
    told = [step.words for group in drawn.steps for step in group if step is not nothing]
    print("a history that fails:", drawn.site, f"policy:\n{drawn.policies[0]}", *told, sep="\n")
    return drawn


class Forgetful(FakeFabric):
    """A fabric that overlooks what is to go when something comes in its stead."""

    def change(self, bridge: str, add: Sequence[Flow], remove: Sequence[FlowKey]) -> FakeTicket:
        return super().change(bridge, add, [] if add else remove)


def test_a_history_notices_increments_that_leave_something_behind() -> None:
    @seed(SEED)
    @thorough
    @given(histories())
    def lived(drawn: Drawn) -> None:
        live(drawn, Forgetful)

    with pytest.raises(AssertionError, match="the increments are not the specification"):
        lived()


def test_a_policy_without_what_a_gate_guards_does_not_fit_the_site() -> None:
    site = site_text(NODES, ["s0"], six=True)
    assert not fits("mode: enforce\n", site)
    assert fits("services: {s0: {hosts: [10.20.0.5], ports: [tcp/1], protected: true}}\n", site)
