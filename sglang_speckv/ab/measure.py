"""One comparison from servers to files: measured, judged, written, printed."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from sglang_speckv.ab.client import ServerError
from sglang_speckv.ab.comparison import Comparison
from sglang_speckv.ab.journal import JOURNAL, Journal
from sglang_speckv.ab.outcome import Outcome
from sglang_speckv.ab.report import print_report, write_report
from sglang_speckv.ab.results import RESULTS, describe, last_line, write_results
from sglang_speckv.ab.runner import run
from sglang_speckv.progress import Screen

NOT_CHECKED = 3
"""Exit code: no answer could be compared with the target's."""


def measure_and_report(
    wanted: Comparison, screen: Screen, resume: bool = False, only_json: bool = False
) -> int:
    """Measure, judge, write ``results.json`` and the report into the output folder, print; returns
    the exit code. What was measured is kept block by block; an interruption ends the servers and
    judges what there is.

    Raises:
        ConfigError: there is nothing to resume, or what there is belongs to another run.
    """
    started = time.perf_counter()
    try:
        outcome = measured(wanted, screen, resume)
    except ServerError as error:
        screen.say(f"speckv: {error}")
        return 1
    out = Path(wanted.options.out)
    results = describe(wanted, outcome, outcome.earlier_s + time.perf_counter() - started)
    write_results(out / RESULTS, results)
    files = {"results": out / RESULTS, **write_report(results, out)}
    if not only_json:
        console = Console()
        print_report(results, console if console.is_terminal else Console(width=150))
    for line in results["lossy"]:
        screen.say(f"speckv: {line}")
    unchecked = not outcome.interrupted and not outcome.is_checked
    if unchecked:
        screen.say("speckv: NOT CHECKED: no answer could be compared with the target's")
    print(last_line(results, files))
    if outcome.interrupted:
        return 130
    if outcome.failures or results["lossy"]:
        return 1
    return NOT_CHECKED if unchecked else 0


def measured(wanted: Comparison, screen: Screen, resume: bool = False) -> Outcome:
    """The outcome of a run, or of what an interruption left of it.

    Raises:
        ServerError: no arm could be measured at all.
    """
    outcome = Outcome()
    path = Path(wanted.options.out) / JOURNAL
    with Journal(path, wanted.options, origin(wanted, outcome.provenance), resume) as journal:
        go_on(journal, wanted, outcome, lambda: run(wanted, outcome, screen))
    if outcome.interrupted:
        screen.say("stopped; the servers are down, what was measured is kept")
    if not outcome.blocks.ran:
        reasons = "\n".join(outcome.failures.values())
        raise ServerError(reasons or "stopped before anything was measured")
    return outcome


def go_on(
    journal: Journal,
    wanted: Comparison,
    outcome: Outcome,
    session: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    """Run ``session`` on top of what ``journal`` has of earlier ones; it gets every new block.
    Where it is interrupted, ``outcome`` says so."""
    outcome.blocks = journal.restored(wanted.arms, wanted.workload)
    outcome.earlier_s = outcome.blocks.seconds(wanted.arms)
    outcome.keep = journal.add
    try:
        asyncio.run(session())
    except (KeyboardInterrupt, asyncio.CancelledError):
        outcome.interrupted = True


def origin(wanted: Comparison, provenance: dict[str, Any]) -> dict[str, str]:
    """What all sessions of a run must have in common beside its options."""
    prompts = hashlib.sha256(msgspec.json.encode(wanted.workload.prompts)).hexdigest()[:16]
    code = {f"code of {room}/": digest for room, digest in provenance["code"].items()}
    return {"CPU": str(provenance["cpu"]), "set of prompts": prompts, **code}
