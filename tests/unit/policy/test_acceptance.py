"""Acceptance per position: censoring, forgetting, extrapolation."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_speckv.policy import acceptance
from sglang_speckv.policy.acceptance import EDGES, Acceptance
from sglang_speckv.policy.prior import AcceptancePrior


def draws(conditional: list[float], steps: int, requests: int, rng: np.random.Generator) -> list:
    accepted = rng.random((requests, steps)) < np.array(conditional[:steps])
    return np.cumprod(accepted, axis=1).sum(axis=1).tolist()


def learn(model: Acceptance, steps: int, correct: object, first_probs: object = None) -> tuple:
    """One round."""
    return model.update([model.cells(steps, correct, first_probs)])[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_finds_the_truth_down_to_the_depth_that_it_sees(steps: int) -> None:
    truth, rng = [0.8, 0.6, 0.7, 0.5, 0.9], np.random.default_rng(1)
    model = Acceptance(5)
    for _ in range(400):
        learn(model, steps, draws(truth, steps, 32, rng))
    assert model.means[:steps] == pytest.approx(truth[:steps], abs=0.08)


def test_mixed_depths_do_not_bias_it() -> None:
    truth, rng = [0.7, 0.7, 0.7, 0.7, 0.7], np.random.default_rng(2)
    model = Acceptance(5)
    for n in range(600):
        learn(model, 1 + n % 5, draws(truth, 1 + n % 5, 16, rng))
    assert model.survival() == pytest.approx(np.cumprod(truth), abs=0.06)


def test_censored_requests_say_nothing_of_deeper_positions() -> None:
    model = Acceptance(4)
    for _ in range(50):
        learn(model, 2, [2, 2, 1, 0])
    # position 1: 3 of 4 accepted, position 2: 2 of the 3 that got there
    assert model.means[:2] == pytest.approx([3 / 4, 2 / 3], abs=0.03)
    assert model.counts[2:] == [0.0, 0.0]
    assert model.means[2:] == pytest.approx([model.means[1]] * 2)


def test_before_any_round_it_is_the_prior() -> None:
    model = Acceptance(3)
    assert model.conditional == pytest.approx(np.full((model.rows, 3), acceptance.PRIOR))
    assert model.mean_lengths == pytest.approx([1.0, 1.6, 1.96, 2.176])
    assert Acceptance(0).mean_lengths == [1.0]


def test_one_request_is_believed_anew_within_tens_of_rounds() -> None:
    model = Acceptance(1)
    for _ in range(300):
        learn(model, 1, [1])
    for _ in range(70):
        learn(model, 1, [0])
    assert model.means[0] < 0.3


def test_large_batches_do_not_shorten_the_memory_below_some_rounds() -> None:
    model = Acceptance(1)
    learn(model, 1, [1] * 64)
    for _ in range(3):
        learn(model, 1, [0] * 64)
    assert model.means[0] > 0.15


def test_stale_positions_keep_their_estimate_but_are_hoped_for() -> None:
    model = Acceptance(2)
    for _ in range(200):
        learn(model, 2, [0, 1])
    before = model.means[0], model.hope(0)[1]
    for _ in range(500):
        learn(model, 0, [0, 0])
    assert model.means[0] == pytest.approx(before[0])
    assert model.hope(0)[1] > before[1] + 0.05


def test_hope_is_only_for_what_lies_deeper() -> None:
    model = Acceptance(3)
    learn(model, 1, [0, 1])
    assert model.hope(1)[:2].tolist() == [1.0, 1.0]
    assert model.hope(1)[2] > 1.0
    assert model.hope(3).tolist() == [1.0] * 4


@pytest.mark.parametrize(
    "junk", [[], [math.nan], [-1, 9], [0.5], ["x"], [None], [[1, 2], [3]], [10**400], None]
)
def test_what_cannot_be_true_is_ignored(junk: list) -> None:
    model = Acceptance(3)
    assert learn(model, 3, junk) == (0, 0, 0.0)
    assert model.means == pytest.approx([acceptance.PRIOR] * 3)


def test_valid_entries_count_beside_junk() -> None:
    assert learn(Acceptance(3), 3, [1, math.nan, 3, 99, -1])[:2] == (2, 6)
    assert learn(Acceptance(3), 3, np.array([0, 2]))[:2] == (2, 4)


@given(st.lists(st.tuples(st.integers(0, 4), st.lists(st.integers(0, 4), max_size=8)), max_size=40))
def test_survival_falls_from_one_to_zero(rounds: list[tuple[int, list[int]]]) -> None:
    model = Acceptance(4)
    for steps, correct in rounds:
        learn(model, steps, correct)
    survival = [1.0, *model.survival()]
    assert all(1.0 >= a >= b >= 0.0 for a, b in pairwise(survival))


def test_a_million_labels_stay_bounded() -> None:
    model = Acceptance(5)
    for _ in range(1000):
        learn(model, 5, [3] * 1000)
    assert max(model.counts) < 1000 * (acceptance.MIN_ROUNDS + 1)
    assert model.survival() == pytest.approx([1, 1, 1, 0, 0], abs=1e-2)


SIGNAL = 1.0 / (1.0 + np.exp(-np.linspace(-2.6, 4.9, 11)))
"""A probability in the middle of each bin of ``first_prob``."""


def serve(model: Acceptance, acceptance_of: np.ndarray, rounds: int, size: int = 8) -> None:
    """Rounds of 3 steps of requests in random bins, all positions accepted with the bin's own."""
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        bins = rng.integers(0, len(SIGNAL), size)
        accepted = rng.random((size, 3)) < acceptance_of[bins][:, None]
        learn(model, 3, np.cumprod(accepted, axis=1).sum(axis=1).tolist(), SIGNAL[bins])


@pytest.mark.parametrize(
    "truth", [SIGNAL, SIGNAL[::-1], np.full(11, 0.5)], ids=["true", "inverted", "uninformative"]
)
def test_it_learns_what_the_signal_means(truth: np.ndarray) -> None:
    model = Acceptance(3)
    serve(model, truth, 1500)
    found = model.conditional[: len(SIGNAL), 0]
    assert found == pytest.approx(truth, abs=0.1)
    # deeper positions of a bin that is mostly rejected lean on the mean of all
    assert model.conditional[5:9, 2] == pytest.approx(truth[5:9], abs=0.2)


def test_requests_without_a_signal_have_a_row_of_their_own() -> None:
    model = Acceptance(1)
    for _ in range(200):
        learn(model, 1, [1, 0], np.array([0.7, math.nan]))
    known, unknown = model.count(1, np.array([0.7])).argmax(), model.count(1, None).argmax()
    assert model.conditional[known, 0] > 0.8
    assert model.conditional[unknown, 0] < 0.2


@pytest.mark.parametrize(
    "first_probs",
    [None, [0.5], "x", [[0.1, 0.2], [0.3, 0.4]], {}, np.array(["a", "b"])],
)
def test_signals_of_the_wrong_shape_are_unknown(first_probs: object) -> None:
    counts = Acceptance(2).count(2, first_probs)  # type: ignore[arg-type]
    assert counts.tolist() == [0] * (len(counts) - 1) + [2]


def test_every_probability_has_a_row() -> None:
    odd = np.array([math.nan, math.inf, 7.0, -math.inf, -1.0, 0.0, 1.0, np.float32(1.0)])
    rows = [int(Acceptance(1).count(1, np.array([p])).argmax()) for p in odd]
    assert rows == [11, 11, 11, 0, 0, 0, 10, 10]
    assert [int(Acceptance(1).count(1, np.array([p])).argmax()) for p in SIGNAL] == [*range(11)]


def test_another_phase_moves_all_bins_within_tens_of_rounds() -> None:
    model = Acceptance(3)
    serve(model, np.full(11, 0.9), 400)
    before = model.conditional[3, 0]
    for _ in range(30):  # only one bin is seen in the new phase
        learn(model, 3, [0] * 8, np.full(8, SIGNAL[8]))
    assert model.conditional[3, 0] < before - 0.2


def test_a_prior_speaks_until_it_is_overruled() -> None:
    tried = np.full((12, 2), 1e6)
    prior = AcceptancePrior(EDGES, tried, tried * np.linspace(0.1, 0.9, 12)[:, None])
    model = Acceptance(3, prior)
    assert model.conditional[1, 0] < 0.35 < 0.6 < model.conditional[9, 0]
    assert max(model.counts) <= acceptance.PRIOR_LABELS + 1e-6
    serve(model, SIGNAL[::-1], 1000)
    assert model.conditional[1, 0] > 0.6 > 0.4 > model.conditional[9, 0]


def test_calibration_is_reported() -> None:
    model = Acceptance(3)
    serve(model, SIGNAL, 3000)
    told = model.calibration.snapshot()
    assert 0.05 < told["brier"] < 0.25  # type: ignore[operator]
    for predicted, accepted, labels in told["reliability"]:  # type: ignore[attr-defined]
        assert labels < 500 or predicted == pytest.approx(accepted, abs=0.1)


anything = st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=6)


@given(st.lists(st.tuples(st.integers(0, 4), anything, anything), max_size=20))
def test_any_signal_leaves_probabilities(rounds: list[tuple[int, list, list]]) -> None:
    model = Acceptance(4)
    for steps, correct, probs in rounds:
        learn(model, steps, correct, np.array(probs))
    assert np.isfinite(model.lengths).all()
    assert ((model.conditional >= 0.0) & (model.conditional <= 1.0)).all()
    assert (np.diff(model.lengths, axis=1) >= 0.0).all()


def test_rounds_learned_at_once_teach_what_they_teach_one_by_one() -> None:
    rng = np.random.default_rng(3)
    rounds = []
    for _ in range(400):
        steps = int(rng.integers(0, 5))
        rounds.append((steps, rng.integers(0, steps + 1, 3).tolist(), rng.random(3)))
    alone, together = Acceptance(4), Acceptance(4)
    for one in rounds:
        learn(alone, *one)
    cells = [together.cells(*one) for one in rounds]
    told = [t for n in range(0, 400, 4) for t in together.update(cells[n : n + 4])]
    assert [t[:2] for t in told] == [(3, 3 + sum(correct)) for _, correct, _ in rounds]
    assert together.counts == pytest.approx(alone.counts, rel=0.03)
    assert together.conditional == pytest.approx(alone.conditional, abs=0.05)


def test_a_round_of_junk_does_not_spoil_its_neighbours() -> None:
    model = Acceptance(3)
    told = model.update([model.cells(3, [1, 3]), model.cells(3, [math.nan]), model.cells(0, [0])])
    assert [t[:2] for t in told] == [(2, 6), (0, 0), (1, 1)]
