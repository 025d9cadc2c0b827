"""``speckv ab``: does it pay for my pair, my prompts, my load? ``speckv demo`` is a preset of it.

    speckv ab                                      the demo pair, the usual arms, 8 blocks a load
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

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from sglang_speckv.ab.options import Options, options_from, read_options
from sglang_speckv.config import ConfigError

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
        Path | None, typer.Argument(help="YAML file with any of these options; see docs/ab.md.")
    ] = None,
    target: Annotated[_Text, typer.Option(help="Model directory or hub id.")] = None,
    drafts: Annotated[
        list[str] | None,
        typer.Option("--draft", help="Demo draft, directory or ALGORITHM=PATH."),
    ] = None,
    artifacts: Annotated[
        list[str] | None,
        typer.Option("--artifact", help="What SpecKV serves a draft with: [DRAFT=]FILE."),
    ] = None,
    arms: Annotated[
        _Text,
        typer.Option(
            help="none, none:overlap, default, ema, static:K, fresh:K, tree:SxKxT, "
            "speckv[:POLICY], speckv:topkK, url:NAME=http://...; ARM#2 measures one twice."
        ),
    ] = None,
    concurrency: Annotated[_Text, typer.Option(help="Requests at a time. [1,4,16]")] = None,
    rate: Annotated[_Text, typer.Option(help="Also open-loop arrivals per second: 0.5,2.")] = None,
    traffic: Annotated[_Text, typer.Option(help="mixed, phases, sweep, bursty. [mixed]")] = None,
    prompts: Annotated[_Text, typer.Option(help="Folder of *.jsonl files, or one file.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Server starts included, the answer check not.")
    ] = None,
    blocks: Annotated[
        int | None, typer.Option(help="Per load; with --minutes as many as fit. [8]")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Output length. [256]")] = None,
    temperature: Annotated[float | None, typer.Option(help="Sample instead of greedy.")] = None,
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
    timeout_s: Annotated[float | None, typer.Option(help="Seconds for one request. [300]")] = None,
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
            given[key] = listed(given[key], kind, key)
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
    minutes: Annotated[
        float | None, typer.Option(help="Server starts included, the answer check not. [19]")
    ] = None,
    out: Annotated[_Text, typer.Option(help="Folder for everything. [out/demo]")] = None,
    json: Annotated[bool, typer.Option("--json", help="Only the JSON line on stdout.")] = False,
) -> None:
    """Serve a small real model under a load that moves: one request, then four, then one.

    A preset of `speckv ab`, which can change anything.
    """
    asked = {"target": target, "drafts": drafts, "out": out}
    preset = DEMO | (QUICK if quick else {})
    given = {key: value for key, value in asked.items() if value is not None}
    values = preset | given | ({} if minutes is None else {"minutes": minutes})
    raise typer.Exit(run_ab(options_from(values, "options"), only_json=json))


def run_ab(options: Options, resume: bool = False, only_json: bool = False) -> int:
    """All of it; returns the exit code."""
    from sglang_speckv.ab.comparison import comparison_of
    from sglang_speckv.ab.measure import measure_and_report
    from sglang_speckv.progress import Screen

    screen = Screen()
    return measure_and_report(comparison_of(options, screen), screen, resume, only_json)


def listed(text: str, kind: type, name: str) -> list[Any]:
    """Values separated by commas; one that belongs to a policy separates nothing."""
    try:
        return [kind(part.strip()) for part in re.split(",(?!stop=|width=)", text)]
    except ValueError:
        raise ConfigError(
            f"{name} {text!r} are not numbers separated by commas, such as 1,4,16"
        ) from None


def _objective(text: str) -> dict[str, float]:
    """``ttft:500,tpot:50``, in milliseconds, by name."""
    try:
        pairs = [part.split(":") for part in text.split(",")]
        return {name.strip(): float(value) for name, value in pairs}
    except ValueError:
        raise ConfigError(
            f"goodput {text!r} is not of the form ttft:500,tpot:50 (milliseconds)"
        ) from None
