"""The startd's ads: only literals, only of this starter's job, one question for everybody who waits."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import classad2
import pytest

from ovs_agent import startd, startd_query
from ovs_agent.startd import NotLiteral, SlotAd, Startd, StartdError, daemon_of, judge, pick

NOW = 1_800_000_000.0


def entry(**changes: Any) -> dict[str, Any]:
    meta = {"JobId": "7.0", "GlobalJobId": "s#7.0", "JobStart": int(NOW)}
    return {"meta": meta, "ad": {"Owner": "alice"}, "expressions": [], "slot": {"Cpus": 1}} | changes


def test_the_ad_of_this_job() -> None:
    assert judge(entry(), "slot1_1", NOW) == SlotAd("7.0", "s#7.0", {"Owner": "alice"}, {"Cpus": 1})


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (None, "no slot named"),
        (entry(meta={}), "no job yet"),
        (entry(meta={"JobId": "7.0", "JobStart": int(NOW) - 60}), "the job before"),
    ],
)
def test_not_yet(found: dict[str, Any] | None, why: str) -> None:
    answer = judge(found, "slot1_1", NOW)
    assert isinstance(answer, str)
    assert why in answer


def test_an_expression_names_the_attribute() -> None:
    with pytest.raises(NotLiteral, match="LarkSlice"):
        judge(entry(expressions=["LarkSlice"]), "slot1_1", NOW)


def test_slots_by_name() -> None:
    slots = {"slot1_1@a": 1, "slot1_11@a": 2, "slot2@a": 3, "slot2@b": 4}
    assert pick(slots, "slot1_1") == 1  # type: ignore[comparison-overlap]
    assert pick(slots, "slot1_11@a") == 2  # type: ignore[comparison-overlap]
    assert pick(slots, "slot2") is None, "ambiguous"
    assert pick(slots, "slot3") is None


def test_daemons_by_address() -> None:
    one = "<10.0.0.1:9618?addrs=10.0.0.1-9618&alias=a&noUDP&sock=startd_1_ab>"
    assert daemon_of(one) == daemon_of("<10.0.0.1:9618?sock=startd_1_ab&PrivNet=x>") == "startd_1_ab"
    assert daemon_of(one) != daemon_of(one.replace("_ab", "_ac"))
    assert daemon_of("<10.0.0.1:4000>") == daemon_of("<10.0.0.1:4000?addrs=10.0.0.1-4000>") == "10.0.0.1:4000"


def test_only_literals_of_an_ad() -> None:
    ad = classad2.ClassAd(
        '[A=5; B=-5; C="x"; D={1,"q",2.5}; E=random(3); F=undefined; G=error; H=true; J={1,random()};'
        ' K=absTime("2020-01-01T00:00:00Z"); L=real("INF"); M={{1}}; O=strcat("a","b"); P=A]'
    )
    values, expressions = startd_query.select(ad, [*"ABCDEFGHJKLMOP", "Absent"])
    assert values == {"A": 5, "B": -5, "C": "x", "D": [1, "q", 2.5], "H": True}
    assert sorted(expressions) == [*"EGJKLMOP"]
    json.dumps(values)


def ad_of(name: str, **expressions: str) -> classad2.ClassAd:
    ad = classad2.ClassAd(f'[Name="{name}@n"; JobId="7.0"; JobStart={int(NOW)}]')
    for key, text in expressions.items():
        ad[key] = classad2.ExprTree(text)
    return ad


BAD_BYTES = r'"a\377\376b"'
"""As `My.LarkNetwork = "a\\xff\\xfeb"` of a submit file arrives."""


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[classad2.ClassAd]], dict[str, Any]]:
    """Puts the agent's question to a startd that has these slot ads; the answer as the agent reads it."""

    def ask(ads: list[classad2.ClassAd]) -> dict[str, Any]:
        class Collector:
            def __init__(self, address: str) -> None:
                pass

            def query(self, *_: object, **__: object) -> list[classad2.ClassAd]:
                return ads

        monkeypatch.setattr(startd_query.htcondor2, "Collector", Collector)
        monkeypatch.setattr(startd_query, "configured_attributes", lambda: ["LarkNetwork", "LarkSlice", "GlobalJobId"])
        monkeypatch.setattr(startd_query, "startd_address", lambda: "<x>")
        line = json.dumps(startd_query.answer({"do": "slots"}))
        assert len(line) < 2 * startd_query.MAX_ANSWER
        return dict(json.loads(line.encode()))

    return ask


def test_bytes_that_are_no_text_really_break_the_library() -> None:
    with pytest.raises(UnicodeDecodeError):
        ad_of("slot1", LarkNetwork=BAD_BYTES).get("LarkNetwork")


@pytest.mark.parametrize(
    "bad",
    [BAD_BYTES, "{" + BAD_BYTES + "}", "[a=" + BAD_BYTES + "]", '"' + "x" * 17_000 + '"', "{1" + ",1" * 10_000 + "}"],
    ids=["bytes", "bytes in a list", "bytes in an ad", "long string", "long list"],
)
def test_a_value_that_cannot_be_passed_on_holds_its_job_alone(
    bad: str, ask: Callable[[list[classad2.ClassAd]], dict[str, Any]]
) -> None:
    found = ask([ad_of("slot1", LarkNetwork=bad, LarkSlice='"mine"'), ad_of("slot2", LarkNetwork='"none"')])["slots"]
    with pytest.raises(NotLiteral, match="LarkNetwork:"):
        judge(pick(found, "slot1"), "slot1", NOW)
    healthy = judge(pick(found, "slot2"), "slot2", NOW)
    assert isinstance(healthy, SlotAd)
    assert healthy.ad == {"LarkNetwork": "none"}


def test_a_forged_global_job_id_hides_no_slot(ask: Callable[[list[classad2.ClassAd]], dict[str, Any]]) -> None:
    found = ask([ad_of("slot1", GlobalJobId=BAD_BYTES)])["slots"]
    with pytest.raises(NotLiteral, match="GlobalJobId:"):
        judge(pick(found, "slot1"), "slot1", NOW)


def test_an_ad_that_is_large_in_all_is_cut() -> None:
    ad = classad2.ClassAd()
    names = [f"A{n}" for n in range(20)]
    for name in names:
        ad[name] = "x" * 16_000
    values, expressions = startd_query.select(ad, names)
    assert len(json.dumps(values)) <= startd_query.MAX_AD + 1024
    assert sorted([*values, *expressions]) == sorted(names)
    assert values


def test_an_answer_that_is_too_large_loses_its_largest_ads_only() -> None:
    slots = {f"slot{n}@n": entry(ad={"Text": "x" * (1000 if n < 3 else 10)}) for n in range(10)}
    startd_query.fit(slots, limit=3000)
    held = [name for name, found in slots.items() if found["expressions"] == ["Text"] and not found["ad"]]
    assert held == ["slot0@n", "slot1@n"], "no more than needed"
    assert len(json.dumps(slots)) < 3300


QUERY = """
import json, sys, time
for line in sys.stdin:
    if open({file!r}).read().strip() == "hang": time.sleep(60)
    time.sleep(0.1)
    print(json.dumps({{"address": "<x>", "attributes": ["A"], "slots": {{}}, "n": {file!r}}}), flush=True)
"""


@pytest.fixture
def behaviour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "behaviour"
    file.write_text("answer")
    monkeypatch.setattr(startd, "QUERY", (sys.executable, "-c", QUERY.format(file=str(file))))
    return file


def test_those_who_come_soon_after_another_share_a_question_and_the_first_does_not_wait(
    behaviour: Path,
) -> None:
    async def main() -> tuple[float, int]:
        client = Startd(None, 5)
        await client.slots()  # the child is there
        await asyncio.sleep(startd.SPARED_LONGEST)
        loop = asyncio.get_running_loop()
        began, before = loop.time(), client.questions
        asking = [asyncio.create_task(client.slots())]
        await asking[0]
        alone = loop.time() - began
        for _ in range(4):
            asking.append(asyncio.create_task(client.slots()))
            await asyncio.sleep(0.01)
        await asyncio.gather(*asking)
        await client.close()
        return alone, client.questions - before

    alone, questions = asyncio.run(main())
    assert questions == 2
    assert alone < startd.SPARED * 0.1, "which an answer takes here"


def test_a_startd_that_takes_its_time_is_left_alone_for_longer_than_it_took(behaviour: Path) -> None:
    async def main() -> int:
        client = Startd(None, 5)
        await client.slots()  # the child is there
        loop = asyncio.get_running_loop()
        before, end = client.questions, loop.time() + 1.5
        while loop.time() < end:
            await client.slots()
        await client.close()
        return client.questions - before

    taking = 0.1
    assert 2 <= asyncio.run(main()) <= 1 + 1.5 / (taking * (1 + startd.SPARED))


def test_one_question_serves_all_who_wait(behaviour: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startd, "SPARED", 0.0)

    async def main() -> tuple[int, int]:
        client = Startd(None, 5)
        await asyncio.gather(*(client.slots() for _ in range(20)))
        first = client.questions
        # Whoever comes while a question is under way is not served by its answer.
        running = asyncio.create_task(client.slots())
        await asyncio.sleep(0.02)
        await asyncio.gather(running, *(client.slots() for _ in range(20)))
        await client.close()
        return first, client.questions

    assert asyncio.run(main()) == (1, 3)


def test_an_answer_serves_whose_starter_was_there_before_the_question_and_nobody_else(behaviour: Path) -> None:
    def now() -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def main() -> None:
        client = Startd(None, 5)
        before = now()
        await client.slots(before)
        after = now()
        asked = client.questions
        await client.slots(before)
        assert client.questions == asked, "the answer is there"
        await client.slots(after)
        assert client.questions == asked + 1, "asked for too early: before this starter was there"
        await client.slots()
        assert client.questions == asked + 2, "whoever names no moment means now"
        later = now() + 0.3
        await client.slots(later)
        assert now() > later, "nor is a question put too early for who comes with a starter that is just being made"
        running = asyncio.create_task(client.slots(before := now()))
        await asyncio.sleep(startd.SPARED_LONGEST + 0.05)
        asked = client.questions
        await client.slots(before)
        assert client.questions == asked, "it was under way"
        await running
        await client.close()

    asyncio.run(main())


def test_an_answer_is_kept_for_a_moment_only(behaviour: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startd, "KEPT", 0.05)

    async def main() -> int:
        client = Startd(None, 5)
        before = time.clock_gettime(time.CLOCK_BOOTTIME)
        await client.slots(before)
        await asyncio.sleep(0.2)
        await client.slots(before)
        await client.close()
        return client.questions

    assert asyncio.run(main()) == 2


def test_a_startd_that_hangs_costs_its_time_only_and_the_next_question_works(behaviour: Path) -> None:
    async def main() -> float:
        client = Startd(None, 0.5)
        behaviour.write_text("hang")
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        began = time.monotonic()
        with pytest.raises(StartdError, match="did not answer within"):
            await client.slots()
        spent = time.monotonic() - began
        ticking.cancel()
        assert ticks > 10, "the agent goes on meanwhile"
        behaviour.write_text("answer")
        await client.slots()
        await client.close()
        return spent

    assert asyncio.run(main()) < 3


def test_a_question_after_a_starters_first_ticks_is_late_enough_and_one_put_now_always_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[float | None] = []

    async def slots(since: float | None = None) -> dict[str, Any]:
        asked.append(since)
        return {"address": "<1.2.3.4:5>", "slots": {"slot1": entry(meta={"JobId": "7.0", "JobStart": time.time()})}}

    async def main() -> None:
        client = Startd(None, 5)
        monkeypatch.setattr(client, "slots", slots)
        ticks = int(time.clock_gettime(time.CLOCK_BOOTTIME) / startd.TICK)
        for start in (ticks - 100, ticks + 1):
            assert (await client.job_on("slot1", start, "<1.2.3.4:5>", 5, lambda: True)).job == "7.0"
        old, young = asked
        assert old is not None
        assert young is not None
        assert (ticks - 99) * startd.TICK < old < (ticks - 90) * startd.TICK
        assert ticks * startd.TICK <= young <= time.clock_gettime(time.CLOCK_BOOTTIME)

    asyncio.run(main())
