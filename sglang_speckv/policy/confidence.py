"""Draft as long as the draft stays confident: a threshold on its top-1 probability, no cost.

Source: llama.cpp's ``--spec-draft-p-min`` (stop at the first token below it) and transformers'
``assistant_confidence_threshold`` (0.4). Both stop *while* drafting. A depth that is chosen
before drafting can only look at how long the last windows stayed confident and at the coming
first token; ``foresee`` gives it the coming window instead, as if it stopped in the round (and
does not charge for the token that made it stop). A batch shares one depth: the mean over its
requests, rounded to the nearest tier.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sglang_speckv.policy.base import Batch, Decision, Round
from sglang_speckv.policy.checks import is_round, numbers_of, windows_of

THRESHOLD = 0.4
MEMORY = 0.3
"""Weight of the newest window in the mean confident length."""


class ConfidencePolicy:
    name = "confidence"

    def __init__(
        self, candidate_steps: Sequence[int], initial_steps: int, threshold: float = THRESHOLD
    ):
        self.candidate_steps = tuple(candidate_steps)
        self.threshold = threshold
        self._tiers = np.array(self.candidate_steps)
        self._length = float(initial_steps)
        self._coming: float | None = None

    def foresee(self, signals: np.ndarray) -> None:
        """``signals`` [live, depth, 2] of the coming round, for the view from inside it."""
        lengths = self._confident(signals)
        self._coming = float(lengths.mean()) if len(lengths) else 0.0

    def decide(self, batch: Batch) -> Decision:
        if self._coming is not None:
            length, self._coming = self._coming, None
            return self._nearest(length, "window")
        share = 1.0
        if batch.first_probs is not None:
            firsts = numbers_of(batch.open_probs)
            known = firsts[~np.isnan(firsts)]
            share = float(np.mean(known >= self.threshold)) if len(known) else 1.0
        return self._nearest(self._length * share, "confident")

    def _nearest(self, length: float, reason: str) -> Decision:
        at = int(np.argmin(np.abs(self._tiers - length)))
        return Decision(self.candidate_steps[at], reason)

    def observe(self, outcome: Round) -> None:
        """A request that was confident to its window's end counts as the next deeper tier."""
        if not is_round(outcome, self.candidate_steps):
            return
        deeper = self._tiers[self._tiers > outcome.num_steps]
        next_tier = float(deeper[0]) if len(deeper) else float(self._tiers[-1])
        windows = windows_of(outcome.signals)
        if not len(windows):
            self._length = max(self._length, next_tier if outcome.num_steps == 0 else 0.0)
            return
        lengths = self._confident(windows)
        mean = float(np.where(lengths == outcome.num_steps, next_tier, lengths).mean())
        self._length += MEMORY * (mean - self._length)

    def _confident(self, signals: np.ndarray) -> np.ndarray:
        """Per request the drafts before the first one below the threshold."""
        with np.errstate(invalid="ignore"):
            confident = np.logical_and.accumulate(signals[:, :, 0] >= self.threshold, axis=1)
        return np.asarray(confident.sum(axis=1))

    def snapshot(self) -> dict[str, object]:
        return {"threshold": self.threshold, "confident_length": round(self._length, 3)}
