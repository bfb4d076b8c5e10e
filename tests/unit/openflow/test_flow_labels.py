"""A job's scitag in the flow label of what it sends: with and without classes, and no other packet's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from policies import scitags
from policies.language import policy_from_text
from policies.model import World
from ryu_apps.openflow.compiler import desired_flows
from ryu_apps.openflow.fields import CtState, EtherType, IpProto
from ryu_apps.openflow.pipeline import Table
from ryu_apps.openflow.simulate import SimulatedSwitch
from tests.worlds import demo_site, world

GROUPS = """
groups: {physics: 'LarkGroup =?= "physics"', other: 'LarkGroup =?= "other"'}
"""
TAGS = """
scitags: [{for: physics, experiment: cms, activity: analysis-input}, {for: other, experiment: 511, activity: 63}]
"""
CLASSES = """
classes: [{name: first, dscp: af41}, {name: rest, dscp: cs1}]
classify: [{for: physics, class: first}, {class: rest}]
"""
JOBS: list[dict[str, object]] = [{"LarkGroup": "physics"}, {"LarkGroup": "other"}, {"LarkGroup": "none"}]


def made(policy: str) -> World:
    site = demo_site()
    bridges = {**site.bridges, "gate-br": replace(site.bridges["gate-br"], guards=())}
    return world(JOBS, policy_from_text(policy), replace(site, bridges=bridges))


def left(policy: str, job: int, label: int, version: int = 6, state: int = CtState.NEW) -> Mapping[str, int]:
    """What a packet of the n-th job has become when it leaves by the uplink."""
    here = made(policy)
    sender = list(here.attempts.values())[job]
    switch = SimulatedSwitch(desired_flows(here, sender.bridge).values(), lambda zone: CtState.TRK | state)
    frame = {"in_port": sender.ofport, "dl_src": sender.mac, "dl_dst": 0x020000000001, "nw_ttl": 64, "nw_frag": 0,
             "nw_proto": IpProto.UDP, "udp_src": 40000, "udp_dst": 9}  # fmt: skip
    if version == 6:
        frame |= {"dl_type": EtherType.IPV6, "ipv6_src": int(sender.ipv6 or 0), "ipv6_dst": 0x2A << 120 | 1}
        frame |= {"ipv6_label": label}
    else:
        frame |= {"dl_type": EtherType.IPV4, "nw_src": int(sender.ipv4), "nw_dst": 0xC6336401}
    result = switch.send(frame)
    assert len(result.outputs) == 1, [Table(f.table).name for f in result.trail]
    return result.left


@pytest.mark.parametrize("classes", ["", CLASSES])
@pytest.mark.parametrize("label", [0, 0xFFFFF, 0x5A5A5])
def test_the_label_says_the_scitag_and_keeps_its_free_bits(classes: str, label: int) -> None:
    policy = GROUPS + TAGS + classes
    for job, (experiment, activity) in enumerate(((3, 14), (511, 63))):
        marked = left(policy, job, label)
        assert marked["ipv6_label"] == scitags.flow_label(experiment, activity, label)
        assert marked["ip_dscp"] == ((34, 8)[job] if classes else 0)
    untouched = left(policy, 2, label)
    assert untouched["ipv6_label"] == label
    assert untouched["ip_dscp"] == (8 if classes else 0)


@pytest.mark.parametrize("classes", ["", CLASSES])
def test_ipv4_has_no_label_and_keeps_its_class(classes: str) -> None:
    marked = left(GROUPS + TAGS + classes, 0, 0, version=4)
    assert marked["ipv6_label"] == 0
    assert marked["ip_dscp"] == (34 if classes else 0)


def test_scitags_cost_a_flow_a_class_whatever_their_number_and_nothing_where_there_are_none() -> None:
    def counted(policy: str) -> int:
        return len(desired_flows(made(policy), "wn1-br"))

    many = "scitags:\n" + "".join(f"  - {{for: physics, experiment: {n}, activity: 1}}\n" for n in range(1, 400))
    assert counted(GROUPS + TAGS) == counted(GROUPS + many) == counted(GROUPS) + 2
    assert counted(GROUPS + CLASSES + TAGS) == counted(GROUPS + CLASSES) + 2
