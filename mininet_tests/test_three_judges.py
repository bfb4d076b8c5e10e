"""Three judges agree on random worlds and packets: the policy's meaning, a simulated switch, and Open vSwitch itself.

Worlds have one or two worker nodes, a gate, services, sealed jobs and slices; a packet is judged on a worker bridge or
at the gate, and the very port that it leaves by is compared. A failing case is shrunk and printed by hypothesis.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from mininet_tests.site.dummy import DummySwitch
from policies.model import PortKind, World
from policies.semantics import Packet
from ryu_apps.openflow.compiler import desired_flows
from ryu_apps.openflow.explain import frame
from ryu_apps.openflow.fields import CtState, show
from ryu_apps.openflow.simulate import SimulatedSwitch, Special
from ryu_apps.openflow.text import flow_text
from tests.judges import (
    FIRST_JOB_PORT,
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

TABLE_0 = "table=0,priority=0,actions=goto_table:1\n"
PACKETS_A_WORLD = 25
WORLDS = 200 if os.environ.get("LARK_TEST_FULL") else 20
"""Each world is judged with PACKETS_A_WORLD packets: 500, or 5,000 in the full run, for workers and again for gates."""
judged = settings(
    max_examples=WORLDS,
    deadline=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
SIDES = {PortKind.UPLINK: UPLINK, PortKind.WORKER_FACING: WORKERS, PortKind.SERVER_FACING: SERVERS}


@pytest.fixture(scope="module")
def switch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DummySwitch]:
    with DummySwitch(tmp_path_factory.mktemp("ovs")) as made:
        for n in (1, 2):
            jobs = {f"n{n}lj{k}": FIRST_JOB_PORT + k for k in range(1, 6)}
            made.add_bridge(f"wn{n}-br", {f"n{n}up0": UPLINK, **jobs})
        made.add_bridge("gate-br", {"gup0": UPLINK, "wf0": WORKERS, "sf0": SERVERS})
        yield made


def text_of(fields: dict[str, int]) -> str:
    """A frame as `ofproto/trace` reads it."""
    shown = {name: hex(value) if name == "tcp_flags" else show(name, value, None) for name, value in fields.items()}
    return ",".join(f"{name}={text}" for name, text in shown.items())


def install(switch: DummySwitch, world: World) -> dict[str, SimulatedSwitch]:
    """The world's flows on the real bridges, and on a simulated one each. Every connection lookup finds nothing."""
    simulated = {}
    for bridge in world.site.bridges:
        flows = desired_flows(world, bridge).values()
        switch.install(bridge, flows, TABLE_0)
        simulated[bridge] = SimulatedSwitch(flows, always(CtState.TRK | CtState.NEW))
    return simulated


def always(state: int) -> Callable[[int], int]:
    """A connection table that says the same of every zone."""
    return lambda zone: state


@judged
@given(data=st.data())
def test_on_worker_bridges(switch: DummySwitch, data: st.DataObject) -> None:
    world = data.draw(worlds())
    install(switch, world)
    numbers = switch.port_numbers()
    for _ in range(PACKETS_A_WORLD):
        packet: Packet = data.draw(packets(world))
        bridge = bridge_of(world, packet)
        in_port = UPLINK if packet.sender is None else world.attempts[packet.sender].ofport
        fields = frame(packet, in_port, destination_mac(packet))
        known = CtState.TRK | (CtState.EST | CtState.RPL if packet.tracked else CtState.NEW)
        simulated = SimulatedSwitch(desired_flows(world, bridge).values(), always(known))
        sent = simulated.send(fields)
        note("\n".join(flow_text(f) for f in sent.trail))
        traced = switch.trace(bridge, text_of(fields), "trk,est,rpl" if packet.tracked else "trk,new")
        assert sent.outputs == expected_ports(world, packet)
        assert {numbers[port] for port in traced} == {(bridge, port) for port in sent.outputs}


@judged
@given(data=st.data())
def test_at_gates(switch: DummySwitch, data: st.DataObject) -> None:
    world = data.draw(worlds())
    simulated = install(switch, world)["gate-br"]
    numbers = switch.port_numbers()
    for _ in range(PACKETS_A_WORLD):
        entered, packet = data.draw(gate_packets(world))
        fields = frame(packet, SIDES[entered], destination_mac(packet))
        sent = simulated.send(fields)
        note("\n".join(flow_text(f) for f in sent.trail))
        traced = switch.trace("gate-br", text_of(fields))
        assert sent.outputs == expected_at_gate(world, packet, entered)
        if Special.NORMAL in sent.outputs:
            assert traced
        else:
            assert {numbers[port] for port in traced} == {("gate-br", port) for port in sent.outputs}
