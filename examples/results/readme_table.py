"""Print tables of README and docs/results.md from committed results.

Usage: python examples/results/readme_table.py examples/results/{demo-cpu,signals}.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from sglang_speckv.ab.tables import markdown, of_best_fixed, over
from sglang_speckv.ab.tables import tables as ab_tables

SIGNALS = (
    "first-token probability",
    "first-token entropy",
    "mean confidence of the window",
    "min confidence of the window",
    "accepted length",
)

RUNS = {
    "demo-cpu": ("demo", "load moves between 1 and 4 requests"),
    "ab-cpu-sweep": ("sweep", "1, 4 and 16 requests"),
    "ab-cpu-held-out": ("other prompts", "1, 4 and 16 requests"),
    "ab-cpu-trees": ("with trees", "1, 4 and 16 requests"),
}
OURS = {"speckv": "", "speckv:topk4": ", trees"}
DRAFTS = {"eagle3": "EAGLE-3 head", "standalone": "separate draft"}


def summary(folder: Path) -> str:
    """SpecKV over all loads of each run and draft, a line each."""
    lines = [
        "| run | of the best fixed depth | of SGLang's rule | of no draft |",
        "| :-- | --: | --: | --: |",
    ]
    for name, (run, load) in RUNS.items():
        result = json.loads((folder / f"{name}.json").read_text())
        for title, _, records in ab_tables(result):
            for speckv in (record for record in records if record["arm"] in OURS):
                if title.endswith("all loads"):
                    draft = DRAFTS[title.partition(",")[0].lower()] + OURS[speckv["arm"]]
                    cells = [of_best_fixed(speckv), _of_rule(speckv), over("none")(speckv)]
                    link = f"[{run}](examples/results/{name}.json)"
                    lines.append(f"| {link}, {draft}, {load} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _of_rule(record: dict[str, Any]) -> str:
    """Over SGLang's own, or over it as restated here where SGLang has none."""
    return over("ema" if "ema" in record["over"] else "speckv:ema")(record)


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
    """What docs/results.md shows of one file: the tables of a ``speckv ab``, or signals."""
    if "cells" not in result:
        return [signals_table(result)]
    return [markdown(columns, records) for _, columns, records in ab_tables(result)]


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(*tables(json.loads(Path(name).read_text())), sep="\n\n")
