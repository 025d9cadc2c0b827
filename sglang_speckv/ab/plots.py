"""Pictures: what each arm brought at which load, and what SpecKV chose while it served."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from sglang_speckv.ab.intervals import Ratio
from sglang_speckv.ab.verdict import Cell

_SPECKV = "#0f766e"
_METADATA = ("Creator", "Date", "Format", "Type")  # without them SVG names no address but its own
_NAMED = {"none": "#111827", "default": "#b45309", "ema": "#7c3aed"}


def svg(make: Callable[..., Any], *args: Any) -> str:
    """A figure as inline SVG, text as text."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "speckv"}):
        figure = make(*args)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata=dict.fromkeys(_METADATA))
    _close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :]


def steps_figure(cells: Sequence[Cell]) -> Any:
    """Only the choices, one row per draft and load."""
    plt = _pyplot()
    rows = list(dict.fromkeys((cell.draft, cell.condition) for cell in cells))
    figure, axes = plt.subplots(
        len(rows), 1, figsize=(11, 1.7 * len(rows) + 0.6), squeeze=False, layout="constrained"
    )
    for (axis,), key in zip(axes, rows, strict=True):
        row = [cell for cell in cells if (cell.draft, cell.condition) == key]
        draw_steps(axis, row, f"{key[0]}: {key[1]}")
    axes[-1][0].set_xlabel("seconds of decoding under SpecKV (dotted: next block of prompts)")
    return figure


def ratios_figure(cells: Sequence[Cell], title: str) -> Any:
    """tok/s of every arm over the best fixed setting's, by load, with intervals."""
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(9.5, 4.2), layout="constrained")
    loads = list(dict.fromkeys(cell.condition for cell in cells))
    arms = list(dict.fromkeys(cell.arm for cell in cells))
    for i, arm in enumerate(arms):
        found = [cell for cell in cells if cell.arm == arm and _ratio(cell)]
        shift = 0.7 * (i / max(len(arms) - 1, 1) - 0.5)
        _draw_arm(axis, arm, found, [loads.index(cell.condition) + shift for cell in found])
    axis.axhline(1, color="0.6", linewidth=0.8)
    best = {load: max(c.tok_per_s for c in cells if c.condition == load) for load in loads}
    names = [f"{load.load}\n(most: {best[load]:.0f} tok/s)" for load in loads]
    axis.set_xticks(range(len(loads)), names)
    axis.set_ylabel("tok/s over the best fixed setting")
    axis.set_title(title, loc="left", fontsize=11)
    axis.grid(axis="y", color="0.93")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    return figure


def _ratio(cell: Cell) -> Ratio | None:
    """The best fixed setting stands at 1, without an interval."""
    return Ratio(1.0) if cell.standing.best_fixed == cell.arm else cell.standing.vs_best_fixed


def accept_figure(by_class: dict[str, dict[str, float]]) -> Any:
    """Accept length by class of prompt; ``by_class`` is arm -> class -> accept length."""
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(11, 3.6), layout="constrained")
    kinds = sorted({kind for found in by_class.values() for kind in found})
    width = 0.8 / max(len(by_class), 1)
    for i, (arm, found) in enumerate(by_class.items()):
        places = [kinds.index(kind) - 0.4 + width * (i + 0.5) for kind in found]
        axis.bar(places, list(found.values()), width * 0.92, color=_color(arm, i), label=arm)
    axis.set_xticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds])
    axis.set_ylabel("accept length (bonus included)")
    axis.axhline(1, color="0.6", linewidth=0.8)
    axis.set_ylim(bottom=0.9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    return figure


def calibration_figure(bins: dict[str, Sequence[tuple[float, float, float]]]) -> Any:
    """Predicted against true acceptance of a draft; ``bins`` are arm -> (mean prediction, share
    accepted, drafts), a dot's area its drafts."""
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(7, 4.6), layout="constrained")
    axis.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    for i, (name, found) in enumerate(bins.items()):
        predicted, accepted, drafts = zip(*found, strict=True)
        sizes = [10 + 150 * n / max(drafts) for n in drafts]
        axis.scatter(predicted, accepted, s=sizes, alpha=0.6, color=f"C{i}", label=name)
    axis.set_xlabel("predicted probability that a draft is accepted")
    axis.set_ylabel("share accepted")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def draw_steps(axes: Any, row: Sequence[Cell], title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylabel("steps")
    speckv = next((cell for cell in row if cell.arm.startswith("speckv")), None)
    if speckv is None:
        return
    offset = 0.0
    for result in speckv.blocks:
        recent = result.counters.recent if result.counters else ()
        if not recent:
            continue
        times = [offset + moment - recent[0][0] for moment, *_ in recent]
        steps = [num_steps for _, num_steps, *_ in recent]
        axes.step(times, steps, where="post", color=_SPECKV, linewidth=0.9)
        offset = times[-1] + (times[-1] - times[0]) / len(times)
        axes.axvline(offset, color="0.8", linestyle=":", linewidth=0.8)
    counters = speckv.counters
    axes.set_yticks(sorted(int(tier) for tier in counters.rounds) if counters else [])
    axes.grid(axis="y", color="0.93")
    axes.margins(x=0.01, y=0.08)


def _draw_arm(axis: Any, arm: str, cells: Sequence[Cell], places: Sequence[float]) -> None:
    if not cells:
        return
    ratios = [found for cell in cells if (found := _ratio(cell)) is not None]
    low = [r.value - (r.value if r.low is None else r.low) for r in ratios]
    high = [(r.value if r.high is None else r.high) - r.value for r in ratios]
    mine = arm.startswith("speckv")
    axis.errorbar(
        places,
        [r.value for r in ratios],
        yerr=[low, high],
        fmt="D" if mine else "o",
        markersize=7 if mine else 5,
        color=_color(arm, _steps_of(arm)),
        capsize=2,
        linewidth=1,
        label=arm,
    )


def _steps_of(arm: str) -> int:
    """The K of ``static:K`` or ``fresh:K``, else 0."""
    steps = arm.partition(":")[2].partition("#")[0]
    return int(steps) if steps.isdigit() else 0


def _color(arm: str, number: int) -> Any:
    if arm.startswith("speckv"):
        return _SPECKV
    named = _NAMED.get(arm.partition("#")[0])
    if named is not None:
        return named
    return _pyplot().get_cmap("Blues")(0.35 + 0.07 * min(number, 8))


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _close(figure: Any) -> None:
    _pyplot().close(figure)
