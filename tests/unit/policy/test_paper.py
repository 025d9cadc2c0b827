"""The paper's policy: its formula, what it looks at, and that cost is not in it."""

from __future__ import annotations

import numpy as np
import pytest

from sglang_speckv.config import ConfigError
from sglang_speckv.policy import Batch, Round
from sglang_speckv.policy.cost import TimedRound
from sglang_speckv.policy.mlp import MlpWeights
from sglang_speckv.policy.paper import PaperPolicy

TIERS = (0, 1, 2, 4, 8)


def weights(seed: int = 0) -> MlpWeights:
    rng = np.random.default_rng(seed)
    return MlpWeights(
        rng.normal(0, 0.5, (6, 16)), rng.normal(0, 0.1, 16), rng.normal(0, 0.3, 16), np.array(0.4)
    )


def by_confidence() -> MlpWeights:
    """f = mean confidence, whatever the depth."""
    hidden = np.zeros((6, 2))
    hidden[1, 0] = 1.0
    return MlpWeights(hidden, np.zeros(2), np.array([1.0, 0.0]), np.array(0.0))


def window(confidence: float, steps: int = 3, live: int = 1) -> np.ndarray:
    return np.stack([np.full((live, steps), confidence), np.full((live, steps), 0.2)], axis=2)


def seen(policy: PaperPolicy, signals: np.ndarray, seconds: float | None = None) -> int:
    policy.observe(
        Round(signals.shape[1], len(signals), [0] * len(signals), seconds, None, signals)
    )
    return policy.decide(Batch(len(signals))).num_steps


def test_it_is_the_published_formula() -> None:
    network, rng = weights(), np.random.default_rng(1)
    policy = PaperPolicy(TIERS, 4, network, compression=2)
    signals = rng.random((1, 5, 2))
    conf, ent = signals[0, :, 0], signals[0, :, 1]

    def tokens(steps: int) -> float:
        x = np.array([ent.mean(), conf.mean(), ent.max(), conf.min(), 2, steps])
        hidden = np.maximum(x @ network.hidden + network.hidden_bias, 0)
        return float(np.clip(hidden @ network.output + network.output_bias, 0, 1)) * steps + 1

    chosen = seen(policy, signals)
    assert chosen == max(TIERS, key=tokens)
    assert policy.decide(Batch(1)).expected_accept_length == pytest.approx(tokens(chosen))


def test_as_published_it_drafts_as_deep_as_it_can_and_with_cost_it_does_not() -> None:
    rows = [TimedRound(1, k, 0.02 + 0.01 * k) for k in TIERS]
    published = PaperPolicy(TIERS, 4, by_confidence())
    priced = PaperPolicy(TIERS, 4, by_confidence(), "throughput")
    for policy in (published, priced):
        policy.profiled(rows)
    assert seen(published, window(0.1)) == 8
    assert seen(priced, window(0.1)) == 0
    assert seen(priced, window(0.95)) == 8
    assert (published.name, priced.name) == ("paper", "paper:throughput")


def test_a_draft_that_sleeps_does_not_make_depth_0_cheaper() -> None:
    """What it saves it pays when it wakes."""
    policy = PaperPolicy(TIERS, 4, by_confidence(), "throughput")
    policy.profiled([TimedRound(1, k, 0.02 + 0.01 * k) for k in TIERS for _ in range(8)])
    assert seen(policy, window(0.9)) == 8
    for steps in 50 * (0, 8, 8, 8):
        policy.observe(Round(steps, 1, [steps], 0.1 if steps else 0.006, asleep=not steps))
    assert policy.decide(Batch(1)).num_steps == 8


def test_it_sees_the_last_window_unless_it_is_shown_the_coming_one() -> None:
    policy = PaperPolicy(TIERS, 4, by_confidence())
    assert policy.decide(Batch(1)).reason == "launch"
    seen(policy, window(0.5))
    assert policy.decide(Batch(1)).expected_accept_length == pytest.approx(5.0)
    policy.observe(Round(0, 1, [0], None, None, np.zeros((1, 0, 2))))
    assert policy.decide(Batch(1)).expected_accept_length == pytest.approx(5.0)
    policy.foresee(window(0.9))
    assert policy.decide(Batch(1)).expected_accept_length == pytest.approx(8.2)


def test_a_batch_is_the_mean_of_its_requests() -> None:
    policy = PaperPolicy(TIERS, 4, by_confidence())
    both = np.concatenate([window(0.2), window(0.6), np.full((1, 3, 2), np.nan)])
    seen(policy, both)
    assert policy.decide(Batch(3)).expected_accept_length == pytest.approx(1 + 8 * 0.4)


def test_what_is_missing_is_said() -> None:
    with pytest.raises(ConfigError, match="speckv train"):
        PaperPolicy(TIERS, 4, None)
    with pytest.raises(ConfigError, match="speed"):
        PaperPolicy(TIERS, 4, weights(), "speed")
