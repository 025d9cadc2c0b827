"""Whether a round goes on drafting, from what its drafts have said of themselves so far.

A depth that is chosen before a round knows one draft's probability. The others tell more, one after
another, while the round drafts. After each the next tier is worth drafting for

    sum over requests of P(the drafts up to there are accepted) > lambda (T(next) - T(made))

The drafts that are made are accepted as often as their own probability says, the next one as the
probability of the draft before it says, deeper ones as after a usual draft: two models, each of
every position (:mod:`policy.logistic`). A choice looks at the draft's distribution only, never at
the token that was drawn from it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sglang_speckv.policy.acceptance import RECENT, SMALL, labels_of
from sglang_speckv.policy.checks import correct_drafts_of, windows_of
from sglang_speckv.policy.logistic import Logistic, OwnAcceptance, log_odds


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
        made = odds.shape[1]
        x, last = self._inputs(odds)
        by_own, by_last = self._by_own.probability(x, own), self._by_last.probability(last, own)
        return np.concatenate([by_own[:, :made], by_last[:, made:]], axis=1)

    def _inputs(self, odds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[size, max_steps] twice: each draft's own log-odds and those of the one before it."""
        x = np.tile(self._usual, (len(odds), 1))
        x[:, : odds.shape[1]] = odds
        last = np.concatenate([np.zeros((len(odds), 1)), x[:, :-1]], axis=1)
        return x, last

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
    ) -> np.ndarray | None:
        """One round of ``num_steps`` >= 1 drafts; ``signals`` [size, num_steps, 2]. Entries that
        cannot be true are left out. Returns the conditional probability of acceptance that was
        expected of every draft, [size, max_steps], None where a signal is unknown."""
        size = len(num_correct_drafts)
        correct, valid = correct_drafts_of(num_correct_drafts, num_steps)
        windows = windows_of(signals)
        odds = log_odds(windows[:, :, 0], (size, num_steps))
        if not valid.all() or np.isnan(odds).any() or not size:
            return None
        own = self._offsets(size, requests)
        expected = self._conditional(odds, own)
        judged, accepted = labels_of(correct, num_steps, self._steps)
        self._see(odds)
        x, last = self._inputs(odds)
        self._by_own.update(x, own, judged, accepted)
        judged_by_last = judged.copy()
        judged_by_last[:, 0] = False
        self._by_last.update(last, own, judged_by_last, accepted)
        if requests is not None and len(requests) == size <= SMALL:
            self._own.learn(requests, self._by_own.probability(x), judged, accepted)
        return expected

    def _see(self, odds: np.ndarray) -> None:
        made = odds.shape[1]
        self._usual[:made] += (odds.mean(axis=0) - self._usual[:made]) / RECENT
