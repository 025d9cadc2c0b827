"""Round times: any scale, noise, drift, and cells that were never measured."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sglang_speckv.policy.cost import CostModel, bucket_of
from sglang_speckv.policy.prior import OFF, CostPrior
from tests.unit.policy.simulate import Cost

TRUTH = Cost()


def feed(
    model: CostModel,
    cells: list[tuple[int, int]],
    rounds: int,
    truth: Cost = TRUTH,
    *,
    jitter: float = 0.12,
    spikes: float = 0.0,
    speed: float = 1.0,
    seed: int = 0,
) -> None:
    rng = np.random.default_rng(seed)
    for n in range(rounds):
        size, steps = cells[n % len(cells)]
        spike = 2.0 if rng.random() < spikes else 1.0
        noise = float(np.exp(rng.normal(0, jitter)))
        model.update(size, steps, truth.seconds(size, steps) * speed * spike * noise)


def ratios(model: CostModel, size: int, truth: Cost = TRUTH, tiers: int = 8) -> list[float]:
    """Estimated over true, relative to their mean: what a choice of depth depends on."""
    times = [t / truth.seconds(size, k) for k, t in enumerate(model.seconds(size)[:tiers])]
    return [ratio / (sum(times) / len(times)) for ratio in times]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_measured_cells_are_found_at_any_scale(scale: float) -> None:
    truth = Cost(0.04 * scale, 0.04, 0.003 * scale, 0.0025 * scale)
    model = CostModel(7)
    feed(model, [(4, k) for k in range(8)], 400, truth)
    expected = [truth.seconds(4, k) for k in range(8)]
    assert model.seconds(4) == pytest.approx(expected, rel=0.2)
    assert ratios(model, 4, truth) == pytest.approx([1.0] * 8, rel=0.08)


@pytest.mark.parametrize("spikes", [0.05, 0.2])
def test_spikes_do_not_change_the_order_of_depths(spikes: float) -> None:
    model = CostModel(7)
    feed(model, [(2, k) for k in (0, 1, 3, 5, 7)], 300, spikes=spikes)
    assert ratios(model, 2) == pytest.approx([1.0] * 8, rel=0.12)


def test_three_depths_tell_of_the_rest() -> None:
    model = CostModel(7)
    feed(model, [(1, 3), (1, 7), (1, 0)], 30, jitter=0.05)
    assert ratios(model, 1) == pytest.approx([1.0] * 8, rel=0.12)


def test_batch_sizes_share_what_they_know() -> None:
    model = CostModel(7)
    feed(model, [(size, k) for size in (1, 4, 16) for k in (0, 3, 7)], 270, jitter=0.05)
    assert ratios(model, 8) == pytest.approx([1.0] * 8, rel=0.15)


def test_one_measured_depth_is_believed_and_deeper_ones_cost_more() -> None:
    model = CostModel(7)
    feed(model, [(1, 3)], 40)
    times = model.seconds(1)
    assert times[3] == pytest.approx(Cost().seconds(1, 3), rel=0.12)
    assert times == sorted(times)


def test_a_pause_on_the_first_round_is_forgotten() -> None:
    model = CostModel(7)
    model.update(1, 3, 5.0)
    feed(model, [(1, 3)], 10)
    assert model.seconds(1)[3] == pytest.approx(Cost().seconds(1, 3), rel=0.2)


def test_a_pause_on_a_new_depth_is_clipped() -> None:
    model = CostModel(7)
    feed(model, [(1, 3)], 20)
    model.update(1, 5, 3.0)
    assert model.seconds(1)[5] < 2.0 * Cost().seconds(1, 5)


def test_a_slow_spell_is_not_blamed_on_the_depth_that_ran() -> None:
    model = CostModel(7)
    feed(model, [(1, 1), (1, 3), (1, 5)], 150)
    feed(model, [(1, 3)], 100, speed=1.5)
    assert model.level > 1.2
    assert ratios(model, 1)[3] == pytest.approx(ratios(model, 1)[5], rel=0.25)


def test_a_depth_that_became_dear_is_seen_when_it_is_tried() -> None:
    dear = Cost(draft=0.02)
    model = CostModel(7)
    feed(model, [(1, 1), (1, 5)], 200)
    feed(model, [(1, 1), (1, 5)], 200, dear)
    assert ratios(model, 1, dear)[5] == pytest.approx(ratios(model, 1, dear)[1], rel=0.15)


def test_buckets_are_half_octaves() -> None:
    assert [bucket_of(size) for size in (1, 2, 3, 4, 5, 6, 8, 11, 12)] == [
        0,
        2,
        3,
        4,
        4,
        5,
        6,
        6,
        7,
    ]
    assert bucket_of(10**9) == bucket_of(4096)


def test_a_profile_is_where_it_starts() -> None:
    model = CostModel(7)
    rows = [(size, k, 32 * size, TRUTH.seconds(size, k)) for size in (1, 4, 16) for k in (0, 3, 7)]
    model.profiled(
        [*rows, (0, 3, 0, 0.1), (1, 9, 0, 0.1), (1, 3, 0, -1.0), (1, 3, 0, float("nan"))]
    )
    for size in (1, 4, 8, 16):
        assert ratios(model, size) == pytest.approx([1.0] * 8, rel=0.1)
    assert model.seconds(4)[3] == pytest.approx(TRUTH.seconds(4, 3), rel=0.05)


def test_a_profile_beside_other_work_is_not_believed_where_that_ran() -> None:
    """More than half of a depth's rounds were slowed by something else."""
    model = CostModel(7)
    rows = [(1, k, 32, TRUTH.seconds(1, k)) for k in range(8) for _ in range(8)]
    slowed = [(1, 3, 32, 3 * TRUTH.seconds(1, 3))] * 5
    model.profiled([row for row in rows if row[1] != 3] + rows[24:27] + slowed)
    assert ratios(model, 1) == pytest.approx([1.0] * 8, rel=0.1)


ASLEEP = [(size, OFF, 0, 0.9 * TRUTH.seconds(size, 0)) for size in (1, 4) for _ in range(3)]


def test_asleep_rounds_alone_tell_the_scale_of_the_others() -> None:
    model = CostModel(7)
    model.profiled(ASLEEP)
    assert ratios(model, 4) == pytest.approx([1.0] * 8, rel=0.3)
    assert model.off_time(4) == pytest.approx(ASLEEP[-1][-1], rel=0.05)
    feed(model, [(4, 3)], 40)
    assert ratios(model, 4) == pytest.approx([1.0] * 8, rel=0.15)
    assert (model.level, model.noise) == pytest.approx((1.0, 0.1), abs=0.1)


@pytest.mark.parametrize("seconds", [None, 0.0, -1.0, math.nan, math.inf, 1e300, "0.1"])
def test_what_no_clock_measures_is_not_learned(seconds: Any) -> None:
    model, untold = CostModel(7), CostModel(7)
    for each in (model, untold):
        each.profiled([(1, 3, 0, 0.05)])
    model.profiled([(1, 3, 0, seconds), (seconds, 3, 0, 0.1)])
    assert model.update(1, 3, seconds) is None
    assert model.seconds(1) == untold.seconds(1)


@pytest.mark.parametrize("steps", [OFF, 3])
def test_swings_between_two_scales_stay_finite(steps: int) -> None:
    model = CostModel(7)
    for n in range(2500):
        model.update(1, steps, 1e-8 if n // 11 % 2 else 9e5)
    assert all(0.0 < time < 1e9 for time in model.seconds(1))


def test_a_cost_table_of_less_than_a_round_tells_nothing() -> None:
    row = (np.array([each]) for each in (1, 3, 0.05, 0.5, 0))
    assert not CostModel(7, CostPrior(*row)).samples


def test_a_cost_table_is_where_it_starts() -> None:
    sizes, steps = np.repeat([1, 8], 3), np.tile([-1, 1, 5], 2)
    seconds = np.array([TRUTH.seconds(s, max(k, 0)) for s, k in zip(sizes, steps, strict=True)])
    prior = CostPrior(sizes, steps, seconds, np.full(6, 100), np.zeros(6))
    model = CostModel(7, prior)
    assert ratios(model, 8)[1:] == pytest.approx([1.0] * 7, rel=0.1)


def test_context_costs_what_it_was_seen_to_cost() -> None:
    model, rng = CostModel(3), np.random.default_rng(0)
    for n in range(600):
        context = int(rng.choice([2_000, 30_000]))
        seconds = (0.040 + 0.003 * (n % 4) + 1e-6 * context) * float(np.exp(rng.normal(0, 0.05)))
        model.update(8, n % 4, seconds, context)
    longer = model.seconds(8, 30_000)[2] - model.seconds(8, 2_000)[2]
    assert longer == pytest.approx(0.028, rel=0.2)


def test_context_that_says_nothing_costs_nothing() -> None:
    model, rng = CostModel(3), np.random.default_rng(0)
    for n in range(400):
        seconds = 0.040 * float(np.exp(rng.normal(0, 0.1)))
        model.update(4, n % 4, seconds, int(rng.integers(1, 10_000)))
    assert model.seconds(4, 10_000)[2] == pytest.approx(model.seconds(4, 100)[2], rel=0.05)
