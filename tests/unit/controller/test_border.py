"""The controller and a border: who waits for it, what a job and another policy cost there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from policies.language import load_site
from policies.model import Policy
from policies.wire import BridgeRealisation
from ryu_apps.openflow.cookies import Feature, explain
from ryu_apps.openflow.pipeline import Table
from ryu_apps.refusals import Refused, Slug
from tests.unit.controller.rig import POLICY, SITE, Rig, aid, spec

EDGE = (
    '  edge: {datapath-id: "00000000000000c1", roles: [border],'
    " ports: {uplink: [lan0], wan: [{name: wan0, rate: 1 Gbit/s}]}}\n"
)
CLASSES = """\
classes:
  - {name: first, dscp: af41, guarantee: 50%}
  - {name: rest, dscp: cs1}
classify:
  - {for: physics, class: first}
"""


@pytest.fixture
def bordered(tmp_path: Path, load: Callable[[str], Policy]) -> Rig:
    path = tmp_path / "site.yaml"
    path.write_text(SITE + EDGE)
    return Rig(load_site(path), load(POLICY + CLASSES), load)


def known_at_border(rig: Rig) -> int:
    actual = rig.fabric.state["edge"].flows.values()
    return sum(1 for f in actual if (explain(f.cookie) or (None,))[0] is Feature.ATTEMPT)


def test_a_job_whose_class_can_differ_costs_one_flow_on_the_border_for_as_long_as_it_lives(bordered: Rig) -> None:
    before = bordered.fabric.state["edge"].flow_mods
    status = bordered.controller.register(aid(), spec())[0]
    assert status.bridges["edge"] is BridgeRealisation.REALISED
    assert (bordered.fabric.state["edge"].flow_mods - before, known_at_border(bordered)) == (1, 1)
    bordered.check()
    assert "edge" in bordered.controller.delete(aid()).bridges
    assert (bordered.fabric.state["edge"].flow_mods - before, known_at_border(bordered)) == (2, 0)
    bordered.check()


def test_a_job_of_the_class_it_would_have_anyhow_is_unknown_there(bordered: Rig) -> None:
    before = bordered.fabric.state["edge"].flow_mods
    status = bordered.controller.register(aid(), spec(LarkLicence=True))[0]
    assert "edge" not in status.bridges
    assert bordered.fabric.state["edge"].flow_mods == before


@pytest.mark.parametrize("fault", ["silence", "disconnect"])
def test_only_a_job_whose_class_can_differ_waits_for_the_border(bordered: Rig, fault: str) -> None:
    getattr(bordered.fabric, fault)("edge")
    assert bordered.controller.register(aid(3), spec(3, LarkLicence=True))[0].bridges["br1"] is (
        BridgeRealisation.REALISED
    )
    with pytest.raises(Refused) as refused:
        bordered.controller.register(aid(), spec())
    assert (refused.value.slug, refused.value.extra) == (Slug.NOT_REALISED, {"bridges": ["edge"]})
    bordered.fabric.speak("edge")
    bordered.fabric.connect("edge")
    assert bordered.controller.register(aid(), spec())[0].bridges["edge"] is BridgeRealisation.REALISED
    bordered.check()


def test_a_class_added_and_a_guarantee_changed_touch_only_flows_of_classes(
    bordered: Rig, load: Callable[[str], Policy]
) -> None:
    bordered.controller.register(aid(), spec())
    old = bordered.fabric.state["edge"].flows
    before = bordered.fabric.state["edge"].flow_mods
    other = CLASSES.replace("50%", "40%")
    bordered.controller.reload(load(POLICY + other))
    assert bordered.fabric.state["edge"].flow_mods == before  # guarantees are the queues' affair
    more = other.replace("classify:", "classify:\n  - {service: bulk, class: rest}")
    bordered.controller.reload(load((POLICY + more).replace("services:", "services:\n  bulk: {ports: [tcp/80]}")))
    bordered.check()
    new = bordered.fabric.state["edge"].flows
    kinds = {Table.BORDER_SENDER, Table.BORDER_SENDER_PORT, Table.BORDER_RECEIVER, Table.BORDER_RECEIVER_PORT}
    changed = {key.table for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
    assert changed == {*kinds, Table.BORDER_CLASS}
    # Whatever is taken away, each table keeps its flow for what is left.
    assert {key for key in old if key.priority == 1} <= set(new)


def test_another_policy_makes_running_jobs_known_or_forgotten(bordered: Rig, load: Callable[[str], Policy]) -> None:
    bordered.controller.register(aid(), spec())
    bordered.controller.register(aid(3), spec(3, LarkLicence=True))
    for policy, known in ((POLICY, 0), (POLICY + CLASSES, 1)):
        bordered.controller.reload(load(policy))
        assert known_at_border(bordered) == known
        bordered.check()


def test_a_border_that_comes_back_empty_is_told_everything_and_one_that_comes_back_as_it_was_nothing(
    bordered: Rig,
) -> None:
    bordered.controller.register(aid(), spec())
    flows = dict(bordered.fabric.state["edge"].actual)
    for forget, mods in ((False, 0), (True, len(flows))):
        before = bordered.fabric.state["edge"].flow_mods
        bordered.fabric.disconnect("edge", forget=forget)
        bordered.fabric.connect("edge")
        assert bordered.fabric.state["edge"].actual == flows
        assert bordered.fabric.state["edge"].flow_mods - before == mods
