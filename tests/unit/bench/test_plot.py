"""Pictures show what was measured: every arm, every load, the values and their intervals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from sglang_speckv.bench import plot
from sglang_speckv.bench.cells import Cell, cells_for
from tests.unit.bench.test_cells import FOUR, ONE, ran

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
    return [cell for load in (ONE, FOUR) for cell in cells_for("eagle3", ran(load), {})]


def labels(axis: Any) -> list[str]:
    return [text.get_text() for text in axis.get_legend().get_texts()]


def ticks(axis: Any) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def has_color(picture: Path, color: str) -> bool:
    pixels = plt.imread(picture)[..., :3]
    return bool((abs(pixels - to_rgb(color)).max(axis=-1) < 0.01).any())


def test_ratios_and_intervals_of_every_arm_at_every_load(cells: list[Cell]) -> None:
    (axis,) = plot.rates_figure(cells, "title").axes
    assert axis.get_title(loc="left") == "title"
    assert labels(axis) == ARMS
    assert [name.partition("\n")[0] for name in ticks(axis.xaxis)] == ["1 at a time", "4 at a time"]
    for container in axis.containers:
        ours = [cell for cell in cells if cell.arm == container.get_label()]
        points, _, (bars,) = container.lines
        assert points.get_ydata().tolist() == [cell.ratio.value for cell in ours]
        assert [round(x) for x in points.get_xdata()] == [0, 1], "at its load"
        for (bottom, top), cell in zip(bars.get_segments(), ours, strict=True):
            assert (bottom[1], top[1]) == pytest.approx((cell.ratio.low, cell.ratio.high))


def test_arms_stand_side_by_side(cells: list[Cell]) -> None:
    (axis,) = plot.rates_figure(cells, "title").axes
    places = [x for container in axis.containers for x in container.lines[0].get_xdata()]
    assert len(set(places)) == len(cells)


def test_steps_over_time_and_rates_of_a_demo(
    cells: list[Cell], tmp_path: Path, closed: list[Any]
) -> None:
    plot.draw(cells, tmp_path / "steps.png", "title")
    (figure,) = closed
    assert figure.get_suptitle() == "title"
    assert len(figure.axes) == 4, "two loads, steps and rates"
    for left, right, load in zip(figure.axes[::2], figure.axes[1::2], (ONE, FOUR), strict=True):
        assert left.get_title(loc="left").startswith(f"eagle3, {load}: draft steps")
        assert_steps(left, cells, load)
        ours = [cell for cell in cells if cell.condition == load][::-1]
        (bars,) = right.containers
        assert ticks(right.yaxis) == ARMS[::-1]
        assert [bar.get_width() for bar in bars] == [cell.tok_per_s for cell in ours]
        assert [text.get_text() for text in right.texts] == [f"{c.tok_per_s:.1f}" for c in ours]
        dark = [bar.get_facecolor()[:3] == to_rgb(plot._BEST) for bar in bars]
        assert [cell.arm for cell, best in zip(ours, dark, strict=True) if best] == ["static:3"]
    assert has_color(tmp_path / "steps.png", plot._SPECKV)


def test_steps_of_the_report(cells: list[Cell]) -> None:
    figure = plot.steps_figure(cells)
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
    figure = plot.steps_figure([cell for cell in cells if cell.arm != "speckv"])
    assert [axis.lines[:] for axis in figure.axes] == [[], []]


def test_accept_length_of_every_class() -> None:
    found = {"ema": {"code": 2.5, "question_answering": 1.5}, "speckv": {"code": 2.0}}
    (axis,) = plot.accept_figure(found).axes
    assert labels(axis) == ["ema", "speckv"]
    assert ticks(axis.xaxis) == ["code", "question answering"]
    heights = [[bar.get_height() for bar in bars] for bars in axis.containers]
    assert heights == [[2.5, 1.5], [2.0]]
    centres = [round(bar.get_x() + bar.get_width() / 2) for bar in axis.containers[0]]
    assert centres == [0, 1]


def test_calibration_of_every_arm() -> None:
    bins = {"eagle3 speckv": [(0.25, 0.3, 80), (0.9, 0.8, 20)], "other": [(0.5, 0.5, 1)]}
    (axis,) = plot.calibration_figure(bins).axes
    assert labels(axis) == ["eagle3 speckv", "other"]
    dots = [dots.get_offsets().tolist() for dots in axis.collections]
    assert dots == [[[0.25, 0.3], [0.9, 0.8]], [[0.5, 0.5]]]
    many, few = axis.collections[0].get_sizes()
    assert many > few


def test_svg_has_its_text_as_text_and_names_no_address(
    cells: list[Cell], closed: list[Any]
) -> None:
    text = plot.svg(plot.rates_figure, cells, "a title")
    assert text.startswith("<svg") and text.rstrip().endswith("</svg>")
    assert all(f">{name}<" in text for name in ["a title", *ARMS])
    assert "http" not in text.replace("http://www.w3.org", "")
    assert len(closed) == 1
