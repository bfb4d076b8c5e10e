"""Two judges agree on random worlds and packets: the policy's meaning and the compiled flows in a simulated switch.

(`mininet_tests/test_trace.py` adds the third, Open vSwitch itself.)
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from policies.model import PortKind, Verdict, World
from policies.semantics import Packet, judge, judge_at_gate
from ryu_apps.openflow.compiler import desired_flows
from ryu_apps.openflow.explain import frame
from ryu_apps.openflow.fields import CtState
from ryu_apps.openflow.simulate import SimulatedSwitch, Special
from ryu_apps.openflow.text import flow_text
from tests.judges import SERVERS, UPLINK, WORKERS, destination_mac, gate_packets, packets, worlds

PACKETS_A_WORLD = 25
WORLDS = int(os.environ.get("LARK_JUDGED_WORLDS", "60"))
relaxed = settings(
    max_examples=WORLDS,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)


def bridge_of(world: World, packet: Packet) -> str:
    if packet.sender is not None:
        return world.attempts[packet.sender].bridge
    return next(j.bridge for j in world.attempts.values() if packet.destination in (j.ipv4, j.ipv6))


def expected(world: World, packet: Packet) -> set[int]:
    """The ports that the packet must leave a worker bridge by, from the verdict and plain geography."""
    if judge(world, packet).verdict is Verdict.DROP:
        return set()
    bridge = bridge_of(world, packet)
    node = next(n for n in world.site.nodes.values() if n.bridge == bridge)
    receiver = next((j for j in world.attempts.values() if packet.destination in (j.ipv4, j.ipv6)), None)
    if receiver is not None and receiver.bridge == bridge:
        return set() if receiver.outcome.sealed or receiver.id == packet.sender else {receiver.ofport}
    assert node.ipv6 is not None
    if packet.destination in node.ipv4 or packet.destination in node.ipv6:
        return set()  # an address of this node's jobs that no job has
    return {UPLINK}


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
        assert result.outputs == expected(world, packet)


@relaxed
@given(st.data())
def test_compiled_gate_flows_do_what_the_policy_means(data: st.DataObject) -> None:
    world = data.draw(worlds())
    gate = world.site.bridges["gate-br"]
    numbers = {PortKind.UPLINK: UPLINK, PortKind.WORKER_FACING: WORKERS, PortKind.SERVER_FACING: SERVERS}
    switch = SimulatedSwitch(desired_flows(world, "gate-br").values(), lambda zone: 0)
    for _ in range(PACKETS_A_WORLD):
        entered, packet = data.draw(gate_packets(world))
        judged = judge_at_gate(world, gate, packet, entered)
        result = switch.send(frame(packet, numbers[entered], destination_mac(packet)))
        note("\n".join(flow_text(f) for f in result.trail))
        note(str(judged))
        assert result.outputs == ({Special.NORMAL} if judged.verdict is Verdict.ALLOW else set())
