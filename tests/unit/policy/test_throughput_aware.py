"""The proposed throughput-aware rule, as published, with what it does not do."""

from __future__ import annotations

import numpy as np
import pytest

from sglang_speckv.policy import Batch, Round
from sglang_speckv.policy.cost import TimedRound
from sglang_speckv.policy.prior import CostPrior
from sglang_speckv.policy.throughput_aware import ThroughputAwarePolicy

TIERS = (0, 1, 3, 5)


def cost(per_step: float, sizes: tuple[int, ...] = (1, 16)) -> CostPrior:
    """1 + per_step k seconds, ``per_step`` times the batch size for the larger batch."""
    rows = [(size, k, 1.0 + per_step * size * k) for size in sizes for k in TIERS]
    size, steps, seconds = (np.array(column) for column in zip(*rows, strict=True))
    return CostPrior(size, steps, seconds, np.ones(len(rows)))


def run(policy: ThroughputAwarePolicy, correct: list[int], rounds: int, size: int = 1) -> int:
    for i in range(rounds):
        steps = policy.decide(Batch(size)).num_steps
        policy.observe(Round(steps, size, [min(correct[i % len(correct)], steps)] * size))
    return policy.decide(Batch(size)).num_steps


def test_the_score_picks_the_depth() -> None:
    assert run(ThroughputAwarePolicy(TIERS, 3, cost(0.1)), [5], 20) == 5
    assert run(ThroughputAwarePolicy(TIERS, 3, cost(0.1)), [0, 1], 10) == 1
    assert run(ThroughputAwarePolicy(TIERS, 3, cost(2.0)), [5], 20) == 1, "never 0"


def test_it_decides_every_tenth_batch() -> None:
    policy = ThroughputAwarePolicy(TIERS, 3, cost(0.1))
    assert run(policy, [0], 9) == 3
    assert run(policy, [0], 1) == 1


def test_the_tail_is_extrapolated_from_unconditional_rates() -> None:
    policy = ThroughputAwarePolicy(TIERS, 3, cost(0.1))
    run(policy, [3, 1], 8)
    assert policy.snapshot()["acceptance"] == [1.0, 0.5, 0.5, 0.5, 0.5]
    falling = ThroughputAwarePolicy(TIERS, 3, cost(0.1))
    run(falling, [3, 2, 1, 0], 8)
    assert falling.snapshot()["acceptance"] == pytest.approx([0.75, 0.5, 0.25, 0.125, 0.0625])


def test_shrinking_forgets_the_deeper_positions() -> None:
    policy = ThroughputAwarePolicy(TIERS, 5, cost(0.1))
    run(policy, [5], 5)
    assert run(policy, [0], 30) == 1
    assert all(not window for window in policy._windows[1:])


def test_what_it_forgot_it_tries_again() -> None:
    """Nothing past draft 1 is ever accepted, yet the extrapolated tail calls it back."""
    policy = ThroughputAwarePolicy(TIERS, 3, cost(0.1))
    depths = [run(policy, [0, 1], 10) for _ in range(4)]
    assert depths == [1, 3, 1, 3]


def test_batch_sizes_differ_by_cost_only() -> None:
    policy = ThroughputAwarePolicy(TIERS, 3, cost(0.1))
    assert run(policy, [5], 20, size=1) == 5
    assert run(policy, [5], 20, size=16) == 1
    assert run(policy, [5], 20, size=2) == 5, "the nearest profiled size"


def test_a_later_revision_wants_a_margin() -> None:
    assert run(ThroughputAwarePolicy(TIERS, 3, cost(0.3)), [2], 20) == 3
    assert run(ThroughputAwarePolicy(TIERS, 1, cost(0.3), interval=5, hysteresis=9.0), [5], 20) == 1


@pytest.mark.parametrize("learned", ["profiled", "served"])
def test_without_a_table_times_are_learned(learned: str) -> None:
    policy = ThroughputAwarePolicy(TIERS, 3)
    times = {k: 1.0 + 2.0 * k for k in TIERS}
    rows = [TimedRound(1, k, times[k]) for _ in range(40) for k in TIERS]
    if learned == "profiled":
        policy.profiled(rows)
    else:
        for row in rows:
            policy.observe(Round(row.num_steps, 1, [row.num_steps], row.seconds))
    assert run(policy, [5], 20) == 1
    assert run(ThroughputAwarePolicy(TIERS, 3), [5], 20) == 3, "no time yet, no decision"


def test_a_draft_that_sleeps_is_timed_apart() -> None:
    """In a profile and while serving."""
    rows = [TimedRound(1, k, 1.0 + 0.1 * k) for k in TIERS for _ in range(24)]
    asked, told = (ThroughputAwarePolicy(TIERS, 3) for _ in range(2))
    asked.profiled([TimedRound(1, 0, 0.9, asleep=True)] * 24 + rows)
    told.profiled(rows)
    for _ in range(100):
        asked.observe(Round(0, 1, [0], 0.9, asleep=True))
    assert run(asked, [5], 20) == run(told, [5], 20) == 5
    assert asked._times(1) == pytest.approx(told._times(1), rel=1e-2)


def test_a_missing_price_keeps_the_depth() -> None:
    gap = cost(0.1)
    without = CostPrior(*(a[gap.num_steps != 5] for a in vars(gap).values()))
    assert run(ThroughputAwarePolicy(TIERS, 3, without), [5], 20) == 3


def test_only_zero_to_choose_from() -> None:
    policy = ThroughputAwarePolicy((0,), 3, cost(0.1))
    assert run(policy, [0], 20) == 0
