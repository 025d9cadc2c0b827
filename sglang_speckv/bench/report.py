"""The terminal's tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from sglang_speckv.bench.cells import Cell
from sglang_speckv.bench.compare import Outcome
from sglang_speckv.bench.judgement import Check, Judgement
from sglang_speckv.bench.lossless import Verdict
from sglang_speckv.bench.sweep import WORTH_CHOOSING, Sweep

FOOTNOTE = (
    "tok/s: output tokens per second while the load is whole (until a block first has fewer "
    "requests than run at a time).\nvs best static: tok/s over the best static arm, `none` "
    "included, of the same draft and load, with a 95 % interval\n(paired bootstrap over blocks and "
    "over prompts, the wider one; the best is picked anew in each resample).\naccept rate: correct "
    "/ proposed drafts; SGLang's own figure is wrong while steps change, so ema has none.\n"
    "lossless: greedy answers equal those without drafting token by token, ties of the target "
    "(top-2 gap under 1e-3)\naside."
)
OPEN_LOOP = (
    "Under a rate, tok/s is output tokens over the time that requests took, not over wall time, "
    "which the arrivals set."
)


def print_tables(cells: Sequence[Cell], console: Console) -> None:
    """One table per draft and condition, and what the columns mean."""
    for key in dict.fromkeys((cell.draft, cell.condition) for cell in cells):
        console.print(_table([cell for cell in cells if (cell.draft, cell.condition) == key]))
    console.print(FOOTNOTE, style="dim", highlight=False)
    if any(cell.condition.rate for cell in cells):
        console.print(OPEN_LOOP, style="dim", highlight=False)


def print_judgement(found: Judgement, outcome: Outcome, console: Console) -> None:
    """Headroom first, then arms over the whole sweep, every cell, noise, servers, failures."""
    for sweep in found.sweeps:
        console.print(headroom_line(sweep), highlight=False, markup=False)
        console.print(_sweep_table(sweep))
    print_tables(found.cells, console)
    for check in found.checks:
        console.print(check_line(check), highlight=False, markup=False)
    for name, facts in outcome.facts.items():
        if facts.ready_s is not None:
            memory = f", {facts.peak_memory / 1e9:.1f} GB" if facts.peak_memory else ""
            console.print(f"server {name}: up after {facts.ready_s:.0f} s{memory}", markup=False)
    for name, reason in outcome.failures.items():
        console.print(f"out of the comparison, {name}: {reason}", style="red", markup=False)


def headroom_line(sweep: Sweep) -> str:
    """What choosing per cell could bring at most."""
    if sweep.headroom is None:
        return f"{sweep.draft}, {sweep.traffic}: no static arm, so there is no headroom to tell"
    small = "" if sweep.headroom.value >= WORTH_CHOOSING else "; too little to share"
    return (
        f"{sweep.draft}, {sweep.traffic}: headroom {sweep.headroom} (the best static arm of each "
        f"cell over the best single one, {sweep.best_single}){small}"
    )


def check_line(check: Check) -> str:
    verdict = {True: "within noise", False: "NOT within noise", None: "too few blocks to say"}
    return (
        f"{check.kind}: {check.draft} {check.arm} over {check.against}, {check.condition}: "
        f"{check.ratio} ({verdict[check.within_noise]})"
    )


def _sweep_table(sweep: Sweep) -> Table:
    table = Table(title=f"{sweep.draft}, {sweep.traffic}: all loads", title_style="bold")
    table.add_column("arm")
    for heading in (
        *("tok/s (geo. mean)", "vs best single static", "vs baseline", "vs ema"),
        *("of the headroom", "worst cell vs best static"),
    ):
        table.add_column(heading, justify="right")
    for standing in sweep.standings:
        captured = sweep.captured(standing) if standing.arm.startswith("speckv") else None
        worst = standing.worst
        table.add_row(
            standing.arm,
            f"{standing.tok_per_s:.1f}",
            *(str(r or "-") for r in (standing.vs_best_single, standing.vs_baseline)),
            str(standing.vs_ema or "-"),
            _shown(captured, ".0%"),
            f"{worst.ratio} at {_load(worst)}" if worst else "-",
            style=_style(standing.arm),
        )
    return table


def _table(cells: Sequence[Cell]) -> Table:
    first = cells[0]
    table = Table(title=f"draft {first.draft}: {first.condition}", title_style="bold")
    table.add_column("arm")
    for heading in (
        *("tok/s", "vs best static", "accept length", "accept rate"),
        *("first token", "per token p50/p99"),
    ):
        table.add_column(heading, justify="right")
    table.add_column("rounds per step count")
    table.add_column("lossless")
    for cell in cells:
        table.add_row(*_row(cell), style=_style(cell.arm))
    return table


def _row(cell: Cell) -> list[str]:
    times = cell.latencies()
    first, per_token = times["first_token_s"], times["per_token_s"]
    return [
        cell.arm,
        f"{cell.tok_per_s:.1f}",
        str(cell.ratio or "-"),
        _shown(cell.accept_length, ".2f"),
        _shown(cell.accept_rate, ".0%"),
        f"{first['p50']:.2f} s" if first else "-",
        f"{1e3 * per_token['p50']:.0f}/{1e3 * per_token['p99']:.0f} ms" if per_token else "-",
        "  ".join(f"{tier}: {share:.0%}" for tier, share in (cell.steps or {}).items()) or "-",
        lossless_text(cell.verdict),
    ]


def lossless_text(verdict: Verdict | None) -> str:
    if verdict is None:
        return "-"
    lost = len(verdict.gaps) - verdict.ties
    ties = f" ({verdict.ties} ties)" if verdict.ties else ""
    if not lost:
        return f"yes{ties}"
    return f"no: {lost} of {verdict.answers}{ties}, gap up to {max(verdict.gaps):.2g}"


def _load(cell: Cell) -> str:
    rate = cell.condition.rate
    return str(cell.concurrency) if rate is None else f"{rate:g}/s"


def _style(arm: str) -> str:
    return "bold cyan" if arm.startswith("speckv") else ""


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
