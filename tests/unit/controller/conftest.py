"""Fixtures of the controller's unit tests; the values are in `tests.unit.controller.rig`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from policies.language import load_policy, load_site
from policies.model import Policy
from tests.unit.controller.rig import POLICY, SITE, Rig


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], Policy]:
    def load(text: str) -> Policy:
        path = tmp_path / "policy.yaml"
        path.write_text(text)
        return load_policy(path)

    return load


@pytest.fixture
def make_rig(tmp_path: Path, load: Callable[[str], Policy]) -> Callable[[], Rig]:
    path = tmp_path / "site.yaml"
    path.write_text(SITE)
    site = load_site(path)
    policy = load(POLICY)
    return lambda: Rig(site, policy, load)


@pytest.fixture
def rig(make_rig: Callable[[], Rig]) -> Rig:
    return make_rig()
