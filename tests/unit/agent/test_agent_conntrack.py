"""Limits of connections: a lane that exists keeps its own, one that is gone leaves none behind."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ovs_agent import conntrack as module
from ovs_agent.conntrack import Conntrack


class Switch:
    """What the control socket does at `dpctl/ct-…-limits`, slowly."""

    def __init__(self) -> None:
        self.limits = {1001: 5, 70000: 9}

    async def ask(self, path: Path, verb: str, rest: Any, timeout: float) -> str:
        assert path.name == "ovs-vswitchd.1.ctl"
        if verb == "dpctl/ct-get-limits":
            return "default limit=0\n" + "".join(f"zone={z},limit={n},count=0\n" for z, n in self.limits.items())
        await asyncio.sleep(0.001)
        if verb == "dpctl/ct-set-limits":
            self.limits |= {int(w.split(",")[0].removeprefix("zone=")): 10 for w in rest}
        else:
            for zone in rest[0].removeprefix("zone=").split(","):
                self.limits.pop(int(zone), None)
        return ""


@pytest.fixture
def switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Switch:
    (tmp_path / "ovs-vswitchd.pid").write_text("1\n")
    made = Switch()
    monkeypatch.setattr(module.control_socket, "ask", made.ask)
    return made


def test_limits_are_set_seen_and_lifted(tmp_path: Path, switch: Switch) -> None:
    async def main() -> None:
        limits = Conntrack(tmp_path, 10)
        await limits.limit(lambda: [1002, 1003])
        assert await limits.limited() == {1001, 1002, 1003, 70000}
        await limits.unlimit([1001, 1002], lambda: [1002])
        assert await limits.limited() == {1002, 1003, 70000}

    asyncio.run(main())


def test_a_number_that_is_used_again_while_its_old_limit_is_lifted_has_a_limit(tmp_path: Path, switch: Switch) -> None:
    """Whoever comes first: released, then lifted; taken, then limited."""

    async def main(first: str) -> bool:
        limits, busy = Conntrack(tmp_path, 10), {1007}
        await limits.limit(lambda: busy)
        busy.discard(1007)  # released
        lift = limits.unlimit([1007], lambda: busy)

        async def take() -> None:
            busy.add(1007)
            await limits.limit(lambda: [1007])

        await asyncio.gather(*([lift, take()] if first == "lift" else [take(), lift]))
        return 1007 in await limits.limited()

    assert asyncio.run(main("lift"))
    assert asyncio.run(main("take"))


def test_without_a_switch_or_limits_nothing_is_asked(tmp_path: Path, switch: Switch) -> None:
    async def main() -> None:
        none = Conntrack(tmp_path, 0)
        await none.limit(lambda: [1002])
        await none.unlimit([1001], list)
        assert await none.limited() == set()
        away = Conntrack(tmp_path / "nowhere", 10)
        await away.limit(lambda: [1002])
        assert await away.limited() == set()

    asyncio.run(main())
    assert switch.limits == {1001: 5, 70000: 9}
