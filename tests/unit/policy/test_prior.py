"""Priors: the arrays mean what they say, and wrong ones are refused."""

from __future__ import annotations

import numpy as np
import pytest

from sglang_speckv.config import ConfigError
from sglang_speckv.policy.prior import AcceptancePrior, CostPrior, MlpWeights, compression_code

COUNTS = np.ones((4, 2))


def test_rows_by_first_probability() -> None:
    prior = AcceptancePrior(np.array([0.3, 0.6]), COUNTS, COUNTS)
    rows = prior.row_of(np.array([0.0, 0.3, 0.59, 0.6, 1.0, np.nan]))
    assert rows.tolist() == [0, 1, 1, 2, 2, 3] and prior.depth == 2


def test_times_of_the_nearest_batch_size() -> None:
    size, steps = np.array([1, 1, 16]), np.array([0, 3, 3])
    cost = CostPrior(size, steps, np.array([0.1, 0.2, 0.5]), np.ones(3), np.zeros(3))
    assert cost.at(1) == cost.at(3) == {0: 0.1, 3: 0.2}
    assert cost.at(5) == cost.at(100) == {3: 0.5}


@pytest.mark.parametrize(
    ("edges", "tried", "accepted", "problem"),
    [
        ([0.6, 0.3], COUNTS, COUNTS, "ascend"),
        ([0.3, 0.3], COUNTS, COUNTS, "ascend"),
        ([0.0, 0.3], COUNTS, COUNTS, "not in"),
        ([0.3], COUNTS, COUNTS, "shapes"),
        ([0.3, 0.6], np.ones((4, 17)), np.ones((4, 17)), "shapes"),
        ([0.3, 0.6], COUNTS, COUNTS[:, :1], "shapes"),
        ([0.3, 0.6], COUNTS, COUNTS + 1, "more than were tried"),
        ([0.3, 0.6], COUNTS, -COUNTS, "negative"),
    ],
)
def test_wrong_counts(
    edges: list[float], tried: np.ndarray, accepted: np.ndarray, problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        AcceptancePrior(np.array(edges), tried, accepted)


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        (([], [], [], [], []), "empty"),
        (([1], [3], [0.1], [1.0], [0.0, 1.0]), "differ in length"),
        (([0], [3], [0.1], [1.0], [0.0]), "batch size below 1"),
        (([1], [17], [0.1], [1.0], [0.0]), "step count"),
        (([1], [3], [0.0], [1.0], [0.0]), "not positive"),
        (([1], [3], [float("nan")], [1.0], [0.0]), "not positive"),
        (([1], [3], [float("inf")], [1.0], [0.0]), "1e12 or more"),
        (([1], [3], [0.1], [1.0], [1e300]), "1e12 or more"),
        (([1], [3], [0.1], [-1.0], [0.0]), "negative"),
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
