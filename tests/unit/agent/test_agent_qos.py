"""From a wish to HTB classes and filters: what must hold of every plan, and wishes that cannot be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_agent import packet_sockets, qos
from ovs_agent.packet_sockets import PacketSockets, Receiving
from ovs_agent.qos import BadWish, Filter, PortPlan
from policies.wire import PortQueues, QueueClass, QueueWish, queues_digest

MBIT = 10**6
THREE = [("production", 34, 25, 50), ("xrootd", 26, 15, 50), ("osg", 8, 5, 40)]
ENOUGH = 2**24


def port(classes: list[tuple[str, int, int, int]] = THREE, rate: int = 50) -> PortQueues:
    return PortQueues(
        rate=rate * MBIT,
        classes=[
            QueueClass(name=name, dscp=dscp, rank=rank, guarantee=guarantee * MBIT, ceiling=ceiling * MBIT)
            for rank, (name, dscp, guarantee, ceiling) in enumerate(classes, 1)
        ],
    )


def wish(**ports: PortQueues) -> QueueWish:
    return QueueWish(digest=queues_digest(ports), ports=ports)


def plan(one: PortQueues, memory: int | None = None) -> PortPlan:
    return qos.plan(wish(wan0=one), {"wan0": 1500}, memory).ports["wan0"]


def test_guarantee_is_rate_ceiling_is_ceil_and_rank_is_prio() -> None:
    made = plan(port())
    assert (made.root.rate, made.root.ceil) == (50 * MBIT, 50 * MBIT)
    assert [(leaf.name, leaf.rate, leaf.ceil, leaf.prio) for leaf in made.leaves] == [
        ("production", 25 * MBIT, 50 * MBIT, 0),
        ("xrootd", 15 * MBIT, 50 * MBIT, 1),
        ("osg", 5 * MBIT, 40 * MBIT, 2),
        ("", MBIT // 2, MBIT // 2, 0),
    ]


def test_a_class_that_stays_keeps_its_number_and_filters_whatever_comes_before_it() -> None:
    before = plan(port())
    after = plan(port([("new", 46, 1, 50), ("osg", 8, 5, 40), ("xrootd", 26, 15, 50)]))
    number = {leaf.name: leaf.minor for leaf in before.leaves}
    assert {leaf.name: leaf.minor for leaf in after.leaves}.items() >= {
        "osg": number["osg"],
        "xrootd": number["xrootd"],
    }.items()
    stays = {number["osg"], number["xrootd"]}

    def of(made: PortPlan) -> set[Filter]:
        return {f for f in made.filters if f.minor in stays and f.protocol != qos.ETH_ALL}

    assert of(before) == of(after)
    assert len(of(before)) == 4
    # The one that takes the rest has another key where the last class is another: both can stand while one replaces the
    # other.
    rest = [next(f for f in made.filters if f.protocol == qos.ETH_ALL) for made in (before, after)]
    assert rest[0].pref != rest[1].pref
    assert [f.minor for f in rest] == [number["osg"], number["xrootd"]]


def test_the_filters_find_the_code_point_in_either_header() -> None:
    keys = {(f.protocol, f.minor): f.keys for f in plan(port([("a", 46, 1, 50)])).filters if f.pref >= 0x100}
    # DSCP 46 is 0xb8 in IPv4's second byte, and 0x.b8..... from the fifth bit of IPv6's first word on.
    assert keys[qos.ETH_IPV4, 0x100 + 46] == ("0x00b80000/0x00fc0000+0",)
    assert keys[qos.ETH_IPV6, 0x100 + 46] == ("0x0b800000/0x0fc00000+0",)


def test_only_neighbour_discovery_of_the_link_itself_is_plumbing() -> None:
    found = [f for f in plan(port([("a", 46, 1, 50)])).filters if f.protocol == qos.ETH_IPV6 and f.pref < 0x100]
    assert len(found) == 4
    # Next header 58 in the third byte of the second word, hop limit 255 in the fourth: both, and nothing less.
    assert {f.keys[0] for f in found} == {"0x00003aff/0x0000ffff+4"}
    assert {f.keys[1] for f in found} == {f"{kind << 24:#010x}/0xff000000+40" for kind in (133, 134, 135, 136)}


@st.composite
def queues(draw: st.DrawFn) -> PortQueues:
    count = draw(st.integers(1, 12))
    rate = draw(st.integers(qos.LEAST_RATE * 8, 100_000 * MBIT))
    codes = draw(st.permutations(range(64)))[:count]
    left = rate
    classes = []
    for rank, dscp in enumerate(codes, 1):
        guarantee = draw(st.just(0) | st.integers(0, left))
        left -= guarantee
        ceiling = draw(st.just(rate) | st.integers(max(1, guarantee), max(1, rate)))
        classes.append(QueueClass(name=f"c{dscp}", dscp=dscp, rank=rank, guarantee=guarantee, ceiling=ceiling))
    return PortQueues(rate=rate, classes=classes)


@given(queues(), st.sampled_from([None, 212_992, ENOUGH]), st.sampled_from([1280, 1500, 9000]))
def test_no_plan_promises_more_than_the_link(one: PortQueues, memory: int | None, mtu: int) -> None:
    plans = qos.plan(wish(wan0=one, lan0=one), {"wan0": mtu, "lan0": mtu}, memory)
    for made in plans.ports.values():
        assert sum(leaf.rate for leaf in made.leaves) <= one.rate
        assert all(0 < leaf.rate <= leaf.ceil <= one.rate for leaf in made.leaves)
        assert all(leaf.limit >= 1 for leaf in made.leaves)
        assert len({leaf.minor for leaf in made.leaves}) == len(made.leaves)
        assert len({(f.pref, f.protocol) for f in made.filters}) == len(made.filters)
        assert {f.minor for f in made.filters} == {leaf.minor for leaf in made.leaves}
        # What is guaranteed is kept but for plumbing's share and the least shares of classes without a guarantee.
        for leaf, asked in zip(made.leaves, one.classes, strict=False):
            share = len(one.classes) * max(qos.LEAST_SHARE, qos.LEAST_RATE / one.rate)
            plumbing = max(qos.PLUMBING_SHARE, qos.LEAST_RATE / one.rate)
            assert leaf.rate >= asked.guarantee * (1 - share - plumbing) - 1
    if memory is not None and not plans.remarks:
        waiting = sum(leaf.limit for made in plans.ports.values() for leaf in made.leaves)
        assert waiting * qos.frame_memory(mtu) <= memory


def test_queues_fit_into_the_one_send_buffer_of_a_userspace_switch() -> None:
    one = wish(wan0=port(), lan0=port(rate=48, classes=[("a", 34, 5, 48)]))
    mtus = {"wan0": 1500, "lan0": 1500}
    roomy = qos.plan(one, mtus, ENOUGH)
    assert not roomy.remarks
    assert [leaf.limit for leaf in roomy.ports["wan0"].leaves] == [103, 103, 83, 16]  # 25 ms of full frames
    tight = qos.plan(one, mtus, 212_992)
    limits = [leaf.limit for made in tight.ports.values() for leaf in made.leaves]
    assert sum(limits) * qos.frame_memory(1500) <= 212_992
    assert not tight.remarks
    many = wish(**{f"wan{n}": port() for n in range(4)})
    (remark,) = qos.plan(many, dict.fromkeys(many.ports, 1500), 212_992).remarks
    assert "net.core.wmem_default" in remark


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ([("a", 34, 30, 50), ("b", 26, 30, 50)], "promised twice"),
        ([("a", 34, 30, 20)], "ceiling is under the guarantee"),
        ([("a", 34, 1, 50), ("b", 34, 1, 50)], "same DSCP"),
        ([("a", 34, 1, 50), ("a", 26, 1, 50)], "same name"),
    ],
)
def test_what_cannot_be_is_refused_with_its_port(classes: list[tuple[str, int, int, int]], words: str) -> None:
    assert plan(port())  # what can be, is not
    with pytest.raises(BadWish, match=f"queues of port wan0: .*{words}"):
        plan(port(classes))


RECEIVES = 'p_raw 0 0 *:wan0 * users:(("ovs-vswitchd",pid=20,fd=38)) skmem:(r0,rb212992,t0,tb1,f0,w0,o176,bl0,d{})'
SENDS = 'p_raw 0 0 [0]:* * users:(("ovs-vswitchd",pid=20,fd=40)) skmem:(r0,rb212992,t0,tb16777216,f0,w0,o0,bl0,d0)'


def test_the_sending_socket_is_told_from_those_that_receive_and_from_other_switches() -> None:
    found = packet_sockets.parse("\n".join((RECEIVES.format(7), SENDS)), 20)
    assert found == PacketSockets(16777216, {"wan0": Receiving(212992, 7)})
    assert packet_sockets.parse(RECEIVES.format(7), 20).sending is None
    assert packet_sockets.parse(SENDS, 21) == PacketSockets()


def test_frames_lost_since_the_last_look_are_told_with_the_way_out() -> None:
    def lost(frames: int) -> PacketSockets:
        return PacketSockets(None, {"wan0": Receiving(212992, frames)})

    (said,) = packet_sockets.losses(lost(9), lost(7))
    assert "port wan0: the switch loses frames" in said
    assert "net.core.rmem_default" in said
    assert packet_sockets.losses(lost(9), lost(9)) == []
    # Another socket, after a restart of the switch.
    assert packet_sockets.losses(lost(3), lost(9)) == packet_sockets.losses(lost(3), PacketSockets()) == []
