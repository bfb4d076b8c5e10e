"""The site builder itself: machines hold what is in them, and leave nothing, however their owner ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mininet_tests.site.leaks import Snapshot, differences, processes_in
from mininet_tests.site.namespaces import Machine, SiteError, wait_until, wire
from mininet_tests.site.openvswitch import OpenVSwitch
from mininet_tests.site.users import JOB_UIDS, Account, choose_uids, private_etc
from mininet_tests.telling import Telling


def make(root: Path, name: str) -> Machine:
    home = root / name
    home.mkdir()
    uid = choose_uids(["lark-carol"], JOB_UIDS)["lark-carol"]
    private_etc(home / "etc", [Account("lark-carol", uid, Path("/home/lark-carol"))], [("10.9.9.9", "elsewhere")])
    machine = Machine(name, home)
    machine.start()
    return machine


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Machine, Machine]]:
    tmp_path.chmod(0o755)
    machines = [make(tmp_path, name) for name in ("left", "right")]
    yield machines[0], machines[1]
    for machine in machines:
        machine.stop()


def namespaces(*machines: Machine) -> list[str]:
    return [os.readlink(f"/proc/{m.init_pid}/ns/{kind}") for m in machines for kind in ("net", "pid", "mnt")]


def test_a_wire_carries_tcp_and_nothing_is_seen_outside(pair: tuple[Machine, Machine]) -> None:
    left, right = pair
    before = Snapshot.take()
    wire(left, "a0", right, "b0")
    left.need("ip", "address", "add", "10.9.9.1/24", "dev", "a0")
    right.need("ip", "address", "add", "10.9.9.2/24", "dev", "b0")
    assert left.run(["ping", "-c1", "-W2", "10.9.9.2"]).code == 0
    assert left.run(["ping", "-c1", "-W1", "10.9.9.3"]).code != 0
    right.need("ip", "netns", "add", "lark-inside")
    assert "lark-inside" in right.need("ip", "netns", "list")
    assert not [difference for difference in differences(before, Snapshot.take()) if difference.leak]


def test_accounts_exist_inside_only(pair: tuple[Machine, Machine]) -> None:
    left, _ = pair
    assert left.need("id", "-un", "lark-carol").strip() == "lark-carol"
    assert left.run(["id", "-un"], user="lark-carol").out.strip() == "lark-carol"
    assert subprocess.run(["id", "lark-carol"], capture_output=True, check=False).returncode != 0


def test_no_secret_of_the_carrying_machine_is_copied(pair: tuple[Machine, Machine]) -> None:
    etc = pair[0].root / "etc"
    assert (etc / "passwd").read_text(encoding="utf-8").startswith("root:")
    assert [line.split(":")[0] for line in (etc / "shadow").read_text(encoding="utf-8").split()] == ["lark-carol"]
    closed = {path.name for path in etc.rglob("*") if path.is_file() and not path.lstat().st_mode & 0o004}
    assert closed <= {"shadow", "gshadow"}


def test_stop_ends_daemons_and_frees_namespaces(pair: tuple[Machine, Machine]) -> None:
    left, _ = pair
    held = namespaces(left)
    left.spawn("sleeper", ["setsid", "sleep", "300"])
    wait_until("the daemon runs", lambda: "sleep 300" in left.outer_pids().values(), 5)
    assert processes_in(held)
    left.stop()
    assert processes_in(held) == {}


def test_openvswitch_starts_and_its_end_is_waited_for(pair: tuple[Machine, Machine]) -> None:
    left, _ = pair
    switch = OpenVSwitch(left)
    switch.start()
    switch.vsctl("add-br", "br-test", "--", "set", "bridge", "br-test", "datapath_type=netdev")
    assert switch.flows("br-test")
    switch.kill_switch()
    assert left.run(["ovs-ofctl", "dump-flows", "unix:/run/openvswitch/br-test.mgmt"]).code != 0
    switch.start_switch()
    dump = ["ovs-ofctl", "dump-flows", "unix:/run/openvswitch/br-test.mgmt"]
    wait_until("the bridge is back", lambda: left.run(dump).code == 0, 5)
    switch.stop()
    assert left.outer_pids() == {}


OWNER = """
import sys, time
from pathlib import Path
from mininet_tests.test_site_machines import make, namespaces
machine = make(Path(sys.argv[1]), "orphan")
machine.spawn("sleeper", ["sleep", "300"])
print(*namespaces(machine), flush=True)
time.sleep(300)
"""


def test_a_killed_owner_takes_its_machines_along(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    held = owner.stdout.readline().split()
    assert len(held) == 3
    assert processes_in(held)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    wait_until("the machine's processes end", lambda: not processes_in(held), 10)


def test_a_failing_command_says_what_it_was(pair: tuple[Machine, Machine]) -> None:
    with pytest.raises(SiteError, match=r"ip link show nothing-here: exit 1"):
        pair[0].need("ip", "link", "show", "nothing-here")


def test_a_telling_without_control_or_with_a_false_claim_is_no_proof() -> None:
    telling = Telling()
    telling.shows("it is closed", True, "refused")
    assert telling.problems() == ["no positive control was shown"]
    telling.works("it opens where allowed", True, "open")
    assert telling.problems() == []
    telling.shows("and gone", False, "still there")
    assert "still there" in telling.problems()[0]
