"""The tables of examples/models/README.md, written from the result of `measure`.

    python -m examples.train_drafts.tables --results examples/results/drafts.json \
        --readme examples/models/README.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

START, END = "<!-- from drafts.json -->\n", "<!-- end -->\n"


def row(cells: list[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |\n"


def positions_table(result: dict) -> str:
    """Draft, class and position, on the target as it is."""
    first = result["cells"][0]["level"]
    steps = range(1, result["num_steps"] + 1)
    text = row(["draft", "class", "accept length", *(f"position {k}" for k in steps), "rounds"])
    text += row(["---"] * (len(steps) + 4))
    for cell in result["cells"]:
        if cell["level"] == first:
            for kind, c in sorted(cell["classes"].items()):
                rates = [f"{r:.2f}" for r in c["accept_rate_per_position"]]
                text += row([cell["draft"], kind, f"{c['accept_length']:.2f}", *rates, c["rounds"]])
    return text


def levels_table(result: dict) -> str:
    """Accept length per level of compression, over the same prompts."""
    levels = list(dict.fromkeys(c["level"] for c in result["cells"]))
    per_draft: dict[str, dict[str, str]] = {}
    for cell in result["cells"]:
        length = cell["compared"]["all"]["accept_length"]
        per_draft.setdefault(cell["draft"], {})[cell["level"]] = f"{length:.2f}"
    text = row(["draft", *levels]) + row(["---"] * (len(levels) + 1))
    for draft, found in per_draft.items():
        text += row([draft, *(found.get(level, "") for level in levels)])
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--readme", type=Path, required=True)
    args = parser.parse_args()
    result = json.loads(args.results.read_text())
    before, rest = args.readme.read_text().split(START)
    _, after = rest.split(END)
    tables = positions_table(result) + "\n" + levels_table(result)
    args.readme.write_text(before + START + "\n" + tables + "\n" + END + after)


if __name__ == "__main__":
    main()
