"""``speckv demo``: a real model and real drafts served by SGLang, every arm compared fairly.

    speckv demo --quick
    speckv demo --draft eagle3 --concurrency 1 --concurrency 8 --seconds 900

All servers are up at once and take turns block by block, so that a noisy machine treats every arm
alike. ``static:K`` and ``speckv`` are policies of one server, switched while it runs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from sglang_speckv.bench import stats
from sglang_speckv.bench.client import ServerError
from sglang_speckv.bench.compare import Comparison, Outcome, compare
from sglang_speckv.bench.models import DEMO_TARGET
from sglang_speckv.bench.plan import Arm, arms_for
from sglang_speckv.bench.prepare import DemoOptions, prepare
from sglang_speckv.bench.progress import Screen
from sglang_speckv.bench.prompts import DEMO_PROMPTS
from sglang_speckv.bench.provenance import provenance, write_atomically
from sglang_speckv.bench.report import Cell, cells_for, print_tables


@dataclass(frozen=True)
class DemoResult:
    cells: Sequence[Cell]
    results_path: Path
    picture_path: Path
    seconds: float

    def last_line(self) -> str:
        """One compact JSON object."""
        summary = {
            "cells": [cell.to_json() for cell in self.cells],
            "results": str(self.results_path),
            "picture": str(self.picture_path),
            "seconds": round(self.seconds, 1),
        }
        return msgspec.json.encode(summary).decode()


def run_demo(options: DemoOptions, screen: Screen | None = None) -> DemoResult:
    """Set everything up, compare, write ``results.json`` and ``steps.png`` into ``options.out``."""
    screen = screen or Screen()
    wanted = prepare(options, screen)
    started = time.perf_counter()
    outcome = asyncio.run(compare(wanted, screen))
    cells = demo_cells(wanted, outcome)
    if not cells:
        raise ServerError("no draft had an active SpecKV server, so there is nothing to compare")
    seconds = time.perf_counter() - started
    results = options.out / "results.json"
    details = msgspec.json.format(
        msgspec.json.encode(describe(wanted, outcome, cells, seconds)), indent=1
    )
    write_atomically(results, lambda path: path.write_bytes(details))
    picture = options.out / "steps.png"
    write_atomically(picture, lambda path: _draw(cells, path, wanted))
    return DemoResult(cells, results, picture, time.perf_counter() - started)


def demo_cells(wanted: Comparison, outcome: Outcome) -> list[Cell]:
    """Cells by draft and concurrency; ``none`` is measured once and stands in each draft's."""
    none, *drafting = arms_for(wanted.drafts)
    cells: list[Cell] = []
    for draft in wanted.drafts:
        ours = [arm for arm in drafting if arm.draft == draft.name]
        for concurrency in wanted.concurrencies:
            ran = [arm for arm in ours if (arm, concurrency) in outcome.results.blocks]
            if not any(arm.policy for arm in ran):
                continue
            blocks = outcome.results.common([none, *ran], concurrency)
            verdicts = _of_concurrency(outcome.verdicts, concurrency)
            cells += cells_for(draft.name, concurrency, blocks, verdicts)
    return cells


def describe(
    wanted: Comparison, outcome: Outcome, cells: Sequence[Cell], seconds: float
) -> dict[str, Any]:
    """All of a run, with where it came from."""
    none = arms_for(wanted.drafts)[0]
    noise = {
        str(concurrency): stats.spread([result.seconds for result in blocks])
        for (arm, concurrency), blocks in outcome.results.blocks.items()
        if arm == none
    }
    return {
        "provenance": provenance(),
        "target": wanted.target,
        "target_note": "4-bit weights (Q4_1) expanded" if DEMO_TARGET in wanted.target else None,
        "drafts": {draft.name: [draft.algorithm, str(draft.path)] for draft in wanted.drafts},
        "server_flags": list(wanted.server_flags),
        "max_running_requests": outcome.max_running_requests,
        "max_new_tokens": outcome.max_new_tokens,
        "seconds": round(seconds, 1),
        "servers_ready_s": round(outcome.ready_s, 1),
        "noise_block_seconds_of_none": noise,
        "cells": [cell.to_detail() for cell in cells],
    }


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
    from rich.console import Console

    options = DemoOptions(
        target=target,
        drafts=tuple(draft or ()),
        concurrencies=tuple(concurrency or (1, 4)),
        quick=quick,
        seconds=seconds,
        out=out,
        prompts=prompts,
        dtype=dtype,
    )
    screen = Screen()
    try:
        result = run_demo(options, screen)
    except ServerError as error:
        screen.say(f"speckv: {error}")
        raise typer.Exit(1) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        screen.say("speckv: stopped; the servers are down")
        raise typer.Exit(130) from None
    if not json:
        console = Console()
        print_tables(result.cells, console if console.is_terminal else Console(width=130))
    print(result.last_line())


def _draw(cells: Sequence[Cell], path: Path, wanted: Comparison) -> None:
    from sglang_speckv.bench.plot import draw

    draw(cells, path, f"SpecKV on SGLang, target {Path(wanted.target).name}")


def _of_concurrency(verdicts: dict[tuple[Arm, int], Any], concurrency: int) -> dict[Arm, Any]:
    return {arm: verdict for (arm, at), verdict in verdicts.items() if at == concurrency}
