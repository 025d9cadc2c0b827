"""Print the README's table from a committed demo result.

Usage: python examples/results/readme_table.py examples/results/demo-cpu.json
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
    print(table(json.loads(Path(sys.argv[1]).read_text())))
