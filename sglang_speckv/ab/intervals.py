"""How sure a ratio between two arms is.

All arms answer the same prompts in the same blocks, so what a prompt or a moment does to every arm
cancels in their ratio. Two things do not: what else the machine did during one arm's block, and how
well a prompt's text suits an arm. The interval counts both. The log of a ratio of sums is
linearised; its residuals are summed by block and by prompt, and the variance is that of the blocks
plus that of the prompts less what both count (two-way clustering: Cameron, Gelbach and Miller,
Journal of Business & Economic Statistics 29, 2011, eq. 2.6). Few blocks make the normal quantile
too short, so Student's t is used, with as many degrees of freedom as the scarcer of the two has.

Estimates are raw ratios. Nothing is corrected for picking the best of several arms: an arm that is
said to be at least x of every fixed setting has each of those lower bounds at or above x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

MIN_BLOCKS = 3
"""Fewer blocks under a load give no interval."""
LEVEL = 0.95


@dataclass(frozen=True)
class Ratio:
    """One rate over another, with a 95 % interval where there are blocks enough."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.2f}" + self.interval_text

    @property
    def interval_text(self) -> str:
        return "" if self.low is None else f" [{self.low:.2f}, {self.high:.2f}]"

    @property
    def interval(self) -> list[float] | None:
        if self.low is None or self.high is None:
            return None
        return [round(self.low, 4), round(self.high, 4)]


@dataclass(frozen=True)
class Sample:
    """What every arm of one cell did, request by request.

    ``tokens`` and ``seconds`` are [arms, requests] and count towards throughput; ``block`` and
    ``prompt`` [requests] say which block a request was in and which prompt it answered. Requests
    of the same prompt are together in every cell.
    """

    tokens: np.ndarray
    seconds: np.ndarray
    block: np.ndarray
    prompt: np.ndarray

    def residuals(self, arm: int, other: int) -> tuple[float, np.ndarray]:
        """The log of one arm's rate over another's, and each request's part in its error."""
        value, parts = 0.0, np.zeros(self.tokens.shape[1])
        for sign, i in ((1.0, arm), (-1.0, other)):
            tokens, seconds = self.tokens[i], self.seconds[i]
            value += sign * (math.log(tokens.sum()) - math.log(seconds.sum()))
            parts += sign * (tokens / tokens.sum() - seconds / seconds.sum())
        return value, parts


def ratio(cells: Sequence[Sample], arm: int, others: int | Sequence[int]) -> Ratio:
    """tok/s of ``arm`` over another's: the geometric mean over ``cells``, each of which may have
    another arm to be compared with."""
    compared = [others] * len(cells) if isinstance(others, int) else list(others)
    found = [cell.residuals(arm, other) for cell, other in zip(cells, compared, strict=True)]
    value = sum(value for value, _ in found) / len(cells)
    blocks = [len(np.unique(cell.block)) for cell in cells]
    if min(blocks) < MIN_BLOCKS:
        return Ratio(math.exp(value))
    by_block = sum(
        _clustered(parts, cell.block) for cell, (_, parts) in zip(cells, found, strict=True)
    )
    by_both = sum(
        _clustered(parts, [f"{b} {p}" for b, p in zip(cell.block, cell.prompt, strict=True)])
        for cell, (_, parts) in zip(cells, found, strict=True)
    )
    prompts = np.concatenate([cell.prompt for cell in cells])
    by_prompt = _clustered(np.concatenate([parts for _, parts in found]), prompts)
    # never less than either alone, which the difference may be where there are few of both
    variance = max(by_block, by_prompt, by_block + by_prompt - by_both) / len(cells) ** 2
    freedom = max(1, min(sum(blocks) - len(blocks), len(np.unique(prompts)) - 1))
    width = float(student.ppf(0.5 + LEVEL / 2, freedom)) * math.sqrt(variance)
    return Ratio(math.exp(value), math.exp(value - width), math.exp(value + width))


def _clustered(parts: np.ndarray, groups: Sequence[str] | np.ndarray) -> float:
    """The squares of the sums within each group, summed, with the usual correction for their
    number."""
    _, place = np.unique(groups, return_inverse=True)
    sums = np.bincount(place, weights=parts)
    return float(np.square(sums).sum()) * len(sums) / max(len(sums) - 1, 1)
