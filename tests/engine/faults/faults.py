"""An SGLang plugin for one test: a function of this package raises while a file names it."""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

FILE = "SPECKV_FAULT_FILE"
"""Environment variable with the path of that file."""
PLACES = {
    "reduce": "signals.reduce_logits",
    "begin": "signals.SignalTap.begin_round",
    "finish": "signals.SignalTap.finish_round",
    "describe": "rounds.RoundTracker.next_batch",
    "launch": "rounds.RoundTracker.launched",
    "prefill": "rounds.RoundTracker.landed",
    "result": "rounds.RoundTracker.finished",
    "decide": "controller.EnginePolicy._decide",
    "count": "counters.Counters.count",
    "stop": "controller.EnginePolicy.asks_after",
    "width": "worker.SpecKVMixin._choose_widths",
    "switch": "worker.SpecKVMixin._switch",
    "sleep": "sleep.DraftSleep._sleeps",
    "wake": "sleep.DraftSleep._as_prefill",
    "trace": "trace.TraceWriter.write",
    "show": "controller.EnginePolicy.snapshot",
    "steer": "controller.EnginePolicy.selectable",
    "metrics": "metrics.Metrics._totals",
}


def register() -> None:
    asked = Path(os.environ[FILE])
    for name, place in PLACES.items():
        owner, _, attribute = f"sglang_speckv.srt.{place}".rpartition(".")
        where = pkgutil.resolve_name(owner)
        setattr(where, attribute, _breakable(name, getattr(where, attribute), asked))


def _breakable(name: str, original: Callable[..., Any], asked: Path) -> Callable[..., Any]:
    def breakable(*args: Any, **kwargs: Any) -> Any:
        if asked.read_text() == name:
            raise RuntimeError(f"fault {name}")
        return original(*args, **kwargs)

    return breakable
