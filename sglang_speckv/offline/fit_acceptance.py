"""The policy's own model of acceptance, taught by recorded rounds, and how well it forecasts."""

from __future__ import annotations

from typing import Any

import numpy as np

from sglang_speckv.offline.columns import Columns
from sglang_speckv.policy.acceptance import Acceptance
from sglang_speckv.policy.stopping import Stopping

TOGETHER = 64
"""Requests that are learned from at a time."""
MIN_JUDGED = 50
"""Held-out drafts from which a depth's figures are given."""
_CALIBRATION_BINS = 10


def fit_acceptance(columns: Columns, rows: np.ndarray) -> Acceptance:
    """Learn from the records ``rows``."""
    depth = max(1, int(columns.num_steps.max(initial=0)))
    model = Acceptance(depth)
    teach(
        model,
        columns.num_steps[rows],
        columns.num_correct_drafts[rows],
        columns.first_prob[rows],
        columns.signals[rows],
        columns.num_verified[rows],
        columns.stopped[rows],
    )
    return model


def teach(
    model: Acceptance,
    num_steps: np.ndarray,
    num_correct_drafts: np.ndarray,
    first_prob: np.ndarray,
    signals: np.ndarray | None = None,
    num_verified: np.ndarray | None = None,
    stopped: np.ndarray | None = None,
) -> None:
    """All [n], ``signals`` [n, depth, 2], in a random order, so that no prompt weighs more for
    having come last. Where the drafts of a round said how many to make or to verify, the signals
    tell what would have become of the others."""
    verified = num_steps if num_verified is None else num_verified
    changed = verified < num_steps
    if stopped is not None:
        changed = changed | stopped
    stopping = Stopping(model.depth) if changed.any() else None
    order = np.random.default_rng(0).permutation(len(num_steps))
    for start in range(0, len(order), TOGETHER):
        rows = order[start : start + TOGETHER]
        kinds = sorted({*zip(num_steps[rows].tolist(), changed[rows].tolist(), strict=True)})
        for steps, is_changed in kinds:
            alike = rows[(num_steps[rows] == steps) & (changed[rows] == is_changed)]
            correct, widths, expected = num_correct_drafts[alike], verified[alike], None
            if stopping is not None and signals is not None and steps:
                window = signals[alike, :steps]
                expected = stopping.learn(steps, correct, window, None, widths)
            first = first_prob[alike]
            model.learn(steps, correct, first, None, widths, expected if is_changed else None)


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
