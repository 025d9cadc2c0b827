"""The argmax itself, and which tier is worth a try."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_speckv.policy.acceptance import Acceptance
from sglang_speckv.policy.cost import CostModel
from sglang_speckv.policy.plan import Forecast, best_tier

positive = st.floats(1e-3, 1e3)


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=17))
def test_without_signals_it_is_the_best_ratio(tiers: list[tuple[float, float]]) -> None:
    tokens, times = zip(*tiers, strict=True)
    winner, rate = best_tier(tokens, times)
    best = max(n / t for n, t in tiers)
    assert tokens[winner] / times[winner] == pytest.approx(best)
    assert rate == pytest.approx(best)


def test_every_tier_is_scanned() -> None:
    # a step in the cost (padding) hides the best tier behind two worse ones
    assert best_tier([1.0, 1.5, 1.9, 2.8], [1.0, 1.8, 2.0, 2.05])[0] == 3


def forecast(acceptance: Acceptance) -> Forecast:
    cost = CostModel(3)
    for n in range(60):
        cost.update(1, n % 4, 0.04 + 0.01 * (n % 4))
    return Forecast.of((0, 1, 2, 3), 1, acceptance.accept_lengths(), cost)


def test_losses_are_rounds_of_the_best_tier() -> None:
    acceptance = Acceptance(3)
    for _ in range(100):
        acceptance.update(3, [1, 0])
    plan = forecast(acceptance)
    assert plan.loss(plan.best) == 0.0
    assert all(plan.loss(tier) > 0.0 for tier in range(4) if tier != plan.best)


def test_a_hopeless_tier_is_not_tried_and_a_hopeful_one_is() -> None:
    acceptance = Acceptance(3)
    for _ in range(100):
        acceptance.update(3, [1, 0])  # the second draft always fails
    plan = forecast(acceptance)
    assert plan.best == 1
    assert plan.most_promising(1, acceptance.accept_lengths(), most_loss=1.0) is None
    assert plan.most_promising(1, [1.0, 1.5, 2.5, 2.6], most_loss=1.0) == 2
    assert plan.most_promising(1, [1.0, 1.5, 2.5, 2.6], most_loss=0.0) is None
