"""What a round costs: seconds by batch size and depth, timed at start-up and while serving.

A cell is one batch size at one depth. It keeps its newest times and stands for the mean of their
middle half: a pause moves nothing, and a lasting change is believed by the time that all of them
show it. What was never timed is told by a fit over all cells (k - 1 draft forwards, B (k + 1)
verified tokens; a holds what every round pays, draft-extend included):

    T(B, k) = a + b max(k - 1, 0) + c B (k + 1)

The fit counts as a few more times of every cell, so it matters where there are few. A cell that
was not served for a while keeps but a few of its times, so that it is soon known again.

A round that verifies only some of its drafts is kept as a whole one. What it saved follows from
rounds of one cell in which more or less was cut, at first from c.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from sglang_speckv.policy.checks import is_count, is_time
from sglang_speckv.policy.prior import CostPrior

SIZES = (1, 2, 3, *(m << e for e in range(9) for m in (4, 5, 6, 7)))
"""Batch sizes that are told apart where the engine names none; the next larger one counts."""
WINDOW = 32
"""Times that a cell keeps. With 16, noise wakes drafts that should sleep (-1.2 %); with 64, a draft
that became 12 times dearer is believed late (-4.6 %; benchmarks/ablation.py)."""
FEW = 3
"""How many times these count as, so that what is served soon overrules them: the fit, a start-up
profile, and what is left of a cell that was not served for :data:`WINDOW` rounds. A cell with as
many is fitted to."""
REFRESH = 16
"""Rounds from one fit to the next."""
SAVING_PRIOR = 0.05
"""How much is known of what a cut saves before any was made: as much as five rounds say in which a
tenth of the time was cut more, or less, than usual."""
SAVING_MEMORY = 512
"""Rounds after which one weighs 1/e in it."""
SHAPE = np.array([1.0, 0.06, 0.02])
"""a, b, c before any evidence, in units of a, each as likely nothing as twice that. From the demo
pair on two CPU cores."""
FIT_ERROR = 0.05
"""Relative error of the fit where all is known."""


class TimedRound(NamedTuple):
    """One row of a start-up profile. ``asleep``: at depth 0, the draft slept through it."""

    batch_size: int
    num_steps: int
    seconds: float
    asleep: bool = False


class CostModel:
    def __init__(self, max_steps: int, prior: CostPrior | None = None, padded: Sequence[int] = ()):
        """``padded``, ascending: the sizes that the engine pads batches to, up to the largest."""
        largest = max(padded, default=0)
        sizes = self._sizes = (*padded, *(size for size in SIZES if size > largest))
        self._depths = range(max_steps + 1)
        self._asleep = max_steps + 1
        """The column of rounds without the draft."""
        self._times = np.zeros((len(sizes), max_steps + 2, WINDOW))
        self._usual = np.zeros(self._times.shape[:2])
        """What each cell stands for."""
        self._count = self._usual.astype(int)
        self._next = self._usual.astype(int)
        self._served = self._usual.astype(int)
        """The update that served it last."""
        steps, verified = np.arange(max_steps + 1), np.outer(sizes, np.arange(max_steps + 1) + 1)
        every, drafts = np.ones_like(verified), np.maximum(steps - 1, 0) + 0 * verified
        self._work = np.stack([every, drafts, verified], axis=-1).astype(float)
        """[sizes, depths, 3]: what a, b and c are multiplied by."""
        self._told: dict[int, tuple[list[float], float | None, float]] = {}
        self._cut_mean = np.zeros((*self._usual.shape, 2))
        """Of each cell: share of its time that cut drafts should have saved, and that was saved."""
        self._saving = np.zeros((len(sizes), 2))
        """Decayed sums of squares of the one, and of products with the other, around these."""
        self._per_token = np.zeros(len(sizes))
        """By the fit."""
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
        for _ in range(FEW):
            self._keep((self.row_of(size), column), usual)
        self._told.clear()

    def _keep(self, cell: tuple[int, int], seconds: float) -> None:
        if self._updates - self._served[cell] > WINDOW:
            kept = min(self._count[cell], FEW)
            newest = (self._next[cell] - kept + np.arange(kept)) % WINDOW
            self._times[cell][:kept] = self._times[cell][newest]
            self._count[cell] = self._next[cell] = kept
        self._served[cell] = self._updates
        self._times[cell][self._next[cell]] = seconds
        self._next[cell] = (self._next[cell] + 1) % WINDOW
        self._count[cell] = min(self._count[cell] + 1, WINDOW)
        self._usual[cell] = _middle(self._own(cell))
        self.rounds += cell[1] != self._asleep

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
        cell = row, self._asleep if asleep else num_steps
        if not asleep and (cut or self._cut_mean[cell].any()):
            seconds += self._saved(cell, cut, seconds)
        self._updates += 1
        self._keep(cell, seconds)
        if self._updates < REFRESH or self._updates % REFRESH == 0:
            self._told.clear()

    def _saved(self, cell: tuple[int, int], cut: int, seconds: float) -> float:
        """What a round of ``cell`` saved by ``cut`` drafts; learns it by how much shorter than a
        whole one the round was."""
        times, _, token = self._tell(cell[0])
        whole = times[cell[1]]
        mean = self._cut_mean[cell]
        apart = np.array([cut * self._per_token[cell[0]], whole - seconds]) / whole - mean
        mean += apart / WINDOW
        saving = self._saving[cell[0]]
        saving += apart[0] * apart - saving / SAVING_MEMORY
        return cut * token

    def _own(self, cell: tuple[int, int]) -> list[float]:
        own: list[float] = self._times[cell][: self._count[cell]].tolist()
        return own

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
        times, _, token = self._tell(self.row_of(batch_size))
        more = len(times) - 2
        return max(times[-1] - times[1] - batch_size * more * token, 0.0) / max(more, 1)

    def _tell(self, row: int) -> tuple[list[float], float | None, float]:
        if row not in self._told:
            times = self._blended(row)
            slept = self._count[:, self._asleep].nonzero()[0]
            asleep = None
            if len(slept) and self.rounds:
                near = int(slept[np.abs(slept - row).argmin()])
                awake = times if near == row else self._blended(near)
                asleep = float(self._usual[near, self._asleep]) / awake[0] * times[0]
            self._per_token[row] = self._fit(row)[2]
            squares, products = self._saving[row] + SAVING_PRIOR
            real = min(max(float(products / squares), 0.0), 2.0)
            self._told[row] = times, asleep, real * float(self._per_token[row])
        return self._told[row]

    def _blended(self, row: int) -> list[float]:
        fitted = (self._work[row] @ self._fit(row)).tolist()
        return [_middle([*self._own((row, k)), *FEW * [fitted[k]]]) for k in self._depths]

    def _fit(self, row: int) -> np.ndarray:
        """a, b, c: ridge regression of relative times; a cell of another batch size weighs less by
        the square of how many times it is larger or smaller."""
        count = self._count[:, : self._asleep]
        known = count >= min(FEW, max(1, count.max()))
        if not known.any():
            return SHAPE
        sizes = np.array(self._sizes)
        apart = np.maximum(sizes / sizes[row], sizes[row] / sizes) ** -2.0
        weight = np.broadcast_to(apart[:, None], known.shape)[known]
        own = self._usual[:, : self._asleep][known]
        usual = self._work[known] @ SHAPE
        scale = float(weight @ (own / usual) / weight.sum())
        share = self._work[known] * SHAPE / usual[:, None]
        weighted = share.T * weight
        change = np.linalg.solve(
            weighted @ share + FIT_ERROR**2 * np.eye(3), weighted @ (own / usual / scale - 1.0)
        )
        return scale * SHAPE * np.maximum(1.0 + change, [0.1, 0.0, 0.0])


def _middle(times: list[float]) -> float:
    """The mean of the middle half: nearly as steady as a mean, and deaf to pauses as a median."""
    inner = sorted(times)[len(times) // 4 : len(times) - len(times) // 4]
    return sum(inner) / len(inner)
