"""How sure a ratio between two arms is.

All arms answer the same prompts in the same blocks, so what a prompt or a moment does to every arm
cancels in their ratio. Two things do not: what else the machine did during one arm's block, and how
well a prompt's text suits an arm. The interval counts both. The log of a ratio of sums is
linearised; its residuals are summed by block and by prompt, and the variance is that of the blocks
plus that of the prompts less what both count (two-way clustering: Cameron, Gelbach and Miller,
Journal of Business & Economic Statistics 29, 2011, eq. 2.6). Each of the three is a jackknife: a
group counts by how far its absence moves the estimate (CV3 of MacKinnon, Nielsen and Webb, Journal
of Applied Econometrics 38, 2023), because a group with much of the time pulls the estimate towards
itself.

Few blocks make the normal quantile too short, so Student's t is used. Loads differ in how much they
vary, and the one that varies most may have the fewest requests. So the degrees of freedom are those
that a sum of unequal variances has (Satterthwaite, Biometrics Bulletin 2, 1946), of blocks or of
prompts, whichever has fewer.

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
NOT_INFERIOR = 0.95
"""Of a load's best fixed setting: what an arm may cost at most to pass for as good."""


@dataclass(frozen=True)
class Ratio:
    """One rate over another, with a 95 % interval where there are blocks enough."""

    value: float
    low: float | None = None
    high: float | None = None

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
    with the same label are together in every cell: the loads of one moving block share its label,
    and blocks of different conditions need different ones.
    """

    tokens: np.ndarray
    seconds: np.ndarray
    block: np.ndarray
    prompt: np.ndarray

    def residuals(self, arm: int, other: int) -> tuple[float, np.ndarray]:
        """The log of one arm's rate over another's; and [2, requests] each request's part in its
        error and in the seconds, as a mean of both arms."""
        value, parts = 0.0, np.zeros((2, self.tokens.shape[1]))
        for sign, i in ((1.0, arm), (-1.0, other)):
            tokens, seconds = self.tokens[i], self.seconds[i]
            value += sign * (math.log(tokens.sum()) - math.log(seconds.sum()))
            share = seconds / seconds.sum()
            parts += sign * (tokens / tokens.sum() - share), share / 2
        return value, parts


def ratio(cells: Sequence[Sample], arm: int, other: int) -> Ratio:
    """tok/s of one arm over another's: the geometric mean over ``cells``."""
    found = [cell.residuals(arm, other) for cell in cells]
    value = sum(value for value, _ in found) / len(cells)
    if min(len(np.unique(cell.block)) for cell in cells) < MIN_BLOCKS:
        return Ratio(math.exp(value))
    parts = np.concatenate([parts for _, parts in found], axis=1)
    cell_of = np.repeat(np.arange(len(cells)), [len(cell.block) for cell in cells])
    blocks = np.concatenate([cell.block for cell in cells])
    prompts = np.concatenate([cell.prompt for cell in cells])
    pairs = [f"{block}\n{prompt}" for block, prompt in zip(blocks, prompts, strict=True)]
    by_block, of_blocks = _clustered(parts, cell_of, blocks)
    by_prompt, of_prompts = _clustered(parts, cell_of, prompts)
    by_both, _ = _clustered(parts, cell_of, pairs)
    # never less than either alone, which the difference may be where there are few of both
    variance = max(by_block, by_prompt, by_block + by_prompt - by_both) / len(cells) ** 2
    quantile = float(student.ppf(0.5 + LEVEL / 2, min(of_blocks, of_prompts)))
    width = quantile * math.sqrt(variance)
    return Ratio(math.exp(value), math.exp(value - width), math.exp(value + width))


def _clustered(
    parts: np.ndarray, cell_of: np.ndarray, groups: Sequence[str] | np.ndarray
) -> tuple[float, float]:
    """The variance of the cells' sum where requests of a group err together, and its degrees of
    freedom.

    Without a group that has the share h of a cell's seconds, the cell's estimate moves by the
    group's error over 1 - h; the squares of such moves times 1 - 1/n, of n groups, add up to the
    variance. Groups in the same cells are alike: the part of n of them has n - 1 degrees of
    freedom, and Satterthwaite's formula gives those of all parts together.
    """
    names, group_of = np.unique(groups, return_inverse=True)
    errors, shares = np.zeros((2, cell_of[-1] + 1, len(names)))
    np.add.at(errors, (cell_of, group_of), parts[0])
    np.add.at(shares, (cell_of, group_of), parts[1])
    there = shares > 0
    count = there.sum(axis=1, keepdims=True)
    moves = errors / np.maximum(1 - shares, np.finfo(float).eps) * np.sqrt(1 - 1 / count)
    squares = np.square(moves.sum(axis=0))
    variance = float(squares.sum())
    if not variance:
        return 0.0, 1.0
    _, kind = np.unique(there, axis=1, return_inverse=True)
    each = np.bincount(kind, weights=squares)
    freedom = np.maximum(np.bincount(kind) - 1, 1)
    return variance, variance**2 / float((each**2 / freedom).sum())
