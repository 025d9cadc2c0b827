"""How deep drafts survive: P(draft i accepted | drafts before it accepted), learned online."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

PRIOR = 0.6
"""Acceptance of the first draft before any evidence; deeper positions lean on the one above."""
PRIOR_WEIGHT = 4.0
"""Labels that the prior is worth."""
MEMORY = 160.0
"""Request-rounds after which a label weighs 1/e ..."""
MIN_ROUNDS = 24.0
"""... but never fewer rounds than this, for large batches change no faster than small ones."""
FLOOR = 6.0
"""Old labels fade to this many and stay: stale evidence still beats none."""


class Acceptance:
    """Per-position conditional acceptance with exponential forgetting.

    A request with c correct drafts out of k says "accepted" of positions 1..c and "rejected" of
    c+1 where c < k; of deeper positions it says nothing. Positions without evidence inherit the
    estimate of the position before.
    """

    def __init__(self, max_steps: int):
        self._tried = np.zeros(max_steps)
        self._accepted = np.zeros(max_steps)
        self._refresh()

    def update(self, num_steps: int, num_correct_drafts: Sequence[int]) -> int:
        """Learn from one round of ``num_steps`` <= max_steps; returns the usable requests."""
        correct = _valid(num_correct_drafts, num_steps)
        if not correct.size:
            return 0
        self._forget(correct.size)
        # at_least[c]: requests with c or more correct drafts, c = 0..num_steps
        at_least = np.bincount(correct, minlength=num_steps + 1)[::-1].cumsum()[::-1]
        self._tried[:num_steps] += at_least[:-1]
        self._accepted[:num_steps] += at_least[1:]
        self._refresh()
        return int(correct.size)

    def _forget(self, requests: int) -> None:
        keep = math.exp(-min(requests / MEMORY, 1.0 / MIN_ROUNDS))
        tried = self._tried
        faded = np.maximum(tried * keep, np.minimum(tried, FLOOR))
        self._accepted *= faded / np.maximum(tried, 1e-9)
        self._tried = faded

    def _refresh(self) -> None:
        self.counts: list[float] = self._tried.tolist()
        """Effective number of labels per position."""
        self.conditional: list[float] = []
        """P(draft i accepted | those before it accepted), i = 1..max_steps."""
        belief = PRIOR
        for accepted, tried in zip(self._accepted.tolist(), self.counts, strict=True):
            belief = (accepted + PRIOR_WEIGHT * belief) / (tried + PRIOR_WEIGHT)
            self.conditional.append(belief)

    def survival(self) -> np.ndarray:
        """s_1..s_K: P(the first i drafts are all accepted)."""
        return np.cumprod(self.conditional)

    def accept_lengths(self) -> list[float]:
        """A(0)..A(K): expected tokens per request and round, bonus included."""
        return self._lengths(self.conditional)

    def optimistic_accept_lengths(self, known_steps: int) -> list[float]:
        """A(0)..A(K) if every position deeper than ``known_steps`` were one standard error
        better than believed."""
        hopes = [
            p if i < known_steps else min(1.0, p + _standard_error(p, n))
            for i, (p, n) in enumerate(zip(self.conditional, self.counts, strict=True))
        ]
        return self._lengths(hopes)

    @staticmethod
    def _lengths(conditional: Sequence[float]) -> list[float]:
        lengths, survives = [1.0], 1.0
        for p in conditional:
            survives *= p
            lengths.append(lengths[-1] + survives)
        return lengths


def _standard_error(p: float, count: float) -> float:
    return math.sqrt((p * (1.0 - p) + 0.02) / (count + PRIOR_WEIGHT))


def _valid(num_correct_drafts: Sequence[int], num_steps: int) -> np.ndarray:
    """The entries that can be true, as integers; anything else is ignored."""
    try:
        values = np.asarray(num_correct_drafts, dtype=float).ravel()
    except (TypeError, ValueError, OverflowError):
        return np.empty(0, dtype=int)
    values = values[(values >= 0) & (values <= num_steps)]
    return values[values == np.floor(values)].astype(int)
