"""How deep drafts survive: P(draft i accepted | drafts before it accepted), learned online.

A table over the one number that is known of a request before its round, the draft's top-1
probability ``first_prob``, in bins of log-odds, and over positions. Each cell leans on its
neighbours in ``first_prob`` and on its position's mean, deeper positions on the one above. What
moves all cells at once (another phase of traffic, other requests) is a shift in log-odds that a
Kalman filter follows within some ten rounds; the cells themselves change slowly.

Where the constants come from: set by hand on synthetic rounds (`tests/unit/policy/simulate.py`) and
on the paper's records held out by prompt, where MEAN_WEIGHT of 3 to 20, NEIGHBOUR of 0 to 0.5,
PRIOR_LABELS of 100 to 1000 and DRIFT of 0.002 to 0.015 stay within half a point of tokens per
second of each other. The rest are orders of magnitude, as their lines say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sglang_speckv.policy.calibration import Calibration
from sglang_speckv.policy.checks import MAX_SHARE, correct_drafts_of, numbers_of
from sglang_speckv.policy.prior import AcceptancePrior

EDGES = 1.0 / (1.0 + np.exp(-np.linspace(-2.25, 4.5, 10)))
"""Inner edges of the bins: 0.75 apart in log-odds, from .095 to .989. With the open bins at both
ends and the row of unknown ``first_prob`` that makes 12 rows."""
PRIOR = 0.6
"""Acceptance of the first draft before any evidence, between a weak head (.45) and the paper's
draft model (.8); deeper positions lean on the one above."""
PRIOR_WEIGHT = 4.0
"""Labels that the prior, and the position above, are worth."""
MEAN_WEIGHT = 8.0
"""Labels that a position's mean is worth in each of its cells. On the paper's records 4 to 20 do
alike held out, and ignoring first_prob beyond position one costs 1 to 2.5 % tokens/s."""
NEIGHBOUR = 0.25
"""Share of its labels that a cell lends to each neighbour in ``first_prob``."""
MEMORY = 300.0
"""Labels after which a cell's label weighs 1/e ..."""
MIN_ROUNDS = 50.0
"""... but never fewer rounds than this: large batches change no faster than small ones."""
PRIOR_LABELS = 300.0
"""At most this many labels of a trained prior count at each position: all of them together weigh
as much as what was served in the last minutes."""
DRIFT = 0.006
"""Variance that the common shift gains per round of one request, in squared log-odds; of a batch,
one over its size of it: the mean of many requests moves less."""
MAX_SHIFT = 4.0
CHECK_ROUNDS = 8
"""Rounds from one check against what was predicted to the next."""
FRESH_ROUNDS = 50.0
"""Request-rounds after which a position that is not tried counts as not seen."""
HOPE = 0.8
"""What a position may have become that has not been seen for long, ..."""
HOPE_WEIGHT = 2.0
"""... in unfaded labels."""


class Acceptance:
    """Censored acceptance counts by row of ``first_prob`` and position, with forgetting.

    A request with c correct drafts out of k says "accepted" of positions 1..c and "rejected" of
    c+1 where c < k; of deeper positions it says nothing. Rows are those of
    :class:`~sglang_speckv.policy.prior.AcceptancePrior`, the last one is "unknown".
    """

    def __init__(self, max_steps: int, prior: AcceptancePrior | None = None):
        edges = EDGES if prior is None else prior.edges
        # Beyond the last edge: NaN, infinity and what is no probability.
        self._edges = np.append(edges, MAX_SHARE)
        self.rows = len(self._edges) + 1
        self._steps = max_steps
        self._counts = np.zeros((self.rows, 2, max_steps))  # tried, accepted
        self._says = _says(max_steps)
        self._fresh = np.zeros(max_steps)
        self._pooling = _pooling(self.rows)
        self._shift = self._variance = 0.0
        self._learned = 0
        self.calibration = Calibration()
        if prior is not None:
            self._start_from(prior)
        self._believe()

    def _start_from(self, prior: AcceptancePrior) -> None:
        depth = min(prior.depth, self._steps)
        tried = prior.tried[:, :depth]
        scale = np.minimum(1.0, PRIOR_LABELS / np.maximum(tried.sum(axis=0), 1.0))
        self._counts[:, 0, :depth] = tried * scale
        self._counts[:, 1, :depth] = prior.accepted[:, :depth] * scale

    def count(self, size: int, first_probs: np.ndarray | None) -> np.ndarray:
        """How many of ``size`` requests are in each row, [rows] integers."""
        return np.bincount(self._rows_of(size, first_probs), minlength=self.rows)

    def _rows_of(self, size: int, first_probs: np.ndarray | None) -> np.ndarray:
        """Row per request; all unknown where ``first_probs`` are not [size] numbers."""
        if first_probs is not None:
            probs = numbers_of(first_probs)
            if probs.shape == (size,):
                return self._edges.searchsorted(probs, side="right")
        return np.full(size, self.rows - 1)

    def cells(
        self,
        num_steps: int,
        num_correct_drafts: Sequence[int],
        first_probs: np.ndarray | None = None,
    ) -> np.ndarray:
        """What a round of ``num_steps`` <= max_steps says: of each usable request its cell of
        (row, num_steps, num_correct_drafts), for :meth:`update`."""
        correct, valid = correct_drafts_of(num_correct_drafts, num_steps)
        rows = self._rows_of(len(valid), first_probs)[valid]
        width = self._steps + 1
        return (rows * width + num_steps) * width + correct

    def update(self, rounds: Sequence[np.ndarray]) -> list[tuple[int, int, float]]:
        """Learn from some rounds at once, each as :meth:`cells`, and renew all beliefs.

        Returns of each round the number of usable requests, of their tokens with bonus, and of
        the tokens that had been expected of them.
        """
        sizes = [len(cells) for cells in rounds]
        if not any(sizes):
            return [(0, 0, 0.0)] * len(rounds)
        width = self._steps + 1
        cells = np.concatenate(rounds)
        of = np.repeat(np.arange(len(rounds)), sizes)
        tokens = np.bincount(of, cells % width, len(rounds)).tolist()
        expected = np.bincount(of, self.lengths.ravel()[cells // width], len(rounds)).tolist()
        seen = np.bincount(cells, minlength=self.rows * width * width)
        news = seen.reshape(self.rows, -1) @ self._says
        self._learn(news, len(cells), sum(size > 0 for size in sizes))
        return [(n, n + int(t), e) for n, t, e in zip(sizes, tokens, expected, strict=True)]

    def _learn(self, news: np.ndarray, requests: int, rounds: int) -> None:
        """``news`` [rows, 2 * max_steps]: labels by row and position, then the accepted ones."""
        surprise = float(np.vdot(news, self._surprise))
        information = float(np.vdot(news, self._information))
        news = news.reshape(self._counts.shape)
        tried = news[:, 0]
        if self._learned % CHECK_ROUNDS < rounds:  # the first one, or past a multiple
            self.calibration.update(self.conditional, news)
        self._learned += rounds
        self._variance = min(self._variance + DRIFT * rounds * rounds / requests, 1.0)
        self._variance /= 1.0 + self._variance * information
        shift = self._shift + self._variance * surprise
        self._shift = max(-MAX_SHIFT, min(MAX_SHIFT, shift))
        self._counts *= 1.0 - np.minimum(tried * (1.0 / MEMORY), rounds / MIN_ROUNDS)[:, None]
        self._counts += news
        self._fresh *= math.exp(-min(requests, 4.0 * rounds) / FRESH_ROUNDS)
        self._fresh += tried.sum(axis=0)
        self._believe()

    def _believe(self) -> None:
        steps = self._steps
        pooled = self._pooling @ self._counts.reshape(self.rows, 2 * steps)
        tried, accepted = pooled[:, :steps], pooled[:, steps:]
        self._labels = tried[-1].tolist()
        means = _means(self._labels, accepted[-1].tolist())
        accepted += MEAN_WEIGHT * np.array(means)
        tried += MEAN_WEIGHT
        table = accepted / tried
        table[-1] = means
        if self._shift:
            odds = math.exp(self._shift)  # p odds / (1 - p + p odds): moved in log-odds
            scale = 1.0 + (odds - 1.0) * table
            table *= odds
            table /= scale
        lengths = _lengths(table)
        self.conditional = table[:-1]
        """[rows, max_steps]: P(draft i accepted | those before it accepted)."""
        self._surprise = np.concatenate([-self.conditional, np.ones_like(self.conditional)], axis=1)
        """What each entry of the news adds to "accepted, less expected" ..."""
        self._information = np.zeros_like(self._surprise)
        self._information[:, :steps] = self.conditional * (1.0 - self.conditional)
        """... and to its variance."""
        self.lengths = lengths[:-1]
        """[rows, max_steps + 1]: A(0)..A(K), expected tokens per request, bonus included."""
        self.means, self.mean_lengths = table[-1], lengths[-1]
        """The same over all rows."""

    @property
    def counts(self) -> list[float]:
        """Effective number of labels per position."""
        return list(self._labels)

    def survival(self) -> np.ndarray:
        """s_1..s_K over all rows: P(the first i drafts are all accepted)."""
        return np.cumprod(self.means)

    def hope(self, known_steps: int) -> np.ndarray:
        """[max_steps + 1]: how many times as many tokens as believed each depth would bring if
        all positions deeper than ``known_steps`` were one standard error better than believed, or
        as good as hoped for where they have not been seen for long."""
        deeper = self.means[known_steps:]
        fresh = self._fresh[known_steps:]
        renewed = (fresh * deeper + HOPE_WEIGHT * HOPE) / (fresh + HOPE_WEIGHT)
        labels = np.array(self._labels[known_steps:]) + PRIOR_WEIGHT
        error = np.sqrt((deeper * (1.0 - deeper) + 0.02) / labels)
        hoped = np.minimum(1.0, np.maximum(renewed, deeper + error))
        best = np.concatenate([self.means[:known_steps], hoped])
        return _lengths(best) / self.mean_lengths


def _says(max_steps: int) -> np.ndarray:
    """[(max_steps + 1) ** 2, 2 * max_steps]: by num_steps and num_correct_drafts, of which
    positions that says that a draft was tried, and of which that it was accepted."""
    num_steps, correct, position = np.ogrid[: max_steps + 1, : max_steps + 1, :max_steps]
    tried = (position <= correct) & (position < num_steps)
    accepted = np.broadcast_to(position < correct, tried.shape)
    both = np.concatenate([tried, accepted], axis=2).astype(float)
    return both.reshape((max_steps + 1) ** 2, 2 * max_steps)


def _pooling(rows: int) -> np.ndarray:
    """[rows + 1, rows]: each row with a share of its neighbours, "unknown" alone, and at last the
    sum of all."""
    weights = np.eye(rows + 1, rows)
    known = np.arange(rows - 2)
    weights[known, known + 1] = weights[known + 1, known] = NEIGHBOUR
    weights[-1] = 1.0
    return weights


def _means(tried: list[float], accepted: list[float]) -> list[float]:
    above, means = PRIOR, []
    for n, a in zip(tried, accepted, strict=True):
        above = (a + PRIOR_WEIGHT * above) / (n + PRIOR_WEIGHT)
        means.append(above)
    return means


def _lengths(conditional: np.ndarray) -> np.ndarray:
    """A(0)..A(K) from the conditional acceptance of positions 1..K along the last axis."""
    lengths = np.ones((*conditional.shape[:-1], conditional.shape[-1] + 1))
    conditional.cumprod(axis=-1, out=lengths[..., 1:])
    return lengths.cumsum(axis=-1)
