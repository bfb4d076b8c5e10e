"""`lark-agent doctor` on a real worker node: each fault is made for real, is found by its name, and goes when mended.

The control of all of them is the healthy node before and after, of which the doctor says nothing but what is known.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from mininet_tests.site.campus import LIBEXEC, NODE, WORKER_BRIDGE, Site
from mininet_tests.site.lark import ENVIRONMENT, python_command
from mininet_tests.site.namespaces import wait_until
from mininet_tests.site.openvswitch import RUN
from ovs_agent import plan

KNOWN = {"identity.plaintext", "switch.wmem", "switch.rmem", "condor.siblings"}
"""The site speaks HTTP on its management network, a test does not change the carrying machine's sysctls, and jobs of
one user are not kept apart (`test_siblings` shows that and the way out)."""
CONFIG_D = "/etc/condor/config.d"
SLEEPER = "/run/lark-doctor"


def examine(site: Site, *argv: str, config: Path | None = None, under: tuple[str, ...] = ()) -> dict[str, Any]:
    """What the doctor says: its document, and findings by their check's name."""
    words = python_command("ovs_agent.cli", "doctor", "--json", "--config", str(config or site.agent.config), *argv)
    said = site.worker.run([*under, *words], env=ENVIRONMENT, timeout=90)
    assert said.out.startswith("{"), said.text
    document: dict[str, Any] = json.loads(said.out)
    assert document["status"] == said.code
    return document


def found(site: Site, *argv: str, config: Path | None = None, under: tuple[str, ...] = ()) -> dict[str, str]:
    document = examine(site, *argv, config=config, under=under)
    for finding in document["findings"]:
        assert finding["what"], finding
        assert finding["why"], finding
        assert finding["mend"], finding
    return {f["check"]: f["what"] for f in document["findings"] if f["check"] not in KNOWN}


@contextmanager
def changed(site: Site, *changes: tuple[str, str]) -> Iterator[Path]:
    """A configuration that differs from the agent's own."""
    text = site.agent.config.read_text(encoding="utf-8")
    for pattern, new in changes:
        assert re.search(pattern, text), (pattern, text)
        text = re.sub(pattern, new, text)
    path = site.agent.home / "doctor.yaml"
    path.write_text(text, encoding="utf-8")
    yield path
    path.unlink()


def test_a_healthy_node(site: Site) -> None:
    # Open vSwitch shows a connection up to five seconds late.
    wait_until("it is connected", lambda: "switch.controller" not in found(site, "--only", "switch"), 30, 1)
    assert found(site) == {}
    said = site.agent.command("doctor", "--config", str(site.agent.config), "--only", "guard", "--only", "helper")
    assert (said.code, said.out.strip()) == (0, f"node {NODE}: nothing is wrong")


Fault = Callable[[Site], tuple[list[list[str]], list[list[str]]]]
"""Commands that make a fault, and commands that mend it."""


def bridge(site: Site, *argv: str) -> list[str]:
    return ["ovs-vsctl", "--timeout=5", *argv]


def ofctl(*argv: str) -> list[str]:
    *words, what = argv
    return ["ovs-ofctl", "-O", "OpenFlow14", *words, f"unix:{RUN}/{WORKER_BRIDGE}.mgmt", what]


@contextmanager
def agent_stopped(site: Site) -> Iterator[None]:
    """The agent keeps its bridge, and would mend it before the doctor has looked."""
    assert site.agent.daemon is not None
    site.agent.daemon.send(signal.SIGSTOP)
    try:
        yield
    finally:
        site.agent.daemon.send(signal.SIGCONT)
        # nsenter stops itself when its child is stopped.
        os.kill(site.agent.daemon.entry.pid, signal.SIGCONT)


def lane(site: Site) -> str:
    """The namespace of a lane that nobody has yet."""
    return sorted(site.agent.lanes())[-1]


def device(site: Site) -> str:
    return "lj" + lane(site).rpartition("-")[2]


def knob(line: str) -> tuple[list[str], list[str]]:
    """A line of HTCondor's configuration (the doctor reads the files)."""
    path = f"{CONFIG_D}/99-fault.config"
    return ["sh", "-c", f"echo '{line}' > {path}"], ["rm", path]


def both(pair: tuple[list[str], list[str]]) -> Fault:
    return lambda site: ([pair[0]], [pair[1]])


def prepare(site: Site) -> list[str]:
    words = ["prepare-bridge", "--config", str(site.agent.config), "--datapath-type", "netdev"]
    return ["env", *(f"{k}={v}" for k, v in ENVIRONMENT.items()), *python_command("ovs_agent.cli", *words)]


def rules(site: Site) -> list[str]:
    """What the agent does at its start."""
    uids = site.agent.guarded
    assert uids is not None
    address, _, port = site.agent.pool[0].rpartition(":")
    text = plan.nft_ruleset([(uids[0], uids[-1])], [], [(address, int(port))])
    path = site.worker.root / "rules.nft"
    path.write_text(text, encoding="utf-8")
    return ["nft", "-f", str(path)]


BR = WORKER_BRIDGE
JOB = f"{LIBEXEC}/lark-job"
FAULTS: dict[str, tuple[str, Fault]] = {
    "in-band control": (
        "switch.in-band",
        lambda s: ([bridge(s, "remove", "bridge", BR, "other_config", "disable-in-band")], [prepare(s)]),
    ),
    "not prepared": (
        "switch.prepared",
        lambda s: ([bridge(s, "remove", "bridge", BR, "other_config", "dp-desc")], [prepare(s)]),
    ),
    "slow to connect again": (
        "switch.backoff",
        lambda s: (
            [bridge(s, "set", "controller", BR, "max_backoff=8000")],
            [bridge(s, "set", "controller", BR, "max_backoff=1000")],
        ),
    ),
    "a flow of the host's lane is gone": (
        "switch.table0",
        lambda s: ([ofctl("--strict", "del-flows", "table=0,priority=0")], [prepare(s)]),
    ),
    "a stranger's flow": (
        "switch.foreign-flows",
        lambda s: (
            [ofctl("add-flow", "table=0,priority=7,dl_type=0x88b5,actions=drop")],
            [ofctl("del-flows", "table=0,dl_type=0x88b5")],
        ),
    ),
    "an address on the uplink": (
        "switch.uplink-address",
        lambda s: (
            [["ip", "address", "add", "198.51.100.7/32", "dev", "up0"]],
            [["ip", "address", "del", "198.51.100.7/32", "dev", "up0"]],
        ),
    ),
    "a firewall rule is gone": (
        "guard.rules",
        lambda s: ([["nft", "flush", "chain", "inet", "lark", "job_ports"]], [rules(s)]),
    ),
    "a firewall rule too many": (
        "guard.rules",
        lambda s: ([["nft", "insert", "rule", "inet", "lark", "guarded", "accept"]], [rules(s)]),
    ),
    "no firewall": ("guard.rules", lambda s: ([["nft", "delete", "table", "inet", "lark"]], [rules(s)])),
    "the helper has no capability": (
        "helper.capability",
        both((["setcap", "-r", JOB], ["setcap", "cap_sys_admin=ep", JOB])),
    ),
    "the helper has another capability": (
        "helper.capability",
        both((["setcap", "cap_sys_admin,cap_net_admin=ep", JOB], ["setcap", "cap_sys_admin=ep", JOB])),
    ),
    "nosuid": (
        "helper.capability",
        lambda s: (
            [["mount", "--bind", str(LIBEXEC), str(LIBEXEC)], ["mount", "-o", "remount,bind,nosuid", str(LIBEXEC)]],
            [["umount", str(LIBEXEC)]],
        ),
    ),
    "another socket": (
        "helper.socket",
        both(
            (
                ["sh", "-c", f"echo /run/other.sock > {LIBEXEC}/lark-socket"],
                ["sh", "-c", f"echo /run/lark/agent.sock > {LIBEXEC}/lark-socket"],
            )
        ),
    ),
    "a hook leads elsewhere": (
        "helper.links",
        both(
            (["ln", "-sfn", "/bin/true", f"{LIBEXEC}/lark-ping"], ["ln", "-sfn", "lark-hook", f"{LIBEXEC}/lark-ping"])
        ),
    ),
    "userns undeclared": (
        "helper.attach helper.capability",
        both(
            (
                ["sh", "-c", f"echo userns > {LIBEXEC}/lark-attach"],
                ["sh", "-c", f"echo capability > {LIBEXEC}/lark-attach"],
            )
        ),
    ),
    "the helper belongs to a user": (
        "helper.programs",
        both((["chown", "21000", f"{LIBEXEC}/lark-hook"], ["chown", "0", f"{LIBEXEC}/lark-hook"])),
    ),
    "offloads in a lane": (
        "lanes.offload",
        lambda s: (
            [["ip", "netns", "exec", lane(s), "ethtool", "-K", "eth0", "tx", "on"]],
            [["ip", "netns", "exec", lane(s), "ethtool", "-K", "eth0", "tx", "off"]],
        ),
    ),
    "an address on the host's end": (
        "lanes.outer",
        lambda s: (
            [["ip", "address", "add", "198.51.100.8/32", "dev", device(s)]],
            [["ip", "address", "del", "198.51.100.8/32", "dev", device(s)]],
        ),
    ),
    "ARP on the host's end": (
        "lanes.outer",
        lambda s: ([["ip", "link", "set", device(s), "arp", "on"]], [["ip", "link", "set", device(s), "arp", "off"]]),
    ),
    "gro on the host's end": (
        "lanes.outer",
        lambda s: ([["ethtool", "-K", device(s), "gro", "on"]], [["ethtool", "-K", device(s), "gro", "off"]]),
    ),
    "a token that others may read": (
        "identity.token",
        lambda s: (
            [["chmod", "644", str(s.agent.home / "agent.token")]],
            [["chmod", "600", str(s.agent.home / "agent.token")]],
        ),
    ),
    "DISABLE_SETUID": ("condor.DISABLE_SETUID", both(knob("DISABLE_SETUID = True"))),
    "kernel tuning": ("condor.ENABLE_KERNEL_TUNING", both(knob("ENABLE_KERNEL_TUNING = True"))),
    "no wrapper": ("condor.USER_JOB_WRAPPER", both(knob("USER_JOB_WRAPPER ="))),
    "no hook": ("condor.STARTER_JOB_HOOK_KEYWORD", both(knob("STARTER_JOB_HOOK_KEYWORD = OTHER"))),
    "every job is accepted": ("condor.START", both(knob("START = True"))),
    "a bare plugin": ("condor.FILETRANSFER_PLUGINS", both(knob("FILETRANSFER_PLUGINS = $(LIBEXEC)/curl_plugin"))),
    "an attribute is not sent": ("condor.STARTD_JOB_ATTRS", both(knob("STARTD_JOB_ATTRS = User"))),
    "no cron job": ("condor.STARTD_CRON_JOBLIST", both(knob("STARTD_CRON_JOBLIST ="))),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_gone_when_mended(site: Site, name: str) -> None:
    check, fault = FAULTS[name]
    section = check.partition(".")[0]
    broken, mended = fault(site)
    site.allowed_log.append(re.compile(r"event=table-bypassed bridge=wn1-br"))  # the controller sees the stranger, too
    with ExitStack() as stack:
        if section == "switch":
            stack.enter_context(agent_stopped(site))
        for words in reversed(mended):
            stack.callback(site.worker.need, *words)
        for words in broken:
            site.worker.need(*words)
        assert set(found(site, "--only", section)) == set(check.split())
    assert found(site, "--only", section) == {}


def test_an_open_bridge(site: Site) -> None:
    """fail_mode: the flows of a connected bridge stay."""
    with agent_stopped(site):
        site.switches[NODE].vsctl("set-fail-mode", WORKER_BRIDGE, "standalone")
        try:
            assert set(found(site, "--only", "switch")) == {"switch.fail-mode"}
        finally:
            site.worker.need(*prepare(site))
    assert found(site, "--only", "switch") == {}


def test_a_bridge_without_its_controller(site: Site) -> None:
    switch = site.switches[NODE]
    site.allowed_log.append(re.compile(r"(somebody else changed|cannot be looked after).*wn1-br|bridge=wn1-br"))
    target = switch.vsctl("get-controller", WORKER_BRIDGE).strip()
    with agent_stopped(site):
        for other in ("tcp:192.0.2.1:1", None):
            switch.vsctl(*(["set-controller", WORKER_BRIDGE, other] if other else ["del-controller", WORKER_BRIDGE]))
            try:
                said = found(site, "--only", "switch")
                # Without any controller, Open vSwitch empties all tables; the agent puts table 0 back.
                assert set(said) - {"switch.backoff", "switch.table0"} == {"switch.controller"}
                assert (other or "no controller") in said["switch.controller"]
            finally:
                switch.vsctl("set-controller", WORKER_BRIDGE, target)
                switch.vsctl("set", "controller", WORKER_BRIDGE, "max_backoff=1000")
    wait_until("it is connected again", lambda: found(site, "--only", "switch") == {}, 15, 0.5)


def test_a_configuration_that_names_what_is_not_there(site: Site) -> None:
    for changes, section, check in (
        ([(r"unix:/run/openvswitch/db.sock", "unix:/run/nowhere.sock")], "switch", "switch.database"),
        ([(r"name: wn1-br", "name: other-br")], "switch", "switch.bridge"),
        ([(r"rundir: /run/openvswitch", "rundir: /run/nowhere")], "switch", "switch.daemon"),
        ([(r"uplink: up0", "uplink: up9")], "switch", "switch.uplink"),
        ([(r"config: /etc/condor/condor_config", "config: /etc/nowhere")], "condor", "condor.config"),
        ([(r"sbin: \S+/sbin", "sbin: /usr/bin")], "condor", "condor.config"),
        ([(r"http://192.0.2.1:8080", "http://192.0.2.1:1")], "controller", "controller.reach"),
        ([(r"token-file: agent.token", "token-file: other.token")], "identity", "identity.token"),
        ([(r"guard: .*\n", "")], "guard", "guard.uids"),
        ([(r"socket: /run/lark/agent.sock", "socket: /run/lark/other.sock")], "agent", "agent.ping"),
    ):
        with changed(site, *changes) as config:
            said = found(site, "--only", section, config=config)
            assert check in said, (check, said)
        assert check not in found(site, "--only", section)


def test_a_controller_that_does_not_know_this_token(site: Site) -> None:
    token = site.agent.home / "other.token"
    token.touch(mode=0o600)
    token.write_text("0123456789abcdef0123456789abcdef\n", encoding="utf-8")
    with changed(site, (r"token-file: agent.token", "token-file: other.token")) as config:
        assert set(found(site, "--only", "controller", config=config)) == {"controller.refuses"}
    token.unlink()


def test_a_configuration_that_cannot_be_read(site: Site) -> None:
    with changed(site, (r"node:", "nodde:")) as config:
        said = examine(site, config=config)
        assert said["status"] == 2
        assert "nodde" in said["error"]


def test_a_kernel_that_makes_no_networks(site: Site) -> None:
    less = ("setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin")
    assert {"kernel.network", "kernel.nftables"} <= set(found(site, "--only", "kernel", under=less))


@pytest.mark.parametrize(
    ("under", "check"),
    [(("setpriv", "--no-new-privs"), "helper.no-new-privs"), (("unshare", "--user"), "helper.user-namespaces")],
)
def test_a_startd_under_which_capabilities_do_nothing(site: Site, under: tuple[str, ...], check: str) -> None:
    worker = site.worker
    worker.need("mkdir", "-p", SLEEPER)
    for name in ("condor_startd", "condor_starter"):
        worker.need("cp", "/bin/sleep", f"{SLEEPER}/{name}")
    try:
        with changed(site, (r"sbin: \S+/sbin", f"sbin: {SLEEPER}")) as config:
            for words, wanted in (((), set()), (under, {check})):
                startd = worker.spawn("startd", [*words, f"{SLEEPER}/condor_startd", "60"])
                try:
                    wait_until("it runs", lambda: worker.run(["pgrep", "-x", "condor_startd"]).out.count("\n") == 2, 5)
                    assert set(found(site, "--only", "helper", config=config)) == wanted
                finally:
                    startd.stop()
    finally:
        worker.need("rm", "-r", SLEEPER)


LISTEN = """
import socket, sys, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.bind(sys.argv[1])
s.listen()
print("listening", flush=True)
time.sleep(60)
"""


def test_an_agent_in_a_mount_namespace_of_its_own(site: Site) -> None:
    path = "/run/lark/private.sock"
    daemon = site.worker.spawn("private", ["unshare", "--mount", "/usr/bin/python3", "-c", LISTEN, path])
    try:
        daemon.wait_for_line("listening", 5)
        with changed(site, (r"socket: /run/lark/agent.sock", f"socket: {path}")) as config:
            assert "lanes.mounts" in found(site, "--only", "lanes", config=config)
        assert found(site, "--only", "lanes") == {}
    finally:
        daemon.stop()
        site.worker.need("rm", path)
