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
from sglang_speckv.policy.prior import AcceptancePrior

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
PRIOR_LABELS = 300.0
"""At most this many labels of a trained prior count at each position."""
FEW = 8
"""Requests up to which each one's own acceptance is looked at: in larger batches it averages out
(+0.9 % at two requests, +0.4 at four, +0.1 at eight)."""
BINS = 32
"""Of first probabilities, equally wide in log-odds."""
RECENT = 64.0
"""Rounds after which one weighs 1/e in what signals are usual."""


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
        self._scale = (BINS - 1e-6) / (2 * LIMIT)
        self._middles = (np.arange(BINS) + 0.5) / self._scale - LIMIT
        self._seen = np.zeros(BINS)
        """Share of recent signals in each bin."""
        self._seen[BINS // 2] = 1.0
        self._table = np.ones((BINS + 1, max_steps + 1))
        if prior is not None:
            self._start_from(prior)
        self._believe()

    def tokens(
        self, size: int, first_probs: np.ndarray | None, requests: Sequence[int] | None = None
    ) -> list[float]:
        """Expected tokens of the batch at depths 0..max_steps, bonus included."""
        x = self._log_odds(size, first_probs)
        if size > FEW:
            counts = np.bincount(self._bins_of(x), minlength=BINS + 1)
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

    def survival(self) -> list[float]:
        """P(the first i drafts are all accepted), i = 1..max_steps, of a usual request."""
        return list(self._usual)

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
        if requests is not None and len(requests) == size <= FEW:
            names = [name for name, kept in zip(requests, valid.tolist(), strict=True) if kept]
            self._remember(names, self._conditional(x, 0.0 * own), judged, accepted)

    def _update(
        self, x: np.ndarray, expected: np.ndarray, judged: np.ndarray, accepted: np.ndarray
    ) -> None:
        """One step of Newton's method from what was believed. All [requests, max_steps]; ``judged``
        may be weights, and ``accepted`` is then a share of them."""
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
        self._mean = np.clip(self._mean + self._covariance @ gradient, -LIMIT, LIMIT)

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
        seen = np.bincount(self._bins_of(x), minlength=BINS + 1)[:BINS]
        if seen.any():
            self._seen += (seen / seen.sum() - self._seen) / RECENT
            self._usual_x = float(self._seen @ self._middles)

    def _believe(self) -> None:
        """Lay out what :meth:`tokens` asks for."""
        survival = self._conditional(self._middles, np.zeros(BINS)).cumprod(axis=1)
        usual = self._seen @ survival
        self._table[:, 1:] = 1.0 + np.concatenate([survival, usual[None]]).cumsum(axis=1)
        self._usual: list[float] = usual.tolist()
        self.usual: list[float] = self._table[-1].tolist()
        """A(0)..A(max_steps): tokens of a usual request at every depth, bonus included."""
        mean = self._mean.tolist()
        self._pairs = list(zip(mean[: self._steps], mean[self._steps :], strict=True))

    def _bins_of(self, x: np.ndarray) -> np.ndarray:
        """The last one where it is unknown."""
        return np.where(np.isnan(x), BINS, (x + LIMIT) * self._scale).astype(np.intp)

    def _offsets(self, size: int, requests: Sequence[int] | None) -> list[float]:
        """What each request adds in log-odds; nothing where nobody numbers them."""
        if requests is None or size > FEW or len(requests) != size:
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
        odds = self._mean[:k] + np.outer(x, self._mean[k:])
        odds += own[:, None]
        np.clip(odds, -LIMIT, LIMIT, out=odds)
        return 1.0 / (1.0 + np.exp(-odds))

    def _start_from(self, prior: AcceptancePrior) -> None:
        """Its counts as labels, each row of first probabilities at the middle of its bin."""
        depth = min(prior.depth, self._steps)
        tried, accepted = np.zeros((2, len(prior.tried), self._steps))
        scale = np.minimum(1.0, PRIOR_LABELS / np.maximum(prior.tried[:, :depth].sum(axis=0), 1.0))
        tried[:, :depth] = prior.tried[:, :depth] * scale
        accepted[:, :depth] = prior.accepted[:, :depth] * scale
        edges = np.log(prior.edges / (1.0 - prior.edges))
        half = np.diff(edges).mean() / 2 if len(edges) > 1 else SPREAD
        middles = np.concatenate(
            [edges[:1] - half, (edges[1:] + edges[:-1]) / 2, edges[-1:] + half]
        )
        x = np.append(middles, 0.0)
        counts = tried.sum(axis=1)
        known = np.bincount(self._bins_of(x[:-1]), counts[:-1], BINS + 1)[:BINS]
        self._seen = known / known.sum() if known.any() else self._seen
        self._usual_x = x[-1] = float(self._seen @ self._middles)
        start, covariance = self._mean.copy(), self._covariance
        share = accepted / np.maximum(tried, 1e-9)
        for _ in range(8):  # Newton's steps from the same prior
            mean = self._mean
            expected = self._conditional(x, np.zeros(len(x)))
            self._mean, self._covariance = mean, covariance
            self._update(x, expected, tried, share)
            back = np.linalg.solve(covariance, mean - start)
            self._mean = np.clip(self._mean - self._covariance @ back, -LIMIT, LIMIT)
        self.labels += tried.sum(axis=0)
