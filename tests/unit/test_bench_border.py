"""The picture of the border's measurement: what is drawn is what was measured."""

from __future__ import annotations

from xml.etree import ElementTree

from mininet_tests.bench.border import RATE, Phase, Sample, page, svg

M = 10**6
PHASES = [
    Phase("OSG alone", 0, 4, {"osg": 50.0 * M}, {"osg": 49.0 * M}, 1.0),
    Phase(
        "all <want> all", 4, 8, {"production": 45.0 * M, "osg": 5.0 * M}, {"production": 45.0 * M, "osg": 4.0 * M}, 0.9
    ),
]
SAMPLES = [Sample(at, {"production": at * 5 * M, "xrootd": 0.0, "osg": 10.0 * M}, 1.0) for at in (1.0, 3.0, 5.0, 7.0)]
NAMESPACE = "{http://www.w3.org/2000/svg}"


def test_each_class_has_a_line_with_a_point_for_each_sample_and_each_expectation_a_dashed_one() -> None:
    lines = list(ElementTree.fromstring(svg(SAMPLES, PHASES)).iter(f"{NAMESPACE}polyline"))
    measured = [line for line in lines if "stroke-dasharray" not in line.attrib]
    assert [len(line.attrib["points"].split()) for line in measured] == [4] * 4  # the control and three classes
    assert len(lines) - len(measured) == 3
    heights = [float(point.split(",")[1]) for point in measured[1].attrib["points"].split()]
    assert heights == sorted(heights, reverse=True)  # production rises, and up is a smaller number
    assert len(set(heights)) == 4


def test_the_worst_off_class_and_the_use_of_the_line_are_told() -> None:
    assert [phase.least for phase in PHASES] == [0.98, 0.8]
    assert [phase.used for phase in PHASES] == [49 * M / RATE, 49 * M / RATE]
    text = page(SAMPLES, PHASES)
    assert "<td>4.0 of 5.0</td>" in text
    assert "all &lt;want&gt; all" in text
