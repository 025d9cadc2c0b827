"""What is run: one server with SpecKV and a trace, the deepest depth first, then all in turn.

Rounds of the deepest depth tell how many drafts are right at every depth. Blocks at each depth, in
an order that is drawn anew for every block, tell what a round takes and how fast each depth is. A
journal keeps every finished block, so the same command goes on where an earlier one stopped.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from sglang_speckv.ab.client import ServerError
from sglang_speckv.ab.comparison import Comparison, Group, comparison_of
from sglang_speckv.ab.journal import Journal
from sglang_speckv.ab.measure import go_on, origin
from sglang_speckv.ab.options import Options
from sglang_speckv.ab.outcome import Outcome
from sglang_speckv.ab.runner import Runner, end_when_terminated, serving
from sglang_speckv.ab.traffic import Condition
from sglang_speckv.config import ConfigError
from sglang_speckv.progress import Screen

JOURNAL = "calibration.jsonl"
TRACE = "trace"
LOGS = "logs"
SURVEY = "deepest"
"""The arm whose blocks are there for the trace; those of ``static:K`` are compared."""
_SURVEY_SHARE = 0.25
"""Of the time."""


def check_out(out: Path) -> None:
    """Raise :class:`ConfigError` unless ``out`` can be written and is new, empty or the folder of
    an earlier calibration."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ConfigError(
            f"--out {str(out)!r} cannot be written ({error.strerror}); name another folder"
        ) from None
    others = sorted(path.name for path in out.iterdir() if path.name != LOGS)
    if others and JOURNAL not in others:
        raise ConfigError(
            f"--out {str(out)!r} holds something else ({others[0]}); name a new or an empty folder"
        )


def plan_of(options: Options, screen: Screen) -> Comparison:
    """The one server with its arms: :data:`SURVEY`, then every depth in ascending order.

    Raises:
        ConfigError: the target, the draft, a prompt or its length does not do.
    """
    wanted = comparison_of(options, screen)
    (group,) = wanted.groups
    survey = replace(group.arms[-1], name=SURVEY)
    trace = ("--speckv-trace", str(Path(options.out) / TRACE))
    untimed = ("--speckv-profile", "0")  # every depth is fixed here, and the trace has the times
    return replace(
        wanted,
        groups=[Group([survey, *group.arms], group.servers)],
        server_flags=[*wanted.server_flags, *trace, *untimed],
    )


def journal_of(wanted: Comparison, provenance: dict[str, Any]) -> Journal:
    """A new one, or that of an earlier session. Raises :class:`ConfigError` where that was of
    another command."""
    path = Path(wanted.options.out) / JOURNAL
    return Journal(path, wanted.options, origin(wanted, provenance), resume=path.exists())


def measured(wanted: Comparison, screen: Screen) -> Outcome:
    """What was run now and in earlier sessions; ``interrupted`` where the time was cut short.

    Raises:
        ConfigError: the folder is another command's.
        ServerError: the server failed.
    """
    outcome = Outcome()
    with journal_of(wanted, outcome.provenance) as journal:
        journal.begin()
        go_on(journal, wanted, outcome, lambda: _run(wanted, outcome, screen))
    if not outcome.blocks.ran:
        _forget(Path(wanted.options.out))
    if outcome.failures:
        raise ServerError("\n".join(outcome.failures.values()))
    return outcome


async def _run(wanted: Comparison, outcome: Outcome, screen: Screen) -> None:
    end_when_terminated()
    until = time.perf_counter() + wanted.options.seconds - outcome.earlier_s
    (group,) = wanted.groups
    survey, *depths = group.arms
    async with serving(wanted, group, outcome, screen) as (fleet, report):
        every = Runner(wanted, fleet, depths, outcome, report, screen)
        deepest = _Survey(wanted, fleet, [survey], outcome, report, screen)
        try:
            forecast = await every.warm_up()
            left = until - time.perf_counter()
            screen.say(f"{survey.draft}: {forecast.text((1 - _SURVEY_SHARE) * left)}")
            spent = outcome.blocks.seconds([survey])
            share = _SURVEY_SHARE * (left + outcome.earlier_s) - spent
            await deepest.measure(time.perf_counter() + share)
            await every.measure(until)
        finally:
            fleet.note_memory()


class _Survey(Runner):
    """Begins half way through the prompts, because the depths that are compared begin at the first
    one: greedy answers to the same prompt teach nothing new."""

    def _fresh(self, condition: Condition) -> int:
        assert condition.concurrency is not None
        half = len(self.wanted.workload.prompts) // 2 // condition.concurrency
        return max(half, super()._fresh(condition))


def _forget(out: Path) -> None:
    """Nothing was measured, so another command may have the folder; the logs stay."""
    (out / JOURNAL).unlink()
    shutil.rmtree(out / TRACE, ignore_errors=True)
