"""How long the policies take: decide and observe, in microseconds, quietest of five runs.

CPU time of the thread, so that the turns of other processes on a busy machine do not count.
``throughput`` is given draft probabilities of every request, some unknown.

    python benchmarks/decision.py

A table first; the last line is the same figures as one JSON object. The bars for 64 requests
and 8 tiers: decide median <= 30 and p99 <= 50, observe p99 <= 200.
"""

from __future__ import annotations

import gc
import json
from dataclasses import dataclass
from time import thread_time_ns

import numpy as np

from sglang_speckv.policy import Batch, Round, StepPolicy, create_policy

TIERS = (0, 1, 2, 3, 4, 5, 6, 7)
RUNS, ROUNDS, WARM_UP = 5, 2000, 300


@dataclass(frozen=True)
class Outcome:
    """Per request how deep it would go, and what the draft says before; jitter of the time."""

    depths: np.ndarray
    first_probs: np.ndarray | None
    jitter: float

    @property
    def size(self) -> int:
        return len(self.depths)


def rounds(sizes: list[int], signals: bool) -> list[Outcome]:
    rng = np.random.default_rng(0)
    outcomes = []
    for _ in range(ROUNDS):
        size = int(rng.choice(sizes))
        probs = np.where(rng.random(size) < 0.1, np.nan, rng.beta(1.5, 1.0, size))
        depths = np.minimum(7, rng.geometric(1.0 - 0.9 * np.nan_to_num(probs, nan=0.6)) - 1)
        jitter = float(rng.lognormal(0, 0.1))
        outcomes.append(Outcome(depths, probs if signals else None, jitter))
    return outcomes


def one_run(policy: StepPolicy, outcomes: list[Outcome]) -> dict[str, float]:
    decide, observe = [], []
    for outcome in outcomes:
        size = outcome.size
        batch = Batch(size, outcome.first_probs)
        start = thread_time_ns()
        steps = policy.decide(batch).num_steps
        decide.append(thread_time_ns() - start)
        seconds = (0.04 + 0.003 * steps + 0.0004 * size * (steps + 1)) * outcome.jitter
        correct = np.minimum(outcome.depths, steps).tolist()
        done = Round(steps, size, correct, seconds, outcome.first_probs)
        start = thread_time_ns()
        policy.observe(done)
        observe.append(thread_time_ns() - start)
    figures = {}
    for what, nanoseconds in (("decide", decide), ("observe", observe)):
        ordered = sorted(nanoseconds[WARM_UP:])
        figures[f"{what}_median_us"] = ordered[len(ordered) // 2] / 1e3
        figures[f"{what}_p99_us"] = ordered[int(0.99 * len(ordered))] / 1e3
    return figures


def measure(spec: str, sizes: list[int]) -> dict[str, float]:
    outcomes = rounds(sizes, signals=spec == "throughput")
    gc.collect()
    gc.disable()
    try:
        runs = [one_run(create_policy(spec, TIERS, 3), outcomes) for _ in range(RUNS)]
    finally:
        gc.enable()
    return {key: round(min(run[key] for run in runs), 2) for key in runs[0]}


def main() -> None:
    loads = {"1": [1], "64": [64], "60-64": [60, 61, 62, 63, 64]}
    rows = [
        {"policy": spec, "batch": batch, **measure(spec, sizes)}
        for spec in ("throughput", "ema", "static:3")
        for batch, sizes in loads.items()
    ]
    print(f"{'policy':<12}{'batch':>8}{'decide median, p99':>24}{'observe median, p99':>24}  (us)")
    for row in rows:
        figures = [row[f"{what}_us"] for what in ("decide_median", "decide_p99")]
        learned = [row[f"{what}_us"] for what in ("observe_median", "observe_p99")]
        print(
            f"{row['policy']:<12}{row['batch']:>8}"
            f"{figures[0]:>14.1f}{figures[1]:>10.1f}{learned[0]:>14.1f}{learned[1]:>10.1f}"
        )
    print(json.dumps({"benchmark": "decision", "tiers": len(TIERS), "rows": rows}))


if __name__ == "__main__":
    main()
