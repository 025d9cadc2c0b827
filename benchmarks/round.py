"""What SpecKV does on the host in a decode round, part by part, in microseconds of Python.

Usage: python benchmarks/round.py [--rounds 2000] [--out FILE]

SpecKV's own worker, tap, tracker and default policy, over a stand-in for SGLang's worker that makes
logits of a tiny vocabulary: what a reduction computes is not the question here, nor is the copy to
the host. CPU time of the thread, so that the turns of other processes do not count; calls of torch
are in it as far as the CPU is, on CUDA they are launches. No graph: on CUDA ``drafting`` is in
one and costs the host nothing. Prints a table, then one JSON line. The bars are those of
``benchmarks/decision.py``, for 64 requests: to decide 30 at the median and 50 at p99, to learn 200
at p99; a switch of depth, which is part of ``deciding``, 20 (``benchmarks/switching.py``).
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from time import thread_time_ns
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from sglang_speckv.config import Shape, SpecKVConfig
from sglang_speckv.files import write_json
from sglang_speckv.provenance import provenance
from sglang_speckv.srt import compat, exact, in_round
from sglang_speckv.srt.controller import EnginePolicy
from sglang_speckv.srt.rounds import RoundTracker
from sglang_speckv.srt.signals import SignalTap
from sglang_speckv.srt.worker import SpecKVMixin, note_answers, note_result

STEPS = (0, 1, 2, 3, 5, 7)
LAUNCH = 3
SIZES = (1, 16, 64)
VOCAB = 64
WARM_UP = 300
PARTS = {
    "beginning": "the first signals of the coming round are looked up",
    "deciding": "a batch is described, a depth chosen and switched to",
    "drafting": "each draft's logits are reduced",
    "extending": "the next first draft's logits are reduced and noted",
    "noting": "signals are joined and packed for the copy to the host",
    "learning": "a result is joined with its round and learned from",
}


class Draft:
    """Calls what SGLang's EagleDraftWorker calls."""

    device = "cpu"
    cuda_graph_runner_for_draft_extend = None

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits
        output = SimpleNamespace(next_token_logits=logits)
        forwarded = SimpleNamespace(logits_output=output)
        self.draft_runner = SimpleNamespace(forward=lambda: forwarded)

    def draft_forward(self, num_steps: int) -> None:
        for _ in range(num_steps - 1):
            self.draft_runner.forward()

    def _draft_extend_for_decode(self, batch: Any) -> None:
        self.draft_runner.forward()

    _draft_extend_for_prefill = _draft_extend_for_decode


class Sglang:
    """A worker's round without its work."""

    def forward_batch_generation(self, batch: Any) -> Any:
        self.activate_step_by_batch(len(batch.reqs))
        if self.speculative_num_steps:
            self._draft_worker.draft_forward(self.speculative_num_steps)
        self._draft_worker._draft_extend_for_decode(batch)
        return SimpleNamespace(copy_done=None)

    def activate_step_by_batch(self, size: int) -> None:
        num_steps = self.speckv.get_steps_for_batch(size)
        if num_steps != self.speculative_num_steps:
            self.apply_runtime_state(self.states[num_steps])


class Worker(SpecKVMixin, Sglang):
    def __init__(self, size: int) -> None:
        self._config = SpecKVConfig(candidate_steps=STEPS)
        self.speckv = EnginePolicy(self._config, LAUNCH)
        self.speckv.watch_rounds(*in_round.why_not(SpecKVConfig(), "cuda", 1, True))
        self.speculative_num_steps = self.tier = LAUNCH
        self._fuse, self._rounds = self.speckv.fuse, RoundTracker()
        self._draft_worker = Draft(torch.randn(size, VOCAB) * 3)
        self._target_worker = SimpleNamespace(model_runner=SimpleNamespace())
        self._tap = SignalTap(self._draft_worker, max(STEPS), size, size, self._fuse)
        self._sleep = self._trace = self._result = self._widths = None
        self._lane = exact.ExactLane(None, self._fuse)
        self._graph_stop, self._exact = None, exact.NOBODY
        self._tree_tap = None
        self._waited, self._chain_buffers = False, {}
        empty = dict.fromkeys(compat.RUNTIME_STATE_FIELDS)
        fields = compat.RUNTIME_STATE_FIELDS[:2]
        self.states = {
            k: SimpleNamespace(**empty | dict(zip(fields, (k, k + 1), strict=True))) for k in STEPS
        }

    def _set_shape(self, shape: Shape) -> None:
        """Without SGLang's context, which ``benchmarks/switching.py`` has."""
        num_steps = self.tier = shape.num_steps
        self.speculative_num_steps = self._draft_worker.speculative_num_steps = num_steps


class Clock:
    """CPU nanoseconds of this thread by part, of the round that runs; a part inside of another one
    counts for itself only."""

    def __init__(self) -> None:
        self.spent: dict[str, int] = defaultdict(int)
        self._inside: list[int] = []

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(0)
            started = thread_time_ns()
            try:
                return call(*args, **kwargs)
            finally:
                taken = thread_time_ns() - started
                self.spent[part] += taken - self._inside.pop()
                if self._inside:
                    self._inside[-1] += taken

        return run

    def watch(self, worker: Worker) -> None:
        tap = worker._tap
        for owner, name, part in (
            (worker, "_round_begins", "beginning"),
            (worker, "activate_step_by_batch", "deciding"),
            (tap, "_look_at", "drafting"),
            (tap, "_note_first", "extending"),
            (worker, "_round_launched", "noting"),
            (worker, "on_verify_complete_cpu", "learning"),
        ):
            setattr(owner, name, self.timed(part, getattr(owner, name)))


def request() -> SimpleNamespace:
    """As SGLang keeps one, with the parameters that are looked at."""
    plain = {"frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0}
    plain |= {"min_new_tokens": 0, "min_p": 0.0, "top_k": 1}
    return SimpleNamespace(
        is_retracted=False,
        spec_num_cap_tokens=0,
        finished=lambda: False,
        origin_input_ids=[0] * 32,
        output_ids=[],
        sampling_params=SimpleNamespace(**plain, sampling_seed=None),
        custom_logit_processor=None,
    )


def rounds(size: int, count: int) -> Iterator[dict[str, int]]:
    """What each part took in each round."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    worker, clock = Worker(size), Clock()
    clock.watch(worker)
    mode = SimpleNamespace(is_extend=lambda: False)
    batch = SimpleNamespace(
        reqs=[request() for _ in range(size)],
        req_pool_indices=torch.arange(size),
        forward_mode=mode,
        is_extend_in_batch=False,
    )
    note, answered = (clock.timed("learning", hook) for hook in (note_result, note_answers))
    scheduler = SimpleNamespace(model_worker=worker)
    for _ in range(count):
        worker._draft_worker.logits.normal_(0.0, 3.0)
        clock.spent.clear()
        result = worker.forward_batch_generation(batch)
        note(scheduler, batch, result)
        most = worker.speculative_num_steps
        accepted = np.minimum(rng.geometric(0.4, size) - 1, most)
        worker.on_verify_complete_cpu(accepted.tolist(), size)
        answered(None, scheduler, batch)
        yield dict(clock.spent)
    assert not worker._fuse.failures and not worker.speckv.counters.fallbacks


def measure(size: int, count: int) -> dict[str, dict[str, float]]:
    gc.collect()
    gc.disable()
    try:
        seen = list(rounds(size, WARM_UP + count))[WARM_UP:]
    finally:
        gc.enable()
    figures = {part: [spent.get(part, 0) / 1e3 for spent in seen] for part in PARTS}
    figures["all"] = [sum(spent.values()) / 1e3 for spent in seen]
    return {
        part: {
            "median_us": round(float(np.median(found)), 1),
            "p99_us": round(float(np.percentile(found, 99)), 1),
        }
        for part, found in figures.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    by_size = {size: measure(size, args.rounds) for size in SIZES}
    result = {
        "benchmark": "round",
        "rounds": args.rounds,
        "vocab": VOCAB,
        "parts": PARTS,
        "by_requests": by_size,
        "provenance": provenance(),
    }
    report(by_size)
    print(json.dumps(result))
    if args.out:
        write_json(args.out, result)


def report(by_size: dict[int, dict[str, dict[str, float]]]) -> None:
    table = Table("median, p99 (us)", *(f"{size} requests" for size in by_size))
    for part in (*PARTS, "all"):
        cells = (found[part] for found in by_size.values())
        table.add_row(part, *(f"{cell['median_us']:.1f}, {cell['p99_us']:.1f}" for cell in cells))
    Console().print(table)


if __name__ == "__main__":
    main()
