"""Probing keeps to its budget, in rounds and in expected loss."""

from __future__ import annotations

import pytest

from sglang_speckv.policy.acceptance import Acceptance
from sglang_speckv.policy.cost import CostModel
from sglang_speckv.policy.plan import Forecast
from sglang_speckv.policy.probing import BUDGET, PERIOD, ROUNDS, SAVINGS, Probing


def doubtful(draft_seconds: float) -> tuple[Forecast, Acceptance]:
    """Tier 0 is held, and of tier 1 little is known."""
    acceptance, cost = Acceptance(1), CostModel(1)
    for _ in range(20):
        acceptance.update(1, [0])
    for n in range(40):
        cost.update(1, n % 2, 0.04 + draft_seconds * (n % 2))
    for _ in range(400):
        acceptance.update(0, [0])
    plan = Forecast.of((0, 1), 1, acceptance.accept_lengths(), cost)
    assert plan.best == 0
    return plan, acceptance


@pytest.mark.parametrize("draft_seconds", [0.006, 0.01, 0.02])
def test_the_bounds_hold(draft_seconds: float) -> None:
    plan, acceptance = doubtful(draft_seconds)
    probing, n = Probing(), 5000
    probes = sum(probing.next(plan, 0, acceptance) is not None for _ in range(n))
    assert 0 < probes <= n * ROUNDS / PERIOD + ROUNDS
    assert probes * plan.loss(1) <= SAVINGS + BUDGET * n


def test_what_can_never_be_afforded_is_not_tried() -> None:
    plan, acceptance = doubtful(0.5)
    probing = Probing()
    assert {probing.next(plan, 0, acceptance) for _ in range(2000)} == {None}


def test_a_probe_lasts_its_rounds() -> None:
    plan, acceptance = doubtful(0.006)
    probing = Probing()
    assert [probing.next(plan, 0, acceptance) for _ in range(ROUNDS + 2)] == [1] * ROUNDS + [
        None
    ] * 2
