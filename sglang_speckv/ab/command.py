"""``speckv ab``: does it pay for my pair, my prompts, my load? ``speckv demo`` is a preset of it.

    speckv ab                                      the demo pair, every arm, 8 blocks a load
    speckv ab --minutes 20 --concurrency 1,4 --arms none,static:1,static:3,speckv
    speckv ab examples/ab/quick.yaml --out out/mine
    speckv ab --target T --draft EAGLE3=HEAD --traffic phases,mixed --concurrency 1,8,64
    speckv ab --resume --out out/mine              go on where an interrupted run stopped

``static:K`` and ``speckv`` are policies of one running server and take turns block by block on the
same prompts; the other arms have servers of their own with the same limits.

Exit codes: 0 all is well; 1 an arm is missing, or answers were not the target's; 2 bad input; 3 no
answer could be compared with the target's; 130 interrupted.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from sglang_speckv.ab.client import ServerError
from sglang_speckv.ab.options import Options, options_from, read_options
from sglang_speckv.config import ConfigError

NOT_CHECKED = 3
DEMO: dict[str, Any] = {
    "arms": ("none", "static:1", "static:3", "static:5", "ema", "speckv"),
    "traffic": ("sweep",),
    "concurrency": (1, 4),
    "max_new_tokens": 64,
    "minutes": 19.0,
    "out": "out/demo",
}
QUICK: dict[str, Any] = {
    "drafts": ("eagle3",),
    "arms": ("none", "static:1", "static:3", "ema", "speckv"),
    "max_new_tokens": 40,
    "minutes": 5.5,
}
_Text = str | None


def ab_command(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Argument(help="YAML file with any of the options below.")
    ] = None,
    target: Annotated[_Text, typer.Option(help="Model directory or hub id.")] = None,
    drafts: Annotated[
        list[str] | None,
        typer.Option("--draft", help="eagle3, standalone, a directory or ALGORITHM=PATH."),
    ] = None,
    artifacts: Annotated[
        list[str] | None,
        typer.Option("--artifact", help="What SpecKV serves a draft with: [DRAFT=]FILE."),
    ] = None,
    arms: Annotated[
        _Text,
        typer.Option(
            help="none, none:overlap, default, ema, static:K, fresh:K, speckv[:POLICY], "
            "url:NAME=http://...; ARM#2 measures one twice."
        ),
    ] = None,
    concurrency: Annotated[_Text, typer.Option(help="Requests at a time, such as 1,4,16.")] = None,
    rate: Annotated[_Text, typer.Option(help="Also open-loop arrivals per second: 0.5,2.")] = None,
    traffic: Annotated[_Text, typer.Option(help="mixed, phases, sweep, bursty.")] = None,
    prompts: Annotated[_Text, typer.Option(help="Folder of *.jsonl files, or one file.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Time limit after set-up.")] = None,
    blocks: Annotated[int | None, typer.Option(help="Under each load; 8 without a limit.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Output length. [256]")] = None,
    temperature: Annotated[float | None, typer.Option(help="Sample instead of greedy.")] = None,
    baseline: Annotated[_Text, typer.Option(help="Arm to compare with. [none]")] = None,
    goodput: Annotated[
        _Text, typer.Option(help="Objective in ms, such as ttft:500,tpot:50.")
    ] = None,
    own_memory: Annotated[
        bool | None, typer.Option("--own-memory", help="Each server sizes its KV cache itself.")
    ] = None,
    dtype: Annotated[_Text, typer.Option(help="[float32, on a GPU bfloat16]")] = None,
    server_flags: Annotated[
        list[str] | None, typer.Option("--server-flag", help="One more flag for every server.")
    ] = None,
    flush_urls: Annotated[
        bool | None, typer.Option("--flush-urls", help="Empty the caches of url: servers too.")
    ] = None,
    timeout_s: Annotated[float | None, typer.Option(help="Of one request. [300]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of arrivals and of the arms' order.")] = None,
    out: Annotated[_Text, typer.Option(help="Folder for everything. [out/ab]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the --out folder.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Only the JSON line on stdout.")] = False,
) -> None:
    """Compare fixed draft lengths, SGLang's own rule and SpecKV for a pair, prompts and loads.

    Prints tables and, as the last line, one JSON object; writes results.json and report.html.
    """
    given = {key: value for key, value in context.params.items() if value not in (None, ())}
    for key in ("config", "resume", "json"):
        given.pop(key, None)
    for key, kind in (("arms", str), ("concurrency", int), ("rate", float), ("traffic", str)):
        if key in given:
            given[key] = _listed(given[key], kind, key)
    if goodput is not None:
        given["goodput"] = _objective(goodput)
    values = read_options(config) if config else {}
    raise typer.Exit(run_ab(options_from(values | given, str(config or "options")), resume, json))


def demo_command(
    quick: Annotated[
        bool, typer.Option("--quick", help="One draft, about 6 minutes on two cores.")
    ] = False,
    target: Annotated[_Text, typer.Option(help="Model directory or hub id.")] = None,
    drafts: Annotated[
        list[str] | None, typer.Option("--draft", help="eagle3, standalone or a directory.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Time limit after set-up. [19]")] = None,
    out: Annotated[_Text, typer.Option(help="Folder for everything. [out/demo]")] = None,
    json: Annotated[bool, typer.Option("--json", help="Only the JSON line on stdout.")] = False,
) -> None:
    """Serve a small real model under a load that moves: one request, then four, then one.

    No fixed depth is right for all of it. A small `speckv ab`, which has all the options.
    """
    asked = {"target": target, "drafts": drafts, "out": out}
    preset = DEMO | (QUICK if quick else {})
    given = {key: value for key, value in asked.items() if value is not None}
    values = preset | given | ({} if minutes is None else {"minutes": minutes})
    raise typer.Exit(run_ab(options_from(values, "options"), only_json=json))


def run_ab(options: Options, resume: bool = False, only_json: bool = False) -> int:
    """All of it; returns the exit code."""
    from sglang_speckv.ab.comparison import comparison_of
    from sglang_speckv.progress import Screen

    screen = Screen()
    return run_comparison(comparison_of(options, screen), screen, resume, only_json)


def run_comparison(wanted: Any, screen: Any, resume: bool = False, only_json: bool = False) -> int:
    """Measure, judge, write ``results.json`` and the report into the output folder, print. What was
    measured is kept block by block; an interruption ends the servers and judges what there is.

    Raises:
        ConfigError: every server refused its settings, or there is nothing to resume.
    """
    from rich.console import Console

    from sglang_speckv.ab.answer import lossy, not_checked
    from sglang_speckv.ab.report import print_report, write_report
    from sglang_speckv.ab.results import RESULTS, describe, last_line, write_results
    from sglang_speckv.ab.verdict import judge

    started = time.perf_counter()
    try:
        outcome = measured(wanted, screen, resume)
    except ServerError as error:
        screen.say(f"speckv: {error}")
        return 1
    found = judge(wanted, outcome)
    out = Path(wanted.options.out)
    results = describe(wanted, outcome, found, time.perf_counter() - started)
    write_results(out / RESULTS, results)
    files = {"results": out / RESULTS, **write_report(results, found, outcome, out)}
    if not only_json:
        console = Console()
        wide = console if console.is_terminal else Console(width=150)
        print_report(results, found, outcome, wide)
    losses = lossy(outcome)
    for line in losses:
        screen.say(f"speckv: {line}")
    unchecked = not outcome.interrupted and not_checked(outcome)
    if unchecked:
        screen.say("speckv: NOT CHECKED: no answer could be compared with the target's")
    print(last_line(results, files))
    if outcome.interrupted:
        return 130
    if outcome.failures or losses:
        return 1
    return NOT_CHECKED if unchecked else 0


def measured(wanted: Any, screen: Any, resume: bool = False) -> Any:
    """The outcome of a run, or of what an interruption left of it.

    Raises:
        ServerError: no arm could be measured at all.
    """
    from sglang_speckv.ab.journal import JOURNAL, Journal
    from sglang_speckv.ab.runner import Outcome, run
    from sglang_speckv.ab.verdict import widest

    outcome = Outcome()
    with Journal(Path(wanted.options.out) / JOURNAL, wanted.options, resume) as journal:
        outcome.results = journal.restored(wanted.arms, wanted.workload)
        outcome.keep = journal.add
        try:
            asyncio.run(run(wanted, outcome, lambda *at: widest(wanted, *at), screen))
        except (KeyboardInterrupt, asyncio.CancelledError):
            outcome.interrupted = True
            screen.say("stopped; the servers are down, what was measured is kept")
    if not outcome.results.blocks:
        reasons = "\n".join(outcome.failures.values())
        raise ServerError(reasons or "stopped before anything was measured")
    return outcome


def _listed(text: str, kind: type, name: str) -> list[Any]:
    """Values separated by commas."""
    try:
        return [kind(part.strip()) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"{name} {text!r} are not numbers separated by commas, such as 1,4,16"
        ) from None


def _objective(text: str) -> dict[str, float]:
    """``ttft:500,tpot:50`` in milliseconds -> seconds by name."""
    try:
        pairs = [part.split(":") for part in text.split(",")]
        return {name.strip(): float(value) / 1e3 for name, value in pairs}
    except ValueError:
        raise ConfigError(
            f"goodput {text!r} is not of the form ttft:500,tpot:50 (milliseconds)"
        ) from None
