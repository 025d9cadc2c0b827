"""The paper's predictor and its tables, by its own scoring: predicted tokens per step.

The published procedure: 80/20 split of rows, stratified by compression and task, seed 42; the
predictor is judged on the 20 %, then fitted again on all rows, those included, and every policy is
scored on them by what the predictor itself says it would get.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.ensemble import RandomForestRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPRegressor

from .records import COMPRESSIONS, GAMMAS, Records

FEATURES = ("mean entropy", "mean confidence", "max entropy", "min confidence", "compression")


@dataclass(frozen=True)
class Published:
    """``expected`` [test rows, gammas]: predicted tokens per step; ``choice`` [steps]: the gamma
    that the paper's policy would take in every recorded step."""

    correlation: float
    squared_error: float
    importances: dict[str, float]
    test: np.ndarray
    expected: np.ndarray
    choice: np.ndarray

    @property
    def policy(self) -> np.ndarray:
        return self.expected.max(axis=1)

    @property
    def share_gamma8(self) -> float:
        return float((self.expected.argmax(axis=1) == GAMMAS.index(8)).mean())

    def fixed(self, gamma: int) -> np.ndarray:
        return self.expected[:, GAMMAS.index(gamma)]


def reproduce(records: Records) -> Published:
    features, rate = _features(records), records.rate
    strata = np.char.add(records.compression, records.task)
    train, test = train_test_split(
        np.arange(len(rate)), test_size=0.2, random_state=42, stratify=strata
    )
    predicted = np.clip(_predictor(features[train], rate[train]).predict(features[test]), 0, 1)
    forest = RandomForestRegressor(100, random_state=42).fit(features[train], rate[train])
    final = _predictor(features, rate)
    return Published(
        correlation=float(np.corrcoef(predicted, rate[test])[0, 1]),
        squared_error=float(((predicted - rate[test]) ** 2).mean()),
        importances=dict(zip((*FEATURES, "gamma"), forest.feature_importances_, strict=True)),
        test=test,
        expected=_expected_tokens(final, features[test]),
        choice=np.array(GAMMAS)[_expected_tokens(final, features).argmax(axis=1)],
    )


def _features(records: Records) -> np.ndarray:
    code = {name: code for code, name in enumerate(COMPRESSIONS)}
    columns = (
        records.mean_entropy,
        records.mean_confidence,
        records.max_entropy,
        records.min_confidence,
        [code[name] for name in records.compression],
        records.gamma,
    )
    return np.column_stack(columns)


def _predictor(features: np.ndarray, rate: np.ndarray) -> MLPRegressor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return MLPRegressor(hidden_layer_sizes=(16,), max_iter=500, random_state=42).fit(
            features, rate
        )


def _expected_tokens(predictor: MLPRegressor, features: np.ndarray) -> np.ndarray:
    """[rows, gammas]: clip(f, 0, 1) * gamma + 1."""
    expected = []
    for gamma in GAMMAS:
        asked = features.copy()
        asked[:, -1] = gamma
        expected.append(np.clip(predictor.predict(asked), 0, 1) * gamma + 1)
    return np.column_stack(expected)
