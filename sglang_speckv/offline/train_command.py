"""``speckv train``: what recorded rounds teach, as an artifact to serve with.

speckv serve ... --speckv --speckv-policy static:7 --speckv-trace traces/
speckv train traces/ -o artifact.safetensors
speckv serve ... --speckv artifact.safetensors
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from sglang_speckv.offline.artifact import Artifact


def train_command(
    traces: Annotated[
        list[Path], typer.Argument(help="Directories or files (*.jsonl.gz) of --speckv-trace.")
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Artifact file, *.safetensors; an older one is replaced."),
    ],
    json: Annotated[bool, typer.Option("--json", help="Only the JSON line on stdout.")] = False,
) -> None:
    """Learn acceptance, round times and the paper's predictor from recorded rounds.

    A fifth of the prompts is held out and the printed figures are of those; the artifact is then
    fitted to all. Acceptance is best learned from rounds of the deepest step count (record with
    --speckv-policy static:7), round times from several depths and loads: give several traces.
    """
    from sglang_speckv.offline.artifact import check_target, save_artifact
    from sglang_speckv.offline.train import train
    from sglang_speckv.progress import Screen

    check_target(out)
    with Screen().status("reading the trace") as say:
        artifact = train(traces, say)
    save_artifact(artifact, out)
    if not json:
        from rich.console import Console

        console = Console()
        _print(artifact, console if console.is_terminal else Console(width=110))
    import msgspec

    print(msgspec.json.encode(_summary(artifact, out)).decode())


def _summary(artifact: Artifact, out: Path) -> dict[str, Any]:
    return {
        "artifact": str(out),
        "identity": artifact.identity,
        **{key: artifact.provenance[key] for key in ("records", "rounds", "prompts", "held_out")},
        "cost": _cost_rows(artifact),
        "mlp": artifact.mlp is not None,
    }


def _cost_rows(artifact: Artifact) -> list[dict[str, float]]:
    cost = artifact.cost
    if cost is None:
        return []
    columns = (cost.batch_size, cost.num_steps, cost.seconds.round(6), cost.rounds)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [
        {"batch_size": size, "num_steps": steps, "seconds": seconds, "rounds": int(rounds)}
        for size, steps, seconds, rounds in rows
    ]


def _print(artifact: Artifact, console: Console) -> None:
    from rich.table import Table

    held_out = artifact.provenance["held_out"]
    console.print(
        f"learned from {artifact.provenance['records']:,} records of "
        f"{artifact.provenance['prompts']:,} prompts; figures of {held_out['prompts']} held-out "
        "prompts",
        highlight=False,
    )
    table = Table(title="P(the first k drafts are accepted), held out", title_style="bold")
    for heading in ("k", "drafts", "accepted", "log loss", "of a constant", "Brier"):
        table.add_column(heading, justify="right")
    table.add_column("of a constant", justify="right")
    table.add_column("calibration error", justify="right")
    for row in held_out["acceptance"]["depths"]:
        table.add_row(*(str(value) for value in row.values()))
    console.print(table)
    area, mlp = held_out["acceptance"]["auc_first_prob"], held_out["mlp"]
    console.print(f"AUC of the first draft's probability: {'unknown' if area is None else area}")
    console.print(
        "the paper's predictor: not trained (too few rounds with signals)"
        if mlp is None
        else f"the paper's predictor: r = {mlp['correlation']}, mean squared error {mlp['mse']} "
        f"(of a constant {mlp['mse_constant']})"
    )
    _print_cost(artifact, console)


def _print_cost(artifact: Artifact, console: Console) -> None:
    from rich.table import Table

    rows = _cost_rows(artifact)
    table = Table(title="milliseconds per round (rounds measured)", title_style="bold")
    table.add_column("batch size", justify="right")
    steps = sorted({int(row["num_steps"]) for row in rows})
    for k in steps:
        table.add_column(f"depth {k}", justify="right")
    cells = {(row["batch_size"], row["num_steps"]): row for row in rows}
    for size in sorted({size for size, _ in cells}):
        found = [cells.get((size, k)) for k in steps]
        table.add_row(
            f"{size:g}",
            *(f"{1e3 * c['seconds']:.1f} ({c['rounds']:g})" if c else "-" for c in found),
        )
    console.print(table if rows else "no round has a time, so there is no cost table")
