"""How long the policies take: decide, ask and observe, in microseconds, quietest of five runs.

CPU time of the thread, so that the turns of other processes on a busy machine do not count.
``throughput`` is given draft probabilities of every request, some unknown. ``watched`` is the same
policy where rounds stop and drafts are cut, with all probabilities known; ``ask`` is what one round
spends on both questions.

    python benchmarks/decision.py

A table first; the last line is the same figures as one JSON object. The bars for 64 requests
and 8 tiers, unwatched: decide median <= 30 and p99 <= 50, observe p99 <= 200.
"""

from __future__ import annotations

import gc
import json
from dataclasses import dataclass
from time import thread_time_ns

import numpy as np

from sglang_speckv.policy import Batch, Round, StepPolicy, create_policy
from sglang_speckv.policy.throughput import ThroughputPolicy
from sglang_speckv.replay.walk import drafted

TIERS = (0, 1, 2, 3, 4, 5, 6, 7)
RUNS, ROUNDS, WARM_UP = 5, 2000, 300
WATCHED = "watched"


@dataclass(frozen=True)
class Outcome:
    """Per request how deep it would go, and what the draft says before and while it drafts
    [size, depth]; jitter of the time."""

    depths: np.ndarray
    first_probs: np.ndarray | None
    probs: np.ndarray
    jitter: float

    @property
    def size(self) -> int:
        return len(self.depths)


def rounds(sizes: list[int], signals: bool, unknown: float) -> list[Outcome]:
    rng = np.random.default_rng(0)
    outcomes = []
    for _ in range(ROUNDS):
        size = int(rng.choice(sizes))
        probs = rng.beta(1.5, 1.0, (size, TIERS[-1]))
        firsts = np.where(rng.random(size) < unknown, np.nan, probs[:, 0])
        right = rng.random(probs.shape) < 0.9 * probs
        depths = right.cumprod(axis=1).sum(axis=1)
        jitter = float(rng.lognormal(0, 0.1))
        outcomes.append(Outcome(depths, firsts if signals else None, probs, jitter))
    return outcomes


def one_run(policy: StepPolicy, outcomes: list[Outcome]) -> dict[str, float]:
    spent: dict[str, list[int]] = {"decide": [], "ask": [], "observe": []}
    for outcome in outcomes:
        size = outcome.size
        names = tuple(range(size))
        batch = Batch(size, outcome.first_probs, names)
        start = thread_time_ns()
        decision = policy.decide(batch)
        decided = thread_time_ns()
        steps, widths = drafted(policy, decision, outcome.probs)
        asked = thread_time_ns()
        cut = 0 if widths is None else int(size * steps - widths.sum())
        seconds = 0.04 + 0.003 * steps + 0.0004 * (size * (steps + 1) - cut)
        correct = np.minimum(outcome.depths, steps if widths is None else widths).tolist()
        signals = np.stack([outcome.probs, outcome.probs], axis=-1)[:, :steps] if steps else None
        done = Round(
            steps,
            size,
            correct,
            seconds * outcome.jitter,
            outcome.first_probs,
            signals,
            requests=names,
            stopped=steps < decision.num_steps,
            widths=widths,
            cut=cut,
        )
        observed = thread_time_ns()
        policy.observe(done)
        spent["observe"].append(thread_time_ns() - observed)
        spent["decide"].append(decided - start)
        spent["ask"].append(asked - decided)
    figures = {}
    for what, nanoseconds in spent.items():
        ordered = sorted(nanoseconds[WARM_UP:])
        figures[f"{what}_median_us"] = ordered[len(ordered) // 2] / 1e3
        figures[f"{what}_p99_us"] = ordered[int(0.99 * len(ordered))] / 1e3
    return figures


def policy_of(name: str) -> StepPolicy:
    policy = create_policy("throughput" if name == WATCHED else name, TIERS, 3)
    if isinstance(policy, ThroughputPolicy):
        policy.watch(stops=name == WATCHED, widths=name == WATCHED)
    return policy


def measure(name: str, sizes: list[int]) -> dict[str, float]:
    signals = name in ("throughput", WATCHED)
    outcomes = rounds(sizes, signals, unknown=0.0 if name == WATCHED else 0.1)
    gc.collect()
    gc.disable()
    try:
        runs = [one_run(policy_of(name), outcomes) for _ in range(RUNS)]
    finally:
        gc.enable()
    return {key: round(min(run[key] for run in runs), 2) for key in runs[0]}


def main() -> None:
    loads = {"1": [1], "16": [16], "64": [64], "60-64": [60, 61, 62, 63, 64]}
    rows = [
        {"policy": name, "batch": batch, **measure(name, sizes)}
        for name in ("throughput", WATCHED, "ema", "static:3")
        for batch, sizes in loads.items()
    ]
    heads = "".join(f"{what + ' median, p99':>22}" for what in ("decide", "ask", "observe"))
    print(f"{'policy':<12}{'batch':>8}{heads}  (us)")
    for row in rows:
        figures = [float(row[key]) for key in row if key.endswith("_us")]
        told = "".join(f"{figure:>11.1f}" for figure in figures)
        print(f"{row['policy']:<12}{row['batch']:>8}{told}")
    print(json.dumps({"benchmark": "decision", "tiers": len(TIERS), "rows": rows}))


if __name__ == "__main__":
    main()
