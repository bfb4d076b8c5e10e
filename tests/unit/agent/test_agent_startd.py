"""The startd's ads: only literals, only of this starter's job, one question for everybody who waits."""

from __future__ import annotations

import asyncio
import json
import sys
import time
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


def test_one_question_serves_all_who_wait(behaviour: Path) -> None:
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
