"""``speckv ab``: does it pay for my pair, my prompts, my load? Arms against each other on live
servers, and what can be concluded from it.

    speckv ab                                      the demo pair, every arm, about an hour on a CPU
    speckv ab --minutes 20 --concurrency 1,4 --arms none,static:1,static:3,speckv
    speckv ab examples/ab/quick.yaml --out out/mine
    speckv ab --target T --draft EAGLE3=HEAD --traffic phases,mixed --concurrency 1,8,64
    speckv ab --resume --out out/mine              go on where an interrupted run stopped
    speckv ab --compare old/results.json new/results.json

``static:K`` and ``speckv`` are policies of one running server and take turns block by block on the
same prompts; the other arms have servers of their own with the same limits. Exit code 1: an arm
is missing, or answers in float32 were not the target's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from sglang_speckv.bench.connection import ServerError
from sglang_speckv.bench.options import Options, options_from, read_options
from sglang_speckv.config import ConfigError

_Text = str | None


def ab_command(
    config: Annotated[
        Path | None, typer.Argument(help="YAML file with any of the options below.")
    ] = None,
    target: Annotated[_Text, typer.Option(help="Model directory or hub id.")] = None,
    draft: Annotated[
        list[str] | None,
        typer.Option(help="eagle3, standalone, a directory or ALGORITHM=PATH; repeatable."),
    ] = None,
    artifact: Annotated[
        list[str] | None,
        typer.Option(help="What SpecKV serves a draft with: [DRAFT=]FILE; repeatable."),
    ] = None,
    arms: Annotated[
        _Text,
        typer.Option(
            help="none, default, ema, static:K, fresh:K, speckv[:POLICY], url:NAME=http://...; "
            "ARM#2 is an arm twice. Comma-separated."
        ),
    ] = None,
    concurrency: Annotated[_Text, typer.Option(help="Requests at a time, such as 1,4,16.")] = None,
    rate: Annotated[_Text, typer.Option(help="Also open-loop arrivals per second: 0.5,2.")] = None,
    traffic: Annotated[_Text, typer.Option(help="mixed, phases, sweep, bursty.")] = None,
    prompts: Annotated[
        _Text, typer.Option(help="Folder, *.jsonl file, or sglang:DATASET[=PATH].")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Time limit after set-up.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Blocks per cell; 8 without a limit.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Output length; else what fits the time.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Sample instead of greedy.")] = None,
    baseline: Annotated[
        _Text, typer.Option(help="Arm to compare with. [none, or the first]")
    ] = None,
    check_static: Annotated[
        int | None, typer.Option(help="Also K steps on a fresh SGLang: equal within noise?")
    ] = None,
    dtype: Annotated[_Text, typer.Option(help="[default: float32, on a GPU bfloat16]")] = None,
    server_flag: Annotated[
        list[str] | None, typer.Option(help="One more flag for every server; repeatable.")
    ] = None,
    timeout_s: Annotated[float | None, typer.Option(help="A request that hangs. [300]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of open-loop arrivals.")] = None,
    out: Annotated[_Text, typer.Option(help="Folder for everything. [default: out/ab]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the --out folder.")] = False,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Only compare two results.json.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Only the JSON line on stdout.")] = False,
) -> None:
    """Compare fixed draft lengths, SGLang's own rule and SpecKV for a pair, prompts and loads.

    Prints tables and, as the last line, one JSON object; writes results.json and report.html.
    """
    if compare is not None:
        from sglang_speckv.bench.diff import compare_files

        print(compare_files(*compare, quiet=json))
        return
    flags: dict[str, Any] = {
        "target": target,
        "drafts": draft,
        "artifacts": artifact,
        "arms": _listed(arms, str, "arms"),
        "concurrency": _listed(concurrency, int, "concurrency"),
        "rate": _listed(rate, float, "rate"),
        "traffic": _listed(traffic, str, "traffic"),
        "prompts": prompts,
        "minutes": minutes,
        "rounds": rounds,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "baseline": baseline,
        "check_static": check_static,
        "dtype": dtype,
        "server_flags": server_flag,
        "timeout_s": timeout_s,
        "seed": seed,
        "out": out,
    }
    values = read_options(config) if config else {}
    given = {key: value for key, value in flags.items() if value is not None}
    raise typer.Exit(run_ab(options_from(values | given, str(config or "options")), resume, json))


def run_ab(options: Options, resume: bool = False, only_json: bool = False) -> int:
    """All of it; returns the exit code."""
    from rich.console import Console

    from sglang_speckv.bench.execute import execute
    from sglang_speckv.bench.page import write_report
    from sglang_speckv.bench.prepare import prepare
    from sglang_speckv.bench.progress import Screen
    from sglang_speckv.bench.report import print_judgement

    screen = Screen()
    wanted = prepare(options, screen)
    try:
        done = execute(wanted, screen, resume)
    except ServerError as error:
        screen.say(f"speckv: {error}")
        return 1
    report = write_report(done, Path(options.out) / "report.html")
    if not only_json:
        console = Console()
        wide = console if console.is_terminal else Console(width=150)
        print_judgement(done.found, done.outcome, wide)
    losses = lossy(done.results)
    for line in losses:
        screen.say(f"speckv: {line}")
    print(last_line(done.results, done.path, report))
    if done.outcome.interrupted:
        return 130
    return 1 if done.outcome.failures or losses else 0


def last_line(results: dict[str, Any], path: Path, report: Path) -> str:
    """One compact JSON object."""
    keys = (
        *("draft", "arm", "workload", "concurrency", "rate", "tok_per_s", "accept_length"),
        *("accept_rate", "active", "lossless", "steps", "vs_best_static", "interval"),
    )
    cells = [
        {key: cell[key] for key in keys} | {"blocks": len(cell["blocks"])}
        for cell in results["cells"]
    ]
    summary = {
        "cells": cells,
        "sweep": results["sweep"],
        "checks": results["checks"],
        "failures": sorted(results["failures"]),
        "results": str(path),
        "report": str(report),
        "seconds": results["seconds"],
    }
    return msgspec.json.encode(summary).decode()


def lossy(results: dict[str, Any]) -> list[str]:
    """What fails the run: greedy answers in float32 that differ beyond ties, and sampled ones of
    another distribution."""
    from sglang_speckv.bench.sampling import LEAST_P

    found = []
    for cell in results["cells"]:
        if cell["lossless"] is False and results["dtype"] == "float32":
            lost = cell["divergences"] - cell["ties"]
            found.append(
                f"{cell['draft']} {cell['arm']} ({cell['workload']}, {cell['concurrency']}): "
                f"{lost} of {cell['answers']} answers are not the target's"
            )
    for arm, p in results["sampling_p_values"].items():
        if p < LEAST_P:
            found.append(f"{arm}: sampled answers are not the target's distribution (p = {p:.1e})")
    return found


def _listed(text: str | None, kind: type, name: str) -> list[Any] | None:
    """Values separated by commas; None stays None."""
    if text is None:
        return None
    try:
        return [kind(part.strip()) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"{name} {text!r} are not numbers separated by commas, such as 1,4,16"
        ) from None
