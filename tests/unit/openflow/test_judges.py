"""Two judges agree on random worlds and packets: the policy's meaning and the compiled flows in a simulated switch.

(`mininet_tests/test_three_judges.py` adds the third, Open vSwitch itself.)
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from policies.model import PortKind
from policies.semantics import judge
from ryu_apps.openflow.compiler import desired_flows
from ryu_apps.openflow.explain import frame
from ryu_apps.openflow.fields import CtState
from ryu_apps.openflow.simulate import SimulatedSwitch
from ryu_apps.openflow.text import flow_text
from tests.judges import (
    SERVERS,
    UPLINK,
    WORKERS,
    bridge_of,
    destination_mac,
    expected_at_gate,
    expected_ports,
    gate_packets,
    packets,
    worlds,
)

PACKETS_A_WORLD = 25
WORLDS = int(os.environ.get("LARK_JUDGED_WORLDS", "60"))
relaxed = settings(
    max_examples=WORLDS,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)


@relaxed
@given(st.data())
def test_compiled_worker_flows_do_what_the_policy_means(data: st.DataObject) -> None:
    world = data.draw(worlds())
    flows = {bridge: desired_flows(world, bridge).values() for bridge in world.site.bridges}
    for _ in range(PACKETS_A_WORLD):
        packet = data.draw(packets(world))
        known = CtState.TRK | (CtState.EST | CtState.RPL if packet.tracked else CtState.NEW)
        bridge = bridge_of(world, packet)
        switch = SimulatedSwitch(flows[bridge], lambda zone, known=known: known)
        in_port = UPLINK if packet.sender is None else world.attempts[packet.sender].ofport
        result = switch.send(frame(packet, in_port, destination_mac(packet)))
        note("\n".join(flow_text(f) for f in result.trail))
        note(str(judge(world, packet)))
        assert result.outputs == expected_ports(world, packet)


@relaxed
@given(st.data())
def test_compiled_gate_flows_do_what_the_policy_means(data: st.DataObject) -> None:
    world = data.draw(worlds())
    numbers = {PortKind.UPLINK: UPLINK, PortKind.WORKER_FACING: WORKERS, PortKind.SERVER_FACING: SERVERS}
    switch = SimulatedSwitch(desired_flows(world, "gate-br").values(), lambda zone: 0)
    for _ in range(PACKETS_A_WORLD):
        entered, packet = data.draw(gate_packets(world))
        result = switch.send(frame(packet, numbers[entered], destination_mac(packet)))
        note("\n".join(flow_text(f) for f in result.trail))
        assert result.outputs == expected_at_gate(world, packet, entered)
