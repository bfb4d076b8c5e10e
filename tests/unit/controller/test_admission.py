"""What the controller takes up at a time: what is taken up is done in time, who is told to come again, who never is."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from ryu_apps.admission import AT_FIRST, BEAT, FEW, LATELY, LONGEST, SHARE, Admission
from ryu_apps.refusals import Refused, Slug

DEADLINE = 10.0


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Site:
    """An admission, its clock, and who is in."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.admission = Admission(self.clock, DEADLINE)
        self.inside = contextlib.ExitStack()

    def come(self, count: int, node: str = "wn1") -> list[Callable[[bool], None]]:
        return [self.inside.enter_context(self.admission.place(node)) for _ in range(count)]

    def refused(self, node: str = "wn1") -> Refused | None:
        try:
            with self.admission.place(node):
                return None
        except Refused as refused:
            return refused


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    with made.inside:
        yield made


# --- a day at a controller, by a simulated clock ----------------------------------------------------------------------


@dataclass
class Day:
    """A controller that does `pace(now)` registrations a second, in the order in which they came; `asked(now)` new ones
    a second want to be done by its nodes in turn. Who is told to come again does, as an agent."""

    pace: Callable[[float], float]
    asked: Callable[[float], float]
    seconds: float
    node: Callable[[int], str] = lambda number: f"wn{number % 40}"
    seed: int = 1
    frozen: tuple[float, float] = (0.0, 0.0)
    """From when to when the whole process stands still: what is asked meanwhile comes afterwards, all at once."""
    took: list[float] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    turned_away: int = 0
    busy_until: float = 0.0

    def run(self) -> Day:
        site, chance = Site(), random.Random(self.seed)
        began = now = site.clock.now
        coming: list[tuple[float, int, str]] = []
        queue: deque[tuple[float, str, contextlib.ExitStack]] = deque()
        serial, owed, spare, beat = itertools.count(), 0.0, 0.0, now
        step = 0.01
        while now - began < self.seconds:
            now += step
            owed += self.asked(now - began) * step
            if self.frozen[0] <= now - began < self.frozen[1]:
                continue
            site.clock.now = now
            if now - beat >= BEAT:
                site.admission.beat()
                beat = now
            while owed >= 1:
                owed -= 1
                number = next(serial)
                heapq.heappush(coming, (now, number, self.node(number)))
            while coming and coming[0][0] <= now:
                _, number, node = heapq.heappop(coming)
                stack = contextlib.ExitStack()
                try:
                    stack.enter_context(site.admission.place(node))
                except Refused as refused:
                    self.turned_away += 1
                    after = refused.retry_after * chance.uniform(1, 1.5)
                    heapq.heappush(coming, (now + after, number, node))
                else:
                    queue.append((now, node, stack))
            spare = min(spare + self.pace(now - began) * step, 1 if not queue else 1e9)
            while queue and spare >= 1:
                spare -= 1
                came, node, stack = queue.popleft()
                self.took.append(now - came)
                self.done[node] += 1
                stack.close()
        for came, _, stack in queue:
            self.took.append(now - came)
            stack.close()
        return self

    @property
    def late(self) -> int:
        return sum(took > DEADLINE for took in self.took)


@pytest.mark.parametrize("pace", [15, 60, 200])
def test_at_twice_its_capacity_all_that_is_taken_up_is_done_in_time_and_nothing_is_idle(pace: float) -> None:
    day = Day(lambda _: pace, lambda _: 2 * pace, 30).run()
    assert day.late == 0
    assert max(day.took) < DEADLINE / 2 + 1
    assert day.done.total() >= 0.9 * pace * 30
    assert day.turned_away > 0
    shares = [day.done[f"wn{n}"] for n in range(40)]
    assert max(shares) <= 1.6 * min(shares) + 8


def test_the_control_without_an_admission_most_would_be_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ryu_apps.admission.FEW", 10**9)
    day = Day(lambda _: 150, lambda _: 300, 60).run()
    assert day.turned_away == 0
    assert day.late > 0.5 * day.done.total()


@pytest.mark.parametrize("then", [35, 50])
def test_a_pace_that_falls_makes_nobody_late(then: float) -> None:
    """For half of the time it is slower: another process takes the processor, the disk is slow."""
    day = Day(lambda t: then if 10 < t < 20 else 100, lambda _: 150, 30).run()
    assert day.late == 0
    assert day.done.total() >= 0.9 * (20 * 100 + 10 * then)


def test_a_standstill_of_seconds_makes_nobody_late() -> None:
    day = Day(lambda t: 0 if 10 < t < 15 else 100, lambda _: 150, 30).run()
    assert day.late == 0
    assert day.done.total() >= 0.9 * 25 * 100


def test_a_store_that_stands_still_nearly_as_long_as_anybody_has_makes_nobody_late() -> None:
    day = Day(lambda t: 0 if 10 < t < 17 else 250, lambda _: 200, 40).run()
    assert day.late == 0
    assert day.turned_away > 500
    assert day.done.total() >= 0.9 * 33 * 200


@pytest.mark.parametrize("pace", [110, 250])
def test_what_comes_all_at_once_after_a_standstill_of_the_process_is_done_in_time(pace: float) -> None:
    """At 100 a second asked of it, eight seconds' worth."""
    day = Day(lambda _: pace, lambda _: 100, 60, node=lambda n: f"wn{n}", frozen=(20.0, 28.0)).run()
    # Those that were taken up before it have waited through it: a few.
    assert max(day.took) < 8 + DEADLINE / 2
    assert day.late <= 3
    assert day.done.total() >= 0.95 * 58 * 100


def test_one_that_keeps_up_turns_nobody_away() -> None:
    day = Day(lambda _: 150, lambda _: 120, 60).run()
    assert (day.turned_away, day.late) == (0, 0)


def test_a_rush_of_a_few_seconds_is_spread_over_time() -> None:
    day = Day(lambda _: 150, lambda t: 3000 if 30 < t < 30.5 else 5, 60).run()
    assert day.late == 0
    assert day.done.total() >= 1500 + 5 * 55


def test_one_node_that_asks_for_everything_does_not_take_the_places_of_the_others() -> None:
    """Nine in ten of all that are asked for are one node's; the others ask for less than there is."""
    day = Day(lambda _: 100, lambda _: 400, 60, node=lambda n: f"wn{n // 10 % 20}" if n % 10 == 0 else "greedy").run()
    assert day.late == 0
    others = day.done.total() - day.done["greedy"]
    assert others >= 0.85 * 12.5 * 12


# --- single rules -----------------------------------------------------------------------------------------------------


def test_a_few_are_taken_up_whatever_the_pace(site: Site) -> None:
    site.come(FEW)
    site.clock.now += 60
    refused = site.refused()
    assert refused is not None
    assert (refused.slug, refused.retry_after) == (Slug.TOO_MANY, LONGEST)
    site.inside.close()
    assert site.admission.load.registrations == 0
    site.come(FEW)  # the control: no faster, but there is room again
    assert "1 registrations were told to try again" in site.admission.report()
    assert site.admission.report() == "", "each is told once"


def test_what_waits_for_its_bridges_only_is_in_nobodys_way(site: Site) -> None:
    for _ in range(20 * FEW):
        (stored,) = site.come(1)
        stored(True)
        site.clock.now += 0.01
    site.clock.now += 60
    assert site.refused() is None
    assert (site.admission.load.registrations, site.admission.load.turned_away) == (20 * FEW, 0)
    # The control: so many that wait for the controller itself are.
    site.come(FEW)
    site.clock.now += 60
    assert site.refused() is not None


def test_what_waits_for_its_own_agent_is_in_nobodys_way_and_tells_nothing_of_the_pace(site: Site) -> None:
    waiting = site.come(FEW)
    site.clock.now += 60
    assert site.refused() is not None
    before = site.admission._own._done
    for over in waiting:
        over(False)
    assert site.admission._own._done == before, "nothing got done"
    site.come(FEW)


def _wait_for(site: Site, bridge: str, count: int, node: str = "") -> list[contextlib.ExitStack]:
    found = []
    for n in range(count):
        found.append(contextlib.ExitStack())
        found[-1].enter_context(site.admission.at([bridge, "another"], node or f"wn{n}"))
        site.inside.push(found[-1])
    return found


def test_a_slow_bridge_turns_away_those_who_need_it_and_nobody_else(site: Site) -> None:
    waiting = _wait_for(site, "gate", 50)
    for one in waiting[:30]:  # one a second
        site.clock.now += 1.0
        one.close()
    with pytest.raises(Refused, match="wait for bridge gate") as refused:
        _wait_for(site, "gate", 1)
    assert refused.value.slug is Slug.TOO_MANY
    assert SHARE * DEADLINE < refused.value.retry_after <= LONGEST
    with site.admission.at(["wn1"], "wn1"):
        assert site.refused() is None


def test_one_nodes_many_at_a_gate_do_not_take_the_places_of_another(site: Site) -> None:
    waiting = _wait_for(site, "gate", 220, "greedy")
    for one in waiting[:200]:  # ten a second: 20 are left, which takes 2 s
        site.clock.now += 0.1
        one.close()
    with pytest.raises(Refused, match="wait for bridge gate"):
        _wait_for(site, "gate", 1, "greedy")
    _wait_for(site, "gate", 1, "modest")
    with pytest.raises(Refused, match="wait for bridge gate"):  # not for ever
        _wait_for(site, "gate", 60, "modest")


def _refuse(site: Site, slug: Slug) -> None:
    with contextlib.suppress(Refused), site.admission.place("wn2"):
        raise Refused(slug, "no")


@pytest.mark.parametrize("slug", [Slug.HELD, Slug.MALFORMED, Slug.CONFLICT])
def test_what_is_refused_as_wrong_does_not_make_the_controller_look_faster(site: Site, slug: Slug) -> None:
    site.come(12)
    before = site.admission._own.seconds(site.clock.now)
    for _ in range(2000):
        _refuse(site, slug)
    assert site.admission._own.seconds(site.clock.now) == before
    # The control: what was done, if in vain, tells of the pace.
    for _ in range(2000):
        _refuse(site, Slug.NOT_REALISED)
    assert site.admission._own.seconds(site.clock.now) < before / 2


def test_where_all_are_refused_there_is_room_for_the_next(site: Site) -> None:
    site.come(FEW - 1)
    for _ in range(6000):
        site.clock.now += 0.01
        _refuse(site, Slug.HELD)
    site.come(FEW)
    # The control: nothing gets done for a minute.
    site.clock.now += 60
    assert site.refused() is not None


def test_a_bridge_that_confirms_nothing_is_no_queue_and_the_deadline_tells_of_it(site: Site) -> None:
    waiting = _wait_for(site, "gate", 5 * FEW)
    site.clock.now += LATELY
    _wait_for(site, "gate", FEW)
    for one in waiting:
        with contextlib.suppress(RuntimeError), one:
            raise RuntimeError  # not in time
    _wait_for(site, "gate", FEW)


def test_of_bridges_that_have_nothing_to_do_nothing_is_kept(site: Site) -> None:
    (one,) = _wait_for(site, "gate", 1)
    site.clock.now += 2 * LATELY
    site.admission.beat()
    assert len(site.admission._bridges) == 2
    one.close()
    site.clock.now += 2 * LATELY
    site.admission.beat()
    assert not site.admission._bridges


def test_whoever_is_turned_away_is_told_how_long_what_is_there_will_take(site: Site) -> None:
    site.come(int(AT_FIRST * SHARE * DEADLINE) + 1)
    refused = site.refused()
    assert refused is not None
    assert refused.retry_after == int(SHARE * DEADLINE)


def test_how_late_the_clock_is_called_is_told(site: Site) -> None:
    site.clock.now += BEAT + 0.5
    assert site.admission.load.behind == pytest.approx(0.5)
    site.admission.beat()
    for _ in range(10):
        site.clock.now += BEAT
        site.admission.beat()
    assert site.admission.load.behind < 0.1


@pytest.mark.parametrize("early", [False, True])
def test_a_registration_that_fails_leaves_its_place(site: Site, early: bool) -> None:
    with pytest.raises(RuntimeError), site.admission.place("wn1") as stored, site.admission.at(["gate"], "wn1"):
        if early:
            stored(True)
            stored(True)
        raise RuntimeError
    assert site.admission.load.registrations == 0
    assert site.admission._own.under_way == 0
    assert not site.admission._own.of
    assert site.admission._bridges["gate"].under_way == 0
