"""The guard: steps in where forecasts fail, and only there."""

from __future__ import annotations

import numpy as np

from sglang_speckv.policy import Batch, Round, create_policy
from sglang_speckv.policy.guard import EVIDENCE, HOLD_ROUNDS, Guard
from sglang_speckv.policy.plan import Plan
from sglang_speckv.policy.throughput import ThroughputPolicy


def plan(rates: list[float]) -> Plan:
    """Tiers whose rates are known; the last one is what is chosen for its rate."""
    return Plan(rates, [1.0, 1.0], rates, 1, rates[1])


def filled(bias: float, requests: int = 16) -> Guard:
    """Tiers 1 and 3, equally often seen; the times of tier 3 are ``bias`` times the forecast."""
    guard = Guard((1, 3))
    for _ in range(64):
        guard.overrule(1)
        guard.update(1, requests, 1.0, 1.0)
        guard.update(3, requests, 1.0, bias)
    return guard


def test_true_forecasts_are_left_alone() -> None:
    for bias in (1.0, 1.1):
        guard = filled(bias)
        guard.check(plan([10.0, 12.0]))
        assert guard.overrule(1) is None


def test_choices_that_never_earn_what_they_promise_are_replaced_for_a_while() -> None:
    guard = filled(2.0)
    guard.check(plan([10.0, 12.0]))
    held = [guard.overrule(1) for _ in range(HOLD_ROUNDS + 8)]
    assert held == [0] * HOLD_ROUNDS + [None] * 8
    assert guard.holds == 1


def test_what_one_load_never_earns_holds_nothing_at_another() -> None:
    """At 64 requests depth 1 has rare long pauses, which the cost model leaves out; at 8 depth 3
    earns what was forecast."""
    policy = ThroughputPolicy((1, 3), 3)
    policy.profiled([(8, 1, 0, 1.0), (8, 3, 0, 1.1), (64, 1, 0, 1.0), (64, 3, 0, 9.0)])
    for n in range(400):
        size = (8, 64)[n % 2]
        steps = policy.decide(Batch(size)).num_steps
        pause = 20.0 if n % 16 == 1 else 1.0
        seconds = pause if size == 64 else 1.0 + 0.05 * (steps - 1)
        policy.observe(Round(steps, size, [steps] * size, seconds))
    assert policy.snapshot()["guard_holds"] == 0


def test_little_evidence_is_none() -> None:
    guard = Guard((1, 3))
    guard.check(plan([10.0, 12.0]))
    for _ in range(int(EVIDENCE) - 1):
        guard.overrule(1)
        guard.update(1, 16, 1.0, 1.0)
        guard.update(3, 16, 1.0, 5.0)
        guard.check(plan([10.0, 12.0]))
    assert guard.overrule(1) is None


def test_rare_long_pauses_of_one_depth() -> None:
    """Robust means do not see them; what was realised does."""
    rng = np.random.default_rng(0)
    policy = create_policy("throughput", (1, 3, 5), 3)
    seconds, tokens = 0.0, 0.0
    for _ in range(1500):
        steps = policy.decide(Batch(8)).num_steps
        time = 0.04 + 0.002 * steps
        if steps == 5 and rng.random() < 0.15:
            time *= 12
        correct = np.cumprod(rng.random((8, steps)) < 0.9, axis=1).sum(axis=1)
        seconds, tokens = seconds + time, tokens + 8 + correct.sum()
        policy.observe(Round(steps, 8, correct.tolist(), time))
    always_five = 8 * sum(0.9**i for i in range(6)) / (0.05 * (1 + 0.15 * 11))
    assert tokens / seconds > 1.15 * always_five
