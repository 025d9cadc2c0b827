"""How many drafts of each request get accepted: a logistic model that follows what is served.

    P(draft i of request r is accepted | those before it are) = sigmoid(a_i + b_i x_r + o_r)

x_r is the log-odds of the draft's top-1 probability of the coming round's first draft, the most
telling number that is known in time. a_i and b_i belong to a position (:mod:`policy.logistic`); o_r
is the request's own running acceptance: what it was better or worse than its signals said.

A request with c correct drafts out of k says "accepted" of positions 1..c and "rejected" of c + 1
where c < k; of deeper positions it says nothing. Where drafting stopped because of what the drafts
said of themselves, the ones that were not made count as what was expected of them: leaving them out
would take the confident rounds for all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sglang_speckv.policy.checks import correct_drafts_of
from sglang_speckv.policy.logistic import LIMIT, Logistic, OwnAcceptance, log_odds
from sglang_speckv.policy.prior import SIGNAL_BINS, AcceptancePrior

SMALL = 8
"""Requests up to which each one's own acceptance is looked at: in larger batches it averages out
(+0.9 % at two requests, +0.4 at four, +0.1 at eight)."""
RECENT = 64.0
"""Rounds after which one weighs 1/e in what is usual."""
DRAWS = 128
"""Batches by which :meth:`Acceptance.worth_of_signals` judges."""


class Acceptance:
    """``max_steps`` positions; ``prior`` is what an artifact knows of this pair."""

    def __init__(self, max_steps: int, prior: AcceptancePrior | None = None):
        self.depth = max_steps
        self._positions = np.arange(max_steps)
        self._model = Logistic(max_steps)
        self._own = OwnAcceptance()
        self._usual_x = 0.0
        """Where a request's signal is unknown."""
        self.labels = np.zeros(max_steps)
        """[max_steps]: how often each position was judged."""
        self._scale = (SIGNAL_BINS - 1e-6) / (2 * LIMIT)
        self._middles = (np.arange(SIGNAL_BINS) + 0.5) / self._scale - LIMIT
        self._seen = np.zeros(SIGNAL_BINS)
        """Share of recent signals in each bin."""
        self._seen[SIGNAL_BINS // 2] = 1.0
        self._table = np.ones((SIGNAL_BINS + 1, max_steps + 1))
        if prior is not None:
            self._start_from(prior)
        self._believe()

    def _start_from(self, prior: AcceptancePrior) -> None:
        """Positions beyond those trained begin like the deepest of them."""
        k, depth = self.depth, min(prior.depth, self.depth)
        at = np.append(self._positions[:depth], k + self._positions[:depth])
        of = np.append(self._positions[:depth], prior.depth + self._positions[:depth])
        self._model.mean = prior.mean[:, np.minimum(self._positions, depth - 1)].ravel()
        others, covariance = np.setdiff1d(np.arange(2 * k), at), self._model.covariance
        covariance[np.ix_(at, others)] = covariance[np.ix_(others, at)] = 0.0
        covariance[np.ix_(at, at)] = prior.covariance[np.ix_(of, of)]
        self._seen, self.labels[:depth] = prior.seen.copy(), prior.labels[:depth]
        self._usual_x = float(self._seen @ self._middles)

    def learned(self) -> AcceptancePrior:
        """What another model may start from."""
        mean, covariance = self._model.mean.reshape(2, self.depth).copy(), self._model.covariance
        return AcceptancePrior(mean, covariance.copy(), self._seen.copy(), self.labels.copy())

    def tokens(
        self, size: int, first_probs: np.ndarray | None, requests: Sequence[int] | None = None
    ) -> list[float]:
        """Expected tokens of the batch at depths 0..max_steps, bonus included."""
        x = log_odds(first_probs, (size,))
        if size > SMALL:
            counts = np.bincount(self._bins_of(x), minlength=SIGNAL_BINS + 1)
            told: list[float] = (counts @ self._table).tolist()
            return told
        expected = [0.0] * self.depth
        for odds, own in zip(x.tolist(), self._offsets(size, requests), strict=True):
            if odds != odds and own:
                odds = self._usual_x
            elif odds != odds:
                expected = [n + s for n, s in zip(expected, self._usual, strict=True)]
                continue
            survives = 1.0
            for i, (intercept, slope) in enumerate(self._pairs):
                z = intercept + slope * odds + own
                survives /= 1.0 + math.exp(-z if -LIMIT < z < LIMIT else -math.copysign(LIMIT, z))
                expected[i] += survives
        total, tokens = float(size), [float(size)]
        for more in expected:
            total += more
            tokens.append(total)
        return tokens

    def survival(self, first_probs: np.ndarray) -> np.ndarray:
        """[requests, max_steps]: P(the first i drafts are all accepted), i = 1..max_steps, of new
        requests with these signals; of a usual one where a signal is NaN."""
        return np.diff(self._table[self._bins_of(log_odds(first_probs, (len(first_probs),)))])

    def worth_of_signals(self, size: int, costs: Sequence[float] | np.ndarray) -> float:
        """Tokens per round that it earns to choose the depth of ``size`` requests by their signals
        and not by what is usual. ``costs`` [max_steps + 1]: the price of each depth's time, in
        tokens; infinite where there is no such tier."""
        drawn = np.random.default_rng(0).choice(SIGNAL_BINS, (DRAWS, size), p=self._seen)
        worth = self._table[drawn].sum(axis=1) - costs
        return float(worth.max(axis=1).mean() - worth.mean(axis=0).max())

    def learn(
        self,
        num_steps: int,
        num_correct_drafts: Sequence[int],
        first_probs: np.ndarray | None,
        requests: Sequence[int] | None = None,
        unmade: np.ndarray | None = None,
    ) -> None:
        """One round of ``num_steps`` <= max_steps; entries that cannot be true are left out.
        ``unmade`` [size, max_steps]: where drafting stopped by what the drafts said, how likely
        each deeper one would have been accepted."""
        size = len(num_correct_drafts)
        correct, valid = correct_drafts_of(num_correct_drafts, num_steps)
        if not len(correct) or not num_steps:
            return
        x = log_odds(first_probs, (size,))[valid]
        own = np.array(self._offsets(size, requests))[valid]
        self._see(x)
        x = np.where(np.isnan(x), self._usual_x, x)[:, None]
        judged, accepted = labels_of(correct, num_steps, self.depth)
        self.labels += judged.sum(axis=0)
        if unmade is not None:
            judged, accepted = _imputed(judged, accepted, correct, num_steps, unmade[valid])
        self._model.update(x, own, judged, accepted)
        self._believe()
        if requests is not None and len(requests) == size <= SMALL:
            names = [name for name, kept in zip(requests, valid.tolist(), strict=True) if kept]
            self._own.learn(names, self._model.probability(x), judged, accepted)

    def _see(self, x: np.ndarray) -> None:
        """What signals are usual: of a request whose own is unknown nothing else is known."""
        seen = np.bincount(self._bins_of(x), minlength=SIGNAL_BINS + 1)[:SIGNAL_BINS]
        if seen.any():
            self._seen += (seen / seen.sum() - self._seen) / RECENT
            self._usual_x = float(self._seen @ self._middles)

    def _believe(self) -> None:
        """Lay out what :meth:`tokens` asks for."""
        survival = self._model.probability(self._middles[:, None]).cumprod(axis=1)
        usual = self._seen @ survival
        self._table[:, 1:] = 1.0 + np.concatenate([survival, usual[None]]).cumsum(axis=1)
        self._usual: list[float] = usual.tolist()
        self.usual: list[float] = self._table[-1].tolist()
        """A(0)..A(max_steps): tokens of a usual request at every depth, bonus included."""
        mean = self._model.mean.tolist()
        self._pairs = list(zip(mean[: self.depth], mean[self.depth :], strict=True))

    def _bins_of(self, x: np.ndarray) -> np.ndarray:
        """The last one where it is unknown."""
        return np.where(np.isnan(x), SIGNAL_BINS, (x + LIMIT) * self._scale).astype(np.intp)

    def _offsets(self, size: int, requests: Sequence[int] | None) -> list[float]:
        """What each request adds in log-odds; nothing where nobody numbers them."""
        if requests is None or size > SMALL or len(requests) != size:
            return [0.0] * size
        return self._own.of(requests)


def labels_of(correct: np.ndarray, num_steps: int, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """What a round says of each position: whether it was judged, and accepted [requests, depth]."""
    positions, correct = np.arange(depth), correct[:, None]
    return (positions <= correct) & (positions < num_steps), positions < correct


def _imputed(
    judged: np.ndarray,
    accepted: np.ndarray,
    correct: np.ndarray,
    num_steps: int,
    unmade: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Labels with what was expected of the drafts that were not made, where they would have been
    judged."""
    reached = (correct == num_steps)[:, None] * unmade[:, num_steps:].cumprod(axis=1)
    first = (correct == num_steps)[:, None].astype(float)
    judged, accepted = judged.astype(float), accepted.astype(float)
    judged[:, num_steps:] = np.concatenate([first, reached[:, :-1]], axis=1)
    accepted[:, num_steps:] = unmade[:, num_steps:]
    return judged, accepted
