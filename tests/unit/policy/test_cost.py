"""Round times: any scale, noise, drift, and cells that were never measured."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from sglang_speckv.policy.cost import SIZES, CostModel, TimedRound
from sglang_speckv.policy.prior import CostPrior
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
    times = [t / truth.seconds(size, k) for k, t in enumerate(model.times(size)[:tiers])]
    return [ratio / (sum(times) / len(times)) for ratio in times]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_measured_cells_are_found_at_any_scale(scale: float) -> None:
    truth = Cost(0.04 * scale, 0.04, 0.003 * scale, 0.0025 * scale)
    model = CostModel(7)
    feed(model, [(4, k) for k in range(8)], 400, truth)
    expected = [truth.seconds(4, k) for k in range(8)]
    assert model.times(4) == pytest.approx(expected, rel=0.2)
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
    times = model.times(1)
    assert times[3] == pytest.approx(Cost().seconds(1, 3), rel=0.12)
    assert times == sorted(times)


def test_a_pause_on_the_first_round_is_forgotten() -> None:
    model = CostModel(7)
    model.update(1, 3, 5.0)
    feed(model, [(1, 3)], 10)
    assert model.times(1)[3] == pytest.approx(Cost().seconds(1, 3), rel=0.2)


def test_a_pause_on_a_new_depth_is_no_new_truth() -> None:
    model = CostModel(7)
    feed(model, [(1, 3)], 20)
    model.update(1, 5, 3.0)
    assert model.times(1)[5] < 2.0 * Cost().seconds(1, 5)


def test_a_depth_that_became_dear_is_seen_when_it_is_tried() -> None:
    dear = Cost(draft=0.02)
    model = CostModel(7)
    feed(model, [(1, 1), (1, 5)], 200)
    feed(model, [(1, 1), (1, 5)], 40, dear)
    assert ratios(model, 1, dear)[5] == pytest.approx(ratios(model, 1, dear)[1], rel=0.15)


def test_sizes_within_an_eighth_are_one() -> None:
    model = CostModel(7)
    counted = [SIZES[model.row_of(size)] for size in (1, 2, 5, 8, 9, 10, 17)]
    assert counted == [1, 2, 5, 8, 10, 10, 20]
    assert model.row_of(10**9) == len(SIZES) - 1
    assert all(b / a <= 1.26 for a, b in pairwise(SIZES[3:]))


def test_the_engines_sizes_share_what_their_graphs_take() -> None:
    """Of a batch that is padded to a captured size, time is a staircase."""
    model = CostModel(7, padded=(1, 2, 4, 8, 16, 32))
    feed(model, [(16, k) for k in range(8)], 400, jitter=0.02)
    assert model.times(9) == model.times(12) == model.times(16) != model.times(8)


def test_a_profile_is_where_it_starts() -> None:
    model = CostModel(7)
    rows = [TimedRound(n, k, TRUTH.seconds(n, k)) for n in (1, 4, 16) for k in (0, 3, 7)]
    odd = [(0, 3, 0.1), (1, 9, 0.1), (1, 3, -1.0), (1, 3, math.nan), (1, None, 0.1)]
    model.profiled([*rows, *(TimedRound(*row) for row in odd)])
    for size in (1, 4, 8, 16):
        assert ratios(model, size) == pytest.approx([1.0] * 8, rel=0.1)
    assert model.times(4)[3] == pytest.approx(TRUTH.seconds(4, 3), rel=0.05)


def test_a_profile_of_a_faster_machine_is_soon_overruled() -> None:
    """As long as it is not, depths that were not tried look cheap."""
    model = CostModel(7)
    model.profiled(TimedRound(1, k, TRUTH.seconds(1, k)) for k in range(8) for _ in range(20))
    feed(model, [(1, 3)], 12, speed=2.0, jitter=0.02)
    assert model.times(1)[3] == pytest.approx(2 * TRUTH.seconds(1, 3), rel=0.1)


@pytest.mark.parametrize(("disturbed", "within"), [(8.0, 0.4), (2.0, 0.15), (0.5, 0.15)])
def test_rounds_of_one_depth_set_all_right_where_a_profile_was_disturbed(
    disturbed: float, within: float
) -> None:
    """What other sizes' rounds took beside the same work does not bend the shape."""
    model = CostModel(7)
    model.profiled(
        TimedRound(n, k, disturbed * TRUTH.seconds(n, k)) for n in (1, 4, 16) for k in range(8)
    )
    feed(model, [(16, 3)], 8, jitter=0.02)
    assert ratios(model, 16) == pytest.approx([1.0] * 8, rel=within)


def test_a_round_that_is_all_cut_takes_no_less_than_one_without_drafts() -> None:
    """Whatever is believed of a token. (Its price once rose without end: cuts that seemed to save
    more than there was to save made each second of time seem dearer, which cut more.)"""
    model = CostModel(3)
    model.profiled(TimedRound(16, k, 0.065 + 0.005 * k) for k in range(4))
    for _ in range(300):
        model.update(16, 1, 0.070)
        model.update(16, 1, 0.030, cut=16)
    times, token = model.times(16), model.token_time(16)
    assert token > 0.0
    assert all(times[k] - 16 * k * token >= times[0] - 1e-9 for k in range(1, 4))


@pytest.mark.parametrize("truth", [Cost(0.03, 0.02, 0.0, 0.009), Cost(0.03, 0.2, 0.0, 0.0018)])
def test_a_size_that_was_never_timed_is_told_in_seconds(truth: Cost) -> None:
    """However far the machine is from the usual shape."""
    model = CostModel(7)
    model.profiled(TimedRound(n, k, truth.seconds(n, k)) for n in (1, 4, 16) for k in range(8))
    for size in (2, 8):
        expected = [truth.seconds(size, k) for k in range(8)]
        assert model.times(size) == pytest.approx(expected, rel=0.2)


def test_a_short_time_behind_a_long_one_is_no_new_truth() -> None:
    """The host was late for the first round, and so read both results at once."""
    model = CostModel(7)
    model.profiled(TimedRound(1, k, TRUTH.seconds(1, k)) for k in range(8))
    feed(model, [(1, 3)], 200, jitter=0.02)
    usual = TRUTH.seconds(1, 3)
    model.update(1, 3, 5 * usual)
    model.update(1, 3, usual / 5)
    feed(model, [(1, 3)], 5, jitter=0.02)
    assert model.times(1)[3] == pytest.approx(usual, rel=0.1)
    assert ratios(model, 1) == pytest.approx([1.0] * 8, rel=0.03)


def cut_rounds(model: CostModel, rounds: int, saves: float) -> None:
    """Of four requests at depth 5, in which cuts save this much of what they should."""
    rng = np.random.default_rng(2)
    token = TRUTH.verify * TRUTH.width
    for n in range(rounds):
        cut = int(rng.integers(0, 20)) if n % 8 else 0
        seconds = TRUTH.seconds(4, 5) - saves * token * cut
        model.update(4, 5, seconds * float(np.exp(rng.normal(0, 0.03))), cut=cut)


@pytest.mark.parametrize("saves", [0.0, 0.5, 1.0])
def test_what_a_cut_saves_is_found_out(saves: float) -> None:
    model = CostModel(7)
    model.profiled(TimedRound(4, k, TRUTH.seconds(4, k)) for k in range(8))
    cut_rounds(model, 600, saves)
    assert model.token_time(4) == pytest.approx(saves * TRUTH.verify * TRUTH.width, abs=0.0003)
    assert ratios(model, 4)[5] == pytest.approx(1.0, abs=0.06), "cut rounds count as whole ones"


def test_a_depth_that_was_left_for_a_while_is_soon_known_again() -> None:
    model = CostModel(7)
    feed(model, [(1, 5)], 100, jitter=0.02)
    feed(model, [(1, 3)], 40, speed=2.0, jitter=0.02)
    feed(model, [(1, 5)], 8, speed=2.0, jitter=0.02)
    assert model.times(1)[5] == pytest.approx(2 * TRUTH.seconds(1, 5), rel=0.1)


@pytest.mark.parametrize("asleep", [False, True])
def test_a_machine_that_becomes_slower_is_slower_at_every_depth(asleep: bool) -> None:
    """A depth that is not chosen meanwhile keeps its share of the others' times."""
    model = CostModel(7)
    rows = [TimedRound(1, k, TRUTH.seconds(1, k)) for k in range(8)]
    model.profiled([*rows, TimedRound(1, 0, 0.9 * TRUTH.seconds(1, 0), asleep=True)])
    rng = np.random.default_rng(0)
    for n in range(300):
        speed = 1.0 + 0.5 * min(n / 100, 1.0)
        steps, seconds = (0, 0.9 * TRUTH.seconds(1, 0)) if asleep else (3, TRUTH.seconds(1, 3))
        model.update(1, steps, seconds * speed * float(np.exp(rng.normal(0, 0.03))), asleep)
    assert model.times(1)[5] == pytest.approx(1.5 * TRUTH.seconds(1, 5), rel=0.08)
    assert model.asleep_time(1) == pytest.approx(1.5 * 0.9 * TRUTH.seconds(1, 0), rel=0.08)


def test_a_depth_that_is_only_probed_is_known_after_some_probes() -> None:
    """A disturbed profile found depth 0 slow; each probe of it stands alone among other rounds."""
    model = CostModel(3)
    model.profiled(TimedRound(1, k, TRUTH.seconds(1, k) * (2 if k == 0 else 1)) for k in range(4))
    for _ in range(4):
        feed(model, [(1, 1)], 60, jitter=0.02)
        feed(model, [(1, 0)], 1, jitter=0.02)
    assert model.times(1)[0] == pytest.approx(TRUTH.seconds(1, 0), rel=0.1)


def test_a_profile_beside_other_work_is_not_believed_where_that_ran() -> None:
    """More than half of a depth's rounds were slowed by something else."""
    model = CostModel(7)
    rows = [TimedRound(1, k, TRUTH.seconds(1, k)) for k in range(8) for _ in range(8)]
    slowed = [TimedRound(1, 3, 3 * TRUTH.seconds(1, 3))] * 5
    model.profiled([row for row in rows if row.num_steps != 3] + rows[24:27] + slowed)
    assert ratios(model, 1) == pytest.approx([1.0] * 8, rel=0.1)


def test_asleep_rounds_are_a_share_of_those_at_depth_0() -> None:
    model = CostModel(7)
    model.profiled([TimedRound(n, 0, 0.9 * TRUTH.seconds(n, 0), True) for n in (1, 4)])
    assert model.rounds == 0 and model.asleep_time(4) is None
    feed(model, [(4, 0), (4, 3)], 60)
    for size in (4, 8, 64):
        assert model.asleep_time(size) == pytest.approx(0.9 * model.times(size)[0], rel=0.15)


@pytest.mark.parametrize("seconds", [None, 0.0, -1.0, math.nan, math.inf, 1e300, "0.1"])
def test_what_no_clock_measures_is_not_learned(seconds: Any) -> None:
    model, untold = CostModel(7), CostModel(7)
    for each in (model, untold):
        each.profiled([TimedRound(1, 3, 0.05)])
    model.profiled([TimedRound(1, 3, seconds), TimedRound(seconds, 3, 0.1)])
    assert model.update(1, 3, seconds) is None
    assert model.times(1) == untold.times(1)


@pytest.mark.parametrize(("steps", "asleep"), [(0, True), (3, False)])
def test_swings_between_two_scales_stay_finite(steps: int, asleep: bool) -> None:
    model = CostModel(7)
    for n in range(2500):
        model.update(1, steps, 1e-8 if n // 11 % 2 else 9e5, asleep)
    assert all(0.0 < time < 1e9 for time in model.times(1))


def test_a_cost_table_of_less_than_a_round_tells_nothing() -> None:
    row = (np.array([each]) for each in (1, 3, 0.05, 0.5))
    assert not CostModel(7, CostPrior(*row)).rounds


def test_a_cost_table_is_where_it_starts() -> None:
    sizes, steps = np.repeat([1, 8], 3), np.tile([-1, 1, 5], 2)
    seconds = np.array([TRUTH.seconds(s, max(k, 0)) for s, k in zip(sizes, steps, strict=True)])
    prior = CostPrior(sizes, steps, seconds, np.full(6, 100))
    model = CostModel(7, prior)
    assert ratios(model, 8)[1:] == pytest.approx([1.0] * 7, rel=0.1)


def test_a_forward_of_the_draft_takes_as_long_in_a_batch_that_is_padded() -> None:
    """Nine requests are run as 32, and so many tokens are verified."""
    model, truth = CostModel(5, padded=(8, 32)), Cost(width=0.002)
    for size in (8, 32):
        for steps in range(6):
            for _ in range(40):
                model.update(size, steps, truth.seconds(size, steps))
    assert model.draft_time(9) == pytest.approx(model.draft_time(32))
    assert model.draft_time(9) == pytest.approx(truth.draft, rel=0.2)


def test_asleep_rounds_are_learned_where_there_are_no_others() -> None:
    model = CostModel(7)
    model.profiled([TimedRound(4, 0, 0.03, True), TimedRound(4, 0, 0.04), TimedRound(4, 3, 0.05)])
    assert model.asleep_time(4) == pytest.approx(0.03, rel=0.05)
    for _ in range(64):
        model.update(4, 0, 0.05, asleep=True)
    assert model.asleep_time(4) == pytest.approx(0.05, rel=0.05)
