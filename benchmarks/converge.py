"""How long a new server takes to decide as well as one that has served for a while.

Walked replay on prompts that neither an artifact nor the server has seen: a policy that is new
serves the same requests in the same orders as one that has served other ones before. Its tokens
per second over theirs, in windows of rounds, with nothing to start from, with a start-up profile,
and with an artifact as well:

    speckv train examples/traces/eagle3 -o out/eagle3.safetensors
    speckv train examples/traces/standalone -o out/standalone.safetensors
    python -m benchmarks.converge --artifacts out --out examples/results/converge.json
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from sglang_speckv.files import write_json
from sglang_speckv.offline.artifact import load_artifact
from sglang_speckv.policy import Prior
from sglang_speckv.progress import Screen
from sglang_speckv.provenance import provenance
from sglang_speckv.replay.arms import policy_of
from sglang_speckv.replay.run import ReplayOptions, Setting, prepare, walk_of
from sglang_speckv.replay.walk import Played, play

ROOT = Path(__file__).parents[1]
DRAFTS = ("eagle3", "standalone")
STARTS = ("nothing", "profile", "artifact and profile")
SERVED, ROUNDS, WINDOW = 2000, 320, 16
"""Rounds that one policy has served before; rounds that are compared, by so many."""
WITHIN = 0.02


@cache
def setting_of(draft: str, size: int) -> Setting:
    return prepare(options_of(draft, size))


def options_of(draft: str, size: int) -> ReplayOptions:
    return ReplayOptions(
        (ROOT / "examples" / "positions" / "held-out" / f"{draft}.safetensors",),
        cost=ROOT / "examples" / "traces" / draft,
        requests=(size,),
        passes=4,
    )


def both(
    draft: str, size: int, start: str, artifacts: Path, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """[windows, 2]: tokens and seconds of the new policy, and of the one that knows."""
    options, at = options_of(draft, size), setting_of(draft, size)
    prior = Prior()
    if start.startswith("artifact"):
        prior = replace(load_artifact(artifacts / f"{draft}.safetensors").prior, cost=None)
    price = at.price(size)

    def serve(policy: Any, order: int, stop: int | None) -> Played:
        noise = np.random.default_rng([order, 1])
        return play(policy, walk_of(at, options, size, order), price, noise=noise, stop=stop)

    profile = at.profile(size)
    new = policy_of("throughput", at.tiers, prior, () if start == "nothing" else profile)
    old = policy_of("throughput", at.tiers, Prior(), profile)
    serve(old, 10_000 + seed, SERVED)
    return windows(serve(new, seed, ROUNDS)), windows(serve(old, seed, ROUNDS))


def windows(played: Played) -> np.ndarray:
    tokens = played.tokens.reshape(len(played.num_steps), -1).sum(axis=1)
    columns = np.stack([tokens, played.seconds], axis=1)[: ROUNDS // WINDOW * WINDOW]
    summed: np.ndarray = columns.reshape(-1, WINDOW, 2).sum(axis=1)
    return summed


def settled(ratios: Sequence[float]) -> int:
    """Rounds after which the mean of all later windows, and of every four in a row among them, is
    within 2 % of 1."""
    for window in range(len(ratios)):
        later = np.array(ratios[window:])
        fours = np.convolve(later, np.ones(4) / 4, "valid") if len(later) >= 4 else later
        if min(later.mean(), fours.min()) >= 1.0 - WITHIN:
            return window * WINDOW
    return ROUNDS


def main(
    artifacts: Annotated[Path, typer.Option(help="Folder with an artifact for each draft.")],
    seeds: Annotated[int, typer.Option(help="Orders of the requests.")] = 128,
    jobs: Annotated[int, typer.Option(help="Processes.")] = 2,
    out: Annotated[Path | None, typer.Option(help="Write all figures here.")] = None,
) -> None:
    """Rounds until a new server earns what one that has served for a while does, less 2 %."""
    rows = []
    with Screen().status("replaying") as say, ProcessPoolExecutor(jobs) as pool:
        for draft in DRAFTS:
            for size in (1, 4):
                for start in STARTS:
                    say(f"{draft}, {size} at a time, from {start}")
                    one = partial(both, draft, size, start, artifacts)
                    new, old = (
                        sum(part) for part in zip(*pool.map(one, range(seeds)), strict=True)
                    )
                    rate = (new[:, 0] / new[:, 1]) / (old[:, 0] / old[:, 1])
                    whole = new.sum(axis=0) / old.sum(axis=0)
                    rows.append(
                        {
                            "draft": draft,
                            "requests": size,
                            "start": start,
                            "settled_after": settled(rate.tolist()),
                            "first_64_rounds": round(float(rate[:4].mean()), 4),
                            "all_320_rounds": round(float(whole[0] / whole[1]), 4),
                            "by_window": rate.round(4).tolist(),
                        }
                    )
                    print({k: v for k, v in rows[-1].items() if k != "by_window"}, flush=True)
    if out is not None:
        result = {"provenance": provenance(), "seeds": seeds, "window": WINDOW, "rows": rows}
        write_json(out, result)


if __name__ == "__main__":
    typer.run(main)
