"""What a round costs: seconds per (batch size, depth), measured while serving.

T(B, k) is a cell's own robust mean, blended with a fit over all cells where it has few samples:

    a + b max(k - 1, 0) + c B (k + 1)        (k - 1 draft forwards, B (k + 1) verified tokens)

The machine's speed drifts (neighbours, clocks, context length). That is common to all depths, so
times are divided by a ``level`` that follows it: a slow spell is not blamed on the depth that
happened to run.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median

import numpy as np

MAX_BUCKET = 24
"""Half octaves: sizes from 4096 share the last bucket."""
MEMORY = 256.0
"""Rounds after which a sample weighs 1/e; a cell keeps at least FLOOR of them."""
FLOOR = 3.0
CAPACITY = 48.0
"""Samples a cell remembers."""
SURPRISE = 0.3
"""Relative deviation from which a sample is taken for an outlier, at first."""
FIT_WEIGHT = 3.0
"""Samples that the fit is worth beside a cell's own."""
SHAPE = np.array([1.0, 0.06, 0.02])
"""a, b, c before any evidence, relative to a, and how far they may be off."""
SHAPE_SPREAD = np.array([1.0, 0.08, 0.04])
RIDGE = np.diag(SHAPE_SPREAD**-2.0)
FIT_ERROR = 0.05
"""Relative error of the fit itself, growing with the distance in batch size."""
FIT_ROUNDS = 8
"""Rounds that a fit is kept for."""
LEVEL_WINDOW = 21
"""Rounds whose median tells the machine's speed."""
LEVEL_ERROR = 0.3
"""Error of a cell that was measured at another level, per e-fold between them: what looked like
a slow machine may have been the depth that ran."""


def bucket_of(batch_size: int) -> int:
    return min(MAX_BUCKET, int(2.0 * math.log2(batch_size)))


class CostModel:
    """Times are in seconds divided by ``level``, except in :meth:`seconds`."""

    def __init__(self, max_steps: int):
        shape = (MAX_BUCKET + 1, max_steps + 1)
        self._count = np.zeros(shape)
        self._mean = np.zeros(shape)
        self._size = np.ones(shape)
        self._level = np.ones(shape)
        self._ratios: deque[float] = deque(maxlen=LEVEL_WINDOW)
        self._fits: dict[int, tuple[int, list[float]]] = {}
        self.level = 1.0
        self.noise = 0.1
        """Mean relative deviation of a single round."""
        self.samples = 0

    def update(self, batch_size: int, num_steps: int, seconds: float) -> float:
        """Learn one clean round, ``num_steps`` <= max_steps; returns measured over expected."""
        expected = self.times(batch_size)[0][num_steps] if self.samples else None
        level = self.level
        self.samples += 1
        self._count = np.maximum(
            self._count * math.exp(-1.0 / MEMORY), np.minimum(self._count, FLOOR)
        )
        cell = bucket_of(batch_size), num_steps
        if expected is not None and self._count[cell] >= FLOOR:
            self._follow(seconds / expected)
        self._learn(cell, batch_size, seconds / self.level, expected)
        fitted = self._fits.get(cell[0])
        if fitted is None or self.samples >= fitted[0] + min(FIT_ROUNDS, fitted[0]):
            self._refit(batch_size)
        return 1.0 if expected is None else seconds / (expected * level)

    def _follow(self, ratio: float) -> None:
        """Attribute what is common to the last rounds to the machine."""
        self._ratios.append(ratio)
        if len(self._ratios) == self._ratios.maxlen:
            self.level = median(self._ratios)
        deviation = min(abs(ratio / self.level - 1.0), 0.5)
        self.noise += (deviation - self.noise) / 64.0

    def _learn(
        self, cell: tuple[int, int], batch_size: int, time: float, expected: float | None
    ) -> None:
        count = min(float(self._count[cell]), CAPACITY)
        mean = float(self._mean[cell])
        if count <= FLOOR + 1 and time < (1.0 - SURPRISE) * mean:
            count = 0.0  # nothing makes a round too fast: what came before was a pause
        elif count >= FLOOR and abs(time - mean) > SURPRISE * mean:
            time = min(time, (1.0 + SURPRISE) * mean)
            count *= 0.75  # one is an outlier, several in a row are the new truth
        elif count < FLOOR and expected is not None:
            time = min(time, (1.0 + 2 * SURPRISE) * expected)
        gain = 1.0 / (count + 1.0)
        self._count[cell] = count + 1.0
        self._mean[cell] += gain * (time - mean)
        self._size[cell] += gain * (batch_size - self._size[cell])
        self._level[cell] += max(gain, 0.25) * (self.level - self._level[cell])

    def times(self, batch_size: int) -> tuple[list[float], list[float]]:
        """T(B, 0..K), and the relative standard error of each."""
        row = bucket_of(batch_size)
        if row not in self._fits:
            self._refit(batch_size)
        a, b, c = self._fits[row][1]
        times, errors = [], []
        cells = (of[row].tolist() for of in (self._count, self._mean, self._size, self._level))
        for steps, (count, mean, size, level) in enumerate(zip(*cells, strict=True)):
            fit = a + b * max(steps - 1, 0) + c * batch_size * (steps + 1)
            own = max(mean + c * (batch_size - size) * (steps + 1), 0.5 * mean)
            share = FIT_WEIGHT / (FIT_WEIGHT + count)
            times.append(share * fit + (1.0 - share) * own)
            doubt = 2.0 * FIT_ERROR * share + LEVEL_ERROR * abs(math.log(level / self.level))
            errors.append(math.hypot(self.noise / math.sqrt(count + 1.0), doubt))
        return times, errors

    def seconds(self, batch_size: int) -> list[float]:
        """T(B, 0..K) in seconds at the machine's present speed."""
        return [time * self.level for time in self.times(batch_size)[0]]

    def _refit(self, batch_size: int) -> None:
        self._fits[bucket_of(batch_size)] = self.samples, self._fit(batch_size).tolist()

    def _fit(self, batch_size: int) -> np.ndarray:
        """Ridge regression of a, b, c on the cells, the nearer in batch size the heavier."""
        cells = np.nonzero(self._count)
        count, mean, size = self._count[cells], self._mean[cells], self._size[cells]
        features = np.empty((len(mean), 3))
        features[:, 0] = 1.0
        features[:, 1] = np.maximum(cells[1] - 1, 0)
        features[:, 2] = size * (cells[1] + 1)
        usual = features @ SHAPE
        apart = FIT_ERROR + 0.1 * np.abs(np.log2(size / batch_size))
        weight = 1.0 / (self.noise**2 / count + apart**2)
        scale = float((weight * mean / usual).sum() / weight.sum())
        rows = features / usual[:, None]
        weighted = rows.T * weight
        theta = np.linalg.solve(
            weighted @ rows + RIDGE, weighted @ (mean / usual / scale) + RIDGE @ SHAPE
        )
        return scale * np.maximum(theta, (0.1, 0.0, 0.0))
