"""How many drafts of each request get accepted: a logistic model that follows what is served.

    P(draft i of request r is accepted | those before it are) = sigmoid(a_i + b_i x_r + o_r)

x_r is the log-odds of the draft's top-1 probability of the coming round's first draft, the most
telling number that is known in time. a_i and b_i belong to a position; o_r is the request's own
running acceptance: what it was better or worse than its signals said, shrunk towards none.

a and b are the state of an extended Kalman filter (West, Harrison and Migon, Journal of the
American Statistical Association 80, 1985). Each round adds the information of its labels, once. All
a_i drift together, so that another phase of traffic, seen at the first position, is believed of the
deeper ones too. A request with c correct drafts out of k says "accepted" of positions 1..c and
"rejected" of c + 1 where c < k; of deeper positions it says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sglang_speckv.policy.checks import MAX_SHARE, correct_drafts_of, numbers_of
from sglang_speckv.policy.prior import SIGNAL_BINS, AcceptancePrior

INTERCEPT, SLOPE = 0.4, 0.5
"""Of every position before any evidence: 6 of 10 drafts are accepted where the draft is as unsure
as sure of its first one (x = 0)."""
SPREAD = 1.0
"""Standard deviation of an intercept before any evidence; of a slope half as much."""
ALIKE = 0.9
"""Correlation of neighbouring intercepts before any evidence."""
DRIFT = 0.002
"""Variance that all intercepts gain together per round of one request; of a batch one over its
size of it, since the mean of many requests moves less."""
SLOPE_DRIFT = 5e-5
"""Variance that each slope gains: what a signal says may change, slowly."""
REQUEST_SPREAD = 0.4
"""Standard deviation of a request's own log-odds."""
REQUEST_MEMORY = 0.9
"""What a round of a request still weighs a round later."""
MOST_REQUESTS = 4096
LIMIT = 7.0
"""Largest log-odds of anything: 1 in 1,100."""
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
        self._steps = max_steps
        self._positions = np.arange(max_steps)
        apart = np.abs(self._positions[:, None] - self._positions)
        intercepts, slopes = SPREAD**2 * ALIKE**apart, (SPREAD / 2) ** 2 * np.eye(max_steps)
        nothing = np.zeros((max_steps, max_steps))
        self._mean = np.repeat([INTERCEPT, SLOPE], max_steps)
        self._covariance = np.block([[intercepts, nothing], [nothing, slopes]])
        own = SLOPE_DRIFT * np.eye(max_steps)
        self._drift = np.block([[nothing + DRIFT, nothing], [nothing, own]])
        self._least = 1.0 / (1.0 + math.exp(LIMIT))
        self._unit = np.eye(2 * max_steps)
        self._usual_x = 0.0
        """Where a request's signal is unknown."""
        self._own: dict[int, tuple[float, float]] = {}
        """By request, decayed sums: accepted less expected, and their variance."""
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
        k, depth = self._steps, min(prior.depth, self._steps)
        at = np.append(self._positions[:depth], k + self._positions[:depth])
        of = np.append(self._positions[:depth], prior.depth + self._positions[:depth])
        self._mean = prior.mean[:, np.minimum(self._positions, depth - 1)].ravel()
        others = np.setdiff1d(np.arange(2 * k), at)
        self._covariance[np.ix_(at, others)] = self._covariance[np.ix_(others, at)] = 0.0
        self._covariance[np.ix_(at, at)] = prior.covariance[np.ix_(of, of)]
        self._seen, self.labels[:depth] = prior.seen.copy(), prior.labels[:depth]
        self._usual_x = float(self._seen @ self._middles)

    def learned(self) -> AcceptancePrior:
        """What another model may start from."""
        mean = self._mean.reshape(2, self._steps).copy()
        return AcceptancePrior(mean, self._covariance.copy(), self._seen.copy(), self.labels.copy())

    def tokens(
        self, size: int, first_probs: np.ndarray | None, requests: Sequence[int] | None = None
    ) -> list[float]:
        """Expected tokens of the batch at depths 0..max_steps, bonus included."""
        x = self._log_odds(size, first_probs)
        if size > SMALL:
            counts = np.bincount(self._bins_of(x), minlength=SIGNAL_BINS + 1)
            told: list[float] = (counts @ self._table).tolist()
            return told
        expected = [0.0] * self._steps
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
        return np.diff(self._table[self._bins_of(self._log_odds(len(first_probs), first_probs))])

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
    ) -> None:
        """One round of ``num_steps`` <= max_steps; entries that cannot be true are left out."""
        size = len(num_correct_drafts)
        correct, valid = correct_drafts_of(num_correct_drafts, num_steps)
        if not len(correct) or not num_steps:
            return
        x = self._log_odds(size, first_probs)[valid]
        own = np.array(self._offsets(size, requests))[valid]
        self._see(x)
        x = np.where(np.isnan(x), self._usual_x, x)
        judged = (self._positions <= correct[:, None]) & (self._positions < num_steps)
        accepted = self._positions < correct[:, None]
        self._covariance += self._drift / len(correct)
        self._update(x, self._conditional(x, own), judged, accepted)
        self.labels += judged.sum(axis=0)
        self._believe()
        if requests is not None and len(requests) == size <= SMALL:
            names = [name for name, kept in zip(requests, valid.tolist(), strict=True) if kept]
            self._remember(names, self._conditional(x, 0.0 * own), judged, accepted)

    def _update(
        self, x: np.ndarray, expected: np.ndarray, judged: np.ndarray, accepted: np.ndarray
    ) -> None:
        """One step of Newton's method from what was believed. All [requests, max_steps]."""
        k, at = self._steps, self._positions
        surprise = judged * (accepted - expected)
        weight = judged * expected * (1.0 - expected)
        gradient = np.concatenate([surprise.sum(axis=0), x @ surprise])
        information = np.zeros((2 * k, 2 * k))
        information[at, at] = weight.sum(axis=0)
        information[at, at + k] = information[at + k, at] = x @ weight
        information[at + k, at + k] = (x * x) @ weight
        covariance = np.linalg.solve(self._unit + self._covariance @ information, self._covariance)
        self._covariance = (covariance + covariance.T) / 2
        mean = self._mean + self._covariance @ gradient
        self._mean = np.minimum(np.maximum(mean, -LIMIT), LIMIT)

    def _remember(
        self, names: list[int], expected: np.ndarray, judged: np.ndarray, accepted: np.ndarray
    ) -> None:
        surprise = (judged * (accepted - expected)).sum(axis=1).tolist()
        variance = (judged * expected * (1.0 - expected)).sum(axis=1).tolist()
        for name, s, v in zip(names, surprise, variance, strict=True):
            before, known = self._own.pop(name, (0.0, 0.0))
            self._own[name] = REQUEST_MEMORY * before + s, REQUEST_MEMORY * known + v
        while len(self._own) > MOST_REQUESTS:
            del self._own[next(iter(self._own))]  # the one that was served longest ago

    def _see(self, x: np.ndarray) -> None:
        """What signals are usual: of a request whose own is unknown nothing else is known."""
        seen = np.bincount(self._bins_of(x), minlength=SIGNAL_BINS + 1)[:SIGNAL_BINS]
        if seen.any():
            self._seen += (seen / seen.sum() - self._seen) / RECENT
            self._usual_x = float(self._seen @ self._middles)

    def _believe(self) -> None:
        """Lay out what :meth:`tokens` asks for."""
        survival = self._conditional(self._middles, np.zeros(SIGNAL_BINS)).cumprod(axis=1)
        usual = self._seen @ survival
        self._table[:, 1:] = 1.0 + np.concatenate([survival, usual[None]]).cumsum(axis=1)
        self._usual: list[float] = usual.tolist()
        self.usual: list[float] = self._table[-1].tolist()
        """A(0)..A(max_steps): tokens of a usual request at every depth, bonus included."""
        mean = self._mean.tolist()
        self._pairs = list(zip(mean[: self._steps], mean[self._steps :], strict=True))

    def _bins_of(self, x: np.ndarray) -> np.ndarray:
        """The last one where it is unknown."""
        return np.where(np.isnan(x), SIGNAL_BINS, (x + LIMIT) * self._scale).astype(np.intp)

    def _offsets(self, size: int, requests: Sequence[int] | None) -> list[float]:
        """What each request adds in log-odds; nothing where nobody numbers them."""
        if requests is None or size > SMALL or len(requests) != size:
            return [0.0] * size
        known = [self._own.get(name, (0.0, 0.0)) for name in requests]
        return [s / (v + REQUEST_SPREAD**-2) for s, v in known]

    def _log_odds(self, size: int, first_probs: np.ndarray | None) -> np.ndarray:
        """[size], NaN where unknown."""
        if first_probs is None:
            return np.full(size, np.nan)
        probs = numbers_of(first_probs)
        if probs.shape != (size,):
            return np.full(size, np.nan)
        clipped = np.minimum(np.maximum(probs, self._least), 1.0 - self._least)
        odds = np.log(clipped / (1.0 - clipped))
        known = (probs >= 0.0) & (probs <= MAX_SHARE)
        return odds if known.all() else np.where(known, odds, np.nan)

    def _conditional(self, x: np.ndarray, own: np.ndarray) -> np.ndarray:
        """[requests, max_steps]."""
        k = self._steps
        odds = self._mean[:k] + x[:, None] * self._mean[k:] + own[:, None]
        return 1.0 / (1.0 + np.exp(-np.minimum(np.maximum(odds, -LIMIT), LIMIT)))
