"""The compiled loops: against the formula in numpy, and what happens where nothing can be kept."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numba.core.caching
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_speckv.policy import kernels

LIMIT = 7.0
kernels.load()


@given(st.integers(1, 9), st.integers(1, 6), st.booleans(), st.integers(0, 2**32 - 1))
def test_a_step_is_newtons(n: int, k: int, one_for_all: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mean, root = rng.normal(size=2 * k), rng.normal(size=(2 * k, 2 * k))
    covariance = root @ root.T / k
    x, own = rng.normal(size=(n, 1 if one_for_all else k)), rng.normal(size=n)
    judged, accepted = rng.random((n, k)) * (rng.random((n, k)) < 0.7), rng.random((n, k))

    odds = np.clip(mean[:k] + x * mean[k:] + own[:, None], -LIMIT, LIMIT)
    expected = 1.0 / (1.0 + np.exp(-odds))
    told = kernels.probability(mean, x, own, LIMIT)
    assert told == pytest.approx(expected)

    surprise, weight = judged * (accepted - expected), judged * expected * (1.0 - expected)
    information, at = np.zeros((2 * k, 2 * k)), np.arange(k)
    information[at, at] = weight.sum(axis=0)
    information[at, at + k] = information[at + k, at] = (x * weight).sum(axis=0)
    information[at + k, at + k] = (x * x * weight).sum(axis=0)
    right = np.linalg.solve(np.eye(2 * k) + covariance @ information, covariance)
    gradient = np.concatenate([surprise.sum(axis=0), (x * surprise).sum(axis=0)])
    moved = np.clip(mean + right @ gradient, -LIMIT, LIMIT)

    total = kernels.update(mean, covariance, x, told, np.stack([judged, accepted]), LIMIT)
    assert total == pytest.approx(surprise.sum())
    assert covariance == pytest.approx(right, abs=1e-9)
    assert mean == pytest.approx(moved, abs=1e-9)


def test_labels_end_where_a_draft_was_rejected_or_none_was_verified() -> None:
    judged, accepted = kernels.labels(np.array([0, 2, 3, 1]), np.array([3, 3, 3, 1]), 4)
    assert judged.tolist() == [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 0, 0, 0]]
    assert accepted.tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]]


def test_what_was_not_verified_counts_as_expected_where_it_would_have_been_judged() -> None:
    correct, made = np.array([1, 0]), np.array([1, 1])
    labels = kernels.labels(correct, made, 4)
    judged, accepted = kernels.imputed(labels, correct, made, np.array([[0.9, 0.5, 0.2]] * 2))
    assert judged.tolist() == [[1, 1, 0.5, 0], [1, 0, 0, 0]]
    assert accepted.tolist() == [[1, 0.5, 0.2, 0], [0, 0, 0, 0]]


def test_bins_hold_every_signal() -> None:
    odds = np.array([-LIMIT, LIMIT, 0.1, -0.1, math.nan])
    assert kernels.bins(odds, 4, LIMIT).tolist() == [0, 3, 2, 1, 4]


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 6), st.integers(0, 2**32 - 1))
def test_drafts_count_by_their_own_probability_and_the_next_by_the_last(
    n: int, k: int, made: int, seed: int
) -> None:
    rng, made = np.random.default_rng(seed), min(made, k)
    by_own, by_last, usual = rng.normal(size=2 * k), rng.normal(size=2 * k), rng.normal(size=k)
    odds, own = rng.normal(size=(n, made)), rng.normal(size=n)
    every = np.concatenate([odds, np.tile(usual[made:], (n, 1))], axis=1)
    before = np.concatenate([np.zeros((n, 1)), every[:, :-1]], axis=1)
    told_by_own = by_own[:k] + by_own[k:] * every
    told = np.where(np.arange(k) < made, told_by_own, by_last[:k] + by_last[k:] * before)
    right = (1.0 / (1.0 + np.exp(-np.clip(told + own[:, None], -LIMIT, LIMIT)))).cumprod(axis=1)
    found = kernels.conditional(by_own, by_last, usual, odds, own, LIMIT)
    assert found.cumprod(axis=1) == pytest.approx(right)


def test_surprises_are_what_was_accepted_less_what_was_expected() -> None:
    labels = kernels.labels(np.array([2, 0]), np.array([3, 3]), 4)
    more, variance = kernels.surprises(np.full((2, 4), 0.6), labels)
    assert more == pytest.approx([2 - 1.8, -0.6])
    assert variance == pytest.approx([3 * 0.24, 0.24])


@pytest.mark.parametrize("odd", [-0.1, 1.1, math.nan, math.inf, -math.inf])
def test_odd_probabilities_are_unknown(odd: float) -> None:
    told = kernels.log_odds(np.array([0.5, odd, 0.0, 1.0]), LIMIT, 1.001)
    assert math.isnan(told[1])
    assert told[[0, 2, 3]] == pytest.approx([0.0, -LIMIT, LIMIT])


def test_a_wrong_index_raises() -> None:
    with pytest.raises(IndexError):
        kernels.probability(np.zeros(4), np.zeros((2, 2)), np.zeros(1), LIMIT)


def test_another_type_is_not_compiled_while_serving() -> None:
    with pytest.raises(TypeError, match="No matching definition"):
        kernels.bins(np.zeros(2, np.float32), 4, LIMIT)


DECIDES_NOTHING = """
import sys
from sglang_speckv.policy import create_policy
create_policy("static:1", (0, 1), 1)
assert "numba" not in sys.modules
create_policy("throughput", (0, 1), 1)
assert "numba" in sys.modules
"""


def test_what_decides_nothing_does_without_numba() -> None:
    subprocess.run([sys.executable, "-c", DECIDES_NOTHING], check=True)


def test_nothing_is_kept_where_nothing_can_be_written(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(numba.core.caching.CompileResultCacheImpl, "_locator_classes", [])
    assert kernels.compiled("f8(f8)")(_twice)(2.0) == 4.0
    assert "_twice is compiled at every start" in caplog.text
    assert "NUMBA_CACHE_DIR" in caplog.text


def test_what_is_kept_and_damaged_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    assert kernels.compiled("f8(f8)")(_twice)(2.0) == 4.0
    [index] = tmp_path.rglob("*.nbi")
    assert kernels.CONTENT in index.name, "another version of the source keeps its own"
    index.write_bytes(b"")
    assert kernels.compiled("f8(f8)")(_twice)(2.0) == 4.0
    assert "_twice is compiled at every start" in caplog.text


def _twice(x: float) -> float:
    return 2.0 * x
