"""An SGLang plugin for one test: while a file names it, a function of this package raises, a policy
answers what no engine can follow, or a reading is none."""

from __future__ import annotations

import errno
import itertools
import os
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

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
"""What raises."""
_Fault = Callable[..., Any]
"""Called in place of a function: with it and its arguments."""


def register() -> None:
    from sglang_speckv.srt import metrics, trace

    metrics.EVERY_SECONDS = 0.1
    for name, place in PLACES.items():
        _replace(name, f"srt.{place}", _raising(name))
    for name, (place, fault) in WRONG.items():
        _replace(name, place, fault)
    _replace("sglang", "srt.worker.SpecKVMixin.forward_batch_generation", _raising("sglang"))
    writes = trace.TraceWriter._write_rounds
    trace.TraceWriter._write_rounds = lambda self, file, deflate: writes(  # type: ignore[method-assign]
        self, _FullDisk(file), deflate
    )


def _replace(name: str, place: str, fault: _Fault) -> None:
    asked = Path(os.environ[FILE])
    owner, _, attribute = f"sglang_speckv.{place}".rpartition(".")
    where = pkgutil.resolve_name(owner)
    original = getattr(where, attribute)

    def breakable(*args: Any, **kwargs: Any) -> Any:
        if asked.read_text() == name:
            return fault(original, *args, **kwargs)
        return original(*args, **kwargs)

    setattr(where, attribute, breakable)


def _raising(name: str) -> _Fault:
    def fault(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"fault {name}")

    return fault


def _answering(answers: Iterator[Any]) -> _Fault:
    return lambda *args, **kwargs: next(answers)


def _decisions() -> Iterator[Any]:
    from sglang_speckv.policy.base import Decision

    steps = [4, -1, 10**400, 3.0, True, np.int64(3), np.nan, np.inf, "3", None, [3]]
    wrong = [Decision(step, "best") for step in steps]  # type: ignore[arg-type]
    wrong += [Decision(3, "best", belief) for belief in ("much", [1.0], {})]  # type: ignore[arg-type]
    return itertools.cycle([None, 3, "best", object(), *wrong])


def _widths() -> Iterator[Any]:
    def wrong(size: int) -> list[Any]:
        numbers = [np.full(size, number) for number in (-1, 99, 0.5, np.nan, 1 << 40)]
        return ["1", 1, [], np.zeros(size + 1, int), np.zeros((size, 1), int), *numbers]

    return itertools.cycle(itertools.chain.from_iterable(map(wrong, (1, 2, 4))))


def _unclear(original: _Fault, logits: Any, out: Any) -> None:
    original(logits, out)
    out[:] = next(_READINGS)


_READINGS = itertools.cycle([float("nan"), float("inf"), float("-inf"), 2.0, -1.0])


def _jumping(original: _Fault, self: Any, *args: Any) -> Any:
    """The clock was set ahead or back since the last result, or tells nothing."""
    if self._last_result is not None:
        self._last_result += next(_JUMPS)
    return original(self, *args)


_JUMPS = itertools.cycle([3600.0, -1e9, float("nan"), 0.0, -3600.0, 1e9, float("inf")])


class _FullDisk:
    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, content: bytes) -> int:
        if Path(os.environ[FILE]).read_text() == "disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return int(self._file.write(content))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


WRONG: dict[str, tuple[str, _Fault]] = {
    "policy": ("policy.throughput.ThroughputPolicy.decide", _raising("policy")),
    "decisions": ("policy.throughput.ThroughputPolicy.decide", _answering(_decisions())),
    "learning": ("policy.throughput.ThroughputPolicy.observe", _raising("learning")),
    "going on": ("policy.throughput.ThroughputPolicy.goes_on", lambda *_: np.ones(2)),
    "widths": ("policy.throughput.ThroughputPolicy.widths", _answering(_widths())),
    "signals": ("srt.signals.reduce_logits", _unclear),
    "clock": ("srt.rounds.RoundTracker._own_time", _jumping),
}
"""What answers wrongly: where, and how."""
