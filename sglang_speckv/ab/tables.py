"""The columns of every table, once: for the terminal, the report and the README."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from sglang_speckv.ab.verdict import Cell, Check, Judgement, Standing, Sweep


@dataclass(frozen=True)
class Column:
    """``text`` shows one item of a table; ``left`` aligns it."""

    heading: str
    text: Callable[[Any], str]
    left: bool = False


@dataclass(frozen=True)
class Row:
    """An arm over all loads of one kind of traffic."""

    sweep: Sweep
    arm: str

    @property
    def standing(self) -> Standing:
        return self.sweep.standings[self.arm]


def shown(value: Any, form: str = "") -> str:
    return "-" if value is None else format(value, form)


def pair(found: dict[str, float] | None, scale: float = 1.0, form: str = ".2f") -> str:
    """The 50th and the 99th percentile."""
    if found is None:
        return "-"
    return f"{scale * found['p50']:{form}} / {scale * found['p99']:{form}}"


def shares(found: Any) -> str:
    return "  ".join(f"{tier}: {share:.0%}" for tier, share in (found or {}).items()) or "-"


def best_fixed(item: Cell | Row) -> str:
    return "is it" if item.standing.best_fixed == item.arm else shown(item.standing.vs_best_fixed)


CELL = (
    Column("arm", lambda cell: cell.arm, left=True),
    Column("tok/s", lambda cell: f"{cell.tok_per_s:.1f}"),
    Column("of the best fixed", best_fixed),
    Column("at least, of each", lambda cell: shown(cell.standing.lower_bound, ".2f")),
    Column("accept length", lambda cell: shown(cell.accept_length, ".2f")),
    Column("TTFT s", lambda cell: pair(cell.ttft_s)),
    Column("TPOT ms", lambda cell: pair(cell.tpot_s, 1e3, ".0f")),
    Column("rounds by depth", lambda cell: shares(cell.steps), left=True),
    Column("text", lambda cell: shown(cell.verdict), left=True),
)
DETAIL = (
    Column("arm", lambda cell: cell.arm, left=True),
    Column("blocks", lambda cell: str(len(cell.blocks))),
    Column("accept rate", lambda cell: shown(cell.accept_rate, ".0%")),
    Column("end to end s", lambda cell: pair(cell.e2e_s)),
    Column("goodput req/s", lambda cell: shown(cell.goodput, ".2f")),
    Column("time by depth", lambda cell: shares(cell.step_time), left=True),
)
SWEEP = (
    Column("arm", lambda row: row.arm, left=True),
    Column("tok/s (geo. mean)", lambda row: f"{row.sweep.tok_per_s[row.arm]:.1f}"),
    Column("of the best fixed", best_fixed),
    Column("at least, of each", lambda row: shown(row.standing.lower_bound, ".2f")),
    Column("of each load's best", lambda row: shown(row.sweep.own_best.get(row.arm))),
    Column("of ema", lambda row: shown(row.standing.over.get("ema"))),
    Column("of none", lambda row: shown(row.standing.over.get("none"))),
    Column(
        "loads not inferior", lambda row: f"{row.sweep.not_inferior[row.arm]} of {row.sweep.loads}"
    ),
)
NOTES = (
    "A block is as many requests as run at a time, sent at once; every arm answers the same ones. "
    "tok/s counts from the moment at which all of them have their first token to the moment at "
    "which the first is done (SGLang's own window); prefill is in TTFT. Percentiles are p50 / p99.",
    "Ratios are raw ratios of tok/s with 95 % intervals, paired by block and counting both the "
    "blocks' and the prompts' variance. A fixed setting is no drafting, SGLang's default or a "
    "number of steps; the best of them is the one that came out fastest, which flatters it. "
    "'At least, of each' is the least lower bound over all fixed settings. A load is not inferior "
    "where that is at or above 0.95.",
    "Text: greedy answers that equal those without drafting token by token. The others are read "
    "back by the target, token by token: in a tie every token is the likeliest or as good as.",
)
OPEN_LOOP = (
    "Under a rate, tok/s is output tokens over the time that requests took, since the arrivals set "
    "the wall time."
)


def rich_table(title: str, columns: Sequence[Column], items: Sequence[Any]) -> Table:
    table = Table(title=title, title_style="bold")
    for column in columns:
        table.add_column(column.heading, justify="left" if column.left else "right")
    for item in items:
        style = "bold cyan" if item.arm.startswith("speckv") else ""
        table.add_row(*(column.text(item) for column in columns), style=style)
    return table


def markdown(columns: Sequence[Column], items: Sequence[Any]) -> str:
    lines = [
        [column.heading for column in columns],
        [":--" if column.left else "--:" for column in columns],
        *([column.text(item) for column in columns] for item in items),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def by_load(sweep: Sweep, cells: Sequence[Cell]) -> list[tuple[str, list[Cell]]]:
    """The cells of one draft and kind of traffic, load by load."""
    ours = [c for c in cells if (c.draft, c.condition.traffic) == (sweep.draft, sweep.traffic)]
    loads = dict.fromkeys(cell.condition for cell in ours)
    return [(load.load, [cell for cell in ours if cell.condition == load]) for load in loads]


def markdown_tables(found: Judgement) -> dict[str, str]:
    """By title: what a README shows of a run."""
    tables = {}
    for sweep in found.sweeps:
        name = f"{sweep.draft}, {sweep.traffic}"
        rows = [Row(sweep, arm) for arm in sweep.standings]
        tables[f"{name}: all loads"] = markdown(SWEEP, rows)
        for load, cells in by_load(sweep, found.cells):
            tables[f"{name}: {load}"] = markdown(CELL, cells)
    return tables


def check_line(check: Check) -> str:
    said = {True: "within noise", False: "NOT within noise", None: "too few blocks to say"}
    return (
        f"{check.kind}: {check.draft} {check.arm} over {check.against}, {check.condition}: "
        f"{check.ratio} ({said[check.within_noise]})"
    )
