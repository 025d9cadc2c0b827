"""Acceptance by position, first probability and request: censoring, forgetting, what is unknown."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_speckv.policy.acceptance import SMALL, Acceptance
from sglang_speckv.policy.logistic import MOST_REQUESTS, SLOPE, log_odds
from sglang_speckv.policy.prior import AcceptancePrior


def usual(model: Acceptance) -> list[float]:
    told: list[float] = model.survival(np.array([math.nan]))[0].tolist()
    return told


def tokens_of(
    model: Acceptance, size: int, probs: object, requests: list[int] | None = None
) -> list[float]:
    return model.tokens(log_odds(probs, (size,)), requests)[0]


def draws(
    conditional: list[float], steps: int, requests: int, rng: np.random.Generator
) -> list[int]:
    accepted = rng.random((requests, steps)) < np.array(conditional[:steps])
    return np.cumprod(accepted, axis=1).sum(axis=1).tolist()


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_finds_the_truth_down_to_the_depth_that_it_sees(steps: int) -> None:
    truth, rng = [0.8, 0.6, 0.7, 0.5, 0.9], np.random.default_rng(1)
    model = Acceptance(5)
    for _ in range(600):
        model.learn(steps, draws(truth, steps, 4, rng), None)
    assert usual(model)[:steps] == pytest.approx(np.cumprod(truth)[:steps], abs=0.08)


def test_a_full_run_says_nothing_of_what_is_deeper() -> None:
    model = Acceptance(5)
    for _ in range(200):
        model.learn(2, [2, 2], None)
    assert model.labels.tolist() == [400, 400, 0, 0, 0]
    survival = usual(model)
    assert survival[1] > 0.95 and all(np.diff(survival) < 0)


def test_what_moves_the_first_position_is_believed_of_the_deeper_ones() -> None:
    """They drift together: drafts that became good are seen at depth 1 already."""
    rng = np.random.default_rng(0)
    model = Acceptance(5)
    for _ in range(400):
        model.learn(5, draws([0.3] * 5, 5, 4, rng), None)
    before = tokens_of(model, 1, None)[5]
    for _ in range(200):
        model.learn(1, draws([0.95], 1, 4, rng), None)
    assert tokens_of(model, 1, None)[5] > before + 1.0


def test_the_first_probability_tells_easy_rounds_from_hard_ones() -> None:
    rng = np.random.default_rng(2)
    model = Acceptance(3)
    for _ in range(800):
        probs = rng.uniform(0.05, 0.95, 2)
        accepted = rng.random((2, 3)) < probs[:, None]
        model.learn(3, np.cumprod(accepted, axis=1).sum(axis=1).tolist(), probs)
    for p in (0.2, 0.8):
        told = tokens_of(model, 1, np.array([p]))
        assert told[1] - 1 == pytest.approx(p, abs=0.1)
        assert told[3] == pytest.approx(1 + p + p**2 + p**3, abs=0.2)


def test_a_request_that_does_better_than_its_signals_is_believed_to() -> None:
    rng = np.random.default_rng(3)
    model = Acceptance(3)
    for _ in range(300):
        model.learn(3, draws([0.5] * 3, 3, 2, rng), None, [0, 1])
    for _ in range(10):
        model.learn(3, [3, 0], None, [7, 8])
    good, bad, new = (tokens_of(model, 1, None, [name])[3] for name in (7, 8, 9))
    assert good > new + 0.2 and bad < new - 0.2
    assert tokens_of(model, 2, None, [7, 8])[3] == pytest.approx(good + bad)


def test_a_large_batch_is_the_sum_of_its_requests_without_their_own() -> None:
    rng = np.random.default_rng(4)
    model = Acceptance(3)
    for _ in range(200):
        probs = rng.uniform(0.05, 0.95, 4)
        model.learn(3, draws([0.6] * 3, 3, 4, rng), probs)
    probs = np.append(rng.uniform(0.01, 0.99, SMALL), np.nan)
    one_by_one = [tokens_of(model, 1, probs[i : i + 1]) for i in range(SMALL + 1)]
    assert tokens_of(model, SMALL + 1, probs) == pytest.approx(np.sum(one_by_one, axis=0), rel=0.02)


def test_requests_are_forgotten_beyond_a_bound_the_oldest_first() -> None:
    model = Acceptance(1)
    for number in range(MOST_REQUESTS + 100):
        model.learn(1, [1], None, [number])
    known = model._own._known
    assert len(known) == MOST_REQUESTS and 0 not in known and MOST_REQUESTS + 99 in known


def test_an_unknown_signal_is_a_usual_one() -> None:
    """Not the middle one: of easy and hard rounds the mean is less than that of a middling one."""
    rng = np.random.default_rng(5)
    model = Acceptance(2)
    probs = np.tile([0.05, 0.95], 2)
    for _ in range(400):
        accepted = rng.random((4, 2)) < probs[:, None]
        model.learn(2, np.cumprod(accepted, axis=1).sum(axis=1).tolist(), probs)
    known = [tokens_of(model, 1, np.array([p]))[2] for p in (0.05, 0.95)]
    for unknown in (None, np.array([np.nan])):
        assert tokens_of(model, 1, unknown)[2] == pytest.approx(np.mean(known), abs=0.05)


@pytest.mark.parametrize("probs", [[5.0], [-1.0], [math.nan], [math.inf], "x", [0.1, 0.2], [None]])
def test_what_is_no_probability_is_unknown(probs: object) -> None:
    model = Acceptance(2)
    assert tokens_of(model, 1, probs) == tokens_of(model, 1, None)


def test_outcomes_that_cannot_be_true_are_left_out() -> None:
    model = Acceptance(3)
    model.learn(3, [1, math.nan, 3, 99, -1], None)  # type: ignore[list-item]
    assert model.labels.tolist() == [2, 2, 1]
    model.learn(0, [0, 0], None)
    model.learn(3, [], None)
    assert model.labels.tolist() == [2, 2, 1]


def taught(rounds: int, shares: dict[float, float], steps: int = 2) -> AcceptancePrior:
    """By requests with some first probabilities and shares of accepted drafts."""
    rng, model = np.random.default_rng(5), Acceptance(steps)
    for _ in range(rounds):
        for p, share in shares.items():
            model.learn(steps, draws([share] * steps, steps, 4, rng), np.full(4, p))
    return model.learned()


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_trained_prior_is_where_it_starts(steps: int) -> None:
    model = Acceptance(steps, taught(600, {0.2: 0.2, 0.5: 0.5, 0.8: 0.8}))
    for p, share in ((0.2, 0.2), (0.5, 0.5), (0.8, 0.8)):
        expected = 1 + np.cumsum(share ** np.arange(1, steps + 1))
        assert tokens_of(model, 1, np.array([p]))[1:] == pytest.approx(expected, abs=0.15)
    assert model.labels[0] == 7200 and model.labels[2:].tolist() == [0] * (steps - 2)
    assert np.linalg.eigvalsh(model.learned().covariance).min() > 0


def test_a_trained_prior_is_overruled_by_what_is_served() -> None:
    prior = taught(3000, {0.5: 0.5})
    model, rng = Acceptance(2, prior), np.random.default_rng(6)
    for _ in range(200):
        model.learn(2, draws([0.9, 0.9], 2, 2, rng), np.array([0.5, 0.5]))
    assert tokens_of(model, 1, np.array([0.5]))[1] > 1.8


def test_a_prior_of_whole_numbers_is_learned_from_too() -> None:
    prior = Acceptance(2).learned()
    model = Acceptance(2, replace(prior, mean=np.zeros((2, 2), dtype=np.int64)))
    model.learn(2, [1], None)
    assert usual(model)[0] > 0.5


def test_signals_that_cannot_be_written_to_are_read() -> None:
    probs = np.array([0.2, 0.9])
    probs.setflags(write=False)
    model = Acceptance(2)
    model.learn(2, [1, 2], probs, [0, 1])
    bad, good = model.survival(probs)[:, 0].tolist()
    assert bad < good


def test_positions_that_nobody_judges_are_never_less_known_than_at_first() -> None:
    """Their slopes' variances grew without bound, and the first judgement threw them anywhere."""
    model = Acceptance(4)
    for _ in range(20000):
        model.learn(1, [1], np.array([0.9]))
    assert model._model.covariance.diagonal()[4:].max() <= 1.01 * SLOPE**2


def test_two_models_share_nothing() -> None:
    prior = taught(20, {0.5: 0.5})
    before = prior.mean.copy(), prior.covariance.copy(), prior.seen.copy(), prior.labels.copy()
    model = Acceptance(2, prior)
    model.learn(2, [2, 2], np.array([0.9, 0.1]))
    for was, now in zip(
        before, (prior.mean, prior.covariance, prior.seen, prior.labels), strict=True
    ):
        assert np.array_equal(was, now)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 4),
            st.lists(st.floats(-10, 10) | st.integers(-2, 9), max_size=6),
            st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=6),
        ),
        max_size=30,
    )
)
def test_it_stays_finite_whatever_comes(
    rounds: list[tuple[int, list[float], list[float]]],
) -> None:
    model = Acceptance(4)
    for steps, correct, probs in rounds:
        model.learn(steps, correct, np.array(probs), list(range(len(correct))))
        told = tokens_of(model, 3, np.array([0.1, 0.9, math.nan]), [0, 1, 2])
        assert all(map(math.isfinite, told)) and told == sorted(told)
    json.dumps([usual(model), model.labels.tolist()], allow_nan=False)


@pytest.mark.parametrize(("telling", "least", "most"), [(True, 0.2, 1.0), (False, 0.0, 0.03)])
def test_what_signals_are_worth(telling: bool, least: float, most: float) -> None:
    """Where they tell good rounds from bad ones; less so the more requests share a depth."""
    rng, model = np.random.default_rng(3), Acceptance(3)
    for _ in range(600):
        probs = rng.choice([0.05, 0.95], 4)
        chance = probs if telling else np.full(4, 0.5)
        accepted = rng.random((4, 3)) < chance[:, None]
        model.learn(3, np.cumprod(accepted, axis=1).sum(axis=1).tolist(), probs)
    costs = np.array([0.0, 0.5, 1.0, 1.5])
    worth = [model.worth_of_signals(n, n * costs) / n for n in (1, 4, 16)]
    assert least <= worth[0] <= most
    assert worth == sorted(worth, reverse=True) and worth[-1] >= 0.0
    assert model.worth_of_signals(2, [0.0, math.inf, math.inf, math.inf]) == 0.0
