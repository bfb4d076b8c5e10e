"""A switch made of flow values: what a bridge would do with a frame, without a bridge.

It is a judge of its own in the tests (the policy's meaning, this simulator and Open vSwitch must agree) and a fake for
those who test policies without root. It follows ovs-actions(7) for the few actions that `flows` has; it knows nothing
of policies.

A frame is a mapping from field names (`fields.FIELDS`) to integers; a field that the frame does not have (a TCP port of
an ARP frame, say) is absent, and a match on it fails, as OpenFlow's prerequisites demand.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ryu_apps.openflow import fields
from ryu_apps.openflow.flows import ConnTrack, Flow, FlowKey, Goto, Meter, Move, Normal, Output, OutputReg, SetField

Frame = Mapping[str, int]
FIRST_TABLE = 1
"""Table 0 is the agent's: what it does not handle itself it sends on to table 1."""


class Special(enum.Enum):
    """An output that is not a port number."""

    NORMAL = "NORMAL"


@dataclass(frozen=True, slots=True)
class Result:
    """Where a frame went, by which flows, which connections were committed (as conntrack zones), what it has become.

    `left`: the frame's fields and the registers at the end, with what the flows wrote into them (`ip_dscp`, say).
    """

    outputs: frozenset[int | Special]
    trail: tuple[Flow, ...]
    committed: frozenset[int]
    left: Mapping[str, int]


class SimulatedSwitch:
    """The flows of one bridge. `lookup(zone)` is asked for `ct_state` whenever a flow looks a connection up."""

    def __init__(self, flows: Iterable[Flow], lookup: Callable[[int], int]) -> None:
        self._tables: dict[int, list[Flow]] = {}
        for flow in flows:
            self._tables.setdefault(flow.table, []).append(flow)
        for table in self._tables.values():
            table.sort(key=lambda f: -f.priority)
        self._lookup = lookup
        self.hits: dict[FlowKey, int] = {}

    def send(self, frame: Frame) -> Result:
        """Process one frame. Raises ValueError for a field that does not exist or a value that does not fit."""
        state = {f"reg{n}": 0 for n in range(16)} | {"vlan_tci": 0, "ct_state": 0, "ip_dscp": 0, "ipv6_label": 0}
        state |= dict(frame)
        for name, value in state.items():
            if not 0 <= value <= fields.full_mask(name):
                raise ValueError(f"{value:#x} does not fit into {name}")
        outputs: set[int | Special] = set()
        trail: list[Flow] = []
        committed: set[int] = set()
        table: int | None = FIRST_TABLE
        while table is not None:
            flow = next((f for f in self._tables.get(table, ()) if _matches(f, state)), None)
            if flow is None:
                break
            trail.append(flow)
            self.hits[flow.key] = self.hits.get(flow.key, 0) + 1
            table = self._apply(flow, state, outputs, committed)
        # A switch never sends a frame back by the port it came from.
        outputs.discard(state["in_port"])
        return Result(frozenset(outputs), tuple(trail), frozenset(committed), state)

    def _apply(self, flow: Flow, state: dict[str, int], outputs: set[int | Special], committed: set[int]) -> int | None:
        following: int | None = None
        for action in flow.actions:
            match action:
                case SetField(field, value, low, width):
                    _write(state, field, low, width, value)
                case Move(source, source_low, target, target_low, width):
                    _write(state, target, target_low, width, state.get(source, 0) >> source_low)
                case Output(port):
                    outputs.add(port)
                case OutputReg(field, low, width):
                    outputs.add((state[field] >> low) & ((1 << width) - 1))
                case Normal():
                    outputs.add(Special.NORMAL)
                case ConnTrack(commit, zone_field, zone_low, recirc_table):
                    zone = (state[zone_field] >> zone_low) & 0xFFFF
                    if commit:
                        committed.add(zone)
                    if recirc_table is not None:
                        state["ct_state"] = self._lookup(zone)
                        following = recirc_table
                case Meter():
                    pass  # a single frame is never too much
                case Goto(table):
                    following = table
        return following


def _write(state: dict[str, int], field: str, low: int, width: int, value: int) -> None:
    mask = ((1 << width) - 1) << low
    state[field] = (state.get(field, 0) & ~mask) | ((value << low) & mask)


def _matches(flow: Flow, state: Mapping[str, int]) -> bool:
    for wanted in flow.match:
        value = state.get(wanted.field)
        if value is None:
            return False
        mask = fields.full_mask(wanted.field) if wanted.mask is None else wanted.mask
        if value & mask != wanted.value:
            return False
    return True
