"""The picture of the border's experiment, and its verdict: what is drawn is what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree

import pytest

from mininet_tests.bench.border import Run, document, faults, write
from mininet_tests.bench.border_plot import CONTROL_WORDS, Phase, Sample, Story, page, svg

M = 10**6
PHASES = [
    Phase("rest alone", 0, 4, {"rest": 50.0 * M}, {"rest": 49.0 * M}, 1.0),
    Phase("all <want> all", 4, 8, {"top": 45.0 * M, "rest": 5.0 * M}, {"top": 45.0 * M, "rest": 4.0 * M}, 0.9),
]
SAMPLES = [Sample(at, {"top": at * 5 * M, "middle": 0.0, "rest": 10.0 * M}, 1.0) for at in (1.0, 3.0, 5.0, 7.0)]
STORY = Story(50 * M, {"top": 25.0 * M, "middle": 15.0 * M, "rest": 5.0 * M}, SAMPLES, PHASES)
NAMESPACE = "{http://www.w3.org/2000/svg}"


def test_each_class_has_a_line_with_a_point_for_each_sample_and_each_expectation_a_dashed_one() -> None:
    lines = list(ElementTree.fromstring(svg(STORY)).iter(f"{NAMESPACE}polyline"))
    measured = [line for line in lines if line.attrib["class"] in ("class", "control")]
    assert [len(line.attrib["points"].split()) for line in measured] == [4] * 4  # the control and three classes
    assert [line.attrib["class"] for line in lines if line not in measured] == ["due"] * 3
    heights = [float(point.split(",")[1]) for point in measured[1].attrib["points"].split()]
    assert heights == sorted(heights, reverse=True)  # the top class rises, and up is a smaller number
    assert len(set(heights)) == 4


def test_the_lines_can_be_told_apart_without_colours_and_without_red_or_green() -> None:
    root = ElementTree.fromstring(svg(STORY))
    classes = [line for line in root.iter(f"{NAMESPACE}polyline") if line.attrib["class"] == "class"]
    strokes = [line.attrib.get("stroke-dasharray") for line in classes]
    assert len(set(strokes)) == 3
    seen = [_as_seen_without_red_or_green(line.attrib["stroke"]) for line in classes]
    assert min(abs(one - other) for at, one in enumerate(seen) for other in seen[:at]) > 0.08
    # The control: red and green of one lightness are one to them.
    assert abs(_as_seen_without_red_or_green("#d00000") - _as_seen_without_red_or_green("#008c00")) < 0.08
    assert [one.text for one in root.iter(f"{NAMESPACE}text")].count(CONTROL_WORDS) == 1, (
        "the grey line says what it is"
    )


def _as_seen_without_red_or_green(colour: str) -> float:
    """Lightness, as a deuteranope sees it: red and green count together."""
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return 0.37 * red + 0.55 * green + 0.08 * blue


def test_all_tries_of_the_round_trip_are_kept_and_not_the_best_alone(tmp_path: Path) -> None:
    run = Run(mock.Mock(classes={}), mock.Mock(), mock.Mock(rate=50 * M, classes=[]), 8, print)
    run.tries = {"idle": [2.0, 1.5, 1.7], "line full": [9.0, 4.0]}
    assert run.story.trips == {"idle": 1.5, "line full": 4.0}
    story = Story(50 * M, STORY.classes, SAMPLES, PHASES, run.trips, run.tries)
    said = "".join(ElementTree.fromstring(svg(story)).itertext())
    assert "best p99: idle 1.5 ms (tries: 3); line full 4.0 ms (tries: 2)" in said
    assert "top before middle before restguarantees first, then rank" in said, "the order says of what it is"
    write(story, {"json": tmp_path / "b.json"})
    assert json.loads((tmp_path / "b.json").read_text())["tries"] == run.tries


def test_the_worst_off_class_and_the_use_of_the_line_are_told() -> None:
    assert [phase.least for phase in PHASES] == [0.98, 0.8]
    assert [phase.used for phase in PHASES] == [0.98, 0.98]
    text = page(STORY, 3)
    assert "<td>4.0 of 5.0</td>" in text
    assert "all &lt;want&gt; all" in text


def test_the_verdict_names_phases_that_lack_something_and_a_top_class_that_waits() -> None:
    assert faults(STORY) == ["all <want> all: less than 95% of the machine's own share (90.0%)"]
    fine = Story(50 * M, STORY.classes, SAMPLES, PHASES[:1], {"idle": 1.0, "line full": 5.9})
    assert faults(fine) == []
    waits = Story(50 * M, STORY.classes, SAMPLES, PHASES[:1], {"idle": 1.0, "line full": 7.5})
    assert faults(waits) == ["the top class waits 6.5 ms longer (line full); 5 are allowed"]


def test_what_is_asked_for_is_written_and_the_figures_are_those_of_the_story(tmp_path: Path) -> None:
    files = {"json": tmp_path / "a" / "b.json", "svg": tmp_path / "b.svg", "html": None}
    assert write(STORY, files) == [tmp_path / "a" / "b.json", tmp_path / "b.svg"]
    found = json.loads((tmp_path / "a" / "b.json").read_text())
    assert found == json.loads(json.dumps(document(STORY)))
    assert found["phases"][1]["least"] == pytest.approx(0.8)
    assert len(found["samples"]) == len(SAMPLES)
