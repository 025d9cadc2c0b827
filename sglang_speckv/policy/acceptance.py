"""How deep drafts survive: P(draft i accepted | drafts before it accepted), learned online."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

PRIOR = 0.6
"""Acceptance of the first draft before any evidence; deeper positions lean on the one above."""
PRIOR_WEIGHT = 4.0
"""Labels that the prior, and the position above, are worth."""
MEMORY = 50.0
"""Request-rounds after which a label weighs 1/e ..."""
MIN_ROUNDS = 12.0
"""... but never fewer rounds than this: large batches change no faster than small ones."""
FLOOR = 6.0
"""Labels fade to this many and stay: for a best guess stale evidence beats none."""
HOPE = 0.8
"""What a position may have become that has not been seen for long, ..."""
HOPE_WEIGHT = 2.0
"""... in unfaded labels."""


class Acceptance:
    """Per-position conditional acceptance with exponential forgetting.

    A request with c correct drafts out of k says "accepted" of positions 1..c and "rejected" of
    c+1 where c < k; of deeper positions it says nothing. Positions without evidence inherit the
    estimate of the position before.
    """

    def __init__(self, max_steps: int):
        self._tried, self._accepted, self._fresh = ([0.0] * max_steps for _ in range(3))
        if max_steps:
            self._tried[0], self._accepted[0] = PRIOR_WEIGHT, PRIOR_WEIGHT * PRIOR
        self._believe()

    def update(self, num_steps: int, num_correct_drafts: Sequence[int]) -> tuple[int, int]:
        """Learn from one round of ``num_steps`` <= max_steps; returns the number of usable
        requests and of their tokens, bonus included."""
        correct = _valid(num_correct_drafts, num_steps)
        if not correct.size:
            return 0, 0
        self._forget(int(correct.size))
        # at_least[c]: requests with c or more correct drafts, c = 0..num_steps
        at_least = np.bincount(correct, minlength=num_steps + 1)[::-1].cumsum()[::-1].tolist()
        for i in range(num_steps):
            self._tried[i] += at_least[i]
            self._fresh[i] += at_least[i]
            self._accepted[i] += at_least[i + 1]
        self._believe()
        return at_least[0], sum(at_least)

    def _forget(self, requests: int) -> None:
        keep = math.exp(-min(requests / MEMORY, 1.0 / MIN_ROUNDS))
        for i, tried in enumerate(self._tried):
            faded = max(tried * keep, min(tried, FLOOR))
            self._accepted[i] *= faded / tried if tried else 0.0
            self._tried[i] = faded
            self._fresh[i] *= keep

    def _believe(self) -> None:
        self.conditional: list[float] = []
        """P(draft i accepted | those before it accepted), i = 1..max_steps."""
        above, weight = 0.0, 0.0
        for accepted, tried in zip(self._accepted, self._tried, strict=True):
            above = (accepted + weight * above) / (tried + weight)
            weight = PRIOR_WEIGHT
            self.conditional.append(above)

    @property
    def counts(self) -> list[float]:
        """Effective number of labels per position."""
        return list(self._tried)

    def survival(self) -> np.ndarray:
        """s_1..s_K: P(the first i drafts are all accepted)."""
        return np.cumprod(self.conditional)

    def accept_lengths(self) -> list[float]:
        """A(0)..A(K): expected tokens per request and round, bonus included."""
        return self._lengths(self.conditional)

    def hoped_accept_lengths(self, known_steps: int) -> list[float]:
        """A(0)..A(K) if all positions deeper than ``known_steps`` were one standard error better
        than believed, or as good as hoped for where they have not been seen for long."""
        hopes = list(self.conditional)
        for i in range(known_steps, len(hopes)):
            p, fresh = hopes[i], self._fresh[i]
            renewed = (fresh * p + HOPE_WEIGHT * HOPE) / (fresh + HOPE_WEIGHT)
            hopes[i] = min(1.0, max(renewed, p + _standard_error(p, self._tried[i])))
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
        values = np.asarray(num_correct_drafts)
        if values.dtype.kind not in "iu":
            values = values.astype(float)
            values = values[values == np.floor(values)]
    except (TypeError, ValueError, OverflowError):
        return np.empty(0, dtype=int)
    return values[(values >= 0) & (values <= num_steps)].ravel().astype(int)
