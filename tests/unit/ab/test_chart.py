"""The chart shows what was measured: every arm, every load, the values and their intervals."""

from __future__ import annotations

from typing import Any

import pytest

from sglang_speckv.ab import chart
from tests.unit.ab.test_verdict import FOUR, ONE, judged, outcome

ARMS = ["none", "static:1", "static:3", "ema", "speckv"]


@pytest.fixture
def cells() -> list[dict[str, Any]]:
    """Five arms at two loads."""
    return list(judged(outcome(ONE, FOUR))["cells"])


def test_ratios_and_intervals_of_every_arm_at_every_load(cells: list[Any]) -> None:
    (axis,) = chart.figure(cells, "title").axes
    assert axis.get_title(loc="left") == "title"
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ARMS
    ticks = [label.get_text() for label in axis.xaxis.get_ticklabels()]
    assert [name.partition("\n")[0] for name in ticks] == ["1 request", "4 requests"]
    for container in axis.containers:
        ours = [cell for cell in cells if cell["arm"] == container.get_label()]
        points, _, (bars,) = container.lines
        ratios = [cell["vs_best_fixed"] or 1.0 for cell in ours]
        assert points.get_ydata().tolist() == ratios
        assert [round(x) for x in points.get_xdata()] == [0, 1], "at its load"
        for (bottom, top), cell in zip(bars.get_segments(), ours, strict=True):
            assert (bottom[1], top[1]) == pytest.approx(cell["interval"] or (1.0, 1.0))


def test_arms_stand_side_by_side(cells: list[Any]) -> None:
    (axis,) = chart.figure(cells, "title").axes
    places = [x for container in axis.containers for x in container.lines[0].get_xdata()]
    assert len(set(places)) == len(cells)


def test_svg_has_its_text_as_text_and_names_no_address(cells: list[Any]) -> None:
    text = chart.svg(cells, "a title")
    assert text.startswith("<svg") and text.rstrip().endswith("</svg>")
    assert all(f">{name}<" in text for name in ["a title", *ARMS])
    assert "http" not in text.replace("http://www.w3.org", "")
