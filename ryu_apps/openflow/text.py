"""Canonical text of flows in `ovs-ofctl` syntax, with table names for people or numbers for `ovs-ofctl`.

The same flow always gives the same text; golden files and `docs/pipeline.md` are made of it.
"""

from __future__ import annotations

from collections.abc import Iterable

from ryu_apps.openflow import fields
from ryu_apps.openflow.flows import (
    Action,
    ConnTrack,
    Flow,
    Goto,
    Match,
    Meter,
    Move,
    Normal,
    Output,
    OutputReg,
    SetField,
)
from ryu_apps.openflow.pipeline import Table

# Prerequisites first, then from the outside of a frame to its inside: the order in which people read a packet.
_ORDER = {name: position for position, name in enumerate(("in_port", "dl_type", "nw_proto", *fields.FIELDS))}
for _position, _name in enumerate(("in_port", "dl_type", "nw_proto")):
    _ORDER[_name] = _position


def match_text(match: Match) -> str:
    ordered = sorted(match, key=lambda m: _ORDER[m.field])
    parts = []
    for m in ordered:
        shown = fields.show(m.field, m.value, m.mask)
        parts.append(f"{m.field}={shown}")
    return ",".join(parts)


def _bits(field: str, low: int, width: int) -> str:
    return f"{field}[{low}..{low + width - 1}]" if width > 1 else f"{field}[{low}]"


def action_text(action: Action, numeric: bool) -> str:
    match action:
        case SetField(field, value, low, width):
            return f"load:{value:#x}->{_bits(field, low, width)}"
        case Move(source, source_low, target, target_low, width):
            return f"move:{_bits(source, source_low, width)}->{_bits(target, target_low, width)}"
        case Output(port):
            return f"output:{port}"
        case OutputReg(field, low, width):
            return f"output:{_bits(field, low, width)}"
        case Normal():
            return "NORMAL"
        case ConnTrack(commit, zone_field, zone_low, recirc_table):
            parts = ["commit"] if commit else []
            if recirc_table is not None:
                parts.append(f"table={_table(recirc_table, numeric)}")
            parts.append(f"zone={_bits(zone_field, zone_low, 16)}")
            return f"ct({','.join(parts)})"
        case Meter(number):
            return f"meter:{number}"
        case Goto(table):
            return f"goto_table:{_table(table, numeric)}"
    raise TypeError(f"not an action: {action!r}")


def _table(number: int, numeric: bool) -> str:
    return str(number) if numeric else Table(number).name


def flow_text(flow: Flow, *, numeric: bool = False) -> str:
    """One flow as one line. `numeric` gives what `ovs-ofctl add-flows` reads."""
    head = f"table={_table(flow.table, numeric)}, priority={flow.priority}, cookie={flow.cookie:#x}"
    matches = match_text(flow.match)
    actions = ",".join(action_text(a, numeric) for a in flow.actions) or "drop"
    return f"{head}{', ' + matches if matches else ''}, actions={actions}"


def flows_text(flows: Iterable[Flow], *, numeric: bool = False) -> str:
    """Many flows, in table order, highest priority first, then by match: one line each."""
    ordered = sorted(flows, key=lambda f: (f.table, -f.priority, match_text(f.match)))
    return "".join(flow_text(f, numeric=numeric) + "\n" for f in ordered)
