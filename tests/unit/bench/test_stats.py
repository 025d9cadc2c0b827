"""Ratios of throughput and their intervals."""

import numpy as np
import pytest

from sglang_speckv.bench.stats import Ratio, paired_ratio, spread, tok_per_s


def test_rate_is_all_tokens_over_all_time():
    assert tok_per_s([10, 30], [1.0, 1.0]) == 20


def test_pairing_removes_common_noise():
    noise = np.random.default_rng(3).uniform(1, 5, 40)
    theirs = [(64, float(seconds)) for seconds in noise]
    ours = [(64, float(seconds) / 1.1) for seconds in noise]
    ratio = paired_ratio(ours, theirs)
    assert ratio.value == pytest.approx(1.1)
    assert ratio.high - ratio.low < 1e-6


def test_interval_covers_a_true_tie_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(40):
        ours, theirs = ([(64, float(s)) for s in rng.lognormal(0.0, 0.1, 16)] for _ in range(2))
        ratio = paired_ratio(ours, theirs, seed=trial)
        covered += ratio.low <= 1 <= ratio.high
    assert covered >= 33


def test_few_blocks_have_no_interval():
    ratio = paired_ratio([(10, 1.0), (10, 2.0)], [(10, 1.0), (10, 1.0)])
    assert (ratio.low, ratio.high) == (None, None)
    assert str(ratio) == "x0.67"
    assert str(Ratio(0.971, 0.948, 0.9999)) == "x0.97 [0.95, 1.00]"


def test_same_seed_same_interval():
    ours = [(64, 1.0 + i / 10) for i in range(8)]
    theirs = [(64, 1.3)] * 8
    assert paired_ratio(ours, theirs) == paired_ratio(ours, theirs)


def test_spread():
    assert spread([1.0]) is None
    assert spread([1.0, 1.0, 1.0]) == 0
