"""Print the README's tables from committed results.

Usage: python examples/results/readme_table.py examples/results/{demo-cpu,signals,ab-cpu-sweep}.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HEADER = (
    "| draft | requests at a time | arm | tok/s | of the best fixed depth | accept length "
    "| accept rate | rounds per depth |\n|---|---|---|---|---|---|---|---|"
)


def table(result: dict[str, Any]) -> str:
    """A Markdown table with one row per cell."""
    return "\n".join([HEADER, *(_row(cell) for cell in result["cells"])])


def sweep_table(result: dict[str, Any]) -> str:
    """Every load of a sweep as one setting, a row per draft, traffic and arm."""
    lines = [
        "| draft | traffic | best single depth, headroom | arm | of it | of the headroom "
        "| worst load against its own best |",
        "|---|---|---|---|---|---|---|",
    ]
    for draft, sweeps in result["sweep"].items():
        for traffic, sweep in sweeps.items():
            whole = f"`{sweep['best_single_static']}`, {sweep['headroom']:.3f}"
            for arm in ("none", "default", "ema", "speckv"):
                if arm in sweep:
                    lines.append(_standing(draft, traffic, whole, arm, sweep[arm]))
    return "\n".join(lines)


def _standing(draft: str, traffic: str, whole: str, arm: str, of: dict[str, Any]) -> str:
    captured = of.get("captured") if arm == "speckv" else None
    columns = [
        draft,
        traffic,
        whole,
        f"`{arm}`",
        _within(of["vs_best_single_static"], of["vs_best_single_static_interval"]),
        _number(captured, "{:.0%}"),
        _within(of["worst_cell_vs_best_static"], of["worst_cell_interval"]),
    ]
    return f"| {' | '.join(columns)} |"


def _within(value: float, interval: list[float] | None) -> str:
    return (
        f"{value:.2f}"
        if interval is None
        else f"{value:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"
    )


SIGNALS = (
    "first-token probability",
    "first-token entropy",
    "mean confidence of the window",
    "min confidence of the window",
    "accepted length",
)


def signals_table(result: dict[str, Any]) -> str:
    """r and AUC of each signal at lag 0 and 1, a column pair per draft."""
    drafts = result["drafts"]
    names = [draft["draft"].partition("-")[0] for draft in drafts]
    head = "".join(f" {name}, same round | {name}, a round later |" for name in names)
    lines = [f"| signal |{head}", "|---|" + "---|" * (2 * len(drafts))]
    for signal in SIGNALS:
        cells = [_signal(draft["rows"], signal, lag) for draft in drafts for lag in (0, 1)]
        lines.append(f"| {signal} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _signal(rows: list[dict[str, Any]], signal: str, lag: int) -> str:
    for row in rows:
        if (row["signal"], row["lag"]) == (signal, lag):
            return f"{row['r']:+.2f}, {row['auc']:.2f}"
    return "-"


def _row(cell: dict[str, Any]) -> str:
    low, high = cell["ratio_interval"] or (None, None)
    interval = "" if low is None else f" [{low:.2f}, {high:.2f}]"
    columns = [
        cell["draft"],
        str(cell["concurrency"]),
        f"`{cell['arm']}`",
        f"{cell['tok_per_s']:.1f}",
        f"{cell['ratio_to_best_static']:.2f}{interval}",
        _number(cell["accept_length"], "{:.2f}"),
        _number(cell["accept_rate"], "{:.0%}"),
        _shares(cell["steps"]),
    ]
    return f"| {' | '.join(columns)} |"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _shares(steps: dict[str, float] | None) -> str:
    if steps is None:
        return "-"
    return ", ".join(f"{step}: {share:.0%}" for step, share in steps.items() if share >= 0.005)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        found = json.loads(Path(name).read_text())
        makers = (table, sweep_table) if "cells" in found else (signals_table,)
        print(*(make(found) for make in makers), sep="\n\n")
