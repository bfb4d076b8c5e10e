"""Real senders on the campus, whose line to the world is shared by classes, and what arrives where that line ends.

    production  a job on wn1, iperf3 to cern             \\
    xrootd      files of a real xrootd on login, fetched   >  the border's line
                by real xrdcps on cern                    /
    others      a job on wn2, iperf3 to osg

Counted is on isp's end of the line, by source address: bytes on the wire. The campus has no probers (`probing=False`):
they would listen at the server's port.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from mininet_tests.border_rig import ECHO, ETHERNET
from mininet_tests.site.namespaces import Daemon, Machine, SiteError, this_python, wait_until
from mininet_tests.site.openvswitch import hurry
from mininet_tests.site.xrootd import FILE, PORT, SIZE, XrootdServer
from mininet_tests.topology import layout
from mininet_tests.topology.jobs import Job
from mininet_tests.topology.lab import Campus
from policies.border import Direction, class_at_border
from policies.semantics import Packet, Transport

IPERF = 5201
PRODUCTION, XROOTD, OTHERS = SENDERS = ("production", "xrootd", "others")
ADS: Mapping[str, Mapping[str, Any]] = {PRODUCTION: {"LarkGroup": "cms-production"}, OTHERS: {"LarkGroup": "physics"}}
TCP = "cubic"
"""Debian's default, and the same wherever the experiment runs."""


class Unfit(SiteError):
    """This policy has nothing to show here."""


@dataclass(slots=True)
class Traffic:
    """`start` once; then senders come and go. `priority`: real-time, of all senders, receivers and switches; 0: none.

    The switches have one more: what is measured is the queues, and not how busy the carrying machine is."""

    campus: Campus
    priority: int = 0
    file_size: int = SIZE
    jobs: dict[str, Job] = field(default_factory=dict)
    classes: Mapping[str, str] = field(default_factory=dict)
    """By sender, the class that the policy gives it."""

    def start(self) -> None:
        """Jobs, server, receivers and counters; nobody sends yet. Raises Unfit."""
        server = XrootdServer(self.campus.machine("login"), size=self.file_size)
        for directory in (self.campus.root, server.machine.root):
            directory.chmod(0o755)  # the server runs as its own user
        # It does not start before it knows its own name's address, and there is nobody to ask.
        with (self.campus.root / "etc" / "hosts").open("a", encoding="utf-8") as hosts:
            name = server.machine.need("hostname").strip()
            hosts.write(f"{layout.place('login').ipv4[0]} login {name}\n")
        server.start()
        for sender, node in ((PRODUCTION, "wn1"), (OTHERS, "wn2")):
            self.jobs[sender] = self.campus.start_job(node, ADS[sender], sender)
        self.classes = self._classes()
        if self.priority:
            for bridge in layout.BRIDGES:
                hurry(self.campus.machine(bridge), self.priority + 1)
        sources = [self.jobs[PRODUCTION].spec.ipv4, layout.place("login").ipv4[0], self.jobs[OTHERS].spec.ipv4]
        rules = "add table inet line\nadd chain inet line seen { type filter hook prerouting priority -300; }\n"
        rules += "".join(f'add rule inet line seen iifname "wan0" ip saddr {source} counter\n' for source in sources)
        self.campus.machine("isp").run(["nft", "-f", "-"], given=rules).need()
        # Nobody asks the file server which TCP it would like, and a namespace may not choose one for all.
        route = ["ip", "route", "replace", "default", "via", layout.place("login").gateway4, "congctl", TCP]
        server.machine.need(*route)
        self.campus.machine("cern").spawn("echo", [*self.chrt(2), this_python(), "-c", ECHO])
        for place in ("cern", "osg"):
            machine = self.campus.machine(place)
            machine.spawn("iperf3-server", [*self.chrt(), "iperf3", "-s", "-p", str(IPERF)])
            wait_until(f"iperf3 listens on {place}", functools.partial(_listens, machine), 10, 0.05)

    def send(self, sender: str, udp: float | None = None) -> Daemon:
        """A job begins to send, as a TCP or `udp` bits of payload a second."""
        job = self.jobs[sender]
        words = ["iperf3", "-c", far(sender), "-B", job.spec.ipv4, "-t", "3600"]
        words += ["-u", "-b", str(int(udp)), "-l", "1400"] if udp else ["-P", "2", "-C", TCP]
        return self.in_job(job, f"iperf3-{sender}", words)

    def in_job(self, job: Job, name: str, words: Sequence[str]) -> Daemon:
        return self.campus.machine(job.node).spawn(name, [*self.campus.entry(job), *self.chrt(), *words])

    def fetch(self, transfers: int) -> list[Daemon]:
        """Files begin to be fetched, one after the other in each of some processes, without end."""
        url = f"root://{layout.place('login').ipv4[0]}:{PORT}/{FILE}"
        script = f"trap 'kill $c; exit' TERM; while :; do xrdcp -f -s {url} /dev/null & c=$!; wait $c || exit 1; done"
        machine = self.campus.machine("cern")
        return [machine.spawn(f"xrdcp-{number}", [*self.chrt(), "sh", "-c", script]) for number in range(transfers)]

    def fetching(self) -> bool:
        words = ["ss", "-tnH", "state", "established", "dport", f":{PORT}"]
        return bool(self.campus.machine("cern").need(*words).strip())

    def connections(self) -> frozenset[tuple[str, ...]]:
        """Both ends of every TCP connection that a receiver has."""
        found = []
        for place in ("cern", "osg"):
            for line in self.campus.machine(place).need("ss", "-tnH", "state", "established").splitlines():
                found.append((place, *line.split()[2:4]))
        return frozenset(found)

    def arrived(self) -> tuple[float, dict[str, int]]:
        """When it was, and the bytes of each sender that had arrived by then."""
        document = json.loads(self.campus.machine("isp").need("nft", "-j", "list", "table", "inet", "line"))
        now = time.monotonic()
        rules = [item["rule"] for item in document["nftables"] if "rule" in item]
        counters = [next(part["counter"] for part in rule["expr"] if "counter" in part) for rule in rules]
        octets = [one["bytes"] + ETHERNET * one["packets"] for one in counters]
        return now, dict(zip(SENDERS, octets, strict=True))

    def chrt(self, more: int = 0) -> list[str]:
        return ["chrt", "-f", str(self.priority + more)] if self.priority else []

    def _classes(self) -> dict[str, str]:
        world = self.campus.world()
        found = {}
        for sender in SENDERS:
            target = ip_address(far(sender))
            if sender == XROOTD:
                packet = Packet(None, 0, ip_address(layout.place("login").ipv4[0]), target, Transport.TCP, PORT, 40000)
            else:
                job = self.jobs[sender]
                assert job.status is not None
                mac = int(job.spec.mac.replace(":", ""), 16)
                packet = Packet(job.status.id, mac, ip_address(job.spec.ipv4), target, Transport.TCP, 40000, IPERF)
            one = class_at_border(world, packet, Direction.OUTWARD)
            found[sender] = "" if one is None else one.name
        if len(set(found.values())) != len(SENDERS) or "" in found.values():
            told = ", ".join(f"{sender}: {name or 'none'}" for sender, name in found.items())
            raise Unfit(
                f"the policy must give the three senders three classes, and gives {told}. production is a job with "
                f"LarkGroup cms-production, xrootd is what a server sends from tcp/{PORT}, others a job with LarkGroup "
                "physics; begin with the lab's own policy, mininet_tests/topology/campus.yaml"
            )
        return found


def far(sender: str) -> str:
    """The address that a sender sends to."""
    return layout.place("osg" if sender == OTHERS else "cern").ipv4[0]


def _listens(machine: Machine) -> bool:
    return f":{IPERF}" in machine.need("ss", "-ltnH")
