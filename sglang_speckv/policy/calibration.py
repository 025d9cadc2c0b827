"""Does it happen as often as was said? Reliability and Brier score of predicted acceptance."""

from __future__ import annotations

import numpy as np

BINS = 10
MEMORY = 20_000.0
"""Labels after which a label weighs 1/e."""

_OFFSETS = BINS * np.arange(3)[:, None]


class Calibration:
    """Compares every predicted acceptance with what happened, in ten bins of the prediction."""

    def __init__(self) -> None:
        self._sums = np.zeros(3 * BINS)  # labels, accepted, sum of predictions
        self._brier = 0.0

    def update(self, predicted: np.ndarray, news: np.ndarray) -> None:
        """``predicted`` [rows, steps]: probability of acceptance; ``news`` [rows, 2, steps]:
        labels and accepted ones of them."""
        tried, accepted = news[:, 0].ravel(), news[:, 1].ravel()
        predicted = predicted.ravel()
        bins = np.minimum((predicted * BINS).astype(int), BINS - 1)
        hits = tried * predicted
        sums = np.concatenate([tried, accepted, hits])
        where = (bins + _OFFSETS).ravel()
        keep = max(0.5, 1.0 - float(tried.sum()) / MEMORY)
        self._sums = keep * self._sums + np.bincount(where, sums, 3 * BINS)
        brier = np.vdot(hits, predicted) - 2.0 * np.vdot(predicted, accepted) + accepted.sum()
        self._brier = self._brier * keep + float(brier)

    def snapshot(self) -> dict[str, object]:
        """``reliability``: [mean prediction, share accepted, labels] per bin that has any."""
        labels, accepted, predicted = self._sums.reshape(3, BINS)
        return {
            "brier": round(self._brier / max(1.0, float(labels.sum())), 4),
            "reliability": [
                [round(float(p / n), 3), round(float(a / n), 3), round(float(n))]
                for n, p, a in zip(labels, predicted, accepted, strict=True)
                if n >= 0.5
            ],
        }
