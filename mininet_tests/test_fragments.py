"""Legitimate fragments of allowed traffic pass, there and back, and those to a service without a grant do not.

Real kernels send datagrams and pings of 4,000 octets in pieces, over IPv4 and IPv6, through a worker bridge and a gate
of a real Open vSwitch with the userspace datapath: to an open destination, to a granted service, and to one that is
not granted.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from mininet_tests.node_rig import (
    BRIDGE,
    ROUTER,
    ROUTER4,
    ROUTER6,
    add_bridge,
    install,
    machines,
    prepare_host,
    prepare_job,
)
from mininet_tests.site.namespaces import Machine, this_python, wire
from mininet_tests.site.openvswitch import RUN, OpenVSwitch
from ovs_agent import plan
from policies.language import policy_from_text
from policies.model import Attempt, World
from tests.worlds import demo_site, with_job, world

POLICY = """
services:
  granted: {hosts: [10.20.0.5, "2001:db8:20::5"], ports: [udp/5000, icmp], protected: true}
  refused: {hosts: [10.20.0.6, "2001:db8:20::6"], ports: [udp/5000, icmp], protected: true}
groups: {physics: 'LarkGroup =?= "physics"'}
grants: [{for: physics, to: granted}]
"""
OPEN = {4: "198.51.100.9", 6: "2001:db8:ffff::9"}
GRANTED = {4: "10.20.0.5", 6: "2001:db8:20::5"}
REFUSED = {4: "10.20.0.6", 6: "2001:db8:20::6"}
PORT, SIZE = 5000, 4000
ECHO = textwrap.dedent("""
    import selectors, socket, sys
    ready = selectors.DefaultSelector()
    for address in sys.argv[2:]:
        one = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        one.bind((address, int(sys.argv[1])))
        ready.register(one, selectors.EVENT_READ)
    print("listening", flush=True)
    while True:
        for key, _ in ready.select():
            data, peer = key.fileobj.recvfrom(65535)
            print("got", len(data), "from", peer[0], "at", key.fileobj.getsockname()[0], flush=True)
            key.fileobj.sendto(data, peer)
""")
ASK = textwrap.dedent("""
    import socket, sys
    host, port, size, patience = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    one = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    one.settimeout(patience)
    said = bytes(n % 251 for n in range(size))
    one.sendto(said, (host, port))
    try:
        print("same" if one.recv(65535) == said else "different")
    except TimeoutError:
        print("silence")
""")


@dataclass
class Way:
    """A job, the switch it must pass, and the machines on the other side."""

    host: Machine
    job: Machine
    servers: Machine
    outside: Machine
    switch: OpenVSwitch

    def asks(self, address: str, patience: float) -> str:
        argv = [this_python(), "-c", ASK, address, str(PORT), str(SIZE), str(patience)]
        return self.job.run(argv).need().out.strip()

    def pings(self, address: str) -> bool:
        return self.job.run(["ping", "-c", "1", "-W", "2", "-M", "dont", "-s", str(SIZE), address]).code == 0

    def fragments_at(self, machine: Machine) -> int:
        """Pieces that a machine's kernel was given to put together, of both families."""
        old = machine.need("cat", "/proc/net/snmp")
        names, values = (line.split() for line in old.splitlines() if line.startswith("Ip:"))
        four = int(dict(zip(names, values, strict=True))["ReasmReqds"])
        six = re.search(r"^Ip6ReasmReqds\s+(\d+)", machine.need("cat", "/proc/net/snmp6"), re.MULTILINE)
        assert six is not None
        return four + int(six.group(1))


def addresses(machine: Machine, *given: str) -> None:
    for address in given:
        family = ["-6"] if ":" in address else []
        nodad = ["nodad"] if family else []
        machine.need("ip", *family, "address", "add", address, "dev", "eth0", *nodad)


def the_world() -> World:
    site = demo_site()
    bridges = dict(site.bridges)
    bridges["gate-br"] = replace(bridges["gate-br"], guards=("granted", "refused"))
    return with_job(world([], policy_from_text(POLICY), replace(site, bridges=bridges)), 1, {"LarkGroup": "physics"})


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    here = the_world()
    attempt: Attempt = here.attempts["job1"]
    root = tmp_path_factory.mktemp("fragments")
    with machines(root, "host", "job", "servers", "outside") as (host, job, servers, outside):
        wire(host, "lj11", job, "eth0")
        wire(host, "up0", host, "wf0")
        wire(host, "sf0", servers, "eth0")
        wire(host, "cf0", outside, "eth0")
        prepare_job(job, attempt)
        outside.need("ip", "link", "set", "eth0", "address", ROUTER)
        host.run(["nft", "-f", "-"], given=plan.nft_ruleset([], [])).need()
        switch = OpenVSwitch(host)
        switch.start()
        add_bridge(switch, BRIDGE, {"up0": 1, "lj11": attempt.ofport})
        add_bridge(switch, "gate-br", here.ports["gate-br"])
        prepare_host(host, here)
        install(host, "gate-br", here, ["table=0,priority=0,actions=goto_table:1"])
        addresses(job, f"{attempt.ipv4}/16", f"{attempt.ipv6}/48")
        addresses(servers, *(f"{a}/{16 if v == 4 else 48}" for one in (GRANTED, REFUSED) for v, a in one.items()))
        addresses(outside, f"{ROUTER4}/16", f"{ROUTER6}/48", f"{OPEN[4]}/32", f"{OPEN[6]}/128")
        job.need("ip", "route", "add", "default", "via", ROUTER4)
        job.need("ip", "-6", "route", "add", "default", "via", ROUTER6)
        for machine, hosts in ((servers, [*GRANTED.values(), *REFUSED.values()]), (outside, [*OPEN.values()])):
            echo = machine.spawn("echo", [this_python(), "-c", ECHO, str(PORT), *hosts])
            echo.wait_for_line("listening", 10)
        yield Way(host, job, servers, outside, switch)
        switch.stop()


@pytest.mark.parametrize("version", [4, 6])
def test_datagrams_and_pings_in_pieces_pass_to_an_open_destination_and_back(way: Way, version: int) -> None:
    before = way.fragments_at(way.outside), way.fragments_at(way.job)
    assert way.asks(OPEN[version], 10) == "same"
    assert way.pings(OPEN[version])
    after = way.fragments_at(way.outside), way.fragments_at(way.job)
    assert all(now - then >= 6 for now, then in zip(after, before, strict=True)), "they did not come in pieces"


@pytest.mark.parametrize("version", [4, 6])
def test_to_a_granted_service_they_pass_a_worker_bridge_and_a_gate_and_back(way: Way, version: int) -> None:
    before = way.fragments_at(way.servers), way.fragments_at(way.job)
    assert way.asks(GRANTED[version], 10) == "same"
    assert way.pings(GRANTED[version])
    after = way.fragments_at(way.servers), way.fragments_at(way.job)
    assert all(now - then >= 6 for now, then in zip(after, before, strict=True)), "they did not come in pieces"


@pytest.mark.parametrize("version", [4, 6])
def test_to_a_service_without_a_grant_not_one_piece_passes(way: Way, version: int) -> None:
    assert way.asks(GRANTED[version], 10) == "same"  # the way is there, and the server sees pieces
    before = way.fragments_at(way.servers)
    assert way.asks(REFUSED[version], 2) == "silence"
    assert not way.pings(REFUSED[version])
    assert way.fragments_at(way.servers) == before


def test_a_switch_that_hides_the_ports_of_fragments_is_closed_to_them(way: Way) -> None:
    """What a switch does after a restart, before the controller has told it (`encode.fragments_show_ports`)."""

    def show(how: str) -> None:
        for bridge in (BRIDGE, "gate-br"):
            way.host.need("ovs-ofctl", "-OOpenFlow14", "set-frags", f"unix:{RUN}/{bridge}.mgmt", how)

    show("normal")
    try:
        assert [way.asks(where[4], 1) for where in (OPEN, GRANTED, REFUSED)] == ["silence"] * 3
    finally:
        show("nx-match")
    assert [way.asks(where[4], 10) for where in (OPEN, GRANTED)] == ["same"] * 2
