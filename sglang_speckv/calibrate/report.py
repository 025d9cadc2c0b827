"""What a calibration leaves: an artifact, the record, a chart and tables drawn from the record."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console

from sglang_speckv.ab.answer import Record, shown
from sglang_speckv.ab.chart import as_svg
from sglang_speckv.ab.comparison import Comparison
from sglang_speckv.ab.outcome import Outcome
from sglang_speckv.ab.tables import Column, rich_table, value
from sglang_speckv.ab.traffic import MOST_CLASSES
from sglang_speckv.calibrate.measure import TRACE, journal_of
from sglang_speckv.calibrate.result import described, traces_in
from sglang_speckv.config import ConfigError
from sglang_speckv.files import BAD_JSON, read_bounded, write_atomically, write_json
from sglang_speckv.offline.artifact import save_artifact
from sglang_speckv.offline.columns import read_columns
from sglang_speckv.offline.train import train
from sglang_speckv.progress import Report
from sglang_speckv.provenance import provenance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULT = "result.json"
CHART = "calibration.svg"
ARTIFACT = "artifact.safetensors"
_MAX_RESULT_BYTES = 16 << 20
_LAST_LINE = ("answer", "survival", "tokens", "loads", "artifact", "seconds")


class _Options(msgspec.Struct):
    minutes: float | None


class _Finished(msgspec.Struct):
    """What is read of a record again."""

    answer: list[str]
    options: _Options


def finished(wanted: Comparison) -> Record | None:
    """The record of an earlier run of the same command, unless more time is asked for now.

    Raises:
        ConfigError: the folder is another command's, or its record cannot be read.
    """
    path = Path(wanted.options.out) / RESULT
    if not path.exists():
        return None
    with journal_of(wanted, provenance()):  # refuses another command
        content = read_bounded(path, _MAX_RESULT_BYTES)
    try:
        record = msgspec.json.decode(content, type=dict[str, Any])
        minutes = msgspec.convert(record, _Finished).options.minutes
    except BAD_JSON as error:
        raise ConfigError(
            f"{path} is no result of speckv calibrate ({error}); remove it and run the same "
            "command again"
        ) from None
    return record if _seconds(minutes) >= _seconds(wanted.options.minutes) else None


def _seconds(minutes: float | None) -> float:
    return math.inf if minutes is None else 60 * minutes


def write(wanted: Comparison, outcome: Outcome, seconds: float, say: Report) -> Record:
    """Learns from the trace, judges the blocks, writes all files; returns the record.

    Raises:
        ConfigError: the trace cannot be read, or has too little.
    """
    out = Path(wanted.options.out)
    traces = traces_in(out / TRACE)
    columns = read_columns(traces)
    artifact = None
    if len(columns.prompts) > 1:  # else none can be held out
        save_artifact(train(traces, say), out / ARTIFACT)
        artifact = str(out / ARTIFACT)
    record = described(wanted, outcome, columns, artifact, seconds)
    chart = as_svg(figure(record))
    write_atomically(out / CHART, partial(Path.write_text, data=chart))
    write_json(out / RESULT, record)  # last: it says that all is there
    return record


def show(record: Record, out: Path, only_json: bool, new: bool = True) -> None:
    """The answer, then one compact JSON object; of a ``new`` record its tables first."""
    if not only_json:
        console = Console()
        console = console if console.is_terminal else Console(width=120)
        for title, columns, rows in tables(record) if new else ():
            console.print(rich_table(title, columns, rows))
        for said in record["answer"]:
            console.print(said, style="bold", highlight=False, markup=False, soft_wrap=True)
    line = {key: record.get(key) for key in _LAST_LINE}
    line |= {"result": str(out / RESULT), "chart": str(out / CHART)}
    print(msgspec.json.encode(line).decode())


def tables(record: Record) -> Iterator[tuple[str, Sequence[Column], list[Record]]]:
    """(title, columns, rows) of each."""
    deepest = len(record["survival"][0]["survival"])
    by_class = (
        Column("class", value("class"), left=True),
        Column("rounds", value("rounds")),
        *(Column(f"{j}", partial(_position, j=j)) for j in range(1, deepest + 1)),
    )
    yield (
        f"{record['draft']['name']}: how often the first j drafts are right, in rounds of "
        f"{deepest} drafts",
        by_class,
        record["survival"][: 1 + MOST_CLASSES],
    )
    yield "tokens per round", _TOKENS, record["tokens"]
    for load in record["loads"]:
        yield f"{load['concurrency']} at a time", _DEPTHS, load["depths"]


def figure(record: Record) -> Figure:
    """Survival by position, and tok/s by depth for each load."""
    from matplotlib.figure import Figure

    loads = record["loads"]
    chart = Figure(figsize=(3.4 + 2.7 * len(loads), 3.8), layout="constrained")
    axes = chart.subplots(1, 1 + len(loads), squeeze=False)[0]
    for row in record["survival"][: 1 + MOST_CLASSES]:
        every = row["class"] == "all"
        positions = range(1, len(row["survival"]) + 1)
        style: dict[str, Any] = {"color": "#111827", "linewidth": 2} if every else {}
        axes[0].plot(positions, row["survival"], label=row["class"], **style)
    axes[0].set_ylim(0, 1)
    axes[0].set_xlabel("draft position")
    axes[0].set_title("first j drafts right", loc="left", fontsize=10)
    for axis, load in zip(axes[1:], loads, strict=True):
        _draw(axis, load)
    for axis in axes:
        axis.grid(axis="y", color="0.93")
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[:2]:
        axis.legend(frameon=False, fontsize=8)
    pair = f"{record['draft']['name']} drafting for {Path(record['target']).name}"
    chart.suptitle(pair, x=0.01, ha="left", fontsize=11)
    return chart


def _draw(axis: Any, load: Record) -> None:
    """tok/s by depth, as measured and as the formula has it."""
    for key, label, style in _LINES:
        known = [row for row in load["depths"] if row[key] is not None]
        depths, rates = [row["num_steps"] for row in known], [row[key] for row in known]
        axis.plot(depths, rates, label=label, markersize=4, **style)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("depth")
    axis.set_title(f"tok/s, {load['concurrency']} at a time", loc="left", fontsize=10)


def _position(row: Record, j: int) -> str:
    return f"{row['survival'][j - 1]:.2f}"


def _of_best(row: Record) -> str:
    return "best" if row["of_best"] is None else shown(row["of_best"], row["interval"])


def _depth(row: Record) -> str:
    return f"{row['num_steps']}{', asleep' if row['asleep'] else ''}"


_TOKENS = (
    Column("depth", value("num_steps")),
    Column("by the formula", value("expected", ".2f")),
    Column("measured", value("measured", ".2f")),
    Column("rounds", value("rounds")),
)
_DEPTHS = (
    Column("depth", _depth),
    Column("tok/s", value("tok_per_s", ".1f")),
    Column("of the best", _of_best),
    Column("blocks", value("blocks")),
    Column("tok/s by the formula", value("predicted_tok_per_s", ".1f")),
    Column("round ms", value("round_s", ".1f", 1e3)),
    Column("rounds", value("rounds")),
)
_LINES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("tok_per_s", "measured", {"color": "#0f766e", "marker": "o"}),
    ("predicted_tok_per_s", "formula", {"color": "#b45309", "marker": "s", "linestyle": "--"}),
)
