"""The distribution test: quiet where there is nothing, able to fail, and honest about its power."""

import numpy as np
import pytest

from sglang_speckv.ab.arms import arms_for
from sglang_speckv.ab.outcome import Outcome
from sglang_speckv.ab.sampled import LEAST_P, POWER, detectable, p_value

WEIGHTS = [0.5, 0.2, 0.1, 0.1, 0.05, 0.05]


def drawn(seed: int, weights: list[float], count: int = 240) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(map(int, rng.choice(len(weights), 4, p=weights))) for _ in range(count)]


def test_equal_distributions_pass():
    low = [p_value(drawn(seed, WEIGHTS), drawn(seed + 100, WEIGHTS)) for seed in range(50)]
    assert sum(p < 0.05 for p in low) <= 6
    assert min(low) > LEAST_P


def test_another_distribution_fails():
    assert p_value(drawn(0, [0.5, 0.3, 0.2]), drawn(1, [0.7, 0.2, 0.1])) < LEAST_P
    greedy = [(1, 1, 1, 1)] * 240
    assert p_value(greedy, drawn(1, [0.5, 0.3, 0.2])) < LEAST_P


def test_the_first_token_is_prefills_and_not_compared():
    ours = [(7, 1, 1, 1)] * 240
    assert p_value(ours, [(8, 1, 1, 1)] * 240) == 1


@pytest.mark.parametrize("answer", [(), (7,)])
def test_where_no_position_is_compared_there_is_no_p_value(answer: tuple[int, ...]):
    assert p_value([answer] * 240, [(7, 1, 1, 1)] * 240) is None


def test_an_arm_without_token_ids_is_no_loss():
    """Answers from elsewhere have none; p = 0 ended the run as another distribution."""
    none, elsewhere = arms_for(None, ("none", "url:x=http://h:1"))
    outcome = Outcome(samples={none: drawn(0, WEIGHTS), elsewhere: [()] * 240})
    assert outcome.p_values == {} and outcome.lossy == []


def test_rare_tokens_count_together():
    ours = [(0, i, i, i) for i in range(240)]
    assert p_value(ours, [(0, i + 1000, i, i) for i in range(240)]) == 1


def test_the_stated_shift_is_found_as_often_as_stated():
    """Moved away from the likeliest token, at one position, to the others as they are."""
    shift = detectable(drawn(0, WEIGHTS))
    assert 0.1 < shift < 0.4
    rest = (0.5 + shift) / 0.5
    moved = [0.5 - shift, *(weight * rest for weight in WEIGHTS[1:])]
    found = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        ours, theirs = (
            [(0, *map(int, rng.choice(6, 3, p=WEIGHTS))) for _ in range(240)] for _ in range(2)
        )
        ours = [(a, int(rng.choice(6, p=moved)), c, d) for a, _, c, d in ours]
        found += p_value(ours, theirs) < LEAST_P
    assert found / 60 == pytest.approx(POWER, abs=0.12)


def test_where_nothing_varies_nothing_would_be_found():
    assert detectable([(1, 1, 1, 1)] * 240) == 1
