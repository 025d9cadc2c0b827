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
        probing.look(0, plan(loss), [1.0, 3.0], [0.0, 0.0])
        probes += probing.next(0) is not None
    assert 0 < probes <= n * ROUNDS / PERIOD + ROUNDS
    assert probes * loss <= SAVINGS + BUDGET * n


def test_what_cannot_win_or_is_too_dear_is_not_tried() -> None:
    for loss, hope in ((0.1, 1.0), (2.0, 100.0)):
        probing = Probing()
        for _ in range(1000):
            probing.look(0, plan(loss), [1.0, hope], [0.0, 0.0])
            assert probing.next(0) is None


def begun() -> Probing:
    """The first round of a probe at load 0 was run."""
    probing = Probing()
    probing.look(0, plan(0.1), [1.0, 3.0], [0.0, 0.0])
    assert probing.next(0) == 1
    return probing


def test_a_probe_is_run_at_the_load_that_it_was_priced_for() -> None:
    priced = Probing()
    priced.look(0, plan(0.1), [1.0, 3.0], [0.0, 0.0])
    assert [priced.next(bucket) for bucket in (8, 0)] == [None, None]
    assert begun().next(0) == 1
    assert begun().next(8) is None
    late = begun()
    late.look(8, plan(0.1), [1.0, 3.0], [0.0, 0.0])
    assert late.next(8) is None
