"""Acceptance per position: censoring, forgetting, extrapolation."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_speckv.policy import acceptance
from sglang_speckv.policy.acceptance import Acceptance


def draws(conditional: list[float], steps: int, requests: int, rng: np.random.Generator) -> list:
    accepted = rng.random((requests, steps)) < np.array(conditional[:steps])
    return np.cumprod(accepted, axis=1).sum(axis=1).tolist()


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_finds_the_truth_down_to_the_depth_that_it_sees(steps: int) -> None:
    truth, rng = [0.8, 0.6, 0.7, 0.5, 0.9], np.random.default_rng(1)
    model = Acceptance(5)
    for _ in range(400):
        model.update(steps, draws(truth, steps, 32, rng))
    assert model.conditional[:steps] == pytest.approx(truth[:steps], abs=0.08)


def test_mixed_depths_do_not_bias_it() -> None:
    truth, rng = [0.7, 0.7, 0.7, 0.7, 0.7], np.random.default_rng(2)
    model = Acceptance(5)
    for n in range(600):
        model.update(1 + n % 5, draws(truth, 1 + n % 5, 16, rng))
    assert model.survival() == pytest.approx(np.cumprod(truth), abs=0.06)


def test_censored_requests_say_nothing_of_deeper_positions() -> None:
    model = Acceptance(4)
    for _ in range(50):
        model.update(2, [2, 2, 1, 0])
    # position 1: 3 of 4 accepted, position 2: 2 of the 3 that got there
    assert model.conditional[:2] == pytest.approx([3 / 4, 2 / 3], abs=0.01)
    assert model.counts[2:] == [0.0, 0.0]
    assert model.conditional[2] == model.conditional[3] == model.conditional[1]


def test_before_any_round_it_is_the_prior() -> None:
    model = Acceptance(3)
    assert model.conditional == [acceptance.PRIOR] * 3
    assert model.accept_lengths() == pytest.approx([1.0, 1.6, 1.96, 2.176])
    assert Acceptance(0).accept_lengths() == [1.0]


def test_one_request_is_believed_anew_within_tens_of_rounds() -> None:
    model = Acceptance(1)
    for _ in range(300):
        model.update(1, [1])
    for _ in range(70):
        model.update(1, [0])
    assert model.conditional[0] < 0.3


def test_large_batches_do_not_shorten_the_memory_below_some_rounds() -> None:
    model = Acceptance(1)
    model.update(1, [1] * 64)
    for _ in range(3):
        model.update(1, [0] * 64)
    assert model.conditional[0] > 0.15


def test_stale_positions_keep_their_estimate_but_are_hoped_for() -> None:
    model = Acceptance(2)
    for _ in range(200):
        model.update(2, [0, 1])
    before = model.conditional[0], model.hoped_accept_lengths(0)[1]
    for _ in range(500):
        model.update(0, [0, 0])
    assert model.conditional[0] == pytest.approx(before[0])
    assert model.hoped_accept_lengths(0)[1] > before[1] + 0.1


def test_hope_is_only_for_what_lies_deeper() -> None:
    model = Acceptance(3)
    model.update(1, [0, 1])
    assert model.hoped_accept_lengths(1)[:2] == model.accept_lengths()[:2]
    assert model.hoped_accept_lengths(1)[2] > model.accept_lengths()[2]
    assert model.hoped_accept_lengths(3) == model.accept_lengths()


@pytest.mark.parametrize(
    "junk", [[], [math.nan], [-1, 9], [0.5], ["x"], [None], [[1, 2], [3]], [10**400], None]
)
def test_what_cannot_be_true_is_ignored(junk: list) -> None:
    model = Acceptance(3)
    assert model.update(3, junk) == (0, 0)
    assert model.conditional == [acceptance.PRIOR] * 3


def test_valid_entries_count_beside_junk() -> None:
    assert Acceptance(3).update(3, [1, math.nan, 3, 99, -1]) == (2, 6)
    assert Acceptance(3).update(3, np.array([0, 2])) == (2, 4)


@given(st.lists(st.tuples(st.integers(0, 4), st.lists(st.integers(0, 4), max_size=8)), max_size=40))
def test_survival_falls_from_one_to_zero(rounds: list[tuple[int, list[int]]]) -> None:
    model = Acceptance(4)
    for steps, correct in rounds:
        model.update(steps, correct)
    survival = [1.0, *model.survival()]
    assert all(1.0 >= a >= b >= 0.0 for a, b in pairwise(survival))


def test_a_million_labels_stay_bounded() -> None:
    model = Acceptance(5)
    for _ in range(1000):
        model.update(5, [3] * 1000)
    assert max(model.counts) < 1000 * (acceptance.MIN_ROUNDS + 1)
    assert model.survival() == pytest.approx([1, 1, 1, 0, 0], abs=1e-2)
