"""Acceptance counts by first-token probability and position, and how well they forecast."""

from __future__ import annotations

from typing import Any

import numpy as np

from sglang_speckv.offline.columns import Columns
from sglang_speckv.policy.prior import AcceptancePrior

BINS = 12
SHRINK = 8.0
"""Labels that a position's overall rate is worth in a bin's own."""
MIN_JUDGED = 50
"""Held-out drafts from which a depth's figures are given."""
_CALIBRATION_BINS = 10


def fit_acceptance(columns: Columns, rows: np.ndarray) -> AcceptancePrior:
    """Count over the records ``rows``; bins hold about equally many of them."""
    depth = max(1, int(columns.num_steps.max(initial=0)))
    first_prob = columns.first_prob[rows]
    edges = _edges(first_prob[~np.isnan(first_prob)])
    shape = len(edges) + 2, depth
    prior = AcceptancePrior(edges, np.zeros(shape), np.zeros(shape))
    tried, accepted = np.zeros(shape), np.zeros(shape)
    steps, correct = columns.num_steps[rows], columns.num_correct_drafts[rows]
    bins = prior.row_of(first_prob)
    for i in range(depth):
        judged = (steps > i) & (correct >= i)
        tried[:, i] = np.bincount(bins[judged], minlength=shape[0])
        accepted[:, i] = np.bincount(bins[judged & (correct > i)], minlength=shape[0])
    return AcceptancePrior(edges, tried, accepted)


def survival(prior: AcceptancePrior) -> np.ndarray:
    """P(the first j drafts are all accepted), j = 1..depth, per row [bins + 1, depth]."""
    tried, accepted = prior.tried, prior.accepted
    overall = constant(prior)
    return np.cumprod((accepted + SHRINK * overall) / (tried + SHRINK), axis=1)


def constant(prior: AcceptancePrior) -> np.ndarray:
    """P(draft i accepted | those before), whatever the first probability [depth]."""
    tried, accepted = prior.tried.sum(axis=0), prior.accepted.sum(axis=0)
    return (accepted + 0.5) / (tried + 1.0)


def evaluate(prior: AcceptancePrior, columns: Columns, rows: np.ndarray) -> dict[str, Any]:
    """Figures on the records ``rows``, which ``prior`` has not seen.

    Per depth j, over records that drafted at least j: log loss and Brier score of P(first j all
    accepted) from the table and from the constant, and the table's calibration error (mean
    distance between forecast and frequency over ten bins of the forecast).
    """
    table, flat = survival(prior), np.cumprod(constant(prior))
    steps, correct = columns.num_steps[rows], columns.num_correct_drafts[rows]
    first_prob = columns.first_prob[rows]
    bins = prior.row_of(first_prob)
    depths = []
    for j in range(1, prior.depth + 1):
        judged = steps >= j
        if judged.sum() < MIN_JUDGED:
            break
        came = (correct[judged] >= j).astype(float)
        forecast = table[bins[judged], j - 1]
        base = np.full(len(came), flat[j - 1])
        depths.append(
            {
                "depth": j,
                "drafts": int(judged.sum()),
                "rate": round(float(came.mean()), 4),
                "log_loss": log_loss(forecast, came),
                "log_loss_constant": log_loss(base, came),
                "brier": brier(forecast, came),
                "brier_constant": brier(base, came),
                "calibration_error": calibration_error(forecast, came),
            }
        )
    known = (steps >= 1) & ~np.isnan(first_prob)
    return {"depths": depths, "auc_first_prob": auc(first_prob[known], correct[known] >= 1)}


def log_loss(forecast: np.ndarray, came: np.ndarray) -> float:
    p = np.clip(forecast, 1e-6, 1 - 1e-6)
    return round(float(-(came * np.log(p) + (1 - came) * np.log1p(-p)).mean()), 5)


def brier(forecast: np.ndarray, came: np.ndarray) -> float:
    return round(float(((forecast - came) ** 2).mean()), 5)


def calibration_error(forecast: np.ndarray, came: np.ndarray) -> float:
    order = np.argsort(forecast, kind="stable")
    parts = [part for part in np.array_split(order, _CALIBRATION_BINS) if len(part)]
    gaps = [abs(forecast[part].mean() - came[part].mean()) * len(part) for part in parts]
    return round(float(sum(gaps) / len(forecast)), 4)


def auc(score: np.ndarray, positive: np.ndarray) -> float | None:
    """P(a positive has the higher score), ties half; None where one side is empty."""
    from scipy.stats import rankdata

    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return None
    ranks = float(rankdata(score)[positive].sum())
    return round((ranks - positives * (positives + 1) / 2) / (positives * negatives), 4)


def _edges(first_prob: np.ndarray) -> np.ndarray:
    """Boundaries of equally filled bins, no two alike, inside (0, 1)."""
    if not len(first_prob):
        return np.empty(0)
    edges = np.unique(np.quantile(first_prob, np.arange(1, BINS) / BINS).round(5))
    return edges[(edges > 0) & (edges < 1)]
