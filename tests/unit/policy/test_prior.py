"""Priors: the arrays mean what they say, and wrong ones are refused."""

from __future__ import annotations

import numpy as np
import pytest

from sglang_speckv.config import ConfigError
from sglang_speckv.policy.mlp import MlpWeights, compression_code
from sglang_speckv.policy.prior import SIGNAL_BINS, AcceptancePrior, CostPrior


def test_times_of_the_nearest_batch_size() -> None:
    size, steps = np.array([1, 1, 16]), np.array([0, 3, 3])
    cost = CostPrior(size, steps, np.array([0.1, 0.2, 0.5]), np.ones(3))
    assert cost.at(1) == cost.at(3) == {0: 0.1, 3: 0.2}
    assert cost.at(5) == cost.at(100) == {3: 0.5}


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"mean": np.ones(3)}, "shapes"),
        ({"mean": np.ones((2, 0)), "labels": np.ones(0), "covariance": np.ones((0, 0))}, "shapes"),
        ({"mean": np.ones((3, 3))}, "shapes"),
        ({"mean": np.ones((2, 17)), "labels": np.ones(17), "covariance": np.eye(34)}, "shapes"),
        ({"covariance": np.eye(3)}, "shapes"),
        ({"seen": np.ones(3) / 3}, "shapes"),
        ({"labels": np.ones(2)}, "shapes"),
        ({"labels": -np.ones(3)}, "negative"),
        ({"mean": np.full((2, 3), 1e300)}, "1e12 or more"),
        ({"covariance": -np.eye(6)}, "covariance"),
        ({"covariance": np.triu(np.ones((6, 6))) + 5 * np.eye(6)}, "covariance"),
        ({"seen": np.zeros(SIGNAL_BINS)}, "sum to 1"),
        ({"seen": np.append(np.ones(SIGNAL_BINS - 2), [1, -1]) / 30}, "sum to 1"),
    ],
)
def test_wrong_acceptance(changed: dict[str, np.ndarray], problem: str) -> None:
    parts = {
        "mean": np.ones((2, 3)),
        "covariance": np.eye(6),
        "seen": np.full(SIGNAL_BINS, 1 / SIGNAL_BINS),
        "labels": np.ones(3),
    }
    AcceptancePrior(**parts)
    with pytest.raises(ConfigError, match=problem):
        AcceptancePrior(**(parts | changed))


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        (([], [], [], []), "empty"),
        (([1], [3], [0.1], [1.0, 1.0]), "differ in length"),
        (([0], [3], [0.1], [1.0]), "batch size below 1"),
        (([1], [17], [0.1], [1.0]), "step count"),
        (([1], [3], [0.0], [1.0]), "not positive"),
        (([1], [3], [float("nan")], [1.0]), "not positive"),
        (([1], [3], [float("inf")], [1.0]), "1e12 or more"),
        (([1], [3], [0.1], [1e300]), "1e12 or more"),
        (([1], [3], [0.1], [-1.0]), "negative"),
    ],
)
def test_wrong_costs(columns: tuple[list[float], ...], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        CostPrior(*map(np.array, columns))


def test_wrong_weights() -> None:
    MlpWeights(np.ones((6, 16)), np.ones(16), np.ones(16), np.asarray(0.0))
    with pytest.raises(ConfigError, match=r"\(5, 16\)"):
        MlpWeights(np.ones((5, 16)), np.ones(16), np.ones(16), np.asarray(0.0))
    with pytest.raises(ConfigError, match="shapes"):
        MlpWeights(np.ones((6, 16)), np.ones(16), np.ones(15), np.asarray(0.0))
    with pytest.raises(ConfigError, match="1e6 or more"):
        MlpWeights(np.full((6, 16), 1e300), np.ones(16), np.ones(16), np.asarray(0.0))


@pytest.mark.parametrize(
    ("quantization", "code"),
    [(None, 0), ("", 0), ("w8a8_int8", 1), ("fp8", 1), ("awq", 2), ("gptq_marlin", 2), ("nf4", 2)],
)
def test_compression_codes(quantization: str | None, code: int) -> None:
    assert compression_code(quantization) == code
