"""What packets can and cannot do on a worker node: fail-secure lanes, the guard on job uids, the host's own lane.

No controller programs flows here; where a lane must work, the test writes flows by hand into the controller's tables,
so that each refusal stands beside the same packets passing.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator

import pytest

from mininet_tests.agent_rig import JOB_UID, LIBEXEC, Rig, Starter, lane_number
from mininet_tests.site.namespaces import Machine, SiteError, wait_until

PYTHON = "/usr/bin/python3"
HOST, HOST6 = "10.77.0.9", "fd00:77::9"
SERVER, SERVER6 = "10.77.0.5", "fd00:77::5"
CONNECT = """
import socket, sys
for host, port in zip(sys.argv[1::2], map(int, sys.argv[2::2])):
    try:
        with socket.create_connection((host, port), 1.5) as s:
            print(s.recv(100).decode().strip())
    except OSError as e:
        print("no")
"""
SERVE = """
import socket, sys, threading
def serve(family, host, port, text):
    s = socket.socket(family, socket.SOCK_STREAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((host, port)); s.listen(50)
    while True:
        c, peer = s.accept(); c.sendall((text + " " + peer[0]).encode()); c.close()
for word in sys.argv[1:]:
    host, port, text = word.split(",")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    threading.Thread(target=serve, args=(family, host, int(port), text)).start()
"""
LISTEN_UDP = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("", 7777)); s.settimeout(float(sys.argv[1]))
try:
    print("got", s.recvfrom(100))
except TimeoutError:
    print("nothing")
"""
FLOOD = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for i in range(int(sys.argv[2])):
    try:
        s.sendto(b'', (sys.argv[1], 1 + i))
    except OSError:
        time.sleep(0.001)
    if i % 200 == 0:
        time.sleep(0.005)
print("sent")
"""
TABLE = 3000
"""Connections of the rig's whole table; a job may have a third of them (`pool.connections`)."""


@pytest.fixture(scope="module")
def shared() -> Iterator[Rig]:
    rig = Rig.build()
    machine = rig.machine
    # The site's network: a server in a namespace of its own at the far end of the uplink.
    for line in (
        "ip netns add far",
        "ip link set up1 netns far",
        f"ip -n far addr add {SERVER}/16 dev up1",
        f"ip -n far addr add {SERVER6}/64 dev up1 nodad",
        "ip -n far link set up1 up",
        "ip netns exec far ethtool -K up1 tx off",
        "ip link set br-lark up",
        f"ip addr add {HOST}/16 dev br-lark",
        f"ip addr add {HOST6}/64 dev br-lark nodad",
    ):
        machine.need(*line.split())
    machine.spawn(
        "far", ["ip", "netns", "exec", "far", PYTHON, "-c", SERVE, f"{SERVER},8000,far", f"{SERVER6},8000,far"]
    )
    host = [f"{HOST},8000,host", "127.0.0.1,9618,declared", "127.0.0.1,8118,proxy", f"{HOST6},8000,host"]
    machine.spawn("host", [PYTHON, "-c", SERVE, *host])
    wait_until("servers listen", lambda: connect(machine, HOST, 8000) == ["host " + HOST], 10)
    yield rig
    rig.destroy()


@pytest.fixture
def rig(shared: Rig) -> Iterator[Rig]:
    yield shared
    shared.behave()
    shared.settle()
    shared.machine.need("ovs-ofctl", "-OOpenFlow14", "del-flows", "unix:/run/openvswitch/br-lark.mgmt", "table=1")
    assert "Traceback" not in shared.log(), shared.log()


def running(rig: Rig) -> Starter:
    """One whose job sleeps. (What a test runs besides enters the job's network as an ssh session does.)"""
    made = rig.starter()
    assert "HookStatusCode" not in made.begin().out
    made.job("/bin/sleep", "600")
    wait_until("the job runs", lambda: rig.attempt_of(made)["phase"] == "run", 10)
    return made


@pytest.fixture
def starter(rig: Rig) -> Iterator[Starter]:
    made = running(rig)
    yield made
    made.kill()


def connect(machine: Machine, *pairs: str | int) -> list[str]:
    return machine.run([PYTHON, "-c", CONNECT, *map(str, pairs)]).out.splitlines()


def job_connects(starter: Starter, *pairs: str | int) -> list[str]:
    done = starter.wait(starter.job(PYTHON, "-c", CONNECT, *map(str, pairs)))
    assert done is not None
    assert done.code == 0, done.text
    return done.out.splitlines()


def open_table_1(rig: Rig, spec: dict[str, object]) -> None:
    """A lane by hand: the job's port and the uplink see each other. Nothing to or from the host."""
    port = json.loads(json.dumps(spec["port"]))["ofport"]
    uplink = rig.ovs.vsctl("get", "Interface", "up0", "ofport").strip()
    for flow in (
        f"table=1,priority=10,in_port={port},actions=output:{uplink}",
        f"table=1,priority=10,in_port={uplink},actions=output:{port}",
    ):
        rig.machine.need("ovs-ofctl", "-OOpenFlow14", "add-flow", "unix:/run/openvswitch/br-lark.mgmt", flow)


def test_the_hosts_own_lane_needs_no_controller(rig: Rig) -> None:
    assert connect(rig.machine, SERVER, 8000, SERVER6, 8000) == [f"far {HOST}", f"far {HOST6}"]
    inward = rig.machine.run(["ip", "netns", "exec", "far", PYTHON, "-c", CONNECT, HOST, "8000", HOST6, "8000"])
    assert inward.out.splitlines() == [f"host {SERVER}", f"host {SERVER6}"]


def test_without_flows_a_job_reaches_nothing_and_with_flows_it_does(rig: Rig, starter: Starter) -> None:
    spec = rig.attempt_of(starter)
    targets = (SERVER, 8000, SERVER6, 8000, HOST, 8000, HOST6, 8000)
    assert job_connects(starter, *targets) == ["no"] * 4
    open_table_1(rig, spec)
    assert job_connects(starter, *targets) == [f"far {spec['ipv4']}", f"far {spec['ipv6']}", "no", "no"]


def test_frames_of_a_job_never_enter_the_hosts_own_stack(rig: Rig, starter: Starter) -> None:
    """The kernel sees every frame of a userspace datapath's port; the nftables drop keeps it from the host's stack.

    The positive control takes the rule away and shows that the very same packets arrive then.
    """
    spec = rig.attempt_of(starter)
    number = lane_number(spec)
    mac = rig.machine.need("cat", f"/sys/class/net/{spec['port']['name']}/address").strip()
    # As root inside: whoever is root in there can address the host's end directly.
    rig.inside(number, "ip", "neigh", "replace", HOST, "lladdr", mac, "dev", "eth0").need()
    send = f"import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('{HOST}', 7777))"

    def heard() -> str:
        listener = rig.machine.spawn("udp", [PYTHON, "-u", "-c", LISTEN_UDP, "1.5"])
        rig.machine.need("sleep", "0.4")
        rig.inside(number, PYTHON, "-c", send).need()
        listener.entry.wait(5)
        return listener.log.read_text().splitlines()[-1]

    assert heard() == "nothing"
    rig.machine.need("nft", "flush", "chain", "inet", "lark", "job_ports")
    try:
        assert heard().startswith("got"), "positive control: without the rule the packet arrives"
    finally:
        rig.machine.need("nft", "add", "rule", "inet", "lark", "job_ports", 'iifname "lj*" counter name from_jobs drop')
    assert heard() == "nothing"


def test_the_host_end_neither_answers_arp_nor_speaks_ipv6(rig: Rig, starter: Starter) -> None:
    spec = rig.attempt_of(starter)
    port = spec["port"]["name"]
    link = json.loads(rig.machine.need("ip", "-j", "link", "show", port))[0]
    assert "NOARP" in link["flags"]
    assert rig.machine.need("cat", f"/proc/sys/net/ipv6/conf/{port}/disable_ipv6").strip() == "1"
    assert json.loads(rig.machine.need("ip", "-j", "addr", "show", port))[0]["addr_info"] == []
    inside = json.loads(rig.inside(lane_number(spec), "ip", "-j", "addr", "show", "eth0").need().out)[0]
    assert {a["local"] for a in inside["addr_info"]} == {spec["ipv4"], spec["ipv6"]}, "no link-local address either"


def test_the_guard_stops_owner_code_on_the_host(rig: Rig, starter: Starter) -> None:
    """PreCmd, an unwrapped plugin, a left-over process: the owner's uid in the host's network."""

    def owner(*pairs: str | int, uid: int = JOB_UID) -> list[str]:
        return starter.run(PYTHON, "-c", CONNECT, *map(str, pairs), uid=uid).out.splitlines()

    targets = (SERVER, 8000, SERVER6, 8000, HOST, 8000, "127.0.0.1", 8118)
    assert owner(*targets) == ["no"] * 4
    assert owner(*targets, uid=20999) == [f"far {HOST}", f"far {HOST6}", f"host {HOST}", "proxy 127.0.0.1"]
    assert owner("127.0.0.1", 9618) == ["declared 127.0.0.1"]
    said = rig.machine.need("nft", "list", "counter", "inet", "lark", "guard_rejected")
    assert "packets 0 " not in said


def test_the_guard_lets_answers_over_loopback_pass(rig: Rig, starter: Starter) -> None:
    serve = "import socket\ns = socket.create_server(('127.0.0.1', 5555))\nc, _ = s.accept(); c.sendall(b'hello')"
    pid = starter.spawn(PYTHON, "-c", serve)
    wait_until("root is answered", lambda: connect(rig.machine, "127.0.0.1", 5555) == ["hello"], 5)
    starter.wait(pid)


def test_connections_die_with_the_attempt(rig: Rig) -> None:
    starter = rig.starter()
    starter.begin()
    spec = rig.attempt_of(starter)
    open_table_1(rig, spec)
    drip = (
        "import socket,time\n"
        f"s = socket.socket(); s.bind(('{SERVER}', 8001)); s.listen()\n"
        "c, _ = s.accept(); n = 0\n"
        "while True: c.sendall(b'x'); n += 1; print(n, flush=True); time.sleep(0.05)\n"
    )
    far = rig.machine.spawn("drip", ["ip", "netns", "exec", "far", PYTHON, "-c", drip])
    wait_until("it listens", lambda: "8001" in rig.machine.need("ip", "netns", "exec", "far", "ss", "-ltn"), 5)
    starter.job(PYTHON, "-c", f"import socket; s=socket.create_connection(('{SERVER}',8001))\nwhile s.recv(100): pass")
    wait_until("data flows", lambda: len(far.log.read_text().split()) > 5, 5)
    starter.kill()
    rig.gone(spec["port"]["name"], lane_number(spec))
    with contextlib.suppress(SiteError, ProcessLookupError):  # the job's last packet may have reset its connection
        far.send(9)  # type: ignore[arg-type]
    far.entry.wait(5)


def test_prepare_bridge_is_idempotent_and_a_gate_has_one_flow(rig: Rig) -> None:
    config = str(rig.home / "agent.yaml")
    again = rig.lark_agent("prepare-bridge", "--config", config, "--datapath-id", "a1").need()
    assert again.out.strip() == "br-lark: nothing to do"
    rig.machine.need("ip", "link", "add", "gx0", "type", "veth", "peer", "name", "gx1")
    words = ["prepare-bridge", "--role", "gate", "--bridge", "br-gate", "--uplink", "gx0", "--datapath-type", "netdev"]
    words += ["--datapath-id", "b1", "--controller", "tcp:192.0.2.1:6653"]
    first = rig.lark_agent(*words).need().out
    assert "created bridge br-gate" in first
    assert rig.lark_agent(*words).need().out.strip() == "br-gate: nothing to do"
    flows = rig.ovs.flows("br-gate")
    assert len(flows) == 1
    assert "goto_table:1" in flows[0]
    assert "0x4c01000000000000" in flows[0]
    vsctl = rig.ovs.vsctl
    assert vsctl("get", "Bridge", "br-gate", "fail_mode").strip() == "secure"
    assert vsctl("get", "Bridge", "br-gate", "other_config:disable-in-band").strip() == '"true"'
    described = '"Lark: fail_mode=secure, disable-in-band=true"'
    assert vsctl("get", "Bridge", "br-gate", "other_config:dp-desc").strip() == described
    assert vsctl("get", "Controller", "br-gate", "max_backoff").strip() == "1000"
    # Mended when somebody opened it.
    vsctl("set", "Bridge", "br-gate", "fail_mode=standalone", "other_config:dp-desc=mine")
    assert "fail_mode=secure" in rig.lark_agent(*words).need().out
    assert vsctl("get", "Bridge", "br-gate", "other_config:dp-desc").strip() == described
    assert vsctl("get", "Bridge", "br-gate", "fail_mode").strip() == "secure"
    vsctl("del-br", "br-gate")


def test_the_host_is_back_at_once_after_the_switch_was_killed(rig: Rig, starter: Starter) -> None:
    """A userspace bridge's own device vanishes with ovs-vswitchd: addresses and routes must come back too."""
    assert connect(rig.machine, SERVER, 8000) == [f"far {HOST}"]
    rig.machine.need("ip", "route", "add", "10.99.0.0/16", "via", SERVER)
    wait_until("the agent has noted the host's addresses", lambda: "10.99.0.0/16" in noted(rig), 10)
    rig.ovs.kill_switch()
    rig.ovs.start_switch()
    wait_until("the host reaches the site", lambda: connect(rig.machine, SERVER, 8000) == [f"far {HOST}"], 3)
    assert "10.99.0.0/16 via" in rig.machine.need("ip", "route")
    assert HOST6 in rig.machine.need("ip", "-6", "addr", "show", "br-lark")


def noted(rig: Rig) -> str:
    file = rig.home / "state" / "host-port.json"
    return file.read_text() if file.exists() else ""


def test_readiness_says_what_is_wrong(rig: Rig) -> None:
    ping = [f"{LIBEXEC}/lark-ping"]
    assert "HasLarkNetwork = true" in rig.machine.run(ping).out
    rig.ovs.kill_switch()
    wait_until("not ready", lambda: "Open vSwitch" in rig.machine.run(ping).out, 3)
    rig.ovs.start_switch()
    wait_until("ready again", lambda: "HasLarkNetwork = true" in rig.machine.run(ping).out, 5)


def tracked_table_1(rig: Rig, *specs: dict[str, object]) -> None:
    """Lanes by hand that may open connections outwards: a connection that cannot be remembered is not let out."""
    uplink = rig.ovs.vsctl("get", "Interface", "up0", "ofport").strip()
    flows = [f"table=1,priority=20,arp,in_port={uplink},actions=flood"]
    for spec in specs:
        port, zone = json.loads(json.dumps(spec["port"]))["ofport"], spec["zone"]
        flows += [
            f"table=1,priority=20,arp,in_port={port},actions=output:{uplink}",
            f"table=1,priority=10,ip,in_port={port},actions=ct(zone={zone},table=200)",
            f"table=1,priority=10,ip,in_port={uplink},nw_dst={spec['ipv4']},actions=ct(zone={zone},table=200)",
            f"table=200,priority=9,ip,ct_state=+trk+est,ct_zone={zone},in_port={port},actions=output:{uplink}",
            f"table=200,priority=9,ip,ct_state=+trk+est,ct_zone={zone},in_port={uplink},actions=output:{port}",
            f"table=200,priority=8,ip,ct_state=+trk+new,ct_zone={zone},in_port={port},"
            f"actions=ct(commit,zone={zone}),output:{uplink}",
        ]
    for flow in flows:
        rig.machine.need("ovs-ofctl", "-OOpenFlow14", "add-flow", "unix:/run/openvswitch/br-lark.mgmt", flow)


def connections(rig: Rig, zone: object) -> int:
    return rig.machine.need("ovs-appctl", "dpctl/dump-conntrack", f"zone={zone}").count("orig=")


def test_a_flood_of_connections_stops_no_other_job(rig: Rig) -> None:
    flooder, other = running(rig), running(rig)
    one, two = rig.attempt_of(flooder), rig.attempt_of(other)
    before = rig.machine.need("ovs-appctl", "dpctl/ct-get-maxconns").strip()
    rig.machine.need("ovs-appctl", "dpctl/ct-set-maxconns", str(TABLE))

    def flood() -> int:
        done = flooder.wait(flooder.job(PYTHON, "-c", FLOOD, SERVER, "6000"))
        assert done is not None
        assert "sent" in done.out, done.text
        return connections(rig, one["zone"])

    try:
        tracked_table_1(rig, one, two)
        assert job_connects(other, SERVER, 8000) == [f"far {two['ipv4']}"], "positive control"
        assert flood() == 1000
        assert job_connects(other, SERVER, 8000) == [f"far {two['ipv4']}"]
        # Positive control: without its limit the flood fills the table, and the other job is stopped.
        rig.machine.need("ovs-appctl", "dpctl/ct-del-limits", f"zone={one['zone']}")
        assert flood() > TABLE - 100
        assert job_connects(other, SERVER, 8000) == ["no"]
    finally:
        rig.machine.need("ovs-appctl", "dpctl/ct-set-maxconns", before)
        rig.machine.need("ovs-ofctl", "-OOpenFlow14", "del-flows", "unix:/run/openvswitch/br-lark.mgmt", "table=200")
        flooder.kill()
        other.kill()


def limits(rig: Rig) -> dict[int, int]:
    text = rig.machine.need("ovs-appctl", "dpctl/ct-get-limits")
    return {int(z): int(n) for z, n in re.findall(r"zone=(\d+),limit=(\d+)", text)}


def test_limits_come_with_a_lane_and_again_with_the_switch_and_go_with_the_job(rig: Rig) -> None:
    starter = rig.starter()
    starter.begin()
    zone = rig.attempt_of(starter)["zone"]
    assert limits(rig)[zone] == 1000
    warm = {1000 + int(name.rpartition("-")[2]) for name in rig.namespaces() if name.startswith("lark-lkag-")}
    assert warm <= set(limits(rig))
    rig.ovs.kill_switch()
    rig.ovs.start_switch()
    wait_until("the limits are back", lambda: limits(rig).get(zone) == 1000, 5)
    starter.kill()
    rig.settle()
    wait_until("the limit went with the job", lambda: zone not in limits(rig), 5)
    assert "default" not in rig.machine.need("ovs-appctl", "dpctl/ct-get-limits").replace("default limit=0", "")
