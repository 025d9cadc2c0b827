"""The argmax itself, the price of time, and which tier is worth a try."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_speckv.policy.plan import RECENT, Mix, Plan, long_run_rate

positive = st.floats(1e-3, 1e3)
TIMES = [1.0, 1.2, 1.4, 1.6]
GOOD, BAD = [1.0, 1.9, 2.7, 3.4], [1.0, 1.1, 1.15, 1.2]


def plan(*rows: list[float], times: list[float] = TIMES) -> Plan:
    """Rounds whose requests are all in one row, as often in each."""
    return Plan.of(1, np.array(rows), np.eye(len(rows)), times)


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=17))
def test_without_signals_it_is_the_best_ratio(tiers: list[tuple[float, float]]) -> None:
    tokens, times = (list(column) for column in zip(*tiers, strict=True))
    found = plan(tokens, times=times)
    best = max(n / t for n, t in tiers)
    assert tokens[found.best] / times[found.best] == pytest.approx(best)
    assert found.rate == pytest.approx(best)
    chosen, losses = found.choose(tokens)
    assert tokens[chosen] / times[chosen] == pytest.approx(best)
    assert losses[chosen] == 0.0 <= min(losses)


def test_every_tier_is_scanned() -> None:
    # a step in the cost (padding) hides the best tier behind two worse ones
    assert plan([1.0, 1.5, 1.9, 2.8], times=[1.0, 1.8, 2.0, 2.05]).best == 3


def test_the_price_of_time_is_what_all_rounds_earn_together() -> None:
    found = plan(GOOD, BAD)
    deep, shallow = found.choose(GOOD)[0], found.choose(BAD)[0]
    assert (deep, shallow) == (3, 0)
    assert found.rate == pytest.approx((GOOD[deep] + BAD[shallow]) / (TIMES[deep] + TIMES[shallow]))
    assert found.rate > max(found.rates)
    # by its own ratio the bad round would draft
    assert max(range(4), key=lambda k: BAD[k] / TIMES[k]) == 0


@given(st.integers(0, 1000), st.floats(0.01, 100.0))
def test_the_rate_is_the_best_of_all_choices_from_any_start(seed: int, start: float) -> None:
    rng = np.random.default_rng(seed)
    tokens = np.cumsum(rng.random((3, 3)), axis=1)
    times = np.cumsum(0.1 + rng.random(3))
    choices = np.stack(np.meshgrid(*[range(3)] * 3), axis=-1).reshape(-1, 3)
    rates = tokens[range(3), choices].sum(axis=1) / times[choices].sum(axis=1)
    assert long_run_rate(tokens, times, start) == pytest.approx(rates.max())


def test_losses_are_rounds_of_the_best_tier() -> None:
    found = plan(GOOD)
    assert found.loss(found.best) == pytest.approx(0.0, abs=1e-9)
    assert all(found.loss(tier) > 0.0 for tier in range(4) if tier != found.best)


def test_a_hopeless_tier_is_not_tried_and_a_hopeful_one_is() -> None:
    found = plan([1.0, 1.5, 1.5, 1.5])
    assert found.best == 1
    assert found.most_promising([1.0] * 4, [0.0] * 4, most_loss=1.0) is None
    assert found.most_promising([1.0, 1.0, 1.6, 1.6], [0.0] * 4, most_loss=1.0) == 2
    assert found.most_promising([1.0, 1.0, 1.6, 1.6], [0.0] * 4, most_loss=0.0) is None


def test_a_mix_keeps_the_last_rounds_as_shares() -> None:
    mix = Mix(3)
    assert mix.shares().tolist() == [[0.0, 0.0, 1.0]]
    mix.add(np.array([1, 3, 0]), 4)
    assert mix.shares().tolist() == [[0.25, 0.75, 0.0]]
    for _ in range(2 * RECENT):
        mix.add(np.array([0, 0, 8]), 8)
    assert mix.shares().tolist() == [[0.0, 0.0, 1.0]] * RECENT
