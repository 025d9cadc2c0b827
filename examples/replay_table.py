"""Every policy at several prices of drafting, loads and kinds of traffic, walked.

    python examples/replay_table.py examples/positions/eagle3.safetensors \\
        --cost examples/traces/eagle3 --out examples/results/replay-eagle3.json

First at the round times of an engine's trace, then at assumed ones: a draft forward and a further
verified token, as shares of a target step. Some minutes, no GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from sglang_speckv.files import write_json
from sglang_speckv.offline.records import trace_hashes
from sglang_speckv.progress import Screen
from sglang_speckv.provenance import provenance
from sglang_speckv.replay.report import of_best, to_json
from sglang_speckv.replay.run import ReplayOptions, run_replay

LOADS = (1, 2, 4, 16)
ONE_DEPTH = "throughput,stop=off,width=off"
"""The default policy where rounds do not change while they run."""
SHOWN = ("throughput", ONE_DEPTH, "ema", "throughput_aware", "confidence", "oracle")


def main(
    positions: Annotated[Path, typer.Argument(help="Positions of one draft.")],
    cost: Annotated[Path | None, typer.Option(help="A trace of the pair, for round times.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write all figures here.")] = None,
    draft_cost: Annotated[
        list[float] | None, typer.Option(help="Repeatable. [default: 0.05, 0.1, 0.2]")
    ] = None,
    verify_width: Annotated[float, typer.Option(help="A further verified token.")] = 0.02,
    seeds: Annotated[int, typer.Option(help="Orders of the requests.")] = 4,
    passes: Annotated[int, typer.Option(help="Times through all of them.")] = 4,
) -> None:
    """tok/s of each policy over the best fixed depth of that row, found with hindsight."""
    rows = []
    prices = [*([None] if cost else []), *(draft_cost or (0.05, 0.1, 0.2))]
    with Screen().status("replaying") as say:
        for price in prices:
            for traffic in ("mixed", "phases"):
                say(f"draft cost {price or 'as recorded'}, {traffic}")
                options = ReplayOptions(
                    (positions,),
                    SHOWN[:-1],
                    cost=cost if price is None else None,
                    draft_cost=price,
                    verify_width=0.0 if price is None else verify_width,
                    requests=LOADS if traffic == "mixed" else LOADS[2:],
                    traffic=traffic,
                    seeds=seeds,
                    passes=passes,
                    jobs=0,
                )
                rows += rows_of(options)
    result = {
        "provenance": provenance(),
        "positions": trace_hashes([positions]),
        "cost": trace_hashes([cost] if cost else []),
        "seeds": seeds,
        "passes": passes,
        "rows": rows,
    }
    if out is not None:
        write_json(out, result)
    _print(rows)
    print(msgspec.json.encode({"rows": rows}).decode())


def rows_of(options: ReplayOptions) -> list[dict[str, Any]]:
    keys = ("vs_best_fixed", "interval", "of_oracle", "steps")
    return [
        {
            "draft_cost": options.draft_cost,
            "verify_width": options.verify_width,
            "requests": cell["requests"],
            "traffic": options.traffic,
            "best_fixed": cell["best_fixed"],
            "arms": {arm["arm"]: {key: arm[key] for key in keys} for arm in cell["arms"]},
        }
        for cell in to_json(run_replay(options))["cells"]
    ]


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="tok/s over the best fixed depth (with hindsight) [95 %]")
    for heading in ("draft cost", "requests", "traffic", "best fixed", *SHOWN):
        table.add_column(heading)
    for row in rows:
        arms = (row["arms"][arm] for arm in SHOWN)
        table.add_row(
            "recorded" if row["draft_cost"] is None else f"{row['draft_cost']:g}",
            str(row["requests"]),
            row["traffic"],
            row["best_fixed"].removeprefix("static:"),
            *map(of_best, arms),
        )
    console = Console()
    (console if console.is_terminal else Console(width=175)).print(table)


if __name__ == "__main__":
    typer.run(main)
