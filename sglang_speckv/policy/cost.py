"""What a round costs: seconds per (batch size, depth, context), profiled and measured serving.

T(B, k, L) is a cell's own robust mean, blended with a fit over all cells where it has few samples:

    a + b max(k - 1, 0) + c B (k + 1) + d L

k - 1 draft forwards, B (k + 1) verified tokens, L tokens of context in all; a holds what every
round pays, draft-extend included, so a warm 0 is a cell like the others and not "off". A round that
the draft sleeps through (:data:`OFF`) is measured as a share of a warm 0.

The machine's speed drifts (neighbours, clocks). That is common to all depths, so times are divided
by a ``level`` that follows it: a slow spell is not blamed on the depth that happened to run.

Where the constants come from: SHAPE from the demo pair on two CPU cores (a draft step 6 % of a
round); the others set by hand on synthetic rounds with 12 % noise and 3 % pauses of twice the time
(`tests/unit/policy/simulate.py`), and not on recorded ones.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from functools import lru_cache
from statistics import median

import numpy as np

from sglang_speckv.policy.checks import context_of, is_count, is_time
from sglang_speckv.policy.context import ContextSlope
from sglang_speckv.policy.prior import OFF, CostPrior

MAX_BUCKET = 24
"""Half octaves: sizes from 4096 share the last bucket."""
MEMORY = 256.0
"""Rounds after which a sample weighs 1/e; a cell keeps at least FLOOR of them."""
FLOOR = 3.0
FADE_ROUNDS = 8
"""Rounds from one fading to the next."""
CAPACITY = 48.0
"""Samples a cell remembers."""
SURPRISE = 0.3
"""Relative deviation from which a sample is taken for an outlier, at first."""
FIT_WEIGHT = 3.0
"""Samples that the fit is worth beside a cell's own."""
SHAPE = (1.0, 0.06, 0.02)
"""a, b, c before any evidence, relative to a, and how far they may be off."""
SHAPE_SPREAD = (1.0, 0.08, 0.04)
FIT_ERROR = 0.05
"""Relative error of the fit itself, growing with the distance in batch size."""
FIT_ROUNDS = 16
"""Rounds that a fit is kept for."""
LEVEL_WINDOW = 21
"""Rounds whose median tells the machine's speed."""
MAX_LEVEL = 1e3
"""Bound of the level and of its inverse: with none, times that swing between two scales drive level
and cells apart until a float cannot hold them."""
PROFILE_ROUNDS = 6
"""Rounds that a profiled round is worth: at first nothing else is known of this machine."""

ProfileRow = tuple[int, int, int, float]
"""Batch size, num_steps, context_len (of all requests together), seconds."""


@lru_cache(maxsize=4096)
def bucket_of(batch_size: int) -> int:
    """floor(2 log2 B), by bits: asked several times a round."""
    return min(MAX_BUCKET, (int(batch_size) ** 2).bit_length() - 1)


class CostModel:
    """Times are in seconds divided by ``level``, except in :meth:`seconds`."""

    def __init__(self, max_steps: int, prior: CostPrior | None = None):
        # One column per depth and, where OFF points, one more for it.
        self._cells = np.zeros((4, MAX_BUCKET + 1, max_steps + 2))
        self._count, self._mean, self._size, self._context = self._cells
        self._size[:] = 1.0
        self._depths = range(max_steps + 1)
        steps = np.tile([*self._depths, 0], MAX_BUCKET + 1)
        self._awake = np.tile([True] * len(self._depths) + [False], MAX_BUCKET + 1)
        self._drafts, self._width = np.maximum(steps - 1, 0), steps + 1
        self._slope = ContextSlope()
        self._ratios: deque[float] = deque(maxlen=LEVEL_WINDOW)
        self._fits: dict[int, tuple[int, list[float]]] = {}
        self.fits = 0
        """Times change with it: so often were they fitted anew."""
        self.level = 1.0
        self.noise = 0.1
        """Mean relative deviation of a single round."""
        self.samples = 0
        """Rounds that are known of, measured or profiled."""
        if prior is not None:
            columns = prior.batch_size, prior.num_steps, prior.context_len, prior.seconds
            for size, steps, context, seconds, rounds in zip(*columns, prior.rounds, strict=True):
                if steps in self._depths and rounds >= 1:
                    self._enter(int(size), int(steps), float(context), float(seconds), int(rounds))

    def profiled(self, rows: Iterable[ProfileRow]) -> None:
        """Start from measured times, one or more per (batch size, depth, context). Rows that are no
        round of this model are left out."""
        cells: dict[tuple[int, int, int], list[float]] = {}
        for size, steps, context, seconds in rows:
            if is_count(size) and is_time(seconds) and (steps == OFF or steps in self._depths):
                cell = int(size), int(steps), context_of(context)
                cells.setdefault(cell, []).append(float(seconds))
        for (size, steps, context), times in cells.items():
            rounds = PROFILE_ROUNDS * len(times)
            self._enter(size, steps, float(context), _undisturbed(times), rounds)

    def _enter(self, size: int, steps: int, context: float, seconds: float, rounds: int) -> None:
        """One more fact about a cell, as if ``rounds`` rounds had taken ``seconds`` each."""
        cell = bucket_of(size), steps
        self.samples += rounds
        weight = min(float(rounds), CAPACITY / 2)
        gain = weight / (self._count[cell] + weight)
        if self._count[cell]:
            usual, mean = float(self._context[cell]), float(self._mean[cell])
            self._slope.learn(context - usual, seconds - mean, weight)
        self._count[cell] += weight
        for record, value in (
            (self._mean, seconds),
            (self._size, float(size)),
            (self._context, context),
        ):
            record[cell] += gain * (value - record[cell])
        self._fits.clear()
        self.fits += 1

    def update(
        self, batch_size: int, num_steps: int, seconds: float | None, context_len: int = 0
    ) -> None:
        """Learn one clean round, ``num_steps`` <= max_steps or :data:`OFF`."""
        if not is_time(seconds):
            return
        seconds, expected = float(seconds), None
        if num_steps == OFF:
            expected = self.off_time(batch_size, context_len)
        elif self.samples:
            expected = self._time(batch_size, num_steps, context_len)
        self.samples += 1
        if self.samples % FADE_ROUNDS == 0:
            faded = self._count * math.exp(-FADE_ROUNDS / MEMORY)
            self._count[:] = np.maximum(faded, np.minimum(self._count, FLOOR))
        cell = bucket_of(batch_size), num_steps
        if expected is not None and self._count[cell] >= FLOOR:
            self._follow(seconds / expected)
        self._learn(cell, batch_size, seconds / self.level, expected, context_len)
        made = self._fits.get(cell[0], (-FIT_ROUNDS,))[0]
        if self.samples < FIT_ROUNDS or self.samples - made >= FIT_ROUNDS:
            self._refit(batch_size)

    def _follow(self, ratio: float) -> None:
        """Attribute what is common to the last rounds to the machine."""
        self._ratios.append(ratio)
        if len(self._ratios) == self._ratios.maxlen:
            self.level = min(max(median(self._ratios), 1.0 / MAX_LEVEL), MAX_LEVEL)
        deviation = min(abs(ratio / self.level - 1.0), 0.5)
        self.noise += (deviation - self.noise) / 64.0

    def _learn(
        self,
        cell: tuple[int, int],
        batch_size: int,
        time: float,
        expected: float | None,
        context_len: int,
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
        if context_len > 0:
            context = float(self._context[cell])
            if count and context:
                self._slope.learn(context_len - context, time - mean, count * gain)
            self._context[cell] += (gain if context else 1.0) * (context_len - context)
        self._count[cell] = count + 1.0
        self._mean[cell] += gain * (time - mean)
        self._size[cell] += gain * (batch_size - self._size[cell])

    def times(self, batch_size: int, context_len: int = 0) -> list[float]:
        """T(B, 0..K, L). ``context_len`` 0: as usual at this batch size."""
        row = bucket_of(batch_size)
        fit = self._fit_at(batch_size)
        context = context_len or float(self._context[row].max())
        records = self._count, self._mean, self._size, self._context
        cells = zip(*(record[row].tolist() for record in records), strict=True)
        return [
            self._blend(fit, cell, batch_size, steps, context)
            for steps, cell in enumerate(list(cells)[:OFF])
        ]

    def off_time(self, batch_size: int, context_len: int = 0) -> float | None:
        """T of a round that the draft sleeps through, from the nearest batch size where there was
        one; None where there was none."""
        rows = self._count[:, OFF].nonzero()[0]
        if not len(rows):
            return None
        near = rows[np.abs(rows - bucket_of(batch_size)).argmin()]
        size, context = round(float(self._size[near, OFF])), int(self._context[near, OFF])
        share = float(self._mean[near, OFF]) / self._time(size, 0, context)
        return share * self._time(batch_size, 0, context_len)

    def _time(self, batch_size: int, steps: int, context_len: int) -> float:
        """The same of one depth."""
        row = bucket_of(batch_size)
        context = context_len or float(self._context[row].max())
        records = self._count, self._mean, self._size, self._context
        count, mean, size, usual = (float(record[row, steps]) for record in records)
        cell = count, mean, size, usual
        return self._blend(self._fit_at(batch_size), cell, batch_size, steps, context)

    def _blend(
        self,
        fit: list[float],
        cell: tuple[float, float, float, float],
        batch_size: int,
        steps: int,
        context: float,
    ) -> float:
        """A cell's own (count, mean, size, context) and the fit, weighed by its samples."""
        a, b, c = fit
        d = self._slope.value
        count, mean, size, usual = cell
        fitted = a + b * max(steps - 1, 0) + c * batch_size * (steps + 1) + d * context
        own = mean + c * (batch_size - size) * (steps + 1) + d * (context - usual)
        share = FIT_WEIGHT / (FIT_WEIGHT + count)
        return share * fitted + (1.0 - share) * max(own, 0.5 * mean)

    def _fit_at(self, batch_size: int) -> list[float]:
        row = bucket_of(batch_size)
        if row not in self._fits:
            self._refit(batch_size)
        return self._fits[row][1]

    def seconds(self, batch_size: int, context_len: int = 0) -> list[float]:
        """T(B, 0..K, L) in seconds at the machine's present speed."""
        return [time * self.level for time in self.times(batch_size, context_len)]

    def _refit(self, batch_size: int) -> None:
        self.fits += 1
        self._fits[bucket_of(batch_size)] = self.samples, self._fit(batch_size)

    def _fit(self, batch_size: int) -> list[float]:
        """Ridge regression of a, b, c on the cells, the nearer in batch size the heavier."""
        used = (self._count.ravel() * self._awake).nonzero()[0]
        if not len(used):  # only asleep rounds are known: they stand for awake ones of depth 0
            used = self._count.ravel().nonzero()[0]
        count, mean, size, context = self._cells.reshape(4, -1)[:, used]
        mean = np.maximum(mean - self._slope.value * context, 0.3 * mean)
        drafts, verified = self._drafts[used], size * self._width[used]
        usual = SHAPE[0] + SHAPE[1] * drafts + SHAPE[2] * verified
        apart = FIT_ERROR + 0.1 * np.abs(np.log2(size / batch_size))
        weight = 1.0 / (self.noise**2 / count + apart**2)
        rows = np.array([np.ones(len(used)), drafts, verified, mean]) / usual
        # products of a, b, c and the measured times with each other
        moments = ((rows * weight) @ rows.T).tolist()
        scale = float((rows[3] * weight).sum() / weight.sum())
        sums = [[*row[:3]] for row in moments[:3]]
        wanted = [row[3] / scale for row in moments[:3]]
        for i, spread in enumerate(SHAPE_SPREAD):
            sums[i][i] += spread**-2
            wanted[i] += SHAPE[i] * spread**-2
        a, b, c = _solved(sums, wanted)
        return [scale * max(a, 0.1), scale * max(b, 0.0), scale * max(c, 0.0)]


def _undisturbed(times: list[float]) -> float:
    """The lower quartile: other work on the machine makes rounds slower and none faster, and here
    it may last for most of a cell's rounds, since all of them were run within seconds."""
    return sorted(times)[(len(times) - 1) // 4]


def _solved(rows: list[list[float]], wanted: list[float]) -> list[float]:
    """Three equations by Cramer's rule: for so few numpy's solver takes longer to call."""

    def determinant(m: list[list[float]]) -> float:
        (a, b, c), (d, e, f), (g, h, i) = m
        return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)

    whole = determinant(rows)
    return [
        determinant([[*row[:i], w, *row[i + 1 :]] for row, w in zip(rows, wanted, strict=True)])
        / whole
        for i in range(3)
    ]
