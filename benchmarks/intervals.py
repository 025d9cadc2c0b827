"""How often the 95 % intervals of ``speckv ab`` hold the truth: a simulation, no server.

    python benchmarks/intervals.py [--trials 4000] [--out examples/results/coverage.json]

Two arms that are equally fast answer the same prompts in the same blocks. What a moment does to one
arm (``of_blocks``) and how well a prompt suits one (``of_prompts``) are drawn, in logs; prompts
come again after ``prompts`` of them, as they do in a run. Loads have blocks of their own, or one
block goes through all of them (``shared``) and a moment does the same to each. An interval that
says 95 % should hold 1 in 95 of 100 runs. ``lower_bound`` is about the claim that an arm is at
least x of every fixed setting: among six equal arms it should be wrong in at most 2.5 of 100 runs.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sglang_speckv.ab.intervals import Sample, ratio
from sglang_speckv.files import write_atomically
from sglang_speckv.provenance import provenance


@dataclass(frozen=True)
class Truth:
    """What is simulated: ``loads`` has the requests of a block under each load. Spreads are
    standard deviations of log seconds."""

    blocks: int = 8
    loads: tuple[int, ...] = (4,)
    prompts: int = 96
    arms: int = 2
    of_blocks: float = 0.05
    of_prompts: float = 0.1
    shared: bool = False

    def __str__(self) -> str:
        return (
            f"{self.blocks} {'shared ' * self.shared}blocks of {'+'.join(map(str, self.loads))}, "
            f"{self.prompts} prompts, {self.arms} arms, spreads {self.of_blocks}, {self.of_prompts}"
        )


def drawn(truth: Truth, rng: np.random.Generator) -> list[Sample]:
    suits = rng.normal(0, truth.of_prompts, (truth.arms, truth.prompts))
    samples: list[Sample] = []
    for load, requests in enumerate(truth.loads):
        place = np.repeat(np.arange(truth.blocks), requests)
        prompt = np.arange(len(place)) % truth.prompts
        if not samples or not truth.shared:
            moment = rng.normal(0, truth.of_blocks, (truth.arms, truth.blocks))
        common = rng.normal(0, 0.5, len(place))  # long and short prompts; the same for every arm
        seconds = np.exp(common + suits[:, prompt] + moment[:, place])
        block = place if truth.shared else place + load * truth.blocks
        samples.append(Sample(np.full(seconds.shape, 64.0), seconds, block, prompt.astype(str)))
    return samples


def covered(truth: Truth, trials: int, seed: int = 0) -> float:
    """The share of trials whose interval holds 1."""
    rng = np.random.default_rng(seed)
    found = [ratio(drawn(truth, rng), 0, 1) for _ in range(trials)]
    return float(np.mean([r.low <= 1 <= r.high for r in found]))


def overstated(truth: Truth, trials: int, seed: int = 0) -> float:
    """The share of trials in which arm 0 is said to be ahead of every other one."""
    rng = np.random.default_rng(seed)
    wrong = 0
    for _ in range(trials):
        cells = drawn(truth, rng)
        wrong += min(ratio(cells, 0, other).low for other in range(1, truth.arms)) > 1
    return wrong / trials


TRUTHS = (
    *(Truth(blocks=blocks) for blocks in (3, 4, 6, 8, 12)),
    *(Truth(loads=(requests,)) for requests in (1, 16)),
    *(Truth(prompts=prompts, loads=(16,)) for prompts in (16, 32)),
    *(Truth(of_prompts=0.0), Truth(of_blocks=0.0), Truth(of_blocks=0.2)),
    *(Truth(loads=(4,) * 3), Truth(loads=(16,) * 3, prompts=48)),
    # loads that vary unequally
    *(Truth(blocks=blocks, loads=(1, 4, 16), of_prompts=0.25) for blocks in (3, 6)),
    Truth(blocks=3, loads=(1, 64), prompts=192, of_blocks=0.02, of_prompts=0.25),
    # moving traffic
    *(
        Truth(blocks=blocks, loads=loads, of_blocks=0.1, of_prompts=0.05, shared=True)
        for loads in ((1, 4), (1, 4, 16))
        for blocks in (3, 6)
    ),
    *(Truth(blocks=b, loads=(1, 4, 16), of_prompts=0.25, shared=True) for b in (3, 6)),
)
EQUALS = (Truth(arms=7), Truth(arms=7, loads=(4,) * 3), Truth(arms=7, blocks=4))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=Path("examples/results/coverage.json"))
    args = parser.parse_args()
    results = {
        "provenance": provenance(),
        "trials": args.trials,
        "coverage": [],
        "lower_bound": [],
    }
    for truth in TRUTHS:
        share = covered(truth, args.trials)
        print(f"{truth}: {share:.1%} of the intervals hold the truth")
        results["coverage"].append(asdict(truth) | {"covered": round(share, 4)})
    for truth in EQUALS:
        share = overstated(truth, args.trials)
        print(f"{truth}: in {share:.1%} the lower bound against every other arm is above 1")
        results["lower_bound"].append(asdict(truth) | {"overstated": round(share, 4)})
    content = json.dumps(results, indent=1) + "\n"
    write_atomically(args.out, lambda scratch: scratch.write_text(content))


if __name__ == "__main__":
    main()
