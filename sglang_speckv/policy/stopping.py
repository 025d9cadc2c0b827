"""What a round's own drafts say: whether to make another, and how many of each request to verify.

A depth that is chosen before a round knows one draft's probability. The others tell more, one after
another, while the round drafts. With S_i = P(the first i drafts are accepted), lambda the price of
a second and v the time that one more verified token takes, the next tier is drafted where

    sum over requests, and drafts i up to it, of max(0, S_i - lambda v) > lambda x time of drafting

and of each request the drafts with S_i > lambda v are verified. S_i falls with i, so they come
first. Where every draft that is made has to be verified, the same holds with v = 0 and the time of
the whole round. Where the depth is verified in full, however many drafts were made, it holds with
v = 0 and the time of drafting, and a device can see to it by itself: :class:`StopRule`.

The drafts that are made are accepted as often as their own probability says, the next one as the
probability of the draft before it says, deeper ones as after a usual draft: two models, each of
every position (:mod:`policy.logistic`). Whether draft i is made and verified depends on the
distributions of the drafts up to i, never on the tokens that were drawn from them, so the output
keeps its distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sglang_speckv.policy import kernels
from sglang_speckv.policy.acceptance import RECENT, SMALL
from sglang_speckv.policy.checks import correct_drafts_of, windows_of
from sglang_speckv.policy.logistic import LIMIT, Logistic, OwnAcceptance, log_odds


class StopRule(NamedTuple):
    """How many drafts a round makes that nobody on the host is asked about. With i made, it makes
    another one unless

        sum over requests of S_i P(draft i + 1 is accepted | the first i are) <= price[i]

    ``own`` and ``coming`` [2, max_steps]: intercepts and slopes of P, by a draft's own log-odds and
    by those of the draft before it. ``offsets`` [size]: what each request adds to them. ``price``
    [max_steps]: the tokens that each draft costs, the first one counted.
    """

    own: np.ndarray
    coming: np.ndarray
    offsets: np.ndarray
    price: np.ndarray

    def drafts(self, probs: np.ndarray) -> int:
        """By the top-1 probabilities ``probs`` [size, k] of as many drafts as there may be. What is
        unknown stops nothing."""
        most = probs.shape[1]
        odds = log_odds(probs, probs.shape)
        survival = self._probability(self.own[:, :most], odds).cumprod(axis=1)
        coming = self._probability(self.coming[:, 1:most], odds[:, :-1])
        stops = (survival[:, :-1] * coming).sum(axis=0) <= self.price[1:most]
        return 1 + int(np.argmax(stops)) if stops.any() else most

    def _probability(self, model: np.ndarray, odds: np.ndarray) -> np.ndarray:
        found: np.ndarray = kernels.probability(model.ravel(), odds, self.offsets, LIMIT)
        return found


class Stopping:
    """Up to ``max_steps`` drafts."""

    def __init__(self, max_steps: int) -> None:
        self._steps = max_steps
        self._by_own = Logistic(max_steps)
        self._by_last = Logistic(max_steps)
        self._usual = np.zeros(max_steps)
        """Log-odds of a usual draft of each position."""
        self._own = OwnAcceptance()

    def survival(
        self, probs: np.ndarray, requests: Sequence[int] | None = None
    ) -> np.ndarray | None:
        """[size, max_steps]: P(the first i drafts are accepted), where the first k have the top-1
        probabilities ``probs`` [size, k]; None where one of these is unknown."""
        odds = log_odds(probs, np.shape(probs))
        if np.isnan(odds).any():
            return None
        return self._conditional(odds, self._offsets(len(odds), requests)).cumprod(axis=1)

    def _conditional(self, odds: np.ndarray, own: np.ndarray) -> np.ndarray:
        models = self._by_own.mean, self._by_last.mean
        found: np.ndarray = kernels.conditional(*models, self._usual, odds, own, LIMIT)
        return found

    def _inputs(self, odds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[size, max_steps] twice: each draft's own log-odds and those of the one before it."""
        both = np.zeros((len(odds), self._steps + 1))
        both[:, 1:] = self._usual
        both[:, 1 : odds.shape[1] + 1] = odds
        return both[:, 1:], both[:, :-1]

    def rule(self, price: float, size: int, requests: Sequence[int] | None = None) -> StopRule:
        """For a batch of ``size`` requests, where a draft costs ``price`` tokens."""
        own, coming = (model.mean.reshape(2, -1).copy() for model in (self._by_own, self._by_last))
        return StopRule(own, coming, self._offsets(size, requests), np.full(self._steps, price))

    def _offsets(self, size: int, requests: Sequence[int] | None) -> np.ndarray:
        if requests is None or size > SMALL or len(requests) != size:
            return np.zeros(size)
        return np.array(self._own.of(requests))

    def learn(
        self,
        num_steps: int,
        num_correct_drafts: Sequence[int],
        signals: np.ndarray | None,
        requests: Sequence[int] | None = None,
        widths: np.ndarray | None = None,
    ) -> np.ndarray | None:
        """One round of ``num_steps`` >= 1 drafts, of which ``widths`` [size] were verified;
        ``signals`` [size, num_steps, 2]. Nothing is learned where an entry cannot be true.

        Returns the conditional probability of acceptance that was expected of every draft,
        [size, max_steps], None where a signal is unknown."""
        size = len(num_correct_drafts)
        correct, valid = correct_drafts_of(num_correct_drafts, num_steps)
        windows = windows_of(signals)
        odds = log_odds(windows[:, :, 0], (size, num_steps))
        if not valid.all() or np.isnan(odds).any() or not size:
            return None
        own = self._offsets(size, requests)
        x, last = self._inputs(odds)
        expected = self._conditional(odds, own)
        made = np.full(size, num_steps) if widths is None else widths
        labels = kernels.labels(correct, made, self._steps)
        self._see(odds)
        self._by_own.update(x, expected, labels)
        if requests is not None and len(requests) == size <= SMALL:
            self._own.learn(requests, self._by_own.probability(x), labels)
        # Whether a draft was verified hangs on its own probability, which this model does not know.
        labels = kernels.imputed(labels, correct, made, expected[:, :num_steps])
        labels[0, :, 0] = 0.0
        self._by_last.update(last, self._by_last.probability(last, own), labels)
        return expected

    def _see(self, odds: np.ndarray) -> None:
        made = odds.shape[1]
        self._usual[:made] += (odds.sum(axis=0) / len(odds) - self._usual[:made]) / RECENT
