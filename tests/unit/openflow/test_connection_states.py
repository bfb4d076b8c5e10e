"""What the connection table says of a packet, and which of its words let an answer pass: a bit too many is a way in."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest

from policies.language import policy_from_text
from policies.model import World
from ryu_apps.openflow.compiler import desired_flows
from ryu_apps.openflow.fields import CtState, EtherType, Frag, IpProto
from ryu_apps.openflow.simulate import SimulatedSwitch
from tests.worlds import world

POLICY = """
networks: {campus: [10.9.0.0/16]}
services: {fileserver: {hosts: [10.20.0.5], ports: [tcp/1094], protected: true}}
groups: {physics: 'LarkGroup =?= "physics"'}
expose: [{for: physics, ports: [tcp/8080], to: [campus]}]
defaults: {egress: deny}
"""
OUTSIDE, UPLINK = 0x0A090101, 1
PASS = {"est rpl", "rel", "new rel", "est rpl rel"}
STATES = sorted(PASS | {"new", "est", "rpl", "inv", "est rpl inv", "rel inv", "new rpl"})
WORDS = {"new": CtState.NEW, "est": CtState.EST, "rel": CtState.REL, "rpl": CtState.RPL, "inv": CtState.INV}


@pytest.mark.parametrize("says", STATES)
@pytest.mark.parametrize("outward", [True, False])
def test_only_answers_and_their_errors_pass(says: str, outward: bool) -> None:
    here: World = world([{"LarkGroup": "physics"}], policy_from_text(POLICY))
    job = here.attempts["job1"]
    state = CtState.TRK | sum(WORDS[word] for word in says.split())
    switch = SimulatedSwitch(desired_flows(here, job.bridge).values(), lambda zone: state if zone == job.zone else 0)
    mine, theirs = (int(job.ipv4), 8080), (OUTSIDE, 40000)
    (source, source_port), (to, port) = (mine, theirs) if outward else (theirs, (int(job.ipv4), 9999))
    sent = switch.send(
        {
            "in_port": job.ofport if outward else UPLINK,
            "dl_src": job.mac if outward else 0x020000000001,
            "dl_dst": 0x020000000001 if outward else job.mac,
            "dl_type": EtherType.IPV4,
            "nw_src": source,
            "nw_dst": to,
            "nw_proto": IpProto.TCP,
            "nw_ttl": 64,
            "nw_frag": 0,
            "tcp_src": source_port,
            "tcp_dst": port,
            "tcp_flags": 0x010,
        }
    )
    assert bool(sent.outputs) == (says in PASS)
    assert sent.committed == frozenset()


SERVING = """
services:
  fileserver: {hosts: [10.20.0.5, "2001:db8:20::5"], ports: [tcp/1094, udp/1094], protected: true}
groups: {physics: 'LarkGroup =?= "physics"'}
grants: [{for: physics, to: fileserver}]
"""
HOSTS = {4: int(IPv4Address("10.20.0.5")), 6: int(IPv6Address("2001:db8:20::5"))}


@pytest.mark.parametrize(("version", "protocol"), [(4, "tcp"), (4, "udp"), (6, "tcp"), (6, "udp")])
def test_the_connection_table_sees_all_pieces_of_a_datagram_or_none(version: int, protocol: str) -> None:
    here = world([{"LarkGroup": "physics"}], policy_from_text(SERVING))
    job = here.attempts["job1"]
    assert job.ipv6 is not None
    number = {"tcp": IpProto.TCP, "udp": IpProto.UDP}[protocol]
    prefix, mine = ("nw", int(job.ipv4)) if version == 4 else ("ipv6", int(job.ipv6))
    switch = SimulatedSwitch(desired_flows(here, job.bridge).values(), lambda zone: 0)

    def piece(kind: int) -> frozenset[int]:
        later = kind == Frag.BOTH
        ports = {f"{protocol}_src": 0 if later else 40000, f"{protocol}_dst": 0 if later else 1094}
        if protocol == "tcp":
            ports["tcp_flags"] = 0 if later else 2
        hidden = later and version == 6
        sent = switch.send(
            {
                "in_port": job.ofport,
                "dl_src": job.mac,
                "dl_dst": 0x020000000001,
                "dl_type": EtherType.IPV4 if version == 4 else EtherType.IPV6,
                f"{prefix}_src": mine,
                f"{prefix}_dst": HOSTS[version],
                "nw_ttl": 64,
                "nw_frag": kind,
                "nw_proto": IpProto.FRAGMENT if hidden else number,
                **({} if hidden else ports),
            }
        )
        assert sent.outputs == {UPLINK}
        return sent.committed

    assert piece(Frag.ANY) == piece(Frag.BOTH)
    assert piece(Frag.ANY) == (frozenset() if (version, protocol) == (4, "tcp") else {job.zone})
