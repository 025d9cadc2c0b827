"""The policy's own model of acceptance, taught by recorded rounds, and how well it forecasts."""

from __future__ import annotations

from typing import Any

import numpy as np

from sglang_speckv.offline.columns import Columns
from sglang_speckv.policy.acceptance import Acceptance

TOGETHER = 64
"""Requests that are learned from at a time."""
MIN_JUDGED = 50
"""Held-out drafts from which a depth's figures are given."""
_CALIBRATION_BINS = 10


def fit_acceptance(columns: Columns, rows: np.ndarray) -> Acceptance:
    """Learn from the records ``rows``: a draft that was not verified says as much as one that was
    not made. (Cut by what they said of themselves, they are the less sure ones. With one round of
    four verified in full that moves what is learned by less than it scatters.)"""
    depth = max(1, int(columns.num_steps.max(initial=0)))
    model = Acceptance(depth)
    teach(
        model,
        columns.num_steps[rows],
        columns.num_correct_drafts[rows],
        columns.first_prob[rows],
        columns.num_verified[rows],
    )
    return model


def teach(
    model: Acceptance,
    num_steps: np.ndarray,
    num_correct_drafts: np.ndarray,
    first_prob: np.ndarray,
    num_verified: np.ndarray | None = None,
) -> None:
    """All [n], in a random order, so that no prompt weighs more for having come last."""
    order = np.random.default_rng(0).permutation(len(num_steps))
    for start in range(0, len(order), TOGETHER):
        rows = order[start : start + TOGETHER]
        for steps in np.unique(num_steps[rows]).tolist():
            alike = rows[num_steps[rows] == steps]
            widths = None if num_verified is None else num_verified[alike]
            model.learn(steps, num_correct_drafts[alike], first_prob[alike], widths=widths)


def constant(columns: Columns, rows: np.ndarray) -> np.ndarray:
    """P(the first j drafts are all accepted), j = 1.., counted, whatever the signals [depth]."""
    steps, correct = columns.num_verified[rows], columns.num_correct_drafts[rows]
    positions = np.arange(max(1, int(columns.num_steps.max(initial=0))))[:, None]
    judged = (steps > positions) & (correct >= positions)
    accepted = (judged & (correct > positions)).sum(axis=1)
    return np.cumprod((accepted + 0.5) / (judged.sum(axis=1) + 1.0))


def evaluate(
    model: Acceptance, flat: np.ndarray, columns: Columns, rows: np.ndarray
) -> dict[str, Any]:
    """Figures on the records ``rows``, which ``model`` and the constants ``flat`` have not seen.

    Per depth j, over records that drafted at least j: log loss and Brier score of P(first j all
    accepted) from the model and from the constant, and the model's calibration error (mean
    distance between forecast and frequency over ten bins of the forecast).
    """
    steps, correct = columns.num_verified[rows], columns.num_correct_drafts[rows]
    first_prob = columns.first_prob[rows]
    told = model.survival(first_prob)
    depths = []
    for j in range(1, len(flat) + 1):
        judged = steps >= j
        if judged.sum() < MIN_JUDGED:
            break
        came = (correct[judged] >= j).astype(float)
        forecast = told[judged, j - 1]
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
