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
import tempfile
from pathlib import Path
from time import process_time

import msgspec
import numpy as np

from sglang_speckv.offline.columns import Columns, read_columns
from sglang_speckv.offline.records import Header, Record
from sglang_speckv.offline.round_cost import AssumedCost
from sglang_speckv.policy.prior import MlpWeights, Prior
from sglang_speckv.replay.arms import POLICIES, Setting, run_arm
from sglang_speckv.replay.play import Table
from sglang_speckv.replay.rounds import Rounds, recorded_rounds
from sglang_speckv.replay.score import cells_of, compare, earn

TIERS = (0, 1, 2, 3, 5, 7)
COST = AssumedCost(0.1, 0.01)
LOADS = (1, 4, 16)
READ = 100_000
"""Records read from a real file."""
HEADER = Header(
    target="t", draft="d", algorithm="EAGLE3", draft_vocab_size=1000, candidate_steps=TIERS
)


def synthetic(n: int, batch: int, depth: int = 7) -> Columns:
    """``n`` request-rounds of calibrated drafts, straight into memory."""
    rng = np.random.default_rng(0)
    accept = 1 / (1 + np.exp(-rng.normal(0.8, 1.2, (n, 1)) - rng.normal(0, 0.5, (n, depth))))
    correct = np.cumprod(rng.random((n, depth)) < accept, axis=1).sum(axis=1)
    number = np.arange(n)
    request = number // batch // 100 * batch + number % batch
    return Columns(
        header=HEADER,
        headers=(HEADER,),
        file=np.zeros(n, dtype=np.int32),
        round=number // batch,
        request=request,
        prompt=request % 500,
        label=request % 500 % 5,
        batch_size=np.full(n, batch),
        context_len=np.full(n, 200),
        num_steps=np.full(n, depth),
        num_correct_drafts=correct,
        first_prob=accept[:, 0],
        seconds=np.full(n, 0.05),
        signals=np.stack([accept, 1 - accept], axis=-1).astype(np.float32),
        requests=tuple(map(str, range(int(request.max()) + 1))),
        prompts=tuple(map(str, range(500))),
        labels=tuple("abcde"),
    )


def setting(rounds: Rounds) -> Setting:
    tokens, known = rounds.outcomes(TIERS)
    times = COST.times(rounds.size, TIERS)
    table = Table(TIERS, tokens, known, times, np.ones(len(rounds)))
    return Setting(rounds, table, cells_of(rounds), COST, prior=Prior(mlp=mlp()))


def mlp() -> MlpWeights:
    """Some weights: the time does not depend on which."""
    rng = np.random.default_rng(0)
    return MlpWeights(rng.random((6, 16)), rng.random(16), rng.random(16), np.array(0.4))


def per_million(seconds: float, n: int) -> float:
    return round(seconds * 1e6 / n, 2)


def measure(n: int, batch: int) -> list[dict[str, object]]:
    """A row per arm, and one for all that is done once: grouping, scoring, intervals."""
    columns = synthetic(n, batch)
    start = process_time()
    at = setting(recorded_rounds(columns))
    once = process_time() - start
    rows: list[dict[str, object]] = []
    arms = {}
    for name in (*POLICIES, "static:3", "oracle"):
        start = process_time()
        played = run_arm(name, at)
        rows.append(
            {"arm": name, "batch": batch, "seconds": per_million(process_time() - start, n)}
        )
        start = process_time()
        arms[name] = earn(at.rounds, at.table, at.cells, played)
        once += process_time() - start
    start = process_time()
    compare(arms, "static:3", at.cells.work)
    once += process_time() - start
    return [*rows, {"arm": "(grouping, scoring)", "batch": batch, "seconds": per_million(once, n)}]


def reading() -> float:
    """Seconds for the :data:`READ` records of a real file."""
    import gzip

    encode = msgspec.json.Encoder().encode
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl.gz"
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(encode(HEADER) + b"\n")
            for i in range(READ):
                file.write(
                    encode(
                        Record(
                            round=i // 4,
                            request=f"code:{i % 50}:{i % 400}",
                            batch_size=4,
                            context_len=100,
                            num_steps=7,
                            num_correct_drafts=i % 8,
                            top1_prob=(0.5,) * 7,
                            entropy=(1.25,) * 7,
                            first_prob=0.5,
                            seconds=0.05,
                        )
                    )
                    + b"\n"
                )
        start = process_time()
        read_columns([path])
        return process_time() - start


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    rows = [row for batch in LOADS for row in measure(n, batch)]
    rows.append(
        {"arm": "(reading the trace)", "batch": None, "seconds": per_million(reading(), READ)}
    )
    arms = dict.fromkeys(str(row["arm"]) for row in rows)
    print(f"{'s per million':<28}" + "".join(f"{f'batch {b}':>12}" for b in LOADS))
    for arm in arms:
        found = {row["batch"]: row["seconds"] for row in rows if row["arm"] == arm}
        shown = [found.get(batch, found.get(None)) for batch in LOADS]
        print(f"{arm:<28}" + "".join(f"{seconds:>12}" for seconds in shown))
    print(json.dumps({"benchmark": "replay", "measured_on": n, "rows": rows}))


if __name__ == "__main__":
    main()
