"""What a round costs: seconds by batch size and depth, timed at start-up and while serving.

The logarithms of the round times of one batch size, one for every depth and one for a round that
the draft sleeps through, are the state of a Kalman filter. They drift together: a machine that does
other work is slower at every depth, so a depth that was not chosen for a while stays comparable.
They also drift a little apart. Both go faster the more rounds surprise. What was never timed is
told by a fit over all sizes (k - 1 draft forwards, B (k + 1) verified tokens; a holds what every
round pays, draft-extend included), each size on a scale of its own:

    T(B, k) = a + b max(k - 1, 0) + c B (k + 1)

Of a tree k - 1 are the steps less one and k + 1 the tokens that are verified.

A round that verifies only some of its drafts is kept as a whole one. What it saved follows from
rounds of one depth in which more or less was cut, at first from c.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from sglang_speckv.config import Shape
from sglang_speckv.policy.acceptance import RECENT
from sglang_speckv.policy.checks import is_count, is_time
from sglang_speckv.policy.prior import CostPrior

SIZES = (1, 2, 3, *(m << e for e in range(9) for m in (4, 5, 6, 7)))
"""Batch sizes that are told apart where the engine names none; the next larger one counts."""
FEW = 3
"""How many times one of a start-up profile counts as."""
ERROR = 0.05
"""Standard deviation of a round's time before any evidence, in logs, and of the fit; of that more
where it misses what is known by more."""
ANY_SCALE = 4.0
"""Variance of all of them together: nothing is known of the machine."""
TOGETHER, APART = 0.03, 0.001
"""Variance that all times gain together and each gains alone, for every squared surprise."""
CLIP = 3.0
"""A time that is longer than expected counts as at most so many standard deviations longer, so that
one pause moves little; if the same depth is that long twice in a row, what is known becomes less
certain by the excess. A time that is that much shorter is believed at once, and makes the rest less
certain too, unless it follows a long one: a round's time may be booked to the next."""
REFRESH = 16
"""Rounds from one look at the times, and at the newest one's fit, to the next."""
SAVING_PRIOR = 0.05
"""How much is known of what a cut saves before any was made: as much as five rounds say in which a
tenth of the time was cut more, or less, than usual."""
SAVING_MEMORY = 512
"""Rounds after which one weighs 1/e in it."""
SHAPE = np.array([1.0, 0.06, 0.02])
"""a, b, c before any evidence, in units of a, each as likely nothing as twice that. From the demo
pair on two CPU cores."""


class TimedRound(NamedTuple):
    """One row of a start-up profile. ``asleep``: at depth 0, the draft slept through it."""

    batch_size: int
    num_steps: int
    seconds: float
    asleep: bool = False


class Times:
    """Of one batch size: logs of its round times, ``mean`` [columns], their ``covariance``, and
    how often each was ``timed``. ``surprises``: the sum of all squared ones so far."""

    def __init__(self, mean: np.ndarray, surprises: float) -> None:
        columns = len(mean)
        self.mean = mean
        apart = (CLIP * ERROR) ** 2 * np.eye(columns)  # nothing was timed: believe little of it
        self.covariance = np.full((columns, columns), ANY_SCALE) + apart
        self.timed = np.zeros(columns, dtype=int)
        self._surprises = surprises
        self._beyond = np.zeros(columns)
        """By how much the last time at each depth exceeded :data:`CLIP`."""
        self._long = False
        """Whether the newest time at any depth did."""
        self._shape: np.ndarray | None = None
        """What :meth:`shape` returned since the newest time."""
        self._diagonal = self.covariance.ravel()[:: columns + 1]

    def learn(
        self, column: int, seconds: float, noise: float, surprises: float, profiled: bool
    ) -> float:
        """One time, of which ``noise`` is the variance; a profiled one stands for :data:`FEW`, and
        is believed however far it is. Returns how far it was from what was expected."""
        count, clip = (FEW, math.inf) if profiled else (1, CLIP)
        drifted, self._surprises = surprises - self._surprises, surprises
        self.covariance += min(TOGETHER * drifted, ANY_SCALE)
        self._diagonal += APART * drifted
        surprise = math.log(seconds) - float(self.mean[column])
        most = clip * self._spread(column, noise / count)
        beyond = surprise - min(max(surprise, -most), most)
        if beyond < 0.0:  # other work makes rounds slower and none faster
            if not self._long:
                self._doubt(beyond**2)
                most = math.inf
            beyond = 0.0
        gain = self.covariance[:, column] / self._spread(column, noise / count) ** 2
        self.mean += gain * min(max(surprise, -most), most)
        self.covariance -= np.outer(gain, self.covariance[column])
        self._doubt(beyond * float(self._beyond[column]))
        self._beyond[column] = beyond
        self._long = beyond > 0.0
        self._shape = None
        self.timed[column] += count
        return surprise

    def shape(self, work: np.ndarray) -> np.ndarray:
        """[3, 3]: how precisely these times tell a, b, c in units of :data:`SHAPE`, of which any
        multiple fits them as well. ``work`` [columns - 1, 3] is that of one row of ``_work``."""
        if self._shape is None:
            timed = np.flatnonzero(self.timed[:-1])
            share = work[timed] * SHAPE
            logs = self.mean[timed] - np.log(share.sum(axis=1))
            share /= share.sum(axis=1)[:, None]
            error = ERROR**2 * np.eye(len(timed))
            precision = np.linalg.inv(self.covariance[np.ix_(timed, timed)] + error)
            times = np.exp(logs - logs.mean())
            along = times @ precision
            share -= np.outer(times, along @ share / (along @ times))
            self._shape = share.T @ precision @ share
        return self._shape

    def above(self, fitted: np.ndarray) -> float:
        """Mean log of the times over those ``fitted`` [columns - 1]."""
        timed = np.flatnonzero(self.timed[:-1])
        return float((self.mean[timed] - np.log(fitted[timed])).mean())

    def _spread(self, column: int, noise: float) -> float:
        """Standard deviation of the next time."""
        return float(self.covariance[column, column] + noise) ** 0.5

    def _doubt(self, much: float) -> None:
        """Half of ``much`` is added to all times together, the other half to each alone, and of it
        less to those that were timed often: where they change, the machine did."""
        half = min(much, 1.0) / 2
        self.covariance += half
        self._diagonal += half * FEW / np.maximum(self.timed, FEW)


class CostModel:
    def __init__(
        self,
        max_steps: int,
        prior: CostPrior | None = None,
        padded: Sequence[int] = (),
        shapes: Sequence[Shape] | None = None,
    ):
        """``padded``, ascending: the sizes that the engine pads batches to, up to the largest.
        ``shapes``: what 0..max_steps stand for where they are no depths."""
        largest = max(padded, default=0)
        sizes = self._sizes = (*padded, *(size for size in SIZES if size > largest))
        self._depths = range(max_steps + 1)
        self._asleep = max_steps + 1
        """The column of rounds without the draft."""
        self._known: dict[int, Times] = {}
        self._noise = ERROR**2
        self._surprises = 0.0
        """The sum of all squared ones."""
        shapes = shapes or [Shape(k, k + 1) for k in self._depths]
        steps, tokens = np.array(shapes).T
        verified = np.outer(sizes, tokens)
        every, drafts = np.ones_like(verified), np.maximum(steps - 1, 0) + 0 * verified
        self._work = np.stack([every, drafts, verified], axis=-1).astype(float)
        """[sizes, depths, 3]: what a, b and c are multiplied by."""
        self._fits: dict[int, np.ndarray] = {}
        self._told: dict[int, tuple[list[float], float | None, float]] = {}
        self._cut_mean = np.zeros((len(sizes), max_steps + 1, 2))
        """Of each size and depth: the share of a round that cuts should save, and that they did."""
        self._saving = np.zeros((len(sizes), 2))
        """Decayed sums of squares of the one, and of products with the other, around these."""
        self._updates = 0
        self.rounds = 0
        """Awake rounds that are known of, timed or profiled."""
        if prior is not None:
            columns = prior.batch_size, prior.num_steps, prior.seconds, prior.rounds
            for size, steps, seconds, rounds in zip(*(c.tolist() for c in columns), strict=True):
                if rounds >= 1 and steps in self._depths:
                    self._start(int(size), int(steps), [seconds])

    def profiled(self, rows: Iterable[TimedRound]) -> None:
        """Start from measured times. Rows that are no round of this model are left out."""
        cells: dict[tuple[int, int], list[float]] = {}
        for row in rows:
            if is_count(row.batch_size) and is_time(row.seconds) and row.num_steps in self._depths:
                column = self._asleep if row.asleep else int(row.num_steps)
                cells.setdefault((int(row.batch_size), column), []).append(float(row.seconds))
        for (size, column), times in cells.items():
            self._start(size, column, times)

    def _start(self, size: int, column: int, times: list[float]) -> None:
        """The lower quartile stands for all: other work on the machine makes rounds slower and none
        faster, and it may last for most of a profile."""
        usual = sorted(times)[(len(times) - 1) // 4]
        self._learn(self.row_of(size), column, usual, profiled=True)
        self._forget()

    def _learn(self, row: int, column: int, seconds: float, profiled: bool = False) -> bool:
        """Learn one time; returns whether it was far from what was expected."""
        known = self._known.get(row)
        if known is None:
            expected = np.log(self._work[row] @ self._fit(row))
            known = self._known[row] = Times(np.append(expected, expected[0]), self._surprises)
        new = not known.timed[column]
        surprise = known.learn(column, seconds, self._noise, self._surprises, profiled) ** 2
        if not new:
            self._surprises += min(surprise, 1.0)
            self._noise += (min(surprise, CLIP**2 * self._noise) - self._noise) / RECENT
        self.rounds += column != self._asleep
        return surprise > CLIP**2 * self._noise

    def _forget(self) -> None:
        self._told.clear()
        self._fits.clear()

    def row_of(self, batch_size: int) -> int:
        return min(bisect_left(self._sizes, batch_size), len(self._sizes) - 1)

    def update(
        self,
        batch_size: int,
        num_steps: int,
        seconds: float | None,
        asleep: bool = False,
        cut: int = 0,
    ) -> None:
        """Learn one clean round of ``num_steps`` <= max_steps, in which ``cut`` drafts were not
        verified: what they would have taken is added."""
        if not is_time(seconds):
            return
        row = self.row_of(batch_size)
        if not asleep and (cut or self._cut_mean[row, num_steps].any()):
            seconds += self._saved(row, num_steps, cut, seconds)
        column = self._asleep if asleep else num_steps
        far = self._learn(row, column, seconds)
        self._updates += 1
        if self._updates < REFRESH or self._known[row].timed[column] <= FEW:
            self._forget()
        elif far or self._updates % REFRESH == 0:
            self._told.clear()
            self._fits.pop(row, None)  # all of them would take long
        self._tell(row)  # here and not while a decision waits

    def _saved(self, row: int, num_steps: int, cut: int, seconds: float) -> float:
        """What a round saved by ``cut`` drafts; learns it by how much shorter than a whole one the
        round was."""
        times, _, token = self._tell(row)
        known, fit = self._known.get(row), self._fit(row)
        whole = times[num_steps] if known is None else math.exp(known.mean[num_steps])
        should = cut * float(fit[2]) / float(self._work[row, num_steps] @ fit)
        most = CLIP * self._noise**0.5
        did = min(max(1.0 - seconds / whole, -most), should + most)
        mean, saving = self._cut_mean[row, num_steps], self._saving[row]
        apart = np.array([should, did]) - mean
        mean += apart / RECENT
        saving += apart[0] * apart - saving / SAVING_MEMORY
        return cut * token

    def times(self, batch_size: int) -> list[float]:
        """T(B, 0..max_steps), in seconds."""
        return self._tell(self.row_of(batch_size))[0]

    def asleep_time(self, batch_size: int) -> float | None:
        """T of a round that the draft sleeps through, as a share of an awake one at depth 0: that
        of the nearest batch size where there was one, None where there was none."""
        return self._tell(self.row_of(batch_size))[1]

    def token_time(self, batch_size: int) -> float:
        """What one more verified token takes."""
        return self._tell(self.row_of(batch_size))[2]

    def draft_time(self, batch_size: int) -> float:
        """What one more forward of the draft takes: the mean of those of the deepest round, which
        are what it takes more than one of depth 1, less what verifying its drafts does."""
        row = self.row_of(batch_size)
        times, _, token = self._tell(row)
        verifying = token * float(self._work[row, -1, 2] - self._work[row, 1, 2])
        return max(times[-1] - times[1] - verifying, 0.0) / max(len(times) - 2, 1)

    def _tell(self, row: int) -> tuple[list[float], float | None, float]:
        if row not in self._told:
            times, fit = self._blended(row), self._fit(row)
            slept = [other for other, known in self._known.items() if known.timed[self._asleep]]
            asleep = None
            if slept and self.rounds:
                near = min(slept, key=lambda other: abs(other - row))
                awake = times if near == row else self._blended(near)
                asleep = math.exp(self._known[near].mean[self._asleep]) / awake[0] * times[0]
            squares, products = self._saving[row] + SAVING_PRIOR
            real = min(max(float(products / squares), 0.0), 2.0)
            scale = sum(times) / float((self._work[row] @ fit).sum())
            verified = self._work[row, :, 2] - self._work[row, 0, 2]
            more = verified > 0.0
            # A round whose drafts are all cut takes no less than one without any.
            most = float(((np.array(times) - times[0])[more] / verified[more]).min(initial=np.inf))
            self._told[row] = times, asleep, max(min(real * scale * float(fit[2]), most), 0.0)
        return self._told[row]

    def _blended(self, row: int) -> list[float]:
        """T(B, 0..max_steps): what was timed, and the fit on any scale."""
        fitted, known = self._work[row] @ self._fit(row), self._known.get(row)
        if known is None:
            alone: list[float] = fitted.tolist()
            return alone
        mean, covariance = known.mean[:-1], known.covariance[:-1, :-1]
        apart, error = np.log(fitted) - mean, ERROR**2 * np.eye(len(mean))
        any_scale = covariance + ANY_SCALE
        misfit = float(apart @ np.linalg.solve(any_scale + error, apart)) / len(mean)
        weight = np.linalg.solve(any_scale + max(misfit, 1.0) * error, apart)
        both: list[float] = np.exp(mean + covariance @ weight).tolist()
        return both

    def _fit(self, row: int) -> np.ndarray:
        if row not in self._fits:
            self._fits[row] = self._fit_anew(row)
        return self._fits[row]

    def _fit_anew(self, row: int) -> np.ndarray:
        """a, b, c, in seconds: least squares that weigh each time by how well it is known. Other
        sizes count less by the square of how many times larger or smaller they are."""
        squares, near = np.eye(3), {}
        for other, known in self._known.items():
            if known.timed[:-1].any():
                ratio = self._sizes[row] / self._sizes[other]
                near[other] = min(ratio, 1.0 / ratio) ** 2
                squares += near[other] * known.shape(self._work[other])
        if not near:
            return SHAPE
        fit = np.linalg.solve(squares, np.ones(3))  # in units of SHAPE, likely 1 give or take 1
        fit = SHAPE * np.maximum(fit, [0.1, 0.0, 0.0])
        scale = sum(
            weight * self._known[other].above(self._work[other] @ fit)
            for other, weight in near.items()
        )
        found: np.ndarray = fit * math.exp(scale / sum(near.values()))
        return found
