"""Compilers that are broken on purpose, each in one way: the judges must notice every one of them.

A mutant compiles as the real compiler does and then spoils some flows, so that it stays what its name says whatever
the compiler looks like inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from policies.model import Reason, World
from ryu_apps.openflow import registers as r
from ryu_apps.openflow.compiler import desired_flows
from ryu_apps.openflow.cookies import Feature, cookie
from ryu_apps.openflow.fields import EtherType
from ryu_apps.openflow.flows import Action, ConnTrack, Flow, FlowKey, Goto, Output, SetField, match
from ryu_apps.openflow.pipeline import Priority, Table
from tests.cases import OTHER_WAN, WAN

Spoil = Callable[[Flow], Flow | None]
Compile = Callable[[World, str], dict[FlowKey, Flow]]


def _spoilt(spoil: Spoil) -> Compile:
    def compile(world: World, bridge: str) -> dict[FlowKey, Flow]:
        found = [spoil(flow) for flow in desired_flows(world, bridge).values()]
        return {flow.key: flow for flow in found if flow is not None}

    return compile


def _without(unwanted: Callable[[Flow, Action], bool]) -> Compile:
    def spoil(flow: Flow) -> Flow:
        return replace(flow, actions=tuple(a for a in flow.actions if not unwanted(flow, a)))

    return _spoilt(spoil)


def _loads(register: r.Register, action: Action) -> bool:
    return isinstance(action, SetField) and (action.field, action.low) == (register.field, register.low)


def _unmatched(table: Table, *fields: str) -> Compile:
    """Flows of a table no longer ask for some fields."""

    def spoil(flow: Flow) -> Flow:
        if flow.table != table:
            return flow
        return replace(flow, match=tuple(m for m in flow.match if m.field not in fields))

    return _spoilt(spoil)


def _missing(table: Table, wanted: Callable[[Flow], bool]) -> Compile:
    return _spoilt(lambda flow: None if flow.table == table and wanted(flow) else flow)


def _asks(flow: Flow, field: str) -> bool:
    return any(m.field == field for m in flow.match)


def _sealed_ports_open(world: World, bridge: str) -> dict[FlowKey, Flow]:
    found = desired_flows(world, bridge)
    for job in world.attempts.values():
        if job.outcome.sealed and job.bridge == bridge:
            to = (Output(job.ofport),)
            wanted = match(r.DESTINATION.equals(int(job.ipv4)))
            flow = Flow(int(Table.DELIVER), Priority.OBJECT, wanted, to, cookie(Feature.ATTEMPT, job.number))
            found[flow.key] = flow
    return found


def _swap_ports(flow: Flow) -> Flow:
    names = {f"{p}_{a}": f"{p}_{b}" for p in ("tcp", "udp") for a, b in (("src", "dst"), ("dst", "src"))}
    swapped = match(*(replace(m, field=names.get(m.field, m.field)) for m in flow.match))
    return replace(flow, match=swapped) if flow.table == Table.EXPOSED else flow


def _last_rule_first(flow: Flow) -> Flow:
    return replace(flow, priority=5000 - flow.priority) if flow.table == Table.CLASS else flow


def _largest_network_first(flow: Flow) -> Flow:
    return replace(flow, priority=2000 - flow.priority) if flow.table == Table.EXPOSE_SOURCE else flow


def _reach_all(flow: Flow) -> Flow:
    if flow.table != Table.MEMBER:
        return flow
    actions = tuple(Goto(int(Table.TRACK)) if a == Goto(int(Table.EXPOSED)) else a for a in flow.actions)
    return replace(flow, actions=actions)


def _wrong_reason(flow: Flow) -> Flow:
    right, wrong = r.REASON.load(Reason.INGRESS), r.REASON.load(Reason.EGRESS)
    return replace(flow, actions=tuple(wrong if a == right else a for a in flow.actions))


def _inward_unmarked(flow: Flow) -> Flow:
    if flow.table != Table.BORDER_MARK or not any(isinstance(a, SetField) for a in flow.actions):
        return flow
    return replace(flow, match=match(*flow.match, r.ORIGIN.equals(r.Origin.JOB)))


def _from_wan(flow: Flow) -> bool:
    return any(m.field == "in_port" and m.value in (WAN, OTHER_WAN) for m in flow.match)


def _is_six(flow: Flow) -> bool:
    return any(m.field == "dl_type" and m.value == EtherType.IPV6 for m in flow.match)


def _commits(*tables: Table) -> Callable[[Flow, Action], bool]:
    return lambda flow, action: flow.table in tables and isinstance(action, ConnTrack) and action.commit


MUTANTS: dict[str, Compile] = {
    "a closed host of a service is taken for an open one": _without(lambda f, a: _loads(r.CLOSED, a)),
    "what is let on to a sealed job is delivered": _sealed_ports_open,
    "no rule is audited": _without(lambda f, a: f.table < Table.GATE_SOURCE and _loads(r.AUDIT, a)),
    "a gate does not know the mode of nodes": _without(
        lambda f, a: f.table == Table.GATE_SOURCE and _loads(r.AUDIT, a)
    ),
    "source and destination ports are swapped between jobs": _spoilt(_swap_ports),
    "members of a slice of exposed ports reach everything": _spoilt(_reach_all),
    "the groups of the far job are not known": _without(lambda f, a: _loads(r.PEER_GROUPS, a)),
    "the groups of a job are not known": _without(lambda f, a: _loads(r.GROUPS, a)),
    "replies pass without a look at the connection table": _unmatched(Table.REPLY_STATE, "ct_state"),
    "what goes out is not remembered": _without(_commits(Table.TRACK)),
    "what is let in is not remembered": _without(_commits(Table.REPLY_STATE, Table.EXPOSE_SOURCE, Table.EXPOSE_PORT)),
    "fragments to a protected host are taken for whole packets": _missing(
        Table.SERVICE_PORT, lambda f: _asks(f, "nw_frag")
    ),
    "the largest network decides who is served": _spoilt(_largest_network_first),
    "the last rule of classify that fits decides": _spoilt(_last_rule_first),
    "packets of IPv6 are not marked": _without(
        lambda f, a: _is_six(f) and isinstance(a, SetField) and a.field == "ip_dscp"
    ),
    "a refusal is counted for the wrong reason": _spoilt(_wrong_reason),
    "the guard does not look at MAC addresses": _unmatched(Table.SPOOF_GUARD, "dl_src"),
    "a gate lets no answer back": _missing(Table.GATE_RETURN_GRANT, lambda f: _asks(f, r.IDENTITY.field)),
    "a gate takes any packet for one of the services of its host": _unmatched(
        Table.GATE_SERVICE_PORT, "tcp_dst", "udp_dst"
    ),
    "a border lets a job's address in": _missing(
        Table.CLASSIFY, lambda f: f.priority == Priority.OUTSIDE_FORGED and _from_wan(f)
    ),
    "a border does not know jobs": _missing(Table.BORDER_JOB, lambda f: f.priority == Priority.OBJECT),
    "a border looks at both ends of a job's packet": _missing(
        Table.BORDER_SENDER, lambda f: f.priority == Priority.OWN_END
    ),
    "a border looks for services at the receiver only": _missing(
        Table.BORDER_CLASS, lambda f: _asks(f, r.SENDER_HOST_KINDS.field)
    ),
    "a border marks what leaves the site only": _spoilt(_inward_unmarked),
    "a border takes later fragments for what they do not show": _missing(
        Table.BORDER_RECEIVER_PORT, lambda f: _asks(f, "nw_frag")
    ),
}
