"""How sure a difference between arms is: one resampling of blocks and of prompts for all figures.

Arms ran the same blocks, so a resample weighs a block (or a prompt) equally in all of them and
common noise cancels. Weights are Bayesian-bootstrap (exponential: Rubin 1981), once over blocks
and once over prompts; a figure's interval is the wider of the two. A request's share of a block's
time is its share of the summed latencies. Few blocks make a percentile interval too short,
so the interval is the bootstrap's standard error times Student's t.

A figure that picks the best arm picks it anew in every resample; the mean difference to the
figure itself estimates by how much picking flatters the picked one, and is taken off. Among equals
that is about a third of it: what is left favours the best static arm, on average and not in every
run. The 95 % interval of such a figure holds the truth in 91 to 95 % of simulated runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
MIN_BLOCKS = 3

Statistic = Callable[[np.ndarray], np.ndarray]
"""From log tok/s [..., cells, arms] to the log of a figure [...]."""


@dataclass(frozen=True)
class Ratio:
    """One figure over another, with a 95 % interval where there are blocks enough."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"x{self.value:.2f}"
        return f"x{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"

    @property
    def interval(self) -> list[float] | None:
        if self.low is None or self.high is None:
            return None
        return [round(self.low, 4), round(self.high, 4)]


@dataclass(frozen=True)
class Units:
    """What one cell's arms did per unit that can be drawn: both [arms, units]. Where an arm did
    nothing (0 seconds), the first arm, which did everything, says how fast those units are."""

    tokens: np.ndarray
    seconds: np.ndarray
    ids: tuple[str, ...]
    """Names of the units; a unit of the same name in another cell is drawn together with it."""


@dataclass(frozen=True)
class Sample:
    """One cell: the same requests grouped by block and by prompt."""

    blocks: Units
    prompts: Units


class Resampled:
    """Log tok/s of all arms in some cells, as measured and in every resample."""

    def __init__(self, cells: Sequence[Sample], seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._point = _log_rates([cell.blocks for cell in cells], None)
        counts = [len(cell.blocks.ids) for cell in cells]
        self._enough = min(counts) >= MIN_BLOCKS
        by_block = [cell.blocks for cell in cells]
        by_prompt = [cell.prompts for cell in cells]
        prompts = {name for units in by_prompt for name in units.ids}
        self._draws = [
            _Draws(_log_rates(by_block, rng), min(counts), sum(counts) - len(counts)),
            _Draws(_log_rates(by_prompt, rng), len(prompts), len(prompts) - 1),
        ]

    def ratio(
        self, statistic: Statistic, picks_best: bool = False, blocks: int | None = None
    ) -> Ratio:
        """The figure, e to the power of ``statistic``; ``picks_best`` corrects for the picking.
        ``blocks`` are those of an arm that has fewer than the cell."""
        value = float(statistic(self._point[None])[0])
        if not self._enough or (blocks is not None and blocks < MIN_BLOCKS):
            return Ratio(math.exp(value))
        bias = self._draws[0].bias(statistic, value) if picks_best else 0.0
        widths = [draws.half_width(statistic) for draws in self._draws]
        centre = value - bias
        width = max(widths)
        return Ratio(math.exp(centre), math.exp(centre - width), math.exp(centre + width))


@dataclass(frozen=True)
class _Draws:
    """``log_rates`` [resamples, cells, arms]; ``units`` drawn from and degrees of freedom."""

    log_rates: np.ndarray
    units: int
    freedom: int

    @property
    def small(self) -> float:
        """The weights' variance is (n - 1) / (n + 1) of what the mean's variance estimates."""
        return math.sqrt((self.units + 1) / (self.units - 1))

    def bias(self, statistic: Statistic, value: float) -> float:
        return self.small * float(np.mean(statistic(self.log_rates)) - value)

    def half_width(self, statistic: Statistic) -> float:
        if self.units < 2:
            return 0.0
        from scipy.stats import t

        return float(t.ppf(0.975, self.freedom) * self.small * np.std(statistic(self.log_rates)))


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation over mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    return float(np.std(values, ddof=1) / np.mean(values))


def over(arm: int, other: int, cell: int = 0) -> Statistic:
    """tok/s of one arm over another's in one cell."""
    return lambda log: log[..., cell, arm] - log[..., cell, other]


def over_best(arm: int, others: Sequence[int], cell: int = 0) -> Statistic:
    """tok/s of one arm over the best of ``others`` in one cell."""
    return lambda log: log[..., cell, arm] - log[..., cell, list(others)].max(-1)


def mean_over(arm: int, other: int) -> Statistic:
    """Geometric mean over the cells of one arm over another's."""
    return lambda log: log[..., arm].mean(-1) - log[..., other].mean(-1)


def mean_over_best(arm: int, others: Sequence[int]) -> Statistic:
    """The same over the one of ``others`` that is best as a single setting for all cells."""
    return lambda log: log[..., arm].mean(-1) - log[..., list(others)].mean(-2).max(-1)


def headroom(arms: Sequence[int]) -> Statistic:
    """The best of ``arms`` per cell over the best single one, geometric means over cells."""
    chosen = list(arms)
    return lambda log: log[..., chosen].max(-1).mean(-1) - log[..., chosen].mean(-2).max(-1)


def _log_rates(cells: Sequence[Units], rng: np.random.Generator | None) -> np.ndarray:
    """[resamples, cells, arms] of log tok/s; without ``rng`` as measured, [cells, arms]."""
    names = {name for units in cells for name in units.ids}
    column = {name: i for i, name in enumerate(sorted(names))}
    drawn = None if rng is None else rng.standard_exponential((RESAMPLES, len(column)))
    rates = []
    for units in cells:
        weights = np.ones((1, len(units.ids)))
        if drawn is not None:
            weights = drawn[:, [column[name] for name in units.ids]]
        rates.append(_weighted(units, weights))
    stacked = np.stack(rates, axis=1)
    return stacked[0] if rng is None else stacked


def _weighted(units: Units, weights: np.ndarray) -> np.ndarray:
    """[resamples, arms] of log tok/s in one cell."""
    own = np.log(weights @ units.tokens.T) - np.log(weights @ units.seconds.T)
    there = (units.seconds > 0).astype(float)
    if there.all():
        return own
    first = np.log(weights @ (there * units.tokens[0]).T)
    first -= np.log(weights @ (there * units.seconds[0]).T)
    return own + own[:, :1] - first
