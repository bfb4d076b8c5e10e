"""Rules for every test run: seeds are printed, system tests say what they miss, and a skip cannot hide.

Everything under mininet_tests/ is a system test. Such a test fails, not skips, when root or a tool is missing. With
`--no-skips` (or CI=true) any skip at all counts as a failure: a suite that skips its way to green proves nothing.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.effort import FULL, examples
from tests.seed import SEED

ROOT = Path(__file__).resolve().parent
TRUE = {"1", "true", "yes"}
JUDGED: Counter[str] = Counter()
"""By the processes that ran the tests, when there are several."""


# A shared machine's clock says nothing about a property: no deadline for one example.
settings.register_profile("lark", deadline=None, max_examples=2000 if FULL else examples(50), print_blob=True)
settings.load_profile("lark")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lark")
    group.addoption("--no-skips", action="store_true", help="a skipped test is a failed test (set when CI=true)")
    group.addoption(
        "--part",
        choices=["together", "alone"],
        default=None,
        help="only system tests that may run beside others, or only those marked `alone`",
    )
    group.addoption(
        "--seed", type=int, default=None, help="seed of random choices in tests (default: a new one, printed)"
    )


def _no_skips(config: pytest.Config) -> bool:
    return bool(config.getoption("--no-skips")) or os.environ.get("CI", "").lower() in TRUE


def pytest_configure(config: pytest.Config) -> None:
    seed = config.getoption("--seed")
    if seed is None:
        seed = int(os.environ.get("LARK_TEST_SEED") or random.SystemRandom().randrange(2**31))
    os.environ["LARK_TEST_SEED"] = str(seed)
    random.seed(seed)
    if getattr(config.option, "hypothesis_seed", None) is None:
        config.option.hypothesis_seed = str(seed)


def pytest_report_header(config: pytest.Config) -> list[str]:
    seed = os.environ["LARK_TEST_SEED"]
    engine = os.environ.get("LARK_TEST_ENGINE", "os-ken")
    skips = "failures" if _no_skips(config) else "allowed"
    return [
        f"lark: seed {seed} (again: --seed {seed}), engine {engine}, skips are {skips}",
        f"judges of policies: seed {SEED} (others: LARK_SEED=NUMBER)",
    ]


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Importing the engine makes a whole process green, and one that runs a share of the tests would wait for ever."""
    if "ryu_apps.engine" in sys.modules:
        pytest.exit(
            "a test module imports ryu_apps.engine: only processes of their own may (tests/unit/test_house_rules)", 3
        )


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process that runs a share of the tests (pytest-xdist) tells the one that writes the summary what it judged."""
    judges = sys.modules.get("tests.judges")
    told = getattr(session.config, "workeroutput", None)
    if told is not None and judges is not None:
        told["judged"] = dict(judges.TALLY)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    JUDGED.update(getattr(node, "workeroutput", {}).get("judged", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many pairs of world and packet the judges of policies agreed on, if they sat."""
    judges = sys.modules.get("tests.judges")
    tally = JUDGED + (judges.TALLY if judges is not None else Counter())
    if tally:
        told = ", ".join(f"{name} {count:,}" for name, count in sorted(tally.items()))
        terminalreporter.write_line(f"judged with seed {SEED}: {told}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(ROOT / "mininet_tests"):
            item.add_marker("system")
    part = config.getoption("--part")
    if part is not None:
        chosen = [item for item in items if (item.get_closest_marker("alone") is not None) == (part == "alone")]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
        items[:] = chosen


def pytest_runtest_setup(item: pytest.Item) -> None:
    random.seed(f"{os.environ['LARK_TEST_SEED']} {item.nodeid}")
    if item.get_closest_marker("system"):
        if os.geteuid() != 0:
            pytest.fail("a system test needs root (namespaces, Open vSwitch): run `make test` as root", pytrace=False)
        missing = [tool for tool in ("ovs-vswitchd", "ovs-vsctl", "ovs-ofctl", "nft", "ip") if not shutil.which(tool)]
        if missing:
            pytest.fail(f"a system test needs {', '.join(missing)}: run `make install-deps`", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and _no_skips(item.config):
        report.outcome = "failed"
        report.longrepr = f"skipped, and skips are failures here: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped and _no_skips(collector.config):
        report.outcome = "failed"
        report.longrepr = f"skipped, and skips are failures here: {report.longrepr}"
    return report


if sys.version_info < (3, 11):  # noqa: UP036  # a plain message beats a syntax error deep in a module
    raise SystemExit("Lark needs Python 3.11 or later")
