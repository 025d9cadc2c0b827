"""Probing keeps to its budget, in rounds and in expected loss."""

from __future__ import annotations

import pytest

from sglang_speckv.policy.plan import Plan
from sglang_speckv.policy.probing import BUDGET, PERIOD, ROUNDS, SAVINGS, Probing


def plan(loss: float) -> Plan:
    """Tier 0 is best; tier 1 costs ``loss`` rounds more for as many tokens."""
    times = [1.0, 1.0 + loss]
    rates = [1.0, 1.0 / times[1]]
    return Plan([1.0, 1.0], times, rates, 0, 1.0)


@pytest.mark.parametrize("loss", [0.0, 0.01, 0.1, 0.5, 0.9 * SAVINGS / ROUNDS])
def test_the_bounds_hold(loss: float) -> None:
    probing, n, probes = Probing(), 5000, 0
    for _ in range(n):
        probing.look(plan(loss), [1.0, 3.0], [0.0, 0.0])
        probes += probing.next() is not None
    assert 0 < probes <= n * ROUNDS / PERIOD + ROUNDS
    assert probes * loss <= SAVINGS + BUDGET * n


def test_what_cannot_win_or_is_too_dear_is_not_tried() -> None:
    for loss, hope in ((0.1, 1.0), (2.0, 100.0)):
        probing = Probing()
        for _ in range(1000):
            probing.look(plan(loss), [1.0, hope], [0.0, 0.0])
            assert probing.next() is None
