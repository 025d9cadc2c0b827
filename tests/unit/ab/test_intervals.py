"""Ratios of throughput and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t

from benchmarks.intervals import Truth, covered
from sglang_speckv.ab.intervals import Ratio, Sample, ratio


def sample(seconds: object, load: str = "", condition: str = "") -> Sample:
    """Arms x blocks of 64 tokens each; a block is one request. Prompts are of the load alone, and
    blocks of the condition."""
    each = np.asarray(seconds, float)
    blocks = np.array([f"{condition} {i}" for i in range(each.shape[1])])
    prompts = np.array([f"{load} p{i}" for i in range(each.shape[1])])
    return Sample(np.full(each.shape, 64.0), each, blocks, prompts)


def half(found: Ratio) -> float:
    """Of the interval's width, in logs."""
    return np.log(found.high / found.low) / 2


def test_pairing_removes_common_noise():
    noise = np.random.default_rng(3).uniform(1, 5, 40)
    found = ratio([sample([noise / 1.1, noise])], 0, 1)
    assert found.value == pytest.approx(1.1)
    assert found.high - found.low < 1e-6


def test_interval_is_the_paired_t_interval_where_that_exists():
    """For small noise the logarithm is nearly linear and both must agree."""
    seconds = 1 + 0.01 * np.random.default_rng(1).standard_normal((2, 6))
    difference = np.log(seconds[1]) - np.log(seconds[0])
    width = t.ppf(0.975, 5) * difference.std(ddof=1) / np.sqrt(6)
    assert half(ratio([sample(seconds)], 0, 1)) == pytest.approx(width, rel=0.01)


def test_a_block_counts_by_how_far_its_absence_moves_the_ratio():
    """Most of the time is in one block, which so hides its own error."""
    seconds = np.array([9, 1, 1, 1]) * (1 + 0.01 * np.random.default_rng(1).normal(size=(2, 4)))
    whole = ratio([sample(seconds)], 0, 1)
    without = [ratio([sample(np.delete(seconds, i, axis=1))], 0, 1).value for i in range(4)]
    error = np.sqrt(3 / 4 * np.square(np.log(without) - np.log(whole.value)).sum())
    assert half(whole) == pytest.approx(t.ppf(0.975, 3) * error, rel=0.01)


def test_the_loads_of_one_block_are_not_two_blocks():
    """What a moment does to a block it does under each of its loads: a second load with the same
    noise tells nothing new. Blocks of their own do."""
    noisy = 1 + 0.1 * np.random.default_rng(1).standard_normal((2, 6))
    one = sample(noisy, "1")
    alone = ratio([one], 0, 1)
    shared = ratio([one, sample(noisy, "4")], 0, 1)
    apart = ratio([one, sample(noisy, "4", "another")], 0, 1)
    assert half(shared) == pytest.approx(half(alone))
    assert half(apart) == pytest.approx(
        half(alone) / np.sqrt(2) * t.ppf(0.975, 10) / t.ppf(0.975, 5)
    )


def test_calm_loads_lend_a_noisy_one_no_degrees_of_freedom():
    """All of the error is in three blocks: the mean over two loads has half of it, and no more
    degrees of freedom than the three alone."""
    noisy, calm = np.random.default_rng(1).standard_normal((2, 2, 3))
    one = sample(1 + 0.1 * noisy, "1")
    both = ratio([one, sample(1 + 1e-4 * calm, "4", "another")], 0, 1)
    assert half(both) == pytest.approx(half(ratio([one], 0, 1)) / 2, rel=0.01)


@pytest.mark.parametrize(
    "truth",
    [
        Truth(blocks=4),
        Truth(blocks=12),
        Truth(prompts=12, of_prompts=0.2),
        Truth(loads=(4, 4, 4)),
        Truth(blocks=3, loads=(1, 64), prompts=192, of_blocks=0.02, of_prompts=0.25),
        Truth(blocks=3, loads=(1, 4), of_blocks=0.1, of_prompts=0.05, shared=True),
        Truth(blocks=6, loads=(1, 4), of_blocks=0.1, of_prompts=0.05, shared=True),
    ],
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


def test_a_mean_over_cells():
    cells = [
        sample(np.tile([[1.0], [2.0], [1.0]], 4)),
        sample(np.tile([[4.0], [1.0], [1.0]], 4), condition="another"),
    ]
    assert ratio(cells, 2, 0).value == pytest.approx(2)
    assert ratio(cells, 2, 1).value == pytest.approx(2**0.5)


def test_few_blocks_have_no_interval():
    found = ratio([sample([[1.0, 2.0], [1.0, 1.0]])], 0, 1)
    assert (found.low, found.high, found.interval) == (None, None, None)
    assert Ratio(0.971, 0.94812, 0.9999).interval == [0.9481, 0.9999]
