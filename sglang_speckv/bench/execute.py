"""A comparison from its first server to its results on disk; ``speckv ab`` and ``speckv demo``."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from sglang_speckv.bench.compare import Comparison, Outcome, compare
from sglang_speckv.bench.connection import ServerError
from sglang_speckv.bench.describe import describe, write_json
from sglang_speckv.bench.judgement import Judgement, judgement
from sglang_speckv.bench.options import RESUMABLE
from sglang_speckv.bench.progress import Screen
from sglang_speckv.bench.results import JOURNAL, Head, Journal, read_journal, restored
from sglang_speckv.config import ConfigError
from sglang_speckv.files import write_atomically

RESULTS = "results.json"


@dataclass(frozen=True)
class Execution:
    """``results`` is the whole of it as written to ``path``."""

    outcome: Outcome
    found: Judgement
    seconds: float
    path: Path
    results: dict[str, Any]


def execute(wanted: Comparison, screen: Screen, resume: bool = False) -> Execution:
    """Measure, judge, write ``results.json`` into the output folder. What was measured is kept
    block by block; an interruption ends the servers and judges what there is.

    Raises:
        ServerError: no arm could be measured at all.
        ConfigError: every server refused its settings, or there is nothing to resume.
    """
    started = time.perf_counter()
    outcome, journal = Outcome(), _Keeper(wanted)
    if resume:
        journal.resume(outcome)
    outcome.keep, outcome.settled = journal.keep, journal.settle
    try:
        asyncio.run(compare(wanted, outcome, screen))
    except (KeyboardInterrupt, asyncio.CancelledError):
        outcome.interrupted = True
        screen.say("stopped; the servers are down, what was measured is kept")
    finally:
        journal.close()
    if not outcome.results.blocks:
        reasons = "\n".join(outcome.failures.values())
        raise ServerError(reasons or "stopped before anything was measured")
    found = judgement(wanted, outcome)
    seconds = time.perf_counter() - started
    results = describe(wanted, outcome, found, seconds)
    path = Path(wanted.options.out) / RESULTS
    write_atomically(path, lambda scratch: write_json(scratch, results))
    return Execution(outcome, found, seconds, path, results)


class _Keeper:
    """The journal, opened when there is something to write into it."""

    def __init__(self, wanted: Comparison) -> None:
        self._wanted = wanted
        self._path = Path(wanted.options.out) / JOURNAL
        self._journal: Journal | None = None

    def settle(self, max_new_tokens: int) -> None:
        head = Head(msgspec.to_builtins(self._wanted.options), max_new_tokens)
        self._journal = Journal(self._path, head)

    def keep(self, arm: Any, result: Any) -> None:
        assert self._journal is not None, "a block before the output length was settled"
        self._journal.add(arm, result)

    def resume(self, outcome: Outcome) -> None:
        """Fills ``outcome`` with what an earlier run measured under the same options."""
        head, lines = read_journal(self._path)
        ours = msgspec.json.decode(msgspec.json.encode(self._wanted.options))
        for key, value in ours.items():
            if key not in RESUMABLE and head.options.get(key) != value:
                raise ConfigError(
                    f"{self._path} was measured with {key} {head.options.get(key)!r}, not "
                    f"{value!r}; resume with the same options, or name another --out"
                )
        outcome.max_new_tokens = head.max_new_tokens
        outcome.results = restored(lines, self._wanted.arms, self._wanted.workload)
        self._journal = Journal(self._path)

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
