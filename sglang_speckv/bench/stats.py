"""Throughput of arms, and how sure a difference between two is. Blocks are paired by index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Ratio:
    """One arm's tok/s over another's, with a 95 % interval where there are blocks enough."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"x{self.value:.2f}"
        return f"x{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def tok_per_s(tokens: Sequence[int], seconds: Sequence[float]) -> float:
    """All tokens over all wall time: not a mean of rates, which short blocks would bias."""
    return sum(tokens) / sum(seconds)


def paired_ratio(
    ours: Sequence[tuple[int, float]], theirs: Sequence[tuple[int, float]], seed: int = 0
) -> Ratio:
    """tok/s of ``ours`` over ``theirs``; both are (tokens, seconds) of the same blocks."""
    assert len(ours) == len(theirs) > 0, "blocks are not paired"
    columns = tuple(np.hstack([ours, theirs]).astype(float).T)
    value = float(_rate_ratio(*columns))
    if len(ours) < 3:
        return Ratio(value)
    from scipy.stats import bootstrap

    interval = bootstrap(
        columns,
        _rate_ratio,
        paired=True,
        vectorized=True,
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Ratio(value, float(interval.low), float(interval.high))


def spread(seconds: Sequence[float]) -> float | None:
    """Standard deviation over mean; None for fewer than two values."""
    if len(seconds) < 2:
        return None
    return float(np.std(seconds, ddof=1) / np.mean(seconds))


def _rate_ratio(*columns: Any, axis: int = -1) -> Any:
    tokens, seconds, other_tokens, other_seconds = columns
    rate = tokens.sum(axis=axis) / seconds.sum(axis=axis)
    return rate / (other_tokens.sum(axis=axis) / other_seconds.sum(axis=axis))
