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
from sglang_speckv.bench.drafts import DEMO_DRAFTS, algorithm_of, resolve_draft
from sglang_speckv.bench.models import DEMO_TARGET, resolve_target
from sglang_speckv.bench.plan import Arm, Draft, arms_for
from sglang_speckv.bench.progress import Screen
from sglang_speckv.bench.prompts import DEMO_PROMPTS, Prompt, load_prompts
from sglang_speckv.bench.provenance import provenance, write_atomically
from sglang_speckv.bench.report import Cell, cells_for, print_tables
from sglang_speckv.bench.run import Tokenize
from sglang_speckv.config import ConfigError

DEFAULT_SECONDS, QUICK_SECONDS = 1140.0, 340.0
_MIN_SECONDS = 60.0
_SERVER_BYTES = 2_500_000_000  # one server's processes beside its weights


@dataclass(frozen=True)
class DemoOptions:
    """``seconds`` bounds everything after set-up; None is what quick or full implies."""

    target: str | None = None
    drafts: tuple[str, ...] = ()
    concurrencies: tuple[int, ...] = (1, 4)
    quick: bool = False
    seconds: float | None = None
    out: Path = Path("out/demo")
    prompts: Path = DEMO_PROMPTS
    dtype: str | None = None

    def __post_init__(self) -> None:
        for concurrency in self.concurrencies:
            if not 1 <= concurrency <= 256:
                raise ConfigError(f"concurrency {concurrency} is not in 1..256")
        if len(set(self.concurrencies)) != len(self.concurrencies):
            raise ConfigError(f"concurrencies {self.concurrencies} name one twice")
        if self.seconds is not None and not _MIN_SECONDS <= self.seconds <= 86400:
            raise ConfigError(f"{self.seconds} seconds are not in {_MIN_SECONDS:.0f}..86400")

    @property
    def budget_s(self) -> float:
        return self.seconds or (QUICK_SECONDS if self.quick else DEFAULT_SECONDS)


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


def prepare(options: DemoOptions, screen: Screen) -> Comparison:
    """The set-up: models fetched, drafts complete, prompts read, a tokenizer loaded."""
    prompts = load_prompts(options.prompts)
    with screen.downloads() as progress:
        target = resolve_target(options.target, progress)
    drafts = find_drafts(options.drafts, target, screen)
    return Comparison(
        target=str(target),
        drafts=drafts,
        concurrencies=options.concurrencies,
        prompts=prompts,
        tokenize=chat_tokenizer(str(target)),
        server_flags=server_flags(max(options.concurrencies), options.dtype or default_dtype()),
        seconds=options.budget_s,
        rounds=4 if options.quick else 12,
        token_bounds=(16, 64),
        server_bytes=_SERVER_BYTES + 2 * _weight_bytes(target),
        logs=options.out / "logs",
    )


def find_drafts(names: Sequence[str], target: Path | str, screen: Screen) -> list[Draft]:
    """The drafts that were asked for, or the demo's own where they are present."""
    found = []
    for name in names or DEMO_DRAFTS:
        try:
            path = resolve_draft(name, target)
        except ConfigError as error:
            if names:
                raise
            screen.say(f"skipped: {error}")
            continue
        found.append(
            Draft(path.name if name not in DEMO_DRAFTS else name, path, algorithm_of(path))
        )
    if not found:
        raise ConfigError("no demo draft was found; pass --draft PATH")
    return found


def server_flags(max_concurrency: int, dtype: str) -> list[str]:
    """The same for all servers; SGLang's own limits differ between drafting and not."""
    return [
        *("--dtype", dtype),
        *("--max-running-requests", str(max_concurrency)),
        *("--max-total-tokens", str(4096 + 1024 * max_concurrency)),
        *("--random-seed", "0"),
        "--sleep-on-idle",
    ]


def default_dtype() -> str:
    """float32 compares token by token; on a GPU its attention kernels take only 16 bits."""
    import torch

    return "bfloat16" if torch.cuda.is_available() else "float32"


def chat_tokenizer(target: str) -> Tokenize:
    """Prompt -> token ids of a chat with one user message, remembered."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(target)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot load the tokenizer of {target}: {error}") from None
    known: dict[str, list[int]] = {}

    def tokenize(prompt: Prompt) -> list[int]:
        if prompt.id not in known:
            messages = [{"role": "user", "content": prompt.prompt}]
            known[prompt.id] = list(
                tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, return_dict=False
                )
            )
        return known[prompt.id]

    return tokenize


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


def _weight_bytes(target: Path | str) -> int:
    """0 for a hub id: unknown before SGLang fetches it."""
    if isinstance(target, str):
        return 0
    return sum(file.stat().st_size for file in target.glob("*.safetensors"))
