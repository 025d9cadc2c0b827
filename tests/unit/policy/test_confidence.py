from __future__ import annotations

import numpy as np

from sglang_speckv.policy import Batch, Round
from sglang_speckv.policy.confidence import ConfidencePolicy

TIERS = (0, 1, 2, 3, 5, 7)


def window(*confident: int, depth: int = 7) -> np.ndarray:
    """Signals of one request per number of confident positions."""
    rows = [[0.9] * n + [0.1] * (depth - n) for n in confident]
    return np.stack([np.array(rows), np.zeros((len(rows), depth))], axis=-1)


def after(policy: ConfidencePolicy, signals: np.ndarray, rounds: int = 20) -> int:
    """Depth once windows like this, cut at the depth chosen, have been seen for long."""
    for _ in range(rounds):
        steps = policy.decide(Batch(len(signals))).num_steps
        correct = [0] * len(signals)
        policy.observe(Round(steps, len(signals), correct, signals=signals[:, :steps]))
    return policy.decide(Batch(len(signals))).num_steps


def test_as_deep_as_the_last_windows_stayed_confident() -> None:
    assert after(ConfidencePolicy(TIERS, 3), window(1)) == 1
    assert after(ConfidencePolicy(TIERS, 3), window(7)) == 7, "a full window asks for more"
    assert after(ConfidencePolicy(TIERS, 3), window(2, 4)) in (2, 3)


def test_the_coming_tokens_can_call_it_off() -> None:
    policy = ConfidencePolicy(TIERS, 3)
    assert policy.decide(Batch(2, np.array([0.1, 0.2]))).num_steps == 0
    assert policy.decide(Batch(2, np.array([0.9, 0.8]))).num_steps == 3
    assert policy.decide(Batch(2, np.array([0.9, 0.8]), None, [0, 1])).num_steps == 0
    assert policy.decide(Batch(2, np.array([np.nan, np.nan]))).num_steps == 3


def test_inside_the_round_it_stops_where_confidence_ends() -> None:
    policy = ConfidencePolicy(TIERS, 3)
    for confident, depth in ((0, 0), (5, 5), (7, 7)):
        policy.foresee(window(confident))
        assert policy.decide(Batch(1)).num_steps == depth
    assert policy.decide(Batch(1)).reason == "confident", "the view is of one round"


def test_without_signals_it_does_not_get_stuck_at_zero() -> None:
    policy = ConfidencePolicy(TIERS, 0)
    for _ in range(5):
        steps = policy.decide(Batch(1)).num_steps
        policy.observe(Round(steps, 1, [0]))
    assert policy.decide(Batch(1)).num_steps == 1
