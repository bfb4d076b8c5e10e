"""What the queues of a border do to real traffic: entitlements, full use of the link, guarantees, delays.

Real senders (iperf3) through a border as a site has it: flows of the real controller, queues of the real
`lark-agent border`, a class for each pair of addresses. The numbers are printed. They are
measured at the receivers. Switch, senders and probes run with real-time priority, and every rate is held against that
of a line without a switch in the same seconds (`border_control`), so that a busy machine does not count as a slow
border; a mix is looked at in many windows, for a virtual machine has its cores when its host gives them.

In `make test` the line is narrow, the senders are steady (UDP at half as much again as the line carries, for what a TCP
makes of a line that stands still at times is the TCP's matter), and a class's rate is held against what all classes
had. With LARK_TEST_FULL=1 the line has 50 Mbit/s, the senders are TCPs, and each class has 95 % of its entitlement.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest

from mininet_tests.border_control import ControlLine
from mininet_tests.border_rig import BorderRig, Lane, entitlement, percentile, stolen
from mininet_tests.border_site import BorderSite, border_site
from mininet_tests.site.openvswitch import BUFFER
from ovs_agent import qos
from policies.wire import PortQueues, QueueClass, QueueWish, queues_digest
from tests.effort import FULL

M = 10**6
LINE = (50 if FULL else 20) * M
"""A machine that has lost half of its cores for a while still carries the smaller one."""
RATES = {"wan0": LINE, "lan0": LINE * 24 // 25}
SHARES = {"production": 0.5, "xrootd": 0.3, "osg": 0.1}
LANES = {name: Lane(name, number, dscp) for number, (name, dscp) in enumerate(zip(SHARES, (34, 26, 8), strict=True), 1)}
PRODUCTION, XROOTD, OSG = LANES.values()
ALL = 1e12
"""More than there is: the wish of a TCP sender, and of one that sends more than the line carries."""
STEADY = None if FULL else str(LINE * 3 // 2)
PART = LINE * 2 // 5
FLOOD = str(LINE * 8 // 5)
NEED = 0.95 if FULL else 0.85
SETTLE, WINDOW, WINDOWS = (3.0, 4.0, 25) if FULL else (1.0, 1.5, 50)
"""On a virtual machine whose host takes its cores away at times, minutes can pass until a window is whole."""
WAIT, PROBES = (5, 400) if FULL else (25, 200)
"""Milliseconds that the top class may wait longer at p99; and a machine that is shared stops for some."""
LEAST_MACHINE = 0.8 if FULL else 0.5
"""A window in which the machine could not fill even the line without a switch to this share tells nothing."""


def policy(shares: Mapping[str, float] = SHARES) -> str:
    """Each lane is a class: all that goes to its address outside, or comes from there."""
    lanes = LANES.values()
    ports = "ports: [tcp/1-65535, udp/1-65535, icmp]"
    services = "".join(f'  {one.name}: {{hosts: [{one.outside}, "{one.outside6}"], {ports}}}\n' for one in lanes)
    classes = "".join(f"  - {{name: {n}, dscp: {LANES[n].dscp}, guarantee: {s:.0%}}}\n" for n, s in shares.items())
    rules = "".join(f"  - {{service: {one.name}, class: {one.name}}}\n" for one in lanes)
    return f"mode: enforce\nservices:\n{services}classes:\n{classes}classify:\n{rules}"


@dataclass(frozen=True, slots=True)
class Border:
    site: BorderSite
    control: ControlLine

    @property
    def rig(self) -> BorderRig:
        return self.site.rig


def control_plan() -> qos.PortPlan:
    classes = [
        QueueClass(name=name, dscp=LANES[name].dscp, rank=rank, guarantee=int(LINE * share), ceiling=LINE)
        for rank, (name, share) in enumerate(SHARES.items(), 1)
    ]
    ports = {"eth0": PortQueues(rate=LINE, classes=classes)}
    return qos.plan(QueueWish(digest=queues_digest(ports), ports=ports), {"eth0": 1500}, BUFFER).ports["eth0"]


pytestmark = [pytest.mark.alone, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def border() -> Iterator[Border]:
    with border_site(list(LANES.values()), LINE, policy(), compiled=True, hurry=10) as site:
        control = ControlLine(site.rig.root, control_plan(), PRODUCTION.dscp, STEADY, hurry=10)
        try:
            control.start()
            yield Border(site, control)
        finally:
            control.stop()


@pytest.fixture(autouse=True)
def nobody_sends(border: Border) -> Iterator[None]:
    yield
    border.rig.leave()


def check(border: Border, what: str, wants: Mapping[str, float], inbound: bool = False) -> None:
    """Within so many windows one in which the link is full and every class has what it is entitled to."""
    rate = RATES["lan0" if inbound else "wan0"]
    due = entitlement(rate, [(name, rate * share, rate) for name, share in SHARES.items()], wants)
    time.sleep(SETTLE)
    told = ""
    for _ in range(WINDOWS):
        before, began = stolen(), border.control.mark()
        got = border.rig.measure(WINDOW, inbound)
        machine, lost = border.control.share(began), stolen() - before
        used = sum(got.values()) / min(rate, sum(wants.values()))
        shares = {name: got[name] / due[name] for name in wants}
        told = ", ".join(f"{n} {got[n] / M:.1f} of {due[n] / M:.1f}" for n in wants)
        told = f"{told} Mbit/s; {used:.1%} of the link (a line without a switch: {machine:.1%})"
        told += f"; the host took {lost:.1f} s" if lost else ""
        print(f"{what} ({'in' if inbound else 'out'}): {told}", flush=True)
        fair = NEED * (machine if FULL else min(machine, used))
        if machine >= LEAST_MACHINE and used >= NEED * machine and min(shares.values()) >= fair:
            assert sum(got.values()) <= rate * 1.03
            return
    pytest.fail(f"{what}: not in {WINDOWS} windows; the last: {told}")


def test_under_any_mix_the_link_is_full_and_each_class_has_its_entitlement(border: Border) -> None:
    osg = border.rig.send(OSG, udp=STEADY)
    check(border, "OSG alone", {"osg": ALL})
    xrootd = border.rig.send(XROOTD, udp=STEADY)
    check(border, "Xrootd joins", {"xrootd": ALL, "osg": ALL})
    part = border.rig.send(PRODUCTION, udp=str(PART))
    # 1400 bytes of payload are 1442 on the wire.
    wants = {"production": PART * 1442 / 1400, "xrootd": ALL, "osg": ALL}
    check(border, "production joins and wants a part", wants)
    border.rig.leave(part)
    border.rig.send(PRODUCTION, udp=STEADY)
    check(border, "production wants all", {"production": ALL, "xrootd": ALL, "osg": ALL})
    border.rig.leave(xrootd)
    check(border, "Xrootd leaves", {"production": ALL, "osg": ALL})
    border.rig.leave(osg)
    check(border, "production alone", {"production": ALL})


@pytest.mark.parametrize(("inbound", "v6"), [(False, False), (False, True), (True, True)])
def test_a_flood_of_udp_from_below_takes_nothing_that_others_are_entitled_to(
    border: Border, inbound: bool, v6: bool
) -> None:
    border.rig.send(OSG, udp=FLOOD, inbound=inbound, v6=v6)
    border.rig.send(XROOTD, inbound=inbound, v6=v6)
    check(border, f"OSG floods with IPv{6 if v6 else 4}", {"xrootd": ALL, "osg": ALL}, inbound)


def test_what_comes_in_is_shared_in_the_same_way(border: Border) -> None:
    for lane in (PRODUCTION, XROOTD, OSG):
        border.rig.send(lane, udp=STEADY, inbound=True)
    check(border, "all want all", dict.fromkeys(SHARES, ALL), inbound=True)


def test_the_top_class_waits_hardly_more_under_load_from_below(border: Border) -> None:
    idle = border.rig.delays(PRODUCTION, PROBES)
    border.rig.send(OSG, udp=FLOOD)
    border.rig.send(XROOTD)
    border.rig.send(XROOTD, inbound=True)
    time.sleep(SETTLE)
    for _ in range(WINDOWS):
        loaded = border.rig.delays(PRODUCTION, PROBES)
        below = border.rig.delays(OSG, 100)
        told = {
            name: f"p50 {percentile(d, 0.5):.2f} p99 {percentile(d, 0.99):.2f} ms"
            for name, d in (("idle", idle), ("loaded", loaded), ("of the class below, loaded", below))
        }
        print(f"round trip of the top class: {told}", flush=True)
        if percentile(loaded, 0.99) <= percentile(idle, 0.99) + WAIT:
            break
    else:
        pytest.fail(f"more than {WAIT} ms in {WINDOWS} windows: {told}")
    # The control: there is a queue to wait in, for those who have to.
    assert percentile(below, 0.5) > percentile(idle, 0.5) + WAIT


def test_a_changed_guarantee_moves_what_runs_without_ending_it(border: Border) -> None:
    senders = [border.rig.send(PRODUCTION), border.rig.send(XROOTD)]

    def comes_to(least: float, most: float) -> None:
        """The share of Xrootd in what the two have, in a window."""
        share = 0.0
        for _ in range(WINDOWS):
            got = border.rig.measure(WINDOW)
            share = got["xrootd"] / max(1, sum(got.values()))
            print(f"Xrootd has {share:.1%} of {sum(got.values()) / M:.1f} Mbit/s", flush=True)
            if least <= share <= most:
                return
        pytest.fail(f"Xrootd's share is not between {least} and {most} in {WINDOWS} windows, but {share:.2f}")

    comes_to(0.2, 0.4)
    border.site.policy(policy({"production": 0.2, "xrootd": 0.7, "osg": 0.1}))
    comes_to(0.6, 0.8)
    border.site.policy(policy())
    comes_to(0.2, 0.4)
    assert all(border.rig.sending(one) for one in senders)
