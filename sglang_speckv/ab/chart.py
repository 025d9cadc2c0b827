"""The chart: what each arm brought over the best fixed setting, by load."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sglang_speckv.ab.answer import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SPECKV = "#0f766e"
_NAMED = {"none": "#111827", "default": "#b45309", "ema": "#7c3aed"}
_METADATA = ("Creator", "Date", "Format", "Type")  # without them SVG names no address but its own


def svg(cells: Sequence[Record], title: str) -> str:
    """The chart of one draft and kind of traffic."""
    return as_svg(figure(cells, title))


def as_svg(chart: Figure) -> str:
    """Inline SVG, text as text; the same chart makes the same bytes."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "speckv"}):
        out = io.StringIO()
        chart.savefig(out, format="svg", metadata=dict.fromkeys(_METADATA))
    text = out.getvalue()
    return text[text.index("<svg") :]


def figure(cells: Sequence[Record], title: str) -> Figure:
    """tok/s of every arm over the best fixed setting's, by load, with intervals."""
    from matplotlib.figure import Figure

    chart = Figure(figsize=(9.5, 4.2), layout="constrained")
    axis = chart.subplots()
    loads = list(dict.fromkeys(cell["load"] for cell in cells))
    arms = list(dict.fromkeys(cell["arm"] for cell in cells))
    for i, arm in enumerate(arms):
        ours = [cell for cell in cells if cell["arm"] == arm and _ratio(cell) is not None]
        shift = 0.7 * (i / max(len(arms) - 1, 1) - 0.5)
        if ours:
            _draw(axis, arm, ours, [loads.index(cell["load"]) + shift for cell in ours])
    axis.axhline(1, color="0.6", linewidth=0.8)
    best = {load: max(c["tok_per_s"] for c in cells if c["load"] == load) for load in loads}
    axis.set_xticks(range(len(loads)), [f"{n}\n(most: {best[n]:.0f} tok/s)" for n in loads])
    axis.set_ylabel("tok/s over the best fixed setting")
    axis.set_title(title, loc="left", fontsize=11)
    axis.grid(axis="y", color="0.93")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    return chart


def _ratio(cell: Record) -> float | None:
    """The best fixed setting stands at 1, without an interval."""
    found: float | None = cell["vs_best_fixed"]
    return 1.0 if cell["best_fixed"] == cell["arm"] else found


def _draw(axis: Any, arm: str, cells: Sequence[Record], places: Sequence[float]) -> None:
    ratios = [_ratio(cell) or 0.0 for cell in cells]
    ends = [cell["interval"] or (at, at) for cell, at in zip(cells, ratios, strict=True)]
    bars = [
        [at - low for (low, _), at in zip(ends, ratios, strict=True)],
        [high - at for (_, high), at in zip(ends, ratios, strict=True)],
    ]
    mine = arm.startswith("speckv")
    axis.errorbar(
        places,
        ratios,
        yerr=bars,
        fmt="D" if mine else "o",
        markersize=7 if mine else 5,
        color=_color(arm),
        capsize=2,
        linewidth=1,
        label=arm,
    )


def _color(arm: str) -> Any:
    """Deeper drafts are darker."""
    import matplotlib

    base = arm.partition("#")[0]
    if base.startswith("speckv"):
        return _SPECKV
    steps = base.partition(":")[2].partition("x")[0]
    depth = min(int(steps), 8) if steps.isdigit() else 0
    return _NAMED.get(base) or matplotlib.colormaps["Blues"](0.35 + 0.07 * depth)
