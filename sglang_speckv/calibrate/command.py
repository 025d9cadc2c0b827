"""``speckv calibrate``: does this draft pay, at which fixed depth, and what does SpecKV start from?

    speckv calibrate                                    the demo pair and prompts
    speckv calibrate --quick
    speckv calibrate --target T --draft EAGLE3=HEAD --prompts mine.jsonl --concurrency 1,4,16

One server with SpecKV is measured at every candidate depth. The same command goes on where it was
stopped; of a finished one it shows the answer.

Exit codes: 0 all is well; 1 the server failed; 2 bad input; 130 interrupted.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from sglang_speckv.ab.command import listed
from sglang_speckv.ab.options import Options, options_from
from sglang_speckv.config import DEFAULT_CANDIDATE_STEPS, ConfigError

DEFAULTS: dict[str, Any] = {
    "arms": tuple(f"static:{steps}" for steps in DEFAULT_CANDIDATE_STEPS),
    "together": True,
    "concurrency": (1, 4, 16),
    "max_new_tokens": 64,
    "minutes": 10.0,
    "out": "out/calibrate",
}
QUICK: dict[str, Any] = {"concurrency": (1, 4), "max_new_tokens": 32, "minutes": 3.0}
_DEMO_DRAFT = "eagle3"


def calibrate_command(
    target: Annotated[str | None, typer.Option(help="Model directory or hub id.")] = None,
    draft: Annotated[
        str | None, typer.Option(help="Demo draft, directory or ALGORITHM=PATH. [eagle3]")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="Folder of *.jsonl files, or one file.")
    ] = None,
    concurrency: Annotated[str | None, typer.Option(help="Requests at a time. [1,4,16]")] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Of blocks in all sessions, and of this session's start. [10]"),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="3 minutes, 1 and 4 requests, short answers.")
    ] = False,
    max_new_tokens: Annotated[int | None, typer.Option(help="Output length. [64]")] = None,
    server_flags: Annotated[
        list[str] | None, typer.Option("--server-flag", help="One more flag for the server.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Folder for everything. [out/calibrate]")] = None,
    json: Annotated[bool, typer.Option("--json", help="Only the JSON line on stdout.")] = False,
) -> None:
    """Measure a draft on your prompts: acceptance by position, round times, the best fixed depth.

    Prints tables and, as the last line, one JSON object; writes result.json, calibration.svg and
    the artifact that SpecKV starts from.
    """
    given = {
        "target": target,
        "drafts": _draft(target, draft),
        "prompts": prompts,
        "concurrency": None if concurrency is None else listed(concurrency, int, "concurrency"),
        "minutes": minutes,
        "max_new_tokens": max_new_tokens,
        "server_flags": server_flags or None,
        "out": out,
    }
    asked = {key: value for key, value in given.items() if value is not None}
    values = DEFAULTS | (QUICK if quick else {}) | asked
    raise typer.Exit(run_calibrate(options_from(values, "options"), json))


def _draft(target: str | None, draft: str | None) -> tuple[str]:
    if draft is None and target is not None:
        raise ConfigError(f"--target {target!r} needs a draft; name one with --draft")
    return (draft or _DEMO_DRAFT,)


def run_calibrate(options: Options, only_json: bool = False) -> int:
    """All of it; returns the exit code."""
    from sglang_speckv.ab.client import ServerError
    from sglang_speckv.calibrate import measure, report
    from sglang_speckv.progress import Screen

    started, screen = time.perf_counter(), Screen()
    measure.check_out(Path(options.out))
    wanted = measure.plan_of(options, screen)
    if (record := report.finished(wanted)) is not None:
        screen.say("this was measured before; with more --minutes it goes on")
        report.show(record, Path(options.out), only_json, new=False)
        return 0
    try:
        outcome = measure.measured(wanted, screen)
    except ServerError as error:
        screen.say(f"speckv: {error}")
        return 1
    if outcome.interrupted:
        screen.say("stopped; the server is down, and the same command goes on from here")
        return 130
    with screen.status("reading the trace") as say:
        seconds = outcome.earlier_s + time.perf_counter() - started
        record = report.write(wanted, outcome, seconds, say)
    report.show(record, Path(options.out), only_json)
    return 0
