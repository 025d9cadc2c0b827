"""Real acceptance under other round times: what each policy would give there. A projection, never
a measurement.

    python examples/gpu/project.py examples/positions/eagle3.safetensors --cost out/gpu/cost.eagle3.plain.512.json --cost out/gpu/cost.eagle3.fp8.512.json --batch 1 --batch 16 --out out/gpu/projection.json

The positions say what would be accepted (`examples/record_positions.py` makes them); each table of
`cost_curves.py` says what rounds cost on a larger model. The pair of the positions is not the pair
of the table: real drafts of that size may be accepted more or less often.
"""  # noqa: E501

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))

from examples.gpu.observe import OutFile, finish, machine, run
from sglang_speckv.ab.answer import shown
from sglang_speckv.config import parse_steps
from sglang_speckv.progress import Screen
from sglang_speckv.replay.report import to_json
from sglang_speckv.replay.run import ReplayOptions, run_replay

WHAT = "a projection, never a measurement: real acceptance under round times of other models"


def project(options: ReplayOptions) -> dict[str, Any]:
    """One replay, with what it says of each arm."""
    told = to_json(run_replay(options))
    (cell,) = told["cells"]
    keys = ("arm", "rate", "vs_best_fixed", "interval", "accept_length", "steps", "hindsight")
    return {
        "cost": str(options.cost),
        "batch": cell["requests"],
        "unit": told["cost"]["unit"],
        "source": told["source"],
        "best_fixed": cell["best_fixed"],
        "arms": [{key: arm[key] for key in keys} for arm in cell["arms"]],
        "notes": told["notes"],
    }


def show(projections: list[dict[str, Any]]) -> None:
    """Every arm's share of the best fixed depth, on stderr: stdout is for the JSON line."""
    table = Table("costs", "batch", "arm", "tok/s", "of the best fixed", title=WHAT)
    for one in projections:
        for arm in one["arms"]:
            cost, ratio = Path(one["cost"]).name, shown(arm["vs_best_fixed"], arm["interval"])
            table.add_row(cost, str(one["batch"]), arm["arm"], f"{arm['rate']:.4g}", ratio)
    console = Console(stderr=True)
    (console if console.is_terminal else Console(stderr=True, width=150)).print(table)


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    positions: Annotated[Path, typer.Argument(help="Positions of one draft.")],
    cost: Annotated[list[Path], typer.Option(help="Table of cost_curves.py; repeatable.")],
    batch: Annotated[
        list[int] | None, typer.Option(help="Requests at a time; repeatable. [default: 1, 16]")
    ] = None,
    candidate_steps: Annotated[str | None, typer.Option(help="Depths to choose from.")] = None,
    lag: Annotated[
        int, typer.Option(help="Decisions that results come late by: 1 under overlap.")
    ] = 1,
    out: OutFile = None,
) -> None:
    """Replay under given round times; the last line is one JSON object."""
    screen, projections = Screen(), []
    for table in cost:
        for size in batch or (1, 16):
            screen.say(f"{table.name}, {size} at a time")
            options = ReplayOptions(
                paths=(positions,),
                cost=table,
                requests=(size,),
                candidate_steps=parse_steps(candidate_steps) if candidate_steps else None,
                lag=lag,
            )
            projections.append(project(options))
    show(projections)
    finish({"what": WHAT, "projections": projections, "provenance": machine()}, out)


if __name__ == "__main__":
    run(app, "project")
