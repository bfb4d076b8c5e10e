"""What a border's queues are to be, and the classes that a border cannot be true to."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import documents, sitefile
from policies.language import PolicyError, check_together, load_site, policy_from_text
from policies.model import Policy, Site, WanPort
from policies.queues import ONLY_CLASS, PortQueues, QueueClass, queue_faults, queue_plan
from tests.worlds import EXAMPLES

MBIT = 10**6
BORDER = '  edge: {datapath-id: "00000000000000c1", roles: [border], ports: {uplink: [lan0], wan: [WAN]}}\n'
WAN = "{name: wan0, rate: 50 Mbit/s}"


def text_of(wan: str = WAN) -> str:
    return (EXAMPLES / "demo-site.yaml").read_text() + BORDER.replace("WAN]", wan + "]")


def site_of(tmp_path: Path, text: str) -> Site:
    file = tmp_path / "site.yaml"
    file.write_text(text)
    return load_site(file)


def classes_of(*classes: str) -> Policy:
    listed = "".join(f"  - {{{one}}}\n" for one in classes)
    # The demo's gate guards a file server.
    service = "services: {fileserver: {hosts: [10.20.0.5], ports: [tcp/1094], protected: true}}\n"
    last = classes[-1].split("name: ")[1].split(",")[0]
    return policy_from_text(f"{service}classes:\n{listed}classify: [{{class: {last}}}]\n")


def test_what_leaves_is_shaped_to_the_line_and_what_comes_in_a_little_below_it(tmp_path: Path) -> None:
    site = site_of(tmp_path, text_of())
    assert site.bridges["edge"].wan == {"wan0": WanPort(50 * MBIT, 48 * MBIT)}
    assert site.bridges["edge"].lan == "lan0"
    assert site.bridges["wn1-br"].lan is None
    policy = classes_of(
        "name: prod, dscp: af41, guarantee: 50%", "name: osg, dscp: cs1, guarantee: 5 Mbit/s, ceiling: 80%"
    )
    check_together(policy, site)
    plan = queue_plan(policy, site, "edge")
    assert plan.bridge == "edge"
    assert plan.ports == {
        "wan0": PortQueues(
            50 * MBIT,
            (
                QueueClass("prod", 34, 25 * MBIT, 50 * MBIT, 1),
                QueueClass("osg", 8, 5 * MBIT, 40 * MBIT, 2),
            ),
        ),
        "lan0": PortQueues(
            48 * MBIT,
            (
                QueueClass("prod", 34, 24 * MBIT, 48 * MBIT, 1),
                QueueClass("osg", 8, 5 * MBIT, 38_400_000, 2),
            ),
        ),
    }


def test_the_port_to_the_site_takes_in_what_all_wan_ports_do(tmp_path: Path) -> None:
    wan = "{name: a, rate: 50 Mbit/s, inbound: 45 Mbit/s}, {name: b, rate: 1 Gbit/s}"
    plan = queue_plan(classes_of("name: all, dscp: 0"), site_of(tmp_path, text_of(wan)), "edge")
    assert {name: port.rate for name, port in plan.ports.items()} == {
        "a": 50 * MBIT,
        "b": 1000 * MBIT,
        "lan0": 1005 * MBIT,
    }


def test_a_policy_without_classes_has_one_queue(tmp_path: Path) -> None:
    policy = policy_from_text("mode: enforce\n")
    plan = queue_plan(policy, site_of(tmp_path, text_of()), "edge")
    assert plan.ports["wan0"].classes == (QueueClass(ONLY_CLASS, 0, 50 * MBIT, 50 * MBIT, 1),)


def test_a_bridge_that_is_no_border_has_no_queues(tmp_path: Path) -> None:
    site = site_of(tmp_path, text_of())
    with pytest.raises(ValueError, match="wn1-br is no border"):
        queue_plan(classes_of("name: all, dscp: 0"), site, "wn1-br")
    with pytest.raises(KeyError):
        queue_plan(classes_of("name: all, dscp: 0"), site, "nowhere")


OVERPROMISED = [
    (
        ("name: a, dscp: 1, guarantee: 60 Mbit/s", "name: b, dscp: 2"),
        3,
        "class `a` is promised 60 Mbit/s, and border `edge` takes in from the WAN 48 Mbit/s",
    ),
    # The line carries 49, but only 48 of it are taken in.
    (("name: a, dscp: 1, guarantee: 49 Mbit/s",), 3, "class `a` is promised 49 Mbit/s"),
    (
        ("name: a, dscp: 1, guarantee: 30 Mbit/s", "name: b, dscp: 2, guarantee: 50%"),
        4,
        "the guarantees up to here are 54 Mbit/s in sum",
    ),
    (
        ("name: a, dscp: 1, guarantee: 20 Mbit/s, ceiling: 10%",),
        3,
        "the ceiling of class `a` is 4.8 Mbit/s, below its guarantee of 20 Mbit/s",
    ),
    # 45% of the line are above 22 Mbit/s, but not of what is taken in.
    (("name: a, dscp: 1, guarantee: 22 Mbit/s, ceiling: 45%",), 3, "the ceiling of class `a` is 21.6 Mbit/s"),
    (
        ("name: a, dscp: af11", "name: b, dscp: 10"),
        4,
        "classes `a` and `b` have the same code point: a border tells them apart by it; "
        "give each class a `dscp` of its own",
    ),
]


@pytest.mark.parametrize(("classes", "line", "message"), OVERPROMISED, ids=[m[:40] for *_, m in OVERPROMISED])
def test_what_a_border_cannot_keep_is_refused_with_its_line(
    tmp_path: Path, classes: tuple[str, ...], line: int, message: str
) -> None:
    policy = classes_of(*classes)
    check_together(policy, load_site(EXAMPLES / "demo-site.yaml"))  # where there is no border, nothing is promised
    with pytest.raises(PolicyError) as refused:
        check_together(policy, site_of(tmp_path, text_of()))
    assert message in str(refused.value)
    assert [(p.place.file, p.place.line) for p in refused.value.problems] == [("policy.yaml", line)]


def test_a_line_that_is_fast_enough_keeps_the_same_promises(tmp_path: Path) -> None:
    site = site_of(tmp_path, text_of("{name: wan0, rate: 1 Gbit/s}"))
    for classes, _, message in OVERPROMISED:
        if "part" not in message and "code point" not in message and "ceiling" not in message:
            check_together(classes_of(*classes), site)


BAD_BORDERS = [
    ("wan0", "WAN port 'wan0' of a border has no rate; write {name: wan0, rate: 50 Mbit/s}"),
    ("{name: wan0}", "`bridges.edge.ports.wan.rate` is missing; add `rate:`"),
    ("{name: wan0, rate: 50}", "50 of which unit?; write 50 Mbit/s"),
    ("{name: wan0, rate: 50%}", "'50%' is a part, and of what is not said; write an amount, such as 50 Mbit/s"),
    ("{name: wan0, rate: 50 Mbps}", "'Mbps' is not a unit of bandwidth; write Mbit/s"),
    ("{name: wan0, rate: 5 kbit/s}", "'5 kbit/s' is no rate of a link; write 64 kbit/s or more"),
    ("{name: wan0, rate: 50 Mbit/s, inbound: 60 Mbit/s}", "more is taken in than the line carries"),
    ("{name: wan0, rate: 50 Mbit/s, colour: red}", "unknown key `colour`"),
    ("{name: lan0, rate: 50 Mbit/s}", "port `lan0` is listed twice"),
    ("", "a border needs a WAN port"),
]


@pytest.mark.parametrize(("wan", "message"), BAD_BORDERS, ids=[m for _, m in BAD_BORDERS])
def test_a_bad_wan_port_is_refused_with_place_and_remedy(tmp_path: Path, wan: str, message: str) -> None:
    text = text_of(wan)
    with pytest.raises(PolicyError) as refused:
        site_of(tmp_path, text)
    assert message in str(refused.value)
    assert {p.place.line for p in refused.value.problems} == {len(text.splitlines())}


BAD_SITES = [
    ("uplink: [lan0], ", "", "a border needs a port to the site; ports: {uplink: [lan0], …}"),
    ("uplink: [lan0], ", "uplink: [lan0], server-facing: [s0], ", "a border has one port to the site"),
    ("[border]", "[border, gate]", "one bridge cannot be border and gate yet"),
    ("[border]", "[border, worker]", "one bridge cannot be border and worker yet"),
    (
        "uplink: [lan0]",
        "uplink: [{name: lan0, rate: 50 Mbit/s}]",
        "a uplink port is only a name; write the name; a rate is for the WAN ports of a border",
    ),
    ("uplink: [cf0]", f"uplink: [cf0], wan: [{WAN}]", "only a border shapes what leaves by its WAN ports"),
]


@pytest.mark.parametrize(("old", "new", "message"), BAD_SITES, ids=[m for *_, m in BAD_SITES])
def test_a_bad_border_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert site_of(tmp_path, text_of())
    text = text_of()
    assert old in text
    with pytest.raises(PolicyError) as refused:
        site_of(tmp_path, text.replace(old, new))
    assert message in str(refused.value)


def test_a_wan_port_that_nothing_shapes_is_only_a_name(tmp_path: Path) -> None:
    site = site_of(tmp_path, text_of().replace("uplink: [cf0]", "uplink: [cf0], wan: [w0]"))
    assert site.bridges["gate-br"].wan == {}
    assert "w0" in site.bridges["gate-br"].ports


AMOUNTS = st.one_of(
    st.none(),
    st.integers(1, 100).map(lambda n: f"{n}%"),
    st.integers(1, 60).map(lambda n: f"{n} Mbit/s"),
)


@given(st.lists(st.tuples(AMOUNTS, AMOUNTS), min_size=1, max_size=5), st.integers(1, 100), st.integers(1, 100))
def test_no_promise_is_made_twice(classes: list[tuple[str | None, str | None]], rate: int, share: int) -> None:
    """Whatever is written: it is refused, or every way out can keep every guarantee at once."""
    wan = f"{{name: wan0, rate: {rate} Mbit/s, inbound: {max(64, rate * share * 10)} kbit/s}}"
    lines = []
    for number, (guarantee, ceiling) in enumerate(classes):
        said = [f"guarantee: {guarantee}"] * (guarantee is not None) + [f"ceiling: {ceiling}"] * (ceiling is not None)
        lines.append(", ".join([f"name: c{number}", f"dscp: {number}", *said]))
    try:
        policy = classes_of(*lines)
    except PolicyError:
        return
    site = _loaded(text_of(wan))
    kept = all(
        sum(one.guarantee for one in port.classes) <= port.rate
        and all(one.guarantee <= one.ceiling <= port.rate for one in port.classes)
        for port in queue_plan(policy, site, "edge").ports.values()
    )
    assert kept == (not queue_faults(policy, site))


def test_rates_of_jobs_promise_nothing(tmp_path: Path) -> None:
    """Jobs that may have more than the line in sum take nothing away from the classes' guarantees."""
    text = """\
attributes: {RequestNetworkMbps: {type: number, min: 1, max: 100000}}
services: {fileserver: {hosts: [10.20.0.5], ports: [tcp/1094], protected: true}}
classes: [{name: first, dscp: af41, guarantee: 60%}, {name: rest, dscp: cs1, guarantee: 40%}]
classify: [{class: rest}]
"""
    rates = "rates: [{rate: RequestNetworkMbps, unit: Mbit/s}, {rate: 40, unit: Gbit/s}]\n"
    site = site_of(tmp_path, text_of())
    plans = []
    for one in (text, text + rates):
        policy = policy_from_text(one)
        check_together(policy, site)
        plans.append(queue_plan(policy, site, "edge"))
    assert plans[0] == plans[1]
    # The control: a hundredth more for a class is refused.
    with pytest.raises(PolicyError, match="100%|promised|in sum"):
        check_together(policy_from_text((text + rates).replace("40%", "41%")), site)


def _loaded(text: str) -> Site:
    return sitefile.site(documents.parse("site.yaml", text.encode()), "site.yaml")
