"""The distribution test: quiet where there is nothing, and able to fail."""

import numpy as np

from sglang_speckv.bench.sampling import LEAST_P, p_value


def drawn(seed: int, weights: list[float], count: int = 240) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(map(int, rng.choice(len(weights), 4, p=weights))) for _ in range(count)]


def test_equal_distributions_pass():
    weights = [0.5, 0.2, 0.1, 0.1, 0.05, 0.05]
    low = [p_value(drawn(seed, weights), drawn(seed + 100, weights)) for seed in range(50)]
    assert sum(p < 0.05 for p in low) <= 6
    assert min(low) > LEAST_P


def test_another_distribution_fails():
    assert p_value(drawn(0, [0.5, 0.3, 0.2]), drawn(1, [0.7, 0.2, 0.1])) < LEAST_P
    greedy = [(1, 1, 1, 1)] * 240
    assert p_value(greedy, drawn(1, [0.5, 0.3, 0.2])) < LEAST_P


def test_the_first_token_is_prefills_and_not_compared():
    ours = [(7, 1, 1, 1)] * 240
    assert p_value(ours, [(8, 1, 1, 1)] * 240) == 1


def test_rare_tokens_count_together():
    ours = [(0, i, i, i) for i in range(240)]
    assert p_value(ours, [(0, i + 1000, i, i) for i in range(240)]) == 1
