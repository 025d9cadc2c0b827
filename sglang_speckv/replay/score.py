"""What replayed arms earned: tokens per second, and how sure a ratio of two of them is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sglang_speckv.ab.intervals import Ratio
from sglang_speckv.replay.walk import Played

RESAMPLES = 2000


@dataclass(frozen=True, eq=False)
class Earned:
    """``tokens`` and ``seconds`` [requests] of one arm, over all of its walks; a round's time is
    shared evenly by its requests."""

    tokens: np.ndarray
    seconds: np.ndarray

    @property
    def rate(self) -> float:
        return float(self.tokens.sum() / self.seconds.sum())


def earned(walks: Sequence[Played], requests: int) -> Earned:
    """By request, over several walks."""
    tokens, seconds = np.zeros(requests), np.zeros(requests)
    for played in walks:
        share = np.repeat(played.seconds / max(1, played.size), played.size)
        tokens += np.bincount(played.request, played.tokens, requests)
        seconds += np.bincount(played.request, share, requests)
    return Earned(tokens, seconds)


def over_best(arms: Mapping[str, Earned], fixed: Sequence[str]) -> dict[str, Ratio]:
    """Each arm's rate over the best of ``fixed``, with a 95 % interval: bootstrap over requests,
    the same resamples for every arm. The best is picked anew in each of them, as it would be by
    whoever had measured only those requests."""
    count = len(next(iter(arms.values())).tokens)
    draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    rates = {
        name: (draws @ arm.tokens) / np.maximum(draws @ arm.seconds, 1e-300)
        for name, arm in arms.items()
    }
    best = max(arms[name].rate for name in fixed)
    bests = np.max([rates[name] for name in fixed], axis=0)
    found = {}
    for name, arm in arms.items():
        low, high = np.percentile(rates[name] / bests, (2.5, 97.5))
        enough = count >= 3
        found[name] = Ratio(arm.rate / best, *((float(low), float(high)) if enough else ()))
    return found
