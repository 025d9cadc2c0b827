"""Print the README's tables from committed results.

Usage: python examples/results/readme_table.py examples/results/{demo-cpu,signals}.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from sglang_speckv.ab.tables import markdown
from sglang_speckv.ab.tables import tables as ab_tables

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


def tables(result: dict[str, Any]) -> list[str]:
    """What a README shows of one file: the tables of a ``speckv ab``, or signals."""
    if "cells" not in result:
        return [signals_table(result)]
    return [markdown(columns, records) for _, columns, records in ab_tables(result)]


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(*tables(json.loads(Path(name).read_text())), sep="\n\n")
