"""Three judges agree on random worlds and packets: the policy's meaning, a simulated switch, and Open vSwitch itself.

Worlds are policy files, site files and job ads; packets are followed over every bridge of their path. A failing case is
shrunk and printed as a file that `python -m mininet_tests.replay` reads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from mininet_tests.third_judge import ThirdJudge
from policies.model import World
from tests.cases import Case
from tests.judges import TALLY, Bench, Disagreement, batches, run
from tests.mutants import MUTANTS

FULL = bool(os.environ.get("LARK_TEST_FULL")) and os.environ.get("LARK_TEST_ENGINE", "os-ken") == "os-ken"
"""Engines play no part here: the long run is made once."""
PAIRS = 5000 if FULL else 500
PACKETS = 25


@pytest.fixture(scope="module")
def third(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThirdJudge]:
    with ThirdJudge(tmp_path_factory.mktemp("ovs")) as judge:
        yield judge


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("number", "pairs"), batches(PAIRS))
def test_three_judges_agree(third: ThirdJudge, number: int, pairs: int) -> None:
    before = TALLY["three judges: pairs"]

    def one(case: Case, world: World) -> None:
        bench = Bench(world)
        for sent in case.packets:
            TALLY["three judges: bridges passed"] += len(third.judge(case, bench, sent))
            TALLY["three judges: pairs"] += 1

    run(pairs, 1000 + number, one, PACKETS)
    assert TALLY["three judges: pairs"] - before >= pairs


def test_the_third_judge_sees_what_the_first_two_do_not_look_at(third: ThirdJudge) -> None:
    """The control: on bridges with other flows than the simulated ones it disagrees."""

    def one(case: Case, world: World) -> None:
        bench = Bench(world)
        real = Bench(world, compile=MUTANTS["replies pass without a look at the connection table"])
        for sent in case.packets:
            third.judge(case, bench, sent, installed=real)

    with pytest.raises(Disagreement, match="Open vSwitch"):
        run(500, 1000, one, PACKETS, shrink=False)
