"""How long a replay takes: seconds of one core per policy for a million request-rounds.

CPU time of the process, so that the turns of others on a busy machine do not count. Measured on
fewer and scaled up (the time per round does not depend on how many came before), unless told
otherwise.

    python benchmarks/replay.py [REQUEST_ROUNDS]

A table first; the last line is the same figures as one JSON object. The bar: at most 60 s per
policy and load.
"""

from __future__ import annotations

import json
import sys
from time import process_time

import numpy as np

from sglang_speckv.offline.round_cost import AssumedCost
from sglang_speckv.policy import Prior
from sglang_speckv.policy.mlp import MlpWeights
from sglang_speckv.replay.arms import FORESEEING, IN_ROUND, ORACLE, POLICIES, Oracle, policy_of
from sglang_speckv.replay.positions import Positions, Source
from sglang_speckv.replay.run import Setting
from sglang_speckv.replay.score import Earned, earned, over_best
from sglang_speckv.replay.walk import Walk, play

TIERS = (0, 1, 2, 3, 5, 7)
LOADS = (1, 4, 16)
REQUESTS, LENGTH = 500, 100


def synthetic(depth: int = 7) -> Positions:
    """Answers with calibrated drafts, straight into memory."""
    rng = np.random.default_rng(0)
    n = REQUESTS * LENGTH
    chance = 1 / (1 + np.exp(-rng.normal(0.8, 1.2, (n, 1)) - rng.normal(0, 0.5, (n, depth))))
    correct = np.cumprod(rng.random((n, depth)) < chance, axis=1).sum(axis=1)
    names = tuple(("abcde"[i % 5], str(i)) for i in range(REQUESTS))
    signals = np.stack([chance, 1 - chance], axis=-1).astype(np.float32)
    start = np.arange(REQUESTS + 1) * LENGTH
    return Positions(
        Source("t", "d", "EAGLE3", names), True, start, correct, start[0] + correct, signals
    )


def mlp() -> MlpWeights:
    """Some weights: the time does not depend on which."""
    rng = np.random.default_rng(0)
    return MlpWeights(rng.random((6, 16)), rng.random(16), rng.random(16), np.array(0.4))


def measure(n: int, size: int) -> list[dict[str, object]]:
    """A row per arm, and one for scoring and intervals of all."""
    at = Setting(synthetic(), TIERS, AssumedCost(0.1, 0.01), Prior(mlp=mlp()))
    rows: list[dict[str, object]] = []
    arms: dict[str, Earned] = {}
    once = 0.0
    for name in (*POLICIES, *(f"{name}{IN_ROUND}" for name in FORESEEING), "static:3", ORACLE):
        walk = Walk(at.positions, [i % REQUESTS for i in range(n)], size)
        price = at.price(size)
        policy = (
            Oracle(walk, TIERS, price, 1.0)
            if name == ORACLE
            else policy_of(name, TIERS, at.prior, at.profile(size))
        )
        start = process_time()
        played = play(policy, walk, price, stop=n // size)
        took = process_time() - start
        rows.append({"arm": name, "batch": size, "seconds": per_million(took, len(played.tokens))})
        start = process_time()
        arms[name] = earned([played], REQUESTS)
        once += process_time() - start
    start = process_time()
    over_best(arms, ["static:3"])
    once += process_time() - start
    return [*rows, {"arm": "(scoring)", "batch": size, "seconds": per_million(once, n)}]


def per_million(seconds: float, n: int) -> float:
    return round(seconds * 1e6 / n, 2)


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    rows = [row for size in LOADS for row in measure(n, size)]
    print(f"{'arm':28} " + " ".join(f"{size:>8}" for size in LOADS) + "   s per million")
    for name in dict.fromkeys(row["arm"] for row in rows):
        told = [row["seconds"] for row in rows if row["arm"] == name]
        print(f"{name:28} " + " ".join(f"{seconds:8.1f}" for seconds in told))
    print(json.dumps({"request_rounds": n, "rows": rows}))


if __name__ == "__main__":
    main()
