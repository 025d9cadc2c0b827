"""Every policy at several draft costs, batch sizes and kinds of traffic, from one trace.

    python examples/replay_table.py examples/traces/eagle3 --out examples/results/replay-eagle3.json

The same recorded requests one at a time, and several at a time that share one depth, mixed and
label after label; first at the trace's own round times, then at assumed ones: a draft forward and
a further verified token, as shares of a target step. A minute or two, no GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from sglang_speckv.files import write_atomically
from sglang_speckv.progress import Screen
from sglang_speckv.provenance import provenance
from sglang_speckv.replay.report import to_json
from sglang_speckv.replay.run import ReplayOptions, run_replay

GROUPINGS = ((1, "mixed"), (4, "mixed"), (4, "phases"), (16, "mixed"), (16, "phases"))
SHOWN = ("throughput", "ema", "throughput_aware", "confidence", "oracle")


def main(
    traces: Annotated[list[Path], typer.Argument(help="Traces of one draft.")],
    out: Annotated[Path | None, typer.Option(help="Write all figures here.")] = None,
    draft_cost: Annotated[
        list[float] | None, typer.Option(help="Repeatable. [default: 0.05, 0.1, 0.2]")
    ] = None,
    verify_width: Annotated[float, typer.Option(help="A further verified token.")] = 0.02,
) -> None:
    """tok/s of each policy over the best static depth of that row, found with hindsight."""
    rows = []
    with Screen().status("replaying") as say:
        for cost in (None, *(draft_cost or (0.05, 0.1, 0.2))):
            for size, traffic in GROUPINGS:
                say(f"draft cost {cost or 'as recorded'}, {size} at a time, {traffic}")
                rows.append(_row(tuple(traces), cost, verify_width, size, traffic))
    result = {"provenance": provenance(), "rows": rows}
    if out is not None:
        text = msgspec.json.format(msgspec.json.encode(result), indent=1)
        write_atomically(out, lambda path: path.write_bytes(text))
    _print(rows)
    print(msgspec.json.encode({"rows": rows}).decode())


def _row(
    traces: tuple[Path, ...], cost: float | None, width: float, size: int, traffic: str
) -> dict[str, Any]:
    options = ReplayOptions(
        traces, draft_cost=cost, verify_width=width, regroup=size, traffic=traffic, complete=True
    )
    result = to_json(run_replay(options))
    arms = {
        arm["arm"]: {key: arm[key] for key in ("of_best_static", "regret", "steps")}
        for arm in result["arms"]
    }
    return {
        "draft_cost": cost,
        "verify_width": width,
        "batch": size,
        "traffic": traffic,
        "best_static": result["best_static"],
        "trace": result["trace"],
        "arms": arms,
    }


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="tok/s over the best static depth (with hindsight) [95 %]")
    for heading in ("draft cost", "batch", "traffic", "best static", *SHOWN):
        table.add_column(heading)
    for row in rows:
        ratios = (row["arms"][arm]["of_best_static"] for arm in SHOWN)
        table.add_row(
            "recorded" if row["draft_cost"] is None else f"{row['draft_cost']:g}",
            str(row["batch"]),
            row["traffic"],
            row["best_static"].removeprefix("static:"),
            *(f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, low, high in ratios),
        )
    console = Console()
    (console if console.is_terminal else Console(width=175)).print(table)


if __name__ == "__main__":
    typer.run(main)
