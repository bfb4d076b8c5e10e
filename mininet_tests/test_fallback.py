"""Jobs that bring their own network namespace: real Open vSwitch, real agent, the real helper without file capability.

`userns` is tried under no_new_privs, which is what makes file capabilities useless. Beside every refusal the same
attempt, or one like it, is attached.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from condor_bridge import native_install
from mininet_tests.agent_rig import JOB_UID, LIBEXEC, OTHER_UID, Result, Rig, Starter, lane_number
from mininet_tests.site.lark import ENVIRONMENT, python_command
from mininet_tests.site.namespaces import wait_until

PYTHON = "/usr/bin/python3"
WRAPPER = f"{LIBEXEC}/lark-job-wrapper"
NEIGHBOUR, NEIGHBOUR6 = "10.77.0.5", "fd00:77::5"
NO_NEW_PRIVS = ("setpriv", "--no-new-privs", "--")
AS_JOB = ("setpriv", f"--reuid={JOB_UID}", f"--regid={JOB_UID}", "--clear-groups", "--")
SHOW = (
    "readlink /proc/self/ns/net; ip -br addr show eth0; ip route; ip -6 route; grep ^Cap /proc/self/status; "
    "grep NoNewPrivs /proc/self/status; id -u"
)
TALK = """
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.settimeout(5); s.connect("/run/lark/agent.sock"); s.send(b"LARK1 attach job"); print(s.recv(1100).decode())
"""
SERVE = """
import socket, sys, threading
def serve(family, host):
    s = socket.socket(family, socket.SOCK_STREAM); s.bind((host, 8000)); s.listen(50)
    while True:
        c, peer = s.accept(); c.sendall(peer[0].encode()); c.close()
threading.Thread(target=serve, args=(socket.AF_INET, sys.argv[1])).start()
serve(socket.AF_INET6, sys.argv[2])
"""
CONNECT = """
import socket, sys
for host in sys.argv[1:]:
    try:
        with socket.create_connection((host, 8000), 1.5) as s: print(s.recv(100).decode())
    except OSError as e: print("no")
"""


class FallbackRig(Rig):
    def wait_for_pool(self) -> None:
        """Not waited for: a node that cannot attach never reports it ready, and a beginning waits for its lane."""


def install(rig: FallbackRig, attach: str, *, siblings_hidden: bool) -> None:
    """What an administrator does: the installer, one key in agent.yaml, a restart of the agent."""
    words = python_command("condor_bridge.native_install", "--libexec", LIBEXEC, "--attach", attach)
    rig.machine.run(words, env=ENVIRONMENT, timeout=60).need()
    configure(rig, siblings_hidden=siblings_hidden)


def configure(rig: FallbackRig, *, siblings_hidden: bool) -> None:
    file = rig.home / "agent.yaml"
    lines = [line for line in file.read_text().splitlines() if not line.startswith("fallback:")]
    word = "true" if siblings_hidden else "false"
    file.write_text("\n".join([*lines, f"fallback: {{siblings-hidden: {word}}}", ""]))
    rig.stop_agent()
    rig.start_agent()


@pytest.fixture(scope="module")
def built() -> Iterator[FallbackRig]:
    rig = FallbackRig.build()
    assert isinstance(rig, FallbackRig)
    machine = rig.machine
    for line in (
        "ip netns add far",
        "ip link set up1 netns far",
        f"ip -n far addr add {NEIGHBOUR}/16 dev up1",
        f"ip -n far addr add {NEIGHBOUR6}/64 dev up1 nodad",
        "ip -n far link set up1 up",
        "ip netns exec far ethtool -K up1 tx off",
    ):
        machine.need(*line.split())
    machine.spawn("far", ["ip", "netns", "exec", "far", PYTHON, "-c", SERVE, NEIGHBOUR, NEIGHBOUR6])
    yield rig
    rig.destroy()


def end(rig: Rig) -> None:
    for number in range(1, rig.starters + 1):
        rig.ask_startd(do="kill", name=f"s{number}")
    rig.behave()
    rig.settle()
    rig.machine.need("ovs-ofctl", "-OOpenFlow14", "del-flows", "unix:/run/openvswitch/br-lark.mgmt", "table=1")
    left = [name for name in rig.namespaces() if name.endswith(("-attached", "-sealed"))]
    assert not left
    assert "Traceback" not in rig.log(), rig.log()


def attached_by(rig: FallbackRig, attach: str) -> Iterator[FallbackRig]:
    """The rig in a way of attaching; what stands on disk counts, and is left alone if it is right."""
    if rig.machine.need("cat", f"{LIBEXEC}/lark-attach").strip() != attach:
        install(rig, attach, siblings_hidden=attach == "userns")
    yield rig
    end(rig)


@pytest.fixture
def userns(built: FallbackRig) -> Iterator[FallbackRig]:
    yield from attached_by(built, "userns")


@pytest.fixture
def starter_made(built: FallbackRig) -> Iterator[FallbackRig]:
    yield from attached_by(built, "starter")


def began(rig: Rig) -> Starter:
    starter = rig.starter()
    said = starter.begin()
    assert "HookStatusCode" not in said.out, said.text
    return starter


def job(starter: Starter, attach: str, *argv: str, uid: int = JOB_UID) -> int:
    """A job as HTCondor starts it: under no_new_privs (DISABLE_SETUID) or in an empty network (NO_JOB_NETWORKING)."""
    if attach == "userns":
        return starter.spawn(*NO_NEW_PRIVS, WRAPPER, *argv, uid=uid)
    return starter.spawn("unshare", "--net", "--", *AS_JOB, WRAPPER, *argv, uid=0)


def run(starter: Starter, attach: str, *argv: str, uid: int = JOB_UID) -> Result:
    done = starter.wait(job(starter, attach, *argv, uid=uid))
    assert done is not None
    return done


def open_table_1(rig: Rig, spec: dict[str, Any]) -> None:
    """A lane by hand, with a spoof guard: the job's own addresses pass to the uplink, and answers come back."""
    port, uplink = spec["port"]["ofport"], rig.ovs.vsctl("get", "Interface", "up0", "ofport").strip()
    out = f"table=1,priority=10,in_port={port},dl_src={spec['mac']}"
    for flow in (
        f"{out},ip,nw_src={spec['ipv4']},actions=output:{uplink}",
        f"{out},arp,arp_spa={spec['ipv4']},actions=output:{uplink}",
        f"{out},ipv6,ipv6_src={spec['ipv6']},actions=output:{uplink}",
        f"table=1,priority=10,in_port={uplink},actions=output:{port}",
    ):
        rig.machine.need("ovs-ofctl", "-OOpenFlow14", "add-flow", "unix:/run/openvswitch/br-lark.mgmt", flow)


def gone(rig: Rig, spec: dict[str, Any]) -> None:
    rig.gone(spec["port"]["name"], lane_number(spec))
    wait_until("its namespace is gone", lambda: not any(n.endswith("-attached") for n in rig.namespaces()), 2)


@pytest.fixture(scope="module", params=["userns", "starter"])
def attach(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def rig(built: FallbackRig, attach: str) -> Iterator[FallbackRig]:
    yield from attached_by(built, attach)


def test_a_job_gets_its_lane_and_no_power(rig: FallbackRig, attach: str) -> None:
    starter = began(rig)
    spec = rig.attempt_of(starter)
    said = run(starter, attach, "/bin/sh", "-c", SHOW)
    assert said.code == 0, said.text
    assert f"{spec['ipv4']}/16" in said.out
    assert f"{spec['ipv6']}/64" in said.out
    assert "fe80" not in said.out, "no link-local address"
    assert "default via 10.77.0.1 dev eth0" in said.out
    assert "default via fd00:77::fe dev eth0" in said.out
    capabilities = dict(line.split(":\t") for line in said.out.splitlines() if line.startswith("Cap"))
    powers = ["CapInh", "CapPrm", "CapEff", "CapAmb"] + (["CapBnd"] if attach == "userns" else [])
    assert {name: int(capabilities[name], 16) for name in powers} == dict.fromkeys(powers, 0)
    assert said.out.splitlines()[-1] == str(JOB_UID)
    assert f"NoNewPrivs:\t{int(attach == 'userns')}" in said.out
    assert said.out.splitlines()[0] != rig.machine.need("readlink", "/proc/self/ns/net").strip()
    rig.in_phase(starter, "stage-out")
    starter.kill()
    gone(rig, spec)


def test_packets_pass_with_flows_only_and_as_nobody_else(rig: FallbackRig, attach: str) -> None:
    starter = began(rig)
    spec = rig.attempt_of(starter)
    pid = job(starter, attach, "/bin/sleep", "60")
    name = f"lark-lkag-{lane_number(spec)}-attached"
    wait_until("attached", lambda: rig.attempt_of(starter)["phase"] == "run" and name in rig.namespaces(), 5)
    wait_until("the job runs", lambda: rig.machine.need("cat", f"/proc/{pid}/comm").strip() == "lark-job-waits", 5)

    def inside(*argv: str) -> list[str]:
        """As root in the job's namespace: the worst that anyone who enters it can be."""
        return rig.machine.run(["ip", "netns", "exec", name, *argv]).out.splitlines()

    assert inside(PYTHON, "-c", CONNECT, NEIGHBOUR, NEIGHBOUR6) == ["no", "no"], "without flows nothing"
    open_table_1(rig, spec)
    assert "1 received" in "".join(inside("ping", "-c1", "-W2", NEIGHBOUR))
    assert inside(PYTHON, "-c", CONNECT, NEIGHBOUR, NEIGHBOUR6) == [spec["ipv4"], spec["ipv6"]]
    inside("ip", "addr", "add", "10.77.0.77/16", "dev", "eth0")
    inside("ip", "link", "set", "eth0", "address", "02:00:00:00:00:77")
    assert "0 received" in "".join(inside("ping", "-c1", "-W1", "-I", "10.77.0.77", NEIGHBOUR))
    assert inside(PYTHON, "-c", CONNECT, NEIGHBOUR) == ["no"], "with another MAC nothing passes"
    starter.kill()
    gone(rig, spec)


def test_the_job_itself_connects(rig: FallbackRig, attach: str) -> None:
    starter = began(rig)
    spec = rig.attempt_of(starter)
    open_table_1(rig, spec)
    said = run(starter, attach, PYTHON, "-c", CONNECT, NEIGHBOUR, NEIGHBOUR6)
    assert said.out.splitlines() == [spec["ipv4"], spec["ipv6"]], said.text
    starter.kill()


def test_a_job_has_no_power_over_its_own_network(rig: FallbackRig, attach: str) -> None:
    starter = began(rig)
    spec = rig.attempt_of(starter)
    tries = (
        "ip addr add 10.77.0.78/16 dev eth0 || echo refused; ip link set eth0 down || echo refused; "
        "unshare --user --map-root-user ip link set eth0 down || echo refused; nsenter -t $PPID -n true || echo refused"
    )
    said = run(starter, attach, "/bin/sh", "-c", tries)
    assert said.out.split() == ["refused"] * 4, said.text
    number = lane_number(spec)
    assert "state UP" in rig.machine.need(*f"ip -n lark-lkag-{number}-attached link show eth0".split())
    starter.kill()


def test_left_overs_die_and_nothing_stays(rig: FallbackRig, attach: str) -> None:
    starter = began(rig)
    spec = rig.attempt_of(starter)
    job(starter, attach, "/bin/sh", "-c", "setsid sleep 301 & exit 0")
    wait_until("it runs", lambda: rig.machine.run(["pgrep", "-f", "sleep 301"]).code == 0, 5)
    starter.kill()
    gone(rig, spec)
    wait_until("the left-over is dead", lambda: rig.machine.run(["pgrep", "-f", "sleep 301"]).code != 0, 2)


def test_a_restart_of_the_agent_changes_nothing(rig: FallbackRig, attach: str) -> None:
    starter = began(rig)
    spec = rig.attempt_of(starter)
    open_table_1(rig, spec)
    wait = f"import time,sys\nprint('up', flush=True)\ntime.sleep(6)\n{CONNECT}"
    pid = job(starter, attach, PYTHON, "-c", wait, NEIGHBOUR)
    wait_until("phase run", lambda: rig.attempt_of(starter)["phase"] == "run", 5)
    time.sleep(0.5)
    rig.kill_agent()
    rig.start_agent()
    assert f"lark-lkag-{lane_number(spec)}-attached" in rig.namespaces()
    said = starter.wait(pid)
    assert said is not None
    assert said.out.split() == ["up", spec["ipv4"]], said.text
    starter.kill()
    gone(rig, spec)


@pytest.mark.parametrize("milliseconds", [5, 15, 30, 60])
def test_an_agent_killed_in_the_middle_of_attaching_leaks_nothing(
    rig: FallbackRig, attach: str, milliseconds: int
) -> None:
    starter = began(rig)
    spec = rig.attempt_of(starter)
    pid = job(starter, attach, "/bin/echo", "runs")
    time.sleep(milliseconds / 1000)
    rig.kill_agent()
    rig.start_agent()
    said = starter.wait(pid)
    assert said is not None
    if "runs" in said.out:
        assert rig.attempt_of(starter)["phase"] == "run"
    else:
        assert "lark hold 10" in said.err, said.text
    starter.kill()
    gone(rig, spec)


def test_a_starter_that_ends_while_its_job_is_attached_leaves_nothing(rig: FallbackRig, attach: str) -> None:
    for milliseconds in (3, 10, 20, 40):
        starter = began(rig)
        spec = rig.attempt_of(starter)
        job(starter, attach, "/bin/sleep", "302")
        time.sleep(milliseconds / 1000)
        starter.kill()
        gone(rig, spec)
    wait_until("no job runs", lambda: rig.machine.run(["pgrep", "-f", "sleep 302"]).code != 0, 5)


def test_a_sealed_job_has_loopback_only(rig: FallbackRig, attach: str) -> None:
    rig.behave(sealed=True)
    starter = began(rig)
    sealed = run(starter, attach, "/sbin/ip", "-br", "link")
    starter.kill()
    rig.behave()
    other = began(rig)
    open_one = run(other, attach, "/sbin/ip", "-br", "link")
    other.kill()

    def up(said: Result) -> list[str]:
        return [line.split("@")[0].split()[0] for line in said.out.splitlines() if "UP" in line]

    assert up(sealed) == ["lo"], sealed.text
    assert up(open_one) == ["lo", "eth0"], open_one.text


def test_chirp_reaches_the_starter(rig: FallbackRig, attach: str) -> None:
    starter = began(rig)
    port = starter.ask(do="chirp")["port"]
    code = f"import socket; s = socket.create_connection(('127.0.0.1', {port}), 2); s.sendall(b'hi'); print(s.recv(9))"
    assert run(starter, attach, PYTHON, "-c", code).out == "b'HI'\n"
    starter.kill()


def test_a_second_entry_is_refused(rig: FallbackRig, attach: str) -> None:
    """What condor_ssh_to_job would be."""
    starter = began(rig)
    first = job(starter, attach, "/bin/sh", "-c", "echo got-in; exec sleep 60")
    wait_until("attached", lambda: rig.attempt_of(starter)["phase"] == "run", 5)
    second = run(starter, attach, "/bin/echo", "got-in")
    assert second.out == ""
    assert "has its network already" in second.err, second.text
    starter.ask(do="signal", pid=first, signal=15)
    said = starter.wait(first)
    assert said is not None
    assert said.out == "got-in\n", said.text
    starter.kill()
    other = began(rig)
    again = run(other, attach, "/bin/sh", "-c", f"exec {WRAPPER} /bin/echo got-in-again")
    assert again.out == "", "a job that executes the wrapper"
    assert again.code != 0
    other.kill()


def test_files_by_url_are_refused_with_a_reason(rig: FallbackRig, attach: str) -> None:
    starter = began(rig)
    said = starter.plugin(True, "/proc/self/ns/net")
    assert said.code != 0
    assert "net:[" not in said.out
    assert "lark-plugin: hold 101: files given by URL are not transferred on this node" in said.text
    assert starter.plugin(True, "-classad").code in (0, 1), "the question what it can do is passed on"
    assert run(starter, attach, "/bin/echo", "runs").out == "runs\n"
    starter.kill()


def test_imitators_are_refused(rig: FallbackRig, attach: str) -> None:
    starter = began(rig)
    said = starter.run(PYTHON, "-c", TALK)
    assert said.out.startswith("refused 'attach job' comes from"), said.text
    alone = starter.run("unshare", "--user", "--net", PYTHON, "-c", TALK)
    assert alone.out.startswith("refused 'attach job' comes from"), alone.text
    child = starter.run("/bin/sh", "-c", f"{WRAPPER} /bin/echo got-in; true")
    assert "got-in" not in child.out, "its parent is no starter"
    assert rig.attempt_of(starter)["phase"] == "stage-in", "nothing was done for any of them"
    assert run(starter, attach, "/bin/echo", "got-in").out == "got-in\n"
    starter.kill()


def test_the_owners_preloaded_code_is_not_part_of_the_helper(rig: FallbackRig, attach: str) -> None:
    """Without a file capability a loader would obey LD_PRELOAD, and the job could start without its network."""
    source = (
        "#include <stdio.h>\n#include <unistd.h>\n"
        '__attribute__((constructor)) static void in(void) { char b[99] = {0}; readlink("/proc/self/ns/net", b, 98);'
        ' dprintf(2, "preloaded %s\\n", b); }\n'
    )
    rig.machine.need("sh", "-c", f"printf '%s' '{source}' > /run/in.c && cc -shared -fPIC -o /run/in.so /run/in.c 2>&1")
    env = {"LD_PRELOAD": "/run/in.so"}
    starter = began(rig)
    host = rig.machine.need("readlink", "/proc/self/ns/net").strip()
    words = [WRAPPER, "/bin/readlink", "/proc/self/ns/net"]
    argv = words if attach == "userns" else ["unshare", "--net", "--", *AS_JOB, *words]
    control = starter.ask(do="spawn", argv=["/bin/true"], uid=JOB_UID, env=env)["pid"]
    loaded = starter.wait(int(control))
    assert loaded is not None
    assert f"preloaded {host}" in loaded.err, "positive control: the library works"
    uid = JOB_UID if attach == "userns" else 0
    done = starter.wait(int(starter.ask(do="spawn", argv=argv, uid=uid, env=env)["pid"]))
    assert done is not None
    mine = done.out.strip()
    assert mine.startswith("net:["), done.text
    seen = [line for line in done.err.splitlines() if line.startswith("preloaded")]
    assert seen[-1] == f"preloaded {mine}", done.text
    # unshare and setpriv of this test load it too, in the host's network and in the empty one; the helper does not.
    assert len(seen) == (1 if attach == "userns" else 3), done.text
    starter.kill()


def test_another_users_process_is_refused(rig: FallbackRig, attach: str) -> None:
    starter = began(rig)
    argv = [*NO_NEW_PRIVS, WRAPPER, "/bin/echo", "got-in"]
    if attach == "starter":
        argv = ["unshare", "--net", "--", *(w.replace(str(JOB_UID), str(OTHER_UID)) for w in AS_JOB), *argv[3:]]
    said = starter.wait(starter.spawn(*argv, uid=OTHER_UID if attach == "userns" else 0))
    assert said is not None
    assert said.out == ""
    assert f"belongs to uid {JOB_UID}" in said.err, said.text
    assert run(starter, attach, "/bin/echo", "got-in").out == "got-in\n"
    starter.kill()


# -- where the starter makes the namespace ------------------------------------------------------------------------


def test_the_hosts_own_network_is_refused(starter_made: FallbackRig) -> None:
    """A job on whose node NO_JOB_NETWORKING is not set, or which asked for the host's network."""
    starter = began(starter_made)
    said = starter.wait(starter.job("/bin/echo", "got-in"))
    assert said is not None
    assert said.out == ""
    assert "host's own network; is NO_JOB_NETWORKING = True set" in said.err, said.text
    assert starter_made.attempt_of(starter)["phase"] == "stage-in"
    assert run(starter, "starter", "/bin/echo", "got-in").out == "got-in\n"
    starter.kill()


def test_another_attempts_network_is_refused(starter_made: FallbackRig) -> None:
    rig = starter_made
    victim, thief = began(rig), began(rig)
    spec = rig.attempt_of(victim)
    job(victim, "starter", "/bin/sleep", "60")
    name = f"lark-lkag-{lane_number(spec)}-attached"
    wait_until("attached", lambda: name in rig.namespaces(), 5)
    warm = f"lark-lkag-{lane_number(rig.attempt_of(thief))}"
    for taken in (name, warm, "far"):
        argv = ("nsenter", f"--net=/run/netns/{taken}", "--", *AS_JOB, WRAPPER, "/bin/echo", "got-in")
        said = thief.wait(thief.spawn(*argv, uid=0))
        assert said is not None
        assert said.out == ""
        assert f"{taken}, which is not its own to bring" in said.err, said.text
    assert run(thief, "starter", "/bin/echo", "got-in").out == "got-in\n"
    victim.kill()
    thief.kill()


def test_a_network_with_others_in_it_or_with_devices_is_refused(starter_made: FallbackRig) -> None:
    starter = began(starter_made)
    last = " ".join(["exec", *AS_JOB, WRAPPER, "/bin/echo", "got-in"])
    for before, why in (
        ("sleep 20 >/dev/null 2>&1 &", "not alone in its network"),
        ("ip link add v0 type veth peer name v1; ip link set v0 up; ip link set v1 up;", "is not empty: v0, v1"),
        ("ip link add eth0 type veth peer name v1;", "is not empty: eth0"),
    ):
        said = starter.wait(starter.spawn("unshare", "--net", "--", "/bin/sh", "-c", f"{before} {last}", uid=0))
        assert said is not None
        assert said.out == ""
        assert why in said.err, said.text
    assert run(starter, "starter", "/bin/echo", "got-in").out == "got-in\n"
    starter.kill()


# -- where the helper makes it ------------------------------------------------------------------------------------


def test_without_the_declaration_no_job_begins_or_is_attached(userns: FallbackRig) -> None:
    rig = userns
    before = began(rig)
    configure(rig, siblings_hidden=False)
    try:
        late = run(before, "userns", "/bin/echo", "got-in")
        assert late.out == ""
        assert "fallback.siblings-hidden: true" in late.err, late.text
        fresh = rig.starter()
        said = fresh.begin()
        assert "HookStatusCode = 104" in said.out
        assert "fallback.siblings-hidden: true" in said.out, said.text
        ping = rig.machine.run([f"{LIBEXEC}/lark-ping"]).out
        assert "HasLarkNetwork = false" in ping, "no further jobs are matched to this node"
        assert "siblings-hidden" in ping
        fresh.kill()
    finally:
        configure(rig, siblings_hidden=True)
    assert run(before, "userns", "/bin/echo", "got-in").out == "got-in\n"
    before.kill()


def test_where_user_namespaces_cannot_be_made_it_is_told_before_the_job_starts(userns: FallbackRig) -> None:
    """The kernel lets nobody make one in a chroot (NAMED_CHROOT); limits by sysctl are the carrying machine's."""
    rig = userns
    check = f"setpriv --no-new-privs --reuid={JOB_UID} --regid={JOB_UID} --clear-groups -- {LIBEXEC}/lark-job check"
    # In a mount namespace of its own, which goes with it.
    tree = "mkdir -p /run/tree && mount --make-rprivate / && mount --rbind / /run/tree && exec"
    inside = rig.machine.run(["unshare", "--mount", "--", "/bin/sh", "-c", f"{tree} chroot /run/tree {check}"])
    assert inside.code != 0
    assert "this node does not let ordinary users make user namespaces" in inside.text, inside.text
    plain = rig.machine.run(["unshare", "--mount", "--", "/bin/sh", "-c", f"{tree} {check}"])
    assert plain.out == "lark-job: user namespaces work here\n", plain.text


# -- what stands beside the helper --------------------------------------------------------------------------------


def test_each_word_needs_its_own_installation(userns: FallbackRig) -> None:
    """The word changed by hand, without the installer: nothing works rather than something else than was chosen."""
    rig = userns
    word = f"{LIBEXEC}/lark-attach"
    starter = began(rig)
    try:
        for text, why in (("capability", "lacks the file capability"), ("maybe", "none of: capability, userns")):
            rig.machine.need("sh", "-c", f"echo {text} > {word}")
            said = rig.machine.run([*AS_JOB, f"{LIBEXEC}/lark-job", "check"])
            assert said.code != 0
            assert why in said.text
            denied = starter.wait(starter.job("/bin/echo", "got-in"))
            assert denied is not None
            assert denied.out == "", denied.text
        rig.machine.need("sh", "-c", f"echo userns > {word}; chown {JOB_UID} {word}")
        said = rig.machine.run([*AS_JOB, f"{LIBEXEC}/lark-job", "check"])
        assert "must be a file of root" in said.text
        rig.machine.need("chown", "root", word)
        dynamic = rig.home / "dynamic"
        dynamic.mkdir()
        native_install.build(dynamic / "lark-job")
        rig.machine.need("cp", word, f"{LIBEXEC}/lark-socket", str(dynamic))
        said = rig.machine.run([*AS_JOB, str(dynamic / "lark-job"), "check"])
        assert "was not installed for that" in said.text, said.text
    finally:
        rig.machine.need("sh", "-c", f"echo userns > {word}; chown root {word}")
    assert rig.machine.run([*AS_JOB, f"{LIBEXEC}/lark-job", "check"]).code == 0
    assert run(starter, "userns", "/bin/echo", "got-in").out == "got-in\n"
    starter.kill()


def test_records_name_the_namespace(userns: FallbackRig) -> None:
    starter = began(userns)
    run(starter, "userns", "/bin/true")
    (record,) = userns.records()
    assert [name.rpartition("-")[2] for name in record["namespaces"]][1:] == ["attached"], json.dumps(record)
    starter.kill()
