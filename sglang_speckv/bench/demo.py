"""``speckv demo``: a real model and real drafts served by SGLang, every arm compared fairly.

    speckv demo --quick
    speckv demo --draft eagle3 --concurrency 1 --concurrency 8 --seconds 900

A small ``speckv ab``: all servers are up at once and take turns block by block, so that a noisy
machine treats every arm alike. ``static:K`` and ``speckv`` are policies of one server, switched
while it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from sglang_speckv.bench.connection import ServerError
from sglang_speckv.bench.options import Options, options_from
from sglang_speckv.bench.prompts import DEMO_PROMPTS
from sglang_speckv.config import ConfigError

ARMS = ("none", "static:1", "static:3", "static:5", "ema", "speckv")
DEFAULT_SECONDS, QUICK_SECONDS = 1140.0, 340.0
DEFAULT_ROUNDS, QUICK_ROUNDS = 12, 4
_MIN_SECONDS = 60.0


def demo_options(
    quick: bool = False, seconds: float | None = None, **asked: Any
) -> tuple[Options, int]:
    """The comparison, and for how many blocks per cell its output length leaves time."""
    if seconds is not None and not _MIN_SECONDS <= seconds <= 86400:
        raise ConfigError(f"{seconds} seconds are not in {_MIN_SECONDS:.0f}..86400")
    budget = seconds or (QUICK_SECONDS if quick else DEFAULT_SECONDS)
    preset = {
        "arms": ARMS,
        "concurrency": (1, 4),
        "requests_per_slot": 1,
        "token_bounds": (16, 64),
        "spare": False,
        "minutes": budget / 60,
        "out": "out/demo",
    }
    given = {key: value for key, value in asked.items() if value is not None}
    return options_from(preset | given, "options"), QUICK_ROUNDS if quick else DEFAULT_ROUNDS


def demo_command(
    quick: Annotated[bool, typer.Option(help="At most 6 minutes on two cores.")] = False,
    target: Annotated[str | None, typer.Option(help="Model directory or hub id.")] = None,
    draft: Annotated[
        list[str] | None, typer.Option(help="eagle3, standalone or a directory; repeatable.")
    ] = None,
    concurrency: Annotated[
        list[int] | None, typer.Option(help="Requests at a time; repeatable. [default: 1 and 4]")
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Time limit after set-up.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for results, picture, logs.")] = Path(
        "out/demo"
    ),
    prompts: Annotated[Path, typer.Option(help="Folder with *.jsonl prompts.")] = DEMO_PROMPTS,
    dtype: Annotated[str | None, typer.Option(help="[default: float32, on a GPU bfloat16]")] = None,
    json: Annotated[bool, typer.Option("--json", help="Only the JSON line on stdout.")] = False,
) -> None:
    """Compare no drafting, fixed depths, SGLang's own rule and SpecKV on a small real model."""
    options, rounds = demo_options(
        quick,
        seconds,
        target=target,
        drafts=draft,
        concurrency=concurrency,
        out=str(out),
        prompts=None if prompts == DEMO_PROMPTS else str(prompts),
        dtype=dtype,
    )
    raise typer.Exit(run_demo(options, rounds, only_json=json))


def run_demo(options: Options, planned_rounds: int, only_json: bool = False) -> int:
    """Set everything up, compare, write ``results.json`` and ``steps.png``; the exit code."""
    from rich.console import Console

    from sglang_speckv.bench.execute import execute
    from sglang_speckv.bench.plot import draw
    from sglang_speckv.bench.prepare import prepare
    from sglang_speckv.bench.progress import Screen
    from sglang_speckv.bench.report import print_tables
    from sglang_speckv.files import write_atomically

    screen = Screen()
    wanted = prepare(options, screen, planned_rounds)
    try:
        done = execute(wanted, screen)
        cells = compared(done.found.cells)
    except ServerError as error:
        screen.say(f"speckv: {error}")
        return 1
    if done.outcome.interrupted:
        return 130
    picture = Path(options.out) / "steps.png"
    title = f"SpecKV on SGLang, target {Path(wanted.target).name}"
    write_atomically(picture, lambda path: draw(cells, path, title))
    if not only_json:
        console = Console()
        print_tables(cells, console if console.is_terminal else Console(width=150))
    print(last_line(cells, done.path, picture, done.seconds))
    return 1 if done.outcome.failures else 0


def compared(cells: Sequence[Any]) -> list[Any]:
    """The cells of drafts whose SpecKV was on; without any there is nothing to show."""
    active = {cell.draft for cell in cells if cell.active}
    if not active:
        raise ServerError("no draft had an active SpecKV server, so there is nothing to compare")
    return [cell for cell in cells if cell.draft in active]


def last_line(cells: Sequence[Any], results: Path, picture: Path, seconds: float) -> str:
    """One compact JSON object."""
    summary = {
        "cells": [cell.to_json() for cell in cells],
        "results": str(results),
        "picture": str(picture),
        "seconds": round(seconds, 1),
    }
    return msgspec.json.encode(summary).decode()
