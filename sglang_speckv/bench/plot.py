"""The demo's picture: what SpecKV chose while it served, and what it brought."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sglang_speckv.bench.report import Cell, total_counters

_SPECKV, _OTHER, _BEST = "#0f766e", "#b8c4cc", "#64748b"


def draw(cells: Sequence[Cell], path: Path, title: str) -> None:
    """One row per draft and concurrency: steps over time on the left, tok/s on the right."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = list(dict.fromkeys((cell.draft, cell.concurrency) for cell in cells))
    figure, axes = plt.subplots(
        len(rows),
        2,
        figsize=(12, 2.5 * len(rows) + 0.8),
        width_ratios=(2.4, 1),
        squeeze=False,
        layout="constrained",
    )
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    for (left, right), (draft, concurrency) in zip(axes, rows, strict=True):
        row = [cell for cell in cells if (cell.draft, cell.concurrency) == (draft, concurrency)]
        draw_steps(left, row, f"{draft}, concurrency {concurrency}: draft steps chosen by SpecKV")
        draw_rates(right, row)
    axes[-1][0].set_xlabel("seconds of decoding under SpecKV (dotted: next block of prompts)")
    axes[-1][1].set_xlabel("tok/s (dark: best fixed depth)")
    figure.savefig(path, dpi=130, format="png")
    plt.close(figure)


def draw_steps(axes: Any, row: Sequence[Cell], title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylabel("steps")
    speckv = next((cell for cell in row if cell.arm == "speckv"), None)
    if speckv is None:
        return
    offset = 0.0
    for result in speckv.blocks:
        recent = result.counters.recent if result.counters else ()
        if not recent:
            continue
        times = [offset + moment - recent[0][0] for moment, _, _ in recent]
        steps = [num_steps for _, num_steps, _ in recent]
        axes.step(times, steps, where="post", color=_SPECKV, linewidth=0.9)
        offset = times[-1] + (times[-1] - times[0]) / len(times)
        axes.axvline(offset, color="0.8", linestyle=":", linewidth=0.8)
    counters = total_counters(speckv.blocks)
    axes.set_yticks(sorted(int(tier) for tier in counters.rounds) if counters else [])
    axes.grid(axis="y", color="0.93")
    axes.margins(x=0.01, y=0.08)


def draw_rates(axes: Any, row: Sequence[Cell]) -> None:
    cells = list(row)[::-1]
    static = [cell.tok_per_s for cell in cells if cell.arm.startswith("static:")]
    best = max(static, default=None)
    colors = [
        _SPECKV if cell.arm == "speckv" else _BEST if cell.tok_per_s == best else _OTHER
        for cell in cells
    ]
    bars = axes.barh([cell.arm for cell in cells], [cell.tok_per_s for cell in cells], color=colors)
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.14)
