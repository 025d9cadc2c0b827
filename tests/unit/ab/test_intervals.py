"""Ratios of throughput and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t

from benchmarks.coverage import Truth, covered
from sglang_speckv.ab.intervals import Ratio, Sample, ratio


def sample(seconds: object, prompts: object = None) -> Sample:
    """Arms x blocks of 64 tokens each; a block is one request, of a prompt of its own unless
    ``prompts`` are given."""
    each = np.asarray(seconds, float)
    count = each.shape[1]
    names = np.array([f"p{i}" for i in range(count)] if prompts is None else prompts)
    return Sample(np.full(each.shape, 64.0), each, np.arange(count), names)


def test_pairing_removes_common_noise():
    noise = np.random.default_rng(3).uniform(1, 5, 40)
    found = ratio([sample([noise / 1.1, noise])], 0, 1)
    assert found.value == pytest.approx(1.1)
    assert found.high - found.low < 1e-6


def test_interval_is_the_paired_t_interval_where_that_exists():
    """For small noise the logarithm is nearly linear and both must agree."""
    seconds = 1 + 0.01 * np.random.default_rng(1).standard_normal((2, 6))
    difference = np.log(seconds[1]) - np.log(seconds[0])
    half = t.ppf(0.975, 5) * difference.std(ddof=1) / np.sqrt(6)
    found = ratio([sample(seconds)], 0, 1)
    assert np.log(found.high / found.low) / 2 == pytest.approx(half, rel=0.01)


@pytest.mark.parametrize(
    "truth",
    [Truth(blocks=4), Truth(blocks=12), Truth(prompts=12, of_prompts=0.2), Truth(cells=3)],
    ids=str,
)
def test_intervals_cover_the_truth_as_often_as_they_say(truth: Truth):
    assert 0.91 <= covered(truth, trials=400) <= 0.99


def test_prompts_that_repeat_in_every_block_widen_the_interval():
    """Blocks that all hold the same two prompts are alike; the prompts are not."""
    tokens = np.full((2, 12), 64.0)
    seconds = np.tile([[10.0, 30.0], [20.0, 20.0]], 6)
    again = Sample(tokens, seconds, np.repeat(np.arange(6), 2), np.array(["p", "q"] * 6))
    anew = Sample(tokens, seconds, again.block, np.array([f"p{i}" for i in range(12)]))
    wide, narrow = ratio([again], 0, 1), ratio([anew], 0, 1)
    assert np.log(wide.high) > 5 * np.log(narrow.high)


def test_a_mean_over_cells_compares_with_another_arm_in_each():
    """Arm 0 is best in the first cell, arm 1 in the second; arm 2 is both."""
    cells = [
        sample(np.tile([[1.0], [2.0], [1.0]], 4)),
        sample(np.tile([[4.0], [1.0], [1.0]], 4)),
    ]
    assert ratio(cells, 2, 0).value == pytest.approx(2)
    assert ratio(cells, 2, [0, 1]).value == pytest.approx(1)
    assert ratio(cells, 0, [0, 1]).value == pytest.approx(0.5)


def test_few_blocks_have_no_interval():
    found = ratio([sample([[1.0, 2.0], [1.0, 1.0]])], 0, 1)
    assert (found.low, found.high, found.interval) == (None, None, None)
    assert str(found) == "0.67"
    assert str(Ratio(0.971, 0.948, 0.9999)) == "0.97 [0.95, 1.00]"
