"""``speckv ab --compare A.json B.json``: two results side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from sglang_speckv.bench import stats
from sglang_speckv.bench.stats import Ratio, Resampled, Sample, Units
from sglang_speckv.config import ConfigError
from sglang_speckv.files import BAD_JSON, read_bounded

_MAX_BYTES = 256 << 20
_KEY = ("draft", "workload", "concurrency", "rate", "arm")
CAVEAT = (
    "B over A compares two runs at two times: what the machine did meanwhile is in it. Within a "
    "run, arms are\ncompared block by block; vs best static of A and of B is the sounder pair."
)


def compare_files(a: Path, b: Path, quiet: bool = False) -> str:
    """Prints what changed from ``a`` to ``b``; returns the JSON line."""
    left, right = read_results(a), read_results(b)
    rows = compared_cells(left, right)
    if not rows:
        raise ConfigError(f"{a} and {b} have no cell in common: no arm under the same load")
    differs = differing(left, right)
    if not quiet:
        _print(rows, differs, a, b)
    return msgspec.json.encode({"cells": rows, "differs": differs}).decode()


def read_results(path: Path) -> dict[str, Any]:
    """A ``results.json`` of ``speckv ab`` or ``speckv demo``."""
    content = read_bounded(path, _MAX_BYTES)
    try:
        results = msgspec.json.decode(content, type=dict[str, Any])
        cells = msgspec.convert(results.get("cells"), list[dict[str, Any]])
    except BAD_JSON as error:
        raise ConfigError(f"{path} is not a results.json of speckv ab ({error})") from None
    if not all({"arm", "draft", "tok_per_s", "blocks"} <= cell.keys() for cell in cells):
        raise ConfigError(f"{path} is not a results.json of speckv ab (cells lack figures)")
    return results


def compared_cells(left: dict[str, Any], right: dict[str, Any]) -> list[dict[str, Any]]:
    """Cells that both have: tok/s, their ratio, and each one's standing against its best static."""
    others = {_key(cell): cell for cell in right["cells"]}
    rows = []
    for cell in left["cells"]:
        other = others.get(_key(cell))
        if other is None:
            continue
        ratio = _ratio(other, cell)
        rows.append(
            dict(zip(_KEY, _key(cell), strict=True))
            | {
                "tok_per_s": [cell["tok_per_s"], other["tok_per_s"]],
                "b_over_a": round(ratio.value, 4),
                "interval": ratio.interval,
                "vs_best_static": [_standing(cell), _standing(other)],
                "accept_length": [cell.get("accept_length"), other.get("accept_length")],
            }
        )
    return rows


def differing(left: dict[str, Any], right: dict[str, Any]) -> dict[str, list[Any]]:
    """What was not the same: options, models, versions, machine."""
    found: dict[str, list[Any]] = {}
    for section in ("options", "provenance"):
        ours, theirs = left.get(section) or {}, right.get(section) or {}
        for key in ours.keys() | theirs.keys():
            if key not in ("utc", "command", "load_average", "out", "git_dirty"):
                _note(found, key, ours.get(key), theirs.get(key))
    for key in ("target", "dtype", "max_new_tokens", "max_running_requests"):
        _note(found, key, left.get(key), right.get(key))
    return dict(sorted(found.items()))


def _note(found: dict[str, list[Any]], key: str, ours: Any, theirs: Any) -> None:
    if ours != theirs:
        found[key] = [ours, theirs]


def _key(cell: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(cell.get(key) if key != "workload" else cell.get(key, "mixed") for key in _KEY)


def _standing(cell: dict[str, Any]) -> float | None:
    return cell.get("vs_best_static", cell.get("ratio_to_best_static"))


def _ratio(ours: dict[str, Any], theirs: dict[str, Any]) -> Ratio:
    """Block by block where both ran the same ones."""
    value = ours["tok_per_s"] / theirs["tok_per_s"]
    pairs = list(zip(ours["blocks"], theirs["blocks"], strict=False))
    same = ("prompts", "tokens")
    if not pairs or any(a[key] != b[key] for a, b in pairs for key in same):
        return Ratio(value)
    units = Units(
        np.array([[block["tokens"] for block in side] for side in zip(*pairs, strict=True)], float),
        np.array([[block["seconds"] for block in side] for side in zip(*pairs, strict=True)]),
        tuple(map(str, range(len(pairs)))),
    )
    return Resampled([Sample(units, units)]).ratio(stats.over(0, 1))


def _print(rows: list[dict[str, Any]], differs: dict[str, Any], a: Path, b: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console = console if console.is_terminal else Console(width=140)
    table = Table(title=f"A {a}\nB {b}", title_style="bold", title_justify="left")
    for heading in ("draft", "traffic", "load", "arm"):
        table.add_column(heading)
    for heading in ("A tok/s", "B tok/s", "B over A", "A vs best static", "B vs best static"):
        table.add_column(heading, justify="right")
    for row in rows:
        load = row["concurrency"] if row["rate"] is None else f"{row['rate']:g}/s"
        interval = row["interval"]
        spread = "" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]"
        table.add_row(
            *(row["draft"], row["workload"], str(load), row["arm"]),
            *(f"{rate:.1f}" for rate in row["tok_per_s"]),
            f"{row['b_over_a']:.2f}{spread}",
            *("-" if s is None else f"{s:.2f}" for s in row["vs_best_static"]),
        )
    console.print(table)
    for key, (ours, theirs) in differs.items():
        console.print(f"{key}: A {ours}, B {theirs}", markup=False, highlight=False)
    console.print(CAVEAT, style="dim", highlight=False)
