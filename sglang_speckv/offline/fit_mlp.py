"""Fits the paper's predictor (SpecKV, arXiv 2605.02888): 16 ReLU units, squared loss, Adam.

As published it learns accepted / proposed from the window of the *same* round. numpy suffices,
and makes the same weights of the same records.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sglang_speckv.offline.columns import Columns
from sglang_speckv.policy.mlp import MLP_FEATURES, MlpWeights, compression_code

UNITS = 16
EPOCHS = 60
BATCH = 256
MAX_ROWS = 100_000
"""More records are thinned evenly: the figures do not change and a fit stays within seconds."""
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-4
MIN_ROWS = 200
DIGITS = 7
"""Weights are rounded, so that last-bit differences of a machine's arithmetic do not show."""


@dataclass(frozen=True, eq=False)
class Windows:
    """``features`` [n, 6] as in ``MLP_FEATURES``, ``rates`` [n] accepted over proposed."""

    features: np.ndarray
    rates: np.ndarray


def windows(columns: Columns, rows: np.ndarray) -> Windows:
    """Every window that the records ``rows`` show: a round of depth d with all signals known is
    also one of each shallower depth, so that one depth's records tell the depths apart."""
    parts = [_windows_of(columns, rows, k) for k in range(1, columns.signals.shape[1] + 1)]
    if not parts:
        return Windows(np.empty((0, len(MLP_FEATURES))), np.empty(0))
    return Windows(*(np.concatenate(of) for of in zip(*parts, strict=True)))


def _windows_of(columns: Columns, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Features and rates of the first ``k`` drafts."""
    signals = columns.signals[rows, :k]
    known = (columns.num_verified[rows] >= k) & ~np.isnan(signals).any(axis=(1, 2))
    confidence, entropy = signals[known, :, 0], signals[known, :, 1]
    n = len(confidence)
    features = np.stack(
        [
            entropy.mean(axis=1),
            confidence.mean(axis=1),
            entropy.max(axis=1),
            confidence.min(axis=1),
            np.full(n, float(compression_code(columns.header.quantization))),
            np.full(n, float(k)),
        ],
        axis=1,
    )
    return features, np.minimum(columns.num_correct_drafts[rows][known], k) / k


def fit_mlp(data: Windows, seed: int = 42) -> MlpWeights | None:
    """Train; None where there are fewer than :data:`MIN_ROWS` windows."""
    if len(data.rates) < MIN_ROWS:
        return None
    stride = -(-len(data.rates) // MAX_ROWS)
    features, rates = data.features[::stride], data.rates[::stride]
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale[scale < 1e-6] = 1.0
    parameters = _adam((features - mean) / scale, rates, np.random.default_rng(seed))
    hidden, bias, output, constant = parameters
    raw = hidden / scale[:, None]  # the published predictor takes unscaled features
    return MlpWeights(
        hidden=raw.round(DIGITS),
        hidden_bias=(bias - mean @ raw).round(DIGITS),
        output=output.round(DIGITS),
        output_bias=np.asarray(constant).round(DIGITS).reshape(()),
    )


def predict(weights: MlpWeights, features: np.ndarray) -> np.ndarray:
    hidden = np.maximum(features @ weights.hidden + weights.hidden_bias, 0.0)
    return np.clip(hidden @ weights.output + weights.output_bias, 0.0, 1.0)


def evaluate(weights: MlpWeights, data: Windows) -> dict[str, float | int]:
    """Correlation and squared error on windows that the weights have not seen."""
    forecast = predict(weights, data.features)
    constant = data.rates.mean() if len(data.rates) else 0.0
    varies = len(data.rates) > 2 and forecast.std() > 0 and data.rates.std() > 0
    correlation = float(np.corrcoef(forecast, data.rates)[0, 1]) if varies else 0.0
    return {
        "windows": len(data.rates),
        "correlation": round(correlation, 4),
        "mse": round(float(((forecast - data.rates) ** 2).mean()), 5),
        "mse_constant": round(float(((constant - data.rates) ** 2).mean()), 5),
    }


def _adam(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    inputs = len(MLP_FEATURES)
    parameters = [
        rng.normal(0.0, np.sqrt(2.0 / inputs), (inputs, UNITS)),
        np.zeros(UNITS),
        rng.normal(0.0, np.sqrt(1.0 / UNITS), UNITS),
        np.full((), y.mean()),
    ]
    first, second = ([np.zeros_like(p) for p in parameters] for _ in range(2))
    step = 0
    for _ in range(EPOCHS):
        order = rng.permutation(len(y))
        for rows in np.split(order, range(BATCH, len(order), BATCH)):
            step += 1
            rate = LEARNING_RATE * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
            for i, gradient in enumerate(_gradients(parameters, x[rows], y[rows])):
                first[i] = 0.9 * first[i] + 0.1 * gradient
                second[i] = 0.999 * second[i] + 0.001 * gradient**2
                parameters[i] = parameters[i] - rate * first[i] / (np.sqrt(second[i]) + 1e-8)
    return parameters


def _gradients(parameters: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Of half the mean squared error plus weight decay."""
    hidden, bias, output, constant = parameters
    active = np.maximum(x @ hidden + bias, 0.0)
    error = (active @ output + constant - y) / len(y)
    back = np.outer(error, output) * (active > 0)
    decay = WEIGHT_DECAY / len(y)
    return [
        x.T @ back + decay * hidden,
        back.sum(axis=0),
        active.T @ error + decay * output,
        error.sum(),
    ]
