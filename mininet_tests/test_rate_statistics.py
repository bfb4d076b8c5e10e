"""What rates and shares drop, beside the counters of the interfaces at both ends, with real packets, over restarts.

    job   eth0 ── lj2 ┐
    one   eth0 ── lj3 ├ br1 up0 ── eth0 outside          (a real Open vSwitch, the controller, no agent)
    other eth0 ── lj4 ┘

`job` has a rate; `one` and `other` have a share, and `one` a rate within it. All send more UDP than they may, and are
sent more. At rest what passed is what the far interface has counted, and with what was dropped it is what the near one
has: to a thousandth, also after the controller and the switch were killed, and after the rate was altered.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from mininet_tests.edge_site import ask_api
from mininet_tests.node_rig import machines
from mininet_tests.site.lark import ENVIRONMENT, OPENFLOW, Controller, Larkctl, python_command
from mininet_tests.site.namespaces import Machine, this_python, wait_until, wire
from mininet_tests.site.openvswitch import OpenVSwitch, widen
from tests.effort import FULL
from tests.unit.controller.rig import aid, node_spec, spec

SITE = """\
site: limited
network: {ipv4: 10.20.0.0/16}
infrastructure: [192.0.2.0/24]
nodes: {wn1: {bridge: br1, ipv4: 10.20.1.0/24}}
bridges:
  br1: {datapath-id: "00000000000000a1", address: 192.0.2.1, roles: [worker], ports: {uplink: [up0]}}
"""
POLICY = """\
attributes: {Mbps: {type: number, min: 1}}
groups: {together: 'User =?= "a@site"'}
rates: [{rate: Mbps, unit: Mbit/s}]
shares: [{for: together, per: User, share: 16 Mbit/s}]
"""
ALTERED = POLICY.replace("rate: Mbps", "rate: 'Mbps + 2'")
ADS: dict[str, dict[str, object]] = {
    "job": {"User": "c@site", "Mbps": 10},
    "one": {"User": "a@site", "Mbps": 8},
    "other": {"User": "a@site"},
}
SENDS = 20
"""Mbit/s that each job sends, and is sent."""
SECONDS = 10.0 if FULL else 1.5
OUTSIDE, PORT, MAC = "198.51.100.7", 9000, "02:00:00:00:00:07"
SINK = f"""
import signal, socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
s.bind(("", {PORT}))
print("bound", flush=True)
signal.pause()
"""
TALK = f"""
import socket, sys, time
ends = []
for far in sys.argv[4:]:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    s.bind(("", {PORT}))
    s.connect((far, {PORT}))
    ends.append(s)
seconds, rate, size, sent = float(sys.argv[1]), float(sys.argv[2]) * 10**6, int(sys.argv[3]), 0
began = time.monotonic()
while (now := time.monotonic() - began) < seconds:
    if sent * (size + 42) * 8 < rate * now:
        for s in ends:
            s.send(bytes(size))
        sent += 1
    else:
        time.sleep(0.002)
"""


def address(job: str) -> str:
    return f"10.20.1.{2 + list(ADS).index(job)}"


@dataclass
class Limited:
    node: Machine
    jobs: dict[str, Machine]
    outside: Machine
    controller: Controller
    switch: OpenVSwitch
    larkctl: Larkctl
    said: list[dict[str, int]] = field(default_factory=list)
    """All that was ever told, to see that nothing goes back."""

    def talk(self) -> None:
        """Everybody sends to the outside, and is sent as much."""
        words = [str(SECONDS), str(SENDS), "1400"]
        pairs = [(machine, [OUTSIDE]) for machine in self.jobs.values()] + [(self.outside, [*map(address, ADS)])]
        talking = [machine.spawn("talk", [this_python(), "-c", TALK, *words, *far]) for machine, far in pairs]
        for sender in talking:
            wait_until("all is sent", lambda sender=sender: not sender.running(), 60, 0.1)  # type: ignore[misc]

    def interface(self, job: str) -> dict[str, int]:
        (found,) = json.loads(self.jobs[job].need("ip", "-j", "-s", "link", "show", "dev", "eth0"))
        return {side: found["stats64"][side]["bytes"] for side in ("rx", "tx")}

    def at_outside(self, which: str, job: str) -> int:
        """Bytes of whole frames that came to the outside from a job, or went to it."""
        text = self.outside.need("nft", "list", "counter", "inet", "t", f"{which}_{job}")
        packets, octets = (int(text.partition(f"{word} ")[2].split()[0]) for word in ("packets", "bytes"))
        return octets + 14 * packets

    def look(self) -> dict[str, int]:
        """Bytes that are told now; none are fewer than were told before."""
        now: dict[str, int] = {}
        for n, job in enumerate(ADS, 2):

            def told(n: int = n) -> dict[str, Any] | None:
                found: Any = self.larkctl.json("attempt", aid(n))["counters"]
                return None if found is None else dict(found)

            counters = wait_until("the switch tells the job's counters", told, 60, 0.5)
            now[f"{job} out"], now[f"{job} in"] = counters["admitted_bytes"], counters["delivered_bytes"]
            if (dropped := counters["dropped"]) is not None:
                now[f"{job} dropped out"], now[f"{job} dropped in"] = dropped["sent_bytes"], dropped["received_bytes"]
            if (share := counters["share"]) is not None:
                now["share out"], now["share in"] = share["sent_bytes"], share["received_bytes"]
                now["share dropped out"] = share["dropped"]["sent_bytes"]
                now["share dropped in"] = share["dropped"]["received_bytes"]
        if self.said:
            for what, octets in self.said[-1].items():
                assert now[what] >= octets, (what, self.said[-1], now)
        self.said.append(now)
        return now

    def pairs(self) -> dict[str, tuple[int, int]]:
        """What is told, and what interfaces have counted."""
        told = self.look()
        near = {job: self.interface(job) for job in ADS}
        out = {job: self.at_outside("from", job) for job in ADS}
        into = {job: self.at_outside("to", job) for job in ADS}
        shared = "one", "other"
        return {
            "job passed out": (told["job out"], out["job"]),
            "job passed in": (told["job in"], near["job"]["rx"]),
            "job sent": (told["job out"] + told["job dropped out"], near["job"]["tx"]),
            "job was sent": (told["job in"] + told["job dropped in"], into["job"]),
            "one sent": (told["one out"] + told["one dropped out"], near["one"]["tx"]),
            "one was sent": (told["one in"] + told["one dropped in"], into["one"]),
            "other sent": (told["other out"], near["other"]["tx"]),
            "other was sent": (told["other in"], into["other"]),
            # Two limits in a row: what comes to the share is what the rate has let on.
            "to the share out": (told["share out"] + told["share dropped out"], told["one out"] + told["other out"]),
            "to the share in": (told["share in"] + told["share dropped in"], told["one in"] + told["other in"]),
            "share passed out": (told["share out"], sum(out[job] for job in shared)),
            "share passed in": (told["share in"], sum(near[job]["rx"] for job in shared)),
        }

    def agree(self) -> None:
        """At rest all agree, to a thousandth."""
        last: list[str] = []

        def agreed() -> bool:
            last[:] = [f"{what}: {a} and {b}" for what, (a, b) in self.pairs().items() if abs(a - b) > b / 1000]
            return not last

        try:
            wait_until("counters and interfaces agree", agreed, 60, 0.5)
        except Exception as error:
            raise AssertionError(f"they do not agree: {last}") from error

    def prepare_bridge(self) -> None:
        argv = ["prepare-bridge", "--bridge", "br1", "--role", "worker", "--datapath-id", "a1", "--uplink", "up0"]
        argv += ["--datapath-type", "netdev", "--controller", f"tcp:{OPENFLOW}"]
        self.node.run(python_command("ovs_agent.cli", *argv), env=ENVIRONMENT, timeout=60).need()

    def wait_until_in_line(self) -> None:
        """All is programmed, and a packet of each job comes through: then the switch's sockets are widened, so that a
        moment in which the machine stands still loses nothing before it is counted."""

        def in_line() -> bool:
            found: Any = self.larkctl.json("bridges")["bridges"]
            return all(one["converged"] for one in found) and len(self.switch.flows("br1")) > 20

        wait_until("the bridge is in line", in_line, 60, 0.25)
        for job, machine in self.jobs.items():
            before = self.at_outside("from", job)

            def through(job: str = job, machine: Machine = machine, before: int = before) -> bool:
                machine.run([this_python(), "-c", TALK, "0.001", "1", "1", OUTSIDE], timeout=30).need()
                return self.at_outside("from", job) > before

            wait_until(f"a packet of {job} comes through", through, 60, 0.1)
        widen(self.node)

    def meters(self) -> list[str]:
        return [word for word in self.node.need("ovs-ofctl", "-OOpenFlow14", "dump-meters", "br1").split()
                if word.startswith("rate=")]  # fmt: skip


@pytest.fixture
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Limited]:
    root = tmp_path_factory.mktemp("limited")
    with machines(root, "node", "outside", *ADS) as (node, outside, *jobs):
        wire(node, "up0", outside, "eth0")
        node.need("ip", "address", "add", "192.0.2.1/32", "dev", "lo")
        ports = ["up0"]
        for n, job in enumerate(jobs, 2):
            ports.append(f"lj{n}")
            wire(node, ports[-1], job, "eth0")
        for port in ports:
            node.need("sysctl", "-q", "-w", f"net.ipv6.conf.{port}.disable_ipv6=1")
            node.need("ip", "link", "set", port, "arp", "off")
        # Nobody looks for neighbours: every frame is one that is talked with.
        attempts = {job: spec(n, **ad).model_copy(update={"ipv6": None})  # type: ignore[arg-type]
                    for n, (job, ad) in enumerate(ADS.items(), 2)}  # fmt: skip
        ends = [(outside, OUTSIDE, MAC, [(address(job), attempts[job].mac) for job in ADS])]
        ends += [(machine, address(job), attempts[job].mac, [(OUTSIDE, MAC)])
                 for job, machine in zip(ADS, jobs, strict=True)]  # fmt: skip
        for machine, mine, mac, others in ends:
            machine.need("sysctl", "-q", "-w", "net.ipv6.conf.eth0.disable_ipv6=1")
            machine.need("ip", "link", "set", "eth0", "address", mac)
            machine.need("ethtool", "-K", "eth0", "tx", "off")
            machine.need("ip", "address", "add", f"{mine}/32", "dev", "eth0")
            for far, where in others:
                machine.need("ip", "neigh", "replace", far, "lladdr", where, "dev", "eth0", "nud", "permanent")
                machine.need("ip", "route", "add", f"{far}/32", "dev", "eth0", "src", mine)
        counters = "".join(f"counter {which}_{job} {{}}\n" for which in ("from", "to") for job in ADS)
        come, go = ("".join(f"ip {side} {address(job)} counter name {which}_{job}\n" for job in ADS)
                    for side, which in (("saddr", "from"), ("daddr", "to")))  # fmt: skip
        chains = f"chain c {{\ntype filter hook prerouting priority raw;\n{come}}}\n"
        chains += f"chain g {{\ntype filter hook postrouting priority raw;\n{go}}}\n"
        outside.run(["nft", "-f", "-"], given=f"table inet t {{\n{counters}{chains}}}\n").need()
        sinks = [machine.spawn("sink", [this_python(), "-c", SINK]) for machine in (outside, *jobs)]
        for sink in sinks:
            sink.wait_for_line("bound", 10)
        switch = OpenVSwitch(node)
        switch.start()
        controller = Controller(node, "os-ken")
        controller.write(SITE, POLICY)
        config = controller.home / "controller.yaml"
        config.write_text(config.read_text() + "count-every: 2\n")
        token = controller.token("agent", "wn1")
        viewer = controller.home / "viewer.token"
        viewer.touch(mode=0o600)
        viewer.write_text(controller.token("viewer"))
        controller.start()
        found = Limited(node, dict(zip(ADS, jobs, strict=True)), outside, controller, switch, Larkctl(node, viewer))
        found.prepare_bridge()
        for n in range(2, 2 + len(ADS)):
            switch.vsctl("add-port", "br1", f"lj{n}", "--", "set", "interface", f"lj{n}", f"ofport_request={100 + n}")
        ask_api(node, token, "PUT", "/v1/nodes/wn1", node_spec().model_dump_json(exclude_none=True))
        for n, attempt in enumerate(attempts.values(), 2):
            ask_api(node, token, "PUT", f"/v1/attempts/{aid(n)}", attempt.model_dump_json(exclude_none=True))
        found.wait_until_in_line()
        yield found
        if controller.daemon is not None:
            controller.stop()
        switch.stop()


def test_what_was_sent_is_what_passed_and_what_was_dropped_over_restarts(limited: Limited) -> None:
    def more(what: str, do: Callable[[], None] = lambda: None) -> None:
        before = dict(limited.said[-1]) if limited.said else {}
        do()
        limited.talk()
        limited.agree()
        now = limited.said[-1]
        # The control: every limit was met, in both directions.
        for whose in ("job", "one", "share"):
            for way in ("out", "in"):
                key = f"{whose} dropped {way}"
                assert now[key] > before.get(key, 0), (what, key, before, now)
        print(f"{what}: {now}", flush=True)

    def kill_controller() -> None:
        limited.controller.stop(signal.SIGKILL)
        limited.controller.start()
        limited.wait_until_in_line()

    def kill_switch() -> None:
        limited.switch.kill_switch()
        limited.switch.start_switch()
        limited.prepare_bridge()
        limited.wait_until_in_line()

    def kill_both() -> None:
        kill_switch()
        # What a switch has forgotten is remembered by nobody but the file, which is written soon.
        limited.agree()
        kill_controller()

    def alter_the_rate() -> None:
        (limited.controller.home / "policy.yaml").write_text(ALTERED)
        assert limited.controller.daemon is not None
        limited.controller.daemon.send(signal.SIGHUP)
        wait_until("the new rate is set", lambda: "rate=12000" in limited.meters(), 60, 0.25)

    assert "rate=10000" in limited.meters()
    more("at first")
    more("after the controller was killed", kill_controller)
    more("after the switch was killed", kill_switch)
    more("after a new policy", alter_the_rate)
    if FULL:
        more("after both were killed", kill_both)
    jobs: Any = limited.larkctl.json("stats")
    (share,) = jobs["shares"]
    assert share["dropped"]["sent_bytes"] == limited.said[-1]["share dropped out"]
    assert "dropped by rates of single jobs" in limited.larkctl.text("stats")
    assert "Its rate has dropped" in limited.larkctl.text("attempt", aid())
