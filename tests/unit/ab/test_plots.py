"""Pictures show what was measured: every arm, every load, the values and their intervals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

from sglang_speckv.ab import plots
from sglang_speckv.ab.verdict import Cell, judge
from tests.unit.ab.test_verdict import FOUR, ONE, comparison, outcome

ARMS = ["none", "static:1", "static:3", "ema", "speckv"]


@pytest.fixture(autouse=True)
def closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The figures that were closed, as they were then."""
    figures: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(plt, "close", figures.append)
        yield figures
    plt.close("all")


@pytest.fixture
def cells() -> list[Cell]:
    """Five arms at two loads."""
    found = outcome(ONE, FOUR)
    return list(judge(comparison(found), found).cells)


def labels(axis: Any) -> list[str]:
    return [text.get_text() for text in axis.get_legend().get_texts()]


def ticks(axis: Any) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def test_ratios_and_intervals_of_every_arm_at_every_load(cells: list[Cell]) -> None:
    (axis,) = plots.ratios_figure(cells, "title").axes
    assert axis.get_title(loc="left") == "title"
    assert labels(axis) == ARMS
    assert [name.partition("\n")[0] for name in ticks(axis.xaxis)] == ["1 request", "4 requests"]
    for container in axis.containers:
        ours = [cell for cell in cells if cell.arm == container.get_label()]
        points, _, (bars,) = container.lines
        ratios = [cell.standing.vs_best_fixed for cell in ours]
        assert points.get_ydata().tolist() == [ratio.value if ratio else 1.0 for ratio in ratios]
        assert [round(x) for x in points.get_xdata()] == [0, 1], "at its load"
        for (bottom, top), ratio in zip(bars.get_segments(), ratios, strict=True):
            ends = (ratio.low, ratio.high) if ratio else (1.0, 1.0)
            assert (bottom[1], top[1]) == pytest.approx(ends)


def test_arms_stand_side_by_side(cells: list[Cell]) -> None:
    (axis,) = plots.ratios_figure(cells, "title").axes
    places = [x for container in axis.containers for x in container.lines[0].get_xdata()]
    assert len(set(places)) == len(cells)


def test_steps_of_the_report(cells: list[Cell]) -> None:
    figure = plots.steps_figure(cells)
    assert [axis.get_title(loc="left") for axis in figure.axes] == [
        f"eagle3: {load}" for load in (ONE, FOUR)
    ]
    for axis, load in zip(figure.axes, (ONE, FOUR), strict=True):
        assert_steps(axis, cells, load)


def assert_steps(axis: Any, cells: list[Cell], load: Any) -> None:
    """Every recent round of SpecKV's blocks, one block after the other."""
    (speckv,) = (cell for cell in cells if (cell.condition, cell.arm) == (load, "speckv"))
    lines = [line for line in axis.lines if line.get_linestyle() == "-"]
    drawn = [line.get_ydata().tolist() for line in lines]
    assert drawn == [[steps for _, steps, _ in b.counters.recent] for b in speckv.blocks]
    times = np.concatenate([line.get_xdata() for line in lines])
    assert (np.diff(times) > 0).all()
    assert ticks(axis.yaxis) == ["3"]


def test_a_row_without_speckv_has_no_steps(cells: list[Cell]) -> None:
    figure = plots.steps_figure([cell for cell in cells if cell.arm != "speckv"])
    assert [axis.lines[:] for axis in figure.axes] == [[], []]


def test_accept_length_of_every_class() -> None:
    found = {"ema": {"code": 2.5, "question_answering": 1.5}, "speckv": {"code": 2.0}}
    (axis,) = plots.accept_figure(found).axes
    assert labels(axis) == ["ema", "speckv"]
    assert ticks(axis.xaxis) == ["code", "question answering"]
    heights = [[bar.get_height() for bar in bars] for bars in axis.containers]
    assert heights == [[2.5, 1.5], [2.0]]
    centres = [round(bar.get_x() + bar.get_width() / 2) for bar in axis.containers[0]]
    assert centres == [0, 1]


def test_calibration_of_every_arm() -> None:
    bins = {"eagle3 speckv": [(0.25, 0.3, 80), (0.9, 0.8, 20)], "other": [(0.5, 0.5, 1)]}
    (axis,) = plots.calibration_figure(bins).axes
    assert labels(axis) == ["eagle3 speckv", "other"]
    dots = [dots.get_offsets().tolist() for dots in axis.collections]
    assert dots == [[[0.25, 0.3], [0.9, 0.8]], [[0.5, 0.5]]]
    many, few = axis.collections[0].get_sizes()
    assert many > few


def test_svg_has_its_text_as_text_and_names_no_address(
    cells: list[Cell], closed: list[Any]
) -> None:
    text = plots.svg(plots.ratios_figure, cells, "a title")
    assert text.startswith("<svg") and text.rstrip().endswith("</svg>")
    assert all(f">{name}<" in text for name in ["a title", *ARMS])
    assert "http" not in text.replace("http://www.w3.org", "")
    assert len(closed) == 1
