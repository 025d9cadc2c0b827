"""What a round costs, read off recorded rounds: T(batch size, depth) in seconds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sglang_speckv.config import ConfigError, Shape
from sglang_speckv.offline.columns import Columns
from sglang_speckv.policy.prior import OFF, CostPrior

ENOUGH = 8
"""Rounds from which a cell counts as measured rather than fitted."""
FIT_WEIGHT = 16.0
"""Rounds that the fit is worth beside a cell's own mean."""
EXACT = 1e9
"""Rounds of a time that was given rather than measured."""


def measure_cost(columns: Columns) -> CostPrior:
    """Mean seconds per (batch size, depth) over clean rounds in which every draft was verified,
    without the outer tenths.

    Raises:
        ConfigError: no round has a time.
    """
    keys = columns.file.astype(np.int64) << 40 | columns.round
    first = np.unique(keys, return_index=True)[1]
    cut = keys[columns.num_verified < columns.num_steps]
    first = first[~np.isin(keys[first], cut)]
    first = first[~np.isnan(columns.seconds[first])]
    if not len(first):
        raise ConfigError(
            "no recorded round has a time, so a cost table cannot be measured; give --cost or "
            "--draft-cost"
        )
    steps = np.where(columns.asleep[first], OFF, columns.num_steps[first])
    cells = np.stack([columns.batch_size[first], steps], axis=1)
    unique, which = np.unique(cells, axis=0, return_inverse=True)
    members = [first[which.ravel() == i] for i in range(len(unique))]
    return CostPrior(
        batch_size=unique[:, 0],
        num_steps=unique[:, 1],
        seconds=np.array([_trimmed_mean(columns.seconds[rows]) for rows in members]),
        rounds=np.array([float(len(rows)) for rows in members]),
    )


class MeasuredCost:
    """A cell's own mean blended with a fit over all cells, the more its own the more rounds it has:

        a + b max(k - 1, 0) + c B (k + 1)

    and a straight line in B without speculation. Both are fitted to relative errors.
    """

    unit = "tok/s"

    def __init__(self, prior: CostPrior, source: str):
        self.source = source
        self.prior = prior
        drafting = prior.num_steps != OFF
        if len(np.unique(prior.num_steps[drafting])) < 2:
            raise ConfigError(
                f"{source}: one depth only, which does not tell what other depths cost; give "
                "--cost (a JSON file, an artifact or another trace) or --draft-cost"
            )
        self._fit = _fit(self._features(prior.batch_size, prior.num_steps), prior, drafting)
        self._off = _fit(_line(prior.batch_size), prior, ~drafting) if (~drafting).any() else None

    @property
    def misfit(self) -> float:
        """How far measured cells are from the fit, a mean relative deviation: what a busy machine
        did to them, or what the fit does not know of."""
        prior = self.prior
        rows = np.flatnonzero((prior.rounds >= ENOUGH) & (prior.num_steps != OFF))
        if not len(rows):
            return 0.0
        features = self._features(prior.batch_size[rows], prior.num_steps[rows])
        return float(np.abs(prior.seconds[rows] / (features @ self._fit) - 1.0).mean())

    @property
    def draft(self) -> float:
        """Of one forward of the draft."""
        return float(self._fit[1])

    @property
    def token(self) -> float:
        """Of one verified token."""
        return float(self._fit[2])

    @property
    def knows_off(self) -> bool:
        return self._off is not None

    def times(self, batch_size: np.ndarray, steps: Sequence[int]) -> np.ndarray:
        """T of shape [len(batch_size), len(steps)]; :data:`OFF` is allowed where it is known."""
        sizes, where = np.unique(batch_size, return_inverse=True)
        table = np.stack([self._column(sizes, k) for k in steps], axis=1)
        return table[where.ravel()]

    def measured(self, batch_size: int, steps: int) -> bool:
        """Whether T comes from rounds of just this size and depth."""
        return bool(self._cells(np.array([batch_size]), steps)[1][0] >= ENOUGH)

    def _column(self, sizes: np.ndarray, steps: int) -> np.ndarray:
        if steps == OFF:
            assert self._off is not None
            fitted = _line(sizes) @ self._off
        else:
            fitted = self._features(sizes, np.full(len(sizes), steps)) @ self._fit
        own, rounds = self._cells(sizes, steps)
        return (own * rounds + fitted * FIT_WEIGHT) / (rounds + FIT_WEIGHT)

    def _cells(self, sizes: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """The cells' own seconds and rounds, 0 and 0 where there is none."""
        prior = self.prior
        rows = np.flatnonzero(prior.num_steps == steps)
        columns = (prior.batch_size[rows], prior.seconds[rows], prior.rounds[rows])
        own = {size: cell for size, *cell in zip(*(of.tolist() for of in columns), strict=True)}
        cells = np.array([own.get(size, (0.0, 0.0)) for size in sizes.tolist()])
        return cells[:, 0], cells[:, 1]

    @staticmethod
    def _features(sizes: np.ndarray, steps: np.ndarray) -> np.ndarray:
        return np.stack(
            [np.ones(len(sizes)), np.maximum(steps - 1, 0), sizes * (steps + 1)], axis=1
        ).astype(float)


class AssumedCost:
    """T(B, k) = V(B (k + 1)) + X + max(k - 1, 0) D in units of a target step.

    ``draft`` is D and X, one draft forward; V(n) = 1 + ``width`` (n - 1) for n verified tokens.
    """

    unit = "tokens per target step"
    knows_off = True

    def __init__(self, draft: float, width: float = 0.0):
        if not (0 <= draft < 100 and 0 <= width < 100):
            raise ConfigError(
                f"--draft-cost {draft} and --verify-width {width} are not shares of a target step, "
                "such as 0.1 and 0.02"
            )
        self.draft, self.width = draft, width
        self.source = f"assumed: a draft forward {draft:g}, each further verified token {width:g}"

    @property
    def token(self) -> float:
        """Of one verified token."""
        return self.width

    def times(self, batch_size: np.ndarray, steps: Sequence[int]) -> np.ndarray:
        return np.stack([self._column(batch_size.astype(float), k) for k in steps], axis=1)

    def measured(self, batch_size: int, steps: int) -> bool:
        return True

    def of_shape(self, sizes: np.ndarray, shape: Shape) -> np.ndarray:
        """T of rounds that draft and verify so much of each request, [len(sizes)]."""
        tokens, drafting = sizes * shape.num_draft_tokens, self.draft * max(shape.num_steps, 1)
        return 1.0 + self.width * (tokens - 1.0) + drafting

    def _column(self, sizes: np.ndarray, steps: int) -> np.ndarray:
        if steps == OFF:
            return 1.0 + self.width * (sizes - 1.0)
        return self.of_shape(sizes, Shape(steps, steps + 1))


RoundCost = MeasuredCost | AssumedCost


def table_of(cost: RoundCost, sizes: Sequence[int], steps: Sequence[int]) -> CostPrior:
    """``cost`` written out at these batch sizes and depths, for policies that ask for a table."""
    times = cost.times(np.asarray(sizes), steps)
    size, depth = np.meshgrid(sizes, steps, indexing="ij")
    return CostPrior(size.ravel(), depth.ravel(), times.ravel(), np.full(times.size, EXACT))


def _fit(features: np.ndarray, prior: CostPrior, rows: np.ndarray) -> np.ndarray:
    """Non-negative coefficients by least squares of relative errors, weighted by rounds."""
    from scipy.optimize import nnls

    weight = np.sqrt(np.minimum(prior.rounds[rows], 4 * ENOUGH) + 1.0) / prior.seconds[rows]
    scaled = features[rows] * weight[:, None]
    return np.asarray(nnls(scaled, prior.seconds[rows] * weight)[0])


def _line(sizes: np.ndarray) -> np.ndarray:
    return np.stack([np.ones(len(sizes)), sizes], axis=1).astype(float)


def _trimmed_mean(seconds: np.ndarray) -> float:
    from scipy.stats import trim_mean

    return float(trim_mean(seconds, 0.1))
